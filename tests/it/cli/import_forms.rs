//! `import`: what a file is, whatever it is called and however it comes.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::import::{counts, import, message_total, messages, run, stderr, summary, text, write};
use super::{complaint, leadfold};
use crate::support::events::{WORKSPACE, failed, message};
use crate::support::proxies::{Program, ReverseProxy, Traffic};
use crate::support::server::{Options, Server};
use crate::support::{PATIENCE, Setup};

fn gzip(text: &str) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(text.as_bytes()).expect("compressed");
    gzip.finish().expect("compressed")
}

fn utf_16(text: &str, units: impl Fn(u16) -> [u8; 2]) -> Vec<u8> {
    format!("\u{feff}{text}").encode_utf16().flat_map(units).collect()
}

/// Runs a dry run of a file with this content, and returns what would be sent, how many were refused, and what it says.
fn dry_run(dir: &TempDir, name: &str, content: impl AsRef<[u8]>) -> (u64, u64, Output) {
    let path = write(dir, name, content);
    let args = ["import", "--dry-run", "--json", "--lead-id", "l", "--workspace-id", WORKSPACE, text(&path)];
    let output = run(leadfold("", &args));
    let (mut sent, mut refused) = (0, 0);
    if !output.stdout.is_empty() {
        let told = summary(&output);
        sent = told["wouldSend"].as_object().expect("counts").values().filter_map(Value::as_u64).sum();
        refused = told["refused"].as_u64().expect("a number");
    }
    (sent, refused, output)
}

#[test]
fn whatever_is_whole_is_taken() {
    let dir = tempfile::tempdir().expect("a directory");
    let event = message("lead-1", "a1", "2025-11-01T00:00:00Z");
    let log = event["actionLog"].clone();
    let pretty = serde_json::to_string_pretty(&event).expect("JSON");
    let array = serde_json::to_string_pretty(&json!([log, failed("l", "a2", "2025-11-02T00:00:00Z")["actionLog"]])).expect("JSON");
    let array = array.replace("lead-1", "l");
    let cut = |text: &str| text[..text.len() - 9].to_owned();
    for (what, content, sent, refused) in [
        ("one event over many lines", pretty.clone(), 1, 0),
        ("two of them", format!("{pretty}\n{pretty}\n"), 2, 0),
        ("one that is cut off", format!("{pretty}\n{}", cut(&pretty)), 1, 1),
        ("events in an array", json!([event, event]).to_string(), 2, 0),
        ("events after each other on a line", format!("{event}{event}"), 2, 0),
        ("an export", array.clone(), 2, 0),
        ("two joined exports", format!("{array}{array}"), 4, 0),
        ("an export that is cut off", cut(&array), 1, 0),
        ("an export of one, cut off", cut(&json!([log]).to_string()), 0, 0),
        ("action logs one a line", format!("{}\n", log.to_string().replace("lead-1", "l")), 1, 0),
        ("lines, one of them cut off", format!("{event}\n{}\n{event}\n", cut(&event.to_string())), 2, 1),
        ("a heading", format!("exported today\n{event}\n"), 1, 1),
    ] {
        let (would_send, was_refused, output) = dry_run(&dir, "file", &content);
        assert_eq!((would_send, was_refused), (sent, refused), "{what}: {output:?}");
        assert_eq!(output.status.success(), refused == 0 && !what.contains("cut off"), "{what}: {output:?}");
        assert!(stderr(&output).lines().count() <= 3, "{what}: {}", stderr(&output));
        if what.contains("export") && what.contains("cut off") {
            assert!(stderr(&output).contains("the array has no end"), "{what}: {output:?}");
        }
    }
}

#[test]
fn encodings_and_compression_are_told_by_the_content() {
    let dir = tempfile::tempdir().expect("a directory");
    let lines = messages(20);
    let members = [gzip(&messages(10)), vec![0; 1024], gzip(&messages(10)), vec![0; 100_000]].concat();
    for (name, content) in [
        ("gzip-without-a-name", gzip(&lines)),
        ("plain.gz", lines.clone().into_bytes()),
        ("padded.gz", members.clone()),
        ("utf-16le", utf_16(&lines, u16::to_le_bytes)),
        ("utf-16be", utf_16(&lines, u16::to_be_bytes)),
        ("utf-16.gz", gzip_bytes(&utf_16(&lines, u16::to_le_bytes))),
        ("utf-8-with-mark", format!("\u{feff}{lines}").into_bytes()),
        ("zeros-at-the-end", [lines.as_bytes(), &[0; 4096]].concat()),
    ] {
        let (sent, refused, output) = dry_run(&dir, name, content);
        assert!(output.status.success() && (sent, refused) == (20, 0) && stderr(&output).is_empty(), "{name}: {output:?}");
    }
    let (sent, _, output) = dry_run(&dir, "junk.gz", [&members[..], b"junk"].concat());
    assert!(output.status.success() && sent == 20 && stderr(&output).contains("something else that follows it was left out"), "{output:?}");
}

fn gzip_bytes(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(bytes).expect("compressed");
    gzip.finish().expect("compressed")
}

#[test]
fn what_is_something_else_is_refused_in_one_sentence() {
    let dir = tempfile::tempdir().expect("a directory");
    let table = "id,lead,summary\n".to_owned() + &"1,2,3\n".repeat(100);
    for (content, word) in [
        (b"\x28\xb5\x2f\xfd\x04\x00rest".to_vec(), "zstd -dc"),
        (b"PK\x03\x04rest of it".to_vec(), "ZIP"),
        (table.into_bytes(), "CSV"),
        (b"<!DOCTYPE html>\n<html>\n<body>\n".to_vec(), "HTML"),
        (b"\x7fELF\x02\x01\x01\0\0".to_vec(), "not text"),
        (b"hello\nworld\n".to_vec(), "not JSON"),
    ] {
        let path = write(&dir, "file", &content);
        let said = complaint("", &["import", "--dry-run", text(&path)]);
        assert!(said.contains(word) && said.contains("file: "), "{said}");
    }
    // JSON of another kind: the same words are not said for every record.
    let path = write(&dir, "other.ndjson", "{\"some\":\"thing\"}\n".repeat(500));
    let output = run(leadfold("", &["import", "--dry-run", "--json", text(&path)]));
    assert_eq!(summary(&output)["refused"], 500);
    let said = stderr(&output);
    assert!(said.lines().count() == 12 && said.contains("490 more records: event: "), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_read_is_sent_when_reading_fails() {
    let server = Setup::embedded();
    let dir = tempfile::tempdir().expect("a directory");
    let whole = gzip(&messages(300));
    let cut = write(&dir, "cut.gz", &whole[..whole.len() - 9]);
    let other = write(&dir, "other.ndjson", messages(310));
    let output = run(import(&server, &["--json", text(&cut), text(&other)]));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("cut.gz:") && stderr(&output).contains("gzip data is cut off"), "{output:?}");
    assert!(counts(&output)[1] > 250, "what was read of the first file was sent before the second one: {output:?}");
    assert_eq!(message_total(&server).await, 310);
    // One error for all that lack the same thing, after what came before it is in.
    let export = write(&dir, "export.json", "[{\"id\":\"a\",\"type\":\"MESSAGE\",\"status\":\"COMPLETED\"}]");
    let output = run(import(&server, &["--json", text(&other), text(&export), text(&export)]));
    assert!(counts(&output)[1] == 310 && stderr(&output).matches("--lead-id").count() == 1, "{output:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipes_are_opened_once() {
    let server = Setup::embedded();
    let dir = tempfile::tempdir().expect("a directory");
    let pipe = |name: &str| -> PathBuf {
        let path = dir.path().join(name);
        assert!(Command::new("mkfifo").arg(&path).status().expect("mkfifo").success());
        path
    };
    for round in 0..8 {
        let pipes = [pipe(&format!("a{round}")), pipe(&format!("b{round}"))];
        let mut process = import(&server, &["--json", text(&pipes[0]), text(&pipes[1])]);
        let process = process.spawn().expect("it runs");
        let writer = std::thread::spawn({
            let content = if round % 2 == 0 { messages(3).into_bytes() } else { gzip(&messages(3)) };
            let pipes = pipes.clone();
            move || pipes.iter().for_each(|pipe| File::create(pipe).and_then(|mut pipe| pipe.write_all(&content)).expect("written"))
        });
        let output = ended_in_time(process);
        writer.join().expect("the writer");
        assert!(output.status.success() && counts(&output)[..2].iter().sum::<u64>() == 6, "{round}: {output:?}");
    }
    // A shell's process substitution, and stdin by its names.
    let file = write(&dir, "events.gz", gzip(&messages(5)));
    let binary = env!("CARGO_BIN_EXE_leadfold");
    let url = format!("http://{}/webhooks/omniai", server.http);
    for how in [
        format!("{binary} import --json --webhook-url {url} <(zcat {file})", file = text(&file)),
        format!("{binary} import --json --webhook-url {url} /dev/stdin < {}", text(&file)),
        format!("cat {} | {binary} import --json --webhook-url {url} -", text(&file)),
    ] {
        let mut shell = Command::new("bash");
        let process = shell.args(["-c", &how]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("bash");
        let output = ended_in_time(process);
        assert!(output.status.success() && counts(&output)[..2].iter().sum::<u64>() == 5, "{how}: {output:?}");
    }
}

fn ended_in_time(mut process: std::process::Child) -> Output {
    let deadline = std::time::Instant::now() + PATIENCE;
    while process.try_wait().expect("its state").is_none() {
        if std::time::Instant::now() > deadline {
            let _ = process.kill();
            panic!("it does not end: {:?}", process.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    process.wait_with_output().expect("its end")
}

#[test]
fn a_resume_file_that_is_none_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = write(&dir, "events.ndjson", messages(1));
    let pipe = dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    let large = write(&dir, "large", vec![b' '; 100_000]);
    for (resume, word) in [
        (Path::new("/dev/full"), "no plain file"),
        (Path::new("/dev/zero"), "no plain file"),
        (dir.path(), "no plain file"),
        (&pipe, "no plain file"),
        (&large, "too large"),
        (&file, "is not one that leadfold wrote"),
    ] {
        let command = leadfold("", &["import", text(&file), "--resume-file", text(resume)]).spawn().expect("it runs");
        let output = ended_in_time(command);
        assert!(output.status.code() == Some(1) && stderr(&output).contains(word), "{resume:?}: {output:?}");
    }
}

#[test]
fn names_and_words_cannot_move_the_cursor() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = write(&dir, "a\u{1b}[2Jb\u{202e}.ndjson", "nonsense {\n{}\n{\"event\":\"x\u{9b}31m\"}\n");
    for path in [text(&file).to_owned(), text(&file).replace(".ndjson", ".gone")] {
        let output = run(leadfold("", &["import", "--dry-run", &path]));
        let said = stderr(&output);
        assert!(said.contains("\\u{1b}[2Jb\\u{202e}") && !said.contains(['\u{1b}', '\u{202e}', '\u{9b}']), "{said:?}");
    }
}

#[test]
fn a_dry_run_knows_the_largest_body() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut event = message("l", "a1", "2025-11-01T00:00:00Z");
    event["actionLog"]["messages"][0]["body"] = json!("x".repeat(1 << 20));
    let (sent, refused, output) = dry_run(&dir, "large.ndjson", format!("{event}\n{}", messages(1)));
    assert!((sent, refused) == (1, 1) && stderr(&output).contains("--max-body-bytes"), "{output:?}");
}

/// Answers every request with the same answer, and counts them.
async fn answering(answer: String) -> (String, tokio::task::JoinHandle<()>, std::sync::Arc<std::sync::atomic::AtomicU64>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address").to_string();
    let count = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = std::sync::Arc::clone(&count);
    let task = tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.expect("a connection");
            let mut request = vec![0; 65536];
            let _ = socket.read(&mut request).await;
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let _ = socket.write_all(answer.as_bytes()).await;
        }
    });
    (address, task, count)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wrong_door_ends_it_with_one_sentence() {
    let server = Server::start(&Options::default());
    let dir = tempfile::tempdir().expect("a directory");
    let file = write(&dir, "events.ndjson", messages(50));
    let page = |status: &str| {
        format!("HTTP/1.1 {status}\r\ncontent-type: text/html\r\ncontent-length: 13\r\nconnection: close\r\n\r\n<h1>Oops</h1>")
    };
    let mut doors =
        vec![format!("{}/webhooks/omniai", server.grpc), format!("{}/webhooks/omniai", server.admin), format!("{}/elsewhere", server.http)];
    for status in ["404 Not Found", "405 Method Not Allowed", "400 Bad Request", "301 Moved", "415 Unsupported"] {
        doors.push(format!("{}/webhooks/omniai", answering(page(status)).await.0));
    }
    for door in doors {
        let url = format!("http://{door}");
        let output = ended_in_time(leadfold("", &["import", text(&file), "--webhook-url", &url]).spawn().expect("it runs"));
        let said = stderr(&output);
        assert!(output.status.code() == Some(1) && said.lines().count() == 1, "{door}: {said}");
        assert!(said.contains("is not the address of leadfold's webhook") && said.contains("--webhook-url"), "{door}: {said}");
    }
    // https to a port that speaks none: not tried for two minutes.
    let url = format!("https://{}/webhooks/omniai", server.http);
    let output = ended_in_time(leadfold("", &["import", text(&file), "--webhook-url", &url]).spawn().expect("it runs"));
    assert!(stderr(&output).contains("does not speak TLS"), "{output:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_to_come_back_is_waited_for() {
    let soon = chrono::Utc::now() + chrono::TimeDelta::seconds(60);
    let when = soon.format("%a, %d %b %Y %H:%M:%S GMT");
    let answer = format!("HTTP/1.1 503 Service Unavailable\r\nretry-after: {when}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let (address, _task, count) = answering(answer).await;
    let dir = tempfile::tempdir().expect("a directory");
    let file = write(&dir, "events.ndjson", messages(1));
    let url = format!("http://{address}/webhooks/omniai");
    let args = ["import", text(&file), "--webhook-url", &url, "--give-up-seconds", "3"];
    let output = ended_in_time(leadfold("", &args).spawn().expect("it runs"));
    assert!(stderr(&output).contains("has taken nothing for"), "{output:?}");
    let calls = count.load(std::sync::atomic::Ordering::Relaxed);
    assert!(calls <= 2, "it came back {calls} times before the time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_through_a_proxy_outlives_the_server() {
    let data = tempfile::tempdir().expect("a directory");
    let dir = tempfile::tempdir().expect("a directory");
    let options = Options::default().data_dir(data.path()).http(&format!("127.0.0.1:{}", crate::support::redis::free_port()));
    let server = Server::start(&options);
    let Some(proxy) = ReverseProxy::start(Program::Nginx, Traffic::Http1, &server.http) else { return };
    let file = write(&dir, "events.ndjson", messages(2000));
    let url = format!("http://{}/webhooks/omniai", proxy.address);
    let going = leadfold("", &["import", "--json", "--concurrency", "2", "--webhook-url", &url, text(&file)]).spawn().expect("it runs");
    server.lead_eventually("lead-0").await;
    drop(server);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let server = Server::start(&options);
    let output = going.wait_with_output().expect("its end");
    let [applied, duplicate, ..] = counts(&output);
    assert!(output.status.success() && applied + duplicate == 2000, "a page of the proxy is no refusal: {output:?}");
    assert_eq!(message_total(&server).await, 2000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_that_is_closed_keeps_the_position() {
    let server = Setup::embedded();
    let dir = tempfile::tempdir().expect("a directory");
    let file = write(&dir, "events.ndjson", messages(4000));
    let resume = dir.path().join("resume.json");
    let args = ["--json", "--concurrency", "1", "--resume-file", text(&resume), text(&file)];
    let interrupted = import(&server, &args).spawn().expect("it runs");
    server.lead_eventually("lead-5").await;
    assert!(Command::new("kill").args(["-HUP", &interrupted.id().to_string()]).status().expect("kill").success());
    let output = ended_in_time(interrupted);
    assert!(output.status.code() == Some(1) && stderr(&output).contains("same command again"), "{output:?}");
    let kept: Value = serde_json::from_slice(&std::fs::read(&resume).expect("the file")).expect("JSON");
    assert!(kept["records"].as_u64().is_some_and(|records| records > 0), "{kept}");
}
