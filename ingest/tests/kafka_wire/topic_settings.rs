//! What a topic's settings do to produced records: compaction, codecs, timestamps, and how they are described and
//! changed.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what goes wrong here fails the test")]

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_configs_response::DescribeConfigsResourceResult;
use kafka_protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use kafka_protocol::messages::produce_response::PartitionProduceResponse;
use kafka_protocol::messages::*;
use kafka_protocol::protocol::StrBytes;
use thermocline_ingest::clock::{Clock, SystemClock};
use thermocline_ingest::model::{Offset, Timestamp, TimestampType};
use thermocline_ingest::record::{
    BatchDecoder, BatchEncoder, BatchError, BatchHeader, Compression, recompress, split_batches,
};

use super::harness::{Broker, Client, fetch_request, fetched, produce_request};
use super::{delete_records, list_offset, name, produce};

const COMPACTED: [(&str, &str); 3] =
    [("cleanup.policy", "compact"), ("segment.bytes", "1024"), ("min.cleanable.dirty.ratio", "0")];
const CODECS: [Compression; 5] =
    [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];

fn text(value: &str) -> StrBytes {
    StrBytes::from_string(value.to_owned())
}

/// The id, or the error and its message.
async fn create_with(client: &mut Client, topic: &str, configs: &[(&str, &str)]) -> Result<uuid::Uuid, (i16, String)> {
    let config = |(key, value): &(&str, &str)| {
        CreatableTopicConfig::default().with_name(text(key)).with_value(Some(text(value)))
    };
    let wanted = CreatableTopic::default()
        .with_name(name(topic))
        .with_num_partitions(1)
        .with_replication_factor(1)
        .with_configs(configs.iter().map(config).collect());
    let request = CreateTopicsRequest::default().with_topics(vec![wanted]).with_timeout_ms(5000);
    let response: CreateTopicsResponse = client.ask(7, &request).await;
    let row = &response.topics[0];
    match row.error_code {
        0 => Ok(row.topic_id),
        code => Err((code, row.error_message.clone().unwrap_or_default().to_string())),
    }
}

/// A batch of `(key, value, timestamp)`.
fn keyed(records: &[(Option<&str>, Option<&str>, i64)], codec: Compression) -> Bytes {
    let mut encoder = BatchEncoder::new(TimestampType::CreateTime);
    for (offset, (key, value, timestamp)) in (0..).zip(records) {
        let (key, value) = (key.map(str::as_bytes), value.map(str::as_bytes));
        encoder.push(Offset(offset), Timestamp(*timestamp), key, value, std::iter::empty());
    }
    let batch = encoder.finish().unwrap();
    let header = BatchHeader::read(&batch).unwrap();
    recompress(&batch, &header, codec).unwrap().map_or(batch, Bytes::from)
}

async fn row(client: &mut Client, version: i16, topic: &str, batch: Bytes) -> PartitionProduceResponse {
    let response: ProduceResponse = client.ask(version, &produce_request(topic, -1, batch)).await;
    response.responses[0].partition_responses[0].clone()
}

/// Indexes and messages of the records at fault.
fn faults(row: &PartitionProduceResponse) -> Vec<(i32, String)> {
    let fault = |error: &produce_response::BatchIndexAndErrorMessage| {
        (error.batch_index, error.batch_index_error_message.clone().unwrap_or_default().to_string())
    };
    row.record_errors.iter().map(fault).collect()
}

/// `(offset, key, value)` of what a fetch from `offset` brings.
async fn records(client: &mut Client, topic: &str, id: uuid::Uuid, offset: i64) -> Vec<(i64, String, Option<String>)> {
    let response: FetchResponse = client.ask(11, &fetch_request(topic, id, 11, offset, 0)).await;
    let (error, bytes) = fetched(&response);
    assert_eq!(error, 0);
    let (mut records, mut decoder) = (Vec::new(), BatchDecoder::new(1 << 20));
    for batch in split_batches(bytes) {
        let owned = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let read = |record: thermocline_ingest::record::Record<'_>| -> Result<(), BatchError> {
            records.push((record.offset.0, owned(record.key.unwrap_or(b"-")), record.value.map(owned)));
            Ok(())
        };
        decoder.for_each(&batch.unwrap(), read).unwrap();
    }
    records
}

#[tokio::test]
async fn a_compacted_topic_takes_no_record_without_a_key() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    create_with(&mut client, "state", &COMPACTED).await.unwrap();
    let records = [(Some("a"), Some("1"), 1000), (None, Some("2"), 1000), (Some("b"), None, 1000), (None, None, 1000)];
    for codec in CODECS {
        let refused = row(&mut client, 9, "state", keyed(&records, codec)).await;
        assert_eq!((refused.error_code, refused.base_offset), (ResponseError::InvalidRecord.code(), -1), "{codec:?}");
        let message = refused.error_message.clone().unwrap();
        assert!(message.contains("2 records of the batch have no key"), "{message}");
        let faults = faults(&refused);
        assert_eq!(faults.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [1, 3], "{codec:?}");
        assert!(faults.iter().all(|(_, message)| message.contains("must have a key")));
    }
    // Versions that know no record errors get the code alone.
    let refused = row(&mut client, 7, "state", keyed(&records, Compression::None)).await;
    assert_eq!((refused.error_code, refused.record_errors.len()), (ResponseError::InvalidRecord.code(), 0));
    assert_eq!(produce(&mut client, 9, "state", keyed(&records[..1], Compression::Gzip)).await, (0, 0));
    create_with(&mut client, "both", &[("cleanup.policy", "compact,delete")]).await.unwrap();
    let refused = row(&mut client, 9, "both", keyed(&records, Compression::Lz4)).await;
    assert_eq!(faults(&refused).len(), 2);
}

#[tokio::test]
async fn the_newest_record_of_each_key_is_served() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    let id = create_with(&mut client, "state", &COMPACTED).await.unwrap();
    let value = "v".repeat(150);
    for n in 0..20_i64 {
        let key = format!("k{}", n % 3);
        let batch = keyed(&[(Some(&key), Some(&format!("{value}{n}")), 1000 + n)], CODECS[n as usize % 5]);
        assert_eq!(produce(&mut client, 9, "state", batch).await, (0, n));
    }
    assert_eq!(records(&mut client, "state", id, 0).await.len(), 20);
    broker.clean().await;
    let left = records(&mut client, "state", id, 0).await;
    assert!(left.len() < 12, "{left:?}");
    let newest = |key: &str| left.iter().rev().find(|(_, name, _)| name == key).map(|(offset, ..)| *offset);
    assert_eq!([newest("k0"), newest("k1"), newest("k2")], [Some(18), Some(19), Some(17)]);
    let (first, ..) = left[0];
    assert!(first > 0);
    assert_eq!(list_offset(&mut client, "state", -2).await, (0, 0, -1), "offsets do not change, nor does the start");
    assert_eq!(list_offset(&mut client, "state", -1).await, (0, 20, -1));
    assert_eq!(list_offset(&mut client, "state", 0).await, (0, first, 1000 + first), "by time, what is left");
    // A position in a hole is that of the first record after it.
    assert_eq!(records(&mut client, "state", id, 1).await, left);
    // And the end is reached.
    assert!(records(&mut client, "state", id, 20).await.is_empty());
    let restarted = broker.restart().await;
    let mut client = restarted.connect().await;
    assert_eq!(records(&mut client, "state", id, 0).await, left);
    assert_eq!(produce(&mut client, 9, "state", keyed(&[(Some("k9"), None, 1)], Compression::None)).await, (0, 20));
}

#[tokio::test]
async fn a_compacted_topic_is_neither_cut_nor_archived() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    create_with(&mut client, "state", &COMPACTED).await.unwrap();
    create_with(&mut client, "both", &[("cleanup.policy", "delete,compact")]).await.unwrap();
    let record = || keyed(&[(Some("a"), Some("1"), 1000)], Compression::None);
    for topic in ["state", "both"] {
        assert_eq!(produce(&mut client, 9, topic, record()).await, (0, 0));
    }
    assert_eq!(delete_records(&mut client, 2, "state", 0, 1).await.0, ResponseError::PolicyViolation.code());
    assert_eq!(delete_records(&mut client, 2, "both", 0, 1).await, (0, 1));
    let both = [("cleanup.policy", "compact"), ("remote.storage.enable", "true")];
    let (code, message) = create_with(&mut client, "archived", &both).await.unwrap_err();
    assert_eq!(code, ResponseError::InvalidConfig.code());
    assert!(message.contains("a compacted topic is not archived"), "{message}");
}

async fn alter(client: &mut Client, topic: &str, key: &str, value: &str) -> (i16, String) {
    let config = AlterableConfig::default().with_name(text(key)).with_value(Some(text(value)));
    let resource = AlterConfigsResource::default()
        .with_resource_type(2)
        .with_resource_name(text(topic))
        .with_configs(vec![config]);
    let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
    let response: IncrementalAlterConfigsResponse = client.ask(1, &request).await;
    let row = &response.responses[0];
    (row.error_code, row.error_message.clone().unwrap_or_default().to_string())
}

async fn described(client: &mut Client, topic: &str) -> Vec<DescribeConfigsResourceResult> {
    let resource = DescribeConfigsResource::default()
        .with_resource_type(2)
        .with_resource_name(text(topic))
        .with_configuration_keys(None);
    let request = DescribeConfigsRequest::default().with_resources(vec![resource]).with_include_synonyms(true);
    let response: DescribeConfigsResponse = client.ask(4, &request).await;
    assert_eq!(response.results[0].error_code, 0);
    response.results[0].configs.clone()
}

#[tokio::test]
async fn a_policy_changes_where_nothing_is_archived() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    create_with(&mut client, "archived", &[]).await.unwrap();
    create_with(&mut client, "local", &[("remote.storage.enable", "false")]).await.unwrap();
    let is_compacted = |rows: &[DescribeConfigsResourceResult]| {
        let value = |name: &str| rows.iter().find(|row| &*row.name == name).and_then(|row| row.value.clone()).unwrap();
        (value("cleanup.policy").to_string(), value("remote.storage.enable").to_string())
    };
    // Without a record nothing can be in the archive.
    assert_eq!(alter(&mut client, "archived", "cleanup.policy", "compact").await.0, 0);
    assert_eq!(is_compacted(&described(&mut client, "archived").await), ("compact".to_owned(), "false".to_owned()));
    assert_eq!(alter(&mut client, "archived", "cleanup.policy", "delete").await.0, 0);
    assert_eq!(is_compacted(&described(&mut client, "archived").await), ("delete".to_owned(), "true".to_owned()));
    for topic in ["archived", "local"] {
        let batch = keyed(&[(Some("a"), Some("1"), 1000)], Compression::None);
        assert_eq!(produce(&mut client, 9, topic, batch).await, (0, 0));
    }
    let (code, message) = alter(&mut client, "archived", "cleanup.policy", "compact").await;
    assert_eq!(code, ResponseError::InvalidConfig.code());
    assert!(message.contains("topic archived is archived, and its archive cannot be compacted"), "{message}");
    for policy in ["compact", "compact,delete", "delete"] {
        assert_eq!(alter(&mut client, "local", "cleanup.policy", policy).await.0, 0);
    }
}

#[tokio::test]
async fn settings_are_described_with_what_decides_about_them() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    create_with(&mut client, "state", &[("cleanup.policy", "compact"), ("min.compaction.lag.ms", "5")]).await.unwrap();
    let rows = described(&mut client, "state").await;
    let row = |name: &str| {
        let row = rows.iter().find(|row| &*row.name == name).unwrap_or_else(|| panic!("{name} is not described"));
        let synonyms =
            row.synonyms.iter().map(|s| format!("{}={}:{}", &*s.name, s.value.as_deref().unwrap(), s.source));
        (row.value.as_deref().unwrap().to_owned(), row.config_source, synonyms.collect::<Vec<_>>().join(" "))
    };
    let is = |name: &str, value: &str, source: i8, synonyms: &str| {
        assert_eq!(row(name), (value.to_owned(), source, synonyms.to_owned()));
    };
    is("cleanup.policy", "compact", 1, "cleanup.policy=compact:1 log.cleanup.policy=delete:5");
    is("min.compaction.lag.ms", "5", 1, "min.compaction.lag.ms=5:1 log.cleaner.min.compaction.lag.ms=0:5");
    is("max.compaction.lag.ms", "9223372036854775807", 5, "log.cleaner.max.compaction.lag.ms=9223372036854775807:5");
    is("delete.retention.ms", "86400000", 5, "log.cleaner.delete.retention.ms=86400000:5");
    is("min.cleanable.dirty.ratio", "0.5", 5, "log.cleaner.min.cleanable.ratio=0.5:5");
    is("compression.type", "producer", 5, "compression.type=producer:5");
    is("max.message.bytes", "1048588", 5, "message.max.bytes=1048588:5");
    is("message.timestamp.type", "CreateTime", 5, "log.message.timestamp.type=CreateTime:5");
    is("local.retention.bytes", "-2", 5, "log.local.retention.bytes=-2:5");
    is("remote.storage.enable", "false", 5, "");
    // The broker's own topic is compacted like any other.
    let offsets = described(&mut client, "__consumer_offsets").await;
    let policy = offsets.iter().find(|row| &*row.name == "cleanup.policy").unwrap();
    assert_eq!((policy.value.as_deref(), policy.config_source), (Some("compact"), 1));
}

#[tokio::test]
async fn a_topic_may_have_a_codec_of_its_own() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    for (codec, setting) in CODECS.into_iter().zip(["uncompressed", "gzip", "snappy", "lz4", "zstd"]) {
        let id = create_with(&mut client, setting, &[("compression.type", setting)]).await.unwrap();
        for (n, sent) in (0..).zip(CODECS) {
            let batch = keyed(&[(Some("a"), Some("some text, some text, some text"), 1000), (None, None, 1007)], sent);
            assert_eq!(produce(&mut client, 9, setting, batch).await, (0, 2 * n));
        }
        let response: FetchResponse = client.ask(9, &fetch_request(setting, id, 9, 0, 0)).await;
        let too_old = if codec == Compression::Zstd { ResponseError::UnsupportedCompressionType.code() } else { 0 };
        assert_eq!(fetched(&response).0, too_old, "before version 10 clients know no zstd");
        let response: FetchResponse = client.ask(11, &fetch_request(setting, id, 11, 0, 0)).await;
        let (error, bytes) = fetched(&response);
        assert_eq!(error, 0);
        for batch in split_batches(bytes.clone()) {
            assert_eq!(BatchHeader::read(&batch.unwrap()).unwrap().compression().unwrap(), codec, "{setting}");
        }
        let (mut read, mut decoder) = (Vec::new(), BatchDecoder::new(1 << 20));
        for batch in split_batches(bytes) {
            let note = |record: thermocline_ingest::record::Record<'_>| -> Result<(), BatchError> {
                read.push((record.offset.0, record.timestamp.0, record.key.is_some()));
                Ok(())
            };
            decoder.for_each(&batch.unwrap(), note).unwrap();
        }
        let expected = (0..10).map(|n| (n, if n % 2 == 0 { 1000 } else { 1007 }, n % 2 == 0));
        assert_eq!(read, expected.collect::<Vec<_>>(), "{setting}");
    }
    assert_eq!(alter(&mut client, "gzip", "compression.type", "brotli").await.0, ResponseError::InvalidConfig.code());
}

#[tokio::test]
async fn timestamps_out_of_bounds_are_told_record_by_record() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    let now = SystemClock.now().0;
    let hour = 3_600_000;
    let bounds = [("message.timestamp.before.max.ms", "3600000"), ("message.timestamp.after.max.ms", "3600000")];
    create_with(&mut client, "bounded", &bounds).await.unwrap();
    let records = [
        (None, Some("a"), now),
        (None, Some("b"), now - 2 * hour),
        (None, Some("c"), now + 2 * hour),
        (None, Some("d"), -1),
    ];
    for codec in [Compression::None, Compression::Zstd] {
        let refused = row(&mut client, 9, "bounded", keyed(&records[..3], codec)).await;
        assert_eq!(refused.error_code, ResponseError::InvalidTimestamp.code());
        assert_eq!(faults(&refused).iter().map(|(index, _)| *index).collect::<Vec<_>>(), [1, 2], "{codec:?}");
        let refused = row(&mut client, 9, "bounded", keyed(&records[..2], codec)).await;
        let faults = faults(&refused);
        assert!(faults.len() == 1 && faults[0].1.contains("message.timestamp.before.max.ms"), "{faults:?}");
    }
    assert_eq!(produce(&mut client, 9, "bounded", keyed(&records[..1], Compression::Gzip)).await, (0, 0));
    assert_eq!(produce(&mut client, 9, "bounded", keyed(&records[3..], Compression::Gzip)).await, (0, 1));
    // Where the broker sets the time, the producer's does not matter.
    assert_eq!(alter(&mut client, "bounded", "message.timestamp.type", "LogAppendTime").await.0, 0);
    let taken = row(&mut client, 9, "bounded", keyed(&records[..3], Compression::Gzip)).await;
    assert_eq!((taken.error_code, taken.base_offset), (0, 2));
    assert!((now..now + hour).contains(&taken.log_append_time_ms));
}

#[tokio::test]
async fn a_batch_is_held_to_the_size_of_its_topic() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    create_with(&mut client, "small", &[("max.message.bytes", "200")]).await.unwrap();
    let batch = |len: usize| keyed(&[(Some("a"), Some(&"v".repeat(len)), 1000)], Compression::None);
    assert_eq!(produce(&mut client, 9, "small", batch(100)).await, (0, 0));
    assert_eq!(produce(&mut client, 9, "small", batch(200)).await, (ResponseError::MessageTooLarge.code(), -1));
    assert_eq!(alter(&mut client, "small", "max.message.bytes", "400").await.0, 0);
    assert_eq!(produce(&mut client, 9, "small", batch(200)).await, (0, 1));
}
