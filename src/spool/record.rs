//! The bytes of one change in the spool.
//!
//! A record is its length (4 bytes), a check (xxh3, 8 bytes) and a body: format (1), flags (1), time of receipt in µs
//! (8), hash of the lead (8), the change as JSON. All numbers are little-endian. What precedes the JSON is what an
//! opening spool must know, so that it need not read millions of changes to start.

use xxhash_rust::xxh3::xxh3_64;

use crate::lead::{Addition, Change};
use crate::time::Timestamp;

/// The format of a body. A body of another one is kept as a dead letter.
const FORMAT: u8 = 1;
/// Order matters: the change overwrites what an earlier one of the same lead may have set.
const ORDERED: u8 = 1;
/// Bytes of length and check.
const FRAME: usize = 12;
/// Bytes of the body before the JSON.
const PREFIX: usize = 18;
/// Longer than any change: a length beyond it is damage.
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

/// The bytes of a change.
pub(crate) fn encode(change: &Change, meta: Meta) -> Result<Vec<u8>, serde_json::Error> {
    let mut bytes = vec![0; FRAME];
    bytes.extend_from_slice(&[FORMAT, if meta.ordered { ORDERED } else { 0 }]);
    bytes.extend_from_slice(&meta.received.micros().to_le_bytes());
    bytes.extend_from_slice(&meta.lead.to_le_bytes());
    serde_json::to_writer(&mut bytes, change)?;
    let length = u32::try_from(bytes.len() - FRAME).unwrap_or(u32::MAX).to_le_bytes();
    let check = xxh3_64(&bytes[FRAME..]).to_le_bytes();
    bytes[..4].copy_from_slice(&length);
    bytes[4..FRAME].copy_from_slice(&check);
    Ok(bytes)
}

/// What stands at the beginning of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next<'a> {
    /// A record: what is known of it, its body, and how many bytes it takes.
    Record(Meta, &'a [u8], usize),
    /// The beginning of a record that needs so many bytes in all.
    Partial(usize),
    /// Nothing that was ever written here.
    Damaged,
}

pub(crate) fn next(bytes: &[u8]) -> Next<'_> {
    let Some((frame, rest)) = bytes.split_at_checked(FRAME) else { return Next::Partial(FRAME) };
    let (Ok(length), Ok(check)) = (frame[..4].try_into(), frame[4..].try_into()) else { return Next::Damaged };
    let length = u32::from_le_bytes(length) as usize;
    if !(PREFIX..=MAX_BODY).contains(&length) {
        return Next::Damaged;
    }
    let Some(body) = rest.get(..length) else { return Next::Partial(FRAME + length) };
    if xxh3_64(body) != u64::from_le_bytes(check) {
        return Next::Damaged;
    }
    let number = |at: usize| body.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes).unwrap_or_default();
    let received = Timestamp::from_micros(number(2).cast_signed());
    Next::Record(Meta { received, lead: number(10), ordered: body[1] & ORDERED != 0 }, body, FRAME + length)
}

/// The change of a record.
pub(crate) fn decode(body: &[u8]) -> Result<Change, String> {
    match body.split_at_checked(PREFIX) {
        Some((prefix, json)) if prefix[0] == FORMAT => serde_json::from_slice(json).map_err(|error| error.to_string()),
        Some((prefix, _)) => Err(format!("a record of format {}: this program knows {FORMAT}", prefix[0])),
        None => Err("a record that is cut short".to_owned()),
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
        let length = bytes.len();
        bytes.extend_from_slice(b"the next one");
        let Next::Record(found, body, taken) = next(&bytes) else { panic!("no record") };
        assert_eq!((found, taken, decode(body)), (meta, length, Ok(change())));
        assert!(meta.ordered);
    }

    #[test]
    fn what_was_torn_or_damaged_is_told_from_what_was_written() {
        let bytes = encode(&change(), Meta::of(&change())).expect("bytes");
        for end in 0..bytes.len() {
            assert!(matches!(next(&bytes[..end]), Next::Partial(needed) if needed > end), "{end}");
        }
        for at in 4..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert_eq!(next(&damaged), Next::Damaged, "byte {at}");
        }
        assert_eq!(next(&[0; 64]), Next::Damaged);
        assert_eq!(next(&[0xFF; 64]), Next::Damaged);
    }

    #[test]
    fn what_another_version_wrote_is_read_as_far_as_it_is_known() {
        let older = [&[FORMAT, 0][..], &[0; 16], br#"{"lead_id":"l","received":5,"of_tomorrow":{"x":[1]}}"#].concat();
        let change = decode(&older).expect("a change");
        assert_eq!((change.lead_id.as_str(), change.received.micros(), change.activity), ("l", 5, None));
        assert!(decode(&[&[FORMAT + 1, 0][..], &[0; 16], b"{}"].concat()).expect_err("unknown").contains("format 2"));
    }
}
