use object_store::memory::InMemory;
use thermocline_ingest::clock::ManualClock;
use thermocline_ingest::model::Timestamp;

use super::*;
use crate::manifest::{DataFile, EXPIRED_FILES_PER_COMMIT, Manifest, ObjectRef, RETIRED_MAX};
use crate::paths::{AttemptId, ObjectKind, RangeName};
use crate::pipeline::{ArchiveJob, Archiver, Batches};
use crate::testing::{
    Fault, FaultyStore, background_threads, batches, metrics, path, some_records, stage_options, store_config,
    tiering_config,
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
        let job =
            ArchiveJob { batches: source, aborted: Vec::new(), options: stage_options(FILE_BYTES), prepared: None };
        archiver.archive_segment(job, &mut head, &|_: &Arc<Manifest>| {}).await.unwrap();
        assert!(head.manifest().files.len() >= 3);
        head
    }

    async fn orphan(&self, name: &str) -> ObjectPath {
        let key = path().folder(ObjectKind::Data).join(name);
        self.store.put(&key, "left behind".into()).await.unwrap();
        key
    }

    /// As the worker does it.
    async fn sweep(&self) -> Seen {
        let head = self.manifests.load(&path()).await.unwrap();
        let mut seen = Seen::default();
        let mut sweep = self.janitor.sweep(&path(), &head);
        loop {
            let suspects = sweep.suspects(&mut seen).await.unwrap();
            if suspects.is_empty() {
                break;
            }
            let head = self.manifests.load(&path()).await.unwrap();
            self.janitor.collect(&head, suspects).await.unwrap();
        }
        self.janitor.collect_staging(&path(), &mut seen).await.unwrap();
        seen
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
    assert!(
        head.manifest().files.iter().eq(before.manifest().files.iter_from(1)),
        "a file that holds the log start stays"
    );
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
    assert_eq!(setup.sweep().await, Seen { young_objects: 1, young_bytes: 11, ..Seen::default() });
    assert_eq!(setup.faulty.keys().await, before, "too young");
    setup.clock.advance_ms(AGE_MS + 10_000);
    assert_eq!(setup.sweep().await, Seen { old_objects: 1, old_bytes: 11, ..Seen::default() });
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
    old.sweep().await;
    old.janitor.trim_versions(&path()).await.unwrap();
    assert_eq!(old.faulty.keys().await, before);
}

#[tokio::test]
async fn a_broker_that_was_replaced_and_does_not_know_it_removes_no_topic() {
    let removing = setup();
    let finishing = on(removing.faulty.clone(), removing.clock.clone(), 1);
    let new = on(removing.faulty.clone(), removing.clock.clone(), 2);
    new.store.put(&paths::epoch(2), "{}".into()).await.unwrap();
    new.archive().await;
    let (topic, id) = (path().topic, path().topic_id);
    let before = removing.faulty.keys().await;
    let refused = removing.janitor.remove_topic(&topic, id).await.unwrap_err();
    let is_fenced =
        |error: &JanitorError| matches!(error, JanitorError::Manifest(ManifestError::Fenced { epoch: 2, .. }));
    assert!(is_fenced(&refused) && removing.manifests.fenced().is_some(), "{refused:?}");
    assert_eq!(removing.faulty.keys().await, before, "not even marked");
    // The newer one has a removal under way.
    new.store.create(&paths::tombstone(&topic, id), "{}".into()).await.unwrap();
    let before = finishing.faulty.keys().await;
    let refused = finishing.janitor.finish_removals(|_| false).await.unwrap_err();
    assert!(is_fenced(&refused) && finishing.manifests.fenced().is_some(), "{refused:?}");
    assert_eq!(finishing.faulty.keys().await, before);
    assert_eq!(new.janitor.remove_topic(&topic, id).await.unwrap(), Removal::Done);
    assert_eq!(new.faulty.keys().await, [paths::epoch(2).to_string()]);
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
async fn the_newest_epochs_stay() {
    let first = setup();
    let own = EPOCHS_KEPT as u64 + 3;
    for epoch in 1..=own + 2 {
        first.store.put(&paths::epoch(epoch), "{}".into()).await.unwrap();
    }
    let setup = on(first.faulty.clone(), first.clock.clone(), own);
    setup.janitor.trim_epochs().await.unwrap();
    let (left, _) = setup.store.list_folder(&paths::epochs_root()).await.unwrap();
    let left: Vec<_> = left.iter().filter_map(|meta| paths::parse_epoch(&meta.location)).collect();
    assert_eq!(left, (4..=own + 2).collect::<Vec<_>>(), "ours, those before it, and all that are newer");
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

/// A manifest of `count` files that nothing but the manifest has.
async fn files(setup: &Setup, count: i64) -> ManifestHead {
    let mut head = setup.manifests.load(&path()).await.unwrap();
    for n in 0..count {
        let (base, last) = (Offset(10 * n), Offset(10 * n + 9));
        let object = |kind| {
            let key = path().object(&RangeName { kind, base, last, attempt: AttemptId::fresh() });
            ObjectRef { key: key.to_string(), size_bytes: 1, xxh3: "0".repeat(32) }
        };
        let file = DataFile {
            base_offset: base,
            last_offset: last,
            rows: 10,
            dropped: 0,
            min_timestamp: Timestamp(n),
            max_timestamp: Timestamp(n),
            log_bytes: 100,
            digest: "0".repeat(32),
            data: object(ObjectKind::Data),
            split: Some(object(ObjectKind::Split)),
            indexed: None,
            raw: None,
        };
        match setup.manifests.commit(&head, Change::Append(Arc::new(file))).await.unwrap() {
            CommitOutcome::Committed(next) => head = next,
            CommitOutcome::Superseded(_) => panic!("nobody else commits"),
        }
    }
    head
}

#[tokio::test]
async fn expiry_goes_in_bounded_steps_until_it_is_done() {
    let setup = setup();
    let count = 2 * EXPIRED_FILES_PER_COMMIT as i64 + 10;
    let mut head = files(&setup, count).await;
    let log_start = Offset(10 * count - 5);
    let versions = std::sync::Mutex::new(Vec::new());
    let publish = |head: &ManifestHead| versions.lock().unwrap().push(head.manifest().files.len());
    setup.janitor.expire(&mut head, log_start, &publish).await.unwrap();
    let left = [count as usize - EXPIRED_FILES_PER_COMMIT, 10, 1];
    assert_eq!(versions.into_inner().unwrap(), left, "the file that holds the log start stays");
    assert_eq!(head.manifest().log_start_offset, log_start);
    let retired = head.retired().len();
    assert!(retired >= 2 * (count as usize - 1), "{retired}");
    // Deleted in bounded steps, too.
    setup.clock.advance_ms(RETIRED_MS);
    setup.janitor.delete_retired(&mut head, &|_| {}).await.unwrap();
    assert_eq!(head.retired().len(), retired - DELETES_PER_ROUND);
    setup.janitor.delete_retired(&mut head, &|_| {}).await.unwrap();
    assert!(head.retired().is_empty());
    assert_eq!(setup.manifests.load(&path()).await.unwrap(), head);
}

#[tokio::test]
async fn what_is_committed_during_a_sweep_is_no_orphan() {
    let setup = setup();
    let before = setup.manifests.load(&path()).await.unwrap();
    let orphan = setup.orphan(&orphan_name(1)).await;
    setup.archive().await;
    setup.clock.advance_ms(AGE_MS + 10_000);
    // Against the manifest of before, everything that was archived since looks like an orphan.
    let (mut seen, mut sweep) = (Seen::default(), setup.janitor.sweep(&path(), &before));
    let suspects = sweep.suspects(&mut seen).await.unwrap();
    assert!(suspects.len() > 3 && seen.old_objects == suspects.len() as u64);
    setup.janitor.collect(&before, suspects).await.unwrap();
    setup.check().await;
    assert!(!setup.exists(&orphan).await);
}

#[tokio::test]
async fn orphaned_parts_go_and_those_in_use_stay() {
    let setup = setup();
    let head = files(&setup, 130).await;
    let part = path().folder(ObjectKind::ManifestPart).join(format!("{:020}-{:020}-{:032x}.json", 0, 9, 1));
    setup.store.put(&part, "of a commit that failed".into()).await.unwrap();
    setup.clock.advance_ms(AGE_MS + 10_000);
    assert_eq!(setup.sweep().await.old_objects, 1);
    assert!(!setup.exists(&part).await);
    assert_eq!(setup.manifests.load(&path()).await.unwrap(), head, "its own part is still there");
}

#[tokio::test]
async fn staging_files_of_a_folder_go_when_they_are_old() {
    let dir = tempfile::tempdir().unwrap();
    let store = ColdStore::open(&store_config(0), dir.path()).unwrap();
    let clock = Arc::new(ManualClock::at(thermocline_ingest::clock::SystemClock.now()));
    let manifests = ManifestStore::new(store.clone(), 1, clock.clone());
    let ages = JanitorAges { orphan_ms: AGE_MS, retired_ms: RETIRED_MS };
    let janitor = Janitor::new(store.clone(), manifests, clock.clone(), metrics(), ages);
    let key = path().folder(ObjectKind::Data).join(orphan_name(1));
    store.put(&key, "an object".into()).await.unwrap();
    let folder = dir.path().join("cold").join(path().folder(ObjectKind::Data).to_string());
    let left = |name: &str| std::fs::write(folder.join(name), "half").unwrap();
    left(&format!("{}#18446744073709551615", orphan_name(2)));
    ["notes#tomorrow", "#1", "plain"].iter().for_each(|name| left(name));
    let mut seen = Seen::default();
    janitor.collect_staging(&path(), &mut seen).await.unwrap();
    assert_eq!(seen, Seen::default(), "too young");
    clock.advance_ms(AGE_MS + 10_000);
    janitor.collect_staging(&path(), &mut seen).await.unwrap();
    assert_eq!(seen, Seen { old_objects: 1, old_bytes: 4, ..Seen::default() });
    let mut names: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["#1", &orphan_name(1), "notes#tomorrow", "plain"].map(std::ffi::OsString::from));

    // A deleted topic takes its staging files and folders with it; what is not ours stays.
    left(&format!("{}#7", orphan_name(2)));
    ["notes#tomorrow", "#1"].iter().for_each(|name| std::fs::remove_file(folder.join(name)).unwrap());
    clock.advance_ms(1000);
    assert_eq!(janitor.remove_topic(&path().topic, path().topic_id).await.unwrap(), Removal::Done);
    assert_eq!(std::fs::read_dir(dir.path().join("cold/topics")).unwrap().count(), 0);
}

/// Dies at every request of a removal, with and without its effect; the next attempt finishes it.
#[tokio::test]
async fn a_removal_that_dies_anywhere_is_finished_by_the_next() {
    let (topic, id) = (path().topic, path().topic_id);
    for fault in [Fault::Before, Fault::After] {
        for fail_at in 0.. {
            let setup = setup();
            setup.archive().await;
            let dying = on(FaultyStore::dying(setup.faulty.inner.clone(), fail_at, fault), setup.clock.clone(), 1);
            let died = dying.janitor.remove_topic(&topic, id).await;
            if !dying.faulty.has_failed() {
                assert_eq!(died.unwrap(), Removal::Done);
                assert!(fail_at > 10, "a removal makes more requests than {fail_at}");
                break;
            }
            assert!(died.is_err());
            assert_eq!(setup.janitor.remove_topic(&topic, id).await.unwrap(), Removal::Done);
            assert!(setup.faulty.keys().await.is_empty(), "{fault:?} at {fail_at}");
        }
    }
}

#[tokio::test]
async fn a_large_topic_goes_in_rounds() {
    let setup = setup();
    for n in 0..DELETES_PER_ROUND + 5 {
        let key = path().folder(ObjectKind::Data).join(format!("{n}"));
        setup.store.put(&key, "x".into()).await.unwrap();
    }
    let (topic, id) = (path().topic, path().topic_id);
    assert_eq!(setup.janitor.remove_topic(&topic, id).await.unwrap(), Removal::Unfinished);
    assert_eq!(setup.faulty.keys().await.len(), 5 + 1, "and the tombstone");
    assert_eq!(setup.janitor.remove_topic(&topic, id).await.unwrap(), Removal::Done);
    assert!(setup.faulty.keys().await.is_empty());
}

#[tokio::test]
async fn no_more_is_retired_than_a_manifest_should_list() {
    let setup = setup();
    let version = files(&setup, 3).await.manifest().version;
    // The next version lists as many as may be.
    let bytes = setup.store.get(&path().manifest(version)).await.unwrap();
    let mut next: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let retired = (0..RETIRED_MAX).map(|_| {
        let (kind, attempt) = (ObjectKind::Data, AttemptId::fresh());
        let key = path().object(&RangeName { kind, base: Offset(0), last: Offset(9), attempt }).to_string();
        let object = ObjectRef { key, size_bytes: 1, xxh3: "0".repeat(32) };
        serde_json::json!({"object": object, "at": setup.clock.now()})
    });
    (next["version"], next["retired"]) = ((version + 1).into(), retired.collect());
    setup.store.put(&path().manifest(version + 1), next.to_string().into()).await.unwrap();

    let mut head = setup.manifests.load(&path()).await.unwrap();
    setup.janitor.expire(&mut head, Offset(25), &|_| panic!("nothing may be dropped")).await.unwrap();
    assert_eq!(head.manifest().files.len(), 3);
    setup.clock.advance_ms(RETIRED_MS);
    setup.janitor.delete_retired(&mut head, &|_| {}).await.unwrap();
    setup.janitor.expire(&mut head, Offset(25), &|_| {}).await.unwrap();
    assert_eq!((head.manifest().files.len(), head.manifest().log_start_offset), (1, Offset(25)));
}
