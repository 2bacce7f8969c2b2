//! Strings and numbers of an event, as the sender wrote them.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// The value of a field that should be a string or a number. Every other value can be read too: what becomes of an event
/// whose field has the wrong type is the fold's to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scalar<'a> {
    /// A string, borrowed from the body unless it holds an escape.
    Text(Cow<'a, str>),
    /// A number, of any size, in the sender's own digits.
    Number(Cow<'a, str>),
    /// A Boolean, an object or an array.
    Other,
}

impl<'a> Scalar<'a> {
    /// The text of a string.
    pub fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// Reads a JSON value, which has no white space around it.
    pub(crate) fn of(json: &'a str) -> serde_json::Result<Self> {
        Ok(match json.as_bytes().first() {
            Some(b'"') => Self::Text(string(json)?),
            Some(b'-' | b'0'..=b'9') => Self::Number(Cow::Borrowed(json)),
            _ => Self::Other,
        })
    }
}

/// A JSON string without its quotes and escapes.
fn string(json: &str) -> serde_json::Result<Cow<'_, str>> {
    match json.get(1..json.len() - 1) {
        Some(text) if !text.contains('\\') => Ok(Cow::Borrowed(text)),
        _ => serde_json::from_str(json).map(Cow::Owned),
    }
}

thread_local! {
    static QUICK: Cell<bool> = const { Cell::new(false) };
}

/// Whether values are read quickly now.
pub(super) fn is_quick() -> bool {
    QUICK.get()
}

/// Reads JSON with one look at each value. That fails where a number is no integer or does not fit, for its digits are lost
/// then; without it every value is looked at twice, which costs half as much again.
pub(super) fn quickly<T>(read: impl FnOnce() -> T) -> T {
    struct Until;
    impl Drop for Until {
        fn drop(&mut self) {
            QUICK.set(false);
        }
    }
    QUICK.set(true);
    let _until = Until;
    read()
}

impl<'de: 'a, 'a> Deserialize<'de> for Scalar<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if is_quick() {
            return deserializer.deserialize_any(QuickVisitor);
        }
        Self::of(<&RawValue>::deserialize(deserializer)?.get()).map_err(D::Error::custom)
    }
}

struct QuickVisitor;

impl<'de> Visitor<'de> for QuickVisitor {
    type Value = Scalar<'de>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }
    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Scalar::Text(Cow::Borrowed(text)))
    }
    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Scalar::Text(Cow::Owned(text.to_owned())))
    }
    // JSON writes an integer in one way only.
    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Scalar::Number(Cow::Owned(number.to_string())))
    }
    fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Scalar::Number(Cow::Owned(number.to_string())))
    }
    fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
        Err(E::custom("the digits of a number are lost"))
    }
    fn visit_bool<E: Error>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Scalar::Other)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other)
    }
}

/// The greatest size believed: above it JSON numbers are no longer exact.
const MAX_SIZE: u64 = 1 << 53;
/// More digits have no size.
const MAX_SIZE_BYTES: usize = 32;

/// A size in bytes; `None`: it is none. `1000`, `1000.0` and `1e3` are the same.
pub fn size(number: &str) -> Option<u64> {
    if number.len() > MAX_SIZE_BYTES || !number.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte)) {
        return None;
    }
    if number.bytes().all(|byte| byte.is_ascii_digit()) {
        return number.parse().ok().filter(|size| *size <= MAX_SIZE);
    }
    let number: f64 = number.parse().ok()?;
    let is_whole = number.fract() == 0.0 && (0.0..=MAX_SIZE as f64).contains(&number);
    is_whole.then_some(number as u64)
}

/// JSON without the white space between its parts, and with every escape that is not needed undone. Numbers keep their
/// digits.
pub fn compact(json: &str) -> serde_json::Result<String> {
    let mut out = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(at) = rest.find('"') {
        let (between, text) = rest.split_at(at);
        out.extend(between.split_ascii_whitespace());
        let length = length_of_string(text);
        let (text, behind) = text.split_at(length);
        match string(text)? {
            Cow::Borrowed(_) => out.push_str(text),
            Cow::Owned(decoded) => out += &serde_json::to_string(&decoded)?,
        }
        rest = behind;
    }
    out.extend(rest.split_ascii_whitespace());
    Ok(out)
}

/// The bytes of the JSON string that a text begins with, quotes included.
fn length_of_string(text: &str) -> usize {
    let mut bytes = text.bytes().enumerate().skip(1);
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => return at + 1,
            b'\\' => drop(bytes.next()),
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_a_whole_number_of_bytes() {
        for (number, expected) in [
            ("0", Some(0)),
            ("-0.0", Some(0)),
            ("1000", Some(1000)),
            ("1000.0", Some(1000)),
            ("1e3", Some(1000)),
            ("9007199254740992", Some(1 << 53)),
            ("9007199254740993", None),
            ("18446744073709551616", None),
            ("-1", None),
            ("1.5", None),
            ("1e400", None),
            ("", None),
            ("1 KB", None),
            ("0x10", None),
            ("inf", None),
            ("NaN", None),
        ] {
            assert_eq!(size(number), expected, "{number}");
        }
        assert_eq!(size(&"0".repeat(1000)), None);
    }

    #[test]
    fn compact_json_means_the_same_and_keeps_its_digits() {
        let json = "{ \"b\\u0020\" : [ 1.10 , 1e400,\n\"\\u00e9 \\\" \\\\\" , \"  \" ],\"a\":12345678901234567890123, \"a\":null }";
        assert_eq!(compact(json).expect("JSON"), "{\"b \":[1.10,1e400,\"é \\\" \\\\\",\"  \"],\"a\":12345678901234567890123,\"a\":null}");
        assert!(compact(r#"["\ud83d"]"#).is_err());
    }
}
