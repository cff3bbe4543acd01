use std::collections::{BTreeMap, HashSet};

use object_store::memory::InMemory;
use proptest::prelude::*;
use uuid::Uuid;

use super::files::{Entries, PART_LEVEL_MAX, Part};
use super::format::DecodedPart;
use super::*;
use crate::paths::{AttemptId, ObjectKind, RangeName};
use crate::split::Analyser;
use crate::store::ColdStore;
use crate::testing::{Fault, FaultyStore, manifest_store, path, write_golden_if_asked};

fn object(kind: ObjectKind, base: i64, last: i64, attempt: AttemptId) -> ObjectRef {
    let key = path().object(&RangeName { kind, base: Offset(base), last: Offset(last), attempt });
    ObjectRef { key: key.to_string(), size_bytes: 1000, xxh3: "00112233445566778899aabbccddeeff".to_owned() }
}

fn file_with(base: i64, last: i64, attempt: AttemptId) -> DataFile {
    DataFile {
        base_offset: Offset(base),
        last_offset: Offset(last),
        rows: (last - base + 1) as u64,
        dropped: 0,
        min_timestamp: Timestamp(1_700_000_000_000 + base),
        max_timestamp: Timestamp(1_700_000_000_000 + last),
        log_bytes: 2000,
        digest: "ffeeddccbbaa99887766554433221100".to_owned(),
        data: object(ObjectKind::Data, base, last, attempt),
        split: Some(object(ObjectKind::Split, base, last, attempt)),
        indexed: None,
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

/// A fresh split for a file, made in another way.
fn reindex(was: &Arc<DataFile>) -> Change {
    let split = object(ObjectKind::Split, was.base_offset.0, was.last_offset.0, AttemptId::fresh());
    let indexed = SplitOptions { fast: was.indexed.is_none_or(|indexed| !indexed.fast), ..SplitOptions::DEFAULT };
    Change::Reindex { was: was.clone(), split: Some(split), indexed: Some(indexed) }
}

#[tokio::test]
async fn a_split_is_replaced_only_if_the_file_is_as_it_was() {
    let (_, store) = faulty();
    let manifests = manifest_store(store, 1);
    let mut head = with_files(&manifests, 3 * PART_FILES as i64).await;
    for at in [0, PART_FILES, head.manifest().files.len() - 1] {
        let was = head.manifest().files[at].clone();
        head = committed(&manifests, &head, reindex(&was)).await;
        let file = head.manifest().files[at].clone();
        assert_eq!(DataFile { split: was.split.clone(), indexed: None, ..DataFile::clone(&file) }, *was);
        assert_ne!(file.split, was.split);
        let retired: Vec<_> = head.retired().iter().map(|old| old.object.clone()).collect();
        assert!(retired.contains(was.split.as_ref().unwrap()));
        assert!(retired.iter().all(|old| !old.key.contains("/data/")), "the data file is still there");
        // Somebody else was first.
        let refused = manifests.commit(&head, reindex(&was)).await;
        assert!(matches!(refused, Err(ManifestError::Replaced { .. })), "{refused:?}");
        let off = Change::Reindex { was: file, split: None, indexed: None };
        head = committed(&manifests, &head, off).await;
        assert_eq!((&head.manifest().files[at].split, head.manifest().files.len()), (&None, 3 * PART_FILES));
        assert_eq!(manifests.load(&path()).await.unwrap(), head);
    }
}

#[tokio::test]
async fn a_partition_without_an_archive_is_empty() {
    let (_, store) = faulty();
    let head = manifest_store(store, 1).load(&path()).await.unwrap();
    assert_eq!(head, ManifestHead::empty(&path()));
    assert_eq!(head.manifest().archived_through(), Offset::ZERO);
}

/// The levels of the parts, as the version names them.
fn levels(head: &ManifestHead) -> Vec<u8> {
    head.manifest().files.part_refs().map(|part| part.level).collect()
}

/// One commit that finds `files` files of ten records in the tail.
async fn with_files(manifests: &ManifestStore, files: i64) -> ManifestHead {
    let mut head = manifests.load(&path()).await.unwrap();
    let all: FileList = (0..files).map(|n| Arc::new(file(n * 10, n * 10 + 9))).collect();
    head.manifest = Arc::new(Manifest { files: all, ..Manifest::empty(&path()) });
    committed(manifests, &head, Change::Claim).await
}

#[tokio::test]
async fn long_histories_move_into_parts() {
    let (_, store) = faulty();
    let manifests = manifest_store(store.clone(), 1);
    let mut head = manifests.load(&path()).await.unwrap();
    let files = 5 * PART_FILES as i64;
    for n in 0..files {
        head = committed(&manifests, &head, Change::Append(Arc::new(file(n * 10, n * 10 + 9)))).await;
        assert!(head.manifest().files.tail().len() < 2 * PART_FILES);
    }
    assert_eq!(levels(&head), [0; 4]);
    assert_eq!(manifests.load(&path()).await.unwrap(), head);
    assert_eq!(head.manifest().files.len(), files as usize);
    assert_eq!(head.manifest().file_for(Offset(1234)).unwrap().base_offset, Offset(1230));

    // The start rises into the second part: the first one goes as a whole, the second stays and hides some.
    let start = Offset((PART_FILES as i64 + 3) * 10 + 5);
    head = committed(&manifests, &head, Change::RaiseLogStart(start)).await;
    assert_eq!((levels(&head).len(), head.manifest().files.len()), (3, files as usize - PART_FILES - 3));
    assert_eq!(manifests.load(&path()).await.unwrap(), head);

    // A damaged part is found by its hash.
    let key = head.manifest().files.part_refs().nth(1).unwrap().object.path();
    let mut bytes = store.get(&key).await.unwrap().to_vec();
    bytes[100] ^= 1;
    store.put(&key, bytes.into()).await.unwrap();
    let error = manifests.load(&path()).await.unwrap_err();
    assert!(matches!(error, ManifestError::Corrupt { .. }), "{error}");
}

#[tokio::test]
async fn a_long_tail_is_sealed_in_one_commit_and_parts_in_levels() {
    let (_, store) = faulty();
    let manifests = manifest_store(store, 1);
    let files = (2 * PART_FANOUT + 1) * PART_FILES + 5;
    let mut head = with_files(&manifests, files as i64).await;
    assert_eq!(levels(&head)[..2], [1, 0]);
    assert_eq!(levels(&head).len(), PART_FANOUT + 1);
    assert_eq!(head.manifest().files.tail().len(), PART_FILES + 5);
    assert_eq!(manifests.load(&path()).await.unwrap(), head);
    let bases = |files: &FileList| files.iter().map(|file| file.base_offset.0).collect::<Vec<_>>();
    let expected: Vec<_> = (0..files as i64).map(|n| n * 10).collect();
    assert_eq!(bases(&head.manifest().files), expected);
    for at in [0, 1, PART_FILES, PART_FILES * PART_FANOUT - 1, PART_FILES * PART_FANOUT, files - 1] {
        assert_eq!(head.manifest().files[at].base_offset, Offset(expected[at]));
        assert_eq!(head.manifest().files.iter_from(at).count(), files - at);
    }
    assert_eq!(head.manifest().files.get(files), None);

    // Deep in the history one leaf and its parent are written again.
    let before: HashSet<_> = head.objects().map(|object| object.key.clone()).collect();
    head = committed(&manifests, &head, merge(&head, file(200, 259))).await;
    let after: HashSet<_> = head.objects().map(|object| object.key.clone()).collect();
    let fresh = after.difference(&before).filter(|key| key.contains("/parts/")).count();
    assert_eq!((fresh, head.manifest().files.len()), (2, files - 5));
    assert_eq!(manifests.load(&path()).await.unwrap(), head);
}

/// Requests and bytes, not time: what a commit costs does not depend on how many files there are.
#[tokio::test]
async fn a_commit_costs_the_same_at_any_size() {
    let mut costs = Vec::new();
    let small = 3 * PART_FILES as i64;
    for files in [small, small + 3 * (PART_FILES * PART_FANOUT) as i64] {
        let (faulty, store) = faulty();
        let metrics = crate::testing::metrics();
        store.observe(metrics.clone());
        let manifests = manifest_store(store, 1);
        let mut head = with_files(&manifests, files).await;
        let requests_before = faulty.operations();
        let stored = || metrics.store_stored_bytes.with_label_values(&["maintenance"]).get();
        let bytes_before = stored();
        let commits = 4 * PART_FILES as i64;
        for n in files..files + commits {
            head = committed(&manifests, &head, Change::Append(Arc::new(file(n * 10, n * 10 + 9)))).await;
        }
        let bytes = (stored() - bytes_before) / commits as u64;
        costs.push((faulty.operations() - requests_before, bytes));
    }
    let [(few_requests, few_bytes), (many_requests, many_bytes)] = costs[..] else { panic!("{costs:?}") };
    let commits = 4 * PART_FILES;
    assert!(few_requests <= 3 * commits + 5 && many_requests <= few_requests + 2, "{costs:?}");
    // The edge of the larger tree may hold more references, of which each takes some 350 bytes.
    assert!(many_bytes <= few_bytes + 2 * 2 * PART_FANOUT as u64 * 350, "{costs:?}");
}

#[tokio::test]
async fn long_expiries_go_in_steps_and_wait_for_the_janitor() {
    let (_, store) = faulty();
    let manifests = manifest_store(store, 1);
    let files = 12 * EXPIRED_FILES_PER_COMMIT as i64;
    let mut head = with_files(&manifests, files).await;
    let end = Offset(files * 10);
    let mut steps = 0;
    while head.droppable_files() > 0 {
        let before = head.manifest().files.len();
        head = committed(&manifests, &head, Change::RaiseLogStart(end)).await;
        assert!(before - head.manifest().files.len() <= EXPIRED_FILES_PER_COMMIT);
        assert!(head.retired().len() <= RETIRED_MAX, "{}", head.retired().len());
        assert_eq!(head.manifest().log_start_offset, head.manifest().files[0].base_offset);
        steps += 1;
    }
    assert!(steps > 1);
    assert_eq!(manifests.load(&path()).await.unwrap(), head);
    let error = manifests.commit(&head, Change::RaiseLogStart(end)).await.unwrap_err();
    assert!(matches!(error, ManifestError::TooManyRetired { .. }), "{error}");
    // What was never dropped does not wait.
    head = committed(&manifests, &head, Change::Append(Arc::new(file(end.0, end.0 + 9)))).await;
    let deleted = head.retired().iter().map(|old| old.object.key.clone()).collect();
    head = committed(&manifests, &head, Change::Release(deleted)).await;
    let before = head.manifest().files.len();
    head = committed(&manifests, &head, Change::RaiseLogStart(end)).await;
    assert_eq!(head.manifest().files.len(), before - EXPIRED_FILES_PER_COMMIT);
}

#[tokio::test]
async fn a_claim_changes_the_epoch_alone_and_fences() {
    for files in [0, 3] {
        let (_, store) = faulty();
        let (old, new) = (manifest_store(store.clone(), 1), manifest_store(store, 2));
        let head = if files > 0 { with_files(&old, files).await } else { old.load(&path()).await.unwrap() };
        let claimed = committed(&new, &head, Change::Claim).await;
        assert_eq!(claimed.manifest().files, head.manifest().files);
        assert_eq!((claimed.manifest().epoch, old.fenced()), (2, None));
        let next = file(files * 10, files * 10 + 9);
        let error = old.commit(&head, Change::Append(Arc::new(next))).await.unwrap_err();
        assert!(matches!(error, ManifestError::Fenced { .. }), "{error}");
        assert_eq!(old.fenced().map(|fenced| (fenced.epoch, fenced.own_epoch)), Some((2, 1)));
        assert_eq!(new.fenced(), None);
    }
}

/// A store whose listings are a state of some time ago.
#[tokio::test]
async fn a_listing_that_lags_hides_nothing() {
    let (faulty, store) = faulty();
    let manifests = manifest_store(store, 1);
    let mut head = manifests.load(&path()).await.unwrap();
    faulty.freeze_listings().await;
    for n in 0..5 {
        head = committed(&manifests, &head, Change::Append(Arc::new(file(n * 10, n * 10 + 9)))).await;
    }
    assert_eq!(manifests.load(&path()).await.unwrap(), head);
    faulty.freeze_listings().await;
    head = committed(&manifests, &head, Change::Append(Arc::new(file(50, 59)))).await;
    assert_eq!(manifests.versions(&path()).await.unwrap().len(), 5);
    assert_eq!(manifests.load(&path()).await.unwrap(), head);
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
    // It slept so long that the janitor has deleted the version it wants to make, and so the one before.
    let mut taken = taken;
    for n in 2..5 {
        taken = committed(&new, &taken, Change::Append(Arc::new(file(n * 10, n * 10 + 9)))).await;
    }
    for version in 1..=3 {
        store.delete(&path().manifest(version)).await.unwrap();
    }
    let error = old.commit(&start, Change::Append(Arc::new(file(10, 19)))).await.unwrap_err();
    assert!(matches!(error, ManifestError::Fenced { .. }), "{error}");
    assert_eq!(new.load(&path()).await.unwrap(), taken);
    // An older broker that was first does not fence the newer one, but its commit counts.
    let third = manifest_store(store, 3);
    let by_second = committed(&new, &taken, Change::Append(Arc::new(file(50, 59)))).await;
    match third.commit(&taken, Change::Append(Arc::new(file(50, 59)))).await.unwrap() {
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

/// A commit that seals parts, merges or expires, cut off at every request: the newest version is the one before or the
/// one after, and whole.
#[tokio::test]
async fn a_commit_that_dies_anywhere_happened_or_did_not() {
    let files = 2 * PART_FILES as i64 - 1 + (2 * PART_FANOUT * PART_FILES) as i64;
    let base = Arc::new(InMemory::new());
    let before = with_files(&manifest_store(FaultyStore::healthy(base.clone()).cold(0), 1), files).await;
    let changes = [
        Change::Append(Arc::new(file(files * 10, files * 10 + 9))),
        merge(&before, file(10, 639)),
        reindex(&before.manifest().files[70]),
        Change::RaiseLogStart(Offset(777)),
    ];
    for (change, fault) in changes.into_iter().flat_map(|c| [(c.clone(), Fault::Before), (c, Fault::After)]) {
        let mut outcomes = (0, 0);
        for fail_at in 0.. {
            let inner = Arc::new(base.fork());
            let dying = FaultyStore::dying(inner.clone(), fail_at, fault);
            let committed = manifest_store(dying.cold(0), 1).commit(&before, change.clone()).await;
            let after = manifest_store(FaultyStore::healthy(inner).cold(0), 2).load(&path()).await.unwrap();
            if let Ok(committed) = committed {
                assert!(matches!(committed, CommitOutcome::Committed(next) if next == after));
                break;
            }
            if after == before {
                outcomes.0 += 1;
            } else {
                assert_eq!(after.manifest().version, before.manifest().version + 1);
                outcomes.1 += 1;
            }
        }
        assert!(outcomes.1 > 0 && (outcomes.0 > 0 || fault == Fault::After), "{change:?} {fault:?}: {outcomes:?}");
    }
}

#[test]
fn what_is_wrong_with_a_manifest_is_said() {
    let head = ManifestHead::empty(&path()).apply(Change::Append(Arc::new(file(0, 9))), 1, Timestamp(0)).unwrap();
    let good = String::from_utf8(format::encode_version(&head).unwrap().to_vec()).unwrap();
    let decode = |json: &str| format::decode_version(&path(), 1, json.as_bytes());
    assert!(decode(&good).is_ok());
    for (from, to, says) in [
        ("\"format_version\": 2", "\"format_version\": 3", "format version 3"),
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

fn attempt(n: u128) -> AttemptId {
    let name =
        format!("{}/{:020}-{:020}-{}.parquet", path().folder(ObjectKind::Data), 0, 0, Uuid::from_u128(n).simple());
    path().parse_object(&name.as_str().into()).unwrap().attempt
}

/// What the golden files hold: two files of which one keeps a batch raw, then one.
fn golden_files() -> [Arc<DataFile>; 3] {
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
    [Arc::new(file_with(0, 9, attempt(1))), Arc::new(raw), Arc::new(file_with(30, 39, attempt(4)))]
}

fn golden_part(bytes: &[u8], last: i64, attempt: AttemptId, files: u64, level: u8) -> PartRef {
    let object = ObjectRef {
        xxh3: crate::verify::object_hash(bytes),
        size_bytes: bytes.len() as u64,
        ..object(ObjectKind::ManifestPart, 0, last, attempt)
    };
    PartRef { object, base_offset: Offset(0), last_offset: Offset(last), files, level }
}

#[tokio::test]
async fn manifests_of_version_1_are_read_and_go_on_as_version_2() {
    let [first, raw, newest] = golden_files();
    let bytes = include_bytes!("../../tests/golden/manifest-part-v1.json");
    let mut part = golden_part(bytes, 29, attempt(3), 2, 0);
    part.object.key = part.object.key.replace(".json.zst", ".json");
    let golden = include_bytes!("../../tests/golden/manifest-v1.json");
    let decoded = format::decode_version(&path(), 7, golden).unwrap();
    assert_eq!((decoded.parts, decoded.manifest.files), (vec![part.clone()], [newest.clone()].into_iter().collect()));

    let (_, store) = faulty();
    store.put(&part.object.path(), bytes.as_slice().into()).await.unwrap();
    store.put(&path().manifest(7), golden.as_slice().into()).await.unwrap();
    let manifests = manifest_store(store.clone(), 6);
    let head = manifests.load(&path()).await.unwrap();
    assert_eq!((head.manifest().epoch, head.manifest().log_start_offset), (5, Offset(4)));
    assert!(head.manifest().files.iter().eq([&first, &raw, &newest]));
    let head = committed(&manifests, &head, Change::Append(Arc::new(file(40, 49)))).await;
    assert_eq!(manifests.load(&path()).await.unwrap(), head);
    let written = store.get(&path().manifest(8)).await.unwrap();
    assert!(String::from_utf8_lossy(&written).contains("\"format_version\": 2"));
}

/// Packed bytes may differ between versions of zstd; what they hold may not.
#[test]
fn manifests_of_version_2_read_back_and_are_written_the_same() {
    let [first, raw, newest] = golden_files();
    let leaf_bytes = include_bytes!("../../tests/golden/manifest-part-v2.json.zst");
    let leaf = golden_part(leaf_bytes, 29, attempt(3), 2, 0);
    let entries = Entries::Files(vec![first, raw]);
    let written = format::encode_part(&path(), 0, &entries).unwrap();
    write_golden_if_asked("manifest-part-v2.json.zst", &written.bytes);
    let unpacked = |bytes: &[u8]| zstd::decode_all(bytes).unwrap();
    assert_eq!(unpacked(&written.bytes), unpacked(leaf_bytes));
    let DecodedPart::Files(files) = format::decode_part(&path(), &leaf, leaf_bytes).unwrap() else { panic!() };
    assert_eq!(Entries::Files(files), entries);

    let inner_bytes = include_bytes!("../../tests/golden/manifest-part-of-parts-v2.json.zst");
    let inner = golden_part(inner_bytes, 29, attempt(5), 2, 1);
    let entries = Entries::Parts(Part::stored(leaf.clone(), entries).into_iter().collect());
    let written = format::encode_part(&path(), 1, &entries).unwrap();
    write_golden_if_asked("manifest-part-of-parts-v2.json.zst", &written.bytes);
    assert_eq!(unpacked(&written.bytes), unpacked(inner_bytes));
    let DecodedPart::Parts(parts) = format::decode_part(&path(), &inner, inner_bytes).unwrap() else { panic!() };
    assert_eq!(parts, [leaf]);

    let parts = Part::stored(inner.clone(), entries).into_iter().collect();
    let files = FileList::new(parts, vec![newest.clone()]);
    let manifest = Manifest { version: 7, epoch: 5, log_start_offset: Offset(4), files, ..Manifest::empty(&path()) };
    let retired = Retired { object: object(ObjectKind::Split, 0, 3, attempt(6)), at: Timestamp(1_700_000_000_000) };
    let head = ManifestHead { manifest: Arc::new(manifest), retired: vec![retired] };
    let golden = include_bytes!("../../tests/golden/manifest-v2.json");
    write_golden_if_asked("manifest-v2.json", &format::encode_version(&head).unwrap());
    assert_eq!(format::encode_version(&head).unwrap(), golden.as_slice());
    let decoded = format::decode_version(&path(), 7, golden).unwrap();
    assert_eq!((decoded.parts, decoded.retired), (vec![inner], head.retired.clone()));
    assert_eq!(decoded.manifest.files, [newest].into_iter().collect());
    assert_eq!((decoded.manifest.epoch, decoded.manifest.log_start_offset), (5, Offset(4)));
}

/// A manifest says how splits were made, in words that another program need not know.
#[test]
fn what_is_said_of_splits_reads_back_and_is_written_the_same() {
    let log = SplitOptions { analyser: Analyser::Log, headers: false, fast: false, ..SplitOptions::DEFAULT };
    let indexed = |file: &DataFile, indexed| Arc::new(DataFile { indexed: Some(indexed), ..file.clone() });
    let files = [
        indexed(&file_with(0, 9, attempt(1)), SplitOptions::DEFAULT),
        indexed(&file_with(10, 19, attempt(2)), log),
        Arc::new(file_with(20, 29, attempt(3))),
    ];
    let manifest = Manifest { version: 7, epoch: 5, files: files.into_iter().collect(), ..Manifest::empty(&path()) };
    let head = ManifestHead { manifest: Arc::new(manifest), retired: Vec::new() };
    let golden = include_bytes!("../../tests/golden/manifest-v2-indexed.json");
    write_golden_if_asked("manifest-v2-indexed.json", &format::encode_version(&head).unwrap());
    assert_eq!(format::encode_version(&head).unwrap(), golden.as_slice());
    let read = |json: &str| format::decode_version(&path(), 7, json.as_bytes()).unwrap().manifest.files;
    let golden = String::from_utf8_lossy(golden);
    assert_eq!(read(&golden), head.manifest().files);
    let newer = golden.replace("words.2 value", "words.77 value");
    assert_eq!((read(&newer)[0].indexed, read(&newer)[1].indexed), (None, Some(log)));
}

/// Sorted, contiguous, of levels that do not rise, none too large for what a version may hold.
fn check_edge(head: &ManifestHead) {
    let levels = levels(head);
    assert!(levels.windows(2).all(|pair| pair[0] >= pair[1]), "{levels:?}");
    assert!(head.manifest().files.tail().len() < 2 * PART_FILES);
    for level in 0..PART_LEVEL_MAX {
        assert!(levels.iter().filter(|found| **found == level).count() < 2 * PART_FANOUT, "{levels:?}");
    }
    assert_eq!(head.manifest().files.iter().count(), head.manifest().files.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Over several levels: merges anywhere, of any length, and log starts that cut parts, against a model.
    #[test]
    fn trees_hold_what_was_merged_and_expired(
        files in 1..12_000_i64,
        steps in prop::collection::vec((any::<bool>(), 0..12_000_usize, prop_oneof![1..40_usize, 1..9000_usize]), 1..8),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (_, store) = faulty();
            let manifests = manifest_store(store, 1);
            let mut head = with_files(&manifests, files).await;
            let mut model: Vec<(i64, i64)> = (0..files).map(|n| (n * 10, n * 10 + 9)).collect();
            for (is_merge, at, len) in steps {
                let at = at % model.len();
                let before: HashSet<String> = head.objects().map(|object| object.key.clone()).collect();
                if is_merge {
                    let end = model.len().min(at + len).min(at + RETIRED_MAX / 4);
                    let merged = (model[at].0, model[end - 1].1);
                    let change = merge(&head, file(merged.0, merged.1));
                    head = committed(&manifests, &head, change).await;
                    model.splice(at..end, [merged]);
                } else {
                    let start = model[at.min(EXPIRED_FILES_PER_COMMIT)].0 + 3;
                    head = committed(&manifests, &head, Change::RaiseLogStart(Offset(start))).await;
                    model.retain(|(_, last)| *last >= start);
                }
                let named: HashSet<String> = head.objects().map(|object| object.key.clone()).collect();
                assert!(before.is_subset(&named), "what is dropped is retired");
                check_edge(&head);
                let found: Vec<_> = head.manifest().files.iter().map(|f| (f.base_offset.0, f.last_offset.0)).collect();
                assert_eq!(found, model);
                for at in [0, model.len() / 3, model.len() - 1] {
                    let (base, last) = model[at];
                    let files = &head.manifest().files;
                    assert_eq!(files.partition_point(|file| file.last_offset < Offset(last)), at);
                    assert_eq!(files.get(at).map(|file| file.base_offset), Some(Offset(base)));
                }
                let released = head.retired().iter().map(|old| old.object.key.clone()).collect();
                head = committed(&manifests, &head, Change::Release(released)).await;
            }
            assert_eq!(manifests.load(&path()).await.unwrap(), head);
        });
    }

    /// Against a model: a map from base to last offset.
    #[test]
    fn manifests_hold_what_was_committed(steps in prop::collection::vec((0..8_u8, 1..30_i64), 1..300)) {
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
                        let merged = files.len().min(from + len as usize);
                        if let (Some(first), Some(last)) = (files.get(from), files.get(merged.max(1) - 1)) {
                            let one = file(first.base_offset.0, last.last_offset.0);
                            head = committed(&manifests, &head, merge(&head, one.clone())).await;
                            model.retain(|base, _| *base < one.base_offset.0 || *base > one.last_offset.0);
                            model.insert(one.base_offset.0, one.last_offset.0);
                        }
                    }
                    6 => {
                        let files = &head.manifest().files;
                        if let Some(was) = files.get(len as usize % files.len().max(1)) {
                            let change = reindex(was);
                            head = committed(&manifests, &head, change).await;
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
