//! Senders that mean no good: they know no secret, and hold what they can. A sender that is well-behaved is served
//! meanwhile, promptly, and the server's memory stays bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use standardwebhooks::Webhook;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::support::events::{SAMPLE_TIME, message};
use crate::support::server::{Options, Server, WEBHOOK};
use crate::support::{PATIENCE, eventually, fresh_id};

const SECRET: &str = "canary-secret-of-the-sender";
const SIGNING: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
/// Of the right form, and by nobody.
const FORGED: &str = "v1,AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
/// How long they go on: longer than a body may take of which nothing comes.
const ATTACK: Duration = Duration::from_secs(6);
/// How much longer than at a server that nobody attacks a well-behaved sender may have to wait for its answer, nine times of
/// ten: the machine may be busy.
const PROMPT: Duration = Duration::from_secs(1);
/// Requests that a connection opens every 200 ms for those that were ended.
const REOPENED: usize = 10;
/// Connections of HTTP/1.1.
const CONNECTIONS: usize = 150;
/// Megabytes that the server may use, in a build without optimizations.
const MEMORY: u64 = 220;

/// Each attack takes all of a small machine: one at a time.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// How senders prove who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Signature,
    Secret,
    Nothing,
}

impl Scheme {
    fn server(self) -> Server {
        let options = match self {
            Self::Signature => Options::default().env("LEADFOLD_WEBHOOK_SECRET", SIGNING),
            Self::Secret => Options::default().env("LEADFOLD_WEBHOOK_SECRET", SECRET),
            Self::Nothing => Options::default(),
        };
        Server::start(&options)
    }

    /// What somebody says who does not know.
    fn forged(self) -> Vec<(&'static str, String)> {
        match self {
            Self::Signature => {
                let now = chrono::Utc::now().timestamp().to_string();
                vec![("webhook-id", "msg_1".to_owned()), ("webhook-timestamp", now), ("webhook-signature", FORGED.to_owned())]
            }
            Self::Secret => vec![("x-webhook-secret", "not-the-secret-of-anybody".to_owned())],
            Self::Nothing => Vec::new(),
        }
    }

    /// Posts an event as those do who know.
    async fn post(self, web: &reqwest::Client, server: &Server) -> u16 {
        let body = message(&fresh_id(), "a1", SAMPLE_TIME).to_string();
        let request = web.post(format!("http://{}{WEBHOOK}", server.http)).header("content-type", "application/json");
        let request = match self {
            Self::Signature => {
                let now = chrono::Utc::now().timestamp();
                let signature = Webhook::new(SIGNING).expect("a secret").sign("msg_1", now, body.as_bytes()).expect("a signature");
                request.header("webhook-id", "msg_1").header("webhook-timestamp", now).header("webhook-signature", signature)
            }
            Self::Secret => request.header("x-webhook-secret", SECRET),
            Self::Nothing => request,
        };
        request.body(body).send().await.expect("an answer").status().as_u16()
    }
}

/// What a body does that never ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    /// Nothing comes of it.
    Silent,
    /// A byte now and then.
    Dripping,
    /// All of it but its last byte.
    Large,
}

impl Body {
    fn first(self) -> Bytes {
        match self {
            Self::Silent => Bytes::new(),
            Self::Dripping => Bytes::from_static(b"{"),
            Self::Large => Bytes::from(vec![b' '; (1 << 20) - 1]),
        }
    }
}

/// Holds as many streams of an HTTP/2 connection as the server lets, and opens new ones for those that end.
async fn hold_http2(address: String, scheme: Scheme, body: Body, opened: Arc<AtomicUsize>) {
    let first = body.first();
    loop {
        let Ok(tcp) = TcpStream::connect(&address).await else { continue };
        let Ok((client, connection)) = h2::client::handshake(tcp).await else { continue };
        let connection = tokio::spawn(connection);
        let (mut held, mut most) = (Vec::new(), 1000);
        while !connection.is_finished() {
            // As many as there were once, and then as many as keep the machine from being the limit.
            while held.len() < most {
                let Ok(Ok(mut ready)) = timeout(Duration::from_millis(100), client.clone().ready()).await else { break };
                let request = http::Request::post(format!("http://{address}{WEBHOOK}")).header("content-type", "application/json");
                let request = request.header("content-length", 1 << 20);
                let request = scheme.forged().into_iter().fold(request, |request, (name, value)| request.header(name, value));
                let Ok((answer, mut stream)) = ready.send_request(request.body(()).expect("a request"), false) else { break };
                opened.fetch_add(1, Ordering::Relaxed);
                let _ = stream.send_data(first.clone(), false);
                held.push((answer, stream));
            }
            sleep(Duration::from_millis(200)).await;
            held.retain_mut(|(answer, stream)| {
                if body == Body::Dripping && stream.send_data(Bytes::from_static(b" "), false).is_err() {
                    return false;
                }
                futures::FutureExt::now_or_never(answer).is_none()
            });
            most = held.len() + REOPENED;
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Holds one HTTP/1.1 connection, and opens another when it ends.
async fn hold_http1(address: String, scheme: Scheme, body: Body, chunked: bool, opened: Arc<AtomicUsize>) {
    let headers: String = scheme.forged().iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = if chunked { "transfer-encoding: chunked\r\n" } else { "content-length: 1048576\r\n" };
    let head = format!("POST {WEBHOOK} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{headers}{length}\r\n");
    let chunk = |data: &[u8]| if chunked { [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat() } else { data.to_vec() };
    let first = body.first();
    let first = if first.is_empty() { Vec::new() } else { chunk(&first) };
    loop {
        if let Ok(mut tcp) = TcpStream::connect(&address).await
            && tcp.write_all(head.as_bytes()).await.is_ok()
            && tcp.write_all(&first).await.is_ok()
        {
            opened.fetch_add(1, Ordering::Relaxed);
            let mut answer = [0; 64];
            loop {
                match timeout(Duration::from_millis(200), tcp.read(&mut answer)).await {
                    Ok(_) => break,
                    Err(_) if body == Body::Dripping && tcp.write_all(&chunk(b" ")).await.is_err() => break,
                    Err(_) => {}
                }
            }
        }
        sleep(Duration::from_millis(500)).await;
    }
}

/// The most memory that the server had so far, in megabytes.
fn peak_memory(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("its state");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
}

/// While the attack goes on, a well-behaved sender is served promptly, over one connection and over new ones.
async fn a_good_sender_is_served(scheme: Scheme, server: &Server, mut attack: JoinSet<()>, opened: &AtomicUsize, at_least: usize) {
    eventually("they have begun", async || (opened.load(Ordering::Relaxed) >= at_least).then_some(())).await;
    let client = || reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().expect("a client");
    let kept = client();
    let began = Instant::now();
    let quiet = scheme.server();
    let (mut took, mut took_elsewhere) = (Vec::new(), Vec::new());
    while began.elapsed() < ATTACK {
        for web in [&kept, &client()] {
            let sent = Instant::now();
            assert_eq!(scheme.post(web, server).await, 200, "{:?} after {}", began.elapsed(), took.len());
            took.push(sent.elapsed());
        }
        let sent = Instant::now();
        assert_eq!(scheme.post(&client(), &quiet).await, 200);
        took_elsewhere.push(sent.elapsed());
        sleep(Duration::from_millis(100)).await;
    }
    attack.abort_all();
    let memory = peak_memory(server);
    let opened = opened.load(Ordering::Relaxed);
    let most_of = |took: &mut Vec<Duration>| {
        took.sort();
        took[took.len() * 9 / 10]
    };
    let (count, most, elsewhere) = (took.len(), most_of(&mut took), most_of(&mut took_elsewhere));
    eprintln!("{scheme:?}: {count} served, most in {most:?}, elsewhere {elsewhere:?}; {opened} requests of others; {memory} MB at most");
    assert!(most < PROMPT + elsewhere, "{most:?}, elsewhere {elsewhere:?}");
    assert!(memory < MEMORY, "{memory} MB");
}

async fn http2(scheme: Scheme, body: Body, connections: usize) {
    let _alone = ALONE.lock().await;
    let server = scheme.server();
    let (mut attack, opened) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
    for _ in 0..connections {
        attack.spawn(hold_http2(server.http.clone(), scheme, body, Arc::clone(&opened)));
    }
    a_good_sender_is_served(scheme, &server, attack, &opened, connections * 50).await;
}

async fn http1(scheme: Scheme, body: Body, chunked: bool) {
    let _alone = ALONE.lock().await;
    let server = scheme.server();
    let (mut attack, opened) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
    for _ in 0..CONNECTIONS {
        attack.spawn(hold_http1(server.http.clone(), scheme, body, chunked, Arc::clone(&opened)));
    }
    a_good_sender_is_served(scheme, &server, attack, &opened, CONNECTIONS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_requests_with_a_forged_signature_cost_nobody_a_place() {
    http2(Scheme::Signature, Body::Silent, 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_half_open_requests_displace_each_other() {
    http2(Scheme::Signature, Body::Dripping, 25).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_of_nobody_known_do_not_fill_the_memory() {
    http2(Scheme::Signature, Body::Large, 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_requests_without_the_secret_cost_nobody_a_place() {
    http2(Scheme::Secret, Body::Large, 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_requests_where_no_secret_is_asked_for_cost_nobody_a_place() {
    http2(Scheme::Nothing, Body::Large, 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_drip_a_body_cost_nobody_a_place() {
    http1(Scheme::Signature, Body::Dripping, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_drip_chunks_cost_nobody_a_place() {
    http1(Scheme::Nothing, Body::Dripping, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_with_large_chunks_do_not_fill_the_memory() {
    http1(Scheme::Signature, Body::Large, true).await;
}
