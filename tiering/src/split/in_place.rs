//! A split in the object store, read where it lies: whatever reads it reads from memory, and never waits.
//!
//! Tantivy reads synchronously. A read that finds its bytes in memory (the footer, what the reader holds, the block
//! cache) returns them; any other is noted in [`Held`] and fails at once. The reader then fetches all that was noted, a
//! few requests side by side, and begins again. It makes headway every time, as what was fetched is held until the end,
//! whatever the cache keeps. Tantivy reads while it prepares a query and hardly while it walks the documents, so
//! beginning again is cheap; and a reader that first asks for everything it can think of needs few rounds.

use std::cell::RefCell;
use std::io;
use std::ops::Range;

use async_trait::async_trait;
use tantivy::HasLen;
use tantivy::directory::{FileHandle, OwnedBytes};

use super::SplitError;
use super::format::HotRanges;
use super::reader::out_of_range;
use crate::cache::BlockCache;
use crate::manifest::ObjectRef;

/// Ranges closer than this are fetched in one request: what a store sends while another request would be on its way.
const GAP_MAX: usize = 64 << 10;

/// What one reader holds of one split, and what it has looked for in vain.
#[derive(Debug, Default)]
pub struct Held {
    bytes: Vec<HeldRange>,
    missing: Vec<Range<usize>>,
}

#[derive(Debug)]
struct HeldRange {
    position: usize,
    bytes: OwnedBytes,
}

thread_local! {
    /// Of the reader that runs on this thread.
    static HELD: RefCell<Option<Held>> = const { RefCell::new(None) };
}

/// Puts back what was there before, also where the reader panics.
struct Entered<'a> {
    held: &'a mut Held,
    before: Option<Held>,
}

impl Held {
    /// Runs a reader of the split to which this belongs. It must not wait for anything: no other reader may run on
    /// this thread meanwhile.
    pub(super) fn enter<T>(&mut self, read: impl FnOnce() -> T) -> T {
        let held = std::mem::take(self);
        let before = HELD.with_borrow_mut(|current| current.replace(held));
        let _entered = Entered { held: self, before };
        read()
    }

    /// Whether the last reader lacked bytes; then its failure means nothing.
    pub fn lacks_bytes(&self) -> bool {
        !self.missing.is_empty()
    }

    /// Bytes that the next fetch will add.
    pub fn missing_bytes(&self) -> u64 {
        joined(self.missing.clone()).iter().map(|range| range.len() as u64).sum()
    }

    pub fn held_bytes(&self) -> u64 {
        self.bytes.iter().map(|held| held.bytes.len() as u64).sum()
    }

    /// Lets go of all that is held and counts it as missing.
    pub fn release(&mut self) {
        let held = self.bytes.drain(..).map(|held| held.position..held.position + held.bytes.len());
        self.missing.extend(held);
    }

    fn find(&self, range: &Range<usize>) -> Option<OwnedBytes> {
        let holds = |held: &&HeldRange| held.position <= range.start && range.end <= held.position + held.bytes.len();
        let held = self.bytes.iter().find(holds)?;
        Some(held.bytes.slice(range.start - held.position..range.end - held.position))
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let before = self.before.take();
        *self.held = HELD.with_borrow_mut(|current| std::mem::replace(current, before)).unwrap_or_default();
    }
}

/// Ascending and disjoint; near ones in one.
fn joined(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end.saturating_add(GAP_MAX) => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// The object of a split, for [`Held`] readers.
#[derive(Clone)]
pub(super) struct InPlace {
    pub blocks: BlockCache,
    pub object: ObjectRef,
    pub hot: HotRanges,
}

impl InPlace {
    /// Fetches what `held` lacks.
    pub async fn fetch(&self, held: &mut Held) -> Result<(), SplitError> {
        let missing = joined(std::mem::take(&mut held.missing));
        let ranges = missing.iter().map(|range| range.start as u64..range.end as u64).collect();
        let fetched = self.blocks.read_ranges(&self.object, ranges).await?;
        for (range, bytes) in missing.into_iter().zip(fetched) {
            if bytes.len() != range.len() {
                return Err(out_of_range(&range, range.start + bytes.len()).into());
            }
            held.bytes.push(HeldRange { position: range.start, bytes: owned(bytes) });
        }
        Ok(())
    }

    fn find(&self, range: &Range<usize>) -> Option<OwnedBytes> {
        let held = || HELD.with_borrow(|held| held.as_ref()?.find(range));
        let cached = || self.blocks.cached(&self.object, range.start as u64..range.end as u64).map(owned);
        self.hot.find(range).or_else(held).or_else(cached)
    }

    /// Notes that the reader of this thread lacks `range`.
    fn lacks(&self, range: Range<usize>) -> io::Error {
        let error = format!("bytes {}..{} of {} are not in memory", range.start, range.end, self.object.key);
        HELD.with_borrow_mut(|held| held.iter_mut().for_each(|held| held.missing.push(range.clone())));
        io::Error::new(io::ErrorKind::WouldBlock, error)
    }
}

pub(super) fn owned(bytes: bytes::Bytes) -> OwnedBytes {
    OwnedBytes::new(Vec::from(bytes))
}

impl std::fmt::Debug for InPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("InPlace").field(&self.object.key).finish()
    }
}

impl HasLen for InPlace {
    fn len(&self) -> usize {
        usize::try_from(self.object.size_bytes).unwrap_or(usize::MAX)
    }
}

#[async_trait]
impl FileHandle for InPlace {
    fn read_bytes(&self, range: Range<usize>) -> io::Result<OwnedBytes> {
        if range.is_empty() {
            return Ok(OwnedBytes::empty());
        }
        self.find(&range).ok_or_else(|| self.lacks(range))
    }

    /// Never completes where bytes are missing: who asks so wants to have everything noted that it would read at once.
    async fn read_bytes_async(&self, range: Range<usize>) -> io::Result<OwnedBytes> {
        match self.read_bytes(range) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::future::pending().await,
            read => read,
        }
    }
}

#[cfg(test)]
mod tests;
