//! How a database file comes to be: under another name, and under its own only when it is complete. So a start that is
//! killed, or finds the disk full, leaves nothing that the next start stumbles over.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use tempfile::NamedTempFile;

use super::{Layout, Unusable, unless_panics};
use crate::durable::{create_directory, directory_of, sync_directory};

/// redb writes its header without these bytes first, then with them; nothing is stored before.
const MAGIC: &[u8] = b"redb\x1A\x0A\xA9\x0D\x0A";
/// Only the header is in the first page; whatever is stored is behind it.
const FIRST_PAGE: u64 = 4096;
/// How a file is called until it is complete: `.leads.redb.XXXXXX.new`.
const UNFINISHED: &str = ".new";
/// How often to start over when another process creates or removes a file at the same moment.
const TRIES: usize = 10;

/// Sees to it that there is a complete database at `path`. One that is there is left alone, unless it was never finished.
pub(super) fn create_if_missing(path: &Path, layout: &Layout) -> Result<(), Unusable> {
    let failed = |error: io::Error| Unusable::disk(path, &error);
    create_directory(directory_of(path)).map_err(failed)?;
    remove_unfinished(path).map_err(failed)?;
    for _ in 0..TRIES {
        let done = match state(path).map_err(failed)? {
            State::Present => return Ok(()),
            State::Missing => create(path, layout)?,
            State::NeverFinished => replace(path, layout)?,
        };
        if done {
            return Ok(());
        }
    }
    Err(Unusable::in_use(path))
}

enum State {
    Present,
    Missing,
    /// A start of an earlier version ended before anything was stored.
    NeverFinished,
}

fn state(path: &Path) -> io::Result<State> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(State::Missing),
        Err(error) => Err(error),
        Ok(metadata) if !metadata.is_file() => Err(io::Error::other("it is not a file")),
        Ok(_) => Ok(if is_never_finished(&mut File::open(path)?)? { State::NeverFinished } else { State::Present }),
    }
}

/// Whether nothing was ever stored in the file: it is empty, or zero wherever a database is not.
fn is_never_finished(file: &mut File) -> io::Result<bool> {
    let mut magic = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    Read::by_ref(file).take(MAGIC.len() as u64).read_to_end(&mut magic)?;
    if magic.iter().any(|byte| *byte != 0) {
        return Ok(false);
    }
    file.seek(SeekFrom::Start(FIRST_PAGE))?;
    let mut chunk = vec![0; 64 << 10];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(true),
            count if chunk[..count].iter().any(|byte| *byte != 0) => return Ok(false),
            _ => {}
        }
    }
}

/// `false`: another process created it, or removed what this one had begun.
fn create(path: &Path, layout: &Layout) -> Result<bool, Unusable> {
    let Some(file) = build(path, layout)? else { return Ok(false) };
    match file.persist_noclobber(path) {
        Ok(_) => {}
        Err(error) if matches!(error.error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound) => return Ok(false),
        Err(error) => return Err(Unusable::disk(path, &error.error)),
    }
    sync_directory(directory_of(path)).map_err(|error| Unusable::disk(path, &error))?;
    Ok(true)
}

/// `false`: something else is there by now.
fn replace(path: &Path, layout: &Layout) -> Result<bool, Unusable> {
    let failed = |error: io::Error| Unusable::disk(path, &error);
    let mut old = File::options().read(true).write(true).open(path).map_err(failed)?;
    // An earlier version locks the file in this way while it creates it. Held until it is replaced.
    if matches!(old.try_lock(), Err(std::fs::TryLockError::WouldBlock)) {
        return Err(Unusable::in_use(path));
    }
    let same = |old: &File| -> io::Result<bool> {
        let (old, now) = (old.metadata()?, std::fs::metadata(path)?);
        Ok((old.dev(), old.ino()) == (now.dev(), now.ino()))
    };
    if !same(&old).map_err(failed)? || !is_never_finished(&mut old).map_err(failed)? {
        return Ok(false);
    }
    let Some(file) = build(path, layout)? else { return Ok(false) };
    tracing::warn!("{} holds nothing: the start that was to create it did not get that far. It is created anew", path.display());
    file.persist(path).map_err(|error| Unusable::disk(path, &error.error))?;
    sync_directory(directory_of(path)).map_err(failed)?;
    Ok(true)
}

/// A complete database, on the disk, under a name of its own. `None`: another process removed it meanwhile.
fn build(path: &Path, layout: &Layout) -> Result<Option<NamedTempFile>, Unusable> {
    let failed = |error: io::Error| Unusable::disk(path, &error);
    // For nobody else on this machine: it is about people. That is what `tempfile` makes.
    let file = tempfile::Builder::new().prefix(&prefix(path)).suffix(UNFINISHED).tempfile_in(directory_of(path)).map_err(failed)?;
    let built = unless_panics(|| -> Result<(), redb::Error> {
        let database = layout.builder().create(file.path())?;
        layout.prepare(&database)?;
        database.close()?;
        Ok(())
    });
    match built {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(Unusable::of(path, error)),
        Err(panic) => return Err(Unusable::damaged(path, &panic)),
    }
    if !file.path().exists() {
        return Ok(None);
    }
    file.as_file().sync_all().map_err(failed)?;
    Ok(Some(file))
}

fn prefix(path: &Path) -> String {
    format!(".{}.", path.file_name().unwrap_or_default().to_string_lossy())
}

/// What a start left behind that was killed. A process that is creating the file at this moment starts over.
fn remove_unfinished(path: &Path) -> io::Result<()> {
    let prefix = prefix(path);
    for entry in std::fs::read_dir(directory_of(path))? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(&prefix) && name.ends_with(UNFINISHED) {
            match std::fs::remove_file(entry.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}
