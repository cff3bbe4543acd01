//! Gives the space of deleted segments back piece by piece, so that producers do not wait for it.
//!
//! A file system frees what it is told to free in one transaction, and every sync of the log waits for it. With ext4,
//! mounted with `discard` as cloud images do, deleting a file of 64 MiB took 42 to 50 ms, in which a log beside it that
//! was synced every 2 ms waited 37 to 47; with segments of a gigabyte it would be most of a second. Cut off in pieces
//! of 1 MiB every 10 ms the file took 0.7 s, and in 4 of 6 runs no sync took more than 3 ms, in none more than 11 (4
//! MiB every 20 ms: 4 to 6; 8 MiB every 50 ms: 8 to 9).
//!
//! So the name goes at once, and a thread cuts the file without a name shorter, from its end. It hurries where the disk
//! is tight, and where it falls behind.
//!
//! # Invariants
//! 1. Nobody reads bytes that are cut off. Whoever has a file of a segment open, its log or an index, holds a shared
//!    lock on it (`flock(2)`, [`open_for_reading`], [`hold`]) until he closes it; the eraser begins when it gets the
//!    exclusive one. Then the file has no name any more, so nobody comes after it.
//! 2. A file that has another name is left alone: those bytes are not deleted.
//! 3. Where anything fails, the file is closed, and its space goes at once when its last reader closes it too.
//!
//! | died here | then |
//! |---|---|
//! | before the name is gone | the file is there, and whoever wanted it deleted will again |
//! | after | the system frees all of it |

use std::collections::VecDeque;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::disk::DiskWatch;
use super::error::LogError;
use super::segment::{LOG, delete_files, file_path, remove_if_there};
use crate::model::Offset;

/// What is cut off at once. Next to nothing in tests, whose log files are small.
const PIECE_BYTES: u64 = if cfg!(test) { 64 } else { 1 << 20 };
/// Between two pieces.
const PAUSE: Duration = Duration::from_millis(10);
/// From so much on that waits, there are no pauses: this is what a broker that takes in more than 100 MB/s is behind
/// after some seconds.
const UNHURRIED_BYTES_MAX: u64 = 1 << 30;
/// Files that wait: each is open. More are cut by whoever deletes them.
const FILES_MAX: usize = 256;
/// How long the readers of a file are waited for. An answer takes as long as its client.
const READERS_WAIT_MAX: Duration = Duration::from_secs(60);
/// Until a file that somebody reads is looked at again.
const READERS_RETRY: Duration = Duration::from_millis(100);

/// Opens a file of a segment; its bytes stay as long as it is open.
pub fn open_for_reading(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    hold(&file)?;
    Ok(file)
}

/// Keeps the bytes of a segment's file as long as `file` is open. Not found: it is being erased.
pub fn hold(file: &File) -> io::Result<()> {
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => Err(io::ErrorKind::NotFound.into()),
        // A file system without locks. Then the eraser gets none either, and cuts nothing off.
        Err(TryLockError::Error(_)) | Ok(()) => Ok(()),
    }
}

/// Deletes files of segments. Dropped, it frees at once what is left.
pub struct Eraser {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    disk: Arc<DiskWatch>,
    state: Mutex<State>,
    /// There is a file, or one less, or it is time to stop.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Nameless>,
    /// Of those, and of the one that is being erased.
    bytes: u64,
    stopped: bool,
}

/// A file that was deleted.
struct Nameless {
    file: File,
    len: u64,
    since: Instant,
}

/// How far a file was erased.
enum Erased {
    Wholly,
    /// Somebody reads it.
    NotYet,
}

impl Eraser {
    pub fn start(disk: Arc<DiskWatch>) -> io::Result<Self> {
        let shared = Arc::new(Shared::new(disk));
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new().name("log-eraser".to_owned()).spawn(move || of_thread.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Deletes the files of the segment at `base`; missing ones are fine. The log goes first, so that what a crash
    /// leaves behind is recognised.
    pub fn delete_segment(&self, dir: &Path, base: Offset) -> Result<(), LogError> {
        self.delete(&file_path(dir, base, LOG))?;
        delete_files(dir, base)
    }

    /// Deletes a file; a missing one is fine. Returns its bytes.
    pub fn delete(&self, path: &Path) -> Result<u64, LogError> {
        let opened = OpenOptions::new().write(true).open(path);
        remove_if_there(path)?;
        // The name is gone, as was asked; the rest is kindness.
        let Ok((file, metadata)) = opened.and_then(|file| file.metadata().map(|metadata| (file, metadata))) else {
            return Ok(0);
        };
        let len = metadata.len();
        if metadata.nlink() == 0 && len > PIECE_BYTES {
            self.shared.put(Nameless { file, len, since: Instant::now() });
        }
        Ok(len)
    }
}

impl Drop for Eraser {
    fn drop(&mut self) {
        self.shared.state.lock().stopped = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // It has nothing to say, and a panic has been printed.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn new(disk: Arc<DiskWatch>) -> Self {
        Self { disk, state: Mutex::default(), changed: Condvar::new() }
    }

    fn put(&self, file: Nameless) {
        let mut state = self.state.lock();
        state.bytes += file.len;
        if state.waiting.len() < FILES_MAX {
            state.waiting.push_back(file);
            self.changed.notify_all();
            return;
        }
        drop(state);
        let len = file.len;
        // Space that a reader keeps goes with him.
        let _ = self.erase(&file, |_| {});
        self.forget(len);
    }

    fn run(&self) {
        while let Some(file) = self.next() {
            match self.erase(&file, |shared| shared.pause()) {
                Erased::NotYet if file.since.elapsed() < READERS_WAIT_MAX => {
                    let mut state = self.state.lock();
                    state.waiting.push_back(file);
                    if !state.stopped {
                        self.changed.wait_for(&mut state, READERS_RETRY);
                    }
                }
                Erased::NotYet | Erased::Wholly => self.forget(file.len),
            }
        }
    }

    /// None when it is time to stop.
    fn next(&self) -> Option<Nameless> {
        let mut state = self.state.lock();
        loop {
            if state.stopped {
                return None;
            }
            if let Some(file) = state.waiting.pop_front() {
                return Some(file);
            }
            self.changed.wait(&mut state);
        }
    }

    fn forget(&self, len: u64) {
        let mut state = self.state.lock();
        state.bytes = state.bytes.saturating_sub(len);
        self.changed.notify_all();
    }

    fn erase(&self, Nameless { file, len, .. }: &Nameless, between: impl Fn(&Self)) -> Erased {
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Erased::NotYet,
            Err(TryLockError::Error(_)) => return Erased::Wholly,
        }
        let mut left = *len;
        while left > PIECE_BYTES && !self.state.lock().stopped {
            left -= PIECE_BYTES;
            if let Err(error) = file.set_len(left) {
                tracing::debug!(%error, "a deleted log file is freed at once");
                break;
            }
            between(self);
        }
        Erased::Wholly
    }

    /// Rests where there is time.
    fn pause(&self) {
        let mut state = self.state.lock();
        if !state.stopped && state.bytes <= UNHURRIED_BYTES_MAX && self.disk.shortage_bytes() == 0 {
            let until = Instant::now() + PAUSE;
            // Files that come or go meanwhile wake it up, and can wait.
            while !state.stopped && !self.changed.wait_until(&mut state, until).timed_out() {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use prometheus::Registry;

    use super::*;
    use crate::metrics::IngestMetrics;

    const LEN: u64 = 3 * PIECE_BYTES + 5;

    fn disk() -> Arc<DiskWatch> {
        let metrics = Arc::new(IngestMetrics::new(&Registry::new()).unwrap());
        Arc::new(DiskWatch::new(0, Box::new(|| Ok(0)), metrics))
    }

    fn eraser() -> Eraser {
        Eraser::start(disk()).unwrap()
    }

    /// One that never comes to what waits.
    fn idle() -> Eraser {
        Eraser { shared: Arc::new(Shared::new(disk())), thread: None }
    }

    fn file(path: &Path) {
        let bytes: Vec<u8> = (0..LEN).map(|at| (at % 251) as u8).collect();
        std::fs::write(path, bytes).unwrap();
    }

    fn wait_until_erased(eraser: &Eraser) {
        let mut state = eraser.shared.state.lock();
        while state.bytes > 0 {
            let waited = eraser.shared.changed.wait_for(&mut state, Duration::from_secs(30));
            assert!(!waited.timed_out(), "{} bytes are left", state.bytes);
        }
    }

    #[test]
    fn the_name_goes_at_once_and_the_bytes_follow() {
        let (dir, eraser) = (tempfile::tempdir().unwrap(), eraser());
        let path = dir.path().join("log");
        file(&path);
        // Open without a lock, so that it can be watched.
        let watched = File::open(&path).unwrap();
        assert_eq!(eraser.delete(&path).unwrap(), LEN);
        assert!(!path.exists());
        wait_until_erased(&eraser);
        assert_eq!(watched.metadata().unwrap().len(), LEN - 3 * PIECE_BYTES);
        assert_eq!(eraser.delete(&path).unwrap(), 0);
    }

    #[test]
    fn who_reads_it_reads_on() {
        let (dir, eraser) = (tempfile::tempdir().unwrap(), eraser());
        let path = dir.path().join("log");
        file(&path);
        let reader = open_for_reading(&path).unwrap();
        let watched = File::open(&path).unwrap();
        let same = Nameless { file: File::open(&path).unwrap(), len: LEN, since: Instant::now() };
        eraser.delete(&path).unwrap();
        assert!(matches!(eraser.shared.erase(&same, |_| {}), Erased::NotYet));
        let mut last = [0];
        reader.read_exact_at(&mut last, LEN - 1).unwrap();
        assert_eq!(u64::from(last[0]), (LEN - 1) % 251);
        drop(reader);
        wait_until_erased(&eraser);
        assert!(watched.metadata().unwrap().len() < LEN);
    }

    #[test]
    fn what_is_being_erased_is_not_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        file(&path);
        let erased = File::open(&path).unwrap();
        erased.try_lock().unwrap();
        assert_eq!(open_for_reading(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_file_with_another_name_is_left_alone() {
        let (dir, eraser) = (tempfile::tempdir().unwrap(), eraser());
        let (path, other) = (dir.path().join("log"), dir.path().join("other"));
        file(&path);
        std::fs::hard_link(&path, &other).unwrap();
        assert_eq!(eraser.delete(&path).unwrap(), LEN);
        assert_eq!((eraser.shared.state.lock().bytes, other.metadata().unwrap().len()), (0, LEN));
    }

    #[test]
    fn too_many_are_erased_by_who_deletes_them() {
        let (dir, eraser) = (tempfile::tempdir().unwrap(), idle());
        let path = dir.path().join("log");
        for _ in 0..FILES_MAX {
            file(&path);
            eraser.delete(&path).unwrap();
        }
        file(&path);
        let watched = File::open(&path).unwrap();
        eraser.delete(&path).unwrap();
        assert_eq!(watched.metadata().unwrap().len(), LEN - 3 * PIECE_BYTES);
        assert_eq!(eraser.shared.state.lock().bytes, FILES_MAX as u64 * LEN);
    }

    #[test]
    fn stopping_waits_for_nobody() {
        let (dir, eraser) = (tempfile::tempdir().unwrap(), eraser());
        let path = dir.path().join("log");
        file(&path);
        let reader = open_for_reading(&path).unwrap();
        eraser.delete(&path).unwrap();
        drop(eraser);
        assert_eq!(reader.metadata().unwrap().len(), LEN);
    }
}
