//! One member of a group: what it can do, what it waits in, when its session ends.

use bytes::Bytes;
use kafka_protocol::ResponseError;

use super::join::{JoinRefusal, JoinReply, JoinRequest};
use super::sync::SyncReply;
use super::{Effects, Token};
use crate::coordinator::records::StoredMember;

/// How long a newcomer may wait in its first join before it is taken for gone; its client cannot send heartbeats
/// before it is answered.
pub const NEW_MEMBER_JOIN_TIMEOUT_MS: i64 = 5 * 60 * 1000;

/// What a stored member costs beside its strings and bytes: lengths and timeouts, rounded up.
pub const MEMBER_OVERHEAD_BYTES: usize = 32;

#[derive(Debug)]
pub struct Member {
    pub instance_id: Option<String>,
    pub client_id: String,
    pub client_host: String,
    pub session_timeout_ms: i64,
    pub rebalance_timeout_ms: i64,
    /// Supported protocols in order of preference, with the subscription under each.
    pub protocols: Vec<(String, Bytes)>,
    pub assignment: Bytes,
    pub join: Option<Token>,
    pub sync: Option<Token>,
    /// Has been told its generation and has not asked for its assignment.
    pub owes_sync: bool,
    /// None while it waits in a request that the rebalance bounds.
    pub session_deadline_ms: Option<i64>,
}

impl Member {
    /// A newcomer that waits in its first join.
    pub fn new(now_ms: i64, token: Token, request: JoinRequest) -> Self {
        Self {
            rebalance_timeout_ms: request.rebalance_timeout_ms(),
            session_timeout_ms: i64::from(request.session_timeout_ms),
            instance_id: request.instance_id,
            client_id: request.client_id,
            client_host: request.client_host,
            protocols: request.protocols,
            assignment: Bytes::new(),
            join: Some(token),
            sync: None,
            owes_sync: false,
            session_deadline_ms: Some(now_ms.saturating_add(NEW_MEMBER_JOIN_TIMEOUT_MS)),
        }
    }

    /// A member as it was stored: of its protocols only the chosen one is known.
    pub fn restore(stored: &StoredMember, protocol: &str, now_ms: i64) -> Self {
        let session_timeout_ms = i64::from(stored.session_timeout_ms);
        let rebalance_timeout_ms =
            if stored.rebalance_timeout_ms < 0 { session_timeout_ms } else { i64::from(stored.rebalance_timeout_ms) };
        Self {
            instance_id: stored.instance_id.clone(),
            client_id: stored.client_id.clone(),
            client_host: stored.client_host.clone(),
            session_timeout_ms,
            rebalance_timeout_ms,
            protocols: vec![(protocol.to_owned(), stored.subscription.clone())],
            assignment: stored.assignment.clone(),
            join: None,
            sync: None,
            owes_sync: false,
            session_deadline_ms: Some(now_ms.saturating_add(session_timeout_ms)),
        }
    }

    /// Takes over what a later join of the same member says, and lets it wait under `token`.
    pub fn rejoin(&mut self, now_ms: i64, token: Token, request: JoinRequest, effects: &mut Effects) {
        // The connection of the older request is gone, or its client would not have asked again.
        self.answer_join(now_ms, Err(JoinRefusal::of(ResponseError::RebalanceInProgress)), effects);
        self.rebalance_timeout_ms = request.rebalance_timeout_ms();
        self.session_timeout_ms = i64::from(request.session_timeout_ms);
        self.client_id = request.client_id;
        self.client_host = request.client_host;
        self.protocols = request.protocols;
        self.join = Some(token);
        self.session_deadline_ms = None;
    }

    pub fn waits(&self) -> bool {
        self.join.is_some() || self.sync.is_some()
    }

    pub fn supports(&self, protocol: &str) -> bool {
        self.protocols.iter().any(|(name, _)| name == protocol)
    }

    /// The subscription under a protocol; empty where it is not supported.
    pub fn metadata(&self, protocol: &str) -> Bytes {
        self.protocols.iter().find(|(name, _)| name == protocol).map(|(_, bytes)| bytes.clone()).unwrap_or_default()
    }

    /// Bytes it holds, its id aside.
    pub fn weight(&self) -> usize {
        let protocols: usize = self.protocols.iter().map(|(name, bytes)| name.len() + bytes.len()).sum();
        self.instance_id.as_ref().map_or(0, String::len)
            + MEMBER_OVERHEAD_BYTES
            + self.client_id.len()
            + self.client_host.len()
            + protocols
    }

    /// Starts the session anew, unless a request is held open.
    pub fn touch(&mut self, now_ms: i64) {
        if !self.waits() {
            self.session_deadline_ms = Some(now_ms.saturating_add(self.session_timeout_ms));
        }
    }

    pub fn answer_join(&mut self, now_ms: i64, reply: JoinReply, effects: &mut Effects) {
        if let Some(token) = self.join.take() {
            effects.joins.push((token, reply));
            self.touch(now_ms);
        }
    }

    pub fn answer_sync(&mut self, now_ms: i64, reply: SyncReply, effects: &mut Effects) {
        if let Some(token) = self.sync.take() {
            effects.syncs.push((token, reply));
            self.touch(now_ms);
        }
    }

    /// Lets a sync wait under `token`.
    pub fn wait_in_sync(&mut self, now_ms: i64, token: Token, effects: &mut Effects) {
        self.answer_sync(now_ms, Err(ResponseError::RebalanceInProgress), effects);
        self.sync = Some(token);
        self.session_deadline_ms = None;
    }
}
