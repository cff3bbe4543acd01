//! What a partition remembers of its producers, after a start: from the newest producer snapshot and the batches after
//! it. The same walk finds which transactions were aborted since, and puts the indexes of those right.
//!
//! In a compacted segment batches may be missing; the last one of each producer is there, be it without records, and so
//! is the marker of each transaction of which anything is left (`cleaner/filter.rs`). So what is found is as true as
//! before.
//!
//! What an index has below the snapshot was durable before the snapshot was. Only where the file is damaged the whole
//! local log is walked for what is missing; of a transaction that began before it, the part that is local then counts.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::error::{IoContext, LogError};
use super::index::IndexFile;
use super::producer_state::ProducerState;
use super::scan::Scanner;
use super::segment::{LogFile, Segment, SegmentFiles, file_path, sync_dir};
use super::snapshot;
use super::transactions::{ABORTED, AbortedTransaction};
use crate::model::{Offset, Timestamp, TimestampType};
use crate::record::{BatchHeader, TransactionOutcome, decode_marker};

/// Aborted transactions by the base of the segment that holds the marker.
type Aborted = BTreeMap<Offset, Vec<AbortedTransaction>>;

/// The producer state as of `end`, the end of the last of `segments`, whose files are `active`. Blocking.
pub fn producers(
    dir: &Path,
    segments: &[Arc<Segment>],
    active: &SegmentFiles,
    end: Offset,
    now: Timestamp,
) -> Result<ProducerState, LogError> {
    let (loaded, is_damaged) = snapshot::load(dir, end)?;
    let (from, mut state) = loaded.unwrap_or_default();
    let found = walk(segments, from, &mut state, now)?;
    let mut all = None;
    for segment in segments {
        let (stored, whole) = stored(dir, segment.base)?;
        let mut entries: Vec<_> = stored.iter().filter(|entry| entry.last_offset < from).copied().collect();
        if !whole && segment.base < from {
            if all.is_none() {
                all = Some(walk(segments, Offset::ZERO, &mut ProducerState::default(), now)?);
            }
            let known = entries.last().map(|entry| entry.last_offset);
            let missing = all.iter().flat_map(|all| all.get(&segment.base)).flatten();
            entries.extend(missing.filter(|entry| Some(entry.last_offset) > known && entry.last_offset < from));
        }
        entries.extend(found.get(&segment.base).into_iter().flatten());
        if !whole || entries != stored {
            rewrite(dir, segment, active, &entries)?;
        }
        if !entries.is_empty() {
            segment.set_has_aborted();
        }
    }
    if is_damaged {
        // The batches that stand in for it may be archived and trimmed before the next one is written.
        snapshot::write(dir, end, &state)?;
    }
    Ok(state)
}

/// What the index of the segment says, and whether all of it reads well.
fn stored(dir: &Path, base: Offset) -> Result<(Vec<AbortedTransaction>, bool), LogError> {
    let path = file_path(dir, base, ABORTED);
    match IndexFile::open(&path).and_then(|index| index.sound()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((Vec::new(), true)),
        read => read.on("read", &path),
    }
}

fn rewrite(
    dir: &Path,
    segment: &Arc<Segment>,
    active: &SegmentFiles,
    entries: &[AbortedTransaction],
) -> Result<(), LogError> {
    let path = file_path(dir, segment.base, ABORTED);
    tracing::info!(path = %path.display(), entries = entries.len(), "index of aborted transactions made anew");
    let replace = |index: &IndexFile<AbortedTransaction>| index.replace(entries).and_then(|()| index.sync());
    let rewritten = if segment.is_active() {
        active.make_aborted(dir, segment.base).and_then(replace)
    } else {
        IndexFile::open_writable(&path).and_then(|index| replace(&index))
    };
    rewritten.on("write", &path)?;
    sync_dir(dir)
}

/// Feeds the batches at or above `from` to `state`, and returns the transactions that were aborted on the way.
fn walk(
    segments: &[Arc<Segment>],
    from: Offset,
    state: &mut ProducerState,
    now: Timestamp,
) -> Result<Aborted, LogError> {
    let mut aborted = Aborted::new();
    for segment in segments.iter().filter(|segment| segment.end() > from) {
        let log = segment.log()?;
        let Some(first) = segment.find(&log, from.max(segment.base))? else { continue };
        let mut scanner = Scanner::headers(&log, first.position, segment.size_bytes(), segment.has_holes);
        while let Some(placed) = scanner.next().map_err(|error| segment.scan_error(error))? {
            let header = placed.header;
            if !header.is_control() {
                state.record(&header, log_append_time(&header), now);
                continue;
            }
            let Some(outcome) = marker(segment, &log, &header, placed.position)? else { continue };
            if let Some((first_offset, last_stable_offset)) = state.end(&header, now)
                && outcome == TransactionOutcome::Abort
            {
                let (last_offset, producer_id) = (header.base_offset, header.producer_id);
                let entry = AbortedTransaction { first_offset, last_offset, producer_id, last_stable_offset };
                aborted.entry(segment.base).or_default().push(entry);
            }
        }
    }
    Ok(aborted)
}

fn marker(
    segment: &Segment,
    log: &LogFile,
    header: &BatchHeader,
    position: u64,
) -> Result<Option<TransactionOutcome>, LogError> {
    let mut batch = vec![0; header.size_bytes()];
    log.read_exact_at(&mut batch, position).on("read", &segment.path())?;
    decode_marker(&batch).map_err(|source| LogError::Damaged { path: segment.path(), position, source })
}

fn log_append_time(header: &BatchHeader) -> Timestamp {
    match header.timestamp_type() {
        TimestampType::CreateTime => Timestamp::NONE,
        TimestampType::LogAppendTime => header.max_timestamp,
    }
}
