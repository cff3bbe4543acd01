//! Fetch: the batches from each position on, now or as soon as there are enough of them.
//!
//! Rules (Kafka's; see KIP-74 for sizes, KIP-227 for sessions):
//! - **Wait.** Answer at once where nothing may be waited for, where any partition has an error, or where `min_bytes`
//!   are there; else when enough has come, or at the deadline.
//! - **Size.** The first partition that has anything gives at least one whole batch; the others share what is left of
//!   `max_bytes`, each within its own limit, in the order of the request, until a batch does not fit any more.
//!   Fragments of batches are never sent.
//! - **Position.** The batch that holds the offset is sent from its first byte; clients drop the records before it.
//! - **Sessions.** See [`session`]: what a client fetches is remembered, and it is told what is new.
//! - **Records** are not decoded, and where they are local and many not copied either: the answer names ranges of log
//!   files, which go from the page cache to the socket.
//! - **Isolation.** Readers of committed data get nothing from the last stable offset on; below it they get everything,
//!   with the list of transactions to leave out.
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
use super::{RequestContext, blocking, check_leader_epoch, code, find_partition};
use crate::log::{AbortedTransaction, Partition};
use crate::metrics::IngestMetrics;
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
/// Files that one read may leave open for its answer: a read seldom covers more than two segments. None where the
/// system cannot send from them.
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
struct Fetch {
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
    fetch = fetch.read_all(services).await;
    if let Some(wait) = waiting.wait()
        && !fetch.is_enough(&waiting)
    {
        let woken = tokio::time::timeout(wait, fetch.wait(services, &waiting));
        tokio::select! {
            biased;
            () = shared.shutdown.cancelled() => {}
            _ = woken => {}
        }
    }
    let (rows, room) = fetch.into_rows(&services.metrics);
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

impl Fetch {
    /// Reads each partition, in their order: neighbours that are local in one go, for to hand a read to another thread
    /// takes longer than to do it.
    async fn read_all(mut self, services: &Services) -> Self {
        let mut at = 0;
        while at < self.slots.len() {
            let mut next = at;
            if let Some((partition, range)) = self.next_read(at)
                && range.from >= partition.local_start_offset()
                && let Some(memory) = self.room.reserve(range.max_bytes).await
            {
                (self, next) = blocking(move || {
                    let next = self.read_local(at, memory);
                    (self, next)
                })
                .await;
            }
            if next == at {
                self.read(services, at).await;
                next += 1;
            }
            at = next;
        }
        self
    }

    /// Reads local logs from the partition `first` on, for which there is `memory`. Returns which is next: one that is
    /// not local, or for which memory has to be waited for. Blocking.
    fn read_local(&mut self, first: usize, memory: OwnedSemaphorePermit) -> usize {
        let mut memory_of_first = Some(memory);
        for at in first..self.slots.len() {
            let Some((partition, range)) = self.next_read(at) else { continue };
            // If the first has nothing after all, its memory may be less than another needs.
            let memory = memory_of_first.take().filter(|_| at == first);
            let Some(memory) = memory.or_else(|| self.room.try_reserve(range.max_bytes)) else {
                if self.room.may_wait() {
                    return at;
                }
                self.room.refused = true;
                continue;
            };
            let files = self.room.files();
            let run = partition.read_to_send(&range, files.as_ref().map_or(0, OwnedSemaphorePermit::num_permits));
            if matches!(run, Err(ReadError::BelowLocalStart { .. })) {
                return at;
            }
            self.took(at, run, memory, files);
        }
        self.slots.len()
    }

    fn is_enough(&self, rule: &WaitRule) -> bool {
        self.failed || self.room.refused || self.sizes.is_full() || rule.is_met(self.sizes.taken())
    }

    /// Reads on in one partition, wherever it is, as far as sizes and memory allow.
    async fn read(&mut self, services: &Services, at: usize) {
        let Some((partition, range)) = self.next_read(at) else { return };
        let Some(memory) = self.room.reserve(range.max_bytes).await else { return };
        let files = self.room.files();
        let files_max = files.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let run = services.reader.read_to_send(&partition, range, files_max).await;
        self.took(at, run, memory, files);
    }

    /// What to read next of a partition, if there is something and sizes allow it.
    fn next_read(&mut self, at: usize) -> Option<(Arc<Partition>, ReadRange)> {
        let slot = self.slots.get_mut(at)?;
        let partition = slot.partition.clone().filter(|_| slot.error.is_none())?;
        slot.seen = partition.high_watermark();
        if partition.is_closed() {
            self.fail(at, ResponseError::UnknownTopicOrPartition);
            return None;
        }
        // As in Kafka, the topic's setting decides, and not what a producer may have sent.
        if self.version < ZSTD_SINCE && partition.config().compression == Some(TopicCompression::Zstd) {
            self.fail(at, ResponseError::UnsupportedCompressionType);
            return None;
        }
        let until = if self.committed_only { partition.last_stable_offset() } else { slot.seen };
        if slot.position >= until {
            return None;
        }
        let limit = self.sizes.limit(slot.left_bytes())?;
        let range =
            ReadRange { from: slot.position, until, max_bytes: limit.max_bytes, at_least_one: limit.at_least_one };
        Some((partition, range))
    }

    /// Keeps what was read of a partition, and as much of the room as it takes.
    fn took(
        &mut self,
        at: usize,
        read: Result<SendRun, ReadError>,
        memory: OwnedSemaphorePermit,
        files: Option<OwnedSemaphorePermit>,
    ) {
        let Some(slot) = self.slots.get_mut(at) else { return };
        match (read, &slot.partition) {
            (Ok(run), _) => {
                self.sizes.took(run.len_bytes(), slot.left_bytes());
                self.room.keep(memory, run.memory_bytes());
                if let Some(files) = files {
                    self.room.keep(files, run.files());
                }
                slot.records.append(run);
            }
            (Err(failure), Some(partition)) => {
                let error = read_error(partition, &failure, self.version);
                self.fail(at, error);
            }
            (Err(_), None) => {}
        }
    }

    /// Reads what comes until it is enough.
    async fn wait(&mut self, services: &Services, rule: &WaitRule) {
        let mut changes = FuturesUnordered::new();
        for at in 0..self.slots.len() {
            let Some(slot) = self.slots.get_mut(at) else { continue };
            let Some(partition) = &slot.partition else { continue };
            let mut watermark = partition.watch();
            // What changed between the first look and the subscription wakes nobody.
            let missed = *watermark.borrow_and_update() != slot.seen || partition.is_closed();
            changes.push(changed(at, watermark));
            if missed {
                self.read_on(services, at).await;
            }
        }
        while !self.is_enough(rule) {
            match changes.next().await {
                None => return,
                Some((at, None)) => self.fail(at, ResponseError::UnknownTopicOrPartition),
                Some((at, Some(watermark))) => {
                    self.read_on(services, at).await;
                    changes.push(changed(at, watermark));
                }
            }
        }
    }

    /// Reads from the end of what was read.
    async fn read_on(&mut self, services: &Services, at: usize) {
        if let Some(slot) = self.slots.get_mut(at) {
            slot.position = run_end(&slot.records).unwrap_or(slot.position);
        }
        self.read(services, at).await;
    }

    fn fail(&mut self, at: usize, error: ResponseError) {
        self.failed = true;
        if let Some(slot) = self.slots.get_mut(at) {
            slot.error.get_or_insert(error);
        }
    }

    fn into_rows(self, metrics: &IngestMetrics) -> (Vec<(Wanted, FetchedPartition)>, Vec<OwnedSemaphorePermit>) {
        let copied: usize = self.slots.iter().map(|slot| slot.records.memory_bytes()).sum();
        metrics.fetched_bytes.inc_by(self.sizes.taken() as u64);
        metrics.fetched_uncopied_bytes.inc_by(self.sizes.taken().saturating_sub(copied) as u64);
        let committed_only = self.committed_only;
        let rows = self.slots.into_iter().map(|slot| slot.into_fetched(committed_only)).collect();
        (rows, self.room.held)
    }
}

impl Slot {
    /// What its own limit leaves to it.
    fn left_bytes(&self) -> usize {
        self.max_bytes.saturating_sub(self.records.len_bytes())
    }

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
        let room = if self.may_wait() {
            self.memory.clone().acquire_many_owned(permits(bytes)).await.ok()
        } else {
            self.try_reserve(bytes)
        };
        self.refused |= room.is_none();
        room
    }

    fn try_reserve(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        self.memory.clone().try_acquire_many_owned(permits(bytes)).ok()
    }

    /// Nothing is held that others may wait for.
    fn may_wait(&self) -> bool {
        self.held.is_empty()
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

fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes.min(RESPONSE_MEMORY_MAX_BYTES)).unwrap_or(u32::MAX)
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
