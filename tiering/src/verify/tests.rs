use std::sync::Arc;

use object_store::memory::InMemory;
use proptest::prelude::*;
use thermocline_ingest::model::{PartitionId, Timestamp, TopicName};

use super::*;
use crate::budget::Rates;
use crate::manifest::{RawBatch, RawBatches};
use crate::parquet::{BASE_OFFSET_KEY, LAST_OFFSET_KEY, PARTITION_KEY, ParquetEncoder, TOPIC_KEY};
use crate::pipeline::{StageOptions, Stager};
use crate::split::SplitOptions;
use crate::testing::{
    FaultyStore, TestRecord, any_record, background_threads, batch, batches, for_each_record, parquet_options, path,
    some_records, stage_options, undecodable, write_golden_if_asked,
};

/// Digest of the records as the log has them, and the Parquet file made of them.
fn encode(batches: &[Bytes]) -> (String, Bytes) {
    let mut digest = ContentDigest::new();
    let mut parquet = ParquetEncoder::new(path().partition, parquet_options()).unwrap();
    let mut last = Offset::ZERO;
    for_each_record(batches, |record| {
        digest.update(record);
        parquet.push(record).unwrap();
        last = record.offset;
    });
    (digest.finish(), parquet.finish(&path().topic, Offset::ZERO, last).unwrap())
}

fn digest_of_records(records: &[TestRecord]) -> String {
    encode(&[batch(0, records)]).0
}

/// What a manifest says of a file of these records from offset 0 on.
fn data_file(digest: &str, data: &Bytes, records: &[TestRecord]) -> DataFile {
    let times = || records.iter().map(|record| Timestamp(record.0));
    DataFile {
        base_offset: Offset::ZERO,
        last_offset: Offset(records.len() as i64 - 1),
        rows: records.len() as u64,
        dropped: 0,
        min_timestamp: times().min().unwrap(),
        max_timestamp: times().max().unwrap(),
        log_bytes: 0,
        digest: digest.to_owned(),
        data: ObjectRef::of(&"x".into(), data),
        split: None,
        indexed: None,
        raw: None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_comes_out_of_parquet_has_the_digest_of_what_went_in(
        records in prop::collection::vec(any_record(), 1..200), size in 1..50_usize,
    ) {
        let (digest, data) = encode(&batches(0, &records, size));
        let file = data_file(&digest, &data, &records);
        prop_assert_eq!(data::check(&path(), &file, data), Ok(()));
    }

    #[test]
    fn different_records_have_different_digests(a in any_record(), b in any_record()) {
        prop_assert_eq!(a == b, digest_of_records(&[a]) == digest_of_records(&[b]));
    }
}

#[test]
fn null_empty_and_borders_are_told_apart() {
    let plain = |key: Option<&str>, value: Option<&str>| -> TestRecord {
        (0, key.map(|k| k.as_bytes().to_vec()), value.map(|v| v.as_bytes().to_vec()), Vec::new())
    };
    let header = |key: &str, value: Option<&str>| (key.to_owned(), value.map(|v| v.as_bytes().to_vec()));
    let with = |headers: Vec<(String, Option<Vec<u8>>)>| (0, None, None, headers);
    let all = [
        plain(None, None),
        plain(Some(""), None),
        plain(None, Some("")),
        plain(Some(""), Some("")),
        plain(Some("ab"), Some("c")),
        plain(Some("a"), Some("bc")),
        with(vec![header("", None)]),
        with(vec![header("", Some(""))]),
        with(vec![header("a", Some("b")), header("b", Some("a"))]),
        with(vec![header("b", Some("a")), header("a", Some("b"))]),
        with(vec![header("a", Some("b")), header("a", Some("b"))]),
    ];
    let digests: std::collections::HashSet<_> =
        all.iter().map(|r| digest_of_records(std::slice::from_ref(r))).collect();
    assert_eq!(digests.len(), all.len());
}

/// Digests are stored in manifests: the same records must have the same digest for ever.
#[test]
fn digests_are_as_they_were() {
    write_golden_if_asked("content-digest-v1.txt", digest_of_records(&some_records(20)).as_bytes());
    assert_eq!(digest_of_records(&some_records(20)), include_str!("../../tests/golden/content-digest-v1.txt").trim());
}

/// A file as the first version of this program wrote it.
#[test]
fn data_files_of_version_1_read_back() {
    write_golden_if_asked("data-v1.parquet", &encode(&batches(0, &some_records(20), 7)).1);
    let data = Bytes::from_static(include_bytes!("../../tests/golden/data-v1.parquet"));
    let records = some_records(20);
    let file = data_file(&digest_of_records(&records), &data, &records);
    assert_eq!(data::check(&path(), &file, data), Ok(()));
}

/// Every byte of the stored objects counts.
#[tokio::test]
async fn damage_is_found() {
    let staged = staged(150);
    let faulty = FaultyStore::healthy(Arc::new(InMemory::new()));
    let store = faulty.cold(0);
    let missing = read_back(&store, &background_threads(), &staged).await.unwrap_err();
    assert!(missing.is_mismatch(), "an object that is not there was not stored: {missing}");
    for (key, bytes) in staged.objects() {
        store.put(key, bytes.clone()).await.unwrap();
    }
    read_back(&store, &background_threads(), &staged).await.unwrap();
    for (key, bytes) in staged.objects() {
        for at in (0..bytes.len()).step_by(97) {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 0x10;
            store.put(key, damaged.into()).await.unwrap();
            assert!(
                read_back(&store, &background_threads(), &staged).await.unwrap_err().is_mismatch(),
                "{key} byte {at}"
            );
        }
        store.put(key, bytes.slice(..bytes.len() - 1)).await.unwrap();
        assert!(read_back(&store, &background_threads(), &staged).await.unwrap_err().is_mismatch(), "{key} cut");
        store.put(key, bytes.clone()).await.unwrap();
    }
}

/// A sound Parquet file with other records than the manifest has.
#[test]
fn other_content_is_found() {
    let records = some_records(40);
    let (digest, data) = encode(&batches(0, &records, 10));
    let sound = data_file(&digest, &data, &records);
    let check = |file: &DataFile| data::check(&path(), file, data.clone());
    assert_eq!(check(&sound), Ok(()));
    let raw = |base, last| {
        let (base_offset, last_offset) = (Offset(base), Offset(last));
        let batch = RawBatch { base_offset, last_offset, position: 0, size_bytes: 1, reason: String::new() };
        Some(RawBatches { object: sound.data.clone(), batches: vec![batch] })
    };
    for (wrong, what) in [
        (DataFile { digest: "0".to_owned(), ..sound.clone() }, "digest"),
        (DataFile { rows: 41, ..sound.clone() }, "number of records"),
        (DataFile { last_offset: Offset(40), ..sound.clone() }, LAST_OFFSET_KEY),
        (DataFile { base_offset: Offset(1), ..sound.clone() }, BASE_OFFSET_KEY),
        (
            DataFile { min_timestamp: Timestamp(sound.min_timestamp.0 + 1), ..sound.clone() },
            "timestamp, in microseconds,",
        ),
        (
            DataFile { max_timestamp: Timestamp(sound.max_timestamp.0 - 1), ..sound.clone() },
            "timestamp, in microseconds,",
        ),
        (DataFile { raw: raw(7, 9), ..sound.clone() }, "offset"),
        (DataFile { raw: raw(30, 39), ..sound.clone() }, "offset"),
    ] {
        match check(&wrong) {
            Err(Fault::Content { what: found, .. }) => assert_eq!(found, what),
            other => panic!("{what}: {other:?}"),
        }
    }
    let elsewhere = |path| data::check(&path, &sound, data.clone()).unwrap_err();
    let topic = PartitionPath { topic: TopicName::new("other").unwrap(), ..path() };
    assert!(matches!(elsewhere(topic), Fault::Content { what: TOPIC_KEY, .. }));
    let partition = PartitionPath { partition: PartitionId(4), ..path() };
    assert!(matches!(elsewhere(partition), Fault::Content { what: PARTITION_KEY, .. }));
    let cut = data::check(&path(), &sound, data.slice(1..)).unwrap_err();
    assert!(matches!(cut, Fault::Undecodable { .. }), "{cut}");
}

/// Staged with a split, and a batch kept raw.
fn staged(decodable: usize) -> StagedArchive {
    let mut segment = batches(0, &some_records(decodable), 50);
    segment.push(undecodable(decodable as i64, 10));
    let source = Box::new(move || Ok(Box::new(segment.clone().into_iter().map(Ok)) as crate::pipeline::Batches));
    let options = StageOptions { split: Some(SplitOptions::default()), ..stage_options(64 << 20) };
    Stager::new(source, Vec::new(), Offset::ZERO, options, None).next_file().unwrap().unwrap()
}

/// Without any row there is still a file, and a split, to be read back.
#[tokio::test]
async fn a_file_of_raw_batches_alone_reads_back() {
    let store = FaultyStore::healthy(Arc::new(InMemory::new())).cold(0);
    let staged = staged(0);
    assert_eq!((staged.file().rows, staged.objects().len()), (0, 3));
    for (key, bytes) in staged.objects() {
        store.put(key, bytes.clone()).await.unwrap();
    }
    read_back(&store, &background_threads(), &staged).await.unwrap();
}

#[test]
fn a_split_of_other_records_is_found() {
    let (staged, shorter) = (staged(100), staged(50));
    let split = |staged: &StagedArchive| staged.objects()[1].1.clone();
    assert_eq!(split::check(staged.file(), split(&staged)), Ok(()));
    let fault = split::check(staged.file(), split(&shorter)).unwrap_err();
    assert!(matches!(fault, Fault::Content { what: "number of documents", .. }), "{fault}");
    // As many documents, for other offsets.
    let mut shifted = staged.file().clone();
    shifted.base_offset = Offset(1);
    let fault = split::check(&shifted, split(&staged)).unwrap_err();
    assert!(matches!(fault, Fault::Content { what: "offset", .. }), "{fault}");
    let fault = split::check(staged.file(), split(&staged).slice(1..)).unwrap_err();
    assert!(matches!(fault, Fault::Undecodable { .. }), "{fault}");
}

#[test]
fn a_raw_batch_that_is_another_one_is_found() {
    let staged = staged(50);
    let (file, bytes) = (staged.file(), staged.objects()[2].1.clone());
    let raw = file.raw.clone().unwrap();
    assert_eq!(raw::check(file, &raw, &bytes), Ok(()));
    let mut damaged = bytes.to_vec();
    damaged[70] ^= 1;
    let fault = raw::check(file, &raw, &damaged).unwrap_err();
    assert!(matches!(&fault, Fault::Undecodable { reason } if reason.contains("crc")), "{fault}");
    // The base offset lies outside the CRC.
    let fault = raw::check(file, &raw, &undecodable(51, 10)).unwrap_err();
    assert!(matches!(fault, Fault::Content { what: "offsets", .. }), "{fault}");
    let late = DataFile { min_timestamp: file.max_timestamp, ..file.clone() };
    let fault = raw::check(&late, &raw, &bytes).unwrap_err();
    assert!(matches!(fault, Fault::Content { what: "timestamp, in milliseconds,", .. }), "{fault}");
    let longer = [&bytes[..], b"x"].concat();
    assert!(raw::check(file, &raw, &longer).is_err());
    assert!(raw::check(file, &raw, &bytes[..bytes.len() - 1]).is_err());
}

/// Reading within a budget gives the same bytes, and takes its time.
#[tokio::test(start_paused = true)]
async fn a_budget_changes_nothing_but_time() {
    let store = FaultyStore::healthy(Arc::new(InMemory::new())).cold(0);
    let bytes = Bytes::from((0..PIECE_BYTES * 2 + 5).map(|n| n as u8).collect::<Vec<u8>>());
    let object = ObjectRef::of(&"some/object".into(), &bytes);
    store.put(&object.path(), bytes.clone()).await.unwrap();
    let budget = Budget::new(Rates { bytes_per_second: PIECE_BYTES, requests_per_second: 0 });
    let start = tokio::time::Instant::now();
    assert_eq!(fetch(&store, &object, Some(&budget)).await.unwrap(), Ok(bytes));
    assert_eq!(start.elapsed().as_secs(), 2, "two pieces were paid for before the third began");
}
