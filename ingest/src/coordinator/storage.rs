//! `__consumer_offsets`: where groups live on disk. Formats of the records are those of [`super::records`]; the batches
//! are ordinary v2 batches in an ordinary internal topic. A group lives in partition
//! `abs(java hash of its id) % count`.
//!
//! Offsets that a transaction commits are in transactional batches of its producer. They are pending until its marker,
//! which puts them in force or drops them. Of all that is committed or removed for a partition, in transactions or not,
//! the last in the log counts.
//!
//! So the topic is compacted, as Kafka's is, by the log's own cleaner (`log/cleaner.rs`): of each group and of each
//! committed offset the newest record stays, and what was removed is forgotten in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use super::records::{self, GroupMetadata, Key};
use super::registry::{Cell, Registry, StoredGroup};
use super::topic::{self, Entry, RawRecord, StorageError, encode_batches};
use crate::log::{AppendError, Partition};
use crate::model::{OFFSETS_TOPIC, Offset, PartitionId, Timestamp, TopicName, TopicPartition};
use crate::record::{TransactionOutcome, into_transactional};

/// Partitions the topic is created with. Kafka takes 50 to spread them over a cluster; here each costs an fsync of its
/// own, and few of them let more commits share one.
pub const OFFSETS_PARTITIONS: i32 = 4;

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

    fn try_apply(&mut self, transaction: Option<i64>, key: Option<&[u8]>, value: Option<&[u8]>) -> Result<(), String> {
        let key = Key::decode(key.ok_or("it has no key")?).map_err(|error| error.to_string())?;
        match key {
            Key::Offset { group, topic, partition } => {
                let topic = TopicName::new(&topic).map_err(|error| error.to_string())?;
                let at = TopicPartition::new(topic, PartitionId(partition));
                let committed = value.map(records::decode_offset).transpose().map_err(|error| error.to_string())?;
                match (committed, transaction) {
                    (Some(committed), Some(producer_id)) => {
                        self.groups.entry(group).or_default().pending.insert(producer_id, at, committed);
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
    partition: Arc<Partition>,
    index: usize,
    /// Partitions of the topic, which says what groups belong here.
    count: usize,
}

impl OffsetsPartition {
    /// The partition with this `index`, of `count`.
    pub fn new(partition: Arc<Partition>, index: usize, count: usize) -> Self {
        Self { partition, index, count }
    }

    /// Producers with pending offsets, and the groups that they are of.
    pub fn pending(&self, registry: &Registry) -> BTreeMap<i64, BTreeSet<Arc<str>>> {
        let mut pending = BTreeMap::<_, BTreeSet<_>>::new();
        let here = |cell: &Arc<Cell>| topic::partition_of(&cell.id, self.count) == self.index;
        for cell in registry.list().into_iter().filter(here) {
            for producer_id in cell.inner.lock().pending.producers() {
                pending.entry(producer_id).or_default().insert(cell.id.clone());
            }
        }
        pending
    }

    /// Appends in order; all of it is durable on return.
    pub async fn append(&self, appends: Vec<Append>, now: Timestamp) -> Result<(), StorageError> {
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
}

impl fmt::Display for OffsetsPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.partition.topic_partition().fmt(f)
    }
}

#[cfg(test)]
mod tests;
