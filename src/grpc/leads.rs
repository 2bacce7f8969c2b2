//! Leads as clients get them, encoded once per version.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use tokio::sync::Mutex;
use xxhash_rust::xxh3::xxh3_64;

use super::convert;
use crate::api;
use crate::auth::Caller;
use crate::store::{Store, StoreError};

/// Bytes of encoded leads that are kept.
const KEPT_BYTES: u64 = 64 << 20;
/// How many leads that may be: what the cache makes room for at first.
const KEPT_LEADS: usize = 16 * 1024;

/// Reads of different leads that are under way at once; of one lead there is one.
const READS: usize = 256;

/// Reads leads. A lead that was read before is asked for its version only, and sent as it was encoded then: a
/// version stands for one content, so this is never behind the store.
#[derive(Clone)]
pub(super) struct Leads {
    store: Arc<dyn Store>,
    kept: Arc<Cache<String, Kept, Weight>>,
    reads: Arc<[Mutex<()>]>,
}

/// A lead as field 1 of a message, and whose it is.
#[derive(Clone, Debug)]
struct Field {
    workspace_id: Arc<str>,
    bytes: Bytes,
}

#[derive(Clone, Debug)]
struct Kept {
    version: u64,
    field: Field,
}

#[derive(Clone, Debug)]
struct Weight;

impl Weighter<String, Kept> for Weight {
    fn weight(&self, lead_id: &String, kept: &Kept) -> u64 {
        (lead_id.len() + kept.field.bytes.len() + kept.field.workspace_id.len() + 144) as u64
    }
}

impl Leads {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        let reads = (0..READS).map(|_| Mutex::default()).collect();
        Self { store, kept: Arc::new(Cache::with_weighter(KEPT_LEADS, KEPT_BYTES, Weight)), reads }
    }

    /// A lead, if there is one that the caller may see, as field 1 of a message: that is where every answer has its
    /// leads.
    pub(super) async fn field(&self, lead_id: &str, caller: &Caller) -> Result<Option<Bytes>, StoreError> {
        let field = self.any_field(lead_id).await?;
        Ok(field.filter(|field| caller.sees(&field.workspace_id)).map(|field| field.bytes))
    }

    async fn any_field(&self, lead_id: &str) -> Result<Option<Field>, StoreError> {
        if let Some(kept) = self.present(lead_id).await? {
            return Ok(kept);
        }
        // Many who ask for a lead that just changed wait for the first of them, and look again.
        let read = &self.reads[(xxh3_64(lead_id.as_bytes()) % READS as u64) as usize];
        let _alone = if let Ok(alone) = read.try_lock() {
            alone
        } else {
            let alone = read.lock().await;
            if let Some(kept) = self.present(lead_id).await? {
                return Ok(kept);
            }
            alone
        };
        let Some(read) = self.store.read(lead_id, None).await? else { return Ok(None) };
        let bytes = api::GetLeadResponse { lead: Some(convert::lead(&read.lead)) }.encode_to_vec().into();
        let field = Field { workspace_id: read.lead.workspace_id.as_str().into(), bytes };
        self.kept.insert(lead_id.to_owned(), Kept { version: read.lead.version, field: field.clone() });
        Ok(Some(field))
    }

    /// What is kept of a lead, if that is what the store has now: a field, or that there is no such lead.
    async fn present(&self, lead_id: &str) -> Result<Option<Option<Field>>, StoreError> {
        let Some(kept) = self.kept.get(lead_id) else { return Ok(None) };
        match self.store.version(lead_id).await? {
            Some(version) if version == kept.version => Ok(Some(Some(kept.field))),
            Some(_) => Ok(None),
            None => {
                self.kept.remove(lead_id);
                Ok(Some(None))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_has_its_leads_in_field_1() {
        let lead = api::Lead { lead_id: "l".to_owned(), version: 7, ..api::Lead::default() };
        let get = api::GetLeadResponse { lead: Some(lead.clone()) }.encode_to_vec();
        let batch = api::BatchGetLeadsResponse { leads: vec![lead.clone()], ..api::BatchGetLeadsResponse::default() };
        let list = api::ListLeadsResponse { leads: vec![lead], ..api::ListLeadsResponse::default() };
        assert_eq!((&get, &get), (&batch.encode_to_vec(), &list.encode_to_vec()));
    }
}
