//! The file of dead letters: redb, written by one thread, so that events that are refused together share an fsync.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redb::{Builder, Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use tokio::sync::{mpsc, oneshot};

use super::{Letter, Limits};
use crate::time::Timestamp;

const LETTERS: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("letters");
const PAYLOADS: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("payloads");
/// Letters by what an event that comes again is known by.
const CONTENTS: TableDefinition<'static, &str, u64> = TableDefinition::new("contents");
const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");
const FORMAT_KEY: &str = "format";
/// The layout of the tables. A file that says another number is left alone.
const FORMAT: u64 = 1;
/// The id of the next letter.
const NEXT_KEY: &str = "next";
/// Bytes of the payloads together.
const BYTES_KEY: &str = "bytes";
const CACHE_BYTES: usize = 8 << 20;
/// How many commands go into one transaction at most.
const MAX_BATCH: usize = 128;
/// How often letters that are too old are looked for.
const EXPIRE: Duration = Duration::from_secs(600);

/// What the writer is asked to do.
pub(super) enum Command {
    Keep { letter: Box<Letter>, payload: Vec<u8>, answer: oneshot::Sender<io::Result<()>> },
    Remove { ids: Vec<u64>, answer: oneshot::Sender<io::Result<Vec<bool>>> },
    Refused { id: u64, field: String, error: String, answer: oneshot::Sender<io::Result<()>> },
}

/// What is told when a batch is on disk.
type Answer = Box<dyn FnOnce(Option<&io::Error>)>;

#[derive(Debug)]
pub(super) struct DeadLetterFile {
    path: PathBuf,
    limits: Limits,
    /// redb gives up a database whose disk failed once: it is opened anew then.
    database: Mutex<Option<Arc<Database>>>,
}

impl DeadLetterFile {
    pub(super) fn open(path: &Path, limits: Limits) -> io::Result<Self> {
        let file = Self { path: path.to_owned(), limits, database: Mutex::new(Some(Arc::new(open(path)?))) };
        file.transact(|tables| tables.expire(limits))?;
        Ok(file)
    }

    /// Works until nobody can ask any more.
    pub(super) fn run(&self, mut queue: mpsc::Receiver<Command>) {
        let mut batch = Vec::with_capacity(MAX_BATCH);
        let mut expired = std::time::Instant::now();
        while queue.blocking_recv_many(&mut batch, MAX_BATCH) > 0 {
            let expire = expired.elapsed() > EXPIRE;
            if expire {
                expired = std::time::Instant::now();
            }
            let (mut answers, mut reasons) = (Vec::new(), Vec::new());
            let commands = std::mem::take(&mut batch);
            let done = self.transact(|tables| {
                if expire {
                    tables.expire(self.limits)?;
                }
                for command in commands {
                    // The answer first: where the command fails it is told like the others.
                    self.execute(tables, command, &mut answers, &mut reasons)?;
                }
                Ok(())
            });
            if let Err(error) = &done {
                tracing::error!(%error, "dead letters cannot be written");
            } else {
                for reason in reasons {
                    metrics::counter!("leadfold_dead_letters_total", "reason" => reason).increment(1);
                }
            }
            for answer in answers {
                answer(done.as_ref().err());
            }
        }
    }

    fn execute(
        &self,
        tables: &mut Tables<'_>,
        command: Command,
        answers: &mut Vec<Answer>,
        reasons: &mut Vec<String>,
    ) -> Result<(), redb::Error> {
        fn answering<T: 'static>(answer: oneshot::Sender<io::Result<T>>, done: T) -> Answer {
            // Whoever asked may have gone.
            Box::new(move |error| drop(answer.send(error.map_or(Ok(done), |error| Err(io::Error::new(error.kind(), error.to_string()))))))
        }
        match command {
            Command::Keep { letter, payload, answer } => {
                answers.push(answering(answer, ()));
                reasons.push(letter.reason.clone());
                tables.keep(*letter, &payload, self.limits)
            }
            Command::Remove { ids, answer } => {
                let removed = ids.iter().map(|id| tables.remove(*id)).collect::<Result<Vec<_>, _>>();
                let (removed, failed) = match removed {
                    Ok(removed) => (removed, Ok(())),
                    Err(error) => (Vec::new(), Err(error)),
                };
                answers.push(answering(answer, removed));
                failed
            }
            Command::Refused { id, field, error, answer } => {
                answers.push(answering(answer, ()));
                let Some(mut letter) = tables.letter(id)? else { return Ok(()) };
                (letter.field, letter.error) = (field, error);
                tables.write(&letter)
            }
        }
    }

    pub(super) fn list(&self, below: Option<u64>, limit: usize, payloads: bool) -> io::Result<Vec<(Letter, Vec<u8>)>> {
        let database = self.database()?;
        let read = || -> Result<_, redb::Error> {
            let transaction = database.begin_read()?;
            let (letters, contents) = (transaction.open_table(LETTERS)?, transaction.open_table(PAYLOADS)?);
            let mut listed = Vec::new();
            for entry in letters.range(..below.unwrap_or(u64::MAX))?.rev() {
                let (id, bytes) = entry?;
                let letter = decode(id.value(), bytes.value());
                if self.is_expired(&letter) {
                    continue;
                }
                let payload = if payloads { contents.get(letter.id)?.map(|bytes| bytes.value().to_vec()) } else { None };
                listed.push((letter, payload.unwrap_or_default()));
                if listed.len() == limit {
                    break;
                }
            }
            Ok(listed)
        };
        read().map_err(trouble)
    }

    pub(super) fn get(&self, id: u64) -> io::Result<Option<(Letter, Vec<u8>)>> {
        let found = self.list(id.checked_add(1), 1, true)?.pop();
        Ok(found.filter(|(letter, _)| letter.id == id))
    }

    fn is_expired(&self, letter: &Letter) -> bool {
        is_expired(letter, self.limits.age)
    }

    /// Does something wholly or not at all, and on disk.
    fn transact<T>(&self, work: impl FnOnce(&mut Tables<'_>) -> Result<T, redb::Error>) -> io::Result<T> {
        let database = self.database()?;
        let done = (|| -> Result<T, redb::Error> {
            let transaction = database.begin_write()?;
            let mut tables = Tables::open(&transaction)?;
            let done = work(&mut tables)?;
            metrics::gauge!("leadfold_dead_letters").set(tables.letters.len()? as f64);
            drop(tables);
            transaction.commit()?;
            Ok(done)
        })();
        done.map_err(|error| {
            *self.database.lock().unwrap_or_else(PoisonError::into_inner) = None;
            trouble(error)
        })
    }

    fn database(&self) -> io::Result<Arc<Database>> {
        let mut database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(database) = &*database {
            return Ok(Arc::clone(database));
        }
        Ok(Arc::clone(database.insert(Arc::new(open(&self.path)?))))
    }
}

/// The tables of one transaction.
struct Tables<'t> {
    letters: redb::Table<'t, u64, &'static [u8]>,
    payloads: redb::Table<'t, u64, &'static [u8]>,
    contents: redb::Table<'t, &'static str, u64>,
    meta: redb::Table<'t, &'static str, u64>,
}

impl<'t> Tables<'t> {
    fn open(transaction: &'t redb::WriteTransaction) -> Result<Self, redb::Error> {
        Ok(Self {
            letters: transaction.open_table(LETTERS)?,
            payloads: transaction.open_table(PAYLOADS)?,
            contents: transaction.open_table(CONTENTS)?,
            meta: transaction.open_table(META)?,
        })
    }

    fn number(&self, key: &str) -> Result<u64, redb::Error> {
        Ok(self.meta.get(key)?.map_or(0, |number| number.value()))
    }

    fn letter(&self, id: u64) -> Result<Option<Letter>, redb::Error> {
        Ok(self.letters.get(id)?.map(|bytes| decode(id, bytes.value())))
    }

    fn write(&mut self, letter: &Letter) -> Result<(), redb::Error> {
        let bytes = serde_json::to_vec(letter).map_err(|error| redb::Error::Io(error.into()))?;
        self.letters.insert(letter.id, bytes.as_slice())?;
        Ok(())
    }

    fn keep(&mut self, mut letter: Letter, payload: &[u8], limits: Limits) -> Result<(), redb::Error> {
        let known = self.contents.get(letter.content.as_str())?.map(|id| id.value());
        if let Some(mut known) = known.map(|id| self.letter(id)).transpose()?.flatten() {
            known.count += 1;
            known.last = known.last.max(letter.last);
            (known.field, known.error) = (letter.field, letter.error);
            return self.write(&known);
        }
        let size = payload.len() as u64;
        if size > limits.bytes {
            letter.kind = super::PayloadKind::None;
            letter.payload_bytes = 0;
            return self.keep(letter, &[], limits);
        }
        while self.letters.len()? >= limits.count.max(1) || self.number(BYTES_KEY)? + size > limits.bytes {
            let Some(oldest) = self.letters.first()?.map(|(id, _)| id.value()) else { break };
            self.remove(oldest)?;
            metrics::counter!("leadfold_dead_letters_evicted_total").increment(1);
        }
        letter.id = self.number(NEXT_KEY)?.max(1);
        self.meta.insert(NEXT_KEY, letter.id + 1)?;
        let bytes = self.number(BYTES_KEY)? + size;
        self.meta.insert(BYTES_KEY, bytes)?;
        self.contents.insert(letter.content.as_str(), letter.id)?;
        if size > 0 {
            self.payloads.insert(letter.id, payload)?;
        }
        self.write(&letter)
    }

    /// `false`: there is none of this id.
    fn remove(&mut self, id: u64) -> Result<bool, redb::Error> {
        let Some(letter) = self.letter(id)? else { return Ok(false) };
        self.letters.remove(id)?;
        self.contents.remove(letter.content.as_str())?;
        let size = self.payloads.remove(id)?.map_or(0, |payload| payload.value().len() as u64);
        let bytes = self.number(BYTES_KEY)?.saturating_sub(size);
        self.meta.insert(BYTES_KEY, bytes)?;
        Ok(true)
    }

    /// Removes what is too old or, since the limits were lowered, too much.
    fn expire(&mut self, limits: Limits) -> Result<(), redb::Error> {
        let mut old = Vec::new();
        for entry in self.letters.iter()? {
            let (id, bytes) = entry?;
            if is_expired(&decode(id.value(), bytes.value()), limits.age) {
                old.push(id.value());
            }
        }
        for id in old {
            self.remove(id)?;
        }
        while self.letters.len()? > limits.count || self.number(BYTES_KEY)? > limits.bytes {
            let Some(oldest) = self.letters.first()?.map(|(id, _)| id.value()) else { break };
            self.remove(oldest)?;
        }
        Ok(())
    }
}

fn is_expired(letter: &Letter, age: Duration) -> bool {
    let now = Timestamp::now().micros();
    u128::try_from(now.saturating_sub(letter.last.micros())).is_ok_and(|passed| passed > age.as_micros())
}

/// What is damaged is shown as an empty letter, which can be dropped.
fn decode(id: u64, bytes: &[u8]) -> Letter {
    Letter { id, ..serde_json::from_slice(bytes).unwrap_or_default() }
}

fn open(path: &Path) -> io::Result<Database> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    // Redacted, but still about people: for nobody else on this machine.
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    let create = || Builder::new().set_cache_size(CACHE_BYTES).create(path);
    // redb trusts a file that was closed well and may panic where it was damaged since.
    let created = std::panic::catch_unwind(create).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is damaged"))?;
    let database = created.map_err(|error| trouble(error.into()))?;
    let format = (|| -> Result<u64, redb::Error> {
        let transaction = database.begin_write()?;
        let mut tables = Tables::open(&transaction)?;
        let found = tables.number(FORMAT_KEY)?;
        if found == 0 {
            tables.meta.insert(FORMAT_KEY, FORMAT)?;
        }
        drop(tables);
        transaction.commit()?;
        Ok(if found == 0 { FORMAT } else { found })
    })();
    match format.map_err(trouble)? {
        FORMAT => Ok(database),
        other => Err(io::Error::new(io::ErrorKind::InvalidData, format!("it is of format {other}, and this program knows {FORMAT}"))),
    }
}

fn trouble(error: redb::Error) -> io::Error {
    match error {
        redb::Error::Io(error) => error,
        redb::Error::DatabaseAlreadyOpen => io::Error::new(io::ErrorKind::ResourceBusy, "another process uses it"),
        error => io::Error::other(error.to_string()),
    }
}
