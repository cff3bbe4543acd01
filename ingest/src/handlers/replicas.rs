//! ElectLeaders and ListPartitionReassignments: one broker leads everything, and nothing moves.

use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::elect_leaders_response::{PartitionResult, ReplicaElectionResult};
use kafka_protocol::messages::{
    ElectLeadersRequest, ElectLeadersResponse, ListPartitionReassignmentsRequest, ListPartitionReassignmentsResponse,
};

use super::{RequestContext, find_partition, text};
use crate::server::Services;

/// Kafka's `ElectionType`: the preferred replica, or any that is alive.
const ELECTION_TYPES: [i8; 2] = [0, 1];

/// Every partition that exists has its leader. Asked for all partitions, Kafka leaves out those that need no election.
pub async fn elect_leaders(
    services: &Arc<Services>,
    context: &RequestContext,
    request: ElectLeadersRequest,
) -> ElectLeadersResponse {
    if !ELECTION_TYPES.contains(&request.election_type) {
        let response = ElectLeadersResponse::default();
        // Version 0 knows one type and has no place for an error of the whole.
        return if context.api_version >= 1 {
            response.with_error_code(ResponseError::InvalidRequest.code())
        } else {
            response
        };
    }
    let results = request.topic_partitions.unwrap_or_default().into_iter().map(|asked| {
        let topic = services.topics.get(asked.topic.as_str());
        let rows = asked.partitions.iter().map(|&index| {
            let (error, message) = match find_partition(topic.as_ref(), index) {
                Ok(_) => (ResponseError::ElectionNotNeeded, "the partition is led by the only broker there is"),
                Err(error) => (error, "the partition does not exist"),
            };
            PartitionResult::default()
                .with_partition_id(index)
                .with_error_code(error.code())
                .with_error_message(Some(text(message)))
        });
        let rows = rows.collect();
        ReplicaElectionResult::default().with_topic(asked.topic).with_partition_result(rows)
    });
    ElectLeadersResponse::default().with_replica_election_results(results.collect())
}

/// No partition is ever on its way to another broker.
pub async fn list_partition_reassignments(
    _services: &Arc<Services>,
    _context: &RequestContext,
    _request: ListPartitionReassignmentsRequest,
) -> ListPartitionReassignmentsResponse {
    ListPartitionReassignmentsResponse::default().with_error_message(None)
}
