//! The cold tier in a local folder, safe against power loss.
//!
//! `object_store`'s own file system client reports success while bytes are still in the page cache; here the archive
//! may hold the only copy. So writes are done here, in the order that leaves either nothing or the whole object:
//!
//! 1. write `<name>#<random number>` beside the target (listings skip such names), syncing piece by piece,
//! 2. fsync it,
//! 3. rename it to the target, or hard-link it where the target must not exist,
//! 4. fsync every folder from the target's up to the root.
//!
//! | died here | then |
//! |---|---|
//! | before 3 | a staging file that no listing shows and no reader opens; the janitor has it deleted when it is old |
//! | after 3, before 4 | the object is whole or, after a power loss, not there; nobody was told that it exists |
//! | after 4 | the object exists |
//!
//! # Beside a hot log on the same disk
//! A sync of the log queues behind what the disk was given before it. An object that is synced as a whole hands it
//! tens of megabytes at once, and producers wait until they are written; synced in pieces, it hands it one piece, and
//! the log's sync comes next. What is written is dropped from the page cache piece by piece, for consumers of the hot
//! log need the room and nobody has asked for this object yet. Writes run on background threads and rest between
//! pieces as the throttle says. Beside a log synced every 2 ms, 20 MB/s in synced pieces of 2 MiB, 512, 256 and 128 KiB
//! took the p99 of its syncs from 2.1 to 2.4 ms to 7.0, 2.5, 2.2 and 1.9 (medians of ten or twelve; ext4 on a virtual
//! disk that writes some 300 MB/s): it is the size of a piece that counts, not the number of syncs.
//!
//! What the archive itself reads (verification above all) goes through `page_cache::QuietReader`: it comes from the
//! disk, which is what verification is about, and leaves no trace in memory. Reads of consumers use the page cache.
//! A request rests for a part of its timeout at most, however busy producers are.
//!
//! Listings, deletes and the opening of files go through `object_store`.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use thermocline_ingest::model::Timestamp;
use thermocline_ingest::page_cache::{self, QuietReader};

use super::work::InBackground;
use crate::background::{self, BackgroundError};

const STORE: &str = "DurableFileSystem";
/// Bytes written between two syncs.
const SYNC_BYTES: usize = 2 << 20;
/// The same beside producers: what the disk is busy with when a sync of the log arrives.
const SYNC_BYTES_BESIDE_PRODUCERS: usize = 128 << 10;
/// Bytes read between two rests.
const READ_BYTES: usize = 4 << 20;
/// Between the name of an object and the number that makes its staging file's.
const STAGING_MARK: char = '#';

/// What was left of unfinished writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Staging {
    pub files: u64,
    pub bytes: u64,
}

/// A folder as an object store; a write that succeeded survives a power loss.
#[derive(Clone, Debug)]
pub struct DurableFileSystem {
    files: LocalFileSystem,
    root: PathBuf,
}

/// What a request may still rest: one that rested for longer would run into its timeout, be repeated, and never end.
struct Rests {
    left: Duration,
}

impl Rests {
    fn pause(&mut self) {
        if !self.left.is_zero() {
            let begun = Instant::now();
            background::pause();
            self.left = self.left.saturating_sub(begun.elapsed());
        }
    }
}

impl DurableFileSystem {
    /// Makes the folder where it is missing. Blocking.
    pub fn open(root: &Path) -> Result<Self> {
        let failed = |source| generic(format!("folder {}", root.display()), source);
        fs::create_dir_all(root).map_err(failed)?;
        let root = fs::canonicalize(root).map_err(failed)?;
        if let Some(parent) = root.parent() {
            sync_folder(parent).map_err(failed)?;
        }
        Ok(Self { files: LocalFileSystem::new_with_prefix(&root)?, root })
    }

    pub fn url(&self) -> String {
        format!("file://{}", self.root.display())
    }

    /// Deletes staging files below `prefix` that were last written before `before`, and with `empty_folders` what is an
    /// empty folder then. Blocking.
    pub fn delete_staging(&self, prefix: &ObjectPath, before: Timestamp, empty_folders: bool) -> Result<Staging> {
        let folder = self.files.path_to_filesystem(prefix)?;
        let before = Duration::from_millis(u64::try_from(before.0).unwrap_or(0));
        let mut deleted = Staging::default();
        match delete_staging(&folder, SystemTime::UNIX_EPOCH + before, empty_folders, &mut deleted) {
            Ok(()) => Ok(deleted),
            Err(source) => Err(generic(folder.display().to_string(), source)),
        }
    }

    /// Blocking.
    fn write(&self, location: &ObjectPath, payload: &PutPayload, create: bool, rests: &mut Rests) -> Result<()> {
        let target = self.files.path_to_filesystem(location)?;
        match write_durably(&self.root, &target, payload, create, rests) {
            Ok(()) => Ok(()),
            Err(source) if create && source.kind() == io::ErrorKind::AlreadyExists => {
                Err(object_store::Error::AlreadyExists { path: location.to_string(), source: Box::new(source) })
            }
            Err(source) => Err(generic(target.display().to_string(), source)),
        }
    }
}

impl fmt::Display for DurableFileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{STORE}({})", self.root.display())
    }
}

#[async_trait]
impl ObjectStore for DurableFileSystem {
    async fn put_opts(&self, location: &ObjectPath, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let create = match opts.mode {
            PutMode::Overwrite => false,
            PutMode::Create => true,
            PutMode::Update(_) => return Err(unsupported("update")),
        };
        let (store, location) = (self.clone(), location.clone());
        let background = opts.extensions.get::<InBackground>().cloned();
        let mut rests = Rests { left: background.as_ref().map_or(Duration::ZERO, |background| background.rest_max) };
        let throttle = background.and_then(|background| background.throttle);
        let write = move || store.write(&location, &payload, create, &mut rests);
        background::run_now("store-write", throttle, write).await.map_err(thread_failed)??;
        Ok(PutResult { e_tag: None, version: None })
    }

    async fn put_multipart_opts(&self, _: &ObjectPath, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(unsupported("multipart upload"))
    }

    async fn get_opts(&self, location: &ObjectPath, options: GetOptions) -> Result<GetResult> {
        let background = options.extensions.get::<InBackground>().cloned();
        let result = self.files.get_opts(location, options).await?;
        match (background, result) {
            (
                Some(InBackground { throttle, rest_max }),
                GetResult { payload: GetResultPayload::File(file, path), meta, range, attributes },
            ) => {
                let wanted = range.clone();
                let mut rests = Rests { left: rest_max };
                let read = move || read_quietly(file, &path, wanted, &mut rests);
                let read = background::run_now("store-read", throttle, read);
                let read = async move { read.await.map_err(thread_failed)? };
                let payload = GetResultPayload::Stream(futures::stream::once(read).boxed());
                Ok(GetResult { payload, meta, range, attributes })
            }
            (_, result) => Ok(result),
        }
    }

    async fn get_ranges(&self, location: &ObjectPath, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.files.get_ranges(location, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<ObjectPath>>,
    ) -> BoxStream<'static, Result<ObjectPath>> {
        self.files.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.files.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> Result<ListResult> {
        self.files.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, _: &ObjectPath, _: &ObjectPath, _: CopyOptions) -> Result<()> {
        Err(unsupported("copy"))
    }
}

fn write_durably(root: &Path, target: &Path, payload: &PutPayload, create: bool, rests: &mut Rests) -> io::Result<()> {
    let Some(folder) = target.parent().filter(|folder| folder.starts_with(root)) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "lies outside the store's folder"));
    };
    fs::create_dir_all(folder)?;
    let mut staging = target.as_os_str().to_owned();
    staging.push(format!("{STAGING_MARK}{}", rand::random::<u64>()));
    let staging = PathBuf::from(staging);
    let published = write_and_sync(&staging, payload, rests)
        .and_then(|()| if create { fs::hard_link(&staging, target) } else { fs::rename(&staging, target) });
    if create || published.is_err() {
        // Only tidiness: nobody reads a staging file.
        let _ = fs::remove_file(&staging);
    }
    match published {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        // What exists may be named in a folder that was not synced yet, if its writer died; the caller will rely on it.
        published => {
            folder.ancestors().take_while(|folder| folder.starts_with(root)).try_for_each(sync_folder)?;
            published
        }
    }
}

/// Whether a file is one that [`write_durably`] makes before the object.
fn is_staging(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.rsplit_once(STAGING_MARK).is_some_and(|(object, number)| !object.is_empty() && number.parse::<u64>().is_ok())
}

fn delete_staging(folder: &Path, before: SystemTime, empty_folders: bool, deleted: &mut Staging) -> io::Result<()> {
    for entry in if_there(fs::read_dir(folder))?.into_iter().flatten() {
        let entry = entry?;
        let path = entry.path();
        // Not of what a link leads to. What is gone meanwhile needs no deleting.
        let Some(meta) = if_there(entry.metadata())? else { continue };
        if meta.is_dir() {
            delete_staging(&path, before, empty_folders, deleted)?;
        } else if meta.is_file() && is_staging(&path) && meta.modified()? < before {
            if_there(fs::remove_file(&path))?;
            deleted.files += 1;
            deleted.bytes += meta.len();
        }
    }
    if empty_folders {
        match fs::remove_dir(folder) {
            Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound) => {}
            removed => removed?,
        }
    }
    Ok(())
}

/// Takes "it is not there" for an answer.
fn if_there<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        outcome => outcome.map(Some),
    }
}

fn write_and_sync(path: &Path, payload: &PutPayload, rests: &mut Rests) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    let mut written = 0;
    let beside_producers = background::is_beside_producers();
    let piece_bytes = if beside_producers { SYNC_BYTES_BESIDE_PRODUCERS } else { SYNC_BYTES };
    for piece in payload.iter().flat_map(|bytes| bytes.chunks(piece_bytes)) {
        file.write_all(piece)?;
        file.sync_data()?;
        written += piece.len() as u64;
        page_cache::forget(&file, written);
        rests.pause();
    }
    file.sync_all()
}

/// The bytes of `range` as one chunk, without a trace in the page cache. Blocking.
fn read_quietly(file: File, path: &Path, range: Range<u64>, rests: &mut Rests) -> Result<Bytes> {
    let mut reader = QuietReader::new(file);
    let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or(usize::MAX)];
    let mut position = range.start;
    for piece in bytes.chunks_mut(READ_BYTES) {
        reader.read_exact_at(piece, position).map_err(|source| generic(path.display().to_string(), source))?;
        position += piece.len() as u64;
        rests.pause();
    }
    Ok(bytes.into())
}

fn thread_failed(source: BackgroundError) -> object_store::Error {
    object_store::Error::Generic { store: STORE, source: Box::new(source) }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn generic(what: String, source: io::Error) -> object_store::Error {
    let source = io::Error::new(source.kind(), format!("{what}: {source}"));
    object_store::Error::Generic { store: STORE, source: Box::new(source) }
}

fn unsupported(operation: &str) -> object_store::Error {
    object_store::Error::NotImplemented { operation: operation.to_owned(), implementer: STORE.to_owned() }
}
