use bytes::Bytes;
use proptest::prelude::*;
use thermocline_ingest::model::{Offset, Timestamp, TimestampType};

use super::super::ast::Operator;
use super::super::pattern::{Case, Part};
use super::*;

fn record(key: &str, value: &str, headers: &[(&str, &str)]) -> OwnedRecord {
    OwnedRecord {
        offset: Offset(0),
        timestamp: Timestamp(0),
        timestamp_type: TimestampType::CreateTime,
        key: Some(Bytes::copy_from_slice(key.as_bytes())),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        headers: headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), Some(Bytes::copy_from_slice(value.as_bytes()))))
            .collect(),
    }
}

fn words(field: &str, text: &str) -> QueryNode {
    QueryNode::Words { field: field.into(), text: text.into(), operator: Operator::Or }
}

fn phrase(text: &str, slop: u32) -> QueryNode {
    QueryNode::Phrase { field: "value".into(), text: text.into(), slop }
}

fn plain() -> HighlightOptions {
    HighlightOptions { pre: "[".to_owned(), post: "]".to_owned(), escape_html: false, ..HighlightOptions::default() }
}

fn marked(query: &QueryNode, analyser: Analyser, options: HighlightOptions, record: &OwnedRecord) -> Highlights {
    Highlighter::new(query, analyser, options).unwrap().highlights(record)
}

fn value(query: &QueryNode, text: &str) -> Vec<String> {
    marked(query, Analyser::Words, plain(), &record("", text, &[])).remove("value").unwrap_or_default()
}

#[test]
fn words_phrases_and_prefixes_are_marked() {
    let text = "Parcel late: the LATE parcel is not lost";
    assert_eq!(value(&words("value", "late"), text), ["Parcel [late]: the [LATE] parcel is not lost"]);
    assert_eq!(value(&phrase("late parcel", 0), text), ["Parcel late: the [LATE] [parcel] is not lost"]);
    assert_eq!(value(&phrase("late lost", 0), text), [""; 0]);
    assert_eq!(value(&phrase("late is", 1), text), ["Parcel late: the [LATE] parcel [is] not lost"]);
    let prefix = QueryNode::Prefix { field: "value".into(), text: "par".into() };
    assert_eq!(value(&prefix, text), ["[Parcel] late: the LATE [parcel] is not lost"]);
    let pattern = |text: &str| {
        let pattern = Pattern::wildcard(&Part::all_of(text), Case::Folded, None).unwrap();
        QueryNode::Pattern { field: "value".into(), pattern }
    };
    assert_eq!(value(&pattern("*T*"), text), ["Parcel [late]: [the] [LATE] parcel is [not] [lost]"]);
    assert_eq!(value(&pattern("??"), text), ["Parcel late: the LATE parcel [is] not lost"]);
    assert_eq!(value(&words("value", "nothing"), text), [""; 0]);
    assert_eq!(value(&words("value", "東京"), "in 東京都"), ["in [東京]都"]);
}

#[test]
fn clauses_that_exclude_mark_nothing() {
    let query = QueryNode::Bool {
        must: vec![words("value", "late")],
        should: vec![QueryNode::Boost { node: Box::new(words("value", "lost")), factor: 2.0 }],
        must_not: vec![words("value", "parcel")],
        filter: vec![QueryNode::All],
        minimum_should_match: 0,
    };
    assert_eq!(value(&query, "late parcel lost"), ["[late] parcel [lost]"]);
}

#[test]
fn every_field_has_its_own() {
    let record = record(
        "k-42",
        r#"{"user":{"id":42,"name":"Ann Lee"},"a.b":"Ann","tags":["x","Ann"],"ok":true}"#,
        &[("trace", "abc"), ("trace", "xyz")],
    );
    let exact = |field: &str, value: LiteralValue| QueryNode::Exact { field: field.into(), value: value.into() };
    let should = vec![
        words("key", "42"),
        words("headers.trace", "xyz"),
        words("json.user.name", "ann"),
        words("json.user.id", "42"),
        words("json.a.b", "ann"),
        words("json.tags", "ann"),
        exact("json.ok", true.into()),
        exact("offset", 0_i64.into()),
    ];
    let query = QueryNode::Bool { must: vec![], should, must_not: vec![], filter: vec![], minimum_should_match: 1 };
    let found = marked(&query, Analyser::Words, plain(), &record);
    let shown: Vec<String> = found.iter().map(|(name, pieces)| format!("{name}={}", pieces.join("|"))).collect();
    assert_eq!(
        shown,
        [
            "headers.trace=[xyz]",
            "json.a.b=[Ann]",
            "json.ok=[true]",
            "json.tags=[Ann]",
            "json.user.id=[42]",
            "json.user.name=[Ann] Lee",
            "key=k-[42]"
        ]
    );
    let some = HighlightOptions { fields: vec!["json.user.*".to_owned()], ..plain() };
    assert_eq!(marked(&query, Analyser::Words, some, &record).len(), 2);
}

#[test]
fn logs_are_cut_as_logs_are() {
    let record = record("", "client=10.0.0.7 GET /a/b.html", &[]);
    let found =
        |text: &str| marked(&words("value", text), Analyser::Log, plain(), &record).remove("value").unwrap_or_default();
    assert_eq!(found("10.0.0.7"), ["client=[10.0.0.7] GET /a/b.html"]);
    assert_eq!(found("html"), ["client=10.0.0.7 GET /a/b.[html]"]);
}

#[test]
fn long_texts_are_cut_around_their_matches() {
    let filler = "filler ".repeat(40);
    let text = format!("{filler}needle {filler}{filler}needle and needle {filler}");
    let found = value(&words("value", "needle"), &text);
    assert_eq!(found.len(), 2, "{found:?}");
    for piece in &found {
        assert!(piece.len() <= 160 + 2 * 2 + SNAP_LEN_MAX && piece.contains("[needle]"), "{piece}");
        assert!(piece.trim().starts_with("filler") && piece.trim().ends_with("filler"), "words are whole: {piece}");
    }
    assert!(found[1].contains("[needle] and [needle]"));
    let whole = HighlightOptions { fragments: 0, ..plain() };
    let found = marked(&words("value", "needle"), Analyser::Words, whole, &record("", &text, &[]));
    assert_eq!(found["value"], [text.replace("needle", "[needle]")]);
    let tiny = HighlightOptions { fragment_len: 0, fragments: 1, ..plain() };
    let found = marked(&words("value", "needle"), Analyser::Words, tiny, &record("", &text, &[]));
    assert_eq!(found["value"], ["[needle]"]);
}

#[test]
fn markup_in_the_text_is_not_markup_in_the_answer() {
    let found = marked(&words("value", "b"), Analyser::Words, HighlightOptions::default(), &record("", "<b>&'\"", &[]));
    assert_eq!(found["value"], ["&lt;<em>b</em>&gt;&amp;&#x27;&quot;"]);
}

#[test]
fn what_is_looked_at_is_bounded() {
    let text = format!("{} needle", "x ".repeat(HIGHLIGHT_TEXT_LEN_MAX));
    assert_eq!(value(&words("value", "needle"), &text), [""; 0]);
    let many = "needle ".repeat(20_000);
    let endless = HighlightOptions { fragment_len: usize::MAX, fragments: usize::MAX, ..plain() };
    let found = marked(&words("value", "needle"), Analyser::Words, endless, &record("", &many, &[]));
    assert!(found["value"].len() <= FRAGMENTS_MAX);
    let unmarked = found["value"].iter().map(|piece| piece.replace(['[', ']'], "").len()).max();
    assert!(unmarked <= Some(FRAGMENT_LEN_MAX));
}

#[test]
fn nothing_is_looked_for_once_an_answer_is_full() {
    let should = vec![words("json.n", "5"), words("value", "late")];
    let query = QueryNode::Bool { must: vec![], should, must_not: vec![], filter: vec![], minimum_should_match: 1 };
    let record = record("", r#"{"n":5,"when":"late"}"#, &[]);
    let mut highlighter = Highlighter::new(&query, Analyser::Words, plain()).unwrap();
    let mut marked = |bytes_left| {
        highlighter.bytes_left = bytes_left;
        highlighter.highlights(&record).into_keys().collect::<Vec<_>>()
    };
    assert_eq!(marked(ANSWER_BYTES_MAX), ["json.n", "value"]);
    assert_eq!(marked(1), ["json.n"]);
    assert_eq!(marked(0), [""; 0]);
}

proptest! {
    /// Pieces are parts of the text, the marks left out, and what is marked is the word.
    #[test]
    fn pieces_are_parts_of_the_text(
        text in "([a-c]{1,3}|[ ,;]|東|é){0,60}",
        word in "[a-c]{1,2}",
        len in 0_usize..40,
        fragments in 0_usize..6,
    ) {
        let options = HighlightOptions { fragment_len: len, fragments, ..plain() };
        let query = words("value", &word);
        let record = record("", &text, &[]);
        let found = marked(&query, Analyser::Words, options, &record).remove("value").unwrap_or_default();
        let matches = Analyser::Words.query_words(&text, false).iter().filter(|found| found.text == word).count();
        prop_assert_eq!(found.is_empty(), matches == 0);
        let mut from = 0;
        for piece in &found {
            let bare = piece.replace(['[', ']'], "");
            let at = text[from..].find(&bare);
            prop_assert!(at.is_some(), "{:?} in {:?}", bare, text);
            from += at.unwrap_or(0);
            let marked = piece.split('[').skip(1).filter_map(|rest| rest.split(']').next());
            for marked in marked {
                prop_assert_eq!(marked, &word);
            }
        }
    }
}
