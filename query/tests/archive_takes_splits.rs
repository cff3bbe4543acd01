//! The archive takes its index over from the live one: what was indexed while it was hot is not indexed again, and is
//! found as before.

mod support;

use std::collections::BTreeMap;

use support::{Failure, Parts, TOPIC, request};
use thermocline_config::CacheConfig;
use thermocline_query::search::TotalRelation;
use thermocline_tiering::metrics;

/// Messages of a batch.
const BATCH: i64 = 25;
const BATCHES: i64 = 5;

/// Splits that were taken over so far.
fn taken(parts: &Parts) -> f64 {
    let families = parts.registry.gather();
    let counter = families.iter().find(|family| family.name() == metrics::ARCHIVED_SPLITS_TAKEN);
    counter.map_or(0.0, |family| family.get_metric().iter().map(|metric| metric.get_counter().get_value()).sum())
}

/// Produces batches, each of which gets a live split of its own.
async fn produce(parts: &Parts, from: i64) -> Result<(), Failure> {
    for batch in 0..BATCHES {
        let start = from + batch * BATCH;
        let messages: Vec<_> = (start..start + BATCH).map(|n| (n, format!("number {n} of group {}", n % 7))).collect();
        parts.produce(0, &messages).await?;
        parts.indexed().await?;
    }
    Ok(())
}

async fn check(parts: &Parts, messages: i64) -> Result<(), Failure> {
    for group in 0..7 {
        let page = parts.search.search(request(&format!("\"group {group}\""), 10_000)).await?;
        let numbers: Vec<i64> = page.hits.iter().map(|hit| hit.record.timestamp.0).collect();
        let expected: Vec<i64> = (0..messages).rev().filter(|n| n % 7 == group).collect();
        assert_eq!((numbers, page.relation), (expected, TotalRelation::Exact));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_segment_that_was_indexed_live_is_not_indexed_again() -> Result<(), Failure> {
    let parts = Parts::start(CacheConfig::default(), 1, &[]).await?;
    let messages = BATCHES * BATCH;
    produce(&parts, 0).await?;
    let report = parts.tiering.archive_now(&parts.topic, true).await?;
    assert_eq!((report.files, report.records as i64), (1, messages));
    assert!((taken(&parts) - 1.0).abs() < f64::EPSILON, "{} taken", taken(&parts));
    check(&parts, messages).await?;

    // In other settings than it was indexed in, it is indexed when it is archived.
    produce(&parts, messages).await?;
    let topics = parts.tiering.topics().clone();
    let set = |settings: &mut BTreeMap<String, String>| {
        settings.insert("search.tokenizer".to_owned(), "log".to_owned());
    };
    tokio::task::spawn_blocking(move || topics.alter(TOPIC, false, set).map(drop)).await??;
    parts.tiering.archive_now(&parts.topic, true).await?;
    check(&parts, 2 * messages).await?;

    produce(&parts, 2 * messages).await?;
    parts.tiering.archive_now(&parts.topic, true).await?;
    assert!(taken(&parts) >= 2.0, "{} taken", taken(&parts));
    check(&parts, 3 * messages).await?;
    parts.stop().await
}
