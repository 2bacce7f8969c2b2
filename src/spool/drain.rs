//! Applies what is spooled, when the store is back.
//!
//! Changes are read in the order in which they arrived. Those of one lead are applied one after the other, those of
//! different leads together. Where a part of the store fails, its changes wait and those of the others go on: the
//! window says which. What was done is acknowledged up to the oldest that was not.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::reader::{Entry, Reader};
use super::window::{Again, Group, Lane, Most, Window};
use super::writer::Command;
use super::{Breaker, Spool};
use crate::dead_letters::{DeadLetters, Undeliverable};
use crate::store::{Store, StoreError};
use crate::time::Timestamp;

/// Changes that are applied at the same time.
const BATCH: usize = 128;
/// How long one change is tried.
const APPLY_TIMEOUT: Duration = Duration::from_secs(2);
/// What is done is acknowledged this often while there is more to do: each time costs an fsync.
const ACKNOWLEDGE: Duration = Duration::from_millis(100);
/// The first and the longest wait for a disk that cannot be read; it doubles.
const READ_BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// How often the log says that it still cannot be read.
const READ_COMPLAINT: Duration = Duration::from_secs(60);
/// How often the spool tells how it is doing.
const TELL: Duration = Duration::from_secs(1);
/// How often damaged segments that were kept long enough are looked for, in the same unit.
const EXPIRE_EVERY: u64 = 3600;

/// What empties the spool.
pub struct Drainer {
    /// What is emptied.
    pub spool: Arc<Spool>,
    /// Where it goes.
    pub store: Arc<dyn Store>,
    /// Learns from it whether the store works.
    pub breaker: Arc<Breaker>,
    /// Where that goes which can never be applied.
    pub dead_letters: Option<Arc<DeadLetters>>,
    /// Changes per second at most: the store has others to serve.
    pub rate: u32,
}

/// What became of one entry.
enum Fate {
    Applied,
    /// It can never be applied, and was put aside.
    PutAside,
    /// Not now: this, and what follows of its lead, is tried again.
    Later,
    /// It can never be applied, and cannot be kept as a dead letter now.
    NoDeadLetter(std::io::Error),
}

/// What became of entries of one lead.
struct Tried {
    group: Group,
    /// How many are done, from the first on, and how many of these were applied.
    done: usize,
    applied: u64,
    /// What stopped the next one.
    failed: Option<Lane>,
    /// Why it is no dead letter.
    no_dead_letter: Option<std::io::Error>,
}

impl Drainer {
    /// Works until its task is dropped. A spool has one drainer.
    pub async fn run(self) {
        let reader = self.spool.reader.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let (Some(reader), Some(commands)) = (reader, &self.spool.commands) else { return };
        let mut readers = Readers::new(reader);
        let mut window = Window::default();
        let mut running = FuturesUnordered::new();
        let mut acknowledged = Acknowledged { below: readers.read, again: Instant::now() };
        // The next change may be tried from then on.
        let mut next_start = Instant::now();
        loop {
            let now = Instant::now();
            // Nothing is read ahead for a store that fails as a whole.
            let is_away = self.breaker.is_open();
            if window.has_room() && (!is_away || window.is_empty()) {
                readers.start(&mut window, now);
            }
            let is_due = window.next_probe().is_some_and(|again| again <= now);
            if next_start <= now && (window.in_flight() <= BATCH / 2 || is_due) {
                let groups = window.choose(now, if is_away { Most::One } else { Most::Entries(BATCH) });
                let count: usize = groups.iter().map(|group| group.entries.len()).sum();
                next_start = now + Duration::from_secs(1).mul_f64(count as f64 / f64::from(self.rate.max(1)));
                running.extend(groups.into_iter().map(|group| self.try_group(group)));
            }
            if let Some(oldest) = window.oldest() {
                // What was not read yet is younger.
                self.spool.shared.state().oldest = Some(oldest);
            }
            let below = window.all_done_below(readers.read);
            acknowledged.tell(below, commands, running.is_empty(), now);
            if acknowledged.below == below {
                self.spool.shared.all_done(below);
            }

            let start = Some(next_start).filter(|_| !window.is_empty());
            let acknowledge = Some(acknowledged.again).filter(|_| below > acknowledged.below);
            let times = [start, acknowledge, window.next_probe(), readers.again];
            // What is due already and could not be done waits for something that is running.
            let wake = times.into_iter().flatten().filter(|time| *time > now).min();
            tokio::select! {
                Some(tried) = running.next(), if !running.is_empty() => self.tried(&mut window, tried, !is_away),
                () = readers.finished(&mut window, &self) => {}
                () = self.spool.shared.appended.notified() => readers.has_all = false,
                () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => {}
            }
        }
    }

    async fn try_group(&self, group: Group) -> Tried {
        let mut tried = Tried { group, done: 0, applied: 0, failed: None, no_dead_letter: None };
        for entry in &tried.group.entries {
            match self.deliver(entry).await {
                Fate::Applied => tried.applied += 1,
                Fate::PutAside => {}
                Fate::Later => {
                    tried.failed = Some(self.lane(entry));
                    break;
                }
                Fate::NoDeadLetter(error) => {
                    tried.failed = Some(Lane::DeadLetters);
                    tried.no_dead_letter = Some(error);
                    break;
                }
            }
            tried.done += 1;
        }
        tried
    }

    fn tried(&self, window: &mut Window, tried: Tried, evict: bool) {
        let Tried { group, done, applied, failed, no_dead_letter } = tried;
        let has_failed_now = window.tried(&group, done, failed, Instant::now(), evict);
        // Once, and not for each time that it is tried again.
        if let Some(error) = no_dead_letter.filter(|_| has_failed_now) {
            tracing::error!(%error, "spooled events can never be applied, and cannot be kept as dead letters: they stay in the spool");
        }
        for entry in &group.entries[..done] {
            self.spool.shared.done(entry.sequence, entry.count, entry.meta.filter(|_| entry.change.is_ok()));
        }
        metrics::counter!("leadfold_spool_applied_total").increment(applied);
        self.spool.shared.tell();
    }

    async fn deliver(&self, entry: &Entry) -> Fate {
        let received = entry.meta.map_or_else(Timestamp::now, |meta| meta.received);
        let change = match &entry.change {
            Ok(change) => change,
            // The log has said what is known of it.
            Err(unreadable) if unreadable.bytes.is_empty() => return Fate::PutAside,
            Err(unreadable) => return self.put_aside(Undeliverable::Unreadable(&unreadable.bytes, &unreadable.why), received).await,
        };
        let partition = self.store.partition(&change.lead_id);
        let applied = timeout(APPLY_TIMEOUT, self.store.apply(change.clone())).await;
        match applied.unwrap_or_else(|_| Err(StoreError::Unavailable("it did not answer in time".to_owned()))) {
            Ok(_) => {
                self.breaker.succeeded(partition);
                Fate::Applied
            }
            Err(error @ (StoreError::OtherWorkspace | StoreError::Corrupt(_))) => {
                // It did answer.
                self.breaker.succeeded(partition);
                self.put_aside(Undeliverable::Change(change, &error), received).await
            }
            // The lead is busy; its server is well.
            Err(StoreError::Contended) => Fate::Later,
            Err(error) => {
                tracing::debug!(%error, "a spooled event waits on");
                self.breaker.failed(partition);
                Fate::Later
            }
        }
    }

    /// What can never be applied does not stop the others.
    async fn put_aside(&self, letter: Undeliverable<'_>, received: Timestamp) -> Fate {
        let Some(dead_letters) = &self.dead_letters else {
            tracing::error!(reason = letter.reason(), "a spooled event can never be applied, and dead letters are off: it is gone");
            return Fate::PutAside;
        };
        match dead_letters.keep_undeliverable(letter, received).await {
            Ok(()) => Fate::PutAside,
            Err(error) => Fate::NoDeadLetter(error),
        }
    }

    fn lane(&self, entry: &Entry) -> Lane {
        entry.change.as_ref().map_or(Lane::DeadLetters, |change| Lane::Partition(self.store.partition(&change.lead_id)))
    }
}

/// Up to where the writer was told that all is done.
struct Acknowledged {
    below: u64,
    /// When it may be told the next time.
    again: Instant,
}

impl Acknowledged {
    fn tell(&mut self, below: u64, commands: &mpsc::Sender<Command>, is_idle: bool, now: Instant) {
        if below > self.below && (is_idle || self.again <= now) {
            // A disk that hangs has a full queue: then later.
            if commands.try_send(Command::Done(below)).is_ok() {
                self.below = below;
            }
            self.again = now + ACKNOWLEDGE;
        }
    }
}

/// What a read that has ended gives back.
type Read = (Reader, std::io::Result<Vec<Entry>>);

/// The places from which the spool is read, one at a time.
struct Readers {
    /// Of new entries; `None` while it is reading.
    first: Option<Reader>,
    /// All new entries below were read.
    read: u64,
    /// Nothing new is left to read.
    has_all: bool,
    /// Of entries that were skipped.
    second: Option<Reader>,
    reading: Option<(Which, JoinHandle<Read>)>,
    last: Which,
    /// What makes another reader of new entries, if one is lost.
    spare: Reader,
    /// The disk cannot be read: when it is tried again, and the wait before that.
    again: Option<Instant>,
    wait: Duration,
    complained: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    First,
    Second,
}

impl Readers {
    fn new(first: Reader) -> Self {
        let (read, spare) = (first.next(), first.at(first.next()));
        Self {
            first: Some(first),
            read,
            has_all: false,
            second: None,
            reading: None,
            last: Which::First,
            spare,
            again: None,
            wait: READ_BACKOFF.0,
            complained: None,
        }
    }

    /// Begins to read on, if there is something to read: new entries and skipped ones in turn.
    fn start(&mut self, window: &mut Window, now: Instant) {
        if self.reading.is_some() || self.again.is_some_and(|again| again > now) {
            return;
        }
        self.again = None;
        match window.again() {
            Again::No => self.second = None,
            Again::GoOn => {}
            Again::From(from) => self.second = Some(self.spare.at(from)),
        }
        let second_s_turn = self.has_all || self.last == Which::First;
        let which = if self.second.is_some() && second_s_turn {
            Which::Second
        } else if !self.has_all {
            Which::First
        } else {
            return;
        };
        let reader = match which {
            Which::First => self.first.take(),
            Which::Second => self.second.take(),
        };
        let mut reader = reader.unwrap_or_else(|| self.spare.at(self.read));
        self.last = which;
        let task = tokio::task::spawn_blocking(move || {
            let entries = reader.read();
            (reader, entries)
        });
        self.reading = Some((which, task));
    }

    /// Waits for the read that has begun, and hands what was read to the window. For ever if none has begun.
    async fn finished(&mut self, window: &mut Window, drainer: &Drainer) {
        let Some((which, task)) = &mut self.reading else { return std::future::pending().await };
        let (which, result) = (*which, task.await);
        self.reading = None;
        // One that panicked took the reader with it.
        let (reader, entries) = match result {
            Ok((reader, entries)) => (Some(reader), entries),
            Err(error) => (None, Err(std::io::Error::other(error))),
        };
        let entries = match entries {
            Ok(entries) => entries,
            Err(error) => return self.failed(which, reader, &error),
        };
        if self.complained.take().is_some() {
            tracing::info!("the spool can be read again");
        }
        self.wait = READ_BACKOFF.0;
        match which {
            Which::First => {
                self.has_all = entries.is_empty();
                for entry in entries {
                    let lane = drainer.lane(&entry);
                    window.take(entry, lane);
                }
                self.read = reader.as_ref().map_or(self.read, Reader::next);
                self.first = reader;
            }
            Which::Second => {
                // What was not read a first time is not known to the window.
                for entry in entries.into_iter().filter(|entry| entry.sequence < self.read) {
                    let lane = drainer.lane(&entry);
                    window.take_again(entry, lane);
                }
                window.read_again(reader.as_ref().map_or(0, Reader::next), self.read);
                self.second = reader;
            }
        }
    }

    /// The disk could not be read. It is tried again, less and less often.
    fn failed(&mut self, which: Which, reader: Option<Reader>, error: &std::io::Error) {
        let now = Instant::now();
        if self.complained.is_none_or(|complained| now - complained >= READ_COMPLAINT) {
            tracing::error!(%error, "the spool cannot be read: what waits in it is not applied until the disk can be read");
            self.complained = Some(now);
        }
        self.again = Some(now + self.wait);
        self.wait = (self.wait * 2).min(READ_BACKOFF.1);
        match which {
            Which::First => self.first = reader,
            Which::Second => self.second = reader,
        }
    }
}

/// Tells the metrics how the spool and the store are doing, for as long as its task lives.
pub async fn tell(spool: Arc<Spool>, breaker: Arc<Breaker>) {
    metrics::counter!("leadfold_spool_applied_total").increment(0);
    let mut ticks = tokio::time::interval(TELL);
    for count in 1_u64.. {
        ticks.tick().await;
        spool.shared.tell();
        if count % EXPIRE_EVERY == 0 {
            spool.expire_evidence();
        }
        metrics::gauge!("leadfold_store_breaker_open").set(if breaker.is_open_anywhere() { 1.0 } else { 0.0 });
    }
}
