//! `thermocline tier`: what is hot, what is cold.

use anyhow::bail;
use clap::Subcommand;
use serde_json::Value;

use super::BrokerArgs;
use super::client::{Client, NO_QUERY, ServerError};
use super::output::Output;
use super::table::{self, Align, Table};
use super::topic::{self, TopicInfo};

#[derive(Subcommand)]
pub enum TierCommand {
    /// How far each partition is archived, and what it takes hot and cold
    Status {
        /// Only this topic
        #[arg(long, value_name = "T")]
        topic: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        broker: BrokerArgs,
    },
}

pub async fn run(command: TierCommand) -> anyhow::Result<()> {
    let TierCommand::Status { topic, json, broker } = command;
    let client = Client::new(&broker.url)?;
    let mut output = Output::new();
    if json {
        let path: Vec<&str> = ["v1", "topics"].into_iter().chain(topic.as_deref()).collect();
        let answer: Value = client.get(&path, NO_QUERY).await?;
        output.line(serde_json::to_string_pretty(&answer)?)?;
        return output.flush();
    }
    let topics = match &topic {
        Some(name) => vec![client.get(&["v1", "topics", name], NO_QUERY).await?],
        None => topic::list(&client).await?,
    };
    if topics.is_empty() {
        bail!("there is no topic yet; `thermocline topic create NAME` makes one");
    }
    if let Some(reason) = unready(&client).await? {
        output.line(format!("NOT READY: {reason}"))?;
    }
    for line in status_table(&topics).lines() {
        output.line(line)?;
    }
    output.flush()
}

/// Why the broker should get no new work, in its words: another one has taken over its store, for example.
async fn unready(client: &Client) -> anyhow::Result<Option<String>> {
    match client.get::<Value>(&["health", "ready"], NO_QUERY).await {
        Ok(_) => Ok(None),
        Err(error) => match error.downcast::<ServerError>() {
            Ok(refusal) => Ok(Some(refusal.message)),
            Err(error) => Err(error),
        },
    }
}

pub fn status_table(topics: &[TopicInfo]) -> Table {
    let mut rows = Table::new(&[
        ("TOPIC", Align::Left),
        ("PARTITION", Align::Right),
        ("MESSAGES", Align::Right),
        ("END", Align::Right),
        ("ARCHIVED TO", Align::Right),
        ("LOCAL FROM", Align::Right),
        ("HOT", Align::Right),
        ("COLD", Align::Right),
        ("FILES", Align::Right),
        ("INDEX", Align::Right),
    ]);
    for topic in topics {
        for p in &topic.partitions {
            rows.row([
                topic.name.clone(),
                p.partition.to_string(),
                table::count(p.messages()),
                p.high_watermark.to_string(),
                p.archived_through.to_string(),
                p.local_start_offset.to_string(),
                table::bytes(p.hot_bytes),
                table::bytes(p.cold_bytes),
                p.cold_files.to_string(),
                table::bytes(p.index_bytes),
            ]);
        }
    }
    rows
}
