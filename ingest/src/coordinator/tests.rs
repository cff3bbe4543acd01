//! The coordinator as a state machine: random clients, a disk that is slow, fails and tears, brokers that die, and time
//! that is moved by hand.
//!
//! The model is the log: the changes that became durable, in order. Held against it after every event:
//! - what the coordinator says is committed is what the log says, also after it was read back;
//! - what was acknowledged is in the log, and of a group that was deleted nothing is;
//! - in a generation a partition has one owner, and a generation that was told is never told again for other owners;
//! - offsets of what a group reads do not expire;
//! - every request is answered in the end.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use prometheus::Registry as Metrics;
use proptest::prelude::*;
use thermocline_config::{HumanDuration, LogConfig};
use tokio::task::{LocalSet, spawn_local, yield_now};

use super::storage::Replay;
use super::topic::{Entry, RawRecord};
use super::writer::{QUEUE_MAX, apply, encode};
use super::*;
use crate::clock::ManualClock;
use crate::log::HotLog;
use crate::metadata::MetadataStore;
use crate::metrics::IngestMetrics;
use crate::model::{Offset, PartitionId, Timestamp, TopicName};

const GROUP: &str = "team";
const CLIENTS: usize = 4;
/// Clients below this number are static members.
const STATIC_CLIENTS: usize = 1;
const PARTITIONS: u8 = 5;
const SESSION_MS: i32 = 10_000;
const REBALANCE_MS: i32 = 60_000;
/// Turns of the runtime after which whoever can go on has.
const TURNS: usize = 20;

#[derive(Clone, Debug)]
enum Event {
    Join {
        client: usize,
        new_subscription: bool,
    },
    Sync {
        client: usize,
    },
    Heartbeat {
        client: usize,
    },
    /// As a member, or as a client that assigns its partitions itself.
    Commit {
        client: usize,
        partition: u8,
        simple: bool,
    },
    Leave {
        client: usize,
    },
    /// The client starts again and knows nothing.
    Crash {
        client: usize,
    },
    Pass {
        ms: u64,
    },
    /// The oldest change in the queue is written, or fails to be.
    Store {
        ok: bool,
    },
    DeleteGroup,
    DeleteOffset {
        partition: u8,
    },
    /// So much later offsets that outlived their retention are looked for.
    Expire {
        days: i64,
    },
    AllJoin,
    AllSync,
    /// The broker dies; so many changes of the queue made it to the log and were not answered.
    Restart {
        survive: usize,
    },
}

fn event() -> impl Strategy<Value = Event> {
    let client = || 0..CLIENTS;
    prop_oneof![
        6 => (client(), prop::bool::weighted(0.2))
            .prop_map(|(client, new_subscription)| Event::Join { client, new_subscription }),
        6 => client().prop_map(|client| Event::Sync { client }),
        3 => client().prop_map(|client| Event::Heartbeat { client }),
        6 => (client(), 0..PARTITIONS, prop::bool::weighted(0.3))
            .prop_map(|(client, partition, simple)| Event::Commit { client, partition, simple }),
        1 => client().prop_map(|client| Event::Leave { client }),
        1 => client().prop_map(|client| Event::Crash { client }),
        3 => prop_oneof![Just(1), Just(500), Just(3_000), Just(9_000), Just(61_000)].prop_map(|ms| Event::Pass { ms }),
        9 => prop::bool::weighted(0.9).prop_map(|ok| Event::Store { ok }),
        1 => Just(Event::DeleteGroup),
        1 => (0..PARTITIONS).prop_map(|partition| Event::DeleteOffset { partition }),
        1 => (0..9_i64).prop_map(|days| Event::Expire { days }),
        3 => Just(Event::AllJoin),
        3 => Just(Event::AllSync),
        1 => (0..4_usize).prop_map(|survive| Event::Restart { survive }),
    ]
}

/// What a client believes.
#[derive(Clone, Debug, Default)]
struct Client {
    member_id: String,
    generation: i32,
    /// The members it has to assign to, if it leads.
    leads: Vec<String>,
    subscription: u8,
}

/// How a request ended.
enum Ended {
    Joined(usize, JoinReply),
    Synced { client: usize, member_id: String, generation: i32, reply: SyncReply },
    Committed { partition: u8, offset: i64, reply: Result<(), ResponseError> },
    GroupDeleted(Result<(), ResponseError>),
    Other,
}

struct World {
    /// Made once: nothing of it is used but that it is there.
    topics: Arc<Topics>,
    clock: Arc<ManualClock>,
    coordinator: Arc<GroupCoordinator>,
    queue: mpsc::Receiver<Job>,
    /// What applied changes want written, before the rest of the queue.
    backlog: Vec<Write>,
    log: Vec<RawRecord>,
    /// What the log says is committed.
    durable: BTreeMap<u8, i64>,
    /// Every commit that ever became durable.
    stored: BTreeSet<(u8, i64)>,
    clients: Vec<Client>,
    next_offset: i64,
    names: u64,
    /// Of this broker's life: requests under way, and those that ended and were not looked at.
    waiting: Rc<()>,
    ended: Rc<RefCell<Vec<Ended>>>,
    owners: BTreeMap<(i32, u8), String>,
}

fn topics() -> Arc<Topics> {
    static TOPICS: LazyLock<(tempfile::TempDir, Arc<Topics>)> = LazyLock::new(|| {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::at(Timestamp(0)));
        let metrics = Arc::new(IngestMetrics::new(&Metrics::new()).unwrap());
        let open = |path: &Path| {
            let log = HotLog::open(path.join("log"), LogConfig::default(), clock, metrics).unwrap();
            let store = Arc::new(MetadataStore::open(&path.join("metadata.redb")).unwrap());
            Arc::new(Topics::open(store, log, LogConfig::default()).unwrap())
        };
        let topics = open(dir.path());
        (dir, topics)
    });
    TOPICS.1.clone()
}

fn open(
    topics: Arc<Topics>,
    clock: Arc<ManualClock>,
    log: &[RawRecord],
) -> (Arc<GroupCoordinator>, mpsc::Receiver<Job>) {
    let config = GroupsConfig { initial_rebalance_delay: HumanDuration::secs(3), ..GroupsConfig::default() };
    let registry = Arc::new(Registry::new(config, clock));
    let mut replay = Replay::default();
    for (at, (key, value)) in log.iter().enumerate() {
        let (key, value) = (Some(key.as_ref()), value.as_deref());
        replay.apply(Entry::Record { transaction: None, offset: Offset(at as i64), key, value });
    }
    registry.restore(replay.finish());
    let (sender, queue) = mpsc::channel(QUEUE_MAX);
    (Arc::new(GroupCoordinator { registry, topics, writers: vec![sender] }), queue)
}

fn at(partition: u8) -> TopicPartition {
    TopicPartition::new(TopicName::new("orders").unwrap(), PartitionId(i32::from(partition)))
}

fn instance(client: usize) -> Option<String> {
    (client < STATIC_CLIENTS).then(|| format!("instance-{client}"))
}

/// A subscription to "orders", as consumers write it; the version is user data.
fn subscription(version: u8) -> Bytes {
    let parts: [&[u8]; 4] = [&[0, 0, 0, 0, 0, 1, 0, 6], b"orders", &[0, 0, 0, 1], &[version]];
    Bytes::from(parts.concat())
}

impl World {
    fn new() -> Self {
        let (topics, clock) = (topics(), Arc::new(ManualClock::at(Timestamp(1_000))));
        let (coordinator, queue) = open(topics.clone(), clock.clone(), &[]);
        Self {
            topics,
            clock,
            coordinator,
            queue,
            backlog: Vec::new(),
            log: Vec::new(),
            durable: BTreeMap::new(),
            stored: BTreeSet::new(),
            clients: vec![Client::default(); CLIENTS],
            next_offset: 0,
            names: 0,
            waiting: Rc::new(()),
            ended: Rc::default(),
            owners: BTreeMap::new(),
        }
    }

    /// Runs a request beside the others.
    fn request(&self, request: impl Future<Output = Ended> + 'static) {
        let (waiting, ended) = (self.waiting.clone(), self.ended.clone());
        spawn_local(async move {
            let how = request.await;
            ended.borrow_mut().push(how);
            drop(waiting);
        });
    }

    async fn happen(&mut self, event: &Event) {
        let coordinator = self.coordinator.clone();
        match *event {
            Event::Join { client, new_subscription } => self.join(client, new_subscription),
            Event::Sync { client } => self.sync(client),
            Event::Heartbeat { client } => {
                let Client { member_id, generation, .. } = &self.clients[client];
                let _ = coordinator.heartbeat(GROUP, member_id, instance(client).as_deref(), *generation);
            }
            Event::Commit { client, partition, simple } => self.commit(client, partition, simple),
            Event::Leave { client } => {
                let member_id = self.clients[client].member_id.clone();
                let leaving = Leaving { member_id, instance_id: instance(client) };
                self.request(async move {
                    let _ = coordinator.leave(GROUP, &[leaving]).await;
                    Ended::Other
                });
            }
            Event::Crash { client } => self.clients[client] = Client::default(),
            Event::Pass { ms } => {
                self.clock.advance_ms(i64::try_from(ms).unwrap());
                tokio::time::advance(Duration::from_millis(ms)).await;
                self.request(async move {
                    coordinator.fire_timers().await;
                    Ended::Other
                });
            }
            Event::Store { ok } => self.store(ok),
            Event::DeleteGroup => {
                self.request(async move { Ended::GroupDeleted(coordinator.delete(GROUP).await) });
            }
            Event::DeleteOffset { partition } => self.request(async move {
                let _ = coordinator.delete_offsets(GROUP, vec![at(partition)]).await;
                Ended::Other
            }),
            Event::Expire { days } => {
                self.clock.advance_ms(days * 86_400_000);
                let queued = self.queue.len();
                coordinator.expire().await;
                let state = coordinator.list().first().map(|group| group.state);
                let has_members = state.is_some_and(|state| state != State::Empty);
                assert!(!has_members || self.queue.len() == queued, "offsets of a group in use expired");
            }
            Event::AllJoin => (0..CLIENTS).for_each(|client| self.join(client, false)),
            Event::AllSync => (0..CLIENTS).for_each(|client| self.sync(client)),
            Event::Restart { survive } => self.restart(survive).await,
        }
        self.quiesce().await;
        self.check();
    }

    fn join(&mut self, client: usize, new_subscription: bool) {
        self.names += 1;
        let believed = &mut self.clients[client];
        believed.subscription = believed.subscription.wrapping_add(u8::from(new_subscription)) % 10;
        let request = JoinRequest {
            member_id: believed.member_id.clone(),
            new_member_id: format!("member-{}", self.names),
            instance_id: instance(client),
            client_id: "client".to_owned(),
            client_host: "127.0.0.1".to_owned(),
            session_timeout_ms: SESSION_MS,
            rebalance_timeout_ms: REBALANCE_MS,
            protocol_type: "consumer".to_owned(),
            protocols: vec![("range".to_owned(), subscription(believed.subscription))],
            require_member_id: true,
            can_skip_assignment: true,
        };
        let coordinator = self.coordinator.clone();
        self.request(async move { Ended::Joined(client, coordinator.join(GROUP, request).await) });
    }

    fn sync(&mut self, client: usize) {
        self.names += 1;
        let Client { member_id, generation, leads, .. } = self.clients[client].clone();
        let mut parts: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for partition in 0..PARTITIONS {
            if !leads.is_empty() {
                // Another list each time, as a leader that asks again may well bring.
                let owner = (usize::from(partition) + usize::try_from(self.names).unwrap()) % leads.len();
                parts.entry(leads[owner].clone()).or_default().push(partition);
            }
        }
        let request = SyncRequest {
            member_id: member_id.clone(),
            instance_id: instance(client),
            generation,
            protocol_type: None,
            protocol: None,
            assignments: parts.into_iter().map(|(id, part)| (id, Bytes::from(part))).collect(),
        };
        let coordinator = self.coordinator.clone();
        self.request(async move {
            let reply = coordinator.sync(GROUP, request).await;
            Ended::Synced { client, member_id, generation, reply }
        });
    }

    fn commit(&mut self, client: usize, partition: u8, simple: bool) {
        self.next_offset += 1;
        let (offset, now) = (self.next_offset, self.clock.now());
        let committed =
            CommittedOffset { offset: Offset(offset), leader_epoch: 0, metadata: String::new(), commit_timestamp: now };
        let Client { member_id, generation, .. } = self.clients[client].clone();
        let coordinator = self.coordinator.clone();
        self.request(async move {
            let instance = instance(client);
            let committer = match simple {
                true => Committer { member_id: "", instance_id: None, generation: -1 },
                false => Committer { member_id: &member_id, instance_id: instance.as_deref(), generation },
            };
            let unknown = ResponseError::GroupIdNotFound;
            let reply = coordinator.commit(GROUP, committer, unknown, vec![(at(partition), committed)]).await;
            Ended::Committed { partition, offset, reply }
        });
    }

    fn next_write(&mut self) -> Option<Write> {
        if !self.backlog.is_empty() {
            return Some(self.backlog.remove(0));
        }
        match self.queue.try_recv().ok()? {
            Job::Write(write) => Some(write),
            Job::End(_) => panic!("nobody ends a transaction here"),
        }
    }

    /// What the writer does with one change.
    fn store(&mut self, ok: bool) {
        let Some(write) = self.next_write() else { return };
        let records = encode(&write).unwrap();
        if ok {
            self.append(&write, &records);
        }
        let outcome = if ok { Ok(()) } else { Err(ResponseError::CoordinatorNotAvailable) };
        self.backlog.extend(apply(&self.coordinator.registry, write, outcome));
    }

    fn append(&mut self, write: &Write, records: &[RawRecord]) {
        self.log.extend(records.iter().cloned());
        let number = |at: &TopicPartition| u8::try_from(at.partition.0).unwrap();
        match &write.change {
            Change::Offsets(commits) => {
                for (at, committed) in commits {
                    self.durable.insert(number(at), committed.offset.0);
                    self.stored.insert((number(at), committed.offset.0));
                }
            }
            Change::Forget { offsets, group } => {
                for at in offsets {
                    self.durable.remove(&number(at));
                }
                // A group of that name begins anew, with its first generation.
                if *group {
                    self.owners.clear();
                }
            }
            Change::Group { .. } | Change::Pending { .. } => {}
        }
    }

    async fn restart(&mut self, survive: usize) {
        for _ in 0..survive {
            let Some(write) = self.next_write() else { break };
            let records = encode(&write).unwrap();
            self.append(&write, &records);
        }
        self.backlog.clear();
        let (coordinator, queue) = open(self.topics.clone(), self.clock.clone(), &self.log);
        // Connections die with the broker, and with them the requests that wait: nobody hears how they end.
        self.waiting = Rc::new(());
        self.ended = Rc::default();
        (self.coordinator, self.queue) = (coordinator, queue);
        yield_now().await;
    }

    /// Lets everybody go on who can.
    async fn quiesce(&mut self) {
        for _ in 0..TURNS {
            yield_now().await;
            let ended: Vec<Ended> = self.ended.borrow_mut().drain(..).collect();
            ended.into_iter().for_each(|ended| self.look_at(ended));
        }
    }

    fn look_at(&mut self, ended: Ended) {
        match ended {
            Ended::Other => {}
            Ended::Joined(client, Ok(joined)) => {
                let leads = joined.leader == joined.member_id && !joined.skip_assignment;
                let members = joined.members.iter().map(|member| member.member_id.clone());
                let believed = &mut self.clients[client];
                believed.leads = if leads { members.collect() } else { Vec::new() };
                believed.member_id = joined.member_id;
                believed.generation = joined.generation;
            }
            Ended::Joined(client, Err(refusal)) => self.clients[client].member_id = refusal.member_id,
            Ended::Synced { client, member_id, generation, reply } => {
                let Ok(synced) = reply else { return };
                let identity = instance(client).unwrap_or(member_id);
                for partition in synced.assignment {
                    let owner = self.owners.entry((generation, partition)).or_insert_with(|| identity.clone());
                    assert_eq!(*owner, identity, "two owners of {partition} in generation {generation}");
                }
            }
            Ended::Committed { partition, offset, reply } => {
                let acked = reply.is_ok();
                assert!(!acked || self.stored.contains(&(partition, offset)), "acknowledged and not stored");
            }
            Ended::GroupDeleted(deleted) => {
                assert!(deleted.is_err() || self.durable.is_empty(), "left of a deleted group: {:?}", self.durable);
            }
        }
    }

    fn check(&self) {
        let told = self.coordinator.with_committed(GROUP, |offsets| {
            let number = |partition: PartitionId| u8::try_from(partition.0).unwrap();
            offsets.iter().map(|(_, partition, committed)| (number(partition), committed.offset.0)).collect()
        });
        let told: BTreeMap<u8, i64> = told.unwrap_or_default();
        assert_eq!(told, self.durable, "what is committed is what the log says");
    }

    /// Lets time pass until nobody waits.
    async fn settle(&mut self) {
        for _ in 0..300 {
            while !self.backlog.is_empty() || !self.queue.is_empty() {
                self.happen(&Event::Store { ok: true }).await;
            }
            if Rc::strong_count(&self.waiting) == 1 {
                return;
            }
            let registry = &self.coordinator.registry;
            let Some(next) = registry.next_timer_ms() else { break };
            let ms = u64::try_from(next - registry.now_ms()).unwrap_or(0);
            self.happen(&Event::Pass { ms }).await;
        }
        panic!("{} requests are unanswered", Rc::strong_count(&self.waiting) - 1);
    }
}

fn simulate(events: &[Event]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let mut world = World::new();
        for event in events {
            world.happen(event).await;
        }
        world.settle().await;
        // And all of it is found again.
        world.happen(&Event::Restart { survive: 0 }).await;
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_commit_is_lost_and_no_partition_has_two_owners(events in prop::collection::vec(event(), 1..100)) {
        simulate(&events);
    }
}

/// A commit that waits for the disk while its group is deleted must not come back with the next start.
#[test]
fn a_deletion_waits_for_commits_under_way() {
    let commit = Event::Commit { client: 0, partition: 0, simple: true };
    simulate(&[
        commit,
        Event::DeleteGroup,
        Event::Store { ok: true },
        Event::Store { ok: true },
        Event::Store { ok: true },
    ]);
}

/// What could not be written was not deleted.
#[test]
fn a_deletion_that_fails_leaves_the_group() {
    let commit = Event::Commit { client: 0, partition: 0, simple: true };
    let (good, bad) = (Event::Store { ok: true }, Event::Store { ok: false });
    simulate(&[commit.clone(), good.clone(), Event::DeleteGroup, bad, commit, good]);
}
