//! The directory of all partitions.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, RwLock};
use thermocline_config::{LogConfig, TopicConfig};
use uuid::Uuid;

use super::cleaner::CleanerLimits;
use super::disk::{DiskWatch, FreeSpace, free_space_of};
use super::eraser::Eraser;
use super::error::{IoContext, LogError};
use super::file_system::FileSystem;
use super::flusher::{FlushQueue, Flusher};
use super::partition::{LogEnv, Partition};
use super::recovery::{Recovery, recover};
use super::retention::early;
use super::segment::{remove_if_there, sync_dir};
use crate::clock::Clock;
use crate::metrics::IngestMetrics;
use crate::model::{Offset, Timestamp, TopicId, TopicPartition};

const LOCK_FILE: &str = ".lock";
const CLEAN_MARKER: &str = ".clean_shutdown";
/// What the marker says, for whoever looks at it.
const CLEAN_MARKER_TEXT: &[u8] = b"thermocline 1\n";
/// How the folder of a removed partition ends. No partition's does: theirs end in a number.
const REMOVED_SUFFIX: &str = "-delete";
/// Part of a partition's name that its removed folder keeps: file names end at 255 bytes.
const REMOVED_NAME_LEN: usize = 200;

/// All partitions of this broker, the group-commit flusher thread and the maintenance.
///
/// Dropping it without [`Self::close`] is a crash as far as the next start is concerned.
pub struct HotLog {
    dir: PathBuf,
    env: Arc<LogEnv>,
    pub(super) flusher: Flusher,
    /// The last run ended cleanly.
    clean: bool,
    partitions: RwLock<HashMap<TopicPartition, Arc<Partition>>>,
    /// Held over opening, removing and closing: they change folders.
    changing: Mutex<()>,
    closed: AtomicBool,
    /// Locked as long as this lives.
    lock: File,
}

impl HotLog {
    /// Opens `dir` (created if missing), takes an exclusive lock on it, reads and removes the clean-shutdown marker,
    /// starts the flusher thread. Blocking.
    pub fn open(
        dir: PathBuf,
        config: LogConfig,
        clock: Arc<dyn Clock>,
        metrics: Arc<IngestMetrics>,
    ) -> Result<Arc<Self>, LogError> {
        let free_space = free_space_of(dir.clone());
        Self::open_on(dir, config, clock, metrics, free_space)
    }

    /// Like [`Self::open`], with another word on how much space is free.
    pub fn open_on(
        dir: PathBuf,
        config: LogConfig,
        clock: Arc<dyn Clock>,
        metrics: Arc<IngestMetrics>,
        free_space: FreeSpace,
    ) -> Result<Arc<Self>, LogError> {
        fs::create_dir_all(&dir).on("create", &dir)?;
        let lock = lock_dir(&dir)?;
        remove_leftovers(&dir)?;
        let marker = dir.join(CLEAN_MARKER);
        let clean = marker.exists();
        // Before anything is written: from here on a crash is a crash.
        remove_if_there(&marker)?;
        sync_dir(&dir)?;

        let disk = Arc::new(DiskWatch::new(config.disk_reserve.as_u64(), free_space, metrics.clone()));
        disk.refresh();
        let flush_queue = Arc::new(FlushQueue::default());
        let flusher = Flusher::start(flush_queue.clone(), FileSystem::of(&dir), disk.clone(), metrics.clone())
            .on("start the flusher of", &dir)?;
        let producer_expiration_ms = config.producer_id_expiration.as_millis();
        let cleaner = CleanerLimits {
            dedupe_buffer_bytes: config.cleaner_dedupe_buffer_bytes.as_usize(),
            bytes_per_second: config.cleaner_bytes_per_second.as_u64(),
        };
        let eraser = Eraser::start(disk.clone()).on("start the eraser of", &dir)?;
        let env = Arc::new(LogEnv {
            clock,
            metrics,
            flush_queue,
            disk,
            eraser,
            producer_expiration_ms,
            cleaner,
            replaced: AtomicBool::new(false),
        });
        Ok(Arc::new(Self {
            dir,
            env,
            flusher,
            clean,
            partitions: RwLock::default(),
            changing: Mutex::default(),
            closed: AtomicBool::new(false),
            lock,
        }))
    }

    /// The directory that holds every partition.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Creates the partition's folder or recovers what is in it. `log_start` is the smallest readable offset known to
    /// the metadata store. Blocking.
    pub fn open_partition(
        &self,
        tp: TopicPartition,
        topic_id: TopicId,
        config: Arc<TopicConfig>,
        log_start: Offset,
    ) -> Result<Arc<Partition>, LogError> {
        let _changing = self.changing.lock();
        if self.closed.load(Ordering::Acquire) {
            return Err(LogError::Shutdown);
        }
        if self.partitions.read().contains_key(&tp) {
            return Err(LogError::Open(tp));
        }
        let dir: Arc<Path> = self.dir.join(tp.to_string()).into();
        let recovered = recover(&Recovery {
            dir: &dir,
            log_start,
            clean: self.clean,
            index_interval_bytes: config.index_interval_bytes,
            now: self.env.clock.now(),
            producer_expiration_ms: self.env.producer_expiration_ms,
        })?;
        let partition = Partition::new(tp.clone(), topic_id, dir, self.env.clone(), config, log_start, recovered);
        self.partitions.write().insert(tp, partition.clone());
        Ok(partition)
    }

    /// Closes the partition (waiters wake, appends fail), renames its folder away and deletes it. A folder without an
    /// open partition goes the same way; neither is fine too. Blocking.
    pub fn remove_partition(&self, tp: &TopicPartition) -> Result<(), LogError> {
        let _changing = self.changing.lock();
        if let Some(partition) = self.partitions.write().remove(tp) {
            partition.close_now();
        }
        let name = tp.to_string();
        let dir = self.dir.join(&name);
        let kept = name.get(..REMOVED_NAME_LEN).unwrap_or(&name);
        let removed = self.dir.join(format!("{kept}.{}{REMOVED_SUFFIX}", Uuid::new_v4().simple()));
        match fs::rename(&dir, &removed) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            renamed => renamed.on("rename", &dir)?,
        }
        sync_dir(&self.dir)?;
        for entry in fs::read_dir(&removed).on("list", &removed)? {
            self.env.eraser.delete(&entry.on("list", &removed)?.path())?;
        }
        fs::remove_dir_all(&removed).on("delete", &removed)
    }

    /// Every partition that is open.
    pub(super) fn partitions(&self) -> Vec<Arc<Partition>> {
        self.partitions.read().values().cloned().collect()
    }

    pub(super) fn cleaner_limits(&self) -> CleanerLimits {
        self.env.cleaner
    }

    /// Seals segments that are old enough, drops local copies that local retention and the archive allow, expires
    /// producers, looks at the free space and makes room where it is tight. Blocking.
    pub fn maintain(&self) {
        self.env.disk.refresh();
        for partition in self.partitions() {
            match partition.maintain() {
                // Offline was logged when it happened; closed means on its way out.
                Ok(()) | Err(LogError::Offline { .. } | LogError::Closed(_)) => {}
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(partition = %partition.topic_partition(), error, "maintenance failed; it will be tried again");
                }
            }
        }
        self.make_room();
    }

    /// Whether free space was tight when it was last looked at.
    pub fn is_tight(&self) -> bool {
        self.env.disk.shortage_bytes() > 0
    }

    /// Resolves when free space is tight, and again and again while it stays so: time for [`Self::make_room`].
    pub async fn disk_is_tight(&self) {
        self.env.disk.tight().await;
    }

    /// While free space is tight, deletes what waits to be deleted, and drops local copies of archived segments early,
    /// the oldest first. Blocking.
    pub fn make_room(&self) {
        let mut missing = self.env.disk.shortage_bytes();
        if missing == 0 {
            return;
        }
        let partitions = self.partitions();
        for partition in &partitions {
            match partition.deletions.carry_out(Timestamp(i64::MAX), &self.env.eraser) {
                Ok(bytes) => missing = missing.saturating_sub(bytes),
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(partition = %partition.topic_partition(), error, "files that wait for their deletion are left");
                }
            }
        }
        let archived: Vec<_> = partitions.iter().map(|partition| partition.archived()).collect();
        let mut freed = 0;
        for ((partition, segments), count) in partitions.iter().zip(&archived).zip(early(&archived, missing)) {
            let Some(last) = count.checked_sub(1).and_then(|last| segments.get(last)) else { continue };
            match partition.trim_local(last.end) {
                Ok(bytes) => freed += bytes,
                Err(LogError::Offline { .. } | LogError::Closed(_)) => {}
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(partition = %partition.topic_partition(), error, "making room failed; it will be tried again");
                }
            }
        }
        if freed > 0 {
            self.env.metrics.trimmed_early_bytes.inc_by(freed);
            tracing::info!(freed, missing, "dropped local copies of archived segments early");
            self.env.disk.check();
        }
    }

    /// Another broker has taken over the archive: from now on producers are refused, except for topics that are not
    /// archived. Reads go on.
    pub fn set_replaced(&self) {
        self.env.replaced.store(true, Ordering::Release);
    }

    /// Flushes everything, writes producer snapshots and the clean-shutdown marker, stops the flusher. A partition that
    /// cannot be closed cleanly means no marker, and the first such error. Blocking.
    pub fn close(&self) -> Result<(), LogError> {
        let _changing = self.changing.lock();
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let mut result = Ok(());
        for partition in self.partitions.read().values() {
            result = result.and(partition.close_clean());
        }
        self.flusher.stop();
        result?;
        let marker = self.dir.join(CLEAN_MARKER);
        let written = File::create(&marker).and_then(|mut file| {
            file.write_all(CLEAN_MARKER_TEXT)?;
            file.sync_all()
        });
        written.on("write", &marker)?;
        sync_dir(&self.dir)
    }
}

impl Drop for HotLog {
    fn drop(&mut self) {
        for partition in self.partitions.get_mut().values() {
            partition.close_now();
        }
        self.flusher.stop();
        // Not left to the descriptor's closing: a child that is just being started holds a copy of it.
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(dir = %self.dir.display(), %error, "the log's folder stays locked until this process ends");
        }
    }
}

fn lock_dir(dir: &Path) -> Result<File, LogError> {
    let path = dir.join(LOCK_FILE);
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path).on("open", &path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(LogError::Locked { dir: dir.to_owned() }),
        Err(TryLockError::Error(source)) => Err(LogError::Io { action: "lock", path, source }),
    }
}

/// Finishes removals that were interrupted.
fn remove_leftovers(dir: &Path) -> Result<(), LogError> {
    for entry in fs::read_dir(dir).on("list", dir)? {
        let path = entry.on("list", dir)?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(REMOVED_SUFFIX)) {
            fs::remove_dir_all(&path).on("delete", &path)?;
        }
    }
    Ok(())
}
