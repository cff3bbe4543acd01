//! What the demo does to the broker: produce, archive, replay.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::future::try_join_all;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;

use super::shop::{Shop, TOPICS};
use crate::cli::client::Client;
use crate::cli::message::{Message, Payload};
use crate::cli::produce::REQUEST_BYTES;
use crate::cli::time::Moment;
use crate::cli::topic::{self, TopicInfo};

const PARTITIONS: i32 = 2;
/// How often the progress of the archive is looked at.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// Longest wait for the live index; a second is what it promises.
const INDEX_WAIT_MAX: Duration = Duration::from_secs(30);

/// What was produced, per topic.
#[derive(Default)]
pub struct Produced {
    pub messages: [u64; TOPICS.len()],
    /// Keys and values.
    pub bytes: u64,
}

/// What `POST /v1/topics/{t}/archive` answers, summed over the topics.
#[derive(Default, Deserialize)]
pub struct Archived {
    pub files: u64,
    pub records: u64,
    pub log_bytes: u64,
    pub data_bytes: u64,
    pub index_bytes: u64,
    pub trimmed_bytes: u64,
}

pub struct Replayed {
    pub messages: u64,
    /// Values.
    pub bytes: u64,
    pub took: Duration,
}

pub async fn create_topics(client: &Client) -> anyhow::Result<()> {
    for name in TOPICS {
        topic::create(client, name, Some(PARTITIONS), BTreeMap::new()).await?;
    }
    Ok(())
}

/// Sends the shop's events up to a time, each topic in order.
pub async fn produce(
    client: &Client,
    shop: &mut Peekable<Shop>,
    total: u64,
    until_ms: i64,
    what: &'static str,
) -> anyhow::Result<Produced> {
    let progress = bar(total, what);
    let mut produced = Produced::default();
    let mut pending: [Vec<u8>; TOPICS.len()] = Default::default();
    while let Some(event) = shop.next_if(|event| event.time_ms < until_ms) {
        let time = Moment::from_millis(event.time_ms);
        let (Some(lines), Some(messages)) = (pending.get_mut(event.topic), produced.messages.get_mut(event.topic))
        else {
            continue;
        };
        Payload::new(Some(event.key.as_bytes()), event.value.as_bytes(), time).write_line(lines)?;
        *messages += 1;
        produced.bytes += (event.key.len() + event.value.len()) as u64;
        if lines.len() >= REQUEST_BYTES {
            send(client, &mut pending).await?;
            progress.set_position(produced.total());
        }
    }
    send(client, &mut pending).await?;
    progress.finish_and_clear();
    Ok(produced)
}

/// Sends what is pending of each topic, side by side.
async fn send(client: &Client, pending: &mut [Vec<u8>; TOPICS.len()]) -> anyhow::Result<()> {
    let requests = TOPICS.iter().zip(std::mem::take(pending)).filter(|(_, lines)| !lines.is_empty());
    try_join_all(
        requests.map(async |(name, lines)| client.post_lines(&["v1", "topics", name, "messages"], lines.into()).await),
    )
    .await?;
    Ok(())
}

/// Archives everything there is and drops the local copies, watched by a progress bar.
pub async fn archive(client: &Client) -> anyhow::Result<Archived> {
    let topics = topic::list(client).await?;
    let progress = bar(topics.iter().flat_map(|topic| &topic.partitions).map(|p| p.messages()).sum(), "archiving");
    let trim = [("trim", "true".to_owned())];
    let archiving = try_join_all(TOPICS.map(async |name| -> anyhow::Result<Archived> {
        client.post(&["v1", "topics", name, "archive"], &trim, &serde_json::json!({})).await
    }));
    let watching = async {
        let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
        loop {
            ticks.tick().await;
            match topic::list(client).await {
                Ok(topics) => progress.set_position(archived_through(&topics)),
                Err(e) => break e,
            }
        }
    };
    let reports = tokio::select! {
        reports = archiving => reports?,
        error = watching => return Err(error),
    };
    progress.finish_and_clear();
    Ok(reports.into_iter().fold(Archived::default(), Archived::plus))
}

fn archived_through(topics: &[TopicInfo]) -> u64 {
    let offsets = topics.iter().flat_map(|topic| &topic.partitions).map(|p| p.archived_through);
    offsets.map(|offset| u64::try_from(offset).unwrap_or(0)).sum()
}

/// Replays a topic, all of it or a span of time.
pub async fn replay(client: &Client, topic: &str, span: Option<(Moment, Moment)>) -> anyhow::Result<Replayed> {
    let mut query = vec![("format", "ndjson".to_owned())];
    if let Some((from, to)) = span {
        query.extend([("from", from.to_string()), ("to", to.to_string())]);
    }
    let started = Instant::now();
    let mut lines = client.stream(&["v1", "topics", topic, "messages"], &query).await?;
    let (mut messages, mut bytes) = (0, 0);
    while let Some(line) = lines.next().await? {
        let message: Message = serde_json::from_slice(&line).context("reading a message")?;
        messages += 1;
        bytes += message.value()?.map_or(0, |value| value.len() as u64);
    }
    Ok(Replayed { messages, bytes, took: started.elapsed() })
}

/// Waits until everything produced so far can be searched.
pub async fn wait_until_indexed(client: &Client) -> anyhow::Result<()> {
    let indexed = async {
        let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
        loop {
            ticks.tick().await;
            let topics = topic::list(client).await?;
            let mut partitions = topics.iter().flat_map(|topic| &topic.partitions);
            if partitions.all(|p| p.indexed_through >= p.high_watermark) {
                return Ok(());
            }
        }
    };
    let waited = tokio::time::timeout(INDEX_WAIT_MAX, indexed).await;
    waited.with_context(|| format!("the live index has not caught up within {INDEX_WAIT_MAX:?}"))?
}

/// A progress bar on a terminal, nothing in a pipe.
fn bar(total: u64, what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:>18} {wide_bar} {human_pos}/{human_len} {eta}");
    let bar = ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.with_message(what)
}

impl Produced {
    pub fn total(&self) -> u64 {
        self.messages.iter().sum()
    }
}

impl Archived {
    fn plus(self, other: Self) -> Self {
        Self {
            files: self.files + other.files,
            records: self.records + other.records,
            log_bytes: self.log_bytes + other.log_bytes,
            data_bytes: self.data_bytes + other.data_bytes,
            index_bytes: self.index_bytes + other.index_bytes,
            trimmed_bytes: self.trimmed_bytes + other.trimmed_bytes,
        }
    }
}
