//! Metrics of search: names are constants, units last.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge, Registry};

pub const QUERIES: &str = "thermocline_search_queries_total";
pub const QUERIES_FAILED: &str = "thermocline_search_queries_failed_total";
pub const QUERY_SECONDS: &str = "thermocline_search_query_seconds";
pub const LIVE_DOCS: &str = "thermocline_search_live_docs";
pub const LIVE_BYTES: &str = "thermocline_search_live_bytes";
pub const LIVE_LAG_MS: &str = "thermocline_search_live_lag_ms";
pub const LIVE_MERGES: &str = "thermocline_search_live_merges_total";
pub const LIVE_FAILURES: &str = "thermocline_search_live_failures_total";
pub const LIVE_BATCHES_SKIPPED: &str = "thermocline_search_live_batches_skipped_total";

/// Handles to every metric of search.
#[derive(Clone, Debug)]
pub(crate) struct SearchMetrics {
    pub queries: IntCounter,
    pub queries_failed: IntCounter,
    pub query_seconds: Histogram,
    pub live_docs: IntGauge,
    pub live_bytes: IntGauge,
    pub live_lag_ms: IntGauge,
    pub live_merges: IntCounter,
    pub live_failures: IntCounter,
    pub live_batches_skipped: IntCounter,
}

impl SearchMetrics {
    /// Registers the metrics. Fails where a name is registered already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name, help| register(registry, IntCounter::new(name, help)?);
        let gauge = |name, help| register(registry, IntGauge::new(name, help)?);
        Ok(Self {
            queries: counter(QUERIES, "queries taken, refused ones included")?,
            queries_failed: counter(QUERIES_FAILED, "queries answered with an error")?,
            query_seconds: register(
                registry,
                Histogram::with_opts(HistogramOpts::new(QUERY_SECONDS, "duration of one query"))?,
            )?,
            live_docs: gauge(LIVE_DOCS, "messages in the splits of the live index")?,
            live_bytes: gauge(LIVE_BYTES, "size of the live index on disk")?,
            live_lag_ms: gauge(LIVE_LAG_MS, "how long the oldest unindexed message has waited, at most")?,
            live_merges: counter(LIVE_MERGES, "merges of live splits")?,
            live_failures: counter(LIVE_FAILURES, "failed steps of the live index")?,
            live_batches_skipped: counter(LIVE_BATCHES_SKIPPED, "batches the live index could not decode")?,
        })
    }
}

fn register<M: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    metric: M,
) -> Result<M, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}
