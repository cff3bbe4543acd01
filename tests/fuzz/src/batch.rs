//! Record batches as producers send them.
//!
//! ```text
//! input   mode u8 | batch
//! mode    bit 0: length and CRC are set to what the bytes say, so that a mutation gets past them
//!         bit 1: the same, and the records are compressed with the codec that the attributes name
//!         bit 2: the topic has log append time
//!         bit 3: the topic is compacted, so that compressed records are looked at
//! ```

use std::io::Write;

use bytes::Bytes;
use thermocline_ingest::model::{Offset, Timestamp, TimestampType};
use thermocline_ingest::record::{
    BATCH_HEADER_LEN, BatchDecoder, BatchEncoder, BatchError, BatchHeader, BatchRules, Compression,
    DECOMPRESSED_BATCH_BYTES_MAX, decode_marker, into_transactional, split_batches, stamp_log_append_time,
    validate_batch, verify_crc,
};

use super::memory::peak_of;

const SEALED: u8 = 1;
const COMPRESSED: u8 = 1 << 1;
const LOG_APPEND_TIME: u8 = 1 << 2;
const COMPACTED: u8 = 1 << 3;

/// Where fields of a batch lie.
const BATCH_LENGTH_AT: usize = 8;
const LENGTH_COUNTED_FROM: usize = 12;
const CRC_AT: usize = 17;
const ATTRIBUTES_AT: usize = 21;

/// `max.message.bytes` of the topic; more than inputs have.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// What one batch may decompress to.
const DECOMPRESSED_MAX: usize = 1 << 20;
/// What codecs hold beside it: three of the largest blocks of lz4, and the buffer that moves as it doubles.
const CODEC_HELD_MAX: usize = 25 << 20;
/// What validating holds where nothing is decompressed: two lists of the indexes of records at fault.
const VALIDATING_HELD_MAX: usize = 16 << 10;
const NOW: Timestamp = Timestamp(1_431_860_400_000);

/// A record with what is its own.
#[derive(Debug, PartialEq)]
struct Owned {
    offset: Offset,
    timestamp: Timestamp,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
}

/// See the [module](self).
pub fn run(input: &[u8]) {
    let Some((&mode, batch)) = input.split_first() else { return };
    let mut batch = batch.to_vec();
    if mode & COMPRESSED != 0 {
        compress(&mut batch);
    }
    if mode & (SEALED | COMPRESSED) != 0 {
        seal(&mut batch);
    }
    check_split(&batch);
    let _ = decode_marker(&batch);
    let rules = BatchRules {
        message_bytes_max: MESSAGE_BYTES_MAX,
        segment_bytes: MESSAGE_BYTES_MAX as u64,
        keys_required: mode & COMPACTED != 0,
        log_append_time: mode & LOG_APPEND_TIME != 0,
        timestamp_before_max_ms: None,
        timestamp_after_max_ms: Some(1 << 40),
    };
    let (accepted, held) = peak_of(|| validate_batch(&batch, &rules, NOW));
    let is_packed = batch.get(ATTRIBUTES_AT + 1).is_some_and(|attributes| attributes & 0b111 != 0);
    let allowed = if is_packed { 2 * DECOMPRESSED_BATCH_BYTES_MAX + CODEC_HELD_MAX } else { 0 } + VALIDATING_HELD_MAX;
    assert!(held <= allowed, "validating {} bytes held {held}", batch.len());
    match accepted {
        Ok(header) => check_accepted(&batch, &header),
        // Segments and objects may hold anything; whoever reads them decodes first.
        Err(_) => drop(decode(&mut BatchDecoder::new(DECOMPRESSED_MAX), &batch)),
    }
}

/// The pieces of a run of batches are the run, up to the first that is none.
fn check_split(run: &[u8]) {
    let mut rest = run;
    for piece in split_batches(Bytes::copy_from_slice(run)) {
        let Ok(piece) = piece else { return };
        let header = BatchHeader::read(&piece).expect("a piece has a header");
        assert_eq!(header.size_bytes(), piece.len());
        rest = rest.strip_prefix(&piece[..]).expect("pieces are in order");
    }
    assert!(rest.is_empty());
}

/// What may be appended has as many offsets as it says, and its records are those offsets, or it is undecodable for
/// everyone who reads it.
fn check_accepted(batch: &[u8], header: &BatchHeader) {
    assert_eq!(header.base_offset, Offset::ZERO);
    assert_eq!(header.next_offset(), Offset(i64::from(header.record_count)));
    assert!(header.record_count > 0 && !header.is_control());
    let records = decode(&mut BatchDecoder::new(DECOMPRESSED_MAX), batch);
    match &records {
        Ok(records) => {
            assert_eq!(records.len(), header.record_count as usize);
            assert!((0..).zip(records).all(|(offset, record)| record.offset == Offset(offset)));
            check_encoded_again(records);
        }
        Err(error) => {
            let is_plain = header.compression().is_ok_and(|codec| codec == Compression::None);
            let is_key = matches!(error, BatchError::Record { reason: "a header key is not UTF-8", .. });
            assert!(!is_plain || is_key, "an uncompressed batch was accepted and cannot be read: {error}");
        }
    }
    check_stamped(batch, header, records.as_deref().ok());
    let header = BatchHeader::read(&into_transactional(Bytes::copy_from_slice(batch), 7, 3)).expect("a header");
    assert!(header.is_transactional() && (header.producer_id, header.producer_epoch) == (7, 3));
}

/// Log append time changes nothing but the time.
fn check_stamped(batch: &[u8], header: &BatchHeader, records: Option<&[Owned]>) {
    let mut stamped = batch.to_vec();
    stamp_log_append_time(&mut stamped, header, NOW);
    verify_crc(&stamped).expect("the CRC follows the stamp");
    let header = BatchHeader::read(&stamped).expect("a header");
    assert_eq!((header.timestamp_type(), header.max_timestamp), (TimestampType::LogAppendTime, NOW));
    let again = decode(&mut BatchDecoder::new(DECOMPRESSED_MAX), &stamped).ok();
    assert_eq!(again.as_ref().map(Vec::len), records.map(<[Owned]>::len));
    for (stamped, record) in again.iter().flatten().zip(records.into_iter().flatten()) {
        assert_eq!(stamped.timestamp, NOW);
        assert_eq!((&stamped.key, &stamped.value, &stamped.headers), (&record.key, &record.value, &record.headers));
    }
}

/// The records make another batch, which has the same records.
fn check_encoded_again(records: &[Owned]) {
    let mut encoder = BatchEncoder::new(TimestampType::CreateTime);
    for record in records {
        let headers = record.headers.iter().map(|(key, value)| (key.as_bytes(), value.as_deref()));
        encoder.push(record.offset, record.timestamp, record.key.as_deref(), record.value.as_deref(), headers);
    }
    let encoded = encoder.finish().expect("there are records");
    let again = decode(&mut BatchDecoder::new(usize::MAX), &encoded);
    assert_eq!(again.expect("what we encode can be decoded"), records);
}

/// The records of a batch; what decoding holds beside them is bounded.
fn decode(decoder: &mut BatchDecoder, batch: &[u8]) -> Result<Vec<Owned>, BatchError> {
    let (checked, held) = peak_of(|| decoder.for_each::<BatchError>(batch, |_| Ok(())));
    let allowed = 3 * DECOMPRESSED_MAX + CODEC_HELD_MAX;
    assert!(held <= allowed, "decoding {} bytes held {held}", batch.len());
    checked?;
    let mut records = Vec::new();
    decoder.for_each::<BatchError>(batch, |record| {
        let headers: Vec<_> =
            record.headers.iter().map(|(key, value)| (key.to_owned(), value.map(<[u8]>::to_vec))).collect();
        assert_eq!(headers.len(), record.headers.len());
        records.push(Owned {
            offset: record.offset,
            timestamp: record.timestamp,
            key: record.key.map(<[u8]>::to_vec),
            value: record.value.map(<[u8]>::to_vec),
            headers,
        });
        Ok(())
    })?;
    Ok(records)
}

/// Compresses the records with the codec that the batch names.
fn compress(batch: &mut Vec<u8>) {
    let Some((header, body)) = batch.split_at_checked(BATCH_HEADER_LEN) else { return };
    let packed = match header[ATTRIBUTES_AT + 1] & 0b111 {
        1 => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(body).expect("into memory");
            encoder.finish().expect("into memory")
        }
        2 => snap::raw::Encoder::new().compress_vec(body).expect("into memory"),
        3 => {
            let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
            encoder.write_all(body).expect("into memory");
            encoder.finish().expect("into memory")
        }
        4 => zstd::encode_all(body, 1).expect("into memory"),
        _ => return,
    };
    batch.truncate(BATCH_HEADER_LEN);
    batch.extend(packed);
}

/// Sets length and CRC.
fn seal(batch: &mut [u8]) {
    if batch.len() < BATCH_HEADER_LEN {
        return;
    }
    let length = i32::try_from(batch.len() - LENGTH_COUNTED_FROM).unwrap_or(i32::MAX);
    batch[BATCH_LENGTH_AT..LENGTH_COUNTED_FROM].copy_from_slice(&length.to_be_bytes());
    let crc = crc32c::crc32c(&batch[ATTRIBUTES_AT..]);
    batch[CRC_AT..ATTRIBUTES_AT].copy_from_slice(&crc.to_be_bytes());
}
