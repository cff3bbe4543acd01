//! Metrics of this crate: names are constants, units last.

use prometheus::core::Collector;
use prometheus::{
    CounterVec, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

pub const ARCHIVED_SEGMENTS: &str = "thermocline_archived_segments_total";
pub const ARCHIVED_RECORDS: &str = "thermocline_archived_records_total";
pub const ARCHIVED_LOG_BYTES: &str = "thermocline_archived_log_bytes_total";
pub const ARCHIVED_DATA_BYTES: &str = "thermocline_archived_data_bytes_total";
pub const ARCHIVED_INDEX_BYTES: &str = "thermocline_archived_index_bytes_total";
pub const ARCHIVED_RAW_BATCHES: &str = "thermocline_archived_raw_batches_total";
pub const ARCHIVED_SPLITS_TAKEN: &str = "thermocline_archived_splits_taken_total";
pub const ARCHIVE_FAILURES: &str = "thermocline_archive_failures_total";
pub const VERIFICATION_FAILURES: &str = "thermocline_verification_failures_total";
pub const SCRUBBED_FILES: &str = "thermocline_scrubbed_files_total";
pub const SCRUBBED_BYTES: &str = "thermocline_scrubbed_bytes_total";
pub const SCRUB_DAMAGE: &str = "thermocline_scrub_damage_total";
pub const SCRUB_DAMAGED_FILES: &str = "thermocline_scrub_damaged_files";
pub const SCRUB_PASS_SECONDS: &str = "thermocline_scrub_pass_seconds";
pub const JANITOR_FAILURES: &str = "thermocline_janitor_failures_total";
pub const FENCED: &str = "thermocline_manifest_fenced";
pub const STAGE_SECONDS: &str = "thermocline_archive_stage_seconds";
pub const EXPIRED_FILES: &str = "thermocline_expired_files_total";
pub const DELETED_OBJECTS: &str = "thermocline_deleted_objects_total";
pub const REMOVALS_PENDING: &str = "thermocline_topic_removals_pending";
pub const ORPHAN_OBJECTS: &str = "thermocline_orphan_objects";
pub const ORPHAN_BYTES: &str = "thermocline_orphan_bytes";
pub const COLLECTED_ORPHAN_OBJECTS: &str = "thermocline_collected_orphan_objects_total";
pub const COLLECTED_ORPHAN_BYTES: &str = "thermocline_collected_orphan_bytes_total";
pub const MERGES: &str = "thermocline_merges_total";
pub const MERGED_FILES: &str = "thermocline_merged_files_total";
pub const MERGED_BYTES: &str = "thermocline_merged_bytes_total";
pub const MERGE_FAILURES: &str = "thermocline_merge_failures_total";
pub const REINDEXED_FILES: &str = "thermocline_reindexed_files_total";
pub const REINDEXED_BYTES: &str = "thermocline_reindexed_bytes_total";
pub const REINDEX_FAILURES: &str = "thermocline_reindex_failures_total";
pub const REINDEX_PENDING: &str = "thermocline_reindex_pending_files";
pub const STORE_REQUESTS: &str = "thermocline_store_requests_total";
pub const STORE_RETRIES: &str = "thermocline_store_retries_total";
pub const STORE_FAILURES: &str = "thermocline_store_failures_total";
pub const STORE_FETCHED_BYTES: &str = "thermocline_store_fetched_bytes_total";
pub const STORE_STORED_BYTES: &str = "thermocline_store_stored_bytes_total";
pub const STORE_BUDGET_SECONDS: &str = "thermocline_store_budget_seconds_total";
pub const BACKGROUND_DUTY: &str = "thermocline_background_duty_ratio";

/// Label of [`STAGE_SECONDS`].
const STAGE: &str = "stage";
/// Labels of the counters of the store.
const OPERATION: &str = "operation";
const WORK: &str = "work";
/// Label of the gauges of orphans.
const AGE: &str = "age";
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
    pub archived_splits_taken: IntCounter,
    pub archive_failures: IntCounter,
    /// The alarm: what the store gave back is not what was archived.
    pub verification_failures: IntCounter,
    pub scrubbed_files: IntCounter,
    pub scrubbed_bytes: IntCounter,
    /// Another alarm: an archived file was found damaged, or damaged in another way than before.
    pub scrub_damage: IntCounter,
    /// Those known to be damaged now.
    pub scrub_damaged_files: IntGauge,
    /// The last walk over all files.
    pub scrub_pass_seconds: Gauge,
    pub janitor_failures: IntCounter,
    /// 1 once another broker with a higher epoch has taken over.
    pub fenced: IntGauge,
    pub expired_files: IntCounter,
    pub deleted_objects: IntCounter,
    /// Deleted topics that still have something in the store.
    pub removals_pending: IntGauge,
    /// What the last sweep saw, by whether it is old enough to be collected.
    pub orphan_objects: IntGaugeVec,
    pub orphan_bytes: IntGaugeVec,
    pub collected_orphan_objects: IntCounter,
    pub collected_orphan_bytes: IntCounter,
    pub merges: IntCounter,
    pub merged_files: IntCounter,
    pub merged_bytes: IntCounter,
    pub merge_failures: IntCounter,
    pub reindexed_files: IntCounter,
    pub reindexed_bytes: IntCounter,
    pub reindex_failures: IntCounter,
    /// Archived files that are indexed otherwise than their topics ask for.
    pub reindex_pending: IntGauge,
    pub store_requests: IntCounterVec,
    pub store_retries: IntCounterVec,
    pub store_failures: IntCounterVec,
    pub store_fetched_bytes: IntCounterVec,
    pub store_stored_bytes: IntCounterVec,
    pub store_budget_seconds: CounterVec,
    /// The share of its time that background work works.
    pub background_duty: Gauge,
    stage_seconds: HistogramVec,
}

impl TieringMetrics {
    /// Registers the metrics. Fails where a name is registered already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let labelled = |name: &str, labels: &[&str], help: &str| {
            registered(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
        };
        let by_operation = |name: &str, help: &str| labelled(name, &[OPERATION, WORK], help);
        let by_work = |name: &str, help: &str| labelled(name, &[WORK], help);
        let by_age = |name: &str, help: &str| registered(registry, IntGaugeVec::new(Opts::new(name, help), &[AGE])?);
        let budget_seconds = Opts::new(STORE_BUDGET_SECONDS, "time that requests waited for their budget");
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
            archived_splits_taken: counter(
                ARCHIVED_SPLITS_TAKEN,
                "archived files whose split was merged from live ones instead of indexing again",
            )?,
            archive_failures: counter(ARCHIVE_FAILURES, "attempts to archive a partition that failed")?,
            verification_failures: counter(
                VERIFICATION_FAILURES,
                "archived objects that did not read back as written; the hot copy was kept",
            )?,
            scrubbed_files: counter(SCRUBBED_FILES, "archived files that the scrub has read again")?,
            scrubbed_bytes: counter(SCRUBBED_BYTES, "bytes of archived files that the scrub has read again")?,
            scrub_damage: counter(SCRUB_DAMAGE, "archived files that the scrub found damaged")?,
            scrub_damaged_files: registered(
                registry,
                IntGauge::new(SCRUB_DAMAGED_FILES, "archived files that are known to be damaged now")?,
            )?,
            scrub_pass_seconds: registered(
                registry,
                Gauge::new(SCRUB_PASS_SECONDS, "duration of the last scrub of all archived files")?,
            )?,
            janitor_failures: counter(JANITOR_FAILURES, "rounds of retention or orphan collection that failed")?,
            fenced: registered(registry, IntGauge::new(FENCED, "1 once a broker with a higher epoch took over")?)?,
            expired_files: counter(EXPIRED_FILES, "data files dropped by retention")?,
            deleted_objects: counter(DELETED_OBJECTS, "objects deleted from the store")?,
            removals_pending: registered(
                registry,
                IntGauge::new(REMOVALS_PENDING, "deleted topics that may still have objects in the store")?,
            )?,
            orphan_objects: by_age(ORPHAN_OBJECTS, "unreferenced objects that the last sweep of the store saw")?,
            orphan_bytes: by_age(ORPHAN_BYTES, "bytes of unreferenced objects that the last sweep of the store saw")?,
            collected_orphan_objects: counter(COLLECTED_ORPHAN_OBJECTS, "unreferenced objects that were collected")?,
            collected_orphan_bytes: counter(
                COLLECTED_ORPHAN_BYTES,
                "bytes of unreferenced objects that were collected",
            )?,
            merges: counter(MERGES, "merges committed, each of which made one data file")?,
            merged_files: counter(MERGED_FILES, "data files that merges replaced")?,
            merged_bytes: counter(MERGED_BYTES, "bytes of the data, index and raw objects that merges wrote")?,
            merge_failures: counter(MERGE_FAILURES, "merges that failed; the files stayed as they were")?,
            reindexed_files: counter(REINDEXED_FILES, "archived files whose index was replaced or dropped")?,
            reindexed_bytes: counter(REINDEXED_BYTES, "bytes of the splits that replaced others")?,
            reindex_failures: counter(REINDEX_FAILURES, "attempts to index a file again that failed")?,
            reindex_pending: registered(
                registry,
                IntGauge::new(REINDEX_PENDING, "archived files that are indexed otherwise than their topics ask for")?,
            )?,
            store_requests: by_operation(STORE_REQUESTS, "requests sent to the store, retries included")?,
            store_retries: by_operation(STORE_RETRIES, "requests sent again after a transient failure")?,
            store_failures: by_operation(STORE_FAILURES, "requests given up")?,
            store_fetched_bytes: by_work(STORE_FETCHED_BYTES, "bytes read from the store")?,
            store_stored_bytes: by_work(STORE_STORED_BYTES, "bytes written to the store")?,
            store_budget_seconds: registered(registry, CounterVec::new(budget_seconds, &[WORK])?)?,
            background_duty: registered(
                registry,
                Gauge::new(BACKGROUND_DUTY, "share of its time that background work works, lower when producers wait")?,
            )?,
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
        metrics.store_requests.with_label_values(&["put", "archive"]).inc();
        assert!(registry.gather().iter().any(|family| family.name() == STAGE_SECONDS));
        assert!(TieringMetrics::new(&registry).is_err());
    }
}
