//! Re-encodes a row group of a data file into record batches v2, straight from Arrow arrays.
//!
//! Invariants:
//! - The same offsets always give the same batches: they are cut by the start of the row group, by
//!   [`BATCH_BYTES_MAX`] and by the records themselves, never by what a request asked for.
//! - A batch ends on a real record; holes between offsets fall between batches.
//! - Records with LogAppendTime share a batch only if they share the timestamp, since such a batch has just one.
//! - No producer id, leader epoch 0, no compression.
//! - Batches that were kept raw appear at their offsets, byte for byte, in batches of their own.

use std::ops::Range;

use arrow::array::RecordBatch;
use bytes::{Bytes, BytesMut};
use thermocline_ingest::model::{Offset, Timestamp, TimestampType};
use thermocline_ingest::record::{BATCH_HEADER_LEN, BatchEncoder, BatchError, BatchHeader};

use crate::columns::{ColumnError, RecordColumns, Row};
use crate::parquet_read::ParquetReadError;

/// Largest batch that is made of more than one record, in bytes. Below Kafka's customary 1 MiB, so that a fetch with a
/// small limit does not get one huge batch.
pub const BATCH_BYTES_MAX: usize = 512 << 10;
/// Most that a record's own fields add to its payload: length, attributes, deltas, and the lengths of key, value and
/// headers as varints.
const RECORD_OVERHEAD_MAX: usize = 36;
/// The same for one header: two lengths.
const HEADER_OVERHEAD_MAX: usize = 10;

/// Largest record that is believed; the format counts a batch in 31 bits.
const RECORD_BYTES_MAX: usize = 1 << 30;

/// Why a row group could not be re-encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    #[error(transparent)]
    Column(#[from] ColumnError),
    #[error(transparent)]
    Parquet(#[from] ParquetReadError),
    #[error("offset {offset} does not follow {previous} within {start}..{end}")]
    OffsetOrder { offset: i64, previous: i64, start: i64, end: i64 },
    #[error("record of {bytes} bytes at offset {offset} exceeds the limit of {RECORD_BYTES_MAX}")]
    RecordSize { offset: Offset, bytes: usize },
    #[error("raw batch at {base} is not a record batch")]
    Raw {
        base: Offset,
        #[source]
        source: BatchError,
    },
    #[error("raw batch at {base} starts at offset {found} and takes {len} bytes of {stored} stored")]
    RawMismatch { base: Offset, found: Offset, len: usize, stored: usize },
}

/// A batch that is served as it was produced.
#[derive(Clone, Debug)]
pub struct RawBytes {
    pub base: Offset,
    /// inclusive
    pub last: Offset,
    pub bytes: Bytes,
}

/// The batches of one row group, back to back.
#[derive(Clone, Debug, Default)]
pub struct EncodedRowGroup {
    bytes: Bytes,
    /// Ascending.
    batches: Vec<BatchBounds>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BatchBounds {
    base: Offset,
    /// inclusive
    last: Offset,
    /// Position past its last byte; it starts where the one before ends.
    end: usize,
}

/// Part of a row group's batches.
#[derive(Clone, Debug)]
pub struct BatchSlice {
    /// Whole batches; shares the memory of the row group.
    pub bytes: Bytes,
    /// The offset after the last record; where it was asked to start, if empty.
    pub next: Offset,
    /// Everything up to the end of the row group is in.
    pub exhausted: bool,
}

impl EncodedRowGroup {
    /// Batches from the one that holds `from` (or the first after it) up to `until` (exclusive; no batch starts there
    /// or beyond), as many as fit into `max_bytes`, or one that does not fit if `at_least_one`.
    pub fn slice(&self, from: Offset, until: Offset, max_bytes: usize, at_least_one: bool) -> BatchSlice {
        let first = self.batches.partition_point(|batch| batch.last < from);
        let start = first.checked_sub(1).and_then(|before| self.batches.get(before)).map_or(0, |batch| batch.end);
        let (mut end, mut next, mut taken) = (start, from, first);
        for batch in self.batches.iter().skip(first) {
            let fits = batch.end - start <= max_bytes || (taken == first && at_least_one);
            if batch.base >= until || !fits {
                break;
            }
            (end, next, taken) = (batch.end, batch.last.next(), taken + 1);
        }
        BatchSlice { bytes: self.bytes.slice(start..end), next, exhausted: taken == self.batches.len() }
    }

    /// Memory it takes.
    pub fn weight_bytes(&self) -> usize {
        self.bytes.len() + self.batches.len() * size_of::<BatchBounds>()
    }
}

/// What decides where a batch is cut.
#[derive(Clone, Copy, Debug)]
struct RowShape {
    timestamp: Timestamp,
    timestamp_type: TimestampType,
    offset: Offset,
    /// Upper bound on the encoded record.
    bytes_max: usize,
}

/// Cuts rows into batches. Pure.
#[derive(Debug, Default)]
struct Cutter {
    /// First row of the open batch, and the upper bound on its bytes so far.
    open: Option<(RowShape, usize)>,
}

impl Cutter {
    /// Whether `row` starts a new batch.
    fn cuts(&mut self, row: RowShape) -> bool {
        let fits = self.open.is_some_and(|(first, bytes)| {
            row.timestamp_type == first.timestamp_type
                && (row.timestamp_type == TimestampType::CreateTime || row.timestamp == first.timestamp)
                && bytes + row.bytes_max <= BATCH_BYTES_MAX
                && first.offset.distance_to(row.offset) <= i32::MAX as u64
        });
        match &mut self.open {
            Some((_, bytes)) if fits => *bytes += row.bytes_max,
            _ => self.open = Some((row, BATCH_HEADER_LEN + row.bytes_max)),
        }
        !fits
    }

    /// The next row starts a batch, whatever it is.
    fn close(&mut self) {
        self.open = None;
    }
}

impl RowShape {
    fn of(row: &Row<'_>) -> Self {
        let overhead = RECORD_OVERHEAD_MAX + row.header_count() * HEADER_OVERHEAD_MAX;
        Self {
            timestamp: row.timestamp,
            timestamp_type: row.timestamp_type,
            offset: row.offset,
            bytes_max: row.payload_bytes() + overhead,
        }
    }
}

/// Encodes the rows of one row group, whose offsets lie in `span`, with the raw batches that lie there too (ascending).
/// `bytes_expected` sizes the buffer. Blocking.
pub fn encode(
    rows: impl Iterator<Item = Result<RecordBatch, ParquetReadError>>,
    span: Range<Offset>,
    raw: Vec<RawBytes>,
    bytes_expected: usize,
) -> Result<EncodedRowGroup, EncodeError> {
    let mut output = Output::new(bytes_expected);
    let mut cutter = Cutter::default();
    let mut raw = raw.into_iter().peekable();
    let mut previous = span.start.plus(-1);
    for batch in rows {
        let columns = RecordColumns::new(&batch?)?;
        for at in 0..columns.len() {
            let row = columns.row(at)?;
            if row.offset <= previous || row.offset >= span.end {
                let (start, end) = (span.start.0, span.end.0);
                return Err(EncodeError::OffsetOrder { offset: row.offset.0, previous: previous.0, start, end });
            }
            previous = row.offset;
            while let Some(kept) = raw.next_if(|kept| kept.base < row.offset) {
                output.add_raw(kept)?;
                cutter.close();
            }
            let shape = RowShape::of(&row);
            if shape.bytes_max > RECORD_BYTES_MAX {
                return Err(EncodeError::RecordSize { offset: row.offset, bytes: shape.bytes_max });
            }
            if cutter.cuts(shape) {
                output.start(row.timestamp_type);
            }
            output.push(&row);
        }
    }
    for kept in raw {
        output.add_raw(kept)?;
    }
    Ok(output.finish())
}

/// Batches as they are made.
struct Output {
    bytes: BytesMut,
    batches: Vec<BatchBounds>,
    create_time: BatchEncoder,
    log_append_time: BatchEncoder,
    /// The open batch: its type, first and last offset.
    open: Option<(TimestampType, Offset, Offset)>,
    /// Type of the batch that the next record opens.
    next_type: TimestampType,
}

impl Output {
    fn new(bytes_expected: usize) -> Self {
        Self {
            bytes: BytesMut::with_capacity(bytes_expected),
            batches: Vec::new(),
            create_time: BatchEncoder::new(TimestampType::CreateTime),
            log_append_time: BatchEncoder::new(TimestampType::LogAppendTime),
            open: None,
            next_type: TimestampType::CreateTime,
        }
    }

    fn start(&mut self, timestamp_type: TimestampType) {
        self.end_batch();
        self.next_type = timestamp_type;
    }

    fn encoder(&mut self, timestamp_type: TimestampType) -> &mut BatchEncoder {
        match timestamp_type {
            TimestampType::CreateTime => &mut self.create_time,
            TimestampType::LogAppendTime => &mut self.log_append_time,
        }
    }

    fn push(&mut self, row: &Row<'_>) {
        let base = self.open.map_or(row.offset, |(_, base, _)| base);
        self.open = Some((self.next_type, base, row.offset));
        let encoder = self.encoder(self.next_type);
        encoder.push(row.offset, row.timestamp, row.key, row.value, row.headers());
    }

    fn end_batch(&mut self) {
        let Some((timestamp_type, base, last)) = self.open.take() else { return };
        if let Some(batch) = self.encoder(timestamp_type).finish() {
            self.add(base, last, &batch);
        }
    }

    fn add(&mut self, base: Offset, last: Offset, batch: &[u8]) {
        self.bytes.extend_from_slice(batch);
        self.batches.push(BatchBounds { base, last, end: self.bytes.len() });
    }

    fn add_raw(&mut self, raw: RawBytes) -> Result<(), EncodeError> {
        self.end_batch();
        let header = BatchHeader::read(&raw.bytes).map_err(|source| EncodeError::Raw { base: raw.base, source })?;
        let (found, len, stored) = (header.base_offset, header.size_bytes(), raw.bytes.len());
        if found != raw.base || len != stored {
            return Err(EncodeError::RawMismatch { base: raw.base, found, len, stored });
        }
        self.add(raw.base, raw.last, &raw.bytes);
        Ok(())
    }

    fn finish(mut self) -> EncodedRowGroup {
        self.end_batch();
        EncodedRowGroup { bytes: self.bytes.freeze(), batches: self.batches }
    }
}

#[cfg(test)]
mod tests;
