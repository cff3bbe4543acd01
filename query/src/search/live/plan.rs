//! Which neighbouring live splits to replace by one. Pure.
//!
//! A tick may add a split, a search opens each: their number must stay small, and rewriting must stay cheap. As in a
//! log-structured tree, splits of one size tier are merged when [`MERGE_COUNT`] of them lie side by side, so that a
//! record is rewritten once per tier; from [`LARGE_BYTES`] on, where rewriting is what a busy machine has no time for,
//! when [`MERGE_COUNT_LARGE`] do. Arrivals of mixed sizes may never line up like that; past [`SPLITS_MAX`] the cheapest
//! window is merged whatever its tiers.
//!
//! A partition that has gone quiet settles: its tail is merged wherever that at least doubles the largest part of it,
//! so that thousands of quiet partitions keep a few splits each, and a trickle does not rewrite what is large.
//!
//! The archive takes over splits that do not reach beyond a segment of the log. So only splits of one segment are
//! merged, the newest segment first, for the oldest are on their way out. Where archiving lags behind, past
//! [`SEGMENTS_LOOSE`] of them those that are sealed settle: what is one split then the archive has not to merge. Past
//! [`SEGMENTS_MAX`] segments do not matter any more, and what lies in them is indexed again when it is archived.

use std::ops::Range;

/// Neighbouring splits of one tier that are merged into one.
pub(crate) const MERGE_COUNT: usize = 8;
/// The same of splits of [`LARGE_BYTES`] and more.
const MERGE_COUNT_LARGE: usize = 32;
/// Log bytes of a quarter of a second of a busy partition, about.
const LARGE_BYTES: u64 = 256 << 10;
/// Splits of one segment past which tiers no longer matter.
const SPLITS_MAX: usize = 64;
/// Splits of one partition past which merging them is as urgent as indexing, for a search looks into each of them. A
/// few for each tier are usual, and as many of a segment that is sealed and not archived.
pub(crate) const SPLITS_URGENT: usize = 96;
/// Segments with live splits past which those of a sealed segment settle.
const SEGMENTS_LOOSE: usize = 2;
/// Segments with live splits past which their borders do not matter.
const SEGMENTS_MAX: usize = 64;
/// Log bytes of the smallest tier; each further tier is [`MERGE_COUNT`] times larger.
const TIER_BASE_BYTES: u64 = 4 << 10;
/// Memory that the records of merged splits may take in one writer; what would take more stays apart.
const MERGE_MEMORY_MAX: usize = 128 << 20;

/// What a split cost to build.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// Bytes of batches read from the log.
    pub log_bytes: u64,
    /// Memory that the records took in the writer.
    pub memory_bytes: usize,
}

fn tier(cost: &Cost) -> u32 {
    tier_of(cost.log_bytes)
}

fn tier_of(log_bytes: u64) -> u32 {
    (log_bytes / TIER_BASE_BYTES).max(1).ilog(MERGE_COUNT as u64) + u32::from(log_bytes >= TIER_BASE_BYTES)
}

fn fits(window: &[Cost]) -> bool {
    window.iter().map(|cost| cost.memory_bytes).sum::<usize>() <= MERGE_MEMORY_MAX
}

/// The splits to merge next, or None where there is nothing to gain. `segments`: which segment each of them lies in,
/// ascending.
pub(crate) fn plan(splits: &[Cost], segments: &[usize], is_quiet: bool) -> Option<Range<usize>> {
    let choose = if is_quiet { plan_settle } else { plan_merge };
    let mut borders: Vec<usize> = (1..segments.len()).filter(|at| segments.get(at - 1) != segments.get(*at)).collect();
    borders.push(segments.len());
    if borders.len() > SEGMENTS_MAX {
        return choose(splits);
    }
    let starts = std::iter::once(0).chain(borders.iter().copied());
    let groups: Vec<Range<usize>> = starts.zip(borders.iter().copied()).map(|(start, end)| start..end).collect();
    groups.iter().rev().enumerate().find_map(|(newer, group)| {
        let settles = newer > 0 && groups.len() > SEGMENTS_LOOSE;
        let members = splits.get(group.clone())?;
        let plan = if settles { plan_settle(members) } else { choose(members) };
        plan.map(|range| group.start + range.start..group.start + range.end)
    })
}

/// The same of one segment.
fn plan_merge(splits: &[Cost]) -> Option<Range<usize>> {
    let tiers: Vec<u32> = splits.iter().map(tier).collect();
    let large = tier_of(LARGE_BYTES);
    let cheapest_tier = |len: usize, is_due: &dyn Fn(&[u32]) -> bool| {
        let due = tiers.windows(len).enumerate().filter(|(_, window)| is_due(window));
        let ranges = due.map(|(at, window)| (window.iter().max(), at..at + len));
        let fitting = ranges.filter(|(_, range)| splits.get(range.clone()).is_some_and(fits));
        fitting.min_by_key(|(top, _)| *top).map(|(_, range)| range)
    };
    let is_small_and_even = |window: &[u32]| window.iter().all(|tier| *tier == window[0] && *tier < large);
    // A straggler that is smaller does not keep large ones apart.
    let is_large_and_nearly_even = |window: &[u32]| {
        let top = window.iter().max().filter(|top| **top >= large);
        top.is_some_and(|top| window.iter().filter(|tier| *tier == top).count() >= window.len() / 2)
    };
    cheapest_tier(MERGE_COUNT, &is_small_and_even)
        .or_else(|| cheapest_tier(MERGE_COUNT_LARGE, &is_large_and_nearly_even))
        .or_else(|| {
            let windows = splits.windows(MERGE_COUNT).enumerate().filter(|(_, window)| fits(window));
            let cheapest = windows.min_by_key(|(_, window)| window.iter().map(|cost| cost.log_bytes).sum::<u64>());
            cheapest.filter(|_| splits.len() > SPLITS_MAX).map(|(at, window)| at..at + window.len())
        })
}

/// What to merge in a partition that nothing is written to: the longest tail whose first split is no larger than the
/// rest of it, or None.
fn plan_settle(splits: &[Cost]) -> Option<Range<usize>> {
    let worth = |tail: &[Cost]| match tail {
        [first, rest @ ..] if !rest.is_empty() => {
            fits(tail) && first.log_bytes <= rest.iter().map(|cost| cost.log_bytes).sum()
        }
        _ => false,
    };
    let at = (0..splits.len()).find(|at| splits.get(*at..).is_some_and(worth))?;
    Some(at..splits.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds splits and merges after each, as the live index does. Returns the splits and the log bytes rewritten.
    fn live_through(arrivals: &[u64]) -> (Vec<Cost>, u64) {
        let (mut splits, mut rewritten) = (Vec::new(), 0);
        for log_bytes in arrivals {
            splits.push(Cost { log_bytes: *log_bytes, memory_bytes: 1 << 10 });
            while let Some(range) = plan_merge(&splits) {
                let log_bytes = splits[range.clone()].iter().map(|cost| cost.log_bytes).sum();
                rewritten += log_bytes;
                splits.splice(range, [Cost { log_bytes, memory_bytes: 1 << 10 }]);
            }
        }
        (splits, rewritten)
    }

    #[test]
    fn a_steady_trickle_is_rewritten_once_per_tier() {
        let arrivals = vec![1000_u64; 10_000];
        let (splits, rewritten) = live_through(&arrivals);
        assert!(splits.len() <= 3 * (MERGE_COUNT - 1) + MERGE_COUNT_LARGE, "{}", splits.len());
        assert!(rewritten <= 10_000_000 * 5, "{rewritten}");
    }

    #[test]
    fn a_quiet_partition_settles_without_rewriting_what_is_large() {
        let cost = |log_bytes| Cost { log_bytes, memory_bytes: 1 << 10 };
        assert_eq!(plan_settle(&[]), None);
        assert_eq!(plan_settle(&[cost(9)]), None);
        assert_eq!(plan_settle(&[cost(1000), cost(1)]), None);
        assert_eq!(plan_settle(&[cost(1000), cost(1), cost(1)]), Some(1..3));
        assert_eq!(plan_settle(&[cost(5), cost(3), cost(4)]), Some(0..3));
        let large = Cost { log_bytes: 1, memory_bytes: MERGE_MEMORY_MAX };
        assert_eq!(plan_settle(&[large; 2]), None);
    }

    #[test]
    fn a_merge_stays_within_its_memory() {
        let large = Cost { log_bytes: 1 << 20, memory_bytes: MERGE_MEMORY_MAX / 4 };
        assert_eq!(plan_merge(&[large; 80]), None);
        let small = Cost { log_bytes: 1 << 10, memory_bytes: MERGE_MEMORY_MAX / 8 };
        assert_eq!(plan_merge(&[small; 8]), Some(0..8));
        assert_eq!(plan_merge(&[small; 7]), None);
    }

    #[test]
    fn a_backlog_of_segments_settles_and_then_loses_its_borders() {
        let plan_of = |segments: usize| {
            let owners: Vec<usize> = (0..segments * 2).map(|at| at / 2).collect();
            plan(&vec![Cost { log_bytes: 1 << 20, memory_bytes: 1 }; segments * 2], &owners, false)
        };
        assert_eq!(plan_of(SEGMENTS_LOOSE), None);
        // The newest of those that are sealed.
        assert_eq!(plan_of(SEGMENTS_LOOSE + 1), Some(2 * SEGMENTS_LOOSE - 2..2 * SEGMENTS_LOOSE));
        assert_eq!(plan_of(SEGMENTS_MAX + 1), Some(0..MERGE_COUNT_LARGE));
    }

    #[test]
    fn large_splits_are_merged_by_many_with_a_straggler_among_them() {
        let cost = |log_bytes| Cost { log_bytes, memory_bytes: 1 << 10 };
        let mut splits = vec![cost(LARGE_BYTES + 50_000); MERGE_COUNT_LARGE];
        assert_eq!(plan_merge(&splits[1..]), None);
        assert_eq!(plan_merge(&splits), Some(0..MERGE_COUNT_LARGE));
        splits[7] = cost(LARGE_BYTES / 2);
        assert_eq!(plan_merge(&splits), Some(0..MERGE_COUNT_LARGE));
        // What is merged already is not merged again for a few that are new.
        splits[0] = cost(LARGE_BYTES * 40);
        assert_eq!(plan_merge(&splits), None);
    }

    proptest! {
        #[test]
        fn splits_of_different_segments_are_not_merged(
            lens in prop::collection::vec(0_usize..40, 1..SEGMENTS_MAX),
            is_quiet in any::<bool>(),
        ) {
            let mut owners: Vec<usize> = lens.iter().enumerate().flat_map(|(n, len)| vec![n; *len]).collect();
            let mut splits = vec![Cost { log_bytes: 1000, memory_bytes: 1 }; owners.len()];
            while let Some(range) = plan(&splits, &owners, is_quiet) {
                prop_assert!(range.len() > 1);
                prop_assert!(owners[range.clone()].iter().all(|owner| *owner == owners[range.start]));
                let log_bytes = splits[range.clone()].iter().map(|cost| cost.log_bytes).sum();
                let owner = owners[range.start];
                splits.splice(range.clone(), [Cost { log_bytes, memory_bytes: 1 }]);
                owners.splice(range, [owner]);
            }
            for (n, len) in lens.iter().enumerate() {
                let left = owners.iter().filter(|owner| **owner == n).count();
                prop_assert!(left < 2 * MERGE_COUNT, "{} of {}", left, len);
            }
        }

        #[test]
        fn settling_ends_with_few_splits(arrivals in prop::collection::vec(1_u64..100_000, 0..60)) {
            let mut splits: Vec<Cost> =
                arrivals.iter().map(|log_bytes| Cost { log_bytes: *log_bytes, memory_bytes: 1 }).collect();
            while let Some(range) = plan_settle(&splits) {
                prop_assert!(range.len() > 1);
                let log_bytes = splits[range.clone()].iter().map(|cost| cost.log_bytes).sum();
                splits.splice(range, [Cost { log_bytes, memory_bytes: 1 }]);
            }
            prop_assert!(splits.len() <= 24, "{}", splits.len());
            prop_assert_eq!(splits.iter().map(|s| s.log_bytes).sum::<u64>(), arrivals.iter().sum::<u64>());
        }

        #[test]
        fn their_number_stays_small(arrivals in prop::collection::vec(prop_oneof![1_u64..2_000, 1_u64..8_000_000], 0..600)) {
            let (splits, _) = live_through(&arrivals);
            prop_assert!(splits.len() <= SPLITS_MAX, "{}", splits.len());
            prop_assert_eq!(splits.iter().map(|s| s.log_bytes).sum::<u64>(), arrivals.iter().sum::<u64>());
        }
    }
}
