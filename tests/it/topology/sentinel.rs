//! A server that sentinels watch over.

use std::time::{Duration, Instant};

use leadfold::api::watch_lead_response::Event;
use leadfold::api::{GetLeadRequest, SnapshotReason};
use serde_json::Value;

use super::Flow;
use crate::support::events::{SAMPLE_TIME, lead_updated, message};
use crate::support::proxy::Cut;
use crate::support::redis::RedisServer;
use crate::support::redis_cluster::{tell, text, until};
use crate::support::sentinels::{SENTINEL_PASSWORD, Sentinels, Setup};
use crate::support::server::{Options, Server};
use crate::support::watching::{LeadWatch, version};
use crate::support::{eventually, fresh_id};

/// How long a server may be silent before it is held for dead.
const DOWN_AFTER: Duration = Duration::from_millis(700);
/// One that is silent for less has to be waited for.
const NEVER_DOWN: Duration = Duration::from_secs(60);

/// How many scripts a server was asked to run.
fn scripts(redis: &RedisServer) -> u64 {
    let stats = text(redis, &["INFO", "commandstats"]);
    let calls = |name: &str| stats.lines().find_map(|line| line.strip_prefix(name)?.split(',').next()?.parse::<u64>().ok());
    ["cmdstat_evalsha:calls=", "cmdstat_eval:calls="].iter().filter_map(|name| calls(name)).sum()
}

/// Cuts a replica off from its primary, so that it falls behind.
fn cut_off(replica: &RedisServer, primary: &RedisServer) {
    tell(replica, &["CONFIG", "SET", "masteruser", "nobody", "masterauth", "wrong"]);
    tell(primary, &["CLIENT", "KILL", "TYPE", "replica"]);
    until("the replica is cut off", || text(replica, &["INFO", "replication"]).contains("master_link_status:down"));
}

fn until_in_step(primary: &RedisServer, replica: &RedisServer) {
    let offset = |node: &RedisServer, field: &str| {
        let info = text(node, &["INFO", "replication"]);
        info.lines().find_map(|line| line.strip_prefix(field)?.trim().parse::<u64>().ok())
    };
    until("the replica has all", || offset(replica, "slave_repl_offset:") >= offset(primary, "master_repl_offset:"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_sentinels_replace_the_primary() {
    let mut sentinels = Sentinels::start(DOWN_AFTER);
    let flow = Flow::begin(&sentinels.url(), 16).await;
    sentinels.nodes[0].kill();
    sentinels.until_primary(1);
    flow.ledger.until("applied", 100).await;
    // The old one comes back, and is a replica from now on: nobody may write to it.
    sentinels.nodes[0].restart();
    flow.end().await;
}

/// The old primary lives on, says that it is one for a while, and forgets what was written to it meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_in_planned_failovers_three_in_a_row() {
    let sentinels = Sentinels::start(NEVER_DOWN);
    let flow = Flow::begin(&sentinels.url(), 16).await;
    let other = Flow::begin(&sentinels.url(), 16).await;
    for (round, primary) in [1, 0, 1].into_iter().enumerate() {
        sentinels.fail_over_to(primary);
        for flow in [&flow, &other] {
            flow.ledger.until("applied", 100).await;
        }
        if round < 2 {
            sentinels.until_replica(1 - primary);
        }
    }
    flow.end().await;
    other.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_and_servers_may_ask_for_passwords() {
    let sentinels = Sentinels::start_with(Setup { down_after: NEVER_DOWN, passwords: true });
    let url = sentinels.url();
    let flow = Flow::begin(&url, 16).await;
    sentinels.fail_over_to(1);
    flow.ledger.until("applied", 100).await;
    assert!(!flow.server.logs().contains(SENTINEL_PASSWORD), "{}", flow.server.logs());
    flow.end().await;

    // Whoever has no password, or a wrong one, is told who refused it.
    let (without, _) = url.split_once('?').expect("a query");
    for url in [without.to_owned(), format!("{without}?sentinel_user=watcher&sentinel_password=wrong")] {
        let said = Options::at(&url).env("LEADFOLD_SPOOL_MAX_BYTES", "0").refused();
        assert!(said.contains("sentinel 127.0.0.1:") && !said.contains("=wrong"), "{said}");
        assert!(said.contains("sentinel_password in --redis-url"), "{said}");
    }
}

/// A network that parts the sentinels from the old primary, and not leadfold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_the_sentinels_lost_sight_of_is_not_written_to() {
    let sentinels = Sentinels::start(DOWN_AFTER);
    let flow = Flow::begin(&sentinels.url(), 16).await;
    let other = Flow::begin(&sentinels.url(), 16).await;
    sentinels.proxies[0].cut(Cut::Sentinels);
    sentinels.until_primary(1);
    // It says of itself that it is a primary, and answers.
    assert!(text(&sentinels.nodes[0], &["INFO", "replication"]).contains("role:master"));
    tokio::time::sleep(Duration::from_millis(1000)).await;
    let before = scripts(&sentinels.nodes[0]);
    for flow in [&flow, &other] {
        flow.ledger.until("applied", 200).await;
    }
    assert_eq!(scripts(&sentinels.nodes[0]), before, "a second after the switch nobody writes to the old one");
    sentinels.proxies[0].cut(Cut::Nothing);
    sentinels.until_replica(0);
    flow.end().await;
    other.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_of_sentinels_events_are_queued_and_reads_go_on() {
    let sentinels = Sentinels::start(NEVER_DOWN);
    let server = Server::start(&Options::at(&sentinels.url()));
    let lead_id = fresh_id();
    server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    for sentinel in [0, 1] {
        sentinels.signal(sentinel, "STOP");
    }
    let began = Instant::now();
    let mut number = 0;
    eventually("events are queued", async || {
        number += 1;
        let answer = server.post(message(&lead_id, &format!("b{number}"), SAMPLE_TIME).to_string()).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        (answer.outcome() == "queued").then_some(())
    })
    .await;
    assert!(began.elapsed() < Duration::from_millis(2500), "acknowledged for {:?} without a majority", began.elapsed());
    assert!(server.lead(&lead_id).await.message_count >= 1, "reads go on");
    let report = eventually("health says why", async || {
        let (_, text) = server.admin("/readyz").await;
        let report: Value = serde_json::from_str(&text).expect("JSON");
        (report["parts"]["writes"]["ok"] == false).then_some(report)
    })
    .await;
    let reason = report["parts"]["writes"]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("1 of 3 sentinels confirm") && reason.contains("sentinel 127.0.0.1:"), "{report}");
    assert_eq!(report["parts"]["store"]["ok"], true, "{report}");
    for sentinel in [0, 1] {
        sentinels.signal(sentinel, "CONT");
    }
    server.eventually_metric("leadfold_spool_events", 0.0).await;
    eventually("all is applied", async || {
        let lead = server.client().get_lead(GetLeadRequest { lead_id: lead_id.clone() }).await.ok()?.into_inner().lead?;
        (lead.message_count == 1 + number).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_that_have_all_moved_are_found() {
    let mut sentinels = Sentinels::start(NEVER_DOWN);
    let flow = Flow::begin(&sentinels.url(), 16).await;
    for number in 0..3 {
        sentinels.move_sentinel(number);
        flow.ledger.until("applied", 20).await;
    }
    sentinels.fail_over_to(1);
    flow.ledger.until("applied", 100).await;
    flow.end().await;
}

/// The replica was behind when it was promoted: what it lacks is applied again by whoever has acknowledged it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_failover_loses_is_applied_again() {
    let mut sentinels = Sentinels::start(DOWN_AFTER);
    let server = Server::start(&Options::at(&sentinels.url()));
    let [kept, deleted] = [fresh_id(), fresh_id()];
    server.apply(&message(&kept, "kept", SAMPLE_TIME)).await;
    server.apply(&message(&deleted, "gone", SAMPLE_TIME)).await;
    let mut patch = lead_updated(&kept);
    patch["data"]["email"] = "first@example.com".into();
    server.apply(&patch).await;
    until_in_step(&sentinels.nodes[0], &sentinels.nodes[1]);
    cut_off(&sentinels.nodes[1], &sentinels.nodes[0]);
    for number in 0..50 {
        server.apply(&message(&kept, &format!("lost{number}"), SAMPLE_TIME)).await;
    }
    for email in ["second@example.com", "third@example.com"] {
        patch["data"]["email"] = email.into();
        server.apply(&patch).await;
    }
    let request = leadfold::api::DeleteLeadRequest { lead_id: deleted.clone() };
    server.client().delete_lead(request).await.expect("deleted");
    sentinels.nodes[0].kill();
    sentinels.until_primary(1);
    eventually("what was lost is there", async || {
        let lead = server.client().get_lead(GetLeadRequest { lead_id: kept.clone() }).await.ok()?.into_inner().lead?;
        (lead.message_count == 51 && lead.profile.is_some_and(|profile| profile.email == "third@example.com")).then_some(())
    })
    .await;
    eventually("what was deleted is gone", async || {
        let read = server.client().get_lead(GetLeadRequest { lead_id: deleted.clone() }).await;
        read.is_err_and(|status| status.code() == tonic::Code::NotFound).then_some(())
    })
    .await;
}

/// One instance has acknowledged what a lead was made of, another one that it was deleted; the new primary has heard of neither.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lead_that_was_deleted_stays_so_whoever_repeats_first() {
    let mut sentinels = Sentinels::start(DOWN_AFTER);
    let (maker, deleter) = (Server::start(&Options::at(&sentinels.url())), Server::start(&Options::at(&sentinels.url())));
    until_in_step(&sentinels.nodes[0], &sentinels.nodes[1]);
    cut_off(&sentinels.nodes[1], &sentinels.nodes[0]);
    let leads: Vec<String> = std::iter::repeat_with(fresh_id).take(20).collect();
    for lead_id in &leads {
        maker.apply(&message(lead_id, "a1", SAMPLE_TIME)).await;
        let request = leadfold::api::DeleteLeadRequest { lead_id: lead_id.clone() };
        deleter.client().delete_lead(request).await.expect("deleted");
    }
    sentinels.nodes[0].kill();
    sentinels.until_primary(1);
    for server in [&maker, &deleter] {
        eventually("it has repeated what it had acknowledged", async || {
            let (_, text) = server.admin("/metrics").await;
            let count = |lost: &str| {
                let name = format!("leadfold_replayed_changes_total{{lost=\"{lost}\"}} ");
                text.lines().find_map(|line| line.strip_prefix(&*name)?.parse::<f64>().ok()).unwrap_or(0.0)
            };
            (count("yes") + count("no") >= 20.0).then_some(())
        })
        .await;
    }
    for lead_id in &leads {
        let read = maker.client().get_lead(GetLeadRequest { lead_id: lead_id.clone() }).await;
        assert_eq!(read.expect_err("it was deleted").code(), tonic::Code::NotFound);
        let late = maker.post(message(lead_id, "a2", SAMPLE_TIME).to_string()).await;
        assert_eq!((late.status, late.outcome()), (200, "ignored"), "{late:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_any_sentinel_reads_stay_in_rotation() {
    let sentinels = Sentinels::start(NEVER_DOWN);
    let server = Server::start(&Options::at(&sentinels.url()));
    let lead_id = fresh_id();
    server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    for sentinel in 0..3 {
        sentinels.signal(sentinel, "STOP");
    }
    let report = eventually("health says why there are no heartbeats", async || {
        let (status, text) = server.admin("/readyz?for=reads").await;
        assert_eq!(status, 200, "{text}");
        let report: Value = serde_json::from_str(&text).expect("JSON");
        report["parts"]["feed"]["degraded"].is_string().then_some(report)
    })
    .await;
    assert!(report["parts"]["feed"]["degraded"].as_str().is_some_and(|said| said.contains("sentinels")), "{report}");
    assert_eq!(server.lead(&lead_id).await.message_count, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_is_told_that_a_failover_has_lost_writes() {
    let mut sentinels = Sentinels::start(DOWN_AFTER);
    let server = Server::start(&Options::at(&sentinels.url()));
    let lead_id = fresh_id();
    let kept = server.apply(&message(&lead_id, "kept", SAMPLE_TIME)).await;
    let mut watch = LeadWatch::open(&server, &lead_id, 0).await;
    assert_eq!(version(&watch.next().await), kept);
    until_in_step(&sentinels.nodes[0], &sentinels.nodes[1]);
    // The replica is cut off, falls behind, and is made the primary.
    cut_off(&sentinels.nodes[1], &sentinels.nodes[0]);
    // An instance that does not live to apply again what it has acknowledged.
    let short_lived = Server::start(&Options::at(&sentinels.url()));
    let lost = short_lived.apply(&message(&lead_id, "lost", SAMPLE_TIME)).await;
    drop(short_lived);
    assert_eq!(version(&Event::Update(watch.next_update().await)), lost);
    sentinels.nodes[0].kill();
    sentinels.until_primary(1);
    loop {
        match watch.next().await {
            Event::Heartbeat(heartbeat) => assert_eq!(heartbeat.version, lost, "no heartbeat speaks of what was not told"),
            Event::Snapshot(snapshot) => {
                assert_eq!(snapshot.reason(), SnapshotReason::StoreLostWrites);
                assert_eq!(snapshot.lead.expect("the lead").version, kept);
                break;
            }
            Event::Update(update) => panic!("versions run backwards only in a snapshot: {update:?}"),
        }
    }
    // The sender tries again, and everyone is together again.
    let again = server.apply(&message(&lead_id, "lost", SAMPLE_TIME)).await;
    assert!(again > lost, "versions do not run backwards: {again}, {lost}");
    assert_eq!(version(&Event::Update(watch.next_update().await)), again);
}
