//! The only code that deletes objects. It never deletes what the newest manifest of a partition names.
//!
//! | what goes | when |
//! |---|---|
//! | what the manifest lists as retired: objects of expired or merged files, replaced parts | `tiering.retired_min_age` after the commit that dropped them |
//! | old manifest versions | all but the newest [`MANIFEST_VERSIONS_KEPT`], oldest first |
//! | old epoch claims | all but the newest [`EPOCHS_KEPT`] |
//! | orphans: named like our objects, in a live partition's folders, not named by its newest manifest (`janitor/sweep.rs`) | when older than `tiering.orphan_min_age` by the store's own date |
//! | staging files that a crash left in a local folder | the same |
//! | everything of a deleted topic (`janitor/removal.rs`) | once it is noted as deleted, or marked with a tombstone; the tombstone goes last |
//!
//! # Invariants
//! 1. An orphan is deleted while the partition's commits are locked out, after the newest manifest was asked for
//!    in the store under that lock, and only if it was listed before: it is then not about to be named by this broker.
//!    `orphan_min_age` keeps clear of the uploads of another one.
//! 2. A manifest of a higher epoch than ours means that we were replaced: nothing of that partition is deleted.
//! 3. Objects whose names this program would not give are left alone.
//! 4. Every step is bounded: files dropped by one commit and objects retired at a time (`EXPIRED_FILES_PER_COMMIT` and
//!    `RETIRED_MAX` of the manifest), objects deleted in one go ([`DELETES_PER_ROUND`]). What is left is for the next
//!    round.
//!
//! # Crashes
//!
//! | died here | then |
//! |---|---|
//! | files dropped from the manifest, objects not deleted | they are listed as retired, and deleted when it is time |
//! | some of the files below the log start dropped | the next round drops more; readers cut at the log start anyway |
//! | retired objects deleted, the manifest still lists them | deleted again, which is no error, then released |
//! | topic deleted, nothing done here yet | the deletion is noted in the metadata; taken up at the next start |
//! | tombstone written, objects deleted or not | deletion goes on, by the note, or by any broker whose catalogue lacks the topic |
//! | everything deleted, note not taken back | nothing is found, and the note is taken back |
//!
//! # Left alone
//! Folders of topics that are neither in the catalogue, nor noted, nor marked are never touched, for they may belong to
//! another broker. Parts of unfinished multipart uploads are in no listing that the library offers: a bucket needs a
//! lifecycle rule that aborts incomplete multipart uploads after a day or so. An upload that was given up and that the
//! store completes only after its topic was removed stays behind in the folder of that topic.

mod removal;
mod sweep;

use std::collections::HashSet;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use object_store::path::Path as ObjectPath;
use thermocline_config::TieringConfig;
use thermocline_ingest::clock::Clock;
use thermocline_ingest::model::{Offset, Timestamp};

use crate::manifest::{Change, CommitOutcome, ManifestError, ManifestHead, ManifestStore};
use crate::metrics::TieringMetrics;
use crate::paths::{self, PartitionPath};
use crate::store::{ColdStore, StoreError};
pub use removal::Removal;
pub use sweep::{Seen, Sweep};

/// Manifest versions of a partition that stay, the newest included.
pub const MANIFEST_VERSIONS_KEPT: usize = 8;
/// Epoch claims that stay, ours included: the newest tells who has the store, the others are for people.
pub const EPOCHS_KEPT: usize = 8;
/// Objects of one partition or topic deleted before others have their turn.
pub const DELETES_PER_ROUND: usize = 1024;
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

impl JanitorError {
    /// Whether the store is at fault, and not what it holds: others will fail like this one.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Store(source) | Self::Manifest(ManifestError::Store { source, .. }) => source.is_transient(),
            Self::Manifest(_) => false,
        }
    }
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

    /// Drops data files that end below `log_start` from the manifest, oldest first; their objects are retired by that.
    /// Drops fewer where that would retire too many at a time. `publish` is called after each commit.
    pub async fn expire(
        &self,
        head: &mut ManifestHead,
        log_start: Offset,
        publish: &(dyn Fn(&ManifestHead) + Send + Sync),
    ) -> Result<(), JanitorError> {
        loop {
            let below = head.manifest().files.partition_point(|file| file.last_offset < log_start);
            // What one commit drops of it.
            let expired = below.min(head.droppable_files());
            if expired == 0 || !self.commit(head, Change::RaiseLogStart(log_start), publish).await? {
                return Ok(());
            }
            self.metrics.expired_files.inc_by(expired as u64);
        }
    }

    /// Deletes what was retired long enough ago, then takes it off the manifest's list.
    pub async fn delete_retired(
        &self,
        head: &mut ManifestHead,
        publish: &(dyn Fn(&ManifestHead) + Send + Sync),
    ) -> Result<(), JanitorError> {
        let due = head.retired().iter().filter(|old| self.is_due(old.at)).take(DELETES_PER_ROUND);
        let keys: HashSet<String> = due.map(|old| old.object.key.clone()).collect();
        if keys.is_empty() {
            return Ok(());
        }
        self.delete_all(keys.iter().map(|key| ObjectPath::from(key.as_str())).collect()).await?;
        self.commit(head, Change::Release(keys), publish).await?;
        Ok(())
    }

    /// Whether what was retired at `at` may be deleted now.
    pub fn is_due(&self, at: Timestamp) -> bool {
        self.clock.now().0.saturating_sub(at.0) >= self.ages.retired_ms
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
        versions.truncate((versions.len() + 1).saturating_sub(MANIFEST_VERSIONS_KEPT).min(DELETES_PER_ROUND));
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
