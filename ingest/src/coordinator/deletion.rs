//! Deleting groups and committed offsets because somebody asks for it (KIP-229, KIP-496). Done when it is durable.

use kafka_protocol::ResponseError;
use tokio::sync::oneshot;

use super::group::State;
use super::writer::{Change, Write};
use super::{GroupCoordinator, check_group_id};
use crate::model::TopicPartition;

/// How often a deletion waits for commits that are under way before its client is to try again.
const ATTEMPTS_MAX: usize = 8;

impl GroupCoordinator {
    /// Forgets a group without members and all that it committed.
    pub async fn delete(&self, group_id: &str) -> Result<(), ResponseError> {
        check_group_id(group_id)?;
        for _ in 0..ATTEMPTS_MAX {
            let cell = self.registry.get(group_id).ok_or(ResponseError::GroupIdNotFound)?;
            let (done, durable) = oneshot::channel();
            let deletes = {
                let permit =
                    self.writer(group_id).reserve().await.map_err(|_| ResponseError::CoordinatorNotAvailable)?;
                let mut inner = cell.inner.lock();
                match inner.group.state() {
                    State::Empty => {}
                    State::Dead => return Err(ResponseError::GroupIdNotFound),
                    State::PreparingRebalance | State::CompletingRebalance | State::Stable => {
                        return Err(ResponseError::NonEmptyGroup);
                    }
                }
                // What is on its way to the log is not among the offsets yet, and would come back with the next start.
                // So the queue is waited for first, by a change that changes nothing.
                let deletes = inner.writes_pending == 0;
                let mut offsets = Vec::new();
                if deletes {
                    offsets = inner.offsets.of_topics(|_| true);
                    offsets.extend(inner.pending.of_topics(|_| true));
                }
                if deletes {
                    inner.group.bury();
                }
                inner.writes_pending += 1;
                let change = Change::Forget { offsets, group: deletes };
                permit.send(Write { cell: cell.clone(), change, done: Some(done) }.into());
                deletes
            };
            durable.await.unwrap_or(Err(ResponseError::CoordinatorNotAvailable))?;
            if deletes {
                return Ok(());
            }
        }
        Err(ResponseError::CoordinatorNotAvailable)
    }

    /// Forgets committed offsets; one answer for each, in order. Those of topics that members read stay.
    pub async fn delete_offsets(
        &self,
        group_id: &str,
        partitions: Vec<TopicPartition>,
    ) -> Result<Vec<Result<(), ResponseError>>, ResponseError> {
        check_group_id(group_id)?;
        let cell = self.registry.get(group_id).ok_or(ResponseError::GroupIdNotFound)?;
        let (done, durable) = oneshot::channel();
        let answers = {
            let permit = self.writer(group_id).reserve().await.map_err(|_| ResponseError::CoordinatorNotAvailable)?;
            let mut inner = cell.inner.lock();
            let is_empty = match inner.group.state() {
                State::Dead => return Err(ResponseError::GroupIdNotFound),
                state => state == State::Empty,
            };
            if !is_empty && !inner.group.is_consumer_group() {
                return Err(ResponseError::NonEmptyGroup);
            }
            let subscribed = inner.group.subscribed_topics();
            let is_read = |at: &TopicPartition| {
                !is_empty && subscribed.as_ref().is_none_or(|topics| topics.contains(at.topic.as_str()))
            };
            let answers: Vec<_> = partitions
                .iter()
                .map(|at| if is_read(at) { Err(ResponseError::GroupSubscribedToTopic) } else { Ok(()) })
                .collect();
            // Whether committed or not: a commit may be in the queue.
            let offsets: Vec<_> =
                partitions.into_iter().zip(&answers).filter(|(_, answer)| answer.is_ok()).map(|(at, _)| at).collect();
            if offsets.is_empty() {
                return Ok(answers);
            }
            inner.writes_pending += 1;
            let change = Change::Forget { offsets, group: false };
            permit.send(Write { cell: cell.clone(), change, done: Some(done) }.into());
            answers
        };
        durable.await.unwrap_or(Err(ResponseError::CoordinatorNotAvailable))?;
        Ok(answers)
    }
}
