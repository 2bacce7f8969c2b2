//! Tokens on plain HTTP: the admin listener's way to ask for one.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::{Caller, Denied, Tokens};

/// axum middleware: lets in whoever has a token, and puts the [`Caller`] into the request's extensions.
pub async fn require_token(State(tokens): State<Arc<Tokens>>, mut request: Request, next: Next) -> Response {
    match tokens.authenticate(request.headers()) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(denied) => refuse(denied),
    }
}

/// axum middleware, inside of [`require_token`]: lets in whoever sees every workspace.
pub async fn require_all_workspaces(request: Request, next: Next) -> Response {
    if request.extensions().get::<Caller>().is_some_and(Caller::sees_all) {
        return next.run(request).await;
    }
    (StatusCode::FORBIDDEN, "this is for tokens of all workspaces\n").into_response()
}

/// A browser asks its user for a name, which does not matter, and a password, which is the token.
fn refuse(denied: Denied) -> Response {
    metrics::counter!("leadfold_unauthenticated_total", "listener" => "admin").increment(1);
    let mut response = (StatusCode::UNAUTHORIZED, format!("{denied}\n")).into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"leadfold\", charset=\"UTF-8\""));
    response
}
