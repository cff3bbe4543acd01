//! Transactions, as producers and administrators ask for them. The rules are in [`crate::coordinator::transactions`];
//! here messages are taken apart and put together, and errors named as the version of the request knows them.

use std::collections::BTreeSet;
use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::add_partitions_to_txn_response::{
    AddPartitionsToTxnPartitionResult, AddPartitionsToTxnTopicResult,
};
use kafka_protocol::messages::describe_producers_response::{PartitionResponse, ProducerState, TopicResponse};
use kafka_protocol::messages::describe_transactions_response::{TopicData, TransactionState as DescribedTransaction};
use kafka_protocol::messages::list_transactions_response::TransactionState as ListedTransaction;
use kafka_protocol::messages::txn_offset_commit_request::TxnOffsetCommitRequestPartition;
use kafka_protocol::messages::txn_offset_commit_response::{
    TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic,
};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddOffsetsToTxnResponse, AddPartitionsToTxnRequest, AddPartitionsToTxnResponse,
    DescribeProducersRequest, DescribeProducersResponse, DescribeTransactionsRequest, DescribeTransactionsResponse,
    EndTxnRequest, EndTxnResponse, ListTransactionsRequest, ListTransactionsResponse, ProducerId as WireProducerId,
    TopicName as WireTopicName, TransactionalId, TxnOffsetCommitRequest, TxnOffsetCommitResponse,
};
use regex::{Regex, RegexBuilder};

use super::offsets::{Commit, accept};
use super::{RequestContext, blocking, code, find_partition, text};
use crate::coordinator::PendingCommit;
use crate::coordinator::group::Committer;
use crate::coordinator::offsets::CommittedOffset;
use crate::coordinator::transactions::Producer;
use crate::coordinator::transactions::state::{Transaction, TransactionState};
use crate::log::{Producer as LogProducer, TransactionRefusal};
use crate::model::{Offset, PartitionId, ProducerId, Timestamp, TopicPartition};
use crate::record::TransactionOutcome;
use crate::server::Services;

/// First version of the requests of a transaction whose clients know PRODUCER_FENCED.
const FENCED_SINCE: i16 = 2;
/// The coordinator epoch that markers carry.
const COORDINATOR_EPOCH: i32 = 0;

/// AddPartitionsToTxn: all of them, or none.
pub async fn add_partitions_to_txn(
    services: &Arc<Services>,
    context: &RequestContext,
    request: AddPartitionsToTxnRequest,
) -> AddPartitionsToTxnResponse {
    let id = request.v3_and_below_transactional_id.0.as_str();
    let producer = producer(request.v3_and_below_producer_id, request.v3_and_below_producer_epoch);
    let topics = &request.v3_and_below_topics;
    let verdicts: Vec<Vec<_>> = topics.iter().map(|topic| check_topic(services, topic)).collect();
    let outcome = if verdicts.iter().flatten().any(Result::is_err) {
        Err(ResponseError::OperationNotAttempted)
    } else {
        let partitions: BTreeSet<_> = verdicts.iter().flatten().flatten().cloned().collect();
        services.transactions.add_partitions(id, producer, partitions).await
    };
    let outcome = outcome.map_err(|error| as_known(context.api_version, FENCED_SINCE, error));
    let results = topics.iter().zip(verdicts).map(|(topic, verdicts)| {
        let rows = topic.partitions.iter().zip(verdicts).map(|(index, verdict)| {
            let error = verdict.err().or(outcome.err());
            AddPartitionsToTxnPartitionResult::default()
                .with_partition_index(*index)
                .with_partition_error_code(code(error))
        });
        AddPartitionsToTxnTopicResult::default().with_name(topic.name.clone()).with_results_by_partition(rows.collect())
    });
    AddPartitionsToTxnResponse::default().with_results_by_topic_v3_and_below(results.collect())
}

fn check_topic(services: &Services, topic: &AddPartitionsToTxnTopic) -> Vec<Result<TopicPartition, ResponseError>> {
    let found = services.topics.get(topic.name.as_str());
    let check = |index: &i32| match &found {
        Some(found) if found.is_internal() => Err(ResponseError::InvalidTopicException),
        found => find_partition(found.as_ref(), *index).map(|partition| partition.topic_partition().clone()),
    };
    topic.partitions.iter().map(check).collect()
}

/// AddOffsetsToTxn: what the transaction will commit for a group becomes part of it.
pub async fn add_offsets_to_txn(
    services: &Arc<Services>,
    context: &RequestContext,
    request: AddOffsetsToTxnRequest,
) -> AddOffsetsToTxnResponse {
    let producer = producer(request.producer_id, request.producer_epoch);
    let outcome = match services.groups.offsets_partition(&request.group_id.0) {
        Ok(at) => {
            let partitions = BTreeSet::from([at]);
            services.transactions.add_partitions(request.transactional_id.0.as_str(), producer, partitions).await
        }
        Err(error) => Err(error),
    };
    let error = outcome.err().map(|error| as_known(context.api_version, FENCED_SINCE, error));
    AddOffsetsToTxnResponse::default().with_error_code(code(error))
}

/// EndTxn: answers when the decision is durable.
pub async fn end_txn(services: &Arc<Services>, context: &RequestContext, request: EndTxnRequest) -> EndTxnResponse {
    let producer = producer(request.producer_id, request.producer_epoch);
    let outcome = if request.committed { TransactionOutcome::Commit } else { TransactionOutcome::Abort };
    let ended = services.transactions.end(request.transactional_id.0.as_str(), producer, outcome).await;
    let error = ended.err().map(|error| as_known(context.api_version, FENCED_SINCE, error));
    EndTxnResponse::default().with_error_code(code(error))
}

/// TxnOffsetCommit: answers when the offsets are durable; they come into force with the transaction.
pub async fn txn_offset_commit(
    services: &Arc<Services>,
    _context: &RequestContext,
    request: TxnOffsetCommitRequest,
) -> TxnOffsetCommitResponse {
    let now = services.clock.now();
    let mut accepted = Vec::new();
    let mut verdicts = Vec::with_capacity(request.topics.len());
    for topic in &request.topics {
        let commits = topic.partitions.iter().map(as_commit);
        verdicts.push((topic.name.clone(), accept(services, &topic.name, commits, now, &mut accepted)));
    }
    let committer = Committer {
        member_id: &request.member_id,
        instance_id: request.group_instance_id.as_deref(),
        generation: request.generation_id,
    };
    let outcome = match services.groups.offsets_partition(&request.group_id.0) {
        Ok(at) => {
            let commit = pending_commit(services, &request, at, accepted);
            services.groups.commit_in_transaction(&request.group_id.0, committer, commit).await
        }
        Err(error) => Err(error),
    };
    txn_commit_response(verdicts, outcome)
}

/// The offsets, admitted while the transaction is open and includes the group.
fn pending_commit(
    services: &Arc<Services>,
    request: &TxnOffsetCommitRequest,
    at: TopicPartition,
    offsets: Vec<(TopicPartition, CommittedOffset)>,
) -> PendingCommit {
    let producer = producer(request.producer_id, request.producer_epoch);
    let (transactions, id) = (services.transactions.clone(), request.transactional_id.0.to_string());
    let admission = move || transactions.admits(&id, producer, &at).map_err(refused);
    let (producer_id, epoch) = producer;
    PendingCommit { producer_id, epoch, offsets, admission: Box::new(admission) }
}

fn as_commit(partition: &TxnOffsetCommitRequestPartition) -> Commit<'_> {
    Commit {
        partition: PartitionId(partition.partition_index),
        offset: Offset(partition.committed_offset),
        leader_epoch: partition.committed_leader_epoch,
        metadata: partition.committed_metadata.as_deref(),
    }
}

/// A partition by its index, and why its offset is not taken.
type Verdict = (i32, Option<ResponseError>);

fn txn_commit_response(
    verdicts: Vec<(WireTopicName, Vec<Verdict>)>,
    outcome: Result<(), ResponseError>,
) -> TxnOffsetCommitResponse {
    let topics = verdicts.into_iter().map(|(name, partitions)| {
        let rows = partitions.into_iter().map(|(index, refused)| {
            TxnOffsetCommitResponsePartition::default()
                .with_partition_index(index)
                .with_error_code(code(refused.or(outcome.err())))
        });
        TxnOffsetCommitResponseTopic::default().with_name(name).with_partitions(rows.collect())
    });
    TxnOffsetCommitResponse::default().with_topics(topics.collect())
}

pub async fn describe_transactions(
    services: &Arc<Services>,
    _context: &RequestContext,
    request: DescribeTransactionsRequest,
) -> DescribeTransactionsResponse {
    let states = request.transactional_ids.into_iter().map(|id| {
        let found = services.transactions.describe(id.0.as_str());
        described(id, found)
    });
    DescribeTransactionsResponse::default().with_transaction_states(states.collect())
}

fn described(id: TransactionalId, found: Option<Transaction>) -> DescribedTransaction {
    let row = DescribedTransaction::default().with_transactional_id(id);
    let Some(transaction) = found else {
        return row.with_error_code(ResponseError::TransactionalIdNotFound.code());
    };
    let topics = transaction.partitions_by_topic().into_iter().map(|(topic, partitions)| {
        TopicData::default()
            .with_topic(WireTopicName(text(topic.as_str())))
            .with_partitions(partitions.into_iter().map(|partition| partition.0).collect())
    });
    row.with_transaction_state(text(transaction.state.as_str()))
        .with_transaction_timeout_ms(transaction.timeout_ms)
        .with_transaction_start_time_ms(transaction.started.unwrap_or(Timestamp::NONE).0)
        .with_producer_id(WireProducerId(transaction.producer_id.0))
        .with_producer_epoch(transaction.epoch)
        .with_topics(topics.collect())
}

/// Memory that the regular expression of a request may take once it is compiled.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// ListTransactions, filtered by state, producer, from version 1 on how long it has been under way, and from version 2
/// on a regular expression that the whole id has to match (KIP-1152).
pub async fn list_transactions(
    services: &Arc<Services>,
    _context: &RequestContext,
    request: ListTransactionsRequest,
) -> ListTransactionsResponse {
    let Ok(pattern) = id_pattern(request.transactional_id_pattern.as_deref()) else {
        return ListTransactionsResponse::default().with_error_code(ResponseError::InvalidRegularExpression.code());
    };
    let now = services.transactions.now();
    let (known, unknown): (Vec<_>, Vec<_>) = request.state_filters.iter().partition(|name| is_state(name));
    let is_wanted = |id: &str, transaction: &Transaction| {
        let state = transaction.state.as_str();
        let producer = transaction.producer_id.0;
        let age_ms = transaction.started.map_or(0, |started| now.0.saturating_sub(started.0));
        (request.state_filters.is_empty() || known.iter().any(|name| name.as_str() == state))
            && (request.producer_id_filters.is_empty() || request.producer_id_filters.iter().any(|id| id.0 == producer))
            && (request.duration_filter < 0 || age_ms > request.duration_filter)
            && pattern.as_ref().is_none_or(|pattern| pattern.is_match(id))
    };
    let listed = services.transactions.list().into_iter().filter(|(id, transaction)| is_wanted(id, transaction));
    let listed = listed.map(|(id, transaction)| {
        ListedTransaction::default()
            .with_transactional_id(TransactionalId(text(&id)))
            .with_producer_id(WireProducerId(transaction.producer_id.0))
            .with_transaction_state(text(transaction.state.as_str()))
    });
    ListTransactionsResponse::default()
        .with_transaction_states(listed.collect())
        .with_unknown_state_filters(unknown.into_iter().cloned().collect())
}

/// As in Kafka, an empty one is none.
fn id_pattern(pattern: Option<&str>) -> Result<Option<Regex>, regex::Error> {
    let compile = |pattern: &str| RegexBuilder::new(pattern).size_limit(PATTERN_BYTES_MAX).build();
    let Some(pattern) = pattern.filter(|pattern| !pattern.is_empty()) else { return Ok(None) };
    // What is valid only between the parentheses below is not valid.
    compile(pattern)?;
    compile(&format!(r"\A(?:{pattern})\z")).map(Some)
}

fn is_state(name: &str) -> bool {
    (0..=i8::MAX).map_while(TransactionState::of).any(|state| state.as_str() == name)
}

/// DescribeProducers: who writes to a partition, and since where its transaction is open.
pub async fn describe_producers(
    services: &Arc<Services>,
    _context: &RequestContext,
    request: DescribeProducersRequest,
) -> DescribeProducersResponse {
    let mut topics = Vec::with_capacity(request.topics.len());
    for topic in request.topics {
        let found = services.topics.get(topic.name.as_str());
        let mut rows = Vec::with_capacity(topic.partition_indexes.len());
        let indexes: BTreeSet<_> = topic.partition_indexes.into_iter().collect();
        for index in indexes {
            let row = PartitionResponse::default().with_partition_index(index);
            rows.push(match find_partition(found.as_ref(), index) {
                Err(error) => row.with_error_code(error.code()),
                Ok(partition) => {
                    let producers = blocking(move || partition.producers()).await;
                    row.with_active_producers(producers.into_iter().map(active_producer).collect())
                }
            });
        }
        topics.push(TopicResponse::default().with_name(topic.name).with_partitions(rows));
    }
    DescribeProducersResponse::default().with_topics(topics)
}

fn active_producer((id, producer): (i64, LogProducer)) -> ProducerState {
    ProducerState::default()
        .with_producer_id(WireProducerId(id))
        .with_producer_epoch(i32::from(producer.epoch))
        .with_last_sequence(producer.batches.last().map_or(-1, |batch| batch.last_sequence))
        .with_last_timestamp(producer.last_append.0)
        .with_coordinator_epoch(COORDINATOR_EPOCH)
        .with_current_txn_start_offset(producer.open.map_or(-1, |open| open.0))
}

fn producer(id: WireProducerId, epoch: i16) -> Producer {
    (ProducerId(id.0), epoch)
}

/// PRODUCER_FENCED by the name it had before `since`.
pub(super) fn as_known(version: i16, since: i16, error: ResponseError) -> ResponseError {
    match error {
        ResponseError::ProducerFenced if version < since => ResponseError::InvalidProducerEpoch,
        error => error,
    }
}

/// The code by which a client understands why records or offsets are not taken into a transaction.
pub(super) fn refused(refusal: TransactionRefusal) -> ResponseError {
    match refusal {
        TransactionRefusal::NotIncluded => ResponseError::InvalidTxnState,
        TransactionRefusal::Fenced => ResponseError::InvalidProducerEpoch,
        TransactionRefusal::UnknownProducer => ResponseError::InvalidProducerIdMapping,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_names_that_the_client_knows() {
        assert_eq!(as_known(1, 2, ResponseError::ProducerFenced), ResponseError::InvalidProducerEpoch);
        assert_eq!(as_known(2, 2, ResponseError::ProducerFenced), ResponseError::ProducerFenced);
        assert_eq!(as_known(0, 2, ResponseError::InvalidTxnState), ResponseError::InvalidTxnState);
        assert!(is_state("PrepareAbort") && !is_state("Dead") && !is_state("empty"));
    }

    #[test]
    fn a_pattern_has_to_match_the_whole_id() {
        let matches = |pattern, id| id_pattern(Some(pattern)).unwrap().is_none_or(|pattern| pattern.is_match(id));
        assert!(matches("a|b", "a") && matches("a|b", "b") && matches(r"app-\d+", "app-12") && matches("", "any"));
        assert!(!matches("a|b", "ab") && !matches("app", "app-1") && !matches("a", "a\n"));
        for invalid in ["(", "a)(b", r"(?:\w{1000}){1000}"] {
            assert!(id_pattern(Some(invalid)).is_err(), "{invalid}");
        }
    }

    #[test]
    fn an_id_that_is_not_known_is_an_error_of_its_own() {
        let row = described(TransactionalId(text("tx")), None);
        assert_eq!(row.error_code, ResponseError::TransactionalIdNotFound.code());
        let row = described(TransactionalId(text("tx")), Some(Transaction::new(ProducerId(7), 100, Timestamp(1))));
        assert_eq!((row.error_code, row.transaction_state.as_str(), row.transaction_start_time_ms), (0, "Empty", -1));
    }
}
