//! Who may send events.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Method, RequestBuilder};
use serde_json::Value;
use standardwebhooks::Webhook;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::events::{SAMPLE_TIME, message};
use crate::support::server::{Options, Server, WEBHOOK};
use crate::support::tokens::write;
use crate::support::{PATIENCE, eventually, fresh_id};

const SECRET: &str = "canary-secret-of-the-sender";
const NEXT_SECRET: &str = "canary-secret-that-comes-next";
const SIGNING: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

struct Guarded {
    server: Server,
    dir: TempDir,
    web: reqwest::Client,
}

impl Guarded {
    fn by(secrets: &str) -> Self {
        Self::with(secrets, Options::default())
    }

    fn with(secrets: &str, options: Options) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = write(dir.path(), "secrets", secrets);
        let server = Server::start(&options.env("LEADFOLD_WEBHOOK_SECRET_FILE", path.to_str().expect("a path")));
        Self { server, dir, web: reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("an HTTP client") }
    }

    fn request(&self, body: &str) -> RequestBuilder {
        let request = self.web.request(Method::POST, format!("http://{}{WEBHOOK}", self.server.http));
        request.header("content-type", "application/json").body(body.to_owned())
    }

    /// Posts an event with headers.
    async fn post(&self, headers: &[(&str, &str)], body: &str) -> (u16, Value) {
        let request = headers.iter().fold(self.request(body), |request, (name, value)| request.header(*name, *value));
        let response = request.send().await.expect("an answer");
        (response.status().as_u16(), response.json().await.expect("JSON"))
    }

    /// Posts an event signed the Standard Webhooks way, `late` seconds after it was signed.
    async fn post_signed(&self, secret: &str, late: i64, body: &str) -> (u16, Value) {
        let headers = signed(secret, chrono::Utc::now().timestamp() - late, body);
        self.post(&headers.each_ref().map(|(name, value)| (*name, &**value)), body).await
    }
}

/// Signed by an independent implementation.
fn signed(secret: &str, at: i64, body: &str) -> [(&'static str, String); 3] {
    let signature = Webhook::new(secret).expect("a secret").sign("msg_1", at, body.as_bytes()).expect("a signature");
    [("webhook-id", "msg_1".to_owned()), ("webhook-timestamp", at.to_string()), ("webhook-signature", signature)]
}

fn event() -> String {
    message(&fresh_id(), "a1", SAMPLE_TIME).to_string()
}

#[track_caller]
fn applied((status, body): (u16, Value)) {
    assert_eq!((status, body["status"].as_str()), (200, Some("applied")), "{body}");
}

#[track_caller]
fn stranger((status, body): (u16, Value)) {
    assert_eq!((status, body["error"].is_string(), body["field"].is_null()), (401, true, true), "{body}");
    assert!(!body.to_string().contains("canary"), "{body}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_says_one_of_the_secrets() {
    let guarded = Guarded::by(&format!("# rotation\n{SECRET}\n{NEXT_SECRET}\n"));
    for secret in [SECRET, NEXT_SECRET] {
        applied(guarded.post(&[("x-webhook-secret", secret)], &event()).await);
    }
    stranger(guarded.post(&[], &event()).await);
    for wrong in ["", "canary", &SECRET[1..], &SECRET[..SECRET.len() - 1], &format!("{SECRET}x"), &SECRET.to_uppercase(), "# rotation"] {
        stranger(guarded.post(&[("x-webhook-secret", wrong)], &event()).await);
    }
    stranger(guarded.post(&[("authorization", SECRET)], &event()).await);
    // Nothing of a stranger's request is looked at: not its type, not its body, not where it goes.
    stranger(guarded.post(&[], "no json").await);
    let response = guarded.web.post(format!("http://{}{WEBHOOK}/{}", guarded.server.http, "w".repeat(300))).send().await;
    assert_eq!(response.expect("an answer").status(), 401);
    assert!(guarded.server.metric("leadfold_unauthenticated_total{listener=\"http\"}").await >= 10.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_header_has_the_name_that_is_set() {
    let guarded = Guarded::with(SECRET, Options::default().env("LEADFOLD_WEBHOOK_SECRET_HEADER", "X-OmniAI-Secret"));
    applied(guarded.post(&[("x-omniai-secret", SECRET)], &event()).await);
    stranger(guarded.post(&[("x-webhook-secret", SECRET)], &event()).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_come_from_the_environment_too_and_change_with_their_file() {
    let guarded = Guarded::with(SECRET, Options::default().env("LEADFOLD_WEBHOOK_SECRET", "canary-secret-of-the-environment"));
    applied(guarded.post(&[("x-webhook-secret", "canary-secret-of-the-environment")], &event()).await);
    applied(guarded.post(&[("x-webhook-secret", SECRET)], &event()).await);
    write(guarded.dir.path(), "secrets", "short\n");
    eventually("it says so", async || guarded.server.logs().contains("stay in force").then_some(())).await;
    applied(guarded.post(&[("x-webhook-secret", SECRET)], &event()).await);
    write(guarded.dir.path(), "secrets", NEXT_SECRET);
    eventually("the new one is good", async || (guarded.post(&[("x-webhook-secret", NEXT_SECRET)], &event()).await.0 == 200).then_some(()))
        .await;
    stranger(guarded.post(&[("x-webhook-secret", SECRET)], &event()).await);
    assert!(!guarded.server.logs().contains("canary"), "{}", guarded.server.logs());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_is_turned_away_before_the_body_is_read() {
    let guarded = Guarded::by(SECRET);
    let mut stream = tokio::net::TcpStream::connect(&guarded.server.http).await.expect("a connection");
    let head = format!("POST {WEBHOOK} HTTP/1.1\r\nhost: l\r\ncontent-type: application/json\r\ncontent-length: 1000000\r\n\r\n{{");
    stream.write_all(head.as_bytes()).await.expect("the head");
    let mut answer = [0; 12];
    tokio::time::timeout(PATIENCE / 3, stream.read_exact(&mut answer)).await.expect("at once").expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 401");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_signs_with_one_of_the_secrets() {
    let other = format!("whsec_{}", STANDARD.encode([7; 32]));
    let guarded = Guarded::by(&format!("{SIGNING}\n{other}\n{SECRET}\n"));
    applied(guarded.post_signed(SIGNING, 0, &event()).await);
    applied(guarded.post_signed(&other, 0, &event()).await);
    applied(guarded.post(&[("x-webhook-secret", SECRET)], &event()).await);
    stranger(guarded.post(&[], &event()).await);
    stranger(guarded.post_signed(&format!("whsec_{}", STANDARD.encode([8; 32])), 0, &event()).await);
    // A secret to sign with is not one to say.
    stranger(guarded.post(&[("x-webhook-secret", SIGNING)], &event()).await);
    // Several signatures, of which one is good.
    let body = event();
    let mut headers = signed(SIGNING, chrono::Utc::now().timestamp(), &body);
    headers[2].1 = format!("v1a,AAAA v1,{} {}", STANDARD.encode([0; 32]), headers[2].1);
    applied(guarded.post(&headers.each_ref().map(|(name, value)| (*name, &**value)), &body).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signature_is_of_this_body_and_of_this_time() {
    let guarded = Guarded::by(SIGNING);
    for late in [290, -290] {
        applied(guarded.post_signed(SIGNING, late, &event()).await);
    }
    for late in [310, -310, 86_400, -86_400, 1_000_000_000] {
        stranger(guarded.post_signed(SIGNING, late, &event()).await);
    }
    let body = event();
    let headers = signed(SIGNING, chrono::Utc::now().timestamp(), &body);
    let with = async |name: &str, value: &str, body: &str| {
        let headers = headers.each_ref().map(|(known, old)| (*known, if *known == name { value } else { old }));
        guarded.post(&headers, body).await
    };
    let later = (chrono::Utc::now().timestamp() + 1).to_string();
    for (name, value) in [
        ("webhook-id", "msg_2"),
        ("webhook-timestamp", &*later),
        ("webhook-timestamp", "-9223372036854775808"),
        ("webhook-timestamp", "9223372036854775807"),
        ("webhook-timestamp", "99999999999999999999"),
        ("webhook-timestamp", "now"),
        ("webhook-timestamp", ""),
        ("webhook-signature", ""),
        ("webhook-signature", "v1,AAAA"),
    ] {
        stranger(with(name, value, &body).await);
    }
    stranger(with("", "", &event()).await);
    stranger(with("", "", &format!("{body} ")).await);
    stranger(with("", "", "no json").await);
    // The very same, again: a retry, or somebody who has listened. It changes nothing.
    applied(with("", "", &body).await);
    let (status, answer) = with("", "", &body).await;
    assert_eq!((status, answer["status"].as_str()), (200, Some("duplicate")), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_that_is_none_keeps_the_server_from_starting() {
    let dir = tempfile::tempdir().expect("a directory");
    for (text, expected) in [
        ("", "has no secret"),
        ("# only a comment\n\n", "has no secret"),
        ("canary-1", "line 1"),
        ("canary-secret-that-is-good\ncanary-2\n", "line 2"),
        ("whsec_", "line 1"),
        ("whsec_Y2FuYXJ5", "line 1"),
        ("whsec_canary!", "line 1"),
    ] {
        let path = write(dir.path(), "secrets", text);
        let said = Options::default().env("LEADFOLD_WEBHOOK_SECRET_FILE", path.to_str().expect("a path")).refused();
        assert!(said.starts_with("error: --webhook-secret-file") && said.contains(expected) && !said.contains("canary"), "{text}: {said}");
    }
    for bad in ["", "canary"] {
        let said = Options::default().env("LEADFOLD_WEBHOOK_SECRET", bad).refused();
        assert!(said.starts_with("error: LEADFOLD_WEBHOOK_SECRET") && !said.contains("canary"), "{bad}: {said}");
    }
    let said = Options::default().env("LEADFOLD_WEBHOOK_SECRET_HEADER", "not a header").refused();
    assert!(said.starts_with("error: --webhook-secret-header"), "{said}");
}
