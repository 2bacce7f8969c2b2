//! The command line, as people and programs call it.

mod demo;
mod import;
mod import_forms;
mod settings;
mod simulate;
mod terminal;
mod watch;
mod wrong_doors;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::events::{SAMPLE, SAMPLE_LEAD, WORKSPACE, lead_updated, message, message_with_document};
use crate::support::server::{Options, Server, lines};
use crate::support::{PATIENCE, Setup, eventually, fresh_id};

/// The binary, told which server to talk to.
fn leadfold(server: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leadfold"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LEADFOLD_")) {
        command.env_remove(name);
    }
    command.args(args).env("LEADFOLD_SERVER", server);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn url(server: &Server) -> String {
    format!("http://{}", server.grpc)
}

/// Runs it to its end, which must be a good one, and returns its output.
fn output(server: &Server, args: &[&str]) -> String {
    let output = leadfold(&url(server), args).output().expect("it runs");
    assert!(output.status.success(), "{args:?}: {output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{args:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// Runs it to its end, which must be a bad one, and returns the one line that it says.
fn complaint(server: &str, args: &[&str]) -> String {
    complaint_with(1, server, args)
}

/// The same of a command that is written wrongly.
fn usage_complaint(server: &str, args: &[&str]) -> String {
    complaint_with(2, server, args)
}

fn complaint_with(code: i32, server: &str, args: &[&str]) -> String {
    let output = leadfold(server, args).output().expect("it runs");
    assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
    let line = String::from_utf8(output.stderr).expect("text");
    assert!(line.starts_with("error: ") && line.ends_with('\n') && line.lines().count() == 1, "{args:?}: {line:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{args:?}");
    line
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn get_shows_a_lead() {
    let server = Setup::embedded();
    server.post(SAMPLE).await;
    server.apply(&message(SAMPLE_LEAD, "a2", "2025-11-01T00:00:00Z")).await;

    let text = output(&server, &["get", SAMPLE_LEAD, "--activities", "1"]);
    for told in [SAMPLE_LEAD, WORKSPACE, "2025-10-30T20:07:17Z (", "2 messages", "docs.pdf", "1.0 kB", "Incoming email: a2"] {
        assert!(text.contains(told), "{told}: {text}");
    }
    assert_eq!(text.matches("MESSAGE COMPLETED EMAIL INBOUND").count(), 2, "the latest, and one of the history: {text}");

    let lines = json_lines(&output(&server, &["get", SAMPLE_LEAD, "--activities", "9", "--json"]));
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert_eq!(json_lines(&output(&server, &["get", SAMPLE_LEAD, "--json"])).len(), 1, "for programs no activities unless they ask");
    assert!(output(&server, &["get", SAMPLE_LEAD]).contains("newest activities"), "for people some");
    assert_eq!((&lines[0]["leadId"], &lines[0]["messageCount"]), (&json!(SAMPLE_LEAD), &json!("2")));
    assert_eq!((&lines[1]["actionId"], &lines[1]["completeTime"]), (&json!("a2"), &json!("2025-11-01T00:00:00Z")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_senders_words_cannot_move_the_cursor() {
    let server = Setup::embedded();
    let mut event = message("l\u{1b}[2J", "a1", "2025-11-01T00:00:00Z");
    event["actionLog"]["summary"] = json!("red \u{1b}[31m and\na line");
    server.apply(&event).await;
    for args in [&["get", "l\u{1b}[2J"][..], &["list", WORKSPACE]] {
        let text = output(&server, args);
        assert!(!text.contains('\u{1b}') && text.contains("l\\u{1b}[2J"), "{text:?}");
    }
    assert!(output(&server, &["get", "l\u{1b}[2J"]).contains("red \\u{1b}[31m and\\na line"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn list_shows_a_workspace() {
    let server = Setup::embedded();
    for number in 1..=3 {
        server.apply(&message(&format!("lead-{number}"), "a1", &format!("2025-11-0{number}T00:00:00Z"))).await;
    }
    for json in [false, true] {
        let args = ["list", WORKSPACE, "--limit", "2", "--json"];
        let limited = leadfold(&url(&server), if json { &args } else { &args[..4] }).output().expect("it runs");
        let text = String::from_utf8(limited.stdout).expect("text");
        assert_eq!(text.lines().count(), if json { 2 } else { 3 }, "{text}");
        assert!(json || text.lines().nth(1).is_some_and(|line| line.starts_with("lead-3 ")), "{text}");
        assert_eq!(String::from_utf8_lossy(&limited.stderr), "these are 2, and there are more: see --limit\n");
    }
    let all = json_lines(&output(&server, &["list", WORKSPACE, "--json"]));
    assert_eq!(all.iter().map(|lead| lead["leadId"].as_str().expect("an id")).collect::<Vec<_>>(), ["lead-3", "lead-2", "lead-1"]);
    let empty = leadfold(&url(&server), &["list", "empty"]).output().expect("it runs");
    assert!(empty.status.success() && empty.stdout.is_empty(), "{empty:?}");
    assert!(String::from_utf8_lossy(&empty.stderr).starts_with("no leads in workspace \"empty\" on http://"), "{empty:?}");
    assert_eq!(output(&server, &["list", "empty", "--json"]), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn delete_asks_first() {
    let server = Setup::embedded();
    server.post(SAMPLE).await;
    let line = complaint(&url(&server), &["delete", SAMPLE_LEAD]);
    assert!(line.contains("no terminal") && line.contains("--yes"), "{line}");
    server.lead(SAMPLE_LEAD).await;
    assert_eq!(output(&server, &["delete", SAMPLE_LEAD, "--yes"]), format!("deleted {SAMPLE_LEAD}\n"));
    assert!(complaint(&url(&server), &["get", SAMPLE_LEAD]).contains("no lead"));
    assert!(complaint(&url(&server), &["delete", SAMPLE_LEAD, "--yes"]).contains("no lead"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_wrong_is_said_in_one_line() {
    let server = Setup::embedded();
    assert!(complaint(&url(&server), &["get", "nobody"]).contains("no lead \"nobody\" on http://"));
    assert!(complaint(&url(&server), &["get", &"x".repeat(300)]).contains("lead_id"));
    assert!(complaint(&url(&server), &["watch", &"x".repeat(300)]).contains("lead_id"));
    for bad in ["localhost", "http://", "ftp://h", "http://h:1/path"] {
        assert!(usage_complaint(bad, &["get", "l"]).contains("http://HOST:PORT"), "{bad}");
    }
    for usage in [&["get"][..], &["watch"], &["nonsense"], &["list", "w", "--limit", "0"]] {
        usage_complaint(&url(&server), usage);
    }
    assert!(complaint(&url(&server), &["get", "nobody"]).contains("leadfold list WORKSPACE"), "what to do next");
    let beyond = ["serve", "--http-addr", "0.0.0.0:0", "--grpc-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0"];
    assert!(complaint("", &beyond).contains("--insecure-no-auth"));
}

/// A `watch` that runs.
struct Watch {
    process: Child,
    told: Receiver<String>,
    losses: Receiver<String>,
}

impl Watch {
    fn start(server: &str, args: &[&str]) -> Self {
        Self::start_with(server, args, &[])
    }

    fn start_with(server: &str, args: &[&str], env: &[(&str, &str)]) -> Self {
        let mut process = leadfold(server, args).envs(env.iter().copied()).spawn().expect("it runs");
        let told = lines(process.stdout.take().expect("its stdout"));
        let losses = lines(process.stderr.take().expect("its stderr"));
        Self { process, told, losses }
    }

    fn line(&self) -> String {
        self.told.recv_timeout(PATIENCE).expect("a line")
    }

    fn loss(&self) -> String {
        self.losses.recv_timeout(PATIENCE).expect("a line")
    }

    fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.process.try_wait().expect("its state") {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_tells_what_happens() {
    let server = Setup::embedded();
    let lead_id = fresh_id();
    let mut text = Watch::start(&url(&server), &["watch", &lead_id]);
    let json = Watch::start(&url(&server), &["watch", "--workspace", WORKSPACE, "--json"]);
    assert!(text.line().ends_with("nothing is known yet"));
    assert_eq!(json.line(), r#"{"synced":{}}"#);
    server.apply(&message_with_document(&lead_id, "a1", "2025-11-01T00:00:00Z", "d1")).await;
    assert!(text.line().ends_with("MESSAGE COMPLETED EMAIL INBOUND: Incoming email: a1"));
    assert!(text.line().ends_with("document d1.pdf (1.0 kB)"));
    let told: Value = serde_json::from_str(&json.line()).expect("JSON");
    assert_eq!(told.pointer("/snapshot/lead/leadId").or(told.pointer("/update/lead/leadId")), Some(&json!(lead_id)), "{told}");
    server.apply(&lead_updated(&lead_id)).await;
    while !text.line().contains("  profile ") {}
    assert_eq!(output(&server, &["delete", &lead_id, "--yes"]), format!("deleted {lead_id}\n"));
    while !text.line().ends_with("  deleted") {}

    let sent = Command::new("kill").args(["-INT", &text.process.id().to_string()]).status().expect("kill");
    assert!(sent.success() && text.end().success(), "an interrupted watch has done what it was asked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_outlives_the_server() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut server = Server::start(&Options::default().data_dir(dir.path()));
    let options = || Options::default().data_dir(dir.path());
    let lead_id = fresh_id();
    server.apply(&message(&lead_id, "a1", "2025-11-01T00:00:00Z")).await;
    let one = Watch::start(&url(&server), &["watch", &lead_id]);
    let all = Watch::start(&url(&server), &["watch", "--workspace", WORKSPACE]);
    assert!(one.line().contains("1 message, 0 documents; MESSAGE") && all.line().contains("1 message, "));
    let address = server.grpc.clone();
    assert!(server.terminate().status.success());
    assert!(one.loss().ends_with("trying again"));
    let server = Server::start(&options().grpc(&address));
    server.apply(&message(&lead_id, "a2", "2025-11-02T00:00:00Z")).await;
    // Only what it has not told before, however it comes to know of it.
    assert!(one.line().ends_with("Incoming email: a2"), "the change that was missed");
    assert!(all.line().contains("email: a2"));
    assert!(one.loss().starts_with("connected again to http://"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_goes_is_no_error() {
    let server = Setup::embedded();
    server.post(SAMPLE).await;
    let mut list = leadfold(&url(&server), &["list", WORKSPACE]).spawn().expect("it runs");
    drop(list.stdout.take());
    assert!(list.wait().expect("its end").success());

    let mut watch = leadfold(&url(&server), &["watch", SAMPLE_LEAD]).spawn().expect("it runs");
    let mut reader = BufReader::new(watch.stdout.take().expect("its stdout"));
    reader.read_line(&mut String::new()).expect("a line");
    drop(reader);
    let mut number = 0;
    let status = eventually("the watch ends", async || {
        number += 1;
        server.apply(&message(SAMPLE_LEAD, &format!("b{number}"), "2025-11-02T00:00:00Z")).await;
        watch.try_wait().expect("its state")
    })
    .await;
    assert!(status.success(), "{status:?}");
}

#[test]
fn completions_know_every_command() {
    for (shell, word) in [("bash", "complete -F"), ("zsh", "#compdef leadfold"), ("fish", "complete -c leadfold")] {
        let output = leadfold("", &["completions", shell]).output().expect("it runs");
        let script = String::from_utf8(output.stdout).expect("text");
        assert!(output.status.success() && script.contains(word), "{shell}");
        for command in ["serve", "demo", "get", "list", "watch", "delete", "import", "simulate", "completions", "--resume-file"] {
            assert!(script.contains(command.trim_start_matches('-')), "{shell}: {command}");
        }
    }
}
