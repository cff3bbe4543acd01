//! Handing out the assignments of a generation: the leader's list is stored, then everybody gets their part.

use std::collections::BTreeMap;

use bytes::Bytes;
use kafka_protocol::ResponseError;

use super::{GROUP_BYTES_MAX, Group, Phase, Stored, Token};

/// SyncGroup as the group sees it.
#[derive(Clone, Debug)]
pub struct SyncRequest {
    pub member_id: String,
    pub instance_id: Option<String>,
    pub generation: i32,
    /// Checked where given (version 5 and later).
    pub protocol_type: Option<String>,
    pub protocol: Option<String>,
    /// Empty unless it comes from the leader.
    pub assignments: Vec<(String, Bytes)>,
}

/// A member's part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synced {
    pub protocol_type: String,
    pub protocol: String,
    pub assignment: Bytes,
}

pub type SyncReply = Result<Synced, ResponseError>;

impl Group {
    /// A member asks for its assignment, the leader brings all of them. Answered under `token`, at once or later.
    pub fn sync(&mut self, now_ms: i64, token: Token, request: SyncRequest) {
        if let Err(error) = self.try_sync(now_ms, token, request) {
            self.effects.syncs.push((token, Err(error)));
        }
    }

    fn try_sync(&mut self, now_ms: i64, token: Token, request: SyncRequest) -> Result<(), ResponseError> {
        self.check_member(&request.member_id, request.instance_id.as_deref())?;
        self.check_generation(request.generation)?;
        let differs = |theirs: &Option<String>, ours: &Option<String>| theirs.is_some() && theirs != ours;
        if differs(&request.protocol_type, &self.protocol_type) || differs(&request.protocol, &self.protocol) {
            return Err(ResponseError::InconsistentGroupProtocol);
        }
        match self.phase {
            Phase::Empty => Err(ResponseError::UnknownMemberId),
            Phase::Preparing { .. } => Err(ResponseError::RebalanceInProgress),
            Phase::Dead => Err(ResponseError::CoordinatorNotAvailable),
            Phase::Completing { .. } => self.sync_completing(now_ms, token, request),
            Phase::Stable { .. } => {
                let part = self.part_of(&request.member_id);
                if let Some(member) = self.members.get_mut(&request.member_id) {
                    member.owes_sync = false;
                    member.touch(now_ms);
                }
                self.effects.syncs.push((token, Ok(part)));
                self.forget_met_sync_deadline();
                Ok(())
            }
        }
    }

    fn sync_completing(&mut self, now_ms: i64, token: Token, request: SyncRequest) -> Result<(), ResponseError> {
        let leads = self.leader.as_deref() == Some(request.member_id.as_str());
        let bytes: usize = request.assignments.iter().map(|(_, assignment)| assignment.len()).sum();
        if leads && bytes > GROUP_BYTES_MAX {
            return Err(ResponseError::GroupMaxSizeReached);
        }
        if let Some(member) = self.members.get_mut(&request.member_id) {
            member.owes_sync = false;
            member.wait_in_sync(now_ms, token, &mut self.effects);
        }
        self.forget_met_sync_deadline();
        // A list that is being stored already stands: the leader asked again because it lost the connection.
        if leads && self.proposed.is_none() {
            let mut given: BTreeMap<String, Bytes> = request.assignments.into_iter().collect();
            given.retain(|member_id, _| self.members.contains_key(member_id));
            self.proposed = Some(given);
            self.store_then(Stored::Assignment { generation: self.generation });
        }
        Ok(())
    }

    pub(super) fn on_assignment_stored(&mut self, now_ms: i64, generation: i32, ok: bool) {
        let Phase::Completing { sync_deadline_ms } = self.phase else { return };
        if generation != self.generation {
            return;
        }
        let mut given = self.proposed.take().unwrap_or_default();
        if !ok {
            for member in self.members.values_mut() {
                member.answer_sync(now_ms, Err(ResponseError::CoordinatorNotAvailable), &mut self.effects);
            }
            self.prepare_rebalance(now_ms);
            return;
        }
        self.phase = Phase::Stable { sync_deadline_ms };
        for (member_id, member) in &mut self.members {
            member.assignment = given.remove(member_id).unwrap_or_default();
            let part = Synced {
                protocol_type: self.protocol_type.clone().unwrap_or_default(),
                protocol: self.protocol.clone().unwrap_or_default(),
                assignment: member.assignment.clone(),
            };
            member.answer_sync(now_ms, Ok(part), &mut self.effects);
        }
    }

    fn part_of(&self, member_id: &str) -> Synced {
        Synced {
            protocol_type: self.protocol_type.clone().unwrap_or_default(),
            protocol: self.protocol.clone().unwrap_or_default(),
            assignment: self.members.get(member_id).map(|member| member.assignment.clone()).unwrap_or_default(),
        }
    }

    fn forget_met_sync_deadline(&mut self) {
        if let Phase::Completing { sync_deadline_ms } | Phase::Stable { sync_deadline_ms } = &mut self.phase
            && !self.members.values().any(|member| member.owes_sync)
        {
            *sync_deadline_ms = None;
        }
    }
}
