//! What a partition remembers of idempotent producers: per producer its epoch and its last five batches.
//!
//! | incoming batch | answer |
//! |---|---|
//! | no state for its producer | taken, whatever its sequence (KIP-360) |
//! | lower epoch | INVALID_PRODUCER_EPOCH |
//! | outside of a transaction, while one of its producer is open | INVALID_TXN_STATE |
//! | higher epoch | taken if its sequence is 0, else OUT_OF_ORDER_SEQUENCE_NUMBER |
//! | first and last sequence equal one of the five | success with the offset it got then, nothing is written |
//! | first sequence follows the last one (0 follows 2^31 - 1) | taken |
//! | anything else | OUT_OF_ORDER_SEQUENCE_NUMBER |
//!
//! And of transactions: where the one under way of each producer begins. A producer with an open transaction is not
//! forgotten, however silent: its coordinator ends the transaction in time.

use std::collections::{BTreeSet, HashMap};

use crate::model::{Offset, Timestamp};
use crate::record::BatchHeader;

/// Batches remembered per producer: as many as a client may have in flight.
pub const BATCHES_PER_PRODUCER: usize = 5;
/// Producers remembered per partition; past it the longest silent ones are forgotten.
pub const PRODUCERS_MAX: usize = 100_000;
/// Share of them that is forgotten at once, so that a full table is not searched for each new one.
const FORGET_SHARE: usize = 16;

/// A batch that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequencedBatch {
    pub first_sequence: i32,
    pub last_sequence: i32,
    pub base_offset: Offset,
    /// Its log append time; NONE where its topic kept the producer's times.
    pub log_append_time: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Producer {
    pub epoch: i16,
    /// When its last batch came.
    pub last_append: Timestamp,
    /// Oldest first, 1 to [`BATCHES_PER_PRODUCER`].
    pub batches: Vec<SequencedBatch>,
    /// First offset of its transaction that is under way here.
    pub open: Option<Offset>,
}

/// All producers of one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProducerState {
    pub(super) producers: HashMap<i64, Producer>,
    /// First offsets of all transactions under way.
    open: BTreeSet<Offset>,
}

/// Why a batch does not fit what its producer sent before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SequenceError {
    Epoch {
        current: i16,
    },
    OutOfOrder {
        expected: i32,
    },
    /// Outside of a transaction, while one is open.
    OpenTransaction {
        since: Offset,
    },
}

/// The sequence `n` places after `sequence`; 0 comes after `i32::MAX`.
fn sequence_after(sequence: i32, n: i32) -> i32 {
    let sum = i64::from(sequence) + i64::from(n);
    i32::try_from(sum).unwrap_or_else(|_| i32::try_from(sum - (1 << 31)).unwrap_or(0))
}

impl ProducerState {
    /// Looks a batch up: Some is the earlier write of a batch sent again.
    pub fn check(&self, header: &BatchHeader) -> Result<Option<SequencedBatch>, SequenceError> {
        let Some(known) = self.producers.get(&header.producer_id) else { return Ok(None) };
        let first = header.base_sequence;
        if header.producer_epoch < known.epoch {
            return Err(SequenceError::Epoch { current: known.epoch });
        }
        if header.producer_epoch > known.epoch {
            if let (Some(since), false) = (known.open, header.is_transactional()) {
                return Err(SequenceError::OpenTransaction { since });
            }
            return if first == 0 { Ok(None) } else { Err(SequenceError::OutOfOrder { expected: 0 }) };
        }
        let last = sequence_after(first, header.last_offset_delta);
        if let Some(same) = known.batches.iter().find(|b| (b.first_sequence, b.last_sequence) == (first, last)) {
            return Ok(Some(*same));
        }
        if let (Some(since), false) = (known.open, header.is_transactional()) {
            return Err(SequenceError::OpenTransaction { since });
        }
        let expected = known.batches.last().map_or(0, |batch| sequence_after(batch.last_sequence, 1));
        if first == expected { Ok(None) } else { Err(SequenceError::OutOfOrder { expected }) }
    }

    /// Remembers a batch that was written; `header` carries its real base offset. Batches without a producer are
    /// ignored. Some is the first offset of a transaction that begins with it.
    pub fn record(&mut self, header: &BatchHeader, log_append_time: Timestamp, now: Timestamp) -> Option<Offset> {
        if header.producer_id < 0 {
            return None;
        }
        if self.producers.len() >= PRODUCERS_MAX && !self.producers.contains_key(&header.producer_id) {
            self.forget_longest_silent();
        }
        let producer = self.producers.entry(header.producer_id).or_insert_with(|| Producer {
            epoch: header.producer_epoch,
            last_append: now,
            batches: Vec::with_capacity(BATCHES_PER_PRODUCER),
            open: None,
        });
        if producer.epoch != header.producer_epoch {
            producer.epoch = header.producer_epoch;
            producer.batches.clear();
        }
        if producer.batches.len() >= BATCHES_PER_PRODUCER {
            producer.batches.remove(0);
        }
        producer.batches.push(SequencedBatch {
            first_sequence: header.base_sequence,
            last_sequence: sequence_after(header.base_sequence, header.last_offset_delta),
            base_offset: header.base_offset,
            log_append_time,
        });
        producer.last_append = now;
        if !header.is_transactional() || producer.open.is_some() {
            return None;
        }
        producer.open = Some(header.base_offset);
        self.open.insert(header.base_offset);
        producer.open
    }

    /// Remembers a marker that was written; `header` carries its offset. Some is the transaction that ends with it: its
    /// first offset, and what the last stable offset is without it, as far as transactions decide that.
    pub fn end(&mut self, header: &BatchHeader, now: Timestamp) -> Option<(Offset, Offset)> {
        let producer = self.producers.get_mut(&header.producer_id)?;
        if header.producer_epoch > producer.epoch {
            producer.epoch = header.producer_epoch;
            producer.batches.clear();
        }
        producer.last_append = now;
        let first = producer.open.take()?;
        self.open.remove(&first);
        Some((first, self.open.first().copied().unwrap_or(header.next_offset())))
    }

    /// Whether a transaction of the producer is open that a marker of `epoch` may end.
    pub fn is_open(&self, producer_id: i64, epoch: i16) -> bool {
        self.producers.get(&producer_id).is_some_and(|known| known.open.is_some() && known.epoch <= epoch)
    }

    /// First offsets of all transactions under way.
    pub fn open(&self) -> &BTreeSet<Offset> {
        &self.open
    }

    /// Puts a producer in that was remembered elsewhere.
    pub fn insert(&mut self, id: i64, producer: Producer) {
        self.open.extend(producer.open);
        self.producers.insert(id, producer);
    }

    /// Where the last batch of each producer starts.
    pub fn last_batches(&self) -> HashMap<i64, Offset> {
        let last = |producer: &Producer| producer.batches.last().map(|batch| batch.base_offset);
        self.producers.iter().filter_map(|(id, producer)| Some((*id, last(producer)?))).collect()
    }

    /// Forgets producers that were silent for `expiration_ms`.
    pub fn expire(&mut self, now: Timestamp, expiration_ms: i64) {
        self.producers.retain(|_, producer| {
            producer.open.is_some() || now.0.saturating_sub(producer.last_append.0) < expiration_ms
        });
    }

    fn forget_longest_silent(&mut self) {
        let mut times: Vec<_> = self.producers.values().map(|producer| producer.last_append).collect();
        let cut = times.len() / FORGET_SHARE;
        let (_, &mut newest_forgotten, _) = times.select_nth_unstable(cut);
        let mut excess = cut + 1;
        self.producers.retain(|_, producer| {
            let goes = excess > 0 && producer.open.is_none() && producer.last_append <= newest_forgotten;
            excess -= usize::from(goes);
            !goes
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(id: i64, epoch: i16, sequence: i32, records: i32, base: i64) -> BatchHeader {
        BatchHeader {
            base_offset: Offset(base),
            batch_length: 100,
            leader_epoch: 0,
            crc: 0,
            attributes: 0,
            last_offset_delta: records - 1,
            base_timestamp: Timestamp(0),
            max_timestamp: Timestamp(0),
            producer_id: id,
            producer_epoch: epoch,
            base_sequence: sequence,
            record_count: records,
        }
    }

    #[test]
    fn the_table_of_answers() {
        let mut state = ProducerState::default();
        assert_eq!(state.check(&header(7, 1, 42, 1, 0)), Ok(None), "unknown producers start anywhere");
        for n in 0..6 {
            let batch = header(7, 1, 42 + 2 * n, 2, 100 + 2 * i64::from(n));
            assert_eq!(state.check(&batch), Ok(None));
            state.record(&batch, Timestamp::NONE, Timestamp(0));
        }
        for n in 1..6 {
            let again = state.check(&header(7, 1, 42 + 2 * n, 2, 0)).unwrap().unwrap();
            assert_eq!(again.base_offset, Offset(100 + 2 * i64::from(n)));
        }
        let expected = 54;
        for (sequence, records) in [(42, 2), (44, 1), (44, 3), (53, 2), (55, 1), (0, 1)] {
            assert_eq!(state.check(&header(7, 1, sequence, records, 0)), Err(SequenceError::OutOfOrder { expected }));
        }
        assert_eq!(state.check(&header(7, 0, 54, 1, 0)), Err(SequenceError::Epoch { current: 1 }));
        assert_eq!(state.check(&header(7, 2, 54, 1, 0)), Err(SequenceError::OutOfOrder { expected: 0 }));
        assert_eq!(state.check(&header(7, 2, 0, 1, 0)), Ok(None));
        state.record(&header(7, 2, 0, 1, 0), Timestamp::NONE, Timestamp(0));
        assert_eq!(state.check(&header(7, 2, 54, 1, 0)), Err(SequenceError::OutOfOrder { expected: 1 }));
        assert_eq!(state.check(&header(-1, -1, -1, 1, 0)), Ok(None));
    }

    #[test]
    fn a_transaction_is_open_from_its_first_batch_to_its_marker() {
        let with = |header: BatchHeader, attributes| BatchHeader { attributes, ..header };
        let mut state = ProducerState::default();
        assert_eq!(state.record(&with(header(7, 1, 0, 2, 10), 0x10), Timestamp::NONE, Timestamp(0)), Some(Offset(10)));
        assert_eq!(state.record(&with(header(7, 1, 2, 2, 12), 0x10), Timestamp::NONE, Timestamp(0)), None);
        assert_eq!(state.record(&with(header(8, 0, 0, 1, 14), 0x10), Timestamp::NONE, Timestamp(0)), Some(Offset(14)));
        let since = Offset(10);
        for plain in [header(7, 1, 4, 1, 0), header(7, 2, 0, 1, 0)] {
            assert_eq!(state.check(&plain), Err(SequenceError::OpenTransaction { since }));
        }
        state.expire(Timestamp(i64::MAX), 1);
        assert!(state.is_open(7, 1) && state.is_open(7, 2) && !state.is_open(7, 0) && !state.is_open(9, 9));
        let marker = |id, epoch, base| with(header(id, epoch, -1, 1, base), 0x30);
        assert_eq!(state.end(&marker(9, 0, 15), Timestamp(1)), None);
        assert_eq!(state.end(&marker(7, 2, 15), Timestamp(1)), Some((Offset(10), Offset(14))));
        assert_eq!(state.end(&marker(8, 0, 16), Timestamp(1)), Some((Offset(14), Offset(17))));
        assert_eq!(state.end(&marker(8, 0, 17), Timestamp(1)), None);
        assert!(state.open().is_empty());
        assert_eq!(
            state.check(&header(7, 1, 4, 1, 0)),
            Err(SequenceError::Epoch { current: 2 }),
            "fenced by its marker"
        );
        assert_eq!(state.check(&header(8, 0, 1, 1, 0)), Ok(None), "the sequence goes on");
    }

    #[test]
    fn sequences_wrap_to_zero() {
        let mut state = ProducerState::default();
        let wrapping = header(1, 0, i32::MAX - 1, 3, 0);
        state.record(&wrapping, Timestamp::NONE, Timestamp(0));
        assert!(state.check(&wrapping).unwrap().is_some());
        assert_eq!(state.check(&header(1, 0, 1, 1, 0)), Ok(None));
        assert_eq!(state.check(&header(1, 0, 2, 1, 0)), Err(SequenceError::OutOfOrder { expected: 1 }));
    }

    #[test]
    fn silent_producers_are_forgotten_first_by_time_then_by_number() {
        let mut state = ProducerState::default();
        for id in 0..PRODUCERS_MAX as i64 {
            state.record(&header(id, 0, 0, 1, id), Timestamp::NONE, Timestamp(id));
        }
        state.record(&header(-1, -1, -1, 1, 0), Timestamp::NONE, Timestamp(0));
        assert_eq!(state.producers.len(), PRODUCERS_MAX);
        state.record(&header(i64::MAX, 0, 0, 1, 0), Timestamp::NONE, Timestamp(i64::MAX));
        assert_eq!(state.producers.len(), PRODUCERS_MAX - PRODUCERS_MAX / FORGET_SHARE);
        assert!(!state.producers.contains_key(&0) && state.producers.contains_key(&i64::MAX));
        state.expire(Timestamp(PRODUCERS_MAX as i64), 10);
        assert_eq!(state.producers.len(), 10);
    }
}
