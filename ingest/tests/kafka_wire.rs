//! The Kafka port as a client sees it: a real hot log behind a real socket, spoken to with the client half of
//! `kafka-protocol`.

#[path = "kafka_wire/admin.rs"]
mod admin;
#[path = "kafka_wire/connection.rs"]
mod connection;
#[path = "kafka_wire/file_ranges.rs"]
mod file_ranges;
#[path = "kafka_wire/groups.rs"]
mod groups;
#[path = "kafka_wire/harness.rs"]
mod harness;
#[path = "kafka_wire/idempotence.rs"]
mod idempotence;
#[path = "kafka_wire/sessions.rs"]
mod sessions;
#[path = "kafka_wire/topic_settings.rs"]
mod topic_settings;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use harness::{Broker, Client, PANICS, batch, fetch_request, fetched, produce_request};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::*;
use kafka_protocol::protocol::StrBytes;

fn name(topic: &str) -> TopicName {
    TopicName(StrBytes::from_string(topic.to_owned()))
}

async fn create(client: &mut Client, topic: &str) -> uuid::Uuid {
    let wanted = CreatableTopic::default().with_name(name(topic)).with_num_partitions(1).with_replication_factor(1);
    let request = CreateTopicsRequest::default().with_topics(vec![wanted]).with_timeout_ms(5000);
    let response: CreateTopicsResponse = client.ask(7, &request).await;
    assert_eq!(response.topics[0].error_code, 0, "{:?}", response.topics[0].error_message);
    response.topics[0].topic_id
}

async fn produce(client: &mut Client, version: i16, topic: &str, batch: Bytes) -> (i16, i64) {
    let response: ProduceResponse = client.ask(version, &produce_request(topic, -1, batch)).await;
    let row = &response.responses[0].partition_responses[0];
    (row.error_code, row.base_offset)
}

async fn list_offset(client: &mut Client, topic: &str, timestamp: i64) -> (i16, i64, i64) {
    let partition = ListOffsetsPartition::default().with_timestamp(timestamp);
    let wanted = ListOffsetsTopic::default().with_name(name(topic)).with_partitions(vec![partition]);
    let request = ListOffsetsRequest::default().with_topics(vec![wanted]);
    let response: ListOffsetsResponse = client.ask(9, &request).await;
    let row = &response.topics[0].partitions[0];
    (row.error_code, row.offset, row.timestamp)
}

#[tokio::test]
async fn records_come_back_in_every_version() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    let id = create(&mut client, "orders").await;
    let mut sent = Vec::new();
    for (offset, version) in (3..=11).enumerate() {
        let batch = batch(&["a"], 1000);
        assert_eq!(produce(&mut client, version, "orders", batch.clone()).await, (0, offset as i64));
        sent.push(batch);
    }
    let bytes: usize = sent.iter().map(Bytes::len).sum();
    for version in 4..=17 {
        let response: FetchResponse = client.ask(version, &fetch_request("orders", id, version, 0, 0)).await;
        let (error, records) = fetched(&response);
        assert_eq!((error, records.len()), (0, bytes), "version {version}");
        // All but base offset and leader epoch, which lie outside the checksum, is as it was sent.
        assert_eq!(records[16..sent[0].len()], sent[0][16..]);
    }
}

#[tokio::test]
async fn a_position_inside_a_batch_gets_the_whole_batch() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    let id = create(&mut client, "orders").await;
    let batch = batch(&["a", "b", "c"], 1000);
    assert_eq!(produce(&mut client, 9, "orders", batch.clone()).await, (0, 0));
    let response: FetchResponse = client.ask(11, &fetch_request("orders", id, 11, 2, 0)).await;
    assert_eq!(fetched(&response).1.len(), batch.len());
    let response: FetchResponse = client.ask(11, &fetch_request("orders", id, 11, 3, 0)).await;
    assert_eq!(fetched(&response), (0, Bytes::new()));
    for outside in [-1, 4] {
        let response: FetchResponse = client.ask(11, &fetch_request("orders", id, 11, outside, 0)).await;
        assert_eq!(fetched(&response).0, ResponseError::OffsetOutOfRange.code());
    }
}

#[tokio::test]
async fn a_waiting_fetch_is_woken_by_a_produce() {
    let broker = Broker::start().await;
    let (mut reader, mut writer) = (broker.connect().await, broker.connect().await);
    let id = create(&mut writer, "orders").await;
    let asked = reader.send(11, &fetch_request("orders", id, 11, 0, 30_000)).await;
    let batch = batch(&["a"], 1000);
    assert_eq!(produce(&mut writer, 9, "orders", batch.clone()).await, (0, 0));
    let response: FetchResponse = reader.receive(11, asked).await;
    assert_eq!(fetched(&response).1.len(), batch.len());
}

#[tokio::test]
async fn a_waiting_fetch_collects_until_it_has_enough() {
    let broker = Broker::start().await;
    let (mut reader, mut writer) = (broker.connect().await, broker.connect().await);
    let id = create(&mut writer, "orders").await;
    let batch = batch(&["a"], 1000);
    let request = fetch_request("orders", id, 11, 0, 30_000).with_min_bytes(batch.len() as i32 * 5 / 2);
    let asked = reader.send(11, &request).await;
    for offset in 0..3 {
        assert_eq!(produce(&mut writer, 9, "orders", batch.clone()).await, (0, offset));
    }
    let response: FetchResponse = reader.receive(11, asked).await;
    let (error, records) = fetched(&response);
    assert_eq!((error, records.len()), (0, 3 * batch.len()));
    // Each batch once: base offsets 0, 1, 2.
    let bases: Vec<u8> = records.chunks(batch.len()).map(|batch| batch[7]).collect();
    assert_eq!(bases, [0, 1, 2]);
}

#[tokio::test]
async fn a_panic_costs_its_connection_alone() {
    let broker = Broker::start().await;
    let (mut unlucky, mut bystander) = (broker.connect().await, broker.connect().await);
    create(&mut unlucky, PANICS).await;
    let wanted = ListOffsetsTopic::default()
        .with_name(name(PANICS))
        .with_partitions(vec![ListOffsetsPartition::default().with_timestamp(-3)]);
    unlucky.send(9, &ListOffsetsRequest::default().with_topics(vec![wanted])).await;
    unlucky.expect_close().await;
    assert_eq!(list_offset(&mut bystander, PANICS, -1).await, (0, 0, -1));
}

#[tokio::test]
async fn a_waiting_fetch_is_woken_by_the_deletion_of_its_topic() {
    let broker = Broker::start().await;
    let (mut reader, mut writer) = (broker.connect().await, broker.connect().await);
    let id = create(&mut writer, "orders").await;
    let asked = reader.send(11, &fetch_request("orders", id, 11, 0, 30_000)).await;
    let request = DeleteTopicsRequest::default().with_topic_names(vec![name("orders")]);
    let response: DeleteTopicsResponse = writer.ask(5, &request).await;
    assert_eq!(response.responses[0].error_code, 0);
    let response: FetchResponse = reader.receive(11, asked).await;
    assert_eq!(fetched(&response).0, ResponseError::UnknownTopicOrPartition.code());
}

#[tokio::test]
async fn offsets_are_listed_by_name_and_by_time() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    create(&mut client, "orders").await;
    assert_eq!(list_offset(&mut client, "orders", 0).await, (0, -1, -1));
    produce(&mut client, 9, "orders", batch(&["a", "b"], 1000)).await;
    produce(&mut client, 9, "orders", batch(&["c"], 2000)).await;
    assert_eq!(list_offset(&mut client, "orders", -2).await, (0, 0, -1));
    assert_eq!(list_offset(&mut client, "orders", -1).await, (0, 3, -1));
    assert_eq!(list_offset(&mut client, "orders", -4).await, (0, 0, -1));
    assert_eq!(list_offset(&mut client, "orders", -5).await, (0, -1, -1));
    assert_eq!(list_offset(&mut client, "orders", 1500).await, (0, 2, 2000));
    assert_eq!(list_offset(&mut client, "orders", -3).await, (0, 2, 2000));
    assert_eq!(list_offset(&mut client, "orders", 3000).await, (0, -1, -1));
    let unknown = ResponseError::UnknownTopicOrPartition.code();
    assert_eq!(list_offset(&mut client, "clicks", -1).await.0, unknown);
}

#[tokio::test]
async fn topics_come_and_go() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    let first = create(&mut client, "orders").await;
    let again = CreatableTopic::default().with_name(name("orders")).with_num_partitions(1).with_replication_factor(1);
    let request = CreateTopicsRequest::default().with_topics(vec![again]);
    let response: CreateTopicsResponse = client.ask(4, &request).await;
    assert_eq!(response.topics[0].error_code, ResponseError::TopicAlreadyExists.code());
    let request = DeleteTopicsRequest::default().with_topic_names(vec![name("orders"), name("clicks")]);
    let response: DeleteTopicsResponse = client.ask(5, &request).await;
    let codes: Vec<i16> = response.responses.iter().map(|row| row.error_code).collect();
    assert_eq!(codes, [0, ResponseError::UnknownTopicOrPartition.code()]);
    assert_ne!(create(&mut client, "orders").await, first);
}

#[tokio::test]
async fn metadata_creates_what_is_asked_for_and_legal() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    let asked = ["fresh", "not/legal"].map(|topic| MetadataRequestTopic::default().with_name(Some(name(topic))));
    let request = MetadataRequest::default().with_topics(Some(asked.to_vec())).with_allow_auto_topic_creation(true);
    let response: MetadataResponse = client.ask(9, &request).await;
    assert_eq!(response.brokers[0].node_id, response.controller_id);
    assert_eq!((response.topics[0].error_code, response.topics[0].partitions.len()), (0, 1));
    assert_eq!(response.topics[1].error_code, ResponseError::InvalidTopicException.code());
    let request = MetadataRequest::default().with_topics(Some(Vec::new()));
    let all: MetadataResponse = client.ask(0, &request).await;
    assert!(all.topics.iter().any(|topic| topic.name == Some(name("fresh"))));
}

#[tokio::test]
async fn pipelined_produces_are_acked_in_order() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    create(&mut client, "orders").await;
    let mut asked = Vec::new();
    for _ in 0..50 {
        asked.push(client.send(9, &produce_request("orders", 1, batch(&["a", "b"], 1000))).await);
    }
    for (at, asked) in asked.into_iter().enumerate() {
        let response: ProduceResponse = client.receive(9, asked).await;
        let row = &response.responses[0].partition_responses[0];
        assert_eq!((row.error_code, row.base_offset), (0, 2 * at as i64));
    }
}

#[tokio::test]
async fn without_acks_there_is_no_answer() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    create(&mut client, "orders").await;
    client.send(9, &produce_request("orders", 0, batch(&["a"], 1000))).await;
    // The next answer is the one to the next request.
    assert_eq!(produce(&mut client, 9, "orders", batch(&["b"], 1000)).await, (0, 1));
    client.send(9, &produce_request("clicks", 0, batch(&["a"], 1000))).await;
    client.expect_close().await;
}

#[tokio::test]
async fn an_unknown_version_of_api_versions_is_answered() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    client.send_raw(&[0, 0, 0, 8, 0, 18, 0, 99, 0, 0, 0, 42]).await;
    let response: ApiVersionsResponse = client.receive(0, 42).await;
    assert_eq!(response.error_code, ResponseError::UnsupportedVersion.code());
    let own = response.api_keys.iter().find(|api| api.api_key == ApiKey::ApiVersions as i16);
    assert!(own.is_some_and(|own| own.max_version >= 3));
    let response: ApiVersionsResponse = client.ask(2, &ApiVersionsRequest::default()).await;
    assert_eq!(response.error_code, 0);
}

#[tokio::test]
async fn garbage_closes_its_connection_and_no_other() {
    let broker = Broker::start().await;
    let mut bystander = broker.connect().await;
    let garbage: [&[u8]; 8] = [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        // Lengths: negative, too short for a header, beyond every limit.
        &[0xff, 0xff, 0xff, 0xff],
        &[0, 0, 0, 3, 0, 0, 0],
        &[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 9, 0, 0, 0, 1],
        // 50 MiB, legal for Produce alone.
        &[0x03, 0x20, 0, 0, 0, 3, 0, 9, 0, 0, 0, 1],
        // An unknown key, a version below the served ones.
        &[0, 0, 0, 10, 0x03, 0xe7, 0, 0, 0, 0, 0, 1, 0xff, 0xff],
        &[0, 0, 0, 10, 0, 0, 0, 2, 0, 0, 0, 1, 0xff, 0xff],
        // Metadata 1 with two billion topics.
        &[0, 0, 0, 14, 0, 3, 0, 1, 0, 0, 0, 1, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff],
    ];
    for bytes in garbage {
        let mut client = broker.connect().await;
        client.send_raw(bytes).await;
        client.expect_close().await;
    }
    let response: ApiVersionsResponse = bystander.ask(2, &ApiVersionsRequest::default()).await;
    assert_eq!(response.error_code, 0);
}

#[tokio::test]
async fn batches_that_are_none_are_refused_and_the_connection_stays() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    create(&mut client, "orders").await;
    let mut broken = batch(&["a"], 1000).to_vec();
    if let Some(last) = broken.last_mut() {
        *last ^= 1;
    }
    let (error, _) = produce(&mut client, 9, "orders", broken.into()).await;
    assert_eq!(error, ResponseError::CorruptMessage.code());
    let (error, _) = produce(&mut client, 9, "orders", Bytes::from_static(b"no batch")).await;
    assert_eq!(error, ResponseError::InvalidRecord.code());
    let (error, _) = produce(&mut client, 9, "clicks", batch(&["a"], 1000)).await;
    assert_eq!(error, ResponseError::UnknownTopicOrPartition.code());
    let response: ProduceResponse = client.ask(9, &produce_request("orders", 7, batch(&["a"], 1000))).await;
    let row = &response.responses[0].partition_responses[0];
    assert_eq!(row.error_code, ResponseError::InvalidRequiredAcks.code());
    assert_eq!(produce(&mut client, 9, "orders", batch(&["a"], 1000)).await, (0, 0));
}

/// Error code and low watermark.
async fn delete_records(client: &mut Client, version: i16, topic: &str, partition: i32, offset: i64) -> (i16, i64) {
    let partition = DeleteRecordsPartition::default().with_partition_index(partition).with_offset(offset);
    let wanted = DeleteRecordsTopic::default().with_name(name(topic)).with_partitions(vec![partition]);
    let request = DeleteRecordsRequest::default().with_topics(vec![wanted]).with_timeout_ms(5000);
    let response: DeleteRecordsResponse = client.ask(version, &request).await;
    let row = &response.topics[0].partitions[0];
    (row.error_code, row.low_watermark)
}

#[tokio::test]
async fn deleted_records_are_gone_at_once_and_stay_gone() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    let id = create(&mut client, "orders").await;
    for _ in 0..3 {
        produce(&mut client, 9, "orders", batch(&["a", "b", "c"], 1000)).await;
    }
    assert_eq!(delete_records(&mut client, 0, "orders", 0, 4).await, (0, 4));
    assert_eq!(delete_records(&mut client, 1, "orders", 0, 2).await, (0, 4), "what is gone does not come back");
    assert_eq!(list_offset(&mut client, "orders", -2).await, (0, 4, -1));
    assert_eq!(list_offset(&mut client, "orders", 0).await, (0, 4, 1000), "by time too");
    let below: FetchResponse = client.ask(11, &fetch_request("orders", id, 11, 3, 0)).await;
    assert_eq!(fetched(&below).0, ResponseError::OffsetOutOfRange.code());
    let answer: FetchResponse = client.ask(11, &fetch_request("orders", id, 11, 4, 0)).await;
    assert_eq!(answer.responses[0].partitions[0].log_start_offset, 4);
    assert_eq!(delete_records(&mut client, 2, "orders", 0, -1).await, (0, 9), "up to the high watermark");
    assert_eq!(list_offset(&mut client, "orders", -2).await, (0, 9, -1));

    let broker = broker.restart().await;
    let mut client = broker.connect().await;
    assert_eq!(list_offset(&mut client, "orders", -2).await, (0, 9, -1));
    assert_eq!(produce(&mut client, 9, "orders", batch(&["d"], 1000)).await, (0, 9));
}

#[tokio::test]
async fn records_that_cannot_be_deleted_are_refused_one_by_one() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    create(&mut client, "orders").await;
    produce(&mut client, 9, "orders", batch(&["a"], 1000)).await;
    for (topic, partition, offset, error) in [
        ("orders", 0, 2, ResponseError::OffsetOutOfRange),
        ("orders", 0, -2, ResponseError::OffsetOutOfRange),
        ("orders", 1, 0, ResponseError::UnknownTopicOrPartition),
        ("clicks", 0, 0, ResponseError::UnknownTopicOrPartition),
        ("__consumer_offsets", 0, -1, ResponseError::InvalidTopicException),
    ] {
        let answer = delete_records(&mut client, 2, topic, partition, offset).await;
        assert_eq!(answer, (error.code(), -1), "{topic} {partition} {offset}");
    }
    assert_eq!(list_offset(&mut client, "orders", -2).await, (0, 0, -1));
}

#[tokio::test]
async fn a_full_disk_is_told_by_a_code_that_producers_retry() {
    let free = Arc::new(AtomicU64::new(u64::MAX));
    let broker = Broker::start_with_free_space(free.clone()).await;
    let mut client = broker.connect().await;
    let id = create(&mut client, "orders").await;
    assert_eq!(produce(&mut client, 9, "orders", batch(&["a"], 1000)).await, (0, 0));
    free.store(0, Ordering::Relaxed);
    // The space is looked at once a second, after a write.
    let mut taken = 1;
    let refused = loop {
        let (error, offset) = produce(&mut client, 9, "orders", batch(&["b"], 1000)).await;
        if error != 0 {
            break error;
        }
        assert_eq!(offset, taken);
        taken += 1;
    };
    assert_eq!(refused, ResponseError::KafkaStorageError.code());
    assert!(ResponseError::KafkaStorageError.is_retriable());
    let response: FetchResponse = client.ask(11, &fetch_request("orders", id, 11, 0, 0)).await;
    assert_eq!(fetched(&response).0, 0, "what is there is read");
    free.store(u64::MAX, Ordering::Relaxed);
    while produce(&mut client, 9, "orders", batch(&["c"], 1000)).await != (0, taken) {}
}

#[tokio::test]
async fn producer_ids_are_unique() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    let request = InitProducerIdRequest::default().with_transactional_id(None);
    let first: InitProducerIdResponse = client.ask(4, &request).await;
    let second: InitProducerIdResponse = client.ask(4, &request).await;
    assert_eq!((first.error_code, first.producer_epoch), (0, 0));
    assert_ne!(first.producer_id, second.producer_id);
}

#[tokio::test]
async fn a_shutdown_answers_what_is_under_way() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    let id = create(&mut client, "orders").await;
    let asked = client.send(11, &fetch_request("orders", id, 11, 0, 30_000)).await;
    // An answer on a second connection shows that the broker is past the first one's bytes or will read them never.
    let mut other = broker.connect().await;
    let _: ApiVersionsResponse = other.ask(2, &ApiVersionsRequest::default()).await;
    broker.stop().await;
    if let Some(response) = client.try_receive::<FetchResponse>(11, asked).await {
        assert_eq!(fetched(&response), (0, Bytes::new()));
    }
    other.expect_close().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed() {
    let broker = Broker::start_with(|kafka| kafka.max_connections = 1).await;
    let mut first = broker.connect().await;
    let _: ApiVersionsResponse = first.ask(2, &ApiVersionsRequest::default()).await;
    broker.connect().await.expect_close().await;
    let _: ApiVersionsResponse = first.ask(2, &ApiVersionsRequest::default()).await;
}
