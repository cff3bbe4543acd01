//! The manifest of a partition: which objects exist. Everything else in the bucket is nonexistent.
//!
//! The manifest is a chain of immutable versions, `manifest/<version, 20 digits>.json`. A commit creates the next one
//! and fails if somebody else already has: create-if-absent is the compare-and-swap. The newest version is the truth.
//! Layout of the objects: `manifest/format.rs`.
//!
//! # Invariants
//! 1. Versions only grow; an existing version is never rewritten, the newest is never deleted.
//! 2. Whatever the newest version names exists, was read back and verified before the version was created.
//! 3. Files are contiguous: `files[i].last_offset + 1 == files[i + 1].base_offset`.
//! 4. Every file ends at or above `log_start_offset`; raising it drops the files below. Objects that a version drops
//!    are listed in it as retired until the janitor has deleted them, which it does when no reader can be at them.
//! 5. `epoch` never falls from one version to the next. A broker commits only onto versions of its own or a lower epoch.
//! 6. Sealed parts are immutable, cover a prefix of the files in order and never overlap the tail.
//!
//! # Fencing
//! A broker raises its epoch at each start. It does not write at start: partitions that are never archived again cost
//! nothing. It claims a partition with its first commit, which carries the higher epoch. From then on a broker of a
//! lower epoch that still believes in an older version finds the next one taken, reads the epoch in it and is fenced
//! for good. Old versions are deleted in time, so a broker that slept very long might find "its" version free again;
//! therefore a commit that succeeded looks once more whether it is the newest, and is void if it is not.
//!
//! # Crashes
//!
//! | died here | then |
//! |---|---|
//! | before the new version is created | the uploaded objects and part are orphans, collected when old enough |
//! | created, answer lost | the same bytes are found by the retry and count as created; after a restart the version is loaded like any other |
//! | created, before the local copy may go | the hot copy stays a little longer |
//! | log start raised in the metadata, not here | the janitor commits it in its next round |
//! | files dropped, objects not yet deleted | they are retired: deleted when that was long enough ago |
//! | retired objects deleted, not yet released | deleted again, which is no error, and released |
//!
//! # What grows
//! A version holds the newest files in full (fewer than twice [`PART_FILES`]) and one reference of about 250 bytes for
//! every [`PART_FILES`] older ones. At 128 MiB of log per file that is 32 KiB per TiB and partition; a second level
//! of parts would make it logarithmic and is not built yet. Loading reads every part once.

mod format;
mod store;

use std::collections::HashSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thermocline_ingest::model::{Offset, PartitionId, Timestamp, TopicId, TopicName};

use crate::paths::PartitionPath;
pub use format::{FORMAT_VERSION, PartRef};
pub use store::{CommitOutcome, ManifestStore};

/// Files that move into one part; the tail holds between one and two times as many once it is full.
pub const PART_FILES: usize = 64;

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
    /// rows in the Parquet file; = last - base + 1 unless batches are kept raw
    pub rows: u64,
    pub min_timestamp: Timestamp,
    pub max_timestamp: Timestamp,
    /// bytes of the sealed log this range took (as produced, compressed)
    pub log_bytes: u64,
    /// digest over the records' content, lower-case hex (see verify.rs)
    pub digest: String,
    pub data: ObjectRef,
    /// None where search.index = off
    pub split: Option<ObjectRef>,
    /// Batches that could not be decoded, concatenated byte for byte in one object; served to Fetch as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw: Option<RawBatches>,
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
    pub files: Vec<Arc<DataFile>>,
}

/// A manifest with what a commit onto it needs: where its older entries are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestHead {
    manifest: Arc<Manifest>,
    sealed: Vec<PartRef>,
    /// oldest first
    retired: Vec<Retired>,
}

/// What a commit changes.
#[derive(Clone, Debug)]
pub enum Change {
    /// One more verified file at the end.
    Append(Arc<DataFile>),
    /// Everything below is gone: files that end below it are dropped.
    RaiseLogStart(Offset),
    /// One verified file in the place of neighbouring files that cover exactly its offsets and have these data keys.
    Merge { file: Arc<DataFile>, replaces: Vec<String> },
    /// The objects of these keys were deleted; they need not be remembered as retired any more.
    Release(HashSet<String>),
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
        "{partition} is archived by a broker of epoch {epoch}, this one has {own_epoch}; \
         stop one of the two, or restart this one if it is the one to stay"
    )]
    Fenced { partition: String, epoch: u64, own_epoch: u64 },
    #[error("{partition}: a file that starts at offset {base} cannot follow an archive that ends at {expected}")]
    NotContiguous { partition: String, base: Offset, expected: Offset },
    #[error("{partition}: the files at offsets {base} to {last} are not those that were merged; others came first")]
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
            files: Vec::new(),
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
        let at = self.files.partition_point(|f| f.last_offset < offset);
        self.files.get(at)
    }

    /// The offset the next file is expected to start at.
    pub fn next_offset(&self) -> Offset {
        self.archived_through().max(self.log_start_offset)
    }
}

impl DataFile {
    /// The objects this file consists of.
    pub fn objects(&self) -> impl Iterator<Item = &ObjectRef> {
        [Some(&self.data), self.split.as_ref(), self.raw.as_ref().map(|raw| &raw.object)].into_iter().flatten()
    }
}

impl ManifestHead {
    pub fn empty(path: &PartitionPath) -> Self {
        Self { manifest: Arc::new(Manifest::empty(path)), sealed: Vec::new(), retired: Vec::new() }
    }

    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// Every object that this version names: data, splits, raw batches, its own parts, and what is retired.
    pub fn objects(&self) -> impl Iterator<Item = &ObjectRef> {
        let files = self.manifest.files.iter().flat_map(|file| file.objects());
        let parts = self.sealed.iter().map(|part| &part.object);
        files.chain(parts).chain(self.retired.iter().map(|retired| &retired.object))
    }

    /// What earlier versions named and this one does not, oldest first; still in the store.
    pub fn retired(&self) -> &[Retired] {
        &self.retired
    }

    /// The files that the version itself holds.
    fn tail(&self) -> &[Arc<DataFile>] {
        let sealed_end = self.sealed.last().map_or(Offset::ZERO, |part| part.last_offset.next());
        let at = self.manifest.files.partition_point(|file| file.base_offset < sealed_end);
        self.manifest.files.get(at..).unwrap_or_default()
    }

    /// The next version, in memory. Pure.
    fn apply(&self, change: Change, epoch: u64, now: Timestamp) -> Result<Self, ManifestError> {
        let mut next = Manifest { version: self.manifest.version + 1, epoch, ..Manifest::clone(&self.manifest) };
        let (mut sealed, mut retired) = (self.sealed.clone(), self.retired.clone());
        let mut retire = |object: &ObjectRef| retired.push(Retired { object: object.clone(), at: now });
        match change {
            Change::Append(file) => {
                let expected = next.next_offset();
                let fits = match next.files.is_empty() {
                    // Before the first file anything may be gone, but nothing may be missing.
                    true => file.base_offset <= expected && file.last_offset >= next.log_start_offset,
                    false => file.base_offset == next.archived_through(),
                };
                if !fits || file.last_offset < file.base_offset {
                    return Err(not_contiguous(&next, &file, expected));
                }
                next.files.push(file);
            }
            Change::RaiseLogStart(start) => {
                next.log_start_offset = next.log_start_offset.max(start);
                let start = next.log_start_offset;
                let gone = next.files.partition_point(|file| file.last_offset < start);
                next.files.drain(..gone).for_each(|file| file.objects().for_each(&mut retire));
                let gone = sealed.partition_point(|part| part.last_offset < start);
                sealed.drain(..gone).for_each(|part| retire(&part.object));
            }
            Change::Merge { file, replaces } => {
                let first = next.files.partition_point(|old| old.last_offset < file.base_offset);
                let end = next.files.partition_point(|old| old.base_offset <= file.last_offset);
                let merged = next.files.get(first..end).unwrap_or_default();
                let range = merged.first().zip(merged.last()).map(|(old, last)| (old.base_offset, last.last_offset));
                if range != Some((file.base_offset, file.last_offset)) {
                    let expected = range.map_or(next.next_offset(), |(base, _)| base);
                    return Err(not_contiguous(&next, &file, expected));
                }
                if !merged.iter().map(|old| &old.data.key).eq(&replaces) {
                    let partition = next.path().root().to_string();
                    return Err(ManifestError::Replaced { partition, base: file.base_offset, last: file.last_offset });
                }
                // Parts are immutable and cover a prefix: the files of the first one that changes, and of all after
                // it, are in the tail again.
                let kept = sealed.partition_point(|part| part.last_offset < file.base_offset);
                sealed.drain(kept..).for_each(|part| retire(&part.object));
                next.files.splice(first..end, [file]).for_each(|old| old.objects().for_each(&mut retire));
            }
            Change::Release(keys) => retired.retain(|old| !keys.contains(&old.object.key)),
        }
        Ok(Self { manifest: Arc::new(next), sealed, retired })
    }
}

fn not_contiguous(manifest: &Manifest, file: &DataFile, expected: Offset) -> ManifestError {
    let partition = manifest.path().root().to_string();
    ManifestError::NotContiguous { partition, base: file.base_offset, expected }
}

#[cfg(test)]
mod tests;
