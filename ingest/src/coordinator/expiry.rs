//! What time and deleted topics take away: the timers of the groups, offsets that outlived their retention, offsets of
//! topics that are gone, and groups that nothing is left of.

use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::ResponseError;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use super::GroupCoordinator;
use super::group::State;
use super::registry::{Cell, Inner};
use super::writer::{Change, Write};
use crate::model::{Timestamp, TopicName};
use crate::topics::TopicChange;

/// How often offsets and groups are looked through for what has expired (Kafka's
/// `offsets.retention.check.interval.ms`).
const EXPIRY_INTERVAL: Duration = Duration::from_secs(600);
/// Longest sleep between two looks at the timers; they are woken earlier when one moves forward.
const TIMER_SLEEP_MAX: Duration = Duration::from_secs(60);

impl GroupCoordinator {
    /// Timers (session, rebalance, offsets retention); ends when `shutdown` is cancelled. Requests that wait then are
    /// answered, so that their connections can drain.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut changes = self.topics.subscribe();
        let mut expiry = tokio::time::interval(EXPIRY_INTERVAL);
        expiry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.forget_missing_topics().await;
        loop {
            let sleep = self.until_next_timer();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                _ = expiry.tick() => self.expire().await,
                change = changes.recv() => match change {
                    // Where the name is in use again, offsets are those of its successor: who deleted it had them go.
                    Ok(TopicChange::Deleted(topic)) if self.topics.get(topic.name.as_str()).is_none() => {
                        self.forget_topic(&topic.name).await;
                    }
                    Ok(TopicChange::Deleted(_)) => {}
                    Ok(TopicChange::Created(_) | TopicChange::Grown(_)) => {}
                    Err(broadcast::error::RecvError::Lagged(_)) => self.forget_missing_topics().await,
                    // The catalogue is gone only when the broker is.
                    Err(broadcast::error::RecvError::Closed) => break,
                },
                // Last: timers fire in any case, and what moves them must not keep the others waiting.
                () = self.registry.timer_moved.notified() => {}
                () = tokio::time::sleep(sleep) => {}
            }
            self.fire_timers().await;
        }
        self.release_waiting().await;
    }

    fn until_next_timer(&self) -> Duration {
        let registry = &self.registry;
        let Some(due) = registry.next_timer_ms() else { return TIMER_SLEEP_MAX };
        let wait = u64::try_from(due.saturating_sub(registry.now_ms())).unwrap_or(0);
        Duration::from_millis(wait).min(TIMER_SLEEP_MAX)
    }

    pub(super) async fn fire_timers(&self) {
        let registry = &self.registry;
        let now_ms = registry.now_ms();
        while let Some((due, id)) = registry.take_due(now_ms) {
            let Some(cell) = registry.get(&id) else { continue };
            let fired = self.act(&cell, |inner, now_ms| {
                registry.timer_fired(inner, due);
                inner.group.on_tick(now_ms);
            });
            // The writer ends only with the broker.
            if fired.await.is_err() {
                return;
            }
        }
    }

    /// Writes tombstones for offsets whose retention is over, and for groups that are empty of everything.
    pub async fn expire(&self) {
        let retention_ms = self.registry.config.offsets_retention.as_millis();
        for cell in self.registry.list() {
            let now = self.registry.clock.now();
            let due = expired(&cell.inner.lock(), now, retention_ms);
            if due.is_some() {
                self.forget(&cell, |inner| expired(inner, now, retention_ms)).await;
            }
        }
    }

    async fn forget_missing_topics(&self) {
        let topics = self.topics.clone();
        self.forget_topics(|name| topics.get(name.as_str()).is_none()).await;
    }

    /// What is committed for a topic that was deleted goes, durably. To be awaited before its deletion is answered: who
    /// hears of that may create a topic of the same name, whose offsets these must not be taken for.
    pub async fn forget_topic(&self, name: &TopicName) {
        self.forget_topics(|other| other == name).await;
    }

    async fn forget_topics(&self, gone: impl Fn(&TopicName) -> bool) {
        for cell in self.registry.list() {
            let due = |inner: &Inner| {
                let mut offsets = inner.offsets.of_topics(&gone);
                offsets.extend(inner.pending.of_topics(&gone));
                (!offsets.is_empty()).then_some(Change::Forget { offsets, group: false })
            };
            let any = due(&cell.inner.lock()).is_some();
            if any {
                self.forget(&cell, due).await;
            }
        }
    }

    async fn release_waiting(&self) {
        for cell in self.registry.list() {
            let released = self.act(&cell, |inner, now_ms| {
                inner.group.release_waiting(now_ms, ResponseError::CoordinatorNotAvailable);
            });
            if released.await.is_err() {
                return;
            }
        }
    }

    /// Decides anew under the lock what is to be forgotten, and queues it. A group that loses its last trace is buried;
    /// the writer takes it out when that is durable.
    async fn forget(&self, cell: &Arc<Cell>, due: impl Fn(&Inner) -> Option<Change>) {
        let Ok(permit) = self.writer(&cell.id).reserve().await else { return };
        let mut inner = cell.inner.lock();
        let Some(change) = due(&inner) else { return };
        if matches!(change, Change::Forget { group: true, .. }) {
            inner.group.bury();
        }
        inner.writes_pending += 1;
        permit.send(Write { cell: cell.clone(), change, done: None }.into());
    }
}

/// What of a group has expired. Of a group without members everything that was committed long ago; of consumers in a
/// Stable group only what lies in topics that none of them reads any more (KIP-211). Nothing while writes or
/// transactions are under way: they may be what keeps it.
fn expired(inner: &Inner, now: Timestamp, retention_ms: i64) -> Option<Change> {
    if inner.writes_pending > 0 || !inner.pending.is_empty() {
        return None;
    }
    let offsets = match inner.group.state() {
        State::Empty => inner.offsets.expired(now, inner.state_since, retention_ms),
        State::Stable => {
            let read = inner.group.subscribed_topics()?;
            let mut offsets = inner.offsets.expired(now, Timestamp::NONE, retention_ms);
            offsets.retain(|at| !read.contains(at.topic.as_str()));
            offsets
        }
        State::PreparingRebalance | State::CompletingRebalance | State::Dead => return None,
    };
    let group = inner.group.is_vacant() && offsets.len() == inner.offsets.iter().count();
    (group || !offsets.is_empty()).then_some(Change::Forget { offsets, group })
}
