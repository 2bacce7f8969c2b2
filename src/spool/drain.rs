//! Applies what is spooled, when the store is back.
//!
//! Changes are read in the order in which they arrived. Those of one lead are applied one after the other, those of
//! different leads together, some time apart where the store fails. In a cluster a part of it may fail: its changes
//! wait, and a window of those behind them goes on. What was done is acknowledged up to the oldest that was not.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::reader::{Entry, Reader};
use super::writer::Command;
use super::{Breaker, Spool};
use crate::dead_letters::{DeadLetters, Undeliverable};
use crate::lead::Change;
use crate::store::{Store, StoreError};

/// Changes that are applied together.
const BATCH: usize = 128;
/// Changes that are held while some before them cannot be applied.
const WINDOW: usize = 8192;
/// And their bytes.
const WINDOW_BYTES: usize = 32 << 20;
/// The first and the longest wait after a failure; it doubles.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// How long one change is tried.
const APPLY_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the spool tells how it is doing.
const TELL: Duration = Duration::from_secs(1);

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
    Done,
    /// Not now: this, and what follows of its lead, is tried again.
    Later,
}

/// A part of the store that failed.
#[derive(Clone, Copy)]
struct Failing {
    again: Instant,
    wait: Duration,
}

impl Drainer {
    /// Works until its task is dropped. A spool has one drainer.
    pub async fn run(self) {
        let Some(mut reader) = self.spool.reader.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() else { return };
        let mut pending: BTreeMap<u64, Entry> = BTreeMap::new();
        let mut failing: HashMap<u16, Failing> = HashMap::new();
        let mut acknowledged = reader.next();
        loop {
            reader = self.refill(reader, &mut pending).await;
            let chosen = self.choose(&pending, &failing);
            if chosen.is_empty() {
                self.wait(&pending, &failing).await;
                continue;
            }
            let began = Instant::now();
            let count = chosen.iter().map(Vec::len).sum::<usize>();
            let done = self.apply(&mut pending, &mut failing, chosen).await;
            metrics::counter!("leadfold_spool_applied_total").increment(done);
            self.spool.shared.tell();
            let below = pending.keys().next().copied().unwrap_or_else(|| reader.next());
            // What was not read yet is younger; how much, the next entry tells.
            if let Some(entry) = pending.values().next() {
                self.spool.shared.state().oldest = Some(entry.meta.received);
            }
            if below > acknowledged
                && let Some(commands) = &self.spool.commands
            {
                acknowledged = below;
                // The writer has stopped: then nothing is spooled any more.
                let _ = commands.send(Command::Done(below)).await;
            }
            sleep_until(began + Duration::from_secs(1).mul_f64(count as f64 / f64::from(self.rate.max(1)))).await;
        }
    }

    /// Reads on, as far as the window goes.
    async fn refill(&self, mut reader: Reader, pending: &mut BTreeMap<u64, Entry>) -> Reader {
        while has_room(pending) {
            let fresh = reader.again();
            let read = tokio::task::spawn_blocking(move || {
                let entries = reader.read();
                (reader, entries)
            });
            // A task that panicked took the reader with it.
            let (back, entries) = read.await.unwrap_or_else(|error| (fresh, Err(std::io::Error::other(error))));
            reader = back;
            match entries {
                Ok(entries) if entries.is_empty() => break,
                Ok(entries) => pending.extend(entries.into_iter().map(|entry| (entry.sequence, entry))),
                Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                    tracing::error!(%error, "a segment of the spool is damaged: the rest of it is passed over");
                    metrics::counter!("leadfold_spool_damaged_total").increment(1);
                    reader.skip_segment();
                }
                Err(error) => {
                    tracing::error!(%error, "the spool cannot be read");
                    sleep(BACKOFF.1).await;
                    break;
                }
            }
        }
        reader
    }

    /// What is tried next, by lead: entries of one lead in their order.
    fn choose(&self, pending: &BTreeMap<u64, Entry>, failing: &HashMap<u16, Failing>) -> Vec<Vec<u64>> {
        let now = Instant::now();
        // While the store fails as a whole, one finds out whether it still does.
        let most = if self.breaker.is_open() { 1 } else { BATCH };
        let mut leads: HashMap<u64, Vec<u64>> = HashMap::new();
        let tried = pending.iter().filter(|(_, entry)| {
            // A part has all its changes or none in a round, so the order within a lead stays.
            failing.is_empty() || failing.get(&self.partition(entry)).is_none_or(|failing| failing.again <= now)
        });
        for (sequence, entry) in tried.take(most) {
            leads.entry(entry.meta.lead).or_default().push(*sequence);
        }
        leads.into_values().collect()
    }

    /// Applies what was chosen; says how many are done.
    async fn apply(&self, pending: &mut BTreeMap<u64, Entry>, failing: &mut HashMap<u16, Failing>, chosen: Vec<Vec<u64>>) -> u64 {
        let mut running: FuturesUnordered<_> = chosen
            .into_iter()
            .map(|sequences| {
                let entries: Vec<_> = sequences.iter().filter_map(|sequence| pending.get(sequence)).collect();
                async move {
                    let mut done = Vec::with_capacity(entries.len());
                    for entry in entries {
                        match self.deliver(entry).await {
                            Fate::Done => done.push(entry.sequence),
                            Fate::Later => return (done, Some(self.partition(entry))),
                        }
                    }
                    (done, None)
                }
            })
            .collect();
        let (mut all, mut failed) = (Vec::new(), Vec::new());
        while let Some((done, partition)) = running.next().await {
            all.extend(done);
            failed.extend(partition);
        }
        drop(running);
        for sequence in &all {
            if let Some(entry) = pending.remove(sequence) {
                failing.remove(&self.partition(&entry));
                self.spool.shared.done(entry.meta);
            }
        }
        failed.sort_unstable();
        failed.dedup();
        for partition in failed {
            let wait = failing.get(&partition).map_or(BACKOFF.0, |failing| (failing.wait * 2).min(BACKOFF.1));
            failing.insert(partition, Failing { again: Instant::now() + wait.mul_f64(rand::random_range(0.5..1.0)), wait });
        }
        all.len() as u64
    }

    async fn deliver(&self, entry: &Entry) -> Fate {
        let change = match &entry.change {
            Ok(change) => change,
            Err((why, bytes)) => return self.bury(entry, Undeliverable::Unreadable(bytes, why)).await,
        };
        let partition = self.store.partition(&change.lead_id);
        let applied = timeout(APPLY_TIMEOUT, self.store.apply(change.clone())).await;
        match applied.unwrap_or_else(|_| Err(StoreError::Unavailable("it did not answer in time".to_owned()))) {
            Ok(_) => {
                self.breaker.succeeded(partition);
                Fate::Done
            }
            Err(error @ (StoreError::OtherWorkspace | StoreError::Corrupt(_))) => {
                // It did answer.
                self.breaker.succeeded(partition);
                self.bury(entry, Undeliverable::Change(change, &error)).await
            }
            Err(error) => {
                tracing::debug!(%error, "a spooled event waits on");
                self.breaker.failed(partition);
                Fate::Later
            }
        }
    }

    /// What can never be applied gives way to the others.
    async fn bury(&self, entry: &Entry, letter: Undeliverable<'_>) -> Fate {
        let Some(dead_letters) = &self.dead_letters else {
            tracing::error!(reason = letter.reason(), "a spooled event can never be applied, and dead letters are off: it is gone");
            return Fate::Done;
        };
        match dead_letters.keep_undeliverable(letter, entry.meta.received).await {
            Ok(()) => Fate::Done,
            Err(error) => {
                tracing::error!(%error, "a spooled event can never be applied, and cannot be kept as a dead letter: it stays in the spool");
                Fate::Later
            }
        }
    }

    fn partition(&self, entry: &Entry) -> u16 {
        entry.change.as_ref().map_or(0, |change: &Change| self.store.partition(&change.lead_id))
    }

    /// Until there is something to try.
    async fn wait(&self, pending: &BTreeMap<u64, Entry>, failing: &HashMap<u16, Failing>) {
        let soon = Instant::now() + BACKOFF.0 / 4;
        let again = failing.values().map(|failing| failing.again.max(soon)).min().filter(|_| !pending.is_empty());
        let room = has_room(pending);
        tokio::select! {
            () = self.spool.shared.appended.notified(), if room => {}
            () = async { match again {
                Some(again) => sleep_until(again).await,
                None => std::future::pending().await,
            }} => {}
        }
    }
}

/// Whether more may be read before what is held is done.
fn has_room(pending: &BTreeMap<u64, Entry>) -> bool {
    pending.len() < WINDOW && pending.values().map(|entry| entry.bytes).sum::<usize>() < WINDOW_BYTES
}

/// Tells the metrics how the spool and the store are doing, for as long as its task lives.
pub async fn tell(spool: Arc<Spool>, breaker: Arc<Breaker>) {
    metrics::counter!("leadfold_spool_applied_total").increment(0);
    let mut ticks = tokio::time::interval(TELL);
    loop {
        ticks.tick().await;
        spool.shared.tell();
        metrics::gauge!("leadfold_store_breaker_open").set(if breaker.is_open_anywhere() { 1.0 } else { 0.0 });
    }
}
