//! What is kept of an event that was refused: all that the fold may need, and nothing that is never stored.
//!
//! What a field holds cannot be known when the event is not what was expected, so each is judged by its name and its
//! shape. A name that the fold knows keeps a value of the kind that belongs there. Under any other name only that is
//! kept which cannot be a text: ids (UUIDs), times, words in capitals. Of `input` and `output` only the fields that
//! the fold reads are kept. Everything else goes: bodies, subjects, results, links.

use serde_json::{Map, Value};

use crate::fold::MAX_ID_BYTES;
use crate::time::Timestamp;

/// The most that is kept of a text.
const MAX_TEXT: usize = 8 * 1024;
/// A name longer than this is no field's.
const MAX_NAME: usize = 64;

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

/// `None`: it is no JSON object.
pub fn event(body: &[u8]) -> Option<Redacted> {
    let body: Map<String, Value> = serde_json::from_slice(body).ok()?;
    let kept = Value::Object(object(body, Place::default()));
    let lead_id = ["/actionLog/leadId", "/document/leadId", "/data/leadId", "/leadId"];
    let lead_id = lead_id.iter().find_map(|path| kept.pointer(path)?.as_str()).unwrap_or_default();
    Some(Redacted { lead_id: lead_id[..lead_id.floor_char_boundary(MAX_ID_BYTES)].to_owned(), json: kept.to_string() })
}

fn object(fields: Map<String, Value>, place: Place) -> Map<String, Value> {
    let kept = fields.into_iter().filter_map(|(name, value)| {
        let plain = name.len() <= MAX_NAME && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
        let kept = if plain { keep(value, kind(&name, place), place) } else { None };
        Some((name, kept?))
    });
    kept.collect()
}

/// What is kept of a value; `None`: nothing.
fn keep(value: Value, kind: Kind, place: Place) -> Option<Value> {
    match (value, kind) {
        (_, Kind::Private) => None,
        (value @ (Value::Null | Value::Bool(_)), _) => Some(value),
        (value @ Value::Number(_), Kind::Id | Kind::Text | Kind::Time | Kind::Number | Kind::ItemValue) => Some(value),
        (Value::Number(_), _) => None,
        (Value::String(text), Kind::Id | Kind::Text | Kind::ItemValue) => {
            Some(Value::String(text[..text.floor_char_boundary(MAX_TEXT)].to_owned()))
        }
        (Value::String(text), kind) => {
            let fits = match kind {
                Kind::Time => is_time(&text),
                Kind::Number => text.parse::<f64>().is_ok(),
                Kind::Unknown => is_uuid(&text) || Timestamp::parse(&text).is_some() || is_word(&text),
                _ => false,
            };
            fits.then_some(Value::String(text))
        }
        (value, Kind::ItemValue) => (value.to_string().len() <= MAX_TEXT).then_some(value),
        (Value::Object(fields), Kind::Payload) => Some(Value::Object(payload(fields, place))),
        (Value::Object(fields), kind) => {
            let unknown = place.unknown || !matches!(kind, Kind::Objects | Kind::Checklist);
            Some(Value::Object(object(fields, Place { unknown, checklist: place.checklist || kind == Kind::Checklist })))
        }
        (Value::Array(items), kind) => {
            let kind = if matches!(kind, Kind::Payload | Kind::Objects | Kind::Checklist) { kind } else { Kind::Unknown };
            // Positions stay: errors name them.
            Some(Value::Array(items.into_iter().map(|item| keep(item, kind, place).unwrap_or(Value::Null)).collect()))
        }
    }
}

/// Only what the fold reads of an action's input or output.
fn payload(fields: Map<String, Value>, place: Place) -> Map<String, Value> {
    let kept = fields.into_iter().filter_map(|(name, value)| {
        let kept = match &*name {
            "channel" | "direction" if value.is_string() => keep(value, Kind::Id, place),
            "documents" if value.is_array() => keep(value, Kind::Objects, place),
            _ => None,
        };
        Some((name, kept?))
    });
    kept.collect()
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
