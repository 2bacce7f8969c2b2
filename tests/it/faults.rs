//! Faults with events flowing: Redis and leadfold are killed, hung, filled up and locked out. Afterwards every event
//! that was answered 200 is in the aggregates exactly once, and every answer came within 3 s.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::support::ledger::Ledger;
use crate::support::redis::RedisServer;
use crate::support::server::{Options, Server};

mod chaos;
mod clocks;
mod crashes;
mod damage;
mod disk;
mod first_start;
mod poison;
mod refusals;
mod spool_damage;
mod spool_parts;
mod startup;

/// A Redis that keeps what it has acknowledged.
const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

/// Events that flow into a server on a Redis, and the ledger of what was answered.
struct Scene {
    redis: RedisServer,
    server: Option<Server>,
    dir: TempDir,
    url: String,
    address: Arc<Mutex<String>>,
    ledger: Arc<Ledger>,
    senders: Vec<JoinHandle<()>>,
}

impl Scene {
    async fn begin(redis: RedisServer) -> Self {
        let url = redis.url();
        Self::begin_at(redis, url).await
    }

    async fn begin_at(redis: RedisServer, url: String) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let server = Server::start(&Options::at(&url).data_dir(dir.path()));
        let address = Arc::new(Mutex::new(server.http.clone()));
        let ledger = Ledger::new(16);
        let senders = ledger.flow(4, &address);
        let scene = Self { redis, server: Some(server), dir, url, address, ledger, senders };
        scene.ledger.until("applied", 50).await;
        scene
    }

    fn server(&self) -> &Server {
        self.server.as_ref().expect("a server")
    }

    /// Kills leadfold, as a power cut would.
    fn kill_server(&mut self) {
        // Dropped, it is killed.
        self.server = None;
    }

    fn start_server(&mut self) {
        let server = Server::start(&Options::at(&self.url).data_dir(self.dir.path()));
        *self.address.lock().expect("the address") = server.http.clone();
        self.server = Some(server);
    }

    /// Events are applied again; then the flow ends, and the ledger is held against what is there.
    async fn end(mut self) {
        self.ledger.until("applied", 50).await;
        let senders = std::mem::take(&mut self.senders);
        self.ledger.stop(senders).await;
        self.ledger.settle(self.server()).await;
        self.ledger.assert_prompt();
    }
}

/// How long a fault lasts: longer on demand.
fn fault(seconds: u64) -> Duration {
    let told = std::env::var("LEADFOLD_TEST_FAULT_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(told.unwrap_or(seconds))
}
