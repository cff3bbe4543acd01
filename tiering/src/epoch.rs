//! Epochs: the order in which brokers have started on a store. The highest one may commit.
//!
//! ```text
//! epochs/<epoch>.json
//! {
//!   "format_version": 1,
//!   "epoch": number,             = the name's
//!   "instance": uuid,            the data directory's
//!   "cluster_id": text, "node_id": number,
//!   "claimed_at_ms": number
//! }
//! ```
//!
//! A start claims the next epoch by creating its object if it is absent: no two starts have one epoch, whoever they
//! are and whatever their disks remember. The instance in the newest claim tells three cases apart:
//!
//! | newest claim before ours | this data directory | then |
//! |---|---|---|
//! | by this instance | has taken over before | a restart: a partition is claimed by its first commit |
//! | any or none | has not taken over yet | a take-over: every partition is claimed before ports open |
//! | by another instance | has taken over before | we were replaced, and our disk is behind: no claim, no commit, reads only |
//!
//! A partition that the broker which took over does not know, because its topic was archived by the older one only
//! later, has no claim in its manifest. So before its first commit to a partition a broker looks for newer epochs.
//!
//! "Taken over" is a fact in the metadata store, written when all partitions are claimed. A replaced broker does not
//! win the store back by being restarted: what it had acknowledged and not archived lies at offsets that the other has
//! given to other records. Its local log is left as it is, so that this can be read. To make its machine the one that
//! archives again, start it on an empty data directory.
//!
//! # Crashes
//!
//! | died here | then |
//! |---|---|
//! | claimed, epoch not noted locally | the next start finds the claim and goes above it |
//! | topics adopted, or some partitions claimed | not taken over yet: the next start claims all again |
//! | all claimed, not noted as taken over | the same, to no effect but a version each |
//!
//! The janitor deletes all but the newest claims. A store of before claims has epochs in its manifests only: the first
//! claim goes above those.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use thermocline_ingest::clock::Clock;
use thermocline_ingest::model::Timestamp;
use uuid::Uuid;

use crate::manifest::{ManifestError, ManifestStore};
use crate::paths;
use crate::restore;
use crate::store::{ColdStore, StoreError};

const FORMAT_VERSION: u32 = 1;
/// Epochs that others may take while we look for a free one.
const RACES_MAX: usize = 64;
/// Manifests whose epoch is looked up at once.
const MANIFESTS_IN_FLIGHT: usize = 16;

/// Who claims, and what its disk remembers.
#[derive(Clone, Debug)]
pub struct Claimant {
    pub instance: Uuid,
    pub cluster_id: String,
    pub node_id: i32,
    /// epoch of its newest start, zero before the first
    pub last_epoch: u64,
    /// whether it has taken over this store before
    pub is_settled: bool,
}

/// What a start is to the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    Restart {
        epoch: u64,
    },
    TakeOver {
        epoch: u64,
    },
    /// Another instance has taken over; `own` is the epoch that it made void.
    Replaced {
        own: u64,
        by: u64,
    },
}

/// An epoch claim as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Claim {
    format_version: u32,
    epoch: u64,
    instance: Uuid,
    cluster_id: String,
    node_id: i32,
    claimed_at_ms: Timestamp,
}

/// Why no epoch could be claimed.
#[derive(Debug, thiserror::Error)]
pub enum EpochError {
    #[error("claiming an epoch")]
    Store(#[from] StoreError),
    #[error("looking for the epochs of a store without claims")]
    Manifest(#[from] ManifestError),
    #[error("encoding the claim of epoch {epoch}")]
    Encode { epoch: u64, source: serde_json::Error },
    #[error(
        "{RACES_MAX} epochs up to {epoch} were taken by others while one was claimed; is something restarting in a loop?"
    )]
    Contended { epoch: u64 },
}

impl Standing {
    /// The epoch to commit with.
    pub fn epoch(&self) -> u64 {
        match *self {
            Self::Restart { epoch } | Self::TakeOver { epoch } | Self::Replaced { own: epoch, .. } => epoch,
        }
    }
}

/// Finds out what this start is, and claims an epoch unless the broker was replaced.
pub async fn claim(store: &ColdStore, claimant: &Claimant, clock: Arc<dyn Clock>) -> Result<Standing, EpochError> {
    let mut newest = newest_claim(store).await?;
    let floor = match newest {
        None => highest_manifest_epoch(store, clock.clone()).await?,
        Some(epoch) => epoch,
    };
    let mut epoch = floor.max(claimant.last_epoch) + 1;
    for _ in 0..RACES_MAX {
        if let Some(by) = newest
            && claimant.is_settled
            && instance_of(store, by).await? != Some(claimant.instance)
        {
            return Ok(Standing::Replaced { own: claimant.last_epoch, by });
        }
        let claim = Claim {
            format_version: FORMAT_VERSION,
            epoch,
            instance: claimant.instance,
            cluster_id: claimant.cluster_id.clone(),
            node_id: claimant.node_id,
            claimed_at_ms: clock.now(),
        };
        if store.create(&paths::epoch(epoch), encode(&claim)?.into()).await? {
            let is_restart = claimant.is_settled && newest.is_some();
            return Ok(if is_restart { Standing::Restart { epoch } } else { Standing::TakeOver { epoch } });
        }
        newest = Some(epoch);
        epoch += 1;
    }
    Err(EpochError::Contended { epoch })
}

fn encode(claim: &Claim) -> Result<Vec<u8>, EpochError> {
    let mut json =
        serde_json::to_vec_pretty(claim).map_err(|source| EpochError::Encode { epoch: claim.epoch, source })?;
    json.push(b'\n');
    Ok(json)
}

pub(crate) async fn newest_claim(store: &ColdStore) -> Result<Option<u64>, StoreError> {
    let (objects, _) = store.list_folder(&paths::epochs_root()).await?;
    Ok(objects.iter().filter_map(|meta| paths::parse_epoch(&meta.location)).max())
}

/// Who claimed it. A claim that cannot be read is nobody's: then it is not ours.
async fn instance_of(store: &ColdStore, epoch: u64) -> Result<Option<Uuid>, StoreError> {
    let key = paths::epoch(epoch);
    match store.get(&key).await.map(|bytes| serde_json::from_slice::<Claim>(&bytes)) {
        Ok(Ok(claim)) if claim.format_version == FORMAT_VERSION => Ok(Some(claim.instance)),
        Ok(unread) => {
            let error = unread.err().map_or_else(|| "a newer format version".to_owned(), |error| error.to_string());
            tracing::warn!(%key, error, "the newest claim of an epoch cannot be read; it counts as another broker's");
            Ok(None)
        }
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Of all partitions of a store of before claims.
async fn highest_manifest_epoch(store: &ColdStore, clock: Arc<dyn Clock>) -> Result<u64, EpochError> {
    let manifests = &ManifestStore::new(store.clone(), 0, clock);
    let epochs = futures::stream::iter(restore::partition_paths(store).await?)
        .map(async |path| manifests.newest(&path).await)
        .buffer_unordered(MANIFESTS_IN_FLIGHT)
        .try_fold(0, async |highest: u64, newest| Ok(newest.map_or(highest, |(_, epoch)| highest.max(epoch))));
    Ok(epochs.await?)
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;
    use thermocline_ingest::clock::ManualClock;

    use super::*;
    use crate::manifest::{Change, CommitOutcome};
    use crate::testing::{FaultyStore, manifest_store, path, write_golden_if_asked};

    fn claimant(instance: u128, last_epoch: u64, is_settled: bool) -> Claimant {
        let cluster_id = "cluster".to_owned();
        Claimant { instance: Uuid::from_u128(instance), cluster_id, node_id: 1, last_epoch, is_settled }
    }

    async fn start(store: &ColdStore, claimant: &Claimant) -> Standing {
        claim(store, claimant, Arc::new(ManualClock::default())).await.unwrap()
    }

    #[tokio::test]
    async fn restarts_take_overs_and_replacements_are_told_apart() {
        let faulty = FaultyStore::healthy(Arc::new(InMemory::new()));
        let store = faulty.cold(0);
        let standing = start(&store, &claimant(1, 0, false)).await;
        assert_eq!(standing, Standing::TakeOver { epoch: 1 });
        // Died before it was settled, and before the epoch was noted.
        assert_eq!(start(&store, &claimant(1, 0, false)).await, Standing::TakeOver { epoch: 2 });
        assert_eq!(start(&store, &claimant(1, 2, true)).await, Standing::Restart { epoch: 3 });
        // An empty disk.
        assert_eq!(start(&store, &claimant(2, 0, false)).await, Standing::TakeOver { epoch: 4 });
        assert_eq!(start(&store, &claimant(1, 3, true)).await, Standing::Replaced { own: 3, by: 4 });
        assert_eq!(start(&store, &claimant(2, 4, true)).await, Standing::Restart { epoch: 5 });
        // A listing that lags only costs another try.
        faulty.freeze_listings().await;
        assert_eq!(start(&store, &claimant(2, 5, true)).await, Standing::Restart { epoch: 6 });
        assert_eq!(start(&store, &claimant(3, 0, false)).await, Standing::TakeOver { epoch: 7 });
        assert_eq!(start(&store, &claimant(2, 6, true)).await, Standing::Replaced { own: 6, by: 7 });
    }

    #[tokio::test]
    async fn a_store_of_before_claims_is_outbid() {
        let store = FaultyStore::healthy(Arc::new(InMemory::new())).cold(0);
        let manifests = manifest_store(store.clone(), 41);
        let head = manifests.load(&path()).await.unwrap();
        assert!(matches!(manifests.commit(&head, Change::Claim).await.unwrap(), CommitOutcome::Committed(_)));
        assert_eq!(start(&store, &claimant(1, 0, false)).await, Standing::TakeOver { epoch: 42 });
    }

    #[test]
    fn claims_are_written_as_they_always_were() {
        let claim = Claim {
            format_version: FORMAT_VERSION,
            epoch: 7,
            instance: Uuid::from_u128(5),
            cluster_id: "cluster".to_owned(),
            node_id: 1,
            claimed_at_ms: Timestamp(1_700_000_000_000),
        };
        let golden = include_bytes!("../tests/golden/epoch-v1.json");
        let written = encode(&claim).unwrap();
        write_golden_if_asked("epoch-v1.json", &written);
        assert_eq!(written, golden);
        assert_eq!(serde_json::from_slice::<Claim>(golden).unwrap(), claim);
    }
}
