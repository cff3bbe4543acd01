//! The analyser of `value`, `key` and text leaves, shared by indexing and queries: maximal runs of alphanumeric
//! characters (Unicode), lower-cased. A run of more than [`TOKEN_LEN_MAX`] bytes is left out but keeps its position.

use tantivy::tokenizer::{Token, TokenStream, Tokenizer, TokenizerManager};

/// Name under which the tokenizer is registered and named in a split's schema.
pub const TOKENIZER: &str = "thermocline";

/// Longest token that is indexed, in bytes of its lower-cased UTF-8.
pub const TOKEN_LEN_MAX: usize = 255;

/// Splits at everything that is not alphanumeric; lower-cases.
#[derive(Clone, Debug, Default)]
pub struct ThermoclineTokenizer {
    token: Token,
}

/// Tokens of one text.
pub struct Tokens<'a> {
    text: &'a str,
    /// Byte position, always on a character boundary.
    at: usize,
    token: &'a mut Token,
}

/// A manager that knows the tokenizer of every text field, and Tantivy's own, which it asks for on number fields.
pub fn tokenizers() -> TokenizerManager {
    let manager = TokenizerManager::default();
    manager.register(TOKENIZER, ThermoclineTokenizer::default());
    manager
}

impl Tokenizer for ThermoclineTokenizer {
    type TokenStream<'a> = Tokens<'a>;

    fn token_stream<'a>(&'a mut self, text: &'a str) -> Tokens<'a> {
        self.token.reset();
        Tokens { text, at: 0, token: &mut self.token }
    }
}

impl Tokens<'_> {
    /// The character at `self.at`, with an ASCII fast path.
    #[inline]
    fn peek(&self) -> Option<char> {
        match self.text.as_bytes().get(self.at) {
            Some(byte) if byte.is_ascii() => Some(char::from(*byte)),
            Some(_) => self.text.get(self.at..).and_then(|rest| rest.chars().next()),
            None => None,
        }
    }

    /// Puts the run into the token; false where it is too long.
    fn fill(&mut self, run: &str, is_ascii: bool) -> bool {
        let text = &mut self.token.text;
        text.clear();
        if is_ascii {
            if run.len() > TOKEN_LEN_MAX {
                return false;
            }
            text.push_str(run);
            text.make_ascii_lowercase();
            return true;
        }
        for c in run.chars() {
            text.extend(c.to_lowercase());
            if text.len() > TOKEN_LEN_MAX {
                return false;
            }
        }
        true
    }
}

impl TokenStream for Tokens<'_> {
    fn advance(&mut self) -> bool {
        loop {
            loop {
                match self.peek() {
                    Some(c) if is_alphanumeric(c) => break,
                    Some(c) => self.at += c.len_utf8(),
                    None => return false,
                }
            }
            let start = self.at;
            let mut is_ascii = true;
            while let Some(c) = self.peek().filter(|c| is_alphanumeric(*c)) {
                is_ascii &= c.is_ascii();
                self.at += c.len_utf8();
            }
            self.token.position = self.token.position.wrapping_add(1);
            let text = self.text;
            if text.get(start..self.at).is_some_and(|run| self.fill(run, is_ascii)) {
                self.token.offset_from = start;
                self.token.offset_to = self.at;
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

#[inline]
fn is_alphanumeric(c: char) -> bool {
    if c.is_ascii() { c.is_ascii_alphanumeric() } else { c.is_alphanumeric() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tokens(text: &str) -> Vec<(String, usize)> {
        let mut tokenizer = ThermoclineTokenizer::default();
        let mut stream = tokenizer.token_stream(text);
        let mut found = Vec::new();
        while stream.advance() {
            let token = stream.token();
            found.push((token.text.clone(), token.position));
        }
        found
    }

    /// What the documentation says, written as naively as possible.
    pub(crate) fn reference(text: &str) -> Vec<String> {
        text.split(|c: char| !c.is_alphanumeric())
            .filter(|run| !run.is_empty())
            .map(|run| run.chars().flat_map(char::to_lowercase).collect::<String>())
            .filter(|token| token.len() <= TOKEN_LEN_MAX)
            .collect()
    }

    #[test]
    fn splits_and_lower_cases() {
        let texts = |text: &str| tokens(text).into_iter().map(|(token, _)| token).collect::<Vec<_>>();
        assert_eq!(texts("GET /Index.html?id=42 ÄRGER 東京"), ["get", "index", "html", "id", "42", "ärger", "東京"]);
        assert!(texts(" -- ").is_empty());
        assert!(texts("").is_empty());
    }

    #[test]
    fn long_runs_keep_their_position() {
        let long = "x".repeat(TOKEN_LEN_MAX + 1);
        assert_eq!(tokens(&format!("a {long} b")), [("a".into(), 0), ("b".into(), 2)]);
        assert_eq!(tokens(&"y".repeat(TOKEN_LEN_MAX)).len(), 1);
    }

    proptest! {
        #[test]
        fn agrees_with_the_reference(text in "\\PC{0,80}") {
            let found: Vec<_> = tokens(&text).into_iter().map(|(token, _)| token).collect();
            prop_assert_eq!(found, reference(&text));
        }
    }
}
