//! On which cores a background thread runs: all that the process may use, or the half of them that takes the fewest
//! interrupts of devices.
//!
//! An ack waits for a disk and for a network, and goes on where their interrupts arrive, if they arrive at one core, as
//! they do on small machines. A thread that was at work there delays it by its slice: two of low priority on the core
//! that takes the disk's interrupts brought the p99 of a log's syncs from 1.9 ms to 2.7, on the other core to 2.1
//! (medians of eight; two cores, virtio).
//!
//! A set of cores belongs to a thread; those that it starts inherit it. Where the system does not know such sets, or
//! refuses them, threads run anywhere.

#[cfg(target_os = "linux")]
pub(super) use linux::Cores;
#[cfg(not(target_os = "linux"))]
pub(super) use other::Cores;

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::HashMap;
    use std::time::{Duration, Instant};

    use parking_lot::Mutex;
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    use crate::background::interrupts;

    /// How long it is taken for known which cores take the interrupts.
    const INTERRUPTS_AGE_MAX: Duration = Duration::from_secs(60);

    static INTERRUPTS: Mutex<Option<(Instant, HashMap<usize, u64>)>> = Mutex::new(None);

    /// The cores of one thread. A new one has those of the thread that started it, whichever they are.
    #[derive(Default)]
    pub struct Cores {
        is_sharing: Option<bool>,
    }

    impl Cores {
        /// Keeps the current thread to half of the cores, or lets it run on all again.
        pub fn share(&mut self, is_to_share: bool) {
            if self.is_sharing.replace(is_to_share) == Some(is_to_share) {
                return;
            }
            // The process's own: its main thread stays where it is.
            let set = sched_getaffinity(Some(rustix::process::getpid()))
                .map(|all| if is_to_share { quiet_half_now(&all) } else { all })
                .and_then(|cores| sched_setaffinity(None, &cores));
            if let Err(error) = set {
                tracing::debug!(%error, "a background thread runs on any core");
            }
        }
    }

    fn quiet_half_now(all: &CpuSet) -> CpuSet {
        let mut known = INTERRUPTS.lock();
        if known.as_ref().is_none_or(|(since, _)| since.elapsed() > INTERRUPTS_AGE_MAX) {
            *known = Some((Instant::now(), interrupts::by_core()));
        }
        known.as_ref().map_or(*all, |(_, interrupts)| quiet_half(all, interrupts))
    }

    /// The half with the fewest interrupts, the upper one where they are even; all of a single core.
    fn quiet_half(all: &CpuSet, interrupts: &HashMap<usize, u64>) -> CpuSet {
        let mut cores: Vec<usize> = (0..CpuSet::MAX_CPU).rev().filter(|core| all.is_set(*core)).collect();
        cores.sort_by_key(|core| interrupts.get(core).copied().unwrap_or(0));
        let mut half = CpuSet::new();
        cores.iter().take(cores.len().div_ceil(2)).for_each(|core| half.set(*core));
        half
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        fn set_of(cores: &[usize]) -> CpuSet {
            let mut set = CpuSet::new();
            cores.iter().for_each(|core| set.set(*core));
            set
        }

        #[test]
        fn half_of_the_cores_is_left_to_others() {
            let half = |cores: &[usize], interrupts: &[(usize, u64)]| {
                quiet_half(&set_of(cores), &interrupts.iter().copied().collect())
            };
            assert_eq!(half(&[0, 1], &[]), set_of(&[1]));
            assert_eq!(half(&[0, 1], &[(0, 7), (1, 8)]), set_of(&[0]));
            assert_eq!(half(&[2, 3, 5, 7], &[(2, 5), (3, 9), (5, 0), (7, 6)]), set_of(&[2, 5]));
            assert_eq!(half(&[2, 3, 5], &[(9, 1)]), set_of(&[3, 5]));
            assert_eq!(half(&[4], &[(4, 3)]), set_of(&[4]));
        }

        #[test]
        fn a_thread_shares_and_gets_all_again() {
            let all = sched_getaffinity(None).unwrap();
            let (shared, again) = std::thread::spawn(|| {
                let mut cores = Cores::default();
                cores.share(true);
                let shared = sched_getaffinity(None).unwrap();
                cores.share(false);
                (shared, sched_getaffinity(None).unwrap())
            })
            .join()
            .unwrap();
            let cores = |set: &CpuSet| (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect::<Vec<_>>();
            assert_eq!(cores(&shared).len(), cores(&all).len().div_ceil(2));
            assert!(cores(&shared).iter().all(|core| all.is_set(*core)));
            assert_eq!(again, all);
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    #[derive(Default)]
    pub struct Cores;

    impl Cores {
        pub fn share(&mut self, _is_to_share: bool) {}
    }
}
