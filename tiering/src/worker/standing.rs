//! What a start owes the store before ports open, and what a topic's first commit needs there.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use thermocline_ingest::topics::Topic;

use super::partition::PartitionArchive;
use super::{LOADS_IN_FLIGHT, SUPERSEDED_MAX, Tiering, TieringError, blocking};
use crate::epoch::{self, Standing};
use crate::manifest::{Change, CommitOutcome, Fenced, ManifestError, ManifestHead};
use crate::paths;
use crate::restore::TopicFile;
use crate::store::StoreError;

/// What the store says about a topic besides its records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Description {
    partitions: i32,
    configs: BTreeMap<String, String>,
}

impl Tiering {
    /// Set once another broker has taken over the store: this one serves reads, and archives nothing any more.
    pub fn fenced(&self) -> Option<&Fenced> {
        self.manifests.fenced()
    }

    /// Draws the consequences of what this start is to the store. Must be called after [`Self::open`], before ports
    /// open.
    pub async fn assume(&self, standing: &Standing) -> Result<(), TieringError> {
        match standing {
            Standing::Restart { .. } => return Ok(()),
            Standing::TakeOver { .. } => {}
            Standing::Replaced { by, .. } => {
                let _ = self.manifests.fence(self.store.url().to_owned(), *by);
                return Ok(());
            }
        }
        let archives: Vec<_> = self.partitions.read().values().cloned().collect();
        futures::stream::iter(archives)
            .map(async |archive| self.claim(&archive).await)
            .buffer_unordered(LOADS_IN_FLIGHT)
            .try_collect()
            .await
    }

    /// A commit that changes nothing but the epoch, so that the next commit of an older broker is refused.
    async fn claim(&self, archive: &Arc<PartitionArchive>) -> Result<(), TieringError> {
        if !archive.partition.config().remote_storage_enable && archive.manifest().version == 0 {
            return Ok(());
        }
        let failed = |source| {
            let partition = archive.partition.topic_partition().clone();
            TieringError::Claim { partition, source }
        };
        self.describe_topic(archive).await.map_err(failed)?;
        let (guard, mut head) = archive.acquire(&self.manifests).await.map_err(failed)?;
        for _ in 0..SUPERSEDED_MAX {
            match self.manifests.commit(&head, Change::Claim).await.map_err(failed)? {
                CommitOutcome::Superseded(newest) => head = newest,
                CommitOutcome::Committed(next) => {
                    archive.publish(next.manifest());
                    // The older broker may have archived more since this was loaded.
                    self.follow_archive(archive, &next).await?;
                    archive.release(guard, next);
                    return Ok(());
                }
            }
        }
        let partition = archive.path.root().to_string();
        Err(failed(ManifestError::Unsettled { partition, count: SUPERSEDED_MAX }))
    }

    /// Makes the local log agree with the archive: it starts no lower, and goes on no lower than that ends.
    pub(super) async fn follow_archive(
        &self,
        archive: &PartitionArchive,
        head: &ManifestHead,
    ) -> Result<(), TieringError> {
        let (partition, manifest) = (&archive.partition, head.manifest());
        // Only after the metadata store was lost or restored from an older copy.
        self.raise_log_start(partition, manifest.log_start_offset).await?;
        let end = manifest.next_offset();
        let log_end = partition.log_end_offset();
        if end > log_end {
            let name = partition.topic_partition();
            tracing::info!(partition = %name, %log_end, archived_through = %end, "the local log goes on where the archive ends");
            let started = blocking(partition, move |partition| partition.start_over_at(end)).await?;
            started.map_err(|source| TieringError::Log { partition: name.clone(), source })?;
        }
        Ok(())
    }

    /// Before the first commit to a partition: makes sure that no other broker has taken over, and writes what the
    /// topic is beside its manifests, unless the store says so already. See `restore.rs`.
    pub(super) async fn describe_topic(&self, archive: &PartitionArchive) -> Result<(), ManifestError> {
        let (name, id) = (&archive.path.topic, archive.path.topic_id);
        let Some(topic) = self.topics.by_id(id) else { return Ok(()) };
        let partitions = i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX);
        let wanted = Description { partitions, configs: topic.config().overrides.clone() };
        if archive.is_described_as(&wanted) {
            return Ok(());
        }
        let root = || paths::topic_root(name, id).to_string();
        let failed = |source: StoreError| ManifestError::Store { partition: root(), source };
        if let Some(newer) = epoch::newest_claim(&self.store).await.map_err(failed)?
            && newer > self.manifests.epoch()
        {
            return Err(self.manifests.fence(root(), newer));
        }
        let stored = TopicFile::read(&self.store, name, id).await.map_err(failed)?;
        let as_stored = |file: &TopicFile| file.partitions == wanted.partitions && file.configs == wanted.configs;
        if !stored.as_ref().is_some_and(as_stored) {
            if let Some(newer) = stored.as_ref().filter(|file| file.epoch > self.manifests.epoch()) {
                return Err(self.manifests.fence(root(), newer.epoch));
            }
            self.manifests.check_not_fenced(root)?;
            let file = TopicFile {
                partitions: wanted.partitions,
                configs: wanted.configs.clone(),
                created_at_ms: stored.map_or(self.clock.now(), |file| file.created_at_ms),
                epoch: self.manifests.epoch(),
                ..TopicFile::new(name.clone(), id)
            };
            let key = paths::topic_file(name, id);
            let corrupt =
                |error: serde_json::Error| ManifestError::Corrupt { key: key.to_string(), reason: error.to_string() };
            self.store.put(&key, file.encode().map_err(corrupt)?).await.map_err(failed)?;
        }
        archive.described_as(wanted);
        Ok(())
    }
    /// After a topic grew: what the store says of it follows, if it says anything yet. Where that fails, the next
    /// commit of the topic makes good for it.
    pub(super) async fn describe_again(&self, topic: &Topic) {
        let mut archives = topic.partitions.iter().map(|partition| self.archive_of(partition));
        let Some(archive) = archives.find(|archive| archive.manifest().version > 0) else { return };
        if self.fenced().is_some() {
            return;
        }
        if let Err(error) = self.describe_topic(&archive).await {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(topic = %topic.name, error, "the store does not know yet that the topic grew");
        }
    }
}
