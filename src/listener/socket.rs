//! A socket that writes once per turn of its connection, and closes so that the last answer arrives.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use futures::FutureExt;
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::activity::Activity;
use super::refusal::Refusal;
use super::stream::Stream;

/// Bytes that gather at most before they are written.
const GATHERED: usize = 64 * 1024;
/// What stays allocated for the next turn.
const KEPT: usize = 4 * 1024;
/// What begins every HTTP/2 connection.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A connection that has ended is read until its peer has sent nothing for this long, or this long in all, or has sent this
/// much: a kernel that closes with data unread sends a reset, and a peer that is still sending loses the answer by it.
const LINGER_SILENCE: Duration = Duration::from_secs(5);
const LINGER_TIMEOUT: Duration = Duration::from_secs(30);
const LINGER_BYTES: u64 = 1 << 30;
/// The same when the process ends.
const LINGER_AT_END: Duration = Duration::from_secs(1);
/// How long the end of an HTTP/2 connection is kept from h2 while bodies are being read, and how often it is looked whether
/// they still are. h2 lets a body that is whole fail when its connection ends before it was read.
const END_HELD: Duration = Duration::from_secs(1);
const END_LOOK: Duration = Duration::from_millis(10);
/// What is read at once of a connection that has ended.
const LINGER_CHUNK: usize = 16 * 1024;

/// What a connection reads from and writes to.
///
/// It gathers what is written for [`Outbox::run`]: HTTP/2 flushes after every message that is not tiny, and one
/// system call for each is most of what an update for many streams costs. It does not close: [`Outbox::close`] does.
///
/// A peer that cannot be written to any more may have sent requests before. Nobody is told of the failure: what the peer has
/// sent is read first, and then its end.
#[derive(Debug)]
pub(super) struct Socket(Arc<Mutex<Inner>>);

/// The way to write what a [`Socket`] has gathered, and to see what its peer does.
#[derive(Debug)]
pub(super) struct Outbox(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    stream: Stream,
    gathered: BytesMut,
    activity: Arc<Activity>,
    protocol: Protocol,
    /// When the headers of a request began to arrive, and how many requests there had been before.
    head: Option<(Instant, u64)>,
    /// The peer does not take what is written.
    is_broken: bool,
    /// The end of the connection, which is kept back: until when, and when to look again.
    held: Option<(Instant, Pin<Box<Sleep>>)>,
}

/// What a peer speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    /// So far it has sent this many bytes of HTTP/2's preface.
    Unknown(usize),
    Http1,
    Http2,
}

pub(super) fn split(stream: Stream, activity: Arc<Activity>) -> (Socket, Outbox) {
    let inner =
        Inner { stream, gathered: BytesMut::new(), activity, protocol: Protocol::Unknown(0), head: None, is_broken: false, held: None };
    let inner = Arc::new(Mutex::new(inner));
    (Socket(Arc::clone(&inner)), Outbox(inner))
}

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Outbox {
    /// Runs the connection that has the socket; what a turn of it has to say goes out at the turn's end. While it is
    /// `crowded`, a turn lets the tasks that are ready go first: many streams have something to say at once, and
    /// otherwise the first of them would have a turn, and a system call, of its own.
    ///
    /// What the last turn has to say is left to [`Self::close`].
    pub(super) async fn run<C: Future>(&self, mut connection: Pin<&mut C>, crowded: impl Fn() -> bool) -> C::Output {
        let mut waited = false;
        poll_fn(|context| {
            waited = !waited && crowded();
            if waited {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let ended = connection.as_mut().poll(context);
            if ended.is_pending() {
                // What the kernel does not take now wakes the task when it would.
                let _ = lock(&self.0).poll_write_gathered(context);
            }
            ended
        })
        .await
    }

    pub(super) fn is_http2(&self) -> bool {
        lock(&self.0).protocol == Protocol::Http2
    }

    /// Whether the peer speaks HTTP/1, or what it has sent may become that.
    pub(super) fn may_be_http1(&self) -> bool {
        // The methods that begin as the preface does.
        matches!(lock(&self.0).protocol, Protocol::Http1 | Protocol::Unknown(..4))
    }

    /// Since when the peer has been sending headers, or HTTP/2's preface, that are not complete.
    pub(super) fn head_since(&self) -> Option<Instant> {
        let inner = lock(&self.0);
        let (since, requests) = inner.head?;
        let is_open = inner.protocol != Protocol::Http2 && inner.activity.requests() == requests && inner.activity.idle_since().is_some();
        is_open.then_some(since)
    }

    /// Whether the peer sends nothing more. Ready with `false`: it has sent something that was not read, and this has to be
    /// asked again.
    pub(super) fn poll_has_closed(&self, context: &mut Context<'_>) -> Poll<bool> {
        let mut inner = lock(&self.0);
        let tcp = inner.stream.tcp();
        if ready!(tcp.poll_read_ready(context)).is_err() {
            return Poll::Ready(true);
        }
        let ready = tcp.ready(Interest::READABLE).now_or_never();
        Poll::Ready(matches!(ready, Some(Ok(ready)) if ready.is_read_closed()))
    }

    /// The status of the refusal that hyper has just written, which is taken out again.
    pub(super) fn take_refusal(&self) -> Option<StatusCode> {
        const BEGIN: &[u8] = b"HTTP/1.1 ";
        let mut inner = lock(&self.0);
        // It is a head without a body, and the last thing that was written.
        let at = inner.gathered.windows(BEGIN.len()).rposition(|bytes| bytes == BEGIN)?;
        let status = inner.gathered.get(at + BEGIN.len()..at + BEGIN.len() + 3)?;
        let status = StatusCode::from_bytes(status).ok().filter(StatusCode::is_client_error)?;
        if !inner.gathered[at..].ends_with(b"\r\n\r\n") {
            return None;
        }
        inner.gathered.truncate(at);
        Some(status)
    }

    /// Adds a refusal to what is going to be written.
    pub(super) fn refuse(&self, refusal: &Refusal) {
        lock(&self.0).gathered.extend_from_slice(&refusal.to_http1());
    }

    /// Writes what is left, closes our side, and reads on until the peer is silent, so that it sees what was written.
    pub(super) async fn close(&self, process_ends: &CancellationToken) {
        let closed = async {
            if poll_fn(|context| lock(&self.0).poll_finish(context)).await.is_err() {
                return;
            }
            let (mut chunk, mut length) = (vec![0; LINGER_CHUNK], 0);
            while length < LINGER_BYTES {
                match timeout(LINGER_SILENCE, poll_fn(|context| lock(&self.0).poll_drop(context, &mut chunk))).await {
                    Ok(Ok(count @ 1..)) => length += count as u64,
                    _ => return,
                }
            }
        };
        let ends = async {
            process_ends.cancelled().await;
            sleep(LINGER_AT_END).await;
        };
        tokio::select! {
            _ = timeout(LINGER_TIMEOUT, closed) => {}
            () = ends => {}
        }
    }
}

impl Inner {
    fn poll_write_gathered(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let written = if self.is_broken { Err(io::ErrorKind::BrokenPipe.into()) } else { ready!(self.poll_write(context)) };
        if written.is_err() {
            self.is_broken = true;
            self.gathered = BytesMut::new();
        }
        Poll::Ready(())
    }

    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.gathered.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(context, &self.gathered))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.gathered.advance(written);
        }
        if self.gathered.capacity() > KEPT {
            self.gathered = BytesMut::new();
        }
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_gather(&mut self, context: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.gathered.len() >= GATHERED {
            ready!(self.poll_write_gathered(context));
        }
        for slice in slices {
            self.gathered.extend_from_slice(slice);
        }
        Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()))
    }

    fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_gathered(context));
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    /// What it says does not matter any more, and need not be decrypted.
    fn poll_drop(&mut self, context: &mut Context<'_>, chunk: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(chunk);
        ready!(Pin::new(self.stream.tcp()).poll_read(context, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().len()))
    }

    fn heard(&mut self, bytes: &[u8]) {
        if let Protocol::Unknown(matched) = self.protocol {
            let expected = &HTTP2_PREFACE[matched..];
            let count = bytes.len().min(expected.len());
            self.protocol = match bytes[..count] == expected[..count] {
                false => Protocol::Http1,
                true if count == expected.len() => Protocol::Http2,
                true => Protocol::Unknown(matched + count),
            };
        }
        // Some send an empty line between requests.
        let begins = self.protocol != Protocol::Http2 && bytes.iter().any(|byte| !b"\r\n".contains(byte));
        if begins && self.activity.idle_since().is_some() {
            let requests = self.activity.requests();
            if self.head.is_none_or(|(_, before)| before != requests) {
                self.head = Some((Instant::now(), requests));
            }
        }
    }

    /// Waits until the end of the connection may be told. h2 forgets the streams that came just before it, too.
    fn poll_hold_end(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.protocol != Protocol::Http2 {
            return Poll::Ready(());
        }
        let (until, look) = self.held.get_or_insert_with(|| (Instant::now() + END_HELD, Box::pin(sleep(END_LOOK))));
        ready!(look.as_mut().poll(context));
        while self.activity.has_unread() && Instant::now() < *until {
            look.as_mut().reset(Instant::now() + END_LOOK);
            ready!(look.as_mut().poll(context));
        }
        Poll::Ready(())
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = lock(&self.0);
        if inner.held.is_some() {
            ready!(inner.poll_hold_end(context));
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let result = ready!(Pin::new(&mut inner.stream).poll_read(context, buffer));
        let count = buffer.filled().len() - before;
        if count == 0 && buffer.remaining() > 0 {
            ready!(inner.poll_hold_end(context));
        }
        inner.heard(&buffer.filled()[before..]);
        Poll::Ready(result)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        lock(&self.0).poll_gather(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        lock(&self.0).poll_gather(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// The turn is not over: [`Outbox::run`] sees its end.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// There may be more to say: [`Outbox::close`] follows.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
