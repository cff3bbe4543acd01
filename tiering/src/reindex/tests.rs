use object_store::memory::InMemory;
use object_store::{ObjectStoreExt, PutPayload};
use tantivy::Term;
use tantivy::collector::Count;
use tantivy::query::TermQuery;
use tantivy::schema::IndexRecordOption;
use thermocline_config::{ByteSize, LogConfig, TopicConfig};

use super::*;
use crate::pipeline::{ArchiveJob, Batches, StageOptions};
use crate::split::Analyser;
use crate::testing::{
    Fault, FaultyStore, background_threads, batches, manifest_store, metrics, path, some_records, stage_options,
    tiering_config, undecodable,
};

const TEXT: SplitOptions = SplitOptions { json: false, fast: false, ..SplitOptions::DEFAULT };
const LOG: SplitOptions = SplitOptions { analyser: Analyser::Log, ..SplitOptions::DEFAULT };
const RECORDS: usize = 90;

fn config() -> TieringConfig {
    TieringConfig { row_group_bytes: ByteSize::kib(4), page_bytes: ByteSize::bytes(512), ..tiering_config() }
}

fn parts(store: &ColdStore, epoch: u64) -> (Reindexer, ManifestStore, Archiver) {
    let config = config();
    let manifests = manifest_store(store.clone(), epoch);
    let archiver = Archiver::new(store.clone(), manifests.clone(), background_threads(), &config, metrics());
    let parts = ReindexerParts {
        archiver: archiver.clone(),
        manifests: manifests.clone(),
        store: store.clone(),
        background: background_threads(),
        workers: Arc::new(Semaphore::new(1)),
        metrics: metrics(),
    };
    (Reindexer::new(parts, &config), manifests, archiver)
}

/// An archive of one file that keeps a batch raw.
async fn archive(inner: &Arc<InMemory>, split: Option<SplitOptions>) -> ManifestHead {
    let store = FaultyStore::healthy(inner.clone()).cold(0);
    let (_, manifests, archiver) = parts(&store, 1);
    let mut head = manifests.load(&path()).await.unwrap();
    let mut segment = batches(0, &some_records(RECORDS), 30);
    segment.push(undecodable(RECORDS as i64, 3));
    let batches = Box::new(move || Ok(Box::new(segment.clone().into_iter().map(Ok)) as Batches));
    let options = StageOptions { split, ..stage_options(usize::MAX) };
    archiver
        .archive_segment(ArchiveJob { batches, aborted: Vec::new(), options, prepared: None }, &mut head, &|_| {})
        .await
        .unwrap();
    head
}

async fn reindex_first(
    store: &ColdStore,
    epoch: u64,
    wanted: Option<SplitOptions>,
) -> Result<ManifestHead, ReindexError> {
    let (reindexer, manifests, _) = parts(store, epoch);
    let mut head = manifests.load(&path()).await.map_err(ReindexError::Commit)?;
    let file = head.manifest().files[0].clone();
    let made = reindexer.reindex(&path(), &file, wanted, &|| false).await?.expect("there is memory");
    reindexer.commit(made, &mut head).await?;
    Ok(head)
}

async fn split_of(store: &ColdStore, file: &DataFile) -> SplitReader {
    let bytes = store.get(&file.split.as_ref().unwrap().path()).await.unwrap();
    SplitReader::open(Arc::new(OwnedBytes::new(Vec::from(bytes)))).unwrap()
}

fn matches(split: &SplitReader, word: &str) -> usize {
    let term = Term::from_field_text(split.fields.value, word);
    split.searcher.search(&TermQuery::new(term, IndexRecordOption::Basic), &Count).unwrap()
}

#[tokio::test]
async fn a_file_gets_the_index_that_is_asked_for() {
    for before in [None, Some(TEXT), Some(SplitOptions::DEFAULT)] {
        for wanted in [None, Some(LOG), Some(TEXT)].into_iter().filter(|wanted| *wanted != before) {
            let inner = Arc::new(InMemory::new());
            let was = archive(&inner, before).await.manifest().files[0].clone();
            assert_eq!((was.indexed, outdated(&was, before), outdated(&was, wanted)), (before, false, true));
            let store = FaultyStore::healthy(inner).cold(0);
            let head = reindex_first(&store, 1, wanted).await.unwrap();
            let file = head.manifest().files[0].clone();
            assert!(!outdated(&file, wanted));
            let other = DataFile { split: was.split.clone(), indexed: was.indexed, ..DataFile::clone(&file) };
            assert_eq!(other, *was, "nothing else changes");
            assert_eq!(manifest_store(store.clone(), 1).load(&path()).await.unwrap(), head);
            assert_eq!(head.retired().len(), usize::from(before.is_some()));
            if wanted.is_some() {
                let split = split_of(&store, &file).await;
                assert_eq!((Some(split.fields.options()), split.docs()), (wanted, RECORDS as u64));
                assert_eq!(matches(&split, "event"), RECORDS - RECORDS.div_ceil(11));
                assert_eq!(matches(&split, "41"), 1);
            }
        }
    }
}

#[test]
fn what_says_nothing_of_its_index_is_outdated() {
    let inner = Arc::new(InMemory::new());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let file = runtime.block_on(archive(&inner, Some(TEXT))).manifest().files[0].clone();
    let old = DataFile { indexed: None, ..DataFile::clone(&file) };
    assert!(outdated(&old, Some(TEXT)) && outdated(&old, None) && !outdated(&file, Some(TEXT)));
}

/// The process dies at every single operation on the store, before and after its effect, and the work is done again by
/// a new one.
#[tokio::test]
async fn every_crash_leaves_one_split_or_the_other() {
    let origin = Arc::new(InMemory::new());
    let before = archive(&origin, Some(TEXT)).await;
    for fault in [Fault::Before, Fault::After] {
        for fail_at in 0.. {
            let inner = Arc::new(origin.fork());
            let dying = FaultyStore::dying(inner.clone(), fail_at, fault);
            let died = reindex_first(&dying.cold(0), 2, Some(LOG)).await;
            assert_eq!(died.is_err(), dying.has_failed());
            let store = FaultyStore::healthy(inner).cold(0);
            let found = manifest_store(store.clone(), 3).load(&path()).await.unwrap();
            let file = found.manifest().files[0].clone();
            assert_eq!(split_of(&store, &file).await.fields.options(), file.indexed.unwrap(), "{fault:?} {fail_at}");
            if outdated(&file, Some(LOG)) {
                assert_eq!(found.manifest().files, before.manifest().files);
                let again = reindex_first(&store, 3, Some(LOG)).await.unwrap();
                assert!(!outdated(&again.manifest().files[0], Some(LOG)));
            }
            if !dying.has_failed() {
                break;
            }
        }
    }
}

#[tokio::test]
async fn damage_is_never_indexed() {
    let origin = Arc::new(InMemory::new());
    let before = archive(&origin, Some(TEXT)).await;
    let data = before.manifest().files[0].data.clone();
    let good = FaultyStore::healthy(origin.clone()).cold(0).get(&data.path()).await.unwrap();
    for at in (0..good.len()).step_by(good.len() / 40 + 1) {
        let inner = Arc::new(origin.fork());
        let mut bad = good.to_vec();
        bad[at] ^= 0x10;
        inner.put(&data.path(), PutPayload::from(bad)).await.unwrap();
        match reindex_first(&FaultyStore::healthy(inner).cold(0), 1, Some(LOG)).await {
            // Or bytes of Parquet that carry no record: the records are as they were archived.
            Err(ReindexError::Input(ArchivedError::Damaged { .. })) | Ok(_) => {}
            Err(other) => panic!("byte {at}: {other:?}"),
        }
    }
    let inner = Arc::new(origin.fork());
    inner.delete(&data.path()).await.unwrap();
    let missing = reindex_first(&FaultyStore::healthy(inner).cold(0), 1, Some(LOG)).await.unwrap_err();
    let is_missing = |key: &str, source: &Damage| key == data.key && matches!(source, Damage::Missing);
    assert!(matches!(&missing, ReindexError::Input(ArchivedError::Damaged { key, source }) if is_missing(key, source)));
}

#[tokio::test]
async fn what_came_first_wins() {
    let origin = Arc::new(InMemory::new());
    archive(&origin, Some(TEXT)).await;

    // Another broker takes over meanwhile.
    let store = FaultyStore::healthy(Arc::new(origin.fork())).cold(0);
    let (reindexer, manifests, _) = parts(&store, 1);
    let mut head = manifests.load(&path()).await.unwrap();
    let file = head.manifest().files[0].clone();
    let made = reindexer.reindex(&path(), &file, Some(LOG), &|| false).await.unwrap().unwrap();
    let theirs = reindex_first(&store, 2, None).await.unwrap();
    let fenced = reindexer.commit(made, &mut head).await.unwrap_err();
    assert!(matches!(fenced, ReindexError::Commit(ManifestError::Fenced { .. })), "{fenced}");
    assert_eq!(manifests.load(&path()).await.unwrap(), theirs);

    // The file is another one meanwhile, or the collection of orphans comes by.
    for is_collected in [false, true] {
        let inner = Arc::new(origin.fork());
        let store = FaultyStore::healthy(inner.clone()).cold(0);
        let (reindexer, manifests, _) = parts(&store, 1);
        let mut head = manifests.load(&path()).await.unwrap();
        let made = reindexer.reindex(&path(), &file, Some(LOG), &|| false).await.unwrap().unwrap();
        if is_collected {
            inner.delete(&made.split.as_ref().unwrap().path()).await.unwrap();
            assert!(matches!(reindexer.commit(made, &mut head).await, Err(ReindexError::Collected { .. })));
        } else {
            let mut other = reindex_first(&store, 1, None).await.unwrap();
            assert!(matches!(reindexer.commit(made, &mut other).await, Err(ReindexError::Overtaken)));
        }
    }
}

#[tokio::test]
async fn what_is_cancelled_or_has_no_memory_leaves_nothing_behind() {
    let inner = Arc::new(InMemory::new());
    let head = archive(&inner, None).await;
    let file = head.manifest().files[0].clone();
    let faulty = FaultyStore::healthy(inner);
    let keys = faulty.keys().await;
    let (reindexer, _, archiver) = parts(&faulty.cold(0), 1);
    let cancelled = reindexer.reindex(&path(), &file, Some(LOG), &|| true).await;
    assert!(matches!(cancelled, Err(ReindexError::Input(ArchivedError::Aborted))));
    let some = archiver.reserve_for_merge(1).unwrap();
    assert!(reindexer.reindex(&path(), &file, Some(LOG), &|| false).await.unwrap().is_none());
    drop(some);
    assert!(reindexer.reindex(&path(), &file, None, &|| false).await.unwrap().is_some());
    assert_eq!(faulty.keys().await, keys);
}

/// An index that is packaged in parts finds what one that was made at once finds.
#[tokio::test]
async fn a_large_index_is_made_in_parts() {
    let inner = Arc::new(InMemory::new());
    let head = archive(&inner, None).await;
    let file = head.manifest().files[0].clone();
    let store = FaultyStore::healthy(inner).cold(0);
    let (reindexer, ..) = parts(&store, 1);
    let small = |parts: &mut Parts| parts.package_if_large(0, u64::MAX, "key");
    let parts = || Parts { options: LOG, writer: Some(SplitWriter::new(LOG).unwrap()), packaged: Vec::new() };
    let made =
        reindexer.reader.fold(&file, parts(), |parts, record| parts.add(record), small, &|| false).await.unwrap();
    assert!(made.packaged.len() > 1, "one per row group");
    let split =
        SplitReader::open(Arc::new(OwnedBytes::new(made.finish(90, "key", u64::MAX).unwrap().to_vec()))).unwrap();
    assert_eq!((split.docs(), split.fields.options()), (90, LOG));
    assert_eq!(matches(&split, "event"), RECORDS - RECORDS.div_ceil(11));
    let offsets = split.searcher.segment_reader(0).fast_fields().i64("offset").unwrap();
    assert!((0..90).all(|doc| offsets.first(doc) == Some(i64::from(doc))));

    let none = |parts: &mut Parts| parts.package_if_large(0, 1000, "key");
    let failed = reindexer.reader.fold(&file, parts(), |parts, record| parts.add(record), none, &|| false).await;
    assert!(matches!(failed, Err(ReindexError::Memory { .. })));
}

#[test]
fn topics_say_how_they_are_indexed() {
    let of = |overrides: &[(&str, &str)]| {
        let overrides = overrides.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        SplitOptions::of_topic(&TopicConfig::new(overrides, &LogConfig::default()).unwrap())
    };
    assert_eq!(of(&[]), Some(SplitOptions::DEFAULT));
    assert_eq!(of(&[("search.index", "off")]), None);
    assert_eq!(of(&[("search.tokenizer", "log")]), Some(LOG));
    assert_eq!(of(&[("search.index", "text"), ("search.fast", "false")]), Some(TEXT));
    // What a schema cannot say is not asked for: it would be missing forever.
    let value = SplitOptions { json: false, key: false, headers: false, fast: false, ..SplitOptions::DEFAULT };
    assert_eq!(of(&[("search.fields", "value")]), Some(value));
}
