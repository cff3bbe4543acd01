//! Patterns of one word: wildcards and regular expressions.
//!
//! A pattern is about a word as it is indexed, and about all of it. The case of letters makes no difference, as the
//! index has none; only names, which are not cut into words, are compared as they are.
//!
//! | written | means |
//! |---|---|
//! | `te?t`, `*timeout*`, `web*01` | `?` is one character, `*` any number of them; a backslash takes the next one as it is |
//! | `/tim.*/`, `/(get\|post)[0-9]{3}/` | what Lucene's and Rust's regular expressions have in common, see below |
//!
//! Of regular expressions: `.`, `?`, `+`, `*`, `{n,m}`, `|`, parentheses, classes like `[a-z]` and `[^0-9]`, the
//! classes `\d`, `\w`, `\s` and their opposites, and a backslash before any other character that is no letter or digit.
//! What the two do not agree on is refused, never guessed at.
//!
//! Patterns come from the network. Their matcher takes time linear in the word, and its size is limited; how many words
//! they are compared with is limited where those are read (`terms.rs`).

use regex::bytes::{Regex, RegexBuilder};
use thermocline_tiering::split::Analyser;

use super::ast::{Column, QueryError};

/// Longest pattern, in bytes.
pub const PATTERN_LEN_MAX: usize = 1000;
/// Patterns in one query: each is compared with every word of its field.
pub const PATTERNS_MAX: usize = 64;
/// Largest matcher of one pattern, in bytes.
const MATCHER_BYTES_MAX: usize = 1 << 20;

/// Whether the case of letters makes a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Case {
    /// As in words, which are indexed in lower case.
    Folded,
    /// As in names.
    Kept,
}

/// A part of a word with wildcards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Text(String),
    /// One character.
    One,
    /// Any number of characters.
    Any,
}

/// A checked pattern.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    written: String,
    column: Column,
    /// Text between the wildcards; empty of a regular expression.
    texts: Vec<String>,
    /// What a match starts with, as it is indexed.
    start: String,
    regex: Regex,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.column == other.column && self.regex.as_str() == other.regex.as_str()
    }
}

impl Part {
    /// The parts of a text in which `*` and `?` are wildcards unless a backslash stands before them.
    pub fn all_of(text: &str) -> Vec<Self> {
        let mut parts = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            match c {
                '*' => parts.push(Self::Any),
                '?' => parts.push(Self::One),
                '\\' => Self::push(&mut parts, chars.next().unwrap_or('\\')),
                c => Self::push(&mut parts, c),
            }
        }
        parts
    }

    pub fn is_wildcard(&self) -> bool {
        !matches!(self, Self::Text(_))
    }

    /// Adds a character that stands for itself.
    pub fn push(parts: &mut Vec<Self>, c: char) {
        match parts.last_mut() {
            Some(Self::Text(text)) => text.push(c),
            _ => parts.push(Self::Text(c.into())),
        }
    }
}

impl Pattern {
    /// A word with wildcards.
    pub fn wildcard(parts: &[Part], case: Case, column: Column) -> Result<Self, QueryError> {
        let as_indexed = |text: &String| match case {
            Case::Folded => text.chars().flat_map(char::to_lowercase).collect(),
            Case::Kept => text.clone(),
        };
        let (mut written, mut regex, mut texts) = (String::new(), String::new(), Vec::new());
        for part in parts {
            match part {
                Part::Text(text) => {
                    written.push_str(text);
                    regex.push_str(&regex::escape(&as_indexed(text)));
                    texts.push(text.clone());
                }
                Part::One => {
                    written.push('?');
                    regex.push('.');
                }
                Part::Any => {
                    written.push('*');
                    regex.push_str(".*");
                }
            }
        }
        let start = match parts.first() {
            Some(Part::Text(text)) => as_indexed(text),
            _ => String::new(),
        };
        // What is looked for is in lower case already.
        let regex = matcher(&written, &regex, Case::Kept, column)?;
        Ok(Self { written, column, texts, start, regex })
    }

    /// A regular expression, without the slashes around it.
    pub fn regex(text: &str, case: Case, column: Column) -> Result<Self, QueryError> {
        let regex = matcher(text, &translated(text, column)?, case, column)?;
        Ok(Self { written: text.to_owned(), column, texts: Vec::new(), start: String::new(), regex })
    }

    pub fn matches(&self, word: &[u8]) -> bool {
        self.regex.is_match(word)
    }

    /// What every match starts with, in lower case.
    pub fn start(&self) -> &str {
        &self.start
    }

    pub fn matcher(&self) -> &Regex {
        &self.regex
    }

    /// Refuses text that no word can have in it: it would find nothing, whatever is there.
    pub fn check(&self, analyser: Analyser) -> Result<(), QueryError> {
        match self.texts.iter().find(|text| !analyser.may_stand_in_word(text)) {
            None => Ok(()),
            Some(text) => Err(self.error(format!(
                "a pattern is about one word, and {text:?} is never a part of one; combine several parts with AND, or \
                 put text with * and ? in quotes"
            ))),
        }
    }

    pub fn error(&self, message: impl Into<String>) -> QueryError {
        QueryError::new(message, self.column)
    }

    pub fn too_many(&self) -> QueryError {
        too_many(self.column)
    }

    /// As it was given.
    pub fn written(&self) -> &str {
        &self.written
    }
}

/// That a query has more than [`PATTERNS_MAX`]. Readers of queries say so before they make another matcher, for a query
/// has room for thousands.
pub(crate) fn too_many(column: Column) -> QueryError {
    QueryError::new(format!("more than {PATTERNS_MAX} wildcards and regular expressions in one query"), column)
}

fn matcher(written: &str, regex: &str, case: Case, column: Column) -> Result<Regex, QueryError> {
    if written.len() > PATTERN_LEN_MAX {
        let message = format!("a pattern of {} bytes exceeds the limit of {PATTERN_LEN_MAX}", written.len());
        return Err(QueryError::new(message, column));
    }
    let whole = RegexBuilder::new(&format!("^(?:{regex})$"))
        .case_insensitive(case == Case::Folded)
        .dot_matches_new_line(true)
        .size_limit(MATCHER_BYTES_MAX)
        .build();
    whole.map_err(|error| {
        let message = match error {
            regex::Error::CompiledTooBig(limit) => {
                format!("the pattern {written:?} takes more than {limit} bytes; ask for fewer repetitions")
            }
            // What the library says is a drawing of several lines, about a text that was changed; its last line says
            // why.
            error => {
                let error = error.to_string();
                let reason = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
                format!("the regular expression {written:?} cannot be read: {reason}")
            }
        };
        QueryError::new(message, column)
    })
}

/// A regular expression in the library's syntax. What means something else there, or something here that the library
/// does not know, is refused.
fn translated(text: &str, column: Column) -> Result<String, QueryError> {
    let refused = |message: String| Err(QueryError::new(message, column));
    let mut regex = String::with_capacity(text.len());
    // Inside of a class: whether nothing of it has been read yet.
    let mut class = None;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let is_first = class == Some(true);
        class = class.map(|_| false);
        match (c, class.is_some()) {
            ('\\', _) => match chars.next() {
                Some(next @ ('d' | 'D' | 'w' | 'W' | 's' | 'S')) => regex.extend(['\\', next]),
                Some(next) if next.is_alphanumeric() => {
                    return refused(format!("\\{next} is not supported in regular expressions, only \\d, \\w and \\s"));
                }
                Some(next) => regex.push_str(&regex::escape(next.encode_utf8(&mut [0; 4]))),
                None => return refused("a backslash stands before another character".to_owned()),
            },
            ('[', false) => {
                class = Some(true);
                regex.push('[');
                if chars.next_if_eq(&'^').is_some() {
                    regex.push('^');
                }
            }
            (']', true) if !is_first => {
                class = None;
                regex.push(']');
            }
            ('-', true) if chars.peek() == Some(&'-') => {
                return refused("put a backslash before - in a class where it is no range".to_owned());
            }
            ('-', true) => regex.push('-'),
            (c, true) => regex.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
            ('^' | '$', false) => {
                return refused(format!(
                    "a pattern is about a whole word; leave {c} out, or put a backslash before it"
                ));
            }
            ('~' | '&' | '<' | '@' | '#' | '"', false) => {
                return refused(format!("{c} is not supported in regular expressions; put a backslash before it"));
            }
            ('(', false) if chars.peek() == Some(&'?') => {
                return refused("(? is not supported in regular expressions".to_owned());
            }
            (c, false) => regex.push(c),
        }
    }
    Ok(regex)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wildcard(text: &str, case: Case) -> Pattern {
        Pattern::wildcard(&Part::all_of(text), case, None).unwrap()
    }

    #[test]
    fn wildcards_stand_for_characters() {
        for (pattern, word, expected) in [
            ("te?t", "test", true),
            ("te?t", "teüt", true),
            ("te?t", "tet", false),
            ("te?t", "tests", false),
            ("*Time*", "uptimes", true),
            ("*time*", "time", true),
            ("web*01", "web01", true),
            ("web*01", "web-eu-01", true),
            ("web*01", "web-eu-01x", false),
            ("Ü*r", "ümmer", true),
            ("a.b*", "axb", false),
            ("a\\*b*", "a*bc", true),
            ("a\\*b*", "axbc", false),
            ("?", "", false),
            ("*", "", true),
        ] {
            let found = wildcard(pattern, Case::Folded).matches(word.as_bytes());
            assert_eq!(found, expected, "{pattern} {word}");
        }
        assert!(wildcard("Ord*s", Case::Kept).matches(b"Orders"));
        assert!(!wildcard("Ord*s", Case::Kept).matches(b"orders"));
        assert_eq!(wildcard("We*b", Case::Folded).start(), "we");
        assert_eq!(wildcard("*b", Case::Folded).start(), "");
        assert!(Pattern::wildcard(&Part::all_of(&"a".repeat(PATTERN_LEN_MAX + 1)), Case::Kept, None).is_err());
    }

    #[test]
    fn regular_expressions_are_about_whole_words() {
        for (pattern, word, expected) in [
            ("tim.*", "timeout", true),
            ("tim.*", "uptime", false),
            ("get|post", "post", true),
            ("get|post", "posts", false),
            ("GET", "get", true),
            ("[^a-c]x", "Dx", true),
            ("[^a-c]x", "bx", false),
            ("[]a]", "]", true),
            ("[a&&b]", "&", true),
            ("[a\\-z]", "-", true),
            ("[a\\-z]", "b", false),
            ("\\d{2,3}", "1234", false),
            ("\\d{2,3}", "123", true),
            ("a\\.b", "a.b", true),
            ("a\\.b", "axb", false),
            ("a\\<b", "a<b", true),
            ("ü+", "ÜÜ", true),
        ] {
            let found = Pattern::regex(pattern, Case::Folded, None).unwrap().matches(word.as_bytes());
            assert_eq!(found, expected, "{pattern} {word}");
        }
    }

    #[test]
    fn what_could_mean_something_else_is_refused() {
        for (pattern, named) in [
            ("^a", "whole word"),
            ("a$", "whole word"),
            ("\\bfoo", "\\b"),
            ("(?i)a", "(?"),
            ("a~b", "~"),
            ("<1-9>", "<"),
            ("a&b", "&"),
            ("\"a\"", "\""),
            ("[a--b]", "class"),
            ("a(", "unclosed group"),
            ("[a", "unclosed character class"),
            ("*", "repetition"),
            ("a\\", "backslash"),
            ("((a{1000}){1000}){1000}", "fewer repetitions"),
        ] {
            let error = Pattern::regex(pattern, Case::Folded, Some(3)).unwrap_err();
            assert!(error.message.contains(named) && !error.message.contains('\n'), "{pattern}: {}", error.message);
            assert_eq!(error.column, Some(3));
        }
    }

    #[test]
    fn text_that_is_in_no_word_is_refused() {
        assert!(wildcard("web-*01", Case::Folded).check(Analyser::Words).unwrap_err().message.contains("\"web-\""));
        assert!(wildcard("web-*01", Case::Folded).check(Analyser::Log).is_ok());
        assert!(wildcard("*東京都*", Case::Folded).check(Analyser::Words).is_err());
        assert!(wildcard("*out", Case::Folded).check(Analyser::Words).is_ok());
    }
}
