//! The Tantivy query of one split, made from the tree and the split's own schema and analysers.
//!
//! Splits of one topic may differ in what is indexed (fields, analyser, positions, columns); a query means the same in
//! all of them as far as the analyser is the same, or is refused where it cannot be answered. A field that is not
//! indexed is empty. Text in which the analyser finds no word (`---`) asks for nothing: it
//! is left out, as in Lucene, and a query of such text only finds nothing; see also [`QueryNode::ZeroTermsNone`].

use std::cell::Cell;
use std::ops::Bound;

use tantivy::Term;
use tantivy::query::{
    AllQuery, BooleanQuery, EmptyQuery, Occur, PhrasePrefixQuery, PhraseQuery, Query, RangeQuery, TermQuery,
};
use tantivy::schema::{Field, IndexRecordOption, Type};
use thermocline_ingest::model::{Timestamp, TopicName};
use thermocline_tiering::split::{QueryWord, SplitReader};

use super::ast::{
    FieldName, Literal, LiteralValue, Operator, Place, QueryError, QueryNode, SearchQuery, Text, Times, offsets,
    should_needed,
};
use super::leaves::{HasWords, Number, NumberRange, Path};
use super::pattern::{PATTERNS_MAX, Pattern};
use super::terms::TermsBetween;
use super::wrapped::Wrapped;

/// What a part of a query comes to in one split.
enum Built {
    /// There is no word to look for.
    Absent,
    All,
    Nothing,
    Query(Box<dyn Query>),
}

struct Builder<'a> {
    split: &'a SplitReader,
    /// None builds every part, whichever topics it is about.
    topic: Option<&'a TopicName>,
    now: Timestamp,
    /// That the query may still have.
    patterns_left: Cell<usize>,
}

/// A word of a query as it stands in the index.
struct Word {
    position: usize,
    term: Term,
    /// Any that starts like it will do.
    is_prefix: bool,
}

/// A field with words.
struct Words {
    field: Field,
    /// Inside a field of objects.
    path: Option<Path>,
    /// Whether numbers and truth values are indexed beside words.
    is_typed: bool,
}

impl SearchQuery {
    /// The query for one split of `topic`. Fails in the same way for every split of the same schema. Without a topic
    /// every part is built, so that what is wrong with any of them is said.
    pub fn build(&self, split: &SplitReader, topic: Option<&TopicName>) -> Result<Box<dyn Query>, QueryError> {
        let builder = Builder { split, topic, now: self.now, patterns_left: Cell::new(PATTERNS_MAX) };
        Ok(match builder.node(&self.root)? {
            Built::Absent | Built::Nothing => Box::new(EmptyQuery),
            Built::All => Box::new(AllQuery),
            Built::Query(query) => query,
        })
    }
}

impl<Q: Query> From<Q> for Built {
    fn from(query: Q) -> Self {
        Self::Query(Box::new(query))
    }
}

impl Builder<'_> {
    fn node(&self, node: &QueryNode) -> Result<Built, QueryError> {
        match self.topic.and_then(|topic| node.about(topic)) {
            Some(true) => return Ok(Built::All),
            Some(false) => return Ok(Built::Nothing),
            None => {}
        }
        if let Some(field) = node.field()
            && !self.is_indexed(field)?
        {
            return Ok(self.in_nothing(node));
        }
        match node {
            QueryNode::All => Ok(Built::All),
            QueryNode::Nothing => Ok(Built::Nothing),
            QueryNode::Words { field, text, operator } => self.words(field, text, *operator),
            QueryNode::Phrase { field, text, slop } => self.phrase(field, text, *slop),
            QueryNode::Prefix { field, text } => self.prefix(field, text),
            QueryNode::Pattern { field, pattern } => self.pattern(field, pattern),
            QueryNode::Exact { field, value } => self.exact(field, value),
            QueryNode::Range { field, lower, upper } => self.range(field, lower, upper),
            QueryNode::Exists { field } => self.exists(field),
            QueryNode::Bool { .. } => self.boolean(node),
            QueryNode::Boost { node, factor } => Ok(match self.node(node)? {
                Built::Query(query) => Wrapped::boosted(query, *factor).into(),
                other => other,
            }),
            QueryNode::ZeroTermsNone { node } => Ok(match self.node(node)? {
                Built::Absent => Built::Nothing,
                other => other,
            }),
        }
    }

    fn is_indexed(&self, field: &FieldName) -> Result<bool, QueryError> {
        let fields = &self.split.fields;
        Ok(match field.place()? {
            Place::Value => fields.is_indexed(fields.value),
            Place::Key => fields.is_indexed(fields.key),
            Place::Headers(_) => fields.is_indexed(fields.headers),
            Place::Json(_) => fields.is_indexed(fields.json),
            place => place.is_of_every_message(),
        })
    }

    /// A leaf over a field that is not indexed: it finds nothing, or asks for nothing.
    fn in_nothing(&self, node: &QueryNode) -> Built {
        let text = match node {
            QueryNode::Words { text, .. } | QueryNode::Phrase { text, .. } | QueryNode::Prefix { text, .. } => text,
            QueryNode::Exact { value, .. } => &value.to_text(),
            _ => return Built::Nothing,
        };
        if self.split.query_words(&text.text, false).is_empty() { Built::Absent } else { Built::Nothing }
    }

    fn boolean(&self, node: &QueryNode) -> Result<Built, QueryError> {
        let QueryNode::Bool { must, should, must_not, filter, minimum_should_match } = node else {
            return Ok(Built::Absent);
        };
        let present = |nodes: &[QueryNode]| -> Result<Vec<Built>, QueryError> {
            let built = nodes.iter().map(|node| self.node(node));
            built.filter(|built| !matches!(built, Ok(Built::Absent))).collect()
        };
        let clauses = must.len() + should.len() + must_not.len() + filter.len();
        let (must, should) = (present(must)?, present(should)?);
        let (must_not, filter) = (present(must_not)?, present(filter)?);
        if clauses > 0 && must.is_empty() && should.is_empty() && must_not.is_empty() && filter.is_empty() {
            return Ok(Built::Absent);
        }
        let mut needed = should_needed(must.len() + filter.len(), should.len(), *minimum_should_match);
        let is_nothing = |built: &Built| matches!(built, Built::Nothing);
        if must.iter().chain(&filter).any(is_nothing) || must_not.iter().any(|built| matches!(built, Built::All)) {
            return Ok(Built::Nothing);
        }

        let mut parts: Vec<(Occur, Box<dyn Query>)> = Vec::new();
        let mut has_required = false;
        for built in must {
            if let Built::Query(query) = built {
                has_required = true;
                parts.push((Occur::Must, query));
            }
        }
        for built in filter {
            if let Built::Query(query) = built {
                has_required = true;
                parts.push((Occur::Must, Box::new(Wrapped::unscored(query))));
            }
        }
        let mut optional = 0;
        for built in should {
            match built {
                Built::Query(query) => {
                    optional += 1;
                    parts.push((Occur::Should, query));
                }
                Built::All => needed = needed.saturating_sub(1),
                Built::Nothing | Built::Absent => {}
            }
        }
        if needed > optional {
            return Ok(Built::Nothing);
        }
        for built in must_not {
            if let Built::Query(query) = built {
                parts.push((Occur::MustNot, Box::new(Wrapped::excluded(query))));
            }
        }
        if parts.is_empty() {
            return Ok(Built::All);
        }
        if !has_required && needed == 0 {
            parts.push((Occur::Must, Box::new(AllQuery)));
        }
        Ok(match parts.len() {
            1 => Built::Query(parts.remove(0).1),
            _ if needed > 0 => BooleanQuery::with_minimum_required_clauses(parts, needed).into(),
            _ => BooleanQuery::new(parts).into(),
        })
    }

    fn words(&self, field: &FieldName, text: &Text, operator: Operator) -> Result<Built, QueryError> {
        let Some(words) = self.words_of(field)? else { return self.exact(field, &literal(text)) };
        let mut found = self.analyse(&words, text, false);
        found.sort_unstable_by(|a, b| a.term.cmp(&b.term));
        found.dedup_by(|a, b| a.term == b.term);
        let occur = match operator {
            Operator::And => Occur::Must,
            Operator::Or => Occur::Should,
        };
        let queries = found.into_iter().map(|word| (occur, word.query())).collect();
        Ok(words.with_value_of(text, any_of(queries)))
    }

    fn phrase(&self, field: &FieldName, text: &Text, slop: u32) -> Result<Built, QueryError> {
        let Some(words) = self.words_of(field)? else { return self.exact(field, &literal(text)) };
        let mut found = self.analyse(&words, text, false);
        let built = match found.len() {
            0 => Built::Absent,
            1 => Built::Query(found.remove(0).query()),
            // `1.5` is two words in a row, and mostly meant as a number.
            _ if words.value_of(text).is_some() && !self.split.fields.has_positions(words.field) => Built::Absent,
            _ => self.in_a_row(found, slop, field, text)?,
        };
        Ok(words.with_value_of(text, built))
    }

    /// Several words at their positions.
    fn in_a_row(&self, words: Vec<Word>, slop: u32, field: &FieldName, text: &Text) -> Result<Built, QueryError> {
        let inside = words.first().map(|word| word.term.field());
        if !inside.is_some_and(|field| self.split.fields.has_positions(field)) {
            let (name, text, column) = (&field.name, &text.text, text.column);
            let message = format!(
                "{text:?} is a phrase, and {name} is indexed without positions here; combine the words with AND, \
                 or set search.positions=true for messages to come"
            );
            return Err(QueryError::new(message, column));
        }
        // Only at the end can what starts so go on: in the middle the next word stands right behind.
        let goes_on = slop == 0 && words.last().is_some_and(|word| word.is_prefix);
        let terms = words.into_iter().map(|word| (word.position, word.term)).collect();
        if !goes_on {
            return Ok(PhraseQuery::new_with_offset_and_slop(terms, slop).into());
        }
        let mut query = PhrasePrefixQuery::new_with_offset(terms);
        query.set_max_expansions(u32::MAX);
        Ok(query.into())
    }

    fn prefix(&self, field: &FieldName, text: &Text) -> Result<Built, QueryError> {
        let Some(words) = self.words_of(field)? else {
            if field.place() == Ok(Place::Topic) {
                // Without a topic, which would have decided it.
                return Ok(Built::All);
            }
            let message = format!("{} has no words that could start with {:?}", field.name, text.text);
            return Err(QueryError::new(message, text.column));
        };
        let mut found = self.analyse(&words, text, true);
        match (found.len(), found.last().is_some_and(|word| word.is_prefix)) {
            (0, _) => Ok(Built::Absent),
            (1, _) => Ok(Built::Query(found.remove(0).query())),
            // Characters of a script without spaces: that they go on says nothing more.
            (_, false) => self.in_a_row(found, 0, field, text),
            (_, true) => {
                let message = "a prefix is one word; combine several parts with AND";
                Err(QueryError::new(message, text.column))
            }
        }
    }

    fn pattern(&self, field: &FieldName, pattern: &Pattern) -> Result<Built, QueryError> {
        let Some(words) = self.words_of(field)? else {
            if field.place() == Ok(Place::Topic) {
                // Without a topic, which would have decided it.
                return Ok(Built::All);
            }
            let (name, written) = (&field.name, pattern.written());
            return Err(pattern.error(format!("{name} has no words that {written:?} could fit")));
        };
        pattern.check(self.split.fields.analyser)?;
        let left = self.patterns_left.get().checked_sub(1).ok_or_else(|| pattern.too_many())?;
        self.patterns_left.set(left);
        let before = words.term("").serialized_value_bytes().len();
        Ok(TermsBetween::fitting(&words.term(pattern.start()), before, pattern.matcher().clone()).into())
    }

    fn exact(&self, field: &FieldName, value: &Literal) -> Result<Built, QueryError> {
        match field.place()? {
            // Without a topic or a partition, which would have decided it.
            Place::Topic | Place::Partition => Ok(Built::All),
            Place::Id => Err(ids_are_whole(field)),
            Place::Timestamp | Place::Offset => {
                let bound = Bound::Included(value.clone());
                self.range(field, &bound, &bound)
            }
            place => match (Number::of(&value.value), &value.value) {
                (Some(number), _) if matches!(place, Place::Json(_)) => {
                    Ok(Built::Query(term_query(self.path(field)?.number(number))))
                }
                (_, LiteralValue::Bool(value)) if matches!(place, Place::Json(_)) => {
                    Ok(Built::Query(term_query(self.path(field)?.truth(*value))))
                }
                _ => self.phrase(field, &value.to_text(), 0),
            },
        }
    }

    fn range(&self, field: &FieldName, lower: &Bound<Literal>, upper: &Bound<Literal>) -> Result<Built, QueryError> {
        if matches!((lower, upper), (Bound::Unbounded, Bound::Unbounded)) {
            return self.exists(field);
        }
        let fields = &self.split.fields;
        match field.place()? {
            Place::Topic => Err(field.error("topics have no ranges; name them, or their beginnings like ord*".into())),
            // Without a partition, which would have decided it.
            Place::Partition => Ok(Built::All),
            Place::Id => Err(ids_are_whole(field)),
            Place::Timestamp => {
                let Times { first, last } = Times::between(lower, upper, self.now)?;
                Ok(between(fields.timestamp, first, last))
            }
            Place::Offset => {
                let (first, last) = offsets(lower, upper)?;
                Ok(between(fields.offset, first, last))
            }
            place => {
                if matches!(place, Place::Json(_))
                    && let Some(range) = self.number_range(field, lower, upper)?
                {
                    return Ok(range);
                }
                self.word_range(field, lower, upper)
            }
        }
    }

    /// None where the bounds are not numbers.
    fn number_range(
        &self,
        field: &FieldName,
        lower: &Bound<Literal>,
        upper: &Bound<Literal>,
    ) -> Result<Option<Built>, QueryError> {
        let (mut numbers, mut others) = (0, None);
        let mut number = |bound: &Bound<Literal>| {
            bound.as_ref().map(|literal| match Number::of(&literal.value) {
                Some(number) => {
                    numbers += 1;
                    number
                }
                None => {
                    others = Some(literal.column);
                    Number::Int(0)
                }
            })
        };
        let (lower, upper) = (number(lower), number(upper));
        match (numbers, others) {
            (0, _) => return Ok(None),
            (_, Some(column)) => {
                return Err(QueryError::new("a range goes from number to number, or from word to word", column));
            }
            (_, None) => {}
        }
        let path = self.path(field)?;
        let is_fast = self.split.fields.is_fast(path.field);
        let range = NumberRange { path, lower, upper };
        Ok(Some(Built::Query(if is_fast { Box::new(range) } else { range.in_dictionary() })))
    }

    fn word_range(
        &self,
        field: &FieldName,
        lower: &Bound<Literal>,
        upper: &Bound<Literal>,
    ) -> Result<Built, QueryError> {
        let Some(words) = self.words_of(field)? else { return Ok(Built::Absent) };
        let word = |literal: &Literal| -> Result<Term, QueryError> {
            if let (LiteralValue::Bool(value), true) = (&literal.value, words.is_typed) {
                let message = format!("{value} has no order; ask for it as {}:{value}", field.name);
                return Err(QueryError::new(message, literal.column));
            }
            let text = literal.to_text();
            let mut found = self.analyse(&words, &text, false);
            if found.len() == 1 {
                return Ok(found.remove(0).term);
            }
            let (text, count) = (text.text, found.len());
            let message = format!("a range of words goes from one word to another; {text:?} is {count} words");
            Err(QueryError::new(message, literal.column))
        };
        let bound = |bound: &Bound<Literal>| -> Result<Bound<Term>, QueryError> {
            Ok(match bound {
                Bound::Included(literal) => Bound::Included(word(literal)?),
                Bound::Excluded(literal) => Bound::Excluded(word(literal)?),
                Bound::Unbounded => Bound::Unbounded,
            })
        };
        let (mut lower, mut upper) = (bound(lower)?, bound(upper)?);
        if matches!(lower, Bound::Unbounded) {
            lower = Bound::Included(words.term(""));
        }
        if let (Bound::Unbounded, Some(path)) = (&upper, &words.path) {
            upper = Bound::Excluded(path.after(Type::Str));
        }
        Ok(TermsBetween::new(lower, upper).into())
    }

    fn exists(&self, field: &FieldName) -> Result<Built, QueryError> {
        let fields = &self.split.fields;
        match field.place()? {
            // Of a value every word may be in another place of the index; its length is in one.
            Place::Value if fields.schema.get_field_entry(fields.value).has_fieldnorms() => {
                Ok(HasWords { field: fields.value }.into())
            }
            Place::Value => Ok(any_word(fields.value)),
            Place::Key => Ok(any_word(fields.key)),
            Place::Headers("") => Ok(any_word(fields.headers)),
            Place::Json("") => Ok(any_word(fields.json)),
            Place::Headers(_) | Place::Json(_) => {
                let (first, end) = self.path(field)?.span();
                Ok(TermsBetween::new(Bound::Included(first), Bound::Excluded(end)).into())
            }
            _ => Ok(Built::All),
        }
    }

    /// The path of a field inside `json` or `headers`.
    fn path(&self, field: &FieldName) -> Result<Path, QueryError> {
        let fields = &self.split.fields;
        let (inside, path) = match field.place()? {
            Place::Headers(path) => (fields.headers, path),
            Place::Json(path) => (fields.json, path),
            _ => return Err(field.error(format!("{} has no parts", field.name))),
        };
        if path.is_empty() {
            let name = &field.name;
            return Err(field.error(format!("{name} needs a name behind it, like {name}.id:42")));
        }
        Ok(Path::new(inside, path))
    }

    /// None for what every message has one value of.
    fn words_of(&self, name: &FieldName) -> Result<Option<Words>, QueryError> {
        let fields = &self.split.fields;
        Ok(Some(match name.place()? {
            Place::Value => Words { field: fields.value, path: None, is_typed: false },
            Place::Key => Words { field: fields.key, path: None, is_typed: false },
            Place::Headers(_) => Words { field: fields.headers, path: Some(self.path(name)?), is_typed: false },
            Place::Json(_) => Words { field: fields.json, path: Some(self.path(name)?), is_typed: true },
            _ => return Ok(None),
        }))
    }

    /// The words that the split's analyser finds. `goes_on`: the last one may be the start of a word.
    fn analyse(&self, words: &Words, text: &Text, goes_on: bool) -> Vec<Word> {
        let found = self.split.query_words(&text.text, goes_on).into_iter();
        found
            .map(|QueryWord { text, position, is_prefix }| Word { position, term: words.term(&text), is_prefix })
            .collect()
    }
}

impl Word {
    fn query(self) -> Box<dyn Query> {
        match self.is_prefix {
            true => Box::new(TermsBetween::starting_with(&self.term)),
            false => term_query(self.term),
        }
    }
}

impl Words {
    fn term(&self, word: &str) -> Term {
        match &self.path {
            Some(path) => path.word(word),
            None => Term::from_field_text(self.field, word),
        }
    }

    /// The number or truth value that `text` says, where such are indexed.
    fn value_of(&self, text: &Text) -> Option<Term> {
        let path = self.path.as_ref().filter(|_| self.is_typed)?;
        let value = LiteralValue::of_word(&text.text);
        match (Number::of(&value), value) {
            (Some(number), _) => Some(path.number(number)),
            (None, LiteralValue::Bool(value)) => Some(path.truth(value)),
            _ => None,
        }
    }

    /// Either `found`, or the number or truth value that `text` says.
    fn with_value_of(&self, text: &Text, found: Built) -> Built {
        match (self.value_of(text), found) {
            (None, found) => found,
            (Some(term), Built::Query(found)) => BooleanQuery::union(vec![term_query(term), found]).into(),
            (Some(term), _) => Built::Query(term_query(term)),
        }
    }
}

fn ids_are_whole(field: &FieldName) -> QueryError {
    field.error(format!("an id is looked for as a whole, like {}:\"orders/0/42\"", field.name))
}

fn literal(text: &Text) -> Literal {
    Literal { value: LiteralValue::Text(text.text.clone()), column: text.column }
}

fn term_query(term: Term) -> Box<dyn Query> {
    Box::new(TermQuery::new(term, IndexRecordOption::WithFreqs))
}

fn any_of(mut queries: Vec<(Occur, Box<dyn Query>)>) -> Built {
    match queries.len() {
        0 => Built::Absent,
        1 => Built::Query(queries.remove(0).1),
        _ => BooleanQuery::new(queries).into(),
    }
}

fn any_word(field: Field) -> Built {
    TermsBetween::new(Bound::Included(Term::from_field_text(field, "")), Bound::Unbounded).into()
}

/// `first <= field <= last` over a column of numbers.
fn between(field: Field, first: i64, last: i64) -> Built {
    match (first, last) {
        (i64::MIN, i64::MAX) => Built::All,
        _ if first > last => Built::Nothing,
        _ => {
            let term = |value| Bound::Included(Term::from_field_i64(field, value));
            RangeQuery::new(term(first), term(last)).into()
        }
    }
}

#[cfg(test)]
mod tests;
