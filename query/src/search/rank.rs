//! The order of hits: one total order per sort, so that pages are stable and two tiers merge without ties.
//!
//! A hit's place is its [`SortKey`]: rank first (smaller ranks come first, whatever the sort), then topic, partition
//! and offset. Ranks are made so that plain integer order is page order: the bitwise complement turns an order around
//! without losing a value, and a float's bits, mirrored below zero, order as the floats do.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use thermocline_ingest::model::{Offset, PartitionId, Timestamp, TopicName};

/// The order in which hits are returned. Equal ranks are ordered by topic, partition and offset, ascending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Sort {
    /// Largest timestamp first.
    #[default]
    NewestFirst,
    /// Smallest timestamp first.
    OldestFirst,
    /// Best BM25 score first. Scores are relative to the split a message lies in.
    Score,
}

/// Where a hit stands by timestamp or score alone; smaller comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank(pub(crate) i64);

/// The place of a hit in the answer; unique, as a record has one place in one partition.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SortKey {
    pub rank: Rank,
    pub topic: TopicName,
    pub partition: PartitionId,
    pub offset: Offset,
}

/// The `k` smallest keys of those offered.
pub(crate) struct TopK<K> {
    k: usize,
    /// Largest key on top: the one that goes when a better one comes.
    heap: BinaryHeap<K>,
}

impl Rank {
    pub fn newest(timestamp: Timestamp) -> Self {
        Self(!timestamp.0)
    }

    pub fn oldest(timestamp: Timestamp) -> Self {
        Self(timestamp.0)
    }

    /// NaN ranks last.
    pub fn score(score: f32) -> Self {
        let score = if score.is_nan() { f32::NEG_INFINITY } else { score };
        Self(!i64::from(mirrored(score.to_bits().cast_signed())))
    }

    /// The score this rank was made from.
    pub fn to_score(self) -> f32 {
        let bits = i32::try_from(!self.0).unwrap_or(i32::MIN);
        f32::from_bits(mirrored(bits).cast_unsigned())
    }
}

/// Its own inverse: bits of a negative float with all but the sign turned over, so that integer order is float order.
fn mirrored(bits: i32) -> i32 {
    if bits < 0 { bits ^ i32::MAX } else { bits }
}

impl<K: Ord> TopK<K> {
    pub fn new(k: usize) -> Self {
        Self { k, heap: BinaryHeap::new() }
    }

    pub fn offer(&mut self, key: K) {
        if self.heap.len() < self.k {
            self.heap.push(key);
        } else if let Some(mut worst) = self.heap.peek_mut()
            && key.cmp(&worst) == Ordering::Less
        {
            *worst = key;
        }
    }

    /// Whether nothing at or behind `best` can still change the result. Never for `k` = 0, where only counting matters.
    pub fn is_certain_before(&self, best: &K) -> bool {
        self.k > 0 && self.heap.len() == self.k && self.heap.peek().is_some_and(|worst| worst <= best)
    }

    /// The keys in ascending order.
    pub fn into_sorted(self) -> Vec<K> {
        self.heap.into_sorted_vec()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranks_order_as_sorts_do(a in any::<i64>(), b in any::<i64>(), x in any::<f32>(), y in any::<f32>()) {
            prop_assert_eq!(Rank::newest(Timestamp(a)).cmp(&Rank::newest(Timestamp(b))), b.cmp(&a));
            prop_assert_eq!(Rank::oldest(Timestamp(a)).cmp(&Rank::oldest(Timestamp(b))), a.cmp(&b));
            if !x.is_nan() && !y.is_nan() {
                prop_assert_eq!(Rank::score(x).cmp(&Rank::score(y)), y.total_cmp(&x));
                prop_assert_eq!(Rank::score(x).to_score().to_bits(), x.to_bits());
            }
            prop_assert!(Rank::score(f32::NAN) >= Rank::score(y) || y.is_nan());
        }

        #[test]
        fn top_k_is_sort_and_cut(mut keys in prop::collection::vec(0_u16..500, 0..80), k in 0_usize..20, probe in 0_u16..500) {
            let mut top = TopK::new(k);
            keys.iter().for_each(|key| top.offer(*key));
            let certain = top.is_certain_before(&probe);
            keys.sort_unstable();
            keys.truncate(k);
            prop_assert_eq!(certain, k > 0 && keys.len() == k && keys.last().is_some_and(|worst| *worst <= probe));
            prop_assert_eq!(top.into_sorted(), keys);
        }
    }
}
