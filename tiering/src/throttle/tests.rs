use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

const SLOWDOWN_PERCENT: u32 = 20;

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn reading(alone: &[(u64, usize)], beside: &[(u64, usize)]) -> Reading {
    let counts = |of: &[(u64, usize)]| of.iter().flat_map(|(ms, n)| std::iter::repeat_n(millis(*ms), *n)).collect();
    Reading { alone: counts(alone), beside: counts(beside) }
}

fn throttle(latency: &Arc<ProduceLatency>, urgent: impl Fn() -> bool + Send + Sync + 'static) -> Throttle {
    Throttle::new(SLOWDOWN_PERCENT, latency.clone(), Gauge::new("duty", "share").unwrap(), Box::new(urgent))
}

fn taught() -> Controller {
    let mut controller = Controller::new(SLOWDOWN_PERCENT);
    controller.learn(&reading(&[(5, 1000)], &[]).alone);
    controller
}

#[test]
fn late_acks_cut_the_share_and_it_comes_back_in_steps() {
    let mut controller = taught();
    controller.judge(&reading(&[], &[(5, 490), (9, 10)]));
    let cut = DUTY_LIVE_FIRST * DUTY_CUT;
    assert!((controller.duty() - cut).abs() < 1e-9);
    (0..2).for_each(|_| controller.judge(&reading(&[], &[(5, 500)])));
    assert!((controller.duty() - cut - DUTY_STEP).abs() < 1e-9);
}

#[test]
fn one_of_a_hundred_may_be_late() {
    let mut controller = taught();
    for _ in 0..100 {
        controller.judge(&reading(&[], &[(5, 99), (9, 1)]));
    }
    assert_eq!(controller.duty(), DUTY_LIVE_FIRST);
}

#[test]
fn late_acks_are_made_up_for() {
    let mut controller = taught();
    controller.judge(&reading(&[], &[(5, 480), (9, 25)]));
    let cut = controller.duty();
    // Twenty beyond the allowed five; every quiet period makes up for five.
    for _ in 0..4 {
        controller.judge(&reading(&[], &[(5, 500)]));
        assert_eq!(controller.duty(), cut);
    }
    controller.judge(&reading(&[], &[(5, 500)]));
    assert!((controller.duty() - cut - DUTY_STEP).abs() < 1e-9);
    // A stall is not made up for all day.
    controller.judge(&reading(&[], &[(500, 500)]));
    (0..10).for_each(|_| controller.judge(&reading(&[], &[(5, 500)])));
    assert!(controller.duty() > DUTY_MIN);
}

#[test]
fn producers_that_come_back_find_what_they_bore() {
    let mut controller = taught();
    controller.judge(&reading(&[], &[(5, 1000)]));
    let borne = controller.duty();
    assert!((borne - DUTY_LIVE_FIRST - DUTY_STEP).abs() < 1e-9);
    (0..20).for_each(|_| controller.judge(&Reading::default()));
    assert_eq!(controller.duty(), 1.0);
    controller.judge(&reading(&[], &[(5, 10)]));
    assert_eq!(controller.duty(), borne);
}

#[test]
fn a_few_acks_are_not_taken_for_a_trend() {
    let mut controller = taught();
    controller.judge(&reading(&[], &[(100, 3)]));
    assert_eq!(controller.duty(), DUTY_LIVE_FIRST);
    controller.judge(&reading(&[], &[(100, 3)]));
    assert_eq!(controller.duty(), DUTY_LIVE_FIRST * DUTY_CUT);
}

#[test]
fn a_stall_of_the_disk_does_not_make_late_acks_usual() {
    let mut controller = taught();
    controller.learn(&reading(&[(5, 400), (214, 100)], &[]).alone);
    controller.learn(&reading(&[(5, 150)], &[]).alone);
    controller.judge(&reading(&[], &[(5, 490), (9, 10)]));
    assert!(controller.duty() < DUTY_LIVE_FIRST);
    // A disk that has become slower is usual after some time.
    (0..SAMPLES_MAX).for_each(|_| controller.learn(&reading(&[(20, 100)], &[]).alone));
    assert!(controller.goal().is_some_and(|goal| goal > millis(20)));
}

#[test]
fn nobody_is_late_while_nothing_was_learnt() {
    let mut controller = Controller::new(SLOWDOWN_PERCENT);
    controller.judge(&reading(&[(1, 50)], &[(500, 500)]));
    assert_eq!(controller.duty(), DUTY_LIVE_FIRST);
}

#[test]
fn without_a_goal_nothing_is_late() {
    let mut controller = Controller::new(0);
    controller.judge(&reading(&[(1, 1000)], &[(500, 500)]));
    assert_eq!(controller.duty(), 1.0);
}

#[test]
fn without_producers_all_time_is_for_work() {
    let mut controller = taught();
    controller.judge(&reading(&[], &[(500, 500)]));
    assert!(controller.duty() < 1.0);
    (0..20).for_each(|_| controller.judge(&Reading::default()));
    assert_eq!(controller.duty(), 1.0);
}

proptest! {
    /// Whatever producers experience, the share stays within its bounds.
    #[test]
    fn the_share_stays_within_its_bounds(
        periods in prop::collection::vec((0_u64..100, 0_usize..300, 0_u64..100, 0_usize..300), 1..100),
    ) {
        let mut controller = Controller::new(SLOWDOWN_PERCENT);
        for (alone, alone_acks, beside, beside_acks) in periods {
            controller.judge(&reading(&[(alone, alone_acks)], &[(beside, beside_acks)]));
            prop_assert!((DUTY_MIN..=1.0).contains(&controller.duty()));
        }
    }

    /// A machine on which one ack in a hundred is slow by itself, and a larger share of those beside background work:
    /// the goal is met wherever some share of work meets it, and work gets about as much as it may.
    #[test]
    fn the_goal_is_met_and_work_gets_what_is_left(seed in any::<u64>(), slow_beside in 0.005_f64..0.1) {
        const ACKS: usize = 500;
        const PERIODS: usize = 300;
        let mut random = StdRng::seed_from_u64(seed);
        let mut controller = Controller::new(SLOWDOWN_PERCENT);
        let slow_alone = 0.002;
        let (mut late, mut duties) = (0.0, 0.0);
        for period in 0..2 * PERIODS {
            let duty = controller.duty();
            let beside = (ACKS as f64 * duty) as usize;
            let mut acks = |count: usize, slow: f64| -> Counts {
                (0..count).map(|_| if random.random_bool(slow) { millis(9) } else { millis(5) }).collect()
            };
            let reading = Reading { alone: acks(ACKS - beside, slow_alone), beside: acks(beside, slow_beside) };
            if period >= PERIODS {
                late += reading.alone.beyond(millis(7)) + reading.beside.beyond(millis(7));
                duties += duty;
            }
            controller.judge(&reading);
        }
        let (late, duty) = (late / (ACKS * PERIODS) as f64, duties / PERIODS as f64);
        let bearable = (0.01 - slow_alone) / (slow_beside - slow_alone);
        if bearable > DUTY_MIN {
            prop_assert!(late < 0.0108, "{late} of the acks are late at {duty}");
        }
        prop_assert!(duty > bearable.min(DUTY_LIVE_MAX) * 0.7, "{duty} of {bearable}");
    }
}

/// The throttle with time moved by hand.
#[test]
fn everybody_works_and_everybody_rests() {
    let latency = Arc::new(ProduceLatency::default());
    let throttle = throttle(&latency, || false);
    let began = throttle.state.lock().period_began;
    let rest_at = |now| throttle.rest_at(&mut throttle.state.lock(), now);
    (0..1000).for_each(|_| latency.record(millis(5)));
    assert_eq!(rest_at(began + PERIOD.mul_f64(0.95)), None);
    assert_eq!(rest_at(began + PERIOD), None);
    assert_eq!(throttle.gauge.get(), DUTY_LIVE_FIRST + DUTY_STEP);
    let began = began + PERIOD;
    assert_eq!(rest_at(began + PERIOD.mul_f64(DUTY_LIVE_FIRST)), None);
    assert_eq!(rest_at(began + PERIOD - millis(50)), Some(began + PERIOD));
    assert_eq!(rest_at(began + PERIOD), None);
}

#[test]
fn nobody_rests_where_the_disk_is_tight() {
    let latency = Arc::new(ProduceLatency::default());
    let tight = Arc::new(AtomicBool::new(false));
    let throttle = throttle(&latency, {
        let tight = tight.clone();
        move || tight.load(Ordering::Relaxed)
    });
    throttle.state.lock().controller.duty = DUTY_MIN;
    let began = throttle.state.lock().period_began;
    let rest_at = |now| throttle.rest_at(&mut throttle.state.lock(), now);
    assert!(rest_at(began + PERIOD / 2).is_some());
    tight.store(true, Ordering::Relaxed);
    assert_eq!(rest_at(began + PERIOD / 2), None);
}

#[test]
fn what_was_counted_over_an_hour_teaches_and_judges_nobody() {
    let latency = Arc::new(ProduceLatency::default());
    let throttle = throttle(&latency, || false);
    let began = throttle.state.lock().period_began;
    let rest_at = |now| throttle.rest_at(&mut throttle.state.lock(), now);
    (0..1000).for_each(|_| latency.record(millis(5)));
    assert_eq!(rest_at(began + PERIOD * 3600), None);
    assert_eq!(throttle.gauge.get(), 1.0);
    let _working = throttle.work();
    (0..1000).for_each(|_| latency.record(millis(7)));
    assert_eq!(rest_at(began + PERIOD * 3601), None);
    assert!((throttle.gauge.get() - DUTY_LIVE_FIRST * DUTY_CUT).abs() < 1e-9);
    assert!(throttle.is_beside_producers());
    assert_eq!(rest_at(began + PERIOD * 3602), None);
    assert!(!throttle.is_beside_producers());
}

#[test]
fn who_rests_does_not_work() {
    let latency = Arc::new(ProduceLatency::default());
    let throttle = throttle(&latency, || false);
    throttle.state.lock().controller.duty = 0.0;
    let resting = std::thread::scope(|scope| {
        let rest = scope.spawn(|| throttle.rest(throttle.work()));
        // Whoever rests is not counted, and is again once the period has ended.
        let quiet = std::iter::repeat_with(|| {
            latency.record(Duration::ZERO);
            latency.take().alone.total() > 0.0
        })
        .take_while(|quiet| !quiet || !rest.is_finished())
        .any(|quiet| quiet);
        drop(rest.join().unwrap());
        quiet
    });
    assert!(resting);
}
