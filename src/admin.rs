//! The admin edge: is it alive, is it ready, how is it doing.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;

use crate::auth::{Tokens, guard};
use crate::health::{Audience, Health};
use crate::telemetry::metrics::Metrics;

#[derive(Clone)]
struct Admin {
    health: Health,
    metrics: Metrics,
}

/// The routes of the admin listener. Probes need no token; `/metrics` needs one of all workspaces, unless the
/// listener is `private`: on loopback, where a scraper of the same machine needs none.
pub fn routes(health: Health, metrics: Metrics, tokens: Arc<Tokens>, private: bool) -> Router {
    let metered = Router::new().route("/metrics", get(render));
    let metered = if private {
        metered
    } else {
        metered.route_layer(from_fn(guard::require_all_workspaces)).route_layer(from_fn_with_state(tokens, guard::require_token))
    };
    Router::new().route("/livez", get(async || "ok\n")).route("/readyz", get(readyz)).merge(metered).with_state(Admin { health, metrics })
}

/// Ready for whom, and that only.
#[derive(Deserialize)]
struct Asked {
    #[serde(rename = "for")]
    audience: Option<String>,
}

async fn readyz(State(admin): State<Admin>, Query(asked): Query<Asked>) -> Response {
    let audience = match asked.audience.as_deref().map_or(Ok(Audience::default()), str::parse) {
        Ok(audience) => audience,
        Err(choice) => return (StatusCode::BAD_REQUEST, format!("{choice}\n")).into_response(),
    };
    let report = admin.health.report().await;
    let status = if report.is_ready(audience) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(report.to_json(audience))).into_response()
}

async fn render(State(admin): State<Admin>) -> impl IntoResponse {
    admin.health.measure();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], admin.metrics.render())
}
