//! Free space of the data directory, against `log.disk_reserve`.
//!
//! | free space | then |
//! |---|---|
//! | at least [`TIGHT_BELOW_RESERVES`] times the reserve | nothing |
//! | less | local copies of what is archived go early, the oldest first, whatever local retention says |
//! | less than the reserve | appends of producers are refused; the broker's own topics go on, the reserve is theirs |
//!
//! Above a line again, its consequence ends without anybody's doing. So a store that is down fills the disk with what
//! cannot be archived, up to the reserve and no further; when it is back, archiving and early trimming make room again.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::partition::gauge;
use crate::metrics::IngestMetrics;

/// The file system is asked at most this often.
pub const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Below so many times the reserve, room is made before it is needed.
const TIGHT_BELOW_RESERVES: u64 = 2;

/// Answers the free bytes of now.
pub type FreeSpace = Box<dyn Fn() -> io::Result<u64> + Send + Sync>;

/// The size of a file system and what unprivileged users may still write to it.
#[derive(Clone, Copy, Debug)]
pub struct DiskSpace {
    pub total_bytes: u64,
    pub free_bytes: u64,
}

/// The space of the file system that holds `dir`. Blocking.
pub fn disk_space(dir: &Path) -> io::Result<DiskSpace> {
    let stats = rustix::fs::statvfs(dir)?;
    let bytes = |blocks: u64| blocks.saturating_mul(stats.f_frsize);
    Ok(DiskSpace { total_bytes: bytes(stats.f_blocks), free_bytes: bytes(stats.f_bavail) })
}

/// The free space of the file system that holds `dir`, for unprivileged users.
pub fn free_space_of(dir: PathBuf) -> FreeSpace {
    Box::new(move || Ok(disk_space(&dir)?.free_bytes))
}

/// Knows whether the reserve is reached.
pub struct DiskWatch {
    reserve_bytes: u64,
    free_space: FreeSpace,
    metrics: Arc<IngestMetrics>,
    low: AtomicBool,
    /// Bytes that are missing until space is no longer tight; 0 while it is not.
    shortage: AtomicU64,
    tight: Notify,
    checked: Mutex<Option<Instant>>,
}

impl DiskWatch {
    pub fn new(reserve_bytes: u64, free_space: FreeSpace, metrics: Arc<IngestMetrics>) -> Self {
        Self {
            reserve_bytes,
            free_space,
            metrics,
            low: AtomicBool::new(false),
            shortage: AtomicU64::new(0),
            tight: Notify::new(),
            checked: Mutex::new(None),
        }
    }

    pub fn reserve_bytes(&self) -> u64 {
        self.reserve_bytes
    }

    /// Whether appends are to be refused.
    pub fn is_low(&self) -> bool {
        self.low.load(Ordering::Relaxed)
    }

    /// Bytes that should be freed, as of the last look.
    pub fn shortage_bytes(&self) -> u64 {
        self.shortage.load(Ordering::Relaxed)
    }

    /// Resolves when [`Self::refresh`] has found that space is tight, and again each time that it does: files that are
    /// still being read give their space back later, so that room is made at this pace and no faster.
    pub async fn tight(&self) {
        self.tight.notified().await;
    }

    /// Looks again, unless that was done within [`CHECK_INTERVAL`].
    pub fn refresh(&self) {
        {
            let mut checked = self.checked.lock();
            if checked.is_some_and(|at| at.elapsed() < CHECK_INTERVAL) {
                return;
            }
            *checked = Some(Instant::now());
        }
        self.check();
        if self.shortage_bytes() > 0 {
            self.tight.notify_one();
        }
    }

    /// Looks now.
    pub fn check(&self) {
        let free = match (self.free_space)() {
            Ok(free) => free,
            // Not knowing is no reason to refuse: a full disk refuses by itself.
            Err(error) => return tracing::warn!(%error, "could not read the free space of the data directory"),
        };
        let reserve = self.reserve_bytes;
        let shortage = reserve.saturating_mul(TIGHT_BELOW_RESERVES).saturating_sub(free);
        let low = free < reserve;
        self.metrics.disk_free_bytes.set(gauge(free));
        self.metrics.disk_reserve_reached.set(i64::from(low));
        if shortage > 0 && self.shortage.swap(shortage, Ordering::Relaxed) == 0 {
            tracing::warn!(free, reserve, "free disk is tight; local copies of archived segments go early");
        } else if shortage == 0 {
            self.shortage.store(0, Ordering::Relaxed);
        }
        if low != self.low.swap(low, Ordering::Relaxed) {
            if low {
                tracing::error!(
                    free,
                    reserve,
                    "free disk is below log.disk_reserve; produce requests are refused until there is space; \
                     if archiving is behind, look at the store"
                );
            } else {
                tracing::info!(free, reserve, "free disk is above log.disk_reserve again; produce requests are taken");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;

    use super::*;

    fn metrics() -> Arc<IngestMetrics> {
        Arc::new(IngestMetrics::new(&Registry::new()).unwrap())
    }

    #[test]
    fn the_reserve_is_left_and_reached_again() {
        let free = Arc::new(AtomicU64::new(100));
        let (probe, metrics) = (free.clone(), metrics());
        let disk = DiskWatch::new(50, Box::new(move || Ok(probe.load(Ordering::Relaxed))), metrics.clone());
        for (bytes, low, shortage) in
            [(100, false, 0), (99, false, 1), (49, true, 51), (50, false, 50), (120, false, 0)]
        {
            free.store(bytes, Ordering::Relaxed);
            disk.check();
            assert_eq!((disk.is_low(), disk.shortage_bytes()), (low, shortage), "{bytes} bytes free");
            assert_eq!((metrics.disk_free_bytes.get(), metrics.disk_reserve_reached.get()), (bytes as i64, low.into()));
        }
    }

    #[test]
    fn without_a_reserve_nothing_is_tight() {
        let disk = DiskWatch::new(0, Box::new(|| Ok(0)), metrics());
        disk.check();
        assert!(!disk.is_low() && disk.shortage_bytes() == 0);
    }

    #[test]
    fn the_real_file_system_answers() {
        let dir = tempfile::tempdir().unwrap();
        let disk = DiskWatch::new(u64::MAX, free_space_of(dir.path().to_owned()), metrics());
        disk.refresh();
        assert!(disk.is_low());
    }
}
