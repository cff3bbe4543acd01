//! Records becoming Arrow columns, a slice at a time.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryBuilder, Int32Array, Int32Builder, Int64Builder, ListArray, RecordBatch, StringBuilder,
    StructArray, TimestampMicrosecondBuilder,
};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::error::ArrowError;
use thermocline_ingest::model::PartitionId;
use thermocline_ingest::record::Record;

use super::{header_element, header_fields, schema};

/// What a row costs in memory beside key, value and headers.
const ROW_BYTES: usize = 32;
/// What a header costs beside its bytes.
const HEADER_BYTES: usize = 8;

/// Rows that are not in the writer yet, as Arrow columns under construction.
pub(super) struct RowBuffer {
    offset: Int64Builder,
    timestamp: TimestampMicrosecondBuilder,
    timestamp_type: Int32Builder,
    key: BinaryBuilder,
    value: BinaryBuilder,
    /// where each row's headers end
    header_ends: Vec<i32>,
    header_key: StringBuilder,
    header_value: BinaryBuilder,
    bytes: usize,
}

/// What a record counts towards row groups and files.
pub(super) fn row_bytes(record: &Record<'_>) -> usize {
    let mut bytes = ROW_BYTES + record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len);
    for (key, value) in record.headers.iter() {
        bytes += HEADER_BYTES + key.len() + value.map_or(0, <[u8]>::len);
    }
    bytes
}

impl RowBuffer {
    pub fn new() -> Self {
        Self {
            offset: Int64Builder::new(),
            timestamp: TimestampMicrosecondBuilder::new().with_timezone("UTC"),
            timestamp_type: Int32Builder::new(),
            key: BinaryBuilder::new(),
            value: BinaryBuilder::new(),
            header_ends: vec![0],
            header_key: StringBuilder::new(),
            header_value: BinaryBuilder::new(),
            bytes: 0,
        }
    }

    pub fn push(&mut self, record: &Record<'_>, micros: i64, size_bytes: usize) {
        self.offset.append_value(record.offset.0);
        self.timestamp.append_value(micros);
        self.timestamp_type.append_value(record.timestamp_type as i32);
        self.key.append_option(record.key);
        self.value.append_option(record.value);
        let mut end = self.header_ends.last().copied().unwrap_or_default();
        for (key, value) in record.headers.iter() {
            self.header_key.append_value(key);
            self.header_value.append_option(value);
            end += 1;
        }
        self.header_ends.push(end);
        self.bytes += size_bytes;
    }

    /// Decoded bytes of the rows so far.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The rows so far; the buffer is empty again.
    pub fn take(&mut self, partition: PartitionId) -> Result<RecordBatch, ArrowError> {
        let headers: Vec<ArrayRef> = vec![Arc::new(self.header_key.finish()), Arc::new(self.header_value.finish())];
        let headers = StructArray::try_new(header_fields(), headers, None)?;
        let rows = self.header_ends.len().saturating_sub(1);
        let ends = OffsetBuffer::new(ScalarBuffer::from(std::mem::replace(&mut self.header_ends, vec![0])));
        self.bytes = 0;
        RecordBatch::try_new(
            schema(),
            vec![
                Arc::new(Int32Array::from_value(partition.0, rows)),
                Arc::new(self.offset.finish()),
                Arc::new(self.timestamp.finish()),
                Arc::new(self.timestamp_type.finish()),
                Arc::new(self.key.finish()),
                Arc::new(self.value.finish()),
                Arc::new(ListArray::try_new(header_element(), ends, Arc::new(headers), None)?),
            ],
        )
    }
}
