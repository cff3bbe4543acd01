//! `thermocline tier`: what is hot, what is cold, and whether it is sound.

mod verify;

use anyhow::bail;
use clap::Subcommand;
use serde::Deserialize;
use serde_json::Value;

use super::BrokerArgs;
use super::client::{Client, NO_QUERY, ServerError};
use super::output::Output;
use super::table::{self, Align, Table};
use super::topic::{self, PartitionInfo, TopicInfo};
pub use verify::Verdict;

/// Raw batches, and damaged files, that `status` names of each partition.
const LISTED_MAX: usize = 20;

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
    /// Check every archived file against its manifest, in the store itself; no broker is needed
    ///
    /// Exit status: 0 all good, 1 damage was found, 2 the store could not be checked.
    Verify(verify::VerifyArgs),
}

pub async fn run(command: TierCommand) -> anyhow::Result<()> {
    match command {
        TierCommand::Status { topic, json, broker } => status(topic, json, &broker).await,
        TierCommand::Verify(args) => verify::run(&args).await,
    }
}

async fn status(topic: Option<String>, json: bool, broker: &BrokerArgs) -> anyhow::Result<()> {
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
    let has_more = |p: &PartitionInfo| p.is_out_of_order() || p.outdated_files > 0;
    for topic in topics.iter().filter(|topic| topic.partitions.iter().any(has_more)) {
        let limit = [("limit", LISTED_MAX.to_string())];
        let tier: TierInfo = client.get(&["v1", "topics", &topic.name, "tier"], &limit).await?;
        for line in tier.lines() {
            output.line(line)?;
        }
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

/// What is out of order in a topic's archive, as `GET /v1/topics/{t}/tier` answers it.
#[derive(Deserialize)]
struct TierInfo {
    name: String,
    partitions: Vec<PartitionTier>,
}

#[derive(Deserialize)]
struct PartitionTier {
    partition: i32,
    raw_batches: usize,
    damaged_files: usize,
    #[serde(default)]
    reindex: ReindexInfo,
    raw: Vec<RawInfo>,
    damaged: Vec<DamagedInfo>,
}

/// Files that are indexed otherwise than the topic asks for.
#[derive(Default, Deserialize)]
struct ReindexInfo {
    files: usize,
    log_bytes: u64,
    failed_files: usize,
    enabled: bool,
}

#[derive(Deserialize)]
struct RawInfo {
    base_offset: i64,
    last_offset: i64,
    reason: String,
}

#[derive(Deserialize)]
struct DamagedInfo {
    objects: Vec<DamagedObject>,
}

#[derive(Deserialize)]
struct DamagedObject {
    key: String,
    reason: String,
}

impl TierInfo {
    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for p in &self.partitions {
            let partition = format!("{}-{}", self.name, p.partition);
            for RawInfo { base_offset, last_offset, reason } in &p.raw {
                lines.push(format!("raw: {partition} offsets {base_offset} to {last_offset}: {reason}"));
            }
            if p.raw_batches > p.raw.len() {
                lines.push(format!("raw: {partition}: {} more", p.raw_batches - p.raw.len()));
            }
            for DamagedObject { key, reason } in p.damaged.iter().flat_map(|file| &file.objects) {
                lines.push(format!("damaged: {key}: {reason}"));
            }
            let ReindexInfo { files, log_bytes, failed_files, enabled } = p.reindex;
            if files > 0 {
                let what = match (enabled, failed_files) {
                    (false, _) => "stay as they are indexed (search.reindex=false)".to_owned(),
                    (true, 0) => "to index again".to_owned(),
                    (true, failed) => format!("to index again, {failed} of them cannot be (see the broker's log)"),
                };
                lines.push(format!("index: {partition}: {files} files, {} of log, {what}", table::bytes(log_bytes)));
            }
            if p.damaged_files > p.damaged.len() {
                lines.push(format!("damaged: {partition}: {} more files", p.damaged_files - p.damaged.len()));
            }
        }
        lines
    }
}

/// Raw batches and damaged files have a column where there are any.
pub fn status_table(topics: &[TopicInfo]) -> Table {
    let is_out_of_order = topics.iter().flat_map(|topic| &topic.partitions).any(PartitionInfo::is_out_of_order);
    let mut columns = vec![
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
    ];
    if is_out_of_order {
        columns.extend([("RAW", Align::Right), ("DAMAGED", Align::Right)]);
    }
    let mut rows = Table::new(&columns);
    for topic in topics {
        for p in &topic.partitions {
            let mut row = vec![
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
            ];
            if is_out_of_order {
                row.extend([p.raw_batches.to_string(), p.damaged_files.to_string()]);
            }
            rows.row(row);
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::super::client::tests::{answer, canned};
    use super::*;

    const SOUND: &str = r#"{"name":"orders","id":"x","configs":{},"partitions":[{"partition":0,"log_start_offset":0,
        "local_start_offset":3,"high_watermark":9,"last_stable_offset":9,"archived_through":3,"indexed_through":9,
        "hot_bytes":10,"cold_bytes":2048,"cold_files":1,"index_bytes":7,"raw_batches":0,"damaged_files":0}]}"#;

    async fn table(topic: &str) -> Vec<String> {
        let (client, _server) = canned(vec![answer("200 OK", &format!("{{\"topics\":[{topic}]}}"))]).await;
        status_table(&topic::list(&client).await.unwrap()).lines()
    }

    #[tokio::test]
    async fn what_is_out_of_order_has_columns_and_lines() {
        let sound = table(SOUND).await;
        assert!(sound[0].ends_with("INDEX") && sound[1].ends_with("7 B"), "{sound:?}");
        let raw = table(&SOUND.replace(r#""raw_batches":0"#, r#""raw_batches":22"#)).await;
        assert!(raw[0].ends_with("INDEX  RAW  DAMAGED") && raw[1].ends_with("7 B   22        0"), "{raw:?}");

        let tier = r#"{"name":"orders","partitions":[{"partition":0,"raw_batches":22,"damaged_files":1,
            "raw":[{"base_offset":4,"last_offset":5,"size_bytes":70,"reason":"not zstd"}],
            "damaged":[{"base_offset":0,"last_offset":9,"found_at_ms":1,"objects":[{"key":"a/b","reason":"gone"}]}]}]}"#;
        let reindexing = tier
            .replace(r#""raw":["#, r#""reindex":{"files":3,"log_bytes":2048,"failed_files":1,"enabled":true},"raw":["#);
        let reindexing: TierInfo = serde_json::from_str(&reindexing).unwrap();
        let line =
            "index: orders-0: 3 files, 2.00 KiB of log, to index again, 1 of them cannot be (see the broker's log)";
        assert!(reindexing.lines().iter().any(|found| found == line), "{:?}", reindexing.lines());
        let tier: TierInfo = serde_json::from_str(tier).unwrap();
        let lines = ["raw: orders-0 offsets 4 to 5: not zstd", "raw: orders-0: 21 more", "damaged: a/b: gone"];
        assert_eq!(tier.lines(), lines);
    }
}
