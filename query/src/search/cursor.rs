//! Where the next page starts: the key of the last hit of the page before, opaque to the client.
//!
//! base64url without padding of (big-endian)
//!
//! ```text
//! version u8 | sort u8 | rank i64 | partition i32 | offset i64 | topic name, UTF-8, to the end
//! ```
//!
//! A cursor holds no state of the broker: it works after a restart, on both sides of the archive's seam, and while new
//! messages arrive. It is bound to its sort; another query under the same cursor simply continues from that place.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use thermocline_ingest::model::{Offset, PartitionId, TOPIC_NAME_LEN_MAX, TopicName};

use super::rank::{Rank, Sort, SortKey};

const VERSION: u8 = 1;
const FIXED_LEN: usize = 22;
/// Longest text of a legal cursor: four characters for each three bytes.
const TEXT_LEN_MAX: usize = (FIXED_LEN + TOPIC_NAME_LEN_MAX).div_ceil(3) * 4;

/// A cursor this broker did not make, or not for this sort.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CursorError {
    #[error("cursor {0:?} is not one that an earlier answer carried; leave it out to start at the first page")]
    Malformed(String),
    #[error("cursor version {0} is not known to this broker; leave it out to start at the first page")]
    Version(u8),
    #[error("the cursor was made for another sort; keep the sort over all pages")]
    OtherSort,
}

pub(crate) fn encode(sort: Sort, key: &SortKey) -> String {
    let mut bytes = Vec::with_capacity(FIXED_LEN + key.topic.as_str().len());
    bytes.extend([VERSION, sort_code(sort)]);
    bytes.extend(key.rank.0.to_be_bytes());
    bytes.extend(key.partition.0.to_be_bytes());
    bytes.extend(key.offset.0.to_be_bytes());
    bytes.extend(key.topic.as_str().as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

pub(crate) fn decode(sort: Sort, text: &str) -> Result<SortKey, CursorError> {
    let malformed = || CursorError::Malformed(text.chars().take(40).collect());
    if text.len() > TEXT_LEN_MAX {
        return Err(malformed());
    }
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| malformed())?;
    let (&version, rest) = bytes.split_first().ok_or_else(malformed)?;
    if version != VERSION {
        return Err(CursorError::Version(version));
    }
    let (&code, rest) = rest.split_first().ok_or_else(malformed)?;
    let (rank, rest) = rest.split_first_chunk().ok_or_else(malformed)?;
    let (partition, rest) = rest.split_first_chunk().ok_or_else(malformed)?;
    let (offset, topic) = rest.split_first_chunk().ok_or_else(malformed)?;
    if ![Sort::NewestFirst, Sort::OldestFirst, Sort::Score].map(sort_code).contains(&code) {
        return Err(malformed());
    }
    if code != sort_code(sort) {
        return Err(CursorError::OtherSort);
    }
    let partition = PartitionId(i32::from_be_bytes(*partition));
    let offset = Offset(i64::from_be_bytes(*offset));
    let topic = std::str::from_utf8(topic).ok().and_then(|name| TopicName::new(name).ok()).ok_or_else(malformed)?;
    if partition.0 < 0 || offset < Offset::ZERO {
        return Err(malformed());
    }
    Ok(SortKey { rank: Rank(i64::from_be_bytes(*rank)), topic, partition, offset })
}

const fn sort_code(sort: Sort) -> u8 {
    match sort {
        Sort::NewestFirst => 0,
        Sort::OldestFirst => 1,
        Sort::Score => 2,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(rank: i64, topic: &str, partition: i32, offset: i64) -> SortKey {
        let topic = TopicName::new(topic).unwrap_or_else(|e| panic!("{e}"));
        SortKey { rank: Rank(rank), topic, partition: PartitionId(partition), offset: Offset(offset) }
    }

    #[test]
    fn version_1_stays_readable() {
        let key = key(!1_431_820_800_000, "orders", 2, 42);
        assert_eq!(encode(Sort::NewestFirst, &key), "AQD___6yoNRv_wAAAAIAAAAAAAAAKm9yZGVycw");
        assert_eq!(decode(Sort::NewestFirst, "AQD___6yoNRv_wAAAAIAAAAAAAAAKm9yZGVycw"), Ok(key));
    }

    #[test]
    fn strangers_are_refused() {
        let good = encode(Sort::NewestFirst, &key(-5, "orders", 0, 7));
        assert_eq!(decode(Sort::OldestFirst, &good), Err(CursorError::OtherSort));
        for bad in ["", "AQ", "%%%", "AQ==", &good[..20], &"A".repeat(10_000)] {
            assert!(decode(Sort::NewestFirst, bad).is_err(), "{bad}");
        }
        let negative = encode(Sort::NewestFirst, &key(-5, "orders", -1, 7));
        assert!(matches!(decode(Sort::NewestFirst, &negative), Err(CursorError::Malformed(_))));
        assert_eq!(decode(Sort::NewestFirst, &URL_SAFE_NO_PAD.encode([9, 0])), Err(CursorError::Version(9)));
    }

    proptest! {
        #[test]
        fn cursors_read_back(rank in any::<i64>(), topic in "[a-zA-Z0-9_-]{1,249}", partition in 0..i32::MAX, offset in 0..i64::MAX) {
            let key = key(rank, &topic, partition, offset);
            for sort in [Sort::NewestFirst, Sort::OldestFirst, Sort::Score] {
                prop_assert_eq!(decode(sort, &encode(sort, &key)), Ok(key.clone()));
            }
        }

        #[test]
        fn noise_never_panics(text in "\\PC{0,60}", bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = decode(Sort::Score, &text);
            let _ = decode(Sort::Score, &URL_SAFE_NO_PAD.encode(bytes));
        }
    }
}
