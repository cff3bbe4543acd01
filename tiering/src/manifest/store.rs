//! Loading and committing manifests.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::ObjectMeta;
use object_store::path::Path as ObjectPath;
use thermocline_ingest::clock::Clock;
use thermocline_ingest::model::Offset;

use super::files::{Entries, FileList, Part};
use super::format::{self, DecodedPart, DecodedVersion, MANIFEST_BYTES_MAX, PartRef};
use super::{Change, Manifest, ManifestError, ManifestHead, ObjectRef};
use crate::paths::{AttemptId, ObjectKind, PartitionPath, RangeName};
use crate::store::{ColdStore, StoreError};

/// Parts of one part, or of one version, that are read or written at once.
const PARTS_IN_FLIGHT: usize = 16;
/// How often a newest version that vanishes while it is read is looked for again.
const NEWEST_RACES_MAX: usize = 3;

/// Reads and commits manifests with the epoch of this start of the broker. Clones share what they know of fencing.
#[derive(Clone)]
pub struct ManifestStore {
    store: ColdStore,
    epoch: u64,
    clock: Arc<dyn Clock>,
    fence: Arc<Fence>,
}

/// Another broker has taken over: nothing that this one archives is accepted any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fenced {
    /// where it was noticed: a folder of the store
    pub what: String,
    /// of the other broker
    pub epoch: u64,
    pub own_epoch: u64,
}

#[derive(Default)]
struct Fence {
    fenced: OnceLock<Fenced>,
    then: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// What became of a commit.
#[derive(Debug)]
pub enum CommitOutcome {
    /// It is the newest version now.
    Committed(ManifestHead),
    /// Another commit was first, by this broker (an earlier one whose answer was lost) or by an older one; this is
    /// the newest version. Nothing of the change was applied: decide again.
    Superseded(ManifestHead),
}

impl ManifestStore {
    /// `epoch` must be higher than at any earlier start of this broker.
    pub fn new(store: ColdStore, epoch: u64, clock: Arc<dyn Clock>) -> Self {
        Self { store, epoch, clock, fence: Arc::default() }
    }

    /// What is to be done, once, when this broker is fenced. The first call wins.
    pub fn on_fenced(&self, then: impl Fn() + Send + Sync + 'static) {
        let _ = self.fence.then.set(Box::new(then));
    }

    /// Set for good once a commit was refused because of a higher epoch.
    pub fn fenced(&self) -> Option<&Fenced> {
        self.fence.fenced.get()
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The newest version; an empty one where the partition was never archived. Strangers in the folder are ignored, a
    /// damaged newest version is an error: going back would lose what it names.
    pub async fn load(&self, path: &PartitionPath) -> Result<ManifestHead, ManifestError> {
        let Some(DecodedVersion { mut manifest, parts, retired }) = self.newest_version(path).await? else {
            return Ok(ManifestHead::empty(path));
        };
        let start = manifest.log_start_offset;
        let mut files = FileList::new(self.read_parts(path, parts, start).await?, manifest.files.tail().to_vec());
        files.drop_below(start, &mut |_| {});
        manifest.files = files;
        Ok(ManifestHead { manifest: Arc::new(manifest), retired })
    }

    /// Version and epoch of the newest version, without reading its parts; `None` for a partition that has none.
    pub async fn newest(&self, path: &PartitionPath) -> Result<Option<(u64, u64)>, ManifestError> {
        let newest = self.newest_version(path).await?;
        Ok(newest.map(|DecodedVersion { manifest, .. }| (manifest.version, manifest.epoch)))
    }

    /// All versions in the folder, oldest first.
    pub async fn versions(&self, path: &PartitionPath) -> Result<Vec<(u64, ObjectMeta)>, ManifestError> {
        let (objects, _) = self.store.list_folder(&path.manifest_folder()).await.map_err(|e| failed(path, e))?;
        let mut versions: Vec<_> = objects
            .into_iter()
            .filter_map(|meta| path.parse_manifest(&meta.location).map(|version| (version, meta)))
            .collect();
        versions.sort_unstable_by_key(|(version, _)| *version);
        Ok(versions)
    }

    /// Creates the version after `current`. Everything that `change` names must be in the store and verified.
    ///
    /// Errors: `Fenced` when a broker of a higher epoch has committed; `NotContiguous` when the file does not follow;
    /// `Store` when the store failed, and then the commit may have happened: load before deciding again.
    pub async fn commit(&self, current: &ManifestHead, change: Change) -> Result<CommitOutcome, ManifestError> {
        let path = current.manifest.path();
        self.check_epoch(&current.manifest)?;
        let mut next = current.apply(change, self.epoch, self.clock.now())?;
        self.write_parts(&path, &mut Arc::make_mut(&mut next.manifest).files).await?;
        let version = next.manifest.version;
        let key = path.manifest(version);
        let bytes = format::encode_version(&next).map_err(|reason| corrupt(&key, reason))?;
        let created = self.store.create(&key, bytes).await.map_err(|e| failed(&path, e))?;
        if created && self.is_newest(&path, version).await? {
            return Ok(CommitOutcome::Committed(next));
        }
        let newest = self.load(&path).await?;
        self.check_epoch(&newest.manifest)?;
        Ok(CommitOutcome::Superseded(newest))
    }

    /// Whether the version that was just created was never there before and is the newest: see the module.
    async fn is_newest(&self, path: &PartitionPath, version: u64) -> Result<bool, ManifestError> {
        let successor = self.version_size(path, version + 1);
        if version == 1 {
            let (successor, listed) = tokio::join!(successor, self.versions(path));
            return Ok(successor?.is_none() && listed?.iter().all(|(listed, _)| *listed <= version));
        }
        let (successor, predecessor) = tokio::join!(successor, self.version_size(path, version - 1));
        Ok(successor?.is_none() && predecessor?.is_some())
    }

    /// `None` where the version is not there.
    async fn version_size(&self, path: &PartitionPath, version: u64) -> Result<Option<u64>, ManifestError> {
        self.store.size_bytes(&path.manifest(version)).await.map_err(|e| failed(path, e))
    }

    fn check_epoch(&self, manifest: &Manifest) -> Result<(), ManifestError> {
        let what = || manifest.path().root().to_string();
        if manifest.epoch > self.epoch {
            return Err(self.fence(what(), manifest.epoch));
        }
        self.check_not_fenced(what)
    }

    /// Refuses what a fenced broker must not do to `what`.
    pub(crate) fn check_not_fenced(&self, what: impl FnOnce() -> String) -> Result<(), ManifestError> {
        match self.fenced() {
            None => Ok(()),
            Some(fenced) => Err(self.fence(what(), fenced.epoch)),
        }
    }

    /// Takes note, for good, that a broker of a higher epoch has written to `what`. Told once.
    pub(crate) fn fence(&self, what: String, epoch: u64) -> ManifestError {
        let own_epoch = self.epoch;
        if self.fence.fenced.set(Fenced { what: what.clone(), epoch, own_epoch }).is_ok() {
            tracing::error!(
                what,
                epoch,
                own_epoch,
                "another broker archives to this store now; this one takes and archives nothing any more and should be stopped"
            );
            if let Some(then) = self.fence.then.get() {
                then();
            }
        }
        ManifestError::Fenced { what, epoch, own_epoch }
    }

    /// Stores the parts that the change under way has made. No version names them yet.
    async fn write_parts(&self, path: &PartitionPath, files: &mut FileList) -> Result<(), ManifestError> {
        let mut objects = Vec::new();
        let named = files.name_parts(&mut |level, entries| {
            let part = format::encode_part(path, level, entries)?;
            let (base, last) = (part.base_offset, part.last_offset);
            let name = RangeName { kind: ObjectKind::ManifestPart, base, last, attempt: AttemptId::fresh() };
            let key = path.object(&name);
            let object = ObjectRef::of(&key, &part.bytes);
            objects.push((key, part.bytes));
            Ok(PartRef { object, base_offset: base, last_offset: last, files: part.files, level })
        });
        named.map_err(|reason: String| corrupt(&path.folder(ObjectKind::ManifestPart), reason))?;
        futures::stream::iter(objects)
            .map(async |(key, bytes)| self.store.put(&key, bytes).await.map_err(|e| failed(path, e)))
            .buffer_unordered(PARTS_IN_FLIGHT)
            .try_collect::<()>()
            .await
    }

    /// Looked for where the listing ends: see the module.
    async fn newest_version(&self, path: &PartitionPath) -> Result<Option<DecodedVersion>, ManifestError> {
        for _ in 0..NEWEST_RACES_MAX {
            let listed = self.versions(path).await?.pop();
            let (mut version, mut size_bytes) = listed.map_or((0, 0), |(version, meta)| (version, meta.size));
            while let Some(size) = self.version_size(path, version + 1).await? {
                (version, size_bytes) = (version + 1, size);
            }
            if version == 0 {
                return Ok(None);
            }
            // Gone only if newer ones were created since the listing and the janitor came by.
            let key = path.manifest(version);
            check_size(&key, size_bytes)?;
            match self.store.get_sized(&key, size_bytes).await {
                Ok(bytes) => {
                    let decoded = format::decode_version(path, version, &bytes);
                    return decoded.map(Some).map_err(|reason| corrupt(&key, reason));
                }
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(failed(path, error)),
            }
        }
        Err(ManifestError::Unsettled { partition: path.root().to_string(), count: NEWEST_RACES_MAX })
    }

    /// The parts that do not lie wholly below `start`, with all that they hold from there on.
    fn read_parts<'a>(
        &'a self,
        path: &'a PartitionPath,
        parts: Vec<PartRef>,
        start: Offset,
    ) -> BoxFuture<'a, Result<Vec<Arc<Part>>, ManifestError>> {
        let parts = parts.into_iter().filter(move |part| part.last_offset >= start);
        let read = futures::stream::iter(parts)
            .map(move |part| self.read_part(path, part, start))
            .buffered(PARTS_IN_FLIGHT)
            .try_filter_map(async |part| Ok(part));
        read.try_collect().boxed()
    }

    async fn read_part(
        &self,
        path: &PartitionPath,
        part: PartRef,
        start: Offset,
    ) -> Result<Option<Arc<Part>>, ManifestError> {
        let key = part.object.path();
        check_size(&key, part.object.size_bytes)?;
        let bytes = self.store.get_sized(&key, part.object.size_bytes).await.map_err(|e| failed(path, e))?;
        let entries = match format::decode_part(path, &part, &bytes).map_err(|reason| corrupt(&key, reason))? {
            DecodedPart::Files(mut files) => {
                files.retain(|file| file.last_offset >= start);
                Entries::Files(files)
            }
            DecodedPart::Parts(parts) => Entries::Parts(self.read_parts(path, parts, start).await?),
        };
        Ok(Part::stored(part, entries))
    }
}

fn check_size(key: &ObjectPath, size_bytes: u64) -> Result<(), ManifestError> {
    if size_bytes <= MANIFEST_BYTES_MAX {
        return Ok(());
    }
    Err(corrupt(key, format!("{size_bytes} bytes exceed the limit of {MANIFEST_BYTES_MAX}")))
}

impl ObjectRef {
    /// The reference to an object with these bytes.
    pub fn of(key: &ObjectPath, bytes: &Bytes) -> Self {
        Self { key: key.to_string(), size_bytes: bytes.len() as u64, xxh3: crate::verify::object_hash(bytes) }
    }

    /// The key, for the store.
    pub fn path(&self) -> ObjectPath {
        ObjectPath::from(self.key.as_str())
    }
}

fn failed(path: &PartitionPath, source: StoreError) -> ManifestError {
    ManifestError::Store { partition: path.root().to_string(), source }
}

fn corrupt(key: &ObjectPath, reason: String) -> ManifestError {
    ManifestError::Corrupt { key: key.to_string(), reason }
}
