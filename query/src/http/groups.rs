//! `POST /v1/groups/{g}/offsets`: lets a consumer group begin at a message.
//!
//! The body names a message, `{"topic","partition","offset"}`. Its group, which must have no members, then has committed
//! that offset in its partition, and in the topic's other partitions the first offset whose timestamp is that of the
//! message or later (their end where there is none): a consumer goes on there as if it had stopped at that moment.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use thermocline_ingest::coordinator::SeekError;
use thermocline_ingest::log::Partition;
use thermocline_ingest::model::{Offset, PartitionId, Timestamp, TopicName};
use thermocline_ingest::read::LogReader;

use super::error::ApiError;
use super::extract::{JsonBody, NoParams, Params};
use super::{App, HttpServices};
use crate::replay::{ReplayError, chosen};

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

impl From<SeekError> for ApiError {
    fn from(error: SeekError) -> Self {
        match &error {
            SeekError::HasMembers(_) => Self::new(StatusCode::CONFLICT, "group_not_empty", error),
            SeekError::GroupId { .. } => Self::bad_request(error),
            SeekError::TooManyGroups { .. } => Self::new(StatusCode::CONFLICT, "too_many_groups", error),
            SeekError::Unavailable { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "coordinator_unavailable", error)
            }
        }
    }
}
