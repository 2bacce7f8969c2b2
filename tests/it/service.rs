//! The service: what it answers, what it refuses, and how it says so.

use leadfold::api::{
    BatchGetLeadsRequest, DeleteLeadRequest, GetLeadRequest, LeadIds, ListActivitiesRequest, ListDocumentsRequest, ListLeadsRequest,
    WatchLeadRequest, WatchLeadsRequest, watch_leads_request::Scope,
};
use tonic::{Code, Status};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::{v1, v1alpha};
use tonic_types::StatusExt;

use crate::support::events::{SAMPLE_TIME, WORKSPACE, document_extracted, lead_updated, message, message_with_document};
use crate::support::{Setup, fresh_id, on_both_stores};

on_both_stores!(
    a_lead_that_does_not_exist_is_not_found,
    a_batch_answers_in_the_order_of_the_request,
    a_deleted_lead_stays_away,
    an_empty_id_is_an_invalid_argument,
);

const SERVICE: &str = "leadfold.v1.LeadService";

async fn a_lead_that_does_not_exist_is_not_found(server: Setup) {
    let lead_id = fresh_id();
    let mut client = server.client();
    let answers = [
        client.get_lead(GetLeadRequest { lead_id: lead_id.clone() }).await.map(drop),
        client.list_activities(ListActivitiesRequest { lead_id: lead_id.clone(), ..Default::default() }).await.map(drop),
        client.list_documents(ListDocumentsRequest { lead_id: lead_id.clone(), ..Default::default() }).await.map(drop),
        client.delete_lead(DeleteLeadRequest { lead_id }).await.map(drop),
    ];
    for answer in answers {
        let status = answer.expect_err("there is no such lead");
        assert_eq!(status.code(), Code::NotFound, "{status:?}");
        let info = status.get_details_error_info().expect("an ErrorInfo");
        assert_eq!(info.domain, "leadfold");
        assert!(!info.reason.is_empty() && info.reason.chars().all(|c| c.is_ascii_uppercase() || c == '_'), "{info:?}");
    }
}

async fn an_empty_id_is_an_invalid_argument(server: Setup) {
    let mut client = server.client();
    let watch_leads = |scope| WatchLeadsRequest { scope, ..Default::default() };
    let too_many = Scope::LeadIds(LeadIds { ids: (0..1001).map(|n| n.to_string()).collect() });
    let refused = [
        ("lead_id", client.get_lead(GetLeadRequest::default()).await.map(drop)),
        ("lead_ids", client.batch_get_leads(BatchGetLeadsRequest::default()).await.map(drop)),
        ("workspace_id", client.list_leads(ListLeadsRequest::default()).await.map(drop)),
        ("lead_id", client.list_activities(ListActivitiesRequest::default()).await.map(drop)),
        ("lead_id", client.list_documents(ListDocumentsRequest::default()).await.map(drop)),
        ("lead_id", client.delete_lead(DeleteLeadRequest::default()).await.map(drop)),
        ("lead_id", client.watch_lead(WatchLeadRequest::default()).await.map(drop)),
        ("scope", client.watch_leads(watch_leads(None)).await.map(drop)),
        ("workspace_id", client.watch_leads(watch_leads(Some(Scope::WorkspaceId(String::new())))).await.map(drop)),
        ("lead_ids.ids", client.watch_leads(watch_leads(Some(Scope::LeadIds(LeadIds::default())))).await.map(drop)),
        ("lead_ids.ids", client.watch_leads(watch_leads(Some(too_many))).await.map(drop)),
    ];
    for (index, (field, answer)) in refused.into_iter().enumerate() {
        let status = answer.err().unwrap_or_else(|| panic!("the request {index} without a {field} was answered"));
        assert_eq!((status.code(), violation(&status)), (Code::InvalidArgument, field.to_owned()), "request {index}: {status:?}");
    }
}

async fn a_batch_answers_in_the_order_of_the_request(server: Setup) {
    let [a, b, c] = [fresh_id(), fresh_id(), fresh_id()];
    for lead in [&a, &b, &c] {
        server.apply(&message(lead, "a1", SAMPLE_TIME)).await;
    }
    let mut client = server.client();
    let [x, y] = ["not there".to_owned(), "nor there".to_owned()];
    let lead_ids = [&c, &x, &a, &c, &y, &b, &x].map(Clone::clone).to_vec();
    let answer = client.batch_get_leads(BatchGetLeadsRequest { lead_ids }).await.expect("an answer").into_inner();
    let expected = [server.lead(&c).await, server.lead(&a).await, server.lead(&b).await];
    assert_eq!(answer.leads, expected, "each once, as GetLead tells it");
    assert_eq!(answer.not_found_lead_ids, [x, y]);

    let mut lead_ids: Vec<String> = (0..999).map(|n| format!("not there {n}")).collect();
    lead_ids.push(a);
    let answer = client.batch_get_leads(BatchGetLeadsRequest { lead_ids: lead_ids.clone() }).await.expect("1,000 are allowed").into_inner();
    assert_eq!((answer.leads.len(), answer.not_found_lead_ids.len()), (1, 999));
    lead_ids.push(b);
    let status = client.batch_get_leads(BatchGetLeadsRequest { lead_ids }).await.expect_err("1,001 are not");
    assert_eq!((status.code(), violation(&status)), (Code::InvalidArgument, "lead_ids".to_owned()));
}

async fn a_deleted_lead_stays_away(server: Setup) {
    let [lead_id, other] = [fresh_id(), fresh_id()];
    let event = message_with_document(&lead_id, "a1", SAMPLE_TIME, "d1");
    server.apply(&event).await;
    server.apply(&message_with_document(&other, "a1", SAMPLE_TIME, "d1")).await;
    let others = server.lead(&other).await;
    let mut client = server.client();
    client.delete_lead(DeleteLeadRequest { lead_id: lead_id.clone() }).await.expect("it is deleted");

    // A late retry, and events that the lead has not seen before.
    for late in [&event, &message(&lead_id, "a2", SAMPLE_TIME), &document_extracted(&lead_id, "d1"), &lead_updated(&lead_id)] {
        let answer = server.post(late.to_string()).await;
        assert_eq!((answer.status, answer.outcome()), (200, "ignored"), "{late}: {answer:?}");
        assert!(answer.body["reason"].as_str().is_some_and(|reason| reason.contains("deleted")), "{answer:?}");
    }
    let answers = [
        client.get_lead(GetLeadRequest { lead_id: lead_id.clone() }).await.map(drop),
        client.list_activities(ListActivitiesRequest { lead_id: lead_id.clone(), ..Default::default() }).await.map(drop),
        client.list_documents(ListDocumentsRequest { lead_id: lead_id.clone(), ..Default::default() }).await.map(drop),
        client.delete_lead(DeleteLeadRequest { lead_id: lead_id.clone() }).await.map(drop),
    ];
    for answer in answers {
        assert_eq!(answer.expect_err("it is gone").code(), Code::NotFound);
    }
    let batch = client.batch_get_leads(BatchGetLeadsRequest { lead_ids: vec![lead_id.clone()] }).await.expect("an answer").into_inner();
    assert_eq!((batch.leads, batch.not_found_lead_ids), (vec![], vec![lead_id]));
    let listed =
        client.list_leads(ListLeadsRequest { workspace_id: WORKSPACE.into(), ..Default::default() }).await.expect("a list").into_inner();
    assert_eq!(listed.leads, [others], "the other lead is as it was");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_told_for_each_service() {
    let server = Setup::embedded();
    let mut client = HealthClient::new(server.channel());
    for service in ["", SERVICE] {
        let answer = client.check(HealthCheckRequest { service: service.into() }).await.expect("an answer").into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service:?}");
    }
    let status = client.check(HealthCheckRequest { service: "leadfold.v1.Other".into() }).await.expect_err("there is no such service");
    assert_eq!(status.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reflection_names_the_services_in_both_versions() {
    let server = Setup::embedded();
    let asks_v1 = v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(String::new())),
    };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(server.channel());
    let mut answers = client.server_reflection_info(futures::stream::iter([asks_v1])).await.expect("v1").into_inner();
    let answer = answers.message().await.expect("an answer").and_then(|answer| answer.message_response);
    let Some(v1::server_reflection_response::MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
    let v1_names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();

    let asks_v1alpha = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1alpha::server_reflection_request::MessageRequest::ListServices(String::new())),
    };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(server.channel());
    let mut answers = client.server_reflection_info(futures::stream::iter([asks_v1alpha])).await.expect("v1alpha").into_inner();
    let answer = answers.message().await.expect("an answer").and_then(|answer| answer.message_response);
    let Some(v1alpha::server_reflection_response::MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
    let v1alpha_names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();

    for names in [v1_names, v1alpha_names] {
        for expected in [SERVICE, "grpc.health.v1.Health"] {
            assert!(names.iter().any(|name| name == expected), "{names:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn liveness_and_readiness_are_told_on_the_admin_port() {
    let server = Setup::embedded();
    let web = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
    for path in ["/livez", "/readyz"] {
        let answer = web.get(format!("http://{}{path}", server.admin)).send().await.expect("an answer");
        assert_eq!(answer.status(), 200, "{path}");
    }
}

/// The one field that a refusal names.
fn violation(status: &Status) -> String {
    let violations = status.get_details_bad_request().map(|details| details.field_violations).unwrap_or_default();
    let [violation] = &violations[..] else { panic!("not one field violation: {violations:?} in {status:?}") };
    assert!(!violation.description.is_empty());
    violation.field.clone()
}
