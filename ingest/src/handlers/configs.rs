//! DescribeConfigs: topics under Kafka's whole key set, and the broker under the Kafka names of what it can be told.

use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
};
use kafka_protocol::messages::{DescribeConfigsRequest, DescribeConfigsResponse};
use kafka_protocol::protocol::StrBytes;
use thermocline_config::{BrokerConfig, DescribedConfig, KafkaConfig};

use super::{RequestContext, text};
use crate::model::TopicName;
use crate::server::Services;

/// Kafka's `ConfigSource`: set for the topic, set in the broker's file, built in.
const SOURCE_TOPIC: i8 = 1;
const SOURCE_STATIC_BROKER: i8 = 4;
const SOURCE_DEFAULT: i8 = 5;

/// Kafka's `ConfigResource.Type`.
pub(super) const RESOURCE_TOPIC: i8 = 2;
const RESOURCE_BROKER: i8 = 4;

/// Kafka's `ConfigType`.
const TYPE_BOOL: i8 = 1;
const TYPE_STRING: i8 = 2;
const TYPE_INT: i8 = 3;
const TYPE_LONG: i8 = 5;

type Refusal = (ResponseError, String);

/// Describes each resource asked for; a null list of keys means all.
pub async fn describe_configs(
    services: &Arc<Services>,
    _context: &RequestContext,
    request: DescribeConfigsRequest,
) -> DescribeConfigsResponse {
    let (synonyms, documentation) = (request.include_synonyms, request.include_documentation);
    let results = request.resources.into_iter().map(|resource| {
        let result = DescribeConfigsResult::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone());
        match describe(services, &resource) {
            Ok((rows, set_source)) => {
                let keys = resource.configuration_keys.as_deref();
                let rows = rows.into_iter().filter(|row| is_asked_for(keys, row.name));
                let rows = rows.map(|row| wire_row(row, set_source, synonyms, documentation));
                result.with_error_message(None).with_configs(rows.collect())
            }
            Err((error, message)) => result.with_error_code(error.code()).with_error_message(Some(text(&message))),
        }
    });
    DescribeConfigsResponse::default().with_results(results.collect())
}

/// The rows of a resource, and the source of those that are not defaults.
fn describe(services: &Services, resource: &DescribeConfigsResource) -> Result<(Vec<DescribedConfig>, i8), Refusal> {
    let name = resource.resource_name.as_str();
    match resource.resource_type {
        RESOURCE_TOPIC => {
            TopicName::new(name).map_err(|error| (ResponseError::InvalidTopicException, error.to_string()))?;
            let unknown = || (ResponseError::UnknownTopicOrPartition, format!("topic {name} does not exist"));
            let topic = services.topics.get(name).ok_or_else(unknown)?;
            Ok((topic.config().describe(services.topics.defaults()), SOURCE_TOPIC))
        }
        RESOURCE_BROKER => {
            let rows = broker_resource(name, &services.broker, &services.kafka, &services.advertised)?;
            Ok((rows, SOURCE_STATIC_BROKER))
        }
        other => {
            let message = format!("resource type {other} has no configuration here; topics (2) and brokers (4) have");
            Err((ResponseError::InvalidRequest, message))
        }
    }
}

/// The broker by its id; the empty name means the defaults set for all brokers at run time, of which there are none.
fn broker_resource(
    name: &str,
    broker: &BrokerConfig,
    kafka: &KafkaConfig,
    advertised: &(String, u16),
) -> Result<Vec<DescribedConfig>, Refusal> {
    if name.is_empty() {
        return Ok(Vec::new());
    }
    if name.parse() != Ok(broker.node_id) {
        let message = format!("broker {name} is not here; this is broker {}", broker.node_id);
        return Err((ResponseError::InvalidRequest, message));
    }
    Ok(broker_rows(broker, kafka, advertised))
}

fn broker_rows(broker: &BrokerConfig, kafka: &KafkaConfig, advertised: &(String, u16)) -> Vec<DescribedConfig> {
    let (broker_default, kafka_default) = (BrokerConfig::default(), KafkaConfig::default());
    let row = |name, config_type, value: String, default: String, documentation| DescribedConfig {
        name,
        is_default: value == default,
        broker: None,
        value,
        config_type,
        documentation,
    };
    let (host, port) = advertised;
    vec![
        row(
            "advertised.listeners",
            TYPE_STRING,
            format!("PLAINTEXT://{host}:{port}"),
            String::new(),
            "address told to clients",
        ),
        row(
            "auto.create.topics.enable",
            TYPE_BOOL,
            broker.auto_create_topics_enable.to_string(),
            broker_default.auto_create_topics_enable.to_string(),
            "whether a topic is created when a client asks for its metadata",
        ),
        row("broker.id", TYPE_INT, broker.node_id.to_string(), broker_default.node_id.to_string(), "id of this broker"),
        row(
            "compression.type",
            TYPE_STRING,
            "producer".into(),
            "producer".into(),
            "batches are kept as they were sent",
        ),
        row(
            "connections.max.idle.ms",
            TYPE_LONG,
            kafka.connections_max_idle.as_millis().to_string(),
            kafka_default.connections_max_idle.as_millis().to_string(),
            "idle time after which a connection is closed",
        ),
        row(
            "default.replication.factor",
            TYPE_INT,
            "1".into(),
            "1".into(),
            "replicas of an automatically created topic",
        ),
        row(
            "fetch.max.bytes",
            TYPE_INT,
            kafka.fetch_max_bytes.as_u64().to_string(),
            kafka_default.fetch_max_bytes.as_u64().to_string(),
            "most bytes of one fetch response",
        ),
        row(
            "listeners",
            TYPE_STRING,
            format!("PLAINTEXT://{}", kafka.listen),
            format!("PLAINTEXT://{}", kafka_default.listen),
            "address listened on",
        ),
        row(
            "log.dirs",
            TYPE_STRING,
            broker.data_dir.display().to_string(),
            broker_default.data_dir.display().to_string(),
            "where the data lies",
        ),
        row(
            "max.connections",
            TYPE_INT,
            kafka.max_connections.to_string(),
            kafka_default.max_connections.to_string(),
            "connections open at once",
        ),
        row(
            "min.insync.replicas",
            TYPE_INT,
            "1".into(),
            "1".into(),
            "replicas that must have a batch before it is acked",
        ),
        row("node.id", TYPE_INT, broker.node_id.to_string(), broker_default.node_id.to_string(), "id of this broker"),
        row(
            "num.partitions",
            TYPE_INT,
            broker.num_partitions.to_string(),
            broker_default.num_partitions.to_string(),
            "partitions of a topic created without a count",
        ),
        row(
            "socket.request.max.bytes",
            TYPE_INT,
            kafka.request_max_bytes.as_u64().to_string(),
            kafka_default.request_max_bytes.as_u64().to_string(),
            "largest request",
        ),
    ]
}

fn is_asked_for(keys: Option<&[StrBytes]>, name: &str) -> bool {
    keys.is_none_or(|keys| keys.iter().any(|key| key.as_str() == name))
}

fn wire_row(
    row: DescribedConfig,
    set_source: i8,
    synonyms: bool,
    documentation: bool,
) -> DescribeConfigsResourceResult {
    let source = match (set_source, row.is_default) {
        (SOURCE_TOPIC, _) => source_of(&row),
        (_, true) => SOURCE_DEFAULT,
        (other, false) => other,
    };
    let listed = if synonyms { synonyms_of(&row, source) } else { Vec::new() };
    DescribeConfigsResourceResult::default()
        .with_name(text(row.name))
        .with_value(Some(text(&row.value)))
        // A topic's values can be altered; the broker's were chosen in its file.
        .with_read_only(set_source == SOURCE_STATIC_BROKER)
        .with_config_source(source)
        .with_synonyms(listed)
        .with_config_type(row.config_type)
        .with_documentation(documentation.then(|| text(row.documentation)))
}

/// Where the value of a topic's setting comes from.
pub(super) fn source_of(row: &DescribedConfig) -> i8 {
    match &row.broker {
        _ if !row.is_default => SOURCE_TOPIC,
        Some(broker) if broker.value != broker.built_in => SOURCE_STATIC_BROKER,
        _ => SOURCE_DEFAULT,
    }
}

/// What decides about a setting, under the name that it has there, the first one counting: the topic, the broker's file,
/// what is built in.
fn synonyms_of(row: &DescribedConfig, source: i8) -> Vec<DescribeConfigsSynonym> {
    let synonym = |name: &str, value: &str, source| {
        DescribeConfigsSynonym::default().with_name(text(name)).with_value(Some(text(value))).with_source(source)
    };
    let Some(broker) = &row.broker else { return vec![synonym(row.name, &row.value, source)] };
    let of_topic = (!row.is_default).then(|| synonym(row.name, &row.value, SOURCE_TOPIC));
    let in_file = (broker.value != broker.built_in).then(|| synonym(broker.name, &broker.value, SOURCE_STATIC_BROKER));
    let built_in = synonym(broker.name, &broker.built_in, SOURCE_DEFAULT);
    of_topic.into_iter().chain(in_file).chain([built_in]).collect()
}

#[cfg(test)]
mod tests {
    use thermocline_config::BrokerSetting;

    use super::*;

    #[test]
    fn the_broker_is_described_by_its_id() {
        let (broker, kafka) = (BrokerConfig { num_partitions: 4, ..BrokerConfig::default() }, KafkaConfig::default());
        let advertised = ("127.0.0.1".to_owned(), 9092);
        let rows = broker_resource("1", &broker, &kafka, &advertised).unwrap();
        assert!(rows.windows(2).all(|pair| pair[0].name < pair[1].name));
        let partitions = rows.iter().find(|row| row.name == "num.partitions").unwrap();
        assert_eq!((partitions.value.as_str(), partitions.is_default), ("4", false));
        assert!(broker_resource("", &broker, &kafka, &advertised).unwrap().is_empty());
        for other in ["2", "one"] {
            let refused = broker_resource(other, &broker, &kafka, &advertised).unwrap_err();
            assert_eq!(refused.0, ResponseError::InvalidRequest);
        }
    }

    #[test]
    fn keys_filter_and_null_means_all() {
        assert!(is_asked_for(None, "a"));
        assert!(is_asked_for(Some(&[text("b"), text("a")]), "a"));
        assert!(!is_asked_for(Some(&[]), "a"));
    }

    #[test]
    fn rows_say_where_their_value_comes_from() {
        let row = |is_default, in_file: &str| {
            let (value, built_in) = (in_file.to_owned(), "7".to_owned());
            DescribedConfig {
                name: "segment.bytes",
                value: "1".to_owned(),
                is_default,
                broker: Some(BrokerSetting { name: "log.segment.bytes", value, built_in }),
                config_type: TYPE_INT,
                documentation: "size",
            }
        };
        let described = |row| {
            let row = wire_row(row, SOURCE_TOPIC, true, true);
            let synonym =
                |s: &DescribeConfigsSynonym| (s.name.to_string(), s.value.clone().unwrap().to_string(), s.source);
            (row.config_source, row.synonyms.iter().map(synonym).collect::<Vec<_>>())
        };
        let of = |name: &str, value: &str, source| (name.to_owned(), value.to_owned(), source);
        let built_in = of("log.segment.bytes", "7", SOURCE_DEFAULT);
        assert_eq!(described(row(true, "7")), (SOURCE_DEFAULT, vec![built_in.clone()]));
        let in_file = of("log.segment.bytes", "8", SOURCE_STATIC_BROKER);
        assert_eq!(described(row(true, "8")), (SOURCE_STATIC_BROKER, vec![in_file.clone(), built_in.clone()]));
        let of_topic = of("segment.bytes", "1", SOURCE_TOPIC);
        assert_eq!(described(row(false, "8")), (SOURCE_TOPIC, vec![of_topic, in_file, built_in]));
        let own = DescribedConfig { broker: None, ..row(false, "7") };
        assert_eq!(described(own), (SOURCE_TOPIC, vec![of("segment.bytes", "1", SOURCE_TOPIC)]));
        let set = wire_row(row(false, "7"), SOURCE_TOPIC, false, true);
        assert_eq!((set.synonyms.len(), set.documentation), (0, Some(text("size"))));
    }
}
