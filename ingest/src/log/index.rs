//! Sparse indexes of a segment, in Kafka's format; big-endian entries, ascending, no header.
//!
//! ```text
//! <base>.index      8 bytes: last offset of a batch, relative to base, u32 | position of that batch, u32
//! <base>.timeindex 12 bytes: largest timestamp so far, i64 | last offset of the batch that has it, relative, u32
//! ```
//! An entry is written for the batch that comes after every `index.interval.bytes` of log, and one more timeindex entry
//! when the segment is sealed. An entry is a promise about a place, not about completeness: fewer entries make a lookup
//! slower, not wrong. A lookup is a binary search with positioned reads in the page cache, the last of them of a whole
//! page. In memory are only the newest entries of the active segment, [`Entry::UNWRITTEN_MAX`] at most, which are
//! written together: a write each would be most of the system calls of an append, and each would leave a page for a
//! sync of the whole file system. A crash loses them; the indexes of the last segment are made anew then.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

use super::eraser::{hold, open_for_reading};

/// What a search reads at once at its end.
const PAGE_BYTES: usize = 4 << 10;

/// Where a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffsetEntry {
    /// Last offset of the batch, relative to the segment's base.
    pub offset: u32,
    /// First byte of the batch.
    pub position: u32,
}

/// No batch up to `offset` has a larger timestamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeEntry {
    pub timestamp: i64,
    /// Last offset, relative to the segment's base, of the first batch with this timestamp.
    pub offset: u32,
}

/// An entry of fixed length.
pub trait Entry: Copy {
    const LEN: usize;
    /// So many may wait to be written.
    const UNWRITTEN_MAX: usize;
    fn write(self, out: &mut Vec<u8>);
    /// From exactly `LEN` bytes.
    fn read(bytes: &[u8]) -> Option<Self>;
}

impl Entry for OffsetEntry {
    const LEN: usize = 8;
    const UNWRITTEN_MAX: usize = 32;
    fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.offset.to_be_bytes());
        out.extend_from_slice(&self.position.to_be_bytes());
    }
    fn read(bytes: &[u8]) -> Option<Self> {
        let (offset, rest) = bytes.split_first_chunk()?;
        let position = rest.first_chunk()?;
        Some(Self { offset: u32::from_be_bytes(*offset), position: u32::from_be_bytes(*position) })
    }
}

impl Entry for TimeEntry {
    const LEN: usize = 12;
    const UNWRITTEN_MAX: usize = 32;
    fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.timestamp.to_be_bytes());
        out.extend_from_slice(&self.offset.to_be_bytes());
    }
    fn read(bytes: &[u8]) -> Option<Self> {
        let (timestamp, rest) = bytes.split_first_chunk()?;
        let offset = rest.first_chunk()?;
        Some(Self { timestamp: i64::from_be_bytes(*timestamp), offset: u32::from_be_bytes(*offset) })
    }
}

/// An index file. One writer; readers see the entries that were published when they look.
#[derive(Debug)]
pub struct IndexFile<E> {
    file: File,
    /// All entries.
    entries: AtomicU32,
    /// Those in the file. Changed with `unwritten` locked, and only once they are there.
    written: AtomicU32,
    unwritten: Mutex<Vec<E>>,
}

impl<E: Entry> IndexFile<E> {
    /// Opens or creates the file for appending. An incomplete entry at its end is not seen and will be overwritten.
    pub fn open_writable(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        hold(&file)?;
        Self::over(file)
    }

    /// Opens an existing file.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::over(open_for_reading(path)?)
    }

    fn over(file: File) -> io::Result<Self> {
        let entries = u32::try_from(file.metadata()?.len() / E::LEN as u64).unwrap_or(u32::MAX);
        let (written, unwritten) = (AtomicU32::new(entries), Mutex::default());
        Ok(Self { file, entries: AtomicU32::new(entries), written, unwritten })
    }

    pub fn len(&self) -> u32 {
        self.entries.load(Ordering::Acquire)
    }

    /// Whether the file is a whole number of entries.
    pub fn is_whole(&self) -> io::Result<bool> {
        Ok(self.file.metadata()?.len() == self.written_bytes())
    }

    fn written_bytes(&self) -> u64 {
        u64::from(self.written.load(Ordering::Acquire)) * E::LEN as u64
    }

    /// Appends `entries`, which follow the last one in order, and publishes them. On failure none of them is there.
    pub fn append(&self, entries: &[E]) -> io::Result<()> {
        let (before, after) = {
            let mut unwritten = self.unwritten.lock();
            let before = unwritten.len();
            unwritten.extend_from_slice(entries);
            (before, unwritten.len())
        };
        if after > E::UNWRITTEN_MAX
            && let Err(error) = self.write()
        {
            self.unwritten.lock().truncate(before);
            return Err(error);
        }
        self.entries.fetch_add(u32::try_from(entries.len()).unwrap_or(u32::MAX), Ordering::AcqRel);
        Ok(())
    }

    /// Writes what is only in memory; readers go on meanwhile.
    pub fn write(&self) -> io::Result<()> {
        let entries = self.unwritten.lock().clone();
        let mut bytes = Vec::with_capacity(entries.len() * E::LEN);
        entries.iter().for_each(|entry| entry.write(&mut bytes));
        self.file.write_all_at(&bytes, self.written_bytes())?;
        let mut unwritten = self.unwritten.lock();
        self.written.fetch_add(u32::try_from(entries.len()).unwrap_or(u32::MAX), Ordering::AcqRel);
        unwritten.drain(..entries.len());
        Ok(())
    }

    /// Replaces everything in the file.
    pub fn replace(&self, entries: &[E]) -> io::Result<()> {
        {
            let mut unwritten = self.unwritten.lock();
            unwritten.clear();
            self.entries.store(0, Ordering::Release);
            self.written.store(0, Ordering::Release);
            self.file.set_len(0)?;
        }
        self.append(entries)
    }

    /// Makes all entries durable.
    pub fn sync(&self) -> io::Result<()> {
        self.write()?;
        self.file.sync_data()
    }

    pub fn last(&self) -> io::Result<Option<E>> {
        match self.len() {
            0 => Ok(None),
            count => self.get(count - 1).map(Some),
        }
    }

    /// The last entry for which `pred` holds; it must hold for a prefix of the entries.
    pub fn last_where(&self, pred: impl Fn(&E) -> bool) -> io::Result<Option<E>> {
        let Page { first, entries } = self.page_at_end_of(&pred)?;
        match (entries.partition_point(pred), first) {
            (0, 0) => Ok(None),
            (0, first) => self.get(first - 1).map(Some),
            (count, _) => Ok(entries.get(count - 1).copied()),
        }
    }

    /// Hands out the entries after those for which `pred` holds, in order, until `take` has enough; `pred` must hold
    /// for a prefix of the entries.
    pub fn each_after(&self, pred: impl Fn(&E) -> bool, mut take: impl FnMut(E) -> ControlFlow<()>) -> io::Result<()> {
        let Page { first, entries } = self.page_at_end_of(&pred)?;
        let (skipped, mut next) = (entries.partition_point(pred), first + entries.len() as u32);
        let mut page = entries.get(skipped..).unwrap_or_default().to_vec();
        loop {
            if page.into_iter().any(|entry| take(entry).is_break()) || next >= self.len() {
                return Ok(());
            }
            let end = self.len().min(next + page_entries::<E>());
            page = self.range(next, end)?;
            next = end;
        }
    }

    /// A page of entries in which `pred` ceases to hold, or before which or at whose end it does. It is read at once: a
    /// read for each step of the search took a tenth of the time of fetches from many small logs.
    fn page_at_end_of(&self, pred: impl Fn(&E) -> bool) -> io::Result<Page<E>> {
        let (mut low, mut high) = (0, self.len());
        while high - low > page_entries::<E>() {
            let middle = low + (high - low) / 2;
            if pred(&self.get(middle)?) { low = middle + 1 } else { high = middle }
        }
        Ok(Page { first: low, entries: self.range(low, high)? })
    }

    /// All entries up to the first that does not read well, and whether that is all of the file.
    pub fn sound(&self) -> io::Result<(Vec<E>, bool)> {
        let mut bytes = vec![0; usize::try_from(self.file.metadata()?.len()).unwrap_or(usize::MAX)];
        self.file.read_exact_at(&mut bytes, 0)?;
        let entries: Vec<_> = bytes.chunks(E::LEN).map_while(E::read).collect();
        let whole = entries.len() * E::LEN == bytes.len();
        Ok((entries, whole))
    }

    fn get(&self, index: u32) -> io::Result<E> {
        self.range(index, index + 1)?.pop().ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The entries `from..until`, which are there.
    fn range(&self, from: u32, until: u32) -> io::Result<Vec<E>> {
        let (mut in_file, mut in_memory) = (until, Vec::new());
        if until > self.written.load(Ordering::Acquire) {
            let unwritten = self.unwritten.lock();
            // They may have been written since.
            let written = self.written.load(Ordering::Acquire);
            in_file = written.clamp(from, until);
            let before = in_file.saturating_sub(written) as usize;
            let wanted = unwritten.get(before..before + (until - in_file) as usize);
            in_memory = wanted.ok_or(io::ErrorKind::InvalidInput)?.to_vec();
        }
        let mut bytes = vec![0; (in_file - from) as usize * E::LEN];
        self.file.read_exact_at(&mut bytes, u64::from(from) * E::LEN as u64)?;
        let mut entries: Vec<_> = bytes.chunks(E::LEN).map_while(E::read).collect();
        entries.append(&mut in_memory);
        Ok(entries)
    }
}

/// How many a page holds.
const fn page_entries<E: Entry>() -> u32 {
    (PAGE_BYTES / E::LEN) as u32
}

/// Neighbouring entries.
struct Page<E> {
    /// The number of the first one.
    first: u32,
    entries: Vec<E>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(number: u32) -> OffsetEntry {
        OffsetEntry { offset: number * 10, position: number * 100 }
    }

    proptest! {
        /// Against a list; syncs and restarts in between, with and without a crash.
        #[test]
        fn what_was_appended_is_found(steps in prop::collection::vec((0_u8..5, 1_u32..20), 1..60)) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("index");
            let mut index = IndexFile::open_writable(&path).unwrap();
            let (mut count, mut synced) = (0, 0);
            for (step, more) in steps {
                match step {
                    0..3 => {
                        let entries: Vec<_> = (count..count + more).map(entry).collect();
                        index.append(&entries).unwrap();
                        count += more;
                    }
                    3 => {
                        index.sync().unwrap();
                        synced = count;
                        prop_assert!(index.is_whole().unwrap());
                    }
                    _ => {
                        index = IndexFile::open_writable(&path).unwrap();
                        prop_assert!((synced..=count).contains(&index.len()));
                        prop_assert!(count - index.len() <= OffsetEntry::UNWRITTEN_MAX as u32);
                        count = index.len();
                    }
                }
                prop_assert_eq!((index.len(), index.last().unwrap()), (count, count.checked_sub(1).map(entry)));
                for wanted in 0..=count {
                    let found = index.last_where(|entry| entry.offset < wanted * 10).unwrap();
                    prop_assert_eq!(found, wanted.checked_sub(1).map(entry));
                }
                let mut rest = Vec::new();
                let take = |entry| {
                    rest.push(entry);
                    ControlFlow::Continue(())
                };
                index.each_after(|entry| entry.offset < count / 2 * 10, take).unwrap();
                prop_assert_eq!(rest, (count / 2..count).map(entry).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn readers_find_entries_while_they_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let index = IndexFile::open_writable(&dir.path().join("index")).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| (0..2000).for_each(|number| index.append(&[entry(number)]).unwrap()));
            while index.len() < 2000 {
                let count = index.len();
                let last = index.last_where(|entry| entry.offset < count * 10).unwrap();
                assert_eq!(last, count.checked_sub(1).map(entry));
            }
        });
    }
}
