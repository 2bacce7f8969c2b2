//! What keeps senders from asking for more than can be done: what is too much is turned away at once, with a time to
//! come back, rather than make everybody wait.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota};
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, interval, timeout_at};

use super::arrivals::{Arrival, Arrivals, LEAST_CHARGE, Source};
use crate::config::LimitConfig;

/// Bytes of all bodies that are held at once of senders that are known. Many large ones must not fill the memory.
const BODY_BYTES: usize = 256 << 20;
/// Bytes of all bodies that are arriving of senders that are not known yet.
const UNCONFIRMED_BYTES: usize = 32 << 20;
/// The largest bodies must fit in, some at once, however large they may be.
const UNCONFIRMED_BODIES: usize = 4;
/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long it may take whatever its rate is.
const BODY_GRACE: Duration = Duration::from_secs(3);
/// Bytes per second that have to arrive from then on, on average.
const LEAST_BODY_RATE: u64 = 4 << 10;
/// How often senders that were not heard of lately are forgotten.
const FORGET: Duration = Duration::from_secs(60);

type Rates = Option<Arc<DefaultKeyedRateLimiter<IpAddr>>>;

/// The webhooks that are under way.
#[derive(Clone, Debug)]
pub(super) struct Load {
    requests: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    arrivals: Arc<Arrivals>,
    rates: Rates,
    unauthenticated: Rates,
}

/// Too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overload {
    /// Of all together.
    Server,
    /// Of bodies whose senders are not known.
    Unconfirmed,
    /// Of one sender, which may come back after this.
    Sender(Duration),
    /// Of requests from one address that were not authenticated.
    Unauthenticated(Duration),
}

/// Why a body is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoBody {
    TooLarge,
    Broken,
    TooSlow,
    Overload(Overload),
}

/// A body, which counts until it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) bytes: Bytes,
    room: Room,
}

/// What a body counts against.
#[derive(Debug)]
enum Room {
    /// All bodies of senders that are known.
    Known(Arc<Semaphore>, Option<OwnedSemaphorePermit>),
    /// Those of senders that are not known yet, and how much of what was charged is not used.
    Unconfirmed { arrival: Arrival, spare: usize },
}

impl Room {
    fn known(bytes: &Arc<Semaphore>) -> Self {
        Self::Known(Arc::clone(bytes), None)
    }

    fn grow(&mut self, bytes: usize) -> Result<(), Overload> {
        match self {
            Self::Known(all, taken) => {
                let more = u32::try_from(bytes).ok().and_then(|bytes| Arc::clone(all).try_acquire_many_owned(bytes).ok());
                let more = more.ok_or(Overload::Server)?;
                match taken {
                    Some(taken) => taken.merge(more),
                    none => *none = Some(more),
                }
                Ok(())
            }
            Self::Unconfirmed { arrival, spare } => {
                let more = bytes.saturating_sub(*spare);
                *spare = spare.saturating_sub(bytes);
                arrival.grow(more).map_err(|_| Overload::Unconfirmed)
            }
        }
    }

    /// Waits until it is wanted for others.
    async fn displaced(&mut self) {
        match self {
            Self::Known(..) => std::future::pending().await,
            Self::Unconfirmed { arrival, .. } => arrival.displaced().await,
        }
    }
}

impl Load {
    pub(super) fn new(limits: LimitConfig, max_body_bytes: usize) -> Self {
        let rates = || limits.webhooks_per_second.map(|rate| Arc::new(DefaultKeyedRateLimiter::keyed(Quota::per_second(rate))));
        let (rates, unauthenticated) = (rates(), rates());
        for rates in [&rates, &unauthenticated].into_iter().flatten() {
            let rates = Arc::clone(rates);
            tokio::spawn(async move {
                let mut ticks = interval(FORGET);
                loop {
                    ticks.tick().await;
                    rates.retain_recent();
                    rates.shrink_to_fit();
                }
            });
        }
        let unconfirmed = UNCONFIRMED_BYTES.max(max_body_bytes.saturating_mul(UNCONFIRMED_BODIES));
        Self {
            requests: Arc::new(Semaphore::new(limits.requests_in_flight)),
            bytes: Arc::new(Semaphore::new(BODY_BYTES.max(max_body_bytes.saturating_mul(UNCONFIRMED_BODIES)))),
            arrivals: Arc::new(Arrivals::new(unconfirmed)),
            rates,
            unauthenticated,
        }
    }

    /// A place for one request of a sender that is known, as long as it is held.
    pub(super) fn enter(&self, client: Option<IpAddr>) -> Result<OwnedSemaphorePermit, Overload> {
        charge(&self.rates, client).map_err(Overload::Sender)?;
        Arc::clone(&self.requests).try_acquire_owned().map_err(|_| Overload::Server)
    }

    /// Charges a request that was not authenticated. It costs the senders behind the same address nothing.
    pub(super) fn charge_unauthenticated(&self, client: Option<IpAddr>) -> Result<(), Overload> {
        charge(&self.unauthenticated, client).map_err(Overload::Unauthenticated)
    }

    /// Reads a body of at most so many bytes. `unconfirmed`: where it comes from, if its sender is not known yet.
    pub(super) async fn read(&self, mut body: Body, most: usize, unconfirmed: Option<Source>) -> Result<Held, NoBody> {
        let room = match unconfirmed {
            None => Room::known(&self.bytes),
            Some(source) => {
                let source = Source { address: network(source.address), ..source };
                Room::Unconfirmed { arrival: self.arrivals.begin(source), spare: LEAST_CHARGE }
            }
        };
        let mut held = Held { bytes: Bytes::new(), room };
        // What is still to come, if the sender has said so, and the limit otherwise.
        let declared = body.size_hint().exact().and_then(|length| usize::try_from(length).ok());
        if declared.is_some_and(|length| length > most) {
            return Err(NoBody::TooLarge);
        }
        let largest = declared.unwrap_or(most);
        let began = Instant::now();
        let (mut gathered, mut length) = (Vec::new(), 0);
        loop {
            let deadline = began + allowed(length);
            let frame = tokio::select! {
                biased;
                frame = timeout_at(deadline, body.frame()) => frame.map_err(|_| NoBody::TooSlow)?,
                () = held.room.displaced() => return Err(NoBody::Overload(Overload::Unconfirmed)),
            };
            let Some(frame) = frame else { break };
            let Ok(chunk) = frame.map_err(|_| NoBody::Broken)?.into_data() else { continue };
            length += chunk.len();
            if length > most {
                return Err(NoBody::TooLarge);
            }
            // Most come in one piece, which is not copied.
            if gathered.is_empty() && body.is_end_stream() {
                held.room.grow(chunk.len()).map_err(NoBody::Overload)?;
                held.bytes = chunk;
                continue;
            }
            if length > gathered.capacity() {
                // Charged before it is there; a length that is only declared costs nothing.
                let capacity = (gathered.capacity() * 2).max(length).min(largest.max(length));
                held.room.grow(capacity - gathered.capacity()).map_err(NoBody::Overload)?;
                gathered.reserve_exact(capacity - gathered.len());
            }
            gathered.extend_from_slice(&chunk);
        }
        if !gathered.is_empty() {
            held.bytes = gathered.into();
        }
        Ok(held)
    }

    /// The sender of a body is known now: it counts with those.
    pub(super) fn confirm(&self, held: &mut Held) -> Result<(), Overload> {
        if matches!(held.room, Room::Unconfirmed { .. }) {
            let mut room = Room::known(&self.bytes);
            room.grow(held.bytes.len())?;
            held.room = room;
        }
        Ok(())
    }
}

/// How long a body may take of which so much has arrived.
fn allowed(length: usize) -> Duration {
    let at_least_rate = Duration::from_millis(length as u64 * 1000 / LEAST_BODY_RATE);
    (BODY_GRACE + at_least_rate).min(BODY_TIMEOUT)
}

/// The error is how long to wait.
fn charge(rates: &Rates, client: Option<IpAddr>) -> Result<(), Duration> {
    let (Some(rates), Some(client)) = (rates, client) else { return Ok(()) };
    rates.check_key(&network(client)).map_err(|until| until.wait_time_from(DefaultClock::default().now()))
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
    fn a_body_has_a_least_rate() {
        assert_eq!(allowed(0), BODY_GRACE);
        assert_eq!(allowed(4 << 10), BODY_GRACE + Duration::from_secs(1));
        assert_eq!(allowed(1 << 20), BODY_TIMEOUT);
        assert_eq!(allowed(usize::MAX / 1000), BODY_TIMEOUT);
    }

    #[test]
    fn a_sender_is_an_address_or_a_network() {
        let network = |text: &str| network(text.parse().expect("an address")).to_string();
        assert_eq!(network("10.1.2.3"), "10.1.2.3");
        assert_eq!(network("::ffff:10.1.2.3"), "10.1.2.3");
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
    }
}
