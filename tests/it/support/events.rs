//! The sender's events, as it sends them: with everything in them that must never be kept.

use serde_json::{Value, json};

/// Stands in every field that is never stored: subjects, bodies, payloads, results, signed URLs.
pub const CANARY: &str = "canary-3f1c9d-must-never-be-seen-again";
/// The workspace of most events.
pub const WORKSPACE: &str = "6048d78a-584a-4f1e-9e39-e011ca4cc48c";
/// The lead of the specification's sample.
pub const SAMPLE_LEAD: &str = "4cc8af99-b313-4c1f-b98b-009f38a4721a";
/// When the specification's sample happened.
pub const SAMPLE_TIME: &str = "2025-10-30T20:07:17.553Z";

/// The specification's sample, to the letter.
pub const SAMPLE: &str = include_str!("../../fixtures/action_log.completed.json");

/// The specification's sample, to be changed.
pub fn sample() -> Value {
    serde_json::from_str(SAMPLE).expect("the sample is JSON")
}

/// The specification's sample on another lead.
pub fn sample_on(lead_id: &str) -> Value {
    let mut event = sample();
    event["actionLog"]["leadId"] = json!(lead_id);
    event
}

/// `action_log.completed`: an e-mail that came in at `completed_at`, without documents.
pub fn message(lead_id: &str, action_id: &str, completed_at: &str) -> Value {
    json!({
        "event": "action_log.completed",
        "actionLog": {
            "id": action_id,
            "type": "MESSAGE",
            "status": "COMPLETED",
            "leadId": lead_id,
            "summary": format!("Incoming email: {action_id}"),
            "input": {
                "channel": "EMAIL",
                "direction": "INBOUND",
                "metadata": {"agentMailData": {"to": [CANARY], "from": CANARY, "subject": CANARY}},
            },
            "output": {"reply": CANARY},
            "messages": [{
                "id": format!("message-of-{action_id}"),
                "channel": "EMAIL",
                "direction": "INBOUND",
                "subject": CANARY,
                "body": format!("<div dir=\"ltr\">{CANARY}</div>\n"),
                "documents": [],
            }],
            "completedAt": completed_at,
        },
        "workspaceId": WORKSPACE,
    })
}

/// `action_log.completed`: an e-mail that brought a document.
pub fn message_with_document(lead_id: &str, action_id: &str, completed_at: &str, document_id: &str) -> Value {
    let mut event = message(lead_id, action_id, completed_at);
    event["actionLog"]["messages"][0]["documents"] = json!([{
        "id": document_id,
        "filename": format!("{document_id}.pdf"),
        "mimeType": "application/pdf",
        "size": 1000,
        "signedUrl": format!("https://files.example/{document_id}?token={CANARY}"),
    }]);
    event
}

/// `action_log.failed`: a tool call that went wrong.
pub fn failed(lead_id: &str, action_id: &str, completed_at: &str) -> Value {
    json!({
        "event": "action_log.failed",
        "actionLog": {
            "id": action_id,
            "type": "TOOL_CALL",
            "status": "FAILED",
            "leadId": lead_id,
            "summary": "Credit check",
            "error": "The credit bureau did not answer",
            "agentId": "agent-7",
            "tool": {"id": "tool-1", "name": "credit_check"},
            "input": {"ssn": CANARY},
            "output": null,
            "messages": null,
            "completedAt": completed_at,
        },
        "workspaceId": WORKSPACE,
    })
}

/// `action_log.completed`: the same tool call, after a retry that went well.
pub fn retried(lead_id: &str, action_id: &str, completed_at: &str) -> Value {
    let mut event = failed(lead_id, action_id, completed_at);
    event["event"] = json!("action_log.completed");
    event["actionLog"]["status"] = json!("COMPLETED");
    event["actionLog"]["error"] = json!(null);
    event["actionLog"]["output"] = json!({"score": CANARY});
    event
}

/// `document.received`.
pub fn document_received(lead_id: &str, document_id: &str) -> Value {
    json!({
        "event": "document.received",
        "workspaceId": WORKSPACE,
        "document": {
            "id": document_id,
            "leadId": lead_id,
            "filename": "bank statement.pdf",
            "mimeType": "application/pdf",
            "size": 48_213,
            "createdAt": "2025-10-31T08:00:00.25+02:00",
            "messageId": "message-9",
            "metadata": {"note": CANARY},
            "signedUrl": format!("https://files.example/{document_id}?X-Amz-Signature={CANARY}"),
        },
    })
}

/// `document.extracted`.
pub fn document_extracted(lead_id: &str, document_id: &str) -> Value {
    json!({
        "event": "document.extracted",
        "workspaceId": WORKSPACE,
        "leadId": lead_id,
        "externalLeadId": "crm-lead-1",
        "documentId": document_id,
        "externalId": "crm-document-1",
        "status": "completed",
        "parentActionId": "action-of-the-upload",
        "summary": "A bank statement of October.",
        "type": "Bank Statement",
        "classification": {"matched": [{"checklistItemId": CANARY}]},
        "extractionResult": {"account": CANARY, "lines": [{"text": CANARY}]},
    })
}

/// `lead.created`: names no workspace.
pub fn lead_created(lead_id: &str) -> Value {
    json!({
        "event": "lead.created",
        "data": {
            "leadId": lead_id,
            "externalId": "crm-lead-1",
            "firstName": "Ada",
            "middleName": null,
            "lastName": "Lovelace",
            "phoneNumber": "+1 555 0100",
            "email": "ada@example.com",
            "businessName": "Analytical Engines",
            "website": "https://engines.example",
            "source": "inbound-email",
            "internalNote": CANARY,
        },
    })
}

/// `lead.updated`: a sparse patch, which sets the e-mail address, clears the website and answers two items.
pub fn lead_updated(lead_id: &str) -> Value {
    json!({
        "event": "lead.updated",
        "data": {
            "leadId": lead_id,
            "email": "ada@engines.example",
            "website": null,
            "checklistItems": [
                {
                    "checklistItemId": "item-1",
                    "checklistItemCode": "BUSINESS_ADDRESS",
                    "value": {"city": "London", "zip": "W1"},
                    "alternateValues": [CANARY],
                    "status": "COMPLETED",
                    "updatedAt": "2025-11-01T10:00:00Z",
                },
                {
                    "checklistItemId": "item-2",
                    "checklistItemCode": "BANK_STATEMENTS",
                    "status": "NEEDS_REVIEW",
                    "updatedAt": "2025-11-01T11:00:00Z",
                    "documents": [{
                        "documentId": "document-of-item-2",
                        "externalId": "crm-document-2",
                        "filename": "october.pdf",
                        "mimeType": "application/pdf",
                        "size": 2000.0,
                        "validationResult": {"reason": CANARY},
                    }],
                },
            ],
        },
    })
}

/// `lead.completed`.
pub fn lead_completed(lead_id: &str) -> Value {
    json!({"event": "lead.completed", "data": {"leadId": lead_id, "checklistItems": null, "notes": CANARY}})
}
