//! Compaction: of each key the newest record stays (`cleanup.policy=compact`; Kafka's log cleaner).
//!
//! One round takes the sealed segments of a partition that are due (`plan`), reads what is new among them and notes the
//! newest offset of each key in a map of fixed size (`offset_map`), then walks all of them from the start, batch by
//! batch, and writes what stays (`filter`) into new files, several small segments into one (`rewrite`). Each such group
//! is put in the place of the old ones at once (`swap`). Where the map is full, the round covers what it has, and the
//! next one goes on from there. The active segment is never touched, nor what is at or above the last stable offset: so
//! of each transaction it is known whether it was committed, and what was aborted goes.
//!
//! | file | what |
//! |---|---|
//! | `plan` | whether a partition is due; pure |
//! | `offset_map` | key -> newest offset, in fixed memory |
//! | `filter` | what of a batch stays; pure |
//! | `rewrite` | segments into one |
//! | `swap` | the new files into the place of the old ones, and what to make of a folder in which that died |
//! | `checkpoint` | how far a partition was compacted |
//! | `pace` | the rate, and when to stop |
//!
//! # Invariants
//! 1. Offsets never change. A reader that goes on from any offset gets each record that is left beyond it, in order.
//! 2. A record goes only after a newer one of its key is durable, or, a tombstone, after every older one of its key has
//!    gone and its delete horizon has come; or if its transaction was aborted.
//! 3. The last record of what is compacted stays: no range ends in a hole, so a reader can reach the end of the log.
//! 4. Memory is bounded: `log.cleaner_dedupe_buffer_bytes` for the map, one batch and its decompressed form under
//!    [`DECOMPRESSED_BATCH_BYTES_MAX`], and the index entries of one segment. One partition is compacted at a time.
//! 5. Readers wait for no I/O but a few renames, and never see a file that is not their segment's.
//! 6. A marker goes after everything of its transaction, and only where no recovery can need it: it lies below every
//!    producer snapshot. What is known of an aborted transaction goes with its marker, in the same swap: kept longer,
//!    it would make readers take the producer's next transaction for aborted.
//!
//! # Crash table
//! | died here | then at the next start |
//! |---|---|
//! | reading keys, or writing cleaned files | the cleaned files are deleted; the round is done again |
//! | the checkpoint says that there may be holes, and there are none yet | nothing follows from that but leniency towards holes |
//! | between the steps of a swap | see `swap.rs`: before its commit nothing happened, after it the swap is finished |
//! | some groups were swapped, others not | older records of a key are gone before newer ones are touched, those of a transaction before its marker; the round is done again over all of it, and finds little to do |
//! | all were swapped, the checkpoint does not say so | the same |

mod checkpoint;
mod filter;
mod offset_map;
mod pace;
mod plan;
mod rewrite;
mod swap;

use std::sync::Arc;

use super::error::LogError;
use super::hot_log::HotLog;
use super::partition::{Partition, due_after, gauge};
use super::sealed::SealedSegment;
use super::segment::Segment;
use super::snapshot;
use super::transactions::AbortedTransaction;
use crate::model::{Offset, Timestamp};
use crate::record::{BatchHeader, BatchRewriter, DECOMPRESSED_BATCH_BYTES_MAX};
pub(super) use checkpoint::Checkpoint;
use filter::{AbortedBatches, Filter, Knowledge};
use offset_map::OffsetMap;
use pace::Pace;
use plan::{Due, Sealed, due};
use rewrite::{AbortedOf, Rewritten, rewrite};
pub(super) use swap::finish_swaps;

/// What compaction may use; from the broker's `[log]` section.
#[derive(Clone, Copy, Debug)]
pub(super) struct CleanerLimits {
    pub dedupe_buffer_bytes: usize,
    /// 0 is without limit.
    pub bytes_per_second: u64,
}

/// How a round ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    /// Nothing was due, or it was told to stop.
    Nothing,
    /// All that was due is done.
    Done,
    /// The map was full, or segments went away meanwhile.
    More,
}

impl HotLog {
    /// Compacts every partition that is due, the dirtiest first, until nothing is or `stops` says so. One at a time, so
    /// the caller must not call it twice at once. Blocking, for long.
    pub fn clean(&self, stops: &dyn Fn() -> bool) {
        let mut waiting: Vec<_> =
            self.partitions().into_iter().filter_map(|p| Some((p.due_for_cleaning()?.0, p))).collect();
        waiting.sort_by(|(a, _), (b, _)| b.dirty_ratio.total_cmp(&a.dirty_ratio));
        for (_, partition) in waiting {
            loop {
                match partition.clean(self.cleaner_limits(), stops) {
                    Ok(Round::More) => {}
                    Ok(Round::Done | Round::Nothing) => break,
                    // Offline was logged when it happened; closed means on its way out.
                    Err(LogError::Offline { .. } | LogError::Closed(_)) => break,
                    Err(error) => {
                        let error: &dyn std::error::Error = &error;
                        tracing::warn!(partition = %partition.topic_partition(), error, "compaction failed; it will be tried again");
                        break;
                    }
                }
                if stops() {
                    return;
                }
            }
        }
    }
}

impl Partition {
    /// What is due, and the segments that it is about.
    fn due_for_cleaning(&self) -> Option<(Due, Vec<Arc<Segment>>)> {
        let config = self.config();
        if !config.cleanup.compact || self.is_closed() {
            return None;
        }
        let now = self.env.clock.now();
        let checkpoint = *self.cleaning.lock();
        let mut segments = self.sealed();
        let sealed: Vec<_> = segments
            .iter()
            .map(|segment| {
                // Read from disk, and only where it is asked for.
                let is_asked = config.max_compaction_lag_ms.is_some() && segment.end() > checkpoint.clean_through;
                Sealed {
                    base: segment.base,
                    end: segment.end(),
                    size_bytes: segment.size_bytes(),
                    age_ms: segment.age_ms(now),
                    oldest_age_ms: is_asked.then(|| oldest_age_ms(segment, now)).flatten(),
                }
            })
            .collect();
        let due = due(&sealed, &checkpoint, self.last_stable_offset(), now, &config)?;
        segments.truncate(due.count);
        Some((due, segments))
    }

    /// One round, if it is due. Blocking.
    fn clean(&self, limits: CleanerLimits, stops: &dyn Fn() -> bool) -> Result<Round, LogError> {
        let Some((due, mut segments)) = self.due_for_cleaning() else { return Ok(Round::Nothing) };
        // Closing waits for `cleaning` with the writer's lock held.
        let producers = self.writer.lock().producers.last_batches();
        let mut checkpoint = self.cleaning.lock();
        let config = self.config();
        let now = self.env.clock.now();
        let stops = || stops() || self.is_closed();
        let mut pace = Pace::new(limits.bytes_per_second, &stops);
        let end = segments.last().map_or(due.dirty_from, |segment| segment.end());
        let mut map = OffsetMap::new(limits.dedupe_buffer_bytes, due.dirty_from.distance_to(end));
        let aborted_of = |segment: &Segment| self.aborted_of(segment);
        let Some(covered) = note_keys(&segments, due.dirty_from, &aborted_of, &mut map, &mut pace)? else {
            return Ok(Round::Nothing);
        };
        segments.truncate(segments.partition_point(|segment| segment.base < covered));
        let end = segments.last().map_or(covered, |segment| segment.end());
        let knows = Knowledge {
            map,
            covered,
            last: end.plus(-1),
            producers,
            snapshots_from: snapshot::oldest(&self.dir)?.unwrap_or(Offset(i64::MAX)),
            now,
            horizon: Timestamp(now.0.saturating_add(config.delete_retention_ms)),
        };
        let mut filter = Filter::new(knows, BatchRewriter::new(DECOMPRESSED_BATCH_BYTES_MAX));

        let before_bytes: u64 = segments.iter().map(|segment| segment.size_bytes()).sum();
        let mut after_bytes = 0;
        let mut rest = &segments[..];
        while !rest.is_empty() {
            let rewritten = rewrite(&self.dir, rest, &aborted_of, &mut filter, &config, &mut pace);
            let Some(rewritten) = rewritten.inspect_err(|_| self.forget_cleaned(rest))? else {
                self.forget_cleaned(rest);
                return Ok(Round::Nothing);
            };
            let (group, after) = rest.split_at(rewritten.count);
            rest = after;
            after_bytes += rewritten.size_bytes;
            if !rewritten.is_changed {
                self.forget_cleaned(group);
                continue;
            }
            if checkpoint.holes_below < end {
                let next = Checkpoint { holes_below: end, ..*checkpoint };
                next.write(&self.dir)?;
                *checkpoint = next;
            }
            crash_point();
            if !self.swap(group, &rewritten)? {
                return Ok(Round::More);
            }
        }
        crash_point();
        let clean_through = covered.max(checkpoint.clean_through);
        let next = Checkpoint { clean_through, next_horizon: filter.next_horizon, ..*checkpoint };
        next.write(&self.dir)?;
        *checkpoint = next;
        self.env.metrics.compacted_bytes.inc_by(before_bytes);
        if after_bytes != before_bytes {
            let partition = self.topic_partition();
            tracing::info!(%partition, from = %due.dirty_from, through = %covered, before_bytes, after_bytes, "compacted");
        }
        Ok(if covered < end { Round::More } else { Round::Done })
    }

    /// Puts what was rewritten in the place of `group`. False where one of them is gone; then nothing happened.
    fn swap(&self, group: &[Arc<Segment>], rewritten: &Rewritten) -> Result<bool, LogError> {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { return Ok(true) };
        let (base, end) = (first.base, last.end());
        // Nobody else adds or removes files of sealed segments meanwhile.
        let _changing = self.changing_files.lock();
        self.check_open().inspect_err(|_| self.forget_cleaned(group))?;
        let place = {
            let segments = self.segments.read();
            let at = segments.iter().position(|segment| Arc::ptr_eq(segment, first));
            at.map(|at| at..at + group.len()).filter(|place| {
                segments.get(place.clone()).is_some_and(|now| now.iter().zip(group).all(|(a, b)| Arc::ptr_eq(a, b)))
            })
        };
        let Some(place) = place else {
            self.forget_cleaned(group);
            return Ok(false);
        };
        let done = swap::commit(&self.dir, base, end).and_then(|()| {
            crash_point();
            let segment = Arc::new(Segment::new(self.dir.clone(), base, None).with_holes(true));
            segment.publish(rewritten.size_bytes, end, rewritten.max_timestamp);
            segment.seal(last.sealed_at());
            if rewritten.has_aborted {
                segment.set_has_aborted();
            }
            let due = due_after(self.env.clock.now(), self.config().file_delete_delay_ms);
            if let Some(due) = due {
                self.deletions.keep(&self.dir, base, due)?;
            }
            Segment::replace(group, || -> Result<(), LogError> {
                swap::rename(&self.dir, base)?;
                self.segments.write().splice(place, [segment]);
                Ok(())
            })?;
            let others: Vec<_> = group.iter().skip(1).map(|segment| segment.base).collect();
            if let Some(due) = due {
                others.iter().try_for_each(|base| self.deletions.put_off(&self.dir, *base, due))?;
            }
            swap::finish(&self.dir, base, end, &others)
        });
        // What is in the folder now is for the next start to say.
        done.inspect_err(|error| self.fail("compacting", &std::io::Error::other(error.to_string())))?;
        let before: u64 = group.iter().map(|segment| segment.size_bytes()).sum();
        self.env.metrics.hot_bytes.add(gauge(rewritten.size_bytes) - gauge(before));
        self.note_compaction(end);
        Ok(true)
    }

    /// The aborted transactions that a segment has batches or markers of; None where the segment is gone.
    fn aborted_of(&self, segment: &Segment) -> Result<Option<Vec<AbortedTransaction>>, LogError> {
        let aborted = self.aborted_local(segment.base, segment.end())?;
        // What was dropped meanwhile is not in the list.
        Ok((self.local_start_offset() <= segment.base).then_some(aborted))
    }

    /// Best effort: what stays is removed at the next start, or written over.
    fn forget_cleaned(&self, group: &[Arc<Segment>]) {
        if let Some(first) = group.first()
            && let Err(error) = swap::remove_cleaned(&self.dir, first.base)
        {
            tracing::debug!(partition = %self.topic_partition(), %error, "cleaned files left behind");
        }
    }
}

/// Since the records of its first batch; None where they have no time, or it cannot be read.
fn oldest_age_ms(segment: &Segment, now: Timestamp) -> Option<i64> {
    let log = segment.log().ok()?;
    let first = segment.first_from(&log, 0, |_| true).ok()??;
    let timestamp = first.header.max_timestamp;
    (timestamp.0 >= 0).then(|| now.0.saturating_sub(timestamp.0))
}

/// Notes the keys of all records from `from` on. Returns how far the map reaches: to the end of the segments, or to the
/// record for which there was no room. What was aborted replaces nothing. None where `pace` said stop, or a segment is
/// gone.
fn note_keys(
    segments: &[Arc<Segment>],
    from: Offset,
    aborted_of: AbortedOf<'_>,
    map: &mut OffsetMap,
    pace: &mut Pace<'_>,
) -> Result<Option<Offset>, LogError> {
    let mut rewriter = BatchRewriter::new(DECOMPRESSED_BATCH_BYTES_MAX);
    let mut covered = from;
    for segment in segments.iter().filter(|segment| segment.end() > from) {
        let Some(aborted) = aborted_of(segment)? else { return Ok(None) };
        let aborted = AbortedBatches::of(&aborted);
        let mut position = 0;
        for batch in SealedSegment::of(segment).batches()? {
            let batch = batch?;
            let damaged = |source| LogError::Damaged { path: segment.path(), position, source };
            let header = BatchHeader::read(&batch).map_err(damaged)?;
            position += batch.len() as u64;
            if header.last_offset() >= from && !header.is_control() && !aborted.contains(&header) {
                let mut full = None;
                let noted = rewriter.for_each(&batch, |record| {
                    if full.is_none()
                        && record.offset >= from
                        && let Some(key) = record.key
                        && !map.put(key, record.offset)
                    {
                        full = Some(record.offset);
                    }
                });
                if let Some(full) = full {
                    return Ok(Some(full));
                }
                if let Err(error) = noted {
                    // Its keys replace nothing; see `filter.rs`.
                    tracing::debug!(offset = %header.base_offset, %error, "a batch that cannot be decoded is not compacted");
                }
            }
            if !pace.goes_on(batch.len()) {
                return Ok(None);
            }
        }
        covered = segment.end();
    }
    Ok(Some(covered))
}

/// A place at which a test has the process die.
#[cfg(test)]
fn crash_point() {
    super::tests::crash_point();
}
#[cfg(not(test))]
fn crash_point() {}
