//! `thermocline consume`: replay a topic, streamed as it arrives.

use anyhow::Context;
use clap::{Args, ValueEnum};

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

pub async fn run(args: &ConsumeArgs) -> anyhow::Result<()> {
    let client = Client::new(&args.broker.url)?;
    let mut lines = client.stream(&["v1", "topics", &args.topic, "messages"], &query(args)).await?;
    let mut output = Output::new();
    while let Some(line) = lines.next().await? {
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
        assert_eq!(
            queried("t --partition 2 --from 17 --to 20"),
            "partition=2 from_offset=17 to_offset=20 format=ndjson"
        );
        assert_eq!(
            queried("t --from 2015-05-17 --to 2015-05-18T12:00:00+02:00"),
            "from=2015-05-17T00:00:00.000Z to=2015-05-18T10:00:00.000Z format=ndjson"
        );
    }
}
