//! `watch`, when the server is silent, or was away.

use std::time::{Duration, Instant};

use leadfold::api::DeleteLeadRequest;
use serde_json::{Value, json};

use super::{Watch, url};
use crate::support::events::{WORKSPACE, message};
use crate::support::fresh_id;
use crate::support::server::{Options, Server};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_server_is_noticed_and_found_again() {
    let server = Server::start(&Options::default());
    let lead_id = fresh_id();
    server.apply(&message(&lead_id, "a1", "2025-11-01T00:00:00Z")).await;
    let watch = Watch::start(&url(&server), &["watch", &lead_id]);
    assert!(watch.line().contains("1 message, "));
    server.signal("STOP");
    let frozen = Instant::now();
    let loss = watch.losses.recv_timeout(Duration::from_secs(40)).expect("it says that nothing comes");
    server.signal("CONT");
    assert!(loss.contains("nothing was heard for 15 s") && loss.ends_with("trying again"), "{loss}");
    assert!(frozen.elapsed() < Duration::from_secs(20), "{:?}", frozen.elapsed());
    assert!(watch.loss().starts_with("connected again to http://"));
    server.apply(&message(&lead_id, "a2", "2025-11-01T00:00:00Z")).await;
    assert!(watch.line().ends_with("Incoming email: a2"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leads_that_are_deleted_while_it_is_away_go() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = || Options::default().data_dir(dir.path()).env("LEADFOLD_DRAIN_DELAY_MS", "0");
    let mut server = Server::start(&options());
    for lead_id in ["stays", "goes"] {
        server.apply(&message(lead_id, "a1", "2025-11-01T00:00:00Z")).await;
    }
    let text = Watch::start(&url(&server), &["watch", "--workspace", WORKSPACE]);
    let json = Watch::start(&url(&server), &["watch", "--workspace", WORKSPACE, "--json"]);
    let _ = (text.line(), text.line(), json.line(), json.line());
    assert_eq!(json.line(), r#"{"synced":{}}"#);
    let address = server.grpc.clone();
    assert!(server.terminate().status.success());
    // Elsewhere, so that the watches do not see it.
    let mut elsewhere = Server::start(&options());
    elsewhere.client().delete_lead(DeleteLeadRequest { lead_id: "goes".to_owned() }).await.expect("deleted");
    assert!(elsewhere.terminate().status.success());
    let _server = Server::start(&options().grpc(&address));
    assert!(text.line().ends_with("  goes  deleted"));
    let told: Value = serde_json::from_str(&json.line()).expect("JSON");
    assert_eq!(told, json!({"snapshot": {"lead": {"leadId": "goes"}, "reason": "SNAPSHOT_REASON_DELETED"}}));
    assert_eq!(json.line(), r#"{"synced":{}}"#);
}
