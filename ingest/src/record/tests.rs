use std::path::PathBuf;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use super::testing::*;
use super::*;
use crate::model::{Offset, Timestamp, TimestampType};

const LIMIT: usize = 1 << 20;

#[derive(Clone, Debug, PartialEq)]
struct Owned {
    offset: i64,
    timestamp: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
}

impl From<Record<'_>> for Owned {
    fn from(record: Record<'_>) -> Self {
        Self {
            offset: record.offset.0,
            timestamp: record.timestamp.0,
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers: record.headers.iter().map(|(k, v)| (k.to_owned(), v.map(<[u8]>::to_vec))).collect(),
        }
    }
}

fn bytes() -> impl Strategy<Value = Option<Vec<u8>>> {
    proptest::option::of(prop_oneof![8 => vec(any::<u8>(), 0..40), 1 => vec(any::<u8>(), 60..300)])
}

prop_compose! {
    fn record()(timestamp: i64, key in bytes(), value in bytes(), headers in vec(("[a-zä]{0,8}", bytes()), 0..6)) -> Owned {
        Owned { offset: 0, timestamp, key, value, headers }
    }
}

/// Records at dense offsets from `base`, or with holes.
fn records(holes: bool) -> impl Strategy<Value = Vec<Owned>> {
    let base = if holes { 0..i64::from(u32::MAX) } else { 0..1 };
    (base, vec((record(), 1..1000_i64), 1..30)).prop_map(move |(base, records)| {
        let mut next = base;
        let place = |(mut record, step): (Owned, i64)| {
            record.offset = next;
            next += if holes { step } else { 1 };
            record
        };
        records.into_iter().map(place).collect()
    })
}

fn encode(records: &[Owned]) -> Vec<u8> {
    let mut encoder = BatchEncoder::new(TimestampType::CreateTime);
    for r in records {
        let headers = r.headers.iter().map(|(k, v)| (k.as_bytes(), v.as_deref()));
        encoder.push(Offset(r.offset), Timestamp(r.timestamp), r.key.as_deref(), r.value.as_deref(), headers);
    }
    let len = encoder.len_bytes();
    let batch = encoder.finish().unwrap();
    assert_eq!((len, encoder.len_bytes(), encoder.record_count()), (batch.len(), 0, 0));
    batch.to_vec()
}

fn decode(decoder: &mut BatchDecoder, batch: &[u8]) -> Result<Vec<Owned>, BatchError> {
    let mut out = Vec::new();
    decoder.for_each(batch, |record| {
        assert_eq!(record.headers.len(), record.headers.iter().count());
        out.push(Owned::from(record));
        Ok::<(), BatchError>(())
    })?;
    Ok(out)
}

fn rules() -> BatchRules {
    BatchRules {
        message_bytes_max: LIMIT,
        segment_bytes: LIMIT as u64,
        keys_required: false,
        log_append_time: false,
        timestamp_before_max_ms: None,
        timestamp_after_max_ms: None,
    }
}

proptest! {
    #[test]
    fn records_read_back_as_encoded_in_every_codec(records in records(false)) {
        let plain = encode(&records);
        let header = BatchHeader::read(&plain).unwrap();
        prop_assert_eq!(header.max_timestamp.0, records.iter().map(|r| r.timestamp).max().unwrap());
        prop_assert_eq!(header.size_bytes(), plain.len());
        let mut decoder = BatchDecoder::new(LIMIT);
        for codec in CODECS {
            let batch = compressed(&plain, codec);
            verify_crc(&batch).unwrap();
            prop_assert_eq!(&decode(&mut decoder, &batch).unwrap(), &records);
        }
        let framed = with_body(&plain, Compression::Snappy, &xerial(&plain[BATCH_HEADER_LEN..], 100));
        prop_assert_eq!(&decode(&mut decoder, &framed).unwrap(), &records);
    }

    #[test]
    fn headers_read_back_as_collected(records in records(false)) {
        let mut buffer = HeadersBuffer::default();
        for record in records {
            buffer.clear();
            record.headers.iter().for_each(|(key, value)| buffer.push(key.as_bytes(), value.as_deref()));
            let headers = buffer.headers();
            let found: Vec<_> = headers.iter().map(|(key, value)| (key.to_owned(), value.map(<[u8]>::to_vec))).collect();
            prop_assert_eq!(headers.len(), record.headers.len());
            prop_assert_eq!(found, record.headers);
        }
    }

    #[test]
    fn holes_are_kept_and_refused_where_a_producer_made_them(records in records(true)) {
        let batch = encode(&records);
        prop_assert_eq!(BatchHeader::read(&batch).unwrap().base_offset.0, records[0].offset);
        prop_assert_eq!(&decode(&mut BatchDecoder::new(LIMIT), &batch).unwrap(), &records);
        let dense = records.windows(2).all(|pair| pair[1].offset == pair[0].offset + 1);
        let mut produced = batch;
        produced[..8].fill(0);
        let any_time = BatchRules { log_append_time: true, ..rules() };
        prop_assert_eq!(validate_batch(&produced, &any_time, Timestamp(0)).is_ok(), dense);
    }

    /// Damage under a CRC that was made to fit again: must be refused or read, never panic, never allocate past the
    /// cap.
    #[test]
    fn damaged_batches_never_panic(
        records in records(false), codec in 0..5_usize, framed: bool,
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), cut in any::<prop::sample::Index>(), cuts: bool,
    ) {
        let plain = encode(&records);
        let mut batch = if framed && CODECS[codec] == Compression::Snappy {
            with_body(&plain, Compression::Snappy, &xerial(&plain[BATCH_HEADER_LEN..], 64))
        } else {
            compressed(&plain, CODECS[codec])
        };
        for (at, byte) in damage {
            let at = 17 + at.index(batch.len() - 17);
            batch[at] = byte;
        }
        if cuts {
            batch.truncate(BATCH_HEADER_LEN + cut.index(batch.len() - BATCH_HEADER_LEN + 1));
        }
        let batch = reseal(batch);
        let _ = decode(&mut BatchDecoder::new(4096), &batch);
        let mut rewriter = BatchRewriter::new(4096);
        let _ = rewriter.for_each(&batch, |_| {});
        let _ = rewriter.retain(&batch, Some(Timestamp(0)), |record| record.offset.0 % 2 == 0);
        let keyed = BatchRules { keys_required: true, timestamp_before_max_ms: Some(1), ..rules() };
        for rules in [rules(), keyed] {
            if let Ok(header) = validate_batch(&batch, &rules, Timestamp(0)) {
                for target in CODECS {
                    let _ = recompress(&batch, &header, target);
                }
            }
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(body in vec(any::<u8>(), 0..200), codec in 0..5_usize, whole: bool) {
        let template = batch_of(&[(0, b"x")]);
        let batch = if whole { body } else { with_body(&template, CODECS[codec], &body) };
        let _ = decode(&mut BatchDecoder::new(4096), &batch);
        let _ = validate_batch(&batch, &rules(), Timestamp(0));
        let _ = split_batches(Bytes::from(batch)).count();
    }

    #[test]
    fn the_append_time_stamp_equals_a_full_recomputation(records in records(false), now in 0..i64::MAX, codec in 0..5_usize) {
        let mut batch = compressed(&encode(&records), CODECS[codec]);
        let header = BatchHeader::read(&batch).unwrap();
        stamp_log_append_time(&mut batch, &header, Timestamp(now));
        verify_crc(&batch).unwrap();
        let stamped = decode(&mut BatchDecoder::new(LIMIT), &batch).unwrap();
        prop_assert!(stamped.iter().all(|record| record.timestamp == now));
        prop_assert_eq!(stamped.len(), records.len());
    }

    #[test]
    fn recompressed_records_are_the_same(records in records(false), from in 0..5_usize, to in 0..5_usize) {
        let batch = with_producer(compressed(&encode(&records), CODECS[from]), 7, 2, 30);
        let header = BatchHeader::read(&batch).unwrap();
        let again = recompress(&batch, &header, CODECS[to]).unwrap();
        prop_assert_eq!(again.is_some(), from != to);
        let again = again.unwrap_or(batch);
        verify_crc(&again).unwrap();
        let written = BatchHeader::read(&again).unwrap();
        prop_assert_eq!(written.compression().unwrap(), CODECS[to]);
        let BatchHeader { batch_length, crc, attributes, .. } = header;
        prop_assert_eq!(BatchHeader { batch_length, crc, attributes, ..written }, header);
        prop_assert_eq!(&decode(&mut BatchDecoder::new(LIMIT), &again).unwrap(), &records);
    }

    #[test]
    fn runs_of_batches_split_where_they_were_joined(batches in vec(records(false), 0..5), cut in 1..60_usize) {
        let batches: Vec<_> = batches.iter().map(|records| Bytes::from(encode(records))).collect();
        let mut joined = batches.concat();
        let split: Result<Vec<_>, _> = split_batches(Bytes::from(joined.clone())).collect();
        prop_assert_eq!(split.unwrap(), batches.clone());
        if !batches.is_empty() {
            joined.truncate(joined.len() - cut);
            let split: Vec<_> = split_batches(Bytes::from(joined)).collect();
            prop_assert_eq!(split.len(), batches.len());
            prop_assert!(split[batches.len() - 1].is_err());
        }
    }
}

#[test]
fn bombs_stop_at_the_cap() {
    let template = batch_of(&[(0, b"x")]);
    let zeros = vec![0; 8 * LIMIT];
    for codec in CODECS.into_iter().skip(1) {
        let bomb = with_body(&template, codec, &compress(codec, &zeros));
        let error = decode(&mut BatchDecoder::new(LIMIT), &bomb).unwrap_err();
        assert!(matches!(error, BatchError::DecompressedTooLarge { limit: LIMIT, .. }), "{codec:?}: {error}");
    }
    let framed = with_body(&template, Compression::Snappy, &xerial(&zeros, 32 << 10));
    let error = decode(&mut BatchDecoder::new(LIMIT), &framed).unwrap_err();
    assert!(matches!(error, BatchError::DecompressedTooLarge { .. }), "{error}");
    // 4 GiB claimed by 5 bytes: refused by the cap, and under a large cap as impossible, before it is allocated.
    let claim = with_body(&template, Compression::Snappy, &[0xff, 0xff, 0xff, 0xff, 0x0f]);
    assert!(matches!(decode(&mut BatchDecoder::new(LIMIT), &claim), Err(BatchError::DecompressedTooLarge { .. })));
    assert!(matches!(decode(&mut BatchDecoder::new(usize::MAX), &claim), Err(BatchError::Decompress { .. })));
}

/// Bytes of a batch as published with the tests of another client: one record with key, value and header. Its producer
/// fields are 0 and its largest timestamp is wrong, which decoding does not mind.
#[test]
fn a_known_batch_decodes() {
    let batch = [
        &[0, 0, 0, 0, 0, 0, 0, 0][..], // base offset
        &[0, 0, 0, 70],                // length
        &[0, 0, 0, 0],                 // leader epoch
        &[2],                          // magic
        &[84, 121, 97, 253],           // crc
        &[0, 0],                       // attributes
        &[0, 0, 0, 0],                 // last offset delta
        &[0, 0, 1, 88, 141, 205, 89, 56],
        &[0; 8],       // largest timestamp
        &[0; 8],       // producer id
        &[0; 2],       // producer epoch
        &[0; 4],       // base sequence
        &[0, 0, 0, 1], // record count
        &[40, 0, 10],  // record length 20, attributes, timestamp delta 5
        &[0],          // offset delta
        &[8, 1, 2, 3, 4],
        &[6, 5, 6, 7],
        &[2, 6, 8, 9, 10, 4, 11, 12], // one header
    ]
    .concat();
    let records = decode(&mut BatchDecoder::new(0), &batch).unwrap();
    let expected = Owned {
        offset: 0,
        timestamp: 1_479_847_795_000 + 5,
        key: Some(vec![1, 2, 3, 4]),
        value: Some(vec![5, 6, 7]),
        headers: vec![("\u{8}\t\n".to_owned(), Some(vec![11, 12]))],
    };
    assert_eq!(records, [expected]);
}

/// Another implementation reads what the encoder writes.
#[test]
fn an_independent_decoder_agrees() {
    let records = golden_records();
    let mut batch = Bytes::from(encode(&records));
    let set = kafka_protocol::records::RecordBatchDecoder::decode(&mut batch).unwrap();
    assert_eq!(set.records.len(), records.len());
    for (theirs, ours) in set.records.iter().zip(&records) {
        assert_eq!((theirs.offset, theirs.timestamp), (ours.offset, ours.timestamp));
        assert_eq!(theirs.key.as_deref(), ours.key.as_deref());
        assert_eq!(theirs.value.as_deref(), ours.value.as_deref());
    }
}

fn golden_records() -> Vec<Owned> {
    let owned = |offset, timestamp, key: Option<&str>, value: Option<&str>| Owned {
        offset,
        timestamp,
        key: key.map(|key| key.as_bytes().to_vec()),
        value: value.map(|value| value.as_bytes().to_vec()),
        headers: Vec::new(),
    };
    let mut records = vec![
        owned(0, 1_431_860_401_000, Some("order-1"), Some("{\"item\":\"tea\",\"price\":4.2}")),
        owned(1, 1_431_860_400_000, None, Some("")),
        owned(2, 1_431_860_402_500, Some(""), None),
    ];
    records[1].headers =
        vec![("trace".into(), Some(b"ab".to_vec())), ("trace".into(), None), (String::new(), Some(vec![]))];
    records
}

pub(super) fn golden_path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// One stored batch per codec decodes to the same records, and the encoder still writes the uncompressed one.
#[test]
fn golden_batches() {
    let plain = encode(&golden_records());
    for codec in CODECS {
        let path = golden_path(&format!("batch-{}.bin", format!("{codec:?}").to_lowercase()));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, compressed(&plain, codec)).unwrap();
        }
        let stored = std::fs::read(&path).unwrap();
        assert_eq!(decode(&mut BatchDecoder::new(LIMIT), &stored).unwrap(), golden_records(), "{codec:?}");
        if codec == Compression::None {
            assert_eq!(stored, plain);
        }
    }
}

#[test]
fn produce_refusals_name_their_kafka_code() {
    let good = batch_of(&[(1000, b"a"), (2000, b"b")]);
    let check = |batch: &[u8], rules: &BatchRules| validate_batch(batch, rules, Timestamp(5000)).unwrap_err();
    let edit = |at: usize, with: &[u8]| {
        let mut batch = good.clone();
        batch[at..at + with.len()].copy_from_slice(with);
        reseal(batch)
    };
    assert!(validate_batch(&good, &rules(), Timestamp(5000)).is_ok());

    let mut two = good.clone();
    two.extend_from_slice(&good);
    assert!(matches!(check(&two, &rules()), BatchRefusal::NotOneBatch(_)));
    let mut old = good.clone();
    old[16] = 1;
    assert!(matches!(check(&old, &rules()), BatchRefusal::NotOneBatch(_)));
    assert!(matches!(check(&good[..60], &rules()), BatchRefusal::Corrupt(_)));
    assert!(matches!(check(&good[..good.len() - 1], &rules()), BatchRefusal::Corrupt(_)));
    let mut flipped = good.clone();
    flipped[70] ^= 1;
    assert!(matches!(check(&flipped, &rules()), BatchRefusal::Corrupt(BatchError::Crc { .. })));

    assert!(matches!(check(&edit(7, &[1]), &rules()), BatchRefusal::InvalidRecord(_))); // base offset
    assert!(matches!(check(&edit(21, &[0, 0x20]), &rules()), BatchRefusal::InvalidRecord(_))); // control
    assert!(matches!(check(&edit(21, &[0, 0x40]), &rules()), BatchRefusal::InvalidRecord(_))); // delete horizon
    assert!(matches!(check(&edit(21, &[0, 0x10]), &rules()), BatchRefusal::InvalidRecord(_))); // transactional, no id
    assert!(matches!(check(&edit(21, &[0, 5]), &rules()), BatchRefusal::UnsupportedCompression(5)));
    assert!(matches!(check(&edit(23, &[0, 0, 0, 9]), &rules()), BatchRefusal::InvalidRecord(_))); // last delta
    assert!(matches!(check(&edit(57, &[0; 4]), &rules()), BatchRefusal::InvalidRecord(_))); // no records
    assert!(matches!(check(&edit(43, &[0; 8]), &rules()), BatchRefusal::InvalidRecord(_))); // id without sequence
    let three = [&2_i32.to_be_bytes()[..], &good[27..57], &3_i32.to_be_bytes()].concat();
    assert!(matches!(check(&edit(23, &three), &rules()), BatchRefusal::BadRecords(BatchError::Count { .. })));
    assert!(matches!(check(&edit(64, &[8]), &rules()), BatchRefusal::BadRecords(BatchError::Record { .. })));

    let small = BatchRules { message_bytes_max: 50, ..rules() };
    assert!(matches!(check(&good, &small), BatchRefusal::MessageTooLarge { limit: 50, .. }));
    let short = BatchRules { segment_bytes: 50, ..rules() };
    assert!(matches!(check(&good, &short), BatchRefusal::LargerThanSegment { limit: 50, .. }));

    let late = BatchRules { timestamp_before_max_ms: Some(3999), ..rules() };
    assert!(matches!(check(&good, &late), BatchRefusal::InvalidTimestamp { .. }));
    let early = BatchRules { timestamp_after_max_ms: Some(-3001), ..rules() };
    assert!(matches!(check(&good, &early), BatchRefusal::InvalidTimestamp { .. }));
    let at_the_edge =
        BatchRules { timestamp_before_max_ms: Some(4000), timestamp_after_max_ms: Some(-3000), ..rules() };
    assert!(validate_batch(&good, &at_the_edge, Timestamp(5000)).is_ok());
    let stamped = edit(21, &[0, 8]);
    assert!(matches!(check(&stamped, &rules()), BatchRefusal::InvalidTimestamp { .. }));
    assert!(validate_batch(&stamped, &BatchRules { log_append_time: true, ..rules() }, Timestamp(0)).is_ok());
    assert!(matches!(check(&edit(35, &[0; 8]), &rules()), BatchRefusal::InvalidTimestamp { .. }));
    assert!(matches!(check(&edit(35, &[0x7f; 8]), &rules()), BatchRefusal::InvalidTimestamp { .. }));
}

#[test]
fn what_is_wrong_with_single_records_is_told_by_their_index() {
    let mut encoder = BatchEncoder::new(TimestampType::CreateTime);
    for (offset, time) in [(0, 3000), (1, 900), (2, 5000), (3, 6101)] {
        let key: Option<&[u8]> = (offset % 3 == 0).then_some(b"k");
        encoder.push(Offset(offset), Timestamp(time), key, Some(b"v"), std::iter::empty());
    }
    let plain = encoder.finish().unwrap().to_vec();
    let keyed = BatchRules { keys_required: true, ..rules() };
    let before = BatchRules { timestamp_before_max_ms: Some(4000), ..rules() };
    let after = BatchRules { timestamp_after_max_ms: Some(1000), ..rules() };
    let both = BatchRules { timestamp_after_max_ms: Some(1000), ..before };
    for codec in CODECS {
        let batch = compressed(&plain, codec);
        let indexes = |rules: &BatchRules| {
            let refusal = validate_batch(&batch, rules, Timestamp(5000)).unwrap_err();
            let (indexes, _) = refusal.records();
            indexes.to_vec()
        };
        assert!(validate_batch(&batch, &rules(), Timestamp(5000)).is_ok());
        assert_eq!(indexes(&keyed), [1, 2], "{codec:?}");
        assert_eq!(indexes(&before), [1], "{codec:?}: the first record alone does not say it");
        assert_eq!(indexes(&after), [3], "{codec:?}");
        assert_eq!(indexes(&both), [1, 3], "{codec:?}");
        let stamped = BatchRules { log_append_time: true, ..both };
        assert!(validate_batch(&batch, &stamped, Timestamp(5000)).is_ok(), "the producer's times do not matter");
    }
    // Where records must be looked at, what does not decompress is refused, and a bomb stops at the cap.
    let broken = with_body(&plain, Compression::Gzip, b"not gzip");
    assert!(validate_batch(&broken, &rules(), Timestamp(5000)).is_ok());
    assert!(matches!(validate_batch(&broken, &keyed, Timestamp(5000)), Err(BatchRefusal::Corrupt(_))));
    let bomb =
        with_body(&plain, Compression::Zstd, &compress(Compression::Zstd, &vec![0; DECOMPRESSED_BATCH_BYTES_MAX + 1]));
    let header = BatchHeader::read(&bomb).unwrap();
    assert!(matches!(validate_batch(&bomb, &keyed, Timestamp(5000)), Err(BatchRefusal::DecompressedTooLarge(_))));
    assert!(matches!(recompress(&bomb, &header, Compression::Lz4), Err(BatchRefusal::DecompressedTooLarge(_))));
}
