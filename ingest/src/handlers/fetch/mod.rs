//! Fetch: the batches from each position on, now or as soon as there are enough of them.
//!
//! Rules (Kafka's; see KIP-74 for sizes, KIP-227 for sessions):
//! - **Wait.** Answer at once where nothing may be waited for, where any partition has an error, or where `min_bytes` are
//!   there; else when enough has come, or at the deadline.
//! - **Size.** The first partition that has anything gives at least one whole batch; the others share what is left of
//!   `max_bytes`, each within its own limit, in the order of the request. Fragments of batches are never sent.
//! - **Position.** The batch that holds the offset is sent from its first byte; clients drop the records before it.
//! - **Sessions.** See [`session`]: what a client fetches is remembered, and it is told what is new.
//! - **Records** are not decoded, and where they are local and many not copied either: the answer names ranges of log
//!   files, which go from the page cache to the socket.
//! - **Isolation.** Readers of committed data get nothing from the last stable offset on; below it they get everything, with
//!   the list of transactions to leave out.
//!
//! A waiting Fetch sleeps on the high watermarks of its partitions; a wake reads one partition, from where it stopped.

mod plan;
mod session;

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::{FetchRequest, TopicName as WireName};
use kafka_protocol::protocol::StrBytes;
use thermocline_config::TopicCompression;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tracing::warn;
use uuid::Uuid;

use self::plan::{SizeRule, WaitRule, check_position, run_end};
use self::session::{AskedTopic, Begun, TopicKey, Wanted};
pub(crate) use self::session::{FetchSessions, PARTITIONS_MAX as SESSION_PARTITIONS_MAX};
use super::{RequestContext, check_leader_epoch, code, find_partition};
use crate::log::{AbortedTransaction, Partition};
use crate::model::{Offset, TopicId};
use crate::protocol::fetch_response::{FetchReply, FetchedPartition, FetchedTopic};
use crate::read::{ReadError, ReadRange, SendRun};
use crate::server::{RESPONSE_MEMORY_MAX_BYTES, Services, Shared};
use crate::topics::Topic;

const TOPIC_IDS_SINCE: i16 = 13;
/// First version whose clients know KAFKA_STORAGE_ERROR.
const STORAGE_ERROR_SINCE: i16 = 6;
/// First version that may carry zstd.
const ZSTD_SINCE: i16 = 10;
const READ_COMMITTED: i8 = 1;
/// Files that one read may leave open for its answer: a read seldom covers more than two segments. None where the system
/// cannot send from them.
const FILES_PER_READ: u32 = if cfg!(target_os = "linux") { 4 } else { 0 };

/// One partition of the request and what was read of it.
struct Slot {
    wanted: Wanted,
    partition: Option<Arc<Partition>>,
    error: Option<ResponseError>,
    /// Where the next read begins: the offset asked for, then the end of what was read.
    position: Offset,
    /// The partition's own limit, in bytes.
    max_bytes: usize,
    /// High watermark at the last look.
    seen: Offset,
    records: SendRun,
}

/// A request under way.
struct Fetch<'a> {
    services: &'a Services,
    version: i16,
    committed_only: bool,
    slots: Vec<Slot>,
    sizes: SizeRule,
    room: Room,
    /// Whether any partition has an error: then the answer does not wait.
    failed: bool,
}

/// Room for records, out of what all connections share. Whoever holds some does not wait for more: two that did could
/// wait for each other. What stays in its file takes no memory.
struct Room {
    memory: Arc<Semaphore>,
    files: Arc<Semaphore>,
    held: Vec<OwnedSemaphorePermit>,
    /// Asked for more than there was.
    refused: bool,
}

/// Answers a Fetch.
pub(crate) async fn fetch(shared: &Shared, context: &RequestContext, request: FetchRequest) -> FetchReply {
    let by_id = context.api_version >= TOPIC_IDS_SINCE;
    let Begun { wanted, ending } = match shared.fetch_sessions.begin(&request, by_id, Instant::now()) {
        Ok(begun) => begun,
        Err(error) => return FetchReply { error_code: error.code(), ..FetchReply::default() },
    };
    let services = shared.services.as_ref();
    let kafka = &services.kafka;
    let sizes = SizeRule::new(request.max_bytes, kafka.fetch_max_bytes.as_usize());
    let waiting = WaitRule::new(&request, wanted.len(), sizes.left(), kafka.fetch_max_wait.as_duration());
    let slots = open_slots(services, wanted);
    let mut fetch = Fetch {
        services,
        version: context.api_version,
        failed: slots.iter().any(|slot| slot.error.is_some()),
        committed_only: request.isolation_level == READ_COMMITTED,
        slots,
        sizes,
        room: Room {
            memory: shared.response_memory.clone(),
            files: shared.response_files.clone(),
            held: Vec::new(),
            refused: false,
        },
    };
    fetch.read_all().await;
    if let Some(wait) = waiting.wait()
        && !fetch.is_enough(&waiting)
    {
        let woken = tokio::time::timeout(wait, fetch.wait(&waiting));
        tokio::select! {
            biased;
            () = shared.shutdown.cancelled() => {}
            _ = woken => {}
        }
    }
    let (rows, room) = fetch.into_rows();
    match shared.fetch_sessions.finish(ending, rows, Instant::now()) {
        Ok((session_id, rows)) => FetchReply { error_code: 0, session_id, topics: by_topic(rows), room },
        Err(error) => FetchReply { error_code: error.code(), ..FetchReply::default() },
    }
}

fn open_slots(services: &Services, wanted: Vec<Wanted>) -> Vec<Slot> {
    let mut slots = Vec::with_capacity(wanted.len());
    // Partitions of a topic mostly follow each other.
    for neighbours in wanted.chunk_by(|one, next| Arc::ptr_eq(&one.topic, &next.topic)) {
        let Some(first) = neighbours.first() else { continue };
        let found = find_topic(services, &first.topic);
        slots.extend(neighbours.iter().map(|asked| Slot::new(&found, asked.clone())));
    }
    slots
}

fn find_topic(services: &Services, asked: &AskedTopic) -> Result<Arc<Topic>, ResponseError> {
    let topics = &services.topics;
    let id = match &asked.key {
        TopicKey::Name(name) => return topics.get(name).ok_or(ResponseError::UnknownTopicOrPartition),
        TopicKey::Id(id) => TopicId(*id),
    };
    if let Some(topic) = topics.by_id(id) {
        asked.name.get_or_init(|| topic.name.clone());
        return Ok(topic);
    }
    // In a session the name is known, and may be that of another topic by now.
    let recreated = asked.name.get().is_some_and(|name| topics.get(name.as_str()).is_some());
    Err(if recreated { ResponseError::InconsistentTopicId } else { ResponseError::UnknownTopicId })
}

/// Rows as the answer has them: neighbours of one topic below it.
fn by_topic(rows: Vec<(Wanted, FetchedPartition)>) -> Vec<FetchedTopic> {
    let mut topics: Vec<FetchedTopic> = Vec::new();
    let mut last: Option<Arc<AskedTopic>> = None;
    for (wanted, row) in rows {
        match topics.last_mut() {
            Some(topic) if last.as_ref().is_some_and(|last| Arc::ptr_eq(last, &wanted.topic)) => {
                topic.partitions.push(row);
            }
            _ => {
                let (name, id) = match &wanted.topic.key {
                    TopicKey::Name(name) => (WireName(StrBytes::from_string(name.as_ref().to_owned())), Uuid::nil()),
                    TopicKey::Id(id) => (WireName::default(), *id),
                };
                topics.push(FetchedTopic { name, id, partitions: vec![row] });
            }
        }
        last = Some(wanted.topic);
    }
    topics
}

impl Slot {
    fn new(topic: &Result<Arc<Topic>, ResponseError>, asked: Wanted) -> Self {
        let position = Offset(asked.fetch_offset);
        let found = topic.as_ref().map_err(|error| *error).and_then(|topic| {
            let partition = find_partition(Some(topic), asked.index)?;
            check_leader_epoch(asked.leader_epoch)?;
            Ok(partition)
        });
        let (partition, error) = match found {
            Ok(partition) => {
                let error = check_position(position, partition.log_start_offset(), partition.log_end_offset()).err();
                (Some(partition), error)
            }
            Err(error) => (None, Some(error)),
        };
        Self {
            max_bytes: usize::try_from(asked.max_bytes).unwrap_or(0),
            wanted: asked,
            partition,
            error,
            position,
            seen: Offset::ZERO,
            records: SendRun::default(),
        }
    }
}

impl Fetch<'_> {
    async fn read_all(&mut self) {
        for at in 0..self.slots.len() {
            self.read(at).await;
        }
    }

    fn is_enough(&self, rule: &WaitRule) -> bool {
        self.failed || self.room.refused || rule.is_met(self.sizes.taken())
    }

    /// Reads on in one partition, as far as sizes and memory allow.
    async fn read(&mut self, at: usize) {
        let Some(slot) = self.slots.get_mut(at) else { return };
        let Some(partition) = slot.partition.as_ref().filter(|_| slot.error.is_none()) else { return };
        slot.seen = partition.high_watermark();
        if partition.is_closed() {
            return self.fail(at, ResponseError::UnknownTopicOrPartition);
        }
        // As in Kafka, the topic's setting decides, and not what a producer may have sent.
        if self.version < ZSTD_SINCE && partition.config().compression == Some(TopicCompression::Zstd) {
            return self.fail(at, ResponseError::UnsupportedCompressionType);
        }
        let until = if self.committed_only { partition.last_stable_offset() } else { slot.seen };
        if slot.position >= until {
            return;
        }
        let own_limit = slot.max_bytes.saturating_sub(slot.records.len_bytes());
        let Some(limit) = self.sizes.limit(own_limit) else { return };
        let Some(memory) = self.room.reserve(limit.max_bytes).await else { return };
        let files = self.room.files();
        let files_max = files.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let range =
            ReadRange { from: slot.position, until, max_bytes: limit.max_bytes, at_least_one: limit.at_least_one };
        match self.services.reader.read_to_send(partition, range, files_max).await {
            Ok(run) => {
                self.sizes.took(run.len_bytes());
                self.room.keep(memory, run.memory_bytes());
                if let Some(files) = files {
                    self.room.keep(files, run.files());
                }
                slot.records.append(run);
            }
            Err(failure) => {
                let error = read_error(partition, &failure, self.version);
                self.fail(at, error);
            }
        }
    }

    /// Reads what comes until it is enough.
    async fn wait(&mut self, rule: &WaitRule) {
        let mut changes = FuturesUnordered::new();
        for at in 0..self.slots.len() {
            let Some(slot) = self.slots.get_mut(at) else { continue };
            let Some(partition) = &slot.partition else { continue };
            let mut watermark = partition.watch();
            // What changed between the first look and the subscription wakes nobody.
            let missed = *watermark.borrow_and_update() != slot.seen || partition.is_closed();
            changes.push(changed(at, watermark));
            if missed {
                self.read_on(at).await;
            }
        }
        while !self.is_enough(rule) {
            match changes.next().await {
                None => return,
                Some((at, None)) => self.fail(at, ResponseError::UnknownTopicOrPartition),
                Some((at, Some(watermark))) => {
                    self.read_on(at).await;
                    changes.push(changed(at, watermark));
                }
            }
        }
    }

    /// Reads from the end of what was read.
    async fn read_on(&mut self, at: usize) {
        if let Some(slot) = self.slots.get_mut(at) {
            slot.position = run_end(&slot.records).unwrap_or(slot.position);
        }
        self.read(at).await;
    }

    fn fail(&mut self, at: usize, error: ResponseError) {
        self.failed = true;
        if let Some(slot) = self.slots.get_mut(at) {
            slot.error.get_or_insert(error);
        }
    }

    fn into_rows(self) -> (Vec<(Wanted, FetchedPartition)>, Vec<OwnedSemaphorePermit>) {
        let metrics = &self.services.metrics;
        let copied: usize = self.slots.iter().map(|slot| slot.records.memory_bytes()).sum();
        metrics.fetched_bytes.inc_by(self.sizes.taken() as u64);
        metrics.fetched_uncopied_bytes.inc_by(self.sizes.taken().saturating_sub(copied) as u64);
        let committed_only = self.committed_only;
        let rows = self.slots.into_iter().map(|slot| slot.into_fetched(committed_only)).collect();
        (rows, self.room.held)
    }
}

impl Slot {
    /// Offsets are always real where the partition is; they are looked at after the records, so that they include them.
    fn into_fetched(self, committed_only: bool) -> (Wanted, FetchedPartition) {
        // Clients read a partition with an error as having no records.
        let records = if self.error.is_some() { SendRun::default() } else { self.records };
        let aborted_of = |one: &AbortedTransaction| (one.producer_id, one.first_offset.0);
        let offset = |of: fn(&Partition) -> Offset| self.partition.as_deref().map_or(-1, |partition| of(partition).0);
        let row = FetchedPartition {
            index: self.wanted.index,
            error_code: code(self.error),
            high_watermark: offset(Partition::high_watermark),
            last_stable_offset: offset(Partition::last_stable_offset),
            log_start_offset: offset(Partition::log_start_offset),
            // Others see everything, and would drop what they are told was aborted.
            aborted: if committed_only { records.aborted.iter().map(aborted_of).collect() } else { Vec::new() },
            records,
        };
        (self.wanted, row)
    }
}

impl Room {
    /// Room for `bytes`, or nothing where waiting for it could be waiting for ourselves.
    async fn reserve(&mut self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let permits = u32::try_from(bytes.min(RESPONSE_MEMORY_MAX_BYTES)).unwrap_or(u32::MAX);
        let room = if self.held.is_empty() {
            self.memory.clone().acquire_many_owned(permits).await.ok()
        } else {
            self.memory.clone().try_acquire_many_owned(permits).ok()
        };
        self.refused |= room.is_none();
        room
    }

    /// Room for the files of one read; nothing where it is taken, and then records are copied.
    fn files(&self) -> Option<OwnedSemaphorePermit> {
        self.files.clone().try_acquire_many_owned(FILES_PER_READ).ok()
    }

    /// Keeps as much of the room as was used and gives the rest back.
    fn keep(&mut self, mut room: OwnedSemaphorePermit, used: usize) {
        if let Some(kept) = room.split(used.min(room.num_permits()))
            && used > 0
        {
            self.held.push(kept);
        }
    }
}

/// The next change of a high watermark; without a receiver where the partition is gone.
async fn changed(at: usize, mut watermark: watch::Receiver<Offset>) -> (usize, Option<watch::Receiver<Offset>>) {
    let alive = watermark.changed().await.is_ok();
    (at, alive.then_some(watermark))
}

/// Only codes that Fetch may answer: Java throws on any other.
fn read_error(partition: &Partition, failure: &ReadError, version: i16) -> ResponseError {
    if matches!(failure, ReadError::OutOfRange { .. }) {
        return ResponseError::OffsetOutOfRange;
    }
    warn!(partition = %partition.topic_partition(), %failure, "fetch failed");
    if version >= STORAGE_ERROR_SINCE { ResponseError::KafkaStorageError } else { ResponseError::NotLeaderOrFollower }
}
