//! A broker's parts without its listeners: log, archive in a local folder, live index and search.

#![allow(dead_code, reason = "each test uses its own part")]

use std::collections::BTreeMap;
use std::path::PathBuf;
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
use tokio_util::sync::CancellationToken;

/// Longest wait for the live index before a test gives up.
const PATIENCE: Duration = Duration::from_secs(60);

pub type Failure = Box<dyn std::error::Error + Send + Sync>;

pub struct Parts {
    pub topic: Arc<Topic>,
    pub tiering: Arc<Tiering>,
    pub search: Arc<Search>,
    pub registry: Registry,
    pub shutdown: CancellationToken,
    log: Arc<HotLog>,
    folder: tempfile::TempDir,
}

/// A cache in which nothing stays.
pub fn no_cache() -> CacheConfig {
    let tiny = ByteSize::bytes(1);
    CacheConfig { batches_max_bytes: tiny, blocks_max_bytes: tiny, splits_max_bytes: tiny, ..CacheConfig::default() }
}

impl Parts {
    /// One topic, searched and indexed live.
    pub async fn start(cache: CacheConfig, partitions: i32, settings: &[(&str, &str)]) -> Result<Self, Failure> {
        let folder = tempfile::tempdir()?;
        let registry = Registry::new();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let log_config = LogConfig::default();
        let metrics = Arc::new(IngestMetrics::new(&registry)?);
        let log = HotLog::open(folder.path().join("log"), log_config.clone(), clock.clone(), metrics)?;
        let metadata = Arc::new(MetadataStore::open(&folder.path().join("metadata.redb"))?);
        let topics = Arc::new(Topics::open(metadata, log.clone(), log_config)?);
        let settings: BTreeMap<_, _> =
            settings.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        let topic = topics.create(&TopicName::new("events")?, partitions, settings)?;
        let tiering = Tiering::open(TieringOptions {
            config: TieringConfig::default(),
            cache: cache.clone(),
            store: ColdStore::open(&StoreConfig::default(), folder.path())?,
            topics,
            clock: clock.clone(),
            metrics: Arc::new(TieringMetrics::new(&registry)?),
            produce_latency: Arc::default(),
            broker_epoch: 1,
        })
        .await?;
        let reader = Arc::new(TieredReader::new(tiering.clone(), &cache));
        let scratch = folder.path().join("live");
        let search = Search::new(SearchConfig::default(), tiering.clone(), reader, scratch, clock, &registry)?;
        let shutdown = CancellationToken::new();
        tokio::spawn(search.clone().run(shutdown.clone()));
        Ok(Self { topic, tiering, search, registry, shutdown, log, folder })
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
        let log = self.partition(partition)?.clone();
        let mut encoder = BatchEncoder::new(TimestampType::CreateTime);
        for (delta, (timestamp, value)) in (0..).zip(messages) {
            let key = key.map(str::as_bytes);
            encoder.push(Offset(delta), Timestamp(*timestamp), key, Some(value.as_bytes()), std::iter::empty());
        }
        let batch = encoder.finish().ok_or("an empty batch")?;
        let appender = log.clone();
        let appended = tokio::task::spawn_blocking(move || appender.append(&batch)).await??;
        log.committed(appended.last_offset.next()).await?;
        Ok(())
    }

    /// Compacts what is due.
    pub async fn clean(&self) -> Result<(), Failure> {
        let log = self.log.clone();
        Ok(tokio::task::spawn_blocking(move || log.clean(&|| false)).await?)
    }

    /// Waits until everything acked so far can be found.
    pub async fn indexed(&self) -> Result<(), Failure> {
        let ends: Vec<Offset> = self.topic.partitions.iter().map(|partition| partition.high_watermark()).collect();
        let behind = || {
            let mut partitions = self.topic.partitions.iter().zip(&ends);
            partitions.any(|(partition, end)| self.search.indexed_through(partition) < *end)
        };
        let wait = async {
            while behind() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        Ok(tokio::time::timeout(PATIENCE, wait).await?)
    }

    /// The local folder that is the object store.
    pub fn store_folder(&self) -> PathBuf {
        self.folder.path().join("cold")
    }

    pub async fn stop(self) -> Result<(), Failure> {
        self.shutdown.cancel();
        let log = self.log.clone();
        tokio::task::spawn_blocking(move || log.close()).await??;
        Ok(())
    }
}

/// Newest first over all topics.
pub fn request(query: &str, limit: usize) -> SearchRequest {
    SearchRequest { query: query.to_owned(), limit, ..SearchRequest::default() }
}
