//! Applying changes: what `lua/apply.lua` is told, in batches, and what its replies mean.

use std::sync::Arc;

use redis::Value;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::handshake::ServerId;
use super::keys::{Keys, pair_field};
use super::reply;
use super::route::Endpoint;
use super::script::Scripts;
use crate::fold::effect::{CountDeltas, Effect, Extremes};
use crate::lead::{Activity, Change, Detail};
use crate::store::{Outcome, StoreError, record};
use crate::time::Timestamp;

/// Changes in one call at most: beyond, the saving is small and Redis is busy for long.
const MAX_BATCH: usize = 64;
/// Calls under way at once. While they are, changes gather for the next: the busier, the larger the batches.
const CALLS_IN_FLIGHT: usize = 2;
/// Changes that wait for a place in a batch.
const QUEUE: usize = 4096;

/// What the script found in place of what it was told to expect.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) version: u64,
    pub(super) workspace_id: String,
    pub(super) first: Option<Timestamp>,
    activity: Vec<u8>,
    details: Vec<Vec<u8>>,
}

impl Seen {
    /// Takes in what a later call saw. It looked only where it would have written.
    pub(super) fn update(&mut self, change: &Change, effect: &Effect<'_>, later: Seen) {
        let mut details = std::mem::take(&mut self.details);
        details.resize(change.additions.len(), Vec::new());
        for ((index, _), stored) in effect.details.iter().zip(later.details) {
            if let Some(detail) = details.get_mut(*index) {
                *detail = stored;
            }
        }
        let activity = if effect.activity.is_some() { later.activity } else { std::mem::take(&mut self.activity) };
        *self = Self { activity, details, ..later };
    }

    /// The activity of the change's id.
    pub(super) fn activity(&self, change: &Change) -> Result<Option<Activity>, StoreError> {
        match &change.activity {
            Some(activity) if !self.activity.is_empty() => record::decode_activity(activity.action_id.clone(), &self.activity).map(Some),
            _ => Ok(None),
        }
    }

    /// The details of the change's additions.
    pub(super) fn details(&self, change: &Change) -> Result<Vec<Option<Detail>>, StoreError> {
        let stored = change.additions.iter().zip(&self.details);
        let decode = |key: &[u8], bytes: &[u8]| if bytes.is_empty() { Ok(None) } else { record::decode_detail(key, bytes).map(Some) };
        stored.map(|(addition, bytes)| decode(&record::encode_detail_key(addition.key()), bytes)).collect()
    }
}

/// What became of one call.
#[derive(Debug)]
pub(super) enum Reply {
    Done(Outcome),
    /// Nothing was written: something is there already.
    Seen(Seen),
}

/// Extremes that can only be known from the whole history, and the version at which it was read.
#[derive(Debug)]
pub(super) struct Absolute {
    pub(super) version: u64,
    pub(super) extremes: Extremes,
}

/// The keys and arguments of one change, back to back.
#[derive(Debug, Default)]
struct Parts {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

/// Keys of one change; its arguments follow.
const KEYS: usize = 6;

impl Parts {
    fn push(&mut self, part: impl AsRef<[u8]>) {
        self.bytes.extend_from_slice(part.as_ref());
        self.ends.push(self.bytes.len());
    }

    fn push_number(&mut self, number: impl std::fmt::Display) {
        use std::io::Write;
        // Writing to a vector cannot fail.
        let _ = write!(self.bytes, "{number}");
        self.ends.push(self.bytes.len());
    }

    /// Writes over a part; the length stays.
    fn set(&mut self, part: usize, bytes: &[u8]) {
        if let Some(end) = self.ends.get(part).copied() {
            self.bytes[end - bytes.len()..end].copy_from_slice(bytes);
        }
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.bytes[start..*end])
    }
}

/// Writes what the script takes for one change: `lua/apply.lua` says what it is.
fn parts(keys: &Keys, now: u64, change: &Change, effect: &Effect<'_>, seen: &Seen, absolute: Option<&Absolute>) -> Parts {
    let mut parts = Parts { bytes: Vec::with_capacity(768), ends: Vec::with_capacity(32) };
    let lead = keys.lead(&change.lead_id);
    let workspace_id = change.workspace_id.as_deref().unwrap_or_default();
    for key in [&lead.lead, &lead.history, &lead.timeline, &lead.details] {
        parts.push(key);
    }
    parts.push(keys.index(lead.partition, workspace_id));
    parts.push(keys.feed(lead.partition));

    parts.push_number(now);
    parts.push(&change.lead_id);
    parts.push(workspace_id);
    let shape = parts.ends.len();
    parts.push([0; SHAPE_BYTES]);
    let mut kind = 0;
    let (mut counts, mut times) = (0, 0);
    if let Some((activity, old)) = effect.activity {
        kind = 1;
        parts.push(record::pack(&activity.action_id));
        parts.push(record::encode_activity(activity, now));
        parts.push_number(activity.time.micros());
        if old.is_some() {
            kind = 2;
            parts.push(&seen.activity);
        }
        if let Some(Absolute { version, extremes }) = absolute {
            kind = 3;
            parts.push_number(version);
            let (time, action_id) = extremes.latest.clone().unwrap_or_default();
            parts.push_number(extremes.first.unwrap_or(time).micros());
            parts.push_number(time.micros());
            parts.push(record::pack(&action_id));
        }
        let deltas = CountDeltas::of(activity, old);
        for (kind, moved) in [('a', &deltas.activities), ('m', &deltas.messages)] {
            for (pair, delta) in moved {
                parts.push(pair_field(kind, *pair));
                parts.push_number(delta);
                counts += 1;
            }
        }
        for ((channel, direction), time) in absolute.iter().flat_map(|absolute| &absolute.extremes.messages) {
            parts.push(pair_field('t', (channel, direction)));
            parts.push_number(time.micros());
            times += 1;
        }
    }
    let expects = effect.details.iter().any(|(index, _)| seen.details.get(*index).is_some_and(|stored| !stored.is_empty()));
    for (index, detail) in &effect.details {
        parts.push(record::encode_detail_key(detail.key()));
        if expects {
            parts.push(seen.details.get(*index).map_or(&[][..], Vec::as_slice));
        }
        parts.push(record::encode_detail(detail, now));
    }
    parts.set(shape, &shape_bytes(kind, counts, effect.details.len(), times, expects));
    parts
}

/// Bytes of the argument that says what the others are.
const SHAPE_BYTES: usize = 8;

fn shape_bytes(kind: u8, counts: usize, details: usize, times: usize, expects: bool) -> [u8; SHAPE_BYTES] {
    let two = |number: usize| u16::try_from(number).unwrap_or(u16::MAX).to_be_bytes();
    let ([c1, c2], [d1, d2], [t1, t2]) = (two(counts), two(details), two(times));
    [kind, c1, c2, d1, d2, t1, t2, u8::from(expects)]
}

struct Job {
    parts: Parts,
    reply: oneshot::Sender<Result<Answer, StoreError>>,
}

/// What became of one call, and which server said so.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) reply: Reply,
    pub(super) server_id: ServerId,
}

/// Gathers changes into calls to one endpoint. An idle lane sends a change at once.
#[derive(Clone, Debug)]
pub(super) struct Lane {
    jobs: mpsc::Sender<Job>,
}

/// What every call is told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) max_history: usize,
    pub(super) feed_length: usize,
}

impl Lane {
    pub(super) fn start(endpoint: Endpoint, scripts: Arc<Scripts>, limits: Limits) -> Self {
        let (jobs, queue) = mpsc::channel(QUEUE);
        tokio::spawn(run(queue, endpoint, scripts, limits));
        Self { jobs }
    }

    /// Applies a change at a time in ms, given what it does and what that was concluded from.
    pub(super) async fn apply(
        &self,
        keys: &Keys,
        now: u64,
        change: &Change,
        effect: &Effect<'_>,
        seen: &Seen,
        absolute: Option<&Absolute>,
    ) -> Result<Answer, StoreError> {
        let (reply, answer) = oneshot::channel();
        let job = Job { parts: parts(keys, now, change, effect, seen, absolute), reply };
        let stopped = || StoreError::Unavailable("the store is shutting down".to_owned());
        self.jobs.send(job).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}

async fn run(mut queue: mpsc::Receiver<Job>, endpoint: Endpoint, scripts: Arc<Scripts>, limits: Limits) {
    let calls = Arc::new(Semaphore::new(CALLS_IN_FLIGHT));
    loop {
        let mut jobs = Vec::with_capacity(MAX_BATCH);
        if queue.recv_many(&mut jobs, MAX_BATCH).await == 0 {
            return;
        }
        let Ok(call) = Arc::clone(&calls).acquire_owned().await else { return };
        while jobs.len() < MAX_BATCH
            && let Ok(job) = queue.try_recv()
        {
            jobs.push(job);
        }
        let (mut endpoint, scripts) = (endpoint.clone(), Arc::clone(&scripts));
        tokio::spawn(async move {
            send(&mut endpoint, &scripts, limits, jobs).await;
            drop(call);
        });
    }
}

async fn send(endpoint: &mut Endpoint, scripts: &Scripts, limits: Limits, mut jobs: Vec<Job>) {
    // Nobody waits any more for those whose request was given up.
    jobs.retain(|job| !job.reply.is_closed());
    if jobs.is_empty() {
        return;
    }
    metrics::histogram!("leadfold_redis_batch_changes").record(jobs.len() as f64);
    let (max_history, feed_length) = (limits.max_history.to_string(), limits.feed_length.to_string());
    let keys: Vec<&[u8]> = jobs.iter().flat_map(|job| job.parts.iter().take(KEYS)).collect();
    let args: Vec<&[u8]> = [max_history.as_bytes(), feed_length.as_bytes()]
        .into_iter()
        .chain(jobs.iter().flat_map(|job| job.parts.iter().skip(KEYS)))
        .collect();
    let replies = scripts.apply.call(endpoint, &keys, &args).await;
    let replies = replies.map_err(|error| endpoint.explain(&error)).and_then(reply::array);
    let server_id = endpoint.answered_by().unwrap_or_default();
    match replies {
        Ok(replies) => {
            for (job, value) in jobs.into_iter().zip(replies) {
                let answer = decode(value).map(|reply| Answer { reply, server_id: Arc::clone(&server_id) });
                // Whoever asked may have gone: then nobody needs the answer.
                let _ = job.reply.send(answer);
            }
        }
        Err(error) => {
            for job in jobs {
                let _ = job.reply.send(Err(error.clone()));
            }
        }
    }
}

fn decode(value: Value) -> Result<Reply, StoreError> {
    let mut items = reply::array(value)?.into_iter();
    let mut next = || items.next().unwrap_or(Value::Nil);
    let kind = reply::text(next())?;
    Ok(Reply::Done(match &*kind {
        "A" => Outcome::Applied { version: reply::number(&reply::text(next())?)? },
        "U" => Outcome::Duplicate { version: reply::number(&reply::text(next())?)? },
        "D" => Outcome::Deleted,
        "O" => Outcome::TooOld,
        "W" => return Err(StoreError::OtherWorkspace),
        "S" => {
            let version = reply::number(&reply::text(next())?)?;
            let workspace_id = reply::text(next())?;
            let first = reply::text(next())?;
            let first = if first.is_empty() { None } else { Some(Timestamp::from_micros(reply::number(&first)?)) };
            let activity = reply::bytes(next())?;
            let details = items.map(reply::bytes).collect::<Result<_, _>>()?;
            return Ok(Reply::Seen(Seen { version, workspace_id, first, activity, details }));
        }
        _ => return Err(StoreError::Corrupt(format!("a script failed: {}", reply::text(next()).unwrap_or_default()))),
    }))
}
