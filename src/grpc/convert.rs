//! Domain to API.

use prost::Message;
use prost_types::Timestamp as ApiTime;

use crate::api;
use crate::lead::{Activity, ChecklistItem, DOCUMENTS_SHOWN, Document, Lead, ProfileKey};
use crate::time::Timestamp;
use crate::watch::{Changed, What};

/// The API's time of a point in time.
pub fn time(time: Timestamp) -> ApiTime {
    let micros = time.micros();
    ApiTime { seconds: micros.div_euclid(1_000_000), nanos: i32::try_from(micros.rem_euclid(1_000_000) * 1000).unwrap_or(0) }
}

/// The domain's time of an API time. Beyond what a timestamp may hold, the nearest that it may.
pub fn timestamp(time: &ApiTime) -> Timestamp {
    Timestamp::from_micros(time.seconds.saturating_mul(1_000_000).saturating_add(i64::from(time.nanos) / 1000))
}

/// Bytes of a lead at most: what clients take in one message is four times that.
const MAX_LEAD_BYTES: usize = 1 << 20;
/// Bytes of the changes beside a lead.
const MAX_CHANGES_BYTES: usize = 2 << 20;
/// Checklist items of a lead at most.
const CHECKLIST_ITEMS_SHOWN: usize = 100;

/// A lead, with the newest of its documents and checklist items: as many as may be, and as there is room for.
pub fn lead(lead: &Lead) -> api::Lead {
    let mut told = told(lead);
    let length = told.encoded_len();
    if length > MAX_LEAD_BYTES {
        let (documents, items) = (std::mem::take(&mut told.documents), std::mem::take(&mut told.checklist_items));
        let room = MAX_LEAD_BYTES.saturating_sub(told.encoded_len());
        // Each of the two gets half, and what the other leaves.
        let (of_documents, of_items) = (bytes_of(&documents), bytes_of(&items));
        let for_documents = (room / 2).max(room.saturating_sub(of_items));
        told.documents = fitting(documents, for_documents);
        told.checklist_items = fitting(items, room - of_documents.min(for_documents));
    }
    // In the order that was promised: they were chosen by their age.
    told.checklist_items.sort_by(|a, b| a.checklist_item_id.cmp(&b.checklist_item_id));
    told
}

/// Bytes of these as a field. Its tag and length are five bytes at most here.
fn bytes_of<M: Message>(items: &[M]) -> usize {
    items.iter().map(|item| item.encoded_len() + 5).sum()
}

/// The first of these that fit.
fn fitting<M: Message>(items: Vec<M>, room: usize) -> Vec<M> {
    let mut bytes = 0;
    let fits = |item: &M| {
        bytes += item.encoded_len() + 5;
        bytes <= room
    };
    items.into_iter().take_while(fits).collect()
}

/// The newest of these changes, which come oldest first, as far as they fit into a message; and whether all do.
pub fn fitting_changes(mut changes: Vec<api::LeadChange>) -> (Vec<api::LeadChange>, bool) {
    let mut bytes = 0;
    let fit = changes.iter().rev().take_while(|change| {
        bytes += change.encoded_len() + 5;
        bytes <= MAX_CHANGES_BYTES
    });
    let too_many = changes.len() - fit.count();
    changes.drain(..too_many);
    (changes, too_many == 0)
}

fn newest_items(lead: &Lead) -> Vec<api::ChecklistItem> {
    let mut items: Vec<_> = lead.checklist.values().collect();
    items.sort_by(|a, b| (b.version, b.time).cmp(&(a.version, a.time)).then_with(|| a.item_id.cmp(&b.item_id)));
    items.into_iter().take(CHECKLIST_ITEMS_SHOWN).map(checklist_item).collect()
}

/// The newest documents and items first.
fn told(lead: &Lead) -> api::Lead {
    let profile = |key: ProfileKey| lead.profile.get(&key).map(|field| field.value.clone()).unwrap_or_default();
    let activity_counts = lead.activity_counts.iter();
    let message_counts = lead.message_counts.iter();
    api::Lead {
        lead_id: lead.lead_id.clone(),
        workspace_id: lead.workspace_id.clone(),
        external_id: profile(ProfileKey::ExternalId),
        version: lead.version,
        first_activity_time: lead.first_activity.map(time),
        latest_activity_time: lead.latest_time().map(time),
        // A version is the time of the change in ms, or a little more where changes came faster.
        update_time: (lead.version > 0).then(|| time(Timestamp::from_millis(i64::try_from(lead.version).unwrap_or(i64::MAX)))),
        latest_activity: lead.latest_activity.as_ref().map(activity),
        activity_counts: activity_counts
            .map(|((kind, status), count)| api::ActivityCount { r#type: kind.clone(), status: status.clone(), count: *count })
            .collect(),
        message_count: lead.message_counts.values().map(|messages| messages.count).sum(),
        message_counts: message_counts
            .map(|((channel, direction), messages)| api::MessageCount {
                channel: channel.clone(),
                direction: direction.clone(),
                count: messages.count,
                latest_time: Some(time(messages.latest)),
            })
            .collect(),
        document_count: lead.documents.len() as u64,
        documents: lead.documents.iter().take(DOCUMENTS_SHOWN).map(document).collect(),
        profile: Some(api::Profile {
            first_name: profile(ProfileKey::FirstName),
            middle_name: profile(ProfileKey::MiddleName),
            last_name: profile(ProfileKey::LastName),
            phone_number: profile(ProfileKey::PhoneNumber),
            email: profile(ProfileKey::Email),
            business_name: profile(ProfileKey::BusinessName),
            website: profile(ProfileKey::Website),
            source: profile(ProfileKey::Source),
        }),
        checklist_items: newest_items(lead),
        checklist_item_count: lead.checklist.len() as u64,
        application_complete_time: lead.completion.map(|completion| time(completion.time)),
    }
}

/// An activity.
pub fn activity(activity: &Activity) -> api::Activity {
    api::Activity {
        action_id: activity.action_id.clone(),
        r#type: activity.kind.clone(),
        status: activity.status.clone(),
        summary: activity.summary.clone(),
        error: activity.error.clone(),
        complete_time: Some(time(activity.time)),
        channel: activity.channel.clone(),
        direction: activity.direction.clone(),
        message_count: activity.message_count(),
        document_ids: activity.document_ids.clone(),
        tool_name: activity.tool_name.clone(),
        agent_id: activity.agent_id.clone(),
        parent_action_id: activity.parent_action_id.clone(),
        version: activity.version,
    }
}

/// A document.
pub fn document(document: &Document) -> api::Document {
    api::Document {
        document_id: document.document_id.clone(),
        external_id: document.text(|mention| &mention.external_id).to_owned(),
        filename: document.text(|mention| &mention.filename).to_owned(),
        mime_type: document.text(|mention| &mention.mime_type).to_owned(),
        size_bytes: document.told(|mention| mention.size),
        message_id: document.text(|mention| &mention.message_id).to_owned(),
        action_id: document.text(|mention| &mention.action_id).to_owned(),
        create_time: Some(time(document.create_time())),
        extraction: document.extraction.as_ref().map(|extraction| api::Extraction {
            status: extraction.status.clone(),
            document_type: extraction.document_type.clone(),
            summary: extraction.summary.clone(),
            update_time: Some(time(extraction.time)),
        }),
    }
}

fn checklist_item(item: &ChecklistItem) -> api::ChecklistItem {
    api::ChecklistItem {
        checklist_item_id: item.item_id.clone(),
        code: item.code.clone(),
        status: item.status.clone(),
        value: item.value.clone(),
        update_time: item.time.map(time),
        document_ids: item.document_ids.clone(),
    }
}

/// A change.
pub fn change(changed: &Changed) -> api::LeadChange {
    use api::lead_change::Change;
    api::LeadChange {
        version: changed.version,
        change: Some(match &changed.what {
            What::Activity(new) => Change::Activity(activity(new)),
            What::Document(new) => Change::Document(document(new)),
            What::Profile(key) => Change::ProfileField(key.name().to_owned()),
            What::Completion => Change::ProfileField("application_complete_time".to_owned()),
            What::ChecklistItem(item) => Change::ChecklistItem(checklist_item(item)),
        }),
    }
}
