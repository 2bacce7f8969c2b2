//! `action_log.completed` and `action_log.failed`.

use serde::Deserialize;

use super::{List, Object, Payload, Scalar, Tool};

/// The event as a whole.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)] // the sender's names
pub struct ActionLogEvent<'a> {
    #[serde(borrow)]
    pub event: Scalar<'a>,
    #[serde(borrow, default)]
    pub workspace_id: Option<Scalar<'a>>,
    #[serde(borrow, default)]
    pub action_log: Option<Object<ActionLog<'a>>>,
    #[serde(borrow, default)]
    pub occurred_at: Option<Scalar<'a>>,
}

/// The action.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)] // the sender's names
pub struct ActionLog<'a> {
    #[serde(borrow)]
    pub id: Option<Scalar<'a>>,
    #[serde(borrow, rename = "type")]
    pub kind: Option<Scalar<'a>>,
    #[serde(borrow)]
    pub status: Option<Scalar<'a>>,
    #[serde(borrow)]
    pub lead_id: Option<Scalar<'a>>,
    #[serde(borrow)]
    pub summary: Option<Scalar<'a>>,
    #[serde(borrow)]
    pub error: Option<Scalar<'a>>,
    #[serde(borrow)]
    pub input: Option<Payload<'a>>,
    #[serde(borrow)]
    pub output: Option<Payload<'a>>,
    #[serde(borrow)]
    pub messages: Option<List<Option<Object<Message<'a>>>>>,
    #[serde(borrow)]
    pub completed_at: Option<Scalar<'a>>,
    #[serde(borrow)]
    pub agent_id: Option<Scalar<'a>>,
    #[serde(borrow)]
    pub parent_action_id: Option<Scalar<'a>>,
    #[serde(borrow)]
    pub tool: Option<Tool<'a>>,
}

/// A message of an action. Its subject and body are skipped: they are never stored.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)] // the sender's names
pub struct Message<'a> {
    #[serde(borrow)]
    pub id: Option<Scalar<'a>>,
    #[serde(borrow)]
    pub channel: Option<Scalar<'a>>,
    #[serde(borrow)]
    pub direction: Option<Scalar<'a>>,
    #[serde(borrow)]
    pub documents: Option<List<Option<Object<MessageDocument<'a>>>>>,
}

/// A document of a message.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)] // the sender's names
pub struct MessageDocument<'a> {
    #[serde(borrow)]
    pub id: Option<Scalar<'a>>,
    #[serde(borrow)]
    pub filename: Option<Scalar<'a>>,
    #[serde(borrow)]
    pub mime_type: Option<Scalar<'a>>,
    #[serde(borrow)]
    pub size: Option<Scalar<'a>>,
}

impl<'a> ActionLog<'a> {
    /// The messages that are there.
    pub fn messages(&self) -> impl Iterator<Item = (usize, &Message<'a>)> {
        let all = self.messages.iter().flat_map(|list| list.iter()).enumerate();
        all.filter_map(|(index, message)| Some((index, &**message.as_ref()?)))
    }
}

impl<'a> Message<'a> {
    /// The documents that are there.
    pub fn documents(&self) -> impl Iterator<Item = &MessageDocument<'a>> {
        self.documents.iter().flat_map(|list| list.iter()).filter_map(|document| document.as_deref())
    }
}
