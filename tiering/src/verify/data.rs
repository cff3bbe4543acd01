//! A Parquet object, decoded as a whole. CPU-bound.

use arrow::array::{Int32Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use bytes::Bytes;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData};
use thermocline_ingest::model::Offset;

use super::digest::column;
use super::{ContentDigest, Fault, RowOffsets, content, row_offsets};
use crate::background;
use crate::manifest::DataFile;
use crate::parquet::{BASE_OFFSET_KEY, LAST_OFFSET_KEY, PARTITION_KEY, TOPIC_KEY};
use crate::paths::PartitionPath;

/// Rows decoded at once; never more than a row group.
const ROWS_AT_ONCE: usize = 8192;

/// Whether the object holds the records that the manifest promises: footer, number, offsets, times, content. Row group
/// by row group, so that beside the object memory is bounded by one of them.
pub(super) fn check(path: &PartitionPath, file: &DataFile, bytes: Bytes) -> Result<(), Fault> {
    let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Required);
    let metadata = ArrowReaderMetadata::load(&bytes, options).map_err(undecodable)?;
    check_footer(path, file, metadata.metadata())?;
    let mut rows = Rows { path, file, offsets: row_offsets(file), digest: ContentDigest::new(), count: 0 };
    for row_group in 0..metadata.metadata().num_row_groups() {
        let batches = ParquetRecordBatchReaderBuilder::new_with_metadata(bytes.clone(), metadata.clone())
            .with_row_groups(vec![row_group])
            .with_batch_size(ROWS_AT_ONCE)
            .build()
            .map_err(undecodable)?;
        for batch in batches {
            rows.take(&batch.map_err(undecodable)?)?;
            background::pause();
        }
    }
    rows.finish()
}

/// What the file says about itself, for readers that have no manifest.
fn check_footer(path: &PartitionPath, file: &DataFile, metadata: &ParquetMetaData) -> Result<(), Fault> {
    let entries = metadata.file_metadata().key_value_metadata().map_or(&[][..], Vec::as_slice);
    for (key, expected) in [
        (TOPIC_KEY, path.topic.to_string()),
        (PARTITION_KEY, path.partition.to_string()),
        (BASE_OFFSET_KEY, file.base_offset.to_string()),
        (LAST_OFFSET_KEY, file.last_offset.to_string()),
    ] {
        let found = entries.iter().find(|entry| entry.key == key).and_then(|entry| entry.value.as_deref());
        if found != Some(expected.as_str()) {
            return Err(content(key, &expected, &found.unwrap_or("nothing")));
        }
    }
    Ok(())
}

/// The rows of a file as they are decoded.
struct Rows<'a, I> {
    path: &'a PartitionPath,
    file: &'a DataFile,
    offsets: RowOffsets<I>,
    digest: ContentDigest,
    count: u64,
}

impl<I: Iterator<Item = Offset>> Rows<'_, I> {
    fn take(&mut self, batch: &RecordBatch) -> Result<(), Fault> {
        let malformed = |reason| Fault::Undecodable { reason };
        self.digest.update_batch(batch).map_err(malformed)?;
        let partitions: &Int32Array = column(batch, 0).map_err(malformed)?;
        if let Some(found) = partitions.values().iter().find(|partition| **partition != self.path.partition.0) {
            return Err(content("partition", &self.path.partition, found));
        }
        let offsets: &Int64Array = column(batch, 1).map_err(malformed)?;
        for found in offsets.values() {
            self.offsets.expect(*found)?;
        }
        let (min, max) = (self.file.min_timestamp.as_micros(), self.file.max_timestamp.as_micros());
        let timestamps: &TimestampMicrosecondArray = column(batch, 2).map_err(malformed)?;
        if let Some(found) = timestamps.values().iter().find(|micros| !(min..=max).contains(*micros)) {
            return Err(content("timestamp, in microseconds,", &format!("{min} to {max}"), found));
        }
        self.count += batch.num_rows() as u64;
        Ok(())
    }

    fn finish(self) -> Result<(), Fault> {
        if self.count != self.file.rows {
            return Err(content("number of records", &self.file.rows, &self.count));
        }
        self.offsets.finish()?;
        let found = self.digest.finish();
        if found != self.file.digest {
            return Err(content("digest", &self.file.digest, &found));
        }
        Ok(())
    }
}

fn undecodable(error: impl ToString) -> Fault {
    Fault::Undecodable { reason: error.to_string() }
}
