//! The gRPC edge: a thin skin over the store and the hub.

use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use tonic::service::Routes;
use tonic_reflection::pb::v1::server_reflection_server::ServerReflectionServer as ReflectionV1;
use tonic_reflection::pb::v1alpha::server_reflection_server::ServerReflectionServer as ReflectionV1Alpha;

use crate::auth::Tokens;
use crate::dead_letters::DeadLetters;
use crate::intake::Intake;
use crate::store::Store;
use crate::watch::Hub;

mod admission;
mod answers;
mod base64_body;
mod body;
pub mod convert;
mod dead_letters;
mod deadline;
mod health;
mod leads;
mod observe;
pub(crate) mod page_token;
mod reflection;
mod request;
mod service;
mod service_streams;
mod shared;
mod sight;
mod status;
mod watch;
pub mod web;
pub mod wire;
pub mod wrong_port;

pub use health::HealthReporter;

/// The server's side of the API, generated from `proto/`.
#[allow(missing_docs, clippy::all, clippy::pedantic)] // generated
mod server {
    include!(concat!(env!("OUT_DIR"), "/server/leadfold.v1.rs"));
}

/// The full name of the service, as health checks name it.
pub const SERVICE_NAME: &str = "leadfold.v1.LeadService";
const DEAD_LETTER_SERVICE_NAME: &str = "leadfold.v1.DeadLetterService";

/// Bytes of what reflection is asked.
const MAX_QUESTION: usize = 64 * 1024;

/// How much is served at once.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Watches, each named lead of a stream being one.
    pub max_watches: usize,
    /// Of these, those that one token may have open.
    pub max_watches_per_token: usize,
    /// Calls that are no streams.
    pub max_calls: usize,
}

/// The services, without the [`admit`] that has to stand before them: the API with the service of dead letters, health,
/// reflection. The reporter says how the service is.
///
/// # Errors
/// The descriptors do not fit reflection: then this program was built wrongly.
pub fn services(
    store: Arc<dyn Store>,
    hub: Arc<Hub>,
    tokens: Arc<Tokens>,
    letters: (Option<Arc<DeadLetters>>, Intake),
    limits: Limits,
) -> anyhow::Result<(Router, HealthReporter)> {
    let watches = watch::Watches::new(hub, Arc::clone(&store), limits);
    let service = server::lead_service_server::LeadServiceServer::new(service::LeadService::new(store, watches, letters.0.clone()));
    let letters =
        server::dead_letter_service_server::DeadLetterServiceServer::new(dead_letters::DeadLetterService::new(letters.0, letters.1));
    let reporter = HealthReporter::new();
    let streams = service_streams::ServiceStreams::new(reporter.0.subscribe(), tokens);
    let health = health::HealthService(streams.clone());
    let reflection = reflection::Reflection::new(streams)?;
    let routes = Routes::new(service)
        .add_service(letters)
        .add_service(tonic_health::pb::health_server::HealthServer::new(health))
        .add_service(ReflectionV1::new(reflection.clone()).max_decoding_message_size(MAX_QUESTION))
        .add_service(ReflectionV1Alpha::new(reflection).max_decoding_message_size(MAX_QUESTION));
    Ok((routes.prepare().into_axum_router(), reporter))
}

/// What a listener serves of the services: every call but those of health needs a token where there are any, and not more
/// is under way than the limits allow. Each listener has its own: calls of one take no place of another's.
pub fn admit(services: Router, listener: &'static str, tokens: Arc<Tokens>, limits: Limits) -> Router {
    let gate = admission::Gate::new(listener, tokens, limits);
    services.layer(from_fn_with_state(gate, admission::admit)).layer(from_fn(observe::call))
}
