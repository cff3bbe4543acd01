//! `/_elastic` of a running broker: what Elasticsearch's clients and Grafana send, hot and cold.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "support/running.rs"]
mod running;

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use running::Running;
use serde_json::{Value, json};

/// 2015-05-17T00:00:00Z
const BASE: i64 = 1_431_820_800_000;
const MESSAGES: i64 = 120;
const LEVELS: [&str; 3] = ["info", "warn", "error"];

impl Running {
    async fn start() -> Self {
        Self::start_with(|config| config.broker.num_partitions = 2).await
    }

    async fn send(&self, method: Method, path: &str, body: String) -> reqwest::Response {
        let url = format!("http://{}{path}", self.broker.http_addr());
        self.http.request(method, url).body(body).send().await.unwrap()
    }

    /// An answer of `/_elastic`, which must be that of Elasticsearch by its header.
    async fn elastic(&self, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = self.send(method, &format!("/_elastic{path}"), body).await;
        assert_eq!(answer.headers()["x-elastic-product"], "Elasticsearch", "{path}");
        (answer.status(), answer.json().await.unwrap())
    }

    async fn search(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.elastic(Method::POST, path, body.clone()).await;
        assert_eq!(status, StatusCode::OK, "{path} {body}: {answer}");
        answer
    }

    async fn refused(&self, method: Method, path: &str, body: Value, status: u16, named: &str) {
        let (found, answer) = self.elastic(method, path, body.clone()).await;
        assert_eq!(found.as_u16(), status, "{path} {body}: {answer}");
        assert_eq!(answer["status"], status, "{path} {body}: {answer}");
        let reason = answer["error"]["reason"].as_str().unwrap();
        assert!(reason.contains(named), "{path} {body}: {reason}");
        assert_eq!(answer["error"]["root_cause"][0]["reason"], reason);
        assert!(answer["error"]["type"].as_str().unwrap().ends_with("_exception"), "{answer}");
    }

    /// `logs`: a message each minute in two partitions; `orders`: three messages.
    async fn filled() -> Self {
        let running = Self::start().await;
        for topic in ["logs", "orders"] {
            let body = json!({"name": topic, "configs": {"search.fast": "true"}}).to_string();
            assert_eq!(running.send(Method::POST, "/v1/topics", body).await.status(), StatusCode::CREATED);
        }
        let lines: String = (0..MESSAGES)
            .map(|n| {
                let level = LEVELS[usize::try_from(n % 7 % 3).unwrap()];
                let value = json!({"level": level, "ms": n * 37 % 100, "text": format!("request {n} was <b>late</b>")});
                let line = json!({
                    "key": format!("k{}", n % 4), "value": value.to_string(), "timestamp": BASE + n * 60_000,
                    "partition": n % 2, "headers": [{"key": "trace", "value": format!("t{}", n % 10)}],
                });
                format!("{line}\n")
            })
            .collect();
        running.produce("logs", lines).await;
        let orders = (0..3).map(|n| format!("{}\n", json!({"value": format!("order {n}"), "timestamp": BASE + n})));
        running.produce("orders", orders.collect()).await;
        running
    }

    async fn produce(&self, topic: &str, lines: String) {
        let answer = self.send(Method::POST, &format!("/v1/topics/{topic}/messages"), lines).await;
        assert_eq!(answer.status(), StatusCode::OK, "{}", answer.text().await.unwrap());
        loop {
            let answer = self.send(Method::GET, &format!("/v1/topics/{topic}"), String::new()).await;
            let info: Value = answer.json().await.unwrap();
            let partitions = info["partitions"].as_array().unwrap();
            if partitions.iter().all(|partition| partition["indexed_through"] == partition["high_watermark"]) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn archive(&self, topic: &str) {
        let path = format!("/v1/topics/{topic}/archive?trim=true");
        assert_eq!(self.send(Method::POST, &path, String::new()).await.status(), StatusCode::OK);
    }
}

fn level(n: i64) -> &'static str {
    LEVELS[usize::try_from(n % 7 % 3).unwrap()]
}

fn ids(answer: &Value) -> Vec<String> {
    let hits = answer["hits"]["hits"].as_array().unwrap();
    hits.iter().map(|hit| hit["_id"].as_str().unwrap().to_owned()).collect()
}

fn id(n: i64) -> String {
    format!("logs/{}/{}", n % 2, n / 2)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_are_found_hot_and_cold() {
    let running = Running::filled().await;
    for state in ["hot", "half", "cold"] {
        match state {
            "half" => running.archive("logs").await,
            "cold" => running.archive("orders").await,
            _ => {}
        }
        let body = json!({
            "query": {"bool": {
                "must": [{"match": {"json.level": "error"}}],
                "filter": [{"range": {"@timestamp": {"gte": BASE + 600_000, "lt": BASE + 3_600_000, "format": "epoch_millis"}}}],
                "must_not": [{"term": {"key": "k1"}}],
            }},
            "sort": [{"@timestamp": "desc"}], "size": 100, "track_total_hits": true,
            "_source": ["key", "json.ms"], "fields": ["@timestamp"],
            "highlight": {"fields": {"*": {}}, "pre_tags": ["["], "post_tags": ["]"]},
        });
        let answer = running.search("/logs/_search", body).await;
        let wanted: Vec<i64> = (10..60).rev().filter(|n| level(*n) == "error" && n % 4 != 1).collect();
        assert_eq!(ids(&answer), wanted.iter().map(|n| id(*n)).collect::<Vec<_>>(), "{state}");
        assert_eq!(answer["hits"]["total"], json!({"value": wanted.len(), "relation": "eq"}));
        let (hit, n) = (&answer["hits"]["hits"][0], wanted[0]);
        assert_eq!(hit["_index"], "logs");
        assert_eq!(hit["_source"], json!({"key": format!("k{}", n % 4), "json": {"ms": n * 37 % 100}}));
        assert_eq!(hit["sort"], json!([BASE + n * 60_000, id(n)]));
        assert_eq!(hit["highlight"]["json.level"], json!(["[error]"]));
        assert!(hit["fields"]["@timestamp"][0].as_str().unwrap().starts_with("2015-05-17T00:"));

        let by_score = running.search("/_search", json!({"query": {"match": {"value": "order"}}})).await;
        assert_eq!(by_score["hits"]["hits"].as_array().unwrap().len(), 3);
        assert!(by_score["hits"]["max_score"].as_f64().unwrap() > 0.0);
        let count = running.search("/lo*/_count", json!({"query": {"query_string": {"query": "json.ms:>=50"}}})).await;
        assert_eq!(count["count"], (0..MESSAGES).filter(|n| n * 37 % 100 >= 50).count());
        let found = running.search("/_search", json!({"query": {"term": {"headers.trace": "t3"}}, "size": 0})).await;
        assert_eq!(found["hits"]["total"]["value"], MESSAGES / 10);
    }
    running.broker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_scrolls_and_points_in_time_meet_every_message_once() {
    let running = Running::filled().await;
    running.archive("logs").await;
    let all: Vec<String> = (0..MESSAGES).map(id).collect();
    for (sort, reversed) in [(json!([{"@timestamp": "asc"}]), false), (json!([{"@timestamp": "desc"}, "_doc"]), true)] {
        let mut found = Vec::new();
        let mut body = json!({"sort": sort, "size": 50});
        loop {
            let answer = running.search("/logs/_search", body.clone()).await;
            found.extend(ids(&answer));
            let Some(last) = answer["hits"]["hits"].as_array().unwrap().last() else { break };
            body["search_after"] = last["sort"].clone();
        }
        if reversed {
            found.reverse();
        }
        assert_eq!(found, all);
    }
    let skipped = running.search("/logs/_search", json!({"sort": "@timestamp", "from": 100, "size": 5})).await;
    assert_eq!(ids(&skipped), all[100..105]);

    let mut found = Vec::new();
    let first = json!({"size": 33, "sort": "_doc", "query": {"match": {"json.text": "late"}}});
    let mut answer = running.search("/logs/_search?scroll=1m", first).await;
    loop {
        assert_eq!(answer["hits"]["total"]["value"], MESSAGES);
        let page = ids(&answer);
        if page.is_empty() {
            break;
        }
        found.extend(page);
        let next = json!({"scroll_id": answer["_scroll_id"], "scroll": "1m"});
        answer = running.search("/_search/scroll", next).await;
    }
    assert_eq!(found, all);
    let (status, _) =
        running.elastic(Method::DELETE, "/_search/scroll", json!({"scroll_id": answer["_scroll_id"]})).await;
    assert_eq!(status, StatusCode::OK);

    let pit = running.search("/logs/_pit?keep_alive=1m", Value::Null).await["id"].clone();
    let answer = running
        .search("/_search", json!({"pit": {"id": pit, "keep_alive": "1m"}, "size": 0, "track_total_hits": true}))
        .await;
    assert_eq!((&answer["hits"]["total"]["value"], &answer["pit_id"]), (&json!(MESSAGES), &pit));
    running.refused(Method::POST, "/logs/_search", json!({"pit": {"id": pit}}), 400, "pit").await;
    running.refused(Method::POST, "/_search/scroll", json!({"scroll_id": "made-up"}), 400, "scroll").await;
    running.broker.shutdown().await.unwrap();
}

/// The requests of Grafana's data source: a graph, terms over time, logs, filters.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_grafana_sends_is_answered() {
    let running = Running::filled().await;
    running.archive("logs").await;
    running
        .produce("logs", format!("{}\n", json!({"value": "{\"level\":\"info\"}", "timestamp": BASE + 7_200_000})))
        .await;
    let (status, health) = running.elastic(Method::GET, "/_cluster/health?wait_for_status=yellow", Value::Null).await;
    assert_eq!((status, &health["status"]), (StatusCode::OK, &json!("green")));
    let (_, caps) = running.elastic(Method::POST, "/logs/_field_caps?fields=@timestamp", Value::Null).await;
    assert_eq!(caps["fields"]["@timestamp"]["date"]["aggregatable"], true);

    let (from, to) = (BASE, BASE + 7_199_999);
    let range = json!({"range": {"@timestamp": {"format": "epoch_millis", "gte": from, "lte": to}}});
    let time = json!({
        "date_histogram": {
            "field": "@timestamp", "fixed_interval": "10m", "min_doc_count": 0, "format": "epoch_millis",
            "extended_bounds": {"min": from, "max": to},
        },
        "aggs": {"1": {"max": {"field": "json.ms"}}, "3": {"percentiles": {"field": "json.ms", "percents": ["50", "95"]}}},
    });
    let terms = json!({
        "terms": {"field": "json.level", "size": 10, "order": {"_key": "desc"}, "min_doc_count": 1}, "aggs": {"2": time},
    });
    let filters = json!({"filters": {"filters": {
        "json.level:error": {"query_string": {"query": "json.level:error", "analyze_wildcard": true}},
        "slow": {"query_string": {"query": "json.ms:>80", "analyze_wildcard": true}},
    }}});
    let graph = json!({"size": 0, "query": {"bool": {"filter": [range]}}, "aggs": {"4": terms, "5": filters}});
    let logs = json!({
        "size": 10, "query": {"bool": {"filter": [range, {"query_string": {"query": "json.level:error", "analyze_wildcard": true}}]}},
        "sort": {"@timestamp": {"order": "desc", "unmapped_type": "boolean"}, "_doc": {"order": "desc"}},
        "docvalue_fields": ["@timestamp"], "script_fields": {},
        "fields": [{"field": "@timestamp", "format": "strict_date_optional_time_nanos"}],
        "highlight": {"fields": {"*": {}}, "pre_tags": ["@HIGHLIGHT@"], "post_tags": ["@/HIGHLIGHT@"], "fragment_size": 2_147_483_647_i64},
    });
    let header = json!({"ignore_unavailable": true, "index": "logs", "search_type": "query_then_fetch"});
    let missing = json!({"ignore_unavailable": true, "index": "none"});
    let wrong = json!({"query": {"nested": {}}});
    let lines = [&header, &graph, &header, &logs, &missing, &json!({}), &header, &wrong];
    let body: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let answer = running.send(Method::POST, "/_elastic/_msearch?max_concurrent_shard_requests=5", body).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let answer: Value = answer.json().await.unwrap();
    let responses = answer["responses"].as_array().unwrap();
    let statuses: Vec<_> = responses.iter().map(|response| response["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [200, 200, 200, 400]);

    let aggregations = &responses[0]["aggregations"];
    let mut counts = BTreeMap::new();
    (0..MESSAGES).for_each(|n| *counts.entry(level(n)).or_insert(0) += 1);
    let buckets = aggregations["4"]["buckets"].as_array().unwrap();
    let found: Vec<_> =
        buckets.iter().map(|b| (b["key"].as_str().unwrap(), b["doc_count"].as_i64().unwrap())).collect();
    assert_eq!(found, counts.into_iter().rev().collect::<Vec<_>>());
    for bucket in buckets {
        let over_time = bucket["2"]["buckets"].as_array().unwrap();
        assert_eq!(over_time.len(), 12, "no gaps");
        for (number, slot) in (0..).zip(over_time) {
            let here = || (number * 10..number * 10 + 10).filter(|n| json!(level(*n)) == bucket["key"]);
            assert_eq!(slot["key"], from + number * 600_000);
            assert_eq!(slot["key_as_string"], (from + number * 600_000).to_string());
            assert_eq!(slot["doc_count"], here().count());
            assert_eq!(slot["1"]["value"].as_f64(), here().map(|n| n * 37 % 100).max().map(|ms| ms as f64));
            assert!(slot["3"]["values"]["95.0"].is_number());
        }
    }
    let by_filter = &aggregations["5"]["buckets"];
    assert_eq!(by_filter["slow"]["doc_count"], (0..MESSAGES).filter(|n| n * 37 % 100 > 80).count());
    let hits = responses[1]["hits"]["hits"].as_array().unwrap();
    assert_eq!(hits.len(), 10);
    assert_eq!(hits[0]["sort"].as_array().unwrap().len(), 2);
    assert_eq!(hits[0]["highlight"]["json.level"], json!(["@HIGHLIGHT@error@/HIGHLIGHT@"]));
    assert_eq!(responses[2]["hits"]["total"]["value"], 0);
    assert_eq!(responses[3]["error"]["type"], "illegal_argument_exception");
    running.broker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_catalogue_is_told() {
    let running = Running::filled().await;
    let (_, info) = running.elastic(Method::GET, "/", Value::Null).await;
    assert!(info["version"]["number"].as_str().unwrap().starts_with("8."));
    let (status, again) = running.elastic(Method::GET, "", Value::Null).await;
    assert_eq!((status, again), (StatusCode::OK, info));
    for state in ["hot", "cold"] {
        if state == "cold" {
            running.archive("logs").await;
        }
        let (_, caps) = running.elastic(Method::GET, "/_field_caps?fields=*", Value::Null).await;
        assert_eq!(caps["indices"], json!(["logs", "orders"]));
        for (field, kind) in
            [("json.level", "keyword"), ("json.ms", "long"), ("headers.trace", "keyword"), ("@timestamp", "date")]
        {
            assert_eq!(caps["fields"][field][kind]["aggregatable"], true, "{state} {field}: {}", caps["fields"]);
        }
        assert_eq!(caps["fields"]["value"]["text"]["aggregatable"], false);
        let (_, mapping) = running.elastic(Method::GET, "/logs/_mapping", Value::Null).await;
        assert_eq!(mapping["logs"]["mappings"]["properties"]["json"]["properties"]["ms"]["type"], "long");
    }
    let (_, cat) = running.elastic(Method::GET, "/_cat/indices?format=json", Value::Null).await;
    let lines: Vec<_> = cat.as_array().unwrap().iter().map(|line| (&line["index"], &line["docs.count"])).collect();
    assert_eq!(lines, [(&json!("logs"), &json!("120")), (&json!("orders"), &json!("3"))]);
    let text = running.send(Method::GET, "/_elastic/_cat/indices/lo*?h=index,docs.count&v", String::new()).await;
    assert_eq!(text.text().await.unwrap(), "index docs.count\nlogs  120\n");
    let head = |path: &'static str| running.send(Method::HEAD, path, String::new());
    assert_eq!(head("/_elastic/logs").await.status(), StatusCode::OK);
    assert_eq!(head("/_elastic/none").await.status(), StatusCode::NOT_FOUND);
    assert_eq!(head("/_elastic/").await.status(), StatusCode::OK);
    running.broker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_is_refused_in_their_form() {
    let running = Running::filled().await;
    let search = |body: Value| (Method::POST, "/logs/_search", body);
    for ((method, path, body), status, named) in [
        ((Method::GET, "/none/_search", Value::Null), 404, "none"),
        ((Method::GET, "/logs/_search?size=many", Value::Null), 400, "size"),
        ((Method::GET, "/logs/_search?terminate_after=1", Value::Null), 400, "terminate_after"),
        ((Method::PUT, "/logs/_doc/1", json!({"a": 1})), 400, "PUT"),
        ((Method::POST, "/_bulk", json!({})), 400, "_bulk"),
        ((Method::DELETE, "/logs", Value::Null), 400, "DELETE"),
        ((Method::GET, "/_nodes", Value::Null), 400, "_nodes"),
        ((Method::POST, "/_msearch", json!({})), 400, "_msearch"),
        (search(json!({"query": {"fuzzy": {"key": "a"}}})), 400, "fuzzy"),
        (search(json!({"query": {"match": {"message": "a"}}})), 400, "message"),
        (search(json!({"size": 10_001})), 400, "search.limit_max"),
        (search(json!({"aggs": {"a": {"terms": {"field": "value"}}}})), 400, "value"),
        (
            search(json!({"aggs": {"a": {"date_histogram": {"field": "@timestamp", "fixed_interval": "1ms"}}}})),
            400,
            "search.aggregation_buckets_max",
        ),
        (search(json!({"sort": "key"})), 400, "key"),
    ] {
        running.refused(method, path, body, status, named).await;
    }
    let broken = running.send(Method::POST, "/_elastic/logs/_search", "{".to_owned()).await;
    assert_eq!(broken.status(), StatusCode::BAD_REQUEST);
    let deep = format!("{}1{}", "{\"query\":{\"bool\":{\"must\":".repeat(100), "}}}".repeat(100));
    assert_eq!(running.send(Method::POST, "/_elastic/logs/_search", deep).await.status(), StatusCode::BAD_REQUEST);
    let lenient = running.search("/logs,none/_search?ignore_unavailable=true", json!({"size": 1})).await;
    assert_eq!(lenient["hits"]["hits"].as_array().unwrap().len(), 1);
    let nothing = running.search("/none*/_search", json!({"aggs": {"n": {"value_count": {"field": "offset"}}}})).await;
    assert_eq!((&nothing["hits"]["total"]["value"], &nothing["aggregations"]["n"]["value"]), (&json!(0), &json!(0)));
    running.broker.shutdown().await.unwrap();
}

/// The same over the broker's own route.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn totals_highlights_and_aggregations_of_the_own_route() {
    let running = Running::filled().await;
    running.archive("logs").await;
    let body = json!({
        "q": "json.text:late", "topic": "logs", "limit": 5, "highlight": true, "track_total": "exact",
        "aggs": {"levels": {"terms": {"field": "json.level"}}},
    });
    let answer = running.send(Method::POST, "/v1/search", body.to_string()).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let answer: Value = answer.json().await.unwrap();
    assert_eq!(answer["total"], json!({"value": MESSAGES, "relation": "eq"}));
    let piece = answer["hits"][0]["highlights"]["json.text"][0].as_str().unwrap();
    assert!(piece.contains("&lt;b&gt;<em>late</em>&lt;/b&gt;"), "{piece}");
    let buckets = answer["aggregations"]["levels"]["buckets"].as_array().unwrap();
    assert_eq!(buckets.iter().map(|bucket| bucket["doc_count"].as_i64().unwrap()).sum::<i64>(), MESSAGES);
    let page = running.send(Method::GET, "/v1/search?q=late&topic=logs&limit=1&track_total=none", String::new()).await;
    let page: Value = page.json().await.unwrap();
    assert!(page.get("total").is_none() && page["hits"][0].get("highlights").is_none());
    running.broker.shutdown().await.unwrap();
}
