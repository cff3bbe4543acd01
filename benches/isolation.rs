//! What archiving at full speed costs producers: the time from an append to its ack, at a fixed rate over several
//! partitions, with and without an archive job in the same process. Latencies count from when the append was due, so a
//! stall counts for every append that it held up. Rounds with and without archiving take turns, so that a machine that
//! changes its mind does so for both; how far the idle rounds are apart says what the ratio is worth. `TMPDIR=/dev/shm`
//! leaves the disk out; `THERMOCLINE_BENCH_STORE` names a folder for the cold tier that need not be on the log's disk.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use support::{BenchResult, Corpus, Rig, Table, fill, megabytes_per_second, milliseconds, quantile};
use thermocline_ingest::log::Partition;
use thermocline_ingest::metrics::IngestMetrics;
use thermocline_ingest::model::{Offset, Timestamp, TimestampType, TopicName};
use thermocline_ingest::record::BatchEncoder;
use thermocline_ingest::topics::Topic;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

const ROUNDS: usize = 8;
/// How long producers are watched without archiving, each round.
const IDLE: Duration = Duration::from_secs(5);
const PARTITIONS: i32 = 4;
const RECORD_BYTES: usize = 1 << 10;
const RECORDS_PER_BATCH: usize = 10;
/// Over all partitions.
const BYTES_PER_SECOND: usize = 5_000_000;

#[tokio::main]
async fn main() -> BenchResult {
    let corpus = Corpus::generate(support::corpus_bytes());
    let batches = corpus.batches();
    let rig = Rig::open().await?;
    let live = rig.topics.create(&TopicName::new("live")?, PARTITIONS, [].into())?;
    let (mut idle, mut archiving) = (Vec::new(), Vec::new());
    let mut archived = Duration::ZERO;
    for round in 0..ROUNDS {
        let backlog = rig.topic(&format!("backlog-{round}"), &[("segment.bytes", "67108864")])?;
        fill(backlog.partitions.first().ok_or("no partition")?, &batches).await?;
        let (mut alone, ()) = watch(&live, &rig.metrics, tokio::time::sleep(IDLE)).await?;
        let begun = Instant::now();
        let (mut beside, report) = watch(&live, &rig.metrics, rig.tiering.archive_now(&backlog, true)).await?;
        report?;
        archived += begun.elapsed();
        let [alone_p99, beside_p99] = [&mut alone, &mut beside].map(|latencies| {
            latencies.sort_unstable();
            milliseconds(quantile(latencies, 990))
        });
        let duty = rig.tiering_metrics.background_duty.get() * 100.0;
        println!(
            "round {round}: p99 {alone_p99:.1} ms idle, {beside_p99:.1} ms archiving, at last {duty:.0} % of the time"
        );
        idle.extend(alone);
        archiving.extend(beside);
    }
    let rate = megabytes_per_second(corpus.bytes * ROUNDS, archived);
    println!("{} acks idle, {} while archiving at {rate:.1} MB/s", idle.len(), archiving.len());
    idle.sort_unstable();
    archiving.sort_unstable();
    let mut table = Table::default();
    for (name, per_mille) in [("p50", 500), ("p99", 990), ("p99.9", 999)] {
        let of = |sorted: &[Duration]| milliseconds(quantile(sorted, per_mille));
        table.row(&format!("ack {name}, archiving"), of(&archiving), &format!("ack {name}, idle"), of(&idle));
    }
    table.print("ms");
    Ok(())
}

/// Produces at the fixed rate until `work` is done; all latencies, and what came of the work.
async fn watch<T>(
    topic: &Topic,
    metrics: &Arc<IngestMetrics>,
    work: impl Future<Output = T>,
) -> BenchResult<(Vec<Duration>, T)> {
    let batch = batch()?;
    let stop = Arc::new(AtomicBool::new(false));
    let every = Duration::from_secs_f64((batch.len() * topic.partitions.len()) as f64 / BYTES_PER_SECOND as f64);
    let mut producers = JoinSet::new();
    for partition in &topic.partitions {
        producers.spawn(produce(partition.clone(), batch.clone(), every, metrics.clone(), stop.clone()));
    }
    let value = work.await;
    stop.store(true, Ordering::Relaxed);
    let mut latencies = Vec::new();
    while let Some(produced) = producers.join_next().await {
        latencies.extend(produced??);
    }
    Ok((latencies, value))
}

/// One append `every` so often, whether or not earlier ones have their acks.
async fn produce(
    partition: Arc<Partition>,
    batch: Bytes,
    every: Duration,
    metrics: Arc<IngestMetrics>,
    stop: Arc<AtomicBool>,
) -> Result<Vec<Duration>, String> {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut appends: JoinSet<Result<Duration, String>> = JoinSet::new();
    while !stop.load(Ordering::Relaxed) {
        let due = ticks.tick().await;
        let (partition, batch, metrics) = (partition.clone(), batch.clone(), metrics.clone());
        appends.spawn(async move {
            let log = partition.clone();
            let appended = tokio::task::spawn_blocking(move || log.append(&batch)).await;
            let end = appended.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?.last_offset.next();
            partition.committed(end).await.map_err(|e| e.to_string())?;
            let latency = due.elapsed();
            metrics.observe_produce(latency);
            Ok(latency)
        });
    }
    appends.join_all().await.into_iter().collect()
}

fn batch() -> BenchResult<Bytes> {
    let mut random = StdRng::seed_from_u64(11);
    let mut encoder = BatchEncoder::new(TimestampType::CreateTime);
    for offset in 0..RECORDS_PER_BATCH {
        let value: Vec<u8> = (0..RECORD_BYTES).map(|_| random.random_range(b'a'..=b'z')).collect();
        encoder.push(Offset(offset as i64), Timestamp(1_760_000_000_000), None, Some(&value), std::iter::empty());
    }
    encoder.finish().ok_or_else(|| "an empty batch".into())
}
