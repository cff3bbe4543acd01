//! DeleteGroups and OffsetDelete. On the answer it is durable.

use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::delete_groups_response::DeletableGroupResult;
use kafka_protocol::messages::offset_delete_response::{OffsetDeleteResponsePartition, OffsetDeleteResponseTopic};
use kafka_protocol::messages::{DeleteGroupsRequest, DeleteGroupsResponse, OffsetDeleteRequest, OffsetDeleteResponse};
use tracing::info;

use super::{RequestContext, code, find_partition};
use crate::server::Services;

/// Deletes groups without members; one row for each, in order.
pub async fn delete_groups(
    services: &Arc<Services>,
    context: &RequestContext,
    request: DeleteGroupsRequest,
) -> DeleteGroupsResponse {
    let mut results = Vec::with_capacity(request.groups_names.len());
    for group_id in request.groups_names {
        let deleted = services.groups.delete(&group_id.0).await;
        if deleted.is_ok() {
            info!(group = group_id.0.as_str(), client_id = context.client_id, "group deleted");
        }
        let row = DeletableGroupResult::default().with_group_id(group_id);
        results.push(row.with_error_code(code(deleted.err())));
    }
    DeleteGroupsResponse::default().with_results(results)
}

/// Deletes committed offsets of topics that no member reads.
pub async fn offset_delete(
    services: &Arc<Services>,
    _context: &RequestContext,
    request: OffsetDeleteRequest,
) -> OffsetDeleteResponse {
    let mut asked = Vec::new();
    for topic in &request.topics {
        let known = services.topics.get(&topic.name.0);
        let find = |index| find_partition(known.as_ref(), index).map(|found| found.topic_partition().clone());
        asked.extend(topic.partitions.iter().map(|partition| find(partition.partition_index)));
    }
    let known = asked.iter().flatten().cloned().collect();
    let mut answers = match services.groups.delete_offsets(&request.group_id.0, known).await {
        Ok(answers) => answers.into_iter(),
        Err(error) => return OffsetDeleteResponse::default().with_error_code(error.code()),
    };
    let missing = Err(ResponseError::UnknownTopicOrPartition);
    let mut verdicts = asked.into_iter().map(|found| found.and_then(|_| answers.next().unwrap_or(missing)));
    let topics = request.topics.into_iter().map(|topic| {
        let rows = topic.partitions.iter().map(|partition| {
            let verdict = verdicts.next().unwrap_or(missing);
            OffsetDeleteResponsePartition::default()
                .with_partition_index(partition.partition_index)
                .with_error_code(code(verdict.err()))
        });
        let rows = rows.collect();
        OffsetDeleteResponseTopic::default().with_name(topic.name).with_partitions(rows)
    });
    OffsetDeleteResponse::default().with_topics(topics.collect())
}
