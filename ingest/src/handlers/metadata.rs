//! Metadata: this broker, the topics asked for, and topics made because they were asked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{BrokerId, MetadataRequest, MetadataResponse, TopicName as WireName};
use kafka_protocol::protocol::StrBytes;
use tracing::{info, warn};
use uuid::Uuid;

use super::{RequestContext, blocking, cluster, code, distinct, text, topic_error};
use crate::model::{LEADER_EPOCH, TopicId, TopicName};
use crate::server::Services;
use crate::topics::{Topic, TopicError};

/// Versions of the request in which an empty list means every topic; later a null does.
const EMPTY_IS_ALL_UNTIL: i16 = 0;

/// Answers for all topics, or for those named, creating what is missing where request and configuration both allow it.
pub async fn metadata(
    services: &Arc<Services>,
    context: &RequestContext,
    request: MetadataRequest,
) -> MetadataResponse {
    let node_id = services.broker.node_id;
    let operations = request.include_topic_authorized_operations;
    let asked = request.topics.filter(|topics| !(topics.is_empty() && context.api_version <= EMPTY_IS_ALL_UNTIL));
    let topics = match asked {
        None => services.topics.list().iter().map(|topic| topic_row(topic, node_id, operations)).collect(),
        Some(asked) => {
            let create = request.allow_auto_topic_creation && services.broker.auto_create_topics_enable;
            let mut rows = Vec::new();
            for topic in distinct(asked, |topic| (topic.name.clone(), topic.topic_id)) {
                rows.push(match find(services, &topic, create).await {
                    Ok(found) => topic_row(&found, node_id, operations),
                    Err(error) => error_row(topic, error),
                });
            }
            rows
        }
    };
    let (host, port) = &services.advertised;
    let broker = MetadataResponseBroker::default()
        .with_node_id(BrokerId(node_id))
        .with_host(text(host))
        .with_port(i32::from(*port));
    let response = MetadataResponse::default()
        .with_brokers(vec![broker])
        .with_cluster_id(Some(text(&services.cluster_id)))
        .with_controller_id(BrokerId(node_id))
        .with_topics(topics);
    if request.include_cluster_authorized_operations {
        response.with_cluster_authorized_operations(cluster::CLUSTER_OPERATIONS)
    } else {
        response
    }
}

async fn find(
    services: &Arc<Services>,
    asked: &MetadataRequestTopic,
    create: bool,
) -> Result<Arc<Topic>, ResponseError> {
    let Some(name) = &asked.name else {
        let found = (!asked.topic_id.is_nil()).then(|| services.topics.by_id(TopicId(asked.topic_id))).flatten();
        return found.ok_or(ResponseError::UnknownTopicId);
    };
    if let Some(topic) = services.topics.get(name.as_str()) {
        return Ok(topic);
    }
    let name = TopicName::new(name.as_str()).map_err(|_| ResponseError::InvalidTopicException)?;
    if !create || name.is_internal() {
        return Err(ResponseError::UnknownTopicOrPartition);
    }
    auto_create(services, name).await
}

async fn auto_create(services: &Arc<Services>, name: TopicName) -> Result<Arc<Topic>, ResponseError> {
    let (topics, partitions) = (services.topics.clone(), services.broker.num_partitions);
    let (created, name) = blocking(move || (topics.create(&name, partitions, BTreeMap::new()), name)).await;
    match created {
        Ok(topic) => {
            info!(topic = %topic.name, partitions, "topic created because a client asked for it");
            Ok(topic)
        }
        // Another client was faster.
        Err(TopicError::Exists(_)) => services.topics.get(name.as_str()).ok_or(ResponseError::UnknownTopicOrPartition),
        Err(failure) => {
            warn!(topic = %name, %failure, "topic could not be created");
            Err(topic_error(&failure))
        }
    }
}

fn topic_row(topic: &Topic, node_id: i32, operations: bool) -> MetadataResponseTopic {
    let row = ready_row(&topic.name, topic.id, topic.partitions.len(), node_id).with_is_internal(topic.is_internal());
    if operations { row.with_topic_authorized_operations(cluster::TOPIC_OPERATIONS) } else { row }
}

/// A topic whose partitions are all led by this broker, the only replica.
fn ready_row(name: &TopicName, id: TopicId, partitions: usize, node_id: i32) -> MetadataResponseTopic {
    let partitions = (0..i32::try_from(partitions).unwrap_or(i32::MAX)).map(|index| {
        MetadataResponsePartition::default()
            .with_partition_index(index)
            .with_leader_id(BrokerId(node_id))
            .with_leader_epoch(LEADER_EPOCH)
            .with_replica_nodes(vec![BrokerId(node_id)])
            .with_isr_nodes(vec![BrokerId(node_id)])
    });
    MetadataResponseTopic::default()
        .with_name(Some(WireName(text(name.as_str()))))
        .with_topic_id(id.0)
        .with_partitions(partitions.collect())
}

/// Echoes what was asked for. Only a request by id may be answered with a null name, and only versions that have ids
/// can make one; a null name in an older version becomes empty, because it cannot be encoded.
fn error_row(asked: MetadataRequestTopic, error: ResponseError) -> MetadataResponseTopic {
    let by_id = asked.name.is_none() && asked.topic_id != Uuid::nil();
    let name = if by_id { None } else { Some(asked.name.unwrap_or(WireName(StrBytes::new()))) };
    MetadataResponseTopic::default().with_error_code(code(Some(error))).with_name(name).with_topic_id(asked.topic_id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::encode;

    #[test]
    fn a_ready_topic_is_led_by_this_broker() {
        let name = TopicName::new("orders").unwrap();
        let row = ready_row(&name, TopicId::random(), 3, 7);
        assert_eq!((row.error_code, row.partitions.len()), (0, 3));
        for (index, partition) in row.partitions.iter().enumerate() {
            assert_eq!(partition.partition_index, index as i32);
            assert_eq!((partition.leader_id, partition.leader_epoch), (BrokerId(7), LEADER_EPOCH));
            assert_eq!(partition.isr_nodes, partition.replica_nodes);
        }
    }

    #[test]
    fn rows_fit_every_version() {
        let name = TopicName::new("orders").unwrap();
        let ready = ready_row(&name, TopicId::random(), 3, 7);
        let unnamed = || MetadataRequestTopic::default().with_name(None);
        for version in 0..=13 {
            let by_id = unnamed().with_topic_id(Uuid::from_u128(if version >= 12 { 9 } else { 0 }));
            let mut rows = vec![ready.clone(), error_row(by_id, ResponseError::UnknownTopicId)];
            if version >= 8 {
                rows.push(ready.clone().with_topic_authorized_operations(cluster::TOPIC_OPERATIONS));
            }
            let mut response = MetadataResponse::default().with_cluster_id(Some(text("c"))).with_topics(rows);
            if (8..=10).contains(&version) {
                response = response.with_cluster_authorized_operations(cluster::CLUSTER_OPERATIONS);
            }
            assert!(encode::response(1, version, &response).is_ok(), "version {version}");
        }
    }

    #[test]
    fn an_error_echoes_what_was_asked_for() {
        let id = Uuid::from_u128(9);
        let by_id = MetadataRequestTopic::default().with_name(None).with_topic_id(id);
        let row = error_row(by_id, ResponseError::UnknownTopicId);
        assert_eq!((row.error_code, row.name, row.topic_id), (100, None, id));
        let by_name = MetadataRequestTopic::default().with_name(Some(WireName(text("x"))));
        let row = error_row(by_name, ResponseError::UnknownTopicOrPartition);
        assert_eq!((row.error_code, row.name), (3, Some(WireName(text("x")))));
    }
}
