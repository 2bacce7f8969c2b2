//! The circuit breaker: a server that fails is not asked for every event.
//!
//! Servers of a store fail one by one, so each has a state of its own, however many partitions it has. While a server fails,
//! events for it go to the spool at once, and a task in the background finds out when it works again: no event waits for
//! that.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use crate::store::Store;

/// Failures in a row, after which a server is no longer asked.
const FAILURES: u32 = 3;
/// How often it is tried whether a server works again.
const PROBE_EVERY: Duration = Duration::from_millis(200);
/// How long a try may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// One for all servers of a store.
pub struct Breaker {
    store: Arc<dyn Store>,
    partitions: u16,
    servers: RwLock<HashMap<Arc<str>, Arc<Server>>>,
    /// How many servers are not asked.
    open: AtomicUsize,
    opened: Notify,
}

impl std::fmt::Debug for Breaker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Breaker").field("servers", &self.servers).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Server {
    failures: AtomicU32,
    /// The partition that failed last: it is tried.
    partition: AtomicU16,
}

impl Server {
    fn is_open(&self) -> bool {
        self.failures.load(Ordering::Relaxed) >= FAILURES
    }
}

impl Breaker {
    /// For a store of so many partitions.
    pub fn new(store: Arc<dyn Store>, partitions: u16) -> Self {
        Self { store, partitions: partitions.max(1), servers: RwLock::default(), open: AtomicUsize::new(0), opened: Notify::new() }
    }

    /// Whether the server that has a partition is to be asked now.
    pub fn admits(&self, partition: u16) -> bool {
        // Nearly always: then nothing else has to be looked at.
        self.open.load(Ordering::Relaxed) == 0 || !self.server(partition).is_open()
    }

    /// The server did what it was asked.
    pub fn succeeded(&self, partition: u16) {
        let server = self.server(partition);
        // Nearly always there were no failures: then nothing is written that others read.
        if server.failures.load(Ordering::Relaxed) > 0 && server.failures.swap(0, Ordering::Relaxed) >= FAILURES {
            self.close();
        }
    }

    /// The server could not do what it was asked.
    pub fn failed(&self, partition: u16) {
        let server = self.server(partition);
        server.partition.store(partition, Ordering::Relaxed);
        let before = server.failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |failures| failures.checked_add(1));
        if before.unwrap_or(u32::MAX) + 1 == FAILURES {
            self.open.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(server = %self.store.server(partition), "the store cannot take events: they are spooled until it can");
            self.opened.notify_one();
        }
    }

    fn close(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        tracing::info!("the store takes events again");
    }

    /// Whether no server is asked.
    pub fn is_open(&self) -> bool {
        let servers = self.servers.read().unwrap_or_else(PoisonError::into_inner);
        !servers.is_empty() && servers.values().all(|server| server.is_open())
    }

    /// Whether some server is not asked.
    pub fn is_open_anywhere(&self) -> bool {
        self.open.load(Ordering::Relaxed) > 0
    }

    fn server(&self, partition: u16) -> Arc<Server> {
        let name = self.store.server(partition);
        if let Some(server) = self.servers.read().unwrap_or_else(PoisonError::into_inner).get(&name) {
            return Arc::clone(server);
        }
        Arc::clone(self.servers.write().unwrap_or_else(PoisonError::into_inner).entry(name).or_default())
    }

    /// Finds out when servers that failed work again, for as long as its task lives.
    pub async fn probe(&self) {
        loop {
            if !self.is_open_anywhere() {
                self.opened.notified().await;
            }
            self.forget_those_without_partitions();
            let open: Vec<u16> = {
                let servers = self.servers.read().unwrap_or_else(PoisonError::into_inner);
                let open = servers.values().filter(|server| server.is_open());
                open.map(|server| server.partition.load(Ordering::Relaxed)).collect()
            };
            let tries = open.into_iter().map(async |partition| {
                if let Ok(Ok(())) = timeout(PROBE_TIMEOUT, self.store.probe(partition)).await {
                    self.succeeded(partition);
                }
            });
            futures::future::join_all(tries).await;
            tokio::time::sleep(PROBE_EVERY).await;
        }
    }

    /// A server whose partitions another one has now is nobody's concern any more.
    fn forget_those_without_partitions(&self) {
        let named: HashSet<Arc<str>> = (0..self.partitions).map(|partition| self.store.server(partition)).collect();
        let mut servers = self.servers.write().unwrap_or_else(PoisonError::into_inner);
        let gone: Vec<Arc<str>> = servers.keys().filter(|name| !named.contains(*name)).cloned().collect();
        for name in gone {
            if servers.remove(&name).is_some_and(|server| server.is_open()) {
                self.close();
            }
        }
    }
}
