//! Records of the internal topics, and what members of a group send each other through the broker.
//!
//! ```text
//! input   kind u8 | bytes
//! kind    0 key, 1 offset, 2 group of __consumer_offsets | 3 key, 4 transaction of __transaction_state
//!         | 5 subscription, 6 assignment of a consumer
//! ```

use std::fmt::Debug;

use bytes::Bytes;
use thermocline_ingest::coordinator::consumer_protocol;
use thermocline_ingest::coordinator::records::{GroupMetadata, Key, decode_offset, encode_offset};
use thermocline_ingest::coordinator::transactions::records as transactions;

use super::memory::peak_of;

const KINDS: u8 = 7;
/// Bytes that decoding may hold for each byte: dearest are members without names, and partitions of a topic without
/// one.
const HELD_PER_BYTE_MAX: usize = 64;
/// Bytes that decoding may hold whatever the record.
const HELD_BASE_MAX: usize = 4 << 10;

/// See the [module](self).
pub fn run(input: &[u8]) {
    let Some((kind, bytes)) = input.split_first() else { return };
    match kind % KINDS {
        0 => check(bytes, Key::decode, Key::encode),
        1 => check(bytes, decode_offset, encode_offset),
        2 => check(bytes, GroupMetadata::decode, GroupMetadata::encode),
        3 => check(bytes, transactions::decode_key, |id| transactions::encode_key(id)),
        4 => check(bytes, transactions::decode, transactions::encode),
        5 => drop(bounded(bytes, consumer_protocol::subscribed_topics)),
        _ => drop(bounded(bytes, consumer_protocol::assigned_partitions)),
    }
}

/// What a record means can be written, unless the newer format it was in holds more; and that reads back and is written
/// as itself.
fn check<T: Debug, D: Debug, E: Debug>(
    bytes: &[u8],
    decode: impl Fn(&[u8]) -> Result<T, D>,
    encode: impl Fn(&T) -> Result<Bytes, E>,
) {
    let Ok(record) = bounded(bytes, &decode) else { return };
    let Ok(written) = encode(&record) else { return };
    let again = decode(&written).unwrap_or_else(|error| panic!("{record:?} reads back as {error:?}"));
    assert_eq!(encode(&again).ok().as_ref(), Some(&written), "{record:?} and {again:?}");
}

fn bounded<T>(bytes: &[u8], decode: impl FnOnce(&[u8]) -> T) -> T {
    let (decoded, held) = peak_of(|| decode(bytes));
    let allowed = HELD_PER_BYTE_MAX * bytes.len() + HELD_BASE_MAX;
    assert!(held <= allowed, "decoding {} bytes held {held}", bytes.len());
    decoded
}
