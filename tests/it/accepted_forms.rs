//! `docs/webhooks.md`: every row of its tables is sent to a server, which makes of it what the row says.

use leadfold::api::{Document, Lead};
use serde_json::{Value, json};

use crate::support::events::{SAMPLE_TIME, WORKSPACE, document_extracted, document_received, lead_updated, message_with_document};
use crate::support::server::{Answer, Server};
use crate::support::{Setup, fresh_id, is_about_now};

const PAGE: &str = include_str!("../../docs/webhooks.md");
/// Stands where the value of a row goes.
const PLACE: &str = "the value goes here";
/// What a profile field holds before the event of a row comes.
const BEFORE: &str = "before";

/// The cells of those tables whose columns have these names.
fn rows(columns: &str) -> Vec<Vec<&'static str>> {
    let mut rows = Vec::new();
    let mut wanted = false;
    for line in PAGE.lines() {
        if !line.starts_with('|') {
            wanted = false;
        } else if line == columns {
            wanted = true;
        } else if wanted && !line.starts_with("| ---") {
            rows.push(line.trim_matches('|').split(" | ").map(str::trim).collect());
        }
    }
    rows
}

/// The text of a cell, if it is code.
fn code(cell: &'static str) -> Option<&'static str> {
    cell.strip_prefix('`')?.strip_suffix('`')
}

/// The bytes of a value or a body: `<FF>` is a byte.
fn bytes(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('<') {
        let (byte, after) = after.split_once('>').expect("a byte");
        bytes.extend_from_slice(before.as_bytes());
        bytes.push(u8::from_str_radix(byte, 16).expect("a byte"));
        rest = after;
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}

/// A text in which characters may be written as escapes.
fn unescaped(text: &str) -> String {
    serde_json::from_str(&format!("\"{}\"", text.replace('"', "\\\""))).expect("a text")
}

/// A body with bytes in a place.
fn filled(body: &str, place: &str, filling: &[u8]) -> Vec<u8> {
    let (before, after) = body.split_once(place).expect("a place");
    [before.as_bytes(), filling, after.as_bytes()].concat()
}

/// An event that has the field of a row: of the lead, with a document of this id.
fn event(field: &str, lead_id: &str, document_id: &str) -> Value {
    match field.split(['.', '[']).next().expect("a name") {
        "document" => document_received(lead_id, document_id),
        "leadId" | "documentId" | "externalId" | "externalLeadId" | "status" | "summary" | "type" => {
            document_extracted(lead_id, document_id)
        }
        "data" => {
            let mut event = lead_updated(lead_id);
            event["workspaceId"] = json!(WORKSPACE);
            let mut item = event["data"]["checklistItems"][1].take();
            item["documents"][0]["documentId"] = json!(document_id);
            event["data"]["checklistItems"] = json!([item]);
            event
        }
        _ => {
            let mut event = message_with_document(lead_id, "a1", SAMPLE_TIME, document_id);
            event["actionLog"]["input"] = json!({"channel": "SMS", "direction": "INBOUND"});
            event["actionLog"]["messages"][0]["direction"] = json!("OUTBOUND");
            event
        }
    }
}

/// The body of a row: its value, as it is written, in its field.
fn body(field: &str, written: &str, lead_id: &str, document_id: &str) -> Vec<u8> {
    let mut event = event(field, lead_id, document_id);
    let pointer = format!("/{}", field.replace('[', "/").replace(']', "").replace('.', "/"));
    match event.pointer_mut(&pointer) {
        Some(value) => *value = json!(PLACE),
        None => {
            let (parent, name) = pointer.rsplit_once('/').expect("a field");
            event.pointer_mut(parent).expect("its object")[name] = json!(PLACE);
        }
    }
    filled(&event.to_string(), &format!("\"{PLACE}\""), &bytes(written))
}

/// What became of a field; `None`: it is absent.
fn seen(field: &str, lead: &Lead, document_id: &str) -> Option<String> {
    let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let time = |time: Option<prost_types::Timestamp>| {
        let time = time.filter(|time| !is_about_now(Some(time)))?;
        let time = chrono::DateTime::from_timestamp(time.seconds, time.nanos.cast_unsigned()).expect("a time");
        Some(time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true))
    };
    let activity = lead.latest_activity.clone().unwrap_or_default();
    let document = lead.documents.iter().find(|document| document.document_id == document_id).cloned().unwrap_or_default();
    let extraction = document.extraction.clone().unwrap_or_default();
    let profile = lead.profile.clone().unwrap_or_default();
    let item = lead.checklist_items.first().cloned().unwrap_or_default();
    let first_document = || lead.documents.first().map(|Document { document_id, .. }| document_id.clone());
    match field {
        "actionLog.id" => text(&activity.action_id),
        "actionLog.type" => text(&activity.r#type),
        "actionLog.status" => text(&activity.status),
        "actionLog.summary" => text(&activity.summary),
        "actionLog.error" => text(&activity.error),
        "actionLog.agentId" => text(&activity.agent_id),
        "actionLog.parentActionId" => text(&activity.parent_action_id),
        "actionLog.tool" => text(&activity.tool_name),
        "actionLog.completedAt" => time(activity.complete_time),
        "actionLog.messages" => Some(activity.message_count.to_string()),
        "actionLog.messages[0].id" | "document.messageId" => text(&document.message_id),
        "actionLog.messages[0].channel" => text(&lead.message_counts[0].channel),
        "actionLog.messages[0].direction" => text(&lead.message_counts[0].direction),
        "actionLog.messages[0].documents[0].id" | "data.checklistItems[0].documents[0].documentId" => first_document(),
        "actionLog.messages[0].documents[0].filename" | "document.filename" => text(&document.filename),
        "actionLog.messages[0].documents[0].mimeType" | "document.mimeType" => text(&document.mime_type),
        "actionLog.messages[0].documents[0].size" | "document.size" | "data.checklistItems[0].documents[0].size" => {
            document.size_bytes.map(|size| size.to_string())
        }
        "document.createdAt" => time(document.create_time),
        "externalId" => text(&document.external_id),
        "externalLeadId" | "data.externalId" => text(&lead.external_id),
        "status" => text(&extraction.status),
        "summary" => text(&extraction.summary),
        "type" => text(&extraction.document_type),
        "data.phoneNumber" => text(&profile.phone_number),
        "data.email" => text(&profile.email),
        "data.checklistItems[0].checklistItemId" => text(&item.checklist_item_id),
        "data.checklistItems[0].checklistItemCode" => text(&item.code),
        "data.checklistItems[0].status" => text(&item.status),
        "data.checklistItems[0].value" => text(&item.value),
        "data.checklistItems[0].updatedAt" => time(item.update_time),
        other => panic!("this test does not know where {other} is shown"),
    }
}

async fn unread(server: &Server, field: &str) -> f64 {
    server.metric(&format!("leadfold_unread_fields_total{{field=\"{}\"}}", field.replace("[0]", "[]"))).await
}

async fn letters(server: &Server) -> f64 {
    server.metric("leadfold_dead_letters_total{reason=\"refused\"}").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_field_is_read_as_the_page_says() {
    let server = Setup::embedded();
    let rows = rows("| field | written | read as |");
    assert!(rows.len() > 200, "{}", rows.len());
    for row in rows {
        let [field, written, expected] = row[..] else { panic!("{row:?}") };
        let (field, written) = (code(field).expect("a field"), code(written).expect("a value"));
        let (lead_id, document_id) = (fresh_id(), fresh_id());
        if field.starts_with("data.") {
            let before = json!({"event": "lead.updated", "workspaceId": WORKSPACE,
                "data": {"leadId": lead_id, "phoneNumber": BEFORE, "email": BEFORE, "externalId": BEFORE}});
            server.apply(&before).await;
        }
        let (unread_before, letters_before) = (unread(&server, field).await, letters(&server).await);
        let answer = server.post(body(field, written, &lead_id, &document_id)).await;
        let is = |status, outcome: &str| assert_eq!((answer.status, answer.outcome()), (status, outcome), "{row:?}: {answer:?}");
        if expected == "refused" {
            is(400, "");
            let is_whole = field.ends_with(".anything") || field.ends_with(".value");
            assert_eq!(answer.field(), if is_whole { "" } else { field }, "{row:?}: {answer:?}");
            assert_eq!(letters(&server).await, letters_before + 1.0, "{row:?}: it is kept");
            continue;
        }
        if field == "event" {
            is(200, code(expected).expect("an outcome"));
            continue;
        }
        is(200, "applied");
        if expected == "taken" {
            continue;
        }
        let lead = server.lead(&lead_id).await;
        let expected = code(expected).map(unescaped).or_else(|| (row[2] == "absent").then_some(String::new())).expect("what it is read as");
        assert_eq!(seen(field, &lead, &document_id).unwrap_or_default(), expected, "{row:?}: {lead:?}");
        // What cannot be read is metered; what says that there is nothing is not.
        let says_nothing = ["null", "NaN", "\"\""].contains(&written);
        let is_lost = ["", BEFORE, "SMS", "INBOUND"].contains(&&*expected) && !says_nothing || expected.contains('\u{fffd}');
        assert_eq!(unread(&server, field).await - unread_before, f64::from(u8::from(is_lost)), "{row:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_body_is_answered_as_the_page_says() {
    let server = Setup::embedded();
    let rows = rows("| body | answer |");
    assert!(rows.len() > 10, "{}", rows.len());
    for row in rows {
        let [body, answer] = row[..] else { panic!("{row:?}") };
        let event = message_with_document(&fresh_id(), "a1", SAMPLE_TIME, "d1").to_string();
        let body = code(body).expect("a body");
        let body = body.split("{…}").map(bytes).collect::<Vec<_>>().join(event.as_bytes());
        let got: Answer = server.post(body).await;
        match answer {
            "applied" => assert_eq!((got.status, got.outcome()), (200, "applied"), "{row:?}: {got:?}"),
            "refused" => assert_eq!((got.status, got.outcome()), (400, ""), "{row:?}: {got:?}"),
            other => panic!("{other}"),
        }
    }
}
