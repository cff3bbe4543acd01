//! Merging: neighbouring small data files become one large one, in the background. [`plan`] says which, [`Merger`] does
//! it, `worker/merging.rs` says when.
//!
//! The records come out of the Parquet files row group by row group and go into a new file; batches kept raw are
//! carried over; the splits are merged as they are (`split/merge.rs`), or the records are indexed again where the
//! splits were made in different ways. From there on it is the way of a segment: upload, read back and verify, commit.
//!
//! # Invariants
//! 1. What is put into the merged file is what the manifest says of the inputs (`archived.rs`). An input that does not
//!    agree is damaged: nothing is merged, everything stays as it is.
//! 2. Merging changes no answer. The merged file has the records, offsets, times and raw batches of its inputs, and
//!    finds with its index what they found with theirs. So files that were indexed in different ways, or not at all,
//!    are not merged with each other; indexing them again (`reindex.rs`) makes them equal.
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
use thermocline_config::{TieringConfig, TopicConfig};
use tokio::sync::Semaphore;

use crate::archived::{ArchivedError, ArchivedReader};
use crate::background::Background;
use crate::manifest::{Change, CommitOutcome, DataFile, ManifestError, ManifestHead, ManifestStore, ObjectRef};
use crate::metrics::TieringMetrics;
use crate::parquet::{ParquetOptions, ROW_GROUP_COPIES};
use crate::paths::PartitionPath;
use crate::pipeline::{ArchiveError, Archiver, FileBuilder, Indexing, StageError, VerifiedArchive};
use crate::split::{SplitError, SplitJoin, SplitReader, SplitWriter};
use crate::store::{ColdStore, StoreError};
use plan::{MergeLimits, held_bytes};

/// Copies of what is merged that are in memory at once: an output that grows by doubling, beside the inputs' splits or
/// what is read back.
const COPIES: u64 = 3;
/// Share of a topic's `retention.ms` and `retention.bytes` that one merged file may take up, as a divisor: that much
/// longer, or more, may be kept than was asked for.
const RETENTION_SHARE: u64 = 8;
/// Splits read at once.
const SPLITS_IN_FLIGHT: usize = 8;

/// Why files were not merged. They stay as they are.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    #[error(transparent)]
    Input(#[from] ArchivedError),
    #[error("the files cannot be merged before they are indexed in the same way")]
    Differ(#[source] SplitError),
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
    reader: ArchivedReader,
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
        Self {
            archiver,
            manifests,
            reader: ArchivedReader::new(store.clone(), background, workers),
            store,
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
    /// it just now. Between two steps it asks `is_cancelled`. Whatever it leaves behind is an orphan until
    /// [`Self::commit`].
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
        let staged = self.reader.on_worker(move || Ok::<_, MergeError>(file.finish(&name)?)).await?;
        let Some(staged) = staged.filter(|_| !is_cancelled()) else { return Err(ArchivedError::Aborted.into()) };
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
            .map(|(input, split)| self.reader.split(input, split))
            .buffered(SPLITS_IN_FLIGHT)
            .try_collect()
            .await?;
        let index = move || match SplitJoin::of(splits) {
            Ok(SplitJoin::Merge(merger)) => Ok(Indexing::Splits(merger)),
            Ok(SplitJoin::IndexAgain(options)) => {
                let writer = SplitWriter::new(options).map_err(StageError::Split)?;
                Ok(Indexing::Records(Box::new(writer)))
            }
            Err(differ @ SplitError::Analysers { .. }) => Err(MergeError::Differ(differ)),
            Err(error) => Err(MergeError::Stage(error.into())),
        };
        self.reader.on_worker(index).await
    }

    /// Adds the records of one input, one row group at a time, and what it keeps raw.
    async fn add_file(
        &self,
        file: FileBuilder,
        input: &Arc<DataFile>,
        is_cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<FileBuilder, MergeError> {
        let max = self.memory_bytes;
        let fits = move |file: &mut FileBuilder| match file.memory_bytes() as u64 {
            held if held > max => Err(MergeError::Memory { held, max }),
            _ => Ok(()),
        };
        let mut file = self.reader.fold(input, file, |file, record| Ok(file.add(record)?), fits, is_cancelled).await?;
        let raw = match &input.raw {
            Some(raw) => self.reader.object(&raw.object).await?,
            None => bytes::Bytes::new(),
        };
        file.cover_file(input, &raw);
        Ok(file)
    }
}

#[cfg(test)]
mod tests;
