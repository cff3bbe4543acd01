//! Words, with the wildcards in them, and regular expressions.

use super::{Parsed, Parser, case_of, error_at, leaf};
use crate::search::ast::{FieldName, Place, QueryNode, Text};
use crate::search::pattern::{Part, Pattern};

/// Characters that end a word, unless a backslash stands before them.
const ENDS: [char; 10] = ['^', '`', ':', '{', '}', '"', '[', ']', '(', ')'];

/// Whether a word ends before `c`; behind a field a colon is a part of it.
pub(super) fn ends(c: char, is_behind_field: bool) -> bool {
    c.is_whitespace() || (ENDS.contains(&c) && !(c == ':' && is_behind_field))
}

/// A bare word as it was written.
pub(super) struct Word {
    pub text: String,
    pub column: usize,
    /// The same with `*` and `?` as wildcards.
    pub parts: Vec<Part>,
}

impl Parser {
    /// A word up to a space or a special character.
    pub(super) fn word(&mut self, is_behind_field: bool) -> Parsed<Word> {
        let (start, column) = (self.at, self.column());
        let mut word = Word { text: String::new(), column, parts: Vec::new() };
        while let Some(c) = self.peek() {
            if c == '\\' {
                let Some(next) = self.peek_at(1) else {
                    return Err(self.error("a backslash stands before another character"));
                };
                // Before letters and digits it is text, as in a path.
                if next.is_alphanumeric() {
                    word.push(c);
                }
                word.push(next);
                self.at += 2;
                continue;
            }
            let is_minus = self.at == start && c == '-' && !self.peek_at(1).is_some_and(|c| c.is_ascii_digit());
            if ends(c, is_behind_field) || is_minus {
                break;
            }
            match c {
                '*' => word.push_wildcard(c, Part::Any),
                '?' => word.push_wildcard(c, Part::One),
                c => word.push(c),
            }
            self.at += 1;
        }
        if self.at > start {
            return Ok(word);
        }
        Err(match self.peek() {
            Some(c) if !c.is_whitespace() && c != ')' => {
                self.error(format!("unexpected {c:?}; put text with special characters in quotes"))
            }
            _ => self.error("expected something to look for"),
        })
    }

    /// Between the slashes of a regular expression.
    pub(super) fn slashed(&mut self) -> String {
        self.at += 1;
        let mut text = String::new();
        while let Some(c) = self.peek().filter(|c| *c != '/') {
            self.at += 1;
            // Only before a slash does the backslash go: it is there for the query language.
            if c == '\\'
                && let Some(next) = self.peek()
            {
                self.at += 1;
                if next != '/' {
                    text.push(c);
                }
                text.push(next);
                continue;
            }
            text.push(c);
        }
        self.at += 1;
        text
    }

    /// Whether a pattern between slashes comes next, and not a path.
    pub(super) fn is_regex(&self) -> bool {
        let rest = self.chars.get(self.at + 1..).unwrap_or_default();
        let mut escaped = false;
        let end = rest.iter().position(|c| {
            let ends = *c == '/' && !escaped;
            escaped = *c == '\\' && !escaped;
            ends
        });
        let Some(end) = end.filter(|end| *end > 0) else { return false };
        rest.get(end + 1).is_none_or(|c| c.is_whitespace() || *c == ')' || *c == '^')
    }
}

impl Word {
    fn push(&mut self, c: char) {
        self.text.push(c);
        Part::push(&mut self.parts, c);
    }

    fn push_wildcard(&mut self, written: char, part: Part) {
        self.text.push(written);
        self.parts.push(part);
    }

    pub(super) fn into_node(self, field: FieldName, place: Place<'_>, parser: &mut Parser) -> Parsed<QueryNode> {
        let column = Some(self.column);
        match self.parts.as_slice() {
            // Times and offsets have no wildcards; what is wrong with these is said when they are read.
            _ if matches!(place, Place::Timestamp | Place::Offset) => {}
            [] | [Part::Text(_)] => {}
            [Part::Text(start), Part::Any] => {
                return Ok(QueryNode::Prefix { field, text: Text { text: start.clone(), column } });
            }
            parts => {
                parser.count_pattern(self.column)?;
                let pattern = Pattern::wildcard(parts, case_of(place), column)?;
                return Ok(QueryNode::Pattern { field, pattern });
            }
        }
        if !place.is_of_every_message() && is_fuzzy(&self.text) {
            let message = format!("fuzzy search is not supported; write \"{}\" to look for it as text", self.text);
            return Err(error_at(message, self.column));
        }
        Ok(leaf(field, Text { text: self.text, column }))
    }
}

/// `word~` or `word~2`, which Lucene reads as a fuzzy term.
fn is_fuzzy(word: &str) -> bool {
    word.rsplit_once('~').is_some_and(|(word, distance)| {
        word.ends_with(char::is_alphanumeric) && distance.len() <= 1 && distance.chars().all(|c| c.is_ascii_digit())
    })
}
