//! The APIs of this broker and the versions it speaks of each: what ApiVersions answers and what a connection accepts.
//!
//! Own table instead of `kafka-protocol`'s ranges: those cover versions that its request structs cannot read back
//! (OffsetCommit 10, OffsetFetch 10, InitProducerId 6) and versions that promise state this broker does not keep
//! (Produce 12: transactions of the second protocol; Produce 13: topic ids; Fetch 18: followers).
//!
//! Ranges start low on purpose. librdkafka up to 2.11.0 gates features on single low versions (JoinGroup 0,
//! InitProducerId 0, FindCoordinator 0, ...), and switches gzip, snappy and lz4 off where Produce 0 is missing, so that
//! 0 is advertised but, as in Kafka 4 (KAFKA-18659), not served. It uses AddPartitionsToTxn and AddOffsetsToTxn in
//! version 0 only. AddPartitionsToTxn 4 is for brokers among each other; EndTxn 5 and TxnOffsetCommit 5 belong to the
//! second transaction protocol.

use kafka_protocol::messages::ApiKey;

/// One API: the range told to clients and the lowest version really served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApiRange {
    pub key: ApiKey,
    pub min: i16,
    pub max: i16,
    /// At least `min`; a version below it closes the connection like one outside the range.
    pub served_min: i16,
}

const fn range(key: ApiKey, min: i16, max: i16) -> ApiRange {
    ApiRange { key, min, max, served_min: min }
}

/// Every API of this broker, in key order.
pub const APIS: &[ApiRange] = &[
    ApiRange { key: ApiKey::Produce, min: 0, max: 11, served_min: 3 },
    range(ApiKey::Fetch, 4, 17),
    range(ApiKey::ListOffsets, 1, 10),
    range(ApiKey::Metadata, 0, 13),
    range(ApiKey::OffsetCommit, 2, 9),
    range(ApiKey::OffsetFetch, 1, 9),
    range(ApiKey::FindCoordinator, 0, 6),
    range(ApiKey::JoinGroup, 0, 9),
    range(ApiKey::Heartbeat, 0, 4),
    range(ApiKey::LeaveGroup, 0, 5),
    range(ApiKey::SyncGroup, 0, 5),
    range(ApiKey::DescribeGroups, 0, 6),
    range(ApiKey::ListGroups, 0, 5),
    range(ApiKey::ApiVersions, 0, 4),
    range(ApiKey::CreateTopics, 2, 7),
    range(ApiKey::DeleteTopics, 1, 6),
    range(ApiKey::DeleteRecords, 0, 2),
    range(ApiKey::InitProducerId, 0, 5),
    range(ApiKey::OffsetForLeaderEpoch, 2, 4),
    range(ApiKey::AddPartitionsToTxn, 0, 3),
    range(ApiKey::AddOffsetsToTxn, 0, 4),
    range(ApiKey::EndTxn, 0, 4),
    range(ApiKey::TxnOffsetCommit, 0, 4),
    range(ApiKey::DescribeAcls, 1, 3),
    range(ApiKey::CreateAcls, 1, 3),
    range(ApiKey::DeleteAcls, 1, 3),
    range(ApiKey::DescribeConfigs, 1, 4),
    range(ApiKey::AlterConfigs, 0, 2),
    range(ApiKey::DescribeLogDirs, 1, 4),
    range(ApiKey::CreatePartitions, 0, 3),
    range(ApiKey::DeleteGroups, 0, 2),
    range(ApiKey::ElectLeaders, 0, 2),
    range(ApiKey::IncrementalAlterConfigs, 0, 1),
    range(ApiKey::ListPartitionReassignments, 0, 0),
    range(ApiKey::OffsetDelete, 0, 0),
    range(ApiKey::DescribeClientQuotas, 0, 1),
    range(ApiKey::DescribeUserScramCredentials, 0, 0),
    range(ApiKey::DescribeCluster, 0, 2),
    range(ApiKey::DescribeProducers, 0, 0),
    range(ApiKey::DescribeTransactions, 0, 0),
    range(ApiKey::ListTransactions, 0, 2),
    range(ApiKey::ListConfigResources, 0, 1),
    range(ApiKey::DescribeTopicPartitions, 0, 0),
];

/// The API of a key on the wire, if this broker has it.
pub fn find(key: i16) -> Option<ApiRange> {
    APIS.iter().find(|api| api.key as i16 == key).copied()
}

impl ApiRange {
    /// Whether a request of this version is answered.
    pub fn serves(&self, version: i16) -> bool {
        (self.served_min..=self.max).contains(&version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_key_order_without_duplicates() {
        assert!(APIS.windows(2).all(|pair| (pair[0].key as i16) < pair[1].key as i16));
        assert!(APIS.iter().all(|api| api.min <= api.served_min && api.served_min <= api.max));
    }

    /// What would need a second broker, an authorizer or quotas to be answered truthfully.
    #[test]
    fn what_is_not_here_is_not_advertised() {
        for key in [
            ApiKey::WriteTxnMarkers,
            ApiKey::AlterReplicaLogDirs,
            ApiKey::AlterPartitionReassignments,
            ApiKey::AlterClientQuotas,
            ApiKey::AlterUserScramCredentials,
            ApiKey::UnregisterBroker,
            ApiKey::ConsumerGroupHeartbeat,
            ApiKey::ShareGroupHeartbeat,
            ApiKey::GetTelemetrySubscriptions,
        ] {
            assert_eq!(find(key as i16), None, "{key:?}");
        }
    }

    #[test]
    fn every_served_version_is_one_the_codec_knows() {
        for api in APIS {
            let known = api.key.valid_versions();
            assert!(known.min <= api.served_min && api.max <= known.max, "{:?}", api.key);
        }
    }

    /// librdkafka up to 2.11.0 (`rdkafka_feature.c`) wants each of these exact versions inside the range.
    #[test]
    fn the_gates_of_old_librdkafka_are_open() {
        let gates = [
            (ApiKey::Produce, 0),
            (ApiKey::Produce, 3),
            (ApiKey::Produce, 7),
            (ApiKey::Fetch, 4),
            (ApiKey::Fetch, 10),
            (ApiKey::ListOffsets, 1),
            (ApiKey::FindCoordinator, 0),
            (ApiKey::OffsetCommit, 2),
            (ApiKey::OffsetFetch, 1),
            (ApiKey::JoinGroup, 0),
            (ApiKey::SyncGroup, 0),
            (ApiKey::Heartbeat, 0),
            (ApiKey::LeaveGroup, 0),
            (ApiKey::InitProducerId, 0),
            (ApiKey::AddPartitionsToTxn, 0),
            (ApiKey::AddOffsetsToTxn, 0),
            (ApiKey::OffsetForLeaderEpoch, 2),
        ];
        for (key, version) in gates {
            let api = find(key as i16).unwrap();
            assert!((api.min..=api.max).contains(&version), "{key:?} {version}");
        }
    }
}
