//! Records into a batch, without a second buffer: a record's length stands before it and is known only when its headers
//! were written, so the place for it is guessed from everything else, and the record moved by a byte where headers make
//! the length longer.

use bytes::Bytes;

use super::batch::{ATTRIBUTES, BATCH_HEADER_LEN, BatchHeader, LENGTH_PREFIX, TIMESTAMP_TYPE_BIT};
use super::varint::{put_varint, put_varlong, varint_len, varlong_len, write_varint};
use crate::model::{LEADER_EPOCH, Offset, Timestamp, TimestampType};

/// A finished batch holds on to no more than this share of its size in unused memory.
const SPARE_SHARE_MAX: usize = 8;

/// Builds one v2 batch, uncompressed, pid/epoch/sequence -1, from borrowed parts. Used for internal topics, HTTP
/// produce and cold re-encoding.
///
/// Lengths are those of Kafka, signed 32 bits: the caller keeps a batch below 2 GiB and ends it before an offset that
/// lies more than `i32::MAX` beyond the first.
pub struct BatchEncoder {
    timestamp_type: TimestampType,
    /// Empty until the first record, then begins with room for the header.
    buf: Vec<u8>,
    base_offset: Offset,
    last_offset: Offset,
    base_timestamp: Timestamp,
    max_timestamp: Timestamp,
    record_count: i32,
    /// Size of the last batch, what the next one will probably need.
    size_hint: usize,
}

impl BatchEncoder {
    pub fn new(timestamp_type: TimestampType) -> Self {
        Self {
            timestamp_type,
            buf: Vec::new(),
            base_offset: Offset::ZERO,
            last_offset: Offset::ZERO,
            base_timestamp: Timestamp::NONE,
            max_timestamp: Timestamp::NONE,
            record_count: 0,
            size_hint: 0,
        }
    }

    /// Offsets strictly increasing; the first one becomes base_offset. With LogAppendTime all timestamps must be equal.
    pub fn push<'h>(
        &mut self,
        offset: Offset,
        timestamp: Timestamp,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: impl ExactSizeIterator<Item = (&'h [u8], Option<&'h [u8]>)>,
    ) {
        if self.record_count == 0 {
            self.begin(offset, timestamp);
        }
        debug_assert!(self.record_count == 0 || offset > self.last_offset, "offsets must increase");
        debug_assert!(self.timestamp_type == TimestampType::CreateTime || timestamp == self.base_timestamp);
        let timestamp_delta = timestamp.0.wrapping_sub(self.base_timestamp.0);
        let offset_delta = length(offset.0 - self.base_offset.0);
        let header_count = headers.len();

        let fixed_len = 1
            + varlong_len(timestamp_delta)
            + varint_len(offset_delta)
            + bytes_len(key)
            + bytes_len(value)
            + varint_len(length(header_count));
        let guess = varint_len(length(fixed_len + 2 * header_count));
        self.buf.reserve(guess + fixed_len);
        let start = self.buf.len();
        self.buf.resize(start + guess + 1, 0); // the length, and the attributes: none are defined
        put_varlong(&mut self.buf, timestamp_delta);
        put_varint(&mut self.buf, offset_delta);
        put_bytes(&mut self.buf, key);
        put_bytes(&mut self.buf, value);
        put_varint(&mut self.buf, length(header_count));
        for (key, value) in headers {
            put_bytes(&mut self.buf, Some(key));
            put_bytes(&mut self.buf, value);
        }

        let body_len = length(self.buf.len() - start - guess);
        let needed = varint_len(body_len);
        if needed > guess {
            let end = self.buf.len();
            self.buf.resize(end + needed - guess, 0);
            self.buf.copy_within(start + guess..end, start + needed);
        }
        write_varint(&mut self.buf[start..], body_len);

        self.last_offset = offset;
        self.max_timestamp = self.max_timestamp.max(timestamp);
        self.record_count += 1;
    }

    /// Size that the batch would have now; 0 while nothing was pushed.
    pub fn len_bytes(&self) -> usize {
        self.buf.len()
    }

    pub fn record_count(&self) -> usize {
        usize::try_from(self.record_count).unwrap_or(0)
    }

    /// The finished batch (CRC set); None if nothing was pushed. The encoder is empty again.
    pub fn finish(&mut self) -> Option<Bytes> {
        let mut batch = std::mem::take(&mut self.buf);
        let mut header = BatchHeader {
            base_offset: self.base_offset,
            batch_length: length(batch.len().checked_sub(LENGTH_PREFIX)?),
            leader_epoch: LEADER_EPOCH,
            crc: 0,
            attributes: match self.timestamp_type {
                TimestampType::CreateTime => 0,
                TimestampType::LogAppendTime => TIMESTAMP_TYPE_BIT,
            },
            last_offset_delta: length(self.last_offset.0 - self.base_offset.0),
            base_timestamp: self.base_timestamp,
            max_timestamp: self.max_timestamp,
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
            record_count: self.record_count,
        };
        header.write(batch.first_chunk_mut()?);
        header.crc = crc32c::crc32c(&batch[ATTRIBUTES.start..]);
        header.write(batch.first_chunk_mut()?);
        self.record_count = 0;
        self.size_hint = batch.len();
        // Batches are kept in caches that count their length.
        if batch.capacity() - batch.len() > batch.len() / SPARE_SHARE_MAX {
            batch.shrink_to_fit();
        }
        Some(Bytes::from(batch))
    }

    fn begin(&mut self, offset: Offset, timestamp: Timestamp) {
        self.buf.reserve_exact(self.size_hint.max(BATCH_HEADER_LEN));
        self.buf.resize(BATCH_HEADER_LEN, 0);
        self.base_offset = offset;
        self.base_timestamp = timestamp;
        self.max_timestamp = timestamp;
    }
}

/// A length as the format counts it. See the contract of [`BatchEncoder`].
fn length(len: impl TryInto<i32>) -> i32 {
    let len = len.try_into().unwrap_or(i32::MAX);
    debug_assert!(len < i32::MAX, "a record batch ends below 2 GiB and 2^31 offsets");
    len
}

fn bytes_len(bytes: Option<&[u8]>) -> usize {
    match bytes {
        Some(bytes) => varint_len(length(bytes.len())) + bytes.len(),
        None => varint_len(-1),
    }
}

pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        Some(bytes) => {
            put_varint(out, length(bytes.len()));
            out.extend_from_slice(bytes);
        }
        None => put_varint(out, -1),
    }
}
