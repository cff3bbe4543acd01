//! Fetch: sessions, topic ids and sizes.

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic, ForgottenTopic};
use kafka_protocol::messages::{DeleteTopicsRequest, DeleteTopicsResponse, FetchRequest, FetchResponse};
use uuid::Uuid;

use super::harness::{Broker, Client, batch, fetch_request, fetched};
use super::{create, name, produce};

/// Partition 0 of a topic, from an offset.
fn wanted(topic: &str, offset: i64) -> FetchTopic {
    let partition = FetchPartition::default().with_fetch_offset(offset).with_partition_max_bytes(1 << 20);
    FetchTopic::default().with_topic(name(topic)).with_partitions(vec![partition])
}

fn fetch(session: (i32, i32), topics: Vec<FetchTopic>) -> FetchRequest {
    FetchRequest::default()
        .with_session_id(session.0)
        .with_session_epoch(session.1)
        .with_min_bytes(1)
        .with_max_bytes(1 << 20)
        .with_topics(topics)
}

/// Names and sizes of what was answered.
fn told(response: &FetchResponse) -> Vec<(String, usize)> {
    assert_eq!(response.error_code, 0);
    let rows = response.responses.iter().flat_map(|topic| {
        let name = topic.topic.to_string();
        topic.partitions.iter().map(move |row| (name.clone(), row.records.as_ref().map_or(0, Bytes::len)))
    });
    rows.collect()
}

async fn ask(client: &mut Client, request: &FetchRequest) -> FetchResponse {
    client.ask(12, request).await
}

#[tokio::test]
async fn a_session_tells_what_is_new() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    for topic in ["orders", "clicks"] {
        create(&mut client, topic).await;
    }
    let opened = ask(&mut client, &fetch((0, 0), vec![wanted("orders", 0), wanted("clicks", 0)])).await;
    let id = opened.session_id;
    assert!(id != 0);
    assert_eq!(told(&opened), [("orders".to_owned(), 0), ("clicks".to_owned(), 0)]);

    let nothing = ask(&mut client, &fetch((id, 1), Vec::new())).await;
    assert_eq!((nothing.session_id, told(&nothing).len()), (id, 0));
    let sent = batch(&["a"], 1000);
    produce(&mut client, 9, "clicks", sent.clone()).await;
    let new = ask(&mut client, &fetch((id, 2), Vec::new())).await;
    assert_eq!(told(&new), [("clicks".to_owned(), sent.len())]);
    let moved = ask(&mut client, &fetch((id, 3), vec![wanted("clicks", 1)])).await;
    assert!(told(&moved).is_empty());

    let forgotten = ForgottenTopic::default().with_topic(name("clicks")).with_partitions(vec![0]);
    let request = fetch((id, 4), Vec::new()).with_forgotten_topics_data(vec![forgotten]);
    assert!(told(&ask(&mut client, &request).await).is_empty());
    produce(&mut client, 9, "clicks", sent.clone()).await;
    produce(&mut client, 9, "orders", sent.clone()).await;
    let new = ask(&mut client, &fetch((id, 5), Vec::new())).await;
    assert_eq!(told(&new), [("orders".to_owned(), sent.len())]);

    let closed = ask(&mut client, &fetch((id, -1), Vec::new())).await;
    assert_eq!((closed.error_code, closed.session_id), (0, 0));
    let gone = ask(&mut client, &fetch((id, 6), Vec::new())).await;
    assert_eq!(gone.error_code, ResponseError::FetchSessionIdNotFound.code());
    assert!(gone.responses.is_empty());
}

#[tokio::test]
async fn a_waiting_fetch_of_a_session_is_woken() {
    let broker = Broker::start().await;
    let (mut reader, mut writer) = (broker.connect().await, broker.connect().await);
    create(&mut writer, "orders").await;
    let opened = ask(&mut reader, &fetch((0, 0), vec![wanted("orders", 0)])).await;
    let asked = reader.send(12, &fetch((opened.session_id, 1), Vec::new()).with_max_wait_ms(30_000)).await;
    let sent = batch(&["a"], 1000);
    produce(&mut writer, 9, "orders", sent.clone()).await;
    let response: FetchResponse = reader.receive(12, asked).await;
    assert_eq!(told(&response), [("orders".to_owned(), sent.len())]);
}

#[tokio::test]
async fn sessions_that_do_not_go_on_are_refused() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    create(&mut client, "orders").await;
    let unknown = ask(&mut client, &fetch((5, 1), Vec::new())).await;
    assert_eq!(unknown.error_code, ResponseError::FetchSessionIdNotFound.code());
    let opened = ask(&mut client, &fetch((0, 0), vec![wanted("orders", 0)])).await;
    let late = ask(&mut client, &fetch((opened.session_id, 7), Vec::new())).await;
    assert_eq!(late.error_code, ResponseError::InvalidFetchSessionEpoch.code());
    let by_id: FetchResponse = client.ask(13, &fetch((opened.session_id, 1), Vec::new())).await;
    assert_eq!(by_id.error_code, ResponseError::FetchSessionTopicIdError.code());
    // Version 6 knows no sessions.
    let old: FetchResponse = client.ask(6, &fetch_request("orders", Uuid::nil(), 6, 0, 0)).await;
    assert_eq!(fetched(&old).0, 0);
}

#[tokio::test]
async fn without_slots_every_fetch_is_complete() {
    let broker = Broker::start_with(|kafka| kafka.fetch_sessions_max = 0).await;
    let mut client = broker.connect().await;
    create(&mut client, "orders").await;
    for _ in 0..2 {
        let response = ask(&mut client, &fetch((0, 0), vec![wanted("orders", 0)])).await;
        assert_eq!((response.session_id, told(&response).len()), (0, 1));
    }
}

#[tokio::test]
async fn a_topic_that_is_made_again_is_another() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    let first = create(&mut client, "orders").await;
    let by_id = |id: Uuid| {
        let topic = wanted("", 0).with_topic_id(id);
        topic.with_topic(Default::default())
    };
    let code = |response: &FetchResponse| response.responses[0].partitions[0].error_code;
    let opened: FetchResponse = client.ask(13, &fetch((0, 0), vec![by_id(first)])).await;
    assert_eq!((code(&opened), opened.responses[0].topic_id), (0, first));
    let request = DeleteTopicsRequest::default().with_topic_names(vec![name("orders")]);
    let _: DeleteTopicsResponse = client.ask(5, &request).await;
    let gone: FetchResponse = client.ask(13, &fetch((opened.session_id, 1), Vec::new())).await;
    assert_eq!(code(&gone), ResponseError::UnknownTopicId.code());
    let second = create(&mut client, "orders").await;
    let other: FetchResponse = client.ask(13, &fetch((opened.session_id, 2), Vec::new())).await;
    assert_eq!(code(&other), ResponseError::InconsistentTopicId.code());
    let fresh: FetchResponse = client.ask(13, &fetch((0, -1), vec![by_id(second), by_id(first)])).await;
    let codes: Vec<i16> = fresh.responses.iter().map(|topic| topic.partitions[0].error_code).collect();
    assert_eq!(codes, [0, ResponseError::UnknownTopicId.code()]);
}

#[tokio::test]
async fn sizes_are_kept_but_for_the_first_batch() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    let one = batch(&["0123456789"], 1000);
    let size = i32::try_from(one.len()).unwrap();
    for topic in ["a", "b", "c"] {
        create(&mut client, topic).await;
        for _ in 0..3 {
            produce(&mut client, 9, topic, one.clone()).await;
        }
    }
    let mut batches = async |max_bytes: i32, partition_max_bytes: i32| {
        let limited = |topic: &str| {
            let mut topic = wanted(topic, 0);
            topic.partitions[0].partition_max_bytes = partition_max_bytes;
            topic
        };
        let request = fetch((0, -1), ["a", "b", "c"].map(limited).to_vec()).with_max_bytes(max_bytes);
        told(&ask(&mut client, &request).await).iter().map(|(_, bytes)| bytes / one.len()).collect::<Vec<_>>()
    };
    assert_eq!(batches(100 * size, 100 * size).await, [3, 3, 3]);
    assert_eq!(batches(100 * size, 2 * size).await, [2, 2, 2], "within the partition's limit");
    assert_eq!(batches(100 * size, size - 1).await, [1, 0, 0], "one batch whatever the limit, and only one");
    assert_eq!(batches(4 * size, 100 * size).await, [3, 1, 0], "within the limit of the whole");
    assert_eq!(batches(5 * size - 1, 2 * size).await, [2, 2, 0]);
    assert_eq!(batches(1, 1).await, [1, 0, 0]);
    assert_eq!(batches(0, 0).await, [1, 0, 0]);
}
