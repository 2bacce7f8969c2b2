//! More than can be done: what is too much is turned away at once, with a time to come back.

use std::time::{Duration, Instant};

use leadfold::api::GetLeadRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;
use tonic_types::StatusExt;

use crate::support::events::{SAMPLE_TIME, message};
use crate::support::redis::RedisServer;
use crate::support::server::{Options, Server, WEBHOOK};
use crate::support::watching::retry_delay;
use crate::support::{PATIENCE, eventually, fresh_id};

fn event() -> String {
    message(&fresh_id(), "a1", SAMPLE_TIME).to_string()
}

/// Whoever says it has a place as soon as its headers are here.
const SECRET: &str = "canary-secret-of-the-sender";

/// Begins to post an event, and returns when it has a place: the server asks for its body then.
async fn begin(server: &Server, event: &str) -> TcpStream {
    let mut stream = TcpStream::connect(&server.http).await.expect("a connection");
    let head = format!(
        "POST {WEBHOOK} HTTP/1.1\r\nhost: l\r\nx-webhook-secret: {SECRET}\r\ncontent-type: application/json\r\n\
         expect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        event.len()
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    let mut asked = [0; "HTTP/1.1 100 Continue\r\n\r\n".len()];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut asked)).await.expect("in time").expect("an answer");
    assert!(asked.starts_with(b"HTTP/1.1 100 "), "{}", String::from_utf8_lossy(&asked));
    stream.write_all(&event.as_bytes()[..10]).await.expect("sent");
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webhooks_over_the_limit_are_shed_and_the_others_are_taken() {
    let options = Options::default().env("LEADFOLD_MAX_REQUESTS_IN_FLIGHT", "2").env("LEADFOLD_WEBHOOK_SECRET", SECRET);
    let server = Server::start(&options);
    let events = [event(), event()];
    let mut held = [begin(&server, &events[0]).await, begin(&server, &events[1]).await];
    let web = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("an HTTP client");
    let post = async || {
        let request = web.post(format!("http://{}{WEBHOOK}", server.http)).header("content-type", "application/json");
        let request = request.header("x-webhook-secret", SECRET);
        request.body(event()).send().await.expect("an answer")
    };
    let mut waits = std::collections::HashSet::new();
    for _ in 0..20 {
        let began = Instant::now();
        let answer = post().await;
        assert_eq!(answer.status(), 503);
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        let wait = answer.headers()["retry-after"].to_str().expect("text").parse::<u64>().expect("seconds");
        assert!((1..=5).contains(&wait), "{wait}");
        waits.insert(wait);
        assert!(answer.text().await.expect("text").contains("\"error\""));
    }
    assert!(waits.len() > 1, "all come back at the same time");
    assert!(server.metric("leadfold_webhooks_shed_total{limit=\"server\"}").await >= 20.0);
    for (stream, event) in held.iter_mut().zip(&events) {
        stream.write_all(&event.as_bytes()[10..]).await.expect("sent");
        let mut status = [0; 12];
        tokio::time::timeout(PATIENCE, stream.read_exact(&mut status)).await.expect("in time").expect("an answer");
        assert_eq!(&status, b"HTTP/1.1 200");
    }
    assert_eq!(post().await.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_over_the_limit_are_shed_and_say_when_to_come_back() {
    let redis = RedisServer::start();
    let server = Server::start(&Options::on(&redis).env("LEADFOLD_MAX_REQUESTS_IN_FLIGHT", "1"));
    let lead_id = fresh_id();
    server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    let get = async || server.client().get_lead(GetLeadRequest { lead_id: lead_id.clone() }).await;
    redis.pause();
    let held = async {
        loop {
            let _ = get().await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let shed = tokio::select! {
        () = held => unreachable!("it has no end"),
        shed = eventually("one is under way", async || {
            let status = get().await.err()?;
            (status.get_details_error_info()?.reason == "OVERLOADED").then_some(status)
        }) => shed,
    };
    redis.resume();
    assert_eq!(shed.code(), Code::Unavailable);
    assert!(retry_delay(&shed).is_some(), "when to come back");
    eventually("calls are answered again", async || get().await.ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_has_a_rate_and_others_have_their_own() {
    let server = Server::start(&Options::default().env("LEADFOLD_MAX_WEBHOOKS_PER_SECOND", "5"));
    let sender = |address: [u8; 4]| reqwest::Client::builder().no_proxy().timeout(PATIENCE).local_address(std::net::IpAddr::from(address));
    let (one, other) = (sender([127, 0, 0, 2]).build().expect("a client"), sender([127, 0, 0, 3]).build().expect("a client"));
    let post = async |sender: &reqwest::Client| {
        let request = sender.post(format!("http://{}{WEBHOOK}", server.http)).header("content-type", "application/json");
        request.body(event()).send().await.expect("an answer")
    };
    let began = Instant::now();
    let mut taken = 0;
    for _ in 0..40 {
        let answer = post(&one).await;
        if answer.status() == 200 {
            taken += 1;
            continue;
        }
        assert_eq!(answer.status(), 429);
        assert!(answer.headers()["retry-after"].to_str().expect("text").parse::<u64>().is_ok_and(|wait| wait >= 1));
    }
    let allowed = 5.0 + 5.0 * began.elapsed().as_secs_f64();
    assert!(taken >= 5 && f64::from(taken) <= allowed + 1.0, "{taken} of {allowed}");
    assert_eq!(post(&other).await.status(), 200, "others are not held up");
    eventually("it may come back", async || (post(&one).await.status() == 200).then_some(())).await;
}
