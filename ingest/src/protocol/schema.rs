//! The shape of every request body this broker takes, after Kafka's message definitions
//! (`clients/src/main/resources/common/message/*Request.json`): what the [`guard`](super::guard) walks by.
//!
//! Only what decides lengths is kept: widths, not meanings. Nullability is left to the decoder, which refuses a null it
//! does not expect without allocating.

use kafka_protocol::messages::ApiKey;

/// What a field occupies on the wire.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// So many bytes.
    Fixed(usize),
    /// Length (i16, or unsigned varint plus one where flexible) and bytes.
    Text,
    /// Length (i32, or unsigned varint plus one where flexible) and bytes.
    Blob,
    /// Array of values of so many bytes each.
    FixedList(usize),
    TextList,
    StructList(&'static [Field]),
    /// A struct in place; occurs only as a tagged field.
    Struct(&'static [Field]),
    /// A byte, 1 or -1, and a struct where it is 1.
    StructOrNull(&'static [Field]),
}

/// A field and the versions that have it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    pub kind: Kind,
    pub since: i16,
    pub until: i16,
    /// Set where the field travels in the tag section of its struct.
    pub tag: Option<u32>,
}

/// A request body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Body {
    /// First version with compact lengths and tag sections, and with request header v2.
    pub flexible_since: i16,
    pub fields: &'static [Field],
}

const BOOL: Kind = Kind::Fixed(1);
const I8: Kind = Kind::Fixed(1);
const I16: Kind = Kind::Fixed(2);
const I32: Kind = Kind::Fixed(4);
const I64: Kind = Kind::Fixed(8);
const UUID: Kind = Kind::Fixed(16);
const I32_LIST: Kind = Kind::FixedList(4);
use Kind::{Blob, FixedList, Struct, StructList, StructOrNull, Text, TextList};

const fn between(since: i16, until: i16, kind: Kind) -> Field {
    Field { kind, since, until, tag: None }
}
const fn all(kind: Kind) -> Field {
    between(0, i16::MAX, kind)
}
const fn since(version: i16, kind: Kind) -> Field {
    between(version, i16::MAX, kind)
}
const fn until(version: i16, kind: Kind) -> Field {
    between(0, version, kind)
}
const fn tagged(tag: u32, since: i16, kind: Kind) -> Field {
    Field { kind, since, until: i16::MAX, tag: Some(tag) }
}

const PRODUCE: &[Field] = &[all(Text), all(I16), all(I32), all(StructList(PRODUCE_TOPIC))];
const PRODUCE_TOPIC: &[Field] = &[all(Text), all(StructList(PRODUCE_PARTITION))];
const PRODUCE_PARTITION: &[Field] = &[all(I32), all(Blob)];

const FETCH: &[Field] = &[
    until(14, I32),
    all(I32),
    all(I32),
    all(I32),
    all(I8),
    since(7, I32),
    since(7, I32),
    all(StructList(FETCH_TOPIC)),
    since(7, StructList(FETCH_FORGOTTEN)),
    since(11, Text),
    tagged(0, 12, Text),
    tagged(1, 15, Struct(FETCH_REPLICA_STATE)),
];
const FETCH_TOPIC: &[Field] = &[until(12, Text), since(13, UUID), all(StructList(FETCH_PARTITION))];
const FETCH_PARTITION: &[Field] =
    &[all(I32), since(9, I32), all(I64), since(12, I32), since(5, I64), all(I32), tagged(0, 17, UUID)];
const FETCH_FORGOTTEN: &[Field] = &[until(12, Text), since(13, UUID), all(I32_LIST)];
const FETCH_REPLICA_STATE: &[Field] = &[all(I32), all(I64)];

const LIST_OFFSETS: &[Field] = &[all(I32), since(2, I8), all(StructList(LIST_OFFSETS_TOPIC)), since(10, I32)];
const LIST_OFFSETS_TOPIC: &[Field] = &[all(Text), all(StructList(LIST_OFFSETS_PARTITION))];
const LIST_OFFSETS_PARTITION: &[Field] = &[all(I32), since(4, I32), all(I64)];

const METADATA: &[Field] = &[all(StructList(METADATA_TOPIC)), since(4, BOOL), between(8, 10, BOOL), since(8, BOOL)];
const METADATA_TOPIC: &[Field] = &[since(10, UUID), all(Text)];

const OFFSET_COMMIT: &[Field] =
    &[all(Text), all(I32), all(Text), since(7, Text), until(4, I64), all(StructList(OFFSET_COMMIT_TOPIC))];
const OFFSET_COMMIT_TOPIC: &[Field] = &[all(Text), all(StructList(OFFSET_COMMIT_PARTITION))];
const OFFSET_COMMIT_PARTITION: &[Field] = &[all(I32), all(I64), since(6, I32), all(Text)];

const OFFSET_FETCH: &[Field] = &[
    until(7, Text),
    until(7, StructList(OFFSET_FETCH_TOPIC)),
    since(8, StructList(OFFSET_FETCH_GROUP)),
    since(7, BOOL),
];
const OFFSET_FETCH_GROUP: &[Field] = &[all(Text), since(9, Text), since(9, I32), all(StructList(OFFSET_FETCH_TOPIC))];
const OFFSET_FETCH_TOPIC: &[Field] = &[all(Text), all(I32_LIST)];

const FIND_COORDINATOR: &[Field] = &[until(3, Text), since(1, I8), since(4, TextList)];

const JOIN_GROUP: &[Field] = &[
    all(Text),
    all(I32),
    since(1, I32),
    all(Text),
    since(5, Text),
    all(Text),
    all(StructList(JOIN_GROUP_PROTOCOL)),
    since(8, Text),
];
const JOIN_GROUP_PROTOCOL: &[Field] = &[all(Text), all(Blob)];

const HEARTBEAT: &[Field] = &[all(Text), all(I32), all(Text), since(3, Text)];

const LEAVE_GROUP: &[Field] = &[all(Text), until(2, Text), since(3, StructList(LEAVE_GROUP_MEMBER))];
const LEAVE_GROUP_MEMBER: &[Field] = &[all(Text), all(Text), since(5, Text)];

const SYNC_GROUP: &[Field] = &[
    all(Text),
    all(I32),
    all(Text),
    since(3, Text),
    since(5, Text),
    since(5, Text),
    all(StructList(SYNC_GROUP_ASSIGNMENT)),
];
const SYNC_GROUP_ASSIGNMENT: &[Field] = &[all(Text), all(Blob)];

const DESCRIBE_GROUPS: &[Field] = &[all(TextList), since(3, BOOL)];
const LIST_GROUPS: &[Field] = &[since(4, TextList), since(5, TextList)];
const API_VERSIONS: &[Field] = &[since(3, Text), since(3, Text)];

const CREATE_TOPICS: &[Field] = &[all(StructList(CREATE_TOPIC)), all(I32), all(BOOL)];
const CREATE_TOPIC: &[Field] =
    &[all(Text), all(I32), all(I16), all(StructList(CREATE_TOPIC_ASSIGNMENT)), all(StructList(CREATE_TOPIC_CONFIG))];
const CREATE_TOPIC_ASSIGNMENT: &[Field] = &[all(I32), all(I32_LIST)];
const CREATE_TOPIC_CONFIG: &[Field] = &[all(Text), all(Text)];

const DELETE_TOPICS: &[Field] = &[since(6, StructList(DELETE_TOPIC)), until(5, TextList), all(I32)];
const DELETE_TOPIC: &[Field] = &[all(Text), all(UUID)];

const DELETE_RECORDS: &[Field] = &[all(StructList(DELETE_RECORDS_TOPIC)), all(I32)];
const DELETE_RECORDS_TOPIC: &[Field] = &[all(Text), all(StructList(DELETE_RECORDS_PARTITION))];
const DELETE_RECORDS_PARTITION: &[Field] = &[all(I32), all(I64)];

const INIT_PRODUCER_ID: &[Field] = &[all(Text), all(I32), since(3, I64), since(3, I16)];

const LEADER_EPOCH: &[Field] = &[since(3, I32), all(StructList(LEADER_EPOCH_TOPIC))];
const LEADER_EPOCH_TOPIC: &[Field] = &[all(Text), all(StructList(LEADER_EPOCH_PARTITION))];
const LEADER_EPOCH_PARTITION: &[Field] = &[all(I32), all(I32), all(I32)];

const ADD_PARTITIONS_TO_TXN: &[Field] = &[all(Text), all(I64), all(I16), all(StructList(ADD_PARTITIONS_TO_TXN_TOPIC))];
const ADD_PARTITIONS_TO_TXN_TOPIC: &[Field] = &[all(Text), all(I32_LIST)];

const ADD_OFFSETS_TO_TXN: &[Field] = &[all(Text), all(I64), all(I16), all(Text)];

const END_TXN: &[Field] = &[all(Text), all(I64), all(I16), all(BOOL)];

const TXN_OFFSET_COMMIT: &[Field] = &[
    all(Text),
    all(Text),
    all(I64),
    all(I16),
    since(3, I32),
    since(3, Text),
    since(3, Text),
    all(StructList(TXN_OFFSET_COMMIT_TOPIC)),
];
const TXN_OFFSET_COMMIT_TOPIC: &[Field] = &[all(Text), all(StructList(TXN_OFFSET_COMMIT_PARTITION))];
const TXN_OFFSET_COMMIT_PARTITION: &[Field] = &[all(I32), all(I64), since(2, I32), all(Text)];

const DESCRIBE_PRODUCERS: &[Field] = &[all(StructList(DESCRIBE_PRODUCERS_TOPIC))];
const DESCRIBE_PRODUCERS_TOPIC: &[Field] = &[all(Text), all(I32_LIST)];

const DESCRIBE_TRANSACTIONS: &[Field] = &[all(TextList)];
const LIST_TRANSACTIONS: &[Field] = &[all(TextList), all(FixedList(8)), since(1, I64), since(2, Text)];

const DESCRIBE_CONFIGS: &[Field] = &[all(StructList(DESCRIBE_CONFIGS_RESOURCE)), all(BOOL), since(3, BOOL)];
const DESCRIBE_CONFIGS_RESOURCE: &[Field] = &[all(I8), all(Text), all(TextList)];

const ALTER_CONFIGS: &[Field] = &[all(StructList(ALTER_CONFIGS_RESOURCE)), all(BOOL)];
const ALTER_CONFIGS_RESOURCE: &[Field] = &[all(I8), all(Text), all(StructList(ALTER_CONFIG))];
const ALTER_CONFIG: &[Field] = &[all(Text), all(Text)];

const INCREMENTAL_ALTER_CONFIGS: &[Field] = &[all(StructList(INCREMENTAL_ALTER_CONFIGS_RESOURCE)), all(BOOL)];
const INCREMENTAL_ALTER_CONFIGS_RESOURCE: &[Field] = &[all(I8), all(Text), all(StructList(INCREMENTAL_ALTER_CONFIG))];
const INCREMENTAL_ALTER_CONFIG: &[Field] = &[all(Text), all(I8), all(Text)];

/// DescribeAcls, and each filter of DeleteAcls.
const ACL_FILTER: &[Field] = &[all(I8), all(Text), all(I8), all(Text), all(Text), all(I8), all(I8)];
const CREATE_ACLS: &[Field] = &[all(StructList(CREATE_ACL))];
const CREATE_ACL: &[Field] = &[all(I8), all(Text), all(I8), all(Text), all(Text), all(I8), all(I8)];
const DELETE_ACLS: &[Field] = &[all(StructList(ACL_FILTER))];

/// A name and numbers of partitions, as several requests have them.
const TOPIC_PARTITIONS: &[Field] = &[all(Text), all(I32_LIST)];

const DESCRIBE_LOG_DIRS: &[Field] = &[all(StructList(TOPIC_PARTITIONS))];

const CREATE_PARTITIONS: &[Field] = &[all(StructList(CREATE_PARTITIONS_TOPIC)), all(I32), all(BOOL)];
const CREATE_PARTITIONS_TOPIC: &[Field] = &[all(Text), all(I32), all(StructList(CREATE_PARTITIONS_ASSIGNMENT))];
const CREATE_PARTITIONS_ASSIGNMENT: &[Field] = &[all(I32_LIST)];

const DELETE_GROUPS: &[Field] = &[all(TextList)];
const ELECT_LEADERS: &[Field] = &[since(1, I8), all(StructList(TOPIC_PARTITIONS)), all(I32)];
const LIST_REASSIGNMENTS: &[Field] = &[all(I32), all(StructList(TOPIC_PARTITIONS))];

const OFFSET_DELETE: &[Field] = &[all(Text), all(StructList(TOPIC_PARTITIONS))];

const DESCRIBE_QUOTAS: &[Field] = &[all(StructList(DESCRIBE_QUOTAS_COMPONENT)), all(BOOL)];
const DESCRIBE_QUOTAS_COMPONENT: &[Field] = &[all(Text), all(I8), all(Text)];

const DESCRIBE_SCRAM: &[Field] = &[all(StructList(DESCRIBE_SCRAM_USER))];
const DESCRIBE_SCRAM_USER: &[Field] = &[all(Text)];

const LIST_CONFIG_RESOURCES: &[Field] = &[since(1, Kind::FixedList(1))];

const DESCRIBE_TOPIC_PARTITIONS: &[Field] =
    &[all(StructList(DESCRIBE_TOPIC_PARTITIONS_TOPIC)), all(I32), all(StructOrNull(DESCRIBE_TOPIC_PARTITIONS_CURSOR))];
const DESCRIBE_TOPIC_PARTITIONS_TOPIC: &[Field] = &[all(Text)];
const DESCRIBE_TOPIC_PARTITIONS_CURSOR: &[Field] = &[all(Text), all(I32)];

/// `flexible_since` of what has no flexible version.
const NEVER: i16 = i16::MAX;

const DESCRIBE_CLUSTER: &[Field] = &[all(BOOL), since(1, I8), since(2, BOOL)];

/// The request body of an API, or nothing for one that this broker does not have.
pub(super) fn body(key: ApiKey) -> Option<Body> {
    let (flexible_since, fields) = match key {
        ApiKey::Produce => (9, PRODUCE),
        ApiKey::Fetch => (12, FETCH),
        ApiKey::ListOffsets => (6, LIST_OFFSETS),
        ApiKey::Metadata => (9, METADATA),
        ApiKey::OffsetCommit => (8, OFFSET_COMMIT),
        ApiKey::OffsetFetch => (6, OFFSET_FETCH),
        ApiKey::FindCoordinator => (3, FIND_COORDINATOR),
        ApiKey::JoinGroup => (6, JOIN_GROUP),
        ApiKey::Heartbeat => (4, HEARTBEAT),
        ApiKey::LeaveGroup => (4, LEAVE_GROUP),
        ApiKey::SyncGroup => (4, SYNC_GROUP),
        ApiKey::DescribeGroups => (5, DESCRIBE_GROUPS),
        ApiKey::ListGroups => (3, LIST_GROUPS),
        ApiKey::ApiVersions => (3, API_VERSIONS),
        ApiKey::CreateTopics => (5, CREATE_TOPICS),
        ApiKey::DeleteTopics => (4, DELETE_TOPICS),
        ApiKey::DeleteRecords => (2, DELETE_RECORDS),
        ApiKey::InitProducerId => (2, INIT_PRODUCER_ID),
        ApiKey::OffsetForLeaderEpoch => (4, LEADER_EPOCH),
        ApiKey::AddPartitionsToTxn => (3, ADD_PARTITIONS_TO_TXN),
        ApiKey::AddOffsetsToTxn => (3, ADD_OFFSETS_TO_TXN),
        ApiKey::EndTxn => (3, END_TXN),
        ApiKey::TxnOffsetCommit => (3, TXN_OFFSET_COMMIT),
        ApiKey::DescribeConfigs => (4, DESCRIBE_CONFIGS),
        ApiKey::AlterConfigs => (2, ALTER_CONFIGS),
        ApiKey::IncrementalAlterConfigs => (1, INCREMENTAL_ALTER_CONFIGS),
        ApiKey::DescribeAcls => (2, ACL_FILTER),
        ApiKey::CreateAcls => (2, CREATE_ACLS),
        ApiKey::DeleteAcls => (2, DELETE_ACLS),
        ApiKey::DescribeLogDirs => (2, DESCRIBE_LOG_DIRS),
        ApiKey::CreatePartitions => (2, CREATE_PARTITIONS),
        ApiKey::DeleteGroups => (2, DELETE_GROUPS),
        ApiKey::ElectLeaders => (2, ELECT_LEADERS),
        ApiKey::ListPartitionReassignments => (0, LIST_REASSIGNMENTS),
        ApiKey::OffsetDelete => (NEVER, OFFSET_DELETE),
        ApiKey::DescribeClientQuotas => (1, DESCRIBE_QUOTAS),
        ApiKey::DescribeUserScramCredentials => (0, DESCRIBE_SCRAM),
        ApiKey::DescribeCluster => (0, DESCRIBE_CLUSTER),
        ApiKey::DescribeProducers => (0, DESCRIBE_PRODUCERS),
        ApiKey::DescribeTransactions => (0, DESCRIBE_TRANSACTIONS),
        ApiKey::ListTransactions => (0, LIST_TRANSACTIONS),
        ApiKey::ListConfigResources => (0, LIST_CONFIG_RESOURCES),
        ApiKey::DescribeTopicPartitions => (0, DESCRIBE_TOPIC_PARTITIONS),
        _ => return None,
    };
    Some(Body { flexible_since, fields })
}
