//! The scrub: reads every archived file again, slowly and for ever, and says what has been damaged since.
//!
//! **Order.** A stable walk: partitions by topic id and number, of each the manifest with its parts and then the files
//! by offset, round and round from a place that is chosen at random when the broker starts. Nothing is remembered over
//! a restart, so nothing has to be written; a broker that is often restarted in the middle of a pass still comes to
//! every file, for it starts each time somewhere else, and a pass goes round to where it began.
//!
//! **Rate.** `tiering.scrub_rate` bytes per second, a pass a day at most, one request to the store and one
//! decoding thread at a time, beside `tiering.memory_max` the memory of one data file.
//!
//! **What is found** is logged once as an error, counted, and remembered until it is found sound or is not named by the
//! manifest any more. Nothing is repaired, even while the log still has the records: a second copy of the same
//! range needs a decision about why the first went bad. A store that does not answer is waited for; an object that it
//! fails to give again and again while it answers otherwise (a bad sector of a folder's disk) is damaged.
//!
//! | died here | then |
//! |---|---|
//! | anywhere | the walk begins elsewhere; what was found before is reported again when the walk comes by |

use std::collections::BTreeMap;
use std::error::Error;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::Rng;
use thermocline_ingest::clock::Clock;
use thermocline_ingest::model::{Offset, PartitionId, Timestamp, TopicId};
use tokio::time::{Instant, sleep, sleep_until};

use crate::background::Background;
use crate::budget::{Budget, Rates};
use crate::manifest::{DataFile, Manifest, ManifestError, ManifestStore};
use crate::metrics::TieringMetrics;
use crate::paths::{self, PartitionPath};
use crate::store::ColdStore;
use crate::verify::{Damage, Fault, FileCheck, OBJECT_COST_BYTES, VerifyError, check_named, file_bytes, load_newest};

/// From the beginning of one pass to that of the next at least: an archive that is read in a minute need not be read
/// every minute.
const PASS_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// Before a file or manifest is tried again after the store did not answer.
const STORE_PAUSE: Duration = Duration::from_secs(60);
/// Attempts that fail while the store answers otherwise, after which the object counts as damaged.
const UNREADABLE_AFTER: u32 = 5;
/// Damaged files and manifests remembered; further ones are logged and counted only.
const DAMAGED_FILES_MAX: usize = 10_000;

/// Where the files are.
pub(crate) trait Archives: Sync {
    /// The partitions there are.
    fn paths(&self) -> Vec<PartitionPath>;
    /// What a partition consists of now; `None` once it is gone.
    fn manifest(&self, path: &PartitionPath) -> Option<Arc<Manifest>>;
}

/// An archived file, or a manifest, that the store does not hold as it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedFile {
    pub path: PartitionPath,
    /// None for the manifest
    pub file: Option<Arc<DataFile>>,
    /// at most one per object, never empty
    pub damage: Vec<Damage>,
    pub found_at: Timestamp,
}

/// Checks files, and remembers which are damaged.
pub struct Scrubber {
    store: ColdStore,
    manifests: ManifestStore,
    background: Background,
    clock: Arc<dyn Clock>,
    metrics: Arc<TieringMetrics>,
    /// None = off
    budget: Option<Budget>,
    damaged: Mutex<BTreeMap<DamageKey, DamagedFile>>,
}

/// Of a file the key of its data object.
type DamageKey = (TopicId, PartitionId, Option<String>);

/// A place in the walk.
type Place = (TopicId, PartitionId, Offset);

impl Scrubber {
    /// `rate` in bytes per second; 0 turns the scrub off.
    pub fn new(
        store: ColdStore,
        manifests: ManifestStore,
        background: Background,
        clock: Arc<dyn Clock>,
        metrics: Arc<TieringMetrics>,
        rate: u64,
    ) -> Self {
        let rates = Rates { bytes_per_second: rate, requests_per_second: 0 };
        let budget = (rate > 0).then(|| Budget::new(rates));
        Self { store, manifests, background, clock, metrics, budget, damaged: Mutex::default() }
    }

    /// What is known to be damaged of a partition: the manifest first, then the files in offset order.
    pub fn damaged_files(&self, path: &PartitionPath) -> Vec<DamagedFile> {
        let damaged = self.damaged.lock();
        let of_partition = damaged.range(damage_key(path, None)..).take_while(|(_, found)| found.path == *path);
        of_partition.map(|(_, found)| found.clone()).collect()
    }

    /// Never ends.
    pub(crate) async fn run(&self, archives: &impl Archives) {
        let Some(budget) = &self.budget else { return std::future::pending().await };
        let start = random_place(archives);
        loop {
            let began = Instant::now();
            if self.pass(archives, start, budget).await > 0 {
                self.metrics.scrub_pass_seconds.set(began.elapsed().as_secs_f64());
            }
            sleep_until(began + PASS_INTERVAL).await;
        }
    }

    /// Once round, from `start`. Returns the number of files.
    async fn pass(&self, archives: &impl Archives, start: Place, budget: &Budget) -> u64 {
        let mut files = 0;
        for (path, range) in legs(archives.paths(), start) {
            let Some(manifest) = archives.manifest(&path) else { continue };
            if manifest.version > 0 {
                self.check_manifest(&path, budget).await;
            }
            let mut next = range.start;
            while let Some(file) = next_file(archives, &path, next..range.end) {
                self.forget_what_is_gone(archives);
                self.check(&path, &file, budget).await;
                next = file.last_offset.next();
                files += 1;
            }
        }
        self.forget_what_is_gone(archives);
        files
    }

    /// The newest version in the store and its parts: what the next start of a broker will read.
    async fn check_manifest(&self, path: &PartitionPath, budget: &Budget) {
        budget.take(OBJECT_COST_BYTES).await;
        match self.settled(path, || load_newest(&self.store, &self.manifests, path)).await {
            Ok(checked) => self.update(path, None, checked.flatten().err().into_iter().collect()),
            Err(error) => {
                let partition = path.root();
                tracing::error!(%partition, error = &error as &dyn Error, "the scrub cannot check a manifest, it goes on");
            }
        }
    }

    async fn check(&self, path: &PartitionPath, file: &Arc<DataFile>, budget: &Budget) {
        let check = || check_named(&self.store, &self.background, &self.manifests, path, file, Some(budget));
        match self.settled(path, check).await {
            Ok(Ok(FileCheck::Sound)) => self.update(path, Some(file), Vec::new()),
            Ok(Ok(FileCheck::Damaged(damage))) => self.update(path, Some(file), damage),
            Ok(Ok(FileCheck::Replaced(_))) => return self.update(path, Some(file), Vec::new()),
            Ok(Err(unreadable)) => return self.update(path, Some(file), vec![unreadable]),
            Err(error) => {
                let key = &file.data.key;
                tracing::error!(key, error = &error as &dyn Error, "the scrub cannot check a file, it goes on");
                return;
            }
        }
        self.metrics.scrubbed_files.inc();
        self.metrics.scrubbed_bytes.inc_by(file_bytes(file));
    }

    /// What `check` comes to, or the object that the store alone fails to give. A store that does not answer at all is
    /// waited for.
    async fn settled<T, F: Future<Output = Result<T, VerifyError>>>(
        &self,
        path: &PartitionPath,
        check: impl Fn() -> F,
    ) -> Result<Result<T, Damage>, VerifyError> {
        let mut failures = 0;
        loop {
            let error = match check().await {
                Ok(found) => return Ok(Ok(found)),
                Err(error) => error,
            };
            let Some(unreadable) = unreadable(&error) else { return Err(error) };
            failures = if self.store_answers(path).await { failures + 1 } else { 0 };
            if failures == UNREADABLE_AFTER {
                return Ok(Err(unreadable));
            }
            let key = &unreadable.key;
            tracing::warn!(key, error = &error as &dyn Error, wait = ?STORE_PAUSE, "the scrub waits for the store");
            sleep(STORE_PAUSE).await;
        }
    }

    /// Whether it can be asked for something else.
    async fn store_answers(&self, path: &PartitionPath) -> bool {
        match self.store.get(&paths::topic_file(&path.topic, path.topic_id)).await {
            Ok(_) => true,
            Err(error) => error.is_not_found(),
        }
    }

    /// Notes what a check came to: `damage` takes the place of what was noted before.
    fn update(&self, path: &PartitionPath, file: Option<&Arc<DataFile>>, damage: Vec<Damage>) {
        let key = damage_key(path, file);
        let mut damaged = self.damaged.lock();
        let before = damaged.remove(&key);
        if !damage.is_empty() {
            let found_at = match before.filter(|before| before.damage == damage) {
                Some(before) => before.found_at,
                None => {
                    self.metrics.scrub_damage.inc();
                    for Damage { key, fault } in &damage {
                        tracing::error!(key, %fault, "an archived object is damaged");
                    }
                    self.clock.now()
                }
            };
            if damaged.len() < DAMAGED_FILES_MAX {
                damaged.insert(key, DamagedFile { path: path.clone(), file: file.cloned(), damage, found_at });
            }
        }
        self.metrics.scrub_damaged_files.set(i64::try_from(damaged.len()).unwrap_or(i64::MAX));
    }

    /// Takes files off the list that the manifest does not name any more.
    fn forget_what_is_gone(&self, archives: &impl Archives) {
        let mut damaged = self.damaged.lock();
        damaged.retain(|_, found| {
            let Some(manifest) = archives.manifest(&found.path) else { return false };
            found.file.as_ref().is_none_or(|file| {
                manifest.file_for(file.base_offset).is_some_and(|newest| newest.data.key == file.data.key)
            })
        });
        self.metrics.scrub_damaged_files.set(i64::try_from(damaged.len()).unwrap_or(i64::MAX));
    }
}

fn damage_key(path: &PartitionPath, file: Option<&Arc<DataFile>>) -> DamageKey {
    (path.topic_id, path.partition, file.map(|file| file.data.key.clone()))
}

/// What is wrong if a failure of the store that may pass does not; `None` of other failures.
fn unreadable(error: &VerifyError) -> Option<Damage> {
    let failed = match error {
        VerifyError::Store(failed) => failed,
        VerifyError::Manifest(ManifestError::Store { source, .. }) => source,
        _ => return None,
    };
    let damage = || Damage { key: failed.key.clone(), fault: Fault::Undecodable { reason: failed.source.to_string() } };
    failed.is_transient().then(damage)
}

fn next_file(archives: &impl Archives, path: &PartitionPath, within: Range<Offset>) -> Option<Arc<DataFile>> {
    let manifest = archives.manifest(path)?;
    manifest.file_for(within.start).filter(|file| file.base_offset < within.end).cloned()
}

/// The partitions in the order of the walk, from `start` round to it; the one that holds it comes first and last.
fn legs(mut paths: Vec<PartitionPath>, start: Place) -> Vec<(PartitionPath, Range<Offset>)> {
    let (topic_id, partition, offset) = start;
    paths.sort_by_key(|path| (path.topic_id, path.partition));
    let at = paths.partition_point(|path| (path.topic_id, path.partition) < (topic_id, partition));
    paths.rotate_left(at);
    let holds_start = |path: &&PartitionPath| (path.topic_id, path.partition) == (topic_id, partition);
    let split = paths.first().filter(holds_start).filter(|_| offset > Offset::ZERO).cloned();
    let mut legs: Vec<_> = paths.into_iter().map(|path| (path, Offset::ZERO..Offset(i64::MAX))).collect();
    if let (Some(path), Some((_, first))) = (split, legs.first_mut()) {
        first.start = offset;
        legs.push((path, Offset::ZERO..offset));
    }
    legs
}

/// The place of any file, each as likely as the other.
fn random_place(archives: &impl Archives) -> Place {
    let manifests: Vec<_> = archives.paths().iter().filter_map(|path| archives.manifest(path)).collect();
    let files = || manifests.iter().flat_map(|manifest| manifest.files.iter().map(move |file| (manifest, file)));
    let count = files().count();
    let chosen = if count == 0 { 0 } else { rand::rng().random_range(0..count) };
    match files().nth(chosen) {
        Some((manifest, file)) => (manifest.topic_id, manifest.partition, file.base_offset),
        None => (TopicId(uuid::Uuid::nil()), PartitionId(0), Offset::ZERO),
    }
}

#[cfg(test)]
mod tests;
