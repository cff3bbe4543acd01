//! Which partition a message goes to: by its key as Kafka's default partitioner chooses, so that a key lands where
//! Kafka's own clients put it; without a key to one partition after the other.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Messages without a key stay with one partition for so many bytes (`batch.size` of Kafka's producer), so that they
/// make batches.
const STICKY_BYTES: usize = 16 << 10;

/// Chooses partitions for messages that come one after another.
pub(crate) struct Partitioner<'a> {
    partitions: usize,
    /// Shared by all requests.
    next: &'a AtomicUsize,
    sticky: usize,
    sticky_left: usize,
}

impl<'a> Partitioner<'a> {
    /// `partitions` is at least 1.
    pub(crate) fn new(partitions: usize, next: &'a AtomicUsize) -> Self {
        Self { partitions: partitions.max(1), next, sticky: 0, sticky_left: 0 }
    }

    /// Index of the partition for a message of about `size_bytes`.
    pub(crate) fn choose(&mut self, key: Option<&[u8]>, size_bytes: usize) -> usize {
        match key {
            // Kafka clears the sign bit rather than taking the absolute value.
            Some(key) => (murmur2(key) & 0x7fff_ffff) as usize % self.partitions,
            None => {
                if self.sticky_left == 0 {
                    self.sticky = self.next.fetch_add(1, Ordering::Relaxed) % self.partitions;
                    self.sticky_left = STICKY_BYTES;
                }
                self.sticky_left = self.sticky_left.saturating_sub(size_bytes.max(1));
                self.sticky
            }
        }
    }
}

/// 32-bit murmur2 with the seed of Kafka's `Utils.murmur2`.
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;
    const SEED: u32 = 0x9747_b28c;
    // Kafka hashes the length as a 32-bit number; no key comes near 4 GiB.
    let mut hash = SEED ^ data.len() as u32;
    let (words, tail) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> R;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !tail.is_empty() {
        for (index, byte) in tail.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * index);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of Kafka's own `UtilsTest.testMurmur2`.
    #[test]
    fn murmur2_is_that_of_kafka() {
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
    }

    #[test]
    fn keys_stay_and_messages_without_one_go_round() {
        let next = AtomicUsize::new(0);
        let mut partitioner = Partitioner::new(3, &next);
        let keyed: Vec<_> = (0..4).map(|_| partitioner.choose(Some(b"order-1"), 10)).collect();
        assert!(keyed.iter().all(|partition| *partition == keyed[0]));
        let large: Vec<_> = (0..6).map(|_| partitioner.choose(None, STICKY_BYTES)).collect();
        assert_eq!(large, [0, 1, 2, 0, 1, 2]);
        let small: Vec<_> = (0..6).map(|_| partitioner.choose(None, 10)).collect();
        assert_eq!(small, [0; 6], "small messages share a batch");
        assert_eq!(Partitioner::new(3, &next).choose(None, 10), 1, "the next request goes on");
    }
}
