//! Loading and committing manifests.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectMeta;
use object_store::path::Path as ObjectPath;
use thermocline_ingest::clock::Clock;

use super::format::{self, DecodedVersion, MANIFEST_BYTES_MAX, PartRef};
use super::{Change, Manifest, ManifestError, ManifestHead, ObjectRef, PART_FILES};
use crate::paths::{AttemptId, ObjectKind, PartitionPath, RangeName};
use crate::store::{ColdStore, StoreError};

/// Parts of one manifest read at once.
const PARTS_IN_FLIGHT: usize = 8;
/// How often a newest version that vanishes while it is read is looked for again.
const NEWEST_RACES_MAX: usize = 3;

/// Reads and commits manifests with the epoch of this start of the broker.
#[derive(Clone)]
pub struct ManifestStore {
    store: ColdStore,
    epoch: u64,
    clock: Arc<dyn Clock>,
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
        Self { store, epoch, clock }
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The newest version; an empty one where the partition was never archived. Lagging versions and strangers in the
    /// folder are ignored, a damaged newest version is an error: going back would lose what it names.
    pub async fn load(&self, path: &PartitionPath) -> Result<ManifestHead, ManifestError> {
        for _ in 0..NEWEST_RACES_MAX {
            let Some((version, meta)) = self.newest(path).await? else {
                return Ok(ManifestHead::empty(path));
            };
            // Gone only if several newer ones were created since the listing and the janitor came by.
            if let Some(head) = self.read_version(path, version, &meta).await? {
                return Ok(head);
            }
        }
        Err(ManifestError::Unsettled { partition: path.root().to_string(), count: NEWEST_RACES_MAX })
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
        let next = self.seal_part(&path, current.apply(change, self.epoch, self.clock.now())?).await?;
        let version = next.manifest.version;
        let key = path.manifest(version);
        let bytes = format::encode_version(&next).map_err(|reason| corrupt(&key, reason))?;
        let created = self.store.create(&key, bytes).await.map_err(|e| failed(&path, e))?;
        let newest = self.newest(&path).await?.map(|(version, _)| version);
        if created && newest == Some(version) {
            return Ok(CommitOutcome::Committed(next));
        }
        let newest = self.load(&path).await?;
        self.check_epoch(&newest.manifest)?;
        Ok(CommitOutcome::Superseded(newest))
    }

    fn check_epoch(&self, manifest: &Manifest) -> Result<(), ManifestError> {
        if manifest.epoch <= self.epoch {
            return Ok(());
        }
        let partition = manifest.path().root().to_string();
        Err(ManifestError::Fenced { partition, epoch: manifest.epoch, own_epoch: self.epoch })
    }

    /// Moves the oldest files of a long tail into a part, so that the version stays small.
    async fn seal_part(&self, path: &PartitionPath, mut head: ManifestHead) -> Result<ManifestHead, ManifestError> {
        let tail = head.tail();
        let files = match tail.get(..PART_FILES) {
            Some(files) if tail.len() >= 2 * PART_FILES => files,
            _ => return Ok(head),
        };
        let (Some(first), Some(last)) = (files.first(), files.last()) else { return Ok(head) };
        let (base, last) = (first.base_offset, last.last_offset);
        let key = path.object(&RangeName { kind: ObjectKind::ManifestPart, base, last, attempt: AttemptId::fresh() });
        let bytes = format::encode_part(path, files).map_err(|reason| corrupt(&key, reason))?;
        let object = ObjectRef::of(&key, &bytes);
        let part = PartRef { object, base_offset: base, last_offset: last, files: files.len() as u64 };
        self.store.put(&key, bytes).await.map_err(|e| failed(path, e))?;
        head.sealed.push(part);
        Ok(head)
    }

    async fn newest(&self, path: &PartitionPath) -> Result<Option<(u64, ObjectMeta)>, ManifestError> {
        Ok(self.versions(path).await?.pop())
    }

    /// `None` where the object is not there any more.
    async fn read_version(
        &self,
        path: &PartitionPath,
        version: u64,
        meta: &ObjectMeta,
    ) -> Result<Option<ManifestHead>, ManifestError> {
        let key = &meta.location;
        if meta.size > MANIFEST_BYTES_MAX {
            return Err(corrupt(key, format!("{} bytes exceed the limit of {MANIFEST_BYTES_MAX}", meta.size)));
        }
        let bytes = match self.store.get_sized(key, meta.size).await {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(failed(path, error)),
        };
        let DecodedVersion { mut manifest, sealed, retired } =
            format::decode_version(path, version, &bytes).map_err(|reason| corrupt(key, reason))?;
        let parts: Vec<_> = futures::stream::iter(sealed.clone())
            .map(|part| self.read_part(path, part))
            .buffered(PARTS_IN_FLIGHT)
            .try_collect()
            .await?;
        let start = manifest.log_start_offset;
        let tail = std::mem::take(&mut manifest.files);
        manifest.files = parts.into_iter().flatten().chain(tail).filter(|file| file.last_offset >= start).collect();
        Ok(Some(ManifestHead { manifest: Arc::new(manifest), sealed, retired }))
    }

    async fn read_part(&self, path: &PartitionPath, part: PartRef) -> Result<Vec<Arc<super::DataFile>>, ManifestError> {
        let key = ObjectPath::from(part.object.key.as_str());
        if part.object.size_bytes > MANIFEST_BYTES_MAX {
            let found = part.object.size_bytes;
            return Err(corrupt(&key, format!("{found} bytes exceed the limit of {MANIFEST_BYTES_MAX}")));
        }
        let bytes = self.store.get_sized(&key, part.object.size_bytes).await.map_err(|e| failed(path, e))?;
        format::decode_part(path, &part, &bytes).map_err(|reason| corrupt(&key, reason))
    }
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
