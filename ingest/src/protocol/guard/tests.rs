use bytes::Bytes;
use kafka_protocol::messages::*;
use kafka_protocol::protocol::Decodable;
use proptest::prelude::*;

use super::*;
use crate::protocol::samples::request_body;
use crate::protocol::versions::APIS;

/// Every version that is served, with a request in which every field has something.
fn every_request() -> impl Iterator<Item = (ApiKey, i16, Bytes)> {
    APIS.iter()
        .flat_map(|api| (api.served_min..=api.max).map(|version| (api.key, version, request_body(api.key, version))))
}

/// Decodes with the crate; the bytes it left over.
fn decode(key: ApiKey, version: i16, body: &Bytes) -> Option<usize> {
    fn leftover<T: Decodable>(version: i16, body: &Bytes) -> Option<usize> {
        let mut rest = body.clone();
        T::decode(&mut rest, version).ok().map(|_| rest.len())
    }
    match key {
        ApiKey::Produce => leftover::<ProduceRequest>(version, body),
        ApiKey::Fetch => leftover::<FetchRequest>(version, body),
        ApiKey::ListOffsets => leftover::<ListOffsetsRequest>(version, body),
        ApiKey::Metadata => leftover::<MetadataRequest>(version, body),
        ApiKey::OffsetCommit => leftover::<OffsetCommitRequest>(version, body),
        ApiKey::OffsetFetch => leftover::<OffsetFetchRequest>(version, body),
        ApiKey::FindCoordinator => leftover::<FindCoordinatorRequest>(version, body),
        ApiKey::JoinGroup => leftover::<JoinGroupRequest>(version, body),
        ApiKey::Heartbeat => leftover::<HeartbeatRequest>(version, body),
        ApiKey::LeaveGroup => leftover::<LeaveGroupRequest>(version, body),
        ApiKey::SyncGroup => leftover::<SyncGroupRequest>(version, body),
        ApiKey::DescribeGroups => leftover::<DescribeGroupsRequest>(version, body),
        ApiKey::ListGroups => leftover::<ListGroupsRequest>(version, body),
        ApiKey::ApiVersions => leftover::<ApiVersionsRequest>(version, body),
        ApiKey::CreateTopics => leftover::<CreateTopicsRequest>(version, body),
        ApiKey::DeleteTopics => leftover::<DeleteTopicsRequest>(version, body),
        ApiKey::DeleteRecords => leftover::<DeleteRecordsRequest>(version, body),
        ApiKey::InitProducerId => leftover::<InitProducerIdRequest>(version, body),
        ApiKey::OffsetForLeaderEpoch => leftover::<OffsetForLeaderEpochRequest>(version, body),
        ApiKey::DescribeConfigs => leftover::<DescribeConfigsRequest>(version, body),
        ApiKey::AlterConfigs => leftover::<AlterConfigsRequest>(version, body),
        ApiKey::IncrementalAlterConfigs => leftover::<IncrementalAlterConfigsRequest>(version, body),
        ApiKey::DescribeCluster => leftover::<DescribeClusterRequest>(version, body),
        ApiKey::AddPartitionsToTxn => leftover::<AddPartitionsToTxnRequest>(version, body),
        ApiKey::AddOffsetsToTxn => leftover::<AddOffsetsToTxnRequest>(version, body),
        ApiKey::EndTxn => leftover::<EndTxnRequest>(version, body),
        ApiKey::TxnOffsetCommit => leftover::<TxnOffsetCommitRequest>(version, body),
        ApiKey::DescribeProducers => leftover::<DescribeProducersRequest>(version, body),
        ApiKey::DescribeTransactions => leftover::<DescribeTransactionsRequest>(version, body),
        ApiKey::ListTransactions => leftover::<ListTransactionsRequest>(version, body),
        ApiKey::DescribeAcls => leftover::<DescribeAclsRequest>(version, body),
        ApiKey::CreateAcls => leftover::<CreateAclsRequest>(version, body),
        ApiKey::DeleteAcls => leftover::<DeleteAclsRequest>(version, body),
        ApiKey::DescribeLogDirs => leftover::<DescribeLogDirsRequest>(version, body),
        ApiKey::CreatePartitions => leftover::<CreatePartitionsRequest>(version, body),
        ApiKey::DeleteGroups => leftover::<DeleteGroupsRequest>(version, body),
        ApiKey::ElectLeaders => leftover::<ElectLeadersRequest>(version, body),
        ApiKey::ListPartitionReassignments => leftover::<ListPartitionReassignmentsRequest>(version, body),
        ApiKey::OffsetDelete => leftover::<OffsetDeleteRequest>(version, body),
        ApiKey::DescribeClientQuotas => leftover::<DescribeClientQuotasRequest>(version, body),
        ApiKey::DescribeUserScramCredentials => leftover::<DescribeUserScramCredentialsRequest>(version, body),
        ApiKey::ListConfigResources => leftover::<ListConfigResourcesRequest>(version, body),
        ApiKey::DescribeTopicPartitions => leftover::<DescribeTopicPartitionsRequest>(version, body),
        other => panic!("{other:?} is not served"),
    }
}

#[test]
fn every_request_is_walked_to_its_last_byte() {
    for (key, version, body) in every_request() {
        assert_eq!(check_body(key, version, &body), Ok(body.len()), "{key:?} {version}");
        assert_eq!(decode(key, version, &body), Some(0), "{key:?} {version}");
    }
}

#[test]
fn a_request_cut_anywhere_is_refused() {
    for (key, version, body) in every_request() {
        for length in 0..body.len() {
            assert!(check_body(key, version, &body[..length]).is_err(), "{key:?} {version} cut to {length}");
        }
    }
}

#[test]
fn what_follows_a_request_is_not_part_of_it() {
    for (key, version, body) in every_request() {
        let longer = [&body[..], &[0]].concat();
        assert_eq!(check_body(key, version, &longer), Ok(body.len()), "{key:?} {version}");
    }
}

#[test]
fn hostile_lengths_are_refused_without_allocating() {
    // Metadata 1: an array of two billion topics.
    let huge = i32::MAX.to_be_bytes();
    assert!(matches!(check_body(ApiKey::Metadata, 1, &huge), Err(GuardError::Truncated { .. })));
    // Metadata 9: the same as a varint, and one of more than 32 bits.
    let huge = [0xff, 0xff, 0xff, 0xff, 0x0f];
    assert!(matches!(check_body(ApiKey::Metadata, 9, &huge), Err(GuardError::Truncated { .. })));
    let wide = [0xff, 0xff, 0xff, 0xff, 0x1f];
    assert_eq!(check_body(ApiKey::Metadata, 9, &wide), Err(GuardError::VarintTooLong));
    let endless = [0x80, 0x80, 0x80, 0x80, 0x80, 0x00];
    assert_eq!(check_body(ApiKey::Metadata, 9, &endless), Err(GuardError::VarintTooLong));
    let negative = (-2_i32).to_be_bytes();
    assert_eq!(check_body(ApiKey::Metadata, 1, &negative), Err(GuardError::NegativeLength(-2)));
}

#[test]
fn the_elements_of_a_request_are_capped() {
    let request = |count: usize| {
        let mut body = (count as i32).to_be_bytes().to_vec();
        body.resize(4 + 2 * count, 0);
        body
    };
    assert!(check_body(ApiKey::DescribeGroups, 0, &request(ELEMENTS_MAX)).is_ok());
    let refused = check_body(ApiKey::DescribeGroups, 0, &request(ELEMENTS_MAX + 1));
    assert_eq!(refused, Err(GuardError::TooManyElements));
}

#[test]
fn tagged_fields_must_be_as_long_as_they_say_and_ascend() {
    // ApiVersions 3: two empty strings, then the tag section.
    let body = |tags: &[u8]| [&[1, 1], tags].concat();
    assert_eq!(check_body(ApiKey::ApiVersions, 3, &body(&[2, 0, 1, 9, 5, 0])), Ok(8));
    let order = check_body(ApiKey::ApiVersions, 3, &body(&[2, 5, 0, 5, 0]));
    assert_eq!(order, Err(GuardError::TagOrder { tag: 5, previous: 5 }));
    // Fetch 12 with an empty request and cluster id "ab" that claims four bytes.
    let mut fetch = vec![0; 4 + 4 + 4 + 4 + 1 + 4 + 4];
    fetch.extend([1, 1, 1, 1, 0, 4, 3, b'a', b'b', 0]);
    let refused = check_body(ApiKey::Fetch, 12, &fetch);
    assert_eq!(refused, Err(GuardError::TagSize { tag: 0, claimed: 4, held: 3 }));
}

#[test]
fn a_struct_that_may_be_null_says_whether_it_is() {
    // DescribeTopicPartitions: no topics, a limit, then the cursor.
    let body = |cursor: &[u8]| [&[1, 0, 0, 0, 9], cursor, &[0]].concat();
    for cursor in [&[0xff][..], &[1, 2, b'a', 0, 0, 0, 3, 0]] {
        let whole = body(cursor);
        assert_eq!(check_body(ApiKey::DescribeTopicPartitions, 0, &whole), Ok(whole.len()));
    }
    let refused = check_body(ApiKey::DescribeTopicPartitions, 0, &body(&[0]));
    assert_eq!(refused, Err(GuardError::NullMarker(0)));
}

fn any_request() -> impl Strategy<Value = (ApiKey, i16, Vec<u8>)> {
    let all: Vec<_> = every_request().map(|(key, version, body)| (key, version, body.to_vec())).collect();
    proptest::sample::select(all)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// What the guard lets through is decoded without panic or abort, and where it decodes, to the last byte.
    #[test]
    fn mutated_requests_never_reach_the_decoder_unguarded(
        (key, version, mut body) in any_request(),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
    ) {
        for (at, byte) in changes {
            if !body.is_empty() {
                let at = at.index(body.len());
                body[at] = byte;
            }
        }
        if let Ok(length) = check_body(key, version, &body) {
            let left = decode(key, version, &Bytes::from(body).slice(..length));
            prop_assert!(left.is_none_or(|left| left == 0));
        }
    }

    #[test]
    fn random_bytes_never_panic(api in 0..APIS.len(), body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let api = APIS[api];
        for version in api.served_min..=api.max {
            if let Ok(length) = check_body(api.key, version, &body) {
                decode(api.key, version, &Bytes::from(body.clone()).slice(..length));
            }
        }
    }
}
