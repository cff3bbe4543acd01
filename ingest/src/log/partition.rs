//! One partition of the hot log, as the rest of the broker sees it.
//!
//! Locks, in the order in which they are taken: `writer` (appends, rolls, seals, closing), `syncing` (one sync and what
//! follows from it), `cleaning` (one round of compaction; closing sets its flag, for which the round looks, and waits
//! for it), `changing_files` (sealed segments go or are replaced), `segments` (the list; never held during I/O).
//! Offsets that others read are atomics.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use thermocline_config::TopicConfig;
use tokio::sync::watch;

use super::append::Writer;
use super::cleaner::{Checkpoint, CleanerLimits};
use super::deletion::Deletions;
use super::disk::DiskWatch;
use super::eraser::Eraser;
use super::error::{AppendError, IoContext, LogError};
use super::file_system::device_of;
use super::flusher::FlushQueue;
use super::producer_state::Producer;
use super::recovery::Recovered;
use super::retention::{Held, Horizon, droppable};
use super::sealed::SealedSegment;
use super::segment::{Segment, SegmentFiles};
use super::snapshot;
use super::transactions::Unstable;
use crate::clock::Clock;
use crate::metrics::IngestMetrics;
use crate::model::{Offset, Timestamp, TopicId, TopicPartition};

/// What all partitions of a broker share.
pub(super) struct LogEnv {
    pub clock: Arc<dyn Clock>,
    pub metrics: Arc<IngestMetrics>,
    pub flush_queue: Arc<FlushQueue>,
    pub disk: Arc<DiskWatch>,
    pub eraser: Eraser,
    pub producer_expiration_ms: i64,
    pub cleaner: CleanerLimits,
    /// Another broker archives these topics now.
    pub replaced: AtomicBool,
}

/// One partition. See the invariants of the module.
pub struct Partition {
    pub(super) this: Weak<Self>,
    pub(super) topic_partition: TopicPartition,
    topic_id: TopicId,
    pub(super) dir: Arc<Path>,
    device: Option<u64>,
    pub(super) env: Arc<LogEnv>,
    config: RwLock<Arc<TopicConfig>>,
    pub(super) writer: Mutex<Writer>,
    /// Oldest first; the last one is active. Never empty.
    pub(super) segments: RwLock<Vec<Arc<Segment>>>,
    /// Held over a sync and the publishing or failing that follows: the kernel reports a failed sync only once, so two
    /// at a time could take the other's failure for a success.
    syncing: Mutex<()>,
    /// Held while a sealed segment's files go, or others take their place. Segments out of view whose files are still
    /// there, oldest first.
    pub(super) changing_files: Mutex<VecDeque<Arc<Segment>>>,
    pub(super) deletions: Deletions,
    /// Held over a round of compaction.
    pub(super) cleaning: Mutex<Checkpoint>,
    compactions: AtomicU64,
    compacted_through: AtomicI64,
    high_watermark: watch::Sender<Offset>,
    /// Changed under `writer` only; held for as long as a look takes.
    pub(super) unstable: Mutex<Unstable>,
    log_end: AtomicI64,
    log_start: AtomicI64,
    local_start: AtomicI64,
    archived_through: AtomicI64,
    /// In the flusher's queue: at once, or within `flush.ms`.
    queued: AtomicBool,
    queued_later: AtomicBool,
    closed: AtomicBool,
    /// Why it is offline, once it is.
    failure: OnceLock<Arc<str>>,
}

impl Drop for Partition {
    fn drop(&mut self) {
        self.env.flush_queue.partitions.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Partition {
    pub(super) fn new(
        topic_partition: TopicPartition,
        topic_id: TopicId,
        dir: Arc<Path>,
        env: Arc<LogEnv>,
        config: Arc<TopicConfig>,
        log_start: Offset,
        recovered: Recovered,
    ) -> Arc<Self> {
        let Recovered { segments, writer, checkpoint } = recovered;
        let end = writer.next;
        let unstable = Unstable::new(writer.producers.open().clone());
        let local_start = segments.first().map_or(end, |segment| segment.base);
        let log_start = if config.remote_storage_enable { log_start } else { log_start.max(local_start) };
        let partition = Arc::new_cyclic(|this| Self {
            this: this.clone(),
            topic_partition,
            topic_id,
            device: device_of(&dir).ok(),
            dir,
            env,
            config: RwLock::new(config),
            writer: Mutex::new(writer),
            segments: RwLock::new(segments),
            syncing: Mutex::new(()),
            changing_files: Mutex::default(),
            deletions: Deletions::default(),
            cleaning: Mutex::new(checkpoint),
            compactions: AtomicU64::new(0),
            compacted_through: AtomicI64::new(0),
            high_watermark: watch::Sender::new(end),
            unstable: Mutex::new(unstable),
            log_end: AtomicI64::new(end.0),
            log_start: AtomicI64::new(log_start.0),
            local_start: AtomicI64::new(local_start.0),
            archived_through: AtomicI64::new(0),
            queued: AtomicBool::new(false),
            queued_later: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            failure: OnceLock::new(),
        });
        partition.env.metrics.hot_bytes.add(gauge(partition.hot_bytes()));
        partition.env.flush_queue.partitions.fetch_add(1, Ordering::Relaxed);
        partition
    }

    pub fn topic_partition(&self) -> &TopicPartition {
        &self.topic_partition
    }
    pub fn topic_id(&self) -> TopicId {
        self.topic_id
    }
    pub fn config(&self) -> Arc<TopicConfig> {
        self.config.read().clone()
    }
    pub fn set_config(&self, config: Arc<TopicConfig>) {
        *self.config.write() = config;
    }

    /// The high watermark, for long polls; changes on commit, also when the partition is closed (check `is_closed`).
    pub fn watch(&self) -> watch::Receiver<Offset> {
        self.high_watermark.subscribe()
    }
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
    pub fn log_start_offset(&self) -> Offset {
        Offset(self.log_start.load(Ordering::Acquire))
    }
    pub fn local_start_offset(&self) -> Offset {
        Offset(self.local_start.load(Ordering::Acquire))
    }
    pub fn high_watermark(&self) -> Offset {
        *self.high_watermark.borrow()
    }
    /// How far readers of committed data may go: where the earliest transaction begins that is under way, or else the
    /// high watermark. Moves only when the high watermark does, and never back.
    pub fn last_stable_offset(&self) -> Offset {
        // In this order: what lies below the watermark seen here was noted before.
        let high_watermark = self.high_watermark();
        let unstable = self.unstable.lock().first(high_watermark);
        // An open transaction may begin in what was deleted.
        unstable.map_or(high_watermark, |first| first.max(self.log_start_offset()).min(high_watermark))
    }
    pub fn log_end_offset(&self) -> Offset {
        Offset(self.log_end.load(Ordering::Acquire))
    }
    /// Everything below is committed in the archive's manifest; ZERO when nothing is. Monotonic.
    pub fn archived_through(&self) -> Offset {
        Offset(self.archived_through.load(Ordering::Acquire))
    }
    pub fn set_archived_through(&self, offset: Offset) {
        self.archived_through.fetch_max(offset.0, Ordering::AcqRel);
    }
    /// Raises the smallest readable offset (retention, DeleteRecords). Monotonic. In memory; the caller has made it
    /// durable.
    pub fn set_log_start_offset(&self, offset: Offset) {
        self.log_start.fetch_max(offset.0, Ordering::AcqRel);
    }
    /// Who has written here lately, or has a transaction open, by id. Waits for an append under way.
    pub fn producers(&self) -> Vec<(i64, Producer)> {
        let writer = self.writer.lock();
        let mut producers: Vec<_> =
            writer.producers.producers.iter().map(|(id, producer)| (*id, producer.clone())).collect();
        producers.sort_unstable_by_key(|(id, _)| *id);
        producers
    }
    /// How often compaction took records out since the start, and below which offset they all lay. What was made from
    /// the log before may speak of records that are gone.
    pub fn compactions(&self) -> (u64, Offset) {
        (self.compactions.load(Ordering::Acquire), Offset(self.compacted_through.load(Ordering::Acquire)))
    }
    pub(super) fn note_compaction(&self, through: Offset) {
        self.compacted_through.fetch_max(through.0, Ordering::AcqRel);
        self.compactions.fetch_add(1, Ordering::AcqRel);
    }
    /// Bytes of the local log files.
    pub fn hot_bytes(&self) -> u64 {
        self.segments.read().iter().map(|segment| segment.size_bytes()).sum()
    }

    /// Resolves when everything below `offset` (exclusive end) is durable per the topic's flush policy, or the
    /// partition failed or closed.
    pub async fn committed(&self, offset: Offset) -> Result<(), AppendError> {
        let mut high_watermark = self.high_watermark.subscribe();
        loop {
            if *high_watermark.borrow_and_update() >= offset {
                return Ok(());
            }
            self.check_usable()?;
            if high_watermark.changed().await.is_err() {
                return Err(AppendError::Closed(self.topic_partition.clone()));
            }
        }
    }

    /// Sealed segments at or above `from`, oldest first, as far as every transaction in them has ended. One that holds
    /// `from` in its middle is among them.
    pub fn sealed_segments(&self, from: Offset) -> Vec<SealedSegment> {
        let stable = self.last_stable_offset();
        self.sealed().iter().filter(|s| s.end() > from && s.end() <= stable).map(SealedSegment::of).collect()
    }

    /// Seals the active segment if it holds anything; afterwards everything below the log end of the moment of the call
    /// is sealed and durable. Blocking.
    pub fn seal(&self) -> Result<(), LogError> {
        let mut writer = self.writer.lock();
        self.check_open()?;
        self.roll(&mut writer)
    }

    /// Drops local sealed segments up to `through` that nobody needs any more: archived, or below the log start.
    /// Returns bytes freed. Blocking.
    pub fn trim_local(&self, through: Offset) -> Result<u64, LogError> {
        let needless = self.archived_through().max(self.log_start_offset());
        self.drop_through(through.min(needless).min(self.high_watermark()), None)
    }

    /// What maintenance does: seals an old active segment, drops what retention lets go, deletes files that waited long
    /// enough, forgets silent producers.
    pub(super) fn maintain(&self) -> Result<(), LogError> {
        let now = self.env.clock.now();
        let config = self.config();
        {
            let mut writer = self.writer.lock();
            self.check_open()?;
            writer.producers.expire(now, self.env.producer_expiration_ms);
            if writer.is_older_than(now, config.segment_age_max_ms()) {
                self.roll(&mut writer)?;
            }
        }
        let held: Vec<_> = self
            .sealed()
            .iter()
            .map(|s| Held { end: s.end(), size_bytes: s.size_bytes(), age_ms: s.age_ms(now) })
            .collect();
        let horizon = Horizon {
            high_watermark: self.high_watermark(),
            log_start: self.log_start_offset(),
            archived_through: self.archived_through(),
        };
        let through = droppable(&held, self.hot_bytes(), horizon, &config);
        self.drop_through(through, due_after(now, config.file_delete_delay_ms))?;
        self.deletions.carry_out(now, &self.env.eraser)?;
        Ok(())
    }

    /// Sealed segments that the archive has, oldest first: [`Self::trim_local`] may drop them.
    pub(super) fn archived(&self) -> Vec<Held> {
        let (now, through) = (self.env.clock.now(), self.archived_through().min(self.high_watermark()));
        let sealed = self.sealed();
        let archived = sealed.iter().take_while(|segment| segment.end() <= through);
        archived.map(|s| Held { end: s.end(), size_bytes: s.size_bytes(), age_ms: s.age_ms(now) }).collect()
    }

    /// Takes the segments that end at or below `through` out of view, then deletes their files, now or when they are
    /// `due`; returns bytes freed. The active one stays. Which ones those are is found out here: the list may have
    /// changed since the caller looked. What cannot be deleted is tried again by the next call, before anything newer:
    /// a segment that is left below a gap would keep the partition from opening.
    pub(super) fn drop_through(&self, through: Offset, due: Option<Timestamp>) -> Result<u64, LogError> {
        let mut leaving = self.changing_files.lock();
        {
            let mut segments = self.segments.write();
            self.check_open()?;
            let sealed = segments.len().saturating_sub(1);
            let count = segments.iter().take(sealed).take_while(|segment| segment.end() <= through).count();
            if count > 0 {
                leaving.extend(segments.drain(..count));
                let local_start = segments.first().map_or(Offset::ZERO, |segment| segment.base);
                if !self.config().remote_storage_enable {
                    self.set_log_start_offset(local_start);
                }
                self.local_start.fetch_max(local_start.0, Ordering::AcqRel);
            }
        }
        let mut freed = 0;
        while let Some(segment) = leaving.front() {
            match due {
                Some(due) => self.deletions.put_off(&self.dir, segment.base, due)?,
                None => self.env.eraser.delete_segment(&self.dir, segment.base)?,
            }
            freed += segment.size_bytes();
            self.env.metrics.hot_bytes.sub(gauge(segment.size_bytes()));
            leaving.pop_front();
        }
        Ok(freed)
    }

    /// All but the active segment.
    pub(super) fn sealed(&self) -> Vec<Arc<Segment>> {
        let segments = self.segments.read();
        segments.split_last().map(|(_, sealed)| sealed.to_vec()).unwrap_or_default()
    }

    /// Called by the flusher: makes what was appended so far durable and tells who waits.
    pub(super) fn flush(&self) {
        let (files, end) = self.begin_flush();
        if !self.is_closed() {
            // A failure has been logged and counted, and everyone who waited was told.
            let _ = self.sync(&files, end, false);
        }
    }

    /// Called by the flusher, which no longer has the partition among those that are synced later.
    pub(super) fn left_later(&self) {
        self.queued_later.store(false, Ordering::Release);
    }

    /// What a sync from now on makes durable: the active segment's part of what lies below the offset. What lies in
    /// older files was synced when they were sealed. What is appended later asks for another flush.
    pub(super) fn begin_flush(&self) -> (SegmentFiles, Offset) {
        self.queued.store(false, Ordering::Release);
        let mut writer = self.writer.lock();
        writer.unflushed_records = 0;
        (writer.files.clone(), writer.next)
    }

    /// Everything below `end` is durable, by a sync of the whole file system.
    pub(super) fn flushed(&self, end: Offset) {
        if !self.is_closed() && self.check_online().is_ok() {
            self.publish_high_watermark(end);
        }
    }

    /// The file system its folder lies on; None where nobody knows.
    pub(super) fn device(&self) -> Option<u64> {
        self.device
    }

    /// Syncs the active log file (with its indexes if `whole`) and publishes the high watermark. A failure takes the
    /// partition offline.
    pub(super) fn sync(&self, files: &SegmentFiles, end: Offset, whole: bool) -> Result<(), LogError> {
        let _syncing = self.syncing.lock();
        self.check_online()?;
        let synced = files.log.sync().and_then(|()| if whole { files.sync_indexes() } else { Ok(()) });
        match synced {
            Ok(()) => {
                self.publish_high_watermark(end);
                Ok(())
            }
            Err(error) => {
                self.fail("sync", &error);
                Err(error).on("sync", &self.dir)
            }
        }
    }

    /// Brings an append to disk as its topic wants it.
    pub(super) fn schedule_flush(&self, end: Offset, unflushed_records: i64, config: &TopicConfig) {
        let Some(this) = self.this.upgrade() else { return };
        if config.flush_messages > 1 {
            self.publish_high_watermark(end);
            if unflushed_records < config.flush_messages {
                if let Some(ms) = config.flush_ms
                    && !self.queued_later.swap(true, Ordering::AcqRel)
                {
                    let delay = Duration::from_millis(u64::try_from(ms).unwrap_or(0)).min(FLUSH_DELAY_MAX);
                    self.env.flush_queue.push_later(this, delay);
                }
                return;
            }
        }
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.env.flush_queue.push(this);
        }
    }

    fn publish_high_watermark(&self, end: Offset) {
        self.high_watermark.send_if_modified(|high_watermark| {
            let higher = end > *high_watermark;
            *high_watermark = end.max(*high_watermark);
            higher
        });
    }

    /// The log is empty and goes on at `offset`.
    pub(super) fn publish_start(&self, offset: Offset) {
        self.publish_log_end(offset);
        self.local_start.fetch_max(offset.0, Ordering::AcqRel);
        self.publish_high_watermark(offset);
    }

    pub(super) fn publish_log_end(&self, end: Offset) {
        self.log_end.store(end.0, Ordering::Release);
    }

    /// Takes the partition offline, for good. Told once, to the log, to metrics, and to all who wait.
    pub(super) fn fail(&self, action: &str, error: &std::io::Error) {
        let cause: Arc<str> = format!("{action} failed: {error}").into();
        if self.failure.set(cause).is_ok() {
            self.env.metrics.log_failures.inc();
            tracing::error!(partition = %self.topic_partition, action, %error, "storage error; the partition is offline");
            self.high_watermark.send_modify(|_| {});
        }
    }

    pub(super) fn check_usable(&self) -> Result<(), AppendError> {
        if let Some(cause) = self.failure.get() {
            return Err(AppendError::Offline { partition: self.topic_partition.clone(), cause: cause.clone() });
        }
        if self.is_closed() {
            return Err(AppendError::Closed(self.topic_partition.clone()));
        }
        Ok(())
    }

    fn check_online(&self) -> Result<(), LogError> {
        match self.failure.get() {
            Some(cause) => Err(LogError::Offline { partition: self.topic_partition.clone(), cause: cause.clone() }),
            None => Ok(()),
        }
    }

    pub(super) fn check_open(&self) -> Result<(), LogError> {
        self.check_online()?;
        if self.is_closed() { Err(LogError::Closed(self.topic_partition.clone())) } else { Ok(()) }
    }

    /// Makes everything durable, writes the producer snapshot, and closes. An error means: not cleanly.
    pub(super) fn close_clean(&self) -> Result<(), LogError> {
        let mut writer = self.writer.lock();
        let result = self.check_open().and_then(|()| {
            self.sync(&writer.files, writer.next, true)?;
            writer.producers.expire(self.env.clock.now(), self.env.producer_expiration_ms);
            snapshot::write(&self.dir, writer.next, &writer.producers)
        });
        self.mark_closed();
        result
    }

    /// Closes without touching the files: waiters wake, appends fail.
    pub(super) fn close_now(&self) {
        let _writer = self.writer.lock();
        self.mark_closed();
    }

    fn mark_closed(&self) {
        if !self.closed.swap(true, Ordering::AcqRel) {
            drop(self.cleaning.lock());
            self.env.metrics.hot_bytes.sub(gauge(self.hot_bytes()));
            self.high_watermark.send_modify(|_| {});
        }
    }
}

/// Longest `flush.ms` that is taken at its word.
const FLUSH_DELAY_MAX: Duration = Duration::from_secs(24 * 3600);

/// When files are to be deleted that go now; None is at once.
pub(super) fn due_after(now: Timestamp, delay_ms: i64) -> Option<Timestamp> {
    (delay_ms > 0).then(|| Timestamp(now.0.saturating_add(delay_ms)))
}

pub(super) fn gauge(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
