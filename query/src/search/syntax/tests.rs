use proptest::prelude::*;
use serde_json::json;
use tantivy::collector::DocSetCollector;

use super::*;
use crate::search::testing::{Doc, split};

fn corpus() -> Vec<Doc> {
    let doc = |offset, timestamp, value: &str, key: &str, json, headers| Doc {
        offset,
        timestamp,
        value: value.to_owned(),
        key: key.to_owned(),
        json,
        headers,
    };
    let day = 1_431_820_800_000; // 2015-05-17
    vec![
        doc(0, day, "Parcel lost in Ülm", "k1", json!({"user": {"id": 42, "name": "Ann"}}), json!({"trace": "abc"})),
        doc(1, day + 1000, "parcel late, late parcel", "k2", json!({"user": {"id": 7}}), json!({})),
        doc(2, day + 2000, "GET /api/v1/items 10.0.0.1", "k1-b", json!({"ok": true}), json!({"trace": "abd"})),
        doc(3, day + 86_400_000, "nothing here", "", json!({"user": {"name": "Anna"}}), json!(null)),
    ]
}

/// The offsets a query finds, or what is wrong with it.
fn find(query: &str) -> Result<Vec<u32>, QueryError> {
    find_in(query, true)
}

fn find_in(query: &str, positions: bool) -> Result<Vec<u32>, QueryError> {
    let split = split(positions, &corpus()).unwrap_or_else(|e| panic!("{e}"));
    let query = ParsedQuery::parse(query)?.build(&split)?;
    let found = split.searcher.search(&query, &DocSetCollector).unwrap_or_else(|e| panic!("{e}"));
    let mut found: Vec<u32> = found.into_iter().map(|doc| doc.doc_id).collect();
    found.sort_unstable();
    Ok(found)
}

#[test]
fn the_language_means_what_its_table_says() {
    let all = vec![0, 1, 2, 3];
    for (query, expected) in [
        ("", all.clone()),
        ("  ", all.clone()),
        ("*", all.clone()),
        ("parcel", vec![0, 1]),
        ("PARCEL", vec![0, 1]),
        ("parcel late", vec![1]),
        ("lost OR late", vec![0, 1]),
        ("parcel AND NOT late", vec![0]),
        ("parcel NOT late", vec![0]),
        ("+parcel -late", vec![0]),
        ("-parcel", vec![2, 3]),
        ("NOT parcel", vec![2, 3]),
        ("(lost OR late) parcel", vec![0, 1]),
        ("(-late) parcel", vec![0]),
        ("\"parcel late\"", vec![1]),
        ("\"parcel lost\"", vec![0]),
        ("\"lost parcel\"", vec![]),
        ("\"parcel ülm\"~2", vec![0]),
        ("par*", vec![0, 1]),
        ("Ü*", vec![0]),
        ("par* -lo*", vec![1]),
        ("key:k1", vec![0, 2]),
        ("key:k*", vec![0, 1, 2]),
        ("10.0.0.1", vec![2]),
        ("\"/api/v1\"", vec![2]),
        ("headers.trace:abc", vec![0]),
        ("headers.trace:ab*", vec![0, 2]),
        ("json.user.id:42", vec![0]),
        ("json.user.name:ann", vec![0]),
        ("json.user.name:ann*", vec![0, 3]),
        ("json.ok:true", vec![2]),
        ("json.user.id: IN [7 42]", vec![0, 1]),
        ("value: IN [lost nothing]", vec![0, 3]),
        ("timestamp:[2015-05-17 TO 2015-05-18}", vec![0, 1, 2]),
        ("timestamp:[2015-05-17T00:00:01Z TO *]", vec![1, 2, 3]),
        ("timestamp:{1431820800000 TO 1431820802000]", vec![1, 2]),
        ("timestamp:2015-05-17", vec![0]),
        ("timestamp:*", all.clone()),
        ("timestamp:[* TO *]", all.clone()),
        ("offset:[1 TO 2]", vec![1, 2]),
        ("offset:>=2 ", vec![2, 3]),
        ("value:[lost TO nothing]", vec![0, 3]),
        ("parcel AND \"---\"", vec![0, 1]),
        ("\"---\"", vec![]),
        ("late^3 OR lost", vec![0, 1]),
        ("value:(late OR lost)", vec![0, 1]),
    ] {
        assert_eq!(find(query), Ok(expected), "{query}");
    }
}

#[test]
fn what_is_not_offered_is_refused_where_it_stands() {
    for (query, column, part) in [
        ("parcel (lost", None, ""),
        ("parcel colour:red", Some(8), "no field \"colour\""),
        ("parcel pa*el", Some(8), "wildcard"),
        ("*cel", Some(1), "wildcard"),
        ("parsel~1", Some(1), "fuzzy"),
        ("parsel~", Some(1), "fuzzy"),
        ("value:/par.*/", Some(7), "regular expressions"),
        ("key:*", Some(1), "not supported"),
        ("json:42", Some(1), "needs a name"),
        ("value.x:42", Some(1), "does not exist"),
        ("offset:abc", Some(8), "whole number"),
        ("ü timestamp:yesterday", Some(13), "not a time"),
        ("json.user.id:[1 TO 50]", Some(1), "ranges over json.user.id"),
        ("[1 TO 50]", Some(1), "needs a field"),
        ("\"late par\"*", Some(2), "one word"),
        ("late^99999999", Some(5), "boost"),
    ] {
        let error = find(query).expect_err(query);
        assert!(error.message.contains(part), "{query}: {}", error.message);
        if column.is_some() {
            assert_eq!(error.column, column, "{query}: {}", error.message);
        }
    }
}

#[test]
fn phrases_need_positions() {
    for query in ["\"parcel late\"", "late-parcel", "lost \"parcel late\""] {
        let error = find_in(query, false).expect_err(query);
        assert!(error.message.contains("without positions"), "{}", error.message);
    }
    assert_eq!(find_in("parcel late", false), Ok(vec![1]));
    assert_eq!(find_in("\"parcel\"", false), Ok(vec![0, 1]));
    assert_eq!(find_in("par* AND late", false), Ok(vec![1]));
}

#[test]
fn nesting_and_length_are_limited() {
    let nested = |depth: usize| format!("{}parcel{}", "(".repeat(depth), ")".repeat(depth));
    assert_eq!(find(&nested(QUERY_NESTING_MAX)), Ok(vec![0, 1]));
    assert_eq!(find(&format!("{}parcel", "NOT ".repeat(QUERY_NESTING_MAX))), Ok(vec![0, 1]));
    assert!(find(&nested(QUERY_NESTING_MAX + 1)).is_err());
    assert!(find(&"NOT ".repeat(QUERY_NESTING_MAX + 1)).is_err());
    assert!(find(&"(".repeat(QUERY_NESTING_MAX)).is_err());
    assert!(find(&"x".repeat(QUERY_LEN_MAX + 1)).is_err());
    assert!(find(&"parcel ".repeat(QUERY_LEN_MAX / 7)).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn noise_never_panics(
        parts in prop::collection::vec(
            prop::sample::select(vec!["a", "b*", "(", ")", "\"", "'", "NOT ", "AND ", "OR ", "-", "+", ":", "key:", "json.x:", "[", "]", " TO ", "{", "}", "*", "^2", "~1", "/", "\\", " ", "é", "timestamp:", "IN ", "1"]),
            0..24,
        ),
    ) {
        let _ = find(&parts.concat());
    }
}
