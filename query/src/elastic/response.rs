//! Answers in Elasticsearch's form, written hit by hit so that no more than one message is held twice.

use std::io::Write;

use serde_json::{Value, json};

use super::document::{fields_of, id_of, source_of};
use super::request::SearchBody;
use crate::search::{Hit, SearchResponse, TotalRelation, TotalWanted};

/// What an answer carries beside its hits.
#[derive(Clone, Debug, Default)]
pub(crate) struct Beside {
    pub took_ms: u64,
    pub scroll_id: Option<String>,
    pub pit_id: Option<String>,
    /// `hits.total` as a plain number, as before version 7.
    pub total_as_number: bool,
    /// The status of one answer among several.
    pub status: Option<u16>,
}

/// The answer to a search.
pub(crate) fn search_answer(response: &SearchResponse, body: &SearchBody, beside: &Beside) -> Vec<u8> {
    let mut out = Vec::new();
    out.push(b'{');
    if let Some(id) = &beside.scroll_id {
        member(&mut out, "_scroll_id", &json!(id));
    }
    if let Some(id) = &beside.pit_id {
        member(&mut out, "pit_id", &json!(id));
    }
    member(&mut out, "took", &json!(beside.took_ms));
    member(&mut out, "timed_out", &json!(false));
    member(&mut out, "_shards", &shards(response));
    out.extend_from_slice(b"\"hits\":{");
    if body.total != TotalWanted::Nothing {
        member(&mut out, "total", &total(response, beside.total_as_number));
    }
    let best = response
        .hits
        .iter()
        .filter_map(|hit| hit.score)
        .fold(None, |best: Option<f32>, score| Some(best.map_or(score, |best| best.max(score))));
    member(&mut out, "max_score", &json!(best));
    out.extend_from_slice(b"\"hits\":[");
    for (number, hit) in response.hits.iter().enumerate() {
        if number > 0 {
            out.push(b',');
        }
        let document = document(hit, body);
        // Writing into memory does not fail.
        let _ = serde_json::to_writer(&mut out, &document);
    }
    out.extend_from_slice(b"]}");
    if let Some(aggregations) = response.aggregations.as_ref().filter(|_| !body.aggregations.is_empty()) {
        let _ = write!(out, ",\"aggregations\":");
        let _ = serde_json::to_writer(&mut out, &aggregations.values);
    }
    if let Some(status) = beside.status {
        let _ = write!(out, ",\"status\":{status}");
    }
    out.push(b'}');
    out
}

/// One member that others follow.
fn member(out: &mut Vec<u8>, name: &str, value: &Value) {
    let _ = write!(out, "\"{name}\":{value},");
}

/// Splits are what shards are elsewhere. Those that lack a column which was aggregated have failed to answer in full.
fn shards(response: &SearchResponse) -> Value {
    let stats = &response.stats;
    let lacking = response.aggregations.iter().flat_map(|aggregations| &aggregations.lacking);
    let failures: Vec<_> = lacking
        .clone()
        .map(|(column, splits)| {
            let reason = format!(
                "{splits} of {} splits keep no column of {column}; their messages are missing from its aggregations",
                stats.splits_searched
            );
            json!({"shard": 0, "index": null, "reason": {"type": "illegal_argument_exception", "reason": reason}})
        })
        .collect();
    let failed = lacking.map(|(_, splits)| *splits).max().unwrap_or(0);
    let successful = stats.splits_total.saturating_sub(failed);
    let mut shards = json!({
        "total": stats.splits_total, "successful": successful, "skipped": stats.splits_pruned, "failed": failed,
    });
    if let (false, Value::Object(members)) = (failures.is_empty(), &mut shards) {
        members.insert("failures".to_owned(), json!(failures));
    }
    shards
}

fn total(response: &SearchResponse, as_number: bool) -> Value {
    let relation = match response.relation {
        TotalRelation::Exact => "eq",
        TotalRelation::AtLeast => "gte",
    };
    if as_number { json!(response.total) } else { json!({"value": response.total, "relation": relation}) }
}

fn document(hit: &Hit, body: &SearchBody) -> Value {
    let source = source_of(hit);
    let mut document = json!({
        "_index": hit.topic.as_str(),
        "_id": id_of(hit),
        "_score": hit.score.filter(|score| score.is_finite()),
    });
    let Value::Object(members) = &mut document else { return document };
    if !body.fields.is_empty() {
        let fields = fields_of(&source, &body.fields);
        if !fields.is_empty() {
            members.insert("fields".to_owned(), Value::Object(fields));
        }
    }
    if let Some(source) = body.source.apply(source) {
        members.insert("_source".to_owned(), source);
    }
    if !hit.highlights.is_empty() {
        members.insert("highlight".to_owned(), json!(hit.highlights));
    }
    if let Some(sort) = body.order.values(hit) {
        members.insert("sort".to_owned(), sort);
    }
    document
}
