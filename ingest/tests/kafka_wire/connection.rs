//! What every client relies on whatever it asks: order, one answer per request, connections that end.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::StrBytes;
use thermocline_config::HumanDuration;

use super::harness::{Broker, batch, fetch_request, fetched, produce_request};
use super::{create, name, produce};

#[tokio::test]
async fn pipelined_requests_of_every_kind_are_answered_in_order() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    let id = create(&mut client, "orders").await;
    let end = ListOffsetsTopic::default()
        .with_name(name("orders"))
        .with_partitions(vec![ListOffsetsPartition::default().with_timestamp(-1)]);
    let end = ListOffsetsRequest::default().with_topics(vec![end]);
    let mut asked = Vec::new();
    for round in 0..8_i64 {
        let produce = client.send(9, &produce_request("orders", -1, batch(&["a"], 1000))).await;
        let metadata = client.send(12, &MetadataRequest::default().with_topics(Some(Vec::new()))).await;
        let fetch = client.send(11, &fetch_request("orders", id, 11, round, 0)).await;
        client.send(9, &produce_request("orders", 0, batch(&["unacked"], 1000))).await;
        let list = client.send(9, &end).await;
        asked.push((round, produce, metadata, fetch, list));
    }
    for (round, produce, metadata, fetch, list) in asked {
        let produced: ProduceResponse = client.receive(9, produce).await;
        assert_eq!(produced.responses[0].partition_responses[0].base_offset, 2 * round);
        let _: MetadataResponse = client.receive(12, metadata).await;
        let answer: FetchResponse = client.receive(11, fetch).await;
        assert_eq!(fetched(&answer).0, 0);
        let end: ListOffsetsResponse = client.receive(9, list).await;
        // What was acknowledged before is counted; what was not may be on its way to the disk.
        assert!((2 * round + 1..=2 * round + 2).contains(&end.topics[0].partitions[0].offset));
    }
}

#[tokio::test]
async fn a_fetch_that_waits_holds_up_its_own_connection_only() {
    let broker = Broker::start().await;
    let (mut reader, mut writer) = (broker.connect().await, broker.connect().await);
    let id = create(&mut writer, "orders").await;
    let fetch = reader.send(11, &fetch_request("orders", id, 11, 0, 30_000)).await;
    let behind = reader.send(12, &MetadataRequest::default().with_topics(Some(Vec::new()))).await;
    assert_eq!(produce(&mut writer, 9, "orders", batch(&["a"], 1000)).await, (0, 0));
    let answer: FetchResponse = reader.receive(11, fetch).await;
    assert!(!fetched(&answer).1.is_empty());
    let _: MetadataResponse = reader.receive(12, behind).await;
}

#[tokio::test]
async fn a_silent_connection_is_closed() {
    let broker = Broker::start_with(|kafka| kafka.connections_max_idle = HumanDuration::millis(20)).await;
    broker.connect().await.expect_close().await;
}

#[tokio::test]
async fn every_advertised_api_is_there_and_every_other_closes() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    let response: ApiVersionsResponse = client.ask(0, &ApiVersionsRequest::default()).await;
    let advertised: Vec<i16> = response.api_keys.iter().map(|api| api.api_key).collect();
    // Produce 0 is told and not served, for old clients' sake.
    assert!(response.api_keys.iter().any(|api| api.api_key == 0 && api.min_version == 0));
    for absent in [4, 27, 34, 45, 49, 51, 64, 71, 72, 83].into_iter().filter(|key| !advertised.contains(key)) {
        let mut client = broker.connect().await;
        let [high, low] = i16::to_be_bytes(absent);
        client.send_raw(&[0, 0, 0, 10, high, low, 0, 0, 0, 0, 0, 1, 0xff, 0xff]).await;
        client.expect_close().await;
    }
    for forbidden in [27, 34, 45, 49, 51, 68, 76] {
        assert!(!advertised.contains(&forbidden), "{forbidden}");
    }
}

#[tokio::test]
async fn a_client_that_names_itself_badly_is_told() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    let named = |name: &'static str| {
        ApiVersionsRequest::default()
            .with_client_software_name(StrBytes::from_static_str(name))
            .with_client_software_version(StrBytes::from_static_str("1.0"))
    };
    for (name, error) in [("librdkafka", 0), ("no good", ResponseError::InvalidRequest.code())] {
        let response: ApiVersionsResponse = client.ask(3, &named(name)).await;
        assert_eq!(response.error_code, error, "{name}");
    }
}
