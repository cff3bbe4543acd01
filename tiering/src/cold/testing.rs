//! A small archive in memory: data files made with plain `ArrowWriter`, and a source that counts what is read of them.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{
    ArrayRef, BinaryBuilder, Int32Array, Int64Array, ListBuilder, RecordBatch, StringBuilder, StructBuilder,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Fields, Schema, TimeUnit};
use async_trait::async_trait;
use bytes::Bytes;
use object_store::path::Path as ObjectPath;
use parking_lot::Mutex;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use proptest::prelude::*;
use thermocline_ingest::model::{Offset, PartitionId, Timestamp, TimestampType, TopicId, TopicName};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::cache::{BlockCache, RangeSource};
use crate::manifest::{DataFile, Manifest, ObjectRef};
use crate::reader::OwnedRecord;
use crate::store::StoreError;

/// Objects in memory; counts requests and holds them back while `gate` has no permits.
pub(crate) struct MemorySource {
    pub objects: Mutex<HashMap<String, Bytes>>,
    pub requests: AtomicUsize,
    pub gate: Semaphore,
}

impl MemorySource {
    pub fn new() -> Arc<Self> {
        let (objects, requests, gate) = (Mutex::default(), AtomicUsize::new(0), Semaphore::new(1 << 20));
        Arc::new(Self { objects, requests, gate })
    }
    pub fn put(&self, key: &str, bytes: impl Into<Bytes>) -> ObjectRef {
        let bytes = bytes.into();
        let object = ObjectRef { key: key.into(), size_bytes: bytes.len() as u64, xxh3: String::new() };
        self.objects.lock().insert(key.into(), bytes);
        object
    }
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
    pub fn blocks(self: &Arc<Self>, max_bytes: u64) -> BlockCache {
        BlockCache::over(self.clone(), max_bytes, Handle::current())
    }
}

#[async_trait]
impl RangeSource for MemorySource {
    async fn get_range(&self, key: &ObjectPath, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.requests.fetch_add(1, Ordering::SeqCst);
        let _open = self.gate.acquire().await.unwrap();
        let objects = self.objects.lock();
        Ok(objects[key.as_ref()].slice(range.start as usize..range.end as usize))
    }
}

pub(crate) fn header_fields() -> Fields {
    Fields::from(vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Binary, true)])
}

pub(crate) fn schema() -> Arc<Schema> {
    let element = Field::new("element", DataType::Struct(header_fields()), false);
    let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    Arc::new(Schema::new(vec![
        Field::new("partition", DataType::Int32, false),
        Field::new("offset", DataType::Int64, false),
        Field::new("timestamp", utc, false),
        Field::new("timestamp_type", DataType::Int32, false),
        Field::new("key", DataType::Binary, true),
        Field::new("value", DataType::Binary, true),
        Field::new("headers", DataType::List(Arc::new(element)), true),
    ]))
}

pub(crate) fn to_arrow(records: &[OwnedRecord]) -> RecordBatch {
    let binary = |part: fn(&OwnedRecord) -> &Option<Bytes>| -> ArrayRef {
        let mut builder = BinaryBuilder::new();
        records.iter().for_each(|record| builder.append_option(part(record).as_ref()));
        Arc::new(builder.finish())
    };
    let pair =
        StructBuilder::new(header_fields(), vec![Box::new(StringBuilder::new()), Box::new(BinaryBuilder::new())]);
    let element = Field::new("element", DataType::Struct(header_fields()), false);
    let mut headers = ListBuilder::new(pair).with_field(element);
    for record in records {
        for (key, value) in &record.headers {
            let pair = headers.values();
            pair.field_builder::<StringBuilder>(0).unwrap().append_value(key);
            pair.field_builder::<BinaryBuilder>(1).unwrap().append_option(value.as_ref());
            pair.append(true);
        }
        // No headers: null for some, an empty list for others; both must read the same.
        headers.append(!record.headers.is_empty() || record.offset.0 % 2 == 0);
    }
    let micros = records.iter().map(|record| record.timestamp.as_micros());
    RecordBatch::try_new(
        schema(),
        vec![
            Arc::new(Int32Array::from_iter_values(records.iter().map(|_| 3))),
            Arc::new(Int64Array::from_iter_values(records.iter().map(|record| record.offset.0))),
            Arc::new(TimestampMicrosecondArray::from_iter_values(micros).with_timezone("UTC")),
            Arc::new(Int32Array::from_iter_values(records.iter().map(|record| record.timestamp_type as i32))),
            binary(|record| &record.key),
            binary(|record| &record.value),
            Arc::new(headers.finish()),
        ],
    )
    .unwrap()
}

/// A Parquet file of `records` with the given rows per page and per row group.
pub(crate) fn parquet(records: &[OwnedRecord], page_rows: usize, group_rows: usize) -> Bytes {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).unwrap()))
        .set_dictionary_enabled(false)
        .set_column_dictionary_enabled("key".into(), true)
        .set_data_page_row_count_limit(page_rows)
        .set_write_batch_size(page_rows)
        .set_max_row_group_row_count(Some(group_rows))
        .build();
    let mut file = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut file, schema(), Some(properties)).unwrap();
    writer.write(&to_arrow(records)).unwrap();
    writer.close().unwrap();
    Bytes::from(file)
}

/// The manifest entry of a file that covers `base..=last`.
pub(crate) fn data_file(data: ObjectRef, records: &[OwnedRecord], base: i64, last: i64) -> DataFile {
    let timestamps = || records.iter().map(|record| record.timestamp);
    DataFile {
        base_offset: Offset(base),
        last_offset: Offset(last),
        rows: records.len() as u64,
        dropped: 0,
        min_timestamp: timestamps().min().unwrap_or(Timestamp::NONE),
        max_timestamp: timestamps().max().unwrap_or(Timestamp::NONE),
        log_bytes: 0,
        digest: String::new(),
        data,
        split: None,
        indexed: None,
        raw: None,
    }
}

pub(crate) fn manifest(files: Vec<DataFile>) -> Arc<Manifest> {
    Arc::new(Manifest {
        topic: TopicName::new("t").unwrap(),
        topic_id: TopicId::random(),
        partition: PartitionId(3),
        version: 1,
        epoch: 1,
        log_start_offset: files.first().map_or(Offset::ZERO, |file| file.base_offset),
        files: files.into_iter().map(Arc::new).collect(),
    })
}

/// Records with rising offsets from `base`, some missing where `holes`.
pub(crate) fn records(base: i64, count: Range<usize>, holes: bool) -> impl Strategy<Value = Vec<OwnedRecord>> {
    let bytes = || proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from));
    let headers = proptest::collection::vec(("[a-c.é]{0,3}", bytes()), 0..3);
    let step = if holes { 1..4_i64 } else { 1..2 };
    let one = (step, 0..40_i64, any::<bool>(), bytes(), bytes(), headers);
    proptest::collection::vec(one, count).prop_map(move |parts| {
        let mut next = base;
        let record = |(step, time, is_append, key, value, headers): (i64, i64, bool, _, _, _)| {
            let offset = Offset(next);
            next += step;
            let timestamp_type = if is_append { TimestampType::LogAppendTime } else { TimestampType::CreateTime };
            OwnedRecord { offset, timestamp: Timestamp(1_000 + time), timestamp_type, key, value, headers }
        };
        parts.into_iter().map(record).collect()
    })
}

/// A plain record.
pub(crate) fn record(offset: i64, timestamp: i64, value: impl Into<Bytes>) -> OwnedRecord {
    OwnedRecord {
        offset: Offset(offset),
        timestamp: Timestamp(timestamp),
        timestamp_type: TimestampType::CreateTime,
        key: None,
        value: Some(value.into()),
        headers: Vec::new(),
    }
}
