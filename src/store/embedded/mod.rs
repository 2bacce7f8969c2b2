//! The store in a file: redb, with one writer that commits in batches. One process at a time has it open.

mod feed;
pub(crate) mod head;
mod plan;
mod reader;
mod tables;
#[cfg(test)]
mod tests;
mod writer;

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use async_trait::async_trait;
use redb::{Builder, Database, DatabaseError, ReadableTable, StorageError};
use tokio::sync::{broadcast, mpsc, oneshot};

use self::tables::{META, Tables};
use self::writer::{Command, Writer};
use super::{ActivityPlace, Condition, FeedEvent, FeedReceiver, ListQuery, Outcome, Place, Read, Store, StoreError};
use crate::lead::{Activity, Change};
use crate::time::{Clock, Timestamp};

const FORMAT_KEY: &str = "format";
/// The layout of the tables. A file that says another number is left alone.
const FORMAT: u64 = 1;
/// How much of the file is kept in memory; the operating system keeps more of it.
const CACHE_BYTES: usize = 256 << 20;
/// How many commands may wait for the writer before their callers do.
const QUEUE: usize = 1024;
/// How many changes a feed may be behind before it tells a gap.
const FEED_BACKLOG: usize = 16_384;
/// How many events wait for their listener.
const FEED_QUEUE: usize = 1024;

/// Keeps leads in a file.
#[derive(Debug)]
pub struct EmbeddedStore {
    database: Arc<Database>,
    /// `None` only while the store is dropped.
    commands: Option<mpsc::Sender<Command>>,
    feed: broadcast::Sender<FeedEvent>,
    writer: Option<JoinHandle<()>>,
    clock: Clock,
}

impl EmbeddedStore {
    /// Opens the store in the file at `path`, or creates it and the directory around it. A lead keeps about
    /// `max_history` activities.
    ///
    /// # Errors
    /// Another process has it open, it is no database of leadfold's, it is damaged, or it cannot be reached.
    pub fn open(path: &Path, max_history: usize) -> Result<Self, StoreError> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(|error| StoreError::Unavailable(format!("{}: {error}", directory.display())))?;
        }
        // It is about people: for nobody else on this machine.
        let created = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        created.map_err(|error| StoreError::Unavailable(format!("{}: {error}", path.display())))?;
        // redb trusts a file that was closed well and may panic where it was damaged since.
        let database = catch_unwind(AssertUnwindSafe(|| open(path))).unwrap_or_else(|_| Err(damaged(path, "it makes no sense")))?;
        let database = Arc::new(database);
        let (commands, receiver) = mpsc::channel(QUEUE);
        let (feed, _) = broadcast::channel(FEED_BACKLOG);
        let max_history = u64::try_from(max_history).unwrap_or(u64::MAX).clamp(1, u64::MAX / 2);
        let writer = Writer { database: Arc::clone(&database), commands: receiver, feed: feed.clone(), max_history };
        let thread = std::thread::Builder::new().name("leadfold-writer".to_owned()).spawn(|| writer.run());
        let thread = thread.map_err(|error| StoreError::Unavailable(format!("no thread to write with: {error}")))?;
        Ok(Self { database, commands: Some(commands), feed, writer: Some(thread), clock: Clock::local() })
    }

    /// Has the writer do something and waits for its answer.
    async fn command<T>(&self, command: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Command) -> Result<T, StoreError> {
        let stopped = || StoreError::Unavailable("the writer has stopped".to_owned());
        let (answer, answered) = oneshot::channel();
        let commands = self.commands.as_ref().ok_or_else(stopped)?;
        commands.send(command(answer)).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())?
    }

    async fn delete_at(&self, lead_id: &str, now: Timestamp) -> Result<bool, StoreError> {
        let lead_id = lead_id.to_owned();
        self.command(|answer| Command::Delete { lead_id, now, answer }).await
    }

    /// Runs a read that may be long away from the tasks that must not wait.
    async fn walk<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Database) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let database = Arc::clone(&self.database);
        let done = tokio::task::spawn_blocking(move || read(&database)).await;
        done.map_err(|error| StoreError::Unavailable(format!("a read did not end: {error}")))?
    }
}

impl Drop for EmbeddedStore {
    /// What was accepted is written before the file is let go.
    fn drop(&mut self) {
        self.commands = None;
        if let Some(writer) = self.writer.take() {
            // It panicked: its callers know already.
            let _ = writer.join();
        }
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn apply(&self, change: Change) -> Result<Outcome, StoreError> {
        self.command(|answer| Command::Apply { change: Box::new(change), answer }).await
    }

    /// On the caller's own thread: a few look-ups in pages that are mostly in memory take less than a change of
    /// threads, and redb holds no lock over its fsyncs that a read would wait for.
    async fn read(&self, lead_id: &str, since: Option<u64>) -> Result<Option<Read>, StoreError> {
        reader::read(&self.database, lead_id, since)
    }

    async fn version(&self, lead_id: &str) -> Result<Option<u64>, StoreError> {
        reader::version(&self.database, lead_id)
    }

    async fn is_deleted(&self, lead_id: &str) -> Result<bool, StoreError> {
        reader::is_deleted(&self.database, lead_id, Timestamp::now())
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
        self.delete_at(lead_id, Timestamp::now()).await
    }

    fn feed(&self) -> FeedReceiver {
        let (listener, receiver) = mpsc::channel(FEED_QUEUE);
        // Subscribed before this returns: nothing between the call and the task's start is missed.
        tokio::spawn(feed::forward(self.feed.subscribe(), listener));
        receiver
    }

    async fn check(&self) -> Condition {
        let check = || {
            if self.commands.as_ref().is_none_or(mpsc::Sender::is_closed) {
                return Err(StoreError::Unavailable("the writer has stopped".to_owned()));
            }
            reader::check(&self.database)
        };
        Condition::of_one(self.name(), check())
    }

    fn clock(&self) -> &Clock {
        &self.clock
    }

    fn name(&self) -> &'static str {
        "embedded"
    }
}

/// Opens the file and sees to it that all tables are there.
fn open(path: &Path) -> Result<Database, StoreError> {
    let shown = path.display();
    let database = Builder::new().set_cache_size(CACHE_BYTES).create(path).map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            StoreError::Unavailable(format!("{shown} is open in another process"))
        }
        DatabaseError::Storage(StorageError::Io(error)) if error.kind() != std::io::ErrorKind::InvalidData => {
            StoreError::Unavailable(format!("{shown}: {error}"))
        }
        error => damaged(path, error),
    })?;
    let transaction = writer::begin(&database)?;
    let format = {
        let mut meta = transaction.open_table(META)?;
        let found = meta.get(FORMAT_KEY)?.map(|format| format.value());
        if found.is_none() {
            meta.insert(FORMAT_KEY, FORMAT)?;
        }
        found
    };
    match format {
        Some(FORMAT) => transaction.abort()?,
        Some(other) => return Err(StoreError::Corrupt(format!("{shown} is of format {other}, and this program knows {FORMAT}"))),
        None => {
            drop(Tables::open(&transaction)?);
            transaction.commit()?;
        }
    }
    Ok(database)
}

fn damaged(path: &Path, why: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt(format!("{} is damaged or no database: {why}", path.display()))
}

/// redb tells each step's errors by a type of its own; they all come down to these two.
fn trouble(error: redb::Error) -> StoreError {
    match error {
        redb::Error::Corrupted(_) | redb::Error::TableTypeMismatch { .. } | redb::Error::TableDoesNotExist(_) => {
            StoreError::Corrupt(error.to_string())
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

from_redb!(StorageError TableError TransactionError CommitError SetDurabilityError);
