use std::collections::{BTreeMap, HashSet};

use object_store::memory::InMemory;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::paths::{AttemptId, ObjectKind, RangeName};
use crate::store::ColdStore;
use crate::testing::{FaultyStore, manifest_store, path, write_golden_if_asked};

fn object(kind: ObjectKind, base: i64, last: i64, attempt: AttemptId) -> ObjectRef {
    let key = path().object(&RangeName { kind, base: Offset(base), last: Offset(last), attempt });
    ObjectRef { key: key.to_string(), size_bytes: 1000, xxh3: "00112233445566778899aabbccddeeff".to_owned() }
}

fn file_with(base: i64, last: i64, attempt: AttemptId) -> DataFile {
    DataFile {
        base_offset: Offset(base),
        last_offset: Offset(last),
        rows: (last - base + 1) as u64,
        min_timestamp: Timestamp(1_700_000_000_000 + base),
        max_timestamp: Timestamp(1_700_000_000_000 + last),
        log_bytes: 2000,
        digest: "ffeeddccbbaa99887766554433221100".to_owned(),
        data: object(ObjectKind::Data, base, last, attempt),
        split: Some(object(ObjectKind::Split, base, last, attempt)),
        raw: None,
    }
}

fn file(base: i64, last: i64) -> DataFile {
    file_with(base, last, AttemptId::fresh())
}

fn faulty() -> (FaultyStore, ColdStore) {
    let faulty = FaultyStore::healthy(Arc::new(InMemory::new()));
    let store = faulty.cold(0);
    (faulty, store)
}

async fn committed(store: &ManifestStore, head: &ManifestHead, change: Change) -> ManifestHead {
    match store.commit(head, change).await.unwrap() {
        CommitOutcome::Committed(next) => next,
        CommitOutcome::Superseded(newest) => panic!("superseded by {newest:?}"),
    }
}

/// `file` in the place of what `head` has at its offsets.
fn merge(head: &ManifestHead, file: DataFile) -> Change {
    let inside = |old: &&Arc<DataFile>| old.base_offset >= file.base_offset && old.last_offset <= file.last_offset;
    let replaces = head.manifest().files.iter().filter(inside).map(|old| old.data.key.clone()).collect();
    Change::Merge { file: Arc::new(file), replaces }
}

#[tokio::test]
async fn a_partition_without_an_archive_is_empty() {
    let (_, store) = faulty();
    let head = manifest_store(store, 1).load(&path()).await.unwrap();
    assert_eq!(head, ManifestHead::empty(&path()));
    assert_eq!(head.manifest().archived_through(), Offset::ZERO);
}

#[tokio::test]
async fn long_histories_move_into_parts() {
    let (faulty, store) = faulty();
    let manifests = manifest_store(store.clone(), 1);
    let mut head = manifests.load(&path()).await.unwrap();
    let files = 5 * PART_FILES as i64;
    let mut sizes = Vec::new();
    for n in 0..files {
        head = committed(&manifests, &head, Change::Append(Arc::new(file(n * 10, n * 10 + 9)))).await;
        let version = store.get(&path().manifest(head.manifest().version)).await.unwrap();
        sizes.push(version.len());
        assert!(head.tail().len() < 2 * PART_FILES);
    }
    assert_eq!(head.sealed.len(), 4);
    assert!(*sizes.last().unwrap() < 2 * sizes[PART_FILES], "a commit does not grow with the history");
    assert_eq!(manifests.load(&path()).await.unwrap(), head);
    assert_eq!(head.manifest().files.len(), files as usize);
    assert_eq!(head.manifest().file_for(Offset(1234)).unwrap().base_offset, Offset(1230));

    // The start rises into the second part: the first one goes as a whole, the second stays and hides some.
    let start = Offset((PART_FILES as i64 + 3) * 10 + 5);
    head = committed(&manifests, &head, Change::RaiseLogStart(start)).await;
    assert_eq!((head.sealed.len(), head.manifest().files.len()), (3, files as usize - PART_FILES - 3));
    assert_eq!(manifests.load(&path()).await.unwrap(), head);
    let parts = faulty.keys().await.into_iter().filter(|key| key.contains("/parts/")).count();
    assert_eq!(parts, 4, "a dropped part is an orphan, not gone");

    // A damaged part is found by its hash.
    let key = head.sealed[1].object.path();
    let mut bytes = store.get(&key).await.unwrap().to_vec();
    bytes[100] ^= 1;
    store.put(&key, bytes.into()).await.unwrap();
    let error = manifests.load(&path()).await.unwrap_err();
    assert!(matches!(error, ManifestError::Corrupt { .. }), "{error}");
}

#[tokio::test]
async fn the_higher_epoch_wins_for_good() {
    let (_, store) = faulty();
    let (old, new) = (manifest_store(store.clone(), 1), manifest_store(store.clone(), 2));
    let start = committed(&old, &old.load(&path()).await.unwrap(), Change::Append(Arc::new(file(0, 9)))).await;
    let taken = committed(&new, &start, Change::Append(Arc::new(file(10, 19)))).await;
    for head in [&start, &taken] {
        let error = old.commit(head, Change::Append(Arc::new(file(10, 19)))).await.unwrap_err();
        assert!(matches!(error, ManifestError::Fenced { epoch: 2, own_epoch: 1, .. }), "{error}");
    }
    // It slept so long that the janitor has deleted the version it wants to make.
    let taken = committed(&new, &taken, Change::Append(Arc::new(file(20, 29)))).await;
    store.delete(&path().manifest(2)).await.unwrap();
    let error = old.commit(&start, Change::Append(Arc::new(file(10, 19)))).await.unwrap_err();
    assert!(matches!(error, ManifestError::Fenced { .. }), "{error}");
    assert_eq!(new.load(&path()).await.unwrap(), taken);
    // An older broker that was first does not fence the newer one, but its commit counts.
    let third = manifest_store(store, 3);
    let by_second = committed(&new, &taken, Change::Append(Arc::new(file(30, 39)))).await;
    match third.commit(&taken, Change::Append(Arc::new(file(30, 39)))).await.unwrap() {
        CommitOutcome::Superseded(newest) => assert_eq!(newest, by_second),
        CommitOutcome::Committed(_) => panic!("two commits of one version"),
    }
}

#[tokio::test]
async fn an_own_commit_whose_answer_was_lost_is_recognised() {
    let inner = Arc::new(InMemory::new());
    let faulty = FaultyStore::healthy(inner.clone());
    let manifests = manifest_store(faulty.cold(0), 1);
    let start = manifests.load(&path()).await.unwrap();
    let landed = committed(&manifests, &start, Change::Append(Arc::new(file(0, 9)))).await;
    // The work was done again with fresh names, from a stale head.
    match manifests.commit(&start, Change::Append(Arc::new(file(0, 9)))).await.unwrap() {
        CommitOutcome::Superseded(newest) => assert_eq!(newest, landed),
        CommitOutcome::Committed(_) => panic!("two commits of one version"),
    }
}

#[tokio::test]
async fn gaps_and_overlaps_are_refused() {
    let (_, store) = faulty();
    let manifests = manifest_store(store, 1);
    let empty = manifests.load(&path()).await.unwrap();
    assert!(manifests.commit(&empty, Change::Append(Arc::new(file(5, 9)))).await.is_err());
    let head = committed(&manifests, &empty, Change::Append(Arc::new(file(0, 9)))).await;
    for (base, last) in [(0, 8), (5, 9), (0, 12), (50, 60)] {
        let error = manifests.commit(&head, merge(&head, file(base, last))).await.unwrap_err();
        assert!(matches!(error, ManifestError::NotContiguous { .. }), "{base}..={last}: {error}");
    }
    let stale = Change::Merge { file: Arc::new(file(0, 9)), replaces: vec![file(0, 9).data.key] };
    let error = manifests.commit(&head, stale).await.unwrap_err();
    assert!(matches!(error, ManifestError::Replaced { .. }), "{error}");
    for (base, last) in [(0, 9), (9, 12), (11, 12), (10, 9)] {
        let error = manifests.commit(&head, Change::Append(Arc::new(file(base, last)))).await.unwrap_err();
        assert!(matches!(error, ManifestError::NotContiguous { .. }), "{base}..={last}: {error}");
    }
    // Everything expired: the next file may start where the log starts, or in the batch that holds it.
    let head = committed(&manifests, &head, Change::RaiseLogStart(Offset(50))).await;
    assert_eq!((head.manifest().archived_through(), head.manifest().next_offset()), (Offset::ZERO, Offset(50)));
    assert!(manifests.commit(&head, Change::Append(Arc::new(file(51, 60)))).await.is_err());
    assert!(manifests.commit(&head, Change::Append(Arc::new(file(40, 49)))).await.is_err());
    committed(&manifests, &head, Change::Append(Arc::new(file(45, 60)))).await;
}

#[tokio::test]
async fn strangers_and_old_versions_in_the_folder_do_not_matter() {
    let (_, store) = faulty();
    let manifests = manifest_store(store.clone(), 1);
    let mut head = manifests.load(&path()).await.unwrap();
    for n in 0..3 {
        head = committed(&manifests, &head, Change::Append(Arc::new(file(n * 10, n * 10 + 9)))).await;
    }
    let folder = path().manifest_folder();
    for name in ["9.json", "00000000000000000009.json.tmp", "README"] {
        store.put(&folder.clone().join(name), "?".into()).await.unwrap();
    }
    store.delete(&path().manifest(1)).await.unwrap();
    assert_eq!(manifests.load(&path()).await.unwrap(), head);
    // But a damaged newest version is no reason to go back in time.
    store.put(&path().manifest(9), "{}".into()).await.unwrap();
    assert!(matches!(manifests.load(&path()).await, Err(ManifestError::Corrupt { .. })));
}

#[test]
fn what_is_wrong_with_a_manifest_is_said() {
    let head = ManifestHead::empty(&path()).apply(Change::Append(Arc::new(file(0, 9))), 1, Timestamp(0)).unwrap();
    let good = String::from_utf8(format::encode_version(&head).unwrap().to_vec()).unwrap();
    let decode = |json: &str| format::decode_version(&path(), 1, json.as_bytes());
    assert!(decode(&good).is_ok());
    for (from, to, says) in [
        ("\"format_version\": 1", "\"format_version\": 2", "format version 2"),
        ("\"partition\": 3", "\"partition\": 4", "partition 4"),
        ("\"version\": 1,", "\"version\": 2,", "version 2"),
        ("\"last_offset\": 9", "\"last_offset\": 8", "not the name"),
        ("\"rows\": 10", "\"rows\": 11", "11 rows"),
        ("/data/", "/../data/", ""),
        ("topics/orders", "topics/others", "not the name"),
        ("\"tail\"", "\"head\"", "tail"),
    ] {
        assert!(good.contains(from), "{from}");
        let error = decode(&good.replace(from, to)).err().unwrap();
        assert!(error.contains(says), "{from} -> {to}: {error}");
    }
}

/// Versions and parts as the first version of this program wrote them.
#[test]
fn manifests_of_version_1_read_back_and_are_written_the_same() {
    let attempt = |n: u128| -> AttemptId {
        let name =
            format!("{}/{:020}-{:020}-{}.parquet", path().folder(ObjectKind::Data), 0, 0, Uuid::from_u128(n).simple());
        path().parse_object(&name.as_str().into()).unwrap().attempt
    };
    let mut raw = file_with(10, 29, attempt(2));
    raw.rows = 15;
    raw.split = None;
    raw.raw = Some(RawBatches {
        object: object(ObjectKind::Raw, 10, 29, attempt(2)),
        batches: vec![RawBatch {
            base_offset: Offset(12),
            last_offset: Offset(16),
            position: 0,
            size_bytes: 300,
            reason: "a header key is not UTF-8".to_owned(),
        }],
    });
    let tail = vec![Arc::new(file_with(0, 9, attempt(1))), Arc::new(raw)];
    let golden_part = include_bytes!("../../tests/golden/manifest-part-v1.json");
    let part = PartRef {
        object: ObjectRef {
            xxh3: crate::verify::object_hash(golden_part),
            size_bytes: golden_part.len() as u64,
            ..object(ObjectKind::ManifestPart, 0, 29, attempt(3))
        },
        base_offset: Offset(0),
        last_offset: Offset(29),
        files: 2,
    };
    write_golden_if_asked("manifest-part-v1.json", &format::encode_part(&path(), &tail).unwrap());
    assert_eq!(format::encode_part(&path(), &tail).unwrap(), golden_part.as_slice());
    assert_eq!(format::decode_part(&path(), &part, golden_part).unwrap(), tail);

    let newest = Arc::new(file_with(30, 39, attempt(4)));
    let files = tail.iter().cloned().chain([newest.clone()]).collect();
    let manifest = Manifest { version: 7, epoch: 5, log_start_offset: Offset(4), files, ..Manifest::empty(&path()) };
    let head = ManifestHead { manifest: Arc::new(manifest), sealed: vec![part], retired: Vec::new() };
    let golden = include_bytes!("../../tests/golden/manifest-v1.json");
    write_golden_if_asked("manifest-v1.json", &format::encode_version(&head).unwrap());
    assert_eq!(format::encode_version(&head).unwrap(), golden.as_slice());
    let decoded = format::decode_version(&path(), 7, golden).unwrap();
    assert_eq!((decoded.sealed, decoded.manifest.files), (head.sealed.clone(), vec![newest]));
    assert_eq!((decoded.manifest.epoch, decoded.manifest.log_start_offset), (5, Offset(4)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Against a model: a map from base to last offset.
    #[test]
    fn manifests_hold_what_was_committed(steps in prop::collection::vec((0..7_u8, 1..30_i64), 1..300)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (_, store) = faulty();
            let mut epoch = 1;
            let mut manifests = manifest_store(store.clone(), epoch);
            let mut head = manifests.load(&path()).await.unwrap();
            let (mut model, mut start, mut end) = (BTreeMap::new(), 0, 0);
            for (step, len) in steps {
                let before: HashSet<String> = head.objects().map(|object| object.key.clone()).collect();
                let mut released = HashSet::new();
                match step {
                    0 | 1 => {
                        head = committed(&manifests, &head, Change::Append(Arc::new(file(end, end + len - 1)))).await;
                        model.insert(end, end + len - 1);
                        end += len;
                    }
                    2 => {
                        start = (start + len).min(end);
                        head = committed(&manifests, &head, Change::RaiseLogStart(Offset(start))).await;
                        model.retain(|_, last| *last >= start);
                    }
                    3 | 4 => {
                        let files = &head.manifest().files;
                        let from = len as usize % files.len().max(1);
                        let merged = &files[from..files.len().min(from + len as usize)];
                        if let (Some(first), Some(last)) = (merged.first(), merged.last()) {
                            let one = file(first.base_offset.0, last.last_offset.0);
                            head = committed(&manifests, &head, merge(&head, one.clone())).await;
                            model.retain(|base, _| *base < one.base_offset.0 || *base > one.last_offset.0);
                            model.insert(one.base_offset.0, one.last_offset.0);
                        }
                    }
                    5 => {
                        let keys = head.retired().iter().take(len as usize).map(|old| old.object.key.clone());
                        released = keys.collect();
                        head = committed(&manifests, &head, Change::Release(released.clone())).await;
                    }
                    _ => {
                        epoch += 1;
                        manifests = manifest_store(store.clone(), epoch);
                        head = manifests.load(&path()).await.unwrap();
                    }
                }
                let named: HashSet<String> = head.objects().map(|object| object.key.clone()).collect();
                assert!(before.difference(&named).all(|key| released.contains(key)), "what is dropped is retired");
                let manifest = head.manifest();
                let ranges: Vec<_> = manifest.files.iter().map(|f| (f.base_offset.0, f.last_offset.0)).collect();
                assert_eq!(ranges, model.clone().into_iter().collect::<Vec<_>>());
                assert_eq!((manifest.next_offset().0, manifest.log_start_offset.0), (end.max(start), start));
            }
            assert_eq!(manifests.load(&path()).await.unwrap(), head);
        });
    }
}
