//! Transactions: which producer writes under a transactional id, what its transaction includes, and how it ends.
//!
//! A request finds its id, takes its turn ([`Turn`]: one change of an id at a time), asks the state machine ([`state`])
//! what comes next, and makes that durable ([`storage`], [`records`]) before it is true. Then a transaction that is to
//! end is ended: a marker in every partition, the group coordinator's included, each durable, and at last the record
//! that says so. Time comes in through [`TransactionCoordinator::run`] ([`timers`]).
//!
//! Invariants:
//! - What memory says of an id is durable.
//! - A partition takes records of a transaction only while memory says that it is ongoing and includes the partition
//!   ([`TransactionCoordinator::admits`], asked under the partition's lock). So every open transaction of a partition
//!   has a coordinator that will end it.
//! - A transaction is complete only after all its markers are durable.
//!
//! | died here | then at the next start |
//! |---|---|
//! | before a record is durable | nothing happened; the client asks again |
//! | ongoing | ongoing, with the time it had: its producer goes on, or it times out |
//! | prepared, before or between its markers | it is ended as it was prepared; partitions that have their marker get no second one |
//! | all markers durable, not yet complete | the same, without a marker |
//! | complete, before an answer | the client asks again and is told that it is |

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::ResponseError;
use parking_lot::{Mutex, RwLock};
use thermocline_config::TransactionsConfig;
use tokio::sync::OwnedMutexGuard;

use super::topic::StorageError;
use super::{CoordinatorError, GroupCoordinator, OFFSETS_TOPIC};
use crate::clock::Clock;
use crate::log::{Partition, TransactionRefusal};
use crate::metadata::{MetadataError, MetadataStore};
use crate::model::{ProducerId, Timestamp, TopicPartition};
use crate::record::TransactionOutcome;
use crate::topics::Topics;

mod metrics;
mod producer_ids;
pub mod records;
pub mod state;
mod storage;
mod timers;

pub use crate::model::TRANSACTIONS_TOPIC;
use producer_ids::ProducerIds;
use state::{Init, Transaction};
use storage::StateLog;

/// Longest transactional id, in bytes. Kafka sets no bound of its own.
pub const TRANSACTIONAL_ID_BYTES_MAX: usize = 1024;
/// How long a request waits while the same id is being changed, mostly by markers of the transaction before; after that
/// the client is told to come again.
const TURN_WAIT_MAX: Duration = Duration::from_secs(1);

/// Id and epoch of a producer.
pub type Producer = (ProducerId, i16);

/// All transactional ids of this broker.
pub struct TransactionCoordinator {
    config: TransactionsConfig,
    topics: Arc<Topics>,
    groups: Arc<GroupCoordinator>,
    clock: Arc<dyn Clock>,
    metadata: Arc<MetadataStore>,
    producer_ids: ProducerIds,
    log: StateLog,
    cells: RwLock<HashMap<Arc<str>, Arc<Cell>>>,
}

/// One transactional id.
struct Cell {
    id: Arc<str>,
    turn: Arc<tokio::sync::Mutex<()>>,
    known: Mutex<Known>,
}

/// What is durable of an id.
enum Known {
    Nothing,
    Transaction(Transaction),
    /// It was forgotten, and its cell is no longer the one that is found.
    Forgotten,
}

/// The right to change an id; whoever has it is alone.
struct Turn {
    cell: Arc<Cell>,
    _alone: OwnedMutexGuard<()>,
}

/// Why a transaction could not be ended just now.
#[derive(Debug, thiserror::Error)]
enum EndError {
    #[error("marking {partition}")]
    Marker { partition: TopicPartition, source: crate::log::AppendError },
    #[error("marking the offsets of groups: {0}")]
    Groups(ResponseError),
    #[error("a task that writes markers was stopped")]
    Stopped(#[from] tokio::task::JoinError),
    #[error("storing that the transaction is complete")]
    Storage(#[from] StorageError),
}

impl Cell {
    fn new(id: Arc<str>, known: Known) -> Arc<Self> {
        Arc::new(Self { id, turn: Arc::default(), known: Mutex::new(known) })
    }

    /// What is durable of it.
    fn transaction(&self) -> Option<Transaction> {
        match &*self.known.lock() {
            Known::Transaction(transaction) => Some(transaction.clone()),
            Known::Nothing | Known::Forgotten => None,
        }
    }

    fn is_forgotten(&self) -> bool {
        matches!(*self.known.lock(), Known::Forgotten)
    }

    async fn turn(self: &Arc<Self>) -> Turn {
        Turn { cell: self.clone(), _alone: self.turn.clone().lock_owned().await }
    }

    fn try_turn(self: &Arc<Self>) -> Option<Turn> {
        let alone = self.turn.clone().try_lock_owned().ok()?;
        Some(Turn { cell: self.clone(), _alone: alone })
    }
}

impl TransactionCoordinator {
    /// Creates `__transaction_state` if missing and reads it back; must be done before the port opens. Transactions
    /// that were being ended go on with [`Self::run`].
    pub async fn open(
        config: TransactionsConfig,
        topics: Arc<Topics>,
        groups: Arc<GroupCoordinator>,
        metadata: Arc<MetadataStore>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, CoordinatorError> {
        let opening = topics.clone();
        let opened = tokio::task::spawn_blocking(move || StateLog::open(&opening)).await;
        let opened = opened.map_err(StorageError::from).and_then(|opened| opened);
        let (log, known) = opened.map_err(CoordinatorError::Transactions)?;
        let cells = known.into_iter().map(|(id, transaction)| {
            let id: Arc<str> = id.into();
            (id.clone(), Cell::new(id, Known::Transaction(transaction)))
        });
        let cells = RwLock::new(cells.collect());
        let producer_ids = ProducerIds::default();
        Ok(Arc::new(Self { config, topics, groups, clock, metadata, producer_ids, log, cells }))
    }

    /// An id for a producer without transactions. Blocking where ids must be reserved.
    pub fn fresh_producer_id(&self) -> Result<ProducerId, MetadataError> {
        self.producer_ids.next(&self.metadata)
    }

    /// InitProducerId: who writes under the id from now on. Whoever did before is fenced, and what it left open is
    /// aborted; CONCURRENT_TRANSACTIONS until that is done. A producer that names what it `expected` to be goes on, if
    /// nobody else has come meanwhile.
    pub async fn init_producer(
        self: &Arc<Self>,
        id: &str,
        timeout_ms: i32,
        expected: Option<Producer>,
    ) -> Result<Producer, ResponseError> {
        check_id(id)?;
        if timeout_ms <= 0 || i64::from(timeout_ms) > self.config.max_timeout.as_millis() {
            return Err(ResponseError::InvalidTransactionTimeout);
        }
        let turn = loop {
            let turn = self.take_turn(&self.get_or_create(id)?).await?;
            // Forgotten while it was waited for: its successor is another cell.
            if !turn.cell.is_forgotten() {
                break turn;
            }
        };
        let known = turn.cell.transaction();
        let now = self.clock.now();
        let needs_id = known.as_ref().is_none_or(Transaction::needs_fresh_id);
        let fresh = if needs_id { self.fresh_id().await? } else { ProducerId(-1) };
        let init = match &known {
            Some(known) => known.init(expected, timeout_ms, now, fresh)?,
            // Unknown here, or forgotten: there is nobody whom it could be mistaken for.
            None => Init::Begin(Transaction::new(fresh, timeout_ms, now)),
        };
        match init {
            Init::Begin(next) => {
                let producer = (next.producer_id, next.epoch);
                self.store(turn, next).await?;
                Ok(producer)
            }
            Init::Abort(next) => {
                self.store(turn, next).await?;
                Err(ResponseError::ConcurrentTransactions)
            }
        }
    }

    /// AddPartitionsToTxn and AddOffsetsToTxn: the partitions, which must exist, are in the transaction on return.
    pub async fn add_partitions(
        self: &Arc<Self>,
        id: &str,
        producer: Producer,
        partitions: BTreeSet<TopicPartition>,
    ) -> Result<(), ResponseError> {
        let turn = self.known_turn(id).await?;
        let known = turn.cell.transaction().ok_or(ResponseError::InvalidProducerIdMapping)?;
        match known.add(producer, &partitions, self.clock.now())? {
            Some(next) => self.store(turn, next).await,
            None => Ok(()),
        }
    }

    /// EndTxn: decided on return, and on its way into all partitions.
    pub async fn end(
        self: &Arc<Self>,
        id: &str,
        producer: Producer,
        outcome: TransactionOutcome,
    ) -> Result<(), ResponseError> {
        let turn = self.known_turn(id).await?;
        let known = turn.cell.transaction().ok_or(ResponseError::InvalidProducerIdMapping)?;
        match known.end(producer, outcome, self.clock.now())? {
            Some(next) => self.store(turn, next).await,
            None => Ok(()),
        }
    }

    /// Whether records of the producer may enter the partition within its transaction. Takes no lock that is held over
    /// anything: it is asked under the lock of a partition.
    pub fn admits(&self, id: &str, producer: Producer, partition: &TopicPartition) -> Result<(), TransactionRefusal> {
        let cell = self.cells.read().get(id).cloned().ok_or(TransactionRefusal::UnknownProducer)?;
        match &*cell.known.lock() {
            Known::Transaction(transaction) => transaction.admits(producer, partition),
            Known::Nothing | Known::Forgotten => Err(TransactionRefusal::UnknownProducer),
        }
    }

    /// One id; `None` where it is not known.
    pub fn describe(&self, id: &str) -> Option<Transaction> {
        self.cells.read().get(id)?.transaction()
    }

    /// Every id that is known, in order.
    pub fn list(&self) -> Vec<(Arc<str>, Transaction)> {
        let mut known: Vec<_> =
            self.list_cells().iter().filter_map(|cell| Some((cell.id.clone(), cell.transaction()?))).collect();
        known.sort_by(|a, b| a.0.cmp(&b.0));
        known
    }

    /// Now, as transactions count it.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn list_cells(&self) -> Vec<Arc<Cell>> {
        self.cells.read().values().cloned().collect()
    }

    /// POLICY_VIOLATION where that would be one too many.
    fn get_or_create(&self, id: &str) -> Result<Arc<Cell>, ResponseError> {
        if let Some(cell) = self.cells.read().get(id) {
            return Ok(cell.clone());
        }
        let mut cells = self.cells.write();
        if let Some(cell) = cells.get(id) {
            return Ok(cell.clone());
        }
        if cells.len() >= self.config.max_ids {
            return Err(ResponseError::PolicyViolation);
        }
        let id: Arc<str> = id.into();
        let cell = Cell::new(id.clone(), Known::Nothing);
        cells.insert(id, cell.clone());
        Ok(cell)
    }

    async fn known_turn(&self, id: &str) -> Result<Turn, ResponseError> {
        check_id(id)?;
        let cell = self.cells.read().get(id).cloned().ok_or(ResponseError::InvalidProducerIdMapping)?;
        self.take_turn(&cell).await
    }

    async fn take_turn(&self, cell: &Arc<Cell>) -> Result<Turn, ResponseError> {
        let turn = tokio::time::timeout(TURN_WAIT_MAX, cell.turn()).await;
        turn.map_err(|_| ResponseError::ConcurrentTransactions)
    }

    async fn fresh_id(self: &Arc<Self>) -> Result<ProducerId, ResponseError> {
        let this = self.clone();
        let reserved = tokio::task::spawn_blocking(move || this.fresh_producer_id()).await;
        match reserved {
            Ok(Ok(id)) => Ok(id),
            Ok(Err(error)) => {
                let error: &dyn std::error::Error = &error;
                tracing::error!(error, "producer ids could not be reserved");
                Err(ResponseError::CoordinatorNotAvailable)
            }
            Err(_) => Err(ResponseError::CoordinatorNotAvailable),
        }
    }

    /// Makes `next` durable and then true, whether or not the caller is still there. A transaction that is prepared
    /// with it is ended after that; the caller does not wait for it, but the next one with the same id does.
    async fn store(self: &Arc<Self>, turn: Turn, next: Transaction) -> Result<(), ResponseError> {
        let this = self.clone();
        let (done, stored) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let outcome = this.log.append(&turn.cell.id, Some(&next), this.clock.now()).await;
            match outcome {
                Ok(()) => {
                    let is_prepared = next.prepared().is_some();
                    *turn.cell.known.lock() = Known::Transaction(next);
                    let _ = done.send(Ok(()));
                    if is_prepared {
                        this.finish(turn).await;
                    } else {
                        drop(turn);
                    }
                }
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(transactional_id = %turn.cell.id, error, "transaction state not stored; the client will try again");
                    let _ = done.send(Err(ResponseError::CoordinatorNotAvailable));
                }
            }
        });
        stored.await.unwrap_or(Err(ResponseError::CoordinatorNotAvailable))
    }

    /// Ends a prepared transaction: its markers, then the record. What fails is tried again later, from the start.
    async fn finish(&self, turn: Turn) {
        let Some(prepared) = turn.cell.transaction() else { return };
        let Some(outcome) = prepared.prepared() else { return };
        if let Err(error) = self.try_finish(&turn, &prepared, outcome).await {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(transactional_id = %turn.cell.id, error, "transaction not ended yet; it will be tried again");
        }
    }

    async fn try_finish(
        &self,
        turn: &Turn,
        prepared: &Transaction,
        outcome: TransactionOutcome,
    ) -> Result<(), EndError> {
        let producer = (prepared.producer_id, prepared.epoch);
        let (groups, logs): (Vec<_>, Vec<_>) =
            prepared.partitions.iter().partition(|at| at.topic.as_str() == OFFSETS_TOPIC);
        let logs: Vec<_> = logs.into_iter().filter_map(|at| self.partition(at)).collect();
        // One that fails, maybe for as long as the broker runs, must not keep the others from going on.
        let mut ended = mark(logs, producer, outcome).await;
        for at in groups {
            let group = self.groups.end_transaction(at.partition, producer.0, producer.1, outcome);
            ended = ended.and(group.await.map_err(EndError::Groups));
        }
        ended?;
        let now = self.clock.now();
        let complete = prepared.complete(outcome, now);
        self.log.append(&turn.cell.id, Some(&complete), now).await?;
        *turn.cell.known.lock() = Known::Transaction(complete);
        Ok(())
    }

    /// The partition; none if its topic was deleted, and what it held of the transaction with it.
    fn partition(&self, at: &TopicPartition) -> Option<Arc<Partition>> {
        self.topics.get(at.topic.as_str())?.partition(at.partition).cloned()
    }
}

/// Writes the markers, and waits until they are durable: in all partitions where that is possible. The first failure.
async fn mark(
    partitions: Vec<Arc<Partition>>,
    (producer_id, epoch): Producer,
    outcome: TransactionOutcome,
) -> Result<(), EndError> {
    let failed = |partition: &Partition, source| {
        let partition = partition.topic_partition().clone();
        EndError::Marker { partition, source }
    };
    let written = tokio::task::spawn_blocking(move || {
        let mark = |partition: Arc<Partition>| match partition.end_transaction(producer_id.0, epoch, outcome) {
            Ok(end) => Ok((partition, end)),
            Err(source) => Err(failed(&partition, source)),
        };
        partitions.into_iter().map(mark).collect::<Vec<_>>()
    });
    let mut marked = Ok(());
    for written in written.await? {
        marked = marked.and(match written {
            Ok((partition, end)) => partition.committed(end).await.map_err(|source| failed(&partition, source)),
            Err(error) => Err(error),
        });
    }
    marked
}

fn check_id(id: &str) -> Result<(), ResponseError> {
    if id.is_empty() || id.len() > TRANSACTIONAL_ID_BYTES_MAX {
        return Err(ResponseError::InvalidRequest);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use prometheus::Registry;
    use thermocline_config::LogConfig;

    use super::*;
    use crate::clock::SystemClock;
    use crate::log::HotLog;
    use crate::metrics::IngestMetrics;
    use crate::model::{Offset, PartitionId, TimestampType, TopicName};
    use crate::record::{BatchEncoder, into_transactional};

    #[tokio::test]
    async fn a_partition_that_takes_no_marker_keeps_no_other_from_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let metrics = Arc::new(IngestMetrics::new(&Registry::new()).unwrap());
        let log = HotLog::open(dir.path().join("log"), LogConfig::default(), Arc::new(SystemClock), metrics).unwrap();
        let store = Arc::new(MetadataStore::open(&dir.path().join("metadata.redb")).unwrap());
        let topics = Topics::open(store, log, LogConfig::default()).unwrap();
        let producer = (ProducerId(7), 0);
        let [gone, kept] = ["gone", "kept"].map(|name| {
            let topic = topics.create(&TopicName::new(name).unwrap(), 1, BTreeMap::new()).unwrap();
            topic.partition(PartitionId(0)).unwrap().clone()
        });
        let mut encoder = BatchEncoder::new(TimestampType::CreateTime);
        encoder.push(Offset::ZERO, Timestamp(1), None, Some(b"held back"), std::iter::empty());
        let batch = into_transactional(encoder.finish().unwrap(), producer.0.0, producer.1);
        for partition in [&gone, &kept] {
            partition.append_in_transaction(&batch, &|_| Ok(())).unwrap();
        }
        topics.delete("gone").unwrap();
        assert_eq!(kept.last_stable_offset(), Offset::ZERO);

        let partitions = vec![gone.clone(), kept.clone()];
        let failed = mark(partitions, producer, TransactionOutcome::Abort).await.unwrap_err();
        assert!(matches!(failed, EndError::Marker { partition, .. } if partition == *gone.topic_partition()));
        assert_eq!(kept.last_stable_offset(), Offset(2), "the record and its marker");
    }
}
