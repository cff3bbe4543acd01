//! AlterConfigs and IncrementalAlterConfigs, for topics. On the answer the settings are durable and in force. The
//! broker itself is configured in its file, and says so.

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
use thermocline_config::DescribedConfig;
use tracing::info;

use super::configs::{RESOURCE_BROKER, RESOURCE_TOPIC};
use super::{RequestContext, blocking, text, topic_error};
use crate::model::TopicName;
use crate::server::Services;

/// Kafka's `AlterConfigOp.OpType`.
const SET: i8 = 0;
const DELETE: i8 = 1;
const APPEND: i8 = 2;
const SUBTRACT: i8 = 3;
/// Kafka's `ConfigType` of settings that APPEND and SUBTRACT can change.
const TYPE_LIST: i8 = 7;

/// A refusal with the words for it.
type Refusal = (ResponseError, String);
/// Changes by the name of the setting.
type Changes = BTreeMap<String, Change>;

/// What happens to one setting.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Set(String),
    /// Back to the default.
    Delete,
    /// Members of a list that are to be in it, or not in it any more, separated by commas.
    Append(String),
    Subtract(String),
}

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
        let change =
            |value: Option<StrBytes>| value.map_or(Change::Delete, |value| Change::Set(value.as_str().to_owned()));
        let settings = settings.map(|config| (config.name.to_string(), change(config.value)));
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
        let value = config.value.map(|value| value.to_string());
        let change = match (config.config_operation, value) {
            (SET, Some(value)) => Change::Set(value),
            (DELETE, _) => Change::Delete,
            (APPEND, Some(value)) => Change::Append(value),
            (SUBTRACT, Some(value)) => Change::Subtract(value),
            (SET | APPEND | SUBTRACT, None) => {
                return Err((ResponseError::InvalidConfig, format!("{} is changed by null", &*config.name)));
            }
            (other, _) => {
                let message = format!("operation {other} is not known; there are 0 to 3");
                return Err((ResponseError::InvalidRequest, message));
            }
        };
        if changes.insert(config.name.to_string(), change).is_some() {
            return Err((ResponseError::InvalidRequest, format!("{} is changed more than once", &*config.name)));
        }
    }
    Ok(changes)
}

/// Only lists take members, and give them up. What is not known is left to the catalogue, which has the better word.
fn check_lists(changes: &Changes, defaults: &[DescribedConfig]) -> Result<(), Refusal> {
    let list = |name: &str| defaults.iter().find(|row| row.name == name).is_none_or(|row| row.config_type == TYPE_LIST);
    let changed =
        changes.iter().find(|(name, change)| matches!(change, Change::Append(_) | Change::Subtract(_)) && !list(name));
    match changed {
        None => Ok(()),
        Some((name, _)) => {
            Err((ResponseError::InvalidConfig, format!("{name} is no list: SET (0) and DELETE (1) change it")))
        }
    }
}

/// Carries a change out on what is set; `default` is what holds where nothing is.
fn apply(overrides: &mut BTreeMap<String, String>, name: String, change: Change, default: &str) {
    let current =
        |overrides: &BTreeMap<String, String>| overrides.get(&name).map_or(default, String::as_str).to_owned();
    let members = |list: &str| {
        list.split(',').map(|member| member.trim().to_owned()).filter(|member| !member.is_empty()).collect::<Vec<_>>()
    };
    let value = match change {
        Change::Set(value) => value,
        Change::Delete => {
            overrides.remove(&name);
            return;
        }
        Change::Append(more) => {
            let mut list = members(&current(overrides));
            for member in members(&more) {
                if !list.contains(&member) {
                    list.push(member);
                }
            }
            list.join(",")
        }
        Change::Subtract(less) => {
            let (mut list, less) = (members(&current(overrides)), members(&less));
            list.retain(|member| !less.contains(member));
            list.join(",")
        }
    };
    overrides.insert(name, value);
}

async fn alter(
    services: &Arc<Services>,
    resource_type: i8,
    name: &StrBytes,
    changes: Changes,
    replaces_all: bool,
    only_validate: bool,
) -> Result<(), Refusal> {
    match resource_type {
        RESOURCE_TOPIC => {}
        RESOURCE_BROKER => return refuse_broker(services, name, &changes),
        other => {
            let message = format!("resource type {other} cannot be changed here; topics (2) can");
            return Err((ResponseError::InvalidRequest, message));
        }
    }
    TopicName::new(name.as_str()).map_err(|error| (ResponseError::InvalidTopicException, error.to_string()))?;
    let (topics, wanted) = (services.topics.clone(), name.to_string());
    let defaults =
        topics.default_config().map_err(|error| (ResponseError::InvalidConfig, error.to_string()))?.describe();
    check_lists(&changes, &defaults)?;
    let change = move |overrides: &mut BTreeMap<String, String>| {
        if replaces_all {
            overrides.clear();
        }
        for (key, change) in changes {
            let default = defaults.iter().find(|row| row.name == key).map_or("", |row| row.value.as_str());
            apply(overrides, key, change, default);
        }
    };
    match blocking(move || topics.alter(&wanted, only_validate, change)).await {
        Ok(topic) if !only_validate => info!(topic = %topic.name, "changed settings"),
        Ok(_) => {}
        Err(error) => return Err((topic_error(&error), error.to_string())),
    }
    Ok(())
}

/// The broker's settings come from its file. To change none of them is no change that would have to be refused.
fn refuse_broker(services: &Services, name: &StrBytes, changes: &Changes) -> Result<(), Refusal> {
    let node_id = services.broker.node_id;
    if !name.is_empty() && name.parse() != Ok(node_id) {
        let message = format!("broker {} is not here; this is broker {node_id}", name.as_str());
        return Err((ResponseError::InvalidRequest, message));
    }
    match changes.keys().next() {
        None => Ok(()),
        Some(key) => {
            let message = format!("{key} is read-only: the broker reads its settings from its file when it starts");
            Err((ResponseError::InvalidRequest, message))
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn altered(name: &str, operation: i8, value: Option<&str>) -> AlterableConfig {
        AlterableConfig::default().with_name(text(name)).with_config_operation(operation).with_value(value.map(text))
    }

    #[test]
    fn operations_are_told_apart() {
        let read = |operation, value| changes(vec![altered("a", operation, value)]).map(|all| all["a"].clone());
        assert_eq!(read(SET, Some("1")), Ok(Change::Set("1".to_owned())));
        assert_eq!(read(DELETE, None), Ok(Change::Delete));
        assert_eq!(read(APPEND, Some("x")), Ok(Change::Append("x".to_owned())));
        assert_eq!(read(SUBTRACT, Some("x")), Ok(Change::Subtract("x".to_owned())));
        for null in [SET, APPEND, SUBTRACT] {
            assert_eq!(read(null, None).unwrap_err().0, ResponseError::InvalidConfig);
        }
        assert_eq!(read(4, Some("1")).unwrap_err().0, ResponseError::InvalidRequest);
        let twice = changes(vec![altered("a", SET, Some("1")), altered("a", DELETE, None)]);
        assert_eq!(twice.unwrap_err().0, ResponseError::InvalidRequest);
    }

    #[test]
    fn lists_grow_and_shrink_from_what_is_in_force() {
        let mut overrides = BTreeMap::new();
        let mut change = |change, default: &str| {
            apply(&mut overrides, "list".to_owned(), change, default);
            overrides.get("list").cloned()
        };
        assert_eq!(change(Change::Append("c, a".to_owned()), "a,b"), Some("a,b,c".to_owned()));
        assert_eq!(change(Change::Append("d".to_owned()), "a,b"), Some("a,b,c,d".to_owned()));
        assert_eq!(change(Change::Subtract("b,x,d".to_owned()), "a,b"), Some("a,c".to_owned()));
        assert_eq!(change(Change::Delete, "a,b"), None);
        assert_eq!(change(Change::Append("x".to_owned()), ""), Some("x".to_owned()));
    }

    #[test]
    fn what_is_no_list_takes_no_members() {
        let row = |name, config_type| DescribedConfig {
            name,
            value: String::new(),
            is_default: true,
            config_type,
            documentation: "",
        };
        let defaults = [row("list", TYPE_LIST), row("number", 5)];
        let check = |name: &str, change| check_lists(&BTreeMap::from([(name.to_owned(), change)]), &defaults);
        assert_eq!(check("list", Change::Append("a".to_owned())), Ok(()));
        assert_eq!(check("number", Change::Set("1".to_owned())), Ok(()));
        assert_eq!(check("number", Change::Append("1".to_owned())).unwrap_err().0, ResponseError::InvalidConfig);
        assert_eq!(check("unknown", Change::Append("1".to_owned())), Ok(()));
    }
}
