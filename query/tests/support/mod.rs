//! A broker's parts without its listeners: log, archive, live index and search.

#![allow(dead_code, reason = "each test uses its own part")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use prometheus::Registry;
use thermocline_config::{ByteSize, CacheConfig, LogConfig, SearchConfig, StoreConfig, TieringConfig};
use thermocline_ingest::clock::{Clock, SystemClock};
use thermocline_ingest::log::{HotLog, Partition};
use thermocline_ingest::metadata::MetadataStore;
use thermocline_ingest::metrics::IngestMetrics;
use thermocline_ingest::model::{Offset, PartitionId, Timestamp, TimestampType, TopicName};
use thermocline_ingest::record::BatchEncoder;
use thermocline_ingest::topics::{Topic, Topics};
use thermocline_query::search::{Search, SearchRequest};
use thermocline_tiering::metrics::TieringMetrics;
use thermocline_tiering::reader::TieredReader;
use thermocline_tiering::store::ColdStore;
use thermocline_tiering::worker::{Tiering, TieringOptions};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longest wait for anything before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The folder in the data folder that is the object store.
pub const STORE: &str = "cold";
/// The topic that is there from the start.
pub const TOPIC: &str = "orders";

pub type Failure = Box<dyn std::error::Error + Send + Sync>;

pub struct Parts {
    pub topics: Arc<Topics>,
    pub topic: Arc<Topic>,
    pub tiering: Arc<Tiering>,
    pub reader: Arc<TieredReader>,
    pub search: Arc<Search>,
    pub clock: Arc<dyn Clock>,
    pub registry: Registry,
    pub shutdown: CancellationToken,
    indexing: JoinHandle<()>,
    log: Arc<HotLog>,
    broker_epoch: u64,
    folder: Arc<tempfile::TempDir>,
}

/// What one message says.
#[derive(Clone, Debug, Default)]
pub struct Content {
    pub timestamp: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

/// A cache in which nothing stays.
pub fn no_cache() -> CacheConfig {
    let tiny = ByteSize::bytes(1);
    CacheConfig { batches_max_bytes: tiny, blocks_max_bytes: tiny, splits_max_bytes: tiny, ..CacheConfig::default() }
}

impl Parts {
    /// One topic, searched and indexed live.
    pub async fn start(cache: CacheConfig, partitions: i32, settings: &[(&str, &str)]) -> Result<Self, Failure> {
        let folder = Arc::new(tempfile::tempdir()?);
        let store = ColdStore::open(&StoreConfig::default(), folder.path())?;
        Self::open(folder, store, cache, 1, |topics| create(topics, TOPIC, partitions, settings)).await
    }

    /// The same disk under a new process, with nothing in its caches; its archive in `store`, else where it was.
    pub async fn restart(self, store: Option<ColdStore>, cache: CacheConfig) -> Result<Self, Failure> {
        let (folder, epoch) = (self.folder.clone(), self.broker_epoch + 1);
        self.stop().await?;
        let local = || ColdStore::open(&StoreConfig::default(), folder.path());
        let store = store.map_or_else(local, Ok)?;
        Self::open(folder, store, cache, epoch, |topics| Ok(topics.get(TOPIC).ok_or("the topic is gone")?)).await
    }

    async fn open(
        folder: Arc<tempfile::TempDir>,
        store: ColdStore,
        cache: CacheConfig,
        broker_epoch: u64,
        topic: impl FnOnce(&Topics) -> Result<Arc<Topic>, Failure>,
    ) -> Result<Self, Failure> {
        let registry = Registry::new();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let log_config = LogConfig::default();
        let metrics = Arc::new(IngestMetrics::new(&registry)?);
        let log = HotLog::open(folder.path().join("log"), log_config.clone(), clock.clone(), metrics)?;
        let metadata = Arc::new(MetadataStore::open(&folder.path().join("metadata.redb"))?);
        let topics = Arc::new(Topics::open(metadata, log.clone(), log_config)?);
        let topic = topic(&topics)?;
        let tiering = Tiering::open(TieringOptions {
            config: TieringConfig::default(),
            cache: cache.clone(),
            store,
            topics: topics.clone(),
            clock: clock.clone(),
            metrics: Arc::new(TieringMetrics::new(&registry)?),
            produce_latency: Arc::default(),
            broker_epoch,
        })
        .await?;
        let reader = Arc::new(TieredReader::new(tiering.clone(), &cache));
        let scratch = folder.path().join("live");
        let config = SearchConfig::default();
        let search = Search::new(config, tiering.clone(), reader.clone(), scratch, clock.clone(), &registry)?;
        let shutdown = CancellationToken::new();
        let indexing = tokio::spawn(search.clone().run(shutdown.clone()));
        Ok(Self {
            topics,
            topic,
            tiering,
            reader,
            search,
            clock,
            registry,
            shutdown,
            indexing,
            log,
            broker_epoch,
            folder,
        })
    }

    pub fn create(&self, name: &str, partitions: i32, settings: &[(&str, &str)]) -> Result<Arc<Topic>, Failure> {
        create(&self.topics, name, partitions, settings)
    }

    pub fn partition(&self, partition: i32) -> Result<&Arc<Partition>, Failure> {
        Ok(self.topic.partition(PartitionId(partition)).ok_or("no such partition")?)
    }

    /// Appends one batch of (timestamp, value) and waits until it is acked.
    pub async fn produce(&self, partition: i32, messages: &[(i64, String)]) -> Result<(), Failure> {
        self.produce_keyed(partition, None, messages).await
    }

    /// The same with one key for all.
    pub async fn produce_keyed(
        &self,
        partition: i32,
        key: Option<&str>,
        messages: &[(i64, String)],
    ) -> Result<(), Failure> {
        let content = |(timestamp, value): &(i64, String)| {
            let (key, value) = (key.map(Into::into), Some(value.clone().into()));
            Content { timestamp: *timestamp, key, value, headers: Vec::new() }
        };
        append(self.partition(partition)?, &messages.iter().map(content).collect::<Vec<_>>()).await
    }

    /// Compacts what is due.
    pub async fn clean(&self) -> Result<(), Failure> {
        let log = self.log.clone();
        Ok(tokio::task::spawn_blocking(move || log.clean(&|| false)).await?)
    }

    /// Waits until everything acked so far can be found.
    pub async fn indexed(&self) -> Result<(), Failure> {
        let topics = self.topics.list();
        let partitions = topics.iter().flat_map(|topic| &topic.partitions);
        let ends: Vec<_> = partitions.map(|partition| (partition, partition.high_watermark())).collect();
        let behind = || ends.iter().any(|(partition, end)| self.search.indexed_through(partition) < *end);
        let wait = async {
            while behind() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        Ok(tokio::time::timeout(PATIENCE, wait).await?)
    }

    /// The folder of all data.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The local folder that is the object store.
    pub fn store_folder(&self) -> PathBuf {
        self.folder().join(STORE)
    }

    /// Ends the live index; what is produced from here on cannot be found.
    pub async fn stop_indexing(&mut self) -> Result<(), Failure> {
        self.shutdown.cancel();
        Ok((&mut self.indexing).await?)
    }

    pub async fn stop(self) -> Result<(), Failure> {
        self.shutdown.cancel();
        self.indexing.await?;
        let log = self.log.clone();
        tokio::task::spawn_blocking(move || log.close()).await??;
        Ok(())
    }
}

fn create(topics: &Topics, name: &str, partitions: i32, settings: &[(&str, &str)]) -> Result<Arc<Topic>, Failure> {
    let settings = settings.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    Ok(topics.create(&TopicName::new(name)?, partitions, settings)?)
}

/// Appends one batch and waits until it is acked.
pub async fn append(log: &Arc<Partition>, batch: &[Content]) -> Result<(), Failure> {
    let mut encoder = BatchEncoder::new(TimestampType::CreateTime);
    for (delta, Content { timestamp, key, value, headers }) in (0..).zip(batch) {
        let headers = headers.iter().map(|(name, value)| (name.as_slice(), value.as_deref()));
        encoder.push(Offset(delta), Timestamp(*timestamp), key.as_deref(), value.as_deref(), headers);
    }
    let batch = encoder.finish().ok_or("an empty batch")?;
    let appender = log.clone();
    let appended = tokio::task::spawn_blocking(move || appender.append(&batch)).await??;
    log.committed(appended.last_offset.next()).await?;
    Ok(())
}

/// Newest first over all topics.
pub fn request(query: &str, limit: usize) -> SearchRequest {
    SearchRequest { query: query.to_owned(), limit, ..SearchRequest::default() }
}
