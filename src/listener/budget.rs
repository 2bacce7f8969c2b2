//! What one connection may have under way, so that it cannot take everything.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// Unary calls of one connection that are under way at once, from their whole request to the last byte of their answers.
pub const CALLS: usize = 1000;
/// Health watches and reflection streams of one connection.
pub const SERVICE_STREAMS: usize = 10;
/// KiB of requests and answers that wait on one connection.
pub const WAITING_KIB: usize = 16 * 1024;

/// The limits of one connection. Every request carries them.
#[derive(Clone, Debug)]
pub struct Budget {
    /// Unary calls.
    pub calls: Arc<Semaphore>,
    /// Requests of unary calls that are awaited. There may be as many as calls.
    pub arriving: Arc<Semaphore>,
    /// Health watches and reflection streams.
    pub service_streams: Arc<Semaphore>,
    /// KiB of requests that are read, and of answers that are not sent yet.
    pub waiting_kib: Arc<Semaphore>,
}

impl Default for Budget {
    fn default() -> Self {
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        Self {
            calls: semaphore(CALLS),
            arriving: semaphore(CALLS),
            service_streams: semaphore(SERVICE_STREAMS),
            waiting_kib: semaphore(WAITING_KIB),
        }
    }
}
