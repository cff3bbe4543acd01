//! How fast compaction goes, and when it stops.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// Longest it waits without asking whether it is to stop.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// Holds one compaction to its rate.
pub struct Pace<'a> {
    /// 0 is without limit.
    bytes_per_second: u64,
    started: Instant,
    moved_bytes: u64,
    stops: &'a dyn Fn() -> bool,
}

impl<'a> Pace<'a> {
    pub fn new(bytes_per_second: u64, stops: &'a dyn Fn() -> bool) -> Self {
        Self { bytes_per_second, started: Instant::now(), moved_bytes: 0, stops }
    }

    /// After so many more bytes were read or written: waits until the rate allows for them. False where it is to stop.
    pub fn goes_on(&mut self, bytes: usize) -> bool {
        self.moved_bytes += bytes as u64;
        loop {
            if (self.stops)() {
                return false;
            }
            let due = match self.bytes_per_second {
                0 => Duration::ZERO,
                rate => Duration::from_secs_f64(self.moved_bytes as f64 / rate as f64),
            };
            let ahead = due.saturating_sub(self.started.elapsed());
            if ahead.is_zero() {
                return true;
            }
            // Nobody notifies: it is a wait that ends by itself.
            Condvar::new().wait_for(&mut Mutex::new(()).lock(), ahead.min(WAIT_MAX));
        }
    }
}
