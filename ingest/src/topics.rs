//! The catalogue of topics: what exists, made durable before it is visible, and gone from view before its files go.
//!
//! | died here | then at the next start |
//! |---|---|
//! | creating: before the record is stored | empty folders without a record; a later topic of that name starts over |
//! | creating: after the record is stored | the topic exists, its missing folders are made |
//! | growing: before the record is stored | the topic has the partitions it had; folders beyond them are made anew when it grows |
//! | growing: after the record is stored | the topic has the new partitions |
//! | deleting: before the record is marked | the topic exists |
//! | deleting: after the mark | the deletion is finished, local files and record |
//! | adopting: before the records are stored | the catalogue is still empty, they are adopted then |
//! | adopting: after the records are stored | the topics exist, their missing folders are made; whoever knows where their logs go on says so (`Partition::start_over_at`) |
//!
//! The mark also notes, in the same transaction, that the topic's archive has to go. Tiering reads these notes
//! ([`Topics::removals`]) at each start and between, and takes one back ([`Topics::removal_done`]) when the store has
//! nothing of the topic any more.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use thermocline_config::{LogConfig, TopicConfig, TopicConfigError};
use tokio::sync::broadcast;

use crate::log::{HotLog, LogError, Partition};
use crate::metadata::{MetadataError, MetadataStore, TopicRecord};
use crate::model::{Offset, PartitionId, TopicId, TopicName, TopicPartition};

/// Most partitions one topic may have.
pub const PARTITIONS_MAX: i32 = 10_000;
/// Most topics one broker may have.
pub const TOPICS_MAX: usize = 20_000;
/// Topic changes a slow subscriber may fall behind by before it must look at the whole catalogue again.
const CHANGES_BUFFERED_MAX: usize = 1024;

/// A topic that exists. One that grows is another value, which shares partitions and settings with the one before.
pub struct Topic {
    pub name: TopicName,
    pub id: TopicId,
    pub partitions: Vec<Arc<Partition>>,
    config: Arc<RwLock<Arc<TopicConfig>>>,
}

/// What happened to the catalogue.
#[derive(Clone)]
pub enum TopicChange {
    Created(Arc<Topic>),
    /// It has partitions that it had not.
    Grown(Arc<Topic>),
    Deleted(Arc<Topic>),
}

/// Why a topic could not be created, changed, deleted or loaded.
#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    #[error("topic {0} exists already")]
    Exists(TopicName),
    #[error("topic {0} does not exist")]
    Unknown(String),
    #[error("topic {topic}: {partitions} partitions; 1 to {PARTITIONS_MAX} are allowed")]
    Partitions { topic: TopicName, partitions: i32 },
    #[error("topic {topic} has {has} partitions; {asked} are not more")]
    NotMore { topic: TopicName, has: i32, asked: i32 },
    /// The cold tier is where an archived topic's log goes on after a restart.
    #[error(
        "topic {0}: remote.storage.enable is chosen before a topic has its first record, and cannot be changed; it is false where cleanup.policy is compact"
    )]
    Archived(TopicName),
    #[error(
        "topic {0} is archived, and its archive cannot be compacted; make another topic with cleanup.policy=compact and copy the records over"
    )]
    ArchivedAndCompacted(TopicName),
    #[error("topic {0} would be one more than the {TOPICS_MAX} a broker may have")]
    TooMany(TopicName),
    #[error("topic {0} is internal and cannot be changed or deleted")]
    Internal(TopicName),
    #[error("topic {topic}: {source}")]
    Config { topic: TopicName, source: TopicConfigError },
    #[error("topic {topic}: {source}")]
    Log { topic: TopicName, source: LogError },
    #[error(transparent)]
    Metadata(#[from] MetadataError),
}

/// All topics of this broker.
pub struct Topics {
    store: Arc<MetadataStore>,
    log: Arc<HotLog>,
    defaults: LogConfig,
    by_name: RwLock<BTreeMap<TopicName, Arc<Topic>>>,
    by_id: RwLock<HashMap<TopicId, Arc<Topic>>>,
    /// Held over every change, so that two of one name cannot overlap.
    changing: Mutex<()>,
    changes: broadcast::Sender<TopicChange>,
}

impl Topic {
    /// Whether the broker keeps it for itself.
    pub fn is_internal(&self) -> bool {
        self.name.is_internal()
    }
    pub fn config(&self) -> Arc<TopicConfig> {
        self.config.read().clone()
    }
    pub fn partition(&self, id: PartitionId) -> Option<&Arc<Partition>> {
        usize::try_from(id.0).ok().and_then(|index| self.partitions.get(index))
    }
    pub fn partition_count(&self) -> i32 {
        i32::try_from(self.partitions.len()).unwrap_or(PARTITIONS_MAX)
    }
}

/// Puts topics that are known from elsewhere into a catalogue that has none, under the ids they had; before it is
/// opened. Settings that this program does not take are left out, since a topic must not keep the others from being
/// served. Returns how many were adopted: none where the catalogue has topics. Blocking.
pub fn adopt(
    store: &MetadataStore,
    defaults: &LogConfig,
    mut topics: Vec<TopicRecord>,
) -> Result<usize, MetadataError> {
    if store.topics()?.iter().any(|topic| !topic.name.is_internal()) {
        return Ok(0);
    }
    topics.retain(|topic| !topic.name.is_internal());
    for topic in &mut topics {
        let TopicRecord { name, overrides, .. } = topic;
        overrides.retain(|key, value| {
            let alone = BTreeMap::from([(key.clone(), value.clone())]);
            let checked = TopicConfig::new(alone, defaults);
            if let Err(error) = &checked {
                tracing::warn!(topic = %name, key, value, %error, "setting left out of a restored topic");
            }
            checked.is_ok()
        });
        if let Err(error) = TopicConfig::new(overrides.clone(), defaults) {
            tracing::warn!(topic = %name, %error, "settings of a restored topic contradict each other; all left out");
            overrides.clear();
        }
    }
    store.put_topics(&topics)?;
    Ok(topics.len())
}

impl Topics {
    /// See [`HotLog::set_replaced`].
    pub fn set_replaced(&self) {
        self.log.set_replaced();
    }

    /// See [`HotLog::is_tight`].
    pub fn disk_is_tight(&self) -> bool {
        self.log.is_tight()
    }

    /// Loads every topic and recovers its partitions. Blocking.
    pub fn open(store: Arc<MetadataStore>, log: Arc<HotLog>, defaults: LogConfig) -> Result<Self, TopicError> {
        let topics = Self {
            store,
            log,
            defaults,
            by_name: RwLock::default(),
            by_id: RwLock::default(),
            changing: Mutex::default(),
            changes: broadcast::Sender::new(CHANGES_BUFFERED_MAX),
        };
        for record in topics.store.topics()? {
            if record.deleting {
                topics.remove_files(&record, 0..record.partitions)?;
                topics.store.remove_topic(&record)?;
            } else {
                let config = topics.check_config(&record.name, record.overrides.clone())?;
                topics.insert(topics.load(&record, Arc::new(config))?);
            }
        }
        Ok(topics)
    }

    pub fn get(&self, name: &str) -> Option<Arc<Topic>> {
        self.by_name.read().get(name).cloned()
    }

    pub fn by_id(&self, id: TopicId) -> Option<Arc<Topic>> {
        self.by_id.read().get(&id).cloned()
    }

    /// The directory that holds the log of every partition.
    pub fn log_dir(&self) -> &Path {
        self.log.dir()
    }

    /// All topics in name order.
    pub fn list(&self) -> Vec<Arc<Topic>> {
        self.by_name.read().values().cloned().collect()
    }

    /// Topics as they come and go from now on; read [`Self::list`] after subscribing, and again when lagging.
    pub fn subscribe(&self) -> broadcast::Receiver<TopicChange> {
        self.changes.subscribe()
    }

    /// Checks everything that [`Self::create`] would refuse, and creates nothing.
    pub fn validate(
        &self,
        name: &TopicName,
        partitions: i32,
        overrides: BTreeMap<String, String>,
    ) -> Result<TopicConfig, TopicError> {
        if !(1..=PARTITIONS_MAX).contains(&partitions) {
            return Err(TopicError::Partitions { topic: name.clone(), partitions });
        }
        let config = self.check_config(name, overrides)?;
        let by_name = self.by_name.read();
        if by_name.contains_key(name.as_str()) {
            return Err(TopicError::Exists(name.clone()));
        }
        if by_name.len() >= TOPICS_MAX {
            return Err(TopicError::TooMany(name.clone()));
        }
        Ok(config)
    }

    /// Creates a topic; on return it is durable, visible and ready. Blocking.
    pub fn create(
        &self,
        name: &TopicName,
        partitions: i32,
        overrides: BTreeMap<String, String>,
    ) -> Result<Arc<Topic>, TopicError> {
        let _changing = self.changing.lock();
        let config = Arc::new(self.validate(name, partitions, overrides.clone())?);
        let record = TopicRecord { name: name.clone(), id: TopicId::random(), partitions, overrides, deleting: false };
        // Folders of this name without a record are what an interrupted creation or deletion left behind.
        self.remove_files(&record, 0..partitions)?;
        self.store.put_topic(&record)?;
        let topic = self.load(&record, config)?;
        self.insert(topic.clone());
        let _ = self.changes.send(TopicChange::Created(topic.clone()));
        Ok(topic)
    }

    /// Gives a topic more partitions, `count` in all. On return they are durable, visible and ready, or, if it was
    /// `only_validate`, could be. Blocking.
    pub fn grow(&self, name: &str, count: i32, only_validate: bool) -> Result<Arc<Topic>, TopicError> {
        let _changing = self.changing.lock();
        let topic = self.changeable(name)?;
        let has = topic.partition_count();
        if !(1..=PARTITIONS_MAX).contains(&count) {
            return Err(TopicError::Partitions { topic: topic.name.clone(), partitions: count });
        }
        if count <= has {
            return Err(TopicError::NotMore { topic: topic.name.clone(), has, asked: count });
        }
        if only_validate {
            return Ok(topic);
        }
        let config = topic.config();
        let overrides = config.overrides.clone();
        let record =
            TopicRecord { name: topic.name.clone(), id: topic.id, partitions: count, overrides, deleting: false };
        // Logs first: were the record first, a log that cannot be made would leave a topic that says it has it.
        self.remove_files(&record, has..count)?;
        let added = self
            .open_partitions(&record, has..count, &config)
            .and_then(|added| self.store.put_topic(&record).map(|()| added).map_err(TopicError::from));
        let added = match added {
            Ok(added) => added,
            Err(failure) => {
                if let Err(error) = self.remove_files(&record, has..count) {
                    tracing::warn!(topic = %topic.name, %error, "logs of partitions that were not added are left");
                }
                return Err(failure);
            }
        };
        let partitions = topic.partitions.iter().cloned().chain(added).collect();
        let grown = Topic { name: topic.name.clone(), id: topic.id, partitions, config: topic.config.clone() };
        let grown = Arc::new(grown);
        self.insert(grown.clone());
        let _ = self.changes.send(TopicChange::Grown(grown.clone()));
        Ok(grown)
    }

    /// Changes the settings of a topic: `change` is given what is set. On return they are durable and in force, or, if
    /// it was `only_validate`, could be. Blocking.
    pub fn alter(
        &self,
        name: &str,
        only_validate: bool,
        change: impl FnOnce(&mut BTreeMap<String, String>),
    ) -> Result<Arc<Topic>, TopicError> {
        let _changing = self.changing.lock();
        let topic = self.changeable(name)?;
        let before = topic.config();
        let mut overrides = before.overrides.clone();
        change(&mut overrides);
        let config = self.check_config(&topic.name, overrides)?;
        let is_empty = topic.partitions.iter().all(|partition| partition.log_end_offset() == Offset::ZERO);
        if before.remote_storage_enable != config.remote_storage_enable && !is_empty {
            let name = topic.name.clone();
            let to_compacted = config.cleanup.compact && !before.cleanup.compact;
            return Err(if to_compacted { TopicError::ArchivedAndCompacted(name) } else { TopicError::Archived(name) });
        }
        if only_validate {
            return Ok(topic);
        }
        self.configure(&topic, Arc::new(config))?;
        Ok(topic)
    }

    /// A topic that the broker keeps for itself, created if it is missing, with exactly these settings. Blocking.
    pub fn open_internal(
        &self,
        name: &TopicName,
        partitions: i32,
        overrides: BTreeMap<String, String>,
    ) -> Result<Arc<Topic>, TopicError> {
        let Some(topic) = self.get(name.as_str()) else { return self.create(name, partitions, overrides) };
        let _changing = self.changing.lock();
        if topic.config().overrides != overrides {
            self.configure(&topic, Arc::new(self.check_config(name, overrides)?))?;
        }
        Ok(topic)
    }

    /// Makes settings durable and puts them in force.
    fn configure(&self, topic: &Topic, config: Arc<TopicConfig>) -> Result<(), TopicError> {
        self.store.put_topic(&TopicRecord {
            name: topic.name.clone(),
            id: topic.id,
            partitions: topic.partition_count(),
            overrides: config.overrides.clone(),
            deleting: false,
        })?;
        topic.partitions.iter().for_each(|partition| partition.set_config(config.clone()));
        *topic.config.write() = config;
        Ok(())
    }

    /// Deletes a topic and its local files, and notes that its archive has to go. Blocking.
    pub fn delete(&self, name: &str) -> Result<Arc<Topic>, TopicError> {
        let _changing = self.changing.lock();
        let topic = self.changeable(name)?;
        let record = TopicRecord {
            name: topic.name.clone(),
            id: topic.id,
            partitions: topic.partition_count(),
            overrides: topic.config().overrides.clone(),
            deleting: true,
        };
        self.store.begin_removal(&record)?;
        self.by_name.write().remove(name);
        self.by_id.write().remove(&topic.id);
        let _ = self.changes.send(TopicChange::Deleted(topic.clone()));
        self.remove_files(&record, 0..record.partitions)?;
        self.store.remove_topic(&record)?;
        Ok(topic)
    }

    /// Deleted topics whose archive may still be in the store; their partitions take no more appends. Blocking.
    pub fn removals(&self) -> Result<Vec<(TopicName, TopicId)>, TopicError> {
        // Not those of a deletion under way: its topic may still be in view.
        let _changing = self.changing.lock();
        Ok(self.store.removals()?)
    }

    /// The store has nothing of the deleted topic any more. Blocking.
    pub fn removal_done(&self, id: TopicId) -> Result<(), TopicError> {
        Ok(self.store.removal_done(id)?)
    }

    /// Raises the smallest readable offset of a partition, durably first. Blocking.
    pub fn raise_log_start(&self, partition: &Partition, start: Offset) -> Result<(), TopicError> {
        if start > partition.log_start_offset() {
            self.store.raise_log_start(partition.topic_id(), partition.topic_partition().partition, start)?;
            partition.set_log_start_offset(start);
        }
        Ok(())
    }

    /// What a topic without settings of its own gets.
    pub fn default_config(&self) -> Result<TopicConfig, TopicConfigError> {
        TopicConfig::new(BTreeMap::new(), &self.defaults)
    }

    /// A topic that clients may change.
    fn changeable(&self, name: &str) -> Result<Arc<Topic>, TopicError> {
        let topic = self.get(name).ok_or_else(|| TopicError::Unknown(name.chars().take(300).collect()))?;
        if topic.is_internal() { Err(TopicError::Internal(topic.name.clone())) } else { Ok(topic) }
    }

    fn check_config(&self, topic: &TopicName, overrides: BTreeMap<String, String>) -> Result<TopicConfig, TopicError> {
        TopicConfig::new(overrides, &self.defaults)
            .map_err(|source| TopicError::Config { topic: topic.clone(), source })
    }

    fn load(&self, record: &TopicRecord, config: Arc<TopicConfig>) -> Result<Arc<Topic>, TopicError> {
        let partitions = self.open_partitions(record, 0..record.partitions, &config)?;
        let config = Arc::new(RwLock::new(config));
        Ok(Arc::new(Topic { name: record.name.clone(), id: record.id, partitions, config }))
    }

    fn open_partitions(
        &self,
        record: &TopicRecord,
        ids: Range<i32>,
        config: &Arc<TopicConfig>,
    ) -> Result<Vec<Arc<Partition>>, TopicError> {
        let open = |id| {
            let log_start = self.store.log_start(record.id, id)?;
            self.log
                .open_partition(TopicPartition::new(record.name.clone(), id), record.id, config.clone(), log_start)
                .map_err(|source| TopicError::Log { topic: record.name.clone(), source })
        };
        ids.map(PartitionId).map(open).collect()
    }

    fn insert(&self, topic: Arc<Topic>) {
        self.by_id.write().insert(topic.id, topic.clone());
        self.by_name.write().insert(topic.name.clone(), topic);
    }

    fn remove_files(&self, record: &TopicRecord, ids: Range<i32>) -> Result<(), TopicError> {
        for id in ids.map(PartitionId) {
            self.log
                .remove_partition(&TopicPartition::new(record.name.clone(), id))
                .map_err(|source| TopicError::Log { topic: record.name.clone(), source })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
