//! The only code that deletes objects. It never deletes what the newest manifest of a partition names.
//!
//! | what goes | when |
//! |---|---|
//! | what the manifest lists as retired: objects of expired or merged files, replaced parts | `tiering.retired_min_age` after the commit that dropped them |
//! | old manifest versions | all but the newest [`MANIFEST_VERSIONS_KEPT`], oldest first |
//! | old epoch claims | all but the newest [`EPOCHS_KEPT`] |
//! | orphans: named like our objects, in a live partition's folders, not named by its newest manifest | when older than `tiering.orphan_min_age` by the store's own date |
//! | everything of a deleted topic | once it is marked with a tombstone; the tombstone goes last |
//!
//! # Invariants
//! 1. Orphans are listed first and the manifest is loaded from the store afterwards, both while the partition's
//!    commits are locked out: an object that the listing shows and no manifest names is not about to be named by this
//!    broker. `orphan_min_age` keeps clear of the uploads of another one.
//! 2. A manifest of a higher epoch than ours means that we were replaced: nothing of that partition is deleted.
//! 3. Objects whose names this program would not give are left alone.
//!
//! # Crashes
//!
//! | died here | then |
//! |---|---|
//! | files dropped from the manifest, objects not deleted | they are listed as retired, and deleted when it is time |
//! | retired objects deleted, the manifest still lists them | deleted again, which is no error, then released |
//! | topic deleted, tombstone not yet written | its objects stay behind: nothing in the bucket says that they may go |
//! | tombstone written | deletion goes on with the next sweep, by any broker whose catalogue lacks the topic |
//!
//! # Thin for now
//! Folders of topics that are neither in the catalogue nor marked are never touched, for they may belong to another
//! broker. Staging files of the local file system and incomplete multipart uploads are not visible to listings and
//! are not collected.

use std::collections::HashSet;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use object_store::ObjectMeta;
use object_store::path::Path as ObjectPath;
use thermocline_config::TieringConfig;
use thermocline_ingest::clock::Clock;
use thermocline_ingest::model::{Offset, TopicId, TopicName};

use crate::manifest::{Change, CommitOutcome, ManifestError, ManifestHead, ManifestStore, ObjectRef};
use crate::metrics::TieringMetrics;
use crate::paths::{self, ObjectKind, PartitionPath};
use crate::store::{ColdStore, StoreError};

/// Manifest versions of a partition that stay, the newest included.
pub const MANIFEST_VERSIONS_KEPT: usize = 8;
/// Epoch claims that stay, ours included: the newest tells who has the store, the others are for people.
pub const EPOCHS_KEPT: usize = 8;
/// Deletes under way at once.
const DELETES_IN_FLIGHT: usize = 8;

/// Why the janitor stopped; what it had not done yet it does in its next round.
#[derive(Debug, thiserror::Error)]
pub enum JanitorError {
    #[error("tidying the store")]
    Store(#[from] StoreError),
    #[error("tidying the store")]
    Manifest(#[from] ManifestError),
}

/// How old something must be before it goes, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct JanitorAges {
    /// an object that no manifest names, since it was written
    pub orphan_ms: i64,
    /// an object that a manifest has dropped, since it did
    pub retired_ms: i64,
}

impl From<&TieringConfig> for JanitorAges {
    fn from(config: &TieringConfig) -> Self {
        Self { orphan_ms: config.orphan_min_age.as_millis(), retired_ms: config.retired_min_age.as_millis() }
    }
}

/// Deletes what has become unreachable.
#[derive(Clone)]
pub struct Janitor {
    store: ColdStore,
    manifests: ManifestStore,
    clock: Arc<dyn Clock>,
    metrics: Arc<TieringMetrics>,
    ages: JanitorAges,
}

impl Janitor {
    pub fn new(
        store: ColdStore,
        manifests: ManifestStore,
        clock: Arc<dyn Clock>,
        metrics: Arc<TieringMetrics>,
        ages: JanitorAges,
    ) -> Self {
        Self { store, manifests, clock, metrics, ages }
    }

    /// Drops data files that end below `log_start` from the manifest, as many as one commit may; their objects are
    /// retired by that. `publish` is called after the commit.
    pub async fn expire(
        &self,
        head: &mut ManifestHead,
        log_start: Offset,
        publish: &(dyn Fn(&ManifestHead) + Send + Sync),
    ) -> Result<(), JanitorError> {
        let below = head.manifest().files.partition_point(|file| file.last_offset < log_start);
        let expired = below.min(head.droppable_files());
        if expired > 0 && self.commit(head, Change::RaiseLogStart(log_start), publish).await? {
            self.metrics.expired_files.inc_by(expired as u64);
        }
        Ok(())
    }

    /// Deletes what was retired long enough ago, then takes it off the manifest's list.
    pub async fn delete_retired(
        &self,
        head: &mut ManifestHead,
        publish: &(dyn Fn(&ManifestHead) + Send + Sync),
    ) -> Result<(), JanitorError> {
        let now = self.clock.now();
        let due = head.retired().iter().filter(|old| now.0.saturating_sub(old.at.0) >= self.ages.retired_ms);
        let keys: HashSet<String> = due.map(|old| old.object.key.clone()).collect();
        if keys.is_empty() {
            return Ok(());
        }
        self.delete_all(keys.iter().map(|key| ObjectPath::from(key.as_str())).collect()).await?;
        self.commit(head, Change::Release(keys), publish).await?;
        Ok(())
    }

    /// Whether the change was made; otherwise `head` is the newer manifest, and the next round decides again.
    async fn commit(
        &self,
        head: &mut ManifestHead,
        change: Change,
        publish: &(dyn Fn(&ManifestHead) + Send + Sync),
    ) -> Result<bool, JanitorError> {
        let (next, done) = match self.manifests.commit(head, change).await? {
            CommitOutcome::Superseded(newest) => (newest, false),
            CommitOutcome::Committed(next) => (next, true),
        };
        *head = next;
        publish(head);
        Ok(done)
    }

    /// Deletes old manifest versions. The caller holds the partition's commits.
    pub async fn trim_versions(&self, path: &PartitionPath) -> Result<(), JanitorError> {
        let Some((newest, epoch)) = self.manifests.newest(path).await? else { return Ok(()) };
        if epoch > self.manifests.epoch() {
            return Ok(());
        }
        let mut versions = self.manifests.versions(path).await?;
        versions.retain(|(version, _)| *version < newest);
        versions.truncate((versions.len() + 1).saturating_sub(MANIFEST_VERSIONS_KEPT));
        // Oldest first, one at a time: whoever looks for the newest version relies on it.
        for (_, meta) in versions {
            self.store.delete(&meta.location).await?;
        }
        Ok(())
    }

    /// Deletes old epoch claims, none that is newer than ours.
    pub async fn trim_epochs(&self) -> Result<(), JanitorError> {
        let (objects, _) = self.store.list_folder(&paths::epochs_root()).await?;
        let mut claims: Vec<u64> = objects.iter().filter_map(|meta| paths::parse_epoch(&meta.location)).collect();
        claims.retain(|epoch| *epoch <= self.manifests.epoch());
        claims.sort_unstable();
        claims.truncate(claims.len().saturating_sub(EPOCHS_KEPT));
        Ok(self.delete_all(claims.into_iter().map(paths::epoch).collect()).await?)
    }

    /// Deletes objects that no manifest names and that are old enough. The caller holds the partition's commits.
    pub async fn collect_orphans(&self, path: &PartitionPath) -> Result<(), JanitorError> {
        let mut listed = Vec::new();
        for kind in ObjectKind::ALL {
            listed.extend(self.store.list_folder(&path.folder(kind)).await?.0);
        }
        let newest = self.manifests.load(path).await?;
        if newest.manifest().epoch > self.manifests.epoch() {
            return Ok(());
        }
        let named: HashSet<ObjectPath> = newest.objects().map(ObjectRef::path).collect();
        let is_orphan = |meta: &ObjectMeta| {
            let age_ms = self.clock.now().0.saturating_sub(meta.last_modified.timestamp_millis());
            !named.contains(&meta.location)
                && path.parse_object(&meta.location).is_some()
                && age_ms >= self.ages.orphan_ms
        };
        let (mut orphans, mut bytes) = (Vec::new(), 0);
        for meta in listed.into_iter().filter(is_orphan) {
            bytes += meta.size;
            orphans.push(meta.location);
        }
        if !orphans.is_empty() {
            tracing::info!(partition = %path.root(), objects = orphans.len(), bytes, "collecting orphans");
            self.delete_all(orphans).await?;
            self.metrics.orphan_bytes.inc_by(bytes);
        }
        Ok(())
    }

    /// Marks a topic as deleted, then deletes what it has in the store. The caller has stopped its archive jobs.
    pub async fn remove_topic(&self, topic: &TopicName, id: TopicId) -> Result<(), JanitorError> {
        if self.store.list(&paths::topic_root(topic, id)).await?.is_empty() {
            return Ok(());
        }
        let mark = format!("{{\"format_version\":1,\"deleted_at_ms\":{}}}\n", self.clock.now());
        self.store.create(&paths::tombstone(topic, id), mark.into()).await?;
        self.finish_removal(topic, id).await
    }

    /// Goes on with deletions that were cut off. `is_live` says which topics exist.
    pub async fn finish_removals(&self, is_live: impl Fn(TopicId) -> bool) -> Result<(), JanitorError> {
        let (_, folders) = self.store.list_folder(&paths::topics_root()).await?;
        for (topic, id) in folders.iter().filter_map(paths::parse_topic_root) {
            if !is_live(id) && self.store.size_bytes(&paths::tombstone(&topic, id)).await?.is_some() {
                self.finish_removal(&topic, id).await?;
            }
        }
        Ok(())
    }

    async fn finish_removal(&self, topic: &TopicName, id: TopicId) -> Result<(), JanitorError> {
        let tombstone = paths::tombstone(topic, id);
        let objects = self.store.list(&paths::topic_root(topic, id)).await?;
        let keys = objects.into_iter().map(|meta| meta.location).filter(|key| *key != tombstone).collect();
        self.delete_all(keys).await?;
        Ok(self.store.delete(&tombstone).await?)
    }

    async fn delete_all(&self, keys: Vec<ObjectPath>) -> Result<(), StoreError> {
        futures::stream::iter(keys)
            .map(async |key| self.store.delete(&key).await)
            .buffer_unordered(DELETES_IN_FLIGHT)
            .try_collect::<()>()
            .await
    }
}

#[cfg(test)]
mod tests;
