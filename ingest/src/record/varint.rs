//! Bounded reading of the variable-length parts of a record. Zig-zag varints as in Protocol Buffers.

/// What is left to read. Errors are reasons; the caller knows which record it reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor<'a> {
    pub rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], &'static str> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or("a length points beyond the end")?;
        self.rest = rest;
        Ok(taken)
    }

    /// Zig-zag varint of at most 5 bytes.
    pub fn varint(&mut self) -> Result<i32, &'static str> {
        let raw = u32::try_from(self.unsigned(5)?).map_err(|_| "a varint exceeds 32 bits")?;
        Ok((raw >> 1).cast_signed() ^ -(raw & 1).cast_signed())
    }

    /// Zig-zag varint of at most 10 bytes.
    pub fn varlong(&mut self) -> Result<i64, &'static str> {
        let raw = self.unsigned(10)?;
        Ok((raw >> 1).cast_signed() ^ -(raw & 1).cast_signed())
    }

    /// A length and that many bytes; -1 is null.
    pub fn nullable(&mut self) -> Result<Option<&'a [u8]>, &'static str> {
        match self.varint()? {
            -1 => Ok(None),
            len => self.take(usize::try_from(len).map_err(|_| "a length is negative")?).map(Some),
        }
    }

    /// A length and that many bytes.
    pub fn counted(&mut self) -> Result<&'a [u8], &'static str> {
        self.nullable()?.ok_or("a header key is null")
    }

    fn unsigned(&mut self, len_max: usize) -> Result<u64, &'static str> {
        let mut value = 0_u64;
        for (index, &byte) in self.rest.iter().take(len_max).enumerate() {
            let bits = u64::from(byte & 0x7f);
            let shift = 7 * index;
            if shift == 63 && bits > 1 {
                return Err("a varint exceeds 64 bits");
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                self.rest = &self.rest[index + 1..];
                return Ok(value);
            }
        }
        Err(if self.rest.len() < len_max { "a varint is cut off" } else { "a varint is too long" })
    }
}

/// Bytes that [`put_varint`] writes for `value`.
pub(super) const fn varint_len(value: i32) -> usize {
    varlong_len(value as i64)
}

/// Bytes that [`put_varlong`] writes for `value`.
pub(super) const fn varlong_len(value: i64) -> usize {
    let bits = 64 - (zigzag(value) | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// Writes `value` to the start of `out` and returns the bytes used; `out` must have room.
pub(super) fn write_varint(out: &mut [u8], value: i32) -> usize {
    let mut raw = zigzag(i64::from(value));
    let mut used = 0;
    for byte in out.iter_mut() {
        *byte = (raw & 0x7f) as u8 | if raw > 0x7f { 0x80 } else { 0 };
        raw >>= 7;
        used += 1;
        if raw == 0 {
            break;
        }
    }
    used
}

pub(super) fn put_varint(out: &mut Vec<u8>, value: i32) {
    put_varlong(out, i64::from(value));
}

pub(super) fn put_varlong(out: &mut Vec<u8>, value: i64) {
    let mut raw = zigzag(value);
    while raw > 0x7f {
        out.push((raw & 0x7f) as u8 | 0x80);
        raw >>= 7;
    }
    out.push(raw as u8);
}

const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn varints_read_back(value: i32, long: i64) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            prop_assert_eq!(out.len(), varint_len(value));
            let mut room = [0; 5];
            prop_assert_eq!(write_varint(&mut room, value), out.len());
            prop_assert_eq!(&room[..out.len()], &out[..]);
            put_varlong(&mut out, long);
            prop_assert_eq!(out.len(), varint_len(value) + varlong_len(long));
            let mut cursor = Cursor::new(&out);
            prop_assert_eq!((cursor.varint(), cursor.varlong(), cursor.rest.len()), (Ok(value), Ok(long), 0));
        }
    }

    #[test]
    fn overlong_and_cut_varints_are_refused() {
        assert_eq!(Cursor::new(&[0xff; 12]).varint(), Err("a varint is too long"));
        assert_eq!(Cursor::new(&[0xff, 0xff, 0xff, 0xff, 0x7f]).varint(), Err("a varint exceeds 32 bits"));
        assert_eq!(Cursor::new(&[0xff; 12]).varlong(), Err("a varint exceeds 64 bits"));
        assert_eq!(Cursor::new(&[0x80]).varlong(), Err("a varint is cut off"));
        assert_eq!(Cursor::new(&[0x03]).nullable(), Err("a length is negative"));
        assert_eq!(Cursor::new(&[0x04, 1]).nullable(), Err("a length points beyond the end"));
    }
}
