//! Sparse indexes of a segment, in Kafka's format; big-endian entries, ascending, no header.
//!
//! ```text
//! <base>.index      8 bytes: last offset of a batch, relative to base, u32 | position of that batch, u32
//! <base>.timeindex 12 bytes: largest timestamp so far, i64 | last offset of the batch that has it, relative, u32
//! ```
//! An entry is written for the batch that comes after every `index.interval.bytes` of log, and one more timeindex entry
//! when the segment is sealed. An entry is a promise about a place, not about completeness: fewer entries make a lookup
//! slower, not wrong. Nothing is kept in memory; a lookup is a binary search with positioned reads in the page cache.

use std::fs::{File, OpenOptions};
use std::io;
use std::marker::PhantomData;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

/// Longest entry there is.
const ENTRY_LEN_MAX: usize = 40;

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
    fn write(self, out: &mut Vec<u8>);
    /// From exactly `LEN` bytes.
    fn read(bytes: &[u8]) -> Option<Self>;
}

impl Entry for OffsetEntry {
    const LEN: usize = 8;
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
    entries: AtomicU32,
    _entry: PhantomData<E>,
}

impl<E: Entry> IndexFile<E> {
    /// Opens or creates the file for appending. An incomplete entry at its end is not seen and will be overwritten.
    pub fn open_writable(path: &Path) -> io::Result<Self> {
        Self::over(OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?)
    }

    /// Opens an existing file.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::over(File::open(path)?)
    }

    fn over(file: File) -> io::Result<Self> {
        let entries = u32::try_from(file.metadata()?.len() / E::LEN as u64).unwrap_or(u32::MAX);
        Ok(Self { file, entries: AtomicU32::new(entries), _entry: PhantomData })
    }

    pub fn len(&self) -> u32 {
        self.entries.load(Ordering::Acquire)
    }

    /// Whether the file is a whole number of entries.
    pub fn is_whole(&self) -> io::Result<bool> {
        Ok(self.file.metadata()?.len() == u64::from(self.len()) * E::LEN as u64)
    }

    /// Appends `entries`, which follow the last one in order, and publishes them.
    pub fn append(&self, entries: &[E]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(entries.len() * E::LEN);
        entries.iter().for_each(|entry| entry.write(&mut bytes));
        let count = self.len();
        self.file.write_all_at(&bytes, u64::from(count) * E::LEN as u64)?;
        let added = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        self.entries.store(count.saturating_add(added), Ordering::Release);
        Ok(())
    }

    /// Replaces everything in the file.
    pub fn replace(&self, entries: &[E]) -> io::Result<()> {
        self.entries.store(0, Ordering::Release);
        self.file.set_len(0)?;
        self.append(entries)
    }

    pub fn sync(&self) -> io::Result<()> {
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
        let (mut low, mut high) = (0, self.len());
        let mut best = None;
        while low < high {
            let middle = low + (high - low) / 2;
            let entry = self.get(middle)?;
            if pred(&entry) {
                best = Some(entry);
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(best)
    }

    /// Hands out the entries after those for which `pred` holds, in order, until `take` has enough; `pred` must hold
    /// for a prefix of the entries.
    pub fn each_after(&self, pred: impl Fn(&E) -> bool, mut take: impl FnMut(E) -> ControlFlow<()>) -> io::Result<()> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if pred(&self.get(middle)?) { low = middle + 1 } else { high = middle }
        }
        for index in low..self.len() {
            if take(self.get(index)?).is_break() {
                break;
            }
        }
        Ok(())
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
        let mut bytes = [0; ENTRY_LEN_MAX];
        let bytes = &mut bytes[..E::LEN];
        self.file.read_exact_at(bytes, u64::from(index) * E::LEN as u64)?;
        E::read(bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}
