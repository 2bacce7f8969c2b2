//! The HTTP edge: webhooks in, one JSON line out.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde::Serialize;
use tokio::time::timeout;

use crate::event::{self, Refusal};
use crate::fold::{self, Folded, MAX_ID_BYTES, Receipt};
use crate::store::{Outcome, Store, StoreError};
use crate::time::Timestamp;

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// What a sender is told to wait when nothing can take its event.
const RETRY_AFTER: &str = "2";

/// What the routes need.
#[derive(Clone)]
struct Intake {
    store: Arc<dyn Store>,
    max_body_bytes: usize,
}

/// The routes of the webhook listener. `noop` adds a route that does nothing, to measure against.
pub fn routes(store: Arc<dyn Store>, max_body_bytes: usize, noop: bool) -> Router {
    let routes =
        Router::new().route("/webhooks/omniai", post(receive)).route("/webhooks/omniai/{workspace_id}", post(receive_for_workspace));
    let routes = if noop { routes.route("/noop", post(async |_: axum::body::Bytes| "{}")) } else { routes };
    routes
        .fallback(async || Answer::refused(StatusCode::NOT_FOUND, Refusal::body("no such path: post events to /webhooks/omniai")))
        .with_state(Intake { store, max_body_bytes })
}

async fn receive(State(intake): State<Intake>, request: Request<Body>) -> Answer {
    intake.receive(None, request).await
}

async fn receive_for_workspace(State(intake): State<Intake>, Path(workspace_id): Path<String>, request: Request<Body>) -> Answer {
    if workspace_id.len() > MAX_ID_BYTES {
        return Answer::refused(
            StatusCode::BAD_REQUEST,
            Refusal::body(format!("the workspace in the URL is longer than {MAX_ID_BYTES} bytes")),
        );
    }
    intake.receive(Some(&workspace_id), request).await
}

impl Intake {
    async fn receive(&self, workspace_id: Option<&str>, request: Request<Body>) -> Answer {
        let received = Timestamp::now();
        if !is_json(request.headers()) {
            return Answer::refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, Refusal::body("the content type is not application/json"));
        }
        let body = match timeout(BODY_TIMEOUT, self.body(request)).await {
            Ok(Ok(body)) => body,
            Ok(Err(answer)) => return answer,
            Err(_) => return Answer::refused(StatusCode::REQUEST_TIMEOUT, Refusal::body("the body did not arrive in time")),
        };
        let event = match event::parse(&body) {
            Ok(event) => event,
            Err(refusal) => return Answer::refused(StatusCode::BAD_REQUEST, refusal).of("invalid"),
        };
        let label = event.label();
        let change = match fold::fold(&event, Receipt { at: received, workspace_id }) {
            Ok(Folded::Change(change)) => change,
            Ok(Folded::UnknownEvent(name)) => {
                return Answer::taken(Status { reason: Some(format!("unknown event {name:.100}")), ..Status::new("ignored") }).of(label);
            }
            Err(refusal) => return Answer::refused(StatusCode::BAD_REQUEST, refusal).of(label),
        };
        let lead_id = change.lead_id.clone();
        let status = |status, version: Option<u64>, reason: Option<&str>| {
            let version = version.map(|version| version.to_string());
            Answer::taken(Status { status, lead_id: Some(lead_id), version, reason: reason.map(str::to_owned) })
        };
        let answer = match self.store.apply(*change).await {
            Ok(Outcome::Applied { version }) => status("applied", Some(version), None),
            Ok(Outcome::Duplicate { version }) => status("duplicate", Some(version), None),
            Ok(Outcome::Deleted) => status("ignored", None, Some("the lead was deleted")),
            Ok(Outcome::TooOld) => status("ignored", None, Some("older than the history that is kept of this lead")),
            Err(StoreError::OtherWorkspace) => {
                Answer::refused(StatusCode::CONFLICT, Refusal::field("workspaceId", "the lead belongs to another workspace"))
            }
            Err(error) => {
                tracing::warn!(%error, "an event could not be taken");
                let mut answer =
                    Answer::refused(StatusCode::SERVICE_UNAVAILABLE, Refusal::body("the event cannot be taken now: send it again later"));
                answer.retry = true;
                answer
            }
        };
        answer.of(label)
    }

    async fn body(&self, request: Request<Body>) -> Result<axum::body::Bytes, Answer> {
        let too_large =
            || Answer::refused(StatusCode::PAYLOAD_TOO_LARGE, Refusal::body(format!("the body is over {} bytes", self.max_body_bytes)));
        let told = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        if told.is_some_and(|length| length > self.max_body_bytes) {
            return Err(too_large());
        }
        axum::body::to_bytes(request.into_body(), self.max_body_bytes).await.map_err(|error| {
            // axum does not say which it was, but its source does.
            let over = std::error::Error::source(&error).is_some_and(|source| source.is::<http_body_util::LengthLimitError>());
            if over { too_large() } else { Answer::refused(StatusCode::BAD_REQUEST, Refusal::body("the body ended before its end")) }
        })
    }
}

/// `application/json`, with any parameter, or a type that ends in `+json`.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) else { return false };
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// What was taken, for the sender.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    lead_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl Status {
    const fn new(status: &'static str) -> Self {
        Self { status, lead_id: None, version: None, reason: None }
    }
}

/// An answer: one map from what became of an event to a status and a JSON line.
#[derive(Debug)]
struct Answer {
    code: StatusCode,
    body: Result<Status, Refusal>,
    event: &'static str,
    retry: bool,
}

impl Answer {
    const fn taken(status: Status) -> Self {
        Self { code: StatusCode::OK, body: Ok(status), event: "none", retry: false }
    }

    const fn refused(code: StatusCode, refusal: Refusal) -> Self {
        Self { code, body: Err(refusal), event: "none", retry: false }
    }

    /// Says which event it was, for the metrics.
    const fn of(mut self, event: &'static str) -> Self {
        self.event = event;
        self
    }
}

#[derive(Serialize)]
struct Refused<'a> {
    error: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'a str>,
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let (result, line) = match &self.body {
            Ok(status) => (status.status, serde_json::to_vec(status)),
            Err(refusal) => ("refused", serde_json::to_vec(&Refused { error: &refusal.error, field: refusal.field.as_deref() })),
        };
        metrics::counter!("leadfold_webhooks_total", "event" => self.event, "result" => result).increment(1);
        // Strings always serialize.
        let mut line = line.unwrap_or_default();
        line.push(b'\n');
        let mut response = (self.code, line).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self.retry {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
        }
        response
    }
}
