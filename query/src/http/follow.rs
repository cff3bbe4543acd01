//! `GET` and `POST /v1/search/follow`: matches as lines of JSON as they become searchable, until the client goes away,
//! the broker drains or a topic that was named is deleted.
//!
//! A line is a message, as in a replay, or `{"cursor":"..."}`: the place after all lines before it. One follows each
//! batch of messages and comes as a sign of life while there are none. Who comes back with the last one sees each match
//! once. A stream that cannot go on ends with `{"error":{"code","message"}}`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;
use thermocline_ingest::model::TopicName;
use tokio_util::sync::CancellationToken;

use super::App;
use super::error::ApiError;
use super::extract::{JsonBody, NoParams, Params};
use crate::message::of_owned;
use crate::search::{Follow, FollowBatch, FollowRequest};
use crate::time::{Rounding, TimeExpr};

/// What to follow, as parameters; `topics` is separated by commas.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FollowParams {
    #[serde(default)]
    q: String,
    topics: Option<String>,
    from: Option<TimeExpr>,
    cursor: Option<String>,
}

/// What to follow, as JSON: a cursor over many partitions is too long for an address.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FollowBody {
    #[serde(default)]
    q: String,
    #[serde(default)]
    topics: Vec<String>,
    from: Option<TimeExpr>,
    cursor: Option<String>,
}

struct Tail {
    /// None after the end.
    follow: Option<Follow>,
    /// Told before anything else: where it begins.
    first: Option<Bytes>,
    shutdown: CancellationToken,
}

pub(super) async fn follow_by_query(
    State(app): State<Arc<App>>,
    Params(params): Params<FollowParams>,
) -> Result<Response, ApiError> {
    let FollowParams { q, topics, from, cursor } = params;
    let topics = topics.map(|topics| topics.split(',').map(str::to_owned).collect()).unwrap_or_default();
    follow(&app, FollowBody { q, topics, from, cursor }).await
}

pub(super) async fn follow_by_body(
    State(app): State<Arc<App>>,
    Params(NoParams {}): Params<NoParams>,
    JsonBody(body): JsonBody<FollowBody>,
) -> Result<Response, ApiError> {
    follow(&app, body).await
}

async fn follow(app: &App, body: FollowBody) -> Result<Response, ApiError> {
    let topics = body.topics.iter().map(|name| TopicName::new(name).map_err(ApiError::bad_request));
    let now = app.services.clock.now();
    let from = body.from.map(|time| time.at(now, Rounding::Down)).transpose();
    let request = FollowRequest {
        query: body.q,
        now,
        topics: topics.collect::<Result<_, _>>()?,
        from: from.map_err(ApiError::bad_request)?,
        cursor: body.cursor,
    };
    let follow = app.services.search.follow(request).await?;
    let first = Some(cursor_line(&follow.cursor()).into());
    let tail = Tail { follow: Some(follow), first, shutdown: app.shutdown.clone() };
    let lines = futures::stream::unfold(tail, |mut tail| async move {
        let lines = tail.next().await?;
        Some((Ok::<_, std::convert::Infallible>(lines), tail))
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

impl Tail {
    /// The next lines; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let follow = self.follow.as_mut()?;
        let batch = tokio::select! {
            () = self.shutdown.cancelled() => return None,
            batch = follow.next() => batch,
        };
        match batch {
            Ok(batch) => Some(lines(&batch).into()),
            // Topics close before the last requests end.
            Err(_) if self.shutdown.is_cancelled() => None,
            Err(error) => {
                self.follow = None;
                let error = ApiError::from(error);
                Some(error_line(&error).into())
            }
        }
    }
}

fn lines(batch: &FollowBatch) -> Vec<u8> {
    let mut lines = Vec::new();
    for hit in &batch.hits {
        of_owned(hit.topic.as_str(), hit.partition, &hit.record).write_json(&mut lines);
        lines.push(b'\n');
    }
    lines.extend_from_slice(&cursor_line(&batch.cursor));
    lines
}

/// A topic's name and what stands in a cursor need no escapes.
fn cursor_line(cursor: &str) -> Vec<u8> {
    format!("{{\"cursor\":\"{cursor}\"}}\n").into_bytes()
}

/// The last line of a stream that cannot go on.
pub(super) fn error_line(error: &ApiError) -> Vec<u8> {
    let line = serde_json::json!({"error": {"code": error.code, "message": error.message}});
    format!("{line}\n").into_bytes()
}
