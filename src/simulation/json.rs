//! The platform's events, as it writes them: with all that must never be kept in them.

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};

/// A document that somebody sent.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub(super) id: String,
    pub(super) kind: &'static str,
    pub(super) filename: String,
    pub(super) mime_type: &'static str,
    pub(super) size: u64,
    pub(super) action_id: String,
    pub(super) message_id: Option<String>,
}

impl Sent {
    pub(super) fn within_a_message(&self) -> Value {
        json!({"id": self.id, "filename": self.filename, "mimeType": self.mime_type, "size": self.size})
    }
}

/// An action that has ended.
#[derive(Clone, Debug, Default)]
pub(super) struct Action {
    pub(super) id: String,
    pub(super) kind: &'static str,
    pub(super) summary: String,
    pub(super) error: Option<&'static str>,
    pub(super) input: Value,
    pub(super) messages: Vec<Value>,
    pub(super) tool: Option<(&'static str, &'static str)>,
}

pub(super) fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

pub(super) fn action(action: &Action, lead_id: &str, workspace_id: &str, at: DateTime<Utc>) -> Value {
    let failed = action.error.is_some();
    let mut log = json!({
        "id": action.id,
        "type": action.kind,
        "status": if failed { "FAILED" } else { "COMPLETED" },
        "leadId": lead_id,
        "summary": action.summary,
        "input": action.input,
        "output": null,
        "messages": action.messages,
        "completedAt": time(at),
    });
    if let Some(error) = action.error {
        log["error"] = json!(error);
    }
    if let Some((id, name)) = action.tool {
        log["tool"] = json!({"id": id, "name": name});
        log["agentId"] = json!("agent-underwriting");
    }
    let event = if failed { "action_log.failed" } else { "action_log.completed" };
    json!({"event": event, "actionLog": log, "workspaceId": workspace_id})
}

pub(super) fn message(id: &str, channel: &str, direction: &str, subject: &str, documents: &[Sent]) -> Value {
    let documents: Vec<_> = documents.iter().map(Sent::within_a_message).collect();
    let subject = (channel == "EMAIL").then_some(subject);
    json!({"id": id, "channel": channel, "direction": direction, "subject": subject, "body": "(simulated)", "documents": documents})
}

pub(super) fn document_received(document: &Sent, lead_id: &str, workspace_id: &str, at: DateTime<Utc>) -> Value {
    json!({
        "event": "document.received",
        "workspaceId": workspace_id,
        "document": {
            "id": document.id,
            "leadId": lead_id,
            "filename": document.filename,
            "mimeType": document.mime_type,
            "size": document.size,
            "createdAt": time(at),
            "messageId": document.message_id,
            "metadata": null,
            "signedUrl": format!("https://files.example.com/{}?signature=simulated", document.id),
        },
    })
}

pub(super) fn document_extracted(document: &Sent, lead_id: &str, workspace_id: &str, readable: bool) -> Value {
    let summary = if readable {
        format!("A {} that can be read well.", document.kind.to_lowercase())
    } else {
        "The picture is too dark to be read.".to_owned()
    };
    json!({
        "event": "document.extracted",
        "workspaceId": workspace_id,
        "leadId": lead_id,
        "externalLeadId": null,
        "documentId": document.id,
        "externalId": null,
        "status": if readable { "completed" } else { "failed" },
        "parentActionId": document.action_id,
        "summary": summary,
        "type": readable.then_some(document.kind),
        "classification": {"matched": []},
        "extractionResult": {"simulated": true},
    })
}
