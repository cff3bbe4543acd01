//! librdkafka reads what topics' settings have made of its records: while a topic is compacted, over holes, into holes
//! and to its end; and in codecs that are the broker's.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "support/config.rs"]
mod config;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Offset, TopicPartitionList};
use thermocline::Broker;
use thermocline_config::HumanDuration;

const TOPIC: &str = "state";
const KEYS: usize = 7;
const MESSAGES: usize = 600;
/// Longest any one step may take.
const STEP_MAX: Duration = Duration::from_secs(60);

async fn start(dir: &Path) -> Broker {
    let mut config = config::config(dir);
    config.log.cleaner_backoff = HumanDuration::millis(10);
    Broker::start(config).await.unwrap()
}

fn client(broker: &Broker) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", broker.kafka_addr().to_string());
    config
}

async fn create(broker: &Broker, topic: &str, settings: &[(&str, &str)]) {
    let admin: AdminClient<DefaultClientContext> = client(broker).create().unwrap();
    let topic = NewTopic::new(topic, 1, TopicReplication::Fixed(1));
    let topic = settings.iter().fold(topic, |topic, (key, value)| topic.set(key, value));
    let results = admin.create_topics([&topic], &AdminOptions::new().operation_timeout(Some(STEP_MAX))).await.unwrap();
    assert!(results.iter().all(Result::is_ok), "{results:?}");
}

/// Messages `from..until`, `KEYS` keys in turn, by an idempotent producer. Every hundredth is a tombstone.
async fn produce(broker: &Broker, topic: &str, codec: &str, from: usize, until: usize) {
    let mut config = client(broker);
    config.set("compression.type", codec).set("enable.idempotence", "true").set("batch.num.messages", "9");
    let producer: FutureProducer = config.create().unwrap();
    let sends: Vec<_> = (from..until)
        .map(|n| {
            let (key, value) = ((n % KEYS).to_string(), format!("value {n}"));
            let record = FutureRecord::to(topic).key(&key);
            let record = if n % 100 == 99 { record } else { record.payload(&value) };
            producer.send_result(record).map_err(|(error, _)| error).unwrap()
        })
        .collect();
    for (n, sent) in (from..).zip(sends) {
        let delivery = tokio::time::timeout(STEP_MAX, sent).await.unwrap().unwrap().unwrap();
        assert_eq!(delivery.offset, i64::try_from(n).unwrap());
    }
}

/// `(offset, key, value)` from `start` to where librdkafka says that the end is reached.
async fn read(broker: &Broker, topic: &str, start: i64) -> Vec<(i64, String, Option<String>)> {
    let mut config = client(broker);
    config.set("group.id", "unused").set("enable.auto.commit", "false").set("enable.partition.eof", "true");
    config.set("check.crcs", "true").set("max.partition.fetch.bytes", "1000");
    let consumer: StreamConsumer = config.create().unwrap();
    let mut place = TopicPartitionList::new();
    place.add_partition_offset(topic, 0, Offset::Offset(start)).unwrap();
    consumer.assign(&place).unwrap();
    let mut messages = Vec::new();
    loop {
        match tokio::time::timeout(STEP_MAX, consumer.recv()).await.expect("the end is not reached") {
            Ok(message) => {
                let owned = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                messages.push((message.offset(), owned(message.key().unwrap()), message.payload().map(owned)));
            }
            Err(KafkaError::PartitionEOF(0)) => return messages,
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compacted_topic_is_read_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(dir.path()).await;
    let settings = [("cleanup.policy", "compact"), ("segment.bytes", "4096"), ("min.cleanable.dirty.ratio", "0.3")];
    create(&broker, TOPIC, &settings).await;
    let mut state = BTreeMap::new();
    for (round, codec) in ["none", "gzip", "lz4", "zstd", "none", "gzip"].into_iter().enumerate() {
        let (from, until) = (round * MESSAGES / 6, (round + 1) * MESSAGES / 6);
        produce(&broker, TOPIC, codec, from, until).await;
        for n in from..until {
            let value = (n % 100 != 99).then(|| format!("value {n}"));
            state.insert((n % KEYS).to_string(), value);
        }
        let messages = read(&broker, TOPIC, 0).await;
        assert!(messages.is_sorted_by(|a, b| a.0 < b.0), "in order, each once");
        let seen: BTreeMap<_, _> = messages.into_iter().map(|(_, key, value)| (key, value)).collect();
        assert_eq!(seen, state, "after {codec}");
    }
    let left = tokio::time::timeout(STEP_MAX, async {
        loop {
            let left = read(&broker, TOPIC, 0).await;
            if left.len() < MESSAGES / 2 {
                return left;
            }
        }
    });
    let left = left.await.expect("it is not compacted");
    // From any offset, in a hole or not, to the end.
    for start in (0..=i64::try_from(MESSAGES).unwrap()).step_by(83) {
        let messages = read(&broker, TOPIC, start).await;
        let first = messages.first().map(|(offset, ..)| *offset);
        assert!(first.is_none_or(|first| first >= start));
        assert_eq!(messages.last().map(|last| last.0), left.last().map(|last| last.0).filter(|last| *last >= start));
    }
    broker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_broker_compresses_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(dir.path()).await;
    for target in ["uncompressed", "gzip", "snappy", "lz4", "zstd"] {
        create(&broker, target, &[("compression.type", target)]).await;
        for (round, sent) in ["none", "gzip", "lz4", "zstd", "snappy"].into_iter().enumerate() {
            produce(&broker, target, sent, round * 20, round * 20 + 20).await;
        }
        let messages = read(&broker, target, 0).await;
        let expected = |n: usize| {
            let value = (n % 100 != 99).then(|| format!("value {n}"));
            (i64::try_from(n).unwrap(), (n % KEYS).to_string(), value)
        };
        assert_eq!(messages, (0..100).map(expected).collect::<Vec<_>>(), "{target}");
    }
    broker.shutdown().await.unwrap();
}
