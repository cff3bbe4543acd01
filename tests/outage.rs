//! A store that fails in every way a network and a bucket can, and a disk that fills meanwhile: producers and readers
//! of the hot log go on, nothing is lost, and when it is over the archive catches up by itself, each message in it
//! once.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "support/config.rs"]
mod config;
#[path = "support/s3.rs"]
mod s3;

use std::error::Error;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hyper::StatusCode;
use s3::faults::Fault;
use serde_json::{Value, json};
use tempfile::TempDir;
use thermocline::{Broker, StartError};
use thermocline_config::{ByteSize, Config, HumanDuration};
use thermocline_ingest::log::FreeSpace;

const BUCKET: &str = "lake";
const TOPIC: &str = "orders";
/// Longest wait for something that happens by itself.
const DEADLINE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(20);
/// Messages of one batch that is produced, and bytes of each: a batch is a large part of a segment.
const BATCH: u64 = 20;
const MESSAGE_BYTES: usize = 1500;
const SEGMENT_BYTES: u64 = 64 << 10;
/// Requests that must have met a fault before it counts as lived through: more than one attempt of one job makes.
const FAULTS_MET_MIN: usize = 6;

/// The store takes its credentials from the environment, which a test must not change under its siblings: so the tests
/// proper run in a process of their own.
#[test]
fn a_store_that_fails() {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--nocapture"])
        .env("AWS_ACCESS_KEY_ID", s3::ACCESS_KEY)
        .env("AWS_SECRET_ACCESS_KEY", s3::SECRET_KEY)
        .env_remove("AWS_SESSION_TOKEN")
        .env_remove("AWS_ENDPOINT_URL")
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}

/// A bucket and a data directory.
struct World {
    dir: TempDir,
    server: s3::S3Server,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let buckets = dir.path().join("buckets");
        std::fs::create_dir_all(buckets.join(BUCKET)).unwrap();
        let server = s3::S3Server::start(&buckets, loopback()).await.unwrap();
        Self { dir, server }
    }

    fn config(&self) -> Config {
        let mut config = config::config(&self.data_dir());
        config.log.segment_bytes = ByteSize::bytes(SEGMENT_BYTES);
        config.log.message_max_bytes = ByteSize::kib(48);
        config.store.url = format!("s3://{BUCKET}/cold");
        config.store.endpoint = format!("http://{}", self.server.addr());
        config.store.region = "us-east-1".to_owned();
        config.store.request_timeout = HumanDuration::secs(2);
        config.store.max_retries = 1;
        config.tiering.interval = HumanDuration::millis(50);
        config.tiering.retry_backoff = HumanDuration::millis(50);
        config.tiering.retry_backoff_max = HumanDuration::millis(500);
        config
    }

    fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    async fn fail(&self, fault: Fault) {
        self.server.faults().set(fault).await;
    }

    /// Waits until the broker has run into the fault again and again.
    async fn fault_is_met(&self) {
        until("the fault is met", async || self.server.faults().met() >= FAULTS_MET_MIN).await;
    }

    /// What the bucket has of topics.
    fn objects(&self) -> Vec<PathBuf> {
        files_below(&self.dir.path().join("buckets").join(BUCKET).join("cold/topics"))
    }
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for path in std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files
}

/// Asks again and again until it is so.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let asking = async {
        while !is_so().await {
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(DEADLINE, asking).await.unwrap_or_else(|_| panic!("never: {what}"));
}

struct Client {
    http: reqwest::Client,
    url: String,
}

impl Client {
    fn new(broker: &Broker) -> Self {
        let http = reqwest::Client::builder().timeout(DEADLINE).no_proxy().build().unwrap();
        Self { http, url: format!("http://{}", broker.http_addr()) }
    }

    async fn create(&self) {
        let topic = json!({"name": TOPIC, "partitions": 1, "configs": {"search.index": "off"}});
        let answer = self.http.post(format!("{}/v1/topics", self.url)).json(&topic).send().await.unwrap();
        assert_eq!(answer.status(), 201, "{}", answer.text().await.unwrap());
    }

    async fn delete(&self) {
        let answer = self.http.delete(format!("{}/v1/topics/{TOPIC}", self.url)).send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    }

    /// One batch of messages from number `from` on; the answer if it is refused.
    async fn try_produce(&self, from: u64) -> Result<(), (StatusCode, String)> {
        let body: String = (from..from + BATCH).map(|n| format!("{}\n", json!({"value": value(n)}))).collect();
        let url = format!("{}/v1/topics/{TOPIC}/messages", self.url);
        let answer = self.http.post(url).body(body).send().await.unwrap();
        let status = answer.status();
        if status.is_success() { Ok(()) } else { Err((status, answer.text().await.unwrap())) }
    }

    /// So many batches from number `from` on; returns the number after them.
    async fn produce(&self, from: u64, batches: u64) -> u64 {
        for batch in 0..batches {
            self.try_produce(from + batch * BATCH).await.unwrap();
        }
        from + batches * BATCH
    }

    async fn number(&self, field: &str) -> u64 {
        let answer = self.http.get(format!("{}/v1/topics/{TOPIC}", self.url)).send().await.unwrap();
        let topic: Value = answer.json().await.unwrap();
        topic["partitions"][0][field].as_u64().unwrap()
    }

    async fn archive_and_trim(&self) {
        let url = format!("{}/v1/topics/{TOPIC}/archive?trim=true", self.url);
        let answer = self.http.post(url).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    }

    /// The messages from an offset on, which must be those numbers; the status of the answer otherwise.
    async fn replay(&self, from: u64, end: u64) -> StatusCode {
        let url = format!("{}/v1/topics/{TOPIC}/messages?partition=0&from_offset={from}&to_offset={end}", self.url);
        let answer = self.http.get(url).send().await.unwrap();
        let status = answer.status();
        // What breaks off on the way is an error too.
        let Ok(lines) = answer.text().await else { return StatusCode::SERVICE_UNAVAILABLE };
        if status.is_success() {
            let read: Vec<_> = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect();
            let read: Vec<_> =
                read.iter().map(|message| (message["offset"].as_u64(), message["value"].as_str())).collect();
            let produced: Vec<_> = (from..end).map(|n| (n, value(n))).collect();
            let produced: Vec<_> = produced.iter().map(|(n, value)| (Some(*n), Some(value.as_str()))).collect();
            assert!(read == produced, "read {} messages of {}", read.len(), produced.len());
        }
        status
    }

    async fn metric(&self, name: &str) -> u64 {
        let text = self.http.get(format!("{}/metrics", self.url)).send().await.unwrap().text().await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in the metrics")).parse().unwrap()
    }
}

/// Does not compress well.
fn value(n: u64) -> String {
    let mut state = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let noise = (0..MESSAGE_BYTES).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'a' + (state >> 32) as u8 % 26)
    });
    format!("{n} {}", noise.collect::<String>())
}

/// What must hold while a fault lasts, and after it.
async fn lives_through(fault: Fault) {
    let world = World::new().await;
    let broker = Broker::start(world.config()).await.unwrap();
    let client = Client::new(&broker);
    client.create().await;
    let cold = client.produce(0, 6).await;
    client.archive_and_trim().await;
    assert_eq!(client.number("archived_through").await, cold);

    world.fail(fault).await;
    let end = client.produce(cold, 8).await;
    if matches!(fault, Fault::LaggingLists) {
        // A running broker asks for none to commit.
        until("it is archived all the same", async || client.number("archived_through").await > cold).await;
    } else {
        world.fault_is_met().await;
        let archived = client.number("archived_through").await;
        let commits_get_through = matches!(fault, Fault::Throttled(_));
        assert!(archived == cold || commits_get_through, "{archived} of {end} archived under {fault:?}");
    }
    assert_eq!(client.replay(cold, end).await, 200, "the hot log is read");
    let status = client.replay(0, cold).await;
    assert!(matches!(status.as_u16(), 200 | 503), "a cold read is answered or may be tried again, not {status}");
    let end = client.produce(end, 1).await;

    world.fail(Fault::None).await;
    until("the archive catches up", async || {
        client.number("archived_through").await + 3 * BATCH > end && client.replay(0, end).await == 200
    })
    .await;
    client.archive_and_trim().await;
    assert_eq!(client.number("local_start_offset").await, end);
    assert_eq!(client.replay(0, end).await, 200, "everything is in the archive, once");
    assert_eq!(client.metric("thermocline_verification_failures_total").await, 0);
    broker.shutdown().await.unwrap();

    // What the next start believes is what the store says.
    let broker = Broker::start(world.config()).await.unwrap();
    let client = Client::new(&broker);
    assert_eq!(client.number("archived_through").await, end);
    assert_eq!(client.replay(0, end).await, 200);
    broker.shutdown().await.unwrap();
}

macro_rules! faults {
    ($($name:ident: $fault:expr;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        #[ignore = "started by a_store_that_fails with credentials in its environment"]
        async fn $name() {
            lives_through($fault).await;
        }
    )*};
}

faults! {
    refuses_everything: Fault::Down;
    throttles: Fault::Throttled(3);
    answers_too_late: Fault::Held;
    takes_connections_and_is_silent: Fault::Silent;
    breaks_off_answers: Fault::CutAnswers;
    breaks_off_requests: Fault::CutRequests;
    refuses_conditional_writes_as_taken: Fault::Conditional(StatusCode::PRECONDITION_FAILED);
    knows_no_conditional_writes: Fault::Conditional(StatusCode::NOT_IMPLEMENTED);
    lists_what_was: Fault::LaggingLists;
}

/// A disk of so many bytes that holds the hot log alone.
fn disk_of(bytes: u64, hot: PathBuf) -> FreeSpace {
    Box::new(move || {
        let sizes =
            files_below(&hot).iter().filter_map(|path| path.metadata().ok()).map(|file| file.len()).sum::<u64>();
        Ok(bytes.saturating_sub(sizes))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by a_store_that_fails with credentials in its environment"]
async fn and_the_disk_fills() {
    let world = World::new().await;
    let reserve = 8 * SEGMENT_BYTES;
    let mut config = world.config();
    config.log.disk_reserve = ByteSize::bytes(reserve);
    let disk = disk_of(24 * SEGMENT_BYTES, world.data_dir().join("hot"));
    let broker = Broker::start_on(config, disk).await.unwrap();
    let client = Client::new(&broker);
    client.create().await;
    let mut end = client.produce(0, 4).await;
    assert_eq!(client.metric("thermocline_disk_reserve_reached").await, 0);

    world.fail(Fault::Down).await;
    let mut refusal = None;
    until("producers are refused", async || {
        match client.try_produce(end).await {
            Ok(()) => end += BATCH,
            Err(answer) => refusal = Some(answer),
        }
        refusal.is_some()
    })
    .await;
    let (status, message) = refusal.unwrap();
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(message.contains("disk_full") && message.contains("log.disk_reserve"), "{message}");
    assert_eq!(client.metric("thermocline_disk_reserve_reached").await, 1);
    assert!(client.metric("thermocline_disk_free_bytes").await < reserve);
    let hot = client.number("local_start_offset").await;
    assert_eq!(client.replay(hot, end).await, 200, "the hot log is read");

    world.fail(Fault::None).await;
    until("producers are taken again", async || client.try_produce(end).await.is_ok()).await;
    end += BATCH;
    assert!(client.metric("thermocline_trimmed_early_bytes_total").await > 0, "local copies went early");
    // More than the disk holds, while the archive keeps up: it is refused now and then at most, and goes on.
    for _ in 0..40 {
        until("producers are taken", async || client.try_produce(end).await.is_ok()).await;
        end += BATCH;
    }
    assert!(client.number("local_start_offset").await > hot);
    client.archive_and_trim().await;
    assert_eq!(client.replay(0, end).await, 200, "everything is there, once");
    broker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by a_store_that_fails with credentials in its environment"]
async fn and_a_topic_is_deleted() {
    let world = World::new().await;
    let broker = Broker::start(world.config()).await.unwrap();
    let client = Client::new(&broker);
    for with_restart in [false, true] {
        client.create().await;
        client.produce(0, 6).await;
        client.archive_and_trim().await;
        assert!(!world.objects().is_empty());
        world.fail(Fault::Down).await;
        client.delete().await;
        if with_restart {
            break;
        }
        world.fault_is_met().await;
        world.fail(Fault::None).await;
        until("the store is clean", async || world.objects().is_empty()).await;
    }
    // The broker ends before it could delete anything.
    broker.shutdown().await.unwrap();
    world.fail(Fault::None).await;
    assert!(!world.objects().is_empty());
    let broker = Broker::start(world.config()).await.unwrap();
    until("the store is clean after a restart", async || world.objects().is_empty()).await;
    broker.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by a_store_that_fails with credentials in its environment"]
async fn and_a_broker_starts() {
    let world = World::new().await;
    let broker = Broker::start(world.config()).await.unwrap();
    let client = Client::new(&broker);
    client.create().await;
    let end = client.produce(0, 6).await;
    client.archive_and_trim().await;
    broker.shutdown().await.unwrap();

    world.fail(Fault::Down).await;
    let Err(error) = Broker::start(world.config()).await else { panic!("started without its archive") };
    assert!(matches!(error, StartError::Epoch(_)), "{error}");
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message = format!("{message}: {error}");
        cause = error.source();
    }
    for part in ["[store]", "epochs", "after 2 attempts", "503"] {
        assert!(message.contains(part), "{part:?} is missing in: {message}");
    }

    world.fail(Fault::None).await;
    let broker = Broker::start(world.config()).await.unwrap();
    assert_eq!(Client::new(&broker).replay(0, end).await, 200);
    broker.shutdown().await.unwrap();
}
