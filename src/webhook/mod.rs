//! The HTTP edge: webhooks in, one JSON line out.

mod answer;
mod arrivals;
mod auth;
mod client_address;
mod load;
mod observe;
pub mod signature;

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use axum::response::Response;
use axum::routing::post;

use crate::config::LimitConfig;
use crate::event::Refusal;
use crate::fold::{MAX_ID_BYTES, Receipt};
use crate::intake::Intake;
use crate::listener::{ConnectionNumber, Peer, Tasks, TrustedProxies};
use crate::origin::Guard;
use answer::Answer;
use arrivals::Source;
pub use auth::Secrets;
use auth::Stranger;
use client_address::client_address;
use load::{Held, Load, NoBody};

/// Where events are posted.
const EVENTS: &str = "/webhooks/omniai";

/// What the routes need.
#[derive(Clone)]
struct Webhooks {
    intake: Intake,
    secrets: Arc<Secrets>,
    load: Load,
    max_body_bytes: usize,
    proxies: TrustedProxies,
    guard: Option<Guard>,
}

/// How webhooks are taken.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How much at once.
    pub limits: LimitConfig,
    /// Who says whose request it is.
    pub proxies: TrustedProxies,
    /// Keeps web pages out where nobody is asked for a secret.
    pub guard: Option<Guard>,
    /// The largest body.
    pub max_body_bytes: usize,
    /// Whether there is a route that does nothing, to measure against.
    pub noop: bool,
}

/// The routes of the webhook listener.
pub fn routes(intake: Intake, secrets: Arc<Secrets>, settings: Settings) -> Router {
    let Settings { limits, proxies, guard, max_body_bytes, noop } = settings;
    let routes = Router::new().route("/webhooks/omniai", post(receive)).route("/webhooks/omniai/{workspace_id}", post(receive));
    let routes = if noop { routes.route("/noop", post(async |_: axum::body::Bytes| "{}")) } else { routes };
    routes
        .fallback(async || Answer::refused(StatusCode::NOT_FOUND, Refusal::body("no such path: post events to /webhooks/omniai")).logged())
        .method_not_allowed_fallback(async || Answer::refused(StatusCode::METHOD_NOT_ALLOWED, Refusal::body("events are posted")).logged())
        .with_state(Webhooks { intake, secrets, load: Load::new(limits, max_body_bytes), max_body_bytes, proxies, guard })
}

async fn receive(State(webhooks): State<Webhooks>, request: Request<Body>) -> Response {
    let route = if request.uri().path() == EVENTS { EVENTS } else { "/webhooks/omniai/{workspace_id}" };
    let tasks = Tasks::of(request.extensions());
    // What a sender has sent is taken, counted and logged, even if the sender is gone.
    tasks.finish(async move { observe::webhook(route, request, |request| webhooks.receive(request)).await }).await
}

/// The workspace that the path names, if it names one. Its length is not looked at.
fn workspace_id(path: &str) -> Result<Option<Cow<'_, str>>, &'static str> {
    let Some(encoded) = path.strip_prefix(EVENTS).and_then(|rest| rest.strip_prefix('/')) else { return Ok(None) };
    let is_byte = |rest: &str| rest.len() >= 2 && rest.as_bytes()[..2].iter().all(u8::is_ascii_hexdigit);
    if !encoded.split('%').skip(1).all(is_byte) {
        return Err("the workspace in the URL has a % that two hexadecimal digits do not follow");
    }
    let decoded = percent_encoding::percent_decode_str(encoded).decode_utf8();
    decoded.map(Some).map_err(|_| "the workspace in the URL is not UTF-8")
}

impl Webhooks {
    async fn receive(&self, request: Request<Body>) -> Answer {
        let received = self.intake.now();
        if let Some(Err(refused)) = self.guard.as_ref().map(|guard| guard.check(&request)) {
            return Answer::refused(StatusCode::FORBIDDEN, Refusal::body(refused.to_string()));
        }
        let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
        let client = peer.map(|peer| client_address(peer, request.headers(), &self.proxies));
        let admission = match self.secrets.admit(request.headers()) {
            Ok(admission) => admission,
            Err(stranger) => return self.unauthenticated(client, stranger),
        };
        let path = request.uri().path().to_owned();
        let workspace_id = match workspace_id(&path) {
            Ok(workspace_id) => workspace_id,
            Err(wrong) => return Answer::refused(StatusCode::BAD_REQUEST, Refusal::body(wrong)),
        };
        let workspace_id = workspace_id.as_deref();
        // Whoever is not known yet gets a place once its body has come: until then it costs those who are known nothing.
        let mut place = None;
        if admission.is_authenticated() {
            match self.load.enter(client) {
                Ok(taken) => place = Some(taken),
                Err(overload) => return Answer::to_too_many(overload),
            }
        }
        if workspace_id.is_some_and(|id| id.len() > MAX_ID_BYTES) {
            return Answer::refused(
                StatusCode::BAD_REQUEST,
                Refusal::body(format!("the workspace in the URL is longer than {MAX_ID_BYTES} bytes")),
            );
        }
        if !is_json(request.headers()) {
            return Answer::refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, Refusal::body("the content type is not application/json"));
        }
        if !is_as_it_is(request.headers()) {
            return Answer::refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, Refusal::body("the body is compressed: send it as it is"));
        }
        let unconfirmed = if admission.is_authenticated() { None } else { source(&request, client) };
        let mut body = match self.body(request, unconfirmed).await {
            Ok(body) => body,
            Err(answer) => return answer,
        };
        if let Err(stranger) = self.secrets.confirm(&admission, &body.bytes) {
            return self.unauthenticated(client, stranger);
        }
        if place.is_none() {
            match self.load.enter(client).and_then(|place| self.load.confirm(&mut body).map(|()| place)) {
                Ok(taken) => place = Some(taken),
                Err(overload) => return Answer::to_too_many(overload),
            }
        }
        let _place = place;
        let (label, fate) = self.intake.take(&body.bytes, Receipt { at: received, workspace_id }).await;
        Answer::to(fate).of(label)
    }

    fn unauthenticated(&self, client: Option<IpAddr>, stranger: Stranger) -> Answer {
        match self.load.charge_unauthenticated(client) {
            Ok(()) => Answer::to_stranger(stranger),
            Err(overload) => Answer::to_too_many(overload),
        }
    }

    async fn body(&self, request: Request<Body>, unconfirmed: Option<Source>) -> Result<Held, Answer> {
        self.load.read(request.into_body(), self.max_body_bytes, unconfirmed).await.map_err(|why| match why {
            NoBody::TooLarge => {
                let words = format!("the body is over {} bytes", self.max_body_bytes);
                Answer::refused(StatusCode::PAYLOAD_TOO_LARGE, Refusal::body(words))
            }
            NoBody::Broken => Answer::refused(StatusCode::BAD_REQUEST, Refusal::body("the body broke off, or its chunks are malformed")),
            NoBody::TooSlow => Answer::refused(StatusCode::REQUEST_TIMEOUT, Refusal::body("the body did not arrive in time")),
            NoBody::Overload(overload) => Answer::to_too_many(overload),
        })
    }
}

/// Where a request comes from. Every request of a listener says so.
fn source(request: &Request<Body>, client: Option<IpAddr>) -> Option<Source> {
    let ConnectionNumber(connection) = request.extensions().get::<ConnectionNumber>().copied()?;
    Some(Source { address: client?, connection })
}

/// `application/json`, with any parameter, or a type that ends in `+json`. Where there are several headers, each.
fn is_json(headers: &HeaderMap) -> bool {
    let is_json = |value: &HeaderValue| {
        let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
    };
    headers.contains_key(header::CONTENT_TYPE) && headers.get_all(header::CONTENT_TYPE).iter().all(is_json)
}

/// Whether the body is neither compressed nor encoded otherwise.
fn is_as_it_is(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::CONTENT_ENCODING).iter();
    let mut codings = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    codings.all(|coding| coding.is_empty() || coding.eq_ignore_ascii_case(b"identity"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn types_are_compared_whatever_their_case_and_parameters() {
        let is_json = |values: &[&'static str]| is_json(&headers(header::CONTENT_TYPE, values));
        for good in [
            "application/json",
            "Application/JSON",
            "application/json ;charset=\"utf-8\"",
            "application/cloudevents+json",
            " application/json",
        ] {
            assert!(is_json(&[good]), "{good}");
        }
        for bad in ["", "text/plain", "json", "application/jsonp", "application/json, application/json", "text/plain; application/json"] {
            assert!(!is_json(&[bad]), "{bad}");
        }
        assert!(!is_json(&[]) && is_json(&["application/json", "application/json"]) && !is_json(&["application/json", "text/plain"]));
    }

    #[test]
    fn a_body_that_is_not_encoded_is_said_so_in_many_ways() {
        let is_as_it_is = |values: &[&'static str]| is_as_it_is(&headers(header::CONTENT_ENCODING, values));
        for good in [&[][..], &["identity"], &["Identity"], &[""], &["identity, identity"], &["identity", " IDENTITY ,"]] {
            assert!(is_as_it_is(good), "{good:?}");
        }
        for bad in [&["gzip"][..], &["identity, gzip"], &["identity", "br"], &["x"]] {
            assert!(!is_as_it_is(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_workspace_in_the_path_is_decoded_strictly() {
        let id = |path: &str| workspace_id(path).map(|id| id.map(Cow::into_owned));
        assert_eq!(id("/webhooks/omniai"), Ok(None));
        assert_eq!(id("/webhooks/omniai/a%20b%2Fc"), Ok(Some("a b/c".to_owned())));
        for bad in ["/webhooks/omniai/%ff", "/webhooks/omniai/%zz", "/webhooks/omniai/%", "/webhooks/omniai/a%4", "/webhooks/omniai/%%41"] {
            assert!(id(bad).is_err(), "{bad}");
        }
    }
}
