//! Consumer group requests. The rules are in [`crate::coordinator`]; here messages are taken apart and put together,
//! with regard to which field exists in which version.
//!
//! Strings and bytes of a request point into its frame. What a group keeps is copied, so that it does not keep frames.

use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use kafka_protocol::messages::find_coordinator_response::Coordinator;
use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;
use kafka_protocol::messages::leave_group_response::MemberResponse;
use kafka_protocol::messages::list_groups_response::ListedGroup;
use kafka_protocol::messages::{
    BrokerId, DescribeGroupsRequest, DescribeGroupsResponse, FindCoordinatorRequest, FindCoordinatorResponse, GroupId,
    HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, LeaveGroupResponse,
    ListGroupsRequest, ListGroupsResponse, SyncGroupRequest, SyncGroupResponse,
};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use super::{RequestContext, distinct};
use crate::coordinator::group::{
    GroupDescription, JoinReply, JoinRequest, Leaving, MemberDescription, State, SyncReply, SyncRequest,
};
use crate::server::Services;

/// What `key_type` asks for: a consumer group, a transactional id.
const KEY_TYPES: [i8; 2] = [0, 1];
/// The only kind of group there is here, as ListGroups names it.
const GROUP_TYPE: &str = "classic";
/// First version in which a newcomer has to come back with the id it is given (KIP-394).
const JOIN_MEMBER_ID_REQUIRED: i16 = 4;
/// First version that knows `skip_assignment` (KIP-814).
const JOIN_SKIP_ASSIGNMENT: i16 = 9;
/// READ, DELETE and DESCRIBE as bits: everything that can be done to a group, as there is no authorizer.
const GROUP_OPERATIONS: i32 = 1 << 3 | 1 << 6 | 1 << 8;
/// `authorized_operations` of a request that did not ask for them.
const OPERATIONS_NOT_ASKED: i32 = i32::MIN;

/// Where the coordinator of a group or of a transactional id is: here.
pub async fn find_coordinator(
    services: &Arc<Services>,
    context: &RequestContext,
    request: FindCoordinatorRequest,
) -> FindCoordinatorResponse {
    let (host, port) = &services.advertised;
    let here = (services.broker.node_id, host.as_str(), i32::from(*port));
    coordinators(context.api_version, request, here)
}

/// JoinGroup: waits until the generation begins.
pub async fn join_group(
    services: &Arc<Services>,
    context: &RequestContext,
    request: JoinGroupRequest,
) -> JoinGroupResponse {
    let member_id = request.member_id.clone();
    let group_id = request.group_id.clone();
    let reply = services.groups.join(&group_id.0, join_request(context, request)).await;
    join_response(context.api_version, &member_id, reply)
}

/// SyncGroup: waits until the leader's assignments are durable.
pub async fn sync_group(
    services: &Arc<Services>,
    _context: &RequestContext,
    request: SyncGroupRequest,
) -> SyncGroupResponse {
    let reply = services.groups.sync(
        &request.group_id.0,
        SyncRequest {
            member_id: request.member_id.to_string(),
            instance_id: request.group_instance_id.as_deref().map(str::to_owned),
            generation: request.generation_id,
            protocol_type: request.protocol_type.as_deref().map(str::to_owned),
            protocol: request.protocol_name.as_deref().map(str::to_owned),
            assignments: request
                .assignments
                .iter()
                .map(|one| (one.member_id.to_string(), Bytes::copy_from_slice(&one.assignment)))
                .collect(),
        },
    );
    sync_response(reply.await)
}

pub async fn heartbeat(
    services: &Arc<Services>,
    _context: &RequestContext,
    request: HeartbeatRequest,
) -> HeartbeatResponse {
    let instance = request.group_instance_id.as_deref();
    let answer = services.groups.heartbeat(&request.group_id.0, &request.member_id, instance, request.generation_id);
    HeartbeatResponse::default().with_error_code(code(answer))
}

/// LeaveGroup: one member up to version 2, a list since.
pub async fn leave_group(
    services: &Arc<Services>,
    context: &RequestContext,
    request: LeaveGroupRequest,
) -> LeaveGroupResponse {
    let leaving = if context.api_version >= 3 {
        request
            .members
            .iter()
            .map(|one| Leaving {
                member_id: one.member_id.to_string(),
                instance_id: one.group_instance_id.as_deref().map(str::to_owned),
            })
            .collect()
    } else {
        vec![Leaving { member_id: request.member_id.to_string(), instance_id: None }]
    };
    leave_response(context.api_version, &leaving, services.groups.leave(&request.group_id.0, &leaving).await)
}

/// ListGroups, filtered by state (version 4) and type (version 5).
pub async fn list_groups(
    services: &Arc<Services>,
    _context: &RequestContext,
    request: ListGroupsRequest,
) -> ListGroupsResponse {
    let wanted =
        |filter: &[StrBytes], name: &str| filter.is_empty() || filter.iter().any(|one| one.eq_ignore_ascii_case(name));
    let groups = services.groups.list().into_iter().filter(|group| {
        wanted(&request.states_filter, group.state.as_str()) && wanted(&request.types_filter, GROUP_TYPE)
    });
    let listed = groups.map(|group| listed_group(group.id, group.protocol_type, group.state));
    ListGroupsResponse::default().with_groups(listed.collect())
}

pub async fn describe_groups(
    services: &Arc<Services>,
    context: &RequestContext,
    request: DescribeGroupsRequest,
) -> DescribeGroupsResponse {
    let operations = if request.include_authorized_operations { GROUP_OPERATIONS } else { OPERATIONS_NOT_ASKED };
    let described = distinct(request.groups, GroupId::clone).map(|id| {
        let found = services.groups.describe(&id.0);
        described_group(context.api_version, id, found).with_authorized_operations(operations)
    });
    DescribeGroupsResponse::default().with_groups(described.collect())
}

fn coordinators(
    version: i16,
    request: FindCoordinatorRequest,
    (node_id, host, port): (i32, &str, i32),
) -> FindCoordinatorResponse {
    let host = StrBytes::from_string(host.to_owned());
    let supported = KEY_TYPES.contains(&request.key_type);
    // Share groups have no coordinator here. COORDINATOR_NOT_AVAILABLE would have clients ask for ever, and naming this
    // node would be untrue; INVALID_REQUEST is fatal to them and carries the reason.
    let refusal = || (!supported).then(|| StrBytes::from_string(refused_key_type(request.key_type)));
    let refused = ResponseError::InvalidRequest.code();
    if version < 4 {
        let response = FindCoordinatorResponse::default().with_error_message(refusal());
        return if supported {
            response.with_node_id(BrokerId(node_id)).with_host(host).with_port(port)
        } else {
            response.with_error_code(refused).with_node_id(BrokerId(-1)).with_port(-1)
        };
    }
    let coordinators = request.coordinator_keys.into_iter().map(|key| {
        let coordinator = Coordinator::default().with_key(key).with_error_message(refusal());
        if supported {
            coordinator.with_node_id(BrokerId(node_id)).with_host(host.clone()).with_port(port)
        } else {
            coordinator.with_error_code(refused).with_node_id(BrokerId(-1)).with_port(-1)
        }
    });
    FindCoordinatorResponse::default().with_coordinators(coordinators.collect())
}

fn refused_key_type(key_type: i8) -> String {
    match key_type {
        2 => "share groups are not supported by this broker".to_owned(),
        other => format!("coordinator key type {other} is not known"),
    }
}

fn join_request(context: &RequestContext, request: JoinGroupRequest) -> JoinRequest {
    let instance_id = request.group_instance_id.as_deref().map(str::to_owned);
    // As Kafka names members: after their instance, or their client.
    let name = instance_id.as_deref().unwrap_or(&context.client_id);
    JoinRequest {
        new_member_id: format!("{name}-{}", Uuid::new_v4()),
        member_id: request.member_id.to_string(),
        instance_id,
        client_id: context.client_id.clone(),
        client_host: context.client_host.clone(),
        session_timeout_ms: request.session_timeout_ms,
        rebalance_timeout_ms: request.rebalance_timeout_ms,
        protocol_type: request.protocol_type.to_string(),
        protocols: request
            .protocols
            .iter()
            .map(|one| (one.name.to_string(), Bytes::copy_from_slice(&one.metadata)))
            .collect(),
        require_member_id: context.api_version >= JOIN_MEMBER_ID_REQUIRED,
        can_skip_assignment: context.api_version >= JOIN_SKIP_ASSIGNMENT,
    }
}

fn join_response(version: i16, asked_as: &StrBytes, reply: JoinReply) -> JoinGroupResponse {
    match reply {
        Ok(joined) => {
            let members = joined.members.into_iter().map(|member| {
                JoinGroupResponseMember::default()
                    .with_member_id(member.member_id.into())
                    .with_group_instance_id(member.instance_id.map(Into::into))
                    .with_metadata(member.metadata)
            });
            JoinGroupResponse::default()
                .with_generation_id(joined.generation)
                .with_protocol_type(Some(joined.protocol_type.into()))
                .with_protocol_name(Some(joined.protocol.into()))
                .with_leader(joined.leader.into())
                .with_skip_assignment(joined.skip_assignment)
                .with_member_id(joined.member_id.into())
                .with_members(members.collect())
        }
        Err(refusal) => {
            let given = refusal.member_id;
            JoinGroupResponse::default()
                .with_error_code(refusal.error.code())
                // Null is allowed from version 7 on, where it says "none".
                .with_protocol_name(if version >= 7 { None } else { Some(StrBytes::default()) })
                .with_member_id(if given.is_empty() { asked_as.clone() } else { given.into() })
        }
    }
}

fn sync_response(reply: SyncReply) -> SyncGroupResponse {
    match reply {
        Ok(part) => SyncGroupResponse::default()
            .with_protocol_type(Some(part.protocol_type.into()))
            .with_protocol_name(Some(part.protocol.into()))
            .with_assignment(part.assignment),
        Err(error) => SyncGroupResponse::default().with_error_code(error.code()),
    }
}

fn leave_response(
    version: i16,
    leaving: &[Leaving],
    answer: Result<Vec<Result<(), ResponseError>>, ResponseError>,
) -> LeaveGroupResponse {
    let answers = match answer {
        Ok(answers) => answers,
        Err(error) => return LeaveGroupResponse::default().with_error_code(error.code()),
    };
    if version < 3 {
        let only = answers.into_iter().next().unwrap_or(Ok(()));
        return LeaveGroupResponse::default().with_error_code(code(only));
    }
    let members = leaving.iter().zip(answers).map(|(one, answer)| {
        MemberResponse::default()
            .with_member_id(one.member_id.clone().into())
            .with_group_instance_id(one.instance_id.clone().map(Into::into))
            .with_error_code(code(answer))
    });
    LeaveGroupResponse::default().with_members(members.collect())
}

fn listed_group(id: String, protocol_type: String, state: State) -> ListedGroup {
    ListedGroup::default()
        .with_group_id(GroupId(id.into()))
        .with_protocol_type(protocol_type.into())
        .with_group_state(StrBytes::from_static_str(state.as_str()))
        .with_group_type(StrBytes::from_static_str(GROUP_TYPE))
}

fn described_group(version: i16, id: GroupId, found: Option<GroupDescription>) -> DescribedGroup {
    let Some(group) = found else {
        let missing = DescribedGroup::default().with_group_state(StrBytes::from_static_str(State::Dead.as_str()));
        // Before version 6 a group that does not exist is one that is dead, and no error.
        return if version >= 6 {
            let message = format!("group {} does not exist", id.0.as_str());
            let error = ResponseError::GroupIdNotFound.code();
            missing.with_error_code(error).with_error_message(Some(message.into())).with_group_id(id)
        } else {
            missing.with_group_id(id)
        };
    };
    DescribedGroup::default()
        .with_group_id(id)
        .with_group_state(StrBytes::from_static_str(group.state.as_str()))
        .with_protocol_type(group.protocol_type.into())
        .with_protocol_data(group.protocol.into())
        .with_members(group.members.into_iter().map(described_member).collect())
}

fn described_member(member: MemberDescription) -> DescribedGroupMember {
    DescribedGroupMember::default()
        .with_member_id(member.member_id.into())
        .with_group_instance_id(member.instance_id.map(Into::into))
        .with_client_id(member.client_id.into())
        .with_client_host(member.client_host.into())
        .with_member_metadata(member.metadata)
        .with_member_assignment(member.assignment)
}

fn code(answer: Result<(), ResponseError>) -> i16 {
    answer.err().map_or(0, |error| error.code())
}

#[cfg(test)]
mod tests;
