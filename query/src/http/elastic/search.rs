//! Searches: one, several, counted, page after page.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thermocline_ingest::model::Timestamp;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::super::App;
use super::{Call, Refusal, bytes_response, id_of, json_response, of_id, parse_json, topics};
use crate::elastic::ElasticError;
use crate::elastic::index::IndexOptions;
use crate::elastic::object::flag_of;
use crate::elastic::request::{Parameters, SearchBody, index_options, no_more, with_parameters};
use crate::elastic::response::{Beside, search_answer};
use crate::search::ast::SearchQuery;
use crate::search::{Context, SearchError, SearchResponse, TotalRelation, TreeRequest, place_of_cursor};

/// Searches in one `_msearch`.
const SEARCHES_MAX: usize = 64;
/// Bytes of answers in one `_msearch`; what would come behind is refused.
const ANSWERS_BYTES_MAX: usize = 128 << 20;

/// What a scroll's id holds.
#[derive(Debug, Serialize, Deserialize)]
struct Scroll {
    index: String,
    body: Value,
    /// Where the next page starts; None behind the last one.
    cursor: Option<String>,
    /// Of the first page.
    total: u64,
    exact: bool,
}

/// What the id of a point in time holds. It is none: the indices are named once and searched as they are.
#[derive(Debug, Serialize, Deserialize)]
struct Pit {
    index: String,
}

/// A search that is to be made.
struct Wanted {
    index: String,
    options: IndexOptions,
    body: Value,
    is_scroll: bool,
    /// Where the page of a scroll starts; None for the first one.
    cursor: Option<String>,
}

impl Wanted {
    fn parsed(&self, now: Timestamp, buckets_max: u32) -> Result<SearchBody, ElasticError> {
        let parsed = SearchBody::parse(self.body.clone(), now, buckets_max)?;
        if self.is_scroll && parsed.from > 0 {
            return Err(ElasticError::illegal("using [from] is not allowed in a scroll context"));
        }
        Ok(parsed)
    }
}

/// `_search`.
pub(super) async fn search(State(app): State<Arc<App>>, mut call: Call) -> Result<Response, Refusal> {
    let started = Instant::now();
    let options = index_options(&mut call.parameters)?;
    let is_scroll = call.parameters.remove("scroll").is_some();
    let total_as_number = flag(&mut call.parameters, "rest_total_hits_as_int")?;
    if flag(&mut call.parameters, "typed_keys")? {
        return Err(ElasticError::unsupported("[typed_keys]").into());
    }
    let body = with_parameters(call.json()?, &mut call.parameters)?;
    no_more(&call.parameters)?;
    let wanted = Wanted { index: call.index, options, body, is_scroll, cursor: None };
    let (parsed, response) = run(&app, &wanted).await?;
    let scroll_id = is_scroll.then(|| next_scroll(wanted, &response)).transpose()?;
    let beside = Beside { total_as_number, scroll_id, ..answered(started, &parsed) };
    Ok(bytes_response(formed(response, parsed, beside).await?))
}

/// `_search/scroll`: the next page.
pub(super) async fn scroll(State(app): State<Arc<App>>, mut call: Call) -> Result<Response, Refusal> {
    let started = Instant::now();
    index_options(&mut call.parameters)?;
    let total_as_number = flag(&mut call.parameters, "rest_total_hits_as_int")?;
    call.parameters.remove("scroll");
    let id = match (call.json()?.get("scroll_id").and_then(Value::as_str), call.parameters.remove("scroll_id")) {
        (Some(id), _) => id.to_owned(),
        (None, Some(id)) => id,
        (None, None) => return Err(ElasticError::parsing("[scroll_id] is missing").into()),
    };
    no_more(&call.parameters)?;
    let Scroll { index, body, cursor, total, exact } = of_id("scroll", &id)?;
    let Some(cursor) = cursor else {
        let parsed = SearchBody::parse(body, app.services.clock.now(), app.services.search.buckets_max())?;
        let response = SearchResponse { total, relation: relation(exact), ..SearchResponse::default() };
        let beside = Beside { scroll_id: Some(id), total_as_number, ..answered(started, &parsed) };
        return Ok(bytes_response(formed(response, parsed, beside).await?));
    };
    let options = IndexOptions { ignore_unavailable: true, allow_no_indices: true };
    let wanted = Wanted { index, options, body, is_scroll: true, cursor: Some(cursor) };
    let (parsed, mut response) = run(&app, &wanted).await?;
    // The total of every page is that of the first.
    (response.total, response.relation) = (total, relation(exact));
    let scroll_id = Some(next_scroll(wanted, &response)?);
    let beside = Beside { scroll_id, total_as_number, ..answered(started, &parsed) };
    Ok(bytes_response(formed(response, parsed, beside).await?))
}

/// `DELETE` of a scroll or of a point in time: there is nothing to free.
pub(super) async fn forget(_: Call) -> Response {
    json_response(&json!({"succeeded": true, "num_freed": 0}))
}

/// `_pit`.
pub(super) async fn open_pit(State(app): State<Arc<App>>, mut call: Call) -> Result<Response, Refusal> {
    let options = index_options(&mut call.parameters)?;
    call.parameters.remove("keep_alive");
    no_more(&call.parameters)?;
    topics(&app, &call.index, options)?;
    let id = id_of("point in time", &Pit { index: call.index })?;
    Ok(json_response(&json!({"id": id, "_shards": {"total": 1, "successful": 1, "skipped": 0, "failed": 0}})))
}

/// `_count`.
pub(super) async fn count(State(app): State<Arc<App>>, mut call: Call) -> Result<Response, Refusal> {
    let options = index_options(&mut call.parameters)?;
    let mut body = with_parameters(call.json()?, &mut call.parameters)?;
    no_more(&call.parameters)?;
    if let Value::Object(members) = &mut body {
        if let Some(name) = members.keys().find(|name| *name != "query") {
            return Err(ElasticError::parsing(format!("[_count] does not support [{name}]")).into());
        }
        members.insert("size".to_owned(), json!(0));
        members.insert("track_total_hits".to_owned(), json!(true));
    }
    let wanted = Wanted { index: call.index, options, body, is_scroll: false, cursor: None };
    let (_, response) = run(&app, &wanted).await?;
    let stats = &response.stats;
    Ok(json_response(&json!({
        "count": response.total,
        "_shards": {
            "total": stats.splits_total, "successful": stats.splits_total, "skipped": stats.splits_pruned, "failed": 0,
        },
    })))
}

/// `_msearch`: lines of a header and a body in turn.
pub(super) async fn multi_search(State(app): State<Arc<App>>, mut call: Call) -> Result<Response, Refusal> {
    let started = Instant::now();
    let options = index_options(&mut call.parameters)?;
    let total_as_number = flag(&mut call.parameters, "rest_total_hits_as_int")?;
    ["max_concurrent_searches", "search_type"].iter().for_each(|name| drop(call.parameters.remove(*name)));
    if flag(&mut call.parameters, "typed_keys")? {
        return Err(ElasticError::unsupported("[typed_keys]").into());
    }
    no_more(&call.parameters)?;
    // A header may be an empty line; behind the last body there is none.
    let text = call.body.strip_suffix(b"\n").unwrap_or(&call.body);
    let lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    if text.is_empty() || !lines.len().is_multiple_of(2) {
        let reason = "[_msearch] takes lines of a header and a body in turn, each on one line";
        return Err(ElasticError::parsing(reason).into());
    }
    if lines.len() / 2 > SEARCHES_MAX {
        let reason = format!("{} searches at once exceed the limit of {SEARCHES_MAX}", lines.len() / 2);
        return Err(ElasticError::illegal(reason).into());
    }
    let mut answers = Vec::new();
    for pair in lines.chunks(2) {
        answers.push(if answers.is_empty() { b'[' } else { b',' });
        let answer = match pair {
            [head, body] if answers.len() < ANSWERS_BYTES_MAX => {
                one_of_many(&app, &call.index, options, head, body, total_as_number).await
            }
            _ => {
                Err(ElasticError::illegal(format!("the answers exceed {ANSWERS_BYTES_MAX} bytes; ask for fewer hits")))
            }
        };
        match answer {
            Ok(answer) => answers.extend(answer),
            Err(error) => answers.extend(error.to_json().to_string().into_bytes()),
        }
    }
    let mut out = format!("{{\"took\":{},\"responses\":", took_ms(started)).into_bytes();
    out.append(&mut answers);
    out.extend_from_slice(b"]}");
    Ok(bytes_response(out))
}

async fn one_of_many(
    app: &App,
    index: &str,
    options: IndexOptions,
    head: &[u8],
    body: &[u8],
    total_as_number: bool,
) -> Result<Vec<u8>, ElasticError> {
    let started = Instant::now();
    let head = if head.trim_ascii().is_empty() { json!({}) } else { parse_json(head)? };
    let Value::Object(head) = head else { return Err(ElasticError::parsing("a header must be an object")) };
    // A header says what the address of a search says.
    let mut parameters = Parameters::new();
    for (name, value) in head {
        let text = match value {
            Value::String(text) => text,
            Value::Array(list) => list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","),
            other => other.to_string(),
        };
        parameters.insert(name, text);
    }
    let index = parameters.remove("index").or_else(|| parameters.remove("indices")).unwrap_or_else(|| index.to_owned());
    let has_options = parameters.contains_key("ignore_unavailable") || parameters.contains_key("allow_no_indices");
    let own = index_options(&mut parameters)?;
    let body = with_parameters(parse_json(body)?, &mut parameters)?;
    no_more(&parameters)?;
    let options = if has_options { own } else { options };
    let wanted = Wanted { index, options, body, is_scroll: false, cursor: None };
    let (parsed, response) = run(app, &wanted).await?;
    let beside = Beside { total_as_number, status: Some(200), ..answered(started, &parsed) };
    formed(response, parsed, beside).await
}

/// The answer as JSON: a page may be many megabytes.
async fn formed(response: SearchResponse, parsed: SearchBody, beside: Beside) -> Result<Vec<u8>, ElasticError> {
    let formed = spawn_blocking(move || search_answer(&response, &parsed, &beside)).await;
    formed.map_err(|_| SearchError::Panicked.into())
}

async fn run(app: &App, wanted: &Wanted) -> Result<(SearchBody, SearchResponse), ElasticError> {
    let search = &app.services.search;
    let now = app.services.clock.now();
    let parsed = wanted.parsed(now, search.buckets_max())?;
    let index = match &parsed.pit {
        Some(_) if !wanted.index.is_empty() => {
            return Err(ElasticError::illegal("[indices] cannot be named where [pit] is given"));
        }
        Some(id) => of_id::<Pit>("point in time", id)?.index,
        None => wanted.index.clone(),
    };
    let topics = topics(app, &index, wanted.options)?;
    let after = match &wanted.cursor {
        Some(cursor) => Some(place_of_cursor(parsed.order.sort, cursor).map_err(SearchError::from)?),
        None => parsed.after.clone(),
    };
    let request = TreeRequest {
        query: SearchQuery { root: parsed.query.clone(), now },
        topics: Some(topics),
        from: None,
        to: None,
        skip: parsed.from,
        limit: parsed.from.saturating_add(parsed.size),
        sort: parsed.order.sort,
        after,
        total: parsed.total,
        highlight: parsed.highlight.clone(),
        // Aggregations are those of the first page.
        aggregations: if wanted.cursor.is_none() { parsed.aggregations.clone() } else { Vec::new() },
        context: Context::default(),
    };
    let response = search.search_tree(request).await.map_err(ElasticError::from)?;
    Ok((parsed, response))
}

fn next_scroll(wanted: Wanted, response: &SearchResponse) -> Result<String, ElasticError> {
    let scroll = Scroll {
        index: wanted.index,
        body: wanted.body,
        cursor: response.cursor.clone(),
        total: response.total,
        exact: response.relation == TotalRelation::Exact,
    };
    id_of("scroll", &scroll)
}

fn relation(exact: bool) -> TotalRelation {
    if exact { TotalRelation::Exact } else { TotalRelation::AtLeast }
}

fn answered(started: Instant, parsed: &SearchBody) -> Beside {
    Beside { took_ms: took_ms(started), pit_id: parsed.pit.clone(), ..Beside::default() }
}

fn took_ms(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn flag(parameters: &mut Parameters, name: &str) -> Result<bool, ElasticError> {
    let Some(text) = parameters.remove(name) else { return Ok(false) };
    flag_of(&json!(text)).ok_or_else(|| ElasticError::illegal(format!("[{name}] must be true or false")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scroll_skips_nothing() {
        let parsed = |from: Value, is_scroll: bool| {
            let options = IndexOptions { ignore_unavailable: false, allow_no_indices: true };
            let body = json!({"from": from});
            let wanted = Wanted { index: String::new(), options, body, is_scroll, cursor: None };
            wanted.parsed(Timestamp(0), 1).map(|parsed| parsed.from)
        };
        assert_eq!(parsed(json!(2), false), Ok(2));
        assert_eq!(parsed(json!(0), true), Ok(0));
        // As the address says it.
        for from in [json!(2), json!("2")] {
            let error = parsed(from, true).unwrap_err();
            assert!(error.status == 400 && error.reason.contains("[from]"), "{error}");
        }
    }
}
