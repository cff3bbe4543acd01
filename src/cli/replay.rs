//! `thermocline replay`: messages of a topic again. Printed, published into another topic, counted, or handed to a
//! consumer group from one message on.

use std::io::IsTerminal;
use std::str::FromStr;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use thermocline_config::ByteSize;
use thermocline_ingest::clock::{Clock, SystemClock};
use thermocline_ingest::model::Timestamp;

use super::BrokerArgs;
use super::client::{Client, Lines, NO_QUERY, ServerError};
use super::consume::{self, Format, Unindexed};
use super::output::Output;
use super::table::{Align, Table, bytes, count};
use super::time::When;

#[derive(Args)]
pub struct ReplayArgs {
    /// The topic to replay
    #[arg(long, value_name = "T", required_unless_present = "from_hit")]
    topic: Option<String>,
    /// Only this partition
    #[arg(long, value_name = "N")]
    partition: Option<i32>,
    /// Not before this time: a date (its midnight in UTC), RFC 3339, or relative like now-15m
    #[arg(long, value_name = "TIME")]
    from: Option<When>,
    /// Only before this time
    #[arg(long, value_name = "TIME")]
    to: Option<When>,
    /// From this offset on, in every partition that is replayed
    #[arg(long, value_name = "N")]
    from_offset: Option<i64>,
    /// Up to this offset, exclusive; without it up to the newest message of now
    #[arg(long, value_name = "N")]
    to_offset: Option<i64>,
    /// Only messages that match, as `search` finds them
    #[arg(long, value_name = "Q")]
    query: Option<String>,
    /// Most messages
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Publish them into this topic; without it they are printed as lines of JSON
    #[arg(long, value_name = "TOPIC")]
    into: Option<String>,
    /// Publish no more than so many messages (`500/s`) or bytes (`2MiB/s`) a second
    #[arg(long, value_name = "RATE", requires = "into")]
    rate: Option<Rate>,
    /// Publish messages with the time they have; otherwise they get the time of now
    #[arg(long, requires = "into")]
    keep_timestamps: bool,
    /// Partition of the target: that of the source, or chosen by key
    #[arg(long, value_enum, default_value = "same")]
    partitioning: Partitioning,
    /// Go on where an earlier replay into a topic stopped, as it said
    #[arg(long, value_name = "POSITION", requires = "into", conflicts_with_all = ["partition", "from_offset", "to_offset"])]
    resume_from: Option<String>,
    /// Only count
    #[arg(long, conflicts_with_all = ["into", "from_hit"])]
    dry_run: bool,
    /// With --query, what becomes of messages that have no index: end there, or leave them out
    #[arg(long, value_enum, requires = "query")]
    unindexed: Option<Unindexed>,
    /// Leave out messages that cannot be decoded, instead of ending there
    #[arg(long, conflicts_with = "query")]
    skip_undecodable: bool,
    /// Let the consumer group --group begin at this message; in the topic's other partitions at its time
    #[arg(long, value_name = "TOPIC/PARTITION/OFFSET", requires = "group", conflicts_with_all = [
        "topic", "partition", "from", "to", "from_offset", "to_offset", "query", "limit", "into", "skip_undecodable"
    ])]
    from_hit: Option<Place>,
    /// The group, which must have no running consumers
    #[arg(long, value_name = "G", requires = "from_hit")]
    group: Option<String>,
    #[command(flatten)]
    broker: BrokerArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Partitioning {
    Same,
    Key,
}

/// A limit on what is published in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rate {
    Messages(u64),
    Bytes(u64),
}

/// A message, as `search` shows where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    topic: String,
    partition: i32,
    offset: i64,
}

/// A request to `POST /v1/topics/{t}/replay`.
#[derive(Debug, Serialize)]
struct Request<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    into: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    query: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    partition: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from_offset: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to_offset: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resume_from: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages_per_second: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_per_second: Option<u64>,
    keep_timestamps: bool,
    partitioning: Partitioning,
    #[serde(skip_serializing_if = "Option::is_none")]
    undecodable: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unindexed: Option<&'static str>,
}

/// A line of its answer.
#[derive(Debug, Deserialize)]
struct Line {
    #[serde(default)]
    progress: Option<Summary>,
    #[serde(default)]
    done: Option<Summary>,
    #[serde(default)]
    error: Option<ServerError>,
    position: String,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct Summary {
    matched: u64,
    published: u64,
    bytes: u64,
    missing: u64,
}

#[derive(Debug, Deserialize)]
struct GroupOffsets {
    offsets: Vec<Place>,
}

pub async fn run(args: &ReplayArgs) -> anyhow::Result<()> {
    let client = Client::new(&args.broker.url)?;
    match (&args.from_hit, &args.group, &args.topic) {
        (Some(place), Some(group), _) => start_group(&client, place, group).await,
        // Clap lets it pass where --topic is there, which --from-hit excludes.
        (None, Some(_), _) => bail!("--group is for --from-hit; name the message where it is to begin"),
        (_, _, Some(topic)) if args.into.is_some() || args.dry_run => republish(&client, topic, args).await,
        (_, _, Some(topic)) => {
            consume::print(&client, topic, &parameters(args, SystemClock.now())?, Format::Json).await
        }
        _ => bail!("give --topic, or --from-hit with --group"),
    }
}

fn parameters(args: &ReplayArgs, now: Timestamp) -> anyhow::Result<Vec<(&'static str, String)>> {
    let number = |number: Option<i64>| number.map(|number| number.to_string());
    let parameters = [
        ("partition", args.partition.map(|partition| partition.to_string())),
        ("from_offset", number(args.from_offset)),
        ("to_offset", number(args.to_offset)),
        ("from", moment(&args.from, now)?),
        ("to", moment(&args.to, now)?),
        ("limit", args.limit.map(|limit| limit.to_string())),
        ("query", args.query.clone()),
        ("undecodable", args.skip_undecodable.then(|| "skip".to_owned())),
        ("unindexed", args.unindexed.map(|unindexed| unindexed.parameter().to_owned())),
    ];
    Ok(parameters.into_iter().filter_map(|(name, value)| Some((name, value?))).collect())
}

/// A time as the broker takes it.
fn moment(when: &Option<When>, now: Timestamp) -> anyhow::Result<Option<String>> {
    when.as_ref().map(|when| Ok(when.moment(now)?.to_string())).transpose()
}

impl<'a> Request<'a> {
    fn of(args: &'a ReplayArgs, now: Timestamp) -> anyhow::Result<Self> {
        // Sent as they are now, so that the broker could not tell.
        if args.resume_from.is_some() && [&args.from, &args.to].into_iter().flatten().any(When::is_relative) {
            bail!(
                "times like now-15m mean other messages than when the replay began; with --resume-from write --from and --to out as RFC 3339, as they were then"
            );
        }
        let rate = |of: fn(Rate) -> Option<u64>| args.rate.and_then(of);
        Ok(Self {
            into: args.into.as_deref(),
            query: args.query.as_deref(),
            partition: args.partition,
            from_offset: args.from_offset,
            to_offset: args.to_offset,
            from: moment(&args.from, now)?,
            to: moment(&args.to, now)?,
            limit: args.limit,
            resume_from: args.resume_from.as_deref(),
            messages_per_second: rate(|rate| if let Rate::Messages(n) = rate { Some(n) } else { None }),
            bytes_per_second: rate(|rate| if let Rate::Bytes(n) = rate { Some(n) } else { None }),
            keep_timestamps: args.keep_timestamps,
            partitioning: args.partitioning,
            undecodable: args.skip_undecodable.then_some("skip"),
            unindexed: args.unindexed.map(Unindexed::parameter),
        })
    }
}

async fn republish(client: &Client, topic: &str, args: &ReplayArgs) -> anyhow::Result<()> {
    let mut lines =
        client.post_stream(&["v1", "topics", topic, "replay"], &Request::of(args, SystemClock.now())?).await?;
    let bar = progress();
    let mut position = args.resume_from.clone();
    let outcome = tokio::select! {
        outcome = watch(&mut lines, &bar, &mut position, args.dry_run) => outcome,
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(Into::into).and_then(|()| bail!("interrupted")),
    };
    bar.finish_and_clear();
    let summary = outcome.with_context(|| stopped(position.as_deref(), args.dry_run))?;
    let mut output = Output::new();
    output.line(summary.text(args.into.as_deref()))?;
    output.flush()
}

/// What may be said of a replay that did not reach its end.
fn stopped(position: Option<&str>, dry_run: bool) -> String {
    match position {
        _ if dry_run => "the count was not finished".to_owned(),
        Some(position) => format!(
            "the replay stopped; go on with --resume-from {position} (messages of its last second may be published again)"
        ),
        None => "the replay stopped before it told where it was".to_owned(),
    }
}

/// Follows a replay to its end.
async fn watch(
    lines: &mut Lines,
    bar: &ProgressBar,
    position: &mut Option<String>,
    dry_run: bool,
) -> anyhow::Result<Summary> {
    while let Some(line) = lines.next().await? {
        let line: Line = serde_json::from_slice(&line).context("reading the replay's progress")?;
        *position = Some(line.position);
        if let Some(error) = line.error {
            bail!(error);
        }
        if let Some(summary) = line.done {
            return Ok(summary);
        }
        let summary = line.progress.unwrap_or_default();
        bar.set_position(if dry_run { summary.matched } else { summary.published });
    }
    bail!("the broker ended the stream")
}

impl Summary {
    fn text(&self, into: Option<&str>) -> String {
        let mut text = match into {
            Some(into) => format!("published {} ({}) into {into}", messages(self.published), bytes(self.bytes)),
            None => messages(self.matched),
        };
        if self.missing > 0 {
            text.push_str(&format!("; {} could not be read: expired meanwhile, or not decodable", count(self.missing)));
        }
        text
    }
}

fn messages(n: u64) -> String {
    format!("{} {}", count(n), if n == 1 { "message" } else { "messages" })
}

async fn start_group(client: &Client, place: &Place, group: &str) -> anyhow::Result<()> {
    let started: GroupOffsets = client.post(&["v1", "groups", group, "offsets"], NO_QUERY, place).await?;
    let mut table = Table::new(&[
        ("GROUP", Align::Left),
        ("TOPIC", Align::Left),
        ("PARTITION", Align::Right),
        ("NEXT", Align::Right),
    ]);
    for place in started.offsets {
        table.row([group.to_owned(), place.topic, place.partition.to_string(), place.offset.to_string()]);
    }
    let mut output = Output::new();
    for line in table.lines() {
        output.line(line)?;
    }
    output.flush()
}

/// A count on a terminal; nothing in a pipe.
fn progress() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{human_pos} messages, {per_sec}, {elapsed}");
    ProgressBar::no_length().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || format!("{text:?} is not a rate; write messages like 500/s, or bytes like 2MiB/s");
        let amount = text.strip_suffix("/s").ok_or_else(error)?;
        let rate = match amount.parse() {
            Ok(messages) => Self::Messages(messages),
            Err(_) => Self::Bytes(amount.parse::<ByteSize>().map_err(|_| error())?.as_u64()),
        };
        match rate {
            // The interface takes 0 for no limit.
            Self::Messages(0) | Self::Bytes(0) => {
                Err("a rate of 0 would never end; leave --rate out for no limit".to_owned())
            }
            rate => Ok(rate),
        }
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let place = text.split_once('/').and_then(|(topic, rest)| {
            // The same with the @ that `search` prints before the offset.
            let (partition, offset) = rest.split_once(['/', '@'])?;
            let partition = partition.parse().ok().filter(|partition: &i32| *partition >= 0)?;
            let offset = offset.parse().ok().filter(|offset: &i64| *offset >= 0)?;
            Some(Self { topic: topic.to_owned(), partition, offset })
        });
        place.ok_or_else(|| format!("{text:?} is not a message's place; write it like orders/0/1234"))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::client::tests::{answer, canned};
    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: ReplayArgs,
    }

    fn args(line: &str) -> Result<ReplayArgs, clap::Error> {
        let words = std::iter::once("replay").chain(line.split(' '));
        Command::try_parse_from(words).map(|command| command.args)
    }

    #[test]
    fn rates_and_places_are_read() {
        assert_eq!("500/s".parse(), Ok(Rate::Messages(500)));
        assert_eq!("2MiB/s".parse(), Ok(Rate::Bytes(2 << 20)));
        for bad in ["", "500", "0/s", "0B/s", "fast/s", "-1/s"] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
        let place = Place { topic: "orders".to_owned(), partition: 2, offset: 17 };
        assert_eq!("orders/2/17".parse(), Ok(place.clone()));
        assert_eq!("orders/2@17".parse(), Ok(place));
        for bad in ["orders", "orders/2", "orders/2/", "orders/-1/3", "orders/2/-3", "orders/x/3"] {
            assert!(bad.parse::<Place>().is_err(), "{bad}");
        }
    }

    #[test]
    fn arguments_that_contradict_each_other_are_refused() {
        for good in [
            "--topic t",
            "--topic t --query a --into c --rate 5/s",
            "--from-hit t/0/1 --group g",
            "--topic t --dry-run",
        ] {
            assert!(args(good).is_ok(), "{good}");
        }
        for bad in [
            "--into c",
            "--topic t --rate 5/s",
            "--from-hit t/0/1",
            "--topic t --from-hit t/0/1 --group g",
            "--topic t --into c --dry-run",
            "--topic t --into c --resume-from 0@1..2 --partition 0",
            "--topic t --unindexed skip",
        ] {
            assert!(args(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_replay_goes_on_with_the_times_it_began_with() {
        let request = |line: &str| {
            let args = args(&format!("--topic t --into c {line}")).unwrap();
            Request::of(&args, Timestamp(0)).map(|request| request.from).map_err(|error| error.to_string())
        };
        assert_eq!(request("--from now"), Ok(Some("1970-01-01T00:00:00.000Z".to_owned())));
        let begun = request("--resume-from 0@3..9 --from 2015-05-17");
        assert_eq!(begun, Ok(Some("2015-05-17T00:00:00.000Z".to_owned())));
        for relative in ["--from now-1d", "--to now"] {
            let error = request(&format!("--resume-from 0@3..9 {relative}")).unwrap_err();
            assert!(error.contains("RFC 3339"), "{relative}: {error}");
        }
    }

    #[tokio::test]
    async fn a_replay_that_stops_says_where_to_go_on() {
        let progress = r#"{"progress":{"matched":5,"published":3,"bytes":9,"missing":0},"position":"0@3..9"}"#;
        let done = r#"{"done":{"matched":5,"published":5,"bytes":15,"missing":1},"position":"end"}"#;
        let failed = r#"{"error":{"code":"disk_full","message":"no room"},"progress":{"matched":5,"published":4,"bytes":9,"missing":0},"position":"0@4..9"}"#;
        let answers = [format!("{progress}\n{done}\n"), format!("{progress}\n{failed}\n"), format!("{progress}\n")];
        let (client, server) = canned(answers.iter().map(|body| answer("200 OK", body)).collect()).await;
        let mut line = args("--topic t --query late --into c --rate 5/s").unwrap();
        line.broker.url = client.base_url();
        run(&line).await.unwrap();
        let error = format!("{:#}", run(&line).await.unwrap_err());
        assert!(error.contains("--resume-from 0@4..9") && error.ends_with("no room (disk_full)"), "{error}");
        let error = format!("{:#}", run(&line).await.unwrap_err());
        assert!(error.contains("--resume-from 0@3..9"), "{error}");
        let requests = server.await.unwrap().unwrap();
        assert_eq!(requests[0].0, "POST /v1/topics/t/replay HTTP/1.1");
        assert_eq!(
            requests[0].1,
            r#"{"into":"c","query":"late","messages_per_second":5,"keep_timestamps":false,"partitioning":"same"}"#
        );
    }

    #[test]
    fn sums_are_told() {
        let summary = Summary { matched: 1200, published: 1200, bytes: 2048, missing: 0 };
        assert_eq!(summary.text(Some("copy")), "published 1 200 messages (2.00 KiB) into copy");
        assert_eq!(Summary { matched: 1, ..summary }.text(None), "1 message");
        let summary = Summary { missing: 2, ..summary };
        assert_eq!(summary.text(None), "1 200 messages; 2 could not be read: expired meanwhile, or not decodable");
    }
}
