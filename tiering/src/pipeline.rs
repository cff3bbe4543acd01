//! The cold path of a sealed segment, from decode to commit: [`Archiver::archive_segment`] is all of it.
//!
//! Types are stations: `SealedSegment` (the log's) -> [`StagedArchive`] (named objects in memory) -> `VerifiedArchive`
//! (in the store, read back, equal) -> [`CommittedSegment`] (named by the manifest). Each is made only from the one
//! before it. Deleting local copies is not part of it: the log does that, up to what was published as archived.
//! Merging (`merge.rs`) puts other files in front and takes the same stations from [`StagedArchive`] on.
//!
//! # Invariants
//! 1. A manifest names only what was read back and verified.
//! 2. `archived_through` is published only after the manifest commit.
//! 3. Memory of all jobs together stays below `tiering.memory_max`, each job below [`Archiver::job_bytes`]. Merging has
//!    a share of it, a [`MERGE_SHARE`]th, and archiving the rest, so that neither ever waits for the other's.
//!
//! # Crashes and failures
//!
//! | died or failed here | then |
//! |---|---|
//! | staging | nothing happened |
//! | some uploads done | orphans; the next attempt uses fresh names |
//! | verification does not agree | orphans; hot copy kept, alarm metric, next attempt starts from the log again |
//! | commit failed, or its answer was lost | the caller loads the manifest: it names the file or it does not |
//! | committed, not published | published when the manifest is loaded at start |
//! | a segment of several files, some committed | the next attempt goes on after the last committed one |

mod builder;
mod prepared;
mod stage;

use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use futures::stream::FuturesUnordered;
use object_store::path::Path as ObjectPath;
use thermocline_config::TieringConfig;
use thermocline_ingest::log::AbortedTransaction;
use thermocline_ingest::read::ReadError;
use thermocline_ingest::record::DECOMPRESSED_BATCH_BYTES_MAX;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::background::{Background, BackgroundError};
use crate::manifest::{Change, CommitOutcome, DataFile, Manifest, ManifestError, ManifestHead, ManifestStore};
use crate::metrics::TieringMetrics;
use crate::parquet::ROW_GROUP_COPIES;
use crate::store::{ColdStore, StoreError, Work};
use crate::verify::{self, VerifyError};
pub use builder::StagedArchive;
pub(crate) use builder::{FileBuilder, Indexing};
pub use prepared::PreparedSource;
pub use stage::{BatchSource, Batches, StageError, StageOptions, Stager};

/// The memory budget is counted in units of this size, since a semaphore counts to 2^32 at most.
const BUDGET_UNIT_BYTES: u64 = 64 << 10;
/// Copies of a data file that a job may hold at once: as staged, and as read back.
const FILE_COPIES: u64 = 2;
/// The share of `tiering.memory_max` that merging has, as a divisor.
pub const MERGE_SHARE: u64 = 4;

/// Why a segment was not (wholly) archived.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("staging")]
    Stage(#[from] StageError),
    #[error("looking for aborted transactions")]
    Aborts(#[source] ReadError),
    #[error("uploading")]
    Upload(#[from] StoreError),
    #[error("verification failed, nothing is committed")]
    Verify(#[from] VerifyError),
    #[error("committing")]
    Commit(#[from] ManifestError),
    #[error("another commit came first, at version {version}; the work is done again from there")]
    Superseded { version: u64 },
    #[error("running in the background")]
    Background(#[from] BackgroundError),
    #[error("archiving was cut off")]
    Aborted,
}

/// What all archive jobs share.
#[derive(Clone)]
pub struct Archiver {
    store: ColdStore,
    manifests: ManifestStore,
    background: Background,
    metrics: Arc<TieringMetrics>,
    budget: Arc<Semaphore>,
    job_units: u32,
    merge_budget: Arc<Semaphore>,
}

/// One segment to archive.
pub struct ArchiveJob {
    pub batches: BatchSource,
    /// Aborted transactions that lie in it.
    pub aborted: Vec<AbortedTransaction>,
    pub options: StageOptions,
    /// Who has splits of it, if anybody.
    pub prepared: Option<PreparedSource>,
}

/// A data file whose objects the store gave back as they were staged.
pub(crate) struct VerifiedArchive(DataFile);

impl VerifiedArchive {
    pub fn into_file(self) -> DataFile {
        self.0
    }
}

/// Data files that the manifest names: the segment's local copy may go.
#[derive(Debug, Default)]
pub struct CommittedSegment {
    files: Vec<Arc<DataFile>>,
}

impl CommittedSegment {
    pub fn files(&self) -> &[Arc<DataFile>] {
        &self.files
    }
}

impl Archiver {
    pub fn new(
        store: ColdStore,
        manifests: ManifestStore,
        background: Background,
        config: &TieringConfig,
        metrics: Arc<TieringMetrics>,
    ) -> Self {
        let merge_units = units(Self::merge_bytes(config));
        let budget_units = units(config.memory_max.as_u64().saturating_sub(Self::merge_bytes(config)));
        let job_units = units(Self::job_bytes(config)).min(budget_units);
        let store = store.of(Work::Archive);
        let budget = Arc::new(Semaphore::new(budget_units as usize));
        let merge_budget = Arc::new(Semaphore::new(merge_units as usize));
        Self { store, manifests, background, metrics, budget, job_units, merge_budget }
    }

    /// Memory that all merges together may hold.
    pub fn merge_bytes(config: &TieringConfig) -> u64 {
        config.memory_max.as_u64() / MERGE_SHARE
    }

    /// Memory for a merge, or for indexing again, that holds `bytes`, if there is enough just now.
    pub(crate) fn reserve_for_merge(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        self.merge_budget.clone().try_acquire_many_owned(units(bytes)).ok()
    }

    /// Memory one job may hold: a data file twice, the row groups under way, and one decompressed batch. Splits that
    /// are merged for a file fit into it beside the file, which is held once by then.
    pub fn job_bytes(config: &TieringConfig) -> u64 {
        let row_groups = config.row_group_bytes.as_u64().saturating_mul(ROW_GROUP_COPIES);
        let file = Self::file_bytes_max(config) as u64;
        file.saturating_mul(FILE_COPIES).saturating_add(row_groups).saturating_add(DECOMPRESSED_BATCH_BYTES_MAX as u64)
    }

    /// Where a segment continues in a further file: at `data_file_bytes`, or earlier where `memory_max` is small.
    pub fn file_bytes_max(config: &TieringConfig) -> usize {
        let memory = config.memory_max.as_u64().saturating_sub(Self::merge_bytes(config));
        config.data_file_bytes.as_usize().min((memory / (FILE_COPIES + 1)) as usize).max(1)
    }

    /// Archives one sealed segment from where `head` ends, in one or several data files, each committed in order.
    ///
    /// After each commit `head` is the new manifest and `publish` is called with it. On an error the files committed
    /// before it stand, and `head` may be behind the store: load it again before the next attempt.
    pub async fn archive_segment(
        &self,
        job: ArchiveJob,
        head: &mut ManifestHead,
        publish: &(dyn Fn(&Arc<Manifest>) + Send + Sync),
    ) -> Result<CommittedSegment, ArchiveError> {
        let _memory = self.budget.acquire_many(self.job_units).await.map_err(|_| ArchiveError::Aborted)?;
        let ArchiveJob { batches, aborted, options, prepared } = job;
        let mut stager = Stager::new(batches, aborted, head.manifest().next_offset(), options, prepared);
        let mut committed = CommittedSegment::default();
        loop {
            let staging = self.metrics.stage_seconds("stage").start_timer();
            let (back, staged) = stage_next(&self.background, stager).await?;
            stager = back;
            let Some(staged) = staged? else {
                staging.stop_and_discard();
                break;
            };
            staging.stop_and_record();
            let took_splits = staged.took_splits();

            let verified = self.upload_and_verify(staged).await?;

            let committing = self.metrics.stage_seconds("commit").start_timer();
            let file = self.commit(verified, head).await?;
            committing.stop_and_record();

            publish(head.manifest());
            self.metrics.archived_splits_taken.inc_by(u64::from(took_splits));
            committed.files.push(file);
        }
        self.metrics.archived_segments.inc();
        Ok(committed)
    }

    /// Brings a staged file into the store and reads it back. On an error its objects are orphans.
    pub(crate) async fn upload_and_verify(&self, staged: StagedArchive) -> Result<VerifiedArchive, ArchiveError> {
        let uploading = self.metrics.stage_seconds("upload").start_timer();
        self.upload(&staged).await?;
        uploading.stop_and_record();

        let verifying = self.metrics.stage_seconds("verify").start_timer();
        let verified = self.verify(staged).await?;
        verifying.stop_and_record();
        Ok(verified)
    }

    /// Brings the split of a file that is archived already into the store and reads it back. On an error it is an
    /// orphan.
    pub(crate) async fn upload_and_verify_split(
        &self,
        file: Arc<DataFile>,
        key: &ObjectPath,
        bytes: Bytes,
    ) -> Result<(), ArchiveError> {
        self.store.put(key, bytes).await?;
        let verified = verify::read_back_split(&self.store, &self.background, &file).await;
        if verified.as_ref().is_err_and(VerifyError::is_mismatch) {
            self.metrics.verification_failures.inc();
        }
        Ok(verified?)
    }

    /// All objects of a file at once.
    async fn upload(&self, staged: &StagedArchive) -> Result<(), StoreError> {
        let puts: FuturesUnordered<_> =
            staged.objects().iter().map(|(key, bytes)| self.store.put(key, bytes.clone())).collect();
        puts.try_collect::<()>().await
    }

    async fn verify(&self, staged: StagedArchive) -> Result<VerifiedArchive, VerifyError> {
        match verify::read_back(&self.store, &self.background, &staged).await {
            Ok(()) => Ok(VerifiedArchive(staged.into_file())),
            Err(error) => {
                if error.is_mismatch() {
                    self.metrics.verification_failures.inc();
                }
                Err(error)
            }
        }
    }

    async fn commit(&self, verified: VerifiedArchive, head: &mut ManifestHead) -> Result<Arc<DataFile>, ArchiveError> {
        match self.manifests.commit(head, Change::Append(Arc::new(verified.into_file()))).await? {
            CommitOutcome::Superseded(newest) => {
                let version = newest.manifest().version;
                *head = newest;
                Err(ArchiveError::Superseded { version })
            }
            CommitOutcome::Committed(next) => {
                *head = next;
                let file = head.manifest().files.last().cloned().ok_or(ArchiveError::Aborted)?;
                self.count(&file);
                Ok(file)
            }
        }
    }

    fn count(&self, file: &DataFile) {
        let metrics = &self.metrics;
        let raw = file.raw.as_ref();
        metrics.archived_records.inc_by(file.records());
        metrics.archived_log_bytes.inc_by(file.log_bytes);
        metrics.archived_data_bytes.inc_by(file.data.size_bytes + raw.map_or(0, |raw| raw.object.size_bytes));
        metrics.archived_index_bytes.inc_by(file.split.as_ref().map_or(0, |split| split.size_bytes));
        metrics.archived_raw_batches.inc_by(raw.map_or(0, |raw| raw.batches.len() as u64));
    }
}

fn units(bytes: u64) -> u32 {
    u32::try_from(bytes / BUDGET_UNIT_BYTES).unwrap_or(u32::MAX >> 4).max(1)
}

/// Stages the next file in the background, and gives the stager back.
async fn stage_next(
    background: &Background,
    mut stager: Stager,
) -> Result<(Stager, Result<Option<StagedArchive>, StageError>), BackgroundError> {
    let staging = background.run("archive-stage", move || {
        let staged = stager.next_file();
        (stager, staged)
    });
    staging.await
}

#[cfg(test)]
mod tests;
