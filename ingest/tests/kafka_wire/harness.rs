//! A broker without a cold tier, and a client that speaks frames.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what goes wrong here fails the test")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{FetchRequest, FetchResponse, ProduceRequest, RequestHeader, ResponseHeader, TopicName};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};
use thermocline_config::{BrokerConfig, GroupsConfig, HumanDuration, KafkaConfig, LogConfig, TransactionsConfig};
use thermocline_ingest::clock::{Clock, SystemClock};
use thermocline_ingest::coordinator::GroupCoordinator;
use thermocline_ingest::coordinator::transactions::TransactionCoordinator;
use thermocline_ingest::log::{HotLog, Partition};
use thermocline_ingest::metadata::MetadataStore;
use thermocline_ingest::metrics::IngestMetrics;
use thermocline_ingest::model::{Offset, Timestamp, TimestampType};
use thermocline_ingest::read::{BatchRun, LogReader, ReadError, ReadRange, SendRun, TimestampedOffset};
use thermocline_ingest::record::BatchEncoder;
use thermocline_ingest::server::{Services, serve};
use thermocline_ingest::topics::Topics;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Reads the hot log and nothing else. Panics on the topic [`PANICS`], as a handler with a bug would.
struct HotReader;

pub const PANICS: &str = "panics";

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[async_trait]
impl LogReader for HotReader {
    async fn read(&self, partition: &Arc<Partition>, range: ReadRange) -> Result<BatchRun, ReadError> {
        let partition = partition.clone();
        blocking(move || partition.read(&range)).await
    }
    async fn read_to_send(
        &self,
        partition: &Arc<Partition>,
        range: ReadRange,
        files_max: usize,
    ) -> Result<SendRun, ReadError> {
        let partition = partition.clone();
        blocking(move || partition.read_to_send(&range, files_max)).await
    }
    async fn offset_for_timestamp(
        &self,
        partition: &Arc<Partition>,
        timestamp: Timestamp,
    ) -> Result<Option<TimestampedOffset>, ReadError> {
        let partition = partition.clone();
        blocking(move || partition.offset_for_timestamp(timestamp)).await
    }
    async fn max_timestamp(&self, partition: &Arc<Partition>) -> Result<Option<TimestampedOffset>, ReadError> {
        assert_ne!(partition.topic_partition().topic.as_str(), PANICS);
        let partition = partition.clone();
        blocking(move || partition.max_timestamp()).await
    }
}

/// A broker on a free port of loopback, its data in a folder that goes with it.
pub struct Broker {
    address: std::net::SocketAddr,
    shutdown: CancellationToken,
    server: JoinHandle<std::io::Result<()>>,
    /// Open for as long as some task has it.
    metadata: Weak<MetadataStore>,
    log: Arc<HotLog>,
    pub metrics: Arc<IngestMetrics>,
    free: Arc<AtomicU64>,
    dir: tempfile::TempDir,
}

impl Broker {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub async fn start_with(adapt: impl FnOnce(&mut KafkaConfig)) -> Self {
        Self::start_on(tempfile::tempdir().unwrap(), adapt, Arc::new(AtomicU64::new(u64::MAX))).await
    }

    /// On a disk with so many bytes free.
    pub async fn start_with_free_space(bytes: Arc<AtomicU64>) -> Self {
        Self::start_on(tempfile::tempdir().unwrap(), |_| {}, bytes).await
    }

    async fn start_on(dir: tempfile::TempDir, adapt: impl FnOnce(&mut KafkaConfig), free: Arc<AtomicU64>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let metrics = Arc::new(IngestMetrics::new(&prometheus::Registry::new()).unwrap());
        let metadata = Arc::new(MetadataStore::open(&dir.path().join("metadata.redb")).unwrap());
        let probe = free.clone();
        let log = HotLog::open_on(
            dir.path().join("log"),
            LogConfig::default(),
            clock.clone(),
            metrics.clone(),
            Box::new(move || Ok(probe.load(Ordering::Relaxed))),
        );
        let log = log.unwrap();
        let topics = Arc::new(Topics::open(metadata.clone(), log.clone(), LogConfig::default()).unwrap());
        let groups = GroupsConfig { initial_rebalance_delay: HumanDuration::millis(0), ..GroupsConfig::default() };
        let groups = GroupCoordinator::open(groups, topics.clone(), clock.clone()).await.unwrap();
        let transactions = TransactionCoordinator::open(
            TransactionsConfig::default(),
            topics.clone(),
            groups.clone(),
            metadata.clone(),
            clock.clone(),
        );
        let transactions = transactions.await.unwrap();
        let mut kafka = KafkaConfig::default();
        adapt(&mut kafka);
        let services = Arc::new(Services {
            kafka,
            broker: BrokerConfig::default(),
            cluster_id: metadata.cluster_id().unwrap(),
            topics,
            reader: Arc::new(HotReader),
            groups,
            transactions: transactions.clone(),
            clock,
            metrics: metrics.clone(),
            advertised: (address.ip().to_string(), address.port()),
        });
        let shutdown = CancellationToken::new();
        tokio::spawn(transactions.run(shutdown.clone()));
        let server = tokio::spawn(serve(listener, services, shutdown.clone()));
        Self { address, shutdown, server, metadata: Arc::downgrade(&metadata), log, metrics, free, dir }
    }

    /// Compacts what is due.
    pub async fn clean(&self) {
        let log = self.log.clone();
        blocking(move || log.clean(&|| false)).await;
    }

    pub async fn connect(&self) -> Client {
        Client { stream: TcpStream::connect(self.address).await.unwrap(), next_correlation_id: 1 }
    }

    /// Does what is done from time to time: retention, above all.
    pub async fn maintain(&self) {
        let log = self.log.clone();
        blocking(move || log.maintain()).await;
    }

    /// Names of the log files of a topic's first partition.
    pub fn segments(&self, topic: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.dir.path().join("log").join(format!("{topic}-0"))) else {
            return Vec::new();
        };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".log")).collect()
    }

    /// Shuts the broker down and waits until it is.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.server.await.unwrap().unwrap();
    }

    /// Shuts the broker down and starts another on its data.
    pub async fn restart(self) -> Self {
        let Self { shutdown, server, metadata, log, free, dir, .. } = self;
        shutdown.cancel();
        server.await.unwrap().unwrap();
        log.close().unwrap();
        drop(log);
        while metadata.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
        Self::start_on(dir, |_| {}, free).await
    }
}

/// One connection.
pub struct Client {
    stream: TcpStream,
    next_correlation_id: i32,
}

impl Client {
    /// Sends a request and returns its correlation id.
    pub async fn send<R: Request>(&mut self, version: i16, request: &R) -> i32 {
        let correlation_id = self.next_correlation_id;
        self.next_correlation_id += 1;
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY)
            .with_request_api_version(version)
            .with_correlation_id(correlation_id)
            .with_client_id(Some(StrBytes::from_static_str("wire-test")));
        let mut body = BytesMut::new();
        header.encode(&mut body, R::header_version(version)).unwrap();
        request.encode(&mut body, version).unwrap();
        let mut frame = BytesMut::with_capacity(body.len() + 4);
        frame.put_i32(body.len() as i32);
        frame.put(body);
        self.send_raw(&frame).await;
        correlation_id
    }

    pub async fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// Reads the length of the next response and leaves the rest.
    pub async fn receive_length(&mut self) -> usize {
        usize::try_from(self.stream.read_i32().await.unwrap()).unwrap()
    }

    /// The rest of a response of which [`Self::receive_length`] has read the length.
    pub async fn receive_rest<T: Decodable + HeaderVersion>(&mut self, version: i16, length: usize) -> T {
        let mut frame = vec![0; length];
        self.stream.read_exact(&mut frame).await.unwrap();
        let mut frame = Bytes::from(frame);
        ResponseHeader::decode(&mut frame, T::header_version(version)).unwrap();
        let response = T::decode(&mut frame, version).unwrap();
        assert!(!frame.has_remaining(), "trailing bytes");
        response
    }

    /// The next response, which must be the one to `correlation_id`.
    pub async fn receive<T: Decodable + HeaderVersion>(&mut self, version: i16, correlation_id: i32) -> T {
        self.try_receive(version, correlation_id).await.expect("the connection was closed")
    }

    /// The next response, or nothing where the connection ends.
    pub async fn try_receive<T: Decodable + HeaderVersion>(&mut self, version: i16, correlation_id: i32) -> Option<T> {
        let length = self.stream.read_i32().await.ok()?;
        let mut frame = vec![0; usize::try_from(length).unwrap()];
        self.stream.read_exact(&mut frame).await.unwrap();
        let mut frame = Bytes::from(frame);
        let header = ResponseHeader::decode(&mut frame, T::header_version(version)).unwrap();
        assert_eq!(header.correlation_id, correlation_id);
        let response = T::decode(&mut frame, version).unwrap();
        assert!(!frame.has_remaining(), "trailing bytes");
        Some(response)
    }

    pub async fn ask<R: Request>(&mut self, version: i16, request: &R) -> R::Response {
        let correlation_id = self.send(version, request).await;
        self.receive(version, correlation_id).await
    }

    /// The broker closes the connection without a further byte.
    pub async fn expect_close(&mut self) {
        let mut byte = [0];
        // Closed with unread bytes of ours, the socket is reset.
        assert!(matches!(self.stream.read(&mut byte).await, Ok(0) | Err(_)));
    }
}

/// One batch with a record per value, all of one timestamp.
pub fn batch(values: &[&str], timestamp: i64) -> Bytes {
    let mut encoder = BatchEncoder::new(TimestampType::CreateTime);
    for (offset, value) in values.iter().enumerate() {
        let headers = std::iter::empty();
        encoder.push(Offset(offset as i64), Timestamp(timestamp), None, Some(value.as_bytes()), headers);
    }
    encoder.finish().unwrap()
}

pub fn produce_request(topic: &str, acks: i16, batch: Bytes) -> ProduceRequest {
    let partition = PartitionProduceData::default().with_records(Some(batch));
    let data = TopicProduceData::default()
        .with_name(TopicName(StrBytes::from_string(topic.to_owned())))
        .with_partition_data(vec![partition]);
    ProduceRequest::default().with_acks(acks).with_timeout_ms(30_000).with_topic_data(vec![data])
}

pub fn fetch_request(topic: &str, id: Uuid, version: i16, offset: i64, max_wait_ms: i32) -> FetchRequest {
    let partition = FetchPartition::default().with_fetch_offset(offset).with_partition_max_bytes(1 << 20);
    let wanted = FetchTopic::default().with_partitions(vec![partition]);
    let wanted = if version >= 13 {
        wanted.with_topic_id(id)
    } else {
        wanted.with_topic(TopicName(StrBytes::from_string(topic.to_owned())))
    };
    FetchRequest::default()
        .with_max_wait_ms(max_wait_ms)
        .with_min_bytes(1)
        .with_max_bytes(1 << 20)
        .with_topics(vec![wanted])
}

/// Error code and record bytes of the one partition.
pub fn fetched(response: &FetchResponse) -> (i16, Bytes) {
    let partition = &response.responses[0].partitions[0];
    (partition.error_code, partition.records.clone().unwrap())
}
