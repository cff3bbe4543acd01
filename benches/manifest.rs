//! What a commit to a manifest costs, and what loading one does, at very different sizes: a commit should not notice.
//! The store is in memory, so times are CPU time; on a real one each request adds its latency.
//!
//! `THERMOCLINE_BENCH_FILES` sets the largest number of files (default 1000000).

mod support;

use std::sync::Arc;

use object_store::memory::InMemory;
use prometheus::IntCounterVec;
use serde_json::{Value, json};
use support::BenchResult;
use thermocline_config::StoreConfig;
use thermocline_ingest::clock::{Clock, SystemClock};
use thermocline_ingest::model::{Offset, PartitionId, Timestamp, TopicId, TopicName};
use thermocline_tiering::manifest::{Change, CommitOutcome, DataFile, ManifestHead, ManifestStore, ObjectRef};
use thermocline_tiering::metrics::TieringMetrics;
use thermocline_tiering::paths::{AttemptId, ObjectKind, PartitionPath, RangeName};
use thermocline_tiering::store::{ColdStore, Work};

const SIZES: [usize; 3] = [100, 10_000, 1_000_000];
/// Appends that are measured: every cost of sealing falls into them.
const COMMITS: usize = 2048;
/// Files that go into the history at once; their version object must be one that is read.
const FILES_AT_ONCE: usize = 200_000;
const RECORDS_PER_FILE: i64 = 100_000;
/// Clock ticks per second of `/proc/self/stat`, which Linux has had for all programs since long.
const TICKS_PER_SECOND: f64 = 100.0;
const PAGE_BYTES: f64 = 4096.0;

struct Rig {
    store: ColdStore,
    manifests: ManifestStore,
    metrics: TieringMetrics,
    path: PartitionPath,
}

/// Requests, bytes written, bytes read, CPU seconds so far.
#[derive(Clone, Copy)]
struct Cost(u64, u64, u64, f64);

#[tokio::main(flavor = "current_thread")]
async fn main() -> BenchResult {
    let largest = std::env::var("THERMOCLINE_BENCH_FILES").ok().and_then(|text| text.parse().ok());
    println!(
        "{:>9} | {:>11} {:>9} {:>8} | {:>9} {:>9} {:>8} {:>11}",
        "files", "B/commit", "req/commit", "ms CPU", "load req", "load MB", "s CPU", "B RAM/file"
    );
    for files in SIZES.into_iter().filter(|files| *files <= largest.unwrap_or(usize::MAX)) {
        let rig = Rig::open()?;
        rig.fill(files).await?;
        let before = rig.cost()?;
        let mut head = rig.manifests.load(&rig.path).await?;
        let loaded = rig.cost()?.since(before);
        // A second one, since the first takes what making the history has left free.
        let resident = resident_bytes()?;
        let second = rig.manifests.load(&rig.path).await?;
        let memory = resident_bytes()? - resident;
        drop(second);
        let before = rig.cost()?;
        for n in files..files + COMMITS {
            head = rig.commit(&head, Change::Append(Arc::new(rig.file(n)))).await?;
        }
        let Cost(requests, written, _, seconds) = rig.cost()?.since(before);
        let commits = COMMITS as f64;
        println!(
            "{files:>9} | {:>11.0} {:>10.2} {:>8.2} | {:>9} {:>9.2} {:>8.2} {:>11.0}",
            written as f64 / commits,
            requests as f64 / commits,
            seconds / commits * 1e3,
            loaded.0,
            loaded.2 as f64 / 1e6,
            loaded.3,
            memory / files as f64,
        );
    }
    Ok(())
}

impl Rig {
    fn open() -> BenchResult<Self> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let store = ColdStore::new(Arc::new(InMemory::new()), &StoreConfig::default());
        let metrics = TieringMetrics::new(&prometheus::Registry::new())?;
        store.observe(Arc::new(metrics.clone()));
        let path = PartitionPath::new(TopicName::new("orders")?, TopicId::random(), PartitionId(0));
        Ok(Self { manifests: ManifestStore::new(store.clone(), 1, clock), store, metrics, path })
    }

    /// The n-th file, with names and hashes as long as real ones.
    fn file(&self, n: usize) -> DataFile {
        let base = n as i64 * RECORDS_PER_FILE;
        let last = base + RECORDS_PER_FILE - 1;
        let attempt = AttemptId::fresh();
        let object = |kind| {
            let key = self.path.object(&RangeName { kind, base: Offset(base), last: Offset(last), attempt });
            ObjectRef { key: key.to_string(), size_bytes: 40_000_000 + n as u64, xxh3: AttemptId::fresh().to_string() }
        };
        DataFile {
            base_offset: Offset(base),
            last_offset: Offset(last),
            rows: RECORDS_PER_FILE as u64,
            dropped: 0,
            min_timestamp: Timestamp(1_700_000_000_000 + base),
            max_timestamp: Timestamp(1_700_000_000_000 + last),
            log_bytes: 134_217_000,
            digest: AttemptId::fresh().to_string(),
            data: object(ObjectKind::Data),
            split: Some(object(ObjectKind::Split)),
            indexed: None,
            raw: None,
        }
    }

    /// A history of `files` files, made by a few commits that find very long tails.
    async fn fill(&self, files: usize) -> BenchResult {
        let mut done = 0;
        while done < files {
            let end = files.min(done + FILES_AT_ONCE);
            let version = self.manifests.newest(&self.path).await?.map_or(0, |(version, _)| version);
            let mut newest = match version {
                0 => json!({"parts": [], "tail": []}),
                version => serde_json::from_slice::<Value>(&self.store.get(&self.path.manifest(version)).await?)?,
            };
            let mut tail: Vec<DataFile> = serde_json::from_value(newest["tail"].take())?;
            tail.extend((done..end).map(|n| self.file(n)));
            let text = format!(
                r#"{{"format_version":2,"topic":"{}","topic_id":"{}","partition":0,"version":{},"epoch":1,"log_start_offset":0,"parts":{},"tail":{}}}"#,
                self.path.topic,
                self.path.topic_id,
                version + 1,
                newest["parts"],
                serde_json::to_string(&tail)?,
            );
            drop(tail);
            self.store.put(&self.path.manifest(version + 1), text.into()).await?;
            let head = self.manifests.load(&self.path).await?;
            self.commit(&head, Change::Claim).await?;
            done = end;
        }
        Ok(())
    }

    async fn commit(&self, head: &ManifestHead, change: Change) -> BenchResult<ManifestHead> {
        match self.manifests.commit(head, change).await? {
            CommitOutcome::Committed(next) => Ok(next),
            CommitOutcome::Superseded(_) => Err("another commit came first".into()),
        }
    }

    fn cost(&self) -> BenchResult<Cost> {
        let by_operation =
            |operation| self.metrics.store_requests.with_label_values(&[operation, Work::Maintenance.label()]).get();
        let requests = ["put", "create", "head", "get", "list"].map(by_operation).iter().sum();
        let of = |bytes: &IntCounterVec| bytes.with_label_values(&[Work::Maintenance.label()]).get();
        let (written, read) = (of(&self.metrics.store_stored_bytes), of(&self.metrics.store_fetched_bytes));
        Ok(Cost(requests, written, read, cpu_seconds()?))
    }
}

impl Cost {
    fn since(self, before: Self) -> Self {
        Self(self.0 - before.0, self.1 - before.1, self.2 - before.2, self.3 - before.3)
    }
}

/// Of this process, user and system.
fn cpu_seconds() -> BenchResult<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(')').ok_or("an odd /proc/self/stat")?;
    let ticks: f64 = fields.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
    Ok(ticks / TICKS_PER_SECOND)
}

fn resident_bytes() -> BenchResult<f64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: f64 = statm.split_whitespace().nth(1).ok_or("an odd /proc/self/statm")?.parse()?;
    Ok(pages * PAGE_BYTES)
}
