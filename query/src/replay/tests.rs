use arrow::array::{Array, AsArray};
use arrow::datatypes::{Int32Type, Int64Type, TimestampMicrosecondType};
use arrow_ipc::reader::StreamReader;
use proptest::prelude::*;
use thermocline_ingest::model::{TimestampType, TopicId, TopicName};
use thermocline_tiering::manifest::{DataFile, ObjectRef, RawBatch, RawBatches};

use super::*;
use crate::message::Message;

fn object() -> ObjectRef {
    ObjectRef { key: "k".to_owned(), size_bytes: 1, xxh3: String::new() }
}

/// A manifest of data files of ten offsets each, with these smallest and largest timestamps.
fn manifest(times: &[(i64, i64)]) -> Manifest {
    let file = |(index, &(min, max)): (usize, &(i64, i64))| {
        let base = Offset(index as i64 * 10);
        Arc::new(DataFile {
            base_offset: base,
            last_offset: base.plus(9),
            rows: 10,
            dropped: 0,
            min_timestamp: Timestamp(min),
            max_timestamp: Timestamp(max),
            log_bytes: 0,
            digest: String::new(),
            data: object(),
            split: None,
            raw: None,
            indexed: None,
        })
    };
    Manifest {
        topic: TopicName::new("t").unwrap(),
        topic_id: TopicId::random(),
        partition: PartitionId(0),
        version: 1,
        epoch: 1,
        log_start_offset: Offset::ZERO,
        files: times.iter().enumerate().map(file).collect(),
    }
}

fn parts(manifest: &Manifest, range: (i64, i64), from: Option<i64>, to: Option<i64>) -> Vec<(i64, i64)> {
    let range = OffsetRange { start: Offset(range.0), end: Offset(range.1) };
    ranges_in_time(manifest, range, from.map(Timestamp), to.map(Timestamp))
        .iter()
        .map(|part| (part.start.0, part.end.0))
        .collect()
}

#[test]
fn files_outside_the_time_range_are_left_out() {
    let manifest = manifest(&[(0, 9), (10, 19), (20, 29), (15, 39)]);
    assert_eq!(parts(&manifest, (0, 50), None, None), [(0, 50)]);
    assert_eq!(parts(&manifest, (0, 50), Some(20), None), [(20, 50)]);
    assert_eq!(parts(&manifest, (0, 50), Some(10), Some(20)), [(10, 20), (30, 50)]);
    assert_eq!(parts(&manifest, (0, 40), None, Some(10)), [(0, 10)]);
    assert_eq!(parts(&manifest, (25, 32), Some(30), None), [(30, 32)]);
    assert_eq!(parts(&manifest, (12, 15), Some(30), None), []);
    assert_eq!(parts(&manifest, (5, 5), None, None), []);
}

#[test]
fn a_file_with_raw_batches_is_never_left_out() {
    let mut manifest = manifest(&[(0, 9), (10, 19)]);
    let batch = RawBatch {
        base_offset: Offset(3),
        last_offset: Offset(3),
        position: 0,
        size_bytes: 1,
        reason: "not gzip".to_owned(),
    };
    let mut file = manifest.files[0].as_ref().clone();
    file.raw = Some(RawBatches { object: object(), batches: vec![batch] });
    manifest.files = [Arc::new(file)].into_iter().chain(manifest.files.iter_from(1).cloned()).collect();
    assert_eq!(parts(&manifest, (0, 20), Some(15), None), [(0, 20)]);
}

fn message<'a>(
    offset: i64,
    key: Option<&'a [u8]>,
    headers: &'a [(&'a str, Option<&'a [u8]>)],
) -> Message<'a, impl Iterator<Item = (&'a str, Option<&'a [u8]>)>> {
    Message {
        topic: "t",
        partition: PartitionId(1),
        offset: Offset(offset),
        timestamp: Timestamp(1000 + offset),
        key,
        value: Some(b"v"),
        headers: headers.iter().copied(),
    }
}

#[test]
fn ndjson_is_one_line_per_message() {
    let mut rows = Rows::new(Format::Ndjson).unwrap();
    for offset in 0..3 {
        rows.push(message(offset, None, &[]), TimestampType::CreateTime).unwrap();
    }
    assert!(rows.len_bytes() > 0);
    let first = rows.take().unwrap();
    assert_eq!(first.iter().filter(|byte| **byte == b'\n').count(), 3);
    assert_eq!(rows.len_bytes(), 0);
    assert!(rows.finish().unwrap().is_empty());
}

#[test]
fn arrow_is_a_stream_with_the_columns_of_the_archive() {
    let mut rows = Rows::new(Format::Arrow).unwrap();
    rows.push(message(5, None, &[("a", Some(b"")), ("a", None)]), TimestampType::CreateTime).unwrap();
    rows.push(message(6, Some(b"k"), &[]), TimestampType::LogAppendTime).unwrap();
    let mut stream = rows.take().unwrap().to_vec();
    rows.push(message(7, Some(b""), &[]), TimestampType::CreateTime).unwrap();
    stream.extend_from_slice(&rows.finish().unwrap());

    let batches: Vec<_> = StreamReader::try_new(stream.as_slice(), None).unwrap().map(Result::unwrap).collect();
    assert_eq!(batches.iter().map(|batch| batch.num_rows()).collect::<Vec<_>>(), [2, 1]);
    let names: Vec<_> = batches[0].schema().fields().iter().map(|field| field.name().clone()).collect();
    assert_eq!(names, ["partition", "offset", "timestamp", "timestamp_type", "key", "value", "headers"]);
    assert_eq!(batches[0]["partition"].as_primitive::<Int32Type>().values(), &[1, 1]);
    assert_eq!(batches[0]["offset"].as_primitive::<Int64Type>().values(), &[5, 6]);
    assert_eq!(batches[0]["timestamp"].as_primitive::<TimestampMicrosecondType>().values(), &[1_005_000, 1_006_000]);
    assert_eq!(batches[0]["timestamp_type"].as_primitive::<Int32Type>().values(), &[0, 1]);
    let keys = batches[0]["key"].as_binary::<i32>();
    assert!(keys.is_null(0));
    assert_eq!(keys.value(1), b"k");
    let headers = batches[0]["headers"].as_list::<i32>().value(0);
    let values = headers.as_struct().column(1).as_binary::<i32>();
    assert_eq!((values.len(), values.is_null(0), values.value(0), values.is_null(1)), (2, false, b"".as_slice(), true));
    assert!(!batches[1]["key"].is_null(0), "empty is not absent");
}

#[test]
fn an_empty_arrow_stream_has_a_schema_and_an_end() {
    let stream = Rows::new(Format::Arrow).unwrap().finish().unwrap();
    assert_eq!(StreamReader::try_new(stream.as_ref(), None).unwrap().count(), 0);
}

proptest! {
    /// Against the plain definition: an offset is read unless its file lies wholly outside the time range.
    #[test]
    fn ranges_are_what_the_files_say(
        times in proptest::collection::vec((0..30_i64, 0..30_i64), 0..6),
        start in 0..70_i64,
        len in 0..70_i64,
        from in proptest::option::of(0..40_i64),
        to in proptest::option::of(0..40_i64),
    ) {
        let times: Vec<_> = times.into_iter().map(|(a, b)| (a.min(b), a.max(b))).collect();
        let found = parts(&manifest(&times), (start, start + len), from, to);
        let wanted: Vec<i64> = (start..start + len)
            .filter(|offset| match times.get(usize::try_from(offset / 10).unwrap()) {
                Some((min, max)) => from.is_none_or(|from| *max >= from) && to.is_none_or(|to| *min < to),
                None => true,
            })
            .collect();
        let covered: Vec<i64> = found.iter().flat_map(|(start, end)| *start..*end).collect();
        prop_assert_eq!(covered, wanted);
        prop_assert!(found.iter().all(|(start, end)| start < end));
    }
}
