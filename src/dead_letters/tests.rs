//! Dead letters: what is kept, and what never is.

use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::event;
use crate::fold::{self, Folded};

const LIMITS: Limits = Limits { count: 10, bytes: 1 << 20, age: Duration::from_secs(86_400), keep_raw: false };

fn now() -> Receipt<'static> {
    Receipt { at: Timestamp::now(), workspace_id: None }
}

fn refusal() -> Refusal {
    Refusal::field("data.leadId", "required")
}

fn open(dir: &Path, limits: Limits) -> DeadLetters {
    DeadLetters::open(&dir.join("dead-letters.redb"), limits).expect("dead letters")
}

async fn keep(letters: &DeadLetters, body: &str) {
    letters.keep_event(body.as_bytes(), "lead.created", now(), reasons::REFUSED, &refusal()).await.expect("kept");
}

fn numbered(number: u64) -> String {
    json!({"event": "lead.created", "data": {"firstName": number.to_string()}}).to_string()
}

#[tokio::test]
async fn letters_are_there_after_a_restart_newest_first() {
    let dir = tempfile::tempdir().expect("a directory");
    let letters = open(dir.path(), LIMITS);
    for number in 1..=3 {
        keep(&letters, &numbered(number)).await;
    }
    keep(&letters, &numbered(2)).await;
    drop(letters);
    let letters = open(dir.path(), LIMITS);
    assert_eq!(DeadLetters::open(&dir.path().join("dead-letters.redb"), LIMITS).expect_err("in use").kind(), io::ErrorKind::ResourceBusy);
    let listed = letters.list(None, 10, true).await.expect("letters");
    let told: Vec<_> = listed.iter().map(|(letter, _)| (letter.id, letter.count, &*letter.field)).collect();
    assert_eq!(told, [(3, 1, "data.leadId"), (2, 2, "data.leadId"), (1, 1, "data.leadId")], "what comes again is counted");
    assert_eq!(letters.list(Some(3), 1, false).await.expect("letters")[0].0.id, 2);
    assert_eq!(serde_json::from_slice::<Value>(&listed[0].1).expect("JSON")["data"]["firstName"], "3");
    assert_eq!(letters.remove(vec![2, 9]).await.expect("removed"), [true, false]);
    assert!(letters.get(2).await.expect("read").is_none() && letters.get(3).await.expect("read").is_some());
}

#[tokio::test]
async fn the_oldest_give_way() {
    let dir = tempfile::tempdir().expect("a directory");
    let letters = open(dir.path(), LIMITS);
    for number in 1..=15 {
        keep(&letters, &numbered(number)).await;
    }
    let ids: Vec<_> = letters.list(None, 100, false).await.expect("letters").iter().map(|(letter, _)| letter.id).collect();
    assert_eq!(ids, (6..=15).rev().collect::<Vec<_>>());

    let dir = tempfile::tempdir().expect("a directory");
    let letters = open(dir.path(), Limits { bytes: 200, ..LIMITS });
    for number in 1..=10 {
        keep(&letters, &numbered(number)).await;
    }
    let kept: u64 = letters.list(None, 100, false).await.expect("letters").iter().map(|(letter, _)| letter.payload_bytes).sum();
    assert!((100..=200).contains(&kept), "{kept}");
    keep(&letters, &json!({"event": "lead.created", "data": {"firstName": "x".repeat(500)}}).to_string()).await;
    let newest = letters.list(None, 1, true).await.expect("letters").remove(0);
    assert_eq!((newest.0.kind, newest.1.len()), (PayloadKind::None, 0), "one that is too large is told all the same");
}

#[tokio::test]
async fn what_is_too_old_is_gone() {
    let dir = tempfile::tempdir().expect("a directory");
    let letters = std::sync::Arc::new(open(dir.path(), LIMITS));
    let at = Timestamp::from_micros(Timestamp::now().micros() - 86_401_000_000);
    let old = Receipt { at, workspace_id: None };
    letters.keep_event(numbered(1).as_bytes(), "lead.created", old, reasons::REFUSED, &refusal()).await.expect("kept");
    keep(&letters, &numbered(2)).await;
    let ids: Vec<_> = letters.list(None, 100, false).await.expect("letters").iter().map(|(letter, _)| letter.id).collect();
    assert_eq!(ids, [2, 1], "without the store's clock nothing is known to be too old");
    // No letter comes meanwhile: it is time alone.
    tokio::spawn(std::sync::Arc::clone(&letters).expire(Clock::steady(None)));
    let count = async || letters.sweep(|| Which::OfLead("none".to_owned())).await.expect("letters").earliest;
    let began = std::time::Instant::now();
    while count().await.is_none_or(|earliest| earliest == at) {
        assert!(began.elapsed() < Duration::from_secs(10), "it stays");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let ids: Vec<_> = letters.list(None, 100, false).await.expect("letters").iter().map(|(letter, _)| letter.id).collect();
    assert_eq!(ids, [2]);
}

#[tokio::test]
async fn letters_of_one_lead_are_removed_however_many_there_are() {
    let dir = tempfile::tempdir().expect("a directory");
    let letters = open(dir.path(), Limits { count: 100_000, bytes: 64 << 20, ..LIMITS });
    let of =
        |lead: &str, number: usize| json!({"event": "lead.updated", "data": {"leadId": lead, "firstName": number.to_string()}}).to_string();
    // More than one sweep looks at, so that all go on at the same place.
    let bodies: Vec<_> = (0..5000).map(|number| of(if number % 2 == 0 { "one" } else { "other" }, number)).collect();
    for some in bodies.chunks(500) {
        futures::future::join_all(some.iter().map(|body| keep(&letters, body))).await;
    }
    assert_eq!(letters.remove_lead("one").await.expect("removed"), 2500);
    assert_eq!(letters.remove_lead("one").await.expect("removed"), 0);
    let left = letters.list(None, 100_000, false).await.expect("letters");
    assert!(left.len() == 2500 && left.iter().all(|(letter, _)| letter.lead_id == "other"));
    assert_eq!(letters.remove_lead("other").await.expect("removed"), 2500);
}

#[tokio::test]
async fn bytes_that_are_no_event_are_kept_only_when_asked_for() {
    for (keep_raw, kind, kept) in [(false, PayloadKind::None, &b""[..]), (true, PayloadKind::Raw, b"{\"event\": secret")] {
        let dir = tempfile::tempdir().expect("a directory");
        let letters = open(dir.path(), Limits { keep_raw, ..LIMITS });
        keep(&letters, "{\"event\": secret").await;
        let (letter, payload) = letters.list(None, 1, true).await.expect("letters").remove(0);
        assert_eq!((letter.kind, letter.size, &*payload), (kind, 16, kept));
    }
}

/// Every event that can be folded folds to the same without what is redacted.
#[test]
fn the_fold_misses_nothing_in_a_letter() {
    let lead = "4cc8af99-b313-4c1f-b98b-009f38a4721a";
    let sample: Value = serde_json::from_str(include_str!("../../tests/fixtures/action_log.completed.json")).expect("JSON");
    let events = [
        sample,
        json!({"event": "action_log.failed", "workspaceId": "w", "occurredAt": "2025-10-31T08:00:00.25+02:00", "actionLog": {
            "id": "a b/ü", "type": "TOOL_CALL", "status": "FAILED", "leadId": "lead \u{1F600}", "error": "no answer", "agentId": "agent-7",
            "tool": {"id": "t", "name": "credit check"}, "parentActionId": "p", "summary": "s", "messages": [null, {"id": 0.to_string()}],
            "output": {"documents": [{"id": "d1", "filename": "a b.pdf", "mimeType": "x/y", "size": 1000.0}, "no"], "channel": "FAX"},
            "input": ["what", "ever"]}}),
        json!({"event": "document.received", "workspaceId": "w", "document": {"id": "d", "leadId": lead, "filename": "bank statement.pdf",
            "size": 5, "createdAt": "2025-10-31T08:00:00Z", "messageId": "m", "metadata": {"note": "n"}}}),
        json!({"event": "document.extracted", "workspaceId": "w", "leadId": lead, "externalLeadId": "crm 1", "documentId": "d",
            "externalId": "crm 2", "status": "completed", "summary": "One sentence.", "type": "Bank Statement"}),
        json!({"event": "lead.updated", "data": {"leadId": lead, "email": "ada@example.com", "website": null, "firstName": "Ada",
            "phoneNumber": "+1 555 0100", "businessName": "A & B", "source": "inbound-email", "checklistItems": [
            {"checklistItemId": "i", "checklistItemCode": "ADDRESS", "value": {"city": "São Paulo", "zip": 1}, "status": "COMPLETED",
             "updatedAt": "2025-11-01T10:00:00Z", "alternateValues": ["x"]},
            {"checklistItemId": "j", "value": "free text", "documents": [{"documentId": "d", "externalId": "e", "filename": "f g"}]}]}}),
    ];
    for event in events {
        let body = event.to_string();
        let redacted = redact::event(body.as_bytes()).expect("an object");
        let receipt =
            Receipt { at: Timestamp::from_millis(1_800_000_000_000), workspace_id: Some("w").filter(|_| event["workspaceId"].is_null()) };
        let folded = |body: &str| match fold::fold(&event::parse(&event::Body::new(body.as_bytes())).expect("an event"), receipt)
            .expect("a change")
        {
            Folded::Change(change) => *change,
            Folded::UnknownEvent(name) => panic!("{name}"),
        };
        let change = folded(&body);
        assert_eq!(folded(&redacted.json), change, "{}", redacted.json);
        assert_eq!(redacted.lead_id, change.lead_id);
    }
}

#[test]
fn what_is_never_stored_is_in_no_letter() {
    const SECRET: &str = "secret-3f1c9d";
    let body = json!({
        "event": "action_log.completed", "occurredAt": SECRET, "unknown": SECRET, "ssn": 123_456_789, "number": "123-45-6789",
        SECRET.repeat(10): "COMPLETED", "a key with blanks": "COMPLETED",
        "metadata": {"from": {"name": SECRET, "id": SECRET}},
        "action": {"id": "moved", "name": SECRET, "summary": SECRET, "email": SECRET, "at": "2025-10-31T08:00:00Z", "state": "DONE",
            "messages": [{"id": "m", "body": SECRET, "text": [SECRET], "lines": [[SECRET]]}], "value": SECRET},
        "actionLog": {
            "id": "a", "completedAt": SECRET, "leadId": "4cc8af99-b313-4c1f-b98b-009f38a4721a", "value": SECRET,
            "input": {"channel": {"x": SECRET}, "direction": "INBOUND", "documents": SECRET, "subject": SECRET, "id": SECRET},
            "output": [{"reply": SECRET}],
            "messages": [SECRET, {"id": "m", "subject": SECRET, "body": SECRET, "documents": [SECRET, {"id": "d", "size": SECRET,
                "signedUrl": format!("https://files.example/?token={SECRET}")}]}],
            "tool": SECRET,
        },
        "data": {"checklistItems": [{"alternateValues": [SECRET], "documents": [{"validationResult": {"reason": SECRET}}]}]},
        "classification": {"id": SECRET}, "extractionResult": {"status": SECRET},
    });
    let kept = redact::event(body.to_string().as_bytes()).expect("an object").json;
    assert!(!kept.contains(SECRET) && !kept.contains("6789"), "{kept}");
    let kept: Value = serde_json::from_str(&kept).expect("JSON");
    assert_eq!(kept["actionLog"]["messages"][1]["documents"][1]["id"], "d");
    assert_eq!(
        kept["action"],
        json!({"id": "moved", "at": "2025-10-31T08:00:00Z", "state": "DONE", "messages": [{"id": "m", "text": [null], "lines": [[null]]}]})
    );
    assert_eq!(kept["actionLog"]["input"], json!({"direction": "INBOUND", "channel": {}, "documents": ""}));
}
