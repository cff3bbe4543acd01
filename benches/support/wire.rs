//! As much of a Kafka client as a benchmark needs: frames out, frames in.

use std::net::SocketAddr;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    CreateTopicsRequest, CreateTopicsResponse, FetchResponse, ProduceRequest, ProduceResponse, RequestHeader,
    ResponseHeader, TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::BenchResult;

pub const PRODUCE_VERSION: i16 = 9;
/// The last one that names topics.
pub const FETCH_VERSION: i16 = 12;
const CREATE_TOPICS_VERSION: i16 = 7;
/// Topics made by one request.
const CREATED_AT_ONCE: usize = 100;

pub async fn connect(addr: SocketAddr) -> BenchResult<TcpStream> {
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

pub fn topic_name(name: &str) -> TopicName {
    StrBytes::from_string(name.to_owned()).into()
}

/// A request as it goes over the wire.
pub fn frame<R: Request>(version: i16, request: &R) -> BenchResult<Bytes> {
    let header = RequestHeader::default()
        .with_request_api_key(R::KEY)
        .with_request_api_version(version)
        .with_client_id(Some(StrBytes::from_static_str("bench")));
    let mut frame = BytesMut::new();
    frame.put_i32(0);
    header.encode(&mut frame, R::header_version(version))?;
    request.encode(&mut frame, version)?;
    let length = i32::try_from(frame.len() - 4)?;
    frame[..4].copy_from_slice(&length.to_be_bytes());
    Ok(frame.freeze())
}

/// The next response.
pub async fn receive<T: Decodable + HeaderVersion>(
    read: &mut (impl AsyncRead + Unpin),
    version: i16,
) -> BenchResult<T> {
    receive_into(&mut BytesMut::new(), read, version).await
}

/// The same in memory that was used before, once nothing refers to it any more: new memory is the larger part of what
/// it costs to receive a large response.
async fn receive_into<T: Decodable + HeaderVersion>(
    buffer: &mut BytesMut,
    read: &mut (impl AsyncRead + Unpin),
    version: i16,
) -> BenchResult<T> {
    let length = usize::try_from(read.read_i32().await?)?;
    buffer.reserve(length);
    let mut rest = read.take(length as u64);
    while rest.read_buf(buffer).await? > 0 {}
    if buffer.len() < length {
        return Err("the connection ended within a response".into());
    }
    let mut frame = buffer.split().freeze();
    ResponseHeader::decode(&mut frame, T::header_version(version))?;
    let response = T::decode(&mut frame, version)?;
    if frame.has_remaining() { Err("trailing bytes in the answer".into()) } else { Ok(response) }
}

/// A request with one batch for the first partition of each topic.
pub fn produce_frame<'a>(batches: impl IntoIterator<Item = (&'a TopicName, &'a Bytes)>) -> BenchResult<Bytes> {
    let data = |(name, batch): (&TopicName, &Bytes)| {
        let partition = PartitionProduceData::default().with_index(0).with_records(Some(batch.clone()));
        TopicProduceData::default().with_name(name.clone()).with_partition_data(vec![partition])
    };
    let data = batches.into_iter().map(data).collect();
    frame(PRODUCE_VERSION, &ProduceRequest::default().with_acks(-1).with_timeout_ms(30_000).with_topic_data(data))
}

/// Reads the answer to a Produce, which must be that all is well.
pub async fn expect_ack(read: &mut (impl AsyncRead + Unpin)) -> BenchResult {
    let response: ProduceResponse = receive(read, PRODUCE_VERSION).await?;
    let mut rows = response.responses.iter().flat_map(|topic| &topic.partition_responses);
    refuse("produce", rows.find(|row| row.error_code != 0).map(|row| row.error_code))
}

/// Reads the answer to a Fetch, in which no partition may have an error. `buffer`: the connection's.
pub async fn fetched(buffer: &mut BytesMut, read: &mut (impl AsyncRead + Unpin)) -> BenchResult<FetchResponse> {
    let response: FetchResponse = receive_into(buffer, read, FETCH_VERSION).await?;
    let rows = response.responses.iter().flat_map(|topic| &topic.partitions).map(|row| row.error_code);
    refuse("fetch", rows.chain([response.error_code]).find(|code| *code != 0))?;
    Ok(response)
}

/// Creates topics of one partition.
pub async fn create_topics(addr: SocketAddr, names: &[TopicName], settings: &[(&str, &str)]) -> BenchResult {
    let mut stream = connect(addr).await?;
    let text = |text: &str| StrBytes::from_string(text.to_owned());
    let setting = |(key, value): &(&str, &str)| {
        CreatableTopicConfig::default().with_name(text(key)).with_value(Some(text(value)))
    };
    let topic = |name: &TopicName| {
        CreatableTopic::default()
            .with_name(name.clone())
            .with_num_partitions(1)
            .with_replication_factor(1)
            .with_configs(settings.iter().map(setting).collect())
    };
    for names in names.chunks(CREATED_AT_ONCE) {
        let topics = names.iter().map(topic).collect();
        let request = CreateTopicsRequest::default().with_topics(topics).with_timeout_ms(60_000);
        stream.write_all(&frame(CREATE_TOPICS_VERSION, &request)?).await?;
        let response: CreateTopicsResponse = receive(&mut stream, CREATE_TOPICS_VERSION).await?;
        refuse("create topics", response.topics.iter().map(|topic| topic.error_code).find(|code| *code != 0))?;
    }
    Ok(())
}

fn refuse(what: &str, code: Option<i16>) -> BenchResult {
    match code {
        Some(code) => Err(format!("{what} failed with error code {code}").into()),
        None => Ok(()),
    }
}
