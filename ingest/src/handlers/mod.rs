//! Requests to answers: one file per family, and the table that leads a request to its handler.
//!
//! A handler is `async fn(&Arc<Services>, &RequestContext, Request) -> Response`; the few that need more of the
//! listener take it as a further argument. Blocking work runs on the blocking pool. A handler does not panic on input,
//! and where it does after all, its connection is closed and nothing else happens.

pub mod alter_configs;
pub mod api_versions;
pub mod cluster;
pub mod configs;
pub mod delete_records;
pub mod fetch;
pub mod group_deletion;
pub mod groups;
pub mod leader_epoch;
pub mod list_offsets;
pub mod log_dirs;
pub mod metadata;
pub mod offsets;
pub mod partitions;
pub mod produce;
pub mod producer_id;
pub mod replicas;
pub mod security;
pub mod topics;
pub mod transactions;

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::ApiKey;
use kafka_protocol::protocol::{Encodable, HeaderVersion, StrBytes};

use crate::log::Partition;
use crate::model::{LEADER_EPOCH, PartitionId};
use crate::protocol::decode::{DecodeError, RawRequest};
use crate::protocol::encode::{self, EncodeError, Response};
use crate::protocol::fetch_response;
use crate::server::{Services, Shared};
use crate::topics::{Topic, TopicError};

/// Who asks, and in which version. Owned copies: they may outlive the request frame.
#[derive(Clone, Debug, Default)]
pub struct RequestContext {
    pub api_version: i16,
    pub client_id: String,
    /// Address of the client, without port.
    pub client_host: String,
}

/// What a request leads to, when its effect is decided.
pub(crate) enum Outcome {
    Reply(Response),
    /// The effect is decided, the answer waits for something (a group commit).
    Later(BoxFuture<'static, Result<Response, EncodeError>>),
    /// No bytes at all: a Produce that asked for no ack.
    Silent,
}

/// Why a request closes its connection instead of being answered.
#[derive(Debug, thiserror::Error)]
pub enum HandlerError {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error("a produce request without acks failed: {0}")]
    UnackedProduce(ResponseError),
    #[error("{0:?} has no handler")]
    NoHandler(ApiKey),
    #[error("the broker shuts down")]
    ShuttingDown,
}

/// Decodes a request, runs its handler and encodes the answer.
pub(crate) async fn dispatch(
    shared: &Arc<Shared>,
    context: &RequestContext,
    request: RawRequest,
) -> Result<Outcome, HandlerError> {
    let services = &shared.services;
    /// Handlers of the plain form, by name.
    macro_rules! answer {
        ($handler:path) => {{
            let response = $handler(services, context, request.decode()?).await;
            reply(&request, &response)
        }};
    }
    match request.api.key {
        ApiKey::Produce => produce(services, context, &request).await,
        ApiKey::Fetch => {
            let fetched = fetch::fetch(shared, context, request.decode()?).await;
            Ok(Outcome::Reply(fetch_response::encode(request.correlation_id, request.version, fetched)?))
        }
        ApiKey::ListOffsets => answer!(list_offsets::list_offsets),
        ApiKey::Metadata => answer!(metadata::metadata),
        ApiKey::OffsetCommit => answer!(offsets::offset_commit),
        ApiKey::OffsetFetch => answer!(offsets::offset_fetch),
        ApiKey::FindCoordinator => answer!(groups::find_coordinator),
        ApiKey::JoinGroup => until_shutdown(shared, async { answer!(groups::join_group) }).await,
        ApiKey::Heartbeat => answer!(groups::heartbeat),
        ApiKey::LeaveGroup => answer!(groups::leave_group),
        ApiKey::SyncGroup => until_shutdown(shared, async { answer!(groups::sync_group) }).await,
        ApiKey::DescribeGroups => answer!(groups::describe_groups),
        ApiKey::ListGroups => answer!(groups::list_groups),
        ApiKey::ApiVersions => answer!(api_versions::api_versions),
        ApiKey::CreateTopics => answer!(topics::create_topics),
        ApiKey::DeleteTopics => answer!(topics::delete_topics),
        ApiKey::DeleteRecords => answer!(delete_records::delete_records),
        ApiKey::InitProducerId => answer!(producer_id::init_producer_id),
        ApiKey::OffsetForLeaderEpoch => answer!(leader_epoch::offset_for_leader_epoch),
        ApiKey::DescribeAcls => answer!(security::describe_acls),
        ApiKey::CreateAcls => answer!(security::create_acls),
        ApiKey::DeleteAcls => answer!(security::delete_acls),
        ApiKey::AddPartitionsToTxn => answer!(transactions::add_partitions_to_txn),
        ApiKey::AddOffsetsToTxn => answer!(transactions::add_offsets_to_txn),
        ApiKey::EndTxn => answer!(transactions::end_txn),
        ApiKey::TxnOffsetCommit => answer!(transactions::txn_offset_commit),
        ApiKey::DescribeConfigs => answer!(configs::describe_configs),
        ApiKey::AlterConfigs => answer!(alter_configs::alter_configs),
        ApiKey::IncrementalAlterConfigs => answer!(alter_configs::incremental_alter_configs),
        ApiKey::DescribeLogDirs => answer!(log_dirs::describe_log_dirs),
        ApiKey::CreatePartitions => answer!(partitions::create_partitions),
        ApiKey::DeleteGroups => answer!(group_deletion::delete_groups),
        ApiKey::ElectLeaders => answer!(replicas::elect_leaders),
        ApiKey::ListPartitionReassignments => answer!(replicas::list_partition_reassignments),
        ApiKey::OffsetDelete => answer!(group_deletion::offset_delete),
        ApiKey::DescribeClientQuotas => answer!(security::describe_client_quotas),
        ApiKey::DescribeUserScramCredentials => answer!(security::describe_user_scram_credentials),
        ApiKey::DescribeCluster => answer!(cluster::describe_cluster),
        ApiKey::ListConfigResources => answer!(configs::list_config_resources),
        ApiKey::DescribeTopicPartitions => answer!(partitions::describe_topic_partitions),
        ApiKey::DescribeProducers => answer!(transactions::describe_producers),
        ApiKey::DescribeTransactions => answer!(transactions::describe_transactions),
        ApiKey::ListTransactions => answer!(transactions::list_transactions),
        other => Err(HandlerError::NoHandler(other)),
    }
}

fn reply<T: Encodable + HeaderVersion>(request: &RawRequest, response: &T) -> Result<Outcome, HandlerError> {
    Ok(Outcome::Reply(encode::response(request.correlation_id, request.version, response)?))
}

async fn produce(
    services: &Arc<Services>,
    context: &RequestContext,
    request: &RawRequest,
) -> Result<Outcome, HandlerError> {
    let produced = produce::produce(services, context, request.decode()?).await;
    if !produced.wants_ack() {
        return match produced.first_error() {
            None => Ok(Outcome::Silent),
            Some(error) => Err(HandlerError::UnackedProduce(error)),
        };
    }
    let (correlation_id, version) = (request.correlation_id, request.version);
    let metrics = services.metrics.clone();
    let answer = async move { encode::response(correlation_id, version, &produced.settle(&metrics).await) };
    Ok(Outcome::Later(answer.boxed()))
}

/// For requests that wait for other clients, who will not come any more: gives up when the broker shuts down.
async fn until_shutdown(
    shared: &Shared,
    handling: impl Future<Output = Result<Outcome, HandlerError>>,
) -> Result<Outcome, HandlerError> {
    tokio::select! {
        biased;
        outcome = handling => outcome,
        () = shared.shutdown.cancelled() => Err(HandlerError::ShuttingDown),
    }
}

/// Runs blocking work on the blocking pool. A panic in it goes on in the caller.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(failure) => match failure.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Cancelled: the runtime is going away, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}

/// The number on the wire; 0 is success.
pub(crate) fn code(error: Option<ResponseError>) -> i16 {
    error.map_or(0, |error| error.code())
}

/// What is asked for, each once by its key: an answer may be thousands of times what asks for it.
fn distinct<T, K: Eq + Hash>(asked: Vec<T>, key: impl Fn(&T) -> K) -> impl Iterator<Item = T> {
    let mut seen = HashSet::new();
    asked.into_iter().filter(move |item| seen.insert(key(item)))
}

/// A string of ours in a response.
pub(crate) fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

/// The partition of a topic that may not exist.
pub(crate) fn find_partition(topic: Option<&Arc<Topic>>, index: i32) -> Result<Arc<Partition>, ResponseError> {
    let partition = topic.and_then(|topic| topic.partition(PartitionId(index)));
    partition.cloned().ok_or(ResponseError::UnknownTopicOrPartition)
}

/// Holds the epoch a client believes in against ours; -1 is no opinion.
pub(crate) fn check_leader_epoch(current: i32) -> Result<(), ResponseError> {
    match current {
        ..0 | LEADER_EPOCH => Ok(()),
        newer if newer > LEADER_EPOCH => Err(ResponseError::UnknownLeaderEpoch),
        _ => Err(ResponseError::FencedLeaderEpoch),
    }
}

/// The code by which a client understands why a topic was not created, changed or deleted.
pub(crate) fn topic_error(error: &TopicError) -> ResponseError {
    match error {
        TopicError::Exists(_) => ResponseError::TopicAlreadyExists,
        TopicError::Unknown(_) => ResponseError::UnknownTopicOrPartition,
        TopicError::Partitions { .. } | TopicError::NotMore { .. } => ResponseError::InvalidPartitions,
        TopicError::TooMany(_) => ResponseError::PolicyViolation,
        TopicError::Internal(_) => ResponseError::TopicDeletionDisabled,
        TopicError::Config { .. } | TopicError::Archived(_) | TopicError::ArchivedAndCompacted(_) => {
            ResponseError::InvalidConfig
        }
        TopicError::Log { .. } | TopicError::Metadata(_) => ResponseError::KafkaStorageError,
    }
}

#[cfg(test)]
mod tests;
