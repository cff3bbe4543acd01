//! A consumer group of the classic protocol as a pure state machine: no I/O, no clock, no tasks.
//!
//! Every event takes `now_ms` of a monotonic clock and leaves its consequences in [`Effects`]: answers to requests
//! that waited (each held as a [`Token`]) and at most one wish to store the group. States as in Kafka:
//!
//! ```text
//! Empty --join--> PreparingRebalance --all joined or timeout--> CompletingRebalance --leader's list stored--> Stable
//!   ^                    ^   |                                        |                                     |
//!   +----nobody left-----|---+                                        |                                     |
//!                        +------------- join, leave, expiry ----------+-------------------------------------+
//! Dead: removed from the registry; whoever still holds it is told to look again.
//! ```
//!
//! Invariants:
//! - A token is answered exactly once. A member holds at most one join token and one sync token; a newer request of
//!   the same member answers the older one.
//! - The generation rises by one when a join phase completes, and at no other time.
//! - Within a generation there is one list of assignments. It is answered only after it is stored.
//! - `proposed` is some only in CompletingRebalance, between the leader's list and its storing.
//! - A member that waits in no request has a session deadline. One that waits is bounded by the rebalance deadline.
//! - Every member supports at least one protocol that all others support too.
//!
//! Sources: Kafka's ClassicGroup and GroupMetadataManager, KIP-345 (static members), KIP-394 (member id required),
//! KIP-559 (protocol echo), KIP-814 (skip assignment).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kafka_protocol::ResponseError;
use thermocline_config::GroupsConfig;

use super::consumer_protocol::{self, CONSUMER_PROTOCOL_TYPE};
use super::records::{GroupMetadata, StoredMember};
use crate::model::Timestamp;

mod join;
mod member;
mod sync;
mod timers;

pub use join::{JoinRefusal, JoinReply, JoinRequest, Joined, JoinedMember};
use member::Member;
pub use sync::{SyncReply, SyncRequest, Synced};

/// Bytes the members of one group may hold (ids and each protocol's subscription), and the assignments of one list;
/// half of the largest group record each.
pub const GROUP_BYTES_MAX: usize = 8 << 20;

/// Names a request that waits for its answer; chosen by the caller, unique within a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// Names one storing of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u64);

/// What a group is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Empty,
    PreparingRebalance,
    CompletingRebalance,
    Stable,
    Dead,
}

/// The numbers a group obeys.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub min_session_ms: i64,
    pub max_session_ms: i64,
    pub initial_delay_ms: i64,
    pub max_size: usize,
}

/// What an event caused.
#[derive(Debug, Default)]
pub struct Effects {
    pub joins: Vec<(Token, JoinReply)>,
    pub syncs: Vec<(Token, SyncReply)>,
    /// Store this durably, then call [`Group::on_stored`] with the ticket.
    pub store: Option<(Ticket, GroupMetadata)>,
}

/// One member that leaves: by its id, or a static one by its instance id alone.
#[derive(Clone, Debug, Default)]
pub struct Leaving {
    pub member_id: String,
    pub instance_id: Option<String>,
}

/// Who commits offsets; generation -1 and no ids for a client that assigns its partitions itself.
#[derive(Clone, Copy, Debug)]
pub struct Committer<'a> {
    pub member_id: &'a str,
    pub instance_id: Option<&'a str>,
    pub generation: i32,
}

/// A group as DescribeGroups shows it.
#[derive(Clone, Debug)]
pub struct GroupDescription {
    pub state: State,
    pub generation: i32,
    pub protocol_type: String,
    /// Empty unless Stable.
    pub protocol: String,
    pub members: Vec<MemberDescription>,
}

/// A member as DescribeGroups shows it; metadata and assignment are empty unless the group is Stable.
#[derive(Clone, Debug)]
pub struct MemberDescription {
    pub member_id: String,
    pub instance_id: Option<String>,
    pub client_id: String,
    pub client_host: String,
    pub metadata: Bytes,
    pub assignment: Bytes,
}

/// [`State`] with what belongs to it.
#[derive(Debug)]
enum Phase {
    Empty,
    Preparing {
        deadline_ms: i64,
        /// Some only while newcomers are awaited on a group that was empty: how far the deadline may still move.
        initial_left_ms: Option<i64>,
    },
    /// The deadline is that of members which have not sent their Sync; none once all did.
    Completing {
        sync_deadline_ms: Option<i64>,
    },
    Stable {
        sync_deadline_ms: Option<i64>,
    },
    Dead,
}

/// What to do when a storing is done.
#[derive(Debug)]
enum Stored {
    Assignment {
        generation: i32,
    },
    /// A static member came back under a new id.
    Swap {
        member_id: String,
        token: Token,
        reply: JoinReply,
    },
}

/// One group.
#[derive(Debug)]
pub struct Group {
    limits: Limits,
    phase: Phase,
    generation: i32,
    protocol_type: Option<String>,
    protocol: Option<String>,
    leader: Option<String>,
    members: BTreeMap<String, Member>,
    /// Instance id to member id.
    static_members: BTreeMap<String, String>,
    /// Member ids that were handed out and not used yet, with the time they expire.
    pending: BTreeMap<String, i64>,
    newcomer_since_delay: bool,
    proposed: Option<BTreeMap<String, Bytes>>,
    storing: Vec<(Ticket, Stored)>,
    next_ticket: u64,
    store_wanted: bool,
    effects: Effects,
}

impl State {
    /// The literal name clients expect.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "Empty",
            Self::PreparingRebalance => "PreparingRebalance",
            Self::CompletingRebalance => "CompletingRebalance",
            Self::Stable => "Stable",
            Self::Dead => "Dead",
        }
    }
}

impl From<&GroupsConfig> for Limits {
    fn from(config: &GroupsConfig) -> Self {
        Self {
            min_session_ms: config.min_session_timeout.as_millis(),
            max_session_ms: config.max_session_timeout.as_millis(),
            initial_delay_ms: config.initial_rebalance_delay.as_millis(),
            max_size: config.max_size,
        }
    }
}

impl Group {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            phase: Phase::Empty,
            generation: 0,
            protocol_type: None,
            protocol: None,
            leader: None,
            members: BTreeMap::new(),
            static_members: BTreeMap::new(),
            pending: BTreeMap::new(),
            newcomer_since_delay: false,
            proposed: None,
            storing: Vec::new(),
            next_ticket: 0,
            store_wanted: false,
            effects: Effects::default(),
        }
    }

    /// A group as it was stored; its members' sessions start anew.
    pub fn restore(limits: Limits, stored: &GroupMetadata, now_ms: i64) -> Self {
        let mut group = Self::new(limits);
        group.generation = stored.generation;
        group.protocol_type = Some(stored.protocol_type.clone()).filter(|name| !name.is_empty());
        let protocol = stored.protocol.clone().unwrap_or_default();
        for stored in &stored.members {
            let member = Member::restore(stored, &protocol, now_ms);
            if let Some(instance) = &member.instance_id {
                group.static_members.insert(instance.clone(), stored.member_id.clone());
            }
            group.members.insert(stored.member_id.clone(), member);
        }
        if !group.members.is_empty() {
            group.phase = Phase::Stable { sync_deadline_ms: None };
            group.protocol = Some(protocol);
            let leader = stored.leader.clone().filter(|id| group.members.contains_key(id));
            group.leader = leader.or_else(|| group.members.keys().next().cloned());
        }
        group
    }

    pub fn state(&self) -> State {
        match self.phase {
            Phase::Empty => State::Empty,
            Phase::Preparing { .. } => State::PreparingRebalance,
            Phase::Completing { .. } => State::CompletingRebalance,
            Phase::Stable { .. } => State::Stable,
            Phase::Dead => State::Dead,
        }
    }

    pub fn generation(&self) -> i32 {
        self.generation
    }

    pub fn protocol_type(&self) -> Option<&str> {
        self.protocol_type.as_deref()
    }

    /// Whether nobody is in it and nobody was promised a place.
    pub fn is_vacant(&self) -> bool {
        matches!(self.phase, Phase::Empty) && self.pending.is_empty()
    }

    /// The group is about to be forgotten. Only one without members may be; a place that was promised is lost, and its
    /// client asks for another.
    pub fn bury(&mut self) {
        debug_assert!(matches!(self.phase, Phase::Empty), "a group that is in use must not be forgotten");
        self.pending.clear();
        self.phase = Phase::Dead;
    }

    /// It could not be forgotten after all.
    pub fn revive(&mut self) {
        if matches!(self.phase, Phase::Dead) {
            self.phase = Phase::Empty;
        }
    }

    /// The topics that its members read, by their subscriptions. None where that cannot be said: the group is no
    /// consumer group, or a subscription cannot be read.
    pub fn subscribed_topics(&self) -> Option<BTreeSet<String>> {
        if self.protocol_type.as_deref() != Some(CONSUMER_PROTOCOL_TYPE) {
            return None;
        }
        if self.members.is_empty() {
            return Some(BTreeSet::new());
        }
        let protocol = self.protocol.as_deref()?;
        let topics =
            self.members.values().map(|member| consumer_protocol::subscribed_topics(&member.metadata(protocol)));
        topics.collect::<Option<Vec<_>>>().map(|topics| topics.into_iter().flatten().collect())
    }

    /// Whether its members are consumers, as far as is known.
    pub fn is_consumer_group(&self) -> bool {
        self.protocol_type.as_deref().is_none_or(|name| name == CONSUMER_PROTOCOL_TYPE)
    }

    /// What the events since the last call caused.
    pub fn take_effects(&mut self) -> Effects {
        let mut effects = std::mem::take(&mut self.effects);
        if std::mem::take(&mut self.store_wanted) {
            effects.store = Some((Ticket(self.next_ticket), self.snapshot()));
            self.next_ticket += 1;
        }
        effects
    }

    /// The storing asked for under `ticket` is done; `ok` says whether it is durable.
    pub fn on_stored(&mut self, now_ms: i64, ticket: Ticket, ok: bool) {
        let (done, waiting) = std::mem::take(&mut self.storing).into_iter().partition(|(of, _)| *of == ticket);
        self.storing = waiting;
        for (_, stored) in done {
            match stored {
                Stored::Assignment { generation } => self.on_assignment_stored(now_ms, generation, ok),
                Stored::Swap { member_id, token, reply } => self.on_swap_stored(now_ms, &member_id, token, reply, ok),
            }
        }
    }

    /// A member's sign of life.
    pub fn heartbeat(
        &mut self,
        now_ms: i64,
        member_id: &str,
        instance_id: Option<&str>,
        generation: i32,
    ) -> Result<(), ResponseError> {
        self.check_member(member_id, instance_id)?;
        self.check_generation(generation)?;
        self.touch(now_ms, member_id);
        match self.phase {
            Phase::Preparing { .. } => Err(ResponseError::RebalanceInProgress),
            Phase::Completing { .. } | Phase::Stable { .. } => Ok(()),
            Phase::Empty => Err(ResponseError::UnknownMemberId),
            Phase::Dead => Err(ResponseError::CoordinatorNotAvailable),
        }
    }

    /// Members leave; one answer for each, in order.
    pub fn leave(&mut self, now_ms: i64, leaving: &[Leaving]) -> Result<Vec<Result<(), ResponseError>>, ResponseError> {
        if matches!(self.phase, Phase::Dead) {
            return Err(ResponseError::CoordinatorNotAvailable);
        }
        let mut members_gone = false;
        let mut answers = Vec::with_capacity(leaving.len());
        for one in leaving {
            if one.instance_id.is_none() && self.pending.remove(&one.member_id).is_some() {
                answers.push(Ok(()));
                continue;
            }
            let found = self.find_leaving(one);
            if let Ok(id) = &found {
                self.remove_member(now_ms, id);
                members_gone = true;
            }
            answers.push(found.map(|_| ()));
        }
        if members_gone {
            self.after_removal(now_ms);
        } else {
            // A promised place that was given back may have been the last one waited for.
            self.try_complete_join(now_ms);
        }
        Ok(answers)
    }

    fn find_leaving(&self, leaving: &Leaving) -> Result<String, ResponseError> {
        match &leaving.instance_id {
            // An administrator removes a static member without knowing its id.
            Some(instance) if leaving.member_id.is_empty() => {
                self.static_members.get(instance).cloned().ok_or(ResponseError::UnknownMemberId)
            }
            instance => {
                self.check_member(&leaving.member_id, instance.as_deref())?;
                Ok(leaving.member_id.clone())
            }
        }
    }

    /// Whether offsets may be committed now; counts as a sign of life.
    pub fn check_commit(&mut self, now_ms: i64, committer: Committer<'_>) -> Result<(), ResponseError> {
        let Committer { member_id, instance_id, generation } = committer;
        match self.phase {
            Phase::Dead => return Err(ResponseError::CoordinatorNotAvailable),
            Phase::Empty if generation < 0 => return Ok(()),
            _ => {}
        }
        self.check_member(member_id, instance_id)?;
        self.check_generation(generation)?;
        if matches!(self.phase, Phase::Completing { .. }) {
            return Err(ResponseError::RebalanceInProgress);
        }
        self.touch(now_ms, member_id);
        Ok(())
    }

    /// Whether offsets may be committed now within a transaction. Before KIP-447 producers did not say who they are;
    /// they are trusted. Those that do may commit while a rebalance goes on, as their generation fences them.
    pub fn check_transactional_commit(&mut self, now_ms: i64, committer: Committer<'_>) -> Result<(), ResponseError> {
        let Committer { member_id, instance_id, generation } = committer;
        match self.phase {
            Phase::Dead => return Err(ResponseError::CoordinatorNotAvailable),
            Phase::Empty if generation < 0 => return Ok(()),
            _ if generation < 0 && member_id.is_empty() && instance_id.is_none() => return Ok(()),
            _ => {}
        }
        self.check_member(member_id, instance_id)?;
        self.check_generation(generation)?;
        self.touch(now_ms, member_id);
        Ok(())
    }

    /// Answers every request that waits; for a broker that stops.
    pub fn release_waiting(&mut self, now_ms: i64, error: ResponseError) {
        for member in self.members.values_mut() {
            member.answer_join(now_ms, Err(JoinRefusal::of(error)), &mut self.effects);
            member.answer_sync(now_ms, Err(error), &mut self.effects);
        }
    }

    pub fn describe(&self) -> GroupDescription {
        let protocol = match self.phase {
            Phase::Stable { .. } => self.protocol.as_deref(),
            _ => None,
        };
        let members = self.members.iter().map(|(id, member)| MemberDescription {
            member_id: id.clone(),
            instance_id: member.instance_id.clone(),
            client_id: member.client_id.clone(),
            client_host: member.client_host.clone(),
            metadata: protocol.map(|name| member.metadata(name)).unwrap_or_default(),
            assignment: protocol.map(|_| member.assignment.clone()).unwrap_or_default(),
        });
        GroupDescription {
            state: self.state(),
            generation: self.generation,
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            protocol: protocol.unwrap_or_default().to_owned(),
            members: members.collect(),
        }
    }

    /// What to store; a proposed assignment counts as given. The caller fills in the time.
    fn snapshot(&self) -> GroupMetadata {
        let protocol = self.protocol.as_deref().unwrap_or_default();
        let members = self.members.iter().map(|(id, member)| StoredMember {
            member_id: id.clone(),
            instance_id: member.instance_id.clone(),
            client_id: member.client_id.clone(),
            client_host: member.client_host.clone(),
            rebalance_timeout_ms: clamp_ms(member.rebalance_timeout_ms),
            session_timeout_ms: clamp_ms(member.session_timeout_ms),
            subscription: member.metadata(protocol),
            assignment: match &self.proposed {
                Some(proposed) => proposed.get(id).cloned().unwrap_or_default(),
                None => member.assignment.clone(),
            },
        });
        GroupMetadata {
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            generation: self.generation,
            protocol: self.protocol.clone(),
            leader: self.leader.clone(),
            state_timestamp: Timestamp::NONE,
            members: members.collect(),
        }
    }

    /// Registers what to do when the state after this event is stored.
    fn store_then(&mut self, stored: Stored) {
        self.storing.push((Ticket(self.next_ticket), stored));
        self.store_wanted = true;
    }

    /// UNKNOWN_MEMBER_ID, or FENCED_INSTANCE_ID for the former holder of an instance id.
    fn check_member(&self, member_id: &str, instance_id: Option<&str>) -> Result<(), ResponseError> {
        if matches!(self.phase, Phase::Dead) {
            return Err(ResponseError::CoordinatorNotAvailable);
        }
        if let Some(instance) = instance_id {
            let holder = self.static_members.get(instance).ok_or(ResponseError::UnknownMemberId)?;
            if holder != member_id {
                return Err(ResponseError::FencedInstanceId);
            }
        }
        if self.members.contains_key(member_id) { Ok(()) } else { Err(ResponseError::UnknownMemberId) }
    }

    fn check_generation(&self, generation: i32) -> Result<(), ResponseError> {
        if generation == self.generation { Ok(()) } else { Err(ResponseError::IllegalGeneration) }
    }

    /// Starts a member's session anew, unless it waits in a request.
    fn touch(&mut self, now_ms: i64, member_id: &str) {
        if let Some(member) = self.members.get_mut(member_id) {
            member.touch(now_ms);
        }
    }

    /// Takes a member out; requests it waits in are told that it is unknown.
    fn remove_member(&mut self, now_ms: i64, member_id: &str) {
        let Some(mut member) = self.members.remove(member_id) else { return };
        member.answer_join(now_ms, Err(JoinRefusal::of(ResponseError::UnknownMemberId)), &mut self.effects);
        member.answer_sync(now_ms, Err(ResponseError::UnknownMemberId), &mut self.effects);
        if let Some(instance) = &member.instance_id {
            self.static_members.remove(instance);
        }
        if self.leader.as_deref() == Some(member_id) {
            self.leader = self.members.keys().next().cloned();
        }
    }

    /// Goes on after members are gone.
    fn after_removal(&mut self, now_ms: i64) {
        match self.phase {
            Phase::Preparing { .. } => self.try_complete_join(now_ms),
            Phase::Completing { .. } | Phase::Stable { .. } => self.prepare_rebalance(now_ms),
            Phase::Empty | Phase::Dead => {}
        }
    }
}

fn clamp_ms(ms: i64) -> i32 {
    i32::try_from(ms).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests;
