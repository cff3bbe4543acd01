//! `thermocline topic`: the catalogue.

use std::collections::BTreeMap;

use anyhow::bail;
use clap::Subcommand;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::BrokerArgs;
use super::client::{Client, NO_QUERY};
use super::output::Output;
use super::table::{self, Align, Table};

#[derive(Subcommand)]
pub enum TopicCommand {
    /// List all topics
    List {
        #[command(flatten)]
        broker: BrokerArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Create a topic
    Create {
        name: String,
        /// Partitions; without it the broker decides
        #[arg(long, value_name = "N")]
        partitions: Option<i32>,
        /// A setting under Kafka's name, like retention.ms=604800000; may be given several times
        #[arg(long, value_name = "KEY=VALUE", value_parser = setting)]
        config: Vec<(String, String)>,
        #[command(flatten)]
        broker: BrokerArgs,
    },
    /// Show a topic's partitions and settings
    Describe {
        name: String,
        #[command(flatten)]
        broker: BrokerArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Change settings of a topic, or give it more partitions
    ///
    /// Search settings also change what is archived: it is indexed again in the background (`tier status` shows how far
    /// that is), unless search.reindex=false.
    Alter {
        name: String,
        /// A setting under Kafka's name, like retention.ms=604800000; may be given several times
        #[arg(long, value_name = "KEY=VALUE", value_parser = setting)]
        config: Vec<(String, String)>,
        /// A setting that goes back to its default; may be given several times
        #[arg(long, value_name = "KEY")]
        reset: Vec<String>,
        /// Partitions it is to have in all; keys go to other partitions from then on
        #[arg(long, value_name = "N")]
        partitions: Option<i32>,
        #[command(flatten)]
        broker: BrokerArgs,
    },
    /// Delete a topic with all its messages, hot and cold
    Delete {
        name: String,
        #[command(flatten)]
        broker: BrokerArgs,
    },
}

/// A topic as `GET /v1/topics/{t}` answers it.
#[derive(Debug, Deserialize)]
pub struct TopicInfo {
    pub name: String,
    /// What differs from the broker's defaults.
    configs: BTreeMap<String, String>,
    pub partitions: Vec<PartitionInfo>,
}

/// A partition of it; offsets are exclusive at the end.
#[derive(Debug, Deserialize)]
pub struct PartitionInfo {
    pub partition: i32,
    pub log_start_offset: i64,
    pub local_start_offset: i64,
    pub high_watermark: i64,
    pub archived_through: i64,
    pub indexed_through: i64,
    pub hot_bytes: u64,
    pub cold_bytes: u64,
    pub cold_files: u64,
    pub index_bytes: u64,
    #[serde(default)]
    pub raw_batches: u64,
    #[serde(default)]
    pub damaged_files: u64,
    #[serde(default)]
    pub outdated_files: u64,
}

#[derive(Deserialize)]
struct TopicList {
    topics: Vec<TopicInfo>,
}

#[derive(Serialize)]
struct NewTopic<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    partitions: Option<i32>,
    configs: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct ChangedTopic {
    configs: BTreeMap<String, Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    partitions: Option<i32>,
}

pub async fn run(command: TopicCommand) -> anyhow::Result<()> {
    let mut output = Output::new();
    match command {
        TopicCommand::List { broker, json: true } => {
            let topics: Value = Client::new(&broker.url)?.get(&["v1", "topics"], NO_QUERY).await?;
            output.line(serde_json::to_string_pretty(&topics)?)?;
        }
        TopicCommand::List { broker, json: false } => {
            for line in list_table(&list(&Client::new(&broker.url)?).await?).lines() {
                output.line(line)?;
            }
        }
        TopicCommand::Create { name, partitions, config, broker } => {
            let configs = config.into_iter().collect();
            create(&Client::new(&broker.url)?, &name, partitions, configs).await?;
            output.line(format!("created {name}"))?;
        }
        TopicCommand::Describe { name, broker, json } => {
            let topic: Value = Client::new(&broker.url)?.get(&["v1", "topics", &name], NO_QUERY).await?;
            if json {
                output.line(serde_json::to_string_pretty(&topic)?)?;
            } else {
                describe(&TopicInfo::deserialize(topic)?, &mut output)?;
            }
        }
        TopicCommand::Alter { name, config, reset, partitions, broker } => {
            if config.is_empty() && reset.is_empty() && partitions.is_none() {
                bail!("nothing to change; give --config KEY=VALUE, --reset KEY or --partitions N");
            }
            let set = config.into_iter().map(|(key, value)| (key, Some(value)));
            let configs = reset.into_iter().map(|key| (key, None)).chain(set).collect();
            let path = ["v1", "topics", &name];
            Client::new(&broker.url)?.patch(&path, &ChangedTopic { configs, partitions }).await?;
            output.line(format!("changed {name}"))?;
        }
        TopicCommand::Delete { name, broker } => {
            Client::new(&broker.url)?.delete(&["v1", "topics", &name]).await?;
            output.line(format!("deleted {name}"))?;
        }
    }
    output.flush()
}

/// All topics.
pub async fn list(client: &Client) -> anyhow::Result<Vec<TopicInfo>> {
    let list: TopicList = client.get(&["v1", "topics"], NO_QUERY).await?;
    Ok(list.topics)
}

pub async fn create(
    client: &Client,
    name: &str,
    partitions: Option<i32>,
    configs: BTreeMap<String, String>,
) -> anyhow::Result<()> {
    let _: Value = client.post(&["v1", "topics"], NO_QUERY, &NewTopic { name, partitions, configs }).await?;
    Ok(())
}

fn list_table(topics: &[TopicInfo]) -> Table {
    let mut rows = Table::new(&[
        ("TOPIC", Align::Left),
        ("PARTITIONS", Align::Right),
        ("MESSAGES", Align::Right),
        ("HOT", Align::Right),
        ("COLD", Align::Right),
    ]);
    for topic in topics {
        let sum = |field: fn(&PartitionInfo) -> u64| topic.partitions.iter().map(field).sum::<u64>();
        rows.row([
            topic.name.clone(),
            topic.partitions.len().to_string(),
            table::count(sum(PartitionInfo::messages)),
            table::bytes(sum(|p| p.hot_bytes)),
            table::bytes(sum(|p| p.cold_bytes)),
        ]);
    }
    rows
}

fn describe(topic: &TopicInfo, output: &mut Output) -> anyhow::Result<()> {
    let mut rows = Table::new(&[
        ("PARTITION", Align::Right),
        ("FIRST", Align::Right),
        ("LOCAL FROM", Align::Right),
        ("ARCHIVED TO", Align::Right),
        ("INDEXED TO", Align::Right),
        ("END", Align::Right),
    ]);
    for p in &topic.partitions {
        let offsets =
            [p.log_start_offset, p.local_start_offset, p.archived_through, p.indexed_through, p.high_watermark];
        rows.row(std::iter::once(p.partition.to_string()).chain(offsets.map(|offset| offset.to_string())));
    }
    for line in rows.lines() {
        output.line(line)?;
    }
    if !topic.configs.is_empty() {
        output.line("")?;
    }
    for (name, value) in &topic.configs {
        output.line(format!("{name}={value}"))?;
    }
    Ok(())
}

impl PartitionInfo {
    /// Offsets are dense, so this is the number of messages that can be read.
    pub fn messages(&self) -> u64 {
        u64::try_from(self.high_watermark.saturating_sub(self.log_start_offset)).unwrap_or(0)
    }

    /// Whether its archive has what `tier status` should tell.
    pub fn is_out_of_order(&self) -> bool {
        self.raw_batches > 0 || self.damaged_files > 0
    }
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as KEY=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::client::tests::{answer, canned};
    use super::*;

    #[tokio::test]
    async fn lists_are_read_and_summed() {
        let topic = r#"{"name":"orders","id":"x","configs":{"retention.ms":"5"},"partitions":[{"partition":0,
            "log_start_offset":2,"local_start_offset":3,"high_watermark":9,"last_stable_offset":9,"archived_through":3,
            "indexed_through":9,"hot_bytes":10,"cold_bytes":2048,"cold_files":1,"index_bytes":7}]}"#;
        let (client, _server) = canned(vec![answer("200 OK", &format!("{{\"topics\":[{topic}]}}"))]).await;
        let topics = list(&client).await.unwrap();
        assert_eq!(
            list_table(&topics).lines(),
            ["TOPIC   PARTITIONS  MESSAGES   HOT      COLD", "orders           1         7  10 B  2.00 KiB"]
        );
        assert_eq!(topics[0].configs, BTreeMap::from([setting("retention.ms=5").unwrap()]));
    }

    #[tokio::test]
    async fn creating_leaves_out_what_the_broker_decides() {
        let (client, server) = canned(vec![answer("201 Created", "{}")]).await;
        create(&client, "orders", None, BTreeMap::from([setting("segment.ms=5").unwrap()])).await.unwrap();
        let requests = server.await.unwrap().unwrap();
        assert_eq!(requests[0].1, r#"{"name":"orders","configs":{"segment.ms":"5"}}"#);
        assert!(setting("segment.ms").is_err());
    }
}
