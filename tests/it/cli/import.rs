//! `import`: what happened before, from files, whatever happens meanwhile.

use std::fs::File;
use std::io::{Read as _, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use leadfold::api::BatchGetLeadsRequest;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{complaint, leadfold, url};
use crate::support::events::{SAMPLE, WORKSPACE, failed, lead_created, lead_updated, message, message_with_document, retried};
use crate::support::server::{Options, Server};
use crate::support::{Setup, eventually, on_both_stores};

on_both_stores!(events_of_a_file_are_applied_once);

pub(super) fn import(server: &Server, args: &[&str]) -> Command {
    let mut command = leadfold(&url(server), &[&["import"], args].concat());
    command.env("LEADFOLD_WEBHOOK_URL", format!("http://{}/webhooks/omniai", server.http));
    command
}

pub(super) fn run(mut command: Command) -> Output {
    command.output().expect("it runs")
}

pub(super) fn summary(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

pub(super) fn counts(output: &Output) -> [u64; 4] {
    let summary = summary(output);
    ["applied", "duplicate", "ignored", "refused"].map(|name| summary[name].as_u64().expect("a number"))
}

pub(super) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(super) fn write(dir: &TempDir, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, content).expect("written");
    path
}

pub(super) fn text(path: &Path) -> &str {
    path.to_str().expect("a path")
}

/// So many messages of ten leads, one a line.
pub(super) fn messages(count: usize) -> String {
    let line = |at: usize| {
        let minute = at / 60 % 60;
        format!("{}\n", message(&format!("lead-{}", at % 10), &format!("a{at}"), &format!("2025-11-01T00:{minute:02}:{:02}Z", at % 60)))
    };
    (0..count).map(line).collect()
}

/// Of the ten leads together, as far as they exist.
pub(super) async fn message_total(server: &Server) -> u64 {
    let lead_ids = (0..10).map(|lead| format!("lead-{lead}")).collect();
    let answer = server.client().batch_get_leads(BatchGetLeadsRequest { lead_ids }).await.expect("an answer").into_inner();
    answer.leads.iter().map(|lead| lead.message_count).sum()
}

async fn events_of_a_file_are_applied_once(server: Setup) {
    let dir = tempfile::tempdir().expect("a directory");
    let file = write(&dir, "events.ndjson", messages(500));
    let first = run(import(&server, &["--json", text(&file)]));
    assert!(first.status.success() && counts(&first) == [500, 0, 0, 0], "{first:?}");
    assert_eq!(message_total(&server).await, 500);
    let again = run(import(&server, &["--json", text(&file), "--concurrency", "7"]));
    assert!(again.status.success() && counts(&again) == [0, 500, 0, 0], "{again:?}");
    let people = run(import(&server, &[text(&file), "--skip", "490"]));
    let told = String::from_utf8(people.stdout).expect("text");
    assert!(told.contains("duplicate             10") && told.contains("10 events in "), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_of_bringing_events_is_understood() {
    let server = Setup::embedded();
    let dir = tempfile::tempdir().expect("a directory");
    // Two gzip members in one file: that is how logs are appended.
    let mut members = Vec::new();
    for part in [messages(40), format!("\n{}\n\n", message("lead-g", "g1", "2025-11-01T00:00:00Z"))] {
        let mut gzip = GzEncoder::new(&mut members, Compression::fast());
        gzip.write_all(part.as_bytes()).expect("compressed");
        gzip.finish().expect("compressed");
    }
    let gz = write(&dir, "events.ndjson.gz", members);
    let plain = write(&dir, "more.ndjson", format!("{SAMPLE_LINE}\r\n", SAMPLE_LINE = SAMPLE.replace('\n', " ")));
    let mut command = import(&server, &["--json", text(&gz), "-", text(&plain), "--workspace-id", WORKSPACE]);
    let mut process = command.stdin(Stdio::piped()).spawn().expect("it runs");
    let stdin = format!("{}\n{}", lead_created("lead-s"), json!({"event": "lead.invented"}));
    process.stdin.take().expect("its stdin").write_all(stdin.as_bytes()).expect("written");
    let output = process.wait_with_output().expect("its end");
    assert!(output.status.success() && counts(&output) == [43, 0, 1, 0], "{output:?}");
    assert_eq!(server.lead("lead-g").await.message_count, 1);
    assert_eq!(server.lead("lead-s").await.workspace_id, WORKSPACE, "of an event that names none");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rest_export_is_the_same_history_as_its_webhooks() {
    let server = Setup::embedded();
    let dir = tempfile::tempdir().expect("a directory");
    let lead = "0d2ab1a3-54a1-4a63-a2d5-1d4c3c2f6a10";
    let events = [
        message_with_document(lead, "a1", "2025-11-01T00:00:00Z", "d1"),
        failed(lead, "a2", "2025-11-02T00:00:00Z"),
        retried(lead, "a3", "2025-11-03T00:00:00Z"),
    ];
    let mut logs: Vec<Value> = events.iter().map(|event| event["actionLog"].clone()).collect();
    for log in &mut logs {
        log.as_object_mut().expect("an object").remove("leadId");
        log["createdAt"] = json!("2025-10-01T00:00:00Z");
        log["scheduledAt"] = json!(null);
    }
    // Nothing says when this one was completed, except that it was after it was created.
    let undated =
        json!({"id": "a0", "type": "SYSTEM_NOTE", "status": "COMPLETED", "createdAt": "2025-09-01T00:00:00Z", "completedAt": null});
    let unfinished =
        ["PENDING", "CANCELLED", "AWAITING_APPROVAL", "PENDING"].map(|status| json!({"id": "x", "type": "MESSAGE", "status": status}));
    logs.push(undated);
    logs.extend(unfinished);
    logs.push(json!({"id": "bad", "status": "COMPLETED"}));
    let export = write(&dir, &format!("{lead}.json"), serde_json::to_string_pretty(&logs).expect("JSON"));

    assert!(complaint("", &["import", text(&export)]).contains("--workspace-id"));
    let output = run(import(&server, &["--json", text(&export), "--workspace-id", WORKSPACE]));
    assert_eq!((output.status.code(), counts(&output)), (Some(1), [4, 0, 0, 1]), "{output:?}");
    assert_eq!(summary(&output)["unfinished"], json!({"PENDING": 2, "CANCELLED": 1, "AWAITING_APPROVAL": 1}));
    assert!(stderr(&output).contains(".json:") && stderr(&output).contains(": actionLog.type: required"), "{output:?}");
    let imported = server.lead(lead).await;
    assert_eq!(imported.first_activity_time, Some(crate::support::time("2025-09-01T00:00:00Z")));
    assert_eq!((imported.message_count, imported.document_count), (1, 1));
    for event in &events {
        let answer = server.post(event.to_string()).await;
        assert_eq!(answer.outcome(), "duplicate", "the webhook tells nothing new: {answer:?}");
    }
    let named = write(&dir, "export.json", "[{}]");
    assert!(complaint("", &["import", text(&named), "--workspace-id", "w"]).contains("--lead-id"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_lines_are_told_and_the_others_go_on() {
    let server = Setup::embedded();
    let dir = tempfile::tempdir().expect("a directory");
    let good = |id: &str| message("lead-1", id, "2025-11-01T00:00:00Z").to_string();
    let mut other_workspace = message("lead-1", "a9", "2025-11-01T00:00:00Z");
    other_workspace["workspaceId"] = json!("another");
    let lines = [
        good("a1"),
        "{\"event\":".into(),
        r#"{"event":"action_log.completed"}"#.into(),
        String::new(),
        good("a2"),
        other_workspace.to_string(),
        good("a3"),
    ];
    let file = write(&dir, "mixed.ndjson", lines.join("\n"));
    let output = run(import(&server, &["--json", "--concurrency", "1", text(&file)]));
    assert_eq!((output.status.code(), counts(&output)), (Some(1), [3, 0, 0, 3]), "{output:?}");
    let told = stderr(&output);
    for line in [
        "mixed.ndjson:2: EOF",
        "mixed.ndjson:3: actionLog: required",
        "mixed.ndjson:6: workspaceId: the lead belongs to another",
        "error: 3 of 6 events refused",
    ] {
        assert!(told.contains(line), "{line}: {told}");
    }
    assert_eq!(server.lead("lead-1").await.message_count, 3);
    assert!(complaint("", &["import", "/nowhere/at-all"]).contains("cannot read /nowhere/at-all"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patches_keep_the_order_of_the_file() {
    let server = Setup::embedded();
    let dir = tempfile::tempdir().expect("a directory");
    let patch = |at: usize| {
        let mut event = lead_updated(&format!("lead-{}", at % 3));
        event["data"]["email"] = json!(format!("{at}@example.com"));
        format!("{event}\n")
    };
    let file = write(&dir, "patches.ndjson", (0..300).map(patch).collect::<String>());
    let output = run(import(&server, &["--json", text(&file), "--workspace-id", WORKSPACE]));
    assert!(output.status.success(), "{output:?}");
    for lead in 0..3 {
        assert_eq!(server.lead(&format!("lead-{lead}")).await.profile.expect("a profile").email, format!("{}@example.com", 297 + lead));
    }
}

#[test]
fn a_dry_run_needs_no_server() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = write(&dir, "events.ndjson", format!("{}nonsense\n{}\n", messages(20), lead_created("lead-1")));
    let output = run(leadfold("", &["import", "--dry-run", "--json", text(&file)]));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let told = summary(&output);
    assert_eq!(told["wouldSend"], json!({"action_log.completed": 20, "lead.created": 1}));
    assert_eq!((&told["refused"], &told["firstTime"]), (&json!(1), &json!("2025-11-01T00:00:00Z")), "{told}");
    assert!(stderr(&output).contains("events.ndjson:21: "));
}

fn end(mut process: Child) -> Output {
    let deadline = Instant::now() + Duration::from_secs(60);
    while process.try_wait().expect("its state").is_none() {
        assert!(Instant::now() < deadline, "it does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
    process.wait_with_output().expect("its end")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_that_was_killed_goes_on_where_it_was() {
    let server = Setup::embedded();
    let dir = tempfile::tempdir().expect("a directory");
    let files = [write(&dir, "one.ndjson", messages(1000)), write(&dir, "two.ndjson", messages(4000))];
    let resume = dir.path().join("resume.json");
    // One at a time, so that there is time to kill it.
    let args = ["--json", "--concurrency", "1", "--resume-file", text(&resume), text(&files[0]), text(&files[1])];
    let kept = || serde_json::from_slice::<Value>(&std::fs::read(&resume).ok()?).ok()?["records"].as_u64();
    let mut killed = import(&server, &args).spawn().expect("it runs");
    eventually("some of it is done", async || kept().filter(|records| *records > 0)).await;
    killed.kill().expect("killed");
    killed.wait().expect("its end");
    let before = message_total(&server).await;
    assert!(before < 4000, "it was killed in the middle: {before}");

    let interrupted = import(&server, &args).spawn().expect("it runs");
    let started = message_total(&server).await;
    eventually("some more", async || (message_total(&server).await > started).then_some(())).await;
    assert!(Command::new("kill").args(["-INT", &interrupted.id().to_string()]).status().expect("kill").success());
    let output = end(interrupted);
    let told = stderr(&output);
    assert!(output.status.code() == Some(1) && told.contains("stopped after record ") && told.contains("same command again"), "{output:?}");

    let output = run(import(&server, &["--json", "--resume-file", text(&resume), text(&files[0]), text(&files[1])]));
    assert!(output.status.success(), "{output:?}");
    assert_eq!(message_total(&server).await, 4000);
    assert!(summary(&output)["events"].as_u64().expect("a number") < 5000, "not from the beginning: {output:?}");
    assert!(!resume.exists(), "what is done needs no going on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_goes_and_comes_back_has_everything() {
    let data = tempfile::tempdir().expect("a directory");
    let dir = tempfile::tempdir().expect("a directory");
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let options = || Options::default().data_dir(data.path()).http(&port.to_string());
    let mut server = Server::start(&options());
    let file = write(&dir, "events.ndjson", messages(3000));
    let going = import(&server, &["--json", "--concurrency", "2", text(&file)]).spawn().expect("it runs");
    server.lead_eventually("lead-0").await;
    assert!(server.terminate().status.success());
    let server = Server::start(&options());
    let output = end(going);
    assert!(output.status.success(), "{output:?}");
    let [applied, duplicate, ..] = counts(&output);
    assert_eq!(applied + duplicate, 3000, "{output:?}");
    assert_eq!(message_total(&server).await, 3000);
}

#[test]
fn a_server_that_stays_away_is_given_up() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = write(&dir, "events.ndjson", messages(5));
    let args =
        ["import", text(&file), "--webhook-url", "http://127.0.0.1:1/webhooks/omniai", "--give-up-seconds", "1", "--concurrency", "2"];
    let output = run(leadfold("", &args));
    let told = stderr(&output);
    assert!(output.status.code() == Some(1) && told.contains("has taken nothing for 1 s"), "{output:?}");
}

/// Gigabytes must take no more memory than megabytes. `LEADFOLD_IMPORT_MIB` says how much is read: 24 MiB unless told.
#[test]
fn memory_does_not_grow_with_the_file() {
    let mebibytes: usize = std::env::var("LEADFOLD_IMPORT_MIB").ok().and_then(|number| number.parse().ok()).unwrap_or(24);
    for (begin, between, end) in [("", "\n", "\n"), ("[", ",\n", "]")] {
        let args = ["import", "-", "--dry-run", "--json", "--lead-id", "l", "--workspace-id", WORKSPACE];
        let mut process = leadfold("", &args).stdin(Stdio::piped()).spawn().expect("it runs");
        let mut stdin = process.stdin.take().expect("its stdin");
        let mut event = message("l", "a1", "2025-11-01T00:00:00Z");
        event["actionLog"]["messages"][0]["body"] = json!("x".repeat(16 << 10));
        if begin == "[" {
            event = event["actionLog"].take();
        }
        let event = format!("{event}{between}");
        let (mut written, mut peak) = (0, 0);
        stdin.write_all(begin.as_bytes()).expect("written");
        while written < mebibytes << 20 {
            stdin.write_all(event.as_bytes()).expect("written");
            written += event.len();
            if written % (1 << 20) < event.len() {
                peak = peak.max(memory(process.id()));
            }
        }
        stdin.write_all(event.trim_end_matches(between).as_bytes()).expect("written");
        stdin.write_all(end.as_bytes()).expect("written");
        drop(stdin);
        let output = process.wait_with_output().expect("its end");
        assert!(output.status.success(), "{output:?}");
        println!("{mebibytes} MiB read, at most {} MiB held", peak >> 20);
        assert!(peak < 64 << 20, "{} MiB", peak >> 20);
    }
}

fn memory(pid: u32) -> u64 {
    let mut status = String::new();
    File::open(format!("/proc/{pid}/status")).and_then(|mut file| file.read_to_string(&mut status)).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}
