//! Deleted topics: everything they have in the store goes.
//!
//! The tombstone is written before the first object goes and is the last to go, so that a removal that was cut off is
//! taken up by whoever finds it. What starts one is the note that the broker's metadata keeps of each deletion until
//! the store is clean; so a topic that was deleted while the store was down, or right before a crash, is removed all
//! the same.
//!
//! A broker that was replaced finds out by its commits, and a removal makes none. So before each round it looks for
//! newer epochs: what it knows as deleted may be what its successor archives.

use futures::TryStreamExt;
use object_store::path::Path as ObjectPath;
use thermocline_ingest::model::{TopicId, TopicName};

use super::{DELETES_PER_ROUND, Janitor, JanitorError};
use crate::epoch;
use crate::paths;

/// How far a removal has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// The store has nothing of the topic any more.
    Done,
    /// [`DELETES_PER_ROUND`] objects were deleted, and there are more.
    Unfinished,
}

impl Janitor {
    /// Marks a topic as deleted, then deletes what it has in the store. The caller has stopped its archive jobs.
    pub async fn remove_topic(&self, topic: &TopicName, id: TopicId) -> Result<Removal, JanitorError> {
        let root = paths::topic_root(topic, id);
        self.check_not_replaced(&root).await?;
        if self.store.list_stream(&root).try_next().await?.is_some() {
            let mark = format!("{{\"format_version\":1,\"deleted_at_ms\":{}}}\n", self.clock.now());
            self.store.create(&paths::tombstone(topic, id), mark.into()).await?;
        }
        self.finish_removal(topic, id).await
    }

    /// Goes on with deletions that were cut off. `is_live` says which topics exist.
    pub async fn finish_removals(&self, is_live: impl Fn(TopicId) -> bool) -> Result<(), JanitorError> {
        let (_, folders) = self.store.list_folder(&paths::topics_root()).await?;
        for (topic, id) in folders.iter().filter_map(paths::parse_topic_root) {
            if !is_live(id) && self.store.size_bytes(&paths::tombstone(&topic, id)).await?.is_some() {
                while self.finish_removal(&topic, id).await? == Removal::Unfinished {}
            }
        }
        Ok(())
    }

    async fn finish_removal(&self, topic: &TopicName, id: TopicId) -> Result<Removal, JanitorError> {
        let (root, tombstone) = (paths::topic_root(topic, id), paths::tombstone(topic, id));
        self.check_not_replaced(&root).await?;
        let mut listed = self.store.list_stream(&root);
        let mut keys: Vec<ObjectPath> = Vec::new();
        while keys.len() <= DELETES_PER_ROUND
            && let Some(meta) = listed.try_next().await?
        {
            if meta.location != tombstone {
                keys.push(meta.location);
            }
        }
        let is_last = keys.len() <= DELETES_PER_ROUND;
        keys.truncate(DELETES_PER_ROUND);
        self.delete_all(keys).await?;
        if !is_last {
            return Ok(Removal::Unfinished);
        }
        self.store.delete(&tombstone).await?;
        // Nobody writes below it any more.
        self.store.delete_staging(&root, self.clock.now(), true).await?;
        Ok(Removal::Done)
    }

    async fn check_not_replaced(&self, root: &ObjectPath) -> Result<(), JanitorError> {
        self.manifests.check_not_fenced(|| root.to_string())?;
        match epoch::newest_claim(&self.store).await? {
            Some(newer) if newer > self.manifests.epoch() => Err(self.manifests.fence(root.to_string(), newer).into()),
            _ => Ok(()),
        }
    }
}
