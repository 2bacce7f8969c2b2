//! The store in a Redis (7.0 or later) that any number of instances share.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::try_join_all;
use redis::aio::ConnectionManagerConfig;
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{Client, IntoConnectionInfo, ProtocolVersion, RedisError, Value};
use tokio::time::Instant;

use crate::fold::effect::{Effect, Extremes};
use crate::lead::{Activity, Change};
use crate::store::{ActivityPlace, FeedReceiver, ListQuery, MAX_MISSED, Outcome, Place, Read, Store, StoreError, TOMBSTONE, record};
use crate::time::Timestamp;
use apply::{Absolute, Lane, Limits, Reply, Seen};
use connection::Connection;
use keys::{Keys, LAYOUT};
use script::Scripts;

mod apply;
mod awaited;
mod connection;
mod feed;
mod keys;
mod read;
mod reply;
mod script;

pub use awaited::AwaitedRedisStore;

/// How long one call may take; its fate is unknown after that.
const RESPONSE_TIMEOUT: Duration = Duration::from_millis(1000);
/// How long a change is tried in all. Then it is spooled, and the webhook answers within 3 s.
const APPLY_DEADLINE: Duration = Duration::from_millis(1000);
/// The first wait between two tries; it doubles.
const FIRST_BACKOFF: Duration = Duration::from_millis(20);
/// Commands of one connection that are under way at once.
const COMMANDS_IN_FLIGHT: usize = 1024;
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
}

/// Leads in a Redis.
#[derive(Debug)]
pub struct RedisStore {
    client: Client,
    keys: Keys,
    limits: Limits,
    scripts: Arc<Scripts>,
    lane: Lane,
    reads: Connection,
}

impl RedisStore {
    /// Connects, and makes sure that this Redis can be relied upon.
    ///
    /// # Errors
    /// It cannot be reached, evicts keys when its memory is full, or holds leads in another number of partitions.
    pub async fn connect(url: &str, options: &Options) -> Result<Self, StoreError> {
        let client = client(url).map_err(|error| reply::store_error(&error))?;
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(RESPONSE_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT))
            .set_min_delay(FIRST_BACKOFF)
            .set_max_delay(RESPONSE_TIMEOUT)
            .set_number_of_retries(2)
            .set_concurrency_limit(COMMANDS_IN_FLIGHT);
        let connect = || Connection::open(client.clone(), config.clone());
        let (writes, mut reads) = (connect().await, connect().await.map_err(|error| reply::store_error(&error))?);
        let writes = writes.map_err(|error| reply::store_error(&error))?;
        let keys = Keys::new(&options.key_prefix, options.partitions);
        refuse_eviction(&mut reads).await?;
        agree_on_layout(&mut reads, &keys).await?;
        let scripts = Arc::new(Scripts::new());
        let limits = Limits { max_history: options.max_history, feed_length: options.feed_length };
        let lane = Lane::start(writes, Arc::clone(&scripts), limits);
        Ok(Self { client, keys, limits, scripts, lane, reads })
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
            match self.lane.apply(&self.keys, change, &effect, &seen, absolute.as_ref()).await? {
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
        let value = self.call_read(&self.scripts.read, &keys, &[since.as_bytes(), MAX_MISSED.to_string().as_bytes()]).await?;
        read::lead(lead_id, value, most)
    }

    async fn call_read(&self, script: &script::Script, keys: &[&[u8]], args: &[&[u8]]) -> Result<Value, StoreError> {
        let answer = script.call(&mut self.reads.clone(), keys, args).await;
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
        let version: Option<String> = command
            .arg(self.keys.lead_key(lead_id))
            .arg("v")
            .query_async(&mut self.reads.clone())
            .await
            .map_err(|error| reply::store_error(&error))?;
        version.filter(|version| version != DELETED).map(|version| reply::number(&version)).transpose()
    }

    async fn is_deleted(&self, lead_id: &str) -> Result<bool, StoreError> {
        let mut command = redis::cmd("HEXISTS");
        let exists = command.arg(self.keys.lead_key(lead_id)).arg("x").query_async(&mut self.reads.clone()).await;
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
                let value = self.call_read(&self.scripts.list, &[index.as_bytes()], &args).await?;
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
        let value = self.call_read(&self.scripts.activities, &keys, &[time.as_bytes(), id, limit.to_string().as_bytes()]).await?;
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
            match self.call_read(&self.scripts.delete, &named, &args).await? {
                Value::Int(deleted) => return Ok(deleted == 1),
                other => workspace_id = reply::text(other)?,
            }
        }
    }

    fn feed(&self) -> FeedReceiver {
        feed::start(self.client.clone(), self.keys.clone(), self.limits.feed_length)
    }

    fn partition(&self, lead_id: &str) -> u16 {
        self.keys.partition(lead_id)
    }

    async fn check(&self) -> Result<(), StoreError> {
        let pong: Result<String, RedisError> = redis::cmd("PING").query_async(&mut self.reads.clone()).await;
        pong.map(drop).map_err(|error| reply::store_error(&error))
    }

    fn name(&self) -> &'static str {
        "redis"
    }
}

fn client(url: &str) -> Result<Client, RedisError> {
    let info = url.into_connection_info()?;
    // A peer that vanished is noticed within seconds, not when the kernel gives up.
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(5)).with_interval(Duration::from_secs(2)).with_retries(3);
    let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    #[cfg(target_os = "linux")]
    let tcp = tcp.set_user_timeout(Duration::from_secs(5));
    // RESP3 tells of a lost connection at once, not at the next command.
    let redis = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    Client::open(info.set_tcp_settings(tcp).set_redis_settings(redis))
}

/// A Redis that evicts would forget parts of a lead, and count what it forgot once more.
async fn refuse_eviction(connection: &mut Connection) -> Result<(), StoreError> {
    let info: String = redis::cmd("INFO").arg("memory").query_async(connection).await.map_err(|error| reply::store_error(&error))?;
    let policy = info.lines().find_map(|line| line.strip_prefix("maxmemory_policy:")).unwrap_or("noeviction").trim();
    if policy == "noeviction" {
        return Ok(());
    }
    Err(StoreError::Corrupt(format!("this Redis evicts keys when memory is full (maxmemory-policy {policy}): set it to noeviction")))
}

/// Leads are found by their partition, so every instance must count on the same number of them.
async fn agree_on_layout(connection: &mut Connection, keys: &Keys) -> Result<(), StoreError> {
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
