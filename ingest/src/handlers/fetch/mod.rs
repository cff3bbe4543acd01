//! Fetch: the batches from each position on, now or as soon as there are enough of them.
//!
//! Rules (Kafka's; see KIP-74 for sizes, KIP-227 for sessions):
//! - **Wait.** Answer at once where nothing may be waited for, where any partition has an error, or where `min_bytes` are
//!   there; else when enough has come, or at the deadline.
//! - **Size.** The first partition that has anything gives at least one whole batch; the others share what is left of
//!   `max_bytes`, each within its own limit, in the order of the request. Fragments of batches are never sent.
//! - **Position.** The batch that holds the offset is sent from its first byte; clients drop the records before it.
//! - **Sessions.** None are kept: every answer is complete and names session 0; a request that continues a session is told
//!   that there is none.
//!
//! A waiting Fetch sleeps on the high watermarks of its partitions; a wake reads one partition, from where it stopped.

mod plan;

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::FetchRequest;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use thermocline_config::TopicCompression;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tracing::warn;

use self::plan::{SizeRule, WaitRule, check_position, run_end};
use super::{RequestContext, check_leader_epoch, code, find_partition};
use crate::log::Partition;
use crate::model::{Offset, TopicId};
use crate::protocol::fetch_response::{FetchReply, FetchedPartition, FetchedTopic};
use crate::read::{BatchRun, ReadError, ReadRange};
use crate::server::{RESPONSE_MEMORY_MAX_BYTES, Services, Shared};
use crate::topics::Topic;

const TOPIC_IDS_SINCE: i16 = 13;
/// First version whose clients know KAFKA_STORAGE_ERROR.
const STORAGE_ERROR_SINCE: i16 = 6;
/// First version that may carry zstd.
const ZSTD_SINCE: i16 = 10;
const READ_COMMITTED: i8 = 1;
/// Epochs of a session that ask for everything: 0 would open a session, -1 wants none.
const FULL_FETCH_EPOCHS: [i32; 2] = [0, -1];

/// One partition of the request and what was read of it.
struct Slot {
    index: i32,
    partition: Option<Arc<Partition>>,
    error: Option<ResponseError>,
    /// Where the next read begins: the offset asked for, then the end of what was read.
    position: Offset,
    /// The partition's own limit, in bytes.
    max_bytes: usize,
    /// High watermark at the last look.
    seen: Offset,
    records: BatchRun,
}

/// A request under way.
struct Fetch<'a> {
    services: &'a Services,
    version: i16,
    committed_only: bool,
    slots: Vec<Slot>,
    sizes: SizeRule,
    memory: Memory,
    /// Whether any partition has an error: then the answer does not wait.
    failed: bool,
}

/// Room for record bytes, out of what all connections share. Whoever holds some does not wait for more: two that did could
/// wait for each other.
struct Memory {
    shared: Arc<Semaphore>,
    held: Vec<OwnedSemaphorePermit>,
    /// Asked for more than there was.
    refused: bool,
}

/// Answers a Fetch.
pub(crate) async fn fetch(shared: &Shared, context: &RequestContext, request: FetchRequest) -> FetchReply {
    if request.session_id != 0 || !FULL_FETCH_EPOCHS.contains(&request.session_epoch) {
        return FetchReply { error_code: ResponseError::FetchSessionIdNotFound.code(), ..FetchReply::default() };
    }
    let services = shared.services.as_ref();
    let kafka = &services.kafka;
    let sizes = SizeRule::new(request.max_bytes, kafka.fetch_max_bytes.as_usize());
    let waiting = WaitRule::new(&request, sizes.left(), kafka.fetch_max_wait.as_duration());
    let by_id = context.api_version >= TOPIC_IDS_SINCE;
    let topics: Vec<_> = request.topics.iter().map(|topic| find_topic(services, by_id, topic)).collect();
    let mut slots = Vec::new();
    for (topic, found) in request.topics.iter().zip(&topics) {
        slots.extend(topic.partitions.iter().map(|asked| Slot::new(found, asked)));
    }
    let mut fetch = Fetch {
        services,
        version: context.api_version,
        failed: slots.iter().any(|slot| slot.error.is_some()),
        committed_only: request.isolation_level == READ_COMMITTED,
        slots,
        sizes,
        memory: Memory { shared: shared.response_memory.clone(), held: Vec::new(), refused: false },
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
    fetch.into_reply(request.topics)
}

fn find_topic(services: &Services, by_id: bool, asked: &FetchTopic) -> Result<Arc<Topic>, ResponseError> {
    if by_id {
        return services.topics.by_id(TopicId(asked.topic_id)).ok_or(ResponseError::UnknownTopicId);
    }
    services.topics.get(asked.topic.as_str()).ok_or(ResponseError::UnknownTopicOrPartition)
}

impl Slot {
    fn new(topic: &Result<Arc<Topic>, ResponseError>, asked: &FetchPartition) -> Self {
        let position = Offset(asked.fetch_offset);
        let found = topic.as_ref().map_err(|error| *error).and_then(|topic| {
            let partition = find_partition(Some(topic), asked.partition)?;
            check_leader_epoch(asked.current_leader_epoch)?;
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
            index: asked.partition,
            partition,
            error,
            position,
            max_bytes: usize::try_from(asked.partition_max_bytes).unwrap_or(0),
            seen: Offset::ZERO,
            records: BatchRun::default(),
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
        self.failed || self.memory.refused || rule.is_met(self.sizes.taken())
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
        let Some(room) = self.memory.reserve(limit.max_bytes).await else { return };
        let range =
            ReadRange { from: slot.position, until, max_bytes: limit.max_bytes, at_least_one: limit.at_least_one };
        match self.services.reader.read(partition, range).await {
            Ok(run) => {
                self.sizes.took(run.len_bytes());
                self.memory.keep(room, run.len_bytes());
                slot.records.chunks.extend(run.chunks);
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

    fn into_reply(self, topics: Vec<FetchTopic>) -> FetchReply {
        self.services.metrics.fetched_bytes.inc_by(self.sizes.taken() as u64);
        let mut slots = self.slots.into_iter();
        let topics = topics.into_iter().map(|topic| FetchedTopic {
            partitions: slots.by_ref().take(topic.partitions.len()).map(Slot::into_fetched).collect(),
            id: topic.topic_id,
            name: topic.topic,
        });
        FetchReply { error_code: 0, topics: topics.collect(), memory: self.memory.held }
    }
}

impl Slot {
    /// Offsets are always real where the partition is; they are looked at after the records, so that they include them.
    fn into_fetched(self) -> FetchedPartition {
        let offset = |of: fn(&Partition) -> Offset| self.partition.as_deref().map_or(-1, |partition| of(partition).0);
        FetchedPartition {
            index: self.index,
            error_code: code(self.error),
            high_watermark: offset(Partition::high_watermark),
            last_stable_offset: offset(Partition::last_stable_offset),
            log_start_offset: offset(Partition::log_start_offset),
            // Clients read a partition with an error as having no records.
            records: if self.error.is_some() { BatchRun::default() } else { self.records },
        }
    }
}

impl Memory {
    /// Room for `bytes`, or nothing where waiting for it could be waiting for ourselves.
    async fn reserve(&mut self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let permits = u32::try_from(bytes.min(RESPONSE_MEMORY_MAX_BYTES)).unwrap_or(u32::MAX);
        let room = if self.held.is_empty() {
            self.shared.clone().acquire_many_owned(permits).await.ok()
        } else {
            self.shared.clone().try_acquire_many_owned(permits).ok()
        };
        self.refused |= room.is_none();
        room
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
