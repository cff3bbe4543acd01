//! Texts in columns: as they are, and only if they are short. What identifies or classifies something is; a message
//! is not, and would be stored a second time.

use tantivy::tokenizer::{Token, TokenStream, Tokenizer};

/// Longest text that is kept in a column, in bytes. A longer one can be searched for, but not aggregated or sorted by.
pub const KEYWORD_LEN_MAX: usize = 255;

#[derive(Clone, Debug, Default)]
pub(super) struct KeywordTokenizer {
    token: Token,
}

pub(super) struct Keyword<'a> {
    token: &'a mut Token,
    is_due: bool,
}

impl Tokenizer for KeywordTokenizer {
    type TokenStream<'a> = Keyword<'a>;

    fn token_stream<'a>(&'a mut self, text: &'a str) -> Keyword<'a> {
        self.token.reset();
        let is_due = text.len() <= KEYWORD_LEN_MAX;
        if is_due {
            self.token.text.push_str(text);
            (self.token.position, self.token.offset_to) = (0, text.len());
        }
        Keyword { token: &mut self.token, is_due }
    }
}

impl TokenStream for Keyword<'_> {
    fn advance(&mut self) -> bool {
        std::mem::take(&mut self.is_due)
    }
    fn token(&self) -> &Token {
        self.token
    }
    fn token_mut(&mut self) -> &mut Token {
        self.token
    }
}
