//! What the environment changes, and what it must not.

use std::process::{Command, Output};

use serde_json::json;

use super::{Watch, complaint, json_lines, leadfold, output, url, usage_complaint};
use crate::support::Setup;
use crate::support::events::{SAMPLE, SAMPLE_LEAD, WORKSPACE, message};

fn with(server: &str, args: &[&str], env: &[(&str, &str)]) -> Output {
    leadfold(server, args).envs(env.iter().copied()).output().expect("it runs")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn variables_that_are_set_but_empty_are_as_good_as_none() {
    let server = Setup::embedded();
    server.post(SAMPLE).await;
    let names = ["LEADFOLD_JSON", "LEADFOLD_LIMIT", "LEADFOLD_TOKEN_FILE", "LEADFOLD_CA_FILE", "LEADFOLD_TOKEN", "LEADFOLD_CLIENT_CERT"];
    let empty: Vec<_> = names.iter().map(|&name| (name, "")).collect();
    let listed = with(&url(&server), &["list", WORKSPACE], &empty);
    assert!(listed.status.success() && listed.stdout.starts_with(b"lead "), "{listed:?}");
    let letters = with(&url(&server), &["dead-letters", "list"], &empty);
    assert!(letters.status.success(), "{letters:?}");
    let refused = with("", &["get", "l"], &[]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("http://127.0.0.1:50051"), "the default: {refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_typed_counts_more_than_a_variable() {
    let server = Setup::embedded();
    server.post(SAMPLE).await;
    let mut watch = Watch::start_with(&url(&server), &["watch", SAMPLE_LEAD], &[("LEADFOLD_WORKSPACE", "elsewhere")]);
    assert!(watch.line().contains(SAMPLE_LEAD));
    drop(watch.process.kill());
    let mut watch = Watch::start_with(&url(&server), &["watch"], &[("LEADFOLD_WORKSPACE", WORKSPACE)]);
    assert!(watch.line().contains(SAMPLE_LEAD));
    drop(watch.process.kill());
    let webhook = format!("http://{}/webhooks/omniai", server.http);
    let args = ["simulate", "--workspaces", "2", "--leads", "4", "--duration", "1", "--webhook-url", &webhook];
    let simulated = with("", &args, &[("LEADFOLD_WORKSPACE_ID", WORKSPACE)]);
    assert!(simulated.status.success(), "{simulated:?}");
    assert!(usage_complaint(&url(&server), &["watch", "l", "--workspace", "w"]).contains("cannot be used with"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_destroys_is_asked_for_each_time() {
    let server = Setup::embedded();
    server.post(SAMPLE).await;
    server.post(r#"{"event":"lead.created"}"#).await;
    let env = [("LEADFOLD_YES", "true"), ("LEADFOLD_ALL", "true")];
    for args in [&["delete", SAMPLE_LEAD][..], &["dead-letters", "drop", "1"]] {
        let refused = with(&url(&server), args, &env);
        assert!(refused.status.code() == Some(1) && String::from_utf8_lossy(&refused.stderr).contains("--yes"), "{refused:?}");
    }
    let retried = with(&url(&server), &["dead-letters", "retry", "1"], &env);
    assert!(String::from_utf8_lossy(&retried.stdout).contains("refused"), "{retried:?}");
    server.lead(SAMPLE_LEAD).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_that_are_not_there_are_not_dropped() {
    let server = Setup::embedded();
    server.post(r#"{"event":"lead.created"}"#).await;
    let missing = leadfold(&url(&server), &["dead-letters", "drop", "1", "99999", "--yes"]).output().expect("it runs");
    assert_eq!((missing.status.code(), &*missing.stdout), (Some(1), &b"dropped 1 dead letter\n"[..]), "{missing:?}");
    assert!(String::from_utf8_lossy(&missing.stderr).contains("1 dead letter was not there"), "{missing:?}");
    assert_eq!(output(&server, &["dead-letters", "drop", "--all", "--yes"]), "dropped 0 dead letters\n");
}

#[test]
fn the_demo_is_the_same_wherever_it_is_run() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name).to_str().expect("a path").to_owned();
    let env = [
        ("LEADFOLD_DATA_DIR", path("data")),
        ("LEADFOLD_REDIS_URL", "redis://127.0.0.1:1".to_owned()),
        ("LEADFOLD_WEBHOOK_URL", "http://127.0.0.1:1/webhooks/omniai".to_owned()),
        ("LEADFOLD_WEBHOOK_SECRET", "a-secret-of-another-server".to_owned()),
        ("LEADFOLD_TOKENS_FILE", path("tokens")),
        ("LEADFOLD_WORKSPACE", "elsewhere".to_owned()),
        ("LEADFOLD_LEAD_ID", "elsewhere".to_owned()),
    ];
    let env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let mut demo = Watch::start_with("http://127.0.0.1:1", &["demo", "--rate", "100"], &env);
    let lines: Vec<_> = (0..9).map(|_| demo.line()).collect();
    let curl = lines.iter().find(|line| line.trim_start().starts_with("curl ")).expect("what to try");
    let tried = Command::new("bash").args(["-c", curl]).output().expect("bash");
    assert!(String::from_utf8_lossy(&tried.stdout).contains("applied"), "what it says to try works: {tried:?}");
    let sent = Command::new("kill").args(["-INT", &demo.process.id().to_string()]).status().expect("kill");
    assert!(sent.success() && demo.end().success());
    assert!(std::fs::read_dir(dir.path()).expect("the directory").next().is_none(), "nothing was written elsewhere");
}

#[test]
fn typing_mistakes_are_told_with_what_was_meant() {
    assert!(usage_complaint("", &["lsit", "w"]).contains("'list'"));
    assert!(usage_complaint("", &["get", "l", "--activites", "1"]).ends_with("see `leadfold get --help`\n"));
    assert!(complaint("http://127.0.0.1:1", &["get", "l"]).contains("refused"), "what fails exits with 1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_is_everything_and_cannot_move_the_cursor() {
    let server = Setup::embedded();
    for lead in 0..25 {
        let mut event = message(&format!("lead-{lead}"), "a1", "2025-11-01T00:00:00Z");
        event["actionLog"]["summary"] = json!("a\u{9b}31m\u{7f}\u{202e}\u{200b}b");
        server.apply(&event).await;
    }
    let text = output(&server, &["list", WORKSPACE, "--json"]);
    assert_eq!(text.lines().count(), 25);
    assert!(!text.contains(['\u{9b}', '\u{7f}', '\u{202e}', '\u{200b}']), "{text:?}");
    assert_eq!(json_lines(&text)[0]["latestActivity"]["summary"], "a\u{9b}31m\u{7f}\u{202e}\u{200b}b");
    let people = leadfold(&url(&server), &["list", WORKSPACE]).output().expect("it runs");
    assert_eq!(String::from_utf8_lossy(&people.stdout).lines().count(), 21);
    assert_eq!(String::from_utf8_lossy(&people.stderr), "these are 20, and there are more: see --limit\n");
}
