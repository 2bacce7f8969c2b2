//! `leadfold watch`: what happens, as it happens, across restarts of the server: drawn in place on a terminal, a line
//! for each thing elsewhere.

mod lines;
mod live;
mod screen;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::io::{Write, stderr, stdout};
use std::time::Duration;

use futures::{Stream, StreamExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{interval, sleep, timeout};
use tonic::Status;

use self::live::Live;
use self::screen::Screen;
use super::connect::Server;
use super::json::Json;
use super::retry::{Backoff, is_final};
use super::until_nobody_reads;
use crate::api::watch_leads_request::Scope;
use crate::api::{Heartbeat, Lead, LeadSnapshot, SnapshotReason, watch_lead_response, watch_leads_response};
use crate::api::{WatchLeadRequest, WatchLeadResponse, WatchLeadsRequest, WatchLeadsResponse};
use crate::config::WatchArgs;

/// How often the server is asked to say that it is there.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Three heartbeats that did not come: the server, or the way to it, is in trouble.
const SILENCE: Duration = Duration::from_secs(15);

/// How often a view that is drawn is looked after.
const TICK: Duration = Duration::from_millis(50);

pub(super) async fn run(args: WatchArgs) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        ended = follow(args, 0) => ended,
        () = until_nobody_reads() => Ok(()),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

/// Shows what happens, for ever. `above`: rows of the terminal that should stay in sight above it.
pub(super) async fn follow(args: WatchArgs, above: usize) -> anyhow::Result<()> {
    let live = if args.client.json { None } else { Screen::open(above).map(|screen| Live::new(screen, args.lead_id.is_some())) };
    let is_live = live.is_some();
    let json = args.client.json.then(Json::new).transpose()?;
    let printer = RefCell::new(Printer { json, live, versions: HashMap::new(), named: None });
    let ticks = async {
        if !is_live {
            return std::future::pending().await;
        }
        let mut ticks = interval(TICK);
        loop {
            ticks.tick().await;
            printer.borrow_mut().tick()?;
        }
    };
    tokio::select! {
        ended = read(args, &printer) => ended,
        ended = ticks => ended,
    }
}

async fn read(args: WatchArgs, printer: &RefCell<Printer>) -> anyhow::Result<()> {
    let server = Server::new(&args.client)?;
    let mut backoff = Backoff::new();
    let mut lost = false;
    loop {
        let after_version = args.lead_id.as_ref().and_then(|lead_id| printer.borrow().versions.get(lead_id).copied()).unwrap_or_default();
        printer.borrow_mut().begin();
        let status = match within_silence(open(&server, &args, after_version)).await.and_then(|opened| opened) {
            Ok(mut events) => loop {
                match within_silence(events.next()).await {
                    Err(silent) => break silent,
                    Ok(None) => break Status::unavailable("the stream has ended"),
                    Ok(Some(Err(status))) => break status,
                    Ok(Some(Ok(event))) => {
                        if std::mem::take(&mut lost) {
                            printer.borrow_mut().found(server.name());
                        }
                        backoff.reset();
                        printer.borrow_mut().print(&event)?;
                    }
                }
            },
            Err(status) => status,
        };
        if is_final(&status) {
            return Err(server.explain(&status));
        }
        if !std::mem::replace(&mut lost, true) {
            printer.borrow_mut().lost(&format!("{:#}; trying again", server.explain(&status)));
        }
        sleep(backoff.next(&status)).await;
    }
}

/// What comes in time; a failure that says for how long nothing came, otherwise.
async fn within_silence<T>(coming: impl Future<Output = T>) -> Result<T, Status> {
    let silent = |_| Status::unavailable(format!("nothing was heard for {} s", SILENCE.as_secs()));
    timeout(SILENCE, coming).await.map_err(silent)
}

/// A message of either kind of stream.
enum Event {
    Lead(WatchLeadResponse),
    Leads(WatchLeadsResponse),
}

async fn open(
    server: &Server,
    args: &WatchArgs,
    after_version: u64,
) -> Result<impl Stream<Item = Result<Event, Status>> + Unpin + use<>, Status> {
    let mut client = server.streams();
    let heartbeat_interval = prost_types::Duration::try_from(HEARTBEAT).ok();
    if let Some(lead_id) = &args.lead_id {
        let request = WatchLeadRequest { lead_id: lead_id.clone(), after_version, heartbeat_interval };
        return Ok(client.watch_lead(request).await?.into_inner().map(|event| event.map(Event::Lead)).left_stream());
    }
    let scope = Some(Scope::WorkspaceId(args.workspace.clone().unwrap_or_default()));
    let request = WatchLeadsRequest { scope, skip_initial: false, heartbeat_interval };
    Ok(client.watch_leads(request).await?.into_inner().map(|event| event.map(Event::Leads)).right_stream())
}

struct Printer {
    json: Option<Json>,
    live: Option<Live>,
    /// The last version that was printed of each lead.
    versions: HashMap<String, u64>,
    /// Leads that this stream has named so far, until it has named all that there are.
    named: Option<HashSet<String>>,
}

impl Printer {
    fn tick(&mut self) -> anyhow::Result<()> {
        self.live.as_mut().map_or(Ok(()), Live::tick)
    }

    fn lost(&mut self, why: &str) {
        match &mut self.live {
            Some(live) => live.trouble(Some(why.to_owned())),
            // Where nobody reads stderr, stdout still has its reader.
            None => drop(writeln!(stderr(), "{why}")),
        }
    }

    fn found(&mut self, name: &str) {
        match &mut self.live {
            Some(live) => live.trouble(None),
            None => drop(writeln!(stderr(), "connected again to {name}")),
        }
    }

    /// A stream begins.
    fn begin(&mut self) {
        self.named = Some(HashSet::new());
    }

    /// The stream has named every lead of the workspace: those of an earlier stream that it did not name were deleted meanwhile.
    fn all_named(&mut self) -> anyhow::Result<()> {
        let Some(named) = self.named.take() else { return Ok(()) };
        let gone: Vec<_> = self.versions.keys().filter(|lead_id| !named.contains(*lead_id)).cloned().collect();
        for lead_id in gone {
            let lead = Some(Lead { lead_id, ..Lead::default() });
            let snapshot = LeadSnapshot { lead, reason: SnapshotReason::Deleted.into() };
            let message = WatchLeadsResponse { event: Some(watch_leads_response::Event::Snapshot(snapshot)) };
            self.print(&Event::Leads(message))?;
        }
        Ok(())
    }

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
                Some(OfLeads::Synced(_)) => {
                    self.all_named()?;
                    (None, None)
                }
                _ => (None, None),
            },
        };
        let known = snapshot.is_some_and(|snapshot| self.knows(snapshot));
        if let Some(lead) = snapshot.and_then(|snapshot| snapshot.lead.as_ref()).or(update.and_then(|update| update.lead.as_ref())) {
            if let Some(named) = &mut self.named {
                named.insert(lead.lead_id.clone());
            }
            if snapshot.is_some() && lead.version == 0 && matches!(event, Event::Leads(_)) {
                self.versions.remove(&lead.lead_id);
            } else {
                self.versions.insert(lead.lead_id.clone(), lead.version);
            }
        }
        if let Some(live) = &mut self.live {
            snapshot.into_iter().for_each(|snapshot| live.snapshot(snapshot));
            update.into_iter().for_each(|update| live.update(update));
            return Ok(());
        }
        if known {
            return Ok(());
        }
        let mut out = stdout().lock();
        match (&self.json, event) {
            (Some(json), Event::Lead(message)) => writeln!(out, "{}", json.line("WatchLeadResponse", message)?)?,
            (Some(json), Event::Leads(message)) => writeln!(out, "{}", json.line("WatchLeadsResponse", message)?)?,
            (None, _) => {
                for line in snapshot.map(lines::snapshot).into_iter().chain(update.map(lines::update).unwrap_or_default()) {
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
