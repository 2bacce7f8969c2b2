//! The fold: what an event means. Pure, and the only home of the rules.
//!
//! [`fold`] turns one event into a [`Change`]: what it adds to its lead, never "look, then decide". [`merge`]
//! says how an addition joins what is there already. Both are order-free and idempotent: any order, any
//! duplication and any split of the same events over writers end in the same aggregate (profile patches,
//! which carry no time, excepted: the last to arrive wins).

pub mod effect;
mod limits;
pub mod merge;

use crate::event::{ActionLogEvent, ChecklistItemUpdate, DocumentExtracted, DocumentReceived, Event, LeadEvent, Patch, Refusal, Text};
use crate::lead::{
    Activity, Addition, Change, ChecklistItem, Completion, Detail, Document, Extraction, Mention, MessageTally, ProfileField, ProfileKey,
    Source, UNKNOWN,
};
use crate::time::Timestamp;
pub use limits::MAX_ID_BYTES;
use limits::{MAX_FILENAME_BYTES, MAX_SUMMARY_BYTES, MAX_VALUE_BYTES, at_most, cut, optional_id, required_id, required_word, word};

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
/// A required field is missing or empty, a timestamp is not RFC 3339, or something is over its limit; the
/// refusal names the field.
pub fn fold(event: &Event<'_>, receipt: Receipt<'_>) -> Result<Folded, Refusal> {
    let change = match event {
        Event::ActionLog(event) => action_log(event, receipt),
        Event::DocumentReceived(event) => document_received(event, receipt),
        Event::DocumentExtracted(event) => document_extracted(event, receipt),
        Event::LeadCreated(event) => lead_event(event, receipt, LeadEventKind::Created),
        Event::LeadUpdated(event) => lead_event(event, receipt, LeadEventKind::Updated),
        Event::LeadCompleted(event) => lead_event(event, receipt, LeadEventKind::Completed),
        Event::Unknown(name) => return Ok(Folded::UnknownEvent(name.clone())),
    }?;
    Ok(Folded::Change(Box::new(change)))
}

fn action_log(event: &ActionLogEvent<'_>, receipt: Receipt<'_>) -> Result<Change, Refusal> {
    let Some(log) = &event.action_log else {
        return Err(Refusal::field("actionLog", "required: an object"));
    };
    let action_id = required_id("actionLog.id", &log.id)?;
    let kind = required_word("actionLog.type", &log.kind)?;
    let status = required_word("actionLog.status", &log.status)?;
    let lead_id = required_id("actionLog.leadId", &log.lead_id)?;
    let workspace_id = workspace(&event.workspace_id, receipt)?;
    if workspace_id.is_none() {
        return Err(Refusal::field("workspaceId", "required: a non-empty string"));
    }
    let told = match time("actionLog.completedAt", &log.completed_at)? {
        Some(time) => Some(time),
        None => time("occurredAt", &event.occurred_at)?,
    };
    let (time, timed) = believed_or_receipt(told, receipt);

    let payloads = [("actionLog.input", &log.input), ("actionLog.output", &log.output)];
    let input = log.input.as_ref();
    let input_channel = input.and_then(|input| short_word(&input.channel));
    let input_direction = input.and_then(|input| short_word(&input.direction));

    let mut activity = Activity {
        action_id,
        kind,
        status,
        time,
        timed,
        summary: cut(&log.summary, MAX_SUMMARY_BYTES),
        error: cut(&log.error, MAX_SUMMARY_BYTES),
        channel: input_channel.unwrap_or_default().to_owned(),
        direction: input_direction.unwrap_or_default().to_owned(),
        tool_name: cut_str(log.tool_name(), MAX_ID_BYTES),
        agent_id: cut(&log.agent_id, MAX_ID_BYTES),
        parent_action_id: cut(&log.parent_action_id, MAX_ID_BYTES),
        ..Activity::default()
    };
    let mut documents = Documents::new();
    let mut seen: Vec<&str> = Vec::new();
    for (index, message) in log.messages() {
        let path = || format!("actionLog.messages[{index}]");
        let message_id = optional_id(&message.id, || format!("{}.id", path()))?;
        if !message_id.is_empty() {
            if seen.contains(&message_id) {
                continue;
            }
            at_most(seen.len(), || "actionLog.messages".to_owned())?;
            seen.push(message_id);
        }
        let channel = word(&message.channel, || format!("{}.channel", path()))?.or(input_channel);
        let direction = word(&message.direction, || format!("{}.direction", path()))?.or(input_direction);
        if activity.channel.is_empty() {
            activity.channel = channel.unwrap_or_default().to_owned();
        }
        if activity.direction.is_empty() {
            activity.direction = direction.unwrap_or_default().to_owned();
        }
        tally(&mut activity.messages, channel.unwrap_or(UNKNOWN), direction.unwrap_or(UNKNOWN));
        for (position, document) in message.documents() {
            let document_id = optional_id(&document.id, || format!("{}.documents[{position}].id", path()))?;
            let mention = Mention {
                source: Source::Message,
                time,
                action_id: activity.action_id.clone(),
                message_id: message_id.to_owned(),
                filename: cut(&document.filename, MAX_FILENAME_BYTES),
                mime_type: cut(&document.mime_type, MAX_ID_BYTES),
                size: document.size.and_then(|size| size.0),
                create_time: Some(time),
                ..Mention::default()
            };
            documents.add(document_id, mention, || format!("{}.documents", path()))?;
        }
    }
    activity.messages.sort();
    at_most(activity.messages.len(), || "actionLog.messages".to_owned())?;
    for (path, payload) in payloads {
        for (position, document) in payload.iter().flat_map(|payload| &payload.documents).enumerate() {
            let document_id = optional_id(&document.id, || format!("{path}.documents[{position}].id"))?;
            let mention = Mention {
                source: Source::Payload,
                time,
                action_id: activity.action_id.clone(),
                filename: cut(&document.filename, MAX_FILENAME_BYTES),
                mime_type: cut(&document.mime_type, MAX_ID_BYTES),
                size: document.size.0,
                create_time: Some(time),
                ..Mention::default()
            };
            documents.add(document_id, mention, || format!("{path}.documents"))?;
        }
    }
    activity.document_ids = documents.ids();
    Ok(Change { lead_id, workspace_id, received: receipt.at, activity: Some(activity), additions: documents.additions() })
}

fn document_received(event: &DocumentReceived<'_>, receipt: Receipt<'_>) -> Result<Change, Refusal> {
    let Some(document) = &event.document else {
        return Err(Refusal::field("document", "required: an object"));
    };
    let document_id = required_id("document.id", &document.id)?;
    let lead_id = required_id("document.leadId", &document.lead_id)?;
    let told = match time("document.createdAt", &document.created_at)? {
        Some(time) => Some(time),
        None => time("occurredAt", &event.occurred_at)?,
    };
    let (time, timed) = believed_or_receipt(told, receipt);
    let mention = Mention {
        source: Source::Received,
        time,
        message_id: optional_id(&document.message_id, || "document.messageId".to_owned())?.to_owned(),
        filename: cut(&document.filename, MAX_FILENAME_BYTES),
        mime_type: cut(&document.mime_type, MAX_ID_BYTES),
        size: document.size.and_then(|size| size.0),
        create_time: timed.then_some(time),
        ..Mention::default()
    };
    let mut documents = Documents::new();
    documents.add(&document_id, mention, String::new)?;
    let workspace_id = workspace(&event.workspace_id, receipt)?;
    Ok(Change { lead_id, workspace_id, received: receipt.at, activity: None, additions: documents.additions() })
}

fn document_extracted(event: &DocumentExtracted<'_>, receipt: Receipt<'_>) -> Result<Change, Refusal> {
    let lead_id = required_id("leadId", &event.lead_id)?;
    let document_id = required_id("documentId", &event.document_id)?;
    let status = required_word("status", &event.status)?;
    let external_id = optional_id(&event.external_id, || "externalId".to_owned())?;
    let mention = Mention { source: Source::Extracted, time: receipt.at, external_id: external_id.to_owned(), ..Mention::default() };
    let extraction = Extraction {
        status,
        document_type: cut(&event.document_type, MAX_ID_BYTES),
        summary: cut(&event.summary, MAX_SUMMARY_BYTES),
        time: receipt.at,
    };
    let mentions = if external_id.is_empty() { Vec::new() } else { vec![mention] };
    let mut additions = vec![Addition::Document(Document { document_id, mentions, extraction: Some(extraction), version: 0 })];
    let external_lead_id = optional_id(&event.external_lead_id, || "externalLeadId".to_owned())?;
    if !external_lead_id.is_empty() {
        let field = ProfileField { value: external_lead_id.to_owned(), version: 0 };
        additions.push(Addition::FillProfile(ProfileKey::ExternalId, field));
    }
    let workspace_id = workspace(&event.workspace_id, receipt)?;
    Ok(Change { lead_id, workspace_id, received: receipt.at, activity: None, additions })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum LeadEventKind {
    Created,
    Updated,
    Completed,
}

fn lead_event(event: &LeadEvent<'_>, receipt: Receipt<'_>, kind: LeadEventKind) -> Result<Change, Refusal> {
    let Some(data) = &event.data else {
        return Err(Refusal::field("data", "required: an object"));
    };
    let lead_id = required_id("data.leadId", &data.lead_id)?;
    let mut additions = Vec::new();
    for (key, patch) in data.profile() {
        // Only an update clears, and only an update overwrites: the others tell of an earlier or the same state.
        additions.extend(match (patch, kind) {
            (Patch::Set(value), LeadEventKind::Updated) => Some(Addition::SetProfile(key, profile_field(value))),
            (Patch::Cleared, LeadEventKind::Updated) => Some(Addition::SetProfile(key, ProfileField::default())),
            (Patch::Set(value), _) => Some(Addition::FillProfile(key, profile_field(value))),
            (Patch::Cleared | Patch::Absent, _) => None,
        });
    }
    let mut documents = Documents::new();
    let items = data.checklist_items.iter().flatten().enumerate();
    for (index, item) in items.filter_map(|(index, item)| Some((index, item.as_ref()?))) {
        let path = format!("data.checklistItems[{index}]");
        if let Some(item) = checklist_item(item, &path, receipt, &mut documents)? {
            at_most(additions.len(), || "data.checklistItems".to_owned())?;
            merge_into(&mut additions, Addition::ChecklistItem(item));
        }
    }
    additions.extend(documents.additions());
    if kind == LeadEventKind::Completed {
        additions.push(Addition::Completion(Completion { time: receipt.at, version: 0 }));
    }
    let workspace_id = workspace(&event.workspace_id, receipt)?;
    Ok(Change { lead_id, workspace_id, received: receipt.at, activity: None, additions })
}

fn checklist_item(
    item: &ChecklistItemUpdate<'_>,
    path: &str,
    receipt: Receipt<'_>,
    documents: &mut Documents,
) -> Result<Option<ChecklistItem>, Refusal> {
    let item_id = optional_id(&item.checklist_item_id, || format!("{path}.checklistItemId"))?;
    if item_id.is_empty() {
        return Ok(None);
    }
    let updated = time(&format!("{path}.updatedAt"), &item.updated_at)?.filter(|time| time.is_believed_at(receipt.at));
    let mut document_ids = Vec::new();
    for (position, document) in item.documents.iter().flatten().enumerate() {
        let Some(document) = document else { continue };
        let document_path = || format!("{path}.documents[{position}]");
        let document_id = optional_id(&document.document_id, || format!("{}.documentId", document_path()))?;
        let mention = Mention {
            source: Source::ChecklistItem,
            time: updated.unwrap_or(receipt.at),
            external_id: optional_id(&document.external_id, || format!("{}.externalId", document_path()))?.to_owned(),
            filename: cut(&document.filename, MAX_FILENAME_BYTES),
            mime_type: cut(&document.mime_type, MAX_ID_BYTES),
            size: document.size.and_then(|size| size.0),
            ..Mention::default()
        };
        documents.add(document_id, mention, || format!("{path}.documents"))?;
        if !document_id.is_empty() && !document_ids.iter().any(|id| id == document_id) {
            document_ids.push(document_id.to_owned());
        }
    }
    Ok(Some(ChecklistItem {
        item_id: item_id.to_owned(),
        code: cut(&item.checklist_item_code, MAX_ID_BYTES),
        status: cut(&item.status, MAX_ID_BYTES),
        value: cut_str(&item.value.0, MAX_VALUE_BYTES),
        time: updated,
        document_ids,
        version: 0,
    }))
}

/// The documents that one event speaks of, each id once.
struct Documents(Vec<Addition>);

impl Documents {
    const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds what was said of a document; without an id it is none.
    fn add(&mut self, document_id: &str, mention: Mention, path: impl FnOnce() -> String) -> Result<(), Refusal> {
        if document_id.is_empty() {
            return Ok(());
        }
        at_most(self.0.len(), path)?;
        let document = Document { document_id: document_id.to_owned(), mentions: vec![mention], extraction: None, version: 0 };
        merge_into(&mut self.0, Addition::Document(document));
        Ok(())
    }

    fn ids(&self) -> Vec<String> {
        let ids = self.0.iter().map(|addition| match addition.key() {
            crate::lead::DetailKey::Document(id) => id.to_owned(),
            _ => String::new(),
        });
        ids.collect()
    }

    fn additions(self) -> Vec<Addition> {
        self.0
    }
}

/// Keeps each key once: an addition joins an earlier one of the same event.
fn merge_into(additions: &mut Vec<Addition>, addition: Addition) {
    let Some(earlier) = additions.iter_mut().find(|earlier| earlier.key() == addition.key()) else {
        additions.push(addition);
        return;
    };
    let both = merge::detail(None, earlier).and_then(|detail| merge::detail(Some(&detail), &addition));
    match both {
        Some(Detail::Document(document)) => *earlier = Addition::Document(document),
        Some(Detail::ChecklistItem(item)) => *earlier = Addition::ChecklistItem(item),
        _ => {}
    }
}

/// A word of an action's payload, in which nothing is an error: one that is too long is passed over.
fn short_word<'a>(text: &'a Option<Text<'_>>) -> Option<&'a str> {
    word(text, String::new).ok().flatten()
}

fn tally(tallies: &mut Vec<MessageTally>, channel: &str, direction: &str) {
    match tallies.iter_mut().find(|tally| tally.channel == channel && tally.direction == direction) {
        Some(tally) => tally.count += 1,
        None => tallies.push(MessageTally { channel: channel.to_owned(), direction: direction.to_owned(), count: 1 }),
    }
}

fn profile_field(value: &Text<'_>) -> ProfileField {
    ProfileField { value: cut_str(value, MAX_VALUE_BYTES), version: 0 }
}

fn cut_str(text: &str, max: usize) -> String {
    limits::cut_str(text, max)
}

/// The event's own workspace, else the one in the URL; they must not contradict each other.
fn workspace(own: &Option<Text<'_>>, receipt: Receipt<'_>) -> Result<Option<String>, Refusal> {
    let own = optional_id(own, || "workspaceId".to_owned())?;
    match receipt.workspace_id {
        Some(url) if own.is_empty() => Ok(Some(url.to_owned())),
        Some(url) if url != own => Err(Refusal::field("workspaceId", "is not the workspace in the URL")),
        _ => Ok(Some(own.to_owned()).filter(|own| !own.is_empty())),
    }
}

fn time(path: &str, text: &Option<Text<'_>>) -> Result<Option<Timestamp>, Refusal> {
    let Some(text) = text else { return Ok(None) };
    let parsed = Timestamp::parse(text);
    parsed.map(Some).ok_or_else(|| Refusal::field(path, "not an RFC 3339 timestamp, such as 2025-10-30T20:07:17.553Z"))
}

fn believed_or_receipt(told: Option<Timestamp>, receipt: Receipt<'_>) -> (Timestamp, bool) {
    match told.filter(|time| time.is_believed_at(receipt.at)) {
        Some(time) => (time, true),
        None => (receipt.at, false),
    }
}
