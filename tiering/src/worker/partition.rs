//! What the worker knows about one partition.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use rand::Rng;
use thermocline_ingest::log::{Partition, SealedSegment};
use thermocline_ingest::model::{Offset, PartitionId, Timestamp, TopicId};
use tokio::time::Instant;

use super::merging::Merging;
use super::reindexing::Reindexing;
use super::standing::Description;
use crate::manifest::{Manifest, ManifestError, ManifestHead, ManifestStore};
use crate::paths::PartitionPath;

/// Identity of a partition over topics that come and go under one name.
pub(super) type Key = (TopicId, PartitionId);

/// One partition's archive as this broker sees it.
pub(super) struct PartitionArchive {
    pub path: PartitionPath,
    pub partition: Arc<Partition>,
    /// What readers use. Replaced as a whole after each commit.
    manifest: RwLock<Arc<Manifest>>,
    /// Held by whoever changes the archive, over the whole of a job. `None`: load before use, because nothing was
    /// loaded yet or because a job failed and nobody knows whether its last commit happened.
    head: tokio::sync::Mutex<Option<ManifestHead>>,
    backoff: Mutex<Backoff>,
    pub merging: Merging,
    pub reindexing: Reindexing,
    closed: AtomicBool,
    versions_trimmed_at: AtomicU64,
    /// When the oldest of the retired objects that the head listed was retired; [`NEVER`] where there are none.
    oldest_retired: AtomicI64,
    /// What the store is known to say about the topic.
    described: Mutex<Option<Description>>,
}

/// After all times.
const NEVER: i64 = i64::MAX;

/// Waits between attempts that fail: doubled each time, jittered over their upper half.
#[derive(Default)]
pub(super) struct Backoff {
    failures: u32,
    until: Option<Instant>,
}

impl Backoff {
    pub fn is_due(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| until <= now)
    }

    /// Returns the wait before the next attempt: doubled each time, jittered over its upper half.
    pub fn failed(&mut self, now: Instant, first: Duration, longest: Duration) -> Duration {
        let wait = first.saturating_mul(2_u32.saturating_pow(self.failures)).min(longest);
        let wait = wait.mul_f64(rand::rng().random_range(0.5..=1.0));
        self.failures = self.failures.saturating_add(1);
        self.until = now.checked_add(wait);
        wait
    }
}

/// The right to change a partition's archive.
pub(super) type HeadGuard<'a> = tokio::sync::MutexGuard<'a, Option<ManifestHead>>;

impl PartitionArchive {
    /// Of a partition whose manifest is not loaded yet.
    pub fn new(path: PartitionPath, partition: Arc<Partition>) -> Self {
        Self {
            manifest: RwLock::new(Arc::new(Manifest::empty(&path))),
            path,
            partition,
            head: tokio::sync::Mutex::new(None),
            backoff: Mutex::default(),
            merging: Merging::default(),
            reindexing: Reindexing::default(),
            closed: AtomicBool::new(false),
            versions_trimmed_at: AtomicU64::new(0),
            oldest_retired: AtomicI64::new(NEVER),
            described: Mutex::default(),
        }
    }

    pub fn key(&self) -> Key {
        (self.path.topic_id, self.path.partition)
    }

    pub fn manifest(&self) -> Arc<Manifest> {
        self.manifest.read().clone()
    }

    /// Shows a manifest to readers.
    fn show(&self, manifest: &Arc<Manifest>) {
        *self.manifest.write() = manifest.clone();
    }

    /// Shows a manifest that this broker, or one before it, has committed, and then lets the log drop what it covers.
    pub fn publish(&self, manifest: &Arc<Manifest>) {
        self.show(manifest);
        self.partition.set_archived_through(manifest.archived_through());
    }

    /// Waits for whoever works on the archive now, and takes over. The head is taken out: put it back with
    /// [`Self::release`] once the work is done; after a failure it is loaded again.
    pub async fn acquire(&self, manifests: &ManifestStore) -> Result<(HeadGuard<'_>, ManifestHead), ManifestError> {
        let mut guard = self.head.lock().await;
        let head = match guard.take() {
            Some(head) => head,
            None => {
                let head = manifests.load(&self.path).await?;
                // What a broker that took over has archived may differ from what the local log has at those offsets,
                // and then that is the only copy.
                if head.manifest().epoch > manifests.epoch() {
                    self.show(head.manifest());
                } else {
                    self.publish(head.manifest());
                }
                head
            }
        };
        Ok((guard, head))
    }

    pub fn release(&self, mut guard: HeadGuard<'_>, head: ManifestHead) {
        self.oldest_retired.store(head.retired().first().map_or(NEVER, |old| old.at.0), Ordering::Relaxed);
        *guard = Some(head);
    }

    /// When the oldest retired object was retired, as of the last time the head was put back.
    pub fn oldest_retired(&self) -> Option<Timestamp> {
        Some(Timestamp(self.oldest_retired.load(Ordering::Relaxed))).filter(|at| at.0 != NEVER)
    }

    pub fn is_described_as(&self, wanted: &Description) -> bool {
        self.described.lock().as_ref() == Some(wanted)
    }

    pub fn described_as(&self, description: Description) {
        *self.described.lock() = Some(description);
    }

    /// No job starts any more; waits for the one under way, and for a merge or an indexing again, which end at their
    /// next step.
    pub async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        drop(self.merging.under_way.lock().await);
        drop(self.head.lock().await);
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire) || self.partition.is_closed()
    }

    /// Sealed segments that the archive does not cover, oldest first; the first may be covered in part.
    pub fn unarchived_segments(&self, next_offset: Offset) -> Vec<SealedSegment> {
        let mut segments = self.partition.sealed_segments(Offset::ZERO);
        segments.retain(|segment| segment.end > next_offset);
        segments
    }

    pub fn is_due(&self, now: Instant) -> bool {
        self.backoff.lock().is_due(now)
    }

    pub fn succeeded(&self) {
        *self.backoff.lock() = Backoff::default();
    }

    /// Returns the wait before the next attempt.
    pub fn failed(&self, now: Instant, first: Duration, longest: Duration) -> Duration {
        self.backoff.lock().failed(now, first, longest)
    }

    /// Whether `every` versions were committed since this last said so.
    pub fn take_version_trim(&self, version: u64, every: u64) -> bool {
        let before = self.versions_trimmed_at.load(Ordering::Relaxed);
        let due = version >= before.saturating_add(every);
        if due {
            self.versions_trimmed_at.store(version, Ordering::Relaxed);
        }
        due
    }
}
