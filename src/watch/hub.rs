//! Who wants to know of which lead, and the feed that tells what to look at.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore, watch};

use super::state::State;
use super::topic::Topic;
use crate::store::{FeedEvent, FeedReceiver, Store};

/// Reads of watched leads that are under way at once.
const READS_IN_FLIGHT: usize = 64;
/// How long the feed may be silent before it is in doubt: it proves itself every second.
const TRUSTED_FOR: Duration = Duration::from_millis(2500);
/// Leads of which a follower is behind at most; beyond, it looks at all of its scope instead.
const MAX_PENDING: usize = 10_000;

/// Everything that is watched on this instance.
#[derive(Debug)]
pub struct Hub {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    pub(super) store: Arc<dyn Store>,
    pub(super) reads: Semaphore,
    topics: Mutex<HashMap<Arc<str>, Weak<Topic>>>,
    scopes: Mutex<HashMap<String, Vec<Weak<Follower>>>>,
    started: Instant,
    /// When each part of the feed last proved to be complete, in ms since `started`.
    alive: Vec<AtomicU64>,
    /// When each part last proved to be connected at least.
    connected: Vec<AtomicU64>,
    draining: AtomicBool,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("store", &self.store.name()).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// Starts to follow the store's feed.
    pub fn start(store: Arc<dyn Store>) -> Self {
        let feed = store.feed();
        let parts = usize::from(store.feed_parts().max(1));
        let times = || std::iter::repeat_with(AtomicU64::default).take(parts).collect();
        let shared = Arc::new(Shared {
            store,
            reads: Semaphore::new(READS_IN_FLIGHT),
            topics: Mutex::default(),
            scopes: Mutex::default(),
            started: Instant::now(),
            alive: times(),
            connected: times(),
            draining: AtomicBool::new(false),
        });
        tokio::spawn(follow_feed(feed, Arc::clone(&shared)));
        Self { shared }
    }

    /// Watches a lead. Its state is read after the call, so nothing that was written before it is missing.
    pub async fn watch(&self, lead_id: &str) -> Watched {
        self.watched(self.shared.topic(lead_id, None, String::new())).await
    }

    async fn watched(&self, topic: Arc<Topic>) -> Watched {
        let receiver = topic.subscribe();
        let ticket = topic.want(&self.shared);
        topic.wait(ticket).await;
        Watched { topic, receiver, shared: Arc::clone(&self.shared) }
    }

    /// Follows a workspace: every change of its leads from now on.
    pub fn follow_workspace(&self, workspace_id: &str) -> Arc<Follower> {
        let follower = Arc::new(Follower::default());
        let mut scopes = lock(&self.shared.scopes);
        scopes.entry(workspace_id.to_owned()).or_default().push(Arc::downgrade(&follower));
        follower
    }

    /// Follows one lead more.
    pub async fn follow_lead(&self, follower: &Arc<Follower>, lead_id: &str) -> Watched {
        let topic = self.shared.topic(lead_id, None, String::new());
        topic.follow(follower);
        self.watched(topic).await
    }

    /// Whether the feed is known to have told everything up to now, give or take a second.
    pub fn is_trusted(&self) -> bool {
        self.silence() < TRUSTED_FOR
    }

    /// Whether it is known to have told everything of one lead.
    pub fn is_trusted_for(&self, lead_id: &str) -> bool {
        self.shared.is_trusted_for(lead_id)
    }

    /// How long ago the feed last proved to be complete, in that part of it where this is longest ago.
    pub fn silence(&self) -> Duration {
        (0..self.shared.alive.len()).map(|part| self.shared.silence(part)).max().unwrap_or_default()
    }

    /// How many parts the feed has, how many of them are silent, and how many more are heard without being confirmed.
    pub fn parts(&self) -> (usize, usize, usize) {
        let parts = self.shared.alive.len();
        let doubtful = (0..parts).filter(|part| self.shared.silence(*part) >= TRUSTED_FOR).count();
        let silent = (0..parts).filter(|part| self.shared.since(&self.shared.connected, *part) >= TRUSTED_FOR).count();
        (parts, silent, doubtful.saturating_sub(silent))
    }

    /// Leads that are watched now.
    pub fn topics(&self) -> usize {
        lock(&self.shared.topics).len()
    }

    /// Ends every stream, and lets none begin.
    pub fn drain(&self) {
        self.shared.draining.store(true, Ordering::Release);
        self.wake();
    }

    /// Wakes every stream, to look around.
    pub fn wake(&self) {
        let topics: Vec<_> = lock(&self.shared.topics).values().filter_map(Weak::upgrade).collect();
        for topic in topics {
            topic.wake();
        }
        for follower in lock(&self.shared.scopes).values().flatten().filter_map(Weak::upgrade) {
            follower.wake();
        }
    }

    /// Whether streams are to end.
    pub fn is_draining(&self) -> bool {
        self.shared.draining.load(Ordering::Acquire)
    }
}

impl Shared {
    fn is_trusted_for(&self, lead_id: &str) -> bool {
        self.silence(usize::from(self.store.feed_part(lead_id))) < TRUSTED_FOR
    }

    fn silence(&self, part: usize) -> Duration {
        self.since(&self.alive, part)
    }

    fn since(&self, times: &[AtomicU64], part: usize) -> Duration {
        let time = times.get(part).map_or(0, |time| time.load(Ordering::Acquire));
        self.started.elapsed().saturating_sub(Duration::from_millis(time))
    }

    fn note(&self, times: &[AtomicU64], part: u16) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        if let Some(time) = times.get(usize::from(part)) {
            time.store(now, Ordering::Release);
        }
    }

    /// The topic of a lead, which lives as long as somebody holds it.
    fn topic(self: &Arc<Self>, lead_id: &str, since: Option<u64>, workspace_id: String) -> Arc<Topic> {
        let mut topics = lock(&self.topics);
        if let Some(topic) = topics.get(lead_id).and_then(Weak::upgrade) {
            return topic;
        }
        let lead_id: Arc<str> = lead_id.into();
        let topic = Arc::new(Topic::new(Arc::clone(&lead_id), since, workspace_id, Arc::downgrade(self)));
        topics.insert(lead_id, Arc::downgrade(&topic));
        topic
    }

    /// The last holder of a topic is gone; a new one may have come for the lead meanwhile.
    pub(super) fn forget(&self, lead_id: &str) {
        let mut topics = lock(&self.topics);
        if topics.get(lead_id).is_some_and(|topic| topic.strong_count() == 0) {
            topics.remove(lead_id);
        }
    }

    pub(super) fn followers_of(&self, workspace_id: &str) -> Vec<Weak<Follower>> {
        lock(&self.scopes).get(workspace_id).cloned().unwrap_or_default()
    }

    /// Whether anybody follows the workspace; the list is tidied on the way.
    fn is_followed(&self, workspace_id: &str) -> bool {
        let mut scopes = lock(&self.scopes);
        let Some(followers) = scopes.get_mut(workspace_id) else { return false };
        followers.retain(|follower| follower.strong_count() > 0);
        if followers.is_empty() {
            scopes.remove(workspace_id);
            return false;
        }
        true
    }

    fn told(self: &Arc<Self>, event: FeedEvent) {
        match event {
            FeedEvent::Changed { lead_id, workspace_id, previous, .. } => {
                let watched = lock(&self.topics).get(&*lead_id).and_then(Weak::upgrade);
                match watched {
                    Some(topic) => drop(topic.want(self)),
                    None if self.is_followed(&workspace_id) => {
                        let topic = self.topic(&lead_id, Some(previous), workspace_id);
                        let ticket = topic.want(self);
                        // Nobody holds it yet: it lives until its followers have it.
                        tokio::spawn(async move { topic.wait(ticket).await });
                    }
                    None => {}
                }
            }
            FeedEvent::Gap => {
                let topics: Vec<_> = lock(&self.topics).values().filter_map(Weak::upgrade).collect();
                metrics::counter!("leadfold_feed_gaps_total").increment(1);
                for topic in topics {
                    topic.want(self);
                }
                for follower in lock(&self.scopes).values().flatten().filter_map(Weak::upgrade) {
                    follower.rescan();
                }
            }
            FeedEvent::Alive { part } => {
                self.note(&self.alive, part);
                self.note(&self.connected, part);
            }
            FeedEvent::Unconfirmed { part } => self.note(&self.connected, part),
        }
    }
}

async fn follow_feed(mut feed: FeedReceiver, shared: Arc<Shared>) {
    while let Some(event) = feed.recv().await {
        shared.told(event);
    }
}

/// A lead that is being watched.
#[derive(Debug)]
pub struct Watched {
    topic: Arc<Topic>,
    receiver: watch::Receiver<Option<Arc<State>>>,
    shared: Arc<Shared>,
}

impl Watched {
    /// The newest state; [`Watched::changed`] waits for one after it.
    pub fn state(&mut self) -> Arc<State> {
        self.receiver.mark_unchanged();
        self.peek()
    }

    /// The newest state.
    pub fn peek(&self) -> Arc<State> {
        self.topic.state().unwrap_or_else(|| Arc::new(State::first(&self.topic.lead_id, None, None)))
    }

    /// Waits for a state after the last one that was looked at, or for the end of all streams.
    pub async fn changed(&mut self) {
        // The sender lives as long as the topic that `self` holds.
        let _ = self.receiver.changed().await;
    }

    /// Whether the newest state is all there is to know.
    pub fn is_current(&self) -> bool {
        self.topic.is_current() && self.shared.is_trusted_for(&self.topic.lead_id)
    }

    /// Whether the feed is known to have told everything of this lead.
    pub fn is_trusted(&self) -> bool {
        self.shared.is_trusted_for(&self.topic.lead_id)
    }

    /// Reads the lead for a watcher that missed more than the state can tell.
    ///
    /// # Errors
    /// The store's.
    pub async fn resume(&self, since: u64) -> Result<Option<State>, crate::store::StoreError> {
        let read = self.shared.store.read(&self.topic.lead_id, Some(since)).await?;
        Ok(read.map(|read| State::resumed(read, since)))
    }
}

/// One that follows many leads: which of them have changed since it last looked.
#[derive(Debug, Default)]
pub struct Follower {
    pending: Mutex<Pending>,
    notify: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    /// Each with the version before its first change that was not looked at, if that is known.
    topics: HashMap<Arc<str>, (Arc<Topic>, Option<u64>)>,
    order: std::collections::VecDeque<Arc<str>>,
    rescan: bool,
}

/// What a follower has to look at next.
#[derive(Debug)]
pub enum Next {
    /// This lead has changed, since this version if that is known.
    Lead(Arc<str>, Arc<State>, Option<u64>),
    /// Any lead may have changed.
    Rescan,
}

impl Follower {
    pub(super) fn push(&self, topic: &Arc<Topic>, since: Option<u64>) {
        let mut pending = lock(&self.pending);
        if pending.rescan || pending.topics.contains_key(&topic.lead_id) {
            metrics::counter!("leadfold_watch_conflations_total").increment(1);
            return;
        }
        if pending.order.len() >= MAX_PENDING {
            *pending = Pending { rescan: true, ..Pending::default() };
        } else {
            pending.order.push_back(Arc::clone(&topic.lead_id));
            pending.topics.insert(Arc::clone(&topic.lead_id), (Arc::clone(topic), since));
        }
        drop(pending);
        self.notify.notify_one();
    }

    /// Wakes it, to look around.
    pub(super) fn wake(&self) {
        self.notify.notify_one();
    }

    fn rescan(&self) {
        *lock(&self.pending) = Pending { rescan: true, ..Pending::default() };
        self.notify.notify_one();
    }

    /// What to look at next, if there is anything.
    pub fn next(&self) -> Option<Next> {
        let mut pending = lock(&self.pending);
        if std::mem::take(&mut pending.rescan) {
            return Some(Next::Rescan);
        }
        let lead_id = pending.order.pop_front()?;
        let (topic, since) = pending.topics.remove(&lead_id)?;
        drop(pending);
        let state = topic.state()?;
        Some(Next::Lead(lead_id, state, since))
    }

    /// Waits until there may be something to look at, or all streams end.
    pub async fn wait(&self) {
        self.notify.notified().await;
    }
}
