//! Watchers: they come, go, stall and resume until things settle, and then must learn how it ended.

use std::collections::HashMap;
use std::fmt;
use std::ops::AddAssign;
use std::sync::Arc;
use std::time::{Duration, Instant};

use leadfold::api::watch_lead_response::Event as LeadEvent;
use leadfold::api::watch_leads_request::Scope;
use leadfold::api::watch_leads_response::Event as LeadsEvent;
use leadfold::api::{LeadIds, WatchLeadRequest, WatchLeadsRequest};
use rand::Rng;
use rand::rngs::StdRng;
use tokio::sync::watch;
use tokio::time::{sleep, timeout_at};
use tonic::{Code, Status, Streaming};

use super::cluster::Instances;
use super::known::{Known, Truth};
use super::writers::Acknowledged;
use crate::support::PATIENCE;

/// How long a stream may take to the final state after everything is well.
const FINAL_WITHIN: Duration = Duration::from_secs(5);

/// How long ago something was acknowledged that a heartbeat must know of: it may trust a feed that was silent for
/// 2.5 s. The other is for when nothing has broken for a while.
const KNOWN_AFTER: Duration = Duration::from_secs(3);
const KNOWN_AFTER_IN_CALM: Duration = Duration::from_millis(1500);
/// A message for which a reader has waited so long was not in some buffer before.
const FRESH: Duration = Duration::from_millis(200);

/// Nothing is written or broken any more.
#[derive(Clone)]
pub struct Settled {
    pub at: Instant,
    pub truth: Arc<Truth>,
}

/// What watchers saw.
#[derive(Default)]
pub struct Observed {
    pub known: Vec<Known>,
    streams: usize,
    pub resumed: usize,
    messages: usize,
    heartbeats: usize,
    /// Heartbeats that were held against what had been acknowledged.
    pub proofs: usize,
    truncated: usize,
    pub stalls: usize,
    /// From the end of all trouble to the final state.
    slowest: Duration,
}

impl AddAssign for Observed {
    fn add_assign(&mut self, other: Self) {
        self.known.extend(other.known);
        self.streams += other.streams;
        self.resumed += other.resumed;
        self.messages += other.messages;
        self.heartbeats += other.heartbeats;
        self.proofs += other.proofs;
        self.truncated += other.truncated;
        self.stalls += other.stalls;
        self.slowest = self.slowest.max(other.slowest);
    }
}

impl fmt::Display for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { known, streams, resumed, messages, heartbeats, proofs, truncated, stalls, slowest } = self;
        write!(
            f,
            "{streams} streams, {resumed} of them resumed, {stalls} stalls; {messages} messages and {heartbeats} heartbeats ({proofs} fresh), "
        )?;
        write!(
            f,
            "{truncated} with changes truncated; {} histories of leads checked; the last stream was final after {slowest:?}",
            known.len()
        )
    }
}

pub struct Watcher {
    instances: Instances,
    rng: StdRng,
    settled: watch::Receiver<Option<Settled>>,
    acknowledged: Acknowledged,
    /// Neither leaves nor stalls.
    steady: bool,
    /// How long the last message was waited for.
    waited: Duration,
    observed: Observed,
}

/// One open stream, and how long it is to be read.
struct Open<T> {
    stream: Streaming<T>,
    instance: usize,
    run: u32,
    leave: Instant,
    /// Streams of this kind may end with `UNAVAILABLE` when Redis goes.
    may_end: bool,
}

enum Next<T> {
    Message(T),
    /// The stream has ended, or was left.
    End,
    /// Look whether the end is reached.
    Look,
}

impl Watcher {
    pub fn new(instances: Instances, rng: StdRng, settled: watch::Receiver<Option<Settled>>, acknowledged: Acknowledged) -> Self {
        Self { instances, rng, settled, acknowledged, steady: false, waited: Duration::ZERO, observed: Observed::default() }
    }

    /// One that stays: what it is not told of, no stream that others open makes the server notice.
    pub fn steady(self) -> Self {
        Self { steady: true, ..self }
    }

    /// Opens a stream somewhere, sooner or later.
    async fn open<T, C>(&mut self, may_end: bool, call: impl Fn(Client) -> C) -> Open<T>
    where
        C: Future<Output = Result<tonic::Response<Streaming<T>>, Status>>,
    {
        let began = Instant::now();
        loop {
            let (number, instance) = self.instances.any(&mut self.rng);
            let window = self.rng.random_ratio(1, 2).then(|| self.rng.random_range(500..4000));
            match call(instance.client(window)).await {
                Ok(response) => {
                    self.observed.streams += 1;
                    let long = if self.steady { 1_000_000_000 } else { self.rng.random_range(100..4000) };
                    let leave = Instant::now() + Duration::from_millis(long);
                    return Open { stream: response.into_inner(), instance: number, run: instance.run, leave, may_end };
                }
                Err(status) => {
                    let went = self.instances.get(number).run != instance.run || instance.run % 2 == 1;
                    assert!(went || status.code() == Code::Unavailable, "{status:?}");
                    assert!(began.elapsed() < PATIENCE, "no stream opens for {PATIENCE:?}: {status:?}");
                }
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn next<T>(&mut self, open: &mut Open<T>) -> Next<T> {
        let settled = self.settled.borrow_and_update().clone();
        if settled.is_none() && !self.steady && self.rng.random_ratio(1, 30) {
            self.observed.stalls += 1;
            let long = Duration::from_millis(self.rng.random_range(50..1500));
            let _ = tokio::time::timeout(long, self.settled.changed()).await;
            return Next::Look;
        }
        let began = Instant::now();
        let message = match &settled {
            // Heartbeats come every second: such silence means that it will not be told.
            Some(settled) => {
                let deadline = settled.at + FINAL_WITHIN + Duration::from_secs(3);
                timeout_at(deadline.into(), open.stream.message()).await.expect("a message or a heartbeat after things have settled")
            }
            None => tokio::select! {
                message = open.stream.message() => message,
                _ = self.settled.changed() => return Next::Look,
                () = tokio::time::sleep_until(open.leave.into()) => return Next::End,
            },
        };
        self.waited = began.elapsed();
        match message {
            Ok(Some(message)) => Next::Message(message),
            Ok(None) => panic!("a watch has ended without a status"),
            Err(status) => {
                let went = self.instances.get(open.instance).run != open.run || open.run % 2 == 1;
                assert!(went || open.may_end && status.code() == Code::Unavailable, "a stream was cut off: {status:?}");
                Next::End
            }
        }
    }

    /// After a heartbeat: nothing is missing that was acknowledged a while ago.
    fn prove<'a>(&mut self, known: impl Fn(&str) -> Option<&'a Known>, leads: &[String]) {
        self.observed.heartbeats += 1;
        if self.waited < FRESH {
            return;
        }
        self.observed.proofs += 1;
        let is_calm = self.instances.calm() > KNOWN_AFTER;
        let after = if is_calm { KNOWN_AFTER_IN_CALM } else { KNOWN_AFTER };
        for lead_id in leads {
            let version = known(lead_id).map_or(0, Known::version);
            let acknowledged = self.acknowledged.before(lead_id, after);
            assert!(version >= acknowledged, "a heartbeat at {version}, and {acknowledged} was acknowledged long before");
        }
    }

    /// Whether everything is known, checked and in time.
    fn is_final<'a>(&mut self, known: impl Fn(&str) -> Option<&'a Known>, of: &[String]) -> bool {
        let Some(Settled { at, truth }) = self.settled.borrow().clone() else { return false };
        let wanted = truth.leads().filter(|lead| of.contains(&lead.lead_id));
        for lead in wanted {
            let version = known(&lead.lead_id).map_or(0, Known::version);
            assert!(version <= lead.version, "{version} was told, and {} is the last", lead.version);
            if version < lead.version {
                assert!(at.elapsed() < FINAL_WITHIN, "still {version} instead of {} after {:?}", lead.version, at.elapsed());
                return false;
            }
            assert_eq!(known(&lead.lead_id).map(|known| &known.lead), Some(lead));
        }
        if self.observed.slowest.is_zero() {
            self.observed.slowest = at.elapsed();
        }
        true
    }

    /// `WatchLead`, resumed again and again.
    pub async fn follow_lead(mut self, lead_id: String) -> Observed {
        let of = [lead_id.clone()];
        let mut known = Known::default();
        loop {
            if self.rng.random_ratio(1, 6) {
                let known = std::mem::take(&mut known);
                self.observed.known.extend((!known.lead.lead_id.is_empty()).then_some(known));
            }
            let after_version = known.version();
            self.observed.resumed += usize::from(after_version > 0);
            let heartbeat_interval = Some(prost_types::Duration { seconds: 1, nanos: 0 });
            let request = WatchLeadRequest { lead_id: lead_id.clone(), after_version, heartbeat_interval };
            let mut open = self
                .open(false, |mut client| {
                    let request = request.clone();
                    async move { client.watch_lead(request).await }
                })
                .await;
            // Until the stream has said anything, a heartbeat may only repeat where it was to begin.
            let mut proven = false;
            loop {
                match self.next(&mut open).await {
                    Next::Message(message) => {
                        match message.event.expect("a message of a known kind") {
                            LeadEvent::Snapshot(snapshot) => {
                                assert!(!proven || known.version() == 0);
                                self.observed.messages += 1;
                                known.take(snapshot);
                            }
                            LeadEvent::Update(update) => {
                                self.observed.messages += 1;
                                self.observed.truncated += usize::from(update.changes_truncated);
                                known.update(update);
                            }
                            LeadEvent::Heartbeat(heartbeat) => {
                                assert_eq!(heartbeat.version, known.version());
                                self.prove(|_| Some(&known), &of);
                            }
                        }
                        proven = true;
                    }
                    Next::End => break,
                    Next::Look => {}
                }
                if proven && self.is_final(|_| Some(&known), &of) {
                    self.expect_heartbeat(&mut open, |message| match message.event {
                        Some(LeadEvent::Heartbeat(heartbeat)) => heartbeat.version == known.version(),
                        _ => false,
                    })
                    .await;
                    self.observed.known.push(known);
                    return self.observed;
                }
            }
        }
    }

    /// `WatchLeads`, begun again and again.
    pub async fn follow_leads(mut self, workspace_id: String, leads: Arc<[String]>, named: Option<Vec<String>>) -> Observed {
        loop {
            let skip_initial = !self.steady && self.settled.borrow().is_none() && self.rng.random_ratio(1, 4);
            let scope = match &named {
                Some(ids) => Scope::LeadIds(LeadIds { ids: ids.clone() }),
                None => Scope::WorkspaceId(workspace_id.clone()),
            };
            let heartbeat_interval = Some(prost_types::Duration { seconds: 1, nanos: 0 });
            let request = WatchLeadsRequest { scope: Some(scope), skip_initial, heartbeat_interval };
            let mut open = self
                .open(named.is_none(), |mut client| {
                    let request = request.clone();
                    async move { client.watch_leads(request).await }
                })
                .await;
            let mut known: HashMap<String, Known> = HashMap::new();
            let mut synced = false;
            loop {
                match self.next(&mut open).await {
                    Next::Message(message) => match message.event.expect("a message of a known kind") {
                        LeadsEvent::Snapshot(snapshot) => {
                            self.observed.messages += 1;
                            let lead_id = snapshot.lead.as_ref().expect("the lead").lead_id.clone();
                            assert!(!known.contains_key(&lead_id), "two snapshots of one lead");
                            known.entry(lead_id).or_default().take(snapshot);
                        }
                        LeadsEvent::Update(update) => {
                            assert!(synced, "updates come after all that is there at first");
                            self.observed.messages += 1;
                            self.observed.truncated += usize::from(update.changes_truncated);
                            let lead_id = update.lead.as_ref().expect("the lead").lead_id.clone();
                            assert!(skip_initial || known.contains_key(&lead_id), "an update of a lead that was not told of");
                            known.entry(lead_id).or_default().update(update);
                        }
                        LeadsEvent::Heartbeat(heartbeat) => {
                            let greatest = known.values().map(Known::version).max();
                            assert!(synced && (skip_initial || Some(heartbeat.version) == greatest), "{heartbeat:?}, {greatest:?}");
                            if !skip_initial {
                                self.prove(|lead_id| known.get(lead_id), named.as_deref().unwrap_or(&leads));
                            }
                        }
                        LeadsEvent::Synced(_) => assert!(!std::mem::replace(&mut synced, true), "synced twice"),
                    },
                    Next::End => break,
                    Next::Look => {}
                }
                // One that began with changes only need not have heard of every lead.
                if skip_initial && self.settled.borrow().is_some() {
                    break;
                }
                if synced && self.is_final(|lead_id| known.get(lead_id), named.as_deref().unwrap_or(&leads)) {
                    let greatest = known.values().map(Known::version).max().unwrap_or_default();
                    self.expect_heartbeat(&mut open, |message| match message.event {
                        Some(LeadsEvent::Heartbeat(heartbeat)) => heartbeat.version == greatest,
                        _ => false,
                    })
                    .await;
                    self.observed.known.extend(known.into_values());
                    return self.observed;
                }
            }
            self.observed.known.extend(known.into_values());
        }
    }

    /// After the final state nothing comes but heartbeats, and they do come.
    async fn expect_heartbeat<T: fmt::Debug>(&self, open: &mut Open<T>, is_expected: impl Fn(&T) -> bool) {
        let message = tokio::time::timeout(PATIENCE, open.stream.message()).await;
        let message = message.expect("heartbeats when all is well").expect("no error").expect("no end");
        assert!(is_expected(&message), "{message:?}");
    }
}

type Client = leadfold::api::lead_service_client::LeadServiceClient<tonic::transport::Channel>;
