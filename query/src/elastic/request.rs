//! The body and the parameters of a search, checked. Pure.
//!
//! What is not known is refused; what changes nothing here (`preference`, `request_cache`, `timeout`, ...) is taken and
//! dropped. Parameters of the address win over the body where both say the same, as in Elasticsearch.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use thermocline_ingest::model::{Offset, PartitionId, TOPIC_NAME_LEN_MAX, Timestamp, TopicName};

use super::date::{DateFormat, utc};
use super::document::{FieldPattern, SourceFilter, id_of};
use super::dsl::Dsl;
use super::error::{ElasticError, shown};
use super::index::IndexOptions;
use super::object::{Members, flag_of, kind_of};
use crate::search::aggregate::Aggregation;
use crate::search::ast::{QueryNode, place_of};
use crate::search::rank::{Rank, SortKey};
use crate::search::{HIGHLIGHT_TAG_LEN_MAX, HighlightOptions, Hit, Sort, TotalWanted};
use crate::time::Rounding;

/// Hits where a request does not say.
const SIZE_DEFAULT: u64 = 10;
/// How far totals are exact where a request does not say.
const TOTAL_DEFAULT: u64 = 10_000;
/// Names and patterns in `_source`, `fields` and `highlight`.
const PATTERNS_MAX: usize = 256;

/// A search as Elasticsearch's clients write it.
#[derive(Clone, Debug)]
pub(crate) struct SearchBody {
    pub query: QueryNode,
    /// Hits that are skipped.
    pub from: usize,
    pub size: usize,
    pub order: Order,
    pub after: Option<SortKey>,
    pub source: SourceFilter,
    pub fields: Vec<FieldPattern>,
    pub highlight: Option<HighlightOptions>,
    pub total: TotalWanted,
    pub aggregations: Vec<Aggregation>,
    /// The point in time that names the indices.
    pub pit: Option<String>,
}

/// How hits are ordered, and what their `sort` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    pub sort: Sort,
    pub shown: Shown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// The request names no order: hits show none.
    Nothing,
    /// The time and the place.
    Time(DateFormat),
    /// The score and the place.
    Score,
    /// Time and place in one.
    Place,
}

/// Parameters of an address, as they stand there.
pub(crate) type Parameters = BTreeMap<String, String>;

/// Parameters that change nothing here.
const HARMLESS: [&str; 14] = [
    "pretty",
    "human",
    "error_trace",
    "filter_path",
    "preference",
    "routing",
    "request_cache",
    "batched_reduce_size",
    "ccs_minimize_roundtrips",
    "max_concurrent_shard_requests",
    "pre_filter_shard_size",
    "ignore_throttled",
    "timeout",
    "allow_partial_search_results",
];

/// What the address says about indices that are not there. Harmless parameters are dropped with them.
pub(crate) fn index_options(parameters: &mut Parameters) -> Result<IndexOptions, ElasticError> {
    let mut options = IndexOptions::default();
    for (name, flag) in
        [("ignore_unavailable", &mut options.ignore_unavailable), ("allow_no_indices", &mut options.allow_no_indices)]
    {
        if let Some(text) = parameters.remove(name) {
            let reason = || ElasticError::illegal(format!("[{name}] [{}] is neither true nor false", shown(&text)));
            *flag = flag_of(&json!(text)).ok_or_else(reason)?;
        }
    }
    parameters.remove("expand_wildcards");
    HARMLESS.iter().for_each(|name| drop(parameters.remove(*name)));
    Ok(options)
}

/// Refuses parameters that nobody took.
pub(crate) fn no_more(parameters: &Parameters) -> Result<(), ElasticError> {
    match parameters.keys().next() {
        None => Ok(()),
        Some(name) => Err(ElasticError::illegal(format!("the parameter [{}] is not supported", shown(name)))),
    }
}

/// Moves parameters that say what a body may say into the body.
pub(crate) fn with_parameters(body: Value, parameters: &mut Parameters) -> Result<Value, ElasticError> {
    let mut body = match body {
        Value::Null => serde_json::Map::new(),
        Value::Object(members) => members,
        other => return Err(ElasticError::parsing(format!("the body is {}, not an object", kind_of(&other)))),
    };
    if let Some(query) = parameters.remove("q") {
        let mut settings = json!({"query": query});
        for (parameter, name) in [("df", "default_field"), ("default_operator", "default_operator")] {
            if let (Some(value), Value::Object(settings)) = (parameters.remove(parameter), &mut settings) {
                settings.insert(name.to_owned(), json!(value));
            }
        }
        ["analyze_wildcard", "lenient", "analyzer"].iter().for_each(|name| drop(parameters.remove(*name)));
        body.insert("query".to_owned(), json!({"query_string": settings}));
    }
    for name in ["from", "size", "track_total_hits", "track_scores", "version", "seq_no_primary_term"] {
        if let Some(value) = parameters.remove(name) {
            body.insert(name.to_owned(), json!(value));
        }
    }
    if let Some(sort) = parameters.remove("sort") {
        let keys = sort.split(',').map(|key| match key.split_once(':') {
            Some((field, order)) => json!({field: {"order": order}}),
            None => json!(key),
        });
        body.insert("sort".to_owned(), keys.collect());
    }
    let list = |text: &str| text.split(',').map(|name| json!(name)).collect::<Value>();
    if let Some(source) = parameters.remove("_source") {
        let value = flag_of(&json!(source)).map_or_else(|| list(&source), Value::Bool);
        body.insert("_source".to_owned(), value);
    }
    let includes = parameters.remove("_source_includes");
    let excludes = parameters.remove("_source_excludes");
    if includes.is_some() || excludes.is_some() {
        let patterns = |names: Option<String>| names.map_or_else(|| json!([]), |names| list(&names));
        body.insert("_source".to_owned(), json!({"includes": patterns(includes), "excludes": patterns(excludes)}));
    }
    if let Some(fields) = parameters.remove("docvalue_fields") {
        body.insert("docvalue_fields".to_owned(), list(&fields));
    }
    if parameters.remove("search_type").is_some_and(|kind| kind != "query_then_fetch") {
        return Err(ElasticError::unsupported("[search_type] other than query_then_fetch"));
    }
    Ok(Value::Object(body))
}

impl SearchBody {
    /// Reads a body; null is an empty one.
    pub fn parse(body: Value, now: Timestamp, buckets_max: u32) -> Result<Self, ElasticError> {
        let body = if body.is_null() { json!({}) } else { body };
        let mut members = Members::of("search", body)?;
        let mut dsl = Dsl::new(now);
        let query = members.take("query").map(|query| dsl.query(query)).transpose()?.unwrap_or(QueryNode::All);
        let aggregations = members.take("aggs").or_else(|| members.take("aggregations"));
        let aggregations = aggregations.map(|aggs| super::aggs::parse(aggs, &mut dsl, buckets_max)).transpose()?;
        let order = match members.take("sort") {
            Some(sort) => order_of(sort)?,
            // Without anything that scores, every order is as good; the newest messages are the ones looked for.
            None if !scores(&query) => Order { sort: Sort::NewestFirst, shown: Shown::Nothing },
            None => Order { sort: Sort::Score, shown: Shown::Nothing },
        };
        let after = members.take("search_after").map(|after| after_of(after, order, &dsl)).transpose()?;
        let count = |value: Option<u64>, default| usize::try_from(value.unwrap_or(default)).unwrap_or(usize::MAX);
        let from = count(members.count("from")?, 0);
        if from > 0 && after.is_some() {
            return Err(ElasticError::illegal("[from] must be 0 where [search_after] is given"));
        }
        let size = count(members.count("size")?, SIZE_DEFAULT);
        let fields = [members.take("fields"), members.take("docvalue_fields")];
        let mut patterns = Vec::new();
        for list in fields.into_iter().flatten() {
            patterns.extend(patterns_of(list)?);
        }
        let pit = members.take("pit").map(|pit| {
            let mut pit = Members::of("pit", pit)?;
            let id = pit.text("id")?.ok_or_else(|| ElasticError::parsing("[pit] needs [id]"))?;
            pit.ignore(&["keep_alive"]);
            pit.done()?;
            Ok::<_, ElasticError>(id)
        });
        let parsed = Self {
            query,
            from,
            size,
            order,
            after,
            source: members.take("_source").map(source_of).transpose()?.unwrap_or_default(),
            fields: patterns,
            highlight: members.take("highlight").map(highlight_of).transpose()?,
            total: total_of(members.take("track_total_hits"))?,
            aggregations: aggregations.unwrap_or_default(),
            pit: pit.transpose()?,
        };
        for name in ["explain", "profile"] {
            if members.flag(name)? == Some(true) {
                return Err(ElasticError::unsupported(&format!("[{name}]")));
            }
        }
        for name in ["script_fields", "runtime_mappings"] {
            if members.take(name).is_some_and(|value| value.as_object().is_none_or(|members| !members.is_empty())) {
                return Err(ElasticError::unsupported(&format!("[{name}]")));
            }
        }
        // Nothing but the message itself is stored.
        members.ignore(&["stored_fields", "timeout", "track_scores", "version", "seq_no_primary_term", "stats"]);
        members.done()?;
        Ok(parsed)
    }
}

/// Whether scores of matches can differ.
fn scores(query: &QueryNode) -> bool {
    match query {
        QueryNode::Words { .. }
        | QueryNode::Phrase { .. }
        | QueryNode::Prefix { .. }
        | QueryNode::Pattern { .. }
        | QueryNode::Exact { .. } => true,
        QueryNode::Bool { must, should, .. } => must.iter().chain(should).any(scores),
        QueryNode::Boost { node, .. } | QueryNode::ZeroTermsNone { node } => scores(node),
        QueryNode::All | QueryNode::Nothing | QueryNode::Range { .. } | QueryNode::Exists { .. } => false,
    }
}

/// `sort`: a time or the score, and beside it at most `_doc`, which is our order of ties in any case.
fn order_of(value: Value) -> Result<Order, ElasticError> {
    let keys = match value {
        Value::Array(keys) => keys,
        key => vec![key],
    };
    let mut order: Option<Order> = None;
    for key in keys {
        let named = match key {
            Value::String(name) => vec![(name, json!({}))],
            key => Members::of("sort", key)?.rest().into_iter().collect(),
        };
        // The members of one object have no order; the place is the last of them wherever it stands.
        let (places, names): (Vec<_>, Vec<_>) = named.into_iter().partition(|(name, _)| is_place(name));
        for (name, settings) in names.into_iter().chain(places) {
            let key = order_key(&name, settings)?;
            order = match (order, key) {
                (None, key) => Some(key),
                (Some(before), Order { shown: Shown::Place, .. }) => Some(before),
                (Some(_), _) => {
                    return Err(ElasticError::unsupported("[sort] by more than one of @timestamp and _score"));
                }
            };
        }
    }
    order.ok_or_else(|| ElasticError::parsing("[sort] is empty"))
}

fn is_place(name: &str) -> bool {
    matches!(name, "_doc" | "_shard_doc")
}

fn order_key(name: &str, settings: Value) -> Result<Order, ElasticError> {
    let settings = match settings {
        Value::String(order) => json!({"order": order}),
        other => other,
    };
    let mut settings = Members::of("sort", settings)?;
    let order = settings.text("order")?;
    let is_descending = match order.as_deref() {
        None => name == "_score",
        Some("desc") => true,
        Some("asc") => false,
        Some(other) => {
            return Err(ElasticError::parsing(format!("[order] [{}] is neither asc nor desc", shown(other))));
        }
    };
    let format = settings.text("format")?;
    settings.ignore(&["unmapped_type", "missing", "mode", "numeric_type"]);
    settings.done()?;
    match name {
        "@timestamp" | "timestamp" => {
            let format = match format {
                None => DateFormat::Millis,
                Some(name) => DateFormat::named(&name).ok_or_else(|| super::dsl::unknown_format(&name))?,
            };
            let sort = if is_descending { Sort::NewestFirst } else { Sort::OldestFirst };
            Ok(Order { sort, shown: Shown::Time(format) })
        }
        "_score" if is_descending => Ok(Order { sort: Sort::Score, shown: Shown::Score }),
        "_score" => Err(ElasticError::unsupported("[sort] by ascending _score")),
        name if is_place(name) => Ok(Order { sort: Sort::OldestFirst, shown: Shown::Place }),
        other => Err(ElasticError::illegal(format!(
            "[sort] by [{}] is not supported; hits are sorted by @timestamp, _score or _doc",
            shown(other)
        ))),
    }
}

impl Order {
    /// The `sort` of a hit.
    pub fn values(self, hit: &Hit) -> Option<Value> {
        let (place, timestamp) = (id_of(hit), hit.record.timestamp);
        match self.shown {
            Shown::Nothing => None,
            Shown::Time(DateFormat::Millis) => Some(json!([timestamp.0, place])),
            Shown::Time(format) => Some(json!([format.write(timestamp.0), place])),
            Shown::Score => Some(json!([hit.score, place])),
            Shown::Place => Some(json!([format!("{}/{place}", timestamp.0)])),
        }
    }
}

/// The place that `search_after` names: what a hit's `sort` showed, in this or the other direction of time. A time
/// alone stands behind everything of that time.
fn after_of(value: Value, order: Order, dsl: &Dsl) -> Result<SortKey, ElasticError> {
    let wrong = || {
        let shown = shown(&value.to_string());
        ElasticError::illegal(format!("[search_after] {shown} is not what the [sort] of a hit showed under this sort"))
    };
    let values = value.as_array().ok_or_else(wrong)?;
    let place = |id: &str| {
        let (topic, partition, offset) = place_of(id)?;
        Some((TopicName::new(topic).ok()?, PartitionId(partition), Offset(offset)))
    };
    let time_rank = |millis: i64| match order.sort {
        Sort::NewestFirst => Rank::newest(Timestamp(millis)),
        _ => Rank::oldest(Timestamp(millis)),
    };
    let (rank, place) = match (order.shown, values.as_slice()) {
        (Shown::Place, [Value::String(text)]) => {
            let (millis, id) = text.split_once('/').ok_or_else(wrong)?;
            (time_rank(millis.parse().map_err(|_| wrong())?), place(id))
        }
        (Shown::Time(format), [moment, rest @ ..]) => {
            let millis = dsl.moment(moment, format, Rounding::Down, utc())?;
            let place = match rest {
                [] => last_place(),
                [Value::String(id)] => place(id),
                _ => None,
            };
            (time_rank(millis), place)
        }
        (Shown::Score, [Value::Number(score), Value::String(id)]) => {
            (Rank::score(score.as_f64().ok_or_else(wrong)? as f32), place(id))
        }
        (Shown::Nothing, _) => return Err(ElasticError::illegal("[search_after] needs [sort]")),
        _ => return Err(wrong()),
    };
    let (topic, partition, offset) = place.ok_or_else(wrong)?;
    Ok(SortKey { rank, topic, partition, offset })
}

/// A place behind every message's.
fn last_place() -> Option<(TopicName, PartitionId, Offset)> {
    let topic = TopicName::new(&"z".repeat(TOPIC_NAME_LEN_MAX)).ok()?;
    Some((topic, PartitionId(i32::MAX), Offset(i64::MAX)))
}

fn total_of(value: Option<Value>) -> Result<TotalWanted, ElasticError> {
    let Some(value) = value else { return Ok(TotalWanted::AtLeast(TOTAL_DEFAULT)) };
    let count = match &value {
        Value::String(text) => text.parse().ok(),
        other => other.as_u64(),
    };
    match (flag_of(&value), count) {
        (Some(true), _) => Ok(TotalWanted::Exact),
        (Some(false), _) => Ok(TotalWanted::Nothing),
        (None, Some(count)) => Ok(TotalWanted::AtLeast(count)),
        (None, None) => Err(ElasticError::parsing("[track_total_hits] must be true, false or a whole number")),
    }
}

fn names_of(what: &str, value: Value) -> Result<Vec<String>, ElasticError> {
    let list = match value {
        Value::Array(list) => list,
        one => vec![one],
    };
    if list.len() > PATTERNS_MAX {
        return Err(ElasticError::illegal(format!(
            "[{what}] of {} names exceeds the limit of {PATTERNS_MAX}",
            list.len()
        )));
    }
    let name = |value: Value| match value {
        Value::String(name) => Ok(name),
        other => Err(ElasticError::parsing(format!("[{what}] holds {}, not a name", kind_of(&other)))),
    };
    list.into_iter().map(name).collect()
}

fn source_of(value: Value) -> Result<SourceFilter, ElasticError> {
    match value {
        Value::Object(_) => {
            let mut members = Members::of("_source", value)?;
            let mut names = |long: &str, short: &str| {
                let value = members.take(long).or_else(|| members.take(short));
                value.map(|value| names_of("_source", value)).transpose()
            };
            let (includes, excludes) = (names("includes", "include")?, names("excludes", "exclude")?);
            members.done()?;
            let (includes, excludes) = (includes.unwrap_or_default(), excludes.unwrap_or_default());
            Ok(SourceFilter { is_off: false, includes, excludes })
        }
        value => match flag_of(&value) {
            Some(is_on) => Ok(SourceFilter { is_off: !is_on, ..SourceFilter::default() }),
            None => {
                let includes = names_of("_source", value)?;
                Ok(SourceFilter { is_off: false, includes, excludes: Vec::new() })
            }
        },
    }
}

fn patterns_of(value: Value) -> Result<Vec<FieldPattern>, ElasticError> {
    let list = match value {
        Value::Array(list) => list,
        one => vec![one],
    };
    if list.len() > PATTERNS_MAX {
        return Err(ElasticError::illegal(format!(
            "[fields] of {} names exceeds the limit of {PATTERNS_MAX}",
            list.len()
        )));
    }
    let pattern = |value: Value| match value {
        Value::String(pattern) => Ok(FieldPattern { pattern, format: DateFormat::default() }),
        value => {
            let mut members = Members::of("fields", value)?;
            let pattern = members.text("field")?.ok_or_else(|| ElasticError::parsing("[fields] needs [field]"))?;
            let format = match members.text("format")? {
                None => DateFormat::default(),
                Some(name) => DateFormat::named(&name).ok_or_else(|| super::dsl::unknown_format(&name))?,
            };
            members.ignore(&["include_unmapped"]);
            members.done()?;
            Ok(FieldPattern { pattern, format })
        }
    };
    list.into_iter().map(pattern).collect()
}

fn highlight_of(value: Value) -> Result<HighlightOptions, ElasticError> {
    let mut members = Members::of("highlight", value)?;
    let mut options =
        HighlightOptions { escape_html: false, fragment_len: 100, fragments: 5, ..HighlightOptions::default() };
    let fields = match members.required("fields")? {
        Value::Array(list) => {
            let mut all = serde_json::Map::new();
            for field in list {
                all.extend(Members::of("fields", field)?.rest());
            }
            all
        }
        fields => Members::of("fields", fields)?.rest(),
    };
    read_highlight(&mut members, &mut options)?;
    members.done()?;
    for (name, settings) in fields {
        let mut settings = Members::of("fields", settings)?;
        // One way to show matches for all fields; where each has its own, the last one counts.
        read_highlight(&mut settings, &mut options)?;
        settings.done()?;
        let name = if name == "@timestamp" { "timestamp".to_owned() } else { name };
        options.fields.push(name);
    }
    if options.fields.len() > PATTERNS_MAX {
        let reason = format!("[highlight] of {} fields exceeds the limit of {PATTERNS_MAX}", options.fields.len());
        return Err(ElasticError::illegal(reason));
    }
    if options.fields.is_empty() {
        return Err(ElasticError::parsing("[highlight] [fields] is empty"));
    }
    Ok(options)
}

fn read_highlight(members: &mut Members, options: &mut HighlightOptions) -> Result<(), ElasticError> {
    for (name, tag) in [("pre_tags", &mut options.pre), ("post_tags", &mut options.post)] {
        let Some(tags) = members.take(name) else { continue };
        let tags = names_of(name, tags)?;
        if tags.iter().any(|tag| tag.len() > HIGHLIGHT_TAG_LEN_MAX) {
            return Err(ElasticError::illegal(format!("[{name}] is longer than {HIGHLIGHT_TAG_LEN_MAX} bytes")));
        }
        *tag = tags.into_iter().next().unwrap_or_default();
    }
    if let Some(encoder) = members.text("encoder")? {
        options.escape_html = match encoder.as_str() {
            "html" => true,
            "default" => false,
            other => return Err(ElasticError::illegal(format!("[encoder] [{}] is not known", shown(other)))),
        };
    }
    let count = |value: Option<u64>| value.map(|value| usize::try_from(value).unwrap_or(usize::MAX));
    options.fragment_len = count(members.count("fragment_size")?).unwrap_or(options.fragment_len);
    options.fragments = count(members.count("number_of_fragments")?).unwrap_or(options.fragments);
    if members.take("highlight_query").is_some() {
        return Err(ElasticError::unsupported("[highlight_query]"));
    }
    members.ignore(&[
        "type",
        "require_field_match",
        "order",
        "no_match_size",
        "tags_schema",
        "boundary_scanner",
        "boundary_chars",
        "boundary_max_scan",
        "fragmenter",
        "phrase_limit",
        "max_analyzed_offset",
        "matched_fields",
    ]);
    Ok(())
}
