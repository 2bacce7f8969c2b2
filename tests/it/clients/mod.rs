//! Clients that watch a lead for ever: the programs in `examples/`, and `leadfold watch`. Each tells every change once and in
//! order, although the server is restarted, killed and frozen while it watches: directly, through the proxies that people put in
//! front of it, encrypted, and with a token.

mod pages;
mod site;

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;

use serde_json::Value;

use self::site::{Outage, Security, Site};
use crate::grpcurl::{Killed, clients, messages};
use crate::support::proxies::Program;
use crate::support::server::lines;
use crate::support::{PATIENCE, eventually};

/// A program that watches a lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    Python,
    TypeScript,
    Rust,
    Grpcurl,
    Leadfold,
}

fn example(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(path)
}

impl Client {
    /// What starts it, without its arguments; `None`: what it needs is not here.
    fn command(self) -> Option<Command> {
        Some(match self {
            Self::Python => {
                let mut command = Command::new(clients()?.join("bin/python"));
                command.arg(example("python/watch.py"));
                command
            }
            Self::TypeScript => {
                let folder = example("typescript");
                if !folder.join("node_modules/tsx").exists() {
                    eprintln!("SKIPPED: examples/typescript has no node_modules: `npm install` there prepares it, as .ci/run does");
                    return None;
                }
                // Not by npx: that would start the program as a child, which would outlive it when killed.
                let mut command = Command::new("node");
                command.current_dir(folder).args(["--import", "tsx", "watch.ts"]);
                command
            }
            Self::Rust => {
                let program = Path::new(env!("CARGO_BIN_EXE_leadfold")).with_file_name("examples").join("watch");
                if !program.exists() {
                    eprintln!("SKIPPED: {} is not there: `cargo test` builds it, `cargo test --test it` does not", program.display());
                    return None;
                }
                Command::new(program)
            }
            Self::Grpcurl => {
                let mut command = Command::new(example("grpcurl/watch.sh"));
                command.env("GRPCURL", clients()?.join("grpcurl"));
                command
            }
            Self::Leadfold => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_leadfold"));
                command.args(["watch", "--json", "--server"]);
                command
            }
        })
    }

    /// Whether it prints messages as JSON; the others print a line for each change, which begins with the version.
    fn prints_messages(self) -> bool {
        matches!(self, Self::Grpcurl | Self::Leadfold)
    }
}

/// What a client has told.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    /// The present state, of this version.
    Snapshot(u64),
    /// A change, of this version.
    Change(u64),
}

/// A client that runs.
struct Running {
    process: Killed,
    told: Receiver<Told>,
    stderr: PathBuf,
    seen: Vec<u64>,
    _reader: JoinHandle<()>,
}

impl Running {
    fn start(client: Client, mut command: Command, url: &str, lead_id: &str, dir: &Path) -> Self {
        let stderr = dir.join("stderr");
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LEADFOLD_")) {
            if !command.get_envs().any(|(set, _)| set == name) {
                command.env_remove(name);
            }
        }
        command.arg(url).arg(lead_id).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&stderr).expect("a file"));
        let mut process = Killed(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")));
        let stdout = process.0.stdout.take().expect("its stdout");
        let (sender, told) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            if client.prints_messages() {
                messages(stdout).into_iter().flat_map(|message| of_message(&message)).all(|told| sender.send(told).is_ok());
            } else {
                lines(stdout).into_iter().map(|line| of_line(&line)).all(|told| sender.send(told).is_ok());
            }
        });
        Self { process, told, stderr, seen: Vec::new(), _reader: reader }
    }

    fn stderr(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    fn next(&mut self) -> Told {
        self.told.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            panic!("nothing more after {:?}; it is {:?}, and said:\n{}", self.seen, self.process.0.try_wait(), self.stderr())
        })
    }

    /// Waits until it has told all of these, each once and in order, and nothing else.
    fn see_all(&mut self, written: &[u64]) {
        while self.seen.len() < written.len() {
            match self.next() {
                Told::Change(version) => self.seen.push(version),
                told => panic!("{told:?}, although no version was lost: {:?} of {written:?}", self.seen),
            }
        }
        assert_eq!(self.seen, written, "each once and in order");
    }
}

fn version(of: &Value) -> u64 {
    of["version"].as_str().and_then(|version| version.parse().ok()).unwrap_or_default()
}

fn of_message(message: &Value) -> VecDeque<Told> {
    let snapshot = message.get("snapshot").map(|snapshot| Told::Snapshot(version(&snapshot["lead"])));
    // A heartbeat has no changes.
    let changes = message["update"]["changes"].as_array().into_iter().flatten().map(|change| Told::Change(version(change)));
    snapshot.into_iter().chain(changes).collect()
}

fn of_line(line: &str) -> Told {
    let version = line.split(' ').next().and_then(|version| version.parse().ok()).unwrap_or_else(|| panic!("no version: {line}"));
    if line.contains(" messages, ") { Told::Snapshot(version) } else { Told::Change(version) }
}

/// Runs a client while the server goes away in several ways.
async fn outlives(client: Client, through: Option<Program>, security: Security, outages: &[Outage]) {
    let Some(command) = client.command() else { return };
    let Some(mut site) = Site::start(through, security) else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let mut running = Running::start(client, site.let_in(command), &site.url(), &site.lead_id, dir.path());
    assert_eq!(running.next(), Told::Snapshot(0), "the lead is not known yet");
    site.write(1).await;
    running.see_all(&site.written);
    for outage in outages {
        site.write(2).await;
        site.suffer(*outage).await;
        site.write(2).await;
        running.see_all(&site.written);
    }
    site.write(1).await;
    running.see_all(&site.written);
    let more = running.told.recv_timeout(std::time::Duration::from_millis(300));
    assert!(more.is_err(), "told something twice: {more:?}");
}

/// A token that the server does not know ends a client, whatever is between the two.
async fn ends_at_the_servers_word(client: Client, through: Option<Program>) {
    let Some(mut command) = client.command() else { return };
    let Some(site) = Site::start(through, Security::Token) else { return };
    let dir = tempfile::tempdir().expect("a directory");
    command.env("LEADFOLD_TOKEN", "nobody-has-ever-heard-of-this-token");
    let mut running = Running::start(client, command, &site.url(), &site.lead_id, dir.path());
    let status = eventually("it ends", async || running.process.0.try_wait().expect("its state")).await;
    assert!(!status.success() && running.stderr().to_lowercase().contains("token"), "{status:?}: {}", running.stderr());
}

/// By every way, over every outage: minutes, so `LEADFOLD_TEST_CLIENT_MATRIX=1` asks for it.
async fn outlives_everything(client: Client) {
    if std::env::var_os("LEADFOLD_TEST_CLIENT_MATRIX").is_none() {
        return eprintln!("SKIPPED: LEADFOLD_TEST_CLIENT_MATRIX=1 asks for it");
    }
    let outages = [Outage::Restart, Outage::Kill, Outage::KillAndWait, Outage::EndAndWait, Outage::Freeze, Outage::FreezeForLong];
    let direct = [Security::Open, Security::Token, Security::Tls, Security::TokenAndTls].map(|security| (None, security));
    let proxied = Program::ALL.map(Some).into_iter().flat_map(|proxy| [(proxy, Security::Open), (proxy, Security::Token)]);
    for (through, security) in direct.into_iter().chain(proxied) {
        println!("{client:?} through {through:?}, {security:?}");
        outlives(client, through, security, &outages).await;
    }
    for through in [None, Some(Program::Nginx), Some(Program::Haproxy)] {
        ends_at_the_servers_word(client, through).await;
    }
}

macro_rules! for_each_client {
    ($($name:ident: $client:ident behind $proxy:ident),+ $(,)?) => {
        $(mod $name {
            use super::*;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn outlives_the_server() {
                outlives(Client::$client, None, Security::TokenAndTls, &[Outage::Restart, Outage::Kill, Outage::Restart]).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn outlives_a_server_behind_a_proxy() {
                let outages = [Outage::KillAndWait, Outage::EndAndWait, Outage::Freeze];
                outlives(Client::$client, Some(Program::$proxy), Security::Token, &outages).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn ends_at_the_servers_word_and_not_at_a_proxys() {
                ends_at_the_servers_word(Client::$client, Some(Program::$proxy)).await;
                pages::are_not_the_servers_word(Client::$client).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn outlives_every_outage_by_every_way() {
                outlives_everything(Client::$client).await;
            }
        })+
    };
}

for_each_client! {
    the_python_example: Python behind Nginx,
    the_typescript_example: TypeScript behind Haproxy,
    the_rust_example: Rust behind Nginx,
    the_grpcurl_example: Grpcurl behind Haproxy,
    the_watch_command: Leadfold behind Nginx,
}
