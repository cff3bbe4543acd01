//! What the broker can be told: typed sections with defaults, units, and checks across fields; and the configuration
//! of topics under Kafka's names.

mod load;
mod nearest;
pub mod sections;
pub mod topic;
mod topic_keys;
pub mod units;
mod validate;

pub use load::{ConfigError, Flag, Origin, Problem, load};
pub use sections::{
    BrokerConfig, CacheConfig, Config, GroupsConfig, HttpConfig, KafkaConfig, LogConfig, SearchConfig, StoreConfig,
    TieringConfig, TransactionsConfig,
};
pub use topic::{
    CleanupPolicy, DescribedConfig, SearchFields, SearchIndex, SearchTokenizer, TopicCompression, TopicConfig,
    TopicConfigError,
};
pub use units::{ByteSize, HumanDuration, ParseQuantityError};
