//! The query language: text in, a tree out.
//!
//! | written | means |
//! |---|---|
//! | nothing, `*` | every message |
//! | `late parcel` | both words in the value (AND is the default) |
//! | `late OR lost`, `late AND NOT lost`, `+late -lost`, `(a OR b) c` | as in Lucene, with `&&`, `\|\|` and `!` too |
//! | `"late parcel"`, `"late parcel"~2` | a phrase, or its words moved by at most so many places; needs `search.positions` |
//! | `par*` | words that start so |
//! | `pa?cel`, `*time*`, `/(get\|post).*/` | words that fit; see `pattern.rs` |
//! | `key:k42`, `headers.trace:abc`, `json.user.id:42` | another field; unnamed words are looked for in `value` |
//! | `_exists_:json.user.id` | the same as `json.user.id:*` |
//! | `key:(k1 OR k2)`, `json.user.id: IN [7 42]` | several values of one field |
//! | `json.user.id:*` | messages in which the field has a word, number or truth value |
//! | `json.ok:true`, `json.t:-5` | truth values and numbers of JSON, however they are written; text that says the same, too |
//! | `json.status:>=500`, `json.latency:[100 TO 500}` | ranges of numbers; `[` and `]` include, `{` and `}` exclude, `*` leaves open |
//! | `value:[a TO c}`, `json.level:["1" TO "5"]` | ranges of words: where a bound is no number, or quoted, or the field is not JSON |
//! | `timestamp:[2015-05-17 TO 2015-05-18}`, `timestamp:>=now-15m` | ranges of time; see `time.rs` |
//! | `offset:[100 TO 200]` | ranges of offsets |
//! | `topic:orders`, `topic:ord*`, `NOT topic:orders` | topics, by their exact name, its beginning or a pattern |
//! | `partition:0`, `_id:"orders/0/42"` | a partition; one message |
//! | `late^3` | its score times three |
//!
//! Words are what the analyser makes of the text: `foo-bar` is two words in a row, hence a phrase. A part without any
//! word (`---`) is left out, as Lucene does; a query of such parts only finds nothing. A query that only excludes
//! starts from every message. What the language does not offer (fuzziness) is refused with a message, never guessed at.
//! A backslash takes the next character as it is.
//!
//! AND binds tighter than OR. Between clauses without either, both are required; a clause beside an OR is optional.
//!
//! The parser goes down one level for each parenthesis and NOT, and its input comes from the network, hence the limits
//! on length and nesting; every clause costs in every split, hence the one on clauses.

mod clauses;
mod word;

use std::ops::Bound;

use thermocline_ingest::model::Timestamp;

use super::ast::{FieldName, Literal, LiteralValue, Operator, Place, QueryError, QueryNode, SearchQuery, Text};
use super::pattern::{Case, PATTERNS_MAX, Part, Pattern, too_many};
use clauses::{Clause, Link, Occur, boolean, combine, not};
use word::Word;

/// Longest query, in bytes.
pub const QUERY_LEN_MAX: usize = 64 << 10;
/// Most clauses and values in one query.
pub const QUERY_CLAUSES_MAX: usize = 4096;
/// Most parentheses and NOTs inside each other.
pub const QUERY_NESTING_MAX: usize = 64;
/// Largest `^boost`.
pub const BOOST_MAX: f32 = 1e6;
/// Largest `~slop` of a phrase.
pub const SLOP_MAX: u32 = 255;

/// Characters that end a bound of a range.
const ENDS_OF_BOUND: [char; 7] = ['{', '}', '"', '[', ']', '(', ')'];
/// Characters that a field name has only behind a backslash.
const NOT_IN_FIELDS: [char; 15] = ['+', '^', '`', ':', '{', '}', '"', '\'', '[', ']', '(', ')', '!', '\\', '*'];

type Parsed<T> = Result<T, QueryError>;

impl SearchQuery {
    pub fn parse(text: &str, now: Timestamp) -> Parsed<Self> {
        Self::parse_with(text, now, Operator::And)
    }

    /// Reads a query in which `default` stands between clauses that have nothing between them.
    pub fn parse_with(text: &str, now: Timestamp, default: Operator) -> Parsed<Self> {
        if text.len() > QUERY_LEN_MAX {
            let message = format!("a query of {} bytes exceeds the limit of {QUERY_LEN_MAX}", text.len());
            return Err(QueryError::new(message, None));
        }
        let mut parser = Parser {
            chars: text.chars().collect(),
            at: 0,
            depth: 0,
            clauses_left: QUERY_CLAUSES_MAX,
            patterns_left: PATTERNS_MAX,
            default,
        };
        parser.skip_space();
        if parser.peek().is_none() {
            return Ok(Self { root: QueryNode::All, now });
        }
        let root = parser.clauses(None)?;
        match parser.peek() {
            // Only this ends a list of clauses before the end of the text.
            Some(_) => Err(parser.error("this parenthesis was not opened")),
            None => Ok(Self { root, now }),
        }
    }
}

struct Parser {
    chars: Vec<char>,
    at: usize,
    depth: usize,
    clauses_left: usize,
    patterns_left: usize,
    default: Operator,
}

impl Parser {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn peek_at(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    /// Of the next character.
    fn column(&self) -> usize {
        self.at + 1
    }

    fn error(&self, message: impl Into<String>) -> QueryError {
        error_at(message, self.column())
    }

    fn skip_space(&mut self) {
        while self.peek().is_some_and(char::is_whitespace) {
            self.at += 1;
        }
    }

    fn take(&mut self, expected: char) -> bool {
        let found = self.peek() == Some(expected);
        self.at += usize::from(found);
        found
    }

    /// Whether the next characters are `word`, and a space, a parenthesis or the end behind it.
    fn is_at(&self, word: &str) -> bool {
        let len = word.chars().count();
        self.chars.get(self.at..self.at + len).is_some_and(|next| next.iter().copied().eq(word.chars()))
            && self.peek_at(len).is_none_or(|c| c.is_whitespace() || c == '(' || c == ')')
    }

    fn nested<T>(&mut self, inner: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth == QUERY_NESTING_MAX {
            return Err(self.error(format!("more than {QUERY_NESTING_MAX} parentheses and NOTs inside each other")));
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    /// Before one is made.
    fn count_pattern(&mut self, column: usize) -> Parsed<()> {
        self.patterns_left = self.patterns_left.checked_sub(1).ok_or_else(|| too_many(Some(column)))?;
        Ok(())
    }

    fn count_clause(&mut self) -> Parsed<()> {
        match self.clauses_left.checked_sub(1) {
            Some(left) => self.clauses_left = left,
            None => return Err(self.error(format!("a query has at most {QUERY_CLAUSES_MAX} clauses and values"))),
        }
        Ok(())
    }

    /// Up to the end or a closing parenthesis. `field` is the one that a parenthesis was opened for.
    fn clauses(&mut self, field: Option<&FieldName>) -> Parsed<QueryNode> {
        let mut clauses: Vec<Clause> = Vec::new();
        loop {
            self.skip_space();
            if self.peek().is_none_or(|c| c == ')') {
                break;
            }
            let link_column = self.column();
            let link = self.link();
            if link.is_some() {
                self.skip_space();
                if clauses.is_empty() || self.peek().is_none_or(|c| c == ')') || self.link().is_some() {
                    let message = "AND and OR stand between two clauses; put them in quotes to look for them";
                    return Err(error_at(message, link_column));
                }
            }
            let sign = self.sign()?;
            let is_plain = link.is_none() && sign.is_none() && !clauses.is_empty() && !self.is_negated();
            let link = if is_plain && self.default == Operator::Or { Some(Link::Or) } else { link };
            let node = self.clause(field)?;
            let node = self.boosted(node)?;
            if let Some(next) = self.peek().filter(|c| !c.is_whitespace() && *c != ')') {
                let message = format!("unexpected {next:?}; put text with special characters in quotes");
                return Err(self.error(message));
            }
            clauses.push(Clause { link, sign, node });
        }
        if clauses.is_empty() {
            return Err(self.error("expected something to look for"));
        }
        Ok(combine(clauses))
    }

    fn link(&mut self) -> Option<Link> {
        let links = [("AND", Link::And), ("&&", Link::And), ("OR", Link::Or), ("||", Link::Or)];
        let (word, link) = links.into_iter().find(|(word, _)| self.is_at(word))?;
        self.at += word.len();
        Some(link)
    }

    fn sign(&mut self) -> Parsed<Option<Occur>> {
        let occur = match self.peek() {
            Some('+') => Occur::Must,
            Some('-') => Occur::MustNot,
            _ => return Ok(None),
        };
        if self.peek_at(1).is_none_or(|c| c.is_whitespace() || c == ')') {
            return Err(self.error("+ and - stand right before a clause; put them in quotes as a part of a text"));
        }
        self.at += 1;
        Ok(Some(occur))
    }

    /// Whether a NOT is next.
    fn is_negated(&self) -> bool {
        self.is_at("NOT")
            || (self.peek() == Some('!') && self.peek_at(1).is_some_and(|c| !c.is_whitespace() && c != ')'))
    }

    fn clause(&mut self, field: Option<&FieldName>) -> Parsed<QueryNode> {
        if self.is_at("NOT") {
            let column = self.column();
            self.at += "NOT".len();
            self.skip_space();
            if self.peek().is_none_or(|c| c == ')') {
                return Err(error_at("NOT stands before a clause; put it in quotes to look for it", column));
            }
            return Ok(not(self.nested(|parser| parser.clause(field))?));
        }
        if self.peek() == Some('!') && self.peek_at(1).is_some_and(|c| !c.is_whitespace() && c != ')') {
            self.at += 1;
            return Ok(not(self.nested(|parser| parser.clause(field))?));
        }
        if self.peek() == Some('(') {
            return self.group(field);
        }
        match self.field_name() {
            Some(name) => {
                self.skip_space();
                if self.peek() == Some('(') { self.group(Some(&name)) } else { self.value(Some(&name)) }
            }
            None => self.value(field),
        }
    }

    fn group(&mut self, field: Option<&FieldName>) -> Parsed<QueryNode> {
        let column = self.column();
        self.nested(|parser| {
            parser.at += 1;
            let node = parser.clauses(field)?;
            if parser.take(')') { Ok(node) } else { Err(error_at("this parenthesis is not closed", column)) }
        })
    }

    /// A name and the colon behind it; nothing is read where there is none.
    fn field_name(&mut self) -> Option<FieldName> {
        let (start, column) = (self.at, self.column());
        let mut name = String::new();
        while let Some(c) = self.peek() {
            if c == '\\' && self.peek_at(1).is_some() {
                self.at += 1;
                name.extend(self.peek());
            } else if c.is_whitespace() || NOT_IN_FIELDS.contains(&c) || (name.is_empty() && c == '-') {
                break;
            } else {
                name.push(c);
            }
            self.at += 1;
        }
        self.skip_space();
        if !name.is_empty() && self.take(':') {
            return Some(FieldName { name, column: Some(column) });
        }
        self.at = start;
        None
    }

    fn boosted(&mut self, node: QueryNode) -> Parsed<QueryNode> {
        let column = self.column();
        if !self.take('^') {
            return Ok(node);
        }
        let mut number = String::new();
        while let Some(c) = self.peek().filter(|c| c.is_ascii_digit() || *c == '.') {
            number.push(c);
            self.at += 1;
        }
        match number.parse::<f32>() {
            Ok(factor) if factor <= BOOST_MAX => Ok(QueryNode::Boost { node: Box::new(node), factor }),
            Ok(_) => Err(error_at(format!("a boost may be at most {BOOST_MAX}"), column)),
            Err(_) => Err(error_at("a boost is a number, like ^2 or ^0.5", column)),
        }
    }

    /// What stands behind a field, or alone.
    fn value(&mut self, field: Option<&FieldName>) -> Parsed<QueryNode> {
        self.count_clause()?;
        if field.is_some_and(|field| field.name == "_exists_") {
            return self.exists();
        }
        let place = field.map_or(Ok(Place::Value), FieldName::place)?;
        let column = self.column();
        if let Some(field) = field.filter(|_| self.is_set()) {
            return self.set(field);
        }
        match self.peek() {
            None => Err(self.error("expected something to look for")),
            Some('[' | '{' | '<' | '>') => {
                let Some(field) = field else {
                    let message =
                        "a range needs a field in front, like timestamp:[2015-05-17 TO now]; put text in quotes";
                    return Err(self.error(message));
                };
                self.range(field)
            }
            Some('*') if self.peek_at(1).is_none_or(|c| word::ends(c, field.is_some())) => {
                self.at += 1;
                Ok(field.cloned().map_or(QueryNode::All, |field| QueryNode::Exists { field }))
            }
            Some('/') if self.is_regex() => {
                self.count_pattern(column)?;
                let pattern = Pattern::regex(&self.slashed(), case_of(place), Some(column))?;
                Ok(QueryNode::Pattern { field: field_or_value(field), pattern })
            }
            Some('"' | '\'') => {
                let text = self.quoted()?;
                let field = field_or_value(field);
                if place.is_of_every_message() {
                    return Ok(leaf(field, text));
                }
                match self.peek() {
                    Some('~') => Ok(QueryNode::Phrase { field, text, slop: self.slop()? }),
                    Some('*') => {
                        self.at += 1;
                        Ok(QueryNode::Prefix { field, text })
                    }
                    _ => Ok(leaf(field, text)),
                }
            }
            Some(_) => {
                let word = self.word(field.is_some())?;
                if ["AND", "OR", "NOT", "IN"].contains(&word.text.as_str()) {
                    let message =
                        format!("{0} is a word of the query language; write \"{0}\" to look for it", word.text);
                    return Err(error_at(message, column));
                }
                word.into_node(field_or_value(field), place, self)
            }
        }
    }

    /// The name of a field, behind `_exists_:`.
    fn exists(&mut self) -> Parsed<QueryNode> {
        let (name, column) = match self.peek() {
            Some('"' | '\'') => {
                let Text { text, column } = self.quoted()?;
                (text, column)
            }
            _ => {
                let Word { text, column, parts } = self.word(true)?;
                if parts.iter().any(Part::is_wildcard) {
                    return Err(error_at("_exists_ is about one field; name it in full", column));
                }
                (text, Some(column))
            }
        };
        let field = FieldName { name, column };
        field.place()?;
        Ok(QueryNode::Exists { field })
    }

    /// Between quotes of either kind.
    fn quoted(&mut self) -> Parsed<Text> {
        let column = self.column();
        let quote = self.peek();
        self.at += 1;
        let mut text = String::new();
        loop {
            match self.peek() {
                None => return Err(error_at("this quote is not closed", column)),
                Some('\\') if self.peek_at(1).is_some() => {
                    text.extend(self.peek_at(1));
                    self.at += 2;
                }
                next if next == quote => break,
                next => {
                    text.extend(next);
                    self.at += 1;
                }
            }
        }
        self.at += 1;
        Ok(Text { text, column: Some(column + 1) })
    }

    fn slop(&mut self) -> Parsed<u32> {
        let column = self.column();
        self.at += 1;
        let mut digits = String::new();
        while let Some(c) = self.peek().filter(char::is_ascii_digit) {
            digits.push(c);
            self.at += 1;
        }
        match digits.parse::<u32>() {
            Ok(slop) if slop <= SLOP_MAX => Ok(slop),
            _ => Err(error_at(format!("how far words may be moved is a number up to {SLOP_MAX}"), column)),
        }
    }

    /// `[a TO b}`, `>=a` and the like.
    fn range(&mut self, field: &FieldName) -> Parsed<QueryNode> {
        let column = self.column();
        let opening = self.peek();
        self.at += 1;
        let (lower, upper) = match opening {
            Some(sign @ ('<' | '>')) => {
                let is_inclusive = self.take('=');
                let bound = self.bound(field, is_inclusive)?;
                if sign == '>' { (bound, Bound::Unbounded) } else { (Bound::Unbounded, bound) }
            }
            _ => {
                let lower = self.bound(field, opening == Some('['))?;
                self.skip_space();
                let to = self.column();
                if !self.is_at("TO") {
                    return Err(error_at("expected TO and the end of the range, as in [1 TO 5]", to));
                }
                self.at += "TO".len();
                let upper = self.bound(field, true)?;
                self.skip_space();
                match (self.peek(), upper) {
                    (Some(']'), upper) => (lower, upper),
                    (Some('}'), Bound::Included(literal)) => (lower, Bound::Excluded(literal)),
                    (Some('}'), upper) => (lower, upper),
                    (Some(_), _) => return Err(self.error("expected ] or } at the end of the range")),
                    (None, _) => return Err(error_at("this range is not closed with ] or }", column)),
                }
            }
        };
        if matches!(opening, Some('[' | '{')) {
            self.at += 1;
        }
        Ok(QueryNode::Range { field: field.clone(), lower, upper })
    }

    fn bound(&mut self, field: &FieldName, is_inclusive: bool) -> Parsed<Bound<Literal>> {
        self.skip_space();
        let (column, start) = (self.column(), self.at);
        let literal = if self.peek() == Some('"') {
            let text = self.quoted()?;
            Literal { value: text.text.into(), column: text.column }
        } else {
            let mut text = String::new();
            while let Some(c) = self.peek().filter(|c| !c.is_whitespace() && !ENDS_OF_BOUND.contains(c)) {
                text.push(c);
                self.at += 1;
            }
            if self.at == start || text == "TO" {
                return Err(error_at("expected a bound of the range, or * for none", column));
            }
            if text == "*" {
                return Ok(Bound::Unbounded);
            }
            // Only in JSON are there numbers and truth values; elsewhere `007` is not 7.
            let is_typed = matches!(field.place(), Ok(Place::Json(_)));
            let value = if is_typed { LiteralValue::of_word(&text) } else { text.into() };
            Literal { value, column: Some(column) }
        };
        Ok(if is_inclusive { Bound::Included(literal) } else { Bound::Excluded(literal) })
    }

    /// Whether `IN [` comes next.
    fn is_set(&self) -> bool {
        let rest = self.chars.get(self.at..).unwrap_or_default();
        let mut behind = rest.iter().skip(2).skip_while(|c| c.is_whitespace());
        rest.starts_with(&['I', 'N']) && behind.next() == Some(&'[')
    }

    fn set(&mut self, field: &FieldName) -> Parsed<QueryNode> {
        self.at += "IN".len();
        self.skip_space();
        let column = self.column();
        self.at += 1;
        let mut should = Vec::new();
        loop {
            self.skip_space();
            self.count_clause()?;
            match self.peek() {
                None => return Err(error_at("this set is not closed with ]", column)),
                Some(']') => break,
                Some('"' | '\'') => should.push(leaf(field.clone(), self.quoted()?)),
                Some(_) => {
                    let Word { text, column, .. } = self.word(true)?;
                    should.push(leaf(field.clone(), Text { text, column: Some(column) }));
                }
            }
            if let Some(next) = self.peek().filter(|c| !c.is_whitespace() && *c != ']') {
                return Err(self.error(format!("unexpected {next:?}; put a space between the values of a set")));
            }
        }
        self.at += 1;
        if should.is_empty() {
            return Ok(QueryNode::Nothing);
        }
        Ok(boolean(Vec::new(), should, Vec::new()))
    }
}

fn error_at(message: impl Into<String>, column: usize) -> QueryError {
    QueryError::new(message, Some(column))
}

fn case_of(place: Place<'_>) -> Case {
    if place == Place::Topic { Case::Kept } else { Case::Folded }
}

fn field_or_value(field: Option<&FieldName>) -> FieldName {
    field.cloned().unwrap_or_else(|| FieldName::from("value"))
}

/// One value of a field, without wildcards.
fn leaf(field: FieldName, text: Text) -> QueryNode {
    let Text { text, column } = text;
    match field.place() {
        Ok(Place::Id) => QueryNode::with_id(&text),
        Ok(place) if place.is_of_every_message() => {
            QueryNode::Exact { field, value: Literal { value: LiteralValue::Text(text), column } }
        }
        _ => QueryNode::Phrase { field, text: Text { text, column }, slop: 0 },
    }
}

#[cfg(test)]
mod tests;
