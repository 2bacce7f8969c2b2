//! The one thread that writes. What waits when it comes round shares one fsync.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::files::{Cursor, Directory, Segment};
use super::record::{self, Meta};
use super::{Shared, SpoolError};

/// How many commands are taken at once: bounds how long the first of them waits.
const MAX_BATCH: usize = 512;
/// Bytes that are written with one fsync.
const MAX_WRITE: usize = 4 << 20;

/// What the writer is asked to do.
pub(super) enum Command {
    /// Keep a record. The permit says that there is memory for it while it waits.
    Append { bytes: Vec<u8>, meta: Meta, answer: oneshot::Sender<Result<(), SpoolError>>, permit: Option<OwnedSemaphorePermit> },
    /// All below is done.
    Done(u64),
    /// Remove damaged segments that were kept long enough.
    ExpireEvidence,
}

/// A record on its way to the disk.
struct Waiting {
    bytes: Vec<u8>,
    meta: Meta,
    answer: oneshot::Sender<Result<(), SpoolError>>,
    _permit: Option<OwnedSemaphorePermit>,
}

pub(super) struct Writer {
    directory: Directory,
    commands: mpsc::Receiver<Command>,
    shared: Arc<Shared>,
    /// The file of the last segment; none where the next record begins one.
    file: Option<File>,
    max_bytes: u64,
    segment_bytes: u64,
    /// All below is done.
    done: u64,
}

impl Writer {
    pub(super) fn new(
        directory: Directory,
        commands: mpsc::Receiver<Command>,
        shared: Arc<Shared>,
        max_bytes: u64,
        segment_bytes: u64,
    ) -> Self {
        let done = directory.cursor().done;
        Self { directory, commands, shared, file: None, max_bytes, segment_bytes, done }
    }

    /// Works until the spool is dropped and nothing waits any more.
    pub(super) fn run(mut self) {
        let mut batch = Vec::with_capacity(MAX_BATCH);
        while self.commands.blocking_recv_many(&mut batch, MAX_BATCH) > 0 {
            let mut waiting = Vec::new();
            let mut size = 0;
            let mut done = None;
            for command in batch.drain(..) {
                match command {
                    Command::Append { bytes, meta, answer, permit } => {
                        if size + bytes.len() > MAX_WRITE {
                            self.append(std::mem::take(&mut waiting));
                            size = 0;
                        }
                        size += bytes.len();
                        waiting.push(Waiting { bytes, meta, answer, _permit: permit });
                    }
                    Command::Done(below) => done = Some(below),
                    Command::ExpireEvidence => self.directory.expire_evidence(),
                }
            }
            if let Some(below) = done {
                self.done(below);
            }
            self.append(waiting);
        }
        // So that the next start knows of all that was written, and what may be missing.
        self.write_cursor();
    }

    fn append(&mut self, mut waiting: Vec<Waiting>) {
        // Nobody waits any more for those whose request was given up.
        waiting.retain(|record| !record.answer.is_closed());
        let (mut room, mut sequence) = {
            let state = self.shared.state();
            (self.max_bytes.saturating_sub(state.bytes()), state.next)
        };
        let (mut taken, mut bytes) = (Vec::with_capacity(waiting.len()), Vec::new());
        for mut record in waiting {
            if let Some(left) = room.checked_sub(record.bytes.len() as u64) {
                room = left;
                record::set_sequence(&mut record.bytes, sequence);
                sequence += 1;
                bytes.extend_from_slice(&record.bytes);
                taken.push(record);
            } else {
                // Whoever asked may have gone.
                let _ = record.answer.send(Err(SpoolError::Full(self.max_bytes)));
            }
        }
        if taken.is_empty() {
            return;
        }
        let written = self.write(&bytes);
        if written.is_ok() {
            self.shared.appended(taken.iter().map(|record| record.meta), bytes.len() as u64);
        }
        for record in taken {
            let _ = record.answer.send(written.as_ref().copied().map_err(|error| SpoolError::Disk(error.to_string())));
        }
    }

    /// Writes behind the last record, to the disk itself.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (last, begin, first) = {
            let mut state = self.shared.state();
            (state.segments.back().cloned(), std::mem::take(&mut state.begin_segment), state.next)
        };
        if begin {
            self.file = None;
        }
        let (file, at) = match (&self.file, last) {
            (Some(file), Some(segment)) if segment.bytes < self.segment_bytes => (file, segment.bytes),
            _ => {
                let (segment, file) = self.directory.create(first)?;
                self.shared.state().segments.push_back(segment);
                (&*self.file.insert(file), 0)
            }
        };
        let written = file.write_all_at(bytes, at).and_then(|()| file.sync_data());
        if let Err(error) = &written {
            tracing::error!(%error, "the spool cannot be written");
            // What is behind the last record must not be there. After an fsync that failed nothing is known of the
            // file's end: the next record begins another one.
            let _ = file.set_len(at);
            self.file = None;
            self.forget_empty();
        }
        written
    }

    /// A segment in which nothing was ever written would be in the way of the next one.
    fn forget_empty(&self) {
        let empty = {
            let segments = &mut self.shared.state().segments;
            if segments.back().is_some_and(|segment| segment.count == 0) { segments.pop_back() } else { None }
        };
        if let Some(segment) = empty {
            self.remove(&segment);
        }
    }

    fn done(&mut self, below: u64) {
        self.done = below;
        self.write_cursor();
        // Not while the state is locked: a disk that hangs would stop all who ask how the spool is doing.
        loop {
            let (segment, was_last) = {
                let segments = &mut self.shared.state().segments;
                let is_done = segments.front().is_some_and(|segment| segment.end() <= below);
                let Some(segment) = (if is_done { segments.pop_front() } else { None }) else { break };
                (segment, segments.is_empty())
            };
            if was_last {
                self.file = None;
            }
            self.remove(&segment);
        }
        self.shared.tell();
    }

    fn write_cursor(&mut self) {
        let cursor = Cursor { done: self.done, written: self.shared.state().next };
        if cursor != self.directory.cursor()
            && let Err(error) = self.directory.set_cursor(cursor)
        {
            tracing::warn!(%error, "the spool's cursor cannot be written: changes may be applied once more after a restart");
        }
    }

    fn remove(&self, segment: &Segment) {
        if let Err(error) = self.directory.remove(segment) {
            tracing::warn!(%error, "a segment of the spool that is done cannot be removed");
        }
    }
}
