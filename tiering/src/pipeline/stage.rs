//! The first station: sealed batches become the objects of a data file, in memory, in one decode.
//!
//! # Undecodable batches
//! The broker does not open compressed batches when it takes them. One that turns out not to decode (damaged
//! compression, record offsets not 0, 1, 2..., a header key that is not UTF-8, a control batch, a timestamp that does
//! not fit into microseconds) goes byte for byte into the raw object, so that its producer's consumers get exactly
//! what was sent. The decoder checks a batch as a whole before it gives out its first record; only the timestamp is
//! found on the way. If that happens in the middle of a batch, records of it are in the file already, so the file is
//! started over, with every batch checked before it is fed. That costs a second decode, once per segment at most.

use bytes::{Bytes, BytesMut};
use object_store::path::Path as ObjectPath;
use thermocline_ingest::log::LogError;
use thermocline_ingest::model::{Offset, Timestamp};
use thermocline_ingest::record::{BatchDecoder, BatchError, BatchHeader, DECOMPRESSED_BATCH_BYTES_MAX, Record};

use crate::manifest::{DataFile, ObjectRef, RawBatch, RawBatches};
use crate::parquet::{ParquetEncoder, ParquetError, ParquetOptions, to_micros};
use crate::paths::{AttemptId, ObjectKind, PartitionPath, RangeName};
use crate::split::{SplitError, SplitOptions, SplitWriter};
use crate::verify::ContentDigest;

/// Longest reason stored with a raw batch.
const REASON_LEN_MAX: usize = 200;

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

/// The objects of one data file, in memory, named but not yet uploaded.
#[derive(Debug)]
pub struct StagedArchive {
    file: DataFile,
    objects: Vec<(ObjectPath, Bytes)>,
}

impl StagedArchive {
    /// What the manifest will say.
    pub fn file(&self) -> &DataFile {
        &self.file
    }
    /// Keys and bytes, the Parquet object first.
    pub fn objects(&self) -> &[(ObjectPath, Bytes)] {
        &self.objects
    }
    pub(super) fn into_file(self) -> DataFile {
        self.file
    }
}

/// Cuts a segment into data files, one at a time. Blocking and CPU-bound.
pub struct Stager {
    options: StageOptions,
    source: BatchSource,
    batches: Option<Batches>,
    decoder: BatchDecoder,
    /// the next offset to stage
    position: Offset,
    check_first: bool,
}

/// A data file under construction.
struct FileBuilder {
    parquet: ParquetEncoder,
    split: Option<SplitWriter>,
    digest: ContentDigest,
    raw: BytesMut,
    raw_batches: Vec<RawBatch>,
    range: Option<(Offset, Offset)>,
    times: Option<(Timestamp, Timestamp)>,
    log_bytes: u64,
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
    /// Stages what `source` has from the batch that holds `from` on.
    pub fn new(source: BatchSource, from: Offset, options: StageOptions) -> Self {
        let decoder = BatchDecoder::new(DECOMPRESSED_BATCH_BYTES_MAX);
        Self { options, source, batches: None, decoder, position: from, check_first: false }
    }

    /// The next data file; `None` when the segment is done.
    pub fn next_file(&mut self) -> Result<Option<StagedArchive>, StageError> {
        let mut batches = match self.batches.take() {
            Some(batches) => batches,
            None => (self.source)()?,
        };
        let mut file = FileBuilder::new(&self.options)?;
        let mut position = self.position;
        // One batch at least, for an empty file would say that the segment is done.
        while file.range.is_none() || file.size_bytes() < self.options.file_bytes_max {
            let Some(batch) = batches.next().transpose()? else { break };
            let header =
                BatchHeader::read(&batch).map_err(|source| StageError::Header { expected: position, source })?;
            if header.last_offset() < position {
                continue;
            }
            // Only the first batch of an archive may start below: the log start can lie in the middle of a batch.
            if header.base_offset > position || (file.range.is_some() && header.base_offset != position) {
                return Err(StageError::Hole { expected: position, found: header.base_offset });
            }
            match self.feed(&mut file, &header, &batch)? {
                Fed::Whole => position = header.next_offset(),
                Fed::StartOver => {
                    self.check_first = true;
                    batches = (self.source)()?;
                    file = FileBuilder::new(&self.options)?;
                    position = self.position;
                }
            }
        }
        self.position = position;
        self.batches = Some(batches);
        file.finish(&self.options.path)
    }

    /// Adds one batch to the file: its records, or the batch as it is.
    fn feed(&mut self, file: &mut FileBuilder, header: &BatchHeader, batch: &Bytes) -> Result<Fed, StageError> {
        let fed = if header.is_control() {
            Err(FeedError::KeepRaw("control batch".to_owned()))
        } else {
            self.feed_records(file, batch)
        };
        match fed {
            Ok(()) => {}
            Err(FeedError::KeepRaw(reason)) => file.keep_raw(header, batch, reason),
            Err(FeedError::StartOver) => return Ok(Fed::StartOver),
            Err(FeedError::Failed(error)) => return Err(error),
        }
        file.cover(header, batch.len() as u64);
        Ok(Fed::Whole)
    }

    fn feed_records(&mut self, file: &mut FileBuilder, batch: &[u8]) -> Result<(), FeedError> {
        if self.check_first {
            self.decoder.for_each(batch, |record| match to_micros(record.timestamp) {
                Some(_) => Ok(()),
                None => Err(FeedError::KeepRaw(unfit_timestamp(&record).to_string())),
            })?;
        }
        let rows_before = file.parquet.row_count();
        self.decoder.for_each(batch, |record| match file.add(&record) {
            Err(StageError::Parquet(unfit @ ParquetError::Timestamp { .. })) => {
                let untouched = file.parquet.row_count() == rows_before;
                Err(if untouched { FeedError::KeepRaw(unfit.to_string()) } else { FeedError::StartOver })
            }
            added => added.map_err(FeedError::Failed),
        })
    }
}

fn unfit_timestamp(record: &Record<'_>) -> ParquetError {
    ParquetError::Timestamp { offset: record.offset, timestamp: record.timestamp }
}

impl FileBuilder {
    fn new(options: &StageOptions) -> Result<Self, StageError> {
        Ok(Self {
            parquet: ParquetEncoder::new(options.path.partition, options.parquet)?,
            split: options.split.map(SplitWriter::new).transpose()?,
            digest: ContentDigest::new(),
            raw: BytesMut::new(),
            raw_batches: Vec::new(),
            range: None,
            times: None,
            log_bytes: 0,
        })
    }

    fn add(&mut self, record: &Record<'_>) -> Result<(), StageError> {
        self.parquet.push(record)?;
        self.digest.update(record);
        if let Some(split) = &mut self.split {
            split.add(record)?;
        }
        self.see_time(record.timestamp);
        Ok(())
    }

    fn keep_raw(&mut self, header: &BatchHeader, batch: &[u8], mut reason: String) {
        reason.truncate(reason.floor_char_boundary(REASON_LEN_MAX));
        self.raw_batches.push(RawBatch {
            base_offset: header.base_offset,
            last_offset: header.last_offset(),
            position: self.raw.len() as u64,
            size_bytes: batch.len() as u64,
            reason,
        });
        self.raw.extend_from_slice(batch);
        // The header's word is all there is; the file's time range must not exclude what Fetch would serve.
        self.see_time(header.base_timestamp);
        self.see_time(header.max_timestamp);
    }

    fn see_time(&mut self, time: Timestamp) {
        let (min, max) = self.times.unwrap_or((time, time));
        self.times = Some((min.min(time), max.max(time)));
    }

    fn cover(&mut self, header: &BatchHeader, log_bytes: u64) {
        let base = self.range.map_or(header.base_offset, |(base, _)| base);
        self.range = Some((base, header.last_offset()));
        self.log_bytes += log_bytes;
    }

    /// What counts towards the size at which a file is cut.
    fn size_bytes(&self) -> usize {
        let split = self.split.as_ref().map_or(0, SplitWriter::mem_usage_bytes);
        let held = self.parquet.memory_bytes().saturating_add(split).saturating_add(self.raw.len());
        held.max(self.parquet.decoded_bytes())
    }

    /// Names and closes the objects; `None` where no batch was fed.
    fn finish(self, path: &PartitionPath) -> Result<Option<StagedArchive>, StageError> {
        let (Some((base, last)), Some((min_timestamp, max_timestamp))) = (self.range, self.times) else {
            return Ok(None);
        };
        let attempt = AttemptId::fresh();
        let mut objects = Vec::with_capacity(3);
        let mut object = |kind, bytes: Bytes| {
            let key = path.object(&RangeName { kind, base, last, attempt });
            let reference = ObjectRef::of(&key, &bytes);
            objects.push((key, bytes));
            reference
        };
        let rows = self.parquet.row_count();
        let data = object(ObjectKind::Data, self.parquet.finish(&path.topic, base, last)?);
        let split = match self.split {
            Some(split) => Some(object(ObjectKind::Split, split.finish()?)),
            None => None,
        };
        let raw = match self.raw_batches {
            batches if batches.is_empty() => None,
            batches => Some(RawBatches { object: object(ObjectKind::Raw, self.raw.freeze()), batches }),
        };
        let file = DataFile {
            base_offset: base,
            last_offset: last,
            rows,
            min_timestamp,
            max_timestamp,
            log_bytes: self.log_bytes,
            digest: self.digest.finish(),
            data,
            split,
            raw,
        };
        Ok(Some(StagedArchive { file, objects }))
    }
}
