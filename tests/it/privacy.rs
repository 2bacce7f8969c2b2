//! What must never be kept: subjects, bodies, payloads, results, signed URLs. They are looked for wherever
//! anything is kept or told.

use std::path::Path;

use leadfold::api::{BatchGetLeadsRequest, ListActivitiesRequest, ListDocumentsRequest, ListLeadsRequest};
use serde_json::{Value, json};

use crate::support::events::{
    CANARY, SAMPLE_TIME, WORKSPACE, document_extracted, document_received, failed, lead_completed, lead_created, lead_updated,
    message_with_document, retried,
};
use crate::support::fresh_id;
use crate::support::redis::RedisServer;
use crate::support::server::{Options, Server};
use crate::support::watching::LeadWatch;

/// Stands in a field that is kept: where it is not found, the search itself is broken.
const KEPT: &str = "kept-document";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_texts_are_nowhere_with_the_embedded_store() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut server = Server::start(&verbose(Options::default()).data_dir(dir.path()));
    tell_everything(&server).await;
    end(&mut server);
    let files = read_all(dir.path());
    assert!(holds(&files, KEPT), "the store holds what is to be kept, readable to this test");
    assert!(!holds(&files, CANARY), "in the data directory");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_texts_are_nowhere_with_redis() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let redis = RedisServer::start_with(&["--rdbcompression", "no"]);
    let mut server = Server::start(&verbose(Options::on(&redis)).data_dir(dir.path()));
    tell_everything(&server).await;
    end(&mut server);
    let dump = redis.dump();
    assert!(holds(&dump, KEPT), "Redis holds what is to be kept, readable to this test");
    assert!(!holds(&dump, CANARY), "in Redis");
    assert!(!holds(&read_all(dir.path()), CANARY), "in the data directory");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_texts_are_not_spooled_while_redis_is_away() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut redis = RedisServer::start();
    let mut server = Server::start(&verbose(Options::on(&redis)).data_dir(dir.path()));
    redis.kill();
    for event in events(&fresh_id()) {
        let answer = server.post(event.to_string()).await;
        assert!(answer.outcome() == "queued" || answer.status == 503, "{answer:?}");
        assert!(!answer.text.contains(CANARY), "{answer:?}");
    }
    end(&mut server);
    assert!(!holds(&read_all(dir.path()), CANARY), "in the data directory");
}

/// Logs everything that can be logged.
fn verbose(options: Options) -> Options {
    options.env("LEADFOLD_LOG_LEVEL", "trace")
}

/// Ends the server and looks into its logs.
fn end(server: &mut Server) {
    let exit = server.terminate();
    assert!(exit.status.success(), "{exit:?}", exit = exit.status);
    let logs = server.logs();
    assert!(!logs.is_empty(), "it logs something");
    let line = logs.lines().find(|line| line.contains(CANARY));
    assert_eq!(line, None, "in the logs");
}

fn events(lead_id: &str) -> Vec<Value> {
    vec![
        message_with_document(lead_id, "a1", SAMPLE_TIME, KEPT),
        failed(lead_id, "a2", SAMPLE_TIME),
        retried(lead_id, "a2", "2025-11-01T00:00:00Z"),
        document_received(lead_id, "d2"),
        document_extracted(lead_id, "d2"),
        lead_created(lead_id),
        lead_updated(lead_id),
        lead_completed(lead_id),
    ]
}

/// Sends every event, twice; then events that are refused; and looks into every answer.
async fn tell_everything(server: &Server) {
    let lead_id = fresh_id();
    let mut watch = LeadWatch::open(server, &lead_id, 0).await;
    let mut answers = vec![format!("{:?}", watch.next().await)];
    for event in &events(&lead_id) {
        server.apply(event).await;
        answers.push(format!("{:?}", watch.next_update().await));
        answers.push(server.post(event.to_string()).await.text);
    }
    // What cannot be read of an event that is taken is not told either.
    for pointer in ["/actionLog/messages/0/documents/0/size", "/actionLog/completedAt", "/actionLog/tool", "/occurredAt"] {
        let mut event = message_with_document(&fresh_id(), "a1", SAMPLE_TIME, "d1");
        let (parent, name) = pointer.rsplit_once('/').expect(pointer);
        event.pointer_mut(parent).expect(pointer)[name] = json!(CANARY);
        answers.push(server.post(event.to_string()).await.text);
    }
    for body in refused() {
        let answer = server.post(body).await;
        assert!((400..500).contains(&answer.status), "{answer:?}");
        answers.push(answer.text);
    }
    let mut unknown = events(&lead_id).remove(0);
    unknown["event"] = json!("action_log.reopened");
    answers.push(server.post(unknown.to_string()).await.text);

    let mut client = server.client();
    let leads = client.batch_get_leads(BatchGetLeadsRequest { lead_ids: vec![lead_id.clone()] }).await.expect("a lead").into_inner();
    let listed =
        client.list_leads(ListLeadsRequest { workspace_id: WORKSPACE.into(), ..Default::default() }).await.expect("leads").into_inner();
    let activities = client.list_activities(ListActivitiesRequest { lead_id: lead_id.clone(), ..Default::default() }).await;
    let documents = client.list_documents(ListDocumentsRequest { lead_id, ..Default::default() }).await;
    let documents = format!("{:?}", documents.expect("documents").into_inner());
    assert!(documents.contains(KEPT), "{documents}");
    answers.extend([format!("{leads:?}"), format!("{listed:?}"), format!("{:?}", activities.expect("activities").into_inner()), documents]);
    let seen: Vec<_> = answers.iter().filter(|answer| answer.contains(CANARY)).collect();
    assert!(seen.is_empty(), "in answers: {seen:#?}");
}

/// Bodies that are refused while the private text is at hand: a message that quotes the value would tell it.
fn refused() -> Vec<String> {
    let lead_id = fresh_id();
    let event = message_with_document(&lead_id, "a1", SAMPLE_TIME, "d1");
    let mut bodies = Vec::new();
    for pointer in [
        "/actionLog",
        "/actionLog/messages",
        "/actionLog/messages/0",
        "/actionLog/messages/0/documents",
        "/actionLog/messages/0/documents/0",
    ] {
        let mut event = event.clone();
        *event.pointer_mut(pointer).expect(pointer) = json!(CANARY);
        bodies.push(event.to_string());
    }
    // Refused for an id, with the private text in shapes that only a repair makes readable; each is a dead letter.
    let mut event = event;
    event["actionLog"]["leadId"] = json!(null);
    for odd in ["{\"x\":NaN,\"y\":\"TEXT\"}", "\"\\ud83d TEXT \\x\"", "[1e400,\"TEXT\",[\"TEXT\t\"]]"] {
        let mut body = event.to_string();
        for name in ["body", "subject", "reply", "metadata", "signedUrl"] {
            let at = body.find(&format!("\"{name}\":")).expect(name);
            body.insert_str(at, &format!("\"{name}\":{},", odd.replace("TEXT", CANARY)));
        }
        bodies.push(body);
    }
    let whole = event.to_string();
    let end = whole.find(CANARY).expect("the private text") + CANARY.len();
    bodies.push(whole[..end].to_owned());
    bodies.push(format!("\"{CANARY}\""));
    bodies.push(CANARY.to_owned());
    bodies
}

/// All files under a directory, one after the other.
fn read_all(dir: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        bytes.extend(if path.is_dir() { read_all(&path) } else { std::fs::read(&path).expect("a file") });
    }
    bytes
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}
