//! A server that sentinels watch over.

use std::time::Duration;

use leadfold::api::SnapshotReason;
use leadfold::api::watch_lead_response::Event;

use super::Flow;
use crate::support::events::{SAMPLE_TIME, message};
use crate::support::fresh_id;
use crate::support::redis_cluster::{tell, text, until};
use crate::support::sentinels::Sentinels;
use crate::support::server::{Options, Server};
use crate::support::watching::{LeadWatch, version};

/// How long a server may be silent before it is held for dead.
const PATIENCE: Duration = Duration::from_millis(700);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_sentinels_replace_the_primary() {
    let mut sentinels = Sentinels::start(PATIENCE);
    let flow = Flow::begin(&sentinels.url(), 16).await;
    sentinels.nodes[0].kill();
    sentinels.until_primary(1);
    flow.ledger.until("applied", 100).await;
    // The old one comes back, and is a replica from now on: nobody may write to it.
    sentinels.nodes[0].restart();
    flow.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_is_told_that_a_failover_has_lost_writes() {
    let mut sentinels = Sentinels::start(PATIENCE);
    let server = Server::start(&Options::at(&sentinels.url()));
    let lead_id = fresh_id();
    let kept = server.apply(&message(&lead_id, "kept", SAMPLE_TIME)).await;
    let mut watch = LeadWatch::open(&server, &lead_id, 0).await;
    assert_eq!(version(&watch.next().await), kept);
    let offset = |node: usize, field: &str| {
        let info = text(&sentinels.nodes[node], &["INFO", "replication"]);
        info.lines().find_map(|line| line.strip_prefix(field)?.trim().parse::<u64>().ok())
    };
    until("the replica has what is kept", || offset(1, "slave_repl_offset:") >= offset(0, "master_repl_offset:"));
    // The replica is cut off, falls behind, and is made the primary.
    tell(&sentinels.nodes[1], &["CONFIG", "SET", "masteruser", "nobody", "masterauth", "wrong"]);
    tell(&sentinels.nodes[0], &["CLIENT", "KILL", "TYPE", "replica"]);
    let lost = server.apply(&message(&lead_id, "lost", SAMPLE_TIME)).await;
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
