//! Which words of a message made it a hit: pieces of its text with those words marked.
//!
//! Computed from the message as it was fetched, for a page's hits only: words, phrases, prefixes and patterns of the
//! query are looked for in the text again, cut by the analyser that the topic has now. Messages that were indexed under
//! another one may show fewer marks than they have matches, or none; nothing else depends on them. Clauses that
//! exclude, ranges and filters on times mark nothing.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use serde_json::Value;
use tantivy::tokenizer::{TextAnalyzer, TokenStream};
use thermocline_tiering::reader::OwnedRecord;
use thermocline_tiering::split::{Analyser, QueryWord, tokenizers};

use super::ast::{LiteralValue, QueryNode};
use super::pattern::Pattern;

/// Bytes of one text that are looked at; what lies behind is not marked.
pub const HIGHLIGHT_TEXT_LEN_MAX: usize = 256 << 10;
/// Longest piece, in bytes, whatever a request asks for.
pub const FRAGMENT_LEN_MAX: usize = 64 << 10;
/// Most pieces of one field.
pub const FRAGMENTS_MAX: usize = 32;
/// Longest text before or after a match, in bytes.
pub const HIGHLIGHT_TAG_LEN_MAX: usize = 64;
/// Bytes of marked pieces in one answer; hits behind them have none.
const ANSWER_BYTES_MAX: usize = 32 << 20;
/// Fields of one message that are marked.
const FIELDS_MAX: usize = 64;
/// Values at one JSON path, or of one header, that are looked at.
const VALUES_MAX: usize = 64;
/// Words and phrases of a query that are looked for.
const NEEDLES_MAX: usize = 1024;

/// How matches are shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HighlightOptions {
    /// Before and after each match.
    pub pre: String,
    pub post: String,
    /// Write `&`, `<`, `>` and quotes of the text as HTML entities, so that only the marks are markup.
    pub escape_html: bool,
    /// Bytes of a piece, the marks not counted; cut to [`FRAGMENT_LEN_MAX`].
    pub fragment_len: usize,
    /// Pieces of each field, cut to [`FRAGMENTS_MAX`]; 0 is the whole text as one.
    pub fragments: usize,
    /// Names of fields, with `*` for any characters; empty means all.
    pub fields: Vec<String>,
}

impl Default for HighlightOptions {
    fn default() -> Self {
        Self {
            pre: "<em>".to_owned(),
            post: "</em>".to_owned(),
            escape_html: true,
            fragment_len: 160,
            fragments: 3,
            fields: Vec::new(),
        }
    }
}

/// Marked pieces by the name of their field.
pub type Highlights = BTreeMap<String, Vec<String>>;

/// Marks the matches of one query.
pub(crate) struct Highlighter {
    options: HighlightOptions,
    analyser: TextAnalyzer,
    fields: BTreeMap<String, Needles>,
    bytes_left: usize,
}

/// What is looked for in one field.
#[derive(Debug, Default)]
struct Needles {
    phrases: Vec<Phrase>,
    /// Phrases by their first word, where that is a whole one.
    by_word: HashMap<String, Vec<usize>>,
    /// Phrases whose first word is a prefix.
    by_prefix: Vec<usize>,
    patterns: Vec<Pattern>,
    /// Numbers and truth values of a JSON leaf.
    literals: Vec<LiteralValue>,
}

#[derive(Debug)]
struct Phrase {
    words: Vec<QueryWord>,
    slop: usize,
}

/// A word of a text.
struct Word {
    text: String,
    position: usize,
    bytes: Range<usize>,
}

impl Highlighter {
    /// None where the analyser is not there, which [`tokenizers`] rules out.
    pub fn new(query: &QueryNode, analyser: Analyser, options: HighlightOptions) -> Option<Self> {
        let mut fields = BTreeMap::new();
        let mut left = NEEDLES_MAX;
        collect(query, analyser, &mut fields, &mut left);
        fields.retain(|name, _| {
            let is_marked = matches!(name.as_str(), "value" | "key") || name.contains('.');
            let is_wanted = options.fields.is_empty()
                || options.fields.iter().any(|pattern| crate::elastic::wildcard_matches(pattern, name));
            is_marked && is_wanted
        });
        Some(Self { options, analyser: tokenizers().get(analyser.name())?, fields, bytes_left: ANSWER_BYTES_MAX })
    }

    /// The marked pieces of a message; empty where nothing of its text was looked for.
    pub fn highlights(&mut self, record: &OwnedRecord) -> Highlights {
        let mut highlights = Highlights::new();
        let text =
            |bytes: &Option<bytes::Bytes>| bytes.as_ref().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        let mut json = None;
        for (name, needles) in self.fields.iter().take(FIELDS_MAX) {
            if self.bytes_left == 0 {
                break;
            }
            let mut pieces = Vec::new();
            let values: Vec<String> = match name.as_str() {
                "value" => text(&record.value).into_iter().collect(),
                "key" => text(&record.key).into_iter().collect(),
                name => match (name.strip_prefix("headers."), name.strip_prefix("json.")) {
                    (Some(header), _) => {
                        let values = record.headers.iter().filter(|(key, _)| key == header);
                        values.filter_map(|(_, value)| text(value)).take(VALUES_MAX).collect()
                    }
                    (None, Some(path)) => {
                        let json = json.get_or_insert_with(|| {
                            let value = record.value.as_deref().unwrap_or_default();
                            serde_json::from_slice::<Value>(value).unwrap_or_default()
                        });
                        let mut leaves = Vec::new();
                        leaves_at(json, path, &mut leaves);
                        let mut texts = Vec::new();
                        for leaf in leaves {
                            match leaf {
                                Value::String(text) => texts.push(text.clone()),
                                leaf if needles.is_literal(leaf) => {
                                    pieces.push(format!("{}{leaf}{}", self.options.pre, self.options.post));
                                }
                                _ => {}
                            }
                        }
                        texts
                    }
                    (None, None) => Vec::new(),
                },
            };
            for value in &values {
                let marks = needles.marks(value, &mut self.analyser);
                self.options.cut(value, &marks, &mut pieces, self.bytes_left);
            }
            pieces.truncate(self.options.fragments.clamp(1, FRAGMENTS_MAX));
            self.bytes_left = self.bytes_left.saturating_sub(pieces.iter().map(String::len).sum());
            if !pieces.is_empty() {
                highlights.insert(name.clone(), pieces);
            }
        }
        highlights
    }
}

/// What the clauses of a query look for, those that exclude aside.
fn collect(node: &QueryNode, analyser: Analyser, fields: &mut BTreeMap<String, Needles>, left: &mut usize) {
    if let QueryNode::Pattern { field, pattern } = node
        && *left > 0
    {
        *left -= 1;
        fields.entry(field.name.clone()).or_default().patterns.push(pattern.clone());
        return;
    }
    let mut add = |field: &str, words: Vec<QueryWord>, slop: u32| {
        if words.is_empty() || *left == 0 {
            return;
        }
        *left -= 1;
        fields.entry(field.to_owned()).or_default().add(words, slop);
    };
    match node {
        QueryNode::Words { field, text, .. } => {
            for word in analyser.query_words(&text.text, false) {
                add(&field.name, vec![word], 0);
            }
            if field.name.starts_with("json.") {
                let value = LiteralValue::of_word(text.text.trim());
                fields.entry(field.name.clone()).or_default().add_literal(value);
            }
        }
        QueryNode::Phrase { field, text, slop } => add(&field.name, analyser.query_words(&text.text, false), *slop),
        QueryNode::Prefix { field, text } => add(&field.name, analyser.query_words(&text.text, true), 0),
        QueryNode::Exact { field, value } => match &value.value {
            LiteralValue::Text(text) => add(&field.name, analyser.query_words(text, false), 0),
            value => fields.entry(field.name.clone()).or_default().add_literal(value.clone()),
        },
        QueryNode::Bool { must, should, filter, .. } => {
            let clauses = must.iter().chain(should).chain(filter);
            clauses.for_each(|clause| collect(clause, analyser, fields, left));
        }
        QueryNode::Boost { node, .. } | QueryNode::ZeroTermsNone { node } => collect(node, analyser, fields, left),
        QueryNode::All
        | QueryNode::Nothing
        | QueryNode::Pattern { .. }
        | QueryNode::Range { .. }
        | QueryNode::Exists { .. } => {}
    }
}

impl Needles {
    fn add(&mut self, words: Vec<QueryWord>, slop: u32) {
        let Some(first) = words.first() else { return };
        let number = self.phrases.len();
        if first.is_prefix {
            self.by_prefix.push(number);
        } else {
            self.by_word.entry(first.text.clone()).or_default().push(number);
        }
        self.phrases.push(Phrase { words, slop: usize::try_from(slop).unwrap_or(usize::MAX) });
    }

    fn add_literal(&mut self, value: LiteralValue) {
        if !matches!(value, LiteralValue::Text(_)) && self.literals.len() < NEEDLES_MAX {
            self.literals.push(value);
        }
    }

    /// Whether a leaf that is no text is one of the values looked for.
    fn is_literal(&self, leaf: &Value) -> bool {
        self.literals.iter().any(|literal| match (literal, leaf) {
            (LiteralValue::Bool(wanted), Value::Bool(found)) => wanted == found,
            (LiteralValue::I64(wanted), Value::Number(_)) => {
                leaf.as_i64().map_or_else(|| leaf.as_f64() == Some(*wanted as f64), |found| found == *wanted)
            }
            (LiteralValue::U64(wanted), Value::Number(_)) => leaf.as_u64() == Some(*wanted),
            (LiteralValue::F64(wanted), Value::Number(_)) => leaf.as_f64() == Some(*wanted),
            _ => false,
        })
    }

    /// The bytes of `text` that match, in order and apart from each other.
    fn marks(&self, text: &str, analyser: &mut TextAnalyzer) -> Vec<Range<usize>> {
        let text = text.get(..floor_boundary(text, HIGHLIGHT_TEXT_LEN_MAX)).unwrap_or_default();
        let mut words = Vec::new();
        analyser.token_stream(text).process(&mut |token| {
            words.push(Word {
                text: token.text.clone(),
                position: token.position,
                bytes: token.offset_from..token.offset_to,
            });
        });
        // Analysers give larger words after the smaller ones they are made of.
        words.sort_by_key(|word| word.position);
        let mut marks = Vec::new();
        for (index, word) in words.iter().enumerate() {
            let whole = self.by_word.get(&word.text).into_iter().flatten();
            for phrase in whole.chain(&self.by_prefix).filter_map(|number| self.phrases.get(*number)) {
                phrase.mark(&words, index, &mut marks);
            }
            if self.patterns.iter().any(|pattern| pattern.matches(word.text.as_bytes())) {
                marks.push(word.bytes.clone());
            }
        }
        merged(marks)
    }
}

impl Phrase {
    /// Adds the words of `words` that match, if those from `start` on do.
    fn mark(&self, words: &[Word], start: usize, marks: &mut Vec<Range<usize>>) {
        let (Some(first), Some(anchor)) = (self.words.first(), words.get(start)) else { return };
        if !fits(first, anchor) {
            return;
        }
        let mut found = vec![anchor.bytes.clone()];
        let mut slop_left = self.slop;
        for wanted in self.words.iter().skip(1) {
            let position = anchor.position + wanted.position.saturating_sub(first.position);
            let lowest = position.saturating_sub(slop_left);
            let from = words.partition_point(|word| word.position < lowest);
            let near = words.get(from..).unwrap_or_default().iter();
            let near = near.take_while(|word| word.position <= position.saturating_add(slop_left));
            let best = near.filter(|word| fits(wanted, word)).min_by_key(|word| word.position.abs_diff(position));
            let Some(best) = best else { return };
            slop_left -= best.position.abs_diff(position);
            found.push(best.bytes.clone());
        }
        marks.append(&mut found);
    }
}

/// Whether a word of a text is the one that is looked for.
fn fits(wanted: &QueryWord, word: &Word) -> bool {
    if wanted.is_prefix { word.text.starts_with(&wanted.text) } else { word.text == wanted.text }
}

/// Ranges in order, those that touch or overlap made one.
fn merged(mut marks: Vec<Range<usize>>) -> Vec<Range<usize>> {
    marks.sort_unstable_by_key(|mark| (mark.start, mark.end));
    let mut apart: Vec<Range<usize>> = Vec::with_capacity(marks.len());
    for mark in marks {
        match apart.last_mut() {
            Some(last) if mark.start <= last.end => last.end = last.end.max(mark.end),
            _ => apart.push(mark),
        }
    }
    apart
}

impl HighlightOptions {
    /// Adds the pieces of `text` around `marks`, until they have some more than `bytes_max`.
    fn cut(&self, text: &str, marks: &[Range<usize>], pieces: &mut Vec<String>, bytes_max: usize) {
        let (most, len) = match self.fragments {
            0 => (1, FRAGMENT_LEN_MAX),
            most => (most.min(FRAGMENTS_MAX), self.fragment_len.clamp(1, FRAGMENT_LEN_MAX)),
        };
        let mut left = marks;
        let mut end = 0;
        while let Some(first) = left.first() {
            if pieces.len() >= most || pieces.iter().map(String::len).sum::<usize>() >= bytes_max {
                return;
            }
            // The first match stands in the middle, as far as the text goes.
            let around = len.saturating_sub(first.len()) / 2;
            let start = match self.fragments {
                0 => 0,
                _ => word_start(text, first.start.saturating_sub(around).max(end)).min(first.start),
            };
            let wanted = start.saturating_add(len).max(first.end);
            end = word_end(text, wanted.min(text.len()), first.end);
            let here = left.partition_point(|mark| mark.end <= end);
            let (inside, behind) = left.split_at(here.max(1));
            pieces.push(self.marked(text, start..end, inside));
            left = behind;
            // A match that the end cuts through is shown by the next piece, if there is one.
            end = end.min(left.first().map_or(end, |next| next.start));
        }
    }

    fn marked(&self, text: &str, piece: Range<usize>, marks: &[Range<usize>]) -> String {
        let mut out = String::with_capacity(piece.len() + marks.len() * (self.pre.len() + self.post.len()));
        let mut at = piece.start;
        for mark in marks {
            self.push(&mut out, text.get(at..mark.start));
            out.push_str(&self.pre);
            self.push(&mut out, text.get(mark.clone()));
            out.push_str(&self.post);
            at = mark.end;
        }
        self.push(&mut out, text.get(at..piece.end));
        out
    }

    fn push(&self, out: &mut String, text: Option<&str>) {
        let text = text.unwrap_or_default();
        if !self.escape_html {
            out.push_str(text);
            return;
        }
        for c in text.chars() {
            match c {
                '&' => out.push_str("&amp;"),
                '<' => out.push_str("&lt;"),
                '>' => out.push_str("&gt;"),
                '"' => out.push_str("&quot;"),
                '\'' => out.push_str("&#x27;"),
                c => out.push(c),
            }
        }
    }
}

/// The last character boundary at or before `at`.
fn floor_boundary(text: &str, at: usize) -> usize {
    let at = at.min(text.len());
    (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// Bytes by which an end may move, so that it does not cut a word.
const SNAP_LEN_MAX: usize = 24;

/// The start of the word at `at`, or after it where that is nearer than cutting it would be.
fn word_start(text: &str, at: usize) -> usize {
    let at = floor_boundary(text, at);
    if at == 0 || text.get(..at).is_some_and(|before| before.ends_with(char::is_whitespace)) {
        return at;
    }
    let near = text.get(at..floor_boundary(text, at + SNAP_LEN_MAX)).unwrap_or_default();
    near.find(char::is_whitespace).map_or(at, |space| {
        let rest = near.get(space..).unwrap_or_default();
        at + space + rest.len() - rest.trim_start().len()
    })
}

/// The end of the last whole word before `at`, but not before `least`.
fn word_end(text: &str, at: usize, least: usize) -> usize {
    let at = floor_boundary(text, at).max(least);
    if at >= text.len() || text.get(at..).is_some_and(|after| after.starts_with(char::is_whitespace)) {
        return at;
    }
    let from = floor_boundary(text, at.saturating_sub(SNAP_LEN_MAX).max(least));
    let near = text.get(from..at).unwrap_or_default();
    near.rfind(char::is_whitespace).map_or(at, |space| from + space)
}

/// The leaves at a path whose keys are separated by dots; keys may hold dots themselves, arrays count as their items.
fn leaves_at<'v>(value: &'v Value, path: &str, leaves: &mut Vec<&'v Value>) {
    if leaves.len() >= VALUES_MAX {
        return;
    }
    match value {
        Value::Array(items) => items.iter().for_each(|item| leaves_at(item, path, leaves)),
        Value::Object(members) => {
            for (key, value) in members {
                match path.strip_prefix(key.as_str()) {
                    Some("") => leaves_at(value, "", leaves),
                    Some(rest) if !path.is_empty() => {
                        if let Some(rest) = rest.strip_prefix('.') {
                            leaves_at(value, rest, leaves);
                        }
                    }
                    _ => {}
                }
            }
        }
        leaf if path.is_empty() => leaves.push(leaf),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
