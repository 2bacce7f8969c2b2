//! An address that is not that of the gRPC listener: what is there is said, and what to do.

use std::process::Command;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::complaint;
use crate::support::certificates::{Authority, with_tls};
use crate::support::events::{SAMPLE, SAMPLE_LEAD};
use crate::support::server::{Options, Server};
use crate::support::tokens::write;

/// Somebody who greets and hangs up.
async fn greeting(words: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address").to_string();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = socket.read(&mut [0; 4096]).await;
                let _ = socket.write_all(words).await;
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_speaks_at_another_address_is_said() {
    let server = Server::start(&Options::default());
    server.post(SAMPLE).await;
    let refused = TcpListener::bind("127.0.0.1:0").await.and_then(|listener| listener.local_addr()).expect("a port");
    let page = b"HTTP/1.1 404 Not Found\r\ncontent-type: text/html\r\ncontent-length: 13\r\nconnection: close\r\n\r\n<h1>Oops</h1>";
    for (address, words) in [
        (format!("http://{refused}"), ["connection refused", "is it running?"]),
        ("http://no-such-host.invalid:50051".to_owned(), ["its host is not known", "cannot reach"]),
        (format!("http://{}", server.http), ["takes webhooks", "--http-addr"]),
        (format!("https://{}", server.grpc), ["does not speak TLS", "http://"]),
        (format!("https://{}", server.http), ["does not speak TLS", "http://"]),
        (format!("http://{}", greeting(b"SSH-2.0-OpenSSH_9.2\r\n").await), ["neither gRPC nor HTTP", "not the address"]),
        (format!("http://{}", greeting(page).await), ["a web server", "no leadfold"]),
    ] {
        let said = complaint(&address, &["get", SAMPLE_LEAD]);
        assert!(words.iter().all(|word| said.contains(word)), "{address}: {said}");
    }
    let plain = super::leadfold(&server.grpc, &["get", SAMPLE_LEAD]).output().expect("it runs");
    assert!(plain.status.success(), "an address without a scheme is one: {plain:?}");
}

struct Encrypted {
    server: Server,
    dir: TempDir,
}

impl Encrypted {
    fn start(authority: &Authority) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let server = Server::start(&with_tls(Options::default(), dir.path(), authority));
        write(dir.path(), "ca.pem", &authority.pem);
        Self { server, dir }
    }

    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().expect("a path").to_owned()
    }

    fn complaint(&self, address: &str, ca: &str) -> String {
        complaint(address, &["get", "l", "--ca-file", &self.file(ca)])
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_certificate_is_said() {
    let authority = Authority::new();
    let site = Encrypted::start(&authority);
    let address = format!("https://{}", site.server.grpc);
    assert!(site.complaint(&address, "ca.pem").contains("no lead \"l\""), "all is well");
    write(site.dir.path(), "other.pem", &Authority::new().pem);
    assert!(site.complaint(&address, "other.pem").contains("authority that is not trusted here"));
    assert!(complaint(&address, &["get", "l"]).contains("name it with --ca-file"));
    write(site.dir.path(), "none.pem", "no certificate at all\n");
    assert!(site.complaint(&address, "none.pem").contains("has no certificate"));
    assert!(complaint(&format!("http://{}", site.server.grpc), &["get", "l"]).contains("it speaks TLS: write https://"));
    let webhooks = site.complaint(&format!("https://{}", site.server.http), "ca.pem");
    assert!(webhooks.contains("takes webhooks"), "{webhooks}");
    let port = site.server.grpc.rsplit(':').next().expect("a port");
    let other_name = site.complaint(&format!("https://127.0.0.2:{port}"), "ca.pem");
    assert!(other_name.contains("connection refused") || other_name.contains("for another name"), "{other_name}");
}

/// What `openssl req -x509` makes is the certificate of an authority; with what is advised it is a server's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_advice_on_a_certificate_that_signs_itself_works() {
    let dir = tempfile::tempdir().expect("a directory");
    let certificate = |more: &[&str]| {
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "cert.pem", "-days", "1"]);
        openssl.args(["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]).args(more).current_dir(dir.path());
        openssl.output().is_ok_and(|output| output.status.success())
    };
    if !certificate(&[]) {
        return eprintln!("SKIPPED: openssl is not installed");
    }
    let path = |name: &str| dir.path().join(name).to_str().expect("a path").to_owned();
    let start = || Server::start(&Options::default().env("LEADFOLD_TLS_CERT", path("cert.pem")).env("LEADFOLD_TLS_KEY", path("key.pem")));
    let ask = |server: &Server| complaint(&format!("https://{}", server.grpc), &["get", "l", "--ca-file", &path("cert.pem")]);
    let said = ask(&start());
    assert!(said.contains("one of an authority") && said.contains("-addext basicConstraints=critical,CA:FALSE"), "{said}");
    assert!(certificate(&["-addext", "basicConstraints=critical,CA:FALSE"]));
    let said = ask(&start());
    assert!(said.contains("no lead \"l\""), "{said}");
}

#[test]
fn a_token_in_the_clear_is_warned_of() {
    // Nobody is there, and nothing is sent.
    for (server, warns) in
        [("http://192.0.2.1:1", true), ("https://192.0.2.1:1", false), ("http://127.0.0.1:1", false), ("localhost:1", false)]
    {
        let mut command = super::leadfold(server, &["get", "l"]);
        let process = command.env("LEADFOLD_TOKEN", "a-token-that-is-sent").spawn().expect("it runs");
        std::thread::sleep(std::time::Duration::from_millis(700));
        let mut process = process;
        let _ = process.kill();
        let said = String::from_utf8(process.wait_with_output().expect("its end").stderr).expect("text");
        assert_eq!(said.contains("warning: the token goes to"), warns, "{server}: {said}");
    }
}
