//! The split of a file out of splits that are there already (`split/prepared.rs`), because merging costs a fraction of
//! indexing.
//!
//! The records go from the log into the data file in any case. Who has splits is asked twice: before the first of them,
//! when it is decided whether to count on what is there; and when the file is complete, for what was missing may have
//! been indexed meanwhile. In between a file that is large enough ends where a split does, if it can.
//!
//! Splits are taken if they were made with the options of the file, have its rows as documents and nothing else, and
//! fit into the memory of the job; one that holds all of the file is taken as it is. Two things say that their documents
//! are the rows: the offsets that the splits cover and how many documents they have, which costs nothing; then, once
//! they are merged, offset and timestamp of each
//! document, in order (`RowDigest`). Where anything differs, or a split cannot be read, the file is started over and
//! each record is indexed. What differs regularly: a batch with a timestamp that only Parquet cannot hold; a log start
//! in the middle of a batch; settings that were changed on the way.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use tantivy::HasLen;
use tantivy::directory::{FileHandle, OwnedBytes};
use thermocline_ingest::model::Offset;

use super::builder::FileBuilder;
use crate::background;
use crate::merge::plan::ROW_BYTES;
use crate::paths::PartitionPath;
use crate::split::{
    Prepared, PreparedSplit, PreparedSplits, SplitError, SplitJoin, SplitMerger, SplitOptions, SplitReader, checksum,
};

/// How much of what a segment still holds must be indexed for a file to count on the rest, in percent: writing the data
/// file takes its time.
const INDEXED_PERCENT_MIN: u64 = 75;
/// From which share of its largest size on a file ends where a split does, in percent.
const CUT_PERCENT_MIN: usize = 75;
/// Copies of the splits that are in memory while they are merged: an output that grows by doubling, beside the inputs.
const COPIES: u64 = 3;
/// Reads of a merge between two looks whether it is time to rest.
const READS_PER_PAUSE: u32 = 256;

/// Where splits may be had for a segment.
#[derive(Clone)]
pub struct PreparedSource {
    pub splits: Arc<dyn PreparedSplits>,
    /// Exclusive end of the segment.
    pub end: Offset,
    /// What the job may hold, in bytes.
    pub memory_bytes: u64,
}

impl PreparedSource {
    /// What there is from `from` on.
    pub(super) fn look(&self, path: &PartitionPath, from: Offset, options: SplitOptions) -> Prepared {
        self.splits.prepared(path.topic_id, path.partition, from, options)
    }

    /// Whether a file that begins at `from` is to count on it.
    pub(super) fn is_ready(&self, prepared: &Prepared, from: Offset) -> bool {
        let indexed = from.distance_to(prepared.through().min(self.end).max(from));
        indexed > 0 && indexed >= from.distance_to(self.end).saturating_mul(INDEXED_PERCENT_MIN) / 100
    }

    /// The splits of a file that is complete, in memory; `None` where they are not exactly its rows, or too large.
    pub(super) fn splits_of(&self, file: &FileBuilder, prepared: &Prepared) -> Result<Option<SplitMerger>, SplitError> {
        let Some(splits) = file.offsets().and_then(|offsets| prepared.over(&offsets)) else { return Ok(None) };
        let (rows, docs) = (file.row_count(), splits.iter().map(|split| split.docs).sum::<u64>());
        if rows != docs || splits.is_empty() || self.bytes_of(file, splits) > self.memory_bytes {
            return Ok(None);
        }
        if let [split] = splits {
            let (split, bytes) = open_in_memory(split)?;
            return Ok(Some(SplitMerger::of_whole(split, Bytes::from_owner(bytes))));
        }
        let splits = splits.iter().map(|split| Ok(open_in_memory(split)?.0));
        match SplitJoin::of(splits.collect::<Result<_, SplitError>>()?)? {
            SplitJoin::Merge(merger) => Ok(Some(merger)),
            SplitJoin::IndexAgain(_) => Ok(None),
        }
    }

    fn bytes_of(&self, file: &FileBuilder, splits: &[PreparedSplit]) -> u64 {
        let splits: u64 = splits.iter().map(|split| split.file.len() as u64).sum();
        let rows = file.row_count().saturating_mul(ROW_BYTES);
        splits.saturating_mul(COPIES).saturating_add(rows).saturating_add(file.memory_bytes() as u64)
    }
}

/// Whether a file of `size_bytes` ends at `position`, where records of the next split follow.
pub(super) fn ends_with_split(
    prepared: Option<&Prepared>,
    position: Offset,
    size_bytes: usize,
    bytes_max: usize,
) -> bool {
    size_bytes >= bytes_max / 100 * CUT_PERCENT_MIN && prepared.is_some_and(|prepared| prepared.ends_at(position))
}

/// Reads a split as a whole: a merge reads all of it, term by term. What changed since it was written is an error, for
/// nobody would find it later.
fn open_in_memory(split: &PreparedSplit) -> Result<(SplitReader, OwnedBytes), SplitError> {
    background::pause();
    let bytes = split.file.read_bytes(0..split.file.len())?;
    let (found, expected) = (checksum(&bytes), split.checksum);
    if found != expected {
        return Err(SplitError::Changed { found, expected });
    }
    let split = SplitReader::open(Arc::new(Unhurried { bytes: bytes.clone(), reads: AtomicU32::new(0) }))?;
    Ok((split, bytes))
}

/// A split in memory, at which whoever reads it rests when it is time to.
#[derive(Debug)]
struct Unhurried {
    bytes: OwnedBytes,
    reads: AtomicU32,
}

impl HasLen for Unhurried {
    fn len(&self) -> usize {
        self.bytes.len()
    }
}

impl FileHandle for Unhurried {
    fn read_bytes(&self, range: Range<usize>) -> io::Result<OwnedBytes> {
        if self.reads.fetch_add(1, Ordering::Relaxed).is_multiple_of(READS_PER_PAUSE) {
            background::pause();
        }
        self.bytes.read_bytes(range)
    }
}

#[cfg(test)]
mod tests;
