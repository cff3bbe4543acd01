//! How long after its ack a message can be found, while log lines are produced at a steady rate to all partitions of a
//! topic, archiving included; and what indexing costs the acks. Beside it: the processor time it took, all included,
//! and how many files the archive made, and how many of them with splits of the live index.
//!
//! What is looked for are words of their own in some batches, each from its ack on: one search over the whole topic
//! every [`LOOK_EVERY`], so that looking is a load of known size, and none that grows as the index falls behind.
//!
//! `THERMOCLINE_BENCH_RATE` sets megabytes per second (default 10), `THERMOCLINE_BENCH_SECONDS` how long (default 30).

mod support;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use prometheus::Registry;
use support::{BenchResult, Lines, Rig};
use thermocline_ingest::clock::SystemClock;
use thermocline_ingest::latency::ProduceLatency;
use thermocline_ingest::log::Partition;
use thermocline_ingest::model::{Offset, TimestampType};
use thermocline_ingest::record::BatchEncoder;
use thermocline_ingest::topics::Topic;
use thermocline_query::search::{Search, SearchRequest};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

const PARTITIONS: i32 = 8;
/// What a producer gathers before it sends.
const BATCH_BYTES: usize = 32 << 10;
/// One batch of so many carries a word of its own that is searched for from its ack on.
const PROBE_EVERY: usize = 64;
/// Between two searches. The figures are too large by this, times the partitions with probes that are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A probe that is not found by then counts as found then.
const PROBE_PATIENCE: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Measured {
    acks: Vec<Duration>,
    found: Vec<Duration>,
    cost: String,
}

#[tokio::main]
async fn main() -> BenchResult {
    let number = |name: &str, default: usize| {
        std::env::var(name).ok().and_then(|text| text.parse::<usize>().ok()).unwrap_or(default)
    };
    let rate = number("THERMOCLINE_BENCH_RATE", 10) * 1_000_000;
    let seconds = number("THERMOCLINE_BENCH_SECONDS", 30);
    println!("{PARTITIONS} partitions, {} MB/s for {seconds} s; milliseconds", rate / 1_000_000);
    println!("{:<26} {:>8} {:>9} {:>9} {:>9} {:>9}", "", "count", "p50", "p99", "max", "MB/s");
    for index in ["off", "text", "json"] {
        let (measured, achieved) = produce(index, rate, seconds).await?;
        row(&format!("ack, search.index={index}"), measured.acks, Some(achieved));
        println!("{}", measured.cost);
        if !measured.found.is_empty() {
            row(&format!("ack to found, {index}"), measured.found, None);
        }
    }
    Ok(())
}

fn row(name: &str, mut took: Vec<Duration>, rate: Option<f64>) {
    took.sort_unstable();
    let at =
        |share: usize| took.get(took.len() * share / 100).or(took.last()).map_or(0.0, |took| took.as_secs_f64() * 1e3);
    let rate = rate.map_or(String::new(), |rate| format!("{rate:.1}"));
    println!("{name:<26} {:>8} {:>9.2} {:>9.2} {:>9.2} {rate:>9}", took.len(), at(50), at(99), at(100));
}

async fn produce(index: &str, rate: usize, seconds: usize) -> BenchResult<(Measured, f64)> {
    let rig = Rig::open().await?;
    let settings = [("search.index", index), ("segment.bytes", "16777216")];
    let topic = rig.topic_of("bench", PARTITIONS, &settings)?;
    let search = Search::new(
        rig.config.search.clone(),
        rig.tiering.clone(),
        rig.reader.clone(),
        rig.dir.path().join("live"),
        Arc::new(SystemClock),
        &Registry::new(),
    )?;
    let shutdown = CancellationToken::new();
    let (indexing, archiving) = (search.clone().run(shutdown.clone()), rig.tiering.clone().run(shutdown.clone()));
    let background = (tokio::spawn(indexing), tokio::spawn(archiving));

    let measured = Arc::new(Mutex::new(Measured::default()));
    let probes = Arc::new(Probes::of(topic.partitions.len()));
    let looking = (index != "off").then(|| probes.clone().look(search.clone(), topic.clone()));
    let (start, cpu) = (Instant::now(), support::cpu_seconds());
    let mut producers = JoinSet::new();
    for (number, partition) in (0..).zip(&topic.partitions) {
        let share = rate / topic.partitions.len();
        let producer = Producer {
            number,
            partition: partition.clone(),
            latency: rig.metrics.produce_latency.clone(),
            probes: looking.is_some().then(|| probes.clone()),
            measured: measured.clone(),
            pause: Duration::from_secs_f64(BATCH_BYTES as f64 / share as f64),
        };
        producers.spawn(producer.run(start, share * seconds));
    }
    let mut bytes = 0;
    while let Some(produced) = producers.join_next().await {
        bytes += produced?.map_err(|error| error.to_string())?;
    }
    let achieved = bytes as f64 / 1e6 / start.elapsed().as_secs_f64();
    if let Some(looking) = looking {
        probes.close();
        measured.lock().found = looking.await?;
    }
    let duty = rig.tiering_metrics.background_duty.get();
    shutdown.cancel();
    background.0.await?;
    background.1.await?;
    let mut measured = std::mem::take(&mut *measured.lock());
    let files = rig
        .topics
        .list()
        .iter()
        .flat_map(|topic| &topic.partitions)
        .map(|p| rig.tiering.manifest(p).files.len())
        .sum::<usize>();
    let taken = rig.tiering_metrics.archived_splits_taken.get();
    measured.cost = format!(
        "{:<26} {:.2} s of processor time per second; archiving in {:.0} % of it in the end, {files} files, {taken} of them \
         with splits of the live index",
        "",
        (support::cpu_seconds() - cpu) / start.elapsed().as_secs_f64(),
        duty * 100.0,
    );
    Ok((measured, achieved))
}

struct Producer {
    number: usize,
    partition: Arc<Partition>,
    /// What archiving gives way to.
    latency: Arc<ProduceLatency>,
    /// None where nothing is looked for.
    probes: Option<Arc<Probes>>,
    measured: Arc<Mutex<Measured>>,
    /// Between two batches.
    pause: Duration,
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

impl Producer {
    /// Produces `bytes` of lines, one batch after the other, at its rate. Returns the bytes of the lines.
    async fn run(self, start: Instant, bytes: usize) -> Result<usize, Failed> {
        let mut lines = Lines::seeded(self.number as u64, bytes);
        let mut produced = 0;
        for sequence in 0_usize.. {
            // Those of the partitions come one after the other, for they are looked for one after the other.
            let turn = sequence + self.number * PROBE_EVERY / PARTITIONS as usize;
            let probe = turn.is_multiple_of(PROBE_EVERY).then(|| format!("probe{}x{sequence}", self.number));
            let Some((batch, batch_bytes)) = batch(&mut lines, probe.as_deref()) else { break };
            // Late batches catch up: the rate is that of all, as from many producers.
            let due = start + self.pause.mul_f64(sequence as f64);
            tokio::time::sleep_until(due.into()).await;
            let sent = Instant::now();
            let partition = self.partition.clone();
            let appended = tokio::task::spawn_blocking(move || partition.append(&batch)).await??;
            self.partition.committed(appended.last_offset.next()).await?;
            let took = sent.elapsed();
            self.latency.record(took);
            self.measured.lock().acks.push(took);
            produced += batch_bytes;
            if let (Some(word), Some(probes)) = (probe, &self.probes) {
                probes.add(self.number, word);
            }
        }
        Ok(produced)
    }
}

/// The next lines as a batch; `probe` ends the last of them.
fn batch(lines: &mut Lines, probe: Option<&str>) -> Option<(Bytes, usize)> {
    let mut encoder = BatchEncoder::new(TimestampType::CreateTime);
    let now = thermocline_ingest::clock::Clock::now(&SystemClock);
    let mut bytes = 0;
    for (delta, mut line) in (0..).zip(lines) {
        bytes += line.len();
        let is_full = bytes >= BATCH_BYTES;
        if let Some(probe) = probe.filter(|_| is_full) {
            line.push(' ');
            line.push_str(probe);
        }
        encoder.push(Offset(delta), now, None, Some(line.as_bytes()), std::iter::empty());
        if is_full {
            break;
        }
    }
    Some((encoder.finish()?, bytes))
}

/// Words that are looked for.
struct Probes(Mutex<Waiting>);

struct Waiting {
    /// Those of each partition and when they were acked, oldest first: a later one is not found before an earlier one.
    of_partition: Vec<VecDeque<(String, Instant)>>,
    /// No more come.
    is_closed: bool,
}

impl Probes {
    fn of(partitions: usize) -> Self {
        Self(Mutex::new(Waiting { of_partition: vec![VecDeque::new(); partitions], is_closed: false }))
    }

    fn add(&self, partition: usize, word: String) {
        if let Some(waiting) = self.0.lock().of_partition.get_mut(partition) {
            waiting.push_back((word, Instant::now()));
        }
    }

    fn close(&self) {
        self.0.lock().is_closed = true;
    }

    /// Looks for the oldest of each partition in turn, until all are found and no more come. Returns how long after its
    /// ack each was found.
    fn look(self: Arc<Self>, search: Arc<Search>, topic: Arc<Topic>) -> JoinHandle<Vec<Duration>> {
        tokio::spawn(async move {
            let (mut found, mut partition) = (Vec::new(), 0);
            while !self.is_over() {
                if let Some((of, word, acked)) = self.oldest_after(partition) {
                    partition = of;
                    let topics = vec![topic.name.clone()];
                    let request = SearchRequest { query: word, topics, limit: 1, ..SearchRequest::default() };
                    // A refusal, as from too many searches at once, is a late answer.
                    let is_found = search.search(request).await.is_ok_and(|page| page.total > 0);
                    if is_found || acked.elapsed() > PROBE_PATIENCE {
                        found.push(acked.elapsed());
                        self.0.lock().of_partition[partition].pop_front();
                    }
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
            found
        })
    }

    fn is_over(&self) -> bool {
        let waiting = self.0.lock();
        waiting.is_closed && waiting.of_partition.iter().all(VecDeque::is_empty)
    }

    /// The oldest of the next partition that has some, and when it was acked.
    fn oldest_after(&self, partition: usize) -> Option<(usize, String, Instant)> {
        let of_partition = &self.0.lock().of_partition;
        (1..=of_partition.len()).map(|step| (partition + step) % of_partition.len()).find_map(|next| {
            let (word, acked) = of_partition[next].front()?;
            Some((next, word.clone(), *acked))
        })
    }
}
