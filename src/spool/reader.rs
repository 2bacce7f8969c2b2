//! Reading the spool, from the oldest change that is not done.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::Shared;
use super::files::{self, segment_name};
use super::record::{self, Meta, Next};
use crate::lead::Change;

/// Bytes that are read at once.
const CHUNK: u64 = 256 * 1024;

/// A change that waits in the spool.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) sequence: u64,
    pub(super) meta: Meta,
    /// Bytes that it takes on disk; about as many in memory.
    pub(super) bytes: usize,
    /// `Err`: why it cannot be read, and its bytes.
    pub(super) change: Result<Change, (String, Vec<u8>)>,
}

/// A place in the spool.
#[derive(Debug)]
pub(super) struct Reader {
    directory: PathBuf,
    shared: Arc<Shared>,
    /// The segment that is being read, by its first sequence number, and how far.
    current: Option<(u64, File, u64)>,
    /// The sequence number of the next entry.
    next: u64,
}

impl Reader {
    pub(super) fn new(directory: PathBuf, shared: Arc<Shared>, from: u64) -> Self {
        Self { directory, shared, current: None, next: from }
    }

    /// Another one at the same place.
    pub(super) fn again(&self) -> Self {
        Self::new(self.directory.clone(), Arc::clone(&self.shared), self.next)
    }

    /// The sequence number of the next entry.
    pub(super) const fn next(&self) -> u64 {
        self.next
    }

    /// The next entries: none where all was read. Reads only what the writer has acknowledged.
    pub(super) fn read(&mut self) -> io::Result<Vec<Entry>> {
        let Some((first, start, bytes)) = self.segment() else { return Ok(Vec::new()) };
        let (file, mut at) = match self.current.take() {
            Some((current, file, at)) if current == first => (file, at),
            _ => (File::open(segment_name(&self.directory, first))?, 0),
        };
        let mut sequence = start;
        let mut entries = Vec::new();
        let mut need = CHUNK;
        while at < bytes && entries.is_empty() {
            let chunk = files::read(&file, at, bytes.min(at + need))?;
            let mut rest = &chunk[..];
            loop {
                match record::next(rest) {
                    Next::Record(meta, body, taken) => {
                        if sequence >= self.next {
                            let change = record::decode(body).map_err(|why| (why, body.to_vec()));
                            entries.push(Entry { sequence, meta, bytes: taken, change });
                        }
                        sequence += 1;
                        at += taken as u64;
                        rest = &rest[taken..];
                    }
                    Next::Partial(needed) => {
                        need = CHUNK.max(needed as u64);
                        break;
                    }
                    Next::Damaged => return Err(io::Error::new(io::ErrorKind::InvalidData, format!("damaged at byte {at}"))),
                }
            }
        }
        self.next = self.next.max(sequence);
        self.current = Some((first, file, at));
        Ok(entries)
    }

    /// Passes over what is left of the segment that is being read: it is damaged.
    pub(super) fn skip_segment(&mut self) {
        let end = self.shared.state().segments.iter().map(super::files::Segment::end).find(|end| *end > self.next);
        self.next = end.unwrap_or(self.next);
        self.current = None;
    }

    /// The segment of the next entry: its first sequence number, the one at the place where reading goes on, and
    /// its length.
    fn segment(&mut self) -> Option<(u64, u64, u64)> {
        let state = self.shared.state();
        let segment = state.segments.iter().find(|segment| segment.end() > self.next)?;
        // Between two segments there may be a gap, where a damaged one ended early.
        self.next = self.next.max(segment.first);
        let going_on = self.current.as_ref().is_some_and(|(first, ..)| *first == segment.first);
        Some((segment.first, if going_on { self.next } else { segment.first }, segment.bytes))
    }
}
