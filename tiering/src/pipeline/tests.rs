use std::collections::HashSet;

use bytes::Bytes;
use object_store::memory::InMemory;
use proptest::prelude::*;
use thermocline_ingest::model::{Offset, Timestamp};
use thermocline_ingest::record::{BatchHeader, TransactionOutcome, encode_marker, into_transactional};

use super::*;
use crate::manifest::{ObjectRef, RAW_BATCHES_MAX};
use crate::testing::{
    Fault, FaultyStore, TestRecord, any_record, background_threads, batch, batches, manifest_store, metrics, path,
    some_records, stage_options, tiering_config, undecodable,
};

/// Decoded bytes at which a file is cut in these tests; the records are small.
const FILE_BYTES: usize = 14 << 10;

fn source(batches: &[Bytes]) -> BatchSource {
    let batches = batches.to_vec();
    Box::new(move || Ok(Box::new(batches.clone().into_iter().map(Ok)) as Batches))
}

fn job(batches: &[Bytes]) -> ArchiveJob {
    ArchiveJob { batches: source(batches), aborted: Vec::new(), options: stage_options(FILE_BYTES), prepared: None }
}

fn stage_all(batches: &[Bytes], from: i64, file_bytes_max: usize) -> Result<Vec<StagedArchive>, StageError> {
    let mut stager = Stager::new(source(batches), Vec::new(), Offset(from), stage_options(file_bytes_max), None);
    std::iter::from_fn(|| stager.next_file().transpose()).collect()
}

fn archiver(store: &ColdStore, epoch: u64) -> (Archiver, ManifestStore) {
    let manifests = manifest_store(store.clone(), epoch);
    (Archiver::new(store.clone(), manifests.clone(), background_threads(), &tiering_config(), metrics()), manifests)
}

async fn archive(store: &ColdStore, epoch: u64, batches: &[Bytes]) -> Result<ManifestHead, ArchiveError> {
    let (archiver, manifests) = archiver(store, epoch);
    let mut head = manifests.load(&path()).await?;
    archiver.archive_segment(job(batches), &mut head, &|_| {}).await?;
    Ok(head)
}

/// Everything the manifest names is there, and its files hold the segment once, in order.
async fn check(faulty: &FaultyStore, segment: &[Bytes]) -> Result<(), String> {
    let store = faulty.cold(0);
    let head = manifest_store(store.clone(), 1).load(&path()).await.map_err(|e| format!("{e:?}"))?;
    let stored: HashSet<_> = faulty.keys().await.into_iter().collect();
    let mut next = Offset::ZERO;
    for file in &head.manifest().files {
        assert_eq!(file.base_offset, next);
        next = file.last_offset.next();
        let covered = segment.iter().filter(|batch| {
            let header = BatchHeader::read(batch).unwrap();
            header.base_offset >= file.base_offset && header.last_offset() <= file.last_offset
        });
        let covered: Vec<_> = covered.cloned().collect();
        let again = stage_all(&covered, file.base_offset.0, usize::MAX).unwrap();
        assert_eq!(again[0].file().digest, file.digest, "the file holds these records of the log");
        assert_eq!(again[0].file().rows, file.rows);
    }
    for object in head.objects() {
        assert!(stored.contains(&object.key), "{} is named but not there", object.key);
        let bytes = store.get(&object.path()).await.unwrap();
        assert_eq!(ObjectRef::of(&object.path(), &bytes), *object);
    }
    let end = segment.last().map_or(Offset::ZERO, |batch| BatchHeader::read(batch).unwrap().next_offset());
    if next == end { Ok(()) } else { Err(format!("archived up to {next} of {end}")) }
}

fn segment() -> Vec<Bytes> {
    let mut segment = batches(0, &some_records(300), 50);
    // One that does not decode, so that there is a raw object.
    segment.push(undecodable(300, 10));
    segment
}

/// At its offset, as the broker puts it there.
fn placed(base: i64, batch: Bytes) -> Bytes {
    let mut batch = batch.to_vec();
    batch[..8].copy_from_slice(&base.to_be_bytes());
    batch.into()
}

fn marker(base: i64, producer: i64, outcome: TransactionOutcome) -> Bytes {
    placed(base, encode_marker(producer, 0, outcome, Timestamp(9)))
}

#[test]
fn what_is_not_committed_is_left_out_and_counted() {
    let data = |base, count| batch(base, &some_records(count));
    let segment = [
        into_transactional(data(0, 5), 7, 0),
        marker(5, 7, TransactionOutcome::Commit),
        into_transactional(data(6, 3), 8, 0),
        data(9, 3),
        marker(12, 8, TransactionOutcome::Abort),
    ];
    let (first_offset, last_offset, last_stable_offset) = (Offset(6), Offset(12), Offset(13));
    let aborted = vec![AbortedTransaction { first_offset, last_offset, producer_id: 8, last_stable_offset }];
    let stage = |batches: &[Bytes]| {
        let from = BatchHeader::read(&batches[0]).unwrap().base_offset;
        let mut stager = Stager::new(source(batches), aborted.clone(), from, stage_options(FILE_BYTES), None);
        let staged = stager.next_file().unwrap().unwrap();
        assert!(stager.next_file().unwrap().is_none());
        staged.file().clone()
    };
    let file = stage(&segment);
    assert_eq!((file.base_offset, file.last_offset, file.rows, file.dropped), (Offset(0), Offset(12), 8, 4));
    let raw = file.raw.as_ref().unwrap();
    let kept: Vec<_> = raw.batches.iter().map(|batch| (batch.base_offset.0, batch.last_offset.0)).collect();
    assert_eq!((kept, file.records()), (vec![(12, 12)], 9), "a reader comes to its end");

    let file = stage(&segment[2..3]);
    assert_eq!((file.base_offset, file.last_offset, file.rows, file.dropped), (Offset(6), Offset(8), 0, 3));
    assert!(file.raw.is_none() && file.min_timestamp <= file.max_timestamp);
    let file = stage(&segment[..4]);
    assert_eq!((file.rows, file.dropped, file.raw.is_some()), (8, 4, false));
}

#[tokio::test]
async fn a_segment_becomes_verified_files_in_order() {
    let faulty = FaultyStore::healthy(Arc::new(InMemory::new()));
    let store = faulty.cold(0);
    let (archiver, manifests) = archiver(&store, 1);
    let mut head = manifests.load(&path()).await.unwrap();
    let published = parking_lot::Mutex::new(Vec::new());
    let publish = |manifest: &Arc<Manifest>| published.lock().push(manifest.archived_through());
    let segment = segment();
    let committed = archiver.archive_segment(job(&segment), &mut head, &publish).await.unwrap();
    assert!(committed.files().len() >= 2, "{} files", committed.files().len());
    assert_eq!(head.manifest().version, committed.files().len() as u64);
    let ends: Vec<_> = committed.files().iter().map(|file| file.last_offset.next()).collect();
    assert_eq!(*published.lock(), ends);
    let log_bytes: u64 = committed.files().iter().map(|file| file.log_bytes).sum();
    assert_eq!(log_bytes, segment.iter().map(|batch| batch.len() as u64).sum::<u64>());
    let last = committed.files().last().unwrap();
    let raw = last.raw.as_ref().unwrap();
    assert_eq!(
        (raw.batches.len(), raw.batches[0].base_offset, raw.batches[0].last_offset),
        (1, Offset(300), Offset(309))
    );
    assert_eq!(store.get(&raw.object.path()).await.unwrap(), segment[6]);
    check(&faulty, &segment).await.unwrap();

    // Again: nothing to do, nothing done.
    let again = archiver.archive_segment(job(&segment), &mut head, &publish).await.unwrap();
    assert!(again.files().is_empty());
    assert_eq!(manifests.load(&path()).await.unwrap(), head);
}

/// The process dies at every single operation on the store, before and after its effect, and the work is done again
/// by a new one. And: the operation fails once, and the same process goes on.
#[tokio::test]
async fn every_crash_leaves_a_finished_commit_or_nothing() {
    let segment = segment();
    for fault in [Fault::Before, Fault::After] {
        for fail_at in 0.. {
            let inner = Arc::new(InMemory::new());
            let dying = FaultyStore::dying(inner.clone(), fail_at, fault);
            let died = archive(&dying.cold(0), 1, &segment).await;
            let healthy = FaultyStore::healthy(inner.clone());
            if died.is_err() {
                // Half-way: whatever is named must be whole.
                let _ = check(&healthy, &segment).await;
            }
            let head = archive(&healthy.cold(0), 2, &segment).await.unwrap();
            check(&healthy, &segment).await.unwrap_or_else(|e| panic!("{fault:?} {fail_at}: {e}"));
            assert!(head.manifest().files.len() >= 2);
            let rerun = archive(&healthy.cold(0), 3, &segment).await.unwrap();
            assert_eq!(rerun.manifest().files, head.manifest().files, "archived once");

            let inner = Arc::new(InMemory::new());
            let stumbling = FaultyStore::stumbling(inner.clone(), fail_at, fault);
            if archive(&stumbling.cold(0), 1, &segment).await.is_err() {
                archive(&stumbling.cold(0), 1, &segment).await.unwrap();
            }
            check(&FaultyStore::healthy(inner), &segment)
                .await
                .unwrap_or_else(|e| panic!("{fault:?} {fail_at} once: {e}"));
            if !dying.has_failed() {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_broker_that_was_replaced_commits_nothing() {
    let faulty = FaultyStore::healthy(Arc::new(InMemory::new()));
    let store = faulty.cold(0);
    let segment = segment();
    let (old, old_manifests) = archiver(&store, 1);
    let mut old_head = old_manifests.load(&path()).await.unwrap();
    let head = archive(&store, 2, &segment).await.unwrap();
    let fenced = old.archive_segment(job(&segment), &mut old_head, &|_| {}).await.unwrap_err();
    assert!(matches!(fenced, ArchiveError::Commit(ManifestError::Fenced { epoch: 2, own_epoch: 1, .. })), "{fenced}");
    assert_eq!(old_manifests.load(&path()).await.unwrap(), head);
}

#[test]
fn a_segment_with_a_hole_is_refused() {
    let mut holey = batches(0, &some_records(300), 100);
    holey.remove(1);
    assert!(matches!(stage_all(&holey, 0, FILE_BYTES), Err(StageError::Hole { .. })));
    assert!(matches!(stage_all(&holey[1..], 0, FILE_BYTES), Err(StageError::Hole { .. })));
    assert!(stage_all(&[], 0, FILE_BYTES).unwrap().is_empty());
}

#[test]
fn a_log_start_within_a_batch_takes_the_whole_batch() {
    let staged = stage_all(&batches(0, &some_records(300), 100), 150, usize::MAX).unwrap();
    assert_eq!((staged[0].file().base_offset, staged[0].file().last_offset), (Offset(100), Offset(299)));
}

#[test]
fn undecodable_batches_are_kept_as_they_are() {
    let mut segment = batches(0, &some_records(100), 10);
    segment[3] = undecodable(30, 10);
    segment[9] = undecodable(90, 10);
    let staged = stage_all(&segment, 0, usize::MAX).unwrap();
    let file = staged[0].file();
    let raw = file.raw.as_ref().unwrap();
    assert_eq!((file.rows, raw.batches.len()), (80, 2));
    let (_, bytes) = staged[0].objects().iter().find(|(key, _)| key.as_ref() == raw.object.key).unwrap();
    for (kept, batch) in raw.batches.iter().zip([&segment[3], &segment[9]]) {
        let range = kept.position as usize..(kept.position + kept.size_bytes) as usize;
        assert_eq!(bytes.slice(range), batch);
        assert!(!kept.reason.is_empty());
    }
    // A file of nothing else still covers its offsets.
    let only = stage_all(&[undecodable(0, 10)], 0, usize::MAX).unwrap();
    assert_eq!((only[0].file().rows, only[0].file().last_offset), (0, Offset(9)));
}

#[test]
fn a_file_keeps_so_many_batches_raw_and_is_cut() {
    let count = 2 * RAW_BATCHES_MAX + 1;
    let segment: Vec<_> = (0..).map(|base| undecodable(base, 1)).take(count).collect();
    let staged = stage_all(&segment, 0, usize::MAX).unwrap();
    let kept: Vec<_> = staged.iter().map(|staged| staged.file().raw_batches()).collect();
    assert_eq!(kept, [RAW_BATCHES_MAX, RAW_BATCHES_MAX, 1]);
    let bases: Vec<_> = staged.iter().map(|staged| staged.file().base_offset.0).collect();
    assert_eq!(bases, [0, RAW_BATCHES_MAX as i64, 2 * RAW_BATCHES_MAX as i64]);
}

/// A timestamp beyond microseconds in the middle of a batch: the records before it must not be in the file twice.
#[test]
fn timestamps_that_do_not_fit_make_their_batch_raw() {
    for at in [0, 4, 9] {
        let mut unfit = some_records(10);
        unfit[at].0 = i64::MAX - 5;
        let mut segment = batches(0, &some_records(60), 10);
        segment[2] = batch(20, &unfit);
        segment[4] = batch(40, &unfit);
        for file_bytes_max in [1, usize::MAX] {
            let staged = stage_all(&segment, 0, file_bytes_max).unwrap();
            let raw: Vec<_> = staged
                .iter()
                .filter_map(|staged| staged.file().raw.as_ref())
                .flat_map(|raw| raw.batches.iter().map(|batch| batch.base_offset))
                .collect();
            assert_eq!(raw, [Offset(20), Offset(40)]);
            assert_eq!(staged.iter().map(|staged| staged.file().rows).sum::<u64>(), 40);
            assert_eq!(staged[0].file().base_offset, Offset::ZERO);
            assert_eq!(staged.last().unwrap().file().last_offset, Offset(59));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// However the segment is cut and wherever staging starts, the files cover it once, in order.
    #[test]
    fn files_cover_the_segment(
        records in prop::collection::vec(any_record(), 1..300), size in 1..40_usize,
        file_bytes in 1..20_000_usize, start in 0..10_usize,
    ) {
        let records: Vec<TestRecord> = records;
        let segment = batches(0, &records, size);
        let from = (start * size).min(records.len() - 1) / size * size;
        let staged = stage_all(&segment, from as i64, file_bytes).unwrap();
        let mut next = Offset(from as i64);
        for staged in &staged {
            let file = staged.file();
            prop_assert_eq!(file.base_offset, next);
            prop_assert_eq!(file.rows, file.base_offset.distance_to(file.last_offset.next()));
            next = file.last_offset.next();
            let times = records[file.base_offset.0 as usize..next.0 as usize].iter().map(|record| record.0);
            prop_assert_eq!(file.min_timestamp, Timestamp(times.clone().min().unwrap()));
            prop_assert_eq!(file.max_timestamp, Timestamp(times.max().unwrap()));
        }
        prop_assert_eq!(next, Offset(records.len() as i64));
    }
}

#[test]
fn the_memory_of_a_job_stays_below_the_budget() {
    let config = tiering_config();
    assert!(Archiver::file_bytes_max(&config) * 2 < config.memory_max.as_usize());
}
