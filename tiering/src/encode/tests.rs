use proptest::prelude::*;
use thermocline_ingest::record::{BatchDecoder, Record, split_batches, verify_crc};

use super::*;
use crate::cold::testing::{record, records, to_arrow};
use crate::reader::OwnedRecord;

fn shape(offset: i64, timestamp: i64, timestamp_type: TimestampType, bytes_max: usize) -> RowShape {
    RowShape { timestamp: Timestamp(timestamp), timestamp_type, offset: Offset(offset), bytes_max }
}

fn cuts(rows: &[RowShape]) -> Vec<bool> {
    let mut cutter = Cutter::default();
    rows.iter().map(|row| cutter.cuts(*row)).collect()
}

const CREATE: TimestampType = TimestampType::CreateTime;
const APPEND: TimestampType = TimestampType::LogAppendTime;

#[test]
fn a_batch_is_cut_at_its_size() {
    let third = (BATCH_BYTES_MAX - BATCH_HEADER_LEN) / 3;
    let rows: Vec<_> = (0..7).map(|n| shape(n, n, CREATE, third)).collect();
    assert_eq!(cuts(&rows), [true, false, false, true, false, false, true]);
    let huge = shape(1, 1, CREATE, BATCH_BYTES_MAX * 3);
    let small = |n| shape(n, n, CREATE, 10);
    assert_eq!(cuts(&[small(0), huge, small(2), small(3)]), [true, true, true, false]);
}

#[test]
fn log_append_time_shares_a_batch_only_with_its_equal() {
    let rows = [
        shape(0, 5, APPEND, 1),
        shape(1, 5, APPEND, 1),
        shape(2, 6, APPEND, 1),
        shape(3, 6, CREATE, 1),
        shape(4, 9, CREATE, 1),
        shape(5, 9, APPEND, 1),
    ];
    assert_eq!(cuts(&rows), [true, false, true, true, false, true]);
}

#[test]
fn offset_deltas_fit_their_field() {
    let far = i64::from(i32::MAX);
    let rows = [shape(10, 0, CREATE, 1), shape(10 + far, 0, CREATE, 1), shape(11 + far, 0, CREATE, 1)];
    assert_eq!(cuts(&rows), [true, false, true]);
}

proptest! {
    /// Cuts never depend on what follows, batches stay below the limit, and no cut is needless.
    #[test]
    fn cuts_agree_with_the_rules(
        rows in proptest::collection::vec((1..5_i64, 0..3_i64, any::<bool>(), 1..BATCH_BYTES_MAX / 2), 1..40),
    ) {
        let mut offset = 0;
        let rows: Vec<_> = rows.into_iter().map(|(step, time, append, bytes)| {
            offset += step;
            shape(offset, time, if append { APPEND } else { CREATE }, bytes)
        }).collect();
        let whole = cuts(&rows);
        prop_assert_eq!(&cuts(&rows[..rows.len() / 2])[..], &whole[..rows.len() / 2]);
        let mut size = 0;
        for (at, row) in rows.iter().enumerate() {
            let same = at > 0 && rows[at - 1].timestamp_type == row.timestamp_type
                && (row.timestamp_type == CREATE || rows[at - 1].timestamp == row.timestamp);
            let fits = size + row.bytes_max <= BATCH_BYTES_MAX;
            prop_assert_eq!(whole[at], !(same && fits));
            size = if whole[at] { BATCH_HEADER_LEN + row.bytes_max } else { size + row.bytes_max };
        }
    }
}

fn bounds(parts: &[(i64, i64, usize)]) -> EncodedRowGroup {
    let mut end = 0;
    let batches = parts.iter().map(|(base, last, len)| {
        end += len;
        BatchBounds { base: Offset(*base), last: Offset(*last), end }
    });
    let batches = batches.collect();
    EncodedRowGroup { bytes: Bytes::from((0..end).map(|at| at as u8).collect::<Vec<_>>()), batches }
}

#[test]
fn slices_are_whole_batches() {
    let group = bounds(&[(0, 4, 10), (5, 9, 20), (12, 19, 30)]);
    let slice = |from, until, max, at_least_one| {
        let slice = group.slice(Offset(from), Offset(until), max, at_least_one);
        (slice.bytes.first().copied(), slice.bytes.len(), slice.next.0, slice.exhausted)
    };
    assert_eq!(slice(0, 100, 1000, false), (Some(0), 60, 20, true));
    assert_eq!(slice(3, 100, 30, false), (Some(0), 30, 10, false), "starts with the batch that holds the offset");
    assert_eq!(slice(10, 100, 1000, false), (Some(30), 30, 20, true), "in a hole: the first batch after it");
    assert_eq!(slice(5, 100, 5, false), (None, 0, 5, false));
    assert_eq!(slice(5, 100, 5, true), (Some(10), 20, 10, false));
    assert_eq!(slice(0, 5, 1000, true), (Some(0), 10, 5, false), "no batch starts at the end or beyond");
    assert_eq!(slice(0, 0, 1000, true), (None, 0, 0, false));
    assert_eq!(slice(20, 100, 1000, true), (None, 0, 20, true));
}

fn encoded(records: &[OwnedRecord], chunk: usize, span: Range<i64>, raw: Vec<RawBytes>) -> EncodedRowGroup {
    let rows = records.chunks(chunk.max(1)).map(|part| Ok::<_, ParquetReadError>(to_arrow(part)));
    encode(rows, Offset(span.start)..Offset(span.end), raw, 0).unwrap()
}

fn decoded(batches: Bytes) -> Vec<OwnedRecord> {
    let mut found = Vec::new();
    for batch in split_batches(batches) {
        let batch = batch.unwrap();
        verify_crc(&batch).unwrap();
        let header = BatchHeader::read(&batch).unwrap();
        assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), (-1, -1, -1));
        assert_eq!(header.leader_epoch, 0);
        assert!(batch.len() <= BATCH_BYTES_MAX || header.record_count == 1);
        let before = found.len();
        let pick = |record: Record<'_>| -> Result<(), BatchError> {
            found.push(OwnedRecord::from(&record));
            Ok(())
        };
        BatchDecoder::new(64 << 20).for_each(&batch, pick).unwrap();
        assert_eq!(found[before].offset, header.base_offset);
        assert_eq!(found.last().unwrap().offset, header.last_offset());
        assert_eq!(found[before..].iter().map(|r| r.timestamp).max().unwrap(), header.max_timestamp);
    }
    found
}

proptest! {
    #[test]
    fn re_encoding_keeps_every_record(records in records(100, 1..60, false), chunk in 1..20_usize) {
        let end = records.last().unwrap().offset.0 + 1;
        let group = encoded(&records, chunk, 100..end, vec![]);
        prop_assert_eq!(&group.bytes, &encoded(&records, 1, 100..end, vec![]).bytes);
        prop_assert_eq!(decoded(group.bytes), records);
    }
}

#[test]
fn raw_batches_stand_at_their_offsets() {
    let as_produced = encoded(&[record(2, 7, "raw"), record(3, 8, "raw")], 2, 2..4, vec![]).bytes;
    let raw = || vec![RawBytes { base: Offset(2), last: Offset(3), bytes: as_produced.clone() }];
    let records = [record(0, 1, "a"), record(1, 2, "b"), record(4, 3, "c"), record(5, 3, "d")];
    let group = encoded(&records, 4, 0..6, raw());
    let bases: Vec<_> = group.batches.iter().map(|batch| (batch.base.0, batch.last.0)).collect();
    assert_eq!(bases, [(0, 1), (2, 3), (4, 5)]);
    assert_eq!(group.slice(Offset(3), Offset(4), 1, true).bytes, as_produced);
    let alone = encoded(&[], 1, 2..4, raw());
    assert_eq!(alone.bytes, as_produced);
    let cut = RawBytes { base: Offset(2), last: Offset(3), bytes: as_produced.slice(..as_produced.len() - 1) };
    let rows = std::iter::empty::<Result<RecordBatch, ParquetReadError>>();
    assert!(encode(rows, Offset(2)..Offset(4), vec![cut], 0).is_err());
}

#[test]
fn rows_out_of_order_or_place_are_errors() {
    for (offsets, span) in [([1, 0], 0..5), ([1, 1], 0..5), ([0, 1], 1..5), ([0, 5], 0..5)] {
        let rows = [Ok::<_, ParquetReadError>(to_arrow(&offsets.map(|offset| record(offset, 1, "x"))))];
        let error = encode(rows.into_iter(), Offset(span.start)..Offset(span.end), vec![], 0).unwrap_err();
        assert!(matches!(error, EncodeError::OffsetOrder { .. }), "{offsets:?}");
    }
}
