//! The hot log against a model, against a disk that fails, and against files that were damaged.

mod compaction;
mod compaction_transactions;
mod damage;
mod deletion;
mod failure;
mod file_ranges;
mod model;
mod transactions;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus::Registry;
use tempfile::TempDir;
use thermocline_config::{
    ByteSize, CleanupPolicy, HumanDuration, LogConfig, SearchFields, SearchIndex, SearchTokenizer, TopicConfig,
};

use super::segment::{INDEX, LOG, TIMEINDEX, file_path};
use super::{AppendError, Appended, FreeSpace, HotLog, LogError, Partition};
use crate::clock::ManualClock;
use crate::metrics::IngestMetrics;
use crate::model::*;
use crate::read::{ReadError, ReadRange, TimestampedOffset};
use crate::record::testing::{CODECS, batch_of, compressed, with_producer};
use crate::record::{BatchDecoder, BatchError, BatchHeader, BatchRefusal, Compression, split_batches};

/// A topic as the defaults make it, unlimited.
pub(crate) fn topic_config() -> TopicConfig {
    TopicConfig {
        overrides: BTreeMap::new(),
        segment_bytes: 128 << 20,
        segment_ms: 3_600_000,
        index_interval_bytes: 4096,
        max_message_bytes: 1_048_588,
        cleanup: CleanupPolicy { compact: false, delete: true },
        compression: None,
        min_compaction_lag_ms: 0,
        max_compaction_lag_ms: None,
        delete_retention_ms: 86_400_000,
        file_delete_delay_ms: 0,
        min_cleanable_dirty_ratio: 0.5,
        log_append_time: false,
        timestamp_before_max_ms: None,
        timestamp_after_max_ms: None,
        flush_messages: 1,
        flush_ms: None,
        retention_ms: None,
        retention_bytes: None,
        local_retention_ms: None,
        local_retention_bytes: None,
        remote_storage_enable: true,
        search_index: SearchIndex::Off,
        search_positions: false,
        search_tokenizer: SearchTokenizer::Default,
        search_fields: SearchFields { value: true, json: true, key: true, headers: true },
        search_fast: false,
        search_reindex: true,
    }
}

/// Small segments and dense indexes, so that a few batches meet every border.
fn small() -> TopicConfig {
    TopicConfig { segment_bytes: 800, index_interval_bytes: 150, ..topic_config() }
}

/// A broker's log folder, and one partition in it.
struct Fixture {
    dir: TempDir,
    clock: Arc<ManualClock>,
    config: TopicConfig,
    disk_reserve: u64,
    /// Memory for the keys of one compaction.
    dedupe_buffer_bytes: u64,
    /// What the disk is said to have free.
    disk_free: Arc<AtomicU64>,
    log_start: Offset,
}

/// One run of the broker.
struct Run {
    log: Arc<HotLog>,
    partition: Arc<Partition>,
    metrics: Arc<IngestMetrics>,
}

impl Fixture {
    fn new(config: TopicConfig) -> Self {
        let clock = Arc::new(ManualClock::at(Timestamp(1_000_000)));
        let disk_free = Arc::new(AtomicU64::new(0));
        let (dir, log_start) = (tempfile::tempdir().unwrap(), Offset::ZERO);
        Self { dir, clock, config, disk_reserve: 0, dedupe_buffer_bytes: 1 << 20, disk_free, log_start }
    }

    fn open_log(&self) -> Result<(Arc<HotLog>, Arc<IngestMetrics>), LogError> {
        let config = LogConfig {
            disk_reserve: ByteSize::bytes(self.disk_reserve),
            cleaner_dedupe_buffer_bytes: ByteSize::bytes(self.dedupe_buffer_bytes),
            producer_id_expiration: HumanDuration::secs(86_400),
            ..LogConfig::default()
        };
        let metrics = Arc::new(IngestMetrics::new(&Registry::new()).unwrap());
        let (dir, clock, free) = (self.dir.path().to_owned(), self.clock.clone(), self.disk_free.clone());
        let free_space: FreeSpace = Box::new(move || Ok(free.load(Ordering::Relaxed)));
        Ok((HotLog::open_on(dir, config, clock, metrics.clone(), free_space)?, metrics))
    }

    fn try_open(&self) -> Result<Run, LogError> {
        let (log, metrics) = self.open_log()?;
        let id = TopicId(uuid::Uuid::from_u128(7));
        let partition = log.open_partition(tp(), id, Arc::new(self.config.clone()), self.log_start)?;
        Ok(Run { log, partition, metrics })
    }

    fn open(&self) -> Run {
        self.try_open().unwrap()
    }

    fn file(&self, base: i64, extension: &str) -> PathBuf {
        file_path(&self.dir.path().join("orders-0"), Offset(base), extension)
    }

    /// The files of the partition.
    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path().join("orders-0")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// What only a compaction under way may have there.
    fn files_of_compaction(&self) -> Vec<String> {
        let is_one = |name: &String| name.contains(".cleaned") || name.ends_with(".swap") || name.ends_with(".new");
        self.names().into_iter().filter(is_one).collect()
    }

    /// Base offsets of the log files.
    fn bases(&self) -> Vec<i64> {
        let names = self.names();
        let mut bases: Vec<i64> = names.iter().filter_map(|name| name.strip_suffix(".log")?.parse().ok()).collect();
        bases.sort_unstable();
        bases
    }
}

impl Run {
    /// Appends and waits for the commit.
    fn append(&self, batch: &[u8]) -> Appended {
        let appended = self.partition.append(batch).unwrap();
        self.committed(appended.last_offset.next()).unwrap();
        appended
    }

    fn committed(&self, end: Offset) -> Result<(), AppendError> {
        block_on(self.partition.committed(end))
    }

    fn read(&self, from: i64, max_bytes: usize) -> Vec<u8> {
        let until = self.partition.high_watermark();
        let range = ReadRange { from: Offset(from), until, max_bytes, at_least_one: true };
        self.partition.read_measured(&range)
    }

    fn values(&self, from: i64) -> Vec<(i64, Vec<u8>)> {
        values(&self.read(from, usize::MAX))
    }
}

thread_local! {
    /// Crash points of this thread until it dies; None is never.
    static CRASH_POINTS_LEFT: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Dies here, if a test wants it: by a panic, which leaves all files as they are.
pub(super) fn crash_point() {
    match CRASH_POINTS_LEFT.get() {
        Some(0) => {
            CRASH_POINTS_LEFT.set(None);
            std::panic::panic_any("died at a crash point");
        }
        left => CRASH_POINTS_LEFT.set(left.map(|left| left - 1)),
    }
}

/// Does `work` until it comes to the crash point after `points` others. Whether it died there.
fn dies_after(points: u32, work: impl FnOnce()) -> bool {
    CRASH_POINTS_LEFT.set(Some(points));
    let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err();
    CRASH_POINTS_LEFT.set(None);
    died
}

fn tp() -> TopicPartition {
    TopicPartition::new(TopicName::new("orders").unwrap(), PartitionId(0))
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// (offset, value) of all records of a run of batches.
fn values(mut run: &[u8]) -> Vec<(i64, Vec<u8>)> {
    let mut out = Vec::new();
    let mut decoder = BatchDecoder::new(1 << 20);
    while !run.is_empty() {
        let (batch, rest) = run.split_at(BatchHeader::read(run).unwrap().size_bytes());
        let result: Result<(), BatchError> = decoder.for_each(batch, |record| {
            out.push((record.offset.0, record.value.unwrap().to_vec()));
            Ok(())
        });
        result.unwrap();
        run = rest;
    }
    out
}

/// A batch of `count` records with timestamp `timestamp` and values that name it.
fn numbered(count: usize, timestamp: i64) -> Vec<u8> {
    let value = format!("value at {timestamp}");
    batch_of(&vec![(timestamp, value.as_bytes()); count])
}

#[test]
fn a_log_behind_the_archive_starts_over_where_that_ends() {
    let fixture = Fixture::new(small());
    let run = fixture.open();
    run.append(&with_producer(numbered(2, 1), 9, 0, 0));
    for n in 0..20 {
        run.append(&numbered(2, n));
    }
    let end = run.partition.log_end_offset();
    assert!(fixture.bases().len() > 1);
    run.partition.start_over_at(end).unwrap();
    assert_eq!(run.partition.log_end_offset(), end, "it is not behind");
    run.partition.start_over_at(Offset(1000)).unwrap();
    let check = |partition: &Partition| {
        assert_eq!((partition.log_end_offset(), partition.high_watermark()), (Offset(1000), Offset(1000)));
        assert_eq!((partition.local_start_offset(), partition.hot_bytes()), (Offset(1000), 0));
    };
    check(&run.partition);
    drop(run);
    let run = fixture.open();
    check(&run.partition);
    // A producer that goes on with a sequence from before is not refused.
    let appended = run.append(&with_producer(numbered(2, 3), 9, 0, 17));
    assert_eq!(appended.base_offset, Offset(1000));
    drop(run);

    // Died after the newest segments were deleted: what is left opens, and is behind still.
    let fixture = Fixture::new(small());
    let run = fixture.open();
    for n in 0..20 {
        run.append(&numbered(2, n));
    }
    drop(run);
    let newest = *fixture.bases().last().unwrap();
    std::fs::remove_file(fixture.file(newest, LOG)).unwrap();
    let run = fixture.open();
    assert_eq!(run.partition.log_end_offset(), Offset(newest));
    run.partition.start_over_at(Offset(1000)).unwrap();
    check(&run.partition);
}

#[test]
fn what_is_committed_is_read_back_across_segments_and_restarts() {
    let fixture = Fixture::new(small());
    let mut run = fixture.open();
    for n in 0..40_i64 {
        let appended = run.append(&numbered(2, n));
        assert_eq!((appended.base_offset.0, appended.last_offset.0, appended.duplicate), (2 * n, 2 * n + 1, false));
        if n % 10 == 3 {
            run.log.close().unwrap();
            assert!(matches!(run.partition.append(&numbered(1, 0)), Err(AppendError::Closed(_))));
            drop(run);
            run = fixture.open();
        } else if n % 10 == 7 {
            drop(run);
            run = fixture.open();
        }
    }
    assert!(fixture.bases().len() > 3, "{:?}", fixture.bases());
    let values = run.values(0);
    assert_eq!(values.len(), 80);
    assert!(
        values.iter().enumerate().all(|(at, (offset, value))| {
            *offset == at as i64 && *value == format!("value at {}", at / 2).as_bytes()
        })
    );
    assert_eq!(run.values(41)[0].0, 40, "the batch that holds the offset comes whole");
    assert_eq!(run.metrics.hot_bytes.get(), i64::try_from(run.partition.hot_bytes()).unwrap());
}

#[test]
fn reads_keep_their_borders() {
    let fixture = Fixture::new(small());
    let run = fixture.open();
    for n in 0..20 {
        run.append(&numbered(2, n));
    }
    let size = numbered(2, 10).len();
    let read = |from: i64, until: i64, max_bytes: usize, at_least_one: bool| {
        let range = ReadRange { from: Offset(from), until: Offset(until), max_bytes, at_least_one };
        run.partition.read(&range).map(|run| run.chunks.concat())
    };
    assert_eq!(values(&read(20, 40, 1, true).unwrap()).len(), 2);
    assert!(read(20, 40, 1, false).unwrap().is_empty());
    assert!(read(20, 40, size - 1, false).unwrap().is_empty());
    assert_eq!(values(&read(20, 40, 2 * size, false).unwrap()).len(), 4);
    assert_eq!(values(&read(20, 40, 3 * size - 1, true).unwrap()).len(), 4);
    assert_eq!(values(&read(20, 23, usize::MAX, true).unwrap()).len(), 4, "the batch at 22 starts below 23");
    assert_eq!(values(&read(20, 22, usize::MAX, true).unwrap()).len(), 2);
    assert!(read(20, 20, usize::MAX, true).unwrap().is_empty());
    assert!(read(40, 40, usize::MAX, true).unwrap().is_empty(), "at the end: empty");
    assert!(read(40, 99, usize::MAX, true).unwrap().is_empty());
    assert!(matches!(read(41, 99, usize::MAX, true), Err(ReadError::OutOfRange { log_end: Offset(40), .. })));
    run.partition.set_log_start_offset(Offset(5));
    assert!(matches!(read(4, 40, 1, true), Err(ReadError::OutOfRange { log_start: Offset(5), .. })));
    assert_eq!(values(&read(5, 40, 1, true).unwrap())[0].0, 4);
}

#[test]
fn idempotent_producers_survive_rolls_and_restarts() {
    let fixture = Fixture::new(small());
    let mut run = fixture.open();
    let batch = |sequence| with_producer(numbered(2, 5), 77, 1, sequence);
    for n in 0..30 {
        assert!(!run.append(&batch(2 * n)).duplicate);
        if n % 7 == 6 {
            if n % 2 == 0 {
                run.log.close().unwrap();
            }
            drop(run);
            run = fixture.open();
        }
        let again = run.append(&batch(2 * n));
        assert_eq!(
            (again.duplicate, again.base_offset.0, again.last_offset.0),
            (true, i64::from(2 * n), i64::from(2 * n + 1))
        );
    }
    assert_eq!(run.append(&batch(50)).base_offset, Offset(50), "five back");
    let error = run.partition.append(&batch(48)).unwrap_err();
    assert!(matches!(error, AppendError::OutOfOrderSequence { expected: 60, found: 48, .. }), "{error}");
    let error = run.partition.append(&with_producer(numbered(1, 5), 77, 0, 60)).unwrap_err();
    assert!(matches!(error, AppendError::InvalidProducerEpoch { epoch: 0, current: 1, .. }), "{error}");
    assert_eq!(run.partition.log_end_offset(), Offset(60));
    fixture.clock.advance_ms(86_400_000);
    run.log.maintain();
    assert!(!run.append(&batch(10)).duplicate, "forgotten after a day");
}

#[test]
fn log_append_time_is_the_brokers() {
    let fixture = Fixture::new(TopicConfig { log_append_time: true, ..small() });
    let run = fixture.open();
    for codec in CODECS {
        let batch = with_producer(compressed(&numbered(2, 5), codec), codec as i64, 0, 0);
        let first = run.append(&batch);
        assert_eq!(first.log_append_time, Timestamp(1_000_000 + 10 * codec as i64));
        fixture.clock.advance_ms(10);
        assert_eq!(run.append(&batch), Appended { duplicate: true, ..first });
    }
    assert_eq!(run.values(0).len(), 10);
    let found = run.partition.offset_for_timestamp(Timestamp(1_000_015)).unwrap();
    assert_eq!(found, Some(TimestampedOffset { offset: Offset(4), timestamp: Timestamp(1_000_020) }));
}

#[test]
fn a_relaxed_topic_commits_on_append() {
    let fixture = Fixture::new(TopicConfig { flush_messages: 1_000_000, flush_ms: Some(0), ..small() });
    let run = fixture.open();
    let appended = run.partition.append(&numbered(3, 1)).unwrap();
    assert_eq!(run.partition.high_watermark(), appended.last_offset.next());
    assert!(run.committed(Offset(3)).is_ok());
    run.partition.seal().unwrap();
    run.log.close().unwrap();
    drop(run);
    assert_eq!(fixture.open().values(0).len(), 3);
}

#[test]
fn sealing_and_trimming_leave_an_empty_segment_at_the_end() {
    let fixture = Fixture::new(small());
    let run = fixture.open();
    for n in 0..20 {
        run.append(&numbered(2, n));
    }
    run.partition.seal().unwrap();
    run.partition.seal().unwrap();
    let sealed = run.partition.sealed_segments(Offset::ZERO);
    assert_eq!(sealed.last().unwrap().end, Offset(40));
    assert!(sealed.windows(2).all(|pair| pair[0].end == pair[1].base));
    let bytes: Vec<u8> =
        sealed.iter().flat_map(|s| s.batches().unwrap()).flat_map(|batch| batch.unwrap().to_vec()).collect();
    assert_eq!(bytes, run.read(0, usize::MAX));
    assert_eq!(run.partition.sealed_segments(sealed[1].base).len(), sealed.len() - 1);
    assert_eq!(run.partition.sealed_segments(sealed[1].base.plus(1)).len(), sealed.len() - 1);

    assert_eq!(run.partition.trim_local(Offset(40)).unwrap(), 0, "nothing is archived");
    run.partition.set_archived_through(sealed[0].end.plus(1));
    let mut reader = sealed[0].batches().unwrap();
    assert_eq!(run.partition.trim_local(Offset(40)).unwrap(), sealed[0].size_bytes);
    assert_eq!(run.partition.local_start_offset(), sealed[0].end);
    assert_eq!(run.partition.log_start_offset(), Offset::ZERO);
    assert!(reader.next().unwrap().is_ok(), "who has it open reads on");
    assert!(sealed[0].batches().is_err());
    let range = ReadRange { from: Offset(0), until: Offset(40), max_bytes: 1, at_least_one: true };
    assert!(matches!(run.partition.read(&range), Err(ReadError::BelowLocalStart { .. })));

    run.partition.set_archived_through(Offset(40));
    run.partition.trim_local(Offset(40)).unwrap();
    assert_eq!((run.partition.local_start_offset(), run.partition.hot_bytes()), (Offset(40), 0));
    assert_eq!(run.metrics.hot_bytes.get(), 0);
    assert_eq!(fixture.bases(), [40]);
    drop(run);
    let run = fixture.open();
    assert_eq!((run.partition.local_start_offset(), run.partition.high_watermark()), (Offset(40), Offset(40)));
    assert_eq!(run.append(&numbered(1, 1)).base_offset, Offset(40));
}

#[test]
fn maintenance_seals_by_age_and_drops_by_retention() {
    let config = TopicConfig { segment_ms: 1000, local_retention_ms: Some(5000), ..topic_config() };
    let fixture = Fixture::new(config.clone());
    let run = fixture.open();
    run.append(&numbered(2, 1_000_000));
    fixture.clock.advance_ms(999);
    run.log.maintain();
    assert!(run.partition.sealed_segments(Offset::ZERO).is_empty());
    fixture.clock.advance_ms(1);
    run.log.maintain();
    assert_eq!(run.partition.sealed_segments(Offset::ZERO).len(), 1);
    fixture.clock.advance_ms(4001);
    run.log.maintain();
    assert_eq!(fixture.bases(), [0, 2], "old, but not archived");
    run.partition.set_archived_through(Offset(2));
    run.log.maintain();
    assert_eq!((fixture.bases(), run.partition.log_start_offset()), (vec![2], Offset(0)));

    run.append(&numbered(1, -1));
    run.partition.seal().unwrap();
    run.partition.set_config(Arc::new(TopicConfig {
        remote_storage_enable: false,
        retention_ms: Some(9000),
        ..config
    }));
    run.log.maintain();
    assert_eq!(fixture.bases(), [2, 3], "without timestamps age counts from sealing");
    fixture.clock.advance_ms(9001);
    run.log.maintain();
    assert_eq!((fixture.bases(), run.partition.log_start_offset()), (vec![3], Offset(3)));
}

#[test]
fn bad_batches_leave_no_trace() {
    let fixture = Fixture::new(small());
    let run = fixture.open();
    let mut bad = numbered(2, 1);
    bad[80] ^= 1;
    assert!(matches!(run.partition.append(&bad), Err(AppendError::Refused(BatchRefusal::Corrupt(_)))));
    let big = batch_of(&[(1, &[0; 1500])]);
    assert!(matches!(run.partition.append(&big), Err(AppendError::Refused(BatchRefusal::LargerThanSegment { .. }))));
    assert_eq!((run.partition.log_end_offset(), run.partition.hot_bytes()), (Offset(0), 0));
}

#[test]
fn removed_partitions_wake_their_waiters_and_go() {
    let fixture = Fixture::new(small());
    let run = fixture.open();
    run.append(&numbered(1, 1));
    let mut watch = run.partition.watch();
    watch.mark_unchanged();
    let partition = run.partition.clone();
    let waiter = std::thread::spawn(move || block_on(partition.committed(Offset(100))));
    run.log.remove_partition(&tp()).unwrap();
    assert!(matches!(waiter.join().unwrap(), Err(AppendError::Closed(_))));
    assert!(watch.has_changed().unwrap() && run.partition.is_closed());
    assert!(matches!(run.partition.append(&numbered(1, 1)), Err(AppendError::Closed(_))));
    run.log.remove_partition(&tp()).unwrap();
    let again = run.log.open_partition(tp(), TopicId::random(), Arc::new(small()), Offset::ZERO).unwrap();
    assert_eq!(again.log_end_offset(), Offset(0));
    drop(run);

    let leftover = fixture.dir.path().join("orders-0.0123-delete");
    std::fs::create_dir(&leftover).unwrap();
    std::fs::write(leftover.join("x"), b"x").unwrap();
    let run = fixture.open();
    assert!(!leftover.exists());
    assert!(matches!(
        run.log.open_partition(tp(), TopicId::random(), Arc::new(small()), Offset::ZERO),
        Err(LogError::Open(_))
    ));
    assert!(matches!(fixture.try_open(), Err(LogError::Locked { .. })));
}

#[test]
fn the_longest_topic_name_can_be_removed() {
    let fixture = Fixture::new(small());
    let (log, _) = fixture.open_log().unwrap();
    let tp = TopicPartition::new(TopicName::new(&"x".repeat(249)).unwrap(), PartitionId(9999));
    log.open_partition(tp.clone(), TopicId::random(), Arc::new(small()), Offset::ZERO).unwrap();
    log.remove_partition(&tp).unwrap();
    let left: Vec<_> = std::fs::read_dir(fixture.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, [".lock"]);
}

#[test]
fn readers_and_writers_do_not_disturb_each_other() {
    let fixture = Fixture::new(small());
    let run = fixture.open();
    const PER_WRITER: i64 = 60;
    std::thread::scope(|scope| {
        for writer in 0..2 {
            let run = &run;
            scope.spawn(move || {
                for n in 0..PER_WRITER {
                    run.partition.append(&numbered(2, 1000 * writer + n)).unwrap();
                }
            });
        }
        let run = &run;
        scope.spawn(move || {
            let mut next = 0;
            while next < 4 * PER_WRITER {
                block_on(run.partition.committed(Offset(next + 1))).unwrap();
                for (offset, _) in run.values(next) {
                    assert_eq!(offset, next);
                    next += 1;
                }
            }
        });
    });
    assert_eq!(run.values(0).len(), 4 * PER_WRITER as usize);
    assert!(run.metrics.flushes.get() >= 1);
}
