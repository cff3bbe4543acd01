//! Topic configuration under Kafka's names: which values are accepted, and what results together with the broker's
//! `[log]` section.
//!
//! What this broker cannot do is refused when the topic is made; no value is accepted and then ignored, except those
//! of compaction, which by definition mean nothing while `cleanup.policy` is `delete`.
//!
//! A compacted topic is not archived, as in Kafka (KIP-405): an archive's files hold offset after offset, and are never
//! rewritten for what a later record makes void. So `remote.storage.enable` is false there, and asking for it is
//! refused.

use std::collections::BTreeMap;

use crate::nearest::nearest;
use crate::sections::LogConfig;
use crate::topic_keys::{Default, KEYS, Key, Rule, UNLIMITED};

/// Kafka's "as long as `retention.*` says", for `local.retention.*`.
const AS_RETENTION: i64 = -2;
const UNLIMITED_RETENTION: i64 = -1;
/// Longest part of a refused value that an error repeats, in characters.
const SHOWN_VALUE_LEN_MAX: usize = 100;

/// Whether and how a topic's messages are indexed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SearchIndex {
    Off,
    /// The words of the value.
    Text,
    /// The words of the value, and where it is JSON every leaf under its path.
    Json,
}

/// How a topic's text is cut into words (`search.tokenizer`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SearchTokenizer {
    Default,
    Log,
}

/// What is indexed of each message (`search.fields`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SearchFields {
    pub value: bool,
    pub json: bool,
    pub key: bool,
    pub headers: bool,
}

/// What happens to old records (`cleanup.policy`); at least one of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CleanupPolicy {
    pub compact: bool,
    /// By `retention.*`.
    pub delete: bool,
}

/// A codec that the broker encodes a topic's batches with (`compression.type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopicCompression {
    Uncompressed,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

/// Effective configuration of one topic: overrides over the broker's `[log]` defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct TopicConfig {
    /// What was set explicitly, as it was given.
    pub overrides: BTreeMap<String, String>,
    pub segment_bytes: u64,
    pub segment_ms: i64,
    pub index_interval_bytes: u64,
    /// Never more than a segment holds.
    pub max_message_bytes: usize,
    pub cleanup: CleanupPolicy,
    /// `None` = as the producer compressed it.
    pub compression: Option<TopicCompression>,
    /// Age a record must have before it may be compacted; 0 is none.
    pub min_compaction_lag_ms: i64,
    /// Age at which a record must be compacted; `None` = unlimited.
    pub max_compaction_lag_ms: Option<i64>,
    /// How long a tombstone stays after the first compaction that met it.
    pub delete_retention_ms: i64,
    /// How long files of segments that went are kept on disk; 0 is not at all.
    pub file_delete_delay_ms: i64,
    /// Share of the log, 0 to 1, that must be dirty before it is compacted.
    pub min_cleanable_dirty_ratio: f64,
    /// `message.timestamp.type` = LogAppendTime.
    pub log_append_time: bool,
    /// `None` = unlimited.
    pub timestamp_before_max_ms: Option<i64>,
    /// `None` = unlimited.
    pub timestamp_after_max_ms: Option<i64>,
    /// 1: every ack waits for fdatasync; more: acks do not wait, the flusher syncs after so many records or `flush_ms`.
    pub flush_messages: i64,
    /// `None` = unlimited.
    pub flush_ms: Option<i64>,
    /// `None` = unlimited.
    pub retention_ms: Option<i64>,
    /// `None` = unlimited.
    pub retention_bytes: Option<u64>,
    /// `None` = unlimited.
    pub local_retention_ms: Option<i64>,
    /// `None` = unlimited.
    pub local_retention_bytes: Option<u64>,
    /// Never true where it is compacted.
    pub remote_storage_enable: bool,
    pub search_index: SearchIndex,
    pub search_positions: bool,
    pub search_tokenizer: SearchTokenizer,
    /// Without `json` where `search_index` is `Text`.
    pub search_fields: SearchFields,
    pub search_fast: bool,
    pub search_reindex: bool,
}

/// Why a topic cannot have this configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicConfigError {
    #[error("{key} is not a topic setting; {advice}")]
    Unknown { key: String, advice: String },
    #[error("{key} = {value:?} is refused: {allowed}")]
    Value { key: &'static str, value: String, allowed: String },
}

/// A setting's type; the numbers are those of Kafka's `ConfigType` (DescribeConfigs v3+).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i8)]
pub(crate) enum Type {
    Boolean = 1,
    String = 2,
    Int = 3,
    Long = 5,
    Double = 6,
    List = 7,
}

/// One row of DescribeConfigs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescribedConfig {
    pub name: &'static str,
    /// As Kafka writes it: numbers in decimal, -1 for unlimited.
    pub value: String,
    /// Whether the topic leaves it to the broker. An override that equals the default is still an override.
    pub is_default: bool,
    /// Kafka's `ConfigType` number: 1 boolean, 2 string, 3 int, 5 long, 6 double, 7 list.
    pub config_type: i8,
    pub documentation: &'static str,
}

impl TopicConfig {
    /// Checks `overrides` and puts them over the broker's defaults. Unknown keys, values out of range and values that
    /// contradict each other are refused.
    pub fn new(overrides: BTreeMap<String, String>, defaults: &LogConfig) -> Result<Self, TopicConfigError> {
        for (name, value) in &overrides {
            check(known_key(name)?, value.trim())?;
        }
        let settings = Settings { overrides: &overrides, defaults };
        let segment_bytes = settings.number("segment.bytes");
        let retention_ms = settings.number("retention.ms");
        let retention_bytes = settings.number("retention.bytes");
        let cleanup = settings.cleanup();
        Ok(Self {
            segment_bytes: segment_bytes.unsigned_abs(),
            segment_ms: settings.number("segment.ms"),
            index_interval_bytes: settings.number("index.interval.bytes").unsigned_abs(),
            max_message_bytes: settings.max_message_bytes(segment_bytes)?,
            cleanup,
            compression: settings.compression(),
            min_compaction_lag_ms: settings.min_compaction_lag()?,
            max_compaction_lag_ms: limited(settings.number("max.compaction.lag.ms")),
            delete_retention_ms: settings.number("delete.retention.ms"),
            file_delete_delay_ms: settings.number("file.delete.delay.ms"),
            min_cleanable_dirty_ratio: settings.text("min.cleanable.dirty.ratio").parse().unwrap_or_default(),
            log_append_time: settings.text("message.timestamp.type") == "LogAppendTime",
            timestamp_before_max_ms: limited(settings.number("message.timestamp.before.max.ms")),
            timestamp_after_max_ms: limited(settings.number("message.timestamp.after.max.ms")),
            flush_messages: settings.number("flush.messages"),
            flush_ms: limited(settings.number("flush.ms")),
            retention_ms: retained(retention_ms),
            retention_bytes: retained(retention_bytes).map(i64::unsigned_abs),
            local_retention_ms: settings.local("local.retention.ms", "retention.ms", retention_ms)?,
            local_retention_bytes: settings
                .local("local.retention.bytes", "retention.bytes", retention_bytes)?
                .map(i64::unsigned_abs),
            remote_storage_enable: settings.remote_storage_enable(cleanup)?,
            search_index: match settings.text("search.index").as_str() {
                "off" => SearchIndex::Off,
                "text" => SearchIndex::Text,
                _ => SearchIndex::Json,
            },
            search_positions: settings.text("search.positions") == "true",
            search_tokenizer: match settings.text("search.tokenizer").as_str() {
                "log" => SearchTokenizer::Log,
                _ => SearchTokenizer::Default,
            },
            search_fields: settings.search_fields()?,
            search_fast: settings.text("search.fast") == "true",
            search_reindex: settings.text("search.reindex") == "true",
            overrides,
        })
    }

    /// Every topic key, in name order.
    pub fn describe(&self) -> Vec<DescribedConfig> {
        KEYS.iter()
            .map(|key| DescribedConfig {
                name: key.name,
                value: self.effective(key),
                is_default: !self.overrides.contains_key(key.name),
                config_type: key.kind as i8,
                documentation: key.documentation,
            })
            .collect()
    }

    /// Age at which a segment is sealed: a record can be compacted only once its segment is.
    pub fn segment_age_max_ms(&self) -> i64 {
        match self.max_compaction_lag_ms {
            Some(lag) if self.cleanup.compact => self.segment_ms.min(lag),
            _ => self.segment_ms,
        }
    }

    fn effective(&self, key: &Key) -> String {
        if let Some(value) = self.overrides.get(key.name) {
            return normal(key, value);
        }
        match (key.default, key.name) {
            (_, "remote.storage.enable") => self.remote_storage_enable.to_string(),
            (Default::Fixed(value), _) => value.to_owned(),
            (Default::Broker, "index.interval.bytes") => self.index_interval_bytes.to_string(),
            (Default::Broker, "local.retention.ms") => {
                self.local_retention_ms.unwrap_or(UNLIMITED_RETENTION).to_string()
            }
            (Default::Broker, "max.message.bytes") => self.max_message_bytes.to_string(),
            (Default::Broker, "segment.bytes") => self.segment_bytes.to_string(),
            (Default::Broker, _) => self.segment_ms.to_string(),
        }
    }
}

/// Overrides that were checked, over the defaults.
struct Settings<'a> {
    overrides: &'a BTreeMap<String, String>,
    defaults: &'a LogConfig,
}

impl Settings<'_> {
    fn text(&self, name: &'static str) -> String {
        match (self.overrides.get(name), KEYS.iter().find(|key| key.name == name)) {
            (Some(value), Some(key)) => normal(key, value),
            (None, Some(Key { default: Default::Fixed(value), .. })) => (*value).to_owned(),
            _ => self.broker_default(name).to_string(),
        }
    }

    fn number(&self, name: &'static str) -> i64 {
        // Overrides were checked to be numbers, defaults are.
        self.text(name).parse().unwrap_or_default()
    }

    fn broker_default(&self, name: &str) -> i64 {
        let log = self.defaults;
        let bytes = |size: crate::units::ByteSize| i64::try_from(size.as_u64()).unwrap_or(i64::MAX);
        match name {
            "index.interval.bytes" => bytes(log.index_interval_bytes),
            "local.retention.ms" => log.local_retention.as_millis(),
            "max.message.bytes" => bytes(log.message_max_bytes),
            "segment.bytes" => bytes(log.segment_bytes),
            _ => log.segment_age.as_millis(),
        }
    }

    fn cleanup(&self) -> CleanupPolicy {
        let policy = self.text("cleanup.policy");
        let has = |wanted: &str| members(&policy).any(|member| member == wanted);
        CleanupPolicy { compact: has("compact"), delete: has("delete") }
    }

    fn compression(&self) -> Option<TopicCompression> {
        match self.text("compression.type").as_str() {
            "uncompressed" => Some(TopicCompression::Uncompressed),
            "gzip" => Some(TopicCompression::Gzip),
            "snappy" => Some(TopicCompression::Snappy),
            "lz4" => Some(TopicCompression::Lz4),
            "zstd" => Some(TopicCompression::Zstd),
            _ => None,
        }
    }

    /// What must be compacted must be allowed to be, as in Kafka (KIP-354).
    fn min_compaction_lag(&self) -> Result<i64, TopicConfigError> {
        let (min, max) = (self.number("min.compaction.lag.ms"), self.number("max.compaction.lag.ms"));
        if min > max {
            return Err(TopicConfigError::Value {
                key: "min.compaction.lag.ms",
                value: min.to_string(),
                allowed: format!("it must not exceed max.compaction.lag.ms, which is {max}"),
            });
        }
        Ok(min)
    }

    /// The default yields where the topic is compacted; asking for both is refused.
    fn remote_storage_enable(&self, cleanup: CleanupPolicy) -> Result<bool, TopicConfigError> {
        let wanted = self.text("remote.storage.enable") == "true";
        if wanted && cleanup.compact && self.overrides.contains_key("remote.storage.enable") {
            return Err(TopicConfigError::Value {
                key: "remote.storage.enable",
                value: "true".to_owned(),
                allowed: "it must be false where cleanup.policy is compact: a compacted topic is not archived"
                    .to_owned(),
            });
        }
        Ok(wanted && !cleanup.compact)
    }

    /// Leaves of JSON are not indexed where `search.index` is `text`: asking for them then is refused, the default does
    /// not ask.
    fn search_fields(&self) -> Result<SearchFields, TopicConfigError> {
        let fields = self.text("search.fields");
        let has = |field: &str| members(&fields).any(|member| member == field);
        let is_text = self.text("search.index") == "text";
        if is_text && has("json") && self.overrides.contains_key("search.fields") {
            return Err(TopicConfigError::Value {
                key: "search.fields",
                allowed: "json needs search.index=json".to_owned(),
                value: fields,
            });
        }
        let json = has("json") && !is_text;
        Ok(SearchFields { value: has("value"), json, key: has("key"), headers: has("headers") })
    }

    /// A batch must fit into a segment: an explicit limit beyond that is refused, the default is lowered.
    fn max_message_bytes(&self, segment_bytes: i64) -> Result<usize, TopicConfigError> {
        let limit = self.number("max.message.bytes");
        if limit > segment_bytes && self.overrides.contains_key("max.message.bytes") {
            return Err(TopicConfigError::Value {
                key: "max.message.bytes",
                value: limit.to_string(),
                allowed: format!("it must not exceed segment.bytes, which is {segment_bytes}"),
            });
        }
        Ok(usize::try_from(limit.min(segment_bytes)).unwrap_or_default())
    }

    /// `local.retention.*`: an explicit value beyond `retention.*` is refused, the default is lowered.
    fn local(&self, key: &'static str, other: &'static str, retention: i64) -> Result<Option<i64>, TopicConfigError> {
        let local = self.number(key);
        let (Some(limit), Some(span)) = (retained(retention), as_span(local)) else {
            return Ok(if local == AS_RETENTION { retained(retention) } else { retained(local) });
        };
        if span > limit && self.overrides.contains_key(key) {
            return Err(TopicConfigError::Value {
                key,
                value: local.to_string(),
                allowed: format!(
                    "it must not exceed {other}, which is {limit}; {AS_RETENTION} means the same as {other}"
                ),
            });
        }
        Ok(Some(span.min(limit)))
    }
}

/// `None` for Kafka's "no limit" of times that count up to `i64::MAX`.
fn limited(value: i64) -> Option<i64> {
    (value != UNLIMITED).then_some(value)
}

/// `None` for the -1 of retention.
fn retained(value: i64) -> Option<i64> {
    (value != UNLIMITED_RETENTION).then_some(value)
}

/// A local retention that can be compared with a limit; `None` where it means that limit.
fn as_span(local: i64) -> Option<i64> {
    match local {
        AS_RETENTION => None,
        UNLIMITED_RETENTION => Some(i64::MAX),
        span => Some(span),
    }
}

fn known_key(name: &str) -> Result<&'static Key, TopicConfigError> {
    KEYS.iter().find(|key| key.name == name).ok_or_else(|| TopicConfigError::Unknown {
        key: cut(name),
        advice: match nearest(name, KEYS.iter().map(|key| key.name)) {
            Some(near) => format!("did you mean {near}?"),
            None => "topic settings have Kafka's names, like retention.ms, or start with \"search.\"".to_owned(),
        },
    })
}

fn check(key: &'static Key, value: &str) -> Result<(), TopicConfigError> {
    let refused = |allowed: String| Err(TopicConfigError::Value { key: key.name, value: cut(value), allowed });
    match key.rule {
        Rule::Number { min, max } => match value.parse::<i64>() {
            Ok(number) if (min..=max).contains(&number) => Ok(()),
            _ => refused(format!("it must be a whole number, {min} to {max}")),
        },
        Rule::Ratio => match value.parse::<f64>() {
            Ok(number) if (0.0..=1.0).contains(&number) => Ok(()),
            _ => refused("it must be a number from 0 to 1".to_owned()),
        },
        Rule::Flag if is_flag(value) => Ok(()),
        Rule::Flag => refused("it must be true or false".to_owned()),
        Rule::OneOf(values) if values.contains(&value) => Ok(()),
        Rule::OneOf(values) => refused(format!("it must be one of {}", values.join(", "))),
        Rule::SomeOf(values) if members(value).all(|member| values.contains(&member)) => Ok(()),
        Rule::SomeOf(values) => refused(format!("it must be some of {}, separated by commas", values.join(", "))),
        Rule::Only { value: only, .. } if normal(key, value) == only => Ok(()),
        Rule::Only { value: "", why } => refused(format!("it must be empty, because {why}")),
        Rule::Only { value: only, why } => refused(format!("it must be {only}, because {why}")),
    }
}

/// The members of a list. Nothing is one empty member.
fn members(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim)
}

fn is_flag(value: &str) -> bool {
    value.eq_ignore_ascii_case("true") || value.eq_ignore_ascii_case("false")
}

/// The value as Kafka reports it: without spaces around it, numbers and flags in one spelling.
fn normal(key: &Key, value: &str) -> String {
    let value = value.trim();
    if let Rule::SomeOf(values) = key.rule {
        let named = values.iter().filter(|known| members(value).any(|member| member == **known));
        return named.copied().collect::<Vec<_>>().join(",");
    }
    match key.kind {
        Type::Boolean => value.to_ascii_lowercase(),
        Type::Int | Type::Long => value.parse::<i64>().map_or_else(|_| value.to_owned(), |number| number.to_string()),
        Type::String | Type::Double | Type::List => value.to_owned(),
    }
}

fn cut(text: &str) -> String {
    text.chars().take(SHOWN_VALUE_LEN_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{ByteSize, HumanDuration};
    use proptest::prelude::*;

    fn config(overrides: &[(&str, &str)]) -> Result<TopicConfig, TopicConfigError> {
        let overrides = overrides.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        TopicConfig::new(overrides, &LogConfig::default())
    }

    fn refusal(overrides: &[(&str, &str)]) -> String {
        config(overrides).map_or_else(|e| e.to_string(), |_| "accepted".to_owned())
    }

    #[test]
    fn without_overrides_the_broker_decides() {
        let defaults = LogConfig::default();
        let config = TopicConfig::new(BTreeMap::new(), &defaults).unwrap();
        assert_eq!(
            config,
            TopicConfig {
                overrides: BTreeMap::new(),
                segment_bytes: defaults.segment_bytes.as_u64(),
                segment_ms: 3_600_000,
                index_interval_bytes: 4096,
                max_message_bytes: 1_048_588,
                cleanup: CleanupPolicy { compact: false, delete: true },
                compression: None,
                min_compaction_lag_ms: 0,
                max_compaction_lag_ms: None,
                delete_retention_ms: 86_400_000,
                file_delete_delay_ms: 0,
                min_cleanable_dirty_ratio: 0.5,
                log_append_time: false,
                timestamp_before_max_ms: None,
                timestamp_after_max_ms: Some(3_600_000),
                flush_messages: 1,
                flush_ms: None,
                retention_ms: None,
                retention_bytes: None,
                local_retention_ms: Some(86_400_000),
                local_retention_bytes: None,
                remote_storage_enable: true,
                search_index: SearchIndex::Json,
                search_positions: true,
                search_tokenizer: SearchTokenizer::Default,
                search_fields: SearchFields { value: true, json: true, key: true, headers: true },
                search_fast: true,
                search_reindex: true,
            }
        );
    }

    #[test]
    fn overrides_win() {
        let config = config(&[
            ("segment.bytes", " 65536 "),
            ("segment.ms", "1000"),
            ("max.message.bytes", "65536"),
            ("message.timestamp.type", "LogAppendTime"),
            ("message.timestamp.after.max.ms", "9223372036854775807"),
            ("message.timestamp.before.max.ms", "5"),
            ("flush.messages", "1000"),
            ("flush.ms", "100"),
            ("retention.ms", "604800000"),
            ("retention.bytes", "1000000"),
            ("local.retention.ms", "-2"),
            ("local.retention.bytes", "0"),
            ("remote.storage.enable", "FALSE"),
            ("search.index", "off"),
            ("search.positions", "false"),
        ])
        .unwrap();
        assert_eq!((config.segment_bytes, config.segment_ms, config.max_message_bytes), (65_536, 1000, 65_536));
        assert!(config.log_append_time && !config.remote_storage_enable && !config.search_positions);
        assert_eq!((config.timestamp_after_max_ms, config.timestamp_before_max_ms), (None, Some(5)));
        assert_eq!((config.flush_messages, config.flush_ms), (1000, Some(100)));
        assert_eq!((config.retention_ms, config.retention_bytes), (Some(604_800_000), Some(1_000_000)));
        assert_eq!((config.local_retention_ms, config.local_retention_bytes), (Some(604_800_000), Some(0)));
        assert_eq!(config.search_index, SearchIndex::Off);
    }

    #[test]
    fn search_settings_say_what_is_indexed() {
        let some =
            config(&[("search.fields", " headers, value"), ("search.tokenizer", "log"), ("search.fast", "false")]);
        let some = some.unwrap();
        assert_eq!(some.search_fields, SearchFields { value: true, json: false, key: false, headers: true });
        assert_eq!((some.search_tokenizer, some.search_fast), (SearchTokenizer::Log, false));
        let described = some.describe();
        let row = described.iter().find(|row| row.name == "search.fields").unwrap();
        assert_eq!((row.value.as_str(), row.config_type), ("value,headers", Type::List as i8));

        let text = config(&[("search.index", "text")]).unwrap();
        assert_eq!(text.search_fields, SearchFields { value: true, json: false, key: true, headers: true });
        let contradiction = refusal(&[("search.index", "text"), ("search.fields", "value,json")]);
        assert!(contradiction.contains("json needs search.index=json"), "{contradiction}");
        for wrong in ["", "value,", "body", "value json"] {
            let refused = refusal(&[("search.fields", wrong)]);
            assert!(refused.contains("some of value, json, key, headers"), "{wrong}: {refused}");
        }
        assert!(refusal(&[("search.tokenizer", "lucene")]).contains("one of default, log"));
    }

    #[test]
    fn defaults_yield_where_a_topic_is_smaller() {
        let small = config(&[("segment.bytes", "65536"), ("retention.ms", "1000")]).unwrap();
        assert_eq!((small.max_message_bytes, small.local_retention_ms), (65_536, Some(1000)));
        let forever = LogConfig {
            local_retention: HumanDuration::secs(10),
            segment_bytes: ByteSize::mib(1),
            ..LogConfig::default()
        };
        let config = TopicConfig::new(BTreeMap::new(), &forever).unwrap();
        assert_eq!((config.local_retention_ms, config.max_message_bytes), (Some(10_000), 1 << 20));
    }

    #[test]
    fn what_cannot_be_honoured_is_refused() {
        for (key, value) in [
            ("cleanup.policy", "shrink"),
            ("cleanup.policy", ""),
            ("compression.type", "none"),
            ("min.compaction.lag.ms", "-1"),
            ("max.compaction.lag.ms", "0"),
            ("min.insync.replicas", "2"),
            ("preallocate", "true"),
            ("segment.jitter.ms", "1"),
            ("segment.index.bytes", "1"),
            ("file.delete.delay.ms", "-1"),
            ("unclean.leader.election.enable", "true"),
            ("leader.replication.throttled.replicas", "*"),
            ("segment.bytes", "1000"),
            ("segment.bytes", "2147483648"),
            ("segment.ms", "0"),
            ("flush.messages", "0"),
            ("retention.ms", "-2"),
            ("local.retention.ms", "-3"),
            ("min.cleanable.dirty.ratio", "NaN"),
            ("search.index", "JSON"),
            ("search.positions", "yes"),
            ("message.timestamp.type", "createtime"),
        ] {
            let message = refusal(&[(key, value)]);
            assert!(message.starts_with(&format!("{key} = {value:?} is refused: it must be ")), "{message}");
        }
        assert_eq!(
            refusal(&[("min.insync.replicas", "2")]),
            "min.insync.replicas = \"2\" is refused: it must be 1, because this broker keeps one replica"
        );
        assert_eq!(refusal(&[("retntion.ms", "2")]), "retntion.ms is not a topic setting; did you mean retention.ms?");
    }

    #[test]
    fn a_compacted_topic_is_not_archived() {
        let compacted = config(&[("cleanup.policy", "delete, compact"), ("compression.type", "lz4")]).unwrap();
        assert_eq!(compacted.cleanup, CleanupPolicy { compact: true, delete: true });
        assert_eq!((compacted.remote_storage_enable, compacted.compression), (false, Some(TopicCompression::Lz4)));
        let rows = compacted.describe();
        let row = |name: &str| rows.iter().find(|row| row.name == name).unwrap();
        assert_eq!(
            (row("remote.storage.enable").value.as_str(), row("remote.storage.enable").is_default),
            ("false", true)
        );
        assert_eq!(row("cleanup.policy").value, "compact,delete");
        assert_eq!(
            refusal(&[("cleanup.policy", "compact"), ("remote.storage.enable", "true")]),
            "remote.storage.enable = \"true\" is refused: it must be false where cleanup.policy is compact: a compacted \
             topic is not archived"
        );
        assert!(config(&[("cleanup.policy", "compact"), ("remote.storage.enable", "false")]).is_ok());
    }

    #[test]
    fn what_must_be_compacted_is_sealed_in_time() {
        let lag = [("max.compaction.lag.ms", "1000"), ("min.compaction.lag.ms", "1000")];
        assert_eq!(config(&lag).unwrap().segment_age_max_ms(), 3_600_000);
        assert_eq!(config(&[lag[0], ("cleanup.policy", "compact")]).unwrap().segment_age_max_ms(), 1000);
        assert!(refusal(&[lag[0], ("min.compaction.lag.ms", "1001")]).contains("max.compaction.lag.ms, which is 1000"));
    }

    #[test]
    fn contradictions_are_refused() {
        assert_eq!(
            refusal(&[("retention.ms", "1000"), ("local.retention.ms", "1001")]),
            "local.retention.ms = \"1001\" is refused: it must not exceed retention.ms, which is 1000; -2 means the same as \
             retention.ms"
        );
        assert!(refusal(&[("retention.bytes", "1000"), ("local.retention.bytes", "-1")]).contains("retention.bytes"));
        assert!(refusal(&[("segment.bytes", "1024"), ("max.message.bytes", "1025")]).contains("segment.bytes"));
        assert!(config(&[("retention.ms", "1000"), ("local.retention.ms", "1000")]).is_ok());
    }

    #[test]
    fn describes_every_key_as_kafka_does() {
        let rows = config(&[("retention.ms", "0604800000"), ("flush.messages", "1")]).unwrap();
        let rows = rows.describe();
        assert_eq!(rows.len(), KEYS.len());
        let row = |name: &str| rows.iter().find(|row| row.name == name).unwrap();
        assert_eq!((row("retention.ms").value.as_str(), row("retention.ms").is_default), ("604800000", false));
        assert!(!row("flush.messages").is_default, "an explicit value is an override even when it equals the default");
        assert_eq!((row("segment.bytes").value.as_str(), row("segment.bytes").config_type), ("134217728", 3));
        assert_eq!((row("cleanup.policy").value.as_str(), row("cleanup.policy").config_type), ("delete", 7));
        assert_eq!(row("min.cleanable.dirty.ratio").config_type, 6);
        assert_eq!(
            (row("local.retention.ms").value.as_str(), row("local.retention.bytes").value.as_str()),
            ("86400000", "-2")
        );
    }

    #[test]
    fn what_is_described_can_be_set() {
        let described = config(&[]).unwrap().describe();
        let overrides: BTreeMap<_, _> = described.iter().map(|row| (row.name.to_owned(), row.value.clone())).collect();
        let again = TopicConfig::new(overrides, &LogConfig::default()).unwrap();
        assert_eq!(
            again.describe().iter().map(|row| &row.value).collect::<Vec<_>>(),
            described.iter().map(|row| &row.value).collect::<Vec<_>>()
        );
    }

    proptest! {
        #[test]
        fn no_override_panics_and_no_local_copy_outlives_its_record(
            key in prop::sample::select(KEYS.iter().map(|key| key.name).collect::<Vec<_>>()),
            value in "(-?[0-9]{1,19}|[a-z]{0,8}|\\PC{0,12})",
            retention in -1_i64..100_000,
        ) {
            let overrides = BTreeMap::from([("retention.ms".to_owned(), retention.to_string()), (key.to_owned(), value)]);
            if let Ok(config) = TopicConfig::new(overrides, &LogConfig::default()) {
                if let Some(limit) = config.retention_ms {
                    prop_assert!(config.local_retention_ms.is_some_and(|local| local <= limit));
                }
                prop_assert!(config.max_message_bytes as u64 <= config.segment_bytes);
                prop_assert_eq!(config.describe().len(), KEYS.len());
            }
        }
    }
}
