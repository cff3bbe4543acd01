//! How much of its time work in the background may work, so that producers hardly notice.
//!
//! Time goes in periods of [`PERIOD`]: first everybody works, for the *duty cycle*'s share of it, then everybody rests.
//! Resting together leaves moments in which nothing runs beside the producers, and what they experience then is what
//! they would experience without this work. The goal is relative to that: the p99 of all acks at most
//! `produce_slowdown_percent` above the p99 of those alone. No setting has to know how fast the disk is.
//!
//! [`Controller`] is the pure part. After each period it learns from the acks that were alone, counts the late ones
//! among all (those beyond the goal), and keeps an account: one ack of a hundred may be late; [`DEBT_MAX`] more than
//! that lower the duty cycle by [`DUTY_CUT`], so many fewer raise it by [`DUTY_STEP`] (additive increase,
//! multiplicative decrease: it gives way fast and comes back carefully). Late acks stay in the account until as many
//! fewer have made up for them, so that the share of late ones comes out right over a minute, not only between two
//! bursts. The account makes a quantile of few acks usable: in a second of a quiet producer the p99 is its slowest ack,
//! and chance decides that.
//!
//! What is usual alone is the upper quartile over the p99 of the last [`SAMPLES_MAX`] samples of [`SAMPLE_ACKS`] and
//! more. A disk that stalled for a moment spoils one of them, where it would decide the p99 of all acks taken together,
//! and leave work without a goal for a minute. The quartile, as the p99 of a hundred is their second largest, which
//! exceeds the p99 of thousands in one of four samples; late acks that come in bursts make that fewer still.
//!
//! # Invariants
//! 1. The duty cycle is never below [`DUTY_MIN`], and nobody rests once the disk is tight: segments that are not
//!    archived cannot leave it, and a disk that is full stops producers altogether. So a goal that cannot be met costs
//!    archive speed as long as there is room, never the archive.
//! 2. Beside producers it is never above [`DUTY_LIVE_MAX`], so that there is something to learn from; without them it
//!    gets to 1. When they come back, it is what they bore last.
//! 3. Periods begin when somebody works or asks to: there is no thread or task of its own, and without background work
//!    nobody looks. A reading over much more than a period teaches what is usual, and judges nobody.
//!
//! Nothing here outlives the process; a new one starts at 1.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use prometheus::Gauge;
use thermocline_ingest::latency::{Counts, ProduceLatency, Reading, Working};

/// What background work may always have. A worker at a quarter of its speed still keeps up with what a busy partition
/// takes in.
pub const DUTY_MIN: f64 = 0.25;
/// What it may have at most while somebody produces.
pub const DUTY_LIVE_MAX: f64 = 0.9;
/// What it begins with where somebody produces, until it is known what they bear.
const DUTY_LIVE_FIRST: f64 = 0.5;
/// What few late acks add.
pub const DUTY_STEP: f64 = 0.05;
/// What many late acks leave.
const DUTY_CUT: f64 = 0.7;
/// Work and rest together.
pub const PERIOD: Duration = Duration::from_secs(1);
/// The quantile that the goal is about.
const QUANTILE: f64 = 0.99;
/// Late acks, more or fewer than allowed, that are not taken for chance.
const DEBT_MAX: f64 = 4.0;
/// Late acks that are made up for at most: a disk that stalled for everybody is not the work's doing for long.
const DEBT_KEPT_MAX: f64 = 40.0;
/// Acks alone that a sample has at least; less have no such quantile.
const SAMPLE_ACKS: f64 = 100.0;
/// Samples that are remembered.
const SAMPLES_MAX: usize = 25;

/// Sets the duty cycle by what producers experience.
#[derive(Clone, Debug)]
pub struct Controller {
    slowdown_percent: u32,
    duty: f64,
    /// What producers bore when they were last there.
    duty_live: f64,
    /// The sample that is being gathered.
    alone: Counts,
    /// The quantile in the last samples, the newest at the end.
    samples: VecDeque<Duration>,
    /// Late acks beyond what is allowed.
    debt: f64,
}

/// Whether there is something worse for producers than late acks.
pub type Urgent = Box<dyn Fn() -> bool + Send + Sync>;

/// The duty cycle as threads live by it.
pub struct Throttle {
    urgent: Urgent,
    latency: Arc<ProduceLatency>,
    gauge: Gauge,
    /// Somebody produced in the last period, and has a goal to be held to.
    beside_producers: AtomicBool,
    state: Mutex<State>,
    period_begins: Condvar,
}

#[derive(Debug)]
struct State {
    controller: Controller,
    period_began: Instant,
}

impl Controller {
    /// `slowdown_percent`: how far the p99 may be above what it is alone; zero leaves the duty cycle at 1.
    pub fn new(slowdown_percent: u32) -> Self {
        Self {
            slowdown_percent,
            duty: 1.0,
            duty_live: DUTY_LIVE_FIRST,
            alone: Counts::default(),
            samples: VecDeque::new(),
            debt: 0.0,
        }
    }

    pub fn duty(&self) -> f64 {
        self.duty
    }

    /// Remembers what producers experience alone.
    pub fn learn(&mut self, alone: &Counts) {
        self.alone.add(alone);
        if self.alone.total() >= SAMPLE_ACKS
            && let Some(p99) = std::mem::take(&mut self.alone).quantile(QUANTILE)
        {
            self.samples.push_back(p99);
            if self.samples.len() > SAMPLES_MAX {
                self.samples.pop_front();
            }
        }
    }

    /// Judges a period.
    pub fn judge(&mut self, reading: &Reading) {
        self.learn(&reading.alone);
        if !self.has_goal() {
            return;
        }
        let acks = reading.total();
        if acks == 0.0 {
            self.duty = (self.duty + DUTY_STEP).min(1.0);
            return;
        }
        if let Some(goal) = self.goal() {
            let late = reading.alone.beyond(goal) + reading.beside.beyond(goal);
            let more = late - acks * (1.0 - QUANTILE);
            self.debt = (self.debt + more).min(DEBT_KEPT_MAX);
            if self.debt >= DEBT_MAX && more > 0.0 {
                self.duty_live *= DUTY_CUT;
            } else if self.debt <= -DEBT_MAX {
                self.duty_live += DUTY_STEP;
                self.debt = 0.0;
            }
        }
        self.duty_live = self.duty_live.clamp(DUTY_MIN, DUTY_LIVE_MAX);
        self.duty = self.duty_live;
    }

    fn has_goal(&self) -> bool {
        self.slowdown_percent > 0
    }

    fn goal(&self) -> Option<Duration> {
        let mut sorted: Vec<_> = self.samples.iter().copied().collect();
        sorted.sort_unstable();
        let usual = *sorted.get(sorted.len().saturating_sub(1) * 3 / 4)?;
        Some(usual + usual * self.slowdown_percent / 100)
    }
}

impl fmt::Debug for Throttle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Throttle").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Throttle {
    /// `latency` is where produce latencies are counted, `gauge` where the duty cycle is shown; while it is `urgent`
    /// nobody rests.
    pub fn new(slowdown_percent: u32, latency: Arc<ProduceLatency>, gauge: Gauge, urgent: Urgent) -> Self {
        let state = State { controller: Controller::new(slowdown_percent), period_began: Instant::now() };
        gauge.set(state.controller.duty());
        let (beside_producers, state) = (AtomicBool::new(false), Mutex::new(state));
        Self { urgent, latency, gauge, beside_producers, state, period_begins: Condvar::new() }
    }

    /// Whether there are producers to be spared.
    pub fn is_beside_producers(&self) -> bool {
        self.beside_producers.load(Ordering::Relaxed)
    }

    /// Says that the calling thread works, until it drops the answer or waits.
    pub fn work(&self) -> Working {
        self.latency.work()
    }

    /// Blocks until the time to rest is over, if it is time to rest.
    pub fn rest(&self, working: Working) -> Working {
        let mut state = self.state.lock();
        let Some(mut until) = self.rest_at(&mut state, Instant::now()) else { return working };
        drop(working);
        loop {
            self.period_begins.wait_until(&mut state, until);
            match self.rest_at(&mut state, Instant::now()) {
                Some(later) => until = later,
                None => return self.work(),
            }
        }
    }

    /// Until when whoever works has to rest.
    fn rest_at(&self, state: &mut State, now: Instant) -> Option<Instant> {
        let since = now.saturating_duration_since(state.period_began);
        if since >= PERIOD {
            state.period_began = now;
            self.end_period(&mut state.controller, since);
            self.period_begins.notify_all();
            return None;
        }
        let rests = since >= PERIOD.mul_f64(state.controller.duty()) && !(self.urgent)();
        rests.then(|| state.period_began + PERIOD)
    }

    fn end_period(&self, controller: &mut Controller, took: Duration) {
        let reading = self.latency.take();
        self.beside_producers.store(controller.has_goal() && reading.total() > 0.0, Ordering::Relaxed);
        if took > PERIOD * 2 {
            controller.learn(&reading.alone);
        } else {
            controller.judge(&reading);
            self.gauge.set(controller.duty());
            let (alone, beside) = (reading.alone.total(), reading.beside.total());
            tracing::trace!(alone, beside, debt = controller.debt, goal = ?controller.goal(), duty = controller.duty);
        }
    }
}

#[cfg(test)]
mod tests;
