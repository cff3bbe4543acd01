//! Reading local segments: sparse index, a short walk over headers, then whole batches with one positioned read per
//! chunk. What is only to be sent is not read where it is large: the index says where it ends, but for a short walk.
//!
//! A compacted segment has holes between its batches, and may end in one: a position in a hole is that of the first
//! batch after it. A segment may be replaced by its compacted form at any time; who has its log open reads on, and who
//! comes to open a file of it starts over with what is there now.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::error::{IoContext, LogError};
use super::file_range::{FileRange, SENDFILE_BYTES_MIN};
use super::partition::Partition;
use super::scan::Placed;
use super::segment::{LogFile, Segment};
use super::transactions::AbortedTransaction;
use crate::model::{Offset, Timestamp};
use crate::read::{self, BatchRun, ReadError, ReadRange, SendRun, TimestampedOffset};
use crate::record::{BatchDecoder, BatchError, BatchHeader, DECOMPRESSED_BATCH_BYTES_MAX, Record};

/// How often a read starts over because a segment was replaced under it; each time takes a whole compaction.
const ATTEMPTS_MAX: usize = 16;

/// Ends the walk over a batch: with the record that was looked for, or because the batch cannot be read.
enum Stop {
    Found(TimestampedOffset),
    Undecodable,
}

impl From<BatchError> for Stop {
    fn from(_: BatchError) -> Self {
        Self::Undecodable
    }
}

impl Partition {
    /// Local batches. `BelowLocalStart` where the range starts below the local copy (also if it went just now).
    /// Blocking.
    pub fn read(&self, range: &ReadRange) -> Result<BatchRun, ReadError> {
        let (chunks, aborted) = self.read_chunks(range, |window, _| read_chunk(window))?;
        Ok(BatchRun { chunks, aborted })
    }

    /// Like [`Self::read`], to be sent: up to `files_max` chunks that are large are ranges of log files. Blocking.
    pub fn read_to_send(&self, range: &ReadRange, files_max: usize) -> Result<SendRun, ReadError> {
        let (chunks, aborted) = self.read_chunks(range, |window, before| {
            let files = before.iter().filter(|chunk| matches!(chunk, read::Chunk::File(_))).count();
            chunk_to_send(window, files_max.saturating_sub(files))
        })?;
        Ok(SendRun { chunks, aborted })
    }

    /// Chunks as `take` makes them of their places and those before, and the aborted transactions they lie in. Both are
    /// of one state of the log.
    fn read_chunks<C>(
        &self,
        range: &ReadRange,
        take: impl Fn(&Window<'_>, &[C]) -> Result<Taken<C>, LogError>,
    ) -> Result<(Vec<C>, Vec<AbortedTransaction>), ReadError> {
        let (log_start, log_end) = (self.log_start_offset(), self.log_end_offset());
        if range.from < log_start || range.from > log_end {
            let partition = self.topic_partition.clone();
            return Err(ReadError::OutOfRange { partition, offset: range.from, log_start, log_end });
        }
        self.check_local(range.from)?;
        let read = self.read_current(|| {
            let (compactions, _) = self.compactions();
            let (chunks, end) = self.read_local(range, range.until.min(log_end), &take)?;
            let aborted = self.aborted_local(range.from, end)?;
            // Whole compactions went by in between: the list may lack what was dropped since the batches were read.
            if self.compactions().0 != compactions {
                return Err(LogError::Compacted { path: self.dir.to_path_buf() });
            }
            Ok((chunks, aborted))
        });
        let read = read.map_err(|source| {
            // A segment that cannot be opened any more has gone since; then the local start says so.
            match self.check_local(range.from) {
                Err(gone) if source.is_not_found() => gone,
                _ if self.is_closed() => self.hot(LogError::Closed(self.topic_partition.clone())),
                _ => self.hot(source),
            }
        })?;
        self.check_local(range.from)?;
        Ok(read)
    }

    /// Aborted transactions that lie in `from..until`, in part or wholly, as far as the local copy knows; by their
    /// first offset. `BelowLocalStart` where it starts above `from`, also if it does so since just now: then the list
    /// may lack some. Blocking.
    pub fn aborted(&self, from: Offset, until: Offset) -> Result<Vec<AbortedTransaction>, ReadError> {
        let aborted = self.read_current(|| self.aborted_local(from, until)).map_err(|source| self.hot(source))?;
        self.check_local(from)?;
        Ok(aborted)
    }

    /// The same; lacks what was dropped meanwhile.
    pub(super) fn aborted_local(&self, from: Offset, until: Offset) -> Result<Vec<AbortedTransaction>, LogError> {
        let mut aborted = Vec::new();
        for segment in self.segments_with_aborted(from) {
            match segment.aborted(from, until, &mut aborted) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => break,
                Err(error) if error.is_not_found() => break,
                Err(error) => return Err(error),
            }
        }
        aborted.sort_unstable();
        Ok(aborted)
    }

    /// First local record at or after `timestamp` below the high watermark, record-exact (opens compressed batches).
    /// Blocking.
    pub fn offset_for_timestamp(&self, timestamp: Timestamp) -> Result<Option<TimestampedOffset>, ReadError> {
        let (from, until) = (self.first_readable(), self.high_watermark());
        let found = self.read_current(|| {
            for segment in self.segments_at(from) {
                if segment.max_timestamp() < timestamp {
                    continue;
                }
                match first_at_or_after(&segment, timestamp, from, until) {
                    Ok(None) => {}
                    Err(error) if error.is_not_found() && segment.base < self.local_start_offset() => {}
                    found => return found,
                }
            }
            Ok(None)
        });
        found.map_err(|source| self.hot(source))
    }

    /// The record with the largest timestamp below the high watermark, of the local ones; the first of several equal
    /// ones. Blocking.
    pub fn max_timestamp(&self) -> Result<Option<TimestampedOffset>, ReadError> {
        let (from, until) = (self.first_readable(), self.high_watermark());
        let found = self.read_current(|| {
            let mut best: Option<(Timestamp, Arc<Segment>)> = None;
            for segment in self.segments_at(from) {
                let largest = match largest_between(&segment, from, until) {
                    Err(error) if error.is_not_found() && segment.base < self.local_start_offset() => None,
                    largest => largest?,
                };
                if let Some(largest) = largest
                    && best.as_ref().is_none_or(|(timestamp, _)| largest > *timestamp)
                {
                    best = Some((largest, segment));
                }
            }
            match best {
                Some((timestamp, segment)) => first_at_or_after(&segment, timestamp, from, until),
                None => Ok(None),
            }
        });
        found.map_err(|source| self.hot(source))
    }

    /// Reads again where a segment was replaced meanwhile.
    fn read_current<T>(&self, mut read: impl FnMut() -> Result<T, LogError>) -> Result<T, LogError> {
        let mut attempts = 1;
        loop {
            match read() {
                Err(LogError::Compacted { .. }) if attempts < ATTEMPTS_MAX => attempts += 1,
                done => return done,
            }
        }
    }

    fn check_local(&self, offset: Offset) -> Result<(), ReadError> {
        let local_start = self.local_start_offset();
        if offset < local_start {
            return Err(ReadError::BelowLocalStart { partition: self.topic_partition.clone(), offset, local_start });
        }
        Ok(())
    }

    fn hot(&self, source: LogError) -> ReadError {
        ReadError::Hot { partition: self.topic_partition.clone(), source }
    }

    fn first_readable(&self) -> Offset {
        self.local_start_offset().max(self.log_start_offset())
    }

    /// The segment that holds `offset`, and those after it.
    fn segments_at(&self, offset: Offset) -> Vec<Arc<Segment>> {
        let segments = self.segments.read();
        let first = segments.partition_point(|segment| segment.base <= offset).saturating_sub(1);
        segments.get(first..).unwrap_or_default().to_vec()
    }

    /// Those of [`Self::segments_at`] in which a transaction was aborted; mostly none.
    fn segments_with_aborted(&self, offset: Offset) -> Vec<Arc<Segment>> {
        let segments = self.segments.read();
        let first = segments.partition_point(|segment| segment.base <= offset).saturating_sub(1);
        segments.iter().skip(first).filter(|segment| segment.has_aborted()).cloned().collect()
    }

    fn segment_at(&self, offset: Offset) -> Option<Arc<Segment>> {
        let segments = self.segments.read();
        let index = segments.partition_point(|segment| segment.base <= offset).checked_sub(1)?;
        segments.get(index).cloned()
    }

    /// Where the segment that holds `offset` ends (exclusive), if it is sealed. The archive takes a segment as a whole.
    pub fn sealed_end(&self, offset: Offset) -> Option<Offset> {
        let segments = self.segments.read();
        let after = segments.partition_point(|segment| segment.base <= offset);
        let holder = after.checked_sub(1).filter(|_| after < segments.len())?;
        segments.get(holder).map(|segment| segment.end())
    }

    /// Where the local segments begin, oldest first.
    pub fn segment_bases(&self) -> Vec<Offset> {
        self.segments.read().iter().map(|segment| segment.base).collect()
    }

    /// Chunks of batches, and the offset after them.
    fn read_local<C>(
        &self,
        range: &ReadRange,
        until: Offset,
        take: impl Fn(&Window<'_>, &[C]) -> Result<Taken<C>, LogError>,
    ) -> Result<(Vec<C>, Offset), LogError> {
        let mut chunks = Vec::new();
        let mut left = range.max_bytes;
        let mut next = range.from;
        while next < until {
            let Some(segment) = self.segment_at(next) else { break };
            // Before its size is: where a segment is written to, this end is no further than the batches read below.
            let end = segment.end();
            let log = segment.log()?;
            match segment.find(&log, next)? {
                Some(first) => {
                    let must_have_one = range.at_least_one && chunks.is_empty();
                    let Some(window) = Window::new(&segment, &log, first, until, left, must_have_one) else { break };
                    let chunk = take(&window, &chunks)?;
                    left = left.saturating_sub(chunk.len);
                    next = chunk.next;
                    chunks.push(chunk.content);
                    if !window.ends_with(chunk.len) {
                        break; // the size was reached within the segment
                    }
                }
                None if next >= end => break,
                None => {}
            }
            // A compacted segment may end in a hole.
            next = next.max(end);
        }
        Ok((chunks, next))
    }
}

/// A place in a segment from which batches are wanted; it holds one at least.
struct Window<'a> {
    segment: &'a Segment,
    log: &'a Arc<LogFile>,
    first: Placed,
    /// Batches that start here or beyond are not.
    until: Offset,
    /// Bytes that there are, and may be taken.
    len: usize,
    /// Those of the whole segment.
    size_bytes: u64,
}

/// Whole batches of one segment, in memory or not.
struct Taken<C> {
    content: C,
    /// Bytes
    len: usize,
    /// The offset after them, or where the next batch begins.
    next: Offset,
}

impl<'a> Window<'a> {
    /// Batches from `first` on that start below `until` and fit `max_bytes`; None if not even the first does.
    fn new(
        segment: &'a Segment,
        log: &'a Arc<LogFile>,
        first: Placed,
        until: Offset,
        max_bytes: usize,
        must_have_one: bool,
    ) -> Option<Self> {
        let first_size = first.header.size_bytes();
        let budget = if must_have_one { max_bytes.max(first_size) } else { max_bytes };
        let size_bytes = segment.size_bytes();
        let available = usize::try_from(size_bytes.saturating_sub(first.position)).unwrap_or(usize::MAX);
        let is_empty = budget < first_size || available < first_size || first.header.base_offset >= until;
        (!is_empty).then(|| Self { segment, log, first, until, len: budget.min(available), size_bytes })
    }

    /// Whether no batch of the segment follows the first `len` bytes.
    fn ends_with(&self, len: usize) -> bool {
        self.first.position + len as u64 == self.size_bytes
    }

    /// Where the batches end, and the offset after them; that of the next batch where one does not fit any more, which
    /// is beyond a hole where there is one. The index leads to the last batches; those are walked over.
    fn measure(&self) -> Result<(usize, Offset), LogError> {
        let limit = self.first.position + self.len as u64;
        let indexed = self.segment.last_indexed(self.log, self.until, limit)?;
        let start = indexed.filter(|placed| placed.position > self.first.position).unwrap_or(self.first);
        let (mut end, mut next) = (start.position, start.header.base_offset);
        self.segment.first_from(self.log, start.position, |header| {
            let batch_end = end + header.size_bytes() as u64;
            if header.base_offset >= self.until || batch_end > limit {
                return true;
            }
            end = batch_end;
            next = header.next_offset();
            false
        })?;
        Ok((usize::try_from(end - self.first.position).unwrap_or(usize::MAX), next))
    }
}

/// The one place that decides how batches are sent: from their file where there are many bytes of them, from memory
/// where there are few.
fn chunk_to_send(window: &Window<'_>, files_left: usize) -> Result<Taken<read::Chunk>, LogError> {
    if files_left > 0 && window.len >= SENDFILE_BYTES_MIN {
        let (len, next) = window.measure()?;
        if len >= SENDFILE_BYTES_MIN {
            let (log, path) = (window.log.clone(), window.segment.path());
            let range = FileRange { log, path, position: window.first.position, len, next };
            return Ok(Taken { content: read::Chunk::File(range), len, next });
        }
    }
    let Taken { content, len, next } = read_chunk(window)?;
    Ok(Taken { content: read::Chunk::Bytes(content), len, next })
}

/// The window's batches in memory.
fn read_chunk(window: &Window<'_>) -> Result<Taken<Bytes>, LogError> {
    let Window { segment, log, first, until, .. } = *window;
    let mut bytes = vec![0; window.len];
    log.read_exact_at(&mut bytes, first.position).on("read", &segment.path())?;
    let mut end = 0;
    let mut next = first.header.base_offset;
    while let Some(rest) = bytes.get(end..).filter(|rest| !rest.is_empty()) {
        let header = match BatchHeader::read(rest) {
            Ok(header) if header.base_offset < until && header.size_bytes() <= rest.len() => header,
            Ok(_) | Err(BatchError::Truncated { .. }) => break,
            Err(source) => {
                let position = first.position + end as u64;
                return Err(LogError::Damaged { path: segment.path(), position, source });
            }
        };
        end += header.size_bytes();
        next = header.next_offset();
    }
    bytes.truncate(end);
    Ok(Taken { content: Bytes::from(bytes), len: end, next })
}

/// The first record of the segment in `from..until` with a timestamp at or after `timestamp`.
fn first_at_or_after(
    segment: &Segment,
    timestamp: Timestamp,
    from: Offset,
    until: Offset,
) -> Result<Option<TimestampedOffset>, LogError> {
    let log = segment.log()?;
    let mut decoder = BatchDecoder::new(DECOMPRESSED_BATCH_BYTES_MAX);
    let mut from = from;
    while let Some(placed) = segment.find_by_time(&log, timestamp, from)? {
        if placed.header.base_offset >= until {
            return Ok(None);
        }
        let wanted = |record: &Record<'_>| record.timestamp >= timestamp && record.offset >= from;
        if let Some(found) = first_record(segment, &log, placed, &mut decoder, wanted)? {
            return Ok(Some(found));
        }
        // Its header promised more than its records hold.
        from = placed.header.next_offset();
    }
    Ok(None)
}

/// The first record of a batch that is `wanted`. A batch that cannot be decoded answers with its start.
fn first_record(
    segment: &Segment,
    log: &LogFile,
    placed: Placed,
    decoder: &mut BatchDecoder,
    wanted: impl Fn(&Record<'_>) -> bool,
) -> Result<Option<TimestampedOffset>, LogError> {
    let Placed { header, position } = placed;
    let mut batch = vec![0; header.size_bytes()];
    log.read_exact_at(&mut batch, position).on("read", &segment.path())?;
    let stopped = decoder.for_each(&batch, |record| {
        if wanted(&record) {
            return Err(Stop::Found(TimestampedOffset { offset: record.offset, timestamp: record.timestamp }));
        }
        Ok(())
    });
    Ok(match stopped {
        Ok(()) => None,
        Err(Stop::Found(found)) => Some(found),
        Err(Stop::Undecodable) => {
            Some(TimestampedOffset { offset: header.base_offset, timestamp: header.max_timestamp })
        }
    })
}

/// Largest timestamp of the segment's batches within `from..until`; None where there are no batches.
fn largest_between(segment: &Segment, from: Offset, until: Offset) -> Result<Option<Timestamp>, LogError> {
    if segment.size_bytes() == 0 || segment.base >= until {
        return Ok(None);
    }
    if from <= segment.base && segment.end() <= until {
        return Ok(Some(segment.max_timestamp()));
    }
    let log = segment.log()?;
    let mut largest = None;
    segment.first_from(&log, 0, |header| {
        if header.base_offset < until && header.last_offset() >= from {
            largest = largest.max(Some(header.max_timestamp));
        }
        header.base_offset >= until
    })?;
    Ok(largest)
}

#[cfg(test)]
impl Partition {
    /// The bytes of a read, which must be those that a range of the file would hold.
    pub(super) fn read_measured(&self, range: &ReadRange) -> Vec<u8> {
        let read = self.read_chunks(range, |window, _| {
            let chunk = read_chunk(window)?;
            let (len, next) = window.measure()?;
            assert_eq!(len, chunk.len);
            let is_next = if window.segment.has_holes { next >= chunk.next } else { next == chunk.next };
            assert!(is_next, "{} bytes end at {next}, not at {}", chunk.len, chunk.next);
            Ok(chunk)
        });
        read.unwrap().0.concat()
    }
}
