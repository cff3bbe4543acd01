//! Records becoming Arrow columns, a slice at a time.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryBuilder, Int32Array, Int32Builder, Int64Builder, ListArray, RecordBatch, StringBuilder,
    StructArray, TimestampMicrosecondBuilder,
};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::error::ArrowError;
use thermocline_ingest::model::{Offset, PartitionId, TimestampType};
use thermocline_ingest::record::Record;

use super::{header_element, header_fields, schema};

/// What a row costs in memory beside key, value and headers.
const ROW_BYTES: usize = 32;
/// What a header costs beside its bytes.
const HEADER_BYTES: usize = 8;

/// A row of the schema but its partition, borrowed. `H` yields header keys and values in order, duplicates included.
pub struct Row<'a, H> {
    pub offset: Offset,
    /// Microseconds since the Unix epoch.
    pub timestamp: i64,
    pub timestamp_type: TimestampType,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: H,
}

/// Rows of one partition, as Arrow columns under construction.
pub struct RowBuffer {
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

impl Default for RowBuffer {
    fn default() -> Self {
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
}

impl RowBuffer {
    pub fn push<'a>(&mut self, row: Row<'a, impl Iterator<Item = (&'a str, Option<&'a [u8]>)>>) {
        self.offset.append_value(row.offset.0);
        self.timestamp.append_value(row.timestamp);
        self.timestamp_type.append_value(row.timestamp_type as i32);
        self.key.append_option(row.key);
        self.value.append_option(row.value);
        self.bytes += ROW_BYTES + row.key.map_or(0, <[u8]>::len) + row.value.map_or(0, <[u8]>::len);
        let mut end = self.header_ends.last().copied().unwrap_or_default();
        for (key, value) in row.headers {
            self.header_key.append_value(key);
            self.header_value.append_option(value);
            self.bytes += HEADER_BYTES + key.len() + value.map_or(0, <[u8]>::len);
            end += 1;
        }
        self.header_ends.push(end);
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
