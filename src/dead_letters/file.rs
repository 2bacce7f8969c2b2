//! The file of dead letters: redb, written by one thread, so that events that are refused together share an fsync.

use std::io;
use std::path::Path;
use std::sync::OnceLock;

use redb::{ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use tokio::sync::{mpsc, oneshot};

use super::{Letter, Limits};
use crate::database::{DatabaseFile, End, Failed, Layout, META};
use crate::time::{Clock, Timestamp};

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
/// How many letters one command looks at: others wait for it.
const MAX_SCANNED: usize = 4096;

/// What the writer is asked to do.
pub(super) struct Command {
    pub(super) task: Task,
    pub(super) answer: oneshot::Sender<io::Result<Done>>,
}

pub(super) enum Task {
    Keep {
        letter: Box<Letter>,
        payload: Vec<u8>,
    },
    Remove {
        ids: Vec<u64>,
    },
    /// Remove some of the letters from this id on.
    Sweep {
        from: u64,
        which: Which,
    },
    Refused {
        id: u64,
        field: String,
        error: String,
    },
}

/// Which letters a sweep removes.
pub(super) enum Which {
    /// Those that last came before this.
    Before(Timestamp),
    /// Those of a lead.
    OfLead(String),
}

/// What came of it.
pub(super) enum Done {
    Kept,
    /// Of each letter that was to be removed, whether it was there.
    Removed(Vec<bool>),
    Swept(Swept),
}

/// What a sweep came to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Swept {
    /// Letters that it removed.
    pub(super) removed: u64,
    /// Of those that it left, the earliest time at which one last came.
    pub(super) earliest: Option<Timestamp>,
    /// Where to go on; none: at the end.
    pub(super) next: Option<u64>,
}

#[derive(Debug)]
pub(super) struct DeadLetterFile {
    limits: Limits,
    file: DatabaseFile,
    /// The store's clock, once it is known: letters carry its time.
    pub(super) clock: OnceLock<Clock>,
}

impl DeadLetterFile {
    pub(super) fn open(path: &Path, limits: Limits) -> io::Result<Self> {
        let file = Self { limits, file: DatabaseFile::open(path, LAYOUT)?, clock: OnceLock::new() };
        file.transact(|tables| tables.keep_limits(limits)).map_err(|failed| failed.error)?;
        Ok(file)
    }

    /// Works until nobody can ask any more.
    pub(super) fn run(&self, mut queue: mpsc::Receiver<Command>) {
        let mut batch = Vec::with_capacity(MAX_BATCH);
        while queue.blocking_recv_many(&mut batch, MAX_BATCH) > 0 {
            // Whoever was not willing to wait any longer was told that it was not done.
            batch.retain(|command| !command.answer.is_closed());
            self.work(std::mem::take(&mut batch));
            // For those who read.
            let _ = self.file.recover();
        }
    }

    fn work(&self, mut batch: Vec<Command>) {
        if batch.is_empty() {
            return;
        }
        match self.execute(&batch) {
            Ok(answers) => batch.into_iter().zip(answers).for_each(|(command, done)| drop(command.answer.send(Ok(done)))),
            // One of them touches what is damaged. It must not cost the others anything: halves find it soon.
            Err(failed) if failed.is_about_content && batch.len() > 1 => {
                let second = batch.split_off(batch.len() / 2);
                for half in [batch, second] {
                    let _ = self.file.recover();
                    self.work(half);
                }
            }
            Err(failed) => {
                let error = || io::Error::new(failed.error.kind(), failed.error.to_string());
                batch.into_iter().for_each(|command| drop(command.answer.send(Err(error()))));
            }
        }
    }

    /// Does all of it and commits it. An error: nothing of it is kept.
    fn execute(&self, batch: &[Command]) -> Result<Vec<Done>, Failed<io::Error>> {
        let answers =
            self.transact(|tables| batch.iter().map(|command| tables.execute(&command.task, self.limits)).collect::<Result<Vec<_>, _>>())?;
        for command in batch {
            if let Task::Keep { letter, .. } = &command.task {
                metrics::counter!("leadfold_dead_letters_total", "reason" => letter.reason.clone()).increment(1);
            }
        }
        Ok(answers)
    }

    pub(super) fn list(&self, below: Option<u64>, limit: usize, payloads: bool) -> io::Result<Vec<(Letter, Vec<u8>)>> {
        self.file.recover()?;
        let oldest = self.oldest_kept();
        self.read(|database| {
            let transaction = database.begin_read()?;
            let (letters, contents) = (transaction.open_table(LETTERS)?, transaction.open_table(PAYLOADS)?);
            let mut listed = Vec::new();
            for entry in letters.range(..below.unwrap_or(u64::MAX))?.rev() {
                let (id, bytes) = entry?;
                let letter = decode(id.value(), bytes.value());
                if oldest.is_some_and(|oldest| letter.last < oldest) {
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

    /// Letters that last came before this are too old. Without the store's clock nothing is known of that: the local one may
    /// be wrong by years.
    pub(super) fn oldest_kept(&self) -> Option<Timestamp> {
        let clock = self.clock.get().filter(|clock| clock.is_of_the_store())?;
        let age = i64::try_from(self.limits.age.as_micros()).unwrap_or(i64::MAX);
        Some(Timestamp::from_micros(clock.now().micros().saturating_sub(age)))
    }

    fn read<T>(&self, work: impl FnOnce(&redb::Database) -> Result<T, redb::Error>) -> io::Result<T> {
        self.file.read(|database| work(database).map_err(|error| self.file.failure(error).into()))
    }

    /// Does something wholly or not at all, and on disk.
    fn transact<T>(&self, work: impl FnOnce(&mut Tables<'_>) -> Result<T, redb::Error>) -> Result<T, Failed<io::Error>> {
        let work = |transaction: &redb::WriteTransaction| -> Result<(T, End), redb::Error> {
            let mut tables = Tables::open(transaction)?;
            let done = work(&mut tables)?;
            metrics::gauge!("leadfold_dead_letters").set(tables.letters.len()? as f64);
            Ok((done, if tables.changed { End::Commit } else { End::Abort }))
        };
        self.file.transact(|transaction| match work(transaction) {
            Ok(done) => Ok(done),
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
    /// Something was written.
    changed: bool,
}

impl<'t> Tables<'t> {
    fn open(transaction: &'t redb::WriteTransaction) -> Result<Self, redb::TableError> {
        Ok(Self {
            letters: transaction.open_table(LETTERS)?,
            payloads: transaction.open_table(PAYLOADS)?,
            contents: transaction.open_table(CONTENTS)?,
            meta: transaction.open_table(META)?,
            changed: false,
        })
    }

    fn execute(&mut self, task: &Task, limits: Limits) -> Result<Done, redb::Error> {
        match task {
            Task::Keep { letter, payload } => {
                self.keep((**letter).clone(), payload, limits)?;
                Ok(Done::Kept)
            }
            Task::Remove { ids } => Ok(Done::Removed(ids.iter().map(|id| self.remove(*id)).collect::<Result<_, _>>()?)),
            Task::Sweep { from, which } => Ok(Done::Swept(self.sweep(*from, which)?)),
            Task::Refused { id, field, error } => {
                if let Some(letter) = self.letter(*id)? {
                    self.write(&Letter { field: field.clone(), error: error.clone(), ..letter })?;
                }
                Ok(Done::Kept)
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
        self.changed = true;
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
        self.changed = true;
        self.letters.remove(id)?;
        self.contents.remove(letter.content.as_str())?;
        let size = self.payloads.remove(id)?.map_or(0, |payload| payload.value().len() as u64);
        let bytes = self.number(BYTES_KEY)?.saturating_sub(size);
        self.meta.insert(BYTES_KEY, bytes)?;
        Ok(true)
    }

    /// Removes what is too much since the limits were lowered.
    fn keep_limits(&mut self, limits: Limits) -> Result<(), redb::Error> {
        while self.letters.len()? > limits.count || self.number(BYTES_KEY)? > limits.bytes {
            let Some(oldest) = self.letters.first()?.map(|(id, _)| id.value()) else { break };
            self.remove(oldest)?;
        }
        Ok(())
    }

    /// Looks at some letters from an id on, and removes those that are meant.
    fn sweep(&mut self, from: u64, which: &Which) -> Result<Swept, redb::Error> {
        let (mut meant, mut swept, mut scanned) = (Vec::new(), Swept::default(), 0);
        for entry in self.letters.range(from..)? {
            let (id, bytes) = entry?;
            if scanned == MAX_SCANNED {
                swept.next = Some(id.value());
                break;
            }
            scanned += 1;
            let letter = decode(id.value(), bytes.value());
            let is_meant = match which {
                Which::Before(oldest) => letter.last < *oldest,
                Which::OfLead(lead_id) => letter.lead_id == *lead_id,
            };
            if is_meant {
                meant.push(letter.id);
            } else {
                swept.earliest = Some(swept.earliest.map_or(letter.last, |earliest| earliest.min(letter.last)));
            }
        }
        for id in meant {
            swept.removed += u64::from(self.remove(id)?);
        }
        Ok(swept)
    }
}

/// What is damaged is shown as an empty letter, which can be dropped.
fn decode(id: u64, bytes: &[u8]) -> Letter {
    Letter { id, ..serde_json::from_slice(bytes).unwrap_or_default() }
}
