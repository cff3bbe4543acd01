//! Durable facts about the broker and its topics: who we are, which topics exist, where their logs start, which
//! producer ids were handed out.
//!
//! One embedded database (`<data dir>/metadata.redb`), one transaction per change, durable when the call returns.
//!
//! | table | key | value |
//! |---|---|---|
//! | `broker` | name of the fact | text |
//! | `topics` | topic name | JSON of [`TopicRecord`] |
//! | `log_starts` | `<topic id>/<partition>` | offset |
//! | `removals` | topic id | name of a deleted topic whose archive may still be in the store |

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::model::{Offset, PartitionId, TopicId, TopicName};

const BROKER: TableDefinition<&str, &str> = TableDefinition::new("broker");
const TOPICS: TableDefinition<&str, &str> = TableDefinition::new("topics");
const LOG_STARTS: TableDefinition<&str, i64> = TableDefinition::new("log_starts");
const REMOVALS: TableDefinition<&str, &str> = TableDefinition::new("removals");

const CLUSTER_ID: &str = "cluster_id";
const NEXT_PRODUCER_ID: &str = "next_producer_id";
const BROKER_EPOCH: &str = "broker_epoch";
const INSTANCE_ID: &str = "instance_id";
const STORE_SETTLED: &str = "store_settled";

/// Memory the database may use for its pages.
const CACHE_BYTES: usize = 4 << 20;

/// A topic as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicRecord {
    pub name: TopicName,
    pub id: TopicId,
    pub partitions: i32,
    pub overrides: BTreeMap<String, String>,
    /// Set before a topic's files go and cleared with the record, so that a crash in between is finished at start.
    #[serde(default)]
    pub deleting: bool,
}

/// Why the metadata could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    #[error("metadata store {path}")]
    Store {
        path: PathBuf,
        #[source]
        source: Box<redb::Error>,
    },
    #[error("metadata store {path}: {what} {value:?} cannot be read; restore the file from a backup")]
    Corrupt { path: PathBuf, what: &'static str, value: String },
}

/// The embedded store.
pub struct MetadataStore {
    database: Database,
    path: PathBuf,
}

impl MetadataStore {
    /// Opens or creates the store.
    pub fn open(path: &Path) -> Result<Self, MetadataError> {
        let failed = |source| MetadataError::Store { path: path.to_owned(), source: Box::new(source) };
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(|e| failed(e.into()))?;
        let store = Self { database, path: path.to_owned() };
        store.write(|transaction| {
            transaction.open_table(BROKER)?;
            transaction.open_table(TOPICS)?;
            transaction.open_table(LOG_STARTS)?;
            transaction.open_table(REMOVALS)?;
            Ok(())
        })?;
        Ok(store)
    }

    /// The identity of this cluster, made on first use.
    pub fn cluster_id(&self) -> Result<String, MetadataError> {
        self.fact_or(CLUSTER_ID, || Uuid::new_v4().simple().to_string())
    }

    /// The identity of this data directory, made on first use: tells a restart from another broker's start.
    pub fn instance_id(&self) -> Result<Uuid, MetadataError> {
        let id = self.fact_or(INSTANCE_ID, || Uuid::new_v4().to_string())?;
        Uuid::parse_str(&id).map_err(|_| self.corrupt("instance id", &id))
    }

    /// The epoch of the newest start of this broker; zero before the first.
    pub fn broker_epoch(&self) -> Result<u64, MetadataError> {
        self.add_to_counter(BROKER_EPOCH, 0)
    }

    pub fn set_broker_epoch(&self, epoch: u64) -> Result<(), MetadataError> {
        self.put_fact(BROKER_EPOCH, &epoch.to_string())
    }

    /// Whether a start with this data directory has taken over all of the cold store.
    pub fn is_store_settled(&self) -> Result<bool, MetadataError> {
        Ok(self.fact(STORE_SETTLED)?.is_some())
    }

    pub fn set_store_settled(&self) -> Result<(), MetadataError> {
        self.put_fact(STORE_SETTLED, "true")
    }

    /// Reserves `count` producer ids that were never handed out before and returns the first.
    pub fn reserve_producer_ids(&self, count: u64) -> Result<u64, MetadataError> {
        self.add_to_counter(NEXT_PRODUCER_ID, count)
    }

    /// Hands out no producer id below `first` from now on.
    pub fn skip_producer_ids(&self, first: u64) -> Result<(), MetadataError> {
        let next = self.add_to_counter(NEXT_PRODUCER_ID, 0)?;
        if next < first { self.put_fact(NEXT_PRODUCER_ID, &first.to_string()) } else { Ok(()) }
    }

    pub fn topics(&self) -> Result<Vec<TopicRecord>, MetadataError> {
        let rows = self.read(|transaction| {
            let mut rows = Vec::new();
            for row in transaction.open_table(TOPICS)?.iter()? {
                rows.push(row?.1.value().to_owned());
            }
            Ok(rows)
        })?;
        rows.iter().map(|json| serde_json::from_str(json).map_err(|_| self.corrupt("topic", json))).collect()
    }

    /// Stores or replaces a topic.
    pub fn put_topic(&self, topic: &TopicRecord) -> Result<(), MetadataError> {
        self.put_topics(std::slice::from_ref(topic))
    }

    /// Stores many topics at once: all of them or, after a crash, none.
    pub fn put_topics(&self, topics: &[TopicRecord]) -> Result<(), MetadataError> {
        let json =
            |topic: &TopicRecord| serde_json::to_string(topic).map_err(|_| self.corrupt("topic", topic.name.as_str()));
        let rows: Vec<_> = topics.iter().map(json).collect::<Result<_, _>>()?;
        self.write(|transaction| {
            let mut table = transaction.open_table(TOPICS)?;
            for (topic, json) in topics.iter().zip(&rows) {
                table.insert(topic.name.as_str(), json.as_str())?;
            }
            Ok(())
        })
    }

    /// Marks a topic as one that goes, here and in the archive. From now on its deletion is finished whatever happens:
    /// the local part at the latest with the next start, the archive's when [`Self::removal_done`] says so.
    pub fn begin_removal(&self, topic: &TopicRecord) -> Result<(), MetadataError> {
        let record = TopicRecord { deleting: true, ..topic.clone() };
        let json = serde_json::to_string(&record).map_err(|_| self.corrupt("topic", topic.name.as_str()))?;
        self.write(|transaction| {
            transaction.open_table(TOPICS)?.insert(topic.name.as_str(), json.as_str())?;
            transaction.open_table(REMOVALS)?.insert(topic.id.to_string().as_str(), topic.name.as_str())?;
            Ok(())
        })
    }

    /// Deleted topics whose archive may still be in the store.
    pub fn removals(&self) -> Result<Vec<(TopicName, TopicId)>, MetadataError> {
        let rows = self.read(|transaction| {
            let mut rows = Vec::new();
            for row in transaction.open_table(REMOVALS)?.iter()? {
                let (id, name) = row?;
                rows.push((id.value().to_owned(), name.value().to_owned()));
            }
            Ok(rows)
        })?;
        let parse = |(id, name): (String, String)| {
            let parsed = TopicName::new(&name).ok().zip(Uuid::parse_str(&id).ok().map(TopicId));
            parsed.ok_or_else(|| self.corrupt("removal", &format!("{name}.{id}")))
        };
        rows.into_iter().map(parse).collect()
    }

    /// Nothing of the deleted topic is left in the store.
    pub fn removal_done(&self, id: TopicId) -> Result<(), MetadataError> {
        self.write(|transaction| {
            transaction.open_table(REMOVALS)?.remove(id.to_string().as_str())?;
            Ok(())
        })
    }

    /// Forgets a topic and its log starts.
    pub fn remove_topic(&self, topic: &TopicRecord) -> Result<(), MetadataError> {
        self.write(|transaction| {
            transaction.open_table(TOPICS)?.remove(topic.name.as_str())?;
            let mut starts = transaction.open_table(LOG_STARTS)?;
            for partition in 0..topic.partitions {
                starts.remove(log_start_key(topic.id, PartitionId(partition)).as_str())?;
            }
            Ok(())
        })
    }

    /// The smallest readable offset of a partition; zero until it was ever raised.
    pub fn log_start(&self, topic: TopicId, partition: PartitionId) -> Result<Offset, MetadataError> {
        self.read(|transaction| {
            let table = transaction.open_table(LOG_STARTS)?;
            let start = table.get(log_start_key(topic, partition).as_str())?;
            Ok(start.map_or(Offset::ZERO, |offset| Offset(offset.value())))
        })
    }

    /// Never lowers it: retention and DeleteRecords may raise the start of one partition at the same time, and what one
    /// of them was told is gone must not come back with the other.
    pub fn raise_log_start(&self, topic: TopicId, partition: PartitionId, start: Offset) -> Result<(), MetadataError> {
        self.write(|transaction| {
            let mut table = transaction.open_table(LOG_STARTS)?;
            let key = log_start_key(topic, partition);
            let before = table.get(key.as_str())?.map_or(Offset::ZERO.0, |offset| offset.value());
            if start.0 > before {
                table.insert(key.as_str(), start.0)?;
            }
            Ok(())
        })
    }

    /// Adds to a counter that starts at zero and returns its value before.
    fn add_to_counter(&self, name: &str, count: u64) -> Result<u64, MetadataError> {
        let text = self.fact(name)?;
        let before = match &text {
            None => 0,
            Some(text) => text.parse().map_err(|_| self.corrupt("counter", text))?,
        };
        self.write(|transaction| {
            transaction.open_table(BROKER)?.insert(name, (before + count).to_string().as_str())?;
            Ok(before)
        })
    }

    fn fact(&self, name: &str) -> Result<Option<String>, MetadataError> {
        self.read(|transaction| Ok(transaction.open_table(BROKER)?.get(name)?.map(|value| value.value().to_owned())))
    }

    fn put_fact(&self, name: &str, value: &str) -> Result<(), MetadataError> {
        self.write(|transaction| {
            transaction.open_table(BROKER)?.insert(name, value)?;
            Ok(())
        })
    }

    /// A fact that is made when it is first asked for.
    fn fact_or(&self, name: &str, make: impl FnOnce() -> String) -> Result<String, MetadataError> {
        self.write(|transaction| {
            let mut table = transaction.open_table(BROKER)?;
            if let Some(value) = table.get(name)? {
                return Ok(value.value().to_owned());
            }
            let value = make();
            table.insert(name, value.as_str())?;
            Ok(value)
        })
    }

    fn read<T>(&self, body: impl FnOnce(&redb::ReadTransaction) -> Result<T, redb::Error>) -> Result<T, MetadataError> {
        let run = || body(&self.database.begin_read()?);
        run().map_err(|source| self.failed(source))
    }

    fn write<T>(
        &self,
        body: impl FnOnce(&redb::WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, MetadataError> {
        let run = || {
            let transaction = self.database.begin_write()?;
            let value = body(&transaction)?;
            transaction.commit()?;
            Ok(value)
        };
        run().map_err(|source| self.failed(source))
    }

    fn failed(&self, source: redb::Error) -> MetadataError {
        MetadataError::Store { path: self.path.clone(), source: Box::new(source) }
    }

    fn corrupt(&self, what: &'static str, value: &str) -> MetadataError {
        MetadataError::Corrupt { path: self.path.clone(), what, value: value.to_owned() }
    }
}

fn log_start_key(topic: TopicId, partition: PartitionId) -> String {
    format!("{topic}/{partition}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_survive_reopening() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("metadata.redb");
        let topic = TopicRecord {
            name: TopicName::new("orders")?,
            id: TopicId::random(),
            partitions: 2,
            overrides: BTreeMap::from([("segment.bytes".to_owned(), "1048576".to_owned())]),
            deleting: false,
        };
        let store = MetadataStore::open(&path)?;
        let cluster_id = store.cluster_id()?;
        let instance_id = store.instance_id()?;
        assert_eq!((store.broker_epoch()?, store.is_store_settled()?), (0, false));
        store.set_broker_epoch(7)?;
        store.set_store_settled()?;
        assert_eq!(store.reserve_producer_ids(1000)?, 0);
        store.put_topic(&topic)?;
        store.raise_log_start(topic.id, PartitionId(1), Offset(42))?;
        store.raise_log_start(topic.id, PartitionId(1), Offset(41))?;
        drop(store);

        let store = MetadataStore::open(&path)?;
        assert_eq!(store.cluster_id()?, cluster_id);
        assert_eq!(store.instance_id()?, instance_id);
        assert_eq!((store.broker_epoch()?, store.is_store_settled()?), (7, true));
        store.skip_producer_ids(900)?;
        assert_eq!(store.reserve_producer_ids(1)?, 1000);
        store.skip_producer_ids(5000)?;
        assert_eq!(store.reserve_producer_ids(1)?, 5000);
        assert_eq!(store.topics()?, vec![topic.clone()]);
        assert_eq!(store.log_start(topic.id, PartitionId(0))?, Offset::ZERO);
        assert_eq!(store.log_start(topic.id, PartitionId(1))?, Offset(42));
        store.begin_removal(&topic)?;
        assert!(store.topics()?.iter().all(|record| record.deleting));
        store.remove_topic(&topic)?;
        assert!(store.topics()?.is_empty());
        assert_eq!(store.log_start(topic.id, PartitionId(1))?, Offset::ZERO);
        assert_eq!(store.removals()?, [(topic.name.clone(), topic.id)], "remembered until the store is clean");
        drop(store);

        let store = MetadataStore::open(&path)?;
        assert_eq!(store.removals()?, [(topic.name.clone(), topic.id)]);
        store.removal_done(topic.id)?;
        assert!(store.removals()?.is_empty());
        Ok(())
    }
}
