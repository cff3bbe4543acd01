//! Walking over the batches of a log file.

use std::io;
use std::ops::RangeInclusive;

use super::segment::LogFile;
use crate::model::Offset;
use crate::record::{BATCH_HEADER_LEN, BatchError, BatchHeader, verify_crc};

/// Read at once when only headers are wanted: little at first, as most walks end within what the index leaves to them,
/// and twice as much each time that it did not do.
const HEADER_WINDOWS: RangeInclusive<usize> = 1 << 10..=16 << 10;
/// Read at once when all bytes are wanted; grows for a batch that is larger.
const BATCH_WINDOW: usize = 1 << 20;

/// A batch at its place in the file.
#[derive(Clone, Copy, Debug)]
pub struct Placed {
    pub header: BatchHeader,
    pub position: u64,
}

/// Why the walk stopped before the end.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    #[error("reading")]
    Io(#[from] io::Error),
    #[error("bad batch at byte {position}")]
    Batch { position: u64, source: BatchError },
    #[error("offset {found} at byte {position} where {expected} belongs")]
    Misplaced { position: u64, found: Offset, expected: Offset },
}

/// Walks batches from `position` to `end`. Each must begin at the offset where the one before it ended, or, where the
/// file may have been compacted, beyond it.
pub struct Scanner<'a> {
    file: &'a LogFile,
    position: u64,
    end: u64,
    expected: Option<Offset>,
    holes: bool,
    check_crc: bool,
    window: Vec<u8>,
    window_start: u64,
    /// What is read next.
    window_bytes: usize,
}

impl<'a> Scanner<'a> {
    /// Headers only.
    pub fn headers(file: &'a LogFile, position: u64, end: u64, holes: bool) -> Self {
        let window_bytes = *HEADER_WINDOWS.start();
        let (window, window_start) = (Vec::new(), 0);
        Self { file, position, end, expected: None, holes, check_crc: false, window, window_start, window_bytes }
    }

    /// Whole batches with their CRC, the first one at offset `base`.
    pub fn checked(file: &'a LogFile, end: u64, base: Offset, holes: bool) -> Self {
        let window_bytes = BATCH_WINDOW;
        Self { expected: Some(base), check_crc: true, window_bytes, ..Self::headers(file, 0, end, holes) }
    }

    /// The next batch; None at the end.
    pub fn next(&mut self) -> Result<Option<Placed>, ScanError> {
        let position = self.position;
        if position >= self.end {
            return Ok(None);
        }
        let bad = |source| ScanError::Batch { position, source };
        let header = BatchHeader::read(self.bytes(position, BATCH_HEADER_LEN)?).map_err(bad)?;
        let size = header.size_bytes();
        let available = self.end - position;
        if size as u64 > available {
            let available = usize::try_from(available).unwrap_or(usize::MAX);
            return Err(bad(BatchError::Truncated { needed: size, available }));
        }
        if !header.counts_agree() {
            let BatchHeader { record_count: stated, last_offset_delta, .. } = header;
            return Err(bad(BatchError::Count { stated, last_offset_delta, found: stated }));
        }
        if let Some(expected) = self.expected
            && header.base_offset != expected
            && !(self.holes && header.base_offset > expected)
        {
            return Err(ScanError::Misplaced { position, found: header.base_offset, expected });
        }
        if self.check_crc {
            verify_crc(self.bytes(position, size)?).map_err(bad)?;
        }
        self.expected = Some(header.next_offset());
        self.position += size as u64;
        Ok(Some(Placed { header, position }))
    }

    /// At least the first `len` bytes at `position`, fewer only at the end; exactly `len` if there.
    fn bytes(&mut self, position: u64, len: usize) -> io::Result<&[u8]> {
        let available = self.end - position;
        let len = usize::try_from(available).unwrap_or(usize::MAX).min(len);
        let held = self.window_start + self.window.len() as u64;
        if position < self.window_start || position + len as u64 > held {
            let wanted = usize::try_from(available).unwrap_or(usize::MAX).min(self.window_bytes.max(len));
            if !self.check_crc {
                self.window_bytes = (self.window_bytes * 2).min(*HEADER_WINDOWS.end());
            }
            self.window.resize(wanted, 0);
            self.window_start = position;
            if let Err(error) = self.file.read_exact_at(&mut self.window, position) {
                self.window.clear();
                return Err(error);
            }
        }
        let from = usize::try_from(position - self.window_start).unwrap_or(usize::MAX);
        Ok(self.window.get(from..from + len).unwrap_or_default())
    }
}
