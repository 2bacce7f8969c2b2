//! `lead.created`, `lead.updated` and `lead.completed`.

use std::borrow::Cow;

use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::{List, Object, Scalar, compact};
use crate::lead::ProfileKey;

/// The event as a whole.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)] // the sender's names
pub struct LeadEvent<'a> {
    #[serde(borrow, default)]
    pub workspace_id: Option<Scalar<'a>>,
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
    Set(Scalar<'a>),
}

impl<'de: 'a, 'a> Deserialize<'de> for Patch<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Option::<Scalar<'a>>::deserialize(deserializer)?.map_or(Self::Cleared, Self::Set))
    }
}

/// The lead of the event.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)] // the sender's names
pub struct LeadData<'a> {
    #[serde(borrow)]
    pub lead_id: Option<Scalar<'a>>,
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
    pub checklist_items: Option<List<Option<Object<ChecklistItemUpdate<'a>>>>>,
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
    pub checklist_item_id: Option<Scalar<'a>>,
    #[serde(borrow)]
    pub checklist_item_code: Option<Scalar<'a>>,
    #[serde(borrow)]
    pub status: Option<Scalar<'a>>,
    #[serde(borrow)]
    pub value: ItemValue<'a>,
    #[serde(borrow)]
    pub updated_at: Option<Scalar<'a>>,
    #[serde(borrow)]
    pub documents: Option<List<Option<Object<ItemDocument<'a>>>>>,
}

/// A document that was handed in for a checklist item.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)] // the sender's names
pub struct ItemDocument<'a> {
    #[serde(borrow)]
    pub document_id: Option<Scalar<'a>>,
    #[serde(borrow)]
    pub external_id: Option<Scalar<'a>>,
    #[serde(borrow)]
    pub filename: Option<Scalar<'a>>,
    #[serde(borrow)]
    pub mime_type: Option<Scalar<'a>>,
    #[serde(borrow)]
    pub size: Option<Scalar<'a>>,
}

/// The answer to an item as text: a string as it is, a number in the sender's own digits, anything else as compact JSON.
#[derive(Debug, Default)]
pub struct ItemValue<'a>(pub Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for ItemValue<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = <&RawValue>::deserialize(deserializer)?.get();
        Ok(Self(match Scalar::of(json).map_err(D::Error::custom)? {
            Scalar::Text(text) => text,
            Scalar::Number(digits) => digits,
            Scalar::Other if json == "null" => Cow::default(),
            Scalar::Other => Cow::Owned(compact(json).map_err(D::Error::custom)?),
        }))
    }
}
