//! Neighbouring segments into one that holds what stays of them: as many as fit. Written beside them, durably; see
//! `swap.rs` for how it gets into their place.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use thermocline_config::TopicConfig;

use super::crash_point;
use super::filter::{AbortedBatches, Fate, Filter};
use super::pace::Pace;
use super::swap::cleaned_path;
use crate::log::append::Indexer;
use crate::log::error::{IoContext, LogError};
use crate::log::index::{IndexFile, OffsetEntry, TimeEntry};
use crate::log::sealed::SealedSegment;
use crate::log::segment::{INDEX, LOG, POSITION_MAX, Segment, TIMEINDEX, remove_if_there};
use crate::log::transactions::{ABORTED, AbortedTransaction};
use crate::model::{Offset, Timestamp};
use crate::page_cache::forget;
use crate::record::BatchHeader;

/// Bytes gathered before they go to the file.
const WRITE_BYTES: usize = 1 << 20;

/// What was written.
pub struct Rewritten {
    /// So many of the segments, from the first on.
    pub count: usize,
    pub size_bytes: u64,
    pub max_timestamp: Timestamp,
    /// There are aborted transactions in it whose markers are left.
    pub has_aborted: bool,
    /// It is not, byte for byte, what was there.
    pub is_changed: bool,
}

/// What transactions were aborted that a segment has batches or markers of; None where the segment is gone.
pub type AbortedOf<'a> = &'a dyn Fn(&Segment) -> Result<Option<Vec<AbortedTransaction>>, LogError>;

/// A log file and the entries of its indexes, as they grow.
struct Output<'a> {
    base: Offset,
    path: &'a Path,
    file: BufWriter<File>,
    size_bytes: u64,
    indexer: Indexer,
    interval_bytes: u64,
    offsets: Vec<OffsetEntry>,
    times: Vec<TimeEntry>,
    /// None where none of the segments has a file of them.
    aborted: Option<Vec<AbortedTransaction>>,
}

/// Writes what `filter` leaves of the first of `segments`, and of those after it for as long as it would fit them
/// whole. None where `pace` said stop, or a segment is gone.
pub fn rewrite(
    dir: &Path,
    segments: &[Arc<Segment>],
    aborted_of: AbortedOf<'_>,
    filter: &mut Filter,
    config: &TopicConfig,
    pace: &mut Pace<'_>,
) -> Result<Option<Rewritten>, LogError> {
    let base = segments.first().map_or(Offset::ZERO, |segment| segment.base);
    // One that a failed attempt has left is not written over below.
    remove_if_there(&cleaned_path(dir, base, ABORTED))?;
    let path = cleaned_path(dir, base, LOG);
    let file = BufWriter::with_capacity(WRITE_BYTES, File::create(&path).on("create", &path)?);
    let indexer = Indexer::new(base);
    let (offsets, times, interval_bytes) = (Vec::new(), Vec::new(), config.index_interval_bytes);
    let mut output =
        Output { base, path: &path, file, size_bytes: 0, indexer, interval_bytes, offsets, times, aborted: None };
    let (mut count, mut is_changed) = (0, false);
    for segment in segments {
        let would_fit = output.size_bytes + segment.size_bytes() <= config.segment_bytes
            && base.distance_to(segment.end()) <= POSITION_MAX;
        if count > 0 && !would_fit {
            break;
        }
        count += 1;
        let Some(mut aborted) = aborted_of(segment)? else { return Ok(None) };
        filter.aborted = AbortedBatches::of(&aborted);
        let mut markers_gone = HashSet::new();
        let mut position = 0;
        for batch in SealedSegment::of(segment).batches()? {
            let batch = batch?;
            let read_bytes = batch.len();
            let fate =
                filter.judge(&batch).map_err(|source| LogError::Damaged { path: segment.path(), position, source })?;
            position += read_bytes as u64;
            is_changed |= fate != Fate::Stays;
            let written_bytes = match fate {
                Fate::Stays => output.write(&batch)?,
                Fate::Becomes(batch) => output.write(&batch)?,
                Fate::Goes => 0,
                Fate::MarkerGoes(offset) => {
                    markers_gone.insert(offset);
                    0
                }
            };
            if !pace.goes_on(read_bytes + written_bytes) {
                return Ok(None);
            }
        }
        if segment.has_aborted() {
            // Entries are with their markers, in the order of those.
            aborted.retain(|entry| {
                (segment.base..segment.end()).contains(&entry.last_offset) && !markers_gone.contains(&entry.last_offset)
            });
            aborted.sort_unstable_by_key(|entry| entry.last_offset);
            output.aborted.get_or_insert_default().extend(aborted);
        }
    }
    output.finish(dir, count, is_changed || count > 1).map(Some)
}

impl Output<'_> {
    /// Returns how many bytes it wrote.
    fn write(&mut self, batch: &Bytes) -> Result<usize, LogError> {
        let size_bytes = self.size_bytes + batch.len() as u64;
        if size_bytes > POSITION_MAX {
            return Err(LogError::CompactedTooLarge { path: self.path.to_owned(), size_bytes, limit: POSITION_MAX });
        }
        let damaged = |source| LogError::Damaged { path: self.path.to_owned(), position: self.size_bytes, source };
        let header = BatchHeader::read(batch).map_err(damaged)?;
        self.file.write_all(batch).on("write", self.path)?;
        if let Some(entry) = self.indexer.note(&header, self.size_bytes, self.interval_bytes) {
            self.offsets.push(entry);
            self.times.extend(self.indexer.time_entry());
        }
        self.size_bytes = size_bytes;
        Ok(batch.len())
    }

    /// Makes log and indexes durable; what did not change is not worth it.
    fn finish(mut self, dir: &Path, count: usize, is_changed: bool) -> Result<Rewritten, LogError> {
        self.file.flush().on("write", self.path)?;
        if is_changed {
            let file = self.file.get_ref();
            file.sync_all().on("sync", self.path)?;
            forget(file, self.size_bytes);
            crash_point();
            self.times.extend(self.indexer.time_entry());
            let path = cleaned_path(dir, self.base, INDEX);
            let write = |index: IndexFile<OffsetEntry>| index.replace(&self.offsets).and_then(|()| index.sync());
            IndexFile::open_writable(&path).and_then(write).on("write", &path)?;
            let path = cleaned_path(dir, self.base, TIMEINDEX);
            let write = |index: IndexFile<TimeEntry>| index.replace(&self.times).and_then(|()| index.sync());
            IndexFile::open_writable(&path).and_then(write).on("write", &path)?;
            if let Some(aborted) = &self.aborted {
                crash_point();
                let path = cleaned_path(dir, self.base, ABORTED);
                let write = |index: IndexFile<AbortedTransaction>| index.replace(aborted).and_then(|()| index.sync());
                IndexFile::open_writable(&path).and_then(write).on("write", &path)?;
            }
        }
        let Self { size_bytes, indexer, aborted, .. } = self;
        let has_aborted = aborted.is_some_and(|aborted| !aborted.is_empty());
        Ok(Rewritten { count, size_bytes, max_timestamp: indexer.max_timestamp, has_aborted, is_changed })
    }
}
