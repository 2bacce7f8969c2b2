//! The change feed: one stream per partition, read with blocking reads on a connection of its own.
//!
//! A position is kept per stream, so that a lost connection loses nothing. Where something may have been lost
//! all the same (the stream was trimmed past the position, or another Redis answers now), the feed says
//! [`FeedEvent::Gap`].

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisResult, Value};
use tokio::sync::mpsc;

use super::keys::Keys;
use super::reply;
use crate::store::{FeedEvent, FeedReceiver, StoreError};

/// How long one read waits for news: also how often the connection proves to be alive.
const BLOCK: Duration = Duration::from_secs(1);
/// Beyond this a read is lost, and the connection with it.
const READ_TIMEOUT: Duration = Duration::from_secs(3);
/// After news, how long the next read waits. A read that blocks on all streams costs Redis as much as several
/// events do, so under load news comes in bundles; after a silence it comes at once.
const PAUSE: Duration = Duration::from_millis(2);
/// Entries of one stream per read.
const ENTRIES: usize = 1000;
/// Waits between attempts to connect.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Events that wait for their receiver.
const CHANNEL: usize = 4096;

pub(super) fn start(client: Client, keys: Keys, feed_length: usize) -> FeedReceiver {
    let (events, receiver) = mpsc::channel(CHANNEL);
    let closed = events.clone();
    let reader = Reader { client, streams: (0..keys.partitions()).map(|partition| keys.feed(partition)).collect(), feed_length, events };
    tokio::spawn(async move {
        tokio::select! {
            () = closed.closed() => {}
            () = reader.run() => {}
        }
    });
    receiver
}

struct Reader {
    client: Client,
    streams: Vec<String>,
    feed_length: usize,
    events: mpsc::Sender<FeedEvent>,
}

/// The receiver is gone.
struct Closed;

impl Reader {
    async fn run(self) {
        let mut positions: Option<Vec<String>> = None;
        let mut wait = RETRY.0;
        loop {
            match self.follow(&mut positions, &mut wait).await {
                Ok(Closed) => return,
                Err(error) => {
                    tracing::warn!(%error, "the change feed lost Redis");
                    metrics::counter!("leadfold_feed_reconnects_total").increment(1);
                }
            }
            let jitter = rand::random_range(0.5..1.0);
            tokio::time::sleep(wait.mul_f64(jitter)).await;
            wait = (wait * 2).min(RETRY.1);
        }
    }

    /// Reads until something fails.
    async fn follow(&self, positions: &mut Option<Vec<String>>, wait: &mut Duration) -> Result<Closed, StoreError> {
        let fail = |error| reply::store_error(&error);
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(Duration::from_secs(1))).set_response_timeout(Some(READ_TIMEOUT));
        let mut connection = self.client.get_multiplexed_async_connection_with_config(&config).await.map_err(fail)?;
        let known = match positions {
            Some(known) => known,
            None => positions.insert(self.ends(&mut connection).await.map_err(fail)?),
        };
        // At the start a lead may have been read before the ends were; after an interruption this may be another
        // Redis, or one that lost what was told before.
        if self.tell(FeedEvent::Gap).await.is_err() {
            return Ok(Closed);
        }
        loop {
            let news = self.read(&mut connection, known).await.map_err(fail)?;
            *wait = RETRY.0;
            let quiet = news.is_empty();
            let mut overrun = false;
            for (stream, entries) in news {
                let Some(position) = self.streams.iter().position(|name| *name == stream).and_then(|index| known.get_mut(index)) else {
                    continue;
                };
                // The newest `feed_length` entries are always kept: less than that cannot hide a loss.
                if entries.len() >= self.feed_length.min(ENTRIES) {
                    overrun |= self.trimmed_past(&mut connection, &stream, position).await.map_err(fail)?;
                }
                for (id, event) in entries {
                    *position = id;
                    if self.tell(event).await.is_err() {
                        return Ok(Closed);
                    }
                }
            }
            if overrun && self.tell(FeedEvent::Gap).await.is_err() || self.tell(FeedEvent::Alive).await.is_err() {
                return Ok(Closed);
            }
            if !quiet {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    async fn tell(&self, event: FeedEvent) -> Result<(), Closed> {
        self.events.send(event).await.map_err(|_| Closed)
    }

    /// The present end of every stream.
    async fn ends(&self, connection: &mut MultiplexedConnection) -> RedisResult<Vec<String>> {
        let mut pipe = redis::pipe();
        for stream in &self.streams {
            pipe.cmd("XREVRANGE").arg(stream).arg("+").arg("-").arg("COUNT").arg(1);
        }
        let answers: Vec<Value> = pipe.query_async(connection).await?;
        let last = |value| {
            let entry = reply::array(value).ok()?.into_iter().next()?;
            let id = reply::array(entry).ok()?.into_iter().next()?;
            reply::text(id).ok()
        };
        Ok(answers.into_iter().map(|value| last(value).unwrap_or_else(|| "0-0".to_owned())).collect())
    }

    /// Whether the oldest entry that is left is newer than the position: then there may have been others.
    async fn trimmed_past(&self, connection: &mut MultiplexedConnection, stream: &str, position: &str) -> RedisResult<bool> {
        let mut command = redis::cmd("XRANGE");
        let first: Value = command.arg(stream).arg("-").arg("+").arg("COUNT").arg(1).query_async(connection).await?;
        let first = reply::array(first).ok().and_then(|mut entries| reply::array(entries.pop()?).ok()?.into_iter().next());
        let first = first.and_then(|id| reply::text(id).ok()).and_then(|id| parse_id(&id));
        Ok(first > parse_id(position))
    }

    /// Waits for news of any stream.
    async fn read(
        &self,
        connection: &mut MultiplexedConnection,
        positions: &[String],
    ) -> RedisResult<Vec<(String, Vec<(String, FeedEvent)>)>> {
        let mut command = redis::cmd("XREAD");
        command.arg("BLOCK").arg(BLOCK.as_millis() as u64).arg("COUNT").arg(ENTRIES).arg("STREAMS").arg(&self.streams).arg(positions);
        let answer: Value = command.query_async(connection).await?;
        let streams = match answer {
            Value::Nil => return Ok(Vec::new()),
            Value::Map(streams) => streams,
            Value::Array(streams) => streams.into_iter().filter_map(pair).collect(),
            _ => return Ok(Vec::new()),
        };
        let named = |(name, entries): (Value, Value)| {
            let entries = reply::array(entries).ok()?.into_iter().filter_map(pair);
            Some((reply::text(name).ok()?, entries.filter_map(|(id, fields)| Some((reply::text(id).ok()?, event(fields)?))).collect()))
        };
        Ok(streams.into_iter().filter_map(named).collect())
    }
}

fn pair(value: Value) -> Option<(Value, Value)> {
    let mut items = reply::array(value).ok()?.into_iter();
    Some((items.next()?, items.next()?))
}

fn parse_id(id: &str) -> Option<(u64, u64)> {
    let (millis, sequence) = id.split_once('-')?;
    Some((millis.parse().ok()?, sequence.parse().ok()?))
}

/// Reads an entry: `keys.rs` says what it holds.
fn event(fields: Value) -> Option<FeedEvent> {
    let (_, change) = reply::pairs(fields).ok()?.into_iter().next()?;
    let change = reply::text(change).ok()?;
    let mut parts = change.splitn(4, ' ');
    let (version, previous, length, rest) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let (workspace_id, lead_id) = rest.split_at_checked(length.parse().ok()?)?;
    Some(FeedEvent::Changed {
        lead_id: lead_id.strip_prefix(' ')?.to_owned(),
        workspace_id: workspace_id.to_owned(),
        version: version.parse().ok()?,
        previous: previous.parse().ok()?,
    })
}
