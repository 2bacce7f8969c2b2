//! Redis goes away and comes back.

use std::time::{Duration, Instant};

use leadfold::api::watch_lead_response::Event;
use leadfold::api::{GetLeadRequest, SnapshotReason};
use tonic::Code;
use tonic_types::StatusExt;

use crate::support::events::{SAMPLE_TIME, message};
use crate::support::redis::RedisServer;
use crate::support::server::{Options, Server};
use crate::support::watching::LeadWatch;
use crate::support::{PATIENCE, eventually, fresh_id};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_say_that_redis_is_away_and_when_to_come_back() {
    let mut redis = RedisServer::start();
    let server = Server::start(&Options::on(&redis));
    let lead_id = fresh_id();
    server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    redis.kill();
    let status = server.client().get_lead(GetLeadRequest { lead_id: lead_id.clone() }).await.expect_err("Redis is away");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.get_details_retry_info().is_some_and(|info| info.retry_delay.is_some()), "{status:?}");

    let began = Instant::now();
    let answer = server.post(message(&lead_id, "a2", SAMPLE_TIME).to_string()).await;
    assert!(began.elapsed() < Duration::from_secs(4), "a webhook is answered within 3 s, whatever Redis does");
    assert!(answer.outcome() == "queued" || answer.status == 503, "never taken and lost: {answer:?}");

    let web = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("an HTTP client");
    let live = web.get(format!("http://{}/livez", server.admin)).send().await.expect("an answer");
    assert_eq!(live.status(), 200, "restarting this process would not help");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_reaches_the_newest_version_after_redis_came_back() {
    let mut redis = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let (one, other) = (Server::start(&Options::on(&redis)), Server::start(&Options::on(&redis)));
    let lead_id = fresh_id();
    let first = one.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    let mut watch = LeadWatch::open(&other, &lead_id, 0).await;
    let Event::Snapshot(_) = watch.next().await else { panic!("not a snapshot") };

    redis.restart();
    let event = message(&lead_id, "a2", SAMPLE_TIME).to_string();
    eventually("a webhook is taken again", async || (one.post(&*event).await.status == 200).then_some(())).await;
    let version = eventually("what was taken is applied", async || {
        let lead = one.client().get_lead(GetLeadRequest { lead_id: lead_id.clone() }).await.ok()?.into_inner().lead?;
        (lead.version > first).then_some(lead.version)
    })
    .await;
    let began = Instant::now();
    while watch_version(watch.next().await) < version {}
    assert!(began.elapsed() < Duration::from_secs(5), "it took {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_is_told_when_redis_has_lost_what_it_was_told() {
    let mut redis = RedisServer::start();
    let server = Server::start(&Options::on(&redis));
    let [behind, gone] = [fresh_id(), fresh_id()];
    let kept = server.apply(&message(&behind, "a1", SAMPLE_TIME)).await;
    redis.dump();
    // By an instance that does not live to apply again what it has acknowledged.
    let short_lived = Server::start(&Options::on(&redis));
    let lost = short_lived.apply(&message(&behind, "a2", SAMPLE_TIME)).await;
    short_lived.apply(&message(&gone, "a1", SAMPLE_TIME)).await;
    drop(short_lived);
    let mut watches = [LeadWatch::open(&server, &behind, 0).await, LeadWatch::open(&server, &gone, 0).await];
    for watch in &mut watches {
        watch.next().await;
    }

    // As after a failover to a replica that was behind: it has what it had when it was dumped.
    redis.restart();
    for (watch, version) in watches.iter_mut().zip([kept, 0]) {
        let Event::Snapshot(snapshot) = watch.next().await else { panic!("not a snapshot") };
        let reason = snapshot.reason();
        let lead = snapshot.lead.expect("the lead");
        assert_eq!((reason, lead.version), (SnapshotReason::StoreLostWrites, version), "{lead:?}");
        assert_eq!(lead.message_count, u64::from(version > 0));
    }
    // Who comes back with a version that is no more is told so, and everybody goes on from there.
    let mut late = LeadWatch::open(&server, &behind, lost).await;
    let Event::Snapshot(snapshot) = late.next().await else { panic!("not a snapshot") };
    assert_eq!(snapshot.reason(), SnapshotReason::ResumePositionUnknown);
    let event = message(&behind, "a3", SAMPLE_TIME).to_string();
    eventually("webhooks are taken again", async || (server.post(&*event).await.status == 200).then_some(())).await;
    for watch in [&mut watches[0], &mut late] {
        let update = watch.next_update().await;
        assert!(update.lead.is_some_and(|lead| lead.version > lost && lead.message_count == 2), "versions do not run backwards");
    }
}

/// As with `appendfsync everysec`, where a crash takes the last second with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_redis_forgets_when_it_crashes_is_applied_again() {
    let mut redis = RedisServer::start();
    let server = Server::start(&Options::on(&redis));
    let lead_id = fresh_id();
    server.apply(&message(&lead_id, "kept", SAMPLE_TIME)).await;
    redis.dump();
    for number in 0..100 {
        server.apply(&message(&lead_id, &format!("lost{number}"), SAMPLE_TIME)).await;
    }
    redis.restart();
    eventually("what was lost is there again", async || {
        let lead = server.client().get_lead(GetLeadRequest { lead_id: lead_id.clone() }).await.ok()?.into_inner().lead?;
        (lead.message_count == 101).then_some(())
    })
    .await;
}

/// A rolling restart while Redis is away, which comes back without its last writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_redis_forgot_is_in_the_spool_of_an_instance_that_was_ended_meanwhile() {
    let (mut redis, dir) = (RedisServer::start(), tempfile::tempdir().expect("a directory"));
    let mut server = Server::start(&Options::on(&redis).data_dir(dir.path()));
    let lead_id = fresh_id();
    server.apply(&message(&lead_id, "kept", SAMPLE_TIME)).await;
    redis.dump();
    for number in 0..100 {
        server.apply(&message(&lead_id, &format!("lost{number}"), SAMPLE_TIME)).await;
    }
    redis.kill();
    assert!(server.terminate().status.success());
    assert!(server.logs().contains("is in the spool, to be applied again"), "{}", server.logs());
    redis.restart();
    let server = Server::start(&Options::on(&redis).data_dir(dir.path()));
    eventually("what was lost is there again", async || {
        let lead = server.client().get_lead(GetLeadRequest { lead_id: lead_id.clone() }).await.ok()?.into_inner().lead?;
        (lead.message_count == 101).then_some(())
    })
    .await;
}

fn watch_version(event: Event) -> u64 {
    match event {
        Event::Snapshot(snapshot) => snapshot.lead.map_or(0, |lead| lead.version),
        Event::Update(update) => update.lead.map_or(0, |lead| lead.version),
        Event::Heartbeat(heartbeat) => heartbeat.version,
    }
}
