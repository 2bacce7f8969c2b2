//! How many watches there may be, and that the ones that are gone don't count.

use leadfold::api::WatchLeadRequest;
use leadfold::api::lead_service_client::LeadServiceClient;
use tonic::Code;

use crate::support::server::{Options, Server};
use crate::support::watching::LeadWatch;
use crate::support::{eventually, fresh_id};

const OPEN: &str = "leadfold_watch_streams";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_has_a_limit_of_watches() {
    let server = Server::start(&Options::default().env("LEADFOLD_MAX_WATCHES", "5"));
    let mut watches = Vec::new();
    for _ in 0..5 {
        watches.push(LeadWatch::over(&server.channel(), &fresh_id(), 0).await.expect("a stream within the limit"));
    }
    refused(LeadWatch::over(&server.channel(), &fresh_id(), 0).await, "5 watches", "--max-watches)");
    assert_eq!(server.metric(OPEN).await, 5.0, "a refusal is not a stream");
    drop(watches.pop());
    let again = eventually("one is let in again", async || LeadWatch::over(&server.channel(), &fresh_id(), 0).await.ok()).await;
    refused(LeadWatch::over(&server.channel(), &fresh_id(), 0).await, "5 watches", "--max-watches)");
    drop((again, watches));
    server.eventually_metric(OPEN, 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_has_a_limit_of_watches() {
    let server = Server::start(&Options::default().env("LEADFOLD_MAX_WATCHES_PER_CONNECTION", "3"));
    let (one, other) = (server.channel(), server.channel());
    let mut watches = Vec::new();
    for _ in 0..3 {
        watches.push(LeadWatch::over(&one, &fresh_id(), 0).await.expect("a stream within the limit"));
    }
    for _ in 0..10 {
        refused(LeadWatch::over(&one, &fresh_id(), 0).await, "3 watches", "--max-watches-per-connection)");
    }
    watches.push(LeadWatch::over(&other, &fresh_id(), 0).await.expect("another connection has its own"));
    assert_eq!(server.metric(OPEN).await, 4.0, "a refusal is not a stream");
    watches.remove(0);
    watches.push(eventually("one is let in again", async || LeadWatch::over(&one, &fresh_id(), 0).await.ok()).await);
    drop(watches);
    server.eventually_metric(OPEN, 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_leaves_is_gone_at_once() {
    let server = Server::start(&Options::default());
    let channels = [server.channel(), server.channel(), server.channel(), server.channel(), server.channel()];
    let lead_id = fresh_id();
    let mut watches = Vec::new();
    for channel in channels.iter().cycle().take(500) {
        let request = WatchLeadRequest { lead_id: lead_id.clone(), ..Default::default() };
        watches.push(LeadServiceClient::new(channel.clone()).watch_lead(request).await.expect("the stream opens"));
    }
    assert_eq!(server.metric(OPEN).await, 500.0);
    // Cancelled one by one while their connections stay, then the rest with the connections.
    watches.truncate(250);
    server.eventually_metric(OPEN, 250.0).await;
    drop((watches, channels));
    server.eventually_metric(OPEN, 0.0).await;
}

#[track_caller]
fn refused(answer: Result<LeadWatch, tonic::Status>, limit: &str, option: &str) {
    let status = answer.err().expect("a stream over the limit");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains(limit) && status.message().contains(option), "{status:?}");
}
