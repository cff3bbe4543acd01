//! Runs of letters and digits.

use tantivy::tokenizer::{Token, TokenStream, Tokenizer};

use super::cjk::is_cjk;
use super::{Purpose, QueryWord, char_at, fill, is_alphanumeric, word_end};

/// Splits at everything that is not alphanumeric; lower-cases.
#[derive(Clone, Debug, Default)]
pub(super) struct WordsV1Tokenizer {
    token: Token,
}

pub(super) struct WordsV1<'a> {
    text: &'a str,
    /// Byte position, always on a character boundary.
    at: usize,
    token: &'a mut Token,
}

impl Tokenizer for WordsV1Tokenizer {
    type TokenStream<'a> = WordsV1<'a>;

    fn token_stream<'a>(&'a mut self, text: &'a str) -> WordsV1<'a> {
        self.token.reset();
        WordsV1 { text, at: 0, token: &mut self.token }
    }
}

impl TokenStream for WordsV1<'_> {
    fn advance(&mut self) -> bool {
        loop {
            let Some(start) = next_alphanumeric(self.text, self.at) else { return false };
            self.at = start;
            while let Some(c) = char_at(self.text, self.at).filter(|c| is_alphanumeric(*c)) {
                self.at += c.len_utf8();
            }
            if set(self.token, self.text, start, self.at) {
                return true;
            }
        }
    }
    fn token(&self) -> &Token {
        self.token
    }
    fn token_mut(&mut self) -> &mut Token {
        self.token
    }
}

/// The same, and Chinese, Japanese and Korean by character.
#[derive(Clone, Debug, Default)]
pub(super) struct WordsTokenizer {
    token: Token,
}

pub(super) struct Words<'a> {
    cursor: Cursor<'a>,
    token: &'a mut Token,
}

impl Tokenizer for WordsTokenizer {
    type TokenStream<'a> = Words<'a>;

    fn token_stream<'a>(&'a mut self, text: &'a str) -> Words<'a> {
        self.token.reset();
        Words { cursor: Cursor::new(text, Purpose::Index), token: &mut self.token }
    }
}

impl TokenStream for Words<'_> {
    fn advance(&mut self) -> bool {
        while let Some(found) = self.cursor.next_cjk(self.token) {
            let is_set = match found {
                Found::Cjk { .. } => true,
                Found::Word(start) => {
                    self.cursor.at = word_end(self.cursor.text, start);
                    set(self.token, self.cursor.text, start, self.cursor.at)
                }
            };
            if is_set {
                return true;
            }
        }
        false
    }
    fn token(&self) -> &Token {
        self.token
    }
    fn token_mut(&mut self) -> &mut Token {
        self.token
    }
}

/// Walks a text from one word to the next, and makes the words that are the same for all analysers.
pub(super) struct Cursor<'a> {
    pub text: &'a str,
    /// Byte position, always on a character boundary.
    pub at: usize,
    purpose: Purpose,
    /// Where the last pair of characters ended.
    pair_end: usize,
}

pub(super) enum Found {
    /// The token is set: a pair of characters, or one that stands alone.
    Cjk { is_alone: bool },
    /// A word of another script starts here.
    Word(usize),
}

impl<'a> Cursor<'a> {
    pub fn new(text: &'a str, purpose: Purpose) -> Self {
        Self { text, at: 0, purpose, pair_end: 0 }
    }

    /// Goes to the next letter or digit. Where it is Chinese, Japanese or Korean, its word is put into the token.
    #[inline]
    pub fn next_cjk(&mut self, token: &mut Token) -> Option<Found> {
        loop {
            let start = next_alphanumeric(self.text, self.at)?;
            self.at = start;
            let Some(c) = char_at(self.text, start).filter(|c| is_cjk(*c)) else { return Some(Found::Word(start)) };
            self.at += c.len_utf8();
            let second = char_at(self.text, self.at).filter(|c| is_cjk(*c) && is_alphanumeric(*c));
            token.position = token.position.wrapping_add(1);
            let is_last_of_run = second.is_none() && self.pair_end == self.at;
            if is_last_of_run && self.purpose == Purpose::Query {
                continue;
            }
            token.text.clear();
            token.text.push(c);
            token.text.extend(second);
            let end = self.at + second.map_or(0, char::len_utf8);
            (token.offset_from, token.offset_to) = (start, end);
            if second.is_some() {
                self.pair_end = end;
            }
            return Some(Found::Cjk { is_alone: second.is_none() });
        }
    }
}

pub(super) fn query_words_v1(text: &str, is_prefix: bool) -> Vec<QueryWord> {
    let mut tokenizer = WordsV1Tokenizer::default();
    let mut tokens = tokenizer.token_stream(text);
    let mut words = Vec::new();
    while let Some(token) = tokens.next() {
        let is_prefix = is_prefix && token.offset_to == text.len();
        words.push(QueryWord { text: token.text.clone(), position: token.position, is_prefix });
    }
    words
}

pub(super) fn query_words(text: &str, is_prefix: bool) -> Vec<QueryWord> {
    let mut token = Token::default();
    token.reset();
    let mut cursor = Cursor::new(text, Purpose::Query);
    let mut words = Vec::new();
    while let Some(found) = cursor.next_cjk(&mut token) {
        let is_prefix = match found {
            Found::Cjk { is_alone } => is_alone,
            Found::Word(start) => {
                cursor.at = word_end(text, start);
                if !set(&mut token, text, start, cursor.at) {
                    continue;
                }
                is_prefix && cursor.at == text.len()
            }
        };
        words.push(QueryWord { text: token.text.clone(), position: token.position, is_prefix });
    }
    words
}

#[inline]
fn next_alphanumeric(text: &str, mut at: usize) -> Option<usize> {
    loop {
        let c = char_at(text, at)?;
        if is_alphanumeric(c) {
            return Some(at);
        }
        at += c.len_utf8();
    }
}

/// Makes a token of a run, at the next position; false where it is too long for one.
#[inline]
fn set(token: &mut Token, text: &str, start: usize, end: usize) -> bool {
    token.position = token.position.wrapping_add(1);
    (token.offset_from, token.offset_to) = (start, end);
    text.get(start..end).is_some_and(|run| fill(&mut token.text, run))
}
