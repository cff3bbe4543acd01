//! The object store behind the cold tier: timeouts, retries, budgets, caps on concurrency, durability of the local file
//! system.
//!
//! **One retry loop.** Every request goes through `ColdStore::request`; the retries that `object_store` brings for
//! cloud stores are switched off (`store/url.rs`), so that the two do not multiply. An attempt waits for its budget,
//! takes a permit, has `request_timeout`, and is repeated up to `max_retries` times with jittered exponential waits up
//! to [`RETRY_WAIT_MAX`] while the failure may pass: everything but a missing object, a refused permission, a failed
//! precondition and a request that the store cannot do at all.
//!
//! **Whose request.** A handle carries the [`Work`] it is for ([`ColdStore::of`]). Archive and readers have permits and
//! budgets apart (`store/work.rs`), and requests and bytes are counted apart. A handle that was not told belongs to
//! maintenance: what nobody has classified must not slow consumers down. Retries draw from the budget like first
//! attempts. No permit is held while a request waits for its budget.
//!
//! **Create-if-absent with a lost answer.** A conditional create whose answer was lost is repeated and then finds its
//! own object. So "exists already" on a repeated create is not believed: the object is read and compared, and the
//! same bytes count as created. Callers write something of their own into what they create (epoch, attempt ids), so
//! that the bytes of two writers differ.
//!
//! **Large objects** go up in parts of [`PART_BYTES`], each a request of its own; an upload that is given up is
//! aborted. A crash in between leaves parts that no listing shows: a bucket needs a lifecycle rule against
//! incomplete multipart uploads.
//!
//! **Durability.** When a write returns, the object survives a power loss. Cloud stores promise that themselves; for
//! the local file system see `store/local.rs`. What a crash leaves of a local write is [`ColdStore::delete_staging`]'s
//! to clear away.

mod local;
mod url;
mod work;

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::multipart::MultipartStore;
use object_store::path::Path as ObjectPath;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use prometheus::IntCounterVec;
use rand::Rng;
use thermocline_config::StoreConfig;
use thermocline_ingest::model::Timestamp;
use tokio::time::Instant;

use crate::metrics::TieringMetrics;
pub use local::{DurableFileSystem, Staging};
use work::Lanes;
pub use work::{StoreLimits, Work};

/// Objects of at least this size are written and read in parts.
pub const MULTIPART_MIN_BYTES: usize = 32 << 20;
/// Bytes of one part; S3 asks for at least 5 MiB in all but the last, and allows 10 000 parts.
pub const PART_BYTES: usize = 16 << 20;
/// Parts of one object under way at once.
const PARTS_IN_FLIGHT: usize = 4;
/// First wait before a retry; doubled each time.
const RETRY_WAIT_MIN: Duration = Duration::from_millis(100);
/// Longest wait before a retry.
pub const RETRY_WAIT_MAX: Duration = Duration::from_secs(10);

/// Why a request to the store failed for good.
#[derive(Debug, thiserror::Error)]
#[error("{op} {key} failed after {attempts} attempts")]
pub struct StoreError {
    /// Name of the operation, as in the metrics.
    pub op: &'static str,
    pub key: String,
    pub attempts: usize,
    pub source: StoreFailure,
}

/// What went wrong in the last attempt.
#[derive(Debug, thiserror::Error)]
pub enum StoreFailure {
    #[error(transparent)]
    Request(#[from] object_store::Error),
    #[error("no answer within {0:?} ([store] request_timeout)")]
    Timeout(Duration),
    #[error("{found} bytes came back where {expected} were asked for")]
    Length { expected: u64, found: u64 },
    #[error(
        "[store] url {url:?}: {reason}; use s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or file:///dir"
    )]
    Url { url: String, reason: String },
    #[error("folder {0} does not exist")]
    NoFolder(PathBuf),
    #[error("the store is shutting down")]
    Closed,
}

impl StoreFailure {
    fn is_transient(&self) -> bool {
        use object_store::Error;
        match self {
            Self::Timeout(_) | Self::Length { .. } => true,
            Self::Url { .. } | Self::NoFolder(_) | Self::Closed => false,
            // Whatever else a server answers (5xx, 429, resets, half answers) comes as `Generic`.
            Self::Request(error) => matches!(error, Error::Generic { .. } | Error::JoinError { .. }),
        }
    }
}

impl StoreError {
    /// The object, or the bucket, is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self.source, StoreFailure::Request(object_store::Error::NotFound { .. }))
    }

    /// Trying again later may help; the effect of a write is then unknown.
    pub fn is_transient(&self) -> bool {
        self.source.is_transient()
    }
}

/// Cheap to clone. Every request has a timeout and jittered retries, and takes a permit and its share of the budget of
/// the work that this handle is for.
#[derive(Clone)]
pub struct ColdStore {
    shared: Arc<Shared>,
    work: Work,
}

struct Shared {
    inner: Arc<dyn ObjectStore>,
    /// Where the store can take an object in parts.
    parts: Option<Arc<dyn MultipartStore>>,
    /// Where the store is a local folder.
    folder: Option<DurableFileSystem>,
    url: String,
    request_timeout: Duration,
    max_retries: usize,
    lanes: Lanes,
    metrics: OnceLock<Arc<TieringMetrics>>,
}

impl fmt::Debug for ColdStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ColdStore").field(&self.shared.url).finish()
    }
}

impl ColdStore {
    /// From `[store]` config; `data_dir` for the default `<data dir>/cold`. Blocking for a local folder, which is made.
    pub fn open(config: &StoreConfig, data_dir: &Path) -> Result<Self, StoreError> {
        let located = url::locate(config, data_dir).map_err(|source| not_opened(config, source))?;
        Ok(Self::build(located, config))
    }

    /// Like [`Self::open`], for who only reads: a local folder must be there already.
    pub fn open_existing(config: &StoreConfig, data_dir: &Path) -> Result<Self, StoreError> {
        url::check_folder(config, data_dir).map_err(|source| not_opened(config, source))?;
        Self::open(config, data_dir)
    }

    /// Any object_store implementation (tests, fault injection). Its own word on durability is taken: for a folder
    /// that must survive a power loss wrap [`DurableFileSystem`], not `LocalFileSystem`.
    pub fn new(inner: Arc<dyn ObjectStore>, config: &StoreConfig) -> Self {
        Self::build(url::Located { store: inner, parts: None, folder: None, url: config.url.clone() }, config)
    }

    fn build(located: url::Located, config: &StoreConfig) -> Self {
        Self {
            shared: Arc::new(Shared {
                inner: located.store,
                parts: located.parts,
                folder: located.folder,
                url: located.url,
                request_timeout: config.request_timeout.as_duration(),
                max_retries: config.max_retries,
                lanes: Lanes::new(config.max_concurrent_requests),
                metrics: OnceLock::new(),
            }),
            work: Work::Maintenance,
        }
    }

    /// The same store, for requests that are part of `work`.
    pub fn of(&self, work: Work) -> Self {
        Self { shared: self.shared.clone(), work }
    }

    /// Holds all handles to `limits` from now on. The first call wins.
    pub fn limit(&self, limits: StoreLimits) {
        self.shared.lanes.limit(limits);
    }

    /// Counts requests and bytes in `metrics` from now on. The first call wins.
    pub fn observe(&self, metrics: Arc<TieringMetrics>) {
        let _ = self.shared.metrics.set(metrics);
    }

    pub fn url(&self) -> &str {
        &self.shared.url
    }

    /// Writes an object whose key is fresh; durable on return.
    pub async fn put(&self, key: &ObjectPath, bytes: Bytes) -> Result<(), StoreError> {
        let size = bytes.len() as u64;
        match &self.shared.parts {
            Some(parts) if bytes.len() >= MULTIPART_MIN_BYTES => self.put_parts(parts.as_ref(), key, bytes).await?,
            _ => {
                let payload = PutPayload::from_bytes(bytes);
                let attempt =
                    || async { Ok(self.shared.inner.put_opts(key, payload.clone(), self.put_options()).await?) };
                self.request("put", key, size, attempt).await?;
            }
        }
        self.count_bytes(|metrics| &metrics.store_stored_bytes, size);
        Ok(())
    }

    /// Creates an object if the key is free; durable on return. `Ok(false)` when another object has the key already.
    pub async fn create(&self, key: &ObjectPath, bytes: Bytes) -> Result<bool, StoreError> {
        let payload = PutPayload::from_bytes(bytes.clone());
        let size = bytes.len() as u64;
        let mut attempts = 0_usize;
        let created = self
            .request("create", key, size, || {
                attempts += 1;
                let repeated = attempts > 1;
                let payload = payload.clone();
                async move {
                    let options = PutOptions { mode: PutMode::Create, ..self.put_options() };
                    match self.shared.inner.put_opts(key, payload, options).await {
                        Ok(_) => Ok(Created::Fresh),
                        Err(object_store::Error::AlreadyExists { .. }) if repeated => Ok(Created::MaybeEarlier),
                        Err(object_store::Error::AlreadyExists { .. }) => Ok(Created::Exists),
                        Err(error) => Err(error.into()),
                    }
                }
            })
            .await?;
        let fresh = match created {
            Created::Fresh => true,
            Created::Exists => false,
            Created::MaybeEarlier => self.get(key).await? == bytes,
        };
        if fresh {
            self.count_bytes(|metrics| &metrics.store_stored_bytes, size);
        }
        Ok(fresh)
    }

    /// A whole object of unknown, small size.
    pub async fn get(&self, key: &ObjectPath) -> Result<Bytes, StoreError> {
        let bytes = self
            .request("get", key, 0, || async {
                Ok(self.shared.inner.get_opts(key, self.get_options(None)).await?.bytes().await?)
            })
            .await?;
        let size = bytes.len() as u64;
        if let Some(budget) = self.shared.lanes.of(self.work).budget.get() {
            budget.charge(size);
        }
        self.count_bytes(|metrics| &metrics.store_fetched_bytes, size);
        Ok(bytes)
    }

    /// Exactly the bytes of `range`.
    pub async fn get_range(&self, key: &ObjectPath, range: Range<u64>) -> Result<Bytes, StoreError> {
        let expected = range.end.saturating_sub(range.start);
        let bytes = self
            .request("get_range", key, expected, || async {
                let options = self.get_options(Some(range.clone()));
                let bytes = self.shared.inner.get_opts(key, options).await?.bytes().await?;
                let found = bytes.len() as u64;
                if found == expected { Ok(bytes) } else { Err(StoreFailure::Length { expected, found }) }
            })
            .await?;
        self.count_bytes(|metrics| &metrics.store_fetched_bytes, expected);
        Ok(bytes)
    }

    /// A whole object whose size is known; a large one is read in parts, each a request of its own.
    pub async fn get_sized(&self, key: &ObjectPath, size_bytes: u64) -> Result<Bytes, StoreError> {
        let size = usize::try_from(size_bytes).unwrap_or(usize::MAX);
        if size < MULTIPART_MIN_BYTES {
            let bytes = self.get(key).await?;
            let found = bytes.len() as u64;
            let source = StoreFailure::Length { expected: size_bytes, found };
            let failed = || StoreError { op: "get", key: key.to_string(), attempts: 1, source };
            return if found == size_bytes { Ok(bytes) } else { Err(failed()) };
        }
        let mut parts = futures::stream::iter((0..size_bytes).step_by(PART_BYTES))
            .map(|start| self.get_range(key, start..size_bytes.min(start.saturating_add(PART_BYTES as u64))))
            .buffered(PARTS_IN_FLIGHT);
        // Grows with what really arrives: the size may come from an object that somebody else wrote.
        let mut bytes = BytesMut::new();
        while let Some(part) = parts.try_next().await? {
            bytes.extend_from_slice(&part);
        }
        Ok(bytes.freeze())
    }

    /// The size of an object; `None` where there is none.
    pub async fn size_bytes(&self, key: &ObjectPath) -> Result<Option<u64>, StoreError> {
        match self.request("head", key, 0, || async { Ok(self.shared.inner.head(key).await?) }).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Everything below `prefix`, at any depth, in the store's own order and page by page: for what may be too much to
    /// hold. The first page is asked for like any request; a failure later ends the stream, and the caller starts over.
    pub fn list_stream(&self, prefix: &ObjectPath) -> BoxStream<'static, Result<ObjectMeta, StoreError>> {
        let (store, prefix) = (self.clone(), prefix.clone());
        let begun = async move {
            let begin = || async {
                let mut listing = store.shared.inner.list(Some(&prefix));
                Ok((listing.try_next().await?, listing))
            };
            let (first, listing) = store.request("list", &prefix, 0, begin).await?;
            let rest = futures::stream::try_unfold((store, prefix, listing), async |(store, prefix, mut listing)| {
                let next = store.within_limits(listing.try_next()).await.and_then(|next| Ok(next?));
                let next = next.map_err(|source| store.given_up("list", &prefix, 1, source))?;
                Ok(next.map(|meta| (meta, (store, prefix, listing))))
            });
            Ok::<_, StoreError>(futures::stream::iter(first.map(Ok)).chain(rest))
        };
        futures::stream::once(begun).try_flatten().boxed()
    }

    /// The objects directly in `folder` and the folders directly in it, both in key order.
    pub async fn list_folder(&self, folder: &ObjectPath) -> Result<(Vec<ObjectMeta>, Vec<ObjectPath>), StoreError> {
        let listed = self
            .request("list", folder, 0, || async { Ok(self.shared.inner.list_with_delimiter(Some(folder)).await?) })
            .await?;
        let (mut objects, mut folders) = (listed.objects, listed.common_prefixes);
        objects.sort_unstable_by(|a, b| a.location.cmp(&b.location));
        folders.sort_unstable();
        Ok((objects, folders))
    }

    /// Only `janitor` calls this. A missing object is fine.
    pub async fn delete(&self, key: &ObjectPath) -> Result<(), StoreError> {
        match self.request("delete", key, 0, || async { Ok(self.shared.inner.delete(key).await?) }).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => {
                self.count(|metrics| metrics.deleted_objects.inc());
                Ok(())
            }
        }
    }

    /// Only `janitor` calls this. Deletes what writes to a local folder left unfinished below `prefix` before `before`,
    /// and with `empty_folders` also the folders that hold nothing; other stores keep no such things in sight.
    pub async fn delete_staging(
        &self,
        prefix: &ObjectPath,
        before: Timestamp,
        empty_folders: bool,
    ) -> Result<Staging, StoreError> {
        let Some(folder) = &self.shared.folder else { return Ok(Staging::default()) };
        let deleted = self.request("delete_staging", prefix, 0, || async {
            let (folder, prefix) = (folder.clone(), prefix.clone());
            let deleting = move || folder.delete_staging(&prefix, before, empty_folders);
            Ok(tokio::task::spawn_blocking(deleting).await.map_err(object_store::Error::from)??)
        });
        let deleted = deleted.await?;
        self.count(|metrics| metrics.deleted_objects.inc_by(deleted.files));
        Ok(deleted)
    }

    async fn put_parts(&self, store: &dyn MultipartStore, key: &ObjectPath, bytes: Bytes) -> Result<(), StoreError> {
        let id = self.request("create_multipart", key, 0, || async { Ok(store.create_multipart(key).await?) }).await?;
        let size = bytes.len();
        let uploaded: Result<Vec<_>, StoreError> = futures::stream::iter((0..size).step_by(PART_BYTES).enumerate())
            .map(|(index, start)| {
                let part = bytes.slice(start..size.min(start + PART_BYTES));
                let (id, part_size) = (&id, part.len() as u64);
                let payload = PutPayload::from_bytes(part);
                self.request("put_part", key, part_size, move || {
                    let payload = payload.clone();
                    async move { Ok(store.put_part(key, id, index, payload).await?) }
                })
            })
            .buffered(PARTS_IN_FLIGHT)
            .try_collect()
            .await;
        let finished = match uploaded {
            Ok(parts) => {
                let complete = || async { Ok(store.complete_multipart(key, &id, parts.clone()).await?) };
                match self.request("complete_multipart", key, 0, complete).await {
                    Ok(_) => Ok(()),
                    // A repeated completion finds its upload gone if the first one was done and only its answer lost.
                    Err(_) if self.size_bytes(key).await.is_ok_and(|found| found == Some(size as u64)) => Ok(()),
                    Err(error) => Err(error),
                }
            }
            Err(error) => Err(error),
        };
        if finished.is_err() {
            let aborted =
                self.request("abort_multipart", key, 0, || async { Ok(store.abort_multipart(key, &id).await?) });
            if let Err(error) = aborted.await {
                tracing::warn!(key = %key, error = &error as &dyn std::error::Error, "an unfinished upload stays behind");
            }
        }
        finished
    }

    /// Runs `attempt`, which moves `bytes` as far as that is known, until it succeeds, fails for good or has been
    /// repeated `max_retries` times.
    async fn request<T, F, R>(
        &self,
        op: &'static str,
        key: &ObjectPath,
        bytes: u64,
        mut attempt: F,
    ) -> Result<T, StoreError>
    where
        F: FnMut() -> R,
        R: Future<Output = Result<T, StoreFailure>>,
    {
        let labels = [op, self.work.label()];
        let mut attempts = 0;
        loop {
            attempts += 1;
            if let Some(budget) = self.shared.lanes.of(self.work).budget.get() {
                let came = Instant::now();
                budget.take(bytes).await;
                let waited = came.elapsed().as_secs_f64();
                self.count(|metrics| metrics.store_budget_seconds.with_label_values(&labels[1..]).inc_by(waited));
            }
            self.count(|metrics| metrics.store_requests.with_label_values(&labels).inc());
            match self.within_limits(attempt()).await.flatten() {
                Ok(value) => return Ok(value),
                Err(failure) if failure.is_transient() && attempts <= self.shared.max_retries => {
                    self.count(|metrics| metrics.store_retries.with_label_values(&labels).inc());
                    tokio::time::sleep(retry_wait(attempts)).await;
                }
                Err(source) => return Err(self.given_up(op, key, attempts, source)),
            }
        }
    }

    /// One attempt: with a permit, and within the time.
    async fn within_limits<T>(&self, attempt: impl Future<Output = T>) -> Result<T, StoreFailure> {
        let timeout = self.shared.request_timeout;
        let permits = &self.shared.lanes.of(self.work).permits;
        let _permit = permits.acquire().await.map_err(|_| StoreFailure::Closed)?;
        tokio::time::timeout(timeout, attempt).await.map_err(|_| StoreFailure::Timeout(timeout))
    }

    fn given_up(&self, op: &'static str, key: &ObjectPath, attempts: usize, source: StoreFailure) -> StoreError {
        let error = StoreError { op, key: key.to_string(), attempts, source };
        // "Not there" is an answer: asking for the next manifest version expects it.
        if !error.is_not_found() {
            self.count(|metrics| metrics.store_failures.with_label_values(&[op, self.work.label()]).inc());
        }
        error
    }

    fn put_options(&self) -> PutOptions {
        let mut options = PutOptions::default();
        if let Some(background) = self.shared.lanes.in_background(self.work, self.shared.request_timeout) {
            options.extensions.insert(background);
        }
        options
    }

    fn get_options(&self, range: Option<Range<u64>>) -> GetOptions {
        let mut options = GetOptions { range: range.map(GetRange::Bounded), ..GetOptions::default() };
        if let Some(background) = self.shared.lanes.in_background(self.work, self.shared.request_timeout) {
            options.extensions.insert(background);
        }
        options
    }

    fn count_bytes(&self, counter: impl FnOnce(&TieringMetrics) -> &IntCounterVec, bytes: u64) {
        self.count(|metrics| counter(metrics).with_label_values(&[self.work.label()]).inc_by(bytes));
    }

    fn count(&self, change: impl FnOnce(&TieringMetrics)) {
        if let Some(metrics) = self.shared.metrics.get() {
            change(metrics);
        }
    }
}

fn not_opened(config: &StoreConfig, source: StoreFailure) -> StoreError {
    StoreError { op: "open", key: config.url.clone(), attempts: 1, source }
}

/// What a conditional create found.
enum Created {
    Fresh,
    Exists,
    /// Taken, perhaps by an earlier attempt of the same request.
    MaybeEarlier,
}

/// The wait before attempt `attempts + 1`: doubled each time, and jittered over its upper half so that many clients
/// of a store that comes back do not return at once.
fn retry_wait(attempts: usize) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
    let wait = RETRY_WAIT_MIN.saturating_mul(2_u32.saturating_pow(doublings)).min(RETRY_WAIT_MAX);
    wait.mul_f64(rand::rng().random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests;
