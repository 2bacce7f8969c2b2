//! What a person sees: on a terminal of its own, made by python's pty module.

use std::process::{Command, Stdio};
use std::time::Duration;

use super::{leadfold, url};
use crate::support::events::{message, message_with_document};
use crate::support::server::lines;
use crate::support::{Setup, eventually, fresh_id};

/// Runs a command on a terminal of 100 columns and 30 rows, and copies what it writes.
const PTY: &str = r#"
import fcntl, os, pty, struct, sys, termios
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, int(os.environ.get("COLUMNS_OF_THE_TEST", 100)), 0, 0))
print("pid", pid, flush=True)
while True:
    try:
        chunk = os.read(terminal, 65536)
    except OSError:
        break
    if not chunk:
        break
    sys.stdout.write(repr(chunk.decode("utf-8", "replace")) + "\n")
    sys.stdout.flush()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"#;

fn on_a_terminal(server: &str, args: &[&str], env: &[(&str, &str)]) -> Command {
    let mut command = Command::new("python3");
    command.args(["-c", PTY, env!("CARGO_BIN_EXE_leadfold")]).args(args);
    command.env_remove("NO_COLOR").env("TERM", "xterm-256color").env("LEADFOLD_SERVER", server).envs(env.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_draws_in_place() {
    let server = Setup::embedded();
    let lead_id = fresh_id();
    server.apply(&message(&lead_id, "a1", "2025-11-01T00:00:00Z")).await;
    let mut watch = on_a_terminal(&url(&server), &["watch", &lead_id], &[]).spawn().expect("python3");
    let told = lines(watch.stdout.take().expect("its stdout"));
    let pid = told.recv_timeout(Duration::from_secs(15)).expect("a line").replace("pid ", "");
    let mut seen = String::new();
    let mut see = async |what: &str| {
        eventually(what, async || {
            seen.extend(told.try_iter());
            seen.contains(what).then_some(())
        })
        .await;
    };
    see("1 message").await;
    server.apply(&message_with_document(&lead_id, "a2", "2025-11-02T00:00:00Z", "d1")).await;
    see("2 messages").await;
    see("d1.pdf").await;
    // It goes up to where it began, and draws there again; with colour, and without the cursor.
    see("\\x1b[?25l").await;
    see("A\\r").await;
    see("\\x1b[32mCOMPLETED").await;
    assert!(Command::new("kill").args(["-INT", &pid]).status().expect("kill").success());
    see("\\x1b[?25h").await;
    assert!(watch.wait().expect("its end").success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn colour_is_for_terminals_that_want_it() {
    let server = Setup::embedded();
    let lead_id = fresh_id();
    server.apply(&message(&lead_id, "a1", "2025-11-01T00:00:00Z")).await;
    let told = |env: &[(&str, &str)]| {
        let output = on_a_terminal(&url(&server), &["get", &lead_id], env).output().expect("python3");
        String::from_utf8(output.stdout).expect("text")
    };
    assert!(told(&[]).contains("\\x1b[32mCOMPLETED"));
    assert!(!told(&[("NO_COLOR", "1")]).contains("\\x1b["));
    assert!(told(&[("NO_COLOR", "")]).contains("\\x1b[32mCOMPLETED"), "set but empty is as good as not set");
    for terminal in ["", "dumb"] {
        assert!(!told(&[("TERM", terminal)]).contains("\\x1b["), "{terminal:?}");
    }
    let piped = leadfold(&url(&server), &["get", &lead_id]).output().expect("it runs");
    assert!(!piped.stdout.contains(&0x1b));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_are_never_broken() {
    let server = Setup::embedded();
    let lead_id = fresh_id();
    let mut event = message(&lead_id, "a1", "2025-11-01T00:00:00Z");
    event["actionLog"]["summary"] = serde_json::json!("a long summary that goes on ".repeat(30));
    server.apply(&event).await;
    // Of another workspace than the lead's: refused, and kept.
    event["workspaceId"] = serde_json::json!("another");
    server.post(event.to_string()).await;
    for args in [&["list", crate::support::events::WORKSPACE][..], &["get", &lead_id], &["dead-letters", "list"]] {
        let output = on_a_terminal(&url(&server), args, &[("NO_COLOR", "1"), ("COLUMNS_OF_THE_TEST", "80")]).output().expect("python3");
        let told = String::from_utf8(output.stdout).expect("text");
        assert!(told.contains(&lead_id), "{told}");
        assert!(told.contains("…") || args[0] != "list", "{told}");
        assert!(args[0] != "list" || told.matches("\\r\\n").count() == 2, "a row for each line: {told}");
    }
}
