//! What one kind of work on the store may take from another.

use std::time::Duration;

use prometheus::Registry;

use super::*;
use crate::budget::Rates;
use crate::testing::metrics;
use crate::throttle::Throttle;

fn limits(archive: Rates, reads: Rates) -> StoreLimits {
    let throttle = Throttle::new(0, Arc::default(), metrics().background_duty.clone(), Box::new(|| false));
    StoreLimits { archive, reads, throttle: Arc::new(throttle) }
}

fn requests(requests_per_second: u64) -> Rates {
    Rates { requests_per_second, ..Rates::default() }
}

fn in_memory() -> ColdStore {
    FaultyStore::healthy(Arc::new(InMemory::new())).cold(0)
}

#[tokio::test]
async fn a_full_lane_does_not_hold_up_the_other() {
    let store = in_memory();
    let (archive, read) = (store.of(Work::Archive), store.of(Work::Read));
    archive.put(&key("x"), "x".into()).await.unwrap();
    {
        let lanes = &store.shared.lanes;
        let all = u32::try_from(lanes.of(Work::Archive).permits.available_permits()).unwrap();
        let _uploads = lanes.of(Work::Maintenance).permits.acquire_many(all).await.unwrap();
        assert_eq!(read.get(&key("x")).await.unwrap(), "x");
        assert!(futures::poll!(std::pin::pin!(archive.get(&key("x")))).is_pending());
    }
    let all = u32::try_from(store.shared.lanes.of(Work::Read).permits.available_permits()).unwrap();
    let _readers = store.shared.lanes.of(Work::Read).permits.acquire_many(all).await.unwrap();
    assert_eq!(archive.get(&key("x")).await.unwrap(), "x");
}

#[tokio::test(start_paused = true)]
async fn each_lane_draws_from_its_own_budget() {
    let store = in_memory();
    store.limit(limits(requests(1), requests(2)));
    let begun = Instant::now();
    for work in [Work::Archive, Work::Maintenance, Work::Archive] {
        store.of(work).put(&key("x"), "x".into()).await.unwrap();
    }
    assert_eq!(begun.elapsed(), Duration::from_secs(2), "archiving and maintenance share one");
    for _ in 0..5 {
        store.of(Work::Read).get(&key("x")).await.unwrap();
    }
    // Three were saved up, and no more than the burst.
    assert_eq!(begun.elapsed(), Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn bytes_are_charged_before_writes_and_after_reads_of_unknown_size() {
    let store = in_memory();
    store.limit(limits(Rates { bytes_per_second: 100, ..Rates::default() }, Rates::default()));
    let (archive, begun) = (store.of(Work::Archive), Instant::now());
    archive.put(&key("x"), vec![0; 500].into()).await.unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO);
    archive.get(&key("x")).await.unwrap();
    assert_eq!(begun.elapsed(), Duration::from_secs(5));
    archive.get_range(&key("x"), 0..1).await.unwrap();
    assert_eq!(begun.elapsed(), Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn retries_draw_from_the_budget() {
    let store = FaultyStore::stumbling(Arc::new(InMemory::new()), 0, Fault::Before).cold(1);
    store.limit(limits(requests(1), Rates::default()));
    let begun = Instant::now();
    store.of(Work::Archive).put(&key("x"), "x".into()).await.unwrap();
    assert_eq!(begun.elapsed(), Duration::from_secs(1));
}

#[tokio::test]
async fn requests_and_bytes_are_counted_by_the_work_they_are_for() {
    let (store, metrics) = (in_memory(), Arc::new(TieringMetrics::new(&Registry::new()).unwrap()));
    store.observe(metrics.clone());
    store.of(Work::Archive).put(&key("x"), "12345".into()).await.unwrap();
    store.of(Work::Read).get_range(&key("x"), 0..2).await.unwrap();
    store.list_folder(&key("a")).await.unwrap();
    let counted = |operation, work| metrics.store_requests.with_label_values(&[operation, work]).get();
    assert_eq!((counted("put", "archive"), counted("put", "read")), (1, 0));
    assert_eq!((counted("get_range", "read"), counted("get_range", "archive")), (1, 0));
    assert_eq!(counted("list", "maintenance"), 1);
    assert_eq!(metrics.store_stored_bytes.with_label_values(&["archive"]).get(), 5);
    assert_eq!(metrics.store_fetched_bytes.with_label_values(&["read"]).get(), 2);
}

#[cfg(target_os = "linux")]
mod page_cache {
    use std::process::Command;

    use rustix::fs::{Advice, fadvise};

    use super::*;

    const PAGE_BYTES: usize = 4 << 10;
    const PAGES: usize = 1000;

    /// Pages of the file in memory, by `fincore` of util-linux. None where there is no such program.
    fn resident_pages(path: &Path) -> Option<usize> {
        let asked = Command::new("fincore").args(["--bytes", "--noheadings", "--output", "PAGES"]).arg(path).output();
        String::from_utf8(asked.ok()?.stdout).unwrap().trim().parse().ok()
    }

    /// Whether files of `dir` can leave memory at all; not so where the file system lives in it.
    fn forgets(dir: &Path) -> bool {
        let path = dir.join("probe");
        std::fs::write(&path, vec![1; PAGES * PAGE_BYTES]).unwrap();
        let file = std::fs::File::open(&path).unwrap();
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        resident_pages(&path).is_some_and(|pages| pages < PAGES)
    }

    /// Room for what a fast disk fetches while it is asked for.
    fn about(expected: usize, found: Option<usize>) -> bool {
        found.is_none_or(|found| found.abs_diff(expected) <= PAGES / 10)
    }

    #[tokio::test]
    async fn archiving_to_a_folder_leaves_no_trace_in_the_page_cache() {
        let dir = tempfile::tempdir().unwrap();
        let store = ColdStore::open(&store_config(0), dir.path()).unwrap();
        let (archive, read) = (store.of(Work::Archive), store.of(Work::Read));
        let path = |name: &str| dir.path().join("cold").join(name);
        let bytes: Bytes = (0..PAGES * PAGE_BYTES - 100).map(|n| (n / 1000) as u8).collect::<Vec<_>>().into();

        archive.put(&key("written"), bytes.clone()).await.unwrap();
        let written = resident_pages(&path("written"));
        let nothing = if forgets(dir.path()) { 0 } else { PAGES };
        assert!(about(nothing, written), "{written:?} pages stay after writing");

        archive.put(&key("verified"), bytes.clone()).await.unwrap();
        assert_eq!(archive.get(&key("verified")).await.unwrap(), bytes);
        assert_eq!(archive.get_range(&key("verified"), 5000..1_000_000).await.unwrap(), bytes.slice(5000..1_000_000));
        let verified = resident_pages(&path("verified"));
        assert!(about(nothing, verified), "{verified:?} pages stay after reading back");

        archive.put(&key("read"), bytes.clone()).await.unwrap();
        assert_eq!(read.get(&key("read")).await.unwrap(), bytes);
        assert_eq!(archive.get(&key("read")).await.unwrap(), bytes);
        let shared = resident_pages(&path("read"));
        assert!(about(PAGES, shared), "{shared:?} pages stay of what a consumer had read");
    }
}
