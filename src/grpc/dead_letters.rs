//! `DeadLetterService`: for operators only.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::admission::caller;
use super::status::{all_workspaces_only, invalid, no_dead_letters, read_only, unavailable};
use super::{convert, page_token, server};
use crate::api;
use crate::auth::Caller;
use crate::dead_letters::{DeadLetters, Letter, PayloadKind};
use crate::intake::{Intake, NotTaken, Taken};
use crate::listener::Tasks;

/// Letters of one call, and of a page by default.
const MAX_LETTERS: usize = 1000;
const DEFAULT_PAGE: usize = 50;
/// A page ends early rather than be larger: clients take 4 MiB unless told otherwise.
const MAX_PAGE_BYTES: usize = 3 * 1024 * 1024;
/// Letters that are read at once where their payloads are wanted.
const CHUNK: usize = 16;
/// Names the query of page tokens.
const QUERY: &str = "dead letters";

/// The service.
#[derive(Clone)]
pub(super) struct DeadLetterService {
    letters: Option<Arc<DeadLetters>>,
    intake: Intake,
}

impl DeadLetterService {
    pub(super) fn new(letters: Option<Arc<DeadLetters>>, intake: Intake) -> Self {
        Self { letters, intake }
    }

    /// The letters, for one who may see everything.
    fn letters(&self, caller: &Caller) -> Result<&DeadLetters, Status> {
        if !caller.sees_all() {
            return Err(all_workspaces_only());
        }
        self.letters.as_deref().ok_or_else(no_dead_letters)
    }

    async fn try_again(&self, letters: &DeadLetters, id: &str) -> Result<(&'static str, String), Status> {
        let Some((letter, payload)) = (match id.parse() {
            Ok(id) => letters.get(id).await.map_err(|error| trouble(&error))?,
            Err(_) => None,
        }) else {
            return Ok(("not_found", String::new()));
        };
        let outcome = match self.intake.retry(&letter, &payload).await {
            Ok(Taken::Applied(..)) => "applied",
            Ok(Taken::Duplicate(..)) => "duplicate",
            Ok(Taken::Queued(_)) => "queued",
            Ok(Taken::Ignored(..)) => "ignored",
            Err(Some(NotTaken::Refused(refusal))) => {
                let told = refusal.to_string();
                letters
                    .refused_again(letter.id, &refusal.field.unwrap_or_default(), &refusal.error)
                    .await
                    .map_err(|error| trouble(&error))?;
                return Ok(("refused", told));
            }
            Err(Some(NotTaken::OtherWorkspace)) => return Ok(("refused", "the lead belongs to another workspace".to_owned())),
            Err(Some(NotTaken::Unavailable)) => return Ok(("unavailable", "the store cannot take it now".to_owned())),
            Err(None) => return Ok(("not_retriable", "too little is kept of it".to_owned())),
        };
        // A crash before this makes it a duplicate at the next try.
        letters.remove(vec![letter.id]).await.map_err(|error| trouble(&error))?;
        Ok((outcome, String::new()))
    }
}

#[tonic::async_trait]
impl server::dead_letter_service_server::DeadLetterService for DeadLetterService {
    async fn list_dead_letters(
        &self,
        request: Request<api::ListDeadLettersRequest>,
    ) -> Result<Response<api::ListDeadLettersResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let letters = self.letters(&caller)?;
        let size = match usize::try_from(request.page_size) {
            Ok(0) => DEFAULT_PAGE,
            Ok(size) => size.min(MAX_LETTERS),
            Err(_) => return Err(invalid("page_size", "negative")),
        };
        let from = page_token::decode(QUERY, &request.page_token)?;
        let mut below = from.and_then(|(_, id)| id.parse().ok());
        let mut answer = api::ListDeadLettersResponse::default();
        let mut bytes = 0;
        loop {
            let left = size - answer.dead_letters.len();
            let asked = if request.include_payloads { left.min(CHUNK) } else { left };
            // One more than asked for tells whether there is a next page.
            let mut page = letters.list(below, asked + 1, request.include_payloads).await.map_err(|error| trouble(&error))?;
            let more = page.len() > asked;
            page.truncate(asked);
            let mut full = false;
            for (letter, payload) in page {
                if bytes + payload.len() > MAX_PAGE_BYTES && bytes > 0 {
                    full = true;
                    break;
                }
                bytes += payload.len();
                below = Some(letter.id);
                answer.dead_letters.push(told(&letter, &payload));
            }
            if !more && !full {
                break;
            }
            if full || answer.dead_letters.len() == size {
                let last = below.unwrap_or_default().to_string();
                answer.next_page_token = page_token::encode(QUERY, crate::time::Timestamp::default(), &last);
                break;
            }
        }
        Ok(Response::new(answer))
    }

    async fn retry_dead_letters(
        &self,
        request: Request<api::RetryDeadLettersRequest>,
    ) -> Result<Response<api::RetryDeadLettersResponse>, Status> {
        let (caller, tasks) = (caller(&request)?, Tasks::of(request.extensions()));
        self.letters(&caller)?;
        if !caller.may_delete() {
            return Err(read_only());
        }
        let ids = request.into_inner().dead_letter_ids;
        check(&ids)?;
        let service = self.clone();
        let retried = async move {
            let letters = service.letters(&caller)?;
            let mut results = Vec::with_capacity(ids.len());
            for dead_letter_id in ids {
                let (outcome, error) = service.try_again(letters, &dead_letter_id).await?;
                results.push(api::RetriedDeadLetter { dead_letter_id, outcome: outcome.to_owned(), error });
            }
            Ok(Response::new(api::RetryDeadLettersResponse { results }))
        };
        // Whoever asked may be gone before it is done: a letter that was applied must not stay.
        tasks.finish(retried).await
    }

    async fn drop_dead_letters(
        &self,
        request: Request<api::DropDeadLettersRequest>,
    ) -> Result<Response<api::DropDeadLettersResponse>, Status> {
        let caller = caller(&request)?;
        let letters = self.letters(&caller)?;
        if !caller.may_delete() {
            return Err(read_only());
        }
        let ids = request.into_inner().dead_letter_ids;
        check(&ids)?;
        // What is no number is no letter's.
        let ids = ids.iter().filter_map(|id| id.parse().ok()).collect();
        let removed = letters.remove(ids).await.map_err(|error| trouble(&error))?;
        let dropped_count = removed.into_iter().filter(|removed| *removed).count() as u64;
        Ok(Response::new(api::DropDeadLettersResponse { dropped_count }))
    }
}

fn check(ids: &[String]) -> Result<(), Status> {
    if ids.is_empty() || ids.len() > MAX_LETTERS {
        return Err(invalid("dead_letter_ids", format!("1 to {MAX_LETTERS} ids, not {}", ids.len())));
    }
    Ok(())
}

pub(super) fn trouble(error: &std::io::Error) -> Status {
    unavailable("DEAD_LETTERS_UNAVAILABLE", format!("dead letters cannot be read or written: {error}"), std::time::Duration::from_secs(1))
}

fn told(letter: &Letter, payload: &[u8]) -> api::DeadLetter {
    api::DeadLetter {
        dead_letter_id: letter.id.to_string(),
        reason: letter.reason.clone(),
        field: letter.field.clone(),
        error: letter.error.clone(),
        event: letter.event.clone(),
        lead_id: letter.lead_id.clone(),
        workspace_id: letter.workspace_id.clone(),
        first_time: Some(convert::time(letter.first)),
        latest_time: Some(convert::time(letter.last)),
        count: letter.count,
        size_bytes: letter.size,
        retriable: letter.kind != PayloadKind::None,
        payload: String::from_utf8_lossy(payload).into_owned(),
    }
}
