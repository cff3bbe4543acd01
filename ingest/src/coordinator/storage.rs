//! `__consumer_offsets`: where groups live on disk. Formats of the records are those of [`super::records`]; the batches
//! are ordinary v2 batches in an ordinary internal topic. A group lives in partition `abs(java hash of its id) % count`.
//!
//! Offsets that a transaction commits are in transactional batches of its producer. They are pending until its marker,
//! which puts them in force or drops them; an offset that was committed or removed otherwise meanwhile is newer.
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

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::records::{self, GroupMetadata, Key, RecordError};
use super::registry::{Cell, Registry, StoredGroup};
use super::topic::{self, BATCH_BYTES_TARGET, Entry, RawRecord, StorageError, encode_batches, record_bytes};
use crate::log::{AppendError, Partition};
use crate::model::{Offset, PartitionId, Timestamp, TopicName, TopicPartition};
use crate::record::{TransactionOutcome, into_transactional};
use crate::topics::{Topic, Topics};

/// Name of the topic, as in Kafka.
pub const OFFSETS_TOPIC: &str = "__consumer_offsets";
/// Partitions the topic is created with. Kafka takes 50 to spread them over a cluster; here each costs an fsync of its
/// own, and few of them let more commits share one.
pub const OFFSETS_PARTITIONS: i32 = 4;
/// Sealed bytes beyond the live state that are put up with.
const GARBAGE_BYTES_MAX: u64 = 64 << 20;
/// Bytes appended between two looks at the size of the log.
const COMPACTION_CHECK_BYTES: u64 = 4 << 20;

/// Everything that a partition of the topic says. Blocking.
pub fn read_back(partition: &Partition) -> Result<Replay, StorageError> {
    let mut replay = Replay::default();
    topic::read_back(partition, |entry| replay.apply(entry))?;
    Ok(replay)
}

/// The state that records leave behind, applied one after the other.
#[derive(Debug, Default)]
pub struct Replay {
    groups: BTreeMap<String, StoredGroup>,
}

impl Replay {
    /// A record that is not understood is skipped and reported: it cannot be ours, and the rest is worth having.
    pub fn apply(&mut self, entry: Entry<'_>) {
        match entry {
            Entry::Record { transaction, offset, key, value } => {
                if let Err(reason) = self.try_apply(transaction, key, value) {
                    tracing::warn!(topic = OFFSETS_TOPIC, %offset, reason, "group record skipped");
                }
            }
            Entry::End { producer_id, outcome } => {
                for stored in self.groups.values_mut() {
                    stored.pending.end(producer_id, outcome, &mut stored.offsets);
                }
            }
        }
    }

    fn try_apply(
        &mut self,
        transaction: Option<(i64, i16)>,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> Result<(), String> {
        let key = Key::decode(key.ok_or("it has no key")?).map_err(|error| error.to_string())?;
        match key {
            Key::Offset { group, topic, partition } => {
                let topic = TopicName::new(&topic).map_err(|error| error.to_string())?;
                let at = TopicPartition::new(topic, PartitionId(partition));
                let committed = value.map(records::decode_offset).transpose().map_err(|error| error.to_string())?;
                match (committed, transaction) {
                    (Some(committed), Some((producer_id, epoch))) => {
                        self.groups.entry(group).or_default().pending.insert(producer_id, epoch, at, committed);
                    }
                    (Some(committed), None) => {
                        let stored = self.groups.entry(group).or_default();
                        stored.pending.commit(&mut stored.offsets, at, committed);
                    }
                    (None, _) => {
                        if let Some(stored) = self.groups.get_mut(&group) {
                            stored.offsets.remove(&at);
                            stored.pending.remove(&at);
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
        self.groups
            .retain(|_, stored| stored.metadata.is_some() || !stored.offsets.is_empty() || !stored.pending.is_empty());
        self.groups
    }
}

/// What goes into the log in one piece.
#[derive(Debug)]
pub enum Append {
    Records(Vec<RawRecord>),
    /// In the transaction of a producer.
    Pending {
        producer_id: i64,
        epoch: i16,
        records: Vec<RawRecord>,
    },
    /// The marker that ends it.
    End {
        producer_id: i64,
        epoch: i16,
        outcome: TransactionOutcome,
    },
}

impl Append {
    fn size_bytes(&self) -> u64 {
        match self {
            Self::Records(records) | Self::Pending { records, .. } => {
                records.iter().map(|record| record_bytes(record) as u64).sum()
            }
            Self::End { .. } => 0,
        }
    }

    /// Returns where the log has to be committed through. Blocking.
    fn carry_out(&self, partition: &Partition, now: Timestamp) -> Result<Option<Offset>, AppendError> {
        let mut end = None;
        match self {
            Self::Records(records) => {
                for batch in encode_batches(records, now) {
                    end = Some(partition.append(&batch)?.last_offset.next());
                }
            }
            Self::Pending { producer_id, epoch, records } => {
                for batch in encode_batches(records, now) {
                    let batch = into_transactional(batch, *producer_id, *epoch);
                    end = Some(partition.append_as_coordinator(&batch)?.last_offset.next());
                }
            }
            Self::End { producer_id, epoch, outcome } => {
                end = Some(partition.end_transaction(*producer_id, *epoch, *outcome)?);
            }
        }
        Ok(end)
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
            self.live_bytes += live_records(cell)?.iter().map(Append::size_bytes).sum::<u64>();
        }
        Ok(())
    }

    /// Producers with pending offsets, and the groups that they are of.
    pub fn pending(&self, registry: &Registry) -> BTreeMap<i64, BTreeSet<Arc<str>>> {
        let mut pending = BTreeMap::<_, BTreeSet<_>>::new();
        for cell in self.cells(registry) {
            for (producer_id, ..) in cell.inner.lock().pending.iter() {
                pending.entry(producer_id).or_default().insert(cell.id.clone());
            }
        }
        pending
    }

    /// The groups that live in this partition.
    fn cells(&self, registry: &Registry) -> Vec<Arc<Cell>> {
        let mut cells = registry.list();
        cells.retain(|cell| topic::partition_of(&cell.id, self.count) == self.index);
        cells
    }

    /// Appends in order; all of it is durable on return.
    pub async fn append(&mut self, appends: Vec<Append>, now: Timestamp) -> Result<(), StorageError> {
        self.appended_since_check += appends.iter().map(Append::size_bytes).sum::<u64>();
        let partition = self.partition.clone();
        let end = tokio::task::spawn_blocking(move || {
            let mut end = None;
            for append in appends {
                end = append.carry_out(&partition, now)?.or(end);
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
        let (mut waiting, mut waiting_bytes, mut live_bytes) = (Vec::new(), 0, 0);
        for cell in &self.cells(registry) {
            let records = live_records(cell)?;
            waiting_bytes += records.iter().map(Append::size_bytes).sum::<u64>();
            waiting.extend(records);
            if waiting_bytes >= BATCH_BYTES_TARGET as u64 {
                live_bytes += waiting_bytes;
                waiting_bytes = 0;
                self.append(std::mem::take(&mut waiting), now).await?;
            }
        }
        self.append(waiting, now).await?;
        self.live_bytes = live_bytes + waiting_bytes;
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

/// What of a group is durable and true.
fn live_records(cell: &Cell) -> Result<Vec<Append>, RecordError> {
    let inner = cell.inner.lock();
    let mut live = Vec::new();
    if let Some(stored) = &inner.stored {
        live.push((records::group_key(&cell.id)?, Some(stored.clone())));
    }
    for (topic, partition, committed) in inner.offsets.iter() {
        let key = records::offset_key(&cell.id, topic.as_str(), partition.0)?;
        live.push((key, Some(records::encode_offset(committed)?)));
    }
    let mut live = vec![Append::Records(live)];
    for (producer_id, epoch, offsets) in inner.pending.iter() {
        let records: Result<_, RecordError> = offsets
            .iter()
            .map(|(topic, partition, committed)| {
                let key = records::offset_key(&cell.id, topic.as_str(), partition.0)?;
                Ok((key, Some(records::encode_offset(committed)?)))
            })
            .collect();
        live.push(Append::Pending { producer_id, epoch, records: records? });
    }
    Ok(live)
}

#[cfg(test)]
mod tests;
