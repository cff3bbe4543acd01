//! Some records out of a batch, the others as they were: what compaction does to a batch.
//!
//! What stays is byte for byte what it was, but for two fields. Base offset, last offset delta, producer, epoch and
//! sequence of the header stay too, so that offsets never change, readers go on behind the last offset the batch ever
//! had, and the producer's sequence is known from the header as before. Count, largest timestamp, length and CRC follow
//! what is left. A batch that is given a delete horizon has its base timestamp replaced by it, and the timestamp delta
//! of each record counted anew (KIP-534).

use bytes::Bytes;

use super::batch::{BATCH_HEADER_LEN, BatchError, BatchHeader, Compression, read_whole};
use super::codec::{Decompressor, compress};
use super::decode::{RawRecord, walk};
use super::varint::{Cursor, put_varint, put_varlong, varlong_len};
use crate::model::{Offset, Timestamp, TimestampType};

/// A record, as far as keeping it goes.
#[derive(Clone, Copy, Debug)]
pub struct KeyedRecord<'a> {
    pub offset: Offset,
    pub key: Option<&'a [u8]>,
    /// It has no value.
    pub is_tombstone: bool,
}

/// What is left of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Retained {
    /// All of it, and nothing about it is to change.
    All,
    Part(Bytes),
    Nothing,
}

/// Takes batches apart and puts them together again, reusing one scratch buffer.
pub struct BatchRewriter {
    decompressor: Decompressor,
    /// Per record of the batch at hand.
    stays: Vec<bool>,
}

impl BatchRewriter {
    /// Decompression stops with an error at `decompressed_max` bytes.
    pub fn new(decompressed_max: usize) -> Self {
        Self { decompressor: Decompressor::new(decompressed_max), stays: Vec::new() }
    }

    /// Checks the whole batch but for its CRC, and only then calls `f` for each record, in order.
    pub fn for_each(&mut self, batch: &[u8], mut f: impl FnMut(KeyedRecord<'_>)) -> Result<(), BatchError> {
        let header = read_whole(batch)?;
        let body = self.decompressor.run(header.compression()?, &batch[BATCH_HEADER_LEN..])?;
        walk(&header, body, false, |_, _| {})?;
        walk(&header, body, false, |_, record| f(keyed(&header, record)))
    }

    /// Keeps the records that `keep` wants; asked once for each, in order. If tombstones are among them and the batch
    /// has no delete horizon, it gets `horizon`. The CRC is not checked. Also says whether tombstones are among what
    /// stays.
    pub fn retain(
        &mut self,
        batch: &[u8],
        horizon: Option<Timestamp>,
        mut keep: impl FnMut(&KeyedRecord<'_>) -> bool,
    ) -> Result<(Retained, bool), BatchError> {
        let header = read_whole(batch)?;
        let codec = header.compression()?;
        let body = self.decompressor.run(codec, &batch[BATCH_HEADER_LEN..])?;
        let stays = &mut self.stays;
        stays.clear();
        let mut count = 0;
        let mut has_tombstones = false;
        let mut max_timestamp = Timestamp(i64::MIN);
        walk(&header, body, false, |_, record| {
            let candidate = keyed(&header, record);
            let is_kept = keep(&candidate);
            stays.push(is_kept);
            if is_kept {
                count += 1;
                has_tombstones |= candidate.is_tombstone;
                max_timestamp = max_timestamp.max(timestamp(&header, record));
            }
        })?;
        let horizon = horizon.filter(|_| has_tombstones && header.delete_horizon().is_none());
        if count == header.record_count && horizon.is_none() {
            return Ok((Retained::All, has_tombstones));
        }
        if count == 0 {
            return Ok((Retained::Nothing, false));
        }
        let mut rest = BatchHeader { record_count: count, ..header };
        if header.timestamp_type() == TimestampType::CreateTime {
            rest.max_timestamp = max_timestamp;
        }
        Ok((Retained::Part(rebuild(&header, rest, body, stays, horizon)?), has_tombstones))
    }

    /// The batch with this delete horizon, which it must not have yet; all its records stay. The CRC is not checked.
    pub fn with_horizon(&mut self, batch: &[u8], horizon: Timestamp) -> Result<Bytes, BatchError> {
        let header = read_whole(batch)?;
        let body = self.decompressor.run(header.compression()?, &batch[BATCH_HEADER_LEN..])?;
        self.stays.clear();
        walk(&header, body, false, |_, _| self.stays.push(true))?;
        rebuild(&header, header, body, &self.stays, Some(horizon))
    }
}

/// The batch without its records: base offset, last offset, producer and sequence are what is left. Its largest
/// timestamp is none, as nothing in it has a time.
pub fn without_records(header: &BatchHeader) -> Vec<u8> {
    let emptied = BatchHeader { record_count: 0, max_timestamp: Timestamp::NONE, ..*header };
    emptied.with_compression(Compression::None).sealed_over(&[]).unwrap_or_default()
}

fn keyed<'a>(header: &BatchHeader, record: &RawRecord<'a>) -> KeyedRecord<'a> {
    KeyedRecord {
        offset: header.base_offset.plus(i64::from(record.offset_delta)),
        key: record.key,
        is_tombstone: record.value.is_none(),
    }
}

fn timestamp(header: &BatchHeader, record: &RawRecord<'_>) -> Timestamp {
    Timestamp(header.base_timestamp.0.wrapping_add(record.timestamp_delta))
}

/// The batch of those records that stay. `header` is the one it had, `rest` the same but for what follows from the
/// records; `body` was walked before.
fn rebuild(
    header: &BatchHeader,
    rest: BatchHeader,
    body: &[u8],
    stays: &[bool],
    horizon: Option<Timestamp>,
) -> Result<Bytes, BatchError> {
    let codec = header.compression()?;
    let plain = copy(header, body, stays, horizon)?;
    let rest = horizon.map_or(rest, |horizon| rest.with_delete_horizon(horizon));
    let failed = |source| BatchError::Decompress { codec, source };
    let compressed = if codec == Compression::None { plain } else { compress(codec, &plain).map_err(failed)? };
    rest.sealed_over(&compressed).map(Bytes::from).ok_or(BatchError::Length { length: i32::MAX })
}

/// The records that stay, one after the other; `body` was walked before.
fn copy(header: &BatchHeader, body: &[u8], stays: &[bool], horizon: Option<Timestamp>) -> Result<Vec<u8>, BatchError> {
    let mut out = Vec::with_capacity(body.len());
    let mut cursor = Cursor::new(body);
    for (index, is_kept) in (0..).zip(stays) {
        let record = RawRecord::read(&mut cursor).map_err(|reason| BatchError::Record { index, reason })?;
        match horizon {
            _ if !is_kept => {}
            None => out.extend_from_slice(record.bytes),
            Some(horizon) => {
                let delta = timestamp(header, &record).0.wrapping_sub(horizon.0);
                let length = 1 + varlong_len(delta) + record.after_timestamp.len();
                put_varint(&mut out, i32::try_from(length).unwrap_or(i32::MAX));
                out.push(record.attributes);
                put_varlong(&mut out, delta);
                out.extend_from_slice(record.after_timestamp);
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::{CODECS, compressed, with_producer};
    use crate::record::{BatchDecoder, BatchEncoder, TransactionOutcome, decode_marker, encode_marker, verify_crc};

    type Row = (i64, i64, Option<Vec<u8>>, Option<Vec<u8>>);

    fn batch(codec: Compression) -> Vec<u8> {
        let mut encoder = BatchEncoder::new(TimestampType::CreateTime);
        for n in 0..6_i64 {
            let (key, value) = ([n as u8 % 3], [b'v'; 40]);
            let headers = [(&b"h"[..], Some(&b"1"[..])), (&b"h"[..], None)];
            let value = (n != 4).then_some(&value[..]);
            encoder.push(Offset(n), Timestamp(1000 + 7 * n), Some(&key[..]), value, headers.into_iter());
        }
        let mut batch = with_producer(compressed(&encoder.finish().unwrap(), codec), 9, 1, 40);
        batch[..8].copy_from_slice(&500_i64.to_be_bytes());
        batch
    }

    fn rows(batch: &[u8]) -> Vec<Row> {
        let mut rows = Vec::new();
        let read = |record: crate::record::Record<'_>| -> Result<(), BatchError> {
            assert_eq!(record.headers.len(), 2);
            let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
            rows.push((record.offset.0, record.timestamp.0, owned(record.key), owned(record.value)));
            Ok(())
        };
        BatchDecoder::new(1 << 20).for_each(batch, read).unwrap();
        rows
    }

    #[test]
    fn what_stays_is_as_it_was_in_every_codec() {
        for codec in CODECS {
            let (batch, mut rewriter) = (batch(codec), BatchRewriter::new(1 << 20));
            let before = BatchHeader::read(&batch).unwrap();
            let odd = |record: &KeyedRecord<'_>| record.offset.0 % 2 == 1 && record.offset.0 < 505;
            let (retained, has_tombstones) = rewriter.retain(&batch, Some(Timestamp(9)), odd).unwrap();
            let Retained::Part(rest) = retained else { panic!("{retained:?}") };
            assert!(!has_tombstones);
            verify_crc(&rest).unwrap();
            let after = BatchHeader::read(&rest).unwrap();
            let same = BatchHeader {
                batch_length: before.batch_length,
                crc: before.crc,
                record_count: 6,
                max_timestamp: before.max_timestamp,
                ..after
            };
            assert_eq!(same, before, "base, last offset, codec, producer and sequence");
            assert_eq!((after.record_count, after.max_timestamp), (2, Timestamp(1021)));
            let expected: Vec<_> = rows(&batch).into_iter().filter(|row| [501, 503].contains(&row.0)).collect();
            assert_eq!(rows(&rest), expected);
            // What was rewritten is rewritten again in the same way.
            let (again, _) = rewriter.retain(&rest, None, |record| record.offset.0 == 503).unwrap();
            let Retained::Part(again) = again else { panic!("{again:?}") };
            assert_eq!(rows(&again), expected[1..]);
            assert_eq!(BatchHeader::read(&again).unwrap().next_offset(), Offset(506));
        }
    }

    #[test]
    fn a_delete_horizon_keeps_all_timestamps() {
        for codec in CODECS {
            let (batch, mut rewriter) = (batch(codec), BatchRewriter::new(1 << 20));
            let (retained, has_tombstones) = rewriter.retain(&batch, Some(Timestamp(5_000_000)), |_| true).unwrap();
            let Retained::Part(marked) = retained else { panic!("{retained:?}") };
            assert!(has_tombstones);
            assert_eq!(BatchHeader::read(&marked).unwrap().delete_horizon(), Some(Timestamp(5_000_000)));
            assert_eq!(rows(&marked), rows(&batch));
            let again = rewriter.retain(&marked, Some(Timestamp(7)), |_| true).unwrap();
            assert_eq!(again, (Retained::All, true), "the first horizon counts");
        }
    }

    #[test]
    fn a_marker_with_a_horizon_is_a_marker() {
        let marker = encode_marker(7, 3, TransactionOutcome::Abort, Timestamp(1000));
        let marked = BatchRewriter::new(1 << 20).with_horizon(&marker, Timestamp(90_000)).unwrap();
        verify_crc(&marked).unwrap();
        assert_eq!(decode_marker(&marked).unwrap(), Some(TransactionOutcome::Abort));
        let header = BatchHeader::read(&marked).unwrap();
        assert!(header.is_control() && header.is_transactional());
        assert_eq!((header.delete_horizon(), header.max_timestamp), (Some(Timestamp(90_000)), Timestamp(1000)));
        assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), (7, 3, -1));
        let mut times = Vec::new();
        let read = |record: crate::record::Record<'_>| -> Result<(), BatchError> {
            times.push(record.timestamp);
            Ok(())
        };
        BatchDecoder::new(1 << 20).for_each(&marked, read).unwrap();
        assert_eq!(times, [Timestamp(1000)]);
    }

    #[test]
    fn nothing_left_is_a_header_that_reads() {
        let (batch, mut rewriter) = (batch(Compression::Gzip), BatchRewriter::new(1 << 20));
        assert_eq!(rewriter.retain(&batch, None, |_| false).unwrap(), (Retained::Nothing, false));
        let emptied = without_records(&BatchHeader::read(&batch).unwrap());
        let header = BatchHeader::read(&emptied).unwrap();
        assert_eq!((emptied.len(), header.record_count, header.next_offset()), (BATCH_HEADER_LEN, 0, Offset(506)));
        assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), (9, 1, 40));
        assert_eq!(header.max_timestamp, Timestamp::NONE);
        assert!(rows(&emptied).is_empty() && header.counts_agree());
    }

    #[test]
    fn keys_and_tombstones_are_told() {
        let mut seen = Vec::new();
        let note =
            |record: KeyedRecord<'_>| seen.push((record.offset.0, record.key.map(<[u8]>::to_vec), record.is_tombstone));
        BatchRewriter::new(1 << 20).for_each(&batch(Compression::Zstd), note).unwrap();
        let expected = (0..6).map(|n| (500 + n, Some(vec![n as u8 % 3]), n == 4));
        assert_eq!(seen, expected.collect::<Vec<_>>());
    }
}
