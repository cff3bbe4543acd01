//! Whether a partition is to be compacted now, and how much of it. Pure.

use thermocline_config::TopicConfig;

use super::checkpoint::Checkpoint;
use crate::model::{Offset, Timestamp};

/// A sealed segment, as far as compaction cares.
#[derive(Clone, Copy, Debug)]
pub struct Sealed {
    pub base: Offset,
    /// Exclusive.
    pub end: Offset,
    pub size_bytes: u64,
    /// Since its newest record.
    pub age_ms: i64,
    /// Since the records of its first batch; None where that is not known or not asked for.
    pub oldest_age_ms: Option<i64>,
}

/// What is to be compacted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Due {
    /// So many segments, from the oldest on.
    pub count: usize,
    /// What lies below was compacted before.
    pub dirty_from: Offset,
    /// Share of their bytes that was not, 0 to 1.
    pub dirty_ratio: f64,
}

/// `sealed` is oldest first. Nothing at or above `stable` is touched: what becomes of it is not decided yet.
pub fn due(
    sealed: &[Sealed],
    checkpoint: &Checkpoint,
    stable: Offset,
    now: Timestamp,
    config: &TopicConfig,
) -> Option<Due> {
    let dirty_from = checkpoint.clean_through.max(sealed.first()?.base);
    let is_clean = |segment: &Sealed| segment.end <= dirty_from;
    let may_be = |segment: &&Sealed| {
        segment.end <= stable && (is_clean(segment) || segment.age_ms >= config.min_compaction_lag_ms)
    };
    let chosen: Vec<_> = sealed.iter().take_while(may_be).collect();
    let bytes = |dirty: bool| -> u64 {
        chosen.iter().filter(|segment| is_clean(segment) != dirty).map(|segment| segment.size_bytes).sum()
    };
    let (clean_bytes, dirty_bytes) = (bytes(false), bytes(true));
    let dirty_ratio = dirty_bytes as f64 / (clean_bytes + dirty_bytes).max(1) as f64;
    let is_overdue = |segment: &&&Sealed| {
        let age = segment.oldest_age_ms.zip(config.max_compaction_lag_ms);
        !is_clean(segment) && age.is_some_and(|(age, lag)| age > lag)
    };
    // A tombstone goes when its time has come, whether or not something is dirty.
    let has_expired = checkpoint.next_horizon.is_some_and(|horizon| horizon <= now);
    let is_due = dirty_bytes > 0
        && (dirty_ratio > config.min_cleanable_dirty_ratio || chosen.iter().any(|segment| is_overdue(&segment)))
        || has_expired;
    (is_due && !chosen.is_empty()).then_some(Due { count: chosen.len(), dirty_from, dirty_ratio })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::tests::topic_config;

    fn sealed(ages: &[i64]) -> Vec<Sealed> {
        let segment = |(n, &age_ms): (i64, &i64)| Sealed {
            base: Offset(10 * n),
            end: Offset(10 * n + 10),
            size_bytes: 100,
            age_ms,
            oldest_age_ms: Some(age_ms + 5),
        };
        (0..).zip(ages).map(segment).collect()
    }

    fn cleaned(through: i64) -> Checkpoint {
        Checkpoint { clean_through: Offset(through), ..Checkpoint::NONE }
    }

    #[test]
    fn dirt_is_put_up_with_to_a_share() {
        let config = topic_config();
        let due = |through| due(&sealed(&[0; 4]), &cleaned(through), Offset(1000), Timestamp(0), &config);
        assert_eq!(due(0), Some(Due { count: 4, dirty_from: Offset(0), dirty_ratio: 1.0 }));
        assert_eq!(due(10), Some(Due { count: 4, dirty_from: Offset(10), dirty_ratio: 0.75 }));
        assert_eq!(due(20), None, "half is not more than half");
        assert_eq!(due(15).map(|due| due.dirty_from), Some(Offset(15)), "a segment that is clean in part is dirty");
        assert_eq!(due(40), None);
        assert_eq!(super::due(&[], &cleaned(0), Offset(1000), Timestamp(0), &config), None);
    }

    #[test]
    fn lags_hold_records_back_and_push_them_on() {
        let lag = TopicConfig { min_compaction_lag_ms: 50, min_cleanable_dirty_ratio: 0.0, ..topic_config() };
        let count = |ages: &[i64], through, stable, config: &TopicConfig| {
            due(&sealed(ages), &cleaned(through), Offset(stable), Timestamp(0), config).map(|due| due.count)
        };
        assert_eq!(count(&[90, 50, 49, 90], 0, 1000, &lag), Some(2));
        assert_eq!(count(&[90, 10, 49, 90], 20, 1000, &lag), None, "the first that is dirty is too young");
        assert_eq!(count(&[10, 10, 90, 10], 20, 1000, &lag), Some(3), "what is clean may be as young as it likes");
        assert_eq!(count(&[90; 4], 0, 25, &lag), Some(2), "not above what is stable");
        assert_eq!(count(&[90; 4], 0, 5, &lag), None);
        let pushed = TopicConfig { max_compaction_lag_ms: Some(70), ..topic_config() };
        assert_eq!(count(&[90, 90, 65, 10], 20, 1000, &pushed), None);
        assert_eq!(count(&[90, 90, 66, 10], 20, 1000, &pushed), Some(4));
        assert_eq!(count(&[90; 4], 40, 1000, &pushed), None);
    }

    #[test]
    fn a_tombstone_whose_time_has_come_is_reason_enough() {
        let checkpoint = Checkpoint { next_horizon: Some(Timestamp(70)), ..cleaned(40) };
        let at = |now| due(&sealed(&[0; 4]), &checkpoint, Offset(1000), Timestamp(now), &topic_config());
        assert_eq!((at(69), at(70).map(|due| (due.count, due.dirty_from))), (None, Some((4, Offset(40)))));
    }
}
