//! Threads for work that nobody waits for: staging, verification, writes to a local store.
//!
//! Such work takes a core for seconds and must not take it from a producer. So it does not run on the runtime's
//! threads, but on threads of its own:
//!
//! - **Priority.** They run at nice [`NICE`]: a thread of the broker that wakes up takes the core from them at once,
//!   and in competition for a saturated core they get about a tenth of it, not nothing, for the archive must go on.
//!   Linux takes their I/O priority from that too, where its scheduler knows any. A thread cannot be raised again
//!   without privileges, hence no pool that others share.
//! - **Cores.** Beside producers they keep to half of the cores ([`cores`]), for priority alone does not do: Linux lets
//!   a thread that runs go on for the rest of its slice, milliseconds, before one that wakes up gets the core. It is
//!   the half that takes the fewest interrupts.
//! - **Number.** [`Background::run`] starts one thread per job, at most as many at once as there are slots; jobs that
//!   wait for a slot come in order. A job takes seconds, its thread microseconds.
//! - **Pauses.** Code that runs for long calls [`pause`] between its steps, and rests when the throttle says so. On any
//!   other thread that does nothing, so the same code can serve somebody who waits. A thread that is started from
//!   such a thread rests by the same throttle. Whoever waits for another thread says so ([`waiting`]): while all rest
//!   or wait, producers are alone, and the throttle learns from it.
//!
//! A job whose caller goes away is finished all the same, and keeps its slot until then. No lock that live traffic
//! takes may be held over a pause. The runtime does not know these threads: a test that pauses its clock would see time
//! jump while one works.

mod cores;
#[cfg(target_os = "linux")]
mod interrupts;

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use thermocline_ingest::latency::Working;
use tokio::sync::{Semaphore, oneshot};

use self::cores::Cores;
use crate::throttle::Throttle;

/// Priority of background threads, 0 being that of the broker and 19 the lowest.
const NICE: i32 = 10;

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

/// The throttle that a thread lives by, that it works just now, and where.
struct Pace {
    throttle: Arc<Throttle>,
    working: Working,
    cores: Cores,
}

impl Pace {
    fn begin(throttle: Arc<Throttle>) -> Self {
        let working = throttle.work();
        let mut pace = Self { throttle, working, cores: Cores::default() };
        pace.keep_to_cores();
        pace
    }

    fn keep_to_cores(&mut self) {
        self.cores.share(self.throttle.is_beside_producers());
    }
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

/// Rests if it is time to rest. Blocking; only on background threads, on others it returns at once.
pub fn pause() {
    let Some(Pace { throttle, working, cores }) = PACE.take() else { return };
    let working = throttle.rest(working);
    let mut pace = Pace { throttle, working, cores };
    pace.keep_to_cores();
    PACE.set(Some(pace));
}

/// Whether the calling thread is a background thread that has producers beside it. They queue for the disk behind what
/// such a thread gave it last, so it should be little.
pub fn is_beside_producers() -> bool {
    PACE.with_borrow(|pace| pace.as_ref().is_some_and(|pace| pace.throttle.is_beside_producers()))
}

/// Runs what waits for another thread and does no work itself.
pub fn waiting<T>(wait: impl FnOnce() -> T) -> T {
    let Some(Pace { throttle, working, cores }) = PACE.take() else { return wait() };
    drop(working);
    let value = wait();
    let working = throttle.work();
    PACE.set(Some(Pace { throttle, working, cores }));
    value
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
