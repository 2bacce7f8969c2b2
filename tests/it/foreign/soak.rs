//! Watchers of other people behind the proxies of other people, while the server is restarted and killed: each sees the
//! final version of each lead.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::fronts::{self, Front, Opened};
use super::servers::State;
use super::table::Api;
use crate::grpcurl;
use crate::support::events::{WORKSPACE, message};
use crate::support::fresh_id;
use crate::support::proxies::Traffic;
use crate::support::server::{Options, Server};

const RPC: &str = "leadfold.v1.LeadService/WatchLeads";
const LEADS: usize = 10;
/// Between two restarts.
const UPTIME: Duration = Duration::from_secs(4);
/// How long the last watcher may take to come back and see everything.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Watcher {
    Grpcio,
    GrpcJs,
    Grpcurl,
    ConnectGrpc,
    ConnectWeb,
}

impl Watcher {
    const ALL: [Self; 5] = [Self::Grpcio, Self::GrpcJs, Self::Grpcurl, Self::ConnectGrpc, Self::ConnectWeb];

    fn traffic(self) -> Traffic {
        if self == Self::ConnectWeb { Traffic::Http1 } else { Traffic::Grpc }
    }

    fn command(self, dir: &Path) -> Command {
        let script = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name);
        let (program, script, more) = match self {
            Self::Grpcio => (dir.join("bin/python"), script("watch_grpcio.py"), None),
            Self::Grpcurl => (dir.join("bin/python"), script("watch_grpcurl.py"), Some(dir.join("grpcurl"))),
            Self::GrpcJs => ("node".into(), script("watch_grpc_js.mjs"), Some(dir.into())),
            Self::ConnectGrpc | Self::ConnectWeb => ("node".into(), script("watch_connect.mjs"), Some(dir.into())),
        };
        let mut command = Command::new(program);
        command.arg(script).args(more);
        match self {
            Self::ConnectGrpc => command.arg("grpc"),
            Self::ConnectWeb => command.arg("grpc-web"),
            _ => &mut command,
        };
        command
    }
}

/// What one watcher has seen.
#[derive(Default)]
struct Seen {
    versions: HashMap<String, u64>,
    /// How often a stream ended with each code.
    ends: BTreeMap<i64, usize>,
}

/// A watcher that runs; dropped, it ends, and what it has started too.
struct Running {
    name: String,
    process: Child,
    seen: Arc<Mutex<Seen>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-s", "TERM", &self.process.id().to_string()]).status();
        let _ = self.process.wait();
    }
}

fn start(watcher: Watcher, front: Front, address: &str, dir: &Path, protoset: &Path) -> Running {
    let request = json!({"workspaceId": WORKSPACE, "heartbeatInterval": "2s"});
    let bytes = BASE64.encode(Api::get().request(RPC, &request));
    let call = json!({"address": address, "rpc": RPC, "json": request, "bytes": bytes, "protoset": protoset});
    let mut command = watcher.command(dir);
    command.arg(call.to_string()).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut process = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stdout = process.stdout.take().expect("its stdout");
    let seen = Arc::new(Mutex::new(Seen::default()));
    let told = Arc::clone(&seen);
    std::thread::spawn(move || {
        let api = Api::get();
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let line: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
            let mut seen = told.lock().expect("what was seen");
            if let Some(code) = line["ended"].as_i64() {
                *seen.ends.entry(code).or_default() += 1;
                continue;
            }
            let message = match line["message"].as_str() {
                Some(bytes) => api.message(RPC, &BASE64.decode(bytes).expect("base64")),
                None => line["message"].clone(),
            };
            for lead in [&message["snapshot"]["lead"], &message["update"]["lead"]] {
                if let (Some(id), Some(version)) = (lead["leadId"].as_str(), lead["version"].as_str()) {
                    seen.versions.insert(id.to_owned(), version.parse().expect("a version"));
                }
            }
        }
    });
    Running { name: format!("{watcher:?} through {front:?}"), process, seen }
}

/// `LEADFOLD_TEST_SOAK_SECONDS`, with four times as many watchers: 20.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_behind_proxies_see_the_final_version_of_each_lead() {
    let Some(dir) = grpcurl::clients() else { return };
    let asked = std::env::var("LEADFOLD_TEST_SOAK_SECONDS").ok().map(|seconds| seconds.parse().expect("seconds"));
    let (duration, watchers) = (Duration::from_secs(asked.unwrap_or(10)), if asked.is_some() { 20 } else { 5 });
    let data = tempfile::tempdir().expect("a temporary directory");
    let options = Options::default().data_dir(data.path()).env("LEADFOLD_DRAIN_DELAY_MS", "0");
    let mut server = Some(Server::start(&options));
    let (grpc, http) = server.as_ref().map(|server| (server.grpc.clone(), server.http.clone())).expect("a server");
    let options = options.grpc(&grpc).http(&http);

    let mut opened: Vec<(Front, Traffic, Opened)> = Vec::new();
    let protoset = Api::get().write(data.path());
    let mut running = Vec::new();
    let fronts = [Front::Nginx, Front::Haproxy, Front::Envoy];
    for (number, watcher) in Watcher::ALL.into_iter().cycle().take(watchers).enumerate() {
        let (front, traffic) = (fronts[number % 3], watcher.traffic());
        if !opened.iter().any(|(there, passes, _)| (*there, *passes) == (front, traffic)) {
            let Some(proxy) = fronts::open(front, traffic, [(State::Open, grpc.clone())].into(), &dir) else { return };
            opened.push((front, traffic, proxy));
        }
        let (_, _, proxy) = opened.iter().find(|(there, passes, _)| (*there, *passes) == (front, traffic)).expect("it is open");
        running.push(start(watcher, front, &proxy.addresses[&State::Open], &dir, &protoset));
    }

    let leads: Vec<_> = (0..LEADS).map(|_| fresh_id()).collect();
    let (mut events, mut restarts) = (0, 0);
    let mut last = HashMap::new();
    let end = Instant::now() + duration;
    while Instant::now() < end {
        let restart = Instant::now() + UPTIME;
        while Instant::now() < restart.min(end) {
            let lead = &leads[events % LEADS];
            let server = server.as_ref().expect("a server");
            let version = server.apply(&message(lead, &format!("a{events}"), "2025-11-01T00:00:00Z")).await;
            last.insert(lead.clone(), version);
            events += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut old = server.take().expect("a server");
        // Politely, and as a crash ends it.
        if restarts % 2 == 0 {
            assert!(old.terminate().status.success());
        }
        drop(old);
        server = Some(Server::start(&options));
        restarts += 1;
    }
    // One more each, for whoever missed the last one before a restart.
    for lead in &leads {
        let event = message(lead, &format!("the last of {lead}"), "2025-11-01T00:00:00Z");
        last.insert(lead.clone(), server.as_ref().expect("a server").apply(&event).await);
    }
    let lost = |running: &Running| {
        let seen = running.seen.lock().expect("what was seen");
        last.iter().filter(|(lead, version)| seen.versions.get(*lead) != Some(version)).count()
    };
    let deadline = Instant::now() + PATIENCE;
    while running.iter().any(|running| lost(running) > 0) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut failures = Vec::new();
    for running in &running {
        let ends = running.seen.lock().expect("what was seen").ends.clone();
        eprintln!("{}: streams ended by code {ends:?}, {} lost", running.name, lost(running));
        if lost(running) > 0 {
            failures.push(format!("{} has not seen the final version of {} leads", running.name, lost(running)));
        }
        // It must have come back, or nothing was tried.
        if ends.values().sum::<usize>() == 0 {
            failures.push(format!("{} has never been cut off", running.name));
        }
    }
    eprintln!("{watchers} watchers, {events} events, {restarts} restarts in {duration:?}");
    assert!(failures.is_empty(), "{failures:?}");
}
