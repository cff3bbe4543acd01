//! InitProducerId: identities for producers.

use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::{InitProducerIdRequest, InitProducerIdResponse, ProducerId as WireProducerId};
use tracing::error;

use super::transactions::as_known;
use super::{RequestContext, blocking};
use crate::coordinator::transactions::Producer;
use crate::model::ProducerId;
use crate::server::Services;

/// First version whose clients know PRODUCER_FENCED.
const FENCED_SINCE: i16 = 4;

/// A producer without transactions gets a fresh id with epoch 0, also if it names one that it had (KIP-360). One with a
/// transactional id gets the next epoch of it.
pub async fn init_producer_id(
    services: &Arc<Services>,
    context: &RequestContext,
    request: InitProducerIdRequest,
) -> InitProducerIdResponse {
    let producer = match &request.transactional_id {
        None => fresh(services).await,
        Some(id) => match expected(&request) {
            Ok(expected) => {
                services.transactions.init_producer(id.0.as_str(), request.transaction_timeout_ms, expected).await
            }
            Err(error) => Err(error),
        },
    };
    match producer {
        Ok((id, epoch)) => {
            InitProducerIdResponse::default().with_producer_id(WireProducerId(id.0)).with_producer_epoch(epoch)
        }
        Err(error) => {
            let error = as_known(context.api_version, FENCED_SINCE, error);
            InitProducerIdResponse::default().with_error_code(error.code()).with_producer_epoch(-1)
        }
    }
}

async fn fresh(services: &Arc<Services>) -> Result<Producer, ResponseError> {
    let transactions = services.transactions.clone();
    match blocking(move || transactions.fresh_producer_id()).await {
        Ok(id) => Ok((id, 0)),
        Err(failure) => {
            error!(%failure, "producer ids could not be reserved");
            // Retried by every client.
            Err(ResponseError::CoordinatorNotAvailable)
        }
    }
}

/// Who the producer was, if it says so: both parts, or none.
fn expected(request: &InitProducerIdRequest) -> Result<Option<Producer>, ResponseError> {
    match (request.producer_id.0, request.producer_epoch) {
        (-1, -1) => Ok(None),
        (id @ 0.., epoch @ 0..) => Ok(Some((ProducerId(id), epoch))),
        _ => Err(ResponseError::InvalidRequest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_producer_says_who_it_was_or_does_not() {
        let request = |id, epoch| {
            InitProducerIdRequest::default().with_producer_id(WireProducerId(id)).with_producer_epoch(epoch)
        };
        assert_eq!(expected(&InitProducerIdRequest::default()), Ok(None));
        assert_eq!(expected(&request(7, 3)), Ok(Some((ProducerId(7), 3))));
        for odd in [(7, -1), (-1, 3), (-2, -2)] {
            assert_eq!(expected(&request(odd.0, odd.1)), Err(ResponseError::InvalidRequest));
        }
    }
}
