//! What a coordinator writes into a partition: markers that end transactions, and records of its own inside of one.
//!
//! ```text
//! marker   a batch with the transactional and the control bit, one record, no sequence
//!          key    version i16 = 0 | type i16: 0 abort, 1 commit
//!          value  version i16 = 0 | coordinator epoch i32
//! ```
//! Source: KIP-98, and Kafka's `ControlRecordType.json`, `EndTxnMarker.json`. Control records of other types (Kafka has
//! some for its own replication) end nothing.

use bytes::Bytes;

use super::batch::{ATTRIBUTES, BatchError, BatchHeader, CONTROL_BIT, TRANSACTIONAL_BIT};
use super::decode::BatchDecoder;
use super::encode::BatchEncoder;
use crate::model::{Offset, Timestamp, TimestampType};

/// A marker is a few bytes; what claims more is none.
const MARKER_BYTES_MAX: usize = 1 << 10;
/// The epoch of a coordinator that is alone.
const COORDINATOR_EPOCH: i32 = 0;
/// What says that a batch is in no sequence.
const NO_SEQUENCE: i32 = -1;

/// How a transaction ends; the numbers are those of the control record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TransactionOutcome {
    Abort = 0,
    Commit = 1,
}

/// The marker with which the transaction of a producer ends in a partition; base offset 0.
pub fn encode_marker(producer_id: i64, epoch: i16, outcome: TransactionOutcome, now: Timestamp) -> Bytes {
    let mut key = [0; 4];
    key[2..].copy_from_slice(&(outcome as i16).to_be_bytes());
    let mut value = [0; 6];
    value[2..].copy_from_slice(&COORDINATOR_EPOCH.to_be_bytes());
    let mut encoder = BatchEncoder::new(TimestampType::CreateTime);
    encoder.push(Offset::ZERO, now, Some(&key), Some(&value), std::iter::empty());
    let batch = encoder.finish().unwrap_or_default();
    signed(batch, producer_id, epoch, NO_SEQUENCE, TRANSACTIONAL_BIT | CONTROL_BIT)
}

/// How a control batch ends its producer's transaction; None where it does not.
pub fn decode_marker(batch: &[u8]) -> Result<Option<TransactionOutcome>, BatchError> {
    let mut outcome = None;
    BatchDecoder::new(MARKER_BYTES_MAX).for_each::<BatchError>(batch, |record| {
        outcome = match record.key {
            Some([_, _, 0, 0, ..]) => Some(TransactionOutcome::Abort),
            Some([_, _, 0, 1, ..]) => Some(TransactionOutcome::Commit),
            _ => None,
        };
        Ok(())
    })?;
    Ok(outcome)
}

/// Makes a batch one of its producer's transaction. Its sequence is 0, always, as in Kafka: a coordinator's own batches
/// are not checked against each other.
pub fn into_transactional(batch: Bytes, producer_id: i64, epoch: i16) -> Bytes {
    signed(batch, producer_id, epoch, 0, TRANSACTIONAL_BIT)
}

fn signed(batch: Bytes, producer_id: i64, producer_epoch: i16, base_sequence: i32, bits: i16) -> Bytes {
    let Ok(header) = BatchHeader::read(&batch) else { return batch };
    let attributes = header.attributes | bits;
    let mut header = BatchHeader { attributes, producer_id, producer_epoch, base_sequence, ..header };
    let mut out = batch.to_vec();
    let Some(fixed) = out.first_chunk_mut() else { return batch };
    header.write(fixed);
    header.crc = crc32c::crc32c(&out[ATTRIBUTES.start..]);
    if let Some(fixed) = out.first_chunk_mut() {
        header.write(fixed);
    }
    Bytes::from(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::{batch_of, with_producer};

    #[test]
    fn markers_are_kafkas() {
        for (outcome, kind) in [(TransactionOutcome::Abort, 0), (TransactionOutcome::Commit, 1)] {
            let marker = encode_marker(7, 3, outcome, Timestamp(5));
            let header = BatchHeader::read(&marker).unwrap();
            assert!(header.is_control() && header.is_transactional());
            assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), (7, 3, -1));
            assert_eq!((header.record_count, header.last_offset_delta, header.max_timestamp), (1, 0, Timestamp(5)));
            assert_eq!(decode_marker(&marker).unwrap(), Some(outcome));
            // length 16 | attributes | timestamp and offset delta | key of 4 | value of 6 | no headers
            assert_eq!(&marker[61..], [32, 0, 0, 0, 8, 0, 0, 0, kind, 12, 0, 0, 0, 0, 0, 0, 0]);
        }
    }

    #[test]
    fn other_control_records_end_nothing() {
        let mut encoder = BatchEncoder::new(TimestampType::CreateTime);
        encoder.push(Offset::ZERO, Timestamp(1), Some(&[0, 0, 0, 2]), None, std::iter::empty());
        let leader_change = signed(encoder.finish().unwrap(), -1, -1, -1, CONTROL_BIT);
        assert_eq!(decode_marker(&leader_change).unwrap(), None);
        let mut damaged = encode_marker(7, 3, TransactionOutcome::Commit, Timestamp(5)).to_vec();
        damaged[70] ^= 1;
        assert!(decode_marker(&damaged).is_err());
    }

    #[test]
    fn a_coordinators_batch_carries_its_producer() {
        let plain = batch_of(&[(5, b"a"), (6, b"b")]);
        let made = into_transactional(plain.clone().into(), 7, 3);
        let mut expected = with_producer(plain, 7, 3, 0);
        expected[22] |= 0x10;
        assert_eq!(made, crate::record::testing::reseal(expected));
    }
}
