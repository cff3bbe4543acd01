//! Transactions as a client sees them, frame by frame: what is refused and by which code, and what readers get.

#![allow(clippy::unwrap_used, reason = "what goes wrong here fails the test")]

#[path = "kafka_wire/harness.rs"]
#[expect(dead_code, reason = "other tests use the rest of it")]
mod harness;

use bytes::Bytes;
use harness::{Broker, Client, batch, fetch_request, produce_request};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestTopic;
use kafka_protocol::messages::txn_offset_commit_request::{
    TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic,
};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::StrBytes;
use thermocline_ingest::record::{BatchHeader, into_transactional};
use uuid::Uuid;

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}
fn name(topic: &str) -> TopicName {
    TopicName(text(topic))
}
fn id() -> TransactionalId {
    TransactionalId(text("tx"))
}

/// A producer with a transactional id.
struct Producer {
    id: i64,
    epoch: i16,
    sequence: i32,
}

async fn create(client: &mut Client, topic: &str) -> Uuid {
    let wanted = CreatableTopic::default().with_name(name(topic)).with_num_partitions(1).with_replication_factor(1);
    let request = CreateTopicsRequest::default().with_topics(vec![wanted]).with_timeout_ms(5000);
    let response: CreateTopicsResponse = client.ask(7, &request).await;
    response.topics[0].topic_id
}

async fn init(client: &mut Client, version: i16, expected: Option<(i64, i16)>) -> Result<Producer, i16> {
    let mut request =
        InitProducerIdRequest::default().with_transactional_id(Some(id())).with_transaction_timeout_ms(60_000);
    if let Some((id, epoch)) = expected {
        request = request.with_producer_id(ProducerId(id)).with_producer_epoch(epoch);
    }
    loop {
        let answer: InitProducerIdResponse = client.ask(version, &request).await;
        match answer.error_code {
            0 => return Ok(Producer { id: answer.producer_id.0, epoch: answer.producer_epoch, sequence: 0 }),
            code if code == ResponseError::ConcurrentTransactions.code() => {}
            code => return Err(code),
        }
    }
}

impl Producer {
    async fn add(&self, client: &mut Client, version: i16, partitions: &[i32]) -> Vec<i16> {
        let topic = AddPartitionsToTxnTopic::default().with_name(name("orders")).with_partitions(partitions.to_vec());
        let request = AddPartitionsToTxnRequest::default()
            .with_v3_and_below_transactional_id(id())
            .with_v3_and_below_producer_id(ProducerId(self.id))
            .with_v3_and_below_producer_epoch(self.epoch)
            .with_v3_and_below_topics(vec![topic]);
        loop {
            let answer: AddPartitionsToTxnResponse = client.ask(version, &request).await;
            let rows = &answer.results_by_topic_v3_and_below[0].results_by_partition;
            let codes: Vec<_> = rows.iter().map(|row| row.partition_error_code).collect();
            if !codes.contains(&ResponseError::ConcurrentTransactions.code()) {
                return codes;
            }
        }
    }

    fn batch(&self, values: &[&str]) -> Bytes {
        let mut batch = into_transactional(batch(values, 1000), self.id, self.epoch).to_vec();
        batch[53..57].copy_from_slice(&self.sequence.to_be_bytes());
        let crc = crc32c::crc32c(&batch[21..]);
        batch[17..21].copy_from_slice(&crc.to_be_bytes());
        batch.into()
    }

    async fn produce(&mut self, client: &mut Client, version: i16, values: &[&str]) -> (i16, i64) {
        let request = produce_request("orders", -1, self.batch(values)).with_transactional_id(Some(id()));
        let answer: ProduceResponse = client.ask(version, &request).await;
        let row = &answer.responses[0].partition_responses[0];
        if row.error_code == 0 {
            self.sequence += values.len() as i32;
        }
        (row.error_code, row.base_offset)
    }

    async fn end(&self, client: &mut Client, version: i16, committed: bool) -> i16 {
        let request = EndTxnRequest::default()
            .with_transactional_id(id())
            .with_producer_id(ProducerId(self.id))
            .with_producer_epoch(self.epoch)
            .with_committed(committed);
        loop {
            let answer: EndTxnResponse = client.ask(version, &request).await;
            if answer.error_code != ResponseError::ConcurrentTransactions.code() {
                return answer.error_code;
            }
        }
    }

    async fn commit_offset(&self, client: &mut Client, version: i16, offset: i64, generation: i32) -> i16 {
        let partition = TxnOffsetCommitRequestPartition::default().with_committed_offset(offset);
        let topic = TxnOffsetCommitRequestTopic::default().with_name(name("orders")).with_partitions(vec![partition]);
        let mut request = TxnOffsetCommitRequest::default()
            .with_transactional_id(id())
            .with_group_id(GroupId(text("readers")))
            .with_producer_id(ProducerId(self.id))
            .with_producer_epoch(self.epoch)
            .with_topics(vec![topic]);
        if generation >= 0 {
            request = request.with_generation_id(generation).with_member_id(text("m"));
        }
        let answer: TxnOffsetCommitResponse = client.ask(version, &request).await;
        answer.topics[0].partitions[0].error_code
    }

    async fn add_offsets(&self, client: &mut Client, version: i16) -> i16 {
        let request = AddOffsetsToTxnRequest::default()
            .with_transactional_id(id())
            .with_producer_id(ProducerId(self.id))
            .with_producer_epoch(self.epoch)
            .with_group_id(GroupId(text("readers")));
        loop {
            let answer: AddOffsetsToTxnResponse = client.ask(version, &request).await;
            if answer.error_code != ResponseError::ConcurrentTransactions.code() {
                return answer.error_code;
            }
        }
    }
}

/// Last stable offset, aborted transactions, and base offsets of the batches.
type Read = (i64, Vec<(i64, i64)>, Vec<i64>);

async fn read(client: &mut Client, topic: Uuid, version: i16, isolation: i8, from: i64) -> Read {
    let request = fetch_request("orders", topic, version, from, 0).with_isolation_level(isolation);
    let answer: FetchResponse = client.ask(version, &request).await;
    let partition = &answer.responses[0].partitions[0];
    assert_eq!(partition.error_code, 0);
    let aborted = partition.aborted_transactions.iter().flatten();
    let aborted = aborted.map(|one| (one.producer_id.0, one.first_offset)).collect();
    let (mut rest, mut bases) = (partition.records.clone().unwrap(), Vec::new());
    while !rest.is_empty() {
        let header = BatchHeader::read(&rest).unwrap();
        bases.push(header.base_offset.0);
        let _ = rest.split_to(header.size_bytes());
    }
    (partition.last_stable_offset, aborted, bases)
}

/// Waits until all markers are written, up to `end`.
async fn settle(client: &mut Client, topic: Uuid, end: i64) {
    while read(client, topic, 11, 1, 0).await.0 < end {}
}

async fn latest(client: &mut Client, isolation: i8) -> i64 {
    let partition = ListOffsetsPartition::default().with_timestamp(-1);
    let wanted = ListOffsetsTopic::default().with_name(name("orders")).with_partitions(vec![partition]);
    let request = ListOffsetsRequest::default().with_topics(vec![wanted]).with_isolation_level(isolation);
    let answer: ListOffsetsResponse = client.ask(5, &request).await;
    answer.topics[0].partitions[0].offset
}

async fn committed_offset(client: &mut Client, require_stable: bool) -> (i16, i64) {
    let topic = OffsetFetchRequestTopic::default().with_name(name("orders")).with_partition_indexes(vec![0]);
    let request = OffsetFetchRequest::default()
        .with_group_id(GroupId(text("readers")))
        .with_topics(Some(vec![topic]))
        .with_require_stable(require_stable);
    let answer: OffsetFetchResponse = client.ask(7, &request).await;
    let row = &answer.topics[0].partitions[0];
    (row.error_code, row.committed_offset)
}

#[tokio::test]
async fn readers_see_what_they_ask_for_in_every_version() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    let topic = create(&mut client, "orders").await;
    let mut producer = init(&mut client, 4, None).await.unwrap();
    assert_eq!(producer.add(&mut client, 0, &[0]).await, [0]);
    assert_eq!(producer.produce(&mut client, 9, &["a", "b"]).await, (0, 0));
    assert_eq!((latest(&mut client, 0).await, latest(&mut client, 1).await), (2, 0));
    for version in 4..=17 {
        assert_eq!(read(&mut client, topic, version, 1, 0).await, (0, vec![], vec![]), "version {version}");
        assert_eq!(read(&mut client, topic, version, 0, 0).await, (0, vec![], vec![0]), "version {version}");
    }
    assert_eq!(producer.end(&mut client, 3, false).await, 0);
    settle(&mut client, topic, 3).await;
    assert_eq!(producer.end(&mut client, 3, false).await, 0, "it has ended so");
    assert_eq!(producer.end(&mut client, 3, true).await, ResponseError::InvalidTxnState.code());

    assert_eq!(producer.add(&mut client, 3, &[0]).await, [0]);
    assert_eq!(producer.produce(&mut client, 9, &["c"]).await, (0, 3));
    assert_eq!(producer.end(&mut client, 0, true).await, 0);
    settle(&mut client, topic, 5).await;
    for version in 4..=17 {
        let aborted = vec![(producer.id, 0)];
        let committed = read(&mut client, topic, version, 1, 0).await;
        assert_eq!(committed, (5, aborted, vec![0, 2, 3, 4]), "version {version}");
        assert_eq!(read(&mut client, topic, version, 0, 0).await, (5, vec![], vec![0, 2, 3, 4]));
        assert_eq!(read(&mut client, topic, version, 1, 3).await, (5, vec![], vec![3, 4]), "none of it is aborted");
    }
    let broker = broker.restart().await;
    let mut client = broker.connect().await;
    assert_eq!(read(&mut client, topic, 12, 1, 1).await, (5, vec![(producer.id, 0)], vec![0, 2, 3, 4]));
    assert_eq!(producer.add(&mut client, 3, &[0]).await, [0], "its producer goes on");
    assert_eq!(producer.produce(&mut client, 11, &["d"]).await, (0, 5));
    let broker = broker.restart().await;
    let mut client = broker.connect().await;
    assert_eq!(read(&mut client, topic, 12, 1, 3).await, (5, vec![], vec![3, 4]), "it is open still");
    assert_eq!(producer.end(&mut client, 4, true).await, 0);
    settle(&mut client, topic, 7).await;
}

#[tokio::test]
async fn what_does_not_belong_to_a_transaction_is_refused() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    create(&mut client, "orders").await;
    let mut producer = init(&mut client, 4, None).await.unwrap();
    assert_eq!(producer.produce(&mut client, 9, &["a"]).await, (ResponseError::InvalidTxnState.code(), -1));
    assert_eq!(producer.produce(&mut client, 11, &["a"]).await, (ResponseError::TransactionAbortable.code(), -1));
    let nobodys = produce_request("orders", -1, producer.batch(&["a"]));
    let answer: ProduceResponse = client.ask(9, &nobodys).await;
    let code = answer.responses[0].partition_responses[0].error_code;
    assert_eq!(code, ResponseError::TransactionalIdAuthorizationFailed.code());

    let unknown = ResponseError::UnknownTopicOrPartition.code();
    assert_eq!(producer.add(&mut client, 1, &[0, 7]).await, [ResponseError::OperationNotAttempted.code(), unknown]);
    assert_eq!(producer.add(&mut client, 1, &[0]).await, [0]);
    assert_eq!(producer.produce(&mut client, 9, &["a"]).await, (0, 0));

    // A second producer comes, and the first one is fenced.
    let mut second = init(&mut client, 4, None).await.unwrap();
    assert!(second.id == producer.id && second.epoch > producer.epoch);
    assert_eq!(producer.produce(&mut client, 9, &["b"]).await, (ResponseError::InvalidProducerEpoch.code(), -1));
    for (version, code) in [
        (0, ResponseError::InvalidProducerEpoch),
        (1, ResponseError::InvalidProducerEpoch),
        (2, ResponseError::ProducerFenced),
    ] {
        assert_eq!(producer.add(&mut client, version, &[0]).await, [code.code()]);
        assert_eq!(producer.end(&mut client, version, true).await, code.code());
        assert_eq!(producer.add_offsets(&mut client, version).await, code.code());
    }
    let stale = Some((producer.id, producer.epoch));
    assert_eq!(init(&mut client, 4, stale).await.err(), Some(ResponseError::ProducerFenced.code()));
    assert_eq!(init(&mut client, 3, stale).await.err(), Some(ResponseError::InvalidProducerEpoch.code()));
    let stranger = Producer { id: producer.id + 1000, epoch: 0, sequence: 0 };
    assert_eq!(stranger.add(&mut client, 3, &[0]).await, [ResponseError::InvalidProducerIdMapping.code()]);

    assert_eq!(second.add(&mut client, 3, &[0]).await, [0]);
    assert_eq!(second.produce(&mut client, 9, &["c"]).await, (0, 2));
    let plain = produce_request("orders", -1, {
        let mut plain = second.batch(&["d"]).to_vec();
        plain[22] &= !0x10;
        let crc = crc32c::crc32c(&plain[21..]);
        plain[17..21].copy_from_slice(&crc.to_be_bytes());
        plain.into()
    });
    let answer: ProduceResponse = client.ask(9, &plain).await;
    assert_eq!(answer.responses[0].partition_responses[0].error_code, ResponseError::InvalidTxnState.code());
    assert_eq!(second.end(&mut client, 1, true).await, 0);
}

#[tokio::test]
async fn offsets_come_into_force_with_their_transaction() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    create(&mut client, "orders").await;
    let producer = init(&mut client, 4, None).await.unwrap();
    let not_added = producer.commit_offset(&mut client, 3, 5, -1).await;
    assert_eq!(not_added, ResponseError::InvalidTxnState.code());
    for (version, commit, expected) in [(0, true, 10), (3, false, 10), (4, true, 12)] {
        assert_eq!(producer.add_offsets(&mut client, version.min(4)).await, 0);
        assert_eq!(producer.commit_offset(&mut client, version, 10 + i64::from(version) / 2, -1).await, 0);
        let unstable = (ResponseError::UnstableOffsetCommit.code(), -1);
        assert_eq!(committed_offset(&mut client, true).await, unstable);
        let before = if version == 0 { -1 } else { 10 };
        assert_eq!(committed_offset(&mut client, false).await, (0, before));
        assert_eq!(producer.end(&mut client, 1, commit).await, 0);
        while committed_offset(&mut client, true).await == unstable {}
        assert_eq!(committed_offset(&mut client, true).await, (0, expected), "version {version}");
    }
    assert_eq!(producer.add_offsets(&mut client, 3).await, 0);
    let code = producer.commit_offset(&mut client, 3, 99, 4).await;
    assert_eq!(code, ResponseError::UnknownMemberId.code(), "a member that the group does not know");
    assert_eq!(producer.commit_offset(&mut client, 3, 20, -1).await, 0);
    let broker = broker.restart().await;
    let mut client = broker.connect().await;
    assert_eq!(committed_offset(&mut client, true).await.0, ResponseError::UnstableOffsetCommit.code());
    assert_eq!(producer.end(&mut client, 1, true).await, 0);
    while committed_offset(&mut client, true).await != (0, 20) {}
}

#[tokio::test]
async fn transactions_and_producers_are_described() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    let topic = create(&mut client, "orders").await;
    let mut producer = init(&mut client, 4, None).await.unwrap();
    assert_eq!(producer.add(&mut client, 3, &[0]).await, [0]);
    assert_eq!(producer.produce(&mut client, 9, &["a", "b"]).await, (0, 0));

    let coordinator: FindCoordinatorResponse =
        client.ask(2, &FindCoordinatorRequest::default().with_key(text("tx")).with_key_type(1)).await;
    assert_eq!((coordinator.error_code, coordinator.node_id.0), (0, 1));

    let ids = vec![id(), TransactionalId(text("unknown"))];
    let request = DescribeTransactionsRequest::default().with_transactional_ids(ids);
    let described: DescribeTransactionsResponse = client.ask(0, &request).await;
    let [known, unknown] = described.transaction_states.as_slice() else { panic!("two were asked for") };
    assert_eq!((known.transaction_state.as_str(), known.transaction_timeout_ms), ("Ongoing", 60_000));
    assert_eq!((known.producer_id.0, known.producer_epoch), (producer.id, producer.epoch));
    assert!(known.transaction_start_time_ms > 0);
    assert_eq!((known.topics[0].topic.as_str(), &known.topics[0].partitions), ("orders", &vec![0]));
    assert_eq!(unknown.error_code, ResponseError::TransactionalIdNotFound.code());

    let list = |states: &[&str], duration| {
        ListTransactionsRequest::default()
            .with_state_filters(states.iter().map(|state| text(state)).collect())
            .with_duration_filter(duration)
    };
    for (request, count) in [
        (list(&[], -1), 1),
        (list(&["Ongoing"], -1), 1),
        (list(&["Empty", "Odd"], -1), 0),
        (list(&[], 3_600_000), 0),
        (list(&[], -1).with_producer_id_filters(vec![ProducerId(producer.id + 1)]), 0),
        (list(&[], -1).with_transactional_id_pattern(Some(text("t."))), 1),
        (list(&[], -1).with_transactional_id_pattern(Some(text("t"))), 0),
    ] {
        let listed: ListTransactionsResponse = client.ask(2, &request).await;
        assert_eq!(listed.transaction_states.len(), count, "{request:?}");
        let odd = request.state_filters.iter().filter(|state| state.as_str() == "Odd").count();
        assert_eq!(listed.unknown_state_filters.len(), odd);
    }
    let request = list(&[], -1).with_transactional_id_pattern(Some(text("(")));
    let listed: ListTransactionsResponse = client.ask(2, &request).await;
    assert_eq!(listed.error_code, ResponseError::InvalidRegularExpression.code());

    let wanted = describe_producers_request::TopicRequest::default()
        .with_name(name("orders"))
        .with_partition_indexes(vec![0, 3]);
    let request = DescribeProducersRequest::default().with_topics(vec![wanted]);
    let described: DescribeProducersResponse = client.ask(0, &request).await;
    let [there, missing] = described.topics[0].partitions.as_slice() else { panic!("two were asked for") };
    let active = &there.active_producers[0];
    assert_eq!((active.producer_id.0, active.last_sequence, active.current_txn_start_offset), (producer.id, 1, 0));
    assert_eq!(missing.error_code, ResponseError::UnknownTopicOrPartition.code());

    assert_eq!(producer.end(&mut client, 3, true).await, 0);
    settle(&mut client, topic, 3).await;
    let described: DescribeProducersResponse = client.ask(0, &request).await;
    assert_eq!(described.topics[0].partitions[0].active_producers[0].current_txn_start_offset, -1);
}
