//! Records that were looked up: a page of hits that is asked for again, or scrolled back to, is not decoded again.
//! Objects never change, so neither does a row of one.

use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use crate::cache::ObjectId;
use crate::reader::OwnedRecord;

/// What an entry costs beside its bytes, and each of its headers.
const ENTRY_OVERHEAD_BYTES: usize = 256;
const HEADER_OVERHEAD_BYTES: usize = 64;

/// Rows of data files by object and row, weighed by their bytes.
pub(super) struct RecordCache {
    records: Cache<(ObjectId, u64), OwnedRecord>,
}

impl RecordCache {
    pub fn new(max_bytes: u64) -> Self {
        let weight = |_: &(ObjectId, u64), record: &OwnedRecord| {
            let overhead = ENTRY_OVERHEAD_BYTES + record.headers.len() * HEADER_OVERHEAD_BYTES;
            u32::try_from(record.size_bytes() + overhead).unwrap_or(u32::MAX)
        };
        let policy = EvictionPolicy::tiny_lfu();
        Self { records: Cache::builder().max_capacity(max_bytes).weigher(weight).eviction_policy(policy).build() }
    }

    pub fn get(&self, object: ObjectId, row: u64) -> Option<OwnedRecord> {
        self.records.get(&(object, row))
    }

    pub fn insert(&self, object: ObjectId, row: u64, record: &OwnedRecord) {
        self.records.insert((object, row), record.clone());
    }
}
