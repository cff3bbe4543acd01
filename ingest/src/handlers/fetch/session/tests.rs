//! Sessions held against a client that does what Java's `FetchSessionHandler` does, and against the answer that a full
//! fetch would have been.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kafka_protocol::messages::TopicName as WireName;
use kafka_protocol::messages::fetch_request::{FetchTopic, ForgottenTopic};
use prometheus::Registry;
use proptest::prelude::*;

use super::*;
use crate::read::{Chunk, SendRun};

const TOPICS: u8 = 3;
const PARTITIONS: i32 = 3;
const UNKNOWN: i16 = 3;

type Place = (u8, i32);

fn sessions(sessions_max: usize, partitions_max: usize) -> FetchSessions {
    FetchSessions::new(sessions_max, partitions_max, Arc::new(IngestMetrics::new(&Registry::new()).unwrap()))
}

fn name(topic: u8) -> WireName {
    WireName(kafka_protocol::protocol::StrBytes::from_string(format!("topic-{topic}")))
}

fn id(topic: u8) -> Uuid {
    Uuid::from_u128(u128::from(topic) + 1)
}

fn request(session: (i32, i32), asked: &BTreeMap<Place, i64>, forgotten: &BTreeSet<Place>) -> FetchRequest {
    let topics = (0..TOPICS).filter_map(|topic| {
        let partitions = asked.range((topic, 0)..(topic + 1, 0)).map(|((_, index), offset)| {
            FetchPartition::default().with_partition(*index).with_fetch_offset(*offset).with_partition_max_bytes(100)
        });
        let partitions: Vec<_> = partitions.collect();
        let wanted = FetchTopic::default().with_topic(name(topic)).with_topic_id(id(topic));
        (!partitions.is_empty()).then(|| wanted.with_partitions(partitions))
    });
    let forgotten = forgotten.iter().map(|(topic, index)| {
        ForgottenTopic::default().with_topic(name(*topic)).with_topic_id(id(*topic)).with_partitions(vec![*index])
    });
    FetchRequest::default()
        .with_session_id(session.0)
        .with_session_epoch(session.1)
        .with_topics(topics.collect())
        .with_forgotten_topics_data(forgotten.collect())
}

fn place_of(wanted: &Wanted) -> Place {
    let topic = match &wanted.topic.key {
        TopicKey::Name(name) => name.as_bytes().last().unwrap() - b'0',
        TopicKey::Id(id) => u8::try_from(id.as_u128() - 1).unwrap(),
    };
    (topic, wanted.index)
}

/// A partition as it is on the broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Log {
    start: i64,
    stable: i64,
    end: i64,
    gone: bool,
}

impl Log {
    /// What reading it gives.
    fn row(self, index: i32, offset: i64) -> FetchedPartition {
        let records =
            if !self.gone && offset < self.end { vec![Chunk::Bytes(Bytes::from_static(b"batch"))] } else { Vec::new() };
        let offset = |offset| if self.gone { -1 } else { offset };
        FetchedPartition {
            index,
            error_code: if self.gone { UNKNOWN } else { 0 },
            high_watermark: offset(self.end),
            last_stable_offset: offset(self.stable),
            log_start_offset: offset(self.start),
            aborted: Vec::new(),
            records: SendRun { chunks: records, ..SendRun::default() },
        }
    }
}

#[derive(Clone, Debug)]
enum Event {
    Append(Place),
    Settle(Place),
    Trim(Place),
    Break(Place),
    Assign(Place, bool),
    Seek(Place, i64),
    Fetch,
    /// The broker did it, the client never heard.
    FetchUnheard,
    /// The broker starts again.
    Restart,
    /// Somebody else's large sessions push ours out.
    Crowd,
}

fn event() -> impl Strategy<Value = Event> {
    let place = || (0..TOPICS, 0..PARTITIONS);
    prop_oneof![
        4 => place().prop_map(Event::Append),
        1 => place().prop_map(Event::Settle),
        2 => place().prop_map(Event::Trim),
        1 => place().prop_map(Event::Break),
        3 => (place(), any::<bool>()).prop_map(|(place, on)| Event::Assign(place, on)),
        3 => (place(), 0..6_i64).prop_map(|(place, offset)| Event::Seek(place, offset)),
        8 => Just(Event::Fetch),
        1 => Just(Event::FetchUnheard),
        1 => Just(Event::Restart),
        1 => Just(Event::Crowd),
    ]
}

struct World {
    by_id: bool,
    now: Instant,
    sessions: FetchSessions,
    logs: BTreeMap<Place, Log>,
    /// What the client wants to read, and from where.
    wanted: BTreeMap<Place, i64>,
    /// What the broker knows of it, as the client believes.
    sent: BTreeMap<Place, i64>,
    session: (i32, i32),
    /// Offsets the client knows, of partitions that are there.
    known: BTreeMap<Place, (i64, i64, i64)>,
}

impl World {
    fn new(by_id: bool) -> Self {
        Self {
            by_id,
            now: Instant::now(),
            sessions: sessions(2, 1000),
            logs: (0..TOPICS)
                .flat_map(|topic| (0..PARTITIONS).map(move |index| ((topic, index), Log::default())))
                .collect(),
            wanted: BTreeMap::from([((0, 0), 0)]),
            sent: BTreeMap::new(),
            session: (NO_SESSION, INITIAL_EPOCH),
            known: BTreeMap::new(),
        }
    }

    fn happen(&mut self, event: &Event) {
        match *event {
            Event::Append(place) => self.logs.get_mut(&place).unwrap().end += 1,
            Event::Settle(place) => {
                let log = self.logs.get_mut(&place).unwrap();
                log.stable = log.end;
            }
            Event::Trim(place) => {
                let log = self.logs.get_mut(&place).unwrap();
                log.start = log.end;
            }
            Event::Break(place) => self.logs.get_mut(&place).unwrap().gone ^= true,
            Event::Assign(place, true) => {
                self.wanted.entry(place).or_default();
            }
            Event::Assign(place, false) => {
                self.wanted.remove(&place);
            }
            Event::Seek(place, offset) => {
                if let Some(position) = self.wanted.get_mut(&place) {
                    *position = offset;
                }
            }
            Event::Fetch => drop(self.fetch(true)),
            Event::FetchUnheard => drop(self.fetch(false)),
            Event::Restart => self.sessions = sessions(2, 1000),
            Event::Crowd => {
                self.now += EVICTABLE_AFTER + Duration::from_secs(1);
                for _ in 0..2 {
                    let all = self.logs.keys().map(|place| (*place, 0)).collect();
                    let begun = self.sessions.begin(&request((0, 0), &all, &BTreeSet::new()), self.by_id, self.now);
                    let begun = begun.unwrap();
                    let rows = self.read(begun.wanted);
                    self.sessions.finish(begun.ending, rows, self.now).unwrap();
                }
            }
        }
    }

    fn read(&self, wanted: Vec<Wanted>) -> Vec<(Wanted, FetchedPartition)> {
        let row = |wanted: Wanted| {
            let row = self.logs[&place_of(&wanted)].row(wanted.index, wanted.fetch_offset);
            (wanted, row)
        };
        wanted.into_iter().map(row).collect()
    }

    /// One fetch; false where the client has to ask in full first.
    fn fetch(&mut self, heard: bool) -> bool {
        let full = self.session.1 == INITIAL_EPOCH;
        let changed = |(place, offset): &(&Place, &i64)| full || self.sent.get(place) != Some(*offset);
        let asked = self.wanted.iter().filter(changed).map(|(place, offset)| (*place, *offset)).collect();
        let forgotten = self.sent.keys().filter(|place| !full && !self.wanted.contains_key(place)).copied().collect();
        let asked = request(self.session, &asked, &forgotten);
        // What is forgotten here is forgotten there. A partition that left and came back meanwhile is neither.
        self.known.retain(|place, _| self.wanted.contains_key(place));
        let answer = self.sessions.begin(&asked, self.by_id, self.now).and_then(|begun| {
            // Whatever was sent, the broker reads what a full fetch would have named.
            let read = begun.wanted.iter().map(|wanted| (place_of(wanted), wanted.fetch_offset));
            assert_eq!(read.collect::<BTreeMap<_, _>>(), self.wanted);
            assert_eq!(begun.wanted.len(), self.wanted.len());
            let rows = self.read(begun.wanted);
            self.sessions.finish(begun.ending, rows, self.now)
        });
        if !heard {
            // It goes on as after a broken connection: in full, naming the session it had.
            self.session.1 = INITIAL_EPOCH;
            return false;
        }
        match answer {
            Ok((session_id, rows)) => self.hear(full, session_id, rows),
            Err(error) => {
                assert!(!full, "a full fetch is never refused: {error}");
                let gone = error == ResponseError::FetchSessionIdNotFound;
                self.session = (if gone { NO_SESSION } else { self.session.0 }, INITIAL_EPOCH);
                return false;
            }
        }
        self.sent = self.wanted.clone();
        true
    }

    fn hear(&mut self, full: bool, session_id: i32, rows: Vec<(Wanted, FetchedPartition)>) {
        let told: BTreeSet<Place> = rows.iter().map(|(wanted, _)| place_of(wanted)).collect();
        assert_eq!(told.len(), rows.len(), "a partition is told once");
        let wanted: BTreeSet<Place> = self.wanted.keys().copied().collect();
        assert!(if full { told == wanted } else { told.is_subset(&wanted) }, "{told:?} of {wanted:?}");
        for (wanted, row) in rows {
            let place = place_of(&wanted);
            if row.error_code == 0 {
                let offsets = (row.log_start_offset, row.last_stable_offset, row.high_watermark);
                self.known.insert(place, offsets);
            } else {
                self.known.remove(&place);
            }
        }
        // What the client knows now is what a full fetch would have told it.
        for (place, offset) in &self.wanted {
            let log = self.logs[place];
            let row = log.row(place.1, *offset);
            if row.error_code != 0 || !row.records.is_empty() {
                assert!(told.contains(place), "{place:?} has something and is not told");
            }
            let known = self.known.get(place).copied();
            assert_eq!(known, (!log.gone).then_some((log.start, log.stable, log.end)), "{place:?}");
        }
        self.session = match (session_id, full) {
            (NO_SESSION, _) => (NO_SESSION, INITIAL_EPOCH),
            (id, true) => (id, next_epoch(INITIAL_EPOCH)),
            (id, false) => (id, next_epoch(self.session.1)),
        };
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_session_tells_what_a_full_fetch_would(
        by_id in any::<bool>(),
        events in prop::collection::vec(event(), 1..80),
    ) {
        let mut world = World::new(by_id);
        for event in &events {
            world.happen(event);
        }
        // At most one refusal, then all is well again.
        prop_assert!(world.fetch(true) || world.fetch(true));
        prop_assert!(world.fetch(true));
    }
}

fn asked(topic: u8, partitions: i32) -> BTreeMap<Place, i64> {
    (0..partitions).map(|index| ((topic, index), 0)).collect()
}

/// Opens a session over empty partitions.
fn open(sessions: &FetchSessions, partitions: i32, now: Instant) -> i32 {
    let begun = sessions.begin(&request((0, 0), &asked(0, partitions), &BTreeSet::new()), false, now).unwrap();
    let rows = begun.wanted.into_iter().map(|wanted| {
        let row = Log::default().row(wanted.index, 0);
        (wanted, row)
    });
    let rows = rows.collect();
    sessions.finish(begun.ending, rows, now).unwrap().0
}

fn go_on(sessions: &FetchSessions, session: (i32, i32), now: Instant) -> Result<Begun, ResponseError> {
    sessions.begin(&request(session, &BTreeMap::new(), &BTreeSet::new()), false, now)
}

#[test]
fn epochs_must_follow_and_ids_must_be_known() {
    let (sessions, now) = (sessions(10, 100), Instant::now());
    let id = open(&sessions, 2, now);
    assert!(id > 0);
    let refused = |session| go_on(&sessions, session, now).map(|begun| begun.wanted.len());
    assert_eq!(refused((id, 2)), Err(ResponseError::InvalidFetchSessionEpoch));
    assert_eq!(refused((id, 1)), Ok(2));
    assert_eq!(refused((id, 1)), Err(ResponseError::InvalidFetchSessionEpoch));
    assert_eq!(refused((id ^ 1, 2)), Err(ResponseError::FetchSessionIdNotFound));
    assert_eq!(refused((0, 5)), Err(ResponseError::FetchSessionIdNotFound));
    let by_id = sessions.begin(&request((id, 2), &BTreeMap::new(), &BTreeSet::new()), true, now);
    assert_eq!(by_id.unwrap_err(), ResponseError::FetchSessionTopicIdError);
    // A full fetch closes the session that it names, and one of the final epoch opens no other.
    let closing = sessions.begin(&request((id, FINAL_EPOCH), &asked(0, 1), &BTreeSet::new()), false, now).unwrap();
    assert!(matches!(closing.ending, Ending::Plain));
    assert_eq!(refused((id, 2)), Err(ResponseError::FetchSessionIdNotFound));
    assert_eq!(sessions.metrics.fetch_session_partitions.get(), 0);
}

#[test]
fn epochs_wrap_to_one() {
    assert_eq!((next_epoch(0), next_epoch(i32::MAX)), (1, 1));
}

#[test]
fn an_answer_that_was_overtaken_tells_nothing() {
    let (sessions, now) = (sessions(10, 100), Instant::now());
    let id = open(&sessions, 1, now);
    let first = go_on(&sessions, (id, 1), now).unwrap();
    let second = go_on(&sessions, (id, 2), now).unwrap();
    let finish = |begun: Begun| sessions.finish(begun.ending, Vec::new(), now).map(|(id, _)| id);
    assert_eq!(finish(first), Err(ResponseError::InvalidFetchSessionEpoch));
    assert_eq!(finish(second), Ok(id));
}

#[test]
fn a_session_that_has_forgotten_everything_ends() {
    let (sessions, now) = (sessions(10, 100), Instant::now());
    let id = open(&sessions, 1, now);
    let forgets = request((id, 1), &BTreeMap::new(), &BTreeSet::from([(0, 0)]));
    let begun = sessions.begin(&forgets, false, now).unwrap();
    assert!(begun.wanted.is_empty() && matches!(begun.ending, Ending::Plain));
    assert_eq!(go_on(&sessions, (id, 2), now).unwrap_err(), ResponseError::FetchSessionIdNotFound);
    assert_eq!(open(&sessions, 0, now), NO_SESSION, "nothing is no session");
}

#[test]
fn what_gave_records_is_read_after_the_others() {
    let (sessions, now) = (sessions(10, 100), Instant::now());
    let id = open(&sessions, 3, now);
    let begun = go_on(&sessions, (id, 1), now).unwrap();
    let full = Log { end: 5, ..Log::default() };
    let rows = begun.wanted.into_iter().map(|wanted| {
        let log = if wanted.index == 0 { full } else { Log::default() };
        let row = log.row(wanted.index, 0);
        (wanted, row)
    });
    let rows = rows.collect();
    let (_, told) = sessions.finish(begun.ending, rows, now).unwrap();
    assert_eq!(told.iter().map(|(wanted, _)| wanted.index).collect::<Vec<_>>(), [0]);
    let begun = go_on(&sessions, (id, 2), now).unwrap();
    assert_eq!(begun.wanted.iter().map(|wanted| wanted.index).collect::<Vec<_>>(), [1, 2, 0]);
}

#[test]
fn sessions_give_way_when_idle_or_small_and_old() {
    let (sessions, start) = (sessions(2, 100), Instant::now());
    let small = open(&sessions, 1, start);
    let large = open(&sessions, 3, start);
    assert_eq!(open(&sessions, 3, start), NO_SESSION, "nobody gives way while all are new");
    let later = start + EVICTABLE_AFTER + Duration::from_secs(1);
    assert!(sessions.touch(small, later).is_some() && sessions.touch(large, later).is_some());
    assert_eq!(open(&sessions, 1, later), NO_SESSION, "to one of its size nobody gives way");
    let newer = open(&sessions, 2, later);
    assert!(newer != NO_SESSION && sessions.touch(small, later).is_none());
    // The large one is not used any more, and goes for the smallest.
    let idle = later + Duration::from_secs(2);
    assert!(sessions.touch(newer, idle).is_some());
    let much_later = later + EVICTABLE_AFTER + Duration::from_secs(1);
    assert!(open(&sessions, 1, much_later) != NO_SESSION && sessions.touch(large, much_later).is_none());
    assert_eq!(sessions.metrics.fetch_sessions_evicted.get(), 2);
    assert_eq!((sessions.metrics.fetch_sessions.get(), sessions.metrics.fetch_session_partitions.get()), (2, 3));
}

#[test]
fn partitions_are_bounded_over_all_sessions() {
    let (sessions, now) = (sessions(10, 4), Instant::now());
    assert_eq!(open(&sessions, 5, now), NO_SESSION);
    let id = open(&sessions, 3, now);
    assert_eq!(open(&sessions, 2, now), NO_SESSION);
    let grows = request((id, 1), &asked(1, 2), &BTreeSet::new());
    assert_eq!(sessions.begin(&grows, false, now).unwrap_err(), ResponseError::FetchSessionIdNotFound);
    assert_eq!(sessions.metrics.fetch_sessions.get(), 0, "it was dropped");
    assert!(open(&sessions, 4, now) != NO_SESSION);
}
