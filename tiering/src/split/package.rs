//! An index in memory becomes the one object of a split.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tantivy::directory::{Directory, FileHandle, OwnedBytes, RamDirectory};
use tantivy::index::SegmentComponent;
use tantivy::{HasLen, Index, ReloadPolicy};

use super::SplitError;
use super::format::{FileEntry, Package};
use super::reader::{SplitDirectory, column, open_index, out_of_range};
use super::times::{self, Times};

/// A single read of more than this while opening is not worth repeating in the footer. The index of a large term
/// dictionary is: without it no term is found.
const HOT_RANGE_LEN_MAX: usize = 4 << 20;
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

/// The packaged split of an index of one segment: files, then footer (layout in `format.rs`).
pub(super) fn package(index: Index, directory: RamDirectory) -> Result<Bytes, SplitError> {
    let mut names = vec![PathBuf::from(META)];
    for segment in index.searchable_segment_metas()? {
        names.extend(COMPONENTS.map(|component| segment.relative_path(component)));
    }
    let mut files: Vec<(String, OwnedBytes)> = Vec::with_capacity(names.len());
    for path in names {
        if exists(&directory, &path)? {
            files.push((path.to_string_lossy().into_owned(), read(&directory, &path)?));
        }
    }
    files.push((times::FILE.to_owned(), OwnedBytes::new(times_of(&index)?)));
    let mut package = Package::with_capacity(files.iter().map(|(_, bytes)| bytes.len()).sum());
    for (name, bytes) in files {
        package.add(&name, &bytes);
    }
    drop((index, directory));
    let Package { bytes, files } = package;
    let bytes = Arc::new(bytes);
    let hot = read_while_opening(&bytes, &files)?;
    let bytes = Arc::try_unwrap(bytes).unwrap_or_else(|shared| shared.as_ref().clone());
    Ok(Package { bytes, files }.finish(&hot))
}

fn times_of(index: &Index) -> Result<Vec<u8>, SplitError> {
    let searcher = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into()?.searcher();
    let [segment] = searcher.segment_readers() else {
        return Err(SplitError::Segments { found: searcher.segment_readers().len() });
    };
    Ok(Times::write(column(segment, "timestamp")?.iter()))
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
