//! SIGTERM: everybody is told in time, and nobody can hold the server up.

use std::time::{Duration, Instant};

use leadfold::api::lead_service_client::LeadServiceClient;
use leadfold::api::{GetLeadRequest, WatchLeadRequest};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tonic::Code;
use tonic::transport::Endpoint;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{self, server_reflection_client::ServerReflectionClient};

use crate::support::events::{SAMPLE_TIME, message};
use crate::support::server::{Options, Server};
use crate::support::watching::{LeadWatch, retry_delay, version};
use crate::support::{PATIENCE, eventually, fresh_id};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_balancers_learn_of_the_end_before_requests_are_turned_away() {
    let mut server = Server::start(&Options::default().env("LEADFOLD_DRAIN_DELAY_MS", "3000"));
    let lead_id = fresh_id();
    server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    let mut watch = LeadWatch::open(&server, &lead_id, 0).await;
    watch.next().await;
    let web = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("an HTTP client");
    let ready = async || web.get(format!("http://{}/readyz", server.admin)).send().await.expect("an answer").status().as_u16();
    eventually("it is ready", async || (ready().await == 200).then_some(())).await;

    let began = Instant::now();
    server.signal_termination();
    eventually("it says that it is not ready", async || (ready().await == 503).then_some(())).await;
    let newest = server.apply(&message(&lead_id, "a2", SAMPLE_TIME)).await;
    assert_eq!(version(&watch.next().await), newest, "watches still tell");
    LeadWatch::over(&server.channel(), &lead_id, newest).await.expect("new ones are taken");
    let answer = server.client().get_lead(GetLeadRequest { lead_id }).await.expect("reads are answered");
    assert_eq!(answer.into_inner().lead.map(|lead| lead.version), Some(newest));
    assert!(began.elapsed() < Duration::from_secs(3), "too slow to prove anything: {:?}", began.elapsed());
    assert_eq!(ready().await, 503);

    assert_eq!(watch.end().await.code(), Code::Unavailable);
    let took = began.elapsed();
    assert!((Duration::from_secs(3)..Duration::from_secs(6)).contains(&took), "the watch ended after {took:?}");
    assert!(server.terminate().status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_end_with_a_time_to_come_back_that_differs() {
    let mut server = Server::start(&Options::default().env("LEADFOLD_DRAIN_DELAY_MS", "0"));
    let channel = server.channel();
    let mut ends = Vec::new();
    for _ in 0..50 {
        let mut watch = LeadWatch::over(&channel, &fresh_id(), 0).await.expect("the stream opens");
        watch.next().await;
        ends.push(tokio::spawn(watch.end()));
    }
    server.signal_termination();
    let mut delays = Vec::new();
    for end in ends {
        let status = end.await.expect("the reader");
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        delays.push(retry_delay(&status).expect("when to come back"));
    }
    delays.sort();
    let (least, most) = (delays[0], delays[delays.len() - 1]);
    assert!(most - least > Duration::from_millis(100), "all come back at the same time: {delays:?}");
    assert!(server.terminate().status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_can_hold_the_server_up() {
    let mut server = Server::start(&Options::default().env("LEADFOLD_DRAIN_SECONDS", "2"));
    let mut silent = Vec::new();
    for address in [&server.http, &server.grpc, &server.admin] {
        silent.push(TcpStream::connect(address).await.expect("a connection"));
    }
    let lead_id = fresh_id();
    let endpoint = Endpoint::from_shared(format!("http://{}", server.grpc)).expect("a valid address");
    let channel = endpoint.initial_stream_window_size(0).connect().await.expect("a connection");
    let mut stalled = Vec::new();
    for _ in 0..20 {
        let request = WatchLeadRequest { lead_id: lead_id.clone(), ..Default::default() };
        stalled.push(LeadServiceClient::new(channel.clone()).watch_lead(request).await.expect("the stream opens"));
    }
    server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    let exit = tokio::task::block_in_place(|| server.terminate());
    assert!(exit.status.success(), "{}", server.logs());
    assert!(exit.took < Duration::from_millis(2500), "it took {:?}", exit.took);
    drop((silent, stalled));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_never_spoke_is_not_waited_for() {
    let mut server = Server::start(&Options::default());
    let silent = [&server.http, &server.grpc, &server.admin].map(|address| std::net::TcpStream::connect(address).expect("a connection"));
    let exit = tokio::task::block_in_place(|| server.terminate());
    assert!(exit.status.success() && exit.took < Duration::from_secs(5), "it took {:?} of the 10 s that it has", exit.took);
    drop(silent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_half_a_greeting_nor_health_nor_reflection_holds_the_server_up() {
    let mut server = Server::start(&Options::default().env("LEADFOLD_DRAIN_DELAY_MS", "0").env("LEADFOLD_DRAIN_SECONDS", "2"));
    let mut preface = TcpStream::connect(&server.grpc).await.expect("a connection");
    preface.write_all(b"PRI * HTTP/2.0\r\n").await.expect("half of HTTP/2's greeting");
    let mut header = TcpStream::connect(&server.http).await.expect("a connection");
    header.write_all(b"POST /webhooks/omniai HTTP/1.1\r\nhost: x\r\nconten").await.expect("half a header");
    let mut body = TcpStream::connect(&server.http).await.expect("a connection");
    body.write_all(b"POST /webhooks/omniai HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{")
        .await
        .expect("half a body");
    let mut health = HealthClient::new(server.channel());
    let mut health = health.watch(HealthCheckRequest::default()).await.expect("a stream of health").into_inner();
    health.message().await.expect("its state").expect("its state");
    let asks = futures::stream::pending::<v1::ServerReflectionRequest>();
    let mut reflection = ServerReflectionClient::new(server.channel());
    let reflection = tokio::spawn(async move { reflection.server_reflection_info(asks).await.map(tonic::Response::into_inner) });
    let exit = tokio::task::block_in_place(|| server.terminate());
    assert!(exit.status.success(), "{}", server.logs());
    assert!(exit.took < Duration::from_millis(2500), "it took {:?}", exit.took);
    drop((preface, header, body, health, reflection));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_skips_the_wait() {
    let settings = Options::default().env("LEADFOLD_DRAIN_DELAY_MS", "5000").env("LEADFOLD_DRAIN_SECONDS", "10");
    let mut server = Server::start(&settings);
    let mut watch = LeadWatch::open(&server, &fresh_id(), 0).await;
    watch.next().await;
    let web = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("an HTTP client");
    let ready = async || web.get(format!("http://{}/readyz", server.admin)).send().await.expect("an answer").status().as_u16();
    server.signal_termination();
    eventually("it has noticed", async || (ready().await == 503).then_some(())).await;
    let exit = tokio::task::block_in_place(|| server.terminate());
    assert!(exit.took < Duration::from_secs(3), "it took {:?}", exit.took);
}
