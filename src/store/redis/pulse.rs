//! What the readers of one feed have to say together: gaps are told once for all of them.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::feed::Closed;
use crate::store::FeedEvent;

/// Gaps are told this often at most: a shard that comes back is one for each of its readers, and each that is told
/// makes all that is watched be read again.
const GAPS: Duration = Duration::from_millis(200);
/// A lost connection is logged this often at most, whichever reader has lost it.
const LOG_EVERY: Duration = Duration::from_secs(30);

/// What the readers of a feed have to say together.
pub(super) struct Pulse {
    state: Mutex<State>,
    events: mpsc::Sender<FeedEvent>,
}

#[derive(Default)]
struct State {
    /// A gap is to be told.
    gap: bool,
    told: Option<Instant>,
    logged: Option<Instant>,
}

impl Pulse {
    pub(super) fn new(events: mpsc::Sender<FeedEvent>) -> Self {
        Self { state: Mutex::default(), events }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a lost connection is to be logged.
    pub(super) fn logs(&self) -> bool {
        let mut state = self.state();
        let due = state.logged.is_none_or(|logged| logged.elapsed() >= LOG_EVERY);
        if due {
            state.logged = Some(Instant::now());
        }
        due
    }

    /// One reader may have missed something. What it reads after this call comes after the gap is told, or is told again
    /// by it.
    pub(super) async fn gap(&self) -> Result<(), Closed> {
        self.state().gap = true;
        self.tell_gap().await
    }

    /// The reader of a part has told everything that its server has; which may not be everything.
    pub(super) async fn unconfirmed(&self, part: u16) -> Result<(), Closed> {
        self.tell_gap().await?;
        self.tell(FeedEvent::Unconfirmed { part }).await
    }

    /// The reader of a part has told everything up to now.
    pub(super) async fn beat(&self, part: u16) -> Result<(), Closed> {
        self.tell_gap().await?;
        if self.state().gap { Ok(()) } else { self.tell(FeedEvent::Alive { part }).await }
    }

    async fn tell_gap(&self) -> Result<(), Closed> {
        let due = {
            let mut state = self.state();
            let due = state.gap && state.told.is_none_or(|told| told.elapsed() >= GAPS);
            if due {
                (state.gap, state.told) = (false, Some(Instant::now()));
            }
            due
        };
        if due { self.tell(FeedEvent::Gap).await } else { Ok(()) }
    }

    async fn tell(&self, event: FeedEvent) -> Result<(), Closed> {
        self.events.send(event).await.map_err(|_| Closed)
    }
}
