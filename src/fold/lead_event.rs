//! What `lead.created`, `lead.updated` and `lead.completed` mean.

use super::fields::{ITEM_STATUSES, Reader, required_id};
use super::limits::{MAX_FILENAME_BYTES, MAX_ID_BYTES, MAX_VALUE_BYTES};
use super::parts::{Documents, Index, Items};
use super::unread::Field;
use super::{Receipt, workspace};
use crate::event::{ChecklistItemUpdate, LeadEvent, Patch, Refusal};
use crate::lead::{Addition, Change, ChecklistItem, Completion, Mention, ProfileField, ProfileKey, Source};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum LeadEventKind {
    Created,
    Updated,
    Completed,
}

pub(super) fn lead_event(
    event: &LeadEvent<'_>,
    receipt: Receipt<'_>,
    kind: LeadEventKind,
    reader: &mut Reader<'_>,
) -> Result<Change, Refusal> {
    let Some(data) = &event.data else {
        return Err(Refusal::field("data", "required: an object"));
    };
    let lead_id = required_id("data.leadId", &data.lead_id)?;
    let mut additions = Vec::new();
    for (key, patch) in data.profile() {
        let value = match patch {
            Patch::Absent => continue,
            Patch::Cleared => ProfileField::default(),
            Patch::Set(value) => match reader.scalar(field(key), value, MAX_VALUE_BYTES) {
                Some(value) => ProfileField { value, version: 0 },
                // It says nothing, so it clears nothing.
                None => continue,
            },
        };
        // Only an update clears, and only an update overwrites: the others tell of an earlier or the same state.
        additions.extend(match (patch, kind) {
            (_, LeadEventKind::Updated) => Some(Addition::SetProfile(key, value)),
            (Patch::Set(_), _) => Some(Addition::FillProfile(key, value)),
            _ => None,
        });
    }
    let (mut items, mut documents) = (Items::new(), Documents::new());
    for (index, item) in data.checklist_items.iter().flat_map(|list| list.iter()).enumerate() {
        let Some(item) = item else { continue };
        if let Some(item) = checklist_item(item, index, receipt, &mut documents, reader)? {
            items.add(item, || "data.checklistItems".to_owned())?;
        }
    }
    additions.extend(items.additions());
    additions.extend(documents.additions());
    if kind == LeadEventKind::Completed {
        additions.push(Addition::Completion(Completion { time: receipt.at, version: 0 }));
    }
    let workspace_id = workspace(&event.workspace_id, receipt)?;
    Ok(Change { lead_id, workspace_id, received: receipt.at, activity: None, additions })
}

fn field(key: ProfileKey) -> Field {
    match key {
        ProfileKey::ExternalId => Field::LeadExternalId,
        ProfileKey::FirstName => Field::FirstName,
        ProfileKey::MiddleName => Field::MiddleName,
        ProfileKey::LastName => Field::LastName,
        ProfileKey::PhoneNumber => Field::PhoneNumber,
        ProfileKey::Email => Field::Email,
        ProfileKey::BusinessName => Field::BusinessName,
        ProfileKey::Website => Field::Website,
        ProfileKey::Source => Field::LeadSource,
    }
}

fn checklist_item(
    item: &ChecklistItemUpdate<'_>,
    index: usize,
    receipt: Receipt<'_>,
    documents: &mut Documents,
    reader: &mut Reader<'_>,
) -> Result<Option<ChecklistItem>, Refusal> {
    let item_id = reader.id(Field::ItemId, &item.checklist_item_id);
    if item_id.is_empty() {
        return Ok(None);
    }
    let updated = reader.time(Field::ItemUpdatedAt, &item.updated_at, receipt.at);
    let mut ids = Index::new();
    for document in item.documents.iter().flat_map(|list| list.iter()).flatten() {
        let document_id = reader.id(Field::ItemDocumentId, &document.document_id);
        let mention = || Mention {
            source: Source::ChecklistItem,
            time: updated.unwrap_or(receipt.at),
            external_id: reader.id(Field::ItemDocumentExternalId, &document.external_id).to_owned(),
            filename: reader.text(Field::ItemDocumentFilename, &document.filename, MAX_FILENAME_BYTES),
            mime_type: reader.text(Field::ItemDocumentMimeType, &document.mime_type, MAX_ID_BYTES),
            size: reader.size(Field::ItemDocumentSize, &document.size),
            ..Mention::default()
        };
        documents.add(document_id, mention, || format!("data.checklistItems[{index}].documents"))?;
        if !document_id.is_empty() && ids.position(&document_id).is_none() {
            ids.push(document_id);
        }
    }
    Ok(Some(ChecklistItem {
        item_id: item_id.to_owned(),
        code: reader.text(Field::ItemCode, &item.checklist_item_code, MAX_ID_BYTES),
        status: reader.word(Field::ItemStatus, &item.status, ITEM_STATUSES).unwrap_or_default().to_owned(),
        value: reader.whole(Field::ItemValue, &item.value.0, MAX_VALUE_BYTES),
        time: updated,
        document_ids: ids.into_keys().into_iter().map(str::to_owned).collect(),
        version: 0,
    }))
}
