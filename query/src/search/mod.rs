//! One query over the live index and the archived splits, each message once.
//!
//! A search walks these stations: `syntax` (read the query), `view` (one consistent list of splits over both tiers),
//! `prune` (which of them can hold hits, best first), `execute` (search a bounded number at once, stop when the page is
//! certain), `collect` (inside one split), `fetch` (the messages of the page). `rank` and `cursor` say what a page is.
//!
//! Freshness: a message is found within about a second of its ack (`live`). Two pages under one cursor may differ by
//! what was produced or expired in between; no message appears on both. By score the same holds while the splits stay
//! the same: BM25 is relative to a split, and live splits are merged and archived.

mod collect;
mod cursor;
mod error;
mod execute;
mod fetch;
mod live;
mod metrics;
pub(crate) mod rank;
mod syntax;
#[cfg(test)]
mod testing;
mod view;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use moka::future::Cache;
use tantivy::directory::OwnedBytes;
use thermocline_config::SearchConfig;
use thermocline_ingest::clock::Clock;
use thermocline_ingest::log::Partition;
use thermocline_ingest::model::{Offset, Timestamp, TimestampType, TopicName};
use thermocline_ingest::record::{Headers, Record};
use thermocline_ingest::topics::Topic;
use thermocline_tiering::manifest::ObjectRef;
use thermocline_tiering::reader::TieredReader;
use thermocline_tiering::split::{SplitOptions, SplitReader, SplitWriter};
use thermocline_tiering::worker::Tiering;
use tokio::sync::{OnceCell, Semaphore};
use tokio_util::sync::CancellationToken;

pub use cursor::CursorError;
pub use error::{OpenError, SearchError, SearchErrorKind};
pub use fetch::{Hit, PAGE_BYTES_MAX};
pub use rank::Sort;
pub use syntax::{BOOST_MAX, QUERY_LEN_MAX, QUERY_NESTING_MAX};

use crate::prune::{Extent, Planned, Scope, prune};
use execute::Job;
use live::LiveIndex;
use metrics::SearchMetrics;
use syntax::ParsedQuery;
use view::{Source, View};

/// Archived splits kept open; one costs its footer and what the readers of its fields hold.
const COLD_SPLITS_OPEN_MAX: u64 = 256;

/// How often a search starts over because the archive changed under it.
const ATTEMPTS_MAX: usize = 3;

/// What to look for.
#[derive(Clone, Debug)]
pub struct SearchRequest {
    /// See `syntax.rs`; empty matches every message.
    pub query: String,
    /// Empty means every topic that is not internal.
    pub topics: Vec<TopicName>,
    /// Inclusive.
    pub from: Option<Timestamp>,
    /// Exclusive.
    pub to: Option<Timestamp>,
    /// Hits wanted; 0 only counts.
    pub limit: usize,
    pub sort: Sort,
    /// From the answer of the page before.
    pub cursor: Option<String>,
}

/// Whether a total was counted to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TotalRelation {
    Exact,
    /// The page was certain before every split had been searched.
    AtLeast,
}

/// What a search cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct SearchStats {
    /// Splits of the topics, live and archived.
    pub splits_total: usize,
    /// Not opened: by time, by cursor, or because the page was certain without them.
    pub splits_pruned: usize,
    pub splits_searched: usize,
    /// Bytes that came from the store while this search ran, those of searches beside it included.
    pub bytes_fetched: u64,
    /// Messages in the live splits of the topics.
    pub hot_docs: u64,
    /// Archived files without an index: their messages cannot be found.
    #[serde(skip_serializing_if = "is_zero")]
    pub files_unindexed: usize,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// One page.
#[derive(Clone, Debug)]
pub struct SearchResponse {
    pub hits: Vec<Hit>,
    /// Matches in the splits that were searched; on later pages, those of earlier pages only as far as they lie there.
    pub total: u64,
    pub relation: TotalRelation,
    /// For the next page; None at the end.
    pub cursor: Option<String>,
    pub stats: SearchStats,
}

/// A request that was checked.
struct Asked {
    query: ParsedQuery,
    scope: Scope,
    limit: usize,
}

/// The live index and the searcher over both tiers.
pub struct Search {
    config: SearchConfig,
    tiering: Arc<Tiering>,
    reader: Arc<TieredReader>,
    live: LiveIndex,
    metrics: Arc<SearchMetrics>,
    /// Queries that run.
    queries: Semaphore,
    /// Splits being searched, over all queries.
    splits: Arc<Semaphore>,
    cold_splits: Cache<String, SplitReader>,
    /// An empty split for each way of indexing, against which queries are checked before any work.
    templates: [OnceCell<SplitReader>; 4],
}

impl Search {
    /// `scratch` is a folder for live splits, wiped at start. Blocking for as long as that takes.
    pub fn new(
        config: SearchConfig,
        tiering: Arc<Tiering>,
        reader: Arc<TieredReader>,
        scratch: PathBuf,
        clock: Arc<dyn Clock>,
        registry: &prometheus::Registry,
    ) -> Result<Arc<Self>, SearchError> {
        let metrics = Arc::new(SearchMetrics::new(registry)?);
        let live = LiveIndex::open(config.clone(), tiering.clone(), scratch.clone(), clock, metrics.clone())
            .map_err(|source| SearchError::Scratch { path: scratch, source })?;
        Ok(Arc::new(Self {
            queries: Semaphore::new(config.max_concurrent_queries),
            splits: Arc::new(Semaphore::new(config.max_concurrent_splits)),
            cold_splits: Cache::new(COLD_SPLITS_OPEN_MAX),
            templates: std::array::from_fn(|_| OnceCell::new()),
            config,
            tiering,
            reader,
            live,
            metrics,
        }))
    }

    /// Keeps the live index within a second of the acks; ends when `shutdown` is cancelled.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        self.live.run(&shutdown).await;
    }

    /// One page of hits. Refused with [`SearchError::Busy`] past `search.max_concurrent_queries`, given up with
    /// [`SearchError::Timeout`] after `search.timeout`.
    pub async fn search(&self, request: SearchRequest) -> Result<SearchResponse, SearchError> {
        self.metrics.queries.inc();
        let timer = self.metrics.query_seconds.start_timer();
        let result = match self.queries.try_acquire() {
            Err(_) => Err(SearchError::Busy { max: self.config.max_concurrent_queries }),
            Ok(_permit) => {
                let timeout = self.config.timeout;
                let late = |_| Err(SearchError::Timeout { timeout_ms: timeout.as_millis() });
                tokio::time::timeout(timeout.as_duration(), self.answer(request)).await.unwrap_or_else(late)
            }
        };
        timer.observe_duration();
        self.metrics.queries_failed.inc_by(u64::from(result.is_err()));
        result
    }

    /// What can be found of a partition: everything below this offset (exclusive), its unindexed files aside.
    pub fn indexed_through(&self, partition: &Partition) -> Offset {
        let live = self.live.snapshot(partition).map_or(Offset::ZERO, |coverage| coverage.indexed_through);
        live.max(self.tiering.manifest(partition).archived_through())
    }

    async fn answer(&self, request: SearchRequest) -> Result<SearchResponse, SearchError> {
        let SearchRequest { query, topics, from, to, limit, sort, cursor } = request;
        if limit > self.config.limit_max {
            return Err(SearchError::Limit { limit, max: self.config.limit_max });
        }
        let after = cursor.map(|cursor| cursor::decode(sort, &cursor)).transpose()?;
        let topics = self.topics(topics)?;
        let query = ParsedQuery::parse(&query)?;
        self.check(&query, &topics).await?;

        let asked = Asked { query, scope: Scope { from, to, sort, after }, limit };
        let mut attempt = 1;
        loop {
            let view = View::take(&self.live, &self.tiering, &topics);
            match self.answer_from(&view, &asked).await {
                // Splits that were merged into others may be deleted while they are searched, if that takes very long.
                Err(SearchError::Open { .. } | SearchError::Split { .. })
                    if attempt < ATTEMPTS_MAX && view.has_changed(&self.tiering) =>
                {
                    attempt += 1;
                }
                answer => return answer,
            }
        }
    }

    async fn answer_from(&self, view: &View, asked: &Asked) -> Result<SearchResponse, SearchError> {
        let Asked { query, scope, limit } = asked;
        let (limit, sort) = (*limit, scope.sort);
        let fetched_before = self.tiering.blocks().bytes_fetched();
        let mut stats = SearchStats {
            splits_total: view.splits.len(),
            files_unindexed: view.files_unindexed,
            hot_docs: view.splits.iter().map(|(_, source)| source.hot_docs()).sum(),
            ..SearchStats::default()
        };
        let pruned = prune(view.splits.clone(), scope);
        // One key more than the page, to know whether another page follows.
        let k = if limit == 0 { 0 } else { limit + 1 };
        let job = Arc::new(Job { query: query.clone(), scope: scope.clone(), k });
        let open = |split: &Planned<Source>| self.open(&split.extent, &split.source);
        let outcome = execute::run(pruned.planned, job, &self.splits, open).await?;

        let page = outcome.keys.get(..limit.min(outcome.keys.len())).unwrap_or_default();
        let (hits, done) = fetch::fetch(&self.reader, &view.partitions, page, sort).await?;
        let more = done < outcome.keys.len();
        let last = page.get(..done).and_then(<[_]>::last).filter(|_| more);
        stats.splits_searched = outcome.splits_searched;
        stats.splits_pruned = stats.splits_total.saturating_sub(outcome.splits_searched);
        stats.bytes_fetched = self.tiering.blocks().bytes_fetched().saturating_sub(fetched_before);
        let is_exact = outcome.splits_skipped == 0 && pruned.on_earlier_pages == 0;
        Ok(SearchResponse {
            hits,
            total: outcome.matches,
            relation: if is_exact { TotalRelation::Exact } else { TotalRelation::AtLeast },
            cursor: last.map(|key| cursor::encode(sort, key)),
            stats,
        })
    }

    fn topics(&self, mut names: Vec<TopicName>) -> Result<Vec<Arc<Topic>>, SearchError> {
        let catalogue = self.tiering.topics();
        if names.is_empty() {
            return Ok(catalogue.list().into_iter().filter(|topic| !topic.is_internal()).collect());
        }
        names.sort_unstable();
        names.dedup();
        let named = names.into_iter().map(|name| {
            let topic = catalogue.get(name.as_str()).ok_or_else(|| SearchError::UnknownTopic(name.clone()))?;
            if topic.is_internal() { Err(SearchError::InternalTopic(name)) } else { Ok(topic) }
        });
        named.collect()
    }

    /// Builds the query once for each way in which the topics are indexed, so that what is wrong with it is said before
    /// any split is opened, and does not depend on which splits are.
    async fn check(&self, query: &ParsedQuery, topics: &[Arc<Topic>]) -> Result<(), SearchError> {
        let mut checked = [false; 4];
        let everything = SplitOptions { json: true, positions: true };
        let options = topics.iter().map(|topic| live::options(&topic.config()).unwrap_or(everything));
        for options in options.chain(topics.is_empty().then_some(everything)) {
            let index = usize::from(options.json) * 2 + usize::from(options.positions);
            let (Some(template), Some(checked)) = (self.templates.get(index), checked.get_mut(index)) else { continue };
            if !std::mem::replace(checked, true) {
                query.build(template.get_or_try_init(|| template_split(options)).await?)?;
            }
        }
        Ok(())
    }

    /// The future of an opened split; cold ones stay open for further queries.
    fn open(
        &self,
        extent: &Extent,
        source: &Source,
    ) -> impl Future<Output = Result<SplitReader, SearchError>> + Send + use<> {
        let source = source.clone();
        let (topic, partition, base) = (extent.topic.clone(), extent.partition, extent.stored.start);
        let (cache, tiering) = (self.cold_splits.clone(), self.tiering.clone());
        async move {
            match source {
                Source::Live(split) => Ok(split.reader.clone()),
                Source::Cold(object) => {
                    let key = object.key.clone();
                    let opened = cache.try_get_with(key, open_cold(tiering, object)).await;
                    opened.map_err(|source| SearchError::Open { topic, partition, base, source })
                }
            }
        }
    }
}

impl Source {
    fn hot_docs(&self) -> u64 {
        match self {
            Self::Live(split) => split.docs,
            Self::Cold(_) => 0,
        }
    }
}

async fn open_cold(tiering: Arc<Tiering>, object: ObjectRef) -> Result<SplitReader, OpenError> {
    let open = move || SplitReader::open(tiering.blocks().file_handle(&object));
    Ok(tokio::task::spawn_blocking(open).await??)
}

/// A split of one message without content: the schema and the analysers of its kind.
async fn template_split(options: SplitOptions) -> Result<SplitReader, SearchError> {
    let build = move || {
        let mut writer = SplitWriter::new(options)?;
        writer.add(&Record {
            offset: Offset::ZERO,
            timestamp: Timestamp::default(),
            timestamp_type: TimestampType::CreateTime,
            key: None,
            value: None,
            headers: Headers::default(),
        })?;
        SplitReader::open(Arc::new(OwnedBytes::new(writer.finish()?.to_vec())))
    };
    let built = tokio::task::spawn_blocking(build).await.map_err(|source| SearchError::Aborted { source })?;
    built.map_err(SearchError::Schema)
}
