//! Bodies of requests.
//!
//! ```text
//! input   api key u8 | version u8 | body
//! ```
//! A key or version that is not served stands for one that is, so that no input is in vain.

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::{ApiKey, RequestKind};
use thermocline_ingest::protocol::guard;
use thermocline_ingest::protocol::versions::{self, APIS};

use super::memory::peak_of;

/// Bytes that decoding may hold for each byte of a request. The dearest byte there is belongs to an unknown tagged
/// field: two of them, where a struct has no other, take a node of a tree with room for eleven.
const HELD_PER_BYTE_MAX: usize = 128;
/// Bytes that decoding may hold whatever the request: the text of an error.
const HELD_BASE_MAX: usize = 16 << 10;

/// Bytes that decoding a request of so many bytes may hold.
pub fn allowed(length: usize) -> usize {
    HELD_PER_BYTE_MAX * length + HELD_BASE_MAX
}

/// See the [module](self).
pub fn run(input: &[u8]) {
    let [key, version, body @ ..] = input else { return };
    let api = versions::find(i16::from(*key)).unwrap_or(APIS[usize::from(*key) % APIS.len()]);
    let version = i16::from(*version);
    let count = api.max - api.served_min + 1;
    let version = if api.serves(version) { version } else { api.served_min + version % count };
    check(api.key, version, &Bytes::copy_from_slice(body));
}

/// Decodes a body behind the guard, and what it encodes to.
pub fn check(key: ApiKey, version: i16, body: &Bytes) {
    let (request, held) = peak_of(|| decode(key, version, body));
    assert!(held <= allowed(body.len()), "{key:?} {version}: decoding {} bytes held {held}", body.len());
    let Some(request) = request else { return };
    let mut encoded = BytesMut::new();
    request.encode(&mut encoded, version).unwrap_or_else(|error| panic!("{key:?} {version}: {error:#}: {request:?}"));
    let again = decode(key, version, &encoded.freeze());
    // Only clients encode requests; that side leaves out tags of 2^31 and more, which are negative to it.
    let is_lossy = || format!("{request:?}").contains("unknown_tagged_fields: {-");
    assert!(again.as_ref() == Some(&request) || is_lossy(), "{key:?} {version}: {request:?} and again {again:?}");
}

fn decode(key: ApiKey, version: i16, body: &Bytes) -> Option<RequestKind> {
    let length = guard::check_body(key, version, body).ok()?;
    let mut rest = body.slice(..length);
    let request = RequestKind::decode(key, &mut rest, version).ok()?;
    assert!(rest.is_empty(), "{key:?} {version}: the guard sees {} bytes more than the decoder", rest.len());
    Some(request)
}
