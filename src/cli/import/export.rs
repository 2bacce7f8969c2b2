//! An action log of the platform's REST export, as the webhook event that it was or would have been.

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::event::{Refusal, Text};

/// Whose history it is: the export doesn't say.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    pub(super) lead_id: String,
    pub(super) workspace_id: String,
}

/// What becomes of an action log.
#[derive(Debug)]
pub(super) enum Made {
    /// This event.
    Event(Vec<u8>),
    /// Nothing: the platform sends no event for an action of this status. When it ends, its own event will come.
    Unfinished(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Log<'a> {
    #[serde(borrow, default)]
    status: Option<Text<'a>>,
    #[serde(borrow, default)]
    lead_id: Option<Text<'a>>,
    #[serde(borrow, default)]
    created_at: Option<Text<'a>>,
}

/// Whether a record is an action log rather than a webhook event: it names no event. `alone`: no array of such things is around it,
/// so it has to have what every action log has.
pub(super) fn is_action_log(record: &[u8], alone: bool) -> bool {
    #[derive(Deserialize)]
    struct Fields {
        event: Option<IgnoredAny>,
        #[serde(rename = "type")]
        kind: Option<IgnoredAny>,
        status: Option<IgnoredAny>,
    }
    let fields: Option<Fields> = record.trim_ascii_start().starts_with(b"{").then(|| serde_json::from_slice(record).ok()).flatten();
    fields.is_some_and(|fields| fields.event.is_none() && (!alone || fields.kind.is_some() && fields.status.is_some()))
}

/// Makes the event.
pub(super) fn event(log: &[u8], owner: &Owner) -> Result<Made, Refusal> {
    let text = std::str::from_utf8(log).map_err(|error| Refusal::body(format!("not UTF-8: bad byte at offset {}", error.valid_up_to())))?;
    let text = text.trim();
    let Some(rest) = text.strip_prefix('{') else { return Err(Refusal::body("not a JSON object")) };
    // serde's own words may quote what it found, which may be private.
    let read: Log<'_> = serde_json::from_str(text).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => Refusal::body("status, leadId or createdAt is no string"),
        _ => Refusal::body(error.to_string()),
    })?;
    let event = match read.status.as_deref() {
        Some("COMPLETED") => "action_log.completed",
        Some("FAILED") => "action_log.failed",
        Some("") | None => return Err(Refusal::field("status", "required: a non-empty string")),
        // Passing it over would lose it.
        Some(other) if ["COMPLETED", "FAILED"].iter().any(|status| status.eq_ignore_ascii_case(other)) => {
            return Err(Refusal::field("status", "not in capitals, as the platform writes it: is this its export?"));
        }
        Some(other) => return Ok(Made::Unfinished(other.to_owned())),
    };
    let mut made = format!("{{\"event\":\"{event}\",\"workspaceId\":{}", quoted(&owner.workspace_id));
    // Where an action log doesn't tell when it was completed, its creation is nearer to it than today.
    if let Some(created_at) = read.created_at.as_deref().filter(|time| !time.is_empty()) {
        made += &format!(",\"occurredAt\":{}", quoted(created_at));
    }
    made += ",\"actionLog\":{";
    match read.lead_id.as_deref() {
        Some(lead_id) if lead_id == owner.lead_id => {}
        Some(_) => return Err(Refusal::field("leadId", format!("is another lead than {}", owner.lead_id))),
        None if text.contains("\"leadId\"") && has_null_lead(text) => {
            return Err(Refusal::field("leadId", "is null: leave it out, or name the lead"));
        }
        None => made += &format!("\"leadId\":{},", quoted(&owner.lead_id)),
    }
    made += rest;
    made.push('}');
    Ok(Made::Event(made.into_bytes()))
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Whether the log itself, and nothing within it, says `"leadId": null`: a second one cannot stand beside it.
fn has_null_lead(text: &str) -> bool {
    let fields: Result<std::collections::HashMap<String, IgnoredAny>, _> = serde_json::from_str(text);
    fields.is_ok_and(|fields| fields.contains_key("leadId"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(log: &str) -> Result<serde_json::Value, String> {
        let owner = Owner { lead_id: "l\"1".to_owned(), workspace_id: "w".to_owned() };
        match event(log.as_bytes(), &owner) {
            Ok(Made::Event(event)) => Ok(serde_json::from_slice(&event).expect("JSON")),
            Ok(Made::Unfinished(status)) => Err(status),
            Err(refusal) => Err(refusal.to_string()),
        }
    }

    #[test]
    fn a_finished_action_becomes_its_event() {
        let event =
            made(r#" {"id":"a","status":"COMPLETED","createdAt":"2025-01-01T00:00:00Z","input":{"leadId":"x"}} "#).expect("an event");
        assert_eq!(event["event"], "action_log.completed");
        assert_eq!((&event["actionLog"]["leadId"], &event["workspaceId"]), (&"l\"1".into(), &"w".into()));
        assert_eq!((&event["occurredAt"], &event["actionLog"]["input"]["leadId"]), (&"2025-01-01T00:00:00Z".into(), &"x".into()));
        assert_eq!(made(r#"{"id":"a","status":"FAILED","leadId":"l\"1"}"#).expect("an event")["event"], "action_log.failed");
    }

    #[test]
    fn an_unfinished_one_becomes_nothing() {
        for status in ["PENDING", "CANCELLED", "AWAITING_APPROVAL"] {
            assert_eq!(made(&format!(r#"{{"id":"a","status":"{status}"}}"#)), Err(status.to_owned()));
        }
    }

    #[test]
    fn what_is_none_is_refused() {
        for (log, told) in [
            ("[]", "not a JSON object"),
            ("{}", "status: required: a non-empty string"),
            (r#"{"status":"COMPLETED""#, "EOF while parsing an object at line 1 column 21"),
            (r#"{"status":7}"#, "status, leadId or createdAt is no string"),
            (r#"{"status":"completed"}"#, "status: not in capitals, as the platform writes it: is this its export?"),
            (r#"{"status":"COMPLETED","leadId":"other"}"#, "leadId: is another lead than l\"1"),
            (r#"{"status":"COMPLETED","leadId":null}"#, "leadId: is null: leave it out, or name the lead"),
        ] {
            assert_eq!(made(log), Err(told.to_owned()), "{log}");
        }
    }
}
