//! `thermocline search`: hits with their messages, page after page until the limit.

use std::io::IsTerminal;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thermocline_ingest::clock::{Clock, SystemClock};
use thermocline_query::search::column_in;

use super::BrokerArgs;
use super::client::{Client, NO_QUERY, ServerError};
use super::follow::{self, FollowRequest};
use super::message::Message;
use super::output::Output;
use super::table;
use super::time::When;

/// Hits asked for in one request.
const PAGE_HITS_MAX: u64 = 1000;
/// Neighbours asked for in one request; the broker's own limit.
const PAGE_CONTEXT_MAX: u64 = 10_000;
/// What stands between two passages, as with `grep -C`.
const PASSAGE_BREAK: &str = "--";
/// How much of a message a line of the table shows, in characters; `--json` has it all.
const SHOWN_VALUE_LEN_MAX: usize = 160;
/// What stands around a match on its way to a terminal, and what it becomes there. Control characters of messages are
/// not shown, so that these cannot come from them.
const MATCH_START: (char, &str) = ('\u{e000}', "\u{1b}[1;31m");
const MATCH_END: (char, &str) = ('\u{e001}', "\u{1b}[0m");

#[derive(Args)]
pub struct SearchArgs {
    /// Words, "phrases", AND/OR/NOT, prefixes like ord*, field:word, json.status:>=500, timestamp:>=now-15m
    query: String,
    /// Only this topic; may be given several times
    #[arg(long = "topic", value_name = "T")]
    topics: Vec<String>,
    /// Not before this time: a date (its midnight in UTC), RFC 3339, or relative like now-15m
    #[arg(long, value_name = "TIME")]
    from: Option<When>,
    /// Only before this time
    #[arg(long, value_name = "TIME")]
    to: Option<When>,
    /// Most hits
    #[arg(long, value_name = "N", default_value_t = 20, conflicts_with = "follow")]
    limit: u64,
    /// Order of the hits
    #[arg(long, value_enum, default_value = "newest", conflicts_with = "follow")]
    sort: SortOrder,
    /// Show so many messages of the partition before and after each hit
    #[arg(short = 'C', long, value_name = "N", default_value_t = 0, conflicts_with = "follow")]
    context: u64,
    /// Only before it
    #[arg(short = 'B', long, value_name = "N", conflicts_with = "follow")]
    before_context: Option<u64>,
    /// Only after it
    #[arg(short = 'A', long, value_name = "N", conflicts_with = "follow")]
    after_context: Option<u64>,
    /// Go on and print matches as they come, until Ctrl-C; with --from those that are there already, too
    #[arg(short, long, conflicts_with = "to")]
    follow: bool,
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
    #[serde(skip_serializing_if = "is_zero")]
    pub context_before: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub context_after: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub highlight: Option<Highlight>,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// How matches are marked.
#[derive(Clone, Debug, Serialize)]
pub struct Highlight {
    pre: char,
    post: char,
    html: bool,
    fragment_size: usize,
    fragments: usize,
    fields: [&'static str; 1],
}

impl Highlight {
    /// One piece of the value, as long as a line shows.
    fn for_terminal() -> Self {
        Self {
            pre: MATCH_START.0,
            post: MATCH_END.0,
            html: false,
            fragment_size: SHOWN_VALUE_LEN_MAX,
            fragments: 1,
            fields: ["value"],
        }
    }
}

/// Its answer.
#[derive(Debug, Deserialize)]
pub struct SearchAnswer {
    pub hits: Vec<Value>,
    pub total: Total,
    #[serde(default)]
    pub cursor: Option<String>,
    /// The hits with their neighbours, where those were asked for.
    #[serde(default)]
    pub context: Vec<Passage>,
    pub took_ms: f64,
    pub stats: SearchStats,
}

/// Messages that follow each other, each with `hit: true` or `false`.
#[derive(Debug, Deserialize)]
pub struct Passage {
    messages: Vec<Value>,
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
    #[serde(default)]
    pub offsets_unindexed: u64,
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
        let (from, to, cursor, highlight) = (None, None, None, None);
        Self { q, topics, from, to, limit, sort, cursor, context_before: 0, context_after: 0, highlight }
    }

    pub async fn send(&self, client: &Client) -> anyhow::Result<SearchAnswer> {
        client.post(&["v1", "search"], NO_QUERY, self).await
    }
}

pub async fn run(args: &SearchArgs) -> anyhow::Result<()> {
    let client = Client::new(&args.broker.url)?;
    let now = SystemClock.now();
    let moment = |when: &Option<When>| when.as_ref().map(|when| when.moment(now)).transpose();
    if args.follow {
        let (q, topics) = (args.query.clone(), args.topics.clone());
        let from = moment(&args.from)?.map(|moment| moment.to_string());
        return follow::run(&client, FollowRequest { q, topics, from, cursor: None }, args.json).await;
    }
    let mut request = SearchRequest::new(&args.query, &args.topics, args.limit, args.sort);
    // The same for every page.
    request.from = moment(&args.from)?.map(|moment| moment.to_string());
    request.to = moment(&args.to)?.map(|moment| moment.to_string());
    request.context_before = args.before_context.unwrap_or(args.context);
    request.context_after = args.after_context.unwrap_or(args.context);
    let neighbours = request.context_before.saturating_add(request.context_after);
    let page_hits_max = PAGE_CONTEXT_MAX.checked_div(neighbours).unwrap_or(PAGE_HITS_MAX).clamp(1, PAGE_HITS_MAX);
    let is_coloured = !args.json && std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    request.highlight = is_coloured.then(Highlight::for_terminal);
    let mut output = Output::new();
    let mut shown = 0;
    let mut took_ms = 0.0;
    loop {
        request.limit = (args.limit - shown).min(page_hits_max);
        let answer = request.send(&client).await.map_err(|error| pointed_at(error, &args.query))?;
        took_ms += answer.took_ms;
        if neighbours == 0 {
            for hit in &answer.hits {
                output.line(if args.json { hit.to_string() } else { human_line(hit)? })?;
            }
        } else {
            for (at, passage) in answer.context.iter().enumerate() {
                if !args.json && (at > 0 || shown > 0) {
                    output.line(PASSAGE_BREAK)?;
                }
                for message in &passage.messages {
                    output.line(if args.json { message.to_string() } else { passage_line(message)? })?;
                }
            }
        }
        output.flush()?;
        shown += answer.hits.len() as u64;
        let finished = shown >= args.limit || answer.hits.is_empty() || answer.cursor.is_none();
        if finished {
            if !args.json {
                let (searched, all) = (answer.stats.splits_searched, answer.stats.splits_total);
                let total = answer.total_text();
                let unindexed = match answer.stats.offsets_unindexed {
                    0 => String::new(),
                    some => format!(", {} newest offsets not indexed yet", table::count(some)),
                };
                output.line(format!(
                    "{shown} of {total} shown, {took_ms:.1} ms, {searched} of {all} splits searched{unindexed}"
                ))?;
            }
            return output.flush();
        }
        request.cursor = answer.cursor;
    }
}

/// An error that says where in the query it is shows the place.
fn pointed_at(error: anyhow::Error, query: &str) -> anyhow::Error {
    let column = error.downcast_ref::<ServerError>().and_then(|refusal| column_in(&refusal.message));
    let Some(column) = column.filter(|column| *column <= query.chars().count() + 1) else { return error };
    let shown: String = query.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    // A wide space below a wide character.
    let wide = '\u{2e80}'..='\u{ffef}';
    let space = |c: char| if wide.contains(&c) { '\u{3000}' } else { ' ' };
    let before: String =
        shown.chars().chain(std::iter::repeat(' ')).take(column.saturating_sub(1)).map(space).collect();
    anyhow::anyhow!("{error}\n\n  {shown}\n  {before}^")
}

/// A line of a passage; a hit is marked.
fn passage_line(message: &Value) -> anyhow::Result<String> {
    let is_hit = message.get("hit").and_then(Value::as_bool).unwrap_or_default();
    Ok(format!("{} {}", if is_hit { '>' } else { ' ' }, human_line(message)?))
}

/// Time, place and message of a hit, in one line.
pub fn human_line(hit: &Value) -> anyhow::Result<String> {
    let message = Message::deserialize(hit)?;
    let value = message.value()?.unwrap_or_default();
    let shown = match hit.pointer("/highlights/value/0").and_then(Value::as_str) {
        // Cut to size by the broker.
        Some(piece) => {
            let piece = piece.replace(char::is_control, " ");
            piece.replace(MATCH_START.0, MATCH_START.1).replace(MATCH_END.0, MATCH_END.1)
        }
        None => {
            let text = String::from_utf8_lossy(&value);
            let mut start: String =
                text.chars().take(SHOWN_VALUE_LEN_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
            if text.chars().nth(SHOWN_VALUE_LEN_MAX).is_some() {
                start.push('…');
            }
            start
        }
    };
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
            context: 0,
            before_context: None,
            after_context: Some(2),
            follow: false,
            json: true,
            broker: BrokerArgs { url: client.base_url() },
        };
        run(&args).await.unwrap();
        let requests = server.await.unwrap().unwrap();
        assert_eq!(
            requests[0].1,
            r#"{"q":"error","topics":["t"],"from":"2015-05-17T00:00:00.000Z","limit":3,"sort":"-timestamp","context_after":2}"#
        );
        assert!(
            requests[1].1.contains(r#""limit":1,"sort":"-timestamp","cursor":"c1","context_after":2"#),
            "{}",
            requests[1].1
        );
    }

    #[test]
    fn a_bad_query_is_shown_with_a_caret() {
        let refusal = |message: &str| ServerError { code: "bad_query".to_owned(), message: message.to_owned() };
        let error = pointed_at(refusal("query: no (at column 4)").into(), "東京\tx:y");
        assert_eq!(error.to_string(), "query: no (at column 4) (bad_query)\n\n  東京 x:y\n  \u{3000}\u{3000} ^");
        let error = pointed_at(refusal("query: no (at column 6)").into(), "a AND");
        assert!(error.to_string().ends_with("\n  a AND\n       ^"), "{error}");
        let error = pointed_at(refusal("query: no").into(), "a");
        assert_eq!(error.to_string(), "query: no (bad_query)");
    }

    #[test]
    fn a_hit_takes_one_line() {
        let line = human_line(&serde_json::from_str(&hit(7)).unwrap()).unwrap();
        assert_eq!(line, "2015-05-17T10:05:00.000Z  t/0@7  a b");
        let mut marked: Value = serde_json::from_str(&hit(7)).unwrap();
        assert_eq!(passage_line(&marked).unwrap(), format!("  {line}"));
        marked["hit"] = true.into();
        assert_eq!(passage_line(&marked).unwrap(), format!("> {line}"));
        marked["highlights"] = serde_json::json!({"value": ["a \u{e000}b\u{e001}\u{1b}[2J"]});
        let line = human_line(&marked).unwrap();
        assert_eq!(line, "2015-05-17T10:05:00.000Z  t/0@7  a \u{1b}[1;31mb\u{1b}[0m [2J");
    }
}
