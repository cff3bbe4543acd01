//! Identities for producers, never given twice, not even across restarts.

use std::ops::Range;

use parking_lot::Mutex;

use crate::metadata::{MetadataError, MetadataStore};
use crate::model::ProducerId;

/// Ids reserved in the metadata store at once: a restart wastes at most so many, and only one in so many requests waits
/// for the disk.
const BLOCK_IDS: u64 = 1000;

/// The ids reserved and not yet given out.
#[derive(Debug, Default)]
pub struct ProducerIds {
    block: Mutex<Range<u64>>,
}

impl ProducerIds {
    /// A fresh id. Blocking where a new block must be reserved.
    pub fn next(&self, store: &MetadataStore) -> Result<ProducerId, MetadataError> {
        // Held while reserving, so that two requests do not reserve two blocks.
        let mut block = self.block.lock();
        if block.is_empty() {
            let first = store.reserve_producer_ids(BLOCK_IDS)?;
            *block = first..first + BLOCK_IDS;
        }
        let id = block.start;
        block.start += 1;
        // Ids are 63 bits wide on the wire; at a million a second they last 292,000 years.
        Ok(ProducerId(i64::try_from(id).unwrap_or(i64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_never_given_twice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metadata.redb");
        let mut given = Vec::new();
        for _restart in 0..3 {
            let store = MetadataStore::open(&path).unwrap();
            let ids = ProducerIds::default();
            given.extend((0..BLOCK_IDS + 10).map(|_| ids.next(&store).unwrap()));
        }
        assert!(given.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
