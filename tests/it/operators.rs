//! What operators do without a second thought: save a file with another editor, send SIGHUP, leave a variable empty.

use std::fs;
use std::process::Command;

use crate::support::certificates::{Authority, with_tls};
use crate::support::events::{SAMPLE_TIME, message};
use crate::support::server::{Options, Server, WEBHOOK};
use crate::support::tokens::{self, ALL, write};
use crate::support::{PATIENCE, eventually, fresh_id};

const SECRET: &str = "canary-secret-of-the-sender";
/// What some editors put at the beginning of a file.
const MARK: &str = "\u{feff}";

async fn post(server: &Server, scheme: &str, authority: Option<&str>) -> u16 {
    let builder = reqwest::Client::builder().no_proxy().timeout(PATIENCE);
    let builder = match authority {
        None => builder,
        Some(pem) => builder.add_root_certificate(reqwest::Certificate::from_pem(pem.as_bytes()).expect("a certificate")),
    };
    let request = builder.build().expect("a client").post(format!("{scheme}://{}{WEBHOOK}", server.http));
    let request = request.header("content-type", "application/json").header("x-webhook-secret", SECRET);
    request.body(message(&fresh_id(), "a1", SAMPLE_TIME).to_string()).send().await.expect("an answer").status().as_u16()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_may_begin_with_a_byte_order_mark_and_end_lines_as_windows_does() {
    let (authority, dir) = (Authority::new(), tempfile::tempdir().expect("a directory"));
    let path = |name: &str, text: &str| write(dir.path(), name, text).to_str().expect("a path").to_owned();
    let secrets = path("secrets", &format!("{MARK}{SECRET}\r\n"));
    let tokens = path("tokens", &format!("{MARK}{}", tokens::usual().replace('\n', "\r\n")));
    let options = Options::default().env("LEADFOLD_WEBHOOK_SECRET_FILE", secrets).env("LEADFOLD_TOKENS_FILE", tokens);
    let options = with_tls(options, dir.path(), &authority);
    // The certificate and its key too.
    for entry in fs::read_dir(dir.path()).expect("a directory") {
        let path = entry.expect("an entry").path();
        let text = fs::read_to_string(&path).expect("text");
        if text.starts_with("-----BEGIN") {
            fs::write(&path, format!("{MARK}{}", text.replace('\n', "\r\n"))).expect("written");
        }
    }
    let server = Server::start(&options);
    assert_eq!(post(&server, "https", Some(&authority.pem)).await, 200);
    // And what a client reads.
    let (token, ca) = (path("token", &format!("{MARK}{ALL}\r\n")), path("ca", &format!("{MARK}{}", authority.pem)));
    let run = |token: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_leadfold"));
        command.args(["list", "w", "--server", &format!("https://{}", server.grpc), "--token-file", token, "--ca-file", &ca]);
        command.output().expect("it runs")
    };
    let output = run(&token);
    assert!(output.status.success(), "{output:?}");
    let wide: Vec<u8> = MARK.encode_utf16().chain(ALL.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    fs::write(dir.path().join("wide"), wide).expect("written");
    let output = run(dir.path().join("wide").to_str().expect("a path"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("UTF-16"), "{output:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_file_is_said() {
    let dir = tempfile::tempdir().expect("a directory");
    let wide: Vec<u8> = MARK.encode_utf16().chain(SECRET.encode_utf16()).flat_map(u16::to_be_bytes).collect();
    for (content, expected) in [(wide, "UTF-16"), (b"\xff\xff\xff".to_vec(), "not UTF-8"), (Vec::new(), "has no"), (MARK.into(), "has no")]
    {
        let file = dir.path().join("file");
        fs::write(&file, &content).expect("written");
        let file = file.to_str().expect("a path");
        for name in ["LEADFOLD_WEBHOOK_SECRET_FILE", "LEADFOLD_TOKENS_FILE"] {
            let said = Options::default().env(name, file).refused();
            assert!(said.contains("error: --") && said.contains(file) && said.contains(expected), "{name}: {said}");
            assert!(!said.contains("canary"), "{said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sighup_reads_files_again_and_ends_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = write(dir.path(), "secrets", SECRET);
    let mut server = Server::start(&Options::default().env("LEADFOLD_WEBHOOK_SECRET_FILE", file.to_str().expect("a path")));
    let reloads =
        async |result: &str| server.metric(&format!("leadfold_reloads_total{{what=\"webhook secrets\",result=\"{result}\"}}")).await;
    // The file is what it was: it is read again all the same.
    server.signal("HUP");
    eventually("it was read again", async || (reloads("ok").await == 1.0).then_some(())).await;
    assert_eq!(post(&server, "http", None).await, 200);
    // What cannot be used stays out.
    write(dir.path(), "secrets", "short");
    server.signal("HUP");
    eventually("it was read again", async || (reloads("failed").await >= 1.0).then_some(())).await;
    assert_eq!(post(&server, "http", None).await, 200);
    assert!(server.logs().contains("SIGHUP"), "{}", server.logs());
    assert!(server.is_running() && server.terminate().status.success());

    let mut plain = Server::start(&Options::default());
    plain.signal("HUP");
    eventually("it says so", async || plain.logs().contains("SIGHUP").then_some(())).await;
    assert_eq!(post(&plain, "http", None).await, 200);
    assert!(plain.terminate().status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_variable_counts_as_unset() {
    let output = Command::new(env!("CARGO_BIN_EXE_leadfold")).args(["serve", "--help"]).output().expect("it runs");
    let help = String::from_utf8(output.stdout).expect("text");
    let variables: Vec<&str> = help.split("[env: ").skip(1).filter_map(|rest| rest.split(['=', ']']).next()).collect();
    assert!(variables.len() > 30, "{variables:?}");
    let locks = [
        "LEADFOLD_TOKENS_FILE",
        "LEADFOLD_WEBHOOK_SECRET_FILE",
        "LEADFOLD_TLS_CERT",
        "LEADFOLD_TLS_KEY",
        "LEADFOLD_GRPC_CLIENT_CA",
        "LEADFOLD_REDIS_URL",
    ];
    // The flags that the test gives are not looked for in the environment.
    let options = variables
        .into_iter()
        .filter(|name| !locks.contains(name))
        .fold(Options::default(), |options, name| options.env(Box::leak(name.to_owned().into_boxed_str()), ""));
    let server = Server::start(&options);
    assert_eq!(post(&server, "http", None).await, 200);
    // But not where a door would stand open, or leads go elsewhere.
    for name in locks.into_iter().chain(["LEADFOLD_WEBHOOK_SECRET"]) {
        let said = Options::default().env(name, "").refused();
        assert!(said.contains(&format!("error: {name} is empty")), "{said}");
    }
    // A client has nothing to lock.
    let mut command = Command::new(env!("CARGO_BIN_EXE_leadfold"));
    command.args(["list", "w"]).env("LEADFOLD_SERVER", format!("http://{}", server.grpc));
    for name in ["LEADFOLD_TOKEN", "LEADFOLD_TOKEN_FILE", "LEADFOLD_CA_FILE", "LEADFOLD_LIMIT", "LEADFOLD_JSON"] {
        command.env(name, "");
    }
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
}
