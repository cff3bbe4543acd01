//! Setting a group's offsets, and deleting a group, from outside the Kafka protocol. The rules are those of the
//! protocol: only a group without members can be told by somebody else where to go on, or be deleted.

use kafka_protocol::ResponseError;

use super::group::Committer;
use super::offsets::CommittedOffset;
use super::{GROUP_ID_BYTES_MAX, GroupCoordinator};
use crate::clock::Clock;
use crate::model::{Offset, TopicPartition};

/// What says that a commit comes from no generation, and that it knows no leader epoch.
const NONE: i32 = -1;

/// Why a group was not changed.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    #[error("group {0:?} has members; stop its consumers first, or name another group")]
    HasMembers(String),
    #[error("group {0:?} does not exist")]
    Unknown(String),
    #[error("a group's name of {bytes} bytes is not between 1 and {GROUP_ID_BYTES_MAX} bytes")]
    GroupId { bytes: usize },
    #[error("the broker has {max} groups, as many as it keeps (groups.max_groups)")]
    TooManyGroups { max: usize },
    #[error("the change of group {group:?} could not be written ({reason}); try again")]
    Unavailable { group: String, reason: ResponseError },
}

impl GroupCoordinator {
    /// Commits `offsets` for a group without members, which is made if it is not there; done when they are durable.
    pub async fn seek(
        &self,
        group_id: &str,
        clock: &dyn Clock,
        offsets: impl IntoIterator<Item = (TopicPartition, Offset)>,
    ) -> Result<(), GroupError> {
        if group_id.is_empty() || group_id.len() > GROUP_ID_BYTES_MAX {
            return Err(GroupError::GroupId { bytes: group_id.len() });
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
                Err(GroupError::HasMembers(group()))
            }
            Err(ResponseError::PolicyViolation) => {
                Err(GroupError::TooManyGroups { max: self.registry.config.max_groups })
            }
            Err(reason) => Err(GroupError::Unavailable { group: group(), reason }),
        }
    }

    /// Deletes a group without members and all that it committed; done when that is durable.
    pub async fn remove(&self, group_id: &str) -> Result<(), GroupError> {
        let group = || group_id.to_owned();
        match self.delete(group_id).await {
            Ok(()) => Ok(()),
            Err(ResponseError::NonEmptyGroup) => Err(GroupError::HasMembers(group())),
            Err(ResponseError::GroupIdNotFound) => Err(GroupError::Unknown(group())),
            Err(ResponseError::InvalidGroupId) => Err(GroupError::GroupId { bytes: group_id.len() }),
            Err(reason) => Err(GroupError::Unavailable { group: group(), reason }),
        }
    }
}
