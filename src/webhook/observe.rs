//! What is measured, traced and logged of each webhook.

use std::sync::LazyLock;
use std::time::Instant;

use axum::body::Body;
use axum::http::Request;
use axum::response::{IntoResponse, Response};
use metrics::{Counter, Histogram, counter, histogram};
use opentelemetry::KeyValue;

use super::answer::Answer;
use crate::telemetry::metrics::Family;
use crate::telemetry::traces::RequestSpan;

static WEBHOOKS: LazyLock<Family<(&'static str, &'static str), Counter>> =
    LazyLock::new(|| Family::new(|(event, result)| counter!("leadfold_webhooks_total", "event" => event, "result" => result)));

static DURATIONS: LazyLock<Family<(&'static str, u16), Histogram>> = LazyLock::new(|| {
    Family::new(|(route, status)| {
        let labels = [
            ("http_request_method", "POST".to_owned()),
            ("http_route", route.to_owned()),
            ("http_response_status_code", status.to_string()),
        ];
        histogram!("http_server_request_duration_seconds", &labels)
    })
});

/// Counts an answer.
pub(super) fn count(event: &'static str, result: &'static str) {
    WEBHOOKS.with((event, result), |webhooks| webhooks.increment(1));
}

/// Lets a webhook be received, and watches it.
pub(super) async fn webhook<F: Future<Output = Answer>>(
    route: &'static str,
    request: Request<Body>,
    receive: impl FnOnce(Request<Body>) -> F,
) -> Response {
    let began = Instant::now();
    let attributes = || vec![KeyValue::new("http.request.method", "POST"), KeyValue::new("http.route", route)];
    let span = RequestSpan::begin(request.headers(), || format!("POST {route}"), attributes);
    let work = async {
        let answer = receive(request).await;
        answer.log();
        answer
    };
    let answer = match &span {
        Some(span) => span.cover(work).await,
        None => work.await,
    };
    let response = answer.into_response();
    let status = response.status();
    DURATIONS.with((route, status.as_u16()), |durations| durations.record(began.elapsed()));
    if let Some(span) = span {
        span.end("http.response.status_code", i64::from(status.as_u16()), status.is_server_error());
    }
    response
}
