//! Web pages and webhooks: where nobody is asked for a secret, no page may post events, whatever its name leads to.

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::support::browser::Browser;
use crate::support::events::{SAMPLE_TIME, message};
use crate::support::server::{Options, Server, WEBHOOK};
use crate::support::{PATIENCE, fresh_id};

/// Posts an event with these headers, as they stand: its status, and what was answered.
async fn post(server: &Server, version: &str, headers: &str) -> (u16, Value) {
    let event = message(&fresh_id(), "a1", SAMPLE_TIME).to_string();
    let request = format!(
        "POST {WEBHOOK} {version}\r\n{headers}content-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{event}",
        event.len()
    );
    let mut stream = TcpStream::connect(&server.http).await.expect("a connection");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("in time").expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    (head[9..12].parse().expect("a status"), serde_json::from_str(body).expect("JSON"))
}

/// Events that were applied so far.
async fn applied(server: &Server) -> f64 {
    server.metric("leadfold_webhooks_total{event=\"action_log.completed\",result=\"applied\"}").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_secret_no_page_posts_events() {
    let server = Server::start(&Options::default().env("LEADFOLD_ALLOWED_HOST", "leads.example.com"));
    let address = server.http.clone();
    let port = address.rsplit(':').next().expect("a port");
    for good in [
        format!("host: {address}\r\n"),
        format!("host: localhost:{port}\r\n"),
        format!("host: LOCALHOST:{port}\r\n"),
        format!("host: [::1]:{port}\r\n"),
        "host: leads.example.com\r\n".to_owned(),
        // A machine or a service of the same network.
        "host: leadfold:8080\r\n".to_owned(),
        format!("host: {address}\r\nsec-fetch-site: same-origin\r\n"),
        format!("host: {address}\r\norigin: http://{address}\r\n"),
    ] {
        assert_eq!(post(&server, "HTTP/1.1", &good).await.0, 200, "{good}");
    }
    assert_eq!(post(&server, "HTTP/1.0", "").await.0, 200, "no browser leaves out the host");
    let before = applied(&server).await;
    for bad in [
        // Rebinding: the page's own name leads here.
        format!("host: evil.example:{port}\r\norigin: http://evil.example:{port}\r\nsec-fetch-site: same-origin\r\n"),
        format!("host: evil.example:{port}\r\norigin: http://evil.example:{port}\r\n"),
        format!("host: evil.example:{port}\r\n"),
        "host: localhost.evil.example\r\n".to_owned(),
        "host: 127.0.0.1.evil.example\r\n".to_owned(),
        format!("host: {address}\r\nhost: evil.example\r\n"),
        "host: \r\n".to_owned(),
        "host: evil\r\norigin: http://evil\r\n".to_owned(),
        // Forms and scripts of other pages.
        format!("host: {address}\r\norigin: https://evil.example\r\nsec-fetch-site: cross-site\r\n"),
        format!("host: {address}\r\norigin: https://evil.example\r\n"),
        format!("host: {address}\r\norigin: null\r\n"),
        format!("host: {address}\r\norigin: http://localhost:{port}\r\nsec-fetch-site: same-site\r\n"),
        format!("host: {address}\r\nsec-fetch-site: cross-site\r\n"),
        format!("host: {address}\r\nsec-fetch-site: none\r\n"),
    ] {
        let (status, answer) = post(&server, "HTTP/1.1", &bad).await;
        // With two hosts it is no request at all.
        let expected = if bad.contains("\r\nhost:") { 400 } else { 403 };
        assert!(status == expected && answer["error"].is_string(), "{bad}: {status} {answer}");
    }
    assert_eq!(applied(&server).await, before, "nothing of it was kept");
    assert!(server.logs().contains("status=403"), "{}", server.logs());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_secret_a_page_has_none_and_any_name_will_do() {
    let server = Server::start(&Options::default().env("LEADFOLD_WEBHOOK_SECRET", "canary-secret-of-the-sender"));
    let secret = "x-webhook-secret: canary-secret-of-the-sender\r\n";
    assert_eq!(post(&server, "HTTP/1.1", &format!("host: leads.example.com\r\n{secret}")).await.0, 200);
    assert_eq!(post(&server, "HTTP/1.1", "host: evil.example\r\norigin: http://evil.example\r\n").await.0, 401);
}

/// A real browser, which shows a foreign page.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_another_origin_posts_nothing_in_chromium() {
    let Some(browser) = Browser::start().await else { return };
    let server = Server::start(&Options::default());
    let page = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let origin = format!("http://{}", page.local_addr().expect("an address"));
    tokio::spawn(async move {
        loop {
            let Ok((mut stream, _)) = page.accept().await else { return };
            let _ = stream.read(&mut [0; 4096]).await;
            let answer =
                b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\ncontent-length: 21\r\n\r\n<title>foreign</title";
            let _ = stream.write_all(answer).await;
        }
    });
    browser.open(&origin).await;
    let event = serde_json::to_string(&message(&fresh_id(), "a1", SAMPLE_TIME).to_string()).expect("JSON");
    let script = format!(
        "const url = 'http://{}{WEBHOOK}', body = {event};
         const post = (mode, type) => fetch(url, {{method: 'POST', mode, headers: {{'content-type': type}}, body}})
           .then(answer => answer.type, () => 'failed');
         Promise.all([post('no-cors', 'text/plain'), post('cors', 'application/json'), post('cors', 'text/plain')]).then(done);",
        server.http
    );
    let outcomes = browser.run(&script).await;
    assert_eq!(outcomes[1], "failed", "{outcomes}");
    assert_eq!(applied(&server).await, 0.0);
    assert!(server.logs().contains("status=403"), "{}", server.logs());
}
