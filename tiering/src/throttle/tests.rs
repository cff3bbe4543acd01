use proptest::prelude::*;

use super::*;

const TARGET: Duration = Duration::from_millis(20);
/// Windows from the lowest duty cycle to the highest.
const RECOVERY: usize = 15;

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[test]
fn late_acks_halve_the_share_and_it_comes_back_in_steps() {
    let mut controller = Controller::new(TARGET);
    controller.judge(Some(millis(21)));
    assert_eq!(controller.duty(), 0.5);
    controller.judge(Some(millis(20)));
    assert_eq!(controller.duty(), 0.55);
    controller.judge(None);
    assert!((controller.duty() - 0.6).abs() < 1e-9);
}

#[test]
fn without_a_target_nothing_is_late() {
    let mut controller = Controller::new(Duration::ZERO);
    controller.judge(Some(Duration::MAX));
    assert_eq!(controller.duty(), 1.0);
}

#[test]
fn rest_makes_the_share() {
    assert_eq!(rest_after(millis(10), 1.0), Duration::ZERO);
    assert_eq!(rest_after(millis(10), 0.5), millis(10));
    assert_eq!(rest_after(millis(10), 0.25), millis(30));
    assert_eq!(rest_after(millis(10), 0.0), millis(30), "no more than at the minimum");
}

proptest! {
    /// Whatever producers experience, the share stays within its bounds.
    #[test]
    fn the_share_stays_within_its_bounds(latencies in prop::collection::vec(prop::option::of(0_u64..100_000), 1..200)) {
        let mut controller = Controller::new(TARGET);
        for latency in latencies {
            controller.judge(latency.map(Duration::from_micros));
            prop_assert!((DUTY_MIN..=1.0).contains(&controller.duty()));
        }
    }

    /// A machine whose produce latency grows with the share of background work, and whose load changes over time: the
    /// share goes down to the minimum where the load alone is too much, comes back to 1 where there is room for all,
    /// and between the two is late in one window of several only.
    #[test]
    fn the_share_follows_the_load(
        phases in prop::collection::vec((0_u64..40_000, 0_u64..40_000), 1..8),
    ) {
        let mut controller = Controller::new(TARGET);
        for (alone_micros, added_micros) in phases {
            let latency = |duty: f64| Duration::from_micros(alone_micros + (added_micros as f64 * duty) as u64);
            for _ in 0..RECOVERY {
                controller.judge(Some(latency(controller.duty())));
            }
            let mut late = 0;
            let mut shares = 0.0;
            for _ in 0..RECOVERY {
                late += usize::from(latency(controller.duty()) > TARGET);
                shares += controller.duty();
                controller.judge(Some(latency(controller.duty())));
            }
            if latency(DUTY_MIN) > TARGET {
                prop_assert_eq!(controller.duty(), DUTY_MIN);
            } else if latency(1.0) <= TARGET {
                prop_assert_eq!(controller.duty(), 1.0);
            } else {
                let bearable = (TARGET.as_micros() as u64 - alone_micros) as f64 / added_micros as f64;
                prop_assert!(shares / RECOVERY as f64 <= bearable + DUTY_STEP, "{shares} {bearable}");
                // From the cut back to the limit takes a window per step.
                let steps = ((bearable * (1.0 - DUTY_CUT)).min(bearable - DUTY_MIN) / DUTY_STEP).floor() as usize;
                prop_assert!(late <= RECOVERY / (steps + 1) + 1, "late in {late} windows, {steps} steps");
            }
        }
    }
}

/// The throttle with time moved by hand.
#[test]
fn a_throttle_judges_once_a_window_and_forgets_old_readings() {
    let latency = Arc::new(LatencyWindow::default());
    let throttle = Throttle::new(TARGET, latency.clone(), Gauge::new("duty", "share").unwrap());
    let mut state = throttle.state.lock();
    let begun = state.judged_at;
    latency.record(millis(500));
    assert!(!throttle.judge_if_due(&mut state, begun + WINDOW / 2));
    assert_eq!(throttle.gauge.get(), 1.0);
    assert!(throttle.judge_if_due(&mut state, begun + WINDOW));
    assert_eq!(throttle.gauge.get(), 0.5);
    // Nobody asked for an hour: what was counted meanwhile is not the present.
    latency.record(millis(500));
    assert!(!throttle.judge_if_due(&mut state, begun + WINDOW * 3600));
    assert_eq!(latency.take_p99(), None);
    assert_eq!(throttle.gauge.get(), 0.5);
    assert!(throttle.judge_if_due(&mut state, begun + WINDOW * 3601));
    assert_eq!(throttle.gauge.get(), 0.55);
}

#[test]
fn at_full_share_nobody_rests() {
    let latency = Arc::new(LatencyWindow::default());
    let throttle = Throttle::new(TARGET, latency, Gauge::new("duty", "share").unwrap());
    throttle.rest(Duration::from_secs(1_000_000));
    assert_eq!(throttle.gauge.get(), 1.0);
}
