use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use tantivy::collector::{Count, DocSetCollector};
use tantivy::directory::{FileHandle, OwnedBytes};
use tantivy::query::{PhraseQuery, TermQuery};
use tantivy::schema::{Field, IndexRecordOption};
use tantivy::{DocId, Term};
use thermocline_ingest::model::{Offset, Timestamp, TimestampType};
use thermocline_ingest::record::{BatchDecoder, BatchEncoder, BatchError, Headers, Record};

use super::document::HEADERS_MAX;
use super::json::NODES_MAX;
use super::tokenizer::TOKEN_LEN_MAX;
use super::*;

const OPTIONS: SplitOptions = SplitOptions::DEFAULT;

fn record<'a>(offset: i64, key: Option<&'a [u8]>, value: Option<&'a [u8]>) -> Record<'a> {
    let (timestamp_type, headers) = (TimestampType::CreateTime, Headers::default());
    Record { offset: Offset(offset), timestamp: Timestamp(1_000 + offset), timestamp_type, key, value, headers }
}

fn split_of(values: &[&str], options: SplitOptions) -> Bytes {
    let mut writer = SplitWriter::new(options).unwrap();
    for (offset, value) in values.iter().enumerate() {
        writer.add(&record(offset as i64, None, Some(value.as_bytes()))).unwrap();
    }
    writer.finish().unwrap()
}

fn in_memory(bytes: &[u8]) -> Arc<dyn FileHandle> {
    Arc::new(OwnedBytes::new(bytes.to_vec()))
}

fn open(bytes: &[u8]) -> SplitReader {
    SplitReader::open(in_memory(bytes)).unwrap()
}

fn docs(split: &SplitReader, term: Term) -> Vec<DocId> {
    let query = TermQuery::new(term, IndexRecordOption::Basic);
    let mut docs: Vec<_> =
        split.searcher.search(&query, &DocSetCollector).unwrap().into_iter().map(|at| at.doc_id).collect();
    docs.sort_unstable();
    docs
}

fn json_text(field: Field, path: &str, text: &str) -> Term {
    let mut term = Term::from_field_json_path(field, path, true);
    term.append_type_and_str(text);
    term
}

#[test]
fn doc_ids_are_row_numbers() {
    let mut writer = SplitWriter::new(OPTIONS).unwrap();
    for row in 0..3_000_i64 {
        writer.add(&record(5_000 + row, Some(b"Key-7"), Some(format!("row{row}").as_bytes()))).unwrap();
    }
    assert!(writer.mem_usage_bytes() > 0);
    let split = open(&writer.finish().unwrap());
    let segment = split.searcher.segment_reader(0);
    assert_eq!(segment.max_doc(), 3_000);
    let offsets = segment.fast_fields().i64("offset").unwrap();
    let timestamps = segment.fast_fields().i64("timestamp").unwrap();
    for row in [0, 1, 1_499, 2_999_u32] {
        assert_eq!(offsets.first(row), Some(5_000 + i64::from(row)));
        assert_eq!(timestamps.first(row), Some(6_000 + i64::from(row)));
        assert_eq!(docs(&split, Term::from_field_text(split.fields.value, &format!("row{row}"))), [row]);
        assert_eq!(docs(&split, Term::from_field_i64(split.fields.offset, 5_000 + i64::from(row))), [row]);
    }
    assert_eq!(docs(&split, Term::from_field_text(split.fields.key, "key")).len(), 3_000);
}

#[test]
fn json_leaves_are_indexed_by_path() {
    let values = [
        r#"{"user":{"name":"Ada Lovelace","age":36},"tags":["Red","blue"],"at":"2015-05-17T10:00:00Z"}"#,
        r#"{"user.name":"Grace","ok":true}"#,
        r#"["not an object"]"#,
    ];
    let split = open(&split_of(&values, OPTIONS));
    let json = split.fields.json;
    assert_eq!(docs(&split, json_text(json, "user.name", "lovelace")), [0]);
    assert_eq!(docs(&split, json_text(json, "user.name", "grace")), [1]);
    assert_eq!(docs(&split, json_text(json, "tags", "red")), [0]);
    assert_eq!(docs(&split, json_text(json, "at", "17t10")), [0]);
    let mut age = Term::from_field_json_path(json, "user.age", true);
    age.append_type_and_fast_value(36_i64);
    assert_eq!(docs(&split, age), [0]);
    assert_eq!(docs(&split, Term::from_field_text(split.fields.value, "object")), [2]);

    let plain = open(&split_of(&values, SplitOptions { json: false, positions: true, ..SplitOptions::default() }));
    assert!(!plain.fields.is_indexed(plain.fields.json));
    assert_eq!(docs(&plain, Term::from_field_text(plain.fields.value, "red")), [0]);
}

#[test]
fn phrases_need_positions() {
    let values = ["disk failure on node", "failure of the disk"];
    let phrase = |split: &SplitReader| {
        let term = |text| Term::from_field_text(split.fields.value, text);
        split.searcher.search(&PhraseQuery::new(vec![term("disk"), term("failure")]), &Count)
    };
    assert_eq!(phrase(&open(&split_of(&values, OPTIONS))).unwrap(), 1);
    assert!(
        phrase(&open(&split_of(&values, SplitOptions { json: false, positions: false, ..SplitOptions::default() })))
            .is_err()
    );
}

#[test]
fn bytes_that_are_not_text_are_searchable_as_far_as_they_are() {
    let mut writer = SplitWriter::new(OPTIONS).unwrap();
    writer.add(&record(0, Some(b"\xff id\xfe7"), Some(b"caf\xe9 au lait"))).unwrap();
    writer.add(&record(1, None, None)).unwrap();
    let split = open(&writer.finish().unwrap());
    for (field, text) in [(split.fields.value, "caf"), (split.fields.value, "lait"), (split.fields.key, "id")] {
        assert_eq!(docs(&split, Term::from_field_text(field, text)), [0], "{text}");
    }
}

#[test]
fn headers_are_indexed_by_name() {
    let mut encoder = BatchEncoder::new(TimestampType::CreateTime);
    let headers = [("trace.id", Some("Abc-1")), ("trace.id", Some("def")), ("none", None)];
    let headers = headers.map(|(name, value)| (name.as_bytes(), value.map(str::as_bytes)));
    encoder.push(Offset(0), Timestamp(1), None, Some(b"v"), headers.into_iter());
    let batch = encoder.finish().unwrap();
    let mut writer = SplitWriter::new(OPTIONS).unwrap();
    let mut add = |record: Record<'_>| -> Result<(), BatchError> {
        writer.add(&record).unwrap();
        Ok(())
    };
    BatchDecoder::new(1 << 20).for_each(&batch, &mut add).unwrap();
    let split = open(&writer.finish().unwrap());
    for text in ["abc", "1", "def"] {
        assert_eq!(docs(&split, json_text(split.fields.headers, "trace.id", text)), [0], "{text}");
    }
}

#[test]
fn a_record_of_too_many_values_is_indexed_as_text() {
    let large = format!(r#"{{"a":"needle","b":[{}0]}}"#, "0,".repeat(NODES_MAX));
    let split = open(&split_of(&[large.as_str(), r#"{"a":"needle"}"#], OPTIONS));
    assert_eq!(docs(&split, json_text(split.fields.json, "a", "needle")), [1]);
    assert_eq!(docs(&split, Term::from_field_text(split.fields.value, "needle")), [0, 1]);
}

#[test]
fn the_first_headers_of_too_many_are_indexed() {
    let mut encoder = BatchEncoder::new(TimestampType::CreateTime);
    let text = |at: usize| if at + 1 == HEADERS_MAX { "last" } else { "late" };
    let headers = (0..HEADERS_MAX + 2).map(|at| (&b"h"[..], (at + 1 >= HEADERS_MAX).then(|| text(at).as_bytes())));
    encoder.push(Offset(0), Timestamp(1), None, Some(b"v"), headers);
    let mut writer = SplitWriter::new(OPTIONS).unwrap();
    let add = |record: Record<'_>| -> Result<(), BatchError> {
        writer.add(&record).unwrap();
        Ok(())
    };
    BatchDecoder::new(1 << 20).for_each(&encoder.finish().unwrap(), add).unwrap();
    let split = open(&writer.finish().unwrap());
    assert_eq!(docs(&split, json_text(split.fields.headers, "h", "last")), [0]);
    assert!(docs(&split, json_text(split.fields.headers, "h", "late")).is_empty());
}

#[test]
fn an_empty_split_opens() {
    let split = open(&SplitWriter::new(OPTIONS).unwrap().finish().unwrap());
    assert_eq!(split.searcher.num_docs(), 0);
    assert!(docs(&split, Term::from_field_text(split.fields.value, "x")).is_empty());
}

/// Counts reads that reach the object.
#[derive(Debug)]
struct Counting {
    bytes: OwnedBytes,
    reads: parking_lot::Mutex<Vec<std::ops::Range<usize>>>,
}
impl tantivy::HasLen for Counting {
    fn len(&self) -> usize {
        self.bytes.len()
    }
}
impl FileHandle for Counting {
    fn read_bytes(&self, range: std::ops::Range<usize>) -> io::Result<OwnedBytes> {
        self.reads.lock().push(range.clone());
        Ok(self.bytes.slice(range))
    }
}

#[test]
fn opening_reads_the_tail_once() {
    let values: Vec<String> = (0..20_000).map(|n| format!("word{n} common {}", n % 97)).collect();
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    let bytes = split_of(&values, OPTIONS);
    let object = Arc::new(Counting { bytes: OwnedBytes::new(bytes.to_vec()), reads: parking_lot::Mutex::default() });
    let split = SplitReader::open(object.clone()).unwrap();
    split.searcher.segment_reader(0).inverted_index(split.fields.value).unwrap();
    assert_eq!(object.reads.lock().len(), 1);
    object.reads.lock().clear();
    assert_eq!(docs(&split, Term::from_field_text(split.fields.value, "word12345")), [12_345]);
    let read: usize = object.reads.lock().iter().map(ExactSizeIterator::len).sum();
    assert!(read < 64 << 10, "one term read {read} of {} bytes", bytes.len());
}

#[test]
fn local_files_open() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.split");
    std::fs::write(&path, split_of(&["hello world"], OPTIONS)).unwrap();
    let file = local_file(&path).unwrap();
    assert!(file.read_bytes(0..file.len() + 1).is_err());
    let split = SplitReader::open(file).unwrap();
    assert_eq!(docs(&split, Term::from_field_text(split.fields.value, "world")), [0]);
}

fn golden(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Splits of format version 1, which knew one analyser, must stay readable and mean what they meant. No program makes
/// this file any more.
#[test]
fn golden_split_opens() {
    let path = golden("split-v1.split");
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(&bytes[..16], b"THCSPLIT\x01\0\0\0\0\0\0\0");
    let split = SplitReader::open(local_file(&path).unwrap()).unwrap();
    let options = SplitOptions { analyser: Analyser::WordsV1, fast: false, ..OPTIONS };
    assert_eq!(split.options().unwrap(), options);
    assert_eq!(split.query_words("東京都", false)[0].text, "東京都");
    assert_eq!(split.searcher.num_docs(), 3);
    assert_eq!(docs(&split, Term::from_field_text(split.fields.value, "golden")), [0]);
    assert_eq!(docs(&split, json_text(split.fields.json, "level", "warn")), [1]);
    assert_eq!(docs(&split, Term::from_field_i64(split.fields.offset, 102)), [2]);
    assert_eq!(docs(&split, Term::from_field_i64(split.fields.timestamp, 1_101)), [1]);
}

/// What the names of analysers mean must never change. To make a file anew: delete it and run this test.
#[test]
fn golden_analysers_find_what_they_found() {
    let values = [r#"{"peer":"10.0.0.7:8080","status":500}"#, "GET /var/log/syslog 東京都"];
    for (analyser, name) in [(Analyser::Words, "split-words2.split"), (Analyser::Log, "split-log1.split")] {
        let (path, options) = (golden(name), SplitOptions { analyser, ..OPTIONS });
        if !path.exists() {
            std::fs::write(&path, split_at(100, &values, options)).unwrap();
        }
        let split = SplitReader::open(local_file(&path).unwrap()).unwrap();
        assert_eq!(split.options().unwrap(), options);
        let words = |field, text: &str| docs(&split, Term::from_field_text(field, text));
        for (word, found) in
            [("東京", vec![1]), ("京都", vec![1]), ("syslog", vec![1]), ("8080", vec![0]), ("東京都", vec![])]
        {
            assert_eq!(words(split.fields.value, word), found, "{word} by {analyser:?}");
        }
        let whole = if analyser == Analyser::Log { vec![1] } else { vec![] };
        assert_eq!(words(split.fields.value, "var/log/syslog"), whole);
        let address = docs(&split, json_text(split.fields.json, "peer", "10.0.0.7"));
        assert_eq!(address.len(), usize::from(analyser == Analyser::Log));

        let columns = split.searcher.segment_reader(0).fast_fields();
        let peers = columns.str("json.peer").unwrap().unwrap();
        let mut peer = String::new();
        peers.ord_to_str(0, &mut peer).unwrap();
        assert_eq!(peer, "10.0.0.7:8080");
        assert_eq!(columns.i64("json.status").unwrap().first(0), Some(500));
        assert_eq!(columns.str("key").unwrap().unwrap().num_terms(), 2);
    }
}

#[test]
fn what_is_left_out_is_neither_indexed_nor_kept() {
    let value = r#"{"a":"b"}"#;
    for (value_on, json, key, fast) in
        [(false, true, true, true), (true, false, false, true), (true, true, true, false)]
    {
        let options = SplitOptions { value: value_on, json, key, fast, ..OPTIONS };
        let split = open(&split_at(0, &[value], options));
        assert_eq!(split.options().unwrap(), options);
        let fields = &split.fields;
        let terms = |field| split.searcher.segment_reader(0).inverted_index(field).unwrap().terms().num_terms();
        assert_eq!(fields.is_indexed(fields.value), value_on);
        assert_eq!((fields.is_indexed(fields.key), fields.is_fast(fields.key)), (key, key && fast));
        if value_on {
            assert_eq!(terms(fields.value), 2);
        }
        let columns = split.searcher.segment_reader(0).fast_fields();
        let is_kept = |name: &str| columns.str(name).is_ok_and(|column| column.is_some());
        assert_eq!((is_kept("json.a"), is_kept("key")), (json && fast, key && fast));
    }
}

fn split_at(base: i64, values: &[&str], options: SplitOptions) -> Bytes {
    let mut writer = SplitWriter::new(options).unwrap();
    for (offset, value) in (base..).zip(values) {
        writer.add(&record(offset, Some(format!("k{}", offset % 3).as_bytes()), Some(value.as_bytes()))).unwrap();
    }
    writer.finish().unwrap()
}

fn merged(splits: &[Bytes]) -> Result<Bytes, SplitError> {
    match SplitJoin::of(splits.iter().map(|split| open(split)).collect())? {
        SplitJoin::Merge(merger) => merger.finish(),
        SplitJoin::IndexAgain(options) => panic!("they differ: {options:?}"),
    }
}

#[test]
fn splits_that_differ_are_indexed_again_with_all_that_they_had() {
    let (text, json) = (r#"{"a":"b"}"#, SplitOptions { json: true, positions: false, ..SplitOptions::default() });
    let plain = SplitOptions { json: false, positions: false, ..SplitOptions::default() };
    let phrases = SplitOptions { json: false, positions: true, ..SplitOptions::default() };
    let join = |first, second| {
        let splits = [split_at(0, &[text], first), split_at(1, &[text], second)];
        match SplitJoin::of(splits.iter().map(|split| open(split)).collect()).unwrap() {
            SplitJoin::Merge(_) => None,
            SplitJoin::IndexAgain(options) => Some(options),
        }
    };
    assert_eq!(join(plain, phrases), Some(phrases));
    assert_eq!(join(json, phrases), Some(OPTIONS));
    let (plain_key, some_key) =
        (SplitOptions { key: false, ..plain }, SplitOptions { key: true, value: false, ..plain });
    assert_eq!(join(plain_key, some_key), Some(plain));
    assert_eq!(join(json, json), None);
}

#[test]
fn splits_of_different_analysers_are_not_joined() {
    let log = SplitOptions { analyser: Analyser::Log, ..OPTIONS };
    let splits = [split_at(0, &["a-b"], OPTIONS), split_at(1, &["a-b"], log)];
    let joined = SplitJoin::of(splits.iter().map(|split| open(split)).collect());
    assert!(matches!(joined, Err(SplitError::Analysers { first: "words.2", second: "log.1" })));
}

#[test]
fn splits_out_of_order_are_not_merged() {
    let splits = [split_at(5, &["a"], OPTIONS), split_at(0, &["b"], OPTIONS)];
    assert!(matches!(merged(&splits), Err(SplitError::Order { doc: 1, offset: 0, before: 5 })));
}

#[test]
fn damaged_footers_are_errors() {
    let good = split_of(&["a b c"], OPTIONS);
    let end = good.len();
    let damaged = |at: usize| {
        let mut bytes = good.to_vec();
        bytes[at] ^= 0x40;
        SplitReader::open(in_memory(&bytes)).err()
    };
    assert!(matches!(damaged(end - 1), Some(SplitError::Magic { .. })));
    assert!(matches!(damaged(end - 12), Some(SplitError::Version { .. })));
    assert!(matches!(damaged(end - 16), Some(SplitError::Checksum { .. })));
    assert!(matches!(damaged(end - 18), Some(SplitError::FooterLength { .. })));
    assert!(matches!(damaged(end - 25), Some(SplitError::Checksum { .. })));
    assert!(matches!(SplitReader::open(in_memory(&[0; 39])), Err(SplitError::TooShort { len: 39, .. })));
    assert!(SplitReader::open(in_memory(&good[16..])).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_damage_to_the_tail_is_an_error(at in 0_usize..2_000, mask in 1_u8..=255) {
        let mut bytes = split_of(&["a b c", "d"], OPTIONS).to_vec();
        let end = bytes.len();
        let at = end - 1 - at.min(end - 1);
        bytes[at] ^= mask;
        // Beyond the footer lie files, whose damage opening does not notice; it must not panic either way.
        let _ = SplitReader::open(in_memory(&bytes));
    }

    /// Document n is row n, and every word is in the documents where it would be had all been indexed at once.
    #[test]
    fn merged_splits_are_as_if_indexed_at_once(
        parts in proptest::collection::vec(proptest::collection::vec("([a-c]{1,2}|\\{\"a\":\"[ab]\"\\}|[ ,]){0,6}", 0..40), 1..6),
        json in any::<bool>(), positions in any::<bool>(), fast in any::<bool>(),
    ) {
        let options = SplitOptions { json, positions, fast, ..SplitOptions::default() };
        let all: Vec<&str> = parts.iter().flatten().map(String::as_str).collect();
        let mut base = 100;
        let mut splits = Vec::new();
        for part in &parts {
            let texts: Vec<&str> = part.iter().map(String::as_str).collect();
            splits.push(split_at(base, &texts, options));
            base += part.len() as i64;
        }
        let (whole, merged) = (open(&split_at(100, &all, options)), open(&merged(&splits).unwrap()));
        prop_assert_eq!(merged.docs(), all.len() as u64);
        if let Some(segment) = merged.searcher.segment_readers().first() {
            let (offsets, times) = (segment.fast_fields().i64("offset").unwrap(), segment.fast_fields().i64("timestamp").unwrap());
            for doc in 0..all.len() as DocId {
                let offset = 100 + i64::from(doc);
                prop_assert_eq!((offsets.first(doc), times.first(doc)), (Some(offset), Some(1_000 + offset)));
            }
        }
        for word in ["a", "b", "c", "aa", "ab", "ba", "cc", "absent"] {
            let term = |split: &SplitReader| docs(split, Term::from_field_text(split.fields.value, word));
            prop_assert_eq!(term(&merged), term(&whole), "{}", word);
            let leaf = |split: &SplitReader| docs(split, json_text(split.fields.json, "a", word));
            if json {
                prop_assert_eq!(leaf(&merged), leaf(&whole), "{} in JSON", word);
            }
        }
        for key in ["k0", "k1", "k2"] {
            let term = |split: &SplitReader| docs(split, Term::from_field_text(split.fields.key, key));
            prop_assert_eq!(term(&merged), term(&whole), "{}", key);
        }
        if positions {
            let phrase = |split: &SplitReader| {
                let terms = ["a", "b"].map(|word| Term::from_field_text(split.fields.value, word));
                split.searcher.search(&PhraseQuery::new(terms.to_vec()), &Count).unwrap()
            };
            prop_assert_eq!(phrase(&merged), phrase(&whole));
        }
    }

    #[test]
    fn truncation_is_an_error(keep in 0_usize..4_000) {
        let bytes = split_of(&["a b c"], OPTIONS);
        let keep = keep.min(bytes.len() - 1);
        prop_assert!(SplitReader::open(in_memory(&bytes[..keep])).is_err());
    }

    /// Every word of a small vocabulary is found exactly where a naive tokenizer sees it.
    #[test]
    fn searching_agrees_with_a_naive_reference(
        values in proptest::collection::vec("([a-cA-C]{1,2}|Ä|é|1|[ ,.;-]|\\{|\"){0,12}", 1..40),
        json in any::<bool>(), positions in any::<bool>(),
    ) {
        let texts: Vec<&str> = values.iter().map(String::as_str).collect();
        let split = open(&split_of(&texts, SplitOptions { json, positions, ..SplitOptions::default() }));
        let tokens = |text: &str| -> Vec<String> {
            text.split(|c: char| !c.is_alphanumeric())
                .map(|run| run.chars().flat_map(char::to_lowercase).collect::<String>())
                .filter(|token| !token.is_empty() && token.len() <= TOKEN_LEN_MAX)
                .collect()
        };
        let mut words: Vec<String> = texts.iter().flat_map(|text| tokens(text)).collect();
        words.push("absent".into());
        words.sort();
        words.dedup();
        for word in words {
            let expected: Vec<DocId> = (0..)
                .zip(&texts)
                .filter(|(_, text)| tokens(text).contains(&word))
                .map(|(doc, _)| doc)
                .collect();
            prop_assert_eq!(docs(&split, Term::from_field_text(split.fields.value, &word)), expected, "{}", word);
        }
    }
}
