//! Connections that are kept for the next request: they never end without a word, whatever the last request was, and a
//! peer sees its answer, however slow it is.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use leadfold::api::GetLeadRequest;
use leadfold::api::lead_service_client::LeadServiceClient;
use serde_json::Value;
use tokio::time::sleep;
use tonic::transport::Endpoint;

use crate::grpcurl::clients;
use crate::support::events::{SAMPLE_TIME, message};
use crate::support::proxies::{Program, ReverseProxy, Traffic, installed};
use crate::support::raw::Raw;
use crate::support::server::{Options, Server, WEBHOOK};
use crate::support::{PATIENCE, Setup, eventually, fresh_id};

const SECRET: &str = "the-secret-of-the-keep-alive-tests";

fn guarded() -> Options {
    Options::default().env("LEADFOLD_WEBHOOK_SECRET", SECRET)
}

fn event() -> String {
    message(&fresh_id(), "a1", SAMPLE_TIME).to_string()
}

/// A request's head, with a `content-length`.
fn head(method: &str, path: &str, headers: &str, length: usize) -> String {
    format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n{headers}content-length: {length}\r\n\r\n")
}

fn good() -> String {
    let event = event();
    head("POST", WEBHOOK, &format!("content-type: application/json\r\nx-webhook-secret: {SECRET}\r\n"), event.len()) + &event
}

/// Requests that are refused before their bodies are read: what they are, their method, path, headers and status.
fn refused() -> Vec<(&'static str, String, u16)> {
    let secret = format!("x-webhook-secret: {SECRET}\r\n");
    let json = "content-type: application/json\r\n";
    vec![
        (WEBHOOK, format!("POST|{json}"), 401),
        ("/nowhere", format!("POST|{json}{secret}"), 404),
        (WEBHOOK, format!("PUT|{json}{secret}"), 405),
        (WEBHOOK, format!("POST|{secret}content-type: text/plain\r\n"), 415),
        (WEBHOOK, format!("POST|{json}{secret}content-encoding: gzip\r\n"), 415),
    ]
}

fn refused_head(path: &str, request: &str, more: &str, length: usize) -> String {
    let (method, headers) = request.split_once('|').expect("a method");
    head(method, path, &format!("{headers}{more}"), length)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn webhooks_and_calls_pass_through_a_proxy() {
    let server = Setup::embedded();
    let web = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("an HTTP client");
    for program in Program::ALL {
        let Some(proxy) = ReverseProxy::start(program, Traffic::Http1, &server.http) else { continue };
        let lead_id = fresh_id();
        let request = web.post(format!("http://{}{WEBHOOK}", proxy.address)).header("content-type", "application/json");
        let answer = request.body(message(&lead_id, "a1", SAMPLE_TIME).to_string()).send().await.expect("an answer");
        assert_eq!(answer.status(), 200, "{program:?}: {}", proxy.log());
        let proxy = ReverseProxy::start(program, Traffic::Grpc, &server.grpc).expect("it is installed");
        let channel = Endpoint::from_shared(format!("http://{}", proxy.address)).expect("a valid address").timeout(PATIENCE).connect_lazy();
        let lead = LeadServiceClient::new(channel).get_lead(GetLeadRequest { lead_id: lead_id.clone() }).await;
        assert_eq!(lead.expect("an answer").into_inner().lead.expect("the lead").lead_id, lead_id, "{program:?}: {}", proxy.log());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_follows_a_refused_request_is_answered() {
    let server = Server::start(&guarded());
    for (path, request, status) in refused() {
        for length in [0, 200, 20_000, 65_000, 200_000, 2_000_000] {
            let mut connection = Raw::to(&server.http).await;
            connection.send(refused_head(path, &request, "", length)).await;
            // The answer is ready now, and the body is not.
            sleep(Duration::from_millis(20)).await;
            for part in vec![b'x'; length].chunks(100_000) {
                connection.send(part).await;
            }
            let answer = connection.answer().await;
            answer.error();
            assert_eq!((answer.status, answer.is_last()), (status, false), "{path} {request} {length}: {answer:?}");
            assert_eq!(connection.ask(good()).await.status, 200, "after {path} {request} {length}");
        }
        // In chunks too.
        let (method, headers) = request.split_once('|').expect("a method");
        let mut connection = Raw::to(&server.http).await;
        connection.send(format!("{method} {path} HTTP/1.1\r\nhost: l\r\n{headers}transfer-encoding: chunked\r\n\r\n5\r\n")).await;
        sleep(Duration::from_millis(20)).await;
        connection.send("hello\r\n0\r\n\r\n").await;
        assert_eq!(connection.answer().await.status, status, "{path} {request}");
        assert_eq!(connection.ask(good()).await.status, 200, "after chunks for {path} {request}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_other_listeners_keep_connections_too() {
    let server = Setup::embedded();
    let web = "content-type: application/grpc-web+proto\r\n";
    let cases = [
        (&server.grpc, "POST", "/", "", 404),
        (&server.grpc, "PUT", "/leadfold.v1.LeadService/GetLead", web, 405),
        (&server.grpc, "POST", "/leadfold.v1.LeadService/GetLead", "content-type: text/plain\r\n", 415),
        (&server.admin, "POST", "/nowhere", "", 404),
        (&server.admin, "POST", "/metrics", "", 405),
        (&server.admin, "POST", "/livez", "", 405),
        (&server.admin, "PUT", "/leadfold.v1.LeadService/GetLead", web, 405),
    ];
    for (address, method, path, headers, status) in cases {
        for length in [0, 70_000, 1_000_000] {
            let mut connection = Raw::to(address).await;
            connection.send(head(method, path, headers, length)).await;
            sleep(Duration::from_millis(20)).await;
            connection.send(vec![b'x'; length]).await;
            let answer = connection.answer().await;
            answer.error();
            assert_eq!((answer.status, answer.is_last()), (status, false), "{method} {path} {length}: {answer:?}");
            if status == 405 {
                assert!(!answer.header("allow").is_empty(), "{answer:?}");
            }
            let next = connection.ask(head(method, path, headers, 0)).await;
            assert_eq!(next.status, status, "after {method} {path} {length}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_too_much_ends_its_connection_in_words() {
    let server = Server::start(&guarded());
    for address in [&server.http, &server.grpc, &server.admin] {
        // Declared, and found out.
        let declared = head("POST", "/nowhere", "", 50_000_000);
        let chunked = "POST /nowhere HTTP/1.1\r\nhost: l\r\ntransfer-encoding: chunked\r\n\r\n2faf080\r\n".to_owned();
        for head in [declared, chunked] {
            let mut connection = Raw::to(address).await;
            connection.send(&head).await;
            let part = vec![b'x'; 1_000_000];
            for _ in 0..50 {
                assert!(connection.send(&part).await, "{head}: a sender that sends before it reads is cut off");
            }
            let answer = connection.answer().await;
            answer.error();
            assert_eq!((answer.status, answer.is_last()), (404, true), "{head}: {answer:?}");
            assert!(connection.ends_within(PATIENCE).await, "it is over");
        }
    }
}

/// Where the next request would begin is not known then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_cannot_be_read_ends_its_connection_in_words() {
    let server = Server::start(&Options::default());
    let head = format!("POST {WEBHOOK} HTTP/1.1\r\nhost: l\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n");
    for body in ["zz\r\n", "2\r\n{}2\r\n", "-1\r\n", "2;a=\u{0}\r\nxx", "0\r\nno trailer\r\n\r\n", "ffffffffffffffffff\r\n"] {
        let mut connection = Raw::to(&server.http).await;
        connection.send(format!("{head}{body}{}", good())).await;
        let answer = connection.answer().await;
        answer.error();
        assert_eq!((answer.status, answer.is_last()), (400, true), "{body:?}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_slow_sender_sees_its_answer() {
    let server = Server::start(&guarded());
    let json = "content-type: application/json\r\n";
    // Refused at once, and not read for longer than 10 s; and one whose body is wanted, and does not come.
    let cases = [(json.to_owned(), 401), (format!("{json}x-webhook-secret: {SECRET}\r\n"), 408)];
    let slow = cases.map(async |(headers, status)| {
        let mut connection = Raw::to(&server.http).await;
        connection.send(head("POST", WEBHOOK, &headers, 1000)).await;
        let began = Instant::now();
        // It goes on for longer than it is listened to, and looks only then.
        for _ in 0..14 {
            assert!(connection.send("x").await, "{status}: cut off after {:?}", began.elapsed());
            sleep(Duration::from_secs(1)).await;
        }
        let answer = connection.answer().await;
        answer.error();
        assert_eq!((answer.status, answer.is_last()), (status, true), "{answer:?}");
        assert!(connection.ends_within(PATIENCE).await, "a peer that is silent is not waited for without end");
    });
    futures::future::join_all(slow).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_waits_to_be_told_to_continue_is_answered() {
    let server = Server::start(&guarded());
    for (path, request, status) in refused() {
        for expectation in ["expect: 100-continue\r\n", "expect: 100-Continue\r\n"] {
            // One that waits, and one that does not.
            for waits in [true, false] {
                let mut connection = Raw::to(&server.http).await;
                connection.send(refused_head(path, &request, expectation, 70_000)).await;
                if !waits {
                    sleep(Duration::from_millis(20)).await;
                    connection.send(vec![b'x'; 70_000]).await;
                }
                let answer = connection.answer().await;
                assert_eq!(answer.status, status, "{path} {request}: {answer:?}");
                if answer.is_last() {
                    assert!(connection.ends_within(PATIENCE).await, "it is over");
                } else {
                    assert_eq!(connection.ask(good()).await.status, 200, "after {path} {request}");
                }
            }
        }
    }
    // One that is wanted is told to continue.
    let event = event();
    let headers = format!("content-type: application/json\r\nx-webhook-secret: {SECRET}\r\nexpect: 100-continue\r\n");
    let mut connection = Raw::to(&server.http).await;
    connection.send(head("POST", WEBHOOK, &headers, event.len())).await;
    let interim = connection.interim().await;
    assert_eq!(interim.status, 100, "{interim:?}");
    assert_eq!(connection.ask(event).await.status, 200);
    assert_eq!(connection.ask(good()).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn from_the_signal_to_end_on_every_answer_is_the_last_of_its_connection() {
    let mut server = Server::start(&guarded().env("LEADFOLD_DRAIN_DELAY_MS", "2000"));
    let probe = head("GET", "/livez", "", 0);
    let call = head("POST", "/leadfold.v1.LeadService/GetLead", "content-type: application/grpc-web+proto\r\n", 0);
    let requests = [(server.http.clone(), good()), (server.grpc.clone(), call), (server.admin.clone(), probe)];
    // Some ask while the signal is fresh, and some not before nothing new is accepted.
    let mut early = Vec::new();
    let mut late = Vec::new();
    for (address, request) in &requests {
        for connections in [&mut early, &mut late] {
            let mut connection = Raw::to(address).await;
            let answer = connection.ask(request).await;
            assert!(answer.status == 200 && !answer.is_last(), "{answer:?}");
            connections.push((connection, request));
        }
    }
    server.signal_termination();
    eventually("it has noticed", async || (server.admin("/readyz").await.0 == 503).then_some(())).await;
    for (mut connection, request) in early {
        let answer = connection.ask(request).await;
        assert_eq!((answer.status, answer.is_last()), (200, true), "{request}: {answer:?}");
        assert!(connection.ends_within(PATIENCE).await, "{request}");
    }
    // Refusals too.
    let answer = Raw::to(&server.http).await.ask(head("POST", WEBHOOK, "", 0)).await;
    assert_eq!((answer.status, answer.is_last()), (401, true), "{answer:?}");
    eventually("nothing new is accepted", async || tokio::net::TcpStream::connect(&server.http).await.err()).await;
    for (mut connection, request) in late {
        let answer = connection.ask(request).await;
        assert_eq!((answer.status, answer.is_last()), (200, true), "one that was idle: {request}: {answer:?}");
    }
    assert!(tokio::task::block_in_place(|| server.terminate()).status.success());
}

/// Posts a body by HTTP/2, once there is room for each part of it, and returns the status of the answer.
async fn post_by_http_2(client: &mut h2::client::SendRequest<bytes::Bytes>, headers: &[(&str, &str)], body: &[u8]) -> u16 {
    let mut request = http::Request::post(format!("http://l{WEBHOOK}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    *client = client.clone().ready().await.expect("the connection goes on");
    let (answer, mut sending) = client.send_request(request.body(()).expect("a request"), false).expect("sent");
    let send = async {
        for part in body.chunks(16 * 1024) {
            sending.reserve_capacity(part.len());
            while sending.capacity() < part.len() {
                // The server has answered, and wants no more.
                if !matches!(std::future::poll_fn(|context| sending.poll_capacity(context)).await, Some(Ok(_))) {
                    return;
                }
            }
            if sending.send_data(bytes::Bytes::copy_from_slice(part), false).is_err() {
                return;
            }
        }
        let _ = sending.send_data(bytes::Bytes::new(), true);
    };
    let ((), answer) = tokio::time::timeout(PATIENCE, async { tokio::join!(send, answer) }).await.expect("an answer in time");
    answer.expect("an answer").status().as_u16()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn refusals_by_http_2_arrive_and_harm_no_other_stream() {
    let server = Server::start(&guarded());
    let tcp = tokio::net::TcpStream::connect(&server.http).await.expect("a connection");
    let (client, connection) = h2::client::handshake(tcp).await.expect("HTTP/2");
    let connection = tokio::spawn(connection);
    let json = ("content-type", "application/json");
    let known = [json, ("x-webhook-secret", SECRET)];
    // 20 MB is more than is read of a refused body.
    for length in [200, 70_000, 1_000_000, 2_000_000, 20_000_000] {
        let (mut one, mut other, body, event) = (client.clone(), client.clone(), vec![b'x'; length], event());
        let unknown = [json];
        let refused = post_by_http_2(&mut one, &unknown, &body);
        let good = async {
            for _ in 0..5 {
                assert_eq!(post_by_http_2(&mut other, &known, event.as_bytes()).await, 200, "{length}");
            }
        };
        assert_eq!(tokio::join!(refused, good).0, 401, "{length}");
    }
    // Nobody can be told to continue by HTTP/2 here. One that sends all the same is taken, and one that waits is answered
    // before it gives up.
    let expecting = [known[0], known[1], ("expect", "100-continue")];
    assert_eq!(post_by_http_2(&mut client.clone(), &expecting, event().as_bytes()).await, 200);
    let request =
        expecting.iter().fold(http::Request::post(format!("http://l{WEBHOOK}")), |request, (name, value)| request.header(*name, *value));
    let (answer, body) = client.clone().send_request(request.body(()).expect("a request"), false).expect("sent");
    let began = Instant::now();
    let answer = tokio::time::timeout(PATIENCE, answer).await.expect("in time").expect("an answer");
    assert_eq!(answer.status(), 417);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    drop(body);
    assert_eq!(post_by_http_2(&mut client.clone(), &known, event().as_bytes()).await, 200);
    drop(client);
    connection.abort();
}

/// `LEADFOLD_TEST_KEEP_ALIVE=5000` for the full number of each size.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn refused_senders_cost_others_nothing_in_pools_and_behind_proxies() {
    let count = std::env::var("LEADFOLD_TEST_KEEP_ALIVE").unwrap_or_else(|_| "16".to_owned());
    let server = Server::start(&guarded());
    let nginx = ReverseProxy::start(Program::Nginx, Traffic::Http1, &server.http);
    let haproxy = ReverseProxy::start(Program::Haproxy, Traffic::Http1, &server.http);
    let ways = [
        Some(("directly", &server.http)),
        nginx.as_ref().map(|proxy| ("nginx", &proxy.address)),
        haproxy.as_ref().map(|proxy| ("haproxy", &proxy.address)),
    ];
    let script = |name: &str| format!("{}/tests/clients/{name}", env!("CARGO_MANIFEST_DIR"));
    let python = clients().map(|clients| (clients.join("bin/python"), script("keep_alive_aiohttp.py")));
    let node = installed("node").map(|node| (node, script("keep_alive_node.mjs")));
    let mut lost = Vec::new();
    for (way, address) in ways.into_iter().flatten() {
        for (program, script) in [&python, &node].into_iter().flatten() {
            for (good, bad) in
                [(400, 400), (20_000, 20_000), (65_000, 65_000), (200_000, 200_000), (1_000_000, 1_000_000), (20_000, 2_000_000)]
            {
                let mut command = Command::new(program);
                command.arg(script).arg(format!("http://{address}{WEBHOOK}")).args([SECRET, &good.to_string(), &bad.to_string(), &count]);
                let output = tokio::task::block_in_place(|| command.stdin(Stdio::null()).stderr(Stdio::inherit()).output());
                let output = output.expect("the client can be started");
                let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
                println!("{way}, {}, {good} and {bad} bytes: {told}", script.rsplit('/').next().unwrap_or_default());
                let refused = told["refused"].as_object().expect("statuses");
                assert!(refused.contains_key("401"), "nobody was refused: {told}");
                let odd = refused.keys().any(|status| !["401", "404", "405", "413", "415"].contains(&&**status));
                if told["taken"].as_u64() != count.parse().ok() || odd {
                    lost.push(format!("{way}, {script}, {good} and {bad} bytes: {told}"));
                }
            }
        }
    }
    assert!(lost.is_empty(), "{}", lost.join("\n"));
}
