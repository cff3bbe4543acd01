//! `__consumer_offsets`: where groups live on disk. Formats of the records are those of [`super::records`]; the batches
//! are ordinary v2 batches in an ordinary internal topic. A group lives in partition `abs(java hash of its id) % count`.
//!
//! State is what is left when the log is read from its start, the last record of each key counting and null removing.
//!
//! **Compaction.** When sealed segments hold more than [`GARBAGE_BYTES_MAX`] beyond the live state, the writer, which
//! alone appends here, appends the live state again, waits until that is durable, raises the log start to where it
//! began, and drops the segments below.
//!
//! | died here | then at the next start |
//! |---|---|
//! | while appending the live state | old records and some copies of the newest: the same state; compacted again later |
//! | durable, log start not raised | everything twice: the same state; compacted again later |
//! | log start raised, segments still there | reading starts at the copies; the segments go with the next compaction |
//! | while dropping segments | the same |

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::group::GROUP_BYTES_MAX;
use super::records::{self, GroupMetadata, Key, RecordError};
use super::registry::{Cell, Registry, StoredGroup};
use super::writer::{RawRecord, record_bytes};
use crate::log::{AppendError, LogError, Partition};
use crate::model::{Offset, PartitionId, Timestamp, TimestampType, TopicName, TopicPartition};
use crate::read::{ReadError, ReadRange};
use crate::record::{BatchDecoder, BatchEncoder, BatchError, BatchHeader, split_batches};
use crate::topics::{Topic, TopicError, Topics};

/// Name of the topic, as in Kafka.
pub const OFFSETS_TOPIC: &str = "__consumer_offsets";
/// Partitions the topic is created with. Kafka takes 50 to spread them over a cluster; here each costs an fsync of its
/// own, and few of them let more commits share one.
pub const OFFSETS_PARTITIONS: i32 = 4;
/// Size at which a segment of the topic is sealed: small, as only sealed segments can be dropped, yet room for the
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
/// Sealed bytes beyond the live state that are put up with.
const GARBAGE_BYTES_MAX: u64 = 64 << 20;
/// Bytes appended between two looks at the size of the log.
const COMPACTION_CHECK_BYTES: u64 = 4 << 20;

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
    #[error("dropping old segments of {OFFSETS_TOPIC}")]
    Trim(#[from] LogError),
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
    if let Some(topic) = topics.get(OFFSETS_TOPIC) {
        return Ok(topic);
    }
    let overrides = BTreeMap::from([
        ("max.message.bytes".to_owned(), BATCH_BYTES_MAX.to_string()),
        ("remote.storage.enable".to_owned(), "false".to_owned()),
        ("retention.bytes".to_owned(), "-1".to_owned()),
        ("retention.ms".to_owned(), "-1".to_owned()),
        ("segment.bytes".to_owned(), SEGMENT_BYTES.to_string()),
        ("segment.ms".to_owned(), SEGMENT_MS.to_string()),
    ]);
    Ok(topics.create(&TopicName::new(OFFSETS_TOPIC)?, OFFSETS_PARTITIONS, overrides)?)
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
                    stored.metadata = Some((metadata, Bytes::copy_from_slice(value)));
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
    topics: Arc<Topics>,
    partition: Arc<Partition>,
    index: usize,
    /// Partitions of the topic, which says what groups belong here.
    count: usize,
    /// Size of the live state when it was last looked at.
    live_bytes: u64,
    appended_since_check: u64,
}

impl OffsetsPartition {
    pub fn new(topics: Arc<Topics>, topic: &Topic, index: usize, partition: Arc<Partition>) -> Self {
        let count = topic.partitions.len();
        Self { topics, partition, index, count, live_bytes: 0, appended_since_check: 0 }
    }

    /// Takes the size of the live state from the groups as they are; before the first append.
    pub fn measure(&mut self, registry: &Registry) -> Result<(), StorageError> {
        for cell in &self.cells(registry) {
            self.live_bytes += live_records(cell)?.iter().map(|record| record_bytes(record) as u64).sum::<u64>();
        }
        Ok(())
    }

    /// The groups that live in this partition.
    fn cells(&self, registry: &Registry) -> Vec<Arc<Cell>> {
        let mut cells = registry.list();
        cells.retain(|cell| partition_of(&cell.id, self.count) == self.index);
        cells
    }

    /// Appends records in order; they are durable on return.
    pub async fn append(&mut self, records: Vec<RawRecord>, now: Timestamp) -> Result<(), StorageError> {
        self.appended_since_check += records.iter().map(|record| record_bytes(record) as u64).sum::<u64>();
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

    /// Compacts if the log has grown enough since the last look and holds too much that is no longer true.
    pub async fn compact_if_due(&mut self, registry: &Registry) -> Result<(), StorageError> {
        if self.appended_since_check < COMPACTION_CHECK_BYTES {
            return Ok(());
        }
        self.appended_since_check = 0;
        let sealed = self.partition.sealed_segments(self.partition.log_start_offset());
        let sealed_bytes: u64 = sealed.iter().map(|segment| segment.size_bytes).sum();
        if sealed_bytes <= self.live_bytes.saturating_add(GARBAGE_BYTES_MAX) {
            return Ok(());
        }
        self.compact(registry).await
    }

    async fn compact(&mut self, registry: &Registry) -> Result<(), StorageError> {
        // Everything below is durable and applied: the writer waits for each batch.
        let start = self.partition.log_end_offset();
        let now = registry.clock.now();
        let (mut pending, mut pending_bytes, mut live_bytes) = (Vec::new(), 0, 0);
        for cell in &self.cells(registry) {
            let records = live_records(cell)?;
            pending_bytes += records.iter().map(record_bytes).sum::<usize>();
            pending.extend(records);
            if pending_bytes >= BATCH_BYTES_TARGET {
                live_bytes += pending_bytes as u64;
                pending_bytes = 0;
                self.append(std::mem::take(&mut pending), now).await?;
            }
        }
        self.append(pending, now).await?;
        self.live_bytes = live_bytes + pending_bytes as u64;
        self.appended_since_check = 0;
        let (topics, partition) = (self.topics.clone(), self.partition.clone());
        let freed = tokio::task::spawn_blocking(move || {
            topics.raise_log_start(&partition, start)?;
            Ok::<_, StorageError>(partition.trim_local(start)?)
        })
        .await??;
        tracing::info!(partition = %self, freed_bytes = freed, live_bytes = self.live_bytes, "group log compacted");
        Ok(())
    }
}

impl fmt::Display for OffsetsPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.partition.topic_partition().fmt(f)
    }
}

/// What of a group is durable and true, as records.
fn live_records(cell: &Cell) -> Result<Vec<RawRecord>, RecordError> {
    let inner = cell.inner.lock();
    let mut live = Vec::new();
    if let Some(stored) = &inner.stored {
        live.push((records::group_key(&cell.id)?, Some(stored.clone())));
    }
    for (topic, partition, committed) in inner.offsets.iter() {
        let key = records::offset_key(&cell.id, topic.as_str(), partition.0)?;
        live.push((key, Some(records::encode_offset(committed)?)));
    }
    Ok(live)
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
