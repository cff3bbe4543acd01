use std::io::Write;

use bytes::{Buf, Bytes};
use kafka_protocol::messages::{FetchResponse, ResponseHeader};
use kafka_protocol::protocol::{Decodable, HeaderVersion, StrBytes};

use super::*;
use crate::log::FileRange;
use crate::protocol::encode::Piece;

fn reply() -> FetchReply {
    let run = |chunks: &[&'static str]| SendRun {
        chunks: chunks.iter().map(|text| Chunk::Bytes(Bytes::from_static(text.as_bytes()))).collect(),
        ..SendRun::default()
    };
    let partition = |index, error_code, records| FetchedPartition {
        index,
        error_code,
        high_watermark: 100 + i64::from(index),
        last_stable_offset: 90 + i64::from(index),
        log_start_offset: 7,
        aborted: vec![(9, 70), (8, 75)],
        records,
    };
    let topic = |name: &str, id, partitions| FetchedTopic {
        name: TopicName(StrBytes::from_string(name.to_owned())),
        id: Uuid::from_u128(id),
        partitions,
    };
    FetchReply {
        error_code: 0,
        session_id: 9,
        topics: vec![
            topic("orders", 5, vec![partition(0, 0, run(&["first", "", "second"])), partition(1, 3, run(&[]))]),
            topic("empty", 6, vec![]),
            topic("clicks", 7, vec![partition(2, 0, run(&["third"]))]),
        ],
        room: Vec::new(),
    }
}

#[test]
fn every_version_reads_back_to_its_last_byte() {
    for version in 4..=17 {
        let mut frame = encode(77, version, reply()).unwrap().into_bytes();
        assert_eq!(frame.get_i32() as usize, frame.len());
        let header = ResponseHeader::decode(&mut frame, FetchResponse::header_version(version)).unwrap();
        assert_eq!(header.correlation_id, 77);
        let body = FetchResponse::decode(&mut frame, version).unwrap();
        assert!(frame.is_empty(), "version {version} has trailing bytes");
        assert_eq!(body.session_id, if version >= 7 { 9 } else { 0 });
        assert_eq!(body.responses.len(), 3);
        let orders = &body.responses[0];
        if version >= 13 {
            assert_eq!(orders.topic_id, Uuid::from_u128(5));
        } else {
            assert_eq!(orders.topic.as_str(), "orders");
        }
        let first = &orders.partitions[0];
        assert_eq!((first.high_watermark, first.last_stable_offset), (100, 90));
        assert_eq!(first.log_start_offset, if version >= 5 { 7 } else { -1 });
        assert_eq!(first.records.as_deref(), Some(b"firstsecond".as_slice()));
        let aborted = first.aborted_transactions.as_deref().unwrap().iter();
        let aborted: Vec<_> = aborted.map(|one| (one.producer_id.0, one.first_offset)).collect();
        assert_eq!(aborted, [(9, 70), (8, 75)]);
        assert_eq!(orders.partitions[1].error_code, 3);
        assert_eq!(orders.partitions[1].records.as_deref(), Some([].as_slice()));
        assert_eq!(body.responses[2].partitions[0].records.as_deref(), Some(b"third".as_slice()));
    }
}

#[test]
fn an_error_for_the_whole_request_has_no_topics() {
    for version in 4..=17 {
        let response = encode(1, version, FetchReply { error_code: 70, ..FetchReply::default() }).unwrap();
        let mut frame = response.into_bytes();
        frame.advance(4);
        ResponseHeader::decode(&mut frame, FetchResponse::header_version(version)).unwrap();
        let body = FetchResponse::decode(&mut frame, version).unwrap();
        assert!(frame.is_empty() && body.responses.is_empty());
        assert_eq!(body.error_code, if version >= 7 { 70 } else { 0 });
    }
}

#[test]
fn record_chunks_are_passed_on_uncopied() {
    let records = Bytes::from(vec![1; 100]);
    let mut reply = reply();
    reply.topics[0].partitions[0].records.chunks = vec![Chunk::Bytes(records.clone())];
    let response = encode(1, 11, reply).unwrap();
    let [Piece::Bytes(bytes)] = response.pieces.as_slice() else { panic!("{response:?}") };
    let mut slices = [std::io::IoSlice::new(&[]); 16];
    let filled = bytes.chunks_vectored(&mut slices);
    assert!(slices[..filled].iter().any(|slice| slice.as_ptr() == records.as_ptr()));
}

#[test]
fn records_in_files_make_the_same_frame() {
    let file_of = |text: &[u8]| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"what lies before").unwrap();
        file.write_all(text).unwrap();
        Chunk::File(FileRange::of(file, 16))
    };
    for version in 4..=17 {
        let in_memory = encode(1, version, reply()).unwrap().into_bytes();
        let mut reply = reply();
        // Between chunks in memory, alone, and at the end of the frame.
        for (topic, at) in [(0, 0), (0, 2), (2, 0)] {
            let chunk = &mut reply.topics[topic].partitions[0].records.chunks[at];
            let Chunk::Bytes(bytes) = &*chunk else { continue };
            *chunk = file_of(bytes);
        }
        let response = encode(1, version, reply).unwrap();
        assert_eq!(response.pieces.iter().filter(|piece| matches!(piece, Piece::File(_))).count(), 3);
        assert_eq!(response.into_bytes(), in_memory, "version {version}");
    }
}
