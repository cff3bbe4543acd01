//! The sections of the configuration and their defaults. `config/thermocline.toml` says the same with comments;
//! a test holds the two equal. Names that Kafka already gives are kept, with `_` for `.`.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::units::{ByteSize, HumanDuration};

/// Everything the broker can be told.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub broker: BrokerConfig,
    pub kafka: KafkaConfig,
    pub http: HttpConfig,
    pub log: LogConfig,
    pub groups: GroupsConfig,
    pub transactions: TransactionsConfig,
    pub store: StoreConfig,
    pub tiering: TieringConfig,
    pub cache: CacheConfig,
    pub search: SearchConfig,
}

/// Who this broker is and where its data lives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BrokerConfig {
    /// Kafka node id; must stay the same over the life of the data directory.
    pub node_id: i32,
    pub data_dir: PathBuf,
    pub auto_create_topics_enable: bool,
    /// Partitions of a topic created without a count.
    pub num_partitions: i32,
    /// Accept any replication factor and report 1; what test suites written for clusters need.
    pub lenient_replication_factor: bool,
    /// How long a shutdown waits for requests under way before it closes their connections.
    pub shutdown_timeout: HumanDuration,
}

/// The Kafka listener and what one connection may cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KafkaConfig {
    pub listen: SocketAddr,
    /// `host:port` told to clients; empty means the listening address.
    pub advertised: String,
    /// Largest request frame (`socket.request.max.bytes`).
    pub request_max_bytes: ByteSize,
    /// Largest frame of a request that carries no records.
    pub control_request_max_bytes: ByteSize,
    pub max_connections: usize,
    /// Requests of one connection that may wait for their answer; past it the socket is not read.
    pub max_in_flight_per_connection: usize,
    /// Bytes of request frames held at once over all connections; past it sockets are not read. An eighth of it is for
    /// requests other than Produce.
    pub request_memory_max: ByteSize,
    pub connections_max_idle: HumanDuration,
    /// Upper bound on one Fetch response (`fetch.max.bytes`).
    pub fetch_max_bytes: ByteSize,
    /// Longest a Fetch may wait for data, whatever the client asks.
    pub fetch_max_wait: HumanDuration,
    /// Fetch sessions kept (`max.incremental.fetch.session.cache.slots`).
    pub fetch_sessions_max: usize,
}

/// The HTTP interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    pub listen: SocketAddr,
    pub request_max_bytes: ByteSize,
    pub max_concurrent_requests: usize,
}

/// The hot log: broker-wide values that a topic may override under Kafka's names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// A segment is sealed at this size (`segment.bytes`).
    pub segment_bytes: ByteSize,
    /// A segment is sealed this long after its first record (`segment.ms`).
    pub segment_age: HumanDuration,
    /// One index entry for so many bytes of log (`index.interval.bytes`).
    pub index_interval_bytes: ByteSize,
    /// Largest record batch, as sent (`max.message.bytes`).
    pub message_max_bytes: ByteSize,
    /// How long an archived segment stays local (`local.retention.ms`).
    pub local_retention: HumanDuration,
    /// How long an idle producer's sequence numbers are remembered (`producer.id.expiration.ms`).
    pub producer_id_expiration: HumanDuration,
    /// How often ageing segments are sealed and local copies expired.
    pub maintenance_interval: HumanDuration,
    /// Free disk below which produce requests are refused; below twice as much, archived local copies go early.
    pub disk_reserve: ByteSize,
    /// Memory for the keys of one compaction (`log.cleaner.dedupe.buffer.size`).
    pub cleaner_dedupe_buffer_bytes: ByteSize,
    /// How often something to compact is looked for (`log.cleaner.backoff.ms`).
    pub cleaner_backoff: HumanDuration,
    /// What compaction may read and write; 0 is without limit (`log.cleaner.io.max.bytes.per.second`).
    pub cleaner_bytes_per_second: ByteSize,
}

/// Consumer groups.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GroupsConfig {
    pub min_session_timeout: HumanDuration,
    pub max_session_timeout: HumanDuration,
    pub initial_rebalance_delay: HumanDuration,
    pub max_size: usize,
    /// Groups this broker keeps; one more is refused.
    pub max_groups: usize,
    /// How long committed offsets outlive an empty group (`offsets.retention.minutes`).
    pub offsets_retention: HumanDuration,
    /// Longest metadata string of a committed offset (`offset.metadata.max.bytes`).
    pub offset_metadata_max_bytes: ByteSize,
}

/// Transactions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransactionsConfig {
    /// Longest timeout a producer may ask for (`transaction.max.timeout.ms`).
    pub max_timeout: HumanDuration,
    /// How long a transactional id without a transaction is remembered (`transactional.id.expiration.ms`).
    pub id_expiration: HumanDuration,
    /// Transactional ids this broker keeps; one more is refused.
    pub max_ids: usize,
}

/// Where the cold tier lives and how patiently it is spoken to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// `s3://bucket/prefix`, `gs://…`, `az://…` or `file:///dir`; empty means `<data dir>/cold`.
    pub url: String,
    /// For S3-compatible stores; empty means the cloud's own.
    pub endpoint: String,
    pub region: String,
    pub request_timeout: HumanDuration,
    pub max_retries: usize,
    pub max_concurrent_requests: usize,
}

/// The archive pipeline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TieringConfig {
    /// Segments archived at once.
    pub workers: usize,
    /// Memory of all archive jobs together.
    pub memory_max: ByteSize,
    /// Decoded bytes after which a segment continues in a further data file.
    pub data_file_bytes: ByteSize,
    /// Log bytes of the data files that small neighbouring ones are merged into.
    pub merge_target: ByteSize,
    /// Decoded bytes of one Parquet row group: the unit of a cold read.
    pub row_group_bytes: ByteSize,
    /// Decoded bytes of one Parquet page: what reading one message costs.
    pub page_bytes: ByteSize,
    pub zstd_level: i32,
    /// What archiving and upkeep may move to and from the store; 0 is without limit.
    pub archive_bytes_per_second: ByteSize,
    pub archive_requests_per_second: u64,
    /// By how much archiving may raise the p99 of produce latency before it slows down; 0 turns that off.
    pub produce_slowdown_percent: u32,
    /// How often sealed segments are looked for.
    pub interval: HumanDuration,
    /// Wait after a failed attempt; doubled each time up to `retry_backoff_max`.
    pub retry_backoff: HumanDuration,
    pub retry_backoff_max: HumanDuration,
    /// Bytes per second at which archived files are read again and checked; 0 = not at all.
    pub scrub_rate: ByteSize,
    /// Age an unreferenced object must have before it is collected.
    pub orphan_min_age: HumanDuration,
    pub retired_min_age: HumanDuration,
}

/// What reading the cold tier may keep in memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheConfig {
    /// Re-encoded batches ready to send.
    pub batches_max_bytes: ByteSize,
    /// Blocks of Parquet and split objects.
    pub blocks_max_bytes: ByteSize,
    /// Archived splits that are open: their footers.
    pub splits_max_bytes: ByteSize,
    /// Row groups read ahead for a sequential reader.
    pub prefetch_row_groups: usize,
    /// Row groups fetched and decoded at once, over all readers.
    pub max_concurrent_reads: usize,
    /// What Fetch, search and replay may read from the store; 0 is without limit.
    pub read_bytes_per_second: ByteSize,
    pub read_requests_per_second: u64,
}

/// Full-text search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SearchConfig {
    /// How often new messages enter the live index.
    pub live_interval: HumanDuration,
    /// Log bytes indexed in one step of the live index.
    pub live_chunk_bytes: ByteSize,
    /// Partitions that the live index works on at once; 0 is one for each core, four at most.
    pub live_builders: usize,
    /// Splits searched at once, over all queries.
    pub max_concurrent_splits: usize,
    /// Bytes of archived splits held for searches under way, over all queries.
    pub memory_max: ByteSize,
    /// Queries that may run or wait; one more is refused.
    pub max_concurrent_queries: usize,
    /// Most hits one answer may carry.
    pub limit_max: usize,
    pub timeout: HumanDuration,
    /// Most buckets of the aggregations of one answer.
    pub aggregation_buckets_max: u32,
    /// What the aggregations of one request may hold.
    pub aggregation_memory_max: ByteSize,
}

impl Default for BrokerConfig {
    fn default() -> Self {
        Self {
            node_id: 1,
            data_dir: PathBuf::from("data"),
            auto_create_topics_enable: true,
            num_partitions: 1,
            lenient_replication_factor: false,
            shutdown_timeout: HumanDuration::secs(30),
        }
    }
}

impl Default for KafkaConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 9092)),
            advertised: String::new(),
            request_max_bytes: ByteSize::mib(100),
            control_request_max_bytes: ByteSize::mib(4),
            max_connections: 4096,
            max_in_flight_per_connection: 32,
            request_memory_max: ByteSize::mib(256),
            connections_max_idle: HumanDuration::secs(600),
            fetch_max_bytes: ByteSize::mib(55),
            fetch_max_wait: HumanDuration::secs(30),
            fetch_sessions_max: 1000,
        }
    }
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            request_max_bytes: ByteSize::mib(16),
            max_concurrent_requests: 256,
        }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            segment_bytes: ByteSize::mib(128),
            segment_age: HumanDuration::secs(3600),
            index_interval_bytes: ByteSize::kib(4),
            message_max_bytes: ByteSize::bytes(1_048_588),
            local_retention: HumanDuration::secs(86_400),
            producer_id_expiration: HumanDuration::secs(86_400),
            maintenance_interval: HumanDuration::secs(10),
            disk_reserve: ByteSize::mib(512),
            cleaner_dedupe_buffer_bytes: ByteSize::mib(32),
            cleaner_backoff: HumanDuration::secs(15),
            cleaner_bytes_per_second: ByteSize::bytes(0),
        }
    }
}

impl Default for GroupsConfig {
    fn default() -> Self {
        Self {
            min_session_timeout: HumanDuration::secs(6),
            max_session_timeout: HumanDuration::secs(1800),
            initial_rebalance_delay: HumanDuration::secs(3),
            max_size: 10_000,
            max_groups: 100_000,
            offsets_retention: HumanDuration::secs(7 * 86_400),
            offset_metadata_max_bytes: ByteSize::bytes(4096),
        }
    }
}

impl Default for TransactionsConfig {
    fn default() -> Self {
        Self { max_timeout: HumanDuration::secs(900), id_expiration: HumanDuration::secs(7 * 86_400), max_ids: 100_000 }
    }
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            endpoint: String::new(),
            region: String::new(),
            request_timeout: HumanDuration::secs(30),
            max_retries: 5,
            max_concurrent_requests: 32,
        }
    }
}

impl Default for TieringConfig {
    fn default() -> Self {
        Self {
            workers: 1,
            memory_max: ByteSize::mib(1024),
            data_file_bytes: ByteSize::mib(256),
            merge_target: ByteSize::mib(256),
            row_group_bytes: ByteSize::mib(8),
            page_bytes: ByteSize::kib(64),
            zstd_level: 3,
            archive_bytes_per_second: ByteSize::bytes(0),
            archive_requests_per_second: 0,
            produce_slowdown_percent: 15,
            interval: HumanDuration::secs(1),
            retry_backoff: HumanDuration::secs(1),
            retry_backoff_max: HumanDuration::secs(60),
            scrub_rate: ByteSize::mib(4),
            orphan_min_age: HumanDuration::secs(86_400),
            retired_min_age: HumanDuration::secs(600),
        }
    }
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            batches_max_bytes: ByteSize::mib(256),
            blocks_max_bytes: ByteSize::mib(256),
            splits_max_bytes: ByteSize::mib(128),
            prefetch_row_groups: 2,
            max_concurrent_reads: 4,
            read_bytes_per_second: ByteSize::bytes(0),
            read_requests_per_second: 0,
        }
    }
}

impl Default for SearchConfig {
    fn default() -> Self {
        Self {
            live_interval: HumanDuration::millis(250),
            live_chunk_bytes: ByteSize::mib(8),
            live_builders: 0,
            max_concurrent_splits: 4,
            memory_max: ByteSize::mib(256),
            max_concurrent_queries: 64,
            limit_max: 10_000,
            timeout: HumanDuration::secs(30),
            aggregation_buckets_max: 65_536,
            aggregation_memory_max: ByteSize::mib(64),
        }
    }
}
