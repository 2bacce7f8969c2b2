//! Each event, from the webhook to the answer of the service.

use leadfold::api::{
    Activity, ActivityCount, ChecklistItem, Document, GetLeadRequest, Lead, ListActivitiesRequest, ListDocumentsRequest, ListLeadsRequest,
    MessageCount, Profile,
};
use serde_json::json;
use tonic::Code;

use crate::support::events::{
    SAMPLE, SAMPLE_LEAD, SAMPLE_TIME, WORKSPACE, document_extracted, document_received, failed, lead_completed, lead_created, lead_updated,
    message, message_with_document, retried, sample_on,
};
use crate::support::server::WEBHOOK;
use crate::support::{Setup, fresh_id, is_about_now, on_both_stores, time};

on_both_stores!(
    the_specifications_sample_is_told_field_by_field,
    a_second_delivery_changes_nothing,
    an_unknown_event_is_taken_and_ignored,
    a_retry_that_went_well_moves_the_counts,
    a_failure_that_arrives_late_does_not_undo_the_completion,
    a_time_that_was_told_stands_over_one_of_receipt,
    received_documents_outrank_what_messages_told,
    an_extraction_may_come_before_its_document,
    documents_of_a_payload_are_documents,
    unknown_types_and_channels_count_under_their_own_names,
    a_message_without_channel_takes_that_of_its_action_or_unknown,
    a_lead_is_created_updated_and_completed,
    lead_events_need_no_workspace,
    a_url_names_the_workspace_of_events_that_do_not,
    a_lead_stays_in_its_workspace,
    what_was_applied_survives_a_restart,
);

/// The webhook of a workspace, for events that name none.
fn webhook_of(workspace: &str) -> String {
    format!("{WEBHOOK}/{workspace}")
}

async fn the_specifications_sample_is_told_field_by_field(server: Setup) {
    let answer = server.post(SAMPLE).await;
    assert_eq!((answer.status, answer.outcome(), &answer.body["leadId"]), (200, "applied", &json!(SAMPLE_LEAD)));
    let version = answer.version();
    assert!(version > 0);

    let at = Some(time(SAMPLE_TIME));
    // The sample's document has the same id as its message: they are two things.
    let document_id = "2421bef7-95bc-4546-92a3-c7e5600fbb6a".to_owned();
    let action_id = "59ac65a5-33fe-43a6-924b-134c582a285e".to_owned();
    let activity = Activity {
        action_id: action_id.clone(),
        r#type: "MESSAGE".into(),
        status: "COMPLETED".into(),
        summary: "Incoming email: docs".into(),
        complete_time: at,
        channel: "EMAIL".into(),
        direction: "INBOUND".into(),
        message_count: 1,
        document_ids: vec![document_id.clone()],
        version,
        ..Activity::default()
    };
    let document = Document {
        document_id: document_id.clone(),
        filename: "docs.pdf".into(),
        mime_type: "application/pdf".into(),
        size_bytes: Some(1000),
        message_id: document_id,
        action_id,
        create_time: at,
        ..Document::default()
    };
    let mut lead = server.lead(SAMPLE_LEAD).await;
    assert!(is_about_now(lead.update_time.as_ref()), "{:?}", lead.update_time);
    assert_eq!(lead.profile.take().unwrap_or_default(), Profile::default());
    lead.update_time = None;
    let expected = Lead {
        lead_id: SAMPLE_LEAD.into(),
        workspace_id: WORKSPACE.into(),
        version,
        first_activity_time: at,
        latest_activity_time: at,
        latest_activity: Some(activity.clone()),
        activity_counts: vec![ActivityCount { r#type: "MESSAGE".into(), status: "COMPLETED".into(), count: 1 }],
        message_count: 1,
        message_counts: vec![MessageCount { channel: "EMAIL".into(), direction: "INBOUND".into(), count: 1, latest_time: at }],
        document_count: 1,
        documents: vec![document.clone()],
        ..Lead::default()
    };
    assert_eq!(lead, expected);

    let activities = server.client().list_activities(ListActivitiesRequest { lead_id: SAMPLE_LEAD.into(), ..Default::default() }).await;
    let activities = activities.expect("its activities").into_inner();
    assert_eq!((activities.activities, &*activities.next_page_token), (vec![activity], ""));
    let documents = server.client().list_documents(ListDocumentsRequest { lead_id: SAMPLE_LEAD.into(), ..Default::default() }).await;
    let documents = documents.expect("its documents").into_inner();
    assert_eq!((documents.documents, &*documents.next_page_token), (vec![document], ""));
    let leads = server.client().list_leads(ListLeadsRequest { workspace_id: WORKSPACE.into(), ..Default::default() }).await;
    let leads = leads.expect("the workspace's leads").into_inner().leads;
    assert_eq!(leads, [server.lead(SAMPLE_LEAD).await], "a list tells the same as a read");
}

async fn a_second_delivery_changes_nothing(server: Setup) {
    let lead = fresh_id();
    let events = [
        message_with_document(&lead, "a1", SAMPLE_TIME, "d1"),
        failed(&lead, "a2", SAMPLE_TIME),
        document_received(&lead, "d2"),
        document_extracted(&lead, "d2"),
        lead_created(&lead),
        lead_updated(&lead),
        lead_completed(&lead),
    ];
    let mut version = 0;
    for event in &events {
        let applied = server.apply(event).await;
        assert!(applied > version, "every change has a greater version");
        version = applied;
        let before = server.lead(&lead).await;
        let again = server.post(event.to_string()).await;
        assert_eq!((again.status, again.outcome(), again.version()), (200, "duplicate", version), "{event}");
        assert_eq!(server.lead(&lead).await, before, "{event}");
    }
    // `lead.updated` cannot be told from a new patch of the same content, and changes nothing either.
    for event in &events {
        assert_eq!(server.post(event.to_string()).await.outcome(), "duplicate", "{event}");
    }
}

async fn an_unknown_event_is_taken_and_ignored(server: Setup) {
    let lead = fresh_id();
    let mut event = message(&lead, "a1", SAMPLE_TIME);
    event["event"] = json!("action_log.reopened");
    let answer = server.post(event.to_string()).await;
    assert_eq!((answer.status, answer.outcome()), (200, "ignored"), "{answer:?}");
    assert!(answer.body["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{answer:?}");
    let status = server.client().get_lead(GetLeadRequest { lead_id: lead }).await.expect_err("no lead");
    assert_eq!(status.code(), Code::NotFound);
}

async fn a_retry_that_went_well_moves_the_counts(server: Setup) {
    let lead = fresh_id();
    let first = server.apply(&failed(&lead, "a1", "2025-10-30T20:00:00Z")).await;
    let before = server.lead(&lead).await;
    assert_eq!(counts(&before), [("TOOL_CALL", "FAILED", 1)]);
    let activity = before.latest_activity.expect("the failure");
    assert_eq!(
        (&*activity.error, &*activity.tool_name, &*activity.agent_id),
        ("The credit bureau did not answer", "credit_check", "agent-7")
    );

    let second = server.apply(&retried(&lead, "a1", "2025-10-30T20:05:00Z")).await;
    assert!(second > first);
    let after = server.lead(&lead).await;
    assert_eq!(counts(&after), [("TOOL_CALL", "COMPLETED", 1)]);
    let activity = after.latest_activity.expect("the completion");
    assert_eq!((&*activity.status, &*activity.error, activity.version), ("COMPLETED", "", second));
    let at = Some(time("2025-10-30T20:05:00Z"));
    assert_eq!((after.first_activity_time, after.latest_activity_time, activity.complete_time), (at, at, at));
}

async fn a_failure_that_arrives_late_does_not_undo_the_completion(server: Setup) {
    let lead = fresh_id();
    let version = server.apply(&retried(&lead, "a1", "2025-10-30T20:05:00Z")).await;
    // Whatever its clock says.
    for told in ["2025-10-30T20:00:00Z", "2025-10-30T20:05:00Z", "2025-10-30T20:10:00Z"] {
        let answer = server.post(failed(&lead, "a1", told).to_string()).await;
        assert_eq!((answer.outcome(), answer.version()), ("duplicate", version));
    }
    assert_eq!(counts(&server.lead(&lead).await), [("TOOL_CALL", "COMPLETED", 1)]);
}

async fn a_time_that_was_told_stands_over_one_of_receipt(server: Setup) {
    let told = "2025-10-30T20:05:00Z";
    let untimed = |lead: &str| {
        let mut event = retried(lead, "a1", told);
        event["actionLog"].as_object_mut().expect("an object").remove("completedAt");
        event.as_object_mut().expect("an object").remove("occurredAt");
        event
    };
    // Told, and then delivered without it; or so far ahead that it cannot be right.
    let lead = fresh_id();
    let version = server.apply(&retried(&lead, "a1", told)).await;
    for event in [untimed(&lead), retried(&lead, "a1", "2999-01-01T00:00:00Z")] {
        let answer = server.post(event.to_string()).await;
        assert_eq!((answer.outcome(), answer.version()), ("duplicate", version), "{event}");
    }
    assert_eq!(server.lead(&lead).await.latest_activity_time, Some(time(told)));
    // The other way round it is repaired.
    let lead = fresh_id();
    server.apply(&untimed(&lead)).await;
    assert!(is_about_now(server.lead(&lead).await.latest_activity_time.as_ref()));
    server.apply(&retried(&lead, "a1", told)).await;
    let lead = server.lead(&lead).await;
    assert_eq!((lead.first_activity_time, lead.latest_activity_time), (Some(time(told)), Some(time(told))));
}

async fn received_documents_outrank_what_messages_told(server: Setup) {
    for received_first in [false, true] {
        let lead = fresh_id();
        let mut events = [message_with_document(&lead, "a1", SAMPLE_TIME, "d1"), document_received(&lead, "d1")];
        if received_first {
            events.reverse();
        }
        for event in &events {
            server.apply(event).await;
        }
        let lead = server.lead(&lead).await;
        let expected = Document {
            document_id: "d1".into(),
            filename: "bank statement.pdf".into(),
            mime_type: "application/pdf".into(),
            size_bytes: Some(48_213),
            message_id: "message-9".into(),
            action_id: "a1".into(),
            create_time: Some(time("2025-10-31T06:00:00.25Z")),
            ..Document::default()
        };
        assert_eq!((lead.document_count, lead.documents), (1, vec![expected]), "received first: {received_first}");
    }
}

async fn an_extraction_may_come_before_its_document(server: Setup) {
    let lead = fresh_id();
    server.apply(&document_extracted(&lead, "d1")).await;
    let before = server.lead(&lead).await;
    assert_eq!((before.document_count, before.latest_activity), (1, None));
    assert_eq!((&*before.workspace_id, &*before.external_id), (WORKSPACE, "crm-lead-1"));
    let document = &before.documents[0];
    assert_eq!((&*document.document_id, &*document.external_id, &*document.filename), ("d1", "crm-document-1", ""));
    assert!(is_about_now(document.create_time.as_ref()), "first spoken of now: {document:?}");

    server.apply(&document_received(&lead, "d1")).await;
    let after = server.lead(&lead).await;
    assert_eq!(after.document_count, 1);
    let document = &after.documents[0];
    assert_eq!((&*document.external_id, &*document.filename), ("crm-document-1", "bank statement.pdf"));
    assert_eq!(document.create_time, Some(time("2025-10-31T06:00:00.25Z")));
    let extraction = document.extraction.as_ref().expect("the extraction is still there");
    assert_eq!((&*extraction.status, &*extraction.document_type), ("completed", "Bank Statement"));
    assert_eq!(extraction.summary, "A bank statement of October.");
    assert!(is_about_now(extraction.update_time.as_ref()), "{extraction:?}");
}

async fn documents_of_a_payload_are_documents(server: Setup) {
    let lead = fresh_id();
    let mut event = message(&lead, "a1", SAMPLE_TIME);
    event["actionLog"]["type"] = json!("DOCUMENT_UPLOAD");
    event["actionLog"]["messages"] = json!(null);
    event["actionLog"]["input"] =
        json!({"documents": [{"id": "in", "filename": "in.pdf", "size": 5}, {"filename": "no id"}, "text", null]});
    event["actionLog"]["output"] = json!({"documents": [{"id": "out", "mimeType": "image/png"}], "deeper": {"documents": [{"id": "no"}]}});
    server.apply(&event).await;
    let lead = server.lead(&lead).await;
    let ids: Vec<_> = lead.documents.iter().map(|document| &*document.document_id).collect();
    assert_eq!((lead.document_count, ids), (2, vec!["out", "in"]), "of the same time, by descending id");
    assert_eq!((&*lead.documents[1].filename, lead.documents[1].size_bytes), ("in.pdf", Some(5)));
    assert_eq!(lead.documents[0].mime_type, "image/png");
    assert_eq!((lead.message_count, lead.message_counts), (0, vec![]));
}

async fn unknown_types_and_channels_count_under_their_own_names(server: Setup) {
    let lead = fresh_id();
    let mut event = message(&lead, "a1", SAMPLE_TIME);
    event["actionLog"]["type"] = json!("TELEPATHY");
    event["actionLog"]["status"] = json!("AWAITING_APPROVAL");
    event["actionLog"]["messages"][0]["channel"] = json!("RCS");
    server.apply(&event).await;
    let pending = server.lead(&lead).await;
    assert_eq!(counts(&pending), [("TELEPATHY", "AWAITING_APPROVAL", 1)]);
    assert_eq!(pending.message_count, 0, "only messages of completed actions count");

    event["actionLog"]["id"] = json!("a2");
    event["actionLog"]["status"] = json!("COMPLETED");
    server.apply(&event).await;
    let lead = server.lead(&lead).await;
    assert_eq!(counts(&lead), [("TELEPATHY", "AWAITING_APPROVAL", 1), ("TELEPATHY", "COMPLETED", 1)]);
    assert_eq!(message_counts(&lead), [("RCS", "INBOUND", 1)]);
}

async fn a_message_without_channel_takes_that_of_its_action_or_unknown(server: Setup) {
    let lead = fresh_id();
    let mut event = message(&lead, "a1", SAMPLE_TIME);
    event["actionLog"]["type"] = json!("FOLLOW_UP_MESSAGE");
    event["actionLog"]["input"] = json!({"channel": "SMS"});
    // The third has the id of the first: it is the same message.
    event["actionLog"]["messages"] = json!([{"id": "m1"}, {"id": "m2", "channel": "WHATSAPP", "direction": "OUTBOUND"}, {"id": "m1"}, {}]);
    server.apply(&event).await;
    let lead = server.lead(&lead).await;
    assert_eq!(message_counts(&lead), [("SMS", "UNKNOWN", 2), ("WHATSAPP", "OUTBOUND", 1)]);
    assert_eq!(lead.message_count, 3);
    assert_eq!(lead.latest_activity.expect("the action").message_count, 3);
}

async fn a_lead_is_created_updated_and_completed(server: Setup) {
    let id = fresh_id();
    server.apply_to(&webhook_of(WORKSPACE), &lead_created(&id)).await;
    let created = server.lead(&id).await;
    let mut profile = Profile {
        first_name: "Ada".into(),
        middle_name: String::new(),
        last_name: "Lovelace".into(),
        phone_number: "+1 555 0100".into(),
        email: "ada@example.com".into(),
        business_name: "Analytical Engines".into(),
        website: "https://engines.example".into(),
        source: "inbound-email".into(),
    };
    assert_eq!((&*created.external_id, created.profile.as_ref()), ("crm-lead-1", Some(&profile)));
    assert_eq!((created.latest_activity_time, created.application_complete_time), (None, None));

    server.apply_to(&webhook_of(WORKSPACE), &lead_updated(&id)).await;
    let updated = server.lead(&id).await;
    profile.email = "ada@engines.example".into();
    profile.website = String::new();
    assert_eq!(updated.profile.as_ref(), Some(&profile));
    let [address, statements] = &updated.checklist_items[..] else { panic!("{:?}", updated.checklist_items) };
    let value: serde_json::Value = serde_json::from_str(&address.value).expect("an object as JSON");
    assert_eq!(value, json!({"city": "London", "zip": "W1"}));
    assert_eq!((&*address.checklist_item_id, &*address.code, &*address.status), ("item-1", "BUSINESS_ADDRESS", "COMPLETED"));
    let expected = ChecklistItem {
        checklist_item_id: "item-2".into(),
        code: "BANK_STATEMENTS".into(),
        status: "NEEDS_REVIEW".into(),
        value: String::new(),
        update_time: Some(time("2025-11-01T11:00:00Z")),
        document_ids: vec!["document-of-item-2".into()],
    };
    assert_eq!(statements, &expected);
    let document = &updated.documents[0];
    assert_eq!((&*document.filename, document.size_bytes, &*document.external_id), ("october.pdf", Some(2000), "crm-document-2"));

    server.apply_to(&webhook_of(WORKSPACE), &lead_completed(&id)).await;
    let completed = server.lead(&id).await;
    assert!(is_about_now(completed.application_complete_time.as_ref()), "{completed:?}");

    let late = server.post_to(&webhook_of(WORKSPACE), "application/json", lead_created(&id).to_string()).await;
    assert_eq!(late.outcome(), "duplicate", "a late lead.created overwrites nothing, not even what was cleared");
    assert_eq!(server.lead(&id).await, completed);
}

async fn lead_events_need_no_workspace(server: Setup) {
    let lead = fresh_id();
    server.apply(&lead_created(&lead)).await;
    assert_eq!(server.lead(&lead).await.workspace_id, "");
    server.apply(&message(&lead, "a1", SAMPLE_TIME)).await;
    let named = server.lead(&lead).await;
    assert_eq!((&*named.workspace_id, &*named.profile.expect("the profile").first_name), (WORKSPACE, "Ada"));
    let listed = server.client().list_leads(ListLeadsRequest { workspace_id: WORKSPACE.into(), ..Default::default() }).await;
    assert_eq!(listed.expect("a list").into_inner().leads.len(), 1, "it is listed as soon as its workspace is known");
}

async fn a_url_names_the_workspace_of_events_that_do_not(server: Setup) {
    let lead = fresh_id();
    server.apply_to(&webhook_of("w%20%C3%BC%2F1"), &lead_created(&lead)).await;
    assert_eq!(server.lead(&lead).await.workspace_id, "w ü/1", "the URL is decoded");

    let mut event = message(&fresh_id(), "a1", SAMPLE_TIME);
    let refused = server.post_to(&webhook_of("another"), "application/json", event.to_string()).await;
    refused.assert_refused(400, "workspaceId");
    event["workspaceId"] = json!(null);
    server.apply_to(&webhook_of("another"), &event).await;
}

async fn a_lead_stays_in_its_workspace(server: Setup) {
    let lead = fresh_id();
    server.apply(&message(&lead, "a1", SAMPLE_TIME)).await;
    let before = server.lead(&lead).await;
    let mut event = message(&lead, "a2", SAMPLE_TIME);
    event["workspaceId"] = json!("another");
    let answer = server.post(event.to_string()).await;
    assert_eq!((answer.status, answer.outcome()), (409, ""), "{answer:?}");
    assert!(answer.body["error"].as_str().is_some_and(|error| error.contains("another workspace")), "{answer:?}");
    let answer = server.post_to(&webhook_of("another"), "application/json", lead_updated(&lead).to_string()).await;
    assert_eq!(answer.status, 409, "{answer:?}");
    assert_eq!(server.lead(&lead).await, before);
    let listed = server.client().list_leads(ListLeadsRequest { workspace_id: "another".into(), ..Default::default() }).await;
    assert_eq!(listed.expect("a list").into_inner().leads, [], "and it is not listed in the other");
}

async fn what_was_applied_survives_a_restart(mut server: Setup) {
    let lead = fresh_id();
    server.apply(&sample_on(&lead)).await;
    server.apply(&lead_updated(&lead)).await;
    let before = server.lead(&lead).await;
    server.restart();
    assert_eq!(server.lead(&lead).await, before);
    let again = server.post(sample_on(&lead).to_string()).await;
    assert_eq!((again.outcome(), again.version()), ("duplicate", before.version));
}

fn counts(lead: &Lead) -> Vec<(&str, &str, u64)> {
    lead.activity_counts.iter().map(|count| (&*count.r#type, &*count.status, count.count)).collect()
}

fn message_counts(lead: &Lead) -> Vec<(&str, &str, u64)> {
    lead.message_counts.iter().map(|count| (&*count.channel, &*count.direction, count.count)).collect()
}
