//! Whoever reads stdout and stderr may go, or stall: that costs log lines, and nothing else.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use futures::StreamExt;
use serde_json::json;

use crate::support::events::{SAMPLE_TIME, WORKSPACE, message};
use crate::support::redis::{RedisServer, free_port};
use crate::support::server::{Options, Readers, Server};
use crate::support::{PATIENCE, Setup, eventually, fresh_id};

/// Webhooks that are refused: each leaves a line of over 100 bytes, and a pipe holds 64 KiB.
const REFUSED: usize = 2000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_leave_cost_log_lines_and_nothing_else() {
    let mut redis = RedisServer::start_with(&["--appendonly", "yes"]);
    let mut server = Server::start(&Options::on(&redis).readers(Readers::Leave));
    let lead_id = fresh_id();
    server.apply(&message(&lead_id, "a0", SAMPLE_TIME)).await;
    // An outage is when a server has most to say.
    redis.kill();
    for number in 1..=10 {
        let answer = server.post(message(&lead_id, &format!("a{number}"), SAMPLE_TIME).to_string()).await;
        assert_eq!((answer.status, answer.outcome()), (200, "queued"), "{answer:?}");
    }
    redis.restart();
    eventually("everything that was queued is applied", async || {
        let request = leadfold::api::GetLeadRequest { lead_id: lead_id.clone() };
        let lead = server.client().get_lead(request).await.ok()?.into_inner().lead?;
        (lead.message_count == 11).then_some(())
    })
    .await;
    assert_eq!(server.admin("/livez").await.0, 200);
    eventually("it is ready again", async || (server.admin("/readyz").await.0 == 200).then_some(())).await;
    assert!(server.metric("leadfold_log_lines_dropped_total").await > 0.0);
    assert_eq!(server.terminate().status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_stall_cost_log_lines_and_nothing_else() {
    let mut server = Server::start(&Options::default().readers(Readers::Stall));
    let refused = futures::stream::iter(0..REFUSED).map(async |_| server.post("{}").await.status);
    let refused: Vec<u16> = refused.buffer_unordered(8).collect().await;
    assert!(refused.iter().all(|status| *status == 400));
    for number in 0..5 {
        let began = Instant::now();
        server.apply(&message("lead", &format!("a{number}"), SAMPLE_TIME)).await;
        assert_eq!(server.admin("/livez").await.0, 200);
        assert!(began.elapsed() < Duration::from_secs(1), "it took {:?}", began.elapsed());
    }
    // So far the lines wait. More than may wait is lost, and counted.
    let dropped = async || server.metric("leadfold_log_lines_dropped_total").await;
    let mut sent = 0;
    while dropped().await == 0.0 {
        assert!(sent < 60 * REFUSED, "nothing is lost after {sent} lines: where do they wait?");
        futures::stream::iter(0..REFUSED).map(async |_| server.post("{}").await.status).buffer_unordered(8).collect::<Vec<_>>().await;
        sent += REFUSED;
    }
    let exit = server.terminate();
    assert_eq!(exit.status.code(), Some(0));
    assert!(exit.took < Duration::from_secs(10), "it took {:?}", exit.took);
}

/// `leadfold serve | head -1`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serve_outlives_a_head_that_reads_one_line() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let serve = Options::default().command(dir.path());
    // The shell tells the exit code on a stream that head does not read.
    let script = r#"{ "$@" 2>&3 & pid=$!; echo "pid $pid" >&3; wait $pid; echo "code $?" >&3; } 3>&2 | head -1; echo "head has ended""#;
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh"]).arg(serve.get_program()).args(serve.get_args());
    for (name, value) in serve.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let mut shell = shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("sh");
    let stderr = crate::support::server::lines(shell.stderr.take().expect("its stderr"));
    let mut pid = None;
    let next = || stderr.recv_timeout(PATIENCE).expect("a line");
    while pid.is_none() {
        pid = next().strip_prefix("pid ").map(str::to_owned);
    }
    let pid = pid.expect("its pid");
    let stdout = crate::support::server::lines(shell.stdout.take().expect("its stdout"));
    let line = stdout.recv_timeout(PATIENCE).expect("the line that head prints");
    let address = line.strip_prefix("http listening on ").unwrap_or_else(|| panic!("{line:?}")).to_owned();
    // Everything is announced by now, to a reader that has gone.
    while !next().contains(" ready") {}

    let web = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("an HTTP client");
    for number in 0..3 {
        let event = message("lead", &format!("a{number}"), SAMPLE_TIME).to_string();
        let post = web.post(format!("http://{address}/webhooks/omniai")).header("content-type", "application/json").body(event);
        assert_eq!(post.send().await.expect("an answer").status(), 200);
    }
    assert!(Command::new("kill").args(["-s", "TERM", &pid]).status().expect("kill").success());
    let code = loop {
        if let Some(code) = next().strip_prefix("code ") {
            break code.to_owned();
        }
    };
    assert_eq!(code, "0");
    shell.wait().expect("the shell ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serve_needs_no_reader_at_all() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let address = format!("127.0.0.1:{}", free_port());
    let mut serve = Options::default().http(&address).command(dir.path());
    let mut serve = serve.stdout(closed()).stderr(closed()).spawn().expect("it runs");
    let web = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("an HTTP client");
    let event = message("lead", "a1", SAMPLE_TIME).to_string();
    let post = || web.post(format!("http://{address}/webhooks/omniai")).header("content-type", "application/json").body(event.clone());
    eventually("a webhook is taken", async || post().send().await.ok().filter(|answer| answer.status() == 200)).await;
    // By now it has announced where it listens. A second one cannot, for want of the port, and tells nobody.
    let mut second = Options::default().http(&address).command(tempfile::tempdir().expect("a temporary directory").path());
    let mut second = second.stdout(closed()).stderr(closed()).spawn().expect("it runs");
    assert_eq!(end(&mut second).code(), Some(1));
    assert_eq!(post().send().await.expect("an answer").status(), 200);
    assert!(Command::new("kill").args(["-s", "TERM", &serve.id().to_string()]).status().expect("kill").success());
    assert_eq!(end(&mut serve).code(), Some(0));
}

/// The binary as a client.
fn leadfold(server: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leadfold"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LEADFOLD_")) {
        command.env_remove(name);
    }
    command.args(args).env("LEADFOLD_SERVER", server).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The writer's end of a pipe that nobody reads.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

fn end(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().expect("its state") {
            return status;
        }
        if Instant::now() > deadline {
            child.kill().expect("killed");
            panic!("it does not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs a command whose stdout nobody reads; returns its exit code and what it says on stderr.
fn unread(server: &str, args: &[&str]) -> (Option<i32>, String) {
    let mut child = leadfold(server, args).stdout(closed()).spawn().expect("it runs");
    let status = end(&mut child);
    let mut said = String::new();
    child.stderr.take().expect("its stderr").read_to_string(&mut said).expect("text");
    (status.code(), said)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_end_quietly_when_nobody_reads_what_they_print() {
    let server = Setup::embedded();
    let lead_id = fresh_id();
    for number in 0..3 {
        server.apply(&message(&lead_id, &format!("a{number}"), SAMPLE_TIME)).await;
        server.post(json!({"event": "action_log.completed", "number": number}).to_string()).await;
    }
    let events = tempfile::tempdir().expect("a temporary directory");
    let good = events.path().join("good.ndjson");
    std::fs::write(&good, message(&lead_id, "b1", SAMPLE_TIME).to_string()).expect("a file");
    let good = good.to_str().expect("a path");
    let (url, webhook) = (format!("http://{}", server.grpc), format!("http://{}/webhooks/omniai", server.http));
    let commands: &[&[&str]] = &[
        &["--help"],
        &["help", "serve"],
        &["--version"],
        &["completions", "bash"],
        &["list", WORKSPACE],
        &["list", WORKSPACE, "--json"],
        &["list", "empty"],
        &["get", &lead_id],
        &["get", &lead_id, "--json"],
        &["watch", &lead_id],
        &["watch", "--workspace", WORKSPACE, "--json"],
        &["dead-letters", "list"],
        &["dead-letters", "list", "--json", "--payloads"],
        &["import", good, "--webhook-url", &webhook],
        &["import", good, "--webhook-url", &webhook, "--json"],
        &["import", good, "--dry-run"],
        &["simulate", "--webhook-url", &webhook, "--duration", "1", "--rate", "5", "--json"],
        &["dead-letters", "drop", "--all", "--yes"],
        &["delete", &lead_id, "--yes"],
    ];
    for args in commands {
        let (code, said) = unread(&url, args);
        // Hints for people are on stderr.
        let is_as_expected = if args == &["list", "empty"] { said.starts_with("no leads in workspace \"empty\"") } else { said.is_empty() };
        assert!(code == Some(0) && is_as_expected, "{args:?}: {code:?} {said}");
    }
    // Behind a real head too.
    for args in commands.iter().filter(|args| !matches!(args[0], "delete" | "dead-letters" | "get")) {
        let mut shell = Command::new("sh");
        shell.args(["-c", r#"{ "$@"; echo "code $?" >&2; } | head -1"#, "sh", env!("CARGO_BIN_EXE_leadfold")]).args(*args);
        shell.env("LEADFOLD_SERVER", &url).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut shell = shell.spawn().expect("sh");
        end(&mut shell);
        let mut said = String::new();
        shell.stderr.take().expect("its stderr").read_to_string(&mut said).expect("text");
        // Hints for people are on stderr: the lead was deleted before.
        let said = said
            .strip_prefix("no leads in workspace")
            .filter(|_| args[0] == "list")
            .map_or(&*said, |hint| hint.split_once('\n').expect("a line").1);
        assert_eq!(said, "code 0\n", "{args:?}");
    }
    assert!(server.client().get_lead(leadfold::api::GetLeadRequest { lead_id }).await.is_err(), "deleted, though nobody read it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_went_wrong_is_told_by_the_exit_code_though_nobody_reads_stdout() {
    let server = Setup::embedded();
    // More than go into one call of a retry, each with a lead of its own: letters that are alike are one.
    for number in 0..30 {
        let event = json!({"event": "action_log.completed", "workspaceId": WORKSPACE, "actionLog": {"leadId": format!("lead-{number}")}});
        server.post(event.to_string()).await;
    }
    let events = tempfile::tempdir().expect("a temporary directory");
    let bad = events.path().join("bad.ndjson");
    std::fs::write(&bad, "{\"event\":\"action_log.completed\"}\n").expect("a file");
    let (url, webhook) = (format!("http://{}", server.grpc), format!("http://{}/webhooks/omniai", server.http));
    let of_each = "30 dead letters could not be taken";
    for (args, error) in [
        (&["import", bad.to_str().expect("a path"), "--webhook-url", &webhook][..], "1 of 1 event refused"),
        (&["import", bad.to_str().expect("a path"), "--webhook-url", &webhook, "--json"], "1 of 1 event refused"),
        (&["simulate", "--webhook-url", "http://127.0.0.1:1/webhooks/omniai", "--duration", "1", "--give-up-seconds", "1"], "127.0.0.1:1"),
        (&["dead-letters", "retry", "--all"], of_each),
        (&["dead-letters", "retry", "--all", "--json"], of_each),
        (&["get", "nobody"], "no lead"),
    ] {
        let (code, said) = unread(&url, args);
        assert_eq!(code, Some(1), "{args:?}: {said}");
        let errors: Vec<_> = said.lines().filter(|line| line.starts_with("error: ")).collect();
        assert!(errors.len() == 1 && errors[0].contains(error) && !said.contains("panicked"), "{args:?}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stderr_that_nobody_reads_ends_no_command() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut server = Server::start(&Options::default().data_dir(dir.path()));
    let (lead_id, address) = (fresh_id(), server.grpc.clone());
    server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    let mut watch = leadfold(&format!("http://{address}"), &["watch", &lead_id]).stderr(closed()).spawn().expect("it runs");
    let told = crate::support::server::lines(watch.stdout.take().expect("its stdout"));
    assert!(told.recv_timeout(PATIENCE).expect("a line").contains("1 message"));
    // It says that it lost the server, to nobody, and goes on.
    assert!(server.terminate().status.success());
    let server = Server::start(&Options::default().data_dir(dir.path()).grpc(&address));
    server.apply(&message(&lead_id, "a2", "2025-11-02T00:00:00Z")).await;
    assert!(told.recv_timeout(PATIENCE).expect("a line").ends_with("Incoming email: a2"));
    watch.kill().expect("killed");
    watch.wait().expect("its end");

    let events = dir.path().join("events.ndjson");
    std::fs::write(&events, "{\"event\":\"action_log.completed\"}\n").expect("a file");
    let webhook = format!("http://{}/webhooks/omniai", server.http);
    for args in [
        &["import", events.to_str().expect("a path"), "--webhook-url", &webhook][..],
        &["get", "nobody"],
        &["delete", &lead_id],
        &["nonsense"],
        &["watch"],
    ] {
        let mut child = leadfold(&format!("http://{address}"), args).stderr(closed()).spawn().expect("it runs");
        let is_usage = matches!(args, ["nonsense" | "watch"]);
        assert_eq!(end(&mut child).code(), Some(if is_usage { 2 } else { 1 }), "{args:?}");
    }
    server.lead(&lead_id).await;
}

#[test]
fn the_demo_ends_quietly_behind_a_head() {
    let mut demo = leadfold("", &["demo", "--rate", "100", "--seed", "1"]).spawn().expect("it runs");
    let mut reader = BufReader::new(demo.stdout.take().expect("its stdout"));
    let mut board = String::new();
    reader.read_line(&mut board).expect("a line");
    let address = board.strip_prefix("board     http://").and_then(|rest| rest.split_once('/')).expect("the board's address").0;
    let address: SocketAddr = address.parse().expect("an address");
    assert!(TcpStream::connect_timeout(&address, PATIENCE).is_ok());
    drop(reader);
    assert_eq!(end(&mut demo).code(), Some(0));
    let mut said = String::new();
    demo.stderr.take().expect("its stderr").read_to_string(&mut said).expect("text");
    assert!(said.lines().all(|line| line == "ending" || line.contains("another one stands in")), "{said}");
}
