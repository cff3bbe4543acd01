//! Consumer groups, and transactions ([`transactions`]).
//!
//! Groups: who belongs to which, who reads what, and how far they got.
//!
//! A request finds its group ([`registry`]), acts on its state machine ([`group`]) under the group's lock, and what is
//! to be kept goes to the writer of the group's partition ([`writer`], [`storage`], [`records`]). An answer that
//! promises something leaves after that is durable. Time comes in through [`GroupCoordinator::run`] ([`expiry`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use kafka_protocol::ResponseError;
use thermocline_config::GroupsConfig;
use tokio::sync::{mpsc, oneshot};

use crate::clock::Clock;
use crate::model::{PartitionId, ProducerId, TopicName, TopicPartition};
use crate::record::TransactionOutcome;
use crate::topics::Topics;

pub mod consumer_protocol;
mod deletion;
mod expiry;
pub mod group;
pub mod lag;
pub mod offsets;
pub mod records;
mod registry;
mod seek;
mod storage;
mod topic;
pub mod transactions;
mod writer;

pub use crate::model::OFFSETS_TOPIC;
use group::{Committer, GroupDescription, JoinRefusal, JoinReply, JoinRequest, Leaving, State, SyncReply, SyncRequest};
use offsets::{CommittedOffset, CommittedOffsets, PendingOffsets};
use registry::{Cell, Inner, Registry};
pub use seek::GroupError;
use storage::{OFFSETS_PARTITIONS, OffsetsPartition};
use topic::StorageError;
use writer::{Admission, Change, End, Job, Write};

/// Longest group id, in bytes. Kafka sets no bound of its own; every committed offset repeats the id in its key.
pub const GROUP_ID_BYTES_MAX: usize = 1024;

/// Why the coordinator could not start.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    #[error("consumer groups cannot be read back")]
    Storage(#[from] StorageError),
    #[error("transactions cannot be read back")]
    Transactions(#[source] StorageError),
}

/// A group as ListGroups shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSummary {
    pub id: String,
    pub protocol_type: String,
    pub state: State,
}

/// All consumer groups of this broker.
pub struct GroupCoordinator {
    registry: Arc<Registry>,
    topics: Arc<Topics>,
    /// One for each partition of the topic.
    writers: Vec<mpsc::Sender<Job>>,
}

/// Offsets that a transaction commits for a group.
pub struct PendingCommit {
    pub producer_id: ProducerId,
    pub epoch: i16,
    pub offsets: Vec<(TopicPartition, CommittedOffset)>,
    /// Whether the transaction is open and includes the group; asked when the offsets are written.
    pub admission: Admission,
}

impl GroupCoordinator {
    /// Creates `__consumer_offsets` if missing and replays it; must be done before the port opens.
    pub async fn open(
        config: GroupsConfig,
        topics: Arc<Topics>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, CoordinatorError> {
        let registry = Arc::new(Registry::new(config, clock));
        let opening = (registry.clone(), topics.clone());
        let partitions = tokio::task::spawn_blocking(move || {
            let (registry, topics) = opening;
            let topic = topic::open_topic(&topics, OFFSETS_TOPIC, OFFSETS_PARTITIONS)?;
            let mut partitions = Vec::with_capacity(topic.partitions.len());
            for (index, partition) in topic.partitions.iter().enumerate() {
                registry.restore(storage::read_back(partition)?.finish());
                partitions.push(OffsetsPartition::new(partition.clone(), index, topic.partitions.len()));
            }
            Ok::<_, StorageError>(partitions)
        })
        .await
        .map_err(StorageError::from)??;
        let writers = partitions.into_iter().map(|partition| writer::spawn(registry.clone(), partition)).collect();
        Ok(Arc::new(Self { registry, topics, writers }))
    }

    /// JoinGroup. Resolves when the generation begins that the member is in, or it is refused.
    pub async fn join(&self, group_id: &str, request: JoinRequest) -> JoinReply {
        check_group_id(group_id).map_err(JoinRefusal::of)?;
        let cell = match self.registry.get(group_id) {
            Some(cell) => cell,
            None if !request.member_id.is_empty() => return Err(JoinRefusal::of(ResponseError::UnknownMemberId)),
            None => self.registry.get_or_create(group_id).map_err(JoinRefusal::of)?,
        };
        let answer = self
            .act(&cell, |inner, now_ms| {
                let (token, answer) = inner.wait_join();
                inner.group.join(now_ms, token, request);
                answer
            })
            .await
            .map_err(JoinRefusal::of)?;
        answer.await.unwrap_or(Err(JoinRefusal::of(ResponseError::CoordinatorNotAvailable)))
    }

    /// SyncGroup. Resolves when the generation's assignments are durable, or a new rebalance begins.
    pub async fn sync(&self, group_id: &str, request: SyncRequest) -> SyncReply {
        let cell = self.known(group_id)?;
        let answer = self
            .act(&cell, |inner, now_ms| {
                let (token, answer) = inner.wait_sync();
                inner.group.sync(now_ms, token, request);
                answer
            })
            .await?;
        answer.await.unwrap_or(Err(ResponseError::CoordinatorNotAvailable))
    }

    /// Heartbeat.
    pub fn heartbeat(
        &self,
        group_id: &str,
        member_id: &str,
        instance_id: Option<&str>,
        generation: i32,
    ) -> Result<(), ResponseError> {
        let cell = self.known(group_id)?;
        let now_ms = self.registry.now_ms();
        // It only moves a deadline back: nothing to store, nobody to wake.
        cell.inner.lock().group.heartbeat(now_ms, member_id, instance_id, generation)
    }

    /// LeaveGroup; one answer for each, in order.
    pub async fn leave(
        &self,
        group_id: &str,
        leaving: &[Leaving],
    ) -> Result<Vec<Result<(), ResponseError>>, ResponseError> {
        check_group_id(group_id)?;
        match self.registry.get(group_id) {
            Some(cell) => self.act(&cell, |inner, now_ms| inner.group.leave(now_ms, leaving)).await?,
            None => Ok(vec![Err(ResponseError::UnknownMemberId); leaving.len()]),
        }
    }

    /// OffsetCommit of a whole group: done when the offsets are durable. Of two offsets for one partition the later
    /// counts. An unknown group is made for a client that assigns its partitions itself; `unknown_group` is the error
    /// for one that claims a generation.
    pub async fn commit(
        &self,
        group_id: &str,
        committer: Committer<'_>,
        unknown_group: ResponseError,
        offsets: Vec<(TopicPartition, CommittedOffset)>,
    ) -> Result<(), ResponseError> {
        if group_id.len() > GROUP_ID_BYTES_MAX {
            return Err(ResponseError::InvalidGroupId);
        }
        let cell = match self.registry.get(group_id) {
            Some(cell) => cell,
            None if committer.generation >= 0 => return Err(unknown_group),
            None => self.registry.get_or_create(group_id)?,
        };
        let offsets: BTreeMap<_, _> = offsets.into_iter().collect();
        let check = |inner: &mut Inner, now_ms| inner.group.check_commit(now_ms, committer);
        let change = (!offsets.is_empty()).then(|| Change::Offsets(offsets.into_iter().collect()));
        self.write_offsets(&cell, check, change).await
    }

    /// TxnOffsetCommit: done when the offsets are durable; they are in force when the transaction commits. An unknown
    /// group is made, as by [`Self::commit`].
    pub async fn commit_in_transaction(
        &self,
        group_id: &str,
        committer: Committer<'_>,
        commit: PendingCommit,
    ) -> Result<(), ResponseError> {
        check_group_id(group_id)?;
        let cell = match self.registry.get(group_id) {
            Some(cell) => cell,
            None if committer.generation >= 0 => return Err(ResponseError::IllegalGeneration),
            None => self.registry.get_or_create(group_id)?,
        };
        let PendingCommit { producer_id, epoch, offsets, admission } = commit;
        let offsets: BTreeMap<_, _> = offsets.into_iter().collect();
        let check = |inner: &mut Inner, now_ms| inner.group.check_transactional_commit(now_ms, committer);
        let change = (!offsets.is_empty()).then(|| Change::Pending {
            producer_id: producer_id.0,
            epoch,
            offsets: offsets.into_iter().collect(),
            admission,
        });
        self.write_offsets(&cell, check, change).await
    }

    async fn write_offsets(
        &self,
        cell: &Arc<Cell>,
        check: impl FnOnce(&mut Inner, i64) -> Result<(), ResponseError>,
        change: Option<Change>,
    ) -> Result<(), ResponseError> {
        let (done, durable) = oneshot::channel();
        {
            let permit = self.writer(&cell.id).reserve().await.map_err(|_| ResponseError::CoordinatorNotAvailable)?;
            let mut inner = cell.inner.lock();
            check(&mut inner, self.registry.now_ms())?;
            let Some(change) = change else { return Ok(()) };
            inner.writes_pending += 1;
            permit.send(Write { cell: cell.clone(), change, done: Some(done) }.into());
        }
        durable.await.unwrap_or(Err(ResponseError::CoordinatorNotAvailable))
    }

    /// Where the offsets of a group are kept: what a transaction includes that commits some.
    pub fn offsets_partition(&self, group_id: &str) -> Result<TopicPartition, ResponseError> {
        check_group_id(group_id)?;
        let topic = TopicName::new(OFFSETS_TOPIC).map_err(|_| ResponseError::CoordinatorNotAvailable)?;
        let index = i32::try_from(topic::partition_of(group_id, self.writers.len())).unwrap_or(0);
        Ok(TopicPartition::new(topic, PartitionId(index)))
    }

    /// Ends a producer's transaction in a partition of the topic: what it committed is in force, or dropped, on return.
    /// May be done again.
    pub async fn end_transaction(
        &self,
        partition: PartitionId,
        producer_id: ProducerId,
        epoch: i16,
        outcome: TransactionOutcome,
    ) -> Result<(), ResponseError> {
        // A partition that is not there has nothing to end.
        let Some(writer) = usize::try_from(partition.0).ok().and_then(|index| self.writers.get(index)) else {
            return Ok(());
        };
        let (done, durable) = oneshot::channel();
        let end = End { producer_id: producer_id.0, epoch, outcome, done };
        writer.send(Job::End(end)).await.map_err(|_| ResponseError::CoordinatorNotAvailable)?;
        durable.await.unwrap_or(Err(ResponseError::CoordinatorNotAvailable))
    }

    /// Looks at what the group has committed; `None` where the group is not known.
    pub fn with_committed<T>(&self, group_id: &str, look: impl FnOnce(&CommittedOffsets) -> T) -> Option<T> {
        self.with_offsets(group_id, |committed, _| look(committed))
    }

    /// Looks at what the group has committed, and at what transactions have for it; `None` where the group is not
    /// known.
    pub fn with_offsets<T>(
        &self,
        group_id: &str,
        look: impl FnOnce(&CommittedOffsets, &PendingOffsets) -> T,
    ) -> Option<T> {
        let cell = self.registry.get(group_id)?;
        let inner = cell.inner.lock();
        Some(look(&inner.offsets, &inner.pending))
    }

    /// Every group, in the order of their ids.
    pub fn list(&self) -> Vec<GroupSummary> {
        let summary = |cell: &Arc<Cell>| {
            let inner = cell.inner.lock();
            let protocol_type = inner.group.protocol_type().unwrap_or_default().to_owned();
            GroupSummary { id: cell.id.as_ref().to_owned(), protocol_type, state: inner.group.state() }
        };
        let mut groups: Vec<_> = self.registry.list().iter().map(summary).collect();
        groups.retain(|group| group.state != State::Dead);
        groups.sort_by(|a, b| a.id.cmp(&b.id));
        groups
    }

    /// One group; `None` where it is not known.
    pub fn describe(&self, group_id: &str) -> Option<GroupDescription> {
        let description = self.registry.get(group_id)?.inner.lock().group.describe();
        (description.state != State::Dead).then_some(description)
    }

    pub fn config(&self) -> &GroupsConfig {
        &self.registry.config
    }

    /// Longest note a committed offset may carry, in bytes.
    pub fn offset_metadata_max_bytes(&self) -> usize {
        self.registry.config.offset_metadata_max_bytes.as_usize().min(records::STRING_BYTES_MAX)
    }

    fn known(&self, group_id: &str) -> Result<Arc<Cell>, ResponseError> {
        check_group_id(group_id)?;
        self.registry.get(group_id).ok_or(ResponseError::UnknownMemberId)
    }

    fn writer(&self, group_id: &str) -> &mpsc::Sender<Job> {
        // A topic has at least one partition.
        &self.writers[topic::partition_of(group_id, self.writers.len())]
    }

    /// Lets something happen in a group and carries out what follows from it. Room in the writer's queue comes first,
    /// so that what is decided under the lock can always be queued under it.
    async fn act<T>(&self, cell: &Arc<Cell>, event: impl FnOnce(&mut Inner, i64) -> T) -> Result<T, ResponseError> {
        let permit = self.writer(&cell.id).reserve().await.map_err(|_| ResponseError::CoordinatorNotAvailable)?;
        let mut inner = cell.inner.lock();
        let before = inner.group.state();
        let outcome = event(&mut inner, self.registry.now_ms());
        if let Some(write) = self.registry.settle(cell, &mut inner, before) {
            permit.send(write.into());
        }
        Ok(outcome)
    }
}

fn check_group_id(group_id: &str) -> Result<(), ResponseError> {
    if group_id.is_empty() || group_id.len() > GROUP_ID_BYTES_MAX {
        return Err(ResponseError::InvalidGroupId);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
