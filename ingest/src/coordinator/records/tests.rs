use proptest::prelude::*;

use super::*;

/// `name hex` lines, laid out from Kafka's schemas independently of this module; they never change.
const GOLDEN: &str = include_str!("../../../tests/golden/consumer_offsets.txt");

fn golden(name: &str) -> Vec<u8> {
    let line = GOLDEN.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let hex: String = line.unwrap_or_else(|| panic!("no golden {name}")).split_whitespace().collect();
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn committed() -> CommittedOffset {
    CommittedOffset {
        offset: Offset(0x0102_0304_0506),
        leader_epoch: 7,
        metadata: "né".to_owned(),
        commit_timestamp: Timestamp(1_700_000_000_000),
    }
}

fn group() -> GroupMetadata {
    GroupMetadata {
        protocol_type: "consumer".to_owned(),
        generation: 3,
        protocol: Some("range".to_owned()),
        leader: Some("m1".to_owned()),
        state_timestamp: Timestamp(1_700_000_000_000),
        members: vec![
            StoredMember {
                member_id: "m1".to_owned(),
                instance_id: None,
                client_id: "c".to_owned(),
                client_host: "/h".to_owned(),
                rebalance_timeout_ms: 60_000,
                session_timeout_ms: 10_000,
                subscription: Bytes::from_static(&[1, 2]),
                assignment: Bytes::from_static(&[3]),
            },
            StoredMember {
                member_id: "m2".to_owned(),
                instance_id: Some("i".to_owned()),
                client_id: "c".to_owned(),
                client_host: "/h".to_owned(),
                rebalance_timeout_ms: 60_000,
                session_timeout_ms: 10_000,
                subscription: Bytes::new(),
                assignment: Bytes::new(),
            },
        ],
    }
}

#[test]
fn what_is_written_is_kafkas_format() {
    assert_eq!(offset_key("grp", "orders", 5).unwrap(), golden("offset_key_1"));
    assert_eq!(group_key("grp").unwrap(), golden("group_key_2"));
    assert_eq!(encode_offset(&committed()).unwrap(), golden("offset_value_3"));
    assert_eq!(group().encode().unwrap(), golden("group_value_3"));
    let empty = GroupMetadata { protocol: None, leader: None, members: Vec::new(), ..group() };
    assert_eq!(empty.encode().unwrap(), golden("group_value_3_empty"));
}

#[test]
fn every_version_is_read() {
    let offset = Key::Offset { group: "grp".to_owned(), topic: "orders".to_owned(), partition: 5 };
    assert_eq!(Key::decode(&golden("offset_key_0")), Ok(offset.clone()));
    assert_eq!(Key::decode(&golden("offset_key_1")), Ok(offset));
    assert_eq!(Key::decode(&golden("group_key_2")), Ok(Key::Group { group: "grp".to_owned() }));
    for version in 0..=4 {
        let epoch = if version >= 3 { 7 } else { -1 };
        let expected = CommittedOffset { leader_epoch: epoch, ..committed() };
        assert_eq!(decode_offset(&golden(&format!("offset_value_{version}"))), Ok(expected), "version {version}");

        let mut expected = group();
        if version < 2 {
            expected.state_timestamp = Timestamp::NONE;
        }
        for member in &mut expected.members {
            if version < 3 {
                member.instance_id = None;
            }
            if version < 1 {
                member.rebalance_timeout_ms = -1;
            }
        }
        let read = GroupMetadata::decode(&golden(&format!("group_value_{version}")));
        assert_eq!(read, Ok(expected), "version {version}");
    }
}

#[test]
fn what_is_cut_short_or_too_long_is_refused() {
    for name in ["offset_key_1", "group_key_2"] {
        let whole = golden(name);
        for len in 0..whole.len() {
            assert!(Key::decode(&whole[..len]).is_err(), "{name} cut to {len}");
        }
    }
    for version in 0..=4 {
        let (offset, group) = (golden(&format!("offset_value_{version}")), golden(&format!("group_value_{version}")));
        for len in 0..offset.len() {
            assert!(decode_offset(&offset[..len]).is_err(), "offset value {version} cut to {len}");
        }
        for len in 0..group.len() {
            assert!(GroupMetadata::decode(&group[..len]).is_err(), "group value {version} cut to {len}");
        }
        let trailing = [offset, vec![0]].concat();
        assert_eq!(decode_offset(&trailing), Err(RecordError::Trailing { count: 1 }));
    }
    assert_eq!(Key::decode(&[0, 3]), Err(RecordError::Version { what: "key", version: 3, max: 2 }));
    let long = "g".repeat(STRING_BYTES_MAX + 1);
    assert_eq!(
        group_key(&long),
        Err(RecordError::TooLong { field: "group", len: STRING_BYTES_MAX + 1, max: STRING_BYTES_MAX })
    );
}

proptest! {
    #[test]
    fn offsets_read_back_as_written(
        offset in any::<i64>(), leader_epoch in any::<i32>(), metadata in ".{0,40}", timestamp in any::<i64>(),
        group in ".{0,20}", topic in ".{0,20}", partition in any::<i32>(),
    ) {
        let committed =
            CommittedOffset { offset: Offset(offset), leader_epoch, metadata, commit_timestamp: Timestamp(timestamp) };
        prop_assert_eq!(decode_offset(&encode_offset(&committed).unwrap()), Ok(committed));
        let key = Key::Offset { group, topic, partition };
        prop_assert_eq!(Key::decode(&key.encode().unwrap()), Ok(key));
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), version in 0u8..6) {
        let mut bytes = bytes;
        if let [first, second, ..] = bytes.as_mut_slice() {
            (*first, *second) = (0, version);
        }
        let _ = Key::decode(&bytes);
        let _ = decode_offset(&bytes);
        let _ = GroupMetadata::decode(&bytes);
    }
}
