//! Transactions in a partition, against a list of what was written, over restarts, torn tails and lost files.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::super::segment::offset_of;
use super::super::snapshot::SNAPSHOT;
use super::super::transactions::ABORTED;
use super::*;
use crate::log::{AbortedTransaction, TransactionRefusal};
use crate::record::TransactionOutcome::{self, Abort, Commit};
use crate::record::testing::reseal;

const PRODUCERS: i64 = 3;

pub(super) fn transactional(mut batch: Vec<u8>) -> Vec<u8> {
    batch[22] |= 0x10;
    reseal(batch)
}

fn batch(producer: i64, epoch: i16, sequence: i32, count: usize) -> Vec<u8> {
    transactional(with_producer(numbered(count, i64::from(sequence)), producer, epoch, sequence))
}

impl Run {
    pub(super) fn append_transactional(&self, batch: &[u8]) -> Appended {
        let appended = self.partition.append_in_transaction(batch, &|_| Ok(())).unwrap();
        self.committed(appended.last_offset.next()).unwrap();
        appended
    }

    pub(super) fn end(&self, producer: i64, epoch: i16, outcome: TransactionOutcome) -> i64 {
        let end = self.partition.end_transaction(producer, epoch, outcome).unwrap();
        self.committed(end).unwrap();
        end.0
    }

    pub(super) fn stable(&self) -> i64 {
        self.partition.last_stable_offset().0
    }

    /// Offsets of what readers of committed data get, from the start on.
    fn committed_offsets(&self, from: i64) -> Vec<i64> {
        let until = self.partition.last_stable_offset();
        let range = ReadRange { from: Offset(from), until, max_bytes: usize::MAX, at_least_one: true };
        let run = self.partition.read(&range).unwrap();
        let batches = run.chunks.iter().cloned().flat_map(split_batches).map(Result::unwrap);
        let committed = batches.filter(|batch| run.is_committed(&BatchHeader::read(batch).unwrap()));
        committed.flat_map(|batch| values(&batch)).map(|(offset, _)| offset).filter(|offset| *offset >= from).collect()
    }
}

#[test]
fn readers_of_committed_data_stop_at_what_is_open() {
    let fixture = Fixture::new(topic_config());
    let run = fixture.open();
    run.append(&numbered(2, 1));
    assert_eq!(run.stable(), 2);
    assert_eq!(run.append_transactional(&batch(7, 0, 0, 2)).base_offset.0, 2);
    run.append(&numbered(1, 1));
    assert_eq!(run.append_transactional(&batch(8, 0, 0, 1)).base_offset.0, 5);
    assert_eq!((run.stable(), run.partition.high_watermark().0), (2, 6));
    assert!(run.partition.seal().is_ok() && run.partition.sealed_segments(Offset::ZERO).is_empty(), "it waits");

    let open = run.partition.append(&with_producer(numbered(1, 1), 7, 0, 2)).unwrap_err();
    assert!(matches!(open, AppendError::OpenTransaction { since: Offset(2), .. }), "{open}");
    let refused = run.partition.append(&batch(9, 0, 0, 1)).unwrap_err();
    assert!(matches!(refused, AppendError::Transaction { reason: TransactionRefusal::NotIncluded, .. }), "{refused}");
    let again = run.partition.append_in_transaction(&batch(7, 0, 0, 2), &|_| Err(TransactionRefusal::Fenced)).unwrap();
    assert!(again.duplicate, "what is there was admitted once");

    assert_eq!(run.end(7, 1, Abort), 7);
    assert_eq!((run.stable(), run.committed_offsets(0)), (5, vec![0, 1, 4]));
    assert_eq!(run.end(7, 1, Abort), 7, "a marker that is there is not written again");
    let fenced = run.partition.append_in_transaction(&batch(7, 0, 2, 1), &|_| Ok(())).unwrap_err();
    assert!(matches!(fenced, AppendError::InvalidProducerEpoch { epoch: 0, current: 1, .. }), "{fenced}");
    assert_eq!(run.end(8, 0, Commit), 8);
    assert_eq!((run.stable(), run.committed_offsets(0)), (8, vec![0, 1, 4, 5]));
    assert_eq!(run.partition.sealed_segments(Offset::ZERO).len(), 1);
    let aborted = run.partition.aborted(Offset(3), Offset(4)).unwrap();
    let last_stable_offset = Offset(5);
    let expected =
        AbortedTransaction { first_offset: Offset(2), last_offset: Offset(6), producer_id: 7, last_stable_offset };
    assert_eq!(aborted, [expected]);
    assert!(run.partition.aborted(Offset(0), Offset(2)).unwrap().is_empty(), "begins behind it");
    assert!(run.partition.aborted(Offset(7), Offset(8)).unwrap().is_empty(), "ended before it");
}

#[test]
fn an_end_is_not_seen_before_it_is_durable() {
    let fixture = Fixture::new(topic_config());
    let run = fixture.open();
    run.append_transactional(&batch(7, 0, 0, 2));
    let files = run.partition.writer.lock().files.clone();
    files.log.faults.sync.store(true, Ordering::Relaxed);
    let end = run.partition.end_transaction(7, 0, Commit).unwrap();
    assert!(run.committed(end).is_err());
    assert_eq!((run.partition.log_end_offset(), run.stable()), (Offset(3), 0));
}

#[test]
fn an_open_transaction_that_was_deleted_in_part_begins_at_the_log_start() {
    let fixture = Fixture::new(topic_config());
    let run = fixture.open();
    run.append_transactional(&batch(7, 0, 0, 2));
    run.append(&numbered(2, 1));
    run.partition.set_log_start_offset(Offset(3));
    assert_eq!(run.stable(), 3);
}

#[test]
fn a_relaxed_topic_has_its_markers_on_disk() {
    let fixture = Fixture::new(TopicConfig { flush_messages: 1_000_000, flush_ms: None, ..small() });
    let run = fixture.open();
    run.append_transactional(&batch(7, 0, 0, 2));
    let files = run.partition.writer.lock().files.clone();
    files.log.faults.sync.store(true, Ordering::Relaxed);
    assert!(run.partition.end_transaction(7, 0, Commit).is_err());
}

#[derive(Clone, Copy, Debug)]
enum Written {
    /// Of a transaction, if of a producer.
    Data {
        producer: Option<i64>,
        base: i64,
        count: i64,
    },
    Marker {
        producer: i64,
        at: i64,
        outcome: TransactionOutcome,
    },
}

impl Written {
    fn end(self) -> i64 {
        match self {
            Self::Data { base, count, .. } => base + count,
            Self::Marker { at, .. } => at + 1,
        }
    }
}

/// What the log should say of a list of batches.
#[derive(Default)]
struct Story {
    open: BTreeMap<i64, i64>,
    sequences: BTreeMap<i64, i32>,
    aborted: Vec<(i64, i64, i64)>,
    end: i64,
}

impl Story {
    fn of(written: &[Written]) -> Self {
        let mut story = Self::default();
        for one in written {
            match *one {
                Written::Data { producer: Some(id), base, count } => {
                    story.open.entry(id).or_insert(base);
                    *story.sequences.entry(id).or_default() += count as i32;
                }
                Written::Data { .. } => {}
                Written::Marker { producer, at, outcome } => {
                    let first = story.open.remove(&producer).unwrap();
                    if outcome == Abort {
                        story.aborted.push((producer, first, at));
                    }
                }
            }
            story.end = one.end();
        }
        story
    }

    fn stable(&self) -> i64 {
        self.open.values().copied().min().unwrap_or(self.end)
    }

    fn committed(&self, written: &[Written], from: i64) -> Vec<i64> {
        let mut offsets = Vec::new();
        for one in written {
            let Written::Data { producer, base, count } = *one else { continue };
            let is_aborted =
                self.aborted.iter().any(|(id, first, at)| Some(*id) == producer && (*first..*at).contains(&base));
            if base < self.stable() && !is_aborted {
                offsets.extend((base..base + count).filter(|offset| *offset >= from));
            }
        }
        offsets
    }
}

#[derive(Clone, Debug)]
enum Op {
    Append {
        producer: Option<i64>,
        count: usize,
    },
    End {
        producer: i64,
        outcome: TransactionOutcome,
    },
    Seal,
    Trim {
        through: Index,
    },
    Reopen {
        clean: bool,
    },
    /// Killed, with so many bytes of the last segment lost.
    Tear {
        bytes: usize,
    },
    /// A file is lost while the broker is down.
    Lose {
        file: Index,
    },
    Look {
        from: Index,
        until: Index,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let outcome = prop_oneof![Just(Abort), Just(Commit)];
    prop_oneof![
        8 => (proptest::option::weighted(0.8, 0..PRODUCERS), 1..4_usize)
            .prop_map(|(producer, count)| Op::Append { producer, count }),
        6 => (0..PRODUCERS, outcome).prop_map(|(producer, outcome)| Op::End { producer, outcome }),
        1 => Just(Op::Seal),
        1 => any::<Index>().prop_map(|through| Op::Trim { through }),
        2 => any::<bool>().prop_map(|clean| Op::Reopen { clean }),
        1 => (0..400_usize).prop_map(|bytes| Op::Tear { bytes }),
        1 => any::<Index>().prop_map(|file| Op::Lose { file }),
        3 => (any::<Index>(), any::<Index>()).prop_map(|(from, until)| Op::Look { from, until }),
    ]
}

fn check(run: &Run, written: &[Written]) {
    let story = Story::of(written);
    assert_eq!(run.partition.high_watermark().0, story.end);
    assert_eq!(run.stable(), story.stable());
    let from = run.partition.local_start_offset().0;
    assert_eq!(run.committed_offsets(from), story.committed(written, from));
}

fn look(run: &Run, written: &[Written], from: &Index, until: &Index) {
    let story = Story::of(written);
    let start = run.partition.local_start_offset().0;
    let from = start + from.index(usize::try_from(story.end - start).unwrap() + 1) as i64;
    let until = from + until.index(usize::try_from(story.end - from).unwrap() + 1) as i64;
    let overlaps = |(_, first, at): &&(i64, i64, i64)| *first < until && *at >= from;
    let mut expected: Vec<_> =
        story.aborted.iter().filter(overlaps).map(|(id, first, at)| (*first, *at, *id)).collect();
    expected.sort_unstable();
    let found = run.partition.aborted(Offset(from), Offset(until)).unwrap();
    let found: Vec<_> = found.iter().map(|one| (one.first_offset.0, one.last_offset.0, one.producer_id)).collect();
    assert_eq!(found, expected, "{from}..{until}");
}

/// Snapshots and indexes of aborted transactions: all of it can be made anew from the log, as long as that is there
/// from the start.
fn lose(fixture: &Fixture, file: &Index) {
    let files = std::fs::read_dir(fixture.dir.path().join("orders-0")).unwrap().map(|entry| entry.unwrap().path());
    let mut derived: Vec<_> =
        files.filter(|path| [SNAPSHOT, ABORTED].iter().any(|one| offset_of(path, one).is_some())).collect();
    derived.sort_unstable();
    if !derived.is_empty() {
        let path = file.get(&derived);
        let mut bytes = std::fs::read(path).unwrap();
        if let Some(middle) = bytes.len().checked_div(2).filter(|middle| *middle < bytes.len()) {
            bytes[middle] ^= 1;
        }
        std::fs::write(path, bytes).unwrap();
    }
}

/// Cuts the last segment, but nothing below `durable`, nor what was synced before a snapshot was written.
fn tear(fixture: &Fixture, bytes: usize, durable: Offset) {
    let names = std::fs::read_dir(fixture.dir.path().join("orders-0")).unwrap().map(|entry| entry.unwrap().path());
    let synced = names.filter_map(|path| offset_of(&path, SNAPSHOT)).max().unwrap_or_default().max(durable);
    let path = fixture.file(*fixture.bases().last().unwrap(), LOG);
    let log = std::fs::read(&path).unwrap();
    let (mut rest, mut synced_len) = (log.as_slice(), 0);
    while let Ok(header) = BatchHeader::read(rest) {
        if header.base_offset >= synced {
            break;
        }
        synced_len += header.size_bytes();
        rest = &rest[header.size_bytes()..];
    }
    std::fs::write(&path, &log[..log.len().saturating_sub(bytes).max(synced_len)]).unwrap();
}

/// `durable`: what must not be torn, for segments were dropped that it had made complete. A marker may be the only
/// thing that says how a transaction ended whose messages are in the archive.
fn apply(fixture: &Fixture, mut run: Run, written: &mut Vec<Written>, durable: &mut Offset, op: Op) -> Run {
    let story = Story::of(written);
    match op {
        Op::Append { producer: None, count } => {
            run.append(&numbered(count, 1));
            written.push(Written::Data { producer: None, base: story.end, count: count as i64 });
        }
        Op::Append { producer: Some(id), count } => {
            let sequence = story.sequences.get(&id).copied().unwrap_or(0);
            let appended = run.append_transactional(&batch(id, 0, sequence, count));
            assert_eq!((appended.base_offset.0, appended.duplicate), (story.end, false));
            written.push(Written::Data { producer: Some(id), base: story.end, count: count as i64 });
        }
        Op::End { producer, outcome } => {
            let is_open = story.open.contains_key(&producer);
            assert_eq!(run.end(producer, 0, outcome), story.end + i64::from(is_open));
            if is_open {
                written.push(Written::Marker { producer, at: story.end, outcome });
            }
        }
        Op::Seal => run.partition.seal().unwrap(),
        Op::Trim { through } => {
            let sealed = run.partition.sealed_segments(Offset::ZERO);
            if !sealed.is_empty() {
                let end = through.get(&sealed).end;
                run.partition.set_archived_through(end);
                run.partition.trim_local(end).unwrap();
                *durable = Offset(story.end);
            }
        }
        Op::Reopen { clean } => {
            if clean {
                run.log.close().unwrap();
            }
            drop(run);
            run = fixture.open();
        }
        Op::Tear { bytes } => {
            drop(run);
            tear(fixture, bytes, *durable);
            run = fixture.open();
            let end = run.partition.log_end_offset().0;
            written.retain(|one| one.end() <= end);
        }
        Op::Lose { file } => {
            let is_whole = run.partition.local_start_offset() == Offset::ZERO;
            drop(run);
            if is_whole {
                lose(fixture, &file);
            }
            run = fixture.open();
        }
        Op::Look { from, until } => look(&run, written, &from, &until),
    }
    check(&run, written);
    run
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn what_is_committed_is_read_and_nothing_else(ops in vec(op(), 1..60)) {
        let fixture = Fixture::new(small());
        let mut run = fixture.open();
        let (mut written, mut durable) = (Vec::new(), Offset::ZERO);
        for op in ops {
            run = apply(&fixture, run, &mut written, &mut durable, op);
        }
    }
}
