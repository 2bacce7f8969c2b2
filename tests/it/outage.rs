//! Redis goes away and comes back.

use std::time::{Duration, Instant};

use leadfold::api::GetLeadRequest;
use leadfold::api::watch_lead_response::Event;
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

fn watch_version(event: Event) -> u64 {
    match event {
        Event::Snapshot(snapshot) => snapshot.lead.map_or(0, |lead| lead.version),
        Event::Update(update) => update.lead.map_or(0, |lead| lead.version),
        Event::Heartbeat(heartbeat) => heartbeat.version,
    }
}
