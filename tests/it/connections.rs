//! Connections of people who are slow, silent, or many.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::support::events::{SAMPLE_TIME, message};
use crate::support::raw::Raw;
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
    // A body is given up before, for it has a least rate. What still comes of it is read, so that its sender sees the answer.
    for took in [a, b, c, d, e, f] {
        assert!((Duration::from_secs(8)..PATIENCE).contains(&took), "{:?}", [a, b, c, d, e, f]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_idle_connection_lives_as_long_as_it_may_and_one_with_a_watch_stays() {
    // Longer than headers may take, and longer than a connection may be silent in other places.
    let server = Server::start(&Options::default().env("LEADFOLD_IDLE_CONNECTION_SECONDS", "12"));
    let lead_id = fresh_id();
    let channel = server.channel();
    let mut watch = crate::support::watching::LeadWatch::over(&channel, &lead_id, 0).await.expect("the stream opens");
    watch.next().await;
    let expected = Duration::from_secs(11)..PATIENCE;
    let idle = [&server.http, &server.admin].map(async |address| {
        let mut connection = Raw::to(address).await;
        let request = if *address == server.http { request(&event()) } else { "GET /livez HTTP/1.1\r\nhost: l\r\n\r\n".to_owned() };
        assert!(!connection.ask(&request).await.is_last());
        sleep(Duration::from_secs(3)).await;
        assert_eq!(connection.ask(request).await.status, 200);
        let began = Instant::now();
        assert!(connection.ends_within(PATIENCE).await, "HTTP/1.1 stays");
        assert!(expected.contains(&began.elapsed()), "HTTP/1.1 ended after {:?}", began.elapsed());
    });
    // By HTTP/2, requests count, and neither pings nor what else is said.
    let pinged = [&server.http, &server.grpc].map(async |address| {
        let began = Instant::now();
        let (client, mut connection) = h2::client::handshake(connect(address).await).await.expect("HTTP/2");
        let mut pings = connection.ping_pong().expect("pings");
        let pinging = tokio::spawn(async move {
            while pings.ping(h2::Ping::opaque()).await.is_ok() {
                sleep(Duration::from_millis(200)).await
            }
        });
        timeout(PATIENCE, connection).await.expect("HTTP/2 stays although it asks nothing").expect("it ends well");
        assert!(expected.contains(&began.elapsed()), "HTTP/2 ended after {:?}", began.elapsed());
        pinging.await.expect("the pings end");
        drop(client);
    });
    let half_a_preface = async {
        let mut connection = Raw::to(&server.grpc).await;
        let began = Instant::now();
        connection.send("PRI * HTTP/2.0\r\n").await;
        assert!(connection.ends_within(PATIENCE).await, "half a preface stays");
        assert!((Duration::from_secs(9)..Duration::from_secs(12)).contains(&began.elapsed()), "half a preface: {:?}", began.elapsed());
    };
    let half_a_head = async {
        let mut connection = Raw::to(&server.http).await;
        assert_eq!(connection.ask(request(&event())).await.status, 200);
        let began = Instant::now();
        connection.send(&request(&event())[..40]).await;
        let answer = connection.answer().await;
        assert!(answer.status == 408 && answer.is_last() && !answer.error().is_empty(), "{answer:?}");
        assert!((Duration::from_secs(9)..Duration::from_secs(12)).contains(&began.elapsed()), "half a head: {:?}", began.elapsed());
    };
    // Which some send between requests.
    let empty_lines = [&server.http, &server.grpc, &server.admin].map(async |address| {
        let began = Instant::now();
        let (mut reader, mut writer) = connect(address).await.into_split();
        let writing = tokio::spawn(async move {
            while writer.write_all(b"\r\n").await.is_ok() {
                sleep(Duration::from_millis(500)).await;
            }
        });
        let _ = timeout(PATIENCE, reader.read_to_end(&mut Vec::new())).await.expect("empty lines keep a connection");
        assert!(expected.contains(&began.elapsed()), "empty lines: {:?}", began.elapsed());
        writing.abort();
    });
    tokio::join!(
        futures::future::join_all(idle),
        futures::future::join_all(pinged),
        futures::future::join_all(empty_lines),
        half_a_preface,
        half_a_head
    );
    assert_eq!(server.logs().matches("status=408").count(), 2, "{}", server.logs());
    let newest = server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    let told = async { while crate::support::watching::version(&watch.next().await) != newest {} };
    timeout(PATIENCE, told).await.expect("the watch goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_idle_time_ends_what_is_idle_and_nothing_else() {
    let server = Server::start(&Options::default().env("LEADFOLD_IDLE_CONNECTION_SECONDS", "1"));
    let mut idle = Raw::to(&server.http).await;
    assert_eq!(idle.ask(request(&event())).await.status, 200);
    assert!(idle.ends_within(Duration::from_secs(6)).await, "it stays");
    // A connection that is used goes on, and a request that takes longer is not idle.
    let (mut used, began) = (Raw::to(&server.http).await, Instant::now());
    while began.elapsed() < Duration::from_secs(3) {
        let answer = used.ask(request(&event())).await;
        assert!(answer.status == 200 && !answer.is_last(), "{answer:?}");
        sleep(Duration::from_millis(500)).await;
    }
    let (slow, event) = (request(&event()), began.elapsed());
    let (head, body) = slow.split_at(slow.len() - 20);
    used.send(head).await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(used.ask(body).await.status, 200, "after {event:?}");
}

/// A page that is closed while it watches by HTTP/1.1 is noticed, although one that closes its sending half is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_by_http_1_ends_when_its_reader_is_gone() {
    let server = Server::start(&Options::default());
    let mut watch = Raw::to(&server.grpc).await;
    // A message of no bytes but the id of a lead.
    let message = b"\0\0\0\0\x03\x0a\x01x";
    let head = "POST /leadfold.v1.LeadService/WatchLead HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/grpc-web+proto\r\ncontent-length: 8\r\n\r\n";
    watch.send([head.as_bytes(), message].concat()).await;
    let answer = watch.answer().await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let gauge = "leadfold_connections{listener=\"grpc\"}";
    server.eventually_metric(gauge, 1.0).await;
    drop(watch);
    let began = Instant::now();
    server.eventually_metric(gauge, 0.0).await;
    assert!(began.elapsed() < Duration::from_secs(5), "only after {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_have_the_same_number_and_size_by_both_protocols() {
    let server = Server::start(&Options::default());
    let many = |count: usize| (0..count).map(|number| (format!("x-{number}"), "y".to_owned())).collect::<Vec<_>>();
    let large = |bytes: usize| vec![("x-large".to_owned(), "y".repeat(bytes))];
    let cases = [
        (many(90), 200),
        (many(101), 431),
        (large(32 << 10), 200),
        (large(60 << 10), 200),
        (large(66 << 10), 431),
        (large(100 << 10), 431),
    ];
    for (headers, status) in &cases {
        let body = event();
        let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let mut connection = Raw::to(&server.http).await;
        connection.send(format!("POST {WEBHOOK} HTTP/1.1\r\n{HEAD}{lines}content-length: {}\r\n\r\n{body}", body.len())).await;
        let answer = connection.answer().await;
        assert_eq!(answer.status, *status, "HTTP/1.1, {} headers: {answer:?}", headers.len());
        if *status == 431 {
            assert!(answer.error().contains("100 headers and 64 KiB") && answer.is_last(), "{answer:?}");
        }
    }
    let (mut client, connection) =
        h2::client::Builder::new().handshake::<_, bytes::Bytes>(connect(&server.http).await).await.expect("HTTP/2");
    let connection = tokio::spawn(connection);
    for (headers, status) in &cases {
        let mut request = http::Request::post(format!("http://l{WEBHOOK}")).header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let (answer, mut body) = client.send_request(request.body(()).expect("a request"), false).expect("sent");
        let _ = body.send_data(event().into(), true);
        let answer = timeout(PATIENCE, answer).await.expect("in time").expect("an answer");
        assert_eq!(answer.status(), *status, "HTTP/2, {} headers", headers.len());
        assert_eq!(answer.headers()["content-type"], "application/json");
        let mut body = answer.into_body();
        let text = body.data().await.expect("a body").expect("a body");
        assert!(*status != 431 || String::from_utf8_lossy(&text).contains("100 headers and 64 KiB"), "{text:?}");
        client = client.ready().await.expect("the connection goes on");
    }
    drop(client);
    connection.abort();
    assert_eq!(server.logs().matches("status=431").count(), 6, "{}", server.logs());
    // A path has no limit of its own.
    let mut connection = Raw::to(&server.http).await;
    let answer = connection.ask(format!("POST /{} HTTP/1.1\r\n{HEAD}\r\n", "y".repeat(100 * 1024))).await;
    assert!([414, 431].contains(&answer.status) && !answer.error().is_empty(), "{answer:?}");
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
