//! CreatePartitions, and DescribeTopicPartitions, which shows them page by page (KIP-966).

use std::collections::HashSet;
use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use kafka_protocol::messages::describe_topic_partitions_response::{
    Cursor, DescribeTopicPartitionsResponsePartition, DescribeTopicPartitionsResponseTopic,
};
use kafka_protocol::messages::{
    BrokerId, CreatePartitionsRequest, CreatePartitionsResponse, DescribeTopicPartitionsRequest,
    DescribeTopicPartitionsResponse, TopicName as WireName,
};
use kafka_protocol::protocol::StrBytes;
use tracing::info;

use super::cluster::TOPIC_OPERATIONS;
use super::{RequestContext, blocking, code, text, topic_error};
use crate::model::{LEADER_EPOCH, TopicName};
use crate::server::Services;
use crate::topics::{Topic, TopicError};

/// Most partitions on one page (Kafka's `max.request.partition.size.limit`).
const PAGE_MAX: i32 = 2000;

/// A refusal with the words for it.
type Refusal = (ResponseError, String);

/// Gives topics more partitions, or only says whether they could have them. Each topic has a row of its own.
pub async fn create_partitions(
    services: &Arc<Services>,
    _context: &RequestContext,
    request: CreatePartitionsRequest,
) -> CreatePartitionsResponse {
    let mut seen = HashSet::new();
    let repeated = request.topics.iter().map(|topic| &topic.name).filter(|name| !seen.insert(*name));
    let twice: HashSet<WireName> = repeated.cloned().collect();
    let mut results = Vec::with_capacity(request.topics.len());
    for asked in request.topics {
        let grown = if twice.contains(&asked.name) {
            Err((ResponseError::InvalidRequest, "the request names this topic more than once".to_owned()))
        } else {
            grow(services, &asked, request.validate_only).await
        };
        let row = CreatePartitionsTopicResult::default().with_name(asked.name);
        results.push(match grown {
            Ok(()) => row.with_error_message(None),
            Err((error, message)) => row.with_error_code(error.code()).with_error_message(Some(text(&message))),
        });
    }
    CreatePartitionsResponse::default().with_results(results)
}

async fn grow(services: &Services, asked: &CreatePartitionsTopic, validate_only: bool) -> Result<(), Refusal> {
    let (topics, name, count) = (services.topics.clone(), asked.name.to_string(), asked.count);
    if let Some(assignments) = &asked.assignments {
        let has = topics.get(&name).map_or(0, |topic| topic.partition_count());
        let lenient = services.broker.lenient_replication_factor;
        let here = |brokers: &[BrokerId]| {
            brokers.first() == Some(&BrokerId(services.broker.node_id)) && (brokers.len() == 1 || lenient)
        };
        let added = usize::try_from(count.saturating_sub(has)).unwrap_or(0);
        if count > has && (assignments.len() != added || !assignments.iter().all(|one| here(&one.broker_ids))) {
            let node_id = services.broker.node_id;
            let message = format!("assign each of the {added} new partitions to broker {node_id}, the only one");
            return Err((ResponseError::InvalidReplicaAssignment, message));
        }
    }
    let grown = blocking(move || topics.grow(&name, count, validate_only)).await;
    match grown {
        Ok(topic) if !validate_only => info!(topic = %topic.name, partitions = count, "topic has more partitions"),
        Ok(_) => {}
        Err(failure @ TopicError::Internal(_)) => {
            return Err((ResponseError::InvalidTopicException, failure.to_string()));
        }
        Err(failure) => return Err((topic_error(&failure), failure.to_string())),
    }
    Ok(())
}

/// Partitions of the topics named, or of all, in name order from the cursor on, up to the limit.
pub async fn describe_topic_partitions(
    services: &Arc<Services>,
    _context: &RequestContext,
    request: DescribeTopicPartitionsRequest,
) -> DescribeTopicPartitionsResponse {
    let mut found: Vec<(String, Option<Arc<Topic>>)> = if request.topics.is_empty() {
        services.topics.list().into_iter().map(|topic| (topic.name.as_str().to_owned(), Some(topic))).collect()
    } else {
        let named = request.topics.iter().map(|topic| topic.name.to_string());
        named.map(|name| (services.topics.get(&name), name)).map(|(topic, name)| (name, topic)).collect()
    };
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    found.dedup_by(|(a, _), (b, _)| a == b);
    let limit = request.response_partition_limit.clamp(1, PAGE_MAX);
    let from = request.cursor.map(|cursor| (cursor.topic_name.to_string(), cursor.partition_index.max(0)));
    let (pages, next) = page(found, limit, from);
    let rows = pages.into_iter().map(|page| topic_row(page, services.broker.node_id));
    let next = next.map(|(name, index)| Cursor::default().with_topic_name(wire(&name)).with_partition_index(index));
    DescribeTopicPartitionsResponse::default().with_topics(rows.collect()).with_next_cursor(next)
}

/// A topic, or a name without one, and which of its partitions are on the page.
type Page<T> = (String, Option<T>, std::ops::Range<i32>);

trait Partitioned {
    fn count(&self) -> i32;
}

impl Partitioned for Arc<Topic> {
    fn count(&self) -> i32 {
        self.partition_count()
    }
}

/// Cuts a page out of topics in name order, and says where the next one begins.
fn page<T: Partitioned>(
    topics: Vec<(String, Option<T>)>,
    limit: i32,
    from: Option<(String, i32)>,
) -> (Vec<Page<T>>, Option<(String, i32)>) {
    let (from_name, from_index) = from.unwrap_or_default();
    let mut left = limit;
    let mut pages = Vec::new();
    for (name, topic) in topics.into_iter().filter(|(name, _)| *name >= from_name) {
        if left == 0 {
            return (pages, Some((name, 0)));
        }
        let count = topic.as_ref().map_or(0, Partitioned::count);
        let first = if name == from_name { from_index.min(count) } else { 0 };
        let last = first.saturating_add(left).min(count);
        left -= last - first;
        pages.push((name.clone(), topic, first..last));
        if last < count {
            return (pages, Some((name, last)));
        }
    }
    (pages, None)
}

fn topic_row((name, topic, range): Page<Arc<Topic>>, node_id: i32) -> DescribeTopicPartitionsResponseTopic {
    let row = DescribeTopicPartitionsResponseTopic::default().with_name(Some(wire(&name)));
    let Some(topic) = topic else {
        let legal = TopicName::new(&name).is_ok();
        let error = if legal { ResponseError::UnknownTopicOrPartition } else { ResponseError::InvalidTopicException };
        return row.with_error_code(code(Some(error)));
    };
    let here = || vec![BrokerId(node_id)];
    let partitions = range.map(|index| {
        DescribeTopicPartitionsResponsePartition::default()
            .with_partition_index(index)
            .with_leader_id(BrokerId(node_id))
            .with_leader_epoch(LEADER_EPOCH)
            .with_replica_nodes(here())
            .with_isr_nodes(here())
            // Kafka's own client takes no null here.
            .with_eligible_leader_replicas(Some(Vec::new()))
            .with_last_known_elr(Some(Vec::new()))
    });
    row.with_topic_id(topic.id.0)
        .with_is_internal(topic.is_internal())
        .with_partitions(partitions.collect())
        .with_topic_authorized_operations(TOPIC_OPERATIONS)
}

fn wire(name: &str) -> WireName {
    WireName(StrBytes::from_string(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl Partitioned for i32 {
        fn count(&self) -> i32 {
            *self
        }
    }

    fn topics(counts: &[Option<i32>]) -> Vec<(String, Option<i32>)> {
        counts.iter().enumerate().map(|(at, count)| (format!("t{at:02}"), *count)).collect()
    }

    #[test]
    fn a_page_may_end_inside_a_topic_and_between_two() {
        let all = || topics(&[Some(3), None, Some(2)]);
        let (pages, next) = page(all(), 2, None);
        assert_eq!((pages, next.clone()), (vec![("t00".to_owned(), Some(3), 0..2)], Some(("t00".to_owned(), 2))));
        let (pages, next) = page(all(), 2, next);
        let told =
            vec![("t00".to_owned(), Some(3), 2..3), ("t01".to_owned(), None, 0..0), ("t02".to_owned(), Some(2), 0..1)];
        assert_eq!((pages, next), (told, Some(("t02".to_owned(), 1))));
        let (pages, next) = page(all(), 3, None);
        assert_eq!((pages.len(), next), (1, Some(("t01".to_owned(), 0))));
        // The topic of the cursor is gone.
        let (pages, next) = page(all(), 9, Some(("t01x".to_owned(), 7)));
        assert_eq!((pages, next), (vec![("t02".to_owned(), Some(2), 0..2)], None));
    }

    proptest! {
        #[test]
        fn pages_give_every_partition_once(
            counts in proptest::collection::vec(proptest::option::of(1..9), 0..9),
            limit in 1..12,
        ) {
            let (mut told, mut from, mut rounds) = (Vec::new(), None, 0);
            loop {
                let (pages, next) = page(topics(&counts), limit, from);
                prop_assert!(pages.iter().map(|(.., range)| range.len()).sum::<usize>() <= limit as usize);
                told.extend(pages.into_iter().flat_map(|(name, _, range)| range.map(move |at| (name.clone(), at))));
                rounds += 1;
                prop_assert!(rounds < 200);
                from = next;
                if from.is_none() {
                    break;
                }
            }
            let all = topics(&counts).into_iter();
            let wanted = all.flat_map(|(name, count)| (0..count.unwrap_or(0)).map(move |at| (name.clone(), at)));
            prop_assert_eq!(told, wanted.collect::<Vec<_>>());
        }
    }
}
