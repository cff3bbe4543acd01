//! A sealed segment, as the archive reads it: once, in order, and without a trace in the page cache.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::error::{IoContext, LogError};
use super::segment::Segment;
use crate::model::{Offset, Timestamp};
use crate::page_cache::QuietReader;
use crate::record::{BATCH_HEADER_LEN, BatchError, BatchHeader, verify_crc};

/// Read at once; grows for a batch that is larger.
const READ_BYTES: usize = 1 << 20;

/// A sealed segment: immutable, fsynced, wholly below the high watermark.
#[derive(Clone, Debug)]
pub struct SealedSegment {
    pub base: Offset,
    /// exclusive
    pub end: Offset,
    pub size_bytes: u64,
    pub max_timestamp: Timestamp,
    segment: Arc<Segment>,
}

/// Walks the batches of a file. Ends after the first error.
struct Batches {
    log: QuietReader,
    path: PathBuf,
    /// Read and not handed out.
    window: Bytes,
    /// First byte of the window in the file.
    position: u64,
    size_bytes: u64,
    next: Offset,
    end: Offset,
    holes: bool,
    done: bool,
}

impl SealedSegment {
    pub(super) fn of(segment: &Arc<Segment>) -> Self {
        Self {
            base: segment.base,
            end: segment.end(),
            size_bytes: segment.size_bytes(),
            max_timestamp: segment.max_timestamp(),
            segment: segment.clone(),
        }
    }

    /// The batches of the segment, one by one, byte for byte, buffered sequential reads. Blocking. A bad CRC or framing
    /// is an error naming file and position. Goes on to the end even if the segment is deleted meanwhile.
    pub fn batches(&self) -> Result<Box<dyn Iterator<Item = Result<Bytes, LogError>> + Send>, LogError> {
        Ok(Box::new(Batches {
            log: self.segment.quiet_log()?,
            path: self.segment.path(),
            window: Bytes::new(),
            position: 0,
            size_bytes: self.size_bytes,
            next: self.base,
            end: self.end,
            holes: self.segment.has_holes,
            done: false,
        }))
    }
}

impl Iterator for Batches {
    type Item = Result<Bytes, LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        if self.position == self.size_bytes {
            self.done = true;
            let complete = self.next == self.end || self.holes && self.next < self.end;
            let gap = LogError::Gap { path: self.path.clone(), end: self.next, next: self.end };
            return if complete { None } else { Some(Err(gap)) };
        }
        let batch = self.read();
        self.done = batch.is_err();
        Some(batch)
    }
}

impl Batches {
    fn read(&mut self) -> Result<Bytes, LogError> {
        self.fill(BATCH_HEADER_LEN)?;
        let header = BatchHeader::read(&self.window).map_err(|source| self.damaged(source))?;
        let size = header.size_bytes();
        self.fill(size)?;
        if self.window.len() < size {
            return Err(self.damaged(BatchError::Truncated { needed: size, available: self.window.len() }));
        }
        let batch = self.window.split_to(size);
        verify_crc(&batch).map_err(|source| self.damaged(source))?;
        if header.base_offset != self.next && !(self.holes && header.base_offset > self.next) {
            let (position, found, expected) = (self.position, header.base_offset, self.next);
            return Err(LogError::Misplaced { path: self.path.clone(), position, found, expected });
        }
        self.position += size as u64;
        self.next = header.next_offset();
        Ok(batch)
    }

    /// Makes the window hold `len` bytes, or all that are left.
    fn fill(&mut self, len: usize) -> Result<(), LogError> {
        let left = usize::try_from(self.size_bytes - self.position).unwrap_or(usize::MAX);
        if self.window.len() < len.min(left) {
            let mut window = vec![0; len.max(READ_BYTES).min(left)];
            self.log.read_exact_at(&mut window, self.position).on("read", &self.path)?;
            self.window = Bytes::from(window);
        }
        Ok(())
    }

    fn damaged(&self, source: BatchError) -> LogError {
        LogError::Damaged { path: self.path.clone(), position: self.position, source }
    }
}
