//! Redis in more than one piece: a cluster, and a server that sentinels watch over.
//!
//! Each fault has events flowing, and a ledger of what was answered.

use std::sync::{Arc, Mutex};

use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::support::ledger::Ledger;
use crate::support::server::{Options, Server};

mod acl;
mod cluster;
mod connections;
mod misconfigured;
mod sentinel;
mod tls;

/// Events that flow into a server.
struct Flow {
    server: Server,
    ledger: Arc<Ledger>,
    senders: Vec<JoinHandle<()>>,
    _dir: TempDir,
}

impl Flow {
    async fn begin(url: &str, leads: usize) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let server = Server::start(&Options::at(url).data_dir(dir.path()));
        let address = Arc::new(Mutex::new(server.http.clone()));
        let ledger = Ledger::new(leads);
        let senders = ledger.flow(6, &address);
        ledger.until("applied", 100).await;
        Self { server, ledger, senders, _dir: dir }
    }

    /// Events are applied again; then the flow ends, and the ledger is held against what is there.
    async fn end(self) {
        self.ledger.until("applied", 200).await;
        self.ledger.stop(self.senders).await;
        self.ledger.settle(&self.server).await;
        self.ledger.assert_prompt();
    }
}
