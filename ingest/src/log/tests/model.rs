//! A partition against a vector of batches, through any sequence of operations and restarts.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Append { times: Vec<i64>, value_len: usize, codec: usize, producer: Option<i64> },
    Retry { producer: i64 },
    Jump { producer: i64 },
    Read { from: Index, max_bytes: usize },
    Time { timestamp: i64 },
    Seal,
    Archive { through: Index },
    Trim { through: Index },
    Maintain { ms: i64 },
    Reopen { clean: bool },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (vec(0..500_i64, 1..5), 0..150_usize, 0..5_usize, proptest::option::of(0..2_i64))
            .prop_map(|(times, value_len, codec, producer)| Op::Append { times, value_len, codec, producer }),
        1 => (0..2_i64).prop_map(|producer| Op::Retry { producer }),
        1 => (0..2_i64).prop_map(|producer| Op::Jump { producer }),
        3 => (any::<Index>(), 0..3000_usize).prop_map(|(from, max_bytes)| Op::Read { from, max_bytes }),
        3 => (-1..510_i64).prop_map(|timestamp| Op::Time { timestamp }),
        1 => Just(Op::Seal),
        1 => any::<Index>().prop_map(|through| Op::Archive { through }),
        1 => any::<Index>().prop_map(|through| Op::Trim { through }),
        1 => (0..2000_i64).prop_map(|ms| Op::Maintain { ms }),
        1 => any::<bool>().prop_map(|clean| Op::Reopen { clean }),
    ]
}

/// What the partition should hold.
#[derive(Default)]
struct Model {
    /// As they were produced, with their offsets in place.
    batches: Vec<Vec<u8>>,
    /// (timestamp) per offset.
    times: Vec<i64>,
    /// Per producer: next sequence, and its last batch with its base offset.
    producers: BTreeMap<i64, (i32, Vec<u8>, i64)>,
    archived: i64,
}

impl Model {
    fn end(&self) -> i64 {
        self.times.len() as i64
    }

    fn append(&mut self, mut batch: Vec<u8>, times: &[i64]) {
        batch[..8].copy_from_slice(&self.end().to_be_bytes());
        self.batches.push(batch);
        self.times.extend_from_slice(times);
    }

    /// The bytes that a read must give.
    fn read(&self, from: i64, max_bytes: usize) -> Vec<u8> {
        let mut out = Vec::new();
        for batch in &self.batches {
            if BatchHeader::read(batch).unwrap().last_offset().0 < from {
                continue;
            }
            if !out.is_empty() && out.len() + batch.len() > max_bytes {
                break;
            }
            out.extend_from_slice(batch);
            if out.len() > max_bytes {
                break;
            }
        }
        out
    }

    /// The first record at or above `from` with a time that is `wanted`.
    fn first(&self, from: Offset, wanted: impl Fn(i64) -> bool) -> Option<TimestampedOffset> {
        let from = usize::try_from(from.0).unwrap();
        let found = (from..self.times.len()).find(|&at| wanted(self.times[at]))?;
        Some(TimestampedOffset { offset: Offset(found as i64), timestamp: Timestamp(self.times[found]) })
    }
}

fn settle(run: &Run, model: &Model) {
    run.committed(Offset(model.end())).unwrap();
    assert_eq!(run.partition.high_watermark(), Offset(model.end()));
    assert_eq!(run.partition.log_end_offset(), Offset(model.end()));
}

/// Any offset from the local start to the end.
fn offset(index: &Index, run: &Run) -> i64 {
    let (start, end) = (run.partition.local_start_offset().0, run.partition.log_end_offset().0);
    start + index.index(usize::try_from(end - start).unwrap() + 1) as i64
}

fn append(run: &Run, model: &mut Model, times: &[i64], value_len: usize, codec: usize, producer: Option<i64>) {
    let value = vec![b'v'; value_len];
    let records: Vec<_> = times.iter().map(|&time| (time, value.as_slice())).collect();
    let mut batch = compressed(&batch_of(&records), CODECS[codec]);
    if let Some(id) = producer {
        let sequence = model.producers.get(&id).map_or(0, |(next, ..)| *next);
        batch = with_producer(batch, id, 0, sequence);
        model.producers.insert(id, (sequence + times.len() as i32, batch.clone(), model.end()));
    }
    let appended = run.partition.append(&batch).unwrap();
    assert_eq!((appended.base_offset.0, appended.duplicate), (model.end(), false));
    model.append(batch, times);
    assert_eq!(appended.last_offset.next().0, model.end());
}

/// The local start is where a segment starts, and nothing is gone that the archive has not.
fn check_local_start(run: &Run, model: &Model, through: i64) {
    let start = run.partition.local_start_offset().0;
    assert!(start <= model.archived.min(through));
    assert!(
        model.batches.iter().any(|batch| BatchHeader::read(batch).unwrap().base_offset.0 == start)
            || start == model.end()
    );
    assert_eq!(run.metrics.hot_bytes.get(), i64::try_from(run.partition.hot_bytes()).unwrap());
}

fn apply(fixture: &Fixture, mut run: Run, model: &mut Model, op: Op) -> Run {
    let partition = &run.partition;
    match op {
        Op::Append { times, value_len, codec, producer } => append(&run, model, &times, value_len, codec, producer),
        Op::Retry { producer } => {
            if let Some((_, batch, base)) = model.producers.get(&producer) {
                let appended = partition.append(batch).unwrap();
                assert_eq!((appended.base_offset.0, appended.duplicate), (*base, true));
            }
        }
        Op::Jump { producer } => {
            if let Some((next, ..)) = model.producers.get(&producer) {
                let batch = with_producer(numbered(1, 1), producer, 0, next + 1);
                assert!(matches!(partition.append(&batch), Err(AppendError::OutOfOrderSequence { .. })));
            }
        }
        Op::Read { from, max_bytes } => {
            settle(&run, model);
            let from = offset(&from, &run);
            assert_eq!(run.read(from, max_bytes), model.read(from, max_bytes));
        }
        Op::Time { timestamp } => {
            settle(&run, model);
            let start = partition.local_start_offset();
            let found = partition.offset_for_timestamp(Timestamp(timestamp)).unwrap();
            assert_eq!(found, model.first(start, |time| time >= timestamp));
            let largest = model.times.iter().skip(usize::try_from(start.0).unwrap()).max();
            let found = partition.max_timestamp().unwrap();
            assert_eq!(found, largest.and_then(|largest| model.first(start, |time| time == *largest)));
        }
        Op::Seal => {
            partition.seal().unwrap();
            let sealed = partition.sealed_segments(partition.local_start_offset());
            let bytes: Vec<u8> =
                sealed.iter().flat_map(|s| s.batches().unwrap()).flat_map(|batch| batch.unwrap().to_vec()).collect();
            assert_eq!(bytes, model.read(partition.local_start_offset().0, usize::MAX));
        }
        Op::Archive { through } => {
            model.archived = model.archived.max(offset(&through, &run));
            partition.set_archived_through(Offset(model.archived));
        }
        Op::Trim { through } => {
            let through = offset(&through, &run);
            partition.trim_local(Offset(through)).unwrap();
            check_local_start(&run, model, through);
        }
        Op::Maintain { ms } => {
            fixture.clock.advance_ms(ms);
            run.log.maintain();
            check_local_start(&run, model, i64::MAX);
        }
        Op::Reopen { clean } => {
            let start = partition.local_start_offset();
            if clean {
                run.log.close().unwrap();
            }
            drop(run);
            run = fixture.open();
            run.partition.set_archived_through(Offset(model.archived));
            assert_eq!(run.partition.local_start_offset(), start);
            settle(&run, model);
        }
    }
    run
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn a_partition_is_a_vector_of_batches(ops in vec(op(), 1..60)) {
        let config = TopicConfig { segment_ms: 3000, local_retention_ms: Some(1_001_500), ..small() };
        let fixture = Fixture::new(config);
        let mut run = fixture.open();
        let mut model = Model::default();
        for op in ops {
            run = apply(&fixture, run, &mut model, op);
        }
        settle(&run, &model);
        let start = run.partition.local_start_offset().0;
        prop_assert_eq!(run.read(start, usize::MAX), model.read(start, usize::MAX));
    }
}
