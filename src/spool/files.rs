//! The spool's files: segments that only grow, and a cursor that says up to where all is done.
//!
//! `SEQUENCE.log` holds the records from that sequence number on. A segment is removed when all in it is done, so
//! draining frees space and needs none: that is why this is no database, which must write to delete. `cursor` is two
//! slots that are overwritten in turn. A cursor that is lost or behind only makes changes be applied once more, and
//! that changes nothing.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use super::record::{self, Meta, Next};

/// Bytes that are looked at at once when segments are scanned.
const CHUNK: usize = 1 << 20;
/// Bytes of one slot of the cursor: a number and its check.
const SLOT: usize = 16;

/// One segment: whole records only.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    /// The sequence number of its first record.
    pub(super) first: u64,
    /// How many records it has.
    pub(super) count: u64,
    /// Its length in bytes.
    pub(super) bytes: u64,
    /// Something else stands behind its records.
    damaged: bool,
}

impl Segment {
    /// The sequence number behind its last record.
    pub(super) fn end(&self) -> u64 {
        self.first + self.count
    }
}

/// The directory, which only one process uses at a time.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    cursor: File,
    /// The slot that is written next.
    slot: usize,
    /// Held while the spool is open.
    _lock: File,
}

impl Directory {
    /// Opens it, or creates it; says up to where all is done.
    pub(super) fn open(path: &Path) -> io::Result<(Self, u64)> {
        std::fs::create_dir_all(path)?;
        let open = |name: &str| OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path.join(name));
        let lock = open("lock")?;
        lock.try_lock().map_err(|error| match error {
            std::fs::TryLockError::WouldBlock => io::Error::new(ErrorKind::ResourceBusy, "another process uses it"),
            std::fs::TryLockError::Error(error) => error,
        })?;
        let cursor = open("cursor")?;
        let slots = [read_slot(&cursor, 0), read_slot(&cursor, 1)];
        if slots == [None, None] {
            // Written now, so that no later write needs space.
            cursor.write_all_at(&slot_bytes(0), 0)?;
            cursor.write_all_at(&slot_bytes(0), SLOT as u64)?;
            cursor.sync_all()?;
            // The directory itself may be new, and the one around it.
            path.ancestors().take(3).filter(|path| path.is_dir()).try_for_each(sync_directory)?;
        }
        let done = slots.into_iter().flatten().max().unwrap_or(0);
        let slot = usize::from(slots[0] == Some(done));
        Ok((Self { path: path.to_owned(), cursor, slot, _lock: lock }, done))
    }

    /// Reads every segment, in order, and tells each record that is not done.
    pub(super) fn scan(&self, done: u64, mut tell: impl FnMut(Meta)) -> io::Result<Vec<Segment>> {
        let mut firsts = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            firsts.extend(name.to_str().and_then(|name| name.strip_suffix(".log")).and_then(|first| first.parse::<u64>().ok()));
        }
        firsts.sort_unstable();
        let mut segments = Vec::new();
        for (at, &first) in firsts.iter().enumerate() {
            // Where a write failed there may be records that were refused, and whose numbers the next segment has.
            let most = firsts.get(at + 1).map_or(u64::MAX, |next| next - first);
            let mut segment = self.scan_segment(first, most, |sequence, meta| {
                if sequence >= done {
                    tell(meta);
                }
            })?;
            if segment.damaged {
                self.mend(&mut segment)?;
            }
            if segment.end() <= done || segment.count == 0 {
                self.remove(&segment)?;
            } else {
                segments.push(segment);
            }
        }
        Ok(segments)
    }

    fn scan_segment(&self, first: u64, most: u64, mut tell: impl FnMut(u64, Meta)) -> io::Result<Segment> {
        let file = File::open(self.name(first))?;
        let length = file.metadata()?.len();
        let mut segment = Segment { first, count: 0, bytes: 0, damaged: false };
        let mut need = CHUNK;
        while segment.bytes < length && segment.count < most {
            let bytes = read(&file, segment.bytes, length.min(segment.bytes + need as u64))?;
            let mut at = 0;
            let next = loop {
                match record::next(&bytes[at..]) {
                    Next::Record(meta, _, taken) if segment.count < most => {
                        tell(segment.end(), meta);
                        segment.count += 1;
                        segment.bytes += taken as u64;
                        at += taken;
                    }
                    other => break other,
                }
            };
            match next {
                Next::Partial(needed) if segment.bytes + needed as u64 <= length => need = needed.max(CHUNK),
                _ if segment.bytes == length || segment.count == most => {}
                _ => {
                    segment.damaged = true;
                    break;
                }
            }
        }
        Ok(segment)
    }

    /// What a crash left behind the last whole record was never acknowledged. Damage in the middle is another thing:
    /// what follows it cannot be read, and is left for people.
    fn mend(&self, segment: &mut Segment) -> io::Result<()> {
        let name = self.name(segment.first);
        let file = OpenOptions::new().read(true).write(true).open(&name)?;
        let rest = read(&file, segment.bytes, file.metadata()?.len().min(segment.bytes + CHUNK as u64))?;
        if matches!(record::next(&rest), Next::Partial(_)) || rest.iter().all(|byte| *byte == 0) {
            tracing::info!(segment = %name.display(), "the spool's last write was cut short by a crash, before it was acknowledged");
            segment.damaged = false;
            file.set_len(segment.bytes)?;
            return file.sync_all();
        }
        tracing::error!(segment = %name.display(), offset = segment.bytes, "a segment of the spool is damaged: what follows cannot be read and is kept as .damaged");
        Ok(())
    }

    /// Begins a segment.
    pub(super) fn create(&self, first: u64) -> io::Result<(Segment, File)> {
        let name = self.name(first);
        // A file of this name can only be what a failed write left: what was acknowledged has lower numbers.
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(name)?;
        sync_directory(&self.path)?;
        Ok((Segment { first, count: 0, bytes: 0, damaged: false }, file))
    }

    /// Removes a segment of which nothing is needed any more.
    pub(super) fn remove(&self, segment: &Segment) -> io::Result<()> {
        let name = self.name(segment.first);
        if segment.damaged { std::fs::rename(&name, name.with_extension("damaged")) } else { std::fs::remove_file(name) }
    }

    /// Remembers that all below is done.
    pub(super) fn set_done(&mut self, done: u64) -> io::Result<()> {
        self.cursor.write_all_at(&slot_bytes(done), (self.slot * SLOT) as u64)?;
        self.cursor.sync_data()?;
        self.slot = 1 - self.slot;
        Ok(())
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn name(&self, first: u64) -> PathBuf {
        segment_name(&self.path, first)
    }
}

/// Where a segment is.
pub(super) fn segment_name(directory: &Path, first: u64) -> PathBuf {
    directory.join(format!("{first:020}.log"))
}

/// The bytes of a file between two places that it is known to have.
pub(super) fn read(file: &File, from: u64, to: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(to.saturating_sub(from)).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, from)?;
    Ok(bytes)
}

fn read_slot(cursor: &File, slot: usize) -> Option<u64> {
    let bytes = read(cursor, (slot * SLOT) as u64, ((slot + 1) * SLOT) as u64).ok()?;
    let (number, check) = bytes.split_at_checked(8)?;
    (xxh3_64(number) == u64::from_le_bytes(check.try_into().ok()?)).then_some(u64::from_le_bytes(number.try_into().ok()?))
}

fn slot_bytes(number: u64) -> [u8; SLOT] {
    let mut bytes = [0; SLOT];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    let check = xxh3_64(&bytes[..8]).to_le_bytes();
    bytes[8..].copy_from_slice(&check);
    bytes
}

/// A file that is new is only there after a power cut if its directory was written too.
fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
