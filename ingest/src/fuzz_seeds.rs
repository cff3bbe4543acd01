//! Where the fuzzers begin: something valid of every kind, as files in `tests/fuzz/corpus`, laid out as the targets
//! there read it. The stored files are what this makes; `UPDATE_GOLDEN=1` writes them. Files named `found-…` are what a
//! fuzzer or a person found, and stay as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::coordinator::transactions::records as transactions;
use crate::coordinator::transactions::state::{Transaction, TransactionState};
use crate::model::{Offset, PartitionId, ProducerId, Timestamp, TimestampType, TopicName, TopicPartition};
use crate::protocol::guard;
use crate::protocol::samples::request_body;
use crate::protocol::versions::{APIS, ApiRange};
use crate::record::testing::{CODECS, batch_of, with_body, with_producer, xerial};
use crate::record::{
    BATCH_HEADER_LEN, BatchEncoder, Compression, TransactionOutcome, encode_marker, into_transactional,
};

const CONSUMER_OFFSETS: &str = include_str!("../tests/golden/consumer_offsets.txt");

/// Contents by target and name.
type Seeds = BTreeMap<(&'static str, String), Vec<u8>>;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus")
}

/// A frame with its length.
fn frame(api: &ApiRange, version: i16) -> Vec<u8> {
    let mut frame = (api.key as i16).to_be_bytes().to_vec();
    frame.extend(version.to_be_bytes());
    frame.extend(7_i32.to_be_bytes());
    frame.extend(b"\0\x04kcat");
    if guard::is_flexible(api.key, version) {
        frame.push(0);
    }
    frame.extend(request_body(api.key, version));
    let length = i32::try_from(frame.len()).unwrap();
    [&length.to_be_bytes()[..], &frame].concat()
}

fn requests(seeds: &mut Seeds) {
    let mut pipelined = vec![3];
    for (step, api) in (0..).zip(APIS) {
        let newest = frame(api, api.max);
        pipelined.extend(frame(api, api.served_min));
        seeds.insert(("frame", format!("{:?}", api.key)), [&[step], &newest[..]].concat());
        for version in api.served_min..=api.max {
            let head = [api.key as u8, u8::try_from(version).unwrap()];
            let seed = [&head[..], &request_body(api.key, version)].concat();
            seeds.insert(("request", format!("{:?}-{version}", api.key)), seed);
        }
    }
    seeds.insert(("frame", "pipelined".to_owned()), pipelined);
}

fn batches(seeds: &mut Seeds) {
    let plain = batch_of(&[(5, b"one"), (7, b"two"), (6, b"three")]);
    let mut encoder = BatchEncoder::new(TimestampType::CreateTime);
    let header = |value| (&b"trace"[..], value);
    encoder.push(Offset(0), Timestamp(9), Some(b"key"), None, [header(Some(&b"1"[..])), header(None)].into_iter());
    encoder.push(Offset(1), Timestamp(3), None, Some(&[7; 70]), std::iter::empty());
    let with_headers = encoder.finish().unwrap().to_vec();
    let body = &with_headers[BATCH_HEADER_LEN..];
    let named = |name: &str, mode: u8, batch: &[u8]| (("batch", name.to_owned()), [&[mode], batch].concat());
    seeds.extend([
        named("plain", 0, &plain),
        named("headers", 0, &with_headers),
        named("two", 0, &[plain.clone(), with_headers.clone()].concat()),
        named("log-append-time", 4, &with_headers),
        named("compacted", 10, &with_body(&with_headers, Compression::Lz4, body)),
        named("idempotent", 1, &with_producer(plain.clone(), 9, 1, 40)),
        named("transactional", 1, &into_transactional(plain.into(), 9, 1)),
        named("commit", 1, &encode_marker(9, 1, TransactionOutcome::Commit, Timestamp(5))),
        named("snappy-java", 1, &with_body(&with_headers, Compression::Snappy, &xerial(body, 40))),
    ]);
    for codec in CODECS {
        let name = format!("{codec:?}").to_lowercase();
        let stored = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/batch-{name}.bin"));
        seeds.extend([
            named(&format!("{name}-stored"), 1, &fs::read(stored).unwrap()),
            named(&format!("{name}-packed"), 2, &with_body(&with_headers, codec, body)),
        ]);
    }
}

fn coordinators(seeds: &mut Seeds) {
    for line in CONSUMER_OFFSETS.lines() {
        let (name, hex) = line.split_once(' ').unwrap();
        let kind = match name {
            _ if name.contains("key") => 0,
            _ if name.starts_with("offset") => 1,
            _ => 2,
        };
        let digits: String = hex.split_whitespace().collect();
        let bytes = (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap());
        seeds.insert(("coordinator", name.replace('_', "-")), [kind].into_iter().chain(bytes).collect());
    }
    let empty = Transaction::new(ProducerId(1000), 60_000, Timestamp(9));
    let at = |topic, partition| TopicPartition::new(TopicName::new(topic).unwrap(), PartitionId(partition));
    let ongoing = Transaction {
        state: TransactionState::Ongoing,
        partitions: [at("a", 1), at("a", 4), at("b", 0)].into(),
        started: Some(Timestamp(7)),
        ..empty.clone()
    };
    let mut insert = |name: &str, kind: u8, bytes: &[u8]| {
        seeds.insert(("coordinator", name.to_owned()), [&[kind], bytes].concat());
    };
    insert("transaction-key", 3, &transactions::encode_key("tx").unwrap());
    insert("transaction-empty", 4, &transactions::encode(&empty).unwrap());
    insert("transaction-ongoing", 4, &transactions::encode(&ongoing).unwrap());
    insert("subscription", 5, b"\0\x03\0\0\0\x02\0\x01a\0\x06orders\xff\xff\xff\xff\0\0\0\0");
    insert("assignment", 6, b"\0\0\0\0\0\x01\0\x01a\0\0\0\x02\0\0\0\0\0\0\0\x07\xff\xff\xff\xff");
}

#[test]
fn the_corpus_has_its_seeds() {
    let mut seeds = Seeds::new();
    requests(&mut seeds);
    batches(&mut seeds);
    coordinators(&mut seeds);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        for ((target, name), content) in &seeds {
            fs::create_dir_all(corpus().join(target)).unwrap();
            fs::write(corpus().join(target).join(name), content).unwrap();
        }
    }
    let targets: BTreeSet<_> = seeds.keys().map(|(target, _)| *target).collect();
    for target in targets {
        let names = fs::read_dir(corpus().join(target)).unwrap().map(|entry| entry.unwrap().file_name());
        let strays: Vec<_> = names
            .map(|name| name.into_string().unwrap())
            .filter(|name| !name.starts_with("found-") && !seeds.contains_key(&(target, name.clone())))
            .collect();
        assert!(strays.is_empty(), "{target}: {strays:?}");
    }
    for ((target, name), content) in &seeds {
        assert_eq!(&fs::read(corpus().join(target).join(name)).unwrap(), content, "{target}/{name}");
    }
}
