//! Indexing again, in the background, what was archived under other settings than a topic has now. [`outdated`] says
//! what, [`Reindexer`] does it, `worker/reindexing.rs` says when.
//!
//! The records come out of the Parquet file row group by row group and go into an index writer; what it makes is
//! packaged whenever it has grown large, and merged in the end (`split/merge.rs`). From there on it is the way of a
//! segment: upload, read back and verify, commit. The data file stays as it is. Where the setting is `off` there is
//! nothing to make, only a commit.
//!
//! # Invariants
//! 1. Searches find each message once throughout: a file has one split at a time, which answers by its own schema, and
//!    a commit puts another one in its place.
//! 2. The commit replaces the split of the file that was read ([`Change::Reindex`]). If that is not there any more
//!    (merged, expired, indexed again by another broker), what was made is dropped.
//! 3. Right before the commit, and with the commits locked, the new split is looked for in the store: nothing names it
//!    until then, so a collection of orphans may have met it.
//! 4. It has the memory of merging ([`Archiver::merge_bytes`]) while no merge does, and never waits while it holds it.
//! 5. Readers are not disturbed: the replaced split is retired, and stays for `tiering.retired_min_age`.
//!
//! # Crashes and failures
//!
//! | died or failed here | then |
//! |---|---|
//! | reading, indexing | nothing happened |
//! | the file is damaged, or its index does not fit | it is reported and left alone until the next start, with the split it has |
//! | uploaded, or uploaded and not verified | an orphan; the next attempt uses a fresh name |
//! | verification does not agree | an orphan; the split stays, alarm metric |
//! | waiting to commit, and the file is replaced or expires | the commit is refused; an orphan |
//! | waiting to commit, and the split is collected | found out before the commit; the next attempt starts over |
//! | commit failed, or its answer was lost | the manifest is loaded: it names the one split or the other, never both |
//! | committed, the old split not deleted | it is retired; the janitor deletes it in time |
//! | some files of a topic are done | the others are found by what the manifest says of them: nothing else is kept |

use std::sync::Arc;

use bytes::Bytes;
use tantivy::directory::OwnedBytes;
use thermocline_config::TieringConfig;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::archived::{ArchivedError, ArchivedReader, Damage};
use crate::background::Background;
use crate::manifest::{Change, CommitOutcome, DataFile, ManifestError, ManifestHead, ManifestStore, ObjectRef};
use crate::metrics::TieringMetrics;
use crate::paths::{AttemptId, ObjectKind, PartitionPath, RangeName};
use crate::pipeline::{ArchiveError, Archiver};
use crate::split::{SplitError, SplitJoin, SplitOptions, SplitReader, SplitWriter};
use crate::store::{ColdStore, StoreError};

/// Copies of a split that are in memory at once while its parts are merged: an output that grows by doubling, beside
/// the parts.
const COPIES: u64 = 3;
/// The share of the memory that the index writer may take before it is packaged, as a divisor.
const WRITER_SHARE: u64 = 4;

/// Why a file was not indexed again. It stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum ReindexError {
    #[error(transparent)]
    Input(#[from] ArchivedError),
    #[error(
        "the index of {key} takes {held} bytes, which need {COPIES} times as much memory as the limit of {max} \
         (a quarter of tiering.memory_max) has"
    )]
    Memory { key: String, held: u64, max: u64 },
    #[error("indexing")]
    Split(#[from] SplitError),
    #[error("storing the split")]
    Store(#[from] ArchiveError),
    #[error("looking for the split before its commit")]
    Look(#[source] StoreError),
    #[error("{key} was collected as an orphan before it could be committed")]
    Collected { key: String },
    #[error("committing the split")]
    Commit(#[source] ManifestError),
    #[error("the file is not that of the manifest any more, or the settings have changed again")]
    Overtaken,
}

/// Whether a file is indexed otherwise than `wanted`, which is `None` where there is to be no index.
pub fn outdated(file: &DataFile, wanted: Option<SplitOptions>) -> bool {
    match (&file.split, wanted) {
        (None, wanted) => wanted.is_some(),
        (Some(_), None) => true,
        // Where nothing is said, a program made it that knew other analysers.
        (Some(_), Some(wanted)) => file.indexed != Some(wanted),
    }
}

/// What a file is to have instead of its split, in the store and read back; not yet named by the manifest.
pub struct Reindexed {
    was: Arc<DataFile>,
    split: Option<ObjectRef>,
    indexed: Option<SplitOptions>,
}

/// Indexes archived files again.
pub struct Reindexer {
    archiver: Archiver,
    manifests: ManifestStore,
    store: ColdStore,
    reader: ArchivedReader,
    metrics: Arc<TieringMetrics>,
    memory_bytes: u64,
}

/// What reindexing works with.
pub struct ReindexerParts {
    pub archiver: Archiver,
    pub manifests: ManifestStore,
    pub store: ColdStore,
    pub background: Background,
    /// taken for every step that uses the processor
    pub workers: Arc<Semaphore>,
    pub metrics: Arc<TieringMetrics>,
}

/// An index under construction, of which the oldest part may be packaged already.
struct Parts {
    options: SplitOptions,
    /// `None` only after a failure
    writer: Option<SplitWriter>,
    packaged: Vec<Bytes>,
}

impl Reindexer {
    pub fn new(parts: ReindexerParts, config: &TieringConfig) -> Self {
        let ReindexerParts { archiver, manifests, store, background, workers, metrics } = parts;
        let reader = ArchivedReader::new(store.clone(), background, workers);
        Self { archiver, manifests, reader, store, metrics, memory_bytes: Archiver::merge_bytes(config) }
    }

    /// Makes the split that `file` is to have, or none where `wanted` is `None`. `None` where there is no memory for it
    /// just now. Between two steps it asks `is_cancelled`. What it leaves behind is an orphan until [`Self::commit`].
    pub async fn reindex(
        &self,
        path: &PartitionPath,
        file: &Arc<DataFile>,
        wanted: Option<SplitOptions>,
        is_cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<Option<Reindexed>, ReindexError> {
        let Some(options) = wanted else {
            return Ok(Some(Reindexed { was: file.clone(), split: None, indexed: None }));
        };
        let Some(_memory) = self.reserve() else { return Ok(None) };
        let bytes = self.index(file, options, is_cancelled).await?;
        if is_cancelled() {
            return Err(ArchivedError::Aborted.into());
        }
        let (base, last) = (file.base_offset, file.last_offset);
        let key = path.object(&RangeName { kind: ObjectKind::Split, base, last, attempt: AttemptId::fresh() });
        let split = ObjectRef::of(&key, &bytes);
        let becomes = DataFile { split: Some(split.clone()), ..DataFile::clone(file) };
        self.archiver.upload_and_verify_split(Arc::new(becomes), &key, bytes).await?;
        Ok(Some(Reindexed { was: file.clone(), split: Some(split), indexed: Some(options) }))
    }

    fn reserve(&self) -> Option<OwnedSemaphorePermit> {
        self.archiver.reserve_for_merge(self.memory_bytes)
    }

    async fn index(
        &self,
        file: &Arc<DataFile>,
        options: SplitOptions,
        is_cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<Bytes, ReindexError> {
        let (max, key) = (self.memory_bytes, file.data.key.clone());
        let between = move |parts: &mut Parts| parts.package_if_large(max / WRITER_SHARE, max / COPIES, &key);
        let parts = Parts { options, writer: Some(SplitWriter::new(options)?), packaged: Vec::new() };
        let parts = self.reader.fold(file, parts, |parts, record| parts.add(record), between, is_cancelled).await?;
        let (rows, key, max) = (file.rows, file.data.key.clone(), max / COPIES);
        self.reader.on_worker(move || parts.finish(rows, &key, max)).await
    }

    /// Puts what was made in its place. The caller holds the partition's commits; after an error `head` may be behind
    /// the store.
    pub async fn commit(&self, made: Reindexed, head: &mut ManifestHead) -> Result<(), ReindexError> {
        let Reindexed { was, split, indexed } = made;
        if let Some(object) = &split {
            let found = self.store.size_bytes(&object.path()).await.map_err(ReindexError::Look)?;
            if found != Some(object.size_bytes) {
                return Err(ReindexError::Collected { key: object.key.clone() });
            }
        }
        let size_bytes = split.as_ref().map_or(0, |split| split.size_bytes);
        *head = match self.manifests.commit(head, Change::Reindex { was, split, indexed }).await {
            Ok(CommitOutcome::Committed(next)) => next,
            Ok(CommitOutcome::Superseded(_))
            | Err(ManifestError::Replaced { .. } | ManifestError::NotContiguous { .. }) => {
                return Err(ReindexError::Overtaken);
            }
            Err(error) => return Err(ReindexError::Commit(error)),
        };
        self.metrics.reindexed_files.inc();
        self.metrics.reindexed_bytes.inc_by(size_bytes);
        Ok(())
    }
}

impl Parts {
    fn add(&mut self, record: &thermocline_ingest::record::Record<'_>) -> Result<(), ReindexError> {
        match &mut self.writer {
            Some(writer) => Ok(writer.add(record)?),
            None => Err(ArchivedError::Aborted.into()),
        }
    }

    /// Packages the part under construction if it takes more than `writer_max` bytes.
    fn package_if_large(&mut self, writer_max: u64, parts_max: u64, key: &str) -> Result<(), ReindexError> {
        if self.writer.as_ref().is_some_and(|writer| writer.mem_usage_bytes() as u64 > writer_max) {
            self.package(parts_max, key)?;
            self.writer = Some(SplitWriter::new(self.options)?);
        }
        Ok(())
    }

    fn package(&mut self, parts_max: u64, key: &str) -> Result<(), ReindexError> {
        if let Some(writer) = self.writer.take() {
            self.packaged.push(writer.finish()?);
        }
        let held = self.packaged.iter().map(|part| part.len() as u64).sum();
        if held > parts_max {
            return Err(ReindexError::Memory { key: key.to_owned(), held, max: parts_max.saturating_mul(COPIES) });
        }
        Ok(())
    }

    /// The split, which has a document for each of `rows`.
    fn finish(mut self, rows: u64, key: &str, parts_max: u64) -> Result<Bytes, ReindexError> {
        self.package(parts_max, key)?;
        let open = |bytes: Bytes| SplitReader::open(Arc::new(OwnedBytes::new(Vec::from(bytes))));
        let bytes = match self.packaged.len() {
            1 => self.packaged.remove(0),
            _ => {
                let splits = self.packaged.drain(..).map(open).collect::<Result<_, _>>()?;
                match SplitJoin::of(splits)? {
                    SplitJoin::Merge(merger) => merger.finish()?,
                    // They are all made with the same options.
                    SplitJoin::IndexAgain(_) => return Err(ArchivedError::Aborted.into()),
                }
            }
        };
        let docs = open(bytes.clone())?.docs();
        if docs != rows {
            let source = Damage::Documents { docs, rows };
            return Err(ArchivedError::Damaged { key: key.to_owned(), source }.into());
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests;
