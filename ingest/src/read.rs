//! The trait through which Fetch, search and replay read a partition, wherever its bytes lie.
//! `ingest` owns it because its Fetch handler needs it; `tiering` implements it over log and archive.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::log::{AbortedTransaction, FileRange, LogError, Partition};
use crate::model::{Offset, Timestamp, TopicPartition};
use crate::record::BatchHeader;

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
///
/// Up to the last stable offset a run says which of its batches are not committed; the archive has only what is.
#[derive(Clone, Debug, Default)]
pub struct BatchRun {
    pub chunks: Vec<Bytes>,
    /// Aborted transactions that the run lies in or touches, by their first offset. They go with the batches: the local
    /// copy may be gone by the time somebody asks.
    pub aborted: Vec<AbortedTransaction>,
}

/// Record batches in offset order, on their way to a consumer: a [`BatchRun`] of which parts may still be in their
/// files.
#[derive(Debug, Default)]
pub struct SendRun {
    pub chunks: Vec<Chunk>,
    /// As those of a [`BatchRun`].
    pub aborted: Vec<AbortedTransaction>,
}

/// Bytes to be sent.
#[derive(Debug)]
pub enum Chunk {
    Bytes(Bytes),
    File(FileRange),
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

    /// Like [`Self::read`], to be sent as it is: up to `files_max` of the chunks may be ranges of files, which stay
    /// open for as long.
    async fn read_to_send(
        &self,
        partition: &Arc<Partition>,
        range: ReadRange,
        files_max: usize,
    ) -> Result<SendRun, ReadError>;

    /// The first record whose timestamp is at or after `timestamp`, below the high watermark.
    async fn offset_for_timestamp(
        &self,
        partition: &Arc<Partition>,
        timestamp: Timestamp,
    ) -> Result<Option<TimestampedOffset>, ReadError>;

    /// The record with the largest timestamp below the high watermark; the first of several equal ones.
    async fn max_timestamp(&self, partition: &Arc<Partition>) -> Result<Option<TimestampedOffset>, ReadError>;
}

/// Whether a batch below the last stable offset holds messages for readers of committed data, `aborted` being the
/// aborted transactions around it.
pub fn is_committed(batch: &BatchHeader, aborted: &[AbortedTransaction]) -> bool {
    !batch.is_control() && !aborted.iter().any(|aborted| aborted.holds(batch))
}

impl BatchRun {
    pub fn len_bytes(&self) -> usize {
        self.chunks.iter().map(Bytes::len).sum()
    }
    pub fn is_empty(&self) -> bool {
        self.chunks.iter().all(Bytes::is_empty)
    }

    /// Whether a batch of the run holds messages for readers of committed data, provided it lies below the last stable
    /// offset: it is neither a marker nor part of an aborted transaction.
    pub fn is_committed(&self, batch: &BatchHeader) -> bool {
        is_committed(batch, &self.aborted)
    }
}

impl SendRun {
    pub fn len_bytes(&self) -> usize {
        self.chunks.iter().map(Chunk::len).sum()
    }
    pub fn is_empty(&self) -> bool {
        self.chunks.iter().all(Chunk::is_empty)
    }
    /// Bytes of it that are in memory.
    pub fn memory_bytes(&self) -> usize {
        let in_memory = |chunk: &Chunk| if let Chunk::Bytes(bytes) = chunk { bytes.len() } else { 0 };
        self.chunks.iter().map(in_memory).sum()
    }
    /// Files that it holds open.
    pub fn files(&self) -> usize {
        self.chunks.iter().filter(|chunk| matches!(chunk, Chunk::File(_))).count()
    }

    /// Adds what was read after it.
    pub fn append(&mut self, next: Self) {
        self.chunks.extend(next.chunks);
        for aborted in next.aborted {
            if !self.aborted.contains(&aborted) {
                self.aborted.push(aborted);
            }
        }
        self.aborted.sort_unstable();
    }
}

impl From<BatchRun> for SendRun {
    fn from(run: BatchRun) -> Self {
        Self { chunks: run.chunks.into_iter().map(Chunk::Bytes).collect(), aborted: run.aborted }
    }
}

impl Chunk {
    pub fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::File(range) => range.len(),
        }
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
