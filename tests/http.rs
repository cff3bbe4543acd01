//! The HTTP interface of a running broker: shapes, statuses and refusals, replay in all its ranges.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "support/running.rs"]
mod running;

use reqwest::{Method, StatusCode};
use running::Running;
use serde_json::{Value, json};
use thermocline_config::ByteSize;

const REQUEST_MAX_BYTES: u64 = 64 << 10;
/// 2015-05-17T00:00:00Z
const BASE_TIMESTAMP: i64 = 1_431_820_800_000;

impl Running {
    async fn start() -> Self {
        Self::start_with(|config| {
            config.broker.num_partitions = 2;
            config.http.request_max_bytes = ByteSize::bytes(REQUEST_MAX_BYTES);
        })
        .await
    }

    async fn send(&self, method: Method, path: &str, body: impl Into<reqwest::Body>) -> (StatusCode, Vec<u8>) {
        let url = format!("http://{}{path}", self.broker.http_addr());
        let answer = self.http.request(method, url).body(body).send().await.unwrap();
        (answer.status(), answer.bytes().await.unwrap().to_vec())
    }

    async fn get(&self, path: &str) -> Value {
        let (status, body) = self.send(Method::GET, path, "").await;
        assert_eq!(status, StatusCode::OK, "{path}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap()
    }

    async fn post(&self, path: &str, body: String) -> (StatusCode, Value) {
        let (status, body) = self.send(Method::POST, path, body).await;
        (status, serde_json::from_slice(&body).unwrap())
    }

    /// Fails unless the request is refused like this, in the shape of every refusal.
    async fn refused(&self, method: Method, path: &str, body: &str, status: u16, code: &str) {
        let (found, answer) = self.send(method.clone(), path, body.to_owned()).await;
        let answer: Value = serde_json::from_slice(&answer).unwrap_or_else(|e| panic!("{method} {path}: {e}"));
        assert_eq!(found.as_u16(), status, "{method} {path} {body}: {answer}");
        assert_eq!(answer["error"]["code"], code, "{method} {path} {body}: {answer}");
        assert!(!answer["error"]["message"].as_str().unwrap().is_empty());
    }

    async fn offsets(&self, query: &str) -> Vec<(i64, i64)> {
        let (status, body) = self.send(Method::GET, &format!("/v1/topics/orders/messages{query}"), "").await;
        assert_eq!(status, StatusCode::OK, "{query}: {}", String::from_utf8_lossy(&body));
        let line = |line: &str| {
            let message: Value = serde_json::from_str(line).unwrap();
            (message["partition"].as_i64().unwrap(), message["offset"].as_i64().unwrap())
        };
        String::from_utf8(body).unwrap().lines().map(line).collect()
    }
}

fn range(partition: i64, offsets: std::ops::Range<i64>) -> impl Iterator<Item = (i64, i64)> {
    offsets.map(move |offset| (partition, offset))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_come_and_go() {
    let running = Running::start().await;
    let (status, topic) = running.post("/v1/topics", json!({"name": "orders"}).to_string()).await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!(topic["partitions"].as_array().unwrap().len(), 2, "the broker's num_partitions");
    let configs = json!({"segment.bytes": "1048576"});
    let body = json!({"name": "clicks", "partitions": 3, "configs": configs}).to_string();
    assert_eq!(running.post("/v1/topics", body).await.0, StatusCode::CREATED);

    let clicks = running.get("/v1/topics/clicks").await;
    assert_eq!((&clicks["name"], &clicks["configs"]), (&json!("clicks"), &configs));
    let zeroes = json!({
        "partition": 2, "log_start_offset": 0, "local_start_offset": 0, "high_watermark": 0, "last_stable_offset": 0,
        "archived_through": 0, "indexed_through": 0, "hot_bytes": 0, "cold_bytes": 0, "cold_files": 0, "index_bytes": 0,
        "raw_batches": 0, "damaged_files": 0, "outdated_files": 0,
    });
    assert_eq!(clicks["partitions"][2], zeroes);
    let names = |list: &Value| -> Vec<String> {
        list["topics"].as_array().unwrap().iter().map(|topic| topic["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&running.get("/v1/topics").await), ["clicks", "orders"]);
    assert!(names(&running.get("/v1/topics?internal=true").await).contains(&"__consumer_offsets".to_owned()));

    running.refused(Method::POST, "/v1/topics", r#"{"name":"orders"}"#, 409, "topic_exists").await;
    running.refused(Method::POST, "/v1/topics", r#"{"name":"__consumer_offsets"}"#, 400, "internal_topic").await;
    running.refused(Method::POST, "/v1/topics", r#"{"name":"a/b"}"#, 400, "bad_request").await;
    running.refused(Method::POST, "/v1/topics", r#"{"name":"a","partitions":0}"#, 400, "bad_request").await;
    running.refused(Method::POST, "/v1/topics", r#"{"name":"a","configs":{"no.such":"1"}}"#, 400, "bad_request").await;
    running.refused(Method::DELETE, "/v1/topics/__consumer_offsets", "", 400, "internal_topic").await;
    assert_eq!(running.send(Method::DELETE, "/v1/topics/clicks", "").await.0, StatusCode::NO_CONTENT);
    running.refused(Method::DELETE, "/v1/topics/clicks", "", 404, "unknown_topic").await;
    running.refused(Method::GET, "/v1/topics/clicks", "", 404, "unknown_topic").await;
    running.broker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_refused_and_leaves_nothing() {
    let running = Running::start().await;
    running.post("/v1/topics", json!({"name": "orders"}).to_string()).await;
    let (get, post) = (Method::GET, Method::POST);
    let messages = "/v1/topics/orders/messages";
    let large = format!("{{\"value\":\"{}\"}}", "x".repeat(usize::try_from(REQUEST_MAX_BYTES).unwrap()));
    for (body, status, code) in [
        ("{\"value\":\"good\"}\n{\"key\":\"no value\"}", 400, "bad_request"),
        ("{\"value\":\"good\"}\nnot json", 400, "bad_request"),
        ("{\"value\":\"a\",\"partition\":2}", 400, "bad_request"),
        (large.as_str(), 413, "body_too_large"),
    ] {
        running.refused(post.clone(), messages, body, status, code).await;
    }
    assert_eq!(running.offsets("").await, [], "nothing was appended");

    running.refused(get.clone(), "/v1/nothing", "", 404, "unknown_route").await;
    running.refused(get.clone(), "/v1/groups/nobody", "", 404, "unknown_group").await;
    running.refused(Method::DELETE, "/v1/groups/nobody", "", 404, "unknown_group").await;
    for partitions in [2, 1, 0, 100_000] {
        let body = json!({"partitions": partitions, "configs": {"retention.ms": "5"}}).to_string();
        running.refused(Method::PATCH, "/v1/topics/orders", &body, 400, "bad_request").await;
    }
    assert_eq!(running.get("/v1/topics/orders").await["configs"], json!({}), "nothing of it was changed");
    running.refused(get.clone(), "/", "", 404, "unknown_route").await;
    running.refused(Method::PUT, "/v1/topics", "", 405, "method_not_allowed").await;
    running.refused(get.clone(), "/v1/topics?internl=true", "", 400, "bad_request").await;
    running.refused(get.clone(), "/v1/topics/orders?x=1", "", 400, "bad_request").await;
    running.refused(post.clone(), "/v1/topics/none/messages", "{\"value\":\"a\"}", 404, "unknown_topic").await;
    running.refused(post.clone(), "/v1/topics/__consumer_offsets/messages", "", 400, "internal_topic").await;
    running.refused(post.clone(), "/v1/topics/__consumer_offsets/archive", "", 400, "internal_topic").await;
    running.refused(post.clone(), "/v1/topics/orders/archive?trim=maybe", "", 400, "bad_request").await;
    running.refused(get.clone(), &format!("{messages}?partition=2"), "", 404, "unknown_partition").await;
    running.refused(get.clone(), &format!("{messages}?from_offset=-1"), "", 400, "offset_out_of_range").await;
    running.refused(get.clone(), &format!("{messages}?from=yesterday"), "", 400, "bad_request").await;
    running.refused(get.clone(), "/v1/search", "", 400, "bad_request").await;
    running.refused(get.clone(), "/v1/search?q=a&topic=none", "", 404, "unknown_topic").await;
    running.refused(get.clone(), "/v1/search?q=a&limit=1000000", "", 400, "bad_request").await;
    running.refused(get.clone(), "/v1/search?q=%22open", "", 400, "bad_query").await;
    running.refused(get, "/v1/search?q=a&cursor=forged", "", 400, "bad_request").await;
    running.refused(post, "/v1/search", "[]", 400, "bad_request").await;
    running.broker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replay_gives_the_range_that_was_asked_for() {
    let running = Running::start().await;
    running.post("/v1/topics", json!({"name": "orders"}).to_string()).await;
    let lines = |from: i64| -> String {
        let line = |n: i64| {
            let body = json!({"value": n.to_string(), "partition": n % 2, "timestamp": BASE_TIMESTAMP + n * 60_000});
            format!("{body}\n")
        };
        (from..from + 100).map(line).collect()
    };
    // Half of it cold, half of it hot: partition p holds the numbers 2 * offset + p.
    for (from, base) in [(0, 0), (100, 50)] {
        let (status, answer) = running.post("/v1/topics/orders/messages", lines(from)).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        let ranges = [0, 1].map(|p| json!({"partition": p, "base_offset": base, "count": 50}));
        assert_eq!(answer, json!({"offsets": ranges}));
        if from == 0 {
            assert_eq!(running.post("/v1/topics/orders/archive?trim=true", String::new()).await.0, StatusCode::OK);
        }
    }
    let both =
        |offsets: std::ops::Range<i64>| -> Vec<_> { range(0, offsets.clone()).chain(range(1, offsets)).collect() };
    for (query, wanted) in [
        ("", both(0..100)),
        ("?partition=1", range(1, 0..100).collect()),
        ("?from_offset=40&to_offset=60", both(40..60)),
        ("?from_offset=100", vec![]),
        ("?limit=3", range(0, 0..3).collect()),
        ("?limit=103", range(0, 0..100).chain(range(1, 0..3)).collect()),
        ("?limit=0", vec![]),
        ("?from=2015-05-17T01:00:00Z", both(30..100)),
        ("?to=2015-05-17T00:30:00Z", both(0..15)),
        ("?from=2015-05-17T01:00:00Z&to=2015-05-17T02:00:01Z", range(0, 30..61).chain(range(1, 30..60)).collect()),
        ("?from=2016-01-01", vec![]),
        ("?from=2015-05-17T01:00:00Z&from_offset=70&partition=0", range(0, 70..100).collect()),
    ] {
        assert_eq!(running.offsets(query).await, wanted, "{query}");
    }

    let (status, stream) = running.send(Method::GET, "/v1/topics/orders/messages?format=arrow&limit=120", "").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(&stream[..4], [0xff; 4], "an Arrow IPC stream begins with a continuation mark");
    running.broker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_comes_back_as_it_was_and_can_be_produced_again() {
    let running = Running::start().await;
    for name in ["orders", "copy"] {
        running.post("/v1/topics", json!({"name": name, "partitions": 1}).to_string()).await;
    }
    let lines = [
        json!({"key": null, "value": null, "headers": []}),
        json!({"key": "", "value": "", "headers": [{"key": "a", "value": ""}, {"key": "a", "value": null}]}),
        json!({"key": "k", "value": "/wD+", "value_encoding": "base64", "headers": []}),
        json!({"key": "ключ", "value": "line\nfeed \"quoted\"", "headers": [{"key": "b", "value": "gA==", "value_encoding": "base64"}]}),
    ];
    let body = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    assert_eq!(running.post("/v1/topics/orders/messages", body).await.0, StatusCode::OK);
    for archived in [false, true] {
        if archived {
            running.post("/v1/topics/orders/archive?trim=true", String::new()).await;
        }
        let (_, replayed) = running.send(Method::GET, "/v1/topics/orders/messages", "").await;
        let replayed = String::from_utf8(replayed).unwrap();
        assert_eq!(replayed.lines().count(), lines.len());
        for (offset, (found, sent)) in replayed.lines().zip(&lines).enumerate() {
            let found: Value = serde_json::from_str(found).unwrap();
            assert_eq!((&found["topic"], &found["offset"]), (&json!("orders"), &json!(offset)), "archived: {archived}");
            for (field, value) in sent.as_object().unwrap() {
                assert_eq!(&found[field], value, "archived: {archived}");
            }
        }
        let (status, answer) = running.post("/v1/topics/copy/messages", replayed).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
    }
    let (_, copied) = running.send(Method::GET, "/v1/topics/copy/messages", "").await;
    assert_eq!(String::from_utf8(copied).unwrap().lines().count(), 2 * lines.len());
    running.broker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_and_metrics_answer() {
    let running = Running::start().await;
    assert_eq!(running.get("/health/live").await, json!({"status": "live"}));
    assert_eq!(running.get("/health/ready").await, json!({"status": "ready"}));
    let (status, metrics) = running.send(Method::GET, "/metrics", "").await;
    assert_eq!(status, StatusCode::OK);
    assert!(String::from_utf8(metrics).unwrap().contains("# TYPE thermocline_produced_bytes_total counter"));
    running.broker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_are_shown_with_their_lag_and_deleted() {
    let running = Running::start().await;
    running.post("/v1/topics", json!({"name": "orders"}).to_string()).await;
    let line = |n: i64| json!({"value": "a", "partition": n % 2, "timestamp": BASE_TIMESTAMP + n}).to_string() + "\n";
    let lines: String = (0..20).map(line).collect();
    assert_eq!(running.post("/v1/topics/orders/messages", lines).await.0, StatusCode::OK);
    assert_eq!(running.get("/v1/groups").await, json!({"groups": []}));
    let place = json!({"topic": "orders", "partition": 1, "offset": 6}).to_string();
    assert_eq!(running.post("/v1/groups/readers/offsets", place).await.0, StatusCode::OK);

    let row = json!({"group": "readers", "state": "Empty", "protocol_type": "", "lag": 7});
    assert_eq!(running.get("/v1/groups").await, json!({"groups": [row]}));
    let offset = |partition, committed: i64| {
        json!({
            "topic": "orders", "partition": partition, "committed_offset": committed, "high_watermark": 10,
            "lag": 10 - committed, "metadata": "",
        })
    };
    let group = json!({
        "group": "readers", "state": "Empty", "protocol_type": "", "protocol": "", "generation": 0, "lag": 7,
        "members": [], "offsets": [offset(0, 7), offset(1, 6)],
    });
    assert_eq!(running.get("/v1/groups/readers").await, group);
    let (_, metrics) = running.send(Method::GET, "/metrics", "").await;
    let metrics = String::from_utf8(metrics).unwrap();
    let series = r#"thermocline_group_lag_records{group="readers",partition="1",topic="orders"} 4"#;
    assert!(metrics.lines().any(|line| line == series), "{metrics}");
    assert!(metrics.lines().any(|line| line == "thermocline_group_lag_series_left_out 0"));

    assert_eq!(running.send(Method::DELETE, "/v1/groups/readers", "").await.0, StatusCode::NO_CONTENT);
    assert_eq!(running.get("/v1/groups").await, json!({"groups": []}));
    let (_, metrics) = running.send(Method::GET, "/metrics", "").await;
    assert!(!String::from_utf8(metrics).unwrap().contains("readers"));
    running.broker.shutdown().await.unwrap();
}
