//! The clients, and what they say they saw.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use tonic::Code;

use super::fronts::Opened;
use super::servers::State;
use super::table::{Api, Case};
use crate::grpcurl::Killed;
use crate::support::proxies::Traffic;

/// No run of a client takes this long, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(600);

/// How often the same call may find a place at a server that is full.
pub const MOST_TIMES_LET_IN: usize = 5;

/// A client of other people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    Grpcio,
    Grpcurl,
    GrpcJs,
    ConnectGrpc,
    ConnectWeb,
    ConnectWebHttp2,
    CurlGrpc,
    CurlWeb,
    CurlWebHttp2,
    /// Where it is installed: `.ci/nightly` does that.
    Ruby,
}

impl Client {
    /// Those that are always there.
    pub const ALL: [Self; 9] = [
        Self::Grpcio,
        Self::Grpcurl,
        Self::GrpcJs,
        Self::ConnectGrpc,
        Self::ConnectWeb,
        Self::ConnectWebHttp2,
        Self::CurlGrpc,
        Self::CurlWeb,
        Self::CurlWebHttp2,
    ];

    /// Whether Ruby and its gRPC are installed.
    pub fn has_ruby() -> bool {
        Command::new("ruby").args(["-e", "require 'grpc'"]).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }

    /// What a proxy in front of it has to pass on.
    pub fn traffic(self) -> Traffic {
        match self {
            Self::ConnectWeb | Self::CurlWeb => Traffic::Http1,
            _ => Traffic::Grpc,
        }
    }

    /// Whether it is able to make a call as the case wants it.
    pub fn can_make(self, case: &Case) -> bool {
        let cancels = !matches!(self, Self::Grpcurl | Self::CurlGrpc | Self::CurlWeb | Self::CurlWebHttp2);
        let compresses = self != Self::Grpcurl;
        let sends_any_bytes = !matches!(self, Self::Grpcurl | Self::ConnectGrpc | Self::ConnectWeb | Self::ConnectWebHttp2);
        // curl 7.88 closes a connection at once when it is told to open no more streams on it.
        let waits_for_trailers =
            !matches!(self, Self::CurlGrpc | Self::CurlWebHttp2) || !matches!(case.server, State::Aged | State::Draining);
        // Ruby's grpc 1.51 breaks off with an error of its own when the deadline of a stream passes before anything has come.
        let ends_silent_streams = self != Self::Ruby || case.server != State::Slow || !case.is_stream;
        let has_all = ends_silent_streams && (cancels || case.cancel_after.is_none()) && (compresses || !case.compress);
        has_all && (sends_any_bytes || case.json.is_some()) && waits_for_trailers
    }

    fn command(self, dir: &Path) -> Command {
        let script = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name);
        let python = |name: &str, arguments: &[&str]| {
            let mut command = Command::new(dir.join("bin/python"));
            command.arg(script(name)).args(arguments);
            command
        };
        let node = |name: &str, arguments: &[&str]| {
            let mut command = Command::new("node");
            command.arg(script(name)).arg(dir).args(arguments);
            command
        };
        match self {
            Self::Grpcio => python("calls_grpcio.py", &[]),
            Self::Grpcurl => python("calls_grpcurl.py", &[&dir.join("grpcurl").display().to_string()]),
            Self::GrpcJs => node("calls_grpc_js.mjs", &[]),
            Self::ConnectGrpc => node("calls_connect.mjs", &["grpc"]),
            Self::ConnectWeb => node("calls_connect.mjs", &["grpc-web"]),
            Self::ConnectWebHttp2 => node("calls_connect.mjs", &["grpc-web-h2"]),
            Self::CurlGrpc => python("calls_curl.py", &["grpc"]),
            Self::CurlWeb => python("calls_curl.py", &["grpc-web"]),
            Self::CurlWebHttp2 => python("calls_curl.py", &["grpc-web-h2"]),
            Self::Ruby => {
                let mut command = Command::new("ruby");
                command.arg(script("calls_ruby.rb"));
                command
            }
        }
    }
}

/// Makes the calls, and returns what should have been different.
pub async fn run(client: Client, dir: &Path, cases: &[Case], front: &Opened) -> Vec<String> {
    let mut failures = run_once(client, dir, cases, front).await;
    for _ in 0..MOST_TIMES_LET_IN {
        let (let_in, others): (Vec<_>, Vec<_>) = failures.into_iter().partition(|failure| failure.was_let_in);
        failures = others;
        if let_in.is_empty() {
            break;
        }
        let again: Vec<_> = let_in.into_iter().map(|failure| failure.case).collect();
        failures.extend(run_once(client, dir, &again, front).await);
    }
    failures.into_iter().map(|Failure { case, told, .. }| format!("{}: {told}", case.name())).collect()
}

/// A call that ended wrongly.
struct Failure {
    case: Case,
    told: String,
    /// It came to a server that is full in the instant between two of the calls that fill it: once in a hundred calls on a
    /// busy machine.
    was_let_in: bool,
}

async fn run_once(client: Client, dir: &Path, cases: &[Case], front: &Opened) -> Vec<Failure> {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let api = Api::get();
    let calls = cases.iter().map(|case| {
        json!({
            "address": front.addresses[&case.server],
            "ca": front.ca,
            "rpc": case.rpc,
            "stream": case.is_stream,
            "json": case.json,
            "bytes": BASE64.encode(&case.bytes),
            "authorization": case.authorization,
            "seconds": case.seconds,
            "gzip": case.gzip,
            "compress": case.compress,
            "cancelAfter": case.cancel_after,
        })
    });
    let calls = json!({"protoset": api.write(folder.path()), "calls": Value::from_iter(calls)});
    let file: PathBuf = folder.path().join("calls.json");
    std::fs::write(&file, calls.to_string()).expect("a file");
    let mut command = client.command(dir);
    command.arg(file);
    let (outcomes, stderr) = tokio::task::spawn_blocking(move || outcomes(command)).await.expect("it does not panic");
    let failure = |(case, outcome): (&Case, &Value)| {
        let told = format!("{}: {outcome}", fault(&api, case, outcome)?);
        let code = outcome["code"].as_i64().and_then(|code| i32::try_from(code).ok()).map(Code::from_i32);
        let was_let_in = case.server == State::Full && matches!(code, Some(Code::Ok | Code::NotFound | Code::DeadlineExceeded));
        Some(Failure { case: case.clone(), told, was_let_in })
    };
    let mut failures: Vec<_> = cases.iter().zip(&outcomes).filter_map(failure).collect();
    if let Some(case) = cases.get(outcomes.len()) {
        failures.push(Failure { case: case.clone(), told: format!("no outcome: {stderr}"), was_let_in: false });
    }
    failures
}

/// What a script prints, a line a call, and what it complains of. It is killed when it takes too long.
fn outcomes(mut command: Command) -> (Vec<Value>, String) {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = Killed(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")));
    let (stdout, mut stderr) = (process.0.stdout.take().expect("its stdout"), process.0.stderr.take().expect("its stderr"));
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = sender.send(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}")));
        }
    });
    let complaints = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = stderr.read_to_string(&mut text);
        text
    });
    let (mut outcomes, deadline) = (Vec::new(), Instant::now() + PATIENCE);
    while let Ok(outcome) = receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        outcomes.push(outcome);
    }
    drop(process);
    (outcomes, complaints.join().expect("text"))
}

/// What is wrong with an outcome.
fn fault(api: &Api, case: &Case, outcome: &Value) -> Option<String> {
    let expected = &case.expected;
    let code = outcome["code"].as_i64().unwrap_or(-1);
    if code != i64::from(i32::from(expected.code)) {
        return Some(format!("the code is {:?} ({code})", i32::try_from(code).map(Code::from_i32)));
    }
    // tonic has no words for an rpc that it does not know.
    let has_words = !matches!(expected.code, Code::Ok | Code::Unimplemented);
    if has_words && outcome["message"].as_str().is_none_or(str::is_empty) {
        return Some("there is no message".to_owned());
    }
    let details = details(api, &outcome["details"]);
    let name = |detail: &Value| detail["@type"].as_str().unwrap_or("").rsplit('.').next().unwrap_or("").to_owned();
    let types: BTreeSet<_> = details.iter().map(name).collect();
    if types != expected.details {
        return Some(format!("the details are {types:?} instead of {:?}", expected.details));
    }
    let find = |wanted: &str| details.iter().find(|detail| name(detail) == wanted);
    if expected.reason.as_deref() != find("ErrorInfo").and_then(|info| info["reason"].as_str()) {
        return Some(format!("the reason is not {:?}", expected.reason));
    }
    if let Some(retry) = find("RetryInfo") {
        let seconds = retry["retryDelay"].as_str().and_then(|text| text.strip_suffix('s')?.parse::<f64>().ok());
        if !seconds.is_some_and(|seconds| (0.05..60.0).contains(&seconds)) {
            return Some(format!("no time to come back: {retry}"));
        }
    }
    let text = Value::from_iter(details.iter().cloned()).to_string();
    if expected.contains.as_ref().is_some_and(|part| !text.contains(part)) {
        return Some(format!("the details do not have {:?}", expected.contains));
    }
    messages_fault(api, case, &outcome["messages"])
}

fn messages_fault(api: &Api, case: &Case, messages: &Value) -> Option<String> {
    let expected = &case.expected;
    let messages: Vec<Value> = messages
        .as_array()
        .expect("a list")
        .iter()
        .map(|message| match message.as_str() {
            Some(bytes) => api.message(&case.rpc, &BASE64.decode(bytes).expect("base64")),
            None => message.clone(),
        })
        .collect();
    let answer = messages.first().map(Value::to_string).unwrap_or_default();
    if expected.answer.as_ref().is_some_and(|part| !answer.contains(part)) {
        return Some(format!("the first message does not have {:?}: {answer}", expected.answer));
    }
    if expected.messages.is_empty() {
        // One that the server ends may have begun.
        let most = usize::from(expected.code == Code::Ok);
        return (!case.is_stream && messages.len() != most).then(|| format!("{} messages", messages.len()));
    }
    let kinds: Vec<_> =
        messages.iter().map(|message| message.as_object().and_then(|fields| fields.keys().next().cloned()).unwrap_or_default()).collect();
    // What had come before it was cancelled may still be told.
    let most = if case.cancel_after.is_some() { expected.messages.len() } else { kinds.len() };
    let kinds = &kinds[..kinds.len().min(most)];
    let (first, more) = kinds.split_at(kinds.len().min(expected.messages.len()));
    (first != expected.messages || more.iter().any(|kind| kind != "heartbeat"))
        .then(|| format!("the messages are {kinds:?} instead of {:?}", expected.messages))
}

/// The details of a status as JSON, in whichever form a client tells them.
fn details(api: &Api, told: &Value) -> Vec<Value> {
    if let Some(status) = told.as_str() {
        let status = BASE64.decode(status).expect("base64");
        return api.any("google.rpc.Status", &status)["details"].as_array().cloned().unwrap_or_default();
    }
    let detail = |detail: &Value| match detail["type"].as_str() {
        Some(name) => api.any(name, &BASE64.decode(detail["value"].as_str().expect("a value")).expect("base64")),
        None => detail.clone(),
    };
    told.as_array().expect("details").iter().map(detail).collect()
}
