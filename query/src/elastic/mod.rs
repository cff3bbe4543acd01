//! What Elasticsearch's clients say, translated: requests into searches, answers back. Pure; the routes are in
//! `http/elastic.rs`.
//!
//! An index is a topic, a document a message (`document.rs`), its `_id` the message's place. What is not offered is
//! refused in Elasticsearch's form and by name; nothing that would change an answer is ignored.

mod aggs;
pub(crate) mod catalogue;
mod date;
mod document;
mod dsl;
mod error;
pub(crate) mod index;
pub(crate) mod object;
mod pipelines;
mod ranges;
pub(crate) mod request;
pub(crate) mod response;
#[cfg(test)]
mod tests;

pub(crate) use date::{DateFormat, utc};
#[cfg(test)]
pub(crate) use date::{iso, zone};
pub(crate) use error::ElasticError;
pub(crate) use index::matches as wildcard_matches;
use serde_json::Value;
use thermocline_ingest::model::Timestamp;

use crate::search::aggregate::Aggregation;

/// Reads `aggs` on their own, for a search that is not Elasticsearch's.
pub(crate) fn parse_aggregations(
    aggs: Value,
    now: Timestamp,
    buckets_max: u32,
) -> Result<Vec<Aggregation>, ElasticError> {
    aggs::parse(aggs, &mut dsl::Dsl::new(now), buckets_max)
}
