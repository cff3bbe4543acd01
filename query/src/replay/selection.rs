//! The messages that a replay is about, as records: all of a range, or those of it that match a query. Partition after
//! partition, in the order of the offsets, a bounded number of bytes at a time.

use std::collections::VecDeque;
use std::sync::Arc;

use thermocline_ingest::log::Partition;
use thermocline_ingest::model::{Offset, Timestamp};
use thermocline_ingest::read::{LogReader, ReadError, ReadRange, is_committed};
use thermocline_ingest::record::{
    BatchDecoder, BatchError, BatchHeader, DECOMPRESSED_BATCH_BYTES_MAX, Record, split_batches,
};
use thermocline_tiering::reader::{OwnedRecord, TieredReader};
use thermocline_tiering::worker::Tiering;
use tokio::task::spawn_blocking;

use super::{OffsetRange, READ_BYTES, ReplayError, Undecodable, ranges_in_time};
use crate::prune::Scope;
use crate::search::Search;
use crate::search::matches::{CheckedQuery, MatchRange, Matched, Matches, OFFSETS_MAX, Unindexed};

/// Which of the messages.
#[derive(Clone)]
pub enum Filter {
    /// All of them.
    Everything(Undecodable),
    /// Those that match. What cannot be decoded is left out, as a search leaves it out.
    Matching { search: Arc<Search>, query: CheckedQuery, unindexed: Unindexed },
}

/// What is wanted of a topic.
pub(super) struct Wanted {
    /// One for each partition, in order.
    pub ranges: VecDeque<(Arc<Partition>, OffsetRange)>,
    pub from: Option<Timestamp>,
    /// Exclusive.
    pub to: Option<Timestamp>,
    /// Most messages, over all partitions.
    pub limit: u64,
    pub filter: Filter,
    /// Matches are counted and not read.
    pub count_only: bool,
}

pub(super) struct Selection {
    reader: Arc<TieredReader>,
    tiering: Arc<Tiering>,
    wanted: Wanted,
    current: Option<Current>,
}

/// The next messages.
pub(super) struct Selected {
    pub partition: Arc<Partition>,
    pub records: Vec<OwnedRecord>,
    /// Messages found: as many as `records`, unless they are only counted.
    pub count: u64,
    /// Those that expired before they could be read, or cannot be decoded.
    pub missing: u64,
    /// Everything of the partition below (exclusive) has been dealt with.
    pub through: Offset,
    pub rows_fetched: u64,
    pub row_groups_scanned: u64,
}

struct Current {
    partition: Arc<Partition>,
    source: Source,
    /// Known and not yet read.
    ahead: Matched,
    /// Below, an offset without a record has none that could be read: see [`Selection::is_lost`].
    settled: Offset,
}

enum Source {
    Matches(Box<Matches>),
    Ranges(VecDeque<OffsetRange>),
}

impl Selection {
    pub fn new(reader: Arc<TieredReader>, tiering: Arc<Tiering>, wanted: Wanted) -> Self {
        Self { reader, tiering, wanted, current: None }
    }

    /// Whether it ended before its ranges did.
    pub fn is_at_limit(&self) -> bool {
        self.wanted.limit == 0
    }

    /// The next messages, maybe none of a stretch without any; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Selected>, ReplayError> {
        loop {
            if self.wanted.limit == 0 {
                return Ok(None);
            }
            let Some(mut current) = self.current.take() else {
                let Some((partition, range)) = self.wanted.ranges.pop_front() else { return Ok(None) };
                self.current = Some(self.open(partition, range).await?);
                continue;
            };
            if current.ahead.offsets.is_empty() {
                let Some(ahead) = current.source.next().await? else { continue };
                current.ahead = ahead;
            }
            let selected = self.select(&mut current).await?;
            self.wanted.limit -= selected.count;
            self.current = Some(current);
            return Ok(Some(selected));
        }
    }

    async fn open(&self, partition: Arc<Partition>, mut range: OffsetRange) -> Result<Current, ReplayError> {
        let Wanted { from, to, filter, .. } = &self.wanted;
        let source = match filter {
            Filter::Matching { search, query, unindexed } => {
                let scope = Scope { from: *from, to: *to, ..Scope::default() };
                let range = MatchRange { from: range.start, until: range.end, scope, unindexed: *unindexed };
                Source::Matches(Box::new(search.matches(query, &partition, range)))
            }
            Filter::Everything(_) => {
                if let Some(from) = from.filter(|_| range.start < range.end) {
                    let found = self.reader.offset_for_timestamp(&partition, from).await?;
                    range.start = found.map_or(range.end, |found| found.offset.max(range.start));
                }
                Source::Ranges(ranges_in_time(&self.tiering.manifest(&partition), range, *from, *to))
            }
        };
        Ok(Current { partition, source, ahead: Matched::default(), settled: Offset::ZERO })
    }

    /// Reads the messages that are known, as far as [`READ_BYTES`] go.
    async fn select(&self, current: &mut Current) -> Result<Selected, ReplayError> {
        let Wanted { from, to, limit, filter, count_only, .. } = &self.wanted;
        let Current { partition, ahead, source, settled } = current;
        let mut selected = Selected {
            partition: partition.clone(),
            records: Vec::new(),
            count: 0,
            missing: 0,
            through: ahead.through,
            rows_fetched: 0,
            row_groups_scanned: 0,
        };
        let most = usize::try_from(*limit).unwrap_or(usize::MAX).min(ahead.offsets.len());
        let asked = ahead.offsets.get(..most).unwrap_or_default();
        let done = if *count_only && matches!(source, Source::Matches(_)) {
            selected.count = most as u64;
            most
        } else {
            let found = self.reader.records(partition, asked, READ_BYTES).await?;
            (selected.rows_fetched, selected.row_groups_scanned) = (found.rows_fetched, found.row_groups_scanned);
            let done = found.records.len();
            for (offset, record) in asked.iter().zip(found.records) {
                let Some(record) = record else {
                    // A match was there once. Of everything, offsets may never have been.
                    if let Filter::Everything(undecodable) = filter
                        && *offset >= partition.log_start_offset()
                    {
                        if !self.is_lost(partition, *offset, settled).await? {
                            continue;
                        }
                        if *undecodable == Undecodable::Stop {
                            let partition = partition.topic_partition().clone();
                            return Err(ReplayError::Undecoded { partition, offset: *offset });
                        }
                    }
                    selected.missing += 1;
                    continue;
                };
                let is_late_enough = from.is_none_or(|from| record.timestamp >= from);
                if is_late_enough && to.is_none_or(|to| record.timestamp < to) {
                    selected.count += 1;
                    if !count_only {
                        selected.records.push(record);
                    }
                }
            }
            done
        };
        ahead.offsets.drain(..done.min(ahead.offsets.len()));
        if let Some(next) = ahead.offsets.first() {
            selected.through = *next;
        }
        Ok(selected)
    }

    /// Whether a record was at `offset` that nobody can decode. Otherwise there is none: the offset is that of a
    /// marker, or its record was aborted, or compacted away. What is learnt of its neighbours is put into `settled`,
    /// exclusive.
    async fn is_lost(
        &self,
        partition: &Arc<Partition>,
        offset: Offset,
        settled: &mut Offset,
    ) -> Result<bool, ReplayError> {
        if offset < *settled {
            return Ok(false);
        }
        let until = partition.last_stable_offset();
        let range = ReadRange { from: offset, until, max_bytes: 1, at_least_one: true };
        let run = match self.reader.read(partition, range).await {
            // It expired just now.
            Err(ReadError::OutOfRange { .. }) => return Ok(false),
            read => read?,
        };
        let Some(batch) = run.chunks.into_iter().flat_map(split_batches).next() else {
            *settled = until;
            return Ok(false);
        };
        let no_batches = |source| {
            let partition = partition.topic_partition().clone();
            ReplayError::NoBatches { partition, offset, source }
        };
        let batch = batch.map_err(no_batches)?;
        let header = BatchHeader::read(&batch).map_err(no_batches)?;
        if header.base_offset > offset {
            *settled = header.base_offset;
            return Ok(false);
        }
        if is_committed(&header, &run.aborted) {
            let decodes = spawn_blocking(move || {
                let nothing = |_: Record<'_>| Ok::<_, BatchError>(());
                BatchDecoder::new(DECOMPRESSED_BATCH_BYTES_MAX).for_each(&batch, nothing).is_ok()
            });
            if !decodes.await? {
                return Ok(true);
            }
        }
        *settled = header.next_offset();
        Ok(false)
    }
}

impl Source {
    async fn next(&mut self) -> Result<Option<Matched>, ReplayError> {
        match self {
            Self::Matches(matches) => Ok(matches.next().await?),
            Self::Ranges(ranges) => {
                let Some(range) = ranges.front_mut() else { return Ok(None) };
                let end = range.end.min(range.start.plus(OFFSETS_MAX as i64));
                let offsets = (range.start.0..end.0).map(Offset).collect();
                range.start = end;
                if range.start >= range.end {
                    ranges.pop_front();
                }
                Ok(Some(Matched { offsets, through: end }))
            }
        }
    }
}
