//! The one writer. Whatever waits when it comes round goes into one transaction, so that callers who write at
//! the same time share its fsyncs.

use std::sync::Arc;

use redb::{Database, Durability, WriteTransaction};
use tokio::sync::{broadcast, mpsc, oneshot};

use super::plan::{Plan, plan};
use super::tables::{Tables, history, successor};
use crate::lead::Change;
use crate::store::{FeedEvent, Outcome, StoreError, TOMBSTONE};
use crate::time::Timestamp;

/// How many commands go into one transaction at most: bounds how long the first of them waits.
const MAX_BATCH: usize = 512;

/// What the writer is asked to do.
pub(super) enum Command {
    Apply { change: Box<Change>, answer: oneshot::Sender<Result<Outcome, StoreError>> },
    Delete { lead_id: String, now: Timestamp, answer: oneshot::Sender<Result<bool, StoreError>> },
}

/// What came of a command, held back until the commit.
enum Answer {
    Applied(oneshot::Sender<Result<Outcome, StoreError>>, Result<Outcome, StoreError>),
    Deleted(oneshot::Sender<Result<bool, StoreError>>, Result<bool, StoreError>),
}

impl Answer {
    /// A caller that has gone away needs no answer.
    fn send(self) {
        match self {
            Self::Applied(caller, result) => drop(caller.send(result)),
            Self::Deleted(caller, result) => drop(caller.send(result)),
        }
    }
}

pub(super) struct Writer {
    pub(super) database: Arc<Database>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) feed: broadcast::Sender<FeedEvent>,
    pub(super) max_history: u64,
}

/// What was done of a batch so far.
#[derive(Default)]
struct Progress {
    answers: Vec<Answer>,
    events: Vec<FeedEvent>,
}

impl Writer {
    /// Works until the store is dropped and nothing waits any more.
    pub(super) fn run(mut self) {
        let mut batch = Vec::with_capacity(MAX_BATCH);
        while self.commands.blocking_recv_many(&mut batch, MAX_BATCH) > 0 {
            self.work(std::mem::take(&mut batch));
        }
    }

    fn work(&self, batch: Vec<Command>) {
        let mut progress = Progress::default();
        let mut batch = batch.into_iter();
        match self.transact(&mut batch, &mut progress) {
            Ok(()) => {
                // The feed first: whoever has an answer finds its change told.
                for event in progress.events {
                    // Nobody may be listening.
                    let _ = self.feed.send(event);
                }
                progress.answers.into_iter().for_each(Answer::send);
            }
            Err(error) => {
                tracing::error!(%error, "a batch of changes could not be written");
                let unavailable = || StoreError::Unavailable(error.to_string());
                for answer in progress.answers {
                    // Not even a duplicate is certain: what it repeats may be in this batch.
                    match answer {
                        Answer::Applied(caller, _) => Answer::Applied(caller, Err(unavailable())).send(),
                        Answer::Deleted(caller, _) => Answer::Deleted(caller, Err(unavailable())).send(),
                    }
                }
                for command in batch {
                    match command {
                        Command::Apply { answer, .. } => Answer::Applied(answer, Err(unavailable())).send(),
                        Command::Delete { answer, .. } => Answer::Deleted(answer, Err(unavailable())).send(),
                    }
                }
            }
        }
    }

    /// Does the whole batch and commits it. An error: nothing of it is kept.
    fn transact(&self, batch: &mut impl Iterator<Item = Command>, progress: &mut Progress) -> Result<(), StoreError> {
        let transaction = begin(&self.database)?;
        let mut tables = Tables::open(&transaction)?;
        for command in batch {
            match command {
                Command::Apply { change, answer } => match plan(&tables, &change, self.max_history, Timestamp::now()) {
                    Ok(Plan::Leave(outcome)) => progress.answers.push(Answer::Applied(answer, Ok(outcome))),
                    Ok(Plan::Write(writes)) => {
                        let (version, previous) = (writes.head.version, writes.previous);
                        progress.answers.push(Answer::Applied(answer, Ok(Outcome::Applied { version })));
                        writes.write(&mut tables)?;
                        let workspace_id = writes.head.workspace_id;
                        progress.events.push(FeedEvent::Changed { lead_id: change.lead_id, workspace_id, version, previous });
                    }
                    // Planning writes nothing, so this one fails alone.
                    Err(error) => progress.answers.push(Answer::Applied(answer, Err(error))),
                },
                Command::Delete { lead_id, now, answer } => {
                    let lead = lead_id.as_bytes().to_vec();
                    match tables.head(&lead) {
                        Ok(None) => progress.answers.push(Answer::Deleted(answer, Ok(false))),
                        Ok(Some(head)) => {
                            progress.answers.push(Answer::Deleted(answer, Ok(true)));
                            erase(&mut tables, &lead, head.place(), now)?;
                            progress.events.push(FeedEvent::Changed {
                                lead_id,
                                workspace_id: head.workspace_id,
                                version: 0,
                                previous: head.version,
                            });
                        }
                        Err(error) => progress.answers.push(Answer::Deleted(answer, Err(error))),
                    }
                }
            }
        }
        drop(tables);
        if progress.events.is_empty() {
            return Ok(transaction.abort()?); // Nothing was written: spare the fsyncs.
        }
        Ok(transaction.commit()?)
    }
}

/// Starts a transaction that is on disk when it is committed.
pub(super) fn begin(database: &Database) -> Result<WriteTransaction, StoreError> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    // The second fsync makes the recovery after a crash independent of checksums and of what the crash left
    // in the half-written slot.
    transaction.set_two_phase_commit(true);
    Ok(transaction)
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
