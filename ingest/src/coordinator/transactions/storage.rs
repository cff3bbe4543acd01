//! `__transaction_state`: where transactional ids live on disk. One partition, so that one fsync serves all that change
//! meanwhile; records as in [`super::records`].
//!
//! **Compaction.** When sealed segments hold more than [`GARBAGE_BYTES_MAX`], the state of every id is appended again, each
//! during its turn; then the log start is raised to where that began, and the segments below are dropped. An id that
//! changes meanwhile has its record above anyway.
//!
//! | died here | then at the next start |
//! |---|---|
//! | while appending again | old records and some copies: the same state; compacted again later |
//! | log start raised, segments still there | reading starts at the copies; the segments go with the next compaction |

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::TransactionCoordinator;
use super::records;
use super::state::Transaction;
use crate::coordinator::topic::{self, Entry, StorageError, encode_batches, record_bytes};
use crate::log::{AppendError, Partition};
use crate::model::{PartitionId, Timestamp};
use crate::topics::Topics;

/// Name of the topic, as in Kafka.
pub const TRANSACTIONS_TOPIC: &str = "__transaction_state";
const PARTITIONS: i32 = 1;
/// Sealed bytes that are put up with.
const GARBAGE_BYTES_MAX: u64 = 64 << 20;
/// Bytes appended between two looks at the size of the log.
const COMPACTION_CHECK_BYTES: u64 = 4 << 20;

/// The log of all ids.
pub struct StateLog {
    topics: Arc<Topics>,
    partition: Arc<Partition>,
    appended_since_check: AtomicU64,
    compacting: AtomicBool,
}

impl StateLog {
    /// Opens the topic and reads it back. Blocking.
    pub fn open(topics: Arc<Topics>) -> Result<(Self, BTreeMap<String, Transaction>), StorageError> {
        let topic = topic::open_topic(&topics, TRANSACTIONS_TOPIC, PARTITIONS)?;
        let mut known = BTreeMap::new();
        for partition in &topic.partitions {
            topic::read_back(partition, |entry| apply(&mut known, &entry))?;
        }
        // A topic has at least one partition.
        let partition = topic.partition(PartitionId(0)).unwrap_or(&topic.partitions[0]).clone();
        let log =
            Self { topics, partition, appended_since_check: AtomicU64::new(0), compacting: AtomicBool::new(false) };
        Ok((log, known))
    }

    /// Appends the state of an id, or that it is forgotten; durable on return.
    pub async fn append(&self, id: &str, state: Option<&Transaction>, now: Timestamp) -> Result<(), StorageError> {
        let record = (records::encode_key(id)?, state.map(records::encode).transpose()?);
        self.appended_since_check.fetch_add(record_bytes(&record) as u64, Ordering::Relaxed);
        let partition = self.partition.clone();
        let end = tokio::task::spawn_blocking(move || {
            let mut end = None;
            for batch in encode_batches(&[record], now) {
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
    pub async fn compact_if_due(&self, coordinator: &TransactionCoordinator) {
        let grown = self.appended_since_check.load(Ordering::Relaxed) >= COMPACTION_CHECK_BYTES;
        if !grown || self.compacting.swap(true, Ordering::AcqRel) {
            return;
        }
        self.appended_since_check.store(0, Ordering::Relaxed);
        let sealed = self.partition.sealed_segments(self.partition.log_start_offset());
        if sealed.iter().map(|segment| segment.size_bytes).sum::<u64>() > GARBAGE_BYTES_MAX
            && let Err(error) = self.compact(coordinator).await
        {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(topic = TRANSACTIONS_TOPIC, error, "transaction log not compacted, trying again later");
        }
        self.compacting.store(false, Ordering::Release);
    }

    async fn compact(&self, coordinator: &TransactionCoordinator) -> Result<(), StorageError> {
        let start = self.partition.log_end_offset();
        for cell in coordinator.list_cells() {
            let turn = cell.turn().await;
            if let Some(state) = cell.transaction() {
                self.append(&cell.id, Some(&state), coordinator.now()).await?;
            }
            drop(turn);
        }
        let (topics, partition) = (self.topics.clone(), self.partition.clone());
        let freed = tokio::task::spawn_blocking(move || {
            topics.raise_log_start(&partition, start)?;
            Ok::<_, StorageError>(partition.trim_local(start)?)
        })
        .await??;
        tracing::info!(topic = TRANSACTIONS_TOPIC, freed_bytes = freed, "transaction log compacted");
        Ok(())
    }
}

/// A record that is not understood is skipped and reported: it cannot be ours, and the rest is worth having.
fn apply(known: &mut BTreeMap<String, Transaction>, entry: &Entry<'_>) {
    let Entry::Record { offset, key, value, .. } = *entry else { return };
    if let Err(reason) = try_apply(known, key, value) {
        tracing::warn!(topic = TRANSACTIONS_TOPIC, %offset, reason, "transaction record skipped");
    }
}

fn try_apply(
    known: &mut BTreeMap<String, Transaction>,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
) -> Result<(), String> {
    let id = records::decode_key(key.ok_or("it has no key")?).map_err(|error| error.to_string())?;
    match value {
        Some(value) => {
            known.insert(id, records::decode(value).map_err(|error| error.to_string())?);
        }
        None => {
            known.remove(&id);
        }
    }
    Ok(())
}
