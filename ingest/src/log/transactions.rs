//! Transactions as a partition knows them: those under way, which hold readers of committed data back, and those that
//! were aborted, which such readers are told of.
//!
//! ```text
//! <base>.aborted, big-endian, one entry per aborted transaction whose marker lies in the segment, in marker order:
//! version i16 = 0 | producer id i64 | first offset i64 | last offset i64, that of the marker | last stable offset i64
//!   | crc32c u32 of the entry before it
//! ```
//! The last stable offset is that after the transaction ended: no transaction that ends later begins below it, so a
//! reader of a range looks no further than the first entry that has it beyond the range's end. The content is that of
//! Kafka's `.txnindex`, with a CRC: a lost or changed entry would show what was aborted. Hence another name. The file
//! is made when the first transaction is aborted; most partitions never have one.
//!
//! Invariants:
//! - An entry is in the file before readers may pass its marker. Where it cannot be written the partition goes offline.
//! - What lies below the offset of a producer snapshot was synced before the snapshot was written. So recovery keeps
//!   those entries and makes the others anew, from the batches after the snapshot.

use std::collections::{BTreeMap, BTreeSet};

use super::index::Entry;
use crate::model::Offset;
use crate::record::BatchHeader;

/// Extension of the file.
pub const ABORTED: &str = "aborted";
const VERSION: i16 = 0;

/// A transaction that was aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AbortedTransaction {
    pub first_offset: Offset,
    /// Where its marker is.
    pub last_offset: Offset,
    pub producer_id: i64,
    /// Of the partition, after the transaction had ended.
    pub last_stable_offset: Offset,
}

impl AbortedTransaction {
    /// Whether the batch is one of the transaction.
    pub fn holds(&self, batch: &BatchHeader) -> bool {
        batch.is_transactional()
            && batch.producer_id == self.producer_id
            && (self.first_offset..self.last_offset).contains(&batch.base_offset)
    }
}

impl Entry for AbortedTransaction {
    const LEN: usize = 38;
    /// Each is written when its transaction ends: it is needed after a crash, and rare.
    const UNWRITTEN_MAX: usize = 0;

    fn write(self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&VERSION.to_be_bytes());
        out.extend_from_slice(&self.producer_id.to_be_bytes());
        for offset in [self.first_offset, self.last_offset, self.last_stable_offset] {
            out.extend_from_slice(&offset.0.to_be_bytes());
        }
        let crc = crc32c::crc32c(&out[start..]);
        out.extend_from_slice(&crc.to_be_bytes());
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (body, crc) = bytes.split_last_chunk()?;
        let rest = body.strip_prefix(&VERSION.to_be_bytes())?;
        let mut numbers = rest.as_chunks().0.iter().map(|number| i64::from_be_bytes(*number));
        let intact = crc32c::crc32c(body) == u32::from_be_bytes(*crc);
        let mut next = || numbers.next().filter(|_| intact);
        let producer_id = next()?;
        let [first_offset, last_offset, last_stable_offset] = [next()?, next()?, next()?].map(Offset);
        Some(Self { first_offset, last_offset, producer_id, last_stable_offset })
    }
}

/// Where readers of committed data stop.
#[derive(Debug, Default)]
pub struct Unstable {
    /// First offsets of transactions without a marker.
    open: BTreeSet<Offset>,
    /// First offset and marker of those that have one which may not be durable yet. A reader that passed the marker
    /// before it is could see a transaction that a crash then opens again.
    ended: BTreeMap<Offset, Offset>,
}

impl Unstable {
    pub fn new(open: BTreeSet<Offset>) -> Self {
        Self { open, ended: BTreeMap::new() }
    }

    pub fn begin(&mut self, first: Offset) {
        self.open.insert(first);
    }

    pub fn end(&mut self, first: Offset, marker: Offset) {
        if self.open.remove(&first) {
            self.ended.insert(first, marker);
        }
    }

    /// First offset of the earliest transaction whose end is not known to readers below `high_watermark`.
    pub fn first(&mut self, high_watermark: Offset) -> Option<Offset> {
        self.ended.retain(|_, marker| *marker >= high_watermark);
        let ended = self.ended.keys().next();
        self.open.first().into_iter().chain(ended).min().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> AbortedTransaction {
        AbortedTransaction {
            first_offset: Offset(5),
            last_offset: Offset(9),
            producer_id: 1000,
            last_stable_offset: Offset(7),
        }
    }

    #[test]
    fn golden_entry() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/aborted-v0.bin");
        let mut bytes = Vec::new();
        entry().write(&mut bytes);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &bytes).unwrap();
        }
        let stored = std::fs::read(&path).unwrap();
        assert_eq!((bytes.len(), &bytes), (AbortedTransaction::LEN, &stored));
        assert_eq!(AbortedTransaction::read(&stored), Some(entry()));
        for at in 0..stored.len() {
            let mut bad = stored.clone();
            bad[at] ^= 1;
            assert_eq!(AbortedTransaction::read(&bad), None, "byte {at}");
        }
    }

    #[test]
    fn an_end_counts_once_its_marker_is_durable() {
        let mut unstable = Unstable::new(BTreeSet::from([Offset(3)]));
        unstable.begin(Offset(5));
        unstable.end(Offset(3), Offset(8));
        assert_eq!(unstable.first(Offset(8)), Some(Offset(3)));
        assert_eq!(unstable.first(Offset(9)), Some(Offset(5)));
        unstable.end(Offset(5), Offset(9));
        unstable.end(Offset(5), Offset(99));
        assert_eq!(unstable.first(Offset(10)), None);
    }
}
