//! Which neighbouring data files become one next. Pure.
//!
//! Files that are finished, at least half of what a merged file may be ([`FINISHED_SHARE`]), are left alone. What lies
//! between them is a run. The plan walks each run from its oldest file as if the files were being appended one by one,
//! and merges at the first of these places, always [`FILES_MIN`] files or more:
//!
//! - *Full*: the next file would make the run larger than a merged file may be, or nothing can be added to it any more
//!   because a finished file follows, or one that was indexed in another way or not at all. The run is merged as a
//!   whole. A run that is full with fewer files has large ones, a quarter of the limit or so, which stay: its oldest
//!   file leaves it.
//! - *Tier*: the files behind some file of the run hold together at least [`FAN_IN`]` - 1` times what it holds. The
//!   oldest such file and all behind it are merged.
//!
//! Equal files are thus counted like digits of base [`FAN_IN`]: eight of one size become one of the next. A year of
//! one-minute segments, 525 600 files: of 1 MiB each, 2057 files are left and a byte is rewritten 2.9 times on average
//! (8, 64 and 256 MiB); of 10 KiB each, 31 files and 4.6 times.
//!
//! # Bounds
//! *Files.* At rest, every file of a run that fits but the last [`FILES_MIN`] holds more than a `FAN_IN - 1`th of all
//! behind it, so `v` bytes whose smallest file has `s` lie in at most `log(v / s) / log(8 / 7) + FILES_MIN` files,
//! however they came about.
//! *Rewriting.* When a tier is merged, its oldest file grows `FAN_IN` times. The others move up to an older file, of
//! which there are at most as many as a run has files; and a run that is full is finished by that. So each byte is
//! rewritten a number of times that is logarithmic in the size of the target, whatever sizes come in.

use std::ops::Range;
use std::sync::Arc;

use thermocline_ingest::model::Timestamp;

use crate::manifest::{DataFile, RAW_BATCHES_MAX};
use crate::split::SplitOptions;

/// How many times larger the oldest file of a tier becomes.
pub const FAN_IN: u64 = 8;
/// Fewest files that are merged: full segments, of which two make a merged file, are left as they are.
pub const FILES_MIN: usize = 4;
/// A file of this share of the limits, as a divisor, is not merged any more.
pub const FINISHED_SHARE: u64 = 2;
/// Batches kept raw that a merged file may have.
const RAW_MAX: u64 = RAW_BATCHES_MAX as u64;
/// What Tantivy remembers of each document while it merges.
pub(crate) const ROW_BYTES: u64 = 8;

/// How large a merged file may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeLimits {
    /// bytes of the log that it stands for
    pub log_bytes_max: u64,
    /// what merging it holds at once, see [`held_bytes`]
    pub held_bytes_max: u64,
    /// Milliseconds between its first and its last timestamp: a file expires as a whole, with its last record.
    pub span_ms_max: u64,
}

/// What files hold together.
#[derive(Clone, Copy, Debug)]
struct Extent {
    log_bytes: u64,
    held_bytes: u64,
    raw_batches: u64,
    min: Timestamp,
    max: Timestamp,
    index: Index,
}

/// Whether there is a split, and how it was made.
type Index = (bool, Option<SplitOptions>);

impl Extent {
    fn of(file: &DataFile) -> Self {
        let (min, max) = (file.min_timestamp, file.max_timestamp);
        Self {
            log_bytes: file.log_bytes.max(1),
            held_bytes: held_bytes(file),
            raw_batches: file.raw_batches() as u64,
            min,
            max,
            index: (file.split.is_some(), file.indexed),
        }
    }

    fn with(self, other: Self) -> Self {
        Self {
            log_bytes: self.log_bytes.saturating_add(other.log_bytes),
            held_bytes: self.held_bytes.saturating_add(other.held_bytes),
            raw_batches: self.raw_batches.saturating_add(other.raw_batches),
            min: self.min.min(other.min),
            max: self.max.max(other.max),
            index: self.index,
        }
    }

    fn span_ms(&self) -> u64 {
        self.max.0.abs_diff(self.min.0)
    }

    fn fits(&self, limits: &MergeLimits) -> bool {
        self.log_bytes <= limits.log_bytes_max
            && self.held_bytes <= limits.held_bytes_max
            && self.raw_batches <= RAW_MAX
            && self.span_ms() <= limits.span_ms_max
    }

    fn is_finished(&self, limits: &MergeLimits) -> bool {
        self.log_bytes >= limits.log_bytes_max / FINISHED_SHARE
            || self.held_bytes >= limits.held_bytes_max / FINISHED_SHARE
            || self.raw_batches >= RAW_MAX / FINISHED_SHARE
            || self.span_ms() > limits.span_ms_max / FINISHED_SHARE
    }
}

/// Memory that a file takes while it is merged, counted once: its objects, and the place of each row in the index.
pub fn held_bytes(file: &DataFile) -> u64 {
    file.objects().fold(file.rows.saturating_mul(ROW_BYTES), |sum, object| sum.saturating_add(object.size_bytes))
}

/// The next files to merge, oldest first; `None` where the archive is at rest. `is_barred` says which files are to
/// be left alone.
pub fn plan<'a>(
    files: impl IntoIterator<Item = &'a Arc<DataFile>>,
    limits: &MergeLimits,
    is_barred: impl Fn(&DataFile) -> bool,
) -> Option<Range<usize>> {
    // The run under way: `files[start..at]`, what each of them holds.
    let mut start = 0;
    let mut run: Vec<Extent> = Vec::new();
    for (at, file) in files.into_iter().enumerate() {
        let extent = Extent::of(file);
        let is_closed = extent.is_finished(limits) || is_barred(file);
        let differs = run.first().is_some_and(|oldest| oldest.index != extent.index);
        if is_closed || differs {
            if run.len() >= FILES_MIN {
                return Some(start..at);
            }
            run.clear();
            start = at;
        }
        if is_closed {
            start = at + 1;
            continue;
        }
        while run.iter().copied().reduce(Extent::with).is_some_and(|held| !held.with(extent).fits(limits)) {
            if run.len() >= FILES_MIN {
                return Some(start..at);
            }
            // Large files, or far from one another in time: the oldest has too few neighbours to be merged with.
            run.remove(0);
            start += 1;
        }
        run.push(extent);
        if let Some(oldest) = tier(&run) {
            return Some(start + oldest..at + 1);
        }
    }
    None
}

/// The oldest file of a run behind which there is enough to be merged with it.
fn tier(run: &[Extent]) -> Option<usize> {
    let mut behind = 0_u64;
    let mut oldest = None;
    for (at, extent) in run.iter().enumerate().rev() {
        let is_enough = behind >= extent.log_bytes.saturating_mul(FAN_IN - 1);
        if is_enough && run.len() - at >= FILES_MIN {
            oldest = Some(at);
        }
        behind = behind.saturating_add(extent.log_bytes);
    }
    oldest
}

#[cfg(test)]
mod tests;
