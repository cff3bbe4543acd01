//! Records out of a batch.
//!
//! ```text
//! record: length varint | attributes i8 | timestamp delta varlong | offset delta varint
//!         | key length varint (-1 null), key | value length varint (-1 null), value
//!         | header count varint | per header: key length varint, key | value length varint (-1 null), value
//! ```
//! A batch is walked twice: once to check all of it, then to hand out its records. So nobody acts on the first half of
//! a batch whose second half is broken.

use super::batch::{ATTRIBUTES, BATCH_HEADER_LEN, BatchError, BatchHeader, read_whole};
use super::codec::Decompressor;
use super::encode::put_bytes;
use super::varint::Cursor;
use crate::model::{Offset, Timestamp, TimestampType};

/// Fewest bytes a header takes: two lengths.
const HEADER_LEN_MIN: usize = 2;

/// One record, borrowed. `headers` is lazy, order and duplicates preserved.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    pub offset: Offset,
    pub timestamp: Timestamp,
    pub timestamp_type: TimestampType,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: Headers<'a>,
}

/// The headers of one record.
#[derive(Clone, Copy, Debug, Default)]
pub struct Headers<'a> {
    count: usize,
    bytes: &'a [u8],
}

/// Headers in the form of a batch, for a record whose parts come from elsewhere.
#[derive(Clone, Debug, Default)]
pub struct HeadersBuffer {
    count: usize,
    bytes: Vec<u8>,
}

/// The parts of a record as they stand in the batch, its headers not looked at.
pub(super) struct RawRecord<'a> {
    pub timestamp_delta: i64,
    pub offset_delta: i32,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    headers: Headers<'a>,
    /// All of it, its length included.
    pub bytes: &'a [u8],
    pub attributes: u8,
    /// What follows its timestamp.
    pub after_timestamp: &'a [u8],
}

/// Decodes batches, reusing one scratch buffer; decompression stops with an error at `decompressed_max` bytes.
pub struct BatchDecoder {
    decompressor: Decompressor,
}

impl<'a> Headers<'a> {
    pub fn len(&self) -> usize {
        self.count
    }
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// (key, value); validated when the record was decoded: keys are UTF-8.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, Option<&'a [u8]>)> + use<'a> {
        let mut cursor = Cursor::new(self.bytes);
        (0..self.count).map_while(move |_| {
            let key = cursor.counted().ok()?;
            let value = cursor.nullable().ok()?;
            Some((std::str::from_utf8(key).ok()?, value))
        })
    }

    /// Walks all headers: they must end where the record ends.
    fn check(&self, keys_utf8: bool) -> Result<(), &'static str> {
        let mut cursor = Cursor::new(self.bytes);
        for _ in 0..self.count {
            let key = cursor.counted()?;
            if keys_utf8 && std::str::from_utf8(key).is_err() {
                return Err("a header key is not UTF-8");
            }
            cursor.nullable()?;
        }
        if cursor.rest.is_empty() { Ok(()) } else { Err("bytes follow its headers") }
    }
}

impl HeadersBuffer {
    pub fn clear(&mut self) {
        self.count = 0;
        self.bytes.clear();
    }

    /// `key` must be UTF-8; lengths are those of Kafka, signed 32 bits.
    pub fn push(&mut self, key: &[u8], value: Option<&[u8]>) {
        put_bytes(&mut self.bytes, Some(key));
        put_bytes(&mut self.bytes, value);
        self.count += 1;
    }

    pub fn headers(&self) -> Headers<'_> {
        Headers { count: self.count, bytes: &self.bytes }
    }
}

impl<'a> RawRecord<'a> {
    /// Reads the record at the cursor. Its headers are framed by the record's length, not checked.
    pub fn read(cursor: &mut Cursor<'a>) -> Result<Self, &'static str> {
        let start = cursor.rest;
        let length = usize::try_from(cursor.varint()?).map_err(|_| "its length is negative")?;
        let mut body = Cursor::new(cursor.take(length)?);
        let bytes = start.get(..start.len() - cursor.rest.len()).unwrap_or_default();
        let attributes = body.take(1)?.first().copied().unwrap_or_default();
        let timestamp_delta = body.varlong()?;
        let after_timestamp = body.rest;
        let offset_delta = body.varint()?;
        let key = body.nullable()?;
        let value = body.nullable()?;
        let count = usize::try_from(body.varint()?).map_err(|_| "its header count is negative")?;
        if count > body.rest.len() / HEADER_LEN_MIN {
            return Err("its header count exceeds its bytes");
        }
        let headers = Headers { count, bytes: body.rest };
        Ok(Self { timestamp_delta, offset_delta, key, value, headers, bytes, attributes, after_timestamp })
    }
}

/// Walks uncompressed records and calls `f` with the index of each: framing, offset deltas that increase up to the last
/// one of the header, and count. Where the header has as many records as offsets, as every producer's has, the deltas
/// are therefore 0, 1, 2, ….
pub(super) fn walk<'a>(
    header: &BatchHeader,
    body: &'a [u8],
    keys_utf8: bool,
    mut f: impl FnMut(i32, &RawRecord<'a>),
) -> Result<(), BatchError> {
    let mut cursor = Cursor::new(body);
    let mut found = 0;
    let mut previous = -1;
    while !cursor.rest.is_empty() {
        let bad = |reason| BatchError::Record { index: found, reason };
        let record = RawRecord::read(&mut cursor).map_err(bad)?;
        if record.offset_delta <= previous || record.offset_delta > header.last_offset_delta {
            return Err(bad("its offset delta is out of order"));
        }
        record.headers.check(keys_utf8).map_err(bad)?;
        f(found, &record);
        previous = record.offset_delta;
        // Cannot overflow: each record takes at least 7 bytes of a body below 2 GiB, or of one under the cap.
        found = found.checked_add(1).ok_or(bad("the count exceeds 32 bits"))?;
    }
    if found == header.record_count {
        Ok(())
    } else {
        Err(BatchError::Count { stated: header.record_count, last_offset_delta: header.last_offset_delta, found })
    }
}

impl BatchDecoder {
    pub fn new(decompressed_max: usize) -> Self {
        Self { decompressor: Decompressor::new(decompressed_max) }
    }

    /// Checks CRC, decompresses, walks the whole batch: record offset deltas must increase, none beyond
    /// last_offset_delta, header keys UTF-8, no trailing bytes. Only then calls `f` for each record, in order.
    pub fn for_each<E: From<BatchError>>(
        &mut self,
        batch: &[u8],
        mut f: impl FnMut(Record<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let (header, body) = self.open(batch)?;
        let timestamp_type = header.timestamp_type();
        let mut cursor = Cursor::new(body);
        for index in 0..header.record_count {
            let raw = RawRecord::read(&mut cursor).map_err(|reason| BatchError::Record { index, reason })?;
            f(Record {
                offset: header.base_offset.plus(i64::from(raw.offset_delta)),
                timestamp: match timestamp_type {
                    // Wraps around like every client does; the encoder's difference wraps the same way.
                    TimestampType::CreateTime => Timestamp(header.base_timestamp.0.wrapping_add(raw.timestamp_delta)),
                    TimestampType::LogAppendTime => header.max_timestamp,
                },
                timestamp_type,
                key: raw.key,
                value: raw.value,
                headers: raw.headers,
            })?;
        }
        Ok(())
    }

    /// The header and the decompressed records of `batch`, wholly checked.
    fn open<'s>(&'s mut self, batch: &'s [u8]) -> Result<(BatchHeader, &'s [u8]), BatchError> {
        let header = read_whole(batch)?;
        let computed = crc32c::crc32c(&batch[ATTRIBUTES.start..]);
        if computed != header.crc {
            return Err(BatchError::Crc { stored: header.crc, computed });
        }
        let body = self.decompressor.run(header.compression()?, &batch[BATCH_HEADER_LEN..])?;
        walk(&header, body, true, |_, _| {})?;
        Ok((header, body))
    }
}
