//! How much of its time work in the background may work, so that producers do not wait for it.
//!
//! [`Controller`] is the pure part: once a [`WINDOW`] it sees the p99 of the produce latency and sets the duty cycle,
//! the share of time in which background work works. Above the target the share is halved, otherwise it grows by
//! [`DUTY_STEP`] (additive increase, multiplicative decrease: it gives way fast and comes back carefully). Without
//! producers it grows as well.
//!
//! # Invariants
//! 1. The duty cycle is never below [`DUTY_MIN`]: segments that are not archived cannot leave the disk, and a disk
//!    that is full stops producers altogether. So a target that cannot be met costs archive speed, never the archive.
//! 2. It is never above 1, and gets there within `(1 - DUTY_MIN) / DUTY_STEP` windows once the target is met.
//! 3. It is set by whoever rests or asks to: there is no thread or task of its own, and without background work nobody
//!    looks. A reading that covers much more than a window says nothing about the present and is thrown away.
//!
//! Nothing here outlives the process; a new one starts at 1.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use prometheus::Gauge;
use thermocline_ingest::latency::LatencyWindow;

/// What background work may always have. A worker at a quarter of its speed still keeps up with what a busy partition
/// takes in.
pub const DUTY_MIN: f64 = 0.25;
/// What a window within the target adds.
pub const DUTY_STEP: f64 = 0.05;
/// What a window beyond the target leaves.
const DUTY_CUT: f64 = 0.5;
/// How long produce latencies are gathered before they are judged.
pub const WINDOW: Duration = Duration::from_secs(1);

/// Sets the duty cycle by what producers experience.
#[derive(Clone, Debug)]
pub struct Controller {
    target: Duration,
    duty: f64,
}

/// The duty cycle as threads live by it.
#[derive(Debug)]
pub struct Throttle {
    latency: Arc<LatencyWindow>,
    gauge: Gauge,
    state: Mutex<State>,
    /// The duty cycle is another one.
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    controller: Controller,
    judged_at: Instant,
}

impl Controller {
    /// Aims at acks within `target` for 99 of 100 produce requests; a target of zero leaves the duty cycle at 1.
    pub fn new(target: Duration) -> Self {
        Self { target, duty: 1.0 }
    }

    pub fn duty(&self) -> f64 {
        self.duty
    }

    /// Judges a window; `None` where nobody produced.
    pub fn judge(&mut self, p99: Option<Duration>) {
        let is_late = !self.target.is_zero() && p99.is_some_and(|p99| p99 > self.target);
        let duty = if is_late { self.duty * DUTY_CUT } else { self.duty + DUTY_STEP };
        self.duty = duty.clamp(DUTY_MIN, 1.0);
    }
}

impl Throttle {
    /// `latency` is where produce latencies are counted, `gauge` where the duty cycle is shown.
    pub fn new(target: Duration, latency: Arc<LatencyWindow>, gauge: Gauge) -> Self {
        let state = State { controller: Controller::new(target), judged_at: Instant::now() };
        gauge.set(state.controller.duty());
        Self { latency, gauge, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Blocks for as long as a thread has to rest that has worked for `worked`; shorter once the duty cycle rises.
    pub fn rest(&self, worked: Duration) {
        let begun = Instant::now();
        let mut state = self.state.lock();
        loop {
            let now = Instant::now();
            if self.judge_if_due(&mut state, now) {
                self.changed.notify_all();
            }
            let until = begun + rest_after(worked, state.controller.duty());
            if until <= now {
                return;
            }
            let next_window = state.judged_at + WINDOW;
            self.changed.wait_until(&mut state, until.min(next_window));
        }
    }

    /// Whether a window has passed and was judged.
    fn judge_if_due(&self, state: &mut State, now: Instant) -> bool {
        let since = now.saturating_duration_since(state.judged_at);
        if since < WINDOW {
            return false;
        }
        state.judged_at = now;
        let p99 = self.latency.take_p99();
        if since > WINDOW * 2 {
            return false;
        }
        state.controller.judge(p99);
        self.gauge.set(state.controller.duty());
        true
    }
}

/// How long to rest after working for `worked`, so that the share of work is `duty`.
fn rest_after(worked: Duration, duty: f64) -> Duration {
    worked.mul_f64(1.0 / duty.clamp(DUTY_MIN, 1.0) - 1.0)
}

#[cfg(test)]
mod tests;
