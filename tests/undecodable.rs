//! A batch that nobody can decode, among good ones: consumers get it back as it was sent, hot and cold; everything else
//! is searched and replayed as if it were not there; and it is reported wherever one would look.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "support/running.rs"]
mod running;

use std::process::{Command, Output};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{FetchRequest, ProduceRequest, RequestHeader, ResponseHeader, TopicName};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};
use running::{Running, STEP_MAX};
use serde_json::{Value, json};
use thermocline_ingest::model::{Offset, Timestamp, TimestampType};
use thermocline_ingest::record::{BatchEncoder, BatchHeader, split_batches};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const TOPIC: &str = "events";
const PRODUCE_VERSION: i16 = 9;
const FETCH_VERSION: i16 = 12;
const POLL: Duration = Duration::from_millis(20);

/// Offsets 0 to 9 and 15 to 24 hold messages that can be read, 10 to 14 do not.
const GOOD: [std::ops::Range<i64>; 2] = [0..10, 15..25];
const BAD: std::ops::Range<i64> = 10..15;

impl Running {
    async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/v1/{path}", self.broker.http_addr())
    }

    async fn get(&self, path: &str) -> Value {
        let answer = self.http.get(self.url(path)).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        answer.json().await.unwrap()
    }

    async fn post(&self, path: &str, body: &Value) -> Value {
        let answer = self.http.post(self.url(path)).json(body).send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {}", answer.text().await.unwrap());
        answer.json().await.unwrap()
    }

    async fn partition(&self) -> Value {
        self.get(&format!("topics/{TOPIC}")).await["partitions"][0].clone()
    }

    /// The lines that arrived, and whether the stream ended as a whole one does.
    async fn replay(&self, query: &str) -> (Vec<Value>, bool) {
        let mut answer = self.http.get(self.url(&format!("topics/{TOPIC}/messages{query}"))).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{query}");
        let mut body = BytesMut::new();
        let whole = loop {
            match answer.chunk().await {
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) => break true,
                Err(_) => break false,
            }
        };
        let lines = String::from_utf8(body.to_vec()).unwrap();
        (lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), whole)
    }

    async fn search(&self) -> Vec<i64> {
        let indexed = async {
            loop {
                let partition = self.partition().await;
                if partition["indexed_through"] == partition["high_watermark"] {
                    break;
                }
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(STEP_MAX, indexed).await.expect("the index never covered everything");
        let answer = self.post("search", &json!({"q": "heron", "topic": TOPIC, "limit": 100})).await;
        let mut found: Vec<_> =
            answer["hits"].as_array().unwrap().iter().map(|hit| hit["offset"].as_i64().unwrap()).collect();
        found.sort_unstable();
        found
    }

    /// The program itself, on this broker or its store.
    async fn cli(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_thermocline"));
        command.args(args).env("THERMOCLINE_URL", format!("http://{}", self.broker.http_addr()));
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }
}

/// One connection that speaks frames: no client library would send what is sent here.
struct Kafka(TcpStream);

impl Kafka {
    async fn ask<R: Request>(&mut self, version: i16, request: &R) -> R::Response {
        let header = RequestHeader::default().with_request_api_key(R::KEY).with_request_api_version(version);
        let mut body = BytesMut::new();
        header.encode(&mut body, R::header_version(version)).unwrap();
        request.encode(&mut body, version).unwrap();
        let mut frame = BytesMut::new();
        frame.put_i32(i32::try_from(body.len()).unwrap());
        frame.put(body);
        self.0.write_all(&frame).await.unwrap();
        let length = self.0.read_i32().await.unwrap();
        let mut frame = vec![0; usize::try_from(length).unwrap()];
        self.0.read_exact(&mut frame).await.unwrap();
        let mut frame = Bytes::from(frame);
        ResponseHeader::decode(&mut frame, R::Response::header_version(version)).unwrap();
        let response = R::Response::decode(&mut frame, version).unwrap();
        assert!(!frame.has_remaining());
        response
    }

    /// Returns the offset of the first record.
    async fn produce(&mut self, batch: Bytes) -> i64 {
        let partition = PartitionProduceData::default().with_records(Some(batch));
        let topic = TopicProduceData::default()
            .with_name(TopicName(StrBytes::from_static_str(TOPIC)))
            .with_partition_data(vec![partition]);
        let request = ProduceRequest::default().with_acks(-1).with_timeout_ms(30_000).with_topic_data(vec![topic]);
        let response = self.ask(PRODUCE_VERSION, &request).await;
        let partition = &response.responses[0].partition_responses[0];
        assert_eq!(partition.error_code, 0, "{:?}", partition.error_message);
        partition.base_offset
    }

    /// Everything from `from` on, as batches.
    async fn fetch(&mut self, from: i64, end: i64) -> Vec<Bytes> {
        let (mut batches, mut next) = (Vec::new(), from);
        while next < end {
            let partition = FetchPartition::default().with_fetch_offset(next).with_partition_max_bytes(1 << 20);
            let topic = FetchTopic::default()
                .with_topic(TopicName(StrBytes::from_static_str(TOPIC)))
                .with_partitions(vec![partition]);
            let request =
                FetchRequest::default().with_max_wait_ms(100).with_max_bytes(1 << 20).with_topics(vec![topic]);
            let response = self.ask(FETCH_VERSION, &request).await;
            let partition = &response.responses[0].partitions[0];
            assert_eq!(partition.error_code, 0);
            for batch in split_batches(partition.records.clone().unwrap()) {
                let batch = batch.unwrap();
                next = BatchHeader::read(&batch).unwrap().next_offset().0;
                batches.push(batch);
            }
        }
        batches
    }
}

/// A batch as a producer sends it: the first record at offset 0.
fn batch(records: usize) -> Bytes {
    let mut encoder = BatchEncoder::new(TimestampType::CreateTime);
    for n in 0..records {
        let (offset, timestamp) = (Offset(n as i64), Timestamp(1_431_820_800_000 + n as i64));
        encoder.push(offset, timestamp, None, Some(b"a heron, seen"), std::iter::empty());
    }
    encoder.finish().unwrap()
}

/// Said to be zstd, and is not; the checksum fits.
fn undecodable(records: usize) -> Bytes {
    let mut bytes = batch(records).to_vec();
    bytes[22] |= 4;
    // CRC-32C, bit by bit: a test needs no table.
    let crc = !bytes[21..].iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & 0_u32.wrapping_sub(crc & 1)))
    });
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    bytes.into()
}

fn good() -> Vec<i64> {
    GOOD.into_iter().flatten().collect()
}

fn offsets(lines: &[Value]) -> Vec<i64> {
    lines.iter().map(|line| line["offset"].as_i64().unwrap()).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

async fn check_replays(running: &Running, when: &str) {
    let (lines, whole) = running.replay("").await;
    let (last, before) = lines.split_last().unwrap();
    assert!(!whole, "{when}: a replay that lacks messages must not look complete");
    assert_eq!(offsets(before), GOOD[0].clone().collect::<Vec<_>>(), "{when}: what came before is delivered");
    assert_eq!(last["error"]["code"], "undecodable_batch", "{when}: {last}");
    assert!(last["error"]["message"].as_str().unwrap().contains("from_offset=15"), "{when}: {last}");

    let (lines, whole) = running.replay("?undecodable=skip").await;
    assert!(whole && offsets(&lines) == good(), "{when}: {lines:?}");

    let (lines, whole) = running.replay("?undecodable=mark").await;
    let (marks, messages): (Vec<Value>, Vec<Value>) = lines.iter().cloned().partition(|line| !line["error"].is_null());
    assert!(whole && offsets(&messages) == good(), "{when}: {lines:?}");
    assert_eq!(marks.len(), 1, "{when}");
    assert_eq!(lines.iter().position(|line| *line == marks[0]), Some(GOOD[0].clone().count()), "{when}: in its place");
    assert_eq!((&marks[0]["offset"], &marks[0]["last_offset"]), (&json!(10), &json!(14)), "{when}");

    // Nothing was sent yet: a status can say it.
    for (query, status, code) in
        [("from_offset=10", 422, "undecodable_batch"), ("undecodable=mark&format=arrow", 400, "bad_request")]
    {
        let refused = running.http.get(running.url(&format!("topics/{TOPIC}/messages?{query}"))).send().await.unwrap();
        assert_eq!(refused.status(), status, "{when}: {query}");
        assert_eq!(refused.json::<Value>().await.unwrap()["error"]["code"], code, "{when}: {query}");
    }
    let stopped = running.cli(&["consume", TOPIC, "--format", "value"]).await;
    assert_eq!(stopped.status.code(), Some(1), "{when}");
    assert_eq!(text(&stopped.stdout).lines().count(), 10, "{when}");
    assert!(text(&stopped.stderr).contains("from_offset=15"), "{when}: {}", text(&stopped.stderr));
    let marked = running.cli(&["consume", TOPIC, "--format", "value", "--undecodable", "mark"]).await;
    assert!(marked.status.success(), "{when}: {}", text(&marked.stderr));
    assert_eq!(text(&marked.stdout).lines().count(), 20, "{when}");
    assert!(text(&marked.stderr).contains("last_offset=14"), "{when}: {}", text(&marked.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_cannot_be_decoded_costs_nobody_anything() {
    let running = Running::start().await;
    running.post("topics", &json!({"name": TOPIC, "partitions": 1})).await;
    let mut kafka = Kafka(TcpStream::connect(running.broker.kafka_addr()).await.unwrap());
    assert_eq!(kafka.produce(batch(10)).await, 0);
    assert_eq!(kafka.produce(undecodable(5)).await, BAD.start);
    assert_eq!(kafka.produce(batch(10)).await, BAD.end);
    let hot = kafka.fetch(BAD.start, BAD.end).await;
    assert_eq!(hot[0][17..], undecodable(5)[17..], "all but offset and leader epoch is as it was sent");
    assert_eq!(running.search().await, good());
    check_replays(&running, "hot").await;

    running.post(&format!("topics/{TOPIC}/archive?trim=true"), &json!({})).await;
    let partition = running.partition().await;
    assert_eq!((&partition["archived_through"], &partition["local_start_offset"]), (&json!(25), &json!(25)));
    assert_eq!((&partition["raw_batches"], &partition["damaged_files"]), (&json!(1), &json!(0)));
    let cold = kafka.fetch(0, 25).await;
    assert!(cold.contains(&hot[0]), "the archive gives back the same bytes");
    let count: i32 = cold.iter().map(|batch| BatchHeader::read(batch).unwrap().record_count).sum();
    assert_eq!(count, 25, "and every record around them");
    assert_eq!(running.search().await, good());
    check_replays(&running, "cold").await;

    let tier = running.get(&format!("topics/{TOPIC}/tier")).await;
    let raw = &tier["partitions"][0]["raw"];
    assert_eq!(raw.as_array().unwrap().len(), 1, "{tier}");
    let place = (&raw[0]["base_offset"], &raw[0]["last_offset"], &raw[0]["size_bytes"]);
    assert_eq!(place, (&json!(10), &json!(14), &json!(undecodable(5).len())));
    assert!(raw[0]["reason"].as_str().unwrap().contains("Zstd"), "{tier}");
    let after = running.get(&format!("topics/{TOPIC}/tier?partition=0&from_offset=15")).await;
    let after = &after["partitions"][0];
    assert_eq!((&after["raw_batches"], &after["raw"]), (&json!(1), &json!([])), "counted, but not listed");

    let line = format!("raw: {TOPIC}-0 offsets 10 to 14: ");
    let status = running.cli(&["tier", "status"]).await;
    assert!(text(&status.stdout).contains(&line), "{}", text(&status.stdout));
    let data_dir = running.dir.path().to_str().unwrap();
    let verify = running.cli(&["tier", "verify", "--data-dir", data_dir]).await;
    assert_eq!(verify.status.code(), Some(0), "{}", text(&verify.stderr));
    assert!(text(&verify.stdout).contains(&line), "{}", text(&verify.stdout));

    // The partition goes on.
    assert_eq!(kafka.produce(batch(3)).await, 25);
    running.post(&format!("topics/{TOPIC}/archive?trim=true"), &json!({})).await;
    assert_eq!(running.partition().await["archived_through"], 28);
    running.broker.shutdown().await.unwrap();
}
