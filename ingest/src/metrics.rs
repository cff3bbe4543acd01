//! Metrics of this crate: names are constants, units last.

use std::sync::Arc;
use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge, Registry};

use crate::latency::ProduceLatency;

pub const PRODUCED_BYTES: &str = "thermocline_produced_bytes_total";
pub const PRODUCED_RECORDS: &str = "thermocline_produced_records_total";
pub const PRODUCE_SECONDS: &str = "thermocline_produce_seconds";
pub const FETCHED_BYTES: &str = "thermocline_fetched_bytes_total";
pub const FETCHED_UNCOPIED_BYTES: &str = "thermocline_fetched_uncopied_bytes_total";
pub const CONNECTIONS: &str = "thermocline_connections";
pub const REQUESTS_REFUSED: &str = "thermocline_requests_refused_total";
pub const FLUSH_SECONDS: &str = "thermocline_flush_seconds";
pub const FLUSHES: &str = "thermocline_flushes_total";
pub const LOG_FAILURES: &str = "thermocline_log_failures_total";
pub const HOT_BYTES: &str = "thermocline_hot_bytes";
pub const DISK_FREE_BYTES: &str = "thermocline_disk_free_bytes";
pub const DISK_RESERVE_REACHED: &str = "thermocline_disk_reserve_reached";
pub const COMPACTED_BYTES: &str = "thermocline_compacted_bytes_total";
pub const TRIMMED_EARLY_BYTES: &str = "thermocline_trimmed_early_bytes_total";
pub const GROUP_LAG_RECORDS: &str = "thermocline_group_lag_records";
pub const GROUP_LAG_SERIES_LEFT_OUT: &str = "thermocline_group_lag_series_left_out";
pub const TRANSACTIONAL_IDS: &str = "thermocline_transactional_ids";
pub const OPEN_TRANSACTIONS: &str = "thermocline_open_transactions";
pub const OLDEST_TRANSACTION_SECONDS: &str = "thermocline_oldest_transaction_seconds";
pub const FETCH_SESSIONS: &str = "thermocline_fetch_sessions";
pub const FETCH_SESSION_PARTITIONS: &str = "thermocline_fetch_session_partitions";
pub const FETCH_SESSIONS_EVICTED: &str = "thermocline_fetch_sessions_evicted_total";

/// 0.5 ms to about 16 s.
const PRODUCE_BUCKETS: (f64, f64, usize) = (0.0005, 2.0, 16);

/// Handles to every metric of this crate.
#[derive(Clone, Debug)]
pub struct IngestMetrics {
    pub produced_bytes: IntCounter,
    pub produced_records: IntCounter,
    produce_seconds: Histogram,
    /// The same latencies, for the throttle of work in the background.
    pub produce_latency: Arc<ProduceLatency>,
    pub fetched_bytes: IntCounter,
    pub fetched_uncopied_bytes: IntCounter,
    pub connections: IntGauge,
    pub requests_refused: IntCounter,
    pub flush_seconds: Histogram,
    pub flushes: IntCounter,
    pub log_failures: IntCounter,
    pub hot_bytes: IntGauge,
    pub disk_free_bytes: IntGauge,
    /// 1 while producers are refused.
    pub disk_reserve_reached: IntGauge,
    pub trimmed_early_bytes: IntCounter,
    pub fetch_sessions: IntGauge,
    pub fetch_session_partitions: IntGauge,
    pub fetch_sessions_evicted: IntCounter,
    pub compacted_bytes: IntCounter,
}

impl IngestMetrics {
    /// Registers the metrics. Fails where a name is registered already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let (first, factor, count) = PRODUCE_BUCKETS;
        let produce_seconds = HistogramOpts::new(PRODUCE_SECONDS, "time from a produce request to its ack")
            .buckets(prometheus::exponential_buckets(first, factor, count)?);
        let metrics = Self {
            produced_bytes: IntCounter::new(PRODUCED_BYTES, "record batch bytes appended for producers")?,
            produced_records: IntCounter::new(PRODUCED_RECORDS, "records appended for producers")?,
            produce_seconds: Histogram::with_opts(produce_seconds)?,
            produce_latency: Arc::default(),
            fetched_bytes: IntCounter::new(FETCHED_BYTES, "record batch bytes sent to consumers")?,
            fetched_uncopied_bytes: IntCounter::new(
                FETCHED_UNCOPIED_BYTES,
                "those of the bytes sent to consumers that went from a log file to the socket uncopied",
            )?,
            connections: IntGauge::new(CONNECTIONS, "open Kafka connections")?,
            requests_refused: IntCounter::new(REQUESTS_REFUSED, "requests that closed their connection")?,
            flush_seconds: Histogram::with_opts(HistogramOpts::new(FLUSH_SECONDS, "duration of one group commit"))?,
            flushes: IntCounter::new(FLUSHES, "group commits")?,
            log_failures: IntCounter::new(LOG_FAILURES, "partitions taken offline by a storage error")?,
            hot_bytes: IntGauge::new(HOT_BYTES, "bytes of the hot log")?,
            disk_free_bytes: IntGauge::new(DISK_FREE_BYTES, "free bytes of the disk that holds the hot log")?,
            disk_reserve_reached: IntGauge::new(
                DISK_RESERVE_REACHED,
                "1 while free disk is below log.disk_reserve and produce requests are refused",
            )?,
            trimmed_early_bytes: IntCounter::new(
                TRIMMED_EARLY_BYTES,
                "bytes of archived segments whose local copies went early because disk was tight",
            )?,
            fetch_sessions: IntGauge::new(FETCH_SESSIONS, "fetch sessions kept for consumers")?,
            fetch_session_partitions: IntGauge::new(FETCH_SESSION_PARTITIONS, "partitions of all fetch sessions")?,
            fetch_sessions_evicted: IntCounter::new(
                FETCH_SESSIONS_EVICTED,
                "fetch sessions that were dropped to make room for others",
            )?,
            compacted_bytes: IntCounter::new(COMPACTED_BYTES, "bytes of segments that compaction went through")?,
        };
        for counter in [
            &metrics.produced_bytes,
            &metrics.produced_records,
            &metrics.fetched_bytes,
            &metrics.fetched_uncopied_bytes,
            &metrics.requests_refused,
            &metrics.flushes,
            &metrics.log_failures,
            &metrics.trimmed_early_bytes,
            &metrics.fetch_sessions_evicted,
            &metrics.compacted_bytes,
        ] {
            registry.register(Box::new(counter.clone()))?;
        }
        for gauge in [
            &metrics.connections,
            &metrics.hot_bytes,
            &metrics.disk_free_bytes,
            &metrics.disk_reserve_reached,
            &metrics.fetch_sessions,
            &metrics.fetch_session_partitions,
        ] {
            registry.register(Box::new(gauge.clone()))?;
        }
        for histogram in [&metrics.flush_seconds, &metrics.produce_seconds] {
            registry.register(Box::new(histogram.clone()))?;
        }
        Ok(metrics)
    }

    /// A producer has its ack, so long after its request.
    pub fn observe_produce(&self, latency: Duration) {
        self.produce_seconds.observe(latency.as_secs_f64());
        self.produce_latency.record(latency);
    }
}
