//! Splits that are there already of records which are about to be archived: the live index has them. Whoever archives
//! asks through [`PreparedSplits`] and knows nothing of search.

use std::ops::Range;
use std::sync::Arc;

use tantivy::directory::FileHandle;
use thermocline_ingest::model::{Offset, PartitionId, TopicId};

use super::SplitOptions;

/// Who has splits of records that are still in the log.
pub trait PreparedSplits: Send + Sync {
    /// What there is of a partition from `from` on, made with `options`.
    fn prepared(&self, topic: TopicId, partition: PartitionId, from: Offset, options: SplitOptions) -> Prepared;
}

/// The splits of one partition as of one moment. They stay readable for as long as this is held.
#[derive(Clone)]
pub struct Prepared {
    /// In offset order, disjoint.
    splits: Vec<PreparedSplit>,
    /// The offsets they answer for: what is in none of them was not committed, or could not be decoded.
    offsets: Range<Offset>,
}

/// One of them.
#[derive(Clone)]
pub struct PreparedSplit {
    /// All its documents lie here.
    pub offsets: Range<Offset>,
    pub docs: u64,
    /// The whole of it.
    pub file: Arc<dyn FileHandle>,
    /// [`checksum`] of its bytes when they were written.
    pub checksum: u32,
}

/// What says that the bytes of a split are still those that were written: their CRC-32C.
pub fn checksum(split: &[u8]) -> u32 {
    crc32c::crc32c(split)
}

impl Prepared {
    /// Of `splits` in offset order, which answer for `offsets`.
    pub fn new(splits: Vec<PreparedSplit>, offsets: Range<Offset>) -> Self {
        Self { splits, offsets }
    }

    /// There is nothing.
    pub fn nothing(from: Offset) -> Self {
        Self::new(Vec::new(), from..from)
    }

    /// Exclusive end of what the splits answer for.
    pub fn through(&self) -> Offset {
        self.offsets.end
    }

    /// The splits whose documents are exactly the records in `offsets`; `None` where some are not indexed, or where a
    /// split has others beside them.
    pub fn over(&self, offsets: &Range<Offset>) -> Option<&[PreparedSplit]> {
        if offsets.start < self.offsets.start || offsets.end > self.offsets.end {
            return None;
        }
        let first = self.splits.partition_point(|split| split.offsets.end <= offsets.start);
        let past = self.splits.partition_point(|split| split.offsets.start < offsets.end);
        let is_within =
            |split: &PreparedSplit| offsets.start <= split.offsets.start && split.offsets.end <= offsets.end;
        self.splits.get(first..past).filter(|splits| splits.iter().all(is_within))
    }

    /// Whether a split ends at `offset`, so that files that meet there can be made of splits.
    pub fn ends_at(&self, offset: Offset) -> bool {
        self.splits.binary_search_by_key(&offset, |split| split.offsets.end).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tantivy::directory::OwnedBytes;

    use super::*;

    fn split(offsets: Range<i64>) -> PreparedSplit {
        let offsets = Offset(offsets.start)..Offset(offsets.end);
        PreparedSplit { offsets, docs: 1, file: Arc::new(OwnedBytes::empty()), checksum: 0 }
    }

    proptest! {
        /// Cuts at odd offsets, holes where a piece is left out.
        #[test]
        fn splits_cover_what_they_tile(
            pieces in prop::collection::vec((1_i64..6, any::<bool>()), 0..12),
            asked in (0_i64..60, 0_i64..60),
        ) {
            let (mut splits, mut end) = (Vec::new(), 10);
            for (len, is_there) in pieces {
                if is_there {
                    splits.push(split(end..end + len));
                }
                end += len;
            }
            let prepared = Prepared::new(splits.clone(), Offset(10)..Offset(end));
            let asked = Offset(asked.0.min(asked.1))..Offset(asked.0.max(asked.1));
            let touching: Vec<_> = splits
                .iter()
                .map(|split| split.offsets.clone())
                .filter(|span| span.start < asked.end && span.end > asked.start)
                .collect();
            let is_exact = asked.start.0 >= 10
                && asked.end.0 <= end
                && touching.iter().all(|span| asked.start <= span.start && span.end <= asked.end);
            let over: Option<Vec<_>> =
                prepared.over(&asked).map(|splits| splits.iter().map(|split| split.offsets.clone()).collect());
            prop_assert_eq!(over, is_exact.then_some(touching));
            let ends = splits.iter().any(|split| split.offsets.end == asked.end);
            prop_assert_eq!(prepared.ends_at(asked.end), ends);
        }
    }
}
