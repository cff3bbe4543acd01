use proptest::prelude::*;

use super::*;

#[test]
fn a_window_is_empty_after_it_was_read() {
    let window = LatencyWindow::default();
    assert_eq!(window.take_p99(), None);
    window.record(Duration::from_millis(3));
    assert!(window.take_p99().is_some());
    assert_eq!(window.take_p99(), None);
}

#[test]
fn a_quantile_leaves_one_of_a_hundred_out() {
    let window = LatencyWindow::default();
    (0..99).for_each(|_| window.record(Duration::from_micros(2)));
    window.record(Duration::from_secs(1));
    assert_eq!(window.take_p99(), Some(Duration::from_micros(2)));
    (0..98).for_each(|_| window.record(Duration::from_micros(2)));
    (0..2).for_each(|_| window.record(Duration::from_secs(1)));
    assert!(window.take_p99() >= Some(Duration::from_secs(1)));
}

#[test]
fn latencies_beyond_the_last_bucket_are_counted() {
    let window = LatencyWindow::default();
    window.record(Duration::MAX);
    assert!(window.take_p99() > Some(Duration::from_secs(30)));
}

proptest! {
    #[test]
    fn buckets_follow_each_other_without_gaps(micros in 0_u64..60_000_000) {
        let bucket = bucket_of(micros);
        prop_assert!(micros <= bucket_end(bucket));
        prop_assert!(bucket == 0 || micros > bucket_end(bucket - 1));
    }

    /// Against the sorted list of what was recorded.
    #[test]
    fn a_quantile_is_a_quarter_too_large_at_most(mut micros in prop::collection::vec(0_u64..60_000_000, 1..500)) {
        let window = LatencyWindow::default();
        micros.iter().for_each(|micros| window.record(Duration::from_micros(*micros)));
        micros.sort_unstable();
        let exact = micros[(micros.len() * 99).div_ceil(100) - 1];
        let found = window.take_p99().unwrap().as_micros() as u64;
        prop_assert!(found >= exact && found <= exact + exact / 4, "{exact} {found}");
    }
}
