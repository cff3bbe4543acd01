//! Batches that are sent as they lie in a log file, without passing through the broker's memory (`sendfile`).
//!
//! Invariants:
//! - A range lies below the published length of its segment, and bytes below it never change: appends go behind it, a
//!   failed append is cut off behind it, recovery is over before anybody reads. What replaces a segment is another
//!   file.
//! - A range holds its file open and locked. Retention, DeleteRecords, the deletion of the topic and compaction take a
//!   file's name away, and its bytes go after the last range (see `eraser`); so an answer that is under way is finished
//!   as it was begun.
//! - It begins and ends where batches do. What Produce validated is what the client gets.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::segment::LogFile;
use crate::model::Offset;

/// Bytes from which on a range of a file is sent as such. Measured over loopback, from the page cache, against reading
/// into memory and one write: 1.2 times the time at 16 KiB, as much at 64 KiB, 0.3 to 0.8 at 128 KiB, 0.4 to 0.5 at 1
/// MiB. What the thread for calls that may block costs is not in it.
pub const SENDFILE_BYTES_MIN: usize = 128 << 10;

/// Whole batches in a log file, one after the other.
#[derive(Debug)]
pub struct FileRange {
    pub(super) log: Arc<LogFile>,
    /// For errors.
    pub(super) path: PathBuf,
    pub(super) position: u64,
    pub(super) len: usize,
    /// The offset after its batches.
    pub(super) next: Offset,
}

impl FileRange {
    /// Bytes that are left to be sent.
    pub fn len(&self) -> usize {
        self.len
    }
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// The offset after its last batch.
    pub fn next_offset(&self) -> Offset {
        self.next
    }

    /// What is left of it, in memory. Blocking.
    pub fn read(&self) -> io::Result<Bytes> {
        let mut bytes = vec![0; self.len];
        self.log.read_exact_at(&mut bytes, self.position).map_err(|error| self.failed(&error))?;
        Ok(bytes.into())
    }

    /// Hands some of it to a socket and goes on behind that. `WouldBlock` where a non-blocking socket takes nothing
    /// now. Waits for the disk where the bytes are not in the page cache.
    #[cfg(target_os = "linux")]
    pub fn send(&mut self, socket: impl std::os::fd::AsFd) -> io::Result<()> {
        use rustix::io::Errno;
        let sent = loop {
            match self.log.send(&socket, self.position, self.len) {
                Err(Errno::INTR) => {}
                // Sockets fail in other ways.
                Err(error @ Errno::IO) => return Err(self.failed(&error.into())),
                sent => break sent?,
            }
        };
        if sent == 0 {
            return Err(self.failed(&io::ErrorKind::UnexpectedEof.into()));
        }
        self.position += sent as u64;
        self.len = self.len.saturating_sub(sent);
        Ok(())
    }

    /// The log is at fault, not the connection: that is worth an entry wherever it is met.
    fn failed(&self, error: &io::Error) -> io::Error {
        let (path, position) = (self.path.display(), self.position);
        tracing::error!(%path, position, %error, "records could not be read from the log");
        io::Error::new(error.kind(), format!("reading {path} at byte {position}: {error}"))
    }
}

#[cfg(test)]
impl FileRange {
    /// All of `file` from `position` on.
    pub(crate) fn of(file: std::fs::File, position: u64) -> Self {
        let len = usize::try_from(file.metadata().unwrap().len() - position).unwrap();
        Self { log: Arc::new(LogFile::new(file)), path: "test".into(), position, len, next: Offset::ZERO }
    }
}
