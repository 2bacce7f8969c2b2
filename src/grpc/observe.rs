//! What is measured and traced of each call.
//!
//! A unary call is measured as a whole. Of a stream the set-up is, which ends with its headers, and its life apart
//! from that: lives last hours, and would hide how long calls take.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Instant;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use metrics::{Counter, Histogram, counter, histogram};
use opentelemetry::KeyValue;
use prost_reflect::DescriptorPool;
use tonic::{Code, Status};

use crate::api;
use crate::telemetry::metrics::Family;
use crate::telemetry::traces::RequestSpan;

/// The rpcs that there are, by path. Others come under one name: anybody can make up names.
static RPCS: LazyLock<HashMap<String, Rpc>> = LazyLock::new(|| {
    let mut rpcs = HashMap::new();
    let all = [
        api::DESCRIPTORS,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    for descriptors in all {
        // Without its descriptors a service is still served, under the name of the others.
        let Ok(pool) = DescriptorPool::decode(descriptors) else { continue };
        for method in pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()) {
            let name = format!("{}/{}", method.parent_service().full_name(), method.name());
            let shape = match (method.is_client_streaming(), method.is_server_streaming()) {
                (true, _) => Shape::ClientStream,
                (false, true) => Shape::ServerStream,
                (false, false) => Shape::Unary,
            };
            let rpc = Rpc { shape, name: name.clone().leak() };
            rpcs.insert(format!("/{name}"), rpc);
        }
    }
    rpcs
});

/// Whether there is an rpc at this path.
pub(super) fn is_rpc(path: &str) -> bool {
    RPCS.contains_key(path)
}

/// How the rpc at this path takes and gives messages.
pub(super) fn shape(path: &str) -> Shape {
    RPCS.get(path).unwrap_or(&OTHER).shape
}

/// Who sends several messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Nobody.
    Unary,
    /// The server, after one message of the client.
    ServerStream,
    /// The client, and perhaps the server.
    ClientStream,
    /// There is no such rpc.
    Unknown,
}

const OTHER: Rpc = Rpc { name: "_OTHER", shape: Shape::Unknown };

#[derive(Clone, Copy)]
struct Rpc {
    name: &'static str,
    shape: Shape,
}

/// Histograms by rpc and status code.
type Durations = Family<(&'static str, Code), Histogram>;

macro_rules! durations {
    ($metric:literal) => {
        Family::new(|(rpc, code)| histogram!($metric, "rpc_method" => rpc, "rpc_response_status_code" => code_name(code)))
    };
}

static CALLS: LazyLock<Durations> = LazyLock::new(|| durations!("rpc_server_call_duration_seconds"));
static SETUPS: LazyLock<Durations> = LazyLock::new(|| durations!("leadfold_watch_setup_duration_seconds"));
static LIVES: LazyLock<Durations> = LazyLock::new(|| durations!("leadfold_watch_duration_seconds"));
static MESSAGES: LazyLock<Counter> = LazyLock::new(|| counter!("leadfold_watch_messages_total"));

/// axum middleware: lets a call be answered, and watches it.
pub(super) async fn call(request: Request, next: Next) -> Response {
    let began = Instant::now();
    let rpc = RPCS.get(request.uri().path()).copied().unwrap_or(OTHER);
    let attributes = || vec![KeyValue::new("rpc.system.name", "grpc"), KeyValue::new("rpc.method", rpc.name)];
    let span = RequestSpan::begin(request.headers(), || rpc.name.to_owned(), attributes);
    let response = match &span {
        Some(span) => span.cover(next.run(request)).await,
        None => next.run(request).await,
    };
    // A call that fails is answered with headers alone. One that has a message to send has succeeded by then.
    let code = response.headers().get("grpc-status").map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()));
    let durations = if matches!(rpc.shape, Shape::ServerStream | Shape::ClientStream) { &SETUPS } else { &CALLS };
    durations.with((rpc.name, code), |durations| durations.record(began.elapsed()));
    if let Some(span) = span {
        span.end("rpc.response.status_code", code_name(code), is_our_fault(code));
    }
    response
}

/// The life of a watch: it ends when it is dropped, with the last status that it was told of.
pub(super) struct Life {
    rpc: &'static str,
    began: Instant,
    /// A stream that is dropped before it ends was cancelled by its client, or lost with its connection.
    code: Code,
}

impl Life {
    pub(super) fn new(rpc: &'static str) -> Self {
        Self { rpc, began: Instant::now(), code: Code::Cancelled }
    }

    pub(super) fn sent(&mut self) {
        MESSAGES.increment(1);
    }

    pub(super) fn ends(&mut self, status: &Status) {
        self.code = status.code();
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        LIVES.with((self.rpc, self.code), |lives| lives.record(self.began.elapsed()));
    }
}

/// What a trace calls an error of the server: what its caller could not have avoided.
const fn is_our_fault(code: Code) -> bool {
    matches!(code, Code::Unknown | Code::DeadlineExceeded | Code::Unimplemented | Code::Internal | Code::Unavailable | Code::DataLoss)
}

const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
