//! Building one live split from the log, which is the truth: read, decode, index, write to the scratch folder, open.
//! Neighbouring splits become one without the log.
//!
//! What is archived takes its index over from here (`thermocline_tiering::split::PreparedSplits`). So a chunk ends
//! where a segment of the log does: an archived file is of one segment.
//!
//! A scratch file is a split as the archive writes it (see `thermocline_tiering::split`), named `<number>.split`. It is
//! not synced and nothing refers to it after the process is gone: the folder is emptied at start.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tantivy::directory::FileHandle;
use thermocline_ingest::log::Partition;
use thermocline_ingest::model::{Offset, Timestamp};
use thermocline_ingest::read::{ReadError, ReadRange, is_committed};
use thermocline_ingest::record::{BatchDecoder, BatchError, BatchHeader, DECOMPRESSED_BATCH_BYTES_MAX, split_batches};
use thermocline_tiering::split::{SplitError, SplitJoin, SplitOptions, SplitReader, SplitWriter, checksum, local_file};
use tracing::warn;

use super::coverage::Spans;
use super::plan::Cost;
use crate::search::metrics::SearchMetrics;

/// Memory that the records of a chunk take in the writer, past which a chunk ends at the next batch.
const CHUNK_MEMORY_MAX: usize = 64 << 20;

/// A split over records that are still in the log.
pub(crate) struct LiveSplit {
    span: Range<Offset>,
    pub min_timestamp: Timestamp,
    pub max_timestamp: Timestamp,
    pub docs: u64,
    pub cost: Cost,
    /// How it was made; the topic may ask for something else by now.
    pub options: SplitOptions,
    /// How often the partition had been compacted before it was made.
    pub compactions: u64,
    pub reader: SplitReader,
    /// The whole of it. It can be read for as long as somebody has this, also after the file was removed.
    pub file: Arc<dyn FileHandle>,
    /// Of the file as it was written.
    pub checksum: u32,
    _scratch: ScratchFile,
}

/// Removes the file when the last reader is gone, and is counted in the gauges until then.
struct ScratchFile {
    path: PathBuf,
    docs: i64,
    size_bytes: i64,
    metrics: Arc<SearchMetrics>,
}

/// What is to be indexed.
pub(crate) struct Chunk {
    pub from: Offset,
    /// Exclusive; at most the last stable offset, for what comes after it may still be aborted, and at most the end of
    /// the segment.
    pub until: Offset,
    /// Log bytes to read at once.
    pub step_bytes: usize,
    /// Stop after one step, or once the writer is full; otherwise go on to `until`.
    pub one_step: bool,
}

/// What was indexed.
pub(crate) struct Indexed {
    /// None where no record of the range could be decoded.
    pub split: Option<LiveSplit>,
    /// Exclusive end of what was read; equal to `from` where there was nothing to read.
    pub through: Offset,
    pub batches_skipped: u64,
}

/// Why a live split could not be built.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("a batch cannot be decoded")]
    Batch(#[from] BatchError),
    #[error("indexing")]
    Split(#[from] SplitError),
    #[error("scratch file {path}")]
    Scratch { path: PathBuf, source: std::io::Error },
}

/// What one writer has taken so far.
struct Building {
    writer: SplitWriter,
    /// What an empty writer takes: paid once, however many splits are merged into one.
    writer_bytes: usize,
    from: Offset,
    compactions: u64,
    docs: u64,
    log_bytes: u64,
    min_timestamp: Timestamp,
    max_timestamp: Timestamp,
}

/// Indexes `chunk` into the file `path`. Blocking. On failure no file is left.
pub(crate) fn build(
    partition: &Partition,
    chunk: &Chunk,
    options: SplitOptions,
    path: PathBuf,
    metrics: &Arc<SearchMetrics>,
) -> Result<Indexed, BuildError> {
    let (compactions, _) = partition.compactions();
    let mut building = Building::new(options, chunk.from, compactions)?;
    let mut decoder = BatchDecoder::new(DECOMPRESSED_BATCH_BYTES_MAX);
    let (mut through, mut batches_skipped) = (chunk.from, 0);
    while through < chunk.until {
        let (from, until) = (through, chunk.until);
        let run = partition.read(&ReadRange { from, until, max_bytes: chunk.step_bytes, at_least_one: true })?;
        if run.is_empty() {
            // Compaction left nothing in the rest of the chunk.
            through = until;
        }
        let aborted = run.aborted;
        for batch in run.chunks.into_iter().flat_map(split_batches) {
            let batch = batch?;
            let header = BatchHeader::read(&batch)?;
            let end = header.next_offset();
            let added = if is_committed(&header, &aborted) { building.add(&mut decoder, &batch) } else { Ok(()) };
            match added {
                Ok(()) => {}
                Err(BuildError::Batch(error)) => {
                    batches_skipped += 1;
                    let partition = partition.topic_partition();
                    warn!(%partition, through = %end, %error, "a batch cannot be searched while it is hot");
                }
                Err(error) => return Err(error),
            }
            through = through.max(end);
            if chunk.one_step && building.memory_bytes() >= CHUNK_MEMORY_MAX {
                break;
            }
        }
        if chunk.one_step || through == from {
            break;
        }
    }
    let split = building.finish(through, path, metrics)?;
    Ok(Indexed { split, through, batches_skipped })
}

/// Puts neighbouring splits together without their records; None where they were not made in the same way. Several
/// times faster than indexing again. Blocking. On failure no file is left.
pub(crate) fn join(
    members: &[Arc<LiveSplit>],
    path: PathBuf,
    metrics: &Arc<SearchMetrics>,
) -> Result<Option<Indexed>, BuildError> {
    let (Some(first), Some(last)) = (members.first(), members.last()) else { return Ok(None) };
    let readers = members.iter().map(|member| in_memory(&member.file)).collect::<Result<_, _>>()?;
    let SplitJoin::Merge(merger) = SplitJoin::of(readers)? else { return Ok(None) };
    let bytes = merger.finish()?;
    let (through, batches_skipped) = (last.span.end, 0);
    let made = Made {
        span: first.span.start..through,
        min_timestamp: members.iter().map(|member| member.min_timestamp).min().unwrap_or_default(),
        max_timestamp: members.iter().map(|member| member.max_timestamp).max().unwrap_or_default(),
        docs: members.iter().map(|member| member.docs).sum(),
        cost: Cost {
            log_bytes: members.iter().map(|member| member.cost.log_bytes).sum(),
            memory_bytes: members.iter().map(|member| member.cost.memory_bytes).sum(),
        },
        options: first.options,
        compactions: members.iter().map(|member| member.compactions).min().unwrap_or_default(),
    };
    Ok(Some(Indexed { split: Some(made.keep(bytes, path, metrics)?), through, batches_skipped }))
}

/// A merge reads all of a split, term by term: that is too many reads for a file.
fn in_memory(file: &Arc<dyn FileHandle>) -> Result<SplitReader, SplitError> {
    SplitReader::open(Arc::new(file.read_bytes(0..file.len())?))
}

/// What is known of a split before it is a file.
struct Made {
    span: Range<Offset>,
    min_timestamp: Timestamp,
    max_timestamp: Timestamp,
    docs: u64,
    cost: Cost,
    options: SplitOptions,
    compactions: u64,
}

impl Made {
    /// Writes the scratch file and opens it.
    fn keep(self, bytes: Bytes, path: PathBuf, metrics: &Arc<SearchMetrics>) -> Result<LiveSplit, BuildError> {
        let scratch = |source| BuildError::Scratch { path: path.clone(), source };
        let kept = ScratchFile::new(path.clone(), self.docs, bytes.len(), metrics.clone());
        std::fs::write(&path, &bytes).map_err(scratch)?;
        let file = local_file(&path).map_err(scratch)?;
        let reader = SplitReader::open(file.clone())?;
        let Self { span, min_timestamp, max_timestamp, docs, cost, options, compactions } = self;
        Ok(LiveSplit {
            span,
            min_timestamp,
            max_timestamp,
            docs,
            cost,
            options,
            compactions,
            reader,
            file,
            checksum: checksum(&bytes),
            _scratch: kept,
        })
    }
}

impl Building {
    fn new(options: SplitOptions, from: Offset, compactions: u64) -> Result<Self, SplitError> {
        let writer = SplitWriter::new(options)?;
        Ok(Self {
            writer_bytes: writer.mem_usage_bytes(),
            writer,
            from,
            compactions,
            docs: 0,
            log_bytes: 0,
            min_timestamp: Timestamp(i64::MAX),
            max_timestamp: Timestamp(i64::MIN),
        })
    }

    fn memory_bytes(&self) -> usize {
        self.writer.mem_usage_bytes().saturating_sub(self.writer_bytes)
    }

    /// The decoder checks a batch as a whole before it hands out records, so a batch is indexed whole or not at all.
    fn add(&mut self, decoder: &mut BatchDecoder, batch: &[u8]) -> Result<(), BuildError> {
        self.log_bytes += batch.len() as u64;
        decoder.for_each(batch, |record| {
            // A log that starts inside a batch still hands out the whole batch.
            if record.offset >= self.from {
                self.writer.add(&record)?;
                self.docs += 1;
                self.min_timestamp = self.min_timestamp.min(record.timestamp);
                self.max_timestamp = self.max_timestamp.max(record.timestamp);
            }
            Ok(())
        })
    }

    fn finish(
        self,
        through: Offset,
        path: PathBuf,
        metrics: &Arc<SearchMetrics>,
    ) -> Result<Option<LiveSplit>, BuildError> {
        if self.docs == 0 {
            return Ok(None);
        }
        let made = Made {
            span: self.from..through,
            min_timestamp: self.min_timestamp,
            max_timestamp: self.max_timestamp,
            docs: self.docs,
            cost: Cost { log_bytes: self.log_bytes, memory_bytes: self.memory_bytes() },
            options: self.writer.options(),
            compactions: self.compactions,
        };
        Ok(Some(made.keep(self.writer.finish()?, path, metrics)?))
    }
}

impl LiveSplit {
    /// Whether it was made in another way than is `wanted` now, or may hold messages that compaction has taken out of
    /// `partition` since. The latter are left out of every page of hits, as they are not found there any more, but
    /// counted until it is made again.
    pub fn is_outdated(&self, wanted: SplitOptions, partition: &Partition) -> bool {
        let (compactions, through) = partition.compactions();
        self.options != wanted || self.compactions < compactions && self.span.start < through
    }
}

impl Spans for LiveSplit {
    fn span(&self) -> Range<Offset> {
        self.span.clone()
    }
}

impl ScratchFile {
    fn new(path: PathBuf, docs: u64, size_bytes: usize, metrics: Arc<SearchMetrics>) -> Self {
        let docs = i64::try_from(docs).unwrap_or(i64::MAX);
        let size_bytes = i64::try_from(size_bytes).unwrap_or(i64::MAX);
        metrics.live_docs.add(docs);
        metrics.live_bytes.add(size_bytes);
        Self { path, docs, size_bytes, metrics }
    }
}

impl Drop for ScratchFile {
    fn drop(&mut self) {
        self.metrics.live_docs.sub(self.docs);
        self.metrics.live_bytes.sub(self.size_bytes);
        // It may never have come to be; what stays is removed at the next start.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Creates the scratch folder, or empties it of splits. Other files are left alone. Blocking.
pub(crate) fn empty_scratch(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "split") {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scratch_file_is_counted_while_it_exists() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("0.split");
        std::fs::write(&path, b"split")?;
        let metrics = Arc::new(SearchMetrics::new(&prometheus::Registry::new())?);
        let file = ScratchFile::new(path.clone(), 3, 5, metrics.clone());
        assert_eq!((metrics.live_docs.get(), metrics.live_bytes.get()), (3, 5));
        drop(file);
        assert_eq!((metrics.live_docs.get(), metrics.live_bytes.get()), (0, 0));
        assert!(!path.exists());
        Ok(())
    }

    #[test]
    fn only_old_splits_are_wiped() -> std::io::Result<()> {
        let folder = tempfile::tempdir()?;
        let scratch = folder.path().join("live");
        empty_scratch(&scratch)?;
        std::fs::write(scratch.join("7.split"), b"old")?;
        std::fs::write(scratch.join("notes.txt"), b"mine")?;
        empty_scratch(&scratch)?;
        assert!(!scratch.join("7.split").exists());
        assert!(scratch.join("notes.txt").exists());
        Ok(())
    }
}
