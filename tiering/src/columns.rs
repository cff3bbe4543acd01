//! The record columns of a decoded Parquet batch, by type. What the file really holds is checked once per batch, here;
//! rows are then read without further checks.

use std::ops::Range;

use arrow::array::{
    Array, AsArray, BinaryArray, Int32Array, Int64Array, ListArray, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{Int32Type, Int64Type, TimestampMicrosecondType};
use bytes::Bytes;
use thermocline_ingest::model::{Offset, Timestamp, TimestampType};

use crate::reader::OwnedRecord;

/// Columns that are read; `partition` is the same in every row of a file and known from its manifest.
pub(crate) const RECORD_COLUMNS: [&str; 6] = ["offset", "timestamp", "timestamp_type", "key", "value", "headers"];

/// A file that does not hold what the archive writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ColumnError {
    #[error("column {column} is missing or is not {expected}")]
    Type { column: &'static str, expected: &'static str },
    #[error("column {column} holds {nulls} nulls; none are allowed")]
    Nulls { column: &'static str, nulls: usize },
    #[error("timestamp of {micros} microseconds at offset {offset} is not a whole number of milliseconds")]
    Timestamp { micros: i64, offset: i64 },
    #[error("timestamp type {found} at offset {offset} is neither 0 nor 1")]
    TimestampType { found: i32, offset: i64 },
}

/// Typed columns of one batch.
pub(crate) struct RecordColumns {
    offset: Int64Array,
    timestamp: TimestampMicrosecondArray,
    timestamp_type: Int32Array,
    key: BinaryArray,
    value: BinaryArray,
    headers: ListArray,
    header_keys: StringArray,
    header_values: BinaryArray,
}

/// One record, borrowed from its columns.
#[derive(Clone)]
pub(crate) struct Row<'a> {
    pub offset: Offset,
    pub timestamp: Timestamp,
    pub timestamp_type: TimestampType,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    columns: &'a RecordColumns,
    header_range: Range<usize>,
}

impl RecordColumns {
    pub fn new(batch: &RecordBatch) -> Result<Self, ColumnError> {
        let binary = |column: &'static str| {
            let array = batch.column_by_name(column).and_then(|array| array.as_binary_opt::<i32>());
            array.cloned().ok_or(ColumnError::Type { column, expected: "binary" })
        };
        let (offset, timestamp) = offset_and_timestamp(batch)?;
        let timestamp_type = batch.column_by_name("timestamp_type").and_then(|a| a.as_primitive_opt::<Int32Type>());
        let headers = batch.column_by_name("headers").and_then(|array| array.as_list_opt::<i32>());
        let expected = "a list of (key string, value binary)";
        let of_headers = ColumnError::Type { column: "headers", expected };
        let headers = headers.ok_or(of_headers.clone())?;
        let pairs = headers.values().as_struct_opt().ok_or(of_headers.clone())?;
        let header_keys = pairs.column_by_name("key").and_then(|array| array.as_string_opt::<i32>());
        let header_values = pairs.column_by_name("value").and_then(|array| array.as_binary_opt::<i32>());
        let columns = Self {
            offset,
            timestamp,
            timestamp_type: timestamp_type
                .ok_or(ColumnError::Type { column: "timestamp_type", expected: "int32" })?
                .clone(),
            key: binary("key")?,
            value: binary("value")?,
            headers: headers.clone(),
            header_keys: header_keys.ok_or(of_headers.clone())?.clone(),
            header_values: header_values.ok_or(of_headers)?.clone(),
        };
        no_nulls("timestamp_type", &columns.timestamp_type)?;
        no_nulls("headers.element", pairs)?;
        no_nulls("headers.key", &columns.header_keys)?;
        Ok(columns)
    }

    pub fn len(&self) -> usize {
        self.offset.len()
    }

    /// Row `at`, which must be below [`Self::len`].
    pub fn row(&self, at: usize) -> Result<Row<'_>, ColumnError> {
        let offset = self.offset.value(at);
        let found = self.timestamp_type.value(at);
        let timestamp_type = match found {
            0 => TimestampType::CreateTime,
            1 => TimestampType::LogAppendTime,
            _ => return Err(ColumnError::TimestampType { found, offset }),
        };
        let bounds = self.headers.value_offsets();
        let header_range = match (self.headers.is_valid(at), bounds.get(at), bounds.get(at + 1)) {
            (true, Some(start), Some(end)) => *start as usize..*end as usize,
            _ => 0..0,
        };
        Ok(Row {
            offset: Offset(offset),
            timestamp: to_millis(self.timestamp.value(at), offset)?,
            timestamp_type,
            key: self.key.is_valid(at).then(|| self.key.value(at)),
            value: self.value.is_valid(at).then(|| self.value.value(at)),
            columns: self,
            header_range,
        })
    }
}

impl<'a> Row<'a> {
    /// Headers in order, repetitions kept.
    pub fn headers(&self) -> impl ExactSizeIterator<Item = (&'a [u8], Option<&'a [u8]>)> + use<'a> {
        let columns = self.columns;
        self.header_range.clone().map(move |at| {
            let value = columns.header_values.is_valid(at).then(|| columns.header_values.value(at));
            (columns.header_keys.value(at).as_bytes(), value)
        })
    }

    /// Bytes of key, value and headers.
    pub fn payload_bytes(&self) -> usize {
        let len = |part: Option<&[u8]>| part.map_or(0, <[u8]>::len);
        let headers: usize = self.headers().map(|(key, value)| key.len() + len(value)).sum();
        len(self.key) + len(self.value) + headers
    }

    pub fn header_count(&self) -> usize {
        self.header_range.len()
    }

    pub fn to_owned(&self) -> OwnedRecord {
        let columns = self.columns;
        let header = |at: usize| {
            let value = columns.header_values.is_valid(at).then(|| columns.header_values.value(at));
            (columns.header_keys.value(at).to_owned(), value.map(Bytes::copy_from_slice))
        };
        OwnedRecord {
            offset: self.offset,
            timestamp: self.timestamp,
            timestamp_type: self.timestamp_type,
            key: self.key.map(Bytes::copy_from_slice),
            value: self.value.map(Bytes::copy_from_slice),
            headers: self.header_range.clone().map(header).collect(),
        }
    }
}

/// The two columns that place a record, of a batch that may hold no others.
pub(crate) fn offset_and_timestamp(
    batch: &RecordBatch,
) -> Result<(Int64Array, TimestampMicrosecondArray), ColumnError> {
    let timestamp =
        batch.column_by_name("timestamp").and_then(|array| array.as_primitive_opt::<TimestampMicrosecondType>());
    let timestamp =
        timestamp.ok_or(ColumnError::Type { column: "timestamp", expected: "timestamp in microseconds" })?;
    no_nulls("timestamp", timestamp)?;
    Ok((offsets(batch)?, timestamp.clone()))
}

/// The offset column of a batch that may hold no others.
pub(crate) fn offsets(batch: &RecordBatch) -> Result<Int64Array, ColumnError> {
    let offset = batch.column_by_name("offset").and_then(|array| array.as_primitive_opt::<Int64Type>());
    let offset = offset.ok_or(ColumnError::Type { column: "offset", expected: "int64" })?;
    no_nulls("offset", offset)?;
    Ok(offset.clone())
}

/// Parquet's microseconds as Kafka's milliseconds; exact.
pub(crate) fn to_millis(micros: i64, offset: i64) -> Result<Timestamp, ColumnError> {
    match micros % 1000 {
        0 => Ok(Timestamp(micros / 1000)),
        _ => Err(ColumnError::Timestamp { micros, offset }),
    }
}

fn no_nulls(column: &'static str, array: &dyn Array) -> Result<(), ColumnError> {
    match array.null_count() {
        0 => Ok(()),
        nulls => Err(ColumnError::Nulls { column, nulls }),
    }
}
