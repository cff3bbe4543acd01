use tantivy::Term;
use tantivy::collector::Count;
use tantivy::query::{PhraseQuery, Query, TermQuery};
use tantivy::schema::IndexRecordOption;
use thermocline_ingest::model::{Offset, Timestamp, TimestampType};
use thermocline_ingest::record::{Headers, Record};

use super::*;
use crate::cold::testing::MemorySource;
use crate::split::{SplitOptions, SplitReader, SplitWriter};

const DOCS: i64 = 30_000;

fn split_bytes() -> bytes::Bytes {
    let mut writer = SplitWriter::new(SplitOptions { positions: true, ..SplitOptions::default() }).unwrap();
    for n in 0..DOCS {
        let value = format!("line {n} of many, trace {:016x}", (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let record = Record {
            offset: Offset(n),
            timestamp: Timestamp(n * 1000 + n * 7919 % 5000),
            timestamp_type: TimestampType::CreateTime,
            key: None,
            value: Some(value.as_bytes()),
            headers: Headers::default(),
        };
        writer.add(&record).unwrap();
    }
    writer.finish().unwrap()
}

/// Searches until nothing is lacking; the answer, and in how many rounds of fetching it was found.
async fn count(split: &SplitReader, held: &mut Held, query: &dyn Query) -> (usize, usize) {
    for rounds in 0.. {
        let found = split.search(held, || split.searcher.search(query, &Count));
        if !held.lacks_bytes() {
            return (found.unwrap(), rounds);
        }
        assert!(rounds < 10, "{held:?}");
        split.fetch(held).await.unwrap();
    }
    unreachable!()
}

fn term(split: &SplitReader, word: &str) -> Term {
    Term::from_field_text(split.fields.value, word)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn few_requests_and_none_while_it_is_searched() {
    let source = MemorySource::new();
    let bytes = split_bytes();
    let object = source.put("a.split", bytes.clone());
    // So small a cache that nothing stays in it.
    let split = SplitReader::open_in_place(&source.blocks(0), &object).await.unwrap();
    assert!(source.requests() <= 2, "{} requests", source.requests());
    assert!(split.memory_bytes() < bytes.len() / 4, "{} of {} bytes", split.memory_bytes(), bytes.len());

    let opened = source.requests();
    let mut held = Held::default();
    let word = TermQuery::new(term(&split, "12345"), IndexRecordOption::Basic);
    let (found, rounds) = count(&split, &mut held, &word).await;
    // Its block of the dictionary and its postings, which in a small split lie so near that one request brings both.
    assert!(found == 1 && rounds <= 2 && source.requests() - opened <= 2, "{rounds} rounds");
    let phrase = PhraseQuery::new(vec![term(&split, "of"), term(&split, "many")]);
    assert_eq!(count(&split, &mut held, &phrase).await.0, DOCS as usize);
    assert!(held.held_bytes() < bytes.len() as u64 / 2);

    // What is held answers without the store.
    source.gate.forget_permits(1 << 20);
    assert_eq!(count(&split, &mut held, &word).await, (1, 0));
    assert_eq!(count(&split, &mut held, &phrase).await, (DOCS as usize, 0));
    // What is not fails, and does not wait.
    let other = TermQuery::new(term(&split, "999"), IndexRecordOption::Basic);
    let found = split.search(&mut held, || split.searcher.search(&other, &Count));
    assert!(found.is_err() && held.lacks_bytes());
    held.release();
    assert!(held.held_bytes() == 0 && held.missing_bytes() > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_warm_cache_needs_no_round() {
    let source = MemorySource::new();
    let object = source.put("a.split", split_bytes());
    let split = SplitReader::open_in_place(&source.blocks(64 << 20), &object).await.unwrap();
    let word = TermQuery::new(term(&split, "77"), IndexRecordOption::Basic);
    let (found, rounds) = count(&split, &mut Held::default(), &word).await;
    assert!(found == 1 && (1..=2).contains(&rounds), "{rounds} rounds");
    let requests = source.requests();
    assert_eq!(count(&split, &mut Held::default(), &word).await, (1, 0));
    for block in [0, 17, 29] {
        let mut held = Held::default();
        while split.search(&mut held, || split.times.read(block)).is_err() {
            split.fetch(&mut held).await.unwrap();
        }
    }
    assert!(source.requests() - requests <= 3);
}

#[test]
fn near_ranges_are_one() {
    assert_eq!(joined(vec![10..20, GAP_MAX + 20..GAP_MAX + 30, 0..5]), vec![0..GAP_MAX + 30; 1]);
    assert_eq!(joined(vec![0..5, GAP_MAX + 6..GAP_MAX + 7]).len(), 2);
    assert_eq!(joined(vec![0..100, 3..4]), vec![0..100; 1]);
}
