//! Random clients, crashes, restarts, failing stores and time against the state machine.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::*;

use super::super::*;
use super::{LIMITS, request};

const CLIENTS: usize = 5;
/// Clients below this number are static members.
const STATIC_CLIENTS: usize = 2;
const PARTITIONS: u8 = 7;

#[derive(Clone, Debug)]
enum Event {
    Join {
        client: usize,
        new_subscription: bool,
        id_required: bool,
    },
    Sync {
        client: usize,
    },
    Heartbeat {
        client: usize,
    },
    Commit {
        client: usize,
        stale: bool,
    },
    Leave {
        client: usize,
    },
    /// The client starts again and knows nothing.
    Crash {
        client: usize,
    },
    Pass {
        ms: i64,
    },
    Stored {
        ok: bool,
    },
    /// Everybody joins.
    AllJoin,
    /// Everybody asks for its part.
    AllSync,
    /// The broker dies and reads back what is durable.
    Restart,
}

fn event() -> impl Strategy<Value = Event> {
    let client = 0..CLIENTS;
    prop_oneof![
        6 => (client.clone(), prop::bool::weighted(0.2), any::<bool>())
            .prop_map(|(client, new_subscription, id_required)| Event::Join { client, new_subscription, id_required }),
        6 => client.clone().prop_map(|client| Event::Sync { client }),
        4 => client.clone().prop_map(|client| Event::Heartbeat { client }),
        2 => (client.clone(), any::<bool>()).prop_map(|(client, stale)| Event::Commit { client, stale }),
        1 => client.clone().prop_map(|client| Event::Leave { client }),
        1 => client.prop_map(|client| Event::Crash { client }),
        4 => prop_oneof![Just(1), Just(500), Just(3_000), Just(9_000), Just(61_000)].prop_map(|ms| Event::Pass { ms }),
        5 => prop::bool::weighted(0.9).prop_map(|ok| Event::Stored { ok }),
        3 => Just(Event::AllJoin),
        3 => Just(Event::AllSync),
        1 => Just(Event::Restart),
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

struct World {
    group: Group,
    now: i64,
    clients: Vec<Client>,
    names: u64,
    tokens: u64,
    joins: BTreeMap<Token, usize>,
    /// Who asked, as which member, for which generation.
    syncs: BTreeMap<Token, (usize, String, i32)>,
    stores: Vec<(Ticket, GroupMetadata)>,
    durable: Option<GroupMetadata>,
    /// Who was told to own a partition in a generation.
    owners: BTreeMap<(i32, u8), String>,
}

impl World {
    fn new() -> Self {
        Self {
            group: Group::new(Limits { initial_delay_ms: 3_000, ..LIMITS }),
            now: 0,
            clients: vec![Client::default(); CLIENTS],
            names: 0,
            tokens: 0,
            joins: BTreeMap::new(),
            syncs: BTreeMap::new(),
            stores: Vec::new(),
            durable: None,
            owners: BTreeMap::new(),
        }
    }

    fn instance(client: usize) -> Option<String> {
        (client < STATIC_CLIENTS).then(|| format!("instance-{client}"))
    }

    fn token(&mut self) -> Token {
        self.tokens += 1;
        Token(self.tokens)
    }

    fn happen(&mut self, event: &Event) {
        let before = self.group.generation();
        match *event {
            Event::Join { client, new_subscription, id_required } => self.join(client, new_subscription, id_required),
            Event::Sync { client } => self.sync(client),
            Event::Heartbeat { client } => {
                let Client { member_id, generation, .. } = self.clients[client].clone();
                let _ = self.group.heartbeat(self.now, &member_id, Self::instance(client).as_deref(), generation);
            }
            Event::Commit { client, stale } => self.commit(client, stale),
            Event::Leave { client } => {
                let leaving =
                    Leaving { member_id: self.clients[client].member_id.clone(), instance_id: Self::instance(client) };
                let _ = self.group.leave(self.now, &[leaving]);
            }
            Event::Crash { client } => self.clients[client] = Client::default(),
            Event::Pass { ms } => {
                self.now += ms;
                self.group.on_tick(self.now);
            }
            Event::Stored { ok } => self.stored(ok),
            Event::AllJoin => {
                let join = |client| Event::Join { client, new_subscription: false, id_required: false };
                return (0..CLIENTS).for_each(|client| self.happen(&join(client)));
            }
            Event::AllSync => return (0..CLIENTS).for_each(|client| self.happen(&Event::Sync { client })),
            Event::Restart => return self.restart(),
        }
        let after = self.group.generation();
        if after != before {
            assert_eq!(after, before + 1, "the generation rises by one");
            assert!(
                matches!(self.group.state(), State::CompletingRebalance | State::Empty),
                "only as a join phase ends"
            );
        }
        self.collect();
        self.check();
    }

    fn join(&mut self, client: usize, new_subscription: bool, id_required: bool) {
        self.names += 1;
        let token = self.token();
        let believed = &mut self.clients[client];
        believed.subscription = believed.subscription.wrapping_add(u8::from(new_subscription));
        let join = JoinRequest {
            member_id: believed.member_id.clone(),
            instance_id: Self::instance(client),
            protocols: vec![("range".to_owned(), Bytes::from(vec![believed.subscription]))],
            require_member_id: id_required,
            can_skip_assignment: id_required,
            ..request(&format!("member-{}", self.names))
        };
        self.joins.insert(token, client);
        self.group.join(self.now, token, join);
    }

    fn sync(&mut self, client: usize) {
        let token = self.token();
        let believed = self.clients[client].clone();
        let mut parts: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for partition in 0..PARTITIONS {
            if !believed.leads.is_empty() {
                // Another list each time, as a leader that asks again may well bring.
                let owner = (usize::from(partition) + usize::try_from(self.tokens).unwrap()) % believed.leads.len();
                parts.entry(believed.leads[owner].clone()).or_default().push(partition);
            }
        }
        self.syncs.insert(token, (client, believed.member_id.clone(), believed.generation));
        let request = SyncRequest {
            member_id: believed.member_id,
            instance_id: Self::instance(client),
            generation: believed.generation,
            protocol_type: None,
            protocol: None,
            assignments: parts.into_iter().map(|(id, part)| (id, Bytes::from(part))).collect(),
        };
        self.group.sync(self.now, token, request);
    }

    fn commit(&mut self, client: usize, stale: bool) {
        let Client { member_id, generation, .. } = self.clients[client].clone();
        let generation = if stale { generation - 1 } else { generation };
        let instance = Self::instance(client);
        let committer = Committer { member_id: &member_id, instance_id: instance.as_deref(), generation };
        if self.group.check_commit(self.now, committer).is_ok() {
            let simple = generation < 0 && self.group.state() == State::Empty;
            assert!(simple || generation == self.group.generation(), "no commit of another generation is taken");
        }
    }

    fn stored(&mut self, ok: bool) {
        if self.stores.is_empty() {
            return;
        }
        let (ticket, metadata) = self.stores.remove(0);
        if ok {
            self.durable = Some(metadata);
        }
        self.group.on_stored(self.now, ticket, ok);
    }

    fn restart(&mut self) {
        // Connections die with the broker, and with them the requests that wait; a write under way may yet survive.
        self.joins.clear();
        self.syncs.clear();
        self.stores.clear();
        let limits = Limits { initial_delay_ms: 3_000, ..LIMITS };
        let durable = self.durable.clone().unwrap_or_default();
        self.group = Group::restore(limits, &durable, self.now);
        let told = self.owners.keys().map(|(generation, _)| *generation).max().unwrap_or(0);
        assert!(told <= durable.generation, "an assignment was answered before it was durable");
    }

    fn collect(&mut self) {
        let Effects { joins, syncs, store } = self.group.take_effects();
        for (token, reply) in joins {
            let client = self.joins.remove(&token).expect("a join is answered once");
            match reply {
                Ok(joined) => {
                    let leads = joined.leader == joined.member_id && !joined.skip_assignment;
                    let members = joined.members.iter().map(|member| member.member_id.clone());
                    let believed = &mut self.clients[client];
                    believed.leads = if leads { members.collect() } else { Vec::new() };
                    believed.member_id = joined.member_id;
                    believed.generation = joined.generation;
                }
                Err(refusal) => self.clients[client].member_id = refusal.member_id,
            }
        }
        for (token, reply) in syncs {
            let (client, member_id, generation) = self.syncs.remove(&token).expect("a sync is answered once");
            let Ok(synced) = reply else { continue };
            let durable = self.durable.as_ref().filter(|durable| durable.generation == generation);
            let durable = durable.expect("an assignment is answered when its generation is durable");
            let part = durable.members.iter().find(|member| member.member_id == member_id);
            assert_eq!(part.map(|member| &member.assignment), Some(&synced.assignment), "told what is not durable");
            let identity = Self::instance(client).unwrap_or(member_id);
            for partition in synced.assignment {
                let owner = self.owners.entry((generation, partition)).or_insert_with(|| identity.clone());
                assert_eq!(*owner, identity, "two owners of {partition} in generation {generation}");
            }
        }
        self.stores.extend(store);
    }

    /// The invariants of the module.
    fn check(&self) {
        let group = &self.group;
        for (id, member) in &group.members {
            assert!(member.waits() || member.session_deadline_ms.is_some(), "{id} would stay for ever");
            if let Some(instance) = &member.instance_id {
                assert_eq!(group.static_members.get(instance), Some(id));
            }
        }
        let of_members: BTreeSet<_> = group.static_members.values().collect();
        assert!(of_members.iter().all(|id| group.members.contains_key(*id)));
        assert!(group.proposed.is_none() || group.state() == State::CompletingRebalance);
        assert!(group.members.is_empty() || group.leader.as_ref().is_some_and(|id| group.members.contains_key(id)));
        assert_eq!(
            group.members.is_empty() && group.state() != State::PreparingRebalance,
            group.state() == State::Empty
        );
        for member in group.members.values() {
            let held = group.state() == State::CompletingRebalance || member.sync.is_none();
            assert!(held, "a sync waits only while assignments are made");
        }
    }

    /// Lets time pass until nobody waits.
    fn settle(&mut self) {
        for _ in 0..200 {
            while !self.stores.is_empty() {
                self.happen(&Event::Stored { ok: true });
            }
            if self.joins.is_empty() && self.syncs.is_empty() {
                return;
            }
            let Some(next) = self.group.next_deadline_ms() else { break };
            self.happen(&Event::Pass { ms: (next - self.now).max(0) });
        }
        panic!("unanswered: joins {:?}, syncs {:?} in {:?}", self.joins, self.syncs, self.group);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_two_owners_and_no_request_forgotten(events in prop::collection::vec(event(), 1..120)) {
        let mut world = World::new();
        for event in &events {
            world.happen(event);
        }
        world.settle();
    }
}
