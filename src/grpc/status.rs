//! The one map from failures to gRPC statuses, with `google.rpc` details.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::auth::{Denied, Standing};
use crate::store::StoreError;

/// Whose reasons these are, in every `ErrorInfo`.
const DOMAIN: &str = "leadfold";
/// The reason of statuses that say that too much is under way.
const OVERLOADED: &str = "OVERLOADED";

fn details(reason: &str) -> ErrorDetails {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, DOMAIN, HashMap::<String, String>::new());
    details
}

/// A field of the request is wrong.
pub(super) fn invalid(field: &str, description: impl Into<String>) -> Status {
    let description = description.into();
    let mut details = details("INVALID_FIELD");
    details.add_bad_request_violation(field, &description);
    Status::with_error_details(Code::InvalidArgument, format!("{field}: {description}"), details)
}

/// There is no such lead, or not for this caller.
pub(super) fn not_found(lead_id: &str) -> Status {
    let mut details = details("LEAD_NOT_FOUND");
    details.set_resource_info(
        "leadfold.v1.Lead",
        lead_id,
        "",
        "no event has named this lead, or it was deleted, or it is of a workspace that this token does not see",
    );
    Status::with_error_details(Code::NotFound, "lead not found", details)
}

/// Leads of this workspace are not for this caller, whether there are any or not.
pub(super) fn no_workspace(workspace_id: &str) -> Status {
    let mut details = details("WORKSPACE_NOT_FOUND");
    details.set_resource_info("leadfold.v1.Workspace", workspace_id, "", "this token does not see the workspace, if there is one");
    Status::with_error_details(Code::NotFound, "no such workspace, or not for this token", details)
}

/// The caller may only read.
pub(super) fn read_only() -> Status {
    Status::with_error_details(Code::PermissionDenied, "this token may not delete", details("TOKEN_IS_READ_ONLY"))
}

/// The caller does not see every workspace.
pub(super) fn all_workspaces_only() -> Status {
    let message = "this token does not see all workspaces: dead letters may be of any";
    Status::with_error_details(Code::PermissionDenied, message, details("TOKEN_OF_SOME_WORKSPACES"))
}

/// There are none to speak of.
pub(super) fn no_dead_letters() -> Status {
    let message = "this instance keeps no dead letters: see its --dead-letter-max";
    Status::with_error_details(Code::FailedPrecondition, message, details("NO_DEAD_LETTERS"))
}

/// It is not known who calls.
pub(super) fn unauthenticated(denied: Denied) -> Status {
    let reason = match denied {
        Denied::Missing => "TOKEN_MISSING",
        Denied::Malformed => "TOKEN_MALFORMED",
        Denied::Unknown => "TOKEN_UNKNOWN",
    };
    Status::with_error_details(Code::Unauthenticated, denied.to_string(), details(reason))
}

/// Why a stream ends whose caller's token is not what it was; none if it is.
pub(super) fn fallen(standing: Standing) -> Option<Status> {
    match standing {
        Standing::Good => None,
        Standing::Changed => Some(unavailable("TOKEN_CHANGED", "the token's rights have changed: call again", Duration::from_millis(200))),
        Standing::Revoked => Some(Status::with_error_details(Code::Unauthenticated, "the token was revoked", details("TOKEN_REVOKED"))),
    }
}

/// Try again, after a while that differs for each caller.
pub(super) fn unavailable(reason: &str, message: impl Into<String>, after: Duration) -> Status {
    let mut details = details(reason);
    details.set_retry_info(Some(after.mul_f64(rand::random_range(0.5..1.5))));
    Status::with_error_details(Code::Unavailable, message, details)
}

/// The server is about to stop.
pub(super) fn draining() -> Status {
    unavailable("SERVER_DRAINING", "the server is shutting down: call again with the last version as after_version", Duration::from_secs(1))
}

/// The connection has reached its age.
pub(super) fn aged() -> Status {
    let message = "the connection has reached its age: call again with the last version as after_version, on another one";
    unavailable("CONNECTION_AGED", message, Duration::from_millis(200))
}

/// More calls are under way than can be done.
pub(super) fn overloaded() -> Status {
    unavailable(OVERLOADED, "too many calls are under way (--max-requests-in-flight)", Duration::from_secs(2))
}

/// One connection has as many calls under way as it may.
pub(super) fn connection_overloaded() -> Status {
    let message = format!("this connection has its {} calls under way: wait for some, or open another", crate::listener::CALLS);
    unavailable(OVERLOADED, message, Duration::from_secs(1))
}

/// One connection has as many watches as it may.
pub(super) fn connection_watches_full(max: usize) -> Status {
    let text = format!("this connection has its {max} watches open (--max-watches-per-connection)");
    exhausted("max-watches-per-connection", text)
}

/// One connection has as many streams of health and reflection as it may.
pub(super) fn service_streams_full() -> Status {
    let text = format!("this connection has its {} streams of health and reflection open", crate::listener::SERVICE_STREAMS);
    exhausted("service-streams-per-connection", text)
}

/// Whether a status says that too much was under way.
pub(super) fn is_overload(status: &Status) -> bool {
    status.code() == Code::Unavailable && status.get_details_error_info().is_some_and(|info| info.reason == OVERLOADED)
}

/// There is no such rpc here.
pub(super) fn unknown_rpc(path: &str) -> Status {
    let message = format!("there is no rpc {path:.200} in this version of leadfold");
    Status::with_error_details(Code::Unimplemented, message, details("UNKNOWN_RPC"))
}

/// The rpcs are on another port.
pub(super) fn wrong_port(message: String) -> Status {
    Status::with_error_details(Code::Unimplemented, message, details("WRONG_PORT"))
}

/// The request did not arrive in time.
pub(super) fn request_late(limit: Duration) -> Status {
    let message = format!("the request was not whole within {} s of its headers", limit.as_secs());
    Status::with_error_details(Code::DeadlineExceeded, message, details("REQUEST_TOO_SLOW"))
}

/// The request ended, or broke off, in the middle of its message.
pub(super) fn request_incomplete() -> Status {
    Status::with_error_details(Code::Internal, "the request ended before its message did", details("REQUEST_INCOMPLETE"))
}

/// There is no message, or more than one: as the list of gRPC's status codes has it.
pub(super) fn wrong_message_count() -> Status {
    Status::with_error_details(Code::Unimplemented, "this call takes exactly one message", details("WRONG_MESSAGE_COUNT"))
}

/// A limit is reached.
pub(super) fn exhausted(limit: &str, description: impl Into<String>) -> Status {
    let description = description.into();
    let mut details = details("LIMIT_REACHED");
    details.add_quota_failure_violation(limit, &description);
    Status::with_error_details(Code::ResourceExhausted, description, details)
}

impl From<StoreError> for Status {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Contended => unavailable("STORE_UNAVAILABLE", error.to_string(), Duration::from_secs(1)),
            StoreError::Unavailable(why) | StoreError::Refusing(why, _) | StoreError::Misconfigured(why) => {
                unavailable("STORE_UNAVAILABLE", format!("the store is not available: {why}"), Duration::from_secs(1))
            }
            StoreError::OtherWorkspace => Self::with_error_details(Code::FailedPrecondition, error.to_string(), details("OTHER_WORKSPACE")),
            StoreError::Corrupt(_) => {
                tracing::error!(%error, "the store holds something unexpected");
                Self::with_error_details(Code::Internal, "the store holds something unexpected", details("STORE_CORRUPT"))
            }
        }
    }
}
