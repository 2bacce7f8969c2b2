//! Who is let in, and how much of it: every call but a question of health has to come from somebody, and what is under way
//! at once is limited.
//!
//! In this order: who calls, which the headers tell; the request, which has to be whole; a place among the calls that
//! run; room for the answer. What comes from nobody takes nothing, and what waits for its client takes no place from
//! those that run.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use super::answers::Answers;
use super::body::{self, Answer};
use super::observe::{self, Shape};
use super::request::{self, Arriving};
use super::status::{connection_overloaded, connection_watches_full, overloaded, service_streams_full, unauthenticated, unknown_rpc};
use super::{Limits, deadline};
use crate::auth::{Caller, Tokens};
use crate::listener::{Budget, ConnectionWatches};

/// Load balancers ask for health, and carry no token. Reflection needs one: to those who have none, there is nothing
/// here that could be of use.
const OPEN: &str = "/grpc.health.v1.Health/";
/// Questions of health that are under way at once. They are answered from memory.
const OPEN_CALLS: usize = 1000;
/// KiB of all requests that are read, and of all answers that are not sent yet.
const REQUESTS_KIB: usize = 128 * 1024;
const ANSWERS_KIB: usize = 256 * 1024;

/// What every call of one listener has to pass.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    listener: &'static str,
    tokens: Arc<Tokens>,
    /// Calls that run or are answered, and requests that are not whole yet. A stream is a call until it begins: it has
    /// limits of its own.
    calls: Arc<Semaphore>,
    arriving: Arc<Semaphore>,
    arriving_streams: Arc<Semaphore>,
    open_calls: Arc<Semaphore>,
    requests_kib: Arc<Semaphore>,
    answers_kib: Arc<Semaphore>,
    answers: Answers,
}

impl Gate {
    pub(super) fn new(listener: &'static str, tokens: Arc<Tokens>, limits: Limits) -> Self {
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        Self {
            listener,
            tokens,
            calls: semaphore(limits.max_calls),
            arriving: semaphore(limits.max_calls),
            arriving_streams: semaphore(limits.max_watches),
            open_calls: semaphore(OPEN_CALLS),
            requests_kib: semaphore(REQUESTS_KIB),
            answers_kib: semaphore(ANSWERS_KIB),
            answers: Answers::start(),
        }
    }

    async fn call(&self, mut request: Request, next: Next) -> Result<(Response, Option<Answer>), Status> {
        let path = request.uri().path();
        let (shape, is_open, usual_kib) = (observe::shape(path), path.starts_with(OPEN), usual_kib(path));
        if !is_open {
            match self.tokens.authenticate(request.headers()) {
                Ok(caller) => drop(request.extensions_mut().insert(caller)),
                Err(denied) => {
                    metrics::counter!("leadfold_unauthenticated_total", "listener" => self.listener).increment(1);
                    return Err(unauthenticated(denied));
                }
            }
        }
        let watches = request.extensions().get::<ConnectionWatches>().cloned();
        let budget = watches.as_ref().map(|connection| connection.budget.clone()).unwrap_or_default();
        let places = if is_open { &self.open_calls } else { &self.calls };
        let answer = match shape {
            Shape::Unknown => return Err(unknown_rpc(request.uri().path())),
            // Its messages come as it goes on.
            Shape::ClientStream => {
                let _place = take(places, overloaded)?;
                return Ok((next.run(request).await, None));
            }
            Shape::ServerStream => {
                let of_watches = watches.as_ref().filter(|_| !is_open);
                let of_connection = of_watches.map_or(&budget.service_streams, |watches| &watches.permits);
                let refusal = || of_watches.map_or_else(service_streams_full, |watches| connection_watches_full(watches.max));
                let of_all = if is_open { &self.open_calls } else { &self.arriving_streams };
                let limits = [(of_all, &overloaded as _), (of_connection, &refusal as _)];
                let (request, _counted) = self.whole(request, limits, &budget).await?;
                let _place = take(places, overloaded)?;
                return Ok((next.run(request).await, None));
            }
            Shape::Unary => {
                let arriving = if is_open { &self.open_calls } else { &self.arriving };
                let limits = [(arriving, &overloaded as _), (&budget.arriving, &connection_overloaded as _)];
                let (request, counted) = self.whole(request, limits, &budget).await?;
                let until = Instant::now() + request::ARRIVAL;
                let call = match take(&budget.calls, connection_overloaded) {
                    Ok(call) => call,
                    // A client may send many at once. They wait for each other, and not in any number.
                    Err(_) => {
                        let _place = take(arriving, connection_overloaded)?;
                        request::wait_for(&budget.calls, 1, until).await.map_err(|_| connection_overloaded())?
                    }
                };
                let place = take(places, overloaded)?;
                // Room for the answer, before it is made. First of the connection: who waits for that takes nothing from
                // others.
                let of_connection = request::wait_for(&budget.waiting_kib, usual_kib, until).await?;
                let room = [of_connection, request::wait_for(&self.answers_kib, usual_kib, until).await?];
                let response = next.run(request).await;
                drop(counted);
                self.keep(response, room, place, call, &budget).await?
            }
        };
        Ok(answer)
    }

    /// The request with a body that is whole.
    async fn whole<const N: usize>(
        &self,
        request: Request,
        places: [(&Arc<Semaphore>, &(dyn Fn() -> Status + Sync)); N],
        budget: &Budget,
    ) -> Result<(Request, Vec<OwnedSemaphorePermit>), Status> {
        let (parts, body) = request.into_parts();
        let limits = Arriving { places: places.to_vec(), kib: &self.requests_kib, budget, time: request::ARRIVAL };
        let whole = request::one_message(body, limits).await?;
        Ok((Request::from_parts(parts, Body::from(whole.bytes)), whole.counted))
    }

    /// Keeps an answer with all that it takes until it is sent.
    async fn keep(
        &self,
        response: Response,
        mut room: [OwnedSemaphorePermit; 2],
        place: OwnedSemaphorePermit,
        call: OwnedSemaphorePermit,
        budget: &Budget,
    ) -> Result<(Response, Option<Answer>), Status> {
        if response.body().is_end_stream() {
            return Ok((response, None));
        }
        let (parts, mut body) = response.into_parts();
        let (mut chunks, mut trailers) = (VecDeque::<Bytes>::new(), http::HeaderMap::new());
        // It is made, and comes without waiting for anything.
        while let Some(frame) = body.frame().await {
            match frame.map_err(|error| Status::internal(error.to_string()))?.into_data() {
                Ok(chunk) => chunks.push_back(chunk),
                Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
            }
        }
        let kib = chunks.iter().map(Bytes::len).sum::<usize>().div_ceil(1024).max(1);
        let mut counted = vec![place];
        for (room, semaphore) in room.iter_mut().zip([&budget.waiting_kib, &self.answers_kib]) {
            match room.num_permits().checked_sub(kib) {
                Some(too_much) => drop(room.split(too_much)),
                None => {
                    let more = u32::try_from(kib - room.num_permits()).unwrap_or(u32::MAX);
                    counted.push(Arc::clone(semaphore).try_acquire_many_owned(more).map_err(|_| overloaded())?);
                }
            }
        }
        counted.extend(room);
        let waiting = self.answers.keep(chunks, trailers, counted, Some(call));
        Ok((Response::from_parts(parts, Body::empty()), Some(Answer::Waiting(waiting))))
    }
}

/// KiB that hold nearly every answer of a call. A larger one takes more once it is made, and is refused if there is no more:
/// if room for the largest were kept for each, few calls could run at once.
fn usual_kib(path: &str) -> u32 {
    match path.rsplit('/').next().unwrap_or_default() {
        "GetLead" => 64,
        name if name.starts_with("List") || name.starts_with("BatchGet") => 512,
        _ => 16,
    }
}

fn take(places: &Arc<Semaphore>, refusal: fn() -> Status) -> Result<OwnedSemaphorePermit, Status> {
    Arc::clone(places).try_acquire_owned().map_err(|_| refusal())
}

/// axum middleware: refuses, or puts the [`Caller`] into the request's extensions and lets the call run until its deadline.
pub(super) async fn admit(State(gate): State<Gate>, request: Request, next: Next) -> Response {
    let deadline = deadline::of(request.headers());
    let call = gate.call(request, next);
    let outcome = match deadline {
        None => call.await,
        Some(deadline) => timeout_at(deadline, call).await.unwrap_or_else(|_| Err(deadline::exceeded())),
    };
    match outcome {
        Ok((response, answer)) => body::complete(response, answer, deadline),
        Err(status) => {
            if super::status::is_overload(&status) {
                metrics::counter!("leadfold_calls_shed_total").increment(1);
            }
            status.into_http()
        }
    }
}

/// Who sent a request.
///
/// # Errors
/// Nobody looked: then it is nobody.
pub(super) fn caller<T>(request: &tonic::Request<T>) -> Result<Caller, tonic::Status> {
    request.extensions().get::<Caller>().cloned().ok_or_else(|| unauthenticated(crate::auth::Denied::Missing))
}
