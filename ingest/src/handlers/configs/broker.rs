//! The broker's own settings under Kafka's names. They come from its file and do not change while it runs.

use kafka_protocol::ResponseError;
use thermocline_config::{BrokerConfig, DescribedConfig, GroupsConfig, HumanDuration, KafkaConfig, TopicConfig};

use super::{Refusal, TYPE_BOOL, TYPE_INT, TYPE_LONG, TYPE_STRING};

const MS_PER_MINUTE: i64 = 60_000;

/// The broker setting that gives a topic setting its default, as Kafka pairs them (`ServerTopicConfigSynonyms`).
const SYNONYMS: [(&str, &str); 25] = [
    ("cleanup.policy", "log.cleanup.policy"),
    ("compression.type", "compression.type"),
    ("delete.retention.ms", "log.cleaner.delete.retention.ms"),
    ("file.delete.delay.ms", "log.segment.delete.delay.ms"),
    ("flush.messages", "log.flush.interval.messages"),
    ("flush.ms", "log.flush.interval.ms"),
    ("index.interval.bytes", "log.index.interval.bytes"),
    ("local.retention.bytes", "log.local.retention.bytes"),
    ("local.retention.ms", "log.local.retention.ms"),
    ("max.compaction.lag.ms", "log.cleaner.max.compaction.lag.ms"),
    ("max.message.bytes", "message.max.bytes"),
    ("message.timestamp.after.max.ms", "log.message.timestamp.after.max.ms"),
    ("message.timestamp.before.max.ms", "log.message.timestamp.before.max.ms"),
    ("message.timestamp.type", "log.message.timestamp.type"),
    ("min.cleanable.dirty.ratio", "log.cleaner.min.cleanable.ratio"),
    ("min.compaction.lag.ms", "log.cleaner.min.compaction.lag.ms"),
    ("min.insync.replicas", "min.insync.replicas"),
    ("preallocate", "log.preallocate"),
    ("retention.bytes", "log.retention.bytes"),
    ("retention.ms", "log.retention.ms"),
    ("segment.bytes", "log.segment.bytes"),
    ("segment.index.bytes", "log.index.size.max.bytes"),
    ("segment.jitter.ms", "log.roll.jitter.ms"),
    ("segment.ms", "log.roll.ms"),
    ("unclean.leader.election.enable", "unclean.leader.election.enable"),
];

/// What the rows of a broker are made of.
pub(super) struct Sources<'a> {
    pub broker: &'a BrokerConfig,
    pub kafka: &'a KafkaConfig,
    pub groups: &'a GroupsConfig,
    /// What a topic without settings of its own gets, from this broker and from one that was told nothing.
    pub topic: &'a TopicConfig,
    pub built_in_topic: &'a TopicConfig,
    /// host and port told to clients
    pub advertised: &'a (String, u16),
}

/// The broker setting behind a topic setting; none for settings that only topics have.
pub(super) fn synonym(topic_key: &str) -> Option<&'static str> {
    SYNONYMS.iter().find(|(topic, _)| *topic == topic_key).map(|(_, broker)| *broker)
}

/// The broker by its id; the empty name means the defaults set for all brokers at run time, of which there are none.
pub(super) fn resource(name: &str, sources: &Sources<'_>) -> Result<Vec<DescribedConfig>, Refusal> {
    if name.is_empty() {
        return Ok(Vec::new());
    }
    let node_id = sources.broker.node_id;
    if name.parse() != Ok(node_id) {
        let message = format!("broker {name} is not here; this is broker {node_id}");
        return Err((ResponseError::InvalidRequest, message));
    }
    let mut rows = own_rows(sources);
    rows.extend(group_rows(sources.groups));
    let built_in = sources.built_in_topic.describe();
    for (row, built_in) in sources.topic.describe().into_iter().zip(built_in) {
        let Some(name) = synonym(row.name) else { continue };
        rows.push(DescribedConfig { name, is_default: row.value == built_in.value, ..row });
    }
    rows.sort_by_key(|row| row.name);
    Ok(rows)
}

/// A row whose default is known.
fn row(
    name: &'static str,
    config_type: i8,
    value: impl ToString,
    default: impl ToString,
    documentation: &'static str,
) -> DescribedConfig {
    let (value, default) = (value.to_string(), default.to_string());
    DescribedConfig { name, is_default: value == default, value, config_type, documentation }
}

fn own_rows(sources: &Sources<'_>) -> Vec<DescribedConfig> {
    let Sources { broker, kafka, advertised: (host, port), .. } = sources;
    let (broker_default, kafka_default) = (BrokerConfig::default(), KafkaConfig::default());
    let advertised = format!("PLAINTEXT://{host}:{port}");
    let listeners = |config: &KafkaConfig| format!("PLAINTEXT://{}", config.listen);
    let dir = |config: &BrokerConfig| config.data_dir.display().to_string();
    let (node, node_default) = (broker.node_id, broker_default.node_id);
    vec![
        row("advertised.listeners", TYPE_STRING, advertised, "", "address told to clients"),
        row(
            "auto.create.topics.enable",
            TYPE_BOOL,
            broker.auto_create_topics_enable,
            broker_default.auto_create_topics_enable,
            "whether a topic is created when a client asks for its metadata",
        ),
        row("broker.id", TYPE_INT, node, node_default, "id of this broker"),
        row(
            "connections.max.idle.ms",
            TYPE_LONG,
            kafka.connections_max_idle.as_millis(),
            kafka_default.connections_max_idle.as_millis(),
            "idle time after which a connection is closed",
        ),
        row("default.replication.factor", TYPE_INT, 1, 1, "replicas of an automatically created topic"),
        row("delete.topic.enable", TYPE_BOOL, true, true, "whether topics can be deleted"),
        row(
            "fetch.max.bytes",
            TYPE_INT,
            kafka.fetch_max_bytes.as_u64(),
            kafka_default.fetch_max_bytes.as_u64(),
            "most bytes of one fetch response",
        ),
        row("listeners", TYPE_STRING, listeners(kafka), listeners(&kafka_default), "address listened on"),
        row("log.dirs", TYPE_STRING, dir(broker), dir(&broker_default), "where the data lies"),
        row(
            "max.connections",
            TYPE_INT,
            kafka.max_connections,
            kafka_default.max_connections,
            "connections open at once",
        ),
        row(
            "max.incremental.fetch.session.cache.slots",
            TYPE_INT,
            kafka.fetch_sessions_max,
            kafka_default.fetch_sessions_max,
            "fetch sessions kept for consumers",
        ),
        row("node.id", TYPE_INT, node, node_default, "id of this broker"),
        row(
            "num.partitions",
            TYPE_INT,
            broker.num_partitions,
            broker_default.num_partitions,
            "partitions of a topic created without a count",
        ),
        row(
            "socket.request.max.bytes",
            TYPE_INT,
            kafka.request_max_bytes.as_u64(),
            kafka_default.request_max_bytes.as_u64(),
            "largest request",
        ),
    ]
}

fn group_rows(groups: &GroupsConfig) -> Vec<DescribedConfig> {
    let default = GroupsConfig::default();
    let ms = |name, value: HumanDuration, default: HumanDuration, documentation| {
        row(name, TYPE_INT, value.as_millis(), default.as_millis(), documentation)
    };
    vec![
        ms(
            "group.initial.rebalance.delay.ms",
            groups.initial_rebalance_delay,
            default.initial_rebalance_delay,
            "how long a new group waits for further members",
        ),
        ms(
            "group.max.session.timeout.ms",
            groups.max_session_timeout,
            default.max_session_timeout,
            "longest session timeout of a consumer",
        ),
        row("group.max.size", TYPE_INT, groups.max_size, default.max_size, "most members of one group"),
        ms(
            "group.min.session.timeout.ms",
            groups.min_session_timeout,
            default.min_session_timeout,
            "shortest session timeout of a consumer",
        ),
        row(
            "offset.metadata.max.bytes",
            TYPE_INT,
            groups.offset_metadata_max_bytes.as_u64(),
            default.offset_metadata_max_bytes.as_u64(),
            "longest note with a committed offset",
        ),
        row(
            "offsets.retention.minutes",
            TYPE_INT,
            groups.offsets_retention.as_millis() / MS_PER_MINUTE,
            default.offsets_retention.as_millis() / MS_PER_MINUTE,
            "how long committed offsets outlive an empty group",
        ),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use thermocline_config::{ByteSize, LogConfig};

    use super::*;

    fn described(name: &str, broker: &BrokerConfig, log: &LogConfig) -> Result<Vec<DescribedConfig>, Refusal> {
        resource(
            name,
            &Sources {
                broker,
                kafka: &KafkaConfig::default(),
                groups: &GroupsConfig::default(),
                topic: &TopicConfig::new(BTreeMap::new(), log).unwrap(),
                built_in_topic: &TopicConfig::new(BTreeMap::new(), &LogConfig::default()).unwrap(),
                advertised: &("127.0.0.1".to_owned(), 9092),
            },
        )
    }

    #[test]
    fn the_broker_is_described_by_its_id() {
        let broker = BrokerConfig { num_partitions: 4, ..BrokerConfig::default() };
        let log = LogConfig { segment_bytes: ByteSize::mib(7), ..LogConfig::default() };
        let rows = described("1", &broker, &log).unwrap();
        assert!(rows.windows(2).all(|pair| pair[0].name < pair[1].name));
        let found = |name: &str| {
            let row = rows.iter().find(|row| row.name == name).unwrap();
            (row.value.clone(), row.is_default)
        };
        assert_eq!(found("num.partitions"), ("4".to_owned(), false));
        assert_eq!(found("log.segment.bytes"), ((7 << 20).to_string(), false));
        assert_eq!(found("message.max.bytes"), ("1048588".to_owned(), true));
        assert_eq!(found("offsets.retention.minutes"), ("10080".to_owned(), true));
        assert!(described("", &broker, &log).unwrap().is_empty());
        for other in ["2", "one"] {
            assert_eq!(described(other, &broker, &log).unwrap_err().0, ResponseError::InvalidRequest);
        }
    }

    #[test]
    fn every_synonym_is_of_a_topic_setting() {
        let topic = TopicConfig::new(BTreeMap::new(), &LogConfig::default()).unwrap().describe();
        assert!(SYNONYMS.is_sorted_by(|a, b| a.0 < b.0));
        for (key, _) in SYNONYMS {
            assert!(topic.iter().any(|row| row.name == key), "{key}");
        }
    }
}
