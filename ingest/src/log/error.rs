//! Why the log could not do something.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::model::{Offset, TopicPartition};
use crate::record::{BatchError, BatchRefusal};

/// Storage errors.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("could not {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is in use by another broker; give each its own data directory", dir.display())]
    Locked { dir: PathBuf },
    #[error("{} is damaged at byte {position}; restore it from a copy, or delete it and what follows to lose them", path.display())]
    Damaged { path: PathBuf, position: u64, source: BatchError },
    #[error("{} ends at offset {end}, but the next segment starts at {next}; a segment is missing or damaged", path.display())]
    Gap { path: PathBuf, end: Offset, next: Offset },
    #[error("{} holds offset {found} at byte {position} where {expected} belongs", path.display())]
    Misplaced { path: PathBuf, position: u64, found: Offset, expected: Offset },
    #[error("{} was replaced by its compacted form", path.display())]
    Compacted { path: PathBuf },
    #[error("{} would be {size_bytes} bytes long when compacted, more than the {limit} that an index can point into", path.display())]
    CompactedTooLarge { path: PathBuf, size_bytes: u64, limit: u64 },
    #[error("partition {0} is open already")]
    Open(TopicPartition),
    #[error("partition {0} is closed")]
    Closed(TopicPartition),
    #[error(
        "partition {partition} is offline since an earlier storage error ({cause}); restart the broker when the disk is well"
    )]
    Offline { partition: TopicPartition, cause: Arc<str> },
    #[error("the hot log is closed")]
    Shutdown,
}

/// Refusals of an append. Each variant but the first is one Kafka error code, named in its docstring.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// See the variants of [`BatchRefusal`].
    #[error(transparent)]
    Refused(#[from] BatchRefusal),
    /// INVALID_PRODUCER_EPOCH
    #[error("producer {producer_id} of {partition} has epoch {epoch}, but epoch {current} has written already")]
    InvalidProducerEpoch { partition: TopicPartition, producer_id: i64, epoch: i16, current: i16 },
    /// OUT_OF_ORDER_SEQUENCE_NUMBER
    #[error("producer {producer_id} of {partition} sent sequence {found}, {expected} is next")]
    OutOfOrderSequence { partition: TopicPartition, producer_id: i64, found: i32, expected: i32 },
    /// INVALID_TXN_STATE
    #[error(
        "producer {producer_id} of {partition} sent a batch outside of its transaction, which is open since offset {since}"
    )]
    OpenTransaction { partition: TopicPartition, producer_id: i64, since: Offset },
    /// See the variants of [`TransactionRefusal`].
    #[error("producer {producer_id} of {partition}: {reason}")]
    Transaction { partition: TopicPartition, producer_id: i64, reason: TransactionRefusal },
    /// KAFKA_STORAGE_ERROR, which clients retry until `delivery.timeout.ms`: goes away by itself when there is space. A
    /// code that they do not retry would have them drop the batch at once.
    #[error(
        "append to {partition} refused: less than log.disk_reserve ({reserve_bytes} bytes) of disk is free; add space, shorten retention, or see why the archive is behind"
    )]
    DiskReserve { partition: TopicPartition, reserve_bytes: u64 },
    /// KAFKA_STORAGE_ERROR, retriable: this append failed and left no trace.
    #[error("append to {partition} failed")]
    Storage { partition: TopicPartition, source: LogError },
    /// KAFKA_STORAGE_ERROR: until the broker is restarted.
    #[error(
        "partition {partition} is offline since an earlier storage error ({cause}); restart the broker when the disk is well"
    )]
    Offline { partition: TopicPartition, cause: Arc<str> },
    /// NOT_LEADER_OR_FOLLOWER: what is taken here would never be archived.
    #[error(
        "append to {partition} refused: another broker has taken over the store; send to that one, this one only serves reads"
    )]
    Replaced { partition: TopicPartition },
    /// NOT_LEADER_OR_FOLLOWER: deleted or shutting down; a client looks at the metadata and comes back.
    #[error("partition {0} is closed")]
    Closed(TopicPartition),
}

/// Why a batch is not taken into a transaction. Each variant is one Kafka error code, named in its docstring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransactionRefusal {
    /// INVALID_TXN_STATE; TRANSACTION_ABORTABLE for clients that know it.
    #[error("the batch belongs to a transaction that does not include the partition, or has ended")]
    NotIncluded,
    /// INVALID_PRODUCER_EPOCH
    #[error("another producer has taken over its transactional id")]
    Fenced,
    /// INVALID_PRODUCER_ID_MAPPING
    #[error("it is not the producer of its transactional id")]
    UnknownProducer,
}

/// Adds what was tried, and on which file, to an I/O error.
pub(super) trait IoContext<T> {
    fn on(self, action: &'static str, path: &Path) -> Result<T, LogError>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn on(self, action: &'static str, path: &Path) -> Result<T, LogError> {
        self.map_err(|source| LogError::Io { action, path: path.to_owned(), source })
    }
}

impl LogError {
    /// Whether a file was not there.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}
