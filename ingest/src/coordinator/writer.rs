//! The one task that appends to a partition of `__consumer_offsets`.
//!
//! Changes queue up in the order decided under their groups' locks. The task takes what is there, appends it as one
//! batch, waits until it is durable, and only then applies each change and answers who waits for it. So memory never
//! runs ahead of the disk, and one fsync serves all commits that came while the last was under way.
//!
//! Offsets within a transaction are written as pending. The transaction's end is a change like any other: what was
//! queued before it is in the log before its marker, and what comes later finds the transaction closed and is refused.
//!
//! | died here | then at the next start |
//! |---|---|
//! | before the batch is durable | nobody was told; some or none of the changes are found in the log |
//! | durable, before the answer | the change stands; the client asks again and gets the same |
//! | a generation began, its assignment not durable | members of it get ILLEGAL_GENERATION and join again; nobody held an assignment of it |
//! | a group is being deleted, its tombstones not durable | some or none of its offsets are gone; whoever asked was not told, and asks again |
//! | assignment durable, before the answer | the group is Stable in that generation; members fetch their part again |

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use kafka_protocol::ResponseError;
use tokio::sync::{mpsc, oneshot};

use super::group::Ticket;
use super::offsets::CommittedOffset;
use super::records::{self, GroupMetadata, RecordError};
use super::registry::{Cell, Inner, Registry};
use super::storage::{Append, OffsetsPartition};
use super::topic::{RawRecord, StorageError, record_bytes};
use crate::model::TopicPartition;
use crate::record::TransactionOutcome;

/// Changes that may wait for the writer of one partition; past it requests wait for room.
pub const QUEUE_MAX: usize = 1024;
/// Bytes of records after which a batch is closed, unless its only change is larger.
const BATCH_BYTES_MAX: usize = 1 << 20;

/// One change of one group.
pub struct Write {
    pub cell: Arc<Cell>,
    pub change: Change,
    /// Told when it is durable and applied, or failed.
    pub done: Option<oneshot::Sender<Result<(), ResponseError>>>,
}

/// A transaction ends, and with it what is pending in the groups of the partition.
pub struct End {
    pub producer_id: i64,
    pub epoch: i16,
    pub outcome: TransactionOutcome,
    /// Told when the marker is durable and applied, or failed.
    pub done: oneshot::Sender<Result<(), ResponseError>>,
}

/// What a writer does, in order.
pub enum Job {
    Write(Write),
    End(End),
}

impl From<Write> for Job {
    fn from(write: Write) -> Self {
        Self::Write(write)
    }
}

/// What is to be written.
pub enum Change {
    Offsets(Vec<(TopicPartition, CommittedOffset)>),
    /// Offsets within a transaction.
    Pending {
        producer_id: i64,
        epoch: i16,
        offsets: Vec<(TopicPartition, CommittedOffset)>,
        /// Whether the transaction is still open. Asked when the change is written: its end is written after it then.
        admission: Admission,
    },
    Group {
        ticket: Ticket,
        metadata: GroupMetadata,
    },
    /// Tombstones for offsets, and for the group itself where it is removed.
    Forget {
        offsets: Vec<TopicPartition>,
        group: bool,
    },
}

/// Says whether a transaction is open that a group's offsets belong to.
pub type Admission = Box<dyn Fn() -> Result<(), ResponseError> + Send>;

/// A change and the records that make it durable.
struct Encoded {
    job: Job,
    records: Vec<RawRecord>,
}

/// Why a change is not written.
#[derive(Debug)]
pub(super) enum Refusal {
    Record(RecordError),
    Transaction(ResponseError),
}

impl From<RecordError> for Refusal {
    fn from(error: RecordError) -> Self {
        Self::Record(error)
    }
}

/// Starts the writer of a partition. It ends when the sender is dropped and the queue is empty.
pub fn spawn(registry: Arc<Registry>, partition: OffsetsPartition) -> mpsc::Sender<Job> {
    let (sender, receiver) = mpsc::channel(QUEUE_MAX);
    let pending = partition.pending(&registry);
    tokio::spawn(Writer { registry, partition, receiver, backlog: VecDeque::new(), pending }.run());
    sender
}

struct Writer {
    registry: Arc<Registry>,
    partition: OffsetsPartition,
    receiver: mpsc::Receiver<Job>,
    /// Read from the queue, or caused by an applied change, and not yet written.
    backlog: VecDeque<Job>,
    /// Groups in which a producer has offsets pending.
    pending: BTreeMap<i64, BTreeSet<Arc<str>>>,
}

impl Writer {
    async fn run(mut self) {
        while let Some(batch) = self.next_batch().await {
            let appended = self.partition.append(appends(&batch), self.registry.clock.now()).await;
            if let Err(error) = &appended {
                self.warn(error, batch.len());
            }
            let outcome = if appended.is_ok() { Ok(()) } else { Err(ResponseError::CoordinatorNotAvailable) };
            for encoded in batch {
                self.apply(encoded, outcome);
            }
        }
    }

    /// The next changes that fit one batch; none when nobody can send any more.
    async fn next_batch(&mut self) -> Option<Vec<Encoded>> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.is_empty() {
            let mut next = match self.backlog.pop_front() {
                Some(job) => Some(job),
                None => Some(self.receiver.recv().await?),
            };
            while let Some(job) = next {
                let encoded = match &job {
                    Job::Write(write) => encode(write),
                    Job::End(_) => Ok(Vec::new()),
                };
                match encoded {
                    Ok(records) => {
                        let size: usize = records.iter().map(record_bytes).sum();
                        if bytes + size > BATCH_BYTES_MAX && !batch.is_empty() {
                            self.backlog.push_front(job);
                            break;
                        }
                        bytes += size;
                        batch.push(Encoded { job, records });
                    }
                    Err(Refusal::Record(error)) => {
                        self.warn(&error, 1);
                        let outcome = Err(ResponseError::CoordinatorNotAvailable);
                        self.apply(Encoded { job, records: Vec::new() }, outcome);
                    }
                    Err(Refusal::Transaction(error)) => {
                        self.apply(Encoded { job, records: Vec::new() }, Err(error));
                    }
                }
                next = self.backlog.pop_front().or_else(|| self.receiver.try_recv().ok());
            }
        }
        Some(batch)
    }

    fn warn(&self, error: &(dyn std::error::Error + 'static), changes: usize) {
        tracing::warn!(partition = %self.partition, error, changes, "group changes not stored, clients will try again");
    }

    /// Makes a durable change visible, or lets a failed one be known.
    fn apply(&mut self, encoded: Encoded, outcome: Result<(), ResponseError>) {
        match encoded.job {
            Job::Write(write) => {
                if outcome.is_ok()
                    && let Change::Pending { producer_id, .. } = &write.change
                {
                    self.pending.entry(*producer_id).or_default().insert(write.cell.id.clone());
                }
                self.backlog.extend(apply(&self.registry, write, outcome).map(Job::from));
            }
            Job::End(end) => {
                if outcome.is_ok() {
                    self.end_pending(&end);
                }
                let _ = end.done.send(outcome);
            }
        }
    }

    fn end_pending(&mut self, end: &End) {
        for group in self.pending.remove(&end.producer_id).unwrap_or_default() {
            let Some(cell) = self.registry.get(&group) else { continue };
            let mut inner = cell.inner.lock();
            let Inner { offsets, pending, .. } = &mut *inner;
            pending.end(end.producer_id, end.outcome, offsets);
        }
    }
}

/// Makes a durable change visible, or lets a failed one be known. What the group wants written next is returned.
pub(super) fn apply(registry: &Registry, write: Write, outcome: Result<(), ResponseError>) -> Option<Write> {
    let Write { cell, change, done } = write;
    let durable = outcome.is_ok();
    let mut inner = cell.inner.lock();
    inner.writes_pending = inner.writes_pending.saturating_sub(1);
    let buried = matches!(change, Change::Forget { group: true, .. });
    if buried && !durable {
        inner.group.revive();
    }
    let before = inner.group.state();
    let Inner { offsets: in_force, pending, .. } = &mut *inner;
    match change {
        Change::Offsets(commits) if durable => {
            for (at, committed) in commits {
                pending.commit(in_force, at, committed);
            }
        }
        Change::Pending { producer_id, offsets, .. } if durable => {
            for (at, committed) in offsets {
                pending.insert(producer_id, at, committed);
            }
        }
        Change::Forget { offsets, .. } if durable => {
            for at in &offsets {
                in_force.remove(at);
                pending.remove(at);
            }
        }
        Change::Group { ticket, .. } => {
            inner.group.on_stored(registry.now_ms(), ticket, durable);
        }
        Change::Offsets(_) | Change::Pending { .. } | Change::Forget { .. } => {}
    }
    let follows = registry.settle(&cell, &mut inner, before);
    drop(inner);
    if buried && durable {
        registry.remove(&cell);
    }
    if let Some(done) = done {
        let _ = done.send(outcome);
    }
    follows
}

/// What goes into the log for these changes: neighbours outside of transactions share batches.
fn appends(batch: &[Encoded]) -> Vec<Append> {
    let mut appends = Vec::new();
    for Encoded { job, records } in batch {
        let records = records.clone();
        match job {
            Job::Write(Write { change: Change::Pending { producer_id, epoch, .. }, .. }) => {
                appends.push(Append::Pending { producer_id: *producer_id, epoch: *epoch, records });
            }
            Job::Write(_) => match appends.last_mut() {
                Some(Append::Records(before)) => before.extend(records),
                _ => appends.push(Append::Records(records)),
            },
            Job::End(End { producer_id, epoch, outcome, .. }) => {
                appends.push(Append::End { producer_id: *producer_id, epoch: *epoch, outcome: *outcome });
            }
        }
    }
    appends
}

/// The records of a change. A change within a transaction that is no longer open is refused.
pub(super) fn encode(write: &Write) -> Result<Vec<RawRecord>, Refusal> {
    let id = &write.cell.id;
    let encode_all = |commits: &[(TopicPartition, CommittedOffset)]| {
        let encode = |(at, committed): &(TopicPartition, CommittedOffset)| {
            let key = records::offset_key(id, at.topic.as_str(), at.partition.0)?;
            Ok((key, Some(records::encode_offset(committed)?)))
        };
        commits.iter().map(encode).collect::<Result<Vec<RawRecord>, RecordError>>()
    };
    Ok(match &write.change {
        Change::Offsets(commits) => encode_all(commits)?,
        Change::Pending { offsets, admission, .. } => {
            admission().map_err(Refusal::Transaction)?;
            encode_all(offsets)?
        }
        Change::Group { metadata, .. } => vec![(records::group_key(id)?, Some(metadata.encode()?))],
        Change::Forget { offsets, group } => {
            let offsets =
                offsets.iter().map(|at| Ok((records::offset_key(id, at.topic.as_str(), at.partition.0)?, None)));
            let group = group.then(|| Ok((records::group_key(id)?, None)));
            offsets.chain(group).collect::<Result<_, RecordError>>()?
        }
    })
}

impl From<StorageError> for ResponseError {
    /// Every failure to store passes, or the operator has to act; the client is to try again.
    fn from(_: StorageError) -> Self {
        Self::CoordinatorNotAvailable
    }
}
