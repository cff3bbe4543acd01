//! A budget of bytes per second for reading that may take its time.

use std::num::NonZeroU64;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Lets a number of bytes per second through; nothing that was not used is saved up. Requests are let through in the
/// order in which they came.
#[derive(Debug)]
pub struct Pace {
    bytes_per_second: NonZeroU64,
    /// when what was let through so far is paid for
    free_at: Mutex<Instant>,
}

impl Pace {
    pub fn new(bytes_per_second: NonZeroU64) -> Self {
        Self { bytes_per_second, free_at: Mutex::new(Instant::now()) }
    }

    /// Waits until earlier bytes are paid for, then lets `bytes` through: they make the next one wait.
    pub async fn take(&self, bytes: u64) {
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second.get() as f64);
        let start = {
            let mut free_at = self.free_at.lock();
            let start = (*free_at).max(Instant::now());
            *free_at = start.checked_add(cost).unwrap_or(start);
            start
        };
        tokio::time::sleep_until(start).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Time is tokio's and stands still but for sleeps: what passes is exactly what was waited for.
    #[tokio::test(start_paused = true)]
    async fn what_was_read_is_paid_for_by_what_comes_next() {
        let pace = Pace::new(NonZeroU64::new(1000).unwrap());
        let start = Instant::now();
        pace.take(2000).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        pace.take(500).await;
        assert_eq!(start.elapsed(), Duration::from_secs(2));
        tokio::time::sleep(Duration::from_secs(100)).await;
        pace.take(1).await;
        pace.take(1).await;
        assert_eq!(start.elapsed().as_millis(), 102_001, "a pause saves nothing up");
    }
}
