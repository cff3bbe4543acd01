//! Consumer groups: list, describe with their lag, delete, and `POST /v1/groups/{g}/offsets`, which lets a group begin
//! at a message.
//!
//! Lag is counted from the committed offset to the high watermark; a group that consumes without committing has none.
//!
//! The body of a seek names a message, `{"topic","partition","offset"}`. Its group, which must have no members, then
//! has committed that offset in its partition, and in the topic's other partitions the first offset whose timestamp is
//! that of the message or later (their end where there is none): a consumer goes on there as if it had stopped at that
//! moment.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use thermocline_ingest::coordinator::consumer_protocol::assigned_partitions;
use thermocline_ingest::coordinator::group::MemberDescription;
use thermocline_ingest::coordinator::lag::PartitionLag;
use thermocline_ingest::coordinator::{GroupError, GroupSummary};
use thermocline_ingest::log::Partition;
use thermocline_ingest::model::{Offset, PartitionId, Timestamp, TopicName};
use thermocline_ingest::read::LogReader;

use super::error::ApiError;
use super::extract::{JsonBody, NoParams, Params};
use super::{App, HttpServices};
use crate::replay::{ReplayError, chosen};

#[derive(Debug, Serialize)]
pub(super) struct GroupList {
    groups: Vec<GroupRow>,
}

/// A group in a list.
#[derive(Debug, Serialize)]
struct GroupRow {
    group: String,
    state: &'static str,
    protocol_type: String,
    /// In records over all partitions with a committed offset.
    lag: u64,
}

/// A group as it is.
#[derive(Debug, Serialize)]
pub(super) struct GroupInfo {
    group: String,
    state: &'static str,
    protocol_type: String,
    /// How partitions are assigned; empty unless the group is Stable.
    protocol: String,
    generation: i32,
    lag: u64,
    members: Vec<MemberInfo>,
    offsets: Vec<OffsetInfo>,
}

#[derive(Debug, Serialize)]
struct MemberInfo {
    member_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance_id: Option<String>,
    client_id: String,
    client_host: String,
    /// Missing where the group is not Stable, or its members are no consumers.
    #[serde(skip_serializing_if = "Option::is_none")]
    assignment: Option<Vec<AssignedTopic>>,
}

#[derive(Debug, Serialize)]
struct AssignedTopic {
    topic: String,
    partitions: Vec<i32>,
}

#[derive(Debug, Serialize)]
struct OffsetInfo {
    topic: TopicName,
    partition: PartitionId,
    committed_offset: Offset,
    /// Missing where the partition is gone, as is `lag`.
    #[serde(skip_serializing_if = "Option::is_none")]
    high_watermark: Option<Offset>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lag: Option<u64>,
    /// The consumer's own note.
    metadata: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Place {
    topic: String,
    partition: PartitionId,
    offset: Offset,
}

#[derive(Debug, Serialize)]
pub(super) struct GroupOffsets {
    group: String,
    offsets: Vec<GroupOffset>,
}

#[derive(Debug, Serialize)]
struct GroupOffset {
    topic: TopicName,
    partition: PartitionId,
    offset: Offset,
}

/// `GET /v1/groups`: every group in name order.
pub(super) async fn list(State(app): State<Arc<App>>, Params(NoParams {}): Params<NoParams>) -> Json<GroupList> {
    let groups = &app.services.groups;
    let row = |GroupSummary { id, protocol_type, state }| {
        let lag = total(&groups.lag(&id).unwrap_or_default());
        GroupRow { group: id, state: state.as_str(), protocol_type, lag }
    };
    Json(GroupList { groups: groups.list().into_iter().map(row).collect() })
}

/// `GET /v1/groups/{g}`.
pub(super) async fn describe(
    State(app): State<Arc<App>>,
    Path(group): Path<String>,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Json<GroupInfo>, ApiError> {
    let groups = &app.services.groups;
    let found = groups.describe(&group).zip(groups.lag(&group));
    let Some((found, lag)) = found else { return Err(GroupError::Unknown(group).into()) };
    Ok(Json(GroupInfo {
        state: found.state.as_str(),
        protocol_type: found.protocol_type,
        protocol: found.protocol,
        generation: found.generation,
        lag: total(&lag),
        members: found.members.into_iter().map(member_info).collect(),
        offsets: lag.into_iter().map(offset_info).collect(),
        group,
    }))
}

/// `DELETE /v1/groups/{g}`: 204; the group must have no members.
pub(super) async fn delete(
    State(app): State<Arc<App>>,
    Path(group): Path<String>,
    Params(NoParams {}): Params<NoParams>,
) -> Result<StatusCode, ApiError> {
    app.services.groups.remove(&group).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn total(lag: &[PartitionLag]) -> u64 {
    lag.iter().filter_map(PartitionLag::records).sum()
}

fn member_info(member: MemberDescription) -> MemberInfo {
    let assigned = (!member.assignment.is_empty()).then(|| assigned_partitions(&member.assignment)).flatten();
    let topic = |(topic, partitions)| AssignedTopic { topic, partitions };
    MemberInfo {
        member_id: member.member_id,
        instance_id: member.instance_id,
        client_id: member.client_id,
        client_host: member.client_host,
        assignment: assigned.map(|topics| topics.into_iter().map(topic).collect()),
    }
}

fn offset_info(lag: PartitionLag) -> OffsetInfo {
    OffsetInfo {
        lag: lag.records(),
        topic: lag.at.topic,
        partition: lag.at.partition,
        committed_offset: lag.committed.offset,
        high_watermark: lag.high_watermark,
        metadata: lag.committed.metadata,
    }
}

/// `POST /v1/groups/{g}/offsets`.
pub(super) async fn seek(
    State(app): State<Arc<App>>,
    Path(group): Path<String>,
    Params(NoParams {}): Params<NoParams>,
    JsonBody(place): JsonBody<Place>,
) -> Result<Json<GroupOffsets>, ApiError> {
    let services = &app.services;
    let Place { topic: name, partition: id, offset } = place;
    let topic = services.topics.get(&name).ok_or_else(|| ApiError::unknown_topic(&name))?;
    if topic.is_internal() {
        return Err(ApiError::internal_topic(topic.name.as_str()));
    }
    let hit = chosen(&topic, Some(id))?.first().ok_or_else(|| ApiError::unknown_topic(&name))?;
    let timestamp = timestamp_of(services, hit, offset).await?;
    let mut offsets = Vec::with_capacity(topic.partitions.len());
    for partition in &topic.partitions {
        let found = match Arc::ptr_eq(partition, hit) {
            true => offset,
            false => first_since(services, partition, timestamp).await?,
        };
        offsets.push((partition.topic_partition().clone(), found));
    }
    services.groups.seek(&group, services.clock.as_ref(), offsets.iter().cloned()).await?;
    let offsets =
        offsets.into_iter().map(|(at, offset)| GroupOffset { topic: at.topic, partition: at.partition, offset });
    Ok(Json(GroupOffsets { group, offsets: offsets.collect() }))
}

async fn timestamp_of(
    services: &HttpServices,
    partition: &Arc<Partition>,
    offset: Offset,
) -> Result<Timestamp, ApiError> {
    let found = services.reader.records(partition, &[offset], 1).await.map_err(ReplayError::from)?;
    let record = found.records.into_iter().next().flatten();
    record.map(|record| record.timestamp).ok_or_else(|| {
        let (name, start, end) =
            (partition.topic_partition(), partition.log_start_offset(), partition.high_watermark());
        let message =
            format!("there is no message at offset {offset} of {name}, which has {start} to {end} (exclusive)");
        ApiError::new(StatusCode::NOT_FOUND, "unknown_offset", message)
    })
}

async fn first_since(
    services: &HttpServices,
    partition: &Arc<Partition>,
    timestamp: Timestamp,
) -> Result<Offset, ApiError> {
    // Before it is asked for: what comes meanwhile is to be read.
    let end = partition.high_watermark();
    let found = services.reader.offset_for_timestamp(partition, timestamp).await.map_err(ReplayError::from)?;
    Ok(found.map_or(end, |found| found.offset))
}

impl From<GroupError> for ApiError {
    fn from(error: GroupError) -> Self {
        match &error {
            GroupError::HasMembers(_) => Self::new(StatusCode::CONFLICT, "group_not_empty", error),
            GroupError::Unknown(_) => Self::new(StatusCode::NOT_FOUND, "unknown_group", error),
            GroupError::GroupId { .. } => Self::bad_request(error),
            GroupError::TooManyGroups { .. } => Self::new(StatusCode::CONFLICT, "too_many_groups", error),
            GroupError::Unavailable { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "coordinator_unavailable", error)
            }
        }
    }
}
