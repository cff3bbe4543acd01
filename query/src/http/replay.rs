//! `GET /v1/topics/{t}/messages`: replay as a streamed body, of everything or of what matches `query`. The next chunk
//! is read when the client has taken the last one. An error in the middle breaks the body off, which a client sees as a
//! failed transfer; lines of JSON end with the reason, as `{"error":{"code","message"}}`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use serde::Deserialize;
use thermocline_ingest::log::Partition;
use thermocline_ingest::model::{Offset, PartitionId, Timestamp};
use thermocline_ingest::topics::Topic;

use super::error::{ApiError, with_causes};
use super::extract::{Params, TopicPath};
use super::{App, HttpServices};
use crate::replay::{Filter, Format, ReplayError, ReplayRequest, UNDECODABLE_BATCH, Undecodable};
use crate::search::{SearchError, Unindexed};
use crate::time::{Rounding, TimeExpr};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReplayParams {
    partition: Option<PartitionId>,
    from_offset: Option<Offset>,
    /// Exclusive.
    to_offset: Option<Offset>,
    from: Option<TimeExpr>,
    /// Exclusive.
    to: Option<TimeExpr>,
    limit: Option<u64>,
    #[serde(default)]
    format: Format,
    undecodable: Option<Undecodable>,
    /// Only what matches.
    query: Option<String>,
    unindexed: Option<Unindexed>,
}

/// The filter that a request's parameters ask for. Each of the two modes has its own way to lack a message.
pub(super) async fn filter(
    services: &HttpServices,
    topic: &Topic,
    query: Option<&str>,
    undecodable: Option<Undecodable>,
    unindexed: Option<Unindexed>,
) -> Result<Filter, ApiError> {
    match (query, undecodable, unindexed) {
        (None, _, Some(_)) => Err(ApiError::bad_request("unindexed is for replays with a query; leave it out")),
        (None, undecodable, None) => Ok(Filter::Everything(undecodable.unwrap_or_default())),
        (Some(_), Some(_), _) => Err(ApiError::bad_request(
            "undecodable is for replays without a query; what cannot be decoded is not indexed and matches nothing",
        )),
        (Some(query), None, unindexed) => {
            let (query, _) = services.search.checked(query, services.clock.now(), vec![topic.name.clone()]).await?;
            Ok(Filter::Matching { search: services.search.clone(), query, unindexed: unindexed.unwrap_or_default() })
        }
    }
}

impl ReplayParams {
    fn request(&self, now: Timestamp) -> Result<ReplayRequest, ApiError> {
        let moment = |time: &Option<TimeExpr>| time.as_ref().map(|time| time.at(now, Rounding::Down)).transpose();
        Ok(ReplayRequest {
            partition: self.partition,
            from_offset: self.from_offset,
            to_offset: self.to_offset,
            from: moment(&self.from).map_err(ApiError::bad_request)?,
            to: moment(&self.to).map_err(ApiError::bad_request)?,
            limit: self.limit,
            undecodable: self.undecodable.unwrap_or_default(),
        })
    }
}

pub(super) async fn replay(
    State(app): State<Arc<App>>,
    TopicPath(topic): TopicPath,
    Params(params): Params<ReplayParams>,
) -> Result<Response, ApiError> {
    let services = &app.services;
    let manifest_of = |partition: &Partition| services.tiering.manifest(partition);
    let request = params.request(services.clock.now())?;
    let (reader, format) = (services.reader.clone(), params.format);
    let mut stream =
        match filter(services, &topic, params.query.as_deref(), params.undecodable, params.unindexed).await? {
            Filter::Everything(_) => crate::replay::replay(reader, &topic, &manifest_of, &request, format)?.boxed(),
            filter => {
                let tiering = services.tiering.clone();
                crate::replay::replay_matching(reader, tiering, &topic, &request, filter, format)?.boxed()
            }
        };
    // The first chunk is awaited, so that what fails at once is refused with a status.
    let first = stream.try_next().await?;
    let rest = stream.flat_map(move |chunk| match chunk {
        Ok(chunk) => futures::stream::iter([Ok(chunk)]).left_stream(),
        Err(error) => {
            tracing::warn!(topic = %topic.name, error = %with_causes(&error), "a replay broke off");
            last_words(error, format).right_stream()
        }
    });
    let body = futures::stream::iter(first.map(Ok)).chain(rest);
    let content_type = match format {
        Format::Ndjson => "application/x-ndjson",
        Format::Arrow => "application/vnd.apache.arrow.stream",
    };
    Ok(([(header::CONTENT_TYPE, content_type)], Body::from_stream(body)).into_response())
}

/// The reason as a line, where the format has lines, and then the error, which ends the connection.
fn last_words(error: ReplayError, format: Format) -> impl Stream<Item = Result<Bytes, ReplayError>> + Send {
    let line = (format == Format::Ndjson).then(|| {
        let (code, message) = match &error {
            ReplayError::Undecodable { .. } => (UNDECODABLE_BATCH, error.to_string()),
            ReplayError::Search(SearchError::Unindexed { .. }) => ("unindexed", error.to_string()),
            _ => ("internal", with_causes(&error)),
        };
        Ok(format!("{}\n", serde_json::json!({"error": {"code": code, "message": message}})).into())
    });
    // What was written is flushed only when the body has nothing more to say for the moment.
    let end = async {
        tokio::task::yield_now().await;
        Err(error)
    };
    futures::stream::iter(line).chain(futures::stream::once(end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::extract::{FromRequestParts, Request};

    async fn params(query: &str) -> Result<ReplayParams, ApiError> {
        let (mut parts, ()) = Request::builder().uri(format!("/?{query}")).body(()).unwrap().into_parts();
        Params::from_request_parts(&mut parts, &()).await.map(|Params(params)| params)
    }

    #[tokio::test]
    async fn parameters_are_read() {
        let query = "partition=1&from_offset=5&to_offset=9&from=2015-05-17&to=2015-05-18T00:00:00Z&limit=3&format=arrow&undecodable=skip&query=a+b";
        let params = params(query).await.unwrap();
        assert_eq!((params.format, params.query.as_deref()), (Format::Arrow, Some("a b")));
        let request = ReplayRequest {
            partition: Some(PartitionId(1)),
            from_offset: Some(Offset(5)),
            to_offset: Some(Offset(9)),
            from: Some(Timestamp(1_431_820_800_000)),
            to: Some(Timestamp(1_431_907_200_000)),
            limit: Some(3),
            undecodable: Undecodable::Skip,
        };
        assert_eq!(params.request(Timestamp(0)).unwrap(), request);
    }

    #[tokio::test]
    async fn without_parameters_it_is_the_whole_topic() {
        let params = params("").await.unwrap();
        assert_eq!(params.request(Timestamp(0)).unwrap(), ReplayRequest::default());
        assert_eq!(params.format, Format::Ndjson);
    }

    #[tokio::test]
    async fn both_ends_have_one_now() {
        let now = Timestamp(1_431_907_200_000);
        let request = params("from=now-1d&to=now").await.unwrap().request(now).unwrap();
        assert_eq!((request.from, request.to), (Some(Timestamp(1_431_820_800_000)), Some(now)));
        let beyond = params("from=now-999999999y").await.unwrap().request(now).unwrap_err();
        assert_eq!(beyond.code, "bad_request");
    }

    #[tokio::test]
    async fn bad_parameters_are_refused() {
        for query in [
            "from=yesterday",
            "offset=1",
            "format=csv",
            "limit=-1",
            "partition=x",
            "from_offset=1.5",
            "undecodable=no",
            "unindexed=mark",
        ] {
            let error = params(query).await.unwrap_err();
            assert_eq!(error.code, "bad_request", "{query}");
        }
    }
}
