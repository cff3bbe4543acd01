//! `thermocline consume`: replay a topic, streamed as it arrives.

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use serde::Deserialize;
use thermocline_ingest::clock::{Clock, SystemClock};
use thermocline_ingest::model::Timestamp;

use super::BrokerArgs;
use super::client::Client;
use super::message::Message;
use super::output::Output;
use super::time::Position;

#[derive(Args)]
pub struct ConsumeArgs {
    topic: String,
    /// Only this partition
    #[arg(long, value_name = "N")]
    partition: Option<i32>,
    /// Where to begin: a date (its midnight in UTC), an RFC 3339 time, a time like now-1h, an offset, or "beginning"
    #[arg(long, value_name = "POSITION", default_value = "beginning")]
    from: Position,
    /// Where to end, exclusive: a time or an offset; without it at the newest message of now
    #[arg(long, value_name = "POSITION")]
    to: Option<Position>,
    /// Most messages
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// What is printed of a message, one per line
    #[arg(long, value_enum, default_value = "json")]
    format: Format,
    /// Only messages that match, as `search` finds them
    #[arg(long, value_name = "Q")]
    query: Option<String>,
    /// What becomes of messages that cannot be decoded, since their producer compressed or framed them wrongly
    #[arg(long, value_enum, conflicts_with = "query")]
    undecodable: Option<Undecodable>,
    /// With --query, what becomes of messages that have no index: end there, or leave them out
    #[arg(long, value_enum, requires = "query")]
    unindexed: Option<Unindexed>,
    #[command(flatten)]
    broker: BrokerArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The whole message
    Json,
    /// The bytes of its value; of a message without one an empty line
    Value,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Undecodable {
    /// End there with an error that says where to go on
    Stop,
    /// A line that says which offsets are missing, on standard error unless JSON is printed
    Mark,
    /// Leave them out
    Skip,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Unindexed {
    Stop,
    Skip,
}

/// How the broker words what is no message: a mark has its place, the last line of a replay that broke off has not.
#[derive(Deserialize)]
struct ErrorLine {
    error: ErrorDetail,
    partition: Option<i32>,
    offset: Option<i64>,
    last_offset: Option<i64>,
}

#[derive(Deserialize)]
struct ErrorDetail {
    message: String,
}

pub async fn run(args: &ConsumeArgs) -> anyhow::Result<()> {
    let client = Client::new(&args.broker.url)?;
    print(&client, &args.topic, &query(args, SystemClock.now())?, args.format).await
}

/// Prints a replay as it arrives.
pub async fn print(
    client: &Client,
    topic: &str,
    query: &[(&'static str, String)],
    format: Format,
) -> anyhow::Result<()> {
    let mut lines = client.stream(&["v1", "topics", topic, "messages"], query).await?;
    let mut output = Output::new();
    while let Some(line) = lines.next().await? {
        if let Some(error) = error_line(&line) {
            let (Some(partition), Some(offset), Some(last)) = (error.partition, error.offset, error.last_offset) else {
                output.flush()?;
                bail!("the replay broke off: {}", error.error.message);
            };
            if format == Format::Value {
                let reason = error.error.message;
                tracing::warn!(partition, offset, last_offset = last, reason, "messages that cannot be decoded");
                continue;
            }
        }
        match format {
            Format::Json => output.line(&line)?,
            Format::Value => {
                let message: Message = serde_json::from_slice(&line).context("reading a message")?;
                let value = message.value().with_context(|| format!("value of offset {}", message.offset))?;
                output.line(value.unwrap_or_default())?;
            }
        }
    }
    output.flush()
}

impl Undecodable {
    fn parameter(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Mark => "mark",
            Self::Skip => "skip",
        }
    }
}

impl Unindexed {
    pub fn parameter(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Skip => "skip",
        }
    }
}

fn error_line(line: &[u8]) -> Option<ErrorLine> {
    // A message begins with its topic.
    if line.starts_with(b"{\"error\":") { serde_json::from_slice(line).ok() } else { None }
}

/// Both ends are seen from one `now`.
fn query(args: &ConsumeArgs, now: Timestamp) -> anyhow::Result<Vec<(&'static str, String)>> {
    let position = |position: &Position, offset: &'static str, time: &'static str| -> anyhow::Result<_> {
        Ok(match position {
            Position::Beginning => None,
            Position::Offset(n) => Some((offset, n.to_string())),
            Position::Time(when) => Some((time, when.moment(now)?.to_string())),
        })
    };
    let to = args.to.as_ref().map(|to| position(to, "to_offset", "to")).transpose()?.flatten();
    let parameters = [
        args.partition.map(|partition| ("partition", partition.to_string())),
        position(&args.from, "from_offset", "from")?,
        to,
        args.limit.map(|limit| ("limit", limit.to_string())),
        Some(("format", "ndjson".to_owned())),
        args.query.clone().map(|query| ("query", query)),
        args.undecodable.map(|undecodable| ("undecodable", undecodable.parameter().to_owned())),
        args.unindexed.map(|unindexed| ("unindexed", unindexed.parameter().to_owned())),
    ];
    Ok(parameters.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: ConsumeArgs,
    }

    fn queried(line: &str) -> String {
        let words = std::iter::once("consume").chain(line.split(' '));
        let args = Line::try_parse_from(words).unwrap_or_else(|e| panic!("{e}")).args;
        query(&args, Timestamp(1_432_123_200_000))
            .unwrap()
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn positions_become_parameters() {
        assert_eq!(queried("t"), "format=ndjson");
        assert_eq!(queried("t --from beginning --limit 5"), "limit=5 format=ndjson");
        assert_eq!(queried("t --undecodable mark"), "format=ndjson undecodable=mark");
        assert_eq!(
            queried("t --partition 2 --from 17 --to 20"),
            "partition=2 from_offset=17 to_offset=20 format=ndjson"
        );
        assert_eq!(
            queried("t --from 2015-05-17 --to 2015-05-18T12:00:00+02:00"),
            "from=2015-05-17T00:00:00.000Z to=2015-05-18T10:00:00.000Z format=ndjson"
        );
        assert_eq!(
            queried("t --from now-1d --to now"),
            "from=2015-05-19T12:00:00.000Z to=2015-05-20T12:00:00.000Z format=ndjson"
        );
    }

    #[test]
    fn a_query_filters() {
        assert_eq!(queried("t --query late --unindexed skip"), "format=ndjson query=late unindexed=skip");
        for bad in ["consume t --unindexed skip", "consume t --query late --undecodable skip"] {
            assert!(Line::try_parse_from(bad.split(' ')).is_err(), "{bad}");
        }
    }

    #[test]
    fn errors_are_told_from_messages() {
        let message =
            r#"{"topic":"t","partition":0,"offset":1,"value":"{\"error\":{\"message\":\"m\"}}","headers":[]}"#;
        assert!(error_line(message.as_bytes()).is_none());
        let end = error_line(br#"{"error":{"code":"internal","message":"m"}}"#).unwrap();
        assert_eq!((end.error.message.as_str(), end.offset), ("m", None));
        let mark = br#"{"error":{"code":"c","message":"m"},"topic":"t","partition":1,"offset":5,"last_offset":9}"#;
        let mark = error_line(mark).unwrap();
        assert_eq!((mark.partition, mark.offset, mark.last_offset), (Some(1), Some(5), Some(9)));
    }
}
