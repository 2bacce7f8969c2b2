//! Redis is away when leadfold starts.

use std::time::{Duration, Instant};

use leadfold::api::GetLeadRequest;
use leadfold::api::watch_lead_response::Event;
use tonic::Code;
use tonic_types::StatusExt;

use crate::support::events::{SAMPLE_TIME, lead_updated, message};
use crate::support::redis::RedisServer;
use crate::support::server::{Options, Server};
use crate::support::watching::LeadWatch;
use crate::support::{PATIENCE, eventually, fresh_id};

async fn readyz(server: &Server) -> u16 {
    let web = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("an HTTP client");
    web.get(format!("http://{}/readyz", server.admin)).send().await.expect("an answer").status().as_u16()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadfold_starts_while_redis_is_away_and_serves_when_it_comes() {
    let mut redis = RedisServer::start();
    redis.kill();
    let server = Server::start(&Options::on(&redis));
    let lead_id = fresh_id();
    let answer = server.post(message(&lead_id, "a1", SAMPLE_TIME).to_string()).await;
    assert_eq!((answer.status, answer.outcome(), answer.body["leadId"].as_str()), (200, "queued", Some(&*lead_id)), "{answer:?}");
    assert_eq!(answer.body.get("version"), None, "no version is known yet");
    let status = server.client().get_lead(GetLeadRequest { lead_id: lead_id.clone() }).await.expect_err("Redis is away");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.get_details_retry_info().is_some_and(|info| info.retry_delay.is_some()), "{status:?}");
    assert_eq!(readyz(&server).await, 503);

    redis.restart();
    eventually("the event is applied", async || {
        let lead = server.client().get_lead(GetLeadRequest { lead_id: lead_id.clone() }).await.ok()?.into_inner().lead?;
        (lead.message_count == 1).then_some(())
    })
    .await;
    eventually("ready", async || (readyz(&server).await == 200).then_some(())).await;
    let mut watch = LeadWatch::open(&server, &lead_id, 0).await;
    let Event::Snapshot(_) = watch.next().await else { panic!("not a snapshot") };
    let version = server.apply(&message(&lead_id, "a2", SAMPLE_TIME)).await;
    assert_eq!(watch.next_update().await.lead.expect("a lead").version, version);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadfold_starts_while_redis_hangs() {
    let redis = RedisServer::start();
    redis.signal("STOP");
    let began = Instant::now();
    let server = Server::start(&Options::on(&redis));
    assert!(began.elapsed() < Duration::from_secs(5), "it took {:?}", began.elapsed());
    assert_eq!(server.post(message(&fresh_id(), "a1", SAMPLE_TIME).to_string()).await.outcome(), "queued");
    redis.signal("CONT");
    server.eventually_metric("leadfold_spool_events", 0.0).await;
}

/// What Redis holds is only known when it comes: then it may be another's, and nothing is written to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_comes_later_and_cannot_be_used_is_not_written_to() {
    let mut redis = RedisServer::start_with(&super::DURABLE);
    drop(Server::start(&Options::on(&redis).env("LEADFOLD_PARTITIONS", "8")));
    redis.kill();
    let server = Server::start(&Options::on(&redis));
    assert_eq!(server.post(message(&fresh_id(), "a1", SAMPLE_TIME).to_string()).await.outcome(), "queued");
    redis.restart();
    eventually("it is said", async || server.logs().contains("has partitions 8, this instance wants 64").then_some(())).await;
    assert_eq!(server.post(message(&fresh_id(), "a1", SAMPLE_TIME).to_string()).await.outcome(), "queued");
    assert_eq!(readyz(&server).await, 503);
    let keys: Vec<String> = redis::cmd("KEYS").arg("*lead:*").query(&mut redis.connection()).expect("KEYS");
    assert!(keys.is_empty(), "{keys:?}");
    assert_eq!(server.metric("leadfold_spool_events").await, 2.0);
}

/// Whoever forgets `--redis-url` starts on the embedded store; what waits for the Redis must not be forgotten with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spool_that_waits_for_a_redis_is_mentioned_by_the_embedded_store() {
    let (mut redis, dir) = (RedisServer::start(), tempfile::tempdir().expect("a directory"));
    redis.kill();
    let mut server = Server::start(&Options::on(&redis).data_dir(dir.path()));
    assert_eq!(server.post(message(&fresh_id(), "a1", SAMPLE_TIME).to_string()).await.outcome(), "queued");
    server.terminate();
    let mut embedded = Server::start(&Options::default().data_dir(dir.path()));
    embedded.terminate();
    let said = embedded.logs();
    assert!(said.contains("taken for a Redis and not applied yet") && said.contains("--redis-url of before"), "{said}");
    // They are still there.
    redis.restart();
    let server = Server::start(&Options::on(&redis).data_dir(dir.path()));
    server.eventually_metric("leadfold_spool_applied_total", 1.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spooled_patch_does_not_undo_a_later_one() {
    let mut redis = RedisServer::start_with(&super::DURABLE);
    // So slowly that the later patch comes while the earlier one still waits.
    let server = Server::start(&Options::on(&redis).env("LEADFOLD_SPOOL_DRAIN_RATE", "20"));
    redis.kill();
    let lead_id = fresh_id();
    for number in 0..40 {
        assert_eq!(server.post(message(&lead_id, &format!("a{number}"), SAMPLE_TIME).to_string()).await.outcome(), "queued");
    }
    let mut patch = lead_updated(&lead_id);
    for (at, email) in ["first@example.com", "second@example.com"].iter().enumerate() {
        patch["data"]["email"] = (*email).into();
        assert_eq!(server.post(patch.to_string()).await.outcome(), "queued", "{at}");
    }
    redis.restart();
    // As soon as other events are applied at once, a patch of this lead is not.
    eventually("applied again", async || {
        (server.post(message(&fresh_id(), "a1", SAMPLE_TIME).to_string()).await.outcome() == "applied").then_some(())
    })
    .await;
    patch["data"]["email"] = "last@example.com".into();
    let answer = server.post(patch.to_string()).await;
    if server.metric("leadfold_spool_events").await > 1.0 {
        assert_eq!(answer.outcome(), "queued", "it would be undone: {answer:?}");
    }
    server.eventually_metric("leadfold_spool_events", 0.0).await;
    let lead =
        eventually("a read", async || server.client().get_lead(GetLeadRequest { lead_id: lead_id.clone() }).await.ok()?.into_inner().lead);
    assert_eq!(lead.await.profile.expect("a profile").email, "last@example.com");
}
