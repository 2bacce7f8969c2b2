//! HTTP as some senders, proxies and attackers speak it.

use std::process::Command;
use std::time::{Duration, Instant};

use leadfold::api::GetLeadRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;

use crate::support::events::{SAMPLE_TIME, message};
use crate::support::raw::Raw;
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
async fn every_refusal_is_a_line_of_json_and_a_line_of_the_log() {
    let server = Setup::embedded();
    let json = "content-type: application/json\r\n";
    let (event, length) = event(&fresh_id());
    let to = |target: &str| format!("POST {target} HTTP/1.1\r\nhost: l\r\n{json}{length}\r\n{event}");
    let with = |headers: &str| format!("POST {WEBHOOK} HTTP/1.1\r\nhost: l\r\n{json}{headers}\r\n{event}");
    let chunks = format!("{:x}\r\n{event}\r\n0\r\n\r\n", event.len());
    let encoded = |coding: &str| format!("POST {WEBHOOK} HTTP/1.1\r\nhost: l\r\n{json}transfer-encoding: {coding}\r\n\r\n{chunks}");
    let by = |method: &str| to(WEBHOOK).replacen("POST", method, 1);
    // What is refused, the statuses that may be said, and whether the connection may go on.
    let cases: [(String, &[u16], bool); 43] = [
        (to("/webhooks/omniai/"), &[404], true),
        (to("//webhooks/omniai"), &[404], true),
        (to("/Webhooks/OmniAI"), &[404], true),
        (to("/webhooks/%6fmniai"), &[404], true),
        (to("/webhooks/omniai/a/b"), &[404], true),
        (to("/webhooks"), &[404], true),
        (to("/"), &[404], true),
        (to("http://leads.example"), &[404], true),
        (to("http://leads.example/nowhere"), &[404], true),
        (to("/webhooks/omniai/%ff"), &[400], true),
        (to("/webhooks/omniai/%zz"), &[400], true),
        (to("/webhooks/omniai/a%2"), &[400], true),
        (by("GET"), &[405], true),
        (by("HEAD"), &[405], true),
        (by("PUT"), &[405], true),
        (by("PATCH"), &[405], true),
        (by("DELETE"), &[405], true),
        (by("OPTIONS"), &[405], true),
        (by("TRACE"), &[405], true),
        (by("PURGE"), &[405], true),
        (by("post"), &[405], true),
        (format!("OPTIONS * HTTP/1.1\r\nhost: l\r\n{length}\r\n{event}"), &[404, 405], true),
        (format!("CONNECT l:80 HTTP/1.1\r\nhost: l\r\n{length}\r\n{event}"), &[404, 405], true),
        (with(&format!("x: a\r\n folded\r\n{length}")), &[400], false),
        (with("content-length: x\r\n"), &[400], false),
        (with("content-length: -1\r\n"), &[400], false),
        (with("content-length: +5\r\n"), &[400], false),
        (with("content-length: 5, 5\r\n"), &[400], false),
        (with("content-length: 99999999999999999999999\r\n"), &[400], false),
        (with("content-length: 5\r\ncontent-length: 6\r\n"), &[400], false),
        (with(&format!("no colon\r\n{length}")), &[400], false),
        (with(&format!("sp ace: x\r\n{length}")), &[400], false),
        (to(WEBHOOK).replacen("HTTP/1.1", "HTTP/1.2", 1), &[400, 505], false),
        (to(WEBHOOK).replacen("HTTP/1.1", "HTTP/3.0", 1), &[400, 505], false),
        ("hello\r\n\r\n".to_owned(), &[400], false),
        (to(WEBHOOK).replacen("host: l\r\n", "", 1), &[400], true),
        (to(WEBHOOK).replacen("host: l\r\n", "host: l\r\nhost: l\r\n", 1), &[400], true),
        (to(WEBHOOK).replacen("host: l\r\n", "host: a b\r\n", 1), &[400], true),
        (encoded("identity"), &[400, 501], false),
        (encoded("gzip, chunked"), &[400, 501], true),
        (encoded("gzip\r\ntransfer-encoding: chunked"), &[400, 501], true),
        (with(&format!("content-encoding: gzip\r\n{length}")), &[415], true),
        (with(&format!("content-encoding: identity, br\r\n{length}")), &[415], true),
    ];
    for (request, statuses, goes_on) in cases {
        let logged = server.logs().matches(" refused ").count();
        let mut connection = Raw::to(&server.http).await;
        let answer = connection.ask(&request).await;
        let (first, is_head) = (request.lines().next().unwrap_or_default(), request.starts_with("HEAD"));
        assert!(statuses.contains(&answer.status), "{first}: {answer:?}\n{request}");
        if !is_head {
            answer.error();
        }
        assert_eq!(answer.header("allow"), if answer.status == 405 { "post" } else { "" }, "{first}: {answer:?}");
        assert!(goes_on || answer.is_last(), "{first}: {answer:?}");
        if !is_head && !answer.is_last() {
            assert_eq!(connection.ask(to(WEBHOOK)).await.status, 200, "after {first}");
        } else if !is_head {
            assert!(connection.ends_within(PATIENCE).await, "{first}");
        }
        let lines =
            eventually("it is logged", async || Some(server.logs().matches(" refused ").count()).filter(|lines| *lines > logged)).await;
        assert_eq!(lines, logged + 1, "{first}: {}", server.logs());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_are_compared_as_http_says() {
    let server = Setup::embedded();
    for headers in [
        "content-type: Application/JSON; charset=\"utf-8\"",
        "Content-Type:application/json",
        "content-type: \tapplication/json \t",
        "content-type: application/cloudevents+json",
        "content-type: application/json\r\ncontent-encoding: Identity",
        "content-type: application/json\r\ncontent-encoding:",
        "content-type: application/json\r\ncontent-encoding: identity, identity",
        "content-type: application/json\r\nconnection: Keep-Alive, TE",
    ] {
        let (event, length) = event(&fresh_id());
        let mut connection = Raw::to(&server.http).await;
        let answer = connection.ask(format!("POST {WEBHOOK} HTTP/1.1\r\nHOST: l\r\n{headers}\r\n{length}\r\n{event}")).await;
        assert_eq!(answer.status, 200, "{headers}: {answer:?}");
    }
    // A workspace in the path is decoded.
    let (event, length) = event(&fresh_id());
    let target = "/webhooks/omniai/a%20b";
    let answer = Raw::to(&server.http).await.ask(post(target, "HTTP/1.1", &length, &event)).await;
    assert!([200, 400].contains(&answer.status), "{answer:?}");
}

/// What changes something is done by POST alone, on every listener.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_methods_run_nothing() {
    let server = Setup::embedded();
    let lead_id = "x";
    server.apply(&message(lead_id, "a1", SAMPLE_TIME)).await;
    let call = "\0\0\0\0\x03\x0a\x01x";
    for address in [&server.grpc, &server.admin, &server.http] {
        for method in ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "post"] {
            for content_type in ["application/grpc-web+proto", "application/grpc", "text/plain"] {
                let request = format!(
                    "{method} /leadfold.v1.LeadService/DeleteLead HTTP/1.1\r\nhost: localhost\r\ncontent-type: {content_type}\r\n\
                     content-length: {}\r\n\r\n{call}",
                    call.len()
                );
                let answer = Raw::to(address).await.ask(request).await;
                assert!([404, 405].contains(&answer.status), "{method} {content_type}: {answer:?}");
            }
        }
    }
    server.lead(lead_id).await;
    // Probes are read.
    for (method, path, status) in [("GET", "/livez", 200), ("HEAD", "/livez", 200), ("POST", "/livez", 405), ("DELETE", "/metrics", 405)] {
        let answer = Raw::to(&server.admin).await.ask(format!("{method} {path} HTTP/1.0\r\n\r\n")).await;
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
    }
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
