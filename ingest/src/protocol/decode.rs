//! Bytes to requests: the header by hand, the body by `kafka-protocol` once the guard has walked it.
//!
//! Decoded strings and record bytes are slices of the frame and keep all of it alive: what outlives the request is
//! copied.

use bytes::Bytes;
use kafka_protocol::messages::ApiKey;
use kafka_protocol::protocol::Decodable;

use super::guard::{self, GuardError};
use super::versions::{self, ApiRange};

/// Bytes of key, version and correlation id: what every frame must hold.
pub const HEADER_FIXED_LEN: usize = 8;

/// Longest part of a client id that is kept.
const CLIENT_ID_LEN_MAX: usize = 256;

/// Why a request closes its connection.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("a frame of {0} bytes is too short for a request header")]
    ShortHeader(usize),
    #[error("api key {0} is not known here")]
    UnknownApi(i16),
    #[error("{api:?} version {version} is not served; {min} to {max} are")]
    Version { api: ApiKey, version: i16, min: i16, max: i16 },
    #[error("the client id is not UTF-8")]
    ClientId,
    #[error(transparent)]
    Guard(#[from] GuardError),
    #[error("{api:?} version {version} cannot be decoded: {reason}")]
    Body { api: ApiKey, version: i16, reason: String },
}

/// The first eight bytes of a request: enough to know what it is and to answer it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub api_key: i16,
    pub api_version: i16,
    pub correlation_id: i32,
}

/// A request whose header is read and whose body waits to be decoded.
#[derive(Clone, Debug)]
pub struct RawRequest {
    pub api: ApiRange,
    pub version: i16,
    pub correlation_id: i32,
    /// Copied; at most 256 bytes of it.
    pub client_id: String,
    pub body: Bytes,
}

/// Reads key, version and correlation id.
pub fn head(frame: &[u8]) -> Result<Head, DecodeError> {
    let Some(([k0, k1, v0, v1, c0, c1, c2, c3], _)) = frame.split_first_chunk::<HEADER_FIXED_LEN>() else {
        return Err(DecodeError::ShortHeader(frame.len()));
    };
    Ok(Head {
        api_key: i16::from_be_bytes([*k0, *k1]),
        api_version: i16::from_be_bytes([*v0, *v1]),
        correlation_id: i32::from_be_bytes([*c0, *c1, *c2, *c3]),
    })
}

/// Reads the whole header (v1, or v2 where the version is flexible) and checks that the request is one we serve.
pub fn request(frame: Bytes) -> Result<RawRequest, DecodeError> {
    let head = head(&frame)?;
    let api = versions::find(head.api_key).ok_or(DecodeError::UnknownApi(head.api_key))?;
    let version = head.api_version;
    if !api.serves(version) {
        return Err(DecodeError::Version { api: api.key, version, min: api.served_min, max: api.max });
    }
    let (client_id, rest) = client_id(frame.get(HEADER_FIXED_LEN..).unwrap_or_default())?;
    let rest = if guard::is_flexible(api.key, version) { guard::skip_tags(rest)? } else { rest };
    let body = frame.slice_ref(rest);
    Ok(RawRequest { api, version, correlation_id: head.correlation_id, client_id, body })
}

/// The client id: i16 length in both header versions, -1 for null.
fn client_id(bytes: &[u8]) -> Result<(String, &[u8]), DecodeError> {
    let truncated = |claimed| GuardError::Truncated { claimed, left: bytes.len() };
    let (length, rest) = bytes.split_first_chunk().ok_or_else(|| truncated(2))?;
    let length = i16::from_be_bytes(*length);
    if length == -1 {
        return Ok((String::new(), rest));
    }
    let length = usize::try_from(length).map_err(|_| GuardError::NegativeLength(i64::from(length)))?;
    let (id, rest) = rest.split_at_checked(length).ok_or_else(|| truncated(length))?;
    let id = std::str::from_utf8(id).map_err(|_| DecodeError::ClientId)?;
    let kept = id.floor_char_boundary(CLIENT_ID_LEN_MAX);
    Ok((id[..kept].to_owned(), rest))
}

impl RawRequest {
    /// Decodes the body behind the guard.
    pub fn decode<T: Decodable>(&self) -> Result<T, DecodeError> {
        let length = guard::check_body(self.api.key, self.version, &self.body)?;
        T::decode(&mut self.body.slice(..length), self.version).map_err(|error| DecodeError::Body {
            api: self.api.key,
            version: self.version,
            reason: error.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::MetadataRequest;
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::samples::request_body;
    use crate::protocol::versions::APIS;

    fn frame(key: ApiKey, version: i16, client_id: Option<&str>) -> Vec<u8> {
        let mut frame = (key as i16).to_be_bytes().to_vec();
        frame.extend(version.to_be_bytes());
        frame.extend(42_i32.to_be_bytes());
        match client_id {
            None => frame.extend((-1_i16).to_be_bytes()),
            Some(id) => {
                frame.extend((id.len() as i16).to_be_bytes());
                frame.extend(id.as_bytes());
            }
        }
        if guard::is_flexible(key, version) {
            frame.extend([1, 7, 2, 0, 0]);
        }
        frame.extend(request_body(key, version));
        frame
    }

    #[test]
    fn every_header_is_read_up_to_the_body() {
        for api in APIS {
            for version in api.served_min..=api.max {
                let request = request(frame(api.key, version, Some("kcat")).into()).unwrap();
                assert_eq!((request.correlation_id, request.client_id.as_str()), (42, "kcat"));
                assert_eq!(request.body, request_body(api.key, version), "{:?} {version}", api.key);
            }
        }
    }

    #[test]
    fn client_ids_may_be_null_and_are_cut() {
        let read = |id| request(frame(ApiKey::Metadata, 1, id).into()).map(|request| request.client_id.len());
        assert_eq!(read(None).unwrap(), 0);
        assert!(read(Some(&"ä".repeat(1000))).unwrap() <= CLIENT_ID_LEN_MAX);
    }

    /// As librdkafka 2.12 sends it: a null array of topics in the first of four bytes, then what it means to say.
    #[test]
    fn what_follows_a_request_is_ignored() {
        let mut frame = frame(ApiKey::Metadata, 12, None);
        frame.truncate(frame.len() - request_body(ApiKey::Metadata, 12).len());
        frame.extend([0, 0, 0, 0, 1, 0, 0]);
        let request: MetadataRequest = request(frame.into()).unwrap().decode().unwrap();
        assert_eq!(request.topics, None);
    }

    #[test]
    fn what_is_not_served_is_named() {
        let refused = |key: i16, version: i16| {
            let head = [key.to_be_bytes(), version.to_be_bytes(), [0, 0], [0, 1], [0xff, 0xff]].concat();
            request(head.into()).unwrap_err().to_string()
        };
        assert_eq!(refused(999, 0), "api key 999 is not known here");
        assert_eq!(refused(0, 2), "Produce version 2 is not served; 3 to 11 are");
    }

    proptest! {
        #[test]
        fn a_cut_or_random_frame_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64), key in 0_u8..70) {
            let _ = request(bytes.clone().into());
            let mut known = vec![0, key, 0, 3];
            known.extend(bytes);
            let _ = request(known.into());
        }
    }
}
