//! Retention and deletion over both tiers, on a clock that is moved by hand.

use std::collections::BTreeMap;

use object_store::memory::InMemory;
use prometheus::Registry;
use tempfile::TempDir;
use thermocline_config::{CacheConfig, LogConfig};
use thermocline_ingest::clock::{ManualClock, SystemClock};
use thermocline_ingest::log::HotLog;
use thermocline_ingest::metadata::MetadataStore;
use thermocline_ingest::metrics::IngestMetrics;
use thermocline_ingest::model::{PartitionId, Timestamp};
use thermocline_ingest::read::{LogReader, ReadError, ReadRange, TimestampedOffset};

use super::super::*;
use crate::reader::TieredReader;
use crate::testing::{FaultyStore, batch, metrics, tiering_config};

/// Sealed pieces that a partition is given, and records of each.
const PIECES: i64 = 4;
const RECORDS: i64 = 10;
/// Time between two pieces.
const PIECE_MS: i64 = 1000;

/// A broker without its ports, over a store in memory.
struct Broker {
    dir: TempDir,
    clock: Arc<ManualClock>,
    faulty: FaultyStore,
    log: Arc<HotLog>,
    topics: Arc<Topics>,
    tiering: Arc<Tiering>,
    reader: TieredReader,
}

impl Broker {
    async fn start() -> Self {
        let clock = Arc::new(ManualClock::at(SystemClock.now()));
        Self::start_on(tempfile::tempdir().unwrap(), FaultyStore::healthy(Arc::new(InMemory::new())), clock).await
    }

    async fn start_on(dir: TempDir, faulty: FaultyStore, clock: Arc<ManualClock>) -> Self {
        let registered = Arc::new(IngestMetrics::new(&Registry::new()).unwrap());
        let log = HotLog::open(dir.path().join("hot"), LogConfig::default(), clock.clone(), registered).unwrap();
        let metadata = Arc::new(MetadataStore::open(&dir.path().join("metadata.redb")).unwrap());
        let broker_epoch = metadata.broker_epoch().unwrap() + 1;
        metadata.set_broker_epoch(broker_epoch).unwrap();
        let topics = Arc::new(Topics::open(metadata, log.clone(), LogConfig::default()).unwrap());
        let options = TieringOptions {
            config: tiering_config(),
            cache: CacheConfig::default(),
            store: faulty.cold(0),
            topics: topics.clone(),
            clock: clock.clone(),
            metrics: metrics(),
            produce_latency: Arc::default(),
            broker_epoch,
        };
        let tiering = Tiering::open(options).await.unwrap();
        let reader = TieredReader::new(tiering.clone(), &CacheConfig::default());
        Self { dir, clock, faulty, log, topics, tiering, reader }
    }

    async fn restart(self) -> Self {
        let Self { dir, clock, faulty, log, topics, tiering, reader } = self;
        log.close().unwrap();
        drop((log, topics, tiering, reader));
        Self::start_on(dir, faulty, clock).await
    }

    fn topic(&self) -> Arc<Topic> {
        self.topics.get("orders").unwrap()
    }

    fn partition(&self) -> Arc<Partition> {
        self.topic().partition(PartitionId(0)).unwrap().clone()
    }

    /// A topic of one partition with a piece a second, the first `archived` of them only in the archive.
    async fn fill(&self, archived: i64, config: &[(&str, String)]) {
        let config: BTreeMap<_, _> = config.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        self.topics.create(&TopicName::new("orders").unwrap(), 1, config).unwrap();
        for piece in 0..PIECES {
            self.append().await;
            self.clock.advance_ms(PIECE_MS);
            if piece < archived {
                self.archive().await;
            }
        }
        assert_eq!(self.partition().archived_through(), Offset(archived * RECORDS));
        assert_eq!(self.partition().local_start_offset(), Offset(archived * RECORDS));
    }

    /// One more piece, sealed.
    async fn append(&self) {
        let records: Vec<_> =
            (0..RECORDS).map(|n| (self.clock.now().0, None, Some(vec![n as u8; 100]), Vec::new())).collect();
        let partition = self.partition();
        let appended = partition.append(&batch(0, &records)).unwrap();
        partition.committed(appended.last_offset.next()).await.unwrap();
        partition.seal().unwrap();
    }

    async fn archive(&self) {
        self.tiering.archive_now(&self.topic(), true).await.unwrap();
    }

    /// What the broker does in the background from time to time.
    async fn tidy(&self) {
        let archive = self.tiering.archive_of(&self.partition());
        schedule::expire(&self.tiering, &archive).await.unwrap();
        self.log.maintain();
    }

    /// Everything from `start` on can be read, in both tiers, and nothing before it.
    async fn check_starts_at(&self, start: i64, when: &str) {
        let partition = self.partition();
        assert_eq!(partition.log_start_offset(), Offset(start), "{when}");
        let end = partition.high_watermark();
        let offsets: Vec<_> = (0..end.0).map(Offset).collect();
        let found = self.reader.records(&partition, &offsets, usize::MAX).await.unwrap().records;
        for (offset, record) in offsets.iter().zip(&found) {
            assert_eq!(record.is_some(), offset.0 >= start, "{when}: record {offset}");
        }
        let range = |from| ReadRange { from: Offset(from), until: end, max_bytes: 1 << 20, at_least_one: true };
        if start > 0 {
            let below = self.reader.read(&partition, range(start - 1)).await;
            assert!(matches!(below, Err(ReadError::OutOfRange { .. })), "{when}");
        }
        let first = self.reader.offset_for_timestamp(&partition, Timestamp(0)).await.unwrap();
        let first = first.map(|TimestampedOffset { offset, .. }| offset);
        assert_eq!(first, (start < end.0).then_some(Offset(start)), "{when}: the first by time");
    }

    /// Data objects in the store once nobody can be reading what was dropped.
    async fn data_objects(&self) -> usize {
        self.clock.advance_ms(tiering_config().retired_min_age.as_millis());
        self.tidy().await;
        self.faulty.keys().await.iter().filter(|key| key.ends_with(".parquet")).count()
    }
}

/// How many of the pieces are archived, from none to all.
fn every_split() -> impl Iterator<Item = i64> {
    0..=PIECES
}

#[tokio::test]
async fn retention_by_time_holds_over_both_tiers() {
    for archived in every_split() {
        let broker = Broker::start().await;
        broker.fill(archived, &[("retention.ms", (PIECES * PIECE_MS).to_string())]).await;
        broker.tidy().await;
        broker.check_starts_at(0, "nothing is old enough").await;
        broker.clock.advance_ms(2 * PIECE_MS - 1);
        broker.tidy().await;
        broker.check_starts_at(2 * RECORDS, &format!("two pieces are old, {archived} archived")).await;
        let broker = broker.restart().await;
        broker.check_starts_at(2 * RECORDS, "after a restart").await;
        broker.clock.advance_ms(PIECES * PIECE_MS);
        broker.tidy().await;
        broker.check_starts_at(PIECES * RECORDS, "all are old").await;
        assert_eq!(broker.partition().hot_bytes(), 0);
        assert_eq!(broker.data_objects().await, 0);
        // What comes next goes on where the log ended.
        broker.append().await;
        broker.archive().await;
        broker.check_starts_at(PIECES * RECORDS, "and one more").await;
    }
}

#[tokio::test]
async fn retention_by_size_holds_over_both_tiers() {
    let piece_bytes = {
        let broker = Broker::start().await;
        broker.fill(0, &[]).await;
        broker.partition().hot_bytes() / PIECES as u64
    };
    for archived in every_split() {
        let broker = Broker::start().await;
        broker.fill(archived, &[("retention.bytes", (3 * piece_bytes).to_string())]).await;
        broker.tidy().await;
        broker.check_starts_at(RECORDS, &format!("three pieces stay, {archived} archived")).await;
        broker.append().await;
        broker.tidy().await;
        broker.check_starts_at(2 * RECORDS, "one more came, one more goes").await;
        assert_eq!(broker.data_objects().await as i64, (archived - 2).max(0));
        broker.check_starts_at(2 * RECORDS, "after the objects went").await;
    }
}

#[tokio::test]
async fn deleted_records_are_cut_in_both_tiers() {
    for archived in every_split() {
        for start in [5, RECORDS, RECORDS + 1, 3 * RECORDS - 1, PIECES * RECORDS] {
            let broker = Broker::start().await;
            broker.fill(archived, &[]).await;
            broker.topics.raise_log_start(&broker.partition(), Offset(start)).unwrap();
            let when = format!("from {start} on, {archived} archived");
            broker.check_starts_at(start, &when).await;
            broker.tidy().await;
            broker.check_starts_at(start, &when).await;
            // A file goes when it lies wholly below.
            assert_eq!(broker.data_objects().await as i64, (archived - start / RECORDS).max(0), "{when}");
            let broker = broker.restart().await;
            broker.check_starts_at(start, &when).await;
            broker.archive().await;
            broker.check_starts_at(start, &when).await;
            assert_eq!(broker.partition().local_start_offset(), Offset(PIECES * RECORDS));
        }
    }
}

#[tokio::test]
async fn a_topic_deleted_while_the_store_is_down_is_gone_after_a_restart() {
    let broker = Broker::start().await;
    broker.fill(2, &[]).await;
    broker.topics.delete("orders").unwrap();
    assert!(!broker.faulty.keys().await.is_empty());
    let broker = broker.restart().await;
    let shutdown = tokio_util::sync::CancellationToken::new();
    let running = tokio::spawn(broker.tiering.clone().run(shutdown.clone()));
    let pending = &broker.tiering.metrics.removals_pending;
    while !broker.topics.removals().unwrap().is_empty() || pending.get() > 0 {
        tokio::task::yield_now().await;
    }
    assert!(broker.faulty.keys().await.is_empty());
    shutdown.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn what_does_not_fit_into_an_answer_is_not_skipped() {
    let broker = Broker::start().await;
    broker.fill(PIECES, &[]).await;
    let partition = broker.partition();
    let small = batch(0, &[(broker.clock.now().0, None, None, Vec::new())]);
    let appended = partition.append(&small).unwrap();
    partition.committed(appended.last_offset.next()).await.unwrap();
    // What another partition has left of an answer is enough for the log's batch, and not for one of the archive.
    let range = |from, at_least_one| {
        let until = partition.high_watermark();
        ReadRange { from: Offset(from), until, max_bytes: small.len(), at_least_one }
    };
    for from in [0, RECORDS - 1, PIECES * RECORDS - 1] {
        let run = broker.reader.read(&partition, range(from, false)).await.unwrap();
        assert!(run.is_empty(), "from {from}");
        let run = broker.reader.read(&partition, range(from, true)).await.unwrap();
        assert!(!run.is_empty(), "from {from}");
    }
    let run = broker.reader.read(&partition, range(PIECES * RECORDS, false)).await.unwrap();
    assert_eq!(run.chunks.iter().map(|chunk| chunk.len()).sum::<usize>(), small.len());
}

#[tokio::test]
async fn nothing_is_written_for_a_topic_whose_archive_is_closed() {
    let broker = Broker::start().await;
    broker.fill(0, &[]).await;
    let partition = broker.partition();
    // Beyond the end of the archive, which is to follow.
    broker.topics.raise_log_start(&partition, Offset(5)).unwrap();
    let archive = broker.tiering.archive_of(&partition);
    archive.close().await;
    // As if the topic had been looked up right before it was deleted.
    assert!(broker.topics.by_id(partition.topic_id()).is_some());
    let mut report = ArchiveReport::default();
    broker.tiering.archive_sealed(&archive, usize::MAX, &mut report).await.unwrap();
    assert_eq!((report.files, broker.faulty.keys().await), (0, vec![]));
}
