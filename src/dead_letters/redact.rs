//! What is kept of an event that was refused: all that the fold may need, and nothing that is never stored.
//!
//! What a field holds cannot be known when the event is not what was expected, so each is judged by its name and its
//! shape. A name that the fold knows keeps a value of the kind that belongs there. Under any other name only that is
//! kept which cannot be a text: ids (UUIDs), times, words in capitals. Of `input` and `output` only the fields that
//! the fold reads are kept. Everything else goes: bodies, subjects, results, links.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::event::{self, Body, Refusal, Scalar, Text};
use crate::fold::MAX_ID_BYTES;
use crate::time::Timestamp;

/// The most that is kept of a text or a number.
const MAX_TEXT: usize = 8 * 1024;
/// A name longer than this is no field's.
const MAX_NAME: usize = 64;
/// The fold reads nothing that lies deeper.
const MAX_DEPTH: usize = 16;

/// An event that can be told again.
#[derive(Debug)]
pub struct Redacted {
    /// As JSON.
    pub json: String,
    /// The lead that it names, where it names one.
    pub lead_id: String,
}

/// What belongs under a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// An id, or a word of the sender's.
    Id,
    /// A text that the fold stores.
    Text,
    Time,
    Number,
    /// An object, or a list of them.
    Objects,
    /// The input or output of an action.
    Payload,
    /// The items of a checklist.
    Checklist,
    /// The value of a checklist item: whatever it is, the fold stores it.
    ItemValue,
    /// Results and the like: whatever it is, nobody reads it.
    Private,
    Unknown,
}

/// What an object stands in.
#[derive(Clone, Copy, Default)]
struct Place {
    /// In an item of a checklist.
    checklist: bool,
    /// Below a name that the fold does not know: a text there may be anything.
    unknown: bool,
}

fn kind(name: &str, place: Place) -> Kind {
    match name {
        "value" if place.checklist => Kind::ItemValue,
        "event" | "workspaceId" | "id" | "type" | "status" | "leadId" | "channel" | "direction" | "mimeType" | "agentId"
        | "parentActionId" | "externalId" | "externalLeadId" | "documentId" | "messageId" | "checklistItemId" | "checklistItemCode" => {
            Kind::Id
        }
        "summary" | "error" | "filename" | "name" | "firstName" | "middleName" | "lastName" | "phoneNumber" | "email" | "businessName"
        | "website" | "source" => {
            if place.unknown {
                Kind::Unknown
            } else {
                Kind::Text
            }
        }
        "completedAt" | "occurredAt" | "createdAt" | "updatedAt" | "scheduledAt" => Kind::Time,
        "size" => Kind::Number,
        "actionLog" | "document" | "data" | "messages" | "documents" | "tool" => Kind::Objects,
        "checklistItems" => Kind::Checklist,
        "input" | "output" => Kind::Payload,
        "metadata" | "headers" | "classification" | "extractionResult" | "alternateValues" | "validationResult" => Kind::Private,
        _ => Kind::Unknown,
    }
}

/// `None`: the body can be read as no event, so nothing of it is known. Whatever an event is read from can be redacted, for
/// both are read by [`Body`], and what is kept folds to the same, or is refused for the same field.
pub fn event(body: &[u8]) -> Option<Redacted> {
    let json = Body::new(body).read(|text| redacted(text).map_err(|error| Refusal::body(error.to_string()))).ok()?;
    let lead_id = lead_id(&json).unwrap_or_default();
    Some(Redacted { lead_id, json })
}

fn redacted(body: &str) -> serde_json::Result<String> {
    // Checks all of it first, once: what is skipped below is not looked at.
    let body: &RawValue = serde_json::from_str(body)?;
    let mut out = String::with_capacity(body.get().len().min(MAX_TEXT));
    object(body.get(), Place::default(), 0, &mut out)?;
    Ok(out)
}

/// The lead that an event names: at the top, or in the object that it is about.
fn lead_id(event: &str) -> Option<String> {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Named<'a> {
        #[serde(borrow)]
        lead_id: Option<Scalar<'a>>,
        #[serde(borrow)]
        action_log: Option<&'a RawValue>,
        #[serde(borrow)]
        document: Option<&'a RawValue>,
        #[serde(borrow)]
        data: Option<&'a RawValue>,
    }
    fn own(named: &Named<'_>) -> Option<String> {
        let id = named.lead_id.as_ref()?.text()?;
        Some(id[..id.floor_char_boundary(MAX_ID_BYTES)].to_owned())
    }
    let event: Named<'_> = serde_json::from_str(event).ok()?;
    let inner = [event.action_log, event.document, event.data].into_iter().flatten();
    let inner = inner.filter(|part| part.get().starts_with('{')).find_map(|part| own(&serde_json::from_str(part.get()).ok()?));
    inner.or_else(|| own(&event))
}

/// The fields of an object, in their order, repeated ones too.
struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;
        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = Fields<'de>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some((name, value)) = map.next_entry::<Text<'de>, &'de RawValue>()? {
                    fields.push((name.0, value));
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(FieldsVisitor)
    }
}

/// Writes what is kept of an object.
fn object(json: &str, place: Place, depth: usize, out: &mut String) -> serde_json::Result<()> {
    fields(json, out, |name, value, out| {
        let plain = name.len() <= MAX_NAME && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
        if plain { keep(value, kind(name, place), place, depth + 1, out) } else { Ok(false) }
    })
}

/// Only what the fold reads of an action's input or output.
fn payload(json: &str, place: Place, depth: usize, out: &mut String) -> serde_json::Result<()> {
    fields(json, out, |name, value, out| match name {
        // A word; of anything else only the type.
        "channel" | "direction" => keep(value, Kind::Id, place, MAX_DEPTH, out),
        "documents" => keep(value, Kind::Objects, place, depth + 1, out),
        _ => Ok(false),
    })
}

/// Writes those fields of an object of which `keep` writes a value.
fn fields(json: &str, out: &mut String, keep: impl Fn(&str, &str, &mut String) -> serde_json::Result<bool>) -> serde_json::Result<()> {
    let Fields(fields) = serde_json::from_str(json)?;
    out.push('{');
    let mut separator = "";
    for (name, value) in fields {
        let before = out.len();
        *out += separator;
        *out += &serde_json::to_string(&*name)?;
        out.push(':');
        if keep(&name, value.get(), out)? {
            separator = ",";
        } else {
            out.truncate(before);
        }
    }
    out.push('}');
    Ok(())
}

/// Writes what is kept of a value; `false`: nothing. Under a name that the fold knows there is always something: a value of
/// the same type without its content, so that a field which stood twice, or has a wrong type, still does.
fn keep(json: &str, kind: Kind, place: Place, depth: usize, out: &mut String) -> serde_json::Result<bool> {
    if kind == Kind::Private {
        return Ok(false);
    }
    match json.as_bytes().first() {
        Some(b'"') => {
            let Scalar::Text(text) = Scalar::of(json)? else { return Ok(false) };
            let Some(kept) = text_of(&text, kind) else { return Ok(false) };
            *out += &serde_json::to_string(kept)?;
        }
        Some(b'-' | b'0'..=b'9') => match kind {
            // Cut behind a digit, it is a number still.
            Kind::Id | Kind::Text | Kind::Time | Kind::Number | Kind::ItemValue => {
                let kept = &json[..json.len().min(MAX_TEXT)];
                *out += kept.trim_end_matches(|c: char| !c.is_ascii_digit());
            }
            Kind::Unknown | Kind::Private => return Ok(false),
            // What is refused in the place of a list is refused for the same reason again.
            Kind::Objects | Kind::Payload | Kind::Checklist => *out += if is_finite(json) { "0" } else { "1e999" },
        },
        Some(b'{' | b'[') if kind == Kind::ItemValue => {
            let compact = event::compact(json)?;
            if compact.len() <= MAX_TEXT && serde_json::from_str::<serde_json::Value>(&compact).is_ok() {
                *out += &compact;
            } else {
                // The fold makes a text of it too, and any reader of JSON can read the letter.
                *out += &serde_json::to_string(&compact[..compact.floor_char_boundary(MAX_TEXT)])?;
            }
        }
        Some(b'{') if depth >= MAX_DEPTH => *out += "{}",
        Some(b'[') if depth >= MAX_DEPTH => *out += "[]",
        Some(b'{') if kind == Kind::Payload => payload(json, place, depth, out)?,
        Some(b'{') => {
            let unknown = place.unknown || !matches!(kind, Kind::Objects | Kind::Checklist);
            object(json, Place { unknown, checklist: place.checklist || kind == Kind::Checklist }, depth, out)?;
        }
        Some(b'[') => {
            let kind = if matches!(kind, Kind::Payload | Kind::Objects | Kind::Checklist) { kind } else { Kind::Unknown };
            let entries: Vec<&RawValue> = serde_json::from_str(json)?;
            out.push('[');
            for (position, entry) in entries.into_iter().enumerate() {
                if position > 0 {
                    out.push(',');
                }
                // Positions stay: errors name them.
                if !keep(entry.get(), kind, place, depth + 1, out)? {
                    *out += "null";
                }
            }
            out.push(']');
        }
        // null, true, false.
        _ => *out += json,
    }
    Ok(true)
}

/// What is kept of a text.
fn text_of(text: &str, kind: Kind) -> Option<&str> {
    match kind {
        Kind::Id | Kind::Text | Kind::ItemValue => Some(&text[..text.floor_char_boundary(MAX_TEXT)]),
        Kind::Time => {
            let time = Timestamp::without_annotations(text.trim_ascii());
            Some(if Timestamp::parse(time).is_some() || is_time(time) { time } else { "" })
        }
        Kind::Number => Some(if event::size(text).is_some() { text } else { "" }),
        Kind::Objects | Kind::Payload | Kind::Checklist => Some(""),
        Kind::Unknown => {
            let text = Timestamp::without_annotations(text);
            (is_uuid(text) || Timestamp::parse_iso(text).is_some() || is_word(text)).then_some(text)
        }
        Kind::Private => None,
    }
}

/// Whether a number can be held as a double.
fn is_finite(number: &str) -> bool {
    number.parse().is_ok_and(f64::is_finite)
}

/// Digits, and what stands between them in a time of any spelling.
fn is_time(text: &str) -> bool {
    text.len() <= 40 && text.bytes().any(|byte| byte.is_ascii_digit()) && text.bytes().all(|byte| b"0123456789-:+./TZ ".contains(&byte))
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36 && uuid::Uuid::try_parse(text).is_ok()
}

/// In capitals, as the sender's types and statuses.
fn is_word(text: &str) -> bool {
    text.len() <= MAX_NAME && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
}
