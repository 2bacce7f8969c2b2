//! The programs in `examples/`: each tells every change once and in order, although the server is restarted, and
//! killed, while it watches.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;

use crate::grpcurl::{Killed, clients, messages};
use crate::support::events::message;
use crate::support::server::{Options, Server, lines};
use crate::support::{PATIENCE, fresh_id};

fn example(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(path)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_python_example_outlives_the_server() {
    let Some(clients) = clients() else { return };
    let mut command = Command::new(clients.join("bin/python"));
    command.arg(example("python/watch.py"));
    outlives_the_server(command, "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_typescript_example_outlives_the_server() {
    let folder = example("typescript");
    if !folder.join("node_modules/tsx").exists() {
        eprintln!("SKIPPED: examples/typescript has no node_modules: `npm install` there prepares it, as .ci/run does");
        return;
    }
    // Not by npx: that would start the program as a child, which would outlive it when killed.
    let mut command = Command::new("node");
    command.current_dir(folder).args(["--import", "tsx", "watch.ts"]);
    outlives_the_server(command, "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rust_example_outlives_the_server() {
    let program = Path::new(env!("CARGO_BIN_EXE_leadfold")).with_file_name("examples").join("watch");
    if !program.exists() {
        eprintln!("SKIPPED: {} is not there: `cargo test` builds it, `cargo test --test it` does not", program.display());
        return;
    }
    outlives_the_server(Command::new(program), "http://").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_grpcurl_example_outlives_the_server() {
    let Some(clients) = clients() else { return };
    let mut command = Command::new(example("grpcurl/watch.sh"));
    command.env("GRPCURL", clients.join("grpcurl"));
    let restarts = Restarts::start();
    let mut client = restarts.client(command, "");
    let messages = messages(client.0.stdout.take().expect("its stdout"));
    let first = messages.recv_timeout(PATIENCE).expect("a message in time");
    assert_eq!(first["snapshot"]["reason"], "SNAPSHOT_REASON_INITIAL", "{first}");
    let version = |change: &Value| change["version"].as_str().and_then(|version| version.parse().ok()).expect("a version");
    restarts
        .run(move || {
            let message = messages.recv().ok()?;
            assert!(message["snapshot"].is_null(), "a snapshot, although no version was lost: {message}");
            // A heartbeat has no changes.
            Some(message["update"]["changes"].as_array().into_iter().flatten().map(version).collect())
        })
        .await;
}

/// Runs a program that prints `VERSION WHAT` in a line for each change; a snapshot is a line too.
async fn outlives_the_server(command: Command, scheme: &str) {
    let restarts = Restarts::start();
    let mut client = restarts.client(command, scheme);
    let lines = lines(client.0.stdout.take().expect("its stdout"));
    let first = lines.recv_timeout(PATIENCE).expect("a line in time");
    assert!(first.starts_with("0 "), "the lead is not known yet: {first}");
    restarts
        .run(move || {
            let line = lines.recv().ok()?;
            assert!(!line.contains("messages"), "a snapshot, although no version was lost: {line}");
            let version = line.split(' ').next().and_then(|version| version.parse().ok());
            Some(vec![version.unwrap_or_else(|| panic!("no version: {line}"))])
        })
        .await;
}

/// A server that comes back at the same address with what it had stored.
struct Restarts {
    server: Option<Server>,
    options: Options,
    lead_id: String,
    written: Vec<u64>,
    _dir: tempfile::TempDir,
}

impl Restarts {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let options = Options::default().data_dir(dir.path()).env("LEADFOLD_DRAIN_DELAY_MS", "0");
        let server = Server::start(&options);
        let options = options.grpc(&server.grpc);
        Self { server: Some(server), options, lead_id: fresh_id(), written: Vec::new(), _dir: dir }
    }

    fn client(&self, mut command: Command, scheme: &str) -> Killed {
        let server = self.server.as_ref().expect("a server");
        command.arg(format!("{scheme}{}", server.grpc)).arg(&self.lead_id).stdin(Stdio::null()).stdout(Stdio::piped());
        Killed(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    async fn write(&mut self, count: usize) {
        for _ in 0..count {
            let id = format!("a{}", self.written.len());
            let server = self.server.as_ref().expect("a server");
            self.written.push(server.apply(&message(&self.lead_id, &id, "2025-11-01T00:00:00Z")).await);
        }
    }

    /// Writes, restarts politely, writes what the client misses, kills, and so on; then all versions must have been
    /// told. `told` waits for the next ones.
    async fn run(mut self, mut told: impl FnMut() -> Option<Vec<u64>> + Send + 'static) {
        // The client is there when it has told the first one.
        self.write(1).await;
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            while let Some(versions) = told() {
                if versions.into_iter().any(|version| sender.send(version).is_err()) {
                    return;
                }
            }
        });
        let mut seen = Vec::new();
        let mut see_all = |written: &[u64]| {
            while seen.len() < written.len() {
                seen.push(receiver.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("told {seen:?} of {written:?}")));
            }
            assert_eq!(seen, written, "each once and in order");
        };
        see_all(&self.written);
        for polite in [true, false, true] {
            self.write(2).await;
            let mut server = self.server.take().expect("a server");
            if polite {
                assert!(server.terminate().status.success());
            }
            drop(server);
            self.server = Some(Server::start(&self.options));
            self.write(2).await;
            see_all(&self.written);
        }
        self.write(1).await;
        see_all(&self.written);
        assert!(receiver.recv_timeout(Duration::from_millis(300)).is_err(), "told something twice");
    }
}
