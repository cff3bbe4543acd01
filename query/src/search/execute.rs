//! Running one query over the planned splits: best first, a bounded number at once, stopping when the page is certain.
//!
//! Splits go through a queue. What is in memory already goes in at once; a split that has to be opened, or whose search
//! lacked bytes, goes in when they were fetched. Lanes, which are blocking threads, take from the queue until it is
//! empty: many small splits cost one thread one start. A lane never waits for the store.
//!
//! Bounds: lanes by `search.max_concurrent_splits` over all queries; bytes held for searches by
//! `search.memory_max`, over all queries; splits of one query that are being opened or fetched by
//! [`FETCHED_AT_ONCE_MAX`], and where the page may be certain after the first of them, by twice as many as have been
//! searched.
//!
//! Dropping the future abandons what has not started; a split that is being searched finishes on its thread.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use tantivy::TantivyError;
use thermocline_tiering::split::{Held, SplitReader};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;

use super::aggregate::refused;
use super::ast::SearchQuery;
use super::collect::{Beside, SplitHits, ask_for_all, search_split};
use super::rank::{Sort, SortKey, TopK};
use super::terms::TooManyTerms;
use super::{OpenError, SearchError};
use crate::prune::{Extent, Planned, Scope};

/// Splits of one query that are opened or fetched at once.
const FETCHED_AT_ONCE_MAX: usize = 16;
/// As many to begin with where the page may be certain after the first.
const FETCHED_AT_FIRST: usize = 2;
/// Splits of one query that wait for a lane or are with one.
const QUEUED_MAX: usize = 64;
/// Rounds of fetching for one split. Two or three are usual; every one adds what the last search of it lacked.
const ROUNDS_MAX: usize = 64;
/// What one permit of [`Resources::memory`] stands for.
const PERMIT_BYTES: u64 = 1 << 10;

/// What every split is asked.
pub(crate) struct Job {
    pub query: SearchQuery,
    pub scope: Scope,
    /// Keys wanted; 0 counts without looking for any, and then every split is searched.
    pub k: usize,
    /// Go on until so many matches were counted, though the page may be certain before; `u64::MAX` searches every
    /// split.
    pub count_at_least: u64,
    /// Computed beside the hits; wants every split.
    pub beside: Option<Arc<dyn Beside>>,
}

/// What all queries share.
#[derive(Clone)]
pub(crate) struct Resources {
    lanes: Arc<Semaphore>,
    /// For bytes that searches hold.
    memory: Arc<Semaphore>,
    memory_max: u64,
}

/// A split that can be searched now, or after some work.
pub(crate) enum Opening<F> {
    Open(Box<SplitReader>),
    Later(F),
}

/// What the searched splits answered together.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Page order; at most `k`.
    pub keys: Vec<SortKey>,
    /// Matches in the splits that were searched.
    pub matches: u64,
    pub splits_searched: usize,
    /// Whether every planned split was.
    pub is_complete: bool,
}

impl Resources {
    pub fn new(lanes: usize, memory_max: u64) -> Self {
        let permits = (memory_max / PERMIT_BYTES).min(u64::from(u32::MAX)).max(1);
        let memory = Arc::new(Semaphore::new(permits as usize));
        Self { lanes: Arc::new(Semaphore::new(lanes)), memory, memory_max: permits * PERMIT_BYTES }
    }
}

/// A split on its way.
struct Task {
    extent: Extent,
    best: Option<SortKey>,
    split: SplitReader,
    held: Held,
    /// For what is held.
    memory: Option<OwnedSemaphorePermit>,
    rounds: usize,
}

/// What lanes tell the query.
enum Event {
    Searched,
    Skipped,
    Lacks(Box<Task>),
    Failed(SearchError),
}

struct Shared {
    job: Arc<Job>,
    lanes: Arc<Semaphore>,
    state: Mutex<State>,
    events: UnboundedSender<Event>,
}

struct State {
    queue: VecDeque<Box<Task>>,
    /// Lanes that run, or wait for their permit.
    lanes: usize,
    top: TopK<SortKey>,
    matches: u64,
    searched: usize,
}

/// Empties the queue when the query is over, however it ends.
struct Query(Arc<Shared>);

impl Drop for Query {
    fn drop(&mut self) {
        let abandoned = std::mem::take(&mut self.0.state.lock().queue);
        drop(abandoned);
    }
}

/// Searches `planned`, best first ([`crate::prune`]). `open` turns a planned split into an opened split.
pub(crate) async fn run<S, F>(
    planned: impl Iterator<Item = Planned<S>>,
    job: Arc<Job>,
    resources: &Resources,
    open: impl Fn(&Planned<S>) -> Opening<F>,
) -> Result<Outcome, SearchError>
where
    F: Future<Output = Result<SplitReader, SearchError>> + Send + 'static,
{
    let (events, mut inbox) = unbounded_channel();
    let state = State { queue: VecDeque::new(), lanes: 0, top: TopK::new(job.k), matches: 0, searched: 0 };
    let may_stop = job.may_stop();
    let query = Query(Arc::new(Shared { job, lanes: resources.lanes.clone(), state: Mutex::new(state), events }));
    let shared = &query.0;
    let mut planned = planned.peekable();
    let mut fetching = FuturesUnordered::<BoxFuture<'static, Result<Box<Task>, SearchError>>>::new();
    let mut at_once = if may_stop { FETCHED_AT_FIRST } else { FETCHED_AT_ONCE_MAX };
    let (mut under_way, mut is_complete) = (0_usize, true);
    loop {
        while fetching.len() < at_once && under_way < QUEUED_MAX {
            let Some(split) = planned.next_if(|split| !shared.is_certain(split.best.as_ref())) else { break };
            under_way += 1;
            let (extent, best) = (split.extent.clone(), split.best.clone());
            match open(&split) {
                Opening::Open(split) => shared.state.lock().queue.push_back(Task::new(extent, best, *split)),
                Opening::Later(open) => {
                    fetching.push(Box::pin(async move { Ok(Task::new(extent, best, open.await?)) }));
                }
            }
        }
        shared.start_lanes();
        if under_way == 0 {
            break;
        }
        let event = tokio::select! {
            Some(task) = fetching.next(), if !fetching.is_empty() => {
                shared.state.lock().queue.push_front(task?);
                continue;
            }
            Some(event) = inbox.recv() => event,
        };
        let mut next = Some(event);
        while let Some(event) = next {
            match event {
                Event::Lacks(task) => fetching.push(Box::pin(fetch(task, resources.clone()))),
                Event::Failed(error) => return Err(error),
                Event::Searched => {
                    under_way -= 1;
                    at_once = (at_once * 2).min(FETCHED_AT_ONCE_MAX);
                }
                Event::Skipped => {
                    under_way -= 1;
                    is_complete = false;
                }
            }
            next = inbox.try_recv().ok();
        }
    }
    is_complete &= planned.next().is_none();
    let mut state = shared.state.lock();
    let keys = std::mem::replace(&mut state.top, TopK::new(0)).into_sorted();
    Ok(Outcome { keys, matches: state.matches, splits_searched: state.searched, is_complete })
}

impl Job {
    /// Whether the page may be certain before every split was searched.
    fn may_stop(&self) -> bool {
        self.k > 0 && self.count_at_least < u64::MAX && self.scope.sort != Sort::Score
    }
}

impl Task {
    fn new(extent: Extent, best: Option<SortKey>, split: SplitReader) -> Box<Self> {
        Box::new(Self { extent, best, split, held: Held::default(), memory: None, rounds: 0 })
    }

    /// Searches the split; None where bytes were lacking.
    fn search(&mut self, job: &Job) -> Result<Option<SplitHits>, SearchError> {
        let query = job.query.in_partition(self.extent.partition)?.build(&self.split, Some(&self.extent.topic))?;
        let Self { split, held, extent, .. } = self;
        let hits = split.search(held, || search_split(split, query.as_ref(), extent, job));
        if held.lacks_bytes() {
            split.search(held, || {
                ask_for_all(split, query.as_ref(), job.scope.sort);
                let beside = job.beside.as_ref().map(|beside| beside.queries(split, extent));
                // Where they cannot be built, the search itself says so once it has all bytes.
                for query in beside.and_then(Result::ok).iter().flatten() {
                    ask_for_all(split, query.as_ref(), Sort::NewestFirst);
                }
            });
            return Ok(None);
        }
        hits.map(Some).map_err(|source| match source {
            TantivyError::AggregationError(_) | TantivyError::InvalidArgument(_) if job.beside.is_some() => {
                refused(source)
            }
            source => failed(extent, source),
        })
    }
}

/// What a failed search of a split means.
fn failed(extent: &Extent, source: TantivyError) -> SearchError {
    let (topic, partition, base) = (extent.topic.clone(), extent.partition, extent.stored.start);
    if let TantivyError::IoError(error) = &source
        && let Some(TooManyTerms { max }) = error.get_ref().and_then(|error| error.downcast_ref())
    {
        return SearchError::Terms { topic, partition, base, max: *max };
    }
    SearchError::Split { topic, partition, base, source: Box::new(source) }
}

/// What `read` makes of one split; it is run again whenever it lacked bytes.
pub(crate) async fn read_split<T: Send + 'static>(
    extent: &Extent,
    split: SplitReader,
    resources: &Resources,
    read: fn(&SplitReader) -> tantivy::Result<T>,
) -> Result<T, SearchError> {
    let mut task = Task::new(extent.clone(), None, split);
    loop {
        let lane = resources.lanes.clone().acquire_owned().await.map_err(|_| SearchError::Stopped)?;
        let step = move || {
            let _lane = lane;
            let Task { split, held, .. } = &mut *task;
            let found = split.search(held, || read(split));
            (task, found)
        };
        let (read_from, found) = spawn_blocking(step).await.map_err(|_| SearchError::Panicked)?;
        if !read_from.held.lacks_bytes() {
            return found.map_err(|source| failed(extent, source));
        }
        task = fetch(read_from, resources.clone()).await?;
    }
}

/// Fetches what the last search of the split lacked.
async fn fetch(mut task: Box<Task>, resources: Resources) -> Result<Box<Task>, SearchError> {
    let permits = |bytes: u64| u32::try_from(bytes.div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX);
    task.rounds += 1;
    match resources.memory.clone().try_acquire_many_owned(permits(task.held.missing_bytes())) {
        Ok(more) => match &mut task.memory {
            Some(memory) => memory.merge(more),
            none => *none = Some(more),
        },
        Err(_) => {
            // Whoever waits for memory holds none, or two could wait for each other.
            task.held.release();
            task.memory = None;
            let needed = task.held.missing_bytes();
            if needed > resources.memory_max {
                return Err(SearchError::Memory { needed, max: resources.memory_max });
            }
            let all = resources.memory.acquire_many_owned(permits(needed)).await;
            task.memory = Some(all.map_err(|_| SearchError::Stopped)?);
        }
    }
    let Task { split, held, extent, rounds, .. } = &mut *task;
    let fetched = match *rounds {
        ..=ROUNDS_MAX => split.fetch(held).await.map_err(OpenError::Split),
        _ => Err(OpenError::Rounds { max: ROUNDS_MAX }),
    };
    let (topic, partition, base) = (extent.topic.clone(), extent.partition, extent.stored.start);
    fetched.map_err(|source| SearchError::Open { topic, partition, base, source: Arc::new(source) })?;
    Ok(task)
}

impl Shared {
    /// Whether neither a split with this best key nor any behind it can change the page, and enough was counted.
    fn is_certain(&self, best: Option<&SortKey>) -> bool {
        let Some(best) = best.filter(|_| self.job.may_stop()) else { return false };
        let state = self.state.lock();
        state.matches >= self.job.count_at_least && state.top.is_certain_before(best)
    }

    /// As many lanes as there are splits for, while permits are free; at least one, though it has to wait for its
    /// permit, so that no query starves another.
    fn start_lanes(self: &Arc<Self>) {
        let mut state = self.state.lock();
        while state.lanes < state.queue.len() {
            let shared = self.clone();
            if let Ok(permit) = self.lanes.clone().try_acquire_owned() {
                spawn_blocking(move || shared.run_lane(permit));
            } else if state.lanes == 0 {
                tokio::spawn(shared.wait_for_lane());
            } else {
                return;
            }
            state.lanes += 1;
        }
    }

    async fn wait_for_lane(self: Arc<Self>) {
        match self.lanes.clone().acquire_owned().await {
            Ok(permit) => drop(spawn_blocking(move || self.run_lane(permit))),
            Err(_) => drop(self.events.send(Event::Failed(SearchError::Stopped))),
        }
    }

    /// Searches splits of the queue until there is none.
    fn run_lane(self: Arc<Self>, permit: OwnedSemaphorePermit) {
        let mut permit = Some(permit);
        while let Some(mut task) = self.next_task(permit.is_some()) {
            let event = if self.is_certain(task.best.as_ref()) {
                Event::Skipped
            } else {
                match catch_unwind(AssertUnwindSafe(|| task.search(&self.job))) {
                    Ok(Ok(Some(hits))) => {
                        self.add(&task.extent, hits);
                        Event::Searched
                    }
                    Ok(Ok(None)) => Event::Lacks(task),
                    Ok(Err(error)) => Event::Failed(error),
                    Err(_) => Event::Failed(SearchError::Panicked),
                }
            };
            // Gone with the query, if the query is.
            let _ = self.events.send(event);
            // Queries that wait for a permit come first.
            drop(permit.take());
            permit = self.lanes.clone().try_acquire_owned().ok();
        }
    }

    /// None where this lane has to end: there is nothing to do, or it has no permit and others go on.
    fn next_task(self: &Arc<Self>, has_permit: bool) -> Option<Box<Task>> {
        let mut state = self.state.lock();
        let task = if has_permit { state.queue.pop_front() } else { None };
        if task.is_none() {
            state.lanes -= 1;
            if state.lanes == 0 && !state.queue.is_empty() {
                state.lanes = 1;
                let shared = self.clone();
                drop(state);
                Handle::current().spawn(shared.wait_for_lane());
            }
        }
        task
    }

    fn add(&self, extent: &Extent, hits: SplitHits) {
        let mut state = self.state.lock();
        state.matches += hits.matches;
        state.searched += 1;
        for (rank, offset) in hits.first {
            state.top.offer(SortKey { rank, topic: extent.topic.clone(), partition: extent.partition, offset });
        }
    }
}

#[cfg(test)]
mod tests;
