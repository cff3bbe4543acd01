//! What the benchmarks share: a corpus, a broker's parts without its listeners, and a table of ratios.
//!
//! `THERMOCLINE_BENCH_MB` sets the size of the corpus in megabytes (default 64).

#![allow(dead_code, reason = "each benchmark uses its own part")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus::Registry;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;
use thermocline_config::Config;
use thermocline_ingest::clock::{Clock, SystemClock};
use thermocline_ingest::log::{HotLog, Partition};
use thermocline_ingest::metadata::MetadataStore;
use thermocline_ingest::metrics::IngestMetrics;
use thermocline_ingest::model::{Offset, Timestamp, TimestampType, TopicName};
use thermocline_ingest::record::BatchEncoder;
use thermocline_ingest::topics::{Topic, Topics};
use thermocline_tiering::metrics::TieringMetrics;
use thermocline_tiering::reader::TieredReader;
use thermocline_tiering::store::ColdStore;
use thermocline_tiering::worker::{Tiering, TieringOptions};

/// Bytes of one produced batch.
pub const BATCH_BYTES: usize = 256 << 10;

pub type BenchResult<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// Log-like messages, the same for every run.
pub struct Corpus {
    pub messages: Vec<Vec<u8>>,
    pub bytes: usize,
}

/// Log, archive and reader in a temporary folder.
pub struct Rig {
    pub topics: Arc<Topics>,
    pub tiering: Arc<Tiering>,
    pub reader: Arc<TieredReader>,
    pub log: Arc<HotLog>,
    pub metrics: Arc<IngestMetrics>,
    pub tiering_metrics: Arc<TieringMetrics>,
    pub dir: TempDir,
    pub config: Config,
}

/// Rows of `what | rate | baseline | ratio`.
#[derive(Default)]
pub struct Table(Vec<(String, f64, String, f64)>);

const LEVELS: [&str; 4] = ["INFO", "WARN", "ERROR", "DEBUG"];
const SERVICES: [&str; 8] = ["checkout", "cart", "payment", "inventory", "shipping", "search", "auth", "gateway"];
const PHRASES: [&str; 8] = [
    "request completed",
    "connection reset by peer",
    "cache miss, loading from store",
    "user session expired",
    "retrying after timeout",
    "order accepted for processing",
    "payment declined by issuer",
    "stock level below threshold",
];

pub fn corpus_bytes() -> usize {
    let megabytes = std::env::var("THERMOCLINE_BENCH_MB").ok().and_then(|text| text.parse().ok()).unwrap_or(64usize);
    megabytes * 1_000_000
}

impl Corpus {
    /// About `bytes` of lines of 100 to 250 bytes.
    pub fn generate(bytes: usize) -> Self {
        let mut random = StdRng::seed_from_u64(7);
        let mut corpus = Self { messages: Vec::new(), bytes: 0 };
        while corpus.bytes < bytes {
            let number = corpus.messages.len();
            let line = format!(
                "2026-10-{:02}T{:02}:{:02}:{:02}.{:03}Z {} {}-{} {} user={} order={:08x} path=/api/v{}/{}/{} latency_ms={} trace={:016x}",
                number / 86_400 % 28 + 1,
                number / 3600 % 24,
                number / 60 % 60,
                number % 60,
                random.random_range(0..1000),
                LEVELS[random.random_range(0..LEVELS.len())],
                SERVICES[random.random_range(0..SERVICES.len())],
                random.random_range(0..20),
                PHRASES[random.random_range(0..PHRASES.len())],
                random.random_range(0..50_000),
                random.random::<u32>(),
                random.random_range(1..4),
                SERVICES[random.random_range(0..SERVICES.len())],
                random.random_range(0..100_000),
                random.random_range(1..3000),
                random.random::<u64>(),
            );
            corpus.bytes += line.len();
            corpus.messages.push(line.into_bytes());
        }
        corpus
    }

    /// The corpus as record batches, as a producer would send them.
    pub fn batches(&self) -> Vec<bytes::Bytes> {
        let mut encoder = BatchEncoder::new(TimestampType::CreateTime);
        let mut batches = Vec::new();
        let mut delta = 0;
        for (number, message) in (0i64..).zip(&self.messages) {
            let timestamp = Timestamp(1_760_000_000_000 + number * 10);
            encoder.push(Offset(delta), timestamp, None, Some(message), std::iter::empty());
            delta += 1;
            if encoder.len_bytes() >= BATCH_BYTES {
                batches.extend(encoder.finish());
                delta = 0;
            }
        }
        batches.extend(encoder.finish());
        batches
    }
}

impl Rig {
    pub async fn open() -> BenchResult<Self> {
        let dir = tempfile::tempdir()?;
        let config = Config::default();
        let registry = Registry::new();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let metrics = Arc::new(IngestMetrics::new(&registry)?);
        let log = HotLog::open(dir.path().join("log"), config.log.clone(), clock.clone(), metrics.clone())?;
        let metadata = Arc::new(MetadataStore::open(&dir.path().join("metadata.redb"))?);
        let topics = Arc::new(Topics::open(metadata, log.clone(), config.log.clone())?);
        let tiering_metrics = Arc::new(TieringMetrics::new(&registry)?);
        let tiering = Tiering::open(TieringOptions {
            config: config.tiering.clone(),
            cache: config.cache.clone(),
            store: ColdStore::open(&config.store, dir.path())?,
            topics: topics.clone(),
            clock,
            metrics: tiering_metrics.clone(),
            produce_latency: metrics.produce_latency.clone(),
            broker_epoch: 1,
        })
        .await?;
        let reader = Arc::new(TieredReader::new(tiering.clone(), &config.cache));
        Ok(Self { topics, tiering, reader, log, metrics, tiering_metrics, dir, config })
    }

    /// A topic with one partition and the given settings.
    pub fn topic(&self, name: &str, settings: &[(&str, &str)]) -> BenchResult<Arc<Topic>> {
        let overrides: BTreeMap<_, _> =
            settings.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        Ok(self.topics.create(&TopicName::new(name)?, 1, overrides)?)
    }
}

/// Appends the batches and waits until they are durable.
pub async fn fill(partition: &Partition, batches: &[bytes::Bytes]) -> BenchResult {
    let mut end = Offset::ZERO;
    for batch in batches {
        end = partition.append(batch)?.last_offset.next();
    }
    Ok(partition.committed(end).await?)
}

/// Runs `body` and returns its value and how long it took.
pub fn timed<T>(body: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let value = body();
    (value, start.elapsed())
}

pub fn megabytes_per_second(bytes: usize, duration: Duration) -> f64 {
    bytes as f64 / 1e6 / duration.as_secs_f64()
}

impl Table {
    pub fn row(&mut self, what: &str, rate: f64, baseline: &str, baseline_rate: f64) {
        self.0.push((what.to_owned(), rate, baseline.to_owned(), baseline_rate));
    }
    pub fn print(&self, unit: &str) {
        println!("{:<34} {:>12}   {:<40} {:>12} {:>7}", "what", unit, "beside", unit, "ratio");
        for (what, rate, baseline, baseline_rate) in &self.0 {
            println!("{what:<34} {rate:>12.1}   {baseline:<40} {baseline_rate:>12.1} {:>7.2}", rate / baseline_rate);
        }
    }
}
