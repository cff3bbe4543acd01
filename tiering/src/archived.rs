//! Reading archived files in the background, for what is made of them: merged files (`merge.rs`), other splits
//! (`reindex.rs`).
//!
//! # Invariants
//! 1. What is handed out is what the manifest says: the very records that are handed out are digested, and the digest
//!    compared; other objects are compared by hash. A file that does not agree is damaged, and nothing is made of it.
//! 2. A file is read one row group at a time. A worker's place is taken only for a step that uses the processor:
//!    archiving waits for one step at most.

use std::sync::Arc;

use bytes::Bytes;
use tantivy::directory::OwnedBytes;
use thermocline_ingest::record::{HeadersBuffer, Record};
use tokio::sync::Semaphore;

use crate::background::{self, Background};
use crate::cache::BlockCache;
use crate::columns::{ColumnError, RecordColumns};
use crate::manifest::{DataFile, ObjectRef};
use crate::parquet_read::{ColdFile, ParquetReadError, ParquetReader, RowGroupBytes};
use crate::split::{SplitError, SplitReader};
use crate::store::{ColdStore, StoreError};
use crate::verify::{ContentDigest, Fault, VerifyError, fetch_checked};

/// What is read here is read once: there is no use in keeping it, least of all in the place of what readers come back
/// to.
const FOOTERS_KEPT_BYTES: u64 = 0;
const BLOCKS_KEPT_BYTES: u64 = 0;

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchivedError {
    #[error("{key} is not as it was archived; it is left alone, restore it from a copy of the bucket")]
    Damaged {
        key: String,
        #[source]
        source: Damage,
    },
    #[error("reading {key}")]
    Read {
        key: String,
        #[source]
        source: Arc<ParquetReadError>,
    },
    #[error("reading {key}")]
    ReadObject {
        key: String,
        #[source]
        source: StoreError,
    },
    #[error("the work was cut off")]
    Aborted,
}

/// What is wrong with an archived file.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    #[error(transparent)]
    Parquet(Arc<ParquetReadError>),
    #[error("its columns")]
    Columns(#[from] ColumnError),
    #[error(transparent)]
    Object(VerifyError),
    #[error("its index")]
    Split(#[from] SplitError),
    #[error("its records have digest {found}, the manifest says {expected}")]
    Digest { expected: String, found: String },
    #[error("its index has {docs} documents for {rows} rows")]
    Documents { docs: u64, rows: u64 },
    #[error("it is missing")]
    Missing,
}

/// Reads files of the archive.
pub(crate) struct ArchivedReader {
    store: ColdStore,
    background: Background,
    parquet: ParquetReader,
    workers: Arc<Semaphore>,
}

impl ArchivedReader {
    /// `workers` has a place for each step that may use the processor at once.
    pub fn new(store: ColdStore, background: Background, workers: Arc<Semaphore>) -> Self {
        let blocks = BlockCache::new(store.clone(), BLOCKS_KEPT_BYTES, tokio::runtime::Handle::current());
        Self { store, background, parquet: ParquetReader::new(blocks, FOOTERS_KEPT_BYTES), workers }
    }

    /// Hands every record of a file to `add`, in order, with what comes of those before; after each row group
    /// `between` may look at that. Between two of them it asks `is_cancelled`.
    pub async fn fold<T, E>(
        &self,
        file: &Arc<DataFile>,
        mut state: T,
        add: fn(&mut T, &Record<'_>) -> Result<(), E>,
        between: impl Fn(&mut T) -> Result<(), E> + Clone + Send + 'static,
        is_cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<ArchivedError> + Send + 'static,
    {
        let key = &file.data.key;
        let opened = self.parquet.file(file).await.map_err(|error| read_error(key, error))?;
        let mut digest = ContentDigest::new();
        for group in 0..opened.row_groups() {
            if is_cancelled() {
                return Err(ArchivedError::Aborted.into());
            }
            let fetched = self.parquet.fetch_row_group(&opened, group).await;
            let Some(bytes) = fetched.map_err(|error| read_error(key, Arc::new(error)))? else { break };
            let (rows, between) = (opened.clone(), between.clone());
            let step = move || {
                for_each_row(&rows, group, bytes, |record| {
                    digest.update(record);
                    add(&mut state, record)
                })?;
                between(&mut state)?;
                Ok::<_, E>((state, digest))
            };
            (state, digest) = self.on_worker(step).await?;
        }
        let found = digest.finish();
        if found != file.digest {
            let source = Damage::Digest { expected: file.digest.clone(), found };
            return Err(ArchivedError::Damaged { key: key.clone(), source }.into());
        }
        Ok(state)
    }

    /// The split of a file, which must have a document for each of its rows.
    pub async fn split(&self, file: Arc<DataFile>, split: ObjectRef) -> Result<SplitReader, ArchivedError> {
        let bytes = self.object(&split).await?;
        let open = move || {
            let damaged = |source| ArchivedError::Damaged { key: split.key.clone(), source };
            let opened = SplitReader::open(Arc::new(OwnedBytes::new(Vec::from(bytes))));
            let opened = opened.map_err(|error| damaged(error.into()))?;
            match (opened.docs(), file.rows) {
                (docs, rows) if docs == rows => Ok(opened),
                (docs, rows) => Err(damaged(Damage::Documents { docs, rows })),
            }
        };
        self.on_worker(open).await
    }

    /// The bytes of an object, which are those that `object` was made for.
    pub async fn object(&self, object: &ObjectRef) -> Result<Bytes, ArchivedError> {
        fetch_checked(&self.store, &self.background, object).await.map_err(|error| object_error(object, error))
    }

    /// Runs a step that uses the processor, in the place of a worker.
    pub async fn on_worker<T, E>(&self, step: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<ArchivedError> + Send + 'static,
    {
        let _worker = self.workers.acquire().await.map_err(|_| ArchivedError::Aborted)?;
        self.background.run("archive-rewrite", step).await.map_err(|_| ArchivedError::Aborted)?
    }
}

/// Hands over the rows of one row group.
fn for_each_row<E: From<ArchivedError>>(
    opened: &ColdFile,
    group: usize,
    bytes: RowGroupBytes,
    mut take: impl FnMut(&Record<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let key = &opened.object.key;
    let read_failed = |error| read_error(key, Arc::new(error));
    let columns_failed = |error: ColumnError| ArchivedError::Damaged { key: key.clone(), source: error.into() };
    let mut headers = HeadersBuffer::default();
    for batch in opened.decode(group, bytes).map_err(read_failed)? {
        let columns = RecordColumns::new(&batch.map_err(read_failed)?).map_err(columns_failed)?;
        for at in 0..columns.len() {
            let row = columns.row(at).map_err(columns_failed)?;
            headers.clear();
            row.headers().for_each(|(key, value)| headers.push(key, value));
            take(&Record {
                offset: row.offset,
                timestamp: row.timestamp,
                timestamp_type: row.timestamp_type,
                key: row.key,
                value: row.value,
                headers: headers.headers(),
            })?;
        }
        background::pause();
    }
    Ok(())
}

/// Whether the store failed or the file is not what it should be.
fn read_error(key: &str, error: Arc<ParquetReadError>) -> ArchivedError {
    let key = key.to_owned();
    match error.as_ref() {
        ParquetReadError::Store { source, .. } if source.is_not_found() => {
            ArchivedError::Damaged { key, source: Damage::Missing }
        }
        ParquetReadError::Store { .. } => ArchivedError::Read { key, source: error },
        _ => ArchivedError::Damaged { key, source: Damage::Parquet(error) },
    }
}

fn object_error(object: &ObjectRef, error: VerifyError) -> ArchivedError {
    let key = object.key.clone();
    match error {
        VerifyError::Damaged(damage) if damage.fault == Fault::Missing => {
            ArchivedError::Damaged { key, source: Damage::Missing }
        }
        VerifyError::Store(source) => ArchivedError::ReadObject { key, source },
        VerifyError::Background { .. } => ArchivedError::Aborted,
        error => ArchivedError::Damaged { key, source: Damage::Object(error) },
    }
}
