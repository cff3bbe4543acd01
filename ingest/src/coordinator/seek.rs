//! Setting a group's offsets from outside the Kafka protocol. The rule is that of the protocol: only a group without
//! members can be told by somebody else where to go on.

use kafka_protocol::ResponseError;

use super::group::Committer;
use super::offsets::CommittedOffset;
use super::{GROUP_ID_BYTES_MAX, GroupCoordinator};
use crate::clock::Clock;
use crate::model::{Offset, TopicPartition};

/// What says that a commit comes from no generation, and that it knows no leader epoch.
const NONE: i32 = -1;

/// Why a group's offsets were not set.
#[derive(Debug, thiserror::Error)]
pub enum SeekError {
    #[error("group {0:?} has members; stop its consumers first, or name another group")]
    HasMembers(String),
    #[error("a group's name of {bytes} bytes is not between 1 and {GROUP_ID_BYTES_MAX} bytes")]
    GroupId { bytes: usize },
    #[error("the broker has {max} groups, as many as it keeps (groups.max_groups)")]
    TooManyGroups { max: usize },
    #[error("the offsets of group {group:?} could not be written ({reason}); try again")]
    Unavailable { group: String, reason: ResponseError },
}

impl GroupCoordinator {
    /// Commits `offsets` for a group without members, which is made if it is not there; done when they are durable.
    pub async fn seek(
        &self,
        group_id: &str,
        clock: &dyn Clock,
        offsets: impl IntoIterator<Item = (TopicPartition, Offset)>,
    ) -> Result<(), SeekError> {
        if group_id.is_empty() || group_id.len() > GROUP_ID_BYTES_MAX {
            return Err(SeekError::GroupId { bytes: group_id.len() });
        }
        let now = clock.now();
        let committed =
            |offset| CommittedOffset { offset, leader_epoch: NONE, metadata: String::new(), commit_timestamp: now };
        let offsets = offsets.into_iter().map(|(at, offset)| (at, committed(offset))).collect();
        let committer = Committer { member_id: "", instance_id: None, generation: NONE };
        let group = || group_id.to_owned();
        match self.commit(group_id, committer, ResponseError::GroupIdNotFound, offsets).await {
            Ok(()) => Ok(()),
            Err(ResponseError::UnknownMemberId | ResponseError::IllegalGeneration) => {
                Err(SeekError::HasMembers(group()))
            }
            Err(ResponseError::PolicyViolation) => {
                Err(SeekError::TooManyGroups { max: self.registry.config.max_groups })
            }
            Err(reason) => Err(SeekError::Unavailable { group: group(), reason }),
        }
    }
}
