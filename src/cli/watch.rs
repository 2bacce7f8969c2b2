//! `leadfold watch`: a line for each thing that happens, across restarts of the server.

use std::collections::HashMap;
use std::io::{Write, stderr, stdout};
use std::time::Duration;

use chrono::Utc;
use futures::{Stream, StreamExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::connect::Server;
use super::json::Json;
use super::text;
use crate::api::lead_change::Change;
use crate::api::watch_leads_request::Scope;
use crate::api::{Heartbeat, LeadSnapshot, LeadUpdate, SnapshotReason, watch_lead_response, watch_leads_response};
use crate::api::{WatchLeadRequest, WatchLeadResponse, WatchLeadsRequest, WatchLeadsResponse};
use crate::config::WatchArgs;

/// The first and the longest wait before the server is tried again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

pub(super) async fn run(args: WatchArgs) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        ended = follow(args) => ended,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

async fn follow(args: WatchArgs) -> anyhow::Result<()> {
    let server = Server::new(&args.client)?;
    let mut printer = Printer { json: args.client.json.then(Json::new).transpose()?, versions: HashMap::new() };
    let mut backoff = BACKOFF.0;
    let mut lost = false;
    loop {
        let status = match open(&server, &args, &printer).await {
            Ok(mut events) => {
                let mut ended = Status::unavailable("the stream has ended");
                while let Some(event) = events.next().await {
                    let event = match event {
                        Ok(event) => event,
                        Err(status) => {
                            ended = status;
                            break;
                        }
                    };
                    if std::mem::take(&mut lost) {
                        writeln!(stderr(), "connected again to {}", server.name())?;
                    }
                    backoff = BACKOFF.0;
                    printer.print(&event)?;
                }
                ended
            }
            Err(status) => status,
        };
        // A connection that broke under a stream has another code than a server that says goodbye.
        let transport = std::error::Error::source(&status).is_some();
        if !transport && status.code() != Code::Unavailable {
            return Err(server.explain(&status));
        }
        if !std::mem::replace(&mut lost, true) {
            writeln!(stderr(), "{:#}; trying again", server.explain(&status))?;
        }
        let asked = status.get_details_retry_info().and_then(|info| info.retry_delay).unwrap_or_default();
        sleep(backoff.mul_f64(rand::random_range(0.5..1.0)).max(asked.min(BACKOFF.1))).await;
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}

/// A message of either kind of stream.
enum Event {
    Lead(WatchLeadResponse),
    Leads(WatchLeadsResponse),
}

async fn open(
    server: &Server,
    args: &WatchArgs,
    printer: &Printer,
) -> Result<impl Stream<Item = Result<Event, Status>> + Unpin + use<>, Status> {
    let mut client = server.streams();
    if let Some(lead_id) = &args.lead_id {
        let after_version = printer.versions.get(lead_id).copied().unwrap_or_default();
        let request = WatchLeadRequest { lead_id: lead_id.clone(), after_version, heartbeat_interval: None };
        return Ok(client.watch_lead(request).await?.into_inner().map(|event| event.map(Event::Lead)).left_stream());
    }
    let scope = Some(Scope::WorkspaceId(args.workspace.clone().unwrap_or_default()));
    let request = WatchLeadsRequest { scope, skip_initial: false, heartbeat_interval: None };
    Ok(client.watch_leads(request).await?.into_inner().map(|event| event.map(Event::Leads)).right_stream())
}

struct Printer {
    json: Option<Json>,
    /// The last version that was printed of each lead.
    versions: HashMap<String, u64>,
}

impl Printer {
    fn print(&mut self, event: &Event) -> anyhow::Result<()> {
        use watch_lead_response::Event as OfLead;
        use watch_leads_response::Event as OfLeads;
        let (snapshot, update) = match event {
            Event::Lead(message) => match &message.event {
                Some(OfLead::Snapshot(snapshot)) => (Some(snapshot), None),
                Some(OfLead::Update(update)) => (None, Some(update)),
                Some(OfLead::Heartbeat(Heartbeat { .. })) | None => (None, None),
            },
            Event::Leads(message) => match &message.event {
                Some(OfLeads::Snapshot(snapshot)) => (Some(snapshot), None),
                Some(OfLeads::Update(update)) => (None, Some(update)),
                _ => (None, None),
            },
        };
        let known = snapshot.is_some_and(|snapshot| self.knows(snapshot));
        if let Some(lead) = snapshot.and_then(|snapshot| snapshot.lead.as_ref()).or(update.and_then(|update| update.lead.as_ref())) {
            self.versions.insert(lead.lead_id.clone(), lead.version);
        }
        if known {
            return Ok(());
        }
        let mut out = stdout().lock();
        match (&self.json, event) {
            (Some(json), Event::Lead(message)) => writeln!(out, "{}", json.line("WatchLeadResponse", message)?)?,
            (Some(json), Event::Leads(message)) => writeln!(out, "{}", json.line("WatchLeadsResponse", message)?)?,
            (None, _) => {
                for line in snapshot.map(told_snapshot).into_iter().chain(update.map(told_update).unwrap_or_default()) {
                    writeln!(out, "{line}")?;
                }
            }
        }
        out.flush()?;
        Ok(())
    }

    /// Whether a workspace's initial snapshot tells what was printed before the connection was lost.
    fn knows(&self, snapshot: &LeadSnapshot) -> bool {
        let lead = snapshot.lead.as_ref().filter(|_| snapshot.reason() == SnapshotReason::Initial);
        lead.is_some_and(|lead| self.versions.get(&lead.lead_id).is_some_and(|&version| version == lead.version && version > 0))
    }
}

fn told_snapshot(snapshot: &LeadSnapshot) -> String {
    let lead = snapshot.lead.clone().unwrap_or_default();
    let now = Utc::now().format("%H:%M:%S");
    let why = match snapshot.reason() {
        SnapshotReason::Deleted => return format!("{now}  {}  deleted", text::plain(&lead.lead_id)),
        SnapshotReason::ResumePositionUnknown => " (from the start: the server does not know the last version)",
        SnapshotReason::StoreLostWrites => " (from the start: Redis has lost writes)",
        _ if lead.version == 0 => return format!("{now}  {}  nothing is known yet", text::plain(&lead.lead_id)),
        _ => "",
    };
    let latest = lead.latest_activity.as_ref().map(|latest| format!("; {}", text::activity(latest))).unwrap_or_default();
    let (id, messages, documents) =
        (text::plain(&lead.lead_id), text::count(lead.message_count, "message"), text::count(lead.document_count, "document"));
    format!("{now}  {id}  {messages}, {documents}{latest}{why}")
}

fn told_update(update: &LeadUpdate) -> Vec<String> {
    let lead = update.lead.clone().unwrap_or_default();
    let start = format!("{}  {}", Utc::now().format("%H:%M:%S"), text::plain(&lead.lead_id));
    let told = |change: &Change| match change {
        Change::Activity(activity) => text::activity(activity),
        Change::Document(document) => format!("document {}", text::document(document)),
        Change::ProfileField(field) => format!("profile {}", text::plain(field)),
        Change::ChecklistItem(item) => text::plain(&format!("checklist {} {}", item.code, item.status)),
    };
    let mut lines: Vec<_> =
        update.changes.iter().filter_map(|change| change.change.as_ref()).map(|change| format!("{start}  {}", told(change))).collect();
    if update.changes_truncated || lines.is_empty() {
        let (messages, documents) = (text::count(lead.message_count, "message"), text::count(lead.document_count, "document"));
        lines.push(format!("{start}  more has changed than is told: now {messages}, {documents}"));
    }
    lines
}
