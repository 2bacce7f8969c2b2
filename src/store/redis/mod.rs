//! The store in a Redis (7.0 or later) that any number of instances share.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::try_join_all;
use redis::{Cmd, TlsCertificates, Value};
use tokio::time::Instant;

use crate::config::RedisAddress;
use crate::fold::effect::{Effect, Extremes};
use crate::lead::{Activity, Change};
use crate::store::{ActivityPlace, FeedReceiver, ListQuery, MAX_MISSED, Outcome, Place, Read, Store, StoreError, TOMBSTONE, record};
use crate::time::Timestamp;
use apply::{Absolute, Lane, Limits, Reply, Seen};
use connection::Asking;
use keys::{Keys, LAYOUT};
use route::{Endpoint, Node, Purpose, Route};
use script::Scripts;

mod apply;
mod awaited;
mod cluster;
mod connection;
mod feed;
mod keys;
mod pulse;
mod read;
mod reply;
mod route;
mod script;
mod server;

pub use awaited::AwaitedRedisStore;
pub use route::slot;

/// How long a change is tried in all. Then it is spooled, and the webhook answers within 3 s.
const APPLY_DEADLINE: Duration = Duration::from_millis(1000);
/// The first wait between two tries; it doubles.
const FIRST_BACKOFF: Duration = Duration::from_millis(20);
/// A change whose ground shifts under it so often gives way: its lead is written to without a pause.
const MAX_CONFLICTS: usize = 100;

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
    route: Route,
    keys: Keys,
    limits: Limits,
    scripts: Arc<Scripts>,
    /// One server takes the changes of all partitions in one call; in a cluster a call is for one partition.
    lanes: Vec<Lane>,
}

impl RedisStore {
    /// Connects, and makes sure that this Redis can be relied upon.
    ///
    /// # Errors
    /// It cannot be reached, evicts keys when its memory is full, or holds leads in another number of partitions.
    pub async fn connect(url: &str, options: &Options) -> Result<Self, StoreError> {
        let address = RedisAddress::parse(url).map_err(|problem| StoreError::Corrupt(format!("--redis-url {problem}")))?;
        let keys = Keys::new(&options.key_prefix, options.partitions);
        let route = Route::find(address, options.tls.as_ref()).await.map_err(|error| reply::store_error(&error))?;
        for node in route.nodes() {
            refuse_eviction(&node).await?;
        }
        agree_on_layout(&mut route.to(slot(&keys.config()), Purpose::Read), &keys).await?;
        let scripts = Arc::new(Scripts::new());
        let limits = Limits { max_history: options.max_history, feed_length: options.feed_length };
        let slots = if route.is_cluster() { (0..keys.partitions()).map(|partition| keys.slot(partition)).collect() } else { vec![0] };
        let lanes = slots.into_iter().map(|slot| Lane::start(route.to(slot, Purpose::Write), Arc::clone(&scripts), limits)).collect();
        Ok(Self { route, keys, limits, scripts, lanes })
    }

    /// What reads of a lead are sent to.
    fn reads(&self, partition: u16) -> Endpoint {
        self.route.to(self.keys.slot(partition), Purpose::Read)
    }

    /// What changes of a lead go through.
    fn lane(&self, lead_id: &str) -> &Lane {
        &self.lanes[usize::from(self.keys.partition(lead_id)) % self.lanes.len()]
    }

    /// Tries a change once, in as many calls as it takes to know what it meets.
    async fn try_apply(&self, change: &Change) -> Result<Outcome, StoreError> {
        let mut seen = Seen::default();
        for _ in 0..MAX_CONFLICTS {
            let (old, details) = (seen.activity(change)?, seen.details(change)?);
            let effect = Effect::of(change, old.as_ref(), &details);
            let learns = change.workspace_id.is_some() && seen.workspace_id.is_empty();
            if effect.is_empty() && seen.version > 0 && !learns {
                return Ok(Outcome::Duplicate { version: seen.version });
            }
            let absolute = match effect.activity {
                Some((new, Some(old))) if Extremes::may_recede(old, new) || seen.first == Some(old.time) => {
                    Some(self.absolute(&change.lead_id, new, seen.first).await?)
                }
                _ => None,
            };
            match self.lane(&change.lead_id).apply(&self.keys, change, &effect, &seen, absolute.as_ref()).await? {
                Reply::Done(outcome) => return Ok(outcome),
                Reply::Seen(later) => seen.update(change, &effect, later),
            }
        }
        Err(StoreError::Unavailable("the lead changes too fast".to_owned()))
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

    async fn ask_every_node(&self, question: &Cmd) -> Result<(), StoreError> {
        let nodes = self.route.nodes();
        let answers = nodes.iter().map(|node| async {
            let answer = node.of(Purpose::Read).send(question, Asking::No).await;
            answer.map(drop).map_err(|error| {
                self.route.look_at(&error);
                reply::store_error(&error)
            })
        });
        try_join_all(answers).await.map(drop)
    }

    async fn call_read(&self, script: &script::Script, partition: u16, keys: &[&[u8]], args: &[&[u8]]) -> Result<Value, StoreError> {
        let answer = script.call(&mut self.reads(partition), keys, args).await;
        answer.map_err(|error| reply::store_error(&error))
    }
}

#[async_trait]
impl Store for RedisStore {
    async fn apply(&self, change: Change) -> Result<Outcome, StoreError> {
        let deadline = Instant::now() + APPLY_DEADLINE;
        let mut backoff = FIRST_BACKOFF;
        loop {
            let result = tokio::time::timeout_at(deadline, self.try_apply(&change)).await;
            let error = match result {
                Ok(Err(error @ StoreError::Unavailable(_))) => error,
                Ok(done) => return done,
                Err(_) => return Err(StoreError::Unavailable("Redis did not answer in time".to_owned())),
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

    async fn read(&self, lead_id: &str, since: Option<u64>) -> Result<Option<Read>, StoreError> {
        let since = since.map(|since| since.to_string()).unwrap_or_default();
        Ok(self.read_script(lead_id, &since, MAX_MISSED).await?.map(|answer| answer.read))
    }

    async fn version(&self, lead_id: &str) -> Result<Option<u64>, StoreError> {
        let mut command = redis::cmd("HGET");
        command.arg(self.keys.lead_key(lead_id)).arg("v");
        let mut reads = self.reads(self.keys.partition(lead_id));
        let version = self.scripts.version.measured(command.query_async(&mut reads)).await;
        let version: Option<String> = version.map_err(|error| reply::store_error(&error))?;
        version.filter(|version| version != DELETED).map(|version| reply::number(&version)).transpose()
    }

    async fn is_deleted(&self, lead_id: &str) -> Result<bool, StoreError> {
        let mut command = redis::cmd("HEXISTS");
        let mut reads = self.reads(self.keys.partition(lead_id));
        let exists = command.arg(self.keys.lead_key(lead_id)).arg("x").query_async(&mut reads).await;
        exists.map_err(|error| reply::store_error(&error))
    }

    async fn list(&self, query: &ListQuery) -> Result<Vec<Place>, StoreError> {
        // Behind the lesser of the cursor and `before`; an empty id stands before every lead of its time.
        let before = query.before.map(|time| Place { time, lead_id: String::new() });
        let behind = query.cursor.iter().chain(&before).min_by(|a, b| (a.time, &a.lead_id).cmp(&(b.time, &b.lead_id)));
        let time = behind.map(|place| place.time.micros().to_string()).unwrap_or_default();
        let lead_id = behind.map(|place| place.lead_id.as_str()).unwrap_or_default();
        let limit = query.limit.to_string();
        let partitions = (0..self.keys.partitions()).map(|partition| {
            let (time, limit) = (time.as_str(), limit.as_str());
            async move {
                let index = self.keys.index(partition, &query.workspace_id);
                let args = [time.as_bytes(), lead_id.as_bytes(), limit.as_bytes()];
                let value = self.call_read(&self.scripts.list, partition, &[index.as_bytes()], &args).await?;
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
        let keys = self.keys.lead(lead_id);
        let keys = [&keys.lead, &keys.history, &keys.timeline].map(|key| key.as_bytes());
        let time = behind.map(|place| place.time.micros().to_string()).unwrap_or_default();
        let behind = behind.map(|place| (place.time, record::pack(&place.action_id)));
        let id = behind.as_ref().map(|(_, id)| id.as_slice()).unwrap_or_default();
        let value = self
            .call_read(&self.scripts.activities, self.keys.partition(lead_id), &keys, &[time.as_bytes(), id, limit.to_string().as_bytes()])
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
        let keys = self.keys.lead(lead_id);
        let feed = self.keys.feed(keys.partition);
        let (now, tombstone, feed_length) =
            (Timestamp::now().millis().to_string(), TOMBSTONE.as_secs().to_string(), self.limits.feed_length.to_string());
        let mut workspace_id = String::new();
        loop {
            let index = self.keys.index(keys.partition, &workspace_id);
            let named = [&keys.lead, &keys.history, &keys.timeline, &keys.details, &index, &feed].map(|key| key.as_bytes());
            let args = [lead_id, &workspace_id, &now, &tombstone, &feed_length].map(str::as_bytes);
            match self.call_read(&self.scripts.delete, keys.partition, &named, &args).await? {
                Value::Int(deleted) => return Ok(deleted == 1),
                other => workspace_id = reply::text(other)?,
            }
        }
    }

    fn feed(&self) -> FeedReceiver {
        feed::start(&self.route, &self.keys, self.limits.feed_length)
    }

    fn partition(&self, lead_id: &str) -> u16 {
        self.keys.partition(lead_id)
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.ask_every_node(&redis::cmd("PING")).await
    }

    async fn check_writes(&self) -> Result<(), StoreError> {
        self.ask_every_node(redis::cmd("EVAL").arg(script::PROBE).arg(0)).await
    }

    fn name(&self) -> &'static str {
        "redis"
    }
}

/// A Redis that evicts would forget parts of a lead, and count what it forgot once more.
async fn refuse_eviction(node: &Node) -> Result<(), StoreError> {
    let info = node.of(Purpose::Read).send(redis::cmd("INFO").arg("memory"), Asking::No).await;
    let info = reply::text(info.map_err(|error| reply::store_error(&error))?)?;
    let policy = info.lines().find_map(|line| line.strip_prefix("maxmemory_policy:")).unwrap_or("noeviction").trim();
    if policy == "noeviction" {
        return Ok(());
    }
    Err(StoreError::Corrupt(format!("this Redis evicts keys when memory is full (maxmemory-policy {policy}): set it to noeviction")))
}

/// Leads are found by their partition, so every instance must count on the same number of them.
async fn agree_on_layout(connection: &mut Endpoint, keys: &Keys) -> Result<(), StoreError> {
    let ours = [("layout", LAYOUT.to_owned()), ("partitions", keys.partitions().to_string())];
    for (field, value) in ours {
        let mut pipe = redis::pipe();
        pipe.cmd("HSETNX").arg(keys.config()).arg(field).arg(&value).ignore();
        pipe.cmd("HGET").arg(keys.config()).arg(field);
        let (stored,): (String,) = pipe.query_async(connection).await.map_err(|error| reply::store_error(&error))?;
        if stored != value {
            return Err(StoreError::Corrupt(format!(
                "{} has {field} {stored}, this instance wants {value}: start it with that",
                keys.config()
            )));
        }
    }
    Ok(())
}
