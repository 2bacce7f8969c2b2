//! Strings and numbers of an event, borrowed from the body where JSON allows.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// A string, borrowed unless it holds an escape. (`Option<Cow<str>>` would always be copied by serde.)
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text<'a>(pub Cow<'a, str>);

impl Deref for Text<'_> {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

/// The text of an optional field, empty where it is absent.
pub(super) fn text<'a>(field: &'a Option<Text<'_>>) -> &'a str {
    field.as_deref().unwrap_or("")
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E: de::Error>(self, value: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(value)))
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(value.to_owned())))
            }
            fn visit_string<E: de::Error>(self, value: String) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(value)))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

/// A size in bytes: any JSON number; one that is not a size (negative, fractional, above 2^53) is unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size(pub Option<u64>);

/// The greatest size believed: above it JSON numbers are no longer exact.
const MAX_SIZE: u64 = 1 << 53;

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;
        impl Visitor<'_> for SizeVisitor {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes")
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Size, E> {
                Ok(Size::from_u64(value))
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Size, E> {
                Ok(u64::try_from(value).map_or(Size(None), Size::from_u64))
            }
            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Size, E> {
                Ok(Size::from_f64(value))
            }
        }
        deserializer.deserialize_any(SizeVisitor)
    }
}

impl Size {
    pub(super) fn from_u64(value: u64) -> Self {
        Self(Some(value).filter(|value| *value <= MAX_SIZE))
    }

    pub(super) fn from_f64(value: f64) -> Self {
        let whole = value.fract() == 0.0 && (0.0..=MAX_SIZE as f64).contains(&value);
        Self(whole.then_some(value as u64))
    }
}
