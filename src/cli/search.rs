//! `thermocline search`: hits with their messages, page after page until the limit.

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::BrokerArgs;
use super::client::{Client, NO_QUERY};
use super::message::Message;
use super::output::Output;
use super::table;
use super::time::Moment;

/// Hits asked for in one request.
const PAGE_HITS_MAX: u64 = 1000;
/// How much of a message a line of the table shows, in characters; `--json` has it all.
const SHOWN_VALUE_LEN_MAX: usize = 160;

#[derive(Args)]
pub struct SearchArgs {
    /// Words, "phrases", AND/OR/NOT, field:word
    query: String,
    /// Only this topic; may be given several times
    #[arg(long = "topic", value_name = "T")]
    topics: Vec<String>,
    /// Not before this time: a date (its midnight in UTC) or RFC 3339
    #[arg(long, value_name = "TIME")]
    from: Option<Moment>,
    /// Only before this time
    #[arg(long, value_name = "TIME")]
    to: Option<Moment>,
    /// Most hits
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: u64,
    /// Order of the hits
    #[arg(long, value_enum, default_value = "newest")]
    sort: SortOrder,
    /// Print each hit as a line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    broker: BrokerArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SortOrder {
    #[value(alias = "-timestamp")]
    Newest,
    #[value(alias = "timestamp")]
    Oldest,
    #[value(alias = "_score")]
    Score,
}

/// A request to `POST /v1/search`.
#[derive(Clone, Debug, Serialize)]
pub struct SearchRequest {
    pub q: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub topics: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    pub limit: u64,
    pub sort: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Its answer.
#[derive(Debug, Deserialize)]
pub struct SearchAnswer {
    pub hits: Vec<Value>,
    pub total: Total,
    #[serde(default)]
    pub cursor: Option<String>,
    pub took_ms: f64,
    pub stats: SearchStats,
}

#[derive(Debug, Deserialize)]
pub struct Total {
    pub value: u64,
    pub relation: String,
}

#[derive(Debug, Deserialize)]
pub struct SearchStats {
    pub splits_total: u64,
    pub splits_searched: u64,
}

impl SortOrder {
    fn parameter(self) -> &'static str {
        match self {
            Self::Newest => "-timestamp",
            Self::Oldest => "timestamp",
            Self::Score => "_score",
        }
    }
}

impl SearchAnswer {
    /// The total, with its uncertainty.
    pub fn total_text(&self) -> String {
        let exact = self.total.relation == "eq";
        format!("{}{}", if exact { "" } else { "at least " }, table::count(self.total.value))
    }
}

impl SearchRequest {
    pub fn new(query: &str, topics: &[String], limit: u64, sort: SortOrder) -> Self {
        let (q, topics, sort) = (query.to_owned(), topics.to_vec(), sort.parameter());
        Self { q, topics, from: None, to: None, limit, sort, cursor: None }
    }

    pub async fn send(&self, client: &Client) -> anyhow::Result<SearchAnswer> {
        client.post(&["v1", "search"], NO_QUERY, self).await
    }
}

pub async fn run(args: &SearchArgs) -> anyhow::Result<()> {
    let client = Client::new(&args.broker.url)?;
    let mut request = SearchRequest::new(&args.query, &args.topics, args.limit, args.sort);
    request.from = args.from.map(|moment| moment.to_string());
    request.to = args.to.map(|moment| moment.to_string());
    let mut output = Output::new();
    let mut shown = 0;
    let mut took_ms = 0.0;
    loop {
        request.limit = (args.limit - shown).min(PAGE_HITS_MAX);
        let answer = request.send(&client).await?;
        took_ms += answer.took_ms;
        for hit in &answer.hits {
            let line = if args.json { hit.to_string() } else { human_line(hit)? };
            output.line(line)?;
        }
        output.flush()?;
        shown += answer.hits.len() as u64;
        let finished = shown >= args.limit || answer.hits.is_empty() || answer.cursor.is_none();
        if finished {
            if !args.json {
                let (searched, all) = (answer.stats.splits_searched, answer.stats.splits_total);
                let total = answer.total_text();
                output
                    .line(format!("{shown} of {total} shown, {took_ms:.1} ms, {searched} of {all} splits searched"))?;
            }
            return output.flush();
        }
        request.cursor = answer.cursor;
    }
}

/// Time, place and message of a hit, in one line.
pub fn human_line(hit: &Value) -> anyhow::Result<String> {
    let message = Message::deserialize(hit)?;
    let value = message.value()?.unwrap_or_default();
    let text = String::from_utf8_lossy(&value);
    let mut shown: String =
        text.chars().take(SHOWN_VALUE_LEN_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(SHOWN_VALUE_LEN_MAX).is_some() {
        shown.push('…');
    }
    Ok(format!("{}  {}/{}@{}  {shown}", message.time(), message.topic, message.partition, message.offset))
}

#[cfg(test)]
mod tests {
    use super::super::client::tests::{answer, canned};
    use super::*;

    fn hit(offset: i64) -> String {
        format!(
            r#"{{"topic":"t","partition":0,"offset":{offset},"timestamp":"2015-05-17T10:05:00.000Z","key":null,"value":"a\nb","headers":[]}}"#
        )
    }

    fn page(hits: &[i64], cursor: &str) -> String {
        let hits = hits.iter().map(|offset| hit(*offset)).collect::<Vec<_>>().join(",");
        let stats = r#"{"splits_total":3,"splits_pruned":1,"splits_searched":2,"bytes_fetched":9,"hot_docs":0}"#;
        let body = format!(
            r#"{{"hits":[{hits}],"total":{{"value":1200,"relation":"gte"}},"cursor":{cursor},"took_ms":3,"stats":{stats}}}"#
        );
        answer("200 OK", &body)
    }

    #[tokio::test]
    async fn pages_are_followed_until_the_limit() {
        let (client, server) = canned(vec![page(&[9, 8], "\"c1\""), page(&[7], "null")]).await;
        let args = SearchArgs {
            query: "error".to_owned(),
            topics: vec!["t".to_owned()],
            from: "2015-05-17".parse().ok(),
            to: None,
            limit: 3,
            sort: SortOrder::Newest,
            json: true,
            broker: BrokerArgs { url: client.base_url() },
        };
        run(&args).await.unwrap();
        let requests = server.await.unwrap().unwrap();
        assert_eq!(
            requests[0].1,
            r#"{"q":"error","topics":["t"],"from":"2015-05-17T00:00:00.000Z","limit":3,"sort":"-timestamp"}"#
        );
        assert!(requests[1].1.contains(r#""limit":1,"sort":"-timestamp","cursor":"c1""#), "{}", requests[1].1);
    }

    #[test]
    fn a_hit_takes_one_line() {
        let line = human_line(&serde_json::from_str(&hit(7)).unwrap()).unwrap();
        assert_eq!(line, "2015-05-17T10:05:00.000Z  t/0@7  a b");
    }
}
