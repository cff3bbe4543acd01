//! `aggs` of a request, checked and turned into [`Aggregation`]s. Pure.
//!
//! | Elasticsearch | here |
//! |---|---|
//! | `avg`, `min`, `max`, `sum`, `value_count`, `stats`, `extended_stats`, `cardinality`, `percentiles` | the same |
//! | `terms` | the same; `include` and `exclude` as lists |
//! | `histogram`, `date_histogram` | the same; dates over `@timestamp`, zones as offsets from UTC |
//! | `range`, `date_range`, `filter`, `filters`, `missing` | queries, see `search/aggregate` |
//!
//! | `rate` | `sum`, `value_count` or the messages of a `date_histogram`'s bucket, divided by its length |
//! | `derivative`, `cumulative_sum`, `serial_diff`, `moving_fn`, `bucket_script` | pipelines, see `pipelines.rs` |
//!
//! Everything else is refused by name: scripts, nesting, and what needs stored documents.

mod terms;

use chrono::FixedOffset;
use serde_json::{Map, Value, json};

use super::date::{self, DateFormat};
use super::dsl::Dsl;
use super::error::{ElasticError, shown};
use super::object::{Members, number_of};
use super::pipelines::{Unread, is_pipeline, pipeline};
use crate::search::aggregate::{
    Aggregation, AggregationKind, Calendar, Column, Filter, Grid, Interval, Metric, RateOf, Shape,
};
use crate::search::ast::QueryNode;
use crate::time::Rounding;

/// Aggregations in one request, inner ones included.
pub(crate) const AGGREGATIONS_MAX: usize = 256;
/// Aggregations inside each other.
pub(crate) const AGGREGATIONS_NESTING_MAX: usize = 12;
/// Filters, or ranges, of one aggregation.
pub(crate) const FILTERS_MAX: usize = 256;
/// Terms that `include` and `exclude` may list, and percentiles that may be asked for.
const LIST_MAX: usize = 1024;

const DAY_MS: i64 = 86_400_000;
/// Names that a bucket uses itself.
const TAKEN_NAMES: [&str; 8] = ["key", "key_as_string", "doc_count", "from", "to", "buckets", "meta", "value"];

/// Reads `aggs`; `dsl` reads the queries in them.
pub(crate) fn parse(value: Value, dsl: &mut Dsl, buckets_max: u32) -> Result<Vec<Aggregation>, ElasticError> {
    let mut parser = Parser { dsl, buckets_max, left: AGGREGATIONS_MAX };
    parser.tree(value, AGGREGATIONS_NESTING_MAX, None)
}

struct Parser<'a> {
    dsl: &'a mut Dsl,
    buckets_max: u32,
    left: usize,
}

impl Parser<'_> {
    /// What lies in the buckets of an aggregation of the kind `parent`. Pipelines come behind all that they read.
    fn tree(
        &mut self,
        value: Value,
        nesting_left: usize,
        parent: Option<&str>,
    ) -> Result<Vec<Aggregation>, ElasticError> {
        let Some(nesting_left) = nesting_left.checked_sub(1) else {
            let reason = format!("more than {AGGREGATIONS_NESTING_MAX} aggregations lie inside each other");
            return Err(ElasticError::illegal(reason));
        };
        let members = Members::of("aggs", value)?.rest();
        let (mut tree, mut waiting) = (Vec::with_capacity(members.len()), Vec::new());
        for (name, value) in members {
            self.left = self.left.checked_sub(1).ok_or_else(|| {
                ElasticError::illegal(format!("the request has more than {AGGREGATIONS_MAX} aggregations"))
            })?;
            if name.is_empty() || name.contains(['[', ']', '>']) || TAKEN_NAMES.contains(&name.as_str()) {
                return Err(ElasticError::parsing(format!("an aggregation cannot be called [{}]", shown(&name))));
            }
            let mut members = Members::of(&name, value)?;
            let meta = members.take("meta");
            let inner = members.take("aggs").or_else(|| members.take("aggregations"));
            let (kind, settings) = members.only()?;
            if is_pipeline(&kind) {
                if inner.is_some() {
                    return Err(holds_none(&name));
                }
                waiting.push(Waiting { name, kind, settings, meta });
                continue;
            }
            let inner = inner.map(|inner| self.tree(inner, nesting_left, Some(&kind))).transpose()?.unwrap_or_default();
            let kind = self.kind(&kind, Members::of(&kind, settings)?, &inner, parent)?;
            let has_buckets = !matches!(kind, AggregationKind::Metric { .. } | AggregationKind::Rate { .. });
            if !has_buckets && !inner.is_empty() {
                return Err(holds_none(&name));
            }
            tree.push(Aggregation { name, kind, inner, meta });
        }
        pipelines_last(tree, waiting, parent)
    }

    fn kind(
        &mut self,
        kind: &str,
        mut settings: Members,
        inner: &[Aggregation],
        parent: Option<&str>,
    ) -> Result<AggregationKind, ElasticError> {
        Ok(match kind {
            "avg" => metric(Metric::Average, settings)?,
            "cardinality" => metric(Metric::Cardinality, settings)?,
            "value_count" => metric(Metric::Count, settings)?,
            "extended_stats" => metric(Metric::ExtendedStats, settings)?,
            "max" => metric(Metric::Max, settings)?,
            "min" => metric(Metric::Min, settings)?,
            "percentiles" => metric(Metric::Percentiles, settings)?,
            "stats" => metric(Metric::Stats, settings)?,
            "sum" => metric(Metric::Sum, settings)?,
            "rate" => rate(settings, parent)?,
            "terms" => self.terms(settings, inner)?,
            "histogram" => self.histogram(settings)?,
            "date_histogram" => self.date_histogram(settings)?,
            "range" => self.ranges(settings, false)?,
            "date_range" => self.ranges(settings, true)?,
            "missing" => {
                let field = settings.text("field")?.ok_or_else(|| ElasticError::parsing("[missing] needs [field]"))?;
                settings.done()?;
                let field = self.dsl.field(&field)?;
                single(not(vec![QueryNode::Exists { field }]))
            }
            "filter" => single(self.dsl.query(Value::Object(settings.rest()))?),
            "filters" => self.filters(settings)?,
            other => return Err(ElasticError::unsupported(&format!("the aggregation [{other}]"))),
        })
    }

    fn histogram(&mut self, mut settings: Members) -> Result<AggregationKind, ElasticError> {
        let column = column(&mut settings, "histogram")?;
        let interval =
            settings.number("interval")?.ok_or_else(|| ElasticError::parsing("[histogram] needs [interval]"))?;
        if interval <= 0.0 {
            return Err(ElasticError::illegal(format!("[histogram] interval {interval} must be greater than 0")));
        }
        let mut bounds = |name| {
            let Some(value) = settings.take(name) else { return Ok(None) };
            let mut bounds = Members::of(name, value)?;
            let both = bounds.number("min")?.zip(bounds.number("max")?);
            bounds.done()?;
            both.map(Some).ok_or_else(|| ElasticError::parsing(format!("[{name}] needs [min] and [max]")))
        };
        let (extended_bounds, hard_bounds) = (bounds("extended_bounds")?, bounds("hard_bounds")?);
        let grid = Grid {
            interval,
            offset: settings.number("offset")?.unwrap_or(0.0),
            min_doc_count: settings.count("min_doc_count")?.unwrap_or(0),
            extended_bounds,
            hard_bounds,
        };
        let keyed = settings.flag("keyed")?.unwrap_or(false);
        settings.done()?;
        self.check_bounds(&grid)?;
        Ok(AggregationKind::Histogram { column, grid, keyed })
    }

    fn date_histogram(&mut self, mut settings: Members) -> Result<AggregationKind, ElasticError> {
        time_field(&mut settings, "date_histogram")?;
        let format = format_of(&mut settings)?;
        let zone = zone_of(&mut settings)?;
        let (fixed, calendar) = (settings.text("fixed_interval")?, settings.text("calendar_interval")?);
        // Before version 7.2 there was one name for both.
        let either = settings.text("interval")?;
        let is_calendar = calendar.is_some() || matches!(either.as_deref(), Some("1w" | "week"));
        let interval = match (fixed, calendar, either) {
            (Some(text), None, None) | (None, Some(text), None) | (None, None, Some(text)) => text,
            _ => {
                let reason = "[date_histogram] needs one of [fixed_interval] and [calendar_interval]";
                return Err(ElasticError::parsing(reason));
            }
        };
        let (kind, length) = interval_of(&interval, is_calendar).ok_or_else(|| {
            ElasticError::illegal(format!("[date_histogram] interval [{}] is not known", shown(&interval)))
        })?;
        let offset = settings.text("offset")?;
        let offset = offset
            .map_or(Some(0), |text| signed_length(&text))
            .ok_or_else(|| ElasticError::illegal("[date_histogram] offset is not a length of time like +6h"))?;
        let bounds = |name: &str, settings: &mut Members| -> Result<Option<(f64, f64)>, ElasticError> {
            let Some(value) = settings.take(name) else { return Ok(None) };
            let mut bounds = Members::of(name, value)?;
            let mut moment = |end: &str, round| -> Result<f64, ElasticError> {
                let value = bounds.required(end)?;
                let millis = self.dsl.moment(&value, format, round, zone)?;
                Ok(match kind {
                    Interval::Fixed => millis as f64,
                    Interval::Calendar(calendar) => calendar.number_of(millis, zone) as f64,
                })
            };
            let both = (moment("min", Rounding::Down)?, moment("max", Rounding::Up)?);
            bounds.done()?;
            Ok(Some(both))
        };
        let extended_bounds = bounds("extended_bounds", &mut settings)?;
        let hard_bounds = bounds("hard_bounds", &mut settings)?;
        let (interval, offset) = match kind {
            Interval::Fixed => {
                // Weeks start on Mondays, and 1970 began on a Thursday.
                let monday = if is_calendar && length == 7 * DAY_MS { 4 * DAY_MS } else { 0 };
                let offset = offset + monday - i64::from(zone.local_minus_utc()) * 1000;
                (length as f64, offset.rem_euclid(length) as f64)
            }
            Interval::Calendar(_) if offset != 0 => {
                return Err(ElasticError::unsupported("[date_histogram] offset with months, quarters or years"));
            }
            Interval::Calendar(_) => (1.0, 0.0),
        };
        let min_doc_count = settings.count("min_doc_count")?.unwrap_or(0);
        let grid = Grid { interval, offset, min_doc_count, extended_bounds, hard_bounds };
        let keyed = settings.flag("keyed")?.unwrap_or(false);
        // A message always has a timestamp.
        settings.ignore(&["missing"]);
        settings.done()?;
        self.check_bounds(&grid)?;
        Ok(AggregationKind::DateHistogram { interval: kind, grid, zone, format, keyed })
    }

    /// Bounds come from outside and are filled with buckets.
    fn check_bounds(&self, grid: &Grid) -> Result<(), ElasticError> {
        for (name, bounds) in [("extended_bounds", grid.extended_bounds), ("hard_bounds", grid.hard_bounds)] {
            let Some((min, max)) = bounds else { continue };
            if min > max {
                return Err(ElasticError::illegal(format!("[{name}] min {min} lies behind max {max}")));
            }
            let span = (max - min) / grid.interval;
            if name == "extended_bounds" && span >= f64::from(self.buckets_max) {
                let reason = format!(
                    "[{name}] span {span:.0} buckets, more than the {} of search.aggregation_buckets_max",
                    self.buckets_max
                );
                return Err(ElasticError { status: 400, kind: "too_many_buckets_exception", reason });
            }
        }
        if let Some(((inner_min, inner_max), (min, max))) = grid.extended_bounds.zip(grid.hard_bounds)
            && (inner_min < min || inner_max > max)
        {
            return Err(ElasticError::illegal("[extended_bounds] must lie inside [hard_bounds]"));
        }
        Ok(())
    }

    fn filters(&mut self, mut settings: Members) -> Result<AggregationKind, ElasticError> {
        let other_key = settings.text("other_bucket_key")?;
        let has_other = settings.flag("other_bucket")?.unwrap_or(other_key.is_some());
        let keyed = settings.flag("keyed")?.unwrap_or(true);
        let (list, shape) = match settings.required("filters")? {
            Value::Object(members) => {
                let shape = if keyed { Shape::Keyed } else { Shape::List { keys: true } };
                (members.into_iter().collect::<Vec<_>>(), shape)
            }
            Value::Array(list) => {
                (list.into_iter().map(|query| (String::new(), query)).collect(), Shape::List { keys: false })
            }
            other => return Err(settings.wrong("filters", "an object or an array", &other)),
        };
        settings.done()?;
        check_len("filters", list.len())?;
        let mut filters = Vec::with_capacity(list.len() + 1);
        for (key, query) in list {
            filters.push(Filter { key, query: self.dsl.query(query)?, shown: Map::new() });
        }
        if has_other {
            let query = not(filters.iter().map(|filter| filter.query.clone()).collect());
            filters.push(Filter { key: other_key.unwrap_or_else(|| "_other_".to_owned()), query, shown: Map::new() });
        }
        Ok(AggregationKind::Filters { filters, shape })
    }

    fn ranges(&mut self, mut settings: Members, are_dates: bool) -> Result<AggregationKind, ElasticError> {
        let kind = if are_dates { "date_range" } else { "range" };
        let name = settings.text("field")?.ok_or_else(|| ElasticError::parsing(format!("[{kind}] needs [field]")))?;
        let is_time = self.dsl.is_time(&name);
        if are_dates && !is_time {
            return Err(only_the_timestamp(kind, &name));
        }
        let field = self.dsl.field(&name)?;
        let (format, zone) = (format_of(&mut settings)?, zone_of(&mut settings)?);
        let keyed = settings.flag("keyed")?.unwrap_or(false);
        let Value::Array(list) = settings.required("ranges")? else {
            return Err(ElasticError::parsing(format!("[{kind}] [ranges] must be an array")));
        };
        settings.done()?;
        check_len("ranges", list.len())?;
        let mut ranges = Vec::with_capacity(list.len());
        for range in list {
            let mut range = Members::of("ranges", range)?;
            let key = range.text("key")?;
            let mut end = |name: &str| -> Result<Option<f64>, ElasticError> {
                let Some(value) = range.take(name) else { return Ok(None) };
                if is_time {
                    return Ok(Some(self.dsl.moment(&value, format, Rounding::Down, zone)? as f64));
                }
                number_of(&value).map(Some).ok_or_else(|| range.wrong(name, "a number", &value))
            };
            let (from, to) = (end("from")?, end("to")?);
            range.done()?;
            ranges.push((from, to, key));
        }
        let order = |a: Option<f64>, b: Option<f64>, open: f64| a.unwrap_or(open).total_cmp(&b.unwrap_or(open));
        ranges.sort_by(|a, b| order(a.0, b.0, f64::NEG_INFINITY).then_with(|| order(a.1, b.1, f64::INFINITY)));
        let filters = ranges.into_iter().map(|(from, to, key)| {
            let text = |end: Option<f64>| match end {
                None => "*".to_owned(),
                // Milliseconds since 1970 are whole.
                Some(end) if is_time => format.write_in(end as i64, zone),
                Some(end) => format!("{end:?}"),
            };
            let mut shown = Map::new();
            for (name, end) in [("from", from), ("to", to)] {
                let Some(value) = end else { continue };
                shown.insert(name.to_owned(), json!(value));
                if is_time {
                    shown.insert(format!("{name}_as_string"), json!(text(end)));
                }
            }
            let key = key.unwrap_or_else(|| format!("{}-{}", text(from), text(to)));
            Filter { key, query: super::ranges::number_range(field.clone(), from, to, is_time), shown }
        });
        let shape = if keyed { Shape::Keyed } else { Shape::List { keys: true } };
        Ok(AggregationKind::Filters { filters: filters.collect(), shape })
    }
}

fn check_len(what: &str, len: usize) -> Result<(), ElasticError> {
    match len {
        0 => Err(ElasticError::parsing(format!("[{what}] is empty"))),
        len if len > FILTERS_MAX => {
            Err(ElasticError::illegal(format!("{len} [{what}] exceed the limit of {FILTERS_MAX}")))
        }
        _ => Ok(()),
    }
}

fn single(query: QueryNode) -> AggregationKind {
    let filter = Filter { key: String::new(), query, shown: Map::new() };
    AggregationKind::Filters { filters: vec![filter], shape: Shape::Single }
}

/// Everything that none of `queries` matches.
fn not(queries: Vec<QueryNode>) -> QueryNode {
    let (must, should, filter) = (Vec::new(), Vec::new(), vec![QueryNode::All]);
    QueryNode::Bool { must, should, must_not: queries, filter, minimum_should_match: 0 }
}

fn metric(metric: Metric, mut settings: Members) -> Result<AggregationKind, ElasticError> {
    let column = column(&mut settings, metric.name())?;
    let mut tantivy = Map::new();
    if metric == Metric::Cardinality {
        if settings.take("missing").is_some() {
            return Err(ElasticError::unsupported("[cardinality] missing"));
        }
        settings.ignore(&["precision_threshold", "execution_hint"]);
    } else if let Some(missing) = settings.number("missing")? {
        tantivy.insert("missing".to_owned(), json!(missing));
    }
    if let Some(sigma) = settings.number("sigma")?.filter(|_| metric == Metric::ExtendedStats) {
        tantivy.insert("sigma".to_owned(), json!(sigma));
    }
    if metric == Metric::Percentiles {
        if let Some(list) = settings.take("percents") {
            let numbers = list.as_array().filter(|list| list.len() <= LIST_MAX);
            let numbers = numbers.and_then(|list| list.iter().map(number_of).collect::<Option<Vec<_>>>());
            let numbers = numbers.filter(|numbers| numbers.iter().all(|number| (0.0..=100.0).contains(number)));
            let numbers =
                numbers.ok_or_else(|| settings.wrong("percents", "a list of numbers from 0 to 100", &list))?;
            tantivy.insert("percents".to_owned(), json!(numbers));
        }
        tantivy.insert("keyed".to_owned(), json!(settings.flag("keyed")?.unwrap_or(true)));
        settings.ignore(&["tdigest", "hdr"]);
    }
    settings.ignore(&["format"]);
    settings.done()?;
    Ok(AggregationKind::Metric { metric, column, settings: tantivy })
}

/// The column that `field` names.
fn column(settings: &mut Members, kind: &str) -> Result<Column, ElasticError> {
    let name = settings.text("field")?.ok_or_else(|| {
        // A script, or values of several fields.
        ElasticError::parsing(format!("[{kind}] needs [field]; scripts are not supported"))
    })?;
    match name.as_str() {
        "@timestamp" | "timestamp" => Ok(Column::timestamp()),
        "_index" | "topic" => Ok(Column("topic".to_owned())),
        "offset" | "partition" | "key" => Ok(Column(name)),
        _ if is_inside(&name, "json.") || is_inside(&name, "headers.") => Ok(Column(name)),
        _ => Err(ElasticError::illegal(format!(
            "[{kind}] cannot aggregate [{}]; it can over @timestamp, offset, topic, partition, key, headers.<name> and json.<path>",
            shown(&name)
        ))),
    }
}

fn is_inside(name: &str, object: &str) -> bool {
    name.strip_prefix(object).is_some_and(|rest| !rest.is_empty() && !rest.contains('\0'))
}

fn time_field(settings: &mut Members, kind: &str) -> Result<(), ElasticError> {
    match settings.text("field")?.as_deref() {
        Some("@timestamp" | "timestamp") => Ok(()),
        Some(other) => Err(only_the_timestamp(kind, other)),
        None => Err(ElasticError::parsing(format!("[{kind}] needs [field]"))),
    }
}

fn only_the_timestamp(kind: &str, name: &str) -> ElasticError {
    ElasticError::illegal(format!("[{kind}] is over @timestamp only; [{}] is not a date", shown(name)))
}

fn format_of(settings: &mut Members) -> Result<DateFormat, ElasticError> {
    let Some(name) = settings.text("format")? else { return Ok(DateFormat::default()) };
    DateFormat::named(&name).ok_or_else(|| super::dsl::unknown_format(&name))
}

fn zone_of(settings: &mut Members) -> Result<FixedOffset, ElasticError> {
    let Some(name) = settings.text("time_zone")? else { return Ok(date::utc()) };
    date::zone(&name).ok_or_else(|| super::dsl::unknown_zone(&name))
}

/// A pipeline that is read when all else beside it is.
struct Waiting {
    name: String,
    kind: String,
    settings: Value,
    meta: Option<Value>,
}

/// Puts the pipelines behind `tree`, each behind what it reads.
fn pipelines_last(
    mut tree: Vec<Aggregation>,
    mut waiting: Vec<Waiting>,
    parent: Option<&str>,
) -> Result<Vec<Aggregation>, ElasticError> {
    while !waiting.is_empty() {
        let (before, mut refused, mut later) = (tree.len(), None, Vec::new());
        for one in waiting {
            match pipeline(&one.kind, one.settings.clone(), parent, &tree) {
                Ok(pipeline) => {
                    let kind = AggregationKind::Pipeline(pipeline);
                    tree.push(Aggregation { name: one.name, kind, inner: Vec::new(), meta: one.meta });
                }
                Err(Unread::Path(error)) => {
                    refused = Some(error);
                    later.push(one);
                }
                Err(Unread::Wrong(error)) => return Err(error),
            }
        }
        match refused {
            Some(error) if tree.len() == before => return Err(error),
            _ => waiting = later,
        }
    }
    Ok(tree)
}

fn holds_none(name: &str) -> ElasticError {
    ElasticError::parsing(format!("[{name}] is a metric and cannot hold aggregations"))
}

fn rate(mut settings: Members, parent: Option<&str>) -> Result<AggregationKind, ElasticError> {
    if parent != Some("date_histogram") {
        return Err(ElasticError::illegal("[rate] must lie directly inside a date_histogram"));
    }
    let unit_ms = match settings.text("unit")?.as_deref() {
        None => None,
        Some("second") => Some(1000),
        Some("minute") => Some(60_000),
        Some("hour") => Some(3_600_000),
        Some("day") => Some(DAY_MS),
        Some("week") => Some(7 * DAY_MS),
        Some(other) => {
            let reason =
                format!("[rate] unit [{}] is not supported, only second, minute, hour, day and week", shown(other));
            return Err(ElasticError::illegal(reason));
        }
    };
    let mode = settings.text("mode")?;
    let has_field = settings.has("field");
    let of = match (mode.as_deref(), has_field) {
        (None | Some("sum" | "value_count"), false) => RateOf::Messages,
        (None | Some("sum"), true) => RateOf::Sum(column(&mut settings, "rate")?),
        (Some("value_count"), true) => RateOf::Count(column(&mut settings, "rate")?),
        (Some(other), _) => return Err(ElasticError::unsupported(&format!("[rate] mode [{other}]"))),
    };
    settings.ignore(&["format"]);
    settings.done()?;
    Ok(AggregationKind::Rate { of, unit_ms })
}

/// The kind of an interval and, where it is fixed, its length in milliseconds.
fn interval_of(text: &str, is_calendar: bool) -> Option<(Interval, i64)> {
    let calendar = match text {
        "1M" | "month" => Some(Calendar::Month),
        "1q" | "quarter" => Some(Calendar::Quarter),
        "1y" | "year" => Some(Calendar::Year),
        _ => None,
    };
    if let Some(calendar) = calendar {
        return Some((Interval::Calendar(calendar), 0));
    }
    let length = match text {
        "minute" | "1m" => 60_000,
        "hour" | "1h" => 3_600_000,
        "day" | "1d" => DAY_MS,
        "week" | "1w" if is_calendar => 7 * DAY_MS,
        _ if is_calendar => return None,
        _ => length(text).filter(|length| *length > 0)?,
    };
    Some((Interval::Fixed, length))
}

/// A length like `500ms`, `15s`, `2h`, `1d`.
pub(super) fn length(text: &str) -> Option<i64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => DAY_MS,
        "w" => 7 * DAY_MS,
        _ => return None,
    };
    number.parse::<i64>().ok()?.checked_mul(unit).filter(|length| *length <= 100_000 * DAY_MS)
}

fn signed_length(text: &str) -> Option<i64> {
    match text.strip_prefix('-') {
        Some(rest) => length(rest).map(|length| -length),
        None => length(text.strip_prefix('+').unwrap_or(text)),
    }
}
