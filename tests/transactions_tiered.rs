//! Transactions across the tiers, with librdkafka as the client: what was aborted, and what is not decided yet, is not
//! found, not replayed and not archived; what was committed is, hot and cold; and readers come to the end of a
//! partition whose last batch is a marker in the archive.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "support/running.rs"]
mod running;

use std::ops::Range;
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};
use running::{Running, STEP_MAX};
use serde_json::{Value, json};

const TOPIC: &str = "events";
const POLL: Duration = Duration::from_millis(20);

impl Running {
    async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/v1/{path}", self.broker.http_addr())
    }

    async fn post(&self, path: &str, body: &Value) -> Value {
        let answer = self.http.post(self.url(path)).json(body).send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {}", answer.text().await.unwrap());
        answer.json().await.unwrap()
    }

    async fn partition(&self) -> Value {
        let answer = self.http.get(self.url(&format!("topics/{TOPIC}"))).send().await.unwrap();
        answer.json::<Value>().await.unwrap()["partitions"][0].clone()
    }

    async fn archive(&self) {
        self.post(&format!("topics/{TOPIC}/archive?trim=true"), &json!({})).await;
    }

    /// Waits until the partition's offset of that name is `wanted`.
    async fn reaches(&self, name: &str, wanted: i64) {
        let reached = async {
            while self.partition().await[name] != wanted {
                tokio::time::sleep(POLL).await;
            }
        };
        let reached = tokio::time::timeout(STEP_MAX, reached).await;
        assert!(reached.is_ok(), "{name} of {wanted}: {}", self.partition().await);
    }

    /// Keys of the messages that a search finds.
    async fn search(&self) -> Vec<i64> {
        let answer = self.post("search", &json!({"q": "heron", "topic": TOPIC, "limit": 1000})).await;
        let mut found: Vec<i64> = answer["hits"].as_array().unwrap().iter().map(key).collect();
        found.sort_unstable();
        found
    }

    async fn replay(&self) -> Vec<i64> {
        let answer = self.http.get(self.url(&format!("topics/{TOPIC}/messages"))).send().await.unwrap();
        answer.text().await.unwrap().lines().map(|line| key(&serde_json::from_str(line).unwrap())).collect()
    }

    async fn producer(&self, id: &str) -> FutureProducer {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.broker.kafka_addr().to_string()).set("transactional.id", id);
        let producer: FutureProducer = config.create().unwrap();
        let initialised = producer.clone();
        blocking(move || initialised.init_transactions(STEP_MAX)).await.unwrap();
        producer
    }

    /// Keys of all messages up to the end of the partition, which the reader must come to.
    async fn consume(&self, isolation: &str) -> Vec<i64> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.broker.kafka_addr().to_string()).set("group.id", "unused");
        config.set("isolation.level", isolation).set("enable.partition.eof", "true").set("check.crcs", "true");
        let consumer: StreamConsumer = config.create().unwrap();
        let mut partitions = TopicPartitionList::new();
        partitions.add_partition_offset(TOPIC, 0, Offset::Beginning).unwrap();
        consumer.assign(&partitions).unwrap();
        let mut keys = Vec::new();
        loop {
            let message = tokio::time::timeout(STEP_MAX, consumer.recv()).await;
            match message.unwrap_or_else(|_| panic!("{isolation}: stuck after {} messages", keys.len())) {
                Ok(message) => keys.push(std::str::from_utf8(message.key().unwrap()).unwrap().parse().unwrap()),
                Err(KafkaError::PartitionEOF(_)) => return keys,
                Err(error) => panic!("{error}"),
            }
        }
    }

    async fn check(&self, committed: &[i64], when: &str) {
        assert_eq!(self.consume("read_committed").await, committed, "{when}");
        assert_eq!(self.search().await, committed, "{when}");
        assert_eq!(self.replay().await, committed, "{when}");
    }
}

fn key(message: &Value) -> i64 {
    message["key"].as_str().unwrap().parse().unwrap()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

async fn send(producer: &FutureProducer, keys: Range<i64>) {
    for key in keys {
        let key = key.to_string();
        producer.send(FutureRecord::to(TOPIC).key(&key).payload("a heron, seen"), STEP_MAX).await.unwrap();
    }
}

async fn end(producer: &FutureProducer, commits: bool) {
    let producer = producer.clone();
    let end = move || match commits {
        true => producer.commit_transaction(STEP_MAX),
        false => producer.abort_transaction(STEP_MAX),
    };
    blocking(end).await.unwrap();
}

async fn transaction(producer: &FutureProducer, keys: Range<i64>, commits: bool) {
    producer.begin_transaction().unwrap();
    send(producer, keys).await;
    end(producer, commits).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_is_committed_is_found_and_archived() {
    let running = Running::start().await;
    running.post("topics", &json!({"name": TOPIC, "partitions": 1})).await;
    let (one, two) = (running.producer("one").await, running.producer("two").await);
    transaction(&one, 0..5, true).await;
    transaction(&one, 5..10, false).await;
    two.begin_transaction().unwrap();
    send(&two, 10..13).await;
    transaction(&one, 13..16, true).await;
    // Offsets 0 to 4, a marker, 6 to 10 aborted, a marker, 12 to 14 open, 15 to 17, a marker.
    running.reaches("high_watermark", 19).await;
    running.reaches("indexed_through", 12).await;
    assert_eq!(running.partition().await["last_stable_offset"], 12);
    let mut committed: Vec<i64> = (0..5).collect();
    running.check(&committed, "one is open").await;
    running.archive().await;
    assert_eq!(running.partition().await["archived_through"], 0, "a segment with an open transaction waits");
    assert_eq!(running.consume("read_uncommitted").await, (0..16).collect::<Vec<_>>());

    end(&two, false).await;
    running.reaches("last_stable_offset", 20).await;
    running.reaches("indexed_through", 20).await;
    committed.extend(13..16);
    running.check(&committed, "hot").await;
    running.archive().await;
    let partition = running.partition().await;
    assert_eq!((&partition["archived_through"], &partition["local_start_offset"]), (&json!(20), &json!(20)));
    running.check(&committed, "cold, and nothing after it").await;
    assert_eq!(running.consume("read_uncommitted").await, committed, "the archive has nothing else");

    // A file that ends in what was aborted; the marker is in the next one.
    transaction(&two, 16..18, true).await;
    running.reaches("last_stable_offset", 23).await;
    one.begin_transaction().unwrap();
    send(&one, 18..20).await;
    running.archive().await;
    assert_eq!(running.partition().await["archived_through"], 20, "sealed, and one is open still");
    end(&one, false).await;
    running.reaches("last_stable_offset", 26).await;
    running.archive().await;
    running.reaches("archived_through", 26).await;
    committed.extend(16..18);
    running.reaches("indexed_through", 26).await;
    running.check(&committed, "cold in two pieces").await;

    // What is aborted alone makes a file of nothing.
    transaction(&one, 20..25, false).await;
    running.reaches("last_stable_offset", 32).await;
    running.archive().await;
    running.reaches("archived_through", 32).await;
    running.check(&committed, "a file of nothing").await;
    transaction(&two, 25..27, true).await;
    committed.extend(25..27);
    running.reaches("last_stable_offset", 35).await;
    running.reaches("indexed_through", 35).await;
    running.check(&committed, "hot again").await;

    let data_dir = running.dir.path().to_str().unwrap().to_owned();
    let mut verify = std::process::Command::new(env!("CARGO_BIN_EXE_thermocline"));
    verify.args(["tier", "verify", "--data-dir", &data_dir]);
    let verified = blocking(move || verify.output().unwrap()).await;
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    running.broker.shutdown().await.unwrap();
}
