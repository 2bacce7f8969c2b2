//! What `action_log.completed` and `action_log.failed` mean.

use super::fields::{ACTION_STATUSES, ACTION_TYPES, CHANNELS, DIRECTIONS, Reader, required_id, required_word};
use super::limits::{MAX_FILENAME_BYTES, MAX_ID_BYTES, MAX_SUMMARY_BYTES, at_most};
use super::parts::{Documents, Index, Tallies};
use super::unread::Field;
use super::{Receipt, told_or_receipt, workspace};
use crate::event::{ActionLogEvent, Refusal};
use crate::lead::{Activity, Change, Mention, Source, UNKNOWN};

pub(super) fn action_log(event: &ActionLogEvent<'_>, receipt: Receipt<'_>, reader: &mut Reader<'_>) -> Result<Change, Refusal> {
    let Some(log) = &event.action_log else {
        return Err(Refusal::field("actionLog", "required: an object"));
    };
    let action_id = required_id("actionLog.id", &log.id)?;
    let kind = required_word("actionLog.type", &log.kind, ACTION_TYPES)?;
    let status = required_word("actionLog.status", &log.status, ACTION_STATUSES)?;
    let lead_id = required_id("actionLog.leadId", &log.lead_id)?;
    let workspace_id = workspace(&event.workspace_id, receipt)?;
    if workspace_id.is_none() {
        return Err(Refusal::field("workspaceId", "required: a non-empty string"));
    }
    let told = reader.time(Field::CompletedAt, &log.completed_at, receipt.at);
    let told = told.or_else(|| reader.time(Field::OccurredAt, &event.occurred_at, receipt.at));
    let (time, timed) = told_or_receipt(told, receipt);

    let payloads = [("actionLog.input", Field::Input, &log.input), ("actionLog.output", Field::Output, &log.output)];
    let input = log.input.as_ref();
    let input_channel = input.and_then(|input| reader.word(Field::Input, &input.channel, CHANNELS));
    let input_direction = input.and_then(|input| reader.word(Field::Input, &input.direction, DIRECTIONS));
    if log.tool.as_ref().is_some_and(|tool| tool.ill_typed) {
        reader.note(Field::Tool);
    }

    let mut activity = Activity {
        action_id,
        kind,
        status,
        time,
        timed,
        summary: reader.text(Field::ActionSummary, &log.summary, MAX_SUMMARY_BYTES),
        error: reader.text(Field::ActionError, &log.error, MAX_SUMMARY_BYTES),
        channel: input_channel.unwrap_or_default().to_owned(),
        direction: input_direction.unwrap_or_default().to_owned(),
        tool_name: log.tool.as_ref().map_or_else(String::new, |tool| reader.text(Field::Tool, &tool.name, MAX_ID_BYTES)),
        agent_id: reader.text(Field::AgentId, &log.agent_id, MAX_ID_BYTES),
        parent_action_id: reader.text(Field::ParentActionId, &log.parent_action_id, MAX_ID_BYTES),
        ..Activity::default()
    };
    let mut documents = Documents::new();
    let mut seen = Index::new();
    let mut tallies = Tallies::new();
    for (index, message) in log.messages() {
        let message_id = reader.id(Field::MessageId, &message.id);
        if !message_id.is_empty() {
            if seen.position(&message_id).is_some() {
                continue;
            }
            at_most(seen.len(), messages)?;
            seen.push(message_id);
        }
        let channel = reader.word(Field::Channel, &message.channel, CHANNELS).or(input_channel);
        let direction = reader.word(Field::Direction, &message.direction, DIRECTIONS).or(input_direction);
        if activity.channel.is_empty() {
            activity.channel = channel.unwrap_or_default().to_owned();
        }
        if activity.direction.is_empty() {
            activity.direction = direction.unwrap_or_default().to_owned();
        }
        tallies.add(channel.unwrap_or(UNKNOWN), direction.unwrap_or(UNKNOWN), messages)?;
        for document in message.documents() {
            let document_id = reader.id(Field::MessageDocumentId, &document.id);
            let mention = || Mention {
                source: Source::Message,
                time,
                action_id: activity.action_id.clone(),
                message_id: message_id.to_owned(),
                filename: reader.text(Field::MessageDocumentFilename, &document.filename, MAX_FILENAME_BYTES),
                mime_type: reader.text(Field::MessageDocumentMimeType, &document.mime_type, MAX_ID_BYTES),
                size: reader.size(Field::MessageDocumentSize, &document.size),
                create_time: Some(time),
                ..Mention::default()
            };
            documents.add(document_id, mention, || format!("actionLog.messages[{index}].documents"))?;
        }
    }
    activity.messages = tallies.sorted();
    for (path, field, payload) in payloads {
        for document in payload.iter().flat_map(|payload| &payload.documents.0) {
            let document_id = reader.id(field, &document.id);
            let mention = || Mention {
                source: Source::Payload,
                time,
                action_id: activity.action_id.clone(),
                filename: reader.text(field, &document.filename, MAX_FILENAME_BYTES),
                mime_type: reader.text(field, &document.mime_type, MAX_ID_BYTES),
                size: reader.size(field, &document.size),
                create_time: Some(time),
                ..Mention::default()
            };
            documents.add(document_id, mention, || format!("{path}.documents"))?;
        }
    }
    activity.document_ids = documents.ids();
    let additions = documents.additions().collect();
    Ok(Change { lead_id, workspace_id, received: receipt.at, activity: Some(activity), additions })
}

fn messages() -> String {
    "actionLog.messages".to_owned()
}
