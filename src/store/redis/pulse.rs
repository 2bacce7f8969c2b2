//! Many readers, one feed: it is alive when all of them are, and has a gap when one of them has.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::feed::Closed;
use crate::store::FeedEvent;

/// Gaps are told this often at most: a shard that comes back is one for each of its readers, and each that is told
/// makes all that is watched be read again.
const GAPS: Duration = Duration::from_millis(200);
/// A lost connection is complained of this often at most, whichever reader has lost it.
const COMPLAINTS: Duration = Duration::from_secs(30);

/// What the readers of a feed have to say together.
pub(super) struct Pulse {
    state: Mutex<State>,
    events: mpsc::Sender<FeedEvent>,
}

struct State {
    /// Which readers have been heard of since the feed was last said to be alive.
    heard: Vec<bool>,
    /// A gap is to be told.
    gap: bool,
    told: Option<Instant>,
    complained: Option<Instant>,
}

impl Pulse {
    pub(super) fn new(readers: usize, events: mpsc::Sender<FeedEvent>) -> Self {
        Self { state: Mutex::new(State { heard: vec![false; readers], gap: false, told: None, complained: None }), events }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is time to complain again.
    pub(super) fn complains(&self) -> bool {
        let mut state = self.state();
        let due = state.complained.is_none_or(|complained| complained.elapsed() >= COMPLAINTS);
        if due {
            state.complained = Some(Instant::now());
        }
        due
    }

    /// One reader may have missed something. What it reads after this call comes after the gap is told, or is told again
    /// by it.
    pub(super) async fn gap(&self) -> Result<(), Closed> {
        self.state().gap = true;
        self.tell_gap().await
    }

    /// One reader has told everything up to now.
    pub(super) async fn beat(&self, reader: usize) -> Result<(), Closed> {
        self.tell_gap().await?;
        let alive = {
            let mut state = self.state();
            if let Some(heard) = state.heard.get_mut(reader) {
                *heard = true;
            }
            let alive = !state.gap && state.heard.iter().all(|heard| *heard);
            if alive {
                state.heard.fill(false);
            }
            alive
        };
        if alive { self.tell(FeedEvent::Alive).await } else { Ok(()) }
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
