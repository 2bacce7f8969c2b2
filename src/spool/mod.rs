//! Events on disk while the store is away.
//!
//! [`Spool`] keeps folded changes, each on disk before [`Spool::push`] returns, in the order in which they arrived;
//! [`drain`] applies them when the store is back. A change stays until the store has it or it is a dead letter, so a
//! crash at any moment makes it be applied twice at worst, which changes nothing. [`Breaker`] keeps a store that fails
//! from costing every event a timeout.
//!
//! Only a Redis needs this. The embedded store fails when the local disk does, and then a spool beside it fails too.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, oneshot};
use xxhash_rust::xxh3::xxh3_64;

use self::files::{Directory, Segment};
use self::reader::Reader;
use self::record::Meta;
use self::writer::{Command, Writer};
use crate::lead::Change;
use crate::time::Timestamp;

mod breaker;
pub mod drain;
mod files;
mod reader;
pub(crate) mod record;
#[cfg(test)]
mod tests;
mod writer;

pub use breaker::Breaker;

/// Segments are this large, or an eighth of the spool if that is less.
const SEGMENT_BYTES: u64 = 16 << 20;
/// Commands that wait for the writer before their callers do.
const QUEUE: usize = 1024;
/// How long a change that could not be kept casts doubt on the next: while nobody sends any, nothing else would end it.
const IN_DOUBT: Duration = Duration::from_secs(10);
/// How long a change may wait for the disk: the webhook answers within 3 s.
const PUSH_TIMEOUT: Duration = Duration::from_millis(1500);

/// Why a change was not kept.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SpoolError {
    /// It holds as much as it may.
    #[error("the spool is full ({0} bytes)")]
    Full(u64),
    /// The disk is full or broken, or slower than the sender's patience.
    #[error("the spool cannot be written: {0}")]
    Disk(String),
}

/// How the spool is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpoolStatus {
    /// Changes that wait to be applied.
    pub events: u64,
    /// Bytes on disk, those of changes that were applied just now included.
    pub bytes: u64,
    /// Bytes that it may take.
    pub max_bytes: u64,
    /// When the oldest that waits was received.
    pub oldest: Option<Timestamp>,
}

/// Keeps changes on disk, in the order in which they arrive.
#[derive(Debug)]
pub struct Spool {
    shared: Arc<Shared>,
    /// `None` only while the spool is dropped.
    commands: Option<mpsc::Sender<Command>>,
    writer: Option<std::thread::JoinHandle<()>>,
    reader: Mutex<Option<Reader>>,
}

/// What the writer, the drainer and whoever asks know together.
#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// There is something new to drain.
    appended: Notify,
}

#[derive(Debug, Default)]
struct State {
    segments: VecDeque<Segment>,
    /// The sequence number of the next record.
    next: u64,
    /// Records that are not done.
    waiting: u64,
    oldest: Option<Timestamp>,
    max_bytes: u64,
    /// Why the last change was not kept, if it was not, and when.
    failure: Option<(Instant, String)>,
    /// Of which leads there are changes whose order matters, and how many.
    ordered: HashMap<u64, u32>,
}

impl State {
    fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    fn add(&mut self, meta: Meta) {
        self.waiting += 1;
        self.oldest.get_or_insert(meta.received);
        if meta.ordered {
            *self.ordered.entry(meta.lead).or_default() += 1;
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that holds it can leave it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records are on disk, behind all others.
    fn appended(&self, records: impl Iterator<Item = Meta>, bytes: u64) {
        let mut state = self.state();
        let mut count = 0;
        for meta in records {
            state.add(meta);
            count += 1;
        }
        state.next += count;
        if let Some(segment) = state.segments.back_mut() {
            segment.count += count;
            segment.bytes += bytes;
        }
        drop(state);
        self.tell();
        self.appended.notify_one();
    }

    fn status(&self) -> SpoolStatus {
        let state = self.state();
        SpoolStatus { events: state.waiting, bytes: state.bytes(), max_bytes: state.max_bytes, oldest: state.oldest }
    }

    /// Tells the metrics.
    fn tell(&self) {
        let status = self.status();
        let age = status.oldest.map_or(0, |oldest| (Timestamp::now().micros() - oldest.micros()).max(0));
        metrics::gauge!("leadfold_spool_events").set(status.events as f64);
        metrics::gauge!("leadfold_spool_bytes").set(status.bytes as f64);
        metrics::gauge!("leadfold_spool_max_bytes").set(status.max_bytes as f64);
        metrics::gauge!("leadfold_spool_oldest_age_seconds").set(age as f64 / 1e6);
    }

    /// A record was applied, or is a dead letter.
    fn done(&self, meta: Meta) {
        let mut state = self.state();
        state.waiting = state.waiting.saturating_sub(1);
        if state.waiting == 0 {
            state.oldest = None;
        }
        if meta.ordered
            && let Some(count) = state.ordered.get_mut(&meta.lead)
        {
            *count -= 1;
            if *count == 0 {
                state.ordered.remove(&meta.lead);
            }
        }
    }
}

/// The change in a dead letter that was [`Undeliverable::Unreadable`](crate::dead_letters::Undeliverable).
///
/// # Errors
/// This version cannot read it either.
pub fn read(record: &[u8]) -> Result<Change, String> {
    record::decode(record)
}

impl Spool {
    /// Opens the spool in a directory, or creates it. It takes at most `max_bytes` on disk.
    ///
    /// # Errors
    /// Another process has it open, or the directory cannot be read or written.
    pub fn open(path: &Path, max_bytes: u64) -> io::Result<Self> {
        let (directory, done) = Directory::open(path)?;
        let mut state = State { max_bytes, ..State::default() };
        let segments = directory.scan(done, |meta| state.add(meta))?;
        state.next = segments.last().map_or(done, |segment| segment.end().max(done));
        state.segments = segments.into();
        if state.waiting > 0 {
            tracing::info!(events = state.waiting, "events wait in the spool");
        }
        let shared = Arc::new(Shared { state: Mutex::new(state), appended: Notify::new() });
        shared.tell();
        let reader = Reader::new(directory.path().to_owned(), Arc::clone(&shared), done);
        let (commands, receiver) = mpsc::channel(QUEUE);
        let segment_bytes = SEGMENT_BYTES.min(max_bytes / 8);
        let writer = Writer { directory, commands: receiver, shared: Arc::clone(&shared), file: None, max_bytes, segment_bytes };
        let thread = std::thread::Builder::new().name("leadfold-spool".to_owned()).spawn(|| writer.run())?;
        Ok(Self { shared, commands: Some(commands), writer: Some(thread), reader: Mutex::new(Some(reader)) })
    }

    /// Keeps a change: on disk when this returns, in 1.5 s at most.
    ///
    /// # Errors
    /// Then nothing is kept of it, or it is not known (the disk did not answer in time).
    pub async fn push(&self, change: &Change) -> Result<(), SpoolError> {
        let meta = Meta::of(change);
        let bytes = record::encode(change, meta).map_err(|error| SpoolError::Disk(error.to_string()))?;
        let stopped = || SpoolError::Disk("its writer has stopped".to_owned());
        let (answer, answered) = oneshot::channel();
        let commands = self.commands.as_ref().ok_or_else(stopped)?;
        let kept = async {
            commands.send(Command::Append { bytes, meta, answer }).await.map_err(|_| stopped())?;
            answered.await.map_err(|_| stopped())?
        };
        let late = || SpoolError::Disk("the disk did not answer in time".to_owned());
        let result = tokio::time::timeout(PUSH_TIMEOUT, kept).await.unwrap_or_else(|_| Err(late()));
        self.shared.state().failure = result.as_ref().err().map(|error| (Instant::now(), error.to_string()));
        result
    }

    /// Whether a change would overtake one that waits and that it must not overtake: a profile patch carries no time,
    /// so the last to arrive wins. Such a change has to wait too.
    pub fn holds_back(&self, change: &Change) -> bool {
        record::is_ordered(change) && self.shared.state().ordered.contains_key(&xxh3_64(change.lead_id.as_bytes()))
    }

    /// How it is doing.
    pub fn status(&self) -> SpoolStatus {
        self.shared.status()
    }

    /// Why the next change may not be kept, if the last was not.
    pub fn failure(&self) -> Option<String> {
        let failure = self.shared.state().failure.clone();
        failure.filter(|(when, _)| when.elapsed() < IN_DOUBT).map(|(_, why)| why)
    }
}

impl Drop for Spool {
    /// What was accepted is written before the directory is let go.
    fn drop(&mut self) {
        self.commands = None;
        if let Some(writer) = self.writer.take() {
            // It panicked: its callers know already.
            let _ = writer.join();
        }
    }
}
