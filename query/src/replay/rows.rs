//! The output formats of a replay: lines of JSON, or an Arrow IPC stream with the columns of the archive.

use arrow::error::ArrowError;
use arrow_ipc::writer::StreamWriter;
use bytes::Bytes;
use thermocline_ingest::model::{Offset, PartitionId, TimestampType, TopicPartition};
use thermocline_ingest::record::BatchError;
use thermocline_tiering::parquet::{Row, RowBuffer, schema};

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
    /// Of one partition; each of its record batches is.
    rows: RowBuffer,
    partition: PartitionId,
    /// Of the rows that are in the writer and not taken yet.
    flushed_bytes: usize,
}

/// What a mark says, and the refusal of a replay that begins with such a batch.
pub const UNDECODABLE_BATCH: &str = "undecodable_batch";

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
            Self::Arrow(arrow) => arrow.rows.bytes() + arrow.flushed_bytes,
        }
    }

    pub(super) fn take(&mut self) -> Result<Bytes, RowsError> {
        match self {
            Self::Ndjson(out) => Ok(std::mem::take(out).into()),
            Self::Arrow(rows) => {
                rows.flush()?;
                rows.flushed_bytes = 0;
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

impl ArrowRows {
    fn new() -> Result<Self, RowsError> {
        let writer = StreamWriter::try_new(Vec::new(), &schema())?;
        Ok(Self { writer, rows: RowBuffer::default(), partition: PartitionId(0), flushed_bytes: 0 })
    }

    fn push<'a>(
        &mut self,
        message: Message<'a, impl Iterator<Item = (&'a str, Option<&'a [u8]>)>>,
        timestamp_type: TimestampType,
    ) -> Result<(), RowsError> {
        if message.partition != self.partition {
            self.flush()?;
            self.partition = message.partition;
        }
        self.rows.push(Row {
            offset: message.offset,
            timestamp: message.timestamp.as_micros(),
            timestamp_type,
            key: message.key,
            value: message.value,
            headers: message.headers,
        });
        Ok(())
    }

    /// Moves the rows collected so far into the stream as one record batch.
    fn flush(&mut self) -> Result<(), RowsError> {
        if self.rows.bytes() > 0 {
            self.flushed_bytes += self.rows.bytes();
            self.writer.write(&self.rows.take(self.partition)?)?;
        }
        Ok(())
    }
}
