//! What may expire. Pure: facts in, an offset out; the janitor acts on it.
//!
//! Both of Kafka's limits hold over the whole log, hot and cold together: `retention.ms` counts from the largest
//! timestamp of a piece, `retention.bytes` counts the log's bytes as produced (what Kafka would have kept on disk).
//! The log start rises piece by piece from the oldest, and only over whole pieces: data files of the archive, then
//! sealed segments that are not archived. The active segment never expires.

use thermocline_ingest::model::{Offset, Timestamp};

/// The limits of a topic; `None` is unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    pub ms: Option<i64>,
    pub bytes: Option<u64>,
}

/// A data file or a sealed segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// exclusive
    pub end: Offset,
    pub max_timestamp: Timestamp,
    /// bytes of the log, as produced
    pub log_bytes: u64,
}

/// What a partition holds.
#[derive(Clone, Debug)]
pub struct Holdings {
    pub log_start: Offset,
    pub high_watermark: Offset,
    /// oldest first
    pub pieces: Vec<Piece>,
    /// bytes of the active segment
    pub active_bytes: u64,
}

/// The offset below which everything has expired; never below the present log start.
pub fn log_start(retention: Retention, now: Timestamp, holdings: &Holdings) -> Offset {
    let mut start = holdings.log_start;
    let mut kept_bytes =
        holdings.pieces.iter().fold(holdings.active_bytes, |sum, piece| sum.saturating_add(piece.log_bytes));
    for piece in &holdings.pieces {
        // A piece without a timestamp does not age; size still applies to it.
        let too_old = retention
            .ms
            .is_some_and(|ms| piece.max_timestamp >= Timestamp(0) && now.0.saturating_sub(piece.max_timestamp.0) > ms);
        // As in Kafka: a piece goes only if what is left is still at least the limit.
        let left_bytes = kept_bytes.saturating_sub(piece.log_bytes);
        let too_much = retention.bytes.is_some_and(|limit| left_bytes >= limit);
        let gone_already = piece.end <= holdings.log_start;
        if !(too_old || too_much || gone_already) {
            break;
        }
        kept_bytes = left_bytes;
        start = start.max(piece.end);
    }
    // What is not committed is not there for consumers yet, so it cannot have expired.
    start.min(holdings.high_watermark).max(holdings.log_start)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn holdings(pieces: &[(i64, i64, u64)]) -> Holdings {
        let pieces: Vec<_> = pieces
            .iter()
            .map(|&(end, time, log_bytes)| Piece { end: Offset(end), max_timestamp: Timestamp(time), log_bytes })
            .collect();
        let high_watermark = pieces.last().map_or(Offset::ZERO, |piece| piece.end);
        Holdings { log_start: Offset::ZERO, high_watermark, pieces, active_bytes: 0 }
    }

    #[test]
    fn unlimited_keeps_everything() {
        let all = holdings(&[(10, 0, 100), (20, 0, 100)]);
        assert_eq!(log_start(Retention { ms: None, bytes: None }, Timestamp(i64::MAX), &all), Offset::ZERO);
    }

    #[test]
    fn age_stops_at_the_first_young_piece() {
        let all = holdings(&[(10, 100, 1), (20, 300, 1), (30, 150, 1)]);
        let retention = Retention { ms: Some(100), bytes: None };
        assert_eq!(log_start(retention, Timestamp(201), &all), Offset(10));
        assert_eq!(log_start(retention, Timestamp(200), &all), Offset::ZERO);
        assert_eq!(log_start(retention, Timestamp(1000), &all), Offset(30));
    }

    #[test]
    fn size_keeps_at_least_the_limit() {
        let all = Holdings { active_bytes: 50, ..holdings(&[(10, 0, 100), (20, 0, 100), (30, 0, 100)]) };
        let start = |bytes| log_start(Retention { ms: None, bytes: Some(bytes) }, Timestamp(0), &all);
        assert_eq!(start(350), Offset::ZERO);
        assert_eq!(start(250), Offset(10));
        assert_eq!(start(249), Offset(10));
        assert_eq!(start(50), Offset(30));
        assert_eq!(start(0), Offset(30));
    }

    #[test]
    fn records_without_time_do_not_age() {
        let all = holdings(&[(10, -1, 100), (20, 5, 100)]);
        assert_eq!(log_start(Retention { ms: Some(1), bytes: None }, Timestamp(1000), &all), Offset::ZERO);
        assert_eq!(log_start(Retention { ms: Some(1), bytes: Some(100) }, Timestamp(1000), &all), Offset(20));
    }

    proptest! {
        #[test]
        fn the_start_only_rises_and_keeps_what_must_be_kept(
            sizes in prop::collection::vec((1..100_i64, 0..1000_i64, 0..500_u64), 0..12),
            ms in prop::option::of(0..1000_i64), bytes in prop::option::of(0..3000_u64),
            start in 0..600_i64, now in 0..2000_i64, uncommitted in 0..50_i64,
        ) {
            let mut end = 0;
            let pieces: Vec<_> = sizes.iter().map(|&(len, time, size)| { end += len; (end, time, size) }).collect();
            let mut all = holdings(&pieces);
            all.log_start = Offset(start.min(end));
            all.high_watermark = Offset((end - uncommitted).max(all.log_start.0));
            let to = log_start(Retention { ms, bytes }, Timestamp(now), &all);
            prop_assert!(to >= all.log_start && to <= all.high_watermark.max(all.log_start));
            let lost = all.pieces.iter().filter(|piece| piece.end > all.log_start && piece.end <= to);
            for piece in lost {
                let old = ms.is_some_and(|ms| now - piece.max_timestamp.0 > ms);
                // Age may take more after size was satisfied, so what counts is what was left when this piece went.
                let left: u64 = all.pieces.iter().filter(|later| later.end > piece.end).map(|later| later.log_bytes).sum();
                prop_assert!(old || bytes.is_some_and(|limit| left >= limit));
            }
        }
    }
}
