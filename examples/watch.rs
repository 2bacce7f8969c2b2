//! Watches a lead, for ever: across restarts of the server, without missing or repeating anything.
//!
//! ```sh
//! cargo run --example watch -- http://127.0.0.1:50051 LEAD_ID
//! ```
//!
//! A program of your own generates the client from `proto/` with tonic-prost-build; this one borrows leadfold's.
//! `LEADFOLD_TOKEN` holds the bearer token, where the server asks for one.

use std::error::Error;
use std::time::Duration;

use leadfold::api::lead_change::Change;
use leadfold::api::lead_service_client::LeadServiceClient;
use leadfold::api::watch_lead_response::Event;
use leadfold::api::{LeadUpdate, WatchLeadRequest};
use tokio::time::{sleep, timeout};
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

/// A heartbeat comes every 15 s, so this much silence means trouble.
const SILENCE: Duration = Duration::from_secs(45);
/// The first and the longest wait before the server is tried again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(server), Some(lead_id)) = (arguments.next(), arguments.next()) else {
        return Err("usage: watch http://HOST:PORT LEAD_ID".into());
    };
    // Connects when it is needed, and again when the connection is lost.
    let channel = Endpoint::from_shared(server)?.http2_keep_alive_interval(Duration::from_secs(30)).connect_lazy();
    let (mut version, mut backoff) = (0, BACKOFF.0);
    loop {
        let before = version;
        let status = match follow(channel.clone(), &lead_id, &mut version).await {
            Ok(()) => Status::unavailable("the stream ended, or fell silent"),
            Err(status) => status,
        };
        // A connection that broke under a stream has another code than a server that says goodbye.
        if status.code() != Code::Unavailable && status.source().is_none() {
            return Err(format!("{:?}: {}", status.code(), status.message()).into());
        }
        if version != before {
            backoff = BACKOFF.0;
        }
        let asked = status.get_details_retry_info().and_then(|info| info.retry_delay).unwrap_or_default();
        sleep(asked.max(backoff.mul_f64(rand::random_range(0.5..1.0)))).await;
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}

/// Reads one stream until it ends.
async fn follow(channel: Channel, lead_id: &str, version: &mut u64) -> Result<(), Status> {
    let mut request = Request::new(WatchLeadRequest { lead_id: lead_id.to_owned(), after_version: *version, ..Default::default() });
    if let Ok(token) = std::env::var("LEADFOLD_TOKEN") {
        let bearer = MetadataValue::try_from(format!("Bearer {token}"));
        request.metadata_mut().insert("authorization", bearer.map_err(|_| Status::unauthenticated("LEADFOLD_TOKEN is no token"))?);
    }
    let mut stream = LeadServiceClient::new(channel).watch_lead(request).await?.into_inner();
    while let Ok(message) = timeout(SILENCE, stream.message()).await {
        let Some(message) = message? else { break };
        match message.event {
            // The present state: whatever was known before is replaced.
            Some(Event::Snapshot(snapshot)) => {
                let lead = snapshot.lead.unwrap_or_default();
                println!("{} {} messages, {} documents", lead.version, lead.message_count, lead.document_count);
                *version = lead.version;
            }
            Some(Event::Update(update)) => *version = show(update),
            Some(Event::Heartbeat(heartbeat)) => *version = heartbeat.version,
            None => {}
        }
    }
    Ok(())
}

/// Prints what an update tells, and returns the version that is known now.
fn show(update: LeadUpdate) -> u64 {
    for change in update.changes {
        let told = match change.change {
            Some(Change::Activity(activity)) => format!("{} {} {}", activity.r#type, activity.status, activity.summary),
            Some(Change::Document(document)) => format!("document {}", document.filename),
            Some(Change::ProfileField(field)) => format!("profile {field}"),
            Some(Change::ChecklistItem(item)) => format!("checklist {} {}", item.code, item.status),
            None => "something that this program is too old to know".to_owned(),
        };
        println!("{} {told}", change.version);
    }
    update.lead.map_or(0, |lead| lead.version)
}
