//! OffsetCommit and OffsetFetch.

use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::offset_commit_request::OffsetCommitRequestPartition;
use kafka_protocol::messages::offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic};
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions, OffsetFetchResponseTopic,
    OffsetFetchResponseTopics,
};
use kafka_protocol::messages::{
    OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest, OffsetFetchResponse, TopicName as WireTopicName,
};
use kafka_protocol::protocol::StrBytes;

use super::{RequestContext, code, distinct};
use crate::coordinator::group::Committer;
use crate::coordinator::offsets::{CommittedOffset, CommittedOffsets, PendingOffsets};
use crate::model::{Offset, PartitionId, Timestamp, TopicPartition};
use crate::server::Services;
use crate::topics::Topic;

/// Where nothing is committed, the offset that says so.
const NOTHING_COMMITTED: i64 = -1;
/// First version in which an unknown group is told by its own code.
const COMMIT_GROUP_ID_NOT_FOUND: i16 = 9;
/// First version that asks for several groups at once.
const FETCH_GROUPS: i16 = 8;

/// OffsetCommit: answers when the offsets are durable. A partition that cannot be committed to does not hold up others.
pub async fn offset_commit(
    services: &Arc<Services>,
    context: &RequestContext,
    request: OffsetCommitRequest,
) -> OffsetCommitResponse {
    let now = services.clock.now();
    let mut accepted = Vec::new();
    let mut verdicts = Vec::with_capacity(request.topics.len());
    for topic in &request.topics {
        let commits = topic.partitions.iter().map(as_commit);
        verdicts.push((topic.name.clone(), accept(services, &topic.name, commits, now, &mut accepted)));
    }
    let committer = Committer {
        member_id: &request.member_id,
        instance_id: request.group_instance_id.as_deref(),
        generation: request.generation_id_or_member_epoch,
    };
    let unknown_group = if context.api_version >= COMMIT_GROUP_ID_NOT_FOUND {
        ResponseError::GroupIdNotFound
    } else {
        ResponseError::IllegalGeneration
    };
    let outcome = services.groups.commit(&request.group_id.0, committer, unknown_group, accepted).await;
    commit_response(verdicts, outcome)
}

/// OffsetFetch: of one group, or of several from version 8 on. With `require_stable` an offset that a transaction may
/// still change is an error, which clients retry.
pub async fn offset_fetch(
    services: &Arc<Services>,
    context: &RequestContext,
    request: OffsetFetchRequest,
) -> OffsetFetchResponse {
    let require_stable = request.require_stable;
    let of_group = |id: &str, asked: Option<Vec<(WireTopicName, Vec<i32>)>>| {
        let (nothing, stable) = (CommittedOffsets::default(), PendingOffsets::default());
        let asked = asked.as_deref();
        let look = |offsets: &CommittedOffsets, pending: &PendingOffsets| {
            fetched(offsets, if require_stable { pending } else { &stable }, asked)
        };
        services.groups.with_offsets(id, look).unwrap_or_else(|| look(&nothing, &stable))
    };
    if context.api_version < FETCH_GROUPS {
        let asked = request
            .topics
            .map(|topics| topics.into_iter().map(|topic| (topic.name, topic.partition_indexes)).collect());
        return single_group_response(of_group(&request.group_id.0, asked));
    }
    let groups = distinct(request.groups, |group| group.group_id.clone()).map(|group| {
        let asked =
            group.topics.map(|topics| topics.into_iter().map(|topic| (topic.name, topic.partition_indexes)).collect());
        let topics = of_group(&group.group_id.0, asked);
        OffsetFetchResponseGroup::default()
            .with_group_id(group.group_id)
            .with_topics(topics.into_iter().map(batched_topic).collect())
    });
    OffsetFetchResponse::default().with_groups(groups.collect())
}

/// An offset to commit, in a transaction or not.
pub(super) struct Commit<'a> {
    pub partition: PartitionId,
    pub offset: Offset,
    pub leader_epoch: i32,
    pub metadata: Option<&'a str>,
}

fn as_commit(partition: &OffsetCommitRequestPartition) -> Commit<'_> {
    Commit {
        partition: PartitionId(partition.partition_index),
        offset: Offset(partition.committed_offset),
        leader_epoch: partition.committed_leader_epoch,
        metadata: partition.committed_metadata.as_deref(),
    }
}

/// Adds what may be committed for a topic to `accepted`, and says of each partition what is wrong with it.
pub(super) fn accept<'a>(
    services: &Services,
    topic: &WireTopicName,
    commits: impl Iterator<Item = Commit<'a>>,
    now: Timestamp,
    accepted: &mut Vec<(TopicPartition, CommittedOffset)>,
) -> Vec<(i32, Option<ResponseError>)> {
    let known = services.topics.get(&topic.0);
    let metadata_max = services.groups.offset_metadata_max_bytes();
    let mut verdicts = Vec::new();
    for commit in commits {
        let verdict = check_partition(known.as_deref(), &commit, metadata_max);
        verdicts.push((commit.partition.0, verdict.as_ref().err().copied()));
        accepted.extend(verdict.ok().map(|at| (at, committed_offset(&commit, now))));
    }
    verdicts
}

fn check_partition(
    topic: Option<&Topic>,
    commit: &Commit<'_>,
    metadata_max: usize,
) -> Result<TopicPartition, ResponseError> {
    let id = commit.partition;
    let topic = topic.filter(|topic| topic.partition(id).is_some()).ok_or(ResponseError::UnknownTopicOrPartition)?;
    if commit.metadata.is_some_and(|text| text.len() > metadata_max) {
        return Err(ResponseError::OffsetMetadataTooLarge);
    }
    Ok(TopicPartition::new(topic.name.clone(), id))
}

fn committed_offset(commit: &Commit<'_>, now: Timestamp) -> CommittedOffset {
    CommittedOffset {
        offset: commit.offset,
        leader_epoch: commit.leader_epoch,
        metadata: commit.metadata.unwrap_or_default().to_owned(),
        commit_timestamp: now,
    }
}

/// Partitions of a commit, each with what was wrong with it.
type CommittedTopic = (WireTopicName, Vec<(i32, Option<ResponseError>)>);

/// What was wrong with a partition stands; else the outcome for the group is that of each of its partitions.
fn commit_response(verdicts: Vec<CommittedTopic>, outcome: Result<(), ResponseError>) -> OffsetCommitResponse {
    let topics = verdicts.into_iter().map(|(name, partitions)| {
        let partitions = partitions.into_iter().map(|(index, refused)| {
            let error = refused.or(outcome.err());
            OffsetCommitResponsePartition::default()
                .with_partition_index(index)
                .with_error_code(error.map_or(0, |error| error.code()))
        });
        OffsetCommitResponseTopic::default().with_name(name).with_partitions(partitions.collect())
    });
    OffsetCommitResponse::default().with_topics(topics.collect())
}

/// What is committed for a partition: nothing, something, or something that is not stable.
type Fetched = Result<Option<CommittedOffset>, ResponseError>;
type FetchedTopic = (WireTopicName, Vec<(i32, Fetched)>);

/// The offsets asked for, or all of them; an error where there is something pending.
fn fetched(
    offsets: &CommittedOffsets,
    pending: &PendingOffsets,
    asked: Option<&[(WireTopicName, Vec<i32>)]>,
) -> Vec<FetchedTopic> {
    let stable = |topic: &str, partition, committed: Option<&CommittedOffset>| {
        if pending.is_pending(topic, partition) {
            return Err(ResponseError::UnstableOffsetCommit);
        }
        Ok(committed.cloned())
    };
    if let Some(asked) = asked {
        let of_topic = |(name, partitions): &(WireTopicName, Vec<i32>)| {
            let found = |index: &i32| {
                let partition = PartitionId(*index);
                (*index, stable(&name.0, partition, offsets.get(&name.0, partition)))
            };
            (name.clone(), partitions.iter().map(found).collect())
        };
        return asked.iter().map(of_topic).collect();
    }
    let mut topics: Vec<FetchedTopic> = Vec::new();
    for (topic, partition, committed) in offsets.iter() {
        let found = (partition.0, stable(topic.as_str(), partition, Some(committed)));
        match topics.last_mut() {
            Some((name, partitions)) if name.as_str() == topic.as_str() => partitions.push(found),
            _ => topics.push((WireTopicName(StrBytes::from_string(topic.as_str().to_owned())), vec![found])),
        }
    }
    topics
}

fn single_group_response(topics: Vec<FetchedTopic>) -> OffsetFetchResponse {
    let topics = topics.into_iter().map(|(name, partitions)| {
        let partitions = partitions.into_iter().map(|(index, committed)| {
            let error = code(committed.as_ref().err().copied());
            let (offset, epoch, metadata) = place(committed.ok().flatten());
            OffsetFetchResponsePartition::default()
                .with_partition_index(index)
                .with_error_code(error)
                .with_committed_offset(offset)
                .with_committed_leader_epoch(epoch)
                .with_metadata(Some(metadata))
        });
        OffsetFetchResponseTopic::default().with_name(name).with_partitions(partitions.collect())
    });
    OffsetFetchResponse::default().with_topics(topics.collect())
}

fn batched_topic((name, partitions): FetchedTopic) -> OffsetFetchResponseTopics {
    let partitions = partitions.into_iter().map(|(index, committed)| {
        let error = code(committed.as_ref().err().copied());
        let (offset, epoch, metadata) = place(committed.ok().flatten());
        OffsetFetchResponsePartitions::default()
            .with_partition_index(index)
            .with_error_code(error)
            .with_committed_offset(offset)
            .with_committed_leader_epoch(epoch)
            .with_metadata(Some(metadata))
    });
    OffsetFetchResponseTopics::default().with_name(name).with_partitions(partitions.collect())
}

/// Offset, leader epoch and note; -1, -1 and "" where nothing is committed.
fn place(committed: Option<CommittedOffset>) -> (i64, i32, StrBytes) {
    match committed {
        Some(committed) => (committed.offset.0, committed.leader_epoch, committed.metadata.into()),
        None => (NOTHING_COMMITTED, -1, StrBytes::default()),
    }
}

#[cfg(test)]
mod tests;
