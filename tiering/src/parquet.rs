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

mod columns;
mod rows;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, LazyLock};

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

use columns::ColumnEncoder;
pub(crate) use columns::ROW_GROUP_COPIES;
use rows::row_bytes;
pub use rows::{Row, RowBuffer};

/// Most rows of one page.
pub const PAGE_ROWS_MAX: usize = 4096;
/// Longest lower or upper bound of a binary column.
pub const STATISTICS_BYTES_MAX: usize = 64;
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
    #[error("starting a thread to encode Parquet on")]
    Thread(#[source] io::Error),
    #[error("the thread that encodes Parquet stopped unexpectedly")]
    Stopped,
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

/// Writes one data file in memory: rows are gathered here, their columns are encoded on threads of their own.
pub struct ParquetEncoder {
    columns: ColumnEncoder,
    rows: RowBuffer,
    partition: PartitionId,
    row_group_bytes: usize,
    /// The library looks at a page's size only between writes, so it gets half a page at a time.
    slice_bytes: usize,
    /// decoded bytes of the row group under way, without `rows`
    group_bytes: usize,
    decoded_bytes: usize,
    row_count: u64,
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
        let writer = ArrowWriter::try_new_with_options(Vec::new(), schema(), writer_options)?;
        Ok(Self {
            columns: ColumnEncoder::new(writer)?,
            rows: RowBuffer::default(),
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
        self.rows.push(Row {
            offset: record.offset,
            timestamp: micros,
            timestamp_type: record.timestamp_type,
            key: record.key,
            value: record.value,
            headers: record.headers.iter(),
        });
        self.decoded_bytes += size_bytes;
        self.row_count += 1;
        if self.rows.bytes() >= self.slice_bytes {
            self.write_slice()?;
        }
        if self.group_bytes >= self.row_group_bytes {
            self.columns.end_row_group(self.group_bytes)?;
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

    /// Memory held, about. The same rows always give the same figure, however far the encoding threads have got.
    pub fn memory_bytes(&self) -> usize {
        self.rows.bytes() + self.group_bytes + self.columns.memory_bytes()
    }

    /// The finished file, standing for the offsets `base` to `last`, inclusive.
    pub fn finish(mut self, topic: &TopicName, base: Offset, last: Offset) -> Result<Bytes, ParquetError> {
        self.write_slice()?;
        let mut file = self.columns.finish()?;
        for (key, value) in [
            (TOPIC_KEY, topic.to_string()),
            (PARTITION_KEY, self.partition.to_string()),
            (BASE_OFFSET_KEY, base.to_string()),
            (LAST_OFFSET_KEY, last.to_string()),
        ] {
            file.append_key_value_metadata(KeyValue::new(key.to_owned(), value));
        }
        let mut bytes = file.into_inner()?;
        // It grew by doubling, and stays in memory until it is verified.
        bytes.shrink_to_fit();
        Ok(bytes.into())
    }

    fn write_slice(&mut self) -> Result<(), ParquetError> {
        if self.rows.bytes() == 0 {
            return Ok(());
        }
        self.group_bytes += self.rows.bytes();
        self.columns.write(self.rows.take(self.partition)?)
    }
}

#[cfg(test)]
mod tests;
