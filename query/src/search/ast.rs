//! A query as a tree: what the query language and other front ends make, and what is built once for every split.
//!
//! The tree knows fields by name and text as it was given. Analysers, schemas and the kinds of JSON leaves belong to a
//! split and are asked when the query of that split is built (`builder.rs`). Topics and times can be decided before any
//! split is opened ([`SearchQuery::may_match`], [`SearchQuery::times`]). Times stay as they were written until then, so
//! that one moment, [`SearchQuery::now`], serves the whole request.

use std::ops::Bound;

use thermocline_ingest::model::{PartitionId, Timestamp, TopicName};

use super::pattern::Pattern;
use crate::time::{Rounding, TimeExpr};

const FIELDS: &str = "value, key, timestamp, offset, topic, partition, _id, headers.<name> and json.<path>";

/// Where something stands in the text of a query, in characters from 1; None where the query was not a text.
pub(crate) type Column = Option<usize>;

/// A query that cannot be answered as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryError {
    pub message: String,
    /// Where in the query, counted in characters from 1; None where the query was not a text.
    pub column: Option<usize>,
}

/// Timestamps in milliseconds, both ends inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Times {
    pub first: i64,
    pub last: i64,
}

/// Where a field name leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place<'n> {
    Value,
    Key,
    Timestamp,
    Offset,
    Topic,
    Partition,
    /// The place of a message, as [`QueryNode::with_id`] reads it.
    Id,
    /// The name of a header.
    Headers(&'n str),
    /// Keys, separated by dots.
    Json(&'n str),
}

/// A query and the moment at which it was asked.
#[derive(Clone, Debug)]
pub(crate) struct SearchQuery {
    pub root: QueryNode,
    /// What `now` means in it.
    pub now: Timestamp,
}

/// What to look for. Scores are BM25 for words and phrases, and 1 for everything else.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum QueryNode {
    /// Every message.
    All,
    /// No message.
    Nothing,
    /// The words that the field's analyser finds in `text`, all or any of them. On a JSON leaf also the number or truth
    /// value that `text` says.
    Words { field: FieldName, text: Text, operator: Operator },
    /// The same words in a row, or moved by at most `slop` positions in sum. One word needs no positions in the index.
    Phrase { field: FieldName, text: Text, slop: u32 },
    /// Words that start like the one word of `text`; topics that start like `text`.
    Prefix { field: FieldName, text: Text },
    /// A word that the pattern fits; topics whose name it fits.
    Pattern { field: FieldName, pattern: Pattern },
    /// A number or truth value of a JSON leaf; of a text the same as a phrase without slop.
    Exact { field: FieldName, value: Literal },
    /// Over `timestamp`, `offset`, numbers and words of JSON leaves, and words of everything else. Both unbounded is
    /// the same as `Exists`.
    Range { field: FieldName, lower: Bound<Literal>, upper: Bound<Literal> },
    /// The field has at least one word, number or truth value.
    Exists { field: FieldName },
    /// `must` and `filter` all match and `must_not` none; of `should` at least `minimum_should_match` do, and at least
    /// one where `must` and `filter` are empty. Only `must` and `should` count for the score. Without any clause, every
    /// message.
    Bool {
        must: Vec<QueryNode>,
        should: Vec<QueryNode>,
        must_not: Vec<QueryNode>,
        filter: Vec<QueryNode>,
        minimum_should_match: usize,
    },
    /// The same messages with scores times `factor`.
    Boost { node: Box<QueryNode>, factor: f32 },
    /// The same messages, and none where the text has no word to look for, which otherwise leaves a clause out.
    ZeroTermsNone { node: Box<QueryNode> },
}

/// How many of several words have to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operator {
    And,
    Or,
}

/// `value`, `key`, `timestamp`, `offset`, `topic`, `partition`, `_id`, `headers.<name>` or `json.<path>`; dots separate
/// the keys of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FieldName {
    pub name: String,
    pub column: Column,
}

/// Text that the analyser has not seen yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Text {
    pub text: String,
    pub column: Column,
}

/// A value to compare with.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Literal {
    pub value: LiteralValue,
    pub column: Column,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum LiteralValue {
    Text(String),
    I64(i64),
    U64(u64),
    F64(f64),
    Bool(bool),
}

impl FieldName {
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), column: None }
    }
}

impl From<&str> for FieldName {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

impl<S: Into<String>> From<S> for Text {
    fn from(text: S) -> Self {
        Self { text: text.into(), column: None }
    }
}

impl<V: Into<LiteralValue>> From<V> for Literal {
    fn from(value: V) -> Self {
        Self { value: value.into(), column: None }
    }
}

impl LiteralValue {
    /// The number or truth value that `word` says, else the word as text.
    pub fn of_word(word: &str) -> Self {
        if let Ok(number) = word.parse() {
            return Self::I64(number);
        }
        if let Ok(number) = word.parse() {
            return Self::U64(number);
        }
        // `nan` and `infinity` are words.
        let digits = word.trim_start_matches(['-', '+', '.']);
        match word.parse::<f64>() {
            Ok(number) if number.is_finite() && digits.starts_with(|c: char| c.is_ascii_digit()) => Self::F64(number),
            _ => word.parse().map_or_else(|_| Self::Text(word.to_owned()), Self::Bool),
        }
    }
}

impl From<String> for LiteralValue {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for LiteralValue {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<i64> for LiteralValue {
    fn from(number: i64) -> Self {
        Self::I64(number)
    }
}

impl From<u64> for LiteralValue {
    fn from(number: u64) -> Self {
        Self::U64(number)
    }
}

impl From<f64> for LiteralValue {
    fn from(number: f64) -> Self {
        Self::F64(number)
    }
}

impl From<bool> for LiteralValue {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl QueryError {
    pub(crate) fn new(message: impl Into<String>, column: Column) -> Self {
        Self { message: message.into(), column }
    }
}

impl Place<'_> {
    /// Whether it is one value, of each message, rather than words.
    pub fn is_of_every_message(self) -> bool {
        matches!(self, Self::Timestamp | Self::Offset | Self::Topic | Self::Partition | Self::Id)
    }
}

impl FieldName {
    pub fn place(&self) -> Result<Place<'_>, QueryError> {
        let (name, path) = match self.name.split_once('.') {
            Some((name, path)) => (name, Some(path)),
            None => (self.name.as_str(), None),
        };
        let place = match (name, path) {
            ("headers", path) => Place::Headers(path.unwrap_or_default()),
            ("json", path) => Place::Json(path.unwrap_or_default()),
            ("value", None) => Place::Value,
            ("key", None) => Place::Key,
            ("timestamp" | "@timestamp", None) => Place::Timestamp,
            ("offset", None) => Place::Offset,
            ("topic" | "_index", None) => Place::Topic,
            ("partition", None) => Place::Partition,
            ("_id", None) => Place::Id,
            ("value" | "key" | "timestamp" | "offset" | "topic" | "partition", Some(_)) => {
                return Err(self.error(format!("{} does not exist; only headers and json have parts", self.name)));
            }
            _ => {
                let name = &self.name;
                return Err(
                    self.error(format!("there is no field {name:?}, only {FIELDS}; put text with a colon in quotes"))
                );
            }
        };
        // The index separates paths from values so.
        if self.name.contains('\0') {
            return Err(self.error("the name of a field has no null characters".to_owned()));
        }
        Ok(place)
    }

    pub fn is_timestamp(&self) -> bool {
        self.place() == Ok(Place::Timestamp)
    }

    pub fn error(&self, message: String) -> QueryError {
        QueryError::new(message, self.column)
    }
}

impl Literal {
    /// As words are looked for.
    pub fn to_text(&self) -> Text {
        let text = match &self.value {
            LiteralValue::Text(text) => text.clone(),
            LiteralValue::I64(number) => number.to_string(),
            LiteralValue::U64(number) => number.to_string(),
            LiteralValue::F64(number) => number.to_string(),
            LiteralValue::Bool(value) => value.to_string(),
        };
        Text { text, column: self.column }
    }

    fn is_relative_time(&self) -> bool {
        TimeExpr::parse(&self.to_text().text).is_ok_and(|time| time.is_relative())
    }

    fn millis(&self, now: Timestamp, rounding: Rounding) -> Result<i64, QueryError> {
        let time = TimeExpr::parse(&self.to_text().text).and_then(|time| time.at(now, rounding));
        time.map(|time| time.0).map_err(|error| QueryError::new(error.to_string(), self.column))
    }

    fn offset(&self) -> Result<i64, QueryError> {
        let Text { text, column } = self.to_text();
        text.parse().map_err(|_| QueryError::new(format!("{text:?} is not a whole number"), column))
    }
}

impl Times {
    pub const EVER: Self = Self { first: i64::MIN, last: i64::MAX };

    /// The timestamps of a range. A bound that is rounded includes or excludes the whole unit: `<=now/d` ends with the
    /// last millisecond of the day, `<now/d` before its first.
    pub fn between(lower: &Bound<Literal>, upper: &Bound<Literal>, now: Timestamp) -> Result<Self, QueryError> {
        let first = match lower {
            Bound::Included(literal) => literal.millis(now, Rounding::Down)?,
            Bound::Excluded(literal) => literal.millis(now, Rounding::Up)?.saturating_add(1),
            Bound::Unbounded => i64::MIN,
        };
        let last = match upper {
            Bound::Included(literal) => literal.millis(now, Rounding::Up)?,
            Bound::Excluded(literal) => literal.millis(now, Rounding::Down)?.saturating_sub(1),
            Bound::Unbounded => i64::MAX,
        };
        Ok(Self { first, last })
    }

    /// Narrows `from` (inclusive) and `to` (exclusive).
    pub fn within(self, from: Option<Timestamp>, to: Option<Timestamp>) -> (Option<Timestamp>, Option<Timestamp>) {
        let first = (self.first > i64::MIN).then_some(Timestamp(self.first));
        let end = self.last.checked_add(1).map(Timestamp);
        (from.max(first), to.into_iter().chain(end).min())
    }

    fn and(self, other: Self) -> Self {
        Self { first: self.first.max(other.first), last: self.last.min(other.last) }
    }

    fn or(self, other: Self) -> Self {
        Self { first: self.first.min(other.first), last: self.last.max(other.last) }
    }
}

/// The offsets of a range, both ends inclusive.
pub(crate) fn offsets(lower: &Bound<Literal>, upper: &Bound<Literal>) -> Result<(i64, i64), QueryError> {
    let first = match lower {
        Bound::Included(literal) => literal.offset()?,
        Bound::Excluded(literal) => literal.offset()?.saturating_add(1),
        Bound::Unbounded => i64::MIN,
    };
    let last = match upper {
        Bound::Included(literal) => literal.offset()?,
        Bound::Excluded(literal) => literal.offset()?.saturating_sub(1),
        Bound::Unbounded => i64::MAX,
    };
    Ok((first, last))
}

/// Topic, partition and offset of an id.
pub(crate) fn place_of(id: &str) -> Option<(&str, i32, i64)> {
    let (rest, offset) = id.rsplit_once('/')?;
    let (topic, partition) = rest.rsplit_once('/')?;
    Some((topic, partition.parse().ok()?, offset.parse().ok()?))
}

/// How many of `should` have to match.
pub(crate) fn should_needed(required: usize, should: usize, minimum: usize) -> usize {
    if required == 0 && should > 0 { minimum.max(1) } else { minimum }
}

impl SearchQuery {
    /// Whether messages of `topic` can match at all.
    pub fn may_match(&self, topic: &TopicName) -> bool {
        self.root.about(topic) != Some(false)
    }

    /// Timestamps outside of which nothing matches.
    pub fn times(&self) -> Times {
        self.root.times(self.now)
    }

    /// The query as it is for one partition: what it says of `partition` is decided.
    pub fn in_partition(&self, partition: PartitionId) -> Result<Self, QueryError> {
        Ok(Self { root: self.root.in_partition(partition)?, now: self.now })
    }
}

impl QueryNode {
    /// How many patterns are in it.
    pub(crate) fn patterns(&self) -> usize {
        match self {
            Self::Pattern { .. } => 1,
            Self::Bool { must, should, must_not, filter, .. } => {
                [must, should, must_not, filter].into_iter().flatten().map(Self::patterns).sum()
            }
            Self::Boost { node, .. } | Self::ZeroTermsNone { node } => node.patterns(),
            _ => 0,
        }
    }

    /// The message of an id, `topic/partition/offset`; none where no message can have it.
    pub fn with_id(id: &str) -> Self {
        let Some((topic, partition, offset)) = place_of(id) else { return Self::Nothing };
        let exact = |name: &str, value: LiteralValue| Self::Exact { field: name.into(), value: value.into() };
        let filter = vec![
            exact("topic", topic.into()),
            exact("partition", i64::from(partition).into()),
            exact("offset", offset.into()),
        ];
        Self::Bool { must: Vec::new(), should: Vec::new(), must_not: Vec::new(), filter, minimum_should_match: 0 }
    }

    /// The field that a leaf is about.
    pub fn field(&self) -> Option<&FieldName> {
        match self {
            Self::Words { field, .. }
            | Self::Phrase { field, .. }
            | Self::Prefix { field, .. }
            | Self::Pattern { field, .. }
            | Self::Exact { field, .. }
            | Self::Range { field, .. }
            | Self::Exists { field } => Some(field),
            Self::All | Self::Nothing | Self::Bool { .. } | Self::Boost { .. } | Self::ZeroTermsNone { .. } => None,
        }
    }

    fn in_partition(&self, partition: PartitionId) -> Result<Self, QueryError> {
        let is_partition = |field: &FieldName| field.name == "partition";
        let decided = |lower: Bound<Literal>, upper: Bound<Literal>| {
            let (first, last) = offsets(&lower, &upper)?;
            let is_inside = (first..=last).contains(&i64::from(partition.0));
            Ok(if is_inside { Self::All } else { Self::Nothing })
        };
        let equal = |value: Literal| decided(Bound::Included(value.clone()), Bound::Included(value));
        let all = |nodes: &[Self]| nodes.iter().map(|node| node.in_partition(partition)).collect::<Result<Vec<_>, _>>();
        match self {
            Self::Words { field, text, .. } | Self::Phrase { field, text, .. } if is_partition(field) => {
                equal(Literal { value: LiteralValue::Text(text.text.clone()), column: text.column })
            }
            Self::Exact { field, value } if is_partition(field) => equal(value.clone()),
            Self::Range { field, lower, upper } if is_partition(field) => decided(lower.clone(), upper.clone()),
            Self::Exists { field } if is_partition(field) => Ok(Self::All),
            Self::Bool { must, should, must_not, filter, minimum_should_match } => Ok(Self::Bool {
                must: all(must)?,
                should: all(should)?,
                must_not: all(must_not)?,
                filter: all(filter)?,
                minimum_should_match: *minimum_should_match,
            }),
            Self::Boost { node, factor } => {
                Ok(Self::Boost { node: Box::new(node.in_partition(partition)?), factor: *factor })
            }
            Self::ZeroTermsNone { node } => Ok(Self::ZeroTermsNone { node: Box::new(node.in_partition(partition)?) }),
            other => Ok(other.clone()),
        }
    }

    /// What is known of the messages of `topic` without looking at them: all match, none does, or nothing is known.
    pub fn about(&self, topic: &TopicName) -> Option<bool> {
        match self {
            Self::All => Some(true),
            Self::Nothing => Some(false),
            Self::Boost { node, .. } | Self::ZeroTermsNone { node } => node.about(topic),
            Self::Words { field, text, .. } | Self::Phrase { field, text, .. } => {
                (field.place() == Ok(Place::Topic)).then(|| topic.as_str() == text.text)
            }
            Self::Exact { field, value } => {
                (field.place() == Ok(Place::Topic)).then(|| topic.as_str() == value.to_text().text)
            }
            Self::Prefix { field, text } => {
                (field.place() == Ok(Place::Topic)).then(|| topic.as_str().starts_with(&text.text))
            }
            Self::Pattern { field, pattern } => {
                (field.place() == Ok(Place::Topic)).then(|| pattern.matches(topic.as_str().as_bytes()))
            }
            Self::Exists { field } => field.place().is_ok_and(Place::is_of_every_message).then_some(true),
            Self::Range { .. } => None,
            Self::Bool { must, should, must_not, filter, minimum_should_match } => {
                // Asked once for each: the tree is as deep as the query says.
                let about = |nodes: &[Self]| nodes.iter().map(|node| node.about(topic)).collect::<Vec<_>>();
                let (required, excluded) = ([about(must), about(filter)].concat(), about(must_not));
                let optional = about(should);
                let needed = should_needed(required.len(), should.len(), *minimum_should_match);
                let possible = optional.iter().filter(|about| **about != Some(false)).count();
                let certain = optional.iter().filter(|about| **about == Some(true)).count();
                if required.contains(&Some(false)) || excluded.contains(&Some(true)) || possible < needed {
                    return Some(false);
                }
                let all = required.iter().all(|about| *about == Some(true))
                    && excluded.iter().all(|about| *about == Some(false))
                    && certain >= needed;
                all.then_some(true)
            }
        }
    }

    /// Whether the answer to [`Self::about`] may differ from topic to topic.
    pub fn names_topics(&self) -> bool {
        match self {
            Self::Boost { node, .. } | Self::ZeroTermsNone { node } => node.names_topics(),
            Self::Bool { must, should, must_not, filter, .. } => {
                [must, should, must_not, filter].into_iter().flatten().any(Self::names_topics)
            }
            leaf => leaf.field().is_some_and(|field| field.place() == Ok(Place::Topic)),
        }
    }

    /// Whether it means other times when it is asked later.
    pub fn has_relative_times(&self) -> bool {
        match self {
            Self::Range { field, lower, upper } if field.is_timestamp() => {
                [lower, upper].into_iter().any(|bound| match bound {
                    Bound::Included(literal) | Bound::Excluded(literal) => literal.is_relative_time(),
                    Bound::Unbounded => false,
                })
            }
            Self::Exact { field, value } if field.is_timestamp() => value.is_relative_time(),
            Self::Boost { node, .. } | Self::ZeroTermsNone { node } => node.has_relative_times(),
            Self::Bool { must, should, must_not, filter, .. } => {
                [must, should, must_not, filter].into_iter().flatten().any(Self::has_relative_times)
            }
            _ => false,
        }
    }

    /// Timestamps outside of which nothing matches. What is wrong with a time is said when the query is built.
    fn times(&self, now: Timestamp) -> Times {
        match self {
            Self::Range { field, lower, upper } if field.is_timestamp() => {
                Times::between(lower, upper, now).unwrap_or(Times::EVER)
            }
            Self::Exact { field, value } if field.is_timestamp() => {
                let bound = Bound::Included(value.clone());
                Times::between(&bound, &bound, now).unwrap_or(Times::EVER)
            }
            Self::Boost { node, .. } | Self::ZeroTermsNone { node } => node.times(now),
            Self::Bool { must, should, filter, minimum_should_match, .. } => {
                let required = must.iter().chain(filter).map(|node| node.times(now)).fold(Times::EVER, Times::and);
                let needed = should_needed(must.len() + filter.len(), should.len(), *minimum_should_match);
                let any = should.iter().map(|node| node.times(now)).reduce(Times::or);
                required.and(any.filter(|_| needed > 0).unwrap_or(Times::EVER))
            }
            _ => Times::EVER,
        }
    }
}
