//! `thermocline demo`: the whole path on made-up events, in a temporary folder, over the same HTTP interface that
//! everybody uses.

mod load;
mod report;
mod shop;

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;
use thermocline::Broker;
use thermocline_config::Config;
use thermocline_ingest::clock::{Clock, SystemClock};

use self::shop::{DAY_MS, DAYS, NEEDLE, Shop, TOPICS};
use super::client::Client;
use super::output::Output;
use super::search::{SearchAnswer, SearchRequest, SortOrder, human_line};
use super::serve::{StopSignals, shut_down};
use super::time::Moment;

const HOUR_MS: i64 = 3_600_000;
/// The hour that is replayed lies so long back: deep in the cold tier.
const REPLAYED_DAYS_AGO: i64 = 10;
const MESSAGES_MIN: u64 = 1000;
const MESSAGES_MAX: u64 = 100_000_000;
/// Any port, loopback only.
const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

#[derive(Args)]
pub struct DemoArgs {
    /// How many events to make
    #[arg(long, value_name = "N", default_value_t = 300_000, value_parser = clap::value_parser!(u64).range(MESSAGES_MIN..=MESSAGES_MAX))]
    messages: u64,
    /// The same seed makes the same events
    #[arg(long, value_name = "N", default_value_t = 7)]
    seed: u64,
    /// Leave the broker running until Ctrl-C, to look further
    #[arg(long)]
    keep: bool,
}

pub async fn run(args: &DemoArgs) -> anyhow::Result<()> {
    let mut stop = StopSignals::new()?;
    let dir = tempfile::Builder::new().prefix("thermocline-demo-").tempdir().context("making a temporary folder")?;
    let mut config = Config::default();
    config.broker.data_dir = dir.path().to_owned();
    config.kafka.listen = ANY_PORT;
    config.http.listen = ANY_PORT;
    let broker = Broker::start(config).await?;
    let outcome = tokio::select! {
        outcome = tour(args, &broker) => outcome,
        () = broker.failed() => Err(anyhow::anyhow!("the broker failed")),
        name = stop.next() => Err(anyhow::anyhow!("stopped by {name}")),
    };
    if outcome.is_ok() && args.keep {
        tokio::select! {
            _ = stop.next() => {}
            () = broker.failed() => {}
        }
    }
    // The demo's own failure tells more than what the shutdown makes of it.
    let closed = shut_down(broker, &mut stop).await;
    outcome.and(closed)
}

/// Everything the demo does, with a line for each step.
async fn tour(args: &DemoArgs, broker: &Broker) -> anyhow::Result<()> {
    let mut output = Output::new();
    let client = Client::new(&format!("http://{}", broker.http_addr()))?;
    let now_ms = SystemClock.now().0;
    let mut shop = Shop::new(args.seed, args.messages, now_ms).peekable();

    load::create_topics(&client).await?;
    let started = Instant::now();
    let expected = args.messages / DAYS as u64 * (DAYS as u64 - 1);
    let older = load::produce(&client, &mut shop, expected, now_ms - DAY_MS, "29 days of events").await?;
    output.line(report::produced("29 days of events", &older, started.elapsed()))?;
    output.flush()?;

    let started = Instant::now();
    let archived = load::archive(&client).await?;
    output.line(report::archived(&older, &archived, started.elapsed()))?;
    output.flush()?;

    let started = Instant::now();
    let rest = args.messages - older.total();
    let last_day = load::produce(&client, &mut shop, rest, i64::MAX, "the last day").await?;
    output.line(report::produced("the last day, which stays hot", &last_day, started.elapsed()))?;
    output.flush()?;

    let from_ms = (now_ms - REPLAYED_DAYS_AGO * DAY_MS) / HOUR_MS * HOUR_MS;
    let (from, to) = (moment(from_ms)?, moment(from_ms + HOUR_MS)?);
    for topic in TOPICS {
        let replayed = load::replay(&client, topic, Some((from, to))).await?;
        output.line(report::replayed(&format!("{topic} of one hour from {from}"), &replayed))?;
    }
    for (topic, expected) in TOPICS.iter().zip(older.messages.iter().zip(&last_day.messages).map(|(a, b)| a + b)) {
        let replayed = load::replay(&client, topic, None).await?;
        output.line(report::replayed(&format!("all {topic}, cold and hot"), &replayed))?;
        if replayed.messages != expected {
            bail!("{} {topic} were replayed, but {expected} were acknowledged", replayed.messages);
        }
    }
    output.flush()?;

    load::wait_until_indexed(&client).await?;
    for (query, topics) in
        [(NEEDLE, vec![]), ("insufficient AND funds", vec!["payments".to_owned()]), ("damaged", vec![])]
    {
        let answer = search(&client, query, &topics).await?;
        output.line(report::searched(query, &answer))?;
        if let Some(hit) = answer.hits.first() {
            output.line(format!("    {}", human_line(hit)?))?;
        }
        if query == NEEDLE && answer.hits.len() != 1 {
            bail!("{} hits for {NEEDLE:?}, which one event has", answer.hits.len());
        }
    }
    for line in
        report::sizes(&client, &older, &archived).await?.into_iter().chain(report::next_steps(broker, args.keep))
    {
        output.line(line)?;
    }
    output.flush()
}

async fn search(client: &Client, query: &str, topics: &[String]) -> anyhow::Result<SearchAnswer> {
    SearchRequest::new(query, topics, 2, SortOrder::Newest).send(client).await
}

fn moment(millis: i64) -> anyhow::Result<Moment> {
    Moment::from_millis(millis).context("the machine's clock is beyond the calendar")
}
