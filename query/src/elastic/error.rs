//! Refusals in Elasticsearch's shape: `{"error":{"root_cause":[{"type","reason"}],"type","reason"},"status":400}`.

use serde_json::{Value, json};

use crate::search::{SearchError, SearchErrorKind};

/// Characters of a name or value that a message repeats.
const SHOWN_LEN_MAX: usize = 120;

/// Why a request is not answered, in the words of Elasticsearch's clients.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct ElasticError {
    pub status: u16,
    /// Elasticsearch's name for errors of this kind.
    pub kind: &'static str,
    pub reason: String,
}

impl ElasticError {
    /// The body cannot be read as a request.
    pub fn parsing(reason: impl Into<String>) -> Self {
        Self { status: 400, kind: "parsing_exception", reason: reason.into() }
    }

    /// The request can be read and asks for what is not there.
    pub fn illegal(reason: impl Into<String>) -> Self {
        Self { status: 400, kind: "illegal_argument_exception", reason: reason.into() }
    }

    /// `what` exists in Elasticsearch and not here.
    pub fn unsupported(what: &str) -> Self {
        Self::illegal(format!("{} is not supported", shown(what)))
    }

    pub fn no_such_index(name: &str) -> Self {
        let reason = format!("no such index [{}]", shown(name));
        Self { status: 404, kind: "index_not_found_exception", reason }
    }

    pub fn to_json(&self) -> Value {
        let cause = json!({"type": self.kind, "reason": self.reason});
        json!({
            "error": {"root_cause": [cause], "type": self.kind, "reason": self.reason},
            "status": self.status,
        })
    }
}

impl From<SearchError> for ElasticError {
    fn from(error: SearchError) -> Self {
        let (status, kind) = match error.kind() {
            SearchErrorKind::Query | SearchErrorKind::Invalid => (400, "illegal_argument_exception"),
            SearchErrorKind::NotFound => (404, "index_not_found_exception"),
            SearchErrorKind::Busy => (429, "es_rejected_execution_exception"),
            // Not one of the codes at which clients ask again by themselves: the next attempt would take as long.
            SearchErrorKind::Timeout => (408, "search_timeout_exception"),
            SearchErrorKind::Internal => (500, "search_phase_execution_exception"),
        };
        Self { status, kind, reason: error.to_string() }
    }
}

/// The beginning of a text that came from outside.
pub(crate) fn shown(text: &str) -> String {
    let mut start: String = text.chars().take(SHOWN_LEN_MAX).collect();
    if start.len() < text.len() {
        start.push('…');
    }
    start
}
