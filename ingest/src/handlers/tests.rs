//! Every response, empty, filled and as an error, is encodable in every advertised version, and reads back to its last
//! byte: `kafka-protocol` fails at run time on a field that a version does not have.

use bytes::Buf;
use kafka_protocol::messages::*;
use kafka_protocol::protocol::{Decodable, HeaderVersion};

use super::*;
use crate::protocol::versions::{self, APIS};

fn round_trip<T: Encodable + Decodable + HeaderVersion + PartialEq + std::fmt::Debug>(version: i16, response: &T) {
    let frame = encode::response(5, version, response).unwrap_or_else(|error| panic!("{error}: {response:?}"));
    let mut frame = frame.into_bytes();
    assert_eq!(frame.get_i32() as usize, frame.len());
    let header = ResponseHeader::decode(&mut frame, T::header_version(version)).unwrap();
    assert_eq!(header.correlation_id, 5);
    T::decode(&mut frame, version).unwrap();
    assert!(frame.is_empty(), "{} bytes trail version {version} of {response:?}", frame.len());
}

fn versions_of(key: ApiKey) -> impl Iterator<Item = i16> {
    let api = versions::find(key as i16).unwrap();
    api.served_min..=api.max
}

#[test]
fn every_default_response_is_encodable() {
    for api in APIS {
        for version in versions_of(api.key) {
            match api.key {
                ApiKey::Produce => round_trip(version, &ProduceResponse::default()),
                ApiKey::Fetch => round_trip(version, &FetchResponse::default()),
                ApiKey::ListOffsets => round_trip(version, &ListOffsetsResponse::default()),
                ApiKey::Metadata => round_trip(version, &MetadataResponse::default()),
                ApiKey::OffsetCommit => round_trip(version, &OffsetCommitResponse::default()),
                ApiKey::OffsetFetch => round_trip(version, &OffsetFetchResponse::default()),
                ApiKey::FindCoordinator => round_trip(version, &FindCoordinatorResponse::default()),
                ApiKey::JoinGroup => {
                    // Only version 7 and later can say that there is no protocol.
                    let protocol = if version >= 7 { None } else { Some(text("")) };
                    round_trip(version, &JoinGroupResponse::default().with_protocol_name(protocol));
                }
                ApiKey::Heartbeat => round_trip(version, &HeartbeatResponse::default()),
                ApiKey::LeaveGroup => round_trip(version, &LeaveGroupResponse::default()),
                ApiKey::SyncGroup => round_trip(version, &SyncGroupResponse::default()),
                ApiKey::DescribeGroups => round_trip(version, &DescribeGroupsResponse::default()),
                ApiKey::ListGroups => round_trip(version, &ListGroupsResponse::default()),
                ApiKey::ApiVersions => round_trip(version, &ApiVersionsResponse::default()),
                ApiKey::CreateTopics => round_trip(version, &CreateTopicsResponse::default()),
                ApiKey::DeleteTopics => round_trip(version, &DeleteTopicsResponse::default()),
                ApiKey::DeleteRecords => round_trip(version, &DeleteRecordsResponse::default()),
                ApiKey::InitProducerId => round_trip(version, &InitProducerIdResponse::default()),
                ApiKey::OffsetForLeaderEpoch => round_trip(version, &OffsetForLeaderEpochResponse::default()),
                ApiKey::DescribeConfigs => round_trip(version, &DescribeConfigsResponse::default()),
                ApiKey::AlterConfigs => round_trip(version, &AlterConfigsResponse::default()),
                ApiKey::IncrementalAlterConfigs => {
                    round_trip(version, &IncrementalAlterConfigsResponse::default());
                }
                ApiKey::DescribeCluster => round_trip(version, &DescribeClusterResponse::default()),
                ApiKey::AddPartitionsToTxn => round_trip(version, &AddPartitionsToTxnResponse::default()),
                ApiKey::AddOffsetsToTxn => round_trip(version, &AddOffsetsToTxnResponse::default()),
                ApiKey::EndTxn => round_trip(version, &EndTxnResponse::default()),
                ApiKey::TxnOffsetCommit => round_trip(version, &TxnOffsetCommitResponse::default()),
                ApiKey::DescribeProducers => round_trip(version, &DescribeProducersResponse::default()),
                ApiKey::DescribeTransactions => round_trip(version, &DescribeTransactionsResponse::default()),
                ApiKey::ListTransactions => round_trip(version, &ListTransactionsResponse::default()),
                other => admin_default(other, version),
            }
        }
    }
}

fn admin_default(key: ApiKey, version: i16) {
    match key {
        ApiKey::DescribeAcls => round_trip(version, &DescribeAclsResponse::default()),
        ApiKey::CreateAcls => round_trip(version, &CreateAclsResponse::default()),
        ApiKey::DeleteAcls => round_trip(version, &DeleteAclsResponse::default()),
        ApiKey::DescribeLogDirs => round_trip(version, &DescribeLogDirsResponse::default()),
        ApiKey::CreatePartitions => round_trip(version, &CreatePartitionsResponse::default()),
        ApiKey::DeleteGroups => round_trip(version, &DeleteGroupsResponse::default()),
        ApiKey::ElectLeaders => round_trip(version, &ElectLeadersResponse::default()),
        ApiKey::ListPartitionReassignments => round_trip(version, &ListPartitionReassignmentsResponse::default()),
        ApiKey::OffsetDelete => round_trip(version, &OffsetDeleteResponse::default()),
        ApiKey::DescribeClientQuotas => round_trip(version, &DescribeClientQuotasResponse::default()),
        ApiKey::DescribeUserScramCredentials => round_trip(version, &DescribeUserScramCredentialsResponse::default()),
        ApiKey::ListConfigResources => round_trip(version, &ListConfigResourcesResponse::default()),
        ApiKey::DescribeTopicPartitions => round_trip(version, &DescribeTopicPartitionsResponse::default()),
        other => panic!("{other:?} has no response here"),
    }
}

#[test]
fn every_header_is_the_one_clients_expect() {
    for version in 0..=4 {
        assert_eq!(ApiVersionsResponse::header_version(version), 0);
    }
    assert_eq!((MetadataResponse::header_version(8), MetadataResponse::header_version(9)), (0, 1));
}

#[test]
fn leader_epochs_are_held_against_ours() {
    assert_eq!(check_leader_epoch(-1), Ok(()));
    assert_eq!(check_leader_epoch(LEADER_EPOCH), Ok(()));
    assert_eq!(check_leader_epoch(LEADER_EPOCH + 1), Err(ResponseError::UnknownLeaderEpoch));
}

/// What the handlers answer, refusals included, fits every version it may be sent in.
#[test]
fn every_row_of_ours_is_encodable() {
    use kafka_protocol::messages::create_topics_response::{CreatableTopicConfigs, CreatableTopicResult};
    use kafka_protocol::messages::delete_records_response::{DeleteRecordsPartitionResult, DeleteRecordsTopicResult};
    use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
    use kafka_protocol::messages::describe_configs_response::{DescribeConfigsResourceResult, DescribeConfigsResult};
    use kafka_protocol::messages::offset_for_leader_epoch_response::{EpochEndOffset, OffsetForLeaderTopicResult};
    use kafka_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};

    let error = ResponseError::KafkaStorageError.code();
    for version in versions_of(ApiKey::Produce) {
        let row = PartitionProduceResponse::default()
            .with_error_code(error)
            .with_error_message(Some(text("refused")))
            .with_base_offset(-1)
            .with_log_start_offset(4);
        let topic = TopicProduceResponse::default().with_name(TopicName(text("a"))).with_partition_responses(vec![row]);
        round_trip(version, &ProduceResponse::default().with_responses(vec![topic]));
    }
    for version in versions_of(ApiKey::CreateTopics) {
        let config =
            CreatableTopicConfigs::default().with_name(text("a")).with_value(Some(text("1"))).with_config_source(5);
        let row = CreatableTopicResult::default()
            .with_name(TopicName(text("a")))
            .with_topic_id(uuid::Uuid::from_u128(1))
            .with_error_message(None)
            .with_num_partitions(3)
            .with_replication_factor(1)
            .with_configs(Some(vec![config]));
        let refused = CreatableTopicResult::default().with_error_code(error).with_error_message(Some(text("no")));
        round_trip(version, &CreateTopicsResponse::default().with_topics(vec![row, refused]));
    }
    for version in versions_of(ApiKey::DeleteTopics) {
        let row = DeletableTopicResult::default()
            .with_name(Some(TopicName(text("a"))))
            .with_topic_id(uuid::Uuid::from_u128(1))
            .with_error_code(error)
            .with_error_message(Some(text("no")));
        round_trip(version, &DeleteTopicsResponse::default().with_responses(vec![row]));
    }
    for version in versions_of(ApiKey::DeleteRecords) {
        let row = DeleteRecordsPartitionResult::default().with_low_watermark(-1).with_error_code(error);
        let topic = DeleteRecordsTopicResult::default().with_name(TopicName(text("a"))).with_partitions(vec![row]);
        round_trip(version, &DeleteRecordsResponse::default().with_topics(vec![topic]));
    }
    for version in versions_of(ApiKey::DescribeConfigs) {
        let row = DescribeConfigsResourceResult::default()
            .with_name(text("a"))
            .with_value(Some(text("1")))
            .with_config_source(1)
            .with_config_type(3)
            .with_documentation(Some(text("what it does")));
        let result = DescribeConfigsResult::default().with_error_message(None).with_configs(vec![row]);
        let refused = DescribeConfigsResult::default().with_error_code(error).with_error_message(Some(text("no")));
        round_trip(version, &DescribeConfigsResponse::default().with_results(vec![result, refused]));
    }
    for version in versions_of(ApiKey::OffsetForLeaderEpoch) {
        let row = EpochEndOffset::default().with_error_code(error).with_leader_epoch(LEADER_EPOCH).with_end_offset(9);
        let topic = OffsetForLeaderTopicResult::default().with_topic(TopicName(text("a"))).with_partitions(vec![row]);
        round_trip(version, &OffsetForLeaderEpochResponse::default().with_topics(vec![topic]));
    }
    for version in versions_of(ApiKey::InitProducerId) {
        round_trip(version, &InitProducerIdResponse::default().with_error_code(error).with_producer_epoch(-1));
    }
    for version in versions_of(ApiKey::DescribeCluster) {
        let refused = DescribeClusterResponse::default().with_error_code(error).with_error_message(Some(text("no")));
        let refused = refused.with_endpoint_type(if version >= 1 { 2 } else { 1 });
        round_trip(version, &refused.with_cluster_authorized_operations(cluster::CLUSTER_OPERATIONS));
    }
}

#[test]
fn what_is_asked_for_again_is_answered_once() {
    let asked = ["a", "b", "a", "A", "b"].map(text).to_vec();
    assert_eq!(distinct(asked, StrBytes::clone).collect::<Vec<_>>(), ["a", "b", "A"].map(text));
}
