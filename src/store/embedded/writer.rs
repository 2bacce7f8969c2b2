//! The one writer. Whatever waits when it comes round goes into one transaction, so that callers who write at
//! the same time share its fsyncs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redb::{ReadableTable, TableDefinition, WriteTransaction};
use tokio::sync::{broadcast, mpsc, oneshot};

use super::plan::{Plan, plan};
use super::tables::{TOMBSTONES, Tables, history, successor};
use crate::database::{DatabaseFile, End, Failed, META};
use crate::lead::Change;
use crate::store::{FeedEvent, Outcome, StoreError, TOMBSTONE};
use crate::time::{Clock, Timestamp};

/// How many commands go into one transaction at most: bounds how long the first of them waits.
const MAX_BATCH: usize = 512;
/// Tombstones that are looked at in one go.
const MAX_EXPIRED: usize = 1000;
/// The latest time that the store has told, in microseconds.
pub(super) const CLOCK_KEY: &str = "clock";
/// Where a probe writes after a failure.
const PROBE: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("probe");
/// As much as many events write, for a few bytes find room on a disk that is full.
const PROBE_BYTES: usize = 256 << 10;

/// What the writer is asked to do.
pub(super) struct Command {
    pub(super) task: Task,
    pub(super) answer: oneshot::Sender<Result<Done, StoreError>>,
}

pub(super) enum Task {
    Apply(Box<Change>),
    Delete {
        lead_id: String,
        now: Timestamp,
    },
    /// Find out whether anything can be written.
    Probe,
    /// Remove tombstones that have expired, of some leads from this one on.
    Expire {
        from: Vec<u8>,
        now: Timestamp,
    },
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Done {
    Applied(Outcome),
    Deleted(bool),
    Probed,
    /// The lead to go on from; none: at the end.
    Expired(Option<Vec<u8>>),
}

impl Command {
    /// A caller that has gone away needs no answer.
    fn answer(self, result: Result<Done, StoreError>) {
        let _ = self.answer.send(result);
    }
}

/// How the writer is getting on.
#[derive(Debug)]
pub(super) struct Progress(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Since when it has been waiting for the disk.
    busy_since: Option<Instant>,
    last: Last,
}

/// What came of the last transaction that had something to write.
#[derive(Clone, Debug)]
pub(super) struct Last {
    pub(super) at: Instant,
    pub(super) failure: Option<StoreError>,
}

impl Progress {
    /// The file was written to when it was opened.
    pub(super) fn begin() -> Self {
        Self(Mutex::new(State { busy_since: None, last: Last { at: Instant::now(), failure: None } }))
    }

    /// For how long the disk has not answered.
    pub(super) fn busy_for(&self) -> Option<Duration> {
        self.state().busy_since.map(|since| since.elapsed())
    }

    pub(super) fn last(&self) -> Last {
        self.state().last.clone()
    }

    fn note(&self, failure: Option<StoreError>) {
        self.state().last = Last { at: Instant::now(), failure };
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct Writer {
    pub(super) file: Arc<DatabaseFile>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) feed: broadcast::Sender<FeedEvent>,
    pub(super) max_history: u64,
    pub(super) progress: Arc<Progress>,
    pub(super) clock: Clock,
}

/// What a transaction did: an answer for each of its commands, and what the feed is to tell.
#[derive(Default)]
struct Batch {
    answers: Vec<Result<Done, StoreError>>,
    events: Vec<FeedEvent>,
}

impl Writer {
    /// Works until the store is dropped and nothing waits any more.
    pub(super) fn run(mut self) {
        let mut batch = Vec::with_capacity(MAX_BATCH);
        while self.commands.blocking_recv_many(&mut batch, MAX_BATCH) > 0 {
            // Whoever was not willing to wait any longer was told that it was not done.
            batch.retain(|command| !command.answer.is_closed());
            let (probes, batch): (_, Vec<Command>) =
                std::mem::take(&mut batch).into_iter().partition(|command| matches!(command.task, Task::Probe));
            let (expiries, batch) = batch.into_iter().partition(|command: &Command| matches!(command.task, Task::Expire { .. }));
            self.work(batch);
            self.probe(probes);
            self.expire(expiries);
            self.recover();
        }
    }

    fn work(&self, mut batch: Vec<Command>) {
        if batch.is_empty() {
            return;
        }
        match self.transact(&batch) {
            Ok(done) => self.finish(batch, done),
            // One of them touches what is damaged. It must not cost the others anything: halves find it soon.
            Err(failed) if failed.is_about_content && batch.len() > 1 => {
                let second = batch.split_off(batch.len() / 2);
                for half in [batch, second] {
                    self.recover();
                    self.work(half);
                }
            }
            Err(failed) => batch.into_iter().for_each(|command| command.answer(Err(failed.error.clone()))),
        }
    }

    fn finish(&self, commands: Vec<Command>, done: Batch) {
        // The feed first: whoever has an answer finds its change told.
        for event in done.events {
            // Nobody may be listening.
            let _ = self.feed.send(event);
        }
        commands.into_iter().zip(done.answers).for_each(|(command, answer)| command.answer(answer));
    }

    /// Opens the file again where it has to be.
    fn recover(&self) {
        if !self.file.is_open() && self.file.recover().is_ok() {
            // A commit that failed at its last step may be there all the same.
            let _ = self.feed.send(FeedEvent::Gap);
        }
    }

    /// Does the whole batch and commits it. An error: nothing of it is kept.
    fn transact(&self, batch: &[Command]) -> Result<Batch, Failed<StoreError>> {
        let is_committed = |done: &Batch| !done.events.is_empty();
        self.watched(is_committed, || {
            self.file.transact(|transaction| {
                let mut tables = Tables::open(transaction)?;
                let mut done = Batch::default();
                for command in batch {
                    let answer = self.execute(&mut tables, &command.task, &mut done.events)?;
                    done.answers.push(answer);
                }
                if done.events.is_empty() {
                    return Ok((done, End::Abort));
                }
                drop(tables);
                self.persist_clock(transaction)?;
                Ok((done, End::Commit))
            })
        })
    }

    /// Outer errors spoil the transaction, inner ones are of this task alone.
    fn execute(&self, tables: &mut Tables<'_>, task: &Task, events: &mut Vec<FeedEvent>) -> Result<Result<Done, StoreError>, StoreError> {
        match task {
            Task::Apply(change) => match plan(tables, change, self.max_history, self.clock.now()) {
                Ok(Plan::Leave(outcome)) => Ok(Ok(Done::Applied(outcome))),
                Ok(Plan::Write(writes)) => {
                    let (version, previous) = (writes.head.version, writes.previous);
                    writes.write(tables)?;
                    let workspace_id = writes.head.workspace_id;
                    events.push(FeedEvent::Changed { lead_id: change.lead_id.clone(), workspace_id, version, previous });
                    Ok(Ok(Done::Applied(Outcome::Applied { version })))
                }
                Err(error) => of_this_task(error),
            },
            Task::Delete { lead_id, now } => {
                let lead = lead_id.as_bytes();
                match tables.head(lead) {
                    Ok(None) => Ok(Ok(Done::Deleted(false))),
                    Ok(Some(head)) => {
                        erase(tables, lead, head.place(), *now)?;
                        let (lead_id, workspace_id) = (lead_id.clone(), head.workspace_id);
                        events.push(FeedEvent::Changed { lead_id, workspace_id, version: 0, previous: head.version });
                        Ok(Ok(Done::Deleted(true)))
                    }
                    Err(error) => of_this_task(error),
                }
            }
            Task::Probe => Ok(Ok(Done::Probed)),
            // Not with others: see [`Self::expire`].
            Task::Expire { .. } => Ok(Ok(Done::Expired(None))),
        }
    }

    /// Removes tombstones that have expired. Each task is a transaction of its own: no event hangs on it.
    fn expire(&self, tasks: Vec<Command>) {
        for command in tasks {
            let Task::Expire { from, now } = &command.task else { continue };
            let done = self.watched(
                |(_, removed)| *removed,
                || {
                    self.file.transact(|transaction| {
                        let mut tombstones = transaction.open_table(TOMBSTONES)?;
                        let (mut expired, mut next) = (Vec::new(), None);
                        for (at, entry) in tombstones.range::<&[u8]>(from.as_slice()..)?.enumerate() {
                            let (lead, expiry) = entry?;
                            if at == MAX_EXPIRED {
                                next = Some(lead.value().to_vec());
                                break;
                            }
                            if expiry.value() <= now.micros() {
                                expired.push(lead.value().to_vec());
                            }
                        }
                        for lead in &expired {
                            tombstones.remove(lead.as_slice())?;
                        }
                        let end = if expired.is_empty() { End::Abort } else { End::Commit };
                        Ok(((next, !expired.is_empty()), end))
                    })
                },
            );
            command.answer(done.map(|(next, _)| Done::Expired(next)).map_err(|failed| failed.error));
        }
    }

    fn probe(&self, probes: Vec<Command>) {
        if probes.is_empty() {
            return;
        }
        let probed = self.write_something().map(|()| Done::Probed).map_err(|failed| failed.error);
        for probe in probes {
            let answer = probed.as_ref().map(|_| Done::Probed).map_err(StoreError::clone);
            probe.answer(answer);
        }
    }

    /// As much as is needed to know whether events can be written.
    fn write_something(&self) -> Result<(), Failed<StoreError>> {
        let is_in_doubt = self.progress.last().failure.is_some();
        self.watched(
            |()| true,
            || {
                self.file.transact(|transaction| {
                    self.persist_clock(transaction)?;
                    if is_in_doubt {
                        transaction.open_table(PROBE)?.insert("", &*vec![0; PROBE_BYTES])?;
                    }
                    Ok(((), End::Commit))
                })?;
                if is_in_doubt {
                    self.file.transact(|transaction| Ok((transaction.delete_table(PROBE)?, End::Commit)))?;
                }
                Ok(())
            },
        )
    }

    /// After a restart the time goes on from here, whatever the local clock says then.
    fn persist_clock(&self, transaction: &WriteTransaction) -> Result<(), StoreError> {
        let now = u64::try_from(self.clock.now().micros()).unwrap_or_default();
        transaction.open_table(META)?.insert(CLOCK_KEY, now)?;
        Ok(())
    }

    /// Sees to it that others can see how it goes.
    fn watched<T>(
        &self,
        is_committed: impl FnOnce(&T) -> bool,
        work: impl FnOnce() -> Result<T, Failed<StoreError>>,
    ) -> Result<T, Failed<StoreError>> {
        self.progress.state().busy_since = Some(Instant::now());
        let done = work();
        self.progress.state().busy_since = None;
        match &done {
            Ok(done) if is_committed(done) => self.progress.note(None),
            // Nothing was written: nothing is known of the disk.
            Ok(_) => {}
            // A lead that is damaged says nothing of the others.
            Err(failed) if failed.is_about_content && self.file.is_open() => {}
            Err(failed) => self.progress.note(Some(failed.error.clone())),
        }
        done
    }
}

/// Planning writes nothing, so what it stumbles over costs nobody else anything; but not where the disk failed.
fn of_this_task(error: StoreError) -> Result<Result<Done, StoreError>, StoreError> {
    if matches!(error, StoreError::Unavailable(_)) { Err(error) } else { Ok(Err(error)) }
}

/// Removes all records of a lead and leaves a tombstone.
fn erase(tables: &mut Tables<'_>, lead: &[u8], place: Option<(&str, i64)>, now: Timestamp) -> Result<(), StoreError> {
    let end = successor(lead);
    tables.activities.retain_in(history(lead), |_, _| false)?;
    tables.times.retain_in((lead, &[][..])..(&*end, &[][..]), |_, _| false)?;
    tables.versions.retain_in((lead, 0)..=(lead, u64::MAX), |_, _| false)?;
    tables.details.retain_in((lead, &[][..])..(&*end, &[][..]), |_, _| false)?;
    if let Some((workspace, time)) = place {
        tables.index.remove((workspace, time, lead))?;
    }
    tables.heads.remove(lead)?;
    let kept = i64::try_from(TOMBSTONE.as_micros()).unwrap_or(i64::MAX);
    tables.tombstones.insert(lead, now.micros().saturating_add(kept))?;
    Ok(())
}
