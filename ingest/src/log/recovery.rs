//! From the files of a partition to the partition.
//!
//! | file | after a clean close | otherwise |
//! |---|---|---|
//! | segments half replaced by their compacted form | the replacement is finished, or forgotten (`cleaner/swap.rs`) | the same |
//! | log of a sealed segment | its tail must end where the next segment starts, or before it if it may be compacted | the same |
//! | indexes of a sealed segment | rebuilt if missing, short or odd | the same |
//! | log of the last segment | its tail is walked from the last index entry | scanned with CRC, cut at the first bad batch, synced |
//! | indexes of the last segment | rebuilt if missing or odd | rebuilt |
//! | producer snapshot, aborted transactions | are at the end | the newest good one, and the batches after it (`replay`) |

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::append::{Indexer, Writer};
use super::cleaner::{Checkpoint, finish_swaps};
use super::deletion::is_put_off;
use super::error::{IoContext, LogError};
use super::replay;
use super::scan::{ScanError, Scanner};
use super::segment::{INDEX, LOG, Segment, SegmentFiles, TIMEINDEX, file_path, offset_of, remove_if_there, sync_dir};
use super::transactions::ABORTED;
use crate::model::{Offset, Timestamp};

/// What [`recover`] is told.
pub struct Recovery<'a> {
    pub dir: &'a Arc<Path>,
    /// Smallest readable offset; a new or emptied log starts there.
    pub log_start: Offset,
    /// The broker was closed cleanly, and nothing was written since.
    pub clean: bool,
    pub index_interval_bytes: u64,
    pub now: Timestamp,
    pub producer_expiration_ms: i64,
}

/// What [`recover`] finds.
pub struct Recovered {
    /// Oldest first, the last one active.
    pub segments: Vec<Arc<Segment>>,
    pub writer: Writer,
    /// How far it was compacted.
    pub checkpoint: Checkpoint,
}

/// The end of a segment's log.
struct Tail {
    indexer: Indexer,
    end: Offset,
    size_bytes: u64,
}

/// Makes a partition's folder usable; creates it if it is missing.
pub fn recover(recovery: &Recovery<'_>) -> Result<Recovered, LogError> {
    let dir = recovery.dir;
    if !dir.exists() {
        fs::create_dir_all(dir).on("create", dir)?;
        if let Some(parent) = dir.parent() {
            sync_dir(parent)?;
        }
    }
    finish_swaps(dir)?;
    let checkpoint = Checkpoint::load(dir)?;
    let mut bases = list_segments(dir)?;
    let last = bases.pop_last().unwrap_or(recovery.log_start);
    let mut segments = Vec::with_capacity(bases.len() + 1);
    let mut next_bases = bases.iter().copied().skip(1).chain([last]);
    for base in bases.iter().copied() {
        let holes = base < checkpoint.holes_below;
        segments.push(recovery.open_sealed(base, next_bases.next().unwrap_or(last), holes)?);
    }
    let (active, files, tail) = recovery.open_active(last, last < checkpoint.holes_below)?;
    if tail.end < recovery.log_start {
        segments.push(active);
        return recovery.start_over(&segments, checkpoint);
    }
    recovery.finish(segments, active, files, tail, checkpoint)
}

/// Base offsets of the logs in `dir`; index files that have none are removed, and files that wait to be.
fn list_segments(dir: &Path) -> Result<BTreeSet<Offset>, LogError> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).on("list", dir)? {
        paths.push(entry.on("list", dir)?.path());
    }
    let bases: BTreeSet<_> = paths.iter().filter_map(|path| offset_of(path, LOG)).collect();
    for path in &paths {
        let indexed = [INDEX, TIMEINDEX, ABORTED].into_iter().find_map(|extension| offset_of(path, extension));
        if is_put_off(path) || indexed.is_some_and(|base| !bases.contains(&base)) {
            remove_if_there(path)?;
        }
    }
    Ok(bases)
}

impl Recovery<'_> {
    /// A sealed segment: only its indexes may be made anew, its log is taken as it is or not at all.
    fn open_sealed(&self, base: Offset, next: Offset, holes: bool) -> Result<Arc<Segment>, LogError> {
        let files = SegmentFiles::open(self.dir, base)?;
        let segment = Segment::new(self.dir.clone(), base, None).with_holes(holes);
        let reaches_next = |tail: &Tail| tail.end == next || holes && tail.end < next;
        let path = segment.path();
        let size_bytes = files.log.len().on("read the size of", &path)?;
        let tail = match self.tail(&files, base, size_bytes, holes).on("read", &path)? {
            Some(tail) if reaches_next(&tail) && tail.indexer.max_timestamp == tail.indexer.indexed_timestamp => tail,
            _ => {
                let (tail, stopped) =
                    self.rebuild(&files, base, size_bytes, true, holes).on("rebuild the indexes of", &path)?;
                if let Some(error) = stopped {
                    return Err(segment.scan_error(error));
                }
                if !reaches_next(&tail) {
                    return Err(LogError::Gap { path, end: tail.end, next });
                }
                tracing::warn!(path = %path.display(), "indexes were missing or odd; rebuilt them");
                tail
            }
        };
        segment.publish(size_bytes, next, tail.indexer.max_timestamp);
        segment.seal(self.now);
        Ok(Arc::new(segment))
    }

    /// The last segment: the only one that may be torn. It was never compacted, unless the one after it was lost.
    fn open_active(&self, base: Offset, holes: bool) -> Result<(Arc<Segment>, SegmentFiles, Tail), LogError> {
        let path = file_path(self.dir, base, LOG);
        let is_new = !path.exists();
        let files = SegmentFiles::open(self.dir, base)?;
        let size_bytes = files.log.len().on("read the size of", &path)?;
        let trusted =
            if self.clean && !is_new { self.tail(&files, base, size_bytes, holes).on("read", &path)? } else { None };
        let tail = match trusted {
            Some(tail) => tail,
            None => {
                // A write that failed may be in memory as if it had not: what counts is on the disk.
                files.log.sync().and_then(|()| files.log.forget_cached()).on("sync", &path)?;
                let (tail, stopped) = self.rebuild(&files, base, size_bytes, false, holes).on("recover", &path)?;
                if let Some(error) = stopped {
                    let cut_bytes = size_bytes - tail.size_bytes;
                    tracing::warn!(path = %path.display(), cut_bytes, end = %tail.end, %error, "cutting a torn tail");
                    files.log.truncate(tail.size_bytes).on("cut the torn tail of", &path)?;
                }
                // What it holds counts as committed from here on, and its name must be in the folder.
                files.log.sync().on("sync", &path)?;
                sync_dir(self.dir)?;
                tail
            }
        };
        let segment = Arc::new(Segment::new(self.dir.clone(), base, Some(files.clone())).with_holes(holes));
        segment.publish(tail.size_bytes, tail.end, tail.indexer.max_timestamp);
        Ok((segment, files, tail))
    }

    /// Walks from the last index entry to the end. None where index and log do not fit each other.
    fn tail(&self, files: &SegmentFiles, base: Offset, size_bytes: u64, holes: bool) -> std::io::Result<Option<Tail>> {
        let (entry, time) = (files.index.last()?, files.times.last()?);
        let position = entry.map_or(0, |entry| u64::from(entry.position));
        if !files.index.is_whole()? || !files.times.is_whole()? || (position >= size_bytes && size_bytes + position > 0)
        {
            return Ok(None);
        }
        let mut indexer = Indexer::new(base);
        if let Some(time) = time {
            indexer.max_timestamp = Timestamp(time.timestamp);
            indexer.indexed_timestamp = indexer.max_timestamp;
            indexer.max_timestamp_offset = base.plus(i64::from(time.offset));
        }
        let mut end = base;
        let mut first = true;
        let mut scanner = Scanner::headers(&files.log, position, size_bytes, holes);
        loop {
            let placed = match scanner.next() {
                Ok(Some(placed)) => placed,
                Ok(None) => break,
                Err(ScanError::Io(error)) => return Err(error),
                Err(_) => return Ok(None),
            };
            let due = indexer.note(&placed.header, placed.position, self.index_interval_bytes);
            let fits = match entry {
                Some(entry) if first => placed.header.last_offset() == base.plus(i64::from(entry.offset)),
                None if first => placed.header.base_offset == base || holes && placed.header.base_offset > base,
                // An entry that should be there and is not.
                _ => due.is_none(),
            };
            if !fits {
                return Ok(None);
            }
            first = false;
            end = placed.header.next_offset();
        }
        let sane = indexer.max_timestamp_offset < end || time.is_none();
        Ok(sane.then_some(Tail { indexer, end, size_bytes }))
    }

    /// Walks the whole log with CRC and writes both indexes anew, up to the first bad batch. `sealed` adds the entry
    /// that sealing adds.
    fn rebuild(
        &self,
        files: &SegmentFiles,
        base: Offset,
        size_bytes: u64,
        sealed: bool,
        holes: bool,
    ) -> std::io::Result<(Tail, Option<ScanError>)> {
        let mut tail = Tail { indexer: Indexer::new(base), end: base, size_bytes: 0 };
        let (mut offsets, mut times) = (Vec::new(), Vec::new());
        let mut scanner = Scanner::checked(&files.log, size_bytes, base, holes);
        let stopped = loop {
            match scanner.next() {
                Ok(Some(placed)) => {
                    if let Some(entry) = tail.indexer.note(&placed.header, placed.position, self.index_interval_bytes) {
                        offsets.push(entry);
                        times.extend(tail.indexer.time_entry());
                    }
                    tail.end = placed.header.next_offset();
                    tail.size_bytes = placed.position + placed.header.size_bytes() as u64;
                }
                Ok(None) => break None,
                Err(ScanError::Io(error)) => return Err(error),
                Err(error) => break Some(error),
            }
        };
        if sealed {
            times.extend(tail.indexer.time_entry());
        }
        files.index.replace(&offsets)?;
        files.times.replace(&times)?;
        files.sync_indexes()?;
        Ok((tail, stopped))
    }

    /// Everything here lies below the log start: readable by nobody, and new offsets must not fall there.
    fn start_over(&self, segments: &[Arc<Segment>], checkpoint: Checkpoint) -> Result<Recovered, LogError> {
        for segment in segments {
            segment.delete()?;
        }
        let (active, files, tail) = self.open_active(self.log_start, false)?;
        self.finish(Vec::new(), active, files, tail, checkpoint)
    }

    /// The producer state, and the writer at the end of the last segment.
    fn finish(
        &self,
        mut segments: Vec<Arc<Segment>>,
        segment: Arc<Segment>,
        files: SegmentFiles,
        tail: Tail,
        checkpoint: Checkpoint,
    ) -> Result<Recovered, LogError> {
        segments.push(segment.clone());
        let mut producers = replay::producers(self.dir, &segments, &files, tail.end, self.now)?;
        producers.expire(self.now, self.producer_expiration_ms);
        let first_append = match tail.size_bytes {
            0 => None,
            _ => Some(self.first_append(&segment, &files)?),
        };
        let writer = Writer {
            segment,
            files,
            position: tail.size_bytes,
            next: tail.end,
            indexer: tail.indexer,
            first_append,
            producers,
            unflushed_records: 0,
        };
        Ok(Recovered { segments, writer, checkpoint })
    }

    /// When the first batch came is not stored. Its own time is the best guess, unless it has none or lies ahead.
    fn first_append(&self, segment: &Segment, files: &SegmentFiles) -> Result<Timestamp, LogError> {
        let first = segment.first_from(&files.log, 0, |_| true)?;
        let timestamp = first.map_or(Timestamp::NONE, |placed| placed.header.max_timestamp);
        Ok(if timestamp.0 < 0 { self.now } else { timestamp.min(self.now) })
    }
}
