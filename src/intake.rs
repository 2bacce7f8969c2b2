//! An event's way in: read, folded, applied. Knows nothing of who brought it.

use std::sync::Arc;

use crate::event::{self, Refusal};
use crate::fold::{self, Folded, Receipt};
use crate::store::{Outcome, Store, StoreError};

/// Takes events.
#[derive(Clone)]
pub struct Intake {
    store: Arc<dyn Store>,
}

/// What became of an event that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// The lead holds it now, at this version.
    Applied(String, u64),
    /// The lead held it already, at this version.
    Duplicate(String, u64),
    /// Nothing is to be done with it: of which lead, if it named one, and why.
    Ignored(Option<String>, String),
}

/// Why an event was not taken; nothing of it is kept.
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
    /// Into this store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// Takes one event, as the sender wrote it.
    pub async fn take(&self, body: &[u8], receipt: Receipt<'_>) -> Fate {
        let event = match event::parse(body) {
            Ok(event) => event,
            Err(refusal) => return ("invalid", Err(NotTaken::Refused(refusal))),
        };
        let label = event.label();
        let change = match fold::fold(&event, receipt) {
            Ok(Folded::Change(change)) => change,
            Ok(Folded::UnknownEvent(name)) => return (label, Ok(Taken::Ignored(None, format!("unknown event {name:.100}")))),
            Err(refusal) => return (label, Err(NotTaken::Refused(refusal))),
        };
        let lead_id = change.lead_id.clone();
        let result = match self.store.apply(*change).await {
            Ok(Outcome::Applied { version }) => Ok(Taken::Applied(lead_id, version)),
            Ok(Outcome::Duplicate { version }) => Ok(Taken::Duplicate(lead_id, version)),
            Ok(Outcome::Deleted) => Ok(Taken::Ignored(Some(lead_id), "the lead was deleted".to_owned())),
            Ok(Outcome::TooOld) => Ok(Taken::Ignored(Some(lead_id), "older than the history that is kept of this lead".to_owned())),
            Err(StoreError::OtherWorkspace) => Err(NotTaken::OtherWorkspace),
            Err(error) => {
                tracing::warn!(%error, "an event could not be taken");
                Err(NotTaken::Unavailable)
            }
        };
        (label, result)
    }
}
