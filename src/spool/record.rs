//! The bytes of one change in the spool.
//!
//! A record is a header of 50 bytes and a body, the change as JSON. All numbers are little-endian:
//!
//! | bytes | what |
//! | --- | --- |
//! | 4 | a magic word, which cannot occur in JSON |
//! | 4 | length of the body |
//! | 8 | sequence number |
//! | 8 | time of receipt in µs |
//! | 8 | hash of the lead |
//! | 1 | format |
//! | 1 | flags |
//! | 8 | check of the body (xxh3) |
//! | 8 | check of all the above (xxh3) |
//!
//! The header has a check of its own, so that damage in a body leaves the length good, and so that the next record
//! behind any damage can be found for certain: a magic word and a good check. Its sequence number says how many records
//! are missing before it. What an opening spool must know is in the header, so that it need not parse millions of
//! changes to start.

use std::io;

use xxhash_rust::xxh3::xxh3_64;

use crate::lead::{Addition, Change};
use crate::time::Timestamp;

/// Neither its first nor its last byte ever occurs in UTF-8.
const MAGIC: [u8; 4] = [0xF5, b'L', b'S', 0xFF];
/// The format of a body. A body of another one is kept as a dead letter.
const FORMAT: u8 = 2;
/// Order matters: the change overwrites what an earlier one of the same lead may have set.
const ORDERED: u8 = 1;
/// Bytes of the header.
pub(crate) const HEADER: usize = 50;
/// Where the header's own check stands: it covers all that is before it.
const HEADER_CHECK: usize = HEADER - 8;
/// Longer than any change.
const MAX_BODY: usize = 64 << 20;

/// What is known of a record without reading its change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    /// When the event arrived.
    pub(crate) received: Timestamp,
    /// The hash of its lead's id.
    pub(crate) lead: u64,
    /// Whether it must not overtake others of its lead, or be overtaken.
    pub(crate) ordered: bool,
}

impl Meta {
    pub(crate) fn of(change: &Change) -> Self {
        Self { received: change.received, lead: xxh3_64(change.lead_id.as_bytes()), ordered: is_ordered(change) }
    }
}

/// A profile patch carries no time, so the last to arrive wins; all else joins in any order.
pub(crate) fn is_ordered(change: &Change) -> bool {
    change.additions.iter().any(|addition| matches!(addition, Addition::SetProfile(..)))
}

/// A header whose check is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// The number of its record: one more than that of the record before it.
    pub(crate) sequence: u64,
    pub(crate) meta: Meta,
    format: u8,
    length: usize,
    body_check: u64,
}

impl Header {
    /// Bytes of the whole record.
    pub(crate) const fn total(&self) -> usize {
        HEADER + self.length
    }
}

/// The bytes of a change, as record 0: [`set_sequence`] gives it its number.
///
/// # Errors
/// It is longer than any change may be.
pub(crate) fn encode(change: &Change, meta: Meta) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; HEADER];
    serde_json::to_writer(&mut bytes, change)?;
    let length = bytes.len() - HEADER;
    let told = u32::try_from(length).ok().filter(|_| length <= MAX_BODY);
    let told = told.ok_or_else(|| io::Error::other(format!("a change of {length} bytes is too long for the spool")))?;
    let body_check = xxh3_64(&bytes[HEADER..]);
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..8].copy_from_slice(&told.to_le_bytes());
    bytes[16..24].copy_from_slice(&meta.received.micros().to_le_bytes());
    bytes[24..32].copy_from_slice(&meta.lead.to_le_bytes());
    bytes[32] = FORMAT;
    bytes[33] = if meta.ordered { ORDERED } else { 0 };
    bytes[34..HEADER_CHECK].copy_from_slice(&body_check.to_le_bytes());
    set_sequence(&mut bytes, 0);
    Ok(bytes)
}

/// Numbers an encoded record.
pub(crate) fn set_sequence(record: &mut [u8], sequence: u64) {
    if let Some((header, check)) = record.split_at_mut_checked(HEADER_CHECK)
        && let Some(check) = check.first_chunk_mut()
    {
        header[8..16].copy_from_slice(&sequence.to_le_bytes());
        *check = xxh3_64(header).to_le_bytes();
    }
}

/// What stands at the beginning of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next<'a> {
    /// A record and its body.
    Record(Header, &'a [u8]),
    /// A record whose header is good and whose body is damaged.
    Damaged(Header),
    /// Perhaps the beginning of a record: so many bytes are needed to know.
    Partial(usize),
    /// No header.
    NoHeader,
}

pub(crate) fn next(bytes: &[u8]) -> Next<'_> {
    if bytes.len() < HEADER {
        return Next::Partial(HEADER);
    }
    let Some(header) = header(bytes) else { return Next::NoHeader };
    match bytes.get(HEADER..header.total()) {
        None => Next::Partial(header.total()),
        Some(body) if xxh3_64(body) == header.body_check => Next::Record(header, body),
        Some(_) => Next::Damaged(header),
    }
}

/// The header at the beginning of some bytes; none where its check is wrong.
pub(crate) fn header(bytes: &[u8]) -> Option<Header> {
    let header: &[u8; HEADER] = bytes.first_chunk()?;
    let number = |at: usize| Some(u64::from_le_bytes(*header[at..].first_chunk()?));
    if !header.starts_with(&MAGIC) || number(HEADER_CHECK)? != xxh3_64(&header[..HEADER_CHECK]) {
        return None;
    }
    let length = usize::try_from(u32::from_le_bytes(*header[4..].first_chunk()?)).ok()?;
    let received = Timestamp::from_micros(number(16)?.cast_signed());
    let meta = Meta { received, lead: number(24)?, ordered: header[33] & ORDERED != 0 };
    (length <= MAX_BODY).then_some(Header { sequence: number(8)?, meta, format: header[32], length, body_check: number(34)? })
}

/// The first header in some bytes whose sequence number is not below one, and where it stands. Takes time in proportion
/// to the bytes, whatever is in them.
pub(crate) fn find_header(bytes: &[u8], from: usize, sequence: u64) -> Option<(usize, Header)> {
    (from..(bytes.len() + 1).saturating_sub(HEADER))
        .filter(|at| bytes[*at] == MAGIC[0])
        .find_map(|at| Some((at, header(&bytes[at..])?)).filter(|(_, header)| header.sequence >= sequence))
}

/// The change of a record.
pub(crate) fn decode(header: &Header, body: &[u8]) -> Result<Change, String> {
    if header.format != FORMAT {
        return Err(format!("a record of format {}: this program knows {FORMAT}", header.format));
    }
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

/// The change of a record's bytes.
pub(crate) fn decode_record(bytes: &[u8]) -> Result<Change, String> {
    match next(bytes) {
        Next::Record(header, body) => decode(&header, body),
        _ => Err("a record of the spool that is damaged: its bytes do not match their checks".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lead::{Activity, Document, Mention, MessageTally, ProfileField, ProfileKey, Source};

    fn change() -> Change {
        let mention = Mention { source: Source::Message, time: Timestamp::from_micros(-1), size: Some(u64::MAX), ..Mention::default() };
        let document = Document { document_id: "d\0\u{10FFFF}".to_owned(), mentions: vec![mention], ..Document::default() };
        let messages = vec![MessageTally { channel: "SMS".to_owned(), direction: String::new(), count: 3 }];
        Change {
            lead_id: "lead".to_owned(),
            workspace_id: None,
            received: Timestamp::from_micros(1_761_854_837_553_000),
            activity: Some(Activity { action_id: "a".to_owned(), messages, ..Activity::default() }),
            additions: vec![
                Addition::Document(document),
                Addition::SetProfile(ProfileKey::Email, ProfileField { value: "\u{1F600}\n".to_owned(), version: 0 }),
            ],
        }
    }

    #[test]
    fn a_change_comes_back_as_it_was() {
        let meta = Meta::of(&change());
        let mut bytes = encode(&change(), meta).expect("bytes");
        set_sequence(&mut bytes, u64::MAX - 1);
        let length = bytes.len();
        bytes.extend_from_slice(b"the next one");
        let Next::Record(header, body) = next(&bytes) else { panic!("no record") };
        assert_eq!((header.sequence, header.meta, header.total()), (u64::MAX - 1, meta, length));
        assert_eq!(decode(&header, body), Ok(change()));
        assert_eq!(decode_record(&bytes), Ok(change()));
        assert!(meta.ordered);
    }

    #[test]
    fn every_damaged_byte_is_noticed_and_the_header_survives_damage_in_the_body() {
        let bytes = encode(&change(), Meta::of(&change())).expect("bytes");
        for end in 0..bytes.len() {
            assert!(matches!(next(&bytes[..end]), Next::Partial(needed) if needed > end), "{end}");
        }
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                match next(&damaged) {
                    Next::NoHeader => assert!(at < HEADER, "byte {at}"),
                    Next::Damaged(header) => assert!(at >= HEADER && header.total() == bytes.len(), "byte {at}"),
                    other => panic!("byte {at}: {other:?}"),
                }
            }
        }
        assert_eq!(next(&[0; 64]), Next::NoHeader);
        assert_eq!(next(&[0xFF; 64]), Next::NoHeader);
    }

    #[test]
    fn the_next_header_is_found_behind_anything() {
        let mut record = encode(&change(), Meta::of(&change())).expect("bytes");
        set_sequence(&mut record, 7);
        let bytes = [&MAGIC[..], &record[1..], &[0xF5; 100], &record].concat();
        let (at, header) = find_header(&bytes, 0, 7).expect("a header");
        assert_eq!((at, header.sequence), (bytes.len() - record.len(), 7));
        assert_eq!(find_header(&bytes, 0, 8), None);
        assert_eq!(find_header(&bytes, at + 1, 7), None);
        assert_eq!(find_header(&bytes[..at + HEADER - 1], 0, 7), None);
    }

    #[test]
    fn what_another_version_wrote_is_read_as_far_as_it_is_known() {
        let written = encode(&change(), Meta::of(&change())).expect("bytes");
        let header = header(&written).expect("a header");
        let change = decode(&header, br#"{"lead_id":"l","received":5,"of_tomorrow":{"x":[1]}}"#).expect("a change");
        assert_eq!((change.lead_id.as_str(), change.received.micros(), change.activity), ("l", 5, None));
        assert!(decode(&Header { format: FORMAT + 1, ..header }, b"{}").expect_err("unknown").contains("format 3"));
    }
}
