//! Producing over the Kafka protocol, every ack durable, beside writing and syncing the same bytes to a plain file.
//! One connection, several requests in flight; rates are megabytes of record batches per second.

mod support;

use std::io::Write;
use std::time::Instant;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{ApiKey, ProduceRequest, ProduceResponse, RequestHeader, ResponseHeader};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};
use support::{BenchResult, Corpus, Table, megabytes_per_second, timed};
use thermocline::Broker;
use thermocline_config::Config;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PRODUCE_VERSION: i16 = 9;
/// Requests sent before the first answer is awaited (`max.in.flight.requests.per.connection`).
const IN_FLIGHT: usize = 5;

#[tokio::main]
async fn main() -> BenchResult {
    let corpus = Corpus::generate(support::corpus_bytes());
    let batches = corpus.batches();
    let bytes = batches.iter().map(Bytes::len).sum();
    let dir = tempfile::tempdir()?;
    let mut table = Table::default();

    let (done, took) = timed(|| write_and_sync(dir.path(), &batches));
    done?;
    let plain = megabytes_per_second(bytes, took);

    let mut config = Config::default();
    config.broker.data_dir = dir.path().join("data");
    config.kafka.listen.set_port(0);
    config.http.listen.set_port(0);
    let broker = Broker::start(config).await?;
    let topic = serde_json::json!({"name": "bench", "partitions": 1, "configs": {"search.index": "off"}});
    let topics = format!("http://{}/v1/topics", broker.http_addr());
    reqwest::Client::new().post(topics).json(&topic).send().await?.error_for_status()?;
    let start = Instant::now();
    produce(broker.kafka_addr(), &batches).await?;
    table.row(
        "produce, acks=all",
        megabytes_per_second(bytes, start.elapsed()),
        "write + fdatasync, same groups",
        plain,
    );
    broker.shutdown().await?;
    table.print("MB/s");
    Ok(())
}

/// Writes the batches, syncing as often as the producer waits.
fn write_and_sync(dir: &std::path::Path, batches: &[Bytes]) -> std::io::Result<()> {
    let mut file = std::fs::File::create(dir.join("plain"))?;
    for group in batches.chunks(IN_FLIGHT) {
        for batch in group {
            file.write_all(batch)?;
        }
        file.sync_data()?;
    }
    Ok(())
}

async fn produce(addr: std::net::SocketAddr, batches: &[Bytes]) -> BenchResult {
    let mut stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let (mut read, mut write) = stream.split();
    let mut waiting = 0;
    for batch in batches {
        if waiting == IN_FLIGHT {
            expect_ack(&mut read).await?;
            waiting -= 1;
        }
        write.write_all(&produce_frame(batch)?).await?;
        waiting += 1;
    }
    for _ in 0..waiting {
        expect_ack(&mut read).await?;
    }
    Ok(())
}

fn produce_frame(batch: &Bytes) -> BenchResult<Bytes> {
    let partition = PartitionProduceData::default().with_index(0).with_records(Some(batch.clone()));
    let topic = TopicProduceData::default()
        .with_name(StrBytes::from_static_str("bench").into())
        .with_partition_data(vec![partition]);
    let request = ProduceRequest::default().with_acks(-1).with_timeout_ms(30_000).with_topic_data(vec![topic]);
    let header = RequestHeader::default()
        .with_request_api_key(ApiKey::Produce as i16)
        .with_request_api_version(PRODUCE_VERSION)
        .with_client_id(Some(StrBytes::from_static_str("bench")));
    let mut body = BytesMut::new();
    header.encode(&mut body, 2)?;
    request.encode(&mut body, PRODUCE_VERSION)?;
    let mut frame = BytesMut::with_capacity(body.len() + 4);
    frame.put_i32(i32::try_from(body.len())?);
    frame.put(body);
    Ok(frame.freeze())
}

async fn expect_ack(read: &mut tokio::net::tcp::ReadHalf<'_>) -> BenchResult {
    let mut frame = vec![0; usize::try_from(read.read_i32().await?)?];
    read.read_exact(&mut frame).await?;
    let mut frame = Bytes::from(frame);
    ResponseHeader::decode(&mut frame, 1)?;
    let response = ProduceResponse::decode(&mut frame, PRODUCE_VERSION)?;
    let code = response
        .responses
        .iter()
        .flat_map(|topic| &topic.partition_responses)
        .map(|partition| partition.error_code)
        .find(|code| *code != 0);
    match code {
        Some(code) => Err(format!("produce failed with error code {code}").into()),
        None if frame.has_remaining() => Err("trailing bytes in the answer".into()),
        None => Ok(()),
    }
}
