//! The records of `__transaction_state`, byte for byte as Kafka writes them. All integers are big-endian.
//!
//! ```text
//! key    TransactionLogKey 0        version i16 | transactional id string
//! value  TransactionLogValue 0..=1  version i16 | producer id i64 | producer epoch i16 | timeout i32 (ms) | status i8
//!                                   | count i32, -1 is null | topic... | last update i64 | start i64, -1 is none
//!        topic                      name string | count i32 | partition i32...
//! null value                        the transactional id is forgotten
//!
//! string  length i16 | UTF-8
//! version 1 is flexible: lengths and counts are unsigned varints of length + 1, and each struct ends in tagged fields
//! ```
//!
//! Written is version 0. Tags of version 1 speak of Kafka's second transaction protocol and are skipped. Schemas:
//! Kafka's `TransactionLogKey.json`, `TransactionLogValue.json`.

use bytes::{BufMut, Bytes, BytesMut};

use super::state::{Transaction, TransactionState};
use crate::coordinator::records::{Reader, RecordError, put_len, put_string};
use crate::model::{PartitionId, ProducerId, Timestamp, TopicName, TopicPartition};

const KEY_VERSION: i16 = 0;
const VALUE_VERSION: i16 = 0;
const VALUE_VERSION_MAX: i16 = 1;

/// Why a record could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("transaction status {0} is not known; 0 to 5 are")]
    Status(i8),
    #[error(transparent)]
    Topic(#[from] crate::model::TopicNameError),
}

/// TransactionLogKey version 0.
pub fn encode_key(id: &str) -> Result<Bytes, RecordError> {
    let mut out = BytesMut::with_capacity(id.len() + 4);
    out.put_i16(KEY_VERSION);
    put_string(&mut out, "transactional id", id)?;
    Ok(out.freeze())
}

pub fn decode_key(bytes: &[u8]) -> Result<String, RecordError> {
    let (_, mut reader) = Reader::versioned(bytes, "key", KEY_VERSION, i16::MAX)?;
    let id = reader.string("transactional id")?;
    reader.end()?;
    Ok(id)
}

/// TransactionLogValue version 0.
pub fn encode(transaction: &Transaction) -> Result<Bytes, RecordError> {
    let mut out = BytesMut::new();
    out.put_i16(VALUE_VERSION);
    out.put_i64(transaction.producer_id.0);
    out.put_i16(transaction.epoch);
    out.put_i32(transaction.timeout_ms);
    out.put_i8(transaction.state as i8);
    // Kafka has null here for an id that has no transaction.
    if transaction.state == TransactionState::Empty {
        out.put_i32(-1);
    } else {
        put_partitions(&mut out, transaction)?;
    }
    out.put_i64(transaction.updated.0);
    out.put_i64(transaction.started.unwrap_or(Timestamp::NONE).0);
    Ok(out.freeze())
}

fn put_partitions(out: &mut BytesMut, transaction: &Transaction) -> Result<(), RecordError> {
    let topics = transaction.partitions_by_topic();
    put_len(out, "topics", topics.len())?;
    for (topic, partitions) in topics {
        put_string(out, "topic", topic.as_str())?;
        put_len(out, "partitions", partitions.len())?;
        partitions.iter().for_each(|partition| out.put_i32(partition.0));
    }
    Ok(())
}

pub fn decode(bytes: &[u8]) -> Result<Transaction, StateError> {
    let (_, mut reader) = Reader::versioned(bytes, "transaction value", VALUE_VERSION_MAX, 1)?;
    let producer_id = ProducerId(reader.i64("producer id")?);
    let epoch = reader.i16("producer epoch")?;
    let timeout_ms = reader.i32("timeout")?;
    let [status] = reader.array("status")?.map(u8::cast_signed);
    let state = TransactionState::of(status).ok_or(StateError::Status(status))?;
    let mut transaction = Transaction { state, ..Transaction::new(producer_id, timeout_ms, Timestamp::NONE) };
    transaction.epoch = epoch;
    for _ in 0..reader.length("topics", true)?.unwrap_or(0) {
        let topic = TopicName::new(&reader.string("topic")?)?;
        for _ in 0..reader.count("partitions")? {
            let partition = PartitionId(reader.i32("partition")?);
            transaction.partitions.insert(TopicPartition::new(topic.clone(), partition));
        }
        reader.tagged_fields()?;
    }
    transaction.updated = Timestamp(reader.i64("last update")?);
    transaction.started = Some(Timestamp(reader.i64("start")?)).filter(|started| *started != Timestamp::NONE);
    reader.tagged_fields()?;
    reader.end()?;
    Ok(transaction)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Laid out by hand from Kafka's schema; they never change.
    const KEY: &[u8] = b"\0\0\0\x02tx";
    const EMPTY: &[u8] = b"\0\0\0\0\0\0\0\0\x03\xe8\0\x02\0\0\xea\x60\0\xff\xff\xff\xff\0\0\0\0\0\0\0\x09\xff\xff\xff\xff\xff\xff\xff\xff";
    const ONGOING: &[u8] =
        b"\0\0\0\0\0\0\0\0\x03\xe8\0\x02\0\0\xea\x60\x01\0\0\0\x02\0\x01a\0\0\0\x02\0\0\0\x01\0\0\0\x04\
        \0\x01b\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\x07";
    const ONGOING_1: &[u8] = b"\0\x01\0\0\0\0\0\0\x03\xe8\0\x02\0\0\xea\x60\x01\x03\x02a\x03\0\0\0\x01\0\0\0\x04\0\
        \x02b\x02\0\0\0\0\0\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\x07\x01\x02\x02\0\x02";

    fn empty() -> Transaction {
        let mut transaction = Transaction::new(ProducerId(1000), 60_000, Timestamp(9));
        transaction.epoch = 2;
        transaction
    }

    fn ongoing() -> Transaction {
        let at = |topic, partition| TopicPartition::new(TopicName::new(topic).unwrap(), PartitionId(partition));
        Transaction {
            state: TransactionState::Ongoing,
            partitions: [at("a", 1), at("a", 4), at("b", 0)].into(),
            started: Some(Timestamp(7)),
            ..empty()
        }
    }

    #[test]
    fn what_is_written_is_kafkas_format() {
        assert_eq!(encode_key("tx").unwrap(), KEY);
        assert_eq!(decode_key(KEY).unwrap(), "tx");
        assert_eq!(encode(&empty()).unwrap(), EMPTY);
        assert_eq!(encode(&ongoing()).unwrap(), ONGOING);
        assert_eq!(decode(EMPTY).unwrap(), empty());
        assert_eq!(decode(ONGOING).unwrap(), ongoing());
        assert_eq!(decode(ONGOING_1).unwrap(), ongoing());
    }

    #[test]
    fn what_is_not_a_record_is_refused() {
        for cut in 0..ONGOING.len() {
            assert!(decode(&ONGOING[..cut]).is_err(), "{cut}");
        }
        let mut later = EMPTY.to_vec();
        later[1] = 2;
        assert!(matches!(decode(&later), Err(StateError::Record(RecordError::Version { version: 2, max: 1, .. }))));
        let mut odd = EMPTY.to_vec();
        odd[16] = 9;
        assert_eq!(decode(&odd), Err(StateError::Status(9)));
        assert!(decode_key(b"\0\x01\0\x02tx").is_err());
    }

    proptest! {
        #[test]
        fn anything_else_is_an_error_and_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = (decode(&bytes), decode_key(&bytes));
        }
    }
}
