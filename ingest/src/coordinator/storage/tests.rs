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

fn apply(replay: &mut Replay, records: &[RawRecord]) {
    apply_in(replay, None, records);
}

fn apply_in(replay: &mut Replay, transaction: Option<i64>, records: &[RawRecord]) {
    for (key, value) in records {
        replay.apply(record(transaction, Some(key), value.as_deref()));
    }
}

fn record<'a>(transaction: Option<i64>, key: Option<&'a [u8]>, value: Option<&'a [u8]>) -> Entry<'a> {
    Entry::Record { transaction, offset: Offset(0), key, value }
}

fn offset_record(partition: i32, offset: i64) -> RawRecord {
    (records::offset_key("g", "t", partition).unwrap(), Some(records::encode_offset(&committed(offset)).unwrap()))
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
fn pending_offsets_come_into_force_at_the_end() {
    let pending = [offset_record(0, 5), offset_record(1, 6)];
    for (outcome, expected) in
        [(TransactionOutcome::Commit, (Some(5), Some(6))), (TransactionOutcome::Abort, (Some(1), None))]
    {
        let mut replay = Replay::default();
        apply(&mut replay, &[offset_record(0, 1)]);
        apply_in(&mut replay, Some(7), &pending);
        replay.apply(Entry::End { producer_id: 8, outcome });
        replay.apply(Entry::End { producer_id: 7, outcome });
        let groups = replay.finish();
        let place = |partition| groups["g"].offsets.get("t", PartitionId(partition)).map(|one| one.offset.0);
        assert_eq!((place(0), place(1)), expected, "{outcome:?}");
    }
}

#[test]
fn records_that_are_not_understood_are_skipped() {
    let mut replay = Replay::default();
    replay.apply(record(None, None, None));
    replay.apply(record(None, Some(&[0, 9, 1]), Some(&[])));
    replay.apply(record(None, Some(&records::offset_key("g", "no/topic", 0).unwrap()), Some(&[])));
    replay.apply(record(None, Some(&records::offset_key("g", "t", 0).unwrap()), Some(&[0, 99])));
    apply(
        &mut replay,
        &[(records::offset_key("g", "t", 1).unwrap(), Some(records::encode_offset(&committed(1)).unwrap()))],
    );
    let groups = replay.finish();
    assert_eq!(groups["g"].offsets.of_topics(|_| true), vec![at("t", 1)]);
}
