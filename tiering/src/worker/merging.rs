//! When files are merged: whenever no sealed segment waits and a partition has files that are worth it.
//!
//! A merge holds [`Merging::under_way`] of its partition throughout, so that there is one at a time and the removal of
//! a topic can wait for it, and the head lock only while it commits. It holds neither memory nor a worker while it
//! waits for the head lock, whose holder may be waiting for both.
//!
//! A merge that fails waits on its own (`tiering.retry_backoff`, as archiving does), and holds up nothing else. Files
//! that turn out damaged are remembered and left alone until the next start: reading them again and again would tell
//! nothing new.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::task::{self, JoinSet};
use tokio::time::Instant;

use super::Tiering;
use super::partition::{Backoff, Key, PartitionArchive};
use super::schedule::{every, is_archiving};
use crate::archived::ArchivedError;
use crate::manifest::{DataFile, Manifest};
use crate::merge::MergeError;
use crate::merge::plan::plan;

/// Merges under way at once, over all partitions. They spend most of their time waiting for the store; memory and
/// processor are bounded elsewhere.
const MERGES_IN_FLIGHT: usize = 4;

/// What is known about the merging of one partition.
#[derive(Default)]
pub(super) struct Merging {
    /// Held by a merge from its plan to its commit, and by what indexes a file again.
    pub under_way: tokio::sync::Mutex<()>,
    backoff: Mutex<Backoff>,
    /// Data keys of files that cannot be merged: bounded by the number of files, and few.
    barred: Mutex<HashSet<String>>,
    /// The version after which there was nothing to merge, plus one.
    at_rest: AtomicU64,
}

impl Merging {
    fn is_due(&self, manifest: &Manifest, now: Instant) -> bool {
        self.commits_since(manifest) > 0 && self.backoff.lock().is_due(now)
    }

    /// Commits since there was nothing to merge.
    fn commits_since(&self, manifest: &Manifest) -> u64 {
        (manifest.version + 1).saturating_sub(self.at_rest.load(Ordering::Relaxed))
    }
}

/// Keeps up to [`MERGES_IN_FLIGHT`] partitions merging, each one merge at a time. What there is to do is looked up
/// once per tick, since that asks every partition; a partition that has merged comes again before the next.
pub(super) async fn merge_loop(tiering: &Arc<Tiering>) {
    let mut jobs: JoinSet<Step> = JoinSet::new();
    let mut busy: HashMap<task::Id, Arc<PartitionArchive>> = HashMap::new();
    let mut pending: Vec<Arc<PartitionArchive>> = Vec::new();
    let mut ticks = every(tiering.config.interval.as_duration());
    loop {
        while busy.len() < MERGES_IN_FLIGHT
            && let Some(archive) = pending.pop()
        {
            let (tiering, job) = (tiering.clone(), archive.clone());
            let spawned = jobs.spawn(async move { merge_one(&tiering, &job).await });
            busy.insert(spawned.id(), archive);
        }
        tokio::select! {
            _ = ticks.tick() => pending = due(tiering, &busy),
            Some(done) = jobs.join_next_with_id(), if !jobs.is_empty() => {
                let (id, step) = done.unwrap_or_else(|broken| (broken.id(), Step::Failed));
                pending.extend(busy.remove(&id).filter(|_| step == Step::Merged));
            }
        }
    }
}

/// Partitions that may have something to merge, if nothing waits to be archived; last the one that has changed most.
/// None once another broker has the store: what is uploaded could not be committed.
fn due(tiering: &Tiering, busy: &HashMap<task::Id, Arc<PartitionArchive>>) -> Vec<Arc<PartitionArchive>> {
    if tiering.fenced().is_some() {
        return Vec::new();
    }
    let now = Instant::now();
    let busy: HashSet<Key> = busy.values().map(|archive| archive.key()).collect();
    let mut due: Vec<_> = tiering.partitions.read().values().cloned().collect();
    due.retain(|archive| {
        !busy.contains(&archive.key())
            && !archive.is_closed()
            && archive.partition.config().remote_storage_enable
            && archive.merging.is_due(&archive.manifest(), now)
    });
    if due.is_empty() || is_archiving(tiering) {
        return Vec::new();
    }
    due.sort_by_cached_key(|archive| archive.merging.commits_since(&archive.manifest()));
    due
}

/// Whether there may be something to merge, whoever may be at it.
pub(super) fn merges_are_due(tiering: &Tiering) -> bool {
    !due(tiering, &HashMap::new()).is_empty()
}

async fn merge_one(tiering: &Tiering, archive: &PartitionArchive) -> Step {
    let partition = archive.partition.topic_partition();
    match merge_next(tiering, archive).await {
        Ok(step) => {
            *archive.merging.backoff.lock() = Backoff::default();
            return step;
        }
        Err(_) if archive.is_closed() => tracing::debug!(%partition, "topic deleted while it was merged"),
        Err(MergeError::Overtaken) => tracing::debug!(%partition, "files were replaced while they were merged"),
        Err(error) => {
            tiering.metrics.merge_failures.inc();
            let config = &tiering.config;
            let (first, longest) = (config.retry_backoff.as_duration(), config.retry_backoff_max.as_duration());
            let wait = archive.merging.backoff.lock().failed(Instant::now(), first, longest);
            let error = &error as &(dyn Error + 'static);
            tracing::warn!(%partition, error, ?wait, "merging failed, the files stay as they are");
        }
    }
    Step::Failed
}

/// What came of looking for something to merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Merged,
    AtRest,
    /// Other merges have it; the next tick tries again.
    NoMemory,
    /// Nothing, for a reason that was reported.
    Failed,
}

/// One merge, if there is one to do.
pub(super) async fn merge_next(tiering: &Tiering, archive: &PartitionArchive) -> Result<Step, MergeError> {
    let _under_way = archive.merging.under_way.lock().await;
    let manifest = archive.manifest();
    let Some(inputs) = next_inputs(tiering, archive, &manifest) else {
        archive.merging.at_rest.store(manifest.version + 1, Ordering::Relaxed);
        return Ok(Step::AtRest);
    };
    let is_cancelled = || archive.is_closed();
    let merged = match tiering.merger.merge(&archive.path, &inputs, &is_cancelled).await {
        Ok(Some(merged)) => merged,
        Ok(None) => return Ok(Step::NoMemory),
        Err(MergeError::Input(ArchivedError::Damaged { .. }) | MergeError::Memory { .. })
            if !names_all(&archive.manifest(), &inputs) =>
        {
            return Err(MergeError::Overtaken);
        }
        Err(error) => {
            bar(archive, &inputs, &error);
            return Err(error);
        }
    };
    let (guard, mut head) = archive.acquire(&tiering.manifests).await.map_err(MergeError::Commit)?;
    if archive.is_closed() {
        return Err(ArchivedError::Aborted.into());
    }
    tiering.merger.commit(merged, &mut head).await?;
    archive.publish(head.manifest());
    archive.release(guard, head);
    let partition = archive.partition.topic_partition();
    tracing::debug!(%partition, files = inputs.len(), "merged data files");
    Ok(Step::Merged)
}

/// A file in which the log start lies is left alone: it goes as a whole before long.
fn next_inputs(tiering: &Tiering, archive: &PartitionArchive, manifest: &Manifest) -> Option<Vec<Arc<DataFile>>> {
    let limits = tiering.merger.limits(&archive.partition.config());
    let log_start = archive.partition.log_start_offset().max(manifest.log_start_offset);
    let barred = archive.merging.barred.lock();
    let is_barred = |file: &DataFile| file.base_offset < log_start || barred.contains(&file.data.key);
    let range = plan(&manifest.files, &limits, is_barred)?;
    Some(range.filter_map(|at| manifest.files.get(at).cloned()).collect())
}

/// Remembers which files cannot be merged: the damaged one, or those that take too much memory together or differ.
fn bar(archive: &PartitionArchive, inputs: &[Arc<DataFile>], error: &MergeError) {
    let is_at_fault = |file: &&Arc<DataFile>| match error {
        MergeError::Input(ArchivedError::Damaged { key, .. }) => file.objects().any(|object| object.key == *key),
        MergeError::Memory { .. } | MergeError::Differ(_) => true,
        _ => false,
    };
    let keys = inputs.iter().filter(is_at_fault).map(|file| file.data.key.clone());
    archive.merging.barred.lock().extend(keys);
}

fn names_all(manifest: &Manifest, inputs: &[Arc<DataFile>]) -> bool {
    let is_named =
        |file: &Arc<DataFile>| manifest.file_for(file.base_offset).is_some_and(|found| found.data.key == file.data.key);
    inputs.iter().all(is_named)
}

#[cfg(test)]
mod tests;
