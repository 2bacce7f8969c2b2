//! The board: a page that shows a workspace's leads live.
//!
//! The page is a client like any other. It calls `LeadService` by gRPC-Web, with the same tokens, limits and promises,
//! from the origin it was loaded from: only what reads is there, and no other page gets at it.

mod assets;
mod guard;
mod schema;

use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use axum::routing::post;
use axum::{Json, Router};
use serde_json::json;
use tower::ServiceExt;

use crate::grpc;
use crate::origin::Guard;

/// What the page calls. A page that only looks can be left open on a wall.
const CALLS: [&str; 5] = ["GetLead", "ListLeads", "ListActivities", "ListDocuments", "WatchLeads"];

/// Probes and scrapers of the admin listener have no certificates, so it cannot ask for them.
const NEEDS_CERTIFICATE: &str =
    "calls need a client certificate (--grpc-client-ca), which this listener asks nobody for: call the gRPC listener";

/// Whether this is the path of a call that the page makes.
pub fn is_call(path: &str) -> bool {
    let name = path.strip_prefix('/').and_then(|path| path.strip_prefix(grpc::SERVICE_NAME)?.strip_prefix('/'));
    name.is_some_and(|name| CALLS.contains(&name))
}

/// How the board is served.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Keeps foreign pages out.
    pub guard: Guard,
    /// Whether callers have to show a certificate, which the admin listener asks nobody for: then there are no calls here.
    pub needs_certificate: bool,
    /// The port of the webhooks, for the command that the page shows to those who have no leads yet.
    pub webhook_port: u16,
}

/// The page and the calls that it makes, for the admin listener. `grpc` is what the gRPC listener serves.
///
/// # Errors
/// The API's descriptors are broken: then this program was built wrongly.
pub fn routes(grpc: Router, settings: Settings) -> anyhow::Result<Router> {
    let calls = grpc::web::routes(grpc, &[], None, settings.webhook_port)?;
    let call = if settings.needs_certificate {
        post(async || (StatusCode::FORBIDDEN, Json(json!({ "error": NEEDS_CERTIFICATE }))))
    } else {
        post(async move |request: Request| calls.oneshot(request).await.into_response())
    };
    let calls = CALLS.iter().fold(Router::new(), |router, name| router.route(&format!("/{}/{name}", grpc::SERVICE_NAME), call.clone()));
    let calls = calls.route_layer(from_fn_with_state(settings.guard.clone(), guard::same_origin));
    let known_host = from_fn_with_state(settings.guard, guard::known_host);
    Ok(assets::routes(settings.webhook_port)?.merge(calls).route_layer(known_host))
}
