use proptest::prelude::*;
use serde_json::json;
use tantivy::collector::DocSetCollector;

use thermocline_ingest::model::TopicName;

use super::*;
use crate::search::pattern::PATTERNS_MAX;
use crate::search::testing::{Doc, split};

/// 2015-05-17T00:00:02Z
const NOW: i64 = 1_431_820_802_000;

fn topic() -> TopicName {
    TopicName::new("orders").unwrap_or_else(|e| panic!("{e}"))
}

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
        doc(
            2,
            day + 2000,
            "GET /api/v1/items 10.0.0.1",
            "k1-b",
            json!({"ok": true, "ms": 1.5, "lvl": "5", "a b": "x"}),
            json!({"trace": "abd"}),
        ),
        doc(3, day + 86_400_000, "nothing here", "", json!({"user": {"name": "Anna"}}), json!(null)),
    ]
}

/// The offsets a query finds, or what is wrong with it.
fn find(query: &str) -> Result<Vec<u32>, QueryError> {
    find_in(query, true)
}

fn find_in(query: &str, positions: bool) -> Result<Vec<u32>, QueryError> {
    let split = split(positions, &corpus()).unwrap_or_else(|e| panic!("{e}"));
    let query = SearchQuery::parse(query, Timestamp(NOW))?.build(&split, Some(&topic()))?;
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
        ("pa*el", vec![0, 1]),
        ("P?RCEL", vec![0, 1]),
        ("*cel", vec![0, 1]),
        ("*a*e*", vec![0, 1]),
        ("Ü?M", vec![0]),
        ("?", vec![2]),
        ("*", all.clone()),
        ("/l.*/", vec![0, 1]),
        ("/LOST|here/", vec![0, 3]),
        ("/par/", vec![]),
        ("value:/par.*/ -lost", vec![1]),
        ("(/lost/ OR /late/)^2 parcel", vec![0, 1]),
        ("/api/v1", vec![2]),
        ("key:?1", vec![0, 2]),
        ("key:*", vec![0, 1, 2]),
        ("headers.trace:a?d", vec![2]),
        ("headers.trace:/ab[cd]/", vec![0, 2]),
        ("json.user.name:?nn", vec![0]),
        ("json.user.name:*nn*", vec![0, 3]),
        ("json.user.name:/an{2}a?/", vec![0, 3]),
        ("json.user.id:*2", vec![]),
        ("json.lvl:?", vec![2]),
        ("json.absent:*x", vec![]),
        ("topic:*der?", all.clone()),
        ("topic:/Orders/", vec![]),
        ("NOT topic:o*s", vec![]),
        ("_exists_:json.user.id", vec![0, 1]),
        ("NOT _exists_:\"headers.trace\"", vec![1, 3]),
        ("_exists_:(json.ok OR json.user.id) AND key:k1", vec![0, 2]),
        ("_exists_:partition", all.clone()),
        ("_id:*", all.clone()),
        ("_id:nonsense", vec![]),
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
        ("lost late OR again", vec![0]),
        ("parcel late AND lost", vec![]),
        ("parcel late AND late", vec![1]),
        ("lost AND parcel OR nothing", vec![0, 3]),
        ("nothing OR lost AND late", vec![3]),
        ("late && parcel", vec![1]),
        ("late || lost", vec![0, 1]),
        ("parcel !late", vec![0]),
        ("lost OR -parcel", vec![0, 2, 3]),
        ("lost OR NOT parcel", vec![0, 2, 3]),
        ("'parcel late'", vec![1]),
        ("late\\ parcel", vec![1]),
        ("key:*", vec![0, 1, 2]),
        ("value:*", all.clone()),
        ("key:[* TO *]", vec![0, 1, 2]),
        ("key:(*)", vec![0, 1, 2]),
        ("json.user.id:*", vec![0, 1]),
        ("json.user:*", vec![0, 1, 3]),
        ("json:*", all.clone()),
        ("json.use:*", vec![]),
        ("headers.trace:*", vec![0, 2]),
        ("headers:*", vec![0, 2]),
        ("NOT headers.trace:*", vec![1, 3]),
        ("json.user.id:[1 TO 50]", vec![0, 1]),
        ("json.user.id:[7 TO 42}", vec![1]),
        ("json.user.id:{7 TO 42]", vec![0]),
        ("json.user.id:>=7.5", vec![0]),
        ("json.user.id:<42", vec![1]),
        ("json.user.id:>-1", vec![0, 1]),
        ("json.ms:>1", vec![2]),
        ("json.ms:[1.5 TO *]", vec![2]),
        ("json.ms:<1.5", vec![]),
        ("json.ms:1.50", vec![2]),
        ("json.user.id:42.0", vec![0]),
        ("json.user.id:4.2e1", vec![0]),
        ("json.lvl:5", vec![2]),
        ("json.lvl:>=5", vec![]),
        ("json.lvl:[\"4\" TO *]", vec![2]),
        ("json.user.name:[ann TO anna}", vec![0]),
        ("json.user.name:>ann", vec![3]),
        ("json.user.name:<\"anna\"", vec![0]),
        ("json.a\\ b:x", vec![2]),
        ("headers.trace:>abc", vec![2]),
        ("headers.trace:[* TO abc]", vec![0]),
        ("key:[k2 TO *]", vec![1]),
        ("timestamp:2015-05-17T00:00:01Z", vec![1]),
        ("timestamp:\"2015-05-17T00:00:01Z\"", vec![1]),
        ("timestamp:now", vec![2]),
        ("timestamp:>=now-1s", vec![1, 2, 3]),
        ("timestamp:>now-1s", vec![2, 3]),
        ("timestamp:[now-2s TO now]", vec![0, 1, 2]),
        ("timestamp:now/d", vec![0, 1, 2]),
        ("timestamp:<=now/d", vec![0, 1, 2]),
        ("timestamp:<now/d", vec![]),
        ("timestamp:>now/d", vec![3]),
        ("timestamp:[now+1d/d TO *]", vec![3]),
        ("timestamp: IN [2015-05-17 now]", vec![0, 2]),
        ("offset:2", vec![2]),
        ("offset:{0 TO 2}", vec![1]),
        ("offset:[3 TO 1]", vec![]),
        ("topic:orders", all.clone()),
        ("topic:ord* late", vec![1]),
        ("topic:other OR late", vec![1]),
        ("NOT topic:orders", vec![]),
        ("NOT topic:other", all.clone()),
        ("late -topic:o*", vec![]),
        ("topic: IN [a orders] lost", vec![0]),
        ("key: IN []", vec![]),
        ("NOT \"---\" lost", vec![0]),
        ("\"---\" NOT lost", vec![1, 2, 3]),
        ("value:(late OR lost)", vec![0, 1]),
    ] {
        assert_eq!(find(query), Ok(expected), "{query}");
    }
}

#[test]
fn what_is_not_offered_is_refused_where_it_stands() {
    for (query, column, part) in [
        ("parcel (lost", 8, "not closed"),
        ("parcel lost)", 12, "not opened"),
        ("parcel ()", 9, "expected something"),
        ("ü \"open", 3, "not closed"),
        ("parcel colour:red", 8, "no field \"colour\""),
        ("(a OR colour:red)", 7, "no field \"colour\""),
        ("parcel web-*1", 8, "\"web-\""),
        ("?id=4?", 1, "\"id=4\""),
        ("offset:1*", 8, "whole number"),
        ("_id:a*b", 5, "no words"),
        ("_id:[a TO b]", 1, "as a whole"),
        ("_exists_:json.*", 10, "one field"),
        ("_exists_:colour", 10, "no field"),
        ("_exists_:", 10, "expected something"),
        ("parsel~1", 1, "fuzzy"),
        ("parsel~", 1, "fuzzy"),
        ("value:/par.*$/", 7, "whole word"),
        ("/(?i)a/", 1, "(?"),
        ("json.a:/a(/", 8, "unclosed group"),
        ("json:42", 1, "needs a name"),
        ("late headers:a", 6, "needs a name"),
        ("value.x:42", 1, "does not exist"),
        ("topic.x:42", 1, "does not exist"),
        ("offset:abc", 8, "whole number"),
        ("offset:[1 TO 2.5]", 14, "whole number"),
        ("ü timestamp:yesterday", 13, "not a time"),
        ("timestamp:[now-15x TO now]", 12, "not a unit"),
        ("timestamp:[2015-05-17 TO soon]", 26, "not a time"),
        ("timestamp:>now-999999999y", 12, "calendar"),
        ("timestamp:2015*", 11, "not a time"),
        ("[1 TO 50]", 1, "needs a field"),
        (">5", 1, "needs a field"),
        ("json.a:[1 50]", 11, "expected TO"),
        ("json.a:[1 TO ]", 14, "expected a bound"),
        ("json.a:[TO 5]", 9, "expected a bound"),
        ("json.a:[1 TO 5", 8, "not closed"),
        ("json.a:[1 TO 5)", 15, "expected ] or }"),
        ("json.a:>", 9, "expected a bound"),
        ("json.a:[1 TO b]", 14, "number to number"),
        ("json.a:[true TO *]", 9, "no order"),
        ("json.a:>=2015-05-17", 10, "3 words"),
        ("value:[\"late parcel\" TO *]", 9, "2 words"),
        ("key:[--- TO z]", 6, "0 words"),
        ("topic:[a TO b]", 1, "no ranges"),
        ("offset:>=", 10, "expected a bound"),
        ("\"late par\"*", 2, "one word"),
        ("\"late par\"~999", 11, "up to 255"),
        ("\"late par\"~x", 11, "up to 255"),
        ("late^99999999", 5, "boost"),
        ("late^x", 5, "boost is a number"),
        ("AND late", 1, "between two clauses"),
        ("late OR", 6, "between two clauses"),
        ("late AND OR lost", 6, "between two clauses"),
        ("late NOT", 6, "NOT stands before"),
        ("a - b", 3, "right before a clause"),
        ("key:OR", 5, "word of the query language"),
        ("late\"lost\"", 5, "unexpected '\"'"),
        ("a[0]", 2, "unexpected '['"),
        ("late `lost`", 6, "unexpected '`'"),
        ("key:", 5, "expected something"),
        ("key: IN [a", 9, "not closed"),
        ("key: IN [a\"b\"]", 11, "a space between"),
        ("late\\", 5, "backslash"),
    ] {
        let error = find(query).expect_err(query);
        assert!(error.message.contains(part), "{query}: {}", error.message);
        assert_eq!(error.column, Some(column), "{query}: {}", error.message);
    }
}

#[test]
fn a_star_before_what_ends_no_word_is_a_wildcard() {
    for (query, written) in [("*\\:8080", "*:8080"), ("key:*\\(1", "*(1"), ("key:*:8080", "*:8080")] {
        let root = SearchQuery::parse(query, Timestamp(NOW)).unwrap().root;
        let QueryNode::Pattern { pattern, .. } = root else { panic!("{query}: {root:?}") };
        assert_eq!(pattern.written(), written, "{query}");
    }
    assert!(matches!(SearchQuery::parse("key:(*)", Timestamp(NOW)).unwrap().root, QueryNode::Exists { .. }));
}

#[test]
fn phrases_need_positions() {
    for query in ["\"parcel late\"", "late-parcel", "lost \"parcel late\""] {
        let error = find_in(query, false).expect_err(query);
        assert!(error.message.contains("without positions"), "{}", error.message);
        assert!(error.column.is_some(), "{query}");
    }
    // What cannot match does not need them.
    assert_eq!(find_in("late OR (topic:other \"parcel late\")", false), Ok(vec![1]));
    assert_eq!(find_in("parcel late", false), Ok(vec![1]));
    assert_eq!(find_in("\"parcel\"", false), Ok(vec![0, 1]));
    assert_eq!(find_in("par* AND late", false), Ok(vec![1]));
    assert_eq!(find_in("json.ms:1.50", false), Ok(vec![2]));
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
    assert!(find(&"parcel ".repeat(QUERY_CLAUSES_MAX)).is_ok());
    assert!(find(&"parcel ".repeat(QUERY_CLAUSES_MAX + 1)).expect_err("").message.contains("4096"));
    let set = |values: usize| format!("key: IN [{}]", "k1 ".repeat(values));
    assert!(find(&set(QUERY_CLAUSES_MAX - 2)).is_ok());
    assert!(find(&set(QUERY_CLAUSES_MAX)).is_err());
    assert!(find(&"p*l ".repeat(PATTERNS_MAX)).is_ok());
    assert!(find(&"p*l ".repeat(PATTERNS_MAX + 1)).expect_err("").message.contains("64"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn noise_never_panics(
        parts in prop::collection::vec(
            prop::sample::select(vec!["a", "b*", "a?b*", "/a.*/", "/[a/", "_exists_:", "_id:", "partition:", "(", ")", "\"", "'", "NOT ", "AND ", "OR ", "-", "+", ":", "key:", "json.x:", "[", "]", " TO ", "{", "}", "*", "^2", "~1", "/", "\\", " ", "é", "timestamp:", "IN ", "1", ">=", "topic:", "now-1d", "!", "&&", "||", "\0"]),
            0..24,
        ),
    ) {
        let _ = find(&parts.concat());
    }
}
