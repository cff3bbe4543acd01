//! The cold half of the reader: batches, single records and places in time out of the files that a manifest names.
//! Nothing here knows of the hot log; which offsets are asked of it is decided in `reader.rs`.

mod plan;
mod record_cache;
mod records;

use std::collections::HashSet;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use moka::future::Cache;
use parking_lot::Mutex;
use thermocline_config::CacheConfig;
use thermocline_ingest::model::{Offset, PartitionId, Timestamp, TopicId};
use thermocline_ingest::read::{BatchRun, ReadRange, TimestampedOffset};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, spawn_blocking};

use self::record_cache::RecordCache;
use crate::cache::{BatchCache, BlockCache, ObjectId, RowGroupKey};
use crate::encode::{BATCH_BYTES_MAX, EncodeError, EncodedRowGroup, RawBytes, encode};
use crate::manifest::{DataFile, Manifest};
use crate::parquet_read::{ColdFile, ParquetReadError, ParquetReader};
use crate::store::StoreError;

/// Share of `cache.batches_max_bytes` that goes to Parquet footers and page indexes, as a divisor.
const METADATA_SHARE: u64 = 8;
/// Share of it that goes to single records, as a divisor.
const RECORDS_SHARE: u64 = 16;
/// Positions remembered to recognise readers that come back for what follows.
const SEQUENTIAL_READERS_MAX: u64 = 4096;
/// Encoded size of a row group relative to its Parquet bytes, for the first guess at the buffer.
const EXPANSION_GUESS: u64 = 4;
/// Largest such guess.
const ENCODED_GUESS_MAX: u64 = 16 << 20;

/// Why the cold tier could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ColdError {
    #[error(transparent)]
    Parquet(#[from] ParquetReadError),
    #[error(transparent)]
    Footer(Arc<ParquetReadError>),
    #[error("row group {group} of {key}")]
    Encode {
        key: String,
        group: usize,
        #[source]
        source: EncodeError,
    },
    #[error("raw batches in {key}")]
    Raw {
        key: String,
        #[source]
        source: StoreError,
    },
    #[error("raw batch at {base} in {key} has {found} bytes, {expected} expected")]
    RawLength { key: String, base: Offset, found: u64, expected: u64 },
    #[error("offset {offset} is not archived; the manifest (version {version}) ends at {archived_through}")]
    NotArchived { offset: Offset, version: u64, archived_through: Offset },
    #[error(transparent)]
    Shared(Arc<ColdError>),
    #[error("a read of the cold tier was stopped")]
    Stopped(#[from] JoinError),
    #[error("the broker is shutting down")]
    Closed,
}

impl From<Arc<ParquetReadError>> for ColdError {
    fn from(error: Arc<ParquetReadError>) -> Self {
        Self::Footer(error)
    }
}

/// What the archive has of a range, as far as it was read.
pub(crate) struct ColdRun {
    pub batches: BatchRun,
    /// Where the archive ends, if it has nothing between the end of `batches` and there. None where more may follow:
    /// the limits of the read, or the end of its range, were reached before.
    pub exhausted: Option<Offset>,
}

/// Reads what manifests name. Cheap to clone.
#[derive(Clone)]
pub(crate) struct ColdReader {
    inner: Arc<Inner>,
}

struct Inner {
    parquet: ParquetReader,
    batches: BatchCache,
    records: RecordCache,
    /// Row groups fetched and decoded at once.
    permits: Semaphore,
    prefetch_row_groups: usize,
    /// Where sequential readers will go on.
    sequential: Cache<(TopicId, PartitionId, Offset), ()>,
    /// Row groups being read ahead.
    ahead: Mutex<HashSet<RowGroupKey>>,
}

impl ColdReader {
    pub fn new(blocks: BlockCache, config: &CacheConfig) -> Self {
        let max_bytes = config.batches_max_bytes.as_u64();
        let (metadata_max_bytes, records_max_bytes) = (max_bytes / METADATA_SHARE, max_bytes / RECORDS_SHARE);
        Self {
            inner: Arc::new(Inner {
                parquet: ParquetReader::new(blocks, metadata_max_bytes),
                batches: BatchCache::new(max_bytes - metadata_max_bytes - records_max_bytes),
                records: RecordCache::new(records_max_bytes),
                permits: Semaphore::new(config.max_concurrent_reads.max(1)),
                prefetch_row_groups: config.prefetch_row_groups,
                sequential: Cache::builder().max_capacity(SEQUENTIAL_READERS_MAX).build(),
                ahead: Mutex::default(),
            }),
        }
    }

    /// Batches of `range` as far as the manifest reaches; whole, contiguous, starting with the one that holds
    /// `range.from` or the first after it.
    pub async fn read(&self, manifest: &Arc<Manifest>, range: &ReadRange) -> Result<ColdRun, ColdError> {
        if range.from < range.until && manifest.file_for(range.from).is_none() {
            let (version, archived_through) = (manifest.version, manifest.archived_through());
            return Err(ColdError::NotArchived { offset: range.from, version, archived_through });
        }
        let reader = |offset| (manifest.topic_id, manifest.partition, offset);
        let is_sequential = self.inner.sequential.remove(&reader(range.from)).await.is_some();
        let mut run = BatchRun::default();
        let (mut at, mut left) = (range.from, range.max_bytes);
        let exhausted = loop {
            let Some(file) = manifest.file_for(at) else { break Some(manifest.archived_through()) };
            if file.base_offset >= range.until {
                break None;
            }
            let opened = self.inner.parquet.file(file).await?;
            let group = opened.row_group_of(at);
            let encoded = self.row_group(file, &opened, group).await?;
            let slice = encoded.slice(at, range.until, left, range.at_least_one && run.chunks.is_empty());
            left = left.saturating_sub(slice.bytes.len());
            at = if slice.exhausted { opened.span(group).end } else { slice.next };
            if !slice.bytes.is_empty() {
                run.chunks.push(slice.bytes);
            }
            // Another row group is not worth waiting for when its first batch would hardly fit.
            if !slice.exhausted || at >= range.until || (left < BATCH_BYTES_MAX && !run.chunks.is_empty()) {
                break None;
            }
        };
        if !run.chunks.is_empty() {
            self.inner.sequential.insert(reader(at), ()).await;
        }
        if is_sequential {
            self.read_ahead(manifest, at);
        }
        Ok(ColdRun { batches: run, exhausted })
    }

    /// The first record of `within` in offset order whose timestamp is at or after `timestamp`.
    pub async fn offset_for_timestamp(
        &self,
        manifest: &Manifest,
        timestamp: Timestamp,
        within: Range<Offset>,
    ) -> Result<Option<TimestampedOffset>, ColdError> {
        for file in files_of(manifest, &within).filter(|file| file.max_timestamp >= timestamp) {
            let opened = self.inner.parquet.file(file).await?;
            for group in 0..opened.row_groups() {
                if !overlap(&opened.span(group), &within) {
                    continue;
                }
                let visit = |offset, found| match found >= timestamp && within.contains(&offset) {
                    true => ControlFlow::Break(TimestampedOffset { offset, timestamp: found }),
                    false => ControlFlow::Continue(()),
                };
                if let Some(found) = self.inner.parquet.visit_timestamps(&opened, group, timestamp, visit).await? {
                    return Ok(Some(found));
                }
            }
        }
        Ok(None)
    }

    /// The record of `within` with the largest timestamp; the first of several equal ones.
    pub async fn max_timestamp(
        &self,
        manifest: &Manifest,
        within: Range<Offset>,
    ) -> Result<Option<TimestampedOffset>, ColdError> {
        let mut files: Vec<&Arc<DataFile>> = files_of(manifest, &within).collect();
        // Largest first, so that most files are ruled out by their bounds; equal ones stay in offset order.
        files.sort_by_key(|file| std::cmp::Reverse(file.max_timestamp));
        let mut best: Option<TimestampedOffset> = None;
        for file in files {
            let beats =
                |best: TimestampedOffset| (file.max_timestamp, best.offset) > (best.timestamp, file.base_offset);
            if !best.is_none_or(beats) {
                continue;
            }
            let opened = self.inner.parquet.file(file).await?;
            for group in 0..opened.row_groups() {
                if !overlap(&opened.span(group), &within) {
                    continue;
                }
                let at_least = best.map_or(Timestamp(i64::MIN), |best| best.timestamp);
                let visit = |offset: Offset, timestamp: Timestamp| {
                    let is_better = best.is_none_or(|best| (timestamp, best.offset) > (best.timestamp, offset));
                    if within.contains(&offset) && is_better {
                        best = Some(TimestampedOffset { offset, timestamp });
                    }
                    ControlFlow::<()>::Continue(())
                };
                self.inner.parquet.visit_timestamps(&opened, group, at_least, visit).await?;
            }
        }
        Ok(best)
    }

    async fn row_group(
        &self,
        file: &Arc<DataFile>,
        opened: &Arc<ColdFile>,
        group: usize,
    ) -> Result<Arc<EncodedRowGroup>, ColdError> {
        let load = async {
            let _permit = self.inner.permits.acquire().await.map_err(|_| ColdError::Closed)?;
            self.inner.load(file, opened, group).await
        };
        self.inner.batches.get((ObjectId::of(&file.data), group), load).await.map_err(ColdError::Shared)
    }

    /// Reads the row groups from `at` on into the cache, in the background; stops as soon as nothing is idle.
    fn read_ahead(&self, manifest: &Arc<Manifest>, at: Offset) {
        if self.inner.prefetch_row_groups == 0 {
            return;
        }
        let (inner, manifest) = (self.inner.clone(), manifest.clone());
        tokio::spawn(async move {
            let mut at = at;
            for _ in 0..inner.prefetch_row_groups {
                let Some(file) = manifest.file_for(at) else { return };
                match inner.read_one_ahead(file, at).await {
                    Ok(Some(next)) => at = next,
                    Ok(None) => return,
                    Err(error) => {
                        tracing::debug!(%error, offset = %at, "reading ahead failed; the reader will see for itself");
                        return;
                    }
                }
            }
        });
    }
}

impl Inner {
    /// Where the row group after the one that serves `at` starts; `None` when this one cannot be read now.
    async fn read_one_ahead(&self, file: &Arc<DataFile>, at: Offset) -> Result<Option<Offset>, ColdError> {
        let opened = self.parquet.file(file).await?;
        let group = opened.row_group_of(at);
        let key = (ObjectId::of(&file.data), group);
        if !self.batches.contains(&key) {
            let Ok(_permit) = self.permits.try_acquire() else { return Ok(None) };
            if !self.ahead.lock().insert(key) {
                return Ok(None);
            }
            let _mark = AheadMark { ahead: &self.ahead, key };
            self.batches.read_ahead(key, self.load(file, &opened, group)).await.map_err(ColdError::Shared)?;
        }
        Ok(Some(opened.span(group).end))
    }

    async fn load(
        &self,
        file: &DataFile,
        opened: &Arc<ColdFile>,
        group: usize,
    ) -> Result<Arc<EncodedRowGroup>, ColdError> {
        let span = opened.span(group);
        let raw = self.raw_batches(file, &span).await?;
        let fetched = self.parquet.fetch_row_group(opened, group).await?;
        let opened = opened.clone();
        let encoded = spawn_blocking(move || {
            let encode_error = |source| ColdError::Encode { key: opened.object.key.clone(), group, source };
            let Some(fetched) = fetched else {
                return encode(std::iter::empty(), span, raw, 0).map_err(encode_error);
            };
            let expected = (fetched.len_bytes() * EXPANSION_GUESS).min(ENCODED_GUESS_MAX) as usize;
            let rows = opened.decode(group, fetched)?;
            encode(rows, span, raw, expected).map_err(encode_error)
        });
        Ok(Arc::new(encoded.await??))
    }

    /// Batches kept raw whose offsets lie in `span`.
    async fn raw_batches(&self, file: &DataFile, span: &Range<Offset>) -> Result<Vec<RawBytes>, ColdError> {
        let Some(raw) = &file.raw else { return Ok(Vec::new()) };
        let key = || raw.object.key.clone();
        let mut found = Vec::new();
        for batch in raw.batches.iter().filter(|batch| span.contains(&batch.base_offset)) {
            let end = batch.position.saturating_add(batch.size_bytes);
            let bytes = self.parquet.blocks().read(&raw.object, batch.position..end).await;
            let bytes = bytes.map_err(|source| ColdError::Raw { key: key(), source })?;
            if bytes.len() as u64 != batch.size_bytes {
                let (found, expected) = (bytes.len() as u64, batch.size_bytes);
                return Err(ColdError::RawLength { key: key(), base: batch.base_offset, found, expected });
            }
            found.push(RawBytes { base: batch.base_offset, last: batch.last_offset, bytes });
        }
        Ok(found)
    }
}

/// Takes a row group off the list of those being read ahead.
struct AheadMark<'a> {
    ahead: &'a Mutex<HashSet<RowGroupKey>>,
    key: RowGroupKey,
}

impl Drop for AheadMark<'_> {
    fn drop(&mut self) {
        self.ahead.lock().remove(&self.key);
    }
}

fn files_of<'a>(manifest: &'a Manifest, within: &Range<Offset>) -> impl Iterator<Item = &'a Arc<DataFile>> + use<'a> {
    let within = within.clone();
    let first = manifest.files.partition_point(|file| file.last_offset < within.start);
    manifest.files.iter_from(first).take_while(move |file| file.base_offset < within.end)
}

fn overlap(a: &Range<Offset>, b: &Range<Offset>) -> bool {
    a.start < b.end && b.start < a.end
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
