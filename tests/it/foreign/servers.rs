//! Servers in such states that, together, they answer with every status.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use leadfold::api::lead_service_client::LeadServiceClient;
use leadfold::api::{GetLeadRequest, WatchLeadRequest};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic_types::StatusExt as _;

use crate::support::events::{SAMPLE_TIME, message};
use crate::support::redis::RedisServer;
use crate::support::server::{Options, Server};
use crate::support::tokens::{ALL, ONE, OTHER, WORKSPACE_ONE, WORKSPACE_OTHER, client, entry, usual, write};
use crate::support::{PATIENCE, eventually};

/// Sees every workspace, and may not delete.
const READER: &str = "token-canary-of-a-reader-of-all-20cd";
/// Whose pages may call.
pub const ORIGIN: &str = "https://app.example.com";
/// How much longer than usual a slow store takes to answer.
const SLOWNESS: Duration = Duration::from_millis(600);

/// What a server is like.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// It serves everybody, and has leads and a dead letter.
    #[default]
    Open,
    /// It asks for tokens, and has no watch left.
    Guarded,
    /// What its store holds of one lead makes no sense.
    Corrupt,
    /// It keeps no dead letters.
    NoLetters,
    /// Its Redis has gone.
    WithoutStore,
    /// Its Redis takes long.
    Slow,
    /// Its connections do not become old.
    Aged,
    /// As many calls as it takes are under way.
    Full,
    /// It is told to end when it has a watch.
    Draining,
    /// The token of a watch is taken away.
    Revoked,
    /// The token of a watch gets other rights.
    Changed,
}

/// A token by the name that the table has for it; or else the token itself.
pub fn token(name: &str) -> &str {
    match name {
        "all" => ALL,
        "one" => ONE,
        "other" => OTHER,
        "reader" => READER,
        token => token,
    }
}

/// Servers that all clients share.
pub struct Servers {
    pub open: Server,
    guarded: Server,
    corrupt: Server,
    no_letters: Server,
    without_store: Server,
    slow: Server,
    aged: Server,
    _last_watch: tonic::Streaming<leadfold::api::WatchLeadResponse>,
    _redis: [RedisServer; 2],
    _dir: TempDir,
}

impl Servers {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let tokens = write(dir.path(), "tokens.toml", &[usual(), entry(READER, &["*"], false)].concat());
        let tokens = tokens.to_str().expect("a path");
        let guarded = Server::start(&Options::default().env("LEADFOLD_TOKENS_FILE", tokens).env("LEADFOLD_MAX_WATCHES", "1"));
        guarded.apply(&message("known", "a1", SAMPLE_TIME)).await;
        let last_watch = client(&guarded, ALL).watch_lead(WatchLeadRequest { lead_id: "l".into(), ..Default::default() }).await;
        let last_watch = last_watch.expect("the only watch").into_inner();

        let open = Server::start(&Options::default().env("LEADFOLD_CORS_ORIGIN", ORIGIN));
        open.apply(&message("known", "a1", SAMPLE_TIME)).await;
        let items: Vec<Value> =
            (0..100).map(|item| json!({"checklistItemId": format!("item {item}"), "value": "v".repeat(4000), "status": "TODO"})).collect();
        for number in 0..11 {
            let large = json!({"leadId": format!("large-{number}"), "checklistItems": items});
            open.apply(&json!({"event": "lead.updated", "data": large})).await;
        }
        assert_eq!(open.post("{}").await.status, 400, "a dead letter");

        let mut gone = RedisServer::start();
        let without_store = Server::start(&Options::on(&gone));
        gone.kill();
        let redis = RedisServer::start();
        let corrupt = Server::start(&Options::on(&redis));
        corrupt.apply(&message("corrupt", "a1", SAMPLE_TIME)).await;
        let keys: Vec<String> = redis::cmd("KEYS").arg("*}:lead:corrupt").query(&mut redis.connection()).expect("KEYS");
        let () = redis::cmd("SET").arg(&keys[0]).arg("no lead").query(&mut redis.connection()).expect("SET");
        let (port, is_slow) = delayed(redis.port(), SLOWNESS);
        let slow = Server::start(&Options::at(&redis.url_on(port)));
        is_slow.store(true, Ordering::Relaxed);
        Self {
            open,
            guarded,
            corrupt,
            no_letters: Server::start(&Options::default().env("LEADFOLD_DEAD_LETTER_MAX", "0")),
            without_store,
            slow,
            aged: Server::start(&Options::default().env("LEADFOLD_MAX_CONNECTION_AGE_SECONDS", "1")),
            _last_watch: last_watch,
            _redis: [gone, redis],
            _dir: dir,
        }
    }

    /// Where each listens for gRPC.
    pub fn addresses(&self) -> BTreeMap<State, String> {
        let Self { open, guarded, corrupt, no_letters, without_store, slow, aged, .. } = self;
        let all = [
            (State::Open, open),
            (State::Guarded, guarded),
            (State::Corrupt, corrupt),
            (State::NoLetters, no_letters),
            (State::WithoutStore, without_store),
            (State::Slow, slow),
            (State::Aged, aged),
        ];
        all.into_iter().map(|(state, server)| (state, server.grpc.clone())).collect()
    }
}

impl Server {
    /// Whether its watches end in time.
    pub async fn eventually_has_no_watches(&self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while self.metric("leadfold_watch_streams").await != 0.0 {
            if Instant::now() > deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        true
    }

    async fn eventually_has_a_watch(&self) {
        while self.metric("leadfold_watch_streams").await == 0.0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Servers that serve one client only, because something happens to them while they do.
pub struct OwnServers {
    /// Takes one call at a time, and its store is slow. Calls compete for that place all the time: what it is asked besides
    /// is let in once in a thousand times, in the instant between two of them.
    full: Server,
    draining: Server,
    revoked: Server,
    changed: Server,
    under_way: [JoinHandle<()>; CALLS],
    _redis: RedisServer,
    dir: TempDir,
}

/// Calls that compete for one place.
const CALLS: usize = 4;

impl Drop for OwnServers {
    fn drop(&mut self) {
        self.under_way.iter().for_each(JoinHandle::abort);
    }
}

impl OwnServers {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let redis = RedisServer::start();
        let (port, is_slow) = delayed(redis.port(), SLOWNESS);
        let full = Server::start(&Options::at(&redis.url_on(port)).env("LEADFOLD_MAX_REQUESTS_IN_FLIGHT", "1"));
        is_slow.store(true, Ordering::Relaxed);
        let under_way = calls_all_the_time(&full).await;
        let with_tokens = |name: &str| {
            let path = write(dir.path(), name, &usual());
            Server::start(&Options::default().env("LEADFOLD_TOKENS_FILE", path.to_str().expect("a path")))
        };
        let draining = Server::start(&Options::default().env("LEADFOLD_DRAIN_DELAY_MS", "0"));
        let (revoked, changed) = (with_tokens("revoked.toml"), with_tokens("changed.toml"));
        Self { full, draining, revoked, changed, under_way, _redis: redis, dir }
    }

    /// Where each listens for gRPC.
    pub fn addresses(&self) -> BTreeMap<State, String> {
        let Self { full, draining, revoked, changed, .. } = self;
        let all = [(State::Full, full), (State::Draining, draining), (State::Revoked, revoked), (State::Changed, changed)];
        all.into_iter().map(|(state, server)| (state, server.grpc.clone())).collect()
    }

    /// Does to each, as soon as it has a watch, what ends the watch.
    pub fn end_watches(self) -> JoinHandle<()> {
        tokio::spawn(async move {
            // All of it lives as long as this task, not only what is named below.
            let own = self;
            let drain = async {
                own.draining.eventually_has_a_watch().await;
                own.draining.signal_termination();
            };
            let revoke = async {
                own.revoked.eventually_has_a_watch().await;
                write(own.dir.path(), "revoked.toml", &[entry(ALL, &["*"], true), entry(OTHER, &[WORKSPACE_OTHER], true)].concat());
            };
            let change = async {
                own.changed.eventually_has_a_watch().await;
                write(own.dir.path(), "changed.toml", &[entry(ALL, &["*"], true), entry(ONE, &[WORKSPACE_ONE], true)].concat());
            };
            tokio::join!(drain, revoke, change);
            std::future::pending::<()>().await;
            drop(own);
        })
    }
}

/// Makes calls that take the only place of a server.
async fn calls_all_the_time(server: &Server) -> [JoinHandle<()>; CALLS] {
    let get = |client: &LeadServiceClient<Channel>| {
        let mut client = client.clone();
        async move { client.get_lead(GetLeadRequest { lead_id: "l".to_owned() }).await }
    };
    let calls = std::array::from_fn(|_| {
        let client = server.client();
        tokio::spawn(async move {
            loop {
                let _ = get(&client).await;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
    });
    let client = server.client();
    eventually("no other call is taken", async || {
        let reason = get(&client).await.err()?.get_details_error_info()?.reason;
        (reason == "OVERLOADED").then_some(())
    })
    .await;
    calls
}

/// Passes on what comes to a port of its own; the answers come late as soon as that is switched on.
fn delayed(target: u16, delay: Duration) -> (u16, Arc<AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its address").port();
    let is_slow = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&is_slow);
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else { continue };
            let ends = (client.try_clone().expect("a socket"), server.try_clone().expect("a socket"));
            pass(client, server, Arc::new(AtomicBool::new(false)), Duration::ZERO);
            pass(ends.1, ends.0, Arc::clone(&switch), delay);
        }
    });
    (port, is_slow)
}

fn pass(mut from: TcpStream, mut to: TcpStream, is_slow: Arc<AtomicBool>, delay: Duration) {
    let (sender, receiver) = mpsc::channel::<(Instant, Vec<u8>)>();
    std::thread::spawn(move || {
        for (due, bytes) in receiver {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(std::net::Shutdown::Both);
    });
    std::thread::spawn(move || {
        let mut bytes = [0; 65536];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            let delay = if is_slow.load(Ordering::Relaxed) { delay } else { Duration::ZERO };
            if sender.send((Instant::now() + delay, bytes[..count].to_vec())).is_err() {
                break;
            }
        }
    });
}
