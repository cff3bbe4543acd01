//! Helpers of this crate's tests: records, a store that fails when told to, and everything in between.

pub mod chaos;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;
use proptest::prelude::*;
use thermocline_config::{ByteSize, HumanDuration, StoreConfig, TieringConfig};
use thermocline_ingest::clock::ManualClock;
use thermocline_ingest::model::{Offset, PartitionId, Timestamp, TimestampType, TopicId, TopicName};
use thermocline_ingest::record::{BatchDecoder, BatchEncoder, BatchError, Record};
use uuid::Uuid;

use crate::background::Background;
use crate::manifest::ManifestStore;
use crate::metrics::TieringMetrics;
use crate::parquet::ParquetOptions;
use crate::paths::PartitionPath;
use crate::pipeline::StageOptions;
use crate::store::ColdStore;
use crate::throttle::Throttle;

/// Key, value, headers.
pub type TestRecord = (i64, Option<Vec<u8>>, Option<Vec<u8>>, Vec<(String, Option<Vec<u8>>)>);

/// Any record that the broker would take.
pub fn any_record() -> impl Strategy<Value = TestRecord> {
    let bytes = || prop::option::of(prop::collection::vec(any::<u8>(), 0..40));
    let time = -1_000_000..2_000_000_000_000_i64;
    (time, bytes(), bytes(), prop::collection::vec((".{0,5}", bytes()), 0..4))
}

/// `count` records that differ, with keys, nulls and headers among them.
pub fn some_records(count: usize) -> Vec<TestRecord> {
    (0..count)
        .map(|n| {
            let key = (n % 3 != 0).then(|| format!("key {}", n % 7).into_bytes());
            let value = (n % 11 != 0).then(|| format!("event number {n} of the day").into_bytes());
            let headers = (0..n % 3).map(|h| (format!("h{h}"), (h != 1).then(|| vec![b'x'; h]))).collect();
            (1_700_000_000_000 + n as i64, key, value, headers)
        })
        .collect()
}

/// One batch from `base` on.
pub fn batch(base: i64, records: &[TestRecord]) -> Bytes {
    let mut encoder = BatchEncoder::new(TimestampType::CreateTime);
    for (offset, (time, key, value, headers)) in (base..).zip(records) {
        let headers = headers.iter().map(|(key, value)| (key.as_bytes(), value.as_deref()));
        encoder.push(Offset(offset), Timestamp(*time), key.as_deref(), value.as_deref(), headers);
    }
    encoder.finish().unwrap()
}

/// The records as batches of `size`, offsets from `base` on.
pub fn batches(base: i64, records: &[TestRecord], size: usize) -> Vec<Bytes> {
    records.chunks(size).zip(0..).map(|(chunk, n)| batch(base + (n * size) as i64, chunk)).collect()
}

/// A batch whose records are rubbish under a valid checksum: said to be zstd, and is not.
pub fn undecodable(base: i64, records: usize) -> Bytes {
    let mut bytes = batch(base, &some_records(records)).to_vec();
    bytes[22] |= 4;
    reseal(&mut bytes);
    bytes.into()
}

fn reseal(batch: &mut [u8]) {
    // CRC-32C, bit by bit: a test needs no table.
    let crc = !batch[21..].iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & 0_u32.wrapping_sub(crc & 1)))
    });
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
}

/// `THERMOCLINE_WRITE_GOLDEN=1` makes the golden files of a new version; never use it for an existing one.
pub fn write_golden_if_asked(name: &str, bytes: &[u8]) {
    if std::env::var_os("THERMOCLINE_WRITE_GOLDEN").is_some() {
        std::fs::write(format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR")), bytes).unwrap();
    }
}

pub fn for_each_record(batches: &[Bytes], mut f: impl FnMut(&Record<'_>)) {
    let mut decoder = BatchDecoder::new(1 << 20);
    for batch in batches {
        decoder
            .for_each::<BatchError>(batch, |record| {
                f(&record);
                Ok(())
            })
            .unwrap();
    }
}

pub fn path() -> PartitionPath {
    PartitionPath::new(TopicName::new("orders").unwrap(), TopicId(Uuid::from_u128(7)), PartitionId(3))
}

pub fn metrics() -> Arc<TieringMetrics> {
    Arc::new(TieringMetrics::new(&prometheus::Registry::new()).unwrap())
}

/// Background threads that never rest.
pub fn background_threads() -> Background {
    let throttle = Throttle::new(0, Arc::default(), metrics().background_duty.clone(), Box::new(|| false));
    Background::new(Arc::new(throttle), 2)
}

/// A manifest store whose clock stands at zero.
pub fn manifest_store(store: ColdStore, epoch: u64) -> ManifestStore {
    ManifestStore::new(store, epoch, Arc::new(ManualClock::default()))
}

/// Small pages and row groups, so that a few records make several.
pub fn parquet_options() -> ParquetOptions {
    ParquetOptions { zstd_level: 1, row_group_bytes: 4096, page_bytes: 512 }
}

pub fn stage_options(file_bytes_max: usize) -> StageOptions {
    StageOptions { path: path(), parquet: parquet_options(), file_bytes_max, split: None }
}

pub fn tiering_config() -> TieringConfig {
    TieringConfig { memory_max: ByteSize::mib(64), ..TieringConfig::default() }
}

pub fn store_config(max_retries: usize) -> StoreConfig {
    StoreConfig { max_retries, request_timeout: HumanDuration::secs(10), ..StoreConfig::default() }
}

/// Whether the operation that fails has had its effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Before,
    After,
}

/// A store in memory whose operations can be made to fail. Survivable faults: any operation fails with or without
/// its effect; from then on either all fail (the process died) or none does (the network hiccupped).
#[derive(Clone, Debug)]
pub struct FaultyStore {
    pub inner: Arc<InMemory>,
    state: Arc<FaultState>,
}

#[derive(Debug)]
struct FaultState {
    operations: AtomicUsize,
    /// What folders list instead of what they hold.
    listed: Mutex<Option<Vec<ObjectMeta>>>,
    /// Is there, and cannot be read.
    unreadable: Mutex<Option<ObjectPath>>,
    fail_at: usize,
    fault: Fault,
    fails_on: bool,
}

impl FaultyStore {
    pub fn healthy(inner: Arc<InMemory>) -> Self {
        Self::new(inner, usize::MAX, Fault::Before, false)
    }
    /// Operation number `fail_at` (from 0) fails, and all after it.
    pub fn dying(inner: Arc<InMemory>, fail_at: usize, fault: Fault) -> Self {
        Self::new(inner, fail_at, fault, true)
    }
    /// Operation number `fail_at` (from 0) fails, once.
    pub fn stumbling(inner: Arc<InMemory>, fail_at: usize, fault: Fault) -> Self {
        Self::new(inner, fail_at, fault, false)
    }
    fn new(inner: Arc<InMemory>, fail_at: usize, fault: Fault, fails_on: bool) -> Self {
        let state = FaultState {
            operations: AtomicUsize::new(0),
            listed: Mutex::default(),
            unreadable: Mutex::default(),
            fail_at,
            fault,
            fails_on,
        };
        Self { inner, state: Arc::new(state) }
    }
    pub fn has_failed(&self) -> bool {
        self.state.operations.load(Ordering::SeqCst) > self.state.fail_at
    }
    /// Requests so far.
    pub fn operations(&self) -> usize {
        self.state.operations.load(Ordering::SeqCst)
    }
    /// From now on folders list what they hold now.
    pub async fn freeze_listings(&self) {
        let all = self.inner.list(None).try_collect().await.unwrap();
        *self.state.listed.lock() = Some(all);
    }
    /// From now on this object, and no other, is there and cannot be read.
    pub fn make_unreadable(&self, key: Option<ObjectPath>) {
        *self.state.unreadable.lock() = key;
    }
    pub fn cold(&self, max_retries: usize) -> ColdStore {
        ColdStore::new(Arc::new(self.clone()), &store_config(max_retries))
    }
    pub async fn keys(&self) -> Vec<String> {
        let mut keys: Vec<_> =
            self.inner.list(None).map_ok(|meta| meta.location.to_string()).try_collect().await.unwrap();
        keys.sort_unstable();
        keys
    }

    async fn run<T>(&self, operation: impl Future<Output = Result<T>>) -> Result<T> {
        let n = self.state.operations.fetch_add(1, Ordering::SeqCst);
        let failed = || object_store::Error::Generic { store: "FaultyStore", source: format!("fault {n}").into() };
        if n == self.state.fail_at && self.state.fault == Fault::After {
            let _ = operation.await;
            return Err(failed());
        }
        if n == self.state.fail_at || (n > self.state.fail_at && self.state.fails_on) {
            return Err(failed());
        }
        operation.await
    }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultyStore")
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, location: &ObjectPath, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.run(self.inner.put_opts(location, payload, opts)).await
    }
    async fn put_multipart_opts(
        &self,
        location: &ObjectPath,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.run(self.inner.put_multipart_opts(location, opts)).await
    }
    async fn get_opts(&self, location: &ObjectPath, options: GetOptions) -> Result<GetResult> {
        let is_unreadable = !options.head && self.state.unreadable.lock().as_ref() == Some(location);
        if is_unreadable {
            return Err(object_store::Error::Generic { store: "FaultyStore", source: "bad sector".into() });
        }
        self.run(self.inner.get_opts(location, options)).await
    }
    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<ObjectPath>>,
    ) -> BoxStream<'static, Result<ObjectPath>> {
        let store = self.clone();
        let delete = move |location: Result<ObjectPath>| {
            let store = store.clone();
            async move {
                let location = location?;
                let one = futures::stream::iter([Ok(location.clone())]).boxed();
                store.run(store.inner.delete_stream(one).try_collect::<Vec<_>>()).await?;
                Ok(location)
            }
        };
        locations.then(delete).boxed()
    }
    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, prefix) = (self.clone(), prefix.cloned());
        let listed = async move {
            let all = store.inner.list(prefix.as_ref()).try_collect::<Vec<_>>();
            store.run(all).await.map(|all| futures::stream::iter(all.into_iter().map(Ok)))
        };
        futures::stream::once(listed).try_flatten().boxed()
    }
    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> Result<ListResult> {
        let frozen = self.state.listed.lock().clone();
        if let (Some(mut objects), Some(folder)) = (frozen, prefix) {
            objects.retain(|meta| meta.location.prefix_match(folder).is_some_and(|rest| rest.count() == 1));
            return self.run(async { Ok(ListResult { objects, common_prefixes: Vec::new() }) }).await;
        }
        self.run(self.inner.list_with_delimiter(prefix)).await
    }
    async fn copy_opts(&self, from: &ObjectPath, to: &ObjectPath, options: CopyOptions) -> Result<()> {
        self.run(self.inner.copy_opts(from, to, options)).await
    }
}
