//! What a store says about topics, for a broker whose catalogue is empty: a lost disk, a new machine.
//!
//! ```text
//! topics/<topic>.<topic id>/topic.json
//! {
//!   "format_version": 1,
//!   "name": text, "id": uuid,    = the folder's
//!   "partitions": number,
//!   "configs": { key: value },   what differs from the broker's defaults
//!   "created_at_ms": number,     when this was first written
//!   "epoch": number              of the broker that wrote it
//! }
//! ```
//!
//! It is written before the first manifest of its topic, and again when it has changed; so a folder with manifests and
//! without it comes from an earlier program, or was damaged. Then name and id are those of the folder, the partitions
//! those that have a folder, and the settings the defaults. It is the one object that is overwritten: a broker that is
//! fenced, or finds a higher epoch in it, does not.
//!
//! # Adopting
//! The catalogue gets all topics in one transaction, before it is opened; everything else follows from the manifests
//! when they are loaded, at this start as at any other: the log start, and where an empty log goes on
//! (`Partition::start_over_at`). So there is nothing to be repaired.
//!
//! | died here | then |
//! |---|---|
//! | before the transaction | the catalogue is empty still, the topics are looked for again |
//! | after it | the topics exist; logs that end below their archive start over at its end |
//!
//! # Not restored
//! What was not archived, committed offsets of consumer groups, state of idempotent producers, topics that never had
//! anything archived.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path as ObjectPath;
use serde::{Deserialize, Serialize};
use thermocline_ingest::metadata::TopicRecord;
use thermocline_ingest::model::{PartitionId, Timestamp, TopicId, TopicName};
use thermocline_ingest::topics::PARTITIONS_MAX;

use crate::paths::{self, PartitionPath};
use crate::store::{ColdStore, StoreError};

const FORMAT_VERSION: u32 = 1;
/// Topic folders looked into at once.
const TOPICS_IN_FLIGHT: usize = 16;

/// A topic besides its records, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TopicFile {
    pub format_version: u32,
    pub name: TopicName,
    pub id: TopicId,
    pub partitions: i32,
    pub configs: BTreeMap<String, String>,
    pub created_at_ms: Timestamp,
    pub epoch: u64,
}

/// A topic that has a folder in the store.
struct Found {
    record: TopicRecord,
    created_at: Timestamp,
}

impl TopicFile {
    /// Of a topic with one partition and no settings of its own.
    pub fn new(name: TopicName, id: TopicId) -> Self {
        let (created_at_ms, configs) = (Timestamp(0), BTreeMap::new());
        Self { format_version: FORMAT_VERSION, name, id, partitions: 1, configs, created_at_ms, epoch: 0 }
    }

    pub fn encode(&self) -> Result<Bytes, serde_json::Error> {
        let mut json = serde_json::to_vec_pretty(self)?;
        json.push(b'\n');
        Ok(json.into())
    }

    /// `None` where there is none; a damaged one is told in the log and counts as none.
    pub async fn read(store: &ColdStore, name: &TopicName, id: TopicId) -> Result<Option<Self>, StoreError> {
        let key = paths::topic_file(name, id);
        let bytes = match store.get(&key).await {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        let decoded = Self::decode(name, id, &bytes);
        if let Err(reason) = &decoded {
            tracing::warn!(%key, reason, "the description of a topic is damaged and is not used");
        }
        Ok(decoded.ok())
    }

    fn decode(name: &TopicName, id: TopicId, bytes: &[u8]) -> Result<Self, String> {
        let file: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if file.format_version != FORMAT_VERSION {
            return Err(format!("it has format version {}, this program reads {FORMAT_VERSION}", file.format_version));
        }
        if (&file.name, file.id) != (name, id) {
            return Err(format!("it belongs to topic {} with id {}", file.name, file.id));
        }
        if !(1..=PARTITIONS_MAX).contains(&file.partitions) {
            return Err(format!("{} partitions; 1 to {PARTITIONS_MAX} are possible", file.partitions));
        }
        Ok(file)
    }
}

/// Every topic that has manifests or a description and is not marked as deleted, in name order.
pub async fn find_topics(store: &ColdStore) -> Result<Vec<TopicRecord>, StoreError> {
    let mut found: Vec<Found> = futures::stream::iter(topic_folders(store).await?)
        .map(async |(name, id)| find_topic(store, name, id).await)
        .buffer_unordered(TOPICS_IN_FLIGHT)
        .try_filter_map(async |found| Ok(found))
        .try_collect()
        .await?;
    // Of two with one name the newer one lives; the other was deleted, and its mark did not get written.
    found.sort_by(|a, b| a.record.name.cmp(&b.record.name).then(b.created_at.cmp(&a.created_at)));
    found.dedup_by(|older, newer| {
        let is_same = older.record.name == newer.record.name;
        if is_same {
            let (topic, id, kept) = (&older.record.name, older.record.id, newer.record.id);
            tracing::warn!(%topic, %id, %kept, "two topics of one name in the store; the older one is left alone");
        }
        is_same
    });
    Ok(found.into_iter().map(|found| found.record).collect())
}

/// The folders of partitions in the store, of all topics that are not marked as deleted.
pub(crate) async fn partition_paths(store: &ColdStore) -> Result<Vec<PartitionPath>, StoreError> {
    let mut paths = Vec::new();
    for (name, id) in topic_folders(store).await? {
        let (_, partitions) = look_into(store, &name, id).await?;
        paths.extend(partitions.into_iter().map(|partition| PartitionPath::new(name.clone(), id, partition)));
    }
    Ok(paths)
}

async fn topic_folders(store: &ColdStore) -> Result<Vec<(TopicName, TopicId)>, StoreError> {
    let (_, folders) = store.list_folder(&paths::topics_root()).await?;
    Ok(folders.iter().filter_map(paths::parse_topic_root).collect())
}

/// The objects directly in a topic's folder, and the partitions that have one in it; nothing of a deleted topic.
async fn look_into(
    store: &ColdStore,
    name: &TopicName,
    id: TopicId,
) -> Result<(Vec<ObjectPath>, Vec<PartitionId>), StoreError> {
    let (objects, folders) = store.list_folder(&paths::topic_root(name, id)).await?;
    let objects: Vec<_> = objects.into_iter().map(|meta| meta.location).collect();
    if objects.contains(&paths::tombstone(name, id)) {
        return Ok((Vec::new(), Vec::new()));
    }
    let partitions = folders.iter().filter_map(|folder| paths::parse_partition_root(name, id, folder));
    Ok((objects, partitions.filter(|partition| partition.0 < PARTITIONS_MAX).collect()))
}

async fn find_topic(store: &ColdStore, name: TopicName, id: TopicId) -> Result<Option<Found>, StoreError> {
    let (objects, partitions) = look_into(store, &name, id).await?;
    let file = match objects.contains(&paths::topic_file(&name, id)) {
        true => TopicFile::read(store, &name, id).await?,
        false => None,
    };
    let with_folder = partitions.iter().map(|partition| partition.0 + 1).max().unwrap_or(0);
    let (partitions, overrides, created_at) = match file {
        Some(file) => (file.partitions.max(with_folder), file.configs, file.created_at_ms),
        None if has_manifests(store, &name, id, &partitions).await? => {
            tracing::warn!(
                topic = %name, %id, partitions = with_folder,
                "no usable description of this topic in the store; its partitions are counted, its settings are the defaults"
            );
            (with_folder, BTreeMap::new(), Timestamp::NONE)
        }
        None => return Ok(None),
    };
    let record = TopicRecord { name, id, partitions, overrides, deleting: false };
    Ok(Some(Found { record, created_at }))
}

/// Uploads that nothing names do not make a topic.
async fn has_manifests(
    store: &ColdStore,
    name: &TopicName,
    id: TopicId,
    partitions: &[PartitionId],
) -> Result<bool, StoreError> {
    for partition in partitions {
        let path = PartitionPath::new(name.clone(), id, *partition);
        let (objects, _) = store.list_folder(&path.manifest_folder()).await?;
        if objects.iter().any(|meta| path.parse_manifest(&meta.location).is_some()) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests;
