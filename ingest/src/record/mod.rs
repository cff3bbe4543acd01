//! Record batch v2 (magic 2): lazy views over bytes, validation, decoding with caps, encoding.
//!
//! | file | what |
//! |---|---|
//! | `batch` | the 61 fixed bytes, CRC-32C, splitting a run of batches |
//! | `validate` | what Produce refuses, and the LogAppendTime stamp |
//! | `decode` | records out of a batch, borrowed, after the whole batch was checked |
//! | `codec` | compression, and decompression under a cap |
//! | `encode` | records into a batch |
//! | `control` | transaction markers, and a coordinator's batches inside of a transaction |
//! | `recompress` | the same records in another codec |
//! | `retain` | some records out of a batch, for compaction |
//! | `varint` | bounded reading of the variable-length parts |
//!
//! Every length in here comes from a socket, a file or the bucket: it is compared with the bytes at hand before
//! anything is sliced or allocated.

/// What one batch may decompress to wherever its records are read: archive, index, replay, look-ups by time. A batch
/// beyond it is kept and served as it is.
pub const DECOMPRESSED_BATCH_BYTES_MAX: usize = 64 << 20;

mod batch;
mod codec;
mod control;
mod decode;
mod encode;
mod recompress;
mod retain;
#[cfg(test)]
pub(crate) mod testing;
mod validate;
mod varint;

pub use batch::{BATCH_HEADER_LEN, BatchError, BatchHeader, Compression, split_batches, verify_crc};
pub use control::{TransactionOutcome, decode_marker, encode_marker, into_transactional};
pub use decode::{BatchDecoder, Headers, HeadersBuffer, Record};
pub use encode::BatchEncoder;
pub use recompress::recompress;
pub use retain::{BatchRewriter, KeyedRecord, Retained, without_records};
pub use validate::{BatchRefusal, BatchRules, TIMESTAMP_MAX, stamp_log_append_time, validate_batch};

#[cfg(test)]
mod tests;

pub(crate) use batch::{BASE_OFFSET, LEADER_EPOCH_FIELD};
pub(crate) use validate::check_size;
