//! What `document.received` and `document.extracted` mean.

use super::fields::{EXTRACTION_STATUSES, Reader, required_id, required_word};
use super::limits::{MAX_FILENAME_BYTES, MAX_ID_BYTES, MAX_SUMMARY_BYTES};
use super::unread::Field;
use super::{Receipt, told_or_receipt, workspace};
use crate::event::{DocumentExtracted, DocumentReceived, Refusal};
use crate::lead::{Addition, Change, Document, Extraction, Mention, ProfileField, ProfileKey, Source};

pub(super) fn received(event: &DocumentReceived<'_>, receipt: Receipt<'_>, reader: &mut Reader<'_>) -> Result<Change, Refusal> {
    let Some(document) = &event.document else {
        return Err(Refusal::field("document", "required: an object"));
    };
    let document_id = required_id("document.id", &document.id)?;
    let lead_id = required_id("document.leadId", &document.lead_id)?;
    let told = reader.time(Field::ReceivedCreatedAt, &document.created_at, receipt.at);
    let told = told.or_else(|| reader.time(Field::OccurredAt, &event.occurred_at, receipt.at));
    let (time, timed) = told_or_receipt(told, receipt);
    let mention = Mention {
        source: Source::Received,
        time,
        message_id: reader.id(Field::ReceivedMessageId, &document.message_id).to_owned(),
        filename: reader.text(Field::ReceivedFilename, &document.filename, MAX_FILENAME_BYTES),
        mime_type: reader.text(Field::ReceivedMimeType, &document.mime_type, MAX_ID_BYTES),
        size: reader.size(Field::ReceivedSize, &document.size),
        create_time: timed.then_some(time),
        ..Mention::default()
    };
    let additions = vec![Addition::Document(Document { document_id, mentions: vec![mention], extraction: None, version: 0 })];
    let workspace_id = workspace(&event.workspace_id, receipt)?;
    Ok(Change { lead_id, workspace_id, received: receipt.at, activity: None, additions })
}

pub(super) fn extracted(event: &DocumentExtracted<'_>, receipt: Receipt<'_>, reader: &mut Reader<'_>) -> Result<Change, Refusal> {
    let lead_id = required_id("leadId", &event.lead_id)?;
    let document_id = required_id("documentId", &event.document_id)?;
    let status = required_word("status", &event.status, EXTRACTION_STATUSES)?;
    let external_id = reader.id(Field::ExtractedExternalId, &event.external_id);
    let mention = Mention { source: Source::Extracted, time: receipt.at, external_id: external_id.to_owned(), ..Mention::default() };
    let extraction = Extraction {
        status,
        document_type: reader.text(Field::ExtractedType, &event.document_type, MAX_ID_BYTES),
        summary: reader.text(Field::ExtractedSummary, &event.summary, MAX_SUMMARY_BYTES),
        time: receipt.at,
    };
    let mentions = if external_id.is_empty() { Vec::new() } else { vec![mention] };
    let mut additions = vec![Addition::Document(Document { document_id, mentions, extraction: Some(extraction), version: 0 })];
    let external_lead_id = reader.id(Field::ExtractedExternalLeadId, &event.external_lead_id);
    if !external_lead_id.is_empty() {
        let field = ProfileField { value: external_lead_id.to_owned(), version: 0 };
        additions.push(Addition::FillProfile(ProfileKey::ExternalId, field));
    }
    let workspace_id = workspace(&event.workspace_id, receipt)?;
    Ok(Change { lead_id, workspace_id, received: receipt.at, activity: None, additions })
}
