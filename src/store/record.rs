//! How a lead's parts look as bytes. Both stores keep the same ones.
//!
//! An activity is `version:6 time:7 ActivityRecord`, a detail `version:6 record`: the numbers are big-endian,
//! so that a script can stamp the version and read the time without knowing the rest. The records are protobuf:
//! a field can be added, and is never renumbered. Ids are packed: a UUID takes 16 bytes instead of 36.

use bytes::Bytes;
use prost::Message;

use super::StoreError;
use crate::lead::{
    Activity, ChecklistItem, Completion, Detail, DetailKey, Document, Extraction, Mention, MessageTally, ProfileField, ProfileKey, Source,
};
use crate::time::Timestamp;

/// Bytes of the version at the start of every record.
pub(super) const VERSION_BYTES: usize = 6;
/// Bytes of the time that follows it in an activity.
const TIME_BYTES: usize = 7;

/// Packs an id: a UUID in its usual spelling becomes 16 bytes, all else stays text. No two ids pack alike: text
/// of 16 bytes gets a byte that no UTF-8 ends with.
pub(crate) fn pack(id: &str) -> Vec<u8> {
    if let Some(uuid) = canonical_uuid(id) {
        return uuid.as_bytes().to_vec();
    }
    let mut packed = id.as_bytes().to_vec();
    if packed.len() == 16 {
        packed.push(0xFF);
    }
    packed
}

fn canonical_uuid(id: &str) -> Option<uuid::Uuid> {
    if id.len() != 36 {
        return None;
    }
    let uuid = uuid::Uuid::try_parse(id).ok()?;
    let mut text = [0; 36];
    (uuid.as_hyphenated().encode_lower(&mut text) == id).then_some(uuid)
}

/// The id that was packed.
pub(crate) fn unpack(packed: &[u8]) -> Result<String, StoreError> {
    if let Ok(uuid) = <[u8; 16]>::try_from(packed) {
        return Ok(uuid::Uuid::from_bytes(uuid).to_string());
    }
    let text = packed.strip_suffix(&[0xFF]).unwrap_or(packed);
    String::from_utf8(text.to_vec()).map_err(|_| corrupt("an id that is not UTF-8"))
}

pub(super) fn corrupt(what: &str) -> StoreError {
    StoreError::Corrupt(what.to_owned())
}

/// Words that take one byte instead of their text. Only ever add at the end; position 0 means "as text".
const WORDS: [&str; 26] = [
    "",
    "COMPLETED",
    "FAILED",
    "MESSAGE",
    "FOLLOW_UP_MESSAGE",
    "SYSTEM_NOTE",
    "TOOL_CALL",
    "DOCUMENT_UPLOAD",
    "MANUAL_UPDATE",
    "PORTAL_UPDATE",
    "PORTAL_SUBMISSION",
    "EMAIL",
    "SMS",
    "WHATSAPP",
    "INBOUND",
    "OUTBOUND",
    "UNKNOWN",
    "PENDING",
    "CANCELLED",
    "AWAITING_APPROVAL",
    "application/pdf",
    "image/jpeg",
    "image/png",
    "text/plain",
    "text/csv",
    "image/heic",
];

fn word_code(word: &str) -> u32 {
    WORDS.iter().position(|known| *known == word).map_or(0, |position| u32::try_from(position).unwrap_or(0))
}

fn word_text(word: &str) -> String {
    if word_code(word) == 0 { word.to_owned() } else { String::new() }
}

fn word(code: u32, text: String) -> String {
    match WORDS.get(code as usize) {
        Some(known) if code > 0 => (*known).to_owned(),
        _ => text,
    }
}

#[derive(Clone, PartialEq, Message)]
struct ActivityRecord {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(string, tag = "2")]
    kind_text: String,
    #[prost(uint32, tag = "3")]
    status: u32,
    #[prost(string, tag = "4")]
    status_text: String,
    #[prost(uint32, tag = "5")]
    channel: u32,
    #[prost(string, tag = "6")]
    channel_text: String,
    #[prost(uint32, tag = "7")]
    direction: u32,
    #[prost(string, tag = "8")]
    direction_text: String,
    /// Messages of the activity's own channel and direction; `tallies` where that does not tell it all.
    #[prost(uint64, tag = "9")]
    messages: u64,
    #[prost(string, tag = "10")]
    summary: String,
    #[prost(bytes = "bytes", repeated, tag = "11")]
    document_ids: Vec<Bytes>,
    #[prost(string, tag = "12")]
    error: String,
    #[prost(bool, tag = "13")]
    untimed: bool,
    #[prost(message, repeated, tag = "14")]
    tallies: Vec<TallyRecord>,
    #[prost(string, tag = "15")]
    tool_name: String,
    #[prost(bytes = "bytes", tag = "16")]
    agent_id: Bytes,
    #[prost(bytes = "bytes", tag = "17")]
    parent_action_id: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct TallyRecord {
    #[prost(string, tag = "1")]
    channel: String,
    #[prost(string, tag = "2")]
    direction: String,
    #[prost(uint64, tag = "3")]
    count: u64,
}

/// The bytes of an activity, without its id.
pub(crate) fn encode_activity(activity: &Activity, version: u64) -> Vec<u8> {
    let own = matches!(&activity.messages[..], [tally] if tally.channel == activity.channel && tally.direction == activity.direction);
    let tally =
        |tally: &MessageTally| TallyRecord { channel: tally.channel.clone(), direction: tally.direction.clone(), count: tally.count };
    let record = ActivityRecord {
        kind: word_code(&activity.kind),
        kind_text: word_text(&activity.kind),
        status: word_code(&activity.status),
        status_text: word_text(&activity.status),
        channel: word_code(&activity.channel),
        channel_text: word_text(&activity.channel),
        direction: word_code(&activity.direction),
        direction_text: word_text(&activity.direction),
        messages: if own { activity.message_count() } else { 0 },
        summary: activity.summary.clone(),
        document_ids: activity.document_ids.iter().map(|id| pack(id).into()).collect(),
        error: activity.error.clone(),
        untimed: !activity.timed,
        tallies: if own { Vec::new() } else { activity.messages.iter().map(tally).collect() },
        tool_name: activity.tool_name.clone(),
        agent_id: pack(&activity.agent_id).into(),
        parent_action_id: pack(&activity.parent_action_id).into(),
    };
    let mut bytes = Vec::with_capacity(VERSION_BYTES + TIME_BYTES + record.encoded_len());
    bytes.extend_from_slice(&version_bytes(version));
    bytes.extend_from_slice(&activity.time.micros().max(0).to_be_bytes()[8 - TIME_BYTES..]);
    bytes.extend_from_slice(&record.encode_to_vec());
    bytes
}

/// The activity of an id and its bytes.
pub(crate) fn decode_activity(action_id: String, bytes: &[u8]) -> Result<Activity, StoreError> {
    let (version, rest) = split_version(bytes)?;
    let (time, rest) = rest.split_at_checked(TIME_BYTES).ok_or_else(|| corrupt("an activity that is cut short"))?;
    let mut micros = [0; 8];
    micros[8 - TIME_BYTES..].copy_from_slice(time);
    let record = ActivityRecord::decode(rest).map_err(|error| StoreError::Corrupt(format!("an activity: {error}")))?;
    let channel = word(record.channel, record.channel_text);
    let direction = word(record.direction, record.direction_text);
    let messages = match record.messages {
        0 => record
            .tallies
            .into_iter()
            .map(|tally| MessageTally { channel: tally.channel, direction: tally.direction, count: tally.count })
            .collect(),
        count => vec![MessageTally { channel: channel.clone(), direction: direction.clone(), count }],
    };
    Ok(Activity {
        action_id,
        kind: word(record.kind, record.kind_text),
        status: word(record.status, record.status_text),
        time: Timestamp::from_micros(i64::from_be_bytes(micros)),
        timed: !record.untimed,
        summary: record.summary,
        error: record.error,
        channel,
        direction,
        messages,
        document_ids: record.document_ids.iter().map(|id| unpack(id)).collect::<Result<_, _>>()?,
        tool_name: record.tool_name,
        agent_id: unpack(&record.agent_id)?,
        parent_action_id: unpack(&record.parent_action_id)?,
        version,
    })
}

pub(super) fn version_bytes(version: u64) -> [u8; VERSION_BYTES] {
    let mut bytes = [0; VERSION_BYTES];
    bytes.copy_from_slice(&version.to_be_bytes()[8 - VERSION_BYTES..]);
    bytes
}

fn split_version(bytes: &[u8]) -> Result<(u64, &[u8]), StoreError> {
    let (version, rest) = bytes.split_at_checked(VERSION_BYTES).ok_or_else(|| corrupt("a record that is cut short"))?;
    let mut number = [0; 8];
    number[8 - VERSION_BYTES..].copy_from_slice(version);
    Ok((u64::from_be_bytes(number), rest))
}

#[derive(Clone, PartialEq, Message)]
struct DocumentRecord {
    #[prost(message, repeated, tag = "1")]
    mentions: Vec<MentionRecord>,
    #[prost(message, optional, tag = "2")]
    extraction: Option<ExtractionRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct MentionRecord {
    #[prost(uint32, tag = "1")]
    source: u32,
    #[prost(uint64, tag = "2")]
    time: u64,
    #[prost(bytes = "bytes", tag = "3")]
    action_id: Bytes,
    #[prost(bytes = "bytes", tag = "4")]
    message_id: Bytes,
    #[prost(bytes = "bytes", tag = "5")]
    external_id: Bytes,
    #[prost(string, tag = "6")]
    filename: String,
    #[prost(uint32, tag = "7")]
    mime_type: u32,
    #[prost(string, tag = "8")]
    mime_type_text: String,
    #[prost(uint64, optional, tag = "9")]
    size: Option<u64>,
    /// Zero: the time of the mention itself. Absent: not told.
    #[prost(uint64, optional, tag = "10")]
    create_time: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct ExtractionRecord {
    #[prost(string, tag = "1")]
    status: String,
    #[prost(string, tag = "2")]
    document_type: String,
    #[prost(string, tag = "3")]
    summary: String,
    #[prost(uint64, tag = "4")]
    time: u64,
}

#[derive(Clone, PartialEq, Message)]
struct ChecklistItemRecord {
    #[prost(string, tag = "1")]
    code: String,
    #[prost(string, tag = "2")]
    status: String,
    #[prost(string, tag = "3")]
    value: String,
    #[prost(uint64, optional, tag = "4")]
    time: Option<u64>,
    #[prost(bytes = "bytes", repeated, tag = "5")]
    document_ids: Vec<Bytes>,
}

fn unsigned(time: Timestamp) -> u64 {
    u64::try_from(time.micros()).unwrap_or(0)
}

fn time(micros: u64) -> Timestamp {
    Timestamp::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
}

impl MentionRecord {
    fn of(mention: &Mention) -> Self {
        Self {
            source: mention.source as u32,
            time: unsigned(mention.time),
            action_id: pack(&mention.action_id).into(),
            message_id: pack(&mention.message_id).into(),
            external_id: pack(&mention.external_id).into(),
            filename: mention.filename.clone(),
            mime_type: word_code(&mention.mime_type),
            mime_type_text: word_text(&mention.mime_type),
            size: mention.size,
            create_time: mention.create_time.map(|time| if time == mention.time { 0 } else { unsigned(time) }),
        }
    }

    fn into_mention(self) -> Result<Mention, StoreError> {
        let source = match self.source {
            0 => Source::Received,
            1 => Source::Message,
            2 => Source::Payload,
            3 => Source::ChecklistItem,
            _ => Source::Extracted,
        };
        Ok(Mention {
            source,
            time: time(self.time),
            action_id: unpack(&self.action_id)?,
            message_id: unpack(&self.message_id)?,
            external_id: unpack(&self.external_id)?,
            filename: self.filename,
            mime_type: word(self.mime_type, self.mime_type_text),
            size: self.size,
            create_time: self.create_time.map(|micros| time(if micros == 0 { self.time } else { micros })),
        })
    }
}

/// The bytes that identify a detail within its lead.
pub(crate) fn encode_detail_key(key: DetailKey<'_>) -> Vec<u8> {
    let prefixed = |kind: u8, id: &[u8]| [&[kind], id].concat();
    match key {
        DetailKey::Document(id) => prefixed(b'd', &pack(id)),
        DetailKey::Profile(key) => prefixed(b'p', key.name().as_bytes()),
        DetailKey::ChecklistItem(id) => prefixed(b'c', &pack(id)),
        DetailKey::Completion => vec![b'k'],
    }
}

/// The bytes of a detail, without its key.
pub(crate) fn encode_detail(detail: &Detail, version: u64) -> Vec<u8> {
    let mut bytes = version_bytes(version).to_vec();
    bytes.extend_from_slice(&match detail {
        Detail::Document(document) => {
            let extraction = document.extraction.as_ref().map(|extraction| ExtractionRecord {
                status: extraction.status.clone(),
                document_type: extraction.document_type.clone(),
                summary: extraction.summary.clone(),
                time: unsigned(extraction.time),
            });
            DocumentRecord { mentions: document.mentions.iter().map(MentionRecord::of).collect(), extraction }.encode_to_vec()
        }
        Detail::Profile(_, field) => field.value.as_bytes().to_vec(),
        Detail::ChecklistItem(item) => {
            let record = ChecklistItemRecord {
                code: item.code.clone(),
                status: item.status.clone(),
                value: item.value.clone(),
                time: item.time.map(unsigned),
                document_ids: item.document_ids.iter().map(|id| pack(id).into()).collect(),
            };
            record.encode_to_vec()
        }
        Detail::Completion(completion) => unsigned(completion.time).to_be_bytes().to_vec(),
    });
    bytes
}

/// The detail of a key and its bytes.
pub(crate) fn decode_detail(key: &[u8], bytes: &[u8]) -> Result<Detail, StoreError> {
    let (version, rest) = split_version(bytes)?;
    let bad = |error: prost::DecodeError| StoreError::Corrupt(format!("a detail: {error}"));
    match key.split_first() {
        Some((b'd', id)) => {
            let record = DocumentRecord::decode(rest).map_err(bad)?;
            let extraction = record.extraction.map(|extraction| Extraction {
                status: extraction.status,
                document_type: extraction.document_type,
                summary: extraction.summary,
                time: time(extraction.time),
            });
            let mentions = record.mentions.into_iter().map(MentionRecord::into_mention).collect::<Result<_, _>>()?;
            Ok(Detail::Document(Document { document_id: unpack(id)?, mentions, extraction, version }))
        }
        Some((b'p', name)) => {
            let key = std::str::from_utf8(name)
                .ok()
                .and_then(ProfileKey::from_name)
                .ok_or_else(|| corrupt("a profile field of no known name"))?;
            let value = String::from_utf8(rest.to_vec()).map_err(|_| corrupt("a profile field that is not UTF-8"))?;
            Ok(Detail::Profile(key, ProfileField { value, version }))
        }
        Some((b'c', id)) => {
            let record = ChecklistItemRecord::decode(rest).map_err(bad)?;
            Ok(Detail::ChecklistItem(ChecklistItem {
                item_id: unpack(id)?,
                code: record.code,
                status: record.status,
                value: record.value,
                time: record.time.map(time),
                document_ids: record.document_ids.iter().map(|id| unpack(id)).collect::<Result<_, _>>()?,
                version,
            }))
        }
        Some((b'k', _)) => {
            let micros = <[u8; 8]>::try_from(rest).map_err(|_| corrupt("a completion that is cut short"))?;
            Ok(Detail::Completion(Completion { time: time(u64::from_be_bytes(micros)), version }))
        }
        _ => Err(corrupt("a detail of no known kind")),
    }
}
