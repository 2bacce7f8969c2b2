//! `grpc.health.v1.Health`: what load balancers ask, and what clients watch. No token is needed.

use futures::stream::Empty;
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::service_streams::{ServiceStreams, Serving};
use super::shared::{self, framed};
use super::{DEAD_LETTER_SERVICE_NAME, SERVICE_NAME};

/// Says how the services are, all in the same way; the empty name is the server.
const SERVICES: [&str; 3] = ["", SERVICE_NAME, DEAD_LETTER_SERVICE_NAME];

/// Tells the service how the server is.
#[derive(Clone, Debug)]
pub struct HealthReporter(pub(super) watch::Sender<Serving>);

impl HealthReporter {
    /// Until it was told otherwise, the server does not serve.
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(Serving::No))
    }

    /// Tells those who watch, if it is not what they know.
    pub fn set_serving(&self, is_serving: bool) {
        self.set(if is_serving { Serving::Yes } else { Serving::No });
    }

    /// Ends all streams of health and reflection, for good.
    pub fn end(&self) {
        self.set(Serving::Ending);
    }

    fn set(&self, serving: Serving) {
        self.0.send_if_modified(|now| {
            let is_other = *now != serving && *now != Serving::Ending;
            if is_other {
                *now = serving;
            }
            is_other
        });
    }
}

/// The service.
#[derive(Clone, Debug)]
pub(super) struct HealthService(pub(super) ServiceStreams);

fn answer(service: &str, serving: Serving) -> HealthCheckResponse {
    let status = match serving {
        _ if !SERVICES.contains(&service) => ServingStatus::ServiceUnknown,
        Serving::Yes => ServingStatus::Serving,
        Serving::No | Serving::Ending => ServingStatus::NotServing,
    };
    HealthCheckResponse { status: status as i32 }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        if !SERVICES.contains(&&*service) {
            return Err(Status::not_found("there is no such service"));
        }
        Ok(Response::new(answer(&service, self.0.serving())))
    }

    type WatchStream = Empty<Result<HealthCheckResponse, Status>>;

    /// A service that is not known is told of, and the stream goes on: it might become known, says the protocol.
    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let mut open = self.0.open(&request)?;
        let service = request.into_inner().service;
        // The name is not kept: it may be long, and what it means does not change.
        let known = SERVICES.into_iter().find(|known| *known == service);
        drop(service);
        let stream = async_stream::try_stream! {
            let mut told = None;
            loop {
                let serving = *open.serving.borrow_and_update();
                let now = known.map_or(answer("?", serving), |known| answer(known, serving));
                if serving != Serving::Ending && told != Some(now.status) {
                    told = Some(now.status);
                    yield framed(&now);
                }
                open.changed().await?;
            }
        };
        Ok(shared::response("grpc.health.v1.Health/Watch", Box::pin(stream)))
    }
}
