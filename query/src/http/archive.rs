//! `POST /v1/topics/{t}/archive`: seal and archive now; answers when it is committed.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use thermocline_tiering::worker::ArchiveReport;

use super::App;
use super::error::ApiError;
use super::extract::{Params, TopicPath};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ArchiveParams {
    /// Also drop the local copies that the archive then covers.
    #[serde(default)]
    trim: bool,
}

pub(super) async fn archive(
    State(app): State<Arc<App>>,
    TopicPath(topic): TopicPath,
    Params(ArchiveParams { trim }): Params<ArchiveParams>,
) -> Result<Json<ArchiveReport>, ApiError> {
    if topic.is_internal() {
        return Err(ApiError::internal_topic(topic.name.as_str()));
    }
    // A task of its own: a client that goes away must not stop a commit half-way.
    let tiering = app.services.tiering.clone();
    let report = tokio::spawn(async move { tiering.archive_now(&topic, trim).await }).await??;
    Ok(Json(report))
}
