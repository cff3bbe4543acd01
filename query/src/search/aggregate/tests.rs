use proptest::prelude::*;
use thermocline_config::ByteSize;
use thermocline_ingest::model::{Offset, PartitionId, Timestamp, TopicName};
use thermocline_tiering::split::SplitOptions;

use super::*;
use crate::elastic::{iso, parse_aggregations};
use crate::prune::Extent;
use crate::search::testing::{Doc, split_of};

const LEVELS: [&str; 3] = ["error", "info", "warn"];
const START: i64 = 1_431_857_103_250;

/// Level, milliseconds taken, seconds since the start.
type Message = (usize, i64, i64);

fn messages() -> Vec<Message> {
    (0..60).map(|n| (usize::try_from(n % 7 % 3).unwrap(), n * 37 % 100, n * 11)).collect()
}

fn docs(messages: &[Message]) -> Vec<Doc> {
    let doc = |(offset, (level, ms, seconds)): (i64, &Message)| Doc {
        offset,
        timestamp: START + seconds * 1000,
        value: format!("a {} message", LEVELS[*level]),
        key: format!("k{}", offset % 4),
        json: json!({"level": LEVELS[*level], "ms": ms, "ok": ms % 2 == 0}),
        ..Doc::default()
    };
    (0..).zip(messages).map(doc).collect()
}

fn config() -> SearchConfig {
    SearchConfig { aggregation_buckets_max: 1000, ..SearchConfig::default() }
}

fn run_with(
    aggs: Value,
    config: &SearchConfig,
    splits: &[(SplitOptions, Vec<Doc>)],
) -> Result<AggregationsAnswer, String> {
    let splits = splits
        .iter()
        .map(|(options, docs)| (extent(TopicName::new("orders").unwrap(), PartitionId(0)), *options, docs.clone()));
    run_extents(aggs, config, &splits.collect::<Vec<_>>())
}

fn extent(topic: TopicName, partition: PartitionId) -> Extent {
    Extent {
        topic,
        partition,
        visible: Offset(0)..Offset(i64::MAX),
        stored: Offset(0)..Offset(i64::MAX),
        min_timestamp: Timestamp(i64::MIN),
        max_timestamp: Timestamp(i64::MAX),
    }
}

fn run_extents(
    aggs: Value,
    config: &SearchConfig,
    splits: &[(Extent, SplitOptions, Vec<Doc>)],
) -> Result<AggregationsAnswer, String> {
    let now = Timestamp(START);
    let tree = parse_aggregations(aggs, now, config.aggregation_buckets_max).map_err(|error| error.reason)?;
    let plan = AggregationPlan::new(tree, now, config).map_err(|error| error.to_string())?;
    let run = AggregationRun::new(plan);
    for (extent, options, docs) in splits {
        let split = split_of(*options, docs).unwrap();
        let mut one = run.start(&split, extent).map_err(|error| error.to_string())?;
        let ids: Vec<DocId> = (0..u32::try_from(docs.len()).unwrap()).collect();
        ids.chunks(super::super::collect::BESIDE_DOCS_MAX).for_each(|ids| one.collect(ids));
        one.finish().map_err(|error| error.to_string())?;
    }
    run.finish().map_err(|error| error.to_string())
}

/// Over the messages in splits of `size`.
fn run(aggs: Value, messages: &[Message], size: usize) -> Value {
    let docs = docs(messages);
    let splits: Vec<_> = docs.chunks(size).map(|docs| (SplitOptions::default(), docs.to_vec())).collect();
    let answer = run_with(aggs, &config(), &splits).unwrap_or_else(|error| panic!("{error}"));
    assert!(answer.lacking.is_empty());
    Value::Object(answer.values)
}

fn near(found: &Value, wanted: f64) -> bool {
    found.as_f64().is_some_and(|found| (found - wanted).abs() <= 1e-9 * wanted.abs().max(1.0))
}

#[test]
fn terms_and_metrics_equal_a_count_by_hand() {
    let messages = messages();
    let aggs = json!({
        "levels": {
            "terms": {"field": "json.level", "size": 2, "order": {"slow.max": "desc"}},
            "aggs": {"slow": {"stats": {"field": "json.ms"}}},
            "meta": {"shown": "as it came"},
        },
        "sum": {"sum": {"field": "json.ms"}},
        "keys": {"cardinality": {"field": "key"}},
        "oks": {"terms": {"field": "json.ok"}},
        "count": {"value_count": {"field": "json.level"}},
        "last": {"max": {"field": "@timestamp"}},
        "half": {"percentiles": {"field": "json.ms", "percents": ["50"]}},
    });
    for size in [7, 60] {
        let found = run(aggs.clone(), &messages, size);
        let mut by_level: Vec<(i64, usize, &str)> = (0..3)
            .map(|level| {
                let ms = || messages.iter().filter(|message| message.0 == level).map(|message| message.1);
                (ms().max().unwrap(), ms().count(), LEVELS[level])
            })
            .collect();
        by_level.sort_by_key(|level| std::cmp::Reverse(level.0));
        let buckets = found["levels"]["buckets"].as_array().unwrap();
        assert_eq!(buckets.len(), 2);
        for (bucket, (max, count, level)) in buckets.iter().zip(&by_level) {
            assert_eq!((&bucket["key"], &bucket["doc_count"]), (&json!(level), &json!(count)));
            assert!(near(&bucket["slow"]["max"], *max as f64), "{bucket}");
        }
        assert_eq!(found["levels"]["sum_other_doc_count"], json!(by_level[2].1));
        assert_eq!(found["levels"]["meta"], json!({"shown": "as it came"}));
        assert!(near(&found["sum"]["value"], messages.iter().map(|message| message.1).sum::<i64>() as f64));
        assert_eq!((&found["keys"]["value"], &found["count"]["value"]), (&json!(4), &json!(60)));
        assert_eq!(found["last"]["value_as_string"], json!(iso(START + 59 * 11_000)));
        let oks = found["oks"]["buckets"].as_array().unwrap();
        let oks: Vec<_> = oks.iter().map(|bucket| (&bucket["key_as_string"], &bucket["doc_count"])).collect();
        assert_eq!(oks, [(&json!("false"), &json!(30)), (&json!("true"), &json!(30))]);
        let half = found["half"]["values"]["50.0"].as_f64().unwrap();
        assert!((45.0..=55.0).contains(&half), "{half}");
    }
}

/// Over the messages in splits of `size`, which lie in topics and partitions in turn.
fn run_in_places(aggs: &Value, messages: &[Message], size: usize) -> Result<Value, String> {
    let docs = docs(messages);
    let splits = (0..).zip(docs.chunks(size)).map(|(number, docs)| {
        let topic = TopicName::new(["orders", "clicks"][number % 2]).unwrap();
        let partition = PartitionId(i32::try_from(number % 3).unwrap() * 5);
        (extent(topic, partition), SplitOptions::default(), docs.to_vec())
    });
    run_extents(aggs.clone(), &config(), &splits.collect::<Vec<_>>()).map(|answer| Value::Object(answer.values))
}

#[test]
fn topics_and_partitions_are_those_of_the_splits() {
    // Of ten each: orders 0, clicks 5, orders 10, clicks 0, orders 5, clicks 10.
    let messages = messages();
    let found = |aggs: Value| run_in_places(&aggs, &messages, 10).unwrap();
    let buckets = |found: &Value| -> Vec<(Value, u64)> {
        let buckets = found["a"]["buckets"].as_array().unwrap();
        buckets.iter().map(|bucket| (bucket["key"].clone(), bucket["doc_count"].as_u64().unwrap())).collect()
    };
    for field in ["topic", "_index"] {
        for (settings, wanted) in [
            (json!({"order": {"_key": "desc"}, "min_doc_count": 1}), vec![("orders", 30), ("clicks", 30)]),
            (json!({"order": {"_key": "asc"}, "min_doc_count": 0}), vec![("clicks", 30), ("orders", 30)]),
            (json!({"order": {"_key": "asc"}, "size": 1, "missing": "x"}), vec![("clicks", 30)]),
            (json!({"min_doc_count": 31}), vec![]),
            (json!({"include": ["orders", "x"]}), vec![("orders", 30)]),
            (json!({"exclude": ["orders"]}), vec![("clicks", 30)]),
        ] {
            let mut settings = settings;
            settings["field"] = json!(field);
            let wanted: Vec<_> = wanted.into_iter().map(|(key, count)| (json!(key), count)).collect();
            assert_eq!(buckets(&found(json!({"a": {"terms": settings}}))), wanted, "{settings}");
        }
    }
    let aggs = json!({"a": {
        "terms": {"field": "partition", "order": {"_key": "desc"}, "min_doc_count": 0, "missing": -1},
        "aggs": {"in": {"terms": {"field": "topic"}}, "p": {"max": {"field": "partition"}}},
    }, "n": {"cardinality": {"field": "topic"}}, "s": {"sum": {"field": "partition"}}, "c": {"value_count": {"field": "topic"}}});
    let answer = found(aggs);
    assert_eq!(buckets(&answer), [(json!(10), 20), (json!(5), 20), (json!(0), 20)]);
    for bucket in answer["a"]["buckets"].as_array().unwrap() {
        assert_eq!(bucket["p"]["value"].as_f64(), bucket["key"].as_f64());
        assert_eq!(bucket["in"]["buckets"].as_array().unwrap().len(), 2);
    }
    assert_eq!(
        (&answer["n"]["value"], &answer["s"]["value"], &answer["c"]["value"]),
        (&json!(2), &json!(300.0), &json!(60))
    );
    let inside = json!({"a": {"terms": {"field": "json.level", "order": {"_key": "asc"}}, "aggs": {
        "b": {"terms": {"field": "topic", "order": {"_key": "desc"}, "min_doc_count": 0}}}}});
    let answer = found(inside);
    for bucket in answer["a"]["buckets"].as_array().unwrap() {
        let inner = bucket["b"]["buckets"].as_array().unwrap();
        assert_eq!(inner[0]["key"], "orders");
        let sum: u64 = inner.iter().map(|bucket| bucket["doc_count"].as_u64().unwrap()).sum();
        assert_eq!(bucket["doc_count"], sum);
    }
}

#[test]
fn terms_are_ordered_by_any_part_of_a_metric() {
    let messages: Vec<Message> = (0..60).map(|n| (usize::try_from(n % 3).unwrap(), (n % 3) * 50 + n % 7, n)).collect();
    let keys = |order: Value, size: usize| -> (Vec<String>, u64) {
        let aggs = json!({"l": {"terms": {"field": "json.level", "order": order, "size": size}, "aggs": {
            "1": {"extended_stats": {"field": "json.ms"}}, "2": {"percentiles": {"field": "json.ms", "percents": [50, "95"]}},
            "3": {"avg": {"field": "json.ms"}},
        }}});
        let found = run(aggs, &messages, 7);
        let buckets = found["l"]["buckets"].as_array().unwrap();
        let keys = buckets.iter().map(|bucket| bucket["key"].as_str().unwrap().to_owned());
        (keys.collect(), found["l"]["sum_other_doc_count"].as_u64().unwrap())
    };
    for path in [
        "1[std_upper]",
        "1[std_lower]",
        "1.std_deviation_bounds.upper",
        "2[95.0]",
        "2.50",
        "2[50.0]",
        "3",
        "3.value",
        "1.max",
    ] {
        assert_eq!(keys(json!({path: "desc"}), 9), (vec!["warn".into(), "info".into(), "error".into()], 0), "{path}");
        assert_eq!(keys(json!({path: "asc"}), 2), (vec!["error".into(), "info".into()], 20), "{path}");
    }
    for path in ["2[42.0]", "2", "1", "1[nothing]", "3[value", "4"] {
        let aggs = json!({"l": {"terms": {"field": "key", "order": {path: "asc"}}, "aggs": {
            "1": {"stats": {"field": "json.ms"}}, "2": {"percentiles": {"field": "json.ms"}}, "3": {"avg": {"field": "json.ms"}},
        }}});
        let error = run_with(aggs, &config(), &[]).unwrap_err();
        assert!(error.contains(path), "{error}");
    }
}

#[test]
fn pipelines_and_rates_follow_from_the_buckets() {
    let messages = [(0, 1, 0), (1, 2, 60), (0, 3, 61), (0, 4, 200)];
    let aggs = json!({"t": {
        "date_histogram": {"field": "@timestamp", "fixed_interval": "1m"},
        "aggs": {
            "sum": {"sum": {"field": "json.ms"}},
            "more": {"derivative": {"buckets_path": "_count"}, "meta": {"a": 1}},
            "all": {"cumulative_sum": {"buckets_path": "sum"}},
            "twice": {"bucket_script": {"buckets_path": {"s": "all"}, "script": "params.s * 2"}},
            "by_second": {"rate": {"unit": "second"}},
            "ms_by_second": {"rate": {"unit": "second", "field": "json.ms"}},
            "counted": {"rate": {"field": "json.ms", "mode": "value_count"}},
            "rate_change": {"derivative": {"buckets_path": "by_second"}},
        },
    }});
    let found = run(aggs, &messages, 2);
    let of = |name: &str| -> Vec<Option<f64>> {
        let buckets = found["t"]["buckets"].as_array().unwrap();
        buckets.iter().map(|bucket| bucket[name]["value"].as_f64()).collect()
    };
    assert_eq!(of("more"), [None, Some(1.0), Some(-2.0), Some(1.0)]);
    assert_eq!(found["t"]["buckets"][1]["more"], json!({"value": 1.0, "meta": {"a": 1}}));
    assert!(found["t"]["buckets"][0].get("more").is_none());
    assert_eq!(of("all"), [1.0, 6.0, 6.0, 10.0].map(Some));
    assert_eq!(of("twice"), [Some(2.0), Some(12.0), None, Some(20.0)]);
    assert_eq!(of("by_second"), [1.0 / 60.0, 2.0 / 60.0, 0.0, 1.0 / 60.0].map(Some));
    assert_eq!(of("ms_by_second"), [1.0 / 60.0, 5.0 / 60.0, 0.0, 4.0 / 60.0].map(Some));
    assert_eq!(of("counted"), [1.0, 2.0, 0.0, 1.0].map(Some));
    assert_eq!(of("rate_change")[1], Some(2.0 / 60.0 - 1.0 / 60.0));
    let months = json!({"t": {"date_histogram": {"field": "@timestamp", "calendar_interval": "month"},
        "aggs": {"r": {"rate": {"unit": "day"}}}}});
    assert_eq!(run(months, &messages, 2)["t"]["buckets"][0]["r"]["value"], json!(4.0 / 31.0));
    let shares = json!({"l": {"terms": {"field": "json.level", "order": {"_key": "asc"}}, "aggs": {
        "n": {"value_count": {"field": "json.ms"}}, "s": {"sum": {"field": "json.ms"}},
        "mean": {"bucket_script": {"buckets_path": {"s": "s", "n": "n"}, "script": "params.s / params.n"}}}}});
    assert_eq!(run(shares, &messages, 2)["l"]["buckets"][0]["mean"]["value"], json!(8.0 / 3.0));
}

#[test]
fn date_histograms_have_buckets_without_gaps() {
    let messages = [(0, 1, 0), (1, 2, 60), (0, 3, 61), (0, 4, 200)];
    let aggs = json!({"time": {
        "date_histogram": {
            "field": "@timestamp", "fixed_interval": "1m", "min_doc_count": 0, "format": "epoch_millis",
            "extended_bounds": {"min": START - 60_000, "max": START},
        },
        "aggs": {"most": {"max": {"field": "json.ms"}}},
    }});
    let found = run(aggs, &messages, 2);
    let minute = START - START.rem_euclid(60_000);
    let wanted =
        [(-1, 0, Value::Null), (0, 1, json!(1.0)), (1, 2, json!(3.0)), (2, 0, Value::Null), (3, 1, json!(4.0))];
    let wanted = wanted.map(|(n, count, most)| {
        let key = minute + n * 60_000;
        json!({"key": key, "key_as_string": key.to_string(), "doc_count": count, "most": {"value": most}})
    });
    assert_eq!(found["time"]["buckets"], json!(wanted));
    let sparse =
        json!({"time": {"date_histogram": {"field": "timestamp", "fixed_interval": "1m", "min_doc_count": 1}}});
    let found = run(sparse, &messages, 2);
    let buckets = found["time"]["buckets"].as_array().unwrap();
    assert_eq!((buckets.len(), &buckets[0]["key_as_string"]), (3, &json!(iso(minute))));
}

#[test]
fn calendars_and_zones_move_the_grid() {
    let day = |n: i64| (0, 1, n * 86_400);
    let messages = [day(0), day(1), day(20), day(300)];
    let keys = |settings: Value| -> Vec<String> {
        let mut settings = settings;
        settings["field"] = json!("@timestamp");
        settings["min_doc_count"] = json!(1);
        let found = run(json!({"t": {"date_histogram": settings}}), &messages, 3);
        let buckets = found["t"]["buckets"].as_array().unwrap().clone();
        buckets
            .iter()
            .map(|bucket| format!("{} {}", bucket["key_as_string"].as_str().unwrap(), bucket["doc_count"]))
            .collect()
    };
    assert_eq!(
        keys(json!({"calendar_interval": "month"})),
        ["2015-05-01T00:00:00.000Z 2", "2015-06-01T00:00:00.000Z 1", "2016-03-01T00:00:00.000Z 1"]
    );
    assert_eq!(keys(json!({"calendar_interval": "1y"})), ["2015-01-01T00:00:00.000Z 3", "2016-01-01T00:00:00.000Z 1"]);
    // The first message came on a Sunday.
    assert_eq!(
        keys(json!({"calendar_interval": "week"}))[..2],
        ["2015-05-11T00:00:00.000Z 1", "2015-05-18T00:00:00.000Z 1"]
    );
    assert_eq!(keys(json!({"fixed_interval": "1d", "time_zone": "+12:00"}))[0], "2015-05-17T00:00:00.000+12:00 1",);
    assert_eq!(keys(json!({"fixed_interval": "1d", "time_zone": "+14:00"}))[0], "2015-05-18T00:00:00.000+14:00 1");
    assert_eq!(keys(json!({"fixed_interval": "1d", "offset": "+6h"}))[0], "2015-05-17T06:00:00.000Z 1");
    let quarters = json!({"t": {"date_histogram": {"field": "@timestamp", "calendar_interval": "1q", "keyed": true}}});
    let found = run(quarters, &messages, 9);
    let counts: Vec<_> =
        found["t"]["buckets"].as_object().unwrap().values().map(|bucket| bucket["doc_count"].clone()).collect();
    assert_eq!(counts, [3, 0, 0, 1]);
}

#[test]
fn filters_and_ranges_are_queries() {
    let messages = messages();
    let count = |fits: &dyn Fn(&Message) -> bool| messages.iter().filter(|message| fits(message)).count();
    let aggs = json!({
        "by": {
            "filters": {"other_bucket": true, "filters": {
                "bad": {"query_string": {"query": "error OR warn", "analyze_wildcard": true}},
                "fast": {"range": {"json.ms": {"lt": 10}}},
                "none": {"match_none": {}},
            }},
            "aggs": {"ms": {"avg": {"field": "json.ms"}}},
        },
        "ranges": {"range": {"field": "json.ms", "ranges": [{"from": 50}, {"to": 10.5}, {"from": 5, "to": 60, "key": "mid"}]}},
        "days": {"date_range": {"field": "@timestamp", "ranges": [{"to": "2015-05-17T10:06"}]}},
        "one": {"filter": {"term": {"json.level": "info"}}},
        "gone": {"missing": {"field": "json.nothing"}},
    });
    for size in [7, 60] {
        let found = run(aggs.clone(), &messages, size);
        let by = &found["by"]["buckets"];
        assert_eq!(by["bad"]["doc_count"], count(&|message| message.0 != 1));
        assert_eq!(by["fast"]["doc_count"], count(&|message| message.1 < 10));
        assert_eq!(by["none"], json!({"doc_count": 0, "ms": {"value": null}}));
        assert_eq!(by["_other_"]["doc_count"], count(&|message| message.0 == 1 && message.1 >= 10));
        let ranges = json!([
            {"key": "*-10.5", "to": 10.5, "doc_count": count(&|message| message.1 <= 10)},
            {"key": "mid", "from": 5.0, "to": 60.0, "doc_count": count(&|message| (5..60).contains(&message.1))},
            {"key": "50.0-*", "from": 50.0, "doc_count": count(&|message| message.1 >= 50)},
        ]);
        assert_eq!(found["ranges"]["buckets"], ranges);
        let until = 1_431_857_160_000;
        assert_eq!(found["days"]["buckets"][0]["doc_count"], count(&|message| START + message.2 * 1000 < until));
        assert_eq!(found["days"]["buckets"][0]["key"], "*-2015-05-17T10:06:00.000Z");
        assert_eq!(found["one"], json!({"doc_count": count(&|message| message.0 == 1)}));
        assert_eq!(found["gone"], json!({"doc_count": 60}));
    }
}

#[test]
fn splits_without_a_column_are_said() {
    let docs = docs(&messages());
    let without = SplitOptions { fast: false, ..SplitOptions::default() };
    let aggs = || json!({"levels": {"terms": {"field": "json.level"}}, "times": {"stats": {"field": "offset"}}});
    let splits = [(SplitOptions::default(), docs[..20].to_vec()), (without, docs[20..].to_vec())];
    let answer = run_with(aggs(), &config(), &splits).unwrap();
    assert_eq!(answer.lacking, BTreeMap::from([("json.level".to_owned(), 1)]));
    assert_eq!(answer.values["times"]["count"], 60);
    let error = run_with(aggs(), &config(), &[(without, docs.clone())]).unwrap_err();
    assert!(error.contains("json.level") && error.contains("search.fast"), "{error}");
    // Nothing was searched, so nothing is known to be lacking.
    assert_eq!(run_with(aggs(), &config(), &[]).unwrap().values["times"]["count"], 0);
    let timeless =
        json!({"t": {"date_histogram": {"field": "@timestamp", "fixed_interval": "1d", "min_doc_count": 1}}});
    assert_eq!(run_with(timeless, &config(), &[(without, docs)]).unwrap().values["t"]["buckets"][0]["doc_count"], 60);
}

#[test]
fn what_an_answer_may_hold_is_limited() {
    let doc = |offset, timestamp| Doc { offset, timestamp, ..Doc::default() };
    let ends = vec![doc(0, i64::MIN), doc(1, i64::MAX)];
    let histogram = |interval: &str, count: u64| json!({"t": {"date_histogram": {"field": "@timestamp", "fixed_interval": interval, "min_doc_count": count}}});
    let options = SplitOptions::default();
    for interval in ["1ms", "1d", "100000d"] {
        let error = run_with(histogram(interval, 0), &config(), &[(options, ends.clone())]).unwrap_err();
        assert!(error.contains("search.aggregation_buckets_max"), "{error}");
        let found = run_with(histogram(interval, 1), &config(), &[(options, ends.clone())]).unwrap();
        assert_eq!(found.values["t"]["buckets"].as_array().unwrap().len(), 2, "{interval}");
    }
    let many: Vec<_> = (0..3000).map(|n| doc(n, n * 1000)).collect();
    let error = run_with(histogram("1s", 1), &config(), &[(options, many.clone())]).unwrap_err();
    assert!(error.contains("bucket limit"), "{error}");
    let little = SearchConfig { aggregation_memory_max: ByteSize::kib(64), ..config() };
    let error = run_with(histogram("1s", 1), &little, &[(options, many)]).unwrap_err();
    assert!(error.contains("memory"), "{error}");
    for bounds in
        [json!({"min": 0, "max": i64::MAX}), json!({"min": i64::MIN, "max": i64::MAX}), json!({"min": 5, "max": 4})]
    {
        let mut aggs = histogram("1m", 0);
        aggs["t"]["date_histogram"]["extended_bounds"] = bounds;
        assert!(run_with(aggs, &config(), &[]).is_err());
    }
}

proptest! {
    /// However the messages lie in splits, the buckets are the same.
    #[test]
    fn splits_do_not_change_the_answer(
        messages in prop::collection::vec((0_usize..3, -50_i64..50, 0_i64..10_000), 1..40),
        size in 1_usize..12,
        interval in 1_u32..40,
    ) {
        let aggs = json!({
            "h": {
                "histogram": {"field": "json.ms", "interval": interval, "offset": 3},
                "aggs": {"l": {"terms": {"field": "json.level", "order": {"_key": "asc"}}}},
            },
            "t": {"date_histogram": {"field": "@timestamp", "fixed_interval": "7m"}, "aggs": {"s": {"sum": {"field": "json.ms"}}}},
        });
        prop_assert_eq!(run(aggs.clone(), &messages, size), run(aggs, &messages, messages.len()));
    }
}
