//! Batches as producers make them, for the tests of this crate.

use std::io::Write;

use super::batch::{ATTRIBUTES, BATCH_HEADER_LEN, CRC, LENGTH_PREFIX};
use super::{BatchEncoder, Compression};
use crate::model::{Offset, Timestamp, TimestampType};

pub const CODECS: [Compression; 5] =
    [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];

/// A batch of records `(timestamp, value)` with base offset 0 and no keys.
pub fn batch_of(records: &[(i64, &[u8])]) -> Vec<u8> {
    let mut encoder = BatchEncoder::new(TimestampType::CreateTime);
    for (offset, (timestamp, value)) in (0..).zip(records) {
        encoder.push(Offset(offset), Timestamp(*timestamp), None, Some(value), std::iter::empty());
    }
    encoder.finish().unwrap().to_vec()
}

/// Makes an idempotent producer's batch out of one without a producer.
pub fn with_producer(mut batch: Vec<u8>, id: i64, epoch: i16, sequence: i32) -> Vec<u8> {
    batch[43..51].copy_from_slice(&id.to_be_bytes());
    batch[51..53].copy_from_slice(&epoch.to_be_bytes());
    batch[53..57].copy_from_slice(&sequence.to_be_bytes());
    reseal(batch)
}

/// Sets length and CRC to what the bytes are.
pub fn reseal(mut batch: Vec<u8>) -> Vec<u8> {
    let length = i32::try_from(batch.len() - LENGTH_PREFIX).unwrap();
    batch[8..12].copy_from_slice(&length.to_be_bytes());
    let crc = crc32c::crc32c(&batch[ATTRIBUTES.start..]);
    batch[CRC].copy_from_slice(&crc.to_be_bytes());
    batch
}

/// The same records with their body replaced by `body`, said to be compressed with `codec`.
pub fn with_body(batch: &[u8], codec: Compression, body: &[u8]) -> Vec<u8> {
    let mut out = batch[..BATCH_HEADER_LEN].to_vec();
    out[ATTRIBUTES.start + 1] = out[ATTRIBUTES.start + 1] & !0b111 | codec as u8;
    out.extend_from_slice(body);
    reseal(out)
}

/// An uncompressed batch, compressed.
pub fn compressed(batch: &[u8], codec: Compression) -> Vec<u8> {
    with_body(batch, codec, &compress(codec, &batch[BATCH_HEADER_LEN..]))
}

pub fn compress(codec: Compression, plain: &[u8]) -> Vec<u8> {
    match codec {
        Compression::None => plain.to_vec(),
        Compression::Gzip => {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            out.write_all(plain).unwrap();
            out.finish().unwrap()
        }
        Compression::Snappy => snap::raw::Encoder::new().compress_vec(plain).unwrap(),
        Compression::Lz4 => {
            let mut out = lz4_flex::frame::FrameEncoder::new(Vec::new());
            out.write_all(plain).unwrap();
            out.finish().unwrap()
        }
        Compression::Zstd => zstd::encode_all(plain, 3).unwrap(),
    }
}

/// Snappy in the framing of snappy-java, blocks of `block_len`.
pub fn xerial(plain: &[u8], block_len: usize) -> Vec<u8> {
    let mut out = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01".to_vec();
    for chunk in plain.chunks(block_len) {
        let block = compress(Compression::Snappy, chunk);
        out.extend_from_slice(&u32::try_from(block.len()).unwrap().to_be_bytes());
        out.extend_from_slice(&block);
    }
    out
}
