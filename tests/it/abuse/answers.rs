//! Answers that nobody reads.

use std::time::{Duration, Instant};

use leadfold::api::{BatchGetLeadsRequest, GetLeadRequest, ListLeadsRequest};
use serde_json::{Value, json};
use tonic::Code;

use super::peer::Peer;
use super::{Memory, read_promptly};
use crate::support::server::{Options, Server};
use crate::support::{Setup, eventually, fresh_id};

const LIST_LEADS: &str = "/leadfold.v1.LeadService/ListLeads";
const GET_LEAD: &str = "/leadfold.v1.LeadService/GetLead";
const WORKSPACE: &str = "large";

/// Leads of about 400 KB each.
async fn large_leads(server: &Server, count: usize) -> Vec<String> {
    let mut lead_ids = Vec::new();
    for _ in 0..count {
        let lead_id = fresh_id();
        let items: Vec<Value> =
            (0..100).map(|item| json!({"checklistItemId": format!("item {item}"), "value": "v".repeat(4000), "status": "TODO"})).collect();
        let event = json!({"event": "lead.updated", "data": {"leadId": lead_id, "checklistItems": items}});
        server.apply_to(&format!("/webhooks/omniai/{WORKSPACE}"), &event).await;
        let mut activity = crate::support::events::message(&lead_id, "a1", crate::support::events::SAMPLE_TIME);
        activity["workspaceId"] = json!(WORKSPACE);
        server.apply(&activity).await;
        lead_ids.push(lead_id);
    }
    lead_ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_nobody_reads_are_bounded_and_dropped() {
    let server = Setup::embedded();
    let lead_ids = large_leads(&server, 9).await;
    let list = ListLeadsRequest { workspace_id: WORKSPACE.to_owned(), ..Default::default() };
    // The largest page, once, so that what is kept is there.
    let page = server.client().list_leads(list.clone()).await.expect("a page").into_inner();
    assert!(prost::Message::encoded_len(&page) > 2 << 20, "{} leads", page.leads.len());
    let memory = Memory::of(&server);
    let peer = Peer::connect(&server.grpc, 0).await;
    let mut calls = Vec::new();
    for _ in 0..400 {
        calls.push(peer.call(LIST_LEADS, &list, &[]).await);
    }
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(7) {
        read_promptly(&server, &lead_ids[0], 2).await;
        let page = server.client().list_leads(list.clone()).await.expect("others are served").into_inner();
        assert!(!page.leads.is_empty());
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    memory.assert_grown_less_than(150);
    eventually("they are dropped", async || (server.metric("leadfold_answers_unread_total").await >= 1.0).then_some(())).await;
    // Those that got no room within ten seconds are told to come back.
    let mut refused = 0;
    for call in calls {
        let answer = call.answer().await;
        refused += usize::from(answer.grpc_status() == Some(Code::Unavailable as i32));
    }
    assert!(refused > 200, "{refused} were refused");
    memory.assert_grown_less_than(150);
}

/// A piece and its end are all that hyper holds of an answer: small ones hold their call too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_answers_that_nobody_reads_hold_their_calls_and_no_place_for_long() {
    let server = Server::start(&Options::default().env("LEADFOLD_MAX_REQUESTS_IN_FLIGHT", "1001"));
    let lead_id = fresh_id();
    let event = crate::support::events::message(&lead_id, "a1", crate::support::events::SAMPLE_TIME);
    server.apply(&event).await;
    let peer = Peer::connect(&server.grpc, 0).await;
    let mut calls = Vec::new();
    for _ in 0..1000 {
        calls.push(peer.call(GET_LEAD, &GetLeadRequest { lead_id: lead_id.clone() }, &[]).await);
    }
    read_promptly(&server, &lead_id, 5).await;
    eventually("the places are free again", async || (server.metric("leadfold_answers_unread_total").await >= 1000.0).then_some(())).await;
    // This connection has had its share until it reads.
    let more = peer.call(GET_LEAD, &GetLeadRequest { lead_id: lead_id.clone() }, &[]).await.answer().await;
    assert_eq!(more.grpc_status(), Some(Code::Unavailable as i32), "{more:?}");
    assert!(more.grpc_message().contains("1000 calls"), "{more:?}");
    drop(calls);
    eventually("it can be used again", async || {
        let answer = peer.call(GET_LEAD, &GetLeadRequest { lead_id: lead_id.clone() }, &[]).await.answer().await;
        answer.grpc_status().is_none().then_some(())
    })
    .await;
}

/// What is read slowly, but read, comes whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_gets_its_answer_whole() {
    let server = Setup::embedded();
    let lead_ids = large_leads(&server, 9).await;
    let peer = Peer::connect(&server.grpc, 65_535).await;
    let call = peer.call("/leadfold.v1.LeadService/BatchGetLeads", &BatchGetLeadsRequest { lead_ids }, &[]).await;
    let mut answer = call.answer().await;
    let (mut bytes, began) = (0, Instant::now());
    while let Some(chunk) = answer.body.data().await {
        let chunk = chunk.expect("no error");
        bytes += chunk.len();
        // About 12 s in all: longer than one that takes nothing is given.
        tokio::time::sleep(Duration::from_micros(chunk.len() as u64 * 3)).await;
        answer.body.flow_control().release_capacity(chunk.len()).expect("it was received");
    }
    let status = answer.body.trailers().await.expect("no error").expect("trailers")["grpc-status"].clone();
    println!("{bytes} bytes in {:?}", began.elapsed());
    assert!(bytes > 3 << 20 && status == "0" && began.elapsed() > Duration::from_secs(10), "{bytes} bytes, {status:?}");
}
