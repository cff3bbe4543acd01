use proptest::prelude::*;

use super::*;

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[test]
fn a_window_is_empty_after_it_was_read() {
    let latency = ProduceLatency::default();
    latency.record(millis(3));
    assert_eq!(latency.take().total(), 1.0);
    let reading = latency.take();
    assert_eq!(reading.total(), 0.0);
    assert_eq!(reading.alone.quantile(0.99), None);
}

#[test]
fn an_ack_is_alone_if_nobody_worked_while_it_was_waited_for() {
    let latency = Arc::new(ProduceLatency::default());
    let counted = |of: Duration| {
        latency.record(of);
        let reading = latency.take();
        (reading.alone.total(), reading.beside.total())
    };
    assert_eq!(counted(Duration::MAX), (1.0, 0.0), "nobody has worked yet");
    let (first, second) = (latency.work(), latency.work());
    assert_eq!(counted(Duration::ZERO), (0.0, 1.0));
    drop(first);
    assert_eq!(counted(Duration::ZERO), (0.0, 1.0));
    drop(second);
    assert_eq!(counted(Duration::MAX), (0.0, 1.0), "requested while somebody worked");
}

#[test]
fn an_ack_soon_after_work_is_not_alone_yet() {
    assert!(was_quiet(None, Duration::MAX));
    assert!(was_quiet(Some(SETTLE + millis(3)), millis(3)));
    assert!(!was_quiet(Some(SETTLE + millis(2)), millis(3)));
    assert!(!was_quiet(Some(Duration::MAX - millis(1)), Duration::MAX));
}

#[test]
fn latencies_beyond_the_last_bucket_are_counted() {
    let counts = Counts::from_iter([Duration::MAX]);
    assert!(counts.quantile(0.99) > Some(Duration::from_secs(30)));
}

proptest! {
    #[test]
    fn buckets_follow_each_other_without_gaps(micros in 0_u64..60_000_000) {
        let bucket = bucket_of(micros);
        prop_assert!(micros <= bucket_end(bucket));
        prop_assert!(bucket == 0 || micros > bucket_end(bucket - 1));
    }

    /// Against the sorted list of what was counted.
    #[test]
    fn a_quantile_is_in_the_bucket_of_the_exact_one(mut micros in prop::collection::vec(0_u64..60_000_000, 1..500)) {
        let counts: Counts = micros.iter().map(|micros| Duration::from_micros(*micros)).collect();
        micros.sort_unstable();
        let exact = micros[(micros.len() * 99).div_ceil(100) - 1];
        prop_assert_eq!(counts.quantile(0.99), Some(middle(bucket_of(exact))));
    }

    #[test]
    fn beyond_a_latency_lies_what_is_beyond_its_bucket(micros in prop::collection::vec(0_u64..60_000_000, 1..500), bucket in 0..BUCKETS) {
        let counts: Counts = micros.iter().map(|micros| Duration::from_micros(*micros)).collect();
        let exact = micros.iter().filter(|micros| bucket_of(**micros) > bucket).count();
        prop_assert_eq!(counts.beyond(middle(bucket)), exact as f64);
    }
}
