//! The admin edge: is it alive, is it ready, how is it doing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::json;
use tokio::time::timeout;

use crate::auth::{Tokens, guard};
use crate::store::Store;
use crate::watch::Hub;

/// How long a look at the store may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);

/// What is looked at.
#[derive(Clone)]
pub struct Health {
    store: Arc<dyn Store>,
    hub: Arc<Hub>,
    stopping: Arc<AtomicBool>,
}

impl Health {
    /// Of this store, and of who follows its feed.
    pub fn new(store: Arc<dyn Store>, hub: Arc<Hub>) -> Self {
        Self { store, hub, stopping: Arc::default() }
    }

    /// From now on it says that the server is going to end.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// What is wrong with each part; `None` where nothing is.
    pub async fn report(&self) -> [(&'static str, Option<String>); 3] {
        let store = match timeout(CHECK_TIMEOUT, self.store.check()).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("the store does not answer".to_owned()),
        };
        let silence = self.hub.silence().as_millis();
        let feed = (!self.hub.is_trusted()).then(|| format!("the change feed has been silent for {silence} ms"));
        [("store", store), ("feed", feed), ("server", self.stopping.load(Ordering::Acquire).then(|| "shutting down".to_owned()))]
    }

    /// Nothing is wrong.
    pub async fn is_ready(&self) -> bool {
        self.report().await.iter().all(|(_, wrong)| wrong.is_none())
    }
}

#[derive(Clone)]
struct Admin {
    health: Health,
    metrics: PrometheusHandle,
}

/// The routes of the admin listener. Probes need no token; `/metrics` needs one of all workspaces, unless the
/// listener is `private`: on loopback, where a scraper of the same machine needs none.
pub fn routes(health: Health, metrics: PrometheusHandle, tokens: Arc<Tokens>, private: bool) -> Router {
    let metered = Router::new().route("/metrics", get(render));
    let metered = if private {
        metered
    } else {
        metered.route_layer(from_fn(guard::require_all_workspaces)).route_layer(from_fn_with_state(tokens, guard::require_token))
    };
    Router::new().route("/livez", get(async || "ok\n")).route("/readyz", get(readyz)).merge(metered).with_state(Admin { health, metrics })
}

async fn readyz(State(admin): State<Admin>) -> impl IntoResponse {
    let report = admin.health.report().await;
    let ready = report.iter().all(|(_, wrong)| wrong.is_none());
    let parts: serde_json::Map<_, _> =
        report.into_iter().map(|(part, wrong)| (part.to_owned(), json!(wrong.unwrap_or_else(|| "ok".to_owned())))).collect();
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(json!({ "ready": ready, "parts": parts })))
}

async fn render(State(admin): State<Admin>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], admin.metrics.render())
}
