//! `GET /v1/topics/{t}/messages`: replay as a streamed body. The next chunk is read when the client has taken the last
//! one. An error in the middle breaks the body off, which a client sees as a failed transfer; lines of JSON end with the
//! reason, as `{"error":{"code","message"}}`.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use serde::Deserialize;
use thermocline_ingest::log::Partition;
use thermocline_ingest::model::{Offset, PartitionId};

use super::App;
use super::error::{ApiError, with_causes};
use super::extract::{Params, TopicPath};
use super::guard::Place;
use crate::message::Time;
use crate::replay::{Format, ReplayError, ReplayRequest, UNDECODABLE_BATCH, Undecodable};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReplayParams {
    partition: Option<PartitionId>,
    from_offset: Option<Offset>,
    /// Exclusive.
    to_offset: Option<Offset>,
    from: Option<Time>,
    /// Exclusive.
    to: Option<Time>,
    limit: Option<u64>,
    #[serde(default)]
    format: Format,
    #[serde(default)]
    undecodable: Undecodable,
}

impl From<&ReplayParams> for ReplayRequest {
    fn from(params: &ReplayParams) -> Self {
        Self {
            partition: params.partition,
            from_offset: params.from_offset,
            to_offset: params.to_offset,
            from: params.from.map(|time| time.0),
            to: params.to.map(|time| time.0),
            limit: params.limit,
            undecodable: params.undecodable,
        }
    }
}

pub(super) async fn replay(
    State(app): State<Arc<App>>,
    TopicPath(topic): TopicPath,
    Params(params): Params<ReplayParams>,
    Extension(place): Extension<Place>,
) -> Result<Response, ApiError> {
    let services = &app.services;
    let manifest_of = |partition: &Partition| services.tiering.manifest(partition);
    let request = ReplayRequest::from(&params);
    let stream = crate::replay::replay(services.reader.clone(), &topic, &manifest_of, &request, params.format)?;
    let mut stream = Box::pin(stream);
    // The first chunk is awaited, so that what fails at once is refused with a status.
    let first = stream.try_next().await?;
    let rest = stream.flat_map(move |chunk| match chunk {
        Ok(chunk) => futures::stream::iter([Ok(chunk)]).left_stream(),
        Err(error) => {
            tracing::warn!(topic = %topic.name, error = %with_causes(&error), "a replay broke off");
            last_words(error, params.format).right_stream()
        }
    });
    let body = futures::stream::iter(first.map(Ok)).chain(rest).map(move |chunk| {
        // The request keeps its place until the body has been taken.
        let _ = &place;
        chunk
    });
    let content_type = match params.format {
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
    use axum::extract::{FromRequestParts, Request};
    use thermocline_ingest::model::Timestamp;

    use super::*;

    async fn params(query: &str) -> Result<ReplayParams, ApiError> {
        let (mut parts, ()) = Request::builder().uri(format!("/?{query}")).body(()).unwrap().into_parts();
        Params::from_request_parts(&mut parts, &()).await.map(|Params(params)| params)
    }

    #[tokio::test]
    async fn parameters_are_read() {
        let query = "partition=1&from_offset=5&to_offset=9&from=2015-05-17&to=2015-05-18T00:00:00Z&limit=3&format=arrow&undecodable=skip";
        let params = params(query).await.unwrap();
        assert_eq!(params.format, Format::Arrow);
        let request = ReplayRequest {
            partition: Some(PartitionId(1)),
            from_offset: Some(Offset(5)),
            to_offset: Some(Offset(9)),
            from: Some(Timestamp(1_431_820_800_000)),
            to: Some(Timestamp(1_431_907_200_000)),
            limit: Some(3),
            undecodable: Undecodable::Skip,
        };
        assert_eq!(ReplayRequest::from(&params), request);
    }

    #[tokio::test]
    async fn without_parameters_it_is_the_whole_topic() {
        let params = params("").await.unwrap();
        assert_eq!(ReplayRequest::from(&params), ReplayRequest::default());
        assert_eq!(params.format, Format::Ndjson);
    }

    #[tokio::test]
    async fn bad_parameters_are_refused() {
        for query in
            ["from=yesterday", "offset=1", "format=csv", "limit=-1", "partition=x", "from_offset=1.5", "undecodable=no"]
        {
            let error = params(query).await.unwrap_err();
            assert_eq!(error.code, "bad_request", "{query}");
        }
    }
}
