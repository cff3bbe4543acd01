//! `GET` and `POST /v1/search`: the same query, as parameters or as JSON.

use std::io::Write;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use thermocline_ingest::model::TopicName;
use tokio::time::Instant;

use super::App;
use super::error::ApiError;
use super::extract::{JsonBody, NoParams, Params};
use crate::message::{Time, of_owned, write_string};
use crate::search::{SearchRequest, SearchResponse, Sort, TotalRelation};

/// Hits of an answer where the request does not say.
const LIMIT_DEFAULT: usize = 20;

/// A query as parameters; `topics` is separated by commas.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SearchParams {
    q: String,
    topic: Option<String>,
    topics: Option<String>,
    from: Option<Time>,
    /// Exclusive.
    to: Option<Time>,
    limit: Option<usize>,
    #[serde(default)]
    sort: SortOrder,
    cursor: Option<String>,
}

/// A query as JSON.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SearchBody {
    q: String,
    topic: Option<String>,
    topics: Option<Vec<String>>,
    from: Option<Time>,
    /// Exclusive.
    to: Option<Time>,
    limit: Option<usize>,
    #[serde(default)]
    sort: SortOrder,
    cursor: Option<String>,
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
    let request = SearchRequest::try_from(body)?;
    for name in &request.topics {
        let topic = app.services.topics.get(name.as_str()).ok_or_else(|| ApiError::unknown_topic(name.as_str()))?;
        if topic.is_internal() {
            return Err(ApiError::bad_request(format!("topic {name} is internal and not indexed")));
        }
    }
    let response = app.services.search.search(request).await?;
    let took_ms = started.elapsed().as_secs_f64() * 1e3;
    Ok(([(header::CONTENT_TYPE, "application/json")], answer(&response, took_ms)?).into_response())
}

impl From<SearchParams> for SearchBody {
    fn from(params: SearchParams) -> Self {
        let SearchParams { q, topic, topics, from, to, limit, sort, cursor } = params;
        let topics = topics.map(|topics| topics.split(',').map(str::to_owned).collect());
        Self { q, topic, topics, from, to, limit, sort, cursor }
    }
}

impl TryFrom<SearchBody> for SearchRequest {
    type Error = ApiError;

    fn try_from(body: SearchBody) -> Result<Self, ApiError> {
        let names = match (body.topic, body.topics) {
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
        Ok(Self {
            query: body.q,
            topics,
            from: body.from.map(|time| time.0),
            to: body.to.map(|time| time.0),
            limit: body.limit.unwrap_or(LIMIT_DEFAULT),
            sort: match body.sort {
                SortOrder::NewestFirst => Sort::NewestFirst,
                SortOrder::OldestFirst => Sort::OldestFirst,
                SortOrder::Score => Sort::Score,
            },
            cursor: body.cursor,
        })
    }
}

/// The answer as JSON; `total.relation` is `eq` where the count is exact and `gte` where there may be more.
fn answer(response: &SearchResponse, took_ms: f64) -> Result<Vec<u8>, ApiError> {
    let mut out = Vec::new();
    out.extend_from_slice(b"{\"hits\":[");
    for (index, hit) in response.hits.iter().enumerate() {
        out.extend_from_slice(if index == 0 { b"{" } else { b",{" });
        of_owned(hit.topic.as_str(), hit.partition, &hit.record).write_fields(&mut out);
        // JSON has no number for a score that is not finite.
        if let Some(score) = hit.score.filter(|score| score.is_finite()) {
            write_all(&mut out, format_args!(",\"score\":{score}"));
        }
        out.push(b'}');
    }
    let relation = match response.relation {
        TotalRelation::Exact => "eq",
        TotalRelation::AtLeast => "gte",
    };
    write_all(&mut out, format_args!("],\"total\":{{\"value\":{},\"relation\":\"{relation}\"}}", response.total));
    if let Some(cursor) = &response.cursor {
        out.extend_from_slice(b",\"cursor\":");
        write_string(&mut out, cursor);
    }
    write_all(&mut out, format_args!(",\"took_ms\":{took_ms:.1},\"stats\":"));
    serde_json::to_writer(&mut out, &response.stats).map_err(|error| ApiError::fault(&error))?;
    out.push(b'}');
    Ok(out)
}

fn write_all(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing into memory does not fail.
    let _ = out.write_fmt(text);
}

#[cfg(test)]
mod tests {
    use axum::extract::{FromRequestParts, Request};
    use bytes::Bytes;
    use thermocline_ingest::model::{Offset, PartitionId, Timestamp, TimestampType};
    use thermocline_tiering::reader::OwnedRecord;

    use super::*;
    use crate::search::{Hit, SearchStats};

    async fn by_query(query: &str) -> Result<SearchRequest, ApiError> {
        let (mut parts, ()) = Request::builder().uri(format!("/?{query}")).body(()).unwrap().into_parts();
        let Params(params) = Params::<SearchParams>::from_request_parts(&mut parts, &()).await?;
        SearchBody::from(params).try_into()
    }

    fn by_body(body: &str) -> Result<SearchRequest, String> {
        let body: SearchBody = serde_json::from_str(body).map_err(|error| error.to_string())?;
        SearchRequest::try_from(body).map_err(|error| error.message)
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
        let plain = by_query("q=a&topic=x").await.unwrap();
        assert_eq!((plain.topics, plain.limit, plain.sort), (vec![topic("x")], LIMIT_DEFAULT, Sort::NewestFirst));
        assert!(by_query("q=a").await.unwrap().topics.is_empty());
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
        let hit = |score| Hit { topic: topic("x"), partition: PartitionId(1), record: record.clone(), score };
        let response = SearchResponse {
            hits: vec![hit(Some(1.5)), hit(None)],
            total: 9,
            relation: TotalRelation::AtLeast,
            cursor: Some("next".to_owned()),
            stats: SearchStats { splits_total: 3, ..SearchStats::default() },
        };
        let message = r#""topic":"x","partition":1,"offset":7,"timestamp":"1970-01-01T00:00:00.000Z","key":null,"value":"a \"b\"","headers":[{"key":"h","value":null}]"#;
        let stats = r#"{"splits_total":3,"splits_pruned":0,"splits_searched":0,"bytes_fetched":0,"hot_docs":0}"#;
        assert_eq!(
            String::from_utf8(answer(&response, 4.0).unwrap()).unwrap(),
            format!(
                r#"{{"hits":[{{{message},"score":1.5}},{{{message}}}],"total":{{"value":9,"relation":"gte"}},"cursor":"next","took_ms":4.0,"stats":{stats}}}"#
            )
        );
    }
}
