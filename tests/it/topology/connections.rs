//! Connections that break in other ways than by closing.

use std::time::{Duration, Instant};

use leadfold::api::GetLeadRequest;

use super::Flow;
use crate::support::events::{SAMPLE_TIME, message};
use crate::support::proxy::{Cut, Proxy};
use crate::support::redis::RedisServer;
use crate::support::redis_cluster::{RedisCluster, tell};
use crate::support::server::{Options, Server};
use crate::support::watching::{LeadWatch, version};
use crate::support::{eventually, fresh_id};

/// Posts an event of its own to a lead, and returns what was answered.
async fn post(server: &Server, lead_id: &str, action_id: &str) -> String {
    let answer = server.post(message(lead_id, action_id, SAMPLE_TIME).to_string()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.outcome().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_open_connection_is_noticed_within_seconds() {
    let redis = RedisServer::start();
    let wire = Proxy::to(redis.port());
    let server = Server::start(&Options::at(&redis.url_on(wire.port())));
    let lead_id = fresh_id();
    assert_eq!(post(&server, &lead_id, "a").await, "applied");
    let mut watch = LeadWatch::open(&server, &lead_id, 0).await;
    watch.next().await;
    // Everything that was connected is dead from now on, and nobody says so.
    wire.cut(Cut::Everything);
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert_eq!(post(&server, &lead_id, "b").await, "queued");
    wire.cut(Cut::Nothing);
    let began = Instant::now();
    while server.metric("leadfold_spool_events").await > 0.0 {
        assert!(began.elapsed() < Duration::from_secs(5), "the connection for writes is not replaced");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let read = async || server.client().get_lead(GetLeadRequest { lead_id: lead_id.clone() }).await.ok()?.into_inner().lead;
    let last = eventually("a read", read).await.version;
    while version(&watch.next().await) < last {}
    assert!(began.elapsed() < Duration::from_secs(5), "the feed took {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_that_is_lost_counts_once() {
    let redis = RedisServer::start();
    let wire = Proxy::to(redis.port());
    let server = Server::start(&Options::at(&redis.url_on(wire.port())));
    let lead_id = fresh_id();
    assert_eq!(post(&server, &lead_id, "a").await, "applied");
    let mut watch = LeadWatch::open(&server, &lead_id, 0).await;
    watch.next().await;
    let fields = || redis::cmd("HLEN").arg(history_key(&redis)).query::<u64>(&mut redis.connection()).expect("HLEN");
    let before = fields();
    // Redis executes it, and nobody hears.
    wire.cut(Cut::Replies);
    assert_eq!(post(&server, &lead_id, "b").await, "queued", "whether it was applied is not known");
    assert!(fields() > before, "Redis has it");
    wire.cut(Cut::Nothing);
    server.eventually_metric("leadfold_spool_events", 0.0).await;
    // The connection for reads has been dead too, and is found out by who reads.
    let lead =
        eventually("a read", async || server.client().get_lead(GetLeadRequest { lead_id: lead_id.clone() }).await.ok()?.into_inner().lead)
            .await;
    assert_eq!((lead.message_count, lead.activity_counts[0].count), (2, 2));
    while version(&watch.next().await) < lead.version {}
}

fn history_key(redis: &RedisServer) -> String {
    let keys: Vec<String> = redis::cmd("KEYS").arg("*:history:*").query(&mut redis.connection()).expect("KEYS");
    keys.into_iter().next().expect("a history")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn feeds_of_many_partitions_recover_when_all_connections_are_killed() {
    let cluster = RedisCluster::start(Duration::from_secs(60));
    let flow = Flow::begin(&cluster.url(), 48).await;
    let mut watches = Vec::new();
    for lead_id in flow.ledger.leads() {
        watches.push((lead_id.clone(), LeadWatch::open(&flow.server, lead_id, 0).await));
    }
    for _ in 0..3 {
        for node in &cluster.nodes {
            tell(node, &["CLIENT", "KILL", "TYPE", "normal"]);
        }
        flow.ledger.until("applied", 50).await;
    }
    for (lead_id, mut watch) in watches {
        // It has not been read so far, and skips to what is newest.
        let began = Instant::now();
        let present = flow.server.lead(&lead_id).await.version;
        while version(&watch.next().await) < present {}
        assert!(began.elapsed() < Duration::from_secs(5), "{lead_id} took {:?}", began.elapsed());
    }
    flow.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_watches_resume_unprompted_after_a_long_outage() {
    let mut redis = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let (server, other) = (Server::start(&Options::on(&redis)), Server::start(&Options::on(&redis)));
    let lead_id = fresh_id();
    assert_eq!(post(&server, &lead_id, "a").await, "applied");
    let mut watch = LeadWatch::open(&server, &lead_id, 0).await;
    watch.next().await;
    redis.kill();
    let seconds = std::env::var("LEADFOLD_TEST_FAULT_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(6);
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    redis.restart();
    // Nobody asks the instance that is watched for anything: its feed comes back by itself.
    let last = eventually("the other instance is back", async || {
        let answer = other.post(message(&lead_id, "b", SAMPLE_TIME).to_string()).await;
        matches!(answer.outcome(), "applied" | "duplicate").then(|| answer.version())
    })
    .await;
    let began = Instant::now();
    while version(&watch.next().await) < last {}
    assert!(began.elapsed() < Duration::from_secs(5), "it took {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_that_redis_forgot_are_sent_again() {
    let redis = RedisServer::start();
    let server = Server::start(&Options::on(&redis));
    let lead_id = fresh_id();
    for number in 0..3 {
        assert_eq!(post(&server, &lead_id, &format!("a{number}")).await, "applied");
        let _: redis::Value = redis::cmd("SCRIPT").arg("FLUSH").query(&mut redis.connection()).expect("SCRIPT FLUSH");
        assert_eq!(server.lead(&lead_id).await.message_count, number + 1);
    }
}
