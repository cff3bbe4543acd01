//! Records that go from their log files to the socket: the same bytes as ever, whatever happens to files and clients.

use bytes::Bytes;
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::StrBytes;

use super::harness::{Broker, Client, batch, fetched, produce_request};
use super::{delete_records, name};

/// More than the socket buffers of both ends hold.
const LARGE: usize = 24 << 20;

async fn create(client: &mut Client, topic: &str, segment_bytes: usize) {
    let setting = |key: &'static str, value: &str| {
        let value = StrBytes::from_string(value.to_owned());
        CreatableTopicConfig::default().with_name(StrBytes::from_static_str(key)).with_value(Some(value))
    };
    let wanted = CreatableTopic::default()
        .with_name(name(topic))
        .with_num_partitions(1)
        .with_replication_factor(1)
        .with_configs(vec![setting("segment.bytes", &segment_bytes.to_string())]);
    let request = CreateTopicsRequest::default().with_topics(vec![wanted]).with_timeout_ms(5000);
    let response: CreateTopicsResponse = client.ask(7, &request).await;
    assert_eq!(response.topics[0].error_code, 0, "{:?}", response.topics[0].error_message);
}

/// A batch of one record of so many bytes, none like another.
fn sized(bytes: usize, seed: usize) -> Bytes {
    let value: String = (0..bytes).map(|at| char::from(b'a' + ((at / 7 + at % 11 + seed) % 26) as u8)).collect();
    batch(&[&value], 1000)
}

/// Produces batches of one record each and returns their bytes as the log has them.
async fn fill(client: &mut Client, topic: &str, batches: impl IntoIterator<Item = Bytes>) -> Vec<u8> {
    let mut stored = Vec::new();
    for (offset, batch) in (0_i64..).zip(batches) {
        let answer: ProduceResponse = client.ask(9, &produce_request(topic, -1, batch.clone())).await;
        let row = &answer.responses[0].partition_responses[0];
        assert_eq!((row.error_code, row.base_offset), (0, offset));
        let at = stored.len();
        stored.extend_from_slice(&batch);
        stored[at..at + 8].copy_from_slice(&offset.to_be_bytes());
        stored[at + 12..at + 16].copy_from_slice(&0_i32.to_be_bytes());
    }
    stored
}

fn fetch_all(topics: &[&str]) -> FetchRequest {
    let wanted = |topic: &&str| {
        let partition = FetchPartition::default().with_fetch_offset(0).with_partition_max_bytes(i32::MAX);
        FetchTopic::default().with_topic(name(topic)).with_partitions(vec![partition])
    };
    FetchRequest::default()
        .with_max_wait_ms(0)
        .with_max_bytes(i32::MAX)
        .with_topics(topics.iter().map(wanted).collect())
}

#[tokio::test]
async fn files_and_memory_make_one_answer() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    let mut expected = Vec::new();
    // Several segments; a few bytes; large and small segments in turn.
    let sizes = [vec![200_000; 8], vec![10; 3], vec![300_000, 900_000, 50, 1_000_000, 20, 400_000]];
    for (topic, sizes) in ["many", "few", "mixed"].iter().zip(&sizes) {
        create(&mut client, topic, 1 << 20).await;
        let batches = sizes.iter().enumerate().map(|(seed, bytes)| sized(*bytes, seed));
        expected.push(fill(&mut client, topic, batches).await);
    }
    assert!(broker.segments("many").len() > 1 && broker.segments("mixed").len() > 1);
    for version in [4, 11, 12] {
        let before = broker.metrics.fetched_uncopied_bytes.get();
        let answer: FetchResponse = client.ask(version, &fetch_all(&["many", "few", "mixed"])).await;
        let records: Vec<_> =
            answer.responses.iter().map(|topic| topic.partitions[0].records.clone().unwrap()).collect();
        assert!(records == expected, "version {version}");
        let uncopied = broker.metrics.fetched_uncopied_bytes.get() - before;
        let all = expected.iter().map(Vec::len).sum::<usize>() as u64;
        assert!(if cfg!(target_os = "linux") { (all / 2..all).contains(&uncopied) } else { uncopied == 0 });
    }
}

#[tokio::test]
async fn an_answer_under_way_outlives_what_it_is_made_of() {
    let broker = Broker::start().await;
    let (mut slow, mut other) = (broker.connect().await, broker.connect().await);
    for (topic, deletes_topic) in [("trimmed", false), ("deleted", true)] {
        create(&mut other, topic, 8 << 20).await;
        let expected = fill(&mut other, topic, (0..LARGE / 1_000_000).map(|seed| sized(1_000_000, seed))).await;
        slow.send(11, &fetch_all(&[topic])).await;
        let length = slow.receive_length().await;
        assert!(length > expected.len());
        // The rest waits for a client that reads; nobody waits for it.
        let before = broker.segments(topic).len();
        if deletes_topic {
            let request = DeleteTopicsRequest::default().with_topic_names(vec![name(topic)]);
            let response: DeleteTopicsResponse = other.ask(5, &request).await;
            assert_eq!(response.responses[0].error_code, 0);
            assert_eq!(broker.segments(topic).len(), 0);
        } else {
            let (error, _) = delete_records(&mut other, 2, topic, 0, -1).await;
            assert_eq!(error, 0);
            broker.maintain().await;
            assert!(before > 2 && broker.segments(topic).len() == 1);
        }
        let answer: FetchResponse = slow.receive_rest(11, length).await;
        let (error, records) = fetched(&answer);
        assert_eq!(error, 0);
        assert!(records == expected, "{topic}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_an_answer_unread_costs_others_nothing() {
    let broker = Broker::start().await;
    let mut other = broker.connect().await;
    create(&mut other, "orders", 64 << 20).await;
    let expected = fill(&mut other, "orders", (0..LARGE / 1_000_000).map(|seed| sized(1_000_000, seed))).await;
    for _ in 0..3 {
        let mut leaves = broker.connect().await;
        leaves.send(11, &fetch_all(&["orders"])).await;
        leaves.receive_length().await;
    }
    let answer: FetchResponse = other.ask(11, &fetch_all(&["orders"])).await;
    assert!(fetched(&answer).1 == expected);
    broker.stop().await;
}
