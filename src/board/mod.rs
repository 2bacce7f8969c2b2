//! The board: a page that shows a workspace's leads live.
//!
//! The page is a client like any other. It calls `LeadService` by gRPC-Web, with the same tokens, limits and promises,
//! from the origin it was loaded from: only what reads is there, and no other page gets at it.

mod assets;
mod guard;
mod schema;

use axum::Router;
use axum::extract::Request;
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use axum::routing::post;
use tower::ServiceExt;

use crate::grpc;
use crate::origin::Guard;

/// What the page calls. A page that only looks can be left open on a wall.
const CALLS: [&str; 5] = ["GetLead", "ListLeads", "ListActivities", "ListDocuments", "WatchLeads"];

/// How the board is served.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Keeps foreign pages out.
    pub guard: Guard,
    /// The port of the webhooks, for the command that the page shows to those who have no leads yet.
    pub webhook_port: u16,
}

/// The page and the calls that it makes, for the admin listener. `grpc` is what the gRPC listener serves.
///
/// # Errors
/// The API's descriptors are broken: then this program was built wrongly.
pub fn routes(grpc: Router, settings: Settings) -> anyhow::Result<Router> {
    let calls = grpc::web::routes(grpc, &[], None, settings.webhook_port)?;
    let call = post(async move |request: Request| calls.oneshot(request).await.into_response());
    let calls = CALLS.iter().fold(Router::new(), |router, name| router.route(&format!("/{}/{name}", grpc::SERVICE_NAME), call.clone()));
    let calls = calls.route_layer(from_fn_with_state(settings.guard.clone(), guard::same_origin));
    let known_host = from_fn_with_state(settings.guard, guard::known_host);
    Ok(assets::routes(settings.webhook_port)?.merge(calls).route_layer(known_host))
}
