//! Consumer groups over the wire: static members, what may be deleted and what may not, lists and their filters.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use kafka_protocol::messages::offset_delete_request::{OffsetDeleteRequestPartition, OffsetDeleteRequestTopic};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestGroup;
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::*;
use kafka_protocol::protocol::StrBytes;

use super::harness::{Broker, Client};
use super::{create, name};

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn group(id: &str) -> GroupId {
    GroupId(text(id))
}

/// A subscription as consumers write it.
fn subscription(topic: &str) -> Bytes {
    let mut out = BytesMut::new();
    out.put_i16(0);
    out.put_i32(1);
    out.put_i16(topic.len() as i16);
    out.put_slice(topic.as_bytes());
    out.put_i32(-1);
    out.freeze()
}

fn join(member: &str, instance: Option<&str>, protocol_type: &str) -> JoinGroupRequest {
    let protocol = JoinGroupRequestProtocol::default().with_name(text("range")).with_metadata(subscription("orders"));
    JoinGroupRequest::default()
        .with_group_id(group("team"))
        .with_session_timeout_ms(30_000)
        .with_rebalance_timeout_ms(30_000)
        .with_member_id(text(member))
        .with_group_instance_id(instance.map(text))
        .with_protocol_type(text(protocol_type))
        .with_protocols(vec![protocol])
}

fn sync(member: &str, instance: Option<&str>, generation: i32, part: &'static [u8]) -> SyncGroupRequest {
    let assignment =
        SyncGroupRequestAssignment::default().with_member_id(text(member)).with_assignment(Bytes::from_static(part));
    SyncGroupRequest::default()
        .with_group_id(group("team"))
        .with_generation_id(generation)
        .with_member_id(text(member))
        .with_group_instance_id(instance.map(text))
        .with_protocol_type(Some(text("consumer")))
        .with_protocol_name(Some(text("range")))
        .with_assignments(vec![assignment])
}

/// A dynamic member that leads a Stable group; returns its id.
async fn lead(client: &mut Client, protocol_type: &str) -> String {
    let required: JoinGroupResponse = client.ask(9, &join("", None, protocol_type)).await;
    assert_eq!(required.error_code, ResponseError::MemberIdRequired.code());
    let member = required.member_id.to_string();
    let joined: JoinGroupResponse = client.ask(9, &join(&member, None, protocol_type)).await;
    assert_eq!((joined.error_code, joined.leader.as_str()), (0, member.as_str()));
    let request = sync(&member, None, joined.generation_id, b"part").with_protocol_type(Some(text(protocol_type)));
    let synced: SyncGroupResponse = client.ask(5, &request).await;
    assert_eq!((synced.error_code, synced.assignment), (0, Bytes::from_static(b"part")));
    member
}

async fn commit(client: &mut Client, id: &str, topic: &str, offset: i64) -> i16 {
    let partition = OffsetCommitRequestPartition::default().with_committed_offset(offset);
    let wanted = OffsetCommitRequestTopic::default().with_name(name(topic)).with_partitions(vec![partition]);
    let request = OffsetCommitRequest::default().with_group_id(group(id)).with_topics(vec![wanted]);
    let response: OffsetCommitResponse = client.ask(9, &request).await;
    response.topics[0].partitions[0].error_code
}

/// Every committed offset of a group.
async fn committed(client: &mut Client, id: &str) -> Vec<(String, i64)> {
    let asked = OffsetFetchRequestGroup::default().with_group_id(group(id)).with_topics(None);
    let response: OffsetFetchResponse = client.ask(9, &OffsetFetchRequest::default().with_groups(vec![asked])).await;
    let rows = response.groups[0]
        .topics
        .iter()
        .flat_map(|topic| topic.partitions.iter().map(|row| (topic.name.to_string(), row.committed_offset)));
    rows.collect()
}

async fn delete(client: &mut Client, ids: &[&str]) -> Vec<i16> {
    let request = DeleteGroupsRequest::default().with_groups_names(ids.iter().map(|id| group(id)).collect());
    let response: DeleteGroupsResponse = client.ask(2, &request).await;
    response.results.iter().map(|row| row.error_code).collect()
}

/// The code of the whole, then those of the partitions.
async fn delete_offsets(client: &mut Client, id: &str, topics: &[(&str, i32)]) -> (i16, Vec<i16>) {
    let topic = |(topic, index): &(&str, i32)| {
        let partition = OffsetDeleteRequestPartition::default().with_partition_index(*index);
        OffsetDeleteRequestTopic::default().with_name(name(topic)).with_partitions(vec![partition])
    };
    let request =
        OffsetDeleteRequest::default().with_group_id(group(id)).with_topics(topics.iter().map(topic).collect());
    let response: OffsetDeleteResponse = client.ask(0, &request).await;
    let rows = response.topics.iter().flat_map(|topic| topic.partitions.iter().map(|row| row.error_code));
    (response.error_code, rows.collect())
}

#[tokio::test]
async fn a_static_member_comes_back_and_the_old_one_is_fenced() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    let first: JoinGroupResponse = client.ask(9, &join("", Some("one"), "consumer")).await;
    let old = first.member_id.to_string();
    assert_eq!((first.error_code, first.generation_id), (0, 1));
    let _: SyncGroupResponse = client.ask(5, &sync(&old, Some("one"), 1, b"part")).await;
    let again: JoinGroupResponse = client.ask(9, &join("", Some("one"), "consumer")).await;
    let new = again.member_id.to_string();
    assert_eq!((again.error_code, again.generation_id, again.skip_assignment), (0, 1, true));
    assert_ne!(new, old);
    let beat = |member: &str| {
        HeartbeatRequest::default()
            .with_group_id(group("team"))
            .with_generation_id(1)
            .with_member_id(text(member))
            .with_group_instance_id(Some(text("one")))
    };
    let fenced: HeartbeatResponse = client.ask(4, &beat(&old)).await;
    assert_eq!(fenced.error_code, ResponseError::FencedInstanceId.code());
    let alive: HeartbeatResponse = client.ask(4, &beat(&new)).await;
    assert_eq!(alive.error_code, 0);
    let part: SyncGroupResponse = client.ask(5, &sync(&new, Some("one"), 1, b"")).await;
    assert_eq!(part.assignment, Bytes::from_static(b"part"));

    // Loaded before the port opens: the first request after a restart finds the group as it was.
    let broker = broker.restart().await;
    let mut client = broker.connect().await;
    let alive: HeartbeatResponse = client.ask(4, &beat(&new)).await;
    assert_eq!(alive.error_code, 0);
    let stranger = MemberIdentity::default().with_group_instance_id(Some(text("two")));
    let by_instance = MemberIdentity::default().with_group_instance_id(Some(text("one")));
    let request = LeaveGroupRequest::default().with_group_id(group("team")).with_members(vec![stranger, by_instance]);
    let left: LeaveGroupResponse = client.ask(5, &request).await;
    let codes: Vec<i16> = left.members.iter().map(|member| member.error_code).collect();
    assert_eq!((left.error_code, codes), (0, vec![ResponseError::UnknownMemberId.code(), 0]));
    assert_eq!(delete(&mut client, &["team"]).await, [0]);
}

#[tokio::test]
async fn groups_are_deleted_when_nobody_is_in_them() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    create(&mut client, "orders").await;
    let member = lead(&mut client, "consumer").await;
    assert_eq!(commit(&mut client, "alone", "orders", 7).await, 0);
    let not_found = ResponseError::GroupIdNotFound.code();
    let codes = delete(&mut client, &["team", "alone", "nobody", ""]).await;
    let invalid = ResponseError::InvalidGroupId.code();
    assert_eq!(codes, [ResponseError::NonEmptyGroup.code(), 0, not_found, invalid]);
    assert!(committed(&mut client, "alone").await.is_empty());
    let request = LeaveGroupRequest::default()
        .with_group_id(group("team"))
        .with_members(vec![MemberIdentity::default().with_member_id(text(&member))]);
    let left: LeaveGroupResponse = client.ask(5, &request).await;
    assert_eq!(left.members[0].error_code, 0);
    assert_eq!(delete(&mut client, &["team"]).await, [0]);

    let broker = broker.restart().await;
    let mut client = broker.connect().await;
    let listed: ListGroupsResponse = client.ask(5, &ListGroupsRequest::default()).await;
    assert!(listed.groups.is_empty(), "{:?}", listed.groups);
    assert_eq!(commit(&mut client, "alone", "orders", 8).await, 0, "the name is free again");
}

#[tokio::test]
async fn offsets_of_topics_that_are_read_stay() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    for topic in ["orders", "clicks"] {
        create(&mut client, topic).await;
    }
    for topic in ["orders", "clicks"] {
        assert_eq!(commit(&mut client, "team", topic, 7).await, 0);
    }
    lead(&mut client, "consumer").await;
    let asked = [("orders", 0), ("clicks", 0), ("clicks", 1), ("nowhere", 0)];
    let (error, codes) = delete_offsets(&mut client, "team", &asked).await;
    let unknown = ResponseError::UnknownTopicOrPartition.code();
    assert_eq!((error, codes), (0, vec![ResponseError::GroupSubscribedToTopic.code(), 0, unknown, unknown]));
    assert_eq!(committed(&mut client, "team").await, [("orders".to_owned(), 7)]);
    let nobody = delete_offsets(&mut client, "nobody", &asked).await;
    assert_eq!(nobody, (ResponseError::GroupIdNotFound.code(), Vec::new()));

    let broker = broker.restart().await;
    let mut client = broker.connect().await;
    assert_eq!(committed(&mut client, "team").await, [("orders".to_owned(), 7)]);
}

#[tokio::test]
async fn members_that_are_no_consumers_keep_their_offsets() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    create(&mut client, "orders").await;
    lead(&mut client, "connect").await;
    let (error, _) = delete_offsets(&mut client, "team", &[("orders", 0)]).await;
    assert_eq!(error, ResponseError::NonEmptyGroup.code());
}

#[tokio::test]
async fn lists_are_filtered_and_missing_groups_told_by_version() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    create(&mut client, "orders").await;
    lead(&mut client, "consumer").await;
    assert_eq!(commit(&mut client, "alone", "orders", 7).await, 0);
    let mut listed = async |states: &[&str], types: &[&str]| {
        let request = ListGroupsRequest::default()
            .with_states_filter(states.iter().map(|state| text(state)).collect())
            .with_types_filter(types.iter().map(|kind| text(kind)).collect());
        let response: ListGroupsResponse = client.ask(5, &request).await;
        response.groups.iter().map(|group| group.group_id.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(listed(&[], &[]).await, ["alone", "team"]);
    assert_eq!(listed(&["Stable"], &[]).await, ["team"]);
    assert_eq!(listed(&["Empty", "Dead"], &["Classic"]).await, ["alone"]);
    assert!(listed(&[], &["consumer"]).await.is_empty());
    let request = DescribeGroupsRequest::default().with_groups(vec![group("nobody"), group("team")]);
    let old: DescribeGroupsResponse = client.ask(5, &request).await;
    assert_eq!((old.groups[0].error_code, old.groups[0].group_state.as_str()), (0, "Dead"));
    let new: DescribeGroupsResponse = client.ask(6, &request).await;
    assert_eq!(new.groups[0].error_code, ResponseError::GroupIdNotFound.code());
    let member = &new.groups[1].members[0];
    assert_eq!((new.groups[1].group_state.as_str(), member.member_assignment.as_ref()), ("Stable", b"part".as_slice()));
    assert_eq!(member.member_metadata, subscription("orders"));
}
