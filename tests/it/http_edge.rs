//! HTTP as some senders, proxies and attackers speak it.

use std::process::Command;
use std::time::{Duration, Instant};

use leadfold::api::GetLeadRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;

use crate::support::events::{SAMPLE_TIME, message};
use crate::support::server::{Server, WEBHOOK};
use crate::support::{PATIENCE, Setup, eventually, fresh_id};

/// Sends bytes, and returns everything that comes back until the server closes, or `answers` answers have come.
async fn talk(server: &Server, bytes: &[u8], answers: usize) -> String {
    let mut stream = TcpStream::connect(&server.http).await.expect("a connection");
    stream.write_all(bytes).await.expect("the bytes are taken");
    let (mut told, mut chunk) = (Vec::new(), [0; 4096]);
    let read = async {
        // Every answer of ours is one line of JSON.
        while String::from_utf8_lossy(&told).matches("\r\n\r\n{").count() < answers || !told.ends_with(b"}\n") && !told.ends_with(b"}") {
            match stream.read(&mut chunk).await {
                Ok(0) | Err(_) => break,
                Ok(count) => told.extend_from_slice(&chunk[..count]),
            }
        }
    };
    let _ = tokio::time::timeout(PATIENCE, read).await;
    String::from_utf8_lossy(&told).into_owned()
}

fn post(target: &str, version: &str, headers: &str, body: &str) -> String {
    format!("POST {target} {version}\r\nhost: leadfold\r\ncontent-type: application/json\r\n{headers}\r\n{body}")
}

fn event(lead_id: &str) -> (String, String) {
    let event = message(lead_id, "a1", SAMPLE_TIME).to_string();
    let length = format!("content-length: {}\r\n", event.len());
    (event, length)
}

fn statuses(told: &str) -> Vec<&str> {
    told.split("HTTP/1.").skip(1).map(|answer| answer.get(2..5).unwrap_or("?")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined_requests_are_answered_in_order() {
    let server = Setup::embedded();
    let leads = [fresh_id(), fresh_id(), fresh_id()];
    let requests = leads.each_ref().map(|lead| {
        let (event, length) = event(lead);
        post(WEBHOOK, "HTTP/1.1", &length, &event)
    });
    let told = talk(&server, requests.concat().as_bytes(), 3).await;
    assert_eq!(statuses(&told), ["200"; 3], "{told}");
    let places = leads.each_ref().map(|lead| told.find(lead.as_str()).expect("each is answered"));
    assert!(places.is_sorted(), "{told}");

    let told = talk(&server, format!("{}NO HTTP\r\n\r\n", requests[0]).as_bytes(), 9).await;
    assert_eq!(statuses(&told), ["200", "400"], "and garbage ends the connection: {told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_with_two_lengths_smuggles_nothing() {
    let server = Setup::embedded();
    let [outer, inner] = [fresh_id(), fresh_id()];
    let (hidden, length) = event(&inner);
    let hidden = post(WEBHOOK, "HTTP/1.1", &length, &hidden);
    let (event, _) = event(&outer);
    let body = format!("{:x}\r\n{event}\r\n0\r\n\r\n", event.len());
    for headers in [
        // Who believes the length takes the chunks' end for the next request, and the other way round.
        format!("content-length: {}\r\ntransfer-encoding: chunked\r\n", body.len() + hidden.len()),
        format!("content-length: {}\r\ncontent-length: {}\r\n", body.len(), body.len() + hidden.len()),
        "transfer-encoding: gzip\r\n".to_owned(),
    ] {
        let told = talk(&server, post(WEBHOOK, "HTTP/1.1", &headers, &format!("{body}{hidden}")).as_bytes(), 9).await;
        let status = server.client().get_lead(GetLeadRequest { lead_id: inner.clone() }).await.expect_err("what was hidden");
        assert_eq!(status.code(), Code::NotFound, "{headers}{told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn older_and_odder_ways_to_post_are_understood() {
    let server = Setup::embedded();
    let proxied = format!("http://localhost{WEBHOOK}");
    for (target, version, headers) in
        [(WEBHOOK, "HTTP/1.0", ""), (&proxied, "HTTP/1.1", ""), (WEBHOOK, "HTTP/1.1", "x-forwarded-for: 10.0.0.1\r\nconnection: close\r\n")]
    {
        let (event, length) = event(&fresh_id());
        let told = talk(&server, post(target, version, &format!("{headers}{length}"), &event).as_bytes(), 1).await;
        assert_eq!(statuses(&told), ["200"], "{target} {version}: {told}");
    }
    // A sender that asks first is told to go on.
    let (event, length) = event(&fresh_id());
    let told = talk(&server, post(WEBHOOK, "HTTP/1.1", &format!("{length}expect: 100-continue\r\n"), &event).as_bytes(), 1).await;
    assert_eq!(statuses(&told).last(), Some(&"200"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_methods_and_compressed_bodies_are_refused() {
    let server = Setup::embedded();
    let (event, length) = event(&fresh_id());
    let lower = post(WEBHOOK, "HTTP/1.1", &length, &event).replacen("POST", "post", 1);
    let told = talk(&server, lower.as_bytes(), 1).await;
    assert_eq!(statuses(&told), ["405"], "methods are upper case: {told}");
    // What is not JSON as it stands is not taken for it, whatever it would be after unpacking.
    let packed = "\x1f\x08 not really gzip";
    let headers = format!("content-length: {}\r\ncontent-encoding: gzip\r\n", packed.len());
    let told = talk(&server, post(WEBHOOK, "HTTP/1.1", &headers, packed).as_bytes(), 1).await;
    assert!(["400", "415"].contains(&statuses(&told)[0]), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_file_descriptors_the_server_rests_and_recovers() {
    let server = Setup::embedded();
    let pid = server.pid();
    let limit = |files: &str| {
        let done = Command::new("prlimit").args(["--pid", &pid.to_string(), &format!("--nofile={files}:")]).status();
        done.is_ok_and(|status| status.success())
    };
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("its files").count();
    if !limit(&(open + 20).to_string()) {
        eprintln!("SKIPPED: prlimit cannot set a limit of files here");
        return;
    }
    let mut connections = Vec::new();
    for _ in 0..60 {
        connections.push(TcpStream::connect(&server.http).await.expect("the kernel accepts"));
    }
    eventually("it has run out", async || server.logs().contains("could not accept a connection").then_some(())).await;
    let (before, began) = (cpu_ticks(pid), Instant::now());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let busy = (cpu_ticks(pid) - before) as f64 / 100.0 / began.elapsed().as_secs_f64();
    assert!(busy < 0.3, "it spins: {busy:.2} of a core");
    drop(connections);
    let answer = eventually("it takes webhooks again", async || {
        let answer = tokio::time::timeout(Duration::from_secs(2), server.post(message(&fresh_id(), "a1", SAMPLE_TIME).to_string())).await;
        answer.ok()
    })
    .await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// Hundredths of a second of processor time that a process has used.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("its state");
    let (_, fields) = stat.rsplit_once(')').expect("its name");
    let ticks = |at: usize| fields.split_whitespace().nth(at).and_then(|field| field.parse::<u64>().ok()).expect("a number");
    ticks(11) + ticks(12)
}
