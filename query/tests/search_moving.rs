//! Searching without pause while segments move from hot to cold, a thousand times, and small files are merged: every
//! search finds every message exactly once.

mod support;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use support::{Failure, Parts, request};
use thermocline_config::CacheConfig;
use thermocline_query::search::TotalRelation;

const PARTITIONS: i32 = 4;
const MOVES: i64 = 1000;
/// Messages of one segment.
const SEGMENT: i64 = 3;
/// Hits of a page.
const PAGE: usize = 40;
/// The whole test; it takes a tenth of it where nothing else runs.
const PATIENCE: Duration = Duration::from_secs(600);

/// Messages are numbered in the order in which they are produced; the number is the timestamp too.
#[derive(Default)]
struct Progress {
    /// Numbers below it may be found.
    produced: AtomicI64,
    /// Numbers below it must be found.
    findable: AtomicI64,
    is_done: AtomicBool,
}

/// Produces a segment in each partition and moves them, until there have been [`MOVES`].
async fn move_on(parts: &Parts, progress: &Progress) -> Result<(), Failure> {
    let mut number = 0;
    for round in 0..MOVES / i64::from(PARTITIONS) {
        for partition in 0..PARTITIONS {
            let messages: Vec<_> = (number..number + SEGMENT).map(|n| (n, format!("needle {n}"))).collect();
            number += SEGMENT;
            progress.produced.store(number, Ordering::SeqCst);
            parts.produce(partition, &messages).await?;
        }
        // Now and then a segment is archived before it was ever indexed live.
        if round % 4 != 0 {
            parts.indexed().await?;
            progress.findable.store(number, Ordering::SeqCst);
        }
        parts.tiering.archive_now(&parts.topic, round % 3 != 0).await?;
        progress.findable.store(number, Ordering::SeqCst);
    }
    progress.is_done.store(true, Ordering::SeqCst);
    Ok(())
}

/// One search that counts and one page, held against what must and what may be found.
async fn look(parts: &Parts, progress: &Progress) -> Result<(), Failure> {
    let must = progress.findable.load(Ordering::SeqCst);
    let counted = parts.search.search(request("needle", 0)).await?;
    let may = progress.produced.load(Ordering::SeqCst);
    assert_eq!(counted.relation, TotalRelation::Exact);
    let total = counted.total as i64;
    assert!(must <= total && total <= may, "{total} of {must} to {may} messages: {:?}", counted.stats);

    let must = progress.findable.load(Ordering::SeqCst);
    let page = parts.search.search(request("needle", PAGE)).await?;
    let numbers: Vec<i64> = page.hits.iter().map(|hit| hit.record.timestamp.0).collect();
    assert!(numbers.is_sorted_by(|a, b| a > b), "doubled or out of order: {numbers:?}");
    let places: BTreeSet<_> = page.hits.iter().map(|hit| (hit.partition, hit.record.offset)).collect();
    assert_eq!(places.len(), numbers.len(), "doubled: {places:?}");
    for hit in &page.hits {
        assert_eq!(hit.record.value.as_deref(), Some(format!("needle {}", hit.record.timestamp.0).as_bytes()));
    }
    let lowest = numbers.last().copied().filter(|_| numbers.len() == PAGE).unwrap_or(0);
    let found: BTreeSet<i64> = numbers.into_iter().collect();
    let missing: Vec<i64> = (lowest..must).filter(|number| !found.contains(number)).collect();
    assert!(missing.is_empty(), "{missing:?} missing of {lowest}..{must}: {:?}", page.stats);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_is_found_once_during_a_thousand_moves() -> Result<(), Failure> {
    let parts = Parts::start(CacheConfig::default(), PARTITIONS, &[]).await?;
    // Merges in the background.
    tokio::spawn(parts.tiering.clone().run(parts.shutdown.clone()));
    let progress = Progress::default();
    let searches = async {
        let mut searches = 0;
        while !progress.is_done.load(Ordering::SeqCst) {
            look(&parts, &progress).await?;
            searches += 1;
        }
        look(&parts, &progress).await?;
        Ok::<_, Failure>(searches)
    };
    let both = async { tokio::try_join!(move_on(&parts, &progress), searches) };
    let ((), searches) = tokio::time::timeout(PATIENCE, both).await??;
    assert!(searches > 50, "only {searches} searches ran beside the moves");
    let files: usize = parts.topic.partitions.iter().map(|log| parts.tiering.manifest(log).files.len()).sum();
    assert!((files as i64) < MOVES, "no files were merged: there are {files}");
    parts.stop().await
}
