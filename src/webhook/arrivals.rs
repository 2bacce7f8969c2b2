//! Bodies whose sender is not known yet, because the signature covers the body, or because nobody is asked for a secret.
//!
//! They share a fixed amount of memory. When it is full, a request has to give way: of the address that uses most, of its
//! connection that uses most, the oldest one. So a peer that opens many requests, or sends much, and finishes nothing
//! displaces its own, and a sender whose small body arrives promptly is served, even behind the same address.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// A request counts for this many bytes even if nothing of its body is here: this also bounds the number of requests.
pub(super) const LEAST_CHARGE: usize = 16 << 10;

/// Where a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Source {
    /// The client's address, or its network.
    pub(super) address: IpAddr,
    /// The number of its connection.
    pub(super) connection: u64,
}

/// The memory that they share.
#[derive(Debug)]
pub(super) struct Arrivals {
    capacity: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    used: usize,
    next: u64,
    addresses: HashMap<IpAddr, Address>,
}

#[derive(Debug, Default)]
struct Address {
    used: usize,
    connections: HashMap<u64, Connection>,
}

#[derive(Debug, Default)]
struct Connection {
    used: usize,
    /// By their order of arrival: what each uses, and what is dropped to tell it that it was displaced.
    requests: BTreeMap<u64, (usize, oneshot::Sender<()>)>,
}

/// A request whose body is arriving. Dropped, it frees what it used.
#[derive(Debug)]
pub(super) struct Arrival {
    arrivals: Arc<Arrivals>,
    source: Source,
    number: u64,
    displaced: oneshot::Receiver<()>,
}

/// The request had to give way to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Displaced;

impl Arrivals {
    /// With so many bytes for all of them together.
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(LEAST_CHARGE), state: Mutex::default() }
    }

    /// Lets a request's body arrive; others may have to give way.
    pub(super) fn begin(self: &Arc<Self>, source: Source) -> Arrival {
        let (sender, displaced) = oneshot::channel();
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        let address = state.addresses.entry(source.address).or_default();
        address.connections.entry(source.connection).or_default().requests.insert(number, (0, sender));
        state.charge(source, number, LEAST_CHARGE);
        state.make_room(self.capacity);
        drop(state);
        Arrival { arrivals: Arc::clone(self), source, number, displaced }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// `false`: the request is not here any more.
    fn charge(&mut self, source: Source, number: u64, bytes: usize) -> bool {
        let Some(address) = self.addresses.get_mut(&source.address) else { return false };
        let Some(connection) = address.connections.get_mut(&source.connection) else { return false };
        let Some((used, _)) = connection.requests.get_mut(&number) else { return false };
        *used += bytes;
        connection.used += bytes;
        address.used += bytes;
        self.used += bytes;
        true
    }

    fn remove(&mut self, source: Source, number: u64) {
        let Some(address) = self.addresses.get_mut(&source.address) else { return };
        let Some(connection) = address.connections.get_mut(&source.connection) else { return };
        let Some((used, _)) = connection.requests.remove(&number) else { return };
        self.used -= used;
        address.used -= used;
        connection.used -= used;
        if connection.requests.is_empty() {
            address.connections.remove(&source.connection);
        }
        if address.connections.is_empty() {
            self.addresses.remove(&source.address);
        }
    }

    fn make_room(&mut self, capacity: usize) {
        while self.used > capacity {
            let Some((source, number)) = self.greediest() else { return };
            self.remove(source, number);
        }
    }

    /// Of the addresses that use most, of the connection that uses most, the oldest request.
    fn greediest(&self) -> Option<(Source, u64)> {
        let most = self.addresses.values().map(|address| address.used).max()?;
        let addresses = self.addresses.iter().filter(|(_, address)| address.used == most);
        let connections = addresses.flat_map(|(address, of)| of.connections.iter().map(move |(number, of)| (*address, *number, of)));
        let oldest = connections.filter_map(|(address, connection, of)| {
            let (number, _) = of.requests.first_key_value()?;
            Some((of.used, Reverse(*number), Source { address, connection }))
        });
        oldest.max_by_key(|(used, number, _)| (*used, *number)).map(|(_, Reverse(number), source)| (source, number))
    }
}

impl Arrival {
    /// Takes so many bytes more than it has.
    pub(super) fn grow(&self, bytes: usize) -> Result<(), Displaced> {
        let mut state = self.arrivals.state();
        if !state.charge(self.source, self.number, bytes) {
            return Err(Displaced);
        }
        state.make_room(self.arrivals.capacity);
        // It may have been the greediest itself.
        if state.charge(self.source, self.number, 0) { Ok(()) } else { Err(Displaced) }
    }

    /// Waits until it has to give way.
    pub(super) async fn displaced(&mut self) {
        let _ = (&mut self.displaced).await;
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.arrivals.state().remove(self.source, self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(address: &str, connection: u64) -> Source {
        Source { address: address.parse().expect("an address"), connection }
    }

    fn is_here(arrival: &Arrival) -> bool {
        arrival.grow(0).is_ok()
    }

    #[test]
    fn one_connection_displaces_only_its_own() {
        let arrivals = Arc::new(Arrivals::new(10 * LEAST_CHARGE));
        let other = arrivals.begin(source("10.0.0.1", 1));
        let many: Vec<_> = (0..100).map(|_| arrivals.begin(source("10.0.0.1", 2))).collect();
        assert!(is_here(&other), "same address, another connection");
        assert_eq!(many.iter().filter(|arrival| is_here(arrival)).count(), 9);
        assert!(many[91..].iter().all(is_here), "the oldest have given way");
    }

    #[test]
    fn one_address_with_many_connections_displaces_only_its_own() {
        let arrivals = Arc::new(Arrivals::new(10 * LEAST_CHARGE));
        let others: Vec<_> = (0..3).map(|at| arrivals.begin(source("10.0.0.1", at))).collect();
        let many: Vec<_> = (100..200).map(|at| arrivals.begin(source("10.0.0.2", at))).collect();
        assert!(others.iter().all(is_here));
        assert_eq!(many.iter().filter(|arrival| is_here(arrival)).count(), 7);
        let newcomer = arrivals.begin(source("10.0.0.2", 200));
        assert!(is_here(&newcomer) && others.iter().all(is_here), "a newcomer is let in");
    }

    #[tokio::test]
    async fn bytes_count_and_what_gives_way_learns_of_it() {
        let arrivals = Arc::new(Arrivals::new(10 * LEAST_CHARGE));
        let small = arrivals.begin(source("10.0.0.1", 1));
        let mut large = arrivals.begin(source("10.0.0.2", 1));
        large.grow(8 * LEAST_CHARGE).expect("it fits");
        let newcomer = arrivals.begin(source("10.0.0.3", 1));
        assert!(is_here(&small) && is_here(&newcomer) && !is_here(&large));
        large.displaced().await;
        assert_eq!(large.grow(1), Err(Displaced));
        assert_eq!(newcomer.grow(10 * LEAST_CHARGE), Err(Displaced), "more than there is");
        assert!(is_here(&small));
    }

    #[test]
    fn nothing_stays_of_what_is_dropped() {
        let arrivals = Arc::new(Arrivals::new(3 * LEAST_CHARGE));
        let kept: Vec<_> = (0..10).map(|at| arrivals.begin(source("10.0.0.1", at % 4))).collect();
        let _ = kept[9].grow(100);
        drop(kept);
        let state = arrivals.state();
        assert_eq!((state.used, state.addresses.len()), (0, 0));
    }
}
