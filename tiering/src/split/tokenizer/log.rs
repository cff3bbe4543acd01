//! Text as it stands in logs: things are named by words that are joined.
//!
//! Words are joined by one or two of the characters below, without a space between. What is joined is cut at the
//! weakest joints first, and each piece is a word of its own, down to the plain words:
//!
//! | joint | joins |
//! |---|---|
//! | `. - _` | addresses, host and class names, ids, dates, versions |
//! | `/ \ : @` | paths, host and port, mail addresses, times |
//! | `=` | a name with its value |
//!
//! `peer=10.0.0.7:8080` is indexed as itself, `peer`, `10.0.0.7:8080`, `10.0.0.7`, `10`, `0`, `0`, `7` and `8080`.
//! A piece has the position of its first plain word, and takes as many positions as it has plain words: phrases mean
//! the same whether their words are looked for as wholes or in parts. What comes before the first letter or digit and
//! after the last is left off, so `/var/log` and `var/log/` are one.
//!
//! A query looks for the largest piece there is: `10.0.0.7` finds the address in `10.0.0.7:8080`, where it is a piece,
//! and not in `10.0.0.7.example`, where it is not. Where a piece is too long for a word, its parts in a row stand for
//! it, in the index as in a query.

use tantivy::tokenizer::{Token, TokenStream, Tokenizer};

use super::words::{Cursor, Found};
use super::{Purpose, QueryWord, TOKEN_LEN_MAX, char_at, fill, is_of_word, word_end};

/// Most plain words in one joined thing; what follows is a thing of its own.
const PARTS_MAX: usize = 64;
/// Most characters in one joint.
const JOINT_LEN_MAX: usize = 2;
/// The weakest joint.
const WEAKEST: u8 = 3;

/// How weak a joint is; `None` for a character that joins nothing.
fn weakness(c: char) -> Option<u8> {
    match c {
        '.' | '-' | '_' => Some(1),
        '/' | '\\' | ':' | '@' => Some(2),
        '=' => Some(WEAKEST),
        _ => None,
    }
}

/// Whether words are joined by it.
pub(super) fn joins(c: char) -> bool {
    weakness(c).is_some()
}

/// A plain word and the joint behind it.
#[derive(Clone, Copy, Debug)]
struct Part {
    start: usize,
    end: usize,
    /// More than [`WEAKEST`] behind the last word.
    joint: u8,
}

/// A joined thing, cut into its parts.
#[derive(Clone, Debug, Default)]
struct Joined {
    parts: Vec<Part>,
}

/// A piece of a joined thing: the parts from `first` to `last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    first: usize,
    last: usize,
    /// of the joints in it
    weakness: u8,
}

impl Joined {
    /// Reads the thing whose first word starts at `at`; returns where its last word ends.
    fn read(&mut self, text: &str, mut at: usize) -> usize {
        self.parts.clear();
        loop {
            let end = word_end(text, at);
            let next = joint(text, end).filter(|_| self.parts.len() + 1 < PARTS_MAX);
            self.parts.push(Part { start: at, end, joint: next.map_or(WEAKEST + 1, |(joint, _)| joint) });
            match next {
                Some((_, start)) => at = start,
                None => return end,
            }
        }
    }

    fn joint(&self, part: usize) -> u8 {
        self.parts.get(part).map_or(WEAKEST + 1, |part| part.joint)
    }

    /// The largest piece that starts with `first` and has no weaker joint in it.
    fn piece(&self, first: usize, weakness: u8) -> Piece {
        let mut last = first;
        while self.joint(last) <= weakness {
            last += 1;
        }
        Piece { first, last, weakness }
    }

    /// The largest piece that starts with `first`: where a stronger joint precedes it, it lies in another one.
    fn first_piece(&self, first: usize) -> Piece {
        let before = first.checked_sub(1).map_or(WEAKEST + 1, |before| self.joint(before));
        self.piece(first, before - 1)
    }

    /// The next smaller piece that starts with the same word.
    fn smaller(&self, piece: Piece) -> Option<Piece> {
        (0..piece.weakness).rev().map(|weakness| self.piece(piece.first, weakness)).find(|next| next.last < piece.last)
    }

    /// The piece to index after this one: by first word, the largest first.
    fn next(&self, piece: Piece) -> Option<Piece> {
        let following = piece.first + 1;
        self.smaller(piece).or_else(|| (following < self.parts.len()).then(|| self.first_piece(following)))
    }

    fn range(&self, piece: Piece) -> Option<(usize, usize)> {
        Some((self.parts.get(piece.first)?.start, self.parts.get(piece.last)?.end))
    }
}

/// The joint at `at`, and where the next word starts behind it.
fn joint(text: &str, mut at: usize) -> Option<(u8, usize)> {
    let mut weakest = 0;
    for _ in 0..JOINT_LEN_MAX {
        let c = char_at(text, at)?;
        weakest = weakness(c)?.max(weakest);
        at += c.len_utf8();
        if char_at(text, at).is_some_and(is_of_word) {
            return Some((weakest, at));
        }
    }
    None
}

#[derive(Clone, Debug, Default)]
pub(super) struct LogTokenizer {
    token: Token,
    joined: Joined,
}

pub(super) struct Pieces<'a> {
    cursor: Cursor<'a>,
    token: &'a mut Token,
    joined: &'a mut Joined,
    /// The position of its first word.
    base: usize,
    /// The piece to give out next.
    next: Option<Piece>,
}

impl Tokenizer for LogTokenizer {
    type TokenStream<'a> = Pieces<'a>;

    fn token_stream<'a>(&'a mut self, text: &'a str) -> Pieces<'a> {
        self.token.reset();
        let cursor = Cursor::new(text, Purpose::Index);
        Pieces { cursor, token: &mut self.token, joined: &mut self.joined, base: 0, next: None }
    }
}

impl TokenStream for Pieces<'_> {
    fn advance(&mut self) -> bool {
        loop {
            if let Some(piece) = self.next {
                self.next = self.joined.next(piece);
                self.token.position = self.base.wrapping_add(piece.first);
                if set(self.token, self.cursor.text, self.joined.range(piece)) {
                    return true;
                }
                continue;
            }
            match self.cursor.next_cjk(self.token) {
                Some(Found::Word(start)) => {
                    self.base = self.token.position.wrapping_add(1);
                    self.cursor.at = self.joined.read(self.cursor.text, start);
                    self.next = Some(self.joined.first_piece(0));
                }
                found => return found.is_some(),
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

/// Puts a piece into the token; false where it is too long for one.
fn set(token: &mut Token, text: &str, range: Option<(usize, usize)>) -> bool {
    let Some((start, end)) = range else { return false };
    (token.offset_from, token.offset_to) = (start, end);
    text.get(start..end).is_some_and(|run| fill(&mut token.text, run))
}

pub(super) fn query_words(text: &str, is_prefix: bool) -> Vec<QueryWord> {
    let (mut token, mut joined) = (Token::default(), Joined::default());
    token.reset();
    let mut cursor = Cursor::new(text, Purpose::Query);
    let mut words = Vec::new();
    while let Some(found) = cursor.next_cjk(&mut token) {
        let start = match found {
            Found::Word(start) => start,
            Found::Cjk { is_alone: is_prefix } => {
                words.push(QueryWord { text: token.text.clone(), position: token.position, is_prefix });
                continue;
            }
        };
        let base = token.position.wrapping_add(1);
        cursor.at = joined.read(text, start);
        let ending = text.get(cursor.at..).unwrap_or_default();
        let goes_on =
            is_prefix && ending.chars().count() <= JOINT_LEN_MAX && ending.chars().all(|c| weakness(c).is_some());
        let parts = joined.parts.len();
        let mut first = 0;
        while first < parts {
            let mut piece = Some(joined.first_piece(first));
            while let Some(large) = piece.filter(|piece| !set(&mut token, text, joined.range(*piece))) {
                piece = joined.smaller(large);
            }
            let last = piece.map_or(first, |piece| piece.last);
            if piece.is_some() {
                let is_prefix = goes_on && last + 1 == parts;
                let ending = if is_prefix && token.text.len() + ending.len() <= TOKEN_LEN_MAX { ending } else { "" };
                let (text, position) = (format!("{}{ending}", token.text), base.wrapping_add(first));
                words.push(QueryWord { text, position, is_prefix });
            }
            first = last + 1;
        }
        token.position = base.wrapping_add(parts - 1);
    }
    words
}
