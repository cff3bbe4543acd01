//! The timestamps of a split, block by block, so that a search reads those of the few blocks it needs.
//!
//! A file of the package, named [`FILE`]. All integers are little-endian.
//!
//! ```text
//! 0        blocks, back to back; block b holds documents b * 1024 .. (b + 1) * 1024:
//!             timestamp - min of each document in `bits` bits, the lowest bit first, padded to a whole byte,
//!             where `bits` is what max - min of the block needs
//! T           per block: 8 min | 8 max, milliseconds since the Unix epoch
//! end-4    4  number of documents
//! ```
//!
//! The part from T on is read while a split is opened and so lies in the footer. Messages come mostly in time order:
//! the bounds of its blocks say of most documents all that a sort or a time range asks.

use std::io;
use std::sync::Arc;

use bytes::BufMut;
use tantivy::directory::{FileSlice, OwnedBytes};
use tantivy::{DocId, HasLen};
use thermocline_ingest::model::Timestamp;

use super::SplitError;

/// Name of the file in the package.
pub(super) const FILE: &str = "times";
/// Documents of a block.
pub const TIMES_BLOCK_DOCS: u32 = 1024;
const ENTRY_LEN: usize = 16;
const TRAILER_LEN: usize = 4;

/// The timestamps of a split. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Times {
    blocks: Arc<[Block]>,
    file: FileSlice,
    docs: u32,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    min: i64,
    max: i64,
    /// Where its values are in the file.
    start: usize,
    end: usize,
}

/// The timestamps of one block.
#[derive(Clone, Debug)]
pub struct TimesBlock {
    min: i64,
    bits: usize,
    bytes: OwnedBytes,
}

impl Times {
    /// The file for these timestamps, in the order of the documents.
    pub(super) fn write(timestamps: impl Iterator<Item = i64>) -> Vec<u8> {
        let (mut file, mut table, mut docs) = (Vec::new(), Vec::new(), 0_u32);
        let mut block = Vec::with_capacity(TIMES_BLOCK_DOCS as usize);
        for timestamp in timestamps {
            block.push(timestamp);
            docs += 1;
            if block.len() == TIMES_BLOCK_DOCS as usize {
                write_block(&mut block, &mut file, &mut table);
            }
        }
        write_block(&mut block, &mut file, &mut table);
        file.put_slice(&table);
        file.put_u32_le(docs);
        file
    }

    /// Reads the bounds of the blocks; `docs` is the number of documents of the split.
    pub(super) fn open(file: FileSlice, docs: u32) -> Result<Self, SplitError> {
        let count = docs.div_ceil(TIMES_BLOCK_DOCS) as usize;
        let table_len = count * ENTRY_LEN + TRAILER_LEN;
        if file.len() < table_len {
            return Err(SplitError::Times("it is shorter than its table"));
        }
        let (packed, table) = file.split_from_end(table_len);
        let table = table.read_bytes()?;
        let (entries, trailer) = table.split_at(count * ENTRY_LEN);
        if trailer != docs.to_le_bytes() {
            return Err(SplitError::Times("it is of another number of documents"));
        }
        let (mut blocks, mut start) = (Vec::with_capacity(count), 0);
        for (at, entry) in (0..).zip(entries.as_chunks::<ENTRY_LEN>().0) {
            let (min, max) = (i64_at(entry, 0), i64_at(entry, 8));
            if min > max {
                return Err(SplitError::Times("a block ends before it begins"));
            }
            let len = (docs - at * TIMES_BLOCK_DOCS).min(TIMES_BLOCK_DOCS) as usize;
            let end = start + (len * bits(min, max)).div_ceil(8);
            blocks.push(Block { min, max, start, end });
            start = end;
        }
        if start != packed.len() {
            return Err(SplitError::Times("its blocks are not as long as its table says"));
        }
        Ok(Self { blocks: blocks.into(), file: packed, docs })
    }

    /// As [`Self::open`], for a split that has no such file.
    pub(super) fn of(timestamps: impl Iterator<Item = i64>, docs: u32) -> Result<Self, SplitError> {
        Self::open(FileSlice::from(Self::write(timestamps)), docs)
    }

    /// Which block a document lies in.
    pub fn block_of(doc: DocId) -> usize {
        (doc / TIMES_BLOCK_DOCS) as usize
    }

    /// Smallest and largest timestamp of a block; of one that does not exist, those that exclude nothing.
    pub fn bounds(&self, block: usize) -> (Timestamp, Timestamp) {
        let bounds = self.blocks.get(block).map_or((i64::MIN, i64::MAX), |block| (block.min, block.max));
        (Timestamp(bounds.0), Timestamp(bounds.1))
    }

    pub fn docs(&self) -> u32 {
        self.docs
    }

    /// Reads a block.
    pub fn read(&self, block: usize) -> io::Result<TimesBlock> {
        let missing =
            || io::Error::new(io::ErrorKind::InvalidInput, format!("the split has no block {block} of times"));
        let Block { min, max, start, end } = *self.blocks.get(block).ok_or_else(missing)?;
        let bits = bits(min, max);
        // Nothing to read where all timestamps are the same.
        let bytes = if bits == 0 { OwnedBytes::empty() } else { self.file.read_bytes_slice(start..end)? };
        Ok(TimesBlock { min, bits, bytes })
    }
}

impl TimesBlock {
    /// The timestamp of a document of this block.
    pub fn get(&self, doc: DocId) -> Timestamp {
        let at = (doc % TIMES_BLOCK_DOCS) as usize * self.bits;
        let bytes = self.bytes.get(at / 8..).unwrap_or_default();
        let mut word = [0; 16];
        let len = bytes.len().min(word.len());
        word[..len].copy_from_slice(&bytes[..len]);
        let value = (u128::from_le_bytes(word) >> (at % 8)) as u64 & mask(self.bits);
        Timestamp(self.min.wrapping_add(value.cast_signed()))
    }
}

/// Bits of `max - min`.
fn bits(min: i64, max: i64) -> usize {
    (u64::BITS - max.abs_diff(min).leading_zeros()) as usize
}

fn mask(bits: usize) -> u64 {
    if bits >= u64::BITS as usize { u64::MAX } else { (1 << bits) - 1 }
}

fn i64_at(entry: &[u8; ENTRY_LEN], at: usize) -> i64 {
    entry.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| i64::from_le_bytes(*bytes))
}

/// Appends a block and its bounds, and empties it.
fn write_block(block: &mut Vec<i64>, file: &mut Vec<u8>, table: &mut Vec<u8>) {
    let (Some(min), Some(max)) = (block.iter().copied().min(), block.iter().copied().max()) else { return };
    table.put_i64_le(min);
    table.put_i64_le(max);
    let bits = bits(min, max);
    let (mut word, mut filled) = (0_u128, 0);
    for timestamp in block.drain(..) {
        word |= u128::from(timestamp.abs_diff(min)) << filled;
        filled += bits;
        while filled >= 8 {
            file.put_u8(word as u8);
            word >>= 8;
            filled -= 8;
        }
    }
    if filled > 0 {
        file.put_u8(word as u8);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_written_is_read(
            timestamps in prop_oneof![
                prop::collection::vec(any::<i64>(), 0..40),
                prop::collection::vec(-5_i64..5, 0..3000),
                prop::collection::vec(1_700_000_000_000_i64..1_700_000_900_000, 0..3000),
            ],
        ) {
            let docs = timestamps.len() as u32;
            let times = Times::of(timestamps.iter().copied(), docs).unwrap();
            for (doc, timestamp) in (0..).zip(&timestamps) {
                let block = Times::block_of(doc);
                let (min, max) = times.bounds(block);
                prop_assert!(min.0 <= *timestamp && *timestamp <= max.0);
                prop_assert_eq!(times.read(block).unwrap().get(doc), Timestamp(*timestamp));
            }
        }

        #[test]
        fn strangers_are_refused_or_harmless(bytes in prop::collection::vec(any::<u8>(), 0..80), docs in 0_u32..3000) {
            if let Ok(times) = Times::open(FileSlice::from(bytes), docs) {
                for doc in 0..docs {
                    let _ = times.read(Times::block_of(doc)).map(|block| block.get(doc));
                }
            }
        }
    }
}
