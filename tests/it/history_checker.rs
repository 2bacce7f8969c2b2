//! Watches under faults: writers, watchers that come, go, stall and resume, three instances on one Redis, and
//! everything that breaks meanwhile. Afterwards what every stream said is held against what was written.
//!
//! `LEADFOLD_HISTORY_SECONDS` says how long things break, `LEADFOLD_HISTORY_SEED` repeats the choices of a run.

mod cluster;
mod known;
mod watchers;
mod writers;

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::cluster::Cluster;
use self::known::Truth;
use self::watchers::{Observed, Settled, Watcher};
use self::writers::{Acknowledged, LEADS, Writer};
use crate::support::{eventually, fresh_id};

const WRITERS: usize = 4;
const LEAD_WATCHERS: usize = 24;
const LEADS_WATCHERS: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_stream_misses_repeats_or_reorders_anything_whatever_breaks() {
    let number = |name| std::env::var(name).ok().map(|value| value.parse::<u64>().expect(name));
    let seconds = number("LEADFOLD_HISTORY_SECONDS").unwrap_or(8);
    let seed = number("LEADFOLD_HISTORY_SEED").unwrap_or_else(rand::random);
    println!("LEADFOLD_HISTORY_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut fork = move || StdRng::seed_from_u64(rng.random());

    let mut cluster = Cluster::start(3);
    let workspaces = [fresh_id(), fresh_id()];
    let leads: Arc<[String]> = (0..LEADS).map(|_| fresh_id()).collect();
    let acknowledged = Acknowledged::default();
    let written_out = CancellationToken::new();
    let writers: Vec<_> = (0..WRITERS)
        .map(|number| Writer::new(number, cluster.instances(), &leads, &workspaces, acknowledged.clone(), fork()))
        .map(|writer| tokio::spawn(writer.run(written_out.clone())))
        .collect();
    let (settle, settled) = watch::channel(None);
    let watcher = |rng| Watcher::new(cluster.instances(), rng, settled.clone(), acknowledged.clone());
    let mut watchers = Vec::new();
    let [restless, steady]: [Arc<[String]>; 2] = [leads[..LEADS / 2].into(), leads[LEADS / 2..].into()];
    for number in 0..LEAD_WATCHERS {
        watchers.push(tokio::spawn(watcher(fork()).follow_lead(restless[number % restless.len()].clone())));
    }
    for number in 0..LEADS_WATCHERS {
        let named = (number % 2 == 0).then(|| restless.iter().skip(number / 2).cloned().collect());
        watchers.push(tokio::spawn(watcher(fork()).follow_leads(workspaces[0].clone(), Arc::clone(&restless), named)));
    }
    for lead_id in &*steady {
        watchers.push(tokio::spawn(watcher(fork()).steady().follow_lead(lead_id.clone())));
    }
    for named in [None, None, Some(steady.to_vec())] {
        watchers.push(tokio::spawn(watcher(fork()).steady().follow_leads(workspaces[1].clone(), Arc::clone(&steady), named)));
    }

    let faults = cluster.break_things(&mut fork(), Duration::from_secs(seconds)).await;
    written_out.cancel();
    let mut written = writers::Written::default();
    for writer in writers {
        written += writer.await.expect("the writer");
    }
    let at = Instant::now();
    let truth = eventually("what was taken is there", async || {
        let truth = Truth::read(cluster.client(0), &leads).await?;
        truth.has_all(&written).then_some(truth)
    })
    .await;
    let truth = Arc::new(truth);
    settle.send_replace(Some(Settled { at, truth: Arc::clone(&truth) }));
    let mut observed = Observed::default();
    for watcher in watchers {
        observed += watcher.await.expect("the watcher");
    }
    for known in &observed.known {
        truth.check(known);
    }
    println!("{seconds} s, {written}; {observed}; {faults}");
    assert!(observed.resumed > 0 && observed.stalls > 0 && observed.proofs > 0, "the run was too short to prove anything");
}
