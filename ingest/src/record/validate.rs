//! What Produce refuses, from the header and, where the body is not compressed, from a walk over its framing. A
//! compressed body is looked into only where the topic asks for something of each record (keys on a compacted topic, a
//! limit to their age), or where the header says that a timestamp is out of bounds, to name the records. Then it is
//! decompressed under a cap, and in few places at once.

use parking_lot::{Mutex, MutexGuard};

use super::DECOMPRESSED_BATCH_BYTES_MAX;
use super::batch::{
    ATTRIBUTES, BATCH_HEADER_LEN, BatchError, BatchHeader, CRC, Compression, MAX_TIMESTAMP, PRODUCER_BITS,
    TIMESTAMP_TYPE_BIT, read_whole,
};
use super::codec::Decompressor;
use super::decode::{RawRecord, walk};
use crate::model::{Offset, Timestamp, TimestampType};

/// Records of one batch whose faults are told by index; with more, the first ones are.
const RECORD_ERRORS_MAX: usize = 1000;
/// One for each producer's batch that may be decompressed at the same time: what bounds the memory that this takes.
static DECOMPRESSIONS: [Mutex<()>; 4] = [const { Mutex::new(()) }; 4];

/// Latest timestamp that is accepted: the archive counts microseconds, in 64 bits too.
pub const TIMESTAMP_MAX: Timestamp = Timestamp(i64::MAX / 1000);

/// What a topic demands of a batch.
#[derive(Clone, Copy, Debug)]
pub struct BatchRules {
    /// `max.message.bytes`: the whole batch as sent.
    pub message_bytes_max: usize,
    /// `segment.bytes`: no batch may be larger than a segment.
    pub segment_bytes: u64,
    /// The topic is compacted: a record without a key would never be replaced.
    pub keys_required: bool,
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
    /// INVALID_RECORD, with the index of each such record
    #[error("{} records of the batch have no key, which they must have on a compacted topic", indexes.len())]
    KeysMissing { indexes: Vec<i32> },
    /// MESSAGE_TOO_LARGE: a client that splits its batches has it come through
    #[error("the records of the batch are too large to be looked at")]
    DecompressedTooLarge(#[source] BatchError),
    /// CORRUPT_MESSAGE
    #[error("record batch was damaged on its way")]
    Corrupt(#[source] BatchError),
    /// MESSAGE_TOO_LARGE
    #[error("record batch of {size} bytes exceeds max.message.bytes of {limit}")]
    MessageTooLarge { size: usize, limit: usize },
    /// RECORD_LIST_TOO_LARGE
    #[error("record batch of {size} bytes exceeds segment.bytes of {limit}")]
    LargerThanSegment { size: usize, limit: u64 },
    /// INVALID_TIMESTAMP, with the index of each such record where single ones are at fault
    #[error("timestamps {base} to {max} of the record batch are not accepted: {reason}")]
    InvalidTimestamp { base: Timestamp, max: Timestamp, reason: &'static str, indexes: Vec<i32> },
    /// UNSUPPORTED_COMPRESSION_TYPE
    #[error("record batch names compression codec {0}; 0 to 4 are known")]
    UnsupportedCompression(i16),
}

impl BatchRefusal {
    /// The records at fault, by index, and what is wrong with each; none where it is the batch as a whole.
    pub fn records(&self) -> (&[i32], &'static str) {
        match self {
            Self::KeysMissing { indexes } => (indexes, "a record of a compacted topic must have a key"),
            Self::InvalidTimestamp { indexes, reason, .. } => (indexes, reason),
            _ => (&[], ""),
        }
    }
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
    let Ok(codec) = header.compression() else {
        return Err(BatchRefusal::UnsupportedCompression(header.attributes & 0b111));
    };
    let window = if rules.log_append_time { Window::default() } else { Window::new(rules, now) };
    if !rules.log_append_time {
        check_timestamps(&header)?;
    }
    if codec == Compression::None || rules.keys_required || window.is_suspect(&header) {
        check_records(&header, codec, &batch[BATCH_HEADER_LEN..], rules.keys_required, window)?;
    }
    Ok(header)
}

/// The time in which a record's own may lie; None is unlimited.
#[derive(Clone, Copy, Default)]
struct Window {
    earliest: Option<i64>,
    latest: Option<i64>,
}

impl Window {
    fn new(rules: &BatchRules, now: Timestamp) -> Self {
        Self {
            earliest: rules.timestamp_before_max_ms.map(|ms| now.0.saturating_sub(ms)),
            latest: rules.timestamp_after_max_ms.map(|ms| now.0.saturating_add(ms)),
        }
    }

    /// Records may lie outside of it. The header says how late the latest is, but not how early the earliest.
    fn is_suspect(&self, header: &BatchHeader) -> bool {
        self.earliest.is_some() || self.is_too_late(header.max_timestamp)
    }

    fn is_too_early(&self, timestamp: Timestamp) -> bool {
        timestamp != Timestamp::NONE && self.earliest.is_some_and(|earliest| timestamp.0 < earliest)
    }

    fn is_too_late(&self, timestamp: Timestamp) -> bool {
        self.latest.is_some_and(|latest| timestamp.0 > latest)
    }
}

/// What single records can be refused for.
fn check_records(
    header: &BatchHeader,
    codec: Compression,
    body: &[u8],
    keys_required: bool,
    window: Window,
) -> Result<(), BatchRefusal> {
    let (mut keyless, mut untimely) = (Vec::new(), Vec::new());
    let mut too_late = window.is_too_late(header.max_timestamp);
    let note = |into: &mut Vec<i32>, index| {
        if into.len() < RECORD_ERRORS_MAX {
            into.push(index);
        }
    };
    let look = |index, record: &RawRecord<'_>| {
        if keys_required && record.key.is_none() {
            note(&mut keyless, index);
        }
        let timestamp = Timestamp(header.base_timestamp.0.wrapping_add(record.timestamp_delta));
        if window.is_too_early(timestamp) || window.is_too_late(timestamp) {
            too_late |= window.is_too_late(timestamp);
            note(&mut untimely, index);
        }
    };
    with_plain_records(header, codec, body, look, |_| {})?;
    if !keyless.is_empty() {
        return Err(BatchRefusal::KeysMissing { indexes: keyless });
    }
    if too_late || !untimely.is_empty() {
        let reason = match too_late {
            true => "further ahead than message.timestamp.after.max.ms allows",
            false => "older than message.timestamp.before.max.ms allows",
        };
        let (base, max) = (header.base_timestamp, header.max_timestamp);
        return Err(BatchRefusal::InvalidTimestamp { base, max, reason, indexes: untimely });
    }
    Ok(())
}

/// Decompresses a body under the cap, walks its records with `look`, and gives all of it to `then`. Waits where too
/// many are at it.
pub(super) fn with_plain_records<T>(
    header: &BatchHeader,
    codec: Compression,
    body: &[u8],
    look: impl FnMut(i32, &RawRecord<'_>),
    then: impl FnOnce(&[u8]) -> T,
) -> Result<T, BatchRefusal> {
    let _turn: Option<MutexGuard<'static, ()>> = (codec != Compression::None).then(|| {
        let [first, ..] = &DECOMPRESSIONS;
        DECOMPRESSIONS.iter().find_map(|slot| slot.try_lock()).unwrap_or_else(|| first.lock())
    });
    let mut decompressor = Decompressor::new(DECOMPRESSED_BATCH_BYTES_MAX);
    let plain = decompressor.run(codec, body).map_err(|error| match error {
        BatchError::DecompressedTooLarge { .. } => BatchRefusal::DecompressedTooLarge(error),
        _ => BatchRefusal::Corrupt(error),
    })?;
    walk(header, plain, false, look).map_err(BatchRefusal::BadRecords)?;
    Ok(then(plain))
}

/// A batch may be no larger than its topic allows.
pub(crate) fn check_size(size: usize, rules: &BatchRules) -> Result<(), BatchRefusal> {
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

fn check_timestamps(header: &BatchHeader) -> Result<(), BatchRefusal> {
    let (base, max) = (header.base_timestamp, header.max_timestamp);
    let refuse = |reason| Err(BatchRefusal::InvalidTimestamp { base, max, reason, indexes: Vec::new() });
    if header.timestamp_type() == TimestampType::LogAppendTime {
        return refuse("a producer cannot set log append time");
    }
    if base < Timestamp::NONE || max > TIMESTAMP_MAX {
        return refuse("use milliseconds from -1 (none) to 2^63 / 1000");
    }
    if max < base {
        return refuse("the largest is below the first");
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
