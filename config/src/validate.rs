//! Which values the settings may have: the range of each and what they owe each other. All violations are reported
//! at once, so that one start shows everything there is to mend.

use std::fmt::Display;
use std::net::SocketAddr;

use crate::sections::{
    BrokerConfig, CacheConfig, Config, GroupsConfig, HttpConfig, KafkaConfig, LogConfig, SearchConfig, StoreConfig,
    TieringConfig, TransactionsConfig,
};
use crate::units::{ByteSize, HumanDuration};

/// Smallest broker-wide segment; smaller ones mean more files than any file system likes.
const SEGMENT_BYTES_MIN: ByteSize = ByteSize::kib(64);
/// Kafka counts frames, segments and fetches in signed 32-bit numbers.
const INT32_BYTES_MAX: ByteSize = ByteSize::bytes(i32::MAX as u64);
/// Smallest frame, page or chunk that holds anything useful.
const BUFFER_BYTES_MIN: ByteSize = ByteSize::kib(1);
const SEARCH_MEMORY_MIN: ByteSize = ByteSize::mib(1);
/// Largest memory budget: far above any machine, low enough that sums do not overflow.
const MEMORY_BYTES_MAX: ByteSize = ByteSize::gib(1 << 20);
const TICK_MIN: HumanDuration = HumanDuration::millis(1);
const TICK_MAX: HumanDuration = HumanDuration::secs(3600);
/// Kafka counts the timeouts of a group in signed 32-bit milliseconds.
const INT32_TIMEOUT_MAX: HumanDuration = HumanDuration::millis(i32::MAX as u64);
/// Longest age or retention; Kafka counts them in signed 64-bit milliseconds.
const AGE_MAX: HumanDuration = HumanDuration::millis(i64::MAX as u64);
const PARTITIONS_MAX: i32 = 10_000;
const COUNT_MAX: usize = 1_000_000;
/// Room for a new session is looked for among all of them.
const FETCH_SESSIONS_MAX: usize = 100_000;
const THREADS_MAX: usize = 1024;
const RETRIES_MAX: usize = 100;
const PREFETCH_MAX: usize = 64;
/// Smallest bandwidth under which the parts of a large object still arrive.
const BANDWIDTH_MIN: ByteSize = ByteSize::kib(64);
const REQUEST_RATE_MAX: u64 = 1_000_000;
const SEARCH_LIMIT_MAX: usize = 100_000;
const AGGREGATION_BUCKETS_MAX: u32 = 1_000_000;
/// An object younger than this may belong to an upload under way.
const RETIRED_AGE_MIN: HumanDuration = HumanDuration::secs(1);
const ORPHAN_AGE_MIN: HumanDuration = HumanDuration::secs(60);
const STORE_SCHEMES: [&str; 4] = ["s3", "gs", "az", "file"];

/// One value that is not allowed.
pub(crate) struct Violation {
    /// `section.key`.
    pub key: &'static str,
    pub value: String,
    pub allowed: String,
}

#[derive(Default)]
struct Checks(Vec<Violation>);

impl Checks {
    fn refuse(&mut self, key: &'static str, value: impl Display, allowed: impl Into<String>) {
        self.0.push(Violation { key, value: value.to_string(), allowed: allowed.into() });
    }

    fn range<T: PartialOrd + Display>(&mut self, key: &'static str, value: T, min: T, max: T) {
        if value < min || value > max {
            self.refuse(key, value, format!("it must be {min} to {max}"));
        }
    }

    /// A bandwidth, or 0 for none at all.
    fn bandwidth(&mut self, key: &'static str, value: ByteSize) {
        if value > ByteSize::bytes(0) {
            self.range(key, value, BANDWIDTH_MIN, MEMORY_BYTES_MAX);
        }
    }

    fn at_most<T: PartialOrd + Display>(&mut self, key: &'static str, value: T, other: &'static str, limit: T) {
        if value > limit {
            self.refuse(key, value, format!("it must not exceed {other}, which is {limit}"));
        }
    }

    fn below<T: PartialOrd + Display>(&mut self, key: &'static str, value: T, other: &'static str, limit: T) {
        if value >= limit {
            self.refuse(key, value, format!("it must be less than {other}, which is {limit}"));
        }
    }
}

impl Config {
    /// Everything that is not allowed, in the order of the sections.
    pub(crate) fn violations(&self) -> Vec<Violation> {
        let mut checks = Checks::default();
        check_broker(&mut checks, &self.broker);
        check_kafka(&mut checks, &self.kafka);
        check_http(&mut checks, &self.http, self.kafka.listen);
        check_log(&mut checks, &self.log, &self.kafka);
        check_groups(&mut checks, &self.groups);
        check_transactions(&mut checks, &self.transactions);
        check_store(&mut checks, &self.store);
        check_tiering(&mut checks, &self.tiering);
        check_cache(&mut checks, &self.cache);
        check_search(&mut checks, &self.search);
        checks.0
    }
}

fn check_broker(checks: &mut Checks, broker: &BrokerConfig) {
    checks.range("broker.node_id", broker.node_id, 0, i32::MAX);
    if broker.data_dir.as_os_str().is_empty() {
        checks.refuse("broker.data_dir", "\"\"", "name a directory");
    }
    checks.range("broker.num_partitions", broker.num_partitions, 1, PARTITIONS_MAX);
    checks.range("broker.shutdown_timeout", broker.shutdown_timeout, HumanDuration::millis(0), TICK_MAX);
}

fn check_kafka(checks: &mut Checks, kafka: &KafkaConfig) {
    checks.range("kafka.request_max_bytes", kafka.request_max_bytes, BUFFER_BYTES_MIN, INT32_BYTES_MAX);
    let control = kafka.control_request_max_bytes;
    checks.range("kafka.control_request_max_bytes", control, BUFFER_BYTES_MIN, INT32_BYTES_MAX);
    checks.at_most("kafka.control_request_max_bytes", control, "kafka.request_max_bytes", kafka.request_max_bytes);
    checks.range("kafka.max_connections", kafka.max_connections, 1, COUNT_MAX);
    checks.range("kafka.max_in_flight_per_connection", kafka.max_in_flight_per_connection, 1, COUNT_MAX);
    checks.range("kafka.request_memory_max", kafka.request_memory_max, BUFFER_BYTES_MIN, MEMORY_BYTES_MAX);
    checks.at_most(
        "kafka.request_max_bytes",
        kafka.request_max_bytes,
        "kafka.request_memory_max",
        kafka.request_memory_max,
    );
    checks.range("kafka.connections_max_idle", kafka.connections_max_idle, HumanDuration::secs(1), AGE_MAX);
    checks.range("kafka.fetch_max_bytes", kafka.fetch_max_bytes, BUFFER_BYTES_MIN, INT32_BYTES_MAX);
    checks.range("kafka.fetch_max_wait", kafka.fetch_max_wait, TICK_MIN, INT32_TIMEOUT_MAX);
    checks.range("kafka.fetch_sessions_max", kafka.fetch_sessions_max, 0, FETCH_SESSIONS_MAX);
    let advertised = kafka.advertised.as_str();
    if advertised.is_empty() && kafka.listen.ip().is_unspecified() {
        checks.refuse(
            "kafka.advertised",
            "\"\"",
            format!(
                "clients cannot connect to {}; write the host:port under which they reach this broker",
                kafka.listen
            ),
        );
    } else if !advertised.is_empty() && kafka.advertised_address().is_none() {
        checks.refuse("kafka.advertised", format!("{advertised:?}"), "write host:port, like broker.example.org:9092");
    }
}

impl KafkaConfig {
    /// Host and port of [`Self::advertised`]; `None` where it is empty or not of the form `host:port`. An IPv6
    /// address stands in brackets, which the host does not keep.
    pub fn advertised_address(&self) -> Option<(String, u16)> {
        let (host, port) = self.advertised.rsplit_once(':')?;
        let port: u16 = port.parse().ok().filter(|port| *port != 0)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        match bare {
            Some(address) if address.parse::<std::net::Ipv6Addr>().is_ok() => Some((address.to_owned(), port)),
            None if !host.is_empty() && host.chars().all(legal) => Some((host.to_owned(), port)),
            _ => None,
        }
    }
}

fn check_http(checks: &mut Checks, http: &HttpConfig, kafka: SocketAddr) {
    let (a, b) = (http.listen, kafka);
    let same_host = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    if a.port() != 0 && a.port() == b.port() && same_host {
        checks.refuse("http.listen", a, format!("it must differ from kafka.listen, which is {b}"));
    }
    checks.range("http.request_max_bytes", http.request_max_bytes, BUFFER_BYTES_MIN, INT32_BYTES_MAX);
    checks.range("http.max_concurrent_requests", http.max_concurrent_requests, 1, COUNT_MAX);
}

fn check_log(checks: &mut Checks, log: &LogConfig, kafka: &KafkaConfig) {
    checks.range("log.segment_bytes", log.segment_bytes, SEGMENT_BYTES_MIN, INT32_BYTES_MAX);
    checks.range("log.segment_age", log.segment_age, TICK_MIN, AGE_MAX);
    checks.range("log.index_interval_bytes", log.index_interval_bytes, ByteSize::bytes(1), INT32_BYTES_MAX);
    checks.range("log.message_max_bytes", log.message_max_bytes, BUFFER_BYTES_MIN, INT32_BYTES_MAX);
    checks.below("log.message_max_bytes", log.message_max_bytes, "log.segment_bytes", log.segment_bytes);
    checks.below("log.message_max_bytes", log.message_max_bytes, "kafka.request_max_bytes", kafka.request_max_bytes);
    checks.range("log.local_retention", log.local_retention, HumanDuration::millis(0), AGE_MAX);
    checks.range("log.producer_id_expiration", log.producer_id_expiration, TICK_MIN, AGE_MAX);
    checks.range("log.maintenance_interval", log.maintenance_interval, TICK_MIN, TICK_MAX);
    checks.range("log.disk_reserve", log.disk_reserve, ByteSize::bytes(0), MEMORY_BYTES_MAX);
    checks.range(
        "log.cleaner_dedupe_buffer_bytes",
        log.cleaner_dedupe_buffer_bytes,
        BUFFER_BYTES_MIN,
        MEMORY_BYTES_MAX,
    );
    checks.range("log.cleaner_backoff", log.cleaner_backoff, TICK_MIN, TICK_MAX);
    checks.bandwidth("log.cleaner_bytes_per_second", log.cleaner_bytes_per_second);
}

fn check_groups(checks: &mut Checks, groups: &GroupsConfig) {
    let (min, max) = (groups.min_session_timeout, groups.max_session_timeout);
    checks.range("groups.min_session_timeout", min, TICK_MIN, INT32_TIMEOUT_MAX);
    checks.range("groups.max_session_timeout", max, TICK_MIN, INT32_TIMEOUT_MAX);
    checks.below("groups.min_session_timeout", min, "groups.max_session_timeout", max);
    let delay = groups.initial_rebalance_delay;
    checks.at_most("groups.initial_rebalance_delay", delay, "groups.max_session_timeout", max);
    checks.range("groups.max_size", groups.max_size, 1, COUNT_MAX);
    checks.range("groups.max_groups", groups.max_groups, 1, COUNT_MAX);
    checks.range("groups.offsets_retention", groups.offsets_retention, TICK_MIN, AGE_MAX);
    let metadata = groups.offset_metadata_max_bytes;
    checks.range("groups.offset_metadata_max_bytes", metadata, ByteSize::bytes(0), ByteSize::mib(1));
}

fn check_transactions(checks: &mut Checks, transactions: &TransactionsConfig) {
    checks.range("transactions.max_timeout", transactions.max_timeout, TICK_MIN, INT32_TIMEOUT_MAX);
    checks.range("transactions.id_expiration", transactions.id_expiration, TICK_MIN, AGE_MAX);
    checks.range("transactions.max_ids", transactions.max_ids, 1, COUNT_MAX);
}

fn check_store(checks: &mut Checks, store: &StoreConfig) {
    if !store.url.is_empty() {
        let (scheme, rest) = store.url.split_once("://").unwrap_or(("", ""));
        if !STORE_SCHEMES.contains(&scheme) || rest.is_empty() {
            let allowed = "write s3://bucket/prefix, gs://bucket/prefix, az://container/prefix, file:///directory, or \
                           nothing for the data directory";
            checks.refuse("store.url", format!("{:?}", store.url), allowed);
        }
    }
    if !store.endpoint.is_empty() && !store.endpoint.starts_with("http://") && !store.endpoint.starts_with("https://") {
        checks.refuse("store.endpoint", format!("{:?}", store.endpoint), "write http://host:port or https://host:port");
    }
    checks.range("store.request_timeout", store.request_timeout, TICK_MIN, TICK_MAX);
    checks.range("store.max_retries", store.max_retries, 0, RETRIES_MAX);
    checks.range("store.max_concurrent_requests", store.max_concurrent_requests, 1, COUNT_MAX);
}

fn check_tiering(checks: &mut Checks, tiering: &TieringConfig) {
    checks.range("tiering.workers", tiering.workers, 1, THREADS_MAX);
    checks.range("tiering.memory_max", tiering.memory_max, BUFFER_BYTES_MIN, MEMORY_BYTES_MAX);
    checks.range("tiering.data_file_bytes", tiering.data_file_bytes, BUFFER_BYTES_MIN, MEMORY_BYTES_MAX);
    checks.at_most("tiering.data_file_bytes", tiering.data_file_bytes, "tiering.memory_max", tiering.memory_max);
    checks.range("tiering.merge_target", tiering.merge_target, BUFFER_BYTES_MIN, MEMORY_BYTES_MAX);
    checks.range("tiering.row_group_bytes", tiering.row_group_bytes, BUFFER_BYTES_MIN, INT32_BYTES_MAX);
    let row_group = tiering.row_group_bytes;
    checks.at_most("tiering.row_group_bytes", row_group, "tiering.data_file_bytes", tiering.data_file_bytes);
    checks.range("tiering.page_bytes", tiering.page_bytes, BUFFER_BYTES_MIN, INT32_BYTES_MAX);
    checks.at_most("tiering.page_bytes", tiering.page_bytes, "tiering.row_group_bytes", row_group);
    checks.range("tiering.zstd_level", tiering.zstd_level, 1, 22);
    checks.bandwidth("tiering.archive_bytes_per_second", tiering.archive_bytes_per_second);
    let requests = tiering.archive_requests_per_second;
    checks.range("tiering.archive_requests_per_second", requests, 0, REQUEST_RATE_MAX);
    checks.range("tiering.produce_slowdown_percent", tiering.produce_slowdown_percent, 0, 1000);
    checks.range("tiering.interval", tiering.interval, TICK_MIN, TICK_MAX);
    checks.range("tiering.retry_backoff", tiering.retry_backoff, TICK_MIN, TICK_MAX);
    let backoff_max = tiering.retry_backoff_max;
    checks.range("tiering.retry_backoff_max", backoff_max, TICK_MIN, HumanDuration::secs(86_400));
    checks.at_most("tiering.retry_backoff", tiering.retry_backoff, "tiering.retry_backoff_max", backoff_max);
    checks.range("tiering.scrub_rate", tiering.scrub_rate, ByteSize::bytes(0), MEMORY_BYTES_MAX);
    checks.range("tiering.retired_min_age", tiering.retired_min_age, RETIRED_AGE_MIN, AGE_MAX);
    checks.range("tiering.orphan_min_age", tiering.orphan_min_age, ORPHAN_AGE_MIN, AGE_MAX);
}

fn check_cache(checks: &mut Checks, cache: &CacheConfig) {
    checks.range("cache.batches_max_bytes", cache.batches_max_bytes, ByteSize::bytes(0), MEMORY_BYTES_MAX);
    checks.range("cache.blocks_max_bytes", cache.blocks_max_bytes, ByteSize::bytes(0), MEMORY_BYTES_MAX);
    checks.range("cache.splits_max_bytes", cache.splits_max_bytes, ByteSize::bytes(0), MEMORY_BYTES_MAX);
    checks.range("cache.prefetch_row_groups", cache.prefetch_row_groups, 0, PREFETCH_MAX);
    checks.range("cache.max_concurrent_reads", cache.max_concurrent_reads, 1, THREADS_MAX);
    checks.bandwidth("cache.read_bytes_per_second", cache.read_bytes_per_second);
    checks.range("cache.read_requests_per_second", cache.read_requests_per_second, 0, REQUEST_RATE_MAX);
}

fn check_search(checks: &mut Checks, search: &SearchConfig) {
    checks.range("search.live_interval", search.live_interval, TICK_MIN, TICK_MAX);
    checks.range("search.live_chunk_bytes", search.live_chunk_bytes, BUFFER_BYTES_MIN, INT32_BYTES_MAX);
    checks.range("search.live_builders", search.live_builders, 0, THREADS_MAX);
    checks.range("search.max_concurrent_splits", search.max_concurrent_splits, 1, THREADS_MAX);
    checks.range("search.memory_max", search.memory_max, SEARCH_MEMORY_MIN, MEMORY_BYTES_MAX);
    checks.range("search.max_concurrent_queries", search.max_concurrent_queries, 1, COUNT_MAX);
    checks.range("search.limit_max", search.limit_max, 1, SEARCH_LIMIT_MAX);
    checks.range("search.timeout", search.timeout, TICK_MIN, TICK_MAX);
    checks.range("search.aggregation_buckets_max", search.aggregation_buckets_max, 1, AGGREGATION_BUCKETS_MAX);
    checks.range("search.aggregation_memory_max", search.aggregation_memory_max, BUFFER_BYTES_MIN, INT32_BYTES_MAX);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut Config)) -> Vec<(&'static str, String)> {
        let mut config = Config::default();
        change(&mut config);
        config.violations().into_iter().map(|violation| (violation.key, violation.allowed)).collect()
    }

    #[test]
    fn the_defaults_are_allowed() {
        assert!(refused(|_| ()).is_empty());
    }

    #[test]
    fn fields_are_held_against_each_other() {
        let keys = |change: fn(&mut Config)| refused(change).into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        assert_eq!(keys(|c| c.log.message_max_bytes = c.log.segment_bytes), ["log.message_max_bytes"; 2]);
        assert_eq!(
            keys(|c| c.kafka.request_max_bytes = ByteSize::mib(1)),
            ["kafka.control_request_max_bytes", "log.message_max_bytes"]
        );
        assert_eq!(keys(|c| c.kafka.request_memory_max = ByteSize::mib(50)), ["kafka.request_max_bytes"]);
        assert_eq!(
            keys(|c| c.groups.min_session_timeout = c.groups.max_session_timeout),
            ["groups.min_session_timeout"]
        );
        assert_eq!(keys(|c| c.tiering.row_group_bytes = ByteSize::gib(1)), ["tiering.row_group_bytes"]);
        assert_eq!(keys(|c| c.tiering.merge_target = ByteSize::bytes(1)), ["tiering.merge_target"]);
        assert_eq!(keys(|c| c.tiering.data_file_bytes = ByteSize::gib(2)), ["tiering.data_file_bytes"]);
        assert_eq!(keys(|c| c.tiering.page_bytes = ByteSize::mib(9)), ["tiering.page_bytes"]);
        assert_eq!(keys(|c| c.http.listen = c.kafka.listen), ["http.listen"]);
        assert_eq!(keys(|c| c.tiering.retry_backoff = HumanDuration::secs(61)), ["tiering.retry_backoff"]);
    }

    #[test]
    fn equal_ports_are_fine_where_they_cannot_meet() {
        assert!(refused(|c| (c.kafka.listen, c.http.listen) = (local(0), local(0))).is_empty());
        assert!(refused(|c| c.http.listen = SocketAddr::from(([127, 0, 0, 2], 9092))).is_empty());
        assert_eq!(refused(|c| c.http.listen = SocketAddr::from(([0, 0, 0, 0], 9092))).len(), 1);
    }

    fn local(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn an_address_that_clients_cannot_reach_is_refused() {
        let open = SocketAddr::from(([0, 0, 0, 0], 9092));
        assert_eq!(refused(|c| c.kafka.listen = open).len(), 1);
        for (advertised, good) in [
            ("broker.example.org:9092", true),
            ("[::1]:9092", true),
            ("10.0.0.7:1", true),
            ("broker", false),
            (":9092", false),
            ("a b:9092", false),
            ("broker:0", false),
            ("::1:9092", false),
        ] {
            let problems = refused(|c| {
                c.kafka.listen = open;
                c.kafka.advertised = advertised.to_owned();
            });
            assert_eq!(problems.is_empty(), good, "{advertised}");
        }
    }

    #[test]
    fn stores_are_named_by_a_known_scheme() {
        for url in ["", "s3://bucket/prefix", "gs://b", "az://c/p", "file:///tmp/cold"] {
            assert!(refused(|c| c.store.url = url.to_owned()).is_empty(), "{url}");
        }
        for url in ["/tmp/cold", "ftp://host", "s3://", "bucket"] {
            assert_eq!(refused(|c| c.store.url = url.to_owned()).len(), 1, "{url}");
        }
    }

    #[test]
    fn a_bandwidth_is_useful_or_without_limit() {
        let bandwidth = |size| refused(|c| c.tiering.archive_bytes_per_second = size);
        assert!(bandwidth(ByteSize::bytes(0)).is_empty() && bandwidth(ByteSize::mib(1)).is_empty());
        assert_eq!(bandwidth(ByteSize::bytes(1000)).len(), 1);
        assert_eq!(refused(|c| c.cache.read_bytes_per_second = ByteSize::bytes(1)).len(), 1);
    }

    #[test]
    fn ranges_say_both_numbers() {
        let problems = refused(|c| c.tiering.zstd_level = 23);
        assert_eq!(problems, [("tiering.zstd_level", "it must be 1 to 22".to_owned())]);
        let problems = refused(|c| c.log.segment_bytes = ByteSize::kib(32));
        assert_eq!(problems[0].1, "it must be 64KiB to 2147483647");
    }
}
