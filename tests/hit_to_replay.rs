//! From a hit to a replay, through the ports of a running broker and through the command line.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "support/running.rs"]
mod running;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use futures::StreamExt;
use reqwest::{Method, StatusCode};
use running::{Running, STEP_MAX};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

/// 2015-05-17T00:00:00Z
const BASE_TIMESTAMP: i64 = 1_431_820_800_000;

impl Running {
    async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    fn url(&self) -> String {
        format!("http://{}", self.broker.http_addr())
    }

    async fn send(&self, method: Method, path: &str, body: String) -> (StatusCode, String) {
        let answer = self.http.request(method, format!("{}{path}", self.url())).body(body).send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    }

    async fn post(&self, path: &str, body: Value) -> Vec<Value> {
        let (status, answer) = self.send(Method::POST, path, body.to_string()).await;
        assert!(status.is_success(), "{path}: {answer}");
        lines(&answer)
    }

    async fn get(&self, path: &str) -> Vec<Value> {
        let (status, answer) = self.send(Method::GET, path, String::new()).await;
        assert!(status.is_success(), "{path}: {answer}");
        lines(&answer)
    }

    async fn refused(&self, path: &str, body: Value, status: u16, code: &str) {
        let (found, answer) = self.send(Method::POST, path, body.to_string()).await;
        assert_eq!(found.as_u16(), status, "{path} {body}: {answer}");
        assert_eq!(lines(&answer)[0]["error"]["code"], code, "{path} {body}: {answer}");
    }

    async fn create(&self, name: &str, partitions: i32) {
        self.post("/v1/topics", json!({"name": name, "partitions": partitions})).await;
    }

    /// Messages `from..from + count`, number n in partition n % 2, a minute apart; every third is `late`.
    async fn produce(&self, topic: &str, from: i64, count: i64) {
        let line = |n: i64| {
            let value = format!("order {n}{}", if n % 3 == 0 { " late" } else { "" });
            let time = BASE_TIMESTAMP + n * 60_000;
            format!("{}\n", json!({"key": format!("k{n}"), "value": value, "partition": n % 2, "timestamp": time}))
        };
        let lines = (from..from + count).map(line).collect();
        let (status, answer) = self.send(Method::POST, &format!("/v1/topics/{topic}/messages"), lines).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
    }

    async fn archive(&self, topic: &str) {
        self.post(&format!("/v1/topics/{topic}/archive?trim=true"), json!({})).await;
    }

    /// Until everything is found.
    async fn found(&self, count: u64) {
        let found = async {
            while self.get("/v1/search?q=order&limit=0").await[0]["total"]["value"] != json!(count) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(STEP_MAX, found).await.unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_thermocline"));
        command.args(args).env("THERMOCLINE_URL", self.url()).env_remove("RUST_LOG").stdin(Stdio::null());
        command
    }

    async fn run(&self, args: &[&str]) -> Output {
        let mut command = self.command(args);
        tokio::time::timeout(STEP_MAX, spawn_blocking(move || command.output())).await.unwrap().unwrap().unwrap()
    }

    /// The lines that a command prints.
    async fn printed(&self, args: &[&str]) -> Vec<String> {
        let output = self.run(args).await;
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }
}

/// A command that runs; killed where a test fails before it ends.
struct Job(Child);

impl Drop for Job {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
}

fn offsets(messages: &[Value]) -> Vec<(i64, i64)> {
    let number = |message: &Value, field: &str| message[field].as_i64().unwrap_or_else(|| panic!("{message}"));
    messages.iter().map(|message| (number(message, "partition"), number(message, "offset"))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hits_come_with_their_neighbours() {
    let running = Running::start().await;
    running.create("orders", 2).await;
    running.produce("orders", 0, 40).await;
    running.archive("orders").await;
    running.produce("orders", 40, 40).await;
    running.found(80).await;

    // Number 39 is the last cold one of its partition: its neighbours lie on both sides of the seam.
    let answer = &running.get("/v1/search?q=39&context=2").await[0];
    assert_eq!(offsets(answer["hits"].as_array().unwrap()), [(1, 19)]);
    let passages = answer["context"].as_array().unwrap();
    assert_eq!((passages.len(), &passages[0]["topic"]), (1, &json!("orders")));
    let messages = passages[0]["messages"].as_array().unwrap();
    assert_eq!(offsets(messages), [(1, 17), (1, 18), (1, 19), (1, 20), (1, 21)]);
    let hits: Vec<_> = messages.iter().map(|message| message["hit"].as_bool().unwrap()).collect();
    assert_eq!(hits, [false, false, true, false, false]);

    // The first and the last of a log; contexts that touch are one.
    let answer = &running.get("/v1/search?q=order&sort=timestamp&limit=3&context_after=1").await[0];
    let passages: Vec<_> =
        answer["context"].as_array().unwrap().iter().map(|p| offsets(p["messages"].as_array().unwrap())).collect();
    assert_eq!(passages, [vec![(0, 0), (0, 1), (0, 2)], vec![(1, 0), (1, 1)]]);
    let answer = &running.get("/v1/search?q=79&context=1").await[0];
    assert_eq!(offsets(answer["context"][0]["messages"].as_array().unwrap()), [(1, 38), (1, 39)]);

    assert!(running.get("/v1/search?q=order").await[0].get("context").is_none());
    running.refused("/v1/search", json!({"q": "order", "limit": 1000, "context": 10}), 400, "bad_request").await;
    running.broker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn matches_are_replayed_and_published() {
    let running = Running::start().await;
    for (name, partitions) in [("orders", 2), ("copy", 2), ("narrow", 1)] {
        running.create(name, partitions).await;
    }
    running.produce("orders", 0, 60).await;
    running.archive("orders").await;
    running.produce("orders", 60, 30).await;
    let late: Vec<(i64, i64)> =
        (0..2).flat_map(|p| (0..45).map(move |at| (p, at))).filter(|(p, at)| (2 * at + p) % 3 == 0).collect();
    // At once: what is not indexed yet is waited for.
    assert_eq!(offsets(&running.get("/v1/topics/orders/messages?query=late").await), late);
    let in_one: Vec<_> = late.iter().copied().filter(|(p, at)| *p == 1 && (5..40).contains(at)).collect();
    let path = "/v1/topics/orders/messages?query=late&partition=1&from_offset=5&to_offset=40";
    assert_eq!(offsets(&running.get(path).await), in_one);
    let (status, answer) = running.send(Method::GET, "/v1/topics/orders/messages?query=%22open", String::new()).await;
    assert_eq!((status, lines(&answer)[0]["error"]["code"].as_str()), (StatusCode::BAD_REQUEST, Some("bad_query")));
    for query in ["query=late&undecodable=skip", "unindexed=skip"] {
        let (status, _) =
            running.send(Method::GET, &format!("/v1/topics/orders/messages?{query}"), String::new()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{query}");
    }

    let replay = "/v1/topics/orders/replay";
    let body = json!({"into": "copy", "query": "late", "keep_timestamps": true});
    let told = running.post(replay, body).await;
    let last = told.last().unwrap();
    assert_eq!((&last["done"]["published"], &last["position"]), (&json!(late.len()), &json!("end")));
    let copied = running.get("/v1/topics/copy/messages").await;
    let original = running.get("/v1/topics/orders/messages?query=late").await;
    assert_eq!(copied.len(), original.len());
    for (copied, original) in copied.iter().zip(&original) {
        for field in ["partition", "timestamp", "key", "value", "headers"] {
            assert_eq!(copied[field], original[field]);
        }
    }
    let counted = running.post(replay, json!({"query": "late", "limit": 7})).await;
    assert_eq!(counted.last().unwrap()["done"]["matched"], 7);

    running.refused(replay, json!({"into": "orders"}), 400, "bad_request").await;
    running.refused(replay, json!({"into": "narrow"}), 400, "bad_request").await;
    running.refused(replay, json!({"into": "none"}), 404, "unknown_topic").await;
    running.refused(replay, json!({"into": "__consumer_offsets"}), 400, "internal_topic").await;
    running.refused(replay, json!({"into": "copy", "query": "(late"}), 400, "bad_query").await;
    running.refused(replay, json!({"into": "copy", "resume_from": "9@0..1"}), 400, "bad_request").await;
    running.refused(replay, json!({"into": "copy", "partition": 5}), 404, "unknown_partition").await;
    running.broker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_streams_until_the_broker_drains() {
    let running = Running::start().await;
    running.create("orders", 2).await;
    running.produce("orders", 0, 6).await;
    let url = format!("{}/v1/search/follow?q=late", running.url());
    let mut tail = running.http.get(url).send().await.unwrap().bytes_stream();
    let first = tail.next().await.unwrap().unwrap();
    assert_eq!(lines(std::str::from_utf8(&first).unwrap()), [json!({"cursor": "orders@0:3,1:3"})]);
    running.produce("orders", 6, 6).await;
    let (mut text, mut cursor) = (String::new(), Value::Null);
    while cursor != "orders@0:6,1:6" {
        let chunk = tokio::time::timeout(STEP_MAX, tail.next()).await.unwrap().unwrap().unwrap();
        text.push_str(std::str::from_utf8(&chunk).unwrap());
        if text.ends_with('\n') {
            cursor = lines(&text).last().unwrap()["cursor"].clone();
        }
    }
    let hits: Vec<Value> = lines(&text).into_iter().filter(|line| line.get("cursor").is_none()).collect();
    let mut seen = offsets(&hits);
    seen.sort_unstable();
    assert_eq!(seen, [(0, 3), (1, 4)]);

    running.refused("/v1/search/follow", json!({"q": "(late"}), 400, "bad_query").await;
    running.refused("/v1/search/follow", json!({"q": "", "topics": ["none"]}), 404, "unknown_topic").await;
    running.refused("/v1/search/follow", json!({"q": "", "cursor": "here"}), 400, "bad_request").await;
    let ended = async {
        while let Some(chunk) = tail.next().await {
            chunk.unwrap();
        }
    };
    let stopped = async { running.broker.shutdown().await.unwrap() };
    tokio::time::timeout(STEP_MAX, async { tokio::join!(ended, stopped) }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_cannot_begin_where_there_is_nothing() {
    let running = Running::start().await;
    running.create("orders", 2).await;
    running.produce("orders", 0, 20).await;
    running.archive("orders").await;
    let path = "/v1/groups/audit/offsets";
    let started = running.post(path, json!({"topic": "orders", "partition": 1, "offset": 4})).await;
    // Number 9, at minute 9: in the other partition number 10 is the first of that time or later.
    let place = |partition, offset| json!({"topic": "orders", "partition": partition, "offset": offset});
    assert_eq!(started, [json!({"group": "audit", "offsets": [place(0, 5), place(1, 4)]})]);
    running.refused(path, place(1, 10), 404, "unknown_offset").await;
    running.refused(path, place(2, 0), 404, "unknown_partition").await;
    running.refused(path, json!({"topic": "none", "partition": 0, "offset": 0}), 404, "unknown_topic").await;
    running.refused(path, json!({"topic": "orders"}), 400, "bad_request").await;
    let long = format!("/v1/groups/{}/offsets", "g".repeat(2000));
    running.refused(&long, place(1, 4), 400, "bad_request").await;
    running.broker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_goes_from_a_hit_to_a_replay() {
    let running = Running::start().await;
    for name in ["orders", "copy"] {
        running.create(name, 2).await;
    }
    running.produce("orders", 0, 30).await;
    running.archive("orders").await;
    running.produce("orders", 30, 12).await;
    running.found(42).await;

    let shown = running.printed(&["search", "15 OR 35", "--sort", "oldest", "-C", "1"]).await;
    let starts: Vec<&str> = shown.iter().map(|line| &line[..1]).collect();
    assert_eq!(starts, [" ", ">", " ", "-", " ", ">", " ", "2"], "{shown:#?}");
    assert!(shown[1].ends_with("orders/1@7  order 15 late"), "{}", shown[1]);
    let shown = running.printed(&["search", "15", "-A", "1", "--json"]).await;
    let messages = lines(&shown.join("\n"));
    assert_eq!(offsets(&messages), [(1, 7), (1, 8)]);
    assert_eq!([&messages[0]["hit"], &messages[1]["hit"]], [true, false]);

    let late = running.printed(&["consume", "orders", "--query", "late"]).await;
    assert_eq!(late.len(), 14);
    assert_eq!(running.printed(&["replay", "--topic", "orders", "--query", "late"]).await, late);
    let counted = running.printed(&["replay", "--topic", "orders", "--query", "late", "--dry-run"]).await;
    assert_eq!(counted, ["14 messages"]);
    let published =
        ["replay", "--topic", "orders", "--query", "late", "--into", "copy", "--rate", "1000/s", "--keep-timestamps"];
    let published = running.printed(&published).await;
    assert!(published[0].starts_with("published 14 messages ("), "{published:?}");
    let copied = running.printed(&["consume", "copy", "--format", "value"]).await;
    let original = running.printed(&["consume", "orders", "--query", "late", "--format", "value"]).await;
    assert_eq!(copied, original);

    let group = running.printed(&["replay", "--from-hit", "orders/1/7", "--group", "audit"]).await;
    assert_eq!(group[1..].iter().map(|row| row.split_whitespace().last().unwrap()).collect::<Vec<_>>(), ["8", "7"]);

    let refused = running.run(&["replay", "--topic", "orders", "--into", "orders"]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("into itself"));
    running.broker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_follows_until_it_is_interrupted() {
    let running = Running::start().await;
    running.create("orders", 2).await;
    running.produce("orders", 0, 6).await;
    let from = ["search", "late", "--topic", "orders", "--follow", "--from", "2015-05-17"];
    let mut follow = Job(running.command(&from).stdout(Stdio::piped()).spawn().unwrap());
    let stdout = BufReader::new(follow.0.stdout.take().unwrap());
    let (sender, mut printed) = mpsc::unbounded_channel();
    let reading = spawn_blocking(move || stdout.lines().try_for_each(|line| sender.send(line.unwrap())));
    let mut seen = Vec::new();
    for round in 1..4 {
        while seen.len() < 2 * round {
            let line = tokio::time::timeout(STEP_MAX, printed.recv()).await.unwrap().unwrap();
            seen.push(line.split("  ").nth(1).unwrap().to_owned());
        }
        running.produce("orders", 6 * round as i64, 6).await;
        running.archive("orders").await;
    }
    let mut expected: Vec<_> = (0..18).filter(|n| n % 3 == 0).map(|n| format!("orders/{}@{}", n % 2, n / 2)).collect();
    expected.sort_unstable();
    seen.sort_unstable();
    assert_eq!(seen, expected);
    let id = rustix::process::Pid::from_raw(follow.0.id().cast_signed()).unwrap();
    rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
    // Its output ends when it does.
    tokio::time::timeout(STEP_MAX, reading).await.unwrap().unwrap().unwrap();
    assert!(follow.0.wait().unwrap().success());
    running.broker.shutdown().await.unwrap();
}
