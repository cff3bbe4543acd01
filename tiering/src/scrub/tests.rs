use bytes::Bytes;
use futures::FutureExt;
use object_store::memory::InMemory;
use proptest::prelude::*;
use thermocline_ingest::clock::ManualClock;
use thermocline_ingest::model::TopicName;
use uuid::Uuid;

use super::*;
use crate::manifest::{Change, ManifestHead};
use crate::testing::{FaultyStore, background_threads, manifest_store, metrics, path};
use crate::verify::testing::{archive, commit};

/// High enough that only [`OBJECT_COST_BYTES`]-sized waits remain.
const RATE: u64 = 1 << 20;

/// One partition, as its manifest is now.
struct One(Mutex<ManifestHead>);

impl Archives for One {
    fn paths(&self) -> Vec<PartitionPath> {
        vec![path()]
    }
    fn manifest(&self, path: &PartitionPath) -> Option<Arc<Manifest>> {
        Some(self.0.lock().manifest().clone()).filter(|manifest| manifest.path() == *path)
    }
}

fn scrubber(store: &ColdStore, rate: u64) -> Scrubber {
    let manifests = manifest_store(store.clone(), 1);
    Scrubber::new(store.clone(), manifests, background_threads(), Arc::new(ManualClock::default()), metrics(), rate)
}

/// From the second file on, and round to it.
async fn pass(scrubber: &Scrubber, archives: &One) -> u64 {
    let start = (path().topic_id, path().partition, archives.manifest(&path()).unwrap().files[1].base_offset);
    scrubber.pass(archives, start, scrubber.budget.as_ref().unwrap()).await
}

fn store() -> (FaultyStore, ColdStore) {
    let faulty = FaultyStore::healthy(Arc::new(InMemory::new()));
    let store = faulty.cold(0);
    (faulty, store)
}

fn base_of(damaged: &DamagedFile) -> Option<Offset> {
    damaged.file.as_ref().map(|file| file.base_offset)
}

#[tokio::test(start_paused = true)]
async fn damage_is_remembered_until_it_is_mended_or_gone() {
    let (_faulty, store) = store();
    let archives = One(Mutex::new(archive(&store, 4).await));
    let files = archives.manifest(&path()).unwrap().files.clone();
    let scrubber = scrubber(&store, RATE);
    let metrics = scrubber.metrics.clone();
    let seen = || (metrics.scrub_damaged_files.get(), metrics.scrub_damage.get());
    assert_eq!(pass(&scrubber, &archives).await, 4);
    assert_eq!((seen(), metrics.scrubbed_files.get()), ((0, 0), 4));
    assert_eq!(metrics.scrubbed_bytes.get(), files.iter().map(|file| file_bytes(file)).sum::<u64>());

    let sound = store.get(&files[2].data.path()).await.unwrap();
    store.put(&files[2].data.path(), Bytes::from_static(b"rubbish")).await.unwrap();
    store.delete(&files[1].split.as_ref().unwrap().path()).await.unwrap();
    for _ in 0..2 {
        pass(&scrubber, &archives).await;
        assert_eq!(seen(), (2, 2), "counted once, however often it is met");
        let damaged = scrubber.damaged_files(&path());
        let found: Vec<_> = damaged.iter().map(|damaged| (base_of(damaged), &damaged.damage[0])).collect();
        let split = Damage { key: files[1].split.as_ref().unwrap().key.clone(), fault: Fault::Missing };
        let size = Fault::Size { expected: sound.len() as u64, found: 7 };
        let data = Damage { key: files[2].data.key.clone(), fault: size };
        assert_eq!(found, [(Some(files[1].base_offset), &split), (Some(files[2].base_offset), &data)]);
    }
    let other = PartitionPath { partition: PartitionId(4), ..path() };
    assert_eq!(scrubber.damaged_files(&other), []);

    store.put(&files[2].data.path(), sound).await.unwrap();
    pass(&scrubber, &archives).await;
    assert_eq!(seen(), (1, 2), "mended");

    let head = archives.0.lock().clone();
    let expired = commit(&manifest_store(store.clone(), 1), &head, Change::RaiseLogStart(files[2].base_offset)).await;
    *archives.0.lock() = expired;
    assert_eq!(pass(&scrubber, &archives).await, 2);
    assert_eq!((seen(), scrubber.damaged_files(&path())), ((0, 2), vec![]), "gone");
}

/// The broker knows the manifest and would not miss it before its next start.
#[tokio::test(start_paused = true)]
async fn a_damaged_manifest_is_found_while_the_broker_still_knows_it() {
    let (_faulty, store) = store();
    let head = archive(&store, 2).await;
    let newest = path().manifest(head.manifest().version);
    let archives = One(Mutex::new(head));
    let scrubber = scrubber(&store, RATE);
    let sound = store.get(&newest).await.unwrap();
    store.put(&newest, Bytes::from_static(b"{}")).await.unwrap();
    assert_eq!(pass(&scrubber, &archives).await, 2, "the files are checked all the same");
    let damaged = scrubber.damaged_files(&path());
    assert_eq!((damaged.len(), base_of(&damaged[0]), damaged[0].damage[0].key.as_str()), (1, None, newest.as_ref()));
    store.put(&newest, sound).await.unwrap();
    pass(&scrubber, &archives).await;
    assert_eq!((scrubber.damaged_files(&path()), scrubber.metrics.scrub_damage.get()), (vec![], 1));
}

/// Tokio's time moves by sleeps alone, so a pass takes what its rate says: each object but the last is paid for.
#[tokio::test(start_paused = true)]
async fn a_pass_keeps_to_its_rate() {
    let (_faulty, store) = store();
    let archives = One(Mutex::new(archive(&store, 3).await));
    let objects = archives.manifest(&path()).unwrap().files.iter().map(|file| file.objects().count()).sum::<usize>();
    let scrubber = scrubber(&store, crate::verify::OBJECT_COST_BYTES);
    let start = Instant::now();
    pass(&scrubber, &archives).await;
    // The walk begins in the middle of the one partition, so its manifest is looked at twice.
    let paid = objects as u64 + 2 - 1;
    let took = start.elapsed().as_secs();
    assert!((paid..=paid + 1).contains(&took), "{took} s for {objects} objects, each as dear as a second");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_is_waited_for() {
    let (faulty, store) = store();
    let archives = One(Mutex::new(archive(&store, 2).await));
    let mut waits = 0;
    for n in 0.. {
        let stumbling = FaultyStore::stumbling(faulty.inner.clone(), n, crate::testing::Fault::Before);
        let scrubber = scrubber(&stumbling.cold(0), RATE);
        let start = Instant::now();
        assert_eq!(pass(&scrubber, &archives).await, 2, "operation {n}");
        assert_eq!((scrubber.metrics.scrubbed_files.get(), scrubber.metrics.scrub_damage.get()), (2, 0));
        waits += usize::from(start.elapsed() >= STORE_PAUSE);
        if !stumbling.has_failed() {
            break;
        }
    }
    // Each object of the two files is looked at and read. The manifest, which is looked at twice, is listed, asked for
    // newer versions, and read, and whether its topic is being removed is asked.
    let objects: usize = archives.manifest(&path()).unwrap().files.iter().map(|file| file.objects().count()).sum();
    assert_eq!(waits, 2 * objects + 2 * 4);
}

#[tokio::test(start_paused = true)]
async fn an_object_that_cannot_be_read_is_damaged_and_the_scrub_goes_on() {
    let (faulty, store) = store();
    let archives = One(Mutex::new(archive(&store, 3).await));
    let file = archives.manifest(&path()).unwrap().files[1].clone();
    let scrubber = scrubber(&store, RATE);
    faulty.make_unreadable(Some(file.data.path()));
    for _ in 0..2 {
        let start = Instant::now();
        assert_eq!(pass(&scrubber, &archives).await, 3);
        assert!(start.elapsed() >= STORE_PAUSE * (UNREADABLE_AFTER - 1), "tried more than once");
        let damaged = scrubber.damaged_files(&path());
        assert_eq!((damaged.len(), base_of(&damaged[0])), (1, Some(file.base_offset)));
        let [Damage { key, fault: Fault::Undecodable { .. } }] = damaged[0].damage.as_slice() else {
            panic!("{damaged:?}")
        };
        assert_eq!((key, scrubber.metrics.scrub_damage.get()), (&file.data.key, 1));
    }
    assert_eq!(scrubber.metrics.scrubbed_files.get(), 4, "the other two, twice");
    faulty.make_unreadable(None);
    pass(&scrubber, &archives).await;
    assert_eq!(scrubber.damaged_files(&path()), vec![]);
}

#[tokio::test(start_paused = true)]
async fn a_manifest_that_cannot_be_read_is_damaged() {
    let (faulty, store) = store();
    let head = archive(&store, 2).await;
    let newest = path().manifest(head.manifest().version);
    let archives = One(Mutex::new(head));
    let scrubber = scrubber(&store, RATE);
    faulty.make_unreadable(Some(newest.clone()));
    assert_eq!(pass(&scrubber, &archives).await, 2, "the files are read nevertheless");
    let damaged = scrubber.damaged_files(&path());
    let [DamagedFile { file: None, damage, .. }] = damaged.as_slice() else { panic!("{damaged:?}") };
    assert_eq!(damage[0].key, newest.to_string());
    faulty.make_unreadable(None);
    pass(&scrubber, &archives).await;
    assert_eq!(scrubber.damaged_files(&path()), vec![]);
}

#[tokio::test(start_paused = true)]
async fn while_the_store_is_down_nothing_is_damaged() {
    let (faulty, store) = store();
    let archives = One(Mutex::new(archive(&store, 2).await));
    let down = FaultyStore::dying(faulty.inner.clone(), 0, crate::testing::Fault::Before);
    let scrubber = scrubber(&down.cold(0), RATE);
    let outage = STORE_PAUSE * (10 * UNREADABLE_AFTER);
    assert!(tokio::time::timeout(outage, pass(&scrubber, &archives)).await.is_err(), "it is waited for");
    assert_eq!(scrubber.damaged_files(&path()), vec![]);
}

#[tokio::test]
async fn without_a_rate_nothing_is_read() {
    let (_faulty, store) = store();
    let archives = One(Mutex::new(archive(&store, 1).await));
    let scrubber = scrubber(&store, 0);
    assert_eq!(scrubber.run(&archives).now_or_never(), None);
    assert_eq!(scrubber.metrics.scrubbed_files.get(), 0);
}

#[tokio::test]
async fn a_walk_begins_at_any_file() {
    let (_faulty, store) = store();
    let archives = One(Mutex::new(ManifestHead::empty(&path())));
    let nowhere = random_place(&archives);
    assert_eq!(legs(archives.paths(), nowhere), [(path(), Offset::ZERO..Offset(i64::MAX))]);
    *archives.0.lock() = archive(&store, 3).await;
    let manifest = archives.manifest(&path()).unwrap();
    let place = |file: &Arc<DataFile>| (path().topic_id, path().partition, file.base_offset);
    let (all, mut left): (Vec<_>, Vec<_>) = manifest.files.iter().map(|file| (place(file), place(file))).unzip();
    // Ends after a few rounds, unless a place cannot come.
    while !left.is_empty() {
        let found = random_place(&archives);
        assert!(all.contains(&found), "{found:?}");
        left.retain(|place| *place != found);
    }
}

proptest! {
    /// Wherever it starts, a pass covers each offset of each partition once, and begins and ends at the start.
    #[test]
    fn a_pass_goes_round(
        partitions in prop::collection::btree_set((0..4_u128, 0..4_i32), 0..8),
        topic in 0..5_u128, partition in 0..5_i32, offset in 0..100_i64,
    ) {
        let path = |&(topic, partition): &(u128, i32)| {
            PartitionPath::new(TopicName::new("t").unwrap(), TopicId(Uuid::from_u128(topic)), PartitionId(partition))
        };
        let start = (TopicId(Uuid::from_u128(topic)), PartitionId(partition), Offset(offset));
        let legs = legs(partitions.iter().rev().map(path).collect(), start);
        for partition in &partitions {
            let partition = path(partition);
            let covers = |offset: i64| {
                legs.iter().filter(|(path, range)| *path == partition && range.contains(&Offset(offset))).count()
            };
            prop_assert!([0, 1, 50, 99, 100, i64::MAX - 1].into_iter().all(|offset| covers(offset) == 1));
        }
        let places: Vec<_> = legs.iter().map(|(path, range)| (path.topic_id, path.partition, range.start)).collect();
        let from_start = places.partition_point(|place| *place >= start);
        prop_assert!(places[..from_start].is_sorted() && places[from_start..].is_sorted());
    }
}
