//! ListOffsets: where a partition starts and ends, and which record comes first at or after a time.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse};
use kafka_protocol::messages::{ListOffsetsRequest, ListOffsetsResponse};
use tokio::time::Instant;
use tracing::warn;

use super::{RequestContext, check_leader_epoch, find_partition};
use crate::log::Partition;
use crate::model::{LEADER_EPOCH, Offset, Timestamp};
use crate::read::TimestampedOffset;
use crate::server::Services;

/// First version whose answer carries a leader epoch.
const EPOCH_SINCE: i16 = 4;
/// First version in which the client says how long a search may take.
const TIMEOUT_SINCE: i16 = 10;
/// Longest the searches of one request may take together, whatever the client asks.
const SEARCH_MAX: Duration = Duration::from_secs(60);
const READ_COMMITTED: i8 = 1;

/// What a timestamp in the request asks for; the negative ones are names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Latest,
    Earliest,
    MaxTimestamp,
    EarliestLocal,
    LatestTiered,
    At(Timestamp),
}

/// Answers one offset per partition asked for; -1 without an error where there is none.
pub async fn list_offsets(
    services: &Arc<Services>,
    context: &RequestContext,
    request: ListOffsetsRequest,
) -> ListOffsetsResponse {
    let asked_wait = Duration::from_millis(u64::try_from(request.timeout_ms).unwrap_or(0));
    let wait = if context.api_version >= TIMEOUT_SINCE && !asked_wait.is_zero() { asked_wait } else { SEARCH_MAX };
    let deadline = Instant::now() + wait.min(SEARCH_MAX);
    let committed = request.isolation_level == READ_COMMITTED;
    let twice = asked_twice(&request.topics);
    let mut topics = Vec::with_capacity(request.topics.len());
    for (at, topic) in request.topics.into_iter().enumerate() {
        let mut rows = Vec::with_capacity(topic.partitions.len());
        for asked in &topic.partitions {
            let found = if twice.contains(&(at, asked.partition_index)) {
                Err(ResponseError::InvalidRequest)
            } else {
                let search = look_up(services, context.api_version, committed, topic.name.as_str(), asked);
                tokio::time::timeout_at(deadline, search).await.unwrap_or(Err(ResponseError::RequestTimedOut))
            };
            rows.push(answer(context.api_version, asked.partition_index, found));
        }
        topics.push(ListOffsetsTopicResponse::default().with_name(topic.name).with_partitions(rows));
    }
    ListOffsetsResponse::default().with_topics(topics)
}

async fn look_up(
    services: &Services,
    version: i16,
    committed: bool,
    topic: &str,
    asked: &ListOffsetsPartition,
) -> Result<Option<TimestampedOffset>, ResponseError> {
    let partition = find_partition(services.topics.get(topic).as_ref(), asked.partition_index)?;
    check_leader_epoch(asked.current_leader_epoch)?;
    let searched = match target(version, asked.timestamp)? {
        Target::Latest if committed => return Ok(Some(place(partition.last_stable_offset()))),
        Target::Latest => return Ok(Some(place(partition.high_watermark()))),
        Target::Earliest => return Ok(Some(place(partition.log_start_offset()))),
        Target::EarliestLocal => return Ok(Some(place(partition.local_start_offset()))),
        Target::LatestTiered => return Ok(latest_tiered(&partition).map(place)),
        Target::MaxTimestamp => services.reader.max_timestamp(&partition).await,
        Target::At(timestamp) => services.reader.offset_for_timestamp(&partition, timestamp).await,
    };
    let end = if committed { partition.last_stable_offset() } else { partition.high_watermark() };
    let found = searched.map_err(|failure| {
        warn!(partition = %partition.topic_partition(), %failure, "searching for a timestamp failed");
        ResponseError::KafkaStorageError
    })?;
    Ok(found.filter(|found| found.offset < end))
}

/// Reads the number; names unknown in `version` are refused, not taken for times.
fn target(version: i16, timestamp: i64) -> Result<Target, ResponseError> {
    match timestamp {
        -1 => Ok(Target::Latest),
        -2 => Ok(Target::Earliest),
        -3 if version >= 7 => Ok(Target::MaxTimestamp),
        -4 if version >= 8 => Ok(Target::EarliestLocal),
        -5 if version >= 9 => Ok(Target::LatestTiered),
        0.. => Ok(Target::At(Timestamp(timestamp))),
        _ => Err(ResponseError::UnsupportedVersion),
    }
}

/// The last offset in the archive; `archived_through` is exclusive and zero while nothing is archived.
fn latest_tiered(partition: &Partition) -> Option<Offset> {
    let through = partition.archived_through();
    (through > Offset::ZERO).then(|| through.plus(-1))
}

/// An offset that is not a record's: its timestamp is unknown.
fn place(offset: Offset) -> TimestampedOffset {
    TimestampedOffset { offset, timestamp: Timestamp::NONE }
}

fn answer(
    version: i16,
    index: i32,
    found: Result<Option<TimestampedOffset>, ResponseError>,
) -> ListOffsetsPartitionResponse {
    let row = ListOffsetsPartitionResponse::default().with_partition_index(index);
    match found {
        Err(error) => row.with_error_code(error.code()),
        Ok(None) => row,
        Ok(Some(found)) => row
            .with_offset(found.offset.0)
            .with_timestamp(found.timestamp.0)
            .with_leader_epoch(if version >= EPOCH_SINCE { LEADER_EPOCH } else { -1 }),
    }
}

/// Partitions that the request names more than once, as (place of the topic in the request, partition): which of the
/// two answers is meant would be a guess.
fn asked_twice(topics: &[ListOffsetsTopic]) -> HashSet<(usize, i32)> {
    let mut seen = HashSet::new();
    let mut twice = HashSet::new();
    for topic in topics {
        for partition in &topic.partitions {
            if !seen.insert((topic.name.as_str(), partition.partition_index)) {
                twice.insert((topic.name.as_str(), partition.partition_index));
            }
        }
    }
    let places = topics.iter().enumerate().flat_map(|(at, topic)| {
        topic.partitions.iter().map(move |partition| (at, topic.name.as_str(), partition.partition_index))
    });
    places.filter(|(_, name, index)| twice.contains(&(*name, *index))).map(|(at, _, index)| (at, index)).collect()
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::TopicName;

    use super::*;
    use crate::handlers::text;
    use crate::protocol::encode;

    #[test]
    fn names_are_known_from_their_version_on() {
        assert_eq!(target(1, -1), Ok(Target::Latest));
        assert_eq!(target(1, -2), Ok(Target::Earliest));
        assert_eq!(target(1, 0), Ok(Target::At(Timestamp(0))));
        for (version, timestamp, named) in
            [(7, -3, Target::MaxTimestamp), (8, -4, Target::EarliestLocal), (9, -5, Target::LatestTiered)]
        {
            assert_eq!(target(version, timestamp), Ok(named));
            assert_eq!(target(version - 1, timestamp), Err(ResponseError::UnsupportedVersion));
        }
        assert_eq!(target(10, -6), Err(ResponseError::UnsupportedVersion));
    }

    #[test]
    fn a_partition_named_twice_is_found_across_topics() {
        let topic = |name: &str, partitions: &[i32]| {
            let partitions = partitions.iter().map(|&p| ListOffsetsPartition::default().with_partition_index(p));
            ListOffsetsTopic::default().with_name(TopicName(text(name))).with_partitions(partitions.collect())
        };
        let topics = [topic("a", &[0, 1, 1]), topic("b", &[0]), topic("a", &[0, 2])];
        assert_eq!(asked_twice(&topics), HashSet::from([(0, 0), (0, 1), (2, 0)]));
    }

    #[test]
    fn the_answer_fits_its_version() {
        let found = Ok(Some(TimestampedOffset { offset: Offset(5), timestamp: Timestamp(9) }));
        assert_eq!(answer(3, 0, found).leader_epoch, -1);
        let found = Ok(Some(place(Offset(5))));
        assert_eq!((answer(4, 0, found).leader_epoch, answer(4, 0, Ok(None)).offset), (0, -1));
        assert_eq!(answer(4, 0, Err(ResponseError::InvalidRequest)).error_code, 42);
        for version in 1..=10 {
            let row = answer(version, 0, Ok(Some(place(Offset(5)))));
            let topic = ListOffsetsTopicResponse::default().with_partitions(vec![row]);
            let response = ListOffsetsResponse::default().with_topics(vec![topic]);
            assert!(encode::response(1, version, &response).is_ok(), "version {version}");
        }
    }
}
