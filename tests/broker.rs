//! A whole broker, started in-process and as a program: what was acknowledged is there after a restart, hot or cold,
//! and a shutdown leaves nothing behind but data.

#[path = "support/config.rs"]
mod config;

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use reqwest::Client;
use serde_json::{Value, json};
use thermocline::{Broker, StartError};
use thermocline_config::{Config, HumanDuration};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Longest wait for something that happens by itself.
const DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
const ANY_PORT: &str = "127.0.0.1:0";

fn config(dir: &Path) -> Config {
    let mut config = config::config(dir);
    config.broker.shutdown_timeout = HumanDuration::secs(10);
    config
}

/// Asks again and again until there is an answer.
async fn until<T>(mut ask: impl AsyncFnMut() -> Outcome<Option<T>>) -> Outcome<T> {
    tokio::time::timeout(DEADLINE, async {
        loop {
            if let Some(answer) = ask().await? {
                return Ok(answer);
            }
            tokio::time::sleep(POLL).await;
        }
    })
    .await?
}

/// The HTTP interface of one broker.
struct Http {
    client: Client,
    base: String,
}

impl Http {
    fn new(address: SocketAddr) -> Self {
        Self { client: Client::new(), base: format!("http://{address}") }
    }

    async fn get(&self, path: &str) -> Outcome<Value> {
        Ok(self.client.get(format!("{}{path}", self.base)).send().await?.error_for_status()?.json().await?)
    }

    async fn post(&self, path: &str, body: &Value) -> Outcome<Value> {
        Ok(self.client.post(format!("{}{path}", self.base)).json(body).send().await?.error_for_status()?.json().await?)
    }

    async fn produce(&self, topic: &str, values: impl Iterator<Item = String>) -> Outcome {
        let lines: String = values.map(|value| format!("{}\n", json!({"key": "k", "value": value}))).collect();
        let request = self.client.post(format!("{}/v1/topics/{topic}/messages", self.base)).body(lines);
        request.header("content-type", "application/x-ndjson").send().await?.error_for_status()?;
        Ok(())
    }

    /// (offset, value) of everything in partition 0.
    async fn replay(&self, topic: &str) -> Outcome<Vec<(i64, String)>> {
        let url = format!("{}/v1/topics/{topic}/messages?partition=0&from_offset=0&format=ndjson", self.base);
        let text = self.client.get(url).send().await?.error_for_status()?.text().await?;
        text.lines()
            .map(|line| {
                let message: Value = serde_json::from_str(line)?;
                let offset = message["offset"].as_i64().ok_or("a message without offset")?;
                Ok((offset, message["value"].as_str().ok_or("a message without value")?.to_owned()))
            })
            .collect()
    }

    async fn partition(&self, topic: &str) -> Outcome<Value> {
        Ok(self.get(&format!("/v1/topics/{topic}")).await?["partitions"][0].clone())
    }

    /// Offsets of the messages that match, once everything produced so far is indexed.
    async fn search(&self, topic: &str, query: &str) -> Outcome<Vec<i64>> {
        until(async || {
            let partition = self.partition(topic).await?;
            let (indexed, end) = (partition["indexed_through"].as_i64(), partition["high_watermark"].as_i64());
            Ok((end.is_some() && indexed >= end).then_some(()))
        })
        .await?;
        let request = json!({"q": query, "topics": [topic], "limit": 100, "sort": "timestamp"});
        let answer = self.post("/v1/search", &request).await?;
        let hits = answer["hits"].as_array().ok_or("an answer without hits")?;
        let mut offsets: Vec<i64> = hits.iter().filter_map(|hit| hit["offset"].as_i64()).collect();
        offsets.sort_unstable();
        Ok(offsets)
    }
}

fn values(from: usize, to: usize) -> impl Iterator<Item = String> {
    (from..to).map(|n| format!("message {n} about {}", if n % 50 == 7 { "herons" } else { "nothing" }))
}

fn expected(to: usize) -> Vec<(i64, String)> {
    (0..).zip(values(0, to)).collect()
}

/// Whether the hot log was closed cleanly.
fn has_clean_marker(data_dir: &Path) -> std::io::Result<bool> {
    let entries = std::fs::read_dir(data_dir.join("hot"))?;
    Ok(entries.flatten().any(|entry| entry.file_name().to_string_lossy().contains("clean")))
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_messages_outlive_restart_and_archive() -> Outcome {
    let dir = tempfile::tempdir()?;
    let broker = Broker::start(config(dir.path())).await?;
    let http = Http::new(broker.http_addr());
    http.post("/v1/topics", &json!({"name": "birds", "partitions": 1, "configs": {}})).await?;
    http.produce("birds", values(0, 200)).await?;
    assert_eq!(http.replay("birds").await?, expected(200));
    broker.shutdown().await?;
    assert!(has_clean_marker(dir.path())?);

    let broker = Broker::start(config(dir.path())).await?;
    let http = Http::new(broker.http_addr());
    assert!(!has_clean_marker(dir.path())?, "a running log is not clean");
    assert_eq!(http.replay("birds").await?, expected(200));
    assert_eq!(http.search("birds", "herons").await?, [7, 57, 107, 157]);

    http.post("/v1/topics/birds/archive?trim=true", &json!({})).await?;
    let partition = http.partition("birds").await?;
    assert_eq!(partition["archived_through"], 200);
    assert_eq!(partition["local_start_offset"], partition["high_watermark"]);
    assert_eq!(http.replay("birds").await?, expected(200));
    assert_eq!(http.search("birds", "herons").await?, [7, 57, 107, 157]);

    // Half cold, half hot: each message once.
    http.produce("birds", values(200, 300)).await?;
    assert_eq!(http.replay("birds").await?, expected(300));
    assert_eq!(http.search("birds", "herons").await?, [7, 57, 107, 157, 207, 257]);
    broker.shutdown().await?;

    let broker = Broker::start(config(dir.path())).await?;
    let http = Http::new(broker.http_addr());
    assert_eq!(http.replay("birds").await?, expected(300));
    assert_eq!(http.search("birds", "herons").await?, [7, 57, 107, 157, 207, 257]);
    broker.shutdown().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_data_directory_has_one_broker() -> Outcome {
    let dir = tempfile::tempdir()?;
    let broker = Broker::start(config(dir.path())).await?;
    let second = Broker::start(config(dir.path())).await;
    assert!(matches!(second, Err(StartError::Log(_))), "the lock is taken");
    let listeners: Value = serde_json::from_slice(&std::fs::read(dir.path().join("listeners.json"))?)?;
    let (kafka, http) = (broker.kafka_addr().to_string(), broker.http_addr().to_string());
    assert_eq!(listeners, json!({"kafka": kafka, "http": http}), "the refused start left it alone");
    broker.shutdown().await?;
    assert!(!dir.path().join("listeners.json").exists());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_late_gives_everything_back() -> Outcome {
    let dir = tempfile::tempdir()?;
    let taken = std::net::TcpListener::bind(ANY_PORT)?;
    let mut blocked = config(dir.path());
    blocked.http.listen = taken.local_addr()?;
    let refused = Broker::start(blocked).await;
    assert!(matches!(refused, Err(StartError::Listen { key: "http.listen", .. })));
    assert!(!dir.path().join("listeners.json").exists());
    Broker::start(config(dir.path())).await?.shutdown().await?;
    Ok(())
}

#[tokio::test]
async fn a_wrong_configuration_touches_nothing() -> Outcome {
    let dir = tempfile::tempdir()?;
    let data_dir = dir.path().join("data");
    let mut wrong = config(&data_dir);
    wrong.tiering.zstd_level = 99;
    assert!(matches!(Broker::start(wrong).await, Err(StartError::Config(_))));
    assert!(!data_dir.exists());
    Ok(())
}

/// A `thermocline serve` that does not outlive its test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_drains_and_leaves_a_clean_marker() -> Outcome {
    let dir = tempfile::tempdir()?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_thermocline"));
    command.args(["serve", "--kafka-listen", ANY_PORT, "--http-listen", ANY_PORT, "--data-dir"]).arg(dir.path());
    let mut server =
        Server(command.env("THERMOCLINE_LOG__DISK_RESERVE", "0").stdin(Stdio::null()).stderr(Stdio::null()).spawn()?);
    let listeners: Value = until(async || {
        if let Some(status) = server.0.try_wait()? {
            return Err(format!("the server ended early: {status}").into());
        }
        let json = std::fs::read(dir.path().join("listeners.json")).ok();
        Ok(json.map(|json| serde_json::from_slice(&json)).transpose()?)
    })
    .await?;
    let http = Http::new(listeners["http"].as_str().ok_or("no http address")?.parse()?);
    http.post("/v1/topics", &json!({"name": "birds", "partitions": 1, "configs": {}})).await?;
    http.produce("birds", values(0, 10)).await?;

    let pid = server.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status()?.success());
    let status = until(async || Ok(server.0.try_wait()?)).await?;
    assert!(status.success(), "{status}");
    assert!(has_clean_marker(dir.path())?);
    assert!(!dir.path().join("listeners.json").exists());
    Ok(())
}
