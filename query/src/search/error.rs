//! Why a search failed, and what that asks of the caller.

use std::path::PathBuf;
use std::sync::Arc;

use thermocline_ingest::model::{Offset, PartitionId, TopicName};
use thermocline_ingest::read::ReadError;
use thermocline_tiering::split::SplitError;

use super::cursor::CursorError;
use super::syntax::QueryError;

/// Why a search failed.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    #[error("query: {message}{}", column.map(|column| format!(" (at column {column})")).unwrap_or_default())]
    Query {
        message: String,
        /// Counted in characters from 1, as far as it is known.
        column: Option<usize>,
    },
    #[error(transparent)]
    Cursor(#[from] CursorError),
    #[error("limit {limit} exceeds the limit of {max} (search.limit_max)")]
    Limit { limit: usize, max: usize },
    #[error("topic {0} does not exist")]
    UnknownTopic(TopicName),
    #[error("topic {0} is internal and is not indexed")]
    InternalTopic(TopicName),
    #[error("{max} queries are running already (search.max_concurrent_queries); try again later")]
    Busy { max: usize },
    #[error("the search took longer than {timeout_ms} ms (search.timeout); narrow the time range or the topics")]
    Timeout { timeout_ms: i64 },
    #[error("opening the split of {topic}-{partition} at offset {base}")]
    Open { topic: TopicName, partition: PartitionId, base: Offset, source: Arc<OpenError> },
    #[error("searching the split of {topic}-{partition} at offset {base}")]
    Split { topic: TopicName, partition: PartitionId, base: Offset, source: Box<tantivy::TantivyError> },
    #[error("reading the messages of the hits")]
    Read(#[from] ReadError),
    #[error("preparing the schema of queries")]
    Schema(#[source] SplitError),
    #[error("scratch folder {path} of the live index")]
    Scratch { path: PathBuf, source: std::io::Error },
    #[error("registering metrics")]
    Metrics(#[from] prometheus::Error),
    #[error("a search task was aborted")]
    Aborted { source: tokio::task::JoinError },
    #[error("search is stopped")]
    Stopped,
}

/// Why an archived split could not be opened; shared by the searches that waited for it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Split(#[from] SplitError),
    #[error("the task was aborted")]
    Aborted(#[from] tokio::task::JoinError),
}

/// What the caller should do about a [`SearchError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SearchErrorKind {
    /// Change the request.
    Invalid,
    /// Name another topic.
    NotFound,
    /// Try again later.
    Busy,
    /// Ask for less.
    Timeout,
    /// Nothing; the broker has logged it.
    Internal,
}

impl SearchError {
    pub fn kind(&self) -> SearchErrorKind {
        match self {
            Self::Query { .. } | Self::Cursor(_) | Self::Limit { .. } | Self::InternalTopic(_) => {
                SearchErrorKind::Invalid
            }
            Self::UnknownTopic(_) => SearchErrorKind::NotFound,
            Self::Busy { .. } => SearchErrorKind::Busy,
            Self::Timeout { .. } => SearchErrorKind::Timeout,
            Self::Open { .. }
            | Self::Split { .. }
            | Self::Read(_)
            | Self::Schema(_)
            | Self::Scratch { .. }
            | Self::Metrics(_)
            | Self::Aborted { .. }
            | Self::Stopped => SearchErrorKind::Internal,
        }
    }
}

impl From<QueryError> for SearchError {
    fn from(error: QueryError) -> Self {
        Self::Query { message: error.message, column: error.column }
    }
}
