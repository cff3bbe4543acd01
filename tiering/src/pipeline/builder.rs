//! A data file under construction: records go in, from the log or from other files, named objects come out.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use object_store::path::Path as ObjectPath;
use thermocline_ingest::model::{Offset, Timestamp};
use thermocline_ingest::record::{BatchHeader, Record};

use super::StageError;
use crate::manifest::{DataFile, ObjectRef, RAW_BATCHES_MAX, RawBatch, RawBatches};
use crate::parquet::{ParquetEncoder, ParquetOptions};
use crate::paths::{AttemptId, ObjectKind, PartitionPath, RangeName};
use crate::split::{Analyser, RowDigest, SplitError, SplitMerger, SplitOptions, SplitWriter};
use crate::verify::ContentDigest;

/// Longest reason stored with a raw batch.
const REASON_LEN_MAX: usize = 200;

/// The objects of one data file, in memory, named but not yet uploaded.
#[derive(Debug)]
pub struct StagedArchive {
    file: DataFile,
    objects: Vec<(ObjectPath, Bytes)>,
    took_splits: bool,
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
    /// Whether its split was merged from others.
    pub fn took_splits(&self) -> bool {
        self.took_splits
    }
    pub(super) fn into_file(self) -> DataFile {
        self.file
    }
}

/// Where the split of a file comes from.
pub(crate) enum Indexing {
    /// There is none.
    Off,
    /// Each record is indexed as it is added.
    Records(Box<SplitWriter>),
    /// Out of splits that have the records as documents.
    Splits(SplitMerger),
}

impl Indexing {
    fn mem_usage_bytes(&self) -> usize {
        match self {
            Self::Records(writer) => writer.mem_usage_bytes(),
            Self::Off | Self::Splits(_) => 0,
        }
    }

    /// What the manifest says of it. Splits of the first analyser never said so.
    fn options(&self) -> Option<SplitOptions> {
        let options = match self {
            Self::Off => None,
            Self::Records(writer) => Some(writer.options()),
            Self::Splits(merger) => merger.options(),
        };
        options.filter(|options| options.analyser != Analyser::WordsV1)
    }

    /// `rows`: those of the file. What comes out of other splits must have them, too.
    fn finish(self, rows: &RowDigest) -> Result<Option<Bytes>, SplitError> {
        match self {
            Self::Off => Ok(None),
            Self::Records(writer) => writer.finish().map(Some),
            Self::Splits(merger) => merger.finish_for(rows).map(Some),
        }
    }
}

/// A data file under construction.
pub(crate) struct FileBuilder {
    parquet: ParquetEncoder,
    index: Indexing,
    rows: RowDigest,
    digest: ContentDigest,
    raw: BytesMut,
    raw_batches: Vec<RawBatch>,
    /// Offsets of batches that were left out.
    dropped: u64,
    range: Option<(Offset, Offset)>,
    times: Option<(Timestamp, Timestamp)>,
    /// Of what was left out; they count where there is nothing else.
    dropped_times: Option<(Timestamp, Timestamp)>,
    log_bytes: u64,
}

impl FileBuilder {
    pub fn new(path: &PartitionPath, parquet: ParquetOptions, index: Indexing) -> Result<Self, StageError> {
        Ok(Self {
            parquet: ParquetEncoder::new(path.partition, parquet)?,
            index,
            rows: RowDigest::default(),
            digest: ContentDigest::new(),
            raw: BytesMut::new(),
            raw_batches: Vec::new(),
            dropped: 0,
            range: None,
            times: None,
            dropped_times: None,
            log_bytes: 0,
        })
    }

    /// Adds the next record. On `Timestamp` of [`crate::parquet::ParquetError`] nothing was added.
    pub fn add(&mut self, record: &Record<'_>) -> Result<(), StageError> {
        self.parquet.push(record)?;
        self.digest.update(record);
        if let Indexing::Records(writer) = &mut self.index {
            writer.add(record)?;
        }
        self.rows.add(record.offset, record.timestamp);
        self.see_time(record.timestamp);
        Ok(())
    }

    /// The split comes out of these; no record was indexed.
    pub fn index_from(&mut self, splits: SplitMerger) {
        self.index = Indexing::Splits(splits);
    }

    /// Keeps a batch byte for byte.
    pub fn keep_raw(&mut self, header: &BatchHeader, batch: &[u8], mut reason: String) {
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

    /// Leaves a batch out: its offsets are the file's, and nobody gets what it holds.
    pub fn drop_batch(&mut self, header: &BatchHeader, log_bytes: u64) {
        self.dropped += header.base_offset.distance_to(header.next_offset());
        self.dropped_times.get_or_insert((header.max_timestamp, header.max_timestamp));
        self.cover_batch(header, log_bytes);
    }

    /// Keeps the last batch that was left out after all. Nothing was added since.
    pub fn keep_dropped(&mut self, header: &BatchHeader, batch: &[u8], reason: String) {
        self.dropped -= header.base_offset.distance_to(header.next_offset()).min(self.dropped);
        self.keep_raw(header, batch, reason);
    }

    fn see_time(&mut self, time: Timestamp) {
        let (min, max) = self.times.unwrap_or((time, time));
        self.times = Some((min.min(time), max.max(time)));
    }

    /// Says that the file stands for the offsets of this batch, which was fed or kept.
    pub fn cover_batch(&mut self, header: &BatchHeader, log_bytes: u64) {
        self.cover(header.base_offset, header.last_offset(), log_bytes);
    }

    /// Takes over what `file` says beside its records, which were added: the offsets and times it stands for, and the
    /// batches it keeps raw. `raw` are the bytes of those, from their object.
    pub fn cover_file(&mut self, file: &DataFile, raw: &[u8]) {
        let start = self.raw.len() as u64;
        let moved = file.raw.iter().flat_map(|raw| &raw.batches);
        self.raw_batches.extend(moved.map(|batch| RawBatch { position: start + batch.position, ..batch.clone() }));
        self.raw.extend_from_slice(raw);
        self.dropped += file.dropped;
        self.see_time(file.min_timestamp);
        self.see_time(file.max_timestamp);
        self.cover(file.base_offset, file.last_offset, file.log_bytes);
    }

    fn cover(&mut self, base: Offset, last: Offset, log_bytes: u64) {
        let base = self.range.map_or(base, |(base, _)| base);
        self.range = Some((base, last));
        self.log_bytes += log_bytes;
    }

    pub fn row_count(&self) -> u64 {
        self.parquet.row_count()
    }

    /// What it stands for so far.
    pub fn offsets(&self) -> Option<Range<Offset>> {
        self.range.map(|(base, last)| base..last.next())
    }

    pub fn is_empty(&self) -> bool {
        self.range.is_none()
    }

    /// Memory held, about.
    pub fn memory_bytes(&self) -> usize {
        let index = self.index.mem_usage_bytes();
        self.parquet.memory_bytes().saturating_add(index).saturating_add(self.raw.len())
    }

    /// Whether it should keep no further batch raw.
    pub fn is_full_of_raw(&self) -> bool {
        self.raw_batches.len() >= RAW_BATCHES_MAX
    }

    /// What counts towards the size at which a file of a segment is cut.
    pub fn size_bytes(&self) -> usize {
        self.memory_bytes().max(self.parquet.decoded_bytes())
    }

    /// Names and closes the objects; `None` where no batch was fed.
    pub fn finish(self, path: &PartitionPath) -> Result<Option<StagedArchive>, StageError> {
        let times = self.times.or(self.dropped_times);
        let (Some((base, last)), Some((min_timestamp, max_timestamp))) = (self.range, times) else {
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
        let indexed = self.index.options();
        let took_splits = matches!(self.index, Indexing::Splits(_));
        let split = self.index.finish(&self.rows)?.map(|split| object(ObjectKind::Split, split));
        let raw = match self.raw_batches {
            batches if batches.is_empty() => None,
            batches => Some(RawBatches { object: object(ObjectKind::Raw, self.raw.freeze()), batches }),
        };
        let file = DataFile {
            base_offset: base,
            last_offset: last,
            rows,
            dropped: self.dropped,
            min_timestamp,
            max_timestamp,
            log_bytes: self.log_bytes,
            digest: self.digest.finish(),
            data,
            split,
            indexed,
            raw,
        };
        Ok(Some(StagedArchive { file, objects, took_splits }))
    }
}
