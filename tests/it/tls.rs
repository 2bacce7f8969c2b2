//! Encrypted listeners: who is shown what, who has to show what, and certificates that change.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use leadfold::api::lead_service_client::LeadServiceClient;
use leadfold::api::watch_lead_response::Event;
use leadfold::api::{BatchGetLeadsRequest, GetLeadRequest, WatchLeadRequest};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};

use crate::support::certificates::{Authority, Certified, with_tls, write_pair};
use crate::support::events::{SAMPLE_TIME, message};
use crate::support::server::{Options, Server, WEBHOOK};
use crate::support::tokens::{ALL, usual, write};
use crate::support::watching::{LeadWatch, version};
use crate::support::{PATIENCE, eventually, fresh_id};

struct Encrypted {
    server: Server,
    authority: Authority,
    dir: TempDir,
}

impl Encrypted {
    fn start() -> Self {
        Self::with(Options::default())
    }

    fn with(options: Options) -> Self {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().expect("a directory"));
        let server = Server::start(&with_tls(options, dir.path(), &authority));
        Self { server, authority, dir }
    }

    async fn post(&self, event: &Value) -> reqwest::Response {
        post(&web(&self.authority.pem), &self.server, event).await.expect("an answer")
    }

    fn channel(&self, identity: Option<&Certified>) -> Channel {
        channel(&self.server, &self.authority.pem, identity)
    }
}

/// An HTTP client that trusts one authority.
fn web(authority: &str) -> reqwest::Client {
    let authority = reqwest::Certificate::from_pem(authority.as_bytes()).expect("a certificate");
    let builder = reqwest::Client::builder().no_proxy().timeout(PATIENCE).tls_built_in_root_certs(false).add_root_certificate(authority);
    builder.build().expect("an HTTP client")
}

async fn post(web: &reqwest::Client, server: &Server, event: &Value) -> reqwest::Result<reqwest::Response> {
    let request = web.post(format!("https://{}{WEBHOOK}", server.http)).header("content-type", "application/json");
    request.body(event.to_string()).send().await
}

/// A gRPC connection that trusts one authority.
fn channel(server: &Server, authority: &str, identity: Option<&Certified>) -> Channel {
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority));
    let tls = match identity {
        Some(pair) => tls.identity(Identity::from_pem(&pair.cert, &pair.key)),
        None => tls,
    };
    let endpoint = Endpoint::from_shared(format!("https://{}", server.grpc)).expect("a valid address");
    endpoint.tls_config(tls).expect("a valid configuration").connect_timeout(PATIENCE).timeout(PATIENCE).connect_lazy()
}

async fn get(channel: Channel, lead_id: &str) -> Result<u64, Status> {
    let answer = LeadServiceClient::new(channel).get_lead(GetLeadRequest { lead_id: lead_id.to_owned() }).await?;
    Ok(answer.into_inner().lead.expect("a lead").version)
}

/// Whether a call did not get through to the service.
#[track_caller]
fn unreachable(answer: Result<u64, Status>) {
    let status = answer.expect_err("no answer");
    assert!(std::error::Error::source(&status).is_some(), "that is an answer of the service: {status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_listener_is_encrypted() {
    let encrypted = Encrypted::start();
    let Encrypted { server, authority, .. } = &encrypted;
    let lead_id = fresh_id();
    let answer = encrypted.post(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    assert_eq!(answer.status(), 200);
    assert!(get(encrypted.channel(None), &lead_id).await.expect("a lead") > 0);
    let ready = web(&authority.pem).get(format!("https://{}/livez", server.admin)).send().await.expect("an answer");
    assert_eq!(ready.status(), 200);
    // In the clear there is nothing to be had.
    for address in [&server.http, &server.admin, &server.grpc] {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: l\r\n\r\n").await.expect("sent");
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the end");
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.starts_with("HTTP/1.1 400 ") && answer.ends_with("{\"error\":\"this port speaks TLS: write https://\"}\n"),
            "{answer}"
        );
    }
    unreachable(get(server.channel(), &lead_id).await);
    eventually("it counts them", async || {
        (server_metric(&encrypted, "leadfold_tls_handshake_failures_total{listener=\"grpc\"}").await >= 2.0).then_some(())
    })
    .await;
}

async fn server_metric(encrypted: &Encrypted, name: &str) -> f64 {
    let text = web(&encrypted.authority.pem).get(format!("https://{}/metrics", encrypted.server.admin)).send().await;
    let text = text.expect("an answer").text().await.expect("text");
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0.0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_trusts_a_server_of_another_authority() {
    let encrypted = Encrypted::start();
    let stranger = Authority::new();
    unreachable(get(channel(&encrypted.server, &stranger.pem, None), "l").await);
    assert!(post(&web(&stranger.pem), &encrypted.server, &json!({})).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_grpc_show_a_certificate_where_one_is_asked_for() {
    let (clients, strangers, dir) = (Authority::new(), Authority::new(), tempfile::tempdir().expect("a directory"));
    let ca = write(dir.path(), "clients.pem", &clients.pem);
    let encrypted = Encrypted::with(Options::default().env("LEADFOLD_GRPC_CLIENT_CA", ca.to_str().expect("a path")));
    let lead_id = fresh_id();
    assert_eq!(encrypted.post(&message(&lead_id, "a1", SAMPLE_TIME)).await.status(), 200, "senders show none");
    get(encrypted.channel(Some(&clients.certify())), &lead_id).await.expect("a lead");
    unreachable(get(encrypted.channel(None), &lead_id).await);
    unreachable(get(encrypted.channel(Some(&strangers.certify())), &lead_id).await);
    unreachable(get(encrypted.channel(Some(&clients.certify_in_the_past())), &lead_id).await);
    // The admin listener asks probes for no certificate, so the same calls are refused there.
    let call = web(&encrypted.authority.pem).post(format!("https://{}/leadfold.v1.LeadService/GetLead", encrypted.server.admin));
    let call = call.header("content-type", "application/grpc-web+proto").body(b"\0\0\0\0\0".to_vec());
    let refused = call.send().await.expect("an answer");
    assert_eq!(refused.status(), 403);
    assert!(refused.text().await.expect("text").contains("--grpc-client-ca"));
    let probe = web(&encrypted.authority.pem).get(format!("https://{}/readyz", encrypted.server.admin)).send().await;
    assert_eq!(probe.expect("an answer").status(), 200);
    // The authority of clients is read again as well.
    write(dir.path(), "clients.pem", &strangers.pem);
    let stranger = strangers.certify();
    eventually("the other authority's are good", async || get(encrypted.channel(Some(&stranger)), &lead_id).await.ok()).await;
    unreachable(get(encrypted.channel(Some(&clients.certify())), &lead_id).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_and_large_answers_pass_encryption_whole() {
    let mut encrypted = Encrypted::start();
    let lead_ids: Vec<_> = (0..100).map(|_| fresh_id()).collect();
    let web = web(&encrypted.authority.pem);
    for lead_id in &lead_ids {
        for action in 0..3 {
            let mut event = message(lead_id, &format!("a{action}"), SAMPLE_TIME);
            event["actionLog"]["summary"] = json!("x".repeat(2000));
            event["actionLog"]["messages"][0]["documents"] =
                (0..14).map(|id| json!({"id": format!("{action}-{id}"), "filename": "y".repeat(200)})).collect();
            assert_eq!(post(&web, &encrypted.server, &event).await.expect("an answer").status(), 200);
        }
    }
    let mut client = LeadServiceClient::new(encrypted.channel(None)).max_decoding_message_size(64 << 20);
    let leads = client.batch_get_leads(BatchGetLeadsRequest { lead_ids: lead_ids.clone() }).await.expect("leads").into_inner().leads;
    let bytes: usize = leads.iter().map(prost::Message::encoded_len).sum();
    assert!(leads.len() == 100 && bytes > 1_000_000, "{bytes} bytes");

    let channel = encrypted.channel(None);
    let mut watches = Vec::new();
    for lead_id in lead_ids.iter().cycle().take(300) {
        let mut watch = LeadWatch::over(&channel, lead_id, 0).await.expect("the stream opens");
        watch.next().await;
        watches.push(watch);
    }
    for lead_id in &lead_ids {
        let answer = post(&web, &encrypted.server, &message(lead_id, "last", SAMPLE_TIME)).await.expect("an answer");
        assert_eq!(answer.status(), 200);
    }
    for watch in &mut watches {
        assert_eq!(watch.next_update().await.changes.len(), 1);
    }
    encrypted.server.signal_termination();
    for watch in watches {
        assert_eq!(watch.end().await.code(), Code::Unavailable);
    }
    assert!(encrypted.server.terminate().status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stalls_behind_encryption_gets_the_newest_state() {
    let encrypted = Encrypted::start();
    let lead_id = fresh_id();
    encrypted.post(&message(&lead_id, "a", SAMPLE_TIME)).await;
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&encrypted.authority.pem));
    let endpoint = Endpoint::from_shared(format!("https://{}", encrypted.server.grpc)).expect("a valid address").tls_config(tls);
    let channel = endpoint.expect("a valid configuration").initial_stream_window_size(4096).connect_lazy();
    let request = WatchLeadRequest { lead_id: lead_id.clone(), ..Default::default() };
    let mut stream = LeadServiceClient::new(channel).watch_lead(request).await.expect("the stream opens").into_inner();
    let mut newest = 0;
    for number in 0..200 {
        let mut event = message(&lead_id, &format!("a{number}"), SAMPLE_TIME);
        event["actionLog"]["summary"] = json!("x".repeat(2000));
        let answer: Value = encrypted.post(&event).await.json().await.expect("JSON");
        newest = answer["version"].as_str().and_then(|version| version.parse().ok()).expect("a version");
    }
    let mut last = 0;
    let mut messages = 0;
    while last < newest {
        let message = tokio::time::timeout(PATIENCE, stream.message()).await.expect("in time").expect("no error").expect("no end");
        last = version(&message.event.expect("an event"));
        messages += 1;
    }
    assert!((2..100).contains(&messages), "{messages} messages");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_replaced_without_a_restart() {
    let encrypted = Encrypted::start();
    let Encrypted { server, authority, dir } = &encrypted;
    let lead_id = fresh_id();
    encrypted.post(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    let mut watch = LeadWatch::over(&encrypted.channel(None), &lead_id, 0).await.expect("the stream opens");
    watch.next().await;
    // A key that does not fit its certificate: somebody is half through, or has made a mistake.
    write(dir.path(), "key.pem", &authority.certify().key);
    eventually("it says so", async || server.logs().contains("stay in force").then_some(())).await;
    get(encrypted.channel(None), &lead_id).await.expect("a lead");
    let next = Authority::new();
    write_pair(dir.path(), &next.certify());
    eventually("the new one is shown", async || get(channel(server, &next.pem, None), &lead_id).await.ok()).await;
    unreachable(get(encrypted.channel(None), &lead_id).await);
    let answer = post(&web(&next.pem), server, &message(&lead_id, "a2", SAMPLE_TIME)).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    assert!(matches!(watch.next().await, Event::Update(_)), "a connection that was open stays");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_handshake_that_is_never_finished_ends() {
    let encrypted = Encrypted::start();
    let silent = TcpStream::connect(&encrypted.server.grpc).await.expect("a connection");
    let mut half = TcpStream::connect(&encrypted.server.http).await.expect("a connection");
    half.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]).await.expect("the beginning of a ClientHello");
    let mut slow = TcpStream::connect(&encrypted.server.admin).await.expect("a connection");
    let began = Instant::now();
    let dripping = tokio::spawn(async move {
        for byte in [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3].into_iter().chain([7; 30]) {
            if slow.write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            if began.elapsed() > PATIENCE {
                panic!("it may go on for ever");
            }
        }
    });
    for mut stream in [silent, half] {
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("it is ended");
    }
    dripping.await.expect("it is ended too");
    assert!(began.elapsed() > Duration::from_secs(8), "{:?}", began.elapsed());
    assert_eq!(encrypted.post(&message(&fresh_id(), "a1", SAMPLE_TIME)).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_do_not_make_a_certificate_are_said() {
    let (authority, dir) = (Authority::new(), tempfile::tempdir().expect("a directory"));
    let pair = authority.certify();
    let path = |name: &str, text: &str| write(dir.path(), name, text).to_str().expect("a path").to_owned();
    let (cert, key) = (path("cert", &pair.cert), path("key", &pair.key));
    let (other, none) = (path("other", &authority.certify().key), path("none", "canary"));
    let said = |pairs: &[(&'static str, &str)]| {
        let said = pairs.iter().fold(Options::default(), |options, (name, value)| options.env(name, *value)).refused();
        assert!(said.starts_with("error: ") && !said.contains("canary") && !said.contains("PRIVATE KEY"), "{said}");
        said
    };
    assert!(said(&[("LEADFOLD_TLS_CERT", &cert)]).contains("needs its --tls-key"));
    assert!(said(&[("LEADFOLD_TLS_KEY", &key)]).contains("needs its --tls-cert"));
    assert!(said(&[("LEADFOLD_GRPC_CLIENT_CA", &cert)]).contains("needs TLS"));
    assert!(said(&[("LEADFOLD_TLS_CERT", &cert), ("LEADFOLD_TLS_KEY", &other)]).contains("does not fit"));
    assert!(said(&[("LEADFOLD_TLS_CERT", &cert), ("LEADFOLD_TLS_KEY", &none)]).contains("no private key"));
    assert!(said(&[("LEADFOLD_TLS_CERT", &none), ("LEADFOLD_TLS_KEY", &key)]).contains("no certificate"));
    assert!(said(&[("LEADFOLD_TLS_CERT", "/nowhere"), ("LEADFOLD_TLS_KEY", &key)]).contains("cannot read /nowhere"));
    let with_ca = [("LEADFOLD_TLS_CERT", &*cert), ("LEADFOLD_TLS_KEY", &key), ("LEADFOLD_GRPC_CLIENT_CA", &none)];
    assert!(said(&with_ca).contains("--grpc-client-ca"));
}

/// The command line, with TLS and a token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_calls_with_a_token_and_trusts_an_authority() {
    let (clients, dir) = (Authority::new(), tempfile::tempdir().expect("a directory"));
    let path = |name: &str, text: &str| write(dir.path(), name, text).to_str().expect("a path").to_owned();
    let options = Options::default().env("LEADFOLD_TOKENS_FILE", path("tokens", &usual()));
    let encrypted = Encrypted::with(options.env("LEADFOLD_GRPC_CLIENT_CA", path("clients", &clients.pem)));
    let lead_id = fresh_id();
    encrypted.post(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    let own = clients.certify();
    let (ca, token) = (path("ca", &encrypted.authority.pem), path("token", &format!("{ALL}\n")));
    let (cert, key) = (path("cert", &own.cert), path("key", &own.key));
    let url = format!("https://{}", encrypted.server.grpc);
    let run = |env: &[(&str, &str)]| -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_leadfold"));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LEADFOLD_")) {
            command.env_remove(name);
        }
        command.args(["get", &lead_id, "--server", &url]).envs(env.iter().copied()).output().expect("it runs")
    };
    let said = |env: &[(&str, &str)]| {
        let output = run(env);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let line = String::from_utf8(output.stderr).expect("text");
        assert!(line.lines().count() == 1 && !line.contains("canary"), "{line}");
        line
    };
    let shown = [("LEADFOLD_CLIENT_CERT", &*cert), ("LEADFOLD_CLIENT_KEY", &*key)];
    let trusting = [("LEADFOLD_CA_FILE", &*ca), shown[0], shown[1]];
    for proof in [("LEADFOLD_TOKEN_FILE", &*token), ("LEADFOLD_TOKEN", ALL)] {
        let output = run(&[trusting[0], trusting[1], trusting[2], proof]);
        assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains(&lead_id), "{output:?}");
    }
    assert!(said(&trusting).contains("LEADFOLD_TOKEN"));
    assert!(said(&[trusting[0], trusting[1], trusting[2], ("LEADFOLD_TOKEN", "token-canary-of-nobody")]).contains("not known"));
    assert!(said(&[trusting[0], trusting[1], trusting[2], ("LEADFOLD_TOKEN", "two canary words")]).contains("has no token"));
    assert!(said(&[shown[0], shown[1], ("LEADFOLD_TOKEN", ALL)]).contains("--ca-file"));
    let without = said(&[("LEADFOLD_CA_FILE", &*ca), ("LEADFOLD_TOKEN", ALL)]);
    assert!(without.contains("cannot reach"), "{without}");
    assert!(said(&[("LEADFOLD_CA_FILE", "/nowhere")]).contains("--ca-file: cannot read /nowhere"));
}
