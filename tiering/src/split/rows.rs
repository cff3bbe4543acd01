//! Which record each document of a split is.

use thermocline_ingest::model::{Offset, Timestamp};
use xxhash_rust::xxh3::Xxh3;

/// Offset and timestamp of every row of a file, or document of a split, in order: xxh3-128 over both as i64,
/// little-endian. Two that are equal say that document `n` is row `n`: a record has one offset, and what it is does not
/// change.
#[derive(Clone, Default)]
pub struct RowDigest {
    rows: u64,
    hasher: Xxh3,
}

impl RowDigest {
    pub fn add(&mut self, offset: Offset, timestamp: Timestamp) {
        self.rows += 1;
        self.hasher.update(&offset.0.to_le_bytes());
        self.hasher.update(&timestamp.0.to_le_bytes());
    }

    pub fn rows(&self) -> u64 {
        self.rows
    }
}

impl PartialEq for RowDigest {
    fn eq(&self, other: &Self) -> bool {
        self.rows == other.rows && self.hasher.digest128() == other.hasher.digest128()
    }
}
