//! `__transaction_state`: where transactional ids live on disk. One partition, so that one fsync serves all that change
//! meanwhile; records as in [`super::records`]. The last record of each id counts, so the topic is compacted like any
//! other.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::records;
use super::state::Transaction;
use crate::coordinator::topic::{self, Entry, StorageError, encode_batches};
use crate::log::{AppendError, Partition};
use crate::model::{PartitionId, TRANSACTIONS_TOPIC, Timestamp};
use crate::topics::Topics;

const PARTITIONS: i32 = 1;

/// The log of all ids.
pub struct StateLog {
    partition: Arc<Partition>,
}

impl StateLog {
    /// Opens the topic and reads it back. Blocking.
    pub fn open(topics: &Topics) -> Result<(Self, BTreeMap<String, Transaction>), StorageError> {
        let topic = topic::open_topic(topics, TRANSACTIONS_TOPIC, PARTITIONS)?;
        let mut known = BTreeMap::new();
        for partition in &topic.partitions {
            topic::read_back(partition, |entry| apply(&mut known, &entry))?;
        }
        // A topic has at least one partition.
        let partition = topic.partition(PartitionId(0)).unwrap_or(&topic.partitions[0]).clone();
        Ok((Self { partition }, known))
    }

    /// Appends the state of an id, or that it is forgotten; durable on return.
    pub async fn append(&self, id: &str, state: Option<&Transaction>, now: Timestamp) -> Result<(), StorageError> {
        let record = (records::encode_key(id)?, state.map(records::encode).transpose()?);
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
