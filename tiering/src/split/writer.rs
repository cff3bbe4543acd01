//! Builds a split in memory, record by record.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tantivy::directory::{Directory, FileHandle, OwnedBytes, RamDirectory};
use tantivy::index::SegmentComponent;
use tantivy::store::Compressor;
use tantivy::{HasLen, IndexBuilder, IndexSettings, SingleSegmentIndexWriter};
use thermocline_ingest::record::Record;

use super::document::RecordDocument;
use super::format::{FileEntry, Package};
use super::reader::{SplitDirectory, open_index, out_of_range};
use super::{SplitError, SplitOptions, SplitSchema, tokenizers};

/// Sizes the term table at the start; it grows from there. The caller bounds memory through
/// [`SplitWriter::mem_usage_bytes`].
const TERM_TABLE_BUDGET_BYTES: usize = 16 << 20;
/// A single read of more than this while opening is not worth repeating in the footer.
const HOT_RANGE_LEN_MAX: usize = 256 << 10;
/// Hot ranges closer than this become one.
const HOT_GAP_MAX: usize = 64;

const META: &str = "meta.json";
/// The files of a segment, in the order of the package.
const COMPONENTS: [SegmentComponent; 6] = [
    SegmentComponent::Store,
    SegmentComponent::FastFields,
    SegmentComponent::FieldNorms,
    SegmentComponent::Postings,
    SegmentComponent::Positions,
    SegmentComponent::Terms,
];

/// Indexes records; doc ids are handed out in the order of [`Self::add`].
pub struct SplitWriter {
    options: SplitOptions,
    schema: SplitSchema,
    directory: RamDirectory,
    index: SingleSegmentIndexWriter<RecordDocument>,
}

impl SplitWriter {
    pub fn new(options: SplitOptions) -> Result<Self, SplitError> {
        let schema = SplitSchema::new(options);
        let directory = RamDirectory::create();
        // No field is stored: the document store holds an empty entry per record, which lz4 folds to nothing.
        let settings = IndexSettings {
            docstore_compression: Compressor::Lz4,
            docstore_compress_dedicated_thread: false,
            ..IndexSettings::default()
        };
        let index = IndexBuilder::new()
            .schema(schema.schema.clone())
            .settings(settings)
            .tokenizers(tokenizers())
            .single_segment_index_writer(directory.clone(), TERM_TABLE_BUDGET_BYTES)?;
        Ok(Self { options, schema, directory, index })
    }

    /// Indexes the next record; its doc id is the number of records added before.
    pub fn add(&mut self, record: &Record<'_>) -> Result<(), SplitError> {
        self.index.add_document(RecordDocument::new(record, self.options, &self.schema))?;
        Ok(())
    }

    /// Memory held by what has been indexed so far.
    pub fn mem_usage_bytes(&self) -> usize {
        self.index.mem_usage()
    }

    /// The packaged split: files, then footer (layout in `format.rs`).
    pub fn finish(self) -> Result<Bytes, SplitError> {
        let index = self.index.finalize()?;
        let mut names = vec![PathBuf::from(META)];
        for segment in index.searchable_segment_metas()? {
            names.extend(COMPONENTS.map(|component| segment.relative_path(component)));
        }
        let mut files: Vec<(String, OwnedBytes)> = Vec::with_capacity(names.len());
        for path in names {
            if exists(&self.directory, &path)? {
                files.push((path.to_string_lossy().into_owned(), read(&self.directory, &path)?));
            }
        }
        let mut package = Package::with_capacity(files.iter().map(|(_, bytes)| bytes.len()).sum());
        for (name, bytes) in files {
            package.add(&name, &bytes);
        }
        drop((index, self.directory));
        let Package { bytes, files } = package;
        let bytes = Arc::new(bytes);
        let hot = read_while_opening(&bytes, &files)?;
        let bytes = Arc::try_unwrap(bytes).unwrap_or_else(|shared| shared.as_ref().clone());
        Ok(Package { bytes, files }.finish(&hot))
    }
}

fn exists(directory: &RamDirectory, path: &Path) -> Result<bool, SplitError> {
    directory.exists(path).map_err(|source| file_error(path, source))
}

fn read(directory: &RamDirectory, path: &Path) -> Result<OwnedBytes, SplitError> {
    Ok(directory.open_read(path).map_err(|source| file_error(path, source))?.read_bytes()?)
}

fn file_error(path: &Path, source: tantivy::directory::error::OpenReadError) -> SplitError {
    SplitError::File { name: path.to_string_lossy().into_owned(), source }
}

/// Opens the package once, with every term dictionary, and notes what is read.
fn read_while_opening(bytes: &Arc<Vec<u8>>, files: &[FileEntry]) -> Result<Vec<Range<usize>>, SplitError> {
    let recorder = Arc::new(Recorder { bytes: bytes.clone(), reads: Mutex::default() });
    let split = open_index(SplitDirectory::new(recorder.clone(), files))?;
    for segment in split.searcher.segment_readers() {
        for (field, entry) in split.fields.schema.fields() {
            if entry.is_indexed() {
                segment.inverted_index(field)?;
            }
        }
    }
    let reads = std::mem::take(&mut *recorder.reads.lock());
    Ok(merge(reads))
}

/// Ascending and disjoint; near ones joined.
fn merge(mut reads: Vec<Range<usize>>) -> Vec<Range<usize>> {
    reads.retain(|range| !range.is_empty() && range.len() <= HOT_RANGE_LEN_MAX);
    reads.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<usize>> = Vec::new();
    for range in reads {
        match merged.last_mut() {
            Some(last) if range.start <= last.end + HOT_GAP_MAX => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// A package in memory that remembers which ranges were read.
#[derive(Debug)]
struct Recorder {
    bytes: Arc<Vec<u8>>,
    reads: Mutex<Vec<Range<usize>>>,
}

impl HasLen for Recorder {
    fn len(&self) -> usize {
        self.bytes.len()
    }
}

impl FileHandle for Recorder {
    fn read_bytes(&self, range: Range<usize>) -> std::io::Result<OwnedBytes> {
        let bytes = self.bytes.get(range.clone()).ok_or_else(|| out_of_range(&range, self.bytes.len()))?;
        self.reads.lock().push(range);
        Ok(OwnedBytes::new(bytes.to_vec()))
    }
}
