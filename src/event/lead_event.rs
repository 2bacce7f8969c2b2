//! `lead.created`, `lead.updated` and `lead.completed`.

use serde::{Deserialize, Deserializer};

use super::{Object, Size, Text};
use crate::lead::ProfileKey;

/// The event as a whole.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)] // the sender's names
pub struct LeadEvent<'a> {
    #[serde(borrow, default)]
    pub workspace_id: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub data: Option<Object<LeadData<'a>>>,
}

/// A field of a sparse patch: absent, cleared by an explicit `null`, or set.
#[derive(Debug, Default)]
pub enum Patch<'a> {
    /// The patch does not speak of it.
    #[default]
    Absent,
    /// An explicit `null`.
    Cleared,
    /// A value.
    Set(Text<'a>),
}

impl<'de: 'a, 'a> Deserialize<'de> for Patch<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Option::<Text<'a>>::deserialize(deserializer)?.map_or(Self::Cleared, Self::Set))
    }
}

/// The lead of the event.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)] // the sender's names
pub struct LeadData<'a> {
    #[serde(borrow)]
    pub lead_id: Option<Text<'a>>,
    #[serde(borrow)]
    pub external_id: Patch<'a>,
    #[serde(borrow)]
    pub first_name: Patch<'a>,
    #[serde(borrow)]
    pub middle_name: Patch<'a>,
    #[serde(borrow)]
    pub last_name: Patch<'a>,
    #[serde(borrow)]
    pub phone_number: Patch<'a>,
    #[serde(borrow)]
    pub email: Patch<'a>,
    #[serde(borrow)]
    pub business_name: Patch<'a>,
    #[serde(borrow)]
    pub website: Patch<'a>,
    #[serde(borrow)]
    pub source: Patch<'a>,
    #[serde(borrow)]
    pub checklist_items: Option<Vec<Option<Object<ChecklistItemUpdate<'a>>>>>,
}

impl<'a> LeadData<'a> {
    /// The profile fields and what the event says of each.
    pub fn profile(&self) -> [(ProfileKey, &Patch<'a>); 9] {
        [
            (ProfileKey::ExternalId, &self.external_id),
            (ProfileKey::FirstName, &self.first_name),
            (ProfileKey::MiddleName, &self.middle_name),
            (ProfileKey::LastName, &self.last_name),
            (ProfileKey::PhoneNumber, &self.phone_number),
            (ProfileKey::Email, &self.email),
            (ProfileKey::BusinessName, &self.business_name),
            (ProfileKey::Website, &self.website),
            (ProfileKey::Source, &self.source),
        ]
    }
}

/// A checklist item as an event tells it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)] // the sender's names
pub struct ChecklistItemUpdate<'a> {
    #[serde(borrow)]
    pub checklist_item_id: Option<Text<'a>>,
    #[serde(borrow)]
    pub checklist_item_code: Option<Text<'a>>,
    #[serde(borrow)]
    pub status: Option<Text<'a>>,
    pub value: ItemValue,
    #[serde(borrow)]
    pub updated_at: Option<Text<'a>>,
    #[serde(borrow)]
    pub documents: Option<Vec<Option<Object<ItemDocument<'a>>>>>,
}

/// A document that was handed in for a checklist item.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)] // the sender's names
pub struct ItemDocument<'a> {
    #[serde(borrow)]
    pub document_id: Option<Text<'a>>,
    #[serde(borrow)]
    pub external_id: Option<Text<'a>>,
    #[serde(borrow)]
    pub filename: Option<Text<'a>>,
    #[serde(borrow)]
    pub mime_type: Option<Text<'a>>,
    pub size: Option<Size>,
}

/// The answer to an item as text: a string as it is, a number in decimal, anything else as compact JSON.
#[derive(Debug, Default)]
pub struct ItemValue(pub String);

impl<'de> Deserialize<'de> for ItemValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::Null => String::new(),
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        }))
    }
}
