//! `thermocline consume`: replay a topic, streamed as it arrives.

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use serde::Deserialize;

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
    /// Where to begin: a date (its midnight in UTC), an RFC 3339 time, an offset, or "beginning"
    #[arg(long, value_name = "POSITION", default_value = "beginning")]
    from: Position,
    /// Where to end, exclusive: a date, an RFC 3339 time or an offset; without it at the newest message of now
    #[arg(long, value_name = "POSITION")]
    to: Option<Position>,
    /// Most messages
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// What is printed of a message, one per line
    #[arg(long, value_enum, default_value = "json")]
    format: Format,
    /// What becomes of messages that cannot be decoded, since their producer compressed or framed them wrongly
    #[arg(long, value_enum, default_value = "stop")]
    undecodable: Undecodable,
    #[command(flatten)]
    broker: BrokerArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
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
    let mut lines = client.stream(&["v1", "topics", &args.topic, "messages"], &query(args)).await?;
    let mut output = Output::new();
    while let Some(line) = lines.next().await? {
        if let Some(error) = error_line(&line) {
            let (Some(partition), Some(offset), Some(last)) = (error.partition, error.offset, error.last_offset) else {
                output.flush()?;
                bail!("the replay broke off: {}", error.error.message);
            };
            if args.format == Format::Value {
                let reason = error.error.message;
                tracing::warn!(partition, offset, last_offset = last, reason, "messages that cannot be decoded");
                continue;
            }
        }
        match args.format {
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

fn error_line(line: &[u8]) -> Option<ErrorLine> {
    // A message begins with its topic.
    if line.starts_with(b"{\"error\":") { serde_json::from_slice(line).ok() } else { None }
}

fn query(args: &ConsumeArgs) -> Vec<(&'static str, String)> {
    let position = |position: Position, offset: &'static str, time: &'static str| match position {
        Position::Beginning => None,
        Position::Offset(n) => Some((offset, n.to_string())),
        Position::Time(moment) => Some((time, moment.to_string())),
    };
    [
        args.partition.map(|partition| ("partition", partition.to_string())),
        position(args.from, "from_offset", "from"),
        args.to.and_then(|to| position(to, "to_offset", "to")),
        args.limit.map(|limit| ("limit", limit.to_string())),
        Some(("format", "ndjson".to_owned())),
        match args.undecodable {
            Undecodable::Stop => None,
            Undecodable::Mark => Some(("undecodable", "mark".to_owned())),
            Undecodable::Skip => Some(("undecodable", "skip".to_owned())),
        },
    ]
    .into_iter()
    .flatten()
    .collect()
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
        query(&args).iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
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
