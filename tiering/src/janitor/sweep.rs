//! Objects that no manifest names: uploads that were never committed, parts of commits that failed.
//!
//! A partition may have a million objects. So the listing is read page by page, and without keeping archiving waiting:
//! it is held against a manifest of before the listing, which yields *suspects*, a few at a time. Only to delete those
//! the caller locks out the partition's commits, and they are held against the newest manifest once more.
//!
//! Why that is enough: a suspect was listed before the lock was taken, so it was uploaded by a job that has ended since
//! (jobs hold the lock from before their first upload to after their last commit), or by another broker. If the job has
//! committed it, the newest manifest names it. If it has not, nobody will: the next attempt uploads under fresh names.
//! A merge uploads without the lock; it looks for its objects under it right before it commits, and gives up if they
//! are gone. Uploads of another broker are told by their age.

use std::collections::{HashMap, HashSet};

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectMeta;
use object_store::path::Path as ObjectPath;
use thermocline_ingest::model::Timestamp;

use super::{Janitor, JanitorError};
use crate::manifest::{ManifestHead, ObjectRef};
use crate::paths::{ObjectKind, PartitionPath};
use crate::store::StoreError;

/// Suspects handed out at once: what is deleted while archiving waits.
const SUSPECTS_PER_STEP: usize = 256;

/// Unreferenced objects and staging files that sweeps came across.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// too young to be sure; uploads under way are among them
    pub young_objects: u64,
    pub young_bytes: u64,
    /// collected, unless the manifest named them meanwhile or deleting failed
    pub old_objects: u64,
    pub old_bytes: u64,
}

/// A walk over a partition's folders.
pub struct Sweep {
    path: PartitionPath,
    named: HashSet<ObjectPath>,
    listing: BoxStream<'static, Result<ObjectMeta, StoreError>>,
    /// Objects last written after it are left alone.
    written_before: Timestamp,
}

impl Sweep {
    /// The next objects that are old enough and that the manifest did not name; nothing at the end.
    pub async fn suspects(&mut self, seen: &mut Seen) -> Result<Vec<ObjectMeta>, JanitorError> {
        let mut suspects = Vec::new();
        while suspects.len() < SUSPECTS_PER_STEP
            && let Some(meta) = self.listing.try_next().await?
        {
            if self.named.contains(&meta.location) || self.path.parse_object(&meta.location).is_none() {
                continue;
            }
            if meta.last_modified.timestamp_millis() > self.written_before.0 {
                seen.young_objects += 1;
                seen.young_bytes += meta.size;
            } else {
                seen.old_objects += 1;
                seen.old_bytes += meta.size;
                suspects.push(meta);
            }
        }
        Ok(suspects)
    }
}

impl Janitor {
    /// Begins a walk over a partition's folders. `head` is its manifest, of now or of a little while ago.
    pub fn sweep(&self, path: &PartitionPath, head: &ManifestHead) -> Sweep {
        let folders = ObjectKind::ALL.map(|kind| self.store.list_stream(&path.folder(kind)));
        Sweep {
            path: path.clone(),
            named: head.objects().map(ObjectRef::path).collect(),
            listing: futures::stream::iter(folders).flatten().boxed(),
            written_before: self.orphaned_before(),
        }
    }

    /// Deletes those suspects that the newest manifest does not name. The caller holds the partition's commits; `head`
    /// is what it believes to be the newest, and is read again only if it is not: archiving waits meanwhile.
    pub async fn collect(&self, head: &ManifestHead, suspects: Vec<ObjectMeta>) -> Result<(), JanitorError> {
        let path = head.manifest().path();
        let believed = (head.manifest().version, head.manifest().epoch);
        let loaded;
        let newest = if self.manifests.newest(&path).await?.unwrap_or_default() == believed {
            head
        } else {
            loaded = self.manifests.load(&path).await?;
            &loaded
        };
        if newest.manifest().epoch > self.manifests.epoch() {
            return Ok(());
        }
        let mut orphans: HashMap<&str, &ObjectMeta> =
            suspects.iter().map(|meta| (meta.location.as_ref(), meta)).collect();
        for named in newest.objects() {
            orphans.remove(named.key.as_str());
        }
        let (objects, bytes) = (orphans.len() as u64, orphans.values().map(|meta| meta.size).sum());
        if objects > 0 {
            tracing::info!(partition = %path.root(), objects, bytes, "collecting orphans");
            self.delete_all(orphans.into_values().map(|meta| meta.location.clone()).collect()).await?;
            self.count(objects, bytes);
        }
        Ok(())
    }

    /// Deletes what crashes left of unfinished writes in the partition's folders, where the store is a local folder.
    pub async fn collect_staging(&self, path: &PartitionPath, seen: &mut Seen) -> Result<(), JanitorError> {
        let deleted = self.store.delete_staging(&path.root(), self.orphaned_before(), false).await?;
        seen.old_objects += deleted.files;
        seen.old_bytes += deleted.bytes;
        self.count(deleted.files, deleted.bytes);
        Ok(())
    }

    /// Tells what all partitions together had.
    pub fn report(&self, seen: Seen) {
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        for (age, objects, bytes) in
            [("young", seen.young_objects, seen.young_bytes), ("old", seen.old_objects, seen.old_bytes)]
        {
            self.metrics.orphan_objects.with_label_values(&[age]).set(gauge(objects));
            self.metrics.orphan_bytes.with_label_values(&[age]).set(gauge(bytes));
        }
    }

    fn orphaned_before(&self) -> Timestamp {
        Timestamp(self.clock.now().0.saturating_sub(self.ages.orphan_ms))
    }

    fn count(&self, objects: u64, bytes: u64) {
        self.metrics.collected_orphan_objects.inc_by(objects);
        self.metrics.collected_orphan_bytes.inc_by(bytes);
    }
}
