//! The body of every answer: messages, then a status, then nothing.
//!
//! **An answer that has ended says so.** hyper sends a body of which `is_end_stream` is not true as an empty DATA frame
//! behind the headers. For tonic's client that is nothing; all others take it for a broken answer, and the status in the
//! headers is lost. So whatever wraps a body has to pass on `is_end_stream` and `size_hint`, and there is one wrapper for
//! all that accompanies an answer.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;

use super::answers::{Next, Waiting};
use super::deadline;
use super::observe::Life;
use super::shared::{FrameStream, take_stream, trailers};

/// What an answer consists of, and what ends it early.
struct AnswerBody {
    /// None once the answer has ended: what it held, such as the permit of a watch, is free at once.
    source: Option<Source>,
    deadline: Option<Pin<Box<Sleep>>>,
}

/// An answer that takes the place of tonic's body.
pub(super) enum Answer {
    /// The rest of a unary call's answer.
    Waiting(Waiting),
}

enum Source {
    /// As tonic made it.
    Body(Body),
    /// What is left of a unary call's answer.
    Waiting(Waiting),
    /// The messages of a watch.
    Stream(FrameStream, Life),
}

/// Completes an answer of tonic's: with what takes the place of its body, or the stream that was made for it, if there is
/// one, and with the deadline.
pub(super) fn complete(mut response: Response, answer: Option<Answer>, deadline: Option<Instant>) -> Response {
    let stream = take_stream(&mut response);
    // Headers that are all there is, or a body that nothing has to be done with.
    if stream.is_none() && answer.is_none() && (deadline.is_none() || response.body().is_end_stream()) {
        return response;
    }
    let deadline = deadline.map(|deadline| Box::pin(sleep_until(deadline)));
    response.map(|body| {
        let source = match (answer, stream) {
            (Some(Answer::Waiting(waiting)), _) => Source::Waiting(waiting),
            (None, Some((stream, life))) => Source::Stream(stream, life),
            (None, None) => Source::Body(body),
        };
        Body::new(AnswerBody { source: Some(source), deadline })
    })
}

impl AnswerBody {
    /// Ends the answer with a status in its trailers.
    fn end_with(&mut self, status: &Status) -> Frame<Bytes> {
        if let Some(Source::Stream(_, life)) = &mut self.source {
            life.ends(status);
        }
        self.source = None;
        Frame::trailers(trailers(status))
    }
}

impl http_body::Body for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let Some(source) = &mut this.source else { return Poll::Ready(None) };
        // First, and by the clock too: a stream that always has something to send may keep timers from being looked after.
        let is_over = |deadline: &mut Pin<Box<Sleep>>| deadline.deadline() <= Instant::now() || deadline.as_mut().poll(context).is_ready();
        if this.deadline.as_mut().is_some_and(is_over) {
            return Poll::Ready(Some(Ok(this.end_with(&deadline::exceeded()))));
        }
        let frame = match source {
            Source::Body(body) => std::task::ready!(Pin::new(body).poll_frame(context)),
            Source::Waiting(waiting) => Some(match waiting.next() {
                Next::Piece(piece) => Ok(Frame::data(piece)),
                Next::Trailers(trailers) => Ok(Frame::trailers(trailers)),
                Next::Dropped => Err(axum::Error::new("the client did not read its answer in time")),
            }),
            Source::Stream(stream, life) => Some(match std::task::ready!(stream.as_mut().poll_next(context)) {
                Some(Ok(message)) => {
                    life.sent();
                    Ok(Frame::data(message))
                }
                Some(Err(status)) => Ok(this.end_with(&status)),
                None => Ok(this.end_with(&Status::ok(""))),
            }),
        };
        // Nothing can follow trailers or an error.
        if !matches!(&frame, Some(Ok(frame)) if frame.is_data()) {
            this.source = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            None => true,
            Some(Source::Body(body)) => body.is_end_stream(),
            Some(Source::Waiting(..) | Source::Stream(..)) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            None => SizeHint::with_exact(0),
            Some(Source::Body(body)) => body.size_hint(),
            Some(Source::Waiting(..) | Source::Stream(..)) => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use futures::StreamExt;
    use futures::stream;
    use http_body_util::BodyExt;
    use tokio::time::timeout;
    use tonic::Code;

    use super::*;
    use crate::grpc::shared;

    const MESSAGE: Bytes = Bytes::from_static(b"\0\0\0\0\0");

    /// An answer with these messages, which hold something until they are dropped.
    fn answer(
        messages: impl futures::Stream<Item = Result<Bytes, Status>> + Send + 'static,
        deadline: Option<Duration>,
    ) -> (Body, Arc<()>) {
        let permit = Arc::new(());
        let held = Arc::clone(&permit);
        let messages = messages.map(move |message| {
            let _ = &held;
            message
        });
        let (_, _, extensions) = shared::response::<()>("test", Box::pin(messages)).into_parts();
        let mut response = Response::new(Body::empty());
        *response.extensions_mut() = extensions;
        (complete(response, None, deadline.map(|deadline| Instant::now() + deadline)).into_body(), permit)
    }

    /// Reads a body to its end, and checks that it stays there.
    async fn read(mut body: Body, permit: &Arc<()>) -> (usize, Option<Code>) {
        let (mut messages, mut status) = (0, None);
        while let Some(frame) = timeout(Duration::from_secs(15), body.frame()).await.expect("in time") {
            match frame.expect("a frame").into_trailers() {
                Ok(trailers) => {
                    assert!(status.is_none(), "a second status");
                    status = Status::from_header_map(&trailers).map(|status| status.code());
                    assert!(body.is_end_stream(), "nothing follows trailers");
                    assert_eq!(Arc::strong_count(permit), 1, "what the answer held is free as soon as it has ended");
                }
                Err(_) => messages += 1,
            }
        }
        assert!(body.is_end_stream() && body.size_hint().exact() == Some(0) && body.frame().await.is_none());
        (messages, status)
    }

    #[tokio::test]
    async fn every_stream_ends_once_with_its_status() {
        let two = || stream::iter([Ok(MESSAGE), Ok(MESSAGE)]);
        let lost = || stream::iter([Err(Status::data_loss("lost")), Ok(MESSAGE)]);
        for deadline in [None, Some(Duration::from_secs(3600))] {
            let (body, permit) = answer(two(), deadline);
            assert!(!body.is_end_stream());
            assert_eq!(read(body, &permit).await, (2, Some(Code::Ok)), "{deadline:?}");
            let (body, permit) = answer(two().chain(lost()), deadline);
            assert_eq!(read(body, &permit).await, (2, Some(Code::DataLoss)), "{deadline:?}");
        }
    }

    #[tokio::test]
    async fn a_deadline_ends_what_is_silent_and_what_is_never_silent() {
        let deadline = Some(Duration::from_millis(50));
        let (body, permit) = answer(stream::iter([Ok(MESSAGE)]).chain(stream::pending()), deadline);
        assert_eq!(read(body, &permit).await, (1, Some(Code::DeadlineExceeded)));
        let (body, permit) = answer(stream::repeat_with(|| Ok(MESSAGE)), deadline);
        assert_eq!(read(body, &permit).await.1, Some(Code::DeadlineExceeded));
    }

    #[tokio::test]
    async fn headers_that_are_all_there_is_stay_so() {
        for deadline in [None, Some(Instant::now() + Duration::from_secs(3600))] {
            let body = complete(Status::not_found("no").into_http(), None, deadline).into_body();
            assert!(body.is_end_stream() && body.size_hint().exact() == Some(0), "{deadline:?}");
        }
    }
}
