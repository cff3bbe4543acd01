//! Proof that the archive holds what the log held, before the log's copy may go.
//!
//! The content digest is xxh3-128 over all records of a data file in offset order, each as
//!
//! ```text
//! offset i64 | timestamp, microseconds i64 | timestamp type u8 | key | value | number of headers u32 | headers
//! header = key, value
//! every key and value: length i64, -1 for null | bytes
//! ```
//!
//! all little-endian. It is taken twice, from the records of the log while they are written to Parquet, and from the
//! Arrow arrays that come out of the Parquet object as the store gives it back. Nothing between the two (encoders,
//! compression, the network, the store) is trusted.

use arrow::array::{
    Array, BinaryArray, Int32Array, Int64Array, ListArray, RecordBatch, StringArray, StructArray,
    TimestampMicrosecondArray,
};
use bytes::Bytes;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use thermocline_ingest::model::Offset;
use thermocline_ingest::record::Record;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::manifest::{DataFile, ObjectRef};
use crate::pipeline::StagedArchive;
use crate::store::{ColdStore, StoreError};

/// Rows decoded at once while reading back; never more than a row group.
const ROWS_AT_ONCE: usize = 8192;

/// What did not read back as written.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("reading back")]
    Store(#[from] StoreError),
    #[error("{key} reads back with xxh3 {found} and {found_bytes} bytes, written were {expected} and {expected_bytes}")]
    Bytes { key: String, expected: String, expected_bytes: u64, found: String, found_bytes: u64 },
    #[error("{key} holds {what} {found}, the log has {expected}")]
    Content { key: String, what: &'static str, expected: String, found: String },
    #[error("{key} is not Parquet as written: {reason}")]
    Undecodable { key: String, reason: String },
    #[error("the check of {key} did not finish")]
    Aborted { key: String },
}

impl VerifyError {
    /// Whether the store gave back something else, as opposed to nothing.
    pub fn is_mismatch(&self) -> bool {
        matches!(self, Self::Bytes { .. } | Self::Content { .. } | Self::Undecodable { .. })
    }
}

/// The hash of an object's bytes, lower-case hex, as `ObjectRef::xxh3` has it.
pub fn object_hash(bytes: &[u8]) -> String {
    format!("{:032x}", xxh3_128(bytes))
}

/// Digest over the content of records, in the order they are given.
#[derive(Clone, Default)]
pub struct ContentDigest {
    hasher: Xxh3,
}

impl ContentDigest {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn update(&mut self, record: &Record<'_>) {
        self.row(record.offset.0, record.timestamp.as_micros(), record.timestamp_type as i32);
        self.bytes(record.key);
        self.bytes(record.value);
        self.count(record.headers.len());
        for (key, value) in record.headers.iter() {
            self.bytes(Some(key.as_bytes()));
            self.bytes(value);
        }
    }

    /// The rows of an Arrow batch in the schema of `parquet::schema()`. Errors: what does not fit the schema.
    pub fn update_batch(&mut self, batch: &RecordBatch) -> Result<(), String> {
        let offsets: &Int64Array = column(batch, 1)?;
        let timestamps: &TimestampMicrosecondArray = column(batch, 2)?;
        let types: &Int32Array = column(batch, 3)?;
        let keys: &BinaryArray = column(batch, 4)?;
        let values: &BinaryArray = column(batch, 5)?;
        let headers: &ListArray = column(batch, 6)?;
        let entries: &StructArray = downcast(headers.values().as_ref(), "headers.element")?;
        let [header_keys, header_values] = entries.columns() else {
            return Err(format!("headers have {} columns, not 2", entries.num_columns()));
        };
        let header_keys: &StringArray = downcast(header_keys.as_ref(), "headers.element.key")?;
        let header_values: &BinaryArray = downcast(header_values.as_ref(), "headers.element.value")?;
        for required in [offsets as &dyn Array, timestamps, types, headers, entries, header_keys] {
            if required.null_count() > 0 {
                return Err(format!("{} nulls in a required column", required.null_count()));
            }
        }
        for row in 0..batch.num_rows() {
            self.row(offsets.value(row), timestamps.value(row), types.value(row));
            self.bytes(optional(keys, row));
            self.bytes(optional(values, row));
            let (start, end) = (headers.value_offsets()[row] as usize, headers.value_offsets()[row + 1] as usize);
            self.count(end - start);
            for header in start..end {
                self.bytes(Some(header_keys.value(header).as_bytes()));
                self.bytes(optional(header_values, header));
            }
        }
        Ok(())
    }

    /// Lower-case hex.
    pub fn finish(&self) -> String {
        format!("{:032x}", self.hasher.digest128())
    }

    fn row(&mut self, offset: i64, micros: i64, timestamp_type: i32) {
        let mut fixed = [0; 17];
        let (offset_bytes, rest) = fixed.split_at_mut(8);
        let (micros_bytes, type_byte) = rest.split_at_mut(8);
        offset_bytes.copy_from_slice(&offset.to_le_bytes());
        micros_bytes.copy_from_slice(&micros.to_le_bytes());
        // 0 and 1 are legal; anything else must not fold onto them.
        type_byte.fill(u8::try_from(timestamp_type).unwrap_or(u8::MAX));
        self.hasher.update(&fixed);
    }

    fn bytes(&mut self, bytes: Option<&[u8]>) {
        let len = bytes.map_or(-1, |bytes| i64::try_from(bytes.len()).unwrap_or(i64::MAX));
        self.hasher.update(&len.to_le_bytes());
        self.hasher.update(bytes.unwrap_or_default());
    }

    fn count(&mut self, count: usize) {
        self.hasher.update(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
    }
}

/// Reads everything of `staged` back from the store and compares: sizes and hashes of all objects, and digest, count
/// and offset range of the records that decode out of the Parquet object.
pub async fn read_back(store: &ColdStore, staged: &StagedArchive) -> Result<(), VerifyError> {
    let file = staged.file();
    for object in [file.split.as_ref(), file.raw.as_ref().map(|raw| &raw.object)].into_iter().flatten() {
        let bytes = fetch(store, object).await?;
        check(object, bytes).await?;
    }
    let bytes = fetch(store, &file.data).await?;
    let expected = file.clone();
    let checked = tokio::task::spawn_blocking(move || check_data_file(&expected, bytes)).await;
    checked.map_err(|_| VerifyError::Aborted { key: file.data.key.clone() })?
}

/// Size differences are found by the comparison of bytes, so the object is read as a whole.
async fn fetch(store: &ColdStore, object: &ObjectRef) -> Result<Bytes, VerifyError> {
    let key = object.path();
    match store.size_bytes(&key).await? {
        Some(size) if size == object.size_bytes => Ok(store.get_sized(&key, size).await?),
        found => Err(VerifyError::Content {
            key: object.key.clone(),
            what: "bytes",
            expected: object.size_bytes.to_string(),
            found: found.map_or_else(|| "none".to_owned(), |size| size.to_string()),
        }),
    }
}

/// The bytes of an object, which must be those that `object` was made for.
pub(crate) async fn fetch_checked(store: &ColdStore, object: &ObjectRef) -> Result<Bytes, VerifyError> {
    let bytes = store.get_sized(&object.path(), object.size_bytes).await?;
    let expected = object.clone();
    let checked = tokio::task::spawn_blocking(move || check_bytes(&expected, &bytes).map(|()| bytes)).await;
    checked.map_err(|_| VerifyError::Aborted { key: object.key.clone() })?
}

async fn check(object: &ObjectRef, bytes: Bytes) -> Result<(), VerifyError> {
    let expected = object.clone();
    let checked = tokio::task::spawn_blocking(move || check_bytes(&expected, &bytes)).await;
    checked.map_err(|_| VerifyError::Aborted { key: object.key.clone() })?
}

fn check_bytes(object: &ObjectRef, bytes: &[u8]) -> Result<(), VerifyError> {
    let (found, found_bytes) = (object_hash(bytes), bytes.len() as u64);
    if found == object.xxh3 && found_bytes == object.size_bytes {
        return Ok(());
    }
    let (expected, expected_bytes) = (object.xxh3.clone(), object.size_bytes);
    Err(VerifyError::Bytes { key: object.key.clone(), expected, expected_bytes, found, found_bytes })
}

/// Decodes the whole object and compares it with what the log held. CPU-bound.
fn check_data_file(file: &DataFile, bytes: Bytes) -> Result<(), VerifyError> {
    let key = &file.data.key;
    check_bytes(&file.data, &bytes)?;
    let content = |what, expected: &dyn ToString, found: &dyn ToString| VerifyError::Content {
        key: key.clone(),
        what,
        expected: expected.to_string(),
        found: found.to_string(),
    };
    let read = digest_of(&bytes).map_err(|reason| VerifyError::Undecodable { key: key.clone(), reason })?;
    if read.rows != file.rows {
        return Err(content("records", &file.rows, &read.rows));
    }
    let inside = |offset: Offset| offset >= file.base_offset && offset <= file.last_offset;
    if let Some((first, last)) = read.range {
        let whole = file.raw.is_some() || (first == file.base_offset && last == file.last_offset);
        if !whole || !inside(first) || !inside(last) {
            let expected = format!("{}..={}", file.base_offset, file.last_offset);
            return Err(content("offsets", &expected, &format!("{first}..={last}")));
        }
    }
    if read.digest != file.digest {
        return Err(content("digest", &file.digest, &read.digest));
    }
    Ok(())
}

/// What a Parquet object holds.
struct DecodedContent {
    rows: u64,
    /// first and last offset
    range: Option<(Offset, Offset)>,
    digest: String,
}

/// Row group by row group, so that memory is bounded by one of them.
fn digest_of(bytes: &Bytes) -> Result<DecodedContent, String> {
    let metadata = ArrowReaderMetadata::load(bytes, ArrowReaderOptions::new()).map_err(|e| e.to_string())?;
    let mut digest = ContentDigest::new();
    let (mut rows, mut first, mut last) = (0, None, None);
    for row_group in 0..metadata.metadata().num_row_groups() {
        let batches = ParquetRecordBatchReaderBuilder::new_with_metadata(bytes.clone(), metadata.clone())
            .with_row_groups(vec![row_group])
            .with_batch_size(ROWS_AT_ONCE)
            .build()
            .map_err(|e| e.to_string())?;
        for batch in batches {
            let batch = batch.map_err(|e| e.to_string())?;
            digest.update_batch(&batch)?;
            let offsets: &Int64Array = column(&batch, 1)?;
            rows += batch.num_rows() as u64;
            for &offset in offsets.values() {
                if last.is_some_and(|last| last >= Offset(offset)) {
                    return Err(format!("offset {offset} does not ascend"));
                }
                first.get_or_insert(Offset(offset));
                last = Some(Offset(offset));
            }
        }
    }
    Ok(DecodedContent { rows, range: first.zip(last), digest: digest.finish() })
}

fn column<A: Array + 'static>(batch: &RecordBatch, index: usize) -> Result<&A, String> {
    let name = || batch.schema().fields().get(index).map_or_else(String::new, |field| field.name().clone());
    let array = batch.columns().get(index).ok_or_else(|| format!("column {index} is missing"))?;
    downcast(array.as_ref(), &name())
}

fn downcast<'a, A: Array + 'static>(array: &'a dyn Array, name: &str) -> Result<&'a A, String> {
    array.as_any().downcast_ref().ok_or_else(|| format!("column {name:?} has type {}", array.data_type()))
}

fn optional(array: &BinaryArray, row: usize) -> Option<&[u8]> {
    if array.is_null(row) { None } else { Some(array.value(row)) }
}

#[cfg(test)]
mod tests;
