//! The spool's files: segments that only grow, and a cursor that says up to where all is done.
//!
//! `SEQUENCE.log` holds the records from that sequence number on. A segment is removed when all in it is done, so
//! draining frees space and needs none: that is why this is no database, which must write to delete. `cursor` is two
//! slots that are overwritten in turn. A cursor that is lost or behind only makes changes be applied once more, and
//! that changes nothing.
//!
//! A segment in which damage was found is renamed to `SEQUENCE.damaged.log` at once, so that a restart does not forget
//! it. It is still read. When all in it is done it becomes `SEQUENCE.damaged`, which nothing reads: it is evidence, kept
//! for a while.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use xxhash_rust::xxh3::xxh3_64;

use super::record::{self, HEADER, Meta};
use super::scan::{Damage, Piece, Scanner, Stop};

/// Bytes of one slot of the cursor: two numbers and their check.
const SLOT: usize = 24;
/// What a disk reads or does not read as a whole.
const BLOCK: u64 = 4096;
/// The number of the error with which a disk says that it cannot read a block, in Linux and its relatives.
const EIO: i32 = 5;
/// Bytes of damaged segments that are kept when all in them is done, and how long. The newest is always kept so long.
const EVIDENCE_BYTES: u64 = 64 << 20;
const EVIDENCE_AGE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// One segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// The sequence number of its first record.
    pub(super) first: u64,
    /// How many records it has, those that are damaged included.
    pub(super) count: u64,
    /// Its length in bytes.
    pub(super) bytes: u64,
    /// Damage was found in it: it is kept as evidence.
    pub(super) damaged: bool,
    /// Its file's name says that it is damaged.
    pub(super) marked: bool,
}

impl Segment {
    /// The sequence number behind its last record.
    pub(super) fn end(&self) -> u64 {
        self.first + self.count
    }

    /// Where it is.
    pub(super) fn path(&self, directory: &Path) -> PathBuf {
        segment_path(directory, self.first, self.marked)
    }
}

/// What the cursor says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    /// All below is done.
    pub(super) done: u64,
    /// All below was on disk: what is missing of it was lost.
    pub(super) written: u64,
}

/// The directory, which only one process uses at a time.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    cursor: File,
    /// What it says.
    known: Cursor,
    /// Whether both slots could be read: then no later one can have been lost.
    certain: bool,
    /// The slot that is written next.
    slot: usize,
    /// Bytes of damaged segments that are kept.
    evidence_bytes: u64,
    /// Held while the spool is open.
    _lock: File,
}

/// What is found when the segments are scanned.
pub(super) struct Scan {
    pub(super) segments: Vec<(Segment, Vec<Damage>)>,
    /// Records whose segments are not there: the first, and the one behind the last.
    pub(super) missing: Vec<(u64, u64)>,
    /// The sequence number of the next record.
    pub(super) next: u64,
}

/// What is found in one segment.
struct Found {
    segment: Segment,
    records: Vec<(u64, Meta)>,
    damages: Vec<Damage>,
}

impl Directory {
    /// Opens it, or creates it.
    pub(super) fn open(path: &Path, max_bytes: u64) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        let lock_path = path.join("lock");
        let lock = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&lock_path);
        let lock = lock.map_err(|error| about(&lock_path, &error))?;
        lock.try_lock().map_err(|error| match error {
            std::fs::TryLockError::WouldBlock => io::Error::new(ErrorKind::ResourceBusy, "another process uses it"),
            std::fs::TryLockError::Error(error) => about(&lock_path, &error),
        })?;
        let name = path.join("cursor");
        let (cursor, slots) = open_cursor(&name).map_err(|error| about(&name, &error))?;
        // The directory itself may be new, and the one around it. An earlier start may have been killed before this.
        sync_with_parents(path)?;
        let known = slots.into_iter().flatten().max_by_key(|slot| (slot.done, slot.written)).unwrap_or_default();
        let slot = usize::from(slots[0] == Some(known));
        let certain = slots.iter().all(Option::is_some);
        let evidence_bytes = EVIDENCE_BYTES.min(max_bytes / 4);
        Ok(Self { path: path.to_owned(), cursor, known, certain, slot, evidence_bytes, _lock: lock })
    }

    /// What the cursor says.
    pub(super) const fn cursor(&self) -> Cursor {
        self.known
    }

    /// Reads every segment, in order, and tells each record that is not done.
    pub(super) fn scan(&self, mut tell: impl FnMut(u64, Meta)) -> io::Result<Scan> {
        let Cursor { done, written } = self.known;
        let names = self.segments()?;
        let mut scan = Scan { segments: Vec::new(), missing: Vec::new(), next: done.max(written) };
        // Where a slot of the cursor was lost, what is missing at the front may have been done.
        let mut end = self.certain.then_some(done);
        for (at, &(first, marked)) in names.iter().enumerate() {
            if let Some(end) = end.filter(|end| *end < first) {
                scan.missing.push((end, first));
            }
            // Where a write failed there may be records that were refused, and whose numbers the next segment has.
            let next = names.get(at + 1).map(|(next, _)| *next);
            let path = segment_path(&self.path, first, marked);
            let mut found = self.scan_segment(first, marked, next, false);
            if found.as_ref().is_err_and(is_bad_block) && disk_works(&self.path) {
                tracing::error!(segment = %path.display(), "blocks of a segment of the spool cannot be read: what is in them counts as damaged");
                found = self.scan_segment(first, marked, next, true);
            }
            let Found { segment, records, mut damages } = found.map_err(|error| about(&path, &error))?;
            for (sequence, meta) in records {
                if sequence >= done {
                    tell(sequence, meta);
                }
            }
            end = end.max(Some(segment.end().max(done)));
            if segment.end() <= done || segment.count == 0 {
                self.remove(&segment).map_err(|error| about(&path, &error))?;
                continue;
            }
            damages.retain_mut(|damage| clip(damage, done));
            scan.segments.push((segment, damages));
        }
        if let Some(end) = end.filter(|end| *end < written) {
            scan.missing.push((end, written));
        }
        scan.next = scan.next.max(end.unwrap_or_default());
        Ok(scan)
    }

    /// The segments in the directory: the number of the first record, and whether the name says that it is damaged.
    fn segments(&self) -> io::Result<Vec<(u64, bool)>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.split('.').next()?.parse::<u64>().ok());
            let Some(first) = number else { continue };
            found.extend([false, true].map(|marked| (first, marked)).into_iter().find(|(first, marked)| {
                // Nothing else is ours, whatever number it begins with.
                segment_path(&self.path, *first, *marked).file_name() == Some(&name)
            }));
        }
        found.sort_unstable();
        // Two of one number can only be a copy that somebody made.
        found.dedup_by_key(|(first, _)| *first);
        Ok(found)
    }

    fn scan_segment(&self, first: u64, marked: bool, next: Option<u64>, around_bad_blocks: bool) -> io::Result<Found> {
        let path = segment_path(&self.path, first, marked);
        let mut scanner = Scanner::open(&path, first, around_bad_blocks)?;
        let length = scanner.file().metadata()?.len();
        let mut segment = Segment { first, count: 0, bytes: length, damaged: marked, marked };
        let (mut records, mut damages) = (Vec::new(), Vec::new());
        let stop = loop {
            let found = |piece: Piece<'_>| match piece {
                Piece::Record(header, ..) => records.push((header.sequence, header.meta)),
                Piece::Damaged(damage) => damages.push(damage),
            };
            match scanner.scan(length, next, found)? {
                Stop::More => {}
                stop => break stop,
            }
        };
        segment.count = scanner.expected - first;
        let lost = self.known.written.saturating_sub(scanner.expected);
        if stop == Stop::Tail && lost == 0 && is_torn(&scanner, length)? {
            tracing::info!(
                segment = %path.display(),
                "the last record of a spool segment is incomplete: a write that a crash cut short was never acknowledged. If the file itself was cut, what stood behind is lost"
            );
            segment.bytes = scanner.at;
            let file = OpenOptions::new().write(true).open(&path)?;
            file.set_len(segment.bytes)?;
            file.sync_all()?;
        } else if stop == Stop::Tail {
            // Of records whose headers are all damaged it is not known how many they were.
            let count = lost.max(1);
            damages.push(Damage { sequence: scanner.expected, count, meta: None, offset: scanner.at, length: length - scanner.at });
            segment.count += count;
        }
        // Where the file just ends too early, what follows is missing: nothing in the file is damaged.
        if let Some(missing) = damages.pop_if(|damage| damage.length == 0 && damage.offset >= length) {
            segment.count -= missing.count;
        }
        Ok(Found { segment, records, damages })
    }

    /// Begins a segment.
    pub(super) fn create(&self, first: u64) -> io::Result<(Segment, File)> {
        let segment = Segment { first, count: 0, bytes: 0, damaged: false, marked: false };
        // A file of this name can only be what a failed write left: what was acknowledged has lower numbers.
        let path = segment.path(&self.path);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        sync_directory(&self.path)?;
        Ok((segment, file))
    }

    /// Removes a segment of which nothing is needed any more; a damaged one is kept as evidence.
    pub(super) fn remove(&self, segment: &Segment) -> io::Result<()> {
        let path = segment.path(&self.path);
        let removed = if segment.damaged { std::fs::rename(path, self.evidence_path(segment.first)) } else { std::fs::remove_file(path) };
        if segment.damaged {
            self.expire_evidence();
        }
        removed.or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
    }

    /// A name for a damaged segment that is done. Numbers begin again after a cursor was lost.
    fn evidence_path(&self, first: u64) -> PathBuf {
        let path =
            |again: u32| self.path.join(format!("{first:020}{}.damaged", if again > 0 { format!("-{again}") } else { String::new() }));
        (0..1000).map(path).find(|path| !path.exists()).unwrap_or_else(|| path(1000))
    }

    /// Removes evidence that is old, or too much.
    pub(super) fn expire_evidence(&self) {
        if let Err(error) = self.try_expire_evidence(SystemTime::now()) {
            tracing::warn!(%error, "old damaged segments of the spool cannot be removed");
        }
    }

    fn try_expire_evidence(&self, now: SystemTime) -> io::Result<()> {
        let mut evidence = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "damaged") {
                let metadata = path.metadata()?;
                evidence.push((metadata.modified()?, metadata.len(), path));
            }
        }
        evidence.sort_unstable_by(|one, other| other.cmp(one));
        let mut bytes = 0;
        for (at, (modified, length, path)) in evidence.iter().enumerate() {
            bytes += length;
            let is_old = now.duration_since(*modified).is_ok_and(|age| age > EVIDENCE_AGE);
            if is_old || (bytes > self.evidence_bytes && at > 0) {
                std::fs::remove_file(path)?;
                tracing::info!(segment = %path.display(), "a damaged segment of the spool that was kept as evidence is removed");
            }
        }
        Ok(())
    }

    /// Remembers that all below `done` is done, and all below `written` on disk.
    pub(super) fn set_cursor(&mut self, cursor: Cursor) -> io::Result<()> {
        self.cursor.write_all_at(&slot_bytes(cursor), (self.slot * SLOT) as u64)?;
        self.cursor.sync_data()?;
        self.slot = 1 - self.slot;
        self.known = cursor;
        Ok(())
    }
}

/// Marks a segment as damaged, so that a restart knows it.
pub(super) fn mark(directory: &Path, first: u64) -> io::Result<()> {
    std::fs::rename(segment_path(directory, first, false), segment_path(directory, first, true))
}

/// Takes what is below a number out of the damage; `false` where nothing is left.
pub(super) fn clip(damage: &mut Damage, from: u64) -> bool {
    let below = from.saturating_sub(damage.sequence).min(damage.count);
    damage.sequence += below;
    damage.count -= below;
    damage.count > 0 || below == 0
}

/// Whether what follows the last good record is a write that a crash cut short, and not damage: a record that the file
/// is too short for, or bytes that never arrived. A record that was acknowledged had all its bytes in the file.
fn is_torn(scanner: &Scanner, to: u64) -> io::Result<bool> {
    let from = scanner.at;
    let header = record::header(&scanner.read(from, to.min(from + HEADER as u64))?);
    if let Some(header) = header {
        return Ok(header.sequence == scanner.expected && from + header.total() as u64 > to);
    }
    // The bytes before the zeros at the end: a part of a header, at most.
    let mut at = from;
    let mut content = 0;
    while at < to {
        let chunk = scanner.read(at, to.min(at + (1 << 20)))?;
        let Some(last) = chunk.iter().rposition(|byte| *byte != 0).map(|last| at + last as u64 + 1 - from) else {
            at += (chunk.len() as u64).max(1);
            continue;
        };
        content = last;
        if content >= HEADER as u64 {
            break;
        }
        at += chunk.len() as u64;
    }
    Ok(content < HEADER as u64)
}

fn segment_path(directory: &Path, first: u64, marked: bool) -> PathBuf {
    directory.join(format!("{first:020}{}.log", if marked { ".damaged" } else { "" }))
}

/// The bytes of a file between two places, with zeros in place of the blocks that its disk cannot read.
pub(super) fn read_around_bad_blocks(file: &File, from: u64, to: u64) -> io::Result<Vec<u8>> {
    match read(file, from, to) {
        Err(error) if is_bad_block(&error) => {}
        result => return result,
    }
    let to = to.min(file.metadata()?.len());
    let mut bytes = Vec::new();
    let mut at = from;
    while at < to {
        let end = to.min((at / BLOCK + 1) * BLOCK);
        match read(file, at, end) {
            Ok(block) if block.is_empty() => break,
            Ok(block) => bytes.extend_from_slice(&block),
            Err(error) if is_bad_block(&error) => bytes.resize(bytes.len() + usize::try_from(end - at).map_err(io::Error::other)?, 0),
            Err(error) => return Err(error),
        }
        at = from + bytes.len() as u64;
    }
    Ok(bytes)
}

/// The disk answers, and cannot read this place.
pub(super) fn is_bad_block(error: &io::Error) -> bool {
    error.raw_os_error() == Some(EIO)
}

/// Whether the disk of a directory takes what is written: then what it cannot read is bad for good, and waiting for it
/// does not help.
pub(super) fn disk_works(directory: &Path) -> bool {
    let path = directory.join("probe");
    let written = File::create(&path).and_then(|mut file| file.write_all(b"Can this disk be written?").and_then(|()| file.sync_all()));
    let removed = std::fs::remove_file(path).and_then(|()| sync_directory(directory));
    written.and(removed).is_ok()
}

#[cfg(test)]
thread_local! {
    /// Bytes of any file that cannot be read on this thread.
    pub(super) static BAD_BYTES: std::cell::RefCell<std::ops::Range<u64>> = const { std::cell::RefCell::new(0..0) };
}

/// The bytes of a file between two places; fewer where it ends before.
pub(super) fn read(file: &File, from: u64, to: u64) -> io::Result<Vec<u8>> {
    #[cfg(test)]
    if BAD_BYTES.with_borrow(|bad| from < bad.end && bad.start < to) {
        return Err(io::Error::from_raw_os_error(EIO));
    }
    let mut bytes = vec![0; usize::try_from(to.saturating_sub(from)).map_err(io::Error::other)?];
    let mut length = 0;
    while length < bytes.len() {
        match file.read_at(&mut bytes[length..], from + length as u64) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(length);
    Ok(bytes)
}

/// Opens the cursor and reads its slots. It is created whole: what is found later and cannot be read was damaged.
fn open_cursor(path: &Path) -> io::Result<(File, [Option<Cursor>; 2])> {
    let open = |path: &Path, new: bool| OpenOptions::new().read(true).write(true).create(new).truncate(new).mode(0o600).open(path);
    let there = match open(path, false) {
        Ok(cursor) => Some(cursor),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if let Some(cursor) = there {
        let slots = [read_slot(&cursor, 0)?, read_slot(&cursor, 1)?];
        match slots {
            [None, None] => {
                tracing::error!(cursor = %path.display(), "the spool's cursor is damaged: all that is in the spool is applied once more, which changes nothing")
            }
            [None, _] | [_, None] => {
                tracing::warn!(cursor = %path.display(), "a half of the spool's cursor is damaged: events may be applied once more, which changes nothing")
            }
            _ => {}
        }
        if slots != [None, None] {
            return Ok((cursor, slots));
        }
    }
    let new = path.with_extension("new");
    let cursor = open(&new, true)?;
    let slots = [Cursor::default(); 2];
    // Both slots now, so that no later write needs space.
    let written = cursor.write_all_at(&slots.map(slot_bytes).concat(), 0).and_then(|()| cursor.sync_all());
    written.and_then(|()| std::fs::rename(&new, path)).inspect_err(|_| {
        // It may be in the way of others on a full disk. What is left of it is overwritten by the next start.
        let _ = std::fs::remove_file(&new);
    })?;
    // They say nothing of what was before.
    let lost = path.parent().map(has_segments).transpose()?.unwrap_or(false);
    Ok((cursor, if lost { [None, Some(Cursor::default())] } else { slots.map(Some) }))
}

fn has_segments(directory: &Path) -> io::Result<bool> {
    for entry in std::fs::read_dir(directory)? {
        if entry?.path().extension().is_some_and(|extension| extension == "log") {
            return Ok(true);
        }
    }
    Ok(false)
}

fn read_slot(cursor: &File, slot: usize) -> io::Result<Option<Cursor>> {
    let bytes = read(cursor, (slot * SLOT) as u64, ((slot + 1) * SLOT) as u64)?;
    let number = |at: usize| bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
    let (Some(done), Some(written), Some(check)) = (number(0), number(8), number(16)) else { return Ok(None) };
    Ok((xxh3_64(&bytes[..16]) == check).then_some(Cursor { done, written }))
}

pub(super) fn slot_bytes(cursor: Cursor) -> [u8; SLOT] {
    let mut bytes = [0; SLOT];
    bytes[..8].copy_from_slice(&cursor.done.to_le_bytes());
    bytes[8..16].copy_from_slice(&cursor.written.to_le_bytes());
    let check = xxh3_64(&bytes[..16]).to_le_bytes();
    bytes[16..].copy_from_slice(&check);
    bytes
}

/// A file that is new is only there after a power cut if its directory was written too.
fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// The same for a directory that may be new, and for the one around it.
fn sync_with_parents(path: &Path) -> io::Result<()> {
    sync_directory(path)?;
    // Those around it may be others', who do not let us open them.
    for parent in path.canonicalize()?.ancestors().skip(1).take(2) {
        match sync_directory(parent) {
            Err(error) if error.kind() != ErrorKind::PermissionDenied => return Err(about(parent, &error)),
            _ => {}
        }
    }
    Ok(())
}

/// An error that says which file it is about.
fn about(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_is_bounded_in_bytes_and_age() {
        let dir = tempfile::tempdir().expect("a directory");
        // A quarter of this: 1000 bytes.
        let directory = Directory::open(dir.path(), 4000).expect("a directory");
        let now = SystemTime::now();
        let names = || {
            let names = std::fs::read_dir(dir.path()).expect("a directory").map(|entry| entry.expect("an entry").file_name());
            let mut names: Vec<_> = names.filter_map(|name| name.into_string().ok()?.strip_suffix(".damaged").map(str::to_owned)).collect();
            names.sort();
            names
        };
        for (name, bytes, age) in [("a", 300, 40), ("b", 600, 3), ("c", 300, 2), ("d", 400, 1)] {
            let file = File::create(dir.path().join(format!("{name}.damaged"))).expect("a file");
            file.set_len(bytes).expect("its length");
            file.set_modified(now - Duration::from_secs(age * 24 * 60 * 60)).expect("its time");
        }
        directory.try_expire_evidence(now).expect("expired");
        assert_eq!(names(), ["c", "d"], "the newest that fit, and none that is old");
        // One that is too large by itself is kept while it is the newest.
        let large = File::create(dir.path().join("e.damaged")).expect("a file");
        large.set_len(5000).expect("its length");
        directory.try_expire_evidence(now).expect("expired");
        assert_eq!(names(), ["e"]);
        directory.try_expire_evidence(now + EVIDENCE_AGE * 2).expect("expired");
        assert_eq!(names(), [""; 0]);
    }
}
