//! What keeps senders from asking for more than can be done: what is too much is turned away at once, with a time to
//! come back, rather than make everybody wait.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::interval;

use crate::config::LimitConfig;

/// Bytes of all bodies that are held at once. Many large ones must not fill the memory.
const BODY_BYTES: usize = 256 << 20;
/// How often senders that were not heard of lately are forgotten.
const FORGET: Duration = Duration::from_secs(60);

/// The webhooks that are under way.
#[derive(Clone, Debug)]
pub(super) struct Load {
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    rates: Option<Arc<DefaultKeyedRateLimiter<IpAddr>>>,
}

/// Too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overload {
    /// Of all together.
    Server,
    /// Of one sender, which may come back after this.
    Sender(Duration),
}

/// Why a body is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoBody {
    TooLarge,
    Broken,
    Overload,
}

/// A body, which counts until it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) bytes: Bytes,
    _room: Option<OwnedSemaphorePermit>,
}

impl Load {
    pub(super) fn new(limits: LimitConfig) -> Self {
        let rates = limits.webhooks_per_second.map(|rate| Arc::new(DefaultKeyedRateLimiter::keyed(Quota::per_second(rate))));
        if let Some(rates) = rates.clone() {
            tokio::spawn(async move {
                let mut ticks = interval(FORGET);
                loop {
                    ticks.tick().await;
                    rates.retain_recent();
                    rates.shrink_to_fit();
                }
            });
        }
        Self { requests: Arc::new(Semaphore::new(limits.requests_in_flight)), bytes: Arc::new(Semaphore::new(BODY_BYTES)), rates }
    }

    /// A place for one request, as long as it is held.
    pub(super) fn enter(&self, sender: Option<IpAddr>) -> Result<OwnedSemaphorePermit, Overload> {
        if let (Some(rates), Some(sender)) = (&self.rates, sender) {
            let allowed = rates.check_key(&network(sender));
            allowed.map_err(|until| Overload::Sender(until.wait_time_from(DefaultClock::default().now())))?;
        }
        Arc::clone(&self.requests).try_acquire_owned().map_err(|_| Overload::Server)
    }

    /// Reads a body of at most so many bytes.
    pub(super) async fn read(&self, mut body: Body, most: usize) -> Result<Held, NoBody> {
        let mut held = Held { bytes: Bytes::new(), _room: None };
        let mut gathered = Vec::new();
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            let Ok(chunk) = frame.map_err(|_| NoBody::Broken)?.into_data() else { continue };
            length += chunk.len();
            if length > most {
                return Err(NoBody::TooLarge);
            }
            let room = u32::try_from(chunk.len()).ok().and_then(|length| Arc::clone(&self.bytes).try_acquire_many_owned(length).ok());
            let room = room.ok_or(NoBody::Overload)?;
            match &mut held._room {
                Some(taken) => taken.merge(room),
                none => *none = Some(room),
            }
            // Most come in one piece, which is not copied.
            if held.bytes.is_empty() && gathered.is_empty() {
                held.bytes = chunk;
            } else {
                gathered.extend_from_slice(&std::mem::take(&mut held.bytes));
                gathered.extend_from_slice(&chunk);
            }
        }
        if !gathered.is_empty() {
            held.bytes = gathered.into();
        }
        Ok(held)
    }
}

/// One sender: an address, or what a single customer is given of IPv6.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_is_an_address_or_a_network() {
        let network = |text: &str| network(text.parse().expect("an address")).to_string();
        assert_eq!(network("10.1.2.3"), "10.1.2.3");
        assert_eq!(network("::ffff:10.1.2.3"), "10.1.2.3");
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
    }
}
