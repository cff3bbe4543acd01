//! What Produce refuses, from the header and, where the body is not compressed, from a walk over its framing. Nothing
//! is decoded and nothing allocated.

use super::batch::{
    ATTRIBUTES, BATCH_HEADER_LEN, BatchError, BatchHeader, CRC, Compression, MAX_TIMESTAMP, PRODUCER_BITS,
    TIMESTAMP_TYPE_BIT, read_whole,
};
use super::decode::check_framing;
use crate::model::{Offset, Timestamp, TimestampType};

/// Latest timestamp that is accepted: the archive counts microseconds, in 64 bits too.
pub const TIMESTAMP_MAX: Timestamp = Timestamp(i64::MAX / 1000);

/// What a topic demands of a batch.
#[derive(Clone, Copy, Debug)]
pub struct BatchRules {
    /// `max.message.bytes`: the whole batch as sent.
    pub message_bytes_max: usize,
    /// `segment.bytes`: no batch may be larger than a segment.
    pub segment_bytes: u64,
    /// `message.timestamp.type` is LogAppendTime: the producer's timestamps do not matter.
    pub log_append_time: bool,
    /// `message.timestamp.before.max.ms`; None is unlimited.
    pub timestamp_before_max_ms: Option<i64>,
    /// `message.timestamp.after.max.ms`; None is unlimited.
    pub timestamp_after_max_ms: Option<i64>,
}

/// Why a batch is not appended. Each variant is one Kafka error code, named in its docstring.
#[derive(Debug, thiserror::Error)]
pub enum BatchRefusal {
    /// INVALID_RECORD
    #[error("record batch is not valid: {0}")]
    InvalidRecord(&'static str),
    /// INVALID_RECORD
    #[error("not one record batch of magic 2")]
    NotOneBatch(#[source] BatchError),
    /// INVALID_RECORD
    #[error("the records of the batch are not well-formed")]
    BadRecords(#[source] BatchError),
    /// CORRUPT_MESSAGE
    #[error("record batch was damaged on its way")]
    Corrupt(#[source] BatchError),
    /// MESSAGE_TOO_LARGE
    #[error("record batch of {size} bytes exceeds max.message.bytes of {limit}")]
    MessageTooLarge { size: usize, limit: usize },
    /// RECORD_LIST_TOO_LARGE
    #[error("record batch of {size} bytes exceeds segment.bytes of {limit}")]
    LargerThanSegment { size: usize, limit: u64 },
    /// INVALID_TIMESTAMP
    #[error("timestamps {base} to {max} of the record batch are not accepted: {reason}")]
    InvalidTimestamp { base: Timestamp, max: Timestamp, reason: &'static str },
    /// UNSUPPORTED_COMPRESSION_TYPE
    #[error("record batch names compression codec {0}; 0 to 4 are known")]
    UnsupportedCompression(i16),
}

/// Checks one batch as a producer sends it. `now` is the broker's time, for the timestamp window.
pub fn validate_batch(batch: &[u8], rules: &BatchRules, now: Timestamp) -> Result<BatchHeader, BatchRefusal> {
    let header = read_whole(batch).map_err(|error| match error {
        BatchError::Magic(_) | BatchError::Trailing { .. } => BatchRefusal::NotOneBatch(error),
        _ => BatchRefusal::Corrupt(error),
    })?;
    check_size(batch.len(), rules)?;
    let computed = crc32c::crc32c(&batch[ATTRIBUTES.start..]);
    if computed != header.crc {
        return Err(BatchRefusal::Corrupt(BatchError::Crc { stored: header.crc, computed }));
    }
    check_header(&header)?;
    if !rules.log_append_time {
        check_timestamps(&header, rules, now)?;
    }
    match header.compression() {
        Ok(Compression::None) => {
            check_framing(&header, &batch[BATCH_HEADER_LEN..]).map_err(BatchRefusal::BadRecords)?
        }
        Ok(_) => {}
        Err(_) => return Err(BatchRefusal::UnsupportedCompression(header.attributes & 0b111)),
    }
    Ok(header)
}

fn check_size(size: usize, rules: &BatchRules) -> Result<(), BatchRefusal> {
    if size > rules.message_bytes_max {
        return Err(BatchRefusal::MessageTooLarge { size, limit: rules.message_bytes_max });
    }
    if size as u64 > rules.segment_bytes {
        return Err(BatchRefusal::LargerThanSegment { size, limit: rules.segment_bytes });
    }
    Ok(())
}

fn check_header(header: &BatchHeader) -> Result<(), BatchRefusal> {
    let invalid = |reason| Err(BatchRefusal::InvalidRecord(reason));
    if header.base_offset != Offset::ZERO {
        return invalid("its base offset is not 0");
    }
    if header.attributes & !PRODUCER_BITS != 0 {
        return invalid("it sets attributes that are not a producer's to set");
    }
    if header.is_control() {
        return invalid("control batches are the broker's to write");
    }
    // Before anything else looks at offsets: a wrong delta would give overlapping offsets to all readers.
    if header.record_count < 1 || header.last_offset_delta != header.record_count - 1 {
        return invalid("record count and last offset delta do not agree");
    }
    if header.producer_id < -1 {
        return invalid("its producer id is below -1");
    }
    if header.producer_id >= 0 && (header.producer_epoch < 0 || header.base_sequence < 0) {
        return invalid("it has a producer id but no epoch or no sequence");
    }
    if header.is_transactional() && header.producer_id < 0 {
        return invalid("it belongs to a transaction but has no producer id");
    }
    Ok(())
}

fn check_timestamps(header: &BatchHeader, rules: &BatchRules, now: Timestamp) -> Result<(), BatchRefusal> {
    let (base, max) = (header.base_timestamp, header.max_timestamp);
    let refuse = |reason| Err(BatchRefusal::InvalidTimestamp { base, max, reason });
    if header.timestamp_type() == TimestampType::LogAppendTime {
        return refuse("a producer cannot set log append time");
    }
    if base < Timestamp::NONE || max > TIMESTAMP_MAX {
        return refuse("use milliseconds from -1 (none) to 2^63 / 1000");
    }
    if max < base {
        return refuse("the largest is below the first");
    }
    if base != Timestamp::NONE && rules.timestamp_before_max_ms.is_some_and(|ms| base.0 < now.0.saturating_sub(ms)) {
        return refuse("older than message.timestamp.before.max.ms allows");
    }
    if rules.timestamp_after_max_ms.is_some_and(|ms| max.0 > now.0.saturating_add(ms)) {
        return refuse("further ahead than message.timestamp.after.max.ms allows");
    }
    Ok(())
}

/// Makes `now` the timestamp of all records of a batch: sets the timestamp type and the largest timestamp. The CRC is
/// carried over by combination, so that only the bytes up to the largest timestamp are read again. The CRC must have
/// been verified before, or this would launder a damaged batch. `batch` is a whole batch.
pub fn stamp_log_append_time(batch: &mut [u8], header: &BatchHeader, now: Timestamp) {
    let head = ATTRIBUTES.start..MAX_TIMESTAMP.end;
    let tail_len = batch.len().saturating_sub(head.end);
    let crc_before = crc32c::crc32c(&batch[head.clone()]);
    batch[ATTRIBUTES].copy_from_slice(&(header.attributes | TIMESTAMP_TYPE_BIT).to_be_bytes());
    batch[MAX_TIMESTAMP].copy_from_slice(&now.0.to_be_bytes());
    let crc_after = crc32c::crc32c(&batch[head]);
    // The CRC is linear: combining with the old head once more takes it out again and leaves the tail's own.
    let crc_tail = crc32c::crc32c_combine(crc_before, header.crc, tail_len);
    let crc = crc32c::crc32c_combine(crc_after, crc_tail, tail_len);
    batch[CRC].copy_from_slice(&crc.to_be_bytes());
}
