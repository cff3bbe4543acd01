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

fn apply_in(replay: &mut Replay, transaction: Option<(i64, i16)>, records: &[RawRecord]) {
    for (key, value) in records {
        replay.apply(record(transaction, Some(key), value.as_deref()));
    }
}

fn record<'a>(transaction: Option<(i64, i16)>, key: Option<&'a [u8]>, value: Option<&'a [u8]>) -> Entry<'a> {
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
    assert_eq!(group.metadata, Some((later.clone(), later.encode().unwrap())));
    assert_eq!(group.offsets.get("t", PartitionId(0)), Some(&committed(3)));
    assert_eq!(group.offsets.get("t", PartitionId(1)), None);
}

fn plain(appends: Vec<Append>) -> Vec<RawRecord> {
    let records = |append| match append {
        Append::Records(records) => records,
        other => panic!("{other:?} is within a transaction"),
    };
    appends.into_iter().flat_map(records).collect()
}

#[test]
fn pending_offsets_survive_being_written_again_and_come_into_force_at_the_end() {
    let first = [offset_record(0, 1)];
    let pending = [offset_record(0, 5), offset_record(1, 6)];
    let mut before = Replay::default();
    apply(&mut before, &first);
    apply_in(&mut before, Some((7, 3)), &pending);
    let registry = Registry::new(
        thermocline_config::GroupsConfig::default(),
        Arc::new(crate::clock::ManualClock::at(Timestamp(5_000))),
    );
    registry.restore(before.finish());
    let live: Vec<Append> = registry.list().iter().flat_map(|cell| live_records(cell).unwrap()).collect();
    let place = |replay: Replay, partition| {
        replay
            .finish()
            .get("g")
            .and_then(|group| group.offsets.get("t", PartitionId(partition)))
            .map(|one| one.offset.0)
    };
    for outcome in [TransactionOutcome::Commit, TransactionOutcome::Abort] {
        // Died after so many of the copies; the old records are still there, or not.
        for (copied, is_old_there) in [(0, true), (1, true), (2, true), (2, false)] {
            let replayed = || {
                let mut replay = Replay::default();
                if is_old_there {
                    apply(&mut replay, &first);
                    apply_in(&mut replay, Some((7, 3)), &pending);
                }
                for append in &live[..copied] {
                    match append {
                        Append::Records(records) => apply(&mut replay, records),
                        Append::Pending { producer_id, epoch, records } => {
                            apply_in(&mut replay, Some((*producer_id, *epoch)), records);
                        }
                        Append::End { .. } => panic!("nothing has ended"),
                    }
                }
                replay.apply(Entry::End { producer_id: 8, outcome });
                replay.apply(Entry::End { producer_id: 7, outcome });
                replay
            };
            let expected = match outcome {
                TransactionOutcome::Commit => (Some(5), Some(6)),
                TransactionOutcome::Abort => (Some(1), None),
            };
            assert_eq!((place(replayed(), 0), place(replayed(), 1)), expected, "{outcome:?} {copied} {is_old_there}");
        }
    }
}

#[test]
fn writing_the_live_state_again_changes_nothing() {
    let metadata = GroupMetadata { protocol_type: "consumer".to_owned(), generation: 4, ..GroupMetadata::default() };
    let records = vec![
        (records::group_key("g").unwrap(), Some(metadata.encode().unwrap())),
        (records::offset_key("g", "t", 0).unwrap(), Some(records::encode_offset(&committed(1)).unwrap())),
        (records::offset_key("g", "u", 0).unwrap(), Some(records::encode_offset(&committed(2)).unwrap())),
        (records::offset_key("g", "u", 0).unwrap(), None),
    ];
    let mut before = Replay::default();
    apply(&mut before, &records);
    let before = before.finish();

    let registry = Registry::new(
        thermocline_config::GroupsConfig::default(),
        Arc::new(crate::clock::ManualClock::at(Timestamp(5_000))),
    );
    registry.restore(before.clone());
    let live: Vec<RawRecord> = registry.list().iter().flat_map(|cell| plain(live_records(cell).unwrap())).collect();
    // Died anywhere between: the old log with some, all, or only the copies.
    for copied in 0..=live.len() {
        let mut replay = Replay::default();
        apply(&mut replay, &records);
        apply(&mut replay, &live[..copied]);
        assert_eq!(replay.finish(), before);
    }
    let mut only_copies = Replay::default();
    apply(&mut only_copies, &live);
    assert_eq!(only_copies.finish(), before);
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
