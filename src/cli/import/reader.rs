//! The files, read ahead on a thread of their own: cut, checked, and made into events.

use std::collections::hash_map::DefaultHasher;
use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, bail};
use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::export::{self, Made, Owner};
use super::input::{Input, is_stdin};
use super::records::{MAX_RECORD_BYTES, Record, Records};
use crate::event::{self, Event, Refusal};
use crate::fold::{self, Folded, Receipt};
use crate::time::Timestamp;

/// Bytes of events that are read ahead at most.
const READ_AHEAD: usize = 32 << 20;
/// The largest body that a server takes unless it is told otherwise.
const MAX_BODY_BYTES: usize = 1 << 20;

/// What is to be read, and how.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) files: Vec<PathBuf>,
    /// The file to begin with, and how many of its records to pass over.
    pub(super) start: (usize, u64),
    pub(super) lead_id: Option<String>,
    pub(super) workspace_id: Option<String>,
    /// Nothing is sent: what a server would find too large is refused here.
    pub(super) dry_run: bool,
}

/// Where something stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// Which of the files.
    pub(super) file: usize,
    /// Which record of it, the first is 1.
    pub(super) record: u64,
    pub(super) line: u64,
    /// Bytes of all files up to here, as they are on disk.
    pub(super) bytes: u64,
}

/// What was read.
pub(super) enum Piece {
    /// An event to be sent.
    Event(Box<ToSend>),
    /// A record that is no event.
    Refused(Place, Refusal),
    /// An action log that has not ended, by its status.
    Unfinished(Place, String),
    /// An empty line.
    Blank(Place),
    /// A file cannot be read on from here.
    Broken(Place, io::Error),
    /// The command is wrong: nothing more is read.
    Wrong(Place, String),
    /// All of a file was read, but for something that is to be said.
    Odd(Place, &'static str),
}

/// Why reading ends.
enum Stop {
    Broken(io::Error),
    Wrong(String),
    /// Nobody wants any more.
    Unwanted,
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

/// An event to be sent.
pub(super) struct ToSend {
    pub(super) place: Place,
    pub(super) body: Bytes,
    /// The event names no workspace: the URL is to.
    pub(super) for_workspace: bool,
    /// Events that have the same must be taken in the order of the file: profiles keep what came last.
    pub(super) order: Option<u64>,
    pub(super) kind: &'static str,
    pub(super) time: Option<Timestamp>,
    /// Room that it takes of what may be read ahead.
    pub(super) _room: OwnedSemaphorePermit,
}

/// Checks that every file is there, and counts their bytes; `None` if that is not known. What is no plain file is not opened: a
/// pipe has a beginning only once.
pub(super) fn total_bytes(files: &[PathBuf]) -> anyhow::Result<Option<u64>> {
    let mut total = Some(0);
    for file in files {
        if is_stdin(file) {
            total = None;
            continue;
        }
        let cannot_read = || format!("cannot read {}", file.display());
        let metadata = std::fs::metadata(file).with_context(cannot_read)?;
        if metadata.is_dir() {
            bail!("{} is a directory: name the files in it", file.display());
        }
        if metadata.is_file() {
            File::open(file).with_context(cannot_read)?;
        }
        total = total.filter(|_| metadata.is_file()).map(|total: u64| total + metadata.len());
    }
    Ok(total)
}

/// Reads everything, until nobody wants any more.
pub(super) fn read(plan: Plan, pieces: mpsc::Sender<Piece>) {
    let (room, runtime) = (Arc::new(Semaphore::new(READ_AHEAD)), Handle::current());
    std::thread::spawn(move || {
        let bytes = Arc::new(AtomicU64::new(0));
        let (first, skip) = plan.start;
        for (file, path) in plan.files.iter().enumerate() {
            if file < first {
                bytes.fetch_add(std::fs::metadata(path).map_or(0, |metadata| metadata.len()), Ordering::Relaxed);
                continue;
            }
            let mut reader = FileReader {
                plan: &plan,
                place: Place { file, ..Place::default() },
                bytes: &bytes,
                pieces: &pieces,
                room: &room,
                runtime: &runtime,
            };
            let skip = if file == first { skip } else { 0 };
            let piece = match reader.read(path, skip) {
                Ok(()) => continue,
                Err(Stop::Unwanted) => return,
                Err(Stop::Broken(error)) => Piece::Broken(reader.place, error),
                Err(Stop::Wrong(what)) => {
                    let _ = pieces.blocking_send(Piece::Wrong(reader.place, what));
                    return;
                }
            };
            if pieces.blocking_send(piece).is_err() {
                return;
            }
        }
    });
}

struct FileReader<'a> {
    plan: &'a Plan,
    place: Place,
    bytes: &'a Arc<AtomicU64>,
    pieces: &'a mpsc::Sender<Piece>,
    room: &'a Arc<Semaphore>,
    runtime: &'a Handle,
}

impl FileReader<'_> {
    fn read(&mut self, path: &Path, skip: u64) -> Result<(), Stop> {
        let mut input = Input::open(path, self.bytes)?;
        let mut records = Records::new(&mut input.text);
        let mut owner = None;
        loop {
            let record = records.next();
            self.place =
                Place { record: self.place.record + 1, line: records.line(), bytes: self.bytes.load(Ordering::Relaxed), ..self.place };
            let Some(record) = record? else { break };
            if self.place.record <= skip {
                continue;
            }
            self.place.line = record.line;
            if owner.is_none() && self.is_action_log(&record) {
                owner = Some(self.owner(path).map_err(Stop::Wrong)?);
            }
            let piece = self.piece(record, owner.as_ref());
            self.pieces.blocking_send(piece).map_err(|_| Stop::Unwanted)?;
        }
        if self.place.record <= skip {
            let has = self.place.record - 1;
            return Err(io::Error::other(format!("has {has} records, fewer than the {skip} to pass over")).into());
        }
        if input.has_junk() {
            let what = "all of its gzip data was read, and something else that follows it was left out";
            self.pieces.blocking_send(Piece::Odd(self.place, what)).map_err(|_| Stop::Unwanted)?;
        }
        Ok(())
    }

    /// Whether it is of a REST export.
    fn is_action_log(&self, record: &Record) -> bool {
        export::is_action_log(&record.bytes, !record.is_element)
    }

    /// Whose a REST export is.
    fn owner(&self, path: &Path) -> Result<Owner, String> {
        let missing = |flag: &str| format!("has action logs (the REST export), which do not say whose: give {flag}");
        // What is exported lead by lead is kept lead by lead, in LEAD.json or LEAD.json.gz.
        let name = path.file_name().and_then(|name| name.to_str()?.split('.').next()).filter(|name| uuid::Uuid::try_parse(name).is_ok());
        let lead_id = self.plan.lead_id.clone().or(name.map(str::to_owned)).ok_or_else(|| missing("--lead-id"))?;
        let workspace_id = self.plan.workspace_id.clone().ok_or_else(|| missing("--workspace-id"))?;
        Ok(Owner { lead_id, workspace_id })
    }

    fn piece(&self, record: Record, owner: Option<&Owner>) -> Piece {
        let place = self.place;
        if record.too_long {
            return Piece::Refused(place, Refusal::body(format!("longer than {MAX_RECORD_BYTES} bytes")));
        }
        let owner = owner.filter(|_| self.is_action_log(&record));
        let body = match owner {
            None if record.bytes.is_empty() => return Piece::Blank(place),
            None => record.bytes,
            Some(owner) => match export::event(&record.bytes, owner) {
                Ok(Made::Event(event)) => event,
                Ok(Made::Unfinished(status)) => return Piece::Unfinished(place, status),
                Err(refusal) => return Piece::Refused(place, refusal),
            },
        };
        if self.plan.dry_run && body.len() > MAX_BODY_BYTES {
            let what = format!("longer than {MAX_BODY_BYTES} bytes, the most that a server takes without --max-body-bytes");
            return Piece::Refused(place, Refusal::body(what));
        }
        match self.check(body) {
            Ok(event) => Piece::Event(Box::new(event)),
            Err(refusal) => Piece::Refused(place, refusal),
        }
    }

    /// What the server would refuse is not sent: it is said here, as the server would say it.
    fn check(&self, body: Vec<u8>) -> Result<ToSend, Refusal> {
        let (order, for_workspace, kind, time);
        {
            let parsed = event::Body::new(&body);
            let event = event::parse(&parsed)?;
            let fold = |workspace_id| fold::fold(&event, Receipt { at: Timestamp::now(), workspace_id });
            let given = self.plan.workspace_id.as_deref();
            let change = match fold(None) {
                Ok(Folded::Change(change)) if change.workspace_id.is_none() && given.is_some() => {
                    for_workspace = true;
                    Some(change)
                }
                Ok(Folded::Change(change)) => {
                    for_workspace = false;
                    Some(change)
                }
                Ok(Folded::UnknownEvent(_)) => {
                    for_workspace = false;
                    None
                }
                Err(refusal) => {
                    fold(given).map_err(|_| refusal)?;
                    for_workspace = true;
                    None
                }
            };
            order = match &event {
                Event::LeadCreated(_) | Event::LeadUpdated(_) | Event::LeadCompleted(_) => {
                    change.as_ref().map(|change| hash(&change.lead_id))
                }
                _ => None,
            };
            time = change.and_then(|change| change.activity).filter(|activity| activity.timed).map(|activity| activity.time);
            kind = event.label();
        }
        let size = u32::try_from(body.len().clamp(1, READ_AHEAD)).unwrap_or(u32::MAX);
        let room = self.runtime.block_on(Arc::clone(self.room).acquire_many_owned(size));
        let room = room.map_err(|_| Refusal::body("the import has ended"))?;
        Ok(ToSend { place: self.place, body: Bytes::from(body), for_workspace, order, kind, time, _room: room })
    }
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}
