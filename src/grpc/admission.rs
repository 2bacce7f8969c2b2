//! Who is let in: every call but a question of health has to come from somebody.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use tokio::sync::Semaphore;

use super::status::{overloaded, unauthenticated};
use crate::auth::{Caller, Tokens};

/// Load balancers ask for health, and carry no token. Reflection needs one: to those who have none, there is nothing
/// here that could be of use.
const OPEN: &str = "/grpc.health.v1.Health/";

/// What every call has to pass.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    tokens: Arc<Tokens>,
    /// Calls that are under way at once. A stream is one until it begins: it has limits of its own.
    calls: Arc<Semaphore>,
}

impl Gate {
    pub(super) fn new(tokens: Arc<Tokens>, max_calls: usize) -> Self {
        Self { tokens, calls: Arc::new(Semaphore::new(max_calls)) }
    }
}

/// axum middleware: refuses, or puts the [`Caller`] into the request's extensions.
pub(super) async fn admit(State(gate): State<Gate>, mut request: Request, next: Next) -> Response {
    if request.uri().path().starts_with(OPEN) {
        return next.run(request).await;
    }
    let Ok(_place) = gate.calls.try_acquire() else {
        metrics::counter!("leadfold_calls_shed_total").increment(1);
        return overloaded().into_http();
    };
    match gate.tokens.authenticate(request.headers()) {
        Ok(caller) => drop(request.extensions_mut().insert(caller)),
        Err(denied) => {
            metrics::counter!("leadfold_unauthenticated_total", "listener" => "grpc").increment(1);
            return unauthenticated(denied).into_http();
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
