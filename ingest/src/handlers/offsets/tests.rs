use bytes::BytesMut;
use kafka_protocol::protocol::{Decodable, Encodable};

use super::*;
use crate::model::TopicName;

fn round_trip<M: Encodable + Decodable>(message: &M, version: i16) -> M {
    let mut bytes = BytesMut::new();
    message.encode(&mut bytes, version).unwrap_or_else(|error| panic!("version {version}: {error}"));
    let mut bytes = bytes.freeze();
    let back = M::decode(&mut bytes, version).unwrap_or_else(|error| panic!("version {version}: {error}"));
    assert!(bytes.is_empty(), "version {version}: trailing bytes");
    back
}

fn name(topic: &str) -> WireTopicName {
    WireTopicName(StrBytes::from_string(topic.to_owned()))
}

fn stored() -> CommittedOffsets {
    let mut offsets = CommittedOffsets::default();
    for (topic, partition) in [("a", 0), ("a", 2), ("b", 0)] {
        let at = TopicPartition::new(TopicName::new(topic).unwrap(), PartitionId(partition));
        let metadata = "nöte\0".to_owned();
        let commit_timestamp = Timestamp(1);
        offsets.insert(at, CommittedOffset { offset: Offset(42), leader_epoch: 0, metadata, commit_timestamp });
    }
    offsets
}

#[test]
fn commit_answers_in_every_version() {
    let verdicts = || {
        vec![
            (name("a"), vec![(0, None), (1, Some(ResponseError::OffsetMetadataTooLarge))]),
            (name("b"), vec![(0, None)]),
        ]
    };
    for version in 2..=9 {
        let codes = |outcome| {
            let response = round_trip(&commit_response(verdicts(), outcome), version);
            let partitions = response.topics.iter().flat_map(|topic| topic.partitions.iter());
            partitions.map(|partition| partition.error_code).collect::<Vec<_>>()
        };
        let too_large = ResponseError::OffsetMetadataTooLarge.code();
        let stale = ResponseError::IllegalGeneration;
        assert_eq!(codes(Ok(())), [0, too_large, 0]);
        assert_eq!(codes(Err(stale)), [stale.code(), too_large, stale.code()]);
    }
}

#[test]
fn fetch_answers_in_every_version() {
    let asked = vec![(name("a"), vec![2, 7]), (name("z"), vec![0])];
    let topics = || fetched(&stored(), &PendingOffsets::default(), Some(&asked));
    for version in 1..FETCH_GROUPS {
        let response = round_trip(&single_group_response(topics()), version);
        let [found, missing] = response.topics[0].partitions.as_slice() else { panic!("two were asked for") };
        assert_eq!((found.committed_offset, found.metadata.as_deref()), (42, Some("nöte\0")));
        assert_eq!(found.committed_leader_epoch, if version >= 5 { 0 } else { -1 });
        let nothing = (missing.committed_offset, missing.metadata.as_deref(), missing.error_code);
        assert_eq!(nothing, (-1, Some(""), 0));
    }
    for version in FETCH_GROUPS..=9 {
        let group = OffsetFetchResponseGroup::default()
            .with_group_id(StrBytes::from_static_str("g").into())
            .with_topics(topics().into_iter().map(batched_topic).collect());
        let response = round_trip(&OffsetFetchResponse::default().with_groups(vec![group]), version);
        let partitions = &response.groups[0].topics[0].partitions;
        assert_eq!((partitions[0].committed_offset, partitions[0].committed_leader_epoch), (42, 0));
        assert_eq!((partitions[1].committed_offset, partitions[1].committed_leader_epoch), (-1, -1));
    }
}

#[test]
fn what_is_pending_is_not_stable() {
    let mut pending = PendingOffsets::default();
    let at = TopicPartition::new(TopicName::new("a").unwrap(), PartitionId(2));
    let offset = Offset(50);
    let committed =
        CommittedOffset { offset, leader_epoch: 0, metadata: String::new(), commit_timestamp: Timestamp(1) };
    pending.insert(7, at, committed);
    let asked = vec![(name("a"), vec![0, 2])];
    for asked in [Some(asked.as_slice()), None] {
        let topics = fetched(&stored(), &pending, asked);
        let response = round_trip(&single_group_response(topics), 7);
        let codes: Vec<_> = response.topics[0].partitions.iter().map(|row| row.error_code).collect();
        assert_eq!(codes, [0, ResponseError::UnstableOffsetCommit.code()]);
    }
}

#[test]
fn no_list_of_topics_means_all() {
    let all = fetched(&stored(), &PendingOffsets::default(), None);
    let shape: Vec<_> = all.iter().map(|(name, partitions)| (name.as_str(), partitions.len())).collect();
    assert_eq!(shape, [("a", 2), ("b", 1)]);
    assert!(fetched(&stored(), &PendingOffsets::default(), Some(&[])).is_empty());
}
