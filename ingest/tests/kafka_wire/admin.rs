//! Administration: topics and their partitions, settings, and what one broker has to say about clusters.

use std::collections::BTreeMap;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_partitions_request::{CreatePartitionsAssignment, CreatePartitionsTopic};
use kafka_protocol::messages::create_topics_request::{
    CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig,
};
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_log_dirs_request::DescribableLogDirTopic;
use kafka_protocol::messages::describe_topic_partitions_request::{Cursor, TopicRequest};
use kafka_protocol::messages::describe_user_scram_credentials_request::UserName;
use kafka_protocol::messages::elect_leaders_request::TopicPartitions;
use kafka_protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::*;
use kafka_protocol::protocol::StrBytes;

use super::harness::{Broker, Client, batch, produce_request};
use super::{create, name, produce};

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn growth(topic: &str, count: i32) -> CreatePartitionsTopic {
    CreatePartitionsTopic::default().with_name(name(topic)).with_count(count).with_assignments(None)
}

async fn grow(client: &mut Client, topics: Vec<CreatePartitionsTopic>, validate_only: bool) -> Vec<i16> {
    let request = CreatePartitionsRequest::default().with_topics(topics).with_validate_only(validate_only);
    let response: CreatePartitionsResponse = client.ask(3, &request).await;
    response.results.iter().map(|row| row.error_code).collect()
}

async fn partitions(client: &mut Client, topic: &str) -> usize {
    let asked = MetadataRequestTopic::default().with_name(Some(name(topic)));
    let response: MetadataResponse = client.ask(12, &MetadataRequest::default().with_topics(Some(vec![asked]))).await;
    response.topics[0].partitions.len()
}

#[tokio::test]
async fn topics_grow_each_with_an_answer_of_its_own() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    for topic in ["orders", "clicks"] {
        create(&mut client, topic).await;
    }
    assert_eq!(grow(&mut client, vec![growth("orders", 3)], true).await, [0]);
    assert_eq!(partitions(&mut client, "orders").await, 1, "only validated");
    let asked = vec![
        growth("orders", 3),
        growth("clicks", 1),
        growth("nowhere", 3),
        growth("__consumer_offsets", 9),
        growth("twice", 3),
        growth("twice", 3),
    ];
    let codes = grow(&mut client, asked, false).await;
    let wanted = [
        None,
        Some(ResponseError::InvalidPartitions),
        Some(ResponseError::UnknownTopicOrPartition),
        Some(ResponseError::InvalidTopicException),
        Some(ResponseError::InvalidRequest),
        Some(ResponseError::InvalidRequest),
    ];
    assert_eq!(codes, wanted.map(|error| error.map_or(0, |error| error.code())));

    let mut request = produce_request("orders", -1, batch(&["a"], 1000));
    request.topic_data[0].partition_data[0].index = 2;
    let produced: ProduceResponse = client.ask(9, &request).await;
    assert_eq!(produced.responses[0].partition_responses[0].error_code, 0);
    let broker = broker.restart().await;
    let mut client = broker.connect().await;
    assert_eq!(partitions(&mut client, "orders").await, 3);
    assert_eq!(grow(&mut client, vec![growth("orders", 2)], false).await, [ResponseError::InvalidPartitions.code()]);
}

#[tokio::test]
async fn new_partitions_can_be_assigned_to_this_broker_alone() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    create(&mut client, "orders").await;
    let assigned = |count, brokers: &[&[i32]]| {
        let to = |ids: &&[i32]| {
            let ids = ids.iter().copied().map(BrokerId).collect();
            CreatePartitionsAssignment::default().with_broker_ids(ids)
        };
        growth("orders", count).with_assignments(Some(brokers.iter().map(to).collect()))
    };
    let refused = [ResponseError::InvalidReplicaAssignment.code()];
    for brokers in [&[&[1][..]][..], &[&[1], &[2]], &[&[1], &[]], &[&[1], &[1, 2]]] {
        assert_eq!(grow(&mut client, vec![assigned(3, brokers)], false).await, refused, "{brokers:?}");
    }
    assert_eq!(grow(&mut client, vec![assigned(3, &[&[1], &[1]])], false).await, [0]);
}

#[tokio::test]
async fn topics_are_made_as_asked_or_only_looked_at() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    let wanted = |topic: &str, partitions, factor| {
        CreatableTopic::default().with_name(name(topic)).with_num_partitions(partitions).with_replication_factor(factor)
    };
    let assignment = CreatableReplicaAssignment::default().with_broker_ids(vec![BrokerId(1)]);
    let config = CreatableTopicConfig::default().with_name(text("retention.ms")).with_value(Some(text("1000")));
    let assigned = wanted("assigned", -1, -1).with_assignments(vec![assignment]).with_configs(vec![config]);
    let request = |topics, validate| CreateTopicsRequest::default().with_topics(topics).with_validate_only(validate);
    let response: CreateTopicsResponse =
        client.ask(7, &request(vec![assigned.clone(), wanted("three", 1, 3)], true)).await;
    let codes: Vec<i16> = response.topics.iter().map(|row| row.error_code).collect();
    assert_eq!(codes, [0, ResponseError::InvalidReplicationFactor.code()]);
    assert!(response.topics[0].topic_id.is_nil());
    let response: CreateTopicsResponse = client.ask(7, &request(vec![assigned], false)).await;
    let row = &response.topics[0];
    assert_eq!((row.error_code, row.num_partitions, row.replication_factor), (0, 1, 1));
    let configs: BTreeMap<_, _> = row
        .configs
        .iter()
        .flatten()
        .map(|row| (row.name.to_string(), (row.value.clone(), row.config_source)))
        .collect();
    assert_eq!(configs["retention.ms"], (Some(text("1000")), 1));
    assert_eq!(configs["segment.ms"].1, 5);

    let by_id = |id| DeleteTopicState::default().with_name(None).with_topic_id(id);
    let unknown = uuid::Uuid::from_u128(9);
    let request = DeleteTopicsRequest::default().with_topics(vec![by_id(row.topic_id), by_id(unknown)]);
    let response: DeleteTopicsResponse = client.ask(6, &request).await;
    let codes: Vec<i16> = response.responses.iter().map(|row| row.error_code).collect();
    assert_eq!(codes, [0, ResponseError::UnknownTopicId.code()]);
    assert_eq!(response.responses[0].name, Some(name("assigned")));
}

async fn describe(client: &mut Client, kind: i8, resource: &str) -> describe_configs_response::DescribeConfigsResult {
    let resource = DescribeConfigsResource::default()
        .with_resource_type(kind)
        .with_resource_name(text(resource))
        .with_configuration_keys(None);
    let request = DescribeConfigsRequest::default().with_resources(vec![resource]).with_include_synonyms(true);
    let response: DescribeConfigsResponse = client.ask(4, &request).await;
    let mut results = response.results;
    results.swap_remove(0)
}

async fn alter(client: &mut Client, kind: i8, resource: &str, changes: &[(&str, i8, &str)]) -> (i16, String) {
    let change = |(key, operation, value): &(&str, i8, &str)| {
        AlterableConfig::default().with_name(text(key)).with_config_operation(*operation).with_value(Some(text(value)))
    };
    let resource = AlterConfigsResource::default()
        .with_resource_type(kind)
        .with_resource_name(text(resource))
        .with_configs(changes.iter().map(change).collect());
    let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
    let response: IncrementalAlterConfigsResponse = client.ask(1, &request).await;
    let row = &response.responses[0];
    (row.error_code, row.error_message.as_deref().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn settings_are_described_with_their_sources_and_changed() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    create(&mut client, "orders").await;
    let (topic, node) = (2, 4);
    assert_eq!(alter(&mut client, topic, "orders", &[("retention.ms", 0, "1000")]).await.0, 0);
    assert_eq!(alter(&mut client, topic, "orders", &[("search.fields", 3, "headers,key")]).await.0, 0);
    let rows = describe(&mut client, topic, "orders").await.configs;
    let row = |name: &str| rows.iter().find(|row| row.name.as_str() == name).unwrap();
    let synonyms: Vec<_> = row("retention.ms").synonyms.iter().map(|one| (one.name.to_string(), one.source)).collect();
    assert_eq!(row("retention.ms").config_source, 1);
    assert_eq!(synonyms, [("retention.ms".to_owned(), 1), ("log.retention.ms".to_owned(), 5)]);
    assert_eq!(row("search.fields").value, Some(text("value,json")));
    assert_eq!((row("segment.bytes").config_source, row("segment.bytes").read_only), (5, false));
    let no_list = alter(&mut client, topic, "orders", &[("retention.ms", 2, "1000")]).await;
    assert_eq!(no_list.0, ResponseError::InvalidConfig.code());

    let described = describe(&mut client, node, "1").await;
    assert!(described.error_code == 0 && described.configs.iter().all(|row| row.read_only));
    let names: Vec<_> = described.configs.iter().map(|row| row.name.as_str()).collect();
    for name in ["log.retention.ms", "message.max.bytes", "num.partitions", "offsets.retention.minutes"] {
        assert!(names.contains(&name), "{name} of {names:?}");
    }
    let (code, message) = alter(&mut client, node, "1", &[("num.partitions", 0, "7")]).await;
    assert_eq!(code, ResponseError::InvalidRequest.code());
    assert!(message.contains("num.partitions is read-only"), "{message}");
    assert_eq!(alter(&mut client, node, "9", &[]).await.0, ResponseError::InvalidRequest.code());

    let request = ListConfigResourcesRequest::default();
    let listed: ListConfigResourcesResponse = client.ask(1, &request).await;
    let listed: Vec<_> =
        listed.config_resources.iter().map(|row| (row.resource_type, row.resource_name.to_string())).collect();
    assert!(listed.contains(&(2, "orders".to_owned())) && listed.contains(&(4, "1".to_owned())), "{listed:?}");
    let metrics: ListConfigResourcesResponse = client.ask(0, &request).await;
    assert!(metrics.config_resources.is_empty());
}

#[tokio::test]
async fn partitions_are_described_page_by_page() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    let id = create(&mut client, "orders").await;
    assert_eq!(grow(&mut client, vec![growth("orders", 3)], false).await, [0]);
    let topics = ["orders", "nowhere", "not/legal"].map(|topic| TopicRequest::default().with_name(name(topic)));
    let mut request = DescribeTopicPartitionsRequest::default()
        .with_topics(topics.to_vec())
        .with_response_partition_limit(2)
        .with_cursor(None);
    let page: DescribeTopicPartitionsResponse = client.ask(0, &request).await;
    let codes: Vec<_> = page.topics.iter().map(|row| row.error_code).collect();
    let unknown = ResponseError::UnknownTopicOrPartition.code();
    assert_eq!(codes, [ResponseError::InvalidTopicException.code(), unknown, 0]);
    assert_eq!((page.topics[2].topic_id, page.topics[2].partitions.len()), (id, 2));
    let next = page.next_cursor.unwrap();
    assert_eq!((next.topic_name.clone(), next.partition_index), (name("orders"), 2));
    let cursor = Cursor::default().with_topic_name(next.topic_name).with_partition_index(next.partition_index);
    request.cursor = Some(cursor);
    let page: DescribeTopicPartitionsResponse = client.ask(0, &request).await;
    let left: Vec<_> = page.topics.iter().flat_map(|topic| topic.partitions.iter()).collect();
    assert_eq!((left.len(), left[0].partition_index, left[0].leader_id), (1, 2, BrokerId(1)));
    assert!(page.next_cursor.is_none());
}

#[tokio::test]
async fn the_disk_is_described_with_real_sizes() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    create(&mut client, "orders").await;
    let sent = batch(&["a"], 1000);
    produce(&mut client, 9, "orders", sent.clone()).await;
    let wanted = DescribableLogDirTopic::default().with_topic(name("orders")).with_partitions(vec![0, 7]);
    let request = DescribeLogDirsRequest::default().with_topics(Some(vec![wanted]));
    let response: DescribeLogDirsResponse = client.ask(4, &request).await;
    let dir = &response.results[0];
    assert!(dir.error_code == 0 && dir.total_bytes >= dir.usable_bytes && dir.usable_bytes >= 0);
    let rows = &dir.topics[0].partitions;
    assert_eq!((rows.len(), rows[0].partition_index), (1, 0));
    assert_eq!(rows[0].partition_size, i64::try_from(sent.len()).unwrap());
    let all: DescribeLogDirsResponse = client.ask(1, &DescribeLogDirsRequest::default().with_topics(None)).await;
    assert!(all.results[0].topics.len() > 1, "the broker's own topics too");
}

#[tokio::test]
async fn one_broker_answers_for_its_cluster() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    create(&mut client, "orders").await;
    let wanted = TopicPartitions::default().with_topic(name("orders")).with_partitions(vec![0, 1]);
    let request = ElectLeadersRequest::default().with_topic_partitions(Some(vec![wanted]));
    let elected: ElectLeadersResponse = client.ask(2, &request).await;
    let rows = &elected.replica_election_results[0].partition_result;
    let codes: Vec<i16> = rows.iter().map(|row| row.error_code).collect();
    let unknown = ResponseError::UnknownTopicOrPartition.code();
    assert_eq!((elected.error_code, codes), (0, vec![ResponseError::ElectionNotNeeded.code(), unknown]));
    let moving = ListPartitionReassignmentsRequest::default().with_topics(None);
    let moving: ListPartitionReassignmentsResponse = client.ask(0, &moving).await;
    assert_eq!((moving.error_code, moving.topics.len()), (0, 0));
    let cluster: DescribeClusterResponse = client.ask(1, &DescribeClusterRequest::default()).await;
    assert_eq!((cluster.brokers.len(), cluster.controller_id), (1, BrokerId(1)));
}

#[tokio::test]
async fn nothing_is_said_to_be_secured_or_limited() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    let disabled = ResponseError::SecurityDisabled.code();
    let acls: DescribeAclsResponse = client.ask(3, &DescribeAclsRequest::default().with_pattern_type_filter(3)).await;
    assert_eq!(acls.error_code, disabled);
    let creations = vec![create_acls_request::AclCreation::default(); 2];
    let made: CreateAclsResponse = client.ask(3, &CreateAclsRequest::default().with_creations(creations)).await;
    assert_eq!(made.results.iter().map(|row| row.error_code).collect::<Vec<_>>(), [disabled; 2]);
    let filters = vec![delete_acls_request::DeleteAclsFilter::default()];
    let gone: DeleteAclsResponse = client.ask(3, &DeleteAclsRequest::default().with_filters(filters)).await;
    assert_eq!(gone.filter_results[0].error_code, disabled);
    let quotas: DescribeClientQuotasResponse = client.ask(1, &DescribeClientQuotasRequest::default()).await;
    assert_eq!((quotas.error_code, quotas.entries), (0, Some(Vec::new())));
    let users = ["alice", "bob", "alice"].map(|user| UserName::default().with_name(text(user)));
    let request = DescribeUserScramCredentialsRequest::default().with_users(Some(users.to_vec()));
    let users: DescribeUserScramCredentialsResponse = client.ask(0, &request).await;
    let codes: Vec<i16> = users.results.iter().map(|row| row.error_code).collect();
    assert_eq!(codes, [ResponseError::DuplicateResource.code(), ResponseError::ResourceNotFound.code()]);
    let request = DescribeUserScramCredentialsRequest::default().with_users(None);
    let users: DescribeUserScramCredentialsResponse = client.ask(0, &request).await;
    assert!(users.results.is_empty());
}
