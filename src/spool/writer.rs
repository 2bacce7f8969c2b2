//! The one thread that writes. What waits when it comes round shares one fsync.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::files::{Directory, Segment};
use super::record::Meta;
use super::{Shared, SpoolError};

/// How many commands are taken at once: bounds how long the first of them waits.
const MAX_BATCH: usize = 512;
/// Bytes that are written with one fsync.
const MAX_WRITE: usize = 4 << 20;

/// What the writer is asked to do.
pub(super) enum Command {
    /// Keep a record.
    Append { bytes: Vec<u8>, meta: Meta, answer: oneshot::Sender<Result<(), SpoolError>> },
    /// All below is done.
    Done(u64),
}

/// A record on its way to the disk.
struct Waiting {
    bytes: Vec<u8>,
    meta: Meta,
    answer: oneshot::Sender<Result<(), SpoolError>>,
}

pub(super) struct Writer {
    pub(super) directory: Directory,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) shared: Arc<Shared>,
    /// The file of the last segment; none where the next record begins one.
    pub(super) file: Option<File>,
    pub(super) max_bytes: u64,
    pub(super) segment_bytes: u64,
}

impl Writer {
    /// Works until the spool is dropped and nothing waits any more.
    pub(super) fn run(mut self) {
        let mut batch = Vec::with_capacity(MAX_BATCH);
        while self.commands.blocking_recv_many(&mut batch, MAX_BATCH) > 0 {
            let mut waiting = Vec::new();
            let mut size = 0;
            let mut done = None;
            for command in batch.drain(..) {
                match command {
                    Command::Append { bytes, meta, answer } => {
                        if size + bytes.len() > MAX_WRITE {
                            self.append(std::mem::take(&mut waiting));
                            size = 0;
                        }
                        size += bytes.len();
                        waiting.push(Waiting { bytes, meta, answer });
                    }
                    Command::Done(below) => done = Some(below),
                }
            }
            if let Some(below) = done {
                self.done(below);
            }
            self.append(waiting);
        }
    }

    fn append(&mut self, mut waiting: Vec<Waiting>) {
        // Nobody waits any more for those whose request was given up.
        waiting.retain(|record| !record.answer.is_closed());
        let mut room = self.max_bytes.saturating_sub(self.shared.state().bytes());
        let (mut taken, mut bytes) = (Vec::with_capacity(waiting.len()), Vec::new());
        for record in waiting {
            if let Some(left) = room.checked_sub(record.bytes.len() as u64) {
                room = left;
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
        let last = self.shared.state().segments.back().cloned();
        let (file, at) = match (&self.file, last) {
            (Some(file), Some(segment)) if segment.bytes < self.segment_bytes => (file, segment.bytes),
            _ => {
                let first = self.shared.state().next;
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
        let mut state = self.shared.state();
        if state.segments.back().is_some_and(|segment| segment.count == 0)
            && let Some(segment) = state.segments.pop_back()
        {
            self.remove(&segment);
        }
    }

    fn done(&mut self, below: u64) {
        if let Err(error) = self.directory.set_done(below) {
            tracing::warn!(%error, "the spool's cursor cannot be written: changes may be applied once more after a restart");
        }
        let mut state = self.shared.state();
        while state.segments.front().is_some_and(|segment| segment.end() <= below)
            && let Some(segment) = state.segments.pop_front()
        {
            if state.segments.is_empty() {
                self.file = None;
            }
            self.remove(&segment);
        }
        drop(state);
        self.shared.tell();
    }

    fn remove(&self, segment: &Segment) {
        if let Err(error) = self.directory.remove(segment) {
            tracing::warn!(%error, "a segment of the spool that is done cannot be removed");
        }
    }
}
