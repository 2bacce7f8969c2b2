//! What watches cost, on one machine with their clients: `cargo bench --bench fanout`.
//!
//! Streams are opened over a few connections and left idle; then come rounds of one update for each watched lead.
//! A delivery takes from before the event is posted until the stream's client has the whole message.

mod common;
#[allow(unused)] // each benchmark uses its part
#[path = "../tests/it/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Sample, grpc, http, lead_id, percentile, resident, verdict};
use leadfold::api::WatchLeadRequest;
use support::redis::RedisServer;
use support::server::{Options, Server, WEBHOOK};
use tokio::sync::Notify;
use tokio::task::JoinSet;

const WATCH_LEAD: &str = "/leadfold.v1.LeadService/WatchLead";
const STREAMS_PER_CONNECTION: usize = 500;
const ROUNDS: usize = 15;
/// Streams are idle when nothing of their opening is left: what that took is given back by then, or never.
const IDLE: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    for (streams, leads) in [(1, 1), (1_000, 1), (10_000, 1), (10_000, 10_000)] {
        measure(streams, leads).await;
    }
}

/// What all streams of a run share.
struct Run {
    start: Instant,
    /// When each stream had its last message, in ns since the start.
    had: Vec<AtomicU64>,
    /// Messages that have not come yet.
    missing: AtomicUsize,
    done: Notify,
}

impl Run {
    fn new(streams: usize) -> Arc<Self> {
        let had = (0..streams).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self { start: Instant::now(), had, missing: AtomicUsize::new(streams), done: Notify::new() })
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// Counts a message that came.
    fn has(&self, stream: usize) {
        self.had[stream].store(self.now(), Ordering::Relaxed);
        if self.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.done.notify_one();
        }
    }

    async fn all(&self, what: &str) {
        let missing = || self.missing.load(Ordering::Acquire);
        assert!(tokio::time::timeout(PATIENCE, self.done.notified()).await.is_ok(), "{what}: {} messages never came", missing());
        self.missing.store(self.had.len(), Ordering::Release);
    }
}

async fn measure(streams: usize, leads: usize) {
    let redis = RedisServer::start();
    let server = Server::start(&Options::on(&redis));
    let mut posters = Vec::new();
    for _ in 0..leads.min(64) {
        posters.push((http::Client::connect(&server.http).await, Sample::to(WEBHOOK)));
    }
    let run = Run::new(streams);
    // What is made once, for the first stream ever, is no part of a stream.
    let first = WatchLeadRequest { lead_id: lead_id(0), ..WatchLeadRequest::default() };
    grpc::next(&mut grpc::Client::connect(&server.grpc).await.call(WATCH_LEAD, &first).await).await;
    let before = resident(server.pid());

    // Ended before the server is.
    let mut watchers = JoinSet::new();
    let opening = Instant::now();
    for first in (0..streams).step_by(STREAMS_PER_CONNECTION) {
        let client = grpc::Client::connect(&server.grpc).await;
        for stream in first..streams.min(first + STREAMS_PER_CONNECTION) {
            let (client, run) = (client.clone(), Arc::clone(&run));
            watchers.spawn(async move {
                // More often, they would come between the rounds.
                let heartbeat_interval = Some(prost_types::Duration { seconds: 300, nanos: 0 });
                let request =
                    WatchLeadRequest { lead_id: lead_id((stream % leads) as u64), heartbeat_interval, ..WatchLeadRequest::default() };
                let mut body = client.call(WATCH_LEAD, &request).await;
                loop {
                    grpc::next(&mut body).await;
                    run.has(stream);
                }
            });
        }
    }
    run.all("opening").await;
    let opening = opening.elapsed();
    let per_stream = || (resident(server.pid()).saturating_sub(before)) as f64 / streams as f64;
    let opened = per_stream();
    tokio::time::sleep(IDLE).await;
    let idle = per_stream();

    let (mut deliveries, mut lasts, mut took) = (Vec::new(), Vec::new(), Duration::ZERO);
    for round in 0..ROUNDS {
        let began = Instant::now();
        let sent = post_to_all(&mut posters, &run, leads, round).await;
        run.all("a round").await;
        took += began.elapsed();
        let mut delays: Vec<_> = run
            .had
            .iter()
            .enumerate()
            .map(|(stream, had)| had.load(Ordering::Relaxed) - sent[stream % leads])
            .map(Duration::from_nanos)
            .collect();
        delays.sort();
        lasts.extend(delays.last().copied());
        deliveries.extend(delays);
    }
    deliveries.sort();
    lasts.sort();
    let last = percentile(&lasts, 0.5);
    println!("{streams} streams on {leads} leads, {ROUNDS} rounds");
    print!("  opened in {:.2} s", opening.as_secs_f64());
    println!("{}", if streams == 10_000 { format!(" (2 wanted: {})", verdict(opening <= Duration::from_secs(2))) } else { String::new() });
    if streams >= 10_000 {
        print!(
            "  server's memory per stream {:.1} KB when all are open at once, {:.1} KB when they are idle",
            opened / 1000.0,
            idle / 1000.0
        );
        println!("{}", if leads == 1 { format!(" (8 wanted: {})", verdict(idle <= 8000.0)) } else { String::new() });
    }
    let millis = |time: Duration| time.as_secs_f64() * 1000.0;
    let (half, most) = (millis(percentile(&deliveries, 0.5)), millis(percentile(&deliveries, 0.99)));
    print!("  delivered p50 {half:.1} ms, p99 {most:.1} ms, last (median of the rounds) {:.1} ms", millis(last));
    println!(
        "{}",
        if (streams, leads) == (10_000, 1) { format!(" (40 wanted: {})", verdict(millis(last) <= 40.0)) } else { String::new() }
    );
    println!("  {:.0} deliveries/s", deliveries.len() as f64 / took.as_secs_f64());
    watchers.shutdown().await;
}

/// Posts an event to each lead; returns when each was sent, in ns since the run's start.
async fn post_to_all(posters: &mut Vec<(http::Client, Sample)>, run: &Arc<Run>, leads: usize, round: usize) -> Vec<u64> {
    let count = posters.len();
    let tasks: Vec<_> = std::mem::take(posters)
        .into_iter()
        .enumerate()
        .map(|(first, (mut client, mut sample))| {
            let run = Arc::clone(run);
            tokio::spawn(async move {
                let mut sent = Vec::new();
                for lead in (first..leads).step_by(count) {
                    sent.push((lead, run.now()));
                    client.send(sample.with(lead as u64, (lead << 8 | round) as u64)).await;
                }
                (client, sample, sent)
            })
        })
        .collect();
    let mut times = vec![0; leads];
    for task in tasks {
        let (client, sample, sent) = task.await.expect("a poster");
        posters.push((client, sample));
        for (lead, time) in sent {
            times[lead] = time;
        }
    }
    times
}
