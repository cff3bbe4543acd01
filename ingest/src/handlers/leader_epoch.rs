//! OffsetForLeaderEpoch: where an epoch ends. This broker has one epoch, and it ends at the log end.

use std::sync::Arc;

use kafka_protocol::messages::offset_for_leader_epoch_response::{EpochEndOffset, OffsetForLeaderTopicResult};
use kafka_protocol::messages::{OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse};

use super::{RequestContext, check_leader_epoch, find_partition};
use crate::model::{LEADER_EPOCH, Offset};
use crate::server::Services;

/// Answers the end of each epoch asked about; (-1, -1) for an epoch that never was.
pub async fn offset_for_leader_epoch(
    services: &Arc<Services>,
    _context: &RequestContext,
    request: OffsetForLeaderEpochRequest,
) -> OffsetForLeaderEpochResponse {
    let topics = request.topics.into_iter().map(|topic| {
        let found = services.topics.get(topic.topic.as_str());
        let rows = topic.partitions.iter().map(|asked| {
            let row = EpochEndOffset::default().with_partition(asked.partition);
            let partition = find_partition(found.as_ref(), asked.partition)
                .and_then(|partition| check_leader_epoch(asked.current_leader_epoch).map(|()| partition));
            match partition {
                Err(error) => row.with_error_code(error.code()),
                Ok(partition) => {
                    let (epoch, end) = epoch_end(asked.leader_epoch, partition.log_end_offset());
                    row.with_leader_epoch(epoch).with_end_offset(end.0)
                }
            }
        });
        let rows = rows.collect();
        OffsetForLeaderTopicResult::default().with_topic(topic.topic).with_partitions(rows)
    });
    OffsetForLeaderEpochResponse::default().with_topics(topics.collect())
}

/// Epoch and exclusive end of the last epoch that is not beyond `asked`.
fn epoch_end(asked: i32, log_end: Offset) -> (i32, Offset) {
    if asked == LEADER_EPOCH { (LEADER_EPOCH, log_end) } else { (-1, Offset(-1)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_one_epoch_has_an_end() {
        assert_eq!(epoch_end(LEADER_EPOCH, Offset(9)), (LEADER_EPOCH, Offset(9)));
        for other in [-1, 1, i32::MAX] {
            assert_eq!(epoch_end(other, Offset(9)), (-1, Offset(-1)));
        }
    }
}
