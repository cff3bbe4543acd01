//! The fixed part of a record batch.
//!
//! ```text
//!  0 base offset i64 | 8 batch length i32, counted from 12 | 12 partition leader epoch i32 | 16 magic i8 = 2 | 17 crc u32
//! 21 attributes i16  | 23 last offset delta i32 | 27 base timestamp i64 | 35 max timestamp i64
//! 43 producer id i64 | 51 producer epoch i16    | 53 base sequence i32  | 57 record count i32 | 61 records
//! ```
//! All big-endian. The CRC (CRC-32C) covers byte 21 to the end, so base offset and leader epoch may be rewritten
//! freely. Attributes: bits 0-2 codec, 3 timestamp type, 4 transactional, 5 control, 6 delete horizon: then the base
//! timestamp is the time from which on compaction may drop the batch's tombstones (KIP-534), and still what the deltas
//! of the records count from. Source: KIP-98.
//!
//! A batch of a producer has as many records as its offsets span. Compaction takes records out and leaves base offset
//! and last offset delta as they were, so that readers pass over what is gone; a batch may be left with no record.

use std::io;
use std::ops::Range;

use bytes::Bytes;

use crate::model::{Offset, Timestamp, TimestampType};

/// Length of the fixed part.
pub const BATCH_HEADER_LEN: usize = 61;
/// Bytes in front of those that the batch length counts.
pub(super) const LENGTH_PREFIX: usize = 12;

pub(crate) const BASE_OFFSET: Range<usize> = 0..8;
pub(crate) const LEADER_EPOCH_FIELD: Range<usize> = 12..16;
pub(super) const MAGIC: usize = 16;
pub(super) const CRC: Range<usize> = 17..21;
pub(super) const ATTRIBUTES: Range<usize> = 21..23;
pub(super) const MAX_TIMESTAMP: Range<usize> = 35..43;

const CODEC_MASK: i16 = 0b111;
pub(super) const TIMESTAMP_TYPE_BIT: i16 = 1 << 3;
pub(super) const TRANSACTIONAL_BIT: i16 = 1 << 4;
pub(super) const CONTROL_BIT: i16 = 1 << 5;
const DELETE_HORIZON_BIT: i16 = 1 << 6;
/// Attribute bits that a producer may set.
pub(super) const PRODUCER_BITS: i16 = CODEC_MASK | TIMESTAMP_TYPE_BIT | TRANSACTIONAL_BIT | CONTROL_BIT;

/// How the records of a batch are compressed; the numbers are those of the attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None = 0,
    Gzip = 1,
    Snappy = 2,
    Lz4 = 3,
    Zstd = 4,
}

/// The 61 fixed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    pub base_offset: Offset,
    pub batch_length: i32,
    pub leader_epoch: i32,
    pub crc: u32,
    pub attributes: i16,
    pub last_offset_delta: i32,
    pub base_timestamp: Timestamp,
    pub max_timestamp: Timestamp,
    pub producer_id: i64,
    pub producer_epoch: i16,
    pub base_sequence: i32,
    pub record_count: i32,
}

/// What is wrong with the bytes of a batch.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    #[error("record batch needs {needed} bytes, {available} are there")]
    Truncated { needed: usize, available: usize },
    #[error("record batch has magic {0}; only 2 is known")]
    Magic(i8),
    #[error("record batch length {length} is below the least possible, {least}", least = BATCH_HEADER_LEN - LENGTH_PREFIX)]
    Length { length: i32 },
    #[error("record batch of {size} bytes is followed by {extra} bytes that do not belong to it")]
    Trailing { size: usize, extra: usize },
    #[error("record batch has crc {stored:#010x}, its bytes have {computed:#010x}")]
    Crc { stored: u32, computed: u32 },
    #[error("record batch names compression codec {0}; 0 to 4 are known")]
    Codec(i16),
    #[error("record batch does not decompress as {codec:?}")]
    Decompress { codec: Compression, source: io::Error },
    #[error("record batch decompresses as {codec:?} to more than the {limit} bytes allowed")]
    DecompressedTooLarge { codec: Compression, limit: usize },
    #[error("record {index} of the batch: {reason}")]
    Record { index: i32, reason: &'static str },
    #[error(
        "record batch states {stated} records and last offset delta {last_offset_delta}, {found} records are there"
    )]
    Count { stated: i32, last_offset_delta: i32, found: i32 },
}

impl Compression {
    /// The codec of these batch attributes.
    pub(super) fn of(attributes: i16) -> Result<Self, BatchError> {
        match attributes & CODEC_MASK {
            0 => Ok(Self::None),
            1 => Ok(Self::Gzip),
            2 => Ok(Self::Snappy),
            3 => Ok(Self::Lz4),
            4 => Ok(Self::Zstd),
            other => Err(BatchError::Codec(other)),
        }
    }
}

impl BatchHeader {
    /// Reads the header at the start of `bytes`; checks magic and that batch_length is sane, not the CRC, and not
    /// whether the records follow.
    pub fn read(bytes: &[u8]) -> Result<Self, BatchError> {
        if let Some(&magic) = bytes.get(MAGIC)
            && magic != 2
        {
            return Err(BatchError::Magic(magic.cast_signed()));
        }
        let Some(fixed) = bytes.first_chunk::<BATCH_HEADER_LEN>() else {
            return Err(BatchError::Truncated { needed: BATCH_HEADER_LEN, available: bytes.len() });
        };
        let header = Self {
            base_offset: Offset(i64::from_be_bytes(field(fixed, 0))),
            batch_length: i32::from_be_bytes(field(fixed, 8)),
            leader_epoch: i32::from_be_bytes(field(fixed, 12)),
            crc: u32::from_be_bytes(field(fixed, 17)),
            attributes: i16::from_be_bytes(field(fixed, 21)),
            last_offset_delta: i32::from_be_bytes(field(fixed, 23)),
            base_timestamp: Timestamp(i64::from_be_bytes(field(fixed, 27))),
            max_timestamp: Timestamp(i64::from_be_bytes(field(fixed, 35))),
            producer_id: i64::from_be_bytes(field(fixed, 43)),
            producer_epoch: i16::from_be_bytes(field(fixed, 51)),
            base_sequence: i32::from_be_bytes(field(fixed, 53)),
            record_count: i32::from_be_bytes(field(fixed, 57)),
        };
        match usize::try_from(header.batch_length) {
            Ok(length) if length + LENGTH_PREFIX >= BATCH_HEADER_LEN => Ok(header),
            _ => Err(BatchError::Length { length: header.batch_length }),
        }
    }

    /// The header as it stands in a log or on the wire.
    pub(super) fn write(&self, fixed: &mut [u8; BATCH_HEADER_LEN]) {
        fixed[0..8].copy_from_slice(&self.base_offset.0.to_be_bytes());
        fixed[8..12].copy_from_slice(&self.batch_length.to_be_bytes());
        fixed[12..16].copy_from_slice(&self.leader_epoch.to_be_bytes());
        fixed[16] = 2;
        fixed[17..21].copy_from_slice(&self.crc.to_be_bytes());
        fixed[21..23].copy_from_slice(&self.attributes.to_be_bytes());
        fixed[23..27].copy_from_slice(&self.last_offset_delta.to_be_bytes());
        fixed[27..35].copy_from_slice(&self.base_timestamp.0.to_be_bytes());
        fixed[35..43].copy_from_slice(&self.max_timestamp.0.to_be_bytes());
        fixed[43..51].copy_from_slice(&self.producer_id.to_be_bytes());
        fixed[51..53].copy_from_slice(&self.producer_epoch.to_be_bytes());
        fixed[53..57].copy_from_slice(&self.base_sequence.to_be_bytes());
        fixed[57..61].copy_from_slice(&self.record_count.to_be_bytes());
    }

    /// Size of the whole batch in bytes.
    pub fn size_bytes(&self) -> usize {
        usize::try_from(self.batch_length).unwrap_or(0) + LENGTH_PREFIX
    }
    pub fn last_offset(&self) -> Offset {
        self.base_offset.plus(i64::from(self.last_offset_delta))
    }
    /// The offset after the last one of the batch.
    pub fn next_offset(&self) -> Offset {
        self.last_offset().next()
    }
    pub fn compression(&self) -> Result<Compression, BatchError> {
        Compression::of(self.attributes)
    }
    pub fn timestamp_type(&self) -> TimestampType {
        if self.attributes & TIMESTAMP_TYPE_BIT == 0 { TimestampType::CreateTime } else { TimestampType::LogAppendTime }
    }
    pub fn is_control(&self) -> bool {
        self.attributes & CONTROL_BIT != 0
    }
    pub fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL_BIT != 0
    }
    /// From when on compaction may drop the tombstones of the batch, once it has met them.
    pub fn delete_horizon(&self) -> Option<Timestamp> {
        (self.attributes & DELETE_HORIZON_BIT != 0).then_some(self.base_timestamp)
    }
    /// Whether the record count can be true of the offsets that the batch spans.
    pub fn counts_agree(&self) -> bool {
        (0..=i64::from(self.last_offset_delta) + 1).contains(&i64::from(self.record_count))
            && self.last_offset_delta >= 0
    }
    pub(super) fn with_compression(self, codec: Compression) -> Self {
        Self { attributes: self.attributes & !CODEC_MASK | codec as i16, ..self }
    }
    pub(super) fn with_delete_horizon(self, horizon: Timestamp) -> Self {
        Self { attributes: self.attributes | DELETE_HORIZON_BIT, base_timestamp: horizon, ..self }
    }

    /// The batch of this header and `body`: length and CRC are made to fit. None where it would be 2 GiB or more.
    pub(super) fn sealed_over(mut self, body: &[u8]) -> Option<Vec<u8>> {
        self.batch_length = i32::try_from(BATCH_HEADER_LEN - LENGTH_PREFIX + body.len()).ok()?;
        let mut batch = Vec::with_capacity(BATCH_HEADER_LEN + body.len());
        batch.resize(BATCH_HEADER_LEN, 0);
        batch.extend_from_slice(body);
        self.write(batch.first_chunk_mut()?);
        self.crc = crc32c::crc32c(batch.get(ATTRIBUTES.start..)?);
        self.write(batch.first_chunk_mut()?);
        Some(batch)
    }
}

/// `N` bytes at a constant place of the header.
fn field<const N: usize>(fixed: &[u8; BATCH_HEADER_LEN], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&fixed[at..at + N]);
    bytes
}

/// The one batch that `bytes` must be: header readable, length exact.
pub(super) fn read_whole(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
    let header = BatchHeader::read(bytes)?;
    let size = header.size_bytes();
    match bytes.len() {
        len if len < size => Err(BatchError::Truncated { needed: size, available: len }),
        len if len > size => Err(BatchError::Trailing { size, extra: len - size }),
        _ => Ok(header),
    }
}

/// CRC-32C of bytes 21.. equals the header's. `batch` is one whole batch.
pub fn verify_crc(batch: &[u8]) -> Result<(), BatchError> {
    let header = read_whole(batch)?;
    let computed = crc32c::crc32c(&batch[ATTRIBUTES.start..]);
    if computed == header.crc { Ok(()) } else { Err(BatchError::Crc { stored: header.crc, computed }) }
}

/// Splits concatenated whole batches; each item is one batch (zero-copy slice). Ends after the first error.
pub fn split_batches(bytes: Bytes) -> impl Iterator<Item = Result<Bytes, BatchError>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let size = match BatchHeader::read(&rest).map(|header| header.size_bytes()) {
            Ok(size) if size <= rest.len() => size,
            Ok(needed) => {
                let available = std::mem::take(&mut rest).len();
                return Some(Err(BatchError::Truncated { needed, available }));
            }
            Err(error) => {
                rest = Bytes::new();
                return Some(Err(error));
            }
        };
        Some(Ok(rest.split_to(size)))
    })
}
