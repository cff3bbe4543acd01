//! Joining: who may, who waits, and how a join phase completes into a generation.

use std::collections::BTreeMap;

use bytes::Bytes;
use kafka_protocol::ResponseError;

use super::member::{MEMBER_OVERHEAD_BYTES, Member};
use super::{GROUP_BYTES_MAX, Group, Phase, Stored, Token};
use crate::coordinator::records::STRING_BYTES_MAX;

/// Protocols one member may offer.
pub const PROTOCOLS_MAX: usize = 64;
/// Shortest wait for members that are away, whatever they said when they joined: a timer that is due at once would fire
/// without end.
const ABSENT_WAIT_MIN_MS: i64 = 1000;

/// JoinGroup as the group sees it; nothing in it points into the request frame.
#[derive(Clone, Debug)]
pub struct JoinRequest {
    /// Empty for a newcomer.
    pub member_id: String,
    /// The id it gets if it is one.
    pub new_member_id: String,
    pub instance_id: Option<String>,
    pub client_id: String,
    pub client_host: String,
    pub session_timeout_ms: i32,
    /// -1 where the version does not have it: the session timeout counts.
    pub rebalance_timeout_ms: i32,
    pub protocol_type: String,
    pub protocols: Vec<(String, Bytes)>,
    /// A dynamic newcomer must come back with the id it is told (version 4 and later).
    pub require_member_id: bool,
    /// The client understands `skip_assignment` (version 9 and later).
    pub can_skip_assignment: bool,
}

pub type JoinReply = Result<Joined, JoinRefusal>;

/// A place in a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    pub member_id: String,
    pub generation: i32,
    pub protocol_type: String,
    pub protocol: String,
    pub leader: String,
    pub skip_assignment: bool,
    /// For the leader only.
    pub members: Vec<JoinedMember>,
}

/// What the leader needs to know of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinedMember {
    pub member_id: String,
    pub instance_id: Option<String>,
    pub metadata: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinRefusal {
    pub error: ResponseError,
    /// With MEMBER_ID_REQUIRED the id to come back with, else empty.
    pub member_id: String,
}

impl JoinRefusal {
    pub fn of(error: ResponseError) -> Self {
        Self { error, member_id: String::new() }
    }
}

impl JoinRequest {
    pub fn rebalance_timeout_ms(&self) -> i64 {
        i64::from(if self.rebalance_timeout_ms < 0 { self.session_timeout_ms } else { self.rebalance_timeout_ms })
    }

    /// Bytes the member will hold.
    fn weight(&self) -> usize {
        let ids = self.new_member_id.len().max(self.member_id.len()) + self.instance_id.as_ref().map_or(0, String::len);
        let protocols: usize = self.protocols.iter().map(|(name, bytes)| name.len() + bytes.len()).sum();
        ids + MEMBER_OVERHEAD_BYTES + self.client_id.len() + self.client_host.len() + protocols
    }

    /// Whether every string of it can be stored.
    fn fits(&self) -> bool {
        let strings = [&self.member_id, &self.new_member_id, &self.client_id, &self.client_host, &self.protocol_type];
        self.protocols.len() <= PROTOCOLS_MAX
            && strings.into_iter().chain(&self.instance_id).all(|text| text.len() <= STRING_BYTES_MAX)
            && self.protocols.iter().all(|(name, _)| name.len() <= STRING_BYTES_MAX)
    }
}

impl Group {
    /// A member wants to be in the next generation. Answered under `token`, at once or when the generation begins.
    pub fn join(&mut self, now_ms: i64, token: Token, request: JoinRequest) {
        if let Err(refusal) = self.try_join(now_ms, token, request) {
            self.effects.joins.push((token, Err(refusal)));
        }
    }

    fn try_join(&mut self, now_ms: i64, token: Token, request: JoinRequest) -> Result<(), JoinRefusal> {
        if matches!(self.phase, Phase::Dead) {
            return Err(JoinRefusal::of(ResponseError::CoordinatorNotAvailable));
        }
        let session = i64::from(request.session_timeout_ms);
        if !(self.limits.min_session_ms..=self.limits.max_session_ms).contains(&session) {
            return Err(JoinRefusal::of(ResponseError::InvalidSessionTimeout));
        }
        if !request.fits() {
            return Err(JoinRefusal::of(ResponseError::InvalidRequest));
        }
        self.check_protocols(&request).map_err(JoinRefusal::of)?;
        if !request.member_id.is_empty() {
            return self.join_known(now_ms, token, request);
        }
        let holder = request.instance_id.as_ref().and_then(|instance| self.static_members.get(instance)).cloned();
        if let Some(holder) = holder {
            self.check_room_beside(&holder, &request)?;
            self.swap_static(now_ms, token, request, &holder);
            return Ok(());
        }
        self.check_room(&request)?;
        if request.instance_id.is_none() && request.require_member_id {
            self.pending.insert(request.new_member_id.clone(), now_ms.saturating_add(session));
            return Err(JoinRefusal { error: ResponseError::MemberIdRequired, member_id: request.new_member_id });
        }
        let member_id = request.new_member_id.clone();
        self.add_member(now_ms, token, request, member_id);
        Ok(())
    }

    /// The group's type, and at least one protocol that every member has too.
    fn check_protocols(&self, request: &JoinRequest) -> Result<(), ResponseError> {
        let consistent = if self.members.is_empty() {
            !request.protocol_type.is_empty() && !request.protocols.is_empty()
        } else {
            self.protocol_type.as_deref() == Some(request.protocol_type.as_str())
                && request.protocols.iter().any(|(name, _)| self.members.values().all(|member| member.supports(name)))
        };
        if consistent { Ok(()) } else { Err(ResponseError::InconsistentGroupProtocol) }
    }

    fn check_room(&self, request: &JoinRequest) -> Result<(), JoinRefusal> {
        let promised = self.members.len() + self.pending.len();
        let held = self.members.iter().map(|(id, member)| id.len() + member.weight()).sum::<usize>();
        let promises = self.pending.keys().map(String::len).sum::<usize>();
        if promised >= self.limits.max_size || held + promises + request.weight() > GROUP_BYTES_MAX {
            return Err(JoinRefusal::of(ResponseError::GroupMaxSizeReached));
        }
        Ok(())
    }

    /// Room for the request in the place of a member.
    fn check_room_beside(&self, member_id: &str, request: &JoinRequest) -> Result<(), JoinRefusal> {
        let others = self.members.iter().filter(|(id, _)| *id != member_id);
        if others.map(|(id, other)| id.len() + other.weight()).sum::<usize>() + request.weight() > GROUP_BYTES_MAX {
            return Err(JoinRefusal::of(ResponseError::GroupMaxSizeReached));
        }
        Ok(())
    }

    fn join_known(&mut self, now_ms: i64, token: Token, request: JoinRequest) -> Result<(), JoinRefusal> {
        let member_id = request.member_id.clone();
        if request.instance_id.is_none()
            && let Some(deadline) = self.pending.remove(&member_id)
        {
            if let Err(refusal) = self.check_room(&request) {
                self.pending.insert(member_id, deadline);
                return Err(refusal);
            }
            self.add_member(now_ms, token, request, member_id);
            return Ok(());
        }
        self.check_member(&member_id, request.instance_id.as_deref()).map_err(JoinRefusal::of)?;
        let Some(member) = self.members.get(&member_id) else {
            return Err(JoinRefusal::of(ResponseError::UnknownMemberId));
        };
        self.check_room_beside(&member_id, &request)?;
        let unchanged = member.protocols == request.protocols;
        let leads = self.leader.as_deref() == Some(member_id.as_str());
        let nothing_new = match self.phase {
            Phase::Preparing { .. } | Phase::Empty | Phase::Dead => false,
            // It may have missed the answer of the join phase that just completed.
            Phase::Completing { .. } => unchanged,
            // A leader that joins again does so because it wants a new assignment.
            Phase::Stable { .. } => unchanged && !leads,
        };
        if nothing_new {
            self.touch(now_ms, &member_id);
            self.effects.joins.push((token, Ok(self.current_place(&member_id))));
            return Ok(());
        }
        if let Some(member) = self.members.get_mut(&member_id) {
            member.rejoin(now_ms, token, request, &mut self.effects);
        }
        self.prepare_or_complete(now_ms);
        Ok(())
    }

    fn add_member(&mut self, now_ms: i64, token: Token, request: JoinRequest, member_id: String) {
        if self.members.is_empty() {
            self.protocol_type = Some(request.protocol_type.clone());
        }
        if let Some(instance) = &request.instance_id {
            self.static_members.insert(instance.clone(), member_id.clone());
        }
        self.leader.get_or_insert_with(|| member_id.clone());
        self.members.insert(member_id, Member::new(now_ms, token, request));
        self.newcomer_since_delay = true;
        self.prepare_or_complete(now_ms);
    }

    /// A static member came back without its id: the instance goes on under a new one, the old one is fenced.
    fn swap_static(&mut self, now_ms: i64, token: Token, request: JoinRequest, holder: &str) {
        let Some(mut member) = self.members.remove(holder) else { return };
        let fenced = ResponseError::FencedInstanceId;
        member.answer_join(now_ms, Err(JoinRefusal::of(fenced)), &mut self.effects);
        member.answer_sync(now_ms, Err(fenced), &mut self.effects);
        let former_leader = self.leader.clone();
        let member_id = request.new_member_id.clone();
        let can_skip = request.can_skip_assignment;
        if self.leader.as_deref() == Some(holder) {
            self.leader = Some(member_id.clone());
        }
        if let Some(instance) = &member.instance_id {
            self.static_members.insert(instance.clone(), member_id.clone());
        }
        member.rejoin(now_ms, token, request, &mut self.effects);
        self.members.insert(member_id.clone(), member);
        let keeps_protocol = self.protocol.is_some() && self.choose_protocol() == self.protocol;
        if !matches!(self.phase, Phase::Stable { .. }) || !keeps_protocol {
            self.prepare_or_complete(now_ms);
            return;
        }
        let mut place = self.current_place(&member_id);
        if can_skip {
            place.skip_assignment = !place.members.is_empty();
        } else {
            // An older client that hears that it leads would assign; it is told of the former leader instead.
            place.leader = former_leader.unwrap_or_default();
            place.members.clear();
        }
        self.store_then(Stored::Swap { member_id, token, reply: Ok(place) });
    }

    pub(super) fn on_swap_stored(&mut self, now_ms: i64, member_id: &str, token: Token, reply: JoinReply, ok: bool) {
        let stable = matches!(self.phase, Phase::Stable { .. });
        let generation = self.generation;
        // Where a rebalance began in between, its join phase answers the token.
        if let Some(member) = self.members.get_mut(member_id)
            && member.join == Some(token)
            && stable
        {
            let current = reply.as_ref().is_ok_and(|place| place.generation == generation);
            debug_assert!(current, "a held join is answered when a generation begins");
            let refusal = JoinRefusal::of(ResponseError::CoordinatorNotAvailable);
            member.answer_join(now_ms, if ok { reply } else { Err(refusal) }, &mut self.effects);
        }
    }

    /// The member's place in the current generation.
    fn current_place(&self, member_id: &str) -> Joined {
        let protocol = self.protocol.clone().unwrap_or_default();
        let leads = self.leader.as_deref() == Some(member_id);
        Joined {
            member_id: member_id.to_owned(),
            generation: self.generation,
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            leader: self.leader.clone().unwrap_or_default(),
            skip_assignment: false,
            members: if leads { self.member_list(&protocol) } else { Vec::new() },
            protocol,
        }
    }

    fn member_list(&self, protocol: &str) -> Vec<JoinedMember> {
        let of = |(id, member): (&String, &Member)| JoinedMember {
            member_id: id.clone(),
            instance_id: member.instance_id.clone(),
            metadata: member.metadata(protocol),
        };
        self.members.iter().map(of).collect()
    }

    /// Starts a rebalance, or sees whether the one under way is complete.
    fn prepare_or_complete(&mut self, now_ms: i64) {
        match self.phase {
            Phase::Preparing { .. } => self.try_complete_join(now_ms),
            _ => self.prepare_rebalance(now_ms),
        }
    }

    pub(super) fn prepare_rebalance(&mut self, now_ms: i64) {
        self.proposed = None;
        for member in self.members.values_mut() {
            member.answer_sync(now_ms, Err(ResponseError::RebalanceInProgress), &mut self.effects);
            member.owes_sync = false;
        }
        let timeout = self.rebalance_timeout_ms();
        let delay = self.limits.initial_delay_ms;
        self.phase = match self.phase {
            Phase::Empty if delay > 0 => {
                self.newcomer_since_delay = false;
                let initial_left_ms = Some(timeout.saturating_sub(delay).max(0));
                Phase::Preparing { deadline_ms: now_ms.saturating_add(delay), initial_left_ms }
            }
            _ => Phase::Preparing { deadline_ms: now_ms.saturating_add(timeout), initial_left_ms: None },
        };
        self.try_complete_join(now_ms);
    }

    /// Completes the join phase if everybody who is known has joined and nobody was promised a place.
    pub(super) fn try_complete_join(&mut self, now_ms: i64) {
        if let Phase::Preparing { initial_left_ms: None, .. } = self.phase
            && self.pending.is_empty()
            && self.members.values().all(|member| member.join.is_some())
        {
            self.complete_join(now_ms);
        }
    }

    /// The deadline of the join phase has come.
    pub(super) fn join_deadline(&mut self, now_ms: i64, initial_left_ms: Option<i64>) {
        match initial_left_ms {
            Some(left) if left > 0 && self.newcomer_since_delay => {
                self.newcomer_since_delay = false;
                let delay = self.limits.initial_delay_ms.min(left);
                self.phase =
                    Phase::Preparing { deadline_ms: now_ms.saturating_add(delay), initial_left_ms: Some(left - delay) };
            }
            _ => self.complete_join(now_ms),
        }
    }

    fn complete_join(&mut self, now_ms: i64) {
        // Static members may be away for as long as their session lasts; others have had their time.
        let absent = |member: &Member| member.join.is_none() && member.instance_id.is_none();
        let gone: Vec<String> = self.members.iter().filter(|(_, m)| absent(m)).map(|(id, _)| id.clone()).collect();
        for member_id in &gone {
            self.remove_member(now_ms, member_id);
        }
        let timeout = self.rebalance_timeout_ms();
        let Some(leader) = self.elect_leader() else {
            if self.members.is_empty() {
                self.become_empty();
            } else {
                // Only absent static members: wait on, for one of them or for the end of their sessions.
                let deadline_ms = now_ms.saturating_add(timeout.max(ABSENT_WAIT_MIN_MS));
                self.phase = Phase::Preparing { deadline_ms, initial_left_ms: None };
            }
            return;
        };
        self.leader = Some(leader);
        self.generation = next_generation(self.generation);
        self.protocol = self.choose_protocol();
        self.phase = Phase::Completing { sync_deadline_ms: Some(now_ms.saturating_add(timeout)) };
        let joined: Vec<String> =
            self.members.iter().filter(|(_, member)| member.join.is_some()).map(|(id, _)| id.clone()).collect();
        for member_id in joined {
            let place = self.current_place(&member_id);
            if let Some(member) = self.members.get_mut(&member_id) {
                member.owes_sync = true;
                member.answer_join(now_ms, Ok(place), &mut self.effects);
            }
        }
    }

    /// The leader of before if it joined, else any that did.
    fn elect_leader(&self) -> Option<String> {
        let joined = |id: &String| self.members.get(id).is_some_and(|member| member.join.is_some());
        self.leader.iter().chain(self.members.keys()).find(|id| joined(id)).cloned()
    }

    fn become_empty(&mut self) {
        self.generation = next_generation(self.generation);
        self.protocol = None;
        self.leader = None;
        self.phase = Phase::Empty;
        self.store_wanted = true;
    }

    /// The longest of the members': who is slowest sets the pace.
    fn rebalance_timeout_ms(&self) -> i64 {
        self.members.values().map(|member| member.rebalance_timeout_ms).max().unwrap_or(0)
    }

    /// Among the protocols that all support, the one that most members like best; of equals the one the leader prefers.
    fn choose_protocol(&self) -> Option<String> {
        let leader =
            self.leader.as_ref().and_then(|id| self.members.get(id)).or_else(|| self.members.values().next())?;
        let common: Vec<&str> = leader
            .protocols
            .iter()
            .map(|(name, _)| name.as_str())
            .filter(|name| self.members.values().all(|member| member.supports(name)))
            .collect();
        let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
        for member in self.members.values() {
            if let Some((name, _)) = member.protocols.iter().find(|(name, _)| common.contains(&name.as_str())) {
                *votes.entry(name).or_default() += 1;
            }
        }
        let most = votes.values().copied().max().unwrap_or(0);
        common.into_iter().find(|name| votes.get(name).copied().unwrap_or(0) == most).map(str::to_owned)
    }
}

/// Generations stay positive, also after two thousand million rebalances.
fn next_generation(generation: i32) -> i32 {
    generation.checked_add(1).unwrap_or(1)
}
