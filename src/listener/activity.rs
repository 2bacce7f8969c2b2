//! What one connection is doing: the requests that are under way on it, and whether it is about to end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Shared by a connection and its requests.
#[derive(Debug)]
pub(super) struct Activity {
    began: Instant,
    in_flight: AtomicU64,
    /// Requests so far, the ones that are under way included.
    requests: AtomicU64,
    /// Bodies of requests that were not read to their end yet.
    unread: AtomicU64,
    /// Answers under way by HTTP/1 that have no known length.
    streams: AtomicU64,
    /// When the last answer was complete, in milliseconds since the connection began.
    idle_since: AtomicU64,
    ending: AtomicBool,
}

impl Activity {
    pub(super) fn new() -> Arc<Self> {
        let (zero, ending) = (AtomicU64::default, AtomicBool::default());
        Arc::new(Self {
            began: Instant::now(),
            in_flight: zero(),
            requests: zero(),
            unread: zero(),
            streams: zero(),
            idle_since: zero(),
            ending,
        })
    }

    pub(super) fn begin(self: &Arc<Self>) -> InFlight {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        InFlight { activity: Arc::clone(self), is_stream: false }
    }

    pub(super) fn begin_body(self: &Arc<Self>) -> UnreadBody {
        self.unread.fetch_add(1, Ordering::AcqRel);
        UnreadBody(Arc::clone(self))
    }

    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Since when no request has been under way; `None`: one is.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let is_idle = self.in_flight.load(Ordering::Acquire) == 0;
        is_idle.then(|| self.began + Duration::from_millis(self.idle_since.load(Ordering::Relaxed)))
    }

    pub(super) fn has_unread(&self) -> bool {
        self.unread.load(Ordering::Acquire) > 0
    }

    pub(super) fn has_streams(&self) -> bool {
        self.streams.load(Ordering::Relaxed) > 0
    }

    /// From now on the next answer by HTTP/1 is the last.
    pub(super) fn end_after_next_answer(&self) {
        self.ending.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }
}

/// The body of a request, until it was read or given up.
#[derive(Debug)]
pub(super) struct UnreadBody(Arc<Activity>);

impl Drop for UnreadBody {
    fn drop(&mut self) {
        self.0.unread.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A request and its answer, until the answer is complete or given up.
#[derive(Debug)]
pub(super) struct InFlight {
    activity: Arc<Activity>,
    is_stream: bool,
}

impl InFlight {
    /// The answer goes by HTTP/1 and has no known length.
    pub(super) fn is_stream(&mut self) {
        if !std::mem::replace(&mut self.is_stream, true) {
            self.activity.streams.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let activity = &self.activity;
        if self.is_stream {
            activity.streams.fetch_sub(1, Ordering::Relaxed);
        }
        let now = u64::try_from(activity.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        activity.idle_since.store(now, Ordering::Relaxed);
        activity.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}
