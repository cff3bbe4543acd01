//! librdkafka, through the rdkafka crate, as the client: topics, every codec, idempotence, offsets by time, groups,
//! transactions.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "support/config.rs"]
mod config;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{CommitMode, Consumer, StreamConsumer};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders, OwnedMessage};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};
use tempfile::TempDir;
use thermocline::Broker;
use thermocline_config::HumanDuration;

const PARTITIONS: i32 = 3;
/// Longest any one step may take.
const STEP_MAX: Duration = Duration::from_secs(60);
/// 2015-05-17T00:00:00Z
const BASE_TIMESTAMP: i64 = 1_431_820_800_000;

/// A broker on a folder, which may be stopped and started again on the same port.
struct Running {
    broker: Broker,
    dir: TempDir,
}

impl Running {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let broker = start_on(dir.path(), SocketAddr::from(([127, 0, 0, 1], 0))).await;
        Self { broker, dir }
    }

    async fn restart(self) -> Self {
        let addr = self.broker.kafka_addr();
        self.broker.shutdown().await.unwrap();
        Self { broker: start_on(self.dir.path(), addr).await, dir: self.dir }
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.broker.kafka_addr().to_string());
        config
    }

    async fn create(&self, topic: &str, partitions: i32) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().unwrap();
        let topic = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
        let options = AdminOptions::new().operation_timeout(Some(STEP_MAX));
        let results = admin.create_topics([&topic], &options).await.unwrap();
        assert!(results.iter().all(Result::is_ok), "{results:?}");
    }

    fn producer(&self, settings: &[(&str, &str)]) -> FutureProducer {
        let mut config = self.client();
        config.set("linger.ms", "20").set("message.timeout.ms", STEP_MAX.as_millis().to_string());
        for (key, value) in settings {
            config.set(*key, *value);
        }
        config.create().unwrap()
    }

    fn consumer(&self, group: &str) -> StreamConsumer {
        let mut config = self.client();
        config.set("group.id", group).set("auto.offset.reset", "earliest").set("enable.auto.commit", "false");
        config.set("session.timeout.ms", "6000").set("check.crcs", "true");
        config.create().unwrap()
    }

    /// Reads `count` messages from the beginning of every partition, without a group.
    async fn read_all(&self, topic: &str, count: usize) -> Vec<OwnedMessage> {
        let consumer = self.consumer("unused");
        let mut partitions = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            partitions.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
        }
        consumer.assign(&partitions).unwrap();
        receive(&consumer, count).await
    }
}

async fn start_on(data_dir: &Path, kafka: SocketAddr) -> Broker {
    let mut config = config::config(data_dir);
    config.kafka.listen = kafka;
    config.groups.initial_rebalance_delay = HumanDuration::millis(0);
    Broker::start(config).await.unwrap()
}

async fn receive(consumer: &StreamConsumer, count: usize) -> Vec<OwnedMessage> {
    let mut messages = Vec::with_capacity(count);
    while messages.len() < count {
        let message = tokio::time::timeout(STEP_MAX, consumer.recv()).await;
        let message = message.unwrap_or_else(|_| panic!("{} of {count} messages within {STEP_MAX:?}", messages.len()));
        messages.push(message.unwrap().detach());
    }
    messages
}

/// Produces messages `0..count` and returns the place each was acknowledged for.
async fn produce(producer: &FutureProducer, topic: &str, count: usize) -> BTreeMap<(i32, i64), usize> {
    let sends = (0..count).map(|n| async move {
        let (key, value) = (n.to_string(), text(n));
        let headers = OwnedHeaders::new()
            .insert(Header { key: "n", value: Some(&key) })
            .insert(Header { key: "n", value: None::<&str> });
        let record = FutureRecord::to(topic).key(&key).payload(&value).headers(headers).timestamp(timestamp(n));
        let delivery = producer.send(record, STEP_MAX).await.unwrap();
        ((delivery.partition, delivery.offset), n)
    });
    let places: BTreeMap<_, _> = futures::future::join_all(sends).await.into_iter().collect();
    assert_eq!(places.len(), count, "every message has a place of its own");
    places
}

fn text(n: usize) -> String {
    format!("message {n} {}", "with some text that compresses ".repeat(n % 5))
}

fn timestamp(n: usize) -> i64 {
    BASE_TIMESTAMP + i64::try_from(n).unwrap() * 1000
}

fn check(messages: &[OwnedMessage], places: &BTreeMap<(i32, i64), usize>) {
    let mut next = BTreeMap::new();
    for message in messages {
        let offset = next.entry(message.partition()).or_insert(0);
        assert_eq!(message.offset(), *offset, "dense and in order");
        *offset += 1;
        let n = places[&(message.partition(), message.offset())];
        assert_eq!(message.payload(), Some(text(n).as_bytes()));
        assert_eq!(message.key(), Some(n.to_string().as_bytes()));
        assert_eq!(message.timestamp().to_millis(), Some(timestamp(n)));
        let headers = message.headers().unwrap();
        assert_eq!(headers.count(), 2);
        assert_eq!((headers.get(0).key, headers.get(0).value), ("n", Some(n.to_string().as_bytes())));
        assert_eq!((headers.get(1).key, headers.get(1).value), ("n", None));
    }
    assert_eq!(messages.len(), places.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_codec_and_the_idempotent_producer() {
    let running = Running::start().await;
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        for idempotent in ["false", "true"] {
            let topic = format!("{codec}-{idempotent}");
            running.create(&topic, PARTITIONS).await;
            let producer = running.producer(&[("compression.codec", codec), ("enable.idempotence", idempotent)]);
            let places = produce(&producer, &topic, 200).await;
            check(&running.read_all(&topic, places.len()).await, &places);
        }
    }
    running.broker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_by_time_and_watermarks() {
    let running = Running::start().await;
    running.create("timed", 1).await;
    // Compressed, so that finding a time means opening batches.
    produce_in_order(&running.producer(&[("compression.codec", "zstd")]), "timed", 100).await;
    let consumer = running.consumer("unused");
    let found = tokio::task::spawn_blocking(move || {
        let offset_at = |timestamp| {
            let mut times = TopicPartitionList::new();
            times.add_partition_offset("timed", 0, Offset::Offset(timestamp)).unwrap();
            let offsets = consumer.offsets_for_times(times, STEP_MAX).unwrap();
            offsets.find_partition("timed", 0).unwrap().offset()
        };
        let offsets =
            [timestamp(0) - 1, timestamp(41) - 999, timestamp(41), timestamp(99), timestamp(99) + 1].map(offset_at);
        (offsets, consumer.fetch_watermarks("timed", 0, STEP_MAX).unwrap())
    });
    let (offsets, watermarks) = found.await.unwrap();
    assert_eq!(offsets, [Offset::Offset(0), Offset::Offset(41), Offset::Offset(41), Offset::Offset(99), Offset::End]);
    assert_eq!(watermarks, (0, 100));
    running.broker.shutdown().await.unwrap();
}

/// One after the other, so that offsets follow the numbers.
async fn produce_in_order(producer: &FutureProducer, topic: &str, count: usize) {
    for n in 0..count {
        let (key, value) = (n.to_string(), text(n));
        let record = FutureRecord::to(topic).key(&key).payload(&value).timestamp(timestamp(n));
        assert_eq!(producer.send(record, STEP_MAX).await.unwrap().offset, i64::try_from(n).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_goes_on_where_it_committed_after_a_restart() {
    let running = Running::start().await;
    running.create("grouped", PARTITIONS).await;
    let places = produce(&running.producer(&[]), "grouped", 300).await;

    let consumer = running.consumer("readers");
    consumer.subscribe(&["grouped"]).unwrap();
    let mut messages = receive(&consumer, 120).await;
    let mut positions = TopicPartitionList::new();
    for (partition, offset) in
        messages.iter().map(|message| (message.partition(), message.offset())).collect::<BTreeMap<_, _>>()
    {
        positions.add_partition_offset("grouped", partition, Offset::Offset(offset + 1)).unwrap();
    }
    let consumer = tokio::task::spawn_blocking(move || {
        consumer.commit(&positions, CommitMode::Sync).unwrap();
        consumer
    });
    drop(consumer.await.unwrap());

    let running = running.restart().await;
    let consumer = running.consumer("readers");
    consumer.subscribe(&["grouped"]).unwrap();
    messages.extend(receive(&consumer, 180).await);
    // Within a partition the second consumer goes on exactly where the first one stopped.
    messages.sort_by_key(Message::partition);
    check_keys(&messages, &places);
    drop(consumer);
    running.broker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_begins_at_a_hit() {
    let running = Running::start().await;
    running.create("hits", PARTITIONS).await;
    let places = produce(&running.producer(&[]), "hits", 120).await;
    let (hit, number) = places.iter().nth(50).unwrap();
    let url = format!("http://{}/v1/groups/from-hit/offsets", running.broker.http_addr());
    let body = serde_json::json!({"topic": "hits", "partition": hit.0, "offset": hit.1});
    let http = reqwest::Client::builder().timeout(STEP_MAX).no_proxy().build().unwrap();
    let answer = http.post(&url).json(&body).send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());

    // In its partition from the hit on; in the others from the first message of its time or later.
    let mut begins = BTreeMap::from([*hit]);
    for ((partition, offset), n) in &places {
        if *partition != hit.0 && n >= number {
            begins.entry(*partition).or_insert(*offset);
        }
    }
    let is_wanted = |(partition, offset): &(i32, i64)| begins.get(partition).is_some_and(|begin| offset >= begin);
    let wanted: Vec<_> = places.keys().copied().filter(is_wanted).collect();
    let consumer = running.consumer("from-hit");
    consumer.subscribe(&["hits"]).unwrap();
    let mut seen: Vec<_> = receive(&consumer, wanted.len()).await.iter().map(|m| (m.partition(), m.offset())).collect();
    seen.sort_by_key(|(partition, _)| *partition);
    assert_eq!(seen, wanted);

    // While it has a member, the group's offsets are its own.
    let refused = http.post(&url).json(&body).send().await.unwrap();
    assert_eq!(refused.status().as_u16(), 409);
    assert!(refused.text().await.unwrap().contains("group_not_empty"));
    drop(consumer);
    running.broker.shutdown().await.unwrap();
}

/// Runs what blocks on a thread that may.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Sends numbered messages within the open transaction.
async fn send(producer: &FutureProducer, topic: &str, numbers: std::ops::Range<usize>) {
    let sends = numbers.map(|n| async move {
        let (key, value) = (n.to_string(), text(n));
        producer.send(FutureRecord::to(topic).key(&key).payload(&value), STEP_MAX).await.unwrap();
    });
    futures::future::join_all(sends).await;
}

/// A transaction of these messages, and how it ends.
async fn transaction(producer: &FutureProducer, topic: &str, numbers: std::ops::Range<usize>, commits: bool) {
    producer.begin_transaction().unwrap();
    send(producer, topic, numbers).await;
    let producer = producer.clone();
    let end = move || match commits {
        true => producer.commit_transaction(STEP_MAX),
        false => producer.abort_transaction(STEP_MAX),
    };
    blocking(end).await.unwrap();
}

impl Running {
    async fn transactional(&self, id: &str) -> FutureProducer {
        let producer = self.producer(&[("transactional.id", id)]);
        let initialised = producer.clone();
        blocking(move || initialised.init_transactions(STEP_MAX)).await.unwrap();
        producer
    }

    /// Numbers of the first `count` messages of a topic that readers of committed data get, and then nothing more.
    async fn committed(&self, topic: &str, count: usize) -> Vec<usize> {
        let mut messages = self.read_all(topic, count).await;
        messages.sort_by_key(|message| (message.partition(), message.offset()));
        let number = |message: &OwnedMessage| std::str::from_utf8(message.key().unwrap()).unwrap().parse().unwrap();
        let mut numbers: Vec<usize> = messages.iter().map(number).collect();
        numbers.sort_unstable();
        numbers
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_are_all_or_nothing_over_a_restart() {
    let running = Running::start().await;
    running.create("in", PARTITIONS).await;
    running.create("out", PARTITIONS).await;
    let producer = running.transactional("orders").await;
    transaction(&producer, "in", 0..50, true).await;
    transaction(&producer, "in", 50..100, false).await;
    transaction(&producer, "in", 100..150, true).await;
    let expected: Vec<usize> = (0..50).chain(100..150).collect();
    assert_eq!(running.committed("in", expected.len()).await, expected);

    // Read, write and commit where one has read, in one transaction; aborted first, then committed.
    let consumer = running.consumer("movers");
    consumer.subscribe(&["in"]).unwrap();
    let read = receive(&consumer, expected.len()).await;
    let mut positions = TopicPartitionList::new();
    for (partition, offset) in
        read.iter().map(|message| (message.partition(), message.offset())).collect::<BTreeMap<_, _>>()
    {
        positions.add_partition_offset("in", partition, Offset::Offset(offset + 1)).unwrap();
    }
    for commits in [false, true] {
        producer.begin_transaction().unwrap();
        send(&producer, "out", 0..20).await;
        let (sender, positions, group) = (producer.clone(), positions.clone(), consumer.group_metadata().unwrap());
        blocking(move || {
            sender.send_offsets_to_transaction(&positions, &group, STEP_MAX).unwrap();
            let end = if commits { sender.commit_transaction(STEP_MAX) } else { sender.abort_transaction(STEP_MAX) };
            end.unwrap();
        })
        .await;
    }
    drop(consumer);
    assert_eq!(running.committed("out", 20).await, (0..20).collect::<Vec<_>>());

    // Open while the broker restarts; its producer goes on.
    producer.begin_transaction().unwrap();
    send(&producer, "in", 150..160).await;
    let running = running.restart().await;
    let ended = producer.clone();
    blocking(move || ended.commit_transaction(STEP_MAX)).await.unwrap();
    let expected: Vec<usize> = expected.into_iter().chain(150..160).collect();
    assert_eq!(running.committed("in", expected.len()).await, expected);

    // The group goes on where the committed transaction said.
    let consumer = running.consumer("movers");
    consumer.subscribe(&["in"]).unwrap();
    let mut rest: Vec<usize> = receive(&consumer, 10)
        .await
        .iter()
        .map(|message| std::str::from_utf8(message.key().unwrap()).unwrap().parse().unwrap())
        .collect();
    rest.sort_unstable();
    assert_eq!(rest, (150..160).collect::<Vec<_>>());
    drop(consumer);

    // A second producer fences the first, whose open transaction is aborted.
    producer.begin_transaction().unwrap();
    send(&producer, "in", 160..170).await;
    let second = running.transactional("orders").await;
    let fenced = producer.clone();
    assert!(blocking(move || fenced.commit_transaction(STEP_MAX)).await.is_err());
    transaction(&second, "in", 170..180, true).await;
    let expected: Vec<usize> = expected.into_iter().chain(170..180).collect();
    assert_eq!(running.committed("in", expected.len()).await, expected);
    running.broker.shutdown().await.unwrap();
}

fn check_keys(messages: &[OwnedMessage], places: &BTreeMap<(i32, i64), usize>) {
    let seen: Vec<_> = messages.iter().map(|message| (message.partition(), message.offset())).collect();
    assert_eq!(seen, places.keys().copied().collect::<Vec<_>>(), "each once, in order");
    check(messages, places);
}
