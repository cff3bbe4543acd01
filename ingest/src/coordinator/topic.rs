//! The internal topics in which coordinators keep their state: ordinary v2 batches in ordinary topics, compacted by the
//! log's own cleaner (`log/cleaner.rs`), never archived, never expired. State is what is left when a partition is read
//! from its start, the last record of each key counting and null removing.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::group::GROUP_BYTES_MAX;
use super::records::RecordError;
use crate::log::{AppendError, Partition};
use crate::model::{Offset, Timestamp, TimestampType, TopicName};
use crate::read::{ReadError, ReadRange};
use crate::record::{
    BatchDecoder, BatchEncoder, BatchError, BatchHeader, TransactionOutcome, decode_marker, split_batches,
};
use crate::topics::{Topic, TopicError, Topics};

/// Size at which a segment is sealed: small, as only sealed segments are compacted, yet room for the largest batch.
const SEGMENT_BYTES: u64 = 32 << 20;
/// Age at which a segment is sealed: only size matters here, and a quiet topic is not to become many files.
const SEGMENT_MS: i64 = 7 * 86_400_000;
/// Largest batch: a group record with all subscriptions and all assignments, and what frames them.
const BATCH_BYTES_MAX: usize = 2 * GROUP_BYTES_MAX + (1 << 20);
/// Bytes of records after which a batch is closed, unless one record is larger.
pub const BATCH_BYTES_TARGET: usize = 1 << 20;
/// Bytes read at once when the log is read back.
const READ_BYTES: usize = 1 << 20;

/// A record to append: key, and value or tombstone.
pub type RawRecord = (Bytes, Option<Bytes>);

/// Why a coordinator's state could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("creating a coordinator's topic")]
    Topic(#[from] TopicError),
    #[error("the name of a coordinator's topic is not legal")]
    TopicName(#[from] crate::model::TopicNameError),
    #[error("appending a coordinator's state")]
    Append(#[from] AppendError),
    #[error("reading a coordinator's state")]
    Read(#[from] ReadError),
    #[error("a batch of a coordinator's topic cannot be decoded")]
    Batch(#[from] BatchError),
    #[error("a coordinator's record cannot be encoded")]
    Record(#[from] RecordError),
    #[error("a task that works on a coordinator's topic was stopped")]
    Stopped(#[from] tokio::task::JoinError),
}

/// What a coordinator's topic says, in order.
#[derive(Debug)]
pub enum Entry<'a> {
    Record {
        /// Id of the producer in whose transaction it is.
        transaction: Option<i64>,
        offset: Offset,
        key: Option<&'a [u8]>,
        value: Option<&'a [u8]>,
    },
    /// The transaction of a producer ends here.
    End { producer_id: i64, outcome: TransactionOutcome },
}

/// The partition something lives in: Kafka's `abs(id.hashCode()) % count`, the hash running over UTF-16 units.
pub fn partition_of(id: &str, count: usize) -> usize {
    let hash = id.encode_utf16().fold(0i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)));
    let positive = hash.checked_abs().unwrap_or(0);
    usize::try_from(positive).unwrap_or(0) % count.max(1)
}

/// The topic, created with so many partitions if it is missing. Blocking.
pub fn open_topic(topics: &Topics, name: &str, partitions: i32) -> Result<Arc<Topic>, StorageError> {
    let overrides = BTreeMap::from([
        ("cleanup.policy".to_owned(), "compact".to_owned()),
        ("max.message.bytes".to_owned(), BATCH_BYTES_MAX.to_string()),
        ("segment.bytes".to_owned(), SEGMENT_BYTES.to_string()),
        ("segment.ms".to_owned(), SEGMENT_MS.to_string()),
    ]);
    Ok(topics.open_internal(&TopicName::new(name)?, partitions, overrides)?)
}

/// Hands out everything that a partition of the topic says. Blocking.
pub fn read_back(partition: &Partition, mut each: impl FnMut(Entry<'_>)) -> Result<(), StorageError> {
    let mut decoder = BatchDecoder::new(BATCH_BYTES_MAX);
    let start = partition.log_start_offset();
    let until = partition.high_watermark();
    let mut from = start;
    while from < until {
        let run = partition.read(&ReadRange { from, until, max_bytes: READ_BYTES, at_least_one: true })?;
        let before = from;
        for batch in run.chunks.into_iter().flat_map(split_batches) {
            let batch = batch?;
            let header = BatchHeader::read(&batch)?;
            from = header.next_offset();
            if header.is_control() {
                if let Some(outcome) = decode_marker(&batch)? {
                    each(Entry::End { producer_id: header.producer_id, outcome });
                }
                continue;
            }
            let transaction = header.is_transactional().then_some(header.producer_id);
            decoder.for_each::<StorageError>(&batch, |record| {
                if record.offset >= start {
                    let (offset, key, value) = (record.offset, record.key, record.value);
                    each(Entry::Record { transaction, offset, key, value });
                }
                Ok(())
            })?;
        }
        if from == before {
            break;
        }
    }
    Ok(())
}

pub fn record_bytes((key, value): &RawRecord) -> usize {
    key.len() + value.as_ref().map_or(0, Bytes::len)
}

pub fn encode_batches(records: &[RawRecord], now: Timestamp) -> Vec<Bytes> {
    let mut encoder = BatchEncoder::new(TimestampType::CreateTime);
    let mut batches = Vec::new();
    for record in records {
        if encoder.record_count() > 0 && encoder.len_bytes() + record_bytes(record) > BATCH_BYTES_TARGET {
            batches.extend(encoder.finish());
        }
        let offset = Offset(i64::try_from(encoder.record_count()).unwrap_or(i64::MAX));
        let (key, value) = record;
        encoder.push(offset, now, Some(key), value.as_deref(), std::iter::empty());
    }
    batches.extend(encoder.finish());
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_placed_as_kafka_places_them() {
        // Java: Math.abs("my-group".hashCode()) and so on; "polygenelubricants" has hash code i32::MIN.
        assert_eq!(partition_of("", 50), 0);
        assert_eq!(partition_of("a", 50), 97 % 50);
        assert_eq!(partition_of("hello", 1_000), 99_162_322 % 1_000);
        assert_eq!(partition_of("polygenelubricants", 50), 0);
        assert_eq!(partition_of("ü", 1_000), 252);
        assert_eq!(partition_of("anything", 1), 0);
    }
}
