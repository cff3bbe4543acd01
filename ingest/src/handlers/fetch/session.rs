//! Fetch sessions (KIP-227): what a consumer fetches again and again is remembered, so that it names only what changes,
//! and is told only of partitions that have something new.
//!
//! A request of epoch 0 asks for everything it names and opens a session if there is room; one of epoch -1 wants none,
//! and closes the one it names; any other continues a session, adding, changing and forgetting partitions. A partition
//! is told of again when it has records or an error, or when an offset of it is not what the client was told last.
//!
//! Invariants:
//! - A session's epoch is the one its client has to name next. It rises with every request that continues the session,
//!   before the partitions are read; an answer that finds another epoch than it left has been overtaken, and tells
//!   nothing.
//! - What is kept of a partition is what the client was told last; nothing where it has to be told whatever it is,
//!   which is so for a new partition and after an error.
//! - Each partition has one place in the order of its session, and the order is that of reading. What gave records goes
//!   behind the others, so that a busy partition does not use up the answer again and again.
//! - At most `kafka.fetch_sessions_max` sessions are kept, and [`PARTITIONS_MAX`] partitions in all of them. Whoever
//!   finds no room is answered in full, which every client understands.
//!
//! Nothing of it is on disk. After a restart clients are told FETCH_SESSION_ID_NOT_FOUND, and open another session.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::FetchRequest;
use kafka_protocol::messages::fetch_request::FetchPartition;
use parking_lot::Mutex;
use tokio::time::Instant;
use uuid::Uuid;

use crate::metrics::IngestMetrics;
use crate::model::TopicName;
use crate::protocol::fetch_response::FetchedPartition;

/// Partitions that all sessions together may hold; each takes some 200 bytes.
pub const PARTITIONS_MAX: usize = 500_000;
/// A session that was not used for so long gives way to another; one that exists for so long gives way to a larger one
/// (Kafka's `min.incremental.fetch.session.eviction.ms`).
const EVICTABLE_AFTER: Duration = Duration::from_secs(120);

/// `session_id` of a request or answer without a session.
const NO_SESSION: i32 = 0;
/// `session_epoch` of a request that would open a session.
const INITIAL_EPOCH: i32 = 0;
/// `session_epoch` of a request that wants none.
const FINAL_EPOCH: i32 = -1;

/// A topic as a client names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum TopicKey {
    Name(Arc<str>),
    Id(Uuid),
}

/// A topic that is fetched from.
#[derive(Debug)]
pub(super) struct AskedTopic {
    pub key: TopicKey,
    /// The name behind an id, once it was found; after the topic is gone it tells a recreated one from none.
    pub name: OnceLock<TopicName>,
}

/// A partition to be read, and from where.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub topic: Arc<AskedTopic>,
    pub index: i32,
    pub fetch_offset: i64,
    pub max_bytes: i32,
    pub leader_epoch: i32,
}

/// A request whose session, if it has one, is found.
#[derive(Debug)]
pub(super) struct Begun {
    /// What is to be read, in this order.
    pub wanted: Vec<Wanted>,
    pub ending: Ending,
}

/// What the answer has to do with sessions.
#[derive(Debug)]
pub(super) enum Ending {
    /// It tells everything, and no session is opened.
    Plain,
    /// It tells everything, and a session is opened if there is room.
    Opens { by_id: bool },
    /// It tells what is new.
    Continues { id: i32, epoch: i32, session: Arc<Mutex<Session>> },
}

/// What a client was told of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    high_watermark: i64,
    last_stable_offset: i64,
    log_start_offset: i64,
}

#[derive(Debug)]
struct Cached {
    wanted: Wanted,
    told: Option<Told>,
}

/// One session.
#[derive(Debug)]
pub(super) struct Session {
    by_id: bool,
    epoch: i32,
    topics: HashMap<TopicKey, SessionTopic>,
    /// Partitions by their place.
    order: BTreeMap<u64, Cached>,
    next_place: u64,
}

#[derive(Debug)]
struct SessionTopic {
    topic: Arc<AskedTopic>,
    /// Partition to place.
    places: HashMap<i32, u64>,
}

/// All sessions of a listener.
pub(crate) struct FetchSessions {
    sessions_max: usize,
    partitions_max: usize,
    metrics: Arc<IngestMetrics>,
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    slots: HashMap<i32, Slot>,
    /// Of all slots.
    partitions: usize,
}

struct Slot {
    session: Arc<Mutex<Session>>,
    partitions: usize,
    opened: Instant,
    used: Instant,
}

impl TopicKey {
    fn new(by_id: bool, name: &str, id: Uuid) -> Self {
        if by_id { Self::Id(id) } else { Self::Name(name.into()) }
    }
}

impl AskedTopic {
    fn new(key: TopicKey) -> Arc<Self> {
        Arc::new(Self { key, name: OnceLock::new() })
    }
}

impl Wanted {
    fn new(topic: &Arc<AskedTopic>, asked: &FetchPartition) -> Self {
        Self {
            topic: topic.clone(),
            index: asked.partition,
            fetch_offset: asked.fetch_offset,
            max_bytes: asked.partition_max_bytes,
            leader_epoch: asked.current_leader_epoch,
        }
    }
}

impl FetchSessions {
    pub fn new(sessions_max: usize, partitions_max: usize, metrics: Arc<IngestMetrics>) -> Self {
        Self { sessions_max, partitions_max, metrics, cache: Mutex::default() }
    }

    /// Finds out what a request wants. FETCH_SESSION_ID_NOT_FOUND, INVALID_FETCH_SESSION_EPOCH and
    /// FETCH_SESSION_TOPIC_ID_ERROR have the client fetch in full.
    pub(super) fn begin(&self, request: &FetchRequest, by_id: bool, now: Instant) -> Result<Begun, ResponseError> {
        let (id, epoch) = (request.session_id, request.session_epoch);
        if matches!(epoch, INITIAL_EPOCH | FINAL_EPOCH) {
            if id != NO_SESSION {
                self.remove(id);
            }
            let wanted = all_of(request, by_id);
            let opens = epoch == INITIAL_EPOCH && !wanted.is_empty();
            return Ok(Begun { wanted, ending: if opens { Ending::Opens { by_id } } else { Ending::Plain } });
        }
        let session = self.touch(id, now).ok_or(ResponseError::FetchSessionIdNotFound)?;
        let (wanted, epoch) = {
            let mut session = session.lock();
            if session.epoch != epoch {
                return Err(ResponseError::InvalidFetchSessionEpoch);
            }
            if session.by_id != by_id {
                return Err(ResponseError::FetchSessionTopicIdError);
            }
            session.update(request);
            session.epoch = next_epoch(session.epoch);
            (session.order.values().map(|cached| cached.wanted.clone()).collect::<Vec<_>>(), session.epoch)
        };
        if wanted.is_empty() {
            self.remove(id);
            return Ok(Begun { wanted, ending: Ending::Plain });
        }
        if !self.resize(id, wanted.len()) {
            return Err(ResponseError::FetchSessionIdNotFound);
        }
        Ok(Begun { wanted, ending: Ending::Continues { id, epoch, session } })
    }

    /// Says what of the rows is told, and under which session.
    pub(super) fn finish(
        &self,
        ending: Ending,
        mut rows: Vec<(Wanted, FetchedPartition)>,
        now: Instant,
    ) -> Result<(i32, Vec<(Wanted, FetchedPartition)>), ResponseError> {
        match ending {
            Ending::Plain => Ok((NO_SESSION, rows)),
            Ending::Opens { by_id } => {
                let id = self.open(by_id, &rows, now).unwrap_or(NO_SESSION);
                Ok((id, rows))
            }
            Ending::Continues { id, epoch, session } => {
                let mut session = session.lock();
                if session.epoch != epoch {
                    return Err(ResponseError::InvalidFetchSessionEpoch);
                }
                rows.retain(|(wanted, row)| session.tell(wanted, row));
                Ok((id, rows))
            }
        }
    }

    fn open(&self, by_id: bool, rows: &[(Wanted, FetchedPartition)], now: Instant) -> Option<i32> {
        let mut cache = self.cache.lock();
        let evicted = cache.make_room(self.sessions_max, self.partitions_max, rows.len(), now)?;
        if evicted {
            self.metrics.fetch_sessions_evicted.inc();
        }
        let id = std::iter::repeat_with(random_id).find(|id| *id != NO_SESSION && !cache.slots.contains_key(id))?;
        let mut session = Session::new(by_id);
        for (wanted, row) in rows {
            session.insert(wanted.clone());
            session.tell(wanted, row);
        }
        let slot =
            Slot { partitions: session.order.len(), session: Arc::new(Mutex::new(session)), opened: now, used: now };
        cache.partitions += slot.partitions;
        cache.slots.insert(id, slot);
        self.show(&cache);
        Some(id)
    }

    fn touch(&self, id: i32, now: Instant) -> Option<Arc<Mutex<Session>>> {
        let mut cache = self.cache.lock();
        let slot = cache.slots.get_mut(&id)?;
        slot.used = now;
        Some(slot.session.clone())
    }

    fn remove(&self, id: i32) {
        let mut cache = self.cache.lock();
        cache.remove(id);
        self.show(&cache);
    }

    /// Notes how many partitions a session has now. One that has become too large is dropped.
    fn resize(&self, id: i32, partitions: usize) -> bool {
        let mut cache = self.cache.lock();
        let others = cache.partitions - cache.slots.get(&id).map_or(0, |slot| slot.partitions);
        let fits = others + partitions <= self.partitions_max;
        match cache.slots.get_mut(&id) {
            Some(slot) if fits => {
                slot.partitions = partitions;
                cache.partitions = others + partitions;
            }
            _ => cache.remove(id),
        }
        let kept = cache.slots.contains_key(&id);
        self.show(&cache);
        kept
    }

    fn show(&self, cache: &Cache) {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.fetch_sessions.set(gauge(cache.slots.len()));
        self.metrics.fetch_session_partitions.set(gauge(cache.partitions));
    }
}

impl Cache {
    fn remove(&mut self, id: i32) {
        if let Some(slot) = self.slots.remove(&id) {
            self.partitions -= slot.partitions;
        }
    }

    /// Makes room for a session of so many partitions, if somebody can give way to it; says whether somebody did.
    fn make_room(
        &mut self,
        sessions_max: usize,
        partitions_max: usize,
        partitions: usize,
        now: Instant,
    ) -> Option<bool> {
        let fits = |cache: &Self| {
            cache.slots.len() < sessions_max && cache.partitions.saturating_add(partitions) <= partitions_max
        };
        if fits(self) {
            return Some(false);
        }
        let id = self.evictable(partitions, now)?;
        self.remove(id);
        fits(self).then_some(true)
    }

    /// The session that nobody has used for longest, if that is long; else the smallest of those that are no longer
    /// new, if it is smaller than the one that comes.
    fn evictable(&self, partitions: usize, now: Instant) -> Option<i32> {
        let since = |then: Instant| now.saturating_duration_since(then);
        let idle = self.slots.iter().min_by_key(|(id, slot)| (slot.used, **id));
        if let Some((id, slot)) = idle
            && since(slot.used) > EVICTABLE_AFTER
        {
            return Some(*id);
        }
        let old = self.slots.iter().filter(|(_, slot)| since(slot.opened) > EVICTABLE_AFTER);
        let smallest = old.min_by_key(|(id, slot)| (slot.partitions, **id))?;
        (smallest.1.partitions < partitions).then_some(*smallest.0)
    }
}

impl Session {
    fn new(by_id: bool) -> Self {
        let epoch = next_epoch(INITIAL_EPOCH);
        Self { by_id, epoch, topics: HashMap::new(), order: BTreeMap::new(), next_place: 0 }
    }

    /// Takes over what a request names, then forgets what it wants forgotten.
    fn update(&mut self, request: &FetchRequest) {
        for asked in &request.topics {
            let key = TopicKey::new(self.by_id, asked.topic.as_str(), asked.topic_id);
            let known = self.topics.get(&key).map(|known| known.topic.clone());
            let topic = known.unwrap_or_else(|| AskedTopic::new(key));
            asked.partitions.iter().for_each(|partition| self.insert(Wanted::new(&topic, partition)));
        }
        for forgotten in &request.forgotten_topics_data {
            let key = TopicKey::new(self.by_id, forgotten.topic.as_str(), forgotten.topic_id);
            for index in &forgotten.partitions {
                self.forget(&key, *index);
            }
        }
    }

    /// Adds a partition behind the others, or changes how a known one is read.
    fn insert(&mut self, wanted: Wanted) {
        let fresh = || SessionTopic { topic: wanted.topic.clone(), places: HashMap::new() };
        let known = self.topics.entry(wanted.topic.key.clone()).or_insert_with(fresh);
        match known.places.entry(wanted.index) {
            Entry::Occupied(place) => {
                if let Some(cached) = self.order.get_mut(place.get()) {
                    cached.wanted = Wanted { topic: known.topic.clone(), ..wanted };
                }
            }
            Entry::Vacant(vacant) => {
                vacant.insert(self.next_place);
                self.order.insert(self.next_place, Cached { wanted, told: None });
                self.next_place += 1;
            }
        }
    }

    fn forget(&mut self, key: &TopicKey, index: i32) {
        let Some(known) = self.topics.get_mut(key) else { return };
        if let Some(place) = known.places.remove(&index) {
            self.order.remove(&place);
        }
        if known.places.is_empty() {
            self.topics.remove(key);
        }
    }

    /// Whether a row is told; if so, notes what it tells.
    fn tell(&mut self, wanted: &Wanted, row: &FetchedPartition) -> bool {
        let places = self.topics.get_mut(&wanted.topic.key).map(|known| &mut known.places);
        let Some(place) = places.and_then(|places| places.get_mut(&wanted.index)) else { return false };
        let Some(cached) = self.order.get_mut(place) else { return false };
        let told = Told {
            high_watermark: row.high_watermark,
            last_stable_offset: row.last_stable_offset,
            log_start_offset: row.log_start_offset,
        };
        let has_records = !row.records.is_empty();
        let is_new = row.error_code != 0 || has_records || cached.told != Some(told);
        cached.told = (row.error_code == 0).then_some(told);
        if has_records && let Some(cached) = self.order.remove(place) {
            *place = self.next_place;
            self.order.insert(self.next_place, cached);
            self.next_place += 1;
        }
        is_new
    }
}

fn all_of(request: &FetchRequest, by_id: bool) -> Vec<Wanted> {
    let partitions = request.topics.iter().flat_map(|asked| {
        let topic = AskedTopic::new(TopicKey::new(by_id, asked.topic.as_str(), asked.topic_id));
        asked.partitions.iter().map(move |partition| Wanted::new(&topic, partition))
    });
    partitions.collect()
}

fn next_epoch(epoch: i32) -> i32 {
    epoch.checked_add(1).unwrap_or(1)
}

/// Not to be guessed: whoever names an id could disturb its session.
fn random_id() -> i32 {
    (Uuid::new_v4().as_u128() as i32) & i32::MAX
}

#[cfg(test)]
mod tests;
