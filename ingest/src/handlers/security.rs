//! What is asked about access on a broker that has no authorizer, no quotas and no users.

use std::collections::HashSet;
use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_acls_response::AclCreationResult;
use kafka_protocol::messages::delete_acls_response::DeleteAclsFilterResult;
use kafka_protocol::messages::describe_user_scram_credentials_response::DescribeUserScramCredentialsResult;
use kafka_protocol::messages::{
    CreateAclsRequest, CreateAclsResponse, DeleteAclsRequest, DeleteAclsResponse, DescribeAclsRequest,
    DescribeAclsResponse, DescribeClientQuotasRequest, DescribeClientQuotasResponse,
    DescribeUserScramCredentialsRequest, DescribeUserScramCredentialsResponse,
};
use kafka_protocol::protocol::StrBytes;

use super::{RequestContext, text};
use crate::server::Services;

const NO_AUTHORIZER: ResponseError = ResponseError::SecurityDisabled;
const NO_AUTHORIZER_TEXT: &str = "this broker has no authorizer; everyone may do everything";

pub async fn describe_acls(
    _services: &Arc<Services>,
    _context: &RequestContext,
    _request: DescribeAclsRequest,
) -> DescribeAclsResponse {
    DescribeAclsResponse::default().with_error_code(NO_AUTHORIZER.code()).with_error_message(reason())
}

pub async fn create_acls(
    _services: &Arc<Services>,
    _context: &RequestContext,
    request: CreateAclsRequest,
) -> CreateAclsResponse {
    let refused = AclCreationResult::default().with_error_code(NO_AUTHORIZER.code()).with_error_message(reason());
    CreateAclsResponse::default().with_results(vec![refused; request.creations.len()])
}

pub async fn delete_acls(
    _services: &Arc<Services>,
    _context: &RequestContext,
    request: DeleteAclsRequest,
) -> DeleteAclsResponse {
    let refused = DeleteAclsFilterResult::default().with_error_code(NO_AUTHORIZER.code()).with_error_message(reason());
    DeleteAclsResponse::default().with_filter_results(vec![refused; request.filters.len()])
}

/// Nothing is limited, whomever the filter means.
pub async fn describe_client_quotas(
    _services: &Arc<Services>,
    _context: &RequestContext,
    _request: DescribeClientQuotasRequest,
) -> DescribeClientQuotasResponse {
    DescribeClientQuotasResponse::default().with_error_message(None).with_entries(Some(Vec::new()))
}

/// Nobody has credentials: whoever is named does not exist, and of all users there are none.
pub async fn describe_user_scram_credentials(
    _services: &Arc<Services>,
    _context: &RequestContext,
    request: DescribeUserScramCredentialsRequest,
) -> DescribeUserScramCredentialsResponse {
    let users = request.users.unwrap_or_default();
    let mut seen = HashSet::new();
    let repeated = users.iter().map(|user| &user.name).filter(|name| !seen.insert(*name));
    let twice: HashSet<StrBytes> = repeated.cloned().collect();
    let mut told = HashSet::new();
    let rows = users.into_iter().filter(|user| told.insert(user.name.clone())).map(|user| {
        let (error, message) = if twice.contains(&user.name) {
            (ResponseError::DuplicateResource, "the request names this user more than once")
        } else {
            (ResponseError::ResourceNotFound, "this broker has no SCRAM credentials")
        };
        DescribeUserScramCredentialsResult::default()
            .with_user(user.name)
            .with_error_code(error.code())
            .with_error_message(Some(text(message)))
    });
    DescribeUserScramCredentialsResponse::default().with_error_message(None).with_results(rows.collect())
}

fn reason() -> Option<StrBytes> {
    Some(StrBytes::from_static_str(NO_AUTHORIZER_TEXT))
}
