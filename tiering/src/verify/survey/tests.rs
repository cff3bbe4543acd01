use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use object_store::memory::InMemory;
use thermocline_ingest::clock::ManualClock;
use thermocline_ingest::model::{PartitionId, TopicId};

use super::*;
use crate::manifest::{Change, PART_FILES};
use crate::testing::{FaultyStore, manifest_store, path};
use crate::verify::Fault;
use crate::verify::testing::{RECORDS, archive, commit, upload};

const EVERYTHING: Sample = Sample { share: 1.0, seed: 0 };

fn survey_at(store: &ColdStore, sample: Sample, rate: Option<NonZeroU64>) -> Survey {
    Survey::new(SurveyOptions { store: store.clone(), clock: Arc::new(ManualClock::default()), sample, rate })
}

fn survey(store: &ColdStore, sample: Sample) -> Survey {
    survey_at(store, sample, None)
}

async fn report(store: &ColdStore, sample: Sample) -> PartitionReport {
    let mut report = PartitionReport::new(path());
    survey(store, sample).partition(&mut report, &|_| {}).await.unwrap();
    report
}

fn store() -> (FaultyStore, ColdStore) {
    let faulty = FaultyStore::healthy(Arc::new(InMemory::new()));
    let store = faulty.cold(0);
    (faulty, store)
}

#[tokio::test]
async fn a_sound_archive_is_described_and_left_as_it_is() {
    let (faulty, store) = store();
    let head = archive(&store, 3).await;
    let orphan = upload(&store, Offset(500), RECORDS, false).await;
    let before = faulty.keys().await;

    let progress = AtomicU64::new(0);
    let mut found = PartitionReport::new(path());
    let count = |bytes| {
        progress.fetch_add(bytes, Ordering::Relaxed);
    };
    survey(&store, EVERYTHING).partition(&mut found, &count).await.unwrap();
    assert_eq!(found.damage, []);
    assert_eq!((found.version, found.files, found.checked_files, found.records), (3, 3, 3, 80));
    let raw: Vec<_> = found.raw_batches.iter().map(|raw| (raw.base_offset, raw.last_offset)).collect();
    assert_eq!(raw, [(Offset(20), Offset(39))]);
    assert!(found.raw_batches[0].reason.contains("Zstd"), "{}", found.raw_batches[0].reason);
    assert_eq!((found.unreferenced_objects, found.unreferenced_bytes), (2, file_bytes(&orphan)));
    let bytes: u64 = head.manifest().files.iter().map(|file| file_bytes(file)).sum();
    assert_eq!((found.bytes, progress.into_inner()), (bytes, bytes));
    assert_eq!(faulty.keys().await, before, "nothing was written");
}

/// One byte of one object, of every kind: that object is named, and none else.
#[tokio::test]
async fn a_flipped_byte_is_found_whatever_holds_it() {
    let (faulty, store) = store();
    let head = archive(&store, 2 * PART_FILES).await;
    assert_eq!(report(&store, EVERYTHING).await.damage, []);
    let keys = faulty.keys().await;
    for kind in ObjectKind::ALL {
        let key = keys.iter().map(|key| ObjectPath::from(key.as_str()));
        let key = key.rev().find(|key| path().parse_object(key).is_some_and(|name| name.kind == kind)).unwrap();
        let sound = store.get(&key).await.unwrap();
        let mut damaged = sound.to_vec();
        damaged[sound.len() / 2] ^= 1;
        store.put(&key, damaged.into()).await.unwrap();
        let found = report(&store, EVERYTHING).await.damage;
        let [Damage { key: found, fault }] = &found[..] else { panic!("{kind:?}: {found:?}") };
        assert_eq!(*found, key.to_string(), "{kind:?}");
        assert!(fault.to_string().contains("xxh3"), "{kind:?}: {fault}");
        store.put(&key, sound.slice(1..)).await.unwrap();
        let found = report(&store, EVERYTHING).await.damage;
        assert_eq!(found.iter().map(|damage| damage.key.as_str()).collect::<Vec<_>>(), [key.as_ref()], "{kind:?} cut");
        store.put(&key, sound).await.unwrap();
    }
    let newest = path().manifest(head.manifest().version);
    store.put(&newest, Bytes::from_static(b"{\"format_version\":1")).await.unwrap();
    let found = report(&store, EVERYTHING).await;
    assert_eq!((found.damage.len(), found.damage[0].key.as_str(), found.version), (1, newest.as_ref(), 0));
}

#[tokio::test]
async fn what_is_missing_is_damage_only_if_it_is_still_named() {
    let (faulty, store) = store();
    let head = archive(&store, 2).await;
    let gone = &head.manifest().files[1];
    faulty.cold(0).delete(&gone.split.as_ref().unwrap().path()).await.unwrap();
    let found = report(&store, EVERYTHING).await.damage;
    assert_eq!(found, [Damage { key: gone.split.as_ref().unwrap().key.clone(), fault: Fault::Missing }]);

    // The topic is being removed: its objects go in any order, the manifest perhaps last.
    store.put(&paths::tombstone(&path().topic, path().topic_id), Bytes::from_static(b"{}")).await.unwrap();
    assert_eq!(report(&store, EVERYTHING).await.damage, []);
    assert_eq!(survey(&store, EVERYTHING).partitions().await.unwrap(), []);
}

/// After the first file was checked the other two are merged, or expire, and their objects go at once.
#[tokio::test(start_paused = true)]
async fn files_that_are_replaced_while_they_are_checked_are_no_damage() {
    for merged in [true, false] {
        let (_faulty, store) = store();
        let head = archive(&store, 3).await;
        let files = head.manifest().files.clone();
        let manifests = manifest_store(store.clone(), 1);
        let merge = async || {
            let change = if merged {
                let file = upload(&store, files[1].base_offset, 2 * RECORDS, false).await;
                Change::Merge { file, replaces: files.iter().skip(1).map(|old| old.data.key.clone()).collect() }
            } else {
                Change::RaiseLogStart(files[2].last_offset.next())
            };
            commit(&manifests, &head, change).await;
            for object in files.iter().skip(1).flat_map(|file| file.objects()) {
                store.delete(&object.path()).await.unwrap();
            }
        };
        let mut found = PartitionReport::new(path());
        let (at_first, mut first_was_checked) = tokio::sync::mpsc::unbounded_channel();
        // The pace makes the walk wait before every object, and time stands still while anything else is to be done.
        let survey = survey_at(&store, EVERYTHING, NonZeroU64::new(1));
        let progress = move |_| at_first.send(()).unwrap();
        let mut walk = Box::pin(survey.partition(&mut found, &progress));
        tokio::select! {
            biased;
            Some(()) = first_was_checked.recv() => {}
            ended = &mut walk => panic!("the walk ended before the change: {ended:?}"),
        }
        merge().await;
        walk.await.unwrap();
        assert_eq!(found.damage, [], "merged: {merged}");
        assert_eq!(found.checked_files, if merged { 2 } else { 1 });
    }
}

#[tokio::test]
async fn the_same_seed_chooses_the_same_files() {
    let (_faulty, store) = store();
    let head = archive(&store, 40).await;
    let chosen = |seed| -> Vec<Offset> {
        let sample = Sample { share: 0.5, seed };
        head.manifest().files.iter().filter(|file| sample.takes(file)).map(|file| file.base_offset).collect()
    };
    assert_eq!(chosen(1), chosen(1));
    assert_ne!(chosen(1), chosen(2));
    assert!((5..36).contains(&chosen(1).len()), "{}", chosen(1).len());
    let found = report(&store, Sample { share: 0.5, seed: 1 }).await;
    assert_eq!((found.files, found.checked_files), (40, chosen(1).len() as u64));
    assert_eq!(report(&store, Sample { share: 0.0, seed: 1 }).await.checked_files, 0);
}

#[tokio::test]
async fn partitions_are_found_by_their_folders() {
    let (_faulty, store) = store();
    archive(&store, 1).await;
    let more = [("a.b", 3, 0), ("a.b", 3, 10), ("orders", 8, 1)];
    for (topic, id, partition) in more {
        let topic = TopicName::new(topic).unwrap();
        let path = PartitionPath::new(topic, TopicId(uuid::Uuid::from_u128(id)), PartitionId(partition));
        store.put(&path.manifest(1), Bytes::from_static(b"{}")).await.unwrap();
    }
    store.put(&paths::topics_root().join("stranger").join("0").join("x"), Bytes::new()).await.unwrap();
    let found = survey(&store, EVERYTHING).partitions().await.unwrap();
    let found: Vec<_> = found.iter().map(|path| (path.topic.as_str(), path.partition.0)).collect();
    assert_eq!(found, [("a.b", 0), ("a.b", 10), ("orders", 3), ("orders", 1)]);
}

/// A store that fails says nothing about its objects.
#[tokio::test]
async fn a_store_that_fails_is_no_damage() {
    let (faulty, store) = store();
    archive(&store, 2).await;
    for n in 0.. {
        let dying = FaultyStore::dying(faulty.inner.clone(), n, crate::testing::Fault::Before);
        let mut found = PartitionReport::new(path());
        let surveyed = survey(&dying.cold(0), EVERYTHING).partition(&mut found, &|_| {}).await;
        assert_eq!(found.damage, [], "operation {n}");
        if !dying.has_failed() {
            surveyed.unwrap();
            break;
        }
        assert!(matches!(surveyed, Err(SurveyError::Check { .. })), "operation {n}");
    }
}
