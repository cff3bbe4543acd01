//! What surrounds every route: the cap on requests at once, panics, and JSON refusals of unknown routes and methods.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::FutureExt;
use hyper::body::{Frame, SizeHint};
use thermocline_config::HttpConfig;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;

/// Of a body, handed to the connection at once; it takes a few more before it waits for the reader.
const PIECE_BYTES: usize = 64 << 10;

/// Paths that are answered however busy the broker is.
const ALWAYS_ANSWERED: [&str; 3] = ["/health/live", "/health/ready", "/metrics"];

/// Puts the guards around `routes`.
pub(super) fn guarded<S: Clone + Send + Sync + 'static>(routes: Router<S>, config: &HttpConfig) -> Router<S> {
    let max = config.max_concurrent_requests;
    let places = Places { permits: Arc::new(Semaphore::new(max)), max };
    routes
        .fallback(unknown_route)
        .method_not_allowed_fallback(unknown_method)
        .layer(from_fn_with_state(places, limit_requests))
        .layer(from_fn(contain_panics))
}

#[derive(Clone)]
struct Places {
    permits: Arc<Semaphore>,
    max: usize,
}

/// The body of an answer, which keeps its request's place among `http.max_concurrent_requests`, and so the memory it
/// holds bounded, until the connection has taken all of it.
struct Placed {
    body: Body,
    /// Of the frame that is handed on.
    rest: Bytes,
    _place: OwnedSemaphorePermit,
}

impl HttpBody for Placed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)).transpose()?.map(Frame::into_data) {
                Some(Ok(data)) => self.rest = data,
                Some(Err(trailers)) => return Poll::Ready(Some(Ok(trailers))),
                None => return Poll::Ready(None),
            }
        }
        let piece = self.rest.len().min(PIECE_BYTES);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, behind) = (self.rest.len() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(behind.lower().saturating_add(rest));
        if let Some(upper) = behind.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint
    }
}

async fn limit_requests(State(places): State<Places>, request: Request, next: Next) -> Response {
    if ALWAYS_ANSWERED.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    match places.permits.try_acquire_owned() {
        Ok(place) => {
            let response = next.run(request).await;
            response.map(|body| Body::new(Placed { body, rest: Bytes::new(), _place: place }))
        }
        Err(_) => {
            let max = places.max;
            ApiError::busy(format!("http.max_concurrent_requests of {max} are under way; try again")).into_response()
        }
    }
}

async fn contain_panics(request: Request, next: Next) -> Response {
    let what = format!("{} {}", request.method(), request.uri().path());
    match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        Err(_) => {
            // The panic hook has printed where and why.
            tracing::error!(request = what, "a handler panicked");
            let message = "the broker failed while answering; its log says where";
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message).into_response()
        }
    }
}

async fn unknown_route(request: Request) -> ApiError {
    let path: String = request.uri().path().chars().take(300).collect();
    ApiError::new(StatusCode::NOT_FOUND, "unknown_route", format!("there is no route {path}"))
}

async fn unknown_method(request: Request) -> ApiError {
    let path: String = request.uri().path().chars().take(300).collect();
    let message = format!("{path} does not take {}", request.method());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use axum::body::to_bytes;
    use axum::http::header;
    use axum::routing::get;
    use serde_json::Value;
    use tower::ServiceExt;

    use super::*;

    fn router(max_concurrent_requests: usize) -> Router {
        let config = HttpConfig { max_concurrent_requests, ..HttpConfig::default() };
        let routes = Router::new()
            .route("/ok", get(|| async { "fine" }))
            .route("/health/live", get(|| async { "live" }))
            .route("/large", get(|| async { "x".repeat(2 * PIECE_BYTES + 1) }))
            .route("/panic", get(|| async { panic!("a handler's fault") as &'static str }))
            .route("/wait", get(std::future::pending::<&'static str>));
        guarded(routes, &config)
    }

    async fn call(router: Router, method: &str, path: &str) -> (StatusCode, Response, String) {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let (parts, body) = router.oneshot(request).await.unwrap().into_parts();
        let text = String::from_utf8(to_bytes(body, 1 << 20).await.unwrap().to_vec()).unwrap();
        (parts.status, Response::from_parts(parts, Body::empty()), text)
    }

    fn code_of(body: &str) -> String {
        let body: Value = serde_json::from_str(body).unwrap();
        assert!(body["error"]["message"].is_string());
        body["error"]["code"].as_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn unknown_routes_and_methods_are_refused_in_json() {
        let (status, _, body) = call(router(1), "GET", "/v1/groups").await;
        assert_eq!((status, code_of(&body).as_str()), (StatusCode::NOT_FOUND, "unknown_route"));
        let (status, response, body) = call(router(1), "DELETE", "/ok").await;
        assert_eq!((status, code_of(&body).as_str()), (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"));
        assert_eq!(response.headers()[header::ALLOW], "GET,HEAD");
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
    }

    #[tokio::test]
    async fn a_panic_costs_one_request() {
        let router = router(1);
        for _ in 0..3 {
            let (status, _, body) = call(router.clone(), "GET", "/panic").await;
            assert_eq!((status, code_of(&body).as_str()), (StatusCode::INTERNAL_SERVER_ERROR, "internal"));
            assert!(!body.contains("a handler's fault"));
        }
        assert_eq!(call(router, "GET", "/ok").await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn requests_at_once_are_limited_and_probes_are_not() {
        let router = router(1);
        let mut waiting = Box::pin(call(router.clone(), "GET", "/wait"));
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        let (status, response, body) = call(router.clone(), "GET", "/ok").await;
        assert_eq!((status, code_of(&body).as_str()), (StatusCode::SERVICE_UNAVAILABLE, "busy"));
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
        assert_eq!(call(router.clone(), "GET", "/health/live").await.0, StatusCode::OK);
        drop(waiting);
        assert_eq!(call(router, "GET", "/ok").await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn an_answer_keeps_its_place_until_it_is_taken() {
        let router = router(1);
        let request = || Request::builder().uri("/large").body(Body::empty()).unwrap();
        let mut taken = router.clone().oneshot(request()).await.unwrap().into_body();
        let mut length = 2 * PIECE_BYTES + 1;
        while !taken.is_end_stream() {
            assert_eq!(taken.size_hint().exact(), Some(length as u64));
            assert_eq!(call(router.clone(), "GET", "/ok").await.0, StatusCode::SERVICE_UNAVAILABLE);
            let piece = poll_fn(|context| Pin::new(&mut taken).poll_frame(context)).await.unwrap().unwrap();
            let piece = piece.into_data().unwrap();
            assert_eq!(piece.len(), length.min(PIECE_BYTES));
            length -= piece.len();
        }
        assert_eq!(length, 0);
        drop(taken);
        let (status, _, body) = call(router.clone(), "GET", "/large").await;
        assert_eq!((status, body.len()), (StatusCode::OK, 2 * PIECE_BYTES + 1));
        // A reader that goes away.
        drop(router.clone().oneshot(request()).await.unwrap());
        assert_eq!(call(router, "GET", "/ok").await.0, StatusCode::OK);
    }
}
