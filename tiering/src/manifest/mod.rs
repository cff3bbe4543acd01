//! The manifest of a partition: which objects exist. Everything else in the bucket is nonexistent.
//!
//! The manifest is a chain of immutable versions, `manifest/<version, 20 digits>.json`. A commit creates the next one
//! and fails if somebody else already has: create-if-absent is the compare-and-swap. The newest version is the truth.
//! Layout of the objects: `manifest/format.rs`.
//!
//! # Invariants
//! 1. Versions only grow; an existing version is never rewritten. The janitor deletes old ones, oldest first, one at a
//!    time, and never the newest.
//! 2. Whatever the newest version names exists, was read back and verified before the version was created.
//! 3. Files are contiguous: `files[i].last_offset + 1 == files[i + 1].base_offset`.
//! 4. Every file ends at or above `log_start_offset`; raising it drops the files below. Objects that a version drops
//!    are listed in it as retired until the janitor has deleted them, which it does when no reader can be at them.
//! 5. `epoch` never falls from one version to the next. A broker commits only onto versions of its own or a lower
//!    epoch.
//! 6. Parts are immutable, cover a prefix of the files in order and never overlap the tail (`manifest/files.rs`).
//!
//! # Fencing
//! A broker raises its epoch at each start (`epoch.rs`). An ordinary restart writes no manifest: partitions that are
//! never archived again cost nothing, and each is claimed by its first commit, which carries the higher epoch. A
//! broker that takes over from another one claims every partition at once with a commit that changes only the epoch.
//! From then on a broker of a lower epoch that still believes in an older version finds the next one taken, reads the
//! epoch in it and is fenced for good.
//!
//! # Listings may lag
//! A listing is a state of some time ago, so it is only where looking begins. The newest version is found by asking
//! for the next one by name until there is none. That could stop at a hole that the janitor made; but it deletes the
//! oldest first, so if a version's successor is gone, it is gone itself, and reading it afterwards shows that.
//! By the same order a commit knows that its version was never there before: a broker that slept very long might find
//! "its" next version free again because it was deleted, but then the one it committed onto was deleted earlier. So a
//! commit that was created counts only if its predecessor is still there and it has no successor. The first version
//! has no predecessor; there a listing must show it alone, and the one assumption about listings is that they do show
//! some version of a partition that has had so many that the janitor came by.
//!
//! # Crashes
//!
//! | died here | then |
//! |---|---|
//! | before the new version is created | the uploaded objects and parts are orphans, collected when old enough |
//! | created, answer lost | the same bytes are found by the retry and count as created; after a restart the version is loaded like any other |
//! | created, predecessor and successor not yet looked for | as above: the newest version is whatever the next load finds |
//! | created, before the local copy may go | the hot copy stays a little longer |
//! | log start raised in the metadata, not here | the janitor commits it in its next round |
//! | some steps of a long expiry committed | the janitor goes on in its next round |
//! | files dropped, objects not yet deleted | they are retired: deleted when that was long enough ago |
//! | retired objects deleted, not yet released | deleted again, which is no error, and released |
//! | some partitions claimed after a take-over | the next start claims all of them (`epoch.rs`) |
//!
//! # What grows
//! Neither a version nor a commit. A version holds fewer than twice [`PART_FILES`] files in full, with fewer than twice
//! [`PART_RAW_BATCHES`] batches kept raw, fewer than twice [`PART_FANOUT`] references per level of parts, and at most
//! [`RETIRED_MAX`] retired objects. A commit writes the version, every [`PART_FILES`]th one a part, and so on in
//! levels; a merge writes the parts on one path. Memory and the time of loading grow with the files: loading reads
//! every part once.

mod files;
mod format;
mod store;

use std::collections::HashSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thermocline_ingest::model::{Offset, PartitionId, Timestamp, TopicId, TopicName};

use crate::paths::PartitionPath;
use crate::split::SplitOptions;
pub use files::{FileGroup, FileList, FileNode, Files, PART_FANOUT, PART_FILES, PART_RAW_BATCHES};
pub use format::{FORMAT_VERSION, PartRef};
pub use store::{CommitOutcome, Fenced, ManifestStore};

/// Files that one commit expires at most; a longer expiry goes in steps.
pub const EXPIRED_FILES_PER_COMMIT: usize = 256;
/// Batches that a new data file keeps raw at most: the manifest lists each.
pub const RAW_BATCHES_MAX: usize = 1024;
/// Retired objects that a version lists at most. Until the janitor has deleted some, nothing more is dropped.
pub const RETIRED_MAX: usize = 4096;
/// Objects that a dropped file retires at most: its own three, and its share of the parts that go with it.
const RETIRED_PER_FILE: usize = 4;

/// An immutable object of the cold tier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRef {
    /// full key in the store
    pub key: String,
    pub size_bytes: u64,
    /// xxh3-128 of the object's bytes, lower-case hex
    pub xxh3: String,
}

/// One archived range of offsets: a Parquet file, its split, and (rarely) batches kept raw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFile {
    pub base_offset: Offset,
    /// inclusive
    pub last_offset: Offset,
    /// rows in the Parquet file; = last - base + 1 unless batches are kept raw or dropped
    pub rows: u64,
    /// Offsets that nobody reads any more: of transactions that were aborted, and of markers. A program that does not
    /// know the field refuses the file, for want of rows.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dropped: u64,
    pub min_timestamp: Timestamp,
    pub max_timestamp: Timestamp,
    /// bytes of the sealed log this range took (as produced, compressed)
    pub log_bytes: u64,
    /// digest over the records' content, lower-case hex (see verify.rs)
    pub digest: String,
    pub data: ObjectRef,
    /// None where search.index = off
    pub split: Option<ObjectRef>,
    /// How the split was made; `None` where there is none, and where a program made it that did not say so, or said
    /// what this one does not know.
    #[serde(default, deserialize_with = "SplitOptions::deserialize_known", skip_serializing_if = "Option::is_none")]
    pub indexed: Option<SplitOptions>,
    /// Batches that could not be decoded, concatenated byte for byte in one object; served to Fetch as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw: Option<RawBatches>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The batches of a data file's range that are not in its Parquet file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawBatches {
    pub object: ObjectRef,
    pub batches: Vec<RawBatch>,
}

/// One batch within the raw object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawBatch {
    pub base_offset: Offset,
    /// inclusive
    pub last_offset: Offset,
    /// where it starts in the object
    pub position: u64,
    pub size_bytes: u64,
    /// why it could not be decoded
    pub reason: String,
}

/// What a partition's cold tier consists of at one version. Immutable snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub topic: TopicName,
    pub topic_id: TopicId,
    pub partition: PartitionId,
    /// 0 for a partition that was never archived; the first commit makes 1
    pub version: u64,
    pub epoch: u64,
    /// smallest readable offset of the partition as far as the archive knows
    pub log_start_offset: Offset,
    /// offset order, contiguous: files[i].last + 1 == files[i+1].base
    pub files: FileList,
}

/// A manifest with what a commit onto it needs besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestHead {
    manifest: Arc<Manifest>,
    /// oldest first
    retired: Vec<Retired>,
}

/// What a commit changes.
#[derive(Clone, Debug)]
pub enum Change {
    /// One more verified file at the end.
    Append(Arc<DataFile>),
    /// Everything below is gone: files that end below it are dropped. At most [`EXPIRED_FILES_PER_COMMIT`] at once:
    /// where there are more, the log start rises to the first that stays, and the change is to be made again.
    RaiseLogStart(Offset),
    /// One verified file in the place of neighbouring files that cover exactly its offsets and have these data keys.
    Merge { file: Arc<DataFile>, replaces: Vec<String> },
    /// Another verified split for a file, or none; the file must be as it was.
    Reindex { was: Arc<DataFile>, split: Option<ObjectRef>, indexed: Option<SplitOptions> },
    /// The objects of these keys were deleted; they need not be remembered as retired any more.
    Release(HashSet<String>),
    /// Nothing but the epoch, so that brokers of lower ones are refused from now on.
    Claim,
}

/// An object that an earlier version named and this one does not: readers of that version may still be at it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retired {
    pub object: ObjectRef,
    /// when the version that dropped it was made
    pub at: Timestamp,
}

/// Why a manifest could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("manifest of {partition}")]
    Store {
        partition: String,
        #[source]
        source: crate::store::StoreError,
    },
    #[error("manifest object {key} is damaged: {reason}; restore it from a copy of the bucket")]
    Corrupt { key: String, reason: String },
    #[error(
        "{what} is archived by a broker of epoch {epoch}, this one has {own_epoch} and only reads; stop one of the two, \
         or start this one on an empty data directory if it is the one to stay"
    )]
    Fenced { what: String, epoch: u64, own_epoch: u64 },
    #[error("{partition}: a file that starts at offset {base} cannot follow an archive that ends at {expected}")]
    NotContiguous { partition: String, base: Offset, expected: Offset },
    #[error(
        "{partition}: {count} retired objects exceed the limit of {RETIRED_MAX}; they are deleted tiering.retired_min_age after they were dropped, try again then"
    )]
    TooManyRetired { partition: String, count: usize },
    #[error("{partition}: the files at offsets {base} to {last} are not those that were read; others came first")]
    Replaced { partition: String, base: Offset, last: Offset },
    #[error("{partition}: {count} newer manifests were created while the newest was being read; try again")]
    Unsettled { partition: String, count: usize },
}

impl Manifest {
    /// Of a partition that was never archived.
    pub fn empty(path: &PartitionPath) -> Self {
        Self {
            topic: path.topic.clone(),
            topic_id: path.topic_id,
            partition: path.partition,
            version: 0,
            epoch: 0,
            log_start_offset: Offset::ZERO,
            files: FileList::default(),
        }
    }

    pub fn path(&self) -> PartitionPath {
        PartitionPath::new(self.topic.clone(), self.topic_id, self.partition)
    }

    /// exclusive; ZERO when empty
    pub fn archived_through(&self) -> Offset {
        self.files.last().map_or(Offset::ZERO, |f| f.last_offset.next())
    }

    /// The file that holds `offset`, or the first one after it.
    pub fn file_for(&self, offset: Offset) -> Option<&Arc<DataFile>> {
        self.files.get(self.files.partition_point(|file| file.last_offset < offset))
    }

    /// The offset the next file is expected to start at.
    pub fn next_offset(&self) -> Offset {
        self.archived_through().max(self.log_start_offset)
    }

    fn append(&mut self, file: Arc<DataFile>) -> Result<(), ManifestError> {
        let expected = self.next_offset();
        let fits = match self.files.is_empty() {
            // Before the first file anything may be gone, but nothing may be missing.
            true => file.base_offset <= expected && file.last_offset >= self.log_start_offset,
            false => file.base_offset == self.archived_through(),
        };
        if !fits || file.last_offset < file.base_offset {
            return Err(not_contiguous(self, &file, expected));
        }
        self.files.push(file);
        Ok(())
    }

    /// Whether there are files that cover exactly the offsets of `file`.
    fn check_merge(&self, file: &DataFile, replaces: &[String]) -> Result<(), ManifestError> {
        let first = self.files.partition_point(|old| old.last_offset < file.base_offset);
        let end = self.files.partition_point(|old| old.base_offset <= file.last_offset);
        let last = end.checked_sub(1).filter(|last| *last >= first).and_then(|last| self.files.get(last));
        let range = self.files.get(first).zip(last).map(|(old, last)| (old.base_offset, last.last_offset));
        if range != Some((file.base_offset, file.last_offset)) {
            return Err(not_contiguous(self, file, range.map_or(self.next_offset(), |(base, _)| base)));
        }
        let merged = (first..end).filter_map(|at| self.files.get(at));
        if merged.map(|old| &old.data.key).eq(replaces) {
            return Ok(());
        }
        Err(replaced(self, file))
    }
}

impl DataFile {
    /// Messages, those of batches that are kept raw included.
    pub fn records(&self) -> u64 {
        self.base_offset.distance_to(self.last_offset.next()).saturating_sub(self.dropped)
    }

    /// Batches that are kept raw.
    pub fn raw_batches(&self) -> usize {
        self.raw.as_ref().map_or(0, |raw| raw.batches.len())
    }

    /// The objects this file consists of.
    pub fn objects(&self) -> impl Iterator<Item = &ObjectRef> {
        [Some(&self.data), self.split.as_ref(), self.raw.as_ref().map(|raw| &raw.object)].into_iter().flatten()
    }
}

impl ManifestHead {
    pub fn empty(path: &PartitionPath) -> Self {
        Self { manifest: Arc::new(Manifest::empty(path)), retired: Vec::new() }
    }

    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// Every object that this version names: data, splits, raw batches, its own parts, and what is retired.
    pub fn objects(&self) -> impl Iterator<Item = &ObjectRef> {
        let files = self.manifest.files.iter().flat_map(|file| file.objects());
        files.chain(self.manifest.files.part_objects()).chain(self.retired.iter().map(|retired| &retired.object))
    }

    /// What earlier versions named and this one does not, oldest first; still in the store.
    pub fn retired(&self) -> &[Retired] {
        &self.retired
    }

    /// How many files one commit may drop now; none until the janitor has deleted what was retired.
    pub fn droppable_files(&self) -> usize {
        (RETIRED_MAX.saturating_sub(self.retired.len()) / RETIRED_PER_FILE).min(EXPIRED_FILES_PER_COMMIT)
    }

    /// The next version, in memory: new parts have no objects yet. Pure.
    fn apply(&self, change: Change, epoch: u64, now: Timestamp) -> Result<Self, ManifestError> {
        let mut next = Manifest { version: self.manifest.version + 1, epoch, ..Manifest::clone(&self.manifest) };
        let mut retired = self.retired.clone();
        let mut retire = |object: &ObjectRef| retired.push(Retired { object: object.clone(), at: now });
        match change {
            Change::Append(file) => next.append(file)?,
            Change::RaiseLogStart(start) => {
                let start = self.next_log_start(start)?;
                next.log_start_offset = start;
                next.files.drop_below(start, &mut retire);
            }
            Change::Merge { file, replaces } => {
                next.check_merge(&file, &replaces)?;
                next.files.replace(file, &mut retire);
                if retired.len() > RETIRED_MAX {
                    return Err(self.too_many_retired(retired.len()));
                }
            }
            Change::Reindex { was, split, indexed } => {
                next.check_merge(&was, std::slice::from_ref(&was.data.key))?;
                if next.file_for(was.base_offset) != Some(&was) {
                    return Err(replaced(&next, &was));
                }
                let file = Arc::new(DataFile { split, indexed, ..DataFile::clone(&was) });
                let stays = file.clone();
                next.files.replace(file, &mut |object: &ObjectRef| {
                    if !stays.objects().any(|kept| kept.key == object.key) {
                        retire(object);
                    }
                });
                if retired.len() > RETIRED_MAX {
                    return Err(self.too_many_retired(retired.len()));
                }
            }
            Change::Release(keys) => retired.retain(|old| !keys.contains(&old.object.key)),
            Change::Claim => {}
        }
        next.files.seal();
        Ok(Self { manifest: Arc::new(next), retired })
    }

    /// How far towards `start` one commit may raise the log start.
    fn next_log_start(&self, start: Offset) -> Result<Offset, ManifestError> {
        let files = &self.manifest.files;
        let droppable = self.droppable_files();
        let start = match files.get(droppable) {
            Some(stays) if stays.base_offset < start => {
                if droppable == 0 {
                    return Err(self.too_many_retired(self.retired.len() + RETIRED_PER_FILE));
                }
                stays.base_offset
            }
            _ => start,
        };
        Ok(start.max(self.manifest.log_start_offset))
    }

    fn too_many_retired(&self, count: usize) -> ManifestError {
        ManifestError::TooManyRetired { partition: self.manifest.path().root().to_string(), count }
    }
}

fn not_contiguous(manifest: &Manifest, file: &DataFile, expected: Offset) -> ManifestError {
    let partition = manifest.path().root().to_string();
    ManifestError::NotContiguous { partition, base: file.base_offset, expected }
}

fn replaced(manifest: &Manifest, file: &DataFile) -> ManifestError {
    let partition = manifest.path().root().to_string();
    ManifestError::Replaced { partition, base: file.base_offset, last: file.last_offset }
}

#[cfg(test)]
mod tests;
