//! A request's body, read as JSON: as it is where that is possible, else with its faults repaired.

use std::borrow::Cow;
use std::cell::OnceCell;

use super::Refusal;

/// A request's body.
///
/// Bodies are nearly always good JSON, so they are read as they are first. One that cannot be read is repaired, in one
/// pass, where it is clear what the sender meant, and read again. What that is stands in `docs/webhooks.md`.
#[derive(Debug)]
pub struct Body<'a> {
    bytes: &'a [u8],
    repaired: OnceCell<Option<String>>,
}

impl<'a> Body<'a> {
    /// From the bytes that came.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, repaired: OnceCell::new() }
    }

    /// Reads something from the body.
    ///
    /// # Errors
    /// It cannot be read, repaired or not.
    pub fn read<'s, T>(&'s self, read: impl Fn(&'s str) -> Result<T, Refusal>) -> Result<T, Refusal> {
        // serde_json does not check the UTF-8 of what it skips.
        let first = match std::str::from_utf8(self.bytes) {
            Ok(text) => object(text).and_then(&read),
            Err(error) => Err(Refusal::body(format!("the body is not UTF-8: bad byte at offset {}", error.valid_up_to()))),
        };
        let refusal = match first {
            Ok(value) => return Ok(value),
            Err(refusal) => refusal,
        };
        let Some(repaired) = self.repaired.get_or_init(|| repaired(self.bytes)) else { return Err(refusal) };
        match object(repaired).and_then(read) {
            // What is no JSON even so may be anything: the first fault says best what it is.
            Err(Refusal { field: None, .. }) if refusal.field.is_none() => Err(refusal),
            result => result,
        }
    }
}

fn object(text: &str) -> Result<&str, Refusal> {
    if text.trim_start_matches(WHITESPACE).starts_with('{') { Ok(text) } else { Err(Refusal::body("the body is not a JSON object")) }
}

const WHITESPACE: [char; 4] = [' ', '\t', '\r', '\n'];

/// A body without its faults, in one pass; `None` if it has none that can be repaired.
///
/// - A byte order mark in front, NULs behind: taken away.
/// - `NaN`, `Infinity` and `-Infinity` in place of a value: `null`.
/// - In strings U+FFFD in place of bytes that are no UTF-8, of halves of surrogate pairs, and of a backslash that begins no
///   escape of JSON. Control characters are taken as they are.
fn repaired(body: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(body);
    let mut rest = text.trim_start_matches('\u{feff}').trim_end_matches(|c: char| c == '\0' || WHITESPACE.contains(&c));
    let mut repaired = matches!(text, Cow::Owned(_)) || rest.len() != text.len();
    let mut out = String::with_capacity(rest.len() + 16);
    let mut in_string = false;
    while !rest.is_empty() {
        let is_special = |byte: u8| match byte {
            b'"' => true,
            b'\\' | ..0x20 => in_string,
            b'N' | b'I' | b'-' => !in_string,
            _ => false,
        };
        // All of these are ASCII, so characters stay whole.
        let (plain, special) = rest.split_at(rest.bytes().position(is_special).unwrap_or(rest.len()));
        out.push_str(plain);
        let Some(first) = special.bytes().next() else { break };
        let (kept, length) = match first {
            b'"' => {
                in_string = !in_string;
                (None, 1)
            }
            b'\\' => escape(special),
            b'N' | b'I' | b'-' => match ["NaN", "Infinity", "-Infinity"].iter().find(|word| special.starts_with(**word)) {
                Some(word) => (Some("null"), word.len()),
                None => (None, 1),
            },
            b'\t' => (Some("\\t"), 1),
            b'\n' => (Some("\\n"), 1),
            b'\r' => (Some("\\r"), 1),
            control => {
                out.push_str(if control < 0x10 { "\\u000" } else { "\\u001" });
                out.push(char::from(b"0123456789abcdef"[usize::from(control & 15)]));
                (Some(""), 1)
            }
        };
        repaired |= kept.is_some();
        out.push_str(kept.unwrap_or(&special[..length]));
        rest = &special[length..];
    }
    repaired.then_some(out)
}

/// What stands for the escape at the beginning of a text, `None` if it is good, and its length.
fn escape(text: &str) -> (Option<&'static str>, usize) {
    const LOST: &str = "\u{fffd}";
    match text.as_bytes().get(1) {
        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => (None, 2),
        Some(b'u') => match (unit(text), text.get(6..).and_then(unit)) {
            (Some(0xd800..0xdc00), Some(0xdc00..0xe000)) => (None, 12),
            (Some(0xd800..0xe000), _) => (Some(LOST), 6),
            (Some(_), _) => (None, 6),
            (None, _) => (Some(LOST), 1),
        },
        Some(_) => (Some(LOST), 1),
        // The body ends within a string.
        None => (None, 1),
    }
}

/// The UTF-16 code unit that an escape stands for.
fn unit(text: &str) -> Option<u16> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    // A sign would be read too.
    if digits.bytes().all(|byte| byte.is_ascii_hexdigit()) { u16::from_str_radix(digits, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn read(body: &[u8]) -> Result<Value, Refusal> {
        Body::new(body).read(|text| serde_json::from_str(text).map_err(|error| Refusal::body(error.to_string())))
    }

    #[test]
    fn a_good_body_is_not_touched() {
        for body in [r#"{"a":"\ud83d\ude00 \\ud83d \" \\","b":[-1,"NaN",null,"\u0000"]}"#, "{}", " { } \n"] {
            assert_eq!(repaired(body.trim().as_bytes()), None, "{body}");
            assert_eq!(read(body.as_bytes()), Ok(serde_json::from_str(body).expect("JSON")));
        }
    }

    #[test]
    fn faults_are_repaired_where_it_is_clear_what_was_meant() {
        for (body, meant) in [
            (&b"\xef\xbb\xbf{\"a\":1}"[..], r#"{"a":1}"#),
            (b"{\"a\":1}\0\0 \n\0", r#"{"a":1}"#),
            (b"{\"a\":NaN,\"b\":[Infinity,-Infinity,-1],\"NaN\":\"-Infinity\"}", r#"{"a":null,"b":[null,null,-1],"NaN":"-Infinity"}"#),
            (br#"{"a":"x\ud83d"}"#, r#"{"a":"x\ufffd"}"#),
            (br#"{"a":"\ude00x\\ud83d"}"#, r#"{"a":"\ufffdx\\ud83d"}"#),
            (br#"{"a":"\ud83d\ud83d\ude00\ud83dx","\ud83d":1}"#, r#"{"a":"\ufffd\ud83d\ude00\ufffdx","\ufffd":1}"#),
            (br#"{"a":"C:\docs\u12\new\u+123"}"#, "{\"a\":\"C:\u{fffd}docs\u{fffd}u12\\new\u{fffd}u+123\"}"),
            (b"{\"a\":\"a\tb\nc\0\"}", r#"{"a":"a\tb\nc\u0000"}"#),
            (b"{\"a\":\"caf\xe9 \xf0\x9f\x98\"}", "{\"a\":\"caf\u{fffd} \u{fffd}\"}"),
        ] {
            assert_eq!(read(body), Ok(serde_json::from_str(meant).expect(meant)), "{}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn what_is_no_json_stays_none() {
        for body in [
            "",
            "\0",
            "{\"a\":",
            "{\"a\":\"x\\",
            "{\"a\":\"x\\\"",
            "{'a':1}",
            "{\"a\":nan}",
            "{} {}",
            "[NaN]",
            "{\"a\":\u{feff}1}",
            "{\"a\":1,}",
        ] {
            assert!(read(body.as_bytes()).is_err(), "{body}");
        }
        let refusal = read(b"\xff\xfe{\0").expect_err("no JSON");
        assert_eq!(refusal, Refusal::body("the body is not UTF-8: bad byte at offset 0"), "the first fault is told");
    }

    proptest! {
        #[test]
        fn whatever_stands_between_two_quotes_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..40), text in "[\\\\uduDfF89x/\\n]{0,24}") {
            for inner in [bytes.iter().copied().filter(|byte| !b"\"\\".contains(byte)).collect::<Vec<_>>(), text.into_bytes()] {
                // An even number of backslashes at the end leaves the quote alone.
                let backslashes = inner.iter().rev().take_while(|byte| **byte == b'\\').count();
                let body = [&b"{\"a\":\""[..], &inner, if backslashes % 2 == 0 { b"" } else { b"\\" }, b"\"}"].concat();
                prop_assert!(read(&body).is_ok(), "{}", String::from_utf8_lossy(&body));
            }
        }
    }
}
