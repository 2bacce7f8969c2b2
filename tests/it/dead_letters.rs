//! Events that were refused: listed, tried again and dropped from the command line.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use leadfold::api::dead_letter_service_client::DeadLetterServiceClient;
use leadfold::api::{DeadLetter, DropDeadLettersRequest, ListDeadLettersRequest, RetryDeadLettersRequest};
use leadfold::dead_letters::{DeadLetters, Limits, reasons};
use leadfold::event::Refusal;
use leadfold::fold::Receipt;
use leadfold::time::Timestamp;
use serde_json::{Value, json};
use tonic::Code;

use crate::support::events::{CANARY, SAMPLE_TIME, WORKSPACE, lead_updated, message, message_with_document};
use crate::support::redis::RedisServer;
use crate::support::server::{Options, Server};
use crate::support::tokens::{self, ALL, Bearer, ONE, OTHER};
use crate::support::{Setup, fresh_id, on_both_stores};

/// Runs `leadfold dead-letters` to its end.
pub fn dead_letters(server: &Server, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leadfold"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LEADFOLD_")) {
        command.env_remove(name);
    }
    command.arg("dead-letters").args(args).env("LEADFOLD_SERVER", format!("http://{}", server.grpc)).stdin(Stdio::null());
    command.output().expect("it runs")
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn listed(server: &Server) -> Vec<Value> {
    let output = dead_letters(server, &["list", "--json", "--payloads"]);
    assert!(output.status.success(), "{output:?}");
    told(&output).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_events_are_listed_tried_again_and_dropped() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let server = Server::start(&Options::default().data_dir(dir.path()));
    let none = dead_letters(&server, &["list"]);
    assert!(none.stdout.is_empty() && String::from_utf8_lossy(&none.stderr).starts_with("no dead letters on http://"), "{none:?}");

    let lead_id = fresh_id();
    let mut moved = message_with_document(&lead_id, "a1", SAMPLE_TIME, "d1");
    moved["actionLog"]["kind"] = moved["actionLog"]["type"].take();
    for _ in 0..3 {
        server.post(moved.to_string()).await.assert_refused(400, "actionLog.type");
    }
    server.apply(&message(&lead_id, "a0", SAMPLE_TIME)).await;
    let mut foreign = message(&lead_id, "a2", SAMPLE_TIME);
    foreign["workspaceId"] = json!("another workspace");
    server.post(foreign.to_string()).await.assert_refused(409, "workspaceId");
    server.post(format!("{{\"event\": {CANARY}")).await.assert_refused(400, "");
    assert_eq!(server.metric("leadfold_dead_letters").await, 3.0);

    let letters = listed(&server);
    assert_eq!(letters.len(), 3, "what a sender sends again is one letter: {letters:#?}");
    let (broken, foreign, refused) = (&letters[0], &letters[1], &letters[2]);
    assert_eq!((&refused["reason"], &refused["field"], &refused["count"]), (&json!("refused"), &json!("actionLog.type"), &json!("3")));
    assert_eq!((&refused["event"], &refused["leadId"]), (&json!("action_log.completed"), &json!(lead_id)));
    let payload: Value = serde_json::from_str(refused["payload"].as_str().expect("a payload")).expect("JSON");
    assert_eq!(payload["actionLog"]["kind"], "MESSAGE", "what the next version may need is kept: {payload}");
    assert_eq!(payload["actionLog"]["messages"][0]["documents"][0]["id"], "d1");
    assert_eq!((&foreign["reason"], &foreign["retriable"]), (&json!("other_workspace"), &json!(true)));
    assert_eq!((&broken["event"], broken.get("retriable"), broken.get("payload")), (&json!("invalid"), None, None));
    let text = format!("{letters:?}{}", told(&dead_letters(&server, &["list", "--payloads"])));
    assert!(!text.contains(CANARY) && text.contains("actionLog.type: required"), "{text}");
    assert!(!holds(dir.path(), CANARY), "in the data directory");

    let retried = dead_letters(&server, &["retry", "--all"]);
    assert_eq!(retried.status.code(), Some(1), "{retried:?}");
    assert!(told(&retried).ends_with("2 refused\n") && told(&retried).contains("actionLog.type: required"), "{retried:?}");
    assert!(String::from_utf8_lossy(&retried.stderr).contains("2 dead letters could not be taken"), "{retried:?}");

    let id = refused["deadLetterId"].as_str().expect("an id");
    assert!(!dead_letters(&server, &["drop", id]).status.success(), "without a terminal nothing is dropped unless told so");
    assert_eq!(told(&dead_letters(&server, &["drop", id, "9999", "--yes"])), "dropped 1 dead letter\n");
    assert_eq!(listed(&server).len(), 2);
    assert_eq!(told(&dead_letters(&server, &["drop", "--all", "--yes"])), "dropped 2 dead letters\n");
    assert_eq!((listed(&server).len(), server.metric("leadfold_dead_letters").await), (0, 0.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_older_version_refused_is_taken_after_an_upgrade() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let lead_id = fresh_id();
    // As a version left them that did not understand these events.
    let limits = Limits { count: 10, bytes: 1 << 20, age: Duration::from_secs(3600), keep_raw: false };
    let letters = DeadLetters::open(&dir.path().join("dead-letters.redb"), limits).expect("dead letters");
    let received = Timestamp::from_micros(Timestamp::now().micros() - 60_000_000);
    let refusal = Refusal::field("actionLog.messages", "wrong type");
    let events = [message_with_document(&lead_id, "a1", SAMPLE_TIME, "d1"), message(&lead_id, "a2", SAMPLE_TIME), lead_updated(&lead_id)];
    for event in &events {
        let workspace_id = event["workspaceId"].is_null().then_some(WORKSPACE);
        let receipt = Receipt { at: received, workspace_id };
        letters.keep_event(event.to_string().as_bytes(), "invalid", receipt, reasons::REFUSED, &refusal).await.expect("kept");
    }
    drop(letters);
    let server = Server::start(&Options::default().data_dir(dir.path()));
    server.apply(&events[1]).await;
    let retried = dead_letters(&server, &["retry", "--all"]);
    assert_eq!((retried.status.success(), &*told(&retried)), (true, "2 applied, 1 duplicate\n"), "{retried:?}");
    let lead = server.lead(&lead_id).await;
    assert_eq!((lead.message_count, lead.document_count), (2, 2), "{lead:?}");
    assert_eq!(lead.profile.expect("a profile").email, "ada@engines.example");
    assert!(listed(&server).is_empty(), "what was taken is no letter any more");
    assert_eq!(told(&dead_letters(&server, &["retry", "--all"])), "nothing to try again\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_have_every_letter_once() {
    let server = Server::start(&Options::default());
    for number in 0..7 {
        let event = json!({"event": "lead.created", "data": {"firstName": number.to_string(), "lastName": "x".repeat(1000)}});
        server.post(event.to_string()).await.assert_refused(400, "data.leadId");
    }
    let mut client = DeadLetterServiceClient::new(server.channel());
    for include_payloads in [false, true] {
        let (mut ids, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = ListDeadLettersRequest { page_size: 3, page_token, include_payloads };
            let page = client.list_dead_letters(request).await.expect("a page").into_inner();
            assert!(page.dead_letters.len() <= 3 && page.dead_letters.iter().all(|letter| letter.payload.is_empty() != include_payloads));
            ids.extend(page.dead_letters.into_iter().map(|letter: DeadLetter| letter.dead_letter_id));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(ids, ["7", "6", "5", "4", "3", "2", "1"]);
    }
    let status =
        client.list_dead_letters(ListDeadLettersRequest { page_token: "x".into(), ..Default::default() }).await.expect_err("broken");
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_are_for_those_who_may_see_and_delete_everything() {
    const READER: &str = "token-canary-of-all-workspaces-read-only";
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = tokens::write(dir.path(), "tokens.toml", &(tokens::usual() + &tokens::entry(READER, &["*"], false)));
    let server = Server::start(&Options::default().env("LEADFOLD_TOKENS_FILE", file.to_str().expect("a path")));
    server.post(json!({"event": "lead.created"}).to_string()).await.assert_refused(400, "data");
    let ids = vec!["1".to_owned()];
    for (token, list, change) in [
        ("", Code::Unauthenticated, Code::Unauthenticated),
        (ONE, Code::PermissionDenied, Code::PermissionDenied),
        (OTHER, Code::PermissionDenied, Code::PermissionDenied),
        (READER, Code::Ok, Code::PermissionDenied),
        (ALL, Code::Ok, Code::Ok),
    ] {
        let header = if token.is_empty() { String::new() } else { format!("Bearer {token}") };
        let mut client = DeadLetterServiceClient::with_interceptor(server.channel(), Bearer::header(&header));
        let code = |result: Result<(), tonic::Status>| result.map_or_else(|status| status.code(), |()| Code::Ok);
        assert_eq!(code(client.list_dead_letters(ListDeadLettersRequest::default()).await.map(drop)), list, "{token}");
        let retry = RetryDeadLettersRequest { dead_letter_ids: ids.clone() };
        assert_eq!(code(client.retry_dead_letters(retry).await.map(drop)), change, "{token}");
        let drop_it = DropDeadLettersRequest { dead_letter_ids: ids.clone() };
        assert_eq!(code(client.drop_dead_letters(drop_it).await.map(drop)), change, "{token}");
    }
    assert_eq!(server.metric("leadfold_dead_letters").await, 0.0, "dropped by the one who may");
}

on_both_stores!(a_deleted_lead_leaves_no_letters);

async fn a_deleted_lead_leaves_no_letters(server: Setup) {
    let (lead_id, other) = (fresh_id(), fresh_id());
    let refused = async |lead_id: &str, action: &str| {
        let mut event = message(lead_id, action, SAMPLE_TIME);
        event["actionLog"]["kind"] = event["actionLog"]["type"].take();
        server.post(event.to_string()).await.assert_refused(400, "actionLog.type");
    };
    for id in [&lead_id, &other] {
        server.apply(&message(id, "a0", SAMPLE_TIME)).await;
        refused(id, "a1").await;
        refused(id, "a2").await;
    }
    let of = |lead_id: &str| listed(&server).into_iter().filter(|letter| letter["leadId"] == lead_id).count();
    assert_eq!((of(&lead_id), of(&other)), (2, 2));
    let request = || leadfold::api::DeleteLeadRequest { lead_id: lead_id.clone() };
    server.client().delete_lead(request()).await.expect("deleted");
    assert_eq!((of(&lead_id), of(&other)), (0, 2));
    // Late events of it leave none.
    refused(&lead_id, "a3").await;
    assert_eq!((of(&lead_id), of(&other)), (0, 2));
    // Nor do many that are under way while it is deleted.
    let keep = async { futures::future::join_all((0..50).map(|at| refused(&other, ["b", "c"][at % 2]))).await };
    let delete = async {
        let request = leadfold::api::DeleteLeadRequest { lead_id: other.clone() };
        server.client().delete_lead(request).await.expect("deleted");
    };
    tokio::join!(keep, delete);
    assert_eq!(listed(&server), Vec::<Value>::new());
    // A lead that is known from letters alone.
    let unknown = fresh_id();
    refused(&unknown, "a1").await;
    let request = leadfold::api::DeleteLeadRequest { lead_id: unknown.clone() };
    assert_eq!(server.client().delete_lead(request).await.expect_err("no lead").code(), Code::NotFound);
    assert_eq!(of(&unknown), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_letter_on_another_instance_is_ignored_and_gone_when_it_is_tried_again() {
    let redis = RedisServer::start();
    let (one, other) = (Server::start(&Options::on(&redis)), Server::start(&Options::on(&redis)));
    let lead_id = fresh_id();
    one.apply(&message(&lead_id, "a0", SAMPLE_TIME)).await;
    let mut event = message(&lead_id, "a1", SAMPLE_TIME);
    event["actionLog"]["kind"] = event["actionLog"]["type"].take();
    other.post(event.to_string()).await.assert_refused(400, "actionLog.type");
    one.client().delete_lead(leadfold::api::DeleteLeadRequest { lead_id }).await.expect("deleted");
    assert_eq!(listed(&other).len(), 1, "instances have letters of their own");
    let output = dead_letters(&other, &["retry", "1"]);
    assert!(output.status.success() && told(&output).contains("ignored"), "{output:?}");
    assert_eq!(listed(&other), Vec::<Value>::new());
}

/// Whether any file under a directory holds a text.
fn holds(dir: &Path, text: &str) -> bool {
    std::fs::read_dir(dir).expect("a directory").any(|entry| {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            return holds(&path, text);
        }
        std::fs::read(&path).expect("a file").windows(text.len()).any(|window| window == text.as_bytes())
    })
}
