use std::sync::Arc;

use proptest::prelude::*;

use super::*;

fn budget(bytes_per_second: u64, requests_per_second: u64) -> Budget {
    Budget::new(Rates { bytes_per_second, requests_per_second })
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[tokio::test(start_paused = true)]
async fn without_rates_nobody_waits() {
    let (budget, begun) = (budget(0, 0), Instant::now());
    for _ in 0..1000 {
        budget.take(u64::MAX).await;
        budget.charge(u64::MAX);
    }
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn requests_are_counted_whatever_their_size() {
    let (budget, begun) = (budget(0, 10), Instant::now());
    for _ in 0..30 {
        budget.take(0).await;
    }
    // One at the start, one every 100 ms.
    assert_eq!(begun.elapsed(), Duration::from_millis(2900));
}

#[tokio::test(start_paused = true)]
async fn a_request_larger_than_the_burst_begins_and_is_paid_for_afterwards() {
    let (budget, begun) = (budget(10, 0), Instant::now());
    budget.take(100).await;
    assert_eq!(begun.elapsed(), Duration::ZERO);
    budget.take(1).await;
    assert_eq!(begun.elapsed(), seconds(10));
}

#[tokio::test(start_paused = true)]
async fn idle_time_is_saved_up_to_the_burst() {
    let budget = budget(10, 0);
    tokio::time::sleep(seconds(3600)).await;
    let begun = Instant::now();
    for _ in 0..30 {
        budget.take(1).await;
    }
    assert_eq!(begun.elapsed(), Duration::from_millis(1900));
}

#[tokio::test(start_paused = true)]
async fn what_is_charged_afterwards_delays_the_next() {
    let (budget, begun) = (budget(10, 0), Instant::now());
    budget.take(0).await;
    budget.charge(50);
    budget.take(0).await;
    assert_eq!(begun.elapsed(), seconds(5));
}

#[tokio::test(start_paused = true)]
async fn requests_begin_in_the_order_in_which_they_came_and_cost_nothing_when_given_up() {
    let budget = Arc::new(budget(10, 0));
    let order = Arc::new(Mutex::new(Vec::new()));
    budget.take(10).await;
    let begun = Instant::now();
    let mut waiting: Vec<_> = (0..6)
        .map(|n| {
            let (budget, order) = (budget.clone(), order.clone());
            tokio::spawn(async move {
                budget.take(10).await;
                order.lock().push(n);
            })
        })
        .collect();
    tokio::task::yield_now().await;
    waiting.remove(3).abort();
    waiting.remove(0).abort();
    for task in waiting {
        task.await.unwrap();
    }
    assert_eq!(*order.lock(), [1, 2, 4, 5]);
    assert_eq!(begun.elapsed(), seconds(4));
}

proptest! {
    /// Requests that come at any time and have any size: none begins before its time, and over any span the budget
    /// gives out the rate over span and burst, and one request beyond.
    #[test]
    fn no_span_of_time_exceeds_the_rate(
        rate in 1_u64..1000,
        requests in prop::collection::vec((0_u64..5_000, 0_u64..2_000), 1..60),
    ) {
        let start = Instant::now();
        let bucket = || Bucket { per_second: 0, paid_at: start };
        let mut buckets = Buckets { bytes: Bucket { per_second: rate, paid_at: start }, requests: bucket() };
        let mut now = start;
        let mut begun: Vec<(Instant, u64)> = Vec::new();
        for (wait_ms, bytes) in requests {
            now += Duration::from_millis(wait_ms);
            if let Err(ready_at) = buckets.take(bytes, now) {
                prop_assert!(ready_at > now);
                now = ready_at;
                prop_assert!(buckets.take(bytes, now).is_ok(), "the time to ask again was wrong");
            }
            begun.push((now, bytes));
        }
        for (first, (from, _)) in begun.iter().enumerate() {
            for last in first..begun.len() {
                let span = begun[last].0 - *from + BURST;
                // All but the last, which is paid for afterwards; a byte for rounding each time.
                let bytes: u64 = begun[first..last].iter().map(|(_, bytes)| bytes).sum();
                let allowed = span.as_secs_f64() * rate as f64 + (last - first) as f64 + 1.0;
                prop_assert!(bytes as f64 <= allowed, "{bytes} bytes in {span:?} at {rate}/s");
            }
        }
    }
}
