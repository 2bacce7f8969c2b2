//! Health says what is true of each part, and follows it within seconds: there and back.

use std::time::{Duration, Instant};

use serde_json::Value;
use tonic::Streaming;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_client::HealthClient};

use crate::support::events::{SAMPLE_TIME, message};
use crate::support::redis::RedisServer;
use crate::support::server::{Options, Server};
use crate::support::{PATIENCE, Setup, eventually, fresh_id};

const SERVICE: &str = "leadfold.v1.LeadService";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_hangs_is_told_within_seconds_and_so_is_its_return() {
    let redis = RedisServer::start();
    let server = Server::start(&Options::on(&redis));
    let mut watches = [Watch::open(&server, SERVICE).await, Watch::open(&server, "").await];
    for watch in &mut watches {
        assert_eq!(watch.next().await, ServingStatus::Serving);
    }
    let (status, report) = ready(&server, "").await;
    assert_eq!((status, &report["ready"], &report["parts"]["store"]["kind"]), (200, &true.into(), &"redis".into()), "{report}");
    assert!(report["parts"]["feed"]["lagSeconds"].as_f64().is_some_and(|lag| lag < 2.5), "{report}");

    redis.signal("STOP");
    let began = Instant::now();
    let report = eventually("not ready", async || Some(ready(&server, "").await).filter(|(status, _)| *status == 503)).await.1;
    assert!(began.elapsed() < Duration::from_secs(4), "it took {:?}", began.elapsed());
    assert_eq!(report["parts"]["store"]["ok"], false, "{report}");
    assert!(report["parts"]["store"]["reason"].as_str().is_some_and(|reason| reason.contains("Redis")), "{report}");
    for watch in &mut watches {
        assert_eq!(watch.next().await, ServingStatus::NotServing);
    }
    assert!(began.elapsed() < Duration::from_secs(6), "the streams took {:?}", began.elapsed());
    let (status, report) = ready(&server, "?for=webhooks").await;
    assert_eq!((status, &report["parts"]["spool"]["ok"]), (200, &true.into()), "there is the spool: {report}");
    let queued = server.post(message(&fresh_id(), "a1", SAMPLE_TIME).to_string()).await;
    assert_eq!((queued.status, queued.outcome()), (200, "queued"), "it was no promise: {queued:?}");
    let spool = &ready(&server, "?for=webhooks").await.1["parts"]["spool"];
    assert!(spool["events"] == 1 && spool["bytes"].as_u64() > Some(0) && spool["oldestAgeSeconds"].as_f64() > Some(0.0), "{spool}");
    assert_eq!(server.admin("/livez").await.0, 200, "restarting this process would not help");
    eventually("a log line", async || server.logs().contains("not ready").then_some(())).await;

    redis.signal("CONT");
    for watch in &mut watches {
        assert_eq!(watch.next().await, ServingStatus::Serving);
    }
    eventually("ready", async || (ready(&server, "").await.0 == 200).then_some(())).await;
    eventually("the spool is empty", async || (ready(&server, "").await.1["parts"]["spool"]["events"] == 0).then_some(())).await;
    assert_eq!(server.logs().matches("not ready").count(), server.logs().matches("ready again").count(), "once for each time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_whose_connection_is_cut_again_and_again_is_not_trusted() {
    let redis = RedisServer::start();
    let server = Server::start(&Options::on(&redis));
    let mut connection = redis.connection();
    let deadline = Instant::now() + PATIENCE;
    // Every new connection of the feed ends before it has proved anything; all others live.
    let report = loop {
        assert!(Instant::now() < deadline, "a feed that hears nothing is still trusted");
        cut_feeds(&mut connection);
        tokio::time::sleep(Duration::from_millis(20)).await;
        let (status, report) = ready(&server, "").await;
        if status == 503 {
            break report;
        }
    };
    let parts = &report["parts"];
    assert_eq!((&parts["store"]["ok"], &parts["feed"]["ok"]), (&true.into(), &false.into()), "{report}");
    assert!(parts["feed"]["lagSeconds"].as_f64().is_some_and(|lag| lag >= 2.5), "{report}");
    cut_feeds(&mut connection);
    assert_eq!(ready(&server, "?for=webhooks").await.0, 200, "events are taken as before");
    assert_eq!(ready(&server, "?for=reads").await.0, 503);
    assert!(server.metric("leadfold_feed_lag_seconds").await >= 1.0);
    assert!(server.metric("leadfold_feed_reconnects_total").await >= 1.0);

    eventually("ready", async || (ready(&server, "").await.0 == 200).then_some(())).await;
    assert!(server.metric("leadfold_feed_lag_seconds").await < 2.5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_takes_no_changes_is_ready_for_reads_alone() {
    let redis = RedisServer::start();
    let (server, other) = (Server::start(&Options::on(&redis).env("LEADFOLD_SPOOL_MAX_BYTES", "0")), Server::start(&Options::on(&redis)));
    let mut connection = redis.connection();
    // No room for one byte more.
    let () = redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(1).query(&mut connection).expect("CONFIG SET");
    let (status, report) = ready(&other, "").await;
    assert_eq!((status, &report["parts"]["writes"]["ok"]), (200, &false.into()), "events go to the spool: {report}");
    let (status, report) = ready(&server, "").await;
    assert_eq!((status, &report["parts"]["writes"]["ok"]), (503, &false.into()), "there is no spool: {report}");
    assert!(report["parts"]["writes"]["reason"].as_str().is_some_and(|reason| reason.contains("OOM")), "{report}");
    assert_eq!(ready(&server, "?for=reads").await.0, 200, "{report}");
    assert_eq!(Watch::open(&server, SERVICE).await.next().await, ServingStatus::Serving, "reads are what gRPC is for");
    let () = redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(0).query(&mut connection).expect("CONFIG SET");
    // What was seen just before is told for a moment.
    eventually("ready", async || (ready(&server, "").await.0 == 200).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_is_told_to_those_who_ask_for_something_that_there_is() {
    let server = Setup::embedded();
    for audience in ["everyone", "webhooks", "reads"] {
        let (status, report) = ready(&server, &format!("?for={audience}")).await;
        assert_eq!((status, &report["for"]), (200, &audience.into()), "{report}");
    }
    assert_eq!(server.admin("/readyz?for=fun").await, (400, "{\"error\":\"for: webhooks, reads or everyone\"}\n".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_drains_says_so_while_it_still_answers() {
    let mut server = Server::start(&Options::default().env("LEADFOLD_DRAIN_DELAY_MS", "1500"));
    let mut watch = Watch::open(&server, SERVICE).await;
    assert_eq!(watch.next().await, ServingStatus::Serving);
    server.signal_termination();
    assert_eq!(watch.next().await, ServingStatus::NotServing);
    for audience in ["everyone", "webhooks", "reads"] {
        let (status, report) = ready(&server, &format!("?for={audience}")).await;
        assert_eq!((status, &report["parts"]["server"]["reason"]), (503, &"shutting down".into()), "{report}");
    }
    assert!(server.terminate().status.success());
}

/// Ends the connections that wait for news of the streams.
fn cut_feeds(connection: &mut redis::Connection) {
    let clients: String = redis::cmd("CLIENT").arg("LIST").query(connection).expect("CLIENT LIST");
    for client in clients.lines().filter(|client| client.contains(" cmd=xread ")) {
        let id = client.split(' ').find_map(|part| part.strip_prefix("id=")).expect("an id");
        let _: i64 = redis::cmd("CLIENT").arg("KILL").arg("ID").arg(id).query(connection).expect("CLIENT KILL");
    }
}

async fn ready(server: &Server, query: &str) -> (u16, Value) {
    let (status, text) = server.admin(&format!("/readyz{query}")).await;
    (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
}

/// A stream of `grpc.health.v1.Health/Watch`.
struct Watch(Streaming<HealthCheckResponse>);

impl Watch {
    async fn open(server: &Server, service: &str) -> Self {
        let request = HealthCheckRequest { service: service.to_owned() };
        Self(HealthClient::new(server.channel()).watch(request).await.expect("a stream").into_inner())
    }

    async fn next(&mut self) -> ServingStatus {
        let message = tokio::time::timeout(PATIENCE, self.0.message()).await.expect("a message in time");
        message.expect("no error").expect("no end").status()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_spool_takes_nothing_and_says_so() {
    let mut redis = RedisServer::start();
    let server = Server::start(&Options::on(&redis).env("LEADFOLD_SPOOL_MAX_BYTES", "1048576"));
    redis.kill();
    let lead_id = fresh_id();
    let event = |number: usize| {
        let mut event = message(&lead_id, &number.to_string(), SAMPLE_TIME);
        event["actionLog"]["summary"] = "x".repeat(2000).into();
        event.to_string()
    };
    let mut numbers = 0..;
    let full = eventually("the spool is full", async || {
        let posts = numbers.by_ref().take(100).map(|number| server.post(event(number)));
        futures::future::join_all(posts).await.into_iter().find(|answer| answer.status == 503)
    })
    .await;
    assert_eq!(full.outcome(), "");
    let (status, report) = ready(&server, "?for=webhooks").await;
    assert_eq!((status, &report["parts"]["spool"]["ok"]), (503, &false.into()), "{report}");
    assert!(report["parts"]["spool"]["reason"].as_str().is_some_and(|reason| reason.contains("full")), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_service_has_a_health_and_what_is_unknown_is_told_of() {
    let mut server = Server::start(&Options::default().env("LEADFOLD_DRAIN_DELAY_MS", "300"));
    for service in ["", SERVICE, "leadfold.v1.DeadLetterService"] {
        assert_eq!(Watch::open(&server, service).await.next().await, ServingStatus::Serving, "{service:?}");
        let mut client = HealthClient::new(server.channel());
        let answer = client.check(HealthCheckRequest { service: service.to_owned() }).await.expect("an answer");
        assert_eq!(answer.into_inner().status(), ServingStatus::Serving, "{service:?}");
    }
    let mut client = HealthClient::new(server.channel());
    let unknown = || HealthCheckRequest { service: "no.such.Service".to_owned() };
    assert_eq!(client.check(unknown()).await.expect_err("unknown").code(), tonic::Code::NotFound);
    let mut watch = client.watch(unknown()).await.expect("a stream").into_inner();
    let first = watch.message().await.expect("a message").expect("before the end");
    assert_eq!(first.status(), ServingStatus::ServiceUnknown);
    // It stays open, until the server ends.
    assert!(tokio::time::timeout(Duration::from_millis(300), watch.message()).await.is_err(), "it goes on");
    server.signal_termination();
    let end = tokio::time::timeout(PATIENCE, watch.message()).await.expect("in time").expect_err("the end");
    assert_eq!(end.code(), tonic::Code::Unavailable, "{end:?}");
    assert!(server.terminate().status.success());
}
