//! The one task that appends to a partition of `__consumer_offsets`.
//!
//! Changes queue up in the order decided under their groups' locks. The task takes what is there, appends it as one
//! batch, waits until it is durable, and only then applies each change and answers who waits for it. So memory never
//! runs ahead of the disk, and one fsync serves all commits that came while the last was under way.
//!
//! | died here | then at the next start |
//! |---|---|
//! | before the batch is durable | nobody was told; some or none of the changes are found in the log |
//! | durable, before the answer | the change stands; the client asks again and gets the same |
//! | a generation began, its assignment not durable | members of it get ILLEGAL_GENERATION and join again; nobody held an assignment of it |
//! | assignment durable, before the answer | the group is Stable in that generation; members fetch their part again |

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use tokio::sync::{mpsc, oneshot};

use super::group::Ticket;
use super::offsets::CommittedOffset;
use super::records::{self, GroupMetadata, RecordError};
use super::registry::{Cell, Registry};
use super::storage::{OffsetsPartition, StorageError};
use crate::model::TopicPartition;

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

/// What is to be written.
pub enum Change {
    Offsets(Vec<(TopicPartition, CommittedOffset)>),
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

/// A record to append: key, and value or tombstone.
pub type RawRecord = (Bytes, Option<Bytes>);

struct Encoded {
    write: Write,
    records: Vec<RawRecord>,
}

/// Starts the writer of a partition. It ends when the sender is dropped and the queue is empty.
pub fn spawn(registry: Arc<Registry>, partition: OffsetsPartition) -> mpsc::Sender<Write> {
    let (sender, receiver) = mpsc::channel(QUEUE_MAX);
    tokio::spawn(Writer { registry, partition, receiver, backlog: VecDeque::new() }.run());
    sender
}

struct Writer {
    registry: Arc<Registry>,
    partition: OffsetsPartition,
    receiver: mpsc::Receiver<Write>,
    /// Read from the queue, or caused by an applied change, and not yet written.
    backlog: VecDeque<Write>,
}

impl Writer {
    async fn run(mut self) {
        while let Some(batch) = self.next_batch().await {
            let records: Vec<RawRecord> = batch.iter().flat_map(|encoded| encoded.records.iter().cloned()).collect();
            let appended = self.partition.append(records, self.registry.clock.now()).await;
            if let Err(error) = &appended {
                self.warn(error, batch.len());
            }
            for encoded in batch {
                self.apply(encoded, appended.is_ok());
            }
        }
    }

    /// The next changes that fit one batch; none when nobody can send any more.
    async fn next_batch(&mut self) -> Option<Vec<Encoded>> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.is_empty() {
            let mut next = match self.backlog.pop_front() {
                Some(write) => Some(write),
                None => Some(self.receiver.recv().await?),
            };
            while let Some(write) = next {
                match encode(&write) {
                    Ok(records) => {
                        let size: usize = records.iter().map(record_bytes).sum();
                        if bytes + size > BATCH_BYTES_MAX && !batch.is_empty() {
                            self.backlog.push_front(write);
                            break;
                        }
                        bytes += size;
                        batch.push(Encoded { write, records });
                    }
                    Err(error) => {
                        self.warn(&error, 1);
                        self.apply(Encoded { write, records: Vec::new() }, false);
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
    fn apply(&mut self, encoded: Encoded, durable: bool) {
        let Write { cell, change, done } = encoded.write;
        let mut inner = cell.inner.lock();
        inner.writes_pending = inner.writes_pending.saturating_sub(1);
        let before = inner.group.state();
        match change {
            Change::Offsets(commits) if durable => {
                for (at, committed) in commits {
                    inner.offsets.insert(at, committed);
                }
            }
            Change::Forget { offsets, .. } if durable => {
                for at in &offsets {
                    inner.offsets.remove(at);
                }
            }
            Change::Group { ticket, .. } => {
                inner.group.on_stored(self.registry.now_ms(), ticket, durable);
            }
            Change::Offsets(_) | Change::Forget { .. } => {}
        }
        self.backlog.extend(self.registry.settle(&cell, &mut inner, before));
        drop(inner);
        if let Some(done) = done {
            let _ = done.send(if durable { Ok(()) } else { Err(ResponseError::CoordinatorNotAvailable) });
        }
    }
}

pub fn record_bytes((key, value): &RawRecord) -> usize {
    key.len() + value.as_ref().map_or(0, Bytes::len)
}

fn encode(write: &Write) -> Result<Vec<RawRecord>, RecordError> {
    let id = &write.cell.id;
    match &write.change {
        Change::Offsets(commits) => commits
            .iter()
            .map(|(at, committed)| {
                let key = records::offset_key(id, at.topic.as_str(), at.partition.0)?;
                Ok((key, Some(records::encode_offset(committed)?)))
            })
            .collect(),
        Change::Group { metadata, .. } => Ok(vec![(records::group_key(id)?, Some(metadata.encode()?))]),
        Change::Forget { offsets, group } => {
            let offsets =
                offsets.iter().map(|at| Ok((records::offset_key(id, at.topic.as_str(), at.partition.0)?, None)));
            let group = group.then(|| Ok((records::group_key(id)?, None)));
            offsets.chain(group).collect()
        }
    }
}

impl From<StorageError> for ResponseError {
    /// Every failure to store passes, or the operator has to act; the client is to try again.
    fn from(_: StorageError) -> Self {
        Self::CoordinatorNotAvailable
    }
}
