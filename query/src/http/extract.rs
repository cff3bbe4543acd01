//! Extractors that refuse in JSON and read no more than a request may cost.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use thermocline_ingest::topics::Topic;

use super::App;
use super::error::ApiError;

/// How long a client may take to send the body of a request.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest body of a request that carries no messages.
pub(super) const CONTROL_BODY_BYTES_MAX: usize = 1 << 20;

/// Query parameters; one that `T` does not know is refused.
pub(super) struct Params<T>(pub(super) T);

/// For routes that take no query parameters.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NoParams {}

/// The topic that the path names, if it exists.
pub(super) struct TopicPath(pub(super) Arc<Topic>);

/// The body as JSON, whatever its content type says.
pub(super) struct JsonBody<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Query(params) = Query::from_request_parts(parts, state)
            .await
            .map_err(|rejection| ApiError::bad_request(rejection.body_text()))?;
        Ok(Self(params))
    }
}

impl FromRequestParts<Arc<App>> for TopicPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let Path(name) = Path::<String>::from_request_parts(parts, app)
            .await
            .map_err(|rejection| ApiError::bad_request(rejection.body_text()))?;
        app.services.topics.get(&name).map(Self).ok_or_else(|| ApiError::unknown_topic(&name))
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let body = read_body(&parts.headers, body, CONTROL_BODY_BYTES_MAX).await?;
        // Serde would take an array for the fields in order.
        if !body.trim_ascii_start().starts_with(b"{") {
            return Err(ApiError::bad_request("the body is not a JSON object"));
        }
        let value = serde_json::from_slice(&body).map_err(|error| ApiError::bad_request(format!("body: {error}")))?;
        Ok(Self(value))
    }
}

/// Reads a body of at most `max_bytes`, within [`BODY_TIMEOUT`]. Memory is taken as bytes arrive, not as announced.
pub(super) async fn read_body(headers: &HeaderMap, body: Body, max_bytes: usize) -> Result<Bytes, ApiError> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if let Some(announced) = announced.filter(|announced| *announced > max_bytes as u64) {
        return Err(ApiError::body_too_large(announced, max_bytes));
    }
    let read = async {
        let mut chunks = body.into_data_stream();
        let mut bytes = BytesMut::new();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| ApiError::bad_request(format!("the body ended early: {error}")))?;
            if bytes.len() + chunk.len() > max_bytes {
                return Err(ApiError::body_too_large((bytes.len() + chunk.len()) as u64, max_bytes));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    };
    tokio::time::timeout(BODY_TIMEOUT, read).await.unwrap_or_else(|_| {
        let message = format!("the body did not arrive within {} s", BODY_TIMEOUT.as_secs());
        Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", message))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        limit: Option<u64>,
    }

    async fn params(uri: &str) -> Result<Sample, String> {
        let (mut parts, ()) = Request::builder().uri(uri).body(()).unwrap().into_parts();
        Params::<Sample>::from_request_parts(&mut parts, &()).await.map(|Params(p)| p).map_err(|error| error.message)
    }

    #[tokio::test]
    async fn unknown_parameters_are_refused() {
        assert_eq!(params("/x?limit=3").await, Ok(Sample { limit: Some(3) }));
        assert_eq!(params("/x").await, Ok(Sample { limit: None }));
        assert!(params("/x?limt=3").await.unwrap_err().contains("unknown field `limt`, expected `limit`"));
        assert!(params("/x?limit=many").await.unwrap_err().contains("limit"));
        assert!(params("/x?limit=1&limit=2").await.unwrap_err().contains("duplicate"));
    }

    #[tokio::test]
    async fn bodies_are_cut_off_at_the_limit_announced_or_not() {
        let none = HeaderMap::new();
        let mut announced = HeaderMap::new();
        announced.insert(header::CONTENT_LENGTH, "9".parse().unwrap());
        let read = async |headers: &HeaderMap, max| read_body(headers, Body::from("123456789"), max).await;
        assert_eq!(read(&none, 9).await.unwrap(), "123456789");
        assert_eq!(read(&announced, 9).await.unwrap(), "123456789");
        for headers in [&none, &announced] {
            let error = read(headers, 8).await.unwrap_err();
            assert_eq!(error.status, StatusCode::PAYLOAD_TOO_LARGE);
            assert!(error.message.contains('9') && error.message.contains('8'), "{}", error.message);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_comes_is_given_up() {
        let body = Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());
        let error = read_body(&HeaderMap::new(), body, 8).await.unwrap_err();
        assert_eq!(error.status, StatusCode::REQUEST_TIMEOUT);
    }

    #[tokio::test]
    async fn json_bodies_are_checked() {
        let request = |body: &'static str| Request::new(Body::from(body));
        let JsonBody(sample) = JsonBody::<Sample>::from_request(request(r#"{"limit":1}"#), &()).await.unwrap();
        assert_eq!(sample, Sample { limit: Some(1) });
        for bad in ["", "[1]", "{", r#"{"limit":"x"}"#, r#"{"limit":1,"extra":2}"#, r#"{"limit":1} {}"#] {
            let error = JsonBody::<Sample>::from_request(request(bad), &()).await.map(|_| ()).unwrap_err();
            assert_eq!((error.status, error.code), (StatusCode::BAD_REQUEST, "bad_request"), "{bad}");
        }
    }
}
