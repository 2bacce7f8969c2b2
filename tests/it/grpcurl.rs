//! Clients of other people: grpcurl, Python with grpcio, and buf. `.ci/run` installs them into a directory and names it
//! in `LEADFOLD_TEST_CLIENTS`.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;

use serde_json::{Value, json};

use crate::support::events::{SAMPLE, SAMPLE_LEAD, SAMPLE_TIME, message};
use crate::support::server::Server;
use crate::support::{PATIENCE, Setup};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpcurl_lists_describes_reads_and_watches() {
    let Some(clients) = clients() else { return };
    let server = Setup::embedded();
    let version = server.post(SAMPLE).await.version();
    let grpcurl = |args: &[&str]| {
        let mut command = Command::new(clients.join("grpcurl"));
        command.args(["-plaintext", "-max-time", "30"]).args(args);
        command
    };

    let services = output(grpcurl(&[&server.grpc, "list"]));
    assert!(services.lines().any(|line| line == "leadfold.v1.LeadService"), "{services}");
    assert!(services.lines().any(|line| line == "grpc.health.v1.Health"), "{services}");
    let method = output(grpcurl(&[&server.grpc, "describe", "leadfold.v1.LeadService.WatchLead"]));
    assert!(method.contains("returns ( stream .leadfold.v1.WatchLeadResponse )"), "{method}");
    let message = output(grpcurl(&[&server.grpc, "describe", "leadfold.v1.Lead"]));
    assert!(message.contains("The sender's id of the lead"), "reflection tells the comments: {message}");
    let health = output(grpcurl(&["-d", "{}", &server.grpc, "grpc.health.v1.Health/Check"]));
    assert!(health.contains("SERVING"), "{health}");

    let request = json!({"lead_id": SAMPLE_LEAD}).to_string();
    let answer = output(grpcurl(&["-d", &request, &server.grpc, "leadfold.v1.LeadService/GetLead"]));
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    assert_eq!(answer["lead"]["latestActivity"]["completeTime"], SAMPLE_TIME);
    assert_eq!(answer["lead"]["version"], version.to_string());
    assert_eq!(answer["lead"]["documents"][0]["filename"], "docs.pdf");

    let watch = grpcurl(&["-d", &request, &server.grpc, "leadfold.v1.LeadService/WatchLead"]);
    see_a_tick(watch, &server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_lists_reads_and_watches() {
    let Some(clients) = clients() else { return };
    let server = Setup::embedded();
    server.post(SAMPLE).await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/grpcio_client.py");
    let python = |command: &str| {
        let mut python = Command::new(clients.join("bin/python"));
        python.args([script, command, &server.grpc, SAMPLE_LEAD]);
        python
    };
    let services: Vec<String> = serde_json::from_str(&output(python("list"))).expect("JSON");
    assert!(services.iter().any(|service| service == "leadfold.v1.LeadService"), "{services:?}");
    let answer: Value = serde_json::from_str(&output(python("get"))).expect("JSON");
    assert_eq!(answer["lead"]["latestActivity"]["completeTime"], SAMPLE_TIME);
    see_a_tick(python("watch"), &server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn buf_curl_learns_the_api_by_the_newer_reflection() {
    let Some(buf) = clients().map(|clients| clients.join("node_modules/.bin/buf")).filter(|buf| buf.exists()) else { return };
    let server = Setup::embedded();
    let version = server.post(SAMPLE).await.version();
    let mut command = Command::new(buf);
    command.args(["curl", "--protocol", "grpc", "--http2-prior-knowledge", "--reflect-protocol", "grpc-v1"]);
    command.args(["-d", &json!({"lead_id": SAMPLE_LEAD}).to_string()]);
    command.arg(format!("http://{}/leadfold.v1.LeadService/GetLead", server.grpc));
    let answer: Value = serde_json::from_str(&output(command)).expect("JSON");
    assert_eq!((&answer["lead"]["version"], &answer["lead"]["leadId"]), (&json!(version.to_string()), &json!(SAMPLE_LEAD)));
}

/// The directory with the clients, if there is one.
pub fn clients() -> Option<PathBuf> {
    let dir = std::env::var_os("LEADFOLD_TEST_CLIENTS").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    if dir.is_none() {
        eprintln!("SKIPPED: LEADFOLD_TEST_CLIENTS names no directory with grpcurl and grpcio; .ci/run prepares one");
    }
    dir
}

/// Runs a watch of the sample's lead, which prints each message as JSON: a snapshot, and a tick after an event.
async fn see_a_tick(mut command: Command, server: &Server) {
    let process = command.stdout(Stdio::piped()).spawn().expect("the client can be started");
    let mut process = Killed(process);
    let messages = messages(process.0.stdout.take().expect("its stdout"));
    let next = || messages.recv_timeout(PATIENCE).expect("a message in time");
    let first = next();
    assert_eq!(first["snapshot"]["lead"]["leadId"], SAMPLE_LEAD, "{first}");
    let version = server.apply(&message(SAMPLE_LEAD, "the tick", "2025-11-01T00:00:00Z")).await;
    let second = next();
    assert_eq!(second["update"]["lead"]["version"], version.to_string(), "{second}");
    assert_eq!(second["update"]["changes"][0]["activity"]["actionId"], "the tick", "{second}");
}

/// A client; dropped, it is killed.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The JSON messages that a process prints, as they come.
pub fn messages(stdout: ChildStdout) -> mpsc::Receiver<Value> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            text.push_str(&line);
            // A message ends with the line that makes it complete.
            if let Ok(message) = serde_json::from_str(&text) {
                text.clear();
                let _ = sender.send(message);
            }
        }
    });
    receiver
}

/// What a command prints; it must succeed.
fn output(mut command: Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}
