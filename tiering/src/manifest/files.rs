//! The data files of a manifest: a tree whose nodes are the stored parts, shared between versions.
//!
//! ```text
//! parts   [ level 2 ][ level 2 ][ level 1 ][ level 1 ] ... [ level 0 ][ level 0 ] ...     levels never rise
//! tail                                                                      [ file ][ file ] ...
//!
//! a part of level 0 holds files, a part of level n holds parts of level n - 1
//! ```
//!
//! This is the right edge of a tree of which only full nodes are stored: new files come to the tail. When the tail
//! holds twice [`PART_FILES`], the oldest [`PART_FILES`] become a part; when a level has twice [`PART_FANOUT`] parts,
//! the oldest [`PART_FANOUT`] become one of the next level. Batches kept raw, each an entry of its own within its file,
//! fill tail and part as well: [`PART_RAW_BATCHES`] of them do. So the edge, which is what a version object holds,
//! stays below `2 * PART_FILES` files, `2 * PART_RAW_BATCHES` batches and `2 * PART_FANOUT` references per level,
//! whatever the history.
//!
//! # Invariants
//! 1. Files are in offset order without gaps over parts and tail.
//! 2. A node is never changed once it is shared. A change copies the nodes on its path and shares the rest.
//! 3. A part is a copy of its object, less what lies below the log start: raising that forgets entries in memory and
//!    rewrites nothing. The object keeps listing them, and whoever reads it leaves them out.
//! 4. A part without an object was made by the change under way; committing names it.

mod iter;
mod nodes;

use std::ops::Index;
use std::sync::Arc;

use thermocline_ingest::model::{Offset, Timestamp};

use super::{DataFile, ObjectRef, PartRef, RAW_BATCHES_MAX};
pub use iter::Files;
pub use nodes::{FileGroup, FileNode};

/// Files that move into one part; the tail holds between one and two times as many once it is full.
pub const PART_FILES: usize = 64;
/// Batches kept raw that fill a part before it has as many files: several files' worth.
pub const PART_RAW_BATCHES: usize = 4 * RAW_BATCHES_MAX;
/// Parts that move into one part of the next level.
pub const PART_FANOUT: usize = 32;
/// Highest level of a part: some 4 billion files. Also bounds how deep a reader follows what a bucket says.
pub const PART_LEVEL_MAX: u8 = 5;
/// A part is joined with its neighbour when a change leaves it with less than this fraction of a full one.
const JOIN_FRACTION: usize = 4;

/// A manifest's files in offset order. Cheap to clone: clones share their parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileList {
    /// offset order, levels never rise
    parts: Vec<Arc<Part>>,
    tail: Vec<Arc<DataFile>>,
}

/// A node of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    stored: Option<PartRef>,
    level: u8,
    /// of what it holds in memory
    base_offset: Offset,
    last_offset: Offset,
    min_timestamp: Timestamp,
    max_timestamp: Timestamp,
    files: usize,
    /// Files without a split.
    unindexed: usize,
    entries: Entries,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entries {
    Files(Vec<Arc<DataFile>>),
    Parts(Vec<Arc<Part>>),
}

impl FileList {
    pub(super) fn new(parts: Vec<Arc<Part>>, tail: Vec<Arc<DataFile>>) -> Self {
        Self { parts, tail }
    }

    pub fn len(&self) -> usize {
        self.parts.iter().map(|part| part.files).sum::<usize>() + self.tail.len()
    }

    pub fn is_empty(&self) -> bool {
        self.first().is_none()
    }

    pub fn first(&self) -> Option<&Arc<DataFile>> {
        self.iter().next()
    }

    pub fn last(&self) -> Option<&Arc<DataFile>> {
        self.tail.last().or_else(|| self.parts.last()?.last_file())
    }

    pub fn get(&self, index: usize) -> Option<&Arc<DataFile>> {
        self.iter_from(index).next()
    }

    pub fn iter(&self) -> Files<'_> {
        self.iter_from(0)
    }

    /// How many files at the start satisfy `is_before`, which must hold for all files before some point and for none
    /// after it. Looks at a logarithm of the files.
    pub fn partition_point(&self, is_before: impl Fn(&DataFile) -> bool) -> usize {
        let is_wholly = |part: &Part| part.last_file().is_some_and(|file| is_before(file));
        let (mut parts, mut before) = (&self.parts, 0);
        loop {
            let whole = parts.partition_point(|part| is_wholly(part));
            before += parts.iter().take(whole).map(|part| part.files).sum::<usize>();
            match parts.get(whole).map(|part| &part.entries) {
                Some(Entries::Parts(inner)) => parts = inner,
                Some(Entries::Files(files)) => return before + files.partition_point(|file| is_before(file)),
                None => return before + self.tail.partition_point(|file| is_before(file)),
            }
        }
    }

    pub(super) fn push(&mut self, file: Arc<DataFile>) {
        self.tail.push(file);
    }

    /// Forgets the files that end below `start`, and tells `drop_object` of every object that nobody names any more.
    pub(super) fn drop_below(&mut self, start: Offset, drop_object: &mut impl FnMut(&ObjectRef)) {
        drop_parts_below(&mut self.parts, start, drop_object);
        drop_files_below(&mut self.tail, start, drop_object);
    }

    /// Puts `file` in the place of the files that cover exactly its offsets; the caller has checked that there are
    /// some.
    pub(super) fn replace(&mut self, file: Arc<DataFile>, drop_object: &mut impl FnMut(&ObjectRef)) {
        let (base, last) = (file.base_offset, file.last_offset);
        let in_tail = self.tail.first().is_some_and(|old| old.base_offset <= last);
        loop {
            let first = self.parts.partition_point(|part| part.last_offset < base);
            let mut end = self.parts.partition_point(|part| part.base_offset <= last);
            if first == end {
                return replace_files(&mut self.tail, file, drop_object);
            }
            // Between the two ends of the range everything goes.
            let covered = (first + 1)..if in_tail { end } else { end - 1 };
            if !covered.is_empty() {
                end -= covered.len();
                self.parts.drain(covered).for_each(|part| part.drop_all(drop_object));
            }
            let level = |index: usize| self.parts.get(index).map(|part| part.level);
            if !in_tail && level(first) == level(end - 1) {
                let level = level(first);
                let run = self.parts.partition_point(|part| Some(part.level) > level)
                    ..self.parts.partition_point(|part| Some(part.level) >= level);
                let mut siblings = Entries::Parts(self.parts.drain(run.clone()).collect());
                siblings.replace(file, drop_object);
                if let Entries::Parts(siblings) = siblings {
                    self.parts.splice(run.start..run.start, siblings);
                }
                return;
            }
            // The range goes on in a lower level: what begins it comes down, one level at a time.
            let part = self.parts.remove(first);
            part.drop_own(drop_object);
            match &part.entries {
                Entries::Parts(inner) => drop(self.parts.splice(first..first, inner.iter().cloned())),
                Entries::Files(files) => drop(self.tail.splice(0..0, files.iter().cloned())),
            }
        }
    }

    /// Moves old entries of the edge into parts, as many as are due.
    pub(super) fn seal(&mut self) {
        while let Some(oldest) = self.due() {
            self.parts.extend(Part::of(Entries::Files(self.tail.drain(..oldest).collect())));
        }
        for level in 0..PART_LEVEL_MAX {
            loop {
                let first = self.parts.partition_point(|part| part.level > level);
                let end = self.parts.partition_point(|part| part.level >= level);
                if end - first < 2 * PART_FANOUT {
                    break;
                }
                let oldest = self.parts.drain(first..first + PART_FANOUT).collect();
                self.parts.splice(first..first, Part::of(Entries::Parts(oldest)));
            }
        }
    }

    /// How many files of the tail are due to become a part.
    fn due(&self) -> Option<usize> {
        let raw_batches: usize = self.tail.iter().map(|file| file.raw_batches()).sum();
        if self.tail.len() < 2 * PART_FILES && raw_batches < 2 * PART_RAW_BATCHES {
            return None;
        }
        let mut raw_batches = 0;
        let fills = self.tail.iter().position(|file| {
            raw_batches += file.raw_batches();
            raw_batches >= PART_RAW_BATCHES
        });
        Some(fills.map_or(PART_FILES, |at| PART_FILES.min(at + 1)))
    }

    /// Calls `name` for every part without an object, the inner ones first, and keeps what it says.
    pub(super) fn name_parts<E>(&mut self, name: &mut impl FnMut(u8, &Entries) -> Result<PartRef, E>) -> Result<(), E> {
        self.parts.iter_mut().try_for_each(|part| name_part(part, name))
    }

    /// What a version object holds of the parts; those without an object are left out.
    pub(super) fn part_refs(&self) -> impl Iterator<Item = &PartRef> {
        self.parts.iter().filter_map(|part| part.stored.as_ref())
    }

    pub(super) fn tail(&self) -> &[Arc<DataFile>] {
        &self.tail
    }

    /// The objects of all parts.
    pub(super) fn part_objects(&self) -> Vec<&ObjectRef> {
        let mut objects = Vec::new();
        let mut open: Vec<&Arc<Part>> = self.parts.iter().collect();
        while let Some(part) = open.pop() {
            objects.extend(part.stored.as_ref().map(|stored| &stored.object));
            if let Entries::Parts(inner) = &part.entries {
                open.extend(inner);
            }
        }
        objects
    }
}

impl Part {
    /// A part as its object says, less what lies below the log start; `None` where that is everything.
    pub(super) fn stored(stored: PartRef, entries: Entries) -> Option<Arc<Self>> {
        let mut part = Self::of(entries)?;
        Arc::make_mut(&mut part).stored = Some(stored);
        Some(part)
    }

    pub(super) fn object(&self) -> Option<&PartRef> {
        self.stored.as_ref()
    }

    /// A part that has no object yet; `None` of nothing.
    fn of(entries: Entries) -> Option<Arc<Self>> {
        let (level, base_offset, last_offset) = match &entries {
            Entries::Files(files) => (0, files.first()?.base_offset, files.last()?.last_offset),
            Entries::Parts(parts) => (parts.first()?.level + 1, parts.first()?.base_offset, parts.last()?.last_offset),
        };
        let (files, unindexed, min_timestamp, max_timestamp) = match &entries {
            Entries::Files(files) => {
                let min = files.iter().map(|file| file.min_timestamp).min()?;
                (files.len(), nodes::unindexed(files), min, files.iter().map(|file| file.max_timestamp).max()?)
            }
            Entries::Parts(parts) => {
                let (min, max) =
                    (parts.iter().map(|part| part.min_timestamp), parts.iter().map(|part| part.max_timestamp));
                let files = parts.iter().map(|part| part.files).sum();
                (files, parts.iter().map(|part| part.unindexed).sum(), min.min()?, max.max()?)
            }
        };
        let stored = None;
        Some(Arc::new(Self {
            stored,
            level,
            base_offset,
            last_offset,
            min_timestamp,
            max_timestamp,
            files,
            unindexed,
            entries,
        }))
    }

    fn last_file(&self) -> Option<&Arc<DataFile>> {
        match &self.entries {
            Entries::Files(files) => files.last(),
            Entries::Parts(parts) => parts.last()?.last_file(),
        }
    }

    fn drop_own(&self, drop_object: &mut impl FnMut(&ObjectRef)) {
        if let Some(stored) = &self.stored {
            drop_object(&stored.object);
        }
    }

    fn drop_all(&self, drop_object: &mut impl FnMut(&ObjectRef)) {
        self.drop_own(drop_object);
        match &self.entries {
            Entries::Files(files) => files.iter().flat_map(|file| file.objects()).for_each(&mut *drop_object),
            Entries::Parts(parts) => parts.iter().for_each(|part| part.drop_all(drop_object)),
        }
    }
}

impl Entries {
    /// See [`FileList::replace`]. What this leaves too small is joined with its neighbour, what is too large is split.
    fn replace(&mut self, file: Arc<DataFile>, drop_object: &mut impl FnMut(&ObjectRef)) {
        let parts = match self {
            Self::Files(files) => return replace_files(files, file, drop_object),
            Self::Parts(parts) => parts,
        };
        let first = parts.partition_point(|part| part.last_offset < file.base_offset);
        let end = parts.partition_point(|part| part.base_offset <= file.last_offset);
        let taken: Vec<_> = parts.drain(first..end).collect();
        let Some(mut opened) = taken.first().map(|part| part.entries.clone()) else { return };
        for (at, part) in taken.iter().enumerate() {
            let is_last = at + 1 == taken.len();
            match at {
                0 => part.drop_own(drop_object),
                _ if is_last => {
                    part.drop_own(drop_object);
                    opened.append(&part.entries);
                }
                _ => part.drop_all(drop_object),
            }
        }
        opened.replace(file, drop_object);
        let mut at = first;
        if opened.is_small() && at > 0 {
            at -= 1;
            let neighbour = parts.remove(at);
            neighbour.drop_own(drop_object);
            let right = std::mem::replace(&mut opened, neighbour.entries.clone());
            opened.append(&right);
        } else if opened.is_small() && at < parts.len() {
            let neighbour = parts.remove(at);
            neighbour.drop_own(drop_object);
            opened.append(&neighbour.entries);
        }
        parts.splice(at..at, opened.into_parts());
    }

    fn append(&mut self, right: &Self) {
        match (self, right) {
            (Self::Files(files), Self::Files(more)) => files.extend(more.iter().cloned()),
            (Self::Parts(parts), Self::Parts(more)) => parts.extend(more.iter().cloned()),
            // Siblings are of one level.
            _ => {}
        }
    }

    fn is_small(&self) -> bool {
        match self {
            Self::Files(files) => files.len() < PART_FILES / JOIN_FRACTION,
            Self::Parts(parts) => parts.len() < PART_FANOUT / JOIN_FRACTION,
        }
    }

    /// One part, or two where one would be more than twice a full one.
    fn into_parts(self) -> impl Iterator<Item = Arc<Part>> {
        let (left, right) = match self {
            Self::Files(mut files) if files.len() > 2 * PART_FILES => {
                let right = files.split_off(files.len() / 2);
                (Self::Files(files), Self::Files(right))
            }
            Self::Parts(mut parts) if parts.len() > 2 * PART_FANOUT => {
                let right = parts.split_off(parts.len() / 2);
                (Self::Parts(parts), Self::Parts(right))
            }
            whole => (whole, Self::Files(Vec::new())),
        };
        [left, right].into_iter().filter_map(Part::of)
    }
}

fn replace_files(files: &mut Vec<Arc<DataFile>>, file: Arc<DataFile>, drop_object: &mut impl FnMut(&ObjectRef)) {
    let first = files.partition_point(|old| old.last_offset < file.base_offset);
    let end = files.partition_point(|old| old.base_offset <= file.last_offset);
    files.splice(first..end, [file]).for_each(|old| old.objects().for_each(&mut *drop_object));
}

fn drop_files_below(files: &mut Vec<Arc<DataFile>>, start: Offset, drop_object: &mut impl FnMut(&ObjectRef)) {
    let gone = files.partition_point(|file| file.last_offset < start);
    files.drain(..gone).for_each(|file| file.objects().for_each(&mut *drop_object));
}

fn drop_parts_below(parts: &mut Vec<Arc<Part>>, start: Offset, drop_object: &mut impl FnMut(&ObjectRef)) {
    let gone = parts.partition_point(|part| part.last_offset < start);
    parts.drain(..gone).for_each(|part| part.drop_all(drop_object));
    let Some(first) = parts.first_mut().filter(|part| part.base_offset < start) else { return };
    let mut entries = first.entries.clone();
    match &mut entries {
        Entries::Files(files) => drop_files_below(files, start, drop_object),
        Entries::Parts(inner) => drop_parts_below(inner, start, drop_object),
    }
    // Its object stays as it is: it is read with the same log start.
    if let Some(mut part) = Part::of(entries) {
        Arc::make_mut(&mut part).stored = first.stored.clone();
        *first = part;
    }
}

fn name_part<E>(part: &mut Arc<Part>, name: &mut impl FnMut(u8, &Entries) -> Result<PartRef, E>) -> Result<(), E> {
    if part.stored.is_some() {
        return Ok(());
    }
    let part = Arc::make_mut(part);
    if let Entries::Parts(inner) = &mut part.entries {
        inner.iter_mut().try_for_each(|inner| name_part(inner, name))?;
    }
    part.stored = Some(name(part.level, &part.entries)?);
    Ok(())
}

/// All in the tail, as before the first commit.
impl FromIterator<Arc<DataFile>> for FileList {
    fn from_iter<I: IntoIterator<Item = Arc<DataFile>>>(files: I) -> Self {
        Self { parts: Vec::new(), tail: files.into_iter().collect() }
    }
}

/// Like that of a slice: an index at or beyond the length panics. Where that can be, use [`FileList::get`].
impl Index<usize> for FileList {
    type Output = Arc<DataFile>;

    fn index(&self, index: usize) -> &Arc<DataFile> {
        let Some(file) = self.get(index) else { panic!("file {index} of {}", self.len()) };
        file
    }
}

#[cfg(test)]
mod tests;
