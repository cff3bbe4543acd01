//! The corpus of the fuzz targets (`tests/fuzz`) without a fuzzer: every seed, and everything that was ever found.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what goes wrong here fails the test")]

use std::fs;
use std::path::Path;

use bytes::Bytes;
use kafka_protocol::messages::{ApiKey, OffsetFetchRequest};
use kafka_protocol::protocol::Decodable;
use thermocline_ingest::protocol::guard::{ELEMENTS_MAX, check_body};

#[path = "../../tests/fuzz/src/lib.rs"]
mod fuzz;

use fuzz::memory::peak_of;

#[test]
fn every_input_of_the_corpus_is_survived() {
    for (target, run) in fuzz::TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus").join(target);
        let mut count = 0;
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            println!("{}", path.display());
            run(&fs::read(&path).unwrap());
            count += 1;
        }
        assert!(count > 0, "{} is empty", folder.display());
    }
}

/// Without this the bounds on memory would hold of nothing.
#[test]
fn memory_is_counted() {
    let (kept, peak) = peak_of(|| {
        drop(vec![1_u8; 1000]);
        vec![1_u8; 100]
    });
    assert_eq!((kept.len(), peak), (100, 1000));
    let (_, peak) = peak_of(|| drop(kept));
    assert_eq!(peak, 0);
}

/// The largest element there is, as often as may be, each with a tagged field.
#[test]
fn a_full_request_costs_what_the_guard_says() {
    let count = u32::try_from(ELEMENTS_MAX / 2).unwrap();
    let mut body = Vec::new();
    let mut length = count + 1;
    while length > 0x7f {
        body.push(length as u8 | 0x80);
        length >>= 7;
    }
    body.push(length as u8);
    for _ in 0..count {
        // Group, member, epoch, topics, and one tag with nothing in it.
        body.extend([1, 0, 0, 0, 0, 0, 1, 1, 9, 0]);
    }
    body.extend([0, 0]);
    let body = Bytes::from(body);
    let (request, peak) = peak_of(|| {
        check_body(ApiKey::OffsetFetch, 9, &body).unwrap();
        OffsetFetchRequest::decode(&mut body.clone(), 9).unwrap()
    });
    assert_eq!(request.groups.len(), count as usize);
    assert!((20 << 20..30 << 20).contains(&peak), "{peak} bytes");
}
