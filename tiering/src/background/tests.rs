use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use prometheus::Gauge;
use thermocline_ingest::latency::ProduceLatency;

use super::*;

fn background(slots: usize) -> Background {
    beside(Arc::default(), slots)
}

fn beside(latency: Arc<ProduceLatency>, slots: usize) -> Background {
    Background::new(
        Arc::new(Throttle::new(0, latency, Gauge::new("duty", "share").unwrap(), Box::new(|| false))),
        slots,
    )
}

#[cfg(target_os = "linux")]
fn nice() -> i32 {
    rustix::process::getpriority_process(None).unwrap()
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn jobs_and_their_threads_have_low_priority() {
    let before = nice();
    let priorities =
        background(1).run("job", || (nice(), spawn_low_priority("part", nice).unwrap().join().unwrap())).await.unwrap();
    assert_eq!(priorities, (NICE, NICE));
    assert_eq!(nice(), before, "the thread that waits keeps its own");
}

#[tokio::test]
async fn no_more_jobs_run_than_there_are_slots() {
    let background = background(2);
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let jobs = (0..20).map(|_| {
        let (running, most) = (running.clone(), most.clone());
        background.run("job", move || {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::yield_now();
            running.fetch_sub(1, Ordering::SeqCst);
        })
    });
    futures::future::try_join_all(jobs).await.unwrap();
    assert!(most.load(Ordering::SeqCst) <= 2);
    assert_eq!(background.slots.available_permits(), 2);
}

#[tokio::test]
async fn a_job_whose_caller_is_gone_keeps_its_slot_until_it_ends() {
    let background = background(1);
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (begun, has_begun) = oneshot::channel();
    let job = tokio::spawn({
        let background = background.clone();
        async move {
            let work = move || {
                begun.send(()).unwrap();
                wait.recv().unwrap_err();
            };
            background.run("job", work).await
        }
    });
    has_begun.await.unwrap();
    job.abort();
    assert!(job.await.unwrap_err().is_cancelled());
    assert_eq!(background.slots.available_permits(), 0);
    drop(go);
    assert_eq!(background.run("next", || 7).await.unwrap(), 7);
}

#[tokio::test]
async fn a_panic_is_an_error_and_frees_the_slot() {
    let background = background(1);
    let outcome = background.run("job", || -> u32 { panic!("as a test wants it") }).await;
    assert!(matches!(outcome, Err(BackgroundError::Panicked { name: "job" })));
    assert_eq!(background.run("next", || 7).await.unwrap(), 7);
}

#[tokio::test]
async fn threads_of_a_job_rest_by_its_throttle() {
    let has_pace = || PACE.with_borrow(Option::is_some);
    assert!(!has_pace());
    pause();
    let background = background(1);
    let part = move || spawn_low_priority("part", has_pace).unwrap().join().unwrap();
    assert!(background.run("job", part).await.unwrap());
    assert!(!spawn_low_priority("part of nothing", has_pace).unwrap().join().unwrap());
}

#[tokio::test]
async fn a_thread_works_except_while_it_waits() {
    let latency = Arc::new(ProduceLatency::default());
    let background = beside(latency.clone(), 1);
    let is_alone = move || {
        latency.record(Duration::ZERO);
        latency.take().alone.total() > 0.0
    };
    assert!(is_alone());
    let job = {
        let is_alone = is_alone.clone();
        // It takes a moment until the work before it is no longer felt.
        let becomes_alone = {
            let is_alone = is_alone.clone();
            move || std::iter::repeat_with(&is_alone).any(|alone| alone)
        };
        move || (is_alone(), waiting(becomes_alone), is_alone())
    };
    assert_eq!(background.run("job", job).await.unwrap(), (false, true, false));
}
