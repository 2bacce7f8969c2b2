//! The sender's JSON: one borrowed view per family of events, and nothing else knows its shape.
//!
//! Known fields must have their documented type; every optional one may be absent or `null`. Unknown fields
//! are skipped without being copied. The `input` and `output` of an action vary by its type, so there a
//! value of an unexpected type is passed over instead of refused.

mod action_log;
mod document;
mod lead_event;
mod object;
mod payload;
mod text;

use serde::Deserialize;

pub use action_log::{ActionLog, ActionLogEvent, Message};
pub use document::{DocumentExtracted, DocumentReceived};
pub use lead_event::{ChecklistItemUpdate, ItemValue, LeadData, LeadEvent, Patch};
pub use payload::Payload;
pub use text::{Size, Text};

use object::Object;
use text::text;

/// One event of the sender.
#[derive(Debug)]
pub enum Event<'a> {
    /// `action_log.completed` or `action_log.failed`.
    ActionLog(ActionLogEvent<'a>),
    /// `document.received`.
    DocumentReceived(DocumentReceived<'a>),
    /// `document.extracted`.
    DocumentExtracted(DocumentExtracted<'a>),
    /// `lead.created`.
    LeadCreated(LeadEvent<'a>),
    /// `lead.updated`.
    LeadUpdated(LeadEvent<'a>),
    /// `lead.completed`.
    LeadCompleted(LeadEvent<'a>),
    /// An event of a name that we do not know.
    Unknown(String),
}

/// The names of the events that are understood.
pub const KNOWN_EVENTS: [&str; 7] = [
    "action_log.completed",
    "action_log.failed",
    "document.received",
    "document.extracted",
    "lead.created",
    "lead.updated",
    "lead.completed",
];

impl Event<'_> {
    /// The event's name if it is a known one, else `unknown`: fit for a metric's label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::ActionLog(event) if &*event.event == KNOWN_EVENTS[1] => KNOWN_EVENTS[1],
            Self::ActionLog(_) => KNOWN_EVENTS[0],
            Self::DocumentReceived(_) => KNOWN_EVENTS[2],
            Self::DocumentExtracted(_) => KNOWN_EVENTS[3],
            Self::LeadCreated(_) => KNOWN_EVENTS[4],
            Self::LeadUpdated(_) => KNOWN_EVENTS[5],
            Self::LeadCompleted(_) => KNOWN_EVENTS[6],
            Self::Unknown(_) => "unknown",
        }
    }
}

/// Why a body is not an event, in words for the sender.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{error}", field.as_ref().map(|field| format!("{field}: ")).unwrap_or_default())]
pub struct Refusal {
    /// What is wrong.
    pub error: String,
    /// The path of the field, for example `actionLog.messages[0].id`.
    pub field: Option<String>,
}

impl Refusal {
    /// Something is wrong with one field.
    pub fn field(field: impl Into<String>, error: impl Into<String>) -> Self {
        Self { error: error.into(), field: Some(field.into()) }
    }

    /// Something is wrong with the whole body.
    pub fn body(error: impl Into<String>) -> Self {
        Self { error: error.into(), field: None }
    }
}

/// Reads one event from a request's body.
///
/// # Errors
/// The body is not UTF-8, not a JSON object, or a known field has the wrong type. Whether the required
/// fields are there is the fold's to say.
pub fn parse(body: &[u8]) -> Result<Event<'_>, Refusal> {
    // serde_json neither checks the UTF-8 of what it skips nor refuses an array in place of a struct.
    let body = std::str::from_utf8(body)
        .map_err(|error| Refusal::body(format!("the body is not UTF-8: bad byte at offset {}", error.valid_up_to())))?;
    if !body.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('{') {
        return Err(Refusal::body("the body is not a JSON object"));
    }
    // Nearly all events are action logs: one pass for them, a second one for the others and for errors.
    if let Ok(event) = serde_json::from_str::<ActionLogEvent<'_>>(body)
        && event.event.starts_with("action_log.")
        && KNOWN_EVENTS.contains(&&*event.event)
    {
        return Ok(Event::ActionLog(event));
    }
    let name = precise::<Envelope<'_>>(body)?.event.unwrap_or_default();
    Ok(match &*name {
        "" => return Err(Refusal::field("event", "required: a non-empty string")),
        "action_log.completed" | "action_log.failed" => Event::ActionLog(precise(body)?),
        "document.received" => Event::DocumentReceived(precise(body)?),
        "document.extracted" => Event::DocumentExtracted(precise(body)?),
        "lead.created" => Event::LeadCreated(precise(body)?),
        "lead.updated" => Event::LeadUpdated(precise(body)?),
        "lead.completed" => Event::LeadCompleted(precise(body)?),
        unknown => Event::Unknown(unknown.to_owned()),
    })
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default)]
    event: Option<Text<'a>>,
}

/// Parses with the path of the field that is wrong, at some cost.
fn precise<'a, T: Deserialize<'a>>(body: &'a str) -> Result<T, Refusal> {
    let mut json = serde_json::Deserializer::from_str(body);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        // A syntax error is one of the body; serde's path would name where it happened to be.
        match inner.classify() {
            serde_json::error::Category::Data if path != "." => Refusal::field(path, without_value(&inner)),
            serde_json::error::Category::Data => Refusal::body(without_value(&inner)),
            _ => Refusal::body(inner.to_string()),
        }
    })?;
    json.end().map_err(|error| Refusal::body(error.to_string()))?;
    Ok(value)
}

/// What serde expected, without what it found: that may be private, and an answer may be logged anywhere.
fn without_value(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(", expected ") {
        Some((_, expected)) => format!("wrong type: expected {expected}"),
        None => text,
    }
}
