//! Keeps every partition's archive up to date: finds sealed segments, runs the pipeline under a budget, retries, and
//! runs the janitor and the scrub.
//!
//! # Invariants
//! 1. One job at a time changes a partition's archive: whoever holds its head lock (background job, `archive_now`,
//!    janitor, a merge or an indexing again for its commit). Different partitions upload in parallel; within one, files
//!    are published in offset order.
//! 2. At most `tiering.workers` segments are archived at once, background, `archive_now`, and steps of merges and of
//!    indexing again together.
//! 3. After a failed job the manifest is loaded from the store before the next one: a commit whose answer was lost
//!    may have happened.
//! 4. A local log goes on at or above its archive's end; at start one that ends below is made to.
//! 5. Once another broker has taken over the store, nothing is archived, expired or deleted here any more. What it
//!    archives is shown to readers, but no local copy goes on its word: it may have other records at those offsets.
//! 6. Only topics with `remote.storage.enable` that are not internal are archived. What was archived before the
//!    setting was turned off stays readable and expires with the log start.
//!
//! # Failures
//! A failed job costs its partition a wait (`retry_backoff`, doubled up to `retry_backoff_max`, jittered), one log
//! line and one count; other partitions go on. While the store is down nothing is lost: segments stay local, for the
//! log deletes only what is archived. At start a manifest that cannot be loaded is an error: a broker that does not
//! know its archive would tell consumers that their offsets are gone.

mod merging;
mod partition;
mod reindexing;
mod schedule;
mod standing;

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use futures::{StreamExt, TryStreamExt};
use parking_lot::RwLock;
use thermocline_config::{CacheConfig, TieringConfig};
use thermocline_ingest::clock::Clock;
use thermocline_ingest::latency::ProduceLatency;
use thermocline_ingest::log::{LogError, Partition, SealedSegment};
use thermocline_ingest::model::{Offset, TopicName, TopicPartition};
use thermocline_ingest::topics::{Topic, TopicError, Topics};
use tokio::sync::Semaphore;

use crate::background::{self, Background};
use crate::budget::Rates;
use crate::cache::{BlockCache, SplitCache};
use crate::janitor::{Janitor, JanitorAges, JanitorError};
use crate::manifest::{Change, CommitOutcome, DataFile, Manifest, ManifestError, ManifestHead, ManifestStore};
use crate::merge::{Merger, MergerParts};
use crate::metrics::TieringMetrics;
use crate::parquet::ParquetOptions;
use crate::paths::PartitionPath;
use crate::pipeline::{ArchiveError, ArchiveJob, Archiver, Batches, PreparedSource, StageOptions};
use crate::reindex::{Reindexer, ReindexerParts};
use crate::scrub::{DamagedFile, Scrubber};
use crate::split::{PreparedSplits, SplitOptions};
use crate::store::{ColdStore, StoreLimits, Work};
use crate::throttle::Throttle;
use partition::{Key, PartitionArchive};
pub use reindexing::ReindexProgress;

/// Manifests loaded at once at start.
const LOADS_IN_FLIGHT: usize = 16;
/// How often `archive_now` starts over when another commit came first.
const SUPERSEDED_MAX: usize = 3;

/// Why the archive could not be opened or brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum TieringError {
    #[error("loading the archive of {partition}")]
    Load {
        partition: TopicPartition,
        #[source]
        source: ManifestError,
    },
    #[error("claiming the archive of {partition}")]
    Claim {
        partition: TopicPartition,
        #[source]
        source: ManifestError,
    },
    #[error("topic {0} is not archived: it is internal")]
    Internal(TopicName),
    #[error("topic {0} is not archived; set remote.storage.enable=true to archive it")]
    NotArchived(TopicName),
    #[error("archiving {partition}")]
    Archive {
        partition: TopicPartition,
        #[source]
        source: ArchiveError,
    },
    #[error("sealing or trimming {partition}")]
    Log {
        partition: TopicPartition,
        #[source]
        source: LogError,
    },
    #[error("raising the log start of {partition}")]
    LogStart {
        partition: TopicPartition,
        #[source]
        source: TopicError,
    },
    #[error("expiring {partition}")]
    Janitor {
        partition: TopicPartition,
        #[source]
        source: JanitorError,
    },
    #[error("removing the deleted topic {topic} from the store")]
    Removal {
        topic: TopicName,
        #[source]
        source: JanitorError,
    },
    #[error("reading or changing the catalogue of topics")]
    Topics(#[from] TopicError),
    #[error("reading or changing the catalogue of topics was cut off")]
    Stopped(#[source] tokio::task::JoinError),
    #[error("the work on {partition} was cut off")]
    Aborted { partition: TopicPartition },
}

/// What tiering works with.
pub struct TieringOptions {
    pub config: thermocline_config::TieringConfig,
    pub cache: thermocline_config::CacheConfig,
    pub store: ColdStore,
    pub topics: Arc<Topics>,
    pub clock: Arc<dyn Clock>,
    pub metrics: Arc<TieringMetrics>,
    /// what producers experience; archiving gives way to it
    pub produce_latency: Arc<ProduceLatency>,
    /// raised at each start of the broker; fences older ones
    pub broker_epoch: u64,
}

/// What `POST /v1/topics/{t}/archive` did.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct ArchiveReport {
    pub files: usize,
    pub records: u64,
    pub log_bytes: u64,
    /// Parquet and raw objects
    pub data_bytes: u64,
    pub index_bytes: u64,
    pub trimmed_bytes: u64,
}

/// The archive of all partitions of this broker.
pub struct Tiering {
    config: TieringConfig,
    store: ColdStore,
    blocks: BlockCache,
    splits: SplitCache,
    topics: Arc<Topics>,
    clock: Arc<dyn Clock>,
    metrics: Arc<TieringMetrics>,
    manifests: ManifestStore,
    archiver: Archiver,
    janitor: Janitor,
    scrubber: Scrubber,
    workers: Arc<Semaphore>,
    merger: Merger,
    reindexer: Reindexer,
    partitions: RwLock<HashMap<Key, Arc<PartitionArchive>>>,
    /// Who may have splits of what is archived.
    prepared: RwLock<Option<Weak<dyn PreparedSplits>>>,
}

impl ArchiveReport {
    fn add(&mut self, other: &Self) {
        self.files += other.files;
        self.records += other.records;
        self.log_bytes += other.log_bytes;
        self.data_bytes += other.data_bytes;
        self.index_bytes += other.index_bytes;
        self.trimmed_bytes += other.trimmed_bytes;
    }

    fn add_file(&mut self, file: &DataFile) {
        self.files += 1;
        self.records += file.records();
        self.log_bytes += file.log_bytes;
        self.data_bytes += file.data.size_bytes + file.raw.as_ref().map_or(0, |raw| raw.object.size_bytes);
        self.index_bytes += file.split.as_ref().map_or(0, |split| split.size_bytes);
    }
}

impl Tiering {
    /// Loads the manifest of every partition of every topic, tells each partition its archived_through. Must be called
    /// before the Kafka port opens.
    pub async fn open(options: TieringOptions) -> Result<Arc<Self>, TieringError> {
        let TieringOptions { config, cache, store, topics, clock, metrics, produce_latency, broker_epoch } = options;
        store.observe(metrics.clone());
        let slowdown = config.produce_slowdown_percent;
        // The store goes by the throttle and may outlive the log.
        let disk_is_tight = {
            let topics = Arc::downgrade(&topics);
            Box::new(move || topics.upgrade().is_some_and(|topics| topics.disk_is_tight()))
        };
        let throttle = Throttle::new(slowdown, produce_latency, metrics.background_duty.clone(), disk_is_tight);
        let throttle = Arc::new(throttle);
        store.limit(limits(&config, &cache, throttle.clone()));
        let background = Background::new(throttle.clone(), config.workers);
        let manifests = ManifestStore::new(store.of(Work::Archive), broker_epoch, clock.clone());
        manifests.on_fenced({
            let (metrics, topics) = (metrics.clone(), topics.clone());
            move || {
                metrics.fenced.set(1);
                topics.set_replaced();
            }
        });
        let ages = JanitorAges::from(&config);
        let blocks_max_bytes = cache.blocks_max_bytes.as_u64();
        let blocks = BlockCache::new(store.of(Work::Read), blocks_max_bytes, tokio::runtime::Handle::current());
        let archiver = Archiver::new(store.clone(), manifests.clone(), background.clone(), &config, metrics.clone());
        let workers = Arc::new(Semaphore::new(config.workers.clamp(1, Semaphore::MAX_PERMITS)));
        let parts = MergerParts {
            archiver: archiver.clone(),
            manifests: manifests.clone(),
            store: store.of(Work::Maintenance),
            background,
            workers: workers.clone(),
            metrics: metrics.clone(),
        };
        let reindexer = ReindexerParts {
            archiver: archiver.clone(),
            manifests: manifests.clone(),
            store: store.of(Work::Maintenance),
            background: parts.background.clone(),
            workers: workers.clone(),
            metrics: metrics.clone(),
        };
        let tiering = Arc::new(Self {
            splits: SplitCache::new(blocks.clone(), cache.splits_max_bytes.as_u64()),
            blocks,
            merger: Merger::new(parts, &config),
            reindexer: Reindexer::new(reindexer, &config),
            archiver,
            janitor: Janitor::new(store.of(Work::Maintenance), manifests.clone(), clock.clone(), metrics.clone(), ages),
            scrubber: Scrubber::new(
                store.of(Work::Maintenance),
                manifests.clone(),
                Background::new(throttle, 1),
                clock.clone(),
                metrics.clone(),
                config.scrub_rate.as_u64(),
            ),
            workers,
            partitions: RwLock::default(),
            prepared: RwLock::default(),
            config,
            store,
            topics,
            clock,
            metrics,
            manifests,
        });
        tiering.follow_topics();
        let archives: Vec<_> = tiering.partitions.read().values().cloned().collect();
        futures::stream::iter(archives)
            .map(|archive| tiering.load(archive))
            .buffer_unordered(LOADS_IN_FLIGHT)
            .try_collect::<()>()
            .await?;
        Ok(tiering)
    }

    /// Background archiving, merging, indexing again, expiry by retention, janitor, scrub; ends when `shutdown` is
    /// cancelled, abandoning the jobs under way (each leaves orphans or a finished commit, never less). Local copies
    /// are trimmed by `HotLog::maintain`.
    pub async fn run(self: Arc<Self>, shutdown: tokio_util::sync::CancellationToken) {
        schedule::run(self, shutdown).await;
    }

    /// From now on splits are taken over from `splits` as far as possible. Whoever came before is forgotten.
    pub fn take_splits_from(&self, splits: Weak<dyn PreparedSplits>) {
        *self.prepared.write() = Some(splits);
    }

    /// Seal and archive everything up to the log end of now; `trim` drops local copies the archive covers.
    pub async fn archive_now(&self, topic: &Topic, trim: bool) -> Result<ArchiveReport, TieringError> {
        if topic.is_internal() {
            return Err(TieringError::Internal(topic.name.clone()));
        }
        let archives: Vec<_> = topic.partitions.iter().map(|partition| self.archive_of(partition)).collect();
        let reports: Vec<_> = futures::stream::iter(archives)
            .map(|archive| self.archive_partition_now(archive, trim))
            .buffer_unordered(self.config.workers.max(1))
            .try_collect()
            .await?;
        let mut total = ArchiveReport::default();
        reports.iter().for_each(|report| total.add(report));
        Ok(total)
    }

    /// The current manifest; an empty one for a partition that has never been archived.
    pub fn manifest(&self, partition: &Partition) -> Arc<Manifest> {
        let key = (partition.topic_id(), partition.topic_partition().partition);
        let archive = self.partitions.read().get(&key).cloned();
        archive.map_or_else(|| Arc::new(Manifest::empty(&path_of(partition))), |archive| archive.manifest())
    }

    /// What the scrub found damaged of a partition: the manifest first, then files in offset order.
    pub fn damaged_files(&self, partition: &Partition) -> Vec<DamagedFile> {
        self.scrubber.damaged_files(&path_of(partition))
    }

    pub fn store(&self) -> &ColdStore {
        &self.store
    }
    pub fn blocks(&self) -> &BlockCache {
        &self.blocks
    }

    pub fn splits(&self) -> &SplitCache {
        &self.splits
    }
    pub fn topics(&self) -> &Arc<Topics> {
        &self.topics
    }

    /// Makes the map of partitions follow the catalogue. A topic that is new has a fresh id, hence an empty folder, so
    /// its manifest is loaded only when it is first archived. Returns the archives of topics that are gone.
    fn follow_topics(&self) -> Vec<Arc<PartitionArchive>> {
        let mut partitions = self.partitions.write();
        // Under the lock: a topic that is taken up meanwhile must not look like one that is gone.
        let topics = self.topics.list();
        let mut gone = std::mem::take(&mut *partitions);
        for partition in topics.iter().filter(|topic| !topic.is_internal()).flat_map(|topic| &topic.partitions) {
            let path = path_of(partition);
            let key = (path.topic_id, path.partition);
            let archive = gone.remove(&key).unwrap_or_else(|| Arc::new(PartitionArchive::new(path, partition.clone())));
            partitions.insert(key, archive);
        }
        gone.into_values().collect()
    }

    /// Takes up a topic that was just created.
    fn follow_topic(&self, topic: &Topic) {
        if !topic.is_internal() {
            topic.partitions.iter().for_each(|partition| drop(self.archive_of(partition)));
        }
    }

    fn archive_of(&self, partition: &Arc<Partition>) -> Arc<PartitionArchive> {
        let path = path_of(partition);
        let mut partitions = self.partitions.write();
        let archive = partitions
            .entry((path.topic_id, path.partition))
            .or_insert_with(|| Arc::new(PartitionArchive::new(path, partition.clone())));
        archive.clone()
    }

    async fn load(&self, archive: Arc<PartitionArchive>) -> Result<(), TieringError> {
        let partition = archive.partition.topic_partition().clone();
        let (guard, head) =
            archive.acquire(&self.manifests).await.map_err(|source| TieringError::Load { partition, source })?;
        if head.manifest().epoch <= self.manifests.epoch() {
            self.follow_archive(&archive, &head).await?;
        }
        archive.release(guard, head);
        Ok(())
    }

    async fn archive_partition_now(
        &self,
        archive: Arc<PartitionArchive>,
        trim: bool,
    ) -> Result<ArchiveReport, TieringError> {
        let partition = &archive.partition;
        let name = partition.topic_partition();
        if !partition.config().remote_storage_enable {
            return Err(TieringError::NotArchived(name.topic.clone()));
        }
        let log_failed = |source| TieringError::Log { partition: name.clone(), source };
        blocking(partition, |partition| partition.seal()).await?.map_err(log_failed)?;
        let mut report = ArchiveReport::default();
        let mut superseded = 0;
        loop {
            match self.archive_sealed(&archive, usize::MAX, &mut report).await {
                Ok(()) => break,
                Err(ArchiveError::Superseded { .. }) if superseded < SUPERSEDED_MAX => superseded += 1,
                Err(source) => return Err(TieringError::Archive { partition: name.clone(), source }),
            }
        }
        if trim {
            let trimmed = blocking(partition, |partition| partition.trim_local(partition.archived_through()));
            report.trimmed_bytes = trimmed.await?.map_err(log_failed)?;
        }
        Ok(report)
    }

    /// Archives up to `segments_max` sealed segments of one partition, oldest first; what is committed is in `report`
    /// even where a later segment fails.
    async fn archive_sealed(
        &self,
        archive: &PartitionArchive,
        segments_max: usize,
        report: &mut ArchiveReport,
    ) -> Result<(), ArchiveError> {
        self.manifests.check_not_fenced(|| archive.path.root().to_string())?;
        let (guard, mut head) = archive.acquire(&self.manifests).await?;
        // Whoever closes the archive waits for the guard: nothing is written for a topic once its removal has begun.
        if archive.is_closed() {
            archive.release(guard, head);
            return Ok(());
        }
        self.describe_topic(archive).await?;
        self.follow_log_start(archive, &mut head).await?;
        for segment in archive.unarchived_segments(head.manifest().next_offset()).into_iter().take(segments_max) {
            if archive.is_closed() {
                break;
            }
            let _worker = self.workers.acquire().await.map_err(|_| ArchiveError::Aborted)?;
            let job = self.job(archive, segment).await?;
            let publish = |manifest: &Arc<Manifest>| archive.publish(manifest);
            let committed = self.archiver.archive_segment(job, &mut head, &publish).await?;
            committed.files().iter().for_each(|file| report.add_file(file));
        }
        archive.release(guard, head);
        Ok(())
    }

    /// Where records were deleted beyond the archive's end, the archive goes on from the new log start. In steps: see
    /// [`Change::RaiseLogStart`].
    async fn follow_log_start(&self, archive: &PartitionArchive, head: &mut ManifestHead) -> Result<(), ArchiveError> {
        let log_start = archive.partition.log_start_offset();
        while log_start > head.manifest().next_offset() {
            match self.manifests.commit(head, Change::RaiseLogStart(log_start)).await? {
                CommitOutcome::Committed(next) => *head = next,
                CommitOutcome::Superseded(newest) => {
                    return Err(ArchiveError::Superseded { version: newest.manifest().version });
                }
            }
            archive.publish(head.manifest());
        }
        Ok(())
    }

    async fn job(&self, archive: &PartitionArchive, segment: SealedSegment) -> Result<ArchiveJob, ArchiveError> {
        let (partition, base, end) = (archive.partition.clone(), segment.base, segment.end);
        let aborted = tokio::task::spawn_blocking(move || partition.aborted(base, end)).await;
        let aborted = aborted.map_err(|_| ArchiveError::Aborted)?.map_err(ArchiveError::Aborts)?;
        let config = archive.partition.config();
        let options = StageOptions {
            path: archive.path.clone(),
            parquet: ParquetOptions::from(&self.config),
            file_bytes_max: Archiver::file_bytes_max(&self.config),
            split: SplitOptions::of_topic(&config),
        };
        let prepared = self.prepared.read().as_ref().and_then(Weak::upgrade).map(|splits| PreparedSource {
            splits,
            end,
            memory_bytes: Archiver::job_bytes(&self.config),
        });
        Ok(ArchiveJob { batches: Box::new(move || unhurried(&segment)), aborted, options, prepared })
    }

    async fn raise_log_start(&self, partition: &Arc<Partition>, start: Offset) -> Result<(), TieringError> {
        if start <= partition.log_start_offset() {
            return Ok(());
        }
        let topics = self.topics.clone();
        let raised = blocking(partition, move |partition| topics.raise_log_start(partition, start)).await?;
        let partition = partition.topic_partition().clone();
        raised.map_err(|source| TieringError::LogStart { partition, source })
    }
}

/// What the store may be asked for, by the settings.
fn limits(config: &TieringConfig, cache: &CacheConfig, throttle: Arc<Throttle>) -> StoreLimits {
    let archive = Rates {
        bytes_per_second: config.archive_bytes_per_second.as_u64(),
        requests_per_second: config.archive_requests_per_second,
    };
    let reads = Rates {
        bytes_per_second: cache.read_bytes_per_second.as_u64(),
        requests_per_second: cache.read_requests_per_second,
    };
    StoreLimits { archive, reads, throttle }
}

/// The batches of a segment, with a rest before each if the thread is to rest.
fn unhurried(segment: &SealedSegment) -> Result<Batches, LogError> {
    Ok(Box::new(segment.batches()?.inspect(|_| background::pause())))
}

fn path_of(partition: &Partition) -> PartitionPath {
    let TopicPartition { topic, partition: id } = partition.topic_partition().clone();
    PartitionPath::new(topic, partition.topic_id(), id)
}

/// Runs what blocks on a thread that may.
async fn blocking<T: Send + 'static>(
    partition: &Arc<Partition>,
    work: impl FnOnce(&Partition) -> T + Send + 'static,
) -> Result<T, TieringError> {
    let worker = partition.clone();
    let done = tokio::task::spawn_blocking(move || work(&worker)).await;
    done.map_err(|_| TieringError::Aborted { partition: partition.topic_partition().clone() })
}

#[cfg(test)]
mod tests;
