//! Events on disk while the store is away.
//!
//! [`Spool`] keeps folded changes, each on disk before [`Spool::push`] returns, in the order in which they arrived;
//! [`drain`] applies them when the store is back. A change stays until the store has it or it is a dead letter, so a
//! crash at any moment makes it be applied twice at worst, which changes nothing. [`Breaker`] keeps a store that fails
//! from costing every event a timeout.
//!
//! Only a Redis needs this. The embedded store fails when the local disk does, and then a spool beside it fails too.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc as std_mpsc};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use xxhash_rust::xxh3::xxh3_64;

use self::files::{Directory, Segment};
use self::reader::Reader;
use self::record::Meta;
use self::scan::Damage;
use self::writer::{Command, Writer};
use crate::lead::Change;
use crate::time::Timestamp;

mod breaker;
#[cfg(test)]
mod damage_tests;
pub mod drain;
mod files;
mod reader;
pub(crate) mod record;
mod scan;
#[cfg(test)]
mod tests;
mod window;
mod writer;

pub use breaker::Breaker;

/// Segments are this large, or an eighth of the spool if that is less.
const SEGMENT_BYTES: u64 = 16 << 20;
/// Commands that wait for the writer before their callers do.
const QUEUE: usize = 1024;
/// Bytes of the changes in these commands. Those whose callers have given up stay there until the disk answers.
const QUEUE_BYTES: u32 = 16 << 20;
/// How long a change that could not be kept casts doubt on the next: while nobody sends any, nothing else would end it.
const IN_DOUBT: Duration = Duration::from_secs(10);
/// How long a change may wait for the disk: the webhook answers within 3 s.
const PUSH_TIMEOUT: Duration = Duration::from_millis(1500);
/// How long the end of the spool waits for a disk that hangs.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

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
    /// Bytes that may still wait for the writer.
    queue_bytes: Arc<Semaphore>,
    /// Disconnected when the writer has ended.
    writer: Mutex<std_mpsc::Receiver<()>>,
    reader: Mutex<Option<Reader>>,
}

/// What the writer, the drainer and whoever asks know together.
#[derive(Debug)]
struct Shared {
    directory: PathBuf,
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
    /// Leads with changes whose order matters, and the sequence number of the last of these.
    ordered: HashMap<u64, u64>,
    /// Records that are damaged and were counted: from one number up to another.
    damaged: BTreeMap<u64, u64>,
    /// The file of the last segment has disappeared: the next record begins another one.
    begin_segment: bool,
}

impl State {
    fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    fn add(&mut self, sequence: u64, meta: Meta) {
        self.waiting += 1;
        self.oldest.get_or_insert(meta.received);
        if meta.ordered {
            self.ordered.insert(meta.lead, sequence);
        }
    }

    /// Remembers that the records from one number up to another are damaged. Says how many were not known to be.
    fn add_damaged(&mut self, from: u64, to: u64) -> u64 {
        let mut merged = (from, to);
        let mut known = 0;
        // Those that begin before the end, from the last on, as long as they reach the beginning.
        while let Some((&first, &last)) = self.damaged.range(..=to).next_back()
            && last >= from
        {
            known += last.min(to).saturating_sub(first.max(from));
            merged = (merged.0.min(first), merged.1.max(last));
            self.damaged.remove(&first);
        }
        if merged.0 < merged.1 {
            self.damaged.insert(merged.0, merged.1);
        }
        (to - from).saturating_sub(known)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that holds it can leave it half changed, or waits for a disk.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records are on disk, behind all others.
    fn appended(&self, records: impl Iterator<Item = Meta>, bytes: u64) {
        let mut state = self.state();
        let mut count = 0;
        for meta in records {
            let sequence = state.next + count;
            state.add(sequence, meta);
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

    /// Records were applied, or are dead letters. `meta` is that of the one record; none of those that are damaged.
    fn done(&self, sequence: u64, count: u64, meta: Option<Meta>) {
        let mut state = self.state();
        state.waiting = state.waiting.saturating_sub(count);
        if state.waiting == 0 {
            state.oldest = None;
        }
        if let Some(meta) = meta.filter(|meta| meta.ordered)
            && state.ordered.get(&meta.lead) == Some(&sequence)
        {
            state.ordered.remove(&meta.lead);
        }
    }

    /// All below a sequence number is done.
    fn all_done(&self, below: u64) {
        let mut state = self.state();
        // Of a damaged record it may not be known which lead it was of: that one may pass now.
        if state.damaged.first_key_value().is_some_and(|(_, to)| *to <= below) {
            state.ordered.retain(|_, last| *last >= below);
            state.damaged.retain(|_, to| *to > below);
        }
    }

    /// Damage was found in a segment, while the spool was opened or read. What was not known yet is counted and told,
    /// and the segment is kept as evidence, also if the program ends before all in it is done.
    fn found_damage(&self, first: u64, damage: &Damage) {
        let mut state = self.state();
        let new = state.add_damaged(damage.sequence, damage.sequence + damage.count);
        let segment = state.segments.iter_mut().find(|segment| segment.first == first);
        let was_known = segment.as_ref().is_none_or(|segment| segment.damaged);
        let mark = segment.map(|segment| {
            segment.damaged = true;
            !segment.marked
        });
        drop(state);
        if mark == Some(true) {
            match files::mark(&self.directory, first) {
                Ok(()) => self.marked(first),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(%error, segment = first, "a damaged segment of the spool cannot be renamed: a restart forgets that it is damaged")
                }
            }
        }
        if new == 0 && was_known {
            return;
        }
        metrics::counter!("leadfold_spool_damaged_total").increment(new);
        let segment = self.path_of(first);
        let segment = segment.as_deref().unwrap_or(&self.directory).display();
        let Damage { sequence, offset, length, .. } = damage;
        tracing::error!(
            %segment, offset, bytes = length, sequence, records = new,
            "a segment of the spool is damaged: these records are lost, all others in it are applied, and the file is kept"
        );
    }

    fn marked(&self, first: u64) {
        let mut state = self.state();
        if let Some(segment) = state.segments.iter_mut().find(|segment| segment.first == first) {
            segment.marked = true;
        }
    }

    fn path_of(&self, first: u64) -> Option<PathBuf> {
        let state = self.state();
        state.segments.iter().find(|segment| segment.first == first).map(|segment| segment.path(&self.directory))
    }

    /// Whole segments are not there.
    fn found_missing(&self, from: u64, to: u64) {
        metrics::counter!("leadfold_spool_damaged_total").increment(to - from);
        tracing::error!(
            directory = %self.directory.display(), sequence = from, records = to - from,
            "segments of the spool are missing: these records are lost"
        );
    }
}

/// The change in a dead letter that was [`Undeliverable::Unreadable`](crate::dead_letters::Undeliverable).
///
/// # Errors
/// It is damaged, or this version cannot read it either.
pub fn read(record: &[u8]) -> Result<Change, String> {
    record::decode_record(record)
}

impl Spool {
    /// Opens the spool in a directory, or creates it. It takes at most `max_bytes` on disk; damaged segments that are
    /// done are kept beside it, a quarter of that at most.
    ///
    /// # Errors
    /// Another process has it open, or the directory cannot be read or written.
    pub fn open(path: &Path, max_bytes: u64) -> io::Result<Self> {
        let directory = Directory::open(path, max_bytes)?;
        directory.expire_evidence();
        let mut state = State { max_bytes, ..State::default() };
        let scan = directory.scan(|sequence, meta| state.add(sequence, meta))?;
        state.next = scan.next;
        let shared = Arc::new(Shared { directory: path.to_owned(), state: Mutex::new(state), appended: Notify::new() });
        for (from, to) in scan.missing {
            shared.found_missing(from, to);
        }
        for (segment, damages) in scan.segments {
            let first = segment.first;
            shared.state().segments.push_back(segment);
            for damage in damages {
                // Until they are dead letters.
                shared.state().waiting += damage.count;
                shared.found_damage(first, &damage);
            }
        }
        let waiting = shared.status().events;
        if waiting > 0 {
            tracing::info!(events = waiting, "events wait in the spool");
        }
        shared.tell();
        let reader = Reader::new(Arc::clone(&shared), directory.cursor().done);
        let (commands, receiver) = mpsc::channel(QUEUE);
        let segment_bytes = SEGMENT_BYTES.min(max_bytes / 8);
        let writer = Writer::new(directory, receiver, Arc::clone(&shared), max_bytes, segment_bytes);
        let (ended, writer_ended) = std_mpsc::channel::<()>();
        std::thread::Builder::new().name("leadfold-spool".to_owned()).spawn(move || {
            let _ended = ended;
            writer.run();
        })?;
        Ok(Self {
            shared,
            commands: Some(commands),
            queue_bytes: Arc::new(Semaphore::new(QUEUE_BYTES as usize)),
            writer: Mutex::new(writer_ended),
            reader: Mutex::new(Some(reader)),
        })
    }

    /// Keeps a change: on disk when this returns, in 1.5 s at most.
    ///
    /// # Errors
    /// Then nothing is kept of it, or it is not known (the disk did not answer in time).
    pub async fn push(&self, change: &Change) -> Result<(), SpoolError> {
        let began = Instant::now();
        let meta = Meta::of(change);
        let bytes = record::encode(change, meta).map_err(|error| SpoolError::Disk(error.to_string()))?;
        let stopped = || SpoolError::Disk("its writer has stopped".to_owned());
        let (answer, answered) = oneshot::channel();
        let commands = self.commands.as_ref().ok_or_else(stopped)?;
        let permits = u32::try_from(bytes.len()).unwrap_or(u32::MAX).min(QUEUE_BYTES);
        let kept = async {
            let permit = Arc::clone(&self.queue_bytes).acquire_many_owned(permits).await.map_err(|_| stopped())?;
            commands.send(Command::Append { bytes, meta, answer, permit: Some(permit) }).await.map_err(|_| stopped())?;
            answered.await.map_err(|_| stopped())?
        };
        let late = || SpoolError::Disk("the disk did not answer in time".to_owned());
        let result = tokio::time::timeout(PUSH_TIMEOUT, kept).await.unwrap_or_else(|_| Err(late()));
        let mut state = self.shared.state();
        match &result {
            Err(error) => state.failure = Some((Instant::now(), error.to_string())),
            // One that was kept says nothing of another that failed after this one had begun.
            Ok(()) if state.failure.as_ref().is_some_and(|(when, _)| *when < began) => state.failure = None,
            Ok(()) => {}
        }
        drop(state);
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

    /// Removes damaged segments that were kept long enough.
    fn expire_evidence(&self) {
        if let Some(commands) = &self.commands {
            // If it cannot be asked now, it will be the next time.
            let _ = commands.try_send(Command::ExpireEvidence);
        }
    }
}

impl Drop for Spool {
    /// What was accepted is written before the directory is let go, unless the disk hangs.
    fn drop(&mut self) {
        self.commands = None;
        let writer = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner);
        if writer.recv_timeout(CLOSE_TIMEOUT) == Err(std_mpsc::RecvTimeoutError::Timeout) {
            tracing::error!("the disk of the spool does not answer: what was not acknowledged may not be kept");
        }
    }
}
