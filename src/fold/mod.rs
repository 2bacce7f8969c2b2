//! The fold: what an event means. Pure, and the only home of the rules.
//!
//! [`fold`] turns one event into a [`Change`]: what it adds to its lead, never "look, then decide". [`merge`]
//! says how an addition joins what is there already. Both are order-free and idempotent: any order, any
//! duplication and any split of the same events over writers end in the same aggregate (profile patches,
//! which carry no time, excepted: the last to arrive wins).

mod action_log;
mod document;
pub mod effect;
mod fields;
mod lead_event;
mod limits;
pub mod merge;
mod parts;
mod unread;

use crate::event::{Event, Refusal, Scalar};
use crate::lead::Change;
use crate::time::Timestamp;
use fields::Reader;
use lead_event::LeadEventKind;
pub use limits::MAX_ID_BYTES;
pub use unread::{FIELDS, Unread};

/// What is known of a delivery besides its body.
#[derive(Clone, Copy, Debug)]
pub struct Receipt<'a> {
    /// When it arrived.
    pub at: Timestamp,
    /// The workspace in the URL, for events that name none.
    pub workspace_id: Option<&'a str>,
}

/// The outcome of folding one event.
#[derive(Debug, PartialEq)]
pub enum Folded {
    /// It changes a lead, or did so already.
    Change(Box<Change>),
    /// An event of a name that we do not know.
    UnknownEvent(String),
}

/// Turns an event into what it adds to its lead.
///
/// # Errors
/// A required field is missing, empty or of the wrong type, or there is too much in one event; the refusal names the field.
pub fn fold(event: &Event<'_>, receipt: Receipt<'_>) -> Result<Folded, Refusal> {
    fold_and_note(event, receipt, &mut Unread::default())
}

/// The same, and notes which optional fields could not be read and count as absent.
///
/// # Errors
/// As [`fold`].
pub fn fold_and_note(event: &Event<'_>, receipt: Receipt<'_>, unread: &mut Unread) -> Result<Folded, Refusal> {
    let mut reader = Reader::new(unread);
    let change = match event {
        Event::ActionLog(event) => action_log::action_log(event, receipt, &mut reader),
        Event::DocumentReceived(event) => document::received(event, receipt, &mut reader),
        Event::DocumentExtracted(event) => document::extracted(event, receipt, &mut reader),
        Event::LeadCreated(event) => lead_event::lead_event(event, receipt, LeadEventKind::Created, &mut reader),
        Event::LeadUpdated(event) => lead_event::lead_event(event, receipt, LeadEventKind::Updated, &mut reader),
        Event::LeadCompleted(event) => lead_event::lead_event(event, receipt, LeadEventKind::Completed, &mut reader),
        Event::Unknown(name) => return Ok(Folded::UnknownEvent(name.clone())),
    }?;
    Ok(Folded::Change(Box::new(change)))
}

/// The event's own workspace, else the one in the URL; they must not contradict each other.
fn workspace(own: &Option<Scalar<'_>>, receipt: Receipt<'_>) -> Result<Option<String>, Refusal> {
    let own = fields::workspace_id(own)?;
    match receipt.workspace_id {
        Some(url) if own.is_empty() => Ok(Some(url.to_owned())),
        Some(url) if url != own => Err(Refusal::field("workspaceId", "is not the workspace in the URL")),
        _ => Ok(Some(own.to_owned()).filter(|own| !own.is_empty())),
    }
}

/// The time that was told, or else that of the receipt; and whether it was told.
fn told_or_receipt(told: Option<Timestamp>, receipt: Receipt<'_>) -> (Timestamp, bool) {
    told.map_or((receipt.at, false), |time| (time, true))
}
