//! gRPC-Web: what a page in a browser can do.

use leadfold::api::watch_lead_response::Event;
use leadfold::api::{WatchLeadRequest, WatchLeadResponse};
use prost::Message;
use reqwest::{Method, RequestBuilder, Response};

use crate::support::events::{SAMPLE_TIME, message};
use crate::support::server::{Options, Server};
use crate::support::watching::version;
use crate::support::{PATIENCE, fresh_id};

const ORIGIN: &str = "https://desk.example";
const ALLOWED: &str = "access-control-allow-origin";

/// Reads the frames of an answer: a flag, a length in four bytes, a message.
struct Frames {
    response: Response,
    bytes: Vec<u8>,
}

impl Frames {
    async fn next(&mut self) -> (u8, Vec<u8>) {
        loop {
            if let Some((head, rest)) = self.bytes.split_first_chunk::<5>() {
                let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
                if rest.len() >= length {
                    let frame = (head[0], rest[..length].to_vec());
                    self.bytes.drain(..5 + length);
                    return frame;
                }
            }
            let chunk = tokio::time::timeout(PATIENCE, self.response.chunk()).await.expect("in time").expect("no error");
            self.bytes.extend(chunk.expect("no end"));
        }
    }

    async fn next_event(&mut self) -> Event {
        let (flag, message) = self.next().await;
        assert_eq!(flag, 0, "a message, not trailers: {}", String::from_utf8_lossy(&message));
        WatchLeadResponse::decode(&*message).expect("a message").event.expect("of a known kind")
    }
}

/// A call over HTTP/1.1, as a browser makes it.
fn request(server: &Server, method: Method, origin: &str) -> RequestBuilder {
    let web = reqwest::Client::builder().no_proxy().http1_only().build().expect("an HTTP client");
    web.request(method, format!("http://{}/leadfold.v1.LeadService/WatchLead", server.grpc)).header("origin", origin)
}

async fn begin(server: &Server, origin: &str, lead_id: &str) -> Response {
    let body = WatchLeadRequest { lead_id: lead_id.to_owned(), ..Default::default() }.encode_to_vec();
    let length = u32::try_from(body.len()).expect("a short body").to_be_bytes();
    let request = request(server, Method::POST, origin).header("content-type", "application/grpc-web+proto").header("x-grpc-web", "1");
    request.body([&[0], &length[..], &body].concat()).send().await.expect("an answer")
}

async fn watch(server: &Server, origin: &str, lead_id: &str) -> Frames {
    let response = begin(server, origin, lead_id).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/grpc-web+proto");
    Frames { response, bytes: Vec::new() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_tells_over_http_1() {
    let mut server = Server::start(&Options::default().env("LEADFOLD_DRAIN_DELAY_MS", "0"));
    let lead_id = fresh_id();
    let first = server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    let own = format!("http://{}", server.grpc);
    let mut frames = watch(&server, &own, &lead_id).await;
    assert!(!frames.response.headers().contains_key(ALLOWED), "no origin is allowed");
    let event = frames.next_event().await;
    assert!(matches!(event, Event::Snapshot(_)) && version(&event) == first, "{event:?}");
    let second = server.apply(&message(&lead_id, "a2", SAMPLE_TIME)).await;
    let Event::Update(update) = frames.next_event().await else { panic!("not an update") };
    assert_eq!((update.lead.map(|lead| lead.version), update.changes.len()), (Some(second), 1));

    server.signal_termination();
    let (flag, trailers) = frames.next().await;
    let trailers = String::from_utf8(trailers).expect("trailers are text");
    assert!(flag == 0x80 && trailers.contains("grpc-status:14") && trailers.contains("grpc-status-details-bin:"), "{flag}: {trailers}");
    assert!(server.terminate().status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_an_allowed_origin_may_call_and_others_may_not() {
    let server = Server::start(&Options::default().env("LEADFOLD_CORS_ORIGIN", ORIGIN));
    let lead_id = fresh_id();
    let allowed = watch(&server, ORIGIN, &lead_id).await.response;
    assert_eq!(allowed.headers()[ALLOWED], ORIGIN);
    let exposed = allowed.headers()["access-control-expose-headers"].to_str().expect("names");
    assert!(["grpc-status", "grpc-message", "grpc-status-details-bin"].iter().all(|name| exposed.contains(name)), "{exposed}");
    let refused = begin(&server, "https://elsewhere.example", &lead_id).await;
    assert_eq!((refused.status().as_u16(), refused.headers().contains_key(ALLOWED)), (403, false));

    let answer = preflight(&server, ORIGIN).await;
    let header = |name: &str| answer.headers()[name].to_str().expect("text").to_lowercase();
    assert_eq!((answer.status().as_u16(), &*header(ALLOWED)), (200, ORIGIN));
    assert!(header("access-control-allow-methods").contains("post"));
    let headers = header("access-control-allow-headers");
    assert!(headers.contains("content-type") && headers.contains("x-grpc-web") && headers.contains("authorization"), "{headers}");
    assert!(!preflight(&server, "https://elsewhere.example").await.headers().contains_key(ALLOWED));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_setting_no_page_may_call() {
    let server = Server::start(&Options::default());
    assert!(!preflight(&server, ORIGIN).await.headers().contains_key(ALLOWED));
}

async fn preflight(server: &Server, origin: &str) -> Response {
    let request = request(server, Method::OPTIONS, origin).header("access-control-request-method", "POST");
    let request = request.header("access-control-request-headers", "content-type,x-grpc-web,authorization");
    request.send().await.expect("an answer")
}
