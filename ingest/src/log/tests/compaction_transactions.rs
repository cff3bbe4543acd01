//! Compaction of transactions against a model: committed, aborted and open ones, beside records outside of any, over
//! restarts, deaths at every step, and lost snapshots and indexes.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::segment::offset_of;
use super::super::snapshot::SNAPSHOT;
use super::super::transactions::ABORTED;
use super::compaction::{DELETE_RETENTION_MS, Entry, batch, compacted};
use super::transactions::transactional;
use super::*;
use crate::clock::Clock;
use crate::read::BatchRun;
use crate::record::TransactionOutcome::{self, Abort, Commit};
use crate::record::decode_marker;

/// Producers of transactions; those of sequences alone have other ids.
const PRODUCERS: i64 = 3;
const PLAIN_PRODUCER: i64 = 50;

/// What was written at one offset.
#[derive(Clone, Debug, PartialEq)]
enum Written {
    Record {
        entry: Entry,
        /// Index among the transactions.
        transaction: Option<usize>,
    },
    Marker {
        transaction: usize,
    },
}

#[derive(Clone, Debug)]
struct Transaction {
    producer: i64,
    first: i64,
    end: Option<(i64, TransactionOutcome)>,
}

/// All that was ever written, and what is known to be left of it.
#[derive(Default)]
struct Model {
    written: Vec<Written>,
    transactions: Vec<Transaction>,
    /// Per producer: next sequence, its last batch, and where that went.
    producers: BTreeMap<i64, (i32, Vec<u8>, i64)>,
    left: BTreeSet<i64>,
    /// When a tombstone was there when a compaction went over it, at the earliest.
    met: BTreeMap<i64, i64>,
}

/// A batch as it lies in the log.
struct Raw {
    header: BatchHeader,
    outcome: Option<TransactionOutcome>,
    records: Vec<(i64, Entry)>,
    is_committed: bool,
}

/// Everything below `until`, as a consumer reads it that takes little at once. It must come to the end.
fn raw(partition: &Partition, until: Offset, max_bytes: usize) -> Vec<Raw> {
    let (mut all, mut next) = (Vec::new(), partition.log_start_offset());
    while next < until {
        let range = ReadRange { from: next, until, max_bytes, at_least_one: true };
        let run: BatchRun = partition.read(&range).unwrap();
        assert!(!run.is_empty(), "nothing at {next}, though the end is {until}");
        for bytes in run.chunks.iter().cloned().flat_map(split_batches).map(Result::unwrap) {
            let header = BatchHeader::read(&bytes).unwrap();
            let outcome = if header.is_control() { decode_marker(&bytes).unwrap() } else { None };
            let mut records = Vec::new();
            let read: Result<(), BatchError> = BatchDecoder::new(1 << 20).for_each(&bytes, |record| {
                records.push((record.offset.0, (record.key.unwrap()[0], record.value.map(|value| value[0]))));
                Ok(())
            });
            read.unwrap();
            next = header.next_offset();
            all.push(Raw { header, outcome, records, is_committed: run.is_committed(&header) });
        }
    }
    all
}

/// What readers of committed data see, in order.
fn committed(run: &Run, max_bytes: usize) -> Vec<(i64, Entry)> {
    let batches = raw(&run.partition, run.partition.last_stable_offset(), max_bytes);
    batches.into_iter().filter(|batch| batch.is_committed).flat_map(|batch| batch.records).collect()
}

/// What each key means to who reads all of it.
fn state<'a>(records: impl IntoIterator<Item = &'a (i64, Entry)>) -> BTreeMap<u8, u8> {
    let mut state = BTreeMap::new();
    for (_, (key, value)) in records {
        match value {
            Some(value) => drop(state.insert(*key, *value)),
            None => drop(state.remove(key)),
        }
    }
    state
}

impl Run {
    /// A batch of a transaction.
    fn put_in(&self, producer: i64, sequence: i32, entries: &[Entry], timestamp: i64) -> Appended {
        let sent = with_producer(batch(entries, timestamp, Compression::None), producer, 0, sequence);
        self.append_transactional(&transactional(sent))
    }

    /// A record of another key in a segment of its own, and a compaction.
    fn put_and_clean(&self, key: u8, timestamp: i64) {
        self.put(&[(key, Some(1))], timestamp);
        self.partition.seal().unwrap();
        self.clean();
    }

    /// Offsets of the markers that are there.
    fn markers(&self) -> Vec<i64> {
        let all = raw(&self.partition, self.partition.high_watermark(), usize::MAX);
        all.iter().filter(|batch| batch.outcome.is_some()).map(|batch| batch.header.base_offset.0).collect()
    }

    /// First and last offsets of the transactions that are known as aborted.
    fn aborted(&self) -> Vec<(i64, i64)> {
        let aborted = self.partition.aborted(Offset::ZERO, self.partition.high_watermark()).unwrap();
        aborted.iter().map(|one| (one.first_offset.0, one.last_offset.0)).collect()
    }
}

impl Model {
    fn end(&self) -> i64 {
        self.written.len() as i64
    }

    fn open(&self, producer: i64) -> Option<usize> {
        self.transactions.iter().position(|one| one.producer == producer && one.end.is_none())
    }

    fn stable(&self) -> i64 {
        self.transactions.iter().filter(|one| one.end.is_none()).map(|one| one.first).min().unwrap_or(self.end())
    }

    fn is_aborted(&self, offset: i64) -> bool {
        let Written::Record { transaction: Some(at), .. } = &self.written[offset as usize] else { return false };
        matches!(self.transactions[*at].end, Some((_, Abort)))
    }

    /// Records that readers of committed data see if nothing was compacted.
    fn committed(&self) -> Vec<(i64, Entry)> {
        let records = (0..).zip(&self.written).filter_map(|(offset, written)| match written {
            Written::Record { entry, .. } => Some((offset, *entry)),
            Written::Marker { .. } => None,
        });
        records.filter(|(offset, _)| *offset < self.stable() && !self.is_aborted(*offset)).collect()
    }

    fn check(&mut self, run: &Run, now: i64) {
        assert_eq!((run.partition.high_watermark().0, run.stable()), (self.end(), self.stable()));
        let all = raw(&run.partition, run.partition.high_watermark(), 200);
        let mut offsets = BTreeSet::new();
        let (mut open, mut marked) = (BTreeSet::new(), BTreeSet::new());
        for batch in &all {
            match batch.outcome {
                Some(outcome) => {
                    let at = batch.header.base_offset.0;
                    let Written::Marker { transaction } = self.written[at as usize] else { panic!("{at} is a marker") };
                    let Transaction { producer, end, .. } = self.transactions[transaction];
                    assert_eq!((batch.header.producer_id, Some((at, outcome))), (producer, end));
                    open.remove(&producer);
                    marked.insert(transaction);
                    offsets.insert(at);
                }
                None if batch.header.is_transactional() => drop(open.insert(batch.header.producer_id)),
                None => {}
            }
            for (offset, entry) in batch.records.iter().filter(|_| batch.outcome.is_none()) {
                let Written::Record { entry: written, .. } = &self.written[*offset as usize] else {
                    panic!("{offset}")
                };
                assert_eq!(entry, written, "what is left is as it was written");
                assert!(offsets.insert(*offset), "each is there once");
            }
        }
        let expected: BTreeSet<_> =
            self.transactions.iter().filter(|one| one.end.is_none()).map(|one| one.producer).collect();
        assert_eq!(open, expected, "whoever reads it all finds the end of what has ended");
        assert!(offsets.is_subset(&self.left), "nothing comes back");

        let (seen, expected) = (committed(run, 300), self.committed());
        assert!(seen.iter().all(|record| expected.contains(record)), "nothing that was aborted or is open");
        assert_eq!(state(&seen), state(&expected), "it means the same");

        let known = run.aborted();
        for (first, last) in &known {
            let one = self.transactions.iter().position(|one| one.end == Some((*last, Abort))).unwrap();
            assert!(marked.contains(&one) && self.transactions[one].first <= *first, "{first} to {last}");
        }
        let untold = |offset: &&i64| {
            self.is_aborted(**offset) && !known.iter().any(|(first, last)| (*first..*last).contains(*offset))
        };
        assert_eq!(offsets.iter().find(untold), None, "readers are told of what was aborted");

        let border = run.partition.segments.read().last().unwrap().base.0.min(self.stable());
        for gone in self.left.difference(&offsets) {
            assert!(*gone < border, "{gone} was not to be touched");
            let Written::Record { entry: (key, value), .. } = &self.written[*gone as usize] else { continue };
            let is_replaced = expected.iter().any(|(at, (other, _))| at > gone && *at < border && other == key);
            let met = self.met.get(gone);
            let expired = value.is_none() && met.is_some_and(|met| met + DELETE_RETENTION_MS <= now);
            assert!(is_replaced || expired || self.is_aborted(*gone), "{gone} has no reason to be gone");
        }
        self.left = offsets;
    }

    /// What is sealed may have been met by a compaction that died.
    fn meet(&mut self, run: &Run, now: i64) {
        let border = run.partition.segments.read().last().unwrap().base.0;
        for offset in self.left.range(..border) {
            self.met.entry(*offset).or_insert(now);
        }
    }

    /// After a compaction that came to its end.
    fn check_clean(&self, run: &Run) {
        let through = run.partition.cleaning.lock().clean_through.0;
        let is_record = |offset: &&i64| matches!(self.written[**offset as usize], Written::Record { .. });
        let clean: Vec<_> = self.left.range(..through).filter(is_record).copied().collect();
        let kept: Vec<_> = clean.iter().filter(|offset| self.is_aborted(**offset)).collect();
        assert!(kept.is_empty() || kept == [&(through - 1)], "{kept:?} were aborted");
        let counted = clean.iter().filter(|offset| !self.is_aborted(**offset));
        let keys: Vec<_> = counted
            .map(|offset| match &self.written[*offset as usize] {
                Written::Record { entry, .. } => entry.0,
                Written::Marker { .. } => panic!("{offset} is a marker"),
            })
            .collect();
        assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), keys.len(), "each key is there once below {through}");
    }
}

#[derive(Clone, Debug)]
enum Op {
    Append { entries: Vec<Entry>, codec: usize, in_sequence: bool },
    AppendIn { producer: i64, entries: Vec<Entry>, codec: usize },
    End { producer: i64, outcome: TransactionOutcome },
    Retry { producer: i64 },
    Seal,
    Wait { ms: i64 },
    Clean,
    Die { points: u32 },
    Reopen { clean: bool },
    Lose { snapshots: bool, aborted: bool },
}

fn op() -> impl Strategy<Value = Op> {
    let entries = || vec((0..5_u8, proptest::option::weighted(0.7, any::<u8>())), 1..5);
    let outcome = prop_oneof![Just(Abort), Just(Commit)];
    prop_oneof![
        3 => (entries(), 0..5_usize, any::<bool>())
            .prop_map(|(entries, codec, in_sequence)| Op::Append { entries, codec, in_sequence }),
        8 => (0..PRODUCERS, entries(), 0..5_usize)
            .prop_map(|(producer, entries, codec)| Op::AppendIn { producer, entries, codec }),
        7 => (0..PRODUCERS, outcome).prop_map(|(producer, outcome)| Op::End { producer, outcome }),
        1 => prop_oneof![0..PRODUCERS, Just(PLAIN_PRODUCER)].prop_map(|producer| Op::Retry { producer }),
        3 => Just(Op::Seal),
        2 => (0..1500_i64).prop_map(|ms| Op::Wait { ms }),
        5 => Just(Op::Clean),
        2 => (0..30_u32).prop_map(|points| Op::Die { points }),
        1 => any::<bool>().prop_map(|clean| Op::Reopen { clean }),
        1 => any::<(bool, bool)>().prop_map(|(snapshots, aborted)| Op::Lose { snapshots, aborted }),
    ]
}

impl Model {
    fn wrote(&mut self, sent: Option<(i64, Vec<u8>)>, entries: &[Entry], transaction: Option<usize>) {
        let base = self.end();
        if let Some((producer, sent)) = sent {
            let next = self.next_sequence(producer) + entries.len() as i32;
            self.producers.insert(producer, (next, sent, base));
        }
        self.written.extend(entries.iter().map(|entry| Written::Record { entry: *entry, transaction }));
        self.left.extend(base..self.end());
    }

    fn next_sequence(&self, producer: i64) -> i32 {
        self.producers.get(&producer).map_or(0, |(next, ..)| *next)
    }
}

/// Every snapshot, or every index of aborted transactions, turns bad.
fn lose(fixture: &Fixture, extension: &str) {
    for entry in std::fs::read_dir(fixture.dir.path().join("orders-0")).unwrap() {
        let path = entry.unwrap().path();
        if offset_of(&path, extension).is_some() {
            let mut bytes = std::fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            if let Some(byte) = bytes.get_mut(middle) {
                *byte ^= 1;
            }
            std::fs::write(path, bytes).unwrap();
        }
    }
}

fn apply(fixture: &Fixture, mut run: Run, model: &mut Model, op: Op) -> Run {
    let now = fixture.clock.now().0;
    match op {
        Op::Append { entries, codec, in_sequence } => {
            let mut sent = batch(&entries, now, CODECS[codec]);
            if in_sequence {
                sent = with_producer(sent, PLAIN_PRODUCER, 0, model.next_sequence(PLAIN_PRODUCER));
            }
            assert_eq!(run.append(&sent).base_offset.0, model.end());
            model.wrote(in_sequence.then_some((PLAIN_PRODUCER, sent)), &entries, None);
        }
        Op::AppendIn { producer, entries, codec } => {
            let sent = with_producer(batch(&entries, now, CODECS[codec]), producer, 0, model.next_sequence(producer));
            let sent = transactional(sent);
            let appended = run.append_transactional(&sent);
            assert_eq!((appended.base_offset.0, appended.duplicate), (model.end(), false));
            let transaction = model.open(producer).unwrap_or_else(|| {
                model.transactions.push(Transaction { producer, first: model.end(), end: None });
                model.transactions.len() - 1
            });
            model.wrote(Some((producer, sent)), &entries, Some(transaction));
        }
        Op::End { producer, outcome } => {
            let at = model.end();
            let open = model.open(producer);
            assert_eq!(run.end(producer, 0, outcome), at + i64::from(open.is_some()));
            if let Some(transaction) = open {
                model.transactions[transaction].end = Some((at, outcome));
                model.written.push(Written::Marker { transaction });
                model.left.insert(at);
            }
        }
        Op::Retry { producer } => {
            if let Some((_, sent, base)) = model.producers.get(&producer) {
                let again = run.partition.append_in_transaction(sent, &|_| Ok(())).unwrap();
                assert_eq!((again.duplicate, again.base_offset.0), (true, *base));
            }
        }
        Op::Seal => run.partition.seal().unwrap(),
        Op::Wait { ms } => fixture.clock.advance_ms(ms),
        Op::Clean => {
            run.clean();
            model.check(&run, now);
            model.check_clean(&run);
            model.meet(&run, now);
        }
        Op::Die { points } => {
            dies_after(points, || run.clean());
            drop(run);
            run = fixture.open();
            model.meet(&run, now);
            model.check(&run, now);
        }
        Op::Reopen { clean } => {
            if clean {
                run.log.close().unwrap();
            }
            drop(run);
            run = fixture.open();
            model.check(&run, now);
        }
        Op::Lose { snapshots, aborted } => {
            drop(run);
            if snapshots {
                lose(fixture, SNAPSHOT);
            }
            if aborted {
                lose(fixture, ABORTED);
            }
            run = fixture.open();
            model.check(&run, now);
        }
    }
    run
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn what_was_committed_means_the_same_and_what_was_aborted_goes(
        ops in vec(op(), 1..70), keys_max in prop_oneof![Just(2_u64), Just(100)],
    ) {
        let fixture = Fixture { dedupe_buffer_bytes: keys_max * 24, ..Fixture::new(compacted()) };
        let mut run = fixture.open();
        let mut model = Model::default();
        for op in ops {
            run = apply(&fixture, run, &mut model, op);
        }
        model.check(&run, fixture.clock.now().0);
    }
}

/// Committed and aborted transactions over several segments, interleaved, and one that stays open behind them.
fn filled(fixture: &Fixture) -> Run {
    let run = fixture.open();
    let mut sequences = [0; 2];
    for n in 0..16_u8 {
        let at = usize::from(n % 2);
        run.put_in(at as i64, sequences[at], &[(n % 3, Some(n)), (7, Some(n))], 900_000 + i64::from(n));
        sequences[at] += 2;
        run.put(&[(n % 5, Some(100 + n))], 900_000 + i64::from(n));
        if n % 4 > 1 {
            run.end(at as i64, 0, if n < 9 { Abort } else { Commit });
        }
    }
    run.partition.seal().unwrap();
    run.put_in(2, 0, &[(0, Some(200))], 900_100);
    run.partition.seal().unwrap();
    run.put(&[(0, Some(201))], 900_200);
    assert!(fixture.bases().len() > 5, "{:?}", fixture.bases());
    run
}

#[test]
fn a_death_between_any_two_steps_beside_transactions() {
    let expected = {
        let fixture = Fixture::new(compacted());
        let run = filled(&fixture);
        run.clean();
        (committed(&run, 100), run.aborted(), run.markers())
    };
    assert!(expected.0.len() < 10 && !expected.1.is_empty(), "{expected:?}");
    let mut points = 0;
    loop {
        let fixture = Fixture::new(compacted());
        let run = filled(&fixture);
        let (before, stable) = (committed(&run, 100), run.stable());
        let died = dies_after(points, || run.clean());
        drop(run);
        for again in 0..20 {
            if !dies_after(again, || drop(fixture.open())) {
                break;
            }
        }
        let run = fixture.open();
        let after = committed(&run, 100);
        assert_eq!((state(&after), run.stable()), (state(&before), stable), "died after {points} points");
        run.clean();
        let found = (committed(&run, 100), run.aborted(), run.markers());
        assert_eq!(found, expected, "died after {points} points");
        assert!(!run.put_in(0, 16, &[(1, Some(1))], 900_300).duplicate, "its sequence goes on");
        assert_eq!(fixture.files_of_compaction(), [""; 0]);
        if !died {
            break;
        }
        points += 1;
    }
    assert!(points > 14, "only {points} points: is it still killed at each step?");
}

#[test]
fn nothing_at_or_above_the_last_stable_offset_is_touched() {
    let fixture = Fixture::new(compacted());
    let run = fixture.open();
    run.put(&[(1, Some(1))], 1);
    run.put_in(0, 0, &[(1, Some(2))], 1);
    run.put(&[(1, Some(3)), (1, Some(4))], 1);
    run.partition.seal().unwrap();
    run.put(&[(1, Some(5))], 1);
    run.clean();
    let all = |run: &Run| -> Vec<i64> {
        let batches = raw(&run.partition, run.partition.high_watermark(), usize::MAX);
        batches.iter().flat_map(|batch| &batch.records).map(|(offset, _)| *offset).collect()
    };
    assert_eq!((all(&run), run.stable()), (vec![0, 1, 2, 3, 4], 1));
    run.end(0, 0, Commit);
    run.partition.seal().unwrap();
    run.clean();
    assert_eq!(all(&run), [4, 5], "the newest, and the marker, which is the end of the range");
}

#[test]
fn markers_go_in_the_end_and_what_is_known_of_their_transactions_with_them() {
    let fixture = Fixture::new(compacted());
    let run = fixture.open();
    run.put_in(0, 0, &[(1, Some(1))], 1);
    run.put_in(1, 0, &[(2, Some(1))], 1);
    run.end(0, 0, Abort);
    run.end(1, 0, Commit);
    run.put(&[(2, Some(2))], 1);
    run.partition.seal().unwrap();
    run.clean();
    assert_eq!((committed(&run, 1), run.markers(), run.aborted()), (vec![(4, (2, Some(2)))], vec![2, 3], vec![(0, 2)]));
    // For as long as the producers are remembered, their last batches stay without records, and the markers with them.
    (10..13).for_each(|key| run.put_and_clean(key, 1));
    fixture.clock.advance_ms(DELETE_RETENTION_MS);
    run.put_and_clean(13, 1);
    assert_eq!((run.markers(), run.aborted()), (vec![2, 3], vec![(0, 2)]));
    fixture.clock.advance_ms(86_400_000);
    run.log.maintain();
    // Round by round: the batches, the horizon, the markers.
    run.put_and_clean(14, 1);
    run.put_and_clean(15, 1);
    assert_eq!((run.markers(), run.aborted()), (vec![2, 3], vec![(0, 2)]));
    fixture.clock.advance_ms(DELETE_RETENTION_MS - 1);
    run.clean();
    assert_eq!(run.markers(), [2, 3]);
    fixture.clock.advance_ms(1);
    run.clean();
    assert_eq!((run.markers(), run.aborted()), (vec![], vec![]));
    drop(run);
    lose(&fixture, SNAPSHOT);
    let run = fixture.open();
    assert_eq!((run.stable(), run.aborted()), (run.partition.high_watermark().0, vec![]));
    assert_eq!(committed(&run, 1).len(), 7);
}
