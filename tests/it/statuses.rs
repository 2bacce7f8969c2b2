//! The frames of every status: what tonic's own client forgives, others do not.
//!
//! What clients of other people see of the same calls is looked at in `foreign`.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::{HeaderMap, Request};
use leadfold::api::GetLeadRequest;
use prost::Message as _;
use tokio::net::TcpStream;
use tonic::Code;

use crate::foreign::clients::MOST_TIMES_LET_IN;
use crate::foreign::servers::{ORIGIN, OwnServers, Servers, State};
use crate::foreign::table::{Case, Table, Variants};
use crate::support::PATIENCE;
use crate::support::redis::RedisServer;
use crate::support::server::{Options, Server};

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
async fn raw(address: &str, case: &Case, content_type: &str) -> Answer {
    let exchange = async {
        let tcp = TcpStream::connect(address).await.expect("a connection");
        let (mut sender, connection) = h2::client::handshake(tcp).await.expect("HTTP/2");
        let mut request = Request::post(format!("http://{address}/{}", case.rpc)).header("content-type", content_type);
        request = request.header("te", "trailers");
        if let Some(authorization) = &case.authorization {
            request = request.header("authorization", authorization);
        }
        if let Some(seconds) = case.seconds {
            request = request.header("grpc-timeout", format!("{}m", Duration::from_secs_f64(seconds).as_millis()));
        }
        if case.gzip {
            request = request.header("grpc-accept-encoding", "gzip,identity");
        }
        if case.compress {
            request = request.header("grpc-encoding", "gzip");
        }
        // A page of another origin passes one more layer.
        if content_type.contains("-web") && case.server == State::Open {
            request = request.header("origin", ORIGIN);
        }
        let length = u32::try_from(case.bytes.len()).expect("a short message").to_be_bytes();
        let mut body = [&[u8::from(case.compress)], &length[..], &case.bytes].concat();
        if content_type.contains("-text") {
            body = BASE64.encode(body).into_bytes();
        }
        let (response, mut stream) = sender.send_request(request.body(()).expect("a request"), false).expect("it is sent");
        stream.send_data(Bytes::from(body), true).expect("the message is sent");
        // Only now, so that the whole request goes at once: what is answered before it has come is another matter.
        tokio::spawn(connection);
        let response = response.await.expect("a response");
        assert_eq!(response.status(), 200, "{}", case.name());
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
    tokio::time::timeout(PATIENCE, exchange).await.unwrap_or_else(|_| panic!("no answer in time: {}", case.name()))
}

fn assert_trailers_only(answer: &Answer, expected: Code, what: &str) {
    assert_eq!(answer.headers.get("grpc-status").map(|code| Code::from_bytes(code.as_bytes())), Some(expected), "{what}");
    assert!(answer.ended_with_headers, "the headers must end the stream: {what}");
    assert!(answer.data_frames == 0 && answer.trailers.is_none(), "nothing may follow the headers: {what}");
}

/// `Trailers-Only` of gRPC's specification: one HEADERS frame that ends the stream. With a deadline and without, compressed
/// answers accepted or not, as gRPC and as gRPC-Web, from a page of another origin, refused by the load limit: no layer may
/// change that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_without_a_message_is_one_frame() {
    let (servers, own) = (Servers::start().await, OwnServers::start().await);
    let addresses: std::collections::BTreeMap<_, _> = servers.addresses().into_iter().chain(own.addresses()).collect();
    let has_no_message = |case: &Case| case.expected.code != Code::Ok && case.expected.messages.is_empty();
    // Streams that the server ends have begun.
    let has_begun = |case: &Case| matches!(case.server, State::Aged | State::Draining | State::Revoked | State::Changed);
    let types = ["application/grpc", "application/grpc+proto", "application/grpc-web+proto", "application/grpc-web-text"];
    let mut seen = 0;
    for case in Table::read().cases(Variants::Two).iter().filter(|case| has_no_message(case) && !has_begun(case)) {
        for content_type in types {
            let mut answer = raw(&addresses[&case.server], case, content_type).await;
            for _ in 0..MOST_TIMES_LET_IN {
                if case.server != State::Full || answer.headers.get("grpc-status").is_some_and(|code| code == "14") {
                    break;
                }
                // One that is full has a place for an instant between two calls.
                answer = raw(&addresses[&case.server], case, content_type).await;
            }
            assert_trailers_only(&answer, case.expected.code, &format!("{} ({content_type})", case.name()));
            let details = answer.headers.get("grpc-status-details-bin").map(|details| details.as_bytes().to_vec()).unwrap_or_default();
            assert_eq!(details.is_empty(), case.expected.details.is_empty(), "{}", case.name());
            seen += 1;
        }
    }
    assert!(seen > 300, "only {seen} calls");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_that_passes_before_the_answer_is_one_frame() {
    let redis = RedisServer::start();
    let server = Server::start(&Options::on(&redis));
    let mut case = Table::read().cases(Variants::Two).into_iter().find(|case| case.server == State::Slow).expect("a slow call");
    case = Case { rpc: "leadfold.v1.LeadService/GetLead".to_owned(), seconds: Some(0.2), ..case };
    case.bytes = GetLeadRequest { lead_id: "l".to_owned() }.encode_to_vec();
    for content_type in ["application/grpc", "application/grpc-web+proto"] {
        let () = redis::cmd("CLIENT").arg("PAUSE").arg(900).query(&mut redis.connection()).expect("Redis pauses");
        assert_trailers_only(&raw(&server.grpc, &case, content_type).await, Code::DeadlineExceeded, content_type);
    }
}

/// An answer that has a message, or a stream that has begun, ends with trailers; gRPC-Web has them in its body.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_followed_by_a_status() {
    let servers = Servers::start().await;
    let addresses = servers.addresses();
    let cases = Table::read().cases(Variants::Two).into_iter();
    let has_messages = |case: &Case| case.expected.code == Code::Ok || !case.expected.messages.is_empty();
    let cases = cases.filter(|case| has_messages(case) && case.cancel_after.is_none());
    for case in cases {
        let expected = case.expected.code;
        let answer = raw(&addresses[&case.server], &case, "application/grpc").await;
        assert!(!answer.ended_with_headers && !answer.data.is_empty() && !answer.headers.contains_key("grpc-status"), "{}", case.name());
        let trailers = answer.trailers.unwrap_or_else(|| panic!("trailers: {}", case.name()));
        assert_eq!(Code::from_bytes(trailers["grpc-status"].as_bytes()), expected, "{}", case.name());

        let answer = raw(&addresses[&case.server], &case, "application/grpc-web+proto").await;
        let status = format!("grpc-status:{}\r\n", i32::from(expected));
        assert!(String::from_utf8_lossy(&answer.data).contains(&status), "{}: {:?}", case.name(), answer.data);
        assert!(answer.trailers.is_none(), "{}", case.name());
    }
}
