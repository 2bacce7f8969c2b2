//! How long things may be, and how many.

use crate::event::Refusal;

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
/// Identified messages, pairs of channel and direction, documents or checklist items of one event.
const MAX_PARTS: usize = 500;

/// Refuses one part more when `count` are there already.
pub(super) fn at_most(count: usize, path: impl FnOnce() -> String) -> Result<(), Refusal> {
    if count < MAX_PARTS { Ok(()) } else { Err(Refusal::field(path(), format!("more than {MAX_PARTS} in one event"))) }
}

/// Free text, cut to `max` bytes.
pub(super) fn cut(text: &str, max: usize) -> String {
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
        assert_eq!(cut("short", 8), "short");
        assert_eq!(cut("ÄÄÄÄÄ", 8), "ÄÄ…");
        assert!(cut(&"x".repeat(5000), MAX_SUMMARY_BYTES).len() <= MAX_SUMMARY_BYTES);
    }
}
