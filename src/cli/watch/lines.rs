//! What happens, a line for each thing: for pipes and logs.

use chrono::Utc;

use super::super::text;
use crate::api::lead_change::Change;
use crate::api::{LeadChange, LeadSnapshot, LeadUpdate, SnapshotReason};

/// A state that a stream starts, or starts over, with.
pub(super) fn snapshot(snapshot: &LeadSnapshot) -> String {
    let lead = snapshot.lead.clone().unwrap_or_default();
    let now = Utc::now().format("%H:%M:%S");
    let id = text::plain(&lead.lead_id);
    let why = match snapshot.reason() {
        SnapshotReason::Deleted => return format!("{now}  {id}  deleted"),
        _ if lead.version == 0 => return format!("{now}  {id}  nothing is known yet"),
        _ => reason(snapshot).map(|reason| format!(" ({reason})")).unwrap_or_default(),
    };
    let latest = lead.latest_activity.as_ref().map(|latest| format!("; {}", text::activity(latest))).unwrap_or_default();
    let (messages, documents) = (text::count(lead.message_count, "message"), text::count(lead.document_count, "document"));
    format!("{now}  {id}  {messages}, {documents}{latest}{why}")
}

/// Why a stream starts over, if it does.
pub(super) fn reason(snapshot: &LeadSnapshot) -> Option<&'static str> {
    match snapshot.reason() {
        SnapshotReason::ResumePositionUnknown => Some("from the start: the server does not know the last version"),
        SnapshotReason::StoreLostWrites => Some("from the start: Redis has lost writes"),
        SnapshotReason::Deleted => Some("deleted"),
        _ => None,
    }
}

pub(super) fn update(update: &LeadUpdate) -> Vec<String> {
    let lead = update.lead.clone().unwrap_or_default();
    let start = format!("{}  {}", Utc::now().format("%H:%M:%S"), text::plain(&lead.lead_id));
    let mut lines: Vec<_> = update.changes.iter().filter_map(change).map(|told| format!("{start}  {told}")).collect();
    if update.changes_truncated || lines.is_empty() {
        let (messages, documents) = (text::count(lead.message_count, "message"), text::count(lead.document_count, "document"));
        lines.push(format!("{start}  more has changed than is told: now {messages}, {documents}"));
    }
    lines
}

/// A change, in words.
pub(super) fn change(change: &LeadChange) -> Option<String> {
    Some(match change.change.as_ref()? {
        Change::Activity(activity) => text::activity(activity),
        Change::Document(document) => format!("document {}", text::document(document)),
        Change::ProfileField(field) => format!("profile {}", text::plain(field)),
        Change::ChecklistItem(item) => text::plain(&format!("checklist {} {}", item.code, item.status)),
    })
}
