//! The life of a partition under a store that misbehaves and a process that dies at any operation, against a model.
//!
//! A real hot log in a temporary folder, the real worker, janitor and reader, a store that gives errors before and
//! after their effect, delays and torn reads. A death cuts one operation off, lets none follow, and is followed by a
//! start on what disk and store hold; what the process had in memory is gone.
//!
//! Checked after every step that can change something:
//! 1. every acked record from the log start on is read exactly once, in order, from hot or cold;
//! 2. what the newest manifest names is in the store, byte for byte, whole files also by their content;
//! 3. nothing that it names was deleted.

use std::collections::{BTreeMap, HashSet};

use futures::future::BoxFuture;
use parquet::arrow::arrow_reader::ParquetRecordBatchReader;
use proptest::prelude::*;
use thermocline_config::{ByteSize, CacheConfig, LogConfig};
use thermocline_ingest::clock::{ManualClock, SystemClock};
use thermocline_ingest::log::HotLog;
use thermocline_ingest::metadata::MetadataStore;
use thermocline_ingest::metrics::IngestMetrics;
use thermocline_ingest::read::{LogReader, ReadRange};
use thermocline_ingest::record::{BatchDecoder, BatchError, BatchHeader, split_batches};

use super::*;
use crate::manifest::ObjectRef;
use crate::reader::TieredReader;
use crate::testing::chaos::ChaosStore;
use crate::testing::{TestRecord, any_record, batch, store_config, undecodable};
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

/// A record as the model remembers it; `None` in the place of one that was sent undecodable.
type Acked = Option<TestRecord>;

#[derive(Clone, Debug)]
enum Step {
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
    /// So many minutes.
    Wait(i64),
    Restart,
}

/// How a step goes wrong.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    None,
    /// of a thousand operations
    Faults(u32),
    /// after so many operations; then everything starts again
    Death(usize),
}

struct World {
    store: ChaosStore,
    clock: Arc<ManualClock>,
    dir: tempfile::TempDir,
    acked: Vec<Acked>,
    epoch: u64,
    broker: Option<Broker>,
}

/// What dies with the process.
struct Broker {
    topic: Arc<Topic>,
    tiering: Arc<Tiering>,
    reader: TieredReader,
    _log: Arc<HotLog>,
}

fn step() -> impl Strategy<Value = Step> {
    let records = prop::collection::vec(any_record(), 1..120);
    prop_oneof![
        4 => records.prop_map(Step::Produce),
        1 => (1..5_usize).prop_map(Step::ProduceUndecodable),
        4 => any::<bool>().prop_map(|trim| Step::Archive { trim }),
        2 => Just(Step::ArchiveOne),
        1 => (0..100_i64).prop_map(Step::DeleteRecords),
        3 => Just(Step::Expire),
        2 => Just(Step::Sweep),
        2 => (1..90_i64).prop_map(Step::Wait),
        1 => Just(Step::Restart),
    ]
}

fn trouble() -> impl Strategy<Value = Trouble> {
    prop_oneof![
        2 => Just(Trouble::None),
        2 => (10..300_u32).prop_map(Trouble::Faults),
        4 => (0..40_usize).prop_map(Trouble::Death),
    ]
}

impl World {
    fn new(seed: u64) -> Self {
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

    fn broker(&self) -> &Broker {
        self.broker.as_ref().unwrap()
    }

    fn partition(&self) -> &Arc<Partition> {
        &self.broker().topic.partitions[0]
    }

    /// On what disk and store hold. The store must be well.
    async fn start(&mut self) {
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
    async fn take(&mut self, step: &Step) {
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
            Step::Sweep => {
                let _ = schedule::sweep_partition(&self.broker().tiering, &self.archive()).await;
            }
            Step::Wait(minutes) => self.clock.advance_ms(minutes * 60_000),
            Step::Restart => self.start().await,
        }
    }

    fn archive(&self) -> Arc<PartitionArchive> {
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
        let newest = self.broker().tiering.manifests.load(&archive.path).await.unwrap();
        assert_eq!(newest, head, "what the broker believes is what the store has");
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
        }
        let mut next = head.manifest().files.first().map(|file| file.base_offset);
        for file in &head.manifest().files {
            assert_eq!(Some(file.base_offset), next);
            next = Some(file.last_offset.next());
        }
        archive.release(guard, head);
    }

    async fn check(&self) {
        self.check_records().await;
        self.check_store().await;
    }

    async fn live(mut self, steps: Vec<(Step, Trouble)>) {
        self.start().await;
        for (step, trouble) in steps {
            match trouble {
                // A start needs the store.
                _ if matches!(step, Step::Restart) => {}
                Trouble::None => {}
                Trouble::Faults(faulty) => self.store.misbehave(faulty),
                Trouble::Death(operations) => self.store.die_after(operations),
            }
            self.take(&step).await;
            if self.store.revive() {
                self.start().await;
            }
            self.check().await;
        }
        // In the end everything gets where it belongs, and nothing else is left.
        self.attempt(|world| Box::pin(world.tidy())).await;
        self.check().await;
        self.check_nothing_is_left_behind().await;
    }

    async fn tidy(&self) -> Result<(), TieringError> {
        let broker = self.broker();
        broker.tiering.archive_now(&broker.topic, true).await?;
        assert_eq!(self.partition().archived_through().0 as usize, self.archived_end());
        schedule::expire(&broker.tiering, &self.archive()).await?;
        self.clock.advance_ms(broker.tiering.config.retired_min_age.as_millis());
        schedule::expire(&broker.tiering, &self.archive()).await?;
        self.clock.advance_ms(broker.tiering.config.orphan_min_age.as_millis() + ORPHAN_AGE_MS);
        schedule::sweep_partition(&broker.tiering, &self.archive()).await
    }

    /// All of the log, or nothing where all of it was deleted before it was archived.
    fn archived_end(&self) -> usize {
        if self.partition().archived_through() == Offset::ZERO { 0 } else { self.acked.len() }
    }

    async fn attempt(&self, work: impl Fn(&Self) -> BoxFuture<'_, Result<(), TieringError>>) {
        for attempt in 1.. {
            match work(self).await {
                Ok(()) => return,
                Err(error) => assert!(attempt < ATTEMPTS, "{error:?}"),
            }
        }
    }

    async fn check_nothing_is_left_behind(&self) {
        let archive = self.archive();
        let head = self.broker().tiering.manifests.load(&archive.path).await.unwrap();
        let named: HashSet<_> = head.objects().map(ObjectRef::path).collect();
        let stored = self.broker().tiering.store.list(&archive.path.root()).await.unwrap();
        for object in stored {
            let is_version = archive.path.parse_manifest(&object.location).is_some();
            assert!(is_version || named.contains(&object.location), "{} is an orphan", object.location);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_happens_every_acked_record_is_read_once(
        seed in any::<u64>(), steps in prop::collection::vec((step(), trouble()), 1..24),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(World::new(seed).live(steps));
    }
}

/// One plain life, cut off at each of its operations in turn.
#[test]
fn a_death_at_any_operation_is_survived() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let records = |count| Step::Produce(crate::testing::some_records(count));
    for operations in 0.. {
        let died = runtime.block_on(async {
            let mut world = World::new(operations as u64);
            world.start().await;
            world.take(&records(50)).await;
            world.take(&Step::ProduceUndecodable(3)).await;
            world.take(&Step::Archive { trim: true }).await;
            world.take(&records(50)).await;
            world.take(&Step::DeleteRecords(20)).await;
            world.store.die_after(operations);
            for step in [Step::Archive { trim: true }, Step::Expire, Step::Wait(20), Step::Expire, Step::Sweep] {
                world.take(&step).await;
            }
            let died = world.store.revive();
            world.start().await;
            world.check().await;
            world.attempt(|world| Box::pin(world.tidy())).await;
            world.check().await;
            world.check_nothing_is_left_behind().await;
            died
        });
        if !died {
            assert!(operations > 30, "only {operations} operations");
            break;
        }
    }
}
