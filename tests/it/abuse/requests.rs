//! Requests that are not what they should be, or never whole.

use std::time::{Duration, Instant};

use bytes::Bytes;
use leadfold::api::{BatchGetLeadsRequest, DeleteLeadRequest, GetLeadRequest};
use tonic::Code;

use super::peer::{Call, Peer, framed};
use super::{Memory, read_promptly};
use crate::support::events::{SAMPLE_TIME, message};
use crate::support::redis::RedisServer;
use crate::support::server::{Options, Server};
use crate::support::tokens::{ALL, client, with_tokens};
use crate::support::{PATIENCE, Setup, eventually, fresh_id};

const GET_LEAD: &str = "/leadfold.v1.LeadService/GetLead";
const DELETE_LEAD: &str = "/leadfold.v1.LeadService/DeleteLead";
const WATCH_LEAD: &str = "/leadfold.v1.LeadService/WatchLead";
/// A request has to be whole within this.
const ARRIVAL: Duration = Duration::from_secs(10);

/// The statuses of calls that were begun, in the order of their ends.
async fn statuses(calls: Vec<Call>) -> Vec<(Option<i32>, Duration)> {
    let began = Instant::now();
    let calls = calls.into_iter().map(async |call| (call.answer().await.grpc_status(), began.elapsed()));
    futures::future::join_all(calls).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_calls_on_one_connection_hold_up_nobody() {
    let server = Setup::embedded();
    let lead_id = fresh_id();
    server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    read_promptly(&server, &lead_id, 3).await;
    let memory = Memory::of(&server);
    let peer = Peer::connect(&server.grpc, 65_535).await;
    let mut calls = Vec::new();
    for _ in 0..10_000 {
        calls.push(peer.begin(GET_LEAD, &[]).await);
    }
    let statuses = tokio::spawn(statuses(calls));
    let meanwhile = Instant::now();
    while meanwhile.elapsed() < ARRIVAL - Duration::from_secs(2) {
        read_promptly(&server, &lead_id, 5).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    memory.assert_grown_less_than(100);
    let statuses = statuses.await.expect("no panic");
    let of = |code: Code| statuses.iter().filter(|(status, _)| *status == Some(code as i32)).collect::<Vec<_>>();
    let (late, refused) = (of(Code::DeadlineExceeded), of(Code::Unavailable));
    assert_eq!((late.len(), refused.len()), (1000, 9000), "so many calls may one connection have");
    assert!(late.iter().all(|(_, after)| *after < ARRIVAL + Duration::from_secs(4)), "they end in time");
    assert!(refused.iter().all(|(_, after)| *after < ARRIVAL / 2), "they are refused at once");
    // The connection can be used again.
    let answer = peer.call(GET_LEAD, &GetLeadRequest { lead_id }, &[]).await.answer().await.read().await;
    assert_eq!(answer.1, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_calls_at_once_on_one_connection_wait_for_each_other() {
    let redis = RedisServer::start();
    let server = Server::start(&Options::on(&redis));
    // They pile up: more than one connection may have under way.
    let () = redis::cmd("CLIENT").arg("PAUSE").arg(900).query(&mut redis.connection()).expect("Redis pauses");
    let (client, request) = (server.client(), GetLeadRequest { lead_id: fresh_id() });
    let calls = (0..1300).map(|_| {
        let (mut client, request) = (client.clone(), request.clone());
        tokio::spawn(async move { client.get_lead(request).await })
    });
    for call in calls.collect::<Vec<_>>() {
        let status = call.await.expect("no panic").expect_err("there is no such lead");
        assert_eq!(status.code(), Code::NotFound, "{status:?}");
    }
}

/// As many as there are places in all: those that are awaited take none from those that are there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_calls_of_many_connections_hold_up_nobody() {
    let server = Server::start(&Options::default().env("LEADFOLD_MAX_REQUESTS_IN_FLIGHT", "200"));
    let lead_id = fresh_id();
    server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    let (mut peers, mut calls) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        let peer = Peer::connect(&server.grpc, 65_535).await;
        for path in [GET_LEAD, WATCH_LEAD] {
            for _ in 0..100 {
                calls.push(peer.begin(path, &[]).await);
            }
        }
        peers.push(peer);
    }
    // Whole requests are served, over each of the connections too.
    for peer in &peers {
        let request = GetLeadRequest { lead_id: lead_id.clone() };
        let answer = eventually("a whole request is served", async || {
            let answer = peer.call(GET_LEAD, &request, &[]).await.answer().await;
            (answer.grpc_status().is_none()).then_some(answer)
        });
        assert_eq!(answer.await.read().await.1, Some(0));
    }
    let statuses = statuses(calls).await;
    let is_expected = |status: &Option<i32>| [Some(Code::DeadlineExceeded as i32), Some(Code::Unavailable as i32)].contains(status);
    assert!(statuses.iter().all(|(status, _)| is_expected(status)), "{:?}", statuses.iter().find(|(status, _)| !is_expected(status)));
    assert!(statuses.iter().filter(|(status, _)| *status == Some(Code::DeadlineExceeded as i32)).count() >= 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_drips_ends_in_time_and_nothing_of_it_runs() {
    let server = Setup::embedded();
    let lead_id = fresh_id();
    server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    let peer = Peer::connect(&server.grpc, 65_535).await;
    let mut call = peer.begin(DELETE_LEAD, &[]).await;
    let began = tokio::time::Instant::now();
    let request = framed(&DeleteLeadRequest { lead_id: lead_id.clone() });
    let mut answer = None;
    for byte in request.iter().cycle() {
        // A byte in three hundred milliseconds would take longer than there is time.
        if began.elapsed() < ARRIVAL - Duration::from_secs(1) {
            call.send(Bytes::copy_from_slice(&[*byte]), false);
        }
        answer = call.answer_by(tokio::time::Instant::now() + Duration::from_millis(300)).await;
        if answer.is_some() || began.elapsed() > PATIENCE {
            break;
        }
    }
    let answer = answer.expect("an end");
    assert_eq!(answer.grpc_status(), Some(Code::DeadlineExceeded as i32), "{answer:?}");
    assert!(answer.grpc_message().contains("10 s"), "{answer:?}");
    server.lead(&lead_id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sent_of_requests_that_never_end_is_bounded() {
    let server = Setup::embedded();
    let lead_id = fresh_id();
    server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    read_promptly(&server, &lead_id, 3).await;
    let memory = Memory::of(&server);
    let mut calls = Vec::new();
    let mut peers = Vec::new();
    for _ in 0..4 {
        let peer = Peer::connect(&server.grpc, 65_535).await;
        for _ in 0..100 {
            let mut call = peer.begin("/leadfold.v1.LeadService/BatchGetLeads", &[]).await;
            // All but the last byte of the largest message.
            let mut bytes = vec![0; 5 + (4 << 20) - 1];
            bytes[1..5].copy_from_slice(&(4_u32 << 20).to_be_bytes());
            call.send(bytes, false);
            calls.push(call);
        }
        peers.push(peer);
    }
    let meanwhile = Instant::now();
    while meanwhile.elapsed() < Duration::from_secs(5) {
        memory.assert_grown_less_than(220);
        read_promptly(&server, &lead_id, 1).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop((calls, peers));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_of_another_number_of_messages_or_too_large_a_one_does_not_run() {
    let server = Setup::embedded();
    let lead_id = fresh_id();
    server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    let peer = Peer::connect(&server.grpc, 65_535).await;
    let delete = framed(&DeleteLeadRequest { lead_id: lead_id.clone() });
    for (body, code) in [
        ([&delete[..], &delete].concat(), Code::Unimplemented),
        ([&delete[..], b"\0"].concat(), Code::Unimplemented),
        (Vec::new(), Code::Unimplemented),
        (delete[..delete.len() - 1].to_vec(), Code::Internal),
        (b"\0\0\x40\0\x01".to_vec(), Code::ResourceExhausted),
    ] {
        let mut call = peer.begin(DELETE_LEAD, &[]).await;
        call.send(body.clone(), true);
        let answer = call.answer().await;
        assert_eq!((answer.status, answer.grpc_status()), (200, Some(code as i32)), "{body:?}: {answer:?}");
    }
    // In pieces, as they may come.
    let mut call = peer.begin(DELETE_LEAD, &[]).await;
    call.send(delete.clone(), false);
    tokio::time::sleep(Duration::from_millis(100)).await;
    call.send(delete.clone(), true);
    assert_eq!(call.answer().await.grpc_status(), Some(Code::Unimplemented as i32));
    server.lead(&lead_id).await;

    let too_large = BatchGetLeadsRequest { lead_ids: vec!["x".repeat(5 << 20)] };
    let status = server.client().batch_get_leads(too_large).await.expect_err("too large");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    // In pieces too it is a request.
    let mut call = peer.begin(DELETE_LEAD, &[]).await;
    for byte in &delete[..delete.len() - 1] {
        call.send(Bytes::copy_from_slice(&[*byte]), false);
    }
    call.send(delete[delete.len() - 1..].to_vec(), true);
    assert_eq!(call.answer().await.read().await.1, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_nobody_takes_no_place() {
    let dir = tempfile::tempdir().expect("a directory");
    let options = Options::default().env("LEADFOLD_MAX_REQUESTS_IN_FLIGHT", "1");
    let server = Server::start(&with_tokens(options, dir.path()));
    let lead_id = fresh_id();
    server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    let peer = Peer::connect(&server.grpc, 65_535).await;
    let (mut calls, mut good) = (Vec::new(), client(&server, ALL));
    for _ in 0..100 {
        calls.push(peer.begin(GET_LEAD, &[]).await);
        good.get_lead(GetLeadRequest { lead_id: lead_id.clone() }).await.expect("there is a place");
    }
    let statuses = statuses(calls).await;
    assert!(statuses.iter().all(|(status, _)| *status == Some(Code::Unauthenticated as i32)), "{statuses:?}");
}

/// The board's calls and those of the gRPC listener take no places from each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_listener_has_places_of_its_own() {
    let redis = RedisServer::start();
    let server = Server::start(&Options::on(&redis).env("LEADFOLD_MAX_REQUESTS_IN_FLIGHT", "1"));
    let request = framed(&GetLeadRequest { lead_id: "l".to_owned() });
    let web = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("an HTTP client");
    let by_board = async || {
        let call = web.post(format!("http://{}{GET_LEAD}", server.admin)).header("content-type", "application/grpc-web+proto");
        let answer = call.body(request.clone()).send().await.expect("an answer");
        answer.headers().get("grpc-message").map(|message| message.to_str().expect("text").to_owned()).unwrap_or_default()
    };
    redis.pause();
    // The only place of the board is taken for as long as Redis says nothing.
    let held = async {
        loop {
            by_board().await;
        }
    };
    let checked = async {
        eventually("the board's place is taken", async || by_board().await.contains("too%20many").then_some(())).await;
        let status = server.client().get_lead(GetLeadRequest { lead_id: "l".to_owned() }).await.expect_err("Redis says nothing");
        assert!(!status.message().contains("too many calls"), "the place of gRPC is free: {status:?}");
    };
    tokio::select! {
        () = held => unreachable!("it has no end"),
        () = checked => {}
    }
    redis.resume();
}

/// Without a token, anybody can ask whether it is ready.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_probes_cost_the_store_little() {
    let redis = RedisServer::start();
    let server = Server::start(&Options::on(&redis));
    let mut connection = redis.connection();
    let mut commands = || {
        let info: String = redis::cmd("INFO").arg("stats").query(&mut connection).expect("INFO");
        let line = info.lines().find_map(|line| line.strip_prefix("total_commands_processed:")).expect("a count").trim().to_owned();
        line.parse::<u64>().expect("a number")
    };
    server.admin("/readyz").await;
    let (before, began) = (commands(), Instant::now());
    let probes = (0..20).map(async |_| {
        for _ in 0..100 {
            assert_eq!(server.admin("/readyz").await.0, 200);
        }
    });
    futures::future::join_all(probes).await;
    let (asked, took) = (commands() - before, began.elapsed());
    // What is asked besides: the feed's and health's own looks, some a second.
    let allowed = 100.0 + 100.0 * took.as_secs_f64();
    println!("2,000 probes in {took:?} cost {asked} commands, of {allowed:.0} that they may");
    assert!((asked as f64) < allowed, "{asked} commands in {took:?}");
}
