//! The sender's JSON: one borrowed view per family of events, and nothing else knows its shape.
//!
//! Only the shape is checked here: what is an object, what an array. A scalar of a wrong type is kept as what it is, and so
//! is a number of any size: the fold says whether the event can do without it. Unknown fields are skipped without being
//! copied. The `input` and `output` of an action vary by its type, so there nothing is an error.

mod action_log;
mod body;
mod document;
mod lead_event;
mod object;
mod payload;
mod scalar;
mod text;

use serde::Deserialize;

pub use action_log::{ActionLog, ActionLogEvent, Message};
pub use body::Body;
pub use document::{DocumentExtracted, DocumentReceived};
pub use lead_event::{ChecklistItemUpdate, ItemValue, LeadData, LeadEvent, Patch};
pub use payload::{Payload, Tool};
pub use scalar::{Scalar, compact, size};
pub use text::Text;

use object::{List, Object};

/// One event of the sender.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // nearly all events are the largest, and none is kept
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
            Self::ActionLog(event) if known(&event.event) == Some(KNOWN_EVENTS[1]) => KNOWN_EVENTS[1],
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
/// The body is not a JSON object, or something that has to be an object or an array is none. Whether the required fields
/// are there is the fold's to say.
pub fn parse<'a>(body: &'a Body<'_>) -> Result<Event<'a>, Refusal> {
    body.read(parse_text)
}

fn parse_text(body: &str) -> Result<Event<'_>, Refusal> {
    // Nearly all events are action logs, and nearly all need one look at each value: one pass for them, others for the rest.
    let read = || serde_json::from_str::<ActionLogEvent<'_>>(body);
    let event = match scalar::quickly(read) {
        // What is no JSON is none for the others. Only a number that does not fit is: its digits are looked at next.
        Err(error) if !error.is_data() && !error.to_string().starts_with("number out of range") => {
            return Err(Refusal::body(error.to_string()));
        }
        Err(_) => read(),
        event => event,
    };
    if let Ok(event) = event
        && known(&event.event).is_some_and(|name| name.starts_with("action_log."))
    {
        return Ok(Event::ActionLog(event));
    }
    let Some(name) = precise::<Envelope<'_>>(body)?.event.filter(|name| name.text().is_some_and(|text| !text.is_empty())) else {
        return Err(Refusal::field("event", "required: a non-empty string"));
    };
    Ok(match known(&name) {
        Some("action_log.completed" | "action_log.failed") => Event::ActionLog(precise(body)?),
        Some("document.received") => Event::DocumentReceived(precise(body)?),
        Some("document.extracted") => Event::DocumentExtracted(precise(body)?),
        Some("lead.created") => Event::LeadCreated(precise(body)?),
        Some("lead.updated") => Event::LeadUpdated(precise(body)?),
        Some("lead.completed") => Event::LeadCompleted(precise(body)?),
        _ => Event::Unknown(name.text().unwrap_or_default().to_owned()),
    })
}

/// The documented name of an event, in whatever case of letters it was written.
fn known(name: &Scalar<'_>) -> Option<&'static str> {
    let name = name.text()?;
    KNOWN_EVENTS.into_iter().find(|known| known.eq_ignore_ascii_case(name))
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default)]
    event: Option<Scalar<'a>>,
}

/// Parses with the path of the field that is wrong, at some cost.
fn precise<'a, T: Deserialize<'a>>(body: &'a str) -> Result<T, Refusal> {
    let mut json = serde_json::Deserializer::from_str(body);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        let told = inner.to_string();
        if let Some((name, _)) = told.strip_prefix("duplicate field `").and_then(|rest| rest.split_once('`')) {
            let path = if path == "." { name.to_owned() } else { format!("{path}.{name}") };
            return Refusal::field(path, "stands twice: it is not clear which one counts");
        }
        // A syntax error is one of the body; serde's path would name where it happened to be. A number that serde_json
        // cannot hold is good JSON, but stands where an object or an array should.
        match inner.classify() {
            _ if told.starts_with("number out of range") && path != "." => Refusal::field(path, without_value(&inner)),
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
    let text = text.rsplit_once(" at line ").map_or(&*text, |(text, _)| text);
    match text.rsplit_once(", expected ") {
        Some((_, expected)) => format!("wrong type: expected {expected}"),
        None => text.to_owned(),
    }
}
