//! The store in a Redis (7.0 or later) that any number of instances share.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::future::{join_all, try_join_all};
use redis::{RedisResult, TlsCertificates, Value};
use tokio::time::{Instant, timeout};

use crate::config::RedisAddress;
use crate::fold::effect::{Effect, Extremes};
use crate::lead::{Activity, Addition, Change};
use crate::store::{
    ActivityPlace, Condition, FeedReceiver, ListQuery, MAX_MISSED, Outcome, Place, Read, Store, StoreError, TOMBSTONE, record,
};
use crate::time::{Clock, Timestamp};
use apply::{Absolute, Answer, Lane, Limits, Reply, Seen};
use handshake::{Expected, ServerId};
use keys::Keys;
use replay::{Acknowledged, Alive, Entry, ReplayBuffer};
use route::{Endpoint, Node, Purpose, Route};
use script::Scripts;

mod apply;
mod cluster;
mod connection;
mod feed;
mod handshake;
mod keys;
mod pulse;
mod read;
mod replay;
mod reply;
mod route;
mod script;
mod sentinel;
mod server;

pub use route::slot;

/// How long a change is tried in all. Then it is spooled, and the webhook answers within 3 s.
const APPLY_DEADLINE: Duration = Duration::from_millis(1000);
/// The first wait between two tries; it doubles.
const FIRST_BACKOFF: Duration = Duration::from_millis(20);
/// A change whose ground shifts under it so often gives way: its lead is written to without a pause.
const MAX_CONFLICTS: usize = 100;
/// After so many, a change that is not done in time is one that others were in the way of.
const CONTENDED: usize = 3;
/// How often it is looked whether a server was replaced that may have lost what it acknowledged.
const REPLAY_EVERY: Duration = Duration::from_millis(250);
/// How often a cluster is asked for its slots though nothing says that they have moved.
const RENEW_EVERY: Duration = Duration::from_secs(5);
/// Leads whose changes are applied again at the same time.
const REPLAYS: usize = 64;
/// How long it is tried to reach a Redis at the start, and the wait between two tries: nodes and sentinels take a moment
/// to be found.
const FIRST_CONTACT: Duration = Duration::from_millis(500);
const BETWEEN_FIRST_TRIES: Duration = Duration::from_millis(100);

/// How long a server may take to answer a probe: less than whoever asks for the health of all of them waits.
const PROBE_TIMEOUT: Duration = Duration::from_millis(800);

/// Stands in the place of the version of a lead that was deleted.
const DELETED: &str = "x";

/// What the store is told at the start.
#[derive(Clone, Debug)]
pub struct Options {
    /// Separates deployments that share a Redis.
    pub key_prefix: String,
    /// In how many parts leads are kept; fixed once data is there.
    pub partitions: u16,
    /// Activities kept of one lead, 256 at least.
    pub max_history: usize,
    /// Entries kept of each partition's feed.
    pub feed_length: usize,
    /// What a `rediss` server is checked against, and what it is shown.
    pub tls: Option<TlsCertificates>,
}

/// Leads in a Redis.
#[derive(Debug)]
pub struct RedisStore {
    inner: Inner,
    /// Its end is the end of what works in the background.
    _alive: Arc<()>,
}

/// What the store and its work in the background share.
#[derive(Clone, Debug)]
struct Inner {
    route: Route,
    keys: Keys,
    limits: Limits,
    scripts: Arc<Scripts>,
    clock: Clock,
    acknowledged: Arc<ReplayBuffer>,
    /// One server takes the changes of all partitions in one call; in a cluster a call is for one partition.
    lanes: Arc<[Lane]>,
}

impl RedisStore {
    /// A store that connects when it is used. Needs a tokio runtime.
    ///
    /// # Errors
    /// The address is malformed.
    pub fn open(url: &str, options: &Options) -> Result<Self, StoreError> {
        let address = RedisAddress::parse(url).map_err(|problem| StoreError::Misconfigured(format!("--redis-url {problem}")))?;
        let keys = Keys::new(&options.key_prefix, options.partitions);
        let clock = Clock::local();
        let expected = Expected::new(keys.clone(), clock.clone());
        let route = Route::new(address, options.tls.as_ref(), &expected).map_err(|error| reply::store_error("--redis-url", &error))?;
        let scripts = Arc::new(Scripts::new());
        let limits = Limits { max_history: options.max_history, feed_length: options.feed_length };
        let slots = if route.is_cluster() { (0..keys.partitions()).map(|partition| keys.slot(partition)).collect() } else { vec![0] };
        let lanes = slots.into_iter().map(|slot| Lane::start(route.to(slot, Purpose::Write), Arc::clone(&scripts), limits)).collect();
        let inner = Inner { route, keys, limits, scripts, clock, acknowledged: Arc::default(), lanes };
        let alive = Arc::new(());
        tokio::spawn(inner.clone().replay_what_is_lost(Arc::downgrade(&alive)));
        Ok(Self { inner, _alive: alive })
    }

    /// Opens the store and makes sure that it can be used, or some part of it.
    ///
    /// # Errors
    /// No server can be reached and relied upon: those that are there evict keys, are of another kind or version, or hold leads in
    /// another number of partitions.
    pub async fn connect(url: &str, options: &Options) -> Result<Self, StoreError> {
        let store = Self::open(url, options)?;
        store.first_contact().await?;
        Ok(store)
    }

    /// Tries whether the store can be used, or some part of it.
    ///
    /// # Errors
    /// As [`RedisStore::connect`].
    pub async fn first_contact(&self) -> Result<(), StoreError> {
        let began = Instant::now();
        loop {
            let condition = self.check_writes().await;
            // One of several that cannot be used keeps nobody from the others.
            if condition.is_usable() {
                return Ok(());
            }
            let mut errors: Vec<StoreError> = condition.failing.into_iter().map(|(_, error)| error).collect();
            errors.sort_by_key(|error| !matches!(error, StoreError::Misconfigured(_)));
            let error = errors.into_iter().next().unwrap_or_else(|| StoreError::Unavailable("no server is known".to_owned()));
            if matches!(error, StoreError::Misconfigured(_)) || began.elapsed() >= FIRST_CONTACT {
                return Err(error);
            }
            tokio::time::sleep(BETWEEN_FIRST_TRIES).await;
        }
    }
}

impl Inner {
    /// What reads of a lead are sent to.
    fn reads(&self, partition: u16) -> Endpoint {
        self.route.to(self.keys.slot(partition), Purpose::Read)
    }

    /// What changes of a lead go through.
    fn lane(&self, lead_id: &str) -> &Lane {
        &self.lanes[usize::from(self.keys.partition(lead_id)) % self.lanes.len()]
    }

    /// Tries a change once, in as many calls as it takes to know what it meets.
    async fn try_apply(&self, change: &Change, conflicts: &mut usize) -> Result<(Outcome, Option<ServerId>), StoreError> {
        let mut seen = Seen::default();
        let mut seen_at = None;
        *conflicts = 0;
        while *conflicts < MAX_CONFLICTS {
            let (old, details) = (seen.activity(change)?, seen.details(change)?);
            let effect = Effect::of(change, old.as_ref(), &details);
            let learns = change.workspace_id.is_some() && seen.workspace_id.is_empty();
            if effect.is_empty() && seen.version > 0 && !learns {
                return Ok((Outcome::Duplicate { version: seen.version }, seen_at));
            }
            let absolute = match effect.activity {
                Some((new, Some(old))) if Extremes::may_recede(old, new) || seen.first == Some(old.time) => {
                    Some(self.absolute(&change.lead_id, new, seen.first).await?)
                }
                _ => None,
            };
            let now = self.clock.now().millis();
            let Answer { reply, server_id } =
                self.lane(&change.lead_id).apply(&self.keys, now, change, &effect, &seen, absolute.as_ref()).await?;
            match reply {
                Reply::Done(outcome) => return Ok((outcome, Some(server_id))),
                Reply::Seen(later) => seen.update(change, &effect, later),
            }
            seen_at = Some(server_id);
            *conflicts += 1;
        }
        Err(StoreError::Contended)
    }

    /// The extremes of a lead's whole history, with `new` in the place of the activity of its id.
    async fn absolute(&self, lead_id: &str, new: &Activity, first: Option<Timestamp>) -> Result<Absolute, StoreError> {
        let Some(answer) = self.read_script(lead_id, "-1", usize::MAX).await? else {
            return Err(StoreError::Unavailable("the lead was deleted meanwhile".to_owned()));
        };
        let mut extremes = Extremes::default();
        for activity in answer.read.missed.iter().filter(|activity| activity.action_id != new.action_id).chain([new]) {
            extremes.add(activity);
        }
        if answer.floor.is_some() {
            extremes.first = extremes.first.min(first).or(extremes.first);
        }
        Ok(Absolute { version: answer.read.lead.version, extremes })
    }

    async fn read_script(&self, lead_id: &str, since: &str, most: usize) -> Result<Option<read::Answer>, StoreError> {
        let keys = self.keys.lead(lead_id);
        let keys = [&keys.lead, &keys.history, &keys.timeline, &keys.details].map(|key| key.as_bytes());
        let value = self
            .call_read(&self.scripts.read, self.keys.partition(lead_id), &keys, &[since.as_bytes(), MAX_MISSED.to_string().as_bytes()])
            .await?;
        read::lead(lead_id, value, most)
    }

    async fn call_read(&self, script: &script::Script, partition: u16, keys: &[&[u8]], args: &[&[u8]]) -> Result<Value, StoreError> {
        let mut reads = self.reads(partition);
        let answer = script.call(&mut reads, keys, args).await;
        answer.map_err(|error| reads.explain(&error))
    }

    /// The servers that have partitions, each with the partitions that it has. Where nobody knows who has one, why.
    fn servers(&self) -> Vec<(RedisResult<Arc<Node>>, Vec<u16>)> {
        if !self.route.is_cluster() {
            return vec![(self.route.owner(0), vec![0])];
        }
        let mut servers: Vec<(RedisResult<Arc<Node>>, Vec<u16>)> = Vec::new();
        let mut known: HashMap<Option<Arc<str>>, usize> = HashMap::new();
        for partition in 0..self.keys.partitions() {
            let owner = self.route.owner(self.keys.slot(partition));
            let key = owner.as_ref().ok().map(|node| node.server().key());
            let at = *known.entry(key).or_insert_with(|| {
                servers.push((owner, Vec::new()));
                servers.len() - 1
            });
            servers[at].1.push(partition);
        }
        servers
    }

    /// Asks something of one partition of each server.
    async fn ask_each<F: Future<Output = Result<(), StoreError>>>(&self, ask: impl Fn(u16) -> F) -> Condition {
        let servers = self.servers();
        let asked = servers.iter().map(async |(node, partitions)| match node {
            Ok(node) => {
                let asked = timeout(PROBE_TIMEOUT, ask(partitions.first().copied().unwrap_or(0))).await;
                let late = |_| Err(StoreError::Unavailable(format!("Redis at {}: it did not answer in time", node.name())));
                asked.unwrap_or_else(late).map_err(|error| (node.name(), error))
            }
            Err(error) => {
                self.route.look_at(error);
                Err(("the cluster".to_owned(), reply::store_error("the cluster", error)))
            }
        });
        let failing = join_all(asked).await.into_iter().filter_map(Result::err).collect();
        Condition { servers: servers.len(), failing }
    }

    /// The key that tells the layout of a partition.
    fn config_key(&self, partition: u16) -> String {
        if self.route.is_cluster() { self.keys.config_of(partition) } else { self.keys.config() }
    }

    async fn probe_reads(&self, partition: u16) -> Result<(), StoreError> {
        let mut reads = self.reads(partition);
        let key = self.config_key(partition);
        let read = self.scripts.probe_reads.call(&mut reads, &[key.as_bytes()], &[]).await;
        read.map(drop).map_err(|error| reads.explain(&error))
    }

    async fn probe_writes(&self, partition: u16) -> Result<(), StoreError> {
        let slot = self.keys.slot(partition);
        let mut writes = self.route.to(slot, Purpose::Write);
        let asked = Instant::now();
        let time = self.scripts.probe.call(&mut writes, &[self.keys.feed(partition).as_bytes()], &[]).await;
        let time = time.and_then(|time| Ok(redis::from_redis_value::<(i64, i64)>(time)?));
        let (seconds, micros) = time.map_err(|error| writes.explain(&error))?;
        if self.route.owner(slot).is_ok_and(|node| node.server().keeps_the_time()) {
            self.clock.learn(Timestamp::from_micros(seconds.saturating_mul(1_000_000).saturating_add(micros)), asked.elapsed());
        }
        Ok(())
    }

    /// Applies a change: again and again until there is an answer, for a second at most.
    async fn apply(&self, change: Change) -> Result<Outcome, StoreError> {
        let deadline = Instant::now() + APPLY_DEADLINE;
        let mut backoff = FIRST_BACKOFF;
        let mut conflicts = 0;
        loop {
            let result = tokio::time::timeout_at(deadline, self.try_apply(&change, &mut conflicts)).await;
            let error = match result {
                Ok(Err(error @ StoreError::Unavailable(_))) => error,
                Ok(Ok((outcome, server))) => {
                    self.remember(change, &outcome, server);
                    return Ok(outcome);
                }
                Ok(Err(error)) => return Err(error),
                Err(_) if conflicts > CONTENDED => return Err(StoreError::Contended),
                Err(_) => {
                    let server = self.server_name(self.keys.partition(&change.lead_id));
                    return Err(StoreError::Unavailable(format!("Redis at {server}: it did not answer in time")));
                }
            };
            // An unknown outcome is tried again too: a change that was made already is a duplicate now.
            let wait = backoff.mul_f64(rand::random_range(0.5..1.0));
            if Instant::now() + wait >= deadline {
                return Err(error);
            }
            tokio::time::sleep(wait).await;
            backoff *= 2;
        }
    }

    /// Keeps what is going to be acknowledged, in case its server loses it. A duplicate is acknowledged too.
    fn remember(&self, change: Change, outcome: &Outcome, server: Option<ServerId>) {
        let (Outcome::Applied { version } | Outcome::Duplicate { version }, Some(server)) = (outcome, server) else { return };
        let partition = self.keys.partition(&change.lead_id);
        let what = Acknowledged::Change { change: Box::new(change), version: *version };
        self.acknowledged.push(what, partition, server);
    }

    fn server_name(&self, partition: u16) -> String {
        self.route.owner(self.keys.slot(partition)).map_or_else(|_| "an unknown address".to_owned(), |node| node.name())
    }

    /// A deletion that is repeated leaves a tombstone in any case.
    async fn delete(&self, lead_id: &str, is_repeated: bool) -> Result<bool, StoreError> {
        let keys = self.keys.lead(lead_id);
        let repeated = if is_repeated { "1" } else { "0" };
        let feed = self.keys.feed(keys.partition);
        let (now, tombstone, feed_length) =
            (self.clock.now().millis().to_string(), TOMBSTONE.as_secs().to_string(), self.limits.feed_length.to_string());
        let mut writes = self.route.to(self.keys.slot(keys.partition), Purpose::Write);
        let mut workspace_id = String::new();
        loop {
            let index = self.keys.index(keys.partition, &workspace_id);
            let named = [&keys.lead, &keys.history, &keys.timeline, &keys.details, &index, &feed].map(|key| key.as_bytes());
            let args = [lead_id, &workspace_id, &now, &tombstone, &feed_length, repeated].map(str::as_bytes);
            let answer = self.scripts.delete.call(&mut writes, &named, &args).await;
            match answer.map_err(|error| writes.explain(&error))? {
                Value::Int(deleted) => {
                    if let Some(server) = writes.answered_by() {
                        self.acknowledged.push(Acknowledged::Deletion(lead_id.to_owned()), keys.partition, server);
                    }
                    return Ok(deleted == 1);
                }
                other => workspace_id = reply::text(other)?,
            }
        }
    }

    /// Applies again what a server acknowledged that was replaced since, until the store is dropped.
    async fn replay_what_is_lost(self, store: Weak<()>) {
        let mut ticks = tokio::time::interval(REPLAY_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut renewed = Instant::now();
        while store.strong_count() > 0 {
            ticks.tick().await;
            if renewed.elapsed() >= RENEW_EVERY {
                renewed = Instant::now();
                self.route.renew();
            }
            let alive = self.alive(&self.acknowledged.partitions()).await;
            let lost = self.acknowledged.take_lost(|partition| alive.get(&partition).cloned());
            if !lost.is_empty() {
                self.replay(lost).await;
            }
        }
    }

    /// Which servers have these partitions now, and when each last proved to be alive.
    async fn alive(&self, partitions: &[u16]) -> HashMap<u16, Alive> {
        if partitions.is_empty() {
            return HashMap::new();
        }
        let single = !self.route.is_cluster();
        let servers = self.servers().into_iter().filter_map(|(node, of)| {
            let of: Vec<u16> = if single { partitions.to_vec() } else { of.into_iter().filter(|one| partitions.contains(one)).collect() };
            Some((node.ok()?, of)).filter(|(_, of)| !of.is_empty())
        });
        let asked = servers.map(async |(node, of)| {
            // Connects where there is no connection: a server that was replaced is found without an event to apply.
            let asked = std::time::Instant::now();
            let server = timeout(APPLY_DEADLINE, node.of(Purpose::Write).server()).await;
            server.ok().and_then(Result::ok).map(|id| (id, asked, of))
        });
        let mut alive = HashMap::new();
        for (id, answered, of) in join_all(asked).await.into_iter().flatten() {
            alive.extend(of.into_iter().map(|partition| (partition, (Arc::clone(&id), answered))));
        }
        alive
    }

    /// Applies again what may be lost: in its order within a lead, leads side by side. What cannot be applied now is tried
    /// again the next time.
    async fn replay(&self, lost: Vec<Entry>) {
        let count = lost.len();
        let mut leads: Vec<Vec<Entry>> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        for entry in lost {
            let at = *places.entry(entry.lead_id().to_owned()).or_insert_with(|| {
                leads.push(Vec::new());
                leads.len() - 1
            });
            leads[at].push(entry);
        }
        let replayed = futures::stream::iter(leads).map(|entries| self.replay_lead(entries)).buffer_unordered(REPLAYS);
        let (left, recovered) = replayed
            .fold((Vec::new(), 0), async |(mut left, recovered), (rest, more)| {
                left.extend(rest);
                (left, recovered + more)
            })
            .await;
        tracing::warn!(
            applied = count - left.len(),
            recovered,
            left = left.len(),
            "a Redis was replaced or restarted: what it had acknowledged in its last seconds is applied again"
        );
        self.acknowledged.put_back(left);
    }

    /// Says what is left, and how many were lost indeed.
    async fn replay_lead(&self, entries: Vec<Entry>) -> (Vec<Entry>, usize) {
        let mut recovered = 0;
        let mut replayed = entries.iter().flat_map(|entry| entry.replayed.iter().copied()).collect();
        let mut entries = entries.into_iter();
        while let Some(mut entry) = entries.next() {
            let outcome = match &entry.what {
                Acknowledged::Change { change, version } => self.replay_change(change, *version, &mut replayed).await,
                Acknowledged::Deletion(lead_id) => self.delete(lead_id, true).await,
            };
            match outcome {
                Ok(was_lost) => {
                    recovered += usize::from(was_lost);
                    metrics::counter!("leadfold_replayed_changes_total", "lost" => if was_lost { "yes" } else { "no" }).increment(1);
                }
                Err(error @ (StoreError::OtherWorkspace | StoreError::Corrupt(_))) => {
                    tracing::error!(%error, "what was acknowledged cannot be applied again, and is lost");
                }
                Err(error) => {
                    tracing::debug!(%error, "what was acknowledged cannot be applied again yet");
                    entry.replayed = replayed.into_iter().collect();
                    return (std::iter::once(entry).chain(entries).collect(), recovered);
                }
            }
            self.acknowledged.done(&entry);
        }
        (Vec::new(), recovered)
    }

    /// Says whether it was lost. `replayed` has the versions that came of applying earlier changes of the lead again.
    async fn replay_change(&self, change: &Change, version: u64, replayed: &mut HashSet<u64>) -> Result<bool, StoreError> {
        let mut change = change.clone();
        let is_patch = |addition: &Addition| matches!(addition, Addition::SetProfile(..));
        if change.additions.iter().any(is_patch) {
            // The last patch stands: one of another instance, or one that came since, must not be undone.
            let read = self.read(&change.lead_id, None).await?;
            let profile = read.map(|read| read.lead.profile).unwrap_or_default();
            change.additions.retain(|addition| match addition {
                Addition::SetProfile(key, _) => {
                    profile.get(key).is_none_or(|field| field.version <= version || replayed.contains(&field.version))
                }
                _ => true,
            });
        }
        let Outcome::Applied { version } = self.apply(change).await? else { return Ok(false) };
        replayed.insert(version);
        Ok(true)
    }

    async fn read(&self, lead_id: &str, since: Option<u64>) -> Result<Option<Read>, StoreError> {
        let since = since.map(|since| since.to_string()).unwrap_or_default();
        Ok(self.read_script(lead_id, &since, MAX_MISSED).await?.map(|answer| answer.read))
    }
}

#[async_trait]
impl Store for RedisStore {
    async fn apply(&self, change: Change) -> Result<Outcome, StoreError> {
        self.inner.apply(change).await
    }

    async fn read(&self, lead_id: &str, since: Option<u64>) -> Result<Option<Read>, StoreError> {
        self.inner.read(lead_id, since).await
    }

    async fn version(&self, lead_id: &str) -> Result<Option<u64>, StoreError> {
        let mut command = redis::cmd("HGET");
        command.arg(self.inner.keys.lead_key(lead_id)).arg("v");
        let mut reads = self.inner.reads(self.inner.keys.partition(lead_id));
        let version = self.inner.scripts.version.measured(command.query_async(&mut reads)).await;
        let version: Option<String> = version.map_err(|error| reads.explain(&error))?;
        version.filter(|version| version != DELETED).map(|version| reply::number(&version)).transpose()
    }

    async fn is_deleted(&self, lead_id: &str) -> Result<bool, StoreError> {
        let mut command = redis::cmd("HEXISTS");
        let mut reads = self.inner.reads(self.inner.keys.partition(lead_id));
        let exists = command.arg(self.inner.keys.lead_key(lead_id)).arg("x").query_async(&mut reads).await;
        exists.map_err(|error| reads.explain(&error))
    }

    async fn list(&self, query: &ListQuery) -> Result<Vec<Place>, StoreError> {
        // Behind the lesser of the cursor and `before`; an empty id stands before every lead of its time.
        let before = query.before.map(|time| Place { time, lead_id: String::new() });
        let behind = query.cursor.iter().chain(&before).min_by(|a, b| (a.time, &a.lead_id).cmp(&(b.time, &b.lead_id)));
        let time = behind.map(|place| place.time.micros().to_string()).unwrap_or_default();
        let lead_id = behind.map(|place| place.lead_id.as_str()).unwrap_or_default();
        let limit = query.limit.to_string();
        let partitions = (0..self.inner.keys.partitions()).map(|partition| {
            let (time, limit) = (time.as_str(), limit.as_str());
            async move {
                let index = self.inner.keys.index(partition, &query.workspace_id);
                let args = [time.as_bytes(), lead_id.as_bytes(), limit.as_bytes()];
                let value = self.inner.call_read(&self.inner.scripts.list, partition, &[index.as_bytes()], &args).await?;
                let place = |(lead_id, time): (Value, Value)| {
                    let micros: f64 = match time {
                        Value::Double(score) => score,
                        other => reply::number(&reply::text(other)?)?,
                    };
                    Ok::<_, StoreError>(Place { time: Timestamp::from_micros(micros as i64), lead_id: reply::text(lead_id)? })
                };
                reply::pairs(value)?.into_iter().map(place).collect::<Result<Vec<_>, _>>()
            }
        });
        let mut places: Vec<Place> = try_join_all(partitions).await?.into_iter().flatten().collect();
        let least = match (query.after, query.before) {
            (Some(after), _) => after,
            (None, Some(_)) => Timestamp::default(),
            (None, None) => Timestamp::from_micros(-1),
        };
        places.retain(|place| place.time > least);
        places.sort_by(|a, b| (b.time, &b.lead_id).cmp(&(a.time, &a.lead_id)));
        places.truncate(query.limit);
        Ok(places)
    }

    async fn activities(&self, lead_id: &str, behind: Option<&ActivityPlace>, limit: usize) -> Result<Option<Vec<Activity>>, StoreError> {
        let keys = self.inner.keys.lead(lead_id);
        let keys = [&keys.lead, &keys.history, &keys.timeline].map(|key| key.as_bytes());
        let time = behind.map(|place| place.time.micros().to_string()).unwrap_or_default();
        let behind = behind.map(|place| (place.time, record::pack(&place.action_id)));
        let id = behind.as_ref().map(|(_, id)| id.as_slice()).unwrap_or_default();
        let value = self
            .inner
            .call_read(
                &self.inner.scripts.activities,
                self.inner.keys.partition(lead_id),
                &keys,
                &[time.as_bytes(), id, limit.to_string().as_bytes()],
            )
            .await?;
        let mut parts = reply::array(value)?.into_iter();
        let Some(whole) = parts.next() else { return Ok(None) };
        let mut activities = read::activities(parts.next().unwrap_or(Value::Nil))?;
        if whole == Value::Int(1) {
            let mut placed: Vec<_> =
                activities.into_iter().map(|activity| ((activity.time, record::pack(&activity.action_id)), activity)).collect();
            placed.retain(|(place, _)| behind.as_ref().is_none_or(|behind| place < behind));
            placed.sort_by(|(a, _), (b, _)| b.cmp(a));
            activities = placed.into_iter().take(limit).map(|(_, activity)| activity).collect();
        }
        Ok(Some(activities))
    }

    async fn delete(&self, lead_id: &str) -> Result<bool, StoreError> {
        self.inner.delete(lead_id, false).await
    }

    fn feed(&self) -> FeedReceiver {
        feed::start(&self.inner.route, &self.inner.keys, self.inner.limits.feed_length)
    }

    fn feed_parts(&self) -> u16 {
        if self.inner.route.is_cluster() { self.inner.keys.partitions() } else { 1 }
    }

    fn feed_part(&self, lead_id: &str) -> u16 {
        if self.inner.route.is_cluster() { self.inner.keys.partition(lead_id) } else { 0 }
    }

    fn partition(&self, lead_id: &str) -> u16 {
        self.inner.keys.partition(lead_id)
    }

    fn server(&self, partition: u16) -> Arc<str> {
        match self.inner.route.owner(self.inner.keys.slot(partition)) {
            Ok(node) => node.server().key(),
            Err(_) => Arc::from("the cluster"),
        }
    }

    async fn probe(&self, partition: u16) -> Result<(), StoreError> {
        self.inner.probe_writes(partition).await
    }

    async fn check(&self) -> Condition {
        self.inner.ask_each(|partition| self.inner.probe_reads(partition)).await
    }

    async fn check_writes(&self) -> Condition {
        self.inner.ask_each(|partition| self.inner.probe_writes(partition)).await
    }

    fn clock(&self) -> &Clock {
        &self.inner.clock
    }

    async fn settled(&self) {
        self.inner.acknowledged.settled().await;
    }

    async fn take_unsettled(&self) -> Vec<Change> {
        let acknowledged = &self.inner.acknowledged;
        let alive = self.inner.alive(&acknowledged.partitions()).await;
        let unsettled = acknowledged.take_unsettled(|partition| alive.get(&partition).cloned());
        let changes = unsettled.into_iter().filter_map(|what| match what {
            Acknowledged::Change { change, .. } => Some(*change),
            Acknowledged::Deletion(lead_id) => {
                tracing::error!(lead_id, "a lead was deleted just before its Redis went away: if it is still there then, delete it again");
                None
            }
        });
        changes.collect()
    }

    fn name(&self) -> &'static str {
        "redis"
    }
}
