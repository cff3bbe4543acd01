//! The groups of this broker, each under its own lock, and the order in which their timers are due.
//!
//! Invariants:
//! - What happens to one group happens in the order in which its lock was taken; its writes enter the writer's queue
//!   under the same lock, so the log has that order too.
//! - A lock is never held across an await, and no lock is taken while a cell's lock is held, except that of the timers.
//! - A group has at most one entry among the timers, at or before its next deadline.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use kafka_protocol::ResponseError;
use parking_lot::{Mutex, RwLock};
use thermocline_config::GroupsConfig;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::group::{Effects, Group, JoinReply, Limits, State, SyncReply, Token};
use super::offsets::{CommittedOffsets, PendingOffsets};
use super::records::GroupMetadata;
use super::writer::{Change, Write};
use crate::clock::Clock;
use crate::model::Timestamp;

/// One group with what surrounds its state machine.
pub struct Cell {
    pub id: Arc<str>,
    pub inner: Mutex<Inner>,
}

/// What the lock of a group guards.
pub struct Inner {
    pub group: Group,
    pub offsets: CommittedOffsets,
    /// A group with any is neither expired nor removed.
    pub pending: PendingOffsets,
    /// When the group entered its state; [`Timestamp::NONE`] where nothing says so.
    pub state_since: Timestamp,
    /// Writes in the queue or under way. A group with any is neither expired nor removed.
    pub writes_pending: usize,
    joins: HashMap<Token, oneshot::Sender<JoinReply>>,
    syncs: HashMap<Token, oneshot::Sender<SyncReply>>,
    next_token: u64,
    /// Its entry among the timers.
    timer_ms: Option<i64>,
}

/// All groups.
pub struct Registry {
    pub config: GroupsConfig,
    pub clock: Arc<dyn Clock>,
    limits: Limits,
    started: Instant,
    cells: RwLock<HashMap<Arc<str>, Arc<Cell>>>,
    timers: Mutex<BTreeSet<(i64, Arc<str>)>>,
    /// Rung when the earliest timer moved forward.
    pub timer_moved: Notify,
}

/// A group as it is found in the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredGroup {
    pub metadata: Option<GroupMetadata>,
    pub offsets: CommittedOffsets,
    pub pending: PendingOffsets,
}

impl Inner {
    fn new(group: Group) -> Self {
        Self {
            group,
            offsets: CommittedOffsets::default(),
            pending: PendingOffsets::default(),
            state_since: Timestamp::NONE,
            writes_pending: 0,
            joins: HashMap::new(),
            syncs: HashMap::new(),
            next_token: 0,
            timer_ms: None,
        }
    }

    pub fn wait_join(&mut self) -> (Token, oneshot::Receiver<JoinReply>) {
        let (sender, receiver) = oneshot::channel();
        let token = self.fresh_token();
        self.joins.insert(token, sender);
        (token, receiver)
    }

    pub fn wait_sync(&mut self) -> (Token, oneshot::Receiver<SyncReply>) {
        let (sender, receiver) = oneshot::channel();
        let token = self.fresh_token();
        self.syncs.insert(token, sender);
        (token, receiver)
    }

    fn fresh_token(&mut self) -> Token {
        self.next_token += 1;
        Token(self.next_token)
    }
}

impl Registry {
    pub fn new(config: GroupsConfig, clock: Arc<dyn Clock>) -> Self {
        Self {
            limits: Limits::from(&config),
            config,
            clock,
            started: Instant::now(),
            cells: RwLock::default(),
            timers: Mutex::default(),
            timer_moved: Notify::new(),
        }
    }

    /// Monotonic milliseconds; what the state machines count in, so that a clock that is set ends no session.
    pub fn now_ms(&self) -> i64 {
        i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX)
    }

    pub fn get(&self, id: &str) -> Option<Arc<Cell>> {
        self.cells.read().get(id).cloned()
    }

    /// The group, made if it is not there. POLICY_VIOLATION where that would be one too many: fatal to clients, as
    /// trying again would not help.
    pub fn get_or_create(&self, id: &str) -> Result<Arc<Cell>, ResponseError> {
        if let Some(cell) = self.get(id) {
            return Ok(cell);
        }
        let mut cells = self.cells.write();
        if let Some(cell) = cells.get(id) {
            return Ok(cell.clone());
        }
        if cells.len() >= self.config.max_groups {
            return Err(ResponseError::PolicyViolation);
        }
        let id: Arc<str> = id.into();
        let cell = Arc::new(Cell { id: id.clone(), inner: Mutex::new(Inner::new(Group::new(self.limits))) });
        cells.insert(id, cell.clone());
        Ok(cell)
    }

    /// Every group, in no order.
    pub fn list(&self) -> Vec<Arc<Cell>> {
        self.cells.read().values().cloned().collect()
    }

    /// Forgets a group that was buried.
    pub fn remove(&self, cell: &Arc<Cell>) {
        let mut cells = self.cells.write();
        if cells.get(&cell.id).is_some_and(|current| Arc::ptr_eq(current, cell)) {
            cells.remove(&cell.id);
        }
    }

    /// Takes in what the log holds; before anything else happens.
    pub fn restore(&self, groups: BTreeMap<String, StoredGroup>) {
        let now_ms = self.now_ms();
        let mut cells = self.cells.write();
        for (id, stored) in groups {
            let id: Arc<str> = id.into();
            let mut inner = Inner::new(Group::new(self.limits));
            inner.offsets = stored.offsets;
            inner.pending = stored.pending;
            if let Some(metadata) = stored.metadata {
                inner.group = Group::restore(self.limits, &metadata, now_ms);
                inner.state_since = metadata.state_timestamp;
            }
            self.reschedule(&id, &mut inner);
            cells.insert(id.clone(), Arc::new(Cell { id, inner: Mutex::new(inner) }));
        }
    }

    /// Carries out what an event in the group caused; `before` is the state it was in. A returned write must enter
    /// the queue of the group's writer before the lock is released.
    #[must_use]
    pub fn settle(&self, cell: &Arc<Cell>, inner: &mut Inner, before: State) -> Option<Write> {
        let Effects { joins, syncs, store } = inner.group.take_effects();
        // A receiver that is gone belongs to a connection that is gone.
        for (token, reply) in joins {
            if let Some(waiting) = inner.joins.remove(&token) {
                let _ = waiting.send(reply);
            }
        }
        for (token, reply) in syncs {
            if let Some(waiting) = inner.syncs.remove(&token) {
                let _ = waiting.send(reply);
            }
        }
        if inner.group.state() != before {
            inner.state_since = self.clock.now();
        }
        self.reschedule(&cell.id, inner);
        store.map(|(ticket, mut metadata)| {
            metadata.state_timestamp = inner.state_since;
            inner.writes_pending += 1;
            Write { cell: cell.clone(), change: Change::Group { ticket, metadata }, done: None }
        })
    }

    /// Moves the group's timer forward if it is due earlier than known.
    fn reschedule(&self, id: &Arc<str>, inner: &mut Inner) {
        let Some(next) = inner.group.next_deadline_ms() else { return };
        if inner.timer_ms.is_some_and(|known| known <= next) {
            return;
        }
        let mut timers = self.timers.lock();
        if let Some(known) = inner.timer_ms {
            timers.remove(&(known, id.clone()));
        }
        timers.insert((next, id.clone()));
        inner.timer_ms = Some(next);
        if timers.first().is_some_and(|(first, _)| *first == next) {
            self.timer_moved.notify_one();
        }
    }

    /// When the next timer is due.
    pub fn next_timer_ms(&self) -> Option<i64> {
        self.timers.lock().first().map(|(due, _)| *due)
    }

    /// A group whose timer is due; its timer is taken off.
    pub fn take_due(&self, now_ms: i64) -> Option<(i64, Arc<str>)> {
        let mut timers = self.timers.lock();
        match timers.first() {
            Some((due, _)) if *due <= now_ms => timers.pop_first(),
            _ => None,
        }
    }

    /// The timer that [`Self::take_due`] gave is being looked after.
    pub fn timer_fired(&self, inner: &mut Inner, due_ms: i64) {
        // A newer entry, made between taking and locking, stays.
        if inner.timer_ms == Some(due_ms) {
            inner.timer_ms = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::clock::ManualClock;
    use crate::coordinator::group::JoinRequest;

    fn registry(max_groups: usize) -> Registry {
        let config = GroupsConfig { max_groups, ..GroupsConfig::default() };
        Registry::new(config, Arc::new(ManualClock::at(Timestamp(7))))
    }

    fn join(registry: &Registry, cell: &Arc<Cell>, now_ms: i64) -> oneshot::Receiver<JoinReply> {
        let mut inner = cell.inner.lock();
        let before = inner.group.state();
        let (token, answer) = inner.wait_join();
        let request = JoinRequest {
            member_id: String::new(),
            new_member_id: "m".to_owned(),
            instance_id: None,
            client_id: String::new(),
            client_host: String::new(),
            session_timeout_ms: 10_000,
            rebalance_timeout_ms: 60_000,
            protocol_type: "consumer".to_owned(),
            protocols: vec![("range".to_owned(), Bytes::new())],
            require_member_id: false,
            can_skip_assignment: false,
        };
        inner.group.join(now_ms, token, request);
        assert!(registry.settle(cell, &mut inner, before).is_none());
        assert_eq!(inner.state_since, Timestamp(7));
        answer
    }

    #[test]
    fn a_group_has_one_timer_at_its_earliest_deadline() {
        let registry = registry(10);
        let cell = registry.get_or_create("g").unwrap();
        let mut answer = join(&registry, &cell, 100);
        assert_eq!(registry.next_timer_ms(), Some(3_100), "the initial delay");
        assert_eq!(registry.take_due(3_099), None);
        let (due, id) = registry.take_due(3_100).unwrap();
        assert_eq!(id.as_ref(), "g");
        assert!(answer.try_recv().is_err());
        let mut inner = cell.inner.lock();
        let before = inner.group.state();
        registry.timer_fired(&mut inner, due);
        inner.group.on_tick(due);
        assert!(registry.settle(&cell, &mut inner, before).is_none());
        assert_eq!(answer.try_recv().unwrap().unwrap().generation, 1);
        assert_eq!(registry.next_timer_ms(), Some(13_100), "the session");
        assert_eq!(registry.timers.lock().len(), 1);
    }

    #[test]
    fn one_group_too_many_is_refused() {
        let registry = registry(1);
        let cell = registry.get_or_create("g").unwrap();
        assert!(Arc::ptr_eq(&cell, &registry.get_or_create("g").unwrap()));
        assert_eq!(registry.get_or_create("h").err(), Some(ResponseError::PolicyViolation));
        cell.inner.lock().group.bury();
        registry.remove(&cell);
        let fresh = registry.get_or_create("h").unwrap();
        registry.remove(&cell);
        assert!(Arc::ptr_eq(&fresh, &registry.get("h").unwrap()), "an old handle removes nothing");
    }
}
