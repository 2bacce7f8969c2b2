//! gRPC-Web: what a page in a browser can do.

use bytes::Bytes;
use http_body::Frame;
use http_body_util::StreamBody;
use leadfold::api::watch_lead_response::Event;
use leadfold::api::{GetLeadRequest, GetLeadResponse, WatchLeadRequest, WatchLeadResponse};
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

/// As other servers take it: base64 in parts that were padded one by one, wherever they are cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_may_come_in_padded_parts() {
    let server = Server::start(&Options::default());
    let lead_id = fresh_id();
    server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    let message = GetLeadRequest { lead_id: lead_id.clone() }.encode_to_vec();
    let framed = [&[0, 0, 0, 0, 38], &*message].concat();
    assert_eq!(framed.len(), 5 + 38);
    let encode = |part: &[u8]| base64::engine::Engine::encode(&base64::engine::general_purpose::STANDARD, part);
    let web = reqwest::Client::builder().no_proxy().http1_only().build().expect("an HTTP client");
    for cut in [0, 1, 2, 3, 5, 7, 20] {
        for content_type in ["application/grpc-web-text", "Application/grpc-web-text+proto;charset=utf-8"] {
            let text = encode(&framed[..cut]) + &encode(&framed[cut..]);
            // One byte after the other, and all at once.
            for size in [1, text.len()] {
                let frame = |chunk: &[u8]| Ok::<_, std::io::Error>(Frame::data(Bytes::copy_from_slice(chunk)));
                let chunks: Vec<_> = text.as_bytes().chunks(size).map(frame).collect();
                let body = reqwest::Body::wrap(StreamBody::new(futures::stream::iter(chunks)));
                let request = web.post(format!("http://{}/leadfold.v1.LeadService/GetLead", server.grpc));
                let answer = request.header("content-type", content_type).body(body).send().await.expect("an answer");
                assert_eq!(answer.headers()["content-type"], "application/grpc-web-text+proto", "{cut} {content_type}");
                let (answer, trailers) = read_text(&answer.text().await.expect("text"));
                let lead = GetLeadResponse::decode(&*answer).expect("a message").lead.expect("a lead");
                assert!(lead.lead_id == lead_id && trailers.contains("grpc-status:0"), "{cut} {content_type}: {trailers}");
            }
        }
    }
    // What is asked for is sent, whatever was sent.
    for (sent, accepted, answered) in [
        ("application/grpc-web-text", "application/grpc-web+proto", "application/grpc-web+proto"),
        ("application/grpc-web-text", "*/*", "application/grpc-web-text+proto"),
        ("application/grpc-web-text", "application/grpc-web-text; q=1", "application/grpc-web-text+proto"),
    ] {
        let request = web.post(format!("http://{}/leadfold.v1.LeadService/GetLead", server.grpc)).body(encode(&framed));
        let answer = request.header("content-type", sent).header("accept", accepted).send().await.expect("an answer");
        assert_eq!((answer.status().as_u16(), &answer.headers()["content-type"]), (200, &answered.parse().expect("a value")), "{accepted}");
    }
    let broken = web.post(format!("http://{}/leadfold.v1.LeadService/GetLead", server.grpc)).body("AAA!");
    let answer = broken.header("content-type", "application/grpc-web-text").send().await.expect("an answer");
    assert_eq!(answer.headers()["grpc-status"], "13", "{answer:?}");
}

/// The message and the trailers of an answer in base64, whose parts may be padded one by one.
fn read_text(text: &str) -> (Vec<u8>, String) {
    let decode = |quad: &[u8]| base64::engine::Engine::decode(&base64::engine::general_purpose::STANDARD, quad).expect("base64");
    let bytes: Vec<u8> = text.as_bytes().chunks(4).flat_map(decode).collect();
    let length = u32::from_be_bytes(bytes[1..5].try_into().expect("four bytes")) as usize;
    let (message, trailers) = bytes[5..].split_at(length);
    assert_eq!((bytes[0], trailers[0]), (0, 0x80));
    (message.to_vec(), String::from_utf8(trailers[5..].to_vec()).expect("text"))
}
