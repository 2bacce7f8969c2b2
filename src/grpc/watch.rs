//! The streams of `WatchLead` and `WatchLeads`: each a loop that looks at the newest state when its client is
//! ready for a message, and holds nothing otherwise.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};

use super::admission::caller;
use super::service::required_id;
use super::shared::{FrameStream, framed};
use super::status::{aged, connection_watches_full, draining, exhausted, fallen, invalid, no_workspace, unavailable};
use super::{Limits, convert, sight};
use crate::api::{self, LeadSnapshot, LeadUpdate, SnapshotReason, watch_leads_request::Scope};
use crate::auth::{Caller, TokenWatches};
use crate::listener::ConnectionWatches;
use crate::store::{ListQuery, Place, Store};
use crate::watch::{Follower, Hub, MessageKind, Next, ResetReason, State, Watched};

/// Heartbeats: default, least and greatest.
const HEARTBEAT: Duration = Duration::from_secs(15);
const HEARTBEATS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(300);
/// While a heartbeat is due but the feed is in doubt, how often to look again.
const DOUBT: Duration = Duration::from_millis(200);
/// How long the first read of a watch may take.
const FIRST_READ: Duration = Duration::from_secs(3);
/// Leads that one stream may name.
const MAX_NAMED: usize = 1000;
/// Leads of a workspace that are listed at once.
const SCAN_PAGE: usize = 200;

/// Opens watches.
#[derive(Clone)]
pub(super) struct Watches {
    hub: Arc<Hub>,
    store: Arc<dyn Store>,
    permits: Arc<Semaphore>,
    limits: Limits,
}

/// Who sent a request, and what its connection allows.
pub(super) struct Admission {
    caller: Caller,
    connection: Option<ConnectionWatches>,
}

impl Admission {
    pub(super) fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        Ok(Self { caller: caller(request)?, connection: request.extensions().get::<ConnectionWatches>().cloned() })
    }
}

/// Held by a stream as long as it lives, however it ends.
struct Open {
    _permits: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>, Option<TokenWatches>),
    hub: Arc<Hub>,
    caller: Caller,
    aged: CancellationToken,
}

impl Open {
    /// An error as soon as the stream has to end. Whoever waits afterwards for what wakes streams has to have begun to
    /// listen before.
    fn check(&self) -> Result<(), Status> {
        if self.hub.is_draining() {
            return Err(draining());
        }
        if let Some(status) = fallen(self.caller.standing()) {
            return Err(status);
        }
        if self.aged.is_cancelled() { Err(aged()) } else { Ok(()) }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        metrics::gauge!("leadfold_watch_streams").decrement(1.0);
    }
}

impl Watches {
    pub(super) fn new(hub: Arc<Hub>, store: Arc<dyn Store>, limits: Limits) -> Self {
        Self { hub, store, permits: Arc::new(Semaphore::new(limits.max_watches)), limits }
    }

    /// `leads`: how many a stream watches; it counts as so many watches.
    fn open(&self, admission: &Admission, leads: usize) -> Result<Open, Status> {
        // The request has limits that are far below.
        let count = u32::try_from(leads).unwrap_or(u32::MAX);
        let of_token = admission.caller.watch(leads, self.limits.max_watches_per_token);
        let of_token = of_token.ok_or_else(|| {
            let text = format!("this token has its {} watches open (--max-watches-per-token)", self.limits.max_watches_per_token);
            exhausted("max-watches-per-token", text)
        })?;
        let of_server = Arc::clone(&self.permits).try_acquire_many_owned(count);
        let of_server = of_server.map_err(|_| {
            exhausted("max-watches", format!("this server has its {} watches open (--max-watches)", self.limits.max_watches))
        })?;
        let of_connection = admission.connection.as_ref().map(|connection| {
            let permit = Arc::clone(&connection.permits).try_acquire_many_owned(count);
            permit.map_err(|_| connection_watches_full(connection.max))
        });
        let permits = (of_server, of_connection.transpose()?, of_token);
        let aged = admission.connection.as_ref().map(|connection| connection.aged.clone());
        metrics::gauge!("leadfold_watch_streams").increment(1.0);
        let (hub, caller) = (Arc::clone(&self.hub), admission.caller.clone());
        let open = Open { _permits: permits, hub, caller, aged: aged.unwrap_or_default() };
        open.check().map(|()| open)
    }

    async fn watched(&self, lead_id: &str) -> Result<Watched, Status> {
        let late = |_| unavailable("STORE_UNAVAILABLE", "the store did not answer in time", Duration::from_secs(1));
        timeout(FIRST_READ, self.hub.watch(lead_id)).await.map_err(late)
    }

    /// `WatchLead`.
    pub(super) async fn lead(&self, request: api::WatchLeadRequest, admission: &Admission) -> Result<FrameStream, Status> {
        required_id("lead_id", &request.lead_id)?;
        let every = heartbeat_interval(request.heartbeat_interval)?;
        let open = self.open(admission, 1)?;
        let mut watched = self.watched(&request.lead_id).await?;
        let state = sight::first(&open.caller, watched.state());
        let first = self.first_message(&watched, &state, request.after_version, &open.caller).await?;
        Ok(Box::pin(async_stream::try_stream! {
            let (mut sent, mut generation) = (state.lead.version, state.generation);
            drop(state);
            yield first;
            let mut heartbeat = Instant::now() + every;
            loop {
                let state = watched.state();
                open.check()?;
                let foreign = sight::is_foreign(&open.caller, &state);
                if let Some(state) = sight::next(&open.caller, state, sent)
                    && let Some(kind) = next_kind(&state, sent, generation)
                {
                    (sent, generation) = (state.lead.version, state.generation);
                    let message = encoded(&state, kind);
                    drop(state);
                    yield message;
                    heartbeat = Instant::now() + every;
                    continue;
                }
                tokio::select! {
                    () = watched.changed() => {}
                    () = open.aged.cancelled() => {}
                    () = sleep_until(heartbeat) => {
                        // How busy another workspace's lead is must not show either.
                        if watched.is_current() || (foreign && watched.is_trusted()) {
                            yield heartbeat_bytes(sent);
                            heartbeat = Instant::now() + every;
                        } else {
                            heartbeat = Instant::now() + DOUBT;
                        }
                    }
                }
            }
        }))
    }

    async fn first_message(&self, watched: &Watched, state: &State, after: u64, caller: &Caller) -> Result<Bytes, Status> {
        let version = state.lead.version;
        if after == 0 {
            return Ok(encoded(state, snapshot(SnapshotReason::Initial)));
        }
        if after == version {
            return Ok(heartbeat_bytes(version));
        }
        if version == 0 {
            // It is not known any more whose it was.
            let deleted = caller.sees_all() && self.store.is_deleted(&state.lead.lead_id).await?;
            return Ok(encoded(state, snapshot(if deleted { SnapshotReason::Deleted } else { SnapshotReason::ResumePositionUnknown })));
        }
        if after > version {
            return Ok(encoded(state, snapshot(SnapshotReason::ResumePositionUnknown)));
        }
        if state.changes_after(after).1 {
            return Ok(encoded(state, MessageKind::Update(after)));
        }
        // Further behind than what is at hand. What is read now may be newer than `state`: only what `state` has
        // is told, and the stream tells the rest.
        let resumed = watched.resume(after).await?.filter(|resumed| resumed.lead.version >= version);
        let Some(resumed) = resumed else { return Ok(encoded(state, snapshot(SnapshotReason::StoreLostWrites))) };
        let (changes, complete) = resumed.changes_after(after);
        let changes = changes.filter(|changed| changed.version <= version).map(convert::change).collect();
        Ok(update(state, changes, complete))
    }

    /// `WatchLeads`.
    pub(super) async fn leads(&self, request: api::WatchLeadsRequest, admission: &Admission) -> Result<FrameStream, Status> {
        let every = heartbeat_interval(request.heartbeat_interval)?;
        let mut scope = request.scope.ok_or_else(|| invalid("scope", "required: workspace_id or lead_ids"))?;
        let count = match &mut scope {
            Scope::WorkspaceId(workspace_id) => {
                required_id("workspace_id", workspace_id)?;
                if !admission.caller.sees(workspace_id) {
                    return Err(no_workspace(workspace_id));
                }
                1
            }
            Scope::LeadIds(named) => {
                if named.ids.is_empty() || named.ids.len() > MAX_NAMED {
                    return Err(invalid("lead_ids.ids", format!("1 to {MAX_NAMED} ids, not {}", named.ids.len())));
                }
                for (index, lead_id) in named.ids.iter().enumerate() {
                    required_id(&format!("lead_ids.ids[{index}]"), lead_id)?;
                }
                named.ids.sort();
                named.ids.dedup();
                named.ids.len()
            }
        };
        let open = self.open(admission, count)?;
        let mut leads = Leads::new(self.clone(), scope, admission.caller.clone()).await?;
        let skip_initial = request.skip_initial;
        if skip_initial {
            leads.skip_initial().await?;
        } else {
            leads.scan().await?;
        }
        Ok(Box::pin(async_stream::try_stream! {
            let mut heartbeat = Instant::now() + every;
            loop {
                open.check()?;
                if let Some(message) = leads.next().await? {
                    yield message;
                    heartbeat = Instant::now() + every;
                } else {
                    tokio::select! {
                        () = leads.follower.wait() => {}
                        () = open.aged.cancelled() => {}
                        () = sleep_until(heartbeat) => {
                            if leads.is_current() {
                                yield heartbeat_bytes(leads.greatest);
                                heartbeat = Instant::now() + every;
                            } else {
                                heartbeat = Instant::now() + DOUBT;
                            }
                        }
                    }
                }
            }
        }))
    }
}

/// What one stream of `WatchLeads` knows.
struct Leads {
    watches: Watches,
    caller: Caller,
    workspace_id: Option<String>,
    /// The leads that were named; they are watched as long as this lives.
    named: Vec<(String, Watched)>,
    follower: Arc<Follower>,
    /// Leads to look at because all are to be looked at, and where to continue listing them.
    scan: VecDeque<String>,
    scan_cursor: Option<Option<Place>>,
    scanned: HashSet<String>,
    scans: usize,
    /// What was delivered: version and generation of each lead.
    sent: HashMap<Arc<str>, (u64, u32)>,
    greatest: u64,
    skipped_initial: bool,
    synced: bool,
}

impl Leads {
    /// Follows the scope from now on.
    async fn new(watches: Watches, scope: Scope, caller: Caller) -> Result<Self, Status> {
        let (workspace_id, follower, named) = match scope {
            Scope::WorkspaceId(workspace_id) => (Some(workspace_id.clone()), watches.hub.follow_workspace(&workspace_id), Vec::new()),
            Scope::LeadIds(leads) => (None, Arc::new(Follower::default()), leads.ids),
        };
        let late = |_| unavailable("STORE_UNAVAILABLE", "the store did not answer in time", Duration::from_secs(1));
        let follow = named.into_iter().map(|lead_id| {
            let (hub, follower) = (&watches.hub, &follower);
            async move { (lead_id.clone(), hub.follow_lead(follower, &lead_id).await) }
        });
        let mut named = timeout(FIRST_READ, futures::future::join_all(follow)).await.map_err(late)?;
        named.sort_by_cached_key(|(_, watched)| std::cmp::Reverse(sight::first(&caller, watched.peek()).lead.latest_time()));
        Ok(Self {
            watches,
            caller,
            workspace_id,
            named,
            follower,
            scan: VecDeque::new(),
            scan_cursor: None,
            scanned: HashSet::new(),
            scans: 0,
            sent: HashMap::new(),
            greatest: 0,
            skipped_initial: false,
            synced: false,
        })
    }

    /// Begins to look at every lead of the scope.
    async fn scan(&mut self) -> Result<(), Status> {
        self.scans += 1;
        self.scanned.clear();
        if self.workspace_id.is_some() {
            self.scan_cursor = Some(None);
            return self.scan_page().await;
        }
        self.scan = self.named.iter().map(|(lead_id, _)| lead_id.clone()).collect();
        Ok(())
    }

    async fn scan_page(&mut self) -> Result<(), Status> {
        let (Some(workspace_id), Some(cursor)) = (&self.workspace_id, self.scan_cursor.take()) else { return Ok(()) };
        let query = ListQuery { workspace_id: workspace_id.clone(), after: None, before: None, cursor, limit: SCAN_PAGE };
        let places = self.watches.store.list(&query).await?;
        if places.len() == SCAN_PAGE {
            self.scan_cursor = Some(places.last().cloned());
        } else if self.scans > 1 {
            // A lead that was told of before and is not listed any more may have been deleted.
            let listed: HashSet<&str> =
                self.scanned.iter().map(String::as_str).chain(places.iter().map(|place| place.lead_id.as_str())).collect();
            let gone = self.sent.keys().filter(|lead_id| !listed.contains(&***lead_id));
            self.scan.extend(gone.map(|lead_id| lead_id.to_string()).collect::<Vec<_>>());
        }
        for place in places {
            if self.scans > 1 {
                self.scanned.insert(place.lead_id.clone());
            }
            self.scan.push_back(place.lead_id);
        }
        Ok(())
    }

    /// Only what changes from now on.
    async fn skip_initial(&mut self) -> Result<(), Status> {
        self.skipped_initial = true;
        for (lead_id, watched) in &mut self.named {
            let state = sight::first(&self.caller, watched.state());
            self.sent.insert(lead_id.as_str().into(), (state.lead.version, state.generation));
        }
        Ok(())
    }

    /// The next message, if there is one now.
    async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(lead_id) = self.scan.pop_front() {
                let state = self.state(&lead_id).await?;
                if let Some(message) = self.message(&lead_id.into(), &state, None) {
                    return Ok(Some(message));
                }
                continue;
            }
            if self.scan_cursor.is_some() {
                self.scan_page().await?;
                continue;
            }
            // Before what has changed meanwhile: under load there would always be something.
            if !std::mem::replace(&mut self.synced, true) {
                return Ok(Some(synced_bytes()));
            }
            match self.follower.next() {
                Some(Next::Lead(lead_id, state, since)) => {
                    if let Some(message) = self.message(&lead_id, &state, since) {
                        return Ok(Some(message));
                    }
                }
                Some(Next::Rescan) => self.scan().await?,
                None => return Ok(None),
            }
        }
    }

    async fn state(&mut self, lead_id: &str) -> Result<Arc<State>, Status> {
        match self.named.iter_mut().find(|(named, _)| named == lead_id) {
            Some((_, watched)) => Ok(watched.state()),
            None => Ok(self.watches.watched(lead_id).await?.state()),
        }
    }

    /// What to tell of a state, after what was told of its lead before. `since`: the version before it changed.
    fn message(&mut self, lead_id: &Arc<str>, state: &State, since: Option<u64>) -> Option<Bytes> {
        let hidden = sight::is_hidden(&self.caller, state).then(|| State::never_heard_of(lead_id));
        let state = hidden.as_ref().unwrap_or(state);
        let version = state.lead.version;
        let kind = match self.sent.get(lead_id) {
            // Of a lead that does not exist there is nothing to tell, unless it was asked for by name.
            None if version == 0 && self.workspace_id.is_some() => {
                // But it was there, and the client of a stream without initial snapshots may know it from elsewhere.
                let known_elsewhere = self.skipped_initial && hidden.is_none() && since.is_some_and(|since| since > 0);
                return known_elsewhere.then(|| encoded(state, snapshot(SnapshotReason::Deleted)));
            }
            // If nobody knows since when: not all that has changed is told, and the message says so.
            None if self.skipped_initial && since != Some(0) => MessageKind::Update(since.unwrap_or(0)),
            None => snapshot(SnapshotReason::Initial),
            // A state that was read anew, after nobody had watched the lead for a while.
            Some((sent, _)) if version < *sent => snapshot(match state.reset {
                Some(ResetReason::Deleted) | None if version == 0 => SnapshotReason::Deleted,
                _ => SnapshotReason::StoreLostWrites,
            }),
            Some((0, _)) if version > 0 => MessageKind::Update(0),
            Some((sent, _)) if version > *sent => MessageKind::Update(*sent),
            Some(_) => return None,
        };
        self.sent.insert(Arc::clone(lead_id), (version, state.generation));
        if version == 0 && self.workspace_id.is_some() {
            self.sent.remove(lead_id);
        }
        self.greatest = self.greatest.max(version);
        Some(encoded(state, kind))
    }

    fn is_current(&self) -> bool {
        // How busy another workspace's lead is must not show.
        let is_current =
            |watched: &Watched| watched.is_current() || (watched.is_trusted() && sight::is_foreign(&self.caller, &watched.peek()));
        // The leads of a workspace are in all parts of the feed, those that were named in their own ones.
        let is_trusted = self.workspace_id.is_none() || self.watches.hub.is_trusted();
        is_trusted && self.named.iter().all(|(_, watched)| is_current(watched))
    }
}

/// What a state means to a stream that has sent a version of a generation.
fn next_kind(state: &State, sent: u64, generation: u32) -> Option<MessageKind> {
    if state.generation != generation {
        return Some(snapshot(match state.reset {
            // It was deleted and is there again: the present state is what matters.
            Some(ResetReason::Deleted) if state.lead.version == 0 => SnapshotReason::Deleted,
            Some(ResetReason::Deleted) => SnapshotReason::Initial,
            _ => SnapshotReason::StoreLostWrites,
        }));
    }
    (state.lead.version > sent).then_some(MessageKind::Update(sent))
}

const fn snapshot(reason: SnapshotReason) -> MessageKind {
    MessageKind::Snapshot(reason as i32)
}

fn heartbeat_interval(asked: Option<prost_types::Duration>) -> Result<Duration, Status> {
    let Some(asked) = asked else { return Ok(HEARTBEAT) };
    // What is not normal, such as nanos beyond a second, is refused, though it could be read.
    let is_normal = (0..1_000_000_000).contains(&asked.nanos) && asked.seconds >= 0;
    let interval = Duration::try_from(asked).ok().filter(|interval| is_normal && HEARTBEATS.contains(interval));
    interval.ok_or_else(|| invalid("heartbeat_interval", "1 s to 5 min"))
}

// The three events have the same field numbers in both responses, so that their bytes serve both: a test says so.
fn heartbeat_bytes(version: u64) -> Bytes {
    use api::watch_lead_response::Event;
    framed(&api::WatchLeadResponse { event: Some(Event::Heartbeat(api::Heartbeat { version })) })
}

fn synced_bytes() -> Bytes {
    use api::watch_leads_response::Event;
    framed(&api::WatchLeadsResponse { event: Some(Event::Synced(api::Synced {})) })
}

fn encoded(state: &State, kind: MessageKind) -> Bytes {
    use api::watch_lead_response::Event;
    state.encoded(kind, || match kind {
        MessageKind::Snapshot(reason) => {
            let snapshot = LeadSnapshot { lead: Some(convert::lead(&state.lead)), reason };
            framed(&api::WatchLeadResponse { event: Some(Event::Snapshot(snapshot)) })
        }
        MessageKind::Update(since) => {
            let (changes, complete) = state.changes_after(since);
            update(state, changes.map(convert::change).collect(), complete)
        }
    })
}

fn update(state: &State, changes: Vec<api::LeadChange>, complete: bool) -> Bytes {
    use api::watch_lead_response::Event;
    let (changes, all_fit) = convert::fitting_changes(changes);
    let update = LeadUpdate { lead: Some(convert::lead(&state.lead)), changes, changes_truncated: !complete || !all_fit };
    framed(&api::WatchLeadResponse { event: Some(Event::Update(update)) })
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn both_watches_encode_the_shared_events_alike() {
        let lead = api::WatchLeadResponse { event: Some(api::watch_lead_response::Event::Update(LeadUpdate::default())) };
        let leads = api::WatchLeadsResponse { event: Some(api::watch_leads_response::Event::Update(LeadUpdate::default())) };
        assert_eq!(lead.encode_to_vec(), leads.encode_to_vec());
        let lead = api::WatchLeadResponse { event: Some(api::watch_lead_response::Event::Snapshot(LeadSnapshot::default())) };
        let leads = api::WatchLeadsResponse { event: Some(api::watch_leads_response::Event::Snapshot(LeadSnapshot::default())) };
        assert_eq!(lead.encode_to_vec(), leads.encode_to_vec());
        let leads = api::WatchLeadsResponse { event: Some(api::watch_leads_response::Event::Heartbeat(api::Heartbeat { version: 9 })) };
        assert_eq!(heartbeat_bytes(9)[5..], leads.encode_to_vec());
    }
}
