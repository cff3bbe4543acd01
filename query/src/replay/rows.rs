//! The output formats of a replay: lines of JSON, or an Arrow IPC stream with the columns of the archive.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryBuilder, Int32Builder, Int64Builder, ListBuilder, StringBuilder, StructBuilder,
    TimestampMicrosecondBuilder,
};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use arrow_ipc::writer::StreamWriter;
use bytes::Bytes;
use thermocline_ingest::model::{Offset, TimestampType, TopicPartition};
use thermocline_ingest::record::BatchError;
use thermocline_tiering::parquet::{header_element, header_fields, schema};

use crate::message::Message;

/// How a replay is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One message per line, as in [`crate::message`].
    #[default]
    Ndjson,
    /// An Arrow IPC stream: `partition, offset, timestamp, timestamp_type, key, value, headers`, as in the Parquet
    /// files of the archive.
    Arrow,
}

/// Rows that could not be written.
#[derive(Debug, thiserror::Error)]
pub enum RowsError {
    #[error("writing messages as arrow: {0}")]
    Arrow(#[from] ArrowError),
}

/// Collects messages and gives them out as bytes.
pub(super) enum Rows {
    Ndjson(Vec<u8>),
    Arrow(Box<ArrowRows>),
}

pub(super) struct ArrowRows {
    writer: StreamWriter<Vec<u8>>,
    schema: SchemaRef,
    rows: usize,
    /// Approximate size of what the builders hold.
    row_bytes: usize,
    partition: Int32Builder,
    offset: Int64Builder,
    timestamp: TimestampMicrosecondBuilder,
    timestamp_type: Int32Builder,
    key: BinaryBuilder,
    value: BinaryBuilder,
    headers: ListBuilder<StructBuilder>,
}

/// What a mark says, and the refusal of a replay that begins with such a batch.
pub const UNDECODABLE_BATCH: &str = "undecodable_batch";
/// Bytes of a row beside its key, value and headers.
const ROW_FIXED_BYTES: usize = 32;

impl Rows {
    pub(super) fn new(format: Format) -> Result<Self, RowsError> {
        Ok(match format {
            Format::Ndjson => Self::Ndjson(Vec::new()),
            Format::Arrow => Self::Arrow(Box::new(ArrowRows::new()?)),
        })
    }

    pub(super) fn push<'a>(
        &mut self,
        message: Message<'a, impl Iterator<Item = (&'a str, Option<&'a [u8]>)>>,
        timestamp_type: TimestampType,
    ) -> Result<(), RowsError> {
        match self {
            Self::Ndjson(out) => {
                message.write_json(out);
                out.push(b'\n');
                Ok(())
            }
            Self::Arrow(rows) => rows.push(message, timestamp_type),
        }
    }

    /// A line in the place of the messages from `base` to `last`, inclusive. Arrow has no place for it.
    pub(super) fn mark(&mut self, partition: &TopicPartition, base: Offset, last: Offset, reason: &BatchError) {
        if let Self::Ndjson(out) = self {
            let error = serde_json::json!({"code": UNDECODABLE_BATCH, "message": reason.to_string()});
            let (topic, partition) = (&partition.topic, partition.partition);
            // A topic's name needs no escapes. A reader tells the line from a message by the name it begins with.
            out.extend_from_slice(format!(
                r#"{{"error":{error},"topic":"{topic}","partition":{partition},"offset":{base},"last_offset":{last}}}"#
            ).as_bytes());
            out.push(b'\n');
        }
    }

    /// About how many bytes [`Self::take`] would give.
    pub(super) fn len_bytes(&self) -> usize {
        match self {
            Self::Ndjson(out) => out.len(),
            Self::Arrow(rows) => rows.row_bytes,
        }
    }

    pub(super) fn take(&mut self) -> Result<Bytes, RowsError> {
        match self {
            Self::Ndjson(out) => Ok(std::mem::take(out).into()),
            Self::Arrow(rows) => {
                rows.flush()?;
                Ok(std::mem::take(rows.writer.get_mut()).into())
            }
        }
    }

    /// The rest, and the end mark of the format.
    pub(super) fn finish(self) -> Result<Bytes, RowsError> {
        match self {
            Self::Ndjson(out) => Ok(out.into()),
            Self::Arrow(mut rows) => {
                rows.flush()?;
                rows.writer.finish()?;
                Ok(std::mem::take(rows.writer.get_mut()).into())
            }
        }
    }
}

fn missing_builder() -> ArrowError {
    ArrowError::SchemaError("the header columns do not have the builders of their schema".to_owned())
}

impl ArrowRows {
    fn new() -> Result<Self, RowsError> {
        let schema = schema();
        let header =
            StructBuilder::new(header_fields(), vec![Box::new(StringBuilder::new()), Box::new(BinaryBuilder::new())]);
        Ok(Self {
            writer: StreamWriter::try_new(Vec::new(), &schema)?,
            schema,
            rows: 0,
            row_bytes: 0,
            partition: Int32Builder::new(),
            offset: Int64Builder::new(),
            timestamp: TimestampMicrosecondBuilder::new().with_timezone("UTC"),
            timestamp_type: Int32Builder::new(),
            key: BinaryBuilder::new(),
            value: BinaryBuilder::new(),
            headers: ListBuilder::new(header).with_field(header_element()),
        })
    }

    fn push<'a>(
        &mut self,
        message: Message<'a, impl Iterator<Item = (&'a str, Option<&'a [u8]>)>>,
        timestamp_type: TimestampType,
    ) -> Result<(), RowsError> {
        self.partition.append_value(message.partition.0);
        self.offset.append_value(message.offset.0);
        self.timestamp.append_value(message.timestamp.as_micros());
        self.timestamp_type.append_value(timestamp_type as i32);
        self.key.append_option(message.key);
        self.value.append_option(message.value);
        let mut bytes = ROW_FIXED_BYTES + message.key.map_or(0, <[u8]>::len) + message.value.map_or(0, <[u8]>::len);
        for (key, value) in message.headers {
            let header = self.headers.values();
            header.field_builder::<StringBuilder>(0).ok_or_else(missing_builder)?.append_value(key);
            header.field_builder::<BinaryBuilder>(1).ok_or_else(missing_builder)?.append_option(value);
            header.append(true);
            bytes += key.len() + value.map_or(0, <[u8]>::len);
        }
        self.headers.append(true);
        self.rows += 1;
        self.row_bytes += bytes;
        Ok(())
    }

    /// Moves the rows collected so far into the stream as one record batch.
    fn flush(&mut self) -> Result<(), RowsError> {
        if self.rows == 0 {
            return Ok(());
        }
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.partition.finish()),
            Arc::new(self.offset.finish()),
            Arc::new(self.timestamp.finish()),
            Arc::new(self.timestamp_type.finish()),
            Arc::new(self.key.finish()),
            Arc::new(self.value.finish()),
            Arc::new(self.headers.finish()),
        ];
        self.writer.write(&RecordBatch::try_new(self.schema.clone(), columns)?)?;
        self.rows = 0;
        self.row_bytes = 0;
        Ok(())
    }
}
