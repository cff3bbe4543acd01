use std::ops::Bound;

use proptest::prelude::*;
use serde_json::{Value, json};
use thermocline_ingest::model::{Offset, PartitionId, Timestamp, TopicName};

use super::dsl::{CLAUSES_MAX, Dsl, NESTING_MAX};
use super::request::{Order, Parameters, SearchBody, Shown, index_options, no_more, with_parameters};
use super::*;
use crate::search::ast::{FieldName, Literal, LiteralValue, Operator, QueryNode};
use crate::search::rank::{Rank, SortKey};
use crate::search::{Sort, TotalWanted};

/// 2015-05-17T10:05:03.250Z
const NOW: Timestamp = Timestamp(1_431_857_103_250);

fn query(value: Value) -> Result<QueryNode, ElasticError> {
    Dsl::new(NOW).query(value)
}

fn body(value: Value) -> Result<SearchBody, ElasticError> {
    SearchBody::parse(value, NOW, 1000)
}

fn zero_terms_none(node: QueryNode) -> QueryNode {
    QueryNode::ZeroTermsNone { node: Box::new(node) }
}

fn words(field: &str, text: &str, operator: Operator) -> QueryNode {
    zero_terms_none(QueryNode::Words { field: field.into(), text: text.into(), operator })
}

fn exact(field: &str, value: impl Into<LiteralValue>) -> QueryNode {
    let value: LiteralValue = value.into();
    zero_terms_none(QueryNode::Exact { field: field.into(), value: value.into() })
}

fn times(lower: Bound<i64>, upper: Bound<i64>) -> QueryNode {
    let literal = |bound: Bound<i64>| bound.map(Literal::from);
    QueryNode::Range { field: FieldName::new("timestamp"), lower: literal(lower), upper: literal(upper) }
}

fn any_of(should: Vec<QueryNode>) -> QueryNode {
    QueryNode::Bool { must: vec![], should, must_not: vec![], filter: vec![], minimum_should_match: 1 }
}

#[test]
fn leaves_become_nodes() {
    let starts = |field: &str, text: &str| QueryNode::Prefix { field: field.into(), text: text.into() };
    let prefix = |field: &str, text: &str| zero_terms_none(starts(field, text));
    let part = |field: &str, value: LiteralValue| QueryNode::Exact { field: field.into(), value: value.into() };
    let place = QueryNode::Bool {
        must: vec![],
        should: vec![],
        must_not: vec![],
        filter: vec![part("topic", "orders".into()), part("partition", 2_i64.into()), part("offset", 7_i64.into())],
        minimum_should_match: 0,
    };
    let phrase =
        |text: &str, slop| zero_terms_none(QueryNode::Phrase { field: "value".into(), text: text.into(), slop });
    let late = QueryNode::Words { field: "value".into(), text: "late".into(), operator: Operator::Or };
    for (wanted, node) in [
        (json!({"match_all": {}}), QueryNode::All),
        (json!({"match_none": {}}), QueryNode::Nothing),
        (json!({"match": {"value": "late parcel"}}), words("value", "late parcel", Operator::Or)),
        (
            json!({"match": {"value": {"query": "late parcel", "operator": "AND", "lenient": true}}}),
            words("value", "late parcel", Operator::And),
        ),
        (json!({"match": {"json.status": 500}}), words("json.status", "500", Operator::Or)),
        (
            json!({"match": {"value": {"query": "a b", "minimum_should_match": "100%"}}}),
            words("value", "a b", Operator::And),
        ),
        (json!({"match_phrase": {"value": {"query": "late parcel", "slop": 2}}}), phrase("late parcel", 2)),
        (json!({"match_phrase_prefix": {"value": "par"}}), prefix("value", "par")),
        (
            json!({"match_bool_prefix": {"value": "late par"}}),
            zero_terms_none(any_of(vec![late, starts("value", "par")])),
        ),
        (
            json!({"multi_match": {"query": "late", "fields": ["value", "key"]}}),
            any_of(vec![words("value", "late", Operator::Or), words("key", "late", Operator::Or)]),
        ),
        (json!({"term": {"json.ok": true}}), exact("json.ok", true)),
        (json!({"term": {"json.n": {"value": 1.5}}}), exact("json.n", 1.5)),
        (json!({"terms": {"key": ["a", "b"]}}), any_of(vec![exact("key", "a"), exact("key", "b")])),
        (json!({"terms": {"key": []}}), QueryNode::Nothing),
        (json!({"term": {"_index": "orders"}}), exact("topic", "orders")),
        (json!({"prefix": {"key": "k"}}), prefix("key", "k")),
        (json!({"wildcard": {"key": {"value": "k*"}}}), prefix("key", "k")),
        (json!({"wildcard": {"key": "k"}}), exact("key", "k")),
        (json!({"exists": {"field": "json.x"}}), QueryNode::Exists { field: "json.x".into() }),
        (json!({"match_all": {"boost": 2}}), QueryNode::Boost { node: Box::new(QueryNode::All), factor: 2.0 }),
        (json!({"ids": {"values": ["orders/2/7", "nonsense"]}}), place.clone()),
        (json!({"term": {"_id": "orders/2/7"}}), place.clone()),
        (json!({"match": {"_id": "nonsense"}}), QueryNode::Nothing),
    ] {
        assert_eq!(query(wanted.clone()), Ok(node), "{wanted}");
    }
}

#[test]
fn patterns_are_those_of_the_query_language() {
    let typed = |text: &str| query(json!({"query_string": {"query": text}})).unwrap();
    let fits = |node: QueryNode, word: &str| match node {
        QueryNode::Pattern { pattern, .. } => pattern.matches(word.as_bytes()),
        other => panic!("{other:?}"),
    };
    for (dsl, text) in [
        (json!({"wildcard": {"key": {"value": "*k?"}}}), "key:*k?"),
        (json!({"wildcard": {"key": {"wildcard": "a*b"}}}), "key:a*b"),
        (json!({"regexp": {"key": "a.*|b"}}), "key:/a.*|b/"),
        (json!({"regexp": {"key": {"value": "a/b", "flags": "ALL"}}}), "key:/a\\/b/"),
    ] {
        let QueryNode::Pattern { field, pattern } = query(dsl.clone()).unwrap() else { panic!("{dsl}") };
        let QueryNode::Pattern { field: typed_field, pattern: typed } = typed(text) else { panic!("{text}") };
        assert_eq!(field.name, typed_field.name);
        assert_eq!(pattern.matcher().as_str(), typed.matcher().as_str());
    }
    assert!(fits(query(json!({"wildcard": {"_index": "Ord*s"}})).unwrap(), "Orders"));
    assert!(!fits(query(json!({"regexp": {"_index": "Ord.*"}})).unwrap(), "orders"));
    assert_eq!(query(json!({"wildcard": {"key": "a\\*b"}})), Ok(exact("key", "a*b")));
}

#[test]
fn ranges_of_times_are_filled_and_rounded() {
    for (settings, lower, upper) in [
        (
            json!({"gte": 1_668_422_437_218_i64, "lte": 1_668_422_625_668_i64, "format": "epoch_millis"}),
            Bound::Included(1_668_422_437_218),
            Bound::Included(1_668_422_625_668),
        ),
        (json!({"gte": "now-15m", "lt": "now"}), Bound::Included(NOW.0 - 900_000), Bound::Excluded(NOW.0)),
        (
            json!({"gt": "2015-05-17", "lte": "2015-05-18"}),
            Bound::Excluded(1_431_907_199_999),
            Bound::Included(1_431_993_599_999),
        ),
        (json!({"gte": "2015-05-17", "time_zone": "+02:00"}), Bound::Included(1_431_813_600_000), Bound::Unbounded),
        (json!({}), Bound::Unbounded, Bound::Unbounded),
        (json!({"from": 5, "to": "7", "format": "epoch_millis"}), Bound::Included(5), Bound::Included(7)),
        (
            json!({"from": 5, "to": 7, "include_lower": false, "include_upper": "false"}),
            Bound::Excluded(5),
            Bound::Excluded(7),
        ),
        (json!({"from": null, "to": 7, "include_lower": true}), Bound::Unbounded, Bound::Included(7)),
        (json!({"from": 5, "to": null, "gte": null}), Bound::Included(5), Bound::Unbounded),
    ] {
        assert_eq!(query(json!({"range": {"@timestamp": settings}})), Ok(times(lower, upper)), "{settings}");
    }
    let day = times(Bound::Included(1_431_820_800_000), Bound::Included(1_431_907_199_999));
    assert_eq!(query(json!({"term": {"@timestamp": "2015-05-17"}})), Ok(day.clone()));
    assert_eq!(query(json!({"match": {"timestamp": "2015-05-17"}})), Ok(day));
    assert_eq!(
        query(json!({"range": {"json.ms": {"gt": 5, "lte": 7.5}}})),
        Ok(QueryNode::Range {
            field: "json.ms".into(),
            lower: Bound::Excluded(5_i64.into()),
            upper: Bound::Included(7.5.into()),
        })
    );
    // Texts that say numbers are numbers in JSON, words elsewhere.
    let below = |field: &str, upper: Literal| {
        Ok(QueryNode::Range { field: field.into(), lower: Bound::Unbounded, upper: Bound::Excluded(upper) })
    };
    assert_eq!(query(json!({"range": {"json.ms": {"lt": "500"}}})), below("json.ms", 500_i64.into()));
    assert_eq!(query(json!({"range": {"json.level": {"lt": "info"}}})), below("json.level", "info".into()));
    assert_eq!(query(json!({"range": {"key": {"lt": "500"}}})), below("key", "500".into()));
}

#[test]
fn clauses_keep_their_kind() {
    let leaf = |text: &str| words("value", text, Operator::Or);
    let clause = |text: &str| json!({"match": {"value": text}});
    let with = |minimum: Value| {
        query(json!({"bool": {"must": clause("a"), "should": [clause("b"), clause("c"), clause("d")],
            "must_not": [clause("e")], "filter": {"match_all": {}}, "minimum_should_match": minimum}}))
    };
    for (minimum, wanted) in
        [(json!(null), 0), (json!(2), 2), (json!("-1"), 2), (json!("75%"), 2), (json!("-25%"), 3), (json!(-9), 0)]
    {
        let node = QueryNode::Bool {
            must: vec![leaf("a")],
            should: vec![leaf("b"), leaf("c"), leaf("d")],
            must_not: vec![leaf("e")],
            filter: vec![QueryNode::All],
            minimum_should_match: wanted,
        };
        assert_eq!(with(minimum.clone()), Ok(node), "{minimum}");
    }
    assert_eq!(with(json!(4)), Ok(QueryNode::Nothing), "more than there are");
    assert!(with(json!("most")).is_err());
    assert_eq!(query(json!({"bool": {}})), Ok(QueryNode::All));
    assert_eq!(
        query(json!({"bool": {"must_not": clause("a")}})),
        Ok(QueryNode::Bool {
            must: vec![],
            should: vec![],
            must_not: vec![leaf("a")],
            filter: vec![QueryNode::All],
            minimum_should_match: 0,
        })
    );
    assert_eq!(query(json!({"bool": {"should": [clause("a"), clause("b")]}})), Ok(any_of(vec![leaf("a"), leaf("b")])));
}

#[test]
fn a_request_has_so_many_patterns() {
    let wildcards = |count| vec![json!({"wildcard": {"value": "p*l"}}); count];
    let both = |count, text: &str| {
        let mut filter = wildcards(count);
        filter.push(json!({"query_string": {"query": text}}));
        query(json!({"bool": {"filter": filter}}))
    };
    assert!(both(62, "a*b c*d").is_ok());
    assert!(both(62, "a*b c*d e*f").is_err());
    assert!(query(json!({"bool": {"filter": wildcards(65)}})).is_err());
}

#[test]
fn query_strings_are_the_query_language() {
    let parsed = |operator: Option<&str>| {
        let mut settings = json!({"query": "late parcel", "analyze_wildcard": true, "default_field": "*"});
        if let Some(operator) = operator {
            settings["default_operator"] = json!(operator);
        }
        query(json!({"query_string": settings})).unwrap()
    };
    let QueryNode::ZeroTermsNone { node } = parsed(None) else { panic!("no words?") };
    let QueryNode::Bool { must, should, .. } = *node else { panic!("one word?") };
    assert_eq!((must.len(), should.len()), (0, 2), "OR is the default here");
    assert_ne!(parsed(None), parsed(Some("AND")));
    assert_eq!(query(json!({"query_string": {"query": "*"}})), Ok(QueryNode::All));
    assert_eq!(query(json!({"query_string": {"query": " "}})), Ok(QueryNode::Nothing));
    let alias = query(json!({"query_string": {"query": "@timestamp:[now-1h TO now]"}})).unwrap();
    assert!(matches!(alias, QueryNode::Range { .. }), "{alias:?}");
    let error = query(json!({"query_string": {"query": "a AND ("}})).unwrap_err();
    assert_eq!(error.status, 400);
    assert!(query(json!({"query_string": {"query": "a", "fields": ["key"]}})).is_err());
}

#[test]
fn what_is_not_offered_is_refused_by_name() {
    for (refused, named) in [
        (json!({"nested": {"path": "a", "query": {"match_all": {}}}}), "nested"),
        (json!({"function_score": {}}), "function_score"),
        (json!({"script": {}}), "script"),
        (json!({"regexp": {"key": "a("}}), "regexp"),
        (json!({"regexp": {"key": "^a"}}), "whole word"),
        (json!({"fuzzy": {"key": "a"}}), "fuzzy"),
        (json!({"simple_query_string": {"query": "a"}}), "simple_query_string"),
        (json!({"match": {"value": {"query": "a", "fuzziness": "AUTO"}}}), "fuzziness"),
        (json!({"match": {"value": {"query": "a", "analyzer": "x"}}}), "analyzer"),
        (json!({"match": {"value": {"query": ["a"]}}}), "query"),
        (json!({"match": {"a": 1, "b": 2}}), "match"),
        (json!({"match": {"message": "a"}}), "message"),
        (json!({"wildcard": {"key": format!("*{}", "a".repeat(2000))}}), "1000"),
        (json!({"term": {"key": {"value": "a", "case_insensitive": true}}}), "case_insensitive"),
        (json!({"terms": {"key": {"index": "x", "id": "1", "path": "y"}}}), "terms"),
        (json!({"range": {"timestamp": {"gte": "soon"}}}), "soon"),
        (json!({"range": {"timestamp": {"gte": 1, "format": "yyyy"}}}), "yyyy"),
        (json!({"range": {"timestamp": {"gte": 1, "time_zone": "Europe/Berlin"}}}), "Berlin"),
        (json!({"range": {"offset": {"gte": 1, "gt": 1}}}), "gte"),
        (json!({"range": {"offset": {"from": 1, "gte": 2}}}), "from"),
        (json!({"range": {"offset": {"to": 1, "include_upper": "no"}}}), "include_upper"),
        (json!({"bool": {"musst": []}}), "musst"),
        (json!({"match_all": {}, "match_none": {}}), "query"),
        (json!({}), "query"),
        (json!([]), "query"),
        (json!({"match_all": {"boost": -1}}), "boost"),
    ] {
        let error = query(refused.clone()).unwrap_err();
        assert_eq!(error.status, 400, "{refused}");
        assert!(error.reason.contains(named), "{refused}: {error}");
    }
}

#[test]
fn depth_and_number_of_clauses_are_limited() {
    let mut deep = json!({"match_all": {}});
    for _ in 0..NESTING_MAX {
        deep = json!({"bool": {"must": deep}});
    }
    assert!(query(deep.clone()).unwrap_err().reason.contains("inside each other"));
    assert!(query(deep["bool"]["must"].clone()).is_ok());
    let many = |count: usize| json!({"terms": {"key": vec!["a"; count]}});
    assert!(query(many(CLAUSES_MAX - 1)).is_ok());
    assert_eq!(query(many(CLAUSES_MAX)).unwrap_err().kind, "too_many_clauses");
    let mut aggs = json!({"avg": {"field": "offset"}});
    for _ in 0..super::aggs::AGGREGATIONS_NESTING_MAX {
        aggs = json!({"terms": {"field": "key"}, "aggs": {"a": aggs}});
    }
    assert!(body(json!({"aggs": {"a": aggs}})).unwrap_err().reason.contains("inside each other"));
    let many: serde_json::Map<_, _> =
        (0..=super::aggs::AGGREGATIONS_MAX).map(|n| (n.to_string(), json!({"avg": {"field": "offset"}}))).collect();
    assert!(body(json!({"aggs": many})).unwrap_err().reason.contains("256"));
}

#[test]
fn bodies_say_what_is_wanted() {
    let plain = body(Value::Null).unwrap();
    assert_eq!((plain.from, plain.size, plain.total), (0, 10, TotalWanted::AtLeast(10_000)));
    assert_eq!(plain.order, Order { sort: Sort::NewestFirst, shown: Shown::Nothing });
    let scored = body(json!({"query": {"match": {"value": "a"}}})).unwrap();
    assert_eq!(scored.order, Order { sort: Sort::Score, shown: Shown::Nothing });
    let filtered = json!({"query": {"bool": {"filter": {"match": {"value": "a"}}}}, "track_total_hits": true});
    let filtered = body(filtered).unwrap();
    assert_eq!((filtered.order.sort, filtered.total), (Sort::NewestFirst, TotalWanted::Exact));
    // As Grafana asks for logs.
    let logs = body(json!({
        "docvalue_fields": ["@timestamp"], "script_fields": {}, "size": 500,
        "query": {"bool": {"filter": [{"range": {"@timestamp": {"format": "epoch_millis", "gte": 1, "lte": 2}}}]}},
        "sort": {"@timestamp": {"order": "desc", "unmapped_type": "boolean"}, "_doc": {"order": "desc"}},
        "highlight": {
            "pre_tags": ["@HIGHLIGHT@"], "post_tags": ["@/HIGHLIGHT@"], "fragment_size": 2_147_483_647,
            "fields": {"*": {}},
        },
        "fields": [{"field": "@timestamp", "format": "strict_date_optional_time_nanos"}],
    }))
    .unwrap();
    assert_eq!(logs.order, Order { sort: Sort::NewestFirst, shown: Shown::Time(DateFormat::Millis) });
    assert_eq!((logs.size, logs.fields.len()), (500, 2));
    let highlight = logs.highlight.unwrap();
    assert_eq!((highlight.pre.as_str(), highlight.escape_html), ("@HIGHLIGHT@", false));
    for (refused, named) in [
        (json!({"sort": "offset"}), "offset"),
        (json!({"sort": ["@timestamp", "_score"]}), "sort"),
        (json!({"sort": [{"_score": "asc"}]}), "_score"),
        (json!({"sort": []}), "sort"),
        (json!({"post_filter": {}}), "post_filter"),
        (json!({"size": -1}), "size"),
        (json!({"explain": true}), "explain"),
        (json!({"script_fields": {"a": {}}}), "script_fields"),
        (json!({"search_after": [1]}), "sort"),
        (json!({"track_total_hits": "many"}), "track_total_hits"),
        (json!({"highlight": {"fields": {}}}), "highlight"),
        (json!({"_source": [1]}), "_source"),
        (json!([]), "search"),
    ] {
        let error = body(refused.clone()).unwrap_err();
        assert!(error.status == 400 && error.reason.contains(named), "{refused}: {error}");
    }
}

#[test]
fn search_after_is_what_sort_showed() {
    let key =
        |rank| SortKey { rank, topic: TopicName::new("orders").unwrap(), partition: PartitionId(2), offset: Offset(7) };
    for (sort, after, wanted) in [
        (json!([{"@timestamp": "desc"}]), json!([5, "orders/2/7"]), key(Rank::newest(Timestamp(5)))),
        (json!([{"@timestamp": "asc"}]), json!([5, "orders/2/7"]), key(Rank::oldest(Timestamp(5)))),
        (json!("_score"), json!([1.5, "orders/2/7"]), key(Rank::score(1.5))),
        (json!("_doc"), json!(["5/orders/2/7"]), key(Rank::oldest(Timestamp(5)))),
        (
            json!([{"@timestamp": {"order": "asc", "format": "strict_date_optional_time"}}]),
            json!(["1970-01-01T00:00:00.005Z", "orders/2/7"]),
            key(Rank::oldest(Timestamp(5))),
        ),
    ] {
        let parsed = body(json!({"sort": sort, "search_after": after})).unwrap();
        assert_eq!(parsed.after, Some(wanted), "{sort} {after}");
    }
    let alone = body(json!({"sort": "@timestamp", "search_after": [5]})).unwrap().after.unwrap();
    assert!(alone > key(Rank::oldest(Timestamp(5))) && alone < key(Rank::oldest(Timestamp(6))));
    for after in [json!([]), json!([5, 6]), json!([5, "x"]), json!([5, "a b/1/2"]), json!(5), json!([null])] {
        assert!(body(json!({"sort": "@timestamp", "search_after": after})).is_err(), "{after}");
    }
}

#[test]
fn parameters_say_what_a_body_may_say() {
    let parameters = |pairs: &[(&str, &str)]| -> Parameters {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let mut given = parameters(&[
        ("q", "late"),
        ("default_operator", "AND"),
        ("size", "3"),
        ("sort", "@timestamp:desc,_doc"),
        ("_source", "key,json.*"),
        ("ignore_unavailable", ""),
        ("pretty", "true"),
        ("search_type", "query_then_fetch"),
    ]);
    let options = index_options(&mut given).unwrap();
    assert!(options.ignore_unavailable);
    let body = with_parameters(json!({"size": 5, "from": 1}), &mut given).unwrap();
    assert_eq!(
        body,
        json!({
            "query": {"query_string": {"query": "late", "default_operator": "AND"}}, "from": 1, "size": "3",
            "sort": [{"@timestamp": {"order": "desc"}}, "_doc"], "_source": ["key", "json.*"],
        })
    );
    no_more(&given).unwrap();
    assert_eq!(SearchBody::parse(body, NOW, 10).unwrap().size, 3);
    assert!(no_more(&parameters(&[("terminate_after", "1")])).unwrap_err().reason.contains("terminate_after"));
    assert!(with_parameters(json!({}), &mut parameters(&[("search_type", "dfs_query_then_fetch")])).is_err());
    assert!(index_options(&mut parameters(&[("ignore_unavailable", "maybe")])).is_err());
}

#[test]
fn aggregations_are_checked() {
    let one = |kind: &str, settings: Value| body(json!({"aggs": {"a": {kind: settings}}}));
    for (kind, settings) in [
        (
            "terms",
            json!({"field": "json.a", "size": 5, "order": [{"_count": "desc"}, {"_key": "asc"}], "missing": "x"}),
        ),
        ("terms", json!({"field": "headers.a", "order": {"_term": "asc"}, "include": ["a"]})),
        ("histogram", json!({"field": "offset", "interval": "10", "extended_bounds": {"min": 0, "max": "50"}})),
        ("date_histogram", json!({"field": "@timestamp", "interval": "1d", "missing": "x"})),
        ("percentiles", json!({"field": "json.a", "percents": ["25", 99.9], "tdigest": {}})),
        ("cardinality", json!({"field": "json.a", "precision_threshold": 100})),
        ("range", json!({"field": "json.a", "ranges": [{"to": 1}]})),
    ] {
        assert!(one(kind, settings.clone()).is_ok(), "{kind} {settings}: {:?}", one(kind, settings.clone()));
    }
    for inner in [
        json!({"x": {"derivative": {"buckets_path": "m", "unit": "1s"}}}),
        json!({"x": {"derivative": {"buckets_path": "y"}}, "y": {"cumulative_sum": {"buckets_path": "z", "format": "0"}},
            "z": {"serial_diff": {"buckets_path": "_count", "lag": "2"}}}),
        json!({"x": {"moving_fn": {"buckets_path": "m.value", "window": "5", "shift": -1,
            "script": "MovingFunctions.stdDev(values, MovingFunctions.unweightedAvg(values))"}}}),
        json!({"x": {"bucket_script": {"buckets_path": {"a": "m", "b": "p[95]"}, "script": {"source": "params.a / params.b"}}}}),
        json!({"x": {"rate": {"unit": "minute"}}}),
        json!({"x": {"rate": {"field": "json.ms", "mode": "value_count"}}}),
    ] {
        let mut aggs = inner.clone();
        aggs["m"] = json!({"avg": {"field": "json.ms"}});
        aggs["p"] = json!({"percentiles": {"field": "json.ms"}});
        let request =
            json!({"aggs": {"a": {"date_histogram": {"field": "@timestamp", "fixed_interval": "1m"}, "aggs": aggs}}});
        assert!(body(request.clone()).is_ok(), "{inner}: {:?}", body(request));
    }
    for (parent, inner, named) in [
        ("histogram", json!({"derivative": {"buckets_path": "n"}}), "[n]"),
        ("histogram", json!({"derivative": {"buckets_path": "x"}}), "[x]"),
        ("histogram", json!({"derivative": {"buckets_path": "p[42]"}}), "p[42]"),
        ("histogram", json!({"derivative": {"buckets_path": "m>n"}}), "m>n"),
        ("histogram", json!({"derivative": {"buckets_path": "m", "unit": "day"}}), "unit"),
        ("histogram", json!({"derivative": {"buckets_path": "m", "gap_policy": "none"}}), "gap_policy"),
        ("histogram", json!({"derivative": {"buckets_path": "m", "lag": 1}}), "lag"),
        ("histogram", json!({"serial_diff": {"buckets_path": "m", "lag": 0}}), "lag"),
        ("histogram", json!({"moving_fn": {"buckets_path": "m", "window": 5, "script": "values[0]"}}), "values[0]"),
        ("histogram", json!({"moving_fn": {"buckets_path": "m", "script": "MovingFunctions.max(values)"}}), "window"),
        ("histogram", json!({"bucket_script": {"buckets_path": {"a": "m"}, "script": "params.b"}}), "params.b"),
        ("histogram", json!({"bucket_script": {"buckets_path": {"a": "m"}, "script": "Math.max(1, 2)"}}), "Math"),
        ("histogram", json!({"bucket_script": {"buckets_path": "m", "script": "1"}}), "object"),
        ("histogram", json!({"rate": {"unit": "second"}}), "date_histogram"),
        ("terms", json!({"derivative": {"buckets_path": "m"}}), "histogram"),
        ("filter", json!({"bucket_script": {"buckets_path": {}, "script": "1"}}), "several buckets"),
        ("histogram", json!({"derivative": {"buckets_path": "m"}, "aggs": {}}), "cannot hold"),
    ] {
        let settings = match parent {
            "histogram" => json!({"field": "offset", "interval": 1}),
            "terms" => json!({"field": "key"}),
            _ => json!({"match_all": {}}),
        };
        let inner = json!({"x": inner, "m": {"avg": {"field": "json.ms"}}, "p": {"percentiles": {"field": "json.ms"}}});
        let error = body(json!({"aggs": {"a": {parent: settings, "aggs": inner}}})).unwrap_err();
        assert!(error.status == 400 && error.reason.contains(named), "{inner}: {error}");
    }
    assert!(body(json!({"aggs": {"a": {"derivative": {"buckets_path": "_count"}}}})).is_err());
    for (kind, settings, named) in [
        ("top_hits", json!({}), "top_hits"),
        ("moving_avg", json!({"buckets_path": "1"}), "moving_avg"),
        ("terms", json!({"field": "value"}), "value"),
        ("terms", json!({"script": "x"}), "script"),
        ("terms", json!({"field": "key", "size": 0}), "size"),
        ("terms", json!({"field": "key", "size": 1001}), "aggregation_buckets_max"),
        ("terms", json!({"field": "key", "include": "a.*"}), "include"),
        ("terms", json!({"field": "key", "order": {"x": "asc"}}), "order"),
        ("terms", json!({"field": "key", "sizze": 1}), "sizze"),
        ("histogram", json!({"field": "offset", "interval": 0}), "interval"),
        ("histogram", json!({"field": "offset", "interval": 1, "extended_bounds": {"min": 0, "max": 1e18}}), "buckets"),
        ("date_histogram", json!({"field": "json.a", "fixed_interval": "1d"}), "json.a"),
        ("date_histogram", json!({"field": "@timestamp"}), "fixed_interval"),
        ("date_histogram", json!({"field": "@timestamp", "fixed_interval": "0s"}), "0s"),
        ("date_histogram", json!({"field": "@timestamp", "calendar_interval": "2M"}), "2M"),
        ("date_histogram", json!({"field": "@timestamp", "fixed_interval": "1d", "time_zone": "Asia/Tokyo"}), "Tokyo"),
        ("date_range", json!({"field": "json.a", "ranges": [{"to": 1}]}), "json.a"),
        ("range", json!({"field": "json.a", "ranges": []}), "ranges"),
        ("filters", json!({"filters": {}}), "filters"),
        ("percentiles", json!({"field": "json.a", "percents": [101]}), "percents"),
    ] {
        let error = one(kind, settings.clone()).unwrap_err();
        assert!(error.status == 400 && error.reason.contains(named), "{kind} {settings}: {error}");
    }
    assert!(body(json!({"aggs": {"doc_count": {"avg": {"field": "offset"}}}})).is_err());
    assert!(
        body(json!({"aggs": {"a": {"avg": {"field": "offset"}, "aggs": {"b": {"avg": {"field": "offset"}}}}}}))
            .is_err()
    );
    assert!(body(json!({"aggs": {"a": {}}})).is_err());
}

#[test]
fn refusals_have_the_shape_of_elasticsearch() {
    let error = query(json!({"nested": {}})).unwrap_err();
    let cause = json!({"type": "illegal_argument_exception", "reason": "the query [nested] is not supported"});
    assert_eq!(
        error.to_json(),
        json!({"error": {"root_cause": [cause], "type": cause["type"], "reason": cause["reason"]}, "status": 400})
    );
}

/// JSON that looks like a request now and then.
fn noise() -> impl Strategy<Value = Value> {
    let names = prop::sample::select(vec![
        "query",
        "bool",
        "must",
        "should",
        "filter",
        "match",
        "term",
        "terms",
        "range",
        "value",
        "key",
        "json.a",
        "@timestamp",
        "gte",
        "lt",
        "aggs",
        "a",
        "field",
        "filters",
        "date_histogram",
        "fixed_interval",
        "sort",
        "size",
        "search_after",
        "highlight",
        "fields",
        "query_string",
        "boost",
        "ids",
        "values",
        "histogram",
        "interval",
        "extended_bounds",
        "min",
        "max",
        "ranges",
        "from",
        "to",
        "order",
        "derivative",
        "bucket_script",
        "buckets_path",
        "script",
        "terms",
        "minimum_should_match",
        "_source",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z*:()\" ]{0,12}".prop_map(Value::from),
        names.clone().prop_map(Value::from),
        Just(json!("now-1d/d")),
    ];
    leaf.prop_recursive(6, 40, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((names.clone(), inner), 0..4)
                .prop_map(|members| members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()),
        ]
    })
}

proptest! {
    #[test]
    fn noise_never_panics(value in noise()) {
        let _ = query(value.clone());
        let _ = body(json!({"query": value, "aggs": value, "sort": value, "search_after": value}));
        let _ = body(value);
    }
}
