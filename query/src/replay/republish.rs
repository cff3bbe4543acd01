//! A replay into another topic: exactly the messages that were asked for, key, value and headers bit for bit, in the
//! order of their offsets per source partition.
//!
//! Invariants:
//! - What a [`Progress`] says to be published is committed in the target as its flush policy says.
//! - Its positions are where a further replay goes on. After a failure messages behind them may have been published
//!   already: at least once, never less. A replay that reaches its [`Summary`] has published each message once.
//! - The ends of the source partitions are fixed when it begins, and are part of the positions: a replay that goes on
//!   ends where the first one would have ended.
//! - Memory is bounded by one read and one batch for each target partition.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use futures::poll;
use thermocline_ingest::clock::Clock;
use thermocline_ingest::log::{AppendError, Partition};
use thermocline_ingest::model::{Offset, PartitionId, TopicPartition};
use thermocline_ingest::topics::Topic;
use thermocline_tiering::budget::{Budget, Rates};
use thermocline_tiering::reader::{OwnedRecord, TieredReader};
use thermocline_tiering::worker::Tiering;
use tokio::time::Instant;

use super::selection::{Filter, Selected, Selection, Wanted};
use super::{OffsetRange, ReplayError, ReplayRequest, chosen, offset_range};
use crate::append::{Batches, MessageRefusal, Partitioner, Rules, append, committed};
use crate::message::ProduceLine;

/// How often progress is told at most, and while nothing is published at least.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);
/// Bytes of messages at which batches go to the log.
const PUBLISH_BYTES: usize = 1 << 20;

/// Which partition of the target a message goes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Partitioning {
    /// The one with the number of its source partition.
    #[default]
    Same,
    /// By key, as a producer chooses it; without a key one after the other.
    Key,
}

/// What is to be published where.
#[derive(Clone, Debug, Default)]
pub struct RepublishRequest {
    /// Which messages. `undecodable` is in the filter.
    pub replay: ReplayRequest,
    /// Goes on where an earlier replay stopped, instead of at `replay`'s offsets.
    pub resume_from: Option<Position>,
    /// Messages and bytes of key, value and headers per second; 0 is without limit.
    pub rates: Rates,
    /// Otherwise messages get the time of now.
    pub keep_timestamps: bool,
    pub partitioning: Partitioning,
}

/// Where in the source a replay is: for each partition that is not finished the next offset and the end, written
/// `0@17..100,2@0..50`; `end` where all are finished.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position(Vec<(PartitionId, OffsetRange)>);

/// Text that is no [`Position`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not where a replay stopped; write what it said, like 0@17..100,2@0..50")]
pub struct PositionsError(String);

/// How far a replay is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub summary: Summary,
    pub position: Position,
}

/// Counts since the replay began, or went on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    /// Messages that matched.
    pub matched: u64,
    pub published: u64,
    /// Key, value and headers of what was published.
    pub bytes: u64,
    /// Messages that expired before they were read, or that cannot be decoded.
    pub missing: u64,
    /// Rows of data files that were read by their pages.
    pub rows_fetched: u64,
    /// Row groups that were read whole, as so many of their rows were wanted.
    pub row_groups_scanned: u64,
}

/// Why a replay into a topic cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum RepublishError {
    #[error("topic {0} cannot be replayed into itself: it would never end; name another topic")]
    IntoItself(String),
    #[error(
        "{partition} has no partition of the same number in topic {into}, which has 0 to {last}; use partitioning=key, or a topic with more partitions"
    )]
    FewerPartitions { partition: TopicPartition, into: String, last: usize },
    #[error("the replay that is to go on had partition {partition}, which topic {topic} has not")]
    ForeignPosition { partition: PartitionId, topic: String },
    #[error("the message at offset {offset} of {partition} is refused by topic {into}: {source}")]
    Refused { partition: TopicPartition, offset: Offset, into: String, source: MessageRefusal },
    #[error("topic {into} refuses a batch of the replay: {source}")]
    Batch { into: String, source: MessageRefusal },
    #[error(transparent)]
    Replay(#[from] ReplayError),
    #[error(transparent)]
    Append(#[from] AppendError),
    #[error("a publishing thread failed: {0}")]
    Thread(#[from] tokio::task::JoinError),
}

/// A replay under way.
pub struct Republish {
    selection: Selection,
    source: Arc<Topic>,
    /// None where matches are only counted.
    target: Option<Target>,
    budget: Budget,
    progress: Progress,
    told_at: Instant,
    /// Messages that were read and are not in a batch yet, and where their source is then.
    waiting: Option<Waiting>,
}

struct Waiting {
    partition: Arc<Partition>,
    records: std::vec::IntoIter<OwnedRecord>,
    through: Offset,
}

struct Target {
    topic: Arc<Topic>,
    clock: Arc<dyn Clock>,
    keyless: AtomicUsize,
    keep_timestamps: bool,
    partitioning: Partitioning,
}

/// Messages in batches that are not in the log yet.
struct Pending {
    batches: Batches,
    count: u64,
    bytes: u64,
    /// The source's offset after the last of them.
    next: Offset,
}

impl Republish {
    /// Checks what can be checked before the first message. Without `into` matches are only counted.
    pub fn new(
        (reader, tiering, clock): (Arc<TieredReader>, Arc<Tiering>, Arc<dyn Clock>),
        source: Arc<Topic>,
        into: Option<Arc<Topic>>,
        filter: Filter,
        request: &RepublishRequest,
    ) -> Result<Self, RepublishError> {
        let ranges = ranges(&source, request)?;
        if let Some(into) = &into {
            if into.id == source.id {
                return Err(RepublishError::IntoItself(into.name.to_string()));
            }
            let last = into.partitions.len().saturating_sub(1);
            let fits = |partition: &Partition| into.partition(partition.topic_partition().partition).is_some();
            if request.partitioning == Partitioning::Same
                && let Some((partition, _)) = ranges.iter().find(|(partition, _)| !fits(partition))
            {
                let partition = partition.topic_partition().clone();
                return Err(RepublishError::FewerPartitions { partition, into: into.name.to_string(), last });
            }
        }
        let named =
            |(partition, range): &(Arc<Partition>, OffsetRange)| (partition.topic_partition().partition, *range);
        let position = Position(ranges.iter().map(named).collect());
        let wanted = Wanted {
            ranges: ranges.into(),
            from: request.replay.from,
            to: request.replay.to,
            limit: request.replay.limit.unwrap_or(u64::MAX),
            filter,
            count_only: into.is_none(),
        };
        let target = into.map(|topic| Target {
            topic,
            clock,
            keyless: AtomicUsize::new(0),
            keep_timestamps: request.keep_timestamps,
            partitioning: request.partitioning,
        });
        Ok(Self {
            selection: Selection::new(reader, tiering, wanted),
            source,
            target,
            budget: Budget::new(request.rates),
            progress: Progress { summary: Summary::default(), position },
            told_at: Instant::now(),
            waiting: None,
        })
    }

    /// How far it is.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Goes on for a while and says how far it got; `None` at the end, where [`Self::progress`] has the sums.
    pub async fn next(&mut self) -> Result<Option<Progress>, RepublishError> {
        self.told_at = Instant::now();
        while self.told_at.elapsed() < PROGRESS_EVERY {
            if let Some(mut waiting) = self.waiting.take() {
                let outcome = self.publish(&mut waiting).await;
                if waiting.records.len() > 0 {
                    self.waiting = Some(waiting);
                }
                outcome?;
                continue;
            }
            let Some(selected) = self.selection.next().await? else {
                if !self.selection.is_at_limit() {
                    self.progress.position = Position::default();
                }
                return Ok(None);
            };
            let Selected { partition, records, count, missing, through, rows_fetched, row_groups_scanned } = selected;
            let summary = &mut self.progress.summary;
            summary.matched += count;
            summary.missing += missing;
            summary.rows_fetched += rows_fetched;
            summary.row_groups_scanned += row_groups_scanned;
            self.waiting = Some(Waiting { partition, records: records.into_iter(), through });
        }
        Ok(Some(self.progress.clone()))
    }

    /// Publishes what waits, as far as it goes in [`PROGRESS_EVERY`].
    async fn publish(&mut self, waiting: &mut Waiting) -> Result<(), RepublishError> {
        let id = waiting.partition.topic_partition().partition;
        let Some(target) = &self.target else {
            self.progress.position.advance(id, waiting.through);
            return Ok(());
        };
        let partitions = target.topic.partitions.len();
        let mut partitioner = Partitioner::new(partitions, &target.keyless);
        let mut pending = target.pending(waiting);
        while let Some(record) = waiting.records.as_slice().first() {
            let size_bytes = record.size_bytes() as u64;
            let mut turn = std::pin::pin!(self.budget.take(size_bytes));
            // What has been taken so far does not wait for what may come later.
            if poll!(turn.as_mut()).is_pending() {
                let flushed = std::mem::replace(&mut pending, target.pending(waiting));
                target.flush(flushed, id, &mut self.progress).await?;
                turn.await;
            }
            let Some(record) = waiting.records.next() else { break };
            target.push(&mut pending, &record, id, &mut partitioner).map_err(|source| RepublishError::Refused {
                partition: waiting.partition.topic_partition().clone(),
                offset: record.offset,
                into: target.topic.name.to_string(),
                source,
            })?;
            pending.count += 1;
            pending.bytes += size_bytes;
            pending.next = record.offset.next();
            if pending.bytes >= PUBLISH_BYTES as u64 || self.told_at.elapsed() >= PROGRESS_EVERY {
                break;
            }
        }
        if waiting.records.len() == 0 {
            pending.next = waiting.through;
        }
        target.flush(pending, id, &mut self.progress).await
    }

    /// The topic that is replayed.
    pub fn source(&self) -> &Topic {
        &self.source
    }
}

/// The partitions and offsets to replay.
fn ranges(source: &Topic, request: &RepublishRequest) -> Result<Vec<(Arc<Partition>, OffsetRange)>, RepublishError> {
    let Some(Position(positions)) = &request.resume_from else {
        let partitions = chosen(source, request.replay.partition)?.iter();
        let ranges = partitions.map(|partition| Ok((partition.clone(), offset_range(partition, &request.replay)?)));
        return ranges.collect();
    };
    let of_position = |(id, range): &(PartitionId, OffsetRange)| {
        let missing = || RepublishError::ForeignPosition { partition: *id, topic: source.name.to_string() };
        let partition = source.partition(*id).ok_or_else(missing)?;
        // What has expired since is gone.
        let start = range.start.max(partition.log_start_offset());
        Ok((partition.clone(), OffsetRange { start, end: range.end.min(partition.last_stable_offset()) }))
    };
    positions.iter().map(of_position).collect()
}

impl Target {
    fn pending(&self, waiting: &Waiting) -> Pending {
        let rules = Rules::of(&self.topic.config(), self.topic.partitions.len(), self.clock.now());
        let next = waiting.records.as_slice().first().map_or(waiting.through, |record| record.offset);
        Pending { batches: Batches::new(rules), count: 0, bytes: 0, next }
    }

    fn push(
        &self,
        pending: &mut Pending,
        record: &OwnedRecord,
        source: PartitionId,
        partitioner: &mut Partitioner<'_>,
    ) -> Result<(), MessageRefusal> {
        let header = |(key, value): &'_ (String, Option<bytes::Bytes>)| {
            (key.clone().into(), value.as_ref().map(|value| value.to_vec().into()))
        };
        let line = ProduceLine {
            key: record.key.as_deref().map(Into::into),
            value: record.value.as_deref().map(Into::into),
            headers: record.headers.iter().map(header).collect(),
            timestamp: self.keep_timestamps.then_some(record.timestamp),
            partition: (self.partitioning == Partitioning::Same).then_some(source),
        };
        pending.batches.push(&line, partitioner)
    }

    /// Brings batches into the log, and then says so.
    async fn flush(&self, pending: Pending, source: PartitionId, told: &mut Progress) -> Result<(), RepublishError> {
        let Pending { batches, count, bytes, next } = pending;
        if count > 0 {
            let topic = self.topic.clone();
            let finished =
                batches.finish().map_err(|source| RepublishError::Batch { into: topic.name.to_string(), source })?;
            let ranges = tokio::task::spawn_blocking(move || append(&topic, &finished)).await??;
            committed(&self.topic, &ranges).await?;
        }
        told.summary.published += count;
        told.summary.bytes += bytes;
        told.position.advance(source, next);
        Ok(())
    }
}

impl Position {
    /// The replay of partition `id` is at `next`; those before it are finished.
    fn advance(&mut self, id: PartitionId, next: Offset) {
        let Some(at) = self.0.iter().position(|(partition, _)| *partition == id) else { return };
        self.0.drain(..at);
        if let Some((_, range)) = self.0.first_mut() {
            range.start = range.start.max(next);
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open = self.0.iter().filter(|(_, range)| range.start < range.end);
        let mut separator = "";
        for (id, OffsetRange { start, end }) in open {
            write!(f, "{separator}{id}@{start}..{end}")?;
            separator = ",";
        }
        if separator.is_empty() { f.write_str("end") } else { Ok(()) }
    }
}

impl FromStr for Position {
    type Err = PositionsError;

    fn from_str(text: &str) -> Result<Self, PositionsError> {
        if text == "end" {
            return Ok(Self::default());
        }
        let number = |text: &str| text.parse::<i64>().ok().filter(|n| *n >= 0);
        let read = |part: &str| {
            let (id, range) = part.split_once('@')?;
            let (start, end) = range.split_once("..")?;
            let id = id.parse().ok().filter(|id: &i32| *id >= 0)?;
            Some((PartitionId(id), OffsetRange { start: Offset(number(start)?), end: Offset(number(end)?) }))
        };
        let error = || PositionsError(text.chars().take(60).collect());
        let mut positions: Vec<_> =
            text.split(',').map(|part| read(part).ok_or_else(error)).collect::<Result<_, _>>()?;
        positions.sort_by_key(|(id, _)| *id);
        match positions.windows(2).any(|pair| matches!(pair, [(a, _), (b, _)] if a == b)) {
            true => Err(error()),
            false => Ok(Self(positions)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(text: &str) -> Result<Position, PositionsError> {
        text.parse()
    }

    #[test]
    fn positions_read_back() {
        for text in ["0@17..100,2@0..50", "3@0..1", "end"] {
            assert_eq!(position(text).unwrap().to_string(), text);
        }
        assert_eq!(position("2@0..50,0@17..100,1@9..9").unwrap().to_string(), "0@17..100,2@0..50");
        for bad in ["", "0", "0@1", "0@1..", "0@-1..3", "-1@0..3", "0@1..2,0@2..3", "0@1..2,", "x@1..2", "0@1...2"] {
            assert!(position(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn positions_move_on_in_order() {
        let mut at = position("0@0..10,1@5..10,4@0..10").unwrap();
        at.advance(PartitionId(0), Offset(3));
        assert_eq!(at.to_string(), "0@3..10,1@5..10,4@0..10");
        at.advance(PartitionId(1), Offset(5));
        assert_eq!(at.to_string(), "1@5..10,4@0..10");
        at.advance(PartitionId(4), Offset(10));
        assert_eq!(at.to_string(), "end");
    }
}
