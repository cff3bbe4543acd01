//! `__consumer_offsets`: where groups live on disk. Formats of the records are those of [`super::records`]; the batches
//! are ordinary v2 batches in an ordinary internal topic. A group lives in partition `abs(java hash of its id) % count`.
//!
//! State is what is left when the log is read from its start, the last record of each key counting and null removing.
//!
//! So the topic is compacted, as Kafka's is, by the log's own cleaner (`log/cleaner.rs`): of each group and of each
//! committed offset the newest record stays, and what was removed is forgotten in the end.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::group::GROUP_BYTES_MAX;
use super::records::{self, GroupMetadata, Key, RecordError};
use super::registry::StoredGroup;
use super::writer::{RawRecord, record_bytes};
use crate::log::{AppendError, Partition};
use crate::model::{Offset, PartitionId, Timestamp, TimestampType, TopicName, TopicPartition};
use crate::read::{ReadError, ReadRange};
use crate::record::{BatchDecoder, BatchEncoder, BatchError, BatchHeader, split_batches};
use crate::topics::{Topic, TopicError, Topics};

/// Name of the topic, as in Kafka.
pub const OFFSETS_TOPIC: &str = "__consumer_offsets";
/// Partitions the topic is created with. Kafka takes 50 to spread them over a cluster; here each costs an fsync of its
/// own, and few of them let more commits share one.
pub const OFFSETS_PARTITIONS: i32 = 4;
/// Size at which a segment of the topic is sealed: small, as only sealed segments are compacted, yet room for the
/// largest batch.
const SEGMENT_BYTES: u64 = 32 << 20;
/// Age at which a segment of the topic is sealed: only size matters here, and a quiet topic is not to become many files.
const SEGMENT_MS: i64 = 7 * 86_400_000;
/// Largest batch: a group record with all subscriptions and all assignments, and what frames them.
const BATCH_BYTES_MAX: usize = 2 * GROUP_BYTES_MAX + (1 << 20);
/// Bytes of records after which a batch is closed, unless one record is larger.
const BATCH_BYTES_TARGET: usize = 1 << 20;
/// Bytes read at once when the log is read back.
const READ_BYTES: usize = 1 << 20;

/// Why group state could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("creating {OFFSETS_TOPIC}")]
    Topic(#[from] TopicError),
    #[error("topic name {OFFSETS_TOPIC} is not legal")]
    TopicName(#[from] crate::model::TopicNameError),
    #[error("appending group state")]
    Append(#[from] AppendError),
    #[error("reading group state")]
    Read(#[from] ReadError),
    #[error("a batch of {OFFSETS_TOPIC} cannot be decoded")]
    Batch(#[from] BatchError),
    #[error("a group record cannot be encoded")]
    Record(#[from] RecordError),
    #[error("a task that works on {OFFSETS_TOPIC} was stopped")]
    Stopped(#[from] tokio::task::JoinError),
}

/// The partition a group lives in: Kafka's `abs(groupId.hashCode) % count`, the hash running over UTF-16 units.
pub fn partition_of(group: &str, count: usize) -> usize {
    let hash = group.encode_utf16().fold(0i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)));
    let positive = hash.checked_abs().unwrap_or(0);
    usize::try_from(positive).unwrap_or(0) % count.max(1)
}

/// The topic, created if it is missing. Blocking.
pub fn open_topic(topics: &Topics) -> Result<Arc<Topic>, StorageError> {
    let overrides = BTreeMap::from([
        ("cleanup.policy".to_owned(), "compact".to_owned()),
        ("max.message.bytes".to_owned(), BATCH_BYTES_MAX.to_string()),
        ("segment.bytes".to_owned(), SEGMENT_BYTES.to_string()),
        ("segment.ms".to_owned(), SEGMENT_MS.to_string()),
    ]);
    Ok(topics.open_internal(&TopicName::new(OFFSETS_TOPIC)?, OFFSETS_PARTITIONS, overrides)?)
}

/// Everything that a partition of the topic says. Blocking.
pub fn read_back(partition: &Partition) -> Result<Replay, StorageError> {
    let mut replay = Replay::default();
    let mut decoder = BatchDecoder::new(BATCH_BYTES_MAX);
    let start = partition.log_start_offset();
    let until = partition.high_watermark();
    let mut from = start;
    while from < until {
        let run = partition.read(&ReadRange { from, until, max_bytes: READ_BYTES, at_least_one: true })?;
        let before = from;
        for chunk in run.chunks {
            for batch in split_batches(chunk) {
                let batch = batch?;
                let header = BatchHeader::read(&batch)?;
                from = header.next_offset();
                if header.is_control() {
                    continue;
                }
                decoder.for_each::<StorageError>(&batch, |record| {
                    if record.offset >= start {
                        replay.apply(record.offset, record.key, record.value);
                    }
                    Ok(())
                })?;
            }
        }
        if from == before {
            break;
        }
    }
    Ok(replay)
}

/// The state that records leave behind, applied one after the other.
#[derive(Debug, Default)]
pub struct Replay {
    groups: BTreeMap<String, StoredGroup>,
}

impl Replay {
    /// A record that is not understood is skipped and reported: it cannot be ours, and the rest is worth having.
    pub fn apply(&mut self, offset: Offset, key: Option<&[u8]>, value: Option<&[u8]>) {
        if let Err(reason) = self.try_apply(key, value) {
            tracing::warn!(topic = OFFSETS_TOPIC, %offset, reason, "group record skipped");
        }
    }

    fn try_apply(&mut self, key: Option<&[u8]>, value: Option<&[u8]>) -> Result<(), String> {
        let key = Key::decode(key.ok_or("it has no key")?).map_err(|error| error.to_string())?;
        match key {
            Key::Offset { group, topic, partition } => {
                let topic = TopicName::new(&topic).map_err(|error| error.to_string())?;
                let at = TopicPartition::new(topic, PartitionId(partition));
                let committed = value.map(records::decode_offset).transpose().map_err(|error| error.to_string())?;
                match committed {
                    Some(committed) => self.groups.entry(group).or_default().offsets.insert(at, committed),
                    None => {
                        if let Some(stored) = self.groups.get_mut(&group) {
                            stored.offsets.remove(&at);
                        }
                    }
                }
            }
            Key::Group { group } => match value {
                Some(value) => {
                    let metadata = GroupMetadata::decode(value).map_err(|error| error.to_string())?;
                    let stored = self.groups.entry(group).or_default();
                    stored.metadata = Some(metadata);
                }
                None => {
                    if let Some(stored) = self.groups.get_mut(&group) {
                        stored.metadata = None;
                    }
                }
            },
        }
        Ok(())
    }

    /// The groups that something is known of.
    pub fn finish(mut self) -> BTreeMap<String, StoredGroup> {
        self.groups.retain(|_, stored| stored.metadata.is_some() || !stored.offsets.is_empty());
        self.groups
    }
}

/// A partition of the topic, as its writer holds it.
pub struct OffsetsPartition {
    partition: Arc<Partition>,
}

impl OffsetsPartition {
    pub fn new(partition: Arc<Partition>) -> Self {
        Self { partition }
    }

    /// Appends records in order; they are durable on return.
    pub async fn append(&self, records: Vec<RawRecord>, now: Timestamp) -> Result<(), StorageError> {
        let partition = self.partition.clone();
        let end = tokio::task::spawn_blocking(move || {
            let mut end = None;
            for batch in encode_batches(&records, now) {
                end = Some(partition.append(&batch)?.last_offset.next());
            }
            Ok::<_, AppendError>(end)
        })
        .await??;
        match end {
            Some(end) => Ok(self.partition.committed(end).await?),
            None => Ok(()),
        }
    }
}

impl fmt::Display for OffsetsPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.partition.topic_partition().fmt(f)
    }
}

fn encode_batches(records: &[RawRecord], now: Timestamp) -> Vec<Bytes> {
    let mut encoder = BatchEncoder::new(TimestampType::CreateTime);
    let mut batches = Vec::new();
    for record in records {
        if encoder.record_count() > 0 && encoder.len_bytes() + record_bytes(record) > BATCH_BYTES_TARGET {
            batches.extend(encoder.finish());
        }
        let offset = Offset(i64::try_from(encoder.record_count()).unwrap_or(i64::MAX));
        let (key, value) = record;
        encoder.push(offset, now, Some(key), value.as_deref(), std::iter::empty());
    }
    batches.extend(encoder.finish());
    batches
}

#[cfg(test)]
mod tests;
