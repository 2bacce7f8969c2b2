//! What gRPC clients meet on the wire when they ask for something odd, or for much.

use std::time::Duration;

use leadfold::api::lead_service_client::LeadServiceClient;
use leadfold::api::watch_lead_response::Event;
use leadfold::api::{BatchGetLeadsRequest, GetLeadRequest, ListActivitiesRequest, ListDocumentsRequest, WatchLeadRequest};
use serde_json::{Value, json};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request};
use tonic_types::StatusExt;

use crate::support::events::{SAMPLE_TIME, WORKSPACE, message};
use crate::support::redis::RedisServer;
use crate::support::server::{Options, Server};
use crate::support::watching::{LeadWatch, version};
use crate::support::{PATIENCE, Setup, fresh_id, on_both_stores};

on_both_stores!(pages_of_large_things_end_early, a_lead_as_served_is_bounded);

const STREAMS: &str = "leadfold_watch_streams";
/// What clients take unless told otherwise.
const FOUR_MEBIBYTES: usize = 4 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_exist_is_unimplemented() {
    let server = Setup::embedded();
    for path in ["/leadfold.v1.LeadService/Nothing", "/leadfold.v1.NoService/GetLead", "/leadfold.v2.LeadService/GetLead", "/nothing"] {
        let mut client = tonic::client::Grpc::new(server.channel());
        client.ready().await.expect("a connection");
        let codec = tonic_prost::ProstCodec::<GetLeadRequest, ()>::default();
        let answer = client.unary(Request::new(GetLeadRequest::default()), PathAndQuery::from_static(path), codec).await;
        assert_eq!(answer.map(drop).expect_err(path).code(), Code::Unimplemented, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_bad_ids_are_refused_in_words_that_fit_into_headers() {
    let server = Setup::embedded();
    for bad in [String::new(), "x".repeat(257), "ü".repeat(4000)] {
        let lead_ids = vec![bad; 500];
        let status = server.client().batch_get_leads(BatchGetLeadsRequest { lead_ids }).await.expect_err("bad ids");
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().starts_with("lead_ids[0]: ") && status.message().len() < 200, "{}", status.message());
        let violations = status.get_details_bad_request().expect("which field").field_violations;
        assert_eq!(violations.iter().map(|violation| &*violation.field).collect::<Vec<_>>(), ["lead_ids[0]"]);
        assert!(status.details().len() < 1000, "{} bytes of details", status.details().len());
    }
}

/// A lead with a checklist of about 400 KB.
async fn large_lead(server: &Server) -> String {
    let lead_id = fresh_id();
    let items: Vec<Value> =
        (0..100).map(|item| json!({"checklistItemId": format!("item {item}"), "value": "v".repeat(4000), "status": "TODO"})).collect();
    server.apply(&json!({"event": "lead.updated", "data": {"leadId": lead_id, "checklistItems": items}})).await;
    lead_id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_clients_would_not_take_is_refused_in_words() {
    let server = Setup::embedded();
    let mut lead_ids = Vec::new();
    for _ in 0..11 {
        lead_ids.push(large_lead(&server).await);
    }
    let status = server.client().batch_get_leads(BatchGetLeadsRequest { lead_ids: lead_ids.clone() }).await.expect_err("too much");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains("ask for fewer"), "{status:?}");
    lead_ids.pop();
    let answer = server.client().batch_get_leads(BatchGetLeadsRequest { lead_ids }).await.expect("one less is fine").into_inner();
    assert_eq!(answer.leads.len(), 10);
}

async fn pages_of_large_things_end_early(server: Setup) {
    let lead_id = fresh_id();
    let large = |n: usize| {
        let mut event = message(&lead_id, &format!("a{n}"), SAMPLE_TIME);
        event["actionLog"]["summary"] = json!("s".repeat(2048));
        event["actionLog"]["error"] = json!("e".repeat(2048));
        let document = |d: usize| json!({"id": format!("d{n}-{d}"), "filename": "f".repeat(1024), "mimeType": "m".repeat(256)});
        event["actionLog"]["messages"][0]["documents"] = (0..3).map(document).collect();
        event
    };
    let mut posts = Vec::new();
    for n in 0..1100 {
        posts.push(large(n).to_string());
    }
    let answers: Vec<_> = futures::StreamExt::collect(futures::StreamExt::buffer_unordered(
        futures::stream::iter(posts.into_iter().map(|post| server.post(post))),
        32,
    ))
    .await;
    assert!(answers.iter().all(|answer| answer.status == 200));

    let mut client = server.client();
    let (mut token, mut found, mut pages) = (String::new(), Vec::new(), 0);
    loop {
        let request = ListActivitiesRequest { lead_id: lead_id.clone(), page_size: 1000, page_token: token };
        let page = client.list_activities(request).await.expect("a page that fits").into_inner();
        assert!(prost::Message::encoded_len(&page) < FOUR_MEBIBYTES && !page.activities.is_empty());
        found.extend(page.activities.into_iter().map(|activity| activity.action_id));
        (token, pages) = (page.next_page_token, pages + 1);
        if token.is_empty() {
            break;
        }
    }
    found.sort();
    found.dedup();
    assert_eq!((found.len(), pages), (1100, 2), "each once");

    let (mut token, mut found, mut pages) = (String::new(), Vec::new(), 0);
    loop {
        let request = ListDocumentsRequest { lead_id: lead_id.clone(), page_size: 1000, page_token: token };
        let page = client.list_documents(request).await.expect("a page that fits").into_inner();
        assert!(prost::Message::encoded_len(&page) < FOUR_MEBIBYTES && !page.documents.is_empty());
        found.extend(page.documents.into_iter().map(|document| document.document_id));
        (token, pages) = (page.next_page_token, pages + 1);
        if token.is_empty() {
            break;
        }
    }
    found.sort();
    found.dedup();
    assert_eq!((found.len(), pages), (3300, 4), "each once");
}

/// What is stored may be more than any client takes in one message.
async fn a_lead_as_served_is_bounded(server: Setup) {
    let lead_id = fresh_id();
    let workspace = format!("/webhooks/omniai/{WORKSPACE}");
    let mut watch = LeadWatch::over(&server.channel(), &lead_id, 0).await.expect("a stream");
    watch.next().await;
    let items = |from: usize, to: usize| -> Vec<Value> {
        let item = |number: usize| {
            let time = format!("2026-03-01T{:02}:{:02}:00Z", number / 60, number % 60);
            json!({"checklistItemId": format!("item {number:04}"), "value": "v".repeat(4000), "status": "TODO", "updatedAt": time})
        };
        (from..to).map(item).collect()
    };
    // 1,400 items of 4 KB, and 200 documents with long names: 6 MB.
    for from in (0..1400).step_by(200) {
        let event = json!({"event": "lead.updated", "data": {"leadId": lead_id, "checklistItems": items(from, from + 200)}});
        server.apply_to(&workspace, &event).await;
    }
    for action in 0..10 {
        let mut event = message(&lead_id, &format!("a{action}"), &format!("2026-03-01T10:00:{action:02}Z"));
        event["workspaceId"] = json!(WORKSPACE);
        let documents = (0..20).map(|id| json!({"id": format!("{action}-{id:02}-{}", "i".repeat(200)), "filename": "f".repeat(1000)}));
        event["actionLog"]["messages"][0]["documents"] = documents.collect();
        server.apply(&event).await;
    }
    let check = |lead: &leadfold::api::Lead| {
        let length = prost::Message::encoded_len(lead);
        assert!(length <= 1 << 20, "{length} bytes");
        assert_eq!((lead.document_count, lead.checklist_item_count), (200, 1400));
        let (documents, items) = (lead.documents.len(), lead.checklist_items.len());
        assert_eq!((documents, items), (100, 100), "there is room for as many as may be");
        let ids: Vec<_> = lead.checklist_items.iter().map(|item| &*item.checklist_item_id).collect();
        assert!(ids.is_sorted() && ids[0] >= "item 1200", "the newest: {ids:?}");
        assert!(lead.documents[0].document_id.starts_with("9-"), "the newest first");
    };
    check(&server.lead(&lead_id).await);
    let request = leadfold::api::ListLeadsRequest { workspace_id: WORKSPACE.to_owned(), ..Default::default() };
    check(&server.client().list_leads(request).await.expect("a page").into_inner().leads[0]);
    let mut first = LeadWatch::over(&server.channel(), &lead_id, 0).await.expect("a stream");
    let Event::Snapshot(snapshot) = first.next().await else { panic!("not a snapshot") };
    let lead = snapshot.lead.expect("a lead");
    check(&lead);
    let newest = lead.version;
    // A stream that did not read meanwhile is told all at once, in as much as clients take.
    loop {
        let Event::Update(update) = watch.next().await else { panic!("not an update") };
        assert!(prost::Message::encoded_len(&update) < FOUR_MEBIBYTES, "{}", prost::Message::encoded_len(&update));
        let lead = update.lead.expect("a lead");
        if lead.version == newest {
            check(&lead);
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_that_are_none_are_refused() {
    let server = Setup::embedded();
    for nanos in [-1, 1_000_000_000, i32::MIN, i32::MAX] {
        let time = Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos });
        for (after, before, field) in [(time, None, "activity_after"), (None, time, "activity_before")] {
            let (activity_after, activity_before) = (after, before);
            let request =
                leadfold::api::ListLeadsRequest { workspace_id: "w".into(), activity_after, activity_before, ..Default::default() };
            let status = server.client().list_leads(request).await.expect_err("not a time");
            assert!(status.code() == Code::InvalidArgument && status.message().starts_with(field), "{nanos}: {status:?}");
        }
        let heartbeat_interval = Some(prost_types::Duration { seconds: 5, nanos });
        let request = WatchLeadRequest { lead_id: "l".into(), heartbeat_interval, ..Default::default() };
        let status = server.client().watch_lead(request).await.expect_err("not a duration");
        assert_eq!(status.code(), Code::InvalidArgument, "{nanos}: {status:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_opened_and_cancelled_at_once_end_no_other() {
    let server = Setup::embedded();
    let (channel, lead_id) = (server.channel(), fresh_id());
    // More than hyper's 200 on the one connection.
    let mut steady = Vec::new();
    for _ in 0..250 {
        let mut watch = LeadWatch::over(&channel, &lead_id, 0).await.expect("the stream opens");
        watch.next().await;
        steady.push(watch);
    }
    for _ in 0..5 {
        let opened = (0..500).map(|_| {
            let mut client = LeadServiceClient::new(channel.clone());
            tokio::spawn(async move { client.watch_lead(WatchLeadRequest { lead_id: "l".into(), ..Default::default() }).await.map(drop) })
        });
        for task in opened.collect::<Vec<_>>() {
            task.abort();
            let _ = task.await;
        }
    }
    server.eventually_metric(STREAMS, 250.0).await;
    let newest = server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    for mut watch in steady {
        assert_eq!(version(&watch.next().await), newest);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_requests_may_arrive_together_on_one_connection() {
    const REQUESTS: usize = 10_000;
    // With a single thread: what arrives together is read together, before any request is looked at.
    let server = Server::start(&Options::default().env("TOKIO_WORKER_THREADS", "1"));
    let lead_id = fresh_id();
    server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    let tcp = tokio::net::TcpStream::connect(&server.grpc).await.expect("a connection");
    // All are sent before anything is read, so more than its usual 100 before it knows how many the server allows; and it
    // does not end the connection by itself when the answers come as fast.
    let mut client = h2::client::Builder::new();
    client.initial_max_send_streams(REQUESTS).data_frame_budget(usize::MAX).max_local_error_reset_streams(None);
    let (mut sender, connection) = client.handshake::<_, bytes::Bytes>(tcp).await.expect("HTTP/2");
    let message = prost::Message::encode_to_vec(&GetLeadRequest { lead_id });
    let mut framed = vec![0];
    framed.extend(u32::try_from(message.len()).expect("a length").to_be_bytes());
    framed.extend(message);
    let mut call = || {
        let request = http::Request::post(format!("http://{}/leadfold.v1.LeadService/GetLead", server.grpc));
        let request = request.header("content-type", "application/grpc").header("te", "trailers").body(()).expect("a request");
        let (answer, mut body) = sender.send_request(request, false).expect("it is sent");
        // As most clients do: the message first, and then that it was the last.
        body.send_data(framed.clone().into(), false).expect("its body too");
        body.send_data(bytes::Bytes::new(), true).expect("and its end");
        answer
    };
    let first = call();
    let connection = tokio::spawn(connection);
    first.await.expect("the first answer");
    // The settings of both sides are known now, and nothing but the system's buffers holds back what follows.
    server.signal("STOP");
    let answers: Vec<_> = (0..REQUESTS).map(|_| call()).collect();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    server.signal("CONT");
    for answer in answers {
        let answer = tokio::time::timeout(PATIENCE, answer).await.expect("in time").expect("the connection lives");
        let status = answer.headers().get("grpc-status");
        // Of more than are served at once some are told to come back.
        assert!(status.is_none_or(|status| status == "14"), "{answer:?}");
    }
    assert!(!connection.is_finished(), "the connection has ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_ends_at_the_deadline_that_its_caller_told() {
    let redis = RedisServer::start();
    let server = Server::start(&Options::on(&redis));
    // Told in a header only: tonic's client would end the call by itself otherwise, and prove nothing.
    let with_timeout = |timeout: &'static str| {
        let mut request = Request::new(WatchLeadRequest { lead_id: fresh_id(), ..Default::default() });
        request.metadata_mut().insert("grpc-timeout", timeout.parse().expect("a timeout"));
        request
    };
    let began = std::time::Instant::now();
    let mut stream = server.client().watch_lead(with_timeout("700m")).await.expect("the stream opens").into_inner();
    stream.message().await.expect("a first message").expect("before the end");
    let status = tokio::time::timeout(PATIENCE, stream.message()).await.expect("in time").expect_err("the end");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(status.message().contains("grpc-timeout") && began.elapsed() >= Duration::from_millis(700), "{status:?}");
    server.eventually_metric(STREAMS, 0.0).await;

    let () = redis::cmd("CLIENT").arg("PAUSE").arg(900).query(&mut redis.connection()).expect("Redis pauses");
    // By gRPC-Web, whose client here knows nothing of deadlines.
    let message = prost::Message::encode_to_vec(&GetLeadRequest { lead_id: "l".to_owned() });
    let web = reqwest::Client::builder().no_proxy().http1_only().timeout(PATIENCE).build().expect("an HTTP client");
    let request = web.post(format!("http://{}/leadfold.v1.LeadService/GetLead", server.grpc)).header("grpc-timeout", "200m");
    let request = request.header("content-type", "application/grpc-web+proto").body([&[0, 0, 0, 0, 3], &*message].concat());
    let answer = request.send().await.expect("an answer");
    assert!(answer.headers()["grpc-status"] == "4", "{answer:?}");
    // Far off, or broken: as if there were none.
    for timeout in ["99999999H", "10S", "soon"] {
        let mut stream = server.client().watch_lead(with_timeout(timeout)).await.expect(timeout).into_inner();
        stream.message().await.expect(timeout).expect(timeout);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_deliveries_of_one_event_at_the_same_time_count_once() {
    for server in [Setup::embedded(), Setup::redis()] {
        let lead_id = fresh_id();
        let event = message(&lead_id, "a1", SAMPLE_TIME).to_string();
        let answers = futures::future::join_all((0..50).map(|_| server.post(event.clone()))).await;
        let applied = answers.iter().filter(|answer| answer.outcome() == "applied").count();
        let duplicates = answers.iter().filter(|answer| answer.outcome() == "duplicate").count();
        assert_eq!((applied, duplicates), (1, 49));
        assert_eq!(server.lead(&lead_id).await.message_count, 1);
    }
}

/// On demand, for it takes half a minute: `LEADFOLD_TEST_VANISHED=1`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_has_vanished_is_noticed() {
    if std::env::var_os("LEADFOLD_TEST_VANISHED").is_none() {
        eprintln!("SKIPPED: LEADFOLD_TEST_VANISHED=1 runs it, for half a minute");
        return;
    }
    let server = Setup::embedded();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_leadfold"));
    command.args(["watch", "a lead", "--server", &format!("http://{}", server.grpc)]).stdout(std::process::Stdio::null());
    let client = crate::grpcurl::Killed(command.spawn().expect("the client"));
    server.eventually_metric(STREAMS, 1.0).await;
    let stopped = std::process::Command::new("kill").args(["-s", "STOP", &client.0.id().to_string()]).status().expect("kill");
    assert!(stopped.success());
    let began = std::time::Instant::now();
    while server.metric(STREAMS).await > 0.0 {
        assert!(began.elapsed() < Duration::from_secs(45), "a client that answers no ping is kept");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(began.elapsed() > Duration::from_secs(5), "it was ended by something else");
}

/// On demand, for it takes minutes: `LEADFOLD_TEST_CHURN=20` rounds of 10,000 streams that come and go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_come_and_go_leave_nothing_behind() {
    let rounds = std::env::var("LEADFOLD_TEST_CHURN").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(0);
    if rounds == 0 {
        eprintln!("SKIPPED: LEADFOLD_TEST_CHURN=20 runs it, for minutes");
        return;
    }
    let server = Server::start(&Options::default());
    let lead_id = fresh_id();
    let mut memory = Vec::new();
    for _ in 0..rounds {
        let connections = (0..10).map(|_| server.channel()).map(async |channel| {
            let streams = (0..1000).map(|_| LeadWatch::over(&channel, &lead_id, 0));
            futures::future::try_join_all(streams).await.expect("the streams open")
        });
        let watches = futures::future::join_all(connections).await;
        assert_eq!(server.metric(STREAMS).await, 10_000.0);
        drop(watches);
        server.eventually_metric(STREAMS, 0.0).await;
        memory.push(server.memory());
    }
    println!("bytes after each round: {memory:?}");
    // The first rounds warm the allocator up.
    let (early, late) = (memory[memory.len() / 2], memory[memory.len() - 1]);
    assert!(late < early + early / 10 + 5_000_000, "it grows: {memory:?}");
}
