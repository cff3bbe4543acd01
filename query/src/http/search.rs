//! `GET` and `POST /v1/search`: the same query, as parameters or as JSON.

use std::io::Write;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::Value;
use thermocline_ingest::model::{Timestamp, TopicName};
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::App;
use super::error::ApiError;
use super::extract::{JsonBody, NoParams, Params};
use crate::message::{of_owned, write_string};
use crate::search::{
    Context, HIGHLIGHT_TAG_LEN_MAX, HighlightOptions, Neighbour, Passage, RequestedAggregations, SearchRequest,
    SearchResponse, Sort, TotalRelation, TotalWanted,
};
use crate::time::{Rounding, TimeExpr};

/// Hits of an answer where the request does not say.
const LIMIT_DEFAULT: usize = 20;

/// A query as parameters; `topics` is separated by commas.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SearchParams {
    q: String,
    topic: Option<String>,
    topics: Option<String>,
    from: Option<TimeExpr>,
    /// Exclusive.
    to: Option<TimeExpr>,
    limit: Option<usize>,
    #[serde(default)]
    sort: SortOrder,
    cursor: Option<String>,
    /// Neighbours of each hit on either side, unless one of the next two says otherwise.
    context: Option<usize>,
    context_before: Option<usize>,
    context_after: Option<usize>,
    #[serde(default)]
    track_total: TrackTotal,
    #[serde(default)]
    highlight: bool,
}

/// A query as JSON.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SearchBody {
    q: String,
    topic: Option<String>,
    topics: Option<Vec<String>>,
    from: Option<TimeExpr>,
    /// Exclusive.
    to: Option<TimeExpr>,
    limit: Option<usize>,
    #[serde(default)]
    sort: SortOrder,
    cursor: Option<String>,
    /// Neighbours of each hit on either side, unless one of the next two says otherwise.
    context: Option<usize>,
    context_before: Option<usize>,
    context_after: Option<usize>,
    #[serde(default)]
    track_total: TrackTotal,
    #[serde(default)]
    highlight: Highlight,
    /// In Elasticsearch's form.
    #[serde(alias = "aggregations")]
    aggs: Option<Value>,
}

/// How far matches are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum TrackTotal {
    /// All of them, whatever it costs.
    Exact,
    /// As far as the search for the page goes.
    #[default]
    Bounded,
    /// The answer has no total.
    None,
}

/// Whether and how matches are marked.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Highlight {
    Switch(bool),
    Settings(HighlightSettings),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct HighlightSettings {
    pre: String,
    post: String,
    /// Write the text as HTML.
    html: bool,
    /// Bytes of a piece.
    fragment_size: usize,
    /// Pieces of each field; 0 is the whole text.
    fragments: usize,
    fields: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
enum SortOrder {
    #[default]
    #[serde(rename = "-timestamp")]
    NewestFirst,
    #[serde(rename = "timestamp")]
    OldestFirst,
    #[serde(rename = "_score")]
    Score,
}

pub(super) async fn search_by_query(
    State(app): State<Arc<App>>,
    Params(params): Params<SearchParams>,
) -> Result<Response, ApiError> {
    search(&app, SearchBody::from(params)).await
}

pub(super) async fn search_by_body(
    State(app): State<Arc<App>>,
    Params(NoParams {}): Params<NoParams>,
    JsonBody(body): JsonBody<SearchBody>,
) -> Result<Response, ApiError> {
    search(&app, body).await
}

async fn search(app: &App, body: SearchBody) -> Result<Response, ApiError> {
    let started = Instant::now();
    let has_total = body.track_total != TrackTotal::None;
    let request = body.into_request(app.services.clock.now(), app.services.search.buckets_max())?;
    for name in &request.topics {
        let topic = app.services.topics.get(name.as_str()).ok_or_else(|| ApiError::unknown_topic(name.as_str()))?;
        if topic.is_internal() {
            return Err(ApiError::bad_request(format!("topic {name} is internal and not indexed")));
        }
    }
    let response = app.services.search.search(request).await?;
    let took_ms = started.elapsed().as_secs_f64() * 1e3;
    // A page may be many megabytes.
    let answer = spawn_blocking(move || answer(&response, has_total, took_ms)).await??;
    Ok(([(header::CONTENT_TYPE, "application/json")], answer).into_response())
}

impl From<SearchParams> for SearchBody {
    fn from(params: SearchParams) -> Self {
        let SearchParams { q, topic, topics, from, to, limit, sort, cursor, track_total, highlight, .. } = params;
        let SearchParams { context, context_before, context_after, .. } = params;
        let topics = topics.map(|topics| topics.split(',').map(str::to_owned).collect());
        let highlight = Highlight::Switch(highlight);
        Self {
            q,
            topic,
            topics,
            from,
            to,
            limit,
            sort,
            cursor,
            context,
            context_before,
            context_after,
            track_total,
            highlight,
            aggs: None,
        }
    }
}

impl SearchBody {
    fn into_request(self, now: Timestamp, buckets_max: u32) -> Result<SearchRequest, ApiError> {
        let names = match (self.topic, self.topics) {
            (Some(_), Some(_)) => return Err(ApiError::bad_request("topic and topics are both given; give one")),
            (Some(topic), None) => vec![topic],
            (None, Some(topics)) if topics.is_empty() => {
                return Err(ApiError::bad_request("topics is empty; leave it out to search every topic"));
            }
            (None, topics) => topics.unwrap_or_default(),
        };
        let mut topics = Vec::with_capacity(names.len());
        for name in names {
            let name = TopicName::new(&name).map_err(ApiError::bad_request)?;
            if !topics.contains(&name) {
                topics.push(name);
            }
        }
        let aggregations = self.aggs.map(|aggs| RequestedAggregations::parse(aggs, now, buckets_max)).transpose()?;
        let moment = |time: Option<TimeExpr>| time.map(|time| time.at(now, Rounding::Down)).transpose();
        Ok(SearchRequest {
            query: self.q,
            now,
            topics,
            from: moment(self.from).map_err(ApiError::bad_request)?,
            to: moment(self.to).map_err(ApiError::bad_request)?,
            limit: self.limit.unwrap_or(LIMIT_DEFAULT),
            sort: match self.sort {
                SortOrder::NewestFirst => Sort::NewestFirst,
                SortOrder::OldestFirst => Sort::OldestFirst,
                SortOrder::Score => Sort::Score,
            },
            cursor: self.cursor,
            context: Context {
                before: self.context_before.or(self.context).unwrap_or(0),
                after: self.context_after.or(self.context).unwrap_or(0),
            },
            total: match self.track_total {
                TrackTotal::Exact => TotalWanted::Exact,
                TrackTotal::Bounded => TotalWanted::default(),
                TrackTotal::None => TotalWanted::Nothing,
            },
            highlight: self.highlight.into_options()?,
            aggregations: aggregations.unwrap_or_default(),
        })
    }
}

impl Default for Highlight {
    fn default() -> Self {
        Self::Switch(false)
    }
}

impl Default for HighlightSettings {
    fn default() -> Self {
        let HighlightOptions { pre, post, escape_html, fragment_len, fragments, fields } = HighlightOptions::default();
        Self { pre, post, html: escape_html, fragment_size: fragment_len, fragments, fields }
    }
}

impl Highlight {
    fn into_options(self) -> Result<Option<HighlightOptions>, ApiError> {
        let settings = match self {
            Self::Switch(false) => return Ok(None),
            Self::Switch(true) => HighlightSettings::default(),
            Self::Settings(settings) => settings,
        };
        let HighlightSettings { pre, post, html, fragment_size, fragments, fields } = settings;
        if pre.len().max(post.len()) > HIGHLIGHT_TAG_LEN_MAX {
            let message = format!("highlight.pre and highlight.post may have {HIGHLIGHT_TAG_LEN_MAX} bytes each");
            return Err(ApiError::bad_request(message));
        }
        Ok(Some(HighlightOptions { pre, post, escape_html: html, fragment_len: fragment_size, fragments, fields }))
    }
}

/// The answer as JSON; `total.relation` is `eq` where the count is exact and `gte` where there may be more.
fn answer(response: &SearchResponse, has_total: bool, took_ms: f64) -> Result<Vec<u8>, ApiError> {
    let mut out = Vec::new();
    out.extend_from_slice(b"{\"hits\":[");
    for (index, hit) in response.hits.iter().enumerate() {
        out.extend_from_slice(if index == 0 { b"{" } else { b",{" });
        of_owned(hit.topic.as_str(), hit.partition, &hit.record).write_fields(&mut out);
        // JSON has no number for a score that is not finite.
        if let Some(score) = hit.score.filter(|score| score.is_finite()) {
            write_all(&mut out, format_args!(",\"score\":{score}"));
        }
        if !hit.highlights.is_empty() {
            out.extend_from_slice(b",\"highlights\":");
            serde_json::to_writer(&mut out, &hit.highlights).map_err(|error| ApiError::fault(&error))?;
        }
        out.push(b'}');
    }
    out.push(b']');
    let relation = match response.relation {
        TotalRelation::Exact => "eq",
        TotalRelation::AtLeast => "gte",
    };
    if has_total {
        write_all(&mut out, format_args!(",\"total\":{{\"value\":{},\"relation\":\"{relation}\"}}", response.total));
    }
    if let Some(aggregations) = &response.aggregations {
        out.extend_from_slice(b",\"aggregations\":");
        serde_json::to_writer(&mut out, &aggregations.values).map_err(|error| ApiError::fault(&error))?;
        if !aggregations.lacking.is_empty() {
            out.extend_from_slice(b",\"splits_without_column\":");
            serde_json::to_writer(&mut out, &aggregations.lacking).map_err(|error| ApiError::fault(&error))?;
        }
    }
    if let Some(cursor) = &response.cursor {
        out.extend_from_slice(b",\"cursor\":");
        write_string(&mut out, cursor);
    }
    write_context(&mut out, &response.context);
    write_all(&mut out, format_args!(",\"took_ms\":{took_ms:.1},\"stats\":"));
    serde_json::to_writer(&mut out, &response.stats).map_err(|error| ApiError::fault(&error))?;
    out.push(b'}');
    Ok(out)
}

/// `"context":[{"topic","partition","messages":[{message,"hit":true|false}]}]`; nothing where none was asked for.
fn write_context(out: &mut Vec<u8>, passages: &[Passage]) {
    for (index, passage) in passages.iter().enumerate() {
        out.extend_from_slice(if index == 0 { b",\"context\":[{\"topic\":" } else { b",{\"topic\":" });
        write_string(out, passage.topic.as_str());
        write_all(out, format_args!(",\"partition\":{},\"messages\":[", passage.partition));
        for (index, Neighbour { record, is_hit }) in passage.messages.iter().enumerate() {
            out.extend_from_slice(if index == 0 { b"{" } else { b",{" });
            of_owned(passage.topic.as_str(), passage.partition, record).write_fields(out);
            write_all(out, format_args!(",\"hit\":{is_hit}}}"));
        }
        out.extend_from_slice(b"]}");
    }
    if !passages.is_empty() {
        out.push(b']');
    }
}

fn write_all(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing into memory does not fail.
    let _ = out.write_fmt(text);
}

#[cfg(test)]
mod tests {
    use axum::extract::{FromRequestParts, Request};
    use bytes::Bytes;
    use thermocline_ingest::model::{Offset, PartitionId, TimestampType};
    use thermocline_tiering::reader::OwnedRecord;

    use super::*;
    use crate::search::{AggregationsAnswer, Highlights, Hit, SearchStats};

    /// 2015-05-18T00:00:00Z
    const NOW: Timestamp = Timestamp(1_431_907_200_000);

    async fn by_query(query: &str) -> Result<SearchRequest, ApiError> {
        let (mut parts, ()) = Request::builder().uri(format!("/?{query}")).body(()).unwrap().into_parts();
        let Params(params) = Params::<SearchParams>::from_request_parts(&mut parts, &()).await?;
        SearchBody::from(params).into_request(NOW, 1000)
    }

    fn by_body(body: &str) -> Result<SearchRequest, String> {
        let body: SearchBody = serde_json::from_str(body).map_err(|error| error.to_string())?;
        body.into_request(NOW, 1000).map_err(|error| error.message)
    }

    fn topic(name: &str) -> TopicName {
        TopicName::new(name).unwrap()
    }

    #[tokio::test]
    async fn query_and_body_say_the_same() {
        let query = "q=a+AND+b&topics=x,y,x&from=2015-05-17&to=1431907200000&limit=5&sort=timestamp&cursor=c";
        let body = r#"{"q":"a AND b","topics":["x","y"],"from":"2015-05-17","to":1431907200000,"limit":5,"sort":"timestamp","cursor":"c"}"#;
        for request in [by_query(query).await.unwrap(), by_body(body).unwrap()] {
            assert_eq!(request.query, "a AND b");
            assert_eq!(request.topics, [topic("x"), topic("y")]);
            assert_eq!(request.from, Some(Timestamp(1_431_820_800_000)));
            assert_eq!(request.to, Some(Timestamp(1_431_907_200_000)));
            assert_eq!((request.limit, request.sort, request.cursor.as_deref()), (5, Sort::OldestFirst, Some("c")));
        }
        for request in [
            by_query("q=a&from=now-1d&to=now/d").await.unwrap(),
            by_body(r#"{"q":"a","from":"now-1d","to":"now"}"#).unwrap(),
        ] {
            assert_eq!((request.from, request.to), (Some(Timestamp(1_431_820_800_000)), Some(NOW)));
            assert_eq!(request.now, NOW);
        }
        let plain = by_query("q=a&topic=x").await.unwrap();
        assert_eq!((plain.topics, plain.limit, plain.sort), (vec![topic("x")], LIMIT_DEFAULT, Sort::NewestFirst));
        assert!(by_query("q=a").await.unwrap().topics.is_empty());
        let context = |before, after| Context { before, after };
        assert_eq!(plain.context, context(0, 0));
        assert_eq!(by_query("q=a&context=3").await.unwrap().context, context(3, 3));
        assert_eq!(by_query("q=a&context=3&context_after=0").await.unwrap().context, context(3, 0));
        assert_eq!(by_body(r#"{"q":"a","context_before":2}"#).unwrap().context, context(2, 0));
        assert_eq!(by_query("q=a&sort=-timestamp").await.unwrap().sort, Sort::NewestFirst);
        assert_eq!(by_query("q=a&sort=_score").await.unwrap().sort, Sort::Score);
    }

    #[tokio::test]
    async fn bad_queries_are_refused() {
        for query in [
            "",
            "q=a&topic=x&topics=y",
            "q=a&topics=",
            "q=a&topic=a/b",
            "q=a&sort=offset",
            "q=a&size=3",
            "q=a&limit=-1",
            "q=a&from=now%2B",
            "q=a&to=now-999999999y",
        ] {
            assert_eq!(by_query(query).await.unwrap_err().code, "bad_request", "{query}");
        }
        for body in ["{}", r#"{"q":"a","topics":[]}"#, r#"{"q":"a","size":3}"#, r#"{"q":"a","from":"soon"}"#] {
            assert!(by_body(body).is_err(), "{body}");
        }
    }

    #[test]
    fn the_answer_has_the_pinned_shape() {
        let record = OwnedRecord {
            offset: Offset(7),
            timestamp: Timestamp(0),
            timestamp_type: TimestampType::CreateTime,
            key: None,
            value: Some(Bytes::from_static(b"a \"b\"")),
            headers: vec![("h".to_owned(), None)],
        };
        let hit = |score| Hit {
            topic: topic("x"),
            partition: PartitionId(1),
            record: record.clone(),
            score,
            highlights: Highlights::new(),
        };
        let response = SearchResponse {
            hits: vec![hit(Some(1.5)), hit(None)],
            total: 9,
            relation: TotalRelation::AtLeast,
            cursor: Some("next".to_owned()),
            context: vec![Passage {
                topic: topic("x"),
                partition: PartitionId(1),
                messages: vec![Neighbour { record: record.clone(), is_hit: true }],
            }],
            stats: SearchStats { splits_total: 3, ..SearchStats::default() },
            aggregations: None,
        };
        let message = r#""topic":"x","partition":1,"offset":7,"timestamp":"1970-01-01T00:00:00.000Z","key":null,"value":"a \"b\"","headers":[{"key":"h","value":null}]"#;
        let stats =
            r#"{"splits_total":3,"splits_pruned":0,"splits_searched":0,"bytes_fetched":0,"hot_docs":0,"requests":0}"#;
        assert_eq!(
            String::from_utf8(answer(&response, true, 4.0).unwrap()).unwrap(),
            format!(
                r#"{{"hits":[{{{message},"score":1.5}},{{{message}}}],"total":{{"value":9,"relation":"gte"}},"cursor":"next","context":[{{"topic":"x","partition":1,"messages":[{{{message},"hit":true}}]}}],"took_ms":4.0,"stats":{stats}}}"#
            )
        );
    }

    #[tokio::test]
    async fn totals_highlights_and_aggregations_are_asked_for() {
        let plain = by_query("q=a").await.unwrap();
        assert_eq!((plain.total, plain.highlight, plain.aggregations.0.len()), (TotalWanted::AtLeast(0), None, 0));
        let marked = by_query("q=a&highlight=true&track_total=exact").await.unwrap();
        assert_eq!((marked.total, marked.highlight), (TotalWanted::Exact, Some(HighlightOptions::default())));
        let body = r#"{"q":"a","highlight":{"pre":"<","post":">","html":false,"fragments":0,"fields":["key"]},
            "track_total":"none","aggs":{"n":{"value_count":{"field":"offset"}}}}"#;
        let request = by_body(body).unwrap();
        let options = HighlightOptions {
            pre: "<".to_owned(),
            post: ">".to_owned(),
            escape_html: false,
            fragments: 0,
            fields: vec!["key".to_owned()],
            ..HighlightOptions::default()
        };
        assert_eq!((request.total, request.highlight), (TotalWanted::Nothing, Some(options)));
        assert_eq!(request.aggregations.0.len(), 1);
        for body in [
            r#"{"q":"a","highlight":{"colour":"red"}}"#,
            r#"{"q":"a","highlight":"yes"}"#,
            r#"{"q":"a","track_total":"some"}"#,
            r#"{"q":"a","aggs":{"n":{"top_hits":{}}}}"#,
            r#"{"q":"a","aggs":{},"aggregations":{}}"#,
        ] {
            assert!(by_body(body).is_err(), "{body}");
        }
    }

    #[test]
    fn the_answer_carries_what_was_asked_for() {
        let response = SearchResponse {
            aggregations: Some(AggregationsAnswer {
                values: [("n".to_owned(), serde_json::json!({"value": 1}))].into_iter().collect(),
                lacking: [("json.a".to_owned(), 2)].into(),
            }),
            ..SearchResponse::default()
        };
        let answer: Value = serde_json::from_slice(&answer(&response, false, 1.0).unwrap()).unwrap();
        assert_eq!(answer["aggregations"], serde_json::json!({"n": {"value": 1}}));
        assert_eq!(answer["splits_without_column"], serde_json::json!({"json.a": 2}));
        assert!(answer.get("total").is_none());
    }
}
