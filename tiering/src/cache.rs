//! What reading the cold tier keeps in memory: blocks of immutable objects, opened splits, and re-encoded batches ready
//! to send. moka, weighed by bytes, single-flight.
//!
//! Invariants:
//! - An object never changes under its key, so an entry is never stale.
//! - N readers that miss the same block or row group cost one download and, for row groups, one decode.
//! - A download, once begun, is finished even if the reader that began it goes away: another may wait for it.
//! - A scan does not evict the working set. Blocks live under TinyLFU, which admits a newcomer only if it is asked for
//!   more often than what it would displace; whole row groups bypass the blocks altogether ([`BlockCache::fetch`]).
//!   TinyLFU alone would also turn away the row group that a sequential reader takes its next ten answers from, so
//!   re-encoded row groups enter through a small window in plain LRU order, and stay beyond it only if TinyLFU likes
//!   them. What is read ahead enters the window only.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::future::{BoxFuture, FutureExt, Shared, try_join_all};
use moka::future::Cache;
use moka::policy::EvictionPolicy;
use moka::sync::Cache as SyncCache;
use object_store::path::Path as ObjectPath;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use xxhash_rust::xxh3::xxh3_128;

use crate::encode::EncodedRowGroup;
use crate::manifest::ObjectRef;
use crate::split::{SplitError, SplitReader};
use crate::store::{ColdStore, StoreError};

/// Bytes of one cached block. Small enough that reading one message from the pages of six columns costs kilobytes;
/// neighbouring blocks that one read misses are fetched in one request.
pub const BLOCK_BYTES: u64 = 32 << 10;
/// Largest ranged GET; a longer read is split into several, fetched side by side.
const FETCH_BYTES_MAX: u64 = 8 << 20;
/// What an entry costs beside its bytes.
const ENTRY_OVERHEAD_BYTES: usize = 128;
/// Share of the batch cache that takes every newcomer, as a divisor.
const WINDOW_SHARE: u64 = 3;

/// An object in cache keys: the hash of its key in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ObjectId(u128);

impl ObjectId {
    pub fn of(object: &ObjectRef) -> Self {
        Self(xxh3_128(object.key.as_bytes()))
    }
}

/// What a reader made the cache download. Downloads that it only waited for are counted by who began them.
#[derive(Debug, Default)]
pub struct ReadCounts {
    requests: AtomicU64,
    bytes: AtomicU64,
}

tokio::task_local! {
    /// Of the reader that this task works for.
    static COUNTS: Arc<ReadCounts>;
}

impl ReadCounts {
    /// Runs `reads`; what they download on this task is counted here.
    pub async fn count<F: Future>(self: &Arc<Self>, reads: F) -> F::Output {
        COUNTS.scope(self.clone(), reads).await
    }

    /// `reads`, to be run on another task or thread, counted where those of this task are.
    pub async fn carry<F: Future>(counts: Option<Arc<Self>>, reads: F) -> F::Output {
        match counts {
            Some(counts) => COUNTS.scope(counts, reads).await,
            None => reads.await,
        }
    }

    /// Those of this task, for [`Self::carry`].
    pub fn current() -> Option<Arc<Self>> {
        COUNTS.try_with(Arc::clone).ok()
    }

    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// Where blocks come from.
#[async_trait]
pub(crate) trait RangeSource: Send + Sync + 'static {
    async fn get_range(&self, key: &ObjectPath, range: Range<u64>) -> Result<Bytes, StoreError>;
}

#[async_trait]
impl RangeSource for ColdStore {
    async fn get_range(&self, key: &ObjectPath, range: Range<u64>) -> Result<Bytes, StoreError> {
        ColdStore::get_range(self, key, range).await
    }
}

type BlockKey = (ObjectId, u64);
/// A run of blocks under way; `None` when it failed.
type Flight = Shared<BoxFuture<'static, Option<Arc<FetchedRun>>>>;

/// Blocks of one download, cut apart; `first` is the index of the first.
struct FetchedRun {
    first: u64,
    blocks: Vec<Bytes>,
}

/// Blocks of immutable objects (Parquet footers and pages, split bytes). Cheap to clone.
#[derive(Clone)]
pub struct BlockCache {
    inner: Arc<Blocks>,
}

struct Blocks {
    source: Arc<dyn RangeSource>,
    runtime: Handle,
    /// Of the kind that never makes a reader wait: searches look blocks up where they must not.
    blocks: SyncCache<BlockKey, Bytes>,
    /// Blocks being downloaded; each entry is removed by the download that made it.
    in_flight: Mutex<HashMap<BlockKey, Flight>>,
}

impl BlockCache {
    /// `runtime`: where downloads run.
    pub fn new(store: ColdStore, max_bytes: u64, runtime: Handle) -> Self {
        Self::over(Arc::new(store), max_bytes, runtime)
    }

    pub(crate) fn over(source: Arc<dyn RangeSource>, max_bytes: u64, runtime: Handle) -> Self {
        let blocks = SyncCache::builder()
            .max_capacity(max_bytes)
            .weigher(|_, block: &Bytes| weight(block.len()))
            .eviction_policy(EvictionPolicy::tiny_lfu())
            .build();
        Self { inner: Arc::new(Blocks { source, runtime, blocks, in_flight: Mutex::default() }) }
    }

    /// Bytes `range` of `object`, from memory as far as they are there. The range is cut at the end of the object.
    pub async fn read(&self, object: &ObjectRef, range: Range<u64>) -> Result<Bytes, StoreError> {
        let range = range.start..range.end.min(object.size_bytes);
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let id = ObjectId::of(object);
        let (first, last) = (range.start / BLOCK_BYTES, (range.end - 1) / BLOCK_BYTES);
        let mut found = Vec::with_capacity((last - first + 1) as usize);
        for block in first..=last {
            found.push(self.inner.blocks.get(&(id, block)));
        }
        let missing = runs(&found, first);
        let fetched = try_join_all(missing.into_iter().map(|run| self.load_run(object, id, run))).await?;
        for (block, bytes) in fetched.into_iter().flatten() {
            if let Some(slot) = found.get_mut((block - first) as usize) {
                *slot = Some(bytes);
            }
        }
        Ok(assemble(found, first, range))
    }

    /// Several ranges at once; near ones share a request.
    pub async fn read_ranges(&self, object: &ObjectRef, ranges: Vec<Range<u64>>) -> Result<Vec<Bytes>, StoreError> {
        let mut order: Vec<&Range<u64>> = ranges.iter().collect();
        order.sort_by_key(|range| range.start);
        let mut joined: Vec<Range<u64>> = Vec::new();
        for range in order {
            match joined.last_mut() {
                Some(last) if range.start <= last.end.saturating_add(BLOCK_BYTES) => last.end = last.end.max(range.end),
                _ => joined.push(range.clone()),
            }
        }
        let read = try_join_all(joined.iter().map(|range| self.read(object, range.clone()))).await?;
        let part = |range: &Range<u64>| {
            let at = joined.partition_point(|whole| whole.start <= range.start).saturating_sub(1);
            let (Some(whole), Some(bytes)) = (joined.get(at), read.get(at)) else { return Bytes::new() };
            let clamp = |position: u64| ((position - whole.start) as usize).min(bytes.len());
            bytes.slice(clamp(range.start)..clamp(range.end.max(range.start)))
        };
        Ok(ranges.iter().map(part).collect())
    }

    /// Bytes `range` of `object` straight from the store, neither looked up nor kept: for scans.
    pub async fn fetch(&self, object: &ObjectRef, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.inner.get(&object.key, range, ReadCounts::current().as_deref()).await
    }

    /// Bytes `range` of `object` if all of them are in memory. Never waits.
    pub(crate) fn cached(&self, object: &ObjectRef, range: Range<u64>) -> Option<Bytes> {
        if range.is_empty() {
            return Some(Bytes::new());
        }
        let blocks = range.start / BLOCK_BYTES..(range.end - 1) / BLOCK_BYTES + 1;
        let run = self.inner.cached_run(ObjectId::of(object), blocks)?;
        let found = run.blocks.into_iter().map(Some).collect();
        let len = range.end - range.start;
        Some(assemble(found, run.first, range)).filter(|bytes| bytes.len() as u64 == len)
    }

    /// Blocks of `run`, all missing a moment ago: joins downloads under way and starts one for each gap between them.
    async fn load_run(
        &self,
        object: &ObjectRef,
        id: ObjectId,
        run: Range<u64>,
    ) -> Result<Vec<(u64, Bytes)>, StoreError> {
        let flights = self.join_or_start(object, id, run);
        let mut loaded = Vec::new();
        for (blocks, flight) in flights {
            let fetched = match flight.await {
                Some(fetched) => fetched,
                // The shared download failed and reported to nobody in particular: ask ourselves, for the error.
                None => {
                    let counts = ReadCounts::current();
                    let run = self.inner.fetch_run(&object.key, object.size_bytes, blocks.clone(), counts.as_deref());
                    Arc::new(run.await?)
                }
            };
            for block in blocks {
                if let Some(bytes) = fetched.blocks.get((block - fetched.first) as usize) {
                    loaded.push((block, bytes.clone()));
                }
            }
        }
        Ok(loaded)
    }

    fn join_or_start(&self, object: &ObjectRef, id: ObjectId, run: Range<u64>) -> Vec<(Range<u64>, Flight)> {
        let blocks_max = FETCH_BYTES_MAX / BLOCK_BYTES;
        let mut flights: Vec<(Range<u64>, Flight)> = Vec::new();
        let mut in_flight = self.inner.in_flight.lock();
        let mut block = run.start;
        while block < run.end {
            if let Some(flight) = in_flight.get(&(id, block)) {
                flights.push((block..block + 1, flight.clone()));
                block += 1;
                continue;
            }
            let end = (block..run.end.min(block + blocks_max))
                .find(|next| in_flight.contains_key(&(id, *next)))
                .unwrap_or(run.end.min(block + blocks_max));
            let flight = self.start(object, id, block..end);
            in_flight.extend((block..end).map(|block| ((id, block), flight.clone())));
            flights.push((block..end, flight));
            block = end;
        }
        flights
    }

    /// A download of `blocks` that runs on its own and outlives its readers.
    fn start(&self, object: &ObjectRef, id: ObjectId, blocks: Range<u64>) -> Flight {
        let (inner, key, size) = (self.inner.clone(), object.key.clone(), object.size_bytes);
        let counts = ReadCounts::current();
        let task = self.inner.runtime.spawn(async move {
            let landing = Landing { inner: &inner, id, blocks: blocks.clone() };
            // A download that ended between our lookup and now has left its blocks in the cache.
            let fetched = match inner.cached_run(id, blocks.clone()) {
                Some(cached) => Some(cached),
                None => match inner.fetch_run(&key, size, blocks, counts.as_deref()).await {
                    Ok(run) => {
                        for (block, bytes) in (run.first..).zip(&run.blocks) {
                            inner.blocks.insert((id, block), bytes.clone());
                        }
                        Some(run)
                    }
                    Err(_) => None,
                },
            };
            drop(landing);
            fetched.map(Arc::new)
        });
        async move { task.await.ok().flatten() }.boxed().shared()
    }
}

/// Takes a download off the list of those under way, however it ends.
struct Landing<'a> {
    inner: &'a Blocks,
    id: ObjectId,
    blocks: Range<u64>,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        let mut in_flight = self.inner.in_flight.lock();
        for block in self.blocks.clone() {
            in_flight.remove(&(self.id, block));
        }
    }
}

impl Blocks {
    async fn get(&self, key: &str, range: Range<u64>, counts: Option<&ReadCounts>) -> Result<Bytes, StoreError> {
        if let Some(counts) = counts {
            counts.requests.fetch_add(1, Ordering::Relaxed);
        }
        let bytes = self.source.get_range(&ObjectPath::from(key), range).await?;
        if let Some(counts) = counts {
            counts.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        Ok(bytes)
    }

    async fn fetch_run(
        &self,
        key: &str,
        size: u64,
        blocks: Range<u64>,
        counts: Option<&ReadCounts>,
    ) -> Result<FetchedRun, StoreError> {
        let range = blocks.start * BLOCK_BYTES..(blocks.end * BLOCK_BYTES).min(size);
        let bytes = self.get(key, range, counts).await?;
        let first = blocks.start;
        if blocks.end - blocks.start == 1 {
            return Ok(FetchedRun { first, blocks: vec![bytes] });
        }
        // Copied, so that one block that stays does not hold the memory of all.
        let blocks = bytes.chunks(BLOCK_BYTES as usize).map(Bytes::copy_from_slice).collect();
        Ok(FetchedRun { first, blocks })
    }

    fn cached_run(&self, id: ObjectId, blocks: Range<u64>) -> Option<FetchedRun> {
        let first = blocks.start;
        let blocks: Option<Vec<Bytes>> = blocks.map(|block| self.blocks.get(&(id, block))).collect();
        Some(FetchedRun { first, blocks: blocks? })
    }
}

/// Runs of blocks that are not there.
fn runs(found: &[Option<Bytes>], first: u64) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for (block, _) in (first..).zip(found).filter(|(_, bytes)| bytes.is_none()) {
        match runs.last_mut() {
            Some(run) if run.end == block => run.end += 1,
            _ => runs.push(block..block + 1),
        }
    }
    runs
}

/// The bytes of `range` out of the blocks that hold it; `first` is the index of the first block. An object that is
/// shorter than its manifest says gives fewer bytes; its reader notices.
fn assemble(blocks: Vec<Option<Bytes>>, first: u64, range: Range<u64>) -> Bytes {
    let part = |block: u64, bytes: &Bytes| {
        let start = block * BLOCK_BYTES;
        let clamp = |position: u64| (position.saturating_sub(start) as usize).min(bytes.len());
        bytes.slice(clamp(range.start)..clamp(range.end))
    };
    let mut parts = (first..).zip(blocks).filter_map(|(block, bytes)| Some(part(block, &bytes?)));
    match (parts.next(), parts.next()) {
        (None, _) => Bytes::new(),
        (Some(only), None) => only,
        (Some(one), Some(two)) => {
            let mut whole = BytesMut::with_capacity((range.end - range.start) as usize);
            whole.extend_from_slice(&one);
            whole.extend_from_slice(&two);
            parts.for_each(|part| whole.extend_from_slice(&part));
            whole.freeze()
        }
    }
}

fn weight(len_bytes: usize) -> u32 {
    u32::try_from(len_bytes.saturating_add(ENTRY_OVERHEAD_BYTES)).unwrap_or(u32::MAX)
}

/// Archived splits that are open, weighed by what that takes.
#[derive(Clone)]
pub struct SplitCache {
    blocks: BlockCache,
    open: Cache<ObjectId, SplitReader>,
}

impl SplitCache {
    pub fn new(blocks: BlockCache, max_bytes: u64) -> Self {
        let open = Cache::builder()
            .max_capacity(max_bytes)
            .weigher(|_, split: &SplitReader| weight(split.memory_bytes()))
            .eviction_policy(EvictionPolicy::tiny_lfu())
            .build();
        Self { blocks, open }
    }

    /// The split, if it is open. Never waits.
    pub fn opened(&self, object: &ObjectRef) -> Option<SplitReader> {
        self.open.get(&ObjectId::of(object)).now_or_never().flatten()
    }

    /// The split, opened by whoever asks first.
    pub async fn open(&self, object: &ObjectRef) -> Result<SplitReader, Arc<SplitError>> {
        let open = SplitReader::open_in_place(&self.blocks, object);
        self.open.try_get_with(ObjectId::of(object), open).await
    }
}

/// A row group of an object.
pub type RowGroupKey = (ObjectId, usize);

/// Row groups re-encoded as record batches, ready to send.
#[derive(Clone)]
pub struct BatchCache {
    /// Every newcomer, in LRU order.
    window: Cache<RowGroupKey, Arc<EncodedRowGroup>>,
    /// What is asked for again and again.
    main: Cache<RowGroupKey, Arc<EncodedRowGroup>>,
}

impl BatchCache {
    pub fn new(max_bytes: u64) -> Self {
        let cache = |max_bytes, policy| {
            Cache::builder()
                .max_capacity(max_bytes)
                .weigher(|_, group: &Arc<EncodedRowGroup>| weight(group.weight_bytes()))
                .eviction_policy(policy)
                .build()
        };
        let window = max_bytes / WINDOW_SHARE;
        Self {
            window: cache(window, EvictionPolicy::lru()),
            main: cache(max_bytes - window, EvictionPolicy::tiny_lfu()),
        }
    }

    /// The row group, made by `load` unless it is there or on its way.
    pub async fn get<E: Send + Sync + 'static>(
        &self,
        key: RowGroupKey,
        load: impl Future<Output = Result<Arc<EncodedRowGroup>, E>>,
    ) -> Result<Arc<EncodedRowGroup>, Arc<E>> {
        // Also tells TinyLFU that the key was asked for.
        if let Some(group) = self.main.get(&key).await {
            return Ok(group);
        }
        let group = self.window.try_get_with(key, load).await?;
        self.main.insert(key, group.clone()).await;
        Ok(group)
    }

    /// As [`Self::get`], for what nobody has asked for yet: does not touch the working set.
    pub async fn read_ahead<E: Send + Sync + 'static>(
        &self,
        key: RowGroupKey,
        load: impl Future<Output = Result<Arc<EncodedRowGroup>, E>>,
    ) -> Result<(), Arc<E>> {
        self.window.try_get_with(key, load).await.map(drop)
    }

    pub fn contains(&self, key: &RowGroupKey) -> bool {
        self.window.contains_key(key) || self.main.contains_key(key)
    }
}

#[cfg(test)]
mod tests;
