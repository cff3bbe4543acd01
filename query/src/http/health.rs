//! Probes and metrics.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus::TextEncoder;
use thermocline_tiering::manifest::Fenced;

use super::App;
use super::error::ApiError;
use super::extract::{NoParams, Params};

/// `GET /health/live`: the process answers.
pub(super) async fn live(Params(NoParams {}): Params<NoParams>) -> Response {
    status(StatusCode::OK, "live")
}

/// `GET /health/ready`: the broker takes requests. The port opens after recovery, so it is ready until it drains, or
/// until another broker has taken over its store: then it still serves reads, but should get no new work.
pub(super) async fn ready(State(app): State<Arc<App>>, Params(NoParams {}): Params<NoParams>) -> Response {
    if app.shutdown.is_cancelled() {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", "the broker is shutting down").into_response()
    } else if let Some(Fenced { what, epoch, own_epoch }) = app.services.tiering.fenced() {
        let message = format!(
            "another broker has taken over, seen at {what}: its epoch is {epoch}, this one's {own_epoch}; \
             this one serves reads and archives nothing any more"
        );
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "fenced", message).into_response()
    } else {
        status(StatusCode::OK, "ready")
    }
}

/// `GET /metrics`: Prometheus text format.
pub(super) async fn metrics(
    State(app): State<Arc<App>>,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Response, ApiError> {
    let families = app.services.registry.gather();
    let text = TextEncoder::new().encode_to_string(&families).map_err(|error| ApiError::fault(&error))?;
    Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response())
}

fn status(status: StatusCode, text: &'static str) -> Response {
    (status, axum::Json(serde_json::json!({ "status": text }))).into_response()
}
