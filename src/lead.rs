//! The domain: what is known of a lead, and what an event adds to it. Knows no protocol and no database.
//!
//! A [`Change`] can be written down, to be applied later, perhaps by another version of this program: a field that
//! is new needs nothing, one that is renamed keeps its old name as an alias.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// Stands in for a channel or direction that no event told.
pub const UNKNOWN: &str = "UNKNOWN";
/// How many documents a lead shows; the others are listed.
pub const DOCUMENTS_SHOWN: usize = 100;

/// The aggregate of one lead.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lead {
    /// The sender's id.
    pub lead_id: String,
    /// Empty until an event has named it.
    pub workspace_id: String,
    /// Milliseconds since the epoch or more: grows with every effective change.
    pub version: u64,
    /// The earliest activity.
    pub first_activity: Option<Timestamp>,
    /// The greatest by (time, action id).
    pub latest_activity: Option<Activity>,
    /// How many actions by (type, status).
    pub activity_counts: BTreeMap<(String, String), u64>,
    /// How many messages by (channel, direction).
    pub message_counts: BTreeMap<(String, String), MessageCount>,
    /// Every document, newest first.
    pub documents: Vec<Document>,
    /// What is known of who it is.
    pub profile: BTreeMap<ProfileKey, ProfileField>,
    /// By item id.
    pub checklist: BTreeMap<String, ChecklistItem>,
    /// When `lead.completed` was first received.
    pub completion: Option<Completion>,
}

/// Messages of one channel and direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MessageCount {
    /// Messages of completed actions.
    pub count: u64,
    /// The latest action that carried one.
    pub latest: Timestamp,
}

/// One action on a lead.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Activity {
    /// Identity: an action counts once.
    pub action_id: String,
    /// `MESSAGE`, `TOOL_CALL`, …: an open vocabulary.
    pub kind: String,
    /// `COMPLETED`, `FAILED`, …: an open vocabulary.
    pub status: String,
    /// When it happened.
    pub time: Timestamp,
    /// Whether the event told `time`; otherwise it is the time of receipt.
    pub timed: bool,
    /// The sender's brief summary.
    pub summary: String,
    /// Why it failed.
    pub error: String,
    /// The channel of the action itself; empty if unknown.
    pub channel: String,
    /// The direction of the action itself; empty if unknown.
    pub direction: String,
    /// Its messages by channel and direction, in that order.
    pub messages: Vec<MessageTally>,
    /// The documents it mentioned.
    pub document_ids: Vec<String>,
    /// The tool of a tool call.
    pub tool_name: String,
    /// Who acted.
    pub agent_id: String,
    /// What led to it.
    pub parent_action_id: String,
    /// The lead's version it arrived with; the store sets it.
    pub version: u64,
}

impl Activity {
    /// What "latest" is decided by.
    pub fn order(&self) -> (Timestamp, &str) {
        (self.time, &self.action_id)
    }

    /// How many messages it carried.
    pub fn message_count(&self) -> u64 {
        self.messages.iter().fold(0, |count, tally| count.saturating_add(tally.count))
    }

    /// The messages that count: those of a completed action.
    pub fn counted_messages(&self) -> &[MessageTally] {
        if self.status == COMPLETED { &self.messages } else { &[] }
    }
}

/// The status under which an action's messages count.
pub const COMPLETED: &str = "COMPLETED";
/// The status that yields to [`COMPLETED`] at the same time.
pub const FAILED: &str = "FAILED";

/// Messages of one action that share channel and direction.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct MessageTally {
    /// Or [`UNKNOWN`].
    pub channel: String,
    /// Or [`UNKNOWN`].
    pub direction: String,
    /// At least 1.
    pub count: u64,
}

/// Where a document was spoken of; the earlier in this list, the more it is believed on the base fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub enum Source {
    /// `document.received`.
    #[default]
    Received,
    /// A message of an action.
    Message,
    /// The input or output of an action.
    Payload,
    /// A checklist item.
    ChecklistItem,
    /// `document.extracted`.
    Extracted,
}

/// What one event said of a document. The derived order is the precedence: the least is believed first.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct Mention {
    /// Who said it.
    pub source: Source,
    /// When that happened; of equal sources the earliest is believed first.
    pub time: Timestamp,
    /// Empty if not said, like every text here.
    pub action_id: String,
    /// The message that carried it.
    pub message_id: String,
    /// The customer's id.
    pub external_id: String,
    /// Its name.
    pub filename: String,
    /// Its media type.
    pub mime_type: String,
    /// Its size in bytes.
    pub size: Option<u64>,
    /// When it was created.
    pub create_time: Option<Timestamp>,
}

/// A document: what was said of it, merged field by field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Document {
    /// Identity.
    pub document_id: String,
    /// In order of precedence, only those that tell something.
    pub mentions: Vec<Mention>,
    /// What was read from it.
    pub extraction: Option<Extraction>,
    /// The lead's version it last changed with; the store sets it.
    pub version: u64,
}

impl Document {
    /// The value of a field: that of the first mention that has one.
    pub fn told<'a, T>(&'a self, field: impl FnMut(&'a Mention) -> Option<T>) -> Option<T> {
        self.mentions.iter().find_map(field)
    }

    /// The text of a field, empty if nobody told it.
    pub fn text<'a>(&'a self, field: impl Fn(&'a Mention) -> &'a str) -> &'a str {
        self.told(|mention| Some(field(mention)).filter(|text| !text.is_empty())).unwrap_or("")
    }

    /// When it was created, or else when it was first spoken of.
    pub fn create_time(&self) -> Timestamp {
        self.told(|mention| mention.create_time)
            .or_else(|| self.mentions.iter().map(|mention| mention.time).min())
            .or_else(|| self.extraction.as_ref().map(|extraction| extraction.time))
            .unwrap_or_default()
    }
}

/// The outcome of reading a document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Extraction {
    /// `completed` or `failed`.
    pub status: String,
    /// The inferred type.
    pub document_type: String,
    /// One or two sentences.
    pub summary: String,
    /// When it was received.
    pub time: Timestamp,
}

/// The fields of a profile, and of the lead itself, that a sparse patch can set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs)] // the names say it
pub enum ProfileKey {
    ExternalId,
    FirstName,
    MiddleName,
    LastName,
    PhoneNumber,
    Email,
    BusinessName,
    Website,
    Source,
}

impl ProfileKey {
    /// All of them.
    pub const ALL: [ProfileKey; 9] = [
        Self::ExternalId,
        Self::FirstName,
        Self::MiddleName,
        Self::LastName,
        Self::PhoneNumber,
        Self::Email,
        Self::BusinessName,
        Self::Website,
        Self::Source,
    ];

    /// Its name in the API, in Redis, everywhere.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ExternalId => "external_id",
            Self::FirstName => "first_name",
            Self::MiddleName => "middle_name",
            Self::LastName => "last_name",
            Self::PhoneNumber => "phone_number",
            Self::Email => "email",
            Self::BusinessName => "business_name",
            Self::Website => "website",
            Self::Source => "source",
        }
    }

    /// The key of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|key| key.name() == name)
    }
}

/// The value of a profile field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProfileField {
    /// Empty: cleared by the sender.
    pub value: String,
    /// The lead's version it last changed with; the store sets it.
    pub version: u64,
}

/// One item of a lead's checklist.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ChecklistItem {
    /// Identity.
    pub item_id: String,
    /// Its code.
    pub code: String,
    /// `TODO`, `COMPLETED`, …
    pub status: String,
    /// A string, a number in the digits of the sender, or JSON.
    pub value: String,
    /// When it changed at the sender.
    pub time: Option<Timestamp>,
    /// What was handed in for it.
    pub document_ids: Vec<String>,
    /// The lead's version it last changed with; the store sets it.
    pub version: u64,
}

/// The application was reported complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Completion {
    /// When that was first received.
    pub time: Timestamp,
    /// The lead's version it last changed with; the store sets it.
    pub version: u64,
}

/// What one event adds to a lead.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Change {
    /// Whose.
    pub lead_id: String,
    /// The workspace it named, if it did.
    pub workspace_id: Option<String>,
    /// When it arrived.
    pub received: Timestamp,
    /// At most one action.
    pub activity: Option<Activity>,
    /// Everything else, each key once.
    pub additions: Vec<Addition>,
}

impl Change {
    /// About how many bytes of memory it takes.
    pub fn memory(&self) -> usize {
        // What each string and vector costs beside its contents.
        const ALLOCATION: usize = 16;
        let text = |text: &str| if text.is_empty() { 0 } else { text.len() + ALLOCATION };
        let texts = |texts: &[String]| texts.iter().map(|each| size_of::<String>() + text(each)).sum::<usize>();
        let activity = self.activity.as_ref().map_or(0, |activity| {
            let Activity { action_id, kind, status, summary, error, channel, direction, tool_name, agent_id, parent_action_id, .. } =
                activity;
            let own = [action_id, kind, status, summary, error, channel, direction, tool_name, agent_id, parent_action_id];
            let tally = |tally: &MessageTally| size_of::<MessageTally>() + text(&tally.channel) + text(&tally.direction);
            own.into_iter().map(|each| text(each)).sum::<usize>()
                + activity.messages.iter().map(tally).sum::<usize>()
                + texts(&activity.document_ids)
        });
        let addition = |addition: &Addition| {
            size_of::<Addition>()
                + match addition {
                    Addition::Document(document) => {
                        let mention = |mention: &Mention| {
                            let Mention { action_id, message_id, external_id, filename, mime_type, .. } = mention;
                            let own = [action_id, message_id, external_id, filename, mime_type];
                            size_of::<Mention>() + own.into_iter().map(|each| text(each)).sum::<usize>()
                        };
                        let read = document.extraction.as_ref().map_or(0, |read| text(&read.document_type) + text(&read.summary));
                        text(&document.document_id) + document.mentions.iter().map(mention).sum::<usize>() + read
                    }
                    Addition::SetProfile(_, field) | Addition::FillProfile(_, field) => text(&field.value),
                    Addition::ChecklistItem(item) => text(&item.item_id) + text(&item.value) + texts(&item.document_ids),
                    Addition::Completion(_) => 0,
                }
        };
        size_of::<Self>() + text(&self.lead_id) + activity + self.additions.iter().map(addition).sum::<usize>()
    }
}

/// One thing that a change adds, apart from the activity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Addition {
    /// More about a document.
    Document(Document),
    /// A profile field, whatever it was before.
    SetProfile(ProfileKey, ProfileField),
    /// A profile field, unless it was set before.
    FillProfile(ProfileKey, ProfileField),
    /// A checklist item.
    ChecklistItem(ChecklistItem),
    /// The application is complete.
    Completion(Completion),
}

/// Identifies a [`Detail`] within its lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DetailKey<'a> {
    /// By document id.
    Document(&'a str),
    /// By field.
    Profile(ProfileKey),
    /// By item id.
    ChecklistItem(&'a str),
    /// There is one.
    Completion,
}

/// One stored part of a lead that is not an activity.
#[derive(Clone, Debug, PartialEq)]
pub enum Detail {
    /// A document.
    Document(Document),
    /// A profile field.
    Profile(ProfileKey, ProfileField),
    /// A checklist item.
    ChecklistItem(ChecklistItem),
    /// The application's completion.
    Completion(Completion),
}

impl Addition {
    /// What it is about.
    pub fn key(&self) -> DetailKey<'_> {
        match self {
            Self::Document(document) => DetailKey::Document(&document.document_id),
            Self::SetProfile(key, _) | Self::FillProfile(key, _) => DetailKey::Profile(*key),
            Self::ChecklistItem(item) => DetailKey::ChecklistItem(&item.item_id),
            Self::Completion(_) => DetailKey::Completion,
        }
    }
}

impl Detail {
    /// Its identity.
    pub fn key(&self) -> DetailKey<'_> {
        match self {
            Self::Document(document) => DetailKey::Document(&document.document_id),
            Self::Profile(key, _) => DetailKey::Profile(*key),
            Self::ChecklistItem(item) => DetailKey::ChecklistItem(&item.item_id),
            Self::Completion(_) => DetailKey::Completion,
        }
    }

    /// The lead's version it last changed with.
    pub fn version(&self) -> u64 {
        match self {
            Self::Document(document) => document.version,
            Self::Profile(_, field) => field.version,
            Self::ChecklistItem(item) => item.version,
            Self::Completion(completion) => completion.version,
        }
    }

    /// Stamps it with the version of the change that wrote it.
    pub fn set_version(&mut self, version: u64) {
        match self {
            Self::Document(document) => document.version = version,
            Self::Profile(_, field) => field.version = version,
            Self::ChecklistItem(item) => item.version = version,
            Self::Completion(completion) => completion.version = version,
        }
    }
}

impl Lead {
    /// Puts a stored part in its place. Call [`Lead::sort_documents`] after the last.
    pub fn insert(&mut self, detail: Detail) {
        match detail {
            Detail::Document(document) => self.documents.push(document),
            Detail::Profile(key, field) => {
                self.profile.insert(key, field);
            }
            Detail::ChecklistItem(item) => {
                self.checklist.insert(item.item_id.clone(), item);
            }
            Detail::Completion(completion) => self.completion = Some(completion),
        }
    }

    /// Newest first, equal times by descending id.
    pub fn sort_documents(&mut self) {
        sort_documents(&mut self.documents);
    }

    /// The time that decides its place in a list; `None` sorts last.
    pub fn latest_time(&self) -> Option<Timestamp> {
        self.latest_activity.as_ref().map(|activity| activity.time)
    }
}

/// Newest first, equal times by descending id.
pub fn sort_documents(documents: &mut [Document]) {
    documents.sort_by(|a, b| (b.create_time(), &b.document_id).cmp(&(a.create_time(), &a.document_id)));
}
