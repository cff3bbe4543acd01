//! The trait through which Fetch, search and replay read a partition, wherever its bytes lie.
//! `ingest` owns it because its Fetch handler needs it; `tiering` implements it over log and archive.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::log::{LogError, Partition};
use crate::model::{Offset, Timestamp, TopicPartition};

/// What to read: whole record batches from the one that holds `from` (or the first after it, where `from` lies in a
/// hole) up to `until`.
#[derive(Clone, Debug)]
pub struct ReadRange {
    pub from: Offset,
    /// Exclusive; batches that start at or beyond it are not returned. Usually the high watermark.
    pub until: Offset,
    /// Size at which the answer is cut, in bytes of whole batches.
    pub max_bytes: usize,
    /// Return one complete batch even where it exceeds `max_bytes`.
    pub at_least_one: bool,
}

/// Record batches in offset order, as they go on the wire. Empty when there is nothing between `from` and `until`.
#[derive(Clone, Debug, Default)]
pub struct BatchRun {
    pub chunks: Vec<Bytes>,
}

/// A record's place in time, as ListOffsets reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimestampedOffset {
    pub offset: Offset,
    pub timestamp: Timestamp,
}

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("offset {offset} of {partition} is outside {log_start}..{log_end}")]
    OutOfRange { partition: TopicPartition, offset: Offset, log_start: Offset, log_end: Offset },
    #[error("the local copy of {partition} starts at {local_start}, beyond offset {offset}")]
    BelowLocalStart { partition: TopicPartition, offset: Offset, local_start: Offset },
    #[error("reading {partition} from the hot log")]
    Hot {
        partition: TopicPartition,
        #[source]
        source: LogError,
    },
    #[error("reading {partition} from the cold tier")]
    Cold {
        partition: TopicPartition,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Reads a partition as one log, hot and cold.
#[async_trait]
pub trait LogReader: Send + Sync + 'static {
    /// Batches of `range`. `OutOfRange` below the log start or beyond the log end; an empty run at the end.
    async fn read(&self, partition: &Arc<Partition>, range: ReadRange) -> Result<BatchRun, ReadError>;

    /// The first record whose timestamp is at or after `timestamp`, below the high watermark.
    async fn offset_for_timestamp(
        &self,
        partition: &Arc<Partition>,
        timestamp: Timestamp,
    ) -> Result<Option<TimestampedOffset>, ReadError>;

    /// The record with the largest timestamp below the high watermark; the first of several equal ones.
    async fn max_timestamp(&self, partition: &Arc<Partition>) -> Result<Option<TimestampedOffset>, ReadError>;
}

impl BatchRun {
    pub fn len_bytes(&self) -> usize {
        self.chunks.iter().map(Bytes::len).sum()
    }
    pub fn is_empty(&self) -> bool {
        self.chunks.iter().all(Bytes::is_empty)
    }
}
