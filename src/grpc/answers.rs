//! Answers of unary calls that wait to be sent.
//!
//! A client that does not read must not make the server keep what it asked for. Answers are handed on in pieces, and what
//! is left counts, with the place of its call, until its last piece is taken. A client that takes none for some time
//! loses its answer.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, interval};

/// The largest piece. hyper holds one, and asks for the next when it is on its way.
const PIECE: usize = 16 * 1024;
/// How long a client may take none.
const UNREAD: Duration = Duration::from_secs(10);

/// The answers that wait, of one listener.
#[derive(Clone, Debug, Default)]
pub(super) struct Answers(Arc<Registry>);

#[derive(Debug, Default)]
struct Registry {
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, Arc<Mutex<Option<Rest>>>>>,
}

/// An answer that waits: dropped, it is gone.
#[derive(Debug)]
pub(super) struct Waiting {
    number: u64,
    rest: Arc<Mutex<Option<Rest>>>,
    registry: Arc<Registry>,
    /// Given back when the stream has ended, and not before: hyper holds a piece of an answer that nobody reads.
    _call: Option<OwnedSemaphorePermit>,
}

#[derive(Debug)]
struct Rest {
    chunks: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    since: Instant,
    _counted: Vec<OwnedSemaphorePermit>,
}

/// What is to be sent next.
pub(super) enum Next {
    Piece(Bytes),
    /// The last thing.
    Trailers(HeaderMap),
    /// The client took too long.
    Dropped,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Answers {
    /// Begins to look after them.
    pub(super) fn start() -> Self {
        Self::drop_after(UNREAD)
    }

    fn drop_after(unread: Duration) -> Self {
        let answers = Self::default();
        tokio::spawn(drop_unread(Arc::downgrade(&answers.0), unread));
        answers
    }

    /// Keeps an answer until it is sent, or its client has taken nothing of it for too long; `counted` is free then.
    /// `call` is free when the stream has ended.
    pub(super) fn keep(
        &self,
        chunks: VecDeque<Bytes>,
        trailers: HeaderMap,
        counted: Vec<OwnedSemaphorePermit>,
        call: Option<OwnedSemaphorePermit>,
    ) -> Waiting {
        let rest = Rest { chunks, trailers: Some(trailers), since: Instant::now(), _counted: counted };
        let rest = Arc::new(Mutex::new(Some(rest)));
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.0.waiting).insert(number, Arc::clone(&rest));
        Waiting { number, rest, registry: Arc::clone(&self.0), _call: call }
    }
}

impl Waiting {
    pub(super) fn next(&self) -> Next {
        let mut guard = lock(&self.rest);
        let Some(rest) = &mut *guard else { return Next::Dropped };
        rest.since = Instant::now();
        while let Some(chunk) = rest.chunks.front_mut() {
            let piece = chunk.split_to(chunk.len().min(PIECE));
            if chunk.is_empty() {
                rest.chunks.pop_front();
            }
            if !piece.is_empty() {
                return Next::Piece(piece);
            }
        }
        let trailers = rest.trailers.take().unwrap_or_default();
        *guard = None;
        Next::Trailers(trailers)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        lock(&self.registry.waiting).remove(&self.number);
    }
}

async fn drop_unread(registry: Weak<Registry>, unread: Duration) {
    let mut ticks = interval(unread / 10);
    loop {
        ticks.tick().await;
        let Some(registry) = registry.upgrade() else { return };
        let waiting: Vec<_> = lock(&registry.waiting).values().cloned().collect();
        for rest in waiting {
            let mut rest = lock(&rest);
            if rest.as_ref().is_some_and(|rest| rest.since.elapsed() >= unread) {
                *rest = None;
                metrics::counter!("leadfold_answers_unread_total").increment(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn an_answer_comes_in_pieces_and_is_dropped_when_nobody_takes_them() {
        let unread = Duration::from_millis(500);
        let (answers, places) = (Answers::drop_after(unread), Arc::new(Semaphore::new(2)));
        let place = || Arc::clone(&places).try_acquire_owned().expect("a place");
        let chunks = || VecDeque::from([Bytes::from(vec![1; PIECE + 1]), Bytes::new(), Bytes::from_static(b"x")]);
        let answer = answers.keep(chunks(), HeaderMap::new(), vec![place()], Some(place()));
        for length in [PIECE, 1, 1] {
            assert!(matches!(answer.next(), Next::Piece(piece) if piece.len() == length));
        }
        assert_eq!(places.available_permits(), 0);
        assert!(matches!(answer.next(), Next::Trailers(_)));
        assert_eq!(places.available_permits(), 1);
        drop(answer);
        assert_eq!(places.available_permits(), 2);

        let answer = answers.keep(chunks(), HeaderMap::new(), vec![place()], Some(place()));
        let began = Instant::now();
        while places.available_permits() == 0 {
            assert!(began.elapsed() < 20 * unread, "it is not dropped");
            tokio::time::sleep(unread / 50).await;
        }
        assert!(began.elapsed() >= unread && places.available_permits() == 1, "its stream is still there");
        assert!(matches!(answer.next(), Next::Dropped));
        drop(answer);
        assert_eq!((places.available_permits(), lock(&answers.0.waiting).len()), (2, 0));
    }
}
