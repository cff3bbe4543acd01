//! Reads data files: footers and page indexes kept in memory, whole row groups in one ranged GET, single messages by
//! page.
//!
//! Invariants:
//! - A file is checked once, when its footer is loaded: every position and length it names lies within the object, so
//!   that the decoder can rely on them; row counts agree with the manifest.
//! - The decoder's own assertions, which damaged pages can trip, end in an error, too.
//! - Types are taken from the Parquet schema alone; hints of the program that wrote the file are ignored.
//! - Row groups bypass the block cache, so that a scan does not flood it; footers and pages go through it.

mod pages;

use std::any::Any;
use std::ops::{ControlFlow, Range};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::array::RecordBatch;
use bytes::{Buf, Bytes};
use futures::future::{BoxFuture, FutureExt};
use futures::{StreamExt, TryStreamExt};
use moka::future::Cache;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder, RowSelection,
    RowSelectionPolicy,
};
use parquet::arrow::async_reader::{AsyncFileReader, ParquetRecordBatchStream, ParquetRecordBatchStreamBuilder};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};
use parquet::file::page_index::column_index::ColumnIndexMetaData;
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::statistics::Statistics;
use thermocline_ingest::model::{Offset, Timestamp};

use crate::cache::{BlockCache, ObjectId};
use crate::columns::{self, ColumnError, RECORD_COLUMNS, RecordColumns};
use crate::manifest::{DataFile, ObjectRef};
use crate::reader::OwnedRecord;
use crate::store::StoreError;

/// Read from the end of a file in the first request for its footer.
const FOOTER_READ_BYTES: usize = 64 << 10;
/// Largest row group that is read at once.
const ROW_GROUP_BYTES_MAX: u64 = 1 << 30;
/// Rows decoded at a time while a row group is scanned.
const SCAN_BATCH_ROWS: usize = 4096;

/// Why a data file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ParquetReadError {
    #[error("reading {key}")]
    Store {
        key: String,
        #[source]
        source: StoreError,
    },
    #[error("{key} is not a Parquet file this program can read")]
    Parquet {
        key: String,
        #[source]
        source: ParquetError,
    },
    #[error("{key} does not hold the columns of a data file")]
    Columns {
        key: String,
        #[source]
        source: ColumnError,
    },
    #[error("{key}: {what} is {found}, {expected} expected; the file is damaged or not the one the manifest names")]
    Mismatch { key: String, what: &'static str, found: i64, expected: i64 },
    #[error("{key}: {what} lies outside the file or is out of order; the file is damaged")]
    Layout { key: String, what: &'static str },
    #[error("{key}: the decoder gave up on a page; the file is damaged: {reason}")]
    Decoder { key: String, reason: String },
    #[error("{key}: row group of {bytes} bytes exceeds the limit of {max}")]
    RowGroupSize { key: String, bytes: u64, max: u64 },
}

/// A data file whose footer has been read and checked.
pub(crate) struct ColdFile {
    pub object: ObjectRef,
    pub base: Offset,
    /// inclusive
    pub last: Offset,
    metadata: ArrowReaderMetadata,
    /// Row number at which each row group starts, and the number of rows at the end.
    row_starts: Vec<u64>,
    offsets: RowOffsets,
    offset_leaf: usize,
    timestamp_leaf: usize,
}

/// Which offset each row has.
enum RowOffsets {
    /// Row `n` has offset base + n.
    Dense(Offset),
    /// Some batches of the range are kept raw.
    Sparse(Vec<i64>),
}

/// The bytes of one row group, with their position in the file.
pub(crate) struct RowGroupBytes {
    file_len: u64,
    start: u64,
    bytes: Bytes,
}

/// Reads data files through a block cache. Cheap to clone.
#[derive(Clone)]
pub(crate) struct ParquetReader {
    blocks: BlockCache,
    files: Cache<ObjectId, Arc<ColdFile>>,
}

impl RowOffsets {
    fn of_row(&self, row: u64) -> Option<Offset> {
        match self {
            Self::Dense(base) => Some(base.plus(i64::try_from(row).ok()?)),
            Self::Sparse(offsets) => offsets.get(row as usize).map(|offset| Offset(*offset)),
        }
    }
    /// Number of rows below `offset`.
    fn rows_below(&self, offset: Offset) -> u64 {
        match self {
            Self::Dense(base) => base.distance_to(offset),
            Self::Sparse(offsets) => offsets.partition_point(|found| *found < offset.0) as u64,
        }
    }
}

impl ColdFile {
    /// Number of row groups; a file whose batches are all kept raw counts as one without rows.
    pub fn row_groups(&self) -> usize {
        self.row_starts.len().saturating_sub(1).max(1)
    }

    /// The row group that serves `offset`.
    pub fn row_group_of(&self, offset: Offset) -> usize {
        let rows_through = self.offsets.rows_below(offset.next());
        let row = rows_through.saturating_sub(1);
        let group = self.row_starts.partition_point(|start| *start <= row).saturating_sub(1);
        group.min(self.row_groups() - 1)
    }

    /// Offsets that row group `group` serves: up to where the next one starts, without holes between the two.
    pub fn span(&self, group: usize) -> Range<Offset> {
        let start_of = |group: usize| self.row_starts.get(group).and_then(|row| self.offsets.of_row(*row));
        let start = if group == 0 { self.base } else { start_of(group).unwrap_or(self.base) };
        let is_last = group + 1 >= self.row_groups();
        let end = if is_last { self.last.next() } else { start_of(group + 1).unwrap_or(self.last.next()) };
        start..end
    }

    /// The row that holds exactly `offset`.
    pub fn row_of(&self, offset: Offset) -> Option<u64> {
        let row = self.offsets.rows_below(offset);
        let in_file = row < self.row_starts.last().copied().unwrap_or(0);
        (in_file && self.offsets.of_row(row) == Some(offset)).then_some(row)
    }

    fn weight_bytes(&self) -> usize {
        let offsets = if let RowOffsets::Sparse(offsets) = &self.offsets { offsets.len() * 8 } else { 0 };
        self.metadata.metadata().memory_size() + offsets + self.row_starts.len() * 8
    }

    fn parquet_error(&self, source: ParquetError) -> ParquetReadError {
        ParquetReadError::Parquet { key: self.object.key.clone(), source }
    }
    fn column_error(&self, source: ColumnError) -> ParquetReadError {
        ParquetReadError::Columns { key: self.object.key.clone(), source }
    }

    /// Statistics' largest timestamp of a row group, in microseconds.
    fn max_timestamp_micros(&self, group: usize) -> Option<i64> {
        let row_group = self.metadata.metadata().row_groups().get(group)?;
        match row_group.columns().get(self.timestamp_leaf)?.statistics()? {
            Statistics::Int64(statistics) => statistics.max_opt().copied(),
            _ => None,
        }
    }

    /// Rows of a row group, relative to its start, whose pages may hold a timestamp of at least `micros`.
    fn rows_reaching(&self, group: usize, micros: i64) -> Vec<Range<usize>> {
        let rows = self.rows_of(group);
        let count = (rows.end - rows.start) as usize;
        self.pages_reaching(group, micros, count).unwrap_or_else(|| std::iter::once(0..count).collect())
    }

    fn pages_reaching(&self, group: usize, micros: i64, count: usize) -> Option<Vec<Range<usize>>> {
        let metadata = self.metadata.metadata();
        let locations = metadata.offset_index()?.get(group)?.get(self.timestamp_leaf)?.page_locations();
        let ColumnIndexMetaData::INT64(index) = metadata.column_index()?.get(group)?.get(self.timestamp_leaf)? else {
            return None;
        };
        if index.max_values().len() != locations.len() {
            return None;
        }
        let starts = locations.iter().map(|page| page.first_row_index as usize);
        let ends = locations.iter().skip(1).map(|page| page.first_row_index as usize).chain([count]);
        let pages = starts.zip(ends).zip(index.max_values());
        Some(pages.filter(|(_, max)| **max >= micros).map(|((start, end), _)| start..end).collect())
    }
}

impl ParquetReader {
    /// `metadata_max_bytes`: memory for footers and page indexes.
    pub fn new(blocks: BlockCache, metadata_max_bytes: u64) -> Self {
        let files = Cache::builder()
            .max_capacity(metadata_max_bytes)
            .weigher(|_, file: &Arc<ColdFile>| u32::try_from(file.weight_bytes()).unwrap_or(u32::MAX))
            .build();
        Self { blocks, files }
    }

    pub fn blocks(&self) -> &BlockCache {
        &self.blocks
    }

    /// The footer of a data file, from memory or the store.
    pub async fn file(&self, file: &DataFile) -> Result<Arc<ColdFile>, Arc<ParquetReadError>> {
        self.files.try_get_with(ObjectId::of(&file.data), guarded(&file.data, self.open(file))).await
    }

    async fn open(&self, file: &DataFile) -> Result<Arc<ColdFile>, ParquetReadError> {
        let object = &file.data;
        let parquet_error = |source| ParquetReadError::Parquet { key: object.key.clone(), source };
        let mut source = self.source(object);
        let metadata = ParquetMetaDataReader::new()
            .with_page_index_policy(PageIndexPolicy::Optional)
            .with_prefetch_hint(Some(FOOTER_READ_BYTES))
            .load_and_finish(&mut source, object.size_bytes)
            .await
            .map_err(|source| read_error(object, source))?;
        let row_starts = check_layout(object, file.rows, &metadata)?;
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let metadata = ArrowReaderMetadata::try_new(Arc::new(metadata), options).map_err(parquet_error)?;
        let leaf = |column: &'static str| {
            let found = metadata.parquet_schema().columns().iter().position(|leaf| leaf.path().string() == column);
            let source = ColumnError::Type { column, expected: "a required column" };
            found.ok_or_else(|| ParquetReadError::Columns { key: object.key.clone(), source })
        };
        let (offset_leaf, timestamp_leaf) = (leaf("offset")?, leaf("timestamp")?);
        let mut opened = ColdFile {
            object: object.clone(),
            base: file.base_offset,
            last: file.last_offset,
            metadata,
            row_starts,
            offsets: RowOffsets::Dense(file.base_offset),
            offset_leaf,
            timestamp_leaf,
        };
        if file.rows != file.base_offset.distance_to(file.last_offset.next()) {
            opened.offsets = RowOffsets::Sparse(self.read_offsets(&opened, file.rows).await?);
        }
        Ok(Arc::new(opened))
    }

    async fn read_offsets(&self, file: &ColdFile, rows: u64) -> Result<Vec<i64>, ParquetReadError> {
        let mut offsets: Vec<i64> = Vec::new();
        let mask = file.mask([file.offset_leaf]);
        let mut stream = self.stream(file, None, None, mask)?;
        while let Some(batch) = stream.try_next().await.map_err(|source| read_error(&file.object, source))? {
            let column = columns::offsets(&batch).map_err(|source| file.column_error(source))?;
            offsets.extend(column.values());
        }
        let ascending = offsets.windows(2).all(|pair| matches!(pair, [a, b] if a < b));
        let within = offsets.first().is_none_or(|first| *first >= file.base.0)
            && offsets.last().is_none_or(|last| *last <= file.last.0);
        if !ascending || !within {
            return Err(ParquetReadError::Layout { key: file.object.key.clone(), what: "the offset column" });
        }
        if offsets.len() as u64 != rows {
            let (found, expected) = (offsets.len() as i64, rows as i64);
            return Err(ParquetReadError::Mismatch { key: file.object.key.clone(), what: "offsets", found, expected });
        }
        Ok(offsets)
    }

    /// The bytes of a row group: one ranged GET past the block cache. `None` where the file has no rows.
    pub async fn fetch_row_group(
        &self,
        file: &ColdFile,
        group: usize,
    ) -> Result<Option<RowGroupBytes>, ParquetReadError> {
        let Some(row_group) = file.metadata.metadata().row_groups().get(group) else { return Ok(None) };
        let chunks = row_group.columns().iter().map(ColumnChunkMetaData::byte_range);
        let joined = chunks.map(|(start, len)| start..start.saturating_add(len));
        let joined = joined.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end));
        let Some(range) = joined else { return Ok(None) };
        let bytes = range.end.saturating_sub(range.start);
        if bytes > ROW_GROUP_BYTES_MAX {
            let key = file.object.key.clone();
            return Err(ParquetReadError::RowGroupSize { key, bytes, max: ROW_GROUP_BYTES_MAX });
        }
        let (start, file_len) = (range.start, file.object.size_bytes);
        let bytes = self.blocks.fetch(&file.object, range).await;
        let bytes = bytes.map_err(|source| ParquetReadError::Store { key: file.object.key.clone(), source })?;
        Ok(Some(RowGroupBytes { file_len, start, bytes }))
    }

    /// The records of the given rows (ascending, each once), reading only the pages that hold them. What it costs is
    /// decoding: run it on a blocking thread.
    pub async fn rows(&self, file: &ColdFile, rows: &[u64]) -> Result<Vec<OwnedRecord>, ParquetReadError> {
        guarded(&file.object, self.read_rows(file, rows)).await
    }

    async fn read_rows(&self, file: &ColdFile, rows: &[u64]) -> Result<Vec<OwnedRecord>, ParquetReadError> {
        let total = file.row_starts.last().copied().unwrap_or(0) as usize;
        let ranges = rows.iter().map(|row| *row as usize..*row as usize + 1);
        if rows.last().is_some_and(|row| *row as usize >= total) || !rows.is_sorted_by(|a, b| a < b) {
            return Err(ParquetReadError::Layout { key: file.object.key.clone(), what: "a row" });
        }
        let selection = RowSelection::from_consecutive_ranges(ranges, total);
        let mask = ProjectionMask::columns(file.metadata.parquet_schema(), RECORD_COLUMNS);
        let mut stream = self.stream(file, None, Some(selection), mask)?;
        let mut records = Vec::with_capacity(rows.len());
        while let Some(batch) = stream.try_next().await.map_err(|source| read_error(&file.object, source))? {
            let columns = RecordColumns::new(&batch).map_err(|source| file.column_error(source))?;
            for at in 0..columns.len() {
                records.push(columns.row(at).map_err(|source| file.column_error(source))?.to_owned());
            }
        }
        if records.len() != rows.len() {
            let (found, expected) = (records.len() as i64, rows.len() as i64);
            return Err(ParquetReadError::Mismatch { key: file.object.key.clone(), what: "rows", found, expected });
        }
        Ok(records)
    }

    /// Calls `visit` with offset and timestamp of every row of `group` whose page may reach `at_least`, in offset
    /// order, until it breaks. Pages that statistics rule out are not read.
    pub async fn visit_timestamps<B>(
        &self,
        file: &ColdFile,
        group: usize,
        at_least: Timestamp,
        visit: impl FnMut(Offset, Timestamp) -> ControlFlow<B>,
    ) -> Result<Option<B>, ParquetReadError> {
        guarded(&file.object, self.scan_timestamps(file, group, at_least, visit)).await
    }

    async fn scan_timestamps<B>(
        &self,
        file: &ColdFile,
        group: usize,
        at_least: Timestamp,
        mut visit: impl FnMut(Offset, Timestamp) -> ControlFlow<B>,
    ) -> Result<Option<B>, ParquetReadError> {
        let micros = at_least.as_micros();
        if group >= file.metadata.metadata().num_row_groups()
            || file.max_timestamp_micros(group).is_some_and(|max| max < micros)
        {
            return Ok(None);
        }
        let rows = file.rows_of(group);
        let reaching = file.rows_reaching(group, micros);
        let selection = RowSelection::from_consecutive_ranges(reaching.into_iter(), (rows.end - rows.start) as usize);
        let mask = file.mask([file.offset_leaf, file.timestamp_leaf]);
        let mut stream = self.stream(file, Some(group), Some(selection), mask)?;
        while let Some(batch) = stream.next().await {
            let batch = batch.map_err(|source| read_error(&file.object, source))?;
            let (offsets, timestamps) =
                columns::offset_and_timestamp(&batch).map_err(|source| file.column_error(source))?;
            for (offset, micros) in offsets.values().iter().zip(timestamps.values()) {
                let timestamp = columns::to_millis(*micros, *offset).map_err(|source| file.column_error(source))?;
                if let ControlFlow::Break(found) = visit(Offset(*offset), timestamp) {
                    return Ok(Some(found));
                }
            }
        }
        Ok(None)
    }

    fn source(&self, object: &ObjectRef) -> ObjectSource {
        ObjectSource { blocks: self.blocks.clone(), object: object.clone() }
    }

    fn stream(
        &self,
        file: &ColdFile,
        group: Option<usize>,
        selection: Option<RowSelection>,
        mask: ProjectionMask,
    ) -> Result<ParquetRecordBatchStream<ObjectSource>, ParquetReadError> {
        let mut builder =
            ParquetRecordBatchStreamBuilder::new_with_metadata(self.source(&file.object), file.metadata.clone())
                .with_projection(mask)
                .with_batch_size(SCAN_BATCH_ROWS)
                .with_row_selection_policy(RowSelectionPolicy::Selectors);
        if let Some(group) = group {
            builder = builder.with_row_groups(vec![group]);
        }
        if let Some(selection) = selection {
            builder = builder.with_row_selection(selection);
        }
        builder.build().map_err(|source| file.parquet_error(source))
    }
}

impl ColdFile {
    fn mask<const N: usize>(&self, leaves: [usize; N]) -> ProjectionMask {
        ProjectionMask::leaves(self.metadata.parquet_schema(), leaves)
    }

    /// Decodes the rows of a fetched row group, batch by batch. Blocking.
    pub fn decode(&self, group: usize, bytes: RowGroupBytes) -> Result<RowGroupRows<'_>, ParquetReadError> {
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(bytes, self.metadata.clone())
            .with_row_groups(vec![group])
            .with_projection(ProjectionMask::columns(self.metadata.parquet_schema(), RECORD_COLUMNS))
            .with_batch_size(SCAN_BATCH_ROWS);
        let rows =
            catch_unwind(AssertUnwindSafe(|| builder.build())).map_err(|panic| gave_up(&self.object, &*panic))?;
        Ok(RowGroupRows { file: self, rows: Some(rows.map_err(|source| self.parquet_error(source))?) })
    }
}

/// The rows of one row group as they are decoded; ends after the first error.
pub(crate) struct RowGroupRows<'a> {
    file: &'a ColdFile,
    rows: Option<ParquetRecordBatchReader>,
}

impl Iterator for RowGroupRows<'_> {
    type Item = Result<RecordBatch, ParquetReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let rows = self.rows.as_mut()?;
        let next = match catch_unwind(AssertUnwindSafe(|| rows.next())) {
            Ok(next) => next?.map_err(|error| self.file.parquet_error(error.into())),
            Err(panic) => Err(gave_up(&self.file.object, &*panic)),
        };
        if next.is_err() {
            self.rows = None;
        }
        Some(next)
    }
}

/// Runs a read with the decoder's panics turned into errors.
async fn guarded<T>(
    object: &ObjectRef,
    read: impl Future<Output = Result<T, ParquetReadError>>,
) -> Result<T, ParquetReadError> {
    AssertUnwindSafe(read).catch_unwind().await.unwrap_or_else(|panic| Err(gave_up(object, &*panic)))
}

fn gave_up(object: &ObjectRef, panic: &(dyn Any + Send)) -> ParquetReadError {
    let reason = panic.downcast_ref::<&str>().map(ToString::to_string);
    let reason = reason.or_else(|| panic.downcast_ref::<String>().cloned());
    ParquetReadError::Decoder { key: object.key.clone(), reason: reason.unwrap_or_default() }
}

/// Checks that everything the footer names lies within the object and that counts agree; returns where row groups
/// start.
fn check_layout(object: &ObjectRef, rows: u64, metadata: &ParquetMetaData) -> Result<Vec<u64>, ParquetReadError> {
    let layout = |what| ParquetReadError::Layout { key: object.key.clone(), what };
    let within = |start: i64, len: i64| {
        let (start, len) = (u64::try_from(start).ok()?, u64::try_from(len).ok()?);
        start.checked_add(len).filter(|end| *end <= object.size_bytes)
    };
    let mut starts = vec![0_u64];
    for (at, group) in metadata.row_groups().iter().enumerate() {
        for column in group.columns() {
            let data = column.data_page_offset();
            let start = column.dictionary_page_offset().unwrap_or(data);
            if within(start, column.compressed_size()).is_none() || data < start {
                return Err(layout("a column chunk"));
            }
        }
        let group_rows = u64::try_from(group.num_rows()).map_err(|_| layout("a row count"))?;
        let columns = metadata.offset_index().and_then(|index| index.get(at)).map_or(&[][..], Vec::as_slice);
        for column in columns {
            let pages = column.page_locations();
            let in_file = pages.iter().all(|page| within(page.offset, page.compressed_page_size.into()).is_some());
            let in_order = pages.is_sorted_by(|a, b| a.first_row_index < b.first_row_index)
                && pages.first().is_none_or(|page| page.first_row_index == 0)
                && pages.last().is_none_or(|page| (page.first_row_index as u64) < group_rows.max(1));
            if !in_file || !in_order {
                return Err(layout("a page"));
            }
        }
        let start = starts.last().copied().unwrap_or(0);
        starts.push(start.checked_add(group_rows).ok_or_else(|| layout("a row count"))?);
    }
    let found = starts.last().copied().unwrap_or(0);
    if found != rows {
        let (found, expected) = (found as i64, rows as i64);
        return Err(ParquetReadError::Mismatch { key: object.key.clone(), what: "number of rows", found, expected });
    }
    Ok(starts)
}

/// A failed download comes back as the store's error, not as a damaged file.
fn read_error(object: &ObjectRef, source: ParquetError) -> ParquetReadError {
    let key = object.key.clone();
    match source {
        ParquetError::External(inner) => match inner.downcast::<StoreError>() {
            Ok(source) => ParquetReadError::Store { key, source: *source },
            Err(inner) => ParquetReadError::Parquet { key, source: ParquetError::External(inner) },
        },
        source => ParquetReadError::Parquet { key, source },
    }
}

/// An object as the Parquet decoder reads it: by ranges, through the block cache.
struct ObjectSource {
    blocks: BlockCache,
    object: ObjectRef,
}

impl ObjectSource {
    fn checked(&self, bytes: Bytes, range: &Range<u64>) -> Result<Bytes, ParquetError> {
        if bytes.len() as u64 == range.end.saturating_sub(range.start) {
            return Ok(bytes);
        }
        Err(ParquetError::EOF(format!("bytes {}..{} of {}", range.start, range.end, self.object.key)))
    }
}

impl AsyncFileReader for ObjectSource {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        async move {
            let bytes = self.blocks.read(&self.object, range.clone()).await;
            self.checked(bytes.map_err(|error| ParquetError::External(Box::new(error)))?, &range)
        }
        .boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>, ParquetError>> {
        async move {
            let parts = self.blocks.read_ranges(&self.object, ranges.clone()).await;
            let parts = parts.map_err(|error| ParquetError::External(Box::new(error)))?;
            parts.into_iter().zip(&ranges).map(|(bytes, range)| self.checked(bytes, range)).collect()
        }
        .boxed()
    }

    /// Never asked: streams are built from metadata that is already there.
    fn get_metadata<'a>(
        &'a mut self,
        _options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>, ParquetError>> {
        let size = self.object.size_bytes;
        async move { ParquetMetaDataReader::new().load_and_finish(self, size).await.map(Arc::new) }.boxed()
    }
}

impl Length for RowGroupBytes {
    fn len(&self) -> u64 {
        self.file_len
    }
}

impl RowGroupBytes {
    pub fn len_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn from(&self, position: u64) -> Result<Bytes, ParquetError> {
        let at = position.checked_sub(self.start).and_then(|at| usize::try_from(at).ok());
        match at.filter(|at| *at <= self.bytes.len()) {
            Some(at) => Ok(self.bytes.slice(at..)),
            None => Err(ParquetError::EOF(format!("byte {position} lies outside the row group"))),
        }
    }
}

impl ChunkReader for RowGroupBytes {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        Ok(self.from(start)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let mut rest = self.from(start)?;
        if length > rest.len() {
            return Err(ParquetError::EOF(format!("{length} bytes at {start} exceed the row group")));
        }
        Ok(rest.split_to(length))
    }
}

#[cfg(test)]
mod tests;
