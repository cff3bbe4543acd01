//! One request of every API and version with something in every field, built by the client half of `kafka-protocol`.

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::create_topics_request::{
    CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig,
};
use kafka_protocol::messages::delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic, ForgottenTopic, ReplicaState};
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::offset_for_leader_epoch_request::{OffsetForLeaderPartition, OffsetForLeaderTopic};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::*;
use kafka_protocol::protocol::{Encodable, StrBytes};
use uuid::Uuid;

use super::guard::is_flexible;

mod admin;

fn text(text: &'static str) -> StrBytes {
    StrBytes::from_static_str(text)
}
fn topic(name: &'static str) -> TopicName {
    TopicName(text(name))
}
fn group() -> GroupId {
    GroupId(text("readers"))
}
fn encoded(message: &impl Encodable, version: i16) -> Bytes {
    let mut bytes = BytesMut::new();
    message.encode(&mut bytes, version).unwrap();
    bytes.freeze()
}

/// The body of a request of `key` in `version`.
pub fn request_body(key: ApiKey, version: i16) -> Bytes {
    match key {
        ApiKey::Produce => produce(version),
        ApiKey::Fetch => fetch(version),
        ApiKey::ListOffsets => list_offsets(version),
        ApiKey::Metadata => metadata(version),
        ApiKey::OffsetCommit => offset_commit(version),
        ApiKey::OffsetFetch => offset_fetch(version),
        ApiKey::FindCoordinator => {
            let request = FindCoordinatorRequest::default().with_key_type(i8::from(version >= 1));
            if version >= 4 {
                encoded(&request.with_coordinator_keys(vec![text("a"), text("readers")]), version)
            } else {
                encoded(&request.with_key(text("readers")), version)
            }
        }
        ApiKey::JoinGroup => join_group(version),
        ApiKey::Heartbeat => {
            let request =
                HeartbeatRequest::default().with_group_id(group()).with_generation_id(3).with_member_id(text("m"));
            encoded(&request.with_group_instance_id((version >= 3).then(|| text("static"))), version)
        }
        ApiKey::LeaveGroup => leave_group(version),
        ApiKey::SyncGroup => sync_group(version),
        ApiKey::DescribeGroups => {
            let request = DescribeGroupsRequest::default().with_groups(vec![group(), GroupId(text("b"))]);
            encoded(&request.with_include_authorized_operations(version >= 3), version)
        }
        ApiKey::ListGroups => {
            let some = |since| if version >= since { vec![text("Stable"), text("Empty")] } else { vec![] };
            let request = ListGroupsRequest::default().with_states_filter(some(4)).with_types_filter(some(5));
            encoded(&request, version)
        }
        ApiKey::ApiVersions => {
            let name = if version >= 3 { text("librdkafka") } else { text("") };
            let request = ApiVersionsRequest::default()
                .with_client_software_name(name.clone())
                .with_client_software_version(name);
            encoded(&request, version)
        }
        ApiKey::CreateTopics => create_topics(version),
        ApiKey::DeleteTopics => delete_topics(version),
        ApiKey::DeleteRecords => {
            let partition = DeleteRecordsPartition::default().with_partition_index(1).with_offset(-1);
            let wanted = DeleteRecordsTopic::default().with_name(topic("orders")).with_partitions(vec![partition; 2]);
            encoded(&DeleteRecordsRequest::default().with_topics(vec![wanted]).with_timeout_ms(5), version)
        }
        ApiKey::InitProducerId => {
            let request = InitProducerIdRequest::default().with_transactional_id(Some(TransactionalId(text("tx"))));
            if version >= 3 {
                encoded(&request.with_producer_id(ProducerId(9)).with_producer_epoch(2), version)
            } else {
                encoded(&request, version)
            }
        }
        ApiKey::OffsetForLeaderEpoch => leader_epoch(version),
        ApiKey::DescribeConfigs => {
            let resource = |keys| {
                DescribeConfigsResource::default()
                    .with_resource_type(2)
                    .with_resource_name(text("orders"))
                    .with_configuration_keys(keys)
            };
            let request = DescribeConfigsRequest::default()
                .with_resources(vec![resource(None), resource(Some(vec![text("segment.bytes"), text("x")]))])
                .with_include_synonyms(true)
                .with_include_documentation(version >= 3);
            encoded(&request, version)
        }
        ApiKey::AlterConfigs => alter_configs(version),
        ApiKey::IncrementalAlterConfigs => incremental_alter_configs(version),
        ApiKey::DescribeCluster => {
            let request = DescribeClusterRequest::default()
                .with_include_cluster_authorized_operations(true)
                .with_endpoint_type(if version >= 1 { 2 } else { 1 })
                .with_include_fenced_brokers(version >= 2);
            encoded(&request, version)
        }
        ApiKey::DescribeAcls | ApiKey::CreateAcls | ApiKey::DeleteAcls => acls(key, version),
        ApiKey::DeleteGroups => {
            encoded(&DeleteGroupsRequest::default().with_groups_names(vec![group(), GroupId(text("b"))]), version)
        }
        ApiKey::OffsetDelete => offset_delete(version),
        ApiKey::AddPartitionsToTxn
        | ApiKey::AddOffsetsToTxn
        | ApiKey::EndTxn
        | ApiKey::TxnOffsetCommit
        | ApiKey::DescribeProducers
        | ApiKey::DescribeTransactions
        | ApiKey::ListTransactions => transactions(key, version),
        other => admin::request_body(other, version),
    }
}

fn acls(key: ApiKey, version: i16) -> Bytes {
    use kafka_protocol::messages::create_acls_request::AclCreation;
    use kafka_protocol::messages::delete_acls_request::DeleteAclsFilter;
    let some = || Some(text("User:alice"));
    match key {
        ApiKey::DescribeAcls => {
            let request = DescribeAclsRequest::default().with_resource_type_filter(2).with_host_filter(None);
            encoded(&request.with_resource_name_filter(Some(text("orders"))).with_principal_filter(some()), version)
        }
        ApiKey::CreateAcls => {
            let creation =
                AclCreation::default().with_resource_type(2).with_principal(text("User:alice")).with_host(text("*"));
            encoded(&CreateAclsRequest::default().with_creations(vec![creation; 2]), version)
        }
        _ => {
            let filter = DeleteAclsFilter::default().with_resource_type_filter(2).with_principal_filter(some());
            encoded(&DeleteAclsRequest::default().with_filters(vec![filter; 2]), version)
        }
    }
}

fn offset_delete(version: i16) -> Bytes {
    use kafka_protocol::messages::offset_delete_request::{OffsetDeleteRequestPartition, OffsetDeleteRequestTopic};
    let partition = |index| OffsetDeleteRequestPartition::default().with_partition_index(index);
    let wanted = OffsetDeleteRequestTopic::default()
        .with_name(topic("orders"))
        .with_partitions(vec![partition(0), partition(5)]);
    encoded(&OffsetDeleteRequest::default().with_group_id(group()).with_topics(vec![wanted; 2]), version)
}

/// The requests that have to do with transactions.
fn transactions(key: ApiKey, version: i16) -> Bytes {
    match key {
        ApiKey::AddPartitionsToTxn => {
            let topic = add_partitions_to_txn_request::AddPartitionsToTxnTopic::default()
                .with_name(topic("orders"))
                .with_partitions(vec![0, 7]);
            let request = AddPartitionsToTxnRequest::default()
                .with_v3_and_below_transactional_id(TransactionalId(text("tx")))
                .with_v3_and_below_producer_id(ProducerId(9))
                .with_v3_and_below_producer_epoch(2)
                .with_v3_and_below_topics(vec![topic.clone(), topic]);
            encoded(&request, version)
        }
        ApiKey::AddOffsetsToTxn => {
            let request = AddOffsetsToTxnRequest::default()
                .with_transactional_id(TransactionalId(text("tx")))
                .with_producer_id(ProducerId(9))
                .with_producer_epoch(2)
                .with_group_id(group());
            encoded(&request, version)
        }
        ApiKey::EndTxn => {
            let request = EndTxnRequest::default()
                .with_transactional_id(TransactionalId(text("tx")))
                .with_producer_id(ProducerId(9))
                .with_producer_epoch(2)
                .with_committed(true);
            encoded(&request, version)
        }
        ApiKey::TxnOffsetCommit => txn_offset_commit(version),
        ApiKey::DescribeProducers => {
            let topic = describe_producers_request::TopicRequest::default()
                .with_name(topic("orders"))
                .with_partition_indexes(vec![0, 7]);
            encoded(&DescribeProducersRequest::default().with_topics(vec![topic.clone(), topic]), version)
        }
        ApiKey::DescribeTransactions => {
            let ids = vec![TransactionalId(text("tx")), TransactionalId(text("ty"))];
            encoded(&DescribeTransactionsRequest::default().with_transactional_ids(ids), version)
        }
        ApiKey::ListTransactions => {
            let request = ListTransactionsRequest::default()
                .with_state_filters(vec![text("Ongoing"), text("Empty")])
                .with_producer_id_filters(vec![ProducerId(9), ProducerId(10)])
                .with_duration_filter(if version >= 1 { 100 } else { -1 })
                .with_transactional_id_pattern((version >= 2).then(|| text("t.*")));
            encoded(&request, version)
        }
        other => panic!("no sample of {other:?}"),
    }
}

fn txn_offset_commit(version: i16) -> Bytes {
    use kafka_protocol::messages::txn_offset_commit_request::{
        TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic,
    };
    let partition = TxnOffsetCommitRequestPartition::default()
        .with_partition_index(1)
        .with_committed_offset(77)
        .with_committed_leader_epoch(if version >= 2 { 0 } else { -1 })
        .with_committed_metadata(Some(text("note")));
    let wanted = TxnOffsetCommitRequestTopic::default().with_name(topic("orders")).with_partitions(vec![partition; 2]);
    let mut request = TxnOffsetCommitRequest::default()
        .with_transactional_id(TransactionalId(text("tx")))
        .with_group_id(group())
        .with_producer_id(ProducerId(9))
        .with_producer_epoch(2)
        .with_topics(vec![wanted]);
    if version >= 3 {
        request = request.with_generation_id(3).with_member_id(text("m")).with_group_instance_id(Some(text("static")));
    }
    encoded(&request, version)
}

fn alter_configs(version: i16) -> Bytes {
    use kafka_protocol::messages::alter_configs_request::{AlterConfigsResource, AlterableConfig};
    let config = |value| AlterableConfig::default().with_name(text("retention.ms")).with_value(value);
    let resource = AlterConfigsResource::default()
        .with_resource_type(2)
        .with_resource_name(text("orders"))
        .with_configs(vec![config(None), config(Some(text("1000")))]);
    encoded(&AlterConfigsRequest::default().with_resources(vec![resource; 2]).with_validate_only(true), version)
}

fn incremental_alter_configs(version: i16) -> Bytes {
    use kafka_protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
    let config = |operation, value| {
        AlterableConfig::default()
            .with_name(text("search.tokenizer"))
            .with_config_operation(operation)
            .with_value(value)
    };
    let resource = AlterConfigsResource::default()
        .with_resource_type(2)
        .with_resource_name(text("orders"))
        .with_configs(vec![config(1, None), config(0, Some(text("log")))]);
    let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource; 2]);
    encoded(&request.with_validate_only(true), version)
}

fn produce(version: i16) -> Bytes {
    let partition = |index| {
        PartitionProduceData::default().with_index(index).with_records(Some(Bytes::from(vec![7; 10 + index as usize])))
    };
    let mut data = TopicProduceData::default().with_name(topic("orders")).with_partition_data(vec![
        partition(0),
        partition(130),
        partition(1).with_records(None),
    ]);
    if is_flexible(ApiKey::Produce, version) {
        data.unknown_tagged_fields.insert(4, Bytes::from_static(b"later"));
    }
    let request = ProduceRequest::default()
        .with_transactional_id(Some(TransactionalId(text("tx"))))
        .with_acks(-1)
        .with_timeout_ms(1000)
        .with_topic_data(vec![data]);
    encoded(&request, version)
}

fn fetch(version: i16) -> Bytes {
    let mut partition = FetchPartition::default().with_partition(2).with_fetch_offset(5).with_partition_max_bytes(9);
    if version >= 9 {
        partition = partition.with_current_leader_epoch(0);
    }
    if version >= 12 {
        partition = partition.with_last_fetched_epoch(0);
    }
    if version >= 17 {
        partition = partition.with_replica_directory_id(Uuid::from_u128(8));
    }
    let (mut wanted, mut forgotten) = (FetchTopic::default(), ForgottenTopic::default());
    if version >= 13 {
        wanted = wanted.with_topic_id(Uuid::from_u128(5));
        forgotten = forgotten.with_topic_id(Uuid::from_u128(6));
    } else {
        wanted = wanted.with_topic(topic("orders"));
        forgotten = forgotten.with_topic(topic("clicks"));
    }
    let mut request = FetchRequest::default()
        .with_max_wait_ms(500)
        .with_min_bytes(1)
        .with_max_bytes(1 << 20)
        .with_isolation_level(1)
        .with_topics(vec![wanted.with_partitions(vec![partition.clone(), partition])]);
    if version >= 7 {
        request = request
            .with_session_id(4)
            .with_session_epoch(2)
            .with_forgotten_topics_data(vec![forgotten.with_partitions(vec![1, 2, 3])]);
    }
    if version >= 11 {
        request = request.with_rack_id(text("rack"));
    }
    if version >= 12 {
        request = request.with_cluster_id(Some(text("cluster")));
    }
    if version >= 15 {
        request =
            request.with_replica_state(ReplicaState::default().with_replica_id(BrokerId(3)).with_replica_epoch(4));
    }
    encoded(&request, version)
}

fn list_offsets(version: i16) -> Bytes {
    let partition = ListOffsetsPartition::default()
        .with_partition_index(1)
        .with_current_leader_epoch(if version >= 4 { 0 } else { -1 })
        .with_timestamp(-2);
    let wanted = ListOffsetsTopic::default().with_name(topic("orders")).with_partitions(vec![partition; 3]);
    let request = ListOffsetsRequest::default()
        .with_isolation_level(i8::from(version >= 2))
        .with_topics(vec![wanted])
        .with_timeout_ms(if version >= 10 { 100 } else { 0 });
    encoded(&request, version)
}

fn metadata(version: i16) -> Bytes {
    let mut wanted = vec![MetadataRequestTopic::default().with_name(Some(topic("orders")))];
    if version >= 10 {
        wanted.push(MetadataRequestTopic::default().with_name(None).with_topic_id(Uuid::from_u128(3)));
    }
    let request = MetadataRequest::default()
        .with_topics(Some(wanted))
        .with_allow_auto_topic_creation(version < 4)
        .with_include_cluster_authorized_operations((8..=10).contains(&version))
        .with_include_topic_authorized_operations(version >= 8);
    encoded(&request, version)
}

fn offset_commit(version: i16) -> Bytes {
    let partition = OffsetCommitRequestPartition::default()
        .with_partition_index(1)
        .with_committed_offset(77)
        .with_committed_leader_epoch(if version >= 6 { 0 } else { -1 })
        .with_committed_metadata(Some(text("note")));
    let wanted = OffsetCommitRequestTopic::default().with_name(topic("orders")).with_partitions(vec![partition; 2]);
    let request = OffsetCommitRequest::default()
        .with_group_id(group())
        .with_generation_id_or_member_epoch(3)
        .with_member_id(text("m"))
        .with_group_instance_id((version >= 7).then(|| text("static")))
        .with_retention_time_ms(if version <= 4 { 1000 } else { -1 })
        .with_topics(vec![wanted]);
    encoded(&request, version)
}

fn offset_fetch(version: i16) -> Bytes {
    let request = OffsetFetchRequest::default().with_require_stable(version >= 7);
    if version <= 7 {
        let wanted = OffsetFetchRequestTopic::default().with_name(topic("orders")).with_partition_indexes(vec![0, 5]);
        return encoded(&request.with_group_id(group()).with_topics(Some(vec![wanted])), version);
    }
    let wanted = OffsetFetchRequestTopics::default().with_name(topic("orders")).with_partition_indexes(vec![0, 5]);
    let mut asked = OffsetFetchRequestGroup::default().with_group_id(group()).with_topics(Some(vec![wanted]));
    if version >= 9 {
        asked = asked.with_member_id(Some(text("m"))).with_member_epoch(2);
    }
    let all = OffsetFetchRequestGroup::default().with_group_id(group()).with_topics(None);
    encoded(&request.with_groups(vec![asked, all]), version)
}

fn join_group(version: i16) -> Bytes {
    let protocol =
        JoinGroupRequestProtocol::default().with_name(text("range")).with_metadata(Bytes::from_static(b"topics"));
    let request = JoinGroupRequest::default()
        .with_group_id(group())
        .with_session_timeout_ms(1000)
        .with_rebalance_timeout_ms(if version >= 1 { 2000 } else { -1 })
        .with_member_id(text("m"))
        .with_group_instance_id((version >= 5).then(|| text("static")))
        .with_protocol_type(text("consumer"))
        .with_protocols(vec![protocol.clone(), protocol])
        .with_reason((version >= 8).then(|| text("because")));
    encoded(&request, version)
}

fn leave_group(version: i16) -> Bytes {
    let request = LeaveGroupRequest::default().with_group_id(group());
    if version <= 2 {
        return encoded(&request.with_member_id(text("m")), version);
    }
    let member = MemberIdentity::default()
        .with_member_id(text("m"))
        .with_group_instance_id(Some(text("static")))
        .with_reason((version >= 5).then(|| text("done")));
    encoded(&request.with_members(vec![member.clone(), member]), version)
}

fn sync_group(version: i16) -> Bytes {
    let assignment =
        SyncGroupRequestAssignment::default().with_member_id(text("m")).with_assignment(Bytes::from_static(b"parts"));
    let request = SyncGroupRequest::default()
        .with_group_id(group())
        .with_generation_id(3)
        .with_member_id(text("m"))
        .with_group_instance_id((version >= 3).then(|| text("static")))
        .with_protocol_type((version >= 5).then(|| text("consumer")))
        .with_protocol_name((version >= 5).then(|| text("range")))
        .with_assignments(vec![assignment.clone(), assignment]);
    encoded(&request, version)
}

fn create_topics(version: i16) -> Bytes {
    let assignment =
        CreatableReplicaAssignment::default().with_partition_index(0).with_broker_ids(vec![BrokerId(1), BrokerId(2)]);
    let config = |value| CreatableTopicConfig::default().with_name(text("segment.bytes")).with_value(value);
    let wanted = CreatableTopic::default()
        .with_name(topic("orders"))
        .with_num_partitions(3)
        .with_replication_factor(1)
        .with_assignments(vec![assignment.clone(), assignment])
        .with_configs(vec![config(None), config(Some(text("1048576")))]);
    let request = CreateTopicsRequest::default()
        .with_topics(vec![wanted.clone(), wanted])
        .with_timeout_ms(5)
        .with_validate_only(true);
    encoded(&request, version)
}

fn delete_topics(version: i16) -> Bytes {
    let request = DeleteTopicsRequest::default().with_timeout_ms(5);
    if version <= 5 {
        return encoded(&request.with_topic_names(vec![topic("a"), topic("orders")]), version);
    }
    let by_name = DeleteTopicState::default().with_name(Some(topic("orders")));
    let by_id = DeleteTopicState::default().with_name(None).with_topic_id(Uuid::from_u128(7));
    encoded(&request.with_topics(vec![by_name, by_id]), version)
}

fn leader_epoch(version: i16) -> Bytes {
    let partition = OffsetForLeaderPartition::default().with_partition(1).with_current_leader_epoch(0);
    let wanted = OffsetForLeaderTopic::default().with_topic(topic("orders")).with_partitions(vec![partition; 2]);
    let request = OffsetForLeaderEpochRequest::default()
        .with_replica_id(BrokerId(if version >= 3 { -1 } else { -2 }))
        .with_topics(vec![wanted]);
    encoded(&request, version)
}
