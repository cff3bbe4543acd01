//! Free space of the data directory. Below the reserve appends are refused; above it again they are taken, without
//! anybody's doing.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The file system is asked at most this often.
pub const CHECK_INTERVAL: Duration = Duration::from_secs(1);

type Probe = Box<dyn Fn() -> io::Result<u64> + Send + Sync>;

/// Knows whether the reserve is reached.
pub struct DiskWatch {
    reserve_bytes: u64,
    /// Free bytes now.
    probe: Probe,
    low: AtomicBool,
    checked: Mutex<Option<Instant>>,
}

impl DiskWatch {
    /// Watches the file system that holds `dir`.
    pub fn new(dir: PathBuf, reserve_bytes: u64) -> Self {
        let free = move || {
            let stats = rustix::fs::statvfs(&dir)?;
            Ok(stats.f_bavail.saturating_mul(stats.f_frsize))
        };
        Self::with_probe(reserve_bytes, Box::new(free))
    }

    fn with_probe(reserve_bytes: u64, probe: Probe) -> Self {
        Self { reserve_bytes, probe, low: AtomicBool::new(false), checked: Mutex::new(None) }
    }

    pub fn reserve_bytes(&self) -> u64 {
        self.reserve_bytes
    }

    /// Whether appends are to be refused.
    pub fn is_low(&self) -> bool {
        self.low.load(Ordering::Relaxed)
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
    }

    fn check(&self) {
        let reserve = self.reserve_bytes;
        match (self.probe)() {
            Ok(free) => {
                let low = free < reserve;
                if low != self.low.swap(low, Ordering::Relaxed) {
                    if low {
                        tracing::error!(
                            free,
                            reserve,
                            "free disk is below log.disk_reserve; produce requests are refused"
                        );
                    } else {
                        tracing::info!(
                            free,
                            reserve,
                            "free disk is above log.disk_reserve again; produce requests are taken"
                        );
                    }
                }
            }
            // Not knowing is no reason to refuse: a full disk refuses by itself.
            Err(error) => tracing::warn!(%error, "could not read the free space of the data directory"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn the_reserve_is_left_and_reached_again() {
        let free = Arc::new(AtomicU64::new(100));
        let probe = free.clone();
        let disk = DiskWatch::with_probe(50, Box::new(move || Ok(probe.load(Ordering::Relaxed))));
        disk.check();
        assert!(!disk.is_low());
        free.store(49, Ordering::Relaxed);
        disk.check();
        assert!(disk.is_low());
        free.store(50, Ordering::Relaxed);
        disk.check();
        assert!(!disk.is_low());
    }

    #[test]
    fn the_real_file_system_answers() {
        let dir = tempfile::tempdir().unwrap();
        let disk = DiskWatch::new(dir.path().to_owned(), u64::MAX);
        disk.refresh();
        assert!(disk.is_low());
    }
}
