//! DescribeCluster, and what everyone may do on a broker without an authorizer.

use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_cluster_response::DescribeClusterBroker;
use kafka_protocol::messages::{BrokerId, DescribeClusterRequest, DescribeClusterResponse};

use super::{RequestContext, code, text};
use crate::server::Services;

/// ACL operations (Kafka's `AclOperation` codes) that apply to a topic, as a bit field: READ 3, WRITE 4, CREATE 5,
/// DELETE 6, ALTER 7, DESCRIBE 8, DESCRIBE_CONFIGS 10, ALTER_CONFIGS 11. Without an authorizer everyone may do all of
/// them.
pub(super) const TOPIC_OPERATIONS: i32 = bits(&[3, 4, 5, 6, 7, 8, 10, 11]);
/// The same for the cluster: CREATE 5, ALTER 7, DESCRIBE 8, CLUSTER_ACTION 9, DESCRIBE_CONFIGS 10, ALTER_CONFIGS 11,
/// IDEMPOTENT_WRITE 12.
pub(super) const CLUSTER_OPERATIONS: i32 = bits(&[5, 7, 8, 9, 10, 11, 12]);

const ENDPOINT_BROKERS: i8 = 1;
const ENDPOINT_CONTROLLERS: i8 = 2;

const fn bits(operations: &[u32]) -> i32 {
    let (mut field, mut at) = (0, 0);
    while at < operations.len() {
        field |= 1 << operations[at];
        at += 1;
    }
    field
}

/// Answers the one broker. Controllers have no endpoint of their own here.
pub async fn describe_cluster(
    services: &Arc<Services>,
    _context: &RequestContext,
    request: DescribeClusterRequest,
) -> DescribeClusterResponse {
    let error = match request.endpoint_type {
        ENDPOINT_BROKERS => None,
        ENDPOINT_CONTROLLERS => Some(ResponseError::MismatchedEndpointType),
        _ => Some(ResponseError::UnsupportedEndpointType),
    };
    if error.is_some() {
        return DescribeClusterResponse::default()
            .with_error_code(code(error))
            .with_error_message(Some(text("this address serves the endpoints of brokers (type 1)")))
            .with_endpoint_type(request.endpoint_type);
    }
    let node_id = BrokerId(services.broker.node_id);
    let (host, port) = &services.advertised;
    let broker =
        DescribeClusterBroker::default().with_broker_id(node_id).with_host(text(host)).with_port(i32::from(*port));
    let response = DescribeClusterResponse::default()
        .with_cluster_id(text(&services.cluster_id))
        .with_controller_id(node_id)
        .with_brokers(vec![broker]);
    if request.include_cluster_authorized_operations {
        response.with_cluster_authorized_operations(CLUSTER_OPERATIONS)
    } else {
        response
    }
}
