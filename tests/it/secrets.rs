//! Secrets are nowhere: they are looked for in all that the server and the commands say.

use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use leadfold::api::{DeleteLeadRequest, GetLeadRequest};

use crate::support::certificates::{Authority, with_tls};
use crate::support::events::{SAMPLE_TIME, message};
use crate::support::redis::{PASSWORD, RedisServer};
use crate::support::server::{Options, Server, WEBHOOK};
use crate::support::tokens::{ALL, Bearer, usual, write};
use crate::support::{PATIENCE, fresh_id};

const SAID: &str = "secret-canary-that-is-said";
const OF_THE_ENVIRONMENT: &str = "secret-canary-of-the-environment";
const OF_REDIS: &str = "secret-canary-of-redis";
/// Of 24 bytes, as base64.
const SIGNING: &str = "c2VjcmV0LWNhbmFyeS10by1zaWdu";

/// What must not be found, in any of the ways it could be written.
fn forbidden(key: &str) -> Vec<String> {
    let mut texts = ["canary", SIGNING, PASSWORD, key].map(str::to_owned).to_vec();
    texts.push(STANDARD.encode(format!("me:{ALL}")));
    texts.push("BEGIN PRIVATE KEY".to_owned());
    texts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_in_no_log_no_answer_no_metric_and_no_argument() {
    let (dir, data, authority) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"), Authority::new());
    let redis = RedisServer::start();
    let path = |name: &str, text: &str| write(dir.path(), name, text).to_str().expect("a path").to_owned();
    let options = Options::default()
        .data_dir(data.path())
        .env("LEADFOLD_REDIS_URL", redis.url())
        .env("LEADFOLD_TOKENS_FILE", path("tokens", &usual()))
        .env("LEADFOLD_WEBHOOK_SECRET_FILE", path("secrets", &format!("{SAID}\nwhsec_{SIGNING}\n")))
        .env("LEADFOLD_WEBHOOK_SECRET", OF_THE_ENVIRONMENT)
        .env("LEADFOLD_LOG_LEVEL", "trace");
    let mut server = Server::start(&with_tls(options, dir.path(), &authority));
    let key = std::fs::read_to_string(dir.path().join("key.pem")).expect("the key");
    let key = key.lines().nth(1).expect("the key").to_owned();

    let arguments = std::fs::read(format!("/proc/{}/cmdline", server.pid())).expect("its arguments");
    let mut said = vec![String::from_utf8_lossy(&arguments).into_owned()];
    said.extend(webhooks(&server, &authority).await);
    said.extend(calls(&server, &authority).await);
    let web = client(&authority);
    for path in ["/livez", "/readyz", "/metrics"] {
        said.push(web.get(format!("https://{}{path}", server.admin)).send().await.expect("an answer").text().await.expect("text"));
    }
    said.extend(commands(&server, dir.path(), &authority));
    // Files that cannot be used any more, while it runs.
    write(dir.path(), "tokens", "[[token]]\nname = \"token-canary\"\ntoken = \"token-canary-2");
    write(dir.path(), "secrets", "canary");
    write(dir.path(), "key.pem", &format!("-----BEGIN PRIVATE KEY-----\n{key}\n"));
    crate::support::eventually("it says so of each", async || (server.logs().matches("stay in force").count() == 3).then_some(())).await;

    assert!(server.terminate().status.success());
    let logs = server.logs();
    assert!(logs.contains("TRACE") && logs.len() > 10_000, "it logs all that can be logged");
    said.push(logs);
    for text in &said {
        for secret in forbidden(&key) {
            let line = text.lines().find(|line| line.contains(&secret));
            assert_eq!(line, None, "{secret:?}");
        }
    }
    for entry in std::fs::read_dir(data.path()).into_iter().flatten().flatten() {
        let bytes = std::fs::read(entry.path()).unwrap_or_default();
        assert!(!bytes.windows(6).any(|window| window == b"canary"), "{entry:?}");
    }
}

fn client(authority: &Authority) -> reqwest::Client {
    let root = reqwest::Certificate::from_pem(authority.pem.as_bytes()).expect("a certificate");
    reqwest::Client::builder().no_proxy().timeout(PATIENCE).add_root_certificate(root).build().expect("an HTTP client")
}

/// Right and wrong webhooks, and what they are answered.
async fn webhooks(server: &Server, authority: &Authority) -> Vec<String> {
    let web = client(authority);
    let event = || message(&fresh_id(), "a1", SAMPLE_TIME).to_string().replace(crate::support::events::CANARY, "x");
    let mut answers = Vec::new();
    for (secret, status) in [(SAID, 200), (OF_THE_ENVIRONMENT, 200), ("secret-canary-that-is-wrong", 401)] {
        let request = web.post(format!("https://{}{WEBHOOK}", server.http)).header("content-type", "application/json");
        let answer = request.header("x-webhook-secret", secret).body(event()).send().await.expect("an answer");
        assert_eq!(answer.status(), status);
        answers.push(format!("{:?} {}", answer.headers().clone(), answer.text().await.expect("text")));
    }
    let (body, now) = (event(), chrono::Utc::now().timestamp());
    let signature = standardwebhooks::Webhook::new(SIGNING).expect("a key").sign("m", now, body.as_bytes()).expect("signed");
    let request = web.post(format!("https://{}{WEBHOOK}", server.http)).header("content-type", "application/json");
    let request = request.header("webhook-id", "m").header("webhook-timestamp", now).header("webhook-signature", signature);
    let answer = request.body(body).send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    answers.push(answer.text().await.expect("text"));
    answers
}

/// Right and wrong calls, and what they are answered.
async fn calls(server: &Server, authority: &Authority) -> Vec<String> {
    use leadfold::api::lead_service_client::LeadServiceClient;
    use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&authority.pem));
    let endpoint = Endpoint::from_shared(format!("https://{}", server.grpc)).expect("an address").tls_config(tls).expect("valid");
    let mut answers = Vec::new();
    let basic = format!("Basic {}", STANDARD.encode(format!("me:{ALL}")));
    for header in [&format!("Bearer {ALL}"), "Bearer token-canary-of-nobody", ALL, &basic] {
        let mut client = LeadServiceClient::with_interceptor(endpoint.connect_lazy(), Bearer::header(header));
        let lead_id = "nobody".to_owned();
        answers.push(format!("{:?}", client.get_lead(GetLeadRequest { lead_id: lead_id.clone() }).await.expect_err("no lead")));
        answers.push(format!("{:?}", client.delete_lead(DeleteLeadRequest { lead_id }).await.expect_err("no lead")));
    }
    answers
}

/// What commands say.
fn commands(server: &Server, dir: &std::path::Path, authority: &Authority) -> Vec<String> {
    let ca = write(dir, "ca.pem", &authority.pem);
    let url = format!("https://{}", server.grpc);
    let mut said = Vec::new();
    for (args, token) in [
        (&["get", "nobody"][..], ALL),
        (&["get", "nobody"], "token-canary-of-nobody"),
        (&["--help"], ALL),
        (&["get", "--help"], ALL),
        (&["serve", "--help"], ALL),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_leadfold"));
        command.args(args).env("LEADFOLD_SERVER", &url).env("LEADFOLD_CA_FILE", &ca).env("LEADFOLD_TOKEN", token);
        command.env("LEADFOLD_WEBHOOK_SECRET", SAID).env("LEADFOLD_REDIS_URL", format!("redis://:{OF_REDIS}@h"));
        let output = command.output().expect("it runs");
        said.push(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)));
    }
    assert!(said[0].contains("no lead") && said[1].contains("not known"), "{said:?}");
    said
}
