//! Refusals as the client sees them: `{"error":{"code":"...","message":"..."}}`.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use thermocline_ingest::log::AppendError;
use thermocline_ingest::read::ReadError;
use thermocline_ingest::record::BatchRefusal;
use thermocline_ingest::topics::TopicError;
use thermocline_tiering::pipeline::ArchiveError;
use thermocline_tiering::worker::TieringError;

use crate::replay::{ReplayError, RepublishError, UNDECODABLE_BATCH};
use crate::search::{SearchError, SearchErrorKind};

/// Why a request is not answered with what it asked for.
#[derive(Debug)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    /// For programs: snake case, stable.
    pub(super) code: &'static str,
    /// For people.
    pub(super) message: String,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl ToString) -> Self {
        Self { status, code, message: message.to_string() }
    }
    /// The request says something that cannot be done.
    pub(super) fn bad_request(message: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }
    pub(super) fn unknown_topic(name: &str) -> Self {
        let name: String = name.chars().take(300).collect();
        Self::new(StatusCode::NOT_FOUND, "unknown_topic", format!("topic {name:?} does not exist"))
    }
    pub(super) fn internal_topic(name: &str) -> Self {
        let message = format!("topic {name} is internal; the broker alone writes, archives and deletes it");
        Self::new(StatusCode::BAD_REQUEST, "internal_topic", message)
    }
    pub(super) fn body_too_large(size_bytes: u64, max_bytes: usize) -> Self {
        let message = format!("a body of {size_bytes} bytes or more exceeds http.request_max_bytes of {max_bytes}");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    }
    /// The broker has as much to do as it may; the same request may succeed later.
    pub(super) fn busy(message: impl ToString) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message)
    }
    /// A fault of the broker or its disks; logged here, because here it is handled.
    pub(super) fn fault(error: &dyn std::error::Error) -> Self {
        let message = with_causes(error);
        tracing::error!(error = %message, "request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
    }
}

/// The message of an error and of what caused it.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_message = cause.to_string();
        if !message.contains(&cause_message) {
            message.push_str(": ");
            message.push_str(&cause_message);
        }
        source = cause.source();
    }
    message
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = serde_json::json!({"error": {"code": self.code, "message": self.message}}).to_string();
        let mut response = (self.status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<TopicError> for ApiError {
    fn from(error: TopicError) -> Self {
        match &error {
            TopicError::Exists(_) => Self::new(StatusCode::CONFLICT, "topic_exists", error),
            TopicError::Unknown(name) => Self::unknown_topic(name),
            TopicError::Internal(name) => Self::internal_topic(name.as_str()),
            TopicError::Partitions { .. }
            | TopicError::NotMore { .. }
            | TopicError::TooMany(_)
            | TopicError::Config { .. }
            | TopicError::Archived(_)
            | TopicError::ArchivedAndCompacted(_) => Self::bad_request(error),
            TopicError::Log { .. } | TopicError::Metadata(_) => Self::fault(&error),
        }
    }
}

impl From<RepublishError> for ApiError {
    fn from(error: RepublishError) -> Self {
        match error {
            RepublishError::Replay(error) => error.into(),
            RepublishError::Append(error) => error.into(),
            RepublishError::Thread(error) => Self::fault(&error),
            RepublishError::Refused { .. } | RepublishError::Batch { .. } => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "message_refused", error)
            }
            RepublishError::IntoItself(_)
            | RepublishError::FewerPartitions { .. }
            | RepublishError::ForeignPosition { .. } => Self::bad_request(error),
        }
    }
}

impl From<ReplayError> for ApiError {
    fn from(error: ReplayError) -> Self {
        let error = match error {
            ReplayError::Search(error) => return error.into(),
            error => error,
        };
        match &error {
            ReplayError::NoPartition { .. } => Self::new(StatusCode::NOT_FOUND, "unknown_partition", error),
            ReplayError::BelowLogStart { .. } | ReplayError::Read(ReadError::OutOfRange { .. }) => {
                Self::new(StatusCode::BAD_REQUEST, "offset_out_of_range", error)
            }
            ReplayError::Read(ReadError::Cold { .. }) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "archive_unavailable", with_causes(&error))
            }
            ReplayError::CannotMark => Self::bad_request(error),
            ReplayError::Undecodable { .. } | ReplayError::Undecoded { .. } => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, UNDECODABLE_BATCH, error)
            }
            _ => Self::fault(&error),
        }
    }
}

impl From<AppendError> for ApiError {
    fn from(error: AppendError) -> Self {
        match &error {
            AppendError::Refused(
                BatchRefusal::MessageTooLarge { .. }
                | BatchRefusal::LargerThanSegment { .. }
                | BatchRefusal::DecompressedTooLarge(_),
            ) => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "message_too_large", error),
            AppendError::Refused(_) => Self::bad_request(with_causes(&error)),
            AppendError::DiskReserve { .. } => Self::new(StatusCode::SERVICE_UNAVAILABLE, "disk_full", error),
            AppendError::Replaced { .. } => Self::new(StatusCode::SERVICE_UNAVAILABLE, "fenced", error),
            AppendError::Offline { .. } | AppendError::Closed(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "partition_unavailable", error)
            }
            _ => Self::fault(&error),
        }
    }
}

impl From<TieringError> for ApiError {
    fn from(error: TieringError) -> Self {
        match &error {
            TieringError::Internal(topic) => Self::internal_topic(topic.as_str()),
            TieringError::NotArchived(_) => Self::bad_request(error),
            // The hot copy is kept and archiving goes on by itself when the store answers again.
            TieringError::Archive { source: ArchiveError::Upload(_), .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "store_unavailable", with_causes(&error))
            }
            _ => Self::fault(&error),
        }
    }
}

impl From<SearchError> for ApiError {
    fn from(error: SearchError) -> Self {
        match error.kind() {
            SearchErrorKind::Query => Self::new(StatusCode::BAD_REQUEST, "bad_query", error),
            SearchErrorKind::Invalid => Self::bad_request(error),
            SearchErrorKind::NotFound => Self::new(StatusCode::NOT_FOUND, "unknown_topic", error),
            SearchErrorKind::Busy => Self::busy(error),
            SearchErrorKind::Timeout => Self::new(StatusCode::SERVICE_UNAVAILABLE, "search_timeout", error),
            SearchErrorKind::Internal => Self::fault(&error),
        }
    }
}

impl From<tokio::task::JoinError> for ApiError {
    fn from(error: tokio::task::JoinError) -> Self {
        Self::fault(&error)
    }
}
