//! `document.received` and `document.extracted`. Signed URLs, metadata and results are skipped.

use serde::Deserialize;

use super::{Object, Scalar};

/// `document.received`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)] // the sender's names
pub struct DocumentReceived<'a> {
    #[serde(borrow, default)]
    pub workspace_id: Option<Scalar<'a>>,
    #[serde(borrow, default)]
    pub document: Option<Object<ReceivedDocument<'a>>>,
    #[serde(borrow, default)]
    pub occurred_at: Option<Scalar<'a>>,
}

/// The document of a `document.received`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)] // the sender's names
pub struct ReceivedDocument<'a> {
    #[serde(borrow)]
    pub id: Option<Scalar<'a>>,
    #[serde(borrow)]
    pub lead_id: Option<Scalar<'a>>,
    #[serde(borrow)]
    pub filename: Option<Scalar<'a>>,
    #[serde(borrow)]
    pub mime_type: Option<Scalar<'a>>,
    #[serde(borrow)]
    pub size: Option<Scalar<'a>>,
    #[serde(borrow)]
    pub created_at: Option<Scalar<'a>>,
    #[serde(borrow)]
    pub message_id: Option<Scalar<'a>>,
}

/// `document.extracted`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)] // the sender's names
pub struct DocumentExtracted<'a> {
    #[serde(borrow)]
    pub workspace_id: Option<Scalar<'a>>,
    #[serde(borrow)]
    pub lead_id: Option<Scalar<'a>>,
    #[serde(borrow)]
    pub external_lead_id: Option<Scalar<'a>>,
    #[serde(borrow)]
    pub document_id: Option<Scalar<'a>>,
    #[serde(borrow)]
    pub external_id: Option<Scalar<'a>>,
    #[serde(borrow)]
    pub status: Option<Scalar<'a>>,
    #[serde(borrow)]
    pub summary: Option<Scalar<'a>>,
    #[serde(borrow, rename = "type")]
    pub document_type: Option<Scalar<'a>>,
}
