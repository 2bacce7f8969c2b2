//! Every field of the specification's sample, taken away: the required ones are missed, the others are not.

use leadfold::api::{GetLeadRequest, ListLeadsRequest};
use serde_json::{Value, json};
use tonic::Code;

use crate::support::events::{SAMPLE_LEAD, WORKSPACE, sample, sample_on};
use crate::support::{Setup, fresh_id, on_both_stores};

on_both_stores!(
    an_optional_field_may_be_absent_or_null_at_every_level,
    everything_optional_may_be_absent_at_once,
    a_required_field_is_missed_by_its_path,
    a_wrong_type_costs_the_event_only_in_a_container,
);

/// The required fields, as JSON pointers, parents first.
const REQUIRED: [&str; 7] =
    ["/event", "/workspaceId", "/actionLog", "/actionLog/id", "/actionLog/type", "/actionLog/status", "/actionLog/leadId"];

async fn an_optional_field_may_be_absent_or_null_at_every_level(server: Setup) {
    let mut pointers = Vec::new();
    walk(&sample(), "", &mut pointers);
    pointers.retain(|pointer| !REQUIRED.contains(&&**pointer));
    assert_eq!(pointers.len(), 25, "the optional fields of the sample, entries of its arrays included: {pointers:?}");
    for pointer in &pointers {
        for change in [remove, set_null] {
            let lead_id = fresh_id();
            let mut event = sample_on(&lead_id);
            change(&mut event, pointer);
            let answer = server.post(event.to_string()).await;
            assert_eq!((answer.status, answer.outcome()), (200, "applied"), "{pointer} of {event}: {answer:?}");

            let lead = server.lead(&lead_id).await;
            let without_message = ["/actionLog/messages", "/actionLog/messages/0"].contains(&&**pointer);
            let without_document =
                without_message || ["", "/0", "/0/id"].iter().any(|rest| pointer == &format!("/actionLog/messages/0/documents{rest}"));
            assert_eq!(lead.activity_counts.len(), 1, "{pointer}");
            assert_eq!(lead.message_count, u64::from(!without_message), "{pointer}: {lead:?}");
            assert_eq!(lead.document_count, u64::from(!without_document), "{pointer}: {lead:?}");
            // The message's own channel, or else that of its action.
            let channel = lead.message_counts.first().map_or("EMAIL", |count| &count.channel);
            assert_eq!(channel, "EMAIL", "{pointer}");
        }
    }
}

async fn everything_optional_may_be_absent_at_once(server: Setup) {
    let lead_id = fresh_id();
    let event = json!({
        "event": "action_log.completed",
        "workspaceId": WORKSPACE,
        "actionLog": {"id": "a1", "type": "SYSTEM_NOTE", "status": "COMPLETED", "leadId": lead_id},
    });
    server.apply(&event).await;
    let lead = server.lead(&lead_id).await;
    let activity = lead.latest_activity.expect("the activity");
    // Received before it was written, on the same clock.
    let (received, written) = (activity.complete_time.expect("a time"), lead.update_time.expect("a time"));
    let millis = |time: &prost_types::Timestamp| time.seconds * 1000 + i64::from(time.nanos / 1_000_000);
    let between = millis(&written) - millis(&received);
    assert!((0..2000).contains(&between), "its time is that of its receipt: {between} ms before it was written");
    assert_eq!((&*activity.summary, &*activity.channel, &*activity.direction), ("", "", ""));
    let again = server.post(event.to_string()).await;
    assert_eq!((again.outcome(), again.version()), ("duplicate", lead.version), "a later receipt is not another time");
}

async fn a_required_field_is_missed_by_its_path(server: Setup) {
    server.apply(&sample()).await;
    let before = server.lead(SAMPLE_LEAD).await;
    for pointer in REQUIRED {
        let field = pointer.trim_start_matches('/').replace('/', ".");
        for value in [None, Some(json!(null)), Some(json!("")), Some(json!(5)), Some(json!(true))] {
            let lead_id = fresh_id();
            let mut event = sample_on(&lead_id);
            match &value {
                None => remove(&mut event, pointer),
                Some(value) => *event.pointer_mut(pointer).expect(pointer) = value.clone(),
            }
            let answer = server.post(event.to_string()).await;
            assert_eq!((answer.status, answer.field()), (400, &*field), "{value:?}: {answer:?}");
            answer.assert_refused(400, &field);
            let status = server.client().get_lead(GetLeadRequest { lead_id }).await.expect_err("no lead");
            assert_eq!(status.code(), Code::NotFound, "{field}: {value:?}");
        }
    }
    let leads = server.client().list_leads(ListLeadsRequest { workspace_id: WORKSPACE.into(), ..Default::default() }).await;
    assert_eq!(leads.expect("a list").into_inner().leads, [before], "nothing changed");
}

/// What is counted is in containers: one of a wrong type is refused. Anything else optional counts as absent then.
async fn a_wrong_type_costs_the_event_only_in_a_container(server: Setup) {
    for (pointer, value) in [
        ("/actionLog/messages", json!({"id": "m1"})),
        ("/actionLog/messages/0", json!("text")),
        ("/actionLog/messages/0/documents", json!("docs.pdf")),
        ("/actionLog/messages/0/documents/0", json!(5)),
    ] {
        let mut event = sample_on(&fresh_id());
        *event.pointer_mut(pointer).expect(pointer) = value;
        let field = pointer.trim_start_matches('/').replace("/0", "[0]").replace('/', ".");
        server.post(event.to_string()).await.assert_refused(400, &field);
    }
    for pointer in [
        "/actionLog/summary",
        "/actionLog/completedAt",
        "/actionLog/messages/0/id",
        "/actionLog/messages/0/channel",
        "/actionLog/messages/0/direction",
        "/actionLog/messages/0/documents/0/id",
        "/actionLog/messages/0/documents/0/filename",
        "/actionLog/messages/0/documents/0/mimeType",
        "/actionLog/messages/0/documents/0/size",
    ] {
        let field = pointer.trim_start_matches('/').replace("/0", "[]").replace('/', ".");
        let counter = format!("leadfold_unread_fields_total{{field=\"{field}\"}}");
        for (index, value) in [json!(true), json!({"a": [1]}), json!(["text"])].into_iter().enumerate() {
            let (lead_id, other) = (fresh_id(), fresh_id());
            let (mut event, mut without) = (sample_on(&lead_id), sample_on(&other));
            *event.pointer_mut(pointer).expect(pointer) = value;
            remove(&mut without, pointer);
            server.apply(&event).await;
            assert_eq!(server.metric(&counter).await, (index + 1) as f64, "{pointer}");
            server.apply(&without).await;
            let seen = async |lead_id: &str| {
                let mut lead = server.lead(lead_id).await;
                lead.lead_id = String::new();
                (lead.message_counts.iter().map(|count| (count.channel.clone(), count.count)).collect::<Vec<_>>(), told(lead))
            };
            assert_eq!(seen(&lead_id).await, seen(&other).await, "{pointer}: as if it were absent");
        }
    }
    for pointer in ["/actionLog/input", "/actionLog/output", "/actionLog/input/channel", "/actionLog/input/metadata"] {
        for value in [json!(5), json!("text"), json!([1, {}]), json!({"deep": [{}]}), json!(false)] {
            let mut event = sample_on(&fresh_id());
            *event.pointer_mut(pointer).expect(pointer) = value;
            server.apply(&event).await;
        }
    }
}

/// A lead without what no two of them share: versions, and times of receipt.
fn told(lead: leadfold::api::Lead) -> (Vec<leadfold::api::Document>, Option<leadfold::api::Activity>) {
    let document = |document: leadfold::api::Document| leadfold::api::Document { create_time: None, ..document };
    let activity = |activity: leadfold::api::Activity| leadfold::api::Activity { complete_time: None, version: 0, ..activity };
    (lead.documents.into_iter().map(document).collect(), lead.latest_activity.map(activity))
}

/// The pointers of everything inside a value.
fn walk(value: &Value, pointer: &str, into: &mut Vec<String>) {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), value)).collect(),
        Value::Array(entries) => entries.iter().enumerate().map(|(index, value)| (index.to_string(), value)).collect(),
        _ => Vec::new(),
    };
    for (name, child) in children {
        let pointer = format!("{pointer}/{name}");
        walk(child, &pointer, into);
        into.push(pointer);
    }
}

fn remove(event: &mut Value, pointer: &str) {
    let (parent, name) = pointer.rsplit_once('/').expect(pointer);
    match event.pointer_mut(parent).expect(pointer) {
        Value::Object(fields) => drop(fields.remove(name).expect(pointer)),
        Value::Array(entries) => drop(entries.remove(name.parse().expect("an index"))),
        other => panic!("{pointer} is inside {other}"),
    }
}

fn set_null(event: &mut Value, pointer: &str) {
    *event.pointer_mut(pointer).expect(pointer) = Value::Null;
}
