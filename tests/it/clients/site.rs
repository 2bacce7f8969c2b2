//! A server that goes away and comes back at the same address with what it had stored, and what is in front of it.

use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::sleep;

use crate::support::certificates::{Authority, with_tls};
use crate::support::events::message;
use crate::support::proxies::{Program, ReverseProxy, Traffic};
use crate::support::redis::free_port;
use crate::support::server::{Options, Server, WEBHOOK};
use crate::support::tokens::{ALL, with_tokens};
use crate::support::{PATIENCE, fresh_id};

/// How long a server stays away: long enough for a proxy to answer in its place.
const AWAY: Duration = Duration::from_millis(2500);
/// Longer than any client waits for a heartbeat.
const LONG: Duration = Duration::from_secs(50);

/// How a server goes away.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outage {
    Restart,
    Kill,
    KillAndWait,
    EndAndWait,
    Freeze,
    FreezeForLong,
}

/// What a client has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Security {
    Open,
    Token,
    Tls,
    TokenAndTls,
}

impl Security {
    fn has_token(self) -> bool {
        matches!(self, Self::Token | Self::TokenAndTls)
    }

    fn has_tls(self) -> bool {
        matches!(self, Self::Tls | Self::TokenAndTls)
    }
}

pub(super) struct Site {
    server: Option<Server>,
    options: Options,
    proxy: Option<ReverseProxy>,
    security: Security,
    web: reqwest::Client,
    pub(super) lead_id: String,
    pub(super) written: Vec<u64>,
    dir: TempDir,
}

impl Site {
    /// `None`: the proxy is not installed.
    pub(super) fn start(through: Option<Program>, security: Security) -> Option<Self> {
        let (dir, authority) = (tempfile::tempdir().expect("a directory"), Authority::new());
        let data_dir = dir.path().join("data");
        let mut options = Options::default().data_dir(&data_dir).env("LEADFOLD_DRAIN_DELAY_MS", "0");
        options = options.grpc(&format!("127.0.0.1:{}", free_port()));
        if security.has_token() {
            options = with_tokens(options, dir.path());
        }
        if security.has_tls() {
            options = with_tls(options, dir.path(), &authority);
        }
        std::fs::write(dir.path().join("ca.pem"), &authority.pem).expect("a file");
        let trusted = reqwest::Certificate::from_pem(authority.pem.as_bytes()).expect("a certificate");
        // A connection that is idle while the server is frozen ends when it goes on.
        let web = reqwest::Client::builder()
            .pool_max_idle_per_host(0)
            .no_proxy()
            .timeout(PATIENCE)
            .tls_built_in_root_certs(false)
            .add_root_certificate(trusted);
        let server = Server::start(&options);
        let proxy = match through {
            Some(program) => Some(ReverseProxy::start(program, Traffic::Grpc, &server.grpc)?),
            None => None,
        };
        Some(Self {
            server: Some(server),
            options,
            proxy,
            security,
            web: web.build().expect("an HTTP client"),
            lead_id: fresh_id(),
            written: Vec::new(),
            dir,
        })
    }

    fn server(&self) -> &Server {
        self.server.as_ref().expect("a server")
    }

    /// What clients are to call.
    pub(super) fn url(&self) -> String {
        let address = self.proxy.as_ref().map_or(&self.server().grpc, |proxy| &proxy.address);
        format!("{}://{address}", if self.security.has_tls() { "https" } else { "http" })
    }

    /// Tells a client what it has to know.
    pub(super) fn let_in(&self, mut command: Command) -> Command {
        if self.security.has_token() {
            command.env("LEADFOLD_TOKEN", ALL);
        }
        if self.security.has_tls() {
            command.env("LEADFOLD_CA_FILE", self.dir.path().join("ca.pem"));
        }
        command
    }

    pub(super) async fn write(&mut self, count: usize) {
        for _ in 0..count {
            let event = message(&self.lead_id, &format!("a{}", self.written.len()), "2025-11-01T00:00:00Z");
            let scheme = if self.security.has_tls() { "https" } else { "http" };
            let request = self.web.post(format!("{scheme}://{}{WEBHOOK}", self.server().http)).header("content-type", "application/json");
            let answer = request.body(event.to_string()).send().await.expect("an answer").text().await.expect("its body");
            let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
            assert_eq!(answer["status"], "applied", "{answer}");
            self.written.push(answer["version"].as_str().and_then(|version| version.parse().ok()).expect("a version"));
        }
    }

    pub(super) async fn suffer(&mut self, outage: Outage) {
        let (politely, away) = match outage {
            Outage::Restart => (true, Duration::ZERO),
            Outage::Kill => (false, Duration::ZERO),
            Outage::EndAndWait => (true, AWAY),
            Outage::KillAndWait => (false, AWAY),
            Outage::Freeze => return self.freeze(AWAY).await,
            Outage::FreezeForLong => return self.freeze(LONG).await,
        };
        let mut server = self.server.take().expect("a server");
        if politely {
            assert!(server.terminate().status.success());
        }
        drop(server);
        sleep(away).await;
        self.server = Some(Server::start(&self.options));
    }

    async fn freeze(&self, time: Duration) {
        self.server().signal("STOP");
        sleep(time).await;
        self.server().signal("CONT");
    }
}
