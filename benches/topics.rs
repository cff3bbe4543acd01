//! What many topics cost: produce and fetch over the Kafka protocol, the same load spread over 1, 10, 100 and 1,000
//! topics of one partition, in records of 1 KiB and of 100 B, with acks after the sync (strict) and before it
//! (relaxed).
//!
//! Throughput: [`CONNECTIONS`] producers with [`IN_FLIGHT`] requests on their way, each with one batch to each of as
//! many topics as [`REQUEST_BYTES`] hold, or to all there are, which is how producers fill their requests; then as many
//! consumers that read everything, each its share of the topics in a fetch session. Beside it the same bytes written to
//! as many plain files, and synced where acks wait for that, a request at a time; and read from them.
//!
//! Latency: single batches of [`WATCHED_BATCH_BYTES`] at a fixed rate, one topic after the other, from when each was
//! due: to its ack, and to its arrival at a consumer that polls in a session. Beside it the same batch written to plain
//! files, one at a time.
//!
//! Client and broker share the machine. The last table is what the others are for: throughput at each number of topics
//! over that at 10. `THERMOCLINE_BENCH_TOPICS=10,1000` runs some of it.

mod support;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::{try_join, try_join_all};
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::{FetchRequest, FetchResponse, TopicName};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use support::{BenchResult, Table, megabytes_per_second, milliseconds, quantile, timed, wire};
use thermocline::Broker;
use thermocline_config::Config;
use thermocline_ingest::model::{Offset, Timestamp, TimestampType};
use thermocline_ingest::record::{BatchEncoder, BatchHeader, split_batches};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::Instant;

const TOPICS: [usize; 4] = [1, 10, 100, 1000];
/// What the others are held against.
const BESIDE_TOPICS: usize = 10;
const RECORD_BYTES: [usize; 2] = [1 << 10, 100];
const CONNECTIONS: usize = 4;
/// Requests sent before the first answer is awaited (`max.in.flight.requests.per.connection`).
const IN_FLIGHT: usize = 5;
/// A producer's `batch.size`.
const BATCH_BYTES: usize = 16 << 10;
/// Its `max.request.size`.
const REQUEST_BYTES: usize = 1 << 20;
/// Bytes produced at each number of topics, in sizes of the corpus.
const CORPORA: usize = 2;
/// A consumer's `max.partition.fetch.bytes`.
const PARTITION_FETCH_BYTES: i32 = 1 << 20;
/// Its `fetch.max.bytes`: less than the usual 50 MiB, for memory for such responses costs the client more than anything
/// costs the broker, and only many topics fill them.
const FETCH_BYTES: i32 = 8 << 20;
const POLL_MS: i32 = 500;
const WATCHED_BATCH_BYTES: usize = 10 << 10;
const WATCHED_BYTES_PER_SECOND: usize = 5_000_000;
const WATCH: Duration = Duration::from_secs(10);
const RAW_WRITES: usize = 1000;

/// One way to run it.
struct Setting {
    topics: usize,
    record_bytes: usize,
    strict: bool,
}

/// A batch and how many records it has.
struct Batch {
    bytes: Bytes,
    records: i64,
}

/// Megabytes per second.
#[derive(Clone, Copy)]
struct Rates {
    produce: f64,
    fetch: f64,
}

#[tokio::main]
async fn main() -> BenchResult {
    let chosen: Option<Vec<usize>> =
        std::env::var("THERMOCLINE_BENCH_TOPICS").ok().map(|text| text.split(',').flat_map(str::parse).collect());
    let topics: Vec<_> =
        TOPICS.into_iter().filter(|topics| chosen.as_ref().is_none_or(|chosen| chosen.contains(topics))).collect();
    let mut spread = Table::default();
    for record_bytes in RECORD_BYTES {
        for strict in [true, false] {
            let mut measured = BTreeMap::new();
            for &topics in &topics {
                let setting = Setting { topics, record_bytes, strict };
                measured.insert(topics, run(&setting).await?);
            }
            let Some(beside) = measured.get(&BESIDE_TOPICS).copied() else { continue };
            for (&topics, rate) in measured.iter().filter(|(topics, _)| **topics != BESIDE_TOPICS) {
                let setting = Setting { topics, record_bytes, strict };
                let other = format!("at {BESIDE_TOPICS} topics");
                spread.row(&setting.name("produce"), rate.produce, &other, beside.produce);
                spread.row(&setting.name("fetch"), rate.fetch, &other, beside.fetch);
            }
        }
    }
    spread.print("MB/s");
    Ok(())
}

impl Setting {
    fn name(&self, what: &str) -> String {
        let flush = if self.strict { "strict" } else { "relaxed" };
        format!("{what}, {} x {} B, {flush}", self.topics, self.record_bytes)
    }

    fn names(&self, prefix: &str) -> Vec<TopicName> {
        (0..self.topics).map(|number| wire::topic_name(&format!("{prefix}-{number}"))).collect()
    }

    /// Incompressible records.
    fn batch(&self, bytes: usize) -> BenchResult<Batch> {
        let mut random = StdRng::seed_from_u64(11);
        let mut encoder = BatchEncoder::new(TimestampType::CreateTime);
        let mut records = 0;
        while records == 0 || encoder.len_bytes() + self.record_bytes <= bytes {
            let value: Vec<u8> = (0..self.record_bytes).map(|_| random.random()).collect();
            let (offset, time) = (Offset(records), Timestamp(1_760_000_000_000));
            encoder.push(offset, time, None, Some(&value), std::iter::empty());
            records += 1;
        }
        Ok(Batch { bytes: encoder.finish().ok_or("an empty batch")?, records })
    }
}

/// Prints what it measures once it is measured, for the whole takes long.
async fn run(setting: &Setting) -> BenchResult<Rates> {
    let dir = tempfile::tempdir()?;
    let mut config = Config::default();
    config.broker.data_dir = dir.path().join("data");
    config.kafka.listen.set_port(0);
    config.http.listen.set_port(0);
    let broker = Broker::start(config).await?;
    let addr = broker.kafka_addr();
    let mut settings = vec![("search.index", "off"), ("remote.storage.enable", "false")];
    if !setting.strict {
        settings.push(("flush.messages", "1000000000"));
    }
    let (filled, watched) = (setting.names("filled"), setting.names("watched"));
    wire::create_topics(addr, &filled, &settings).await?;
    wire::create_topics(addr, &watched, &settings).await?;

    let (mut rates, mut latencies) = (Table::default(), Table::default());
    let measured = throughput(setting, addr, &filled, dir.path(), &mut rates).await?;
    rates.print("MB/s");
    watch(setting, addr, &watched, dir.path(), &mut latencies).await?;
    latencies.print("ms");
    println!();
    broker.shutdown().await?;
    Ok(measured)
}

// Throughput

async fn throughput(
    setting: &Setting,
    addr: SocketAddr,
    topics: &[TopicName],
    dir: &Path,
    table: &mut Table,
) -> BenchResult<Rates> {
    let batch = setting.batch(BATCH_BYTES)?;
    let per_request = batches_per_request(topics.len());
    let requests = (CORPORA * support::corpus_bytes() / CONNECTIONS / (per_request * batch.bytes.len())).max(1);
    let bytes = requests * CONNECTIONS * per_request * batch.bytes.len();
    let files = plain_files(&dir.join("filled"), topics.len())?;
    let groups = requests * CONNECTIONS;
    let (written, took) = timed(|| write_groups(&files, &batch.bytes, groups, per_request, setting.strict));
    written?;
    let raw_produce = megabytes_per_second(bytes, took);
    let (read, took) = timed(|| read_files(&files));
    read?;
    let raw_fetch = megabytes_per_second(bytes, took);

    let counts: Vec<Cell<i64>> = vec![Cell::new(0); topics.len()];
    let start = Instant::now();
    let producer = |connection: usize| fill(addr, topics, &counts, &batch, connection, requests);
    try_join_all((0..CONNECTIONS).map(producer)).await?;
    let produce = megabytes_per_second(bytes, start.elapsed());
    let baseline = if setting.strict { "write + fdatasync, same groups" } else { "write, same groups" };
    table.row(&setting.name("produce"), produce, baseline, raw_produce);

    let start = Instant::now();
    let consumer = |connection: usize| drain(addr, topics, &counts, connection);
    let drained: usize = try_join_all((0..CONNECTIONS).map(consumer)).await?.into_iter().sum();
    let fetch = megabytes_per_second(drained, start.elapsed());
    table.row(&setting.name("fetch"), fetch, "pread of as many files", raw_fetch);
    if drained != bytes {
        return Err(format!("{drained} of {bytes} bytes came back").into());
    }
    Ok(Rates { produce, fetch })
}

fn batches_per_request(topics: usize) -> usize {
    (REQUEST_BYTES / BATCH_BYTES).min(topics)
}

/// Sends so many requests, each to the next topics in turn, from a place of this connection's own.
async fn fill(
    addr: SocketAddr,
    topics: &[TopicName],
    counts: &[Cell<i64>],
    batch: &Batch,
    connection: usize,
    requests: usize,
) -> BenchResult {
    let (mut read, mut write) = wire::connect(addr).await?.into_split();
    let per_request = batches_per_request(topics.len());
    let mut next = connection * topics.len() / CONNECTIONS;
    for sent in 0..requests {
        if sent >= IN_FLIGHT {
            wire::expect_ack(&mut read).await?;
        }
        let places: Vec<_> = (next..next + per_request).map(|at| at % topics.len()).collect();
        next += per_request;
        for &at in &places {
            counts[at].set(counts[at].get() + batch.records);
        }
        write.write_all(&wire::produce_frame(places.iter().map(|&at| (&topics[at], &batch.bytes)))?).await?;
    }
    for _ in 0..requests.min(IN_FLIGHT) {
        wire::expect_ack(&mut read).await?;
    }
    Ok(())
}

/// Reads a connection's share of the topics from their starts to their ends; record bytes.
async fn drain(addr: SocketAddr, topics: &[TopicName], counts: &[Cell<i64>], connection: usize) -> BenchResult<usize> {
    let mut session = FetchSession::open(addr, topics, connection).await?;
    let mut left: i64 = session.share().map(|at| counts[at].get()).sum();
    let mut bytes = 0;
    while left > 0 {
        for (_, records) in session.poll(0).await? {
            bytes += records.len();
            for batch in split_batches(records) {
                left -= i64::from(BatchHeader::read(&batch?)?.record_count);
            }
        }
    }
    Ok(bytes)
}

/// A consumer of a connection's share of the topics, in a fetch session (KIP-227).
struct FetchSession<'a> {
    stream: TcpStream,
    buffer: BytesMut,
    topics: &'a [TopicName],
    /// The share, by name.
    numbers: BTreeMap<TopicName, usize>,
    id: i32,
    epoch: i32,
    /// Where to go on, of topics for which the broker does not know.
    changed: BTreeMap<usize, i64>,
}

impl<'a> FetchSession<'a> {
    async fn open(addr: SocketAddr, topics: &'a [TopicName], connection: usize) -> BenchResult<Self> {
        let share = (connection..topics.len()).step_by(CONNECTIONS);
        Ok(Self {
            stream: wire::connect(addr).await?,
            buffer: BytesMut::new(),
            topics,
            numbers: share.clone().map(|at| (topics[at].clone(), at)).collect(),
            id: 0,
            epoch: 0,
            changed: share.map(|at| (at, 0)).collect(),
        })
    }

    fn share(&self) -> impl Iterator<Item = usize> {
        self.numbers.values().copied()
    }

    /// The records of each topic that has some.
    async fn poll(&mut self, max_wait_ms: i32) -> BenchResult<Vec<(usize, Bytes)>> {
        let request = FetchRequest::default()
            .with_max_wait_ms(max_wait_ms)
            .with_min_bytes(1)
            .with_max_bytes(FETCH_BYTES)
            .with_session_id(self.id)
            .with_session_epoch(self.epoch)
            .with_topics(self.changed.iter().map(|(at, position)| wanted(&self.topics[*at], *position)).collect());
        self.stream.write_all(&wire::frame(wire::FETCH_VERSION, &request)?).await?;
        let response = wire::fetched(&mut self.buffer, &mut self.stream).await?;
        self.id = response.session_id;
        self.epoch += 1;
        self.changed.clear();
        let found: Vec<_> = records(&response).map(|(name, records)| (self.numbers[&name], records)).collect();
        for (at, records) in &found {
            if let Some(last) = split_batches(records.clone()).last() {
                self.changed.insert(*at, BatchHeader::read(&last?)?.next_offset().0);
            }
        }
        Ok(found)
    }
}

fn wanted(topic: &TopicName, position: i64) -> FetchTopic {
    let partition =
        FetchPartition::default().with_fetch_offset(position).with_partition_max_bytes(PARTITION_FETCH_BYTES);
    FetchTopic::default().with_topic(topic.clone()).with_partitions(vec![partition])
}

/// The records of each topic that has some.
fn records(response: &FetchResponse) -> impl Iterator<Item = (TopicName, Bytes)> {
    response.responses.iter().flat_map(|topic| {
        let rows = topic.partitions.iter().filter_map(|row| row.records.clone());
        rows.filter(|records| !records.is_empty()).map(move |records| (topic.topic.clone(), records))
    })
}

// Latency

/// What was sent to one topic, by number of batch: when it was due.
type Due = RefCell<Vec<Instant>>;

async fn watch(
    setting: &Setting,
    addr: SocketAddr,
    topics: &[TopicName],
    dir: &Path,
    table: &mut Table,
) -> BenchResult {
    let batch = setting.batch(WATCHED_BATCH_BYTES)?;
    let files = plain_files(&dir.join("watched"), topics.len())?;
    let mut raw = Vec::with_capacity(RAW_WRITES);
    for number in 0..RAW_WRITES {
        let (file, position) = (&files[number % files.len()], (number / files.len() * batch.bytes.len()) as u64);
        let (written, took) = timed(|| {
            file.write_all_at(&batch.bytes, position)?;
            if setting.strict { file.sync_data() } else { Ok(()) }
        });
        written?;
        raw.push(took);
    }

    let due: Vec<Due> = topics.iter().map(|_| Due::default()).collect();
    // Known once everything is sent.
    let sent = Cell::new(None);
    let (mut writes, mut acks) = (Vec::new(), Vec::new());
    for _ in 0..CONNECTIONS {
        let (read, write) = wire::connect(addr).await?.into_split();
        let (sender, queue) = tokio::sync::mpsc::unbounded_channel();
        writes.push((write, sender));
        acks.push(acked(read, queue));
    }
    let consumers = (0..CONNECTIONS).map(|connection| deliver(addr, topics, &due, &batch, connection, &sent));
    let producing = produce_at_rate(writes, topics, &due, &batch, &sent);
    let producers = try_join(producing, try_join_all(acks));
    let (((), acked), delivered) = try_join(producers, try_join_all(consumers)).await?;

    raw.sort_unstable();
    for (what, latencies) in [("ack", acked.concat()), ("delivery", delivered.concat())] {
        let mut sorted = latencies;
        sorted.sort_unstable();
        for (name, per_mille) in [("p50", 500), ("p99", 990), ("p99.9", 999)] {
            let baseline = if setting.strict { "write + fdatasync" } else { "write" };
            let of = |sorted: &[Duration]| milliseconds(quantile(sorted, per_mille));
            table.row(&setting.name(&format!("{what} {name}")), of(&sorted), &format!("{baseline}, {name}"), of(&raw));
        }
    }
    Ok(())
}

type Acks = tokio::sync::mpsc::UnboundedSender<Instant>;

/// One batch after the other when it is due, to each topic in turn.
async fn produce_at_rate(
    mut writes: Vec<(OwnedWriteHalf, Acks)>,
    topics: &[TopicName],
    due: &[Due],
    batch: &Batch,
    sent: &Cell<Option<usize>>,
) -> BenchResult {
    let mut ticks = ticks(Duration::from_secs_f64(batch.bytes.len() as f64 / WATCHED_BYTES_PER_SECOND as f64));
    let mut number = 0;
    while let Some(at) = ticks.recv().await {
        // A topic's batches take one connection, so that they come in order.
        let topic = number % topics.len();
        let connection = topic % writes.len();
        due[topic].borrow_mut().push(at);
        let (write, acks) = &mut writes[connection];
        acks.send(at)?;
        write.write_all(&wire::produce_frame([(&topics[topic], &batch.bytes)])?).await?;
        number += 1;
    }
    sent.set(Some(number));
    Ok(())
}

/// When batches are due, each as it is: by a thread, for a timer of the runtime is late by up to a millisecond.
fn ticks(every: Duration) -> tokio::sync::mpsc::UnboundedReceiver<Instant> {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        let start = Instant::now();
        for at in (0..).map(|number| start + every * number).take_while(|at| *at < start + WATCH) {
            while let Some(early) = at.checked_duration_since(Instant::now()).filter(|early| !early.is_zero()) {
                std::thread::park_timeout(early);
            }
            if sender.send(at).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The latencies of the acks of one connection, until no more are due.
async fn acked(
    mut read: OwnedReadHalf,
    mut due: tokio::sync::mpsc::UnboundedReceiver<Instant>,
) -> BenchResult<Vec<Duration>> {
    let mut latencies = Vec::new();
    while let Some(at) = due.recv().await {
        wire::expect_ack(&mut read).await?;
        latencies.push(at.elapsed());
    }
    Ok(latencies)
}

/// Polls a connection's share of the topics; how late each batch came.
async fn deliver(
    addr: SocketAddr,
    topics: &[TopicName],
    due: &[Due],
    batch: &Batch,
    connection: usize,
    sent: &Cell<Option<usize>>,
) -> BenchResult<Vec<Duration>> {
    let mut session = FetchSession::open(addr, topics, connection).await?;
    let share: Vec<usize> = session.share().collect();
    let mut latencies = Vec::new();
    // How many of the first `all` batches went to these topics.
    let expected = |all: usize| -> usize {
        share.iter().filter(|at| **at < all).map(|at| (all - 1 - at) / topics.len() + 1).sum()
    };
    while sent.get().is_none_or(|all| latencies.len() < expected(all)) && !share.is_empty() {
        for (at, records) in session.poll(POLL_MS).await? {
            for one in split_batches(records) {
                let number = usize::try_from(BatchHeader::read(&one?)?.base_offset.0 / batch.records)?;
                latencies.push(due[at].borrow()[number].elapsed());
            }
        }
    }
    Ok(latencies)
}

// Plain files

fn plain_files(dir: &Path, count: usize) -> BenchResult<Vec<File>> {
    std::fs::create_dir_all(dir)?;
    let open = |number| File::options().create_new(true).read(true).write(true).open(dir.join(format!("{number}")));
    Ok((0..count).map(open).collect::<Result<_, _>>()?)
}

/// Writes the batch to the next files in turn, so many times, and syncs those of a group together.
fn write_groups(files: &[File], batch: &[u8], groups: usize, per_group: usize, sync: bool) -> std::io::Result<()> {
    let mut written = Vec::new();
    for group in 0..groups {
        for number in group * per_group..(group + 1) * per_group {
            let position = number / files.len() * batch.len();
            files[number % files.len()].write_all_at(batch, position as u64)?;
            written.push(number % files.len());
        }
        for at in written.drain(..).filter(|_| sync) {
            files[at].sync_data()?;
        }
    }
    Ok(())
}

fn read_files(files: &[File]) -> std::io::Result<()> {
    let mut buffer = vec![0; PARTITION_FETCH_BYTES as usize];
    for file in files {
        let mut position = 0;
        loop {
            match file.read_at(&mut buffer, position)? {
                0 => break,
                count => position += count as u64,
            }
        }
    }
    Ok(())
}
