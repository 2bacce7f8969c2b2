//! Senders that leave before they are answered: what they sent whole is taken, counted and logged all the same.

use std::time::{Duration, Instant};

use futures::StreamExt;
use leadfold::api::dead_letter_service_client::DeadLetterServiceClient;
use leadfold::api::{DeleteLeadRequest, GetLeadRequest, ListDeadLettersRequest, RetryDeadLettersRequest};
use tonic::Code;

use crate::support::events::{SAMPLE_TIME, message};
use crate::support::raw::Raw;
use crate::support::redis::RedisServer;
use crate::support::server::{Options, Server, WEBHOOK};
use crate::support::{PATIENCE, Setup, eventually, fresh_id, on_both_stores};

on_both_stores!(senders_that_close_their_half_are_answered, what_senders_that_reset_have_sent_is_taken_and_counted);

/// `LEADFOLD_TEST_GONE_SENDERS=1000` for the full number of each kind.
fn count() -> usize {
    std::env::var("LEADFOLD_TEST_GONE_SENDERS").map_or(100, |count| count.parse().expect("a number"))
}

const AT_ONCE: usize = 16;
const JSON: &str = "host: l\r\ncontent-type: application/json\r\n";

/// Ways to write a post of an event by HTTP/1.
const WAYS: [fn(&str) -> String; 3] = [
    |event| format!("POST {WEBHOOK} HTTP/1.1\r\n{JSON}content-length: {}\r\n\r\n{event}", event.len()),
    |event| format!("POST {WEBHOOK} HTTP/1.0\r\n{JSON}content-length: {}\r\n\r\n{event}", event.len()),
    |event| format!("POST {WEBHOOK} HTTP/1.1\r\n{JSON}transfer-encoding: chunked\r\n\r\n{:x}\r\n{event}\r\n0\r\n\r\n", event.len()),
];

/// An event of a lead of its own, now and then a large one.
fn event(at: usize) -> (String, String) {
    let lead_id = fresh_id();
    let mut event = message(&lead_id, "a1", SAMPLE_TIME);
    if at.is_multiple_of(10) {
        event["padding"] = "x".repeat(150_000).into();
    }
    (lead_id, event.to_string())
}

async fn applied(server: &Server) -> f64 {
    let (_, text) = server.admin("/metrics").await;
    let lines = text.lines().filter(|line| line.starts_with("leadfold_webhooks_total{") && line.contains("result=\"applied\""));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[allow(clippy::cast_precision_loss)] // of small numbers
async fn all_are_taken_and_counted(server: &Server, leads: &[String]) {
    let (deadline, mut seen) = (Instant::now() + PATIENCE, f64::NAN);
    while seen != leads.len() as f64 {
        assert!(Instant::now() < deadline, "{seen} of {} are counted", leads.len());
        tokio::time::sleep(Duration::from_millis(50)).await;
        seen = applied(server).await;
    }
    let client = server.client();
    let missing = futures::stream::iter(leads).map(|lead_id| {
        let mut client = client.clone();
        async move { client.get_lead(GetLeadRequest { lead_id: lead_id.clone() }).await.err() }
    });
    let missing: Vec<_> = missing.buffer_unordered(AT_ONCE).filter_map(async |status| status).collect().await;
    assert!(missing.is_empty(), "{} of {}: {:?}", missing.len(), leads.len(), missing[0]);
}

async fn senders_that_close_their_half_are_answered(server: Setup) {
    let mut leads = Vec::new();
    for way in WAYS {
        let posts = futures::stream::iter(0..count()).map(|at| {
            let server = &server;
            async move {
                let (lead_id, event) = event(at);
                let mut connection = Raw::to(&server.http).await;
                connection.send(way(&event)).await;
                connection.close_half().await;
                let answer = connection.answer().await;
                assert_eq!(answer.status, 200, "{answer:?}");
                assert!(connection.ends_within(Duration::from_secs(5)).await, "a connection that is closed on one side stays");
                lead_id
            }
        });
        leads.extend(posts.buffer_unordered(AT_ONCE).collect::<Vec<_>>().await);
    }
    all_are_taken_and_counted(&server, &leads).await;
    server.eventually_metric("leadfold_connections{listener=\"http\"}", 0.0).await;
}

async fn what_senders_that_reset_have_sent_is_taken_and_counted(server: Setup) {
    let mut leads = Vec::new();
    for way in WAYS {
        let posts = futures::stream::iter(0..count()).map(|_| {
            let server = &server;
            async move {
                // What the kernel still has to send, a reset throws away: it has to fit into the peer's buffer.
                let (lead_id, event) = event(1);
                let mut connection = Raw::to(&server.http).await;
                connection.send(way(&event)).await;
                connection.reset();
                lead_id
            }
        });
        leads.extend(posts.buffer_unordered(AT_ONCE).collect::<Vec<_>>().await);
        all_are_taken_and_counted(&server, &leads).await;
    }
    // One that is closed with answers unread loses what its own kernel had not sent yet.
    let (reset, shared) = reset_streams(&server).await;
    leads.extend(reset);
    all_are_taken_and_counted(&server, &leads).await;
    drop(shared);
}

/// Posts by HTTP/2 whose streams are reset as soon as they are whole: over one connection, which stays, and each over one of
/// its own, which is reset too.
async fn reset_streams(server: &Server) -> (Vec<String>, Raw) {
    let (mut leads, mut shared) = (Vec::new(), Raw::to(&server.http).await);
    shared.send(frames::PREFACE).await;
    for at in 0..count() {
        let ([one, other], mut own) = ([event(1), event(1)], Raw::to(&server.http).await);
        let stream = 2 * u32::try_from(at).expect("a small number") + 1;
        shared.send([frames::post(stream, &one.1), frames::reset(stream)].concat()).await;
        let reset = if at % 2 == 0 { frames::reset(1) } else { Vec::new() };
        own.send([frames::PREFACE, &frames::post(1, &other.1), &reset].concat()).await;
        own.reset();
        leads.extend([one.0, other.0]);
    }
    (leads, shared)
}

/// HTTP/2 as its frames.
mod frames {
    use super::WEBHOOK;

    /// What a client begins with: the preface, and settings that change nothing.
    pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("a frame").to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    /// A whole post: headers, and the body in one frame.
    pub fn post(stream: u32, event: &str) -> Vec<u8> {
        let headers =
            [(":method", "POST"), (":scheme", "http"), (":path", WEBHOOK), (":authority", "l"), ("content-type", "application/json")];
        let text = |text: &str| [&[u8::try_from(text.len()).expect("a short text")], text.as_bytes()].concat();
        let block = headers.map(|(name, value)| [vec![0], text(name), text(value)].concat()).concat();
        [frame(1, 4, stream, &block), frame(0, 1, stream, event.as_bytes())].concat()
    }

    /// A client that has lost interest in a stream.
    pub fn reset(stream: u32) -> Vec<u8> {
        frame(3, 0, stream, &8_u32.to_be_bytes())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_change_something_are_done_whole_although_their_client_is_gone() {
    let redis = RedisServer::start();
    let server = Server::start(&Options::on(&redis));
    // A letter that can be tried again: refused for the workspace of a lead that Redis has forgotten by then. Deleting the
    // lead would delete the letter.
    let other = fresh_id();
    let mut event = message(&other, "a1", SAMPLE_TIME);
    server.apply(&event).await;
    event["workspaceId"] = "another workspace".into();
    event["actionLog"]["id"] = "a2".into();
    assert_eq!(server.post(event.to_string()).await.status, 409);
    let mut letters = DeadLetterServiceClient::new(server.channel());
    let list = async |letters: &mut DeadLetterServiceClient<_>| {
        letters.list_dead_letters(ListDeadLettersRequest::default()).await.expect("letters").into_inner().dead_letters
    };
    let letter = list(&mut letters).await.remove(0).dead_letter_id;
    let () = redis::cmd("FLUSHALL").query(&mut redis.connection()).expect("FLUSHALL");
    let lead_id = fresh_id();
    server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;

    redis.pause();
    let mut client = server.client();
    let deletes = client.delete_lead(DeleteLeadRequest { lead_id: lead_id.clone() });
    assert!(tokio::time::timeout(Duration::from_millis(300), deletes).await.is_err(), "Redis hangs");
    let retry = letters.retry_dead_letters(RetryDeadLettersRequest { dead_letter_ids: vec![letter] });
    assert!(tokio::time::timeout(Duration::from_millis(300), retry).await.is_err(), "Redis hangs");
    redis.resume();
    eventually("the lead is deleted", async || {
        let gone = server.client().get_lead(GetLeadRequest { lead_id: lead_id.clone() }).await.err()?;
        (gone.code() == Code::NotFound).then_some(())
    })
    .await;
    eventually("the letter that was tried is gone", async || list(&mut letters).await.is_empty().then_some(())).await;
}
