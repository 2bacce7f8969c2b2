//! The board's doors, guarded against foreign pages.

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::origin::Guard;

/// axum middleware: refuses requests to a host name that is not known to be ours.
pub(super) async fn known_host(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    match guard.check_host(&request) {
        Ok(()) => next.run(request).await,
        Err(refused) => refused.into_response(),
    }
}

/// axum middleware: refuses what another page's script, form or link sends.
pub(super) async fn same_origin(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    match guard.check_origin(&request) {
        Ok(()) => next.run(request).await,
        Err(refused) => refused.into_response(),
    }
}
