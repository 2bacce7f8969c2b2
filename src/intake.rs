//! An event's way in: read, folded, applied, or spooled while the store cannot take it. Knows nothing of who brought it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::alarm::Alarm;
use crate::dead_letters::{DeadLetters, Letter, PayloadKind, Undeliverable, reasons};
use crate::event::{self, Refusal};
use crate::fold::{self, Folded, MAX_ID_BYTES, Receipt, Unread};
use crate::lead::Change;
use crate::spool::{self, Breaker, Spool};
use crate::store::{Outcome, Store, StoreError};
use crate::time::Timestamp;

/// How long the store may take where there is a spool: with the spool's own time it stays under the 3 s in which a
/// sender has its answer.
const APPLY_TIMEOUT: Duration = Duration::from_millis(1200);

/// How long it may take to ask whether a refused event is of a deleted lead, and to remove its letter. The sender waits.
const DELETED_TIMEOUT: Duration = Duration::from_millis(500);

/// Why an event of a deleted lead is ignored.
const DELETED: &str = "the lead was deleted";

/// Takes events.
#[derive(Clone)]
pub struct Intake {
    store: Arc<dyn Store>,
    spooling: Option<Spooling>,
    dead_letters: Option<Arc<DeadLetters>>,
    alarm: Arc<Alarm>,
}

/// Where events go while the store cannot take them, and what tells that it cannot.
#[derive(Clone, Debug)]
pub struct Spooling {
    /// Keeps them.
    pub spool: Arc<Spool>,
    /// Tells.
    pub breaker: Arc<Breaker>,
}

/// What became of an event that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// The lead holds it now, at this version.
    Applied(String, u64),
    /// The lead held it already, at this version.
    Duplicate(String, u64),
    /// It is on the local disk, and will be applied to this lead when the store can take it.
    Queued(String),
    /// Nothing is to be done with it: of which lead, if it named one, and why.
    Ignored(Option<String>, String),
}

/// Why an event was not taken. It may be a dead letter, but no lead holds anything of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// It is wrong, and will be the next time.
    Refused(Refusal),
    /// Its lead belongs to another workspace.
    OtherWorkspace,
    /// It may be taken later.
    Unavailable,
}

/// What became of an event, and which event it was: its name or a word in its place, fit for a metric's label.
pub type Fate = (&'static str, Result<Taken, NotTaken>);

impl Intake {
    /// Into this store. Without a spool an event is refused while the store cannot take it; without dead letters
    /// nothing is kept of what is refused for good.
    pub fn new(store: Arc<dyn Store>, spooling: Option<Spooling>, dead_letters: Option<Arc<DeadLetters>>, alarm: Arc<Alarm>) -> Self {
        Self { store, spooling, dead_letters, alarm }
    }

    /// The store's time.
    pub fn now(&self) -> Timestamp {
        self.store.clock().now()
    }

    /// Takes one event, as the sender wrote it.
    pub async fn take(&self, body: &[u8], receipt: Receipt<'_>) -> Fate {
        let (label, result) = self.process(body, receipt).await;
        if let Some(dead_letters) = &self.dead_letters {
            let kept = match &result {
                Err(NotTaken::Refused(refusal)) => dead_letters.keep_event(body, label, receipt, reasons::REFUSED, refusal).await,
                Err(NotTaken::OtherWorkspace) => {
                    let refusal = Refusal::field("workspaceId", StoreError::OtherWorkspace.to_string());
                    dead_letters.keep_event(body, label, receipt, reasons::OTHER_WORKSPACE, &refusal).await
                }
                _ => Ok(String::new()),
            };
            match kept {
                Ok(lead_id) => self.drop_letters_if_deleted(dead_letters, &lead_id).await,
                Err(error) => {
                    self.alarm.raise("dead_letters", &format_args!("an event that was refused is not kept as a dead letter: {error}"));
                }
            }
        }
        (label, result)
    }

    /// A late event of a deleted lead leaves no letter. This is asked when the letter is kept: a deletion that comes after that
    /// removes the letter itself.
    async fn drop_letters_if_deleted(&self, dead_letters: &DeadLetters, lead_id: &str) {
        if !(1..=MAX_ID_BYTES).contains(&lead_id.len())
            || !matches!(timeout(DELETED_TIMEOUT, self.store.is_deleted(lead_id)).await, Ok(Ok(true)))
        {
            return;
        }
        if !matches!(timeout(DELETED_TIMEOUT, dead_letters.remove_lead(lead_id)).await, Ok(Ok(_))) {
            tracing::warn!("a dead letter of a deleted lead cannot be removed now: it stays until it is too old");
        }
    }

    async fn process(&self, body: &[u8], receipt: Receipt<'_>) -> Fate {
        let body = event::Body::new(body);
        let event = match event::parse(&body) {
            Ok(event) => event,
            Err(refusal) => return ("invalid", Err(NotTaken::Refused(refusal))),
        };
        let label = event.label();
        let mut unread = Unread::default();
        let folded = fold::fold_and_note(&event, receipt, &mut unread);
        unread.fields().for_each(|field| metrics::counter!("leadfold_unread_fields_total", "field" => field).increment(1));
        let change = match folded {
            Ok(Folded::Change(change)) => change,
            Ok(Folded::UnknownEvent(name)) => return (label, Ok(Taken::Ignored(None, format!("unknown event {name:.100}")))),
            Err(refusal) => return (label, Err(NotTaken::Refused(refusal))),
        };
        // A wrong time of receipt would stand for good.
        let is_timed = change.activity.as_ref().is_some_and(|activity| activity.timed);
        if !is_timed && !self.store.clock().is_credible() {
            self.alarm.raise("clock", &"the local clock is before the day this program was built, and the store has not told its time: events without a time are refused");
            return (label, Err(NotTaken::Unavailable));
        }
        (label, self.apply(*change).await)
    }

    /// Applies a change, or spools it.
    async fn apply(&self, change: Change) -> Result<Taken, NotTaken> {
        let lead_id = change.lead_id.clone();
        let Some(Spooling { spool, breaker }) = &self.spooling else {
            let result = self.store.apply(change.clone()).await;
            return self.told(lead_id, &change, result).await;
        };
        let partition = self.store.partition(&change.lead_id);
        if !spool.holds_back(&change) && breaker.admits(partition) {
            let late = |_| Err(StoreError::Unavailable("it did not answer in time".to_owned()));
            match timeout(APPLY_TIMEOUT, self.store.apply(change.clone())).await.unwrap_or_else(late) {
                Err(error @ (StoreError::Unavailable(_) | StoreError::Refusing(..) | StoreError::Misconfigured(_))) => {
                    breaker.failed(partition);
                    self.complain(&error);
                }
                // The lead is busy; its server is well.
                Err(StoreError::Contended) => breaker.succeeded(partition),
                result => {
                    breaker.succeeded(partition);
                    return self.told(lead_id, &change, result).await;
                }
            }
        }
        match spool.push(&change).await {
            Ok(()) => Ok(Taken::Queued(lead_id)),
            Err(error) => {
                self.alarm.raise("spool", &format_args!("an event was taken neither by the store nor by the spool: {error}"));
                Err(NotTaken::Unavailable)
            }
        }
    }

    /// What the store's answer means for the sender.
    async fn told(&self, lead_id: String, change: &Change, result: Result<Outcome, StoreError>) -> Result<Taken, NotTaken> {
        match result {
            Ok(Outcome::Applied { version }) => Ok(Taken::Applied(lead_id, version)),
            Ok(Outcome::Duplicate { version }) => Ok(Taken::Duplicate(lead_id, version)),
            Ok(Outcome::Deleted) => Ok(Taken::Ignored(Some(lead_id), DELETED.to_owned())),
            Ok(Outcome::TooOld) => Ok(Taken::Ignored(Some(lead_id), "older than the history that is kept of this lead".to_owned())),
            Err(StoreError::OtherWorkspace) => Err(NotTaken::OtherWorkspace),
            Err(error) => {
                self.complain(&error);
                if let (StoreError::Corrupt(_), Some(dead_letters)) = (&error, &self.dead_letters)
                    && let Err(error) = dead_letters.keep_undeliverable(Undeliverable::Change(change, &error), change.received).await
                {
                    self.alarm
                        .raise("dead_letters", &format_args!("an event that cannot be applied is not kept as a dead letter: {error}"));
                }
                Err(NotTaken::Unavailable)
            }
        }
    }

    fn complain(&self, error: &StoreError) {
        let cause = match error {
            StoreError::Refusing(..) | StoreError::Misconfigured(_) => "store_refuses",
            StoreError::Corrupt(_) => "store_corrupt",
            _ => "store_unavailable",
        };
        self.alarm.raise(cause, error);
    }

    /// Tries a dead letter again. `Err(None)`: nothing is kept of it that could be tried.
    ///
    /// # Errors
    /// It is refused again, or cannot be taken now.
    pub async fn retry(&self, letter: &Letter, payload: &[u8]) -> Result<Taken, Option<NotTaken>> {
        if (1..=MAX_ID_BYTES).contains(&letter.lead_id.len()) && matches!(self.store.is_deleted(&letter.lead_id).await, Ok(true)) {
            return Ok(Taken::Ignored(Some(letter.lead_id.clone()), DELETED.to_owned()));
        }
        match letter.kind {
            PayloadKind::Event | PayloadKind::Raw => {
                let workspace_id = Some(&*letter.workspace_id).filter(|workspace_id| !workspace_id.is_empty());
                let (_, result) = self.process(payload, Receipt { at: letter.first, workspace_id }).await;
                result.map_err(Some)
            }
            PayloadKind::Change => {
                let change = serde_json::from_slice(payload).map_err(|_| None)?;
                self.apply(change).await.map_err(Some)
            }
            PayloadKind::Spooled => {
                let change = spool::read(payload).map_err(|error| Some(NotTaken::Refused(Refusal::body(error))))?;
                self.apply(change).await.map_err(Some)
            }
            PayloadKind::None => Err(None),
        }
    }
}
