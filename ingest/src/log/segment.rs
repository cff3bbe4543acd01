//! One segment: a log file and its two sparse indexes.
//!
//! Only the active segment keeps its files open; a sealed one is opened for each read, so that a broker with a long
//! local history does not run out of descriptors. A reader that has a file open keeps reading it after it was deleted.
//! Compaction puts other files in the place of a segment's. From then on the segment opens none any more, as they would
//! not be its own, and says so; who reads takes the segment that is there now.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::ControlFlow;
#[cfg(target_os = "linux")]
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;

use super::eraser::{hold, open_for_reading};
use super::error::{IoContext, LogError};
use super::index::{IndexFile, OffsetEntry, TimeEntry};
use super::scan::{Placed, ScanError, Scanner};
use super::transactions::{ABORTED, AbortedTransaction};
use crate::model::{Offset, Timestamp};
use crate::page_cache::{self, QuietReader};
use crate::record::BatchHeader;

pub const LOG: &str = "log";
pub const INDEX: &str = "index";
pub const TIMEINDEX: &str = "timeindex";

/// Positions and relative offsets must fit Kafka's signed 32 bits.
pub const POSITION_MAX: u64 = i32::MAX as u64;

/// `<dir>/<offset, 20 digits>.<extension>`.
pub fn file_path(dir: &Path, offset: Offset, extension: &str) -> PathBuf {
    dir.join(format!("{:020}.{extension}", offset.0))
}

/// The offset in a file name that [`file_path`] made.
pub fn offset_of(path: &Path, extension: &str) -> Option<Offset> {
    let stem = path.file_name()?.to_str()?.strip_suffix(extension)?.strip_suffix('.')?;
    (stem.len() == 20 && stem.bytes().all(|b| b.is_ascii_digit())).then(|| stem.parse().ok().map(Offset))?
}

/// Makes created, renamed and removed files of `dir` durable.
pub fn sync_dir(dir: &Path) -> Result<(), LogError> {
    File::open(dir).and_then(|dir| dir.sync_all()).on("sync the folder", dir)
}

/// The log file of a segment, by position only.
#[derive(Debug)]
pub struct LogFile {
    file: File,
    #[cfg(test)]
    pub faults: Faults,
}

/// Faults that a test may inject.
#[cfg(test)]
#[derive(Debug, Default)]
pub struct Faults {
    pub write: std::sync::atomic::AtomicBool,
    pub truncate: std::sync::atomic::AtomicBool,
    pub sync: std::sync::atomic::AtomicBool,
}

impl LogFile {
    pub(super) fn new(file: File) -> Self {
        Self {
            file,
            #[cfg(test)]
            faults: Faults::default(),
        }
    }
    pub fn read_exact_at(&self, buf: &mut [u8], position: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, position)
    }
    /// Hands up to `len` bytes from `position` on to a socket, without copying them. Returns how many.
    #[cfg(target_os = "linux")]
    pub fn send(&self, socket: impl AsFd, position: u64, len: usize) -> rustix::io::Result<usize> {
        let mut position = position;
        rustix::fs::sendfile(socket, &self.file, Some(&mut position), len)
    }
    pub fn write_all_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        #[cfg(test)]
        if self.faults.write.load(Ordering::Relaxed) {
            self.file.write_all_at(&bytes[..bytes.len() / 2], position)?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.file.write_all_at(bytes, position)
    }
    pub fn truncate(&self, len: u64) -> io::Result<()> {
        #[cfg(test)]
        if self.faults.truncate.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.file.set_len(len)
    }
    pub fn sync(&self) -> io::Result<()> {
        #[cfg(test)]
        if self.faults.sync.load(Ordering::Relaxed) {
            return Err(io::Error::other("injected"));
        }
        self.file.sync_data()
    }
    pub fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
    /// From here on it is read as the disk has it.
    pub fn forget_cached(&self) -> io::Result<()> {
        page_cache::forget(&self.file, self.len()?);
        Ok(())
    }
}

/// The open files of a segment.
#[derive(Clone, Debug)]
pub struct SegmentFiles {
    pub log: Arc<LogFile>,
    pub index: Arc<IndexFile<OffsetEntry>>,
    pub times: Arc<IndexFile<TimeEntry>>,
    /// Made when the first transaction is aborted.
    pub aborted: Arc<OnceLock<IndexFile<AbortedTransaction>>>,
}

impl SegmentFiles {
    /// Opens the files for writing, missing ones are created empty.
    pub fn open(dir: &Path, base: Offset) -> Result<Self, LogError> {
        let path = file_path(dir, base, LOG);
        let log =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).on("open", &path)?;
        hold(&log).on("lock", &path)?;
        let path = file_path(dir, base, INDEX);
        let index = IndexFile::open_writable(&path).on("open", &path)?;
        let path = file_path(dir, base, TIMEINDEX);
        let times = IndexFile::open_writable(&path).on("open", &path)?;
        let path = file_path(dir, base, ABORTED);
        let aborted = OnceLock::new();
        if path.exists() {
            let _ = aborted.set(IndexFile::open_writable(&path).on("open", &path)?);
        }
        Ok(Self {
            log: Arc::new(LogFile::new(log)),
            index: Arc::new(index),
            times: Arc::new(times),
            aborted: Arc::new(aborted),
        })
    }

    /// The index of aborted transactions, made if it is not there.
    pub fn make_aborted(&self, dir: &Path, base: Offset) -> io::Result<&IndexFile<AbortedTransaction>> {
        if let Some(aborted) = self.aborted.get() {
            return Ok(aborted);
        }
        let made = IndexFile::open_writable(&file_path(dir, base, ABORTED))?;
        Ok(self.aborted.get_or_init(|| made))
    }

    /// Brings the indexes into their files. A failure leaves them as they are: it may be tried again.
    pub fn write_indexes(&self) -> io::Result<()> {
        self.index.write()?;
        self.times.write()?;
        self.aborted.get().map_or(Ok(()), IndexFile::write)
    }

    pub fn sync_indexes(&self) -> io::Result<()> {
        self.index.sync()?;
        self.times.sync()?;
        self.aborted.get().map_or(Ok(()), IndexFile::sync)
    }
}

/// What readers see of a segment.
#[derive(Debug)]
pub struct Segment {
    dir: Arc<Path>,
    pub base: Offset,
    /// Exclusive.
    end: AtomicI64,
    size_bytes: AtomicU64,
    max_timestamp: AtomicI64,
    /// When it was sealed, or found sealed at start; what age means for records without a timestamp.
    sealed_at: AtomicI64,
    /// Whether markers of aborted transactions are in it.
    has_aborted: AtomicBool,
    /// It may have been compacted: offsets may be missing between its batches, and at its end.
    pub has_holes: bool,
    files: RwLock<Files>,
}

/// Where the files of a segment are.
#[derive(Debug)]
enum Files {
    /// Open: it is the active one.
    Open(SegmentFiles),
    OnDisk,
    /// What lies under their names belongs to another segment.
    Replaced,
}

impl Segment {
    /// `files` for the active segment, None for a sealed one.
    pub fn new(dir: Arc<Path>, base: Offset, files: Option<SegmentFiles>) -> Self {
        Self {
            dir,
            base,
            end: AtomicI64::new(base.0),
            size_bytes: AtomicU64::new(0),
            max_timestamp: AtomicI64::new(Timestamp::NONE.0),
            sealed_at: AtomicI64::new(Timestamp::NONE.0),
            has_aborted: AtomicBool::new(false),
            has_holes: false,
            files: RwLock::new(files.map_or(Files::OnDisk, Files::Open)),
        }
    }

    /// Whether it may have been compacted.
    pub fn with_holes(self, has_holes: bool) -> Self {
        Self { has_holes, ..self }
    }

    pub fn end(&self) -> Offset {
        Offset(self.end.load(Ordering::Acquire))
    }
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }
    /// Largest timestamp in it; NONE where it has none.
    pub fn max_timestamp(&self) -> Timestamp {
        Timestamp(self.max_timestamp.load(Ordering::Acquire))
    }
    pub fn path(&self) -> PathBuf {
        file_path(&self.dir, self.base, LOG)
    }

    /// Lets readers see what was written. `size_bytes` goes last: who sees it sees the rest.
    pub fn publish(&self, size_bytes: u64, end: Offset, max_timestamp: Timestamp) {
        self.max_timestamp.store(max_timestamp.0, Ordering::Release);
        self.end.store(end.0, Ordering::Release);
        self.size_bytes.store(size_bytes, Ordering::Release);
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }
    pub fn is_active(&self) -> bool {
        matches!(&*self.files.read(), Files::Open(_))
    }

    /// From now on readers look for aborted transactions here.
    pub fn set_has_aborted(&self) {
        self.has_aborted.store(true, Ordering::Release);
    }

    pub fn has_aborted(&self) -> bool {
        self.has_aborted.load(Ordering::Acquire)
    }

    /// Adds the aborted transactions that lie in `from..until`, in part or wholly, and whose markers are here. Breaks
    /// when later segments hold none.
    pub fn aborted(
        &self,
        from: Offset,
        until: Offset,
        found: &mut Vec<AbortedTransaction>,
    ) -> Result<ControlFlow<()>, LogError> {
        let path = file_path(&self.dir, self.base, ABORTED);
        let (entries, flow) = self.with_files(
            &path,
            |files| match files.aborted.get() {
                Some(index) => select_aborted(index, from, until),
                None => Ok((Vec::new(), ControlFlow::Continue(()))),
            },
            || select_aborted(&IndexFile::open(&path)?, from, until),
        )?;
        found.extend(entries);
        Ok(flow)
    }

    /// From now on it is only read.
    pub fn seal(&self, now: Timestamp) {
        self.sealed_at.store(now.0, Ordering::Release);
        *self.files.write() = Files::OnDisk;
    }

    /// When it was sealed.
    pub fn sealed_at(&self) -> Timestamp {
        Timestamp(self.sealed_at.load(Ordering::Acquire))
    }

    /// Other files are put in the place of its own by `work`, while nobody opens any.
    pub fn replace<T>(segments: &[Arc<Self>], work: impl FnOnce() -> T) -> T {
        let mut held: Vec<_> = segments.iter().map(|segment| segment.files.write()).collect();
        held.iter_mut().for_each(|files| **files = Files::Replaced);
        work()
    }

    /// Time since its newest record, or since it was sealed where its records carry no time.
    pub fn age_ms(&self, now: Timestamp) -> i64 {
        let newest = match self.max_timestamp() {
            Timestamp(..0) => self.sealed_at.load(Ordering::Acquire),
            Timestamp(timestamp) => timestamp,
        };
        now.0.saturating_sub(newest)
    }

    /// The log file, open.
    pub fn log(&self) -> Result<Arc<LogFile>, LogError> {
        let path = self.path();
        let open = || -> io::Result<_> { Ok(Arc::new(LogFile::new(open_for_reading(&path)?))) };
        self.with_files(&path, |files| Ok(files.log.clone()), open)
    }

    /// The log file of a sealed segment, for reading without a trace in the page cache.
    pub fn quiet_log(&self) -> Result<QuietReader, LogError> {
        let path = self.path();
        let open = || -> io::Result<_> { Ok(QuietReader::new(open_for_reading(&path)?)) };
        self.with_files(&path, |_| open(), open)
    }

    /// `active` with the open files, or `sealed`, which opens the one at `path`.
    fn with_files<T>(
        &self,
        path: &Path,
        active: impl FnOnce(&SegmentFiles) -> io::Result<T>,
        sealed: impl FnOnce() -> io::Result<T>,
    ) -> Result<T, LogError> {
        match &*self.files.read() {
            Files::Open(files) => active(files),
            Files::OnDisk => sealed(),
            Files::Replaced => return Err(LogError::Compacted { path: path.to_owned() }),
        }
        .on("read", path)
    }

    /// Header and place of the batch that holds `offset`, or of the first one after it. None beyond the end.
    pub fn find(&self, log: &LogFile, offset: Offset) -> Result<Option<Placed>, LogError> {
        self.first_from(log, self.position_below(offset)?, |header| header.last_offset() >= offset)
    }

    /// The first batch whose largest timestamp is at or after `timestamp` and that lies wholly at or above `from`, or
    /// holds it.
    pub fn find_by_time(&self, log: &LogFile, timestamp: Timestamp, from: Offset) -> Result<Option<Placed>, LogError> {
        // Nothing up to the entry's offset reaches the timestamp.
        let entry = self.with_times(|times| times.last_where(|entry| entry.timestamp < timestamp.0))?;
        let above = entry.map_or(self.base, |entry| self.base.plus(i64::from(entry.offset)));
        let position = self.position_below(above.max(from))?;
        self.first_from(log, position, |header| header.max_timestamp >= timestamp && header.last_offset() >= from)
    }

    /// The first batch at or after `position` that `wanted` accepts.
    pub fn first_from(
        &self,
        log: &LogFile,
        position: u64,
        mut wanted: impl FnMut(&BatchHeader) -> bool,
    ) -> Result<Option<Placed>, LogError> {
        let mut scanner = Scanner::headers(log, position, self.size_bytes(), self.has_holes);
        while let Some(placed) = scanner.next().map_err(|error| self.scan_error(error))? {
            if wanted(&placed.header) {
                return Ok(Some(placed));
            }
        }
        Ok(None)
    }

    /// A place from which a walk meets the batch that holds `offset`.
    fn position_below(&self, offset: Offset) -> Result<u64, LogError> {
        let relative = self.base.distance_to(offset);
        let size = self.size_bytes();
        let below = |entry: &OffsetEntry| u64::from(entry.offset) <= relative && u64::from(entry.position) < size;
        Ok(self.last_entry(below)?.map_or(0, |entry| u64::from(entry.position)))
    }

    /// The last batch that the index names of those that lie wholly below `until` and begin before `position`. None
    /// where there is none, or where what the index says is not so.
    pub fn last_indexed(&self, log: &LogFile, until: Offset, position: u64) -> Result<Option<Placed>, LogError> {
        let relative = self.base.distance_to(until);
        let below = |entry: &OffsetEntry| u64::from(entry.offset) < relative && u64::from(entry.position) < position;
        let Some(entry) = self.last_entry(below)? else { return Ok(None) };
        let there = self.first_from(log, u64::from(entry.position), |_| true).ok().flatten();
        Ok(there.filter(|placed| placed.header.last_offset() == self.base.plus(i64::from(entry.offset))))
    }

    /// The last entry of the offset index for which `pred` holds; it must hold for a prefix of them.
    fn last_entry(&self, pred: impl Fn(&OffsetEntry) -> bool) -> Result<Option<OffsetEntry>, LogError> {
        let path = file_path(&self.dir, self.base, INDEX);
        self.with_files(&path, |files| files.index.last_where(&pred), || IndexFile::open(&path)?.last_where(&pred))
    }

    fn with_times<T>(&self, read: impl Fn(&IndexFile<TimeEntry>) -> io::Result<T>) -> Result<T, LogError> {
        let path = file_path(&self.dir, self.base, TIMEINDEX);
        self.with_files(&path, |files| read(&files.times), || read(&IndexFile::open(&path)?))
    }

    /// Names the file in a scan's error.
    pub fn scan_error(&self, error: ScanError) -> LogError {
        let path = self.path();
        match error {
            ScanError::Io(source) => LogError::Io { action: "read", path, source },
            ScanError::Batch { position, source } => LogError::Damaged { path, position, source },
            ScanError::Misplaced { position, found, expected } => {
                LogError::Misplaced { path, position, found, expected }
            }
        }
    }

    /// Deletes the files; the log goes first, so that what a crash leaves behind is recognised.
    pub fn delete(&self) -> Result<(), LogError> {
        delete_files(&self.dir, self.base)
    }
}

/// The entries of transactions that lie in `from..until`, in part or wholly. Breaks when later ones do not.
fn select_aborted(
    index: &IndexFile<AbortedTransaction>,
    from: Offset,
    until: Offset,
) -> io::Result<(Vec<AbortedTransaction>, ControlFlow<()>)> {
    let (mut found, mut flow) = (Vec::new(), ControlFlow::Continue(()));
    index.each_after(
        |entry| entry.last_offset < from,
        |entry| {
            if entry.first_offset < until {
                found.push(entry);
            }
            if entry.last_stable_offset >= until {
                flow = ControlFlow::Break(());
            }
            flow
        },
    )?;
    Ok((found, flow))
}

/// Deletes the files of the segment at `base`; missing ones are fine.
pub fn delete_files(dir: &Path, base: Offset) -> Result<(), LogError> {
    for extension in [LOG, INDEX, TIMEINDEX, ABORTED] {
        remove_if_there(&file_path(dir, base, extension))?;
    }
    Ok(())
}

pub fn remove_if_there(path: &Path) -> Result<(), LogError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).on("delete", path),
        _ => Ok(()),
    }
}
