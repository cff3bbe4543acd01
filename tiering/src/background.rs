//! Threads for work that nobody waits for: staging, verification, writes to a local store.
//!
//! Such work takes a core for seconds and must not take it from a producer. So it does not run on the runtime's
//! threads, but on threads of its own:
//!
//! - **Priority.** They run at nice [`NICE`]: a thread of the broker that wakes up takes the core from them at once,
//!   and in competition for a saturated core they get about a tenth of it, not nothing, for the archive must go on.
//!   Linux takes their I/O priority from that too, where its scheduler knows any. A thread cannot be raised again
//!   without privileges, hence no pool that others share.
//! - **Number.** [`Background::run`] starts one thread per job, at most as many at once as there are slots; jobs that
//!   wait for a slot come in order. A job takes seconds, its thread microseconds.
//! - **Pauses.** Code that runs for long calls [`pause`] between its steps, and rests as the throttle says. On any
//!   other thread that does nothing, so the same code can serve somebody who waits. A thread that is started from
//!   such a thread rests by the same throttle. Time in which a thread waited for a core is not work to rest from:
//!   otherwise priority and pauses would multiply, and under a saturating load next to nothing would be archived.
//!
//! A job whose caller goes away is finished all the same, and keeps its slot until then. No lock that live traffic
//! takes may be held over a pause. The runtime does not know these threads: a test that pauses its clock would see time
//! jump while one works.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, oneshot};

use crate::throttle::Throttle;

/// Priority of background threads, 0 being that of the broker and 19 the lowest.
const NICE: i32 = 10;
/// Work that is rested for at once; shorter steps add up.
const STEP_MIN: Duration = Duration::from_millis(5);
/// Where Linux says how long the reading thread has run and waited to run, in nanoseconds (its `sched-stats.rst`).
const ACCOUNT: &str = "/proc/thread-self/schedstat";
/// Three numbers of at most 20 digits.
const ACCOUNT_BYTES_MAX: usize = 64;

/// Why a job has no outcome.
#[derive(Debug, thiserror::Error)]
pub enum BackgroundError {
    #[error("starting the thread {name}")]
    Start { name: &'static str, source: io::Error },
    #[error("the thread {name} panicked")]
    Panicked { name: &'static str },
}

/// Where background jobs run. Cheap to clone; clones share slots and throttle.
#[derive(Clone, Debug)]
pub struct Background {
    /// None where no producer can be hurt
    throttle: Option<Arc<Throttle>>,
    slots: Arc<Semaphore>,
}

thread_local! {
    static PACE: RefCell<Option<Pace>> = const { RefCell::new(None) };
}

/// What a thread has worked since it rested last.
struct Pace {
    throttle: Arc<Throttle>,
    since: Instant,
    /// How long it had waited for a core by then.
    queued: Duration,
    /// The kernel's account of this thread, where there is one.
    account: Option<File>,
}

impl Pace {
    /// Of the current thread, from now on.
    fn begin(throttle: Arc<Throttle>) -> Self {
        let account = File::open(ACCOUNT).ok();
        let mut pace = Self { throttle, since: Instant::now(), queued: Duration::ZERO, account };
        pace.queued = pace.queued_so_far();
        pace
    }

    fn worked(&self) -> Duration {
        let queued = self.queued_so_far().saturating_sub(self.queued);
        self.since.elapsed().saturating_sub(queued)
    }

    fn queued_so_far(&self) -> Duration {
        let mut line = [0; ACCOUNT_BYTES_MAX];
        let read = self.account.as_ref().and_then(|account| account.read_at(&mut line, 0).ok()).unwrap_or(0);
        line.get(..read).and_then(queued_in).unwrap_or_default()
    }
}

/// The second number of the account: nanoseconds in the queue for a core.
fn queued_in(account: &[u8]) -> Option<Duration> {
    let nanos = str::from_utf8(account).ok()?.split_ascii_whitespace().nth(1)?;
    nanos.parse().ok().map(Duration::from_nanos)
}

impl Background {
    /// `slots`: jobs at once.
    pub fn new(throttle: Arc<Throttle>, slots: usize) -> Self {
        Self::with(Some(throttle), slots)
    }

    /// For a process that serves no producers.
    pub fn unthrottled(slots: usize) -> Self {
        Self::with(None, slots)
    }

    fn with(throttle: Option<Arc<Throttle>>, slots: usize) -> Self {
        Self { throttle, slots: Arc::new(Semaphore::new(slots.clamp(1, Semaphore::MAX_PERMITS))) }
    }

    /// Runs `work`, which may block, on a thread of its own once a slot is free.
    pub async fn run<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, BackgroundError> {
        // The slots are never closed.
        let slot = self.slots.clone().acquire_owned().await;
        let work = move || {
            let value = work();
            drop(slot);
            value
        };
        run_now(name, self.throttle.clone(), work).await
    }
}

/// Runs `work` on a background thread of its own, without a slot: for what is bounded by other means.
pub(crate) async fn run_now<T: Send + 'static>(
    name: &'static str,
    throttle: Option<Arc<Throttle>>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, BackgroundError> {
    let (done, outcome) = oneshot::channel();
    let runtime = tokio::runtime::Handle::current();
    let started = start(name, throttle, move || {
        let _runtime = runtime.enter();
        // Nobody may wait for it any more.
        let _ = done.send(work());
    });
    started.map_err(|source| BackgroundError::Start { name, source })?;
    outcome.await.map_err(|_| BackgroundError::Panicked { name })
}

/// A thread of low priority for a part of a background job. Unbounded: the caller limits their number.
pub fn spawn_low_priority<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let throttle = PACE.with_borrow(|pace| pace.as_ref().map(|pace| pace.throttle.clone()));
    start(name, throttle, work)
}

fn start<T: Send + 'static>(
    name: &'static str,
    throttle: Option<Arc<Throttle>>,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        lower_priority();
        PACE.set(throttle.map(Pace::begin));
        work()
    })
}

/// Rests as long as the throttle asks for what this thread has worked since its last rest. Blocking; only on
/// background threads, on others it returns at once.
pub fn pause() {
    let Some(mut pace) = PACE.take() else { return };
    if pace.since.elapsed() >= STEP_MIN {
        pace.throttle.rest(pace.worked());
        pace.since = Instant::now();
        pace.queued = pace.queued_so_far();
    }
    PACE.set(Some(pace));
}

/// On Linux priorities are those of threads; elsewhere this would lower the whole broker.
fn lower_priority() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(%error, "a background thread keeps its priority");
    }
}

#[cfg(test)]
mod tests;
