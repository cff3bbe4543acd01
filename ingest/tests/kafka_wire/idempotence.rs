//! Idempotent producers: each row of what an incoming batch is answered, and the same over restarts.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what goes wrong here fails the test")]

use bytes::Bytes;
use kafka_protocol::ResponseError;

use super::harness::{Broker, Client, batch};
use super::{create, produce};

const OUT_OF_ORDER: (i16, i64) = (ResponseError::OutOfOrderSequenceNumber.code(), -1);
const OLD_EPOCH: (i16, i64) = (ResponseError::InvalidProducerEpoch.code(), -1);

/// `count` records of producer 7.
fn sent(epoch: i16, sequence: i32, count: usize) -> Bytes {
    let mut batch = batch(&vec!["x"; count], 1000).to_vec();
    batch[43..51].copy_from_slice(&7_i64.to_be_bytes());
    batch[51..53].copy_from_slice(&epoch.to_be_bytes());
    batch[53..57].copy_from_slice(&sequence.to_be_bytes());
    let crc = crc32c::crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
    batch.into()
}

async fn send(client: &mut Client, epoch: i16, sequence: i32, count: usize) -> (i16, i64) {
    produce(client, 9, "orders", sent(epoch, sequence, count)).await
}

/// The rows that hold once epoch 3 has sent sequences 40 to 51 in six batches of two, at offsets 0 to 11.
async fn check_rows(client: &mut Client) {
    assert_eq!(send(client, 2, 52, 1).await, OLD_EPOCH, "a lower epoch");
    assert_eq!(send(client, 2, 50, 2).await, OLD_EPOCH, "even for what it might have sent");
    assert_eq!(send(client, 4, 52, 1).await, OUT_OF_ORDER, "a higher epoch that does not begin at 0");
    for n in 1..6 {
        let again = send(client, 3, 40 + 2 * n, 2).await;
        assert_eq!(again, (0, i64::from(2 * n)), "one of the last five again");
    }
    assert_eq!(send(client, 3, 40, 2).await, OUT_OF_ORDER, "older than the last five");
    assert_eq!(send(client, 3, 50, 1).await, OUT_OF_ORDER, "half of one of them");
    assert_eq!(send(client, 3, 51, 2).await, OUT_OF_ORDER, "over the end of the last one");
    assert_eq!(send(client, 3, 53, 1).await, OUT_OF_ORDER, "a gap");
    let two = [sent(3, 52, 1), sent(3, 53, 1)].concat();
    let refused = produce(client, 9, "orders", two.into()).await;
    assert_eq!(refused.0, ResponseError::InvalidRecord.code(), "two batches at once");
}

#[tokio::test]
async fn every_row_of_the_table_before_and_after_restarts() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    create(&mut client, "orders").await;
    for n in 0..6 {
        let first = send(&mut client, 3, 40 + 2 * n, 2).await;
        assert_eq!(first, (0, i64::from(2 * n)), "a producer that is not known begins anywhere");
    }
    check_rows(&mut client).await;
    // From the snapshot of a clean shutdown.
    let broker = broker.restart().await;
    let mut client = broker.connect().await;
    check_rows(&mut client).await;
    assert_eq!(send(&mut client, 3, 52, 1).await, (0, 12), "what follows");
    assert_eq!(send(&mut client, 4, 0, 1).await, (0, 13), "a higher epoch from 0");
    assert_eq!(send(&mut client, 3, 53, 1).await, OLD_EPOCH);
    assert_eq!(send(&mut client, 4, 0, 1).await, (0, 13));
    let broker = broker.restart().await;
    let mut client = broker.connect().await;
    assert_eq!(send(&mut client, 3, 53, 1).await, OLD_EPOCH, "the epoch is remembered too");
    assert_eq!(send(&mut client, 4, 1, 1).await, (0, 14));
    // Sequences go on at 0 after the last one there is.
    assert_eq!(send(&mut client, 5, 0, 1).await, (0, 15));
    broker.stop().await;
}

#[tokio::test]
async fn sequences_wrap_to_zero() {
    let broker = Broker::start().await;
    let mut client = broker.connect().await;
    create(&mut client, "orders").await;
    assert_eq!(send(&mut client, 0, i32::MAX - 1, 2).await, (0, 0));
    assert_eq!(send(&mut client, 0, 1, 1).await, OUT_OF_ORDER);
    assert_eq!(send(&mut client, 0, 0, 1).await, (0, 2));
    assert_eq!(send(&mut client, 0, i32::MAX - 1, 2).await, (0, 0), "sent again");
}
