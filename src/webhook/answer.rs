//! What the sender is told: one map from what became of an event to a status and a JSON line.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::auth::Stranger;
use super::load::Overload;
use super::observe;
use crate::event::Refusal;
use crate::intake::{NotTaken, Taken};

/// Seconds that a sender is told to wait when nothing can take its event. All come back at different times.
const RETRY_AFTER: std::ops::RangeInclusive<u64> = 1..=5;

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

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    code: StatusCode,
    body: Result<Status, Refusal>,
    event: &'static str,
    /// Seconds to wait, if it is worth to come back.
    retry: Option<u64>,
}

impl Answer {
    /// What became of an event, for its sender.
    pub(super) fn to(fate: Result<Taken, NotTaken>) -> Self {
        let version = |version: u64| Some(version.to_string());
        let taken = |status, lead_id, version, reason| Self {
            code: StatusCode::OK,
            body: Ok(Status { status, lead_id, version, reason }),
            event: "none",
            retry: None,
        };
        match fate {
            Ok(Taken::Applied(lead_id, at)) => taken("applied", Some(lead_id), version(at), None),
            Ok(Taken::Duplicate(lead_id, at)) => taken("duplicate", Some(lead_id), version(at), None),
            Ok(Taken::Queued(lead_id)) => taken("queued", Some(lead_id), None, None),
            Ok(Taken::Ignored(lead_id, reason)) => taken("ignored", lead_id, None, Some(reason)),
            Err(NotTaken::Refused(refusal)) => Self::refused(StatusCode::BAD_REQUEST, refusal),
            Err(NotTaken::OtherWorkspace) => {
                Self::refused(StatusCode::CONFLICT, Refusal::field("workspaceId", "the lead belongs to another workspace"))
            }
            Err(NotTaken::Unavailable) => {
                let refusal = Refusal::body("the event cannot be taken now: send it again later");
                Self { retry: Some(rand::random_range(RETRY_AFTER)), ..Self::refused(StatusCode::SERVICE_UNAVAILABLE, refusal) }
            }
        }
    }

    /// A request of which nothing was taken.
    pub(super) const fn refused(code: StatusCode, refusal: Refusal) -> Self {
        Self { code, body: Err(refusal), event: "none", retry: None }
    }

    /// Somebody who did not prove that they may send.
    pub(super) fn to_stranger(stranger: Stranger) -> Self {
        metrics::counter!("leadfold_unauthenticated_total", "listener" => "http").increment(1);
        Self::refused(StatusCode::UNAUTHORIZED, Refusal::body(stranger.to_string()))
    }

    /// More than can be done, or more than one sender may ask for.
    pub(super) fn to_too_many(overload: Overload) -> Self {
        let (at, code, words, wait) = match overload {
            Overload::Server => ("server", StatusCode::SERVICE_UNAVAILABLE, "too much is under way", Duration::ZERO),
            Overload::Unconfirmed => (
                "unconfirmed",
                StatusCode::SERVICE_UNAVAILABLE,
                "too many bodies are arriving of senders that are not known yet",
                Duration::ZERO,
            ),
            Overload::Sender(wait) => ("sender", StatusCode::TOO_MANY_REQUESTS, "too many events per second from this address", wait),
            Overload::Unauthenticated(wait) => {
                let words = "too many requests per second from this address without a webhook secret or signature that is known here";
                ("unauthenticated", StatusCode::TOO_MANY_REQUESTS, words, wait)
            }
        };
        metrics::counter!("leadfold_webhooks_shed_total", "limit" => at).increment(1);
        let refusal = Refusal::body(format!("{words}: nothing was kept, send it again later"));
        Self { retry: Some(wait.as_secs() + rand::random_range(RETRY_AFTER)), ..Self::refused(code, refusal) }
    }

    /// One line for what is refused. Of what is taken there is nothing to say.
    pub(super) fn log(&self) {
        let Err(refusal) = &self.body else { return };
        let (status, event, error, field) = (self.code.as_u16(), self.event, &*refusal.error, refusal.field.as_deref().unwrap_or_default());
        tracing::warn!(status, event, field, error, "webhook refused");
    }

    /// The same answer, logged.
    pub(super) fn logged(self) -> Self {
        self.log();
        self
    }

    /// Says which event it was, for the metrics.
    pub(super) const fn of(mut self, event: &'static str) -> Self {
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
        observe::count(self.event, result);
        // Strings always serialize.
        let mut line = line.unwrap_or_default();
        line.push(b'\n');
        let mut response = (self.code, line).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}
