//! Webhooks through nginx, haproxy and Envoy: every answer arrives as the server gave it.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::grpcurl::clients;
use crate::support::envoy::Envoy;
use crate::support::events::{SAMPLE_TIME, message};
use crate::support::fresh_id;
use crate::support::proxies::{Program, ReverseProxy, Traffic};
use crate::support::redis::RedisServer;
use crate::support::server::{Options, Server, WEBHOOK};
use crate::support::tokens::write;

/// Refusals in a row: what one leaves behind on a connection that a proxy keeps would harm the next.
const TIMES: usize = 8;

/// What curl received.
#[derive(Debug)]
struct Answer {
    status: u16,
    content_type: String,
    retry_after: Option<u64>,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Posts with curl, over HTTP/1.1 or HTTP/2, each time on a connection of its own.
fn post(address: &str, http2: bool, path: &str, content_type: &str, body: &[u8]) -> Answer {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (request, answer) = (dir.path().join("request"), dir.path().join("answer"));
    std::fs::write(&request, body).expect("a file");
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "30"]);
    command.arg(if http2 { "--http2-prior-knowledge" } else { "--http1.1" });
    command.args(["-H", &format!("content-type: {content_type}"), "-w", "%{http_code}\n%header{content-type}\n%header{retry-after}\n"]);
    command.arg("--data-binary").arg(format!("@{}", request.display())).arg("-o").arg(&answer);
    let output = command.arg(format!("http://{address}{path}")).output().expect("curl can be started");
    assert!(output.status.success(), "{address}{path}: {}", String::from_utf8_lossy(&output.stderr));
    let told = String::from_utf8(output.stdout).expect("text");
    let mut lines = told.lines();
    let mut next = || lines.next().expect("a line").to_owned();
    let (status, content_type, retry_after) = (next().parse().expect("a status"), next(), next().parse().ok());
    Answer { status, content_type, retry_after, body: std::fs::read_to_string(answer).unwrap_or_default() }
}

/// Servers that, together, give every answer.
struct Servers {
    open: Server,
    guarded: Server,
    limited: Server,
    without_store: Server,
    _redis: RedisServer,
    _dir: tempfile::TempDir,
}

impl Servers {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let secret = write(dir.path(), "secret", "a-secret-of-the-webhooks-of-these-tests");
        let mut redis = RedisServer::start();
        let without_store = Server::start(&Options::on(&redis).env("LEADFOLD_SPOOL_MAX_BYTES", "0"));
        redis.kill();
        Self {
            open: Server::start(&Options::default()),
            guarded: Server::start(&Options::default().env("LEADFOLD_WEBHOOK_SECRET_FILE", secret.to_str().expect("a path"))),
            limited: Server::start(&Options::default().env("LEADFOLD_MAX_WEBHOOKS_PER_SECOND", "1")),
            without_store,
            _redis: redis,
            _dir: dir,
        }
    }

    fn addresses(&self) -> [&str; 4] {
        [&self.open.http, &self.guarded.http, &self.limited.http, &self.without_store.http]
    }
}

/// Looks at every answer by way of these addresses of the servers.
fn every_answer_arrives(servers: &Servers, addresses: [&str; 4], http2: bool, front: &str) {
    let [open, guarded, limited, without_store] = addresses;
    let is_json = |answer: &Answer| answer.content_type.starts_with("application/json");
    let json = "application/json";
    let good = || {
        let event = message(&fresh_id(), "a1", SAMPLE_TIME).to_string();
        for expected in ["applied", "duplicate"] {
            let answer = post(open, http2, WEBHOOK, json, event.as_bytes());
            assert!(answer.status == 200 && is_json(&answer) && answer.json()["status"] == expected, "{front}: {answer:?}");
        }
    };
    good();
    let event = message(&fresh_id(), "a1", SAMPLE_TIME).to_string();
    // Over the limit of 1 MiB, and in time to be refused before it has come.
    let large = "x".repeat(3 << 20);
    type Refused<'a> = (&'a str, &'a str, &'a str, &'a str, &'a [u8], u16);
    let same: [Refused; 8] = [
        (open, &servers.open.http, WEBHOOK, json, b"{}", 400),
        (open, &servers.open.http, WEBHOOK, json, b"no JSON", 400),
        (open, &servers.open.http, "/no/such/path", json, event.as_bytes(), 404),
        (open, &servers.open.http, WEBHOOK, "text/plain", event.as_bytes(), 415),
        (open, &servers.open.http, WEBHOOK, json, large.as_bytes(), 413),
        (open, &servers.open.http, "/no/such/path", json, large.as_bytes(), 404),
        (guarded, &servers.guarded.http, WEBHOOK, json, event.as_bytes(), 401),
        (guarded, &servers.guarded.http, WEBHOOK, json, large.as_bytes(), 401),
    ];
    for (address, server, path, content_type, body, status) in same {
        let direct = post(server, false, path, content_type, body);
        assert!(direct.status == status && is_json(&direct) && direct.json()["error"].is_string(), "direct: {direct:?}");
        for _ in 0..TIMES {
            let answer = post(address, http2, path, content_type, body);
            let what = format!("{front} {path} {content_type} {} bytes: {answer:?} instead of {direct:?}", body.len());
            assert!(answer.status == status && is_json(&answer) && answer.body == direct.body, "{what}");
        }
        good();
    }
    let mut statuses = Vec::new();
    while statuses.iter().filter(|status| **status == 429).count() < 2 {
        let answer = post(limited, http2, WEBHOOK, json, message(&fresh_id(), "a1", SAMPLE_TIME).to_string().as_bytes());
        let is_right = match answer.status {
            200 => answer.json()["status"] == "applied",
            429 => answer.json()["error"].is_string() && answer.retry_after.is_some(),
            _ => false,
        };
        assert!(is_right && is_json(&answer) && statuses.len() < 200, "{front}: {answer:?}, after {statuses:?}");
        statuses.push(answer.status);
    }
    let answer = post(without_store, http2, WEBHOOK, json, event.as_bytes());
    let is_right = answer.status == 503 && is_json(&answer) && answer.json()["error"].is_string() && answer.retry_after.is_some();
    assert!(is_right, "{front}: {answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_to_a_webhook_arrives_through_nginx_and_haproxy() {
    let through = |program| {
        let servers = Servers::start();
        let start = |server: &str| ReverseProxy::start(program, Traffic::Http1, server);
        let [Some(open), Some(guarded), Some(limited), Some(without_store)] = servers.addresses().map(start) else { return };
        let addresses = [&*open.address, &*guarded.address, &*limited.address, &*without_store.address];
        every_answer_arrives(&servers, addresses, false, &format!("{program:?}"));
    };
    tokio::task::spawn_blocking(move || Program::ALL.into_iter().for_each(through)).await.expect("every answer");
}

/// HTTP/1.1 on both sides, and HTTP/2 on both sides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_to_a_webhook_arrives_through_envoy() {
    let Some(clients) = clients() else { return };
    tokio::task::spawn_blocking(move || through_envoy(&clients)).await.expect("every answer");
}

fn through_envoy(clients: &Path) {
    for traffic in [Traffic::Http1, Traffic::Grpc] {
        let servers = Servers::start();
        let routes = servers.addresses().map(|server| (traffic, server));
        let Some(envoy) = Envoy::start(clients, &routes, None) else { return };
        let addresses = std::array::from_fn(|number| envoy.addresses[number].as_str());
        every_answer_arrives(&servers, addresses, traffic == Traffic::Grpc, &format!("Envoy with {traffic:?}"));
    }
}
