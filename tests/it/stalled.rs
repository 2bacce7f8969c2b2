//! Readers that do not read: they cost nothing, and hold nobody back.

use std::time::{Duration, Instant};

use futures::StreamExt;
use leadfold::api::Lead;
use leadfold::api::watch_lead_response::Event;
use serde_json::json;
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};

use crate::support::events::{SAMPLE_TIME, message};
use crate::support::redis::RedisServer;
use crate::support::server::{Options, Server};
use crate::support::watching::{LeadWatch, version};
use crate::support::{PATIENCE, fresh_id};

const CONNECTIONS: usize = 5;
const STREAMS: usize = 100;
const EVENTS: usize = 1000;
/// Messages that a reader finds when it reads again: what fitted into the buffers, and the newest state.
const FOUND: usize = 50;
const GROWTH: u64 = 100_000_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn stalled_readers_cost_no_memory_and_hold_nobody_back() {
    let redis = RedisServer::start();
    let server = Server::start(&Options::on(&redis));
    let lead_id = fresh_id();
    let stalled = open(&server, &lead_id, Some(4096)).await;
    let live = open(&server, &lead_id, None).await;
    let (tell, told) = watch::channel(u64::MAX);
    let live: Vec<_> = live.into_iter().map(|watch| tokio::spawn(read_until(watch, told.clone()))).collect();

    let before = server.memory();
    let posts = futures::stream::iter(0..EVENTS).map(async |number| {
        let mut event = message(&lead_id, &format!("a{number}"), SAMPLE_TIME);
        event["actionLog"]["summary"] = json!("x".repeat(2000));
        (server.apply(&event).await, server.memory())
    });
    let answers: Vec<(u64, u64)> = posts.buffer_unordered(8).collect().await;
    let posted = Instant::now();
    let newest = answers.iter().map(|(version, _)| *version).max().expect("events");
    tell.send_replace(newest);
    let mut slowest = Duration::ZERO;
    for live in live {
        let at = live.await.expect("the reader");
        slowest = slowest.max(at.saturating_duration_since(posted));
    }
    let most = answers.iter().map(|(_, memory)| *memory).max().expect("events").max(server.memory());
    let grown = most.saturating_sub(before);
    println!("the last live stream was final {slowest:?} after the last answer; {grown} bytes more than {before}");
    assert!(slowest < Duration::from_secs(2), "it took {slowest:?}");
    assert!(grown < GROWTH, "{grown} bytes more than the {before} before");

    let lead = server.lead(&lead_id).await;
    assert_eq!(lead.version, newest);
    let found = futures::stream::iter(stalled).map(|watch| read_on(watch, &lead)).buffer_unordered(50);
    let found: Vec<usize> = found.collect().await;
    let most = found.into_iter().max().expect("streams");
    println!("stalled readers found at most {most} messages");
    assert!((2..FOUND).contains(&most), "{most} messages");
}

async fn open(server: &Server, lead_id: &str, window: Option<u32>) -> Vec<LeadWatch> {
    let mut watches = Vec::new();
    for _ in 0..CONNECTIONS {
        let endpoint = Endpoint::from_shared(format!("http://{}", server.grpc)).expect("a valid address");
        let channel: Channel = endpoint.initial_stream_window_size(window).connect().await.expect("a connection");
        for _ in 0..STREAMS {
            watches.push(LeadWatch::over(&channel, lead_id, 0).await.expect("the stream opens"));
        }
    }
    watches
}

/// Reads until the version that is told, and returns when it came.
async fn read_until(mut watch: LeadWatch, mut told: watch::Receiver<u64>) -> Instant {
    let (mut last, mut at) = (None, Instant::now());
    while last != Some(*told.borrow_and_update()) {
        tokio::select! {
            event = watch.next() => {
                let version = version(&event);
                assert!(last.is_none_or(|last| last < version), "{version} after {last:?}");
                (last, at) = (Some(version), Instant::now());
            }
            changed = told.changed() => changed.expect("it will be told"),
        }
    }
    at
}

/// Reads what is there, up to the newest state, and returns how much it was.
async fn read_on(mut watch: LeadWatch, newest: &Lead) -> usize {
    let mut last = None;
    for count in 1.. {
        let event = tokio::time::timeout(PATIENCE, watch.next()).await.expect("in time");
        let version = version(&event);
        assert!(last.is_none_or(|last| last < version), "{version} after {last:?}");
        last = Some(version);
        if version == newest.version {
            let Event::Update(update) = event else { panic!("not an update: {event:?}") };
            assert_eq!(update.lead.as_ref(), Some(newest));
            return count;
        }
    }
    unreachable!("an endless loop");
}
