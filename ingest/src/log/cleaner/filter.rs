//! What of a batch stays. Pure, but for what it remembers from one batch to the next.
//!
//! | record | then |
//! |---|---|
//! | at or above `covered`: the map knows nothing of it | stays |
//! | the last one of the range | stays, so that the range does not end in a hole, in which a reader could not reach its end |
//! | without a key | goes: nothing could ever replace it |
//! | its key has a newer record below `covered` | goes |
//! | a tombstone whose batch has a delete horizon that has come | goes, unless something of its key may be left below |
//! | any other | stays |
//!
//! | batch | then |
//! |---|---|
//! | of a transaction, or a control batch | stays as it is: see below |
//! | cannot be decoded | stays as it is |
//! | nothing of it stays, but it is its producer's last one | its header stays, with its sequence numbers (as in Kafka) |
//! | nothing of it stays | goes |
//! | tombstones of it stay, all below `covered` | gets a delete horizon, if it has none: so long from now |
//!
//! **Transactions.** Whether the records of a transaction count is told by its marker, which this does not read. So its
//! batches and its markers are not touched, their keys replace nothing, and as something older of a key may be in one of
//! them, tombstones above one stay.

use std::collections::HashMap;

use bytes::Bytes;

use super::offset_map::OffsetMap;
use crate::model::{Offset, Timestamp};
use crate::record::{BatchError, BatchHeader, BatchRewriter, Retained, without_records};

/// What is known before the first batch.
pub struct Knowledge {
    pub map: OffsetMap,
    /// The map has each key below, where it may have any. Exclusive.
    pub covered: Offset,
    /// The last offset of what is compacted.
    pub last: Offset,
    /// Where the last batch of each producer starts.
    pub producers: HashMap<i64, Offset>,
    pub now: Timestamp,
    /// What a tombstone that is met for the first time may be dropped after.
    pub horizon: Timestamp,
}

/// What becomes of a batch.
#[derive(Debug, PartialEq, Eq)]
pub enum Fate {
    Stays,
    Becomes(Bytes),
    Goes,
}

pub struct Filter {
    knows: Knowledge,
    rewriter: BatchRewriter,
    /// A batch was met that was not looked into.
    is_blind: bool,
    /// When the first of the tombstones that stay may go.
    pub next_horizon: Option<Timestamp>,
}

/// Whether the records of a batch may be looked at, and taken out of it.
pub fn may_be_touched(header: &BatchHeader) -> bool {
    !header.is_transactional() && !header.is_control()
}

impl Filter {
    pub fn new(knows: Knowledge, rewriter: BatchRewriter) -> Self {
        Self { knows, rewriter, is_blind: false, next_horizon: None }
    }

    /// Decides on the next batch, in offset order.
    pub fn judge(&mut self, batch: &Bytes) -> Result<Fate, BatchError> {
        let header = BatchHeader::read(batch)?;
        let Self { knows, rewriter, .. } = self;
        if header.base_offset >= knows.covered {
            return Ok(Fate::Stays);
        }
        if !may_be_touched(&header) {
            self.is_blind = true;
            return Ok(Fate::Stays);
        }
        let is_producers_last =
            header.producer_id >= 0 && knows.producers.get(&header.producer_id) == Some(&header.base_offset);
        if header.record_count == 0 {
            return Ok(if is_producers_last { Fate::Stays } else { Fate::Goes });
        }
        let has_expired = !self.is_blind && header.delete_horizon().is_some_and(|horizon| horizon <= knows.now);
        let horizon = (header.last_offset() < knows.covered).then_some(knows.horizon);
        let retained = rewriter.retain(batch, horizon, |record| {
            if record.offset >= knows.covered || record.offset == knows.last {
                return true;
            }
            let Some(key) = record.key else { return false };
            let is_newest = knows.map.newest(key).is_none_or(|newest| newest <= record.offset);
            is_newest && !(record.is_tombstone && has_expired)
        });
        let (retained, has_tombstones) = match retained {
            Ok(retained) => retained,
            Err(error) => {
                tracing::debug!(offset = %header.base_offset, %error, "a batch that cannot be decoded is not compacted");
                self.is_blind = true;
                return Ok(Fate::Stays);
            }
        };
        let (fate, after) = match retained {
            Retained::All => (Fate::Stays, Some(header)),
            Retained::Part(rest) => {
                let after = BatchHeader::read(&rest)?;
                (Fate::Becomes(rest), Some(after))
            }
            Retained::Nothing if is_producers_last => (Fate::Becomes(without_records(&header).into()), None),
            Retained::Nothing => (Fate::Goes, None),
        };
        let horizon = after.filter(|_| has_tombstones).and_then(|header| header.delete_horizon());
        // One that has come and not been acted upon is held back by something that a further round would not change.
        if let Some(horizon) = horizon.filter(|horizon| *horizon > self.knows.now) {
            self.next_horizon = Some(self.next_horizon.map_or(horizon, |next| next.min(horizon)));
        }
        Ok(fate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::TimestampType;
    use crate::record::testing::{reseal, with_producer};
    use crate::record::{BatchEncoder, Record};

    const NOW: i64 = 1000;

    /// A batch at `base` of keys that name themselves, upper case for tombstones, `-` for none.
    fn batch(base: i64, keys: &str) -> Bytes {
        let mut encoder = BatchEncoder::new(TimestampType::CreateTime);
        for (offset, key) in (base..).zip(keys.chars()) {
            let name = key.to_ascii_lowercase().to_string();
            let value = (key.is_lowercase() || key == '-').then_some(&b"v"[..]);
            let key = (key != '-').then_some(name.as_bytes());
            encoder.push(Offset(offset), Timestamp(500), key, value, std::iter::empty());
        }
        encoder.finish().unwrap()
    }

    fn filter(newest: &[(&str, i64)], covered: i64, last: i64) -> Filter {
        let mut map = OffsetMap::new(1 << 10, 100);
        assert!(newest.iter().all(|(key, offset)| map.put(key.as_bytes(), Offset(*offset))));
        let (now, horizon) = (Timestamp(NOW), Timestamp(NOW + 100));
        let producers = HashMap::from([(7, Offset(20))]);
        let knows = Knowledge { map, covered: Offset(covered), last: Offset(last), producers, now, horizon };
        Filter::new(knows, BatchRewriter::new(1 << 20))
    }

    /// The offsets that stay.
    fn offsets(fate: &Fate, before: &Bytes) -> Vec<i64> {
        let batch = match fate {
            Fate::Stays => before,
            Fate::Becomes(batch) => batch,
            Fate::Goes => return Vec::new(),
        };
        let mut offsets = Vec::new();
        let read = |record: Record<'_>| -> Result<(), BatchError> {
            offsets.push(record.offset.0);
            Ok(())
        };
        crate::record::BatchDecoder::new(1 << 20).for_each(batch, read).unwrap();
        offsets
    }

    #[test]
    fn the_newest_of_each_key_stays() {
        let mut filter = filter(&[("a", 14), ("b", 11), ("c", 40)], 50, 99);
        let records = batch(10, "abc-ad");
        let fate = filter.judge(&records).unwrap();
        assert_eq!(offsets(&fate, &records), [11, 14, 15], "a of 10, c and the one without a key go");
        assert_eq!(filter.judge(&batch(30, "cc")).unwrap(), Fate::Goes);
        assert_eq!(filter.judge(&batch(40, "c")).unwrap(), Fate::Stays);
        // What the map does not cover stays, and so does the last record of all.
        let records = batch(48, "ac-a");
        assert_eq!(offsets(&filter.judge(&records).unwrap(), &records), [50, 51]);
        let records = batch(49, "-");
        assert_eq!(
            super::Filter { knows: Knowledge { last: Offset(49), ..filter.knows }, ..filter }.judge(&records).unwrap(),
            Fate::Stays
        );
    }

    #[test]
    fn a_tombstone_gets_a_horizon_and_goes_after_it() {
        let mut first = filter(&[], 50, 99);
        let Fate::Becomes(marked) = first.judge(&batch(10, "aB")).unwrap() else { panic!() };
        let header = BatchHeader::read(&marked).unwrap();
        assert_eq!(
            (header.delete_horizon(), first.next_horizon),
            (Some(Timestamp(NOW + 100)), Some(Timestamp(NOW + 100)))
        );
        let later = |now: i64, last: i64| {
            let mut filter = filter(&[], 50, last);
            filter.knows.now = Timestamp(now);
            (filter.judge(&marked).unwrap(), filter.next_horizon)
        };
        assert_eq!(later(NOW + 99, 99), (Fate::Stays, Some(Timestamp(NOW + 100))));
        let (fate, next) = later(NOW + 100, 99);
        assert_eq!((offsets(&fate, &marked), next), (vec![10], None));
        assert_eq!(later(NOW + 100, 11), (Fate::Stays, None), "the last record of the range");
        // What is not covered to its end gets no horizon: something older of its keys may be left.
        assert_eq!(filter(&[], 11, 99).judge(&batch(10, "aB")).unwrap(), Fate::Stays);
    }

    #[test]
    fn transactions_are_not_touched_and_hold_tombstones_back() {
        for bit in [0x10, 0x20, 0x30] {
            let mut transactional = batch(10, "aa").to_vec();
            transactional[22] |= bit;
            let transactional = Bytes::from(reseal(transactional));
            let Fate::Becomes(marked) = filter(&[], 50, 99).judge(&batch(20, "A")).unwrap() else { panic!() };
            let mut filter = filter(&[("a", 20)], 50, 99);
            filter.knows.now = Timestamp(NOW + 100);
            assert_eq!(filter.judge(&transactional).unwrap(), Fate::Stays);
            assert_eq!(filter.judge(&marked).unwrap(), Fate::Stays);
            let without = &mut super::Filter { is_blind: false, ..filter };
            assert_eq!(without.judge(&marked).unwrap(), Fate::Goes);
        }
    }

    #[test]
    fn what_cannot_be_decoded_stays() {
        let mut damaged = batch(10, "ab").to_vec();
        damaged[64] = 9;
        let mut filter = filter(&[("a", 20), ("b", 21)], 50, 99);
        assert_eq!(filter.judge(&reseal(damaged).into()).unwrap(), Fate::Stays);
        assert!(filter.is_blind);
    }

    #[test]
    fn the_last_batch_of_a_producer_leaves_its_header() {
        let produced = |base: i64, id| {
            let mut batch = with_producer(batch(0, "aa").to_vec(), id, 0, 4);
            batch[..8].copy_from_slice(&base.to_be_bytes());
            Bytes::from(batch)
        };
        let mut filter = filter(&[("a", 40)], 50, 99);
        assert_eq!(filter.judge(&produced(10, 7)).unwrap(), Fate::Goes, "it sent another one since");
        let Fate::Becomes(emptied) = filter.judge(&produced(20, 7)).unwrap() else { panic!() };
        let header = BatchHeader::read(&emptied).unwrap();
        assert_eq!((header.record_count, header.base_sequence, header.next_offset()), (0, 4, Offset(22)));
        assert_eq!(filter.judge(&emptied).unwrap(), Fate::Stays);
        filter.knows.producers.clear();
        assert_eq!(filter.judge(&emptied).unwrap(), Fate::Goes, "forgotten");
    }
}
