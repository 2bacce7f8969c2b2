//! One connection, from its first byte to its end.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response, StatusCode};
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::activity::Activity;
use super::body::{AnswerBody, RequestBody};
use super::edge::Edge;
use super::refusal::{MAX_HEADER_BYTES, MAX_HEADERS, Refusal, too_large};
use super::socket::{self, Outbox};
use super::stream::Stream;
use super::{BoxError, Budget, ConnectionNumber, ConnectionWatches, LAST_WORDS, PATIENCE, Peer, Settings, Shutdown};

/// Bytes of one stream that wait for a slow reader: hyper's default of 400 KiB is too much 10,000 times.
const SEND_BUFFER: usize = 16 * 1024;
/// Of the headers of one request by HTTP/2, as HTTP/2 counts them: more than we take, so that the refusal is ours.
const HTTP2_HEADER_BYTES: u32 = 2 * MAX_HEADER_BYTES as u32;
/// How long a connection that has reached its age, or is idle, may take to end, if its age is not shorter still.
const GRACE: Duration = Duration::from_secs(30);
/// Streams that a peer opened and took back before they were looked at. At hyper's default of 20, one client that cancels
/// many calls at once ends every watch of its connection.
const CANCELLED_UNSEEN: usize = 4096;
/// Streams that we reset ourselves, over a connection's whole life: what comes late for calls that were cancelled. At h2's
/// default of 1,024, a client that lives long and cancels now and then loses every watch of its connection.
const RESET_BY_US: usize = 64 * 1024;
/// HTTP/2: what h2 counts for a small DATA frame that is not read yet. It ends a connection when they come to half the
/// connection's window: at hyper's default of 1 MiB, 2,000 small requests that arrive together end every watch of their
/// connection. So the window is large enough for one of each stream.
const SMALL_FRAME: u32 = 256;
/// And the least that it is.
const MIN_CONNECTION_WINDOW: u32 = 1 << 20;
/// HTTP/2 pings to peers, and how long to wait for their answer: a peer that vanished is gone in half a minute.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));
/// How often a connection with a stream by HTTP/1 is looked at whose peer has sent something that nobody reads yet.
const LOOK: Duration = Duration::from_secs(1);
/// Longer than anything lives.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// What a connection can come to.
enum Event {
    /// hyper is done with it.
    Done(Result<(), BoxError>),
    /// No request was under way for too long.
    Idle,
    /// The headers of a request, or HTTP/2's preface, did not become complete in time.
    SlowHead,
    /// Nobody reads the stream that is being sent.
    Gone,
    /// It has reached its age.
    Aged,
    /// The process ends.
    Polite,
    /// It had to end by now.
    Late,
}

pub(super) async fn connection<S, B>(stream: Stream, peer: Peer, service: S, settings: Settings, shutdown: &Shutdown)
where
    S: Service<Request<RequestBody>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<BoxError>,
{
    let (activity, aged) = (Activity::new(), CancellationToken::new());
    let permits = Arc::new(Semaphore::new(settings.max_watches));
    let watches =
        ConnectionWatches { permits: Arc::clone(&permits), max: settings.max_watches, budget: Budget::default(), aged: aged.clone() };
    let crowded = || permits.available_permits() < settings.max_watches;
    let (tasks, ending) = (shutdown.tasks.clone(), Arc::clone(&shutdown.ending));
    let number = ConnectionNumber::next();
    let edge = Arc::new(Edge { settings, peer, number, watches, activity: Arc::clone(&activity), tasks, ending });
    let service = Served { edge, service };
    let (socket, outbox) = socket::split(stream, Arc::clone(&activity));
    let builder = builder(settings);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(socket), service));

    let age = settings.max_age.map_or(FOR_EVER, |age| age.mul_f64(rand::random_range(0.9..1.1)));
    let mut aging = pin!(sleep(age));
    let mut silence = Silence { allowed: settings.max_idle, since: Instant::now(), timer: Box::pin(sleep(PATIENCE)) };
    let (mut is_aged, mut is_polite, mut limit) = (false, false, Instant::now() + FOR_EVER);
    let result = loop {
        let event = tokio::select! {
            biased;
            result = outbox.run(connection.as_mut(), crowded) => Event::Done(result),
            () = shutdown.polite.cancelled(), if !is_polite => Event::Polite,
            () = &mut aging, if !is_aged => Event::Aged,
            event = poll_fn(|context| silence.poll(context, &outbox, &activity)) => event,
            () = sleep_until(limit), if is_aged || silence.allowed == FOR_EVER => Event::Late,
        };
        match event {
            Event::Done(result) => break result,
            // Peers are told to go away before their streams end, so that they come back on another connection. By HTTP/1
            // only an answer can tell them: one that is idle has a moment to ask for it.
            Event::Polite | Event::Aged => {
                activity.end_after_next_answer();
                if matches!(event, Event::Aged) {
                    is_aged = true;
                    limit = limit.min(Instant::now() + GRACE.min(age));
                    aged.cancel();
                } else {
                    is_polite = true;
                    silence.allow(LAST_WORDS);
                }
                if outbox.is_http2() {
                    connection.as_mut().graceful_shutdown();
                }
            }
            // hyper would wait for a request of which it has seen an empty line.
            Event::Idle if !outbox.is_http2() => break Ok(()),
            Event::Idle => {
                connection.as_mut().graceful_shutdown();
                silence.allow(FOR_EVER);
                limit = limit.min(Instant::now() + GRACE);
                aged.cancel();
            }
            Event::SlowHead => {
                let refusal = Refusal::new(StatusCode::REQUEST_TIMEOUT, "the headers did not arrive in time");
                refusal.log(settings.name);
                if outbox.may_be_http1() {
                    outbox.refuse(&refusal);
                }
                break Ok(());
            }
            Event::Late if activity.idle_since().is_some() && !outbox.is_http2() => break Ok(()),
            // What is left is not read, or has no end.
            Event::Gone | Event::Late => {
                tracing::debug!(listener = settings.name, "a connection that had to end, or that nobody reads, is dropped");
                return;
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(listener = settings.name, %error, "a connection ended badly");
        if let Some(refusal) = error.downcast_ref().and_then(|error| refusal_of(error, &outbox)) {
            refusal.log(settings.name);
            outbox.refuse(&refusal);
        }
    }
    outbox.close(&shutdown.polite).await;
}

/// A service behind its edge, as hyper calls it.
#[derive(Clone)]
struct Served<S> {
    edge: Arc<Edge>,
    service: S,
}

impl<S, B> hyper::service::Service<Request<Incoming>> for Served<S>
where
    S: Service<Request<RequestBody>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<AnswerBody<B>>;
    type Error = Infallible;
    /// Boxed: it lives as long as the stream of its answer, and is small once that has begun.
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (Self { edge, service }, in_flight) = (self.clone(), self.edge.activity.begin());
        let unread = (!request.body().is_end_stream()).then(|| edge.activity.begin_body());
        Box::pin(async move { Ok(edge.answer(service, request, in_flight, unread).await) })
    }
}

fn builder(settings: Settings) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // A sender that closes its half after a request still wants the answer. The time that headers take is looked after here:
    // hyper's own timer runs between requests too.
    builder.http1().timer(TokioTimer::new()).half_close(true).header_read_timeout(None);
    builder.http1().max_headers(MAX_HEADERS).max_buf_size(MAX_HEADER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(settings.max_streams)
        .initial_connection_window_size(settings.max_streams.saturating_mul(2 * SMALL_FRAME).clamp(MIN_CONNECTION_WINDOW, i32::MAX as u32))
        .max_send_buf_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(CANCELLED_UNSEEN)
        .max_local_error_reset_streams(RESET_BY_US)
        .max_header_list_size(HTTP2_HEADER_BYTES)
        .keep_alive_interval(KEEPALIVE.0)
        .keep_alive_timeout(KEEPALIVE.1);
    builder
}

/// What a peer is told whose request hyper could not read. hyper itself would only send a status.
fn refusal_of(error: &hyper::Error, outbox: &Outbox) -> Option<Refusal> {
    if error.is_parse() {
        let status = outbox.take_refusal()?;
        return Some(match status {
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => too_large(),
            _ => Refusal::new(status, format!("the request is not understood: {error}")),
        });
    }
    let is_cut_off = error.is_incomplete_message() && outbox.head_since().is_some() && outbox.may_be_http1();
    is_cut_off.then(|| Refusal::new(StatusCode::BAD_REQUEST, "the request ended within its headers"))
}

/// How long a connection may be without a request, and headers without an end.
struct Silence {
    allowed: Duration,
    /// When that was allowed.
    since: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Silence {
    fn allow(&mut self, allowed: Duration) {
        (self.allowed, self.since) = (allowed, Instant::now());
    }

    fn poll(&mut self, context: &mut Context<'_>, outbox: &Outbox, activity: &Activity) -> Poll<Event> {
        loop {
            let now = Instant::now();
            let (mut until, event) = match (outbox.head_since(), activity.idle_since()) {
                (Some(since), _) => (since + PATIENCE, Some(Event::SlowHead)),
                (None, Some(since)) => (since.max(self.since) + self.allowed, Some(Event::Idle)),
                (None, None) => (now + self.allowed, None),
            };
            if let Some(event) = event.filter(|_| until <= now) {
                return Poll::Ready(event);
            }
            if activity.has_streams() {
                match outbox.poll_has_closed(context) {
                    Poll::Ready(true) => return Poll::Ready(Event::Gone),
                    Poll::Ready(false) => until = until.min(now + LOOK),
                    Poll::Pending => {}
                }
            }
            // Moved forward only: a connection that is busy moves it with every request, and need not be woken then.
            if until < self.timer.deadline() || self.timer.is_elapsed() {
                self.timer.as_mut().reset(until);
            }
            ready!(self.timer.as_mut().poll(context));
        }
    }
}
