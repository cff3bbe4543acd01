//! Why a search failed, and what that asks of the caller.

use std::path::PathBuf;
use std::sync::Arc;

use thermocline_ingest::model::{Offset, PartitionId, TopicName, TopicPartition};
use thermocline_ingest::read::ReadError;
use thermocline_tiering::split::SplitError;

use super::ast::QueryError;
use super::cursor::CursorError;

/// Why a search failed.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    #[error("query: {message}{}", column.map(|column| format!(" (at column {column})")).unwrap_or_default())]
    Query {
        message: String,
        /// Counted in characters from 1; None where it is about all of the query.
        column: Option<usize>,
    },
    #[error(transparent)]
    Cursor(#[from] CursorError),
    #[error("limit {limit} exceeds the limit of {max} (search.limit_max)")]
    Limit { limit: usize, max: usize },
    #[error("aggregations: {message}")]
    Aggregation { message: String },
    #[error(
        "{column} is kept in a column by none of the splits that were searched, so that it cannot be aggregated; topics \
         keep columns of json, key and headers of messages to come with search.fast=true"
    )]
    NoColumn { column: String },
    #[error("merging the aggregations of splits")]
    AggregationFault { source: Box<tantivy::TantivyError> },
    #[error("topic {0} does not exist")]
    UnknownTopic(TopicName),
    #[error("topic {0} is internal and is not indexed")]
    InternalTopic(TopicName),
    #[error("topic {0} is not indexed (search.index is off), so none of its messages is ever found")]
    NotIndexed(TopicName),
    #[error("{messages} messages of context exceed the limit of {max}; ask for fewer hits or less context")]
    Context { messages: usize, max: usize },
    #[error("the context of the hits exceeds {max} bytes; ask for fewer hits or less context")]
    ContextBytes { max: usize },
    #[error("{0:?} is not a place that a follower was told; leave the cursor out to start now")]
    FollowCursor(String),
    #[error("more than {max} partitions cannot be followed at once; name fewer topics")]
    FollowedPartitions { max: usize },
    #[error("{max} followers are served already; try again later")]
    Followers { max: usize },
    #[error("{max} queries are running already (search.max_concurrent_queries); try again later")]
    Busy { max: usize },
    #[error("the search took longer than {timeout_ms} ms (search.timeout); narrow the time range or the topics")]
    Timeout { timeout_ms: i64 },
    #[error(
        "offsets {from} to {last} of {partition} have no index, so nobody knows what matches there (search.index was off, or the live index is behind); leave them out with unindexed=skip, or ask for a range without them"
    )]
    Unindexed { partition: TopicPartition, from: Offset, last: Offset },
    #[error("reading the split of {topic}-{partition} at offset {base}")]
    Open { topic: TopicName, partition: PartitionId, base: Offset, source: Arc<OpenError> },
    #[error("searching the split of {topic}-{partition} at offset {base}")]
    Split { topic: TopicName, partition: PartitionId, base: Offset, source: Box<tantivy::TantivyError> },
    #[error("reading the messages of the hits")]
    Read(#[from] ReadError),
    #[error("preparing the schema of queries")]
    Schema(#[source] Arc<OpenError>),
    #[error("scratch folder {path} of the live index")]
    Scratch { path: PathBuf, source: std::io::Error },
    #[error("registering metrics")]
    Metrics(#[from] prometheus::Error),
    #[error(
        "the query reads {needed} bytes of one split at once, more than the limit of {max} (search.memory_max); ask for \
         longer prefixes, patterns that start with more letters, or narrower ranges"
    )]
    Memory { needed: u64, max: u64 },
    #[error(
        "a wildcard or regular expression would be compared with more than the limit of {max} words of the split of \
         {topic}-{partition} at offset {base}; let wildcards start with letters"
    )]
    Terms { topic: TopicName, partition: PartitionId, base: Offset, max: u64 },
    #[error("a search came to an unforeseen end; the log says where")]
    Panicked,
    #[error("search is stopped")]
    Stopped,
}

/// Why an archived split could not be opened or read on; shared by the searches that waited for it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Split(#[from] SplitError),
    #[error(transparent)]
    Cold(Arc<SplitError>),
    #[error("the task was aborted")]
    Aborted(#[from] tokio::task::JoinError),
    #[error("its bytes were fetched {max} times, and still some were lacking")]
    Rounds { max: usize },
}

/// What the caller should do about a [`SearchError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SearchErrorKind {
    /// Change the text of the query.
    Query,
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
            Self::Query { .. } => SearchErrorKind::Query,
            Self::Cursor(_)
            | Self::Limit { .. }
            | Self::InternalTopic(_)
            | Self::Aggregation { .. }
            | Self::NoColumn { .. }
            | Self::Unindexed { .. }
            | Self::NotIndexed(_)
            | Self::Context { .. }
            | Self::ContextBytes { .. }
            | Self::FollowCursor(_)
            | Self::FollowedPartitions { .. }
            | Self::Memory { .. }
            | Self::Terms { .. } => SearchErrorKind::Invalid,
            Self::UnknownTopic(_) => SearchErrorKind::NotFound,
            Self::Busy { .. } | Self::Followers { .. } => SearchErrorKind::Busy,
            Self::Timeout { .. } => SearchErrorKind::Timeout,
            Self::Open { .. }
            | Self::Split { .. }
            | Self::AggregationFault { .. }
            | Self::Read(_)
            | Self::Schema(_)
            | Self::Scratch { .. }
            | Self::Metrics(_)
            | Self::Panicked
            | Self::Stopped => SearchErrorKind::Internal,
        }
    }
}

impl From<QueryError> for SearchError {
    fn from(error: QueryError) -> Self {
        Self::Query { message: error.message, column: error.column }
    }
}

/// The column that the message of a [`SearchError::Query`] ends with, for whoever has only the message.
pub fn column_in(message: &str) -> Option<usize> {
    message.strip_suffix(')')?.rsplit_once(" (at column ")?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_end_with_the_column() {
        let message = |column| SearchError::from(QueryError::new("no (at column 3)", column)).to_string();
        assert_eq!(message(Some(12)), "query: no (at column 3) (at column 12)");
        assert_eq!(column_in(&message(Some(12))), Some(12));
        assert_eq!(column_in("query: no"), None);
    }
}
