//! Metrics of this crate: names are constants, units last.

use prometheus::core::Collector;
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

pub const ARCHIVED_SEGMENTS: &str = "thermocline_archived_segments_total";
pub const ARCHIVED_RECORDS: &str = "thermocline_archived_records_total";
pub const ARCHIVED_LOG_BYTES: &str = "thermocline_archived_log_bytes_total";
pub const ARCHIVED_DATA_BYTES: &str = "thermocline_archived_data_bytes_total";
pub const ARCHIVED_INDEX_BYTES: &str = "thermocline_archived_index_bytes_total";
pub const ARCHIVED_RAW_BATCHES: &str = "thermocline_archived_raw_batches_total";
pub const ARCHIVE_FAILURES: &str = "thermocline_archive_failures_total";
pub const VERIFICATION_FAILURES: &str = "thermocline_verification_failures_total";
pub const JANITOR_FAILURES: &str = "thermocline_janitor_failures_total";
pub const FENCED: &str = "thermocline_manifest_fenced";
pub const STAGE_SECONDS: &str = "thermocline_archive_stage_seconds";
pub const EXPIRED_FILES: &str = "thermocline_expired_files_total";
pub const DELETED_OBJECTS: &str = "thermocline_deleted_objects_total";
pub const ORPHAN_BYTES: &str = "thermocline_orphan_bytes_total";
pub const MERGES: &str = "thermocline_merges_total";
pub const MERGED_FILES: &str = "thermocline_merged_files_total";
pub const MERGED_BYTES: &str = "thermocline_merged_bytes_total";
pub const MERGE_FAILURES: &str = "thermocline_merge_failures_total";
pub const STORE_REQUESTS: &str = "thermocline_store_requests_total";
pub const STORE_RETRIES: &str = "thermocline_store_retries_total";
pub const STORE_FAILURES: &str = "thermocline_store_failures_total";
pub const STORE_FETCHED_BYTES: &str = "thermocline_store_fetched_bytes_total";
pub const STORE_STORED_BYTES: &str = "thermocline_store_stored_bytes_total";

/// Label of [`STAGE_SECONDS`].
const STAGE: &str = "stage";
/// Label of the counters of the store.
const OPERATION: &str = "operation";
/// 5 ms to about 80 s: a stage works on up to a data file.
const STAGE_BUCKETS: (f64, f64, usize) = (0.005, 2.0, 15);

/// Handles to every metric of this crate.
#[derive(Clone, Debug)]
pub struct TieringMetrics {
    pub archived_segments: IntCounter,
    pub archived_records: IntCounter,
    pub archived_log_bytes: IntCounter,
    pub archived_data_bytes: IntCounter,
    pub archived_index_bytes: IntCounter,
    pub archived_raw_batches: IntCounter,
    pub archive_failures: IntCounter,
    /// The alarm: what the store gave back is not what was archived.
    pub verification_failures: IntCounter,
    pub janitor_failures: IntCounter,
    /// 1 once another broker with a higher epoch has taken over.
    pub fenced: IntGauge,
    pub expired_files: IntCounter,
    pub deleted_objects: IntCounter,
    pub orphan_bytes: IntCounter,
    pub merges: IntCounter,
    pub merged_files: IntCounter,
    pub merged_bytes: IntCounter,
    pub merge_failures: IntCounter,
    pub store_requests: IntCounterVec,
    pub store_retries: IntCounterVec,
    pub store_failures: IntCounterVec,
    pub store_fetched_bytes: IntCounter,
    pub store_stored_bytes: IntCounter,
    stage_seconds: HistogramVec,
}

impl TieringMetrics {
    /// Registers the metrics. Fails where a name is registered already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let by_operation =
            |name: &str, help: &str| registered(registry, IntCounterVec::new(Opts::new(name, help), &[OPERATION])?);
        let counter = |name: &str, help: &str| registered(registry, IntCounter::new(name, help)?);
        let (first, factor, count) = STAGE_BUCKETS;
        let stages = HistogramOpts::new(STAGE_SECONDS, "duration of one stage of archiving one data file")
            .buckets(prometheus::exponential_buckets(first, factor, count)?);
        Ok(Self {
            archived_segments: counter(ARCHIVED_SEGMENTS, "sealed segments wholly committed to the archive")?,
            archived_records: counter(ARCHIVED_RECORDS, "records committed to the archive")?,
            archived_log_bytes: counter(ARCHIVED_LOG_BYTES, "bytes of the log that the archive took")?,
            archived_data_bytes: counter(ARCHIVED_DATA_BYTES, "bytes of committed Parquet and raw objects")?,
            archived_index_bytes: counter(ARCHIVED_INDEX_BYTES, "bytes of committed splits")?,
            archived_raw_batches: counter(ARCHIVED_RAW_BATCHES, "batches archived as they were, being undecodable")?,
            archive_failures: counter(ARCHIVE_FAILURES, "attempts to archive a partition that failed")?,
            verification_failures: counter(
                VERIFICATION_FAILURES,
                "archived objects that did not read back as written; the hot copy was kept",
            )?,
            janitor_failures: counter(JANITOR_FAILURES, "rounds of retention or orphan collection that failed")?,
            fenced: registered(registry, IntGauge::new(FENCED, "1 once a broker with a higher epoch took over")?)?,
            expired_files: counter(EXPIRED_FILES, "data files dropped by retention")?,
            deleted_objects: counter(DELETED_OBJECTS, "objects deleted from the store")?,
            orphan_bytes: counter(ORPHAN_BYTES, "bytes of unreferenced objects that were collected")?,
            merges: counter(MERGES, "merges committed, each of which made one data file")?,
            merged_files: counter(MERGED_FILES, "data files that merges replaced")?,
            merged_bytes: counter(MERGED_BYTES, "bytes of the data, index and raw objects that merges wrote")?,
            merge_failures: counter(MERGE_FAILURES, "merges that failed; the files stayed as they were")?,
            store_requests: by_operation(STORE_REQUESTS, "requests sent to the store, retries included")?,
            store_retries: by_operation(STORE_RETRIES, "requests sent again after a transient failure")?,
            store_failures: by_operation(STORE_FAILURES, "requests given up")?,
            store_fetched_bytes: counter(STORE_FETCHED_BYTES, "bytes read from the store")?,
            store_stored_bytes: counter(STORE_STORED_BYTES, "bytes written to the store")?,
            stage_seconds: registered(registry, HistogramVec::new(stages, &[STAGE])?)?,
        })
    }

    /// The duration of one stage of the pipeline.
    pub fn stage_seconds(&self, stage: &str) -> Histogram {
        self.stage_seconds.with_label_values(&[stage])
    }
}

fn registered<M: Collector + Clone + 'static>(registry: &Registry, metric: M) -> Result<M, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_registered_once() {
        let registry = Registry::new();
        let metrics = TieringMetrics::new(&registry).unwrap();
        metrics.stage_seconds("stage").observe(0.1);
        metrics.store_requests.with_label_values(&["put"]).inc();
        assert!(registry.gather().iter().any(|family| family.name() == STAGE_SECONDS));
        assert!(TieringMetrics::new(&registry).is_err());
    }
}
