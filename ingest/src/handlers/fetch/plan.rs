//! The decisions of a Fetch, without doing: how much may be read, whether to wait, whether a position exists.

use std::time::Duration;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::FetchRequest;

use crate::model::Offset;
use crate::read::{Chunk, SendRun};
use crate::record::{BatchHeader, split_batches};

/// Shares the bytes of an answer among its partitions.
#[derive(Clone, Copy, Debug)]
pub(super) struct SizeRule {
    left: usize,
    taken: usize,
}

/// What one read may return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReadLimit {
    pub max_bytes: usize,
    pub at_least_one: bool,
}

impl SizeRule {
    /// Limits of the request and of the broker, in bytes.
    pub fn new(request_max: i32, broker_max: usize) -> Self {
        Self { left: usize::try_from(request_max).unwrap_or(0).min(broker_max), taken: 0 }
    }

    /// What the next partition may give, whose own limit is `partition_max`; nothing where the answer is full. As long
    /// as nothing was taken, one batch of any size may be, or a batch above the limits could never be read.
    pub fn limit(&self, partition_max: usize) -> Option<ReadLimit> {
        let limit = ReadLimit { max_bytes: self.left.min(partition_max), at_least_one: self.taken == 0 };
        (limit.max_bytes > 0 || limit.at_least_one).then_some(limit)
    }

    /// What a partition gave that had something to give, and how much it could have given by its own limit. Where its
    /// next batch does not fit what is left, the answer is full: another partition may have a smaller one, but to look
    /// into each of thousands for a few bytes took a tenth of the time of such fetches.
    pub fn took(&mut self, bytes: usize, partition_max: usize) {
        let does_not_fit = bytes == 0 && self.taken > 0 && self.left <= partition_max;
        self.left = if does_not_fit { 0 } else { self.left.saturating_sub(bytes) };
        self.taken = self.taken.saturating_add(bytes);
    }

    /// Whether there is nothing to wait for.
    pub fn is_full(&self) -> bool {
        self.taken > 0 && self.left == 0
    }

    pub fn taken(&self) -> usize {
        self.taken
    }

    pub fn left(&self) -> usize {
        self.left
    }
}

/// Whether and how long an answer may wait for more bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct WaitRule {
    min_bytes: usize,
    longest: Duration,
}

impl WaitRule {
    /// `max_bytes` is what the answer may hold at most: a client that wants more at least would wait in vain.
    pub fn new(request: &FetchRequest, partitions: usize, max_bytes: usize, broker_max: Duration) -> Self {
        let asked = Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0));
        Self {
            min_bytes: usize::try_from(request.min_bytes).unwrap_or(0).min(max_bytes),
            longest: if partitions == 0 { Duration::ZERO } else { asked.min(broker_max) },
        }
    }

    pub fn is_met(&self, bytes: usize) -> bool {
        bytes >= self.min_bytes
    }

    /// How long may be waited; nothing for not at all.
    pub fn wait(&self) -> Option<Duration> {
        (!self.longest.is_zero() && self.min_bytes > 0).then_some(self.longest)
    }
}

/// A position may be the log end, where the next record will be, but not beyond. Held against the log end and not the
/// high watermark: a position between the two is one that waits.
pub(super) fn check_position(position: Offset, log_start: Offset, log_end: Offset) -> Result<(), ResponseError> {
    if position < log_start || position > log_end { Err(ResponseError::OffsetOutOfRange) } else { Ok(()) }
}

/// The offset after the last one of a run; nothing where it is empty.
pub(super) fn run_end(run: &SendRun) -> Option<Offset> {
    match run.chunks.iter().rfind(|chunk| !chunk.is_empty())? {
        Chunk::File(range) => Some(range.next_offset()),
        Chunk::Bytes(bytes) => {
            let last_batch = split_batches(bytes.clone()).last()?.ok()?;
            BatchHeader::read(&last_batch).ok().map(|header| header.next_offset())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_batch_may_be_of_any_size_and_the_rest_shares() {
        let mut sizes = SizeRule::new(100, 80);
        assert_eq!(sizes.limit(50), Some(ReadLimit { max_bytes: 50, at_least_one: true }));
        assert_eq!(sizes.limit(0), Some(ReadLimit { max_bytes: 0, at_least_one: true }));
        sizes.took(0, 500);
        assert_eq!(sizes.limit(500), Some(ReadLimit { max_bytes: 80, at_least_one: true }));
        sizes.took(60, 500);
        assert_eq!(sizes.limit(500), Some(ReadLimit { max_bytes: 20, at_least_one: false }));
        assert_eq!((sizes.limit(0), sizes.is_full()), (None, false));
        sizes.took(500, 500);
        assert_eq!((sizes.limit(500), sizes.taken(), sizes.is_full()), (None, 560, true));
    }

    #[test]
    fn an_answer_is_full_when_a_batch_does_not_fit_any_more() {
        let mut sizes = SizeRule::new(100, 100);
        sizes.took(60, 100);
        // Its own limit was in the way.
        sizes.took(0, 30);
        assert_eq!(sizes.limit(500), Some(ReadLimit { max_bytes: 40, at_least_one: false }));
        sizes.took(0, 40);
        assert_eq!((sizes.limit(500), sizes.taken(), sizes.is_full()), (None, 60, true));
    }

    #[test]
    fn negative_sizes_still_give_one_batch() {
        let sizes = SizeRule::new(-1, 80);
        assert_eq!(sizes.limit(10), Some(ReadLimit { max_bytes: 0, at_least_one: true }));
    }

    #[test]
    fn waits_only_where_there_is_something_to_wait_for() {
        let rule = |max_wait, min_bytes, partitions| {
            let request = FetchRequest::default().with_max_wait_ms(max_wait).with_min_bytes(min_bytes);
            WaitRule::new(&request, partitions, 1000, Duration::from_secs(30))
        };
        assert_eq!(rule(500, 1, 1).wait(), Some(Duration::from_millis(500)));
        assert_eq!(rule(100_000, 1, 1).wait(), Some(Duration::from_secs(30)));
        for never in [rule(0, 1, 1), rule(-1, 1, 1), rule(500, 0, 1), rule(500, -1, 1), rule(500, 1, 0)] {
            assert_eq!(never.wait(), None);
        }
        assert!(rule(500, 5000, 1).is_met(1000), "min_bytes above max_bytes must be reachable");
        assert!(!rule(500, 10, 1).is_met(9));
    }

    #[test]
    fn positions_reach_from_log_start_to_log_end() {
        for good in [5, 7, 9] {
            assert_eq!(check_position(Offset(good), Offset(5), Offset(9)), Ok(()));
        }
        for bad in [-1, 4, 10] {
            let error = check_position(Offset(bad), Offset(5), Offset(9));
            assert_eq!(error, Err(ResponseError::OffsetOutOfRange));
        }
    }
}
