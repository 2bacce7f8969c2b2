//! Behind proxies: whose request it is, by `X-Forwarded-For` and by the PROXY protocol, with the real haproxy and nginx.

use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use leadfold::api::GetLeadRequest;
use leadfold::api::lead_service_client::LeadServiceClient;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tonic::transport::Endpoint;

use crate::support::certificates::{Authority, with_tls};
use crate::support::events::{SAMPLE_TIME, message};
use crate::support::proxies::{installed, is_left_out};
use crate::support::redis::free_port;
use crate::support::server::{Options, Server, WEBHOOK};
use crate::support::{PATIENCE, eventually, fresh_id};

/// Events per second that each client may send.
const RATE: usize = 3;
/// Two clients. Proxies are at 127.0.0.1.
const CLIENTS: [[u8; 4]; 2] = [[127, 0, 0, 2], [127, 0, 0, 3]];

fn event() -> String {
    message(&fresh_id(), "a1", SAMPLE_TIME).to_string()
}

/// A running haproxy or nginx; dropped, it is killed.
struct Proxy {
    address: String,
    process: Child,
    dir: TempDir,
}

impl Proxy {
    /// Starts one with a configuration for the address where it is to listen.
    fn start(program: &str, config: impl Fn(&str, &str) -> String) -> Option<Self> {
        let path = installed(program)?;
        // Somebody else may take a free port first.
        for _ in 0..5 {
            let (address, dir) = (format!("127.0.0.1:{}", free_port()), tempfile::tempdir().expect("a directory"));
            let (file, log) = (dir.path().join("config"), std::fs::File::create(dir.path().join("log")).expect("a log"));
            std::fs::write(&file, config(&address, &dir.path().display().to_string())).expect("a configuration");
            let mut command = Command::new(&path);
            match program {
                "nginx" => command.arg("-p").arg(dir.path()).arg("-c").arg(&file).args(["-e", "stderr"]),
                _ => command.args(["-db", "-f"]).arg(&file),
            };
            command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file")).stderr(log);
            let process = command.spawn().expect("it can be started");
            let mut proxy = Self { address, process, dir };
            if proxy.is_listening() {
                return Some(proxy);
            }
            eprintln!("{program} does not start: {}", proxy.log());
        }
        panic!("{program} does not start");
    }

    fn is_listening(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline && self.process.try_wait().expect("its state").is_none() {
            if std::net::TcpStream::connect(&self.address).is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("--- the log of the proxy ---\n{}---", self.log());
        }
    }
}

fn haproxy(mode: &str, server: &str, options: &str) -> impl Fn(&str, &str) -> String {
    let (mode, server, options) = (mode.to_owned(), server.to_owned(), options.to_owned());
    move |address, _| {
        let forward = if mode == "http" { "option forwardfor" } else { "" };
        format!(
            "global\n  log stderr format raw local0 warning\ndefaults\n  mode {mode}\n  log global\n  {forward}\n  timeout connect 5s\n  \
             timeout client 1m\n  timeout server 1m\nlisten front\n  bind {address}\n  server server {server} {options}\n"
        )
    }
}

fn nginx_http(server: &str) -> impl Fn(&str, &str) -> String {
    let server = server.to_owned();
    move |address, dir| {
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|name| format!("{name}_temp_path {dir}/{name};")).concat();
        format!(
            "daemon off; master_process off; pid {dir}/pid; error_log stderr warn;
             events {{ worker_connections 256; }}
             http {{
               access_log off; {temporary}
               upstream server {{ server {server}; keepalive 16; }}
               server {{ listen {address}; location / {{
                 proxy_pass http://server; proxy_http_version 1.1; proxy_set_header Connection '';
                 proxy_set_header Host $http_host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }} }}
             }}\n"
        )
    }
}

/// `None`: this nginx knows no streams.
fn nginx_stream(server: &str) -> Option<impl Fn(&str, &str) -> String + use<>> {
    let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
    if is_left_out("nginx") {
        return None;
    }
    if !std::path::Path::new(module).is_file() {
        assert!(std::env::var_os("CI").is_none(), "nginx has no stream module: .ci/run installs it");
        eprintln!("SKIPPED: nginx has no stream module");
        return None;
    }
    let server = server.to_owned();
    Some(move |address: &str, dir: &str| {
        format!(
            "daemon off; master_process off; pid {dir}/pid; error_log stderr warn; load_module {module};
             events {{ worker_connections 256; }}
             stream {{ server {{ listen {address}; proxy_pass {server}; proxy_protocol on; }} }}\n"
        )
    })
}

fn options(protocol: &str) -> Options {
    let options = Options::default().env("LEADFOLD_MAX_WEBHOOKS_PER_SECOND", RATE.to_string()).env("LEADFOLD_TRUSTED_PROXY", "127.0.0.1");
    if protocol.is_empty() { options } else { options.env("LEADFOLD_PROXY_PROTOCOL", protocol) }
}

/// A client at an address of its own.
fn client(address: [u8; 4], authority: Option<&str>) -> reqwest::Client {
    let builder = reqwest::Client::builder().no_proxy().timeout(PATIENCE).local_address(IpAddr::from(address));
    let builder = match authority {
        None => builder,
        Some(pem) => builder.add_root_certificate(reqwest::Certificate::from_pem(pem.as_bytes()).expect("a certificate")),
    };
    builder.build().expect("a client")
}

async fn post(client: &reqwest::Client, url: &str, forwarded_for: &str) -> u16 {
    let request = client.post(format!("{url}{WEBHOOK}")).header("content-type", "application/json").body(event());
    let request = if forwarded_for.is_empty() { request } else { request.header("x-forwarded-for", forwarded_for) };
    request.send().await.expect("an answer").status().as_u16()
}

/// Through a proxy: one client uses up its own rate, whatever it claims to be, and another one is served.
async fn each_client_has_its_own_rate(url: &str, authority: Option<&str>) {
    let [one, other] = CLIENTS.map(|address| client(address, authority));
    let mut refused = 0;
    for at in 0..10 * RATE {
        let claim = format!("192.0.2.{at}");
        match post(&one, url, &claim).await {
            200 => {}
            429 => refused += 1,
            status => panic!("{status}"),
        }
    }
    assert!(refused > 0, "it is known by its address, whatever it claims");
    assert_eq!(post(&other, url, "").await, 200, "another client has a rate of its own");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxies_that_speak_http_say_whose_request_it_is() {
    let server = Server::start(&options(""));
    if let Some(proxy) = Proxy::start("nginx", nginx_http(&server.http)) {
        each_client_has_its_own_rate(&format!("http://{}", proxy.address), None).await;
    }
    let server = Server::start(&options(""));
    if let Some(proxy) = Proxy::start("haproxy", haproxy("http", &server.http, "")) {
        each_client_has_its_own_rate(&format!("http://{}", proxy.address), None).await;
    }
    // One proxy behind the other: both are trusted.
    let server = Server::start(&options(""));
    if let Some(inner) = Proxy::start("nginx", nginx_http(&server.http))
        && let Some(outer) = Proxy::start("haproxy", haproxy("http", &inner.address, ""))
    {
        each_client_has_its_own_rate(&format!("http://{}", outer.address), None).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxies_that_pass_bytes_on_say_whose_connection_it_is() {
    for flag in ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options unique-id,crc32c", "send-proxy check inter 100ms"] {
        let server = Server::start(&options("http"));
        let Some(proxy) = Proxy::start("haproxy", haproxy("tcp", &server.http, flag)) else { return };
        each_client_has_its_own_rate(&format!("http://{}", proxy.address), None).await;
    }
    let server = Server::start(&options("http"));
    if let Some(config) = nginx_stream(&server.http)
        && let Some(proxy) = Proxy::start("nginx", config)
    {
        each_client_has_its_own_rate(&format!("http://{}", proxy.address), None).await;
    }
}

/// The header comes before TLS, which the proxy does not open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_proxy_protocol_comes_before_tls() {
    for flag in ["send-proxy", "send-proxy-v2 check inter 100ms"] {
        let (authority, dir) = (Authority::new(), tempfile::tempdir().expect("a directory"));
        let server = Server::start(&with_tls(options("http"), dir.path(), &authority));
        let Some(proxy) = Proxy::start("haproxy", haproxy("tcp", &server.http, flag)) else { return };
        each_client_has_its_own_rate(&format!("https://{}", proxy.address), Some(&authority.pem)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_is_served_behind_the_proxy_protocol_too() {
    let server = Server::start(&options("grpc,admin"));
    let lead_id = fresh_id();
    server.apply(&message(&lead_id, "a1", SAMPLE_TIME)).await;
    let Some(proxy) = Proxy::start("haproxy", haproxy("tcp", &server.grpc, "send-proxy-v2")) else { return };
    let endpoint = Endpoint::from_shared(format!("http://{}", proxy.address)).expect("an address").timeout(PATIENCE);
    let mut client = LeadServiceClient::new(endpoint.connect_lazy());
    assert!(client.get_lead(GetLeadRequest { lead_id }).await.expect("a lead").into_inner().lead.is_some());
}

/// Says something from an address, and returns what comes back until the connection ends.
async fn say(server: &str, from: [u8; 4], words: &[u8]) -> String {
    let mut stream = connect(server, from).await;
    let _ = stream.write_all(words).await;
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the connection ends");
    String::from_utf8_lossy(&answer).into_owned()
}

async fn connect(server: &str, from: [u8; 4]) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind((IpAddr::from(from), 0).into()).expect("an address");
    socket.connect(server.parse().expect("an address")).await.expect("a connection")
}

fn request(headers: &str) -> String {
    let event = event();
    let length = event.len();
    format!(
        "POST {WEBHOOK} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n{headers}\r\n{event}"
    )
}

const V1: &str = "PROXY TCP4 192.0.2.9 192.0.2.1 80 81\r\n";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x09\xc0\0\x02\x01\0\x50\0\x51";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_peers_that_are_not_trusted_say_of_others_is_not_believed() {
    for protocol in ["", "http"] {
        let server = Server::start(&options(protocol));
        let refused = async |reason: &str| {
            server.metric(&format!("leadfold_proxy_headers_refused_total{{listener=\"http\",reason=\"{reason}\"}}")).await
        };
        // Without a header it is served, and its claims do not count.
        let mut statuses = Vec::new();
        for at in 0..10 * RATE {
            statuses.push(say(&server.http, CLIENTS[0], request(&format!("x-forwarded-for: 192.0.2.{at}\r\n")).as_bytes()).await);
        }
        assert!(statuses[0].starts_with("HTTP/1.1 200"), "{statuses:?}");
        assert!(statuses.iter().any(|status| status.starts_with("HTTP/1.1 429")), "{statuses:?}");
        for header in [V1.as_bytes(), V2] {
            let answer = say(&server.http, CLIENTS[1], &[header, request("").as_bytes()].concat()).await;
            assert_eq!(answer, "", "it is ended without an answer");
        }
        assert_eq!(refused("untrusted").await, 2.0);
        let logs = eventually("a log line", async || Some(server.logs()).filter(|logs| logs.contains("no --trusted-proxy"))).await;
        assert!(logs.contains("peer=127.0.0.3") && logs.contains("listener=\"http\""), "{logs}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trusted_proxy_says_it_where_that_was_agreed_and_only_there() {
    const PROXY: [u8; 4] = [127, 0, 0, 1];
    let server = Server::start(&options("http"));
    let refused =
        async |reason: &str| server.metric(&format!("leadfold_proxy_headers_refused_total{{listener=\"http\",reason=\"{reason}\"}}")).await;
    for header in [V1.as_bytes(), V2, b"PROXY UNKNOWN\r\n", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"] {
        let answer = say(&server.http, PROXY, &[header, request("").as_bytes()].concat()).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{header:?}: {answer}");
    }
    // The client that it names is no proxy: what it says of others does not count.
    for at in 0..10 * RATE {
        let answer = say(&server.http, PROXY, &[V2, request(&format!("x-forwarded-for: 198.51.100.{at}\r\n")).as_bytes()].concat()).await;
        if answer.starts_with("HTTP/1.1 429") {
            break;
        }
        assert!(at + 1 < 10 * RATE, "it is never limited");
    }
    assert_eq!(say(&server.http, PROXY, request("").as_bytes()).await, "");
    eventually("a log line", async || server.logs().contains("header is missing").then_some(())).await;
    assert_eq!(say(&server.http, PROXY, &[b"PROXY TCP4 192.0.2.9 nonsense\r\n", request("").as_bytes()].concat()).await, "");
    assert_eq!(say(&server.http, PROXY, b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff").await, "");
    assert_eq!((refused("missing").await, refused("malformed").await, refused("too_long").await), (1.0, 1.0, 1.0));

    // Half a header: 10 s, and others are served meanwhile.
    let began = Instant::now();
    let (half, served) = tokio::join!(say(&server.http, PROXY, b"PROXY TCP4 192.0.2.9"), async {
        timeout(Duration::from_secs(1), say(&server.http, CLIENTS[0], request("").as_bytes())).await
    });
    assert!(served.expect("at once").starts_with("HTTP/1.1 200"));
    assert!(half.is_empty() && began.elapsed() > Duration::from_secs(8), "{:?}", began.elapsed());
    assert_eq!(refused("late").await, 1.0);

    // Where it was not agreed.
    let server = Server::start(&options("grpc"));
    assert_eq!(say(&server.http, PROXY, &[V2, request("").as_bytes()].concat()).await, "");
    eventually("a log line", async || server.logs().contains("name it in --proxy-protocol").then_some(())).await;
}
