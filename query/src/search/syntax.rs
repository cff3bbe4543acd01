//! The query language: Tantivy's grammar, with our rules for what it means.
//!
//! | written | means |
//! |---|---|
//! | nothing, `*` | every message |
//! | `late parcel` | both words in the value (AND is the default) |
//! | `late OR lost`, `late AND NOT lost`, `+late -lost`, `(a OR b) c` | as in Lucene |
//! | `"late parcel"`, `"late parcel"~2` | a phrase, or its words at most so far apart; needs `search.positions` |
//! | `par*` | words that start so |
//! | `key:k42`, `headers.trace:abc`, `json.user.id:42` | another field; unnamed words are looked for in `value` |
//! | `timestamp:[2015-05-17 TO 2015-05-18}` | a range; RFC 3339, a day (its first moment) or milliseconds |
//! | `offset:[100 TO 200]`, `value:[a TO c}` | ranges of offsets and of words |
//!
//! Words are what the analyser makes of the text: `foo-bar` is two words in a row, hence a phrase. A part without any
//! word (`---`) is left out, as Lucene does; a query of such parts only finds nothing. A query that only excludes
//! starts from every message. What the language does not offer (regular expressions, wildcards inside a word,
//! fuzziness, ranges in JSON) is refused with a message, never guessed at.
//!
//! A query is parsed once, and built once for each split, because terms are made by the split's own analyser and
//! schema. The grammar is recursive and its input comes from the network, hence the limits on length and nesting.

use chrono::{DateTime, NaiveDate};
use tantivy::query::{AllQuery, BooleanQuery, BoostQuery, EmptyQuery, FuzzyTermQuery, Occur, Query, QueryParser};
use tantivy::query_grammar::{
    Delimiter, UserInputAst, UserInputBound, UserInputLeaf, UserInputLiteral, parse_query, parse_query_lenient,
};
use tantivy::schema::{Field, FieldType, Type};
use tantivy::tokenizer::TokenStream;
use tantivy::{Index, Term};
use thermocline_tiering::split::SplitReader;

/// Longest query, in bytes.
pub const QUERY_LEN_MAX: usize = 8 << 10;
/// Most parentheses and NOTs in one query: the grammar recurses for each.
pub const QUERY_NESTING_MAX: usize = 64;
/// Largest `^boost`.
pub const BOOST_MAX: f64 = 1e6;

const FIELDS: &str = "value, key, timestamp, offset, headers.<name> and json.<path>";

/// A query that cannot be answered as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryError {
    pub message: String,
    /// Where in the query, counted in characters from 1, as far as it is known.
    pub column: Option<usize>,
}

/// A query whose syntax is right.
#[derive(Clone, Debug)]
pub(crate) struct ParsedQuery {
    text: String,
    ast: UserInputAst,
}

/// Builds the query of one split.
struct Builder<'a> {
    text: &'a str,
    index: &'a Index,
    split: &'a SplitReader,
    leaves: QueryParser,
}

type Built = Result<Option<Box<dyn Query>>, QueryError>;

impl ParsedQuery {
    pub fn parse(text: &str) -> Result<Self, QueryError> {
        if text.len() > QUERY_LEN_MAX {
            let message = format!("a query of {} bytes exceeds the limit of {QUERY_LEN_MAX}", text.len());
            return Err(QueryError { message, column: None });
        }
        if text.matches('(').count() + text.matches("NOT").count() > QUERY_NESTING_MAX {
            let message = format!("the query has more than {QUERY_NESTING_MAX} parentheses or NOTs");
            return Err(QueryError { message, column: None });
        }
        let ast = parse_query(text).map_err(|_| syntax_error(text))?;
        Ok(Self { text: text.to_owned(), ast })
    }

    /// The query for one split. Fails in the same way for every split of the same schema.
    pub fn build(&self, split: &SplitReader) -> Result<Box<dyn Query>, QueryError> {
        if self.text.trim().is_empty() {
            return Ok(Box::new(AllQuery));
        }
        let leaves = QueryParser::for_index(&split.index, vec![split.fields.value]);
        let builder = Builder { text: &self.text, index: &split.index, split, leaves };
        Ok(builder.node(&self.ast)?.unwrap_or_else(|| Box::new(EmptyQuery)))
    }
}

/// What the lenient parser has to say about a text that the strict one refused.
fn syntax_error(text: &str) -> QueryError {
    let (_, errors) = parse_query_lenient(text);
    match errors.into_iter().next() {
        Some(error) => {
            let before = text.get(..error.pos).map_or(0, |before| before.chars().count());
            QueryError { message: error.message, column: Some(before + 1) }
        }
        None => QueryError {
            message: "the query cannot be read; put text with special characters in quotes".to_owned(),
            column: None,
        },
    }
}

impl Builder<'_> {
    /// None where there is no word to look for.
    fn node(&self, ast: &UserInputAst) -> Built {
        match ast {
            UserInputAst::Clause(children) => {
                let children = children.iter().map(|(occur, child)| (occur.unwrap_or(Occur::Must), child));
                self.clause(children)
            }
            UserInputAst::Boost(inner, boost) => {
                let factor = boost.into_inner();
                if factor > BOOST_MAX {
                    return Err(self.error(format!("a boost may be at most {BOOST_MAX}"), "^"));
                }
                let inner = self.node(inner)?;
                Ok(inner.map(|inner| Box::new(BoostQuery::new(inner, factor as f32)) as Box<dyn Query>))
            }
            UserInputAst::Leaf(leaf) => self.leaf(leaf),
        }
    }

    fn clause<'c>(&self, children: impl Iterator<Item = (Occur, &'c UserInputAst)>) -> Built {
        let mut parts = Vec::new();
        for (occur, child) in children {
            parts.extend(self.node(child)?.map(|query| (occur, query)));
        }
        if parts.is_empty() {
            return Ok(None);
        }
        if parts.iter().all(|(occur, _)| *occur == Occur::MustNot) {
            parts.push((Occur::Must, Box::new(AllQuery)));
        }
        Ok(Some(match parts.len() {
            1 => parts.remove(0).1,
            _ => Box::new(BooleanQuery::new(parts)),
        }))
    }

    fn leaf(&self, leaf: &UserInputLeaf) -> Built {
        match leaf {
            UserInputLeaf::All => Ok(Some(Box::new(AllQuery))),
            UserInputLeaf::Literal(literal) => self.literal(literal),
            UserInputLeaf::Range { field, lower, upper } => self.range(field.as_deref(), lower, upper),
            UserInputLeaf::Set { field, elements } => {
                let literals: Vec<UserInputAst> = elements
                    .iter()
                    .map(|phrase| {
                        let delimiter = Delimiter::DoubleQuotes;
                        let (field_name, phrase) = (field.clone(), phrase.clone());
                        UserInputLeaf::from(UserInputLiteral { field_name, phrase, delimiter, slop: 0, prefix: false })
                    })
                    .map(UserInputAst::from)
                    .collect();
                self.clause(literals.iter().map(|literal| (Occur::Should, literal)))
            }
            UserInputLeaf::Exists { field } => match self.field(field)? {
                (field, _) if field == self.split.fields.timestamp || field == self.split.fields.offset => {
                    Ok(Some(Box::new(AllQuery)))
                }
                _ => Err(self.error(format!("{field}:* is not supported; look for a value of the field"), field)),
            },
            UserInputLeaf::Regex { .. } => {
                Err(self
                    .error("regular expressions are not supported; put text with slashes in quotes".to_owned(), "/"))
            }
        }
    }

    fn literal(&self, literal: &UserInputLiteral) -> Built {
        let (field, path) = match &literal.field_name {
            Some(name) => self.field(name)?,
            None => (self.split.fields.value, ""),
        };
        let mut literal = literal.clone();
        if field == self.split.fields.timestamp {
            literal.phrase = self.millis(&literal.phrase)?;
        }
        let is_text = field != self.split.fields.timestamp && field != self.split.fields.offset;
        let is_bare = literal.delimiter == Delimiter::None;
        if is_text && is_bare && literal.phrase.contains('*') {
            let Some(start) = literal.phrase.strip_suffix('*').filter(|start| !start.contains(['*', '\\'])) else {
                let message = "a wildcard is supported only as the last character of a word".to_owned();
                return Err(self.error(message, &literal.phrase));
            };
            return self.prefix(field, path, start);
        }
        if is_text && is_bare && is_fuzzy(&literal.phrase) {
            let message = format!("fuzzy search is not supported; write \"{}\" to look for it as text", literal.phrase);
            return Err(self.error(message, &literal.phrase));
        }
        if literal.prefix {
            return self.prefix(field, path, &literal.phrase);
        }
        if is_text && self.words(field, &literal.phrase)?.is_empty() {
            return Ok(None);
        }
        let near = literal.phrase.clone();
        self.tantivy(UserInputLeaf::Literal(literal), &near)
    }

    /// Words that start like the one word of `text`.
    fn prefix(&self, field: Field, path: &str, text: &str) -> Built {
        let words = self.words(field, text)?;
        let [word] = words.as_slice() else {
            if words.is_empty() {
                return Ok(None);
            }
            let message = "a prefix is one word; combine several parts with AND".to_owned();
            return Err(self.error(message, text));
        };
        // A Levenshtein automaton of distance 0 is the plain prefix automaton, for text and for JSON paths alike.
        let term = match self.split.fields.schema.get_field_entry(field).field_type() {
            FieldType::JsonObject(options) => {
                let mut term = Term::from_field_json_path(field, path, options.is_expand_dots_enabled());
                term.append_type_and_str(word);
                term
            }
            _ => Term::from_field_text(field, word),
        };
        Ok(Some(Box::new(FuzzyTermQuery::new_prefix(term, 0, false))))
    }

    fn range(&self, name: Option<&str>, lower: &UserInputBound, upper: &UserInputBound) -> Built {
        let Some(name) = name else {
            return Err(self.error(format!("a range needs a field in front, one of {FIELDS}"), "["));
        };
        let (field, _) = self.field(name)?;
        if self.type_of(field) == Type::Json {
            let message =
                format!("ranges over {name} are not supported; they are over timestamp, offset, key and value");
            return Err(self.error(message, name));
        }
        let is_open = |bound: &UserInputBound| bound.term_str() == "*";
        if is_open(lower) && is_open(upper) {
            return Ok(Some(Box::new(AllQuery)));
        }
        let bound = |bound: &UserInputBound| -> Result<UserInputBound, QueryError> {
            if field != self.split.fields.timestamp || is_open(bound) {
                return Ok(bound.clone());
            }
            Ok(match bound {
                UserInputBound::Inclusive(text) => UserInputBound::Inclusive(self.millis(text)?),
                UserInputBound::Exclusive(text) => UserInputBound::Exclusive(self.millis(text)?),
                UserInputBound::Unbounded => UserInputBound::Unbounded,
            })
        };
        let (lower, upper) = (bound(lower)?, bound(upper)?);
        self.tantivy(UserInputLeaf::Range { field: Some(name.to_owned()), lower, upper }, name)
    }

    /// Lets Tantivy make terms of a leaf.
    fn tantivy(&self, leaf: UserInputLeaf, near: &str) -> Built {
        use tantivy::query::QueryParserError::{ExpectedInt, FieldDoesNotHavePositionsIndexed, UnsupportedQuery};
        match self.leaves.build_query_from_user_input_ast(leaf.into()) {
            Ok(query) => Ok(Some(query)),
            Err(FieldDoesNotHavePositionsIndexed(field)) => {
                let message = format!(
                    "{near:?} is a phrase, and {field} is indexed without positions here; combine the words with AND, \
                     or set search.positions=true for messages to come"
                );
                Err(self.error(message, near))
            }
            Err(ExpectedInt(_)) => Err(self.error(format!("{near:?} is not a whole number"), near)),
            Err(UnsupportedQuery(message)) => Err(self.error(message, near)),
            Err(error) => Err(self.error(error.to_string(), near)),
        }
    }

    /// The field a name means, and the path inside it.
    fn field<'n>(&self, name: &'n str) -> Result<(Field, &'n str), QueryError> {
        let Some((field, path)) = self.split.fields.schema.find_field(name) else {
            let message = format!("there is no field {name:?}, only {FIELDS}; put text with a colon in quotes");
            return Err(self.error(message, name));
        };
        match (self.type_of(field), path.is_empty()) {
            (Type::Json, true) => {
                let message = format!("{name} needs a name behind it, like {name}.id:42");
                Err(self.error(message, name))
            }
            (kind, false) if kind != Type::Json => {
                Err(self.error(format!("{name} does not exist; only headers and json have parts"), name))
            }
            _ => Ok((field, path)),
        }
    }

    fn type_of(&self, field: Field) -> Type {
        self.split.fields.schema.get_field_entry(field).field_type().value_type()
    }

    /// The words that the field's analyser finds in `text`.
    fn words(&self, field: Field, text: &str) -> Result<Vec<String>, QueryError> {
        let mut analyser = self
            .index
            .tokenizer_for_field(field)
            .map_err(|source| self.error(format!("the field cannot be searched for words: {source}"), text))?;
        let mut words = Vec::new();
        analyser.token_stream(text).process(&mut |token| words.push(token.text.clone()));
        Ok(words)
    }

    /// Milliseconds as text, from milliseconds, RFC 3339 or a day.
    fn millis(&self, text: &str) -> Result<String, QueryError> {
        let moment = text.parse::<i64>().ok();
        let moment = moment.or_else(|| DateTime::parse_from_rfc3339(text).ok().map(|time| time.timestamp_millis()));
        let day = || NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0);
        let moment = moment.or_else(|| day().map(|time| time.and_utc().timestamp_millis()));
        moment.map(|millis| millis.to_string()).ok_or_else(|| {
            let example = "write it like 2015-05-17, \"2015-05-17T10:05:03Z\" or 1431857103000";
            self.error(format!("{text:?} is not a time; {example}"), text)
        })
    }

    fn error(&self, message: String, near: &str) -> QueryError {
        let column = self.text.find(near).filter(|_| !near.is_empty());
        let column = column.and_then(|at| self.text.get(..at)).map(|before| before.chars().count() + 1);
        QueryError { message, column }
    }
}

/// `word~` or `word~2`, which Lucene reads as a fuzzy term.
fn is_fuzzy(word: &str) -> bool {
    word.rsplit_once('~').is_some_and(|(word, distance)| {
        word.ends_with(char::is_alphanumeric) && distance.len() <= 1 && distance.chars().all(|c| c.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests;
