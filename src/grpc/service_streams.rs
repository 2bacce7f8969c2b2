//! Streams beside the watches of leads: health and reflection. They are counted, and end when the server does, when their
//! connection has reached its age, and with the token that they were opened with.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};

use super::status::{aged, draining, exhausted, fallen, service_streams_full};
use crate::auth::{Caller, Tokens};
use crate::listener::ConnectionWatches;

/// Of all connections.
const MAX_STREAMS: usize = 5000;

/// What health watches are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Serving {
    Yes,
    No,
    /// Streams end.
    Ending,
}

/// Opens streams.
#[derive(Clone, Debug)]
pub(super) struct ServiceStreams {
    serving: watch::Receiver<Serving>,
    tokens: Arc<Tokens>,
    permits: Arc<Semaphore>,
}

/// Held by a stream as long as it lives.
pub(super) struct Open {
    pub(super) serving: watch::Receiver<Serving>,
    changes: watch::Receiver<()>,
    caller: Option<Caller>,
    aged: CancellationToken,
    _permits: [OwnedSemaphorePermit; 2],
}

impl ServiceStreams {
    pub(super) fn new(serving: watch::Receiver<Serving>, tokens: Arc<Tokens>) -> Self {
        Self { serving, tokens, permits: Arc::new(Semaphore::new(MAX_STREAMS)) }
    }

    pub(super) fn serving(&self) -> Serving {
        *self.serving.borrow()
    }

    pub(super) fn open<T>(&self, request: &Request<T>) -> Result<Open, Status> {
        let connection = request.extensions().get::<ConnectionWatches>();
        let of_connection = connection.map_or_else(|| Arc::new(Semaphore::new(1)), |it| Arc::clone(&it.budget.service_streams));
        let of_connection = of_connection.try_acquire_owned().map_err(|_| service_streams_full())?;
        let of_server = Arc::clone(&self.permits).try_acquire_owned();
        let of_server = of_server.map_err(|_| {
            exhausted("service-streams", format!("this server has its {MAX_STREAMS} streams of health and reflection open"))
        })?;
        let open = Open {
            serving: self.serving.clone(),
            changes: self.tokens.changes(),
            caller: request.extensions().get::<Caller>().cloned(),
            aged: connection.map(|connection| connection.aged.clone()).unwrap_or_default(),
            _permits: [of_connection, of_server],
        };
        open.check().map(|()| open)
    }
}

impl Open {
    fn check(&self) -> Result<(), Status> {
        if *self.serving.borrow() == Serving::Ending {
            return Err(draining());
        }
        if let Some(status) = self.caller.as_ref().and_then(|caller| fallen(caller.standing())) {
            return Err(status);
        }
        if self.aged.is_cancelled() { Err(aged()) } else { Ok(()) }
    }

    /// Waits until health has changed, or something that may end the stream.
    ///
    /// # Errors
    /// The stream has to end.
    pub(super) async fn changed(&mut self) -> Result<(), Status> {
        let gone = tokio::select! {
            changed = self.serving.changed() => changed.is_err(),
            // Tokens that are off never change.
            changed = self.changes.changed() => changed.is_err(),
            () = self.aged.cancelled() => false,
        };
        if gone { Err(draining()) } else { self.check() }
    }
}
