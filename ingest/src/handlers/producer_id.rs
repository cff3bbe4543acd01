//! InitProducerId: identities for idempotent producers, never given twice, not even across restarts.

use std::ops::Range;
use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::{InitProducerIdRequest, InitProducerIdResponse, ProducerId as WireProducerId};
use parking_lot::Mutex;
use tracing::{error, info};

use super::blocking;
use crate::metadata::{MetadataError, MetadataStore};
use crate::model::ProducerId;
use crate::server::Services;

/// Ids reserved in the metadata store at once: a restart wastes at most so many, and only one in so many requests waits
/// for the disk.
const BLOCK_IDS: u64 = 1000;

/// The ids reserved and not yet given out.
#[derive(Debug, Default)]
pub struct ProducerIds {
    block: Mutex<Range<u64>>,
}

impl ProducerIds {
    /// A fresh id. Blocking where a new block must be reserved.
    fn next(&self, store: &MetadataStore) -> Result<ProducerId, MetadataError> {
        // Held while reserving, so that two requests do not reserve two blocks.
        let mut block = self.block.lock();
        if block.is_empty() {
            let first = store.reserve_producer_ids(BLOCK_IDS)?;
            *block = first..first + BLOCK_IDS;
        }
        let id = block.start;
        block.start += 1;
        // Ids are 63 bits wide on the wire; at a million a second they last 292,000 years.
        Ok(ProducerId(i64::try_from(id).unwrap_or(i64::MAX)))
    }
}

/// Gives a fresh producer id with epoch 0, also to a producer that names one it had (KIP-360).
pub async fn init_producer_id(
    services: &Arc<Services>,
    ids: &Arc<ProducerIds>,
    request: InitProducerIdRequest,
) -> InitProducerIdResponse {
    if let Some(transactional_id) = &request.transactional_id {
        return refuse(refusal_of_transactions(transactional_id));
    }
    let (ids, store) = (ids.clone(), services.metadata.clone());
    match blocking(move || ids.next(&store)).await {
        Ok(id) => InitProducerIdResponse::default().with_producer_id(WireProducerId(id.0)).with_producer_epoch(0),
        Err(failure) => {
            error!(%failure, "producer ids could not be reserved");
            // Retried by every client.
            refuse(ResponseError::CoordinatorNotAvailable)
        }
    }
}

/// Transactions are not supported. Of the codes a client expects here, TRANSACTIONAL_ID_AUTHORIZATION_FAILED is the one
/// that Java, librdkafka and franz-go all take as final and report as "you may not use transactions": any code they do not
/// expect is retried by librdkafka until its timeout, and a retriable one for ever.
fn refusal_of_transactions(transactional_id: &str) -> ResponseError {
    if transactional_id.is_empty() {
        return ResponseError::InvalidRequest;
    }
    info!(transactional_id, "producer refused: this broker has no transactions");
    ResponseError::TransactionalIdAuthorizationFailed
}

fn refuse(error: ResponseError) -> InitProducerIdResponse {
    InitProducerIdResponse::default().with_error_code(error.code()).with_producer_epoch(-1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_never_given_twice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metadata.redb");
        let mut given = Vec::new();
        for _restart in 0..3 {
            let store = MetadataStore::open(&path).unwrap();
            let ids = ProducerIds::default();
            given.extend((0..BLOCK_IDS + 10).map(|_| ids.next(&store).unwrap()));
        }
        assert!(given.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn transactional_ids_are_refused_for_good() {
        assert_eq!(refusal_of_transactions(""), ResponseError::InvalidRequest);
        let error = refusal_of_transactions("orders");
        assert_eq!(error, ResponseError::TransactionalIdAuthorizationFailed);
        assert!(!error.is_retriable());
    }
}
