//! The live index: what is in the log and not yet in the archive is searchable within about a second of its ack.
//!
//! Each partition of every indexed topic has a list of small splits, in the archive's own format, over exactly
//! `[archived_through, indexed_through)`. They are built from the log and never written to: the log is the truth, the
//! splits lie in a scratch folder that is emptied at start, and everything is built again from there.
//!
//! Invariants:
//! 1. A partition's [`Coverage`] keeps its own invariants; readers see immutable snapshots of it.
//! 2. A split is dropped only when the manifest *as searches read it* ([`Tiering::manifest`]) covers it, or the log
//!    start has passed it. See `view.rs` for why a search then finds every message once.
//! 3. At most `search.live_builders` chunks are being indexed at any time, each of another partition, so that chunks of
//!    a partition are added in order; beside them there is at most one merge. Each is bounded in memory by the limits
//!    in `build.rs` and `plan.rs`. Merges run at low priority, so that they do not hold up what is not yet searchable;
//!    searches cost a little more until they are done, and past [`SPLITS_URGENT`] splits they do not wait any more.
//! 4. `indexed_through` is at most the high watermark: what is not committed is not found.
//! 5. No split reaches beyond a segment of the log that will be archived, unless the archive lags far behind
//!    (`plan.rs`). So the archive's split of a segment is merged from those that are here, and no message is cut into
//!    words twice ([`LiveIndex::prepared`]); what it holds of them stays readable when they are dropped.
//! 6. Splits that were made under other settings of the topic, or before it was compacted, are built again one by one,
//!    and answer by their own schema until then. A compacted topic is not archived, so none of the latter is handed on.
//!
//! A slice that was archived and trimmed before it was indexed is skipped: the archive answers for it. Partitions
//! that are behind stand in line, and go to its end after a chunk, so that a backlog in one does not hold up the
//! others. A split costs something however little is in it; where that is too much for the machine, the line gets
//! longer, and what gathers in a partition until its turn is one chunk again. A partition whose step fails is left
//! alone for [`FAILURE_PAUSE`] and tried again.
//!
//! | died here | then |
//! |---|---|
//! | anywhere | the scratch folder is emptied at start and the index rebuilt from `archived_through` |

mod build;
mod coverage;
mod plan;

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::num::NonZero;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use parking_lot::{Mutex, RwLock};
use thermocline_config::SearchConfig;
use thermocline_ingest::clock::Clock;
use thermocline_ingest::log::Partition;
use thermocline_ingest::model::{Offset, PartitionId, Timestamp, TopicId};
use thermocline_ingest::topics::{Topic, TopicChange};
use thermocline_tiering::background::Background;
use thermocline_tiering::split::{Prepared, PreparedSplit, SplitOptions};
use thermocline_tiering::worker::Tiering;
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::warn;

pub(crate) use build::LiveSplit;
use build::{BuildError, Chunk, Indexed, build, join};
pub(crate) use coverage::{Coverage, Spans};
use plan::{Cost, MERGE_COUNT, SPLITS_URGENT, plan};

use super::metrics::SearchMetrics;

/// How long a partition is left alone after a step that failed.
const FAILURE_PAUSE: Duration = Duration::from_secs(5);
/// Chunks indexed at once where `search.live_builders` leaves it to the machine: one for each core, but no more than
/// this, for each takes memory.
const BUILDERS_MAX: usize = 4;
/// How long nothing must be written to a partition before its splits settle.
const SETTLE_AFTER: Duration = Duration::from_secs(20);
const MERGE_THREAD: &str = "live-merge";

/// The live splits of every partition.
pub(crate) struct LiveIndex {
    config: SearchConfig,
    tiering: Arc<Tiering>,
    scratch: PathBuf,
    clock: Arc<dyn Clock>,
    metrics: Arc<SearchMetrics>,
    partitions: RwLock<HashMap<(TopicId, PartitionId), Arc<LivePartition>>>,
    /// Set whenever a partition has enough splits to think about merging.
    merges: Notify,
    merging: Background,
    /// Changes when more can be found.
    progress: watch::Sender<()>,
    files_made: AtomicU64,
}

struct LivePartition {
    partition: Arc<Partition>,
    coverage: Mutex<Arc<Coverage<LiveSplit>>>,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    /// What came before is indexed; None where all is.
    behind_since: Option<Timestamp>,
    paused_until: Option<Instant>,
    /// It waits for a builder, or one is at it.
    is_in_line: bool,
    /// The last time a split was added; None once it has been quiet since.
    added_at: Option<Instant>,
}

impl LiveIndex {
    /// Empties the scratch folder. Blocking.
    pub fn open(
        config: SearchConfig,
        tiering: Arc<Tiering>,
        scratch: PathBuf,
        clock: Arc<dyn Clock>,
        metrics: Arc<SearchMetrics>,
    ) -> std::io::Result<Self> {
        build::empty_scratch(&scratch)?;
        let (partitions, merges, files_made) = (RwLock::default(), Notify::new(), AtomicU64::new(0));
        let (merging, progress) = (Background::unthrottled(1), watch::Sender::new(()));
        Ok(Self { config, tiering, scratch, clock, metrics, partitions, merges, merging, progress, files_made })
    }

    /// For those who wait for more to be found; changes at most once for each chunk that was indexed.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.progress.subscribe()
    }

    /// What is live of a partition now; None where it is not followed (yet).
    pub fn snapshot(&self, partition: &Partition) -> Option<Arc<Coverage<LiveSplit>>> {
        let key = (partition.topic_id(), partition.topic_partition().partition);
        self.partitions.read().get(&key).map(|live| live.snapshot())
    }

    /// Follows the log until `shutdown` is cancelled.
    pub async fn run(&self, shutdown: &CancellationToken) {
        tokio::join!(self.run_indexing(shutdown), self.run_merging(shutdown));
    }

    /// What the archive may take over.
    pub fn prepared(&self, topic: TopicId, partition: PartitionId, from: Offset, options: SplitOptions) -> Prepared {
        let Some(live) = self.partitions.read().get(&(topic, partition)).cloned() else {
            return Prepared::nothing(from);
        };
        let coverage = live.snapshot();
        let mut through = coverage.indexed_through;
        let mut splits = Vec::new();
        for (_, split) in coverage.from(from) {
            let offsets = split.span();
            if split.options != options {
                through = through.min(offsets.start);
                break;
            }
            splits.push(PreparedSplit {
                offsets,
                docs: split.docs,
                file: split.file.clone(),
                checksum: split.checksum,
            });
        }
        Prepared::new(splits, from..through.max(from))
    }

    async fn run_indexing(&self, shutdown: &CancellationToken) {
        let mut changes = self.tiering.topics().subscribe();
        self.follow_all();
        let mut tick = tokio::time::interval(self.config.live_interval.as_duration().max(Duration::from_millis(1)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let builders = self.builders();
        let mut line: VecDeque<Arc<LivePartition>> = VecDeque::new();
        let mut building = FuturesUnordered::new();
        loop {
            while building.len() < builders
                && let Some(live) = line.pop_front()
            {
                building.push(async move {
                    let is_behind = self.index_next_chunk(&live).await;
                    (live, is_behind)
                });
            }
            tokio::select! {
                () = shutdown.cancelled() => break,
                _ = tick.tick() => {
                    self.follow(&mut changes);
                    line.extend(self.survey());
                }
                Some((live, is_behind)) = building.next() => {
                    if is_behind {
                        line.push_back(live);
                    } else {
                        live.progress.lock().is_in_line = false;
                    }
                }
            }
        }
        while building.next().await.is_some() {}
    }

    /// Chunks to index at once.
    fn builders(&self) -> usize {
        match self.config.live_builders {
            0 => std::thread::available_parallelism().map_or(1, NonZero::get).min(BUILDERS_MAX),
            builders => builders,
        }
    }

    async fn run_merging(&self, shutdown: &CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.merges.notified() => {}
            }
            while !shutdown.is_cancelled() && self.merge_where_most(shutdown).await {}
        }
    }

    /// One merge in each partition that has at least half as many splits as the one with most, for those cost searches
    /// most. Says whether there was one.
    async fn merge_where_most(&self, shutdown: &CancellationToken) -> bool {
        let ready = self.all().into_iter().filter(|live| !live.is_paused());
        let due = ready.filter(|live| self.planned(live, &live.snapshot()).is_some());
        let mut due: Vec<_> = due.map(|live| (live.snapshot().splits().len(), live)).collect();
        due.sort_unstable_by_key(|(splits, _)| Reverse(*splits));
        let most = due.first().map_or(0, |(splits, _)| *splits);
        let mut has_merged = false;
        for (_, live) in due.iter().take_while(|(splits, _)| splits * 2 >= most) {
            if shutdown.is_cancelled() {
                break;
            }
            has_merged |= self.merge_next(live).await;
        }
        has_merged
    }

    /// The splits of a partition to replace by one next: neighbours, if that is worth it, or one by itself if the topic
    /// is to be indexed in another way by now.
    fn planned(&self, live: &LivePartition, snapshot: &Coverage<LiveSplit>) -> Option<Range<usize>> {
        let options = SplitOptions::of_topic(&live.partition.config())?;
        let outdated = snapshot.splits().iter().position(|split| split.is_outdated(options, &live.partition));
        outdated.map(|at| at..at + 1).or_else(|| {
            let costs: Vec<Cost> = snapshot.splits().iter().map(|split| split.cost).collect();
            let is_quiet = live.progress.lock().added_at.is_none();
            plan(&costs, &live.segments_of(snapshot), is_quiet)
        })
    }

    fn all(&self) -> Vec<Arc<LivePartition>> {
        self.partitions.read().values().cloned().collect()
    }

    fn follow(&self, changes: &mut broadcast::Receiver<TopicChange>) {
        loop {
            match changes.try_recv() {
                Ok(TopicChange::Created(topic) | TopicChange::Grown(topic)) => self.add(&topic),
                Ok(TopicChange::Deleted(topic)) => self.retain(|id| id != topic.id),
                Err(broadcast::error::TryRecvError::Lagged(_)) => self.follow_all(),
                Err(_) => return,
            }
        }
    }

    fn follow_all(&self) {
        let topics = self.tiering.topics().clone();
        self.retain(|id| topics.by_id(id).is_some());
        topics.list().iter().for_each(|topic| self.add(topic));
    }

    fn add(&self, topic: &Topic) {
        if topic.is_internal() {
            return;
        }
        let mut partitions = self.partitions.write();
        for partition in &topic.partitions {
            let key = (topic.id, partition.topic_partition().partition);
            if let Entry::Vacant(entry) = partitions.entry(key) {
                let start = self.horizon(partition).max(partition.local_start_offset());
                entry.insert(Arc::new(LivePartition {
                    partition: partition.clone(),
                    coverage: Mutex::new(Arc::new(Coverage::starting_at(start))),
                    progress: Mutex::default(),
                }));
            }
        }
    }

    fn retain(&self, keep: impl Fn(TopicId) -> bool) {
        let gone: Vec<_> = self.partitions.write().extract_if(|(id, _), _| !keep(*id)).collect();
        for (_, live) in gone {
            live.change(|coverage| *coverage = Coverage::starting_at(coverage.indexed_through));
        }
    }

    /// Below it the live index has nothing to answer for.
    fn horizon(&self, partition: &Partition) -> Offset {
        self.tiering.manifest(partition).archived_through().max(partition.log_start_offset())
    }

    /// Drops what the archive covers and says which partitions have something to index and are not in line yet; now
    /// they are. A partition that is idle costs two loads here, whatever their number.
    fn survey(&self) -> Vec<Arc<LivePartition>> {
        let (now, instant) = (self.clock.now(), Instant::now());
        let mut behind = Vec::new();
        let mut longest_ms = 0;
        for live in self.partitions.read().values() {
            let stable = live.partition.last_stable_offset();
            let coverage = live.snapshot();
            let is_behind = coverage.indexed_through < stable;
            if !is_behind && coverage.splits().is_empty() {
                live.progress.lock().behind_since = None;
                continue;
            }
            let horizon = self.horizon(&live.partition);
            let Some(wanted) = SplitOptions::of_topic(&live.partition.config()) else {
                if !coverage.splits().is_empty() || coverage.indexed_through > horizon {
                    live.change(|coverage| *coverage = Coverage::starting_at(horizon));
                }
                live.progress.lock().behind_since = None;
                continue;
            };
            if coverage.splits().first().is_some_and(|split| split.span().end <= horizon) {
                live.change(|coverage| coverage.drop_below(horizon));
            }
            let mut progress = live.progress.lock();
            if progress.added_at.is_some_and(|at| at + SETTLE_AFTER <= instant) {
                progress.added_at = None;
                self.merges.notify_one();
            }
            let is_paused = progress.paused_until.is_some_and(|until| until > instant);
            if !is_paused && coverage.splits().iter().any(|split| split.is_outdated(wanted, &live.partition)) {
                self.merges.notify_one();
            }
            longest_ms = longest_ms.max(progress.look(is_behind, now));
            if is_behind && !is_paused && !std::mem::replace(&mut progress.is_in_line, true) {
                behind.push(live.clone());
            }
        }
        self.metrics.live_lag_ms.set(longest_ms);
        behind
    }

    /// Says whether more than one chunk was there to index.
    async fn index_next_chunk(&self, live: &Arc<LivePartition>) -> bool {
        let partition = live.partition.clone();
        let Some(options) = SplitOptions::of_topic(&partition.config()) else { return false };
        let looked_at = self.clock.now();
        let stable = partition.last_stable_offset();
        // Offsets between the horizon and the local start do not exist: only what the manifest covers is trimmed.
        let skip_to = self.horizon(&partition).max(partition.local_start_offset());
        let begun_at = live.snapshot().indexed_through;
        let from = begun_at.max(skip_to);
        if from >= stable {
            live.change(|coverage| coverage.drop_below(skip_to));
            return false;
        }
        let until = live.segment_end(from).map_or(stable, |end| end.min(stable));
        let chunk = Chunk { from, until, step_bytes: self.config.live_chunk_bytes.as_usize(), one_step: true };
        let metrics = self.metrics.clone();
        let path = self.next_path();
        let built = tokio::task::spawn_blocking(move || build(&partition, &chunk, options, path, &metrics)).await;
        let Some(indexed) = self.indexed(live, from, built) else { return false };
        if indexed.through == from {
            live.pause();
            return false;
        }
        let through = indexed.through;
        if !live.change(|coverage| coverage.append(begun_at, indexed.split, through)) {
            // Indexing was switched off meanwhile; where it is on again, it starts over.
            return true;
        }
        self.progress.send_replace(());
        {
            let mut progress = live.progress.lock();
            progress.added_at = Some(Instant::now());
            if through >= stable {
                progress.behind_since = Some(looked_at);
            }
        }
        if live.snapshot().splits().len() >= MERGE_COUNT {
            self.merges.notify_one();
        }
        through < stable
    }

    /// Replaces what is planned by one split. At low priority, as long as they are not too many. Says whether it did.
    async fn merge_next(&self, live: &Arc<LivePartition>) -> bool {
        let Some(options) = SplitOptions::of_topic(&live.partition.config()) else { return false };
        let snapshot = live.snapshot();
        let planned = self.planned(live, &snapshot);
        let members = planned.and_then(|range| snapshot.splits().get(range)).unwrap_or_default();
        let (Some(first), Some(last)) = (members.first(), members.last()) else { return false };
        // What the archive covers by now may be gone from the log, and is not asked for here any more.
        let skip_to = self.horizon(&live.partition).max(live.partition.local_start_offset());
        let (from, until) = (first.span().start.max(skip_to), last.span().end);
        if from >= until {
            return false;
        }
        let chunk = Chunk { from, until, step_bytes: self.config.live_chunk_bytes.as_usize(), one_step: false };
        let (partition, joined, metrics) = (live.partition.clone(), members.to_vec(), self.metrics.clone());
        let path = self.next_path();
        let work = move || match joined.len() {
            1 => build(&partition, &chunk, options, path, &metrics),
            _ => match join(&joined, path.clone(), &metrics)? {
                Some(indexed) => Ok(indexed),
                None => build(&partition, &chunk, options, path, &metrics),
            },
        };
        let built = match snapshot.splits().len() > SPLITS_URGENT {
            true => tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string()),
            false => self.merging.run(MERGE_THREAD, work).await.map_err(|error| error.to_string()),
        };
        let Some(indexed) = self.indexed(live, from, built) else { return false };
        if indexed.through < until {
            return false;
        }
        self.metrics.live_merges.inc();
        live.change(|coverage| coverage.replace(members, indexed.split))
    }

    fn next_path(&self) -> PathBuf {
        self.scratch.join(format!("{}.split", self.files_made.fetch_add(1, Ordering::Relaxed)))
    }

    /// What was built, or None where that failed; then the partition is paused.
    fn indexed(
        &self,
        live: &LivePartition,
        from: Offset,
        built: Result<Result<Indexed, BuildError>, impl std::fmt::Display>,
    ) -> Option<Indexed> {
        let partition = live.partition.topic_partition();
        match built {
            Ok(Ok(indexed)) => {
                self.metrics.live_batches_skipped.inc_by(indexed.batches_skipped);
                return Some(indexed);
            }
            // It was trimmed or expired as we came: the next step starts behind it.
            Ok(Err(_)) if live.first_readable() > from => return None,
            Ok(Err(_)) if live.partition.is_closed() => {}
            Ok(Err(error)) => {
                self.metrics.live_failures.inc();
                let error: &dyn std::error::Error = &error;
                warn!(%partition, %from, error, "live index falls behind; trying again in {FAILURE_PAUSE:?}");
            }
            Err(error) => {
                self.metrics.live_failures.inc();
                warn!(%partition, %from, %error, "live index falls behind; trying again in {FAILURE_PAUSE:?}");
            }
        }
        live.pause();
        None
    }
}

impl Progress {
    /// How many milliseconds the oldest message that is not indexed may have waited by `now`.
    fn look(&mut self, is_behind: bool, now: Timestamp) -> i64 {
        self.behind_since = is_behind.then(|| self.behind_since.unwrap_or(now));
        self.behind_since.map_or(0, |since| now.0.saturating_sub(since.0).max(0))
    }
}

impl LivePartition {
    fn snapshot(&self) -> Arc<Coverage<LiveSplit>> {
        self.coverage.lock().clone()
    }

    /// Publishes the next snapshot.
    fn change<R>(&self, change: impl FnOnce(&mut Coverage<LiveSplit>) -> R) -> R {
        let mut slot = self.coverage.lock();
        let mut next = Coverage::clone(&slot);
        let result = change(&mut next);
        let old = std::mem::replace(&mut *slot, Arc::new(next));
        drop(slot);
        // Files of splits that nobody reads any more go here, outside the lock.
        drop(old);
        result
    }

    /// Where the segment ends in which `offset` lies, if it is sealed and will be archived.
    fn segment_end(&self, offset: Offset) -> Option<Offset> {
        if self.is_archived() { self.partition.sealed_end(offset) } else { None }
    }

    /// Which segment of the log each split begins in; one and the same where the archive will not ask.
    fn segments_of(&self, coverage: &Coverage<LiveSplit>) -> Vec<usize> {
        let bases = if self.is_archived() { self.partition.segment_bases() } else { Vec::new() };
        let segment = |split: &Arc<LiveSplit>| bases.partition_point(|base| *base <= split.span().start);
        coverage.splits().iter().map(segment).collect()
    }

    fn is_archived(&self) -> bool {
        self.partition.config().remote_storage_enable
    }

    fn first_readable(&self) -> Offset {
        self.partition.local_start_offset().max(self.partition.log_start_offset())
    }

    fn is_paused(&self) -> bool {
        self.progress.lock().paused_until.is_some_and(|until| until > Instant::now())
    }

    fn pause(&self) {
        self.progress.lock().paused_until = Some(Instant::now() + FAILURE_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_behind_since_all_of_it_was_indexed_last() {
        let mut progress = Progress::default();
        let look = |progress: &mut Progress, is_behind, now| progress.look(is_behind, Timestamp(now));
        assert_eq!(look(&mut progress, false, 1000), 0);
        assert_eq!(look(&mut progress, true, 1250), 0);
        assert_eq!(look(&mut progress, true, 1500), 250);
        // Written to all the time, it is never seen without something to index.
        progress.behind_since = Some(Timestamp(1600));
        assert_eq!(look(&mut progress, true, 1750), 150);
        assert_eq!(look(&mut progress, false, 2000), 0);
        assert_eq!(look(&mut progress, true, 2250), 0);
        // The clock was set back.
        assert_eq!(look(&mut progress, true, 2000), 0);
    }
}
