//! How far an import has come: everything up to here is done, whatever order it was done in.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::reader::Place;
use crate::durable::{directory_of, sync_directory};

/// The records that are under way, and the last one before which all are done.
#[derive(Debug, Default)]
pub(super) struct Position {
    under_way: VecDeque<(Place, bool)>,
    first: u64,
    done: Place,
}

impl Position {
    /// From a place before which everything is done.
    pub(super) fn starting_at(file: usize, record: u64) -> Self {
        Self { done: Place { file, record, ..Place::default() }, ..Self::default() }
    }

    /// A record begins; the number tells when it is done.
    pub(super) fn begin(&mut self, place: Place) -> u64 {
        self.under_way.push_back((place, false));
        self.first + self.under_way.len() as u64 - 1
    }

    pub(super) fn end(&mut self, number: u64) {
        let index = usize::try_from(number - self.first).unwrap_or(usize::MAX);
        if let Some((_, done)) = self.under_way.get_mut(index) {
            *done = true;
        }
        while let Some(&(place, true)) = self.under_way.front() {
            self.done = place;
            self.first += 1;
            self.under_way.pop_front();
        }
    }

    /// The last record before which, and with which, everything is done.
    pub(super) const fn done(&self) -> Place {
        self.done
    }
}

/// The largest file that is read: the path of an input, and a number.
const MAX_BYTES: u64 = 64 << 10;

/// The file that keeps it.
#[derive(Debug)]
pub(super) struct ResumeFile(PathBuf);

#[derive(Serialize, Deserialize)]
struct Kept {
    file: String,
    records: u64,
}

impl ResumeFile {
    /// Opens it. Which of the files to begin with, and how many of its records are done: the beginning, if there is
    /// no such file yet.
    pub(super) fn open(path: &Path, files: &[PathBuf]) -> anyhow::Result<(Self, (usize, u64))> {
        let resume = Self(path.to_owned());
        let text = match read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // What cannot be written is better known now than in an hour.
                resume.save(files, Place::default())?;
                return Ok((resume, (0, 0)));
            }
            Err(error) => return Err(error).with_context(|| format!("--resume-file {}", path.display())),
        };
        let other = "is not one that leadfold wrote: name another";
        let kept: Kept = serde_json::from_slice(&text).with_context(|| format!("--resume-file {} {other}", path.display()))?;
        let Some(file) = files.iter().position(|file| *file.to_string_lossy() == kept.file) else {
            bail!(
                "--resume-file {} is of an import of {}, which is not among the files: name the same files as then, or remove it",
                path.display(),
                kept.file
            );
        };
        Ok((resume, (file, kept.records)))
    }

    /// All or nothing: a half-written one would be worse than an old one.
    pub(super) fn save(&self, files: &[PathBuf], done: Place) -> anyhow::Result<()> {
        let file = files.get(done.file).map(|file| file.to_string_lossy().into_owned()).unwrap_or_default();
        let write = || {
            let directory = directory_of(&self.0);
            let mut new = tempfile::NamedTempFile::new_in(directory)?;
            serde_json::to_writer(&mut new, &Kept { file, records: done.record })?;
            new.write_all(b"\n")?;
            // Otherwise a power cut could leave the name without the content.
            new.as_file().sync_all()?;
            new.persist(&self.0)?;
            sync_directory(directory)
        };
        write().with_context(|| format!("--resume-file {} cannot be written", self.0.display()))
    }

    /// Everything is done.
    pub(super) fn remove(&self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Reads one that was written before. What is no plain file is not touched: a device may have no end, and a pipe no beginning.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::other("is no plain file: name another"));
    }
    if metadata.len() > MAX_BYTES {
        return Err(io::Error::other("is too large to be one that leadfold wrote: name another"));
    }
    std::fs::read(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_early_waits_for_what_came_before_it() {
        let mut position = Position::default();
        let place = |record| Place { record, ..Place::default() };
        let numbers: Vec<_> = (1..=4).map(|record| position.begin(place(record))).collect();
        let done: Vec<_> = [2, 0, 1, 3]
            .map(|at: usize| {
                position.end(numbers[at]);
                position.done().record
            })
            .into();
        assert_eq!(done, [0, 1, 3, 4]);
        let number = position.begin(place(5));
        position.end(number);
        assert_eq!(position.done().record, 5);
    }
}
