//! The content digest of a data file: xxh3-128 over all its records in offset order, each as
//!
//! ```text
//! offset i64 | timestamp, microseconds i64 | timestamp type u8 | key | value | number of headers u32 | headers
//! header = key, value
//! every key and value: length i64, -1 for null | bytes
//! ```
//!
//! all little-endian. It is taken from the records of the log while they are written to Parquet, and from the Arrow
//! arrays that come out of the Parquet object as the store gives it back. Nothing between the two (encoders,
//! compression, the network, the store) is trusted.

use arrow::array::{
    Array, BinaryArray, Int32Array, Int64Array, ListArray, RecordBatch, StringArray, StructArray,
    TimestampMicrosecondArray,
};
use thermocline_ingest::record::Record;
use xxhash_rust::xxh3::Xxh3;

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

/// The column at `index`, which must have this type. Errors: what does not fit the schema.
pub(super) fn column<A: Array + 'static>(batch: &RecordBatch, index: usize) -> Result<&A, String> {
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
