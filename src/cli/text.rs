//! How things are told to people.

use std::io::{self, Write};

use chrono::{DateTime, Utc};
use comfy_table::{ContentArrangement, Table, presets};
use console::{Term, style};
use prost_types::Timestamp;

use crate::api::{Activity, Document, Lead};

/// Whether a character would move the cursor, reorder the line, or not be seen at all.
pub(super) fn is_unprintable(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            // Soft hyphen, Arabic letter mark, Mongolian vowel separator.
            '\u{ad}' | '\u{61c}' | '\u{180e}'
                // No width; directions; separators of lines and paragraphs; what joins words.
                | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
                // Fillers of Hangul, the byte order mark, annotations, tags.
                | '\u{115f}' | '\u{1160}' | '\u{3164}' | '\u{ffa0}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
        )
}

/// The sender's words are data: what would not be printed is shown as an escape.
pub(super) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        if is_unprintable(character) {
            plain.extend(character.escape_default());
        } else {
            plain.push(character);
        }
    }
    plain
}

/// The same of a text of several lines.
pub fn plain_lines(text: &str) -> String {
    text.split('\n').map(plain).collect::<Vec<_>>().join("\n")
}

fn utc(time: &Timestamp) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(time.seconds, u32::try_from(time.nanos).ok()?)
}

/// RFC 3339, to the second.
pub(super) fn exact(time: Option<&Timestamp>) -> String {
    time.and_then(utc).map_or_else(|| "-".to_owned(), |time| time.format("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// How long ago, in the one unit that says it best.
pub(super) fn ago(time: Option<&Timestamp>, now: DateTime<Utc>) -> String {
    let Some(time) = time.and_then(utc) else { return "-".to_owned() };
    let seconds = (now - time).num_seconds();
    let (number, unit) = match seconds.abs() {
        0..5 => return "now".to_owned(),
        seconds @ 5..60 => (seconds, "s"),
        seconds @ 60..3600 => (seconds / 60, "min"),
        seconds @ 3600..172_800 => (seconds / 3600, "h"),
        seconds => (seconds / 86_400, "d"),
    };
    if seconds < 0 { format!("in {number} {unit}") } else { format!("{number} {unit} ago") }
}

/// Bytes, in the unit that says it best.
pub(super) fn size(bytes: Option<u64>) -> String {
    let Some(bytes) = bytes else { return "-".to_owned() };
    let (mut number, mut units) = (bytes as f64, ["kB", "MB", "GB", "TB"].into_iter());
    let mut unit = "B";
    while number >= 1000.0
        && let Some(larger) = units.next()
    {
        (number, unit) = (number / 1000.0, larger);
    }
    if unit == "B" || number >= 100.0 { format!("{number:.0} {unit}") } else { format!("{number:.1} {unit}") }
}

/// So many of a thing.
pub(super) fn count(number: u64, thing: &str) -> String {
    if number == 1 { format!("1 {thing}") } else { format!("{number} {thing}s") }
}

/// A lead's name, as far as it is known.
pub(super) fn name(lead: &Lead) -> String {
    let Some(profile) = &lead.profile else { return "-".to_owned() };
    let parts = [&profile.first_name, &profile.middle_name, &profile.last_name].map(String::as_str);
    let person = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ");
    let told = [&person, &profile.business_name, &profile.email].into_iter().find(|told| !told.is_empty());
    told.map_or_else(|| "-".to_owned(), |told| plain(told))
}

/// What an activity was, in a line.
pub(super) fn activity(activity: &Activity) -> String {
    let words = [&activity.r#type, &activity.status, &activity.channel, &activity.direction].map(String::as_str);
    let words = words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    let told = if activity.error.is_empty() { &activity.summary } else { &activity.error };
    let line = if told.is_empty() { words } else { format!("{words}: {told}") };
    plain(&line)
}

/// What a document is, in a line.
pub(super) fn document(document: &Document) -> String {
    let name = if document.filename.is_empty() { &document.document_id } else { &document.filename };
    let extraction = document.extraction.as_ref().map(|extraction| format!(", extraction {}", extraction.status)).unwrap_or_default();
    plain(&format!("{name} ({}{extraction})", size(document.size_bytes)))
}

/// The statuses of a line that is plain already, in colours that say what they mean; none where none is wanted.
pub(super) fn coloured(line: &str) -> String {
    let word = |word: &str| match word {
        "COMPLETED" => style(word).green().to_string(),
        "FAILED" | "FAILED:" => style(word).red().to_string(),
        _ => word.to_owned(),
    };
    // Statuses stand among the first words; later ones are the sender's.
    let mut parts = line.splitn(3, ' ');
    let first = parts.by_ref().take(2).map(word).collect::<Vec<_>>().join(" ");
    parts.next().map(|rest| format!("{first} {rest}")).unwrap_or(first)
}

/// What stands in a table: plain, and then coloured.
#[derive(Debug)]
pub(super) struct Told(String);

impl Told {
    pub(super) fn bold(text: &str) -> Self {
        Self(style(plain(text)).bold().to_string())
    }

    pub(super) fn dim(text: &str) -> Self {
        Self(style(plain(text)).dim().to_string())
    }

    /// A word that says how something ended.
    pub(super) fn status(text: &str) -> Self {
        let plain = plain(text);
        let word = plain.split(' ').next().unwrap_or_default().to_ascii_uppercase();
        Self(match &*word {
            "COMPLETED" => style(plain).green().to_string(),
            "FAILED" | "INVALID" => style(plain).red().to_string(),
            "NEEDS_REVIEW" => style(plain).yellow().to_string(),
            _ => plain,
        })
    }

    pub(super) fn coloured(text: &str) -> Self {
        Self(coloured(&plain(text)))
    }
}

impl From<String> for Told {
    fn from(text: String) -> Self {
        Self(plain(&text))
    }
}

/// Writes a table with a row for each line. On a terminal, what does not fit is cut at its edge: a row that goes on in the next line
/// cannot be read, and an id that does cannot be copied.
pub(super) fn write_table<const N: usize, T: Into<Told>>(
    out: &mut impl Write,
    header: [&str; N],
    rows: impl IntoIterator<Item = [T; N]>,
) -> io::Result<()> {
    let mut table = table(header, rows);
    table.set_content_arrangement(ContentArrangement::Disabled);
    let columns = Term::stdout().size_checked().map_or(usize::MAX, |(_, columns)| usize::from(columns));
    for line in table.lines() {
        writeln!(out, "{}", console::truncate_str(line.trim_end(), columns, "…"))?;
    }
    Ok(())
}

/// A table without lines, fitted to the terminal; where there is none, as wide as its contents.
pub(super) fn table<const N: usize, T: Into<Told>>(header: [&str; N], rows: impl IntoIterator<Item = [T; N]>) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header.map(|name| style(name).dim().to_string())).add_rows(rows.into_iter().map(|row| row.map(|cell| cell.into().0)));
    // One space between columns, none before the first.
    for (at, column) in table.column_iter_mut().enumerate() {
        column.set_padding((if at == 0 { 0 } else { 1 }, 1));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_move_the_cursor_is_shown() {
        assert_eq!(plain("a\u{1b}[2Jb\nc\u{202e}d é"), "a\\u{1b}[2Jb\\nc\\u{202e}d é");
        assert_eq!(plain("\u{200b}\u{9b}\u{7f}\u{feff}\u{e0041}"), "\\u{200b}\\u{9b}\\u{7f}\\u{feff}\\u{e0041}");
    }

    #[test]
    fn times_are_told_in_one_unit() {
        let now = DateTime::from_timestamp(1_000_000, 0).expect("a time");
        let ago = |seconds: i64| ago(Some(&Timestamp { seconds: 1_000_000 - seconds, nanos: 0 }), now);
        let told = [0, 59, 60, 3599, 7200, 172_800, -90].map(ago);
        assert_eq!(told, ["now", "59 s ago", "1 min ago", "59 min ago", "2 h ago", "2 d ago", "in 1 min"]);
        assert_eq!(exact(Some(&Timestamp { seconds: 0, nanos: 5 })), "1970-01-01T00:00:00Z");
        assert_eq!((exact(None), super::ago(None, now)), ("-".to_owned(), "-".to_owned()));
    }

    #[test]
    fn sizes_are_told_in_one_unit() {
        let told = [Some(0), Some(999), Some(1000), Some(123_456), Some(5_250_000), Some(u64::MAX), None].map(size);
        assert_eq!(told, ["0 B", "999 B", "1.0 kB", "123 kB", "5.2 MB", "18446744 TB", "-"]);
    }
}
