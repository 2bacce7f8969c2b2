//! What was acknowledged in the last seconds, to be applied again where the server that acknowledged it may have lost it.
//!
//! Redis replicates asynchronously and, unless told otherwise, writes its log to the disk once a second. So a failover,
//! a partition or a crash takes with it what was acknowledged just before. Each acknowledged change is kept here with the
//! id of the server that acknowledged it. When another server has its partition (see [`ServerId`]) it is applied once
//! more: changes are idempotent, so one that was not lost changes nothing.
//!
//! A change is forgotten when its server has proved to be alive [`KEEP`] after it, for then nothing has failed in between.
//! While a server is away nothing of it is forgotten, however long that takes.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::handshake::ServerId;
use crate::lead::Change;

/// How long after an acknowledgement its server has to be alive. A failover has to be noticed within this time: by the
/// sentinels' word it is within a second, in a cluster within its `cluster-node-timeout`.
pub(super) const KEEP: Duration = Duration::from_secs(20);
/// Bytes of memory that are kept at most, of all partitions together.
const MAX_BYTES: usize = 16 << 20;

/// What was acknowledged.
#[derive(Debug)]
pub(super) enum Acknowledged {
    /// A change, and the version that its lead had then.
    Change { change: Box<Change>, version: u64 },
    /// A lead's deletion.
    Deletion(String),
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) what: Acknowledged,
    pub(super) partition: u16,
    /// The lead's versions that came of applying earlier entries again.
    pub(super) replayed: Vec<u64>,
    server: ServerId,
    at: Instant,
    bytes: usize,
}

impl Entry {
    pub(super) fn lead_id(&self) -> &str {
        match &self.what {
            Acknowledged::Change { change, .. } => &change.lead_id,
            Acknowledged::Deletion(lead_id) => lead_id,
        }
    }
}

/// Keeps what was acknowledged, oldest first.
#[derive(Debug, Default)]
pub(super) struct ReplayBuffer {
    state: Mutex<State>,
    settled: Notify,
}

#[derive(Debug, Default)]
struct State {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// Entries that are being applied again.
    replaying: usize,
}

/// The server that has a partition now, and when it last proved to be alive.
pub(super) type Alive = (ServerId, Instant);

impl ReplayBuffer {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what a server has acknowledged.
    pub(super) fn push(&self, what: Acknowledged, partition: u16, server: ServerId) {
        let bytes = size_of::<Entry>()
            + match &what {
                Acknowledged::Change { change, .. } => change.memory(),
                Acknowledged::Deletion(lead_id) => lead_id.len(),
            };
        let mut state = self.state();
        state.bytes += bytes;
        state.entries.push_back(Entry { what, partition, replayed: Vec::new(), server, at: Instant::now(), bytes });
        while state.bytes > MAX_BYTES
            && let Some(oldest) = state.entries.pop_front()
        {
            state.bytes -= oldest.bytes;
        }
    }

    /// The partitions of which something is kept.
    pub(super) fn partitions(&self) -> Vec<u16> {
        let mut partitions: Vec<u16> = self.state().entries.iter().map(|entry| entry.partition).collect();
        partitions.sort_unstable();
        partitions.dedup();
        partitions
    }

    /// Forgets what is safe, and takes out what may be lost: what another server has acknowledged than the one that has
    /// the partition now. `alive` knows nothing of a partition whose server is away.
    pub(super) fn take_lost(&self, alive: impl Fn(u16) -> Option<Alive>) -> Vec<Entry> {
        let mut state = self.state();
        let State { entries, bytes, replaying } = &mut *state;
        let mut lost = Vec::new();
        for entry in std::mem::take(entries) {
            match alive(entry.partition) {
                Some((server, _)) if server != entry.server => lost.push(entry),
                Some((_, answered)) if answered.saturating_duration_since(entry.at) > KEEP => *bytes -= entry.bytes,
                _ => entries.push_back(entry),
            }
        }
        *replaying += lost.len();
        metrics::gauge!("leadfold_replay_buffer_bytes").set(*bytes as f64);
        lost
    }

    /// Takes out all that is not known to be held by a living server.
    pub(super) fn take_unsettled(&self, alive: impl Fn(u16) -> Option<Alive>) -> Vec<Acknowledged> {
        let entries = std::mem::take(&mut self.state().entries);
        let is_safe = |entry: &Entry| alive(entry.partition).is_some_and(|(server, _)| server == entry.server);
        entries.into_iter().filter(|entry| !is_safe(entry)).map(|entry| entry.what).collect()
    }

    /// An entry was applied again: it was kept anew when that was acknowledged.
    pub(super) fn done(&self, entry: &Entry) {
        let mut state = self.state();
        state.bytes = state.bytes.saturating_sub(entry.bytes);
        state.replaying = state.replaying.saturating_sub(1);
        drop(state);
        self.settled.notify_waiters();
    }

    /// Entries could not be applied again yet: they are older than all others.
    pub(super) fn put_back(&self, entries: Vec<Entry>) {
        let mut state = self.state();
        state.replaying = state.replaying.saturating_sub(entries.len());
        for entry in entries.into_iter().rev() {
            state.entries.push_front(entry);
        }
    }

    /// Waits until nothing is being applied again.
    pub(super) async fn settled(&self) {
        loop {
            let notified = self.settled.notified();
            if self.state().replaying == 0 {
                return;
            }
            notified.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deletion(buffer: &ReplayBuffer, lead_id: &str, partition: u16, server: &str) {
        buffer.push(Acknowledged::Deletion(lead_id.to_owned()), partition, server.into());
    }

    fn ids(entries: &[Entry]) -> Vec<&str> {
        entries.iter().map(Entry::lead_id).collect()
    }

    #[test]
    fn what_another_server_acknowledged_may_be_lost() {
        let buffer = ReplayBuffer::default();
        deletion(&buffer, "a", 1, "one");
        deletion(&buffer, "b", 2, "one");
        deletion(&buffer, "c", 1, "two");
        let now = Instant::now();
        assert!(buffer.take_lost(|_| None).is_empty(), "nobody knows yet");
        let lost = buffer.take_lost(|partition| (partition == 1).then(|| ("two".into(), now)));
        assert_eq!(ids(&lost), ["a"]);
        // It could not be applied: the next time it comes before what is younger.
        buffer.put_back(lost);
        assert_eq!(ids(&buffer.take_lost(|_| Some(("three".into(), now)))), ["a", "b", "c"]);
    }

    #[test]
    fn only_what_a_living_server_has_outlived_is_forgotten() {
        let buffer = ReplayBuffer::default();
        deletion(&buffer, "a", 1, "one");
        let later = Instant::now() + KEEP + Duration::from_secs(1);
        assert!(buffer.take_lost(|_| Some(("one".into(), Instant::now()))).is_empty());
        assert!(buffer.take_lost(|_| None).is_empty());
        assert_eq!(buffer.partitions(), [1]);
        assert!(buffer.take_lost(|_| Some(("one".into(), later))).is_empty());
        assert!(buffer.partitions().is_empty());
        assert_eq!(buffer.state().bytes, 0);
    }

    #[test]
    fn memory_is_bounded() {
        let buffer = ReplayBuffer::default();
        for _ in 0..100 {
            deletion(&buffer, &"x".repeat(1 << 20), 0, "one");
        }
        assert!(buffer.state().bytes <= MAX_BYTES && buffer.state().entries.len() == 15);
    }
}
