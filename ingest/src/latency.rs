//! How long producers wait for their acks just now: what work in the background goes by when it decides how much of
//! the machine it may take.
//!
//! A histogram that is emptied whenever it is read, so that it tells about the time since. Counting is one atomic
//! addition; a latency that is counted while the window is read belongs to this reading or the next.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Buckets per doubling: a quantile is at most a quarter too large.
const STEPS_BITS: u32 = 2;
const STEPS: usize = 1 << STEPS_BITS;
/// Doublings above a microsecond that are told apart: to about a minute.
const DOUBLINGS: usize = 26;
const BUCKETS: usize = DOUBLINGS * STEPS;
/// The share of acks, in hundredths, that [`LatencyWindow::take_p99`] looks for.
const QUANTILE_PERCENT: u64 = 99;

/// Latencies since the window was read last.
#[derive(Debug)]
pub struct LatencyWindow {
    buckets: [AtomicU32; BUCKETS],
}

impl Default for LatencyWindow {
    fn default() -> Self {
        Self { buckets: [const { AtomicU32::new(0) }; BUCKETS] }
    }
}

impl LatencyWindow {
    pub fn record(&self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        if let Some(bucket) = self.buckets.get(bucket_of(micros)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The latency that 99 of 100 acks stayed below since the last call, rounded up to the end of its bucket; of fewer
    /// than a hundred, the longest. `None` where there was none. Empties the window.
    pub fn take_p99(&self) -> Option<Duration> {
        let counts: Vec<u64> = self.buckets.iter().map(|b| u64::from(b.swap(0, Ordering::Relaxed))).collect();
        let total: u64 = counts.iter().sum();
        let rank = (total * QUANTILE_PERCENT).div_ceil(100);
        let mut below = 0;
        let found = counts.iter().position(|count| {
            below += count;
            total > 0 && below >= rank
        })?;
        Some(Duration::from_micros(bucket_end(found)))
    }
}

/// The first buckets hold one microsecond each; from then on every doubling has [`STEPS`] of them.
fn bucket_of(micros: u64) -> usize {
    let doubling = micros.max(1).ilog2();
    if doubling < STEPS_BITS {
        return usize::try_from(micros).unwrap_or(BUCKETS);
    }
    let step = (micros >> (doubling - STEPS_BITS)) as usize % STEPS;
    ((doubling - STEPS_BITS + 1) as usize * STEPS + step).min(BUCKETS - 1)
}

/// The largest latency of a bucket, in microseconds.
fn bucket_end(bucket: usize) -> u64 {
    let (doubling, step) = (bucket / STEPS, bucket % STEPS);
    if doubling == 0 {
        return step as u64;
    }
    (((STEPS + step + 1) as u64) << (doubling - 1)) - 1
}

#[cfg(test)]
mod tests;
