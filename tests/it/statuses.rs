//! Statuses as clients of other people see them: each arrives, with a deadline and without one.
//!
//! tonic's own client forgives what others do not, so the frames are looked at too.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::{HeaderMap, Request};
use leadfold::api::{DeleteLeadRequest, GetLeadRequest, WatchLeadRequest};
use prost::Message as _;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tonic::Code;

use crate::grpcurl::clients;
use crate::support::events::{SAMPLE_TIME, message};
use crate::support::redis::RedisServer;
use crate::support::server::{Options, Server};
use crate::support::tokens::{ALL, ONE, client, with_tokens};
use crate::support::{PATIENCE, fresh_id};

const SERVICE: &str = "leadfold.v1.LeadService";
/// No call of these tests takes this long, so a deadline this far off must not change anything.
const FAR_DEADLINE: Duration = Duration::from_secs(30);
/// Shorter than a watch, which has no end.
const SHORT_DEADLINE: Duration = Duration::from_millis(700);

/// A call, and the status that it must end with.
struct Call {
    address: String,
    method: &'static str,
    /// The request as JSON, and encoded.
    request: (Value, Vec<u8>),
    is_stream: bool,
    token: Option<&'static str>,
    deadline: Option<Duration>,
    expected: Code,
    /// Part of the error details.
    detail: &'static str,
}

impl Call {
    fn path(&self) -> String {
        format!("/{}", self.method)
    }

    fn name(&self) -> String {
        format!("{} with deadline {:?} must be {:?}", self.method, self.deadline, self.expected)
    }

    /// As the scripts in `tests/clients` take it.
    fn to_json(&self) -> Value {
        json!({
            "address": self.address,
            "path": self.path(),
            "request": BASE64.encode(&self.request.1),
            "stream": self.is_stream,
            "token": self.token,
            "seconds": self.deadline.map(|deadline| deadline.as_secs_f64()),
        })
    }
}

/// Servers in such a state that, together, they answer with every status.
struct Servers {
    /// Asks for tokens, and has no watch left.
    guarded: Server,
    /// Its Redis has gone.
    without_store: Server,
    open: Server,
    known_lead: String,
    _last_watch: tonic::Streaming<leadfold::api::WatchLeadResponse>,
    _redis: RedisServer,
    _dir: TempDir,
}

impl Servers {
    async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let guarded = Server::start(&with_tokens(Options::default(), dir.path()).env("LEADFOLD_MAX_WATCHES", "1"));
        let mut client = client(&guarded, ALL);
        let last_watch = client.watch_lead(WatchLeadRequest { lead_id: "l".into(), ..Default::default() }).await;
        let last_watch = last_watch.expect("the only watch").into_inner();
        let mut redis = RedisServer::start();
        let without_store = Server::start(&Options::on(&redis));
        redis.kill();
        let open = Server::start(&Options::default());
        let known_lead = fresh_id();
        open.apply(&message(&known_lead, "a1", SAMPLE_TIME)).await;
        Self { guarded, without_store, open, known_lead, _last_watch: last_watch, _redis: redis, _dir: dir }
    }

    /// Every status, unary and streaming, with a deadline and without.
    fn calls(&self) -> Vec<Call> {
        let get = |lead_id: &str| (json!({"leadId": lead_id}), GetLeadRequest { lead_id: lead_id.to_owned() }.encode_to_vec());
        let delete = (json!({"leadId": "l"}), DeleteLeadRequest { lead_id: "l".to_owned() }.encode_to_vec());
        let watch = |lead_id: &str| {
            (json!({"leadId": lead_id}), WatchLeadRequest { lead_id: lead_id.to_owned(), ..Default::default() }.encode_to_vec())
        };
        let (guarded, without_store, open) = (&self.guarded, &self.without_store, &self.open);
        let cases = [
            (open, "GetLead", get(&self.known_lead), None, Code::Ok, ""),
            (open, "GetLead", get("nope"), None, Code::NotFound, "LEAD_NOT_FOUND"),
            (open, "GetLead", get(""), None, Code::InvalidArgument, "INVALID_FIELD"),
            (open, "WatchLead", watch(""), None, Code::InvalidArgument, "INVALID_FIELD"),
            (open, "NoSuchCall", get("l"), None, Code::Unimplemented, ""),
            (guarded, "GetLead", get("l"), None, Code::Unauthenticated, "TOKEN_MISSING"),
            (guarded, "WatchLead", watch("l"), Some("wrong-token-of-no-use-at-all"), Code::Unauthenticated, "TOKEN_UNKNOWN"),
            (guarded, "DeleteLead", delete, Some(ONE), Code::PermissionDenied, "TOKEN_IS_READ_ONLY"),
            (guarded, "WatchLead", watch("l"), Some(ALL), Code::ResourceExhausted, "LIMIT_REACHED"),
            (without_store, "GetLead", get("l"), None, Code::Unavailable, "google.rpc.RetryInfo"),
            (without_store, "WatchLead", watch("l"), None, Code::Unavailable, "google.rpc.RetryInfo"),
        ];
        let mut calls = Vec::new();
        for (server, method, request, token, expected, detail) in cases {
            let method: &'static str = format!("{SERVICE}/{method}").leak();
            let is_stream = method.ends_with("WatchLead");
            for deadline in [None, Some(FAR_DEADLINE)] {
                let (address, request) = (server.grpc.clone(), request.clone());
                calls.push(Call { address, method, request, is_stream, token, deadline, expected, detail });
            }
        }
        calls
    }

    /// A watch that its deadline ends.
    fn watch_with_an_end(&self) -> Call {
        Call {
            address: self.open.grpc.clone(),
            method: "leadfold.v1.LeadService/WatchLead",
            request: (json!({"leadId": "l"}), WatchLeadRequest { lead_id: "l".into(), ..Default::default() }.encode_to_vec()),
            is_stream: true,
            token: None,
            deadline: Some(SHORT_DEADLINE),
            expected: Code::DeadlineExceeded,
            detail: "",
        }
    }
}

/// What comes back on an HTTP/2 stream.
struct Answer {
    headers: HeaderMap,
    /// The frame of the headers was the last one.
    ended_with_headers: bool,
    data: Vec<u8>,
    data_frames: usize,
    trailers: Option<HeaderMap>,
}

/// Makes a call as bytes on a connection of its own.
async fn raw(call: &Call, content_type: &str, more: &[(&'static str, &'static str)]) -> Answer {
    let exchange = async {
        let tcp = TcpStream::connect(&call.address).await.expect("a connection");
        let (mut sender, connection) = h2::client::handshake(tcp).await.expect("HTTP/2");
        let mut request = Request::post(format!("http://{}{}", call.address, call.path())).header("content-type", content_type);
        request = request.header("te", "trailers");
        if let Some(token) = call.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(deadline) = call.deadline {
            request = request.header("grpc-timeout", format!("{}m", deadline.as_millis()));
        }
        for (name, value) in more {
            request = request.header(*name, *value);
        }
        let is_compressed = more.iter().any(|(name, _)| *name == "grpc-encoding");
        let length = u32::try_from(call.request.1.len()).expect("a short message").to_be_bytes();
        let mut body = [&[u8::from(is_compressed)], &length[..], &call.request.1].concat();
        if content_type.contains("-text") {
            body = BASE64.encode(body).into_bytes();
        }
        let (response, mut stream) = sender.send_request(request.body(()).expect("a request"), false).expect("it is sent");
        stream.send_data(Bytes::from(body), true).expect("the message is sent");
        // Only now, so that the whole request goes at once: what is answered before it has come is another matter.
        tokio::spawn(connection);
        let response = response.await.expect("a response");
        assert_eq!(response.status(), 200, "{}", call.name());
        let (parts, mut body) = response.into_parts();
        let mut answer =
            Answer { headers: parts.headers, ended_with_headers: body.is_end_stream(), data: Vec::new(), data_frames: 0, trailers: None };
        while let Some(chunk) = body.data().await {
            let chunk = chunk.expect("data");
            body.flow_control().release_capacity(chunk.len()).expect("a window");
            answer.data.extend_from_slice(&chunk);
            answer.data_frames += 1;
        }
        answer.trailers = body.trailers().await.expect("trailers, or none");
        answer
    };
    tokio::time::timeout(PATIENCE, exchange).await.unwrap_or_else(|_| panic!("no answer in time: {}", call.name()))
}

fn assert_trailers_only(answer: &Answer, expected: Code, what: &str) {
    assert_eq!(answer.headers.get("grpc-status").map(|code| Code::from_bytes(code.as_bytes())), Some(expected), "{what}");
    assert!(answer.ended_with_headers, "the headers must end the stream: {what}");
    assert!(answer.data_frames == 0 && answer.trailers.is_none(), "nothing may follow the headers: {what}");
}

/// `Trailers-Only` of gRPC's specification: one HEADERS frame that ends the stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_without_a_message_is_one_frame() {
    let servers = Servers::start().await;
    let types = ["application/grpc", "application/grpc+proto", "application/grpc-web+proto", "application/grpc-web-text"];
    for call in servers.calls().into_iter().filter(|call| call.expected != Code::Ok) {
        for content_type in types {
            let answer = raw(&call, content_type, &[("grpc-accept-encoding", "gzip,identity")]).await;
            assert_trailers_only(&answer, call.expected, &format!("{} ({content_type})", call.name()));
            let details = answer.headers.get("grpc-status-details-bin").map(|details| details.as_bytes().to_vec()).unwrap_or_default();
            assert_eq!(details.is_empty(), call.detail.is_empty(), "{}", call.name());
        }
        // Compressed messages are not taken, which is a status too. Only a call that is let in is read.
        if call.method.ends_with("GetLead") && call.token.is_none() && call.address == servers.open.grpc {
            let answer = raw(&call, "application/grpc", &[("grpc-encoding", "gzip")]).await;
            assert_trailers_only(&answer, Code::Unimplemented, "a compressed request");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_that_passes_before_the_answer_is_one_frame() {
    let redis = RedisServer::start();
    let server = Server::start(&Options::on(&redis));
    for content_type in ["application/grpc", "application/grpc-web+proto"] {
        let () = redis::cmd("CLIENT").arg("PAUSE").arg(900).query(&mut redis.connection()).expect("Redis pauses");
        let request = (json!({}), GetLeadRequest { lead_id: "l".to_owned() }.encode_to_vec());
        let (address, method) = (server.grpc.clone(), "leadfold.v1.LeadService/GetLead");
        let (deadline, expected) = (Some(Duration::from_millis(200)), Code::DeadlineExceeded);
        let call = Call { address, method, request, is_stream: false, token: None, deadline, expected, detail: "" };
        assert_trailers_only(&raw(&call, content_type, &[]).await, expected, content_type);
    }
}

/// An answer that has a message, or a stream that has begun, ends with trailers; gRPC-Web has them in its body.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_followed_by_a_status() {
    let servers = Servers::start().await;
    let calls = servers.calls().into_iter().filter(|call| call.expected == Code::Ok).chain([servers.watch_with_an_end()]);
    for call in calls {
        let answer = raw(&call, "application/grpc", &[]).await;
        assert!(!answer.ended_with_headers && !answer.data.is_empty() && !answer.headers.contains_key("grpc-status"), "{}", call.name());
        let trailers = answer.trailers.unwrap_or_else(|| panic!("trailers: {}", call.name()));
        assert_eq!(Code::from_bytes(trailers["grpc-status"].as_bytes()), call.expected, "{}", call.name());

        let answer = raw(&call, "application/grpc-web+proto", &[]).await;
        let status = format!("grpc-status:{}\r\n", i32::from(call.expected));
        assert!(String::from_utf8_lossy(&answer.data).contains(&status), "{}: {:?}", call.name(), answer.data);
        assert!(answer.trailers.is_none(), "{}", call.name());
    }
}

/// Checks what a script of `tests/clients` says of every call.
fn check(calls: &[Call], output: &str) {
    let outcomes: Vec<Value> = output.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    assert_eq!(outcomes.len(), calls.len(), "{output}");
    for (call, outcome) in calls.iter().zip(outcomes) {
        assert_eq!(outcome["code"], i32::from(call.expected), "{}: {outcome}", call.name());
        let details = BASE64.decode(outcome["details"].as_str().expect("details")).expect("base64");
        assert!(String::from_utf8_lossy(&details).contains(call.detail), "{} with {}: {outcome}", call.name(), call.detail);
    }
}

fn output(mut command: Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

async fn check_with_script(mut command: Command) {
    let servers = Servers::start().await;
    let mut calls = servers.calls();
    calls.push(servers.watch_with_an_end());
    command.arg(Value::from_iter(calls.iter().map(Call::to_json)).to_string());
    check(&calls, &output(command));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpcio_sees_every_status() {
    let Some(clients) = clients() else { return };
    let mut command = Command::new(clients.join("bin/python"));
    command.arg(root("tests/clients/statuses_grpcio.py"));
    check_with_script(command).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_js_sees_every_status() {
    let folder = root("examples/typescript");
    if !folder.join("node_modules/@grpc/grpc-js").exists() {
        eprintln!("SKIPPED: examples/typescript has no node_modules: `npm install` there prepares it, as .ci/run does");
        return;
    }
    let mut command = Command::new("node");
    command.arg(root("tests/clients/statuses_grpc_js.mjs")).arg(folder);
    check_with_script(command).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpcurl_sees_every_status() {
    let Some(clients) = clients() else { return };
    let servers = Servers::start().await;
    // grpcurl calls only what it finds described: a copy of the API with a call that the server does not have.
    let protos = tempfile::tempdir().expect("a temporary directory");
    let folder = protos.path().join("leadfold/v1");
    std::fs::create_dir_all(&folder).expect("a folder");
    for entry in std::fs::read_dir(root("proto/leadfold/v1")).expect("the API") {
        let entry = entry.expect("a file");
        let text = std::fs::read_to_string(entry.path()).expect("text");
        let more = "service LeadService {\n  rpc NoSuchCall(GetLeadRequest) returns (GetLeadResponse);\n";
        std::fs::write(folder.join(entry.file_name()), text.replace("service LeadService {\n", more)).expect("a copy");
    }
    let mut calls = servers.calls();
    calls.push(servers.watch_with_an_end());
    for call in calls {
        let mut command = Command::new(clients.join("grpcurl"));
        command.args(["-plaintext", "-proto", "leadfold/v1/lead_service.proto", "-import-path"]).arg(protos.path());
        if let Some(deadline) = call.deadline {
            command.args(["-max-time", &deadline.as_secs_f64().to_string()]);
        }
        if let Some(token) = call.token {
            command.args(["-H", &format!("authorization: Bearer {token}")]);
        }
        command.args(["-d", &call.request.0.to_string(), &call.address, call.method]);
        let output = command.output().expect("grpcurl can be started");
        let told = String::from_utf8_lossy(&output.stderr);
        // grpcurl exits with 64 and the code.
        let code = output.status.code().map(|code| if code == 0 { 0 } else { code - 64 });
        assert_eq!(code, Some(i32::from(call.expected)), "{}: {told}", call.name());
        // What is in the details it shows in base64.
        let detail = if call.detail.is_empty() || call.detail.contains('.') { call.detail } else { "google.rpc.ErrorInfo" };
        assert!(told.contains(detail), "{} with {detail}: {told}", call.name());
    }
}
