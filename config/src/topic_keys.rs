//! The topic settings that exist: Kafka's, with Kafka's names, types and meaning (Kafka documentation, "Topic
//! Configs"), and our own under `search.`. A value that this broker could not honour is not in its range.

use crate::topic::Type;

/// Kafka's default for times that are meant to be unlimited.
pub(crate) const UNLIMITED: i64 = i64::MAX;
const INT_MAX: i64 = i32::MAX as i64;
/// Smallest segment a topic may ask for; far below what is sensible, enough for tests that want many segments.
pub(crate) const SEGMENT_BYTES_MIN: i64 = 1024;
/// What `search.fields` may name, in the order in which it is reported.
pub(crate) const SEARCH_FIELDS: [&str; 4] = ["value", "json", "key", "headers"];
/// What `cleanup.policy` may name, in the order in which it is reported.
pub(crate) const CLEANUP_POLICIES: [&str; 2] = ["compact", "delete"];
/// Values of `compression.type`.
pub(crate) const COMPRESSION_TYPES: [&str; 6] = ["producer", "uncompressed", "gzip", "snappy", "lz4", "zstd"];
/// `i64::MAX`, as it is written.
const UNLIMITED_TEXT: &str = "9223372036854775807";

/// Which values a key takes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rule {
    /// A whole number in this range.
    Number {
        min: i64,
        max: i64,
    },
    /// A decimal number from 0 to 1.
    Ratio,
    /// `true` or `false`.
    Flag,
    OneOf(&'static [&'static str]),
    /// One or more of these, separated by commas.
    SomeOf(&'static [&'static str]),
    /// Kafka takes more, this broker only this.
    Only {
        value: &'static str,
        why: &'static str,
    },
}

/// Where a key's default comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Default {
    /// A field of the broker's `[log]` section.
    Broker,
    Fixed(&'static str),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    pub name: &'static str,
    pub kind: Type,
    pub rule: Rule,
    pub default: Default,
    pub documentation: &'static str,
}

const fn key(name: &'static str, kind: Type, rule: Rule, default: &'static str, documentation: &'static str) -> Key {
    Key { name, kind, rule, default: Default::Fixed(default), documentation }
}

const fn from_broker(name: &'static str, kind: Type, rule: Rule, documentation: &'static str) -> Key {
    Key { name, kind, rule, default: Default::Broker, documentation }
}

const fn only(
    name: &'static str,
    kind: Type,
    value: &'static str,
    why: &'static str,
    documentation: &'static str,
) -> Key {
    key(name, kind, Rule::Only { value, why }, value, documentation)
}

const fn at_least(min: i64) -> Rule {
    Rule::Number { min, max: i64::MAX }
}

/// Every key, in name order.
pub(crate) static KEYS: [Key; 34] = [
    key(
        "cleanup.policy",
        Type::List,
        Rule::SomeOf(&CLEANUP_POLICIES),
        "delete",
        "What happens to old records. delete: they go by retention.ms and retention.bytes. compact: of each key the \
         newest record stays, and a record without a value removes its key. Both at once: compacted, and deleted by \
         retention. A compacted topic stays on local disk: it is not archived.",
    ),
    key(
        "compression.type",
        Type::String,
        Rule::OneOf(&COMPRESSION_TYPES),
        "producer",
        "Codec of batches in the log: the producer's, or another that the broker encodes them with as they come.",
    ),
    key(
        "delete.retention.ms",
        Type::Long,
        at_least(0),
        "86400000",
        "How long a tombstone stays after the first compaction that met it, for readers that read the log from its start; \
         without effect while cleanup.policy is delete.",
    ),
    key(
        "file.delete.delay.ms",
        Type::Long,
        at_least(0),
        "0",
        "Wait between dropping a segment and deleting its files. Where the disk is tight, or the topic is deleted, nothing \
         waits.",
    ),
    key(
        "flush.messages",
        Type::Long,
        at_least(1),
        "1",
        "Records after which the log is synced to disk. 1: every acknowledgement waits for the disk. More: \
         acknowledgements do not wait, and a crash of the machine may lose what was not synced.",
    ),
    key(
        "flush.ms",
        Type::Long,
        at_least(1),
        UNLIMITED_TEXT,
        "Longest a record waits for the sync to disk where flush.messages is more than 1.",
    ),
    only(
        "follower.replication.throttled.replicas",
        Type::List,
        "",
        "this broker has no followers",
        "Replicas whose replication is throttled on the follower.",
    ),
    from_broker(
        "index.interval.bytes",
        Type::Int,
        Rule::Number { min: 1, max: INT_MAX },
        "Log bytes between two entries of the offset index.",
    ),
    only(
        "leader.replication.throttled.replicas",
        Type::List,
        "",
        "this broker has no followers",
        "Replicas whose replication is throttled on the leader.",
    ),
    key(
        "local.retention.bytes",
        Type::Long,
        at_least(-2),
        "-2",
        "Archived bytes that a partition keeps locally as well; -1 is unlimited, -2 means retention.bytes.",
    ),
    from_broker(
        "local.retention.ms",
        Type::Long,
        at_least(-2),
        "How long an archived segment is kept locally as well; -1 is unlimited, -2 means retention.ms.",
    ),
    key(
        "max.compaction.lag.ms",
        Type::Long,
        at_least(1),
        UNLIMITED_TEXT,
        "Longest a record stays out of compaction, whatever min.cleanable.dirty.ratio says; segments are sealed in time \
         for it. Without effect while cleanup.policy is delete.",
    ),
    from_broker(
        "max.message.bytes",
        Type::Int,
        Rule::Number { min: 0, max: INT_MAX },
        "Largest record batch, as the producer sends it.",
    ),
    key(
        "message.timestamp.after.max.ms",
        Type::Long,
        at_least(0),
        "3600000",
        "How far ahead of the broker's clock a record's timestamp may be.",
    ),
    key(
        "message.timestamp.before.max.ms",
        Type::Long,
        at_least(0),
        UNLIMITED_TEXT,
        "How far behind the broker's clock a record's timestamp may be.",
    ),
    key(
        "message.timestamp.type",
        Type::String,
        Rule::OneOf(&["CreateTime", "LogAppendTime"]),
        "CreateTime",
        "Whether a record carries the producer's time or the time of its arrival.",
    ),
    key(
        "min.cleanable.dirty.ratio",
        Type::Double,
        Rule::Ratio,
        "0.5",
        "Share of the log that must be dirty before it is compacted; without effect while cleanup.policy is delete.",
    ),
    key(
        "min.compaction.lag.ms",
        Type::Long,
        at_least(0),
        "0",
        "Shortest a record stays out of compaction; without effect while cleanup.policy is delete.",
    ),
    only(
        "min.insync.replicas",
        Type::Int,
        "1",
        "this broker keeps one replica",
        "Replicas that must have a record before it is acknowledged to acks=all.",
    ),
    only(
        "preallocate",
        Type::Boolean,
        "false",
        "segments grow as they are written",
        "Reserve a segment's size on disk when it is made.",
    ),
    key(
        "remote.storage.enable",
        Type::Boolean,
        Rule::Flag,
        "true",
        "Archive sealed segments to the cold tier, where they stay until retention.ms and retention.bytes say otherwise. \
         Always false where cleanup.policy is compact.",
    ),
    key(
        "retention.bytes",
        Type::Long,
        at_least(-1),
        "-1",
        "Bytes that a partition keeps, hot and cold together; -1 is unlimited.",
    ),
    key("retention.ms", Type::Long, at_least(-1), "-1", "How long records are kept, hot and cold; -1 is unlimited."),
    key(
        "search.fast",
        Type::Boolean,
        Rule::Flag,
        "true",
        "Also keep keys, headers and the leaves of JSON values in columns, which aggregations, sorting and fast ranges \
         over them need; it makes the index larger.",
    ),
    key(
        "search.fields",
        Type::List,
        Rule::SomeOf(&SEARCH_FIELDS),
        "value,json,key,headers",
        "What is indexed of a message: the words of its value, the leaves of a JSON value under their paths, the key, \
         the headers. What is left out cannot be searched for.",
    ),
    key(
        "search.index",
        Type::String,
        Rule::OneOf(&["json", "text", "off"]),
        "json",
        "What is indexed for search: json also indexes every leaf of a JSON value under its path, text only the words, \
         off nothing.",
    ),
    key(
        "search.positions",
        Type::Boolean,
        Rule::Flag,
        "true",
        "Index the positions of words, which phrase queries need; it makes the index larger.",
    ),
    key(
        "search.reindex",
        Type::Boolean,
        Rule::Flag,
        "true",
        "Index archived messages again, in the background, where the other search settings have changed since; false: a \
         change is for messages to come.",
    ),
    key(
        "search.tokenizer",
        Type::String,
        Rule::OneOf(&["default", "log"]),
        "default",
        "How text is cut into words: default at everything that is neither letter nor digit; log also keeps paths, \
         addresses, dotted names, ids and key=value pairs whole. Both find Chinese, Japanese and Korean text by any part \
         of it.",
    ),
    from_broker(
        "segment.bytes",
        Type::Int,
        Rule::Number { min: SEGMENT_BYTES_MIN, max: INT_MAX },
        "Size at which a segment is sealed and goes to the archive.",
    ),
    only(
        "segment.index.bytes",
        Type::Int,
        "10485760",
        "indexes grow with their segment",
        "Size of the index that maps offsets to positions.",
    ),
    only("segment.jitter.ms", Type::Long, "0", "segments are sealed on time", "Random part taken off segment.ms."),
    from_broker("segment.ms", Type::Long, at_least(1), "Age at which a segment is sealed even if it is small."),
    only(
        "unclean.leader.election.enable",
        Type::Boolean,
        "false",
        "this broker keeps one replica",
        "Let a replica lead that misses acknowledged records.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stand_in_name_order() {
        assert!(KEYS.is_sorted_by(|a, b| a.name < b.name));
        assert_eq!(UNLIMITED.to_string(), UNLIMITED_TEXT);
    }
}
