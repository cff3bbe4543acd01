use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;

type OwnedHeader = (String, Option<Vec<u8>>);

fn json(timestamp: i64, key: Option<&[u8]>, value: Option<&[u8]>, headers: &[OwnedHeader]) -> Vec<u8> {
    let mut out = Vec::new();
    Message {
        topic: "orders",
        partition: PartitionId(2),
        offset: Offset(7),
        timestamp: Timestamp(timestamp),
        key,
        value,
        headers: headers.iter().map(|(key, value)| (key.as_str(), value.as_deref())),
    }
    .write_json(&mut out);
    out
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

#[test]
fn the_pinned_form() {
    assert_eq!(
        text(json(1_431_857_103_000, None, Some(b"say \"hi\"\n"), &[("h".to_owned(), Some(b"".to_vec()))])),
        r#"{"topic":"orders","partition":2,"offset":7,"timestamp":"2015-05-17T10:05:03.000Z","key":null,"value":"say \"hi\"\n","headers":[{"key":"h","value":""}]}"#
    );
    assert_eq!(
        text(json(-1, Some(b""), Some(&[0xff, 0x00]), &[("a".to_owned(), None), ("a".to_owned(), Some(vec![0x80]))])),
        r#"{"topic":"orders","partition":2,"offset":7,"timestamp":"1969-12-31T23:59:59.999Z","key":"","value":"/wA=","value_encoding":"base64","headers":[{"key":"a","value":null},{"key":"a","value":"gA==","value_encoding":"base64"}]}"#
    );
}

#[test]
fn times_that_rfc_3339_cannot_say_are_numbers() {
    for (ms, form) in [
        (253_402_300_799_999, "\"9999-12-31T23:59:59.999Z\""),
        (253_402_300_800_000, "253402300800000"),
        (i64::MAX, "9223372036854775807"),
        (i64::MIN, "-9223372036854775808"),
    ] {
        let mut out = Vec::new();
        write_timestamp(&mut out, Timestamp(ms));
        assert_eq!(text(out), form);
    }
}

#[test]
fn times_are_read_in_three_forms() {
    for (written, ms) in [
        ("2015-05-17", 1_431_820_800_000),
        ("2015-05-17T00:00:00Z", 1_431_820_800_000),
        ("2015-05-17T02:00:00.0019+02:00", 1_431_820_800_001),
        ("1431820800000", 1_431_820_800_000),
        ("-1", -1),
    ] {
        assert_eq!(parse_time(written), Ok(Timestamp(ms)), "{written}");
    }
    for bad in ["", "yesterday", "2015-13-01", "2015-05-17T25:00:00Z", "1e9", "99999999999999999999"] {
        assert!(parse_time(bad).is_err(), "{bad}");
    }
}

#[test]
fn produce_lines_are_read() {
    let line = br#"{"key":"k","value":"v\u00e9","headers":[{"key":"a","value":null},{"key":"b"}],"timestamp":5,"partition":1}"#;
    let line = parse_produce_line(line).unwrap();
    assert_eq!(line.key.as_deref(), Some(b"k".as_slice()));
    assert!(matches!(line.key, Some(Cow::Borrowed(_))), "text without escapes is not copied");
    assert_eq!(line.value.as_deref(), Some("v\u{e9}".as_bytes()));
    assert_eq!(line.headers, vec![("a".into(), None), ("b".into(), None)]);
    assert_eq!((line.timestamp, line.partition), (Some(Timestamp(5)), Some(PartitionId(1))));
    assert_eq!(parse_produce_line(br#"{"value":null}"#).unwrap(), ProduceLine::default());
}

#[test]
fn bad_produce_lines_say_why() {
    for (line, reason) in [
        (r#"{"key":"a"}"#, "the field value is missing"),
        (r#"{"value":{"a":1}}"#, "expected a string or null"),
        (r#"{"value":"a","offest":1}"#, "unknown field `offest`"),
        (r#"{"value":"a""#, "EOF"),
        (r#"{"value":"a"} x"#, "trailing"),
        (r#"{"value":"a","value_encoding":"hex"}"#, "value_encoding is \"hex\""),
        (r#"{"value":"*","value_encoding":"base64"}"#, "value is not base64"),
        (r#"{"value":null,"value_encoding":"base64"}"#, "value_encoding without value"),
        (r#"{"value":"a","timestamp":"soon"}"#, "\"soon\" is not a time"),
        (r#"{"value":"a","partition":"0"}"#, "invalid type"),
        (r#"{"value":"a","headers":[{"value":"x"}]}"#, "missing field `key`"),
        (r#"["value"]"#, "not a JSON object"),
        ("value", "not a JSON object"),
    ] {
        let error = parse_produce_line(line.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(reason), "{line}: {error}");
    }
    assert!(parse_produce_line(&[b'"', 0xff, b'"']).is_err());
}

fn arbitrary_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![vec(any::<u8>(), 0..40), ".{0,20}".prop_map(String::into_bytes)]
}

proptest! {
    #[test]
    fn what_is_written_reads_back(
        timestamp in prop_oneof![any::<i64>(), 0..4_102_444_800_000_i64],
        key in option::of(arbitrary_bytes()),
        value in option::of(arbitrary_bytes()),
        headers in vec((".{0,10}", option::of(arbitrary_bytes())), 0..4),
    ) {
        let written = json(timestamp, key.as_deref(), value.as_deref(), &headers);
        prop_assert!(!written.contains(&b'\n'), "one message is one line");
        let read = parse_produce_line(&written).unwrap();
        prop_assert_eq!(read.timestamp, Some(Timestamp(timestamp)));
        prop_assert_eq!(read.partition, Some(PartitionId(2)));
        prop_assert_eq!(read.key.as_deref(), key.as_deref());
        prop_assert_eq!(read.value.as_deref(), value.as_deref());
        let read: Vec<OwnedHeader> =
            read.headers.into_iter().map(|(key, value)| (key.into_owned(), value.map(Cow::into_owned))).collect();
        prop_assert_eq!(read, headers);
    }

    #[test]
    fn no_input_makes_the_parser_panic(line in vec(any::<u8>(), 0..200)) {
        let _ = parse_produce_line(&line);
    }
}
