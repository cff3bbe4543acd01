//! The newest offset of each key, in memory of a fixed size.
//!
//! A slot has 24 bytes: two independent 64-bit hashes of the key, and the offset. Keys themselves are not kept. Two
//! keys of the same 128 bits would count as one, and the older one's record be lost; the hashes are keyed at random for
//! each map, so that nobody can look for such keys, and by chance there are none.

use std::hash::{BuildHasher, RandomState};

use crate::model::Offset;

/// Two hashes and the offset after the newest one; an offset of 0 is an empty slot, which no such offset is.
type Slot = [u64; 3];

pub const SLOT_BYTES: usize = size_of::<Slot>();
/// The table takes keys up to nine tenths of its slots: with more, looking one up gets long.
const LOAD: (usize, usize) = (9, 10);

pub struct OffsetMap {
    /// Zeroed memory that is touched only where a key falls.
    slots: Vec<Slot>,
    len: usize,
    len_max: usize,
    hashers: [RandomState; 2],
}

impl OffsetMap {
    /// For at most `records` keys, in at most `memory_bytes`; for one key at least.
    pub fn new(memory_bytes: usize, records: u64) -> Self {
        let (share, of) = LOAD;
        let wanted = usize::try_from(records).unwrap_or(usize::MAX).saturating_add(1).saturating_mul(of) / share;
        let slots = wanted.saturating_add(1).min(memory_bytes / SLOT_BYTES).max(2);
        let len_max = (slots * share / of).max(1);
        Self { slots: vec![[0; 3]; slots], len: 0, len_max, hashers: [RandomState::new(), RandomState::new()] }
    }

    /// Notes that `key` is at `offset`, the largest so far. False where there is no room for one more key.
    pub fn put(&mut self, key: &[u8], offset: Offset) -> bool {
        let hashes = self.hashes(key);
        let at = self.find(hashes);
        let Some(slot) = self.slots.get_mut(at) else { return false };
        if slot[2] == 0 {
            if self.len >= self.len_max {
                return false;
            }
            self.len += 1;
        }
        *slot = [hashes[0], hashes[1], offset.next().0.cast_unsigned()];
        true
    }

    /// The newest offset of `key`, if it was put.
    pub fn newest(&self, key: &[u8]) -> Option<Offset> {
        let slot = self.slots.get(self.find(self.hashes(key)))?;
        (slot[2] != 0).then(|| Offset(slot[2].cast_signed() - 1))
    }

    fn hashes(&self, key: &[u8]) -> [u64; 2] {
        self.hashers.each_ref().map(|hasher| hasher.hash_one(key))
    }

    /// The slot of these hashes, or the empty one where they belong. Ends, as there is always an empty one.
    fn find(&self, hashes: [u64; 2]) -> usize {
        let count = self.slots.len();
        let mut at = usize::try_from(hashes[0] % count as u64).unwrap_or(0);
        while self.slots.get(at).is_some_and(|slot| slot[2] != 0 && slot[..2] != hashes) {
            at = (at + 1) % count;
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_map_until_it_is_full(keys in prop::collection::vec(0..200_u32, 0..400), slots in 1..150_usize) {
            let mut map = OffsetMap::new(slots * SLOT_BYTES, 10_000);
            let mut model = HashMap::new();
            for (offset, key) in (0..).map(Offset).zip(&keys) {
                let name = key.to_be_bytes();
                if map.put(&name, offset) {
                    model.insert(name, offset);
                } else {
                    prop_assert!(!model.contains_key(&name) && model.len() == map.len_max, "{} keys", model.len());
                }
            }
            for key in 0..200_u32 {
                let name = key.to_be_bytes();
                prop_assert_eq!(map.newest(&name), model.get(&name).copied());
            }
            prop_assert!(map.slots.len() * SLOT_BYTES <= slots.max(2) * SLOT_BYTES);
        }
    }

    #[test]
    fn it_is_no_larger_than_needed() {
        let map = OffsetMap::new(1 << 30, 90);
        assert!((91..110).contains(&map.slots.len()) && map.len_max >= 90, "{}", map.slots.len());
        let mut least = OffsetMap::new(0, 0);
        assert!(least.put(b"a", Offset(0)) && least.put(b"a", Offset(7)) && !least.put(b"b", Offset(8)));
        assert_eq!((least.newest(b"a"), least.newest(b"b")), (Some(Offset(7)), None));
    }
}
