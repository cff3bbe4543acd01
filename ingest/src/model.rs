//! The vocabulary: a newtype for every number that has a unit or a space. No I/O, no tokio.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Where groups and transactions are kept.
pub const OFFSETS_TOPIC: &str = "__consumer_offsets";
pub const TRANSACTIONS_TOPIC: &str = "__transaction_state";
const INTERNAL_TOPICS: [&str; 2] = [OFFSETS_TOPIC, TRANSACTIONS_TOPIC];

/// Longest legal topic name, as in Kafka.
pub const TOPIC_NAME_LEN_MAX: usize = 249;

/// The leader epoch of a broker that is alone. Metadata, Fetch batches, ListOffsets and OffsetForLeaderEpoch agree on
/// it.
pub const LEADER_EPOCH: i32 = 0;

/// Position of a record in its partition; also used for exclusive ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offset(pub i64);

/// Milliseconds since the Unix epoch; negative only as Kafka's "none" (-1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

/// Index of a partition within its topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PartitionId(pub i32);

/// Identity of a topic over its life; a topic deleted and created again gets a new one. Never nil.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TopicId(pub Uuid);

/// Identity of an idempotent producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProducerId(pub i64);

/// Who set a record's timestamp; the numbers are those of attribute bit 3 and of the Parquet column.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestampType {
    #[default]
    CreateTime = 0,
    LogAppendTime = 1,
}

/// A legal topic name: 1 to 249 of `[a-zA-Z0-9._-]`, neither `.` nor `..`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TopicName(Arc<str>);

/// One partition of one topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    pub topic: TopicName,
    pub partition: PartitionId,
}

/// A topic name that Kafka would not take either.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "topic name {name:?} is not legal; use 1 to {TOPIC_NAME_LEN_MAX} of a-z, A-Z, 0-9, '.', '_' and '-', not \".\" or \"..\""
)]
pub struct TopicNameError {
    name: String,
}

impl Offset {
    pub const ZERO: Self = Self(0);

    /// The offset `n` places further; saturates, so that hostile deltas cannot wrap around.
    pub const fn plus(self, n: i64) -> Self {
        Self(self.0.saturating_add(n))
    }
    pub const fn next(self) -> Self {
        self.plus(1)
    }
    /// Number of offsets from `self` up to `end` (exclusive); 0 if `end` is not beyond.
    pub const fn distance_to(self, end: Self) -> u64 {
        if end.0 > self.0 { (end.0 - self.0) as u64 } else { 0 }
    }
}

impl Timestamp {
    pub const NONE: Self = Self(-1);
    /// Microseconds since the Unix epoch, as Parquet stores it; saturates.
    pub const fn as_micros(self) -> i64 {
        self.0.saturating_mul(1000)
    }
}

impl TopicId {
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }
}

impl TopicName {
    pub fn new(name: &str) -> Result<Self, TopicNameError> {
        let legal = !name.is_empty()
            && name.len() <= TOPIC_NAME_LEN_MAX
            && name != "."
            && name != ".."
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if legal { Ok(Self(name.into())) } else { Err(TopicNameError { name: name.chars().take(300).collect() }) }
    }

    /// Whether the broker keeps the topic for itself. Other names that begin with two underscores are anybody's:
    /// Debezium and Cruise Control have such.
    pub fn is_internal(&self) -> bool {
        INTERNAL_TOPICS.contains(&self.as_str())
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TopicPartition {
    pub fn new(topic: TopicName, partition: PartitionId) -> Self {
        Self { topic, partition }
    }
}

impl Borrow<str> for TopicName {
    fn borrow(&self) -> &str {
        &self.0
    }
}
impl TryFrom<String> for TopicName {
    type Error = TopicNameError;
    fn try_from(name: String) -> Result<Self, Self::Error> {
        Self::new(&name)
    }
}
impl From<TopicName> for String {
    fn from(name: TopicName) -> Self {
        name.0.as_ref().to_owned()
    }
}
impl fmt::Debug for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}
macro_rules! display_as_inner {
    ($($type:ty),*) => {$(
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    )*};
}
display_as_inner!(Offset, Timestamp, PartitionId, TopicId, ProducerId, TopicName);

/// `topic-partition`, as Kafka names the folder of a partition.
impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_names_follow_kafka() {
        for good in ["a", "orders.v1", "__consumer_offsets", "A-Z_0.9", &"x".repeat(249)] {
            assert!(TopicName::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "ä", "a\0", &"x".repeat(250)] {
            assert!(TopicName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn offsets_saturate() {
        assert_eq!(Offset(i64::MAX).next(), Offset(i64::MAX));
        assert_eq!(Offset(5).distance_to(Offset(3)), 0);
        assert_eq!(Offset(3).distance_to(Offset(5)), 2);
    }
}
