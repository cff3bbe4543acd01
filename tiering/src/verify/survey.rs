//! The whole store, checked from outside: no broker is asked, only what the bucket says counts.
//!
//! A partition is walked by offset: check the file that holds the next offset, go on after its last one. Where a file
//! turns out to have been replaced, the walk goes on from the same offset with the manifest that says so. Files that
//! were committed after the walk of their partition began are left to the next survey.
//!
//! Objects that no manifest names are counted, not judged: they are uploads under way, or leftovers that the janitor
//! collects. The folders are listed before the manifest is loaded, so that nothing counts as unreferenced that was
//! committed in between.

use std::collections::HashSet;
use std::num::NonZeroU64;
use std::sync::Arc;

use object_store::ObjectMeta;
use object_store::path::Path as ObjectPath;
use thermocline_ingest::clock::Clock;
use thermocline_ingest::model::{Offset, TopicName};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{Damage, FileCheck, VerifyError, check_named, file_bytes, load_newest};
use crate::background::Background;
use crate::budget::{Budget, Rates};
use crate::manifest::{DataFile, ManifestHead, ManifestStore, ObjectRef, RawBatch};
use crate::paths::{self, ObjectKind, PartitionPath};
use crate::store::{ColdStore, StoreError};

/// Commits that may come in between without a file being checked, before a partition is given up as too restless.
const REPLACED_MAX: usize = 8;
/// A survey commits nothing, so its epoch fences nobody.
const NO_EPOCH: u64 = 0;

/// Which files are checked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// of all files, 0 to 1
    pub share: f64,
    /// the same seed chooses the same files
    pub seed: u64,
}

/// What is surveyed, and how.
pub struct SurveyOptions {
    pub store: ColdStore,
    pub clock: Arc<dyn Clock>,
    pub sample: Sample,
    /// bytes per second; None = as fast as it goes
    pub rate: Option<NonZeroU64>,
}

/// Checks what a store holds. Writes nothing.
pub struct Survey {
    store: ColdStore,
    manifests: ManifestStore,
    sample: Sample,
    background: Background,
    budget: Option<Budget>,
}

/// Why the store could not be surveyed, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    #[error("looking for topics")]
    List(#[from] StoreError),
    #[error("checking {partition}")]
    Check {
        partition: ObjectPath,
        #[source]
        source: VerifyError,
    },
    #[error("{partition}: its manifest changed {REPLACED_MAX} times while one file was checked; try again")]
    Restless { partition: ObjectPath },
}

/// What a partition's manifest names and what was found of it.
#[derive(Clone, Debug)]
pub struct PartitionReport {
    pub path: PartitionPath,
    /// of the manifest; 0 where there is none, or where it cannot be read
    pub version: u64,
    pub files: u64,
    /// less than `files` in a sample
    pub checked_files: u64,
    pub records: u64,
    /// of data, splits and raw objects
    pub bytes: u64,
    pub raw_batches: Vec<RawBatch>,
    pub unreferenced_objects: u64,
    pub unreferenced_bytes: u64,
    pub damage: Vec<Damage>,
}

impl Sample {
    fn takes(self, file: &DataFile) -> bool {
        let place = xxh3_64_with_seed(file.data.key.as_bytes(), self.seed);
        self.share >= 1.0 || (place as f64) < self.share * u64::MAX as f64
    }
}

impl Survey {
    pub fn new(options: SurveyOptions) -> Self {
        let SurveyOptions { store, clock, sample, rate } = options;
        let manifests = ManifestStore::new(store.clone(), NO_EPOCH, clock);
        let rates = |rate: NonZeroU64| Rates { bytes_per_second: rate.get(), requests_per_second: 0 };
        let budget = rate.map(|rate| Budget::new(rates(rate)));
        Self { store, manifests, sample, background: Background::unthrottled(1), budget }
    }

    /// Every partition that has a folder in the store, by topic; those of topics whose removal has begun are left out.
    pub async fn partitions(&self) -> Result<Vec<PartitionPath>, SurveyError> {
        let mut partitions = Vec::new();
        let (_, folders) = self.store.list_folder(&paths::topics_root()).await?;
        for (topic, id) in folders.iter().filter_map(paths::parse_topic_root) {
            let (objects, folders) = self.store.list_folder(&paths::topic_root(&topic, id)).await?;
            let tombstone = paths::tombstone(&topic, id);
            if objects.iter().all(|object| object.location != tombstone) {
                partitions.extend(folders.iter().filter_map(PartitionPath::of));
            }
        }
        let order = |path: &PartitionPath| -> (TopicName, _, _) { (path.topic.clone(), path.topic_id, path.partition) };
        partitions.sort_by_key(order);
        Ok(partitions)
    }

    /// Checks one partition. `progress` is called with the bytes of every file that was checked. Errors: the store did
    /// not answer; the report has what was found before that.
    pub async fn partition(
        &self,
        report: &mut PartitionReport,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), SurveyError> {
        let path = report.path.clone();
        let failed = |source: VerifyError| SurveyError::Check { partition: path.root(), source };
        let mut listed = Vec::new();
        for kind in ObjectKind::ALL {
            listed.extend(self.store.list_folder(&path.folder(kind)).await.map_err(|e| failed(e.into()))?.0);
        }
        let mut head = match load_newest(&self.store, &self.manifests, &path).await.map_err(failed)? {
            Ok(head) => head,
            Err(damage) => {
                report.damage.push(damage);
                return Ok(());
            }
        };
        report.describe(&head, &listed);
        let end = head.manifest().archived_through();
        let (mut next, mut replaced) = (Offset::ZERO, 0);
        while let Some(file) = head.manifest().file_for(next).filter(|file| file.base_offset < end).cloned() {
            if self.sample.takes(&file) {
                match check_named(&self.store, &self.background, &self.manifests, &path, &file, self.budget.as_ref())
                    .await
                {
                    Ok(FileCheck::Sound) => {}
                    Ok(FileCheck::Damaged(damage)) => report.damage.extend(damage),
                    Ok(FileCheck::Replaced(_)) if replaced >= REPLACED_MAX => {
                        return Err(SurveyError::Restless { partition: path.root() });
                    }
                    Ok(FileCheck::Replaced(newest)) => {
                        (head, replaced) = (newest, replaced + 1);
                        continue;
                    }
                    Err(error) => return Err(failed(error)),
                }
                replaced = 0;
                report.checked_files += 1;
                progress(file_bytes(&file));
            }
            next = file.last_offset.next();
        }
        Ok(())
    }
}

impl PartitionReport {
    /// Of a partition that is still to be checked.
    pub fn new(path: PartitionPath) -> Self {
        Self {
            path,
            version: 0,
            files: 0,
            checked_files: 0,
            records: 0,
            bytes: 0,
            raw_batches: Vec::new(),
            unreferenced_objects: 0,
            unreferenced_bytes: 0,
            damage: Vec::new(),
        }
    }

    /// `listed`: what lay in the partition's folders before the manifest was loaded.
    fn describe(&mut self, head: &ManifestHead, listed: &[ObjectMeta]) {
        let manifest = head.manifest();
        self.version = manifest.version;
        self.files = manifest.files.len() as u64;
        for file in &manifest.files {
            self.records += file.records();
            self.bytes += file_bytes(file);
            self.raw_batches.extend(file.raw.iter().flat_map(|raw| raw.batches.iter().cloned()));
        }
        let named: HashSet<ObjectPath> = head.objects().map(ObjectRef::path).collect();
        for object in listed {
            if !named.contains(&object.location) && self.path.parse_object(&object.location).is_some() {
                self.unreferenced_objects += 1;
                self.unreferenced_bytes += object.size;
            }
        }
    }
}

#[cfg(test)]
mod tests;
