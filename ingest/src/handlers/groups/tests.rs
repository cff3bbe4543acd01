use bytes::BytesMut;
use kafka_protocol::protocol::{Decodable, Encodable};

use super::*;
use crate::coordinator::group::{JoinRefusal, Joined, JoinedMember, Synced};

/// Encodes in one version and reads back: a field that the version does not have fails the first, a wrong length the
/// second.
fn round_trip<M: Encodable + Decodable>(message: &M, version: i16) -> M {
    let mut bytes = BytesMut::new();
    message.encode(&mut bytes, version).unwrap_or_else(|error| panic!("version {version}: {error}"));
    let mut bytes = bytes.freeze();
    let back = M::decode(&mut bytes, version).unwrap_or_else(|error| panic!("version {version}: {error}"));
    assert!(bytes.is_empty(), "version {version}: trailing bytes");
    back
}

fn context(api_version: i16) -> RequestContext {
    RequestContext { api_version, client_id: "app".to_owned(), client_host: "/10.0.0.1".to_owned() }
}

#[test]
fn find_coordinator_in_every_version() {
    for version in 0..=6 {
        for key_type in [0, 1, 2, 9] {
            let request = if version < 4 {
                FindCoordinatorRequest::default().with_key("g".into()).with_key_type(key_type)
            } else {
                let keys = vec!["g".into(), "h".into()];
                FindCoordinatorRequest::default().with_coordinator_keys(keys).with_key_type(key_type)
            };
            let response = round_trip(&coordinators(version, request, (1, "127.0.0.1", 9092)), version);
            let (code, node, port) = if version < 4 {
                (response.error_code, response.node_id, response.port)
            } else {
                assert_eq!(response.coordinators.len(), 2);
                let last = &response.coordinators[1];
                assert_eq!(last.key.as_str(), "h");
                assert_eq!(last.error_message.is_some(), key_type > 1);
                (last.error_code, last.node_id, last.port)
            };
            let expected = if key_type <= 1 { (0, 1, 9092) } else { (ResponseError::InvalidRequest.code(), -1, -1) };
            assert_eq!((code, node.0, port), expected, "version {version}, key type {key_type}");
        }
    }
}

#[test]
fn join_in_every_version() {
    for version in 0..=9 {
        let member = JoinedMember {
            member_id: "m".to_owned(),
            instance_id: Some("i".to_owned()),
            metadata: Bytes::from_static(&[1]),
        };
        let joined = Joined {
            member_id: "m".to_owned(),
            generation: 3,
            protocol_type: "consumer".to_owned(),
            protocol: "range".to_owned(),
            leader: "m".to_owned(),
            skip_assignment: version >= JOIN_SKIP_ASSIGNMENT,
            members: vec![member],
        };
        let response = round_trip(&join_response(version, &"".into(), Ok(joined)), version);
        assert_eq!((response.generation_id, response.members.len()), (3, 1));
        assert_eq!(response.protocol_type.is_some(), version >= 7);

        let error = ResponseError::MemberIdRequired;
        let given = JoinRefusal { error, member_id: "app-1".to_owned() };
        let response = round_trip(&join_response(version, &"".into(), Err(given)), version);
        assert_eq!((response.error_code, response.member_id.as_str()), (error.code(), "app-1"));
        assert_eq!(response.protocol_name.is_some(), version < 7, "null is not allowed before version 7");
        let unknown = JoinRefusal::of(ResponseError::UnknownMemberId);
        let response = round_trip(&join_response(version, &"mine".into(), Err(unknown)), version);
        assert_eq!((response.generation_id, response.member_id.as_str()), (-1, "mine"));
    }
}

#[test]
fn join_requests_follow_their_version() {
    let request = || JoinGroupRequest::default().with_session_timeout_ms(10_000);
    assert!(!join_request(&context(3), request()).require_member_id);
    assert!(join_request(&context(4), request()).require_member_id);
    assert!(join_request(&context(9), request()).can_skip_assignment);
    assert!(join_request(&context(5), request()).new_member_id.starts_with("app-"));
    let fixed = join_request(&context(5), request().with_group_instance_id(Some("i7".into())));
    assert!(fixed.new_member_id.starts_with("i7-"));
    assert_eq!(join_request(&context(0), request()).rebalance_timeout_ms(), 10_000);
}

#[test]
fn sync_heartbeat_and_leave_in_every_version() {
    let part = || Synced {
        protocol_type: "consumer".to_owned(),
        protocol: "range".to_owned(),
        assignment: Bytes::from_static(&[1, 2]),
    };
    for version in 0..=5 {
        assert_eq!(round_trip(&sync_response(Ok(part())), version).assignment.len(), 2);
        let refused = round_trip(&sync_response(Err(ResponseError::RebalanceInProgress)), version);
        assert_eq!(refused.error_code, ResponseError::RebalanceInProgress.code());

        let leaving = [Leaving { member_id: "m".to_owned(), instance_id: Some("i".to_owned()) }];
        let answer = Ok(vec![Err(ResponseError::FencedInstanceId)]);
        let response = round_trip(&leave_response(version, &leaving, answer), version);
        let code = ResponseError::FencedInstanceId.code();
        assert_eq!(response.error_code, if version < 3 { code } else { 0 });
        assert_eq!(
            response.members.iter().map(|one| one.error_code).collect::<Vec<_>>(),
            match version {
                ..3 => Vec::new(),
                _ => vec![code],
            }
        );
        let nowhere = Err(ResponseError::CoordinatorNotAvailable);
        assert_ne!(round_trip(&leave_response(version, &leaving, nowhere), version).error_code, 0);
    }
    for version in 0..=4 {
        let response = HeartbeatResponse::default().with_error_code(code(Err(ResponseError::IllegalGeneration)));
        assert_eq!(round_trip(&response, version).error_code, 22);
    }
}

#[test]
fn list_and_describe_in_every_version() {
    for version in 0..=5 {
        let group = listed_group("g".to_owned(), "consumer".to_owned(), State::Stable);
        let response = round_trip(&ListGroupsResponse::default().with_groups(vec![group]), version);
        assert_eq!(response.groups[0].group_state.as_str(), if version >= 4 { "Stable" } else { "" });
        assert_eq!(response.groups[0].group_type.as_str(), if version >= 5 { "classic" } else { "" });
    }
    let member = || MemberDescription {
        member_id: "m".to_owned(),
        instance_id: Some("i".to_owned()),
        client_id: "app".to_owned(),
        client_host: "/10.0.0.1".to_owned(),
        metadata: Bytes::from_static(&[1]),
        assignment: Bytes::from_static(&[2]),
    };
    for version in 0..=6 {
        let group = GroupDescription {
            state: State::Stable,
            generation: 1,
            protocol_type: "consumer".to_owned(),
            protocol: "range".to_owned(),
            members: vec![member()],
        };
        let operations = if version >= 3 { GROUP_OPERATIONS } else { OPERATIONS_NOT_ASKED };
        let found = described_group(version, GroupId("g".into()), Some(group)).with_authorized_operations(operations);
        let missing = described_group(version, GroupId("h".into()), None);
        let response = round_trip(&DescribeGroupsResponse::default().with_groups(vec![found, missing]), version);
        assert_eq!(response.groups[0].members[0].member_assignment, Bytes::from_static(&[2]));
        let gone = &response.groups[1];
        assert_eq!(gone.group_state.as_str(), "Dead");
        assert_eq!(gone.error_code, if version >= 6 { ResponseError::GroupIdNotFound.code() } else { 0 });
        assert_eq!(gone.error_message.is_some(), version >= 6);
    }
}
