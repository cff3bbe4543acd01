//! The first station: sealed batches become the objects of a data file, in memory, in one decode. The split is made on
//! the way, or out of the live index's when the file is complete (`prepared.rs`).
//!
//! # Transactions
//! Only what every transaction of has ended is archived, so that it is known what was aborted. Batches of aborted
//! transactions are left out, and so are markers: what the archive serves has no producers that a marker could speak
//! of. One marker is kept byte for byte: the one that a file ends with. A reader comes to the end of a range by reading
//! its last batch; a range that ended in a hole would have no such batch, and the reader would never be told that it is
//! there. (A file that ends in what was aborted is followed by the marker that says so.)
//!
//! # Undecodable batches
//! The broker does not open compressed batches when it takes them. One that turns out not to decode (damaged
//! compression, record offsets not 0, 1, 2..., a header key that is not UTF-8, a timestamp that does not fit into
//! microseconds) goes byte for byte into the raw object, so that its producer's consumers get exactly
//! what was sent. The manifest lists each, so a file that has [`crate::manifest::RAW_BATCHES_MAX`] of them is cut.
//!
//! The decoder checks a batch as a whole before it gives out its first record; only the timestamp is
//! found on the way. If that happens in the middle of a batch, records of it are in the file already, so the file is
//! started over, with every batch checked before it is fed. That costs a second decode, once per segment at most.

use bytes::Bytes;
use thermocline_ingest::log::{AbortedTransaction, LogError};
use thermocline_ingest::model::Offset;
use thermocline_ingest::read::is_committed;
use thermocline_ingest::record::{BatchDecoder, BatchError, BatchHeader, DECOMPRESSED_BATCH_BYTES_MAX, Record};
use tracing::warn;

use super::builder::{FileBuilder, Indexing, StagedArchive};
use super::prepared::{PreparedSource, ends_with_split};
use crate::parquet::{ParquetError, ParquetOptions, to_micros};
use crate::paths::PartitionPath;
use crate::split::{Prepared, SplitError, SplitOptions, SplitWriter};

/// Why a marker is kept.
const MARKER: &str = "transaction marker at the end of a file";

/// The batches of a segment in offset order, byte for byte.
pub type Batches = Box<dyn Iterator<Item = Result<Bytes, LogError>> + Send>;
/// Opens the batches of a segment from the start. Blocking.
pub type BatchSource = Box<dyn Fn() -> Result<Batches, LogError> + Send>;

/// Why a segment could not be staged. The segment itself is at fault in the first three.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    #[error("reading the sealed segment")]
    Log(#[from] LogError),
    #[error("the sealed segment has a damaged batch header where offset {expected} was expected")]
    Header { expected: Offset, source: BatchError },
    #[error("the sealed segment continues at offset {found} where {expected} was expected")]
    Hole { expected: Offset, found: Offset },
    #[error("encoding the data file")]
    Parquet(#[from] ParquetError),
    #[error("indexing the data file")]
    Split(#[from] SplitError),
}

/// How a partition's data files are made.
#[derive(Clone, Debug)]
pub struct StageOptions {
    pub path: PartitionPath,
    pub parquet: ParquetOptions,
    /// Decoded bytes, or memory held, after which the segment continues in a further file.
    pub file_bytes_max: usize,
    /// None where search.index = off
    pub split: Option<SplitOptions>,
}

impl StageOptions {
    fn new_file(&self, indexing: FileIndexing) -> Result<FileBuilder, StageError> {
        let index = match self.split {
            Some(options) if indexing == FileIndexing::Records => {
                Indexing::Records(Box::new(SplitWriter::new(options)?))
            }
            _ => Indexing::Off,
        };
        FileBuilder::new(&self.path, self.parquet, index)
    }
}

/// Where the split of a file comes from, if it has one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FileIndexing {
    /// Each record is indexed on its way into the file.
    Records,
    /// Splits that are there already, once the file is complete.
    Prepared,
}

/// Cuts a segment into data files, one at a time. Blocking and CPU-bound.
pub struct Stager {
    options: StageOptions,
    source: BatchSource,
    aborted: Vec<AbortedTransaction>,
    batches: Option<Batches>,
    decoder: BatchDecoder,
    prepared: Option<PreparedSource>,
    /// the next offset to stage
    position: Offset,
    check_first: bool,
}

/// What became of a batch.
enum Fed {
    Whole,
    /// A record in its middle cannot be stored, and those before it are in the file already.
    StartOver,
}

/// Why the records of a batch were not fed into a file.
enum FeedError {
    /// Nothing of it was fed.
    KeepRaw(String),
    /// Some of it was.
    StartOver,
    Failed(StageError),
}

impl From<BatchError> for FeedError {
    fn from(error: BatchError) -> Self {
        Self::KeepRaw(error.to_string())
    }
}

impl Stager {
    /// Stages what `source` has from the batch that holds `from` on, less what was `aborted`. Splits come from
    /// `prepared` as far as possible.
    pub fn new(
        source: BatchSource,
        aborted: Vec<AbortedTransaction>,
        from: Offset,
        options: StageOptions,
        prepared: Option<PreparedSource>,
    ) -> Self {
        let decoder = BatchDecoder::new(DECOMPRESSED_BATCH_BYTES_MAX);
        Self { options, source, aborted, batches: None, decoder, prepared, position: from, check_first: false }
    }

    /// The next data file; `None` when the segment is done.
    pub fn next_file(&mut self) -> Result<Option<StagedArchive>, StageError> {
        let prepared = self.prepared.clone().zip(self.options.split).map(|(source, options)| {
            let splits = source.look(&self.options.path, self.position, options);
            (source, options, splits)
        });
        let splits = prepared.as_ref().map(|(_, _, splits)| splits);
        if let Some((source, options, splits)) = &prepared
            && source.is_ready(splits, self.position)
        {
            let (mut file, next) = self.fill(FileIndexing::Prepared, Some(splits))?;
            let is_full_of_raw = file.is_full_of_raw();
            if self.take_splits(&mut file, source, *options, splits) {
                match file.finish(&self.options.path) {
                    Err(StageError::Split(error)) => self.index_anew(&error),
                    finished => {
                        self.position = next;
                        return finished;
                    }
                }
            }
            self.batches = None;
            // There may be very many such files, and to try each would read the segment from its start each time.
            if is_full_of_raw {
                self.prepared = None;
            }
        }
        let (file, next) = self.fill(FileIndexing::Records, splits)?;
        self.position = next;
        file.finish(&self.options.path)
    }

    /// Gives a complete file the splits that were there before it, or are by now; says whether they are its own.
    fn take_splits(
        &self,
        file: &mut FileBuilder,
        source: &PreparedSource,
        options: SplitOptions,
        before: &Prepared,
    ) -> bool {
        let found = match source.splits_of(file, before) {
            Ok(None) => source.splits_of(file, &source.look(&self.options.path, self.position, options)),
            found => found,
        };
        match found {
            Ok(Some(splits)) => {
                file.index_from(splits);
                true
            }
            Ok(None) => false,
            Err(error) => {
                self.index_anew(&error);
                false
            }
        }
    }

    fn index_anew(&self, error: &SplitError) {
        let (path, from) = (self.options.path.root(), self.position);
        let error: &dyn std::error::Error = error;
        warn!(%path, %from, error, "splits that were there are of no use; indexing again");
    }

    /// Puts records into a file until it is large enough or the segment ends. Returns the offset after it.
    fn fill(&mut self, indexing: FileIndexing, splits: Option<&Prepared>) -> Result<(FileBuilder, Offset), StageError> {
        let mut batches = match self.batches.take() {
            Some(batches) => batches,
            None => (self.source)()?,
        };
        let bytes_max = self.options.file_bytes_max;
        let mut file = self.options.new_file(indexing)?;
        let mut position = self.position;
        // A marker that the file would end with.
        let mut marker = None;
        // One batch at least, for an empty file would say that the segment is done.
        while file.is_empty()
            || (file.size_bytes() < bytes_max
                && !file.is_full_of_raw()
                && !ends_with_split(splits, position, file.size_bytes(), bytes_max))
        {
            let Some(batch) = batches.next().transpose()? else { break };
            let header =
                BatchHeader::read(&batch).map_err(|source| StageError::Header { expected: position, source })?;
            if header.last_offset() < position {
                continue;
            }
            // Only the first batch of an archive may start below: the log start can lie in the middle of a batch.
            if header.base_offset > position || (!file.is_empty() && header.base_offset != position) {
                return Err(StageError::Hole { expected: position, found: header.base_offset });
            }
            if !is_committed(&header, &self.aborted) {
                file.drop_batch(&header, batch.len() as u64);
                marker = header.is_control().then_some((header, batch));
                position = header.next_offset();
                continue;
            }
            marker = None;
            match self.feed(&mut file, &header, &batch)? {
                Fed::Whole => position = header.next_offset(),
                Fed::StartOver => {
                    self.check_first = true;
                    batches = (self.source)()?;
                    file = self.options.new_file(indexing)?;
                    position = self.position;
                }
            }
        }
        if let Some((header, batch)) = marker {
            file.keep_dropped(&header, &batch, MARKER.to_owned());
        }
        self.batches = Some(batches);
        Ok((file, position))
    }

    /// Adds one batch to the file: its records, or the batch as it is.
    fn feed(&mut self, file: &mut FileBuilder, header: &BatchHeader, batch: &Bytes) -> Result<Fed, StageError> {
        match self.feed_records(file, batch) {
            Ok(()) => {}
            Err(FeedError::KeepRaw(reason)) => file.keep_raw(header, batch, reason),
            Err(FeedError::StartOver) => return Ok(Fed::StartOver),
            Err(FeedError::Failed(error)) => return Err(error),
        }
        file.cover_batch(header, batch.len() as u64);
        Ok(Fed::Whole)
    }

    fn feed_records(&mut self, file: &mut FileBuilder, batch: &[u8]) -> Result<(), FeedError> {
        if self.check_first {
            self.decoder.for_each(batch, |record| match to_micros(record.timestamp) {
                Some(_) => Ok(()),
                None => Err(FeedError::KeepRaw(unfit_timestamp(&record).to_string())),
            })?;
        }
        let rows_before = file.row_count();
        self.decoder.for_each(batch, |record| match file.add(&record) {
            Err(StageError::Parquet(unfit @ ParquetError::Timestamp { .. })) => {
                let untouched = file.row_count() == rows_before;
                Err(if untouched { FeedError::KeepRaw(unfit.to_string()) } else { FeedError::StartOver })
            }
            added => added.map_err(FeedError::Failed),
        })
    }
}

fn unfit_timestamp(record: &Record<'_>) -> ParquetError {
    ParquetError::Timestamp { offset: record.offset, timestamp: record.timestamp }
}
