//! The gRPC edge: a thin skin over the store and the hub.

use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use tonic::service::Routes;
use tonic_health::server::HealthReporter;

use crate::api;
use crate::auth::Tokens;
use crate::dead_letters::DeadLetters;
use crate::intake::Intake;
use crate::store::Store;
use crate::watch::Hub;

mod admission;
mod body;
pub mod convert;
mod dead_letters;
mod deadline;
mod leads;
mod observe;
pub(crate) mod page_token;
mod service;
mod shared;
mod sight;
mod status;
mod watch;
pub mod web;
pub mod wire;

/// The server's side of the API, generated from `proto/`.
#[allow(missing_docs, clippy::all, clippy::pedantic)] // generated
mod server {
    include!(concat!(env!("OUT_DIR"), "/server/leadfold.v1.rs"));
}

/// The full name of the service, as health checks name it.
pub const SERVICE_NAME: &str = "leadfold.v1.LeadService";

/// How much is served at once.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Streams of watches.
    pub max_watches: usize,
    /// Calls that are no streams.
    pub max_calls: usize,
}

/// What the gRPC listener serves: the API with the service of dead letters, health, reflection. The reporter says how the service is. Where there are
/// tokens, every call but those of health needs one.
///
/// # Errors
/// The descriptors do not fit reflection: then this program was built wrongly.
pub fn routes(
    store: Arc<dyn Store>,
    hub: Arc<Hub>,
    tokens: Arc<Tokens>,
    letters: (Option<Arc<DeadLetters>>, Intake),
    limits: Limits,
) -> anyhow::Result<(Router, HealthReporter)> {
    let watches = watch::Watches::new(hub, Arc::clone(&store), limits.max_watches);
    let service = server::lead_service_server::LeadServiceServer::new(service::LeadService::new(store, watches));
    let letters =
        server::dead_letter_service_server::DeadLetterServiceServer::new(dead_letters::DeadLetterService::new(letters.0, letters.1));
    let (reporter, health) = tonic_health::server::health_reporter();
    // Both versions of reflection: older tools speak only v1alpha. They also tell of the error details.
    let reflection = || {
        let own = [api::DESCRIPTORS, tonic_health::pb::FILE_DESCRIPTOR_SET, tonic_types::pb::FILE_DESCRIPTOR_SET];
        own.into_iter()
            .fold(tonic_reflection::server::Builder::configure(), tonic_reflection::server::Builder::register_encoded_file_descriptor_set)
    };
    let routes = Routes::new(service)
        .add_service(letters)
        .add_service(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?);
    let routes = routes.prepare().into_axum_router();
    let gate = admission::Gate::new(tokens, limits.max_calls);
    let routes = routes.layer(from_fn(deadline::keep)).layer(from_fn_with_state(gate, admission::admit)).layer(from_fn(observe::call));
    Ok((routes, reporter))
}
