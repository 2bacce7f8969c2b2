//! Traces: spans arrive at a real collector under the caller's trace, and a dead collector costs nothing.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use leadfold::api::GetLeadRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::trace::v1::Span;
use tonic::{Request, Response, Status};

use crate::support::events::{SAMPLE_TIME, message};
use crate::support::server::{Options, Server, WEBHOOK};
use crate::support::watching::LeadWatch;
use crate::support::{PATIENCE, eventually, fresh_id};

const TRACE: [&str; 2] = ["4bf92f3577b34da6a3ce929d0e0e4736", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"];
const PARENT: &str = "00f067aa0ba902b7";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_arrive_under_the_trace_of_whoever_called() {
    let collector = Collector::start().await;
    let mut server = Server::start(&tracing_to(&collector.address).env("LEADFOLD_LOG_FORMAT", "json"));
    let lead_id = fresh_id();
    let event = message(&lead_id, "a1", SAMPLE_TIME).to_string();
    assert_eq!(post(&server, event, &format!("00-{}-{PARENT}-01", TRACE[0])).await, 200);
    assert_eq!(post(&server, "{}".to_owned(), &format!("00-{}-{PARENT}-01", TRACE[0])).await, 400);
    let mut request = Request::new(GetLeadRequest { lead_id: fresh_id() });
    let context = format!("00-{}-{PARENT}-01", TRACE[1]).parse().expect("metadata");
    request.metadata_mut().insert("traceparent", context);
    server.client().get_lead(request).await.expect_err("there is no such lead");
    // A trace that begins here, and does not wait for the end of the stream.
    let mut watch = LeadWatch::open(&server, &lead_id, 0).await;
    watch.next().await;

    let spans = collector.wait_for(4).await;
    let of = |name: &str| spans.iter().filter(|span| span.name == name).collect::<Vec<_>>();
    let webhooks = of("POST /webhooks/omniai");
    assert_eq!(webhooks.len(), 2, "{spans:#?}");
    for (span, status) in webhooks.iter().zip([200, 400]) {
        assert_eq!((hex(&span.trace_id), hex(&span.parent_span_id)), (TRACE[0].to_owned(), PARENT.to_owned()));
        assert_eq!((attribute(span, "http.response.status_code"), span.kind), (status.to_string(), 2), "a server's span");
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
    }
    let [call] = of("leadfold.v1.LeadService/GetLead")[..] else { panic!("{spans:#?}") };
    assert_eq!((hex(&call.trace_id), attribute(call, "rpc.response.status_code")), (TRACE[1].to_owned(), "NOT_FOUND".to_owned()));
    let [stream] = of("leadfold.v1.LeadService/WatchLead")[..] else { panic!("{spans:#?}") };
    assert!(stream.parent_span_id.is_empty() && stream.trace_id.len() == 16, "{stream:?}");
    let exported = "leadfold_spans_total{result=\"exported\"}";
    eventually("they are counted", async || server.admin("/metrics").await.1.contains(exported).then_some(())).await;

    // The line about the refusal names the trace; there is one line for it.
    let logs = eventually("the line", async || Some(server.logs()).filter(|logs| logs.contains("webhook refused"))).await;
    let lines: Vec<&str> = logs.lines().filter(|line| line.contains("webhook refused")).collect();
    assert!(lines.len() == 1 && lines[0].contains(TRACE[0]), "{logs}");
    let line: serde_json::Value = serde_json::from_str(lines[0]).expect("a line of JSON");
    assert_eq!(line["span"]["trace_id"], TRACE[0], "{line}");

    // What waits when it ends is not lost.
    drop(watch);
    assert_eq!(post(&server, "{}".to_owned(), "").await, 400);
    assert!(server.terminate().status.success());
    assert_eq!(collector.wait_for(5).await.len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_callers_decision_and_the_ratio_are_respected() {
    let collector = Collector::start().await;
    let mut server = Server::start(&tracing_to(&collector.address).env("LEADFOLD_TRACE_SAMPLE_RATIO", "0"));
    let unsampled = format!("00-{}-{PARENT}-00", TRACE[0]);
    for context in ["", unsampled.as_str(), "00-nonsense-01"] {
        assert_eq!(post(&server, "{}".to_owned(), context).await, 400);
    }
    assert_eq!(post(&server, "{}".to_owned(), &format!("00-{}-{PARENT}-01", TRACE[1])).await, 400);
    assert!(server.terminate().status.success());
    let spans = collector.wait_for(1).await;
    assert_eq!(spans.iter().map(|span| hex(&span.trace_id)).collect::<Vec<_>>(), [TRACE[1]], "the one that was sampled elsewhere");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_dead_or_hangs_costs_nothing() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let dead = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    for address in [dead, silent.local_addr().expect("its address")] {
        let mut server = Server::start(&tracing_to(&address.to_string()));
        let lead_id = fresh_id();
        let began = Instant::now();
        for number in 0..200 {
            server.apply(&message(&lead_id, &number.to_string(), SAMPLE_TIME)).await;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "200 webhooks took {:?}", began.elapsed());
        if address == dead {
            eventually("it is told", async || server.logs().contains("takes no spans").then_some(())).await;
            assert!(server.admin("/metrics").await.1.contains("leadfold_spans_total{result=\"lost\"}"));
        }
        let exit = server.terminate();
        assert!(exit.status.success() && exit.took < Duration::from_secs(6), "it took {:?}", exit.took);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_endpoint_there_are_no_traces() {
    let server = Server::start(&Options::default());
    assert_eq!(post(&server, "{}".to_owned(), &format!("00-{}-{PARENT}-01", TRACE[0])).await, 400);
    eventually("the line", async || server.logs().contains("webhook refused").then_some(())).await;
    assert!(!server.logs().contains("trace_id"), "{}", server.logs());
}

fn tracing_to(address: &str) -> Options {
    // The environment outlives the options.
    Options::default().env("LEADFOLD_OTLP_ENDPOINT", format!("http://{address}").leak())
}

async fn post(server: &Server, body: String, traceparent: &str) -> u16 {
    let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("an HTTP client");
    let request = client.post(format!("http://{}{WEBHOOK}", server.http)).header("content-type", "application/json");
    let request = if traceparent.is_empty() { request } else { request.header("traceparent", traceparent) };
    request.body(body).send().await.expect("an answer").status().as_u16()
}

/// What spans are sent to.
struct Collector {
    address: String,
    spans: Spans,
}

#[derive(Clone, Default)]
struct Spans(Arc<Mutex<Vec<Span>>>);

impl Collector {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its address").to_string();
        let spans = Spans::default();
        let service = TraceServiceServer::new(spans.clone());
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        Self { address, spans }
    }

    async fn wait_for(&self, count: usize) -> Vec<Span> {
        eventually("the spans", async || {
            let spans = self.spans.0.lock().expect("the spans").clone();
            (spans.len() >= count).then_some(spans)
        })
        .await
    }
}

#[tonic::async_trait]
impl TraceService for Spans {
    async fn export(&self, request: Request<ExportTraceServiceRequest>) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource in request.into_inner().resource_spans {
            let attributes = resource.resource.map(|resource| resource.attributes).unwrap_or_default();
            assert!(format!("{attributes:?}").contains("leadfold"), "service.name: {attributes:?}");
            self.0.lock().expect("the spans").extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn attribute(span: &Span, key: &str) -> String {
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    let found = span.attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|attribute| attribute.value.clone()?.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("{key}: {other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
