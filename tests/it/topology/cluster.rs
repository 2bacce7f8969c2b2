//! A cluster of three.

use std::time::{Duration, Instant};

use leadfold::store::redis::slot;

use super::Flow;
use crate::support::events::{SAMPLE_TIME, message};
use crate::support::redis_cluster::{PRIMARIES, RedisCluster, until};
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
