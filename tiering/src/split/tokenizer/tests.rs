use proptest::prelude::*;
use tantivy::tokenizer::TextAnalyzer;

use super::*;

fn analyser(name: &str) -> TextAnalyzer {
    tokenizers().get(name).unwrap()
}

/// Words with their positions, as they are indexed.
fn indexed(analysed_by: Analyser, text: &str) -> Vec<(String, usize)> {
    let mut analyser = analyser(analysed_by.name());
    let mut found = Vec::new();
    analyser.token_stream(text).process(&mut |token| found.push((token.text.clone(), token.position)));
    found
}

fn texts(analysed_by: Analyser, text: &str) -> Vec<String> {
    indexed(analysed_by, text).into_iter().map(|(word, _)| word).collect()
}

/// What is looked for; a star behind what is the start of a word.
fn asked(analysed_by: Analyser, text: &str, is_prefix: bool) -> Vec<(String, usize)> {
    let star = |word: QueryWord| (format!("{}{}", word.text, if word.is_prefix { "*" } else { "" }), word.position);
    analysed_by.query_words(text, is_prefix).into_iter().map(star).collect()
}

fn at(words: &[(&str, usize)]) -> Vec<(String, usize)> {
    words.iter().map(|(word, position)| ((*word).to_owned(), *position)).collect()
}

#[test]
fn splits_and_lower_cases() {
    let line = "GET /Index.html?id=42 ÄRGER 東京x";
    assert_eq!(texts(Analyser::WordsV1, line), ["get", "index", "html", "id", "42", "ärger", "東京x"]);
    assert_eq!(texts(Analyser::Words, line), ["get", "index", "html", "id", "42", "ärger", "東京", "京", "x"]);
    for analysed_by in Analyser::ALL {
        assert!(texts(analysed_by, " -- ").is_empty());
        assert!(texts(analysed_by, "").is_empty());
    }
}

#[test]
fn long_runs_keep_their_position() {
    let long = "x".repeat(TOKEN_LEN_MAX + 1);
    for analysed_by in Analyser::ALL {
        assert_eq!(indexed(analysed_by, &format!("a {long} b")), at(&[("a", 0), ("b", 2)]));
        assert_eq!(indexed(analysed_by, &"y".repeat(TOKEN_LEN_MAX)).len(), 1);
    }
}

#[test]
fn chinese_japanese_and_korean_are_indexed_by_pairs() {
    for analysed_by in [Analyser::Words, Analyser::Log] {
        let words = |text| indexed(analysed_by, text);
        assert_eq!(words("東京都 は"), at(&[("東京", 0), ("京都", 1), ("都", 2), ("は", 3)]));
        assert_eq!(words("서울특별시"), at(&[("서울", 0), ("울특", 1), ("특별", 2), ("별시", 3), ("시", 4)]));
        assert_eq!(words("第3回"), at(&[("第", 0), ("3", 1), ("回", 2)]));
        assert_eq!(words("カ・ナ"), at(&[("カ", 0), ("ナ", 1)]), "a dot in between is no letter");
        assert_eq!(words("𠮷野"), at(&[("𠮷野", 0), ("野", 1)]));

        let asked = |text| asked(analysed_by, text, false);
        assert_eq!(asked("東京"), at(&[("東京", 0)]));
        assert_eq!(asked("東京都"), at(&[("東京", 0), ("京都", 1)]));
        assert_eq!(asked("京"), at(&[("京*", 0)]), "any pair that starts with it, and it alone");
        assert_eq!(asked("東京 x"), at(&[("東京", 0), ("x", 2)]));
    }
}

#[test]
fn parts_of_words_are_known() {
    for (part, expected) in [
        ("", [true, true, true]),
        ("Zür1", [true, true, true]),
        ("a b", [false, false, false]),
        ("10.0.", [false, false, true]),
        ("東京", [true, true, true]),
        ("東京都", [true, false, false]),
        ("x東", [true, false, false]),
        ("・", [false, false, false]),
    ] {
        assert_eq!(Analyser::ALL.map(|analyser| analyser.may_stand_in_word(part)), expected, "{part}");
    }
}

#[test]
fn what_is_joined_in_logs_is_indexed_whole_and_in_parts() {
    let words = |text| indexed(Analyser::Log, text);
    assert_eq!(words("10.0.0.7"), at(&[("10.0.0.7", 0), ("10", 0), ("0", 1), ("0", 2), ("7", 3)]));
    assert_eq!(
        words("/var/log/sys.log: ok"),
        at(&[("var/log/sys.log", 0), ("var", 0), ("log", 1), ("sys.log", 2), ("sys", 2), ("log", 3), ("ok", 4)])
    );
    assert_eq!(
        words("peer=10.0.0.7:8080")[..5],
        at(&[("peer=10.0.0.7:8080", 0), ("peer", 0), ("10.0.0.7:8080", 1), ("10.0.0.7", 1), ("10", 1)])
    );
    assert_eq!(texts(Analyser::Log, "ada@Example.com"), ["ada@example.com", "ada", "example.com", "example", "com"]);
    let id = "550e8400-e29b-41d4-a716-446655440000";
    assert_eq!(texts(Analyser::Log, &format!("id={id}, next"))[..3], [format!("id={id}"), "id".into(), id.to_owned()]);
    assert_eq!(texts(Analyser::Log, "https://example.com/a")[..3], ["https", "example.com/a", "example.com"]);
    assert_eq!(texts(Analyser::Log, "one, two. Three --four"), ["one", "two", "three", "four"]);
}

#[test]
fn queries_look_for_the_largest_piece() {
    let whole = |text| asked(Analyser::Log, text, false);
    for text in ["10.0.0.7", "com.example.foo", "550e8400-e29b-41d4-a716-446655440000", "status=500", "ada@example.com"]
    {
        assert_eq!(whole(text), at(&[(text, 0)]));
    }
    assert_eq!(whole("/var/log/syslog"), at(&[("var/log/syslog", 0)]));
    assert_eq!(whole("GET /a/b HTTP/1.1 200"), at(&[("get", 0), ("a/b", 1), ("http/1.1", 3), ("200", 6)]));

    let start = |text| asked(Analyser::Log, text, true);
    assert_eq!(start("/var/log/"), at(&[("var/log/*", 0)]));
    assert_eq!(start("10.0."), at(&[("10.0.*", 0)]));
    assert_eq!(start("see com.exa"), at(&[("see", 0), ("com.exa*", 1)]));
    assert_eq!(start("done, "), at(&[("done", 0)]), "the word has ended");
    assert_eq!(asked(Analyser::Words, "foo-ba", true), at(&[("foo", 0), ("ba*", 1)]));
    assert_eq!(asked(Analyser::Words, "東京", true), at(&[("東京", 0)]));
}

#[test]
fn a_piece_that_is_too_long_is_looked_for_in_parts() {
    let long = "x".repeat(TOKEN_LEN_MAX - 3);
    let text = format!("{long}.a/b.c=d");
    assert_eq!(asked(Analyser::Log, &text, false), at(&[(&format!("{long}.a"), 0), ("b.c", 2), ("d", 4)]));
    let path = "a/".repeat(3 * 64);
    let words = indexed(Analyser::Log, &path);
    assert_eq!(words.iter().filter(|(word, _)| word.len() > 1).count(), 3);
    assert_eq!(words.last().unwrap().1, 3 * 64 - 1);
}

#[test]
fn names_are_unique_and_registered() {
    for analysed_by in Analyser::ALL {
        assert_eq!(Analyser::named(analysed_by.name()), Some(analysed_by));
        assert!(tokenizers().get(analysed_by.name()).is_some());
    }
    assert_eq!(Analyser::named("words"), None);
}

#[test]
fn only_short_texts_are_kept_in_columns() {
    let kept = |text: &str| {
        let mut kept = Vec::new();
        analyser(KEYWORD).token_stream(text).process(&mut |token| kept.push(token.text.clone()));
        kept
    };
    assert_eq!(kept("GET /Index"), ["GET /Index"]);
    assert_eq!(kept(""), [""]);
    assert_eq!(kept(&"x".repeat(KEYWORD_LEN_MAX)).len(), 1);
    assert!(kept(&"x".repeat(KEYWORD_LEN_MAX + 1)).is_empty());
}

/// What the documentation says of runs, written as naively as possible.
fn reference_words(text: &str) -> Vec<(String, usize)> {
    let characters: Vec<char> = text.chars().collect();
    let cjk = |at: usize| characters.get(at).is_some_and(|c| c.is_alphanumeric() && cjk::is_cjk(*c));
    let letter = |at: usize| characters.get(at).is_some_and(|c| c.is_alphanumeric() && !cjk::is_cjk(*c));
    let (mut words, mut position) = (Vec::new(), 0);
    for at in 0..characters.len() {
        if cjk(at) {
            let end = if cjk(at + 1) { at + 2 } else { at + 1 };
            words.push((characters[at..end].iter().collect::<String>(), position));
            position += 1;
        } else if letter(at) && (at == 0 || !letter(at - 1)) {
            let run: String =
                characters[at..].iter().take_while(|c| c.is_alphanumeric() && !cjk::is_cjk(**c)).collect();
            let word: String = run.chars().flat_map(char::to_lowercase).collect();
            if word.len() <= TOKEN_LEN_MAX {
                words.push((word, position));
            }
            position += 1;
        }
    }
    words
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["\\PC{0,80}", "([a-cA-C0-2]{1,3}|[東京都はカ서울]{1,3}|[-._/:@=\\\\]{1,3}|[ ,\"é]){0,30}"]
}

proptest! {
    #[test]
    fn words_v1_agree_with_their_reference(text in text()) {
        let reference: Vec<String> = text
            .split(|c: char| !c.is_alphanumeric())
            .filter(|run| !run.is_empty())
            .map(|run| run.chars().flat_map(char::to_lowercase).collect::<String>())
            .filter(|token| token.len() <= TOKEN_LEN_MAX)
            .collect();
        prop_assert_eq!(texts(Analyser::WordsV1, &text), reference);
    }

    #[test]
    fn words_agree_with_their_reference(text in text()) {
        prop_assert_eq!(indexed(Analyser::Words, &text), reference_words(&text));
    }

    /// The analyser for logs only adds words, and moves none.
    #[test]
    fn the_plain_words_of_a_log_are_all_indexed(text in text()) {
        let found = indexed(Analyser::Log, &text);
        prop_assert!(found.is_sorted_by_key(|(_, position)| *position));
        for word in reference_words(&text) {
            prop_assert!(found.contains(&word), "{:?}", word);
        }
        let mut unique = found.clone();
        unique.sort();
        unique.dedup();
        prop_assert_eq!(unique.len(), found.len(), "a word twice at one position");
    }

    /// Whatever part of a text is looked for, in whole words or as a start: what is looked for stands where it should.
    #[test]
    fn every_text_is_found_by_itself(text in text(), is_prefix in any::<bool>()) {
        for analysed_by in Analyser::ALL {
            let found = indexed(analysed_by, &text);
            for word in analysed_by.query_words(&text, is_prefix) {
                let fits = |(text, position): &(String, usize)| {
                    *position == word.position && if word.is_prefix { text.starts_with(&word.text) } else { *text == word.text }
                };
                // A joint at the end is part of what is to come, which a text by itself does not have.
                let is_open = word.is_prefix && !word.text.ends_with(char::is_alphanumeric);
                prop_assert!(is_open || found.iter().any(fits), "{:?} of {:?} by {:?}", word, text, analysed_by);
            }
        }
    }

    /// Part of a run of characters is found wherever it starts.
    #[test]
    fn parts_of_runs_are_found(run in "[東京都はカ서울]{1,12}", start in 0_usize..12, len in 1_usize..6) {
        let part: String = run.chars().skip(start).take(len).collect();
        let found = indexed(Analyser::Words, &format!("x {run} y"));
        for word in Analyser::Words.query_words(&part, false) {
            let position = 1 + start + word.position;
            let fits = |(text, at): &(String, usize)| *at == position && if word.is_prefix { text.starts_with(&word.text) } else { *text == word.text };
            prop_assert!(found.iter().any(fits), "{:?} of {:?}", word, run);
        }
    }
}
