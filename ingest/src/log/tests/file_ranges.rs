//! What is sent from log files: the bytes that a read gives, whatever becomes of the files meanwhile.

use super::super::SENDFILE_BYTES_MIN;
use super::compaction::compacted;
use super::*;
use crate::read::{Chunk, SendRun};
use crate::record::BatchEncoder;

/// A batch of one record, of about `value_len` bytes.
fn sized(value_len: usize, timestamp: i64) -> Vec<u8> {
    batch_of(&[(timestamp, vec![b'v'; value_len].as_slice())])
}

fn range(run: &Run, from: i64, max_bytes: usize) -> ReadRange {
    ReadRange { from: Offset(from), until: run.partition.high_watermark(), max_bytes, at_least_one: true }
}

fn to_send(run: &Run, from: i64, max_bytes: usize, files_max: usize) -> SendRun {
    run.partition.read_to_send(&range(run, from, max_bytes), files_max).unwrap()
}

fn bytes(run: &SendRun) -> Vec<u8> {
    let read = |chunk: &Chunk| match chunk {
        Chunk::Bytes(bytes) => bytes.clone(),
        Chunk::File(range) => range.read().unwrap(),
    };
    run.chunks.iter().map(read).collect::<Vec<_>>().concat()
}

/// Whether each chunk is in its file.
fn in_files(run: &SendRun) -> Vec<bool> {
    run.chunks.iter().map(|chunk| matches!(chunk, Chunk::File(_))).collect()
}

#[test]
fn large_parts_stay_in_their_files_and_small_ones_do_not() {
    let half = SENDFILE_BYTES_MIN / 2;
    let fixture = Fixture::new(TopicConfig { segment_bytes: 3 * half as u64, ..topic_config() });
    let run = fixture.open();
    // Two segments of two batches, and one that is small.
    for n in 0..5 {
        run.append(&sized(half, n));
    }
    assert_eq!(fixture.bases(), [0, 2, 4]);
    let all = to_send(&run, 0, usize::MAX, 9);
    assert_eq!(in_files(&all), [true, true, false]);
    assert_eq!((all.files(), all.memory_bytes()), (2, sized(half, 0).len()));
    assert_eq!(bytes(&all), run.read(0, usize::MAX));
    // As many files as are allowed, the first ones.
    assert_eq!(in_files(&to_send(&run, 0, usize::MAX, 1)), [true, false, false]);
    assert_eq!(to_send(&run, 0, usize::MAX, 0).files(), 0);
    // From the middle of a segment, what follows is small; a limit makes it so too.
    for (from, max_bytes) in [(1, usize::MAX), (3, usize::MAX), (0, half + 100), (2, 1)] {
        let some = to_send(&run, from, max_bytes, 9);
        assert_eq!(bytes(&some), run.read(from, max_bytes), "from {from}, {max_bytes} bytes");
        assert!(matches!(some.chunks.first(), Some(Chunk::Bytes(_))));
    }
    let Some(Chunk::File(first)) = all.chunks.first() else { panic!("{all:?}") };
    assert_eq!(first.next_offset(), Offset(2));
}

#[test]
fn a_range_outlives_its_file() {
    let fixture = Fixture::new(TopicConfig { segment_bytes: 2 * SENDFILE_BYTES_MIN as u64, ..topic_config() });
    let run = fixture.open();
    for n in 0..3 {
        run.append(&sized(SENDFILE_BYTES_MIN, n));
    }
    let (sealed, active) = (to_send(&run, 0, 1, 9), to_send(&run, 2, 1, 9));
    let expected = [run.read(0, 1), run.read(2, 1)];
    // The log goes on behind the range.
    run.append(&sized(10, 4));
    run.partition.set_archived_through(Offset(4));
    run.partition.seal().unwrap();
    assert!(run.partition.trim_local(Offset(4)).unwrap() > 0);
    assert_eq!(fixture.bases(), [4]);
    run.log.remove_partition(&tp()).unwrap();
    assert!(!fixture.file(4, LOG).exists());
    assert_eq!([bytes(&sealed), bytes(&active)], expected);
    assert_eq!((sealed.files(), active.files()), (1, 1));
}

#[test]
fn a_range_goes_over_the_holes_of_a_compacted_log_and_one_from_before_is_what_it_was() {
    let half = SENDFILE_BYTES_MIN / 2;
    let fixture = Fixture::new(TopicConfig { segment_bytes: 8 * half as u64, ..compacted() });
    let run = fixture.open();
    let keyed = |key: u8| {
        let mut encoder = BatchEncoder::new(TimestampType::CreateTime);
        let value = vec![b'v'; half];
        encoder.push(Offset::ZERO, Timestamp(1), Some(&[key]), Some(&value), std::iter::empty());
        encoder.finish().unwrap()
    };
    // What has an odd offset is void after the last one.
    for n in 0..20 {
        run.append(&keyed(if n % 2 == 0 { n } else { 1 }));
    }
    assert_eq!(fixture.bases(), [0, 7, 14]);
    run.partition.seal().unwrap();
    let (before, expected) = (to_send(&run, 0, usize::MAX, 9), run.read(0, usize::MAX));
    run.log.clean(&|| false);
    assert_eq!((before.files(), bytes(&before)), (3, expected));

    let after = to_send(&run, 0, usize::MAX, 9);
    assert_eq!((after.files(), bytes(&after)), (3, run.read(0, usize::MAX)));
    let offsets = |run: &SendRun| values(&bytes(run)).iter().map(|(offset, _)| *offset).collect::<Vec<_>>();
    assert_eq!(offsets(&after), [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 19]);
    // From within a hole, as much as is wanted; the next read begins at or before what follows.
    let size = keyed(0).len();
    let some = to_send(&run, 1, 2 * size + half, 9);
    assert_eq!((some.files(), offsets(&some)), (1, vec![2, 4]));
    let Some(Chunk::File(range)) = some.chunks.first() else { panic!("{some:?}") };
    assert!((5..=6).contains(&range.next_offset().0), "{range:?}");
    // A segment that ends in one.
    let rest = to_send(&run, 12, usize::MAX, 9);
    assert_eq!(offsets(&rest), [12, 14, 16, 18, 19]);
    assert!(to_send(&run, 13, 1, 0).len_bytes() == size, "a hole at a segment's end leads to the next one");
}

#[test]
fn an_index_that_is_wrong_costs_a_walk() {
    let fixture = Fixture::new(TopicConfig { index_interval_bytes: 100, ..topic_config() });
    let run = fixture.open();
    for n in 0..200 {
        run.append(&sized(1000, n));
    }
    let expected = run.read(0, usize::MAX);
    let index = fixture.file(0, INDEX);
    let mut entries = std::fs::read(&index).unwrap();
    assert!(entries.len() > 8 * 100);
    // The last one leads into the middle of a batch.
    let last = entries.len() - 1;
    entries[last] ^= 0x40;
    std::fs::write(&index, &entries).unwrap();
    let sent = to_send(&run, 0, usize::MAX, 9);
    assert_eq!((sent.files(), bytes(&sent)), (1, expected));
}

#[test]
fn a_range_that_cannot_be_read_says_so() {
    let fixture = Fixture::new(topic_config());
    let run = fixture.open();
    run.append(&sized(SENDFILE_BYTES_MIN, 1));
    let sent = to_send(&run, 0, usize::MAX, 9);
    run.partition.writer.lock().files.log.truncate(100).unwrap();
    let Some(Chunk::File(range)) = sent.chunks.first() else { panic!("{sent:?}") };
    assert_eq!(range.read().unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
}
