//! Merging: neighbouring small data files become one large one, in the background. [`plan`] says which, [`Merger`] does
//! it, `worker/merging.rs` says when.
//!
//! The records come out of the Parquet files row group by row group and go into a new file; batches kept raw are
//! carried over; the splits are merged as they are (`split/merge.rs`), or the records are indexed again where the
//! splits were made in different ways. From there on it is the way of a segment: upload, read back and verify, commit.
//!
//! # Invariants
//! 1. What is put into the merged file is what the manifest says of the inputs: the very records that are added are
//!    digested input by input, and the digests compared; splits and raw batches are compared by hash. An input that
//!    does not agree is damaged: nothing is merged, everything stays as it is.
//! 2. Merging changes no answer. The merged file has the records, offsets, times and raw batches of its inputs, and
//!    finds with its index what they found with theirs. So files with an index are not merged with files without one.
//! 3. The partition's commits are not locked while files are read and written, only for the commit itself. It replaces
//!    the files that were read and no others ([`Change::Merge`]); if they are not there any more (expired, merged by
//!    another broker), the result is dropped.
//! 4. Right before the commit, and with the commits locked, the merged objects are looked for in the store: nothing
//!    names them until then, so a collection of orphans may have met them.
//! 5. Merging waits for nobody while it holds memory that archiving could use: it has a budget of its own
//!    ([`crate::pipeline::MERGE_SHARE`]). It takes a worker's place only for the step that uses the processor.
//! 6. Readers are not disturbed: the replaced objects are retired, and stay for `tiering.retired_min_age`.
//!
//! # Crashes and failures
//!
//! | died or failed here | then |
//! |---|---|
//! | reading, merging | nothing happened |
//! | an input is damaged | it is reported and left alone until the next start; files on either side go on being merged |
//! | some objects uploaded, or all of them and not verified | orphans; the next attempt uses fresh names |
//! | verification does not agree | orphans; the inputs are kept, alarm metric |
//! | waiting to commit, and the inputs are replaced or expire | the commit is refused; orphans |
//! | waiting to commit, and the objects are collected | found out before the commit; the next attempt starts over |
//! | commit failed, or its answer was lost | the manifest is loaded: it names the merged file or the inputs, never both |
//! | committed, inputs not deleted | they are retired; the janitor deletes them in time |

pub mod plan;

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use tantivy::directory::OwnedBytes;
use thermocline_config::{TieringConfig, TopicConfig};
use thermocline_ingest::record::{HeadersBuffer, Record};
use tokio::sync::Semaphore;

use crate::background::{self, Background};
use crate::cache::BlockCache;
use crate::columns::{ColumnError, RecordColumns};
use crate::manifest::{Change, CommitOutcome, DataFile, ManifestError, ManifestHead, ManifestStore, ObjectRef};
use crate::metrics::TieringMetrics;
use crate::parquet::{ParquetOptions, ROW_GROUP_COPIES};
use crate::parquet_read::{ColdFile, ParquetReadError, ParquetReader, RowGroupBytes};
use crate::paths::PartitionPath;
use crate::pipeline::{ArchiveError, Archiver, FileBuilder, Indexing, StageError, VerifiedArchive};
use crate::split::{SplitError, SplitJoin, SplitReader, SplitWriter};
use crate::store::{ColdStore, StoreError};
use crate::verify::{ContentDigest, Fault, VerifyError, fetch_checked};
use plan::{MergeLimits, held_bytes};

/// Copies of what is merged that are in memory at once: an output that grows by doubling, beside the inputs' splits or
/// what is read back.
const COPIES: u64 = 3;
/// Share of a topic's `retention.ms` and `retention.bytes` that one merged file may take up, as a divisor: that much
/// longer, or more, may be kept than was asked for.
const RETENTION_SHARE: u64 = 8;
/// Splits read at once.
const SPLITS_IN_FLIGHT: usize = 8;
/// What is merged is read once: there is no use in keeping it, least of all in the place of what readers come back to.
const FOOTERS_KEPT_BYTES: u64 = 0;
const BLOCKS_KEPT_BYTES: u64 = 0;

/// Why files were not merged. They stay as they are.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
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
    #[error("indexing the files again takes {held} bytes of memory, the limit is {max} (tiering.memory_max)")]
    Memory { held: u64, max: u64 },
    #[error("writing the merged file")]
    Stage(#[from] StageError),
    #[error("storing the merged file")]
    Store(#[from] ArchiveError),
    #[error("looking for the merged file before its commit")]
    Look(#[source] StoreError),
    #[error("{key} was collected as an orphan before it could be committed")]
    Collected { key: String },
    #[error("committing the merged file")]
    Commit(#[source] ManifestError),
    #[error("the files are not those of the manifest any more")]
    Overtaken,
    #[error("the merge was cut off")]
    Aborted,
}

/// What is wrong with an input.
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

/// A merged file in the store, read back and equal; not yet named by the manifest.
pub struct MergedFile {
    verified: VerifiedArchive,
    objects: Vec<ObjectRef>,
    /// data keys of the inputs, in order
    replaces: Vec<String>,
}

/// Merges data files.
pub struct Merger {
    archiver: Archiver,
    manifests: ManifestStore,
    store: ColdStore,
    background: Background,
    parquet: ParquetReader,
    workers: Arc<Semaphore>,
    metrics: Arc<TieringMetrics>,
    options: ParquetOptions,
    target_bytes: u64,
    memory_bytes: u64,
    row_group_bytes: u64,
}

/// What a merge works with.
pub struct MergerParts {
    pub archiver: Archiver,
    pub manifests: ManifestStore,
    pub store: ColdStore,
    pub background: Background,
    /// taken for every step that uses the processor
    pub workers: Arc<Semaphore>,
    pub metrics: Arc<TieringMetrics>,
}

impl Merger {
    pub fn new(parts: MergerParts, config: &TieringConfig) -> Self {
        let MergerParts { archiver, manifests, store, background, workers, metrics } = parts;
        let blocks = BlockCache::new(store.clone(), BLOCKS_KEPT_BYTES, tokio::runtime::Handle::current());
        Self {
            archiver,
            manifests,
            store,
            background,
            parquet: ParquetReader::new(blocks, FOOTERS_KEPT_BYTES),
            workers,
            metrics,
            options: ParquetOptions::from(config),
            target_bytes: config.merge_target.as_u64(),
            memory_bytes: Archiver::merge_bytes(config),
            row_group_bytes: config.row_group_bytes.as_u64(),
        }
    }

    /// How large the merged files of a topic may become.
    pub fn limits(&self, topic: &TopicConfig) -> MergeLimits {
        let share = |limit: u64| limit / RETENTION_SHARE;
        MergeLimits {
            log_bytes_max: self.target_bytes.min(topic.retention_bytes.map_or(u64::MAX, share)),
            held_bytes_max: self.memory_bytes.saturating_sub(self.row_groups_bytes()) / COPIES,
            span_ms_max: topic.retention_ms.map_or(u64::MAX, |ms| share(ms.unsigned_abs())),
        }
    }

    /// One row group as it comes from the store and decoded, and those on their way out.
    fn row_groups_bytes(&self) -> u64 {
        self.row_group_bytes.saturating_mul(2 + ROW_GROUP_COPIES)
    }

    /// Merges `inputs`, neighbours in offset order that all have an index or none. `None` where there is no memory for
    /// it just now. Between two steps it asks `is_cancelled`. Whatever it leaves behind is an orphan until [`Self::commit`].
    pub async fn merge(
        &self,
        path: &PartitionPath,
        inputs: &[Arc<DataFile>],
        is_cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<Option<MergedFile>, MergeError> {
        let held = inputs.iter().fold(0_u64, |sum, file| sum.saturating_add(held_bytes(file)));
        let memory = held.saturating_mul(COPIES).saturating_add(self.row_groups_bytes());
        let Some(_memory) = self.archiver.reserve_for_merge(memory) else { return Ok(None) };

        let index = self.join_splits(inputs).await?;
        let mut file = FileBuilder::new(path, self.options, index)?;
        for input in inputs {
            file = self.add_file(file, input, is_cancelled).await?;
        }
        let name = path.clone();
        let staged = self.on_worker(move || Ok(file.finish(&name)?)).await?.ok_or(MergeError::Aborted)?;
        if is_cancelled() {
            return Err(MergeError::Aborted);
        }
        let objects = staged.file().objects().cloned().collect();
        let verified = self.archiver.upload_and_verify(staged).await?;
        let replaces = inputs.iter().map(|input| input.data.key.clone()).collect();
        Ok(Some(MergedFile { verified, objects, replaces }))
    }

    /// Puts a merged file in the place of its inputs. The caller holds the partition's commits; after an error `head`
    /// may be behind the store.
    pub async fn commit(&self, merged: MergedFile, head: &mut ManifestHead) -> Result<(), MergeError> {
        let MergedFile { verified, objects, replaces } = merged;
        for object in &objects {
            let found = self.store.size_bytes(&object.path()).await.map_err(MergeError::Look)?;
            if found != Some(object.size_bytes) {
                return Err(MergeError::Collected { key: object.key.clone() });
            }
        }
        let files = replaces.len() as u64;
        let change = Change::Merge { file: Arc::new(verified.into_file()), replaces };
        *head = match self.manifests.commit(head, change).await {
            Ok(CommitOutcome::Committed(next)) => next,
            Ok(CommitOutcome::Superseded(_))
            | Err(ManifestError::Replaced { .. } | ManifestError::NotContiguous { .. }) => {
                return Err(MergeError::Overtaken);
            }
            Err(error) => return Err(MergeError::Commit(error)),
        };
        self.metrics.merges.inc();
        self.metrics.merged_files.inc_by(files);
        self.metrics.merged_bytes.inc_by(objects.iter().map(|object| object.size_bytes).sum());
        Ok(())
    }

    /// Where the split of the merged file comes from.
    async fn join_splits(&self, inputs: &[Arc<DataFile>]) -> Result<Indexing, MergeError> {
        if inputs.iter().all(|input| input.split.is_none()) {
            return Ok(Indexing::Off);
        }
        let of = |input: &Arc<DataFile>| Some((input.clone(), input.split.clone()?));
        let splits: Vec<_> = inputs.iter().filter_map(of).collect();
        let splits: Vec<SplitReader> = futures::stream::iter(splits)
            .map(|(input, split)| self.open_split(input, split))
            .buffered(SPLITS_IN_FLIGHT)
            .try_collect()
            .await?;
        let index = move || match SplitJoin::of(splits)? {
            SplitJoin::Merge(merger) => Ok(Indexing::Splits(merger)),
            SplitJoin::IndexAgain(options) => Ok(Indexing::Records(Box::new(SplitWriter::new(options)?))),
        };
        self.on_worker(move || index().map_err(|error: SplitError| MergeError::Stage(error.into()))).await
    }

    async fn open_split(&self, input: Arc<DataFile>, split: ObjectRef) -> Result<SplitReader, MergeError> {
        let bytes =
            fetch_checked(&self.store, &self.background, &split).await.map_err(|error| object_error(&split, error))?;
        let open = move || {
            let damaged = |source| MergeError::Damaged { key: split.key.clone(), source };
            let opened = SplitReader::open(Arc::new(OwnedBytes::new(Vec::from(bytes))));
            let opened = opened.map_err(|error| damaged(error.into()))?;
            match (opened.docs(), input.rows) {
                (docs, rows) if docs == rows => Ok(opened),
                (docs, rows) => Err(damaged(Damage::Documents { docs, rows })),
            }
        };
        self.on_worker(open).await
    }

    /// Adds the records of one input, one row group at a time, and what it keeps raw.
    async fn add_file(
        &self,
        mut file: FileBuilder,
        input: &Arc<DataFile>,
        is_cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<FileBuilder, MergeError> {
        let key = &input.data.key;
        let opened = self.parquet.file(input).await.map_err(|error| read_error(key, error))?;
        let mut digest = ContentDigest::new();
        for group in 0..opened.row_groups() {
            if is_cancelled() {
                return Err(MergeError::Aborted);
            }
            let fetched = self.parquet.fetch_row_group(&opened, group).await;
            let Some(bytes) = fetched.map_err(|error| read_error(key, Arc::new(error)))? else { break };
            let rows = opened.clone();
            let add = move || {
                add_row_group(&rows, group, bytes, &mut file, &mut digest)?;
                Ok((file, digest))
            };
            (file, digest) = self.on_worker(add).await?;
            let held = file.memory_bytes() as u64;
            if held > self.memory_bytes {
                return Err(MergeError::Memory { held, max: self.memory_bytes });
            }
        }
        let found = digest.finish();
        if found != input.digest {
            let source = Damage::Digest { expected: input.digest.clone(), found };
            return Err(MergeError::Damaged { key: key.clone(), source });
        }
        let raw = match &input.raw {
            Some(raw) => fetch_checked(&self.store, &self.background, &raw.object)
                .await
                .map_err(|error| object_error(&raw.object, error))?,
            None => bytes::Bytes::new(),
        };
        file.cover_file(input, &raw);
        Ok(file)
    }

    /// Runs a step that uses the processor, in the place of a worker: archiving waits for one step at most.
    async fn on_worker<T: Send + 'static>(
        &self,
        step: impl FnOnce() -> Result<T, MergeError> + Send + 'static,
    ) -> Result<T, MergeError> {
        let _worker = self.workers.acquire().await.map_err(|_| MergeError::Aborted)?;
        self.background.run("archive-merge", step).await.map_err(|_| MergeError::Aborted)?
    }
}

/// Adds the rows of one row group to the file and to the digest of their input.
fn add_row_group(
    opened: &ColdFile,
    group: usize,
    bytes: RowGroupBytes,
    file: &mut FileBuilder,
    digest: &mut ContentDigest,
) -> Result<(), MergeError> {
    let key = &opened.object.key;
    let read_failed = |error| read_error(key, Arc::new(error));
    let columns_failed = |error: ColumnError| MergeError::Damaged { key: key.clone(), source: error.into() };
    let mut headers = HeadersBuffer::default();
    for batch in opened.decode(group, bytes).map_err(read_failed)? {
        let columns = RecordColumns::new(&batch.map_err(read_failed)?).map_err(columns_failed)?;
        for at in 0..columns.len() {
            let row = columns.row(at).map_err(columns_failed)?;
            headers.clear();
            row.headers().for_each(|(key, value)| headers.push(key, value));
            let record = Record {
                offset: row.offset,
                timestamp: row.timestamp,
                timestamp_type: row.timestamp_type,
                key: row.key,
                value: row.value,
                headers: headers.headers(),
            };
            digest.update(&record);
            file.add(&record)?;
        }
        background::pause();
    }
    Ok(())
}

/// Whether the store failed or the input is not what it should be.
fn read_error(key: &str, error: Arc<ParquetReadError>) -> MergeError {
    let key = key.to_owned();
    match error.as_ref() {
        ParquetReadError::Store { source, .. } if source.is_not_found() => {
            MergeError::Damaged { key, source: Damage::Missing }
        }
        ParquetReadError::Store { .. } => MergeError::Read { key, source: error },
        _ => MergeError::Damaged { key, source: Damage::Parquet(error) },
    }
}

fn object_error(object: &ObjectRef, error: VerifyError) -> MergeError {
    let key = object.key.clone();
    match error {
        VerifyError::Damaged(damage) if damage.fault == Fault::Missing => {
            MergeError::Damaged { key, source: Damage::Missing }
        }
        VerifyError::Store(source) => MergeError::ReadObject { key, source },
        VerifyError::Background { .. } => MergeError::Aborted,
        error => MergeError::Damaged { key, source: Damage::Object(error) },
    }
}

#[cfg(test)]
mod tests;
