//! `/_elastic/...`: a subset of Elasticsearch's interface, for its clients and for Grafana.
//!
//! Every answer carries `X-Elastic-Product`, which the official clients look for, and every refusal has Elasticsearch's
//! form, unknown routes included. Nothing is kept between requests: a scroll's id holds the request and the place it
//! has come to, a point in time the indices. So both go on seeing what arrives, and no message twice.

mod catalogue;
mod search;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use thermocline_ingest::model::TopicName;

use super::App;
use super::error::ApiError;
use super::extract::{CONTROL_BODY_BYTES_MAX, read_body};
use crate::elastic::ElasticError;
use crate::elastic::index::{IndexOptions, resolve};
use crate::elastic::request::Parameters;

/// The version whose interface this is a part of.
const VERSION: &str = "8.17.0";
/// Longest id of a scroll or of a point in time.
const ID_LEN_MAX: usize = 64 << 10;

/// Everything below `/_elastic`.
pub(super) fn routes() -> Router<Arc<App>> {
    let searches = || get(search::search).post(search::search);
    let counts = || get(search::count).post(search::count);
    let multi = || get(search::multi_search).post(search::multi_search);
    let caps = || get(catalogue::field_caps).post(catalogue::field_caps);
    let routes = Router::new()
        .route("/", get(info))
        .route("/_search", searches())
        .route("/{index}/_search", searches())
        .route("/_search/scroll", get(search::scroll).post(search::scroll).delete(search::forget))
        .route("/_pit", axum::routing::delete(search::forget))
        .route("/{index}/_pit", post(search::open_pit))
        .route("/_msearch", multi())
        .route("/{index}/_msearch", multi())
        .route("/_count", counts())
        .route("/{index}/_count", counts())
        .route("/_field_caps", caps())
        .route("/{index}/_field_caps", caps())
        .route("/_mapping", get(catalogue::mapping))
        .route("/{index}/_mapping", get(catalogue::mapping))
        .route("/{index}", get(catalogue::exists))
        .route("/_cat/indices", get(catalogue::indices))
        .route("/_cat/indices/{index}", get(catalogue::indices))
        .route("/_cluster/health", get(catalogue::health))
        .route("/_cluster/health/{index}", get(catalogue::health))
        .fallback(unknown_route)
        .method_not_allowed_fallback(unknown_route);
    Router::new().route("/_elastic/", get(info)).nest("/_elastic", routes).layer(map_response(as_product))
}

async fn as_product(mut response: Response) -> Response {
    let name = HeaderName::from_static("x-elastic-product");
    response.headers_mut().insert(name, HeaderValue::from_static("Elasticsearch"));
    response
}

async fn info(_: Call) -> Response {
    json_response(&json!({
        "name": "thermocline",
        "cluster_name": "thermocline",
        "cluster_uuid": "_na_",
        "version": {
            "number": VERSION,
            "build_flavor": "default",
            "build_type": "thermocline",
            "build_hash": "unknown",
            "build_date": "1970-01-01T00:00:00.000Z",
            "build_snapshot": false,
            "lucene_version": "9.12.0",
            "minimum_wire_compatibility_version": "7.17.0",
            "minimum_index_compatibility_version": "7.0.0",
        },
        "thermocline": env!("CARGO_PKG_VERSION"),
        // What clients of version 7 look for.
        "tagline": "You Know, for Search",
    }))
}

async fn unknown_route(request: Request) -> Refusal {
    let path: String = request.uri().path().chars().take(300).collect();
    let reason = format!("{} {path} is not part of what is supported of Elasticsearch", request.method());
    Refusal(ElasticError { status: 400, kind: "illegal_argument_exception", reason })
}

/// A request, with what its address and its body say.
struct Call {
    /// The index expression of the address; empty means every topic.
    index: String,
    parameters: Parameters,
    body: bytes::Bytes,
}

impl Call {
    /// The body as JSON; null where there is none.
    fn json(&self) -> Result<Value, ElasticError> {
        if self.body.trim_ascii().is_empty() {
            return Ok(Value::Null);
        }
        parse_json(&self.body)
    }
}

fn parse_json(bytes: &[u8]) -> Result<Value, ElasticError> {
    serde_json::from_slice(bytes).map_err(|error| ElasticError::parsing(format!("the body is not JSON: {error}")))
}

impl FromRequest<Arc<App>> for Call {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &Arc<App>) -> Result<Self, Refusal> {
        let (mut parts, body) = request.into_parts();
        let illegal = |reason: String| Refusal(ElasticError::illegal(reason));
        let Query(parameters) = Query::<Parameters>::from_request_parts(&mut parts, state)
            .await
            .map_err(|rejection| illegal(rejection.body_text()))?;
        let index = match Path::<Parameters>::from_request_parts(&mut parts, state).await {
            Ok(Path(mut path)) => path.remove("index").unwrap_or_default(),
            Err(rejection) => return Err(illegal(rejection.body_text())),
        };
        if parts.headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
            return Err(illegal("compressed bodies are not supported".to_owned()));
        }
        let body = read_body(&parts.headers, body, CONTROL_BODY_BYTES_MAX).await.map_err(Refusal::from)?;
        Ok(Self { index, parameters, body })
    }
}

/// A refusal in Elasticsearch's form.
struct Refusal(ElasticError);

impl From<ElasticError> for Refusal {
    fn from(error: ElasticError) -> Self {
        Self(error)
    }
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        let kind = if error.status.is_server_error() { "server_exception" } else { "illegal_argument_exception" };
        Self(ElasticError { status: error.status.as_u16(), kind, reason: error.message })
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = json_response(&self.0.to_json());
        *response.status_mut() = status;
        response
    }
}

fn json_response(body: &Value) -> Response {
    bytes_response(body.to_string().into_bytes())
}

fn bytes_response(body: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], Body::from(body)).into_response()
}

/// The topics that an index expression names.
fn topics(app: &App, expression: &str, options: IndexOptions) -> Result<Vec<TopicName>, ElasticError> {
    let topics = app.services.topics.list();
    let names: Vec<_> = topics.iter().filter(|topic| !topic.is_internal()).map(|topic| topic.name.clone()).collect();
    resolve(expression, &names, options)
}

/// An id that holds what the next request needs.
fn id_of<T: Serialize>(what: &str, content: &T) -> Result<String, ElasticError> {
    let json = serde_json::to_vec(content).map_err(|error| ElasticError::illegal(error.to_string()))?;
    let id = URL_SAFE_NO_PAD.encode(json);
    if id.len() > ID_LEN_MAX {
        let reason = format!(
            "a {what} of a request of this size would have an id of {} bytes; the limit is {ID_LEN_MAX}",
            id.len()
        );
        return Err(ElasticError::illegal(reason));
    }
    Ok(id)
}

fn of_id<T: DeserializeOwned>(what: &str, id: &str) -> Result<T, ElasticError> {
    let wrong = || ElasticError::illegal(format!("the id is not one of a {what} that this broker gave out"));
    if id.len() > ID_LEN_MAX {
        return Err(wrong());
    }
    let json = URL_SAFE_NO_PAD.decode(id).map_err(|_| wrong())?;
    serde_json::from_slice(&json).map_err(|_| wrong())
}
