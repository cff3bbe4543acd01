//! One query over the live index and the archived splits, each message once.
//!
//! A search walks these stations: `syntax` (read the query into the tree of `ast`), `view` (one consistent list of
//! splits over both tiers), `prune` (which of them can hold hits, best first), `execute` (search a bounded number at
//! once, stop when the page is certain), `builder`, `leaves`, `terms` and `wrapped` (the query of one split), `collect`
//! (inside it), `fetch` (the messages of the page). `rank` and `cursor` say what a page is.
//!
//! Freshness: a message is found within about a second of its ack (`live`). Two pages under one cursor may differ by
//! what was produced or expired in between; no message appears on both. By score the same holds while the splits stay
//! the same: BM25 is relative to a split, and live splits are merged and archived.

pub(crate) mod aggregate;
pub(crate) mod ast;
mod builder;
mod collect;
mod context;
mod cursor;
mod error;
mod execute;
mod fetch;
pub(crate) mod fields;
mod follow;
mod highlight;
mod leaves;
mod live;
pub(crate) mod matches;
mod metrics;
pub(crate) mod pattern;
pub(crate) mod rank;
mod syntax;
mod terms;
#[cfg(test)]
mod testing;
mod view;
mod wrapped;

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use moka::future::Cache;
use tantivy::directory::OwnedBytes;
use thermocline_config::SearchConfig;
use thermocline_ingest::clock::Clock;
use thermocline_ingest::log::Partition;
use thermocline_ingest::model::{Offset, PartitionId, Timestamp, TimestampType, TopicId, TopicName};
use thermocline_ingest::record::{Headers, Record};
use thermocline_ingest::topics::Topic;
use thermocline_tiering::cache::ReadCounts;
use thermocline_tiering::reader::TieredReader;
use thermocline_tiering::split::{
    Analyser, Prepared, PreparedSplits, SplitError, SplitOptions, SplitReader, SplitWriter,
};
use thermocline_tiering::worker::Tiering;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use aggregate::AggregationsAnswer;
pub use context::{CONTEXT_MESSAGES_MAX, Context, Neighbour, Passage};
pub use cursor::CursorError;
pub(crate) use cursor::decode as place_of_cursor;
pub use error::{OpenError, SearchError, SearchErrorKind, column_in};
pub use fetch::{Hit, PAGE_BYTES_MAX};
pub use follow::{FOLLOWED_PARTITIONS_MAX, FOLLOWERS_MAX, Follow, FollowBatch, FollowRequest};
pub use highlight::{FRAGMENT_LEN_MAX, FRAGMENTS_MAX, HIGHLIGHT_TAG_LEN_MAX, HighlightOptions, Highlights};
pub use matches::{CheckedQuery, Unindexed};
pub use rank::Sort;
pub use syntax::{BOOST_MAX, QUERY_CLAUSES_MAX, QUERY_LEN_MAX, QUERY_NESTING_MAX, SLOP_MAX};

use crate::prune::{Extent, Plan, Planned, Scope};
use aggregate::{Aggregation, AggregationPlan, AggregationRun};
use ast::{QueryNode, SearchQuery};
use execute::{Job, Opening, Resources};
use fetch::Fetched;
use highlight::Highlighter;
use live::LiveIndex;
use metrics::SearchMetrics;
use rank::SortKey;
use view::{Source, View};

/// Ways of indexing whose empty split is kept.
const TEMPLATES_MAX: u64 = 64;

/// How often a search starts over because the archive changed under it.
const ATTEMPTS_MAX: usize = 3;

/// What to look for.
#[derive(Clone, Debug, Default)]
pub struct SearchRequest {
    /// See `syntax.rs`; empty matches every message.
    pub query: String,
    /// What `now` means in it.
    pub now: Timestamp,
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
    /// Neighbours of each hit that are wanted, too.
    pub context: Context,
    pub total: TotalWanted,
    /// Mark the matches in the hits' texts.
    pub highlight: Option<HighlightOptions>,
    pub aggregations: RequestedAggregations,
}

/// Aggregations that were read from a request.
#[derive(Clone, Debug, Default)]
pub struct RequestedAggregations(pub(crate) Vec<Aggregation>);

impl RequestedAggregations {
    /// Reads `aggs` in Elasticsearch's form. `now` is that of its dates, `buckets_max` the limit of buckets in an
    /// answer.
    pub fn parse(aggs: serde_json::Value, now: Timestamp, buckets_max: u32) -> Result<Self, SearchError> {
        let parsed = crate::elastic::parse_aggregations(aggs, now, buckets_max);
        parsed.map(Self).map_err(|error| SearchError::Aggregation { message: error.reason })
    }
}

/// What to look for, where the query is a tree already.
#[derive(Clone, Debug)]
pub(crate) struct TreeRequest {
    pub query: SearchQuery,
    /// None means every topic that is not internal.
    pub topics: Option<Vec<TopicName>>,
    /// Inclusive.
    pub from: Option<Timestamp>,
    /// Exclusive.
    pub to: Option<Timestamp>,
    /// Hits that are left out at the beginning; counted in `limit`.
    pub skip: usize,
    pub limit: usize,
    pub sort: Sort,
    /// Only hits behind this place.
    pub after: Option<SortKey>,
    pub total: TotalWanted,
    pub highlight: Option<HighlightOptions>,
    pub aggregations: Vec<Aggregation>,
    /// Neighbours of each hit that are wanted, too.
    pub context: Context,
}

/// How far matches are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TotalWanted {
    /// All of them: every split is searched.
    Exact,
    /// So many, if there are. Beyond that, what was found on the way to a certain page.
    AtLeast(u64),
    /// The total is not looked at.
    Nothing,
}

impl Default for TotalWanted {
    fn default() -> Self {
        Self::AtLeast(0)
    }
}

/// Whether a total was counted to the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TotalRelation {
    #[default]
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
    /// Bytes that this search downloaded from the store, for the index and for the messages of the page. What it found
    /// on its way for another reader is counted there.
    pub bytes_fetched: u64,
    /// Messages in the live splits of the topics.
    pub hot_docs: u64,
    /// Messages of hits that were read by their Parquet pages.
    #[serde(skip_serializing_if = "is_zero")]
    pub rows_fetched: u64,
    /// Row groups that were read whole, as so many of their messages are hits.
    #[serde(skip_serializing_if = "is_zero")]
    pub row_groups_scanned: u64,
    /// Requests in which `bytes_fetched` came.
    pub requests: u64,
    /// Archived files without an index: their messages cannot be found.
    #[serde(skip_serializing_if = "is_zero")]
    pub files_unindexed: usize,
    /// Committed offsets that the live index had yet to reach: what is there cannot be found so far.
    #[serde(skip_serializing_if = "is_zero")]
    pub offsets_unindexed: u64,
}

fn is_zero<T: Default + PartialEq>(count: &T) -> bool {
    *count == T::default()
}

/// One page.
#[derive(Clone, Debug, Default)]
pub struct SearchResponse {
    pub hits: Vec<Hit>,
    /// Matches in the splits that were searched; on later pages, those of earlier pages only as far as they lie there.
    pub total: u64,
    pub relation: TotalRelation,
    /// For the next page; None at the end.
    pub cursor: Option<String>,
    /// The hits with their neighbours, where those were asked for.
    pub context: Vec<Passage>,
    pub stats: SearchStats,
    /// Where they were asked for. They are over all matches, whatever the page.
    pub aggregations: Option<AggregationsAnswer>,
}

/// A request that was checked.
struct Asked {
    query: SearchQuery,
    scope: Scope,
    skip: usize,
    limit: usize,
    total: TotalWanted,
    aggregations: Option<AggregationPlan>,
    context: Context,
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
    resources: Resources,
    followers: Arc<Semaphore>,
    /// An empty split for each way of indexing, against which queries are checked before any work.
    templates: Cache<SplitOptions, SplitReader>,
}

impl PreparedSplits for Search {
    fn prepared(&self, topic: TopicId, partition: PartitionId, from: Offset, options: SplitOptions) -> Prepared {
        self.live.prepared(topic, partition, from, options)
    }
}

impl Search {
    /// `scratch` is a folder for live splits, wiped at start. Blocking for as long as that takes. From then on
    /// `tiering` takes over what is indexed here.
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
        let search = Arc::new(Self {
            queries: Semaphore::new(config.max_concurrent_queries),
            resources: Resources::new(config.max_concurrent_splits, config.memory_max.as_u64()),
            followers: Arc::new(Semaphore::new(FOLLOWERS_MAX)),
            templates: Cache::new(TEMPLATES_MAX),
            config,
            tiering,
            reader,
            live,
            metrics,
        });
        let splits: Arc<dyn PreparedSplits> = search.clone();
        search.tiering.take_splits_from(Arc::downgrade(&splits));
        Ok(search)
    }

    /// Keeps the live index within a second of the acks; ends when `shutdown` is cancelled.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        self.live.run(&shutdown).await;
    }

    /// One page of hits. Refused with [`SearchError::Busy`] past `search.max_concurrent_queries`, given up with
    /// [`SearchError::Timeout`] after `search.timeout`.
    pub async fn search(&self, request: SearchRequest) -> Result<SearchResponse, SearchError> {
        let SearchRequest { query, now, topics, from, to, limit, sort, cursor, .. } = request;
        let SearchRequest { total, highlight, aggregations, context, .. } = request;
        let read = || {
            Ok::<_, SearchError>(TreeRequest {
                query: SearchQuery::parse(&query, now)?,
                topics: (!topics.is_empty()).then_some(topics),
                from,
                to,
                skip: 0,
                limit,
                sort,
                after: cursor.map(|cursor| cursor::decode(sort, &cursor)).transpose()?,
                total,
                highlight,
                aggregations: aggregations.0,
                context,
            })
        };
        self.limited(async { self.answer(read()?).await }).await
    }

    /// The same for a query that is a tree.
    pub(crate) async fn search_tree(&self, request: TreeRequest) -> Result<SearchResponse, SearchError> {
        self.limited(self.answer(request)).await
    }

    /// Most buckets of one answer.
    pub(crate) fn buckets_max(&self) -> u32 {
        self.config.aggregation_buckets_max
    }

    async fn limited(
        &self,
        answer: impl Future<Output = Result<SearchResponse, SearchError>>,
    ) -> Result<SearchResponse, SearchError> {
        self.metrics.queries.inc();
        let timer = self.metrics.query_seconds.start_timer();
        let result = match self.queries.try_acquire() {
            Err(_) => Err(SearchError::Busy { max: self.config.max_concurrent_queries }),
            Ok(_permit) => {
                let timeout = self.config.timeout;
                let late = |_| Err(SearchError::Timeout { timeout_ms: timeout.as_millis() });
                tokio::time::timeout(timeout.as_duration(), answer).await.unwrap_or_else(late)
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

    async fn answer(&self, request: TreeRequest) -> Result<SearchResponse, SearchError> {
        let TreeRequest { query, topics, from, to, skip, limit, sort, after, total, highlight, .. } = request;
        let TreeRequest { aggregations, context, .. } = request;
        if limit > self.config.limit_max {
            return Err(SearchError::Limit { limit, max: self.config.limit_max });
        }
        context.check(limit)?;
        let mut topics = self.topics(topics)?;
        topics.retain(|topic| query.may_match(&topic.name));
        self.check(&query, &topics).await?;
        let aggregations = match aggregations.is_empty() {
            true => None,
            false => Some(AggregationPlan::new(aggregations, query.now, &self.config)?),
        };
        if let Some(plan) = &aggregations {
            for query in plan.queries() {
                self.check(&query, &topics).await?;
            }
        }

        let (from, to) = query.times().within(from, to);
        let scope = Scope { from, to, sort, after };
        let asked = Asked { query, scope, skip, limit, total, aggregations, context };
        let mut attempt = 1;
        let mut response = loop {
            let view = View::take(&self.live, &self.tiering, &topics);
            match self.answer_from(&view, &asked).await {
                // Splits that were merged into others may be deleted while they are searched, if that takes very long.
                Err(SearchError::Open { .. } | SearchError::Split { .. })
                    if attempt < ATTEMPTS_MAX && view.has_changed(&self.tiering) =>
                {
                    attempt += 1;
                }
                answer => break answer?,
            }
        };
        if let Some(options) = highlight {
            self.highlight(asked.query.root, options, &topics, &mut response.hits).await?;
        }
        Ok(response)
    }

    async fn answer_from(&self, view: &View, asked: &Asked) -> Result<SearchResponse, SearchError> {
        let Asked { query, scope, skip, limit, total, aggregations, context } = asked;
        let (limit, sort) = (*limit, scope.sort);
        let counts = Arc::new(ReadCounts::default());
        let mut stats = SearchStats {
            splits_total: view.splits(),
            files_unindexed: view.files_unindexed(),
            offsets_unindexed: view.offsets_unindexed(),
            hot_docs: view.hot_docs(),
            ..SearchStats::default()
        };
        let aggregations = aggregations.clone().map(|plan| Arc::new(AggregationRun::new(plan)));
        let count_at_least = match total {
            _ if aggregations.is_some() => u64::MAX,
            TotalWanted::Exact => u64::MAX,
            TotalWanted::AtLeast(count) => *count,
            TotalWanted::Nothing => 0,
        };
        // What lies on earlier pages is left out of the hits, but not out of what is counted.
        let after = scope.after.clone().filter(|_| count_at_least < u64::MAX);
        let planned_scope = Scope { after, ..scope.clone() };
        let mut plan = Plan::new(view.nodes(), &planned_scope);
        // One key more than the page, to know whether another page follows.
        let k = if limit == *skip { 0 } else { limit + 1 };
        let beside = aggregations.clone().map(|run| run as Arc<dyn collect::Beside>);
        let job = Arc::new(Job { query: query.clone(), scope: scope.clone(), k, count_at_least, beside });
        let open = |split: &Planned<Source>| self.open(&split.extent, &split.source);
        let outcome = counts.count(execute::run(&mut plan, job, &self.resources, open)).await?;

        let page = outcome.keys.get(..limit.min(outcome.keys.len())).unwrap_or_default();
        let page = page.get(*skip..).unwrap_or_default();
        let read = async {
            let fetched = fetch::fetch(&self.reader, &view.partitions, page, sort).await?;
            let passages = context::passages(&self.reader, view, &fetched.hits, *context).await?;
            Ok::<_, SearchError>((fetched, passages))
        };
        let (Fetched { hits, done, rows_fetched, row_groups_scanned }, passages) = counts.count(read).await?;
        (stats.rows_fetched, stats.row_groups_scanned) = (rows_fetched, row_groups_scanned);
        let more = skip + done < outcome.keys.len();
        let last = page.get(..done).and_then(<[_]>::last).filter(|_| more);
        stats.splits_searched = outcome.splits_searched;
        stats.splits_pruned = stats.splits_total.saturating_sub(outcome.splits_searched);
        (stats.bytes_fetched, stats.requests) = (counts.bytes(), counts.requests());
        let is_exact = outcome.is_complete && !plan.leaves_out_earlier_pages;
        Ok(SearchResponse {
            hits,
            total: outcome.matches,
            relation: if is_exact { TotalRelation::Exact } else { TotalRelation::AtLeast },
            cursor: last.map(|key| cursor::encode(sort, key)),
            context: passages,
            stats,
            aggregations: aggregations.map(|run| run.finish()).transpose()?,
        })
    }

    /// Marks what the query looked for in each hit, cut into words as its topic does it now.
    async fn highlight(
        &self,
        query: QueryNode,
        options: HighlightOptions,
        topics: &[Arc<Topic>],
        hits: &mut Vec<Hit>,
    ) -> Result<(), SearchError> {
        let analyser = |topic: &Arc<Topic>| {
            (topic.name.clone(), SplitOptions::of_topic(&topic.config()).unwrap_or_default().analyser)
        };
        let analysers: HashMap<_, _> = topics.iter().map(analyser).collect();
        let mut marked = std::mem::take(hits);
        let mark = move || {
            let mut highlighters = HashMap::new();
            for hit in &mut marked {
                let analyser = analysers.get(&hit.topic).copied().unwrap_or(Analyser::Words);
                let of_topic = highlighters.entry(analyser);
                let highlighter = of_topic.or_insert_with(|| Highlighter::new(&query, analyser, options.clone()));
                if let Some(highlighter) = highlighter {
                    hit.highlights = highlighter.highlights(&hit.record);
                }
            }
            marked
        };
        // A page may be many megabytes of text.
        *hits = tokio::task::spawn_blocking(mark).await.map_err(|_| SearchError::Panicked)?;
        Ok(())
    }

    /// None names all that are not internal.
    fn topics(&self, names: Option<Vec<TopicName>>) -> Result<Vec<Arc<Topic>>, SearchError> {
        let catalogue = self.tiering.topics();
        let Some(mut names) = names else {
            return Ok(catalogue.list().into_iter().filter(|topic| !topic.is_internal()).collect());
        };
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
    async fn check(&self, query: &SearchQuery, topics: &[Arc<Topic>]) -> Result<(), SearchError> {
        // Which partition makes no difference to what is wrong.
        let query = query.in_partition(PartitionId(0))?;
        // Parts about topics that are not searched are looked at too, by the analyser that refuses less than the other:
        // what is one word in logs may be several elsewhere.
        let lenient = SplitOptions { analyser: Analyser::Log, ..SplitOptions::default() };
        query.build(&self.template(lenient).await?, None)?;
        let mut ways: Vec<SplitOptions> = Vec::new();
        for topic in topics {
            let options = SplitOptions::of_topic(&topic.config()).unwrap_or_default();
            let is_new = !ways.contains(&options);
            if is_new {
                ways.push(options);
            }
            if query.root.names_topics() || is_new {
                query.build(&self.template(options).await?, Some(&topic.name))?;
                // There may be many topics, and the time of a search is limited.
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    }

    async fn template(&self, options: SplitOptions) -> Result<SplitReader, SearchError> {
        self.templates.try_get_with(options, template_split(options)).await.map_err(SearchError::Schema)
    }

    /// The split, if it is open already; cold ones stay open for further queries.
    fn open(
        &self,
        extent: &Extent,
        source: &Source,
    ) -> Opening<impl Future<Output = Result<SplitReader, SearchError>> + Send + use<>> {
        let object = match source {
            Source::Live(split) => return Opening::Open(Box::new(split.reader.clone())),
            Source::Cold(object) => object.clone(),
        };
        if let Some(split) = self.tiering.splits().opened(&object) {
            return Opening::Open(Box::new(split));
        }
        let (topic, partition, base) = (extent.topic.clone(), extent.partition, extent.stored.start);
        let tiering = self.tiering.clone();
        Opening::Later(async move {
            let opened = tiering.splits().open(&object).await.map_err(OpenError::Cold);
            opened.map_err(|source| SearchError::Open { topic, partition, base, source: Arc::new(source) })
        })
    }
}

/// A split of one message without content: the schema and the analysers of its kind.
async fn template_split(options: SplitOptions) -> Result<SplitReader, OpenError> {
    let build = move || -> Result<SplitReader, SplitError> {
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
    Ok(tokio::task::spawn_blocking(build).await??)
}
