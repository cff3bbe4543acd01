//! DescribeLogDirs: how much of the disk each partition takes. What lies in the archive is not on it.

use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_log_dirs_response::{
    DescribeLogDirsPartition, DescribeLogDirsResult, DescribeLogDirsTopic,
};
use kafka_protocol::messages::{DescribeLogDirsRequest, DescribeLogDirsResponse, TopicName as WireName};
use tracing::warn;

use super::{RequestContext, blocking, text};
use crate::log::disk_space;
use crate::model::PartitionId;
use crate::server::Services;
use crate::topics::Topic;

/// First version that tells the size of the disk (KIP-827).
const DISK_SIZE_SINCE: i16 = 4;

/// Answers the one directory, with the partitions asked for that exist, or all.
pub async fn describe_log_dirs(
    services: &Arc<Services>,
    context: &RequestContext,
    request: DescribeLogDirsRequest,
) -> DescribeLogDirsResponse {
    let topics: Vec<DescribeLogDirsTopic> = match request.topics {
        None => services.topics.list().iter().map(|topic| row(topic, 0..topic.partition_count())).collect(),
        Some(asked) => asked
            .into_iter()
            .filter_map(|asked| {
                let topic = services.topics.get(asked.topic.as_str())?;
                Some(row(&topic, asked.partitions))
            })
            .collect(),
    };
    let dir = services.topics.log_dir().to_owned();
    let result = DescribeLogDirsResult::default().with_log_dir(text(&dir.display().to_string()));
    let space = blocking(move || disk_space(&dir)).await;
    let result = match space {
        Ok(space) if context.api_version >= DISK_SIZE_SINCE => result
            .with_topics(topics)
            .with_total_bytes(saturated(space.total_bytes))
            .with_usable_bytes(saturated(space.free_bytes)),
        Ok(_) => result.with_topics(topics),
        Err(failure) => {
            warn!(%failure, "the size of the data directory's disk is not known");
            result.with_error_code(ResponseError::KafkaStorageError.code())
        }
    };
    DescribeLogDirsResponse::default().with_results(vec![result])
}

fn row(topic: &Topic, partitions: impl IntoIterator<Item = i32>) -> DescribeLogDirsTopic {
    let found = partitions.into_iter().filter_map(|index| Some((index, topic.partition(PartitionId(index))?)));
    let rows = found.map(|(index, partition)| {
        DescribeLogDirsPartition::default()
            .with_partition_index(index)
            .with_partition_size(saturated(partition.hot_bytes()))
    });
    DescribeLogDirsTopic::default().with_name(WireName(text(topic.name.as_str()))).with_partitions(rows.collect())
}

fn saturated(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
