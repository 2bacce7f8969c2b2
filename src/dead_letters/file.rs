//! The file of dead letters: redb, written by one thread, so that events that are refused together share an fsync.

use std::io;
use std::path::Path;
use std::time::Duration;

use redb::{ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use tokio::sync::{mpsc, oneshot};

use super::{Letter, Limits};
use crate::database::{DatabaseFile, End, Failed, Layout, META};
use crate::time::Timestamp;

const LETTERS: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("letters");
const PAYLOADS: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("payloads");
/// Letters by what an event that comes again is known by.
const CONTENTS: TableDefinition<'static, &str, u64> = TableDefinition::new("contents");
const LAYOUT: Layout = Layout {
    format: 1,
    cache_bytes: 8 << 20,
    tables: |transaction| {
        Tables::open(transaction)?;
        Ok(())
    },
};
/// The id of the next letter.
const NEXT_KEY: &str = "next";
/// Bytes of the payloads together.
const BYTES_KEY: &str = "bytes";
/// How many commands go into one transaction at most.
const MAX_BATCH: usize = 128;
/// How often letters that are too old are looked for.
const EXPIRE: Duration = Duration::from_secs(600);

/// What the writer is asked to do.
pub(super) struct Command {
    pub(super) task: Task,
    pub(super) answer: oneshot::Sender<io::Result<Done>>,
}

pub(super) enum Task {
    Keep { letter: Box<Letter>, payload: Vec<u8> },
    Remove { ids: Vec<u64> },
    Refused { id: u64, field: String, error: String },
}

/// What came of it: of each letter that was to be removed, whether it was there.
pub(super) type Done = Vec<bool>;

#[derive(Debug)]
pub(super) struct DeadLetterFile {
    limits: Limits,
    file: DatabaseFile,
}

impl DeadLetterFile {
    pub(super) fn open(path: &Path, limits: Limits) -> io::Result<Self> {
        let file = Self { limits, file: DatabaseFile::open(path, LAYOUT)? };
        file.transact(|tables| tables.expire(limits)).map_err(|failed| failed.error)?;
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
            // Whoever was not willing to wait any longer was told that it was not done.
            batch.retain(|command| !command.answer.is_closed());
            self.work(std::mem::take(&mut batch), expire);
            // For those who read.
            let _ = self.file.recover();
        }
    }

    fn work(&self, mut batch: Vec<Command>, expire: bool) {
        if batch.is_empty() {
            return;
        }
        match self.execute(&batch, expire) {
            Ok(answers) => batch.into_iter().zip(answers).for_each(|(command, done)| drop(command.answer.send(Ok(done)))),
            // One of them touches what is damaged. It must not cost the others anything: halves find it soon.
            Err(failed) if failed.is_about_content && (batch.len() > 1 || expire) => {
                let second = batch.split_off(batch.len() / 2);
                for half in [batch, second] {
                    let _ = self.file.recover();
                    self.work(half, false);
                }
            }
            Err(failed) => {
                let error = || io::Error::new(failed.error.kind(), failed.error.to_string());
                batch.into_iter().for_each(|command| drop(command.answer.send(Err(error()))));
            }
        }
    }

    /// Does all of it and commits it. An error: nothing of it is kept.
    fn execute(&self, batch: &[Command], expire: bool) -> Result<Vec<Done>, Failed<io::Error>> {
        let answers = self.transact(|tables| {
            if expire {
                tables.expire(self.limits)?;
            }
            batch.iter().map(|command| tables.execute(&command.task, self.limits)).collect::<Result<Vec<_>, _>>()
        })?;
        for command in batch {
            if let Task::Keep { letter, .. } = &command.task {
                metrics::counter!("leadfold_dead_letters_total", "reason" => letter.reason.clone()).increment(1);
            }
        }
        Ok(answers)
    }

    pub(super) fn list(&self, below: Option<u64>, limit: usize, payloads: bool) -> io::Result<Vec<(Letter, Vec<u8>)>> {
        self.file.recover()?;
        self.read(|database| {
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
        })
    }

    pub(super) fn get(&self, id: u64) -> io::Result<Option<(Letter, Vec<u8>)>> {
        let found = self.list(id.checked_add(1), 1, true)?.pop();
        Ok(found.filter(|(letter, _)| letter.id == id))
    }

    fn is_expired(&self, letter: &Letter) -> bool {
        is_expired(letter, self.limits.age)
    }

    fn read<T>(&self, work: impl FnOnce(&redb::Database) -> Result<T, redb::Error>) -> io::Result<T> {
        self.file.read(|database| work(database).map_err(|error| self.file.failure(error).into()))
    }

    /// Does something wholly or not at all, and on disk.
    fn transact<T>(&self, work: impl FnOnce(&mut Tables<'_>) -> Result<T, redb::Error>) -> Result<T, Failed<io::Error>> {
        let work = |transaction: &redb::WriteTransaction| -> Result<T, redb::Error> {
            let mut tables = Tables::open(transaction)?;
            let done = work(&mut tables)?;
            metrics::gauge!("leadfold_dead_letters").set(tables.letters.len()? as f64);
            Ok(done)
        };
        self.file.transact(|transaction| match work(transaction) {
            Ok(done) => Ok((done, End::Commit)),
            Err(error) => Err(self.file.failure(error).into()),
        })
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
    fn open(transaction: &'t redb::WriteTransaction) -> Result<Self, redb::TableError> {
        Ok(Self {
            letters: transaction.open_table(LETTERS)?,
            payloads: transaction.open_table(PAYLOADS)?,
            contents: transaction.open_table(CONTENTS)?,
            meta: transaction.open_table(META)?,
        })
    }

    fn execute(&mut self, task: &Task, limits: Limits) -> Result<Done, redb::Error> {
        match task {
            Task::Keep { letter, payload } => {
                self.keep((**letter).clone(), payload, limits)?;
                Ok(Vec::new())
            }
            Task::Remove { ids } => ids.iter().map(|id| self.remove(*id)).collect(),
            Task::Refused { id, field, error } => {
                if let Some(letter) = self.letter(*id)? {
                    self.write(&Letter { field: field.clone(), error: error.clone(), ..letter })?;
                }
                Ok(Vec::new())
            }
        }
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
