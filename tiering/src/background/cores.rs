//! On which cores a background thread runs: all that the process may use, or the upper half of them.
//!
//! A set of cores belongs to a thread; those that it starts inherit it. Where the system does not know such sets, or
//! refuses them, threads run anywhere.

#[cfg(target_os = "linux")]
pub(super) use linux::Cores;
#[cfg(not(target_os = "linux"))]
pub(super) use other::Cores;

#[cfg(target_os = "linux")]
mod linux {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

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
                .map(|all| if is_to_share { upper_half(&all) } else { all })
                .and_then(|cores| sched_setaffinity(None, &cores));
            if let Err(error) = set {
                tracing::debug!(%error, "a background thread runs on any core");
            }
        }
    }

    /// All of a single core.
    fn upper_half(all: &CpuSet) -> CpuSet {
        let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| all.is_set(*core)).collect();
        let mut half = CpuSet::new();
        cores.iter().skip(cores.len() / 2).for_each(|core| half.set(*core));
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
            assert_eq!(upper_half(&set_of(&[0, 1])), set_of(&[1]));
            assert_eq!(upper_half(&set_of(&[2, 3, 5, 7])), set_of(&[5, 7]));
            assert_eq!(upper_half(&set_of(&[4])), set_of(&[4]));
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
            assert_eq!(shared, upper_half(&all));
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
