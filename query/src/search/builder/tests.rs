use std::collections::BTreeSet;

use proptest::prelude::*;
use tantivy::collector::DocSetCollector;
use thermocline_ingest::model::{PartitionId, Timestamp, TopicName};
use thermocline_tiering::split::{Analyser, SplitOptions, SplitReader};

use super::*;
use crate::elastic::request::SearchBody;
use crate::search::pattern::{Case, Part};
use crate::search::testing::{Doc, Leaves, split_of, split_with};

#[path = "../../../tests/reference/mod.rs"]
mod reference;

use reference::generated::{Vocabulary, contents};
use reference::words::Tokenizer;
use reference::{Content, Literal as Wanted, Message, NOW, Query as Reference, REGEXES, TOPICS, TopicKind};

const TOPIC: &str = "orders";

fn topic() -> TopicName {
    TopicName::new(TOPIC).unwrap()
}

fn doc((offset, content): (i64, &Content)) -> Doc {
    let value = content.value.clone().unwrap_or_default();
    let json = serde_json::from_str(&value).unwrap_or_default();
    // A repeated name has several values.
    let mut headers = serde_json::Map::new();
    for (name, text) in &content.headers {
        let values = headers.entry(name).or_insert_with(|| serde_json::json!([]));
        values.as_array_mut().unwrap().push(serde_json::json!(text));
    }
    Doc {
        offset,
        timestamp: content.timestamp(),
        key: content.key.clone().unwrap_or_default(),
        value,
        json,
        headers: headers.into(),
    }
}

fn node(query: &Reference) -> QueryNode {
    let field = |name: &String| FieldName::from(name.as_str());
    let nodes = |parts: &[Reference]| parts.iter().map(node).collect::<Vec<_>>();
    let (mut must, mut should, mut must_not) = (Vec::new(), Vec::new(), Vec::new());
    match query {
        Reference::All => return QueryNode::All,
        Reference::Text { field: name, text, .. } if name == "_id" => return QueryNode::with_id(text),
        Reference::Text { field: name, text, slop: 0 } if !text.contains(' ') => {
            return QueryNode::Exact { field: field(name), value: text.as_str().into() };
        }
        Reference::Text { field: name, text, slop } => {
            return QueryNode::Phrase { field: field(name), text: text.as_str().into(), slop: *slop };
        }
        Reference::Prefix { field: name, text } => {
            return QueryNode::Prefix { field: field(name), text: text.as_str().into() };
        }
        Reference::Wildcard { field: name, pattern } => {
            let case = if name == "topic" { Case::Kept } else { Case::Folded };
            let pattern = Pattern::wildcard(&Part::all_of(&pattern.replace('\\', "\\\\")), case, None).unwrap();
            return QueryNode::Pattern { field: field(name), pattern };
        }
        Reference::Regex { field: name, number } => {
            let pattern = Pattern::regex(REGEXES[*number].0, Case::Folded, None).unwrap();
            return QueryNode::Pattern { field: field(name), pattern };
        }
        Reference::Range { field: name, lower, upper } => {
            let literal = |wanted: &Wanted| match wanted {
                Wanted::Number(text) => LiteralValue::of_word(text).into(),
                Wanted::Word(text) | Wanted::Time(text, ..) => Literal::from(text.as_str()),
            };
            let (lower, upper) = (lower.as_ref().map(literal), upper.as_ref().map(literal));
            return QueryNode::Range { field: field(name), lower, upper };
        }
        Reference::Exists { field: name } => return QueryNode::Exists { field: field(name) },
        Reference::Set { values, .. } if values.is_empty() => return QueryNode::Nothing,
        Reference::Set { field: name, values } => {
            let text = |text: &String| Reference::Text { field: name.clone(), text: text.clone(), slop: 0 };
            should = values.iter().map(|value| node(&text(value))).collect();
        }
        Reference::And(parts) => must = nodes(parts),
        Reference::Or(parts) => should = nodes(parts),
        Reference::Not(part) => must_not.push(node(part)),
    }
    QueryNode::Bool { must, should, must_not, filter: Vec::new(), minimum_should_match: 0 }
}

fn found(query: &SearchQuery, topic: &str, split: &SplitReader) -> Result<BTreeSet<u32>, QueryError> {
    let topic = TopicName::new(topic).unwrap();
    let query = query.in_partition(PartitionId(0))?.build(split, Some(&topic))?;
    let docs = split.searcher.search(&query, &DocSetCollector).unwrap();
    Ok(docs.into_iter().map(|doc| doc.doc_id).collect())
}

fn asked(root: QueryNode) -> SearchQuery {
    SearchQuery { root, now: Timestamp(NOW) }
}

/// As a tree and as text, with and without columns of JSON leaves, a query finds what looking at every message finds.
fn check(kind: &'static TopicKind, contents: &[Content], queries: &[Reference]) -> Result<(), TestCaseError> {
    let messages: Vec<Message> =
        (0..).zip(contents).map(|(offset, content)| Message::new(kind, 0, offset, content)).collect();
    let docs: Vec<Doc> = (0..).zip(contents).map(doc).collect();
    let analyser = if kind.tokenizer == Tokenizer::Log { Analyser::Log } else { Analyser::Words };
    let splits = [false, true].map(|fast| split_of(SplitOptions { analyser, fast, ..SplitOptions::default() }, &docs));
    for query in queries {
        let expected: BTreeSet<u32> =
            (0..).zip(&messages).filter(|(_, message)| query.matches(message)).map(|(doc, _)| doc).collect();
        let text = query.text();
        let typed = SearchQuery::parse(&text, Timestamp(NOW));
        let typed = typed.unwrap_or_else(|error| panic!("{text}: {error:?}"));
        for (split, leaves) in splits.iter().zip(["indexed", "in columns"]) {
            let split = split.as_ref().unwrap();
            prop_assert_eq!(found(&typed, kind.name, split), Ok(expected.clone()), "{}, leaves {}", &text, leaves);
            let tree = asked(node(query));
            prop_assert_eq!(found(&tree, kind.name, split), Ok(expected.clone()), "{:?}, leaves {}", tree, leaves);
        }
        // What is known before a split is opened agrees with what is in it.
        prop_assert!(expected.is_empty() || typed.may_match(&TopicName::new(kind.name).unwrap()), "{}", &text);
        let times = typed.times();
        for doc in &expected {
            let at = messages[*doc as usize].timestamp;
            prop_assert!(times.first <= at && at <= times.last, "{}: {:?} and {}", &text, times, at);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn queries_find_what_a_scan_finds(
        contents in prop::collection::vec(contents(), 1..40),
        queries in prop::collection::vec(Vocabulary::generated(Tokenizer::Default).queries(), 24),
        of_logs in prop::collection::vec(Vocabulary::generated(Tokenizer::Log).queries(), 24),
    ) {
        let of = |name: &str| TOPICS.iter().find(|kind| kind.name == name).unwrap();
        check(of("orders"), &contents, &queries)?;
        check(of("orders-log"), &contents, &[queries, of_logs].concat())?;
    }
}

fn words(text: &str) -> QueryNode {
    QueryNode::Words { field: FieldName::from("value"), text: text.into(), operator: Operator::And }
}

fn boolean(must: &[&str], should: &[&str], must_not: &[&str], filter: &[&str], minimum: usize) -> QueryNode {
    let nodes = |texts: &[&str]| texts.iter().map(|text| words(text)).collect();
    QueryNode::Bool {
        must: nodes(must),
        should: nodes(should),
        must_not: nodes(must_not),
        filter: nodes(filter),
        minimum_should_match: minimum,
    }
}

fn lines(texts: &[&str]) -> SplitReader {
    let doc = |(offset, text): (i64, &&str)| Doc { offset, value: (*text).to_owned(), ..Doc::default() };
    split_with(false, Leaves::Indexed, &(0..).zip(texts).map(doc).collect::<Vec<_>>()).unwrap()
}

#[test]
fn clauses_count_as_they_should() {
    let split = lines(&["a b", "a c", "b c", "a b c", "d"]);
    for (node, expected) in [
        (boolean(&[], &[], &[], &[], 0), vec![0, 1, 2, 3, 4]),
        (boolean(&["a"], &["b"], &[], &[], 0), vec![0, 1, 3]),
        (boolean(&["a"], &["b"], &[], &[], 1), vec![0, 3]),
        (boolean(&[], &["a", "b", "c"], &[], &[], 0), vec![0, 1, 2, 3]),
        (boolean(&[], &["a", "b", "c"], &[], &[], 2), vec![0, 1, 2, 3]),
        (boolean(&[], &["a", "b", "c"], &[], &[], 3), vec![3]),
        (boolean(&[], &["a", "b", "c"], &[], &[], 4), vec![]),
        (boolean(&[], &["a", "---"], &[], &[], 2), vec![]),
        (boolean(&[], &["b"], &["a"], &[], 0), vec![2]),
        (boolean(&[], &[], &["a"], &[], 0), vec![2, 4]),
        (boolean(&[], &["b"], &[], &["a"], 0), vec![0, 1, 3]),
        (boolean(&["---"], &[], &[], &["a"], 0), vec![0, 1, 3]),
        (boolean(&["---"], &[], &[], &[], 0), vec![]),
    ] {
        assert_eq!(found(&asked(node.clone()), TOPIC, &split), Ok(expected.into_iter().collect()), "{node:?}");
    }
    let any = QueryNode::Words { field: FieldName::from("value"), text: "a d".into(), operator: Operator::Or };
    assert_eq!(found(&asked(any), TOPIC, &split), Ok([0, 1, 3, 4].into()));
    // All words, without positions.
    assert_eq!(found(&asked(words("b-a")), TOPIC, &split), Ok([0, 3].into()));
}

#[test]
fn text_without_words_finds_nothing_for_elasticsearch() {
    use serde_json::json;
    let split = lines(&["a b", "a c"]);
    for (clause, expected) in [
        (json!({"match": {"value": "---"}}), vec![]),
        (json!({"match": {"value": {"query": "---", "zero_terms_query": "none"}}}), vec![]),
        (json!({"match_phrase": {"value": "---"}}), vec![]),
        (json!({"match_bool_prefix": {"value": "--- ---"}}), vec![]),
        (json!({"match_bool_prefix": {"value": "--- c"}}), vec![1]),
        (json!({"multi_match": {"query": "---", "fields": ["value", "key"]}}), vec![]),
        (json!({"term": {"json.op": "=="}}), vec![]),
        (json!({"terms": {"key": ["---"]}}), vec![]),
        (json!({"terms": {"value": ["---", "c"]}}), vec![1]),
        (json!({"prefix": {"value": "---"}}), vec![]),
        (json!({"wildcard": {"value": "---*"}}), vec![]),
        (json!({"bool": {"must_not": {"match": {"value": "---"}}}}), vec![0, 1]),
        (json!({"constant_score": {"filter": {"match": {"value": "---"}}}}), vec![]),
        (json!({"query_string": {"query": "json.op:\"==\""}}), vec![]),
        (json!({"query_string": {"query": "\"---\" OR \"===\""}}), vec![]),
        (json!({"query_string": {"query": "\"---\" AND c"}}), vec![1]),
        (json!({"query_string": {"query": ""}}), vec![]),
        (json!({"query_string": {"query": "*"}}), vec![0, 1]),
    ] {
        let body = json!({"query": {"bool": {"filter": [{"match_all": {}}, clause]}}});
        let body = SearchBody::parse(body, Timestamp(NOW), 1).unwrap();
        assert_eq!(found(&asked(body.query), TOPIC, &split), Ok(expected.into_iter().collect()), "{clause}");
    }
}

#[test]
fn filters_choose_and_do_not_score() {
    use tantivy::collector::TopDocs;
    let split = lines(&["a b", "a", "b b b"]);
    let scores = |node: QueryNode| -> Vec<f32> {
        let query = asked(node).build(&split, Some(&topic())).unwrap();
        split
            .searcher
            .search(&query, &TopDocs::with_limit(9).order_by_score())
            .unwrap()
            .iter()
            .map(|hit| hit.0)
            .collect()
    };
    let plain = scores(boolean(&["a", "b"], &[], &[], &[], 0));
    let filtered = scores(boolean(&["a"], &[], &[], &["b"], 0));
    assert_eq!((plain.len(), filtered.len()), (1, 1));
    assert!(plain[0] > filtered[0]);
    let boosted = QueryNode::Boost { node: Box::new(boolean(&["a", "b"], &[], &[], &[], 0)), factor: 3.0 };
    assert!((scores(boosted)[0] - plain[0] * 3.0).abs() < 1e-4);
}
