//! How single fields are read.
//!
//! **Required ids and words decide where something is counted**, so they must be strings of a certain length that arrived
//! whole. **Everything else is optional and never costs the event**: what cannot be read is noted and counts as absent.

use std::borrow::Cow;

use super::limits::{MAX_ID_BYTES, MAX_WORD_BYTES, cut};
use super::unread::{Field, Unread};
use crate::event::{self, Refusal, Scalar};
use crate::time::Timestamp;

/// Stands in a text where a character was lost.
const LOST: char = '\u{fffd}';

fn is_damaged(text: &str) -> bool {
    !text.is_ascii() && text.contains(LOST)
}

pub(super) const ACTION_TYPES: &[&str] =
    &["SYSTEM_NOTE", "MESSAGE", "FOLLOW_UP_MESSAGE", "TOOL_CALL", "DOCUMENT_UPLOAD", "MANUAL_UPDATE", "PORTAL_UPDATE", "PORTAL_SUBMISSION"];
pub(super) const ACTION_STATUSES: &[&str] = &["COMPLETED", "FAILED", "PENDING", "CANCELLED", "AWAITING_APPROVAL"];
pub(super) const CHANNELS: &[&str] = &["EMAIL", "SMS", "WHATSAPP"];
pub(super) const DIRECTIONS: &[&str] = &["INBOUND", "OUTBOUND"];
pub(super) const EXTRACTION_STATUSES: &[&str] = &["completed", "failed"];
pub(super) const ITEM_STATUSES: &[&str] = &["TODO", "COMPLETED", "INVALID", "SKIPPED", "NEEDS_REVIEW"];

/// A documented word in the case of letters in which it is documented; any other word as it is.
fn documented<'a>(word: &'a str, documented: &[&'static str]) -> &'a str {
    documented.iter().find(|known| known.eq_ignore_ascii_case(word)).copied().unwrap_or(word)
}

pub(super) fn required_id(path: &str, field: &Option<Scalar<'_>>) -> Result<String, Refusal> {
    required(path, field, MAX_ID_BYTES).map(str::to_owned)
}

pub(super) fn required_word(path: &str, field: &Option<Scalar<'_>>, words: &[&'static str]) -> Result<String, Refusal> {
    Ok(documented(required(path, field, MAX_WORD_BYTES)?, words).to_owned())
}

/// The event's workspace if it names one. It decides who may see the lead, so it is as strict as a required id.
pub(super) fn workspace_id<'a>(field: &'a Option<Scalar<'_>>) -> Result<&'a str, Refusal> {
    match field {
        None => Ok(""),
        Some(Scalar::Text(text)) if text.is_empty() => Ok(""),
        field => required("workspaceId", field, MAX_ID_BYTES),
    }
}

fn required<'a>(path: &str, field: &'a Option<Scalar<'_>>, max: usize) -> Result<&'a str, Refusal> {
    match field.as_ref().and_then(Scalar::text) {
        None | Some("") => Err(Refusal::field(path, "required: a non-empty string")),
        Some(text) if text.len() > max => Err(Refusal::field(path, format!("longer than {max} bytes"))),
        Some(text) if is_damaged(text) => Err(Refusal::field(path, "a character of it was lost on the way: there is U+FFFD in its place")),
        Some(text) => Ok(text),
    }
}

/// Reads optional fields, and notes those that it cannot read.
#[derive(Debug)]
pub(super) struct Reader<'u> {
    unread: &'u mut Unread,
}

impl<'u> Reader<'u> {
    pub(super) fn new(unread: &'u mut Unread) -> Self {
        Self { unread }
    }

    pub(super) fn note(&mut self, field: Field) {
        self.unread.note(field);
    }

    fn not_read<T: Default>(&mut self, field: Field) -> T {
        self.unread.note(field);
        T::default()
    }

    /// An id; empty if absent. A whole number is taken as its digits.
    pub(super) fn id<'a>(&mut self, field: Field, value: &'a Option<Scalar<'_>>) -> &'a str {
        let id = match value {
            None => return "",
            Some(Scalar::Text(text)) => &**text,
            Some(Scalar::Number(digits)) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits,
            Some(_) => return self.not_read(field),
        };
        if id.len() > MAX_ID_BYTES || is_damaged(id) { self.not_read(field) } else { id }
    }

    /// A channel, direction or status; `None` if absent.
    pub(super) fn word<'a>(&mut self, field: Field, value: &'a Option<Scalar<'_>>, words: &[&'static str]) -> Option<&'a str> {
        match value {
            None => None,
            Some(Scalar::Text(text)) if text.is_empty() => None,
            Some(Scalar::Text(text)) if text.len() <= MAX_WORD_BYTES && !is_damaged(text) => Some(documented(text, words)),
            Some(_) => self.not_read(field),
        }
    }

    /// Free text, cut to `max` bytes; empty if absent. A number is shown in the sender's own digits.
    pub(super) fn text(&mut self, field: Field, value: &Option<Scalar<'_>>, max: usize) -> String {
        value.as_ref().and_then(|value| self.scalar(field, value, max)).unwrap_or_default()
    }

    /// The same of a field that is there; `None` if it cannot be read.
    pub(super) fn scalar(&mut self, field: Field, value: &Scalar<'_>, max: usize) -> Option<String> {
        match value {
            Scalar::Text(text) => Some(self.whole(field, text, max)),
            Scalar::Number(digits) => Some(cut(digits, max)),
            Scalar::Other => self.not_read(field),
        }
    }

    /// Free text, cut to `max` bytes. That characters of it were lost is noted.
    pub(super) fn whole(&mut self, field: Field, text: &str, max: usize) -> String {
        let text = cut(text, max);
        if is_damaged(&text) {
            self.unread.note(field);
        }
        text
    }

    /// A size in bytes.
    pub(super) fn size(&mut self, field: Field, value: &Option<Scalar<'_>>) -> Option<u64> {
        let size = match value {
            None => return None,
            Some(Scalar::Text(text)) if text.is_empty() => return None,
            Some(Scalar::Text(text)) => event::size(text),
            Some(Scalar::Number(digits)) => event::size(digits),
            Some(Scalar::Other) => None,
        };
        size.or_else(|| self.not_read(field))
    }

    /// A time that may have been when the event happened.
    pub(super) fn time(&mut self, field: Field, value: &Option<Scalar<'_>>, received: Timestamp) -> Option<Timestamp> {
        let text = match value {
            None => return None,
            Some(Scalar::Text(text)) if text.is_empty() => return None,
            Some(Scalar::Text(text)) => Cow::Borrowed(&**text),
            Some(Scalar::Number(digits)) => Cow::Borrowed(&**digits),
            Some(Scalar::Other) => return self.not_read(field),
        };
        let time = Timestamp::parse(&text).filter(|time| time.is_believed_at(received));
        time.or_else(|| self.not_read(field))
    }
}
