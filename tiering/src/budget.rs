//! How many bytes and requests per second one side of the work on the store may take: two token buckets and a queue.
//!
//! A request begins when what earlier ones took has been paid for, and is charged as it begins, whatever its size; so
//! a large part is not held back for ever by a small budget, it only keeps later ones waiting for longer. After idle
//! time at most [`BURST`] of the rate is there to be taken at once. Hence over any span of time no more begins than
//! rate x (span + burst), and one request beyond it.
//!
//! Requests wait in the order in which they came. One that is given up while it waits has taken nothing.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// What may be taken at once after idle time, as a span of the rate.
pub const BURST: Duration = Duration::from_secs(1);

/// What may be taken per second; 0 is without limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    pub bytes_per_second: u64,
    pub requests_per_second: u64,
}

/// Shared by everything that draws from it.
#[derive(Debug)]
pub struct Budget {
    rates: Rates,
    /// Held by the first in the queue while it waits.
    turn: tokio::sync::Mutex<()>,
    buckets: Mutex<Buckets>,
}

#[derive(Debug)]
struct Buckets {
    bytes: Bucket,
    requests: Bucket,
}

/// When all that was taken so far is paid for, at the rate; counted from no earlier than [`BURST`] ago.
#[derive(Debug)]
struct Bucket {
    per_second: u64,
    paid_at: Instant,
}

impl Budget {
    pub fn new(rates: Rates) -> Self {
        let bucket = |per_second| Bucket { per_second, paid_at: Instant::now() };
        let (bytes, requests) = (bucket(rates.bytes_per_second), bucket(rates.requests_per_second));
        let (turn, buckets) = (tokio::sync::Mutex::default(), Mutex::new(Buckets { bytes, requests }));
        Self { rates, turn, buckets }
    }

    /// Waits until a request may begin, and charges it and `bytes` for what it moves, as far as that is known.
    pub async fn take(&self, bytes: u64) {
        if self.rates == Rates::default() {
            return;
        }
        let _turn = self.turn.lock().await;
        while let Err(ready_at) = self.try_take(bytes) {
            tokio::time::sleep_until(ready_at).await;
        }
    }

    fn try_take(&self, bytes: u64) -> Result<(), Instant> {
        self.buckets.lock().take(bytes, Instant::now())
    }

    /// Charges what was known only afterwards. Does not wait: the next request does.
    pub fn charge(&self, bytes: u64) {
        self.buckets.lock().bytes.charge(bytes, Instant::now());
    }
}

impl Buckets {
    /// Takes a request and `bytes`, or says when to ask again.
    fn take(&mut self, bytes: u64, now: Instant) -> Result<(), Instant> {
        let ready_at = self.bytes.paid_at.max(self.requests.paid_at);
        if ready_at > now {
            return Err(ready_at);
        }
        self.bytes.charge(bytes, now);
        self.requests.charge(1, now);
        Ok(())
    }
}

impl Bucket {
    fn charge(&mut self, units: u64, now: Instant) {
        if self.per_second == 0 {
            return;
        }
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let nanos = u128::from(units) * 1_000_000_000 / u128::from(self.per_second);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let from = self.paid_at.max(earliest);
        self.paid_at = from.checked_add(cost).unwrap_or(from);
    }
}

#[cfg(test)]
mod tests;
