//! `LeadService`: each rpc translates, calls, and translates back.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};
use prost::Message;
use tonic::{Request, Response, Status};

use super::admission::caller;
use super::leads::Leads;
use super::page_token;
use super::shared::{self, NoMessages};
use super::status::{exhausted, invalid, no_workspace, not_found, read_only};
use super::watch::{Admission, Watches};
use super::wire::Encoded;
use super::{convert, dead_letters, server};
use crate::api;
use crate::auth::Caller;
use crate::dead_letters::DeadLetters;
use crate::fold::MAX_ID_BYTES;
use crate::listener::Tasks;
use crate::store::{ActivityPlace, ListQuery, Place, Store};
use crate::time::Timestamp;

/// Leads of one batch.
const MAX_BATCH: usize = 1000;
/// Page sizes: of leads, and of the parts of one lead.
const DEFAULT_PAGE: usize = 50;
const MAX_LEADS_PAGE: usize = 200;
const MAX_PARTS_PAGE: usize = 1000;
/// A page ends early rather than be larger: clients take 4 MiB unless told otherwise.
const MAX_PAGE_BYTES: usize = 3 * 1024 * 1024;
/// A batch has no second page: it may be as large as clients take.
const MAX_BATCH_BYTES: usize = 4 * 1024 * 1024;
/// Leads that one call reads at the same time.
const READS_IN_FLIGHT: usize = 32;

/// The service.
#[derive(Clone)]
pub(super) struct LeadService {
    store: Arc<dyn Store>,
    leads: Leads,
    watches: Watches,
    letters: Option<Arc<DeadLetters>>,
}

impl LeadService {
    pub(super) fn new(store: Arc<dyn Store>, watches: Watches, letters: Option<Arc<DeadLetters>>) -> Self {
        Self { leads: Leads::new(Arc::clone(&store)), store, watches, letters }
    }

    async fn remove_letters(&self, lead_id: &str) -> Result<(), Status> {
        let Some(letters) = &self.letters else { return Ok(()) };
        letters.remove_lead(lead_id).await.map(drop).map_err(|error| dead_letters::trouble(&error))
    }

    /// Reads leads in the order of their ids; each that the caller may see is a field of the answer.
    fn fields<'a>(
        &'a self,
        lead_ids: impl Iterator<Item = &'a str> + Send + 'a,
        caller: &'a Caller,
    ) -> impl futures::Stream<Item = Result<(&'a str, Option<Bytes>), Status>> + Send + 'a {
        stream::iter(lead_ids).map(async move |lead_id| Ok((lead_id, self.leads.field(lead_id, caller).await?))).buffered(READS_IN_FLIGHT)
    }

    /// An error unless there is such a lead, and the caller may see it.
    async fn visible(&self, lead_id: &str, caller: &Caller) -> Result<(), Status> {
        if caller.sees_all() || self.leads.field(lead_id, caller).await?.is_some() { Ok(()) } else { Err(not_found(lead_id)) }
    }
}

pub(super) fn required_id(field: &str, id: &str) -> Result<(), Status> {
    match id.len() {
        0 => Err(invalid(field, "required")),
        1..=MAX_ID_BYTES => Ok(()),
        _ => Err(invalid(field, format!("longer than {MAX_ID_BYTES} bytes"))),
    }
}

fn page_size(asked: i32, max: usize) -> Result<usize, Status> {
    match usize::try_from(asked) {
        Ok(0) => Ok(DEFAULT_PAGE.min(max)),
        Ok(size) => Ok(size.min(max)),
        Err(_) => Err(invalid("page_size", "negative")),
    }
}

/// A time of a request.
fn asked_time(field: &str, time: Option<prost_types::Timestamp>) -> Result<Option<Timestamp>, Status> {
    match time {
        Some(time) if !(0..1_000_000_000).contains(&time.nanos) => Err(invalid(field, "nanos: 0 to 999,999,999")),
        time => Ok(time.as_ref().map(convert::timestamp)),
    }
}

/// How many of these fit into one page: at least one, so that a walk comes on.
fn fitting<M: Message>(items: &[M]) -> usize {
    let mut bytes = 0;
    // A field's tag and length are four bytes at most here.
    let larger = items.iter().position(|item| {
        bytes += item.encoded_len() + 4;
        bytes > MAX_PAGE_BYTES
    });
    larger.map_or(items.len(), |larger| larger.max(1))
}

#[tonic::async_trait]
impl server::lead_service_server::LeadService for LeadService {
    async fn get_lead(&self, request: Request<api::GetLeadRequest>) -> Result<Response<Encoded>, Status> {
        let caller = caller(&request)?;
        let lead_id = request.into_inner().lead_id;
        required_id("lead_id", &lead_id)?;
        let field = self.leads.field(&lead_id, &caller).await?.ok_or_else(|| not_found(&lead_id))?;
        Ok(Response::new(Encoded(field)))
    }

    async fn batch_get_leads(&self, request: Request<api::BatchGetLeadsRequest>) -> Result<Response<Encoded>, Status> {
        let caller = caller(&request)?;
        let lead_ids = request.into_inner().lead_ids;
        if lead_ids.is_empty() || lead_ids.len() > MAX_BATCH {
            return Err(invalid("lead_ids", format!("1 to {MAX_BATCH} ids, not {}", lead_ids.len())));
        }
        for (index, lead_id) in lead_ids.iter().enumerate() {
            required_id(&format!("lead_ids[{index}]"), lead_id)?;
        }
        let mut asked = HashSet::new();
        let once = lead_ids.iter().map(String::as_str).filter(|lead_id| asked.insert(*lead_id));
        let (mut answer, mut rest, mut missing_bytes) = (BytesMut::new(), api::BatchGetLeadsResponse::default(), 0);
        let mut leads = std::pin::pin!(self.fields(once.collect::<Vec<_>>().into_iter(), &caller));
        while let Some((lead_id, field)) = leads.try_next().await? {
            match field {
                Some(field) => answer.extend_from_slice(&field),
                None => {
                    missing_bytes += lead_id.len() + 3; // a tag and a length of two bytes
                    rest.not_found_lead_ids.push(lead_id.to_owned());
                }
            }
            if answer.len() + missing_bytes > MAX_BATCH_BYTES {
                return Err(exhausted("bytes of an answer", "the leads take more than 4 MiB, which clients refuse: ask for fewer at once"));
            }
        }
        Ok(Response::new(Encoded::with(answer, &rest)))
    }

    async fn list_leads(&self, request: Request<api::ListLeadsRequest>) -> Result<Response<Encoded>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        required_id("workspace_id", &request.workspace_id)?;
        let limit = page_size(request.page_size, MAX_LEADS_PAGE)?;
        let (after, before) =
            (asked_time("activity_after", request.activity_after)?, asked_time("activity_before", request.activity_before)?);
        let query = format!("leads {after:?} {before:?} {}", request.workspace_id);
        let cursor = page_token::decode(&query, &request.page_token)?.map(|(time, lead_id)| Place { time, lead_id });
        if !caller.sees(&request.workspace_id) {
            return Err(no_workspace(&request.workspace_id));
        }
        // One more than asked for tells whether there is a next page.
        let mut places =
            self.store.list(&ListQuery { workspace_id: request.workspace_id, after, before, cursor, limit: limit + 1 }).await?;
        let mut more = places.len() > limit;
        places.truncate(limit);

        let mut leads = std::pin::pin!(self.fields(places.iter().map(|place| place.lead_id.as_str()), &caller));
        let (mut answer, mut rest, mut taken) = (BytesMut::new(), api::ListLeadsResponse::default(), 0usize);
        while let Some((_, field)) = leads.try_next().await? {
            // One that was deleted meanwhile is passed over.
            if let Some(field) = field {
                if answer.len() + field.len() > MAX_PAGE_BYTES && taken > 0 {
                    more = true;
                    break;
                }
                answer.extend_from_slice(&field);
            }
            taken += 1;
        }
        if let Some(last) = places.get(taken.wrapping_sub(1)).filter(|_| more) {
            rest.next_page_token = page_token::encode(&query, last.time, &last.lead_id);
        }
        Ok(Response::new(Encoded::with(answer, &rest)))
    }

    async fn list_activities(&self, request: Request<api::ListActivitiesRequest>) -> Result<Response<api::ListActivitiesResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        required_id("lead_id", &request.lead_id)?;
        let limit = page_size(request.page_size, MAX_PARTS_PAGE)?;
        let query = format!("activities {}", request.lead_id);
        let behind = page_token::decode(&query, &request.page_token)?.map(|(time, action_id)| ActivityPlace { time, action_id });
        self.visible(&request.lead_id, &caller).await?;
        let activities = self.store.activities(&request.lead_id, behind.as_ref(), limit + 1).await?;
        let activities = activities.ok_or_else(|| not_found(&request.lead_id))?;
        let mut page: Vec<_> = activities.iter().take(limit).map(convert::activity).collect();
        page.truncate(fitting(&page));
        let last = activities.get(page.len().wrapping_sub(1)).filter(|_| page.len() < activities.len());
        Ok(Response::new(api::ListActivitiesResponse {
            next_page_token: last.map(|last| page_token::encode(&query, last.time, &last.action_id)).unwrap_or_default(),
            activities: page,
        }))
    }

    async fn list_documents(&self, request: Request<api::ListDocumentsRequest>) -> Result<Response<api::ListDocumentsResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        required_id("lead_id", &request.lead_id)?;
        let limit = page_size(request.page_size, MAX_PARTS_PAGE)?;
        let query = format!("documents {}", request.lead_id);
        let behind = page_token::decode(&query, &request.page_token)?;
        let read = self.store.read(&request.lead_id, None).await?.filter(|read| caller.sees(&read.lead.workspace_id));
        let lead = read.ok_or_else(|| not_found(&request.lead_id))?.lead;
        let is_behind = |place: (_, &str)| behind.as_ref().is_none_or(|(time, id)| place < (*time, id.as_str()));
        let documents: Vec<_> =
            lead.documents.iter().filter(|document| is_behind((document.create_time(), &document.document_id))).take(limit + 1).collect();
        let mut page: Vec<_> = documents.iter().take(limit).map(|document| convert::document(document)).collect();
        page.truncate(fitting(&page));
        let last = documents.get(page.len().wrapping_sub(1)).filter(|_| page.len() < documents.len());
        Ok(Response::new(api::ListDocumentsResponse {
            next_page_token: last.map(|last| page_token::encode(&query, last.create_time(), &last.document_id)).unwrap_or_default(),
            documents: page,
        }))
    }

    type WatchLeadStream = NoMessages;

    async fn watch_lead(&self, request: Request<api::WatchLeadRequest>) -> Result<Response<NoMessages>, Status> {
        let admission = Admission::of(&request)?;
        Ok(shared::response("leadfold.v1.LeadService/WatchLead", self.watches.lead(request.into_inner(), &admission).await?))
    }

    type WatchLeadsStream = NoMessages;

    async fn watch_leads(&self, request: Request<api::WatchLeadsRequest>) -> Result<Response<NoMessages>, Status> {
        let admission = Admission::of(&request)?;
        Ok(shared::response("leadfold.v1.LeadService/WatchLeads", self.watches.leads(request.into_inner(), &admission).await?))
    }

    async fn delete_lead(&self, request: Request<api::DeleteLeadRequest>) -> Result<Response<api::DeleteLeadResponse>, Status> {
        let (caller, tasks) = (caller(&request)?, Tasks::of(request.extensions()));
        let lead_id = request.into_inner().lead_id;
        required_id("lead_id", &lead_id)?;
        if !caller.may_delete() {
            return Err(read_only());
        }
        let service = self.clone();
        let deleted = async move {
            service.visible(&lead_id, &caller).await?;
            // Before, so that nothing is deleted where they cannot be removed, and after, for those that came meanwhile.
            service.remove_letters(&lead_id).await?;
            let existed = service.store.delete(&lead_id).await?;
            service.remove_letters(&lead_id).await?;
            if existed { Ok(Response::new(api::DeleteLeadResponse {})) } else { Err(not_found(&lead_id)) }
        };
        // Whoever asked may be gone before it is done.
        tasks.finish(deleted).await
    }
}
