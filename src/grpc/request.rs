//! Reading a request: calls here take one message, and run when it is whole.
//!
//! A call that ran while its request arrives would hold its place for as long as its client likes.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, TryAcquireError};
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use super::status::{exhausted, overloaded, request_incomplete, request_late, wrong_message_count};
use crate::listener::Budget;

/// How long a request may take to arrive, from its headers on. Together with [`MAX_MESSAGE`] it is a least rate too.
pub(super) const ARRIVAL: Duration = Duration::from_secs(10);
/// The largest message.
const MAX_MESSAGE: usize = 4 << 20;
/// A flag and a length.
const PREFIX: usize = 5;
/// Bytes of a request that need not be counted.
const UNCOUNTED: usize = 4096;

/// A request that is whole, and what it takes of the limits.
pub(super) struct Whole {
    pub(super) bytes: Bytes,
    pub(super) counted: Vec<OwnedSemaphorePermit>,
}

/// Limits of what arrives.
pub(super) struct Arriving<'a> {
    /// Requests that are not whole yet, of all connections, and beyond that of this one.
    pub(super) places: Vec<(&'a Arc<Semaphore>, &'a (dyn Fn() -> Status + Sync))>,
    /// KiB of all requests.
    pub(super) kib: &'a Arc<Semaphore>,
    pub(super) budget: &'a Budget,
    /// How long it may take.
    pub(super) time: Duration,
}

/// Reads the one message of a request.
///
/// # Errors
/// It came too late, was too large, or there was another number of messages.
pub(super) async fn one_message(body: Body, limits: Arriving<'_>) -> Result<Whole, Status> {
    let deadline = Instant::now() + limits.time;
    let mut read = std::pin::pin!(read(body, &limits));
    // Most requests are here already. Only one that is awaited takes a place.
    if let Poll::Ready(whole) = futures::poll!(read.as_mut()) {
        return whole;
    }
    let places = limits.places.iter().map(|(places, refusal)| Arc::clone(places).try_acquire_owned().map_err(|_| refusal()));
    let _places = places.collect::<Result<Vec<_>, _>>()?;
    timeout_at(deadline, read).await.unwrap_or_else(|_| Err(request_late(limits.time)))
}

async fn read(mut body: Body, limits: &Arriving<'_>) -> Result<Whole, Status> {
    let (mut first, mut rest, mut counted) = (Bytes::new(), Vec::new(), Vec::new());
    let (mut length, mut counted_kib) = (0, 0);
    while let Some(frame) = body.frame().await {
        let Ok(chunk) = frame.map_err(|_| request_incomplete())?.into_data() else { continue };
        length += chunk.len();
        if first.is_empty() {
            first = chunk;
        } else {
            if rest.is_empty() {
                rest.extend_from_slice(&first);
            }
            // Not by doubling: many large requests may wait.
            if rest.capacity() - rest.len() < chunk.len() {
                rest.reserve_exact(chunk.len().max(rest.len() / 4));
            }
            rest.extend_from_slice(&chunk);
        }
        if let Some(told) = told_length(if rest.is_empty() { &first } else { &rest }) {
            if told > MAX_MESSAGE {
                let description = format!("the message has {told} bytes, and a request may have {MAX_MESSAGE} at most");
                return Err(exhausted("bytes of a request", description));
            }
            if length > PREFIX + told {
                return Err(wrong_message_count());
            }
        }
        let kib = length.saturating_sub(UNCOUNTED).div_ceil(1024);
        if kib > counted_kib {
            let more = u32::try_from(kib - counted_kib).unwrap_or(u32::MAX);
            for semaphore in [limits.kib, &limits.budget.waiting_kib] {
                counted.push(Arc::clone(semaphore).try_acquire_many_owned(more).map_err(|_: TryAcquireError| overloaded())?);
            }
            counted_kib = kib;
        }
    }
    let bytes = if rest.is_empty() { first } else { rest.into() };
    match told_length(&bytes) {
        None if bytes.is_empty() => Err(wrong_message_count()),
        Some(told) if bytes.len() == PREFIX + told => Ok(Whole { bytes, counted }),
        _ => Err(request_incomplete()),
    }
}

/// The length of the first message, once it is there.
fn told_length(bytes: &[u8]) -> Option<usize> {
    let length = bytes.get(1..PREFIX)?;
    Some(u32::from_be_bytes(length.try_into().ok()?) as usize)
}

/// Waits for some of a limit, for as long as a request may take to arrive.
pub(super) async fn wait_for(semaphore: &Arc<Semaphore>, permits: u32, until: Instant) -> Result<OwnedSemaphorePermit, Status> {
    let wait = Arc::clone(semaphore).acquire_many_owned(permits);
    match timeout_at(until, wait).await {
        Ok(Ok(permit)) => Ok(permit),
        Ok(Err(AcquireError { .. })) | Err(_) => Err(overloaded()),
    }
}

#[cfg(test)]
mod tests {

    use futures::stream;
    use tonic::Code;

    use super::*;

    async fn send(chunks: &[&'static [u8]]) -> Result<Bytes, Code> {
        let chunks: Vec<_> = chunks.iter().map(|chunk| Ok::<_, std::io::Error>(Bytes::from_static(chunk))).collect();
        let (kib, budget) = (Arc::new(Semaphore::new(1)), Budget::default());
        let limits = Arriving { places: Vec::new(), kib: &kib, budget: &budget, time: ARRIVAL };
        one_message(Body::from_stream(stream::iter(chunks)), limits).await.map(|whole| whole.bytes).map_err(|status| status.code())
    }

    #[tokio::test]
    async fn a_request_is_one_whole_message() {
        assert_eq!(send(&[b"\0\0\0\0\x03abc"]).await.as_deref(), Ok(&b"\0\0\0\0\x03abc"[..]));
        assert_eq!(send(&[b"\0\0", b"", b"\0\0\x03", b"a", b"bc"]).await.as_deref(), Ok(&b"\0\0\0\0\x03abc"[..]));
        assert_eq!(send(&[b"\0\0\0\0\0"]).await.as_deref(), Ok(&b"\0\0\0\0\0"[..]), "an empty message is one");
        assert_eq!(send(&[]).await, Err(Code::Unimplemented));
        assert_eq!(send(&[b"\0\0\0\0\0\0\0\0\0\0"]).await, Err(Code::Unimplemented));
        assert_eq!(send(&[b"\0\0\0\0\x01a", b"\0\0\0\0\x01b"]).await, Err(Code::Unimplemented));
        for part in [&b"\0"[..], b"\0\0\0\0", b"\0\0\0\0\x03ab"] {
            assert_eq!(send(&[part]).await, Err(Code::Internal), "{part:?}");
        }
        assert_eq!(send(&[b"\0\0\x40\0\x01"]).await, Err(Code::ResourceExhausted), "by its length alone");
        assert_eq!(send(&[b"\0\0\x40\0\0"]).await, Err(Code::Internal), "this one might be whole");
    }

    #[tokio::test]
    async fn a_request_that_does_not_arrive_ends_and_only_one_that_is_awaited_takes_a_place() {
        let (kib, places, budget) = (Arc::new(Semaphore::new(1)), Arc::new(Semaphore::new(1)), Budget::default());
        let time = Duration::from_millis(300);
        let limits = || Arriving { places: vec![(&places, &overloaded)], kib: &kib, budget: &budget, time };
        let silent = || Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        let began = Instant::now();
        let (late, refused) = tokio::join!(one_message(silent(), limits()), one_message(silent(), limits()));
        assert_eq!(late.err().map(|status| status.code()), Some(Code::DeadlineExceeded));
        assert_eq!(refused.err().map(|status| status.code()), Some(Code::Unavailable));
        assert!(began.elapsed() >= time);
        let _taken = places.try_acquire().expect("given back");
        assert!(one_message(Body::from("\0\0\0\0\0"), limits()).await.is_ok());
    }
}
