//! The same records in another codec, for topics whose `compression.type` names one.

use super::batch::{BATCH_HEADER_LEN, BatchError, BatchHeader, Compression};
use super::codec::compress;
use super::validate::{BatchRefusal, with_plain_records};

/// `batch` with its records encoded as `target`; None where they are already. `header` is its own. All else of the
/// batch stays as it is, but for length and CRC. Records that do not decompress, or are not well-formed, are refused.
pub fn recompress(batch: &[u8], header: &BatchHeader, target: Compression) -> Result<Option<Vec<u8>>, BatchRefusal> {
    let Ok(source) = header.compression() else {
        return Err(BatchRefusal::UnsupportedCompression(header.attributes & 0b111));
    };
    if source == target {
        return Ok(None);
    }
    let body = batch.get(BATCH_HEADER_LEN..).unwrap_or_default();
    let encoded = with_plain_records(header, source, body, |_, _| {}, |plain| compress(target, plain))?;
    let failed = |source| BatchRefusal::Corrupt(BatchError::Decompress { codec: target, source });
    let again = header.with_compression(target).sealed_over(&encoded.map_err(failed)?);
    again.map(Some).ok_or(BatchRefusal::InvalidRecord("it is too large in the codec of its topic"))
}
