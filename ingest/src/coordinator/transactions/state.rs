//! The transaction of one transactional id as a pure state machine: no I/O, no clock. An event gives the state to be
//! stored next, or the error that the client gets; nothing changes here.
//!
//! ```text
//!                    add partitions                 end                        markers written
//! Empty, Complete* ----------------> Ongoing ------------------> PrepareCommit ---------------> CompleteCommit
//!        ^                              |        timeout, fence
//!        |                              +----------------------> PrepareAbort  ---------------> CompleteAbort
//!        +--- InitProducerId: epoch + 1, or a fresh id at the last epoch
//! ```
//!
//! Invariants:
//! - Id and epoch are never given twice. Ending a transaction in its producer's place takes the next epoch, so that
//!   what the producer still sends is refused; the last epoch, which no producer is given, is there for that.
//! - A transaction that is prepared ends as it was prepared to.
//! - Only an ongoing transaction admits records, and only for partitions that were added.
//!
//! Sources: KIP-98, KIP-360 (going on with an id and epoch), Kafka's TransactionMetadata and TransactionCoordinator.

use std::collections::{BTreeMap, BTreeSet};

use kafka_protocol::ResponseError;

use crate::log::TransactionRefusal;
use crate::model::{PartitionId, ProducerId, Timestamp, TopicName, TopicPartition};
use crate::record::TransactionOutcome;

/// A producer with this epoch gets a fresh id instead of the next one, which is kept for fencing it.
const LAST_EPOCH: i16 = i16::MAX - 1;

/// What a transaction is doing; the numbers are those of Kafka's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionState {
    Empty = 0,
    Ongoing = 1,
    PrepareCommit = 2,
    PrepareAbort = 3,
    CompleteCommit = 4,
    CompleteAbort = 5,
}

/// What is known of a transactional id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    pub producer_id: ProducerId,
    pub epoch: i16,
    /// Id and epoch before those, as long as a producer that knows only them may have missed the answer. Not stored:
    /// after a restart such a producer is fenced.
    pub previous: Option<(ProducerId, i16)>,
    pub timeout_ms: i32,
    pub state: TransactionState,
    pub partitions: BTreeSet<TopicPartition>,
    /// When the transaction began; none where there is none.
    pub started: Option<Timestamp>,
    pub updated: Timestamp,
}

/// What InitProducerId leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Init {
    /// Store it; the producer may begin.
    Begin(Transaction),
    /// Store it: the transaction under way is aborted. The producer is to come again.
    Abort(Transaction),
}

impl TransactionState {
    pub fn of(number: i8) -> Option<Self> {
        let all = [
            Self::Empty,
            Self::Ongoing,
            Self::PrepareCommit,
            Self::PrepareAbort,
            Self::CompleteCommit,
            Self::CompleteAbort,
        ];
        all.into_iter().find(|state| *state as i8 == number)
    }

    /// The literal name clients expect.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "Empty",
            Self::Ongoing => "Ongoing",
            Self::PrepareCommit => "PrepareCommit",
            Self::PrepareAbort => "PrepareAbort",
            Self::CompleteCommit => "CompleteCommit",
            Self::CompleteAbort => "CompleteAbort",
        }
    }
}

impl Transaction {
    /// A transactional id that was not known.
    pub fn new(producer_id: ProducerId, timeout_ms: i32, now: Timestamp) -> Self {
        Self {
            producer_id,
            epoch: 0,
            previous: None,
            timeout_ms,
            state: TransactionState::Empty,
            partitions: BTreeSet::new(),
            started: None,
            updated: now,
        }
    }

    /// A producer begins, or, if it names the id and epoch it has, goes on. `fresh` is an id that was never given.
    pub fn init(
        &self,
        expected: Option<(ProducerId, i16)>,
        timeout_ms: i32,
        now: Timestamp,
        fresh: ProducerId,
    ) -> Result<Init, ResponseError> {
        let current = (self.producer_id, self.epoch);
        let is_retry = expected.is_some() && expected == self.previous;
        if expected.is_some_and(|expected| expected != current) && !is_retry {
            return Err(ResponseError::ProducerFenced);
        }
        match self.state {
            TransactionState::PrepareCommit | TransactionState::PrepareAbort => {
                return Err(ResponseError::ConcurrentTransactions);
            }
            TransactionState::Ongoing => return Ok(Init::Abort(self.fence(now))),
            TransactionState::Empty | TransactionState::CompleteCommit | TransactionState::CompleteAbort => {}
        }
        let previous = expected.map(|_| current);
        let ((producer_id, epoch), previous) = if is_retry {
            (current, self.previous)
        } else if self.needs_fresh_id() {
            ((fresh, 0), previous)
        } else {
            ((self.producer_id, self.epoch + 1), previous)
        };
        let new = Self::new(producer_id, timeout_ms, now);
        Ok(Init::Begin(Self { epoch, previous, ..new }))
    }

    /// Whether the next producer gets an id of its own.
    pub fn needs_fresh_id(&self) -> bool {
        self.epoch >= LAST_EPOCH
    }

    /// Partitions join the transaction, which begins with the first. None where they are in it.
    pub fn add(
        &self,
        producer: (ProducerId, i16),
        partitions: &BTreeSet<TopicPartition>,
        now: Timestamp,
    ) -> Result<Option<Self>, ResponseError> {
        self.check(producer)?;
        match self.state {
            TransactionState::PrepareCommit | TransactionState::PrepareAbort => {
                return Err(ResponseError::ConcurrentTransactions);
            }
            TransactionState::Ongoing if partitions.is_subset(&self.partitions) => return Ok(None),
            _ if partitions.is_empty() => return Ok(None),
            _ => {}
        }
        let mut next = Self { state: TransactionState::Ongoing, updated: now, previous: None, ..self.clone() };
        if self.state != TransactionState::Ongoing {
            next.partitions.clear();
            next.started = Some(now);
        }
        next.partitions.extend(partitions.iter().cloned());
        Ok(Some(next))
    }

    /// The producer ends its transaction. None where it has ended so.
    pub fn end(
        &self,
        producer: (ProducerId, i16),
        outcome: TransactionOutcome,
        now: Timestamp,
    ) -> Result<Option<Self>, ResponseError> {
        self.check(producer)?;
        let is_commit = outcome == TransactionOutcome::Commit;
        match self.state {
            TransactionState::Ongoing => Ok(Some(self.prepare(outcome, now))),
            TransactionState::CompleteCommit if is_commit => Ok(None),
            TransactionState::CompleteAbort if !is_commit => Ok(None),
            TransactionState::PrepareCommit if is_commit => Err(ResponseError::ConcurrentTransactions),
            TransactionState::PrepareAbort if !is_commit => Err(ResponseError::ConcurrentTransactions),
            _ => Err(ResponseError::InvalidTxnState),
        }
    }

    /// The transaction is aborted in its producer's place.
    pub fn fence(&self, now: Timestamp) -> Self {
        let epoch = self.epoch.saturating_add(1);
        Self { epoch, previous: None, ..self.prepare(TransactionOutcome::Abort, now) }
    }

    /// How a prepared transaction ends.
    pub fn prepared(&self) -> Option<TransactionOutcome> {
        match self.state {
            TransactionState::PrepareCommit => Some(TransactionOutcome::Commit),
            TransactionState::PrepareAbort => Some(TransactionOutcome::Abort),
            _ => None,
        }
    }

    /// All markers of a prepared transaction are written.
    pub fn complete(&self, outcome: TransactionOutcome, now: Timestamp) -> Self {
        let state = match outcome {
            TransactionOutcome::Commit => TransactionState::CompleteCommit,
            TransactionOutcome::Abort => TransactionState::CompleteAbort,
        };
        Self { state, partitions: BTreeSet::new(), started: None, updated: now, ..self.clone() }
    }

    pub fn has_timed_out(&self, now: Timestamp) -> bool {
        let is_over = |started: Timestamp| started.0.saturating_add(i64::from(self.timeout_ms)) <= now.0;
        self.state == TransactionState::Ongoing && self.started.is_some_and(is_over)
    }

    /// Whether nothing is under way, and was not for `expiration_ms`.
    pub fn has_expired(&self, now: Timestamp, expiration_ms: i64) -> bool {
        let is_idle = self.state != TransactionState::Ongoing && self.prepared().is_none();
        is_idle && self.updated.0.saturating_add(expiration_ms) <= now.0
    }

    /// Whether records of a producer may enter a partition within the transaction.
    pub fn admits(&self, producer: (ProducerId, i16), partition: &TopicPartition) -> Result<(), TransactionRefusal> {
        self.check(producer).map_err(|error| match error {
            ResponseError::ProducerFenced => TransactionRefusal::Fenced,
            _ => TransactionRefusal::UnknownProducer,
        })?;
        let is_in = self.state == TransactionState::Ongoing && self.partitions.contains(partition);
        if is_in { Ok(()) } else { Err(TransactionRefusal::NotIncluded) }
    }

    pub fn partitions_by_topic(&self) -> BTreeMap<&TopicName, Vec<PartitionId>> {
        let mut topics = BTreeMap::<_, Vec<_>>::new();
        for at in &self.partitions {
            topics.entry(&at.topic).or_default().push(at.partition);
        }
        topics
    }

    fn prepare(&self, outcome: TransactionOutcome, now: Timestamp) -> Self {
        let state = match outcome {
            TransactionOutcome::Commit => TransactionState::PrepareCommit,
            TransactionOutcome::Abort => TransactionState::PrepareAbort,
        };
        Self { state, updated: now, ..self.clone() }
    }

    fn check(&self, (producer_id, epoch): (ProducerId, i16)) -> Result<(), ResponseError> {
        if producer_id != self.producer_id {
            return Err(ResponseError::InvalidProducerIdMapping);
        }
        if epoch == self.epoch { Ok(()) } else { Err(ResponseError::ProducerFenced) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1000);
    const FRESH: ProducerId = ProducerId(99);

    fn at(partition: i32) -> TopicPartition {
        TopicPartition::new(TopicName::new("orders").unwrap(), PartitionId(partition))
    }

    fn in_state(state: TransactionState) -> Transaction {
        let partitions = BTreeSet::from([at(0)]);
        let started = Some(Timestamp(500));
        Transaction { state, epoch: 3, partitions, started, ..Transaction::new(ProducerId(7), 100, Timestamp(500)) }
    }

    fn init(transaction: &Transaction, expected: Option<(i64, i16)>) -> Result<Init, ResponseError> {
        transaction.init(expected.map(|(id, epoch)| (ProducerId(id), epoch)), 200, NOW, FRESH)
    }

    #[test]
    fn a_producer_that_begins_has_the_next_epoch() {
        for state in [TransactionState::Empty, TransactionState::CompleteCommit, TransactionState::CompleteAbort] {
            for expected in [None, Some((7, 3))] {
                let Init::Begin(next) = init(&in_state(state), expected).unwrap() else { panic!() };
                assert_eq!((next.producer_id, next.epoch, next.state), (ProducerId(7), 4, TransactionState::Empty));
                assert_eq!((next.timeout_ms, next.updated, next.partitions.len(), next.started), (200, NOW, 0, None));
                assert_eq!(next.previous.is_some(), expected.is_some());
            }
            for stale in [(7, 2), (7, 4), (8, 3)] {
                assert_eq!(init(&in_state(state), Some(stale)), Err(ResponseError::ProducerFenced));
            }
        }
        for state in [TransactionState::PrepareCommit, TransactionState::PrepareAbort] {
            assert_eq!(init(&in_state(state), None), Err(ResponseError::ConcurrentTransactions));
        }
    }

    #[test]
    fn a_lost_answer_is_given_again() {
        let Init::Begin(next) = init(&in_state(TransactionState::CompleteAbort), Some((7, 3))).unwrap() else {
            panic!()
        };
        let Init::Begin(again) = init(&next, Some((7, 3))).unwrap() else { panic!() };
        assert_eq!((again.producer_id, again.epoch), (ProducerId(7), 4));
        let used = again.add((ProducerId(7), 4), &BTreeSet::from([at(0)]), NOW).unwrap().unwrap();
        assert_eq!(init(&used, Some((7, 3))), Err(ResponseError::ProducerFenced), "it was not lost");
    }

    #[test]
    fn at_the_last_epoch_there_is_a_fresh_id() {
        let worn = Transaction { epoch: LAST_EPOCH, ..in_state(TransactionState::Ongoing) };
        let Init::Abort(fenced) = init(&worn, None).unwrap() else { panic!() };
        assert_eq!((fenced.epoch, fenced.state), (i16::MAX, TransactionState::PrepareAbort));
        for epoch in [LAST_EPOCH, i16::MAX] {
            let idle = Transaction { epoch, ..in_state(TransactionState::CompleteAbort) };
            let Init::Begin(next) = init(&idle, Some((7, epoch))).unwrap() else { panic!() };
            assert_eq!((next.producer_id, next.epoch), (FRESH, 0));
            let Init::Begin(again) = init(&next, Some((7, epoch))).unwrap() else { panic!() };
            assert_eq!((again.producer_id, again.epoch), (FRESH, 0), "a lost answer");
        }
    }

    #[test]
    fn partitions_join_what_is_open() {
        let me = (ProducerId(7), 3);
        let both = BTreeSet::from([at(0), at(1)]);
        for state in [TransactionState::Empty, TransactionState::CompleteCommit, TransactionState::CompleteAbort] {
            let begun = in_state(state).add(me, &BTreeSet::from([at(1)]), NOW).unwrap().unwrap();
            assert_eq!((begun.state, begun.started), (TransactionState::Ongoing, Some(NOW)));
            assert_eq!(begun.partitions, BTreeSet::from([at(1)]));
        }
        let ongoing = in_state(TransactionState::Ongoing);
        assert_eq!(ongoing.add(me, &BTreeSet::from([at(0)]), NOW), Ok(None));
        let more = ongoing.add(me, &both, NOW).unwrap().unwrap();
        assert_eq!((&more.partitions, more.started), (&both, Some(Timestamp(500))));
        for state in [TransactionState::PrepareCommit, TransactionState::PrepareAbort] {
            assert_eq!(in_state(state).add(me, &both, NOW), Err(ResponseError::ConcurrentTransactions));
        }
        assert_eq!(ongoing.add((ProducerId(8), 3), &both, NOW), Err(ResponseError::InvalidProducerIdMapping));
        assert_eq!(ongoing.add((ProducerId(7), 2), &both, NOW), Err(ResponseError::ProducerFenced));
        assert_eq!(more.admits(me, &at(1)), Ok(()));
        assert_eq!(more.admits(me, &at(2)), Err(TransactionRefusal::NotIncluded));
        assert_eq!(more.admits((ProducerId(7), 2), &at(1)), Err(TransactionRefusal::Fenced));
        assert_eq!(more.admits((ProducerId(8), 3), &at(1)), Err(TransactionRefusal::UnknownProducer));
        let over = in_state(TransactionState::CompleteCommit);
        assert_eq!(over.admits(me, &at(0)), Err(TransactionRefusal::NotIncluded));
    }

    #[test]
    fn an_end_is_an_end() {
        use TransactionOutcome::{Abort, Commit};
        use TransactionState::{CompleteAbort, CompleteCommit, Empty, Ongoing, PrepareAbort, PrepareCommit};
        let me = (ProducerId(7), 3);
        let end = |state, outcome| in_state(state).end(me, outcome, NOW).map(|next| next.map(|next| next.state));
        assert_eq!(end(Ongoing, Commit), Ok(Some(PrepareCommit)));
        assert_eq!(end(Ongoing, Abort), Ok(Some(PrepareAbort)));
        let (concurrent, invalid) = (Err(ResponseError::ConcurrentTransactions), Err(ResponseError::InvalidTxnState));
        for (state, commit, abort) in [
            (Empty, invalid, invalid),
            (PrepareCommit, concurrent, invalid),
            (PrepareAbort, invalid, concurrent),
            (CompleteCommit, Ok(None), invalid),
            (CompleteAbort, invalid, Ok(None)),
        ] {
            assert_eq!((end(state, Commit), end(state, Abort)), (commit, abort), "{state:?}");
        }
        assert_eq!(in_state(Ongoing).end((ProducerId(7), 4), Commit, NOW), Err(ResponseError::ProducerFenced));
        let done = in_state(PrepareCommit).complete(Commit, NOW);
        assert_eq!((done.state, done.partitions.len(), done.started, done.epoch), (CompleteCommit, 0, None, 3));
    }

    #[test]
    fn time_ends_what_lasts_and_forgets_what_is_idle() {
        let ongoing = in_state(TransactionState::Ongoing);
        assert!(!ongoing.has_timed_out(Timestamp(599)) && ongoing.has_timed_out(Timestamp(600)));
        assert!(!ongoing.has_expired(Timestamp(i64::MAX), 1));
        let prepared = in_state(TransactionState::PrepareAbort);
        assert!(!prepared.has_timed_out(NOW) && !prepared.has_expired(Timestamp(i64::MAX), 1));
        let idle = in_state(TransactionState::CompleteAbort);
        assert!(!idle.has_expired(Timestamp(599), 100) && idle.has_expired(Timestamp(600), 100));
    }
}
