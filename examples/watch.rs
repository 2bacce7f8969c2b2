//! Watches a lead, for ever: across restarts of the server, without missing or repeating anything.
//!
//! ```sh
//! cargo run --example watch -- http://127.0.0.1:50051 LEAD_ID
//! ```
//!
//! A program of your own generates the client from `proto/` with tonic-prost-build; this one borrows leadfold's.
//! An address that begins with `https://` is called over TLS. `LEADFOLD_CA_FILE` names the PEM file of the authority that signed
//! the server's certificate, unless it is a public one. `LEADFOLD_TOKEN` holds the bearer token, where the server asks for one.

use std::error::Error;
use std::time::Duration;

use leadfold::api::lead_change::Change;
use leadfold::api::lead_service_client::LeadServiceClient;
use leadfold::api::watch_lead_response::Event;
use leadfold::api::{LeadUpdate, WatchLeadRequest};
use tokio::time::{sleep, timeout};
use tonic::metadata::MetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
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
    let mut endpoint = Endpoint::from_shared(server.clone())?.http2_keep_alive_interval(Duration::from_secs(30));
    if server.starts_with("https://") {
        let tls = match std::env::var_os("LEADFOLD_CA_FILE") {
            Some(file) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(std::fs::read(file)?)),
            None => ClientTlsConfig::new().with_webpki_roots(),
        };
        endpoint = endpoint.tls_config(tls)?;
    }
    // Connects when it is needed, and again when the connection is lost.
    let channel = endpoint.connect_lazy();
    let (mut version, mut backoff) = (0, BACKOFF.0);
    loop {
        let before = version;
        let status = match follow(channel.clone(), &lead_id, &mut version).await {
            Ok(()) => Status::unavailable("the stream has ended"),
            Err(status) => status,
        };
        if is_final(&status) {
            return Err(format!("{:?}: {}", status.code(), status.message()).into());
        }
        eprintln!("{:?}: {}; trying again", status.code(), status.message());
        if version != before {
            backoff = BACKOFF.0;
        }
        let asked = status.get_details_retry_info().and_then(|info| info.retry_delay).unwrap_or_default();
        sleep(asked.max(backoff.mul_f64(rand::random_range(0.5..1.0)))).await;
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}

/// Whether it is the server that refuses, and would refuse again. A proxy's own page may have these codes too, but not leadfold's
/// `ErrorInfo`.
fn is_final(status: &Status) -> bool {
    let cannot_change = matches!(
        status.code(),
        Code::InvalidArgument | Code::NotFound | Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented
    );
    cannot_change && status.get_details_error_info().is_some_and(|info| info.domain == "leadfold")
}

/// What comes in time.
async fn in_time<T>(coming: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    timeout(SILENCE, coming).await.unwrap_or_else(|_| Err(Status::unavailable(format!("silent for {} s", SILENCE.as_secs()))))
}

/// Reads one stream until it ends.
async fn follow(channel: Channel, lead_id: &str, version: &mut u64) -> Result<(), Status> {
    let mut request = Request::new(WatchLeadRequest { lead_id: lead_id.to_owned(), after_version: *version, ..Default::default() });
    if let Ok(token) = std::env::var("LEADFOLD_TOKEN") {
        let bearer = MetadataValue::try_from(format!("Bearer {token}"));
        request.metadata_mut().insert("authorization", bearer.expect("LEADFOLD_TOKEN is no token"));
    }
    let mut client = LeadServiceClient::new(channel);
    let mut stream = in_time(client.watch_lead(request)).await?.into_inner();
    while let Some(message) = in_time(stream.message()).await? {
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
