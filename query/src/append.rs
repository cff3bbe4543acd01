//! Messages into batches and batches into the log, for everything here that writes: HTTP produce and replays into a
//! topic. The log gives them their offsets; a batch is made of the messages that reach a partition one after another.

mod partitioner;

use std::borrow::Cow;

use bytes::Bytes;
use serde::Serialize;
use thermocline_config::TopicConfig;
use thermocline_ingest::log::AppendError;
use thermocline_ingest::model::{Offset, PartitionId, Timestamp, TimestampType};
use thermocline_ingest::record::{BATCH_HEADER_LEN, BatchEncoder};
use thermocline_ingest::topics::Topic;

use crate::message::ProduceLine;
pub(crate) use partitioner::Partitioner;

/// Latest timestamp that a message may have: the archive counts microseconds in 64 bits.
const TIMESTAMP_MAX: Timestamp = Timestamp(i64::MAX / 1000);
/// Most a record can take beside its key, value and headers: length, attributes, two deltas, three counts.
const RECORD_OVERHEAD_BYTES_MAX: usize = 5 + 1 + 10 + 5 + 5 + 5 + 5;
/// Most a header can take beside its key and value.
const HEADER_OVERHEAD_BYTES_MAX: usize = 5 + 5;

/// A message that the topic does not take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageRefusal {
    #[error("there is no partition {partition}; the topic has 0 to {last}")]
    NoPartition { partition: PartitionId, last: usize },
    #[error(
        "timestamp {timestamp} is outside {earliest}..={latest} ms, which message.timestamp.before.max.ms and message.timestamp.after.max.ms allow now"
    )]
    Timestamp { timestamp: Timestamp, earliest: Timestamp, latest: Timestamp },
    #[error("a message of {bytes} bytes with its batch header exceeds max.message.bytes of {max}")]
    TooLarge { bytes: usize, max: usize },
}

/// Consecutive offsets that messages got.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct ProducedRange {
    pub partition: PartitionId,
    pub base_offset: Offset,
    pub count: u64,
}

/// What a topic demands of every message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub partitions: usize,
    pub max_message_bytes: usize,
    pub now: Timestamp,
    /// Timestamps that are accepted, both ends inclusive; -1, which says that there is none, always is.
    pub earliest: Timestamp,
    pub latest: Timestamp,
}

/// A batch ready to append.
pub(crate) struct Batch {
    /// Index into the topic's partitions.
    partition: usize,
    bytes: Bytes,
    records: u64,
}

/// Messages on their way into batches.
pub(crate) struct Batches {
    encoders: Vec<Option<BatchEncoder>>,
    finished: Vec<Batch>,
    rules: Rules,
}

impl Rules {
    pub fn of(config: &TopicConfig, partitions: usize, now: Timestamp) -> Self {
        // With log append time the broker's own takes the place of whatever the message says.
        let window = |ms: Option<i64>| ms.filter(|_| !config.log_append_time);
        Self {
            partitions,
            max_message_bytes: config.max_message_bytes,
            now,
            earliest: window(config.timestamp_before_max_ms)
                .map_or(Timestamp::NONE, |ms| Timestamp(now.0.saturating_sub(ms)).max(Timestamp::NONE)),
            latest: window(config.timestamp_after_max_ms)
                .map_or(TIMESTAMP_MAX, |ms| Timestamp(now.0.saturating_add(ms)).min(TIMESTAMP_MAX)),
        }
    }

    fn check_timestamp(&self, line: &ProduceLine<'_>) -> Result<(), MessageRefusal> {
        let (earliest, latest) = (self.earliest, self.latest);
        match line.timestamp {
            Some(timestamp) if timestamp != Timestamp::NONE && !(earliest..=latest).contains(&timestamp) => {
                Err(MessageRefusal::Timestamp { timestamp, earliest, latest })
            }
            _ => Ok(()),
        }
    }
}

/// Upper bound on the encoded size of a message.
fn size_bytes_max(line: &ProduceLine<'_>) -> usize {
    let len = |bytes: &Option<Cow<'_, [u8]>>| bytes.as_deref().map_or(0, <[u8]>::len);
    let headers: usize =
        line.headers.iter().map(|(key, value)| HEADER_OVERHEAD_BYTES_MAX + key.len() + len(value)).sum();
    RECORD_OVERHEAD_BYTES_MAX + len(&line.key) + len(&line.value) + headers
}

impl Batches {
    pub fn new(rules: Rules) -> Self {
        Self { encoders: (0..rules.partitions).map(|_| None).collect(), finished: Vec::new(), rules }
    }

    /// Adds a message to the partition that it names, else to the one that `partitioner` chooses.
    pub fn push(&mut self, line: &ProduceLine<'_>, partitioner: &mut Partitioner<'_>) -> Result<(), MessageRefusal> {
        self.rules.check_timestamp(line)?;
        let size_bytes = size_bytes_max(line);
        let partition = match line.partition {
            Some(partition) => {
                let last = self.rules.partitions.saturating_sub(1);
                let index = usize::try_from(partition.0).ok().filter(|index| *index <= last);
                index.ok_or(MessageRefusal::NoPartition { partition, last })?
            }
            None => partitioner.choose(line.key.as_deref(), size_bytes),
        };
        let full = |encoder: &BatchEncoder| encoder.len_bytes() + size_bytes > self.rules.max_message_bytes;
        if self.encoders.get(partition).and_then(Option::as_ref).is_some_and(full) {
            self.seal(partition)?;
        }
        let Some(slot) = self.encoders.get_mut(partition) else { return Ok(()) };
        let encoder = slot.get_or_insert_with(|| BatchEncoder::new(TimestampType::CreateTime));
        let headers = line.headers.iter().map(|(key, value)| (key.as_bytes(), value.as_deref()));
        // Produced batches count from 0; the log gives them their offsets.
        let offset = Offset(i64::try_from(encoder.record_count()).unwrap_or(i64::MAX));
        let timestamp = line.timestamp.unwrap_or(self.rules.now);
        encoder.push(offset, timestamp, line.key.as_deref(), line.value.as_deref(), headers);
        // Nothing fits beside a message that may not fit itself: know now, while it is known which one it is.
        if BATCH_HEADER_LEN + size_bytes > self.rules.max_message_bytes { self.seal(partition) } else { Ok(()) }
    }

    /// Finishes the batch of a partition.
    fn seal(&mut self, partition: usize) -> Result<(), MessageRefusal> {
        let Some(encoder) = self.encoders.get_mut(partition).and_then(Option::as_mut) else { return Ok(()) };
        let records = encoder.record_count() as u64;
        let Some(bytes) = encoder.finish() else { return Ok(()) };
        if bytes.len() > self.rules.max_message_bytes {
            return Err(MessageRefusal::TooLarge { bytes: bytes.len(), max: self.rules.max_message_bytes });
        }
        self.finished.push(Batch { partition, bytes, records });
        Ok(())
    }

    /// Everything that was pushed, in batches; those of one partition in the order in which they were pushed.
    pub fn finish(mut self) -> Result<Vec<Batch>, MessageRefusal> {
        for partition in 0..self.encoders.len() {
            self.seal(partition)?;
        }
        Ok(self.finished)
    }
}

/// Appends the batches. Blocking.
pub(crate) fn append(topic: &Topic, batches: &[Batch]) -> Result<Vec<ProducedRange>, AppendError> {
    let mut ranges: Vec<ProducedRange> = Vec::new();
    for batch in batches {
        let Some(partition) = topic.partitions.get(batch.partition) else { continue };
        let appended = partition.append(&batch.bytes)?;
        let range = ProducedRange {
            partition: partition.topic_partition().partition,
            base_offset: appended.base_offset,
            count: batch.records,
        };
        add_range(&mut ranges, range);
    }
    Ok(ranges)
}

/// Waits until what [`append`] did is committed as the topic's flush policy says.
pub(crate) async fn committed(topic: &Topic, ranges: &[ProducedRange]) -> Result<(), AppendError> {
    for range in ranges {
        if let Some(partition) = topic.partition(range.partition) {
            let end = range.base_offset.plus(i64::try_from(range.count).unwrap_or(i64::MAX));
            partition.committed(end).await?;
        }
    }
    Ok(())
}

/// Adds `range`, joined with the last one of its partition where nothing lies between them.
fn add_range(ranges: &mut Vec<ProducedRange>, range: ProducedRange) {
    match ranges.iter_mut().rev().find(|last| last.partition == range.partition) {
        Some(last) if last.base_offset.distance_to(range.base_offset) == last.count => last.count += range.count,
        _ => ranges.push(range),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules {
        partitions: 3,
        max_message_bytes: 1000,
        now: Timestamp(5000),
        earliest: Timestamp(4000),
        latest: Timestamp(6000),
    };

    #[test]
    fn timestamps_outside_the_window_are_refused() {
        let check = |timestamp| RULES.check_timestamp(&ProduceLine { timestamp, ..ProduceLine::default() }).is_ok();
        for good in [None, Some(-1), Some(4000), Some(6000)] {
            assert!(check(good.map(Timestamp)), "{good:?}");
        }
        for bad in [0, 3999, 6001, i64::MAX, -2, i64::MIN] {
            assert!(!check(Some(Timestamp(bad))), "{bad}");
        }
    }

    #[test]
    fn neighbouring_ranges_are_joined() {
        let range = |partition, base_offset, count| ProducedRange {
            partition: PartitionId(partition),
            base_offset: Offset(base_offset),
            count,
        };
        let mut ranges = Vec::new();
        for next in [range(0, 5, 2), range(1, 0, 3), range(0, 7, 1), range(0, 9, 1), range(1, 3, 1)] {
            add_range(&mut ranges, next);
        }
        assert_eq!(ranges, [range(0, 5, 3), range(1, 0, 4), range(0, 9, 1)]);
    }
}
