//! How text is cut into words, when it is indexed and when it is looked for.
//!
//! | analyser | in splits | cuts |
//! |---|---|---|
//! | [`Analyser::Words`] | `words.2` | maximal runs of letters and digits (Unicode), lower-cased; Chinese, Japanese and Korean by character (`cjk.rs`) |
//! | [`Analyser::Log`] | `log.1` | the same, and beside them what is joined by `. - _`, then by `/ \ : @`, then by `=` (`log.rs`) |
//! | [`Analyser::WordsV1`] | `thermocline` | as `words.2`, but a run of Chinese, Japanese or Korean is one word; older splits only |
//!
//! A word of more than [`TOKEN_LEN_MAX`] bytes is left out but keeps its position. A split names its analyser in its
//! schema, and what a name means never changes: another meaning gets another name.
//!
//! # Queries
//! A text that is looked for is cut by the same rules into *fewer* words ([`Analyser::query_words`]): of each thing the
//! largest word it is indexed under, because the parts say nothing more. So `10.0.0.7` is one word to look up with the
//! analyser for logs, and three characters of Chinese are two. Words are in a row: two words of a query match a text
//! where their positions lie as far apart as they do in the query.

mod cjk;
mod keyword;
mod log;
mod words;

use tantivy::tokenizer::TokenizerManager;

pub use keyword::KEYWORD_LEN_MAX;
use keyword::KeywordTokenizer;
use log::LogTokenizer;
use words::{WordsTokenizer, WordsV1Tokenizer};

/// Longest word that is indexed, in bytes of its lower-cased UTF-8.
pub const TOKEN_LEN_MAX: usize = 255;
/// The name under which a split's schema knows how texts are kept in columns.
pub(super) const KEYWORD: &str = "keyword.1";

/// How text is cut into words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Analyser {
    WordsV1,
    Words,
    Log,
}

/// A word to look for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryWord {
    pub text: String,
    /// Where it stands in the text, counted in indexed positions.
    pub position: usize,
    /// Any word that starts like this will do.
    pub is_prefix: bool,
}

/// What the words are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Index,
    /// Only the largest words.
    Query,
}

impl Analyser {
    pub const ALL: [Self; 3] = [Self::WordsV1, Self::Words, Self::Log];

    /// The name in a split's schema.
    pub const fn name(self) -> &'static str {
        match self {
            Self::WordsV1 => "thermocline",
            Self::Words => "words.2",
            Self::Log => "log.1",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|analyser| analyser.name() == name)
    }

    /// The words to look for, in order. `is_prefix`: the text may go on, so its last word is the start of one.
    pub fn query_words(self, text: &str, is_prefix: bool) -> Vec<QueryWord> {
        match self {
            Self::WordsV1 => words::query_words_v1(text, is_prefix),
            Self::Words => words::query_words(text, is_prefix),
            Self::Log => log::query_words(text, is_prefix),
        }
    }

    /// Whether a word can have `part` in it. Of scripts that are cut by character, words are pairs.
    pub fn may_stand_in_word(self, part: &str) -> bool {
        let is_cut = self != Self::WordsV1 && part.contains(cjk::is_cjk);
        if is_cut {
            return part.chars().all(|c| cjk::is_cjk(c) && is_alphanumeric(c)) && part.chars().count() <= 2;
        }
        part.chars().all(|c| is_alphanumeric(c) || (self == Self::Log && log::joins(c)))
    }
}

/// A manager that knows the analyser of every text field, how texts are kept in columns, and Tantivy's own, which it
/// asks for on number fields.
pub fn tokenizers() -> TokenizerManager {
    let manager = TokenizerManager::default();
    manager.register(Analyser::WordsV1.name(), WordsV1Tokenizer::default());
    manager.register(Analyser::Words.name(), WordsTokenizer::default());
    manager.register(Analyser::Log.name(), LogTokenizer::default());
    manager.register(KEYWORD, KeywordTokenizer::default());
    manager
}

/// Puts a run into a token, lower-cased; false where that is too long.
fn fill(token: &mut String, run: &str) -> bool {
    token.clear();
    if run.is_ascii() {
        if run.len() > TOKEN_LEN_MAX {
            return false;
        }
        token.push_str(run);
        token.make_ascii_lowercase();
        return true;
    }
    for c in run.chars() {
        token.extend(c.to_lowercase());
        if token.len() > TOKEN_LEN_MAX {
            return false;
        }
    }
    true
}

/// The character at `at`, with an ASCII fast path.
#[inline]
fn char_at(text: &str, at: usize) -> Option<char> {
    match text.as_bytes().get(at) {
        Some(byte) if byte.is_ascii() => Some(char::from(*byte)),
        Some(_) => text.get(at..).and_then(|rest| rest.chars().next()),
        None => None,
    }
}

#[inline]
fn is_alphanumeric(c: char) -> bool {
    if c.is_ascii() { c.is_ascii_alphanumeric() } else { c.is_alphanumeric() }
}

/// Letters and digits of which a run makes one word.
#[inline]
fn is_of_word(c: char) -> bool {
    if c.is_ascii() { c.is_ascii_alphanumeric() } else { c.is_alphanumeric() && !cjk::is_cjk(c) }
}

/// Where the run of word characters ends that starts at `at`.
#[inline]
fn word_end(text: &str, mut at: usize) -> usize {
    while let Some(c) = char_at(text, at).filter(|c| is_of_word(*c)) {
        at += c.len_utf8();
    }
    at
}

#[cfg(test)]
mod tests;
