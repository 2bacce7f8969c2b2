//! How long things may be, and what happens beyond.
//!
//! Ids and words decide where something is counted, so they are refused when too long. Free text is cut.

use crate::event::{Refusal, Text};

/// Ids of every kind: bytes of UTF-8.
pub const MAX_ID_BYTES: usize = 256;
/// Types, statuses, channels, directions.
pub(super) const MAX_WORD_BYTES: usize = 64;
/// Summaries and errors.
pub(super) const MAX_SUMMARY_BYTES: usize = 2048;
/// File names.
pub(super) const MAX_FILENAME_BYTES: usize = 1024;
/// Values of profile fields and checklist items.
pub(super) const MAX_VALUE_BYTES: usize = 4096;
/// Identified messages, documents or checklist items of one event.
const MAX_PARTS: usize = 500;

pub(super) fn required_id(path: &str, text: &Option<Text<'_>>) -> Result<String, Refusal> {
    required(path, text, MAX_ID_BYTES)
}

pub(super) fn required_word(path: &str, text: &Option<Text<'_>>) -> Result<String, Refusal> {
    required(path, text, MAX_WORD_BYTES)
}

fn required(path: &str, text: &Option<Text<'_>>, max: usize) -> Result<String, Refusal> {
    match text.as_deref() {
        None | Some("") => Err(Refusal::field(path, "required: a non-empty string")),
        Some(text) if text.len() > max => Err(too_long(path.to_owned(), max)),
        Some(text) => Ok(text.to_owned()),
    }
}

/// An id that may be absent: then it is empty.
pub(super) fn optional_id<'a>(text: &'a Option<Text<'_>>, path: impl FnOnce() -> String) -> Result<&'a str, Refusal> {
    let text = text.as_deref().unwrap_or_default();
    if text.len() > MAX_ID_BYTES { Err(too_long(path(), MAX_ID_BYTES)) } else { Ok(text) }
}

/// A channel or direction that may be absent or empty: then it is `None`.
pub(super) fn word<'a>(text: &'a Option<Text<'_>>, path: impl FnOnce() -> String) -> Result<Option<&'a str>, Refusal> {
    match text.as_deref() {
        Some(text) if text.len() > MAX_WORD_BYTES => Err(too_long(path(), MAX_WORD_BYTES)),
        text => Ok(text.filter(|text| !text.is_empty())),
    }
}

fn too_long(path: String, max: usize) -> Refusal {
    Refusal::field(path, format!("longer than {max} bytes"))
}

/// Refuses one part more when `count` are there already.
pub(super) fn at_most(count: usize, path: impl FnOnce() -> String) -> Result<(), Refusal> {
    if count < MAX_PARTS { Ok(()) } else { Err(Refusal::field(path(), format!("more than {MAX_PARTS} in one event"))) }
}

/// Free text, cut to `max` bytes.
pub(super) fn cut(text: &Option<Text<'_>>, max: usize) -> String {
    cut_str(text.as_deref().unwrap_or_default(), max)
}

pub(super) fn cut_str(text: &str, max: usize) -> String {
    const ELLIPSIS: &str = "…";
    if text.len() <= max {
        return text.to_owned();
    }
    format!("{}{ELLIPSIS}", &text[..text.floor_char_boundary(max - ELLIPSIS.len())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_text_is_cut_at_a_character_and_says_so() {
        assert_eq!(cut_str("short", 8), "short");
        assert_eq!(cut_str("ÄÄÄÄÄ", 8), "ÄÄ…");
        assert!(cut_str(&"x".repeat(5000), MAX_SUMMARY_BYTES).len() <= MAX_SUMMARY_BYTES);
    }
}
