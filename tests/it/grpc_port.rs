//! What the gRPC port does not speak is refused as HTTP does it, so that a sender who knows nothing of gRPC notices.

use std::process::Command;

use leadfold::api::{DeleteLeadRequest, GetLeadRequest};
use serde_json::Value;

use crate::abuse::peer::Peer;
use crate::support::events::{SAMPLE_TIME, message};
use crate::support::server::{Options, Server, WEBHOOK};
use crate::support::{Setup, fresh_id};

const GET_LEAD: &str = "/leadfold.v1.LeadService/GetLead";
const DELETE_LEAD: &str = "/leadfold.v1.LeadService/DeleteLead";
const PROTOCOLS: [&str; 2] = ["--http1.1", "--http2-prior-knowledge"];

/// What curl is answered.
#[derive(Debug)]
struct Answer {
    status: u16,
    /// Names in lower case.
    headers: String,
    body: Vec<u8>,
}

impl Answer {
    /// What a refusal says.
    #[track_caller]
    fn error(&self) -> String {
        assert!(self.headers.contains("\ncontent-type: application/json"), "{self:?}");
        assert!(!self.headers.contains("\ngrpc-status:"), "{self:?}");
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        body["error"].as_str().expect("words").to_owned()
    }
}

/// A request of curl's to the gRPC port.
fn curl(server: &Server, protocol: &str, method: &str, path: &str, content_type: &str, body: &[u8]) -> Answer {
    curl_to(&server.grpc, protocol, method, path, content_type, body, &[])
}

/// A request of curl's to any port, with more headers.
fn curl_to(address: &str, protocol: &str, method: &str, path: &str, content_type: &str, body: &[u8], more: &[&str]) -> Answer {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (sent, headers, got) = (dir.path().join("sent"), dir.path().join("headers"), dir.path().join("got"));
    std::fs::write(&sent, body).expect("a file");
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "15", "--path-as-is", protocol]);
    command.arg("--dump-header").arg(&headers).arg("--output").arg(&got);
    match method {
        "HEAD" => drop(command.arg("--head")),
        _ => drop(command.args(["--request", method]).arg("--data-binary").arg(format!("@{}", sent.display()))),
    }
    // Without a value curl sends none.
    command.args(["--header", &format!("content-type: {content_type}"), "--header", "te: trailers"]);
    command.args(more.iter().flat_map(|header| ["--header", header]));
    let output = command.arg(format!("http://{address}{path}")).output().expect("curl");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    let headers = std::fs::read_to_string(headers).expect("headers").to_lowercase();
    let status = headers.split_whitespace().nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Answer { status, headers, body: std::fs::read(got).unwrap_or_default() }
}

fn framed(message: &impl prost::Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).expect("a short message").to_be_bytes();
    [&[0], &length[..], &message].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_that_is_posted_there_fails_and_is_told_where_to_go() {
    let server = Setup::embedded();
    let lead_id = fresh_id();
    let mut event = message(&lead_id, "a1", SAMPLE_TIME);
    // More than arrives at once: the answer is seen although it does not depend on the body.
    event["actionLog"]["summary"] = "s".repeat(900_000).into();
    let event = event.to_string();
    let webhook_port = server.http.rsplit_once(':').expect("a port").1;
    for protocol in PROTOCOLS {
        for path in [WEBHOOK.to_owned(), format!("{WEBHOOK}/some-workspace")] {
            for content_type in ["application/json", "application/json; charset=utf-8", "text/plain", ""] {
                let answer = curl(&server, protocol, "POST", &path, content_type, event.as_bytes());
                assert_eq!(answer.status, 415, "{protocol} {path} {content_type}: {answer:?}");
                let error = answer.error();
                assert!(error.contains(WEBHOOK) && error.contains(&format!("port {webhook_port},")), "{error}");
            }
        }
    }
    let status = server.client().get_lead(GetLeadRequest { lead_id }).await.expect_err("nothing was taken");
    assert_eq!(status.code(), tonic::Code::NotFound);
    assert!(server.logs().contains("it takes no webhooks"), "the operator can see it: {}", server.logs());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_content_types_and_paths_are_refused() {
    let server = Setup::embedded();
    for protocol in PROTOCOLS {
        for content_type in ["application/json", "", "application/grpcx", "application/grpc+json", "application/grpc-web+json"] {
            let answer = curl(&server, protocol, "POST", GET_LEAD, content_type, b"{}");
            assert_eq!(answer.status, 415, "{protocol} {content_type}: {answer:?}");
            assert!(answer.error().contains("application/grpc"), "{answer:?}");
        }
        for (method, path) in
            [("GET", "/"), ("POST", "/"), ("GET", "/metrics"), ("POST", "/leadfold.v1.LeadService/Nothing"), ("GET", WEBHOOK)]
        {
            let answer = curl(&server, protocol, method, path, "application/json", b"{}");
            assert_eq!(answer.status, 404, "{protocol} {method} {path}: {answer:?}");
            let error = answer.error();
            assert!(error.contains(WEBHOOK) && error.contains("--admin-addr"), "{error}");
        }
    }
    // Over HTTP/1 the status of gRPC, which comes in trailers, would be lost.
    let answer = curl(&server, "--http1.1", "POST", GET_LEAD, "application/grpc", &framed(&GetLeadRequest { lead_id: "l".into() }));
    assert_eq!(answer.status, 505, "{answer:?}");
    assert!(answer.error().contains("HTTP/2"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_post_runs_a_call() {
    for options in [Options::default(), Options::default().env("LEADFOLD_CORS_ORIGIN", "https://desk.example")] {
        let server = Server::start(&options);
        let lead_id = fresh_id();
        server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
        let request = framed(&DeleteLeadRequest { lead_id: lead_id.clone() });
        let types = ["application/grpc", "application/grpc+proto", "application/grpc-web+proto", "application/json", ""];
        for protocol in PROTOCOLS {
            for method in ["GET", "HEAD", "PUT", "PATCH", "DELETE", "QUERY", "OPTIONS"] {
                for content_type in types {
                    let answer = curl(&server, protocol, method, DELETE_LEAD, content_type, &request);
                    let what = format!("{protocol} {method} {content_type}: {answer:?}");
                    assert!(answer.status == 405 && answer.headers.contains("\nallow: post"), "{what}");
                    if method != "HEAD" {
                        assert!(answer.error().contains("POST"), "{what}");
                    }
                }
            }
        }
        server.lead(&lead_id).await;
    }
}

/// With parameters and in any case, as other servers take them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_port_speaks_is_served_however_it_is_written() {
    let server = Setup::embedded();
    let lead_id = fresh_id();
    server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    let request = framed(&GetLeadRequest { lead_id: lead_id.clone() });
    for protocol in PROTOCOLS {
        for content_type in ["application/grpc-web+proto", "application/grpc-web", "Application/GRPC-web+proto; charset=utf-8"] {
            let answer = curl(&server, protocol, "POST", GET_LEAD, content_type, &request);
            assert_eq!(answer.status, 200, "{protocol} {content_type}: {answer:?}");
            assert!(String::from_utf8_lossy(&answer.body).contains("grpc-status:0"), "{protocol} {content_type}: {answer:?}");
        }
    }
    for content_type in ["application/grpc", "application/grpc+proto", "Application/GRPC;charset=utf-8"] {
        let answer = curl(&server, "--http2-prior-knowledge", "POST", GET_LEAD, content_type, &request);
        assert_eq!(answer.status, 200, "{content_type}: {answer:?}");
        assert!(String::from_utf8_lossy(&answer.body).contains(&lead_id), "{content_type}: {answer:?}");
    }
    // A call that does not exist is a status of gRPC for those who speak it.
    let answer = curl(&server, "--http2-prior-knowledge", "POST", "/leadfold.v1.LeadService/Nothing", "application/grpc", b"");
    assert!(answer.status == 200 && answer.headers.contains("\ngrpc-status: 12"), "{answer:?}");
}

/// Whatever a foreign page can make a browser send is refused before anything runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_foreign_pages_and_names_run_nothing() {
    let server = Server::start(
        &Options::default().env("LEADFOLD_ALLOWED_HOST", "leads.example").env("LEADFOLD_CORS_ORIGIN", "https://desk.example"),
    );
    let lead_id = fresh_id();
    server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    let delete = framed(&DeleteLeadRequest { lead_id: lead_id.clone() });
    let foreign = [
        "origin: https://evil.example",
        "origin: null",
        "origin: http://127.0.0.1:1",
        "sec-fetch-site: cross-site",
        "sec-fetch-site: same-site",
        "sec-fetch-site: none",
    ];
    let types = ["application/grpc-web+proto", "application/grpc-web-text", "application/grpc", "text/plain", "application/json"];
    for protocol in PROTOCOLS {
        for content_type in types {
            for header in foreign {
                let answer = curl_to(&server.grpc, protocol, "POST", DELETE_LEAD, content_type, &delete, &[header]);
                assert_eq!(answer.status, 403, "{protocol} {content_type} {header}: {answer:?}");
                assert!(answer.error().contains("--cors-origin"), "{answer:?}");
            }
            // A page whose own name leads here is of the same origin.
            for bent in ["evil.example", "evil.example:50051", "127.0.0.1.evil.example"] {
                let (host, origin) = (format!("host: {bent}"), format!("origin: http://{bent}"));
                for headers in [&[&*host, &*origin][..], &[&*host, "sec-fetch-site: same-origin"], &[&*host]] {
                    // No browser sends plain gRPC over HTTP/2 without an origin: there it is a client of gRPC.
                    if protocol != PROTOCOLS[0] && content_type == "application/grpc" && headers.len() == 1 {
                        continue;
                    }
                    let answer = curl_to(&server.grpc, protocol, "POST", DELETE_LEAD, content_type, &delete, headers);
                    assert_eq!(answer.status, 403, "{protocol} {content_type} {headers:?}: {answer:?}");
                    assert!(answer.error().contains("--allowed-host"), "{answer:?}");
                }
            }
        }
        let get = framed(&GetLeadRequest { lead_id: lead_id.clone() });
        let own = format!("origin: http://{}", server.grpc);
        for headers in [
            &[][..],
            &[&*own],
            &["sec-fetch-site: same-origin"],
            &["origin: https://desk.example", "sec-fetch-site: cross-site"],
            &["host: leads.example"],
            &["host: LOCALHOST:1"],
            &["host: leads.example", "origin: http://leads.example"],
        ] {
            let answer = curl_to(&server.grpc, protocol, "POST", GET_LEAD, "application/grpc-web+proto", &get, headers);
            assert_eq!(answer.status, 200, "{protocol} {headers:?}: {answer:?}");
        }
    }
    // A client of gRPC dials whatever name its network has.
    let get = framed(&GetLeadRequest { lead_id: lead_id.clone() });
    let name = ["host: leadfold.namespace.svc.cluster.local:50051"];
    let answer = curl_to(&server.grpc, "--http2-prior-knowledge", "POST", GET_LEAD, "application/grpc", &get, &name);
    assert!(answer.status == 200 && String::from_utf8_lossy(&answer.body).contains(&lead_id), "{answer:?}");
    server.lead(&lead_id).await;
}

/// Clients of gRPC understand only gRPC.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_on_another_port_is_told_where_to_go() {
    let server = Setup::embedded();
    let lead_id = fresh_id();
    server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    let port = server.grpc.rsplit_once(':').expect("a port").1;
    let delete = framed(&DeleteLeadRequest { lead_id: lead_id.clone() });
    for (address, flag) in [(&server.http, "--http-addr"), (&server.admin, "--admin-addr")] {
        let peer = Peer::connect(address, 65_535).await;
        for path in [GET_LEAD, DELETE_LEAD, "/grpc.health.v1.Health/Check", "/", WEBHOOK] {
            for content_type in ["application/grpc", "Application/gRPC+proto; charset=utf-8", "application/grpc-web+proto"] {
                // What the board calls.
                if flag == "--admin-addr" && path == GET_LEAD && content_type.contains("web") {
                    continue;
                }
                let answer = curl_to(address, "--http1.1", "POST", path, content_type, &delete, &[]);
                let what = format!("{flag} {path} {content_type}: {answer:?}");
                assert!(answer.status == 200 && answer.headers.contains("\ngrpc-status: 12") && answer.body.is_empty(), "{what}");
                let said = answer.headers.replace("%20", " ");
                assert!(said.contains(flag) && said.contains(&format!("port {port},")), "{what}");
                let mut call = peer.begin(path, &[("content-type", content_type)]).await;
                call.send(delete.clone(), true);
                let answer = call.answer().await;
                let what = format!("{flag} {path} {content_type}: {answer:?}");
                assert!(answer.status == 200 && answer.grpc_status() == Some(12) && answer.body.is_end_stream(), "{what}");
                assert!(answer.grpc_message().contains(flag) && answer.grpc_message().contains(&format!("port {port},")), "{what}");
            }
        }
        let channel = tonic::transport::Endpoint::from_shared(format!("http://{address}")).expect("an address").connect_lazy();
        let mut client = leadfold::api::lead_service_client::LeadServiceClient::new(channel);
        let status = client.get_lead(GetLeadRequest { lead_id: lead_id.clone() }).await.expect_err("it is not served there");
        assert_eq!(status.code(), tonic::Code::Unimplemented, "{status:?}");
        assert!(status.message().contains(&format!("port {port},")), "{status:?}");
    }
    server.lead(&lead_id).await;
}
