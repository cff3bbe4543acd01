//! How long producers wait for their acks just now, alone and beside work in the background: what that work goes by
//! when it decides how much of the machine it may take.
//!
//! Two histograms that are emptied whenever they are read. Whoever works in the background says so
//! ([`ProduceLatency::work`]); an ack counts as *alone* if nobody worked from [`SETTLE`] before its request to its end,
//! and as *beside* work otherwise. Counting is a few atomic operations. A latency that is counted while the window is
//! read belongs to this reading or the next; one that is counted while work begins or ends may be taken for either
//! kind.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Buckets per doubling: one is 3 % wide.
const STEPS_BITS: u32 = 5;
const STEPS: usize = 1 << STEPS_BITS;
/// Doublings above a microsecond that are told apart: to about a minute.
const DOUBLINGS: usize = 26;
const BUCKETS: usize = (DOUBLINGS - STEPS_BITS as usize + 1) * STEPS;
/// After the last worker, the disk and the caches are as if there had been none.
const SETTLE: Duration = Duration::from_millis(20);
/// What a share of a total may be off by.
const ROUNDING: f64 = 1e-6;

/// Latencies of produce requests since they were read last.
#[derive(Debug)]
pub struct ProduceLatency {
    alone: Window,
    beside: Window,
    workers: AtomicUsize,
    /// When the last worker ended, in microseconds after `opened_at`; 0 while nobody has worked.
    quiet_since: AtomicU64,
    opened_at: Instant,
}

/// While it is there, somebody works in the background.
#[derive(Debug)]
pub struct Working(Arc<ProduceLatency>);

/// What was counted between two readings.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    pub alone: Counts,
    pub beside: Counts,
}

/// How many acks took how long.
#[derive(Clone, Debug)]
pub struct Counts(Vec<f64>);

#[derive(Debug)]
struct Window([AtomicU32; BUCKETS]);

impl Default for ProduceLatency {
    fn default() -> Self {
        Self {
            alone: Window::default(),
            beside: Window::default(),
            workers: AtomicUsize::new(0),
            quiet_since: AtomicU64::new(0),
            opened_at: Instant::now(),
        }
    }
}

impl Default for Window {
    fn default() -> Self {
        Self([const { AtomicU32::new(0) }; BUCKETS])
    }
}

impl Default for Counts {
    fn default() -> Self {
        Self(vec![0.0; BUCKETS])
    }
}

impl ProduceLatency {
    /// A producer just got its ack, so long after its request.
    pub fn record(&self, latency: Duration) {
        let window = if self.is_alone(latency) { &self.alone } else { &self.beside };
        window.add(latency);
    }

    /// Says that the caller works, until it drops the answer.
    pub fn work(self: &Arc<Self>) -> Working {
        self.workers.fetch_add(1, Ordering::Relaxed);
        Working(self.clone())
    }

    /// What was counted since the last call.
    pub fn take(&self) -> Reading {
        Reading { alone: self.alone.take(), beside: self.beside.take() }
    }

    fn is_alone(&self, latency: Duration) -> bool {
        let since = self.quiet_since.load(Ordering::Relaxed);
        let quiet_for = (since > 0).then(|| self.opened_at.elapsed().saturating_sub(Duration::from_micros(since)));
        self.workers.load(Ordering::Relaxed) == 0 && was_quiet(quiet_for, latency)
    }
}

/// Whether nobody worked beside an ack that just came: `quiet_for` is how long nobody has, None if nobody ever did.
fn was_quiet(quiet_for: Option<Duration>, latency: Duration) -> bool {
    quiet_for.is_none_or(|quiet_for| quiet_for >= latency.saturating_add(SETTLE))
}

impl Reading {
    pub fn total(&self) -> f64 {
        self.alone.total() + self.beside.total()
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        let Self(latency) = self;
        latency.quiet_since.store(micros(latency.opened_at.elapsed()).max(1), Ordering::Relaxed);
        latency.workers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Window {
    fn add(&self, latency: Duration) {
        if let Some(bucket) = self.0.get(bucket_of(micros(latency))) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn take(&self) -> Counts {
        Counts(self.0.iter().map(|bucket| f64::from(bucket.swap(0, Ordering::Relaxed))).collect())
    }
}

impl Counts {
    pub fn total(&self) -> f64 {
        self.0.iter().sum()
    }

    /// The latency that a share of the acks stayed within, as the middle of its bucket. None where there was none.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let rank = self.total() * share;
        let mut within = 0.0;
        let bucket = self.0.iter().position(|count| {
            within += count;
            *count > 0.0 && within + ROUNDING >= rank
        })?;
        Some(middle(bucket))
    }

    /// How many acks took longer, going by the middles of their buckets.
    pub fn beyond(&self, latency: Duration) -> f64 {
        let late = self.0.iter().enumerate().rev().take_while(|(bucket, _)| middle(*bucket) > latency);
        late.map(|(_, count)| count).sum()
    }

    pub fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(count, more)| *count += more);
    }
}

impl FromIterator<Duration> for Counts {
    fn from_iter<I: IntoIterator<Item = Duration>>(latencies: I) -> Self {
        let window = Window::default();
        latencies.into_iter().for_each(|latency| window.add(latency));
        window.take()
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
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

fn middle(bucket: usize) -> Duration {
    let begin = bucket.checked_sub(1).map_or(0, |before| bucket_end(before) + 1);
    Duration::from_nanos((begin + bucket_end(bucket)) * 500)
}

#[cfg(test)]
mod tests;
