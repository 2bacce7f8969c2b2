//! Watch streams, read with a time limit.

use std::time::Duration;

use leadfold::api::lead_service_client::LeadServiceClient;
use leadfold::api::watch_lead_response::Event as LeadEvent;
use leadfold::api::watch_leads_response::Event as LeadsEvent;
use leadfold::api::{Lead, LeadUpdate, WatchLeadRequest, WatchLeadResponse, WatchLeadsRequest, WatchLeadsResponse, watch_leads_request};
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use tonic_types::StatusExt;

use super::PATIENCE;
use super::server::Server;

/// A stream of `WatchLead`.
pub struct LeadWatch(Streaming<WatchLeadResponse>);

impl LeadWatch {
    /// Opens one.
    pub async fn open(server: &Server, lead_id: &str, after_version: u64) -> Self {
        Self::open_with(server, lead_id, after_version, None).await
    }

    /// Opens one with an interval of heartbeats.
    pub async fn open_with(server: &Server, lead_id: &str, after_version: u64, heartbeat: Option<Duration>) -> Self {
        let heartbeat_interval = heartbeat.map(|interval| interval.try_into().expect("an interval"));
        let request = WatchLeadRequest { lead_id: lead_id.to_owned(), after_version, heartbeat_interval };
        Self(server.client().watch_lead(request).await.expect("the stream opens").into_inner())
    }

    /// Opens one over a connection that may be refused it, or carry others too.
    pub async fn over(channel: &Channel, lead_id: &str, after_version: u64) -> Result<Self, Status> {
        let request = WatchLeadRequest { lead_id: lead_id.to_owned(), after_version, heartbeat_interval: None };
        Ok(Self(LeadServiceClient::new(channel.clone()).watch_lead(request).await?.into_inner()))
    }

    /// The next message, or how the stream ended.
    pub async fn try_next(&mut self) -> Result<LeadEvent, Status> {
        Ok(next(&mut self.0).await?.event.expect("a message of a known kind"))
    }

    /// The next message, which must come.
    pub async fn next(&mut self) -> LeadEvent {
        self.try_next().await.expect("no error on the stream")
    }

    /// The next message, which must be an update.
    pub async fn next_update(&mut self) -> LeadUpdate {
        match self.next().await {
            LeadEvent::Update(update) => update,
            other => panic!("not an update: {other:?}"),
        }
    }

    /// Reads until the stream ends, and returns what it ended with.
    pub async fn end(mut self) -> Status {
        loop {
            if let Err(status) = next(&mut self.0).await {
                return status;
            }
        }
    }
}

/// A stream of `WatchLeads`.
pub struct LeadsWatch(Streaming<WatchLeadsResponse>);

impl LeadsWatch {
    /// Opens one.
    pub async fn open(server: &Server, scope: watch_leads_request::Scope, skip_initial: bool) -> Self {
        let request = WatchLeadsRequest { scope: Some(scope), skip_initial, heartbeat_interval: None };
        Self(server.client().watch_leads(request).await.expect("the stream opens").into_inner())
    }

    /// The next message, which must come.
    pub async fn next(&mut self) -> LeadsEvent {
        let message = next(&mut self.0).await.expect("no error on the stream");
        message.event.expect("a message of a known kind")
    }

    /// The ids and versions of the snapshots before `synced`, which must come.
    pub async fn initial(&mut self) -> Vec<(String, u64)> {
        let mut leads = Vec::new();
        loop {
            match self.next().await {
                LeadsEvent::Snapshot(snapshot) => leads.extend(snapshot.lead.map(|lead| (lead.lead_id, lead.version))),
                LeadsEvent::Synced(_) => return leads,
                other => panic!("neither a snapshot nor synced: {other:?}"),
            }
        }
    }
}

/// The next message; the end of the stream without a status counts as one that says `OK`.
async fn next<T>(stream: &mut Streaming<T>) -> Result<T, Status> {
    match tokio::time::timeout(PATIENCE, stream.message()).await {
        Ok(message) => message?.ok_or_else(|| Status::ok("the stream has ended")),
        Err(_) => panic!("nothing on the stream within {PATIENCE:?}"),
    }
}

/// The version that a message of `WatchLead` speaks of.
pub fn version(event: &LeadEvent) -> u64 {
    let of = |lead: &Option<Lead>| lead.as_ref().expect("the lead").version;
    match event {
        LeadEvent::Snapshot(snapshot) => of(&snapshot.lead),
        LeadEvent::Update(update) => of(&update.lead),
        LeadEvent::Heartbeat(heartbeat) => heartbeat.version,
    }
}

/// When a status says to come back.
pub fn retry_delay(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}
