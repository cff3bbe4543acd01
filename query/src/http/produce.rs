//! `POST /v1/topics/{t}/messages`: NDJSON in, batches into the log, offsets out.
//!
//! Every line is checked and every batch built before the first one is appended, so that input with a mistake leaves
//! nothing behind. Batches are appended one by one: where the log itself fails in the middle, those before stay.
//! The answer leaves when all of them are committed as the topic's flush policy says.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use serde::Serialize;

use super::App;
use super::error::ApiError;
use super::extract::{NoParams, Params, TopicPath, read_body};
use crate::append::{Batch, Batches, MessageRefusal, Partitioner, ProducedRange, Rules, append, committed};
use crate::message::parse_produce_line;

#[derive(Debug, Serialize)]
pub(super) struct Produced {
    offsets: Vec<ProducedRange>,
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
    committed(&topic, &offsets).await?;
    Ok(Json(Produced { offsets }))
}

/// Checks all lines and builds their batches; refuses all of them for a mistake in one.
fn encode(body: &[u8], rules: &Rules, keyless: &AtomicUsize) -> Result<Vec<Batch>, ApiError> {
    let mut partitioner = Partitioner::new(rules.partitions, keyless);
    let mut batches = Batches::new(*rules);
    for (index, line) in body.split(|byte| *byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let at = |message: String| format!("line {}: {message}", index + 1);
        let line = parse_produce_line(line).map_err(|error| ApiError::bad_request(at(error.to_string())))?;
        batches.push(&line, &mut partitioner).map_err(|refusal| refused(&refusal, at(refusal.to_string())))?;
    }
    batches.finish().map_err(|refusal| refused(&refusal, refusal.to_string()))
}

fn refused(refusal: &MessageRefusal, message: String) -> ApiError {
    match refusal {
        MessageRefusal::TooLarge { .. } => ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "message_too_large", message),
        MessageRefusal::NoPartition { .. } | MessageRefusal::Timestamp { .. } => ApiError::bad_request(message),
    }
}

#[cfg(test)]
mod tests {
    use thermocline_ingest::model::{Offset, PartitionId, Timestamp};

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
    fn the_answer_has_the_pinned_shape() {
        let range = ProducedRange { partition: PartitionId(1), base_offset: Offset(7), count: 2 };
        let text = serde_json::to_string(&Produced { offsets: vec![range] }).unwrap();
        assert_eq!(text, r#"{"offsets":[{"partition":1,"base_offset":7,"count":2}]}"#);
    }
}
