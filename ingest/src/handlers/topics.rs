//! CreateTopics and DeleteTopics. On the answer the change is durable and every later request sees it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::create_topics_response::{CreatableTopicConfigs, CreatableTopicResult};
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
use kafka_protocol::messages::{
    CreateTopicsRequest, CreateTopicsResponse, DeleteTopicsRequest, DeleteTopicsResponse, TopicName as WireName,
};
use thermocline_config::{BrokerConfig, TopicConfig};
use tracing::info;
use uuid::Uuid;

use super::{RequestContext, blocking, configs, text, topic_error};
use crate::model::{TopicId, TopicName};
use crate::server::Services;
use crate::topics::{TopicError, Topics};

/// First version in which -1 stands for the broker's default partition count and replication factor.
const DEFAULTS_SINCE: i16 = 4;
/// First version of DeleteTopics that names topics one by one, by name or id.
const STATES_SINCE: i16 = 6;
/// Replicas of every partition: this broker.
const REPLICATION_FACTOR: i16 = 1;

/// A refusal with the words for it.
type Refusal = (ResponseError, String);

/// What a request for a topic comes down to.
#[derive(Debug, PartialEq)]
struct Wanted {
    name: TopicName,
    partitions: i32,
    overrides: BTreeMap<String, String>,
}

/// Creates topics, or only says whether they could be.
pub async fn create_topics(
    services: &Arc<Services>,
    context: &RequestContext,
    request: CreateTopicsRequest,
) -> CreateTopicsResponse {
    let twice = repeated(request.topics.iter().map(|topic| topic.name.as_str()));
    let mut rows = Vec::with_capacity(request.topics.len());
    for asked in &request.topics {
        let wanted = if twice.contains(asked.name.as_str()) {
            Err(refusal(ResponseError::InvalidRequest, "the request names this topic more than once"))
        } else {
            wanted(asked, context.api_version, &services.broker)
        };
        let created = match wanted {
            Ok(wanted) => create(services, wanted, request.validate_only).await,
            Err(refusal) => Err(refusal),
        };
        rows.push(
            created
                .unwrap_or_else(|(error, message)| {
                    CreatableTopicResult::default()
                        .with_error_code(error.code())
                        .with_error_message(Some(text(&message)))
                })
                .with_name(asked.name.clone()),
        );
    }
    CreateTopicsResponse::default().with_topics(rows)
}

/// Checks what the catalogue does not: replication, assignments, reserved names.
fn wanted(asked: &CreatableTopic, version: i16, broker: &BrokerConfig) -> Result<Wanted, Refusal> {
    let name = TopicName::new(asked.name.as_str())
        .map_err(|error| (ResponseError::InvalidTopicException, error.to_string()))?;
    if name.is_internal() {
        let message = "the broker keeps this topic for itself";
        return Err(refusal(ResponseError::InvalidTopicException, message));
    }
    let partitions = if asked.assignments.is_empty() {
        check_replication_factor(asked.replication_factor, version, broker)?;
        match asked.num_partitions {
            -1 if version >= DEFAULTS_SINCE => broker.num_partitions,
            count => count,
        }
    } else {
        assigned_partitions(asked, broker)?
    };
    let mut overrides = BTreeMap::new();
    for config in &asked.configs {
        let Some(value) = &config.value else {
            let message = format!("topic config {} has no value", config.name);
            return Err((ResponseError::InvalidConfig, message));
        };
        overrides.insert(config.name.as_str().to_owned(), value.as_str().to_owned());
    }
    Ok(Wanted { name, partitions, overrides })
}

fn check_replication_factor(factor: i16, version: i16, broker: &BrokerConfig) -> Result<(), Refusal> {
    let fits = match factor {
        -1 => version >= DEFAULTS_SINCE,
        REPLICATION_FACTOR => true,
        more => more > 0 && broker.lenient_replication_factor,
    };
    if fits {
        return Ok(());
    }
    let message = format!("replication factor {factor} cannot be had on one broker; use 1 or -1");
    Err((ResponseError::InvalidReplicationFactor, message))
}

/// The partition count of a manual assignment: every partition from 0 on, each on this broker.
fn assigned_partitions(asked: &CreatableTopic, broker: &BrokerConfig) -> Result<i32, Refusal> {
    if asked.num_partitions != -1 || asked.replication_factor != -1 {
        let message = "give either assignments or partition count and replication factor, the other as -1";
        return Err(refusal(ResponseError::InvalidRequest, message));
    }
    let indexes: HashSet<i32> = asked.assignments.iter().map(|assignment| assignment.partition_index).collect();
    let count = i32::try_from(asked.assignments.len()).unwrap_or(i32::MAX);
    let complete = indexes.len() == asked.assignments.len() && indexes.iter().all(|index| (0..count).contains(index));
    let here = asked.assignments.iter().all(|assignment| {
        assignment.broker_ids.first().is_some_and(|broker_id| broker_id.0 == broker.node_id)
            && (assignment.broker_ids.len() == 1 || broker.lenient_replication_factor)
    });
    if complete && here {
        return Ok(count);
    }
    let message = format!("assign every partition from 0 on to broker {}, the only one", broker.node_id);
    Err((ResponseError::InvalidReplicaAssignment, message))
}

async fn create(
    services: &Arc<Services>,
    wanted: Wanted,
    validate_only: bool,
) -> Result<CreatableTopicResult, Refusal> {
    let topics = services.topics.clone();
    let partitions = wanted.partitions;
    let created = blocking(move || apply(&topics, wanted, validate_only)).await;
    let (id, config) = created.map_err(|failure| (topic_error(&failure), failure.to_string()))?;
    Ok(CreatableTopicResult::default()
        .with_topic_id(id)
        .with_error_message(None)
        .with_num_partitions(partitions)
        .with_replication_factor(REPLICATION_FACTOR)
        .with_configs(Some(config_rows(services, &config)?)))
}

/// Creates or validates; the id is nil where nothing was created. Blocking.
fn apply(topics: &Topics, wanted: Wanted, validate_only: bool) -> Result<(Uuid, Arc<TopicConfig>), TopicError> {
    if validate_only {
        let config = topics.validate(&wanted.name, wanted.partitions, wanted.overrides)?;
        return Ok((Uuid::nil(), Arc::new(config)));
    }
    let topic = topics.create(&wanted.name, wanted.partitions, wanted.overrides)?;
    info!(topic = %topic.name, id = %topic.id, partitions = wanted.partitions, "topic created");
    Ok((topic.id.0, topic.config()))
}

fn config_rows(services: &Services, config: &TopicConfig) -> Result<Vec<CreatableTopicConfigs>, Refusal> {
    let row = |row: configs::Row| {
        CreatableTopicConfigs::default()
            .with_name(text(row.described.name))
            .with_value(Some(text(&row.described.value)))
            .with_config_source(row.source)
    };
    Ok(configs::topic_rows(services, config)?.into_iter().map(row).collect())
}

/// Deletes topics by name or, from version 6 on, by id.
pub async fn delete_topics(
    services: &Arc<Services>,
    context: &RequestContext,
    request: DeleteTopicsRequest,
) -> DeleteTopicsResponse {
    let asked: Vec<DeleteTopicState> = if context.api_version >= STATES_SINCE {
        request.topics
    } else {
        request.topic_names.into_iter().map(|name| DeleteTopicState::default().with_name(Some(name))).collect()
    };
    let found: Vec<_> = asked.iter().map(|state| find(services, state)).collect();
    let twice = repeated(found.iter().flatten().map(String::as_str));
    let mut rows = Vec::with_capacity(asked.len());
    for (state, found) in asked.into_iter().zip(&found) {
        let deleted = match found {
            Ok(name) if twice.contains(name.as_str()) => {
                Err(refusal(ResponseError::InvalidRequest, "the request names this topic more than once"))
            }
            Ok(name) => delete(services, name.clone()).await,
            Err((error, message)) => Err((*error, message.clone())),
        };
        let row = DeletableTopicResult::default();
        rows.push(match deleted {
            Ok((name, id)) => row.with_name(Some(WireName(text(name.as_str())))).with_topic_id(id.0),
            Err((error, message)) => row
                .with_name(state.name)
                .with_topic_id(state.topic_id)
                .with_error_code(error.code())
                .with_error_message(Some(text(&message))),
        });
    }
    DeleteTopicsResponse::default().with_responses(rows)
}

/// The name of the topic meant.
fn find(services: &Services, state: &DeleteTopicState) -> Result<String, Refusal> {
    match (&state.name, state.topic_id.is_nil()) {
        (Some(name), true) => Ok(name.as_str().to_owned()),
        (None, false) => {
            let found = services.topics.by_id(TopicId(state.topic_id));
            let unknown = || (ResponseError::UnknownTopicId, format!("no topic has id {}", state.topic_id));
            Ok(found.ok_or_else(unknown)?.name.as_str().to_owned())
        }
        _ => Err(refusal(ResponseError::InvalidRequest, "name a topic either by name or by id")),
    }
}

async fn delete(services: &Arc<Services>, name: String) -> Result<(TopicName, TopicId), Refusal> {
    let topics = services.topics.clone();
    let deleted = blocking(move || topics.delete(&name)).await;
    let topic = deleted.map_err(|failure| (topic_error(&failure), failure.to_string()))?;
    services.groups.forget_topic(&topic.name).await;
    info!(topic = %topic.name, id = %topic.id, "topic deleted");
    Ok((topic.name.clone(), topic.id))
}

fn refusal(error: ResponseError, message: &str) -> Refusal {
    (error, message.to_owned())
}

/// Names that occur more than once.
fn repeated<'a>(names: impl Iterator<Item = &'a str>) -> HashSet<&'a str> {
    let mut seen = HashSet::new();
    names.filter(|name| !seen.insert(*name)).collect()
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::BrokerId;
    use kafka_protocol::messages::create_topics_request::{CreatableReplicaAssignment, CreatableTopicConfig};

    use super::*;

    fn asked(name: &str, partitions: i32, factor: i16) -> CreatableTopic {
        CreatableTopic::default()
            .with_name(WireName(text(name)))
            .with_num_partitions(partitions)
            .with_replication_factor(factor)
    }

    fn error(asked: &CreatableTopic, version: i16, broker: &BrokerConfig) -> ResponseError {
        wanted(asked, version, broker).unwrap_err().0
    }

    #[test]
    fn defaults_come_from_the_broker() {
        let broker = BrokerConfig { num_partitions: 4, ..BrokerConfig::default() };
        let wanted_topic = wanted(&asked("a", -1, -1), 4, &broker).unwrap();
        assert_eq!(wanted_topic.partitions, 4);
        assert_eq!(wanted(&asked("a", 3, 1), 2, &broker).unwrap().partitions, 3);
        assert_eq!(error(&asked("a", -1, -1), 3, &broker), ResponseError::InvalidReplicationFactor);
    }

    #[test]
    fn replication_is_strict_unless_told_otherwise() {
        let strict = BrokerConfig::default();
        let lenient = BrokerConfig { lenient_replication_factor: true, ..BrokerConfig::default() };
        assert_eq!(error(&asked("a", 1, 3), 4, &strict), ResponseError::InvalidReplicationFactor);
        assert!(wanted(&asked("a", 1, 3), 4, &lenient).is_ok());
        for never in [0, -2] {
            assert_eq!(error(&asked("a", 1, never), 4, &lenient), ResponseError::InvalidReplicationFactor);
        }
    }

    #[test]
    fn names_and_values_are_checked() {
        let broker = BrokerConfig::default();
        for name in ["", "a/b", "__consumer_offsets"] {
            assert_eq!(error(&asked(name, 1, 1), 4, &broker), ResponseError::InvalidTopicException);
        }
        let null = CreatableTopicConfig::default().with_name(text("segment.bytes")).with_value(None);
        assert_eq!(error(&asked("a", 1, 1).with_configs(vec![null]), 4, &broker), ResponseError::InvalidConfig);
    }

    #[test]
    fn assignments_cover_every_partition_on_this_broker() {
        let broker = BrokerConfig::default();
        let assigned = |partitions: &[(i32, i32)]| {
            let rows = partitions.iter().map(|&(index, broker)| {
                CreatableReplicaAssignment::default()
                    .with_partition_index(index)
                    .with_broker_ids(vec![BrokerId(broker)])
            });
            asked("a", -1, -1).with_assignments(rows.collect())
        };
        assert_eq!(wanted(&assigned(&[(1, 1), (0, 1)]), 4, &broker).unwrap().partitions, 2);
        for bad in [vec![(0, 2)], vec![(1, 1)], vec![(0, 1), (0, 1)]] {
            assert_eq!(error(&assigned(&bad), 4, &broker), ResponseError::InvalidReplicaAssignment);
        }
        let both = assigned(&[(0, 1)]).with_num_partitions(1);
        assert_eq!(error(&both, 4, &broker), ResponseError::InvalidRequest);
    }

    #[test]
    fn repeated_names_are_found() {
        assert_eq!(repeated(["a", "b", "a", "c", "a"].into_iter()), HashSet::from(["a"]));
    }
}
