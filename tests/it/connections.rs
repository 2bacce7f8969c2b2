//! Connections of people who are slow, silent, or many.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::support::events::{SAMPLE_TIME, message};
use crate::support::server::{Options, Server, WEBHOOK};
use crate::support::{PATIENCE, eventually, fresh_id};

const HEAD: &str = "host: l\r\ncontent-type: application/json\r\n";

fn event() -> String {
    message(&fresh_id(), "a1", SAMPLE_TIME).to_string()
}

fn request(event: &str) -> String {
    format!("POST {WEBHOOK} HTTP/1.1\r\n{HEAD}content-length: {}\r\n\r\n{event}", event.len())
}

async fn connect(address: &str) -> TcpStream {
    TcpStream::connect(address).await.expect("a connection")
}

/// Reads until the peer ends the connection, or is done for a while.
async fn answers(stream: &mut TcpStream) -> String {
    let (mut text, mut chunk) = (Vec::new(), [0; 4096]);
    let mut patience = PATIENCE;
    while let Ok(Ok(count @ 1..)) = timeout(patience, stream.read(&mut chunk)).await {
        text.extend_from_slice(&chunk[..count]);
        patience = Duration::from_millis(300);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The statuses of all answers in a text.
fn statuses(text: &str) -> Vec<u16> {
    text.split("HTTP/1.1 ").skip(1).filter_map(|rest| rest.get(..3)?.parse().ok()).collect()
}

/// How long until the peer ends a connection that is fed a byte a second.
async fn drip(address: &str, bytes: &str, then: u8) -> Duration {
    let began = Instant::now();
    let (mut read, mut write) = connect(address).await.into_split();
    let bytes = bytes.to_owned();
    let writing = tokio::spawn(async move {
        write.write_all(bytes.as_bytes()).await?;
        loop {
            sleep(Duration::from_secs(1)).await;
            write.write_all(&[then]).await?;
        }
        #[allow(unreachable_code)] // says what may fail
        Ok::<(), std::io::Error>(())
    });
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, read.read_to_end(&mut rest)).await.expect("it is ended");
    writing.abort();
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whoever_is_slow_is_let_go_and_holds_nobody_up() {
    let server = Server::start(&Options::default());
    let (http, grpc, admin) = (&server.http, &server.grpc, &server.admin);
    let body = format!("POST {WEBHOOK} HTTP/1.1\r\n{HEAD}content-length: 1000\r\n\r\n{{");
    let header = format!("POST {WEBHOOK} HTTP/1.1\r\n{HEAD}x-slow: ");
    let nothing = async |address: &str| {
        let began = Instant::now();
        let _ = timeout(PATIENCE, connect(address).await.read_to_end(&mut Vec::new())).await.expect("it is ended");
        began.elapsed()
    };
    let served = async {
        for _ in 0..20 {
            let began = Instant::now();
            assert_eq!(server.post(event()).await.status, 200);
            assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
            sleep(Duration::from_millis(400)).await;
        }
    };
    let (a, b, c, d, e, f, ()) = tokio::join!(
        drip(http, &header, b'x'),
        drip(http, "P", b'O'),
        drip(http, &body, b' '),
        nothing(http),
        nothing(grpc),
        nothing(admin),
        served
    );
    for took in [a, b, d, e, f] {
        assert!((Duration::from_secs(8)..PATIENCE).contains(&took), "{:?}", [a, b, d, e, f]);
    }
    // Bodies have a least rate.
    assert!((Duration::from_secs(2)..Duration::from_secs(8)).contains(&c), "{c:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_ends_wherever_it_stopped_and_one_with_a_watch_stays() {
    let server = Server::start(&Options::default().env("LEADFOLD_IDLE_CONNECTION_SECONDS", "1"));
    let mut after_a_request = connect(&server.http).await;
    after_a_request.write_all(request(&event()).as_bytes()).await.expect("sent");
    let mut half_a_preface = connect(&server.grpc).await;
    half_a_preface.write_all(b"PRI * HTTP/2.0\r\n").await.expect("sent");
    let lead_id = fresh_id();
    let channel = server.channel();
    let mut watch = crate::support::watching::LeadWatch::over(&channel, &lead_id, 0).await.expect("the stream opens");
    watch.next().await;
    for (name, mut stream) in [("after a request", after_a_request), ("half a preface", half_a_preface)] {
        let mut rest = Vec::new();
        let ended = timeout(Duration::from_secs(6), stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "{name}: it stays");
    }
    // A connection that is used goes on.
    let mut used = connect(&server.http).await;
    for _ in 0..8 {
        used.write_all(request(&event()).as_bytes()).await.expect("sent");
        let mut status = [0; 12];
        timeout(PATIENCE, used.read_exact(&mut status)).await.expect("in time").expect("an answer");
        assert_eq!(&status, b"HTTP/1.1 200");
        let mut rest = [0; 4096];
        let _ = timeout(Duration::from_millis(400), used.read(&mut rest)).await;
        sleep(Duration::from_millis(100)).await;
    }
    let newest = server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    assert_eq!(crate::support::watching::version(&watch.next().await), newest);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_have_a_number_and_a_size() {
    let server = Server::start(&Options::default());
    let with = async |headers: &str| {
        let body = event();
        let text = format!("POST {WEBHOOK} HTTP/1.1\r\n{HEAD}{headers}content-length: {}\r\n\r\n{body}", body.len());
        let mut stream = connect(&server.http).await;
        // The answer may come before everything is sent.
        let _ = stream.write_all(text.as_bytes()).await;
        statuses(&answers(&mut stream).await)
    };
    let many = |count: usize| (0..count).map(|number| format!("x-{number}: y\r\n")).collect::<String>();
    assert_eq!(with(&many(90)).await, [200]);
    assert_eq!(with(&many(101)).await, [431]);
    assert_eq!(with(&format!("x: {}\r\n", "y".repeat(32 * 1024))).await, [200]);
    assert_eq!(with(&format!("x: {}\r\n", "y".repeat(100 * 1024))).await, [431]);
    let path = format!("POST /{} HTTP/1.1\r\n{HEAD}\r\n", "y".repeat(100 * 1024));
    let mut stream = connect(&server.http).await;
    let _ = stream.write_all(path.as_bytes()).await;
    assert!(statuses(&answers(&mut stream).await).iter().all(|status| [414, 431].contains(status)));
    assert_eq!(server.post(event()).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_has_a_limit_of_connections() {
    let server = Server::start(&Options::default().env("LEADFOLD_MAX_CONNECTIONS", "3"));
    let held = [connect(&server.http).await, connect(&server.http).await, connect(&server.http).await];
    let mut refused = connect(&server.http).await;
    let mut rest = Vec::new();
    let _ = timeout(Duration::from_secs(3), refused.read_to_end(&mut rest)).await.expect("it is ended at once");
    assert_eq!(server.metric("leadfold_connections_refused_total{listener=\"http\"}").await, 1.0);
    drop(held);
    let text = request(&event());
    let answer = eventually("there is room again", async || {
        let answer = exchange_or_nothing(&server, &text).await;
        (!answer.is_empty()).then_some(answer)
    })
    .await;
    assert_eq!(statuses(&answer), [200]);
}

async fn exchange_or_nothing(server: &Server, text: &str) -> String {
    let mut stream = connect(&server.http).await;
    let _ = stream.write_all(text.as_bytes()).await;
    answers(&mut stream).await
}

/// `LEADFOLD_TEST_SILENT=10000` for the full number.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_say_nothing_cost_little() {
    let count: usize = std::env::var("LEADFOLD_TEST_SILENT").map_or(1000, |count| count.parse().expect("a number"));
    let server = Server::start(&Options::default());
    assert_eq!(server.post(event()).await.status, 200);
    // What pages of metrics take is not the connections'.
    for _ in 0..20 {
        server.metric("leadfold_connections{listener=\"http\"}").await;
    }
    let before = server.memory();
    let mut held = Vec::new();
    for at in 0..count {
        // Loopback has more addresses than one, which have ports of their own.
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        let from = format!("127.0.0.{}:0", 2 + at % 8).parse().expect("an address");
        socket.bind(from).expect("a local address");
        held.push(socket.connect(server.http.parse().expect("an address")).await.expect("a connection"));
    }
    // One more has posted an event, and stays.
    #[allow(clippy::cast_precision_loss)] // of a small number
    server.eventually_metric("leadfold_connections{listener=\"http\"}", (held.len() + 1) as f64).await;
    let grown = server.memory().saturating_sub(before);
    let each = grown / count as u64;
    println!("{count} silent connections: {before} bytes before, {grown} more, {each} each");
    assert!(each < 8192, "{each} bytes each");
    let began = Instant::now();
    assert_eq!(server.post(event()).await.status, 200);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    drop(held);
    server.eventually_metric("leadfold_connections{listener=\"http\"}", 1.0).await;
}
