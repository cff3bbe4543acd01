use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::AtomicBool;

use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStoreExt, PutPayload};
use thermocline_config::{ByteSize, CacheConfig, LogConfig, TieringConfig};
use thermocline_ingest::clock::{Clock, SystemClock};
use thermocline_ingest::log::{HotLog, Partition};
use thermocline_ingest::metadata::MetadataStore;
use thermocline_ingest::metrics::IngestMetrics;
use thermocline_ingest::model::{Offset, PartitionId, Timestamp, TopicName};
use thermocline_ingest::read::{LogReader, ReadRange};
use thermocline_ingest::record::{BatchDecoder, BatchError, Record, split_batches};
use thermocline_ingest::topics::{Topic, Topics};

use super::*;
use crate::manifest::ObjectRef;
use crate::reader::TieredReader;
use crate::testing::{FaultyStore, TestRecord, batch, metrics, some_records};
use crate::worker::TieringOptions;

/// Records of one file.
const RECORDS: usize = 30;

struct Broker {
    topic: Arc<Topic>,
    tiering: Arc<Tiering>,
    inner: Arc<InMemory>,
    log: Arc<HotLog>,
    _folder: tempfile::TempDir,
}

impl Broker {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let config = LogConfig::default();
        let ingest = Arc::new(IngestMetrics::new(&prometheus::Registry::new()).unwrap());
        let log = HotLog::open(folder.path().join("log"), config.clone(), clock.clone(), ingest).unwrap();
        let store = Arc::new(MetadataStore::open(&folder.path().join("metadata.redb")).unwrap());
        let topics = Arc::new(Topics::open(store, log.clone(), config).unwrap());
        let topic = topics.create(&TopicName::new("orders").unwrap(), 1, BTreeMap::new()).unwrap();
        let inner = Arc::new(InMemory::new());
        let tiering = Tiering::open(TieringOptions {
            config: TieringConfig {
                row_group_bytes: ByteSize::kib(4),
                page_bytes: ByteSize::bytes(512),
                ..TieringConfig::default()
            },
            cache: cache(),
            store: FaultyStore::healthy(inner.clone()).cold(0),
            topics,
            clock,
            metrics: metrics(),
            produce_latency: Arc::default(),
            broker_epoch: 1,
        });
        let tiering = tiering.await.unwrap();
        Self { topic, tiering, inner, log, _folder: folder }
    }

    fn partition(&self) -> &Arc<Partition> {
        self.topic.partition(PartitionId(0)).unwrap()
    }

    fn archive(&self) -> Arc<PartitionArchive> {
        self.tiering.archive_of(self.partition())
    }

    fn files(&self) -> Vec<Arc<DataFile>> {
        self.tiering.manifest(self.partition()).files.iter().cloned().collect()
    }

    /// Archives `count` files of the same records, and drops the local copies.
    async fn files_of_one_size(&self, count: usize) {
        for _ in 0..count {
            let (log, bytes) = (self.partition().clone(), batch(0, &some_records(RECORDS)));
            tokio::task::spawn_blocking(move || log.append(&bytes)).await.unwrap().unwrap();
            self.partition().committed(self.partition().log_end_offset()).await.unwrap();
            self.tiering.archive_now(&self.topic, true).await.unwrap();
        }
    }

    async fn merge(&self) -> Result<Step, MergeError> {
        merge_next(&self.tiering, &self.archive()).await
    }

    /// What a janitor would do that has no patience at all.
    async fn delete_retired(&self, before: &[Arc<DataFile>]) {
        let files = self.files();
        let named: HashSet<&str> = files.iter().flat_map(|file| file.objects()).map(|object| &*object.key).collect();
        for object in before.iter().flat_map(|file| file.objects()).filter(|object| !named.contains(&*object.key)) {
            self.inner.delete(&object.path()).await.unwrap();
        }
    }

    async fn stop(self) {
        let log = self.log.clone();
        tokio::task::spawn_blocking(move || log.close()).await.unwrap().unwrap();
    }
}

/// So small that nearly every read goes to the store.
fn cache() -> CacheConfig {
    let bytes = ByteSize::bytes(1);
    CacheConfig { batches_max_bytes: bytes, blocks_max_bytes: bytes, ..CacheConfig::default() }
}

fn expected(offset: Offset) -> TestRecord {
    some_records(RECORDS).swap_remove(offset.0 as usize % RECORDS)
}

fn check(record: &Record<'_>) {
    let (time, key, value, headers) = expected(record.offset);
    assert_eq!((record.timestamp, record.key, record.value), (Timestamp(time), key.as_deref(), value.as_deref()));
    assert_eq!(record.headers.len(), headers.len());
}

/// A consumer: every record of the range once, in order.
async fn consume(reader: &TieredReader, partition: &Arc<Partition>, range: Range<Offset>) {
    let mut at = range.start;
    while at < range.end {
        let wanted = ReadRange { from: at, until: range.end, max_bytes: 4000, at_least_one: true };
        let run = reader.read(partition, wanted).await.unwrap();
        for batch in run.chunks.into_iter().flat_map(split_batches) {
            let read = |record: Record<'_>| -> Result<(), BatchError> {
                // A batch may begin before what was asked for.
                if record.offset >= at {
                    assert_eq!(record.offset, at);
                    check(&record);
                    at = at.next();
                }
                Ok(())
            };
            BatchDecoder::new(1 << 20).for_each(&batch.unwrap(), read).unwrap();
        }
    }
    assert_eq!(at, range.end);
}

/// Searches fetch single records, and offsets are looked up by time.
async fn look_up(reader: &TieredReader, partition: &Arc<Partition>, range: Range<Offset>) {
    let offsets: Vec<Offset> = (range.start.0..range.end.0).step_by(7).map(Offset).collect();
    let records = reader.records(partition, &offsets, usize::MAX).await.unwrap().records;
    for (record, offset) in records.into_iter().zip(offsets) {
        let record = record.unwrap_or_else(|| panic!("no record at {offset}"));
        let (time, _, value, _) = expected(offset);
        assert_eq!((record.offset, record.timestamp), (offset, Timestamp(time)));
        assert_eq!(record.value.as_deref(), value.as_deref());
    }
    // Each file has the same times: the first of them, and the last of the first file.
    for at in [0, 13, RECORDS - 1] {
        let time = Timestamp(expected(Offset(at as i64)).0);
        let found = reader.offset_for_timestamp(partition, time).await.unwrap().unwrap();
        assert_eq!((found.offset, found.timestamp), (Offset(at as i64), time));
    }
    let latest = reader.max_timestamp(partition).await.unwrap().unwrap();
    assert_eq!(latest.offset, Offset(RECORDS as i64 - 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_notice_nothing() {
    let broker = Broker::start().await;
    broker.files_of_one_size(8).await;
    let end = broker.partition().high_watermark();
    let done = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..4)
        .map(|n| {
            let reader = TieredReader::new(broker.tiering.clone(), &cache());
            let (partition, done) = (broker.partition().clone(), done.clone());
            tokio::spawn(async move {
                let mut rounds = 0;
                while !done.load(Ordering::SeqCst) {
                    match n % 2 {
                        0 => consume(&reader, &partition, Offset::ZERO..end).await,
                        _ => look_up(&reader, &partition, Offset::ZERO..end).await,
                    }
                    rounds += 1;
                }
                rounds
            })
        })
        .collect();
    for round in 0..10 {
        let before = broker.files();
        assert_eq!(broker.merge().await.unwrap(), Step::Merged, "round {round}");
        broker.delete_retired(&before).await;
        assert_eq!(broker.merge().await.unwrap(), Step::AtRest);
        broker.files_of_one_size(8).await;
    }
    done.store(true, Ordering::SeqCst);
    for reader in readers {
        assert!(reader.await.unwrap() > 0);
    }
    let reader = TieredReader::new(broker.tiering.clone(), &cache());
    consume(&reader, broker.partition(), Offset::ZERO..broker.partition().high_watermark()).await;
    look_up(&reader, broker.partition(), Offset::ZERO..broker.partition().high_watermark()).await;
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_is_left_alone_and_the_rest_is_merged() {
    let broker = Broker::start().await;
    broker.files_of_one_size(20).await;
    let before = broker.files();
    let bad: &ObjectRef = &before[3].data;
    let mut bytes = broker.inner.get(&bad.path()).await.unwrap().bytes().await.unwrap().to_vec();
    for byte in &mut bytes[100..200] {
        *byte ^= 0xff;
    }
    broker.inner.put(&ObjectPath::from(bad.key.as_str()), PutPayload::from(bytes)).await.unwrap();

    let error = broker.merge().await.unwrap_err();
    assert!(matches!(&error, MergeError::Input(ArchivedError::Damaged { key, .. }) if *key == bad.key), "{error}");
    assert_eq!(broker.files(), before);
    assert_eq!(broker.merge().await.unwrap(), Step::Merged);
    assert_eq!(broker.files()[..4], before[..4]);
    assert_eq!(broker.files()[4].last_offset, before[11].last_offset);
    assert_eq!(broker.merge().await.unwrap(), Step::Merged);
    assert_eq!(broker.merge().await.unwrap(), Step::AtRest);
    assert_eq!(broker.files().len(), 6);
    broker.stop().await;
}

/// Whoever archives holds the head lock and may wait for a worker and for memory: a merge holds neither while it waits
/// for that lock, and everything before its commit goes on without it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_merge_and_an_archive_job_do_not_wait_for_each_other() {
    let broker = Broker::start().await;
    broker.files_of_one_size(8).await;
    let archive = broker.archive();
    let (guard, head) = archive.acquire(&broker.tiering.manifests).await.unwrap();
    let (tiering, merging) = (broker.tiering.clone(), archive.clone());
    let merge = tokio::spawn(async move { merge_next(&tiering, &merging).await });
    // The merged file is there before the lock is free, and no worker is held.
    let store = FaultyStore::healthy(broker.inner.clone());
    let stored = store.keys().await.len();
    while store.keys().await.len() < stored + 2 || broker.tiering.workers.available_permits() == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(broker.files().len(), 8);
    archive.release(guard, head);
    assert_eq!(merge.await.unwrap().unwrap(), Step::Merged);
    assert_eq!(broker.files().len(), 1);
    broker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_in_which_the_log_start_lies_is_left_alone() {
    let broker = Broker::start().await;
    broker.files_of_one_size(9).await;
    let before = broker.files();
    broker.tiering.raise_log_start(broker.partition(), Offset(10)).await.unwrap();
    assert_eq!(broker.merge().await.unwrap(), Step::Merged);
    assert_eq!(broker.files()[0], before[0]);
    assert_eq!((broker.files().len(), broker.files()[1].base_offset), (2, before[1].base_offset));
    // The removal of the topic waits for what is under way, and nothing begins after it.
    broker.archive().close().await;
    assert!(due(&broker.tiering, &HashMap::new()).is_empty());
    broker.stop().await;
}

#[tokio::test]
async fn a_broker_that_was_replaced_merges_nothing() {
    let broker = Broker::start().await;
    broker.files_of_one_size(8).await;
    assert_eq!(due(&broker.tiering, &HashMap::new()).len(), 1);
    broker.tiering.manifests.fence("topics".to_owned(), 2);
    assert!(due(&broker.tiering, &HashMap::new()).is_empty());
    broker.stop().await;
}
