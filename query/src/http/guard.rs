//! What surrounds every route: the cap on requests at once, panics, and JSON refusals of unknown routes and methods.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use thermocline_config::HttpConfig;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;

/// A request's place among `http.max_concurrent_requests`. A handler that answers with a stream takes it from the
/// request's extensions and keeps it until the stream ends.
#[derive(Clone)]
pub(super) struct Place {
    _permit: Arc<OwnedSemaphorePermit>,
}

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

async fn limit_requests(State(places): State<Places>, mut request: Request, next: Next) -> Response {
    if ALWAYS_ANSWERED.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    match places.permits.try_acquire_owned() {
        Ok(permit) => {
            let place = Place { _permit: Arc::new(permit) };
            request.extensions_mut().insert(place.clone());
            let response = next.run(request).await;
            drop(place);
            response
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
    use axum::body::{Body, to_bytes};
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
}
