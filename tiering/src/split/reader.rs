//! Opens a split over anything that can be read by position: an object of the store, read in place, or a local file.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tantivy::columnar::{Cardinality, ColumnValues};
use tantivy::directory::error::{DeleteError, LockError, OpenReadError, OpenWriteError};
use tantivy::directory::{
    Directory, DirectoryLock, FileHandle, FileSlice, Lock, OwnedBytes, WatchCallback, WatchHandle, WritePtr,
};
use tantivy::{HasLen, Index, ReloadPolicy, SegmentReader};
use tokio::task::spawn_blocking;

use super::format::{FileEntry, Footer, HotObject, Tail};
use super::in_place::{Held, InPlace, owned};
use super::times::{self, Times};
use super::{Analyser, QueryWord, SplitError, SplitOptions, SplitSchema, tokenizers};
use crate::cache::BlockCache;
use crate::manifest::ObjectRef;

/// Rounds of fetching in which a split opens whose footer does not hold all of it.
const OPEN_ROUNDS_MAX: usize = 16;
/// What an opened split takes beside its footer: schema, readers of its fields.
const OPEN_OVERHEAD_BYTES: usize = 64 << 10;

/// An opened split. Cheap to clone. One of a local file reads from it: blocking. One that is read in place reads from
/// memory only: see [`Self::search`].
#[derive(Clone)]
pub struct SplitReader {
    pub index: Index,
    pub searcher: tantivy::Searcher,
    pub fields: SplitSchema,
    pub times: Times,
    /// By document; ascending.
    pub offsets: Arc<dyn ColumnValues<i64>>,
    in_place: Option<Arc<InPlace>>,
    memory_bytes: usize,
}

impl SplitReader {
    /// Opens a split; reads its footer only. Blocking. Damaged bytes are an error.
    pub fn open(file: Arc<dyn FileHandle>) -> Result<Self, SplitError> {
        let footer = Footer::read(file.as_ref())?;
        let object: Arc<dyn FileHandle> = Arc::new(HotObject { inner: file, hot: footer.hot });
        open_index(SplitDirectory::new(object, &footer.files))
    }

    /// Opens a split where it lies in the store, most often with one request.
    pub async fn open_in_place(blocks: &BlockCache, object: &ObjectRef) -> Result<Self, SplitError> {
        let len = usize::try_from(object.size_bytes).map_err(io::Error::other)?;
        let mut range = Footer::tail(len);
        let footer = loop {
            // Past the cache: what is opened is kept as such.
            let tail = blocks.fetch(object, range.start as u64..range.end as u64).await?;
            match Footer::of_tail(&owned(tail), len)? {
                Tail::Holds(footer) => break footer,
                Tail::BeginsAt(start) => range.start = start,
            }
        };
        let in_place = InPlace { blocks: blocks.clone(), object: object.clone(), hot: footer.hot };
        let in_place = Arc::new(in_place);
        let directory = SplitDirectory::new(in_place.clone(), &footer.files);
        let mut held = Held::default();
        for _ in 0..OPEN_ROUNDS_MAX {
            let directory = directory.clone();
            let open = move || {
                let opened = held.enter(|| open_index(directory));
                (opened, held)
            };
            let (opened, now) = spawn_blocking(open).await?;
            held = now;
            if !held.lacks_bytes() {
                let memory_bytes = range.len() + held.held_bytes() as usize + OPEN_OVERHEAD_BYTES;
                return Ok(Self { in_place: Some(in_place), memory_bytes, ..opened? });
            }
            in_place.fetch(&mut held).await?;
        }
        Err(SplitError::Footer("it holds too little of the split"))
    }

    /// The split of an index of one segment.
    pub fn of(index: Index) -> Result<Self, SplitError> {
        read_index(index, None)
    }

    /// Runs `search` on this split, which must not wait for anything. Where it lacked bytes ([`Held::lacks_bytes`]),
    /// its result means nothing: [`Self::fetch`] them and run it again.
    pub fn search<T>(&self, held: &mut Held, search: impl FnOnce() -> T) -> T {
        held.enter(search)
    }

    /// Fetches what the last search lacked.
    pub async fn fetch(&self, held: &mut Held) -> Result<(), SplitError> {
        match &self.in_place {
            Some(in_place) => in_place.fetch(held).await,
            None => Ok(()),
        }
    }

    /// About what it takes in memory while it is open.
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// Documents; as many as the data file has rows.
    pub fn docs(&self) -> u64 {
        self.searcher.num_docs()
    }

    /// The words to look for where a query has this text, by the analyser of this split. `is_prefix`: the text may go
    /// on, so its last word is the start of one.
    pub fn query_words(&self, text: &str, is_prefix: bool) -> Vec<QueryWord> {
        self.fields.analyser.query_words(text, is_prefix)
    }

    /// The options that make a split in which all can be found that can be in this one. Blocking.
    pub(super) fn options(&self) -> Result<SplitOptions, SplitError> {
        let options = self.fields.options();
        let json = options.json && (options.analyser != Analyser::WordsV1 || self.has_json()?);
        Ok(SplitOptions { json, ..options })
    }

    fn has_json(&self) -> Result<bool, SplitError> {
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
    let times = Path::new(times::FILE);
    let file = directory.exists(times).ok().filter(|exists| *exists).map(|_| directory.open_read(times)).transpose();
    let file = file.map_err(|source| SplitError::File { name: times::FILE.to_owned(), source })?;
    read_index(Index::open(directory)?, file)
}

/// `times`: the file of that name, where the package has one.
fn read_index(mut index: Index, times: Option<FileSlice>) -> Result<SplitReader, SplitError> {
    index.set_tokenizers(tokenizers());
    index.set_fast_field_tokenizers(tokenizers());
    let fields = SplitSchema::of(index.schema())?;
    let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).doc_store_cache_num_blocks(0).try_into()?;
    let searcher = reader.searcher();
    let [segment] = searcher.segment_readers() else {
        return Err(SplitError::Segments { found: searcher.segment_readers().len() });
    };
    let docs = segment.max_doc();
    let times = match times {
        Some(file) => Times::open(file, docs)?,
        None => Times::of(column(segment, "timestamp")?.iter(), docs)?,
    };
    let offsets = column(segment, "offset")?;
    Ok(SplitReader { times, offsets, index, searcher, fields, in_place: None, memory_bytes: OPEN_OVERHEAD_BYTES })
}

/// A column of which every document has a value.
pub(super) fn column(segment: &SegmentReader, name: &'static str) -> Result<Arc<dyn ColumnValues<i64>>, SplitError> {
    let column = segment.fast_fields().i64(name)?;
    if column.get_cardinality() != Cardinality::Full {
        return Err(SplitError::Schema { field: name });
    }
    Ok(column.values)
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
