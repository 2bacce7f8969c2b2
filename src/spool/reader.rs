//! Reading the spool, from the oldest change that is not done.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Shared;
use super::files::{self, Segment, clip};
use super::record::{self, Meta};
use super::scan::{Damage, Piece, Scanner};
use crate::lead::Change;

/// Bytes of damaged records that go into a dead letter. The segment that is kept has them all.
const MAX_LETTER: u64 = 1 << 20;
/// How long blocks that cannot be read are tried again, before what is in them counts as damaged.
const BAD_BLOCK_PATIENCE: Duration = Duration::from_secs(60);

/// A change that waits in the spool, or records that are damaged.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) sequence: u64,
    /// How many records it stands for: one, unless they are damaged.
    pub(super) count: u64,
    /// Where its header can be read.
    pub(super) meta: Option<Meta>,
    /// Bytes that it takes in memory, about.
    pub(super) bytes: usize,
    pub(super) change: Result<Change, Unreadable>,
}

/// A record that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unreadable {
    pub(super) why: String,
    /// All its bytes, as they are on disk. Empty where they are missing.
    pub(super) bytes: Vec<u8>,
}

/// A place in the spool.
#[derive(Debug)]
pub(super) struct Reader {
    shared: Arc<Shared>,
    /// The segment that is being read, by its first sequence number.
    current: Option<(u64, Scanner)>,
    /// The sequence number of the next entry.
    next: u64,
    /// The segment that has blocks which cannot be read, and since when.
    bad_blocks: Option<(u64, Instant)>,
    pub(super) patience: Duration,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, from: u64) -> Self {
        Self { shared, current: None, next: from, bad_blocks: None, patience: BAD_BLOCK_PATIENCE }
    }

    /// Another one, at another place.
    pub(super) fn at(&self, from: u64) -> Self {
        Self::new(Arc::clone(&self.shared), from)
    }

    /// The sequence number of the next entry.
    pub(super) const fn next(&self) -> u64 {
        self.next
    }

    /// The next entries: none where all was read. Reads only what the writer has acknowledged.
    pub(super) fn read(&mut self) -> io::Result<Vec<Entry>> {
        while let Some(segment) = self.segment() {
            let entries = self.read_segment(&segment, false).or_else(|error| self.read_around(&segment, error))?;
            if !entries.is_empty() {
                return Ok(entries);
            }
        }
        Ok(Vec::new())
    }

    /// A disk that is away for a moment is waited for. One that works but for some blocks has lost what is in them.
    fn read_around(&mut self, segment: &Segment, error: io::Error) -> io::Result<Vec<Entry>> {
        if !files::is_bad_block(&error) {
            return Err(error);
        }
        let since = self.bad_blocks.filter(|(first, _)| *first == segment.first).map_or_else(Instant::now, |(_, since)| since);
        self.bad_blocks = Some((segment.first, since));
        if since.elapsed() < self.patience || !files::disk_works(&self.shared.directory) {
            return Err(error);
        }
        self.read_segment(segment, true)
    }

    fn read_segment(&mut self, segment: &Segment, around_bad_blocks: bool) -> io::Result<Vec<Entry>> {
        let path = segment.path(&self.shared.directory);
        let mut scanner = match self.current.take() {
            Some((first, scanner)) if first == segment.first => scanner,
            _ => match Scanner::open(&path, segment.first, around_bad_blocks) {
                Ok(scanner) => scanner,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(self.missing(segment)),
                Err(error) => return Err(error),
            },
        };
        let from = self.next;
        let mut entries = Vec::new();
        let mut damages = Vec::new();
        scanner.scan(segment.bytes, Some(segment.end()), |piece| match piece {
            Piece::Record(header, body, bytes) if header.sequence >= from => {
                let change = record::decode(&header, body).map_err(|why| Unreadable { why, bytes: bytes.to_vec() });
                entries.push(Entry { sequence: header.sequence, count: 1, meta: Some(header.meta), bytes: bytes.len(), change });
            }
            Piece::Record(..) => {}
            Piece::Damaged(damage) => damages.push(damage),
        })?;
        for mut damage in damages {
            if !clip(&mut damage, from) {
                continue;
            }
            // Its bytes first: if they cannot be read now, all this is read once more.
            let bytes = scanner.read(damage.offset, damage.offset + damage.length.min(MAX_LETTER))?;
            self.shared.found_damage(segment.first, &damage);
            if damage.count > 0 {
                entries.push(self.damaged(segment.first, &damage, bytes));
            }
        }
        entries.sort_by_key(|entry| entry.sequence);
        self.next = from.max(scanner.expected);
        self.current = Some((segment.first, scanner));
        Ok(entries)
    }

    fn damaged(&self, first: u64, damage: &Damage, bytes: Vec<u8>) -> Entry {
        let Damage { sequence, count, meta, offset, length } = *damage;
        let path = self.shared.path_of(first);
        let name = path.as_deref().and_then(|path| path.file_name()).unwrap_or_default().display();
        let why = format!("{count} damaged in the spool, from number {sequence} on: {length} bytes from byte {offset} of {name}");
        Entry { sequence, count, meta, bytes: bytes.len(), change: Err(Unreadable { why, bytes }) }
    }

    /// The file of a segment has disappeared while the spool is open.
    fn missing(&mut self, segment: &Segment) -> Vec<Entry> {
        // What is appended to a file that nobody can open is lost as well.
        self.shared.state().begin_segment = true;
        let (sequence, count) = (self.next, segment.end() - self.next);
        let damage = Damage { sequence, count, meta: None, offset: 0, length: 0 };
        self.shared.found_damage(segment.first, &damage);
        self.next = segment.end();
        vec![self.damaged(segment.first, &damage, Vec::new())]
    }

    /// The segment of the next entry.
    fn segment(&mut self) -> Option<Segment> {
        let state = self.shared.state();
        let segment = state.segments.iter().find(|segment| segment.end() > self.next)?;
        // Between two segments there may be a gap, where one is missing.
        self.next = self.next.max(segment.first);
        Some(segment.clone())
    }
}
