//! The whole path over a real S3 wire: produce, archive, trim, replay, search, restart.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "support/config.rs"]
mod config;
#[path = "support/s3.rs"]
mod s3;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use thermocline::Broker;

const BUCKET: &str = "lake";
const TOPIC: &str = "orders";
const PARTITIONS: usize = 3;
/// Longest any one step may take, live indexing included.
const STEP_MAX: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The store takes its credentials from the environment, which a test must not change under its siblings: so the test
/// proper runs in a process of its own.
#[test]
fn the_cold_tier_on_s3() {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_cold_tier_on_s3_with_credentials", "--ignored", "--nocapture"])
        .env("AWS_ACCESS_KEY_ID", s3::ACCESS_KEY)
        .env("AWS_SECRET_ACCESS_KEY", s3::SECRET_KEY)
        .env_remove("AWS_SESSION_TOKEN")
        .env_remove("AWS_ENDPOINT_URL")
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by the_cold_tier_on_s3 with credentials in its environment"]
async fn the_cold_tier_on_s3_with_credentials() {
    let dir = tempfile::tempdir().unwrap();
    let buckets = dir.path().join("buckets");
    std::fs::create_dir_all(buckets.join(BUCKET)).unwrap();
    let server = s3::S3Server::start(&buckets, loopback()).await.unwrap();
    let data_dir = dir.path().join("data");

    let broker = start(&data_dir, server.addr()).await;
    let client = Client::new(&broker);
    client.create().await;
    let mut produced = client.produce(0..300).await;
    assert_eq!(client.replay("").await, produced, "replayed hot");
    client.search_finds(&produced, "hot").await;

    let report = client.post("archive?trim=true").await;
    assert_eq!(report["records"], 300, "{report}");
    for partition in client.partitions().await {
        assert_eq!(partition["local_start_offset"], partition["high_watermark"], "{partition}");
        assert_eq!(partition["archived_through"], partition["high_watermark"], "{partition}");
        assert!(partition["cold_bytes"].as_u64().unwrap() > 0, "{partition}");
    }
    let objects = files_below(&buckets.join(BUCKET).join("cold"));
    for kind in ["parquet", "split"] {
        let count = objects.iter().filter(|path| path.extension().is_some_and(|extension| extension == kind)).count();
        assert_eq!(count, PARTITIONS, "{kind} objects in the bucket: {objects:?}");
    }
    assert!(!data_dir.join("cold").exists(), "nothing of the cold tier is local");
    assert_eq!(client.replay("").await, produced, "replayed cold");
    client.search_finds(&produced, "cold").await;

    produced.extend(client.produce(300..400).await);
    assert_eq!(client.replay("").await, produced, "replayed half and half");
    client.search_finds(&produced, "half and half").await;

    broker.shutdown().await.unwrap();
    let broker = start(&data_dir, server.addr()).await;
    let client = Client::new(&broker);
    assert_eq!(client.replay("").await, produced, "replayed after a restart");
    client.search_finds(&produced, "after a restart").await;
    let of_partition_1 = produced.iter().filter(|message| message.0 == 1).cloned().collect();
    assert_eq!(client.replay("?partition=1").await, of_partition_1);
    broker.shutdown().await.unwrap();
}

/// Partition, offset, key and value of a message.
type Message = (u64, u64, String, String);

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

async fn start(data_dir: &Path, store: SocketAddr) -> Broker {
    let mut config = config::config(data_dir);
    config.store.url = format!("s3://{BUCKET}/cold");
    config.store.endpoint = format!("http://{store}");
    config.store.region = "us-east-1".to_owned();
    Broker::start(config).await.unwrap()
}

/// Text of message `n`; every seventh holds the word that is searched for.
fn value(n: u64) -> String {
    if n.is_multiple_of(7) { format!("order {n} was Refunded, twice") } else { format!("order {n} was paid") }
}

struct Client {
    http: reqwest::Client,
    url: String,
}

impl Client {
    fn new(broker: &Broker) -> Self {
        let http = reqwest::Client::builder().timeout(STEP_MAX).no_proxy().build().unwrap();
        Self { http, url: format!("http://{}/v1", broker.http_addr()) }
    }

    async fn create(&self) {
        let topic = json!({"name": TOPIC, "partitions": PARTITIONS});
        let answer = self.http.post(format!("{}/topics", self.url)).json(&topic).send().await.unwrap();
        assert_eq!(answer.status(), 201, "{}", answer.text().await.unwrap());
    }

    async fn produce(&self, numbers: std::ops::Range<u64>) -> BTreeSet<Message> {
        let body: String = numbers
            .clone()
            .map(|n| {
                let partition = n % PARTITIONS as u64;
                format!("{}\n", json!({"key": n.to_string(), "value": value(n), "partition": partition}))
            })
            .collect();
        let url = format!("{}/topics/{TOPIC}/messages", self.url);
        let answer = self.http.post(url).body(body).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let answer: Value = answer.json().await.unwrap();
        let mut next: Vec<u64> = vec![0; PARTITIONS];
        let mut count = 0;
        for range in answer["offsets"].as_array().unwrap() {
            let partition = usize::try_from(range["partition"].as_u64().unwrap()).unwrap();
            next[partition] = range["base_offset"].as_u64().unwrap();
            count += range["count"].as_u64().unwrap();
        }
        assert_eq!(count, numbers.end - numbers.start, "{answer}");
        let place = |n: u64| {
            let partition = n % PARTITIONS as u64;
            let offset = &mut next[usize::try_from(partition).unwrap()];
            *offset += 1;
            (partition, *offset - 1, n.to_string(), value(n))
        };
        numbers.map(place).collect()
    }

    async fn post(&self, what: &str) -> Value {
        let answer = self.http.post(format!("{}/topics/{TOPIC}/{what}", self.url)).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.json().await.unwrap()
    }

    async fn partitions(&self) -> Vec<Value> {
        let answer = self.http.get(format!("{}/topics/{TOPIC}", self.url)).send().await.unwrap();
        let topic: Value = answer.json().await.unwrap();
        topic["partitions"].as_array().unwrap().clone()
    }

    /// Everything that a replay gives; fails where a message comes twice or out of order.
    async fn replay(&self, query: &str) -> BTreeSet<Message> {
        let url = format!("{}/topics/{TOPIC}/messages{query}", self.url);
        let answer = self.http.get(url).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let lines = answer.text().await.unwrap();
        let messages: Vec<Message> = lines.lines().map(|line| message(&serde_json::from_str(line).unwrap())).collect();
        assert!(messages.windows(2).all(|two| (two[0].0, two[0].1) < (two[1].0, two[1].1)), "order per partition");
        messages.into_iter().collect()
    }

    /// Waits until the index covers everything, then searches page by page.
    async fn search_finds(&self, produced: &BTreeSet<Message>, when: &str) {
        let indexed = async {
            while self.partitions().await.iter().any(|p| p["indexed_through"] != p["high_watermark"]) {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        };
        tokio::time::timeout(STEP_MAX, indexed).await.expect("the index never covered everything");
        let wanted: BTreeSet<Message> =
            produced.iter().filter(|message| message.3.contains("Refunded")).cloned().collect();
        let mut found = BTreeSet::new();
        let mut cursor = Value::Null;
        loop {
            let query = json!({"q": "refunded", "topic": TOPIC, "limit": 10, "cursor": cursor});
            let answer = self.http.post(format!("{}/search", self.url)).json(&query).send().await.unwrap();
            assert_eq!(answer.status(), 200, "{when}: {}", answer.text().await.unwrap());
            let answer: Value = answer.json().await.unwrap();
            for hit in answer["hits"].as_array().unwrap() {
                assert!(found.insert(message(hit)), "{when}: found twice: {hit}");
            }
            cursor = answer["cursor"].clone();
            if cursor.is_null() {
                break;
            }
        }
        assert_eq!(found, wanted, "{when}");
    }
}

fn message(json: &Value) -> Message {
    let text = |field: &str| json[field].as_str().unwrap().to_owned();
    (json["partition"].as_u64().unwrap(), json["offset"].as_u64().unwrap(), text("key"), text("value"))
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files
}
