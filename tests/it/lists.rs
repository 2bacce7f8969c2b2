//! Lists and their pages.

use leadfold::api::{Lead, ListActivitiesRequest, ListDocumentsRequest, ListLeadsRequest};
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::support::events::{SAMPLE_TIME, WORKSPACE, lead_created, message};
use crate::support::server::{Server, WEBHOOK};
use crate::support::{Setup, fresh_id, on_both_stores, time};

on_both_stores!(
    leads_are_listed_by_their_latest_activity,
    a_lead_that_moves_while_you_page_is_not_returned_twice,
    leads_can_be_listed_by_a_span_of_time,
    a_page_token_is_good_for_its_query_only,
    activities_of_one_time_are_paged_without_gap_or_overlap,
    documents_of_one_time_are_paged_without_gap_or_overlap,
    pages_have_a_size_by_default_and_at_most,
);

const MANY: usize = 120;

async fn leads_are_listed_by_their_latest_activity(server: Setup) {
    for (lead, action, at) in
        [("old", "a1", 1), ("new", "a1", 9), ("twin-a", "a1", 5), ("twin-b", "a1", 5), ("risen", "a1", 2), ("risen", "a2", 7)]
    {
        server.apply(&message(lead, action, &october(at))).await;
    }
    server.apply_to(&format!("{WEBHOOK}/{WORKSPACE}"), &lead_created("silent")).await;
    // An event of long ago moves no lead.
    server.apply(&message("new", "a0", &october(1))).await;

    let expected = ["new", "risen", "twin-b", "twin-a", "old", "silent"];
    for page_size in [0, 1, 2, 3, 6, 200, 1000] {
        let leads = walk_leads(&server, ListLeadsRequest { page_size, ..of_workspace() }).await;
        assert_eq!(ids(&leads), expected, "by pages of {page_size}");
    }
    let none = walk_leads(&server, ListLeadsRequest { workspace_id: "another".into(), ..Default::default() }).await;
    assert_eq!(ids(&none), [""; 0]);
}

async fn a_lead_that_moves_while_you_page_is_not_returned_twice(server: Setup) {
    for day in 1..=6 {
        server.apply(&message(&format!("lead-{day}"), "a1", &october(day))).await;
    }
    let first = page_of_leads(&server, ListLeadsRequest { page_size: 2, ..of_workspace() }).await.expect("a page");
    assert_eq!(ids(&first.0), ["lead-6", "lead-5"]);
    // One that was returned moves within its page, one that was not moves to the front, and a new one is born there.
    for (lead, day) in [("lead-5", 20), ("lead-2", 21), ("lead-7", 22)] {
        server.apply(&message(lead, "a2", &october(day))).await;
    }
    let rest = walk_leads(&server, ListLeadsRequest { page_size: 2, page_token: first.1, ..of_workspace() }).await;
    assert_eq!(ids(&rest), ["lead-4", "lead-3", "lead-1"]);
}

async fn leads_can_be_listed_by_a_span_of_time(server: Setup) {
    for day in 1..=5 {
        server.apply(&message(&format!("lead-{day}"), "a1", &october(day))).await;
    }
    server.apply_to(&format!("{WEBHOOK}/{WORKSPACE}"), &lead_created("silent")).await;
    let at = |day: Option<u32>| day.map(|day| time(&october(day)));
    let spans: [(Option<u32>, Option<u32>, &[&str]); 5] = [
        (Some(2), None, &["lead-5", "lead-4", "lead-3"]),
        (Some(1), Some(4), &["lead-3", "lead-2"]),
        (Some(5), None, &[]),
        (Some(2), Some(3), &[]),
        (Some(4), Some(2), &[]),
    ];
    for (after, before, expected) in spans {
        for page_size in [1, 50] {
            let request = ListLeadsRequest { page_size, activity_after: at(after), activity_before: at(before), ..of_workspace() };
            assert_eq!(ids(&walk_leads(&server, request).await), expected, "after {after:?}, before {before:?}");
        }
    }
    let before = walk_leads(&server, ListLeadsRequest { activity_before: at(Some(3)), ..of_workspace() }).await;
    assert_eq!(ids(&before), ["lead-2", "lead-1"], "a lead without activity has none before any time");
    // Microseconds count.
    let just_before = prost_types::Timestamp { seconds: time(&october(5)).seconds - 1, nanos: 999_999_000 };
    let leads = walk_leads(&server, ListLeadsRequest { activity_after: Some(just_before), ..of_workspace() }).await;
    assert_eq!(ids(&leads), ["lead-5"]);
}

async fn a_page_token_is_good_for_its_query_only(server: Setup) {
    for lead in ["lead-1", "lead-2", "lead-3"] {
        for action in ["a1", "a2", "a3"] {
            server.apply(&message(lead, action, SAMPLE_TIME)).await;
        }
    }
    let (_, token) = page_of_leads(&server, ListLeadsRequest { page_size: 1, ..of_workspace() }).await.expect("a page");
    let next =
        page_of_leads(&server, ListLeadsRequest { page_size: 2, page_token: token.clone(), ..of_workspace() }).await.expect("a page");
    assert_eq!(ids(&next.0), ["lead-2", "lead-1"], "the size of the page may change");

    let mut activities = ListActivitiesRequest { lead_id: "lead-1".into(), page_size: 1, page_token: String::new() };
    let page = server.client().list_activities(activities.clone()).await.expect("a page").into_inner();
    let with = |page_token: &str| ListLeadsRequest { page_token: page_token.into(), ..of_workspace() };
    let mut altered = token.clone().into_bytes();
    altered[token.len() / 2] = if altered[token.len() / 2] == b'A' { b'B' } else { b'A' };
    let altered = String::from_utf8(altered).expect("still text");
    let bad = [
        with("garbage"),
        with("ü"),
        with(&token[..token.len() - 2]),
        with(&format!("{token}AAAA")),
        with(&altered),
        with(&page.next_page_token),
        ListLeadsRequest { workspace_id: "another".into(), ..with(&token) },
        ListLeadsRequest { activity_after: Some(time(&october(1))), ..with(&token) },
        ListLeadsRequest { activity_before: Some(time(&october(1))), ..with(&token) },
    ];
    for request in bad {
        assert_bad_token(page_of_leads(&server, request.clone()).await.map(drop), &format!("{request:?}"));
    }

    activities.page_token = page.next_page_token.clone();
    server.client().list_activities(activities.clone()).await.expect("its own query");
    activities.lead_id = "lead-2".into();
    assert_bad_token(server.client().list_activities(activities).await.map(drop), "activities of another lead");
    let documents = ListDocumentsRequest { lead_id: "lead-1".into(), page_size: 1, page_token: page.next_page_token };
    assert_bad_token(server.client().list_documents(documents).await.map(drop), "documents with a token of activities");
}

async fn activities_of_one_time_are_paged_without_gap_or_overlap(server: Setup) {
    let lead_id = fresh_id();
    for number in 0..MANY {
        server.apply(&message(&lead_id, &format!("action-{number:03}"), SAMPLE_TIME)).await;
    }
    let mut walked = Vec::new();
    let mut sizes = Vec::new();
    let mut request = ListActivitiesRequest { lead_id: lead_id.clone(), ..Default::default() };
    loop {
        let page = server.client().list_activities(request.clone()).await.expect("a page").into_inner();
        sizes.push(page.activities.len());
        walked.extend(page.activities.into_iter().map(|activity| activity.action_id));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    let expected: Vec<String> = (0..MANY).rev().map(|number| format!("action-{number:03}")).collect();
    assert_eq!((walked, sizes), (expected, vec![50, 50, 20]));
    assert_eq!(server.lead(&lead_id).await.latest_activity.expect("the latest").action_id, "action-119");
}

async fn documents_of_one_time_are_paged_without_gap_or_overlap(server: Setup) {
    let lead_id = fresh_id();
    let mut event = message(&lead_id, "a1", SAMPLE_TIME);
    let documents: Vec<Value> = (0..MANY).map(|number| json!({"id": format!("document-{number:03}"), "size": number})).collect();
    event["actionLog"]["messages"][0]["documents"] = json!(documents);
    server.apply(&event).await;

    let mut walked = Vec::new();
    let mut sizes = Vec::new();
    let mut request = ListDocumentsRequest { lead_id: lead_id.clone(), ..Default::default() };
    loop {
        let page = server.client().list_documents(request.clone()).await.expect("a page").into_inner();
        sizes.push(page.documents.len());
        walked.extend(page.documents);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    let told: Vec<_> = walked.iter().map(|document| (document.document_id.clone(), document.size_bytes)).collect();
    let expected: Vec<_> = (0..MANY).rev().map(|number| (format!("document-{number:03}"), Some(number as u64))).collect();
    assert_eq!((told, sizes), (expected, vec![50, 50, 20]));
    let lead = server.lead(&lead_id).await;
    assert_eq!((lead.document_count, &lead.documents[..]), (120, &walked[..100]), "a lead shows the newest 100");
}

async fn pages_have_a_size_by_default_and_at_most(server: Setup) {
    for number in 0..MANY + 90 {
        server.apply(&message(&format!("lead-{number:03}"), "a1", SAMPLE_TIME)).await;
    }
    for (page_size, at_most) in [(0, 50), (7, 7), (200, 200), (201, 200), (i32::MAX, 200)] {
        // A page may hold fewer, but none is empty while leads follow.
        let (leads, token) = page_of_leads(&server, ListLeadsRequest { page_size, ..of_workspace() }).await.expect("a page");
        assert!((1..=at_most).contains(&leads.len()) && !token.is_empty(), "page_size {page_size}: {} leads", leads.len());
    }
    let all = walk_leads(&server, of_workspace()).await;
    let expected: Vec<String> = (0..MANY + 90).rev().map(|number| format!("lead-{number:03}")).collect();
    assert_eq!(ids(&all), expected);
}

fn october(day: u32) -> String {
    format!("2025-10-{day:02}T12:00:00Z")
}

fn of_workspace() -> ListLeadsRequest {
    ListLeadsRequest { workspace_id: WORKSPACE.into(), ..Default::default() }
}

fn ids(leads: &[Lead]) -> Vec<&str> {
    leads.iter().map(|lead| &*lead.lead_id).collect()
}

async fn page_of_leads(server: &Server, request: ListLeadsRequest) -> Result<(Vec<Lead>, String), Status> {
    let page = server.client().list_leads(request).await?.into_inner();
    Ok((page.leads, page.next_page_token))
}

async fn walk_leads(server: &Server, mut request: ListLeadsRequest) -> Vec<Lead> {
    let mut walked = Vec::new();
    for _ in 0..1000 {
        let (leads, token) = page_of_leads(server, request.clone()).await.expect("a page");
        walked.extend(leads);
        if token.is_empty() {
            return walked;
        }
        request.page_token = token;
    }
    panic!("pages without end: {request:?}");
}

#[track_caller]
fn assert_bad_token(answer: Result<(), Status>, what: &str) {
    let status = answer.expect_err(what);
    assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status:?}");
    let violations = status.get_details_bad_request().map(|details| details.field_violations).unwrap_or_default();
    assert_eq!(violations.iter().map(|violation| &*violation.field).collect::<Vec<_>>(), ["page_token"], "{what}");
}
