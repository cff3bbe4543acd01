//! `POST /v1/topics/{t}/messages`: NDJSON in, batches into the log, offsets out.
//!
//! Every line is checked and every batch built before the first one is appended, so that input with a mistake leaves
//! nothing behind. Batches are appended one by one: where the log itself fails in the middle, those before stay.
//! The answer leaves when all of them are committed as the topic's flush policy says.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use serde::Serialize;
use thermocline_config::TopicConfig;
use thermocline_ingest::log::AppendError;
use thermocline_ingest::model::{Offset, PartitionId, Timestamp, TimestampType};
use thermocline_ingest::record::{BATCH_HEADER_LEN, BatchEncoder};
use thermocline_ingest::topics::Topic;

use super::App;
use super::error::ApiError;
use super::extract::{NoParams, Params, TopicPath, read_body};
use super::partitioner::Partitioner;
use crate::message::{ProduceLine, parse_produce_line};

/// Latest timestamp that a message may have: the archive counts microseconds in 64 bits.
const TIMESTAMP_MAX: Timestamp = Timestamp(i64::MAX / 1000);
/// Most a record can take beside its key, value and headers: length, attributes, two deltas, three counts.
const RECORD_OVERHEAD_BYTES_MAX: usize = 5 + 1 + 10 + 5 + 5 + 5 + 5;
/// Most a header can take beside its key and value.
const HEADER_OVERHEAD_BYTES_MAX: usize = 5 + 5;

#[derive(Debug, Serialize)]
pub(super) struct Produced {
    offsets: Vec<ProducedRange>,
}

/// Consecutive offsets that messages of the request got.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct ProducedRange {
    partition: PartitionId,
    base_offset: Offset,
    count: u64,
}

/// What the topic demands of every message.
#[derive(Clone, Copy, Debug)]
struct Rules {
    partitions: usize,
    max_message_bytes: usize,
    now: Timestamp,
    /// Timestamps that are accepted, both ends inclusive; -1, which says that there is none, always is.
    earliest: Timestamp,
    latest: Timestamp,
}

/// A batch ready to append.
struct Batch {
    /// Index into the topic's partitions.
    partition: usize,
    bytes: Bytes,
    records: u64,
}

/// The lines of one request on their way into batches.
struct Batches {
    encoders: Vec<Option<BatchEncoder>>,
    finished: Vec<Batch>,
    rules: Rules,
}

pub(super) async fn produce(
    State(app): State<Arc<App>>,
    TopicPath(topic): TopicPath,
    Params(NoParams {}): Params<NoParams>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Produced>, ApiError> {
    if topic.is_internal() {
        return Err(ApiError::internal_topic(topic.name.as_str()));
    }
    let body = read_body(&headers, body, app.services.config.request_max_bytes.as_usize()).await?;
    let offsets = tokio::task::spawn_blocking({
        let topic = topic.clone();
        move || {
            let rules = Rules::of(&topic.config(), topic.partitions.len(), app.services.clock.now());
            let batches = encode(&body, &rules, &app.keyless)?;
            append(&topic, &batches).map_err(ApiError::from)
        }
    })
    .await??;
    for range in &offsets {
        if let Some(partition) = topic.partition(range.partition) {
            let end = range.base_offset.plus(i64::try_from(range.count).unwrap_or(i64::MAX));
            partition.committed(end).await?;
        }
    }
    Ok(Json(Produced { offsets }))
}

/// Checks all lines and builds their batches; refuses all of them for a mistake in one.
fn encode(body: &[u8], rules: &Rules, keyless: &AtomicUsize) -> Result<Vec<Batch>, ApiError> {
    let partitions = rules.partitions;
    let mut partitioner = Partitioner::new(partitions, keyless);
    let mut batches =
        Batches { encoders: (0..partitions).map(|_| None).collect(), finished: Vec::new(), rules: *rules };
    for (index, line) in body.split(|byte| *byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let at = |message: String| ApiError::bad_request(format!("line {}: {message}", index + 1));
        let line = parse_produce_line(line).map_err(|error| at(error.to_string()))?;
        rules.check_timestamp(&line).map_err(at)?;
        let size_bytes = size_bytes_max(&line);
        let partition = match line.partition {
            Some(PartitionId(id)) => usize::try_from(id).ok().filter(|id| *id < partitions).ok_or_else(|| {
                at(format!("there is no partition {id}; the topic has 0 to {}", partitions.saturating_sub(1)))
            })?,
            None => partitioner.choose(line.key.as_deref(), size_bytes),
        };
        batches
            .push(partition, &line, size_bytes)
            .map_err(|error| ApiError { message: format!("line {}: {}", index + 1, error.message), ..error })?;
    }
    batches.finish()
}

impl Rules {
    fn of(config: &TopicConfig, partitions: usize, now: Timestamp) -> Self {
        // With log append time the broker's own takes the place of whatever the message says.
        let window = |ms: Option<i64>| ms.filter(|_| !config.log_append_time);
        Self {
            partitions,
            max_message_bytes: config.max_message_bytes,
            now,
            earliest: window(config.timestamp_before_max_ms)
                .map_or(Timestamp::NONE, |ms| Timestamp(now.0.saturating_sub(ms)).max(Timestamp::NONE)),
            latest: window(config.timestamp_after_max_ms)
                .map_or(TIMESTAMP_MAX, |ms| Timestamp(now.0.saturating_add(ms)).min(TIMESTAMP_MAX)),
        }
    }

    fn check_timestamp(&self, line: &ProduceLine<'_>) -> Result<(), String> {
        let (earliest, latest) = (self.earliest, self.latest);
        match line.timestamp {
            Some(timestamp) if timestamp != Timestamp::NONE && !(earliest..=latest).contains(&timestamp) => {
                Err(format!(
                    "timestamp {timestamp} is outside {earliest}..={latest} ms, which message.timestamp.before.max.ms and \
                 message.timestamp.after.max.ms allow now"
                ))
            }
            _ => Ok(()),
        }
    }
}

/// Upper bound on the encoded size of a message.
fn size_bytes_max(line: &ProduceLine<'_>) -> usize {
    let len = |bytes: &Option<Cow<'_, [u8]>>| bytes.as_deref().map_or(0, <[u8]>::len);
    let headers: usize =
        line.headers.iter().map(|(key, value)| HEADER_OVERHEAD_BYTES_MAX + key.len() + len(value)).sum();
    RECORD_OVERHEAD_BYTES_MAX + len(&line.key) + len(&line.value) + headers
}

impl Batches {
    fn push(&mut self, partition: usize, line: &ProduceLine<'_>, size_bytes: usize) -> Result<(), ApiError> {
        let full = |encoder: &BatchEncoder| encoder.len_bytes() + size_bytes > self.rules.max_message_bytes;
        if self.encoders.get(partition).and_then(Option::as_ref).is_some_and(full) {
            self.seal(partition)?;
        }
        let Some(slot) = self.encoders.get_mut(partition) else { return Ok(()) };
        let encoder = slot.get_or_insert_with(|| BatchEncoder::new(TimestampType::CreateTime));
        let headers = line.headers.iter().map(|(key, value)| (key.as_bytes(), value.as_deref()));
        // Produced batches count from 0; the log gives them their offsets.
        let offset = Offset(i64::try_from(encoder.record_count()).unwrap_or(i64::MAX));
        let timestamp = line.timestamp.unwrap_or(self.rules.now);
        encoder.push(offset, timestamp, line.key.as_deref(), line.value.as_deref(), headers);
        // Nothing fits beside a message that may not fit itself: know now, while its line is known.
        if BATCH_HEADER_LEN + size_bytes > self.rules.max_message_bytes { self.seal(partition) } else { Ok(()) }
    }

    /// Finishes the batch of a partition.
    fn seal(&mut self, partition: usize) -> Result<(), ApiError> {
        let Some(encoder) = self.encoders.get_mut(partition).and_then(Option::as_mut) else { return Ok(()) };
        let records = encoder.record_count() as u64;
        let Some(bytes) = encoder.finish() else { return Ok(()) };
        if bytes.len() > self.rules.max_message_bytes {
            let message = format!(
                "a message of {} bytes with its batch header exceeds max.message.bytes of {}",
                bytes.len(),
                self.rules.max_message_bytes
            );
            return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "message_too_large", message));
        }
        self.finished.push(Batch { partition, bytes, records });
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<Batch>, ApiError> {
        for partition in 0..self.encoders.len() {
            self.seal(partition)?;
        }
        Ok(self.finished)
    }
}

/// Appends the batches. Blocking.
fn append(topic: &Topic, batches: &[Batch]) -> Result<Vec<ProducedRange>, AppendError> {
    let mut ranges: Vec<ProducedRange> = Vec::new();
    for batch in batches {
        let Some(partition) = topic.partitions.get(batch.partition) else { continue };
        let appended = partition.append(&batch.bytes)?;
        let range = ProducedRange {
            partition: partition.topic_partition().partition,
            base_offset: appended.base_offset,
            count: batch.records,
        };
        add_range(&mut ranges, range);
    }
    Ok(ranges)
}

/// Adds `range`, joined with the last one of its partition where nothing lies between them.
fn add_range(ranges: &mut Vec<ProducedRange>, range: ProducedRange) {
    match ranges.iter_mut().rev().find(|last| last.partition == range.partition) {
        Some(last) if last.base_offset.distance_to(range.base_offset) == last.count => last.count += range.count,
        _ => ranges.push(range),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules {
        partitions: 3,
        max_message_bytes: 1000,
        now: Timestamp(5000),
        earliest: Timestamp(4000),
        latest: Timestamp(6000),
    };

    fn refusal(body: &str) -> ApiError {
        encode(body.as_bytes(), &RULES, &AtomicUsize::new(0)).map(|_| ()).unwrap_err()
    }

    #[test]
    fn timestamps_outside_the_window_are_refused() {
        let check = |timestamp| RULES.check_timestamp(&ProduceLine { timestamp, ..ProduceLine::default() }).is_ok();
        for good in [None, Some(-1), Some(4000), Some(6000)] {
            assert!(check(good.map(Timestamp)), "{good:?}");
        }
        for bad in [0, 3999, 6001, i64::MAX, -2, i64::MIN] {
            assert!(!check(Some(Timestamp(bad))), "{bad}");
        }
    }

    #[test]
    fn the_first_bad_line_is_named() {
        for (body, line, reason) in [
            ("{\"key\":\"a\"}\n", "line 1: ", "value is missing"),
            ("\n\n{\"value\":\"a\",\"partition\":3}", "line 3: ", "the topic has 0 to 2"),
            ("{\"value\":\"a\",\"partition\":-1}", "line 1: ", "no partition -1"),
            ("\n{\"value\":\"a\",\"timestamp\":1}", "line 2: ", "timestamp 1 is outside 4000..=6000 ms"),
        ] {
            let error = refusal(body);
            assert_eq!((error.status, error.code), (StatusCode::BAD_REQUEST, "bad_request"));
            assert!(error.message.starts_with(line) && error.message.contains(reason), "{}", error.message);
        }
    }

    #[test]
    fn neighbouring_ranges_are_joined() {
        let range = |partition, base_offset, count| ProducedRange {
            partition: PartitionId(partition),
            base_offset: Offset(base_offset),
            count,
        };
        let mut ranges = Vec::new();
        for next in [range(0, 5, 2), range(1, 0, 3), range(0, 7, 1), range(0, 9, 1), range(1, 3, 1)] {
            add_range(&mut ranges, next);
        }
        assert_eq!(ranges, [range(0, 5, 3), range(1, 0, 4), range(0, 9, 1)]);
    }

    #[test]
    fn the_answer_has_the_pinned_shape() {
        let range = ProducedRange { partition: PartitionId(1), base_offset: Offset(7), count: 2 };
        let text = serde_json::to_string(&Produced { offsets: vec![range] }).unwrap();
        assert_eq!(text, r#"{"offsets":[{"partition":1,"base_offset":7,"count":2}]}"#);
    }
}
