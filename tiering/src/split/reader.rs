//! Opens a split over anything that can be read by position: an object behind the block cache, or a local file.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tantivy::directory::error::{DeleteError, LockError, OpenReadError, OpenWriteError};
use tantivy::directory::{
    Directory, DirectoryLock, FileHandle, FileSlice, Lock, OwnedBytes, WatchCallback, WatchHandle, WritePtr,
};
use tantivy::{HasLen, Index, ReloadPolicy};

use super::format::{FileEntry, Footer, HotObject};
use super::{SplitError, SplitSchema, tokenizers};

/// An opened split. Searching it reads from its file: blocking.
#[derive(Clone)]
pub struct SplitReader {
    pub index: Index,
    pub searcher: tantivy::Searcher,
    pub fields: SplitSchema,
}

impl SplitReader {
    /// Opens a split; reads its footer only. Blocking. Damaged bytes are an error.
    pub fn open(file: Arc<dyn FileHandle>) -> Result<Self, SplitError> {
        let footer = Footer::read(file.as_ref())?;
        let object: Arc<dyn FileHandle> = Arc::new(HotObject { inner: file, hot: footer.hot.into() });
        open_index(SplitDirectory::new(object, &footer.files))
    }
}

impl SplitReader {
    /// Documents; as many as the data file has rows.
    pub fn docs(&self) -> u64 {
        self.searcher.num_docs()
    }

    /// Whether leaves of JSON values are indexed, as far as there were any. Blocking.
    pub(super) fn has_json(&self) -> Result<bool, SplitError> {
        for segment in self.searcher.segment_readers() {
            if segment.inverted_index(self.fields.json)?.terms().num_terms() > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Opens the one segment of a package.
pub(super) fn open_index(directory: SplitDirectory) -> Result<SplitReader, SplitError> {
    let mut index = Index::open(directory)?;
    index.set_tokenizers(tokenizers());
    let fields = SplitSchema::of(index.schema())?;
    let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).doc_store_cache_num_blocks(0).try_into()?;
    let searcher = reader.searcher();
    match searcher.segment_readers().len() {
        1 => Ok(SplitReader { index, searcher, fields }),
        found => Err(SplitError::Segments { found }),
    }
}

/// A local file as a [`FileHandle`] with positioned reads. Blocking.
pub fn local_file(path: &Path) -> io::Result<Arc<dyn FileHandle>> {
    let file = File::open(path)?;
    let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    Ok(Arc::new(LocalFile { file, len }))
}

#[derive(Debug)]
struct LocalFile {
    file: File,
    /// Bytes, when opened; a split never changes.
    len: usize,
}

impl HasLen for LocalFile {
    fn len(&self) -> usize {
        self.len
    }
}

impl FileHandle for LocalFile {
    fn read_bytes(&self, range: Range<usize>) -> io::Result<OwnedBytes> {
        if range.start > range.end || range.end > self.len {
            return Err(out_of_range(&range, self.len));
        }
        let mut bytes = vec![0; range.len()];
        #[cfg(unix)]
        std::os::unix::fs::FileExt::read_exact_at(&self.file, &mut bytes, range.start as u64)?;
        #[cfg(not(unix))]
        {
            use std::io::{Read, Seek};
            let mut file = self.file.try_clone()?;
            file.seek(io::SeekFrom::Start(range.start as u64))?;
            file.read_exact(&mut bytes)?;
        }
        Ok(OwnedBytes::new(bytes))
    }
}

pub(crate) fn out_of_range(range: &Range<usize>, len: usize) -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        format!("bytes {}..{} asked of a file of {len}", range.start, range.end),
    )
}

/// The files of a package as Tantivy's read-only directory.
#[derive(Clone, Debug)]
pub(super) struct SplitDirectory {
    object: Arc<dyn FileHandle>,
    files: Arc<HashMap<PathBuf, Range<usize>>>,
}

impl SplitDirectory {
    pub fn new(object: Arc<dyn FileHandle>, files: &[FileEntry]) -> Self {
        let files = files.iter().map(|file| (PathBuf::from(&file.name), file.range.clone())).collect();
        Self { object, files: Arc::new(files) }
    }

    fn slice(&self, path: &Path) -> Result<FileSlice, OpenReadError> {
        let range = self.files.get(path).ok_or_else(|| OpenReadError::FileDoesNotExist(path.to_owned()))?;
        if range.end > self.object.len() {
            let error = out_of_range(range, self.object.len());
            return Err(OpenReadError::wrap_io_error(error, path.to_owned()));
        }
        Ok(FileSlice::new(self.object.clone()).slice(range.clone()))
    }
}

fn read_only() -> io::Error {
    io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "a split is read-only")
}

impl Directory for SplitDirectory {
    fn get_file_handle(&self, path: &Path) -> Result<Arc<dyn FileHandle>, OpenReadError> {
        Ok(Arc::new(self.slice(path)?))
    }
    fn open_read(&self, path: &Path) -> Result<FileSlice, OpenReadError> {
        self.slice(path)
    }
    fn exists(&self, path: &Path) -> Result<bool, OpenReadError> {
        Ok(self.files.contains_key(path))
    }
    fn atomic_read(&self, path: &Path) -> Result<Vec<u8>, OpenReadError> {
        let bytes = self.slice(path)?.read_bytes();
        bytes.map(|bytes| bytes.to_vec()).map_err(|error| OpenReadError::wrap_io_error(error, path.to_owned()))
    }
    fn delete(&self, path: &Path) -> Result<(), DeleteError> {
        Err(DeleteError::IoError { io_error: Arc::new(read_only()), filepath: path.to_owned() })
    }
    fn open_write(&self, path: &Path) -> Result<WritePtr, OpenWriteError> {
        Err(OpenWriteError::wrap_io_error(read_only(), path.to_owned()))
    }
    fn atomic_write(&self, _path: &Path, _data: &[u8]) -> io::Result<()> {
        Err(read_only())
    }
    fn sync_directory(&self) -> io::Result<()> {
        Ok(())
    }
    /// Nothing ever changes a split, so there is nothing to lock.
    fn acquire_lock(&self, _lock: &Lock) -> Result<DirectoryLock, LockError> {
        Ok(DirectoryLock::from(Box::new(())))
    }
    fn watch(&self, _callback: WatchCallback) -> tantivy::Result<WatchHandle> {
        Ok(WatchHandle::empty())
    }
}
