//! The `input` and `output` of an action: their shape varies by its type, so nothing in them is an error.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{Size, Text};

/// What is of use in an action's input or output, at its top level.
#[derive(Debug, Default)]
#[allow(missing_docs)] // the sender's names
pub struct Payload<'a> {
    pub channel: Option<Text<'a>>,
    pub direction: Option<Text<'a>>,
    pub documents: Vec<PayloadDocument<'a>>,
}

/// An entry of a `documents` array: a document if it has an `id`.
#[derive(Debug, Default)]
#[allow(missing_docs)] // the sender's names
pub struct PayloadDocument<'a> {
    pub id: Option<Text<'a>>,
    pub filename: Option<Text<'a>>,
    pub mime_type: Option<Text<'a>>,
    pub size: Size,
}

/// A value of one wanted type; every other type is skipped and read as nothing.
trait Lenient<'de>: Default {
    fn from_text(_: Text<'de>) -> Self {
        Self::default()
    }
    fn from_u64(_: u64) -> Self {
        Self::default()
    }
    fn from_f64(_: f64) -> Self {
        Self::default()
    }
    fn from_map<A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        skip_map(map)?;
        Ok(Self::default())
    }
    fn from_seq<A: SeqAccess<'de>>(seq: A) -> Result<Self, A::Error> {
        skip_seq(seq)?;
        Ok(Self::default())
    }
}

fn skip_map<'de, A: MapAccess<'de>>(mut map: A) -> Result<(), A::Error> {
    while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
    Ok(())
}

fn skip_seq<'de, A: SeqAccess<'de>>(mut seq: A) -> Result<(), A::Error> {
    while seq.next_element::<IgnoredAny>()?.is_some() {}
    Ok(())
}

struct AnyType<T>(std::marker::PhantomData<T>);

impl<T> AnyType<T> {
    const fn new() -> Self {
        Self(std::marker::PhantomData)
    }
}

impl<'de, T: Lenient<'de>> DeserializeSeed<'de> for AnyType<T> {
    type Value = T;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: Lenient<'de>> Visitor<'de> for AnyType<T> {
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }
    fn visit_unit<E: de::Error>(self) -> Result<T, E> {
        Ok(T::default())
    }
    fn visit_bool<E: de::Error>(self, _: bool) -> Result<T, E> {
        Ok(T::default())
    }
    fn visit_i64<E: de::Error>(self, _: i64) -> Result<T, E> {
        Ok(T::default())
    }
    fn visit_u64<E: de::Error>(self, value: u64) -> Result<T, E> {
        Ok(T::from_u64(value))
    }
    fn visit_f64<E: de::Error>(self, value: f64) -> Result<T, E> {
        Ok(T::from_f64(value))
    }
    fn visit_borrowed_str<E: de::Error>(self, value: &'de str) -> Result<T, E> {
        Ok(T::from_text(Text(value.into())))
    }
    fn visit_str<E: de::Error>(self, value: &str) -> Result<T, E> {
        Ok(T::from_text(Text(value.to_owned().into())))
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::from_map(map)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<T, A::Error> {
        T::from_seq(seq)
    }
}

impl<'de> Lenient<'de> for Option<Text<'de>> {
    fn from_text(text: Text<'de>) -> Self {
        Some(text)
    }
}

impl<'de> Lenient<'de> for Size {
    fn from_u64(value: u64) -> Self {
        Size::from_u64(value)
    }
    fn from_f64(value: f64) -> Self {
        Size::from_f64(value)
    }
}

impl<'de> Lenient<'de> for PayloadDocument<'de> {
    fn from_map<A: MapAccess<'de>>(mut map: A) -> Result<Self, A::Error> {
        let mut document = Self::default();
        while let Some(key) = map.next_key::<Text<'de>>()? {
            match &*key {
                "id" => document.id = map.next_value_seed(AnyType::new())?,
                "filename" => document.filename = map.next_value_seed(AnyType::new())?,
                "mimeType" => document.mime_type = map.next_value_seed(AnyType::new())?,
                "size" => document.size = map.next_value_seed(AnyType::new())?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(document)
    }
}

impl<'de> Lenient<'de> for Vec<PayloadDocument<'de>> {
    fn from_seq<A: SeqAccess<'de>>(mut seq: A) -> Result<Self, A::Error> {
        let mut documents = Vec::new();
        while let Some(document) = seq.next_element_seed(AnyType::<PayloadDocument<'de>>::new())? {
            documents.push(document);
        }
        Ok(documents)
    }
}

impl<'de> Lenient<'de> for Payload<'de> {
    fn from_map<A: MapAccess<'de>>(mut map: A) -> Result<Self, A::Error> {
        let mut payload = Self::default();
        while let Some(key) = map.next_key::<Text<'de>>()? {
            match &*key {
                "channel" => payload.channel = map.next_value_seed(AnyType::new())?,
                "direction" => payload.direction = map.next_value_seed(AnyType::new())?,
                "documents" => payload.documents = map.next_value_seed(AnyType::new())?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(payload)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Payload<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        AnyType::<Payload<'de>>::new().deserialize(deserializer)
    }
}
