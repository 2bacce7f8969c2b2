//! A cluster of three.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use leadfold::store::redis::slot;

use super::Flow;
use crate::support::events::{SAMPLE_TIME, message};
use crate::support::proxy::Proxy;
use crate::support::redis::{PASSWORD, USER};
use crate::support::redis_cluster::{PRIMARIES, RedisCluster, tell, text, until};
use crate::support::server::{Options, Server};
use crate::support::watching::{LeadWatch, version};
use crate::support::{eventually, fresh_id};

/// How long a node may be silent before its replica takes over.
const PATIENCE: Duration = Duration::from_millis(1500);
/// A node that is silent for less has to be waited for.
const LONG: Duration = Duration::from_secs(60);

/// The slot of a lead, found by its key.
fn slot_of(cluster: &RedisCluster, lead_id: &str) -> u16 {
    (0..64_u16)
        .map(|partition| (partition, slot(&format!("{{{partition}}}"))))
        .find(|(partition, slot)| {
            let node = &cluster.nodes[cluster.owner(*slot)];
            redis::cmd("EXISTS").arg(format!("leadfold:{{{partition}}}:lead:{lead_id}")).query(&mut node.connection()).unwrap_or(false)
        })
        .map(|(_, slot)| slot)
        .expect("the lead is somewhere")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_keeps_what_every_store_promises() {
    let cluster = RedisCluster::start(LONG);
    crate::conformance::on_a_cluster(&cluster.url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_replicas_take_over() {
    let mut cluster = RedisCluster::start(PATIENCE);
    let flow = Flow::begin(&cluster.url(), 48).await;
    // Asked to, in step with its primary.
    cluster.fail_over_to(PRIMARIES, &["CLUSTER", "FAILOVER"]);
    flow.ledger.until("applied", 200).await;
    // Because its primary was killed.
    cluster.nodes[1].kill();
    until("the replica of the dead one has taken over", || cluster.is_primary(PRIMARIES + 1));
    flow.ledger.until("applied", 200).await;
    // Which comes back as a replica.
    cluster.nodes[1].restart();
    flow.end().await;
}

/// The replicas are behind when they take over, and their primaries live on: a partition of the network, seen from leadfold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_takeover_loses_is_applied_again() {
    let cluster = RedisCluster::start(LONG);
    let flow = Flow::begin(&cluster.url(), 48).await;
    for node in 0..PRIMARIES {
        let (primary, replica) = (&cluster.nodes[node], &cluster.nodes[PRIMARIES + node]);
        tell(replica, &["CONFIG", "SET", "masteruser", "nobody", "masterauth", "wrong"]);
        tell(primary, &["CLIENT", "KILL", "TYPE", "replica"]);
        until("the replica is cut off", || text(replica, &["INFO", "replication"]).contains("master_link_status:down"));
    }
    flow.ledger.until("applied", 300).await;
    for node in 0..PRIMARIES {
        cluster.fail_over_to(PRIMARIES + node, &["CLUSTER", "FAILOVER", "TAKEOVER"]);
    }
    flow.ledger.until("applied", 100).await;
    let server = &flow.server;
    let text = eventually("what was lost is applied again", async || {
        let (_, text) = server.admin("/metrics").await;
        let lost = "leadfold_replayed_changes_total{lost=\"yes\"} ";
        text.lines().find_map(|line| line.strip_prefix(lost)?.parse::<f64>().ok()).filter(|count| *count >= 100.0)
    })
    .await;
    println!("{text} changes had been lost");
    flow.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_that_cannot_be_used_keeps_nobody_from_the_others() {
    let cluster = RedisCluster::start(LONG);
    let server = Server::start(&Options::at(&cluster.url()));
    let leads = leads_by_node(&server, &cluster, 1).await;
    drop(server);
    tell(&cluster.nodes[0], &["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    let server = Server::start(&Options::at(&cluster.url()));
    server.apply(&message(&leads[1][0], "a1", SAMPLE_TIME)).await;
    let answer = server.post(message(&leads[0][0], "a1", SAMPLE_TIME).to_string()).await;
    assert_eq!((answer.status, answer.outcome()), (200, "queued"), "nothing is written to a Redis that forgets");
    let (status, report) = ready(&server, "").await;
    assert!(status == 200 && report["parts"]["writes"]["degraded"].as_str().is_some_and(|said| said.contains("noeviction")), "{report}");
    for node in 1..PRIMARIES {
        tell(&cluster.nodes[node], &["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    }
    drop(server);
    let said = Options::at(&cluster.url()).refused();
    assert!(said.contains("noeviction"), "all of them: {said}");
}

/// A replica takes over that cannot be used, and its primary takes the slots back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_come_back_from_a_node_that_cannot_be_used_are_found() {
    let cluster = RedisCluster::start(LONG);
    tell(&cluster.nodes[PRIMARIES], &["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    let flow = Flow::begin(&cluster.url(), 48).await;
    cluster.fail_over_to(PRIMARIES, &["CLUSTER", "FAILOVER", "TAKEOVER"]);
    flow.ledger.until("queued", 50).await;
    cluster.fail_over_to(0, &["CLUSTER", "FAILOVER", "TAKEOVER"]);
    // No event of that shard says that its slots have moved: none is answered.
    flow.server.eventually_metric("leadfold_spool_events", 0.0).await;
    flow.end().await;
}

/// There and back again: the node that had acknowledged has the slots again, and without what it had acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_lost_on_the_way_back_to_the_same_node_is_applied_again() {
    let cluster = RedisCluster::start(LONG);
    let server = Server::start(&Options::at(&cluster.url()));
    let lead_id = loop {
        let lead_id = fresh_id();
        server.apply(&message(&lead_id, "kept", SAMPLE_TIME)).await;
        if cluster.owner(slot_of(&cluster, &lead_id)) == 0 {
            break lead_id;
        }
    };
    let (primary, replica) = (&cluster.nodes[0], &cluster.nodes[PRIMARIES]);
    let login = ["CONFIG", "SET", "masteruser", "nobody", "masterauth", "wrong"];
    tell(replica, &login);
    tell(primary, &["CLIENT", "KILL", "TYPE", "replica"]);
    until("the replica is cut off", || text(replica, &["INFO", "replication"]).contains("master_link_status:down"));
    for number in 0..50 {
        server.apply(&message(&lead_id, &format!("lost{number}"), SAMPLE_TIME)).await;
    }
    // It sees nothing of what happens meanwhile.
    server.signal("STOP");
    cluster.fail_over_to(PRIMARIES, &["CLUSTER", "FAILOVER", "TAKEOVER"]);
    until("the old primary follows the new one", || text(primary, &["INFO", "replication"]).contains("master_link_status:up"));
    cluster.fail_over_to(0, &["CLUSTER", "FAILOVER", "TAKEOVER"]);
    server.signal("CONT");
    eventually("what was lost is there again", async || {
        let request = leadfold::api::GetLeadRequest { lead_id: lead_id.clone() };
        let lead = server.client().get_lead(request).await.ok()?.into_inner().lead?;
        (lead.message_count == 51).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_move_under_load_and_nothing_is_lost_or_left_behind() {
    let cluster = RedisCluster::start(LONG);
    let flow = Flow::begin(&cluster.url(), 48).await;
    let lead_id = fresh_id();
    let mut last = flow.server.apply(&message(&lead_id, "a0", SAMPLE_TIME)).await;
    let own = slot_of(&cluster, &lead_id);
    let mut watch = LeadWatch::open(&flow.server, &lead_id, 0).await;
    assert_eq!(version(&watch.next().await), last);
    // Every partition of the first node moves to the second, and the watched lead to yet another.
    let first: Vec<u16> =
        (0..64).map(|partition: u16| slot(&format!("{{{partition}}}"))).filter(|slot| cluster.owner(*slot) == 0).collect();
    for (number, slot) in first.iter().filter(|slot| **slot != own).enumerate() {
        cluster.move_slot(*slot, 1);
        if number % 8 == 0 {
            flow.ledger.until("applied", 20).await;
        }
    }
    cluster.move_slot(own, (cluster.owner(own) + 1) % PRIMARIES);
    for number in 1..=5 {
        let event = message(&lead_id, &format!("a{number}"), SAMPLE_TIME).to_string();
        last = eventually("the lead takes events", async || {
            let answer = flow.server.post(&*event).await;
            (answer.status == 200 && answer.outcome() != "queued").then(|| answer.version())
        })
        .await;
    }
    let began = Instant::now();
    while version(&watch.next().await) < last {}
    assert!(began.elapsed() < Duration::from_secs(5), "the watch took {:?}", began.elapsed());
    flow.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_hangs_slows_down_no_other() {
    let cluster = RedisCluster::start(LONG);
    let flow = Flow::begin(&cluster.url(), 48).await;
    // Leads by the node that has them.
    let mut elsewhere = Vec::new();
    while elsewhere.len() < 8 {
        let lead_id = fresh_id();
        flow.server.apply(&message(&lead_id, "a0", SAMPLE_TIME)).await;
        if cluster.owner(slot_of(&cluster, &lead_id)) != 0 {
            elsewhere.push(lead_id);
        }
    }
    cluster.nodes[0].signal("STOP");
    flow.ledger.until("queued", 50).await;
    let mut slowest = Duration::ZERO;
    for round in 1..=20 {
        for lead_id in &elsewhere {
            let began = Instant::now();
            flow.server.apply(&message(lead_id, &format!("a{round}"), SAMPLE_TIME)).await;
            flow.server.lead(lead_id).await;
            slowest = slowest.max(began.elapsed());
        }
    }
    println!("an event and a read beside a hung node took {slowest:?} at most");
    assert!(slowest < Duration::from_millis(900), "others wait for a hung node: {slowest:?}");
    cluster.nodes[0].signal("CONT");
    flow.end().await;
}

/// Leads by the number of the primary that has them.
async fn leads_by_node(server: &Server, cluster: &RedisCluster, of_each: usize) -> Vec<Vec<String>> {
    let mut leads = vec![Vec::new(); PRIMARIES];
    while leads.iter().any(|leads| leads.len() < of_each) {
        let lead_id = fresh_id();
        server.apply(&message(&lead_id, "a0", SAMPLE_TIME)).await;
        let of_node = &mut leads[cluster.owner(slot_of(cluster, &lead_id))];
        if of_node.len() < of_each {
            of_node.push(lead_id);
        }
    }
    leads
}

async fn ready(server: &Server, query: &str) -> (u16, serde_json::Value) {
    let (status, text) = server.admin(&format!("/readyz{query}")).await;
    (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_dead_shard_takes_no_instance_out_of_rotation() {
    let cluster = RedisCluster::start(LONG);
    let running = Server::start(&Options::at(&cluster.url()));
    let leads = leads_by_node(&running, &cluster, 2).await;
    cluster.nodes[0].signal("STOP");
    // One that starts now is as good as one that runs.
    let began = Instant::now();
    let started = Server::start(&Options::at(&cluster.url()));
    assert!(began.elapsed() < Duration::from_secs(5), "the start took {:?}", began.elapsed());
    // And one that has no spool.
    let without_spool = Server::start(&Options::at(&cluster.url()).env("LEADFOLD_SPOOL_MAX_BYTES", "0"));
    for server in [&running, &started, &without_spool] {
        // Long enough for the feed to be in doubt.
        let report = eventually("the dead shard is reported", async || {
            let (status, report) = ready(server, "").await;
            assert_eq!(status, 200, "{report}");
            let parts = &report["parts"];
            let degraded = ["store", "writes", "feed"].iter().all(|part| parts[part]["degraded"].is_string());
            degraded.then_some(report)
        })
        .await;
        assert!(
            report["parts"]["store"]["failing"][0].as_str().is_some_and(|name| name.ends_with(&cluster.nodes[0].port().to_string())),
            "{report}"
        );
        for audience in ["?for=reads", "?for=webhooks"] {
            assert_eq!(ready(server, audience).await.0, 200);
        }
        for lead_id in leads[1].iter().chain(&leads[2]) {
            assert_eq!(server.lead(lead_id).await.lead_id, *lead_id);
            server.apply(&message(lead_id, &fresh_id(), SAMPLE_TIME)).await;
        }
    }
    // Who watches a lead elsewhere is told that all is well.
    let mut elsewhere = LeadWatch::open_with(&started, &leads[1][0], 0, Some(Duration::from_secs(1))).await;
    elsewhere.next().await;
    for _ in 0..3 {
        assert!(matches!(elsewhere.next().await, leadfold::api::watch_lead_response::Event::Heartbeat(_)));
    }
    let answer = running.post(message(&leads[0][0], "b", SAMPLE_TIME).to_string()).await;
    assert_eq!((answer.status, answer.outcome()), (200, "queued"));
    let answer = without_spool.post(message(&leads[0][0], "c", SAMPLE_TIME).to_string()).await;
    assert_eq!(answer.status, 503, "there is no spool: {answer:?}");
    cluster.nodes[0].signal("CONT");
    for server in [&running, &started, &without_spool] {
        eventually("all is well again", async || {
            let (_, report) = ready(server, "").await;
            ["store", "writes", "feed"].iter().all(|part| report["parts"][part].get("degraded").is_none()).then_some(())
        })
        .await;
    }
    running.eventually_metric("leadfold_spool_events", 0.0).await;
}

/// Posts from eight senders at once, each to leads of all nodes in turn; says how many events of each node were answered.
async fn answered(server: &Server, leads: &[Vec<String>], lasting: Duration) -> (Vec<u64>, Duration) {
    let counts: Vec<AtomicU64> = leads.iter().map(|_| AtomicU64::new(0)).collect();
    let slowest = AtomicU64::new(0);
    let ends = Instant::now() + lasting;
    let senders = (0..8).map(async |sender: usize| {
        let mut turn = sender;
        while Instant::now() < ends {
            let node = turn % leads.len();
            let lead_id = &leads[node][(turn / leads.len()) % leads[node].len()];
            let began = Instant::now();
            let answer = server.post(message(lead_id, &fresh_id(), SAMPLE_TIME).to_string()).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            slowest.fetch_max(u64::try_from(began.elapsed().as_millis()).expect("ms"), Ordering::Relaxed);
            counts[node].fetch_add(1, Ordering::Relaxed);
            turn += 1;
        }
    });
    futures::future::join_all(senders).await;
    (counts.iter().map(|count| count.load(Ordering::Relaxed)).collect(), Duration::from_millis(slowest.load(Ordering::Relaxed)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_hangs_or_refuses_holds_up_no_sender() {
    let mut cluster = RedisCluster::start(LONG);
    let server = Server::start(&Options::at(&cluster.url()));
    let leads = leads_by_node(&server, &cluster, 8).await;
    let lasting = Duration::from_secs(3);
    let (well, _) = answered(&server, &leads, lasting).await;
    cluster.nodes[0].signal("STOP");
    // The breaker opens.
    answered(&server, &leads, Duration::from_secs(2)).await;
    let (hangs, slowest) = answered(&server, &leads, lasting).await;
    cluster.nodes[0].signal("CONT");
    cluster.nodes[0].kill();
    answered(&server, &leads, Duration::from_secs(2)).await;
    let (refuses, slowest_too) = answered(&server, &leads, lasting).await;
    println!(
        "answered per node: well {well:?}, one hangs {hangs:?} (slowest {slowest:?}), it refuses {refuses:?} (slowest {slowest_too:?})"
    );
    // A ratio within one run; the machine may be busy, which no sender that waits for a second at each turn could hide.
    for others in [&hangs, &refuses] {
        assert!(others[1] + others[2] > (well[1] + well[2]) / 2, "{well:?} {others:?}");
    }
    assert!(slowest.max(slowest_too) < Duration::from_millis(900), "{slowest:?} {slowest_too:?}");
}

/// As where every pod has another address after a restart: what is configured is a name that still leads to one of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_come_back_with_other_addresses_all_at_once_are_found() {
    let mut cluster = RedisCluster::start(LONG);
    let seed = Proxy::to(cluster.nodes[1].port());
    let url = format!("redis-cluster://{USER}:{PASSWORD}@127.0.0.1:{}", seed.port());
    let flow = Flow::begin(&url, 48).await;
    let mut watch = LeadWatch::open(&flow.server, &flow.ledger.leads()[0], 0).await;
    watch.next().await;
    for node in &mut cluster.nodes {
        node.kill();
    }
    flow.ledger.until("queued", 50).await;
    cluster.move_all();
    seed.redirect(cluster.nodes[2].port());
    flow.ledger.until("applied", 100).await;
    let began = Instant::now();
    let present = eventually("a read", async || {
        let request = leadfold::api::GetLeadRequest { lead_id: flow.ledger.leads()[0].clone() };
        flow.server.client().get_lead(request).await.ok()?.into_inner().lead
    })
    .await;
    while version(&watch.next().await) < present.version {}
    assert!(began.elapsed() < Duration::from_secs(5), "the watch took {:?}", began.elapsed());
    flow.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_is_gone_costs_no_cpu_and_is_found_again() {
    let mut cluster = RedisCluster::start(LONG);
    let server = Server::start(&Options::at(&cluster.url()));
    let lead_id = fresh_id();
    server.apply(&message(&lead_id, "a0", SAMPLE_TIME)).await;
    for node in &mut cluster.nodes {
        node.kill();
    }
    let answer = server.post(message(&lead_id, "a1", SAMPLE_TIME).to_string()).await;
    assert_eq!((answer.status, answer.outcome()), (200, "queued"));
    let before = server.cpu();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let used = server.cpu() - before;
    assert!(used < Duration::from_millis(800), "{used:?} of CPU in 2 s");
    for node in &mut cluster.nodes {
        node.restart();
    }
    eventually("both events are there", async || {
        let request = leadfold::api::GetLeadRequest { lead_id: lead_id.clone() };
        let lead = server.client().get_lead(request).await.ok()?.into_inner().lead?;
        (lead.message_count == 2).then_some(())
    })
    .await;
}
