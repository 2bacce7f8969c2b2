//! Who is let in: every call but a question of health has to come from somebody.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;

use super::status::unauthenticated;
use crate::auth::{Caller, Tokens};

/// Load balancers ask for health, and carry no token. Reflection needs one: to those who have none, there is nothing
/// here that could be of use.
const OPEN: &str = "/grpc.health.v1.Health/";

/// axum middleware: refuses, or puts the [`Caller`] into the request's extensions.
pub(super) async fn admit(State(tokens): State<Arc<Tokens>>, mut request: Request, next: Next) -> Response {
    if !request.uri().path().starts_with(OPEN) {
        match tokens.authenticate(request.headers()) {
            Ok(caller) => drop(request.extensions_mut().insert(caller)),
            Err(denied) => {
                metrics::counter!("leadfold_unauthenticated_total", "listener" => "grpc").increment(1);
                return unauthenticated(denied).into_http();
            }
        }
    }
    next.run(request).await
}

/// Who sent a request.
///
/// # Errors
/// Nobody looked: then it is nobody.
pub(super) fn caller<T>(request: &tonic::Request<T>) -> Result<Caller, tonic::Status> {
    request.extensions().get::<Caller>().cloned().ok_or_else(|| unauthenticated(crate::auth::Denied::Missing))
}
