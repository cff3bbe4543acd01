use std::collections::HashSet;

use bytes::Bytes;
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStoreExt, PutPayload};
use tantivy::directory::OwnedBytes;
use thermocline_config::{ByteSize, CacheConfig, LogConfig};
use thermocline_ingest::model::Offset;
use thermocline_ingest::read::ReadRange;
use thermocline_ingest::record::{BatchDecoder, BatchError, Record, split_batches};
use tokio::runtime::Handle;

use super::*;
use crate::archived::Damage;
use crate::cache::BlockCache;
use crate::cold::ColdReader;
use crate::pipeline::{ArchiveJob, Batches, StageOptions};
use crate::reader::OwnedRecord;
use crate::split::SplitOptions;
use crate::testing::{
    Fault, FaultyStore, background_threads, batches, manifest_store, metrics, path, some_records, stage_options,
    tiering_config, undecodable,
};

const TEXT: SplitOptions = SplitOptions { json: false, positions: false, ..SplitOptions::DEFAULT };
const PHRASES: SplitOptions = SplitOptions { json: false, positions: true, ..SplitOptions::DEFAULT };
const RECORDS_PER_FILE: usize = 60;

/// Small row groups: a quarter of the memory of these tests would not hold two large ones.
fn config() -> TieringConfig {
    TieringConfig { row_group_bytes: ByteSize::kib(4), page_bytes: ByteSize::bytes(512), ..tiering_config() }
}

fn parts(store: &ColdStore, epoch: u64) -> (Merger, ManifestStore, Archiver) {
    let config = config();
    let manifests = manifest_store(store.clone(), epoch);
    let archiver = Archiver::new(store.clone(), manifests.clone(), background_threads(), &config, metrics());
    let parts = MergerParts {
        archiver: archiver.clone(),
        manifests: manifests.clone(),
        store: store.clone(),
        background: background_threads(),
        workers: Arc::new(Semaphore::new(1)),
        metrics: metrics(),
    };
    (Merger::new(parts, &config), manifests, archiver)
}

/// An archive of one file per entry, indexed as it says; the second and the last file end with batches kept raw.
async fn archive(inner: &Arc<InMemory>, index: &[Option<SplitOptions>]) -> ManifestHead {
    let store = FaultyStore::healthy(inner.clone()).cold(0);
    let (_, manifests, archiver) = parts(&store, 1);
    let mut head = manifests.load(&path()).await.unwrap();
    let mut base = 0;
    for (at, split) in index.iter().enumerate() {
        let mut segment = batches(base, &some_records(RECORDS_PER_FILE), 20);
        base += RECORDS_PER_FILE as i64;
        if at == 1 || at + 1 == index.len() {
            segment.extend([undecodable(base, 3), undecodable(base + 3, 2)]);
            base += 5;
        }
        let batches = Box::new(move || Ok(Box::new(segment.clone().into_iter().map(Ok)) as Batches));
        let options = StageOptions { split: *split, ..stage_options(usize::MAX) };
        archiver
            .archive_segment(ArchiveJob { batches, aborted: Vec::new(), options, prepared: None }, &mut head, &|_| {})
            .await
            .unwrap();
    }
    assert_eq!(head.manifest().files.len(), index.len());
    head
}

/// Everything that can be read of the archive, in order: records, and batches kept raw.
async fn contents(store: &ColdStore, head: &ManifestHead) -> (Vec<OwnedRecord>, Vec<Bytes>) {
    let reader = ColdReader::new(BlockCache::new(store.clone(), 1 << 20, Handle::current()), &CacheConfig::default());
    let (mut at, end) = (Offset::ZERO, head.manifest().archived_through());
    let (mut records, mut raw) = (Vec::new(), Vec::new());
    while at < end {
        let range = ReadRange { from: at, until: end, max_bytes: 1 << 20, at_least_one: true };
        let run = reader.read(head.manifest(), &range).await.unwrap().batches;
        for batch in run.chunks.into_iter().flat_map(split_batches) {
            let batch = batch.unwrap();
            let header = thermocline_ingest::record::BatchHeader::read(&batch).unwrap();
            assert_eq!(header.base_offset, at, "nothing twice, nothing missing");
            at = header.next_offset();
            let pick = |record: Record<'_>| -> Result<(), BatchError> {
                records.push(OwnedRecord::from(&record));
                Ok(())
            };
            if BatchDecoder::new(1 << 20).for_each(&batch, pick).is_err() {
                raw.push(batch);
            }
        }
    }
    (records, raw)
}

fn inputs(head: &ManifestHead) -> Vec<Arc<DataFile>> {
    head.manifest().files.iter().cloned().collect()
}

/// All files of the archive as one.
async fn merge_all(store: &ColdStore, epoch: u64) -> Result<ManifestHead, MergeError> {
    let (merger, manifests, _) = parts(store, epoch);
    let mut head = manifests.load(&path()).await.map_err(MergeError::Commit)?;
    let merged = merger.merge(&path(), &inputs(&head), &|| false).await?.expect("there is memory");
    merger.commit(merged, &mut head).await?;
    Ok(head)
}

async fn check_objects(faulty: &FaultyStore, head: &ManifestHead) {
    let stored: HashSet<_> = faulty.keys().await.into_iter().collect();
    for object in head.objects() {
        assert!(stored.contains(&object.key), "{} is named but not there", object.key);
        let bytes = faulty.cold(0).get(&object.path()).await.unwrap();
        assert_eq!(ObjectRef::of(&object.path(), &bytes), *object);
    }
}

async fn split_of(store: &ColdStore, file: &DataFile) -> SplitReader {
    let bytes = store.get(&file.split.as_ref().unwrap().path()).await.unwrap();
    SplitReader::open(Arc::new(OwnedBytes::new(Vec::from(bytes)))).unwrap()
}

#[tokio::test]
async fn a_merged_file_holds_what_its_inputs_held() {
    for index in [[Some(TEXT); 4], [None; 4], [Some(TEXT), Some(PHRASES), Some(TEXT), Some(PHRASES)]] {
        let inner = Arc::new(InMemory::new());
        let before = archive(&inner, &index).await;
        let faulty = FaultyStore::healthy(inner);
        let store = faulty.cold(0);
        let expected = contents(&store, &before).await;
        assert_eq!((expected.0.len(), expected.1.len()), (4 * RECORDS_PER_FILE, 4));

        let after = merge_all(&store, 1).await.unwrap();
        assert_eq!(contents(&store, &after).await, expected);
        check_objects(&faulty, &after).await;
        assert_eq!(after.manifest().files.len(), 1);
        let file = after.manifest().files.first().unwrap();
        let inputs = &before.manifest().files;
        assert_eq!((file.base_offset, file.last_offset), (Offset(0), inputs[3].last_offset));
        assert_eq!(file.rows, inputs.iter().map(|input| input.rows).sum::<u64>());
        assert_eq!(file.log_bytes, inputs.iter().map(|input| input.log_bytes).sum::<u64>());
        assert_eq!(file.min_timestamp, inputs.iter().map(|input| input.min_timestamp).min().unwrap());
        assert_eq!(file.max_timestamp, inputs.iter().map(|input| input.max_timestamp).max().unwrap());
        let raw = file.raw.as_ref().unwrap();
        assert_eq!(raw.batches.iter().map(|batch| batch.base_offset.0).collect::<Vec<_>>(), [120, 123, 245, 248]);
        // The inputs are retired, not gone.
        let retired: HashSet<_> = after.retired().iter().map(|retired| &retired.object.key).collect();
        assert!(inputs.iter().flat_map(|input| input.objects()).all(|object| retired.contains(&object.key)));

        assert_eq!(file.split.is_some(), index[0].is_some());
        if file.split.is_some() {
            let split = split_of(&store, file).await;
            let offsets = split.searcher.segment_reader(0).fast_fields().i64("offset").unwrap();
            let found: Vec<_> = (0..split.docs() as u32).map(|doc| Offset(offsets.first(doc).unwrap())).collect();
            assert_eq!(found, expected.0.iter().map(|record| record.offset).collect::<Vec<_>>());
        }
    }
}

#[tokio::test]
async fn files_of_raw_batches_alone_are_merged() {
    let inner = Arc::new(InMemory::new());
    let store = FaultyStore::healthy(inner).cold(0);
    let (_, manifests, archiver) = parts(&store, 1);
    let mut head = manifests.load(&path()).await.unwrap();
    for base in [0, 10, 20, 30] {
        let batches = Box::new(move || Ok(Box::new([Ok(undecodable(base, 10))].into_iter()) as Batches));
        let options = StageOptions { split: Some(TEXT), ..stage_options(usize::MAX) };
        archiver
            .archive_segment(ArchiveJob { batches, aborted: Vec::new(), options, prepared: None }, &mut head, &|_| {})
            .await
            .unwrap();
    }
    let expected = contents(&store, &head).await;
    let after = merge_all(&store, 1).await.unwrap();
    assert_eq!((after.manifest().files.len(), after.manifest().files[0].rows), (1, 0));
    assert_eq!(contents(&store, &after).await, expected);
}

/// The process dies at every single operation on the store, before and after its effect, and the work is done again by
/// a new one. And: the operation fails once, and the same process goes on.
#[tokio::test]
async fn every_crash_leaves_the_inputs_or_the_merged_file() {
    let origin = Arc::new(InMemory::new());
    let before = archive(&origin, &[Some(TEXT); 4]).await;
    let expected = contents(&FaultyStore::healthy(origin.clone()).cold(0), &before).await;
    for fault in [Fault::Before, Fault::After] {
        for fail_at in 0.. {
            let inner = Arc::new(origin.fork());
            let dying = FaultyStore::dying(inner.clone(), fail_at, fault);
            let died = merge_all(&dying.cold(0), 2).await;
            assert_eq!(died.is_err(), dying.has_failed());
            let healthy = FaultyStore::healthy(inner);
            let store = healthy.cold(0);
            let found = manifest_store(store.clone(), 3).load(&path()).await.unwrap();
            assert!([1, 4].contains(&found.manifest().files.len()), "{fault:?} {fail_at}");
            check_objects(&healthy, &found).await;
            assert_eq!(contents(&store, &found).await, expected, "{fault:?} {fail_at}");
            if found.manifest().files.len() == 4 {
                let again = merge_all(&store, 3).await.unwrap();
                assert_eq!(again.manifest().files.len(), 1);
                assert_eq!(contents(&store, &again).await, expected, "{fault:?} {fail_at}, again");
            }

            let inner = Arc::new(origin.fork());
            let _ = merge_all(&FaultyStore::stumbling(inner.clone(), fail_at, fault).cold(0), 2).await;
            let healthy = FaultyStore::healthy(inner);
            let store = healthy.cold(0);
            let found = manifest_store(store.clone(), 2).load(&path()).await.unwrap();
            check_objects(&healthy, &found).await;
            assert_eq!(contents(&store, &found).await, expected, "{fault:?} {fail_at} once");
            if !dying.has_failed() {
                break;
            }
        }
    }
}

#[tokio::test]
async fn damage_is_never_merged() {
    let origin = Arc::new(InMemory::new());
    let before = archive(&origin, &[Some(TEXT); 4]).await;
    let file = &before.manifest().files[1];
    for object in file.objects() {
        let good = FaultyStore::healthy(origin.clone()).cold(0).get(&object.path()).await.unwrap();
        // Everywhere: magic, pages, footers.
        for at in (0..good.len()).step_by(good.len() / 40 + 1).chain([good.len() - 1]) {
            let inner = Arc::new(origin.fork());
            let mut bad = good.to_vec();
            bad[at] ^= 0x10;
            inner.put(&object.path(), PutPayload::from(bad)).await.unwrap();
            let store = FaultyStore::healthy(inner).cold(0);
            match merge_all(&store, 1).await {
                Err(MergeError::Input(ArchivedError::Damaged { key, .. })) => assert_eq!(key, object.key, "byte {at}"),
                // Bytes of Parquet that carry no record: the records are as they were archived.
                Ok(_) if *object == file.data => {}
                other => panic!("byte {at} of {}: {other:?}", object.key),
            }
        }
        let inner = Arc::new(origin.fork());
        inner.delete(&object.path()).await.unwrap();
        let missing = merge_all(&FaultyStore::healthy(inner).cold(0), 1).await.unwrap_err();
        assert!(
            matches!(&missing, MergeError::Input(ArchivedError::Damaged { key, source: Damage::Missing }) if *key == object.key)
        );
    }
}

#[tokio::test]
async fn what_came_first_wins() {
    let origin = Arc::new(InMemory::new());
    archive(&origin, &[Some(TEXT); 4]).await;

    // A file expires meanwhile.
    let store = FaultyStore::healthy(Arc::new(origin.fork())).cold(0);
    let (merger, manifests, _) = parts(&store, 1);
    let head = manifests.load(&path()).await.unwrap();
    let merged = merger.merge(&path(), &inputs(&head), &|| false).await.unwrap().unwrap();
    let CommitOutcome::Committed(mut expired) =
        manifests.commit(&head, Change::RaiseLogStart(Offset(60))).await.unwrap()
    else {
        panic!("nobody else commits")
    };
    assert!(matches!(merger.commit(merged, &mut expired).await, Err(MergeError::Overtaken)));
    assert_eq!(manifests.load(&path()).await.unwrap(), expired);

    // Another broker merges meanwhile; this one believes in an old manifest.
    let store = FaultyStore::healthy(Arc::new(origin.fork())).cold(0);
    let (merger, manifests, _) = parts(&store, 1);
    let mut head = manifests.load(&path()).await.unwrap();
    let merged = merger.merge(&path(), &inputs(&head), &|| false).await.unwrap().unwrap();
    let theirs = merge_all(&store, 2).await.unwrap();
    let fenced = merger.commit(merged, &mut head).await.unwrap_err();
    assert!(matches!(fenced, MergeError::Commit(ManifestError::Fenced { .. })), "{fenced}");
    assert_eq!(manifests.load(&path()).await.unwrap(), theirs);

    // The collection of orphans comes by before the commit.
    let inner = Arc::new(origin.fork());
    let store = FaultyStore::healthy(inner.clone()).cold(0);
    let (merger, manifests, _) = parts(&store, 1);
    let mut head = manifests.load(&path()).await.unwrap();
    let merged = merger.merge(&path(), &inputs(&head), &|| false).await.unwrap().unwrap();
    let collected = merged.objects[1].clone();
    inner.delete(&ObjectPath::from(collected.key.as_str())).await.unwrap();
    let error = merger.commit(merged, &mut head).await.unwrap_err();
    assert!(matches!(&error, MergeError::Collected { key } if *key == collected.key), "{error}");
    assert_eq!(manifests.load(&path()).await.unwrap().manifest().files.len(), 4);
}

#[tokio::test]
async fn a_merge_that_is_cancelled_or_has_no_memory_leaves_nothing_behind() {
    let inner = Arc::new(InMemory::new());
    let head = archive(&inner, &[None; 4]).await;
    let faulty = FaultyStore::healthy(inner);
    let keys = faulty.keys().await;
    let (merger, _, archiver) = parts(&faulty.cold(0), 1);
    let cancelled = merger.merge(&path(), &inputs(&head), &|| true).await;
    assert!(matches!(cancelled, Err(MergeError::Input(ArchivedError::Aborted))));
    let _all = archiver.reserve_for_merge(Archiver::merge_bytes(&config())).unwrap();
    assert!(merger.merge(&path(), &inputs(&head), &|| false).await.unwrap().is_none());
    assert_eq!(faulty.keys().await, keys);
}

#[test]
fn limits_follow_the_topic() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (merger, _, _) = runtime.block_on(async { parts(&FaultyStore::healthy(Arc::default()).cold(0), 1) });
    let topic = |overrides: &[(&str, &str)]| {
        let overrides = overrides.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        TopicConfig::new(overrides, &LogConfig::default()).unwrap()
    };
    let unlimited = merger.limits(&topic(&[("retention.ms", "-1")]));
    assert_eq!((unlimited.log_bytes_max, unlimited.span_ms_max), (256 << 20, u64::MAX));
    // A quarter of 64 MiB, less six row groups of 4 KiB, three times.
    assert_eq!(unlimited.held_bytes_max, ((16 << 20) - (24 << 10)) / 3);
    let limited = merger.limits(&topic(&[("retention.ms", "8000"), ("retention.bytes", "80000")]));
    assert_eq!((limited.log_bytes_max, limited.span_ms_max), (10_000, 1000));
}
