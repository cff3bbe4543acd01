//! Transactions as a whole, log and coordinators together, on a real log in a temporary folder: random producers,
//! zombies, timeouts and crashes against a list of what was written. No aborted message is read, every committed one
//! is; the last stable offset is where the earliest open transaction begins, and no further; committed offsets are
//! those of the committed transactions.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what goes wrong here fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::ResponseError;
use prometheus::Registry;
use proptest::collection::vec;
use proptest::prelude::*;
use thermocline_config::{GroupsConfig, LogConfig, TransactionsConfig};
use thermocline_ingest::clock::{Clock, ManualClock};
use thermocline_ingest::coordinator::group::Committer;
use thermocline_ingest::coordinator::offsets::CommittedOffset;
use thermocline_ingest::coordinator::transactions::state::TransactionState;
use thermocline_ingest::coordinator::transactions::{Producer, TransactionCoordinator};
use thermocline_ingest::coordinator::{GroupCoordinator, PendingCommit};
use thermocline_ingest::log::{AppendError, Appended, HotLog, Partition};
use thermocline_ingest::metadata::MetadataStore;
use thermocline_ingest::metrics::IngestMetrics;
use thermocline_ingest::model::{Offset, PartitionId, ProducerId, Timestamp, TimestampType, TopicName, TopicPartition};
use thermocline_ingest::read::ReadRange;
use thermocline_ingest::record::{
    BatchDecoder, BatchEncoder, BatchError, BatchHeader, TransactionOutcome, into_transactional, split_batches,
};
use thermocline_ingest::topics::Topics;
use tokio::runtime::Runtime;

const TOPIC: &str = "orders";
const GROUP: &str = "readers";
const PARTITIONS: i32 = 2;
const IDS: [&str; 2] = ["a", "b"];
const TIMEOUT_MS: i32 = 1000;
const DAY_MS: i64 = 86_400_000;
const STOP_MAX: Duration = Duration::from_secs(30);
const SIMPLE: Committer<'static> = Committer { member_id: "", instance_id: None, generation: -1 };

/// One run of the broker. Its tasks are those of the runtime: when that goes, they stop where they are.
struct Run {
    runtime: Runtime,
    log: Arc<HotLog>,
    topics: Arc<Topics>,
    groups: Arc<GroupCoordinator>,
    transactions: Arc<TransactionCoordinator>,
}

fn start(dir: &Path, clock: &Arc<ManualClock>) -> Run {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let clock: Arc<dyn Clock> = clock.clone();
    let metrics = Arc::new(IngestMetrics::new(&Registry::new()).unwrap());
    let log = HotLog::open(dir.join("log"), LogConfig::default(), clock.clone(), metrics).unwrap();
    let store = Arc::new(MetadataStore::open(&dir.join("metadata.redb")).unwrap());
    let topics = Arc::new(Topics::open(store.clone(), log.clone(), LogConfig::default()).unwrap());
    if topics.get(TOPIC).is_none() {
        topics.create(&TopicName::new(TOPIC).unwrap(), PARTITIONS, BTreeMap::new()).unwrap();
    }
    let (groups, transactions) = runtime.block_on(async {
        let groups = GroupCoordinator::open(GroupsConfig::default(), topics.clone(), clock.clone()).await.unwrap();
        let config = TransactionsConfig::default();
        let opened = TransactionCoordinator::open(config, topics.clone(), groups.clone(), store, clock).await.unwrap();
        (groups, opened)
    });
    Run { runtime, log, topics, groups, transactions }
}

/// Died, or ended cleanly; tasks under way are cut off where they are.
fn stop(run: Run, clean: bool) {
    let Run { runtime, log, topics, groups, transactions } = run;
    if clean {
        log.close().unwrap();
    }
    runtime.shutdown_timeout(STOP_MAX);
    drop((transactions, groups, topics, log));
}

fn at(partition: i32) -> TopicPartition {
    TopicPartition::new(TopicName::new(TOPIC).unwrap(), PartitionId(partition))
}

fn batch(producer: Producer, sequence: i32, value: usize) -> Vec<u8> {
    let mut encoder = BatchEncoder::new(TimestampType::CreateTime);
    encoder.push(Offset::ZERO, Timestamp(1), None, Some(value.to_string().as_bytes()), std::iter::empty());
    let mut batch = into_transactional(encoder.finish().unwrap(), producer.0.0, producer.1).to_vec();
    batch[53..57].copy_from_slice(&sequence.to_be_bytes());
    let crc = crc32c::crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
    batch
}

impl Run {
    fn partition(&self, partition: i32) -> Arc<Partition> {
        self.topics.get(TOPIC).unwrap().partition(PartitionId(partition)).unwrap().clone()
    }

    fn append(&self, id: &str, producer: Producer, partition: i32, batch: &[u8]) -> Result<Appended, AppendError> {
        let log = self.partition(partition);
        let admission = |header: &BatchHeader| {
            let producer = (ProducerId(header.producer_id), header.producer_epoch);
            self.transactions.admits(id, producer, log.topic_partition())
        };
        assert_eq!(BatchHeader::read(batch).unwrap().producer_epoch, producer.1);
        let appended = log.append_in_transaction(batch, &admission)?;
        self.runtime.block_on(log.committed(appended.last_offset.next())).unwrap();
        Ok(appended)
    }

    /// Lets every transaction that is being ended come to its end.
    fn settle(&self) {
        self.runtime.block_on(async {
            while self.transactions.list().iter().any(|(_, transaction)| transaction.prepared().is_some()) {
                self.transactions.tick().await;
                tokio::task::yield_now().await;
            }
        });
    }

    fn end(&self, id: &str, producer: Producer, outcome: TransactionOutcome) -> Result<(), ResponseError> {
        self.runtime.block_on(self.transactions.end(id, producer, outcome))
    }

    fn commit_offset(&self, id: &'static str, producer: Producer, offset: i64) -> Result<(), ResponseError> {
        let group = self.groups.offsets_partition(GROUP).unwrap();
        let partitions = BTreeSet::from([group.clone()]);
        self.runtime.block_on(async {
            self.transactions.add_partitions(id, producer, partitions).await?;
            let committed = CommittedOffset {
                offset: Offset(offset),
                leader_epoch: 0,
                metadata: String::new(),
                commit_timestamp: Timestamp(offset),
            };
            let transactions = self.transactions.clone();
            let admission =
                Box::new(move || transactions.admits(id, producer, &group).map_err(|_| ResponseError::InvalidTxnState));
            let commit = PendingCommit {
                producer_id: producer.0,
                epoch: producer.1,
                offsets: vec![(at(0), committed)],
                admission,
            };
            self.groups.commit_in_transaction(GROUP, SIMPLE, commit).await
        })
    }

    /// Values that readers of committed data get.
    fn committed(&self, partition: i32) -> Vec<usize> {
        let log = self.partition(partition);
        let until = log.last_stable_offset();
        let range = ReadRange { from: Offset::ZERO, until, max_bytes: usize::MAX, at_least_one: true };
        let run = log.read(&range).unwrap();
        let mut values = Vec::new();
        for batch in run.chunks.iter().cloned().flat_map(split_batches).map(Result::unwrap) {
            if run.is_committed(&BatchHeader::read(&batch).unwrap()) {
                let take = |record: thermocline_ingest::record::Record<'_>| -> Result<(), BatchError> {
                    values.push(std::str::from_utf8(record.value.unwrap()).unwrap().parse().unwrap());
                    Ok(())
                };
                BatchDecoder::new(1 << 20).for_each(&batch, take).unwrap();
            }
        }
        values
    }
}

#[derive(Clone, Debug)]
enum Event {
    /// A producer begins, in the place of the one before; or that one goes on.
    Init {
        id: usize,
        goes_on: bool,
    },
    /// A partition joins the transaction.
    Add {
        id: usize,
        partition: i32,
    },
    Produce {
        id: usize,
        partition: i32,
    },
    /// The producer that was there before still writes.
    Zombie {
        id: usize,
        partition: i32,
    },
    CommitOffset {
        id: usize,
    },
    End {
        id: usize,
        commit: bool,
    },
    /// The broker dies while a transaction is being ended, so many steps into it.
    EndAndDie {
        id: usize,
        commit: bool,
        steps: usize,
    },
    Pass {
        ms: i64,
    },
    Restart {
        clean: bool,
    },
}

fn event() -> impl Strategy<Value = Event> {
    let (id, partition) = (0..IDS.len(), 0..PARTITIONS);
    let both = (id.clone(), partition);
    prop_oneof![
        3 => (id.clone(), any::<bool>()).prop_map(|(id, goes_on)| Event::Init { id, goes_on }),
        5 => both.clone().prop_map(|(id, partition)| Event::Add { id, partition }),
        8 => both.clone().prop_map(|(id, partition)| Event::Produce { id, partition }),
        2 => both.prop_map(|(id, partition)| Event::Zombie { id, partition }),
        2 => id.clone().prop_map(|id| Event::CommitOffset { id }),
        4 => (id.clone(), any::<bool>()).prop_map(|(id, commit)| Event::End { id, commit }),
        2 => (id, any::<bool>(), 0..40_usize).prop_map(|(id, commit, steps)| Event::EndAndDie { id, commit, steps }),
        2 => prop_oneof![Just(1), Just(600), Just(8 * DAY_MS)].prop_map(|ms| Event::Pass { ms }),
        1 => any::<bool>().prop_map(|clean| Event::Restart { clean }),
    ]
}

/// What a transactional id is known to be.
#[derive(Default)]
struct Id {
    producer: Option<Producer>,
    zombie: Option<Producer>,
    sequences: BTreeMap<i32, i32>,
    open: Option<Open>,
    used: Timestamp,
}

/// A transaction under way.
#[derive(Default)]
struct Open {
    started: Timestamp,
    partitions: BTreeSet<i32>,
    /// (partition, offset, value)
    written: Vec<(i32, i64, usize)>,
    offset: Option<i64>,
}

#[derive(Default)]
struct Model {
    ids: [Id; IDS.len()],
    /// Of committed transactions: by partition and offset.
    committed: BTreeMap<(i32, i64), usize>,
    offset: Option<i64>,
    values: usize,
}

impl Model {
    fn close(&mut self, id: usize, commit: bool) {
        let Some(open) = self.ids[id].open.take() else { return };
        if commit {
            self.committed.extend(open.written.iter().map(|(partition, at, value)| ((*partition, *at), *value)));
            self.offset = open.offset.or(self.offset);
        }
    }

    /// The producer is fenced.
    fn fence(&mut self, id: usize) {
        self.close(id, false);
        self.ids[id].zombie = self.ids[id].producer.take();
    }

    fn check(&self, run: &Run) {
        for partition in 0..PARTITIONS {
            let opens = self.ids.iter().filter_map(|id| id.open.as_ref());
            let written = opens.flat_map(|open| &open.written).filter(|(at, ..)| *at == partition);
            let log = run.partition(partition);
            let stable = written.map(|(_, offset, _)| *offset).min().unwrap_or(log.high_watermark().0);
            assert_eq!(log.last_stable_offset().0, stable, "partition {partition}");
            let readable = self.committed.range((partition, 0)..(partition, stable)).map(|(_, value)| *value);
            assert_eq!(run.committed(partition), readable.collect::<Vec<_>>(), "partition {partition}");
        }
        let (committed, is_pending) = run
            .groups
            .with_offsets(GROUP, |committed, pending| {
                let offset = committed.get(TOPIC, PartitionId(0)).map(|committed| committed.offset.0);
                (offset, pending.is_pending(TOPIC, PartitionId(0)))
            })
            .unwrap_or_default();
        assert_eq!(committed, self.offset);
        let some_open = self.ids.iter().filter_map(|id| id.open.as_ref()).any(|open| open.offset.is_some());
        assert_eq!(is_pending, some_open);
    }
}

struct World {
    dir: tempfile::TempDir,
    clock: Arc<ManualClock>,
    model: Model,
}

impl World {
    fn apply(&mut self, mut run: Run, event: Event) -> Run {
        match event {
            Event::Init { id, goes_on } => self.init(&run, id, goes_on),
            Event::Add { id, partition } => self.add(&run, id, partition),
            Event::Produce { id, partition } => self.produce(&run, id, partition),
            Event::Zombie { id, partition } => {
                let Some(zombie) = self.model.ids[id].zombie else { return run };
                // A sequence of its own, so that it is not taken for something sent again.
                run.append(IDS[id], zombie, partition, &batch(zombie, 1000, 0)).unwrap_err();
                run.end(IDS[id], zombie, TransactionOutcome::Commit).unwrap_err();
                run.commit_offset(IDS[id], zombie, 1).unwrap_err();
            }
            Event::CommitOffset { id } => {
                let now = self.clock.now();
                let Some(producer) = self.model.ids[id].producer else { return run };
                self.model.values += 1;
                let offset = self.model.values as i64;
                // Of two transactions that commit for a partition the one that ends last counts: one at a time here.
                if self.model.ids.iter().filter_map(|id| id.open.as_ref()).any(|open| open.offset.is_some()) {
                    return run;
                }
                run.commit_offset(IDS[id], producer, offset).unwrap();
                let state = &mut self.model.ids[id];
                state.open.get_or_insert_with(|| Open { started: now, ..Open::default() }).offset = Some(offset);
                state.used = now;
            }
            Event::End { id, commit } => {
                let Some(producer) = self.model.ids[id].producer else { return run };
                let ended = run.end(IDS[id], producer, outcome(commit));
                if self.model.ids[id].open.is_some() {
                    ended.unwrap();
                    self.model.close(id, commit);
                    self.model.ids[id].used = self.clock.now();
                }
            }
            Event::EndAndDie { id, commit, steps } => return self.end_and_die(run, id, commit, steps),
            Event::Pass { ms } => self.pass(&run, ms),
            Event::Restart { clean } => {
                stop(run, clean);
                run = start(self.dir.path(), &self.clock);
            }
        }
        run
    }

    fn init(&mut self, run: &Run, id: usize, goes_on: bool) {
        let state = &self.model.ids[id];
        let expected = state.producer.filter(|_| goes_on && state.open.is_none());
        let had_open = state.open.is_some();
        let init = || run.runtime.block_on(run.transactions.init_producer(IDS[id], TIMEOUT_MS, expected));
        let mut answer = init();
        if had_open {
            assert_eq!(answer, Err(ResponseError::ConcurrentTransactions));
        }
        while answer == Err(ResponseError::ConcurrentTransactions) {
            run.settle();
            answer = init();
        }
        let before = self.model.ids[id].producer;
        self.model.close(id, false);
        let state = &mut self.model.ids[id];
        let producer = answer.unwrap();
        assert!(before.is_none_or(|before| producer > before), "{producer:?} after {before:?}");
        state.zombie = before.or(state.zombie);
        state.producer = Some(producer);
        state.sequences.clear();
        state.used = self.clock.now();
    }

    fn add(&mut self, run: &Run, id: usize, partition: i32) {
        let now = self.clock.now();
        let Some(producer) = self.model.ids[id].producer else { return };
        let partitions = BTreeSet::from([at(partition)]);
        run.runtime.block_on(run.transactions.add_partitions(IDS[id], producer, partitions)).unwrap();
        let state = &mut self.model.ids[id];
        state.open.get_or_insert_with(|| Open { started: now, ..Open::default() }).partitions.insert(partition);
        state.used = now;
    }

    fn produce(&mut self, run: &Run, id: usize, partition: i32) {
        let state = &mut self.model.ids[id];
        let Some(producer) = state.producer else { return };
        let sequence = state.sequences.get(&partition).copied().unwrap_or(0);
        self.model.values += 1;
        let value = self.model.values;
        let appended = run.append(IDS[id], producer, partition, &batch(producer, sequence, value));
        match state.open.as_mut().filter(|open| open.partitions.contains(&partition)) {
            Some(open) => {
                open.written.push((partition, appended.unwrap().base_offset.0, value));
                state.sequences.insert(partition, sequence + 1);
            }
            None => assert!(matches!(appended, Err(AppendError::Transaction { .. })), "{appended:?}"),
        }
    }

    fn pass(&mut self, run: &Run, ms: i64) {
        self.clock.advance_ms(ms);
        let now = self.clock.now();
        run.runtime.block_on(run.transactions.tick());
        run.settle();
        for id in 0..IDS.len() {
            let state = &self.model.ids[id];
            if state.open.as_ref().is_some_and(|open| open.started.0 + i64::from(TIMEOUT_MS) <= now.0) {
                self.model.fence(id);
                self.model.ids[id].used = now;
            } else if state.open.is_none() && state.used.0 + 7 * DAY_MS <= now.0 {
                // Forgotten. A producer that comes back is told so.
                self.model.ids[id].zombie = self.model.ids[id].producer.take().or(self.model.ids[id].zombie);
            }
        }
    }

    fn end_and_die(&mut self, run: Run, id: usize, commit: bool, steps: usize) -> Run {
        let Some(producer) = self.model.ids[id].producer.filter(|_| self.model.ids[id].open.is_some()) else {
            return run;
        };
        let transactions = run.transactions.clone();
        run.runtime.block_on(async {
            let ending = tokio::spawn(async move { transactions.end(IDS[id], producer, outcome(commit)).await });
            for _ in 0..steps {
                tokio::task::yield_now().await;
            }
            drop(ending);
        });
        stop(run, false);
        let run = start(self.dir.path(), &self.clock);
        // What was decided is what the coordinator read back.
        let state = run.transactions.describe(IDS[id]).unwrap().state;
        match state {
            TransactionState::Ongoing => {}
            TransactionState::PrepareCommit | TransactionState::CompleteCommit => {
                assert!(commit);
                self.model.close(id, true);
            }
            TransactionState::PrepareAbort | TransactionState::CompleteAbort => {
                assert!(!commit);
                self.model.close(id, false);
            }
            TransactionState::Empty => panic!("it had begun"),
        }
        self.model.ids[id].used = self.clock.now();
        run
    }
}

fn outcome(commit: bool) -> TransactionOutcome {
    if commit { TransactionOutcome::Commit } else { TransactionOutcome::Abort }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_transactions_are_all_or_nothing(events in vec(event(), 1..60)) {
        let clock = Arc::new(ManualClock::at(Timestamp(1_000_000)));
        let mut world = World { dir: tempfile::tempdir().unwrap(), clock, model: Model::default() };
        let mut run = start(world.dir.path(), &world.clock);
        for event in events {
            run = world.apply(run, event);
            run.settle();
            world.model.check(&run);
        }
        stop(run, true);
    }
}

/// Ids that nobody uses any more, and the log of all of them, do not pile up.
#[test]
fn idle_ids_are_forgotten_for_good() {
    let clock = Arc::new(ManualClock::at(Timestamp(1_000_000)));
    let dir = tempfile::tempdir().unwrap();
    let run = start(dir.path(), &clock);
    let init = |run: &Run| run.runtime.block_on(run.transactions.init_producer("a", TIMEOUT_MS, None)).unwrap();
    let first = init(&run);
    assert_eq!(init(&run), (first.0, 1));
    clock.advance_ms(7 * DAY_MS);
    run.runtime.block_on(run.transactions.tick());
    assert!(run.transactions.list().is_empty());
    stop(run, false);
    let run = start(dir.path(), &clock);
    assert!(run.transactions.list().is_empty());
    let again = init(&run);
    assert!(again.0 > first.0 && again.1 == 0, "{again:?} after {first:?}");
    stop(run, true);
}

#[test]
fn timeouts_and_ids_have_limits() {
    let clock = Arc::new(ManualClock::at(Timestamp(1_000_000)));
    let dir = tempfile::tempdir().unwrap();
    let run = start(dir.path(), &clock);
    let init = |id: &str, timeout| run.runtime.block_on(run.transactions.init_producer(id, timeout, None));
    for bad in [-1, 0, 900_001] {
        assert_eq!(init("a", bad), Err(ResponseError::InvalidTransactionTimeout));
    }
    assert_eq!(init("", 1000), Err(ResponseError::InvalidRequest));
    assert_eq!(init(&"x".repeat(1025), 1000), Err(ResponseError::InvalidRequest));
    assert!(init("a", 900_000).is_ok());
    let nobody = (ProducerId(1), 0);
    assert_eq!(run.end("b", nobody, TransactionOutcome::Commit), Err(ResponseError::InvalidProducerIdMapping));
    stop(run, true);
}
