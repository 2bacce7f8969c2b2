//! What every request passes on its way to a service, and every answer on its way back, on all listeners.
//!
//! **A connection that is kept never ends without a word.** When an answer is ready before the body of its request was
//! read, the rest is read and dropped, so that the next request of the connection is found behind it. Where that is too
//! much or too slow, the answer says `connection: close`; by HTTP/2 the stream ends with it, and the others go on. The
//! last answer of a connection that is about to end says so as well.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;
use tower::{Service, ServiceExt};

use super::activity::{Activity, InFlight, UnreadBody};
use super::body::{AnswerBody, Discard, RequestBody, Unread, discard};
use super::refusal::{Refusal, check, has_token};
use super::{BoxError, ConnectionNumber, ConnectionWatches, Peer, Settings};

/// How long the body of a request may take that is answered before it was read, since the request began.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long its sender may send nothing meanwhile: it may wait for the answer.
const DISCARD_SILENCE: Duration = Duration::from_secs(3);
/// How long a gRPC call that has been answered may send nothing: its client may keep its side open for the whole call.
const CALL_SILENCE: Duration = Duration::from_millis(200);
/// How long a sender by HTTP/2 may wait for a `100 Continue`, which hyper cannot send there. Most go on after a second.
const CONTINUE_TIMEOUT: Duration = Duration::from_millis(1500);
/// The longest text of a refusal that becomes JSON.
const MAX_TEXT: u64 = 4096;

/// Work that is done to its end even if its request is given up. Every request carries it.
#[derive(Clone, Debug)]
pub struct Tasks(pub(super) TaskTracker);

impl Tasks {
    /// Those of the listener that a request came by. Of one that came by none nobody waits for them.
    pub fn of(request: &http::Extensions) -> Self {
        request.get::<Self>().cloned().unwrap_or_else(|| Self(TaskTracker::new()))
    }

    /// Does something in a task of its own, which a client that goes away does not stop, and waits for it. The end of the
    /// process waits for it too.
    pub async fn finish<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        match self.0.spawn(work).await {
            Ok(done) => done,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The process ends.
                Err(_) => std::future::pending().await,
            },
        }
    }
}

/// What the requests of one connection have in common.
#[derive(Debug)]
pub(super) struct Edge {
    pub(super) settings: Settings,
    pub(super) peer: Peer,
    pub(super) number: ConnectionNumber,
    pub(super) watches: ConnectionWatches,
    pub(super) activity: Arc<Activity>,
    pub(super) tasks: TaskTracker,
    /// The process ends.
    pub(super) ending: Arc<AtomicBool>,
}

impl Edge {
    pub(super) async fn answer<S, B>(
        &self,
        service: S,
        request: Request<Incoming>,
        mut in_flight: InFlight,
        unread: Option<UnreadBody>,
    ) -> Response<AnswerBody<B>>
    where
        S: Service<Request<RequestBody>, Response = Response<B>, Error = Infallible>,
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<BoxError>,
    {
        let (mut parts, mut incoming) = request.into_parts();
        let (is_http1, is_head) = (parts.version < Version::HTTP_2, parts.method == Method::HEAD);
        let is_held_back = unread.is_some() && has_token(&parts.headers, header::EXPECT, "100-continue");
        let limits = Discard {
            bytes: self.settings.max_discarded,
            until: Instant::now() + DISCARD_TIMEOUT,
            silence: if !is_http1 && is_call(&parts.headers) { CALL_SILENCE } else { DISCARD_SILENCE },
            is_held_back,
        };
        let mut refusal = check(&parts).err();
        let mut first = None;
        if refusal.is_none() && is_held_back && !is_http1 {
            match timeout(CONTINUE_TIMEOUT, incoming.frame()).await {
                Ok(frame) => first = frame.and_then(Result::ok),
                Err(_) => {
                    let error = "a sender by HTTP/2 is not told to continue here: send the body at once, without `expect: 100-continue`";
                    refusal = Some(Refusal::new(StatusCode::EXPECTATION_FAILED, error));
                }
            }
        }
        let (response, unread) = match refusal {
            Some(refusal) => {
                refusal.log(self.settings.name);
                let unread = if is_held_back { Unread::Rest } else { discard(incoming, limits).await };
                let text = if is_head { Bytes::new() } else { refusal.to_json() };
                (refusal.to_head().map(|()| AnswerBody::of_listener(text, in_flight)), unread)
            }
            None => {
                let (body, left) = RequestBody::new(incoming, first, unread);
                parts.extensions.insert(self.watches.clone());
                parts.extensions.insert(self.peer);
                parts.extensions.insert(self.number);
                parts.extensions.insert(Tasks(self.tasks.clone()));
                let Ok(response) = service.oneshot(Request::from_parts(parts, body)).await;
                let unread = match left {
                    Some(left) => left.discard(limits).await,
                    None => Unread::Nothing,
                };
                let (mut head, mut body) = response.into_parts();
                let response = match self.in_json(&mut head, &mut body, is_head).await {
                    Some(text) => Response::from_parts(head, AnswerBody::of_listener(text, in_flight)),
                    None => {
                        if is_http1 && body.size_hint().exact().is_none() {
                            in_flight.is_stream();
                        }
                        Response::from_parts(head, AnswerBody::of_service(body, in_flight))
                    }
                };
                (response, unread)
            }
        };
        self.with_close(response, is_http1 && unread == Unread::Rest, is_http1)
    }

    /// Says that the connection ends after this answer, if it does. By HTTP/2 frames say it.
    fn with_close<B>(&self, mut response: Response<B>, must_close: bool, is_http1: bool) -> Response<B> {
        if must_close || is_http1 && (self.activity.is_ending() || self.ending.load(Ordering::Relaxed)) {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// What stands in the place of a refusal that is not in JSON: one that axum made, or one in plain text. It is logged.
    async fn in_json<B>(&self, head: &mut Parts, body: &mut B, is_head: bool) -> Option<Bytes>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let is_refusal = head.status.is_client_error() || head.status.is_server_error();
        if !is_refusal || head.headers.contains_key("grpc-status") {
            return None;
        }
        let content_type = head.headers.get(header::CONTENT_TYPE);
        if content_type.is_some_and(|content_type| !content_type.as_bytes().starts_with(b"text/plain")) {
            return None;
        }
        if body.size_hint().upper().is_none_or(|length| length > MAX_TEXT) {
            return None;
        }
        let mut text = Vec::new();
        while let Some(Ok(frame)) = body.frame().await {
            text.extend_from_slice(frame.data_ref().map_or(&[], |data| &data[..]));
        }
        let text = String::from_utf8_lossy(&text);
        let error = match text.trim() {
            "" if head.status == StatusCode::NOT_FOUND => "there is nothing at this path".to_owned(),
            "" if head.status == StatusCode::METHOD_NOT_ALLOWED => "this method cannot be used here".to_owned(),
            "" => head.status.canonical_reason().unwrap_or("refused").to_lowercase(),
            text => text.to_owned(),
        };
        let refusal = Refusal::new(head.status, error);
        refusal.log(self.settings.name);
        head.headers.remove(header::CONTENT_LENGTH);
        head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Some(if is_head { Bytes::new() } else { refusal.to_json() })
    }
}

/// Whether a request is a gRPC call, of which the client's side may stay open.
fn is_call(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    content_type.get(.."application/grpc".len()).is_some_and(|start| start.eq_ignore_ascii_case(b"application/grpc"))
}
