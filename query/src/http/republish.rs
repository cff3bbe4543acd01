//! `POST /v1/topics/{t}/replay`: publishes messages of a topic into another one, or counts them. The answer is lines of
//! JSON: how far it is, again and again, and how it ended.
//!
//! ```text
//! {"progress":{"matched":9,"published":9,"bytes":512,"missing":0,...},"position":"0@17..100,1@0..50"}
//! {"done":{"matched":...},"position":"end"}
//! {"error":{"code":"...","message":"..."},"progress":{...},"position":"0@17..100"}
//! ```
//!
//! The last line is `done` or `error`; a stream that ends without either has broken off, and goes on from the last
//! position. A client that goes away stops the replay.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use thermocline_ingest::model::{Offset, PartitionId, Timestamp};
use thermocline_tiering::budget::Rates;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::App;
use super::error::{ApiError, with_causes};
use super::extract::{JsonBody, NoParams, Params, TopicPath};
use super::replay::filter;
use crate::replay::{Partitioning, Progress, ReplayRequest, Republish, RepublishRequest, Undecodable};
use crate::search::Unindexed;
use crate::search::ast::SearchQuery;
use crate::time::{Rounding, TimeExpr};

/// Replays into topics at once.
pub(super) const REPUBLISHES_MAX: usize = 8;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RepublishBody {
    /// Without it matches are counted.
    into: Option<String>,
    query: Option<String>,
    partition: Option<PartitionId>,
    from_offset: Option<Offset>,
    /// Exclusive.
    to_offset: Option<Offset>,
    from: Option<TimeExpr>,
    /// Exclusive.
    to: Option<TimeExpr>,
    limit: Option<u64>,
    /// In the place of a partition and offsets.
    resume_from: Option<String>,
    #[serde(default)]
    messages_per_second: u64,
    #[serde(default)]
    bytes_per_second: u64,
    #[serde(default)]
    keep_timestamps: bool,
    #[serde(default)]
    partitioning: Partitioning,
    undecodable: Option<Undecodable>,
    unindexed: Option<Unindexed>,
}

struct Running {
    /// None after the end.
    republish: Option<Republish>,
    shutdown: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl RepublishBody {
    fn request(&self, now: Timestamp) -> Result<RepublishRequest, ApiError> {
        let ranged = self.partition.is_some() || self.from_offset.is_some() || self.to_offset.is_some();
        if self.resume_from.is_some() && ranged {
            let message =
                "resume_from says which partitions and offsets; leave partition, from_offset and to_offset out";
            return Err(ApiError::bad_request(message));
        }
        if self.resume_from.is_some() && self.has_relative_times(now) {
            let message = "times like now-15m mean other messages than when the replay began; with resume_from write \
                           those of from, to and query out as RFC 3339, as they were then";
            return Err(ApiError::bad_request(message));
        }
        if self.undecodable == Some(Undecodable::Mark) {
            return Err(ApiError::bad_request("undecodable=mark has no place in a topic; use undecodable=skip"));
        }
        let resume_from = self.resume_from.as_deref().map(|text| text.parse().map_err(ApiError::bad_request));
        let moment = |time: &Option<TimeExpr>| time.as_ref().map(|time| time.at(now, Rounding::Down)).transpose();
        Ok(RepublishRequest {
            replay: ReplayRequest {
                partition: self.partition,
                from_offset: self.from_offset,
                to_offset: self.to_offset,
                from: moment(&self.from).map_err(ApiError::bad_request)?,
                to: moment(&self.to).map_err(ApiError::bad_request)?,
                limit: self.limit,
                undecodable: self.undecodable.unwrap_or_default(),
            },
            resume_from: resume_from.transpose()?,
            rates: Rates { bytes_per_second: self.bytes_per_second, requests_per_second: self.messages_per_second },
            keep_timestamps: self.keep_timestamps,
            partitioning: self.partitioning,
        })
    }

    fn has_relative_times(&self, now: Timestamp) -> bool {
        // What is wrong with a query is said where it is checked.
        let query = self.query.as_deref().and_then(|query| SearchQuery::parse(query, now).ok());
        [&self.from, &self.to].into_iter().flatten().any(TimeExpr::is_relative)
            || query.is_some_and(|query| query.root.has_relative_times())
    }
}

pub(super) async fn republish(
    State(app): State<Arc<App>>,
    TopicPath(topic): TopicPath,
    Params(NoParams {}): Params<NoParams>,
    JsonBody(body): JsonBody<RepublishBody>,
) -> Result<Response, ApiError> {
    let services = &app.services;
    let into = match &body.into {
        Some(name) => {
            let into = services.topics.get(name).ok_or_else(|| ApiError::unknown_topic(name))?;
            if into.is_internal() {
                return Err(ApiError::internal_topic(into.name.as_str()));
            }
            Some(into)
        }
        None => None,
    };
    let request = body.request(services.clock.now())?;
    let filter = filter(services, &topic, body.query.as_deref(), body.undecodable, body.unindexed).await?;
    let permit = app.republishes.clone().try_acquire_owned();
    let permit = permit.map_err(|_| {
        ApiError::busy(format!("{REPUBLISHES_MAX} replays into topics are under way already; try again later"))
    })?;
    let stations = (services.reader.clone(), services.tiering.clone(), services.clock.clone());
    let republish = Republish::new(stations, topic, into, filter, &request)?;
    let running = Running { republish: Some(republish), shutdown: app.shutdown.clone(), _permit: permit };
    let lines = futures::stream::unfold(running, |mut running| async move {
        let line = running.next().await?;
        Some((Ok::<_, std::convert::Infallible>(line), running))
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

impl Running {
    /// The next line; `None` after the last.
    async fn next(&mut self) -> Option<Bytes> {
        let republish = self.republish.as_mut()?;
        let next = tokio::select! {
            () = self.shutdown.cancelled() => {
                let error = ApiError::new(axum::http::StatusCode::SERVICE_UNAVAILABLE, "shutdown", "the broker is shutting down");
                Err(error)
            }
            next = republish.next() => next.map_err(|error| {
                tracing::warn!(topic = %republish.source().name, error = %with_causes(&error), "a replay into a topic broke off");
                ApiError::from(error)
            }),
        };
        let Progress { summary, position } = republish.progress();
        let position = position.to_string();
        let line = match next {
            Ok(Some(_)) => json!({"progress": summary, "position": position}),
            Ok(None) => json!({"done": summary, "position": position}),
            Err(ApiError { code, message, .. }) => {
                json!({"error": {"code": code, "message": message}, "progress": summary, "position": position})
            }
        };
        if line.get("progress").is_none() || line.get("error").is_some() {
            self.republish = None;
        }
        Some(format!("{line}\n").into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(body: &str) -> Result<RepublishRequest, String> {
        let body: RepublishBody = serde_json::from_str(body).map_err(|error| error.to_string())?;
        body.request(Timestamp(0)).map_err(|error| error.message)
    }

    #[test]
    fn bodies_are_read_and_contradictions_refused() {
        let body = r#"{"into":"copy","query":"a","from":"2015-05-17","messages_per_second":5,"partitioning":"key","resume_from":"0@17..100"}"#;
        let read = request(body).unwrap();
        assert_eq!(read.resume_from.map(|position| position.to_string()).as_deref(), Some("0@17..100"));
        assert_eq!(read.rates, Rates { bytes_per_second: 0, requests_per_second: 5 });
        assert_eq!((read.partitioning, read.keep_timestamps), (Partitioning::Key, false));
        for bad in [
            r#"{"into":"copy","resume_from":"0@17..100","partition":0}"#,
            r#"{"into":"copy","resume_from":"here"}"#,
            r#"{"into":"copy","undecodable":"mark"}"#,
            r#"{"into":"copy","partitioning":"random"}"#,
            r#"{"into":"copy","rate":5}"#,
        ] {
            assert!(request(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_that_move_are_refused_where_a_replay_goes_on() {
        for relative in [
            r#""from":"now-1d""#,
            r#""to":"now""#,
            r#""query":"late timestamp:>=now-15m""#,
            r#""query":"a OR NOT (timestamp:[2015-05-17 TO now/d]^2 b)""#,
            r#""query":"@timestamp:\"now/d\"""#,
        ] {
            assert!(request(&format!(r#"{{"into":"copy",{relative}}}"#)).is_ok(), "{relative}");
            let error = request(&format!(r#"{{"into":"copy","resume_from":"0@17..100",{relative}}}"#)).unwrap_err();
            assert!(error.contains("RFC 3339"), "{relative}: {error}");
        }
        for absolute in [
            r#""from":"2015-05-17T10:05:03Z","to":1431907200000"#,
            r#""query":"now-1d timestamp:[2015-05-17 TO 2015-05-17||+1M] key:now""#,
            r#""query":"not a query(""#,
        ] {
            let read = request(&format!(r#"{{"into":"copy","resume_from":"0@17..100",{absolute}}}"#));
            assert!(read.is_ok(), "{absolute}: {read:?}");
        }
    }
}
