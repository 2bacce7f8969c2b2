//! The change feed: one stream per partition, read with blocking reads on connections of their own.
//!
//! One server is read with one connection. A cluster answers a read of one slot only, so there each partition has a
//! reader, which follows its slot. A position is kept per stream, so that a lost connection loses nothing. Where
//! something may have been lost all the same (the stream was trimmed past the position, or another Redis answers now),
//! the feed says [`FeedEvent::Gap`]. Each reader proves by itself that it has told everything: a shard that is away
//! casts no doubt on the others.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{AsyncConnectionConfig, RedisResult, Value};
use tokio::sync::mpsc;

use super::connection::{Asking, send};
use super::keys::Keys;
use super::pulse::Pulse;
use super::reply;
use super::route::{Node, RESPONSE_TIMEOUT, Route};
use super::server::{Opened, refuse_replica};
use crate::store::{FeedEvent, FeedReceiver};

/// How long one read waits for news: also how often the connection proves to be alive. Many readers have to do so
/// one after the other before the whole feed has.
const BLOCK: Duration = Duration::from_secs(1);
const BLOCK_OF_MANY: Duration = Duration::from_millis(500);
/// Beyond this a read is lost, and the connection with it.
const READ_TIMEOUT: Duration = Duration::from_secs(2);
/// After news, how long the next read waits. A read that blocks on all streams costs Redis as much as several
/// events do, so under load news comes in bundles; after a silence it comes at once.
const PAUSE: Duration = Duration::from_millis(2);
/// Entries of one stream per read.
const ENTRIES: usize = 1000;
/// Waits between attempts to connect.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Events that wait for their receiver.
const CHANNEL: usize = 4096;

pub(super) fn start(route: &Route, keys: &Keys, feed_length: usize) -> FeedReceiver {
    let (events, receiver) = mpsc::channel(CHANNEL);
    let partitions: Vec<u16> = (0..keys.partitions()).collect();
    let shares: Vec<&[u16]> = if route.is_cluster() { partitions.chunks(1).collect() } else { vec![&partitions] };
    let pulse = Arc::new(Pulse::new(events.clone()));
    for (part, share) in (0..).zip(shares) {
        let reader = Reader {
            part,
            route: route.clone(),
            slot: share.first().map_or(0, |partition| keys.slot(*partition)),
            streams: share.iter().map(|partition| keys.feed(*partition)).collect(),
            feed_length,
            block: if route.is_cluster() { BLOCK_OF_MANY } else { BLOCK },
            pulse: Arc::clone(&pulse),
            events: events.clone(),
        };
        let closed = events.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = closed.closed() => {}
                () = reader.run() => {}
            }
        });
    }
    receiver
}

struct Reader {
    /// Of the feed.
    part: u16,
    route: Route,
    /// Of all its streams, in a cluster.
    slot: u16,
    streams: Vec<String>,
    feed_length: usize,
    block: Duration,
    pulse: Arc<Pulse>,
    events: mpsc::Sender<FeedEvent>,
}

/// What a reader reads from: where its slot is, and while it moves, where it is going.
struct Source {
    node: Arc<Node>,
    opened: Opened,
    next: Option<Opened>,
}

/// The receiver is gone.
pub(super) struct Closed;

impl Reader {
    async fn run(self) {
        let mut positions: Option<Vec<String>> = None;
        let mut wait = RETRY.0;
        loop {
            match self.follow(&mut positions, &mut wait).await {
                Ok(Closed) => return,
                Err(error) => {
                    self.route.look_at(&error);
                    // A slot that has moved is no loss.
                    if error.redirect_node().is_none() && self.pulse.logs() {
                        tracing::warn!(error = %self.route.explain(self.slot, &error), "the change feed lost Redis");
                    }
                    metrics::counter!("leadfold_feed_reconnects_total").increment(1);
                }
            }
            let jitter = rand::random_range(0.5..1.0);
            tokio::time::sleep(wait.mul_f64(jitter)).await;
            wait = (wait * 2).min(RETRY.1);
        }
    }

    /// Reads until something fails.
    async fn follow(&self, positions: &mut Option<Vec<String>>, wait: &mut Duration) -> RedisResult<Closed> {
        let node = self.route.owner(self.slot)?;
        let opened = node.dedicated(&config()).await?;
        let mut source = Source { node, opened, next: None };
        let ends = self.ends(&mut source).await?;
        let known = match positions {
            // A Redis that lost what was told before counts on from an earlier end.
            Some(known) => {
                for (position, end) in known.iter_mut().zip(ends) {
                    if parse_id(&end) < parse_id(position) {
                        *position = end;
                    }
                }
                known
            }
            None => positions.insert(ends),
        };
        // At the start a lead may have been read before the ends were; after an interruption this may be another
        // Redis, or one that lost what was told before.
        if self.pulse.gap().await.is_err() {
            return Ok(Closed);
        }
        let mut looked = Instant::now();
        loop {
            let news = self.read(&mut source, known).await?;
            *wait = RETRY.0;
            let quiet = news.is_empty();
            // A stream that answered with as many entries as were asked for may have more of them.
            let mut has_more = false;
            let mut overrun = false;
            for (stream, entries) in news {
                let Some(position) = self.streams.iter().position(|name| *name == stream).and_then(|index| known.get_mut(index)) else {
                    continue;
                };
                has_more |= entries.len() >= ENTRIES;
                // The newest `feed_length` entries are always kept: less than that cannot hide a loss.
                if entries.len() >= self.feed_length.min(ENTRIES) {
                    overrun |= self.trimmed_past(&mut source, &stream, position).await?;
                }
                for (id, event) in entries {
                    *position = id;
                    if self.events.send(event).await.is_err() {
                        return Ok(Closed);
                    }
                }
            }
            if source.node.server().may_be_replaced() && looked.elapsed() >= BLOCK {
                refuse_replica(&mut source.opened.connection).await?;
                looked = Instant::now();
            }
            if overrun && self.pulse.gap().await.is_err() {
                return Ok(Closed);
            }
            // While the sentinels do not confirm the primary there may be another one with news of its own.
            let is_confirmed = source.node.server().confirm(&source.opened).is_ok();
            let beat = match (has_more, is_confirmed) {
                (true, _) => Ok(()),
                (false, true) => self.pulse.beat(self.part).await,
                (false, false) => self.pulse.unconfirmed(self.part).await,
            };
            if beat.is_err() {
                return Ok(Closed);
            }
            if !quiet {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// The present end of every stream.
    async fn ends(&self, source: &mut Source) -> RedisResult<Vec<String>> {
        let mut ends = Vec::with_capacity(self.streams.len());
        for stream in &self.streams {
            let mut command = redis::cmd("XREVRANGE");
            let answer = self.send(source, command.arg(stream).arg("+").arg("-").arg("COUNT").arg(1)).await?;
            ends.push(first_id(answer).unwrap_or_else(|| "0-0".to_owned()));
        }
        Ok(ends)
    }

    /// Sends a command to where the slot is.
    async fn send(&self, source: &mut Source, command: &redis::Cmd) -> RedisResult<Value> {
        let mut connection = source.opened.connection.clone();
        let answer = tokio::select! {
            answer = send(&mut connection, command, Asking::No) => answer,
            replaced = source.node.server().replaced(&source.opened) => Err(replaced),
        };
        let error = match answer {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let Some(elsewhere) = self.route.asked_elsewhere(&error, &source.node) else { return Err(error) };
        // Until the slot has moved the one asks to go to the other each time.
        if source.next.is_none() {
            source.next = Some(elsewhere.dedicated(&config()).await?);
        }
        match &mut source.next {
            Some(next) => send(&mut next.connection, command, Asking::Yes).await,
            None => Err(error),
        }
    }

    /// Whether the oldest entry that is left is newer than the position: then there may have been others.
    async fn trimmed_past(&self, source: &mut Source, stream: &str, position: &str) -> RedisResult<bool> {
        let mut command = redis::cmd("XRANGE");
        let first = self.send(source, command.arg(stream).arg("-").arg("+").arg("COUNT").arg(1)).await?;
        Ok(first_id(first).and_then(|id| parse_id(&id)) > parse_id(position))
    }

    /// Waits for news of any stream.
    async fn read(&self, source: &mut Source, positions: &[String]) -> RedisResult<Vec<(String, Vec<(String, FeedEvent)>)>> {
        let mut command = redis::cmd("XREAD");
        command.arg("BLOCK").arg(self.block.as_millis() as u64).arg("COUNT").arg(ENTRIES).arg("STREAMS").arg(&self.streams).arg(positions);
        let answer = self.send(source, &command).await?;
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

fn config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(Some(RESPONSE_TIMEOUT)).set_response_timeout(Some(READ_TIMEOUT))
}

/// The id of the first entry of an answer.
fn first_id(entries: Value) -> Option<String> {
    let entry = reply::array(entries).ok()?.into_iter().next()?;
    reply::text(reply::array(entry).ok()?.into_iter().next()?).ok()
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
