//! Running one query over the planned splits: in order, a bounded number at once, stopping when the page is certain.

use std::future::Future;
use std::sync::Arc;

use tantivy::query::Query;
use thermocline_tiering::split::SplitReader;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::SearchError;
use super::collect::{SplitHits, search_split};
use super::rank::{SortKey, TopK};
use super::syntax::ParsedQuery;
use crate::prune::{Extent, Planned, Scope};

/// What every split is asked.
pub(crate) struct Job {
    pub query: ParsedQuery,
    pub scope: Scope,
    /// Keys wanted; 0 counts without looking for any, and then every split is searched.
    pub k: usize,
}

/// What the searched splits answered together.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Page order; at most `k`.
    pub keys: Vec<SortKey>,
    /// Matches in the splits that were searched.
    pub matches: u64,
    pub splits_searched: usize,
    /// Planned splits that were not needed.
    pub splits_skipped: usize,
}

/// Searches `planned`, which [`crate::prune::prune`] has ordered. `permits` bounds the splits searched at once over
/// all queries: one is awaited where this query has nothing running, further ones are taken only while they are free,
/// so that no query starves another. `open` turns a planned split into an opened split. Dropping the future abandons splits
/// that have not started; one under way finishes on its thread and then gives its permit back.
pub(crate) async fn run<S, F>(
    planned: Vec<Planned<S>>,
    job: Arc<Job>,
    permits: &Arc<Semaphore>,
    open: impl Fn(&Planned<S>) -> F,
) -> Result<Outcome, SearchError>
where
    F: Future<Output = Result<SplitReader, SearchError>> + Send + 'static,
{
    let mut outcome = Outcome::default();
    let mut top = TopK::new(job.k);
    let mut running = JoinSet::new();
    let mut planned = planned.into_iter().peekable();
    while planned.peek().is_some_and(|split| !is_certain(&top, split)) {
        while let Some(answer) = running.try_join_next() {
            merge(&mut outcome, &mut top, answer)?;
        }
        let permit = if running.is_empty() {
            permits.clone().acquire_owned().await.map_err(|_| SearchError::Stopped)?
        } else if let Ok(permit) = permits.clone().try_acquire_owned() {
            permit
        } else {
            if let Some(answer) = running.join_next().await {
                merge(&mut outcome, &mut top, answer)?;
            }
            continue;
        };
        if let Some(split) = planned.next_if(|split| !is_certain(&top, split)) {
            running.spawn(search_one(open(&split), split.extent, job.clone(), permit));
        }
    }
    while let Some(answer) = running.join_next().await {
        merge(&mut outcome, &mut top, answer)?;
    }
    outcome.splits_skipped = planned.count();
    outcome.keys = top.into_sorted();
    Ok(outcome)
}

/// Whether neither `split` nor any behind it can change the page.
fn is_certain<S>(top: &TopK<SortKey>, split: &Planned<S>) -> bool {
    split.best.as_ref().is_some_and(|best| top.is_certain_before(best))
}

type Answer = Result<(Extent, SplitHits), SearchError>;

fn merge(
    outcome: &mut Outcome,
    top: &mut TopK<SortKey>,
    answer: Result<Answer, tokio::task::JoinError>,
) -> Result<(), SearchError> {
    let (extent, hits) = answer.map_err(|source| SearchError::Aborted { source })??;
    outcome.matches += hits.matches;
    outcome.splits_searched += 1;
    for (rank, offset) in hits.first {
        top.offer(SortKey { rank, topic: extent.topic.clone(), partition: extent.partition, offset });
    }
    Ok(())
}

async fn search_one(
    open: impl Future<Output = Result<SplitReader, SearchError>>,
    extent: Extent,
    job: Arc<Job>,
    permit: OwnedSemaphorePermit,
) -> Answer {
    let split = open.await?;
    let search = move || {
        let _permit = permit;
        let query: Box<dyn Query> = job.query.build(&split)?;
        let hits = search_split(&split, query, &extent, &job.scope, job.k).map_err(|source| SearchError::Split {
            topic: extent.topic.clone(),
            partition: extent.partition,
            base: extent.stored.start,
            source: Box::new(source),
        })?;
        Ok((extent, hits))
    };
    tokio::task::spawn_blocking(search).await.map_err(|source| SearchError::Aborted { source })?
}

#[cfg(test)]
mod tests;
