//! Walks a request before it is decoded, by [`schema`](super::schema), without allocating.
//!
//! The decoders of `kafka-protocol` pass an array length from the wire to `Vec::with_capacity`: forty bytes from anyone
//! who can connect could ask for 150 GB and abort the process. So every length is held against what the frame really
//! has, and the array elements of one request are capped. What passes has as many elements as it claims, so that
//! decoding it costs a bounded multiple of its size.
//!
//! What a frame holds behind its request is ignored, as in Kafka: librdkafka's Metadata 9 and later for all topics
//! leaves three bytes of an array length that it reserved as four and wrote as one.
//!
//! Invariants:
//! - The walk reads lengths exactly as the decoder does, and refuses what the two could read differently: varints of
//!   more than 32 bits, tagged fields whose content is not as long as their size says, tags out of order.
//! - It never allocates, never panics, and takes time linear in the bytes of the frame.

use kafka_protocol::messages::ApiKey;

use super::schema::{self, Field, Kind};

/// Array elements and tagged fields one request may hold over all its arrays. A decoded element takes up to about 140
/// bytes and a tagged field that has no other beside it 400, so one request costs at most some 30 MiB beyond its frame
/// (`a_full_request_costs_what_the_guard_says` in `tests/fuzz_corpus.rs`).
pub const ELEMENTS_MAX: usize = 100_000;

/// Why a request is not decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuardError {
    #[error("a field of {claimed} bytes where the frame has {left} left")]
    Truncated { claimed: usize, left: usize },
    #[error("length {0} is negative")]
    NegativeLength(i64),
    #[error("a variable-length number has more than 32 bits")]
    VarintTooLong,
    #[error("{0} where 1 says that a struct follows and -1 that none does")]
    NullMarker(i8),
    #[error("more than {ELEMENTS_MAX} array elements in one request")]
    TooManyElements,
    #[error("tagged field {tag} claims {claimed} bytes and holds {held}")]
    TagSize { tag: u32, claimed: usize, held: usize },
    #[error("tagged field {tag} follows {previous}; tags must ascend")]
    TagOrder { tag: u32, previous: u32 },
    #[error("api key {0} has no schema")]
    UnknownApi(i16),
}

/// Checks the body of a request. `Ok` means: it may be decoded, and the decoder will consume so many bytes of it.
pub fn check_body(key: ApiKey, version: i16, body: &[u8]) -> Result<usize, GuardError> {
    let schema = schema::body(key).ok_or(GuardError::UnknownApi(key as i16))?;
    let flexible = version >= schema.flexible_since;
    let mut walk = Walk { rest: body, version, flexible, elements_left: ELEMENTS_MAX };
    walk.fields(schema.fields)?;
    Ok(body.len() - walk.rest.len())
}

/// Whether requests of this version carry header v2 (with a tag section) and compact lengths.
pub fn is_flexible(key: ApiKey, version: i16) -> bool {
    schema::body(key).is_some_and(|body| version >= body.flexible_since)
}

/// Skips a tag section in which no tag is known and returns what follows it.
pub fn skip_tags(bytes: &[u8]) -> Result<&[u8], GuardError> {
    let mut walk = Walk { rest: bytes, version: 0, flexible: true, elements_left: ELEMENTS_MAX };
    walk.tags(&[])?;
    Ok(walk.rest)
}

struct Walk<'a> {
    rest: &'a [u8],
    version: i16,
    flexible: bool,
    elements_left: usize,
}

impl Walk<'_> {
    fn fields(&mut self, fields: &'static [Field]) -> Result<(), GuardError> {
        for field in fields {
            if field.tag.is_none() && (field.since..=field.until).contains(&self.version) {
                self.value(field.kind)?;
            }
        }
        if self.flexible { self.tags(fields) } else { Ok(()) }
    }

    fn value(&mut self, kind: Kind) -> Result<(), GuardError> {
        match kind {
            Kind::Fixed(width) => self.skip(width),
            Kind::Text => {
                let length = if self.flexible { self.compact_length()? } else { self.short_length()? };
                self.skip(length)
            }
            Kind::Blob => {
                let length = self.long_length()?;
                self.skip(length)
            }
            Kind::FixedList(width) => {
                let count = self.element_count()?;
                self.skip(count.saturating_mul(width))
            }
            Kind::TextList => {
                for _ in 0..self.element_count()? {
                    self.value(Kind::Text)?;
                }
                Ok(())
            }
            Kind::StructList(fields) => {
                for _ in 0..self.element_count()? {
                    self.fields(fields)?;
                }
                Ok(())
            }
            Kind::Struct(fields) => self.fields(fields),
            Kind::StructOrNull(fields) => match i8::from_be_bytes(self.take()?) {
                -1 => Ok(()),
                1 => self.fields(fields),
                marker => Err(GuardError::NullMarker(marker)),
            },
        }
    }

    /// The tag section that ends a flexible struct; `fields` names the tags this version knows.
    fn tags(&mut self, fields: &'static [Field]) -> Result<(), GuardError> {
        let count = self.varint()?;
        let mut previous = None;
        for _ in 0..count {
            self.count_elements(1)?;
            let tag = self.varint()?;
            if let Some(previous) = previous.filter(|&previous| previous >= tag) {
                return Err(GuardError::TagOrder { tag, previous });
            }
            previous = Some(tag);
            let claimed = self.varint()? as usize;
            let left = self.rest.len();
            if claimed > left {
                return Err(GuardError::Truncated { claimed, left });
            }
            match fields.iter().find(|field| field.tag == Some(tag) && field.since <= self.version) {
                None => self.skip(claimed)?,
                Some(field) => {
                    self.value(field.kind)?;
                    let held = left - self.rest.len();
                    if held != claimed {
                        return Err(GuardError::TagSize { tag, claimed, held });
                    }
                }
            }
        }
        Ok(())
    }

    fn element_count(&mut self) -> Result<usize, GuardError> {
        let count = self.long_length()?;
        // Every element takes at least one byte.
        if count > self.rest.len() {
            return Err(GuardError::Truncated { claimed: count, left: self.rest.len() });
        }
        self.count_elements(count)?;
        Ok(count)
    }

    fn count_elements(&mut self, count: usize) -> Result<(), GuardError> {
        self.elements_left = self.elements_left.checked_sub(count).ok_or(GuardError::TooManyElements)?;
        Ok(())
    }

    /// Length of bytes or of an array: i32, or an unsigned varint plus one. Null counts as zero.
    fn long_length(&mut self) -> Result<usize, GuardError> {
        if self.flexible {
            return self.compact_length();
        }
        let length = i32::from_be_bytes(self.take()?);
        null_or_length(i64::from(length))
    }

    fn short_length(&mut self) -> Result<usize, GuardError> {
        let length = i16::from_be_bytes(self.take()?);
        null_or_length(i64::from(length))
    }

    fn compact_length(&mut self) -> Result<usize, GuardError> {
        Ok((self.varint()? as usize).saturating_sub(1))
    }

    fn varint(&mut self) -> Result<u32, GuardError> {
        let mut value = 0;
        for shift in (0..u32::BITS).step_by(7) {
            let [byte] = self.take()?;
            let bits = u32::from(byte & 0x7f);
            if bits.leading_zeros() < shift {
                return Err(GuardError::VarintTooLong);
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(GuardError::VarintTooLong)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], GuardError> {
        let (head, rest) =
            self.rest.split_first_chunk().ok_or(GuardError::Truncated { claimed: N, left: self.rest.len() })?;
        self.rest = rest;
        Ok(*head)
    }

    fn skip(&mut self, count: usize) -> Result<(), GuardError> {
        self.rest = self.rest.get(count..).ok_or(GuardError::Truncated { claimed: count, left: self.rest.len() })?;
        Ok(())
    }
}

fn null_or_length(length: i64) -> Result<usize, GuardError> {
    if length == -1 {
        return Ok(0);
    }
    usize::try_from(length).map_err(|_| GuardError::NegativeLength(length))
}

#[cfg(test)]
mod tests;
