//! Who may call, and what they see: every rpc with no token, a wrong one, and one of another workspace.

use std::time::Duration;

use leadfold::api::watch_lead_response::Event;
use leadfold::api::watch_leads_request::Scope;
use leadfold::api::watch_leads_response::Event as LeadsEvent;
use leadfold::api::{
    BatchGetLeadsRequest, DeleteLeadRequest, GetLeadRequest, LeadIds, ListActivitiesRequest, ListDocumentsRequest, ListLeadsRequest,
    SnapshotReason, WatchLeadRequest, WatchLeadResponse, WatchLeadsRequest, WatchLeadsResponse,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

use crate::support::events::{SAMPLE_TIME, lead_created, message_with_document};
use crate::support::redis::RedisServer;
use crate::support::server::{Options, Server};
use crate::support::tokens::{
    ALL, Client, ONE, OTHER, WORKSPACE_ONE, WORKSPACE_OTHER, client, client_with, entry, usual, with_tokens, write,
};
use crate::support::watching::{retry_delay, version};
use crate::support::{PATIENCE, eventually, fresh_id};

/// How long a stream is listened to that must not tell anything.
const SILENCE: Duration = Duration::from_millis(2500);

fn start(dir: &TempDir) -> Server {
    Server::start(&with_tokens(Options::default(), dir.path()))
}

fn of_workspace(workspace_id: &str, lead_id: &str, action_id: &str) -> Value {
    let mut event = message_with_document(lead_id, action_id, SAMPLE_TIME, &format!("document-of-{action_id}"));
    event["workspaceId"] = json!(workspace_id);
    event
}

/// What every rpc that is not a stream, and the beginning of every stream, answers about a lead or a workspace.
async fn every_rpc(client: &mut Client, lead_id: &str, workspace_id: &str) -> Vec<(&'static str, Result<String, Status>)> {
    let id = || lead_id.to_owned();
    let mut answers = vec![
        ("GetLead", client.get_lead(GetLeadRequest { lead_id: id() }).await.map(text)),
        ("ListActivities", client.list_activities(ListActivitiesRequest { lead_id: id(), ..Default::default() }).await.map(text)),
        ("ListDocuments", client.list_documents(ListDocumentsRequest { lead_id: id(), ..Default::default() }).await.map(text)),
        ("DeleteLead", client.delete_lead(DeleteLeadRequest { lead_id: id() }).await.map(text)),
        ("BatchGetLeads", client.batch_get_leads(BatchGetLeadsRequest { lead_ids: vec![id()] }).await.map(text)),
        ("ListLeads", client.list_leads(ListLeadsRequest { workspace_id: workspace_id.to_owned(), ..Default::default() }).await.map(text)),
    ];
    for after_version in [0, 1, u64::MAX] {
        answers.push(("WatchLead", first(watch(client, lead_id, after_version).await).await.map(|message| format!("{message:?}"))));
    }
    for scope in [Scope::LeadIds(LeadIds { ids: vec![id()] }), Scope::WorkspaceId(workspace_id.to_owned())] {
        let request = WatchLeadsRequest { scope: Some(scope), ..Default::default() };
        answers.push((
            "WatchLeads",
            first(client.watch_leads(request).await.map(tonic::Response::into_inner)).await.map(|m| format!("{m:?}")),
        ));
    }
    answers
}

fn text<T: std::fmt::Debug>(response: tonic::Response<T>) -> String {
    format!("{:?}", response.into_inner())
}

async fn watch(client: &mut Client, lead_id: &str, after_version: u64) -> Result<Streaming<WatchLeadResponse>, Status> {
    let heartbeat_interval = Some(Duration::from_secs(1).try_into().expect("an interval"));
    let request = WatchLeadRequest { lead_id: lead_id.to_owned(), after_version, heartbeat_interval };
    client.watch_lead(request).await.map(tonic::Response::into_inner)
}

/// The next message, which comes in time.
async fn next<T>(stream: &mut Streaming<T>) -> Result<T, Status> {
    let message = tokio::time::timeout(PATIENCE, stream.message()).await.expect("a message in time");
    message.map(|message| message.expect("not the end"))
}

async fn first<T>(stream: Result<Streaming<T>, Status>) -> Result<T, Status> {
    next(&mut stream?).await
}

async fn next_event(stream: &mut Streaming<WatchLeadResponse>) -> Event {
    next(stream).await.expect("no error").event.expect("an event")
}

/// The next message that is no heartbeat.
async fn next_news(stream: &mut Streaming<WatchLeadResponse>) -> Event {
    loop {
        match next_event(stream).await {
            Event::Heartbeat(_) => {}
            news => return news,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_rpc_needs_a_token_that_is_known() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(&dir);
    let lead_id = fresh_id();
    server.apply(&of_workspace(WORKSPACE_ONE, &lead_id, "a1")).await;
    let basic = |token: &str| {
        use base64::Engine as _;
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("me:{token}")))
    };
    let cases = [
        (String::new(), "TOKEN_MISSING"),
        ("Bearer token-canary-of-nobody-at-all".to_owned(), "TOKEN_UNKNOWN"),
        (format!("Bearer {ALL}x"), "TOKEN_UNKNOWN"),
        (format!("Bearer {}", &ALL[..ALL.len() - 1]), "TOKEN_UNKNOWN"),
        ("Bearer".to_owned(), "TOKEN_MALFORMED"),
        (ALL.to_owned(), "TOKEN_MALFORMED"),
        (basic("nobody"), "TOKEN_UNKNOWN"),
    ];
    for (header, reason) in cases {
        for (rpc, answer) in every_rpc(&mut client_with(&server, &header), &lead_id, WORKSPACE_ONE).await {
            let status = answer.expect_err(rpc);
            assert_eq!(status.code(), Code::Unauthenticated, "{rpc} with {header:?}: {status:?}");
            let info = status.get_details_error_info().expect("an ErrorInfo");
            assert_eq!((&*info.domain, &*info.reason), ("leadfold", reason), "{rpc} with {header:?}");
            assert!(!format!("{status:?}").contains("canary"), "{status:?}");
        }
    }
    assert!(server.metric("leadfold_unauthenticated_total{listener=\"grpc\"}").await >= 7.0 * 11.0);
    server.lead_with(&mut client_with(&server, &basic(ALL)), &lead_id).await;
    server.lead_with(&mut client(&server, ALL), &lead_id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_open_and_reflection_is_not() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    use tonic_reflection::pb::{v1, v1alpha};
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(&dir);
    HealthClient::new(server.channel()).check(HealthCheckRequest::default()).await.expect("no token needed");
    HealthClient::new(server.channel()).watch(HealthCheckRequest::default()).await.expect("no token needed");
    let v1_request = || futures::stream::iter([v1::ServerReflectionRequest::default()]);
    let v1alpha_request = || futures::stream::iter([v1alpha::ServerReflectionRequest::default()]);
    let new = v1::server_reflection_client::ServerReflectionClient::new(server.channel()).server_reflection_info(v1_request()).await;
    let old =
        v1alpha::server_reflection_client::ServerReflectionClient::new(server.channel()).server_reflection_info(v1alpha_request()).await;
    for status in [new.expect_err("refused"), old.expect_err("refused")] {
        assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    }
}

async fn another_workspaces_lead_is_not_there(server: Server) {
    let (lead_id, nobody) = (fresh_id(), fresh_id());
    let version = server.apply(&of_workspace(WORKSPACE_ONE, &lead_id, "a1")).await;
    // A lead that is deleted is not told of either.
    let deleted = fresh_id();
    server.apply(&of_workspace(WORKSPACE_ONE, &deleted, "a1")).await;
    client(&server, ALL).delete_lead(DeleteLeadRequest { lead_id: deleted.clone() }).await.expect("deleted");

    let mut other = client(&server, OTHER);
    let never = every_rpc(&mut other, &nobody, "workspace-never-heard-of").await;
    assert_eq!(never.iter().filter(|(_, answer)| answer.as_ref().is_err_and(|status| status.code() == Code::NotFound)).count(), 6);
    for foreign in [&lead_id, &deleted] {
        let answers = every_rpc(&mut other, foreign, WORKSPACE_ONE).await;
        for ((rpc, answer), (_, expected)) in answers.into_iter().zip(&never) {
            let plain = |answer: &Result<String, Status>| {
                let details = |status: &Status| format!("{:?} {:?} {:?}", status.code(), status.message(), status.get_error_details());
                answer
                    .clone()
                    .unwrap_or_else(|status| details(&status))
                    .replace(foreign, &nobody)
                    .replace(WORKSPACE_ONE, "workspace-never-heard-of")
            };
            assert_eq!(plain(&answer), plain(expected), "{rpc}");
        }
    }
    for after in [version - 1, version, version + 1] {
        let message = first(watch(&mut other, &lead_id, after).await).await.expect("a message");
        let Some(Event::Snapshot(snapshot)) = message.event else { panic!("not a snapshot: {message:?}") };
        assert_eq!((snapshot.reason(), snapshot.lead.map(|lead| lead.version)), (SnapshotReason::ResumePositionUnknown, Some(0)));
    }
    let mixed = vec![nobody.clone(), lead_id.clone()];
    let batch = other.batch_get_leads(BatchGetLeadsRequest { lead_ids: mixed.clone() }).await.expect("an answer").into_inner();
    assert_eq!((batch.leads.len(), batch.not_found_lead_ids), (0, mixed));

    // It was there all the time, for those whose it is.
    for token in [ONE, ALL] {
        server.lead_with(&mut client(&server, token), &lead_id).await;
        let request = ListLeadsRequest { workspace_id: WORKSPACE_ONE.to_owned(), ..Default::default() };
        let listed = client(&server, token).list_leads(request).await.expect("a list").into_inner().leads;
        assert_eq!(listed.iter().map(|lead| &lead.lead_id).collect::<Vec<_>>(), [&lead_id]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_workspaces_lead_is_not_there_with_the_embedded_store() {
    let dir = tempfile::tempdir().expect("a directory");
    another_workspaces_lead_is_not_there(start(&dir)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_workspaces_lead_is_not_there_with_redis() {
    let (dir, redis) = (tempfile::tempdir().expect("a directory"), RedisServer::start());
    another_workspaces_lead_is_not_there(Server::start(&with_tokens(Options::on(&redis), dir.path()))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_tells_nothing_of_what_becomes_of_another_workspaces_lead() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(&dir);
    let (lead_id, own) = (fresh_id(), fresh_id());
    server.apply(&of_workspace(WORKSPACE_OTHER, &own, "a1")).await;
    let mut stranger = client(&server, OTHER);
    let mut watched = watch(&mut stranger, &lead_id, 0).await.expect("the stream opens");
    let ids = LeadIds { ids: vec![lead_id.clone(), own.clone()] };
    let request = WatchLeadsRequest {
        scope: Some(Scope::LeadIds(ids)),
        heartbeat_interval: Some(Duration::from_secs(1).try_into().expect("an interval")),
        ..Default::default()
    };
    let mut named = stranger.watch_leads(request).await.expect("the stream opens").into_inner();
    let mut friend = watch(&mut client(&server, ONE), &lead_id, 0).await.expect("the stream opens");
    let Event::Snapshot(first) = next_event(&mut watched).await else { panic!("not a snapshot") };
    assert_eq!((first.reason(), first.lead.expect("a lead").version), (SnapshotReason::Initial, 0));
    next_event(&mut friend).await;
    for _ in 0..3 {
        next(&mut named).await.expect("two snapshots, and synced");
    }

    // It is born, it changes, it is deleted: its own people see it all.
    for action_id in ["a1", "a2", "a3"] {
        let version_now = server.apply(&of_workspace(WORKSPACE_ONE, &lead_id, action_id)).await;
        assert_eq!(version(&next_news(&mut friend).await), version_now);
    }
    client(&server, ALL).delete_lead(DeleteLeadRequest { lead_id: lead_id.clone() }).await.expect("deleted");
    let Event::Snapshot(last) = next_news(&mut friend).await else { panic!("not a snapshot") };
    assert_eq!(last.reason(), SnapshotReason::Deleted);

    let own_version = server.apply(&of_workspace(WORKSPACE_OTHER, &own, "a2")).await;
    let (seen, of_named) = tokio::join!(listen(&mut watched), listen(&mut named));
    let heartbeat = |event: &WatchLeadResponse| matches!(&event.event, Some(Event::Heartbeat(heartbeat)) if heartbeat.version == 0);
    assert!(seen.len() >= 2 && seen.iter().all(heartbeat), "{seen:?}");
    let news: Vec<_> = of_named.into_iter().filter(|message| !matches!(message.event, Some(LeadsEvent::Heartbeat(_)))).collect();
    let [WatchLeadsResponse { event: Some(LeadsEvent::Update(update)) }] = &news[..] else { panic!("{news:?}") };
    let lead = update.lead.as_ref().expect("the lead");
    assert_eq!((&lead.lead_id, lead.version), (&own, own_version));
}

/// What a stream tells for a while.
async fn listen<T>(stream: &mut Streaming<T>) -> Vec<T> {
    let mut told = Vec::new();
    let _ = tokio::time::timeout(SILENCE, async {
        while let Ok(message) = next(stream).await {
            told.push(message);
        }
    })
    .await;
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lead_appears_when_its_workspace_becomes_known_and_its_end_is_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(&dir);
    let lead_id = fresh_id();
    server.apply(&lead_created(&lead_id)).await;
    let mut one = client(&server, ONE);
    assert_eq!(one.get_lead(GetLeadRequest { lead_id: lead_id.clone() }).await.expect_err("nobody's yet").code(), Code::NotFound);
    server.lead_with(&mut client(&server, ALL), &lead_id).await;
    let mut watched = watch(&mut one, &lead_id, 0).await.expect("the stream opens");
    let mut never = watch(&mut client(&server, OTHER), &lead_id, 0).await.expect("the stream opens");
    assert_eq!((version(&next_event(&mut watched).await), version(&next_event(&mut never).await)), (0, 0));

    let known = server.apply(&of_workspace(WORKSPACE_ONE, &lead_id, "a1")).await;
    assert_eq!(version(&next_news(&mut watched).await), known);
    server.lead_with(&mut one, &lead_id).await;
    client(&server, ALL).delete_lead(DeleteLeadRequest { lead_id: lead_id.clone() }).await.expect("deleted");
    let Event::Snapshot(last) = next_news(&mut watched).await else { panic!("not a snapshot") };
    assert_eq!((last.reason(), last.lead.expect("a lead").version), (SnapshotReason::Deleted, 0));
    assert!(listen(&mut never).await.iter().all(|message| matches!(message.event, Some(Event::Heartbeat(_)))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_token_that_may_delete_deletes() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(&dir);
    let (of_one, of_other) = (fresh_id(), fresh_id());
    server.apply(&of_workspace(WORKSPACE_ONE, &of_one, "a1")).await;
    server.apply(&of_workspace(WORKSPACE_OTHER, &of_other, "a1")).await;
    let delete =
        async |token: &str, lead_id: &str| client(&server, token).delete_lead(DeleteLeadRequest { lead_id: lead_id.to_owned() }).await;
    // Whether the lead is there makes no difference.
    for lead_id in [&of_one, &of_other, &fresh_id()] {
        let status = delete(ONE, lead_id).await.expect_err("read-only");
        assert_eq!(
            (status.code(), &*status.get_details_error_info().expect("info").reason),
            (Code::PermissionDenied, "TOKEN_IS_READ_ONLY")
        );
    }
    assert_eq!(delete(OTHER, &of_one).await.expect_err("not theirs").code(), Code::NotFound);
    server.lead_with(&mut client(&server, ONE), &of_one).await;
    delete(OTHER, &of_other).await.expect("theirs");
    delete(ALL, &of_one).await.expect("anybody's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_file_is_read_again_and_streams_of_fallen_tokens_end() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = start(&dir);
    let lead_id = fresh_id();
    server.apply(&of_workspace(WORKSPACE_ONE, &lead_id, "a1")).await;
    let mut all = watch(&mut client(&server, ALL), &lead_id, 0).await.expect("the stream opens");
    let mut one = watch(&mut client(&server, ONE), &lead_id, 0).await.expect("the stream opens");
    let scope = Some(Scope::WorkspaceId(WORKSPACE_OTHER.to_owned()));
    let request = WatchLeadsRequest { scope, ..Default::default() };
    let mut other = client(&server, OTHER).watch_leads(request).await.expect("the stream opens").into_inner();
    next(&mut other).await.expect("synced");
    for stream in [&mut all, &mut one] {
        next_event(stream).await;
    }

    // One is broken: nothing changes.
    write(dir.path(), "tokens.toml", "[[token]]\nname = \"slip\"\n");
    eventually("it says so", async || server.logs().contains("stay in force").then_some(())).await;
    server.lead_with(&mut client(&server, ONE), &lead_id).await;

    // OTHER is revoked, ONE may do more, and there is a new one.
    let new = "token-canary-that-is-new-0000";
    let text = [entry(ALL, &["*"], true), entry(ONE, &[WORKSPACE_ONE], true), entry(new, &[WORKSPACE_ONE], false)].concat();
    write(dir.path(), "tokens.toml", &text);
    let changed = std::time::Instant::now();
    let status = next(&mut other).await.expect_err("the end");
    assert_eq!((status.code(), &*status.get_details_error_info().expect("info").reason), (Code::Unauthenticated, "TOKEN_REVOKED"));
    let status = loop {
        if let Err(status) = next(&mut one).await {
            break status;
        }
    };
    assert_eq!((status.code(), &*status.get_details_error_info().expect("info").reason), (Code::Unavailable, "TOKEN_CHANGED"));
    assert!(retry_delay(&status).is_some(), "when to come back");
    assert!(changed.elapsed() < Duration::from_secs(5), "{:?}", changed.elapsed());
    assert_eq!(
        client(&server, OTHER).get_lead(GetLeadRequest { lead_id: lead_id.clone() }).await.expect_err("revoked").code(),
        Code::Unauthenticated
    );
    server.lead_with(&mut client(&server, new), &lead_id).await;
    // The others' streams go on.
    let newest = server.apply(&of_workspace(WORKSPACE_ONE, &lead_id, "a2")).await;
    assert_eq!(version(&next_news(&mut all).await), newest);
    let logs = server.logs();
    assert!(logs.contains("name of ") && !logs.contains("canary"), "tokens by their names only: {logs}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_beyond_loopback_need_a_token_of_all_workspaces_and_probes_none() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(&with_tokens(Options::default().admin("0.0.0.0:0"), dir.path()));
    let web = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("an HTTP client");
    let port = server.admin.rsplit(':').next().expect("a port");
    let get = async |path: &str, token: Option<&str>| {
        let request = web.get(format!("http://127.0.0.1:{port}{path}"));
        let request = token.map_or(request.try_clone().expect("a request"), |token| request.bearer_auth(token));
        request.send().await.expect("an answer")
    };
    for path in ["/livez", "/readyz"] {
        eventually("probes are open", async || (get(path, None).await.status() == 200).then_some(())).await;
    }
    let stranger = get("/metrics", None).await;
    assert_eq!(stranger.status(), 401);
    assert!(stranger.headers().contains_key("www-authenticate"));
    assert_eq!(get("/metrics", Some("nobody")).await.status(), 401);
    assert_eq!(get("/metrics", Some(ONE)).await.status(), 403);
    let metrics = get("/metrics", Some(ALL)).await;
    assert_eq!(metrics.status(), 200);
    assert!(metrics.text().await.expect("text").contains("leadfold_build_info"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_tokens_that_cannot_be_used_is_said_and_nothing_is_quoted() {
    let dir = tempfile::tempdir().expect("a directory");
    let twice = format!("{}{}", usual(), entry(ONE, &["*"], true));
    for (text, expected) in [("", "no [[token]]"), ("token = \"canary\"", "line 1"), (&*twice, "there already")] {
        let path = write(dir.path(), "tokens.toml", text);
        let said = Options::default().env("LEADFOLD_TOKENS_FILE", path.to_str().expect("a path")).refused();
        assert!(said.starts_with("error: --tokens-file") && said.contains(expected) && !said.contains("canary"), "{said}");
    }
    let said = Options::default().env("LEADFOLD_TOKENS_FILE", "/nowhere/tokens").refused();
    assert!(said.contains("cannot read /nowhere/tokens"), "{said}");
    let path = write(dir.path(), "tokens.toml", &usual());
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("permissions");
    let server = Server::start(&Options::default().env("LEADFOLD_TOKENS_FILE", path.to_str().expect("a path")));
    eventually("others may read it: it says so", async || server.logs().contains("chmod 600").then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_without_a_token_is_told_so_and_may_ask_whether_it_may_call() {
    const ORIGIN: &str = "https://desk.example";
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::start(&with_tokens(Options::default().env("LEADFOLD_CORS_ORIGIN", ORIGIN), dir.path()));
    let web = reqwest::Client::builder().no_proxy().http1_only().timeout(PATIENCE).build().expect("an HTTP client");
    let url = format!("http://{}/leadfold.v1.LeadService/GetLead", server.grpc);
    let preflight = web.request(reqwest::Method::OPTIONS, &url).header("origin", ORIGIN).header("access-control-request-method", "POST");
    assert_eq!(preflight.send().await.expect("an answer").status(), 200, "browsers send no token with this question");
    let call = web.post(&url).header("origin", ORIGIN).header("content-type", "application/grpc-web+proto").body(vec![0; 5]);
    let answer = call.send().await.expect("an answer");
    assert_eq!((answer.status().as_u16(), answer.headers()["grpc-status"].as_bytes()), (200, &b"16"[..]));
    assert_eq!(answer.headers()["access-control-allow-origin"], ORIGIN);
}
