use object_store::memory::InMemory;
use thermocline_ingest::clock::ManualClock;
use thermocline_ingest::model::Timestamp;

use super::*;
use crate::manifest::Manifest;
use crate::pipeline::{ArchiveJob, Archiver, Batches};
use crate::testing::{
    FaultyStore, background_threads, batches, metrics, path, some_records, stage_options, tiering_config,
};

const AGE_MS: i64 = 60_000;
const RETIRED_MS: i64 = 1_000;
const FILE_BYTES: usize = 16 << 10;

struct Setup {
    faulty: FaultyStore,
    store: ColdStore,
    manifests: ManifestStore,
    clock: Arc<ManualClock>,
    janitor: Janitor,
}

/// The store dates its objects by the machine's clock, so the janitor's starts there.
fn setup() -> Setup {
    let faulty = FaultyStore::healthy(Arc::new(InMemory::new()));
    let clock = Arc::new(ManualClock::at(thermocline_ingest::clock::SystemClock.now()));
    on(faulty, clock, 1)
}

fn on(faulty: FaultyStore, clock: Arc<ManualClock>, epoch: u64) -> Setup {
    let store = faulty.cold(0);
    let manifests = ManifestStore::new(store.clone(), epoch, clock.clone());
    let ages = JanitorAges { orphan_ms: AGE_MS, retired_ms: RETIRED_MS };
    let janitor = Janitor::new(store.clone(), manifests.clone(), clock.clone(), metrics(), ages);
    Setup { faulty, store, manifests, clock, janitor }
}

impl Setup {
    /// Archives a segment as several files.
    async fn archive(&self) -> ManifestHead {
        let archiver = Archiver::new(
            self.store.clone(),
            self.manifests.clone(),
            background_threads(),
            &tiering_config(),
            metrics(),
        );
        let mut head = self.manifests.load(&path()).await.unwrap();
        let segment = batches(head.manifest().next_offset().0, &some_records(1000), 50);
        let source = Box::new(move || Ok(Box::new(segment.clone().into_iter().map(Ok)) as Batches));
        let job = ArchiveJob { batches: source, options: stage_options(FILE_BYTES) };
        archiver.archive_segment(job, &mut head, &|_: &Arc<Manifest>| {}).await.unwrap();
        assert!(head.manifest().files.len() >= 3);
        head
    }

    async fn orphan(&self, name: &str) -> ObjectPath {
        let key = path().folder(ObjectKind::Data).join(name);
        self.store.put(&key, "left behind".into()).await.unwrap();
        key
    }

    async fn exists(&self, key: &ObjectPath) -> bool {
        self.store.size_bytes(key).await.unwrap().is_some()
    }

    /// What the newest manifest names is all there.
    async fn check(&self) {
        let head = self.manifests.load(&path()).await.unwrap();
        for object in head.objects() {
            assert!(self.exists(&object.path()).await, "{} is gone", object.key);
        }
    }
}

fn orphan_name(n: u8) -> String {
    format!("{:020}-{:020}-{:032x}.parquet", 0, 9, n)
}

#[tokio::test]
async fn expired_files_go_after_the_commit() {
    let setup = setup();
    let mut head = setup.archive().await;
    let before = head.clone();
    let log_start = before.manifest().files[1].last_offset;
    let seen = std::sync::atomic::AtomicUsize::new(0);
    let publish = |head: &ManifestHead| seen.store(head.manifest().files.len(), std::sync::atomic::Ordering::SeqCst);
    setup.janitor.expire(&mut head, log_start, &publish).await.unwrap();
    assert_eq!(head.manifest().files, before.manifest().files[1..], "a file that holds the log start stays");
    assert_eq!(seen.into_inner(), head.manifest().files.len());
    setup.check().await;
    let version = head.manifest().version;
    setup.janitor.expire(&mut head, log_start, &|_| panic!("nothing changed")).await.unwrap();
    setup.janitor.delete_retired(&mut head, &|_| panic!("nothing is due")).await.unwrap();
    assert_eq!(head.manifest().version, version, "no commit where nothing expired");
    let gone = before.manifest().files[0].data.path();
    assert!(setup.exists(&gone).await, "a reader may be at it");
    setup.clock.advance_ms(RETIRED_MS);
    setup.janitor.delete_retired(&mut head, &|_| {}).await.unwrap();
    assert!(!setup.exists(&gone).await && head.retired().is_empty());
    setup.check().await;
    // All of it.
    let end = head.manifest().archived_through();
    setup.janitor.expire(&mut head, end, &|_| {}).await.unwrap();
    assert!(head.manifest().files.is_empty());
    setup.check().await;
    setup.clock.advance_ms(RETIRED_MS);
    setup.janitor.delete_retired(&mut head, &|_| {}).await.unwrap();
    assert!(setup.faulty.keys().await.iter().all(|key| key.contains("/manifest/")));
    assert_eq!(setup.manifests.load(&path()).await.unwrap(), head);
}

#[tokio::test]
async fn orphans_go_when_they_are_old_and_nothing_else_does() {
    let setup = setup();
    setup.archive().await;
    let orphan = setup.orphan(&orphan_name(1)).await;
    let stranger = setup.orphan("holiday.jpg").await;
    let elsewhere = ObjectPath::from("topics/orders.00000000-0000-0000-0000-000000000008/0/data/x");
    setup.store.put(&elsewhere, "?".into()).await.unwrap();
    let before = setup.faulty.keys().await;
    setup.janitor.collect_orphans(&path()).await.unwrap();
    assert_eq!(setup.faulty.keys().await, before, "too young");
    setup.clock.advance_ms(AGE_MS + 10_000);
    setup.janitor.collect_orphans(&path()).await.unwrap();
    assert!(!setup.exists(&orphan).await);
    assert!(setup.exists(&stranger).await && setup.exists(&elsewhere).await);
    assert_eq!(setup.faulty.keys().await.len(), before.len() - 1);
    setup.check().await;
}

#[tokio::test]
async fn a_broker_that_was_replaced_deletes_nothing() {
    let old = setup();
    let new = on(old.faulty.clone(), old.clock.clone(), 2);
    for _ in 0..MANIFEST_VERSIONS_KEPT {
        new.archive().await;
    }
    new.orphan(&orphan_name(1)).await;
    old.clock.advance_ms(AGE_MS + 10_000);
    let before = old.faulty.keys().await;
    old.janitor.collect_orphans(&path()).await.unwrap();
    old.janitor.trim_versions(&path()).await.unwrap();
    assert_eq!(old.faulty.keys().await, before);
}

#[tokio::test]
async fn the_newest_versions_stay() {
    let setup = setup();
    for _ in 0..MANIFEST_VERSIONS_KEPT {
        setup.archive().await;
    }
    let newest = setup.manifests.load(&path()).await.unwrap();
    setup.janitor.trim_versions(&path()).await.unwrap();
    let versions: Vec<_> = setup.manifests.versions(&path()).await.unwrap().into_iter().map(|(v, _)| v).collect();
    let last = newest.manifest().version;
    let kept: Vec<_> = (last + 1 - MANIFEST_VERSIONS_KEPT as u64..=last).collect();
    assert_eq!(versions, kept);
    assert_eq!(setup.manifests.load(&path()).await.unwrap(), newest);
    setup.check().await;
}

#[tokio::test]
async fn deleted_topics_leave_nothing_even_if_interrupted() {
    let setup = setup();
    setup.archive().await;
    let (topic, id) = (path().topic, path().topic_id);
    // Killed right after the mark was written.
    setup.store.create(&paths::tombstone(&topic, id), "{}".into()).await.unwrap();
    let before = setup.faulty.keys().await;
    setup.janitor.finish_removals(|_| true).await.unwrap();
    assert_eq!(setup.faulty.keys().await, before, "a topic that exists is not touched");
    setup.janitor.finish_removals(|_| false).await.unwrap();
    assert!(setup.faulty.keys().await.is_empty());

    setup.archive().await;
    setup.janitor.finish_removals(|_| false).await.unwrap();
    setup.check().await;
    assert!(!setup.faulty.keys().await.is_empty(), "without a mark it may be another broker's");
    setup.janitor.remove_topic(&topic, id).await.unwrap();
    assert!(setup.faulty.keys().await.is_empty());
    setup.janitor.remove_topic(&topic, id).await.unwrap();
    assert!(setup.faulty.keys().await.is_empty(), "a topic that was never archived leaves no mark");
    assert!(setup.clock.now() > Timestamp(0));
}
