//! What the benchmarks share: a corpus, a broker's parts without its listeners, and a table of ratios.
//!
//! `THERMOCLINE_BENCH_MB` sets the size of the corpus in megabytes (default 64).

#![allow(dead_code, reason = "each benchmark uses its own part")]

pub mod wire;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus::Registry;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;
use thermocline_config::{ByteSize, CacheConfig, Config};
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

/// Unit of the times in `/proc/self/stat` on Linux.
const TICKS_PER_SECOND: f64 = 100.0;

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

/// Lines of 100 to 250 bytes, the same for every run, made as they are asked for.
pub struct Lines {
    random: StdRng,
    number: usize,
    bytes_left: usize,
}

impl Lines {
    /// About `bytes` of them.
    pub fn of(bytes: usize) -> Self {
        Self::seeded(7, bytes)
    }

    /// Others for each seed.
    pub fn seeded(seed: u64, bytes: usize) -> Self {
        Self { random: StdRng::seed_from_u64(seed), number: 0, bytes_left: bytes }
    }
}

impl Iterator for Lines {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        if self.bytes_left == 0 {
            return None;
        }
        let (number, random) = (self.number, &mut self.random);
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
        self.number += 1;
        self.bytes_left = self.bytes_left.saturating_sub(line.len());
        Some(line)
    }
}

impl Corpus {
    /// About `bytes` of lines.
    pub fn generate(bytes: usize) -> Self {
        let messages: Vec<Vec<u8>> = Lines::of(bytes).map(String::into_bytes).collect();
        let bytes = messages.iter().map(Vec::len).sum();
        Self { messages, bytes }
    }

    /// The corpus as record batches, as a producer would send them.
    pub fn batches(&self) -> Vec<bytes::Bytes> {
        batches(self.messages.iter().map(Vec::as_slice)).collect()
    }
}

/// The timestamp of a message by its number.
pub fn timestamp(number: i64) -> Timestamp {
    Timestamp(1_760_000_000_000 + number * 10)
}

/// Record batches of [`BATCH_BYTES`] of these values, made as they are asked for.
pub fn batches<V: AsRef<[u8]>>(values: impl Iterator<Item = V>) -> impl Iterator<Item = bytes::Bytes> {
    let mut encoder = BatchEncoder::new(TimestampType::CreateTime);
    let mut values = (0i64..).zip(values).fuse();
    let mut base = 0;
    std::iter::from_fn(move || {
        for (number, value) in values.by_ref() {
            let delta = Offset(number - base);
            encoder.push(delta, timestamp(number), None, Some(value.as_ref()), std::iter::empty());
            if encoder.len_bytes() >= BATCH_BYTES {
                base = number + 1;
                return encoder.finish();
            }
        }
        encoder.finish()
    })
}

/// Where the cold tier is: beside the log, or in a folder that `THERMOCLINE_BENCH_STORE` names, which may be on another
/// disk. The folder must be empty.
fn store_folder(dir: &tempfile::TempDir) -> PathBuf {
    std::env::var_os("THERMOCLINE_BENCH_STORE").map_or(dir.path().to_owned(), PathBuf::from)
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
            store: ColdStore::open(&config.store, &store_folder(&dir))?,
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
        self.topic_of(name, 1, settings)
    }

    pub fn topic_of(&self, name: &str, partitions: i32, settings: &[(&str, &str)]) -> BenchResult<Arc<Topic>> {
        let overrides: BTreeMap<_, _> =
            settings.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        Ok(self.topics.create(&TopicName::new(name)?, partitions, overrides)?)
    }

    /// The same archive for readers that keep nothing of it in memory.
    pub async fn uncached(&self) -> BenchResult<(Arc<Tiering>, Arc<TieredReader>)> {
        let nothing = ByteSize::bytes(1);
        let cache = CacheConfig {
            batches_max_bytes: nothing,
            blocks_max_bytes: nothing,
            splits_max_bytes: nothing,
            ..self.config.cache.clone()
        };
        let tiering = Tiering::open(TieringOptions {
            config: self.config.tiering.clone(),
            cache: cache.clone(),
            store: ColdStore::open(&self.config.store, &store_folder(&self.dir))?,
            topics: self.topics.clone(),
            clock: Arc::new(SystemClock),
            metrics: Arc::new(TieringMetrics::new(&Registry::new())?),
            produce_latency: self.metrics.produce_latency.clone(),
            broker_epoch: 1,
        })
        .await?;
        Ok((tiering.clone(), Arc::new(TieredReader::new(tiering, &cache))))
    }
}

/// Appends the batches and waits until they are durable.
pub async fn fill<B: AsRef<[u8]>>(partition: &Partition, batches: impl IntoIterator<Item = B>) -> BenchResult {
    let mut end = Offset::ZERO;
    for batch in batches {
        end = partition.append(batch.as_ref())?.last_offset.next();
    }
    Ok(partition.committed(end).await?)
}

/// Processor time of this process so far, where the system tells.
pub fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok());
    ticks.sum::<f64>() / TICKS_PER_SECOND
}

/// Runs `body` and returns its value and how long it took.
pub fn timed<T>(body: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let value = body();
    (value, start.elapsed())
}

pub fn milliseconds(latency: Duration) -> f64 {
    latency.as_secs_f64() * 1e3
}

/// The value that so many of a thousand do not exceed.
pub fn quantile(sorted: &[Duration], per_mille: usize) -> Duration {
    let rank = (sorted.len() * per_mille).div_ceil(1000).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
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
