//! One watched lead: its newest state, and the reads that keep it so.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::watch;

use super::hub::{Follower, Shared};
use super::state::State;

/// Waits between two reads that fail.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// A lead that somebody watches.
#[derive(Debug)]
pub(super) struct Topic {
    pub(super) lead_id: Arc<str>,
    state: watch::Sender<Option<Arc<State>>>,
    /// How often a read was asked for, and up to which of these it was done.
    wanted: AtomicU64,
    done: watch::Sender<u64>,
    reading: AtomicBool,
    /// The version before the change that made this topic, for its first read.
    since: Option<u64>,
    /// The workspace that the feed named.
    workspace_id: Mutex<String>,
    followers: Mutex<Vec<Weak<Follower>>>,
    shared: Weak<Shared>,
}

impl Drop for Topic {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.forget(&self.lead_id);
        }
    }
}

impl Topic {
    pub(super) fn new(lead_id: Arc<str>, since: Option<u64>, workspace_id: String, shared: Weak<Shared>) -> Self {
        Self {
            lead_id,
            state: watch::Sender::new(None),
            wanted: AtomicU64::new(0),
            done: watch::Sender::new(0),
            reading: AtomicBool::new(false),
            since,
            workspace_id: Mutex::new(workspace_id),
            followers: Mutex::default(),
            shared,
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Option<Arc<State>>> {
        self.state.subscribe()
    }

    pub(super) fn state(&self) -> Option<Arc<State>> {
        self.state.borrow().clone()
    }

    /// Wakes all that watch, to look around.
    pub(super) fn wake(&self) {
        self.state.send_modify(|_| {});
        let followers = self.followers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for follower in followers.into_iter().filter_map(|follower| follower.upgrade()) {
            follower.wake();
        }
    }

    pub(super) fn follow(&self, follower: &Arc<Follower>) {
        let mut followers = self.followers.lock().unwrap_or_else(PoisonError::into_inner);
        followers.retain(|known| known.strong_count() > 0);
        followers.push(Arc::downgrade(follower));
    }

    /// Whether no read is due.
    pub(super) fn is_current(&self) -> bool {
        *self.done.borrow() >= self.wanted.load(Ordering::Acquire)
    }

    /// Asks for a read. Those that ask while one is under way share the next.
    pub(super) fn want(self: &Arc<Self>, shared: &Arc<Shared>) -> u64 {
        let ticket = self.wanted.fetch_add(1, Ordering::AcqRel) + 1;
        if !self.reading.swap(true, Ordering::AcqRel) {
            tokio::spawn(read_until_current(Arc::downgrade(self), Arc::clone(shared)));
        }
        ticket
    }

    /// Waits for a read that began after it was asked for.
    pub(super) async fn wait(&self, ticket: u64) {
        // The sender lives as long as `self`.
        let _ = self.done.subscribe().wait_for(|done| *done >= ticket).await;
    }

    /// Reads once; `false` if the store cannot tell now.
    async fn read(self: &Arc<Self>, shared: &Shared) -> bool {
        let before = self.state();
        let since = match &before {
            Some(state) => Some(state.lead.version),
            None => self.since,
        };
        let Ok(_permit) = shared.reads.acquire().await else { return false };
        let read = match shared.store.read(&self.lead_id, since).await {
            Ok(read) => read,
            Err(error) => {
                tracing::debug!(%error, "a watched lead could not be read");
                return false;
            }
        };
        let state = match &before {
            None => Some(State::first(&self.lead_id, read, since)),
            Some(state) if read.is_none() && state.lead.version > 0 => match shared.store.is_deleted(&self.lead_id).await {
                Ok(deleted) => state.next(None, deleted),
                Err(_) => return false,
            },
            Some(state) => state.next(read, false),
        };
        if let Some(state) = state {
            let workspace_id = {
                let mut known = self.workspace_id.lock().unwrap_or_else(PoisonError::into_inner);
                if !state.lead.workspace_id.is_empty() {
                    known.clone_from(&state.lead.workspace_id);
                }
                known.clone()
            };
            self.state.send_replace(Some(Arc::new(state)));
            let followers = self.followers.lock().unwrap_or_else(PoisonError::into_inner).clone();
            for follower in followers.into_iter().chain(shared.followers_of(&workspace_id)).filter_map(|follower| follower.upgrade()) {
                follower.push(self, since);
            }
        }
        true
    }
}

async fn read_until_current(topic: Weak<Topic>, shared: Arc<Shared>) {
    let mut wait = RETRY.0;
    loop {
        // Nobody watches any more once the topic is gone.
        let Some(topic) = topic.upgrade() else { return };
        let ticket = topic.wanted.load(Ordering::Acquire);
        if topic.read(&shared).await {
            wait = RETRY.0;
            topic.done.send_replace(ticket);
            if topic.wanted.load(Ordering::Acquire) == ticket {
                topic.reading.store(false, Ordering::Release);
                // One may have asked between the two lines above.
                if topic.wanted.load(Ordering::Acquire) == ticket || topic.reading.swap(true, Ordering::AcqRel) {
                    return;
                }
            }
        } else {
            drop(topic);
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY.1);
        }
    }
}
