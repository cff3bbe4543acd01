//! When what happens in the background: archiving as soon as segments are sealed, merging in between
//! (`worker/merging.rs`), indexing again in between that (`worker/reindexing.rs`), expiry every [`EXPIRY_INTERVAL`], a
//! sweep of the store every [`SWEEP_INTERVAL`], the scrub all the time (`scrub.rs`).

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use thermocline_ingest::model::{Offset, Timestamp, TopicId, TopicName};
use thermocline_ingest::topics::{TopicChange, TopicError, Topics};
use tokio::sync::broadcast::error::RecvError;
use tokio::task::{self, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;

use super::merging::merge_loop;
use super::partition::{Backoff, Key, PartitionArchive};
use super::reindexing::reindex_loop;
use super::{ArchiveReport, Tiering, TieringError};
use crate::janitor::{JanitorError, Removal, Seen};
use crate::manifest::{Manifest, ManifestHead};
use crate::paths::PartitionPath;
use crate::retention::{self, Holdings, Piece, Retention};
use crate::scrub::Archives;

/// How often retention is applied and deleted topics are noticed.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(10);
/// How often orphans are looked for: it lists every partition's folders.
const SWEEP_INTERVAL: Duration = Duration::from_secs(3600);
/// Commits of a partition after which its old manifest versions go, so that listing them stays one request.
const VERSION_TRIM_EVERY: u64 = 64;

pub(super) async fn run(tiering: Arc<Tiering>, shutdown: CancellationToken) {
    let scrub = tiering.scrubber.run(tiering.as_ref());
    let work = async {
        tokio::join!(
            archive_loop(&tiering),
            merge_loop(&tiering),
            reindex_loop(&tiering),
            janitor_loop(&tiering),
            sweep_loop(&tiering),
            scrub
        )
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        _ = work => {}
    }
}

impl Archives for Tiering {
    fn paths(&self) -> Vec<PartitionPath> {
        let partitions = self.partitions.read();
        partitions.values().filter(|archive| !archive.is_closed()).map(|archive| archive.path.clone()).collect()
    }

    fn manifest(&self, path: &PartitionPath) -> Option<Arc<Manifest>> {
        let archive = self.partitions.read().get(&(path.topic_id, path.partition)).cloned();
        archive.filter(|archive| !archive.is_closed()).map(|archive| archive.manifest())
    }
}

/// Keeps `tiering.workers` partitions busy, the one with the oldest waiting segment first.
async fn archive_loop(tiering: &Arc<Tiering>) {
    let mut jobs: JoinSet<()> = JoinSet::new();
    let mut busy: HashMap<task::Id, Arc<PartitionArchive>> = HashMap::new();
    let mut ticks = every(tiering.config.interval.as_duration());
    loop {
        let free = tiering.config.workers.max(1).saturating_sub(busy.len());
        for archive in waiting(tiering, &busy).into_iter().take(free) {
            let (tiering, job) = (tiering.clone(), archive.clone());
            let spawned = jobs.spawn(async move { archive_one(&tiering, &job).await });
            busy.insert(spawned.id(), archive);
        }
        tokio::select! {
            _ = ticks.tick() => {}
            Some(done) = jobs.join_next_with_id(), if !jobs.is_empty() => match done {
                Ok((id, ())) => { busy.remove(&id); }
                Err(broken) => if let Some(archive) = busy.remove(&broken.id()) {
                    failed(tiering, &archive, &broken);
                },
            },
        }
    }
}

/// Partitions with a sealed segment that is not archived and no job or wait of their own, the oldest segment first.
fn waiting(tiering: &Tiering, busy: &HashMap<task::Id, Arc<PartitionArchive>>) -> Vec<Arc<PartitionArchive>> {
    let now = Instant::now();
    let busy: HashSet<Key> = busy.values().map(|archive| archive.key()).collect();
    let archives: Vec<_> = tiering.partitions.read().values().cloned().collect();
    let mut due: Vec<(Timestamp, Arc<PartitionArchive>)> = archives
        .into_iter()
        .filter(|archive| !busy.contains(&archive.key()) && archive.is_due(now) && !archive.is_closed())
        .filter(|archive| archive.partition.config().remote_storage_enable)
        .filter_map(|archive| {
            let next = archive.manifest().next_offset().max(archive.partition.log_start_offset());
            let oldest = archive.unarchived_segments(next).first()?.max_timestamp;
            Some((oldest, archive))
        })
        .collect();
    due.sort_by_key(|(oldest, _)| *oldest);
    due.into_iter().map(|(_, archive)| archive).collect()
}

/// One segment, so that partitions take turns.
async fn archive_one(tiering: &Tiering, archive: &PartitionArchive) {
    let mut report = ArchiveReport::default();
    let outcome = tiering.archive_sealed(archive, 1, &mut report).await;
    let partition = archive.partition.topic_partition();
    match outcome {
        Ok(()) => {
            archive.succeeded();
            if report.files > 0 {
                tracing::debug!(%partition, files = report.files, records = report.records, "archived a segment");
            }
        }
        Err(_) if archive.is_closed() => tracing::debug!(%partition, "topic deleted while it was archived"),
        Err(error) => failed(tiering, archive, &error),
    }
}

/// Whether a sealed segment waits that could be archived now, whoever may be at it.
pub(super) fn is_archiving(tiering: &Tiering) -> bool {
    !waiting(tiering, &HashMap::new()).is_empty()
}

fn failed(tiering: &Tiering, archive: &PartitionArchive, error: &(dyn Error + 'static)) {
    tiering.metrics.archive_failures.inc();
    let config = &tiering.config;
    let (first, longest) = (config.retry_backoff.as_duration(), config.retry_backoff_max.as_duration());
    let wait = archive.failed(Instant::now(), first, longest);
    let partition = archive.partition.topic_partition();
    tracing::warn!(%partition, error, ?wait, "archiving failed, the hot copy is kept");
}

async fn janitor_loop(tiering: &Arc<Tiering>) {
    let mut changes = tiering.topics.subscribe();
    let mut expiry = every(EXPIRY_INTERVAL);
    let mut removing = Backoff::default();
    remove_deleted_topics(tiering, &mut removing).await;
    loop {
        tokio::select! {
            _ = expiry.tick(), if tiering.fenced().is_none() => {
                remove_deleted_topics(tiering, &mut removing).await;
                for_each_archive(tiering, expire).await;
            }
            change = changes.recv() => match change {
                Ok(TopicChange::Created(topic)) => tiering.follow_topic(&topic),
                Ok(TopicChange::Grown(topic)) => {
                    tiering.follow_topic(&topic);
                    tiering.describe_again(&topic).await;
                }
                Ok(TopicChange::Deleted(_)) | Err(RecvError::Lagged(_)) => {
                    remove_deleted_topics(tiering, &mut removing).await;
                }
                Err(RecvError::Closed) => return,
            },
        }
    }
}

/// Apart from the janitor's other work, since listing a large store takes its time.
async fn sweep_loop(tiering: &Arc<Tiering>) {
    let mut ticks = every(SWEEP_INTERVAL);
    loop {
        ticks.tick().await;
        if tiering.fenced().is_some() {
            continue;
        }
        let is_live = |id| tiering.topics.by_id(id).is_some();
        noted(tiering, "finishing the removal of topics", tiering.janitor.finish_removals(is_live).await);
        sweep_partitions(tiering).await;
        noted(tiering, "deleting old epochs", tiering.janitor.trim_epochs().await);
    }
}

async fn for_each_archive(
    tiering: &Arc<Tiering>,
    work: impl AsyncFn(&Tiering, &PartitionArchive) -> Result<(), TieringError>,
) {
    let archives: Vec<_> = tiering.partitions.read().values().cloned().collect();
    for archive in archives.iter().filter(|archive| !archive.is_closed()) {
        noted(tiering, "tidying a partition", work(tiering, archive).await);
    }
}

/// Follows the catalogue; what has left it goes from the store too, once its jobs have ended. Goes on until it is done,
/// over failures of the store (with growing waits) and over restarts: the catalogue notes what is left.
async fn remove_deleted_topics(tiering: &Tiering, backoff: &mut Backoff) {
    if tiering.fenced().is_some() {
        return;
    }
    // The notes first: a topic that is noted now is out of the catalogue, hence closed by what follows.
    let noted_now = blocking_topics(tiering, |topics| topics.removals()).await;
    if let Ok(topics) = &noted_now {
        tiering.metrics.removals_pending.set(i64::try_from(topics.len()).unwrap_or(i64::MAX));
    }
    for archive in tiering.follow_topics() {
        archive.close().await;
    }
    if !backoff.is_due(Instant::now()) {
        return;
    }
    let removed = match noted_now {
        Ok(noted_now) => remove_all(tiering, noted_now).await,
        Err(error) => Err(error),
    };
    if removed.is_err() {
        let (first, longest) = (tiering.config.retry_backoff, tiering.config.retry_backoff_max);
        backoff.failed(Instant::now(), first.as_duration(), longest.as_duration());
    } else {
        *backoff = Backoff::default();
    }
    noted(tiering, "removing deleted topics", removed);
}

/// The first failure is told; it keeps from trying the others only where the store is down.
async fn remove_all(tiering: &Tiering, topics: Vec<(TopicName, TopicId)>) -> Result<(), TieringError> {
    let mut outcome = Ok(());
    for (topic, id) in topics {
        match tiering.janitor.remove_topic(&topic, id).await {
            Ok(Removal::Done) => {
                blocking_topics(tiering, move |topics| topics.removal_done(id)).await?;
                tiering.metrics.removals_pending.dec();
                tracing::info!(%topic, %id, "a deleted topic is gone from the store");
            }
            Ok(Removal::Unfinished) => {}
            Err(source) => {
                let is_down = source.is_transient();
                outcome = outcome.and(Err(TieringError::Removal { topic, source }));
                if is_down {
                    break;
                }
            }
        }
    }
    outcome
}

async fn blocking_topics<T: Send + 'static>(
    tiering: &Tiering,
    ask: impl FnOnce(&Topics) -> Result<T, TopicError> + Send + 'static,
) -> Result<T, TieringError> {
    let topics = tiering.topics.clone();
    let asked = task::spawn_blocking(move || ask(&topics)).await.map_err(TieringError::Stopped)?;
    Ok(asked?)
}

/// Raises the log start by the topic's retention, then drops what lies below it from the archive.
pub(super) async fn expire(tiering: &Tiering, archive: &PartitionArchive) -> Result<(), TieringError> {
    let partition = &archive.partition;
    let config = partition.config();
    let failed =
        |source: JanitorError| TieringError::Janitor { partition: partition.topic_partition().clone(), source };
    if config.remote_storage_enable {
        let limits = Retention { ms: config.retention_ms, bytes: config.retention_bytes };
        let start = retention::log_start(limits, tiering.clock.now(), &holdings(archive));
        tiering.raise_log_start(partition, start).await?;
    }
    let manifest = archive.manifest();
    let log_start = partition.log_start_offset();
    let has_expired = manifest.files.first().is_some_and(|file| file.last_offset < log_start);
    let has_due = archive.oldest_retired().is_some_and(|at| tiering.janitor.is_due(at));
    let trims = archive.take_version_trim(manifest.version, VERSION_TRIM_EVERY);
    if !has_expired && !has_due && !trims {
        return Ok(());
    }
    let (guard, mut head) = archive.acquire(&tiering.manifests).await.map_err(|source| failed(source.into()))?;
    let publish = |head: &ManifestHead| archive.publish(head.manifest());
    tiering.janitor.delete_retired(&mut head, &publish).await.map_err(failed)?;
    tiering.janitor.expire(&mut head, log_start, &publish).await.map_err(failed)?;
    if trims {
        tiering.janitor.trim_versions(&archive.path).await.map_err(failed)?;
    }
    archive.release(guard, head);
    Ok(())
}

/// Looks for orphans in every partition's folders, and tells how many there were.
async fn sweep_partitions(tiering: &Tiering) {
    let mut seen = Seen::default();
    let archives: Vec<_> = tiering.partitions.read().values().cloned().collect();
    for archive in archives.iter().filter(|archive| !archive.is_closed()) {
        noted(tiering, "sweeping a partition", sweep_partition(tiering, archive, &mut seen).await);
    }
    tiering.janitor.report(seen);
}

/// Archiving waits only while suspects are deleted; see the janitor's sweep.
pub(super) async fn sweep_partition(
    tiering: &Tiering,
    archive: &PartitionArchive,
    seen: &mut Seen,
) -> Result<(), TieringError> {
    let partition = archive.partition.topic_partition();
    let failed = |source| TieringError::Janitor { partition: partition.clone(), source };
    let head = {
        let (guard, head) = archive.acquire(&tiering.manifests).await.map_err(|source| failed(source.into()))?;
        archive.release(guard, head.clone());
        head
    };
    let mut sweep = tiering.janitor.sweep(&archive.path, &head);
    loop {
        let suspects = sweep.suspects(seen).await.map_err(failed)?;
        if suspects.is_empty() || archive.is_closed() {
            break;
        }
        let (guard, head) = archive.acquire(&tiering.manifests).await.map_err(|source| failed(source.into()))?;
        tiering.janitor.collect(&head, suspects).await.map_err(failed)?;
        archive.release(guard, head);
    }
    tiering.janitor.collect_staging(&archive.path, seen).await.map_err(failed)
}

/// Both tiers as one list: the archive's files, then what only the log has. Of a segment that is archived in part the
/// log's share is what the files from its base on do not stand for.
pub(super) fn holdings(archive: &PartitionArchive) -> Holdings {
    let partition = &archive.partition;
    let manifest = archive.manifest();
    let sealed = partition.sealed_segments(Offset::ZERO);
    let sealed_bytes: u64 = sealed.iter().map(|segment| segment.size_bytes).sum();
    let archived = manifest.next_offset();
    let cold = manifest.files.iter().map(|file| Piece {
        end: file.last_offset.next(),
        max_timestamp: file.max_timestamp,
        log_bytes: file.log_bytes,
    });
    let hot = sealed.iter().filter(|segment| segment.end > archived).map(|segment| {
        let first = manifest.files.partition_point(|file| file.base_offset < segment.base);
        let archived_bytes: u64 = manifest.files.iter_from(first).map(|file| file.log_bytes).sum();
        Piece {
            end: segment.end,
            max_timestamp: segment.max_timestamp,
            log_bytes: segment.size_bytes.saturating_sub(archived_bytes),
        }
    });
    Holdings {
        log_start: partition.log_start_offset(),
        high_watermark: partition.high_watermark(),
        pieces: cold.chain(hot).collect(),
        active_bytes: partition.hot_bytes().saturating_sub(sealed_bytes),
    }
}

fn noted<E: Error + 'static>(tiering: &Tiering, what: &str, outcome: Result<(), E>) {
    if let Err(error) = outcome {
        tiering.metrics.janitor_failures.inc();
        tracing::warn!(error = &error as &dyn Error, "{what} failed, it is tried again");
    }
}

/// First after one period; a tick that was missed is not made up for.
pub(super) fn every(period: Duration) -> tokio::time::Interval {
    let period = period.max(Duration::from_millis(1));
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
