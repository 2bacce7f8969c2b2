//! A socket that writes once per turn of its connection, and closes so that the last answer arrives.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::stream::Stream;

/// Bytes that gather at most before they are written.
const GATHERED: usize = 64 * 1024;
/// What stays allocated for the next turn.
const KEPT: usize = 4 * 1024;
/// How long a peer may take to notice that it was answered, and how much it may send meanwhile.
const PATIENCE: Duration = Duration::from_secs(1);
const DISCARDED: usize = 16 << 20;

/// What a connection reads from and writes to.
///
/// It gathers what is written for [`Outbox::run`]: HTTP/2 flushes after every message that is not tiny, and one
/// system call for each is most of what an update for many streams costs.
///
/// Closed, it still reads for a while. A kernel that closes with data unread sends a reset, and a peer that is still
/// sending (a body over the limit, say) then loses the answer that tells it why.
#[derive(Debug)]
pub(super) struct Socket(Arc<Mutex<Inner>>);

/// The way to write what a [`Socket`] has gathered.
#[derive(Debug)]
pub(super) struct Outbox(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    stream: Stream,
    /// The peer has sent something since that was last asked.
    heard: bool,
    gathered: BytesMut,
    closing: Option<(Pin<Box<Sleep>>, usize)>,
}

pub(super) fn split(stream: Stream) -> (Socket, Outbox) {
    let inner = Arc::new(Mutex::new(Inner { stream, heard: true, gathered: BytesMut::new(), closing: None }));
    (Socket(Arc::clone(&inner)), Outbox(inner))
}

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Outbox {
    /// Whether the peer has sent anything since this was last asked.
    pub(super) fn has_heard(&self) -> bool {
        std::mem::take(&mut lock(&self.0).heard)
    }

    /// Runs the connection that has the socket; what a turn of it has to say goes out at the turn's end. While it is
    /// `crowded`, a turn lets the tasks that are ready go first: many streams have something to say at once, and
    /// otherwise the first of them would have a turn, and a system call, of its own.
    pub(super) async fn run<C: Future>(&self, mut connection: Pin<&mut C>, crowded: impl Fn() -> bool) -> C::Output {
        let mut waited = false;
        poll_fn(|context| {
            waited = !waited && crowded();
            if waited {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let ended = connection.as_mut().poll(context);
            // What the kernel does not take now wakes the task when it would. A broken socket tells whoever reads or
            // writes next.
            let _ = lock(&self.0).poll_write_gathered(context);
            ended
        })
        .await
    }
}

impl Inner {
    fn poll_write_gathered(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
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
            ready!(self.poll_write_gathered(context))?;
        }
        for slice in slices {
            self.gathered.extend_from_slice(slice);
        }
        Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()))
    }

    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let (deadline, discarded) = self.closing.get_or_insert_with(|| (Box::pin(sleep(PATIENCE)), 0));
        let mut chunk = [const { std::mem::MaybeUninit::uninit() }; 4096];
        while *discarded < DISCARDED && deadline.as_mut().poll(context).is_pending() {
            let mut buffer = ReadBuf::uninit(&mut chunk);
            // What it says does not matter any more, and need not be decrypted.
            let read = ready!(Pin::new(self.stream.tcp()).poll_read(context, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                break;
            }
            *discarded += buffer.filled().len();
        }
        Poll::Ready(())
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = lock(&self.0);
        let before = buffer.filled().len();
        let result = Pin::new(&mut inner.stream).poll_read(context, buffer);
        inner.heard |= buffer.filled().len() > before;
        result
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

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = lock(&self.0);
        if inner.closing.is_none() {
            ready!(inner.poll_write_gathered(context))?;
            ready!(Pin::new(&mut inner.stream).poll_shutdown(context))?;
        }
        ready!(inner.poll_linger(context));
        Poll::Ready(Ok(()))
    }
}
