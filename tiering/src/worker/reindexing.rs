//! When files are indexed again: whenever no sealed segment waits, no partition has files to merge, and a topic's
//! search settings are not those that a file was indexed with.
//!
//! One file at a time, over all partitions, the newest first: that is what is searched most. It shares
//! [`super::merging::Merging::under_way`] with the merges of its partition, so that neither works on what the other is
//! about to replace, and like them holds neither memory nor a worker while it waits for the head lock.
//!
//! Nothing is kept of what is left to do: the manifest says how each file was indexed, the topic how it is to be. A
//! setting that changes again, or a restart, finds the same. A file that fails waits on its own
//! (`tiering.retry_backoff`); one that is damaged, or too large for the memory, is left alone until the next start or
//! the next change.

use std::collections::HashSet;
use std::error::Error;
use std::sync::Arc;

use parking_lot::Mutex;
use thermocline_ingest::log::Partition;
use thermocline_ingest::model::Offset;
use tokio::time::Instant;

use super::Tiering;
use super::merging::merges_are_due;
use super::partition::{Backoff, PartitionArchive};
use super::schedule::{every, is_archiving};
use crate::archived::ArchivedError;
use crate::manifest::{DataFile, Manifest};
use crate::reindex::{ReindexError, outdated};
use crate::split::SplitOptions;

/// Files of a partition that are indexed again before merges are asked for: each commit might give them something to
/// do, which they find out at their own pace.
const FILES_PER_TURN: usize = 16;

/// What is known about the indexing again of one partition.
#[derive(Default)]
pub(super) struct Reindexing {
    backoff: Mutex<Backoff>,
    scan: Mutex<Scan>,
}

/// Where the search for files to index again stands, for one way of indexing.
#[derive(Default)]
struct Scan {
    /// `None` before the first.
    wanted: Option<Option<SplitOptions>>,
    /// Whatever starts here or above was found to be as wanted; what comes later mostly is.
    below: Option<Offset>,
    /// The version of the manifest in which there was nothing to do.
    at_rest: Option<u64>,
    /// Data keys of files that cannot be indexed: bounded by the number of files, and few.
    barred: HashSet<String>,
    /// Files to do in this version of the manifest.
    counted: Option<(u64, i64)>,
}

/// How much of a partition's archive is indexed as its topic asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ReindexProgress {
    /// Files that were indexed in another way, or not at all, or are and should not be.
    pub files: usize,
    /// Log bytes that they stand for.
    pub log_bytes: u64,
    /// Files that cannot be indexed again, for a reason that was logged; they count above as well.
    pub failed_files: usize,
    /// Whether they are being indexed again (`search.reindex`).
    pub enabled: bool,
}

impl Scan {
    /// Forgets what is known of other settings.
    fn follow(&mut self, wanted: Option<SplitOptions>) {
        if self.wanted != Some(wanted) {
            *self = Self { wanted: Some(wanted), ..Self::default() };
        }
    }

    /// The newest file that is to be indexed again. `wanted` must have been followed.
    fn next(&mut self, manifest: &Manifest, wanted: Option<SplitOptions>, log_start: Offset) -> Option<Arc<DataFile>> {
        if self.at_rest == Some(manifest.version) {
            return None;
        }
        loop {
            let end = match self.below {
                Some(below) => manifest.files.partition_point(|file| file.base_offset < below),
                None => manifest.files.len(),
            };
            for file in (0..end).rev().filter_map(|at| manifest.files.get(at)) {
                if file.last_offset < log_start {
                    break;
                }
                if outdated(file, wanted) && !self.barred.contains(&file.data.key) {
                    self.below = Some(file.last_offset.next());
                    return Some(file.clone());
                }
            }
            // What was added meanwhile may have been made before the settings changed.
            if self.below.take().is_none() {
                self.at_rest = Some(manifest.version);
                return None;
            }
        }
    }

    fn pending(&mut self, manifest: &Manifest, wanted: Option<SplitOptions>) -> i64 {
        match self.counted {
            Some((version, count)) if version == manifest.version => count,
            _ => {
                let count = manifest.files.iter().filter(|file| outdated(file, wanted)).count();
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                self.counted = Some((manifest.version, count));
                count
            }
        }
    }
}

/// What comes of looking for a file to index again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Reindexed,
    AtRest,
    /// Merges have it; the next tick tries again.
    NoMemory,
}

/// Indexes one file after the other, as long as there is nothing better to do.
pub(super) async fn reindex_loop(tiering: &Arc<Tiering>) {
    let mut ticks = every(tiering.config.interval.as_duration());
    loop {
        ticks.tick().await;
        report(tiering);
        let archives: Vec<_> = tiering.partitions.read().values().cloned().collect();
        for archive in archives {
            if is_due(&archive) && !merges_are_due(tiering) {
                take_turn(tiering, &archive).await;
            }
        }
    }
}

async fn take_turn(tiering: &Tiering, archive: &PartitionArchive) {
    for _ in 0..FILES_PER_TURN {
        // What is uploaded could not be committed once another broker has the store.
        let is_free = tiering.fenced().is_none() && !is_archiving(tiering);
        if !is_free || !is_due(archive) || !reindex_one(tiering, archive).await {
            return;
        }
    }
}

/// Whether there may be something to do.
fn is_due(archive: &PartitionArchive) -> bool {
    let Some(wanted) = wanted(&archive.partition) else { return false };
    let mut scan = archive.reindexing.scan.lock();
    scan.follow(wanted);
    let manifest = archive.manifest();
    !manifest.files.is_empty()
        && scan.at_rest != Some(manifest.version)
        && archive.reindexing.backoff.lock().is_due(Instant::now())
        && !archive.is_closed()
}

/// How a partition's files are to be indexed, if they are to be indexed again at all.
fn wanted(partition: &Partition) -> Option<Option<SplitOptions>> {
    let config = partition.config();
    config.search_reindex.then(|| SplitOptions::of_topic(&config))
}

/// Says whether to go on with the partition at once.
async fn reindex_one(tiering: &Tiering, archive: &PartitionArchive) -> bool {
    let partition = archive.partition.topic_partition();
    match reindex_next(tiering, archive).await {
        Ok(step) => {
            *archive.reindexing.backoff.lock() = Backoff::default();
            return step == Step::Reindexed;
        }
        Err(_) if archive.is_closed() => tracing::debug!(%partition, "topic deleted while a file was indexed again"),
        Err(ReindexError::Overtaken) => tracing::debug!(%partition, "a file was replaced while it was indexed again"),
        Err(error) => {
            tiering.metrics.reindex_failures.inc();
            let config = &tiering.config;
            let (first, longest) = (config.retry_backoff.as_duration(), config.retry_backoff_max.as_duration());
            let wait = archive.reindexing.backoff.lock().failed(Instant::now(), first, longest);
            let error = &error as &(dyn Error + 'static);
            tracing::warn!(%partition, error, ?wait, "indexing a file again failed, it stays as it is");
        }
    }
    false
}

/// One file, if there is one to do.
pub(super) async fn reindex_next(tiering: &Tiering, archive: &PartitionArchive) -> Result<Step, ReindexError> {
    let _under_way = archive.merging.under_way.lock().await;
    let Some(wanted) = wanted(&archive.partition) else { return Ok(Step::AtRest) };
    let log_start = archive.partition.log_start_offset();
    let next = {
        let mut scan = archive.reindexing.scan.lock();
        scan.follow(wanted);
        scan.next(&archive.manifest(), wanted, log_start)
    };
    let Some(file) = next else { return Ok(Step::AtRest) };
    let is_cancelled = || archive.is_closed() || self::wanted(&archive.partition) != Some(wanted);
    let made = match tiering.reindexer.reindex(&archive.path, &file, wanted, &is_cancelled).await {
        Ok(Some(made)) => made,
        Ok(None) => return Ok(Step::NoMemory),
        Err(_) if is_cancelled() || !names(&archive.manifest(), &file) => return Err(ReindexError::Overtaken),
        Err(error) => {
            if matches!(error, ReindexError::Input(ArchivedError::Damaged { .. }) | ReindexError::Memory { .. }) {
                archive.reindexing.scan.lock().barred.insert(file.data.key.clone());
            }
            return Err(error);
        }
    };
    tiering.describe_topic(archive).await.map_err(ReindexError::Commit)?;
    let (guard, mut head) = archive.acquire(&tiering.manifests).await.map_err(ReindexError::Commit)?;
    if is_cancelled() {
        archive.release(guard, head);
        return Err(ReindexError::Overtaken);
    }
    tiering.reindexer.commit(made, &mut head).await?;
    archive.publish(head.manifest());
    archive.release(guard, head);
    let partition = archive.partition.topic_partition();
    tracing::debug!(%partition, file = file.data.key, "indexed a file again");
    Ok(Step::Reindexed)
}

fn names(manifest: &Manifest, file: &Arc<DataFile>) -> bool {
    manifest.file_for(file.base_offset) == Some(file)
}

/// Tells how many files there are to do, over all partitions.
fn report(tiering: &Tiering) {
    let archives: Vec<_> = tiering.partitions.read().values().cloned().collect();
    let pending = archives.iter().map(|archive| {
        let Some(wanted) = wanted(&archive.partition) else { return 0 };
        let mut scan = archive.reindexing.scan.lock();
        scan.follow(wanted);
        scan.pending(&archive.manifest(), wanted)
    });
    tiering.metrics.reindex_pending.set(pending.sum());
}

impl Tiering {
    /// How much of a partition's archive is still to be indexed as its topic asks for. Looks at every file.
    pub fn reindexing(&self, partition: &Partition) -> ReindexProgress {
        let key = (partition.topic_id(), partition.topic_partition().partition);
        let Some(archive) = self.partitions.read().get(&key).cloned() else { return ReindexProgress::default() };
        let config = partition.config();
        let wanted = SplitOptions::of_topic(&config);
        let scan = archive.reindexing.scan.lock();
        let mut progress = ReindexProgress { enabled: config.search_reindex, ..ReindexProgress::default() };
        let log_start = partition.log_start_offset();
        let is_left = |file: &&Arc<DataFile>| file.last_offset >= log_start && outdated(file, wanted);
        for file in archive.manifest().files.iter().filter(is_left) {
            progress.files += 1;
            progress.log_bytes += file.log_bytes;
            progress.failed_files += usize::from(scan.barred.contains(&file.data.key));
        }
        progress
    }
}

#[cfg(test)]
mod tests;
