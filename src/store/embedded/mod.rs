//! The store in a file: redb, with one writer that commits in batches. One process at a time has it open.

mod feed;
pub(crate) mod head;
mod plan;
mod reader;
mod tables;
#[cfg(test)]
mod tests;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use redb::Database;
use tokio::sync::{Mutex, Semaphore, broadcast, mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, timeout};

use self::tables::Tables;
use self::writer::{Command, Done, Progress, Task, Writer};
use super::{ActivityPlace, Condition, FeedEvent, FeedReceiver, ListQuery, Outcome, Place, Read, Store, StoreError};
use crate::database::{DatabaseFile, FileError, Kind, Layout, Unusable, end_of};
use crate::lead::{Activity, Change};
use crate::time::{Clock, Timestamp};

const LAYOUT: Layout = Layout {
    format: 1,
    cache_bytes: 256 << 20,
    tables: |transaction| {
        Tables::open(transaction)?;
        Ok(())
    },
};
/// How many commands may wait for the writer before their callers do.
const QUEUE: usize = 1024;
/// How many changes a feed may be behind before it tells a gap.
const FEED_BACKLOG: usize = 16_384;
/// How many events wait for their listener.
const FEED_QUEUE: usize = 1024;
/// How long the disk may take over a change. There may be a dead letter to keep after it, and a sender has its answer
/// within 3 s.
const WRITE_TIMEOUT: Duration = Duration::from_millis(1200);
/// How long a read may take.
const READ_TIMEOUT: Duration = Duration::from_secs(2);
/// How many reads may wait for the disk at once, each with a thread of its own.
const MAX_WAITING_READS: usize = 64;
/// A commit that takes longer puts the disk in doubt.
const SLOW: Duration = Duration::from_millis(250);
/// A commit that takes longer is a failure of the disk.
const STUCK: Duration = Duration::from_secs(1);
/// How long it is believed without another look that changes can be written.
const BELIEVED: Duration = Duration::from_secs(30);
/// How often it is tried at most when they cannot.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// How long that may take: those who ask wait for a second.
const PROBE_TIMEOUT: Duration = Duration::from_millis(900);
/// How often some tombstones are looked at, whether they have expired.
const EXPIRE_TICK: Duration = Duration::from_secs(5);
/// What to do about a file that is damaged.
const DAMAGED: &str = "nobody is served until that is done";

/// Keeps leads in a file.
#[derive(Debug)]
pub struct EmbeddedStore {
    file: Arc<DatabaseFile>,
    /// `None` only while the store is dropped.
    commands: Option<mpsc::Sender<Command>>,
    feed: broadcast::Sender<FeedEvent>,
    writer: Option<JoinHandle<()>>,
    progress: Arc<Progress>,
    /// Held while it is tried whether changes can be written.
    probing: Mutex<()>,
    waiting_reads: Arc<Semaphore>,
    clock: Clock,
}

impl EmbeddedStore {
    /// Opens the store in the file at `path`, or creates it and the directory around it. A lead keeps about
    /// `max_history` activities.
    ///
    /// # Errors
    /// Another process has it open, it is no database of leadfold's, it is damaged, or it cannot be reached.
    pub fn open(path: &Path, max_history: usize) -> Result<Self, StoreError> {
        let file = DatabaseFile::open(path, LAYOUT).map_err(|unusable| match unusable.kind {
            Kind::Damaged => StoreError::Corrupt(unusable.words),
            _ => unusable.into(),
        })?;
        let latest = file.read(|database| reader::number(database, writer::CLOCK_KEY))?;
        let clock = Clock::steady(latest.and_then(|micros| i64::try_from(micros).ok()).map(Timestamp::from_micros));
        let file = Arc::new(file);
        let (commands, receiver) = mpsc::channel(QUEUE);
        let (feed, _) = broadcast::channel(FEED_BACKLOG);
        let max_history = u64::try_from(max_history).unwrap_or(u64::MAX).clamp(1, u64::MAX / 2);
        let progress = Arc::new(Progress::begin());
        let writer = Writer {
            file: Arc::clone(&file),
            commands: receiver,
            feed: feed.clone(),
            max_history,
            progress: Arc::clone(&progress),
            clock: clock.clone(),
        };
        let thread = std::thread::Builder::new().name("leadfold-writer".to_owned()).spawn(|| writer.run());
        let thread = thread.map_err(|error| StoreError::Unavailable(format!("no thread to write with: {error}")))?;
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(expire(commands.downgrade(), clock.clone()));
        }
        Ok(Self {
            file,
            commands: Some(commands),
            feed,
            writer: Some(thread),
            progress,
            probing: Mutex::default(),
            waiting_reads: Arc::new(Semaphore::new(MAX_WAITING_READS)),
            clock,
        })
    }

    /// Has the writer do something and waits for its answer. What has not begun when the time is over is not done.
    async fn command(&self, task: Task, within: Duration) -> Result<Done, StoreError> {
        let stopped = || StoreError::Unavailable("the writer has stopped".to_owned());
        let (answer, answered) = oneshot::channel();
        let done = async {
            let commands = self.commands.as_ref().ok_or_else(stopped)?;
            commands.send(Command { task, answer }).await.map_err(|_| stopped())?;
            answered.await.map_err(|_| stopped())?
        };
        let late = |_| Err(StoreError::Unavailable("the disk did not answer in time".to_owned()));
        timeout(within, done).await.unwrap_or_else(late)
    }

    async fn delete_at(&self, lead_id: &str, now: Timestamp) -> Result<bool, StoreError> {
        match self.command(Task::Delete { lead_id: lead_id.to_owned(), now }, WRITE_TIMEOUT).await? {
            Done::Deleted(existed) => Ok(existed),
            other => Err(unexpected(&other)),
        }
    }

    /// Whether a read could wait for the disk for long.
    fn is_slow(&self) -> bool {
        self.progress.busy_for().is_some_and(|busy| busy > SLOW)
    }

    /// Runs a read that may be long away from the tasks that must not wait.
    async fn walk<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Database) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let file = Arc::clone(&self.file);
        let done = async {
            let permit = Arc::clone(&self.waiting_reads).acquire_owned().await;
            let done = tokio::task::spawn_blocking(move || {
                // A read that its caller has given up goes on, and counts.
                let _permit = permit;
                file.read(read)
            });
            done.await.map_err(|error| StoreError::Unavailable(format!("a read did not end: {error}")))?
        };
        let late = |_| Err(StoreError::Unavailable("the disk did not answer a read in time".to_owned()));
        timeout(READ_TIMEOUT, done).await.unwrap_or_else(late)
    }
}

/// Removes tombstones that have expired: some at a time, over and over, until the store is dropped.
async fn expire(commands: mpsc::WeakSender<Command>, clock: Clock) {
    let mut ticks = interval(EXPIRE_TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut from = Vec::new();
    loop {
        ticks.tick().await;
        let Some(commands) = commands.upgrade() else { return };
        let (answer, answered) = oneshot::channel();
        // Where events wait for the writer, this waits for another time.
        let sent = commands.try_send(Command { task: Task::Expire { from: std::mem::take(&mut from), now: clock.now() }, answer });
        drop(commands);
        if sent.is_ok()
            && let Ok(Ok(Done::Expired(next))) = answered.await
        {
            from = next.unwrap_or_default();
        }
    }
}

fn unexpected(done: &Done) -> StoreError {
    StoreError::Unavailable(format!("the writer answered something else: {done:?}"))
}

impl Drop for EmbeddedStore {
    /// What was accepted is written before the file is let go.
    fn drop(&mut self) {
        self.commands = None;
        self.writer.take().into_iter().for_each(end_of);
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn apply(&self, change: Change) -> Result<Outcome, StoreError> {
        match self.command(Task::Apply(Box::new(change)), WRITE_TIMEOUT).await? {
            Done::Applied(outcome) => Ok(outcome),
            other => Err(unexpected(&other)),
        }
    }

    /// On the caller's own thread: a few look-ups in pages that are mostly in memory take less than a change of
    /// threads, and redb holds no lock over its fsyncs that a read would wait for. Not while the disk is in doubt: then
    /// one read from it could take a thread away from everybody.
    async fn read(&self, lead_id: &str, since: Option<u64>) -> Result<Option<Read>, StoreError> {
        if self.is_slow() {
            let lead_id = lead_id.to_owned();
            return self.walk(move |database| reader::read(database, &lead_id, since)).await;
        }
        self.file.read(|database| reader::read(database, lead_id, since))
    }

    async fn version(&self, lead_id: &str) -> Result<Option<u64>, StoreError> {
        if self.is_slow() {
            let lead_id = lead_id.to_owned();
            return self.walk(move |database| reader::version(database, &lead_id)).await;
        }
        self.file.read(|database| reader::version(database, lead_id))
    }

    async fn is_deleted(&self, lead_id: &str) -> Result<bool, StoreError> {
        let now = self.clock.now();
        if self.is_slow() {
            let lead_id = lead_id.to_owned();
            return self.walk(move |database| reader::is_deleted(database, &lead_id, now)).await;
        }
        self.file.read(|database| reader::is_deleted(database, lead_id, now))
    }

    async fn list(&self, query: &ListQuery) -> Result<Vec<Place>, StoreError> {
        let query = query.clone();
        self.walk(move |database| reader::list(database, &query)).await
    }

    async fn activities(&self, lead_id: &str, behind: Option<&ActivityPlace>, limit: usize) -> Result<Option<Vec<Activity>>, StoreError> {
        let (lead_id, behind) = (lead_id.to_owned(), behind.cloned());
        self.walk(move |database| reader::activities(database, &lead_id, behind.as_ref(), limit)).await
    }

    async fn delete(&self, lead_id: &str) -> Result<bool, StoreError> {
        self.delete_at(lead_id, self.clock.now()).await
    }

    fn feed(&self) -> FeedReceiver {
        let (listener, receiver) = mpsc::channel(FEED_QUEUE);
        // Subscribed before this returns: nothing between the call and the task's start is missed.
        tokio::spawn(feed::forward(self.feed.subscribe(), listener));
        receiver
    }

    async fn check(&self) -> Condition {
        let read = if self.is_slow() { self.walk(reader::check).await } else { self.file.read(reader::check) };
        Condition::of_one(self.name(), read)
    }

    async fn check_writes(&self) -> Condition {
        Condition::of_one(self.name(), self.probe_writes().await)
    }

    fn clock(&self) -> &Clock {
        &self.clock
    }

    fn name(&self) -> &'static str {
        "embedded"
    }
}

impl EmbeddedStore {
    /// What came of the last commit. Where that is long ago, or it failed, one is tried.
    async fn probe_writes(&self) -> Result<(), StoreError> {
        if let Some(busy) = self.progress.busy_for().filter(|busy| *busy > STUCK) {
            return Err(StoreError::Unavailable(format!("the disk has not answered for {} s", busy.as_secs())));
        }
        let known = || {
            let last = self.progress.last();
            match last.failure {
                None if last.at.elapsed() < BELIEVED && self.file.is_open() => Some(Ok(())),
                Some(failure) if last.at.elapsed() < PROBE_INTERVAL => Some(Err(failure)),
                _ => None,
            }
        };
        if let Some(known) = known() {
            return known;
        }
        // Of many who ask at once, one tries.
        let _probing = self.probing.lock().await;
        match known() {
            Some(known) => known,
            None => self.command(Task::Probe, PROBE_TIMEOUT).await.map(drop),
        }
    }
}

impl FileError for StoreError {
    fn words(&self) -> String {
        match self {
            Self::Unavailable(words) | Self::Corrupt(words) | Self::Refusing(words, _) => words.clone(),
            Self::OtherWorkspace | Self::Contended | Self::Misconfigured(_) => self.to_string(),
        }
    }
}

impl From<Unusable> for StoreError {
    fn from(unusable: Unusable) -> Self {
        match unusable.kind {
            Kind::InUse | Kind::Disk(_) => Self::Unavailable(unusable.words),
            Kind::Damaged => Self::Refusing(unusable.words, DAMAGED),
            Kind::PartDamaged => Self::Corrupt(unusable.words),
        }
    }
}

/// redb tells each step's errors by a type of its own; they all come down to these two.
fn trouble(error: redb::Error) -> StoreError {
    match error {
        redb::Error::Corrupted(_) | redb::Error::TableTypeMismatch { .. } | redb::Error::TableDoesNotExist(_) => {
            StoreError::Corrupt(format!("a part of the embedded store's file is damaged: {error}: restore it from a backup"))
        }
        error => StoreError::Unavailable(error.to_string()),
    }
}

macro_rules! from_redb {
    ($($error:ident)*) => {
        $(impl From<redb::$error> for StoreError {
            fn from(error: redb::$error) -> Self {
                trouble(error.into())
            }
        })*
    };
}

from_redb!(StorageError TableError TransactionError);
