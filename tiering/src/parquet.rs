//! Records as Parquet: the schema of the cold tier and the writer.
//!
//! One row per record, offsets ascending. Field ids are those an Iceberg table over these files uses.
//!
//! | id | column | type | encoding |
//! |---|---|---|---|
//! | 1 | partition | int32, required | dictionary (one value) |
//! | 2 | offset | int64, required | delta binary packed |
//! | 3 | timestamp | timestamp(micros, UTC), required | delta binary packed |
//! | 4 | timestamp_type | int32, required (0 create, 1 log append) | dictionary |
//! | 5 | key | binary, optional | plain |
//! | 6 | value | binary, optional | plain |
//! | 7 | headers | list (element 8) of struct: key (9) string, required; value (10) binary, optional | key: dictionary |
//!
//! All zstd. A record without headers has an empty list, never a null one. Kafka counts milliseconds, the column
//! microseconds; -1, Kafka's "none", is -1000 here.
//!
//! A row group ends at `row_group_bytes` of decoded records: one ranged GET that is a good unit of prefetch. A page
//! ends at about `page_bytes`, or at [`PAGE_ROWS_MAX`] rows, so that the page index leads to one message through a
//! few kilobytes. Offsets and timestamps have statistics per page; keys per row group, cut at
//! [`STATISTICS_BYTES_MAX`]; values none, for their bounds prune nothing and cost a comparison of each.
//!
//! Footer metadata: `thermocline.topic`, `thermocline.partition`, `thermocline.base_offset`,
//! `thermocline.last_offset` (inclusive; the range of offsets the file stands for, also where it has no rows).

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use arrow::array::{
    ArrayRef, BinaryBuilder, Int32Array, Int32Builder, Int64Builder, ListArray, RecordBatch, StringBuilder,
    StructArray, TimestampMicrosecondBuilder,
};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;
use bytes::Bytes;
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;
use parquet::arrow::arrow_writer::{ArrowWriter, ArrowWriterOptions};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError as LibraryError;
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use thermocline_config::TieringConfig;
use thermocline_ingest::model::{Offset, PartitionId, Timestamp, TopicName};
use thermocline_ingest::record::Record;

/// Most rows of one page.
pub const PAGE_ROWS_MAX: usize = 4096;
/// Longest lower or upper bound of a binary column.
pub const STATISTICS_BYTES_MAX: usize = 64;
/// What a row costs in memory beside key, value and headers.
const ROW_BYTES: usize = 32;
/// What a header costs beside its bytes.
const HEADER_BYTES: usize = 8;
/// Largest slice handed to the library at once: its arrays have 32-bit offsets.
const SLICE_BYTES_MAX: usize = 1 << 30;
/// Position of the `offset` column.
const OFFSET_COLUMN: i32 = 1;

pub const TOPIC_KEY: &str = "thermocline.topic";
pub const PARTITION_KEY: &str = "thermocline.partition";
pub const BASE_OFFSET_KEY: &str = "thermocline.base_offset";
pub const LAST_OFFSET_KEY: &str = "thermocline.last_offset";

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let timestamp = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    Arc::new(Schema::new(vec![
        field(1, "partition", DataType::Int32, false),
        field(2, "offset", DataType::Int64, false),
        field(3, "timestamp", timestamp, false),
        field(4, "timestamp_type", DataType::Int32, false),
        field(5, "key", DataType::Binary, true),
        field(6, "value", DataType::Binary, true),
        field(7, "headers", DataType::List(header_element()), false),
    ]))
});

/// Why records could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ParquetError {
    #[error("timestamp {timestamp} ms of offset {offset} does not fit into microseconds")]
    Timestamp { offset: Offset, timestamp: Timestamp },
    #[error("record at offset {offset} of {size_bytes} bytes exceeds limit of {SLICE_BYTES_MAX}")]
    RecordTooLarge { offset: Offset, size_bytes: usize },
    #[error("writing Parquet")]
    Library(#[from] LibraryError),
    #[error("building Arrow arrays")]
    Arrow(#[from] ArrowError),
}

/// How a data file is laid out.
#[derive(Clone, Copy, Debug)]
pub struct ParquetOptions {
    pub zstd_level: i32,
    /// decoded bytes of a row group
    pub row_group_bytes: usize,
    /// decoded bytes of a page
    pub page_bytes: usize,
}

/// Writes one data file in memory.
pub struct ParquetEncoder {
    writer: ArrowWriter<Vec<u8>>,
    rows: RowBuffer,
    partition: PartitionId,
    row_group_bytes: usize,
    /// The library looks at a page's size only between writes, so it gets half a page at a time.
    slice_bytes: usize,
    /// decoded bytes of the row group under way that the writer has
    group_bytes: usize,
    decoded_bytes: usize,
    row_count: u64,
}

/// Rows that are not in the writer yet, as Arrow columns under construction.
struct RowBuffer {
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

/// The Arrow schema of every data file.
pub fn schema() -> SchemaRef {
    SCHEMA.clone()
}

/// A timestamp as the column stores it; `None` where it does not fit.
pub fn to_micros(timestamp: Timestamp) -> Option<i64> {
    timestamp.0.checked_mul(1000)
}

fn field(id: i32, name: &str, data_type: DataType, nullable: bool) -> Field {
    let id = HashMap::from([(PARQUET_FIELD_ID_META_KEY.to_owned(), id.to_string())]);
    Field::new(name, data_type, nullable).with_metadata(id)
}

/// `key` and `value` of a header.
pub fn header_fields() -> Fields {
    Fields::from(vec![field(9, "key", DataType::Utf8, false), field(10, "value", DataType::Binary, true)])
}

/// The element of the `headers` list.
pub fn header_element() -> Arc<Field> {
    Arc::new(field(8, "element", DataType::Struct(header_fields()), false))
}

impl From<&TieringConfig> for ParquetOptions {
    fn from(config: &TieringConfig) -> Self {
        Self {
            zstd_level: config.zstd_level,
            row_group_bytes: config.row_group_bytes.as_usize(),
            page_bytes: config.page_bytes.as_usize(),
        }
    }
}

impl ParquetOptions {
    fn properties(&self) -> Result<WriterProperties, LibraryError> {
        let column = |path: &[&str]| ColumnPath::new(path.iter().map(|&part| part.to_owned()).collect());
        let header_key = column(&["headers", "list", "element", "key"]);
        let sorted_by = SortingColumn { column_idx: OFFSET_COLUMN, descending: false, nulls_first: false };
        let mut properties = WriterProperties::builder()
            .set_created_by(format!("thermocline version {}", env!("CARGO_PKG_VERSION")))
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(self.zstd_level)?))
            .set_dictionary_enabled(false)
            .set_statistics_enabled(EnabledStatistics::None)
            .set_statistics_truncate_length(Some(STATISTICS_BYTES_MAX))
            .set_column_index_truncate_length(Some(STATISTICS_BYTES_MAX))
            .set_data_page_size_limit(self.page_bytes.max(1))
            .set_dictionary_page_size_limit(self.page_bytes.max(1))
            .set_data_page_row_count_limit(PAGE_ROWS_MAX)
            // The encoder cuts row groups itself, by decoded bytes.
            .set_max_row_group_row_count(None)
            .set_sorting_columns(Some(vec![sorted_by]));
        for name in ["partition", "timestamp_type"] {
            properties = properties
                .set_column_dictionary_enabled(column(&[name]), true)
                .set_column_statistics_enabled(column(&[name]), EnabledStatistics::Chunk);
        }
        for name in ["offset", "timestamp"] {
            properties = properties
                .set_column_encoding(column(&[name]), Encoding::DELTA_BINARY_PACKED)
                .set_column_statistics_enabled(column(&[name]), EnabledStatistics::Page);
        }
        properties = properties.set_column_statistics_enabled(column(&["key"]), EnabledStatistics::Chunk);
        Ok(properties.set_column_dictionary_enabled(header_key, true).build())
    }
}

impl ParquetEncoder {
    pub fn new(partition: PartitionId, options: ParquetOptions) -> Result<Self, ParquetError> {
        // The embedded Arrow schema would say nothing that the Parquet schema does not.
        let writer_options =
            ArrowWriterOptions::new().with_properties(options.properties()?).with_skip_arrow_metadata(true);
        Ok(Self {
            writer: ArrowWriter::try_new_with_options(Vec::new(), schema(), writer_options)?,
            rows: RowBuffer::new(),
            partition,
            row_group_bytes: options.row_group_bytes.max(1),
            slice_bytes: (options.page_bytes / 2).clamp(1, SLICE_BYTES_MAX / 2),
            group_bytes: 0,
            decoded_bytes: 0,
            row_count: 0,
        })
    }

    /// Adds a row. On `Timestamp` and `RecordTooLarge` nothing was added and the encoder can go on.
    pub fn push(&mut self, record: &Record<'_>) -> Result<(), ParquetError> {
        let micros = to_micros(record.timestamp)
            .ok_or(ParquetError::Timestamp { offset: record.offset, timestamp: record.timestamp })?;
        let size_bytes = row_bytes(record);
        if size_bytes > SLICE_BYTES_MAX {
            return Err(ParquetError::RecordTooLarge { offset: record.offset, size_bytes });
        }
        // A slice stays below twice SLICE_BYTES_MAX, so its 32-bit offsets hold.
        self.rows.push(record, micros, size_bytes);
        self.decoded_bytes += size_bytes;
        self.row_count += 1;
        if self.rows.bytes >= self.slice_bytes {
            self.write_slice()?;
        }
        if self.group_bytes >= self.row_group_bytes {
            self.writer.flush()?;
            self.group_bytes = 0;
        }
        Ok(())
    }

    pub fn row_count(&self) -> u64 {
        self.row_count
    }

    /// Bytes of all rows so far, decoded.
    pub fn decoded_bytes(&self) -> usize {
        self.decoded_bytes
    }

    /// Memory held, about.
    pub fn memory_bytes(&self) -> usize {
        self.rows.bytes + self.writer.memory_size() + self.writer.inner().capacity()
    }

    /// The finished file, standing for the offsets `base` to `last`, inclusive.
    pub fn finish(mut self, topic: &TopicName, base: Offset, last: Offset) -> Result<Bytes, ParquetError> {
        self.write_slice()?;
        for (key, value) in [
            (TOPIC_KEY, topic.to_string()),
            (PARTITION_KEY, self.partition.to_string()),
            (BASE_OFFSET_KEY, base.to_string()),
            (LAST_OFFSET_KEY, last.to_string()),
        ] {
            self.writer.append_key_value_metadata(KeyValue::new(key.to_owned(), value));
        }
        Ok(self.writer.into_inner()?.into())
    }

    fn write_slice(&mut self) -> Result<(), ParquetError> {
        self.group_bytes += self.rows.bytes;
        let batch = self.rows.take(self.partition)?;
        Ok(self.writer.write(&batch)?)
    }
}

/// What a record counts towards row groups and files.
fn row_bytes(record: &Record<'_>) -> usize {
    let mut bytes = ROW_BYTES + record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len);
    for (key, value) in record.headers.iter() {
        bytes += HEADER_BYTES + key.len() + value.map_or(0, <[u8]>::len);
    }
    bytes
}

impl RowBuffer {
    fn new() -> Self {
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

    fn push(&mut self, record: &Record<'_>, micros: i64, size_bytes: usize) {
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

    /// The rows so far; the buffer is empty again.
    fn take(&mut self, partition: PartitionId) -> Result<RecordBatch, ArrowError> {
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

#[cfg(test)]
mod tests;
