//! The bodies of requests and answers, as the listener hands them on.
//!
//! A request may be answered before its body has been read. The rest of the body then stands between the answer and
//! the next request of the connection, so the listener gets it back and reads it, or ends the connection in words.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout, timeout_at};

use super::activity::{InFlight, UnreadBody};

/// The body of a request.
#[derive(Debug)]
pub struct RequestBody {
    /// None once it was given back.
    incoming: Option<Incoming>,
    /// What was read of it before.
    first: Option<Frame<Bytes>>,
    /// None if there is nothing to read any more.
    left: Option<(Arc<Left>, UnreadBody)>,
}

/// Where the body of a request is when its answer is ready.
#[derive(Debug, Default)]
pub(super) struct Left(Mutex<Whereabouts>);

#[derive(Debug, Default)]
struct Whereabouts {
    /// Somebody has begun to read it.
    read: bool,
    /// It was read to its end.
    ended: bool,
    /// It cannot be read any further.
    broken: bool,
    /// It was dropped before its end.
    rest: Option<Incoming>,
}

/// What became of the body of a request that has been answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// All of it was read.
    Nothing,
    /// There may be more to come.
    Rest,
}

/// How much is read of a body that nobody wants.
#[derive(Clone, Copy, Debug)]
pub(super) struct Discard {
    pub(super) bytes: u64,
    pub(super) until: Instant,
    /// How long the peer may send nothing.
    pub(super) silence: Duration,
    /// The peer waits for `100 Continue` before it sends anything.
    pub(super) is_held_back: bool,
}

impl RequestBody {
    /// A body that is `unread`, or none.
    pub(super) fn new(incoming: Incoming, first: Option<Frame<Bytes>>, unread: Option<UnreadBody>) -> (Self, Option<Arc<Left>>) {
        let left = unread.map(|unread| (Arc::<Left>::default(), unread));
        let also = left.as_ref().map(|(left, _)| Arc::clone(left));
        if let Some(left) = &also {
            left.lock().read = first.is_some();
        }
        (Self { incoming: Some(incoming), first, left }, also)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = &mut *self;
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        // A connection that breaks later does not make a whole body a broken one.
        let (Some(incoming), Some((left, _))) = (&mut this.incoming, &this.left) else { return Poll::Ready(None) };
        let frame = std::task::ready!(Pin::new(&mut *incoming).poll_frame(context));
        let mut whereabouts = left.lock();
        whereabouts.read = true;
        if !matches!(&frame, Some(Ok(_))) || incoming.is_end_stream() {
            whereabouts.broken = matches!(&frame, Some(Err(_)));
            whereabouts.ended = true;
            drop(whereabouts);
            this.left = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.incoming.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint);
        match self.first.as_ref().and_then(Frame::data_ref) {
            None => rest,
            Some(first) => {
                let first = first.len() as u64;
                let mut hint = SizeHint::new();
                hint.set_lower(rest.lower() + first);
                if let Some(upper) = rest.upper() {
                    hint.set_upper(upper + first);
                }
                hint
            }
        }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Some((left, _)) = self.left.take() {
            left.lock().rest = self.incoming.take();
        }
    }
}

impl Left {
    fn lock(&self) -> MutexGuard<'_, Whereabouts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the rest of the body, up to a limit, and drops it.
    pub(super) async fn discard(&self, limits: Discard) -> Unread {
        let (rest, read) = {
            let mut left = self.lock();
            if left.ended {
                return if left.broken { Unread::Rest } else { Unread::Nothing };
            }
            (left.rest.take(), left.read)
        };
        // `None`: somebody still reads it.
        let Some(rest) = rest else { return Unread::Rest };
        if limits.is_held_back && !read {
            return Unread::Rest;
        }
        discard(rest, limits).await
    }
}

/// Reads a body up to a limit and drops it. What is known to be larger is not read at all.
pub(super) async fn discard(mut body: Incoming, limits: Discard) -> Unread {
    if body.size_hint().lower() > limits.bytes {
        return Unread::Rest;
    }
    let all = async {
        let mut length = 0;
        while !body.is_end_stream() {
            match timeout(limits.silence, body.frame()).await {
                Ok(Some(Ok(frame))) => length += frame.data_ref().map_or(0, |data| data.len() as u64),
                Ok(None) => break,
                Ok(Some(Err(_))) | Err(_) => return Unread::Rest,
            }
            if length > limits.bytes {
                return Unread::Rest;
            }
        }
        Unread::Nothing
    };
    timeout_at(limits.until, all).await.unwrap_or(Unread::Rest)
}

/// The body of an answer, which is under way as long as this lives.
#[derive(Debug)]
pub struct AnswerBody<B> {
    source: Source<B>,
    _in_flight: InFlight,
}

#[derive(Debug)]
enum Source<B> {
    Service(B),
    /// What the listener says itself.
    Listener(Option<Bytes>),
}

impl<B> AnswerBody<B> {
    pub(super) fn of_service(body: B, in_flight: InFlight) -> Self {
        Self { source: Source::Service(body), _in_flight: in_flight }
    }

    pub(super) fn of_listener(text: Bytes, in_flight: InFlight) -> Self {
        Self { source: Source::Listener(Some(text).filter(|text| !text.is_empty())), _in_flight: in_flight }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for AnswerBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match &mut self.source {
            Source::Service(body) => Pin::new(body).poll_frame(context),
            Source::Listener(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Service(body) => body.is_end_stream(),
            Source::Listener(text) => text.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Service(body) => body.size_hint(),
            Source::Listener(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
        }
    }
}
