//! The broker of these tests, and what must always hold.

use std::collections::{BTreeMap, HashSet};

use futures::future::BoxFuture;
use object_store::path::Path as ObjectPath;
use parquet::arrow::arrow_reader::ParquetRecordBatchReader;
use tantivy::directory::OwnedBytes;
use thermocline_config::{ByteSize, CacheConfig, LogConfig};
use thermocline_ingest::clock::{ManualClock, SystemClock};
use thermocline_ingest::log::HotLog;
use thermocline_ingest::metadata::MetadataStore;
use thermocline_ingest::metrics::IngestMetrics;
use thermocline_ingest::read::{LogReader, ReadRange};
use thermocline_ingest::record::{BatchDecoder, BatchError, BatchHeader, split_batches};

use super::super::*;
use crate::janitor::Seen;
use crate::manifest::ObjectRef;
use crate::reader::TieredReader;
use crate::reindex::outdated;
use crate::split::SplitReader;
use crate::testing::chaos::ChaosStore;
use crate::testing::{TestRecord, batch, store_config, undecodable};
use crate::verify::ContentDigest;

const TOPIC: &str = "orders";
/// Records of one batch.
const BATCH_RECORDS: usize = 20;
/// Less than an index writer takes when it is new: every batch becomes a file.
const FILE_BYTES: u64 = 3 << 10;
/// Bytes asked for at once: a partition takes several reads.
const READ_BYTES: usize = 8 << 10;
const ORPHAN_AGE_MS: i64 = 3_600_000;
/// Attempts at something that must work once the store is well.
const ATTEMPTS: usize = 3;

/// What `search.index` and `search.tokenizer` may become.
pub const SETTINGS: [[&str; 2]; 3] = [["json", "default"], ["json", "log"], ["off", "default"]];

/// A record as the model remembers it; `None` in the place of one that was sent undecodable.
type Acked = Option<TestRecord>;

#[derive(Clone, Debug)]
pub enum Step {
    Produce(Vec<TestRecord>),
    /// A batch that no decoder can open.
    ProduceUndecodable(usize),
    Archive {
        trim: bool,
    },
    /// One segment, as the background does it.
    ArchiveOne,
    /// To a share of the log, in percent.
    DeleteRecords(i64),
    Expire,
    Sweep,
    /// The next files that are worth it, if any.
    Merge,
    /// To one of [`SETTINGS`].
    Alter(usize),
    /// The next file that is not indexed as the topic asks for, if any.
    Reindex,
    /// So many minutes.
    Wait(i64),
    Restart,
}

/// A partition, its store, and a model of what was acknowledged.
pub struct World {
    pub store: ChaosStore,
    clock: Arc<ManualClock>,
    dir: tempfile::TempDir,
    acked: Vec<Acked>,
    epoch: u64,
    broker: Option<Broker>,
}

/// What dies with the process.
pub struct Broker {
    topic: Arc<Topic>,
    tiering: Arc<Tiering>,
    reader: TieredReader,
    _log: Arc<HotLog>,
}

impl Broker {
    pub fn tiering(&self) -> &Tiering {
        &self.tiering
    }
}

impl World {
    pub fn new(seed: u64) -> Self {
        Self {
            store: ChaosStore::new(seed),
            // The store dates its objects by the machine's clock.
            clock: Arc::new(ManualClock::at(SystemClock.now())),
            dir: tempfile::tempdir().unwrap(),
            acked: Vec::new(),
            epoch: 0,
            broker: None,
        }
    }

    pub fn broker(&self) -> &Broker {
        self.broker.as_ref().unwrap()
    }

    pub fn partition(&self) -> &Arc<Partition> {
        &self.broker().topic.partitions[0]
    }

    /// On what disk and store hold. The store must be well.
    pub async fn start(&mut self) {
        // Whoever held the lock of the log's folder must be gone.
        self.broker = None;
        self.epoch += 1;
        let registry = prometheus::Registry::new();
        let metrics = Arc::new(IngestMetrics::new(&registry).unwrap());
        let config = LogConfig { disk_reserve: ByteSize::bytes(0), ..LogConfig::default() };
        let log = HotLog::open(self.dir.path().join("log"), config.clone(), self.clock.clone(), metrics).unwrap();
        let metadata = Arc::new(MetadataStore::open(&self.dir.path().join("metadata.redb")).unwrap());
        let topics = Arc::new(Topics::open(metadata, log.clone(), config).unwrap());
        let topic = match topics.get(TOPIC) {
            Some(topic) => topic,
            None => {
                // Any time goes.
                let settings = [("message.timestamp.after.max.ms".to_owned(), i64::MAX.to_string())];
                topics.create(&TopicName::new(TOPIC).unwrap(), 1, BTreeMap::from(settings)).unwrap()
            }
        };
        let options = TieringOptions {
            config: TieringConfig {
                data_file_bytes: ByteSize::bytes(FILE_BYTES),
                row_group_bytes: ByteSize::kib(2),
                page_bytes: ByteSize::bytes(512),
                memory_max: ByteSize::mib(64),
                ..TieringConfig::default()
            },
            cache: CacheConfig::default(),
            store: ColdStore::new(Arc::new(self.store.clone()), &store_config(0)),
            topics,
            clock: self.clock.clone(),
            metrics: Arc::new(TieringMetrics::new(&registry).unwrap()),
            produce_latency: Arc::default(),
            broker_epoch: self.epoch,
        };
        let tiering = Tiering::open(options).await.unwrap();
        let reader = TieredReader::new(tiering.clone(), &CacheConfig::default());
        self.broker = Some(Broker { topic, tiering, reader, _log: log });
    }

    async fn produce(&mut self, batch: bytes::Bytes, records: Vec<Acked>) {
        let partition = self.partition().clone();
        let appended = partition.append(&batch).unwrap();
        partition.committed(appended.last_offset.next()).await.unwrap();
        assert_eq!(appended.last_offset.next().0 as usize, self.acked.len() + records.len());
        self.acked.extend(records);
    }

    /// What of it fails must leave everything as it can be read.
    pub async fn take(&mut self, step: &Step) {
        match step {
            Step::Produce(records) => {
                for records in records.chunks(BATCH_RECORDS) {
                    self.produce(batch(0, records), records.iter().cloned().map(Some).collect()).await;
                }
            }
            Step::ProduceUndecodable(count) => self.produce(undecodable(0, *count), vec![None; *count]).await,
            Step::Archive { trim } => {
                let broker = self.broker();
                let _ = broker.tiering.archive_now(&broker.topic, *trim).await;
            }
            Step::ArchiveOne => {
                let broker = self.broker();
                self.partition().seal().unwrap();
                let archive = broker.tiering.archive_of(self.partition());
                let _ = broker.tiering.archive_sealed(&archive, 1, &mut ArchiveReport::default()).await;
            }
            Step::DeleteRecords(percent) => {
                let start = Offset(self.acked.len() as i64 * percent / 100);
                self.broker().tiering.raise_log_start(self.partition(), start).await.unwrap();
            }
            Step::Expire => {
                let _ = schedule::expire(&self.broker().tiering, &self.archive()).await;
            }
            Step::Merge => {
                let _ = merging::merge_next(&self.broker().tiering, &self.archive()).await;
            }
            Step::Alter(to) => {
                let [index, tokenizer] = SETTINGS[*to];
                let set = |overrides: &mut BTreeMap<String, String>| {
                    overrides.insert("search.index".to_owned(), index.to_owned());
                    overrides.insert("search.tokenizer".to_owned(), tokenizer.to_owned());
                };
                self.broker().tiering.topics.alter(TOPIC, false, set).unwrap();
            }
            Step::Reindex => {
                let _ = reindexing::reindex_next(&self.broker().tiering, &self.archive()).await;
            }
            Step::Sweep => {
                let _ = schedule::sweep_partition(&self.broker().tiering, &self.archive(), &mut Seen::default()).await;
            }
            Step::Wait(minutes) => self.clock.advance_ms(minutes * 60_000),
            Step::Restart => self.start().await,
        }
    }

    pub fn archive(&self) -> Arc<PartitionArchive> {
        self.broker().tiering.archive_of(self.partition())
    }

    /// Every acked record from the log start on, once, in order.
    async fn check_records(&self) {
        let partition = self.partition();
        let end = partition.high_watermark();
        assert_eq!(end, Offset(self.acked.len() as i64), "an acked record is never lost");
        let mut at = partition.log_start_offset();
        let mut decoder = BatchDecoder::new(1 << 20);
        while at < end {
            let range = ReadRange { from: at, until: end, max_bytes: READ_BYTES, at_least_one: true };
            let run = self.broker().reader.read(partition, range).await.unwrap_or_else(|e| panic!("at {at}: {e:?}"));
            assert!(!run.is_empty(), "nothing at {at} below {end}");
            for batch in run.chunks.into_iter().flat_map(split_batches) {
                let batch = &batch.unwrap()[..];
                let header = BatchHeader::read(batch).unwrap();
                assert!(header.base_offset <= at && header.last_offset() >= at, "{header:?} where {at} is next");
                let expected = &self.acked[header.base_offset.0 as usize..header.next_offset().0 as usize];
                if expected.iter().any(Option::is_none) {
                    let count = expected.len();
                    assert_eq!(batch[17..], undecodable(0, count)[17..], "kept byte for byte");
                } else {
                    let mut expected = expected.iter().flatten();
                    let decoded = decoder.for_each::<BatchError>(batch, |record| {
                        let headers = record.headers.iter();
                        let headers = headers.map(|(key, value)| (key.to_owned(), value.map(<[u8]>::to_vec))).collect();
                        let (key, value) = (record.key.map(<[u8]>::to_vec), record.value.map(<[u8]>::to_vec));
                        let found: TestRecord = (record.timestamp.0, key, value, headers);
                        assert_eq!(Some(&found), expected.next(), "offset {}", record.offset);
                        Ok(())
                    });
                    decoded.unwrap();
                    assert_eq!(expected.next(), None);
                }
                at = header.next_offset();
            }
        }
        assert_eq!(at, end.max(partition.log_start_offset()));
    }

    /// What the newest manifest names is there, as it says.
    async fn check_store(&self) {
        let archive = self.archive();
        let (guard, head) = archive.acquire(&self.broker().tiering.manifests).await.unwrap();
        let store = &self.broker().tiering.store;
        assert_eq!(self.newest().await, head, "what the broker believes is what the store has");
        // What is retired may be half deleted.
        let retired: HashSet<_> = head.retired().iter().map(|old| old.object.key.as_str()).collect();
        for object in head.objects().filter(|object| !retired.contains(object.key.as_str())) {
            let bytes = store.get(&object.path()).await.unwrap_or_else(|e| panic!("{}: {e:?}", object.key));
            assert_eq!(ObjectRef::of(&object.path(), &bytes), *object);
        }
        for file in &head.manifest().files {
            let bytes = store.get(&file.data.path()).await.unwrap();
            let mut digest = ContentDigest::new();
            for batch in ParquetRecordBatchReader::try_new(bytes, 1024).unwrap() {
                digest.update_batch(&batch.unwrap()).unwrap();
            }
            assert_eq!(digest.finish(), file.digest, "{}", file.data.key);
            if let Some(split) = &file.split {
                let bytes = store.get(&split.path()).await.unwrap();
                let split = SplitReader::open(Arc::new(OwnedBytes::new(Vec::from(bytes)))).unwrap();
                assert_eq!((split.docs(), Some(split.fields.options())), (file.rows, file.indexed), "as it says");
            }
        }
        let mut next = head.manifest().files.first().map(|file| file.base_offset);
        for file in &head.manifest().files {
            assert_eq!(Some(file.base_offset), next);
            next = Some(file.last_offset.next());
        }
        archive.release(guard, head);
    }

    /// The manifest that the store has.
    pub async fn newest(&self) -> ManifestHead {
        self.broker().tiering.manifests.load(&self.archive().path).await.unwrap()
    }

    /// Of everything in the store, the keys that contain `text`.
    pub async fn keys(&self, text: &str) -> Vec<String> {
        let all = self.listed(&crate::paths::topics_root()).await;
        all.into_iter().map(|key| key.to_string()).filter(|key| key.contains(text)).collect()
    }

    async fn listed(&self, prefix: &ObjectPath) -> Vec<ObjectPath> {
        let listing = self.broker().tiering.store.list_stream(prefix);
        listing.map_ok(|meta| meta.location).try_collect().await.unwrap()
    }

    pub async fn check(&self) {
        self.check_records().await;
        self.check_store().await;
    }

    pub async fn tidy(&self) -> Result<(), TieringError> {
        let broker = self.broker();
        broker.tiering.archive_now(&broker.topic, true).await?;
        assert_eq!(self.partition().archived_through().0 as usize, self.archived_end());
        schedule::expire(&broker.tiering, &self.archive()).await?;
        while reindexing::reindex_next(&broker.tiering, &self.archive()).await.unwrap() != reindexing::Step::AtRest {}
        let wanted = SplitOptions::of_topic(&self.partition().config());
        assert!(self.archive().manifest().files.iter().all(|file| !outdated(file, wanted)));
        assert_eq!(broker.tiering.reindexing(self.partition()).files, 0);
        self.clock.advance_ms(broker.tiering.config.retired_min_age.as_millis());
        schedule::expire(&broker.tiering, &self.archive()).await?;
        self.clock.advance_ms(broker.tiering.config.orphan_min_age.as_millis() + ORPHAN_AGE_MS);
        schedule::sweep_partition(&broker.tiering, &self.archive(), &mut Seen::default()).await
    }

    /// All of the log, or nothing where all of it was deleted before it was archived.
    fn archived_end(&self) -> usize {
        if self.partition().archived_through() == Offset::ZERO { 0 } else { self.acked.len() }
    }

    pub async fn attempt(&self, work: impl Fn(&Self) -> BoxFuture<'_, Result<(), TieringError>>) {
        for attempt in 1.. {
            match work(self).await {
                Ok(()) => return,
                Err(error) => assert!(attempt < ATTEMPTS, "{error:?}"),
            }
        }
    }

    pub async fn check_nothing_is_left_behind(&self) {
        let archive = self.archive();
        let head = self.newest().await;
        let named: HashSet<_> = head.objects().map(ObjectRef::path).collect();
        for key in self.listed(&archive.path.root()).await {
            let is_version = archive.path.parse_manifest(&key).is_some();
            assert!(is_version || named.contains(&key), "{key} is an orphan");
        }
    }
}
