//! Which local segments may go. Pure: deciding is here, deleting is elsewhere.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use thermocline_config::TopicConfig;

use crate::model::Offset;

/// A sealed segment, as far as retention cares.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    /// Exclusive.
    pub end: Offset,
    pub size_bytes: u64,
    /// Since its newest record.
    pub age_ms: i64,
}

/// How far deletion may go.
#[derive(Clone, Copy, Debug)]
pub struct Horizon {
    pub high_watermark: Offset,
    pub log_start: Offset,
    pub archived_through: Offset,
}

/// Through which offset (exclusive) the `sealed` segments, oldest first, may go now. `local_bytes` is the size of the
/// local log, active segment included.
pub fn droppable(sealed: &[Held], local_bytes: u64, horizon: Horizon, config: &TopicConfig) -> Offset {
    let (age_max_ms, bytes_max) = if config.remote_storage_enable {
        (config.local_retention_ms, config.local_retention_bytes)
    } else {
        (config.retention_ms, config.retention_bytes)
    };
    // Readers of the expired part are sent to the archive, if there is one: it must have it.
    let expired_through = horizon
        .high_watermark // not decided yet above it
        .min(if config.remote_storage_enable { horizon.archived_through } else { horizon.high_watermark });
    // Below the log start nobody may read, archived or not.
    let unreadable_through = horizon.high_watermark.min(horizon.log_start);

    let expires = config.cleanup.delete;
    let (mut left, mut through) = (local_bytes, Offset::ZERO);
    for segment in sealed {
        left = left.saturating_sub(segment.size_bytes);
        let too_old = age_max_ms.is_some_and(|limit| segment.age_ms > limit);
        let too_much = bytes_max.is_some_and(|limit| left >= limit);
        let expired = expires && (too_old || too_much) && segment.end <= expired_through;
        if !expired && segment.end > unreadable_through {
            break;
        }
        through = segment.end;
    }
    through
}

/// How many of each partition's archived segments should go before local retention says so, to free `missing` bytes:
/// the oldest of all first, but within a partition only from its oldest end.
pub fn early(archived: &[Vec<Held>], missing: u64) -> Vec<usize> {
    let mut counts = vec![0; archived.len()];
    let next = |partition: usize, count: usize| {
        let segment = archived.get(partition).and_then(|segments| segments.get(count));
        segment.map(|segment| (segment.age_ms, Reverse(partition)))
    };
    let mut oldest: BinaryHeap<_> = (0..archived.len()).filter_map(|partition| next(partition, 0)).collect();
    let mut freed = 0_u64;
    while freed < missing
        && let Some((_, Reverse(partition))) = oldest.pop()
    {
        let Some(count) = counts.get_mut(partition) else { break };
        let segment = archived.get(partition).and_then(|segments| segments.get(*count));
        freed = freed.saturating_add(segment.map_or(0, |segment| segment.size_bytes));
        *count += 1;
        oldest.extend(next(partition, *count));
    }
    counts
}

#[cfg(test)]
mod tests {
    use thermocline_config::CleanupPolicy;

    use super::*;
    use crate::log::tests::topic_config;

    fn held(ages: &[i64]) -> Vec<Held> {
        (1..).zip(ages).map(|(n, &age_ms)| Held { end: Offset(10 * n), size_bytes: 100, age_ms }).collect()
    }

    fn horizon(archived: i64) -> Horizon {
        Horizon { high_watermark: Offset(1000), log_start: Offset::ZERO, archived_through: Offset(archived) }
    }

    #[test]
    fn the_archive_is_the_horizon() {
        let config = TopicConfig { local_retention_ms: Some(50), ..topic_config() };
        let sealed = held(&[300, 200, 100, 40]);
        assert_eq!(droppable(&sealed, 500, horizon(1000), &config), Offset(30), "the fourth is too young");
        assert_eq!(droppable(&sealed, 500, horizon(20), &config), Offset(20), "the third is not archived");
        assert_eq!(droppable(&sealed, 500, horizon(19), &config), Offset(10), "half archived is not archived");
        let unlimited = TopicConfig { local_retention_ms: None, retention_ms: Some(1), ..topic_config() };
        assert_eq!(droppable(&sealed, 500, horizon(1000), &unlimited), Offset::ZERO);
        let mut early = horizon(1000);
        early.high_watermark = Offset(10);
        assert_eq!(droppable(&sealed, 500, early, &config), Offset(10), "not above the high watermark");
    }

    #[test]
    fn size_counts_what_is_left() {
        let config = TopicConfig { local_retention_bytes: Some(250), local_retention_ms: None, ..topic_config() };
        assert_eq!(droppable(&held(&[0; 4]), 450, horizon(1000), &config), Offset(20));
        assert_eq!(droppable(&held(&[0; 4]), 450, horizon(10), &config), Offset(10));
    }

    #[test]
    fn without_an_archive_the_whole_retention_counts() {
        let config = TopicConfig {
            remote_storage_enable: false,
            retention_ms: Some(150),
            local_retention_ms: Some(1),
            ..topic_config()
        };
        assert_eq!(droppable(&held(&[300, 200, 100, 40]), 500, horizon(0), &config), Offset(20));
    }

    #[test]
    fn a_topic_that_is_only_compacted_keeps_everything() {
        let cleanup = CleanupPolicy { compact: true, delete: false };
        let compacted = TopicConfig { cleanup, remote_storage_enable: false, retention_ms: Some(1), ..topic_config() };
        assert_eq!(droppable(&held(&[300, 200]), 300, horizon(0), &compacted), Offset::ZERO);
        let both = TopicConfig { cleanup: CleanupPolicy { delete: true, ..cleanup }, ..compacted };
        assert_eq!(droppable(&held(&[300, 200]), 300, horizon(0), &both), Offset(20));
    }

    #[test]
    fn the_oldest_that_must_stay_holds_the_rest() {
        let config = TopicConfig { local_retention_ms: Some(50), ..topic_config() };
        assert_eq!(droppable(&held(&[300, 10, 300]), 500, horizon(1000), &config), Offset(10));
    }

    #[test]
    fn what_goes_early_is_the_oldest_of_all() {
        let partitions = [held(&[300, 20]), held(&[200, 250, 10]), Vec::new()];
        for (missing, counts) in [(0, [0, 0, 0]), (1, [1, 0, 0]), (100, [1, 0, 0]), (101, [1, 1, 0]), (300, [1, 2, 0])]
        {
            assert_eq!(early(&partitions, missing), counts, "{missing} bytes");
        }
        assert_eq!(early(&partitions, u64::MAX), [2, 3, 0], "all there is");
    }

    #[test]
    fn what_nobody_may_read_goes_without_an_archive_copy() {
        let mut horizon = horizon(0);
        horizon.log_start = Offset(25);
        let config = TopicConfig { local_retention_ms: None, ..topic_config() };
        assert_eq!(droppable(&held(&[0; 4]), 500, horizon, &config), Offset(20));
    }
}
