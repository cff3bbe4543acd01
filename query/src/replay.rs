//! Replay: the messages of a topic as a stream of bytes, wherever they lie.
//!
//! Invariants:
//! - Order is that of the offsets within a partition; partitions follow one another.
//! - The end of every partition is its last stable offset when the replay began; what is produced later is not in it,
//!   and neither is what an open transaction may still take back, nor what one took back.
//! - Each message of the range comes exactly once, or the stream ends with an error. It never looks complete when it
//!   is not, unless the request says that batches which cannot be decoded may be left out.
//! - Before an error comes what was decoded until then.
//! - Memory is bounded: one read of `READ_BYTES` and one output chunk, which grows past `CHUNK_BYTES` by one batch at
//!   most. The next batch is decoded when the receiver has taken the last chunk.

mod matching;
mod republish;
mod rows;
mod selection;

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use thermocline_ingest::log::Partition;
use thermocline_ingest::model::{Offset, PartitionId, Timestamp, TopicPartition};
use thermocline_ingest::read::{LogReader, ReadError, ReadRange, is_committed};
use thermocline_ingest::record::{BatchDecoder, BatchError, BatchHeader, DECOMPRESSED_BATCH_BYTES_MAX, split_batches};
use thermocline_ingest::topics::Topic;
use thermocline_tiering::manifest::Manifest;

use crate::message::of_record;
use crate::search::SearchError;
pub use matching::replay_matching;
pub use republish::{
    Partitioning, Position, PositionsError, Progress, Republish, RepublishError, RepublishRequest, Summary,
};
use rows::Rows;
pub use rows::{Format, RowsError, UNDECODABLE_BATCH};
pub use selection::Filter;

/// Bytes of record batches asked of the reader at once.
const READ_BYTES: usize = 1 << 20;
/// Output collected before it is handed on.
const CHUNK_BYTES: usize = 256 << 10;

/// What becomes of a batch that cannot be decoded. Nobody can say which messages it holds, only at which offsets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Undecodable {
    /// The replay ends there with an error, as it does for Kafka's own consumers.
    #[default]
    Stop,
    /// A line in its place says so; for [`Format::Ndjson`] only.
    Mark,
    /// It is left out.
    Skip,
}

/// Which messages to replay; all of the topic by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplayRequest {
    /// None = every partition
    pub partition: Option<PartitionId>,
    pub from_offset: Option<Offset>,
    /// Exclusive.
    pub to_offset: Option<Offset>,
    pub from: Option<Timestamp>,
    /// Exclusive.
    pub to: Option<Timestamp>,
    /// Most messages, over all partitions.
    pub limit: Option<u64>,
    pub undecodable: Undecodable,
}

/// Why a replay cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error("topic {topic} has no partition {partition}; it has 0 to {last}")]
    NoPartition { topic: String, partition: PartitionId, last: usize },
    #[error("from_offset {from} of {partition} lies below the log start {log_start}; ask for {log_start} or more")]
    BelowLogStart { partition: TopicPartition, from: Offset, log_start: Offset },
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(
        "the batch of {partition} that ends before offset {next} cannot be decoded ({source}); replay what follows with partition={} and from_offset={next}, or all of it with undecodable=skip",
        partition.partition
    )]
    Undecodable { partition: TopicPartition, next: Offset, source: BatchError },
    #[error(
        "the message at offset {offset} of {partition} cannot be decoded; replay what follows it with from_offset, or all of it with undecodable=skip"
    )]
    Undecoded { partition: TopicPartition, offset: Offset },
    #[error(transparent)]
    Search(#[from] SearchError),
    #[error("undecodable=mark needs format=ndjson: a line can say what is missing, a row cannot; use undecodable=skip")]
    CannotMark,
    #[error(
        "what was read of {partition} from offset {offset} on is not a run of batches ({source}); check the disk and the store"
    )]
    NoBatches { partition: TopicPartition, offset: Offset, source: BatchError },
    #[error("reading {partition} at offset {offset} gave a batch that ends before it")]
    NoProgress { partition: TopicPartition, offset: Offset },
    #[error(transparent)]
    Rows(#[from] RowsError),
    #[error("a decoding thread failed: {0}")]
    Thread(#[from] tokio::task::JoinError),
}

/// A range of offsets of one partition; `end` is exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct OffsetRange {
    start: Offset,
    end: Offset,
}

/// A partition still to be replayed.
struct Pending {
    partition: Arc<Partition>,
    manifest: Arc<Manifest>,
    range: OffsetRange,
}

/// The partition being replayed: what of it is still to be read, oldest first.
struct Current {
    partition: Arc<Partition>,
    ranges: VecDeque<OffsetRange>,
    /// Batches that were read for the first range and are not yet decoded.
    batches: VecDeque<Bytes>,
}

/// What goes to the decoding thread and comes back.
struct Decoding {
    decoder: BatchDecoder,
    rows: Rows,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    /// Messages that may still be given.
    left: u64,
    undecodable: Undecodable,
}

struct Replay {
    reader: Arc<dyn LogReader>,
    pending: VecDeque<Pending>,
    current: Option<Current>,
    /// None only while a thread has it, and after the end.
    decoding: Option<Decoding>,
    /// Why decoding cannot go on; told once what was decoded before has been given.
    failed: Option<ReplayError>,
}

/// The partition asked for, or all of them.
pub(crate) fn chosen(topic: &Topic, partition: Option<PartitionId>) -> Result<&[Arc<Partition>], ReplayError> {
    let Some(id) = partition else { return Ok(&topic.partitions) };
    let missing = || ReplayError::NoPartition {
        topic: topic.name.to_string(),
        partition: id,
        last: topic.partitions.len().saturating_sub(1),
    };
    topic.partition(id).map(std::slice::from_ref).ok_or_else(missing)
}

/// Starts a replay of `topic`; the ends of its partitions are fixed now. `manifest_of` gives the archive's state, from
/// which data files without a message in the time range are left out unread.
pub fn replay(
    reader: Arc<dyn LogReader>,
    topic: &Topic,
    manifest_of: &dyn Fn(&Partition) -> Arc<Manifest>,
    request: &ReplayRequest,
    format: Format,
) -> Result<impl Stream<Item = Result<Bytes, ReplayError>> + Send + use<>, ReplayError> {
    if request.undecodable == Undecodable::Mark && format != Format::Ndjson {
        return Err(ReplayError::CannotMark);
    }
    let partitions = chosen(topic, request.partition)?;
    let mut pending = VecDeque::with_capacity(partitions.len());
    for partition in partitions {
        let range = offset_range(partition, request)?;
        pending.push_back(Pending { partition: partition.clone(), manifest: manifest_of(partition), range });
    }
    let decoding = Decoding {
        decoder: BatchDecoder::new(DECOMPRESSED_BATCH_BYTES_MAX),
        rows: Rows::new(format)?,
        from: request.from,
        to: request.to,
        left: request.limit.unwrap_or(u64::MAX),
        undecodable: request.undecodable,
    };
    let replay = Replay { reader, pending, current: None, decoding: Some(decoding), failed: None };
    Ok(futures::stream::try_unfold(replay, |mut replay| async move {
        Ok(replay.next_chunk().await?.map(|chunk| (chunk, replay)))
    }))
}

fn offset_range(partition: &Partition, request: &ReplayRequest) -> Result<OffsetRange, ReplayError> {
    let end = partition.last_stable_offset();
    let log_start = partition.log_start_offset();
    match request.from_offset {
        Some(from) if from < log_start => {
            Err(ReplayError::BelowLogStart { partition: partition.topic_partition().clone(), from, log_start })
        }
        from => {
            Ok(OffsetRange { start: from.unwrap_or(log_start), end: request.to_offset.map_or(end, |to| to.min(end)) })
        }
    }
}

/// The parts of `range` that may hold a message of the time range: all of it but the data files that lie wholly before
/// `from` or wholly at or after `to`.
fn ranges_in_time(
    manifest: &Manifest,
    range: OffsetRange,
    from: Option<Timestamp>,
    to: Option<Timestamp>,
) -> VecDeque<OffsetRange> {
    let mut parts = VecDeque::new();
    let mut start = range.start;
    for file in &manifest.files {
        let outside =
            from.is_some_and(|from| file.max_timestamp < from) || to.is_some_and(|to| file.min_timestamp >= to);
        // What a file keeps raw has no part in its timestamps.
        if !outside || file.raw.is_some() || file.last_offset < start {
            continue;
        }
        let end = file.base_offset.min(range.end);
        if start < end {
            parts.push_back(OffsetRange { start, end });
        }
        start = file.last_offset.next();
    }
    if start < range.end {
        parts.push_back(OffsetRange { start, end: range.end });
    }
    parts
}

impl Replay {
    /// The next bytes of output; None when everything has been given.
    async fn next_chunk(&mut self) -> Result<Option<Bytes>, ReplayError> {
        loop {
            let Some(decoding) = &mut self.decoding else { return Ok(None) };
            if decoding.left == 0 {
                return self.finish();
            }
            if decoding.rows.len_bytes() >= CHUNK_BYTES || (self.failed.is_some() && decoding.rows.len_bytes() > 0) {
                return Ok(Some(decoding.rows.take()?));
            }
            if let Some(error) = self.failed.take() {
                return Err(error);
            }
            match &mut self.current {
                Some(current) if !current.batches.is_empty() => self.decode().await?,
                Some(current) if !current.ranges.is_empty() => current.read(self.reader.as_ref()).await?,
                _ => match self.pending.pop_front() {
                    Some(next) => self.current = Some(self.open(next).await?),
                    None => return self.finish(),
                },
            }
        }
    }

    /// Hands out what is left and the format's end mark, once.
    fn finish(&mut self) -> Result<Option<Bytes>, ReplayError> {
        match self.decoding.take() {
            Some(decoding) => Ok(Some(decoding.rows.finish()?).filter(|chunk| !chunk.is_empty())),
            None => Ok(None),
        }
    }

    /// Finds where the time range begins and which parts of the archive it needs.
    async fn open(&self, next: Pending) -> Result<Current, ReplayError> {
        let Pending { partition, manifest, mut range } = next;
        let (from, to) = self.decoding.as_ref().map_or((None, None), |decoding| (decoding.from, decoding.to));
        if let Some(from) = from.filter(|_| range.start < range.end) {
            range.start = match self.reader.offset_for_timestamp(&partition, from).await? {
                Some(found) => found.offset.max(range.start),
                None => range.end,
            };
        }
        Ok(Current { partition, ranges: ranges_in_time(&manifest, range, from, to), batches: VecDeque::new() })
    }

    /// Decodes batches on a blocking thread until a chunk is full or none is left.
    async fn decode(&mut self) -> Result<(), ReplayError> {
        let (Some(current), Some(mut decoding)) = (self.current.as_mut(), self.decoding.take()) else { return Ok(()) };
        let Some(&range) = current.ranges.front() else { return Ok(()) };
        let partition = current.partition.clone();
        let mut batches = std::mem::take(&mut current.batches);
        let work = move || {
            let (mut reached, mut failed) = (range.start, None);
            while decoding.left > 0 && decoding.rows.len_bytes() < CHUNK_BYTES && failed.is_none() {
                let Some(batch) = batches.pop_front() else { break };
                match decoding.decode(partition.topic_partition(), &batch, OffsetRange { start: reached, ..range }) {
                    Ok(next) => reached = next,
                    Err(error) => failed = Some(error),
                }
            }
            (decoding, batches, reached, failed)
        };
        let (decoding, batches, reached, failed) = tokio::task::spawn_blocking(work).await?;
        self.decoding = Some(decoding);
        self.failed = failed;
        current.batches = batches;
        current.advance(reached);
        Ok(())
    }
}

impl Current {
    /// Reads the next batches of the first range.
    async fn read(&mut self, reader: &dyn LogReader) -> Result<(), ReplayError> {
        let Some(&OffsetRange { start, end }) = self.ranges.front() else { return Ok(()) };
        let range = ReadRange { from: start, until: end, max_bytes: READ_BYTES, at_least_one: true };
        let run = reader.read(&self.partition, range).await?;
        if run.is_empty() {
            self.advance(end);
            return Ok(());
        }
        let mut reached = start;
        for batch in run.chunks.into_iter().flat_map(split_batches) {
            let no_batches = |source| {
                let partition = self.partition.topic_partition().clone();
                ReplayError::NoBatches { partition, offset: start, source }
            };
            let batch = batch.map_err(no_batches)?;
            let header = BatchHeader::read(&batch).map_err(no_batches)?;
            reached = header.next_offset();
            if is_committed(&header, &run.aborted) {
                self.batches.push_back(batch);
            }
        }
        // Where there is nothing to decode, nothing else takes us further.
        if self.batches.is_empty() {
            if reached <= start {
                return Err(ReplayError::NoProgress {
                    partition: self.partition.topic_partition().clone(),
                    offset: start,
                });
            }
            self.advance(reached);
        }
        Ok(())
    }

    fn advance(&mut self, reached: Offset) {
        if let Some(range) = self.ranges.front_mut() {
            range.start = reached;
            if range.start >= range.end {
                self.ranges.pop_front();
                self.batches.clear();
            }
        }
    }
}

/// So that the callback of the decoder can fail for either reason.
enum DecodeError {
    Batch(BatchError),
    Rows(RowsError),
}

impl From<BatchError> for DecodeError {
    fn from(error: BatchError) -> Self {
        Self::Batch(error)
    }
}

impl Decoding {
    /// Adds the messages of `batch` that lie in `range`, in the time range and within the limit. Returns the offset
    /// after the batch.
    fn decode(&mut self, partition: &TopicPartition, batch: &[u8], range: OffsetRange) -> Result<Offset, ReplayError> {
        let no_batches = |source| ReplayError::NoBatches { partition: partition.clone(), offset: range.start, source };
        let header = BatchHeader::read(batch).map_err(no_batches)?;
        let next = header.next_offset();
        if next <= range.start {
            return Err(ReplayError::NoProgress { partition: partition.clone(), offset: range.start });
        }
        let Self { decoder, rows, from, to, left, undecodable } = self;
        let done = decoder.for_each(batch, |record| {
            let in_time = from.is_none_or(|from| record.timestamp >= from) && to.is_none_or(|to| record.timestamp < to);
            if in_time && (range.start..range.end).contains(&record.offset) && *left > 0 {
                rows.push(of_record(partition.topic.as_str(), partition.partition, &record), record.timestamp_type)
                    .map_err(DecodeError::Rows)?;
                *left -= 1;
            }
            Ok(())
        });
        match done {
            Ok(()) => Ok(next),
            // The decoder checks a batch before it gives out the first record: nothing of it is in the rows.
            Err(DecodeError::Batch(source)) => match undecodable {
                Undecodable::Stop => Err(ReplayError::Undecodable { partition: partition.clone(), next, source }),
                Undecodable::Mark => {
                    rows.mark(partition, header.base_offset, header.last_offset(), &source);
                    Ok(next)
                }
                Undecodable::Skip => Ok(next),
            },
            Err(DecodeError::Rows(error)) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests;
