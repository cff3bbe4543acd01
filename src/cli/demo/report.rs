//! What the demo says about what it did.

use std::time::Duration;

use thermocline::Broker;

use super::load::{Archived, Produced, Replayed};
use super::shop::NEEDLE;
use crate::cli::client::Client;
use crate::cli::search::SearchAnswer;
use crate::cli::table::{bytes, count};
use crate::cli::tier::status_table;
use crate::cli::topic;

pub fn produced(what: &str, produced: &Produced, took: Duration) -> String {
    let (messages, size) = (count(produced.total()), bytes(produced.bytes));
    format!("produced {what}: {messages} messages, {size} in {} ({})", seconds(took), rate(produced.bytes, took))
}

pub fn archived(raw: &Produced, archived: &Archived, took: Duration) -> String {
    format!(
        "archived {} messages: {} of log to {} of Parquet and {} of index in {} files, read back and verified, in {} ({}); \
         {} of local copies dropped",
        count(archived.records),
        bytes(archived.log_bytes),
        bytes(archived.data_bytes),
        bytes(archived.index_bytes),
        archived.files,
        seconds(took),
        rate(raw.bytes, took),
        bytes(archived.trimmed_bytes),
    )
}

pub fn replayed(what: &str, replayed: &Replayed) -> String {
    let (messages, size) = (count(replayed.messages), bytes(replayed.bytes));
    format!(
        "replayed {what}: {messages} messages, {size} in {} ({})",
        seconds(replayed.took),
        rate(replayed.bytes, replayed.took)
    )
}

pub fn searched(query: &str, answer: &SearchAnswer) -> String {
    let (searched, all) = (answer.stats.splits_searched, answer.stats.splits_total);
    format!(
        "searched {query:?}: found {} in {:.1} ms, {searched} of {all} splits searched",
        answer.total_text(),
        answer.took_ms
    )
}

/// Where everything lies now, and how large it is beside what came in.
pub async fn sizes(client: &Client, raw: &Produced, archived: &Archived) -> anyhow::Result<Vec<String>> {
    let mut lines = vec![String::new()];
    lines.extend(status_table(&topic::list(client).await?).lines());
    lines.push(String::new());
    lines.push(format!(
        "raw : Parquet : index = 1 : {:.2} : {:.2}",
        ratio(archived.data_bytes, raw.bytes),
        ratio(archived.index_bytes, raw.bytes)
    ));
    Ok(lines)
}

/// Commands to go on with.
pub fn next_steps(broker: &Broker, keep: bool) -> Vec<String> {
    let (http, kafka) = (broker.http_addr(), broker.kafka_addr());
    if !keep {
        let again = "The folder is removed now. To look further: thermocline demo --keep";
        return vec![String::new(), again.to_owned()];
    }
    vec![
        String::new(),
        "The broker runs until Ctrl-C. Look further from another terminal:".to_owned(),
        format!("  export THERMOCLINE_URL=http://{http}"),
        format!("  thermocline search {NEEDLE}"),
        "  thermocline search 'refund AND return' --topic payments --limit 5".to_owned(),
        "  thermocline consume orders --limit 5 --format value".to_owned(),
        "  thermocline tier status".to_owned(),
        format!("  kcat -b {kafka} -t orders -C -o beginning -c 5"),
    ]
}

fn seconds(took: Duration) -> String {
    let seconds = took.as_secs_f64();
    if seconds < 1.0 { format!("{:.0} ms", seconds * 1000.0) } else { format!("{seconds:.1} s") }
}

fn rate(size: u64, took: Duration) -> String {
    format!("{:.1} MB/s", size as f64 / 1e6 / took.as_secs_f64().max(1e-9))
}

fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / (whole as f64).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        let done = Produced { messages: [1000, 200, 34], bytes: 3_000_000 };
        assert_eq!(
            produced("the last day", &done, Duration::from_millis(1500)),
            "produced the last day: 1 234 messages, 2.86 MiB in 1.5 s (2.0 MB/s)"
        );
        let again = Replayed { messages: 7, bytes: 0, took: Duration::from_millis(12) };
        assert_eq!(replayed("orders", &again), "replayed orders: 7 messages, 0 B in 12 ms (0.0 MB/s)");
    }
}
