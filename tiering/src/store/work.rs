//! Who a request to the store is for, and what it may cost.
//!
//! There are two lanes, the archive's and the readers'. Each has permits and a budget of its own, so that a queue of
//! uploads cannot keep a consumer waiting, nor many consumers the archive.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::budget::{Budget, Rates};
use crate::throttle::Throttle;

/// The part of its timeout that a request may rest, as a divisor: the rest of it must do for the work.
const REST_SHARE: u32 = 4;

/// What a request is part of; also a label of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Uploads of segments, their verification, manifest commits.
    Archive,
    /// What keeps the archive in order: deleting, merging, scrubbing.
    Maintenance,
    /// Fetch, search and replay: somebody waits.
    Read,
}

/// What the two lanes may take, and what work in the background goes by.
#[derive(Clone, Debug)]
pub struct StoreLimits {
    /// archiving and maintenance together
    pub archive: Rates,
    pub reads: Rates,
    pub throttle: Arc<Throttle>,
}

/// Travels with the requests of the archive's lane to a store that is a local folder: reads and writes of it yield to
/// live traffic.
#[derive(Clone, Debug)]
pub(super) struct InBackground {
    pub throttle: Option<Arc<Throttle>>,
    /// What of the request's time may be spent at rest.
    pub rest_max: Duration,
}

/// One of the two.
#[derive(Debug)]
pub(super) struct Lane {
    pub permits: Semaphore,
    /// None as long as nothing is limited.
    pub budget: OnceLock<Budget>,
}

/// Permits and budgets of all requests.
#[derive(Debug)]
pub(super) struct Lanes {
    archive: Lane,
    reads: Lane,
    throttle: OnceLock<Arc<Throttle>>,
}

impl Work {
    pub fn label(self) -> &'static str {
        match self {
            Self::Archive => "archive",
            Self::Maintenance => "maintenance",
            Self::Read => "read",
        }
    }
}

impl Lanes {
    /// Half of `requests_max` for each lane, at least one.
    pub fn new(requests_max: usize) -> Self {
        let lane = |permits: usize| Lane {
            permits: Semaphore::new(permits.clamp(1, Semaphore::MAX_PERMITS)),
            budget: OnceLock::new(),
        };
        let archive = requests_max / 2;
        Self { archive: lane(archive), reads: lane(requests_max.saturating_sub(archive)), throttle: OnceLock::new() }
    }

    /// The first call wins.
    pub fn limit(&self, limits: StoreLimits) {
        let _ = self.archive.budget.set(Budget::new(limits.archive));
        let _ = self.reads.budget.set(Budget::new(limits.reads));
        let _ = self.throttle.set(limits.throttle);
    }

    pub fn of(&self, work: Work) -> &Lane {
        match work {
            Work::Archive | Work::Maintenance => &self.archive,
            Work::Read => &self.reads,
        }
    }

    /// What a local folder is told; None where somebody waits.
    pub fn in_background(&self, work: Work, timeout: Duration) -> Option<InBackground> {
        let throttle = self.throttle.get().cloned();
        (work != Work::Read).then_some(InBackground { throttle, rest_max: timeout / REST_SHARE })
    }
}
