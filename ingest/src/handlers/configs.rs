//! DescribeConfigs: topics under Kafka's whole key set, and the broker under the Kafka names of what it can be told.
//! ListConfigResources: which topics and brokers there are to describe.

mod broker;

use std::collections::BTreeMap;
use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
};
use kafka_protocol::messages::list_config_resources_response::ConfigResource;
use kafka_protocol::messages::{
    DescribeConfigsRequest, DescribeConfigsResponse, ListConfigResourcesRequest, ListConfigResourcesResponse,
};
use kafka_protocol::protocol::StrBytes;
use thermocline_config::{DescribedConfig, LogConfig, TopicConfig};

use super::{RequestContext, distinct, text};
use crate::model::TopicName;
use crate::server::Services;

/// Kafka's `ConfigSource`: set for the topic, set in the broker's file, built in.
const SOURCE_TOPIC: i8 = 1;
const SOURCE_STATIC_BROKER: i8 = 4;
const SOURCE_DEFAULT: i8 = 5;

/// Kafka's `ConfigResource.Type`.
pub(super) const RESOURCE_TOPIC: i8 = 2;
pub(super) const RESOURCE_BROKER: i8 = 4;
/// Topic, broker, broker logger, client metrics, group: those that Kafka has, and of which two exist here.
const RESOURCE_TYPES: [i8; 5] = [RESOURCE_TOPIC, RESOURCE_BROKER, 8, 16, 32];
/// First version of ListConfigResources that names types (KIP-1142).
const RESOURCE_TYPES_SINCE: i16 = 1;

/// Kafka's `ConfigType`.
const TYPE_BOOL: i8 = 1;
const TYPE_STRING: i8 = 2;
const TYPE_INT: i8 = 3;
const TYPE_LONG: i8 = 5;

type Refusal = (ResponseError, String);

/// One setting with where its value comes from.
pub(super) struct Row {
    pub described: DescribedConfig,
    pub source: i8,
    read_only: bool,
    /// Every value it could take, the one in force first: name, value, source.
    synonyms: Vec<(&'static str, String, i8)>,
}

/// Describes each resource asked for; a list of keys that is null or empty means all.
pub async fn describe_configs(
    services: &Arc<Services>,
    _context: &RequestContext,
    request: DescribeConfigsRequest,
) -> DescribeConfigsResponse {
    let (synonyms, documentation) = (request.include_synonyms, request.include_documentation);
    let key = |resource: &DescribeConfigsResource| {
        (resource.resource_type, resource.resource_name.clone(), resource.configuration_keys.clone())
    };
    let results = distinct(request.resources, key).map(|resource| {
        let result = DescribeConfigsResult::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone());
        match describe(services, &resource) {
            Ok(rows) => {
                let keys = resource.configuration_keys.as_deref();
                let rows = rows.into_iter().filter(|row| is_asked_for(keys, row.described.name));
                let rows = rows.map(|row| wire_row(row, synonyms, documentation));
                result.with_error_message(None).with_configs(rows.collect())
            }
            Err((error, message)) => result.with_error_code(error.code()).with_error_message(Some(text(&message))),
        }
    });
    DescribeConfigsResponse::default().with_results(results.collect())
}

/// ListConfigResources: what can be described. Version 0 asks for subscriptions to clients' metrics, of which there are
/// none.
pub async fn list_config_resources(
    services: &Arc<Services>,
    context: &RequestContext,
    request: ListConfigResourcesRequest,
) -> ListConfigResourcesResponse {
    let response = ListConfigResourcesResponse::default();
    if context.api_version < RESOURCE_TYPES_SINCE {
        return response;
    }
    let asked = request.resource_types;
    if let Some(unknown) = asked.iter().find(|kind| !RESOURCE_TYPES.contains(kind)) {
        tracing::debug!(client_id = context.client_id, unknown, "configuration of an unknown type asked for");
        return response.with_error_code(ResponseError::UnsupportedVersion.code());
    }
    let wanted = |kind| asked.is_empty() || asked.contains(&kind);
    let resource = |kind, name: &str| ConfigResource::default().with_resource_type(kind).with_resource_name(text(name));
    let mut resources = Vec::new();
    if wanted(RESOURCE_TOPIC) {
        let topics = services.topics.list();
        resources.extend(topics.iter().map(|topic| resource(RESOURCE_TOPIC, topic.name.as_str())));
    }
    if wanted(RESOURCE_BROKER) {
        resources.push(resource(RESOURCE_BROKER, &services.broker.node_id.to_string()));
    }
    response.with_config_resources(resources)
}

fn describe(services: &Services, resource: &DescribeConfigsResource) -> Result<Vec<Row>, Refusal> {
    let name = resource.resource_name.as_str();
    match resource.resource_type {
        RESOURCE_TOPIC => {
            TopicName::new(name).map_err(|error| (ResponseError::InvalidTopicException, error.to_string()))?;
            let unknown = || (ResponseError::UnknownTopicOrPartition, format!("topic {name} does not exist"));
            let topic = services.topics.get(name).ok_or_else(unknown)?;
            topic_rows(services, &topic.config())
        }
        RESOURCE_BROKER => {
            let (topic, built_in_topic) = topic_defaults(services)?;
            let rows = broker::resource(
                name,
                &broker::Sources {
                    broker: &services.broker,
                    kafka: &services.kafka,
                    groups: services.groups.config(),
                    topic: &topic,
                    built_in_topic: &built_in_topic,
                    advertised: &services.advertised,
                },
            )?;
            Ok(rows.into_iter().map(broker_row).collect())
        }
        other => {
            let message = format!("resource type {other} has no configuration here; topics (2) and brokers (4) have");
            Err((ResponseError::InvalidRequest, message))
        }
    }
}

/// What a topic without settings of its own gets, from this broker and from one that was told nothing.
fn topic_defaults(services: &Services) -> Result<(TopicConfig, TopicConfig), Refusal> {
    let defaults = services.topics.default_config();
    let built_in = TopicConfig::new(BTreeMap::new(), &LogConfig::default());
    let both = defaults.and_then(|defaults| Ok((defaults, built_in?)));
    both.map_err(|error| (ResponseError::InvalidConfig, format!("the broker's defaults for topics: {error}")))
}

/// The settings of a topic: its own, over those of the broker's file, over the built-in ones.
pub(super) fn topic_rows(services: &Services, config: &TopicConfig) -> Result<Vec<Row>, Refusal> {
    let (broker, built_in) = topic_defaults(services)?;
    let defaults = broker.describe().into_iter().zip(built_in.describe());
    Ok(config
        .describe()
        .into_iter()
        .zip(defaults)
        .map(|(own, (broker, built_in))| topic_row(own, broker, built_in))
        .collect())
}

fn topic_row(own: DescribedConfig, broker: DescribedConfig, built_in: DescribedConfig) -> Row {
    let mut synonyms = Vec::new();
    if !own.is_default {
        synonyms.push((own.name, own.value.clone(), SOURCE_TOPIC));
    }
    let is_told = broker.value != built_in.value;
    if let Some(name) = broker::synonym(own.name) {
        if is_told {
            synonyms.push((name, broker.value.clone(), SOURCE_STATIC_BROKER));
        }
        synonyms.push((name, built_in.value, SOURCE_DEFAULT));
    }
    let source = match (own.is_default, is_told && own.value == broker.value) {
        (false, _) => SOURCE_TOPIC,
        (true, true) => SOURCE_STATIC_BROKER,
        (true, false) => SOURCE_DEFAULT,
    };
    Row { described: own, source, read_only: false, synonyms }
}

/// The broker's values were chosen in its file.
fn broker_row(described: DescribedConfig) -> Row {
    let source = if described.is_default { SOURCE_DEFAULT } else { SOURCE_STATIC_BROKER };
    let synonyms = vec![(described.name, described.value.clone(), source)];
    Row { described, source, read_only: true, synonyms }
}

fn is_asked_for(keys: Option<&[StrBytes]>, name: &str) -> bool {
    keys.is_none_or(|keys| keys.is_empty() || keys.iter().any(|key| key.as_str() == name))
}

fn wire_row(row: Row, synonyms: bool, documentation: bool) -> DescribeConfigsResourceResult {
    let Row { described, source, read_only, synonyms: known } = row;
    let synonym = |(name, value, source): (&str, String, i8)| {
        DescribeConfigsSynonym::default().with_name(text(name)).with_value(Some(text(&value))).with_source(source)
    };
    DescribeConfigsResourceResult::default()
        .with_name(text(described.name))
        .with_value(Some(text(&described.value)))
        .with_read_only(read_only)
        .with_config_source(source)
        .with_synonyms(if synonyms { known.into_iter().map(synonym).collect() } else { Vec::new() })
        .with_config_type(described.config_type)
        .with_documentation(documentation.then(|| text(described.documentation)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_filter_and_none_means_all() {
        assert!(is_asked_for(None, "a"));
        assert!(is_asked_for(Some(&[text("b"), text("a")]), "a"));
        assert!(is_asked_for(Some(&[]), "a"), "as Kafka");
        assert!(!is_asked_for(Some(&[text("b")]), "a"));
    }

    fn described(value: &str, is_default: bool) -> DescribedConfig {
        DescribedConfig {
            name: "segment.bytes",
            value: value.to_owned(),
            is_default,
            config_type: TYPE_INT,
            documentation: "size",
        }
    }

    #[test]
    fn rows_say_where_their_value_comes_from() {
        let row = |own: (&str, bool), broker, built_in| {
            topic_row(described(own.0, own.1), described(broker, true), described(built_in, true))
        };
        let built_in = row(("1", true), "1", "1");
        assert_eq!((built_in.source, built_in.synonyms.len()), (SOURCE_DEFAULT, 1));
        let told = row(("2", true), "2", "1");
        assert_eq!(told.source, SOURCE_STATIC_BROKER);
        // Set to what it would be anyway: still set.
        let set = row(("2", false), "2", "1");
        assert_eq!(set.source, SOURCE_TOPIC);
        let names: Vec<_> = set.synonyms.iter().map(|(name, value, source)| (*name, value.as_str(), *source)).collect();
        let broker = "log.segment.bytes";
        let all =
            [("segment.bytes", "2", SOURCE_TOPIC), (broker, "2", SOURCE_STATIC_BROKER), (broker, "1", SOURCE_DEFAULT)];
        assert_eq!(names, all);
        assert_eq!(wire_row(set, true, true).synonyms.len(), 3);
        let plain = wire_row(row(("2", false), "2", "1"), false, false);
        assert_eq!((plain.synonyms.len(), plain.documentation, plain.read_only), (0, None, false));
        assert!(wire_row(broker_row(described("1", true)), false, false).read_only);
    }
}
