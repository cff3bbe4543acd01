//! The bucket as the only copy: a broker on an empty disk serves, searches and goes on with what another has archived,
//! and the other one is refused and says so.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "support/config.rs"]
mod config;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::message::Message;
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Offset, TopicPartitionList};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use thermocline::Broker;
use thermocline_config::{Config, StoreConfig};
use thermocline_ingest::clock::SystemClock;
use thermocline_ingest::metadata::MetadataStore;
use thermocline_ingest::model::{self, PartitionId, TopicId, TopicName};
use thermocline_ingest::topics;
use thermocline_tiering::manifest::{Change, CommitOutcome, ManifestStore};
use thermocline_tiering::paths::PartitionPath;
use thermocline_tiering::restore;
use thermocline_tiering::store::ColdStore;

const TOPIC: &str = "birds";
const PARTITIONS: i32 = 2;
/// Longest any one step may take.
const STEP_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// A store that outlives its brokers.
struct Store(TempDir);

impl Store {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn config(&self) -> StoreConfig {
        StoreConfig { url: format!("file://{}", self.0.path().display()), ..StoreConfig::default() }
    }

    async fn start(&self, data_dir: &Path) -> Running {
        let config = Config { store: self.config(), ..config::config(data_dir) };
        Running { broker: Broker::start(config).await.unwrap(), client: Client::new() }
    }
}

struct Running {
    broker: Broker,
    client: Client,
}

impl Running {
    async fn stop(self) {
        self.broker.shutdown().await.unwrap();
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.broker.http_addr())
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        let answer = self.client.get(self.url(path)).send().await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    }

    async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        let answer = self.client.post(self.url(path)).json(body).send().await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    }

    async fn create_topic(&self, name: &str) {
        let topic = json!({"name": name, "partitions": PARTITIONS, "configs": {"retention.ms": "31536000000"}});
        assert_eq!(self.post("/v1/topics", &topic).await.0, StatusCode::CREATED);
    }

    /// Name, id, settings.
    async fn topic(&self) -> Value {
        let (status, mut topic) = self.get(&format!("/v1/topics/{TOPIC}")).await;
        assert_eq!(status, StatusCode::OK, "{topic}");
        topic["partitions"] = json!(topic["partitions"].as_array().unwrap().len());
        topic
    }

    async fn archive(&self) -> (StatusCode, Value) {
        self.archive_topic(TOPIC).await
    }

    async fn archive_topic(&self, name: &str) -> (StatusCode, Value) {
        self.post(&format!("/v1/topics/{name}/archive"), &json!({})).await
    }

    /// Messages `numbers`, turn about; the place each was acknowledged for.
    async fn produce(&self, numbers: std::ops::Range<usize>) -> BTreeMap<(i32, i64), usize> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.broker.kafka_addr().to_string());
        let producer: FutureProducer = config.create().unwrap();
        let sends = numbers.map(|n| {
            let producer = &producer;
            async move {
                let partition = i32::try_from(n).unwrap() % PARTITIONS;
                let (key, value) = (n.to_string(), text(n));
                let record = FutureRecord::to(TOPIC).key(&key).payload(&value).partition(partition);
                let delivery = producer.send(record, STEP_MAX).await.unwrap();
                ((delivery.partition, delivery.offset), n)
            }
        });
        futures::future::join_all(sends).await.into_iter().collect()
    }

    /// Everything from the beginning of every partition, by Fetch.
    async fn fetch(&self, count: usize) -> BTreeMap<(i32, i64), usize> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.broker.kafka_addr().to_string());
        config.set("group.id", "unused").set("enable.auto.commit", "false").set("check.crcs", "true");
        let consumer: StreamConsumer = config.create().unwrap();
        let mut partitions = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            partitions.add_partition_offset(TOPIC, partition, Offset::Beginning).unwrap();
        }
        consumer.assign(&partitions).unwrap();
        let mut found = BTreeMap::new();
        while found.len() < count {
            let message = tokio::time::timeout(STEP_MAX, consumer.recv()).await;
            let message = message.unwrap_or_else(|_| panic!("{} of {count} messages", found.len())).unwrap();
            let n: usize = std::str::from_utf8(message.key().unwrap()).unwrap().parse().unwrap();
            assert_eq!(message.payload(), Some(text(n).as_bytes()));
            assert_eq!(found.insert((message.partition(), message.offset()), n), None, "each once");
        }
        found
    }

    /// How many messages match, once everything produced is indexed.
    async fn hits(&self, query: &str) -> usize {
        let indexed = async {
            loop {
                let (_, topic) = self.get(&format!("/v1/topics/{TOPIC}")).await;
                let partitions = topic["partitions"].as_array().unwrap();
                if partitions.iter().all(|p| p["indexed_through"].as_i64() >= p["high_watermark"].as_i64()) {
                    return;
                }
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(STEP_MAX, indexed).await.unwrap();
        let request = json!({"q": query, "topics": [TOPIC], "limit": 1000});
        let (status, answer) = self.post("/v1/search", &request).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        answer["hits"].as_array().unwrap().len()
    }

    async fn check_fenced(&self) {
        let (status, answer) = self.get("/health/ready").await;
        assert_eq!((status, &answer["error"]["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("fenced")));
        let metrics = self.client.get(self.url("/metrics")).send().await.unwrap().text().await.unwrap();
        assert!(metrics.contains("thermocline_manifest_fenced 1"));
    }

    /// What it took now would never be archived.
    async fn check_refuses_produce(&self) {
        let request = self.client.post(self.url(&format!("/v1/topics/{TOPIC}/messages")));
        let answer = request.body("{\"value\":\"too late\"}\n").send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.json::<Value>().await.unwrap()["error"]["code"], "fenced");
    }
}

fn text(n: usize) -> String {
    format!("message {n} about {}", if n % 10 == 7 { "herons" } else { "nothing" })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_disk_takes_up_what_the_store_has() {
    let (store, old_disk, new_disk) = (Store::new(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let old = store.start(old_disk.path()).await;
    old.create_topic(TOPIC).await;
    let mut places = old.produce(0..300).await;
    assert_eq!(old.archive().await.0, StatusCode::OK);
    let topic = old.topic().await;
    // Acknowledged and not archived: only the old disk has them.
    let mut on_old_disk = old.produce(300..310).await;
    on_old_disk.extend(places.clone());
    old.stop().await;

    let new = store.start(new_disk.path()).await;
    assert_eq!(new.topic().await, topic, "name, id, partitions and settings");
    assert_eq!(new.get("/health/ready").await.0, StatusCode::OK);
    assert_eq!(new.fetch(300).await, places);
    assert_eq!(new.hits("herons").await, 30);
    let more = new.produce(310..350).await;
    assert_eq!(more.keys().next(), Some(&(0, 150)), "after the last archived one");
    places.extend(more);
    assert_eq!(new.fetch(340).await, places);
    assert_eq!(new.archive().await.0, StatusCode::OK);
    assert_eq!(new.hits("herons").await, 34);

    // The old one reads what it has, and is refused.
    let old = store.start(old_disk.path()).await;
    old.check_fenced().await;
    old.check_refuses_produce().await;
    assert_eq!(old.fetch(310).await, on_old_disk, "though the archive is longer than its log by now");
    let (status, answer) = old.archive().await;
    assert!(!status.is_success(), "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("epoch"), "{answer}");
    old.stop().await;

    // The new one is an ordinary broker by now.
    new.stop().await;
    let new = store.start(new_disk.path()).await;
    assert_eq!(new.get("/health/ready").await.0, StatusCode::OK);
    assert_eq!(new.fetch(340).await, places);
    new.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_grew_is_followed_everywhere() {
    let (store, old_disk, new_disk) = (Store::new(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let old = store.start(old_disk.path()).await;
    old.create_topic(TOPIC).await;
    old.produce(0..20).await;
    assert_eq!(old.archive().await.0, StatusCode::OK);
    let grow = json!({"partitions": PARTITIONS + 2});
    let grown = old.client.patch(old.url(&format!("/v1/topics/{TOPIC}"))).json(&grow).send().await.unwrap();
    assert_eq!(grown.status(), StatusCode::OK);
    let topic = old.topic().await;
    assert_eq!(topic["partitions"], PARTITIONS + 2);

    // Found while it is hot, archived, and found when it is cold.
    let message = json!({"value": "message about herons", "partition": PARTITIONS + 1});
    assert_eq!(old.post(&format!("/v1/topics/{TOPIC}/messages"), &message).await.0, StatusCode::OK);
    assert_eq!(old.hits("herons").await, 3);
    // The store hears of it without another commit of the partitions that were there.
    let cold = ColdStore::open(&store.config(), store.0.path()).unwrap();
    let described = async {
        while restore::find_topics(&cold).await.unwrap()[0].partitions != PARTITIONS + 2 {
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(STEP_MAX, described).await.unwrap();
    assert_eq!(old.archive().await.0, StatusCode::OK);
    old.stop().await;

    let new = store.start(new_disk.path()).await;
    assert_eq!(new.topic().await, topic, "name, id, partitions and settings");
    assert_eq!(new.hits("herons").await, 3);
    new.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_broker_is_refused_at_its_next_commit_after_a_take_over() {
    let (store, old_disk, new_disk) = (Store::new(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let old = store.start(old_disk.path()).await;
    old.create_topic(TOPIC).await;
    let places = old.produce(0..100).await;
    assert_eq!(old.archive().await.0, StatusCode::OK);
    let new = store.start(new_disk.path()).await;
    // It does not know yet.
    assert_eq!(old.get("/health/ready").await.0, StatusCode::OK);
    let late = old.produce(100..101).await;
    assert!(!old.archive().await.0.is_success());
    old.check_fenced().await;
    old.check_refuses_produce().await;
    assert_eq!(
        old.fetch(101).await,
        places.iter().chain(&late).map(|(place, n)| (*place, *n)).collect(),
        "it reads on"
    );
    assert_eq!(new.fetch(100).await, places);
    assert_eq!(
        new.produce(200..201).await.into_keys().next(),
        late.into_keys().next(),
        "acked by both, archived by one"
    );
    assert_eq!(new.archive().await.0, StatusCode::OK);
    old.stop().await;
    new.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_only_the_replaced_broker_knows_is_not_archived() {
    let (store, old_disk, new_disk) = (Store::new(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let old = store.start(old_disk.path()).await;
    let new = store.start(new_disk.path()).await;
    old.create_topic("late").await;
    let (status, answer) = old.archive_topic("late").await;
    assert!(!status.is_success(), "{answer}");
    old.check_fenced().await;
    new.create_topic("late").await;
    assert_eq!(new.archive_topic("late").await.0, StatusCode::OK);
    old.stop().await;
    new.stop().await;
}

/// As the first broker, of epoch 1, would have done it.
async fn raise_log_start(store: &Store, id: &Value, partition: i32, start: i64) {
    let cold = ColdStore::open(&store.config(), store.0.path()).unwrap();
    let id = TopicId(id.as_str().unwrap().parse().unwrap());
    let path = PartitionPath::new(TopicName::new(TOPIC).unwrap(), id, PartitionId(partition));
    let manifests = ManifestStore::new(cold, 1, Arc::new(SystemClock));
    let head = manifests.load(&path).await.unwrap();
    let raised = manifests.commit(&head, Change::RaiseLogStart(model::Offset(start))).await.unwrap();
    assert!(matches!(raised, CommitOutcome::Committed(_)));
}

/// Whatever is missing of the local logs, they go on where the archive ends.
#[tokio::test(flavor = "multi_thread")]
async fn logs_that_are_missing_go_on_where_the_archive_ends() {
    let (store, disk) = (Store::new(), tempfile::tempdir().unwrap());
    let broker = store.start(disk.path()).await;
    broker.create_topic(TOPIC).await;
    let mut places = broker.produce(0..100).await;
    assert_eq!(broker.archive().await.0, StatusCode::OK);
    let topic = broker.topic().await;
    broker.stop().await;
    raise_log_start(&store, &topic["id"], 1, 20).await;
    places.retain(|(partition, offset), _| *partition == 0 || *offset >= 20);

    // Died after the topics were adopted, before anything else was done.
    let adopting = tempfile::tempdir().unwrap();
    let cold = ColdStore::open(&store.config(), adopting.path()).unwrap();
    let metadata = MetadataStore::open(&adopting.path().join("metadata.redb")).unwrap();
    let found = restore::find_topics(&cold).await.unwrap();
    assert_eq!(topics::adopt(&metadata, &Config::default().log, found).unwrap(), 1);
    drop(metadata);
    let broker = store.start(adopting.path()).await;
    assert_eq!(broker.topic().await, topic);
    assert_eq!(broker.fetch(80).await, places);
    places.extend(broker.produce(100..110).await);
    assert_eq!(broker.archive().await.0, StatusCode::OK);
    broker.stop().await;

    // The folder of the logs was lost, the catalogue was not.
    std::fs::remove_dir_all(adopting.path().join("hot")).unwrap();
    let broker = store.start(adopting.path()).await;
    assert_eq!(broker.fetch(90).await, places);
    assert_eq!(broker.produce(110..111).await.into_keys().next(), Some((0, 55)));
    broker.stop().await;
}
