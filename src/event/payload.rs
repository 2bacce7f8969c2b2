//! Values whose shape is not relied on: the `input` and `output` of an action, which vary by its type, and its tool. Nothing in
//! them costs the event; a value of an unexpected type is passed over.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::scalar::is_quick;
use super::{Scalar, Text};

/// What is of use in an action's input or output, at its top level. The last of several fields of one name counts.
#[derive(Debug, Default)]
#[allow(missing_docs)] // the sender's names
pub struct Payload<'a> {
    pub channel: Option<Scalar<'a>>,
    pub direction: Option<Scalar<'a>>,
    pub documents: Documents<'a>,
}

/// The `documents` of a payload: those entries that are objects, or nothing where it is no array.
#[derive(Debug, Default)]
pub struct Documents<'a>(pub Vec<PayloadDocument<'a>>);

/// An entry of `documents`: a document if it has an `id`.
#[derive(Debug, Default)]
#[allow(missing_docs)] // the sender's names
pub struct PayloadDocument<'a> {
    pub id: Option<Scalar<'a>>,
    pub filename: Option<Scalar<'a>>,
    pub mime_type: Option<Scalar<'a>>,
    pub size: Option<Scalar<'a>>,
}

/// The tool of a tool call.
#[derive(Debug, Default)]
#[allow(missing_docs)] // the sender's names
pub struct Tool<'a> {
    pub name: Option<Scalar<'a>>,
    /// It was no object.
    pub ill_typed: bool,
}

/// What takes the fields of an object, one after the other.
trait Fields<'de>: Default {
    fn field<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error>;
}

fn skip<'de, A: MapAccess<'de>>(map: &mut A) -> Result<(), A::Error> {
    map.next_value::<IgnoredAny>().map(drop)
}

impl<'de> Fields<'de> for Payload<'de> {
    fn field<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "channel" => self.channel = map.next_value()?,
            "direction" => self.direction = map.next_value()?,
            "documents" => self.documents = map.next_value()?,
            _ => skip(map)?,
        }
        Ok(())
    }
}

impl<'de> Fields<'de> for PayloadDocument<'de> {
    fn field<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "id" => self.id = map.next_value()?,
            "filename" => self.filename = map.next_value()?,
            "mimeType" => self.mime_type = map.next_value()?,
            "size" => self.size = map.next_value()?,
            _ => skip(map)?,
        }
        Ok(())
    }
}

impl<'de> Fields<'de> for Tool<'de> {
    fn field<A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "name" => self.name = map.next_value()?,
            _ => skip(map)?,
        }
        Ok(())
    }
}

/// An object, or none where there is another value.
struct ObjectOf<T>(Option<T>);

struct FieldsVisitor<T>(PhantomData<T>);

impl<'de, T: Fields<'de>> Visitor<'de> for FieldsVisitor<T> {
    type Value = ObjectOf<T>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut value = T::default();
        while let Some(name) = map.next_key::<Text<'de>>()? {
            value.field(&name, &mut map)?;
        }
        Ok(ObjectOf(Some(value)))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(ObjectOf(None))
    }
    fn visit_str<E: Error>(self, _: &str) -> Result<Self::Value, E> {
        Ok(ObjectOf(None))
    }
    fn visit_bool<E: Error>(self, _: bool) -> Result<Self::Value, E> {
        Ok(ObjectOf(None))
    }
    fn visit_u64<E: Error>(self, _: u64) -> Result<Self::Value, E> {
        Ok(ObjectOf(None))
    }
    fn visit_i64<E: Error>(self, _: i64) -> Result<Self::Value, E> {
        Ok(ObjectOf(None))
    }
    fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
        Ok(ObjectOf(None))
    }
    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(ObjectOf(None))
    }
}

/// Reads an object, and `None` from every other value.
fn object<'de, T: Fields<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    if is_quick() {
        return Ok(deserializer.deserialize_any(FieldsVisitor(PhantomData))?.0);
    }
    // What a value is shows its first byte. serde_json alone would refuse numbers that it cannot hold.
    let json = <&RawValue>::deserialize(deserializer)?.get();
    if !json.starts_with('{') {
        return Ok(None);
    }
    let mut json = serde_json::Deserializer::from_str(json);
    json.deserialize_any(FieldsVisitor(PhantomData)).map(|object| object.0).map_err(D::Error::custom)
}

impl<'de: 'a, 'a> Deserialize<'de> for Payload<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(object::<Payload<'de>, D>(deserializer)?.unwrap_or_default())
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for PayloadDocument<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(object::<PayloadDocument<'de>, D>(deserializer)?.unwrap_or_default())
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Tool<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(object::<Tool<'de>, D>(deserializer)?.unwrap_or(Self { ill_typed: true, ..Self::default() }))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Documents<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = <&RawValue>::deserialize(deserializer)?.get();
        if json.starts_with('[') { serde_json::from_str(json).map(Self).map_err(D::Error::custom) } else { Ok(Self::default()) }
    }
}
