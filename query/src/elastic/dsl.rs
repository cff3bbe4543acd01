//! Elasticsearch's query DSL as the tree that every search is made of. Pure: `now` is given.
//!
//! | query | what it becomes |
//! |---|---|
//! | `match_all`, `match_none` | every message, none |
//! | `match`, `multi_match` | words of a field, any of them unless `operator` says all |
//! | `match_phrase`, `match_phrase_prefix`, `match_bool_prefix` | a phrase; the last word as a prefix |
//! | `term`, `terms`, `prefix`, `range`, `exists`, `ids` | one value of a field, several, a prefix, a range, any, places |
//! | `wildcard`, `regexp` | words that fit a pattern, see `search/pattern.rs` |
//! | `bool`, `constant_score`, `dis_max`, `boosting`'s parts | clauses; `dis_max` adds scores up |
//! | `query_string` | the query language, with OR between words unless `default_operator` says AND, and times as in `range` |
//!
//! Fields are those of the index: `value`, `key`, `headers.<name>`, `json.<path>`, `offset`, `@timestamp` (or
//! `timestamp`), `_index` (or `topic`), `partition`, `_id`. What is not listed is refused by name. Depth and number of
//! clauses are limited, because the body comes from the network and every clause costs in every split.
//!
//! Text without any word (`---`) finds nothing, wherever it stands; inside a `query_string` its part is left out,
//! unless nothing else is there. An empty `query_string` finds nothing either.

use std::ops::Bound;

use chrono::FixedOffset;
use serde_json::Value;
use thermocline_ingest::model::Timestamp;

use super::date::{self, DateFormat};
use super::error::{ElasticError, shown};
use super::object::{Members, number_of};
use crate::search::ast::{FieldName, Literal, LiteralValue, Operator, QueryError, QueryNode, SearchQuery};
use crate::search::pattern::{Case, PATTERNS_MAX, Part, Pattern, too_many};
use crate::time::Rounding;

/// Queries in one request, those of aggregations included.
pub(crate) const CLAUSES_MAX: usize = 1024;
/// Queries inside each other.
pub(crate) const NESTING_MAX: usize = 20;

const FIELDS: &str = "value, key, headers.<name>, json.<path>, offset, partition, @timestamp, _index and _id";

/// Reads the queries of one request.
pub(crate) struct Dsl {
    now: Timestamp,
    clauses_left: usize,
    patterns_left: usize,
    nesting_left: usize,
}

impl Dsl {
    pub fn new(now: Timestamp) -> Self {
        Self { now, clauses_left: CLAUSES_MAX, patterns_left: PATTERNS_MAX, nesting_left: NESTING_MAX }
    }

    /// One query with what is in it.
    pub fn query(&mut self, value: Value) -> Result<QueryNode, ElasticError> {
        self.clauses_left = self.clauses_left.checked_sub(1).ok_or_else(too_many_clauses)?;
        self.nesting_left = self
            .nesting_left
            .checked_sub(1)
            .ok_or_else(|| ElasticError::illegal(format!("more than {NESTING_MAX} queries lie inside each other")))?;
        let (kind, body) = Members::of("query", value)?.only()?;
        let node = self.of_kind(&kind, body);
        self.nesting_left += 1;
        node
    }

    fn of_kind(&mut self, kind: &str, body: Value) -> Result<QueryNode, ElasticError> {
        match kind {
            // The one query whose value may be an array, under its field.
            "terms" => return self.terms(Members::of(kind, body)?),
            "match"
            | "match_phrase"
            | "match_phrase_prefix"
            | "match_bool_prefix"
            | "term"
            | "prefix"
            | "wildcard"
            | "regexp"
            | "range" => return self.of_field(kind, body),
            _ => {}
        }
        let mut members = Members::of(kind, body)?;
        let boost = members.number("boost")?;
        members.ignore(&["_name"]);
        let node = match kind {
            "match_all" => QueryNode::All,
            "match_none" => QueryNode::Nothing,
            "multi_match" => self.multi_match(&mut members)?,
            "exists" => {
                let field = text(&mut members, "exists", "field")?;
                QueryNode::Exists { field: self.field(&field)? }
            }
            "ids" => self.ids(&mut members)?,
            "bool" => self.boolean(&mut members)?,
            "constant_score" => {
                let filter = members.required("filter")?;
                bool_of(Vec::new(), vec![self.query(filter)?])
            }
            "dis_max" => {
                let queries = self.list(members.required("queries")?)?;
                members.ignore(&["tie_breaker"]);
                any_of(queries)
            }
            "query_string" => self.query_string(&mut members)?,
            "simple_query_string" => {
                return Err(ElasticError::illegal("[simple_query_string] is not supported; use [query_string]"));
            }
            other => return Err(ElasticError::unsupported(&format!("the query [{other}]"))),
        };
        members.done()?;
        boosted(node, boost)
    }

    /// A query under the name of its field: `{"field": value}` or `{"field": {"query": value, ...}}`.
    fn of_field(&mut self, kind: &str, body: Value) -> Result<QueryNode, ElasticError> {
        let (name, settings) = Members::of(kind, body)?.only()?;
        let mut settings = match settings {
            Value::Object(_) => Members::of(kind, settings)?,
            // Short for the value alone.
            value if kind != "range" => {
                let inner = if kind.starts_with("match") { "query" } else { "value" };
                Members::of(kind, serde_json::json!({inner: value}))?
            }
            other => Members::of(kind, other)?,
        };
        let boost = settings.number("boost")?;
        settings.ignore(&["_name"]);
        let node = match kind {
            "range" => self.range(&name, &mut settings)?,
            "term" => {
                let value = settings.required("value")?;
                refuse_flag(&mut settings, "case_insensitive")?;
                self.equal(&name, value)?
            }
            "prefix" => {
                let text = text(&mut settings, kind, "value")?;
                refuse_flag(&mut settings, "case_insensitive")?;
                settings.ignore(&["rewrite"]);
                zero_terms_none(QueryNode::Prefix { field: self.field(&name)?, text: text.into() })
            }
            "wildcard" => {
                let pattern = settings.take("wildcard").or_else(|| settings.take("value"));
                let pattern = pattern.as_ref().and_then(Value::as_str).unwrap_or_default().to_owned();
                settings.ignore(&["rewrite", "case_insensitive"]);
                self.wildcard(&name, &pattern)?
            }
            "regexp" => {
                let pattern = text(&mut settings, kind, "value")?;
                settings.ignore(&["rewrite", "case_insensitive", "flags", "max_determinized_states"]);
                let field = self.field(&name)?;
                self.count_patterns(kind, 1)?;
                let pattern =
                    Pattern::regex(&pattern, case_of(&field), None).map_err(|error| unreadable(kind, error))?;
                QueryNode::Pattern { field, pattern }
            }
            _ => self.matching(kind, &name, &mut settings)?,
        };
        settings.done()?;
        boosted(node, boost)
    }

    fn matching(&mut self, kind: &str, name: &str, settings: &mut Members) -> Result<QueryNode, ElasticError> {
        let query = settings.required("query")?;
        let operator = operator_of(settings, "operator")?;
        let minimum = settings.take("minimum_should_match");
        let slop = settings.count("slop")?.unwrap_or(0);
        refuse_fuzzy(settings)?;
        settings.ignore(&["lenient", "auto_generate_synonyms_phrase_query", "max_expansions"]);
        if settings.text("zero_terms_query")?.is_some_and(|what| what != "none") {
            return Err(ElasticError::unsupported(&format!("[{kind}] zero_terms_query other than none")));
        }
        if self.is_time(name) || name == "_id" {
            return self.equal(name, query);
        }
        let field = self.field(name)?;
        let text =
            scalar_text(&query).ok_or_else(|| settings.wrong("query", "a text, a number or a truth value", &query))?;
        let slop = u32::try_from(slop).unwrap_or(u32::MAX);
        let node = match kind {
            "match" => {
                let operator = match minimum.as_ref().map(|value| (value.as_i64(), value.as_str())) {
                    None | Some((Some(1), _) | (_, Some("1"))) => operator.unwrap_or(Operator::Or),
                    Some((_, Some("100%"))) => Operator::And,
                    Some(_) => {
                        return Err(ElasticError::unsupported("[match] minimum_should_match other than 1 and 100%"));
                    }
                };
                QueryNode::Words { field, text: text.into(), operator }
            }
            "match_phrase" => QueryNode::Phrase { field, text: text.into(), slop },
            // The words before the last one, and one that starts like it. Whether it stands behind them is not checked.
            _ => {
                let (before, last) = match text.trim_end().rsplit_once(char::is_whitespace) {
                    Some((before, last)) => (before.trim(), last),
                    None => ("", text.trim_end()),
                };
                let prefix = QueryNode::Prefix { field: field.clone(), text: last.into() };
                if before.is_empty() {
                    prefix
                } else if kind == "match_phrase_prefix" {
                    let reason = "[match_phrase_prefix] of several words is not supported; use [match_phrase], or \
                                  [match_bool_prefix]";
                    return Err(ElasticError::illegal(reason));
                } else {
                    let operator = operator.unwrap_or(Operator::Or);
                    let words = QueryNode::Words { field, text: before.into(), operator };
                    match operator {
                        Operator::And => bool_of(vec![words, prefix], Vec::new()),
                        Operator::Or => any_of(vec![words, prefix]),
                    }
                }
            }
        };
        Ok(zero_terms_none(node))
    }

    fn multi_match(&mut self, members: &mut Members) -> Result<QueryNode, ElasticError> {
        let query = members.required("query")?;
        let kind = match members.text("type")?.as_deref() {
            None | Some("best_fields" | "most_fields") => "match",
            Some("phrase") => "match_phrase",
            Some("bool_prefix") => "match_bool_prefix",
            Some(other) => return Err(ElasticError::unsupported(&format!("[multi_match] type [{other}]"))),
        };
        let fields = match members.take("fields") {
            None => vec![Value::from("value")],
            Some(Value::Array(fields)) => fields,
            Some(field) => vec![field],
        };
        let operator = members.take("operator");
        let slop = members.take("slop");
        refuse_fuzzy(members)?;
        members.ignore(&["lenient", "tie_breaker", "auto_generate_synonyms_phrase_query"]);
        let mut any = Vec::with_capacity(fields.len());
        for field in fields {
            self.clauses_left = self.clauses_left.checked_sub(1).ok_or_else(too_many_clauses)?;
            let field = field.as_str().ok_or_else(|| members.wrong("fields", "a list of names", &field))?;
            let (name, boost) = match field.split_once('^') {
                Some((name, boost)) => (name, number_of(&Value::from(boost))),
                None => (field, None),
            };
            // The same as a star alone: every field that text is looked for in without saying so.
            let name = if name == "*" { "value" } else { name };
            let mut settings = serde_json::json!({"query": query});
            for (name, value) in [("operator", &operator), ("slop", &slop)] {
                if let (Some(value), Value::Object(settings)) = (value, &mut settings) {
                    settings.insert(name.to_owned(), value.clone());
                }
            }
            let mut settings = Members::of("multi_match", settings)?;
            any.push(boosted(self.matching(kind, name, &mut settings)?, boost)?);
        }
        Ok(any_of(any))
    }

    fn terms(&mut self, mut members: Members) -> Result<QueryNode, ElasticError> {
        let boost = members.number("boost")?;
        members.ignore(&["_name"]);
        let (name, values) = members.only()?;
        let Value::Array(values) = values else {
            return Err(ElasticError::unsupported("[terms] without a list of values"));
        };
        let mut any = Vec::with_capacity(values.len().min(CLAUSES_MAX));
        for value in values {
            self.clauses_left = self.clauses_left.checked_sub(1).ok_or_else(too_many_clauses)?;
            any.push(self.equal(&name, value)?);
        }
        boosted(any_of(any), boost)
    }

    fn ids(&mut self, members: &mut Members) -> Result<QueryNode, ElasticError> {
        let values = match members.required("values")? {
            Value::Array(values) => values,
            value => vec![value],
        };
        let mut any = Vec::with_capacity(values.len().min(CLAUSES_MAX));
        for value in values {
            self.clauses_left = self.clauses_left.checked_sub(1).ok_or_else(too_many_clauses)?;
            // An id that no message can have is not an error: there is no such document.
            any.extend(value.as_str().map(QueryNode::with_id).filter(|node| *node != QueryNode::Nothing));
        }
        Ok(any_of(any))
    }

    /// `field` is `value`.
    fn equal(&mut self, name: &str, value: Value) -> Result<QueryNode, ElasticError> {
        if self.is_time(name) {
            let at = |round| self.moment(&value, DateFormat::default(), round, date::utc());
            let (lower, upper) = (at(Rounding::Down)?, at(Rounding::Up)?);
            return Ok(QueryNode::Range {
                field: self.field(name)?,
                lower: Bound::Included(lower.into()),
                upper: Bound::Included(upper.into()),
            });
        }
        if name == "_id" {
            return Ok(QueryNode::with_id(value.as_str().unwrap_or_default()));
        }
        let value = literal(&value).ok_or_else(|| {
            let reason = format!("the value of [{}] must be a text, a number or a truth value", shown(name));
            ElasticError::parsing(reason)
        })?;
        Ok(zero_terms_none(QueryNode::Exact { field: self.field(name)?, value }))
    }

    fn count_patterns(&mut self, kind: &str, count: usize) -> Result<(), ElasticError> {
        let left = self.patterns_left.checked_sub(count).ok_or_else(|| unreadable(kind, too_many(None)))?;
        self.patterns_left = left;
        Ok(())
    }

    fn wildcard(&mut self, name: &str, pattern: &str) -> Result<QueryNode, ElasticError> {
        let field = self.field(name)?;
        match Part::all_of(pattern).as_slice() {
            [Part::Any] => Ok(QueryNode::Exists { field }),
            [Part::Text(start), Part::Any] => {
                Ok(zero_terms_none(QueryNode::Prefix { field, text: start.as_str().into() }))
            }
            [Part::Text(text)] => self.equal(name, text.as_str().into()),
            parts => {
                self.count_patterns("wildcard", 1)?;
                let pattern = Pattern::wildcard(parts, case_of(&field), None);
                let pattern = pattern.map_err(|error| unreadable("wildcard", error))?;
                Ok(QueryNode::Pattern { field, pattern })
            }
        }
    }

    fn boolean(&mut self, members: &mut Members) -> Result<QueryNode, ElasticError> {
        let mut clauses = |name: &str| match members.take(name) {
            Some(value) => self.list(value),
            None => Ok(Vec::new()),
        };
        let (must, should) = (clauses("must")?, clauses("should")?);
        let (must_not, filter) = (clauses("must_not")?, clauses("filter")?);
        let minimum = members.take("minimum_should_match");
        members.ignore(&["adjust_pure_negative"]);
        let minimum_should_match = match minimum {
            None => usize::from(must.is_empty() && filter.is_empty() && !should.is_empty()),
            Some(value) => minimum_of(&value, should.len())
                .ok_or_else(|| members.wrong("minimum_should_match", "a whole number or a percentage", &value))?,
        };
        if minimum_should_match > should.len() {
            return Ok(QueryNode::Nothing);
        }
        let is_empty = must.is_empty() && should.is_empty() && filter.is_empty();
        if is_empty && must_not.is_empty() {
            return Ok(QueryNode::All);
        }
        // A query that only excludes, or whose clauses are all optional, starts from every message.
        let filter = if must.is_empty() && filter.is_empty() && minimum_should_match == 0 {
            vec![QueryNode::All]
        } else {
            filter
        };
        Ok(QueryNode::Bool { must, should, must_not, filter, minimum_should_match })
    }

    fn list(&mut self, value: Value) -> Result<Vec<QueryNode>, ElasticError> {
        match value {
            Value::Array(queries) => queries.into_iter().map(|query| self.query(query)).collect(),
            query => Ok(vec![self.query(query)?]),
        }
    }

    fn query_string(&mut self, members: &mut Members) -> Result<QueryNode, ElasticError> {
        let query = text(members, "query_string", "query")?;
        let operator = operator_of(members, "default_operator")?.unwrap_or(Operator::Or);
        let mut fields = match members.take("fields") {
            None => Vec::new(),
            Some(Value::Array(fields)) => fields,
            Some(field) => vec![field],
        };
        fields.extend(members.take("default_field"));
        for field in fields {
            if !matches!(field.as_str(), Some("value" | "*")) {
                let reason = "[query_string] looks for words in [value]; name another field in the query, as in key:x";
                return Err(ElasticError::illegal(reason));
            }
        }
        members.ignore(&[
            "analyze_wildcard",
            "lenient",
            "allow_leading_wildcard",
            "auto_generate_synonyms_phrase_query",
            "enable_position_increments",
            "escape",
            "max_determinized_states",
            "phrase_slop",
        ]);
        // By itself the language takes it for every message.
        if query.trim().is_empty() {
            return Ok(QueryNode::Nothing);
        }
        let parsed = SearchQuery::parse_with(&query, self.now, operator);
        let root = parsed.map_err(|error| unreadable("query_string", error))?.root;
        self.count_patterns("query_string", root.patterns())?;
        Ok(zero_terms_none(self.rounded_times(root)))
    }

    /// The field that a name means.
    pub fn field(&self, name: &str) -> Result<FieldName, ElasticError> {
        let inside = |start: &str| name.strip_prefix(start).is_some_and(|rest| !rest.is_empty());
        match name {
            "@timestamp" => Ok("timestamp".into()),
            "_index" => Ok("topic".into()),
            "value" | "key" | "timestamp" | "offset" | "topic" | "partition" | "_id" => Ok(name.into()),
            _ if inside("json.") || inside("headers.") => Ok(name.into()),
            _ => Err(ElasticError::illegal(format!("there is no field [{}], only {FIELDS}", shown(name)))),
        }
    }

    pub fn is_time(&self, name: &str) -> bool {
        matches!(name, "@timestamp" | "timestamp")
    }

    /// A point in time, in milliseconds.
    pub fn moment(
        &self,
        value: &Value,
        format: DateFormat,
        round: Rounding,
        zone: FixedOffset,
    ) -> Result<i64, ElasticError> {
        let moment = match value {
            Value::Number(number) if format == DateFormat::Seconds => number.as_i64().and_then(|s| s.checked_mul(1000)),
            // A fraction of a millisecond is cut off.
            Value::Number(number) => number.as_i64().or_else(|| number.as_f64().map(|millis| millis.floor() as i64)),
            Value::String(text) => date::parse(text, format, round, self.now.0, zone),
            _ => None,
        };
        moment.ok_or_else(|| ElasticError::parsing(format!("[{}] is not a time", shown(&value.to_string()))))
    }
}

fn case_of(field: &FieldName) -> Case {
    if field.name == "topic" { Case::Kept } else { Case::Folded }
}

/// A query whose text is wrong.
fn unreadable(kind: &str, error: QueryError) -> ElasticError {
    let place = error.column.map(|column| format!(" (at column {column})")).unwrap_or_default();
    ElasticError::parsing(format!("[{kind}] {}{place}", error.message))
}

pub(crate) fn unknown_format(name: &str) -> ElasticError {
    let known = "strict_date_optional_time, epoch_millis and epoch_second";
    ElasticError::illegal(format!("the date format [{}] is not supported, only {known}", shown(name)))
}

pub(crate) fn unknown_zone(name: &str) -> ElasticError {
    let reason = format!("the time zone [{}] is not supported; give an offset from UTC, like +02:00", shown(name));
    ElasticError::illegal(reason)
}

fn too_many_clauses() -> ElasticError {
    let reason = format!("the request has more than {CLAUSES_MAX} query clauses");
    ElasticError { status: 400, kind: "too_many_clauses", reason }
}

fn bool_of(must: Vec<QueryNode>, filter: Vec<QueryNode>) -> QueryNode {
    QueryNode::Bool { must, should: Vec::new(), must_not: Vec::new(), filter, minimum_should_match: 0 }
}

fn any_of(mut should: Vec<QueryNode>) -> QueryNode {
    match should.len() {
        0 => QueryNode::Nothing,
        1 => should.remove(0),
        _ => {
            let (must, must_not, filter) = (Vec::new(), Vec::new(), Vec::new());
            QueryNode::Bool { must, should, must_not, filter, minimum_should_match: 1 }
        }
    }
}

/// `zero_terms_query: none`, where there may be no word.
fn zero_terms_none(node: QueryNode) -> QueryNode {
    match node {
        QueryNode::Words { .. }
        | QueryNode::Phrase { .. }
        | QueryNode::Prefix { .. }
        | QueryNode::Exact { .. }
        | QueryNode::Bool { .. }
        | QueryNode::Boost { .. } => QueryNode::ZeroTermsNone { node: Box::new(node) },
        other => other,
    }
}

fn boosted(node: QueryNode, boost: Option<f64>) -> Result<QueryNode, ElasticError> {
    match boost {
        None | Some(1.0) => Ok(node),
        Some(factor) if (0.0..=f64::from(crate::search::BOOST_MAX)).contains(&factor) => {
            Ok(QueryNode::Boost { node: Box::new(node), factor: factor as f32 })
        }
        Some(factor) => {
            let max = f64::from(crate::search::BOOST_MAX);
            Err(ElasticError::illegal(format!("[boost] {factor} must be 0 to {max}")))
        }
    }
}

fn text(members: &mut Members, kind: &str, name: &str) -> Result<String, ElasticError> {
    let value = members.required(name)?;
    scalar_text(&value).ok_or_else(|| ElasticError::parsing(format!("[{kind}] [{name}] must be a text")))
}

/// A text, or what a number or truth value looks like as one.
fn scalar_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        _ => None,
    }
}

pub(super) fn literal(value: &Value) -> Option<Literal> {
    let value = match value {
        Value::String(text) => LiteralValue::Text(text.clone()),
        Value::Bool(value) => LiteralValue::Bool(*value),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => LiteralValue::I64(number),
            (_, Some(number)) => LiteralValue::U64(number),
            _ => LiteralValue::F64(number.as_f64()?),
        },
        _ => return None,
    };
    Some(value.into())
}

fn operator_of(members: &mut Members, name: &str) -> Result<Option<Operator>, ElasticError> {
    match members.text(name)?.map(|operator| operator.to_ascii_lowercase()).as_deref() {
        None => Ok(None),
        Some("and") => Ok(Some(Operator::And)),
        Some("or") => Ok(Some(Operator::Or)),
        Some(other) => Err(ElasticError::parsing(format!("[{name}] [{}] is neither and nor or", shown(other)))),
    }
}

fn refuse_flag(members: &mut Members, name: &str) -> Result<(), ElasticError> {
    match members.flag(name)? {
        Some(true) => Err(ElasticError::unsupported(&format!("[{name}]"))),
        _ => Ok(()),
    }
}

/// Fuzziness of no edits at all is what there is.
fn refuse_fuzzy(members: &mut Members) -> Result<(), ElasticError> {
    members.ignore(&["prefix_length", "fuzzy_transpositions", "fuzzy_rewrite"]);
    match members.take("fuzziness").as_ref().and_then(scalar_text).as_deref() {
        None | Some("0") => Ok(()),
        Some(_) => Err(ElasticError::unsupported("[fuzziness]")),
    }
}

/// How many of `count` clauses have to match: `2`, `-1` (all but one), `75%`, `-25%`.
fn minimum_of(value: &Value, count: usize) -> Option<usize> {
    let count = i64::try_from(count).ok()?;
    let given = scalar_text(value)?;
    let given = given.trim();
    let minimum = match given.strip_suffix('%') {
        Some(percent) => {
            let percent: i64 = percent.parse().ok().filter(|percent| (-100..=100).contains(percent))?;
            // Cut off towards zero, on either side.
            let part = count * percent / 100;
            if percent < 0 { count + part } else { part }
        }
        None => {
            let number: i64 = given.parse().ok()?;
            if number < 0 { count.checked_add(number)? } else { number }
        }
    };
    usize::try_from(minimum.max(0)).ok()
}
