use super::*;
use crate::coordinator::offsets::CommittedOffset;

fn committed(offset: i64) -> CommittedOffset {
    CommittedOffset {
        offset: Offset(offset),
        leader_epoch: 0,
        metadata: "note".to_owned(),
        commit_timestamp: Timestamp(1_000),
    }
}

fn at(topic: &str, partition: i32) -> TopicPartition {
    TopicPartition::new(TopicName::new(topic).unwrap(), PartitionId(partition))
}

fn apply(replay: &mut Replay, records: &[(Bytes, Option<Bytes>)]) {
    for (offset, (key, value)) in records.iter().enumerate() {
        replay.apply(Offset(offset as i64), Some(key), value.as_deref());
    }
}

#[test]
fn groups_are_placed_as_kafka_places_them() {
    // Java: Math.abs("my-group".hashCode()) and so on; "polygenelubricants" has hash code i32::MIN.
    assert_eq!(partition_of("", 50), 0);
    assert_eq!(partition_of("a", 50), 97 % 50);
    assert_eq!(partition_of("hello", 1_000), 99_162_322 % 1_000);
    assert_eq!(partition_of("polygenelubricants", 50), 0);
    assert_eq!(partition_of("ü", 1_000), 252);
    assert_eq!(partition_of("anything", 1), 0);
}

#[test]
fn the_last_record_of_a_key_counts() {
    let metadata = GroupMetadata { protocol_type: "consumer".to_owned(), generation: 4, ..GroupMetadata::default() };
    let later = GroupMetadata { generation: 5, ..metadata.clone() };
    let mut replay = Replay::default();
    apply(
        &mut replay,
        &[
            (records::group_key("g").unwrap(), Some(metadata.encode().unwrap())),
            (records::offset_key("g", "t", 0).unwrap(), Some(records::encode_offset(&committed(1)).unwrap())),
            (records::offset_key("g", "t", 1).unwrap(), Some(records::encode_offset(&committed(2)).unwrap())),
            (records::offset_key("g", "t", 0).unwrap(), Some(records::encode_offset(&committed(3)).unwrap())),
            (records::offset_key("g", "t", 1).unwrap(), None),
            (records::group_key("g").unwrap(), Some(later.encode().unwrap())),
            (records::group_key("gone").unwrap(), Some(metadata.encode().unwrap())),
            (records::offset_key("gone", "t", 1).unwrap(), Some(records::encode_offset(&committed(2)).unwrap())),
            (records::offset_key("gone", "t", 1).unwrap(), None),
            (records::group_key("gone").unwrap(), None),
            (records::offset_key("never", "t", 1).unwrap(), None),
        ],
    );
    let groups = replay.finish();
    assert_eq!(groups.keys().collect::<Vec<_>>(), ["g"]);
    let group = &groups["g"];
    assert_eq!(group.metadata, Some(later));
    assert_eq!(group.offsets.get("t", PartitionId(0)), Some(&committed(3)));
    assert_eq!(group.offsets.get("t", PartitionId(1)), None);
}

#[test]
fn records_that_are_not_understood_are_skipped() {
    let mut replay = Replay::default();
    replay.apply(Offset(0), None, None);
    replay.apply(Offset(1), Some(&[0, 9, 1]), Some(&[]));
    replay.apply(Offset(2), Some(&records::offset_key("g", "no/topic", 0).unwrap()), Some(&[]));
    replay.apply(Offset(3), Some(&records::offset_key("g", "t", 0).unwrap()), Some(&[0, 99]));
    apply(
        &mut replay,
        &[(records::offset_key("g", "t", 1).unwrap(), Some(records::encode_offset(&committed(1)).unwrap()))],
    );
    let groups = replay.finish();
    assert_eq!(groups["g"].offsets.of_topics(|_| true), vec![at("t", 1)]);
}
