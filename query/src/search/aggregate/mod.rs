//! Aggregations over the matches of a search: Tantivy's, in Elasticsearch's form, one pass per split, merged here.
//!
//! A tree of [`Aggregation`]s is made by `elastic/aggs.rs`, which checks every setting. It is compiled once to
//! Tantivy's request, run as a second collector beside the one of the hits, merged split by split ([`Merged`]) and
//! written out in Elasticsearch's form (`answer.rs`).
//!
//! - **Columns.** What is aggregated is a column of a split: `timestamp`, `offset`, and, where the topic keeps them
//!   (`search.fast`), `key`, headers and the leaves of JSON values. A split that keeps no such column cannot take part;
//!   it is counted ([`Merged::lacking`]) and the answer says so. If no split has it, the request is refused.
//! - **Places.** `topic` and `partition` are the same for all messages of a split. Their columns are made up, and what
//!   Tantivy cannot do with such columns (an order by key, a least count) is asked of it only where splits are merged.
//!   A topic or partition in which nothing matches has no bucket, whatever `min_doc_count` says.
//! - **Time.** `timestamp` is a plain number of milliseconds. Intervals of a fixed length are a histogram over it;
//!   months, quarters and years one over a column that is computed (`columns.rs`).
//! - **Filters.** `filter`, `filters`, `missing`, `range` and `date_range` are one thing: a computed column that says
//!   for each document which of the queries it matches. So ranges mean what they mean in a query, and may overlap.
//! - **Limits.** Bytes held by one request (`search.aggregation_memory_max`), buckets of an answer
//!   (`search.aggregation_buckets_max`). Spans are checked before they are filled with empty buckets, because time
//!   stamps and bounds come from outside. Terms beyond what is kept of each split make counts inexact, and
//!   `doc_count_error_upper_bound` says by how much.

mod answer;
mod columns;
pub(crate) mod pipeline;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::FixedOffset;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tantivy::aggregation::agg_req::Aggregations;
use tantivy::aggregation::intermediate_agg_result::{
    IntermediateAggregationResult, IntermediateAggregationResults, IntermediateBucketResult, PruneMode,
};
use tantivy::aggregation::{
    AggContextParams, AggregationLimitsGuard, AggregationSegmentCollector, DistributedAggregationCollector,
    ValueSourceRegistry,
};
use tantivy::collector::{Collector, SegmentCollector};
use tantivy::query::Query;
use tantivy::{DocId, TantivyError};
use thermocline_config::SearchConfig;
use thermocline_ingest::model::Timestamp;
use thermocline_tiering::split::SplitReader;

use super::SearchError;
use super::ast::{QueryNode, SearchQuery};
use super::collect::{Beside, BesideSplit};
use crate::prune::Extent;
pub(crate) use columns::Calendar;
use pipeline::{MetricPath, Pipeline};

/// What one held bucket is counted as, in bytes, beside what Tantivy itself counts.
const BUCKET_BYTES: u64 = 512;

/// A column that is aggregated, by the name that Tantivy knows: `timestamp`, `offset`, `topic`, `partition`, `key`,
/// `headers.<name>` or `json.<path>`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Column(pub String);

/// One aggregation and those inside each of its buckets.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Aggregation {
    pub name: String,
    pub kind: AggregationKind,
    pub inner: Vec<Aggregation>,
    /// Given back as it came.
    pub meta: Option<Value>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum AggregationKind {
    Metric {
        metric: Metric,
        column: Column,
        /// `missing`, `percents`, `keyed`, `sigma`: checked, in Tantivy's form.
        settings: Map<String, Value>,
    },
    Terms {
        column: Column,
        /// `size`, `order`, `min_doc_count`, ...: checked, in Tantivy's form.
        settings: Map<String, Value>,
        /// Where Tantivy cannot order them so.
        by: Option<TermsBy>,
    },
    Histogram {
        column: Column,
        grid: Grid,
        keyed: bool,
    },
    DateHistogram {
        interval: Interval,
        /// In units of the interval's column: milliseconds, or months, quarters, years.
        grid: Grid,
        zone: FixedOffset,
        format: crate::elastic::DateFormat,
        keyed: bool,
    },
    Filters {
        filters: Vec<Filter>,
        shape: Shape,
    },
    /// In each bucket of a date histogram, for each unit of the bucket's length.
    Rate {
        of: RateOf,
        /// None takes the length itself.
        unit_ms: Option<i64>,
    },
    /// Computed from the finished answer; Tantivy knows nothing of it.
    Pipeline(Pipeline),
}

/// What a rate counts.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RateOf {
    Messages,
    Sum(Column),
    Count(Column),
}

/// An order of terms by a number in their finished buckets, and how many of them are shown.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TermsBy {
    pub path: MetricPath,
    pub is_descending: bool,
    pub size: usize,
}

/// A metric of the values in a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Metric {
    Average,
    Cardinality,
    Count,
    ExtendedStats,
    Max,
    Min,
    Percentiles,
    Stats,
    Sum,
}

/// Buckets `[offset + n * interval, offset + (n + 1) * interval)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Grid {
    pub interval: f64,
    pub offset: f64,
    pub min_doc_count: u64,
    /// Buckets are shown at least for this range.
    pub extended_bounds: Option<(f64, f64)>,
    /// Values outside are left out.
    pub hard_bounds: Option<(f64, f64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interval {
    /// Milliseconds.
    Fixed,
    Calendar(Calendar),
}

/// One bucket of documents that match a query.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Filter {
    pub key: String,
    pub query: QueryNode,
    /// Members of the bucket beside `key` and `doc_count`: a range's `from` and `to`.
    pub shown: Map<String, Value>,
}

/// How the buckets of filters are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// One filter: the bucket itself.
    Single,
    /// An object by key.
    Keyed,
    /// An array; without the keys where they were not asked for.
    List { keys: bool },
}

/// The aggregations of a request, compiled.
#[derive(Clone)]
pub(crate) struct AggregationPlan {
    tree: Arc<[Aggregation]>,
    /// What `now` means in the queries of filters.
    now: Timestamp,
    /// Asked of each split.
    split_request: Aggregations,
    /// What splits answered is merged and cut by this.
    request: Aggregations,
    limits: AggregationLimitsGuard,
    memory_max: u64,
    buckets_max: u64,
}

/// The aggregations of one search: those of its splits so far.
pub(crate) struct AggregationRun {
    inner: Arc<RunInner>,
}

struct RunInner {
    plan: AggregationPlan,
    merged: Mutex<Merged>,
}

#[derive(Debug, Default)]
struct Merged {
    results: Option<IntermediateAggregationResults>,
    splits: usize,
    lacking: BTreeMap<Column, usize>,
}

/// The aggregations of one split.
struct SplitRun {
    collector: AggregationSegmentCollector,
    /// Columns that the split does not keep.
    lacking: Vec<Column>,
    inner: Arc<RunInner>,
}

/// The aggregations of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AggregationsAnswer {
    /// By name, in Elasticsearch's form.
    pub values: Map<String, Value>,
    /// Columns that were asked for, with the number of searched splits that do not keep them; their messages are
    /// missing from what was computed over the column.
    pub lacking: BTreeMap<String, usize>,
}

impl AggregationPlan {
    /// Compiles a tree that `elastic/aggs.rs` has checked.
    pub fn new(tree: Vec<Aggregation>, now: Timestamp, config: &SearchConfig) -> Result<Self, SearchError> {
        let request = |of: Of| {
            let request = serde_json::from_value(compiled(&tree, of, &mut 0));
            request.map_err(|error| SearchError::Aggregation { message: error.to_string() })
        };
        let (split_request, request) = (request(Of::Split)?, request(Of::All)?);
        let memory_max = config.aggregation_memory_max.as_u64();
        let buckets_max = config.aggregation_buckets_max;
        let limits = AggregationLimitsGuard::new(Some(memory_max), Some(buckets_max));
        Ok(Self {
            tree: tree.into(),
            now,
            split_request,
            request,
            limits,
            memory_max,
            buckets_max: u64::from(buckets_max),
        })
    }

    /// Every column that is read.
    fn columns(&self) -> Vec<Column> {
        let mut columns = Vec::new();
        self.walk(&self.tree, &mut |aggregation| columns.extend(aggregation.column().cloned()));
        columns.sort_unstable();
        columns.dedup();
        columns
    }

    /// The collector for one split, and the columns that the split lacks. Filters are searched here.
    fn collector(
        &self,
        split: &SplitReader,
        extent: &Extent,
    ) -> tantivy::Result<(AggregationSegmentCollector, Vec<Column>)> {
        let segment = split.searcher.segment_reader(0);
        let mut sources = ValueSourceRegistry::default();
        let mut number = 0;
        let mut outcome = Ok(());
        self.walk(&self.tree, &mut |aggregation| {
            let name = computed_name(number);
            number += 1;
            match &aggregation.kind {
                AggregationKind::DateHistogram { interval: Interval::Calendar(calendar), zone, .. } => {
                    sources.register(&name, Arc::new(columns::CalendarColumn::new(*calendar, *zone)));
                }
                AggregationKind::Terms { column, settings, .. } => match column.constant(extent) {
                    Some(constant) if constant.is_listed(settings) => sources.register(&name, Arc::new(constant)),
                    Some(_) => sources.register(&name, Arc::new(columns::EmptyColumn)),
                    None => {}
                },
                AggregationKind::Filters { filters, .. } if outcome.is_ok() => {
                    let queries = filters.iter().map(|filter| built(&self.query_of(filter), split, extent));
                    let column = queries.collect::<tantivy::Result<Vec<_>>>().and_then(|queries| {
                        columns::FilterColumn::search(&queries, &split.searcher, segment, self.memory_max)
                    });
                    outcome = column.map(|column| sources.register(&name, Arc::new(column)));
                }
                _ => {}
            }
        });
        outcome?;
        let schema = &split.fields.schema;
        let mut lacking = Vec::new();
        for column in self.columns() {
            let field = schema.find_field(&column.0);
            if let Some(constant) = column.constant(extent) {
                sources.register(&column.0, Arc::new(constant));
            } else if !field.is_some_and(|(field, _)| schema.get_field_entry(field).is_fast()) {
                sources.register(&column.0, Arc::new(columns::EmptyColumn));
                lacking.push(column);
            }
        }
        let context = AggContextParams::new(self.limits.clone(), split.index.tokenizers().clone());
        let context = context.with_value_sources(Arc::new(sources));
        let collector = DistributedAggregationCollector::from_aggs(self.split_request.clone(), context);
        Ok((collector.for_segment(0, segment)?, lacking))
    }

    fn query_of(&self, filter: &Filter) -> SearchQuery {
        SearchQuery { root: filter.query.clone(), now: self.now }
    }

    /// The queries of all filters.
    pub fn queries(&self) -> Vec<SearchQuery> {
        let mut queries = Vec::new();
        self.walk(&self.tree, &mut |aggregation| {
            if let AggregationKind::Filters { filters, .. } = &aggregation.kind {
                queries.extend(filters.iter().map(|filter| self.query_of(filter)));
            }
        });
        queries
    }

    fn merge(&self, merged: &mut Merged, part: IntermediateAggregationResults) -> tantivy::Result<()> {
        let results = match &mut merged.results {
            None => merged.results.insert(part),
            Some(results) => {
                results.merge_fruits(part)?;
                results
            }
        };
        results.prune_intermediate_results(&self.request, PruneMode::Intermediate)?;
        self.count(&self.tree, results, &mut 0)
    }

    fn walk<'a>(&'a self, tree: &'a [Aggregation], visit: &mut impl FnMut(&'a Aggregation)) {
        for aggregation in tree {
            visit(aggregation);
            self.walk(&aggregation.inner, visit);
        }
    }

    /// Counts the buckets that are held, with the empty ones that an answer would fill in.
    fn count(
        &self,
        tree: &[Aggregation],
        results: &IntermediateAggregationResults,
        held: &mut u64,
    ) -> tantivy::Result<()> {
        for aggregation in tree {
            let Some(IntermediateAggregationResult::Bucket(bucket)) = results.get(&aggregation.name) else { continue };
            match bucket {
                IntermediateBucketResult::Histogram { buckets, .. } => {
                    if let Some(grid) = aggregation.grid().filter(|grid| grid.min_doc_count == 0) {
                        let (lowest, highest) = grid.extended_bounds.unwrap_or((f64::INFINITY, f64::NEG_INFINITY));
                        let keys = || buckets.iter().map(|bucket| bucket.key);
                        let span = keys().fold(highest, f64::max) - keys().fold(lowest, f64::min);
                        let span = span / grid.interval;
                        if span > self.buckets_max as f64 {
                            return Err(self.too_many_buckets(&aggregation.name));
                        }
                    }
                    *held += buckets.len() as u64;
                    for bucket in buckets {
                        self.count(&aggregation.inner, &bucket.sub_aggregation, held)?;
                    }
                }
                IntermediateBucketResult::Terms { buckets } => {
                    *held += buckets.entries().len() as u64;
                    for (_, entry) in buckets.entries() {
                        self.count(&aggregation.inner, &entry.sub_aggregation, held)?;
                    }
                }
                // No other kind is ever asked of Tantivy.
                _ => {}
            }
            if held.saturating_mul(BUCKET_BYTES) > self.memory_max {
                return Err(self.too_many_buckets(&aggregation.name));
            }
        }
        Ok(())
    }

    fn too_many_buckets(&self, name: &str) -> TantivyError {
        TantivyError::InvalidArgument(format!(
            "aggregation {name:?} has more buckets than an answer may have ({}, search.aggregation_buckets_max) or than \
             {} bytes hold (search.aggregation_memory_max); ask for larger intervals, fewer terms, min_doc_count 1 or a \
             shorter time",
            self.buckets_max, self.memory_max
        ))
    }
}

impl AggregationRun {
    pub fn new(plan: AggregationPlan) -> Self {
        Self { inner: Arc::new(RunInner { plan, merged: Mutex::default() }) }
    }

    /// The answer of the splits that were searched. Refused where a column that was asked for is in none of them.
    pub fn finish(&self) -> Result<AggregationsAnswer, SearchError> {
        let plan = &self.inner.plan;
        let Merged { results, splits, lacking } = std::mem::take(&mut *self.inner.merged.lock());
        if let Some((column, _)) = lacking.iter().find(|(_, count)| **count == splits) {
            return Err(SearchError::NoColumn { column: column.0.clone() });
        }
        let results = results.unwrap_or_default();
        let results = results.into_final_result(plan.request.clone(), plan.limits.clone()).map_err(refused)?;
        let results =
            serde_json::to_value(results).map_err(|error| SearchError::Aggregation { message: error.to_string() })?;
        Ok(AggregationsAnswer {
            values: answer::written(&plan.tree, results),
            lacking: lacking.into_iter().map(|(column, count)| (column.0, count)).collect(),
        })
    }
}

/// The query of a filter in one split.
fn built(query: &SearchQuery, split: &SplitReader, extent: &Extent) -> tantivy::Result<Box<dyn Query>> {
    let built = query.in_partition(extent.partition).and_then(|query| query.build(split, Some(&extent.topic)));
    built.map_err(|error| TantivyError::InvalidArgument(error.message))
}

impl Beside for AggregationRun {
    fn start(&self, split: &SplitReader, extent: &Extent) -> tantivy::Result<Box<dyn BesideSplit>> {
        let (collector, lacking) = self.inner.plan.collector(split, extent)?;
        Ok(Box::new(SplitRun { collector, lacking, inner: self.inner.clone() }))
    }

    fn queries(&self, split: &SplitReader, extent: &Extent) -> tantivy::Result<Vec<Box<dyn Query>>> {
        self.inner.plan.queries().iter().map(|query| built(query, split, extent)).collect()
    }
}

impl BesideSplit for SplitRun {
    fn collect(&mut self, docs: &[DocId]) {
        self.collector.collect_block(docs);
    }

    fn finish(self: Box<Self>) -> tantivy::Result<()> {
        let Self { collector, lacking, inner } = *self;
        let results = collector.harvest()?;
        let mut merged = inner.merged.lock();
        merged.splits += 1;
        for column in lacking {
            *merged.lacking.entry(column).or_default() += 1;
        }
        inner.plan.merge(&mut merged, results)
    }
}

impl Aggregation {
    fn column(&self) -> Option<&Column> {
        match &self.kind {
            AggregationKind::Metric { column, .. }
            | AggregationKind::Terms { column, .. }
            | AggregationKind::Histogram { column, .. }
            | AggregationKind::Rate { of: RateOf::Sum(column) | RateOf::Count(column), .. } => Some(column),
            AggregationKind::DateHistogram { .. }
            | AggregationKind::Filters { .. }
            | AggregationKind::Rate { .. }
            | AggregationKind::Pipeline(_) => None,
        }
    }

    fn grid(&self) -> Option<&Grid> {
        match &self.kind {
            AggregationKind::Histogram { grid, .. } | AggregationKind::DateHistogram { grid, .. } => Some(grid),
            _ => None,
        }
    }
}

impl Metric {
    pub fn name(self) -> &'static str {
        match self {
            Self::Average => "avg",
            Self::Cardinality => "cardinality",
            Self::Count => "value_count",
            Self::ExtendedStats => "extended_stats",
            Self::Max => "max",
            Self::Min => "min",
            Self::Percentiles => "percentiles",
            Self::Stats => "stats",
            Self::Sum => "sum",
        }
    }
}

impl Column {
    pub fn timestamp() -> Self {
        Self("timestamp".to_owned())
    }

    pub fn is_time(&self) -> bool {
        self.0 == "timestamp"
    }

    /// Whether it is the same for all messages of a split.
    pub fn is_constant(&self) -> bool {
        matches!(self.0.as_str(), "topic" | "partition")
    }

    fn constant(&self, extent: &Extent) -> Option<columns::ConstantColumn> {
        match self.0.as_str() {
            "topic" => Some(columns::ConstantColumn::Text(extent.topic.as_str().into())),
            "partition" => Some(columns::ConstantColumn::Number(i64::from(extent.partition.0))),
            _ => None,
        }
    }
}

/// The name under which the computed column of the n-th aggregation, counted as [`AggregationPlan::walk`] goes, is
/// registered. No field can have it.
fn computed_name(number: usize) -> String {
    format!("\u{0}{number}")
}

/// Whom a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Split,
    All,
}

/// The tree as Tantivy reads it.
fn compiled(tree: &[Aggregation], of: Of, number: &mut usize) -> Value {
    let mut all = Map::new();
    for aggregation in tree {
        let computed = computed_name(*number);
        *number += 1;
        let with_field = |settings: &Map<String, Value>, field: &str| {
            let mut settings = settings.clone();
            settings.insert("field".to_owned(), json!(field));
            Value::Object(settings)
        };
        let (kind, settings) = match &aggregation.kind {
            AggregationKind::Metric { metric, column, settings } => (metric.name(), with_field(settings, &column.0)),
            AggregationKind::Terms { column, .. } if column.is_constant() && of == Of::Split => {
                ("terms", with_field(&Map::new(), &computed))
            }
            AggregationKind::Terms { column, settings, .. } => ("terms", with_field(settings, &column.0)),
            AggregationKind::Rate { of: RateOf::Sum(column), .. } => ("sum", with_field(&Map::new(), &column.0)),
            AggregationKind::Rate { of: RateOf::Count(column), .. } => {
                ("value_count", with_field(&Map::new(), &column.0))
            }
            AggregationKind::Rate { of: RateOf::Messages, .. } | AggregationKind::Pipeline(_) => continue,
            AggregationKind::Histogram { column, grid, .. } => ("histogram", with_field(&grid.settings(), &column.0)),
            AggregationKind::DateHistogram { interval: Interval::Fixed, grid, .. } => {
                ("histogram", with_field(&grid.settings(), "timestamp"))
            }
            AggregationKind::DateHistogram { grid, .. } => ("histogram", with_field(&grid.settings(), &computed)),
            AggregationKind::Filters { filters, .. } => {
                // Every filter is shown, also where nothing matches.
                let last = filters.len().saturating_sub(1) as f64;
                let grid = Grid {
                    interval: 1.0,
                    offset: 0.0,
                    min_doc_count: 0,
                    extended_bounds: Some((0.0, last)),
                    hard_bounds: None,
                };
                ("histogram", with_field(&grid.settings(), &computed))
            }
        };
        let inner = compiled(&aggregation.inner, of, number);
        all.insert(aggregation.name.clone(), json!({kind: settings, "aggs": inner}));
    }
    Value::Object(all)
}

impl Grid {
    fn settings(&self) -> Map<String, Value> {
        let mut settings = Map::new();
        settings.insert("interval".to_owned(), json!(self.interval));
        settings.insert("offset".to_owned(), json!(self.offset));
        settings.insert("min_doc_count".to_owned(), json!(self.min_doc_count));
        // Tantivy takes bounds only where empty buckets are shown; elsewhere they would add nothing.
        if let Some((min, max)) = self.extended_bounds.filter(|_| self.min_doc_count == 0) {
            settings.insert("extended_bounds".to_owned(), json!({"min": min, "max": max}));
        }
        if let Some((min, max)) = self.hard_bounds {
            settings.insert("hard_bounds".to_owned(), json!({"min": min, "max": max}));
        }
        settings
    }
}

/// What Tantivy says of a request, or of limits that were passed.
pub(crate) fn refused(error: TantivyError) -> SearchError {
    let message = match error {
        TantivyError::InvalidArgument(message) => message,
        TantivyError::AggregationError(error) => error.to_string(),
        other => return SearchError::AggregationFault { source: Box::new(other) },
    };
    SearchError::Aggregation { message }
}
