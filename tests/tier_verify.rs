//! `thermocline tier verify` as a program, and the scrub of a running broker: all good, damage, and what cannot be
//! checked, each with its exit status.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "support/config.rs"]
mod config;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::{Value, json};
use thermocline::Broker;

/// Longest wait for something that happens by itself.
const STEP_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
const TOPICS: [&str; 2] = ["birds", "fish"];

async fn start(data_dir: &Path) -> Broker {
    Broker::start(config::config(data_dir)).await.unwrap()
}

struct Http {
    client: reqwest::Client,
    url: String,
}

impl Http {
    fn new(broker: &Broker) -> Self {
        let client = reqwest::Client::builder().timeout(STEP_MAX).no_proxy().build().unwrap();
        Self { client, url: format!("http://{}", broker.http_addr()) }
    }

    async fn post(&self, path: &str, body: String) {
        let answer = self.client.post(format!("{}{path}", self.url)).body(body).send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {}", answer.text().await.unwrap());
    }

    async fn get(&self, path: &str) -> String {
        self.client.get(format!("{}{path}", self.url)).send().await.unwrap().text().await.unwrap()
    }

    /// Two archives of two files each.
    async fn fill(&self) {
        for topic in TOPICS {
            self.post("/v1/topics", json!({"name": topic, "partitions": 1}).to_string()).await;
            for _ in 0..2 {
                let lines = (0..50).map(|n| format!("{}\n", json!({"key": "k", "value": format!("sighting {n}")})));
                self.post(&format!("/v1/topics/{topic}/messages"), lines.collect()).await;
                self.post(&format!("/v1/topics/{topic}/archive?trim=true"), String::new()).await;
            }
        }
    }
}

/// Status, standard output, standard error.
async fn verify(args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thermocline"));
    command.args(["tier", "verify"]).args(args).env("THERMOCLINE_STORE__MAX_RETRIES", "0");
    command.env("AWS_ACCESS_KEY_ID", "none").env("AWS_SECRET_ACCESS_KEY", "none");
    let Output { status, stdout, stderr } =
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn files_below(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_exit_status_tells_good_from_damaged_from_unchecked() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(dir.path()).await;
    Http::new(&broker).fill().await;
    let data_dir = dir.path().to_str().unwrap();

    // Beside the running broker.
    let (status, stdout, stderr) = verify(&["--data-dir", data_dir]).await;
    assert_eq!((status, stderr.as_str()), (0, ""), "{stdout}");
    let lines: Vec<Vec<&str>> = stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines.len(), 3, "{stdout}");
    for (line, topic) in lines[1..].iter().zip(TOPICS) {
        assert_eq!(line[..5], [topic, "0", "2", "2", "100"], "{stdout}");
        assert_eq!(line[7..], ["0", "0", "0", "B", "0"], "raw, unreferenced and damaged: {stdout}");
    }
    broker.shutdown().await.unwrap();

    let cold = dir.path().join("cold");
    let url = format!("file://{}", cold.display());
    let (status, stdout, _) = verify(&["--store-url", &url, "--topic", "fish", "--format", "json"]).await;
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((status, &report["error"], report["partitions"].as_array().unwrap().len()), (0, &Value::Null, 1));
    let fish = &report["partitions"][0];
    assert_eq!((&fish["topic"], &fish["checked_files"], &fish["damage"]), (&json!("fish"), &json!(2), &json!([])));

    let sample = ["--data-dir", data_dir, "--sample", "40%", "--rate", "100MiB"];
    let (status, first, _) = verify(&[&sample[..], &["--seed", "7"]].concat()).await;
    assert!(status == 0 && first.ends_with("sample of 40% with seed 7\n"), "{first}");
    assert_eq!(verify(&[&sample[..], &["--seed", "7"]].concat()).await.1, first, "the same sample");
    assert!(verify(&sample).await.1.contains("with seed "), "a seed was chosen, and told");

    for extension in ["parquet", "split"] {
        let damaged = files_below(&cold, extension).remove(1);
        flip(&damaged);
        let (status, stdout, stderr) = verify(&["--data-dir", data_dir]).await;
        assert_eq!((status, stderr.as_str()), (1, "error: damaged objects: 1\n"), "{stdout}");
        let key = damaged.strip_prefix(&cold).unwrap().display();
        let lines: Vec<_> = stdout.lines().filter(|line| line.starts_with("damaged: ")).collect();
        assert!(lines.len() == 1 && lines[0].starts_with(&format!("damaged: {key}: its bytes have xxh3 ")), "{stdout}");
        assert_eq!(verify(&["--data-dir", data_dir, "--topic", "fish"]).await.0, 0, "the other topic is sound");
        flip(&damaged);
    }
    assert_eq!(verify(&["--data-dir", data_dir]).await.0, 0, "mended");

    let missing = dir.path().join("nowhere");
    let empty = tempfile::tempdir().unwrap();
    let empty = format!("file://{}", empty.path().display());
    let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
    let config = dir.path().join("s3.toml");
    fs::write(&config, format!("[store]\nurl = \"s3://bucket/x\"\nendpoint = \"http://{nobody}\"\n")).unwrap();
    for (args, reason) in [
        (&["--data-dir", missing.to_str().unwrap()][..], "does not exist"),
        (&["--store-url", &empty], "no archive"),
        (&["--data-dir", data_dir, "--topic", "mice"], "topic mice"),
        (&["--config", config.to_str().unwrap()], "looking for topics"),
        (&["--config", missing.to_str().unwrap()], "nowhere"),
        (&["--data-dir", data_dir, "--sample", "0%"], "above 0%"),
        (&["--data-dir", data_dir, "--rate", "fast"], "byte size"),
    ] {
        let (status, _, stderr) = verify(args).await;
        assert!(status == 2 && stderr.contains(reason), "{args:?}: status {status}, {stderr}");
    }
    assert!(!missing.exists(), "nothing was written");
}

/// What the scrub of a broker finds is told by its HTTP interface, its metrics, and `tier status`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_scrub_reports_what_has_gone_bad() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(dir.path()).await;
    Http::new(&broker).fill().await;
    broker.shutdown().await.unwrap();
    let cold = dir.path().join("cold");
    let damaged = files_below(&cold, "parquet").remove(0);
    flip(&damaged);

    let broker = start(dir.path()).await;
    let http = Http::new(&broker);
    let counted = async {
        while !http.get("/metrics").await.contains("thermocline_scrub_damaged_files 1") {
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(STEP_MAX, counted).await.expect("the scrub never came by");
    let topics: Value = serde_json::from_str(&http.get("/v1/topics").await).unwrap();
    let counts = |n: usize| topics["topics"][n]["partitions"][0]["damaged_files"].clone();
    assert_eq!((counts(0), counts(1)), (json!(1), json!(0)), "{topics}");
    let tier: Value = serde_json::from_str(&http.get("/v1/topics/birds/tier").await).unwrap();
    let key = damaged.strip_prefix(&cold).unwrap().display().to_string();
    let found = &tier["partitions"][0]["damaged"][0];
    assert_eq!(
        (&found["objects"][0]["key"], &found["base_offset"], &found["last_offset"]),
        (&json!(key), &json!(0), &json!(49))
    );

    let mut status = Command::new(env!("CARGO_BIN_EXE_thermocline"));
    status.args(["tier", "status", "--topic", "birds", "--url", &http.url]);
    let status = tokio::task::spawn_blocking(move || status.output().unwrap()).await.unwrap();
    let stdout = String::from_utf8(status.stdout).unwrap();
    assert!(stdout.contains("DAMAGED") && stdout.contains(&format!("damaged: {key}: its bytes have xxh3")), "{stdout}");
    broker.shutdown().await.unwrap();
}
