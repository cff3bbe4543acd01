//! DeleteRecords: raises where partitions start. On the answer the new start is durable, and every later request sees
//! it.
//!
//! Nothing is deleted here. Readers cut at the log start; what lies wholly below it goes later: local segments with the
//! next maintenance, archived files through the janitor.

use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::delete_records_response::{DeleteRecordsPartitionResult, DeleteRecordsTopicResult};
use kafka_protocol::messages::{DeleteRecordsRequest, DeleteRecordsResponse};
use tracing::{info, warn};

use super::{RequestContext, blocking, find_partition, topic_error};
use crate::log::Partition;
use crate::model::Offset;
use crate::server::Services;
use crate::topics::Topic;

/// Stands for the high watermark of the moment.
const HIGH_WATERMARK: i64 = -1;
/// What an answer with an error has for a low watermark.
const NO_WATERMARK: i64 = -1;

/// Answers the low watermark of each partition named: what it asked for, or what it was if that is higher.
pub async fn delete_records(
    services: &Arc<Services>,
    context: &RequestContext,
    request: DeleteRecordsRequest,
) -> DeleteRecordsResponse {
    let mut topics = Vec::with_capacity(request.topics.len());
    for asked in request.topics {
        let topic = services.topics.get(asked.name.as_str());
        let mut rows = Vec::with_capacity(asked.partitions.len());
        for wanted in asked.partitions {
            let row = DeleteRecordsPartitionResult::default().with_partition_index(wanted.partition_index);
            let deleted = delete(services, context, topic.as_ref(), wanted.partition_index, wanted.offset).await;
            rows.push(match deleted {
                Ok(low_watermark) => row.with_low_watermark(low_watermark.0),
                Err(error) => row.with_low_watermark(NO_WATERMARK).with_error_code(error.code()),
            });
        }
        topics.push(DeleteRecordsTopicResult::default().with_name(asked.name).with_partitions(rows));
    }
    DeleteRecordsResponse::default().with_topics(topics)
}

async fn delete(
    services: &Services,
    context: &RequestContext,
    topic: Option<&Arc<Topic>>,
    index: i32,
    asked: i64,
) -> Result<Offset, ResponseError> {
    let partition = find_partition(topic, index)?;
    // As in Kafka: the broker's own topics lose nothing at a client's word.
    if topic.is_some_and(|topic| topic.is_internal()) {
        return Err(ResponseError::InvalidTopicException);
    }
    // As in Kafka: what a compacted topic holds is decided by its keys alone.
    if !partition.config().cleanup.delete {
        return Err(ResponseError::PolicyViolation);
    }
    let before = partition.log_start_offset();
    let start = target(&partition, asked)?;
    let (topics, raised) = (services.topics.clone(), partition.clone());
    blocking(move || topics.raise_log_start(&raised, start)).await.map_err(|failure| {
        warn!(partition = %partition.topic_partition(), %failure, "records could not be deleted");
        topic_error(&failure)
    })?;
    let log_start = partition.log_start_offset();
    if log_start > before {
        info!(partition = %partition.topic_partition(), client_id = context.client_id, %before, %log_start, "records deleted");
    }
    Ok(log_start)
}

/// The offset below which records go; what is not committed yet cannot be deleted.
fn target(partition: &Partition, asked: i64) -> Result<Offset, ResponseError> {
    let high_watermark = partition.high_watermark();
    match asked {
        HIGH_WATERMARK => Ok(high_watermark),
        0.. if asked <= high_watermark.0 => Ok(Offset(asked)),
        _ => Err(ResponseError::OffsetOutOfRange),
    }
}
