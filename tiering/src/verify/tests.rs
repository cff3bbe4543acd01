use std::sync::Arc;

use object_store::memory::InMemory;
use proptest::prelude::*;
use thermocline_ingest::model::{PartitionId, TopicName};

use super::*;
use crate::parquet::ParquetEncoder;
use crate::pipeline::Stager;
use crate::testing::{
    FaultyStore, TestRecord, any_record, background_threads, batch, batches, for_each_record, parquet_options,
    some_records, stage_options, undecodable, write_golden_if_asked,
};

/// Digest of the records as the log has them, and the Parquet file made of them.
fn encode(batches: &[Bytes]) -> (String, u64, Bytes) {
    let mut digest = ContentDigest::new();
    let mut parquet = ParquetEncoder::new(PartitionId(3), parquet_options()).unwrap();
    let mut last = Offset::ZERO;
    for_each_record(batches, |record| {
        digest.update(record);
        parquet.push(record).unwrap();
        last = record.offset;
    });
    let rows = parquet.row_count();
    (digest.finish(), rows, parquet.finish(&TopicName::new("orders").unwrap(), Offset::ZERO, last).unwrap())
}

fn digest_of_records(records: &[TestRecord]) -> String {
    encode(&[batch(0, records)]).0
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_comes_out_of_parquet_has_the_digest_of_what_went_in(
        records in prop::collection::vec(any_record(), 1..200), size in 1..50_usize,
    ) {
        let (expected, rows, file) = encode(&batches(0, &records, size));
        let read = digest_of(&file).unwrap();
        prop_assert_eq!(read.rows, rows);
        prop_assert_eq!(read.digest, expected);
        prop_assert_eq!(read.range, Some((Offset(0), Offset(records.len() as i64 - 1))));
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
    write_golden_if_asked("data-v1.parquet", &encode(&batches(0, &some_records(20), 7)).2);
    let file = Bytes::from_static(include_bytes!("../../tests/golden/data-v1.parquet"));
    let read = digest_of(&file).unwrap();
    assert_eq!((read.rows, read.range), (20, Some((Offset(0), Offset(19)))));
    assert_eq!(read.digest, digest_of_records(&some_records(20)));
}

/// Every byte of the stored objects counts.
#[tokio::test]
async fn damage_is_found() {
    let source = batches(0, &some_records(300), 50);
    let mut broken = source.clone();
    // Kept raw, so that there is a raw object too.
    broken.push(undecodable(300, 10));
    let source = Box::new(move || Ok(Box::new(broken.clone().into_iter().map(Ok)) as crate::pipeline::Batches));
    let staged = Stager::new(source, Offset::ZERO, stage_options(1 << 20)).next_file().unwrap().unwrap();
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

/// A sound Parquet file with other records than the log's.
#[test]
fn other_content_is_found() {
    let (digest, rows, data) = encode(&batches(0, &some_records(40), 10));
    let file = |digest: &str, rows, last| DataFile {
        base_offset: Offset::ZERO,
        last_offset: Offset(last),
        rows,
        min_timestamp: Default::default(),
        max_timestamp: Default::default(),
        log_bytes: 0,
        digest: digest.to_owned(),
        data: ObjectRef::of(&"x".into(), &data),
        split: None,
        raw: None,
    };
    check_data_file(&file(&digest, rows, 39), data.clone()).unwrap();
    for wrong in [file("0", rows, 39), file(&digest, rows + 1, 39), file(&digest, rows, 40)] {
        let error = check_data_file(&wrong, data.clone()).unwrap_err();
        assert!(matches!(error, VerifyError::Content { .. }), "{error}");
    }
}
