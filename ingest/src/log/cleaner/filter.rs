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
//! | of an aborted transaction | its records go, but for the last of the range |
//! | cannot be decoded | stays as it is |
//! | nothing of it stays, but it is its producer's last one | its header stays, with its sequence numbers (as in Kafka) |
//! | nothing of it stays | goes |
//! | tombstones of it stay, all below `covered` | gets a delete horizon, if it has none: so long from now |
//!
//! | marker | then |
//! |---|---|
//! | a batch of its transaction was met in this round, be it one that goes | stays |
//! | none was | gets a delete horizon, if it has none |
//! | none was, and its horizon has come | goes, unless it is the last record of the range, or not below every producer snapshot |
//! | another control batch | stays as it is |
//!
//! So readers that got some of a transaction find its end for as long as readers find a tombstone, and a recovery that
//! begins anywhere finds the end of each transaction that it finds begun. What is compacted lies below the last stable
//! offset, so that every transaction in it has ended, if not in it then above.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use super::offset_map::OffsetMap;
use crate::log::transactions::AbortedTransaction;
use crate::model::{Offset, Timestamp};
use crate::record::{BatchError, BatchHeader, BatchRewriter, Retained, decode_marker, without_records};

/// What is known before the first batch.
pub struct Knowledge {
    pub map: OffsetMap,
    /// The map has each key below, where it may have any. Exclusive.
    pub covered: Offset,
    /// The last offset of what is compacted.
    pub last: Offset,
    /// Where the last batch of each producer starts.
    pub producers: HashMap<i64, Offset>,
    /// Where the oldest producer snapshot is.
    pub snapshots_from: Offset,
    pub now: Timestamp,
    /// What a tombstone, or a marker of nothing, that is met for the first time may be dropped after.
    pub horizon: Timestamp,
}

/// What becomes of a batch.
#[derive(Debug, PartialEq, Eq)]
pub enum Fate {
    Stays,
    Becomes(Bytes),
    Goes,
    /// The marker at this offset goes, and what is known of its transaction with it.
    MarkerGoes(Offset),
}

/// Which batches of a segment are of aborted transactions.
#[derive(Default)]
pub struct AbortedBatches {
    /// By producer, in the order of the log.
    by_producer: HashMap<i64, Vec<AbortedTransaction>>,
}

impl AbortedBatches {
    /// `aborted` is by first offset.
    pub fn of(aborted: &[AbortedTransaction]) -> Self {
        let mut by_producer = HashMap::<_, Vec<_>>::new();
        aborted.iter().for_each(|one| by_producer.entry(one.producer_id).or_default().push(*one));
        Self { by_producer }
    }

    pub fn contains(&self, header: &BatchHeader) -> bool {
        let Some(aborted) = self.by_producer.get(&header.producer_id) else { return false };
        // A producer has one transaction at a time.
        let begun = aborted.partition_point(|one| one.first_offset <= header.base_offset);
        begun.checked_sub(1).and_then(|at| aborted.get(at)).is_some_and(|one| one.holds(header))
    }
}

pub struct Filter {
    knows: Knowledge,
    rewriter: BatchRewriter,
    /// Of the segment at hand.
    pub aborted: AbortedBatches,
    /// Producers of which a transactional batch was met, and no marker since.
    met: HashSet<i64>,
    /// A batch was met that was not looked into.
    is_blind: bool,
    /// When the first of the tombstones and markers that stay may go.
    pub next_horizon: Option<Timestamp>,
}

impl Filter {
    pub fn new(knows: Knowledge, rewriter: BatchRewriter) -> Self {
        let aborted = AbortedBatches::default();
        Self { knows, rewriter, aborted, met: HashSet::new(), is_blind: false, next_horizon: None }
    }

    /// Decides on the next batch, in offset order.
    pub fn judge(&mut self, batch: &Bytes) -> Result<Fate, BatchError> {
        let header = BatchHeader::read(batch)?;
        if header.base_offset >= self.knows.covered {
            return Ok(Fate::Stays);
        }
        if header.is_control() {
            return self.judge_marker(batch, &header);
        }
        if header.is_transactional() {
            self.met.insert(header.producer_id);
        }
        let is_aborted = self.aborted.contains(&header);
        let Self { knows, rewriter, .. } = self;
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
            if is_aborted {
                return false;
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
        horizon.into_iter().for_each(|horizon| self.note_horizon(horizon));
        Ok(fate)
    }

    fn judge_marker(&mut self, batch: &Bytes, header: &BatchHeader) -> Result<Fate, BatchError> {
        if decode_marker(batch)?.is_none() || self.met.remove(&header.producer_id) {
            return Ok(Fate::Stays);
        }
        let offset = header.base_offset;
        let Some(horizon) = header.delete_horizon() else {
            let horizon = self.knows.horizon;
            self.note_horizon(horizon);
            return Ok(Fate::Becomes(self.rewriter.with_horizon(batch, horizon)?));
        };
        let may_go = horizon <= self.knows.now && offset != self.knows.last && offset < self.knows.snapshots_from;
        if may_go {
            return Ok(Fate::MarkerGoes(offset));
        }
        self.note_horizon(horizon);
        Ok(Fate::Stays)
    }

    /// One that has come and was not acted upon is held back by something that a further round would not change.
    fn note_horizon(&mut self, horizon: Timestamp) {
        if horizon > self.knows.now {
            self.next_horizon = Some(self.next_horizon.map_or(horizon, |next| next.min(horizon)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::TimestampType;
    use crate::record::testing::{reseal, with_producer};
    use crate::record::{BatchEncoder, Record, TransactionOutcome, encode_marker};

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
        let snapshots_from = Offset(1000);
        let (covered, last) = (Offset(covered), Offset(last));
        let knows = Knowledge { map, covered, last, producers, snapshots_from, now, horizon };
        Filter::new(knows, BatchRewriter::new(1 << 20))
    }

    /// The offsets that stay.
    fn offsets(fate: &Fate, before: &Bytes) -> Vec<i64> {
        let batch = match fate {
            Fate::Stays => before,
            Fate::Becomes(batch) => batch,
            Fate::Goes | Fate::MarkerGoes(_) => return Vec::new(),
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
        let records = batch(48, "--a-");
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

    fn transactional(base: i64, keys: &str, producer: i64) -> Bytes {
        let mut sent = batch(0, keys).to_vec();
        sent[22] |= 0x10;
        sent = with_producer(sent, producer, 0, 0);
        sent[..8].copy_from_slice(&base.to_be_bytes());
        Bytes::from(sent)
    }

    fn marker(offset: i64, producer: i64, outcome: TransactionOutcome) -> Bytes {
        let mut marker = encode_marker(producer, 0, outcome, Timestamp(500)).to_vec();
        marker[..8].copy_from_slice(&offset.to_be_bytes());
        Bytes::from(marker)
    }

    #[test]
    fn what_was_aborted_goes_and_what_was_committed_counts() {
        let mut filter = filter(&[("a", 30)], 50, 44);
        let aborted = |producer_id, first, last| AbortedTransaction {
            first_offset: Offset(first),
            last_offset: Offset(last),
            producer_id,
            last_stable_offset: Offset(last + 1),
        };
        filter.aborted = AbortedBatches::of(&[aborted(8, 10, 14), aborted(9, 20, 46), aborted(8, 40, 49)]);
        let mut judged = |batch: &Bytes| offsets(&filter.judge(batch).unwrap(), batch);
        assert_eq!(judged(&transactional(10, "bc", 8)), [0; 0]);
        assert_eq!(judged(&transactional(12, "bc", 11)), [12, 13], "another producer's");
        assert_eq!(judged(&transactional(15, "ab", 8)), [16], "the producer's next transaction");
        assert_eq!(judged(&batch(20, "b")), [20], "outside of transactions");
        assert_eq!(judged(&transactional(43, "xyz", 8)), [44], "the last of the range");
    }

    #[test]
    fn a_marker_goes_some_time_after_all_of_its_transaction() {
        use TransactionOutcome::{Abort, Commit};
        for outcome in [Abort, Commit] {
            let mut first = filter(&[("a", 40)], 50, 99);
            assert_eq!(first.judge(&transactional(10, "a", 8)).unwrap(), Fate::Goes);
            assert_eq!(first.judge(&marker(11, 8, outcome)).unwrap(), Fate::Stays, "something of it was met");
            let Fate::Becomes(marked) = first.judge(&marker(12, 8, outcome)).unwrap() else { panic!() };
            assert_eq!(first.next_horizon, Some(Timestamp(NOW + 100)));
            let at = |now: i64, last: i64, snapshots_from: i64| {
                let mut filter = filter(&[], 50, last);
                filter.knows.now = Timestamp(now);
                filter.knows.snapshots_from = Offset(snapshots_from);
                (filter.judge(&marked).unwrap(), filter.next_horizon)
            };
            assert_eq!(at(NOW + 99, 99, 1000), (Fate::Stays, Some(Timestamp(NOW + 100))));
            assert_eq!(at(NOW + 100, 99, 13), (Fate::MarkerGoes(Offset(12)), None));
            assert_eq!(at(NOW + 100, 99, 12), (Fate::Stays, None), "a recovery may begin before it");
            assert_eq!(at(NOW + 100, 12, 1000), (Fate::Stays, None), "the last record of the range");
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
