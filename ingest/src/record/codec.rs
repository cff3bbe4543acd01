//! Compression, and decompression under a cap.
//!
//! Invariant: the scratch buffer never exceeds the cap by more than one byte, whatever the input claims. Beside it
//! stand only the codecs' own windows: 32 KiB for gzip, three of the largest blocks (24 MiB) for lz4,
//! 2^[`ZSTD_WINDOW_LOG_MAX`] bytes for zstd, the latter two touched only as far as there is data.

use std::io::{self, Read, Write};

use zstd::zstd_safe::{DCtx, ResetDirective};

use super::batch::{BatchError, Compression};

/// Largest zstd window that is accepted: 128 MiB, what level 22 uses and zstd itself accepts.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// First step in which the scratch buffer grows.
const GROWTH_FIRST: usize = 64 << 10;
/// No snappy element makes more than 64 bytes out of 2; a claim beyond that ratio is a lie.
const SNAPPY_RATIO_MAX: usize = 32;

/// Starts each stream of the framing that snappy-java writes: magic, then version and least compatible version (i32
/// each), then chunks of one i32 length and one raw snappy block.
const XERIAL_MAGIC: [u8; 8] = [0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0];
const XERIAL_HEADER_LEN: usize = 16;
/// What follows the magic in a stream of ours: version 1, least compatible version 1.
const XERIAL_VERSIONS: [u8; 8] = [0, 0, 0, 1, 0, 0, 0, 1];
/// Plain bytes of one snappy block, as in snappy-java.
const SNAPPY_BLOCK_LEN: usize = 32 << 10;

/// Decompresses batch bodies, one after the other, into one buffer.
pub(super) struct Decompressor {
    limit: usize,
    /// Its length is the most that was ever needed, so that it is zeroed once and not for each batch.
    scratch: Vec<u8>,
    zstd: Option<DCtx<'static>>,
}

/// Why a body could not be decompressed; becomes a [`BatchError`] that names the codec.
enum Failure {
    TooLarge,
    Broken(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

fn broken(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Failure {
    Failure::Broken(io::Error::new(io::ErrorKind::InvalidData, reason))
}

impl Decompressor {
    /// `limit` is the most bytes that one body may decompress to.
    pub fn new(limit: usize) -> Self {
        Self { limit, scratch: Vec::new(), zstd: None }
    }

    /// The decompressed `body`; itself where it is not compressed.
    pub fn run<'s>(&'s mut self, codec: Compression, body: &'s [u8]) -> Result<&'s [u8], BatchError> {
        let result = match codec {
            Compression::None => return Ok(body),
            Compression::Gzip => self.gzip(body),
            Compression::Snappy => self.snappy(body),
            Compression::Lz4 => self.lz4(body),
            Compression::Zstd => self.zstd(body),
        };
        match result {
            Ok(len) => Ok(self.scratch.get(..len).unwrap_or_default()),
            Err(Failure::TooLarge) => Err(BatchError::DecompressedTooLarge { codec, limit: self.limit }),
            Err(Failure::Broken(source)) => Err(BatchError::Decompress { codec, source }),
        }
    }

    fn gzip(&mut self, body: &[u8]) -> Result<usize, Failure> {
        read_capped(flate2::bufread::MultiGzDecoder::new(body), &mut self.scratch, self.limit)
    }

    fn lz4(&mut self, body: &[u8]) -> Result<usize, Failure> {
        let mut decoder = lz4_flex::frame::FrameDecoder::new(body);
        let len = read_capped(&mut decoder, &mut self.scratch, self.limit)?;
        if decoder.get_ref().is_empty() { Ok(len) } else { Err(broken("bytes follow the lz4 frame")) }
    }

    fn zstd(&mut self, body: &[u8]) -> Result<usize, Failure> {
        let context = self.zstd.get_or_insert_with(DCtx::create);
        // A body that failed halfway leaves its state behind.
        context.reset(ResetDirective::SessionOnly).map_err(|code| broken(zstd::zstd_safe::get_error_name(code)))?;
        let mut decoder = zstd::stream::read::Decoder::with_context(body, context);
        decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
        read_capped(decoder, &mut self.scratch, self.limit)
    }

    fn snappy(&mut self, body: &[u8]) -> Result<usize, Failure> {
        if !body.starts_with(&XERIAL_MAGIC) {
            return self.snappy_block(body, 0);
        }
        let mut rest = body.get(XERIAL_HEADER_LEN..).ok_or_else(|| broken("the snappy stream header is cut off"))?;
        let mut filled = 0;
        while let Some((len, chunk)) = rest.split_first_chunk::<4>() {
            let len =
                usize::try_from(i32::from_be_bytes(*len)).map_err(|_| broken("a snappy chunk length is negative"))?;
            let (block, after) =
                chunk.split_at_checked(len).ok_or_else(|| broken("a snappy chunk points beyond the end"))?;
            filled = self.snappy_block(block, filled)?;
            rest = after;
        }
        if rest.is_empty() { Ok(filled) } else { Err(broken("a snappy chunk length is cut off")) }
    }

    /// Appends one raw block to the `filled` bytes of the scratch buffer and returns how many it holds then.
    fn snappy_block(&mut self, block: &[u8], filled: usize) -> Result<usize, Failure> {
        let claimed = snap::raw::decompress_len(block).map_err(broken)?;
        if claimed > self.limit.saturating_sub(filled) {
            return Err(Failure::TooLarge);
        }
        if claimed > block.len().saturating_mul(SNAPPY_RATIO_MAX) {
            return Err(broken("the claimed snappy length is impossible"));
        }
        let end = filled + claimed;
        if self.scratch.len() < end {
            grow(&mut self.scratch, end, self.limit);
        }
        let room = self.scratch.get_mut(filled..end).unwrap_or_default();
        let written = snap::raw::Decoder::new().decompress(block, room).map_err(broken)?;
        Ok(filled + written)
    }
}

/// `plain`, compressed as Java clients do it: all that read Kafka's topics read it. Snappy comes in the framing of
/// snappy-java, lz4 in independent blocks of 64 KiB (KIP-57), gzip and zstd with their default levels.
pub(super) fn compress(codec: Compression, plain: &[u8]) -> io::Result<Vec<u8>> {
    match codec {
        Compression::None => Ok(plain.to_vec()),
        Compression::Gzip => {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            out.write_all(plain)?;
            out.finish()
        }
        Compression::Snappy => {
            let mut out = [XERIAL_MAGIC, XERIAL_VERSIONS].concat();
            let mut encoder = snap::raw::Encoder::new();
            for block in plain.chunks(SNAPPY_BLOCK_LEN) {
                let block = encoder.compress_vec(block)?;
                let len = u32::try_from(block.len()).map_err(io::Error::other)?;
                out.extend_from_slice(&len.to_be_bytes());
                out.extend_from_slice(&block);
            }
            Ok(out)
        }
        Compression::Lz4 => {
            let info = lz4_flex::frame::FrameInfo::new().block_size(lz4_flex::frame::BlockSize::Max64KB);
            let mut out = lz4_flex::frame::FrameEncoder::with_frame_info(info, Vec::new());
            out.write_all(plain)?;
            out.finish().map_err(io::Error::other)
        }
        Compression::Zstd => zstd::bulk::compress(plain, zstd::DEFAULT_COMPRESSION_LEVEL),
    }
}

/// Doubles the buffer, to at least `needed` and at most `ceiling` bytes; `needed` is at most `ceiling`.
fn grow(scratch: &mut Vec<u8>, needed: usize, ceiling: usize) {
    let len = scratch.len().saturating_mul(2).max(GROWTH_FIRST).min(ceiling).max(needed);
    scratch.reserve_exact(len - scratch.len());
    scratch.resize(len, 0);
}

/// Reads `source` to its end into `scratch`; stops where it holds more than `limit`.
fn read_capped(mut source: impl Read, scratch: &mut Vec<u8>, limit: usize) -> Result<usize, Failure> {
    let ceiling = limit.saturating_add(1);
    let mut filled = 0;
    loop {
        if filled == scratch.len() {
            grow(scratch, filled + 1, ceiling);
        }
        let room = scratch.get_mut(filled..).unwrap_or_default();
        match source.read(room) {
            Ok(0) => return Ok(filled),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Failure::Broken(error)),
        }
        if filled > limit {
            return Err(Failure::TooLarge);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::record::testing::{CODECS, compress, xerial};

    const LIMIT: usize = 100_000;

    proptest! {
        #[test]
        fn what_is_compressed_decompresses(plain in vec(prop_oneof![Just(7_u8), any::<u8>()], 0..LIMIT), codec in 0..5_usize) {
            let body = super::compress(CODECS[codec], &plain).unwrap();
            let mut decompressor = Decompressor::new(LIMIT);
            prop_assert_eq!(decompressor.run(CODECS[codec], &body).unwrap(), &plain[..]);
        }

        #[test]
        fn no_input_grows_the_buffer_past_the_cap(
            len in 0..3 * LIMIT, codec in 1..5_usize, framed: bool, garbage in vec(any::<u8>(), 0..30), at: prop::sample::Index,
        ) {
            let mut body = if framed { xerial(&vec![7; len], 10_000) } else { compress(CODECS[codec], &vec![7; len]) };
            let codec = if framed { Compression::Snappy } else { CODECS[codec] };
            let mut decompressor = Decompressor::new(LIMIT);
            let result = decompressor.run(codec, &body).map(<[u8]>::len);
            if len <= LIMIT {
                prop_assert_eq!(result.unwrap(), len);
            } else {
                let refused = matches!(result, Err(BatchError::DecompressedTooLarge { limit: LIMIT, .. }));
                prop_assert!(refused);
            }
            prop_assert!(decompressor.scratch.capacity() <= LIMIT + 1);
            let at = at.index(body.len() + 1);
            body.splice(at..(at + garbage.len()).min(body.len()), garbage);
            let _ = decompressor.run(codec, &body);
            prop_assert!(decompressor.scratch.capacity() <= LIMIT + 1);
        }
    }
}
