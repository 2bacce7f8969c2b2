//! Reading a segment from its beginning to its end, around whatever is damaged in it.
//!
//! Opening the spool and draining it read with the same code, so both find the same damage. Behind a damaged body the
//! next record is where the header says; behind anything else it is found by looking for the next good header. Either
//! way every byte is looked at once or twice, however much is damaged.

use std::fs::File;
use std::io;
use std::path::Path;

use super::files;
use super::record::{self, HEADER, Header, Meta, Next};

/// Bytes that are read at once.
const CHUNK: usize = 256 * 1024;

/// What stands in a segment.
#[derive(Debug)]
pub(super) enum Piece<'a> {
    /// A record, its body, and the bytes of both.
    Record(Header, &'a [u8], &'a [u8]),
    Damaged(Damage),
}

/// Bytes that cannot be read, and the records that are lost with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Damage {
    /// The number of the first record.
    pub(super) sequence: u64,
    /// How many records. None where something stands between two good ones that never belonged there.
    pub(super) count: u64,
    /// What is known of the record, where it is one and its header is good.
    pub(super) meta: Option<Meta>,
    /// Where the bytes begin in the segment.
    pub(super) offset: u64,
    /// How many bytes there are. None where they are missing.
    pub(super) length: u64,
}

/// Why a scan stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// There is more to scan.
    More,
    /// All was scanned.
    End,
    /// From where the scanner stands there is no record up to the end, and whether one should be is not known.
    Tail,
}

/// A place in a segment.
#[derive(Debug)]
pub(super) struct Scanner {
    file: File,
    /// The byte where scanning goes on.
    pub(super) at: u64,
    /// The number of the record that should stand there.
    pub(super) expected: u64,
    /// How many bytes have to be read to get on.
    need: usize,
    /// Blocks that the disk cannot read are damaged, and do not end the scan.
    around_bad_blocks: bool,
}

impl Scanner {
    /// At the beginning of a segment.
    pub(super) fn open(path: &Path, first: u64, around_bad_blocks: bool) -> io::Result<Self> {
        Ok(Self { file: File::open(path)?, at: 0, expected: first, need: CHUNK, around_bad_blocks })
    }

    /// The bytes between two places; fewer where the file ends before.
    pub(super) fn read(&self, from: u64, to: u64) -> io::Result<Vec<u8>> {
        if self.around_bad_blocks { files::read_around_bad_blocks(&self.file, from, to) } else { files::read(&self.file, from, to) }
    }

    pub(super) const fn file(&self) -> &File {
        &self.file
    }

    /// Scans on, some way. The segment has `end` bytes. Its last record has the number before `until`, if that is
    /// known: records from there on do not belong to it, and whatever is missing before that is damage.
    pub(super) fn scan(&mut self, end: u64, until: Option<u64>, mut found: impl FnMut(Piece<'_>)) -> io::Result<Stop> {
        let limit = until.unwrap_or(u64::MAX);
        let chunk = self.read(self.at, end.min(self.at + self.need as u64))?;
        // The file may be shorter than it was.
        let is_last = self.at + chunk.len() as u64 >= end || chunk.len() < self.need;
        self.need = CHUNK;
        let mut position = 0;
        while self.expected < limit {
            let rest = &chunk[position..];
            let step = self.step(rest, is_last);
            match step {
                Step::Record(header, body) if header.sequence < limit => {
                    self.skip_to(&header, position, &mut found);
                    found(Piece::Record(header, body, &rest[..header.total()]));
                    position += header.total();
                    self.expected = header.sequence + 1;
                }
                Step::Damaged(header) if header.sequence < limit => {
                    self.skip_to(&header, position, &mut found);
                    let offset = self.at + position as u64;
                    let (meta, length) = (Some(header.meta), header.total() as u64);
                    found(Piece::Damaged(Damage { sequence: header.sequence, count: 1, meta, offset, length }));
                    position += header.total();
                    self.expected = header.sequence + 1;
                }
                // Of a write that failed: the records of these numbers are in the next segment.
                Step::Record(..) | Step::Damaged(_) => return Ok(self.end(position, position, end, until, found)),
                Step::More(need) => {
                    self.at += position as u64;
                    self.need = need.max(CHUNK);
                    return Ok(Stop::More);
                }
                Step::Lost => {
                    if let Some((at, header)) = record::find_header(&chunk, position + 1, self.expected) {
                        if header.sequence >= limit {
                            return Ok(self.end(position, at, end, until, found));
                        }
                        found(Piece::Damaged(self.damage(position, at, header.sequence, rest)));
                        (position, self.expected) = (at, header.sequence);
                        continue;
                    }
                    let searched = (position + 1).max(chunk.len().saturating_sub(HEADER - 1)) as u64;
                    let next = if is_last { None } else { self.find(self.at + searched, end)? };
                    let Some((at, header)) = next.filter(|(_, header)| header.sequence < limit) else {
                        let bytes = self.file.metadata()?.len().min(end).saturating_sub(self.at);
                        let to = next.map_or(bytes, |(at, _)| at - self.at);
                        return Ok(self.end(position, usize::try_from(to).unwrap_or(usize::MAX).max(position), end, until, found));
                    };
                    let to = usize::try_from(at - self.at).unwrap_or(usize::MAX);
                    found(Piece::Damaged(self.damage(position, to, header.sequence, rest)));
                    (self.at, self.expected) = (at, header.sequence);
                    return Ok(Stop::More);
                }
            }
        }
        self.at = end;
        Ok(Stop::End)
    }

    fn step<'a>(&mut self, rest: &'a [u8], is_last: bool) -> Step<'a> {
        match record::next(rest) {
            Next::Record(header, body) if header.sequence >= self.expected => Step::Record(header, body),
            Next::Damaged(header) if header.sequence >= self.expected => {
                // If bytes were cut out of the body or put into it, the next record is not where the header says.
                let behind = &rest[header.total()..];
                if behind.len() < HEADER && !is_last {
                    return Step::More(header.total() + HEADER);
                }
                let fits =
                    if behind.is_empty() { true } else { record::header(behind).is_some_and(|next| next.sequence == header.sequence + 1) };
                if fits { Step::Damaged(header) } else { Step::Lost }
            }
            Next::Partial(needed) if !is_last => Step::More(needed),
            _ => Step::Lost,
        }
    }

    /// Records are missing before a good one, and no bytes are in their place.
    fn skip_to(&self, header: &Header, position: usize, found: &mut impl FnMut(Piece<'_>)) {
        if header.sequence > self.expected {
            found(Piece::Damaged(self.damage(position, position, header.sequence, &[])));
        }
    }

    /// The bytes between two places of the chunk, in which the records up to `until` should be.
    fn damage(&self, from: usize, to: usize, until: u64, bytes: &[u8]) -> Damage {
        let count = until - self.expected;
        let header = record::header(bytes).filter(|header| count == 1 && header.sequence == self.expected);
        let meta = header.map(|header| header.meta);
        Damage { sequence: self.expected, count, meta, offset: self.at + from as u64, length: (to - from) as u64 }
    }

    /// No more records of this segment follow.
    fn end(&mut self, from: usize, to: usize, end: u64, until: Option<u64>, mut found: impl FnMut(Piece<'_>)) -> Stop {
        let Some(until) = until else {
            self.at += from as u64;
            return if self.at >= end { Stop::End } else { Stop::Tail };
        };
        found(Piece::Damaged(self.damage(from, to, until, &[])));
        (self.at, self.expected) = (end, until);
        Stop::End
    }

    /// The next good header from a byte on.
    fn find(&self, mut from: u64, end: u64) -> io::Result<Option<(u64, Header)>> {
        loop {
            let chunk = self.read(from, end.min(from + CHUNK as u64))?;
            if let Some((at, header)) = record::find_header(&chunk, 0, self.expected) {
                return Ok(Some((from + at as u64, header)));
            }
            if chunk.len() < CHUNK {
                return Ok(None);
            }
            from += (chunk.len() - (HEADER - 1)) as u64;
        }
    }
}

/// What stands where the scanner is.
enum Step<'a> {
    Record(Header, &'a [u8]),
    Damaged(Header),
    /// So many bytes are needed to know.
    More(usize),
    /// Nothing that can be read.
    Lost,
}
