//! Events that were refused, and changes that can never be applied: kept for a while, so that nothing is lost when the
//! sender's schema moves on before this program does.
//!
//! A letter says what was wrong and keeps what is needed to try again, without what is never stored ([`redact`]).
//! Letters are bounded in number, bytes and age; the oldest give way. They are this instance's own, in its data
//! directory. An event that comes again (the sender tries three times) is one letter, with a count.

use std::io;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use xxhash_rust::xxh3::xxh3_128;

use self::file::{Command, DeadLetterFile, Done, Swept, Task, Which};
use crate::database::end_of;
use crate::event::Refusal;
use crate::fold::Receipt;
use crate::lead::Change;
use crate::store::StoreError;
use crate::time::{Clock, Timestamp};

mod file;
pub mod redact;
#[cfg(test)]
mod tests;

/// Commands that wait for the writer before their callers do.
const QUEUE: usize = 256;
/// How long a letter may take to be kept: the webhook answers within 3 s.
const KEEP_TIMEOUT: Duration = Duration::from_millis(1500);
/// How long a read may take.
const READ_TIMEOUT: Duration = Duration::from_secs(2);
/// How many reads may wait for the disk at once, each with a thread of its own.
const MAX_WAITING_READS: usize = 16;
/// How often it is asked whether letters have become too old.
const EXPIRE_TICK: Duration = Duration::from_secs(5);
/// How often all are looked at for that, whatever is known of them.
const EXPIRE_LOOK: Duration = Duration::from_secs(600);
/// Bytes of what is told in words.
const MAX_WORDS: usize = 1024;

/// How much is kept, and what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Letters.
    pub count: u64,
    /// Bytes of their payloads together.
    pub bytes: u64,
    /// How long a letter is kept after it last came.
    pub age: Duration,
    /// Whether bodies that cannot be parsed are kept as they came: with everything that is in them.
    pub keep_raw: bool,
}

/// What is kept of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PayloadKind {
    /// The event's JSON, without what is never stored.
    Event,
    /// The change that it was folded into.
    Change,
    /// What stood in the spool, which another version wrote.
    Spooled,
    /// The body as it came.
    Raw,
    /// Nothing: it cannot be tried again.
    None,
}

/// A letter, without its payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Letter {
    /// Grows with every new letter; never used twice.
    #[serde(skip)]
    pub id: u64,
    /// One of [`reasons`].
    pub reason: String,
    /// The path of the field that was wrong; empty if it was not one.
    pub field: String,
    /// What was wrong, in words.
    pub error: String,
    /// The event's name, or a word in its place.
    pub event: String,
    /// The lead, where it is known.
    pub lead_id: String,
    /// The workspace in the URL, where there was one.
    pub workspace_id: String,
    /// When it first came.
    pub first: Timestamp,
    /// When it last came.
    pub last: Timestamp,
    /// How often it came.
    pub count: u64,
    /// Bytes of the body as it came.
    pub size: u64,
    /// What is kept of it.
    pub kind: PayloadKind,
    /// Bytes of what is kept.
    pub payload_bytes: u64,
    /// What an event that comes again is known by.
    content: String,
}

impl Default for Letter {
    fn default() -> Self {
        let text = String::new;
        Self {
            id: 0,
            reason: text(),
            field: text(),
            error: text(),
            event: text(),
            lead_id: text(),
            workspace_id: text(),
            first: Timestamp::default(),
            last: Timestamp::default(),
            count: 1,
            size: 0,
            kind: PayloadKind::None,
            payload_bytes: 0,
            content: text(),
        }
    }
}

/// Why there are dead letters: fit for a metric's label.
pub mod reasons {
    /// The event is wrong: it was answered 400.
    pub const REFUSED: &str = "refused";
    /// Its lead belongs to another workspace: it was answered 409, or 200 `queued` before that was known.
    pub const OTHER_WORKSPACE: &str = "other_workspace";
    /// What the store holds of its lead makes no sense.
    pub const STORE_CORRUPT: &str = "store_corrupt";
    /// The spool holds something that this version cannot read.
    pub const UNREADABLE: &str = "unreadable";
}

/// A spooled change that can never be applied.
#[derive(Clone, Copy, Debug)]
pub enum Undeliverable<'a> {
    /// The store said so.
    Change(&'a Change, &'a StoreError),
    /// It cannot be read: its bytes, and why.
    Unreadable(&'a [u8], &'a str),
}

impl Undeliverable<'_> {
    /// One of [`reasons`].
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Change(_, StoreError::OtherWorkspace) => reasons::OTHER_WORKSPACE,
            Self::Change(..) => reasons::STORE_CORRUPT,
            Self::Unreadable(..) => reasons::UNREADABLE,
        }
    }
}

/// Keeps letters in a file.
#[derive(Debug)]
pub struct DeadLetters {
    file: std::sync::Arc<DeadLetterFile>,
    keep_raw: bool,
    /// `None` only while the letters are dropped.
    commands: Option<mpsc::Sender<Command>>,
    writer: Option<std::thread::JoinHandle<()>>,
    waiting_reads: std::sync::Arc<Semaphore>,
}

impl Drop for DeadLetters {
    /// What was accepted is written before the file is let go.
    fn drop(&mut self) {
        self.commands = None;
        self.writer.take().into_iter().for_each(end_of);
    }
}

impl DeadLetters {
    /// Opens the file at `path`, or creates it.
    ///
    /// # Errors
    /// Another process has it open, or it cannot be read or written.
    pub fn open(path: &Path, limits: Limits) -> io::Result<Self> {
        let file = std::sync::Arc::new(DeadLetterFile::open(path, limits)?);
        let (commands, queue) = mpsc::channel(QUEUE);
        let writer = std::sync::Arc::clone(&file);
        let writer = std::thread::Builder::new().name("leadfold-letters".to_owned()).spawn(move || writer.run(queue))?;
        let waiting_reads = std::sync::Arc::new(Semaphore::new(MAX_WAITING_READS));
        Ok(Self { file, keep_raw: limits.keep_raw, commands: Some(commands), writer: Some(writer), waiting_reads })
    }

    /// Keeps an event that was refused, as the sender wrote it but for what is never stored. Returns the lead that it names,
    /// or nothing.
    ///
    /// # Errors
    /// It is not kept: the disk is full or broken.
    pub async fn keep_event(
        &self,
        body: &[u8],
        event: &str,
        receipt: Receipt<'_>,
        reason: &'static str,
        refusal: &Refusal,
    ) -> io::Result<String> {
        let redacted = redact::event(body);
        let (kind, payload) = match &redacted {
            Some(event) => (PayloadKind::Event, event.json.as_bytes()),
            None if self.keep_raw => (PayloadKind::Raw, body),
            None => (PayloadKind::None, &[][..]),
        };
        let workspace_id = receipt.workspace_id.unwrap_or_default();
        let known_by = if kind == PayloadKind::None { body } else { payload };
        let letter = Letter {
            reason: reason.to_owned(),
            field: cut(refusal.field.as_deref().unwrap_or_default()),
            error: cut(&refusal.error),
            event: event.to_owned(),
            lead_id: redacted.as_ref().map(|event| event.lead_id.clone()).unwrap_or_default(),
            workspace_id: workspace_id.to_owned(),
            first: receipt.at,
            last: receipt.at,
            size: body.len() as u64,
            kind,
            payload_bytes: payload.len() as u64,
            content: content(reason, workspace_id, known_by),
            ..Letter::default()
        };
        let lead_id = letter.lead_id.clone();
        self.keep(letter, payload.to_vec()).await?;
        Ok(lead_id)
    }

    /// Keeps a spooled change that can never be applied.
    ///
    /// # Errors
    /// It is not kept: the disk is full or broken.
    pub async fn keep_undeliverable(&self, undeliverable: Undeliverable<'_>, received: Timestamp) -> io::Result<()> {
        let (payload, error, lead_id, workspace_id) = match undeliverable {
            Undeliverable::Change(change, error) => {
                let workspace_id = change.workspace_id.clone().unwrap_or_default();
                (serde_json::to_vec(change)?, error.to_string(), change.lead_id.clone(), workspace_id)
            }
            Undeliverable::Unreadable(bytes, error) => (bytes.to_vec(), error.to_owned(), String::new(), String::new()),
        };
        let kind = if matches!(undeliverable, Undeliverable::Change(..)) { PayloadKind::Change } else { PayloadKind::Spooled };
        let letter = Letter {
            reason: undeliverable.reason().to_owned(),
            error: cut(&error),
            event: "spooled".to_owned(),
            content: content(undeliverable.reason(), &workspace_id, &known_by(undeliverable)?),
            lead_id,
            workspace_id,
            first: received,
            last: received,
            size: payload.len() as u64,
            payload_bytes: payload.len() as u64,
            kind,
            ..Letter::default()
        };
        self.keep(letter, payload).await
    }

    async fn keep(&self, letter: Letter, payload: Vec<u8>) -> io::Result<()> {
        self.command(Task::Keep { letter: Box::new(letter), payload }).await.map(drop)
    }

    /// At most `limit` letters below an id, newest first, with their payloads if they are wanted.
    ///
    /// # Errors
    /// The file cannot be read.
    pub async fn list(&self, below: Option<u64>, limit: usize, payloads: bool) -> io::Result<Vec<(Letter, Vec<u8>)>> {
        self.read(move |file| file.list(below, limit, payloads)).await
    }

    /// One letter and its payload; `None` if there is none of this id.
    ///
    /// # Errors
    /// The file cannot be read.
    pub async fn get(&self, id: u64) -> io::Result<Option<(Letter, Vec<u8>)>> {
        self.read(move |file| file.get(id)).await
    }

    /// Removes letters: says of each whether it was there.
    ///
    /// # Errors
    /// Nothing was removed: the disk is full or broken.
    pub async fn remove(&self, ids: Vec<u64>) -> io::Result<Vec<bool>> {
        match self.command(Task::Remove { ids }).await? {
            Done::Removed(removed) => Ok(removed),
            _ => Err(io::Error::other("the writer of dead letters answered something else")),
        }
    }

    /// Removes all letters of a lead, and says how many there were. Those whose lead could not be read are not known to be
    /// of it.
    ///
    /// # Errors
    /// Some may still be there: the disk is full or broken.
    pub async fn remove_lead(&self, lead_id: &str) -> io::Result<u64> {
        Ok(self.sweep(|| Which::OfLead(lead_id.to_owned())).await?.removed)
    }

    /// Removes letters when they are too old by the clock of the store, as long as the process lives.
    pub async fn expire(self: std::sync::Arc<Self>, clock: Clock) {
        // Whoever reads letters passes over those that are too old, too.
        let _ = self.file.clock.set(clock.clone());
        let mut ticks = interval(EXPIRE_TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // No letter last came before this, as far as is known; and when all are looked at again, whatever is known of them.
        let (mut earliest, mut look) = (clock.now(), Instant::now());
        loop {
            ticks.tick().await;
            let Some(oldest) = self.file.oldest_kept() else { continue };
            if Instant::now() < look && earliest >= oldest {
                continue;
            }
            look = Instant::now() + EXPIRE_LOOK;
            let now = clock.now();
            match self.sweep(|| Which::Before(oldest)).await {
                Ok(swept) => {
                    // Letters that come from now on are younger.
                    earliest = swept.earliest.map_or(now, |earliest| earliest.min(now));
                    if swept.removed > 0 {
                        tracing::info!(removed = swept.removed, "dead letters have expired");
                    }
                }
                Err(error) => tracing::warn!(%error, "dead letters that are too old cannot be removed now"),
            }
        }
    }

    /// Removes the letters that are meant, some at a time, so that others need not wait.
    async fn sweep(&self, which: impl Fn() -> Which) -> io::Result<Swept> {
        let (mut all, mut from) = (Swept::default(), Some(0));
        while let Some(at) = from {
            let Done::Swept(swept) = self.command(Task::Sweep { from: at, which: which() }).await? else {
                return Err(io::Error::other("the writer of dead letters answered something else"));
            };
            all.removed += swept.removed;
            all.earliest = [all.earliest, swept.earliest].into_iter().flatten().min();
            from = swept.next;
        }
        Ok(all)
    }

    /// A letter was tried again, and refused again: for this reason now.
    ///
    /// # Errors
    /// Nothing was changed: the disk is full or broken.
    pub async fn refused_again(&self, id: u64, field: &str, error: &str) -> io::Result<()> {
        let (field, error) = (cut(field), cut(error));
        self.command(Task::Refused { id, field, error }).await.map(drop)
    }

    async fn read<T: Send + 'static>(&self, read: impl FnOnce(&DeadLetterFile) -> io::Result<T> + Send + 'static) -> io::Result<T> {
        let file = std::sync::Arc::clone(&self.file);
        let done = async {
            let permit = std::sync::Arc::clone(&self.waiting_reads).acquire_owned().await;
            let done = tokio::task::spawn_blocking(move || {
                // A read that its caller has given up goes on, and counts.
                let _permit = permit;
                read(&file)
            });
            done.await.map_err(io::Error::other)?
        };
        timeout(READ_TIMEOUT, done).await.unwrap_or_else(|_| Err(late()))
    }

    /// What has not begun when the time is over is not done.
    async fn command(&self, task: Task) -> io::Result<Done> {
        let stopped = || io::Error::other("the writer of dead letters has stopped");
        let (answer, answered) = oneshot::channel();
        let done = async {
            let commands = self.commands.as_ref().ok_or_else(stopped)?;
            commands.send(Command { task, answer }).await.map_err(|_| stopped())?;
            answered.await.map_err(|_| stopped())?
        };
        timeout(KEEP_TIMEOUT, done).await.unwrap_or_else(|_| Err(late()))
    }
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the disk did not answer in time")
}

/// A change without the time of its receipt: the sender may send it again.
fn known_by(undeliverable: Undeliverable<'_>) -> io::Result<Vec<u8>> {
    match undeliverable {
        Undeliverable::Change(change, _) => Ok(serde_json::to_vec(&Change { received: Timestamp::default(), ..change.clone() })?),
        Undeliverable::Unreadable(bytes, _) => Ok(bytes.to_vec()),
    }
}

/// The same event, refused for the same reason, is the same letter.
fn content(reason: &str, workspace_id: &str, payload: &[u8]) -> String {
    let hashes = [reason.as_bytes(), workspace_id.as_bytes(), payload].map(|part| format!("{:032x}", xxh3_128(part)));
    format!("{:032x}", xxh3_128(hashes.concat().as_bytes()))
}

fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_WORDS)].to_owned()
}
