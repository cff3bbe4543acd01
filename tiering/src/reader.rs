//! The one reader: a partition is one log, wherever its bytes lie. Hot or cold is decided in [`route`].
//!
//! Invariants:
//! - Offsets at or above the local start are read from the hot log, those below from the archive; both hold the same
//!   records where they overlap, so a reader that crosses the border sees each record once.
//! - The local copy may be trimmed between deciding and reading. The hot log then says so (`BelowLocalStart`), and the
//!   read is routed once more: trimming happens only after the archive has committed.
//! - A data file may be merged into another or expire while it is read. A failed cold read is therefore tried again if
//!   the manifest has changed meanwhile.
//! - One answer comes from one tier; it may end at the border.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use thermocline_ingest::log::Partition;
use thermocline_ingest::model::{Offset, Timestamp, TimestampType};
use thermocline_ingest::read::{BatchRun, LogReader, ReadError, ReadRange, SendRun, TimestampedOffset, is_committed};
use thermocline_ingest::record::{
    BatchDecoder, BatchError, BatchHeader, DECOMPRESSED_BATCH_BYTES_MAX, Record, split_batches,
};
use tokio::task::spawn_blocking;

use crate::cold::{ColdError, ColdReader, ColdRun};
use crate::manifest::Manifest;
use crate::worker::Tiering;

/// How often a read starts over because a tier changed under it.
const ATTEMPTS_MAX: usize = 3;

/// A record with everything it carries, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedRecord {
    pub offset: Offset,
    pub timestamp: Timestamp,
    pub timestamp_type: TimestampType,
    pub key: Option<Bytes>,
    pub value: Option<Bytes>,
    pub headers: Vec<(String, Option<Bytes>)>,
}

/// Records that were looked up, and what that took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// One for each of the first offsets asked for; `None` where there is none (deleted, expired, or kept raw).
    pub records: Vec<Option<OwnedRecord>>,
    /// Rows of data files that were read by their pages.
    pub rows_fetched: u64,
    /// Row groups that were read whole, as so many of their rows were wanted.
    pub row_groups_scanned: u64,
}

/// Reads every partition, hot and cold.
pub struct TieredReader {
    tiering: Arc<Tiering>,
    cold: ColdReader,
}

/// Where an offset is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    Hot,
    Cold,
}

/// The offsets between which a partition can be read, at one moment.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    log_start: Offset,
    local_start: Offset,
    /// exclusive
    log_end: Offset,
}

impl Bounds {
    fn of(partition: &Partition) -> Self {
        Self {
            log_start: partition.log_start_offset(),
            local_start: partition.local_start_offset(),
            log_end: partition.log_end_offset(),
        }
    }

    /// Hot or cold; `None` where the offset lies outside the log.
    fn route(&self, offset: Offset) -> Option<Tier> {
        if offset < self.log_start || offset > self.log_end {
            None
        } else if offset >= self.local_start {
            Some(Tier::Hot)
        } else {
            Some(Tier::Cold)
        }
    }
}

/// Which tier holds `offset` of `partition`: the one place that decides.
pub fn route(partition: &Partition, offset: Offset) -> Result<Tier, ReadError> {
    let bounds = Bounds::of(partition);
    bounds.route(offset).ok_or_else(|| ReadError::OutOfRange {
        partition: partition.topic_partition().clone(),
        offset,
        log_start: bounds.log_start,
        log_end: bounds.log_end,
    })
}

impl TieredReader {
    pub fn new(tiering: Arc<Tiering>, config: &thermocline_config::CacheConfig) -> Self {
        let cold = ColdReader::new(tiering.blocks().clone(), config);
        Self { tiering, cold }
    }

    /// The records at exactly these offsets (strictly ascending), from the log, from Parquet pages, or out of row
    /// groups that are scanned. Ends early once the records found are `max_bytes` or more: the answer is then for the
    /// first of the offsets, and may be larger by one batch or the rows of one row group.
    pub async fn records(
        &self,
        partition: &Arc<Partition>,
        offsets: &[Offset],
        max_bytes: usize,
    ) -> Result<Found, ReadError> {
        let (mut found, mut bytes, mut attempts) = (Found::default(), 0, 0);
        loop {
            let rest = offsets.get(found.records.len()..).unwrap_or_default();
            if rest.is_empty() || (bytes >= max_bytes && !found.records.is_empty()) {
                return Ok(found);
            }
            let (bounds, left) = (Bounds::of(partition), max_bytes.saturating_sub(bytes));
            let cold = rest.get(..rest.partition_point(|offset| *offset < bounds.local_start)).unwrap_or_default();
            let next = if cold.is_empty() {
                let (log, wanted) = (partition.clone(), rest.to_vec());
                self.blocking(partition, move || hot_records(&log, &wanted, left)).await
            } else {
                self.cold_records(partition, cold, bounds.log_start, left).await
            };
            match next {
                Ok(next) => {
                    bytes = bytes.saturating_add(next.size_bytes());
                    found.append(next);
                }
                // Trimmed just now: what was hot is in the archive.
                Err(ReadError::BelowLocalStart { .. }) if attempts < ATTEMPTS_MAX => attempts += 1,
                Err(error) => return Err(error),
            }
        }
    }

    async fn cold_records(
        &self,
        partition: &Arc<Partition>,
        offsets: &[Offset],
        log_start: Offset,
        max_bytes: usize,
    ) -> Result<Found, ReadError> {
        let expired = offsets.partition_point(|offset| *offset < log_start);
        let (_, offsets) = offsets.split_at(expired);
        let mut found = Found { records: vec![None; expired], ..Found::default() };
        if offsets.is_empty() {
            return Ok(found);
        }
        let mut attempts = 0;
        loop {
            let manifest = self.tiering.manifest(partition);
            match self.cold.records(&manifest, offsets, max_bytes).await {
                Ok(records) => {
                    found.append(records);
                    return Ok(found);
                }
                Err(error) => self.try_again(partition, &manifest, error, &mut attempts)?,
            }
        }
    }

    /// Hot or cold; `hot` reads what is local.
    async fn read_either<R: From<BatchRun> + Send + 'static>(
        &self,
        partition: &Arc<Partition>,
        range: ReadRange,
        hot: impl Fn(&Partition, &ReadRange) -> Result<R, ReadError> + Copy + Send + 'static,
    ) -> Result<R, ReadError> {
        if route(partition, range.from)? == Tier::Hot {
            let (log, wanted) = (partition.clone(), range.clone());
            match self.blocking(partition, move || hot(&log, &wanted)).await {
                // Trimmed just now: what was hot is in the archive.
                Err(ReadError::BelowLocalStart { .. }) => {}
                answer => return answer,
            }
            route(partition, range.from)?;
        }
        let mut attempts = 0;
        loop {
            let ColdRun { batches, exhausted } = self.read_cold(partition, &range).await?;
            let Some(archive_end) = exhausted.filter(|end| batches.is_empty() && *end < range.until) else {
                return Ok(batches.into());
            };
            // Up to its end the archive has nothing but what was dropped; what follows is in the log. To begin where
            // the local log does now would skip what has been archived and trimmed since.
            let (log, rest) = (partition.clone(), ReadRange { from: range.from.max(archive_end), ..range.clone() });
            match self.blocking(partition, move || hot(&log, &rest)).await {
                Err(ReadError::BelowLocalStart { .. }) if attempts < ATTEMPTS_MAX => attempts += 1,
                answer => return answer,
            }
        }
    }

    async fn read_cold(&self, partition: &Arc<Partition>, range: &ReadRange) -> Result<ColdRun, ReadError> {
        let mut attempts = 0;
        loop {
            let manifest = self.tiering.manifest(partition);
            match self.cold.read(&manifest, range).await {
                Ok(run) => return Ok(run),
                Err(error) => self.try_again(partition, &manifest, error, &mut attempts)?,
            }
        }
    }

    async fn ask_cold(
        &self,
        partition: &Arc<Partition>,
        question: Question,
        within: Range<Offset>,
    ) -> Result<Option<TimestampedOffset>, ReadError> {
        if within.is_empty() {
            return Ok(None);
        }
        let mut attempts = 0;
        loop {
            let manifest = self.tiering.manifest(partition);
            match question.ask(&self.cold, &manifest, within.clone()).await {
                Ok(place) => return Ok(place),
                Err(error) => self.try_again(partition, &manifest, error, &mut attempts)?,
            }
        }
    }

    /// Whether a read that failed is done again, from the start: the manifest has changed under it, so the objects may
    /// have been merged into others and deleted. Otherwise the error it failed with.
    fn try_again(
        &self,
        partition: &Partition,
        before: &Manifest,
        error: ColdError,
        attempts: &mut usize,
    ) -> Result<(), ReadError> {
        *attempts += 1;
        let has_changed = self.tiering.manifest(partition).version != before.version;
        if has_changed && *attempts < ATTEMPTS_MAX { Ok(()) } else { Err(cold_error(partition, error)) }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        partition: &Arc<Partition>,
        work: impl FnOnce() -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, ReadError> {
        match spawn_blocking(work).await {
            Ok(done) => done,
            Err(stopped) => Err(cold_error(partition, ColdError::Stopped(stopped))),
        }
    }

    /// Asks the archive below the local start and then the hot log, until the border stood still in between; the last
    /// attempt asks the archive for all it has, which needs no border.
    async fn ask_both(
        &self,
        partition: &Arc<Partition>,
        question: Question,
    ) -> Result<Option<TimestampedOffset>, ReadError> {
        let mut attempt = 1;
        loop {
            let bounds = Bounds::of(partition);
            let is_last = attempt >= ATTEMPTS_MAX;
            let end = if is_last { self.tiering.manifest(partition).archived_through() } else { bounds.local_start };
            let cold = self.ask_cold(partition, question, bounds.log_start..end).await?;
            if cold.is_some() && question.first_tier_decides() {
                return Ok(cold);
            }
            let log = partition.clone();
            let hot = match self.blocking(partition, move || question.ask_hot(&log)).await {
                Ok(hot) => hot,
                // Files of the log were trimmed away under the question.
                Err(_) if !is_last && partition.local_start_offset() != bounds.local_start => {
                    attempt += 1;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if is_last || partition.local_start_offset() == bounds.local_start {
                return Ok(later(cold, hot));
            }
            attempt += 1;
        }
    }
}

/// A question about places in time.
#[derive(Clone, Copy, Debug)]
enum Question {
    /// The first record at or after it.
    AtOrAfter(Timestamp),
    /// The record with the largest timestamp.
    Latest,
}

impl Question {
    async fn ask(
        self,
        cold: &ColdReader,
        manifest: &Manifest,
        within: Range<Offset>,
    ) -> Result<Option<TimestampedOffset>, ColdError> {
        match self {
            Self::AtOrAfter(timestamp) => cold.offset_for_timestamp(manifest, timestamp, within).await,
            Self::Latest => cold.max_timestamp(manifest, within).await,
        }
    }

    /// Blocking.
    fn ask_hot(self, log: &Partition) -> Result<Option<TimestampedOffset>, ReadError> {
        match self {
            Self::AtOrAfter(timestamp) => log.offset_for_timestamp(timestamp),
            Self::Latest => log.max_timestamp(),
        }
    }

    /// Whether an answer from the archive, which comes first in offset order, makes the hot log's irrelevant.
    fn first_tier_decides(self) -> bool {
        matches!(self, Self::AtOrAfter(_))
    }
}

#[async_trait]
impl LogReader for TieredReader {
    async fn read(&self, partition: &Arc<Partition>, range: ReadRange) -> Result<BatchRun, ReadError> {
        self.read_either(partition, range, Partition::read).await
    }

    async fn read_to_send(
        &self,
        partition: &Arc<Partition>,
        range: ReadRange,
        files_max: usize,
    ) -> Result<SendRun, ReadError> {
        self.read_either(partition, range, move |log, range| log.read_to_send(range, files_max)).await
    }

    async fn offset_for_timestamp(
        &self,
        partition: &Arc<Partition>,
        timestamp: Timestamp,
    ) -> Result<Option<TimestampedOffset>, ReadError> {
        self.ask_both(partition, Question::AtOrAfter(timestamp)).await
    }

    async fn max_timestamp(&self, partition: &Arc<Partition>) -> Result<Option<TimestampedOffset>, ReadError> {
        self.ask_both(partition, Question::Latest).await
    }
}

/// The one with the larger timestamp; of equal ones that with the smaller offset.
fn later(a: Option<TimestampedOffset>, b: Option<TimestampedOffset>) -> Option<TimestampedOffset> {
    [a, b].into_iter().flatten().max_by_key(|place| (place.timestamp, std::cmp::Reverse(place.offset)))
}

fn cold_error(partition: &Partition, source: ColdError) -> ReadError {
    ReadError::Cold { partition: partition.topic_partition().clone(), source: Box::new(source) }
}

impl OwnedRecord {
    /// Bytes of key, value and headers.
    pub fn size_bytes(&self) -> usize {
        let len = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        let headers: usize = self.headers.iter().map(|(key, value)| key.len() + len(value)).sum();
        len(&self.key) + len(&self.value) + headers
    }
}

impl Found {
    /// Bytes of the records found.
    pub fn size_bytes(&self) -> usize {
        self.records.iter().flatten().map(OwnedRecord::size_bytes).sum()
    }

    /// What follows.
    pub(crate) fn append(&mut self, next: Self) {
        self.records.extend(next.records);
        self.rows_fetched += next.rows_fetched;
        self.row_groups_scanned += next.row_groups_scanned;
    }
}

impl From<&Record<'_>> for OwnedRecord {
    fn from(record: &Record<'_>) -> Self {
        let header = |(key, value): (&str, Option<&[u8]>)| (key.to_owned(), value.map(Bytes::copy_from_slice));
        Self {
            offset: record.offset,
            timestamp: record.timestamp,
            timestamp_type: record.timestamp_type,
            key: record.key.map(Bytes::copy_from_slice),
            value: record.value.map(Bytes::copy_from_slice),
            headers: record.headers.iter().map(header).collect(),
        }
    }
}

/// Reads each batch that holds a wanted offset once, up to `max_bytes` or more of records, or to where the log was
/// trimmed meanwhile; an error only where that is at the first of them. What is not committed is not there. Blocking.
fn hot_records(partition: &Partition, offsets: &[Offset], max_bytes: usize) -> Result<Found, ReadError> {
    let mut decoder = BatchDecoder::new(DECOMPRESSED_BATCH_BYTES_MAX);
    let mut found: Vec<Option<OwnedRecord>> = vec![None; offsets.len()];
    let stable = partition.last_stable_offset();
    let (mut at, mut bytes) = (0, 0);
    while let Some(offset) = offsets.get(at).copied() {
        if at > 0 && bytes >= max_bytes {
            break;
        }
        if offset >= stable {
            at = offsets.len();
            break;
        }
        // Where there is a hole, the batch after it says how far it goes.
        let range = ReadRange { from: offset, until: stable, max_bytes: 1, at_least_one: true };
        let run = match partition.read(&range) {
            Ok(run) => run,
            Err(ReadError::OutOfRange { .. }) => BatchRun::default(),
            Err(ReadError::BelowLocalStart { .. }) if at > 0 => break,
            Err(error) => return Err(error),
        };
        let mut next = at + 1;
        let aborted = run.aborted;
        for batch in run.chunks.into_iter().flat_map(split_batches) {
            // What cannot be decoded has no records to show, as in the archive.
            let Ok(batch) = batch else { continue };
            let Ok(header) = BatchHeader::read(&batch) else { continue };
            next = next.max(offsets.partition_point(|wanted| *wanted <= header.last_offset()));
            if !is_committed(&header, &aborted) {
                continue;
            }
            let pick = |record: Record<'_>| -> Result<(), BatchError> {
                // A batch may begin below the log start; what lies there was deleted.
                let slot = offsets.binary_search(&record.offset).ok().filter(|slot| *slot >= at);
                if let Some(slot) = slot.and_then(|at| found.get_mut(at)) {
                    let record = OwnedRecord::from(&record);
                    bytes += record.size_bytes();
                    *slot = Some(record);
                }
                Ok(())
            };
            if let Err(error) = decoder.for_each(&batch, pick) {
                tracing::debug!(%offset, %error, "a batch in the hot log cannot be decoded");
            }
        }
        at = next;
    }
    found.truncate(at);
    Ok(Found { records: found, ..Found::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_border_between_hot_and_cold() {
        let bounds = Bounds { log_start: Offset(10), local_start: Offset(50), log_end: Offset(80) };
        let tiers = [9, 10, 49, 50, 79, 80, 81].map(|offset| bounds.route(Offset(offset)));
        let (hot, cold) = (Some(Tier::Hot), Some(Tier::Cold));
        assert_eq!(tiers, [None, cold, cold, hot, hot, hot, None]);
        let all_local = Bounds { local_start: Offset(10), ..bounds };
        assert_eq!(all_local.route(Offset(10)), hot);
        let nothing_local = Bounds { local_start: Offset(80), ..bounds };
        assert_eq!([79, 80].map(|offset| nothing_local.route(Offset(offset))), [cold, hot]);
    }

    #[test]
    fn the_later_place_wins_and_of_equal_ones_the_first() {
        let place =
            |offset, timestamp| Some(TimestampedOffset { offset: Offset(offset), timestamp: Timestamp(timestamp) });
        assert_eq!(later(place(1, 5), place(9, 6)), place(9, 6));
        assert_eq!(later(place(1, 6), place(9, 6)), place(1, 6));
        assert_eq!(later(None, place(9, 6)), place(9, 6));
        assert_eq!(later(None, None), None);
    }
}
