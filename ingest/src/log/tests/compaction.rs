//! Compaction against a model, through crashes at every step, and beside readers.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::clock::Clock;
use crate::model::TimestampType;
use crate::record::BatchEncoder;

pub(super) const DELETE_RETENTION_MS: i64 = 1000;

/// A record: key, and value or tombstone.
pub(super) type Entry = (u8, Option<u8>);

/// A record as a reader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    offset: i64,
    timestamp: i64,
    entry: Entry,
}

pub(super) fn compacted() -> TopicConfig {
    TopicConfig {
        cleanup: CleanupPolicy { compact: true, delete: false },
        remote_storage_enable: false,
        delete_retention_ms: DELETE_RETENTION_MS,
        min_cleanable_dirty_ratio: 0.0,
        ..small()
    }
}

pub(super) fn batch(entries: &[Entry], timestamp: i64, codec: Compression) -> Vec<u8> {
    let mut encoder = BatchEncoder::new(TimestampType::CreateTime);
    for (offset, (key, value)) in (0..).zip(entries) {
        let value = value.map(|value| [value; 20]);
        let value = value.as_ref().map(|value| &value[..]);
        encoder.push(Offset(offset), Timestamp(timestamp), Some(&[*key][..]), value, std::iter::empty());
    }
    compressed(&encoder.finish().unwrap(), codec)
}

/// All records of a run of batches.
fn seen(mut run: &[u8]) -> Vec<Seen> {
    let mut out = Vec::new();
    let mut decoder = BatchDecoder::new(1 << 20);
    while !run.is_empty() {
        let (batch, rest) = run.split_at(BatchHeader::read(run).unwrap().size_bytes());
        let read: Result<(), BatchError> = decoder.for_each(batch, |record| {
            let entry = (record.key.unwrap()[0], record.value.map(|value| value[0]));
            out.push(Seen { offset: record.offset.0, timestamp: record.timestamp.0, entry });
            Ok(())
        });
        read.unwrap();
        run = rest;
    }
    out
}

/// Everything, as a consumer reads it that takes little at once. Checks that it comes to the end.
fn read_all(partition: &Partition, max_bytes: usize) -> Vec<Seen> {
    let (mut all, mut next) = (Vec::new(), partition.log_start_offset());
    let end = partition.high_watermark();
    while next < end {
        let until = partition.high_watermark();
        let range = ReadRange { from: next, until, max_bytes, at_least_one: true };
        let run = partition.read_measured(&range);
        if run.is_empty() {
            // All below the end of a moment ago may have been replaced by what came since.
            assert!(partition.high_watermark() > until, "nothing at {next}, though the end is {until}");
            continue;
        }
        all.extend(seen(&run).into_iter().filter(|record| record.offset >= next.0));
        let mut rest = &run[..];
        while !rest.is_empty() {
            let header = BatchHeader::read(rest).unwrap();
            next = header.next_offset();
            rest = &rest[header.size_bytes()..];
        }
    }
    assert!(next >= end);
    all
}

/// What each key means to who reads all of it.
fn state(records: &[Seen]) -> BTreeMap<u8, u8> {
    let mut state = BTreeMap::new();
    for Seen { entry: (key, value), .. } in records {
        match value {
            Some(value) => drop(state.insert(*key, *value)),
            None => drop(state.remove(key)),
        }
    }
    state
}

impl Run {
    pub(super) fn clean(&self) {
        self.log.clean(&|| false);
    }

    pub(super) fn put(&self, entries: &[Entry], timestamp: i64) {
        self.append(&batch(entries, timestamp, Compression::None));
    }

    fn offsets(&self) -> Vec<i64> {
        read_all(&self.partition, usize::MAX).iter().map(|record| record.offset).collect()
    }
}

#[derive(Clone, Debug)]
enum Op {
    Append { entries: Vec<Entry>, codec: usize, age_ms: i64, producer: Option<i64> },
    Retry { producer: i64 },
    Seal,
    Wait { ms: i64 },
    Clean,
    Die { points: u32 },
    Read { from: Index, max_bytes: usize },
    Time { age_ms: i64 },
    Reopen { clean: bool },
}

fn op() -> impl Strategy<Value = Op> {
    let entry = (0..6_u8, proptest::option::weighted(0.7, any::<u8>()));
    prop_oneof![
        8 => (vec(entry, 1..6), 0..5_usize, 0..900_i64, proptest::option::of(0..3_i64))
            .prop_map(|(entries, codec, age_ms, producer)| Op::Append { entries, codec, age_ms, producer }),
        1 => (0..3_i64).prop_map(|producer| Op::Retry { producer }),
        2 => Just(Op::Seal),
        2 => (0..800_i64).prop_map(|ms| Op::Wait { ms }),
        4 => Just(Op::Clean),
        2 => (0..30_u32).prop_map(|points| Op::Die { points }),
        2 => (any::<Index>(), 0..500_usize).prop_map(|(from, max_bytes)| Op::Read { from, max_bytes }),
        2 => (-200..2000_i64).prop_map(|age_ms| Op::Time { age_ms }),
        1 => any::<bool>().prop_map(|clean| Op::Reopen { clean }),
    ]
}

/// All that was ever written, and what is known to be left of it.
#[derive(Default)]
struct Model {
    written: Vec<Seen>,
    left: BTreeSet<i64>,
    /// When it was first compacted after it was written, at the earliest and at the latest.
    met: BTreeMap<i64, i64>,
    met_for_sure: BTreeMap<i64, i64>,
    /// Per producer: next sequence, its last batch and where that went.
    producers: BTreeMap<i64, (i32, Vec<u8>, i64)>,
}

impl Model {
    fn check(&mut self, run: &Run, now: i64, config: &TopicConfig) {
        let all = read_all(&run.partition, 200);
        for record in &all {
            assert_eq!(record, &self.written[record.offset as usize], "what is left is as it was written");
        }
        let offsets: BTreeSet<_> = all.iter().map(|record| record.offset).collect();
        assert_eq!(offsets.len(), all.len(), "each is there once");
        assert!(all.is_sorted_by_key(|record| record.offset) && offsets.is_subset(&self.left), "nothing comes back");
        assert_eq!(state(&all), state(&self.written), "and it means the same");
        let active = run.partition.segments.read().last().unwrap().base.0;
        for gone in self.left.difference(&offsets) {
            let Seen { timestamp, entry: (key, value), .. } = &self.written[*gone as usize];
            let newer = self.written[*gone as usize + 1..].iter().find(|newer| newer.entry.0 == *key);
            let expired = value.is_none() && self.met.get(gone).is_some_and(|met| met + DELETE_RETENTION_MS <= now);
            assert!(*gone < active, "{gone} was in the active segment");
            assert!(newer.is_some_and(|newer| newer.offset < active) || expired, "{gone} has no reason to be gone");
            assert!(*timestamp <= now - config.min_compaction_lag_ms, "{gone} is too young");
        }
        self.left = offsets;
        let hot_bytes = i64::try_from(run.partition.hot_bytes()).unwrap();
        assert_eq!(run.metrics.hot_bytes.get(), hot_bytes);
    }

    /// After a compaction that came to its end.
    fn check_clean(&mut self, run: &Run, now: i64) {
        let through = run.partition.cleaning.lock().clean_through.0;
        let clean: Vec<_> = self.left.range(..through).collect();
        let keys: BTreeSet<_> = clean.iter().map(|offset| self.written[**offset as usize].entry.0).collect();
        assert_eq!(keys.len(), clean.len(), "each key is there once below {through}");
        for offset in self.left.range(..through) {
            self.met.entry(*offset).or_insert(now);
            let met = *self.met_for_sure.entry(*offset).or_insert(now);
            let is_tombstone = self.written[*offset as usize].entry.1.is_none();
            let is_held = !is_tombstone || met + DELETE_RETENTION_MS > now || *offset == through - 1;
            assert!(is_held, "the tombstone at {offset} should be gone");
        }
    }

    fn first(&self, wanted: impl Fn(&Seen) -> bool) -> Option<TimestampedOffset> {
        let found = self.left.iter().map(|offset| &self.written[*offset as usize]).find(|record| wanted(record))?;
        Some(TimestampedOffset { offset: Offset(found.offset), timestamp: Timestamp(found.timestamp) })
    }
}

fn apply(fixture: &Fixture, mut run: Run, model: &mut Model, op: Op) -> Run {
    let now = fixture.clock.now().0;
    match op {
        Op::Append { entries, codec, age_ms, producer } => {
            let mut sent = batch(&entries, now - age_ms, CODECS[codec]);
            let base = model.written.len() as i64;
            if let Some(id) = producer {
                let sequence = model.producers.get(&id).map_or(0, |(next, ..)| *next);
                sent = with_producer(sent, id, 0, sequence);
                model.producers.insert(id, (sequence + entries.len() as i32, sent.clone(), base));
            }
            assert_eq!(run.append(&sent).base_offset.0, base);
            for (offset, entry) in (base..).zip(entries) {
                model.written.push(Seen { offset, timestamp: now - age_ms, entry });
                model.left.insert(offset);
            }
        }
        Op::Retry { producer } => {
            if let Some((_, sent, base)) = model.producers.get(&producer) {
                let again = run.append(sent);
                assert_eq!((again.duplicate, again.base_offset.0), (true, *base));
            }
        }
        Op::Seal => run.partition.seal().unwrap(),
        Op::Wait { ms } => fixture.clock.advance_ms(ms),
        Op::Clean => {
            run.clean();
            model.check(&run, now, &fixture.config);
            model.check_clean(&run, now);
        }
        Op::Die { points } => {
            dies_after(points, || run.clean());
            drop(run);
            run = fixture.open();
            // What it met before it died is not known; what is not met later goes no earlier.
            let through = run.partition.segments.read().last().unwrap().base.0;
            for offset in model.left.range(..through) {
                model.met.entry(*offset).or_insert(now);
            }
            model.check(&run, now, &fixture.config);
        }
        Op::Read { from, max_bytes } => {
            let from = from.index(model.written.len() + 1) as i64;
            let bytes = run.read(from, max_bytes);
            assert!(!bytes.is_empty() || model.left.range(from..).next().is_none());
            if let Some(first) = seen(&bytes).iter().find(|record| record.offset >= from) {
                assert_eq!(Some(&first.offset), model.left.range(from..).next());
            }
        }
        Op::Time { age_ms } => {
            let timestamp = now - age_ms;
            let found = run.partition.offset_for_timestamp(Timestamp(timestamp)).unwrap();
            assert_eq!(found, model.first(|record| record.timestamp >= timestamp));
            let largest = model.left.iter().map(|offset| model.written[*offset as usize].timestamp).max();
            let found = run.partition.max_timestamp().unwrap();
            assert_eq!(found, largest.and_then(|largest| model.first(|record| record.timestamp == largest)));
        }
        Op::Reopen { clean } => {
            if clean {
                run.log.close().unwrap();
            }
            drop(run);
            run = fixture.open();
            model.check(&run, now, &fixture.config);
        }
    }
    run
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn of_each_key_the_newest_record_stays(
        ops in vec(op(), 1..50), keys_max in prop_oneof![Just(2_u64), Just(4), Just(100)], lag in prop_oneof![Just(0_i64), Just(500)],
    ) {
        let config = TopicConfig { min_compaction_lag_ms: lag, ..compacted() };
        let fixture = Fixture { dedupe_buffer_bytes: keys_max * 24, ..Fixture::new(config) };
        let mut run = fixture.open();
        let mut model = Model::default();
        for op in ops {
            run = apply(&fixture, run, &mut model, op);
        }
        model.check(&run, fixture.clock.now().0, &fixture.config);
    }
}

/// Several segments of several keys, with a tombstone; the last batch in an active segment of its own.
fn filled(fixture: &Fixture) -> Run {
    let run = fixture.open();
    for n in 0..24_u8 {
        let entries: Vec<Entry> =
            (0..4).map(|key| (key + n / 12, (key + n / 12 != 2 || n != 5).then_some(n))).collect();
        run.append(&with_producer(
            batch(&entries, 900_000 + i64::from(n), CODECS[usize::from(n) % 5]),
            7,
            0,
            4 * i32::from(n),
        ));
    }
    run.partition.seal().unwrap();
    run.put(&[(0, Some(99))], 900_100);
    assert!(fixture.bases().len() > 4, "{:?}", fixture.bases());
    run
}

#[test]
fn a_death_between_any_two_steps_of_a_compaction() {
    let expected = {
        let fixture = Fixture::new(compacted());
        let run = filled(&fixture);
        run.clean();
        (read_all(&run.partition, 100), fixture.bases())
    };
    assert!(expected.0.len() < 10 && expected.1.len() < 5, "{expected:?}");
    let mut points = 0;
    loop {
        let fixture = Fixture::new(compacted());
        let run = filled(&fixture);
        let before = read_all(&run.partition, 100);
        let died = dies_after(points, || run.clean());
        drop(run);
        // The next start may die too, wherever it finishes what the last one began.
        for again in 0..20 {
            let opens = || drop(fixture.open());
            if !dies_after(again, opens) {
                break;
            }
        }
        let run = fixture.open();
        let after = read_all(&run.partition, 100);
        assert_eq!(state(&after), state(&before), "died after {points} points");
        assert!(after.iter().all(|record| before.contains(record)), "died after {points} points");
        run.clean();
        assert_eq!(read_all(&run.partition, 100), expected.0, "died after {points} points");
        // Its sequence goes on where it was, though most of its batches are gone.
        let next = with_producer(batch(&[(1, Some(1))], 900_200, Compression::None), 7, 0, 96);
        assert_eq!(run.append(&next).base_offset, Offset(97));
        assert_eq!(fixture.files_of_compaction(), [""; 0]);
        if !died {
            break;
        }
        points += 1;
    }
    assert!(points > 12, "only {points} points: is it still killed at each step?");
}

#[test]
fn a_producer_is_known_from_the_batches_alone() {
    let fixture = Fixture::new(compacted());
    let run = filled(&fixture);
    let all: Vec<Entry> = (0..5).map(|key| (key, Some(1))).collect();
    run.put(&all, 900_200);
    run.partition.seal().unwrap();
    run.clean();
    assert_eq!(run.offsets(), [97, 98, 99, 100, 101], "nothing is left of what it sent");
    drop(run);
    for entry in std::fs::read_dir(fixture.dir.path().join("orders-0")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "snapshot") {
            std::fs::write(path, b"damaged").unwrap();
        }
    }
    let run = fixture.open();
    let batch = |sequence| with_producer(batch(&[(1, Some(1))], 900_200, Compression::None), 7, 0, sequence);
    assert!(matches!(run.partition.append(&batch(97)), Err(AppendError::OutOfOrderSequence { expected: 96, .. })));
    assert_eq!(run.append(&batch(96)).base_offset, Offset(102));
}

#[test]
fn a_quiet_tail_is_reached() {
    let fixture = Fixture::new(compacted());
    let run = fixture.open();
    run.put(&[(1, Some(1)), (2, Some(1))], 1);
    run.put(&[(1, None)], 2);
    run.partition.seal().unwrap();
    run.clean();
    assert_eq!(run.offsets(), [1, 2]);
    fixture.clock.advance_ms(DELETE_RETENTION_MS);
    run.clean();
    assert_eq!(run.offsets(), [1, 2], "the tombstone is the last record");
    run.put(&[(3, Some(1))], 3);
    run.partition.seal().unwrap();
    run.clean();
    assert_eq!(run.offsets(), [1, 3]);
    let header = BatchHeader::read(&run.read(2, 1)).unwrap();
    assert_eq!(header.base_offset, Offset(3), "a position in the hole is that of the next batch");
}

#[test]
fn an_expired_tombstone_goes_though_nothing_is_dirty() {
    let fixture = Fixture::new(TopicConfig { min_cleanable_dirty_ratio: 0.9, ..compacted() });
    let run = fixture.open();
    run.put(&[(1, Some(1)), (1, None), (2, Some(1))], 1);
    run.partition.seal().unwrap();
    run.clean();
    assert_eq!(run.offsets(), [1, 2]);
    fixture.clock.advance_ms(DELETE_RETENTION_MS - 1);
    run.clean();
    assert_eq!(run.offsets(), [1, 2]);
    fixture.clock.advance_ms(1);
    drop(run);
    let run = fixture.open();
    run.clean();
    assert_eq!(run.offsets(), [2]);
    let rounds = run.partition.compactions();
    run.clean();
    assert_eq!(run.partition.compactions(), rounds, "nothing is due any more");
}

#[test]
fn small_segments_become_one_and_what_is_clean_is_left_alone() {
    let fixture = Fixture::new(compacted());
    let run = fixture.open();
    for n in 0..40 {
        run.put(&[(n % 3, Some(n))], i64::from(n));
    }
    run.partition.seal().unwrap();
    run.clean();
    assert_eq!((run.offsets(), fixture.bases()), (vec![37, 38, 39], vec![0, 40]));
    let inode = || std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(fixture.file(0, LOG)).unwrap());
    let before = inode();
    run.clean();
    assert_eq!(inode(), before, "nothing is due");
    for key in 10..14 {
        run.put(&[(key, Some(1)); 3], 50);
        run.partition.seal().unwrap();
    }
    run.clean();
    assert_eq!(run.offsets(), [37, 38, 39, 42, 45, 48, 51]);
    assert_eq!(fixture.bases(), [0, 52], "it became one with its neighbours");
}

#[test]
fn records_must_be_old_enough_and_not_too_old() {
    let config = TopicConfig {
        min_compaction_lag_ms: 500,
        min_cleanable_dirty_ratio: 1.0,
        max_compaction_lag_ms: Some(2000),
        ..compacted()
    };
    let fixture = Fixture::new(config);
    let run = fixture.open();
    run.put(&[(1, Some(1)), (1, Some(2))], 999_900);
    run.log.maintain();
    assert_eq!(fixture.bases(), [0]);
    fixture.clock.advance_ms(2000);
    run.log.maintain();
    assert_eq!(fixture.bases(), [0, 2], "sealed in time to be compacted");
    run.clean();
    assert_eq!(run.offsets(), [1], "older than max.compaction.lag.ms, whatever the ratio");
    run.put(&[(1, Some(3)), (1, Some(4))], 1_002_000);
    run.partition.seal().unwrap();
    run.partition.set_config(Arc::new(TopicConfig { min_cleanable_dirty_ratio: 0.0, ..fixture.config.clone() }));
    fixture.clock.advance_ms(499);
    run.clean();
    assert_eq!(run.offsets(), [1, 2, 3], "younger than min.compaction.lag.ms");
    fixture.clock.advance_ms(1);
    run.clean();
    assert_eq!(run.offsets(), [3]);
}

#[test]
fn compacted_and_deleted_by_retention() {
    let cleanup = CleanupPolicy { compact: true, delete: true };
    let fixture = Fixture::new(TopicConfig { cleanup, retention_ms: Some(5000), ..compacted() });
    let run = fixture.open();
    run.put(&[(1, Some(1)), (2, Some(1)), (1, Some(2))], 1_000_000);
    run.partition.seal().unwrap();
    run.clean();
    run.log.maintain();
    assert_eq!(run.offsets(), [1, 2]);
    fixture.clock.advance_ms(5001);
    run.log.maintain();
    assert_eq!((run.offsets(), run.partition.log_start_offset()), (vec![], Offset(3)));
    run.put(&[(1, Some(3))], 1_005_000);
    drop(run);
    assert_eq!(fixture.open().offsets(), [3]);
}

#[test]
fn a_topic_that_was_not_compacted_loses_its_keyless_records() {
    let fixture = Fixture::new(TopicConfig { cleanup: CleanupPolicy { compact: false, delete: true }, ..compacted() });
    let run = fixture.open();
    run.append(&numbered(3, 5));
    run.put(&[(1, Some(1)), (1, Some(2))], 6);
    run.partition.seal().unwrap();
    run.clean();
    assert_eq!(run.values(0).len(), 5, "it is not to be compacted");
    run.partition.set_config(Arc::new(compacted()));
    let refused = run.partition.append(&numbered(3, 5));
    assert!(
        matches!(refused, Err(AppendError::Refused(BatchRefusal::KeysMissing { indexes })) if indexes == [0, 1, 2])
    );
    run.clean();
    assert_eq!(run.offsets(), [4]);
}

#[test]
fn a_compaction_that_is_told_to_stop_leaves_everything() {
    let fixture = Fixture::new(compacted());
    let run = filled(&fixture);
    let before = (run.offsets(), fixture.bases());
    run.log.clean(&|| true);
    assert_eq!((run.offsets(), fixture.bases()), before);
    for batches in [3, 30, 40] {
        let asked = AtomicU64::new(0);
        run.log.clean(&|| asked.fetch_add(1, Ordering::Relaxed) >= batches);
        assert_eq!(state(&read_all(&run.partition, 100)).len(), 5);
    }
    run.log.close().unwrap();
    run.clean();
}

#[test]
fn other_codecs_on_the_way_in() {
    use thermocline_config::TopicCompression::{Gzip, Lz4, Snappy, Uncompressed, Zstd};
    for (target, codec) in [Uncompressed, Gzip, Snappy, Lz4, Zstd].into_iter().zip(CODECS) {
        for log_append_time in [false, true] {
            let fixture = Fixture::new(TopicConfig { compression: Some(target), log_append_time, ..small() });
            let run = fixture.open();
            for (n, sent) in (0..).zip(CODECS) {
                let sent = with_producer(compressed(&numbered(3, 5), sent), 7, 0, 3 * n);
                assert_eq!(run.append(&sent).base_offset.0, i64::from(3 * n));
                assert!(run.append(&sent).duplicate);
            }
            let mut rest = &run.read(0, usize::MAX)[..];
            assert_eq!(values(rest).len(), 15);
            while !rest.is_empty() {
                let header = BatchHeader::read(rest).unwrap();
                assert_eq!(header.compression().unwrap(), codec);
                rest = &rest[header.size_bytes()..];
            }
            drop(run);
            assert_eq!(fixture.open().values(0).len(), 15, "its checksums hold");
        }
    }
    // What grows past the limit of its topic is refused, as it is in Kafka.
    let config = TopicConfig { compression: Some(Uncompressed), max_message_bytes: 300, ..small() };
    let fixture = Fixture::new(config);
    let run = fixture.open();
    let sent = compressed(&batch_of(&[(5, &[0; 400])]), Compression::Gzip);
    assert!(sent.len() < 300);
    assert!(matches!(run.partition.append(&sent), Err(AppendError::Refused(BatchRefusal::MessageTooLarge { .. }))));
}

#[test]
fn readers_beside_compaction_see_each_record_that_stays() {
    const ROUNDS: u8 = 60;
    let fixture = Fixture::new(TopicConfig { index_interval_bytes: 50, ..compacted() });
    let run = fixture.open();
    let is_done = AtomicBool::new(false);
    let scans = std::thread::scope(|scope| {
        let readers: Vec<_> = [1, 300, usize::MAX]
            .into_iter()
            .map(|max_bytes| {
                let (run, is_done) = (&run, &is_done);
                scope.spawn(move || {
                    let mut scans = Vec::new();
                    while !is_done.load(Ordering::Acquire) {
                        let end = run.partition.high_watermark().0;
                        let all = read_all(&run.partition, max_bytes);
                        assert!(all.is_sorted_by(|a, b| a.offset < b.offset), "in order, each once");
                        scans.push((end, all));
                        let found = run.partition.offset_for_timestamp(Timestamp(0)).unwrap();
                        assert!(found.is_some() || end == 0 || run.partition.high_watermark().0 > end);
                        run.partition.max_timestamp().unwrap();
                    }
                    scans
                })
            })
            .collect();
        for n in 0..ROUNDS {
            let entries: Vec<Entry> = (0..4).map(|at| ((n + at) % 7, Some(n))).collect();
            run.append(&batch(&entries, i64::from(n), CODECS[usize::from(n) % 5]));
            if n % 4 == 3 {
                run.clean();
            }
        }
        is_done.store(true, Ordering::Release);
        readers.into_iter().map(|reader| reader.join().unwrap()).collect::<Vec<_>>()
    });
    let left = read_all(&run.partition, usize::MAX);
    assert!(left.len() < 4 * usize::from(ROUNDS) / 2, "{} are left", left.len());
    for (end, scan) in scans.into_iter().flatten() {
        let missed = left.iter().filter(|record| record.offset < end && !scan.contains(record));
        assert_eq!(missed.count(), 0, "a scan up to {end} missed records that are there to this day");
    }
}
