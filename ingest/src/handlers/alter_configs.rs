//! AlterConfigs and IncrementalAlterConfigs, for topics. On the answer the settings are durable and in force. The broker
//! itself is configured in its file.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::alter_configs_response::AlterConfigsResourceResponse;
use kafka_protocol::messages::incremental_alter_configs_request::AlterableConfig;
use kafka_protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse as IncrementalResponse;
use kafka_protocol::messages::{
    AlterConfigsRequest, AlterConfigsResponse, IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse,
};
use kafka_protocol::protocol::StrBytes;
use tracing::info;

use super::configs::RESOURCE_TOPIC;
use super::{RequestContext, blocking, text, topic_error};
use crate::model::TopicName;
use crate::server::Services;

/// Kafka's `AlterConfigOp.OpType`; the others change lists, of which one is short enough to be set.
const SET: i8 = 0;
const DELETE: i8 = 1;

/// A refusal with the words for it.
type Refusal = (ResponseError, String);
/// Settings by name; `None` goes back to the default.
type Changes = BTreeMap<String, Option<String>>;

/// Replaces all settings of each topic.
pub async fn alter_configs(
    services: &Arc<Services>,
    _context: &RequestContext,
    request: AlterConfigsRequest,
) -> AlterConfigsResponse {
    let twice = repeated(request.resources.iter().map(|resource| (resource.resource_type, &resource.resource_name)));
    let mut responses = Vec::with_capacity(request.resources.len());
    for resource in request.resources {
        let (kind, name) = (resource.resource_type, resource.resource_name);
        let settings = resource.configs.into_iter();
        let settings = settings.map(|config| (config.name.to_string(), config.value.map(|value| value.to_string())));
        let outcome = match twice.contains(&(kind, name.clone())) {
            true => Err(named_twice()),
            false => alter(services, kind, &name, settings.collect(), true, request.validate_only).await,
        };
        let (code, message) = answered(outcome);
        responses.push(
            AlterConfigsResourceResponse::default()
                .with_error_code(code)
                .with_error_message(message)
                .with_resource_type(kind)
                .with_resource_name(name),
        );
    }
    AlterConfigsResponse::default().with_responses(responses)
}

/// Changes some settings of each topic.
pub async fn incremental_alter_configs(
    services: &Arc<Services>,
    _context: &RequestContext,
    request: IncrementalAlterConfigsRequest,
) -> IncrementalAlterConfigsResponse {
    let twice = repeated(request.resources.iter().map(|resource| (resource.resource_type, &resource.resource_name)));
    let mut responses = Vec::with_capacity(request.resources.len());
    for resource in request.resources {
        let (kind, name) = (resource.resource_type, resource.resource_name);
        let outcome = match (twice.contains(&(kind, name.clone())), changes(resource.configs)) {
            (true, _) => Err(named_twice()),
            (false, Err(refusal)) => Err(refusal),
            (false, Ok(changes)) => alter(services, kind, &name, changes, false, request.validate_only).await,
        };
        let (code, message) = answered(outcome);
        responses.push(
            IncrementalResponse::default()
                .with_error_code(code)
                .with_error_message(message)
                .with_resource_type(kind)
                .with_resource_name(name),
        );
    }
    IncrementalAlterConfigsResponse::default().with_responses(responses)
}

fn changes(configs: Vec<AlterableConfig>) -> Result<Changes, Refusal> {
    let mut changes = Changes::new();
    for config in configs {
        let value = match (config.config_operation, config.value) {
            (SET, Some(value)) => Some(value.to_string()),
            (DELETE, _) => None,
            (SET, None) => return Err((ResponseError::InvalidConfig, format!("{} is set to null", &*config.name))),
            (other, _) => {
                let message = format!("operation {other} is not supported; use SET (0) or DELETE (1)");
                return Err((ResponseError::InvalidRequest, message));
            }
        };
        if changes.insert(config.name.to_string(), value).is_some() {
            return Err((ResponseError::InvalidRequest, format!("{} is changed more than once", &*config.name)));
        }
    }
    Ok(changes)
}

async fn alter(
    services: &Arc<Services>,
    resource_type: i8,
    name: &StrBytes,
    changes: Changes,
    replaces_all: bool,
    only_validate: bool,
) -> Result<(), Refusal> {
    if resource_type != RESOURCE_TOPIC {
        let message = format!("resource type {resource_type} cannot be changed here; topics (2) can");
        return Err((ResponseError::InvalidRequest, message));
    }
    TopicName::new(name.as_str()).map_err(|error| (ResponseError::InvalidTopicException, error.to_string()))?;
    let (topics, wanted) = (services.topics.clone(), name.to_string());
    let change = move |overrides: &mut BTreeMap<String, String>| {
        if replaces_all {
            overrides.clear();
        }
        for (key, value) in changes {
            match value {
                Some(value) => drop(overrides.insert(key, value)),
                None => drop(overrides.remove(&key)),
            }
        }
    };
    match blocking(move || topics.alter(&wanted, only_validate, change)).await {
        Ok(topic) if !only_validate => info!(topic = %topic.name, "changed settings"),
        Ok(_) => {}
        Err(error) => return Err((topic_error(&error), error.to_string())),
    }
    Ok(())
}

fn answered(outcome: Result<(), Refusal>) -> (i16, Option<StrBytes>) {
    match outcome {
        Ok(()) => (0, None),
        Err((error, message)) => (error.code(), Some(text(&message))),
    }
}

fn named_twice() -> Refusal {
    (ResponseError::InvalidRequest, "the request names this resource more than once".to_owned())
}

/// What is named more than once.
fn repeated<'a>(resources: impl Iterator<Item = (i8, &'a StrBytes)>) -> HashSet<(i8, StrBytes)> {
    let mut seen = HashSet::new();
    resources.filter(|resource| !seen.insert(*resource)).map(|(kind, name)| (kind, name.clone())).collect()
}
