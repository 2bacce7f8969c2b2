//! A redb file that outlives the failures of its disk. Both the embedded store and the dead letters are one.
//!
//! redb refuses all work after the first error of its disk, until the file is opened anew; and it may panic where a page
//! is damaged. Here, every use of it is guarded against panics, a handle that is of no more use is dropped, and the file
//! is opened again, without a restart, as soon as that can be done. The file is created whole ([`create`]), and checked
//! from end to end whenever it is opened: what is damaged is refused in words and never read as something else.

mod create;
#[cfg(test)]
mod tests;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use redb::{Builder, Database, Durability, ReadableTable as _, TableDefinition, TransactionError, WriteTransaction};

/// Numbers about the file itself.
pub(crate) const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");
pub(crate) const FORMAT_KEY: &str = "format";

/// How long nothing is written, or opened, after a failure: at least.
const SHORTEST_PAUSE: Duration = Duration::from_millis(500);
/// At most.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Opening a large file takes long. The pause is so many times longer, so that reads are served in between.
const PAUSES_PER_OPENING: u32 = 4;
/// How long to wait for reads that still have the old handle.
const OLD_READS: Duration = Duration::from_millis(300);
/// How long a writer may take to end when the program does. A disk that hangs must not keep the process.
const END: Duration = Duration::from_secs(3);
/// What to do about a damaged file.
const ADVICE: &str =
    "nothing in it was changed; stop leadfold and restore the file from a backup, or move it away to begin with an empty one";

/// How a file is laid out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// The number of the layout; a file of another is left alone.
    pub(crate) format: u64,
    /// How much of the file is kept in memory; the operating system keeps more of it.
    pub(crate) cache_bytes: usize,
    /// Opens every table, which creates those that are missing.
    pub(crate) tables: fn(&WriteTransaction) -> Result<(), redb::Error>,
}

impl Layout {
    fn builder(&self) -> Builder {
        let mut builder = Builder::new();
        builder.set_cache_size(self.cache_bytes).set_check_integrity_on_open(true);
        builder
    }

    /// Sees to it that all tables are there. Returns the format of the file.
    fn prepare(&self, database: &Database) -> Result<u64, redb::Error> {
        let transaction = begin(database)?;
        let found = {
            let mut meta = transaction.open_table(META)?;
            let found = meta.get(FORMAT_KEY)?.map(|format| format.value());
            if found.is_none() {
                meta.insert(FORMAT_KEY, self.format)?;
            }
            found
        };
        match found {
            Some(format) => {
                transaction.abort()?;
                Ok(format)
            }
            None => {
                (self.tables)(&transaction)?;
                transaction.commit()?;
                Ok(self.format)
            }
        }
    }
}

/// Why a file, or a part of it, cannot be used.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{words}")]
pub(crate) struct Unusable {
    pub(crate) kind: Kind,
    pub(crate) words: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Another process has it open.
    InUse,
    /// The disk failed in this way. It may work again later.
    Disk(io::ErrorKind),
    /// Somebody has to set it right.
    Damaged,
    /// Of what was asked for, something is damaged. The rest of the file can be used.
    PartDamaged,
}

impl Unusable {
    fn in_use(path: &Path) -> Self {
        Self { kind: Kind::InUse, words: format!("{} is open in another process", path.display()) }
    }

    fn disk(path: &Path, error: &io::Error) -> Self {
        Self { kind: Kind::Disk(error.kind()), words: format!("{}: {error}", path.display()) }
    }

    fn damaged(path: &Path, why: &dyn std::fmt::Display) -> Self {
        Self { kind: Kind::Damaged, words: format!("{} is damaged or no database of leadfold's: {why}: {ADVICE}", path.display()) }
    }

    fn part_damaged(path: &Path, why: &dyn std::fmt::Display) -> Self {
        let words = format!("a part of {} is damaged: {why}: restore the file from a backup", path.display());
        Self { kind: Kind::PartDamaged, words }
    }

    /// While the file is opened.
    fn of(path: &Path, error: redb::Error) -> Self {
        match error {
            redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => Self::in_use(path),
            redb::Error::Io(error) if error.kind() != io::ErrorKind::InvalidData => Self::disk(path, &error),
            error => Self::damaged(path, &error),
        }
    }
}

/// What callers of a file make of [`Unusable`].
pub(crate) trait FileError: From<Unusable> {
    /// What it says, without what it says of itself.
    fn words(&self) -> String;
}

impl FileError for io::Error {
    fn words(&self) -> String {
        self.to_string()
    }
}

impl From<Unusable> for io::Error {
    fn from(unusable: Unusable) -> Self {
        let kind = match unusable.kind {
            Kind::InUse => io::ErrorKind::ResourceBusy,
            Kind::Disk(kind) => kind,
            Kind::Damaged | Kind::PartDamaged => io::ErrorKind::InvalidData,
        };
        Self::new(kind, unusable.words)
    }
}

/// How a transaction ends that went well.
pub(crate) enum End {
    Commit,
    /// Nothing was written: spare the disk.
    Abort,
}

/// Nothing of a transaction was kept, as far as is known: an error may come after the last write.
#[derive(Debug)]
pub(crate) struct Failed<E> {
    pub(crate) error: E,
    /// Something in this transaction cannot be done, another transaction may go well. Otherwise nothing can be written.
    pub(crate) is_about_content: bool,
}

/// A redb file.
#[derive(Debug)]
pub(crate) struct DatabaseFile {
    path: PathBuf,
    layout: Layout,
    /// `None` while the file cannot be used.
    current: ArcSwapOption<Database>,
    trouble: Mutex<Trouble>,
    /// Held while the file is opened.
    opening: Mutex<()>,
}

#[derive(Debug, Default)]
struct Trouble {
    /// Why nothing can be written, or the file cannot be used at all. `None`: all is well.
    why: Option<Unusable>,
    /// Nothing is written before.
    write_after: Option<Instant>,
    /// The file is not opened before.
    open_after: Option<Instant>,
}

/// What a handle is still good for after a failure.
enum Handle {
    Fine,
    /// Of no use: the disk failed.
    DiskFailed,
    /// Of no use for another reason.
    Spoiled,
}

impl DatabaseFile {
    /// Opens the file at `path`, or creates it and the directories that it is in.
    pub(crate) fn open(path: &Path, layout: Layout) -> Result<Self, Unusable> {
        create::create_if_missing(path, &layout)?;
        let database = open(path, &layout)?;
        Ok(Self {
            path: path.to_owned(),
            layout,
            current: ArcSwapOption::from_pointee(database),
            trouble: Mutex::default(),
            opening: Mutex::default(),
        })
    }

    /// Whether the file can be read.
    pub(crate) fn is_open(&self) -> bool {
        self.current.load().is_some()
    }

    /// Reads. May be called anywhere: it does not open the file.
    pub(crate) fn read<T, E: FileError>(&self, work: impl FnOnce(&Database) -> Result<T, E>) -> Result<T, E> {
        let database = self.current.load_full().ok_or_else(|| self.why())?;
        let result = unless_panics(|| work(&database));
        let result = result.unwrap_or_else(|panic| Err(Unusable::part_damaged(&self.path, &panic).into()));
        if let Err(error) = &result {
            self.retire_unless_fine(&database, error.words());
        }
        discard(database);
        result
    }

    /// Does something wholly or not at all, and on the disk. Afterwards, [`DatabaseFile::recover`] is to be called.
    pub(crate) fn transact<T, E: FileError>(&self, work: impl FnOnce(&WriteTransaction) -> Result<(T, End), E>) -> Result<T, Failed<E>> {
        let disk = |error: Unusable| Failed { is_about_content: false, error: error.into() };
        let paused = self.trouble().write_after.is_some_and(|after| Instant::now() < after);
        if paused {
            return Err(disk(self.why()));
        }
        self.recover().map_err(disk)?;
        let database = self.current.load_full().ok_or_else(|| disk(self.why()))?;
        let result = unless_panics(|| self.attempt(&database, work));
        let result = result.unwrap_or_else(|panic| Err(Unusable::part_damaged(&self.path, &panic).into()));
        let result = match result {
            Ok((done, end)) => {
                // Where nothing was written, nothing is known of the disk.
                if matches!(end, End::Commit) {
                    self.all_is_well();
                }
                Ok(done)
            }
            Err(error) => {
                let is_about_content = !matches!(self.retire_unless_fine(&database, error.words()), Handle::DiskFailed);
                Err(Failed { error, is_about_content })
            }
        };
        discard(database);
        result
    }

    fn attempt<T, E: FileError>(
        &self,
        database: &Database,
        work: impl FnOnce(&WriteTransaction) -> Result<(T, End), E>,
    ) -> Result<(T, End), E> {
        let transaction = begin(database).map_err(|error| self.failure(error))?;
        // A panic ends here, where the transaction can still be taken back in order.
        let (done, end) = match unless_panics(|| work(&transaction)) {
            Ok(Ok(done)) => done,
            failed => {
                // Where that fails too, the handle says so.
                let _ = transaction.abort();
                return failed.unwrap_or_else(|panic| Err(Unusable::part_damaged(&self.path, &panic).into()));
            }
        };
        stop_here_for_tests();
        match end {
            End::Commit => transaction.commit().map_err(|error| self.failure(error.into()))?,
            End::Abort => transaction.abort().map_err(|error| self.failure(error.into()))?,
        }
        Ok((done, end))
    }

    /// Opens the file again, if it has to be and it is time. May take long where the file is large.
    pub(crate) fn recover(&self) -> Result<(), Unusable> {
        if self.is_open() {
            return Ok(());
        }
        let opening = self.opening.try_lock();
        if matches!(opening, Err(std::sync::TryLockError::WouldBlock)) {
            let words = format!("{} is being opened again after a failure of its disk", self.path.display());
            return Err(Unusable { kind: Kind::Disk(io::ErrorKind::ResourceBusy), words });
        }
        if self.is_open() {
            return Ok(());
        }
        if self.trouble().open_after.is_some_and(|after| Instant::now() < after) {
            return Err(self.why());
        }
        let began = Instant::now();
        let mut opened = open(&self.path, &self.layout);
        // A read may still have the old handle.
        while matches!(&opened, Err(error) if error.kind == Kind::InUse) && began.elapsed() < OLD_READS {
            std::thread::sleep(Duration::from_millis(5));
            opened = open(&self.path, &self.layout);
        }
        let pause = Instant::now() + (began.elapsed() * PAUSES_PER_OPENING).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        let mut trouble = self.trouble();
        match opened {
            Ok(database) => {
                trouble.open_after = None;
                trouble.write_after = trouble.write_after.map(|_| pause);
                self.current.store(Some(Arc::new(database)));
                tracing::debug!("{} was opened again", self.path.display());
                Ok(())
            }
            Err(error) => {
                trouble.open_after = Some(pause);
                // The same words again and again would hide others.
                if trouble.why.as_ref().is_none_or(|why| why.words != error.words) {
                    tracing::error!("{} cannot be opened again, which is tried from now on: {error}", self.path.display());
                }
                trouble.why = Some(error.clone());
                Err(error)
            }
        }
    }

    /// What an error of redb's means in words.
    pub(crate) fn failure(&self, error: redb::Error) -> Unusable {
        match error {
            redb::Error::Io(error) => Unusable::disk(&self.path, &error),
            redb::Error::Corrupted(_) | redb::Error::TableTypeMismatch { .. } | redb::Error::TableDoesNotExist(_) => {
                Unusable::part_damaged(&self.path, &error)
            }
            error => Unusable { kind: Kind::Disk(io::ErrorKind::Other), words: format!("{}: {error}", self.path.display()) },
        }
    }

    /// After a failure, which said these words: drops the handle if it is of no more use.
    fn retire_unless_fine(&self, database: &Arc<Database>, words: String) -> Handle {
        let tried = unless_panics(|| match database.try_begin_write() {
            Ok(transaction) => transaction.abort().map_err(redb::Error::from),
            Err(TransactionError::WouldBlock) => Ok(()),
            Err(error) => Err(error.into()),
        });
        let (handle, kind) = match tried {
            Ok(Ok(())) => return Handle::Fine,
            Ok(Err(redb::Error::Io(_) | redb::Error::PreviousIo | redb::Error::Backend(_) | redb::Error::DatabaseClosed)) => {
                (Handle::DiskFailed, Kind::Disk(io::ErrorKind::Other))
            }
            _ => (Handle::Spoiled, Kind::PartDamaged),
        };
        let why = Unusable { kind, words };
        let mut trouble = self.trouble();
        let is_current = self.current.load().as_ref().is_some_and(|current| Arc::ptr_eq(current, database));
        if is_current {
            self.current.store(None);
            if trouble.why.is_none() {
                tracing::error!("{} cannot be written: {why}. It is tried again from now on", self.path.display());
            }
            if matches!(handle, Handle::DiskFailed) {
                trouble.write_after = Some(Instant::now() + SHORTEST_PAUSE);
            }
            trouble.why = Some(why);
        }
        handle
    }

    fn all_is_well(&self) {
        let mut trouble = self.trouble();
        if trouble.why.is_some() {
            tracing::info!("{} can be written again", self.path.display());
            *trouble = Trouble::default();
        }
    }

    fn why(&self) -> Unusable {
        let why = self.trouble().why.clone();
        why.unwrap_or_else(|| Unusable { kind: Kind::Disk(io::ErrorKind::Other), words: format!("{} is not open", self.path.display()) })
    }

    fn trouble(&self) -> MutexGuard<'_, Trouble> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open(path: &Path, layout: &Layout) -> Result<Database, Unusable> {
    let opened = unless_panics(|| -> Result<_, redb::Error> {
        let database = layout.builder().open(path)?;
        let format = layout.prepare(&database)?;
        Ok((database, format))
    });
    match opened {
        Ok(Ok((database, format))) if format == layout.format => Ok(database),
        Ok(Ok((_, format))) => {
            let words = format!(
                "{} is of format {format}, and this program knows {}: use the version of leadfold that wrote it, or move the file away",
                path.display(),
                layout.format
            );
            Err(Unusable { kind: Kind::Damaged, words })
        }
        Ok(Err(error)) => Err(Unusable::of(path, error)),
        Err(panic) => Err(Unusable::damaged(path, &panic)),
    }
}

/// Starts a transaction that is on disk when it is committed.
fn begin(database: &Database) -> Result<WriteTransaction, redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    // The second fsync makes the recovery after a crash independent of checksums and of what the crash left
    // in the half-written slot.
    transaction.set_two_phase_commit(true);
    Ok(transaction)
}

/// The last to let go of a handle closes it, which may panic where the file is damaged.
fn discard(database: Arc<Database>) {
    let _ = unless_panics(|| drop(database));
}

/// An error is what the panic said.
fn unless_panics<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        let said = said.and_then(|said| said.lines().next()).unwrap_or("no more is known");
        format!("what is read makes no sense ({said})")
    })
}

/// Waits for a thread that writes to end, but not for ever.
pub(crate) fn end_of(writer: JoinHandle<()>) {
    let deadline = Instant::now() + END;
    while !writer.is_finished() {
        if Instant::now() >= deadline {
            tracing::error!("the disk does not answer: what was not acknowledged is given up");
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    // It panicked: its callers know already.
    let _ = writer.join();
}

/// A test can hold every commit, as a disk does that hangs: while the file exists that `LEADFOLD_TEST_HANG_WHILE` names.
/// In a release build there is no such thing.
fn stop_here_for_tests() {
    #[cfg(debug_assertions)]
    if let Some(file) = std::env::var_os("LEADFOLD_TEST_HANG_WHILE") {
        while Path::new(&file).exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
