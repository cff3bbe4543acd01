//! Produce: each batch to its partition, offsets assigned in request order, the ack when the group commit has it on
//! disk.
//!
//! Two steps. [`produce`] appends: when it returns, the offsets of this request are decided, and the next request of
//! the connection may begin. [`Produced::settle`] waits for the commit. So an ack with acks=1 or all means: on disk,
//! under the default flush policy.
//! The record bytes are slices of the request frame, copied once, into the log. They are not decoded, unless the topic
//! is compacted, limits the age of records or has a codec of its own; then off the runtime, like the append itself.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::TopicName as WireName;
use kafka_protocol::messages::produce_request::ProduceRequest;
use kafka_protocol::messages::produce_response::{
    BatchIndexAndErrorMessage, PartitionProduceResponse, ProduceResponse, TopicProduceResponse,
};
use tokio::time::Instant;
use tracing::{debug, error, warn};

use super::transactions::refused;
use super::{RequestContext, blocking, code, find_partition, text};
use crate::log::{AppendError, Appended, Partition, TransactionRefusal};
use crate::metrics::IngestMetrics;
use crate::model::{Offset, ProducerId};
use crate::record::{BatchHeader, BatchRefusal, Compression};
use crate::server::Services;

/// First version that may carry zstd.
const ZSTD_SINCE: i16 = 7;
/// First version whose clients know TRANSACTION_ABORTABLE (KIP-890): they abort and go on.
const ABORTABLE_SINCE: i16 = 11;
/// Where the attributes of a v2 batch lie, and the bits looked at here.
const ATTRIBUTES_AT: usize = 21;
const CODEC_BITS: i16 = 0b111;
const TRANSACTIONAL_BIT: i16 = 0b1_0000;
/// Longest an ack may be waited for, whatever the client asks.
const ACK_WAIT_MAX: Duration = Duration::from_secs(300);

/// A request whose appends are done.
pub struct Produced {
    acks: i16,
    response: ProduceResponse,
    waits: Vec<Wait>,
    started: Instant,
    deadline: Instant,
}

/// An append that is not yet known to be durable.
struct Wait {
    topic: usize,
    partition: usize,
    log: Arc<Partition>,
    /// Exclusive.
    until: Offset,
}

/// One append to do: where the answer goes, where the bytes go.
struct Append {
    topic: usize,
    partition: usize,
    log: Arc<Partition>,
    batch: Bytes,
}

/// Appends every batch of the request that may be appended.
pub async fn produce(services: &Arc<Services>, context: &RequestContext, request: ProduceRequest) -> Produced {
    let wait = Duration::from_millis(u64::try_from(request.timeout_ms).unwrap_or(0)).min(ACK_WAIT_MAX);
    let started = Instant::now();
    let acks = request.acks;
    let transaction = (services.transactions.clone(), request.transactional_id.clone().unwrap_or_default());
    let (mut response, appends) = plan(services, context, request);
    let done = blocking(move || {
        let (transactions, id) = transaction;
        let append = |append: Append| {
            let at = append.log.topic_partition();
            let admission = |header: &BatchHeader| {
                transactions.admits(id.0.as_str(), (ProducerId(header.producer_id), header.producer_epoch), at)
            };
            (append.log.append_in_transaction(&append.batch, &admission), append)
        };
        appends.into_iter().map(append).collect::<Vec<_>>()
    });
    let mut waits = Vec::new();
    for (outcome, append) in done.await {
        let Some(row) = row(&mut response, append.topic, append.partition) else { continue };
        match outcome {
            Ok(appended) => {
                count(services, &append, appended);
                row.base_offset = appended.base_offset.0;
                row.log_append_time_ms = appended.log_append_time.0;
                row.log_start_offset = append.log.log_start_offset().0;
                waits.push(Wait {
                    topic: append.topic,
                    partition: append.partition,
                    log: append.log,
                    until: appended.last_offset.next(),
                });
            }
            Err(failure) => {
                let partition = append.log.topic_partition();
                match &failure {
                    // Said once, when it came to that; producers try again and again.
                    AppendError::DiskReserve { .. } | AppendError::Replaced { .. } => {
                        debug!(%partition, client_id = context.client_id, %failure);
                    }
                    _ => warn!(%partition, client_id = context.client_id, %failure, "batch refused"),
                }
                refuse(row, &failure);
                if context.api_version >= ABORTABLE_SINCE && is_abortable(&failure) {
                    row.error_code = ResponseError::TransactionAbortable.code();
                }
            }
        }
    }
    Produced { acks, response, waits, started, deadline: started + wait }
}

/// Answers what can be answered from the request alone, and lists the appends to do.
fn plan(services: &Services, context: &RequestContext, request: ProduceRequest) -> (ProduceResponse, Vec<Append>) {
    let whole = refusal_of_request(&request);
    let has_transactional_id = request.transactional_id.is_some();
    let mut appends = Vec::new();
    let mut topics = Vec::with_capacity(request.topic_data.len());
    for (topic_at, data) in request.topic_data.into_iter().enumerate() {
        let topic = services.topics.get(data.name.as_str());
        let mut rows = Vec::with_capacity(data.partition_data.len());
        for (partition_at, data) in data.partition_data.into_iter().enumerate() {
            let batch = data.records.unwrap_or_default();
            let checked = match (whole, &topic) {
                (Some(error), _) => Err(error),
                (None, Some(topic)) if topic.is_internal() => Err(ResponseError::InvalidTopicException),
                (None, topic) => refusal_of_batch(context.api_version, has_transactional_id, &batch)
                    .map_or(Ok(()), Err)
                    .and_then(|()| find_partition(topic.as_ref(), data.index)),
            };
            let error = match checked {
                Ok(log) => {
                    appends.push(Append { topic: topic_at, partition: partition_at, log, batch });
                    None
                }
                Err(error) => Some(error),
            };
            rows.push(
                PartitionProduceResponse::default()
                    .with_index(data.index)
                    .with_error_code(code(error))
                    .with_base_offset(-1),
            );
        }
        // A copy: the answer waits for the commit, and must not keep the frame, whose memory is others' by then.
        let name = WireName(text(&data.name));
        topics.push(TopicProduceResponse::default().with_name(name).with_partition_responses(rows));
    }
    (ProduceResponse::default().with_responses(topics), appends)
}

/// Whether aborting the transaction puts right what was refused.
fn is_abortable(failure: &AppendError) -> bool {
    matches!(failure, AppendError::Transaction { reason: TransactionRefusal::NotIncluded, .. })
}

/// What makes every partition of a request fail.
fn refusal_of_request(request: &ProduceRequest) -> Option<ResponseError> {
    (!matches!(request.acks, -1..=1)).then_some(ResponseError::InvalidRequiredAcks)
}

/// What the log cannot know (the request's version, its transactional id) or need not be asked.
fn refusal_of_batch(version: i16, has_transactional_id: bool, batch: &[u8]) -> Option<ResponseError> {
    let attributes = batch.get(ATTRIBUTES_AT..).and_then(|rest| rest.first_chunk());
    let Some(attributes) = attributes else { return Some(ResponseError::InvalidRecord) };
    let attributes = i16::from_be_bytes(*attributes);
    if attributes & TRANSACTIONAL_BIT != 0 && !has_transactional_id {
        // As Kafka: who writes in a transaction must say whose.
        return Some(ResponseError::TransactionalIdAuthorizationFailed);
    }
    let zstd = attributes & CODEC_BITS == Compression::Zstd as i16;
    (zstd && version < ZSTD_SINCE).then_some(ResponseError::UnsupportedCompressionType)
}

impl Produced {
    /// Whether the client expects an answer at all (acks 1, -1, and values that are refused).
    pub fn wants_ack(&self) -> bool {
        self.acks != 0
    }

    /// The first error so far: what closes the connection of a client that asked for no ack.
    pub fn first_error(&self) -> Option<ResponseError> {
        let rows = self.response.responses.iter().flat_map(|topic| &topic.partition_responses);
        rows.map(|row| row.error_code).find(|&code| code != 0).and_then(ResponseError::try_from_code)
    }

    /// Waits until everything appended is committed, or the request's timeout has passed.
    pub async fn settle(mut self, metrics: &IngestMetrics) -> ProduceResponse {
        let waits = std::mem::take(&mut self.waits);
        let has_appended = !waits.is_empty();
        for wait in waits {
            // The commits run side by side; a passed deadline still lets those through that are done.
            let committed = tokio::time::timeout_at(self.deadline, wait.log.committed(wait.until)).await;
            let Some(row) = row(&mut self.response, wait.topic, wait.partition) else { continue };
            match committed {
                Ok(Ok(())) => {}
                Ok(Err(failure)) => {
                    error!(partition = %wait.log.topic_partition(), %failure, "appended records could not be committed");
                    refuse(row, &failure);
                }
                Err(_) => {
                    row.error_code = ResponseError::RequestTimedOut.code();
                    row.base_offset = -1;
                }
            }
        }
        if has_appended {
            metrics.observe_produce(self.started.elapsed());
        }
        self.response
    }
}

fn row(response: &mut ProduceResponse, topic: usize, partition: usize) -> Option<&mut PartitionProduceResponse> {
    response.responses.get_mut(topic)?.partition_responses.get_mut(partition)
}

fn refuse(row: &mut PartitionProduceResponse, failure: &AppendError) {
    row.error_code = produce_error(failure).code();
    row.error_message = Some(text(&failure.to_string()));
    // Both are left out below version 8.
    if let AppendError::Refused(refusal) = failure {
        let (indexes, reason) = refusal.records();
        let at = |index: &i32| {
            let error = BatchIndexAndErrorMessage::default().with_batch_index(*index);
            error.with_batch_index_error_message(Some(text(reason)))
        };
        row.record_errors = indexes.iter().map(at).collect();
    }
    row.base_offset = -1;
    row.log_append_time_ms = -1;
}

fn count(services: &Services, append: &Append, appended: Appended) {
    if !appended.duplicate {
        services.metrics.produced_bytes.inc_by(append.batch.len() as u64);
        services.metrics.produced_records.inc_by(appended.base_offset.distance_to(appended.last_offset.next()));
    }
}

/// The code by which a producer understands why its batch was refused; [`AppendError`] and [`BatchRefusal`] name it for
/// each variant. Never UNKNOWN_SERVER_ERROR, which clients take for final.
fn produce_error(failure: &AppendError) -> ResponseError {
    match failure {
        AppendError::Refused(refusal) => match refusal {
            BatchRefusal::InvalidRecord(_)
            | BatchRefusal::NotOneBatch(_)
            | BatchRefusal::BadRecords(_)
            | BatchRefusal::KeysMissing { .. } => ResponseError::InvalidRecord,
            BatchRefusal::Corrupt(_) => ResponseError::CorruptMessage,
            BatchRefusal::MessageTooLarge { .. } | BatchRefusal::DecompressedTooLarge(_) => {
                ResponseError::MessageTooLarge
            }
            BatchRefusal::LargerThanSegment { .. } => ResponseError::RecordListTooLarge,
            BatchRefusal::InvalidTimestamp { .. } => ResponseError::InvalidTimestamp,
            BatchRefusal::UnsupportedCompression(_) => ResponseError::UnsupportedCompressionType,
        },
        AppendError::InvalidProducerEpoch { .. } => ResponseError::InvalidProducerEpoch,
        AppendError::OutOfOrderSequence { .. } => ResponseError::OutOfOrderSequenceNumber,
        AppendError::OpenTransaction { .. } => ResponseError::InvalidTxnState,
        AppendError::Transaction { reason, .. } => refused(*reason),
        AppendError::DiskReserve { .. } | AppendError::Storage { .. } | AppendError::Offline { .. } => {
            ResponseError::KafkaStorageError
        }
        AppendError::Replaced { .. } | AppendError::Closed(_) => ResponseError::NotLeaderOrFollower,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(attributes: i16) -> Vec<u8> {
        let mut batch = vec![0; 61];
        batch[ATTRIBUTES_AT..ATTRIBUTES_AT + 2].copy_from_slice(&attributes.to_be_bytes());
        batch
    }

    #[test]
    fn requests_are_refused_for_what_they_ask() {
        let request = |acks| ProduceRequest::default().with_acks(acks);
        for acks in [-1, 0, 1] {
            assert_eq!(refusal_of_request(&request(acks)), None);
        }
        for acks in [-2, 2, i16::MAX] {
            assert_eq!(refusal_of_request(&request(acks)), Some(ResponseError::InvalidRequiredAcks));
        }
    }

    #[test]
    fn batches_are_refused_for_what_their_attributes_say() {
        assert_eq!(refusal_of_batch(11, false, &[]), Some(ResponseError::InvalidRecord));
        assert_eq!(refusal_of_batch(11, false, &[0; 22]), Some(ResponseError::InvalidRecord));
        assert_eq!(refusal_of_batch(3, false, &batch(3)), None);
        assert_eq!(refusal_of_batch(6, false, &batch(4)), Some(ResponseError::UnsupportedCompressionType));
        assert_eq!(refusal_of_batch(7, false, &batch(4)), None);
        let nobodys = Some(ResponseError::TransactionalIdAuthorizationFailed);
        assert_eq!(
            (refusal_of_batch(11, false, &batch(0x10)), refusal_of_batch(11, true, &batch(0x10))),
            (nobodys, None)
        );
    }
}
