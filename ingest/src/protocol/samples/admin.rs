//! The requests of administration that no group and no consumer sends.

use kafka_protocol::messages::create_partitions_request::{CreatePartitionsAssignment, CreatePartitionsTopic};
use kafka_protocol::messages::describe_client_quotas_request::ComponentData;
use kafka_protocol::messages::describe_log_dirs_request::DescribableLogDirTopic;
use kafka_protocol::messages::describe_topic_partitions_request::{Cursor, TopicRequest};
use kafka_protocol::messages::describe_user_scram_credentials_request::UserName;
use kafka_protocol::messages::elect_leaders_request::TopicPartitions;
use kafka_protocol::messages::list_partition_reassignments_request::ListPartitionReassignmentsTopics;

use super::*;

pub fn request_body(key: ApiKey, version: i16) -> Bytes {
    match key {
        ApiKey::DescribeLogDirs => {
            let wanted = DescribableLogDirTopic::default().with_topic(topic("orders")).with_partitions(vec![0, 5]);
            encoded(&DescribeLogDirsRequest::default().with_topics(Some(vec![wanted; 2])), version)
        }
        ApiKey::CreatePartitions => {
            let assignment = CreatePartitionsAssignment::default().with_broker_ids(vec![BrokerId(1)]);
            let wanted = |assignments| {
                CreatePartitionsTopic::default().with_name(topic("orders")).with_count(7).with_assignments(assignments)
            };
            let topics = vec![wanted(None), wanted(Some(vec![assignment; 2]))];
            let request = CreatePartitionsRequest::default().with_topics(topics).with_timeout_ms(5);
            encoded(&request.with_validate_only(true), version)
        }
        ApiKey::ElectLeaders => {
            let wanted = TopicPartitions::default().with_topic(topic("orders")).with_partitions(vec![0, 5]);
            let request = ElectLeadersRequest::default().with_topic_partitions(Some(vec![wanted; 2]));
            encoded(&request.with_election_type(i8::from(version >= 1)).with_timeout_ms(5), version)
        }
        ApiKey::ListPartitionReassignments => {
            let wanted = ListPartitionReassignmentsTopics::default()
                .with_name(topic("orders"))
                .with_partition_indexes(vec![0, 5]);
            encoded(&ListPartitionReassignmentsRequest::default().with_topics(Some(vec![wanted; 2])), version)
        }
        ApiKey::DescribeClientQuotas => {
            let component =
                |name| ComponentData::default().with_entity_type(text("user")).with_match_type(2).with_match(name);
            let components = vec![component(None), component(Some(text("alice")))];
            encoded(&DescribeClientQuotasRequest::default().with_components(components).with_strict(true), version)
        }
        ApiKey::DescribeUserScramCredentials => {
            let users = vec![UserName::default().with_name(text("alice")); 2];
            encoded(&DescribeUserScramCredentialsRequest::default().with_users(Some(users)), version)
        }
        ApiKey::ListConfigResources => {
            let types = if version >= 1 { vec![2, 4] } else { Vec::new() };
            encoded(&ListConfigResourcesRequest::default().with_resource_types(types), version)
        }
        ApiKey::DescribeTopicPartitions => {
            let cursor = Cursor::default().with_topic_name(topic("orders")).with_partition_index(3);
            let request = DescribeTopicPartitionsRequest::default()
                .with_topics(vec![TopicRequest::default().with_name(topic("orders")); 2])
                .with_cursor(Some(cursor));
            encoded(&request, version)
        }
        other => panic!("no sample of {other:?}"),
    }
}
