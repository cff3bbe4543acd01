//! ApiVersions: what this broker speaks. The first request of every client, and the one that must never go unanswered.

use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::{ApiVersionsRequest, ApiVersionsResponse};
use tracing::debug;

use super::{RequestContext, code};
use crate::protocol::decode::Head;
use crate::protocol::encode::{self, EncodeError, Response};
use crate::protocol::versions::{self, APIS};
use crate::server::Services;

/// First version that names the client's software.
const SOFTWARE_SINCE: i16 = 3;

/// Answers the version table. No feature is finalized: a finalized `transaction.version` or `group.version` makes
/// clients switch to protocols that are not here.
pub async fn api_versions(
    _services: &Arc<Services>,
    context: &RequestContext,
    request: ApiVersionsRequest,
) -> ApiVersionsResponse {
    if context.api_version < SOFTWARE_SINCE {
        return table(None);
    }
    let (name, version) = (request.client_software_name, request.client_software_version);
    if !is_software_text(&name) || !is_software_text(&version) {
        return table(Some(ResponseError::InvalidRequest));
    }
    debug!(client_id = context.client_id, host = context.client_host, %name, %version, "client connected");
    table(None)
}

/// The answer to an ApiVersions request of a version we do not know (KIP-511): version 0 with an error and the table,
/// from which the client picks a version that we do. Nothing where the version is known.
pub(crate) fn unknown_version(head: Head) -> Result<Option<Response>, EncodeError> {
    let known = versions::find(head.api_key).is_some_and(|api| api.serves(head.api_version));
    if known {
        return Ok(None);
    }
    encode::response(head.correlation_id, 0, &table(Some(ResponseError::UnsupportedVersion))).map(Some)
}

fn table(error: Option<ResponseError>) -> ApiVersionsResponse {
    let api_keys = APIS.iter().map(|api| {
        ApiVersion::default().with_api_key(api.key as i16).with_min_version(api.min).with_max_version(api.max)
    });
    ApiVersionsResponse::default().with_error_code(code(error)).with_api_keys(api_keys.collect())
}

/// `[a-zA-Z0-9](?:[a-zA-Z0-9\-.]*[a-zA-Z0-9])?`, as KIP-511 has it.
fn is_software_text(text: &str) -> bool {
    let bytes = text.as_bytes();
    let ends_well = [bytes.first(), bytes.last()].iter().all(|end| end.is_some_and(u8::is_ascii_alphanumeric));
    ends_well && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn software_names_follow_the_pattern() {
        for good in ["librdkafka", "v2.12.1", "a", "kafka-python", "9"] {
            assert!(is_software_text(good), "{good}");
        }
        for bad in ["", "-a", "a-", "a b", "a/b", "ä", ".", "a\n"] {
            assert!(!is_software_text(bad), "{bad}");
        }
    }

    #[test]
    fn only_a_version_we_do_not_know_gets_the_special_answer() {
        let head = |api_version| Head { api_key: 18, api_version, correlation_id: 3 };
        for known in 0..=4 {
            assert!(unknown_version(head(known)).unwrap().is_none());
        }
        for unknown in [-1, 5, i16::MAX] {
            assert!(unknown_version(head(unknown)).unwrap().is_some());
        }
    }
}
