//! The admin edge: is it alive, is it ready, how is it doing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{Mutex, Semaphore};

use crate::auth::{Tokens, guard};
use crate::board;
use crate::grpc::wrong_port;
use crate::health::{Audience, Health, Report};
use crate::telemetry::metrics::Metrics;

/// How long a look at every part is good for. Probes need no token: each would cost calls of the store.
const FRESH: Duration = Duration::from_millis(100);

/// How the admin listener is served.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Only this machine reaches it: a scraper needs no token.
    pub is_private: bool,
    /// Requests that are under way at once, besides `/livez` and the calls of the board, which have limits of their own.
    pub max_requests: usize,
    /// The port of gRPC, for clients that come here by mistake.
    pub grpc_port: u16,
}

#[derive(Clone)]
struct Admin {
    health: Health,
    metrics: Metrics,
    /// What was seen last, and when. Those who ask meanwhile wait for it.
    seen: Arc<Mutex<Option<(Instant, Report)>>>,
}

/// The routes of the admin listener, with those of the board. Probes need no token; `/metrics` needs one of all
/// workspaces, unless the listener is private.
pub fn routes(health: Health, metrics: Metrics, tokens: Arc<Tokens>, board: Router, settings: Settings) -> Router {
    let metered = Router::new().route("/metrics", get(render));
    let metered = if settings.is_private {
        metered
    } else {
        metered.route_layer(from_fn(guard::require_all_workspaces)).route_layer(from_fn_with_state(tokens, guard::require_token))
    };
    let places = Arc::new(Semaphore::new(settings.max_requests));
    let limited = Router::new().route("/readyz", get(readyz)).merge(metered).route_layer(from_fn_with_state(places, admit));
    let admin = Admin { health, metrics, seen: Arc::default() };
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .merge(limited)
        .with_state(admin)
        .merge(board)
        .layer(from_fn_with_state(settings.grpc_port, only_the_board))
}

/// axum middleware: clients of gRPC are told where its port is. Only the board's calls are served here, in gRPC-Web.
async fn only_the_board(State(grpc_port): State<u16>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let is_boards = wrong_port::is_grpc_web(headers) && board::is_call(request.uri().path());
    if wrong_port::is_grpc(headers) && !is_boards && request.method() == http::Method::POST {
        return wrong_port::unimplemented(headers, "--admin-addr", grpc_port);
    }
    next.run(request).await
}

/// axum middleware: a place for each request, or a refusal.
async fn admit(State(places): State<Arc<Semaphore>>, request: Request, next: Next) -> Response {
    let Ok(_place) = places.try_acquire() else {
        let error = json!({ "error": "too many requests are under way (--max-requests-in-flight)" });
        return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], Json(error)).into_response();
    };
    next.run(request).await
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
    let report = admin.report().await;
    let status = if report.is_ready(audience) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(report.to_json(audience))).into_response()
}

async fn render(State(admin): State<Admin>) -> impl IntoResponse {
    admin.health.measure();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], admin.metrics.render())
}

impl Admin {
    async fn report(&self) -> Report {
        let mut seen = self.seen.lock().await;
        let mut report = match &*seen {
            Some((at, report)) if at.elapsed() < FRESH => report.clone(),
            _ => {
                let report = self.health.report().await;
                *seen = Some((Instant::now(), report.clone()));
                report
            }
        };
        drop(seen);
        // That it ends is known without looking, and must not be told late.
        report.server = self.health.server();
        report
    }
}
