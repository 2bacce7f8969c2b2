//! Connections that reach their age.

use std::time::{Duration, Instant};

use leadfold::api::lead_service_client::LeadServiceClient;
use leadfold::api::watch_lead_response::Event;
use leadfold::api::watch_leads_request::Scope;
use leadfold::api::{WatchLeadRequest, WatchLeadsRequest, lead_change::Change};
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::Endpoint;

use crate::support::events::{SAMPLE_TIME, WORKSPACE, message};
use crate::support::server::{Options, Server};
use crate::support::watching::{LeadWatch, retry_delay, version};
use crate::support::{PATIENCE, fresh_id};

fn one_second() -> Server {
    Server::start(&Options::default().env("LEADFOLD_MAX_CONNECTION_AGE_SECONDS", "1"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_an_aged_connection_end_and_say_when_to_come_back() {
    let server = one_second();
    let began = Instant::now();
    let channel = server.channel();
    let mut delays = Vec::new();
    let mut ends = Vec::new();
    for _ in 0..10 {
        ends.push(tokio::spawn(LeadWatch::over(&channel, &fresh_id(), 0).await.expect("the stream opens").end()));
    }
    let request = WatchLeadsRequest { scope: Some(Scope::WorkspaceId(WORKSPACE.into())), ..Default::default() };
    let mut leads = LeadServiceClient::new(channel).watch_leads(request).await.expect("the stream opens").into_inner();
    ends.push(tokio::spawn(async move {
        loop {
            if let Err(status) = leads.message().await.map(|message| message.expect("no end without a status")) {
                return status;
            }
        }
    }));
    for end in ends {
        let status = tokio::time::timeout(PATIENCE, end).await.expect("in time").expect("the reader");
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        delays.push(retry_delay(&status).expect("when to come back"));
    }
    let took = began.elapsed();
    assert!((Duration::from_millis(900)..Duration::from_secs(5)).contains(&took), "it took {took:?}");
    delays.sort();
    assert!(delays[0] < delays[delays.len() - 1], "all come back at the same time: {delays:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_comes_back_has_missed_nothing() {
    let server = one_second();
    let lead_id = fresh_id();
    let written_out = CancellationToken::new();
    let (reading, of, end) = (server.channel(), lead_id.clone(), written_out.clone());
    // It begins with version 0, before the first activity, so that every one is told by a change.
    let mut watch = LeadWatch::over(&reading, &of, 0).await.expect("the stream opens");
    let reader = tokio::spawn(async move {
        let (mut known, mut told, mut streams) = (0, Vec::new(), 0);
        loop {
            match watch.try_next().await {
                Ok(event) => {
                    assert!(version(&event) >= known);
                    known = version(&event);
                    if let Event::Update(update) = event {
                        assert!(!update.changes_truncated);
                        told.extend(update.changes.into_iter().filter_map(|change| match change.change {
                            Some(Change::Activity(activity)) => Some(activity.action_id),
                            _ => None,
                        }));
                    }
                    if told.last().is_some_and(|last| last == "last") {
                        return (told, streams);
                    }
                }
                Err(status) => {
                    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                    // The same client, when it was told to: it has noticed by then that it must connect again.
                    tokio::time::sleep(retry_delay(&status).expect("when to come back")).await;
                    watch = LeadWatch::over(&reading, &of, known).await.expect("the stream opens again");
                    streams += 1;
                    if streams == 3 {
                        end.cancel();
                    }
                }
            }
        }
    });
    let mut written = Vec::new();
    while !written_out.is_cancelled() && !reader.is_finished() {
        written.push(format!("a{}", written.len()));
        server.apply(&message(&lead_id, written.last().expect("one"), SAMPLE_TIME)).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    written.push("last".to_owned());
    server.apply(&message(&lead_id, "last", SAMPLE_TIME)).await;
    let (told, streams) = tokio::time::timeout(PATIENCE, reader).await.expect("in time").expect("the reader");
    assert_eq!(told, written, "each once and in order, over {streams} connections more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_nobody_reads_does_not_keep_an_aged_connection() {
    let server = one_second();
    // A window of nothing: what the server has to say stays with the server.
    let endpoint = Endpoint::from_shared(format!("http://{}", server.grpc)).expect("a valid address");
    let channel = endpoint.initial_stream_window_size(0).connect().await.expect("a connection");
    let request = WatchLeadRequest { lead_id: fresh_id(), ..Default::default() };
    let stalled = LeadServiceClient::new(channel).watch_lead(request).await.expect("the stream opens");
    assert_eq!(server.metric("leadfold_watch_streams").await, 1.0);
    server.eventually_metric("leadfold_watch_streams", 0.0).await;
    drop(stalled);
}
